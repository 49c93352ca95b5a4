package ndiscore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// A protocol, a filter or a reset that never returns costs the adapter that it
// is on, and nobody else: another adapter works on, with the same protocol; who
// waits is told; and the core ends within its limits.
func TestQuarantineByAnybody(t *testing.T) {
	const limit = 200 * time.Millisecond
	for _, c := range []struct{ who, call, cause string }{
		{"protocol", "Bind", "start"},
		{"protocol", "Event(Restart)", "start"},
		{"protocol", "Event(Pause)", "stop"},
		{"protocol", "Unbind", "stop"},
		{"protocol", "Event(QueryRemoveDevice)", "query"},
		{"protocol", "Event(SetPower(D3))", "suspend"},
		{"filter", "Attach", "start"},
		{"filter", "Restart", "start"},
		{"filter", "Pause", "stop"},
		{"filter", "Detach", "stop"},
		{"filter", "Event(QueryRemoveDevice)", "query"},
		{"adapter", "Reset", "reset"},
		{"adapter", "Request", "request"},
	} {
		t.Run(c.who+" "+c.call, func(t *testing.T) {
			leakFree(t)
			m, n := nic("M", ndistest.AdapterOptions{Resets: true}), nic("N", ndistest.AdapterOptions{})
			core := ndiscore.New(ndiscore.Options{CallLimit: limit})
			run, cancel := context.WithCancel(context.Background())
			ended := later(func() error { return core.Run(run) })
			b := &bench{t: t, core: core}
			deaf := &stubborn{m.Contract(), make(chan struct{}), make(chan struct{})}
			d := ndistest.Driver("fake")
			d.New = func(name string, _ any) (ndiscore.Adapter, error) {
				if name == "M" {
					return deaf, nil
				}
				return n, nil
			}
			b.register(d)
			p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
			b.protocol(p1, "M")
			b.protocol(p2, "N", "M")
			f := ndistest.NewEventFilter("M.F1", nil)
			b.add("M", ndiscore.FilterSpec{Name: "F1", Filter: f})
			b.add("N")
			b.start("N")
			if c.cause != "start" {
				b.start("M")
			}
			script := map[string]interface {
				Hold(string) *ndistest.Hold
			}{"protocol": p1, "filter": f, "adapter": m}[c.who]
			hold := script.Hold(c.call)
			defer hold.Release()
			var err error
			switch c.cause {
			case "start":
				err = core.Start(b.ctx(), "M", "test")
			case "stop":
				err = core.Stop(b.ctx(), "M", "test")
			case "query":
				err = core.QueryRemove(b.ctx(), "M", "test")
			case "suspend":
				err = core.Suspend(b.ctx(), "M", "test")
			case "reset":
				err = core.Reset(b.ctx(), "M", "test")
			case "request": // it holds up the halt
				asked := later(func() error { r := queryVLAN; return p1.Binding("M").Request(b.ctx(), &r) })
				<-deaf.begun
				err = core.Stop(b.ctx(), "M", "test")
				defer func() { close(deaf.let); <-asked }()
			}
			if !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("%s: %v", c.cause, err)
			}
			if i := ndistest.Info(t, core, "M"); !i.Stuck || i.Health != ndiscore.Failed {
				t.Errorf("quarantined %t, %s", i.Stuck, i.Health)
			}
			b.must(n.Inject(frame(1)))
			if p2.Received() != 1 {
				t.Error("N does not work")
			}
			b.must(core.Restart(b.ctx(), "N", "test"))
			if err := core.RemoveProtocol(b.ctx(), "P1"); err != nil && !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("remove P1: %v", err)
			}
			if err := core.Close(b.ctx(), "test"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("close: %v", err)
			}
			cancel()
			select {
			case <-ended:
			case <-time.After(100 * limit):
				t.Error("Run did not end")
			}
			hold.Release()
			m.Abandon()
		})
	}
}

// What a running adapter says of itself is adopted before those above hear it.
func TestAttributesChange(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	p.Filter = ndiscore.FilterDirected
	var seen []ndiscore.Attributes
	p.OnStatus = func(bd *ndiscore.Binding, s ndiscore.Status) {
		if _, ok := s.(ndiscore.AttributesChange); ok {
			seen = append(seen, bd.Attributes())
		}
	}
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	w := b.worker("test")
	big := func() ndiscore.DropReason {
		return send(w, p.Binding("M"), true, ndistest.Frame(macB, macA, 1, 2000)).Status[0]
	}
	if r := big(); r == ndiscore.DropNone {
		t.Error("2000 bytes went out with an MTU of 1500")
	}
	say := func(c ndiscore.AttributesChange) { m.Handle().IndicateStatus(c) }
	say(ndiscore.AttributesChange{MTU: 9000, Why: "the test"})
	if r := big(); r != ndiscore.DropNone {
		t.Errorf("with an MTU of 9000: %s", r)
	}
	say(ndiscore.AttributesChange{MAC: macA, Why: "the test"})
	b.must(m.Inject(ndistest.Frame(macA, macB, 1, 60), ndistest.Frame(m.MAC(), macB, 2, 60)))
	if p.Received() != 1 {
		t.Errorf("received %d frames to the new address", p.Received())
	}
	for _, nothing := range []ndiscore.AttributesChange{{}, {MTU: 9000}, {MAC: macA}, {MTU: 67}, {MTU: 65536}, {MAC: ndiscore.Broadcast}} {
		say(nothing)
	}
	if len(seen) != 2 || seen[0].MTU != 9000 || seen[1].MAC != macA || seen[1].MTU != 9000 {
		t.Errorf("%+v", seen)
	}
	if len(b.events("adapter.mtu", "M")) != 1 || len(b.events("adapter.mac", "M")) != 1 {
		t.Error("events of the changes")
	}
	if i := ndistest.Info(t, b.core, "M"); i.MTU != 9000 || i.MAC != macA {
		t.Errorf("%s, %d", i.MAC, i.MTU)
	}
}
