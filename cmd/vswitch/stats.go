package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func statsCommand() *cli.Command {
	return command{
		name: "stats", usage: "everything that was counted since the start", example: "vswitch stats --json", flags: []cli.Flag{jsonFlag()},
		do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
			s, err := sw.Stats(ctx)
			return s, func(w io.Writer) { printStats(w, s) }, err
		},
	}.build()
}

// printStats leaves out counters of the router and bridges that are zero.
func printStats(w io.Writer, s control.Stats) {
	t := newTable("ADAPTER", "RX FRAMES>", "RX BYTES>", "FORWARDED>", "DELIVERED>", "DROPPED>", "TX FRAMES>", "TX BYTES>", "DROPPED>")
	drops := newTable("ADAPTER", "DROPPED", "REASON", "FRAMES>")
	for _, name := range sorted(s.Adapters) {
		c := s.Adapters[name]
		t.add(name, c.RxFrames, c.RxBytes, c.Forwarded, c.Delivered, sum(c.RxDropped), c.TxFrames, c.TxBytes, sum(c.TxDropped))
		addDrops(drops, c, name)
	}
	t.print(w)
	if len(drops.rows) > 1 {
		fmt.Fprintln(w)
		drops.print(w)
	}
	others := newTable("PART", "COUNTER", "VALUE>")
	add := func(part string, counters map[string]uint64) {
		for _, name := range sorted(counters) {
			if counters[name] > 0 {
				others.add(part, name, counters[name])
			}
		}
	}
	for _, name := range sorted(s.Bridges) {
		add("bridge "+name, s.Bridges[name])
	}
	add("router", s.Router)
	if len(others.rows) > 1 {
		fmt.Fprintln(w)
		others.print(w)
	}
}

// addDrops adds a row per direction and reason, each after the cells before.
func addDrops(t *table, c ndiscore.Counters, before ...any) {
	for _, d := range []struct {
		direction string
		reasons   map[string]uint64
	}{{"rx", c.RxDropped}, {"tx", c.TxDropped}} {
		for _, reason := range sorted(d.reasons) {
			t.add(append(slices.Clone(before), d.direction, reason, d.reasons[reason])...)
		}
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
