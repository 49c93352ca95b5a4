package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "vswitch",
		Usage: "a switch and router whose links are allowed to fail",
		Description: "Flags stand before arguments. Answers go to stdout, everything else to stderr.\n\n" +
			"Exit codes: 0 done; 1 it failed; 2 wrong command line or configuration; 3 no switch answers on the socket.\n\n" +
			"Example:\n\n" +
			"   vswitch config check my.toml && vswitch run --config my.toml",
		Flags: []cli.Flag{&cli.StringFlag{
			Name: "socket", EnvVars: []string{"VSWITCH_SOCKET"}, Usage: "`PATH` of the control socket (here: " + control.DefaultSocket() + ")",
		}},
		Commands: []*cli.Command{
			runCommand(),
			demoCommand(),
			configCommand(),
			adapterCommand(),
			bundleCommand(),
			bindingCommand(),
			filterCommand(),
			bridgeCommand(),
			interfaceCommand(),
			routeCommand(),
			neighborCommand(),
			natCommand(),
			injectCommand(),
			eventsCommand(),
			statsCommand(),
			versionCommand(),
			completionCommand(),
			manCommand(),
		},
		Action:               group,
		OnUsageError:         usageError,
		ExitErrHandler:       func(*cli.Context, error) {}, // execute decides about exit codes
		HideVersion:          true,                         // there is a command
		EnableBashCompletion: true,
		Writer:               stdout,
		ErrWriter:            stderr,
	}
	var manners func([]*cli.Command)
	manners = func(commands []*cli.Command) {
		for _, c := range commands {
			c.OnUsageError = usageError
			c.Flags = onceEach(c.Flags)
			c.HideHelpCommand = true // it would take the place of something that is called help
			if len(c.Subcommands) > 0 && c.Action == nil {
				c.Action = group
			}
			manners(c.Subcommands)
		}
	}
	app.Flags = onceEach(app.Flags)
	manners(app.Commands)
	return app
}

// example is the end of a command's description.
func example(lines ...string) string { return "Example:\n\n   " + strings.Join(lines, "\n   ") }

// group is what happens when a command is missing, or unknown.
func group(c *cli.Context) error {
	commands, name := c.Command.Subcommands, c.Command.HelpName
	var known []string
	for _, s := range commands {
		if !s.Hidden && s.Name != "help" {
			known = append(known, s.Name)
		}
	}
	if !c.Args().Present() {
		return badInputf("%s: which command? one of %s (see %s --help)", name, strings.Join(known, ", "), name)
	}
	return badInputf("%s: unknown command %q: one of %s (see %s --help)", name, c.Args().First(), strings.Join(known, ", "), name)
}

var repeatedFlag = regexp.MustCompile(` -?([^ -][^ ]*): ` + givenTwice + `$`)

var undefinedFlag = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)

// usageError puts the flag package's words into ours.
func usageError(c *cli.Context, err error, _ bool) error {
	name := "vswitch"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	if m := undefinedFlag.FindStringSubmatch(err.Error()); m != nil {
		if m[1] == "socket" {
			return badInputf("%s: flag --socket is for all commands and comes before them: vswitch --socket PATH %s", name, strings.TrimPrefix(name, "vswitch "))
		}
		dashes := "--"
		if len(m[1]) == 1 {
			dashes = "-"
		}
		return badInputf("%s: unknown flag %s%s (see %s --help)", name, dashes, m[1], name)
	}
	if m := repeatedFlag.FindStringSubmatch(err.Error()); m != nil {
		return badInputf("%s: --%s %s", name, m[1], givenTwice)
	}
	return badInputf("%s: %w (see %s --help)", name, err, name)
}

// arguments checks that a command has exactly the arguments named, and returns
// them.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	args, err := argumentsAndMore(c, names...)
	if err == nil && len(args) > len(names) {
		return nil, badInputf("%s: unexpected argument %q", c.Command.HelpName, args[len(names)])
	}
	return args, err
}

// argumentsAndMore is arguments for a command that takes more behind them.
func argumentsAndMore(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	for i, a := range args {
		if a != "-" && strings.HasPrefix(a, "-") {
			if i == 0 || len(names) == 0 {
				return nil, badInputf("%s: %q is no argument", c.Command.HelpName, a)
			}
			return nil, badInputf("%s: flag %s must come before %s", c.Command.HelpName, a, names[0])
		}
	}
	if len(args) < len(names) {
		return nil, badInputf("%s: %s is missing: %s %s", c.Command.HelpName, names[len(args)], c.Command.HelpName, strings.Join(names, " "))
	}
	return args, nil
}

// command is a command that asks or tells the running switch.
type command struct {
	name, usage string
	args        []string // names of its arguments
	rest        bool     // the last of them stands for any number
	mixed       bool     // flags may follow arguments: do reads them itself
	example     string
	flags       []cli.Flag
	names       func(context.Context, *control.Client) ([]string, error) // for its first argument, to a shell that completes
	// do asks and returns the answer for --json, and how to print it for
	// people. A nil answer means that there is nothing to be had as JSON.
	do func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (answer any, human func(io.Writer), err error)
}

func (q command) build() *cli.Command {
	return &cli.Command{
		Name: q.name, Usage: q.usage, ArgsUsage: strings.Join(q.args, " "), Description: example(q.example), Flags: q.flags,
		BashComplete: complete(q.names),
		Action: func(c *cli.Context) error {
			var args []string
			var err error
			switch {
			case q.mixed:
				args = c.Args().Slice()
			case q.rest:
				args, err = argumentsAndMore(c, q.args[:len(q.args)-1]...)
			default:
				args, err = arguments(c, q.args...)
			}
			if err != nil {
				return err
			}
			sw := control.NewClient(c.String("socket"))
			defer sw.Close()
			answer, human, err := q.do(c.Context, sw, c, args)
			if _, ok := errors.AsType[afterwards](err); err != nil && !ok {
				return err
			}
			if answer != nil && c.Bool("json") {
				return errors.Join(printJSON(c.App.Writer, answer), err)
			}
			human(c.App.Writer)
			return err
		},
	}
}

// afterwards is an error that comes beside an answer, which is printed first.
type afterwards struct{ error }

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, whose schema is stable"}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}
