package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "the configuration", Description: example("vswitch config default > my.toml"),
		Subcommands: []*cli.Command{
			{
				Name: "check", Usage: "find everything wrong with a file; touches no device", ArgsUsage: "FILE",
				Description: example("vswitch config check my.toml"), Flags: []cli.Flag{jsonFlag()}, Action: checkConfig,
			},
			command{
				name: "apply", usage: "turn the running switch into what a file says; ports that stay as they are lose no frame", args: []string{"FILE"},
				example: "vswitch config apply --dry-run my.toml",
				flags:   []cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "only say what that takes"}, jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
					if _, err := loadConfig(args[0]); err != nil {
						return nil, nil, err // with the file's name, and every error at once
					}
					text, err := os.ReadFile(args[0])
					if err != nil {
						return nil, nil, badInput{err}
					}
					plan, err := sw.Apply(ctx, text, c.Bool("dry-run"))
					if err == nil && len(plan.Refused) > 0 {
						err = afterwards{errors.New("this would be refused: it needs a restart of the process")}
					}
					return plan, func(w io.Writer) { printPlan(w, plan) }, err
				},
			}.build(),
			command{
				name: "show", usage: "the configuration in force, with every default", example: "vswitch config show", flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
					text, err := sw.Config(ctx)
					if err != nil {
						return nil, nil, err
					}
					var values map[string]any
					if err := toml.Unmarshal(text, &values); err != nil {
						return nil, nil, fmt.Errorf("the switch sent a configuration that is no TOML: %w", err)
					}
					return values, func(w io.Writer) { _, _ = w.Write(text) }, nil
				},
			}.build(),
			{
				Name: "default", Usage: "a file with every key, its default and its meaning", Description: example("vswitch config default > my.toml"),
				Action: func(c *cli.Context) error {
					if _, err := arguments(c); err != nil {
						return err
					}
					_, err := c.App.Writer.Write(vswitch.DefaultConfig)
					return err
				},
			},
		},
	}
}

func printPlan(w io.Writer, p control.Plan) {
	for _, r := range p.Refused {
		fmt.Fprintf(w, "refused: %s: needs a restart of the process\n", plain(r))
	}
	for _, s := range p.Steps {
		fmt.Fprintln(w, plain(s.Text))
		for _, c := range s.Changes {
			fmt.Fprintf(w, "    %s\n", plain(c))
		}
		if len(s.Disrupts) > 0 {
			fmt.Fprintf(w, "    loses frames or connections: %s\n", plain(strings.Join(s.Disrupts, ", ")))
		}
	}
	switch {
	case len(p.Steps)+len(p.Refused) == 0:
		fmt.Fprintln(w, "nothing to change")
	case p.Applied:
		fmt.Fprintf(w, "applied: %s\n", count(len(p.Steps), "step"))
	default:
		fmt.Fprintf(w, "not applied: %s\n", count(len(p.Steps), "step"))
	}
}

// checked answers `config check --json`.
type checked struct {
	OK     bool           `json:"ok"`
	Errors []config.Error `json:"errors"`
}

func checkConfig(c *cli.Context) error {
	args, err := arguments(c, "FILE")
	if err != nil {
		return err
	}
	cfg, err := loadConfig(args[0])
	if c.Bool("json") {
		found, ok := errors.AsType[config.Errors](err)
		if err != nil && !ok {
			return err // the file could not even be read
		}
		answer := checked{OK: err == nil, Errors: found}
		if found == nil {
			answer.Errors = []config.Error{}
		}
		if e := printJSON(c.App.Writer, answer); e != nil {
			return e
		}
	}
	if err != nil {
		return err
	}
	if !c.Bool("json") {
		fmt.Fprintf(c.App.Writer, "%s: ok: %s\n", args[0], inventory(cfg))
	}
	return nil
}

// loadConfig reads and checks a file.
func loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path, vswitch.Drivers(zap.NewNop()), vswitch.Filters()...)
	if err != nil {
		return nil, badInput{err}
	}
	return cfg, nil
}

// inventory says what a configuration holds: "2 adapters, 1 bridge".
func inventory(c *config.Config) string {
	text := ""
	for _, k := range []struct {
		n         int
		one, many string
	}{
		{len(c.Adapters), "adapter", "adapters"},
		{len(c.Bundles), "bundle", "bundles"},
		{len(c.Bridges), "bridge", "bridges"},
		{len(c.Interfaces), "interface", "interfaces"},
		{len(c.Routes), "route", "routes"},
		{len(c.Forwards), "forward", "forwards"},
		{len(c.Filters), "filter", "filters"},
	} {
		if k.n == 0 {
			continue
		}
		if text != "" {
			text += ", "
		}
		name := k.many
		if k.n == 1 {
			name = k.one
		}
		text += fmt.Sprintf("%d %s", k.n, name)
	}
	if text == "" {
		return "no adapters"
	}
	return text
}
