package main

import (
	"context"
	"fmt"
	"io"

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
				name: "show", usage: "tell everything about one adapter", args: []string{"NAME"}, example: "vswitch adapter show lan0",
				flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					a, err := sw.Adapter(ctx, args[0])
					return a, func(w io.Writer) { printAdapter(w, a) }, err
				},
			}.build(),
			command{
				name: "remove", usage: "halt an adapter, and forget it until the next start", args: []string{"NAME"},
				example: `vswitch adapter remove --why "cable goes" lan0`,
				flags:   []cli.Flag{&cli.StringFlag{Name: "why", Usage: "`REASON` for the event log"}},
				do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
					err := sw.RemoveAdapter(ctx, args[0], c.String("why"))
					return nil, func(w io.Writer) { fmt.Fprintf(w, "adapter %s removed\n", args[0]) }, err
				},
			}.build(),
		},
	}
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
	if a.Waiting {
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
