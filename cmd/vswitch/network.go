package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func bridgeCommand() *cli.Command {
	fdb := command{
		name: "fdb", usage: "list the addresses that a bridge, or every bridge, has learned", names: bridgeNames, example: "vswitch bridge fdb lan", flags: []cli.Flag{jsonFlag()},
	}
	fdb.do = func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		entries, err := sw.FDB(ctx, name)
		return control.FDB{Entries: entries}, func(w io.Writer) { printFDB(w, entries) }, err
	}
	all := fdb.build()
	all.ArgsUsage = "[NAME]"
	one := fdb
	one.args = []string{"NAME"}
	withName := one.build().Action
	without := all.Action
	all.Action = func(c *cli.Context) error {
		if c.NArg() > 0 {
			return withName(c)
		}
		return without(c)
	}
	return &cli.Command{
		Name: "bridge", Usage: "learning switches", Description: example("vswitch bridge fdb"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list all bridges", example: "vswitch bridge list", flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
					bridges, err := sw.Bridges(ctx)
					return control.BridgeList{Bridges: bridges}, func(w io.Writer) { printBridges(w, bridges) }, err
				},
			}.build(),
			command{
				name: "show", usage: "tell about one bridge: ports, VLANs, multicast groups", args: []string{"NAME"}, names: bridgeNames, example: "vswitch bridge show lan",
				flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					b, err := sw.Bridge(ctx, args[0])
					return b, func(w io.Writer) { printBridge(w, b) }, err
				},
			}.build(),
			all,
		},
	}
}

func interfaceCommand() *cli.Command {
	return &cli.Command{
		Name: "interface", Usage: "the router's feet in its networks", Description: example("vswitch interface list"),
		Subcommands: []*cli.Command{command{
			name: "list", usage: "list all interfaces", example: "vswitch interface list", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				interfaces, err := sw.Interfaces(ctx)
				return control.InterfaceList{Interfaces: interfaces}, func(w io.Writer) { printInterfaces(w, interfaces) }, err
			},
		}.build(), command{
			name: "show", usage: "tell everything about one interface", args: []string{"NAME"}, names: interfaceNames, example: "vswitch interface show wan", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
				i, err := sw.Interface(ctx, args[0])
				return i, func(w io.Writer) { printInterface(w, i) }, err
			},
		}.build()},
	}
}

func routeCommand() *cli.Command {
	return &cli.Command{
		Name: "route", Usage: "where the router sends what", Description: example("vswitch route list"),
		Subcommands: []*cli.Command{command{
			name: "list", usage: "list all routes, alive or not", example: "vswitch route list", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				routes, err := sw.Routes(ctx)
				return control.RouteList{Routes: routes}, func(w io.Writer) { printRoutes(w, routes) }, err
			},
		}.build(),
			changeRoute("add", "added", "add a static route", "", (*control.Client).AddRoute),
			changeRoute("del", "deleted", "take a static route away", ", where there are several routes to TO", (*control.Client).DeleteRoute),
		},
	}
}

func changeRoute(name, done, usage, needed string, do func(*control.Client, context.Context, control.RouteSettings) error) *cli.Command {
	return command{
		name: name, usage: usage, args: []string{"TO"},
		example: "vswitch route " + name + " --via 192.0.2.1 203.0.113.0/24\n   vswitch route " + name + " --via 192.0.2.1 default",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "via", Usage: "the next router's `ADDRESS`" + needed},
			&cli.StringFlag{Name: "interface", Usage: "`NAME` of the interface towards it"},
			&cli.UintFlag{Name: "metric", Usage: "the lowest `NUMBER` of the routes to a prefix wins"},
		},
		do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
			if c.Uint("metric") > math.MaxUint32 {
				return nil, nil, badInputf("%s: --metric %d: more than %d", c.Command.HelpName, c.Uint("metric"), uint32(math.MaxUint32))
			}
			err := do(sw, ctx, control.RouteSettings{To: args[0], Via: c.String("via"), Interface: c.String("interface"), Metric: uint32(c.Uint("metric"))})
			return nil, func(w io.Writer) { fmt.Fprintf(w, "route to %s %s\n", args[0], done) }, err
		},
	}.build()
}

func neighborCommand() *cli.Command {
	return &cli.Command{
		Name: "neigh", Usage: "the router's neighbours (ARP and ND)", Description: example("vswitch neigh list"),
		Subcommands: []*cli.Command{command{
			name: "list", usage: "list all neighbours", example: "vswitch neigh list", flags: []cli.Flag{jsonFlag()},
			do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
				neighbors, err := sw.Neighbors(ctx)
				return control.NeighborList{Neighbors: neighbors}, func(w io.Writer) { printNeighbors(w, neighbors) }, err
			},
		}.build()},
	}
}

func printFDB(w io.Writer, entries []control.FDBEntry) {
	t := newTable("MAC", "VLAN>", "PORT", "AGE>", "LOCAL")
	for _, e := range entries {
		age := "-"
		if !e.Local {
			age = (time.Duration(e.AgeSeconds) * time.Second).String()
		}
		t.add(e.MAC, vlanText(e.VLAN), e.Port, age, yesNo(e.Local))
	}
	t.print(w)
}

func printBridges(w io.Writer, bridges []control.Bridge) {
	t := newTable("NAME", "MAC", "VLAN>", "SNOOPING", "PORTS")
	for _, b := range bridges {
		var ports []string
		for _, p := range b.Ports {
			ports = append(ports, p.Name+"="+p.State)
		}
		t.add(b.Name, b.MAC, vlanText(b.VLAN), yesNo(b.Snooping), strings.Join(ports, " "))
	}
	t.print(w)
}

// vlanText is "-" where VLANs are not looked at.
func vlanText(vlan int) string {
	if vlan == 0 {
		return "-"
	}
	return fmt.Sprint(vlan)
}

func printBridge(w io.Writer, b control.Bridge) {
	var l list
	l.add("name", b.Name)
	l.add("mac", b.MAC)
	if b.VLAN > 0 {
		l.add("vlan", b.VLAN)
	}
	snooping := yesNo(b.Snooping)
	if b.Snooping && !b.Querier {
		snooping += ", and flooding: no querier was heard"
	}
	l.add("snooping", snooping)
	l.print(w)
	fmt.Fprintln(w)
	t := newTable("PORT", "STATE", "VLAN", "ADDRESSES>", "LIMIT>", "ROUTER")
	for _, p := range b.Ports {
		vlan := ""
		switch {
		case p.Access > 0:
			vlan = fmt.Sprintf("access %d", p.Access)
		case p.Trunk != "":
			vlan = "trunk " + p.Trunk
			if p.Native > 0 {
				vlan += fmt.Sprintf(" native %d", p.Native)
			}
		}
		limit := "-"
		if p.MACLimit > 0 {
			limit = fmt.Sprint(p.MACLimit)
		}
		state := p.State
		if p.State == "shut" {
			state += fmt.Sprintf(" for %ds", p.Reopens)
		}
		t.add(p.Name, state, vlan, p.Addresses, limit, yesNo(p.Router))
	}
	t.print(w)
	printLimits(w, b.Ports)
	if len(b.Groups) > 0 {
		fmt.Fprintln(w)
		t := newTable("GROUP", "VLAN>", "PORTS")
		for _, g := range b.Groups {
			t.add(g.Address, vlanText(g.VLAN), strings.Join(g.Ports, " "))
		}
		t.print(w)
	}
}

// printLimits prints the limits of those ports that have one, and what they cost.
func printLimits(w io.Writer, ports []control.BridgePort) {
	t := newTable("PORT", "LIMIT", "MOST>", "DROPPED>")
	n := 0
	for _, p := range ports {
		for _, l := range []struct {
			name, unit string
			most, drop uint64
		}{
			{"mac_limit", "", uint64(p.MACLimit), p.Refused},
			{"storm_broadcast", "/s", p.Storm.Broadcast, p.StormDropped.Broadcast},
			{"storm_multicast", "/s", p.Storm.Multicast, p.StormDropped.Multicast},
			{"storm_unknown", "/s", p.Storm.Unknown, p.StormDropped.Unknown},
		} {
			switch {
			case l.most > 0:
				t.add(p.Name, l.name, fmt.Sprint(l.most)+l.unit, l.drop)
			case l.drop > 0: // it had that limit
				t.add(p.Name, l.name, "-", l.drop)
			default:
				continue
			}
			n++
		}
	}
	if n > 0 {
		fmt.Fprintln(w)
		t.print(w)
	}
}

func printInterface(w io.Writer, i control.Interface) {
	var l list
	l.add("name", i.Name)
	l.add("on", i.On)
	l.add("adapter", i.Adapter)
	l.add("up", yesNo(i.Up))
	l.add("link", linkText(i.Link))
	l.add("mac", i.MAC)
	l.add("mtu", i.MTU)
	l.add("masquerade", fmt.Sprintf("IPv4 %s, IPv6 %s", yesNo(i.Masquerade), yesNo(i.Masquerade6)))
	for _, a := range i.Addresses {
		l.add("address", a)
	}
	l.print(w)
}

func printInterfaces(w io.Writer, interfaces []control.Interface) {
	t := newTable("NAME", "ON", "ADAPTER", "UP", "MAC", "MTU>", "ADDRESSES")
	for _, i := range interfaces {
		t.add(i.Name, i.On, i.Adapter, yesNo(i.Up), i.MAC, i.MTU, strings.Join(i.Addresses, " "))
	}
	t.print(w)
}

func printRoutes(w io.Writer, routes []control.Route) {
	t := newTable("TO", "VIA", "INTERFACE", "METRIC>", "KIND", "ALIVE", "WHY")
	for _, r := range routes {
		t.add(r.To, r.Via, r.Interface, r.Metric, r.Kind, yesNo(r.Alive), r.Why)
	}
	t.print(w)
}

func printNeighbors(w io.Writer, neighbors []control.Neighbor) {
	t := newTable("INTERFACE", "IP", "MAC", "STATE", "UPDATED")
	for _, n := range neighbors {
		t.add(n.Interface, n.IP, n.MAC, n.State, timeText(n.Updated))
	}
	t.print(w)
}

func timeText(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }
