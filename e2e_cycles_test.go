package vswitch_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	warmUp   = 20       // cycles after which everything has its size
	heapRoom = 2 << 20  // what pools may still gain
	rssRoom  = 48 << 20 // what the runtime may keep of freed memory, with the race detector's share
)

// cyclesFlag is how often things are taken away and brought back.
var cyclesFlag = flag.Int("cycles", 100, "cycles of TestCycles…; 10000 for a long run")

func cycles() int {
	if testing.Short() {
		return 2 * warmUp
	}
	return max(*cyclesFlag, 2*warmUp)
}

// usage is what the process holds.
type usage struct {
	goroutines, files int
	heap, rss         uint64
}

func measure(t *testing.T) (u usage) {
	t.Helper()
	runtime.GC()
	runtime.GC() // the first one empties the pools, the second what was in them
	// What the collector has found alive, without what traffic has made since, and
	// without the holes between.
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	u.goroutines, u.heap = runtime.NumGoroutine(), live[0].Value.Uint64()
	files, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	u.files = len(files)
	statm, err := os.ReadFile("/proc/self/statm")
	must(t, err)
	var size, resident uint64
	_, err = fmt.Sscan(string(statm), &size, &resident)
	must(t, err)
	u.rss = resident * uint64(os.Getpagesize())
	return u
}

// join is the most of everything, but the least of the heap: a switch that was
// stopped is held for a moment by timers of netstack.
func (u usage) join(o usage) usage {
	if u.heap == 0 {
		return o
	}
	return usage{max(u.goroutines, o.goroutines), max(u.files, o.files), min(u.heap, o.heap), max(u.rss, o.rss)}
}

// flat waits until the process holds no more than it did.
func flat(t *testing.T, before usage) {
	t.Helper()
	var now usage
	err := lab.Eventually(context.Background(), "the process to hold as much as before", func() error {
		now = measure(t)
		if now.goroutines > before.goroutines || now.files > before.files || now.heap > before.heap+heapRoom || now.rss > before.rss+rssRoom {
			return fmt.Errorf("%+v, after %d cycles %+v", now, warmUp, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("after %d cycles %+v, at the end %+v", warmUp, before, now)
}

// TestCyclesSwitch starts and stops a whole switch again and again.
func TestCyclesSwitch(t *testing.T) {
	needTAP(t)
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	l.Veth(l.Here(), "up0", b, "e0", lab.VethOptions{})
	l.Veth(l.Here(), "up1", b, "e1", lab.VethOptions{})
	l.Bridge(b, "br0", "e0", "e1")
	l.Veth(l.Here(), "lan1", a, "if1", lab.VethOptions{})
	must(t, b.AddAddr("br0", "10.2.0.2/24"), b.Route("default", "10.2.0.1"))
	text := fmt.Sprintf(`
[adapter.lan0]
driver = "tap"
netns = %q
[adapter.lan1]
driver = "afpacket"
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"
[bundle.wan]
members = ["up0", "up1"]
[bundle.wan.health]
probe = "neighbor"
target = "10.2.0.2"
[bridge.lan]
ports = ["lan0", "lan1"]
[interface.inside]
on = "lan"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
[[route]]
to = "default"
via = "10.2.0.2"
`, a.Path())
	var before usage
	for i := range cycles() {
		sw, err := l.StartSwitch(within(t, 60*time.Second), text, nil)
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		if i%50 == 0 || i == cycles()-1 { // it works, the last time too
			must(t,
				a.AddAddr("lan0", "10.1.0.2/24"), a.Route("default", "10.1.0.1"),
				a.WaitReachable(within(t, 20*time.Second), addr("10.2.0.2")))
		}
		if err := sw.Stop(); err != nil {
			t.Fatalf("cycle %d: stop: %v", i, err)
		}
		if i < warmUp {
			before = before.join(measure(t))
		}
	}
	flat(t, before)
}

// TestCyclesAdapters takes the members of a team away and brings them back,
// faster than the switch can follow.
func TestCyclesAdapters(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "hold = \"0s\"\n")
	settle := func() usage {
		ctx := within(t, 60*time.Second)
		defer func() {
			if !t.Failed() {
				return
			}
			events, _, _ := u.sw.Events(0)
			for _, m := range []string{"up0", "up1"} {
				own := slices.DeleteFunc(slices.Clone(events), func(e ndiscore.Event) bool { return e.Adapter != m })
				for _, e := range own[max(0, len(own)-40):] {
					t.Logf("%s %+v", e.Time.Format("05.000"), e)
				}
			}
		}()
		must(t, lab.Eventually(ctx, "both members to be up", func() error {
			infos, err := u.sw.Bundles(ctx)
			if err != nil {
				return err
			}
			for _, m := range infos[0].Members {
				if m.Role != "active" && m.Role != "standby" {
					return fmt.Errorf("%+v", m)
				}
			}
			return nil
		}), u.client.WaitReachable(ctx, u.dst))
		return measure(t)
	}
	var before usage
	for i := range cycles() {
		w := u.wires[i%2]
		must(t, w.Cut(lab.EndA), w.Restore(lab.EndA))
		if i == warmUp-1 {
			before = settle()
		}
	}
	settle()
	flat(t, before)
}

// TestCyclesHot adds and removes adapters, a port, an interface with a route and
// a filter while a stream of datagrams crosses the bridge and the router beside
// them: it loses nothing, and the switch does not grow.
func TestCyclesHot(t *testing.T) {
	lab.CheckLeaks(t)
	w := newTown(t, 5*time.Second)
	less, more := []byte(base.text(w.a.Path())), []byte(all.text(w.a.Path()))
	apply := func(text []byte) {
		t.Helper()
		_, err := w.sw.Apply(within(t, 60*time.Second), text, false)
		must(t, err)
	}
	var before usage
	first, mark := counters(t, w.sw.Switch), newest(w.sw.Switch)
	lost := map[string]uint64{}
	for i := range cycles() {
		apply(more)
		apply(less)
		if i < warmUp {
			m := measure(t)
			m.heap = max(m.heap, before.heap) // with traffic on its way, which comes and goes
			before = before.join(m)
			before.heap = m.heap
		}
		if i%20 == 19 {
			for flow, n := range w.cost(t, fmt.Sprintf("up to cycle %d", i)) {
				lost[flow] += n
			}
		}
	}
	for flow, n := range lost {
		if n > 0 {
			t.Errorf("%s lost %d in %d cycles; dropped %v", flow, n, cycles(), dropped(first, counters(t, w.sw.Switch)))
		}
	}
	if events, _, _ := w.sw.Events(mark); slices.ContainsFunc(events, func(e ndiscore.Event) bool { return e.What == "bundle.active" }) {
		t.Error("the bundle moved")
	}
	w.through(t, 256<<10)
	flat(t, before)
	w.end(t)
}
