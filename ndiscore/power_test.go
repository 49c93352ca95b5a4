package ndiscore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// power are the calls that tell the fixture of events.
func power(events ...string) (calls []string) {
	for _, e := range events {
		calls = append(calls, "M.F1.Event("+e+")", "M.F2.Event("+e+")", "P1.Event(M, "+e+")", "P2.Event(M, "+e+")")
	}
	return calls
}

var (
	pauseChain   = []string{"P2.Event(M, Pause)", "P1.Event(M, Pause)", "M.F2.Pause", "M.F1.Pause", "M.Pause"}
	restartChain = []string{"M.Restart", "M.F1.Restart", "M.F2.Restart", "P1.Event(M, Restart)", "P2.Event(M, Restart)"}
)

func join(lists ...[]string) (all []string) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// calls are the trace without status indications.
func calls(tr *ndistest.Trace) (cs []string) {
	for _, c := range tr.Take() {
		if !contains(c, ".Status(") {
			cs = append(cs, c)
		}
	}
	return cs
}

func TestC73SuspendPowerAware(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{PowerAware: true})
	bd := p1.Binding("M")
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	if d := cmp.Diff(join(power("QueryPower", "SetPower(D3)"), pauseChain, []string{"M.SetPower(D3)"}), calls(tr)); d != "" {
		t.Error(d)
	}
	w := b.worker("test")
	if got := send(w, bd, true, frame(1)); got.Status[0] != ndiscore.DropLowPower {
		t.Errorf("send: %s", got.Status[0])
	}
	for _, id := range []ndiscore.OID{ndiscore.OIDGenLinkState, ndiscore.OIDGenVLANID} {
		if err := bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrLowPower) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if i := ndistest.Info(t, b.core, "M"); !i.Asleep || i.Oper != ndiscore.OperDormant {
		t.Errorf("asleep %t, %s", i.Asleep, i.Oper)
	}
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	if d := cmp.Diff(join([]string{"M.SetPower(D0)"}, restartChain, power("SetPower(D0)")), calls(tr)); d != "" {
		t.Error(d)
	}
	if got := send(w, bd, true, frame(1)); got.Status[0] != ndiscore.DropNone || m.Power() != ndiscore.PowerD0 {
		t.Errorf("send: %s", got.Status[0])
	}
}

// Frames that arrive in its sleep are dropped, and counted as that.
func TestC73ReceiveAsleep(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{PowerAware: true, NoPause: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	b.must(m.Inject(frame(1)))
	if c := b.counters("M"); p.Received() != 0 || c.RxDropped["low-power"] != 1 {
		t.Errorf("received %d, %v", p.Received(), c.RxDropped)
	}
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	b.must(m.Inject(frame(2)))
	if p.Received() != 1 {
		t.Errorf("awake: received %d", p.Received())
	}
}

// A device is put to sleep when the last frame has left the data path, also
// where nothing is paused for it.
func TestC73NobodyInsideAsleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr ndistest.Trace
		m := nic("M", ndistest.AdapterOptions{Trace: &tr, PowerAware: true, NoPause: true})
		b := newBench(t, ndiscore.Options{}, m)
		p := ndistest.NewProtocol("P1", nil)
		inside, let := make(chan struct{}), make(chan struct{})
		p.OnReceive = func(*ndiscore.Binding, *ndiscore.Batch) {
			close(inside)
			<-let
		}
		b.protocol(p, "M")
		b.add("M")
		b.start("M")
		received := later(func() error { return m.Inject(frame(1)) })
		<-inside
		asleep := later(func() error { return b.core.Suspend(b.ctx(), "M", "test") })
		synctest.Wait() // until everybody waits for somebody
		if tr.Count("M.SetPower(D3)") != 0 {
			t.Error("put to sleep with a frame in the data path")
		}
		close(let)
		b.must(<-received)
		b.must(<-asleep)
		if tr.Count("M.SetPower(D3)") != 1 {
			t.Error(tr.Calls())
		}
	})
}

func TestC74SuspendNotPowerAware(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{TraceRequests: true, MaxMulticast: 4})
	bd := p1.Binding("M")
	group := ndiscore.MAC{1, 0, 0x5e, 0, 0, 1}
	b.must(bd.SetMulticast(b.ctx(), []ndiscore.MAC{group}))
	tr.Take()
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	if d := cmp.Diff(join(power("QueryPower", "SetPower(D3)"), pauseChain, []string{"M.Halt(PoweredDown)"}), calls(tr)); d != "" {
		t.Error(d)
	}
	if got := send(b.worker("test"), bd, true, frame(1)); got.Status[0] != ndiscore.DropLowPower {
		t.Errorf("send: %s", got.Status[0])
	}
	if err := bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrLowPower) {
		t.Errorf("request: %v", err)
	}
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	want := join([]string{"M.Init", "M.Set(GEN_CURRENT_PACKET_FILTER)", "M.Set(802_3_MULTICAST_LIST)"}, restartChain, power("SetPower(D0)"))
	if d := cmp.Diff(want, calls(tr)); d != "" {
		t.Error(d)
	}
	if p1.Binding("M") != bd || m.PacketFilter() != ndiscore.FilterPromiscuous || len(m.Multicast()) != 1 {
		t.Errorf("filter %#x, groups %v", m.PacketFilter(), m.Multicast())
	}
	b.must(m.Inject(frame(1)))
	if p1.Received() != 1 {
		t.Error("nothing is received")
	}
}

func TestC75NoPauseOnSuspend(t *testing.T) {
	b, tr, _, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{PowerAware: true, NoPause: true})
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	want := join(power("QueryPower", "SetPower(D3)"), []string{"M.SetPower(D3)", "M.SetPower(D0)"}, power("SetPower(D0)"))
	if d := cmp.Diff(want, calls(tr)); d != "" {
		t.Error(d)
	}
	// One module that does not hear of power brings the pause back.
	deaf := ndistest.NewFilter("M.F3", tr)
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: deaf}, -1, "test"))
	tr.Take()
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	if cs := calls(tr); !has(cs, "M.Pause") || !has(cs, "M.F3.Pause") {
		t.Error(cs)
	}
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	if cs := calls(tr); !has(cs, "M.Restart") {
		t.Error(cs)
	}
}

// The chain of a suspended adapter stays as it is: whoever asked for a change
// would wait for the resume.
func TestFiltersWhileSuspended(t *testing.T) {
	b, tr, _, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{PowerAware: true})
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	for what, f := range map[string]func() error{
		"insert": func() error {
			return b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: ndistest.NewFilter("M.F3", tr)}, 0, "test")
		},
		"remove": func() error { return b.core.RemoveFilter(b.ctx(), "M", "F1", "test") },
		"move":   func() error { return b.core.MoveFilter(b.ctx(), "M", "F1", 1, "test") },
	} {
		if err := f(); !errors.Is(err, ndiscore.ErrInvalidState) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.must(b.core.Resume(b.ctx(), "M", "test"))
	b.must(b.core.RemoveFilter(b.ctx(), "M", "F1", "test"))
}

// A device that cannot be woken is removed, and may be started anew.
func TestC27ResumeFails(t *testing.T) {
	b, tr, m, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{PowerAware: true})
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	m.Fail("SetPower", errors.New("no power"))
	if err := b.core.Resume(b.ctx(), "M", "test"); err == nil {
		t.Error("resumed")
	}
	if tr.Count("M.Halt(DeviceFailed)") != 1 || b.state("M") != "halted" {
		t.Error(tr.Calls())
	}
	if h := ndistest.Info(t, b.core, "M").Health; h != ndiscore.Failed {
		t.Errorf("health %s", h)
	}
	b.start("M")
}

func TestC96OperStatus(t *testing.T) {
	clock := ndistest.NewClock()
	born := clock.Now()
	b, _, m, p1, _ := full(t, ndiscore.Options{Clock: clock}, ndistest.AdapterOptions{PowerAware: true, NoPause: true})
	bd := p1.Binding("M")
	oper := func() ndiscore.OperStatus {
		b.settle("M")
		return ndistest.Info(t, b.core, "M").Oper
	}
	last := func() ndiscore.OperChange {
		var c ndiscore.OperChange
		for _, s := range p1.Statuses() {
			if o, ok := s.(ndiscore.OperChange); ok {
				c = o
			}
		}
		return c
	}
	for _, s := range []ndiscore.Status{ndiscore.ResetStart{}, ndiscore.ResetEnd{}, ndiscore.OperChange{Status: ndiscore.OperDown}} {
		before := len(p1.Statuses())
		m.Handle().IndicateStatus(s)
		if len(p1.Statuses()) != before {
			t.Errorf("%T from the miniport got through", s)
		}
	}
	if ev := b.events("adapter.fault", "M"); len(ev) != 3 {
		t.Errorf("faults: %v", ev)
	}
	var since any
	for _, c := range []struct {
		do     func()
		want   ndiscore.OperStatus
		reason string
	}{
		{func() { m.SetLink(false, "carrier") }, ndiscore.OperDown, "not connected"},
		{func() { m.SetLink(true, "carrier") }, ndiscore.OperUp, ""},
		{func() { b.must(b.core.Suspend(b.ctx(), "M", "test")) }, ndiscore.OperDormant, "low power"},
		{func() { b.must(b.core.Resume(b.ctx(), "M", "test")) }, ndiscore.OperUp, ""},
	} {
		clock.Advance(time.Second)
		c.do()
		if got := oper(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
		if got := last(); got.Status != c.want || got.Reason != c.reason {
			t.Errorf("heard %+v, want %s (%s)", got, c.want, c.reason)
		}
		if c.reason == "low power" {
			continue // it answers no request now
		}
		req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenLastChange, Kind: ndiscore.OIDQuery}
		b.must(bd.Request(b.ctx(), req))
		if now := uint64(clock.Now().Sub(born).Milliseconds()); req.Data == since || req.Data != now {
			t.Errorf("last change %v ms after the start, it is %d ms", req.Data, now)
		}
		since = req.Data
	}
	b.must(b.core.Pause(b.ctx(), "M", "test"))
	if got := oper(); got != ndiscore.OperDormant {
		t.Errorf("paused: %s", got)
	}
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenOperationalStatus, Kind: ndiscore.OIDQuery}
	b.must(bd.Request(b.ctx(), req))
	if req.Data != ndiscore.OperDormant {
		t.Errorf("paused: %v", req.Data)
	}
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	if got := oper(); got != ndiscore.OperNotPresent {
		t.Errorf("halted: %s", got)
	}
}

// What was paused when it was put to sleep is paused when it wakes.
func TestResumePaused(t *testing.T) {
	for _, aware := range []bool{true, false} {
		b, tr, _, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{PowerAware: aware})
		b.must(b.core.Pause(b.ctx(), "M", "test"))
		b.must(b.core.Suspend(b.ctx(), "M", "test"))
		tr.Take()
		b.must(b.core.Resume(b.ctx(), "M", "test"))
		wake := "M.SetPower(D0)"
		if !aware {
			wake = "M.Init"
		}
		if d := cmp.Diff(join([]string{wake}, power("SetPower(D0)")), calls(tr)); d != "" {
			t.Error(d)
		}
		if i := ndistest.Info(t, b.core, "M"); i.State != ndiscore.StatePaused || i.Asleep {
			t.Errorf("%s, asleep %t", i.State, i.Asleep)
		}
		// It is put to sleep again before everybody knows that it woke.
		b.must(b.core.Suspend(b.ctx(), "M", "test"))
		hold := p1.Hold("Event(SetPower(D0))")
		resumed := later(func() error { return b.core.Resume(b.ctx(), "M", "test") })
		hold.Await(t)
		given, up := context.WithCancel(b.ctx())
		up()
		if err := b.core.Suspend(given, "M", "test"); !errors.Is(err, context.Canceled) { // asked for, and not waited for
			t.Error(err)
		}
		hold.Release()
		if err := <-resumed; !errors.Is(err, ndiscore.ErrInvalidState) {
			t.Errorf("overtaken: %v", err)
		}
		b.settle("M")
		b.must(b.core.Resume(b.ctx(), "M", "test"))
		if i := ndistest.Info(t, b.core, "M"); i.State != ndiscore.StatePaused || i.Asleep {
			t.Errorf("again: %s, asleep %t", i.State, i.Asleep)
		}
		b.must(b.core.Start(b.ctx(), "M", "test"))
		if i := ndistest.Info(t, b.core, "M"); i.State != ndiscore.StateRunning {
			t.Errorf("started: %s", i.State)
		}
	}
}
