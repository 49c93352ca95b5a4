package ndiscore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func has(list []string, s string) bool { return slices.Contains(list, s) }

func TestC64QueryRemoveOrder(t *testing.T) {
	b, tr, _, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	// A module that hears no events is passed by.
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F0", Filter: ndistest.NewFilter("M.F0", tr)}, 0, "test"))
	tr.Take()
	b.must(b.core.QueryRemove(b.ctx(), "M", "test"))
	if d := cmp.Diff(power("QueryRemoveDevice"), calls(tr)); d != "" {
		t.Error(d)
	}
	// Until it is called off nobody new is bound.
	p3 := ndistest.NewProtocol("P3", tr)
	b.protocol(p3, "M")
	b.settle("M")
	if p3.Binding("M") != nil {
		t.Error("bound while a removal is announced")
	}
	tr.Take()
	b.must(b.core.CancelRemove(b.ctx(), "M", "test"))
	b.settle("M")
	want := append(power("CancelRemoveDevice"), "P3.Bind(M)", "P3.Event(M, Restart)")
	if d := cmp.Diff(want, calls(tr)[:len(want)]); d != "" {
		t.Error(d)
	}
	if err := b.core.CancelRemove(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("cancel of nothing: %v", err)
	}
}

func TestC65Veto(t *testing.T) {
	b, tr, m, p1, p2 := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	var lost atomic.Int64
	done := make(chan struct{})
	traffic := later(func() error { // ended below
		for i := 0; ; i++ {
			select {
			case <-done:
				return nil
			default:
				if m.Inject(frame(i)) != nil {
					lost.Add(1)
				}
			}
		}
	})
	p1.Fail("Event(QueryRemoveDevice)", errors.New("in use"))
	err := b.core.QueryRemove(b.ctx(), "M", "test")
	if !errors.Is(err, ndiscore.ErrNotAccepted) || !contains(err.Error(), "P1") || !contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
	want := []string{
		"M.F1.Event(QueryRemoveDevice)", "M.F2.Event(QueryRemoveDevice)", "P1.Event(M, QueryRemoveDevice)",
		"M.F1.Event(CancelRemoveDevice)", "M.F2.Event(CancelRemoveDevice)", "P1.Event(M, CancelRemoveDevice)",
	}
	if d := cmp.Diff(want, calls(tr)); d != "" {
		t.Error(d)
	}
	p2.Fail("Event(QueryRemoveDevice)", errors.New("in use"))
	if err := b.core.RemoveAfterQuery(b.ctx(), "M", "test", false); !errors.Is(err, ndiscore.ErrNotAccepted) {
		t.Error(err)
	}
	close(done)
	b.must(<-traffic)
	c := b.counters("M")
	if b.state("M") != "running" || lost.Load() != 0 || c.RxFrames == 0 || c.Delivered != c.RxFrames {
		t.Errorf("%s, %d lost, %+v", b.state("M"), lost.Load(), c)
	}
	if ev := b.events("adapter.remove-refused", "M"); len(ev) != 2 {
		t.Errorf("events: %v", ev)
	}
}

func TestC66Forced(t *testing.T) {
	b, tr, _, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	p1.Fail("Event(QueryRemoveDevice)", errors.New("in use"))
	b.must(b.core.RemoveAfterQuery(b.ctx(), "M", "test", true))
	cs := calls(tr)
	want := join(pauseChain, []string{"P2.Unbind(M)", "P1.Unbind(M)", "M.F2.Detach", "M.F1.Detach", "M.Halt(Disabled)"})
	if d := cmp.Diff(want, cs[len(cs)-len(want):]); d != "" {
		t.Error(d)
	}
}

func TestC69StopAnnounced(t *testing.T) {
	b, tr, _, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	b.must(b.core.QueryRemove(b.ctx(), "M", "test"))
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	if tr.Count("P1.Event(M, QueryRemoveDevice)") != 1 || tr.Count("M.Halt(Stopped)") != 1 || b.state("M") != "halted" {
		t.Error(tr.Calls())
	}
	b.start("M") // the announcement is spent
}

func TestC76InsertFilterLive(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	bd := p1.Binding("M")
	f := ndistest.NewEventFilter("M.F3", tr)
	f.Report = t
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: f}, 1, "test"))
	up := []string{"M.Restart", "M.F1.Restart", "M.F3.Restart", "M.F2.Restart", "P1.Event(M, Restart)", "P2.Event(M, Restart)"}
	told := []string{"M.F1.Event(Reconfigure)", "M.F3.Event(Reconfigure)", "M.F2.Event(Reconfigure)", "P1.Event(M, Reconfigure)", "P2.Event(M, Reconfigure)"}
	if d := cmp.Diff(join(pauseChain, []string{"M.F3.Attach"}, told, up), calls(tr)); d != "" {
		t.Error(d)
	}
	if p1.Binding("M") != bd {
		t.Error("bound anew")
	}
	b.must(m.Inject(frame(1)))
	send(b.worker("test"), bd, true, frame(2))
	if rx, tx := f.Seen(); rx != 1 || tx != 1 {
		t.Errorf("the new module saw %d and %d frames", rx, tx)
	}
	b.must(b.core.MoveFilter(b.ctx(), "M", "F3", 0, "test"))
	tr.Take()
	b.must(b.core.RemoveFilter(b.ctx(), "M", "F3", "test"))
	if tr.Count("M.F3.Detach") != 1 || tr.Count("P1.Unbind(M)") != 0 {
		t.Error(tr.Calls())
	}
	tr.Take()
	must := ndistest.NewFilter("M.F4", tr)
	must.Report = t
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F4", Filter: must, Mandatory: true}, -1, "test"))
	want := join(pauseChain, []string{"P2.Unbind(M)", "P1.Unbind(M)", "M.F4.Attach", "P1.Bind(M)", "P2.Bind(M)",
		"M.Restart", "M.F1.Restart", "M.F2.Restart", "M.F4.Restart", "P1.Event(M, Restart)", "P2.Event(M, Restart)"})
	if d := cmp.Diff(want, calls(tr)); d != "" {
		t.Error(d)
	}
	for what, err := range map[string]error{
		"an unknown one goes":  b.core.RemoveFilter(b.ctx(), "M", "F9", "test"),
		"an unknown one moves": b.core.MoveFilter(b.ctx(), "M", "F9", 0, "test"),
		"on an unknown one":    b.core.RemoveFilter(b.ctx(), "N", "F1", "test"),
	} {
		if !errors.Is(err, ndiscore.ErrNotFound) && !errors.Is(err, ndiscore.ErrAdapterNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F1", Filter: f}, 0, "test"); !errors.Is(err, ndiscore.ErrExists) {
		t.Error(err)
	}
}

// Inserted into what runs, an optional module that will not attach, or not
// restart, is taken out again, and everything runs as before.
func TestC77C78InsertFails(t *testing.T) {
	for _, call := range []string{"Attach", "Restart"} {
		b, _, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
		f := ndistest.NewFilter("M.F3", nil)
		f.Report = t
		f.Fail(call, errors.New("refused"))
		if err := b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: f}, -1, "test"); err == nil || !contains(err.Error(), "refused") {
			t.Errorf("%s: %v", call, err)
		}
		b.settle("M")
		if i := ndistest.Info(t, b.core, "M"); i.State != ndiscore.StateRunning || len(i.Filters) != 2 {
			t.Errorf("%s: %s with %v", call, i.State, i.Filters)
		}
		b.must(m.Inject(frame(1)))
		if p1.Received() != 1 {
			t.Errorf("%s: nothing is received", call)
		}
	}
}

func TestC83DeregisterProtocol(t *testing.T) {
	var tr ndistest.Trace
	m, n := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m, n)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M", "N")
	inside := make(chan error, 2)
	q := &caller{Protocol: ndistest.NewProtocol("P2", nil), call: func(ctx context.Context) {
		inside <- b.core.RemoveProtocol(ctx, "P2")
	}}
	b.must(b.core.AddProtocol(b.ctx(), ndiscore.ProtocolSpec{Name: "P2", Protocol: q, Targets: []string{"M"}}))
	b.add("M")
	b.add("N")
	b.start("M", "N")
	if err := <-inside; !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("from inside Bind: %v", err)
	}
	b.must(b.core.RemoveProtocol(b.ctx(), "P1"))
	if tr.Count("P1.Unbind(M)") != 1 || tr.Count("P1.Unbind(N)") != 1 {
		t.Error(tr.Calls())
	}
	if err := b.core.RemoveProtocol(b.ctx(), "P1"); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	b.protocol(p, "M") // its name is free again
	b.settle("M")
	if p.Binding("M") == nil {
		t.Error("not bound")
	}
}

// caller calls the core inside Bind, with that call's context.
type caller struct {
	*ndistest.Protocol
	call func(context.Context)
}

func (c *caller) Bind(ctx context.Context, b *ndiscore.Binding) error {
	c.call(ctx)
	return c.Protocol.Bind(ctx, b)
}

func TestC80BindTakesItsTime(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p1, p2 := ndistest.NewProtocol("P1", &tr), ndistest.NewProtocol("P2", &tr)
	b.protocol(p1, "M")
	b.protocol(p2, "M")
	b.add("M")
	hold := p1.Hold("Bind")
	started := later(func() error { return b.core.Start(b.ctx(), "M", "test") })
	hold.Await(t)
	if tr.Count("P1.Event(M, Restart)") != 0 || b.state("M") != "paused" {
		t.Error(tr.Calls())
	}
	p1.Fail("Bind", errors.New("no")) // of the next one
	hold.Release()
	b.must(<-started)
	if tr.Count("P1.Event(M, Restart)") != 1 || tr.Count("P2.Event(M, Restart)") != 1 {
		t.Error(tr.Calls())
	}
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	tr.Take()
	b.start("M")
	if tr.Count("P1.Event(M, Restart)") != 0 || tr.Count("P2.Event(M, Restart)") != 1 || p1.Binding("M") != nil {
		t.Error(tr.Calls())
	}
}

func TestC82UseAfterUnbind(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	hold := p.Hold("Unbind")
	stopped := later(func() error { return b.core.Stop(b.ctx(), "M", "test") })
	hold.Await(t)
	// Inside Unbind the adapter may still be asked, and told.
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery}
	b.must(bd.Request(b.ctx(), req))
	b.must(bd.SetPacketFilter(b.ctx(), 0))
	if got := send(b.worker("test"), bd, true, frame(1)); got.Status[0] != ndiscore.DropPaused {
		t.Errorf("send: %s", got.Status[0])
	}
	hold.Release()
	b.must(<-stopped)
	for what, err := range map[string]error{
		"request":   bd.Request(b.ctx(), req),
		"filter":    bd.SetPacketFilter(b.ctx(), 0),
		"multicast": bd.SetMulticast(b.ctx(), nil),
	} {
		if !errors.Is(err, ndiscore.ErrInvalidHandle) {
			t.Errorf("%s: %v", what, err)
		}
	}
	bd.CancelSend(1) // reaches nobody
}

func TestC84PauseWaitsForProtocol(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, KeepSends: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	f := ndistest.NewFilter("M.F1", &tr)
	b.add("M", ndiscore.FilterSpec{Name: "F1", Filter: f})
	b.start("M")
	hold := p.Hold("Event(Pause)")
	paused := later(func() error { return b.core.Pause(b.ctx(), "M", "test") })
	hold.Await(t)
	if tr.Count("M.F1.Pause") != 0 || tr.Count("M.Pause") != 0 {
		t.Error(tr.Calls())
	}
	hold.Release()
	b.must(<-paused)
	if tr.Count("M.F1.Pause") != 1 || tr.Count("M.Pause") != 1 {
		t.Error(tr.Calls())
	}
}

func TestC85OIDInsideBind(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	asked := make(chan error, 1)
	p := &opener{Protocol: ndistest.NewProtocol("P1", nil), bound: func(ctx context.Context, bd *ndiscore.Binding) {
		w := b.worker("test")
		if got := send(w, bd, true, frame(1)); got.Status[0] != ndiscore.DropPaused {
			t.Errorf("send inside Bind: %s", got.Status[0])
		}
		asked <- bd.Request(ctx, &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery})
	}}
	b.must(b.core.AddProtocol(b.ctx(), ndiscore.ProtocolSpec{Name: "P1", Protocol: p, Targets: []string{"M"}}))
	b.add("M")
	b.start("M")
	b.must(<-asked)
	if n := len(m.Sent()); n != 0 {
		t.Errorf("%d frames reached M", n)
	}
}

// opener uses its binding inside Bind.
type opener struct {
	*ndistest.Protocol
	bound func(context.Context, *ndiscore.Binding)
}

func (o *opener) Bind(ctx context.Context, b *ndiscore.Binding) error {
	o.bound(ctx, b)
	return o.Protocol.Bind(ctx, b)
}

// C-99, C-98, and NetEventRequirePause: what a miniport may ask for.
func TestC99InhibitBinds(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	h := m.Handle()
	b.must(h.InhibitBinds(b.ctx(), "maintenance"))
	if p1.Binding("M") != nil {
		t.Error("P1 is still bound")
	}
	if d := cmp.Diff([]string{"P2.Event(M, Pause)", "P2.Unbind(M)", "P1.Event(M, Pause)", "P1.Unbind(M)"}, calls(tr)); d != "" {
		t.Error(d)
	}
	p3 := ndistest.NewProtocol("P3", tr)
	b.protocol(p3, "M")
	b.settle("M")
	if p3.Binding("M") != nil {
		t.Error("P3 was bound")
	}
	h.AllowBinds()
	b.settle("M")
	if p1.Binding("M") == nil || p3.Binding("M") == nil {
		t.Error("not bound again")
	}
	b.must(h.RequirePause(b.ctx(), "the device is set up anew"))
	b.must(h.RequirePause(b.ctx(), "calls are not counted"))
	if s := b.state("M"); s != "paused" {
		t.Error(s)
	}
	h.AllowStart()
	b.settle("M")
	if s := b.state("M"); s != "running" {
		t.Error(s)
	}
}

func TestC98RaiseDuringRequest(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	if err := b.core.InhibitBinds(b.ctx(), "nobody", "test"); !errors.Is(err, ndiscore.ErrAdapterNotFound) {
		t.Error(err)
	}
	b.start("M")
	h := m.Handle()
	hold := m.Hold("Request")
	asked := later(func() error {
		return p.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery})
	})
	hold.Await(t)
	for what, err := range map[string]error{
		"inhibit":       h.InhibitBinds(b.ctx(), "test"),
		"require pause": h.RequirePause(b.ctx(), "test"),
	} {
		if !errors.Is(err, ndiscore.ErrInvalidState) {
			t.Errorf("%s: %v", what, err)
		}
	}
	hold.Release()
	b.must(<-asked)
	b.must(h.InhibitBinds(b.ctx(), "test"))
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	if err := h.InhibitBinds(b.ctx(), "test"); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("halted: %v", err)
	}
}
