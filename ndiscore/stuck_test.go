package ndiscore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// deadEnd is an adapter whose Send does not return until let is closed.
type deadEnd struct {
	ndiscore.Adapter
	begun  chan struct{} // has one for each Send
	let    chan struct{}
	paused atomic.Bool // while somebody was in Send
}

func (d *deadEnd) Inner() ndiscore.Adapter { return d.Adapter }

func (d *deadEnd) Send(b *ndiscore.Batch) {
	d.begun <- struct{}{}
	<-d.let
	d.Adapter.Send(b)
}

func (d *deadEnd) Pause(ctx context.Context) {
	d.paused.Store(true)
	d.Adapter.Pause(ctx)
}

// stuckBench is a core that is not expected to end well. end lets it, after
// whoever hangs was let go.
func stuckBench(t *testing.T, limit time.Duration, adapters map[string]ndiscore.Adapter) (b *bench, end func()) {
	leakFree(t)
	core := ndiscore.New(ndiscore.Options{CallLimit: limit, Decider: sticky{}})
	run, cancel := context.WithCancel(context.Background())
	ended := later(func() error { return core.Run(run) })
	b = &bench{t: t, core: core}
	d := ndistest.Driver("fake")
	d.New = func(name string, _ any) (ndiscore.Adapter, error) { return adapters[name], nil }
	b.register(d)
	return b, func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(100 * limit):
			t.Error("Run did not end")
		}
	}
}

// Somebody who does not return on the data path, a protocol's Receive or an
// adapter's Send, costs the adapters whose frame that is. Any other is paused,
// removed and added while it lasts, and meets no frame of it afterwards.
func TestStuckOnTheDataPath(t *testing.T) {
	const limit = 400 * time.Millisecond
	for _, c := range []struct {
		name  string
		in    string   // where the frame comes in
		stuck []string // whom it costs, in the order in which they are stopped
	}{
		{"protocol", "M", []string{"M"}},
		{"adapter", "M", []string{"N", "M"}},
		{"team", "M", []string{"wan", "M"}},
		{"ndis5", "N", []string{"M", "N"}}, // N is the secondary: the frame is M's protocol's
	} {
		t.Run(c.name, func(t *testing.T) {
			m, n, z := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{}), nic("Z", ndistest.AdapterOptions{})
			begun, let := make(chan struct{}, 1), make(chan struct{})
			last := ndiscore.Adapter(n.Contract())
			p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
			hang := func(*ndiscore.Binding, *ndiscore.Batch) { begun <- struct{}{}; <-let }
			targets := []string{"wan", "Z"}
			switch c.name {
			case "protocol":
				p1.OnReceive, targets = hang, []string{"M", "Z"}
			case "adapter":
				last = &deadEnd{Adapter: last, begun: begun, let: let}
				p1.ForwardTo(map[string]string{"M": "N"})
				targets = []string{"M", "N", "Z"}
			default:
				p1.OnReceive = hang
			}
			b, end := stuckBench(t, limit, map[string]ndiscore.Adapter{"M": m.Contract(), "N": last, "Z": ndistest.Verifier(t, z.Contract())})
			core := b.core
			b.protocol(p1, targets...)
			b.verified(p2, "Z")
			for _, x := range []string{"M", "N", "Z"} {
				b.add(x)
			}
			switch c.name {
			case "team":
				b.must(core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"M", "N"}, MAC: macB}))
				b.start("wan")
			case "ndis5":
				b.must(core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Mode: ndiscore.BundleNDIS5, Members: []string{"M", "N"}}))
			}
			b.start("M", "N", "Z")
			in := map[string]*ndistest.Adapter{"M": m, "N": n}[c.in]
			injected := later(func() error { return in.Inject(frame(1)) })
			select {
			case <-begun:
			case err := <-injected:
				t.Fatalf("the frame met nobody: %v", err)
			}

			// Z goes and comes as if nothing were.
			b.must(core.Restart(b.ctx(), "Z", "test"))
			b.must(core.Remove(b.ctx(), "Z", "test"))
			all, _, _ := core.Events(0)
			told := slices.DeleteFunc(all, func(e ndiscore.Event) bool { return e.What != "worker.stuck" })
			if len(told) != 1 || !slices.Contains(c.stuck, told[0].Adapter) || !strings.Contains(told[0].Why, c.in+"/rx0") {
				t.Errorf("told %+v", told)
			}
			if c.name == "team" { // the other member is free
				b.must(core.Restart(b.ctx(), "N", "test"))
			}
			for _, x := range c.stuck {
				err := core.Stop(b.ctx(), x, "test")
				if !errors.Is(err, ndiscore.ErrQuarantined) || !strings.Contains(err.Error(), "worker "+c.in+"/rx0 does not leave") {
					t.Errorf("stop %s: %v", x, err)
				}
			}
			if err := core.Close(b.ctx(), "test"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("close: %v", err)
			}
			end()
			close(let)
			b.must(<-injected)
			m.Abandon()
			n.Abandon()
		})
	}
}

// However many hang there, who is elsewhere loses patience once.
func TestStuckMany(t *testing.T) {
	n, z := nic("N", ndistest.AdapterOptions{}), nic("Z", ndistest.AdapterOptions{})
	wall := &deadEnd{Adapter: n.Contract(), begun: make(chan struct{}), let: make(chan struct{})}
	b, end := stuckBench(t, 400*time.Millisecond, map[string]ndiscore.Adapter{"N": wall, "Z": ndistest.Verifier(t, z.Contract())})
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "N", "Z")
	b.add("N")
	b.add("Z")
	b.start("N", "Z")
	var hung sync.WaitGroup
	for i := range 12 {
		w := b.worker(fmt.Sprint("w", i))
		hung.Go(func() { send(w, p.Binding("N"), true, frame(1)) })
		<-wall.begun
	}
	b.must(b.core.Restart(b.ctx(), "Z", "test"))
	close(wall.let)
	hung.Wait()
	end()
	n.Abandon()
	z.Abandon()
}

// However deep inside it is, an adapter that somebody is in is not paused.
func TestStuckDeep(t *testing.T) {
	for _, filters := range []int{13, 14, 15, 16, 17} { // each that passes frames up is an entry more
		t.Run(fmt.Sprint(filters), func(t *testing.T) {
			m, n := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{})
			wall := &deadEnd{Adapter: n.Contract(), begun: make(chan struct{}, 1), let: make(chan struct{})}
			b, end := stuckBench(t, 200*time.Millisecond, map[string]ndiscore.Adapter{"M": m.Contract(), "N": wall})
			p := ndistest.NewProtocol("P1", nil)
			p.ForwardTo(map[string]string{"M": "N"})
			b.protocol(p, "M", "N")
			var fs []ndiscore.FilterSpec
			for i := range filters {
				f := fmt.Sprint("f", i)
				fs = append(fs, ndiscore.FilterSpec{Name: f, Filter: ndistest.NewFilter("M."+f, nil)})
			}
			b.add("M", fs...)
			b.add("N")
			b.start("M", "N")
			injected := later(func() error { return m.Inject(frame(1)) })
			<-wall.begun
			if err := b.core.Stop(b.ctx(), "N", "test"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("stop N: %v", err)
			}
			if wall.paused.Load() {
				t.Error("N was paused with somebody in its Send")
			}
			close(wall.let)
			b.must(<-injected)
			end()
			m.Abandon()
			n.Abandon()
		})
	}
}
