package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

// injectCommand is `inject KIND …`, and the commands about faults that are there
// already.
func injectCommand() *cli.Command {
	c := command{
		name: "inject", usage: "break something on purpose, for a while", args: []string{"KIND", "[KEY=VALUE ...]"}, mixed: true, names: faultKindNames,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "on", Usage: "`ADAPTER` to break"},
			&cli.StringFlag{Name: "direction", Usage: "rx (into the switch), tx (out of it) or both"},
			&cli.StringFlag{Name: "for", Usage: "end after `TIME`, such as 30s; without it after the longest lease that is allowed"},
			&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that chance starts from; the same seed spoils the same frames"},
			&cli.StringFlag{Name: "owner", Usage: "`WHO` it is for, in the list"},
			&cli.BoolFlag{Name: "detach", Usage: "return at once, and leave the fault in force until it expires or is cleared"},
			jsonFlag(),
		},
		do: inject,
	}.build()
	c.Description = "Faults are leases: they end by themselves. Without --detach the command waits, and its end (^C, too) ends the fault.\n" +
		"The switch has to allow them: allow = true in [fault].\n\n" +
		example("vswitch inject kinds", "vswitch inject drop --on wan0 --for 30s chance=10%", "vswitch inject link-down --on wan0 --detach --for 5s")
	c.Subcommands = []*cli.Command{
		command{
			name: "kinds", usage: "list what can be injected, with its parameters", example: "vswitch inject kinds", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				kinds, err := sw.FaultKinds(ctx)
				return control.FaultKindList{Kinds: kinds}, func(w io.Writer) { printFaultKinds(w, kinds) }, err
			},
		}.build(),
		command{
			name: "list", usage: "list the faults in force", example: "vswitch inject list", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				faults, err := sw.Faults(ctx)
				return control.FaultList{Faults: faults}, func(w io.Writer) { printFaults(w, faults) }, err
			},
		}.build(),
		command{
			name: "clear", usage: "end faults: those named, or all", args: []string{"[ID ...]"}, rest: true, example: "vswitch inject clear --on wan0",
			flags: []cli.Flag{
				&cli.StringFlag{Name: "on", Usage: "those on `ADAPTER`"}, &cli.StringFlag{Name: "owner", Usage: "those of `WHO`"},
				&cli.BoolFlag{Name: "all", Usage: "every one"},
			},
			do: clearFaults,
		}.build(),
	}
	return c
}

func inject(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
	name := c.Command.HelpName
	if len(args) == 0 {
		return nil, nil, badInputf("%s: KIND is missing: `vswitch inject kinds` lists them", name)
	}
	f := control.FaultSettings{
		Kind: args[0], On: c.String("on"), Direction: c.String("direction"), For: c.String("for"), Seed: c.Uint64("seed"), Owner: c.String("owner"),
		Params: map[string]string{},
	}
	detach, asJSON := c.Bool("detach"), c.Bool("json")
	// The kind comes first, as in a sentence; flags may follow it.
	seen := map[string]bool{}
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			key, value, ok := strings.Cut(arg, "=")
			if _, twice := f.Params[key]; !ok || key == "" || twice {
				return nil, nil, badInputf("%s: %q is not KEY=VALUE, or comes twice", name, arg)
			}
			f.Params[key] = value
			continue
		}
		flag, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if flag == "help" || flag == "h" {
			return nil, func(io.Writer) { _ = cli.ShowSubcommandHelp(c) }, nil
		}
		if seen[flag] || c.IsSet(flag) {
			return nil, nil, badInputf("%s: --%s %s", name, flag, givenTwice)
		}
		seen[flag] = true
		if flag == "detach" || flag == "json" {
			on := true
			if given {
				var err error
				if on, err = strconv.ParseBool(value); err != nil {
					return nil, nil, badInputf("%s: --%s: %q is neither true nor false", name, flag, value)
				}
			}
			if flag == "detach" {
				detach = on
			} else {
				asJSON = on
			}
			continue
		}
		if !given {
			if i++; i == len(args) {
				return nil, nil, badInputf("%s: --%s needs a value", name, flag)
			}
			value = args[i]
		}
		switch flag {
		case "on":
			f.On = value
		case "direction":
			f.Direction = value
		case "for":
			f.For = value
		case "owner":
			f.Owner = value
		case "seed":
			var err error
			if f.Seed, err = strconv.ParseUint(value, 0, 64); err != nil {
				return nil, nil, badInputf("%s: --seed: %q is not a number", name, value)
			}
		default:
			return nil, nil, badInputf("%s: unknown flag --%s (see %s --help)", name, flag, name)
		}
	}
	if f.On == "" {
		return nil, nil, badInputf("%s: --on ADAPTER is missing", name)
	}
	out := c.App.Writer
	tell := func(fault control.Fault) {
		if asJSON {
			_ = printJSON(out, fault)
			return
		}
		fmt.Fprintf(out, "fault %d: %s on %s until %s (seed %d)\n", fault.ID, fault.Kind, fault.On, timeText(fault.Ends), fault.Seed)
	}
	nothing := func(io.Writer) {}
	if detach {
		fault, err := sw.Inject(ctx, f)
		if err == nil {
			tell(fault)
		}
		return nil, nothing, err
	}
	var id uint64
	end, err := sw.InjectAttached(ctx, f, func(fault control.Fault) {
		id = fault.ID
		tell(fault)
	})
	if errors.Is(err, context.Canceled) {
		end, err = "let go", letGo(context.WithoutCancel(ctx), sw, id)
	}
	return nil, func(w io.Writer) {
		if asJSON {
			_ = printJSON(w, control.FaultEnd{End: end})
			return
		}
		fmt.Fprintf(w, "fault over: %s\n", end)
	}, err
}

// letGo returns when fault id is over. The end of our connection ends it, too, but
// does not say when that is done.
func letGo(ctx context.Context, sw *control.Client, id uint64) error {
	if id == 0 {
		return context.Canceled // before it began
	}
	_, err := sw.ClearFaults(ctx, control.FaultMatch{ID: id})
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeNotFound {
		return nil
	}
	return err
}

func clearFaults(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
	var matches []control.FaultMatch
	for _, a := range args {
		id, err := strconv.ParseUint(a, 10, 64)
		if err != nil || id == 0 {
			return nil, nil, badInputf("%s: %q is not the number of a fault", c.Command.HelpName, a)
		}
		matches = append(matches, control.FaultMatch{ID: id})
	}
	if m := (control.FaultMatch{On: c.String("on"), Owner: c.String("owner"), All: c.Bool("all")}); m != (control.FaultMatch{}) {
		matches = append(matches, m)
	}
	if len(matches) == 0 {
		return nil, nil, badInputf("%s: which? IDs, --on ADAPTER, --owner WHO or --all", c.Command.HelpName)
	}
	total := 0
	for _, m := range matches {
		n, err := sw.ClearFaults(ctx, m)
		if err != nil {
			return nil, nil, err
		}
		total += n
	}
	return nil, func(w io.Writer) { fmt.Fprintf(w, "%s cleared\n", count(total, "fault")) }, nil
}

func printFaults(w io.Writer, faults []control.Fault) {
	t := newTable("ID>", "KIND", "ON", "DIRECTION", "PARAMETERS", "SEED>", "OWNER", "ENDS", "HITS>")
	for _, f := range faults {
		var params []string
		for _, k := range slices.Sorted(maps.Keys(f.Params)) {
			params = append(params, k+"="+f.Params[k])
		}
		t.add(f.ID, f.Kind, f.On, f.Direction, strings.Join(params, " "), f.Seed, f.Owner, timeText(f.Ends), f.Hits)
	}
	t.print(w)
}

func printFaultKinds(w io.Writer, kinds []control.FaultKind) {
	for i, k := range kinds {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s: %s\n", k.Kind, k.Help)
		for _, p := range k.Params {
			text, unit := p.Help, p.Unit
			if len(p.Words) > 0 {
				unit = orList(p.Words)
			}
			if p.Range != "" {
				unit += ", " + p.Range
			}
			if unit != "" {
				text += " (" + unit + ")"
			}
			if p.Required {
				text += "; needed"
			}
			if p.Default != "" {
				text += "; default " + p.Default
			}
			fmt.Fprintf(w, "    %-10s %s\n", p.Name, text)
		}
		if len(k.OneOf) > 0 {
			fmt.Fprintf(w, "    exactly one of %s is needed\n", orList(k.OneOf))
		}
	}
}

// orList is words as a sentence has them: "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
