package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/control"
)

// What each shell has to be told so that it asks us (urfave/cli answers the flag
// --generate-bash-completion with what could come next: flags behind a dash, each
// with what it means if the shell is called zsh). Where we have nothing to offer,
// the shell offers files.
var completions = map[string]string{
	"bash": `# vswitch: source <(vswitch completion bash)
_vswitch() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ $cur == -* ]] && words+=(-)
  local IFS=$'\n'
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _vswitch vswitch
`,
	"zsh": `#compdef vswitch
# vswitch: source <(vswitch completion zsh)
_vswitch() {
  local -a before next
  before=("${(@)words[1,CURRENT-1]}")
  [[ $words[CURRENT] == -* ]] && before+=(-)
  next=("${(@f)$(env 0=zsh "${before[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ -n $next[1] ]]; then _describe vswitch next; else _files; fi
}
compdef _vswitch vswitch
`,
	"fish": `# vswitch: vswitch completion fish | source
function __vswitch_next
  set -l before (commandline -opc)
  string match -q -- '-*' (commandline -ct); and set -a before -
  env 0=zsh $before --generate-bash-completion 2>/dev/null | string replace -r '^([^:]*):' '$1\t'
end
complete -c vswitch -a '(__vswitch_next)'
`,
}

// completionLimit is how long a shell waits for the names that a switch knows.
const completionLimit = time.Second

// complete offers what a command's first argument may be: names, asked of the
// switch that runs.
func complete(names func(ctx context.Context, sw *control.Client) ([]string, error)) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		if names == nil || c.NArg() > 0 {
			return
		}
		sw := control.NewClient(c.String("socket"))
		defer sw.Close()
		ctx, cancel := context.WithTimeout(c.Context, completionLimit)
		defer cancel()
		list, err := names(ctx, sw)
		if err != nil {
			return // nobody is there to read it
		}
		for _, n := range list {
			fmt.Fprintln(c.App.Writer, plain(n))
		}
	}
}

// The names that there are to choose from.
func adapterNames(ctx context.Context, sw *control.Client) ([]string, error) {
	list, err := sw.Adapters(ctx)
	return each(list, func(a control.Adapter) string { return a.Name }), err
}

func bundleNames(ctx context.Context, sw *control.Client) ([]string, error) {
	list, err := sw.Bundles(ctx)
	return each(list, func(b control.Bundle) string { return b.Name }), err
}

func bridgeNames(ctx context.Context, sw *control.Client) ([]string, error) {
	list, err := sw.Bridges(ctx)
	return each(list, func(b control.Bridge) string { return b.Name }), err
}

func interfaceNames(ctx context.Context, sw *control.Client) ([]string, error) {
	list, err := sw.Interfaces(ctx)
	return each(list, func(i control.Interface) string { return i.Name }), err
}

func faultKindNames(ctx context.Context, sw *control.Client) ([]string, error) {
	list, err := sw.FaultKinds(ctx)
	return each(list, func(k control.FaultKind) string { return k.Kind }), err
}

func each[T any](list []T, text func(T) string) (all []string) {
	for _, x := range list {
		all = append(all, text(x))
	}
	return all
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what makes a shell complete our command lines", ArgsUsage: "bash|zsh|fish",
		Description: example("source <(vswitch completion bash)"),
		BashComplete: func(c *cli.Context) {
			if c.NArg() == 0 {
				fmt.Fprintln(c.App.Writer, strings.Join(sorted(completions), "\n"))
			}
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := completions[args[0]]
			if !ok {
				return badInputf("%s: %q: one of %s", c.Command.HelpName, args[0], strings.Join(sorted(completions), ", "))
			}
			_, err = fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page, in roff", Description: example("vswitch man | man -l -"),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			writeMan(c.App.Writer, c.App)
			return nil
		},
	}
}

// writeMan prints the manual page (man(7)): what --help says of every command.
func writeMan(w io.Writer, app *cli.App) {
	m := manPage{w}
	m.macro(`.TH VSWITCH 8 "" "vswitch `+roff(vswitch.Version())+`"`, "")
	m.macro(".SH NAME", app.Name+" - "+app.Usage)
	m.macro(".SH SYNOPSIS", app.Name+" [--socket PATH] COMMAND ...")
	m.macro(".SH DESCRIPTION", "")
	m.description(app.Description)
	m.macro(".SH OPTIONS", "")
	m.flags(app.Flags)
	m.macro(".SH COMMANDS", "")
	m.commands(app.Commands, app.Name)
	m.macro(".SH ENVIRONMENT", "")
	m.macro(".TP", "VSWITCH_SOCKET", "stands for --socket.")
	m.macro(".SH FILES", "")
	m.macro(".TP", systemConfig, "what `vswitch run` reads without --config.")
	m.macro(".TP", "/run/vswitch/control.sock", "the control socket of a switch that root runs; of others it is $XDG_RUNTIME_DIR/vswitch/control.sock, or /tmp/vswitch-UID/control.sock.")
	m.macro(".SH EXIT STATUS", "")
	for i, text := range []string{"Done.", "It could not be done: the switch refused or failed.", "Wrong command line or configuration.", "No switch answers on the socket."} {
		m.macro(".TP", fmt.Sprint(i), text)
	}
}

type manPage struct{ w io.Writer }

// macro prints a line of roff and lines of text that belong to it.
func (m manPage) macro(line string, text ...string) {
	fmt.Fprintln(m.w, line)
	for _, t := range text {
		if t != "" {
			fmt.Fprintln(m.w, roff(t))
		}
	}
}

// description prints paragraphs; those that are indented are examples.
func (m manPage) description(text string) {
	for _, p := range strings.Split(text, "\n\n") {
		if strings.HasPrefix(p, " ") {
			m.macro(".PP\n.EX")
			for line := range strings.Lines(p) {
				m.macro(".in +3", strings.TrimSpace(line))
				m.macro(".in")
			}
			m.macro(".EE")
			continue
		}
		m.macro(".PP", strings.Split(p, "\n")...)
	}
}

func (m manPage) flags(flags []cli.Flag) {
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok || f.Names()[0] == "help" || f.Names()[0] == "generate-bash-completion" {
			continue
		}
		// `WORD` in the text is what its value is called.
		word, text := "", d.GetUsage()
		if _, rest, ok := strings.Cut(text, "`"); ok {
			word, _, _ = strings.Cut(rest, "`")
			text = strings.Replace(text, "`"+word+"`", word, 1)
		}
		text, _, _ = strings.Cut(text, " (here: ") // is another one elsewhere
		m.macro(".TP", strings.TrimSpace("--"+f.Names()[0]+" "+word), text+".")
	}
}

func (m manPage) commands(list []*cli.Command, before string) {
	for _, c := range list {
		name := before + " " + c.Name
		if c.Name == "help" {
			continue
		}
		if len(c.Subcommands) == 0 || c.ArgsUsage != "" {
			line := name
			if len(c.Flags) > 0 {
				line += " [OPTION ...]"
			}
			m.macro(".SS "+roff(strings.TrimSpace(line+" "+c.ArgsUsage)), strings.ToUpper(c.Usage[:1])+c.Usage[1:]+".")
			m.flags(c.Flags)
			m.description(c.Description)
		}
		m.commands(c.Subcommands, name)
	}
}

// roff is text without a meaning for roff.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
