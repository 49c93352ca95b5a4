package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func bridgeCommand() *cli.Command {
	fdb := command{
		name: "fdb", usage: "list the addresses that a bridge, or every bridge, has learned", example: "vswitch bridge fdb lan", flags: []cli.Flag{jsonFlag()},
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
		Subcommands: []*cli.Command{all},
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
		}.build()},
	}
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
	t := newTable("MAC", "PORT", "AGE>", "LOCAL")
	for _, e := range entries {
		age := "-"
		if !e.Local {
			age = (time.Duration(e.AgeSeconds) * time.Second).String()
		}
		t.add(e.MAC, e.Port, age, yesNo(e.Local))
	}
	t.print(w)
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
