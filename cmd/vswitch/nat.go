package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func natCommand() *cli.Command {
	match := []cli.Flag{
		&cli.StringFlag{Name: "address", Usage: "only flows with this `ADDRESS`, or one of this prefix, on any side"},
		&cli.StringFlag{Name: "interface", Usage: "only flows of this `NAME`: an interface, or the bundle, bridge or adapter that it is on"},
		&cli.StringFlag{Name: "protocol", Usage: "only flows of this `PROTOCOL`: tcp, udp, icmp, icmpv6, or a number"},
	}
	matched := func(c *cli.Context) control.NATMatch {
		return control.NATMatch{Address: c.String("address"), Interface: c.String("interface"), Protocol: c.String("protocol")}
	}
	return &cli.Command{
		Name: "nat", Usage: "translated flows", Description: example("vswitch nat list"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list translated flows", example: "vswitch nat list --limit 20",
				flags: append([]cli.Flag{&cli.IntFlag{Name: "limit", Value: 1000, Usage: fmt.Sprintf("at most `N` of them; %d is the most at a time, and what 0 means", control.MaxNATFlows)}, jsonFlag()}, match...),
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
		t.add(f.Interface, f.Protocol, f.Kind, f.State,
			natAsker(f.Protocol, f.Source), natAnswerer(f.Protocol, f.Destination), natAnswerer(f.Protocol, f.ReplySource), natAsker(f.Protocol, f.ReplyDestination),
			f.Packets, f.BackPackets, time.Duration(f.ExpiresSeconds)*time.Second)
	}
	t.print(w)
	fmt.Fprintf(w, "%d of %s shown; %d in the table, room for %d\n", len(n.Flows), count(n.Total, "flow"), n.Used, n.Limit)
}

// natAsker is the end of a flow that speaks first: of an ICMP query the port is the
// identifier.
func natAsker(protocol, end string) string {
	return natEnd(protocol, end, func(id uint16) string { return fmt.Sprintf("id %d", id) })
}

// natAnswerer is the other end: of an ICMP query the port is what is asked.
func natAnswerer(protocol, end string) string { return natEnd(protocol, end, natQuery) }

func natQuery(typ uint16) string {
	switch typ {
	case 8, 128:
		return "echo"
	case 13:
		return "timestamp"
	}
	return fmt.Sprintf("type %d", typ)
}

func natEnd(protocol, end string, icmp func(uint16) string) string {
	a, err := netip.ParseAddrPort(end)
	switch {
	case err != nil:
		return end
	case protocol == "icmp" || protocol == "icmpv6":
		return a.Addr().String() + " " + icmp(a.Port())
	case a.Port() == 0:
		return a.Addr().String() // a protocol without ports
	}
	return end
}
