package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func adapterCommand() *cli.Command {
	return &cli.Command{
		Name: "adapter", Usage: "the ports: devices, teams and bridges", Description: example("vswitch adapter list"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list all adapters", example: "vswitch adapter list --json", flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
					adapters, err := sw.Adapters(ctx)
					return control.AdapterList{Adapters: adapters}, func(w io.Writer) { printAdapters(w, adapters) }, err
				},
			}.build(),
			command{
				name: "show", usage: "tell everything about one adapter", args: []string{"NAME"}, names: adapterNames, example: "vswitch adapter show lan0",
				flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					a, err := sw.Adapter(ctx, args[0])
					return a, func(w io.Writer) { printAdapter(w, a) }, err
				},
			}.build(),
			addAdapter(),
			operation(control.OpStart, "started", "bring an adapter up: one that was stopped, paused, or has failed", "vswitch adapter start lan0"),
			operation(control.OpStop, "stopped", "halt an adapter and keep it for a later start", `vswitch adapter stop --why "new cable" lan0`),
			operation(control.OpPause, "paused", "stop its frames, and leave everybody bound; start goes on", "vswitch adapter pause lan0"),
			operation(control.OpRestart, "restarted", "pause an adapter and start it again", "vswitch adapter restart lan0"),
			operation(control.OpReset, "reset", "set its device up anew, while everybody stays bound", "vswitch adapter reset wan0"),
			operation(control.OpSuspend, "suspended", "put an adapter to sleep, with everybody left bound", "vswitch adapter suspend wan0"),
			operation(control.OpResume, "resumed", "wake an adapter", "vswitch adapter resume wan0"),
			operation(control.OpRemove, "removed", "ask those above, halt an adapter, and forget it until the next start", `vswitch adapter remove --why "cable goes" lan0`,
				&cli.BoolFlag{Name: "force", Usage: "although somebody refuses"}),
		},
	}
}

// operation is a command that does one thing to an adapter.
func operation(op control.AdapterOp, done, usage, example string, flags ...cli.Flag) *cli.Command {
	return command{
		name: string(op), usage: usage, args: []string{"NAME"}, names: adapterNames, example: example,
		flags: append(flags, &cli.StringFlag{Name: "why", Usage: "`REASON` for the event log"}),
		do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
			err := sw.Operate(ctx, op, args[0], c.String("why"), c.Bool("force"))
			return nil, func(w io.Writer) { fmt.Fprintf(w, "adapter %s %s\n", args[0], done) }, err
		},
	}.build()
}

func addAdapter() *cli.Command {
	return command{
		name: "add", usage: "add an adapter to the running switch, and start it", args: []string{"NAME", "[KEY=VALUE ...]"}, rest: true,
		example: "vswitch adapter add --driver afpacket wan2 interface=eth3 ring_mib=16",
		flags:   []cli.Flag{&cli.StringFlag{Name: "driver", Usage: "`KIND` of device: see [adapter.NAME] in `vswitch config default`"}},
		do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
			if c.String("driver") == "" {
				return nil, nil, badInputf("%s: --driver KIND is missing (see %s --help)", c.Command.HelpName, c.Command.HelpName)
			}
			settings := map[string]any{}
			for _, arg := range args[1:] {
				key, text, ok := strings.Cut(arg, "=")
				if !ok || key == "" {
					return nil, nil, badInputf("%s: %q is not KEY=VALUE", c.Command.HelpName, arg)
				}
				if _, twice := settings[key]; twice {
					return nil, nil, badInputf("%s: %s is given twice", c.Command.HelpName, key)
				}
				settings[key] = settingOf(text)
			}
			err := sw.AddAdapter(ctx, control.AdapterSettings{Name: args[0], Driver: c.String("driver"), Settings: settings})
			return nil, func(w io.Writer) { fmt.Fprintf(w, "adapter %s added\n", args[0]) }, err
		},
	}.build()
}

// settingOf gives a value from the command line the type that it would have in
// config.toml: a number, a truth, a list in brackets, or text.
func settingOf(text string) any {
	var v struct{ V any }
	if toml.Unmarshal([]byte("V = "+text), &v) == nil && v.V != nil {
		return v.V
	}
	return text
}

func bindingCommand() *cli.Command {
	return &cli.Command{
		Name: "binding", Usage: "which protocol is attached to which adapter", Description: example("vswitch binding list"),
		Subcommands: []*cli.Command{command{
			name: "list", usage: "list all bindings", example: "vswitch binding list", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				bindings, err := sw.Bindings(ctx)
				return control.BindingList{Bindings: bindings}, func(w io.Writer) { printBindings(w, bindings) }, err
			},
		}.build()},
	}
}

func printAdapters(w io.Writer, adapters []control.Adapter) {
	t := newTable("NAME", "DRIVER", "STATE", "OPER", "DEVICE", "MAC", "MTU>", "LINK", "BUNDLE")
	for _, a := range adapters {
		t.add(a.Name, a.Driver, a.State, a.Oper, a.Device, a.MAC, a.MTU, a.Link.Media, a.Bundle)
	}
	t.print(w)
}

func printAdapter(w io.Writer, a control.Adapter) {
	var l list
	l.add("name", a.Name)
	l.add("driver", a.Driver)
	l.add("virtual", yesNo(a.Virtual))
	l.add("state", a.State)
	l.add("cause", a.Cause)
	l.add("oper", a.Oper)
	l.add("last halt", a.LastHalt)
	l.add("health", a.Health)
	if a.Resets > 0 {
		l.add("resets", a.Resets)
	}
	if a.Suspended {
		l.add("suspended", "until `vswitch adapter resume "+a.Name+"`")
	}
	switch {
	case a.Retrying:
		l.add("waiting", "to start its device again, which had come back and did not start (see cause)")
	case a.Waiting:
		l.add("waiting", "for its device to come back")
	}
	if a.Quarantined {
		l.add("quarantined", "a call into its driver did not return")
	}
	l.add("device", a.Device)
	l.add("mac", a.MAC)
	l.add("mtu", a.MTU)
	l.add("link", linkText(a.Link))
	l.add("bundle", a.Bundle)
	for i, f := range a.Filters {
		l.add(fmt.Sprintf("filter %d", i+1), f.Name+", "+f.State)
	}
	c := a.Counters
	l.add("received", fmt.Sprintf("%d frames, %d bytes: %d forwarded, %d delivered, %d dropped", c.RxFrames, c.RxBytes, c.Forwarded, c.Delivered, sum(c.RxDropped)))
	l.add("sent", fmt.Sprintf("%d frames, %d bytes; %d dropped", c.TxFrames, c.TxBytes, sum(c.TxDropped)))
	l.print(w)
	if len(a.Bindings) > 0 {
		fmt.Fprintln(w)
		printBindings(w, a.Bindings)
	}
	if len(c.RxDropped)+len(c.TxDropped) > 0 {
		fmt.Fprintln(w)
		t := newTable("DROPPED", "REASON", "FRAMES>")
		addDrops(t, c)
		t.print(w)
	}
	if len(c.Device) > 0 {
		fmt.Fprintln(w)
		t := newTable("DEVICE COUNTER", "VALUE>")
		for _, name := range sorted(c.Device) {
			t.add(name, c.Device[name])
		}
		t.print(w)
	}
}

func printBindings(w io.Writer, bindings []control.Binding) {
	t := newTable("PROTOCOL", "ADAPTER", "TARGET", "STATE")
	for _, b := range bindings {
		t.add(b.Protocol, b.Adapter, b.Target, b.State)
	}
	t.print(w)
}

func linkText(l control.Link) string {
	s := l.Media
	if l.SpeedBits > 0 {
		s += ", " + speedText(l.SpeedBits)
	}
	if l.Why != "" {
		s += ": " + l.Why
	}
	return s
}

func speedText(bits uint64) string {
	for _, u := range []struct {
		name string
		size uint64
	}{{"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}} {
		if bits >= u.size && bits%u.size == 0 {
			return fmt.Sprintf("%d %s", bits/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d bit/s", bits)
}
