package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func bundleCommand() *cli.Command {
	return &cli.Command{
		Name: "bundle", Usage: "adapters that stand in for each other", Description: example("vswitch bundle list"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list all bundles", example: "vswitch bundle list", flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
					bundles, err := sw.Bundles(ctx)
					return control.BundleList{Bundles: bundles}, func(w io.Writer) { printBundles(w, bundles) }, err
				},
			}.build(),
			command{
				name: "show", usage: "tell everything about one bundle", args: []string{"NAME"}, names: bundleNames, example: "vswitch bundle show wan",
				flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					b, err := sw.Bundle(ctx, args[0])
					return b, func(w io.Writer) { printBundle(w, b) }, err
				},
			}.build(),
			command{
				name: "promote", usage: "make a member the active one, and prefer it until it fails", args: []string{"NAME", "MEMBER"}, names: bundleNames,
				example: "vswitch bundle promote wan up1",
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					err := sw.Promote(ctx, args[0], args[1])
					return nil, func(w io.Writer) { fmt.Fprintf(w, "bundle %s: %s promoted\n", args[0], args[1]) }, err
				},
			}.build(),
		},
	}
}

// modeNDIS5 is the mode that knows no failback, hold or probe.
const modeNDIS5 = "ndis5"

func printBundles(w io.Writer, bundles []control.Bundle) {
	t := newTable("NAME", "MODE", "BALANCE", "ACTIVE", "FAILBACK", "HOLD", "MEMBERS")
	for _, b := range bundles {
		var members []string
		for _, m := range b.Members {
			members = append(members, m.Adapter+"="+m.Role)
		}
		failback, hold := b.Failback, b.Hold
		if b.Mode == modeNDIS5 {
			failback, hold = "", ""
		}
		t.add(b.Name, b.Mode, b.Balance, b.Active, failback, hold, strings.Join(members, " "))
	}
	t.print(w)
}

func printBundle(w io.Writer, b control.Bundle) {
	var l list
	l.add("name", b.Name)
	l.add("mode", b.Mode)
	l.add("balance", b.Balance)
	l.add("active", b.Active)
	head := []string{"MEMBER", "ROLE", "VERDICT", "STATE", "LINK"}
	if b.Mode != modeNDIS5 {
		l.add("failback", b.Failback)
		l.add("hold", b.Hold)
		head = append(head, "PROBE")
	}
	l.print(w)
	fmt.Fprintln(w)
	t := newTable(head...)
	for _, m := range b.Members {
		row := []any{m.Adapter, m.Role, m.Verdict, m.State, linkText(m.Link), m.Probe}
		t.add(row[:len(head)]...)
	}
	t.print(w)
}
