package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
)

func filterCommand() *cli.Command {
	return &cli.Command{
		Name: "filter", Usage: "modules between a device and those who use it", Description: example("vswitch filter list"),
		Subcommands: []*cli.Command{
			command{
				name: "list", usage: "list the filters of all adapters, from the device up", example: "vswitch filter list", flags: []cli.Flag{jsonFlag()},
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
					filters, err := sw.Filters(ctx)
					return control.FilterList{Filters: filters}, func(w io.Writer) { printFilters(w, filters) }, err
				},
			}.build(),
			command{
				name: "insert", usage: "put a configured filter into an adapter's chain", args: []string{"ADAPTER", "FILTER"}, names: adapterNames,
				example: "vswitch filter insert --at 0 wan0 lossy",
				flags:   []cli.Flag{&cli.IntFlag{Name: "at", Value: -1, Usage: "`POSITION` from the device up, from 0; without it the top", DefaultText: "top"}},
				do: func(ctx context.Context, sw *control.Client, c *cli.Context, args []string) (any, func(io.Writer), error) {
					at := c.Int("at")
					if c.IsSet("at") && at < 0 {
						return nil, nil, badInputf("%s: --at: %d is no position: they begin with 0, next to the device; without --at it is the top", c.Command.HelpName, at)
					}
					err := sw.InsertFilter(ctx, args[0], args[1], at)
					return nil, func(w io.Writer) { fmt.Fprintf(w, "filter %s inserted on %s\n", args[1], args[0]) }, err
				},
			}.build(),
			command{
				name: "remove", usage: "take a filter out of an adapter's chain", args: []string{"ADAPTER", "FILTER"}, names: adapterNames, example: "vswitch filter remove wan0 lossy",
				do: func(ctx context.Context, sw *control.Client, _ *cli.Context, args []string) (any, func(io.Writer), error) {
					err := sw.RemoveFilter(ctx, args[0], args[1])
					return nil, func(w io.Writer) { fmt.Fprintf(w, "filter %s removed from %s\n", args[1], args[0]) }, err
				},
			}.build(),
		},
	}
}

func printFilters(w io.Writer, filters []control.FilterOn) {
	t := newTable("ADAPTER", "AT>", "FILTER", "STATE", "MANDATORY")
	for _, f := range filters {
		t.add(f.Adapter, f.Position, f.Name, f.State, yesNo(f.Mandatory))
	}
	t.print(w)
}
