package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func natCommand() *cli.Command {
	match := []cli.Flag{
		&cli.StringFlag{Name: "address", Usage: "only flows with this `ADDRESS`, or one of this prefix, on any side"},
		&cli.StringFlag{Name: "interface", Usage: "only flows of this `NAME`: an interface, or the bundle or adapter that it stands on"},
	}
	matched := func(c *cli.Context) control.NATMatch {
		return control.NATMatch{Address: c.String("address"), Interface: c.String("interface")}
	}
	return &cli.Command{
		Name: "nat", Usage: "translated flows", Description: example("vswitch nat list"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list translated flows", example: "vswitch nat list --limit 20",
				flags: append([]cli.Flag{&cli.IntFlag{Name: "limit", Value: 1000, Usage: "at most `N` of them"}, jsonFlag()}, match...),
				do: func(ctx context.Context, sw *control.Client, c *cli.Context, _ []string) (any, func(io.Writer), error) {
					t, err := sw.NAT(ctx, matched(c), c.Int("limit"))
					return t, func(w io.Writer) { printNAT(w, t) }, err
				},
			}.build(),
			command{
				name: "flush", usage: "forget translated flows: all, or those that match", example: "vswitch nat flush --address 10.0.0.7", flags: match,
				do: func(ctx context.Context, sw *control.Client, c *cli.Context, _ []string) (any, func(io.Writer), error) {
					n, err := sw.FlushNAT(ctx, matched(c))
					return nil, func(w io.Writer) { fmt.Fprintf(w, "%s forgotten\n", count(n, "flow")) }, err
				},
			}.build(),
		},
	}
}

func printNAT(w io.Writer, n control.NATTable) {
	t := newTable("INTERFACE", "PROTOCOL", "KIND", "STATE", "FROM", "TO", "ANSWER FROM", "ANSWER TO", "PACKETS>", "BACK>", "EXPIRES>")
	for _, f := range n.Flows {
		t.add(f.Interface, f.Protocol, f.Kind, f.State, f.Source, f.Destination, f.ReplySource, f.ReplyDestination, f.Packets, f.BackPackets,
			time.Duration(f.ExpiresSeconds)*time.Second)
	}
	t.print(w)
	fmt.Fprintf(w, "%d of %d flows shown; room for %d\n", len(n.Flows), n.Total, n.Limit)
}
