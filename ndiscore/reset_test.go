package ndiscore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
)

// settle waits until the core has nothing left to do for an adapter.
func (b *bench) settle(name string) {
	b.t.Helper()
	b.must(b.core.Settle(b.ctx(), name))
}

// later does f on a goroutine of its own, which ends when the result is taken.
func later(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func TestC37HangPeriod(t *testing.T) {
	for _, c := range []struct{ said, every time.Duration }{
		{0, 2 * time.Second}, {time.Second, 2 * time.Second}, {5 * time.Second, 4 * time.Second}, {6 * time.Second, 6 * time.Second},
	} {
		clock := ndistest.NewClock()
		m := nic("M", ndistest.AdapterOptions{Hangs: true, HangCheck: c.said})
		b := newBench(t, ndiscore.Options{Clock: clock}, m)
		b.add("M")
		b.start("M")
		for s := time.Second; s <= 12*time.Second; s += time.Second {
			clock.Advance(time.Second)
			b.settle("M")
			if got, want := m.Polls(), uint64(s/c.every); got != want {
				t.Errorf("period %s, after %s: %d polls, want %d", c.said, s, got, want)
			}
		}
		b.must(b.core.Stop(b.ctx(), "M", "test"))
		before := m.Polls()
		clock.Advance(20 * time.Second)
		b.settle("M")
		if m.Polls() != before {
			t.Error("polled while halted")
		}
	}
}

// full is a bench with the whole fixture: P1 and P2 over F2 over F1 over M.
func full(t *testing.T, o ndiscore.Options, mo ndistest.AdapterOptions) (b *bench, tr *ndistest.Trace, m *ndistest.Adapter, p1, p2 *ndistest.Protocol) {
	t.Helper()
	tr = new(ndistest.Trace)
	mo.Trace = tr
	m = nic("M", mo)
	b = newBench(t, o, m)
	p1, p2 = ndistest.NewProtocol("P1", tr), ndistest.NewProtocol("P2", tr)
	b.verified(p1, "M")
	b.verified(p2, "M")
	f1, f2 := ndistest.NewEventFilter("M.F1", tr), ndistest.NewEventFilter("M.F2", tr)
	f1.Report, f2.Report = t, t
	b.add("M", ndiscore.FilterSpec{Name: "F1", Filter: f1}, ndiscore.FilterSpec{Name: "F2", Filter: f2})
	b.start("M")
	tr.Await(t, "P1.Event(BindsComplete)")
	tr.Await(t, "P2.Event(BindsComplete)")
	for _, f := range []ndistest.EventFilter{f1, f2} {
		f.TraceStatus = true
	}
	p1.TraceStatus, p2.TraceStatus = true, true
	tr.Take()
	return b, tr, m, p1, p2
}

func TestC38ResetOfAHungDevice(t *testing.T) {
	clock := ndistest.NewClock()
	b, tr, m, _, _ := full(t, ndiscore.Options{Clock: clock}, ndistest.AdapterOptions{Hangs: true})
	m.Hang()
	clock.Advance(2 * time.Second)
	b.settle("M")
	want := []string{
		"M.F1.Status(ResetStart)", "M.F2.Status(ResetStart)", "P1.Status(M, ResetStart)", "P2.Status(M, ResetStart)",
		"M.Reset",
		"M.F1.Status(ResetEnd)", "M.F2.Status(ResetEnd)", "P1.Status(M, ResetEnd)", "P2.Status(M, ResetEnd)",
	}
	if d := cmp.Diff(want, tr.Take()); d != "" {
		t.Error(d)
	}
	i := ndistest.Info(t, b.core, "M")
	if i.State != ndiscore.StateRunning || i.Resets != 1 || i.Health != ndiscore.Degraded {
		t.Errorf("%s, %d resets, %s", i.State, i.Resets, i.Health)
	}
	clock.Advance(time.Minute)
	b.settle("M")
	if h := ndistest.Info(t, b.core, "M").Health; h != ndiscore.Healthy {
		t.Errorf("a minute later: %s", h)
	}
}

func TestC43SendDuringReset(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{Resets: true, KeepReceives: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	p.Keep = true
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1)))
	hold := m.Hold("Reset")
	reset := later(func() error { return b.core.Reset(b.ctx(), "M", "test") })
	hold.Await(t)
	w := b.worker("test")
	if got := send(w, p.Binding("M"), true, frame(1)); got.Status[0] != ndiscore.DropReset {
		t.Errorf("send: %s", got.Status[0])
	}
	if err := p.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrResetInProgress) {
		t.Errorf("request: %v", err)
	}
	if h := ndistest.Info(t, b.core, "M").Health; h != ndiscore.Resetting {
		t.Errorf("health %s", h)
	}
	p.ReturnKept()
	if out, back := m.Lent(); out != 0 || back != 1 {
		t.Errorf("%d out, %d back", out, back)
	}
	hold.Release()
	b.must(<-reset)
	if got := send(w, p.Binding("M"), true, frame(1)); got.Status[0] != ndiscore.DropNone {
		t.Errorf("send after it: %s", got.Status[0])
	}
}

func TestC44SettingsAfterReset(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{Resets: true, TraceRequests: true, MaxMulticast: 8})
	group := ndiscore.MAC{1, 0, 0x5e, 0, 0, 1}
	b.must(p1.Binding("M").SetMulticast(b.ctx(), []ndiscore.MAC{group}))
	tr.Take()
	brackets := func(between ...string) []string {
		w := []string{"M.F1.Status(ResetStart)", "M.F2.Status(ResetStart)", "P1.Status(M, ResetStart)", "P2.Status(M, ResetStart)", "M.Reset"}
		w = append(w, between...)
		return append(w, "M.F1.Status(ResetEnd)", "M.F2.Status(ResetEnd)", "P1.Status(M, ResetEnd)", "P2.Status(M, ResetEnd)")
	}
	b.must(b.core.Reset(b.ctx(), "M", "test"))
	if d := cmp.Diff(brackets(), tr.Take()); d != "" {
		t.Error(d)
	}
	m.ForgetOnReset(true)
	b.must(b.core.Reset(b.ctx(), "M", "test"))
	if d := cmp.Diff(brackets("M.Set(GEN_CURRENT_PACKET_FILTER)", "M.Set(802_3_MULTICAST_LIST)"), tr.Take()); d != "" {
		t.Error(d)
	}
	if m.PacketFilter() != ndiscore.FilterPromiscuous || len(m.Multicast()) != 1 || m.Multicast()[0] != group {
		t.Errorf("filter %#x, groups %v", m.PacketFilter(), m.Multicast())
	}
}

// stubborn serves no request before it is let, whatever its context says.
type stubborn struct {
	ndiscore.Adapter
	begun, let chan struct{}
}

func (s *stubborn) Inner() ndiscore.Adapter { return s.Adapter }

func (s *stubborn) Request(ctx context.Context, req *ndiscore.OIDRequest) error {
	if req.ID == ndiscore.OIDGenVLANID {
		close(s.begun)
		<-s.let
		req.Data = uint32(7)
		return nil
	}
	return s.Adapter.Request(ctx, req)
}

func TestC46RequestOutlastsReset(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	m := &stubborn{nic("M", ndistest.AdapterOptions{Resets: true}).Contract(), make(chan struct{}), make(chan struct{})}
	b.register(named("fake", "M", ndistest.Verifier(t, m)))
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery}
	asked := later(func() error { return p.Binding("M").Request(b.ctx(), req) })
	<-m.begun
	b.must(b.core.Reset(b.ctx(), "M", "test"))
	if err := <-asked; !errors.Is(err, ndiscore.ErrRequestAborted) {
		t.Errorf("the request: %v", err)
	}
	if ev := b.events("adapter.fault", "M"); len(ev) != 1 {
		t.Errorf("faults: %v", ev)
	}
	close(m.let)
	if req.Data != nil {
		t.Errorf("an answer after it was given up: %v", req.Data)
	}
}

// named is a driver with one adapter, that does not know its name.
func named(driver, name string, a ndiscore.Adapter) ndiscore.Driver {
	d := ndistest.Driver(driver)
	d.New = func(string, any) (ndiscore.Adapter, error) { return a, nil }
	return d
}

// asker asks for a reset in the middle of a request.
type asker struct {
	ndiscore.Adapter
	handle ndiscore.AdapterHandle
	tr     *ndistest.Trace
}

func (a *asker) Inner() ndiscore.Adapter { return a.Adapter }

func (a *asker) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	a.handle = h
	return a.Adapter.Initialize(ctx, h)
}

func (a *asker) Request(ctx context.Context, req *ndiscore.OIDRequest) error {
	if req.ID == ndiscore.OIDGenVLANID {
		a.tr.Add("request begins")
		a.handle.Reset("its request says so")
		a.handle.Reset("and once more")
		a.tr.Add("request ends")
	}
	return a.Adapter.Request(ctx, req)
}

func TestC47ResetAskedForInsideRequest(t *testing.T) {
	var tr ndistest.Trace
	b := newCore(t, ndiscore.Options{})
	m := &asker{Adapter: nic("M", ndistest.AdapterOptions{Resets: true, Trace: &tr}).Contract(), tr: &tr}
	b.register(named("fake", "M", ndistest.Verifier(t, m)))
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	tr.Take()
	// The reset may overtake the rest of the request, on another goroutine; it
	// never runs inside the call that asks for it.
	err := p.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery})
	if err != nil && !errors.Is(err, ndiscore.ErrRequestAborted) {
		t.Error(err)
	}
	tr.Await(t, "M.Reset")
	b.settle("M")
	if n := tr.Count("M.Reset"); n < 1 || n > 2 || tr.Count("request ends") != 1 {
		t.Error(tr.Calls())
	}
	// Asked while it cannot be done it is not done, and it may ask again.
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	b.start("M")
	tr.Take()
	m.handle.Reset("again")
	tr.Await(t, "M.Reset")
}

// An operator's reset says how it went.
func TestResetResults(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{Resets: true})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	if err := b.core.Reset(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("halted: %v", err)
	}
	b.start("M")
	m.Fail("Reset", ndiscore.ErrSoftErrors)
	b.must(b.core.Reset(b.ctx(), "M", "test"))
	m.Fail("Reset", ndiscore.ErrHardErrors)
	if err := b.core.Reset(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrHardErrors) {
		t.Error(err)
	}
	if s := b.state("M"); s != "running" {
		t.Error(s)
	}
}

// A member that is to be reset is left by its team first. Of a reset that was
// asked for nobody notices anything: it waits until what is under way to the
// member has come in. Alone, a member stays the active one.
func TestResetOfActiveMember(t *testing.T) {
	clock := ndistest.NewClock()
	up0, up1 := nic("up0", ndistest.AdapterOptions{Hangs: true}), nic("up1", ndistest.AdapterOptions{Hangs: true})
	b := newBench(t, ndiscore.Options{Clock: clock, Decider: policy.ActiveBackup{}}, up0, up1)
	for _, n := range []string{"up0", "up1"} {
		b.add(n)
		b.start(n)
	}
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, Hold: time.Second}))
	b.settle("up0")
	b.settle("up1")
	b.start("wan")
	is := func(active string) {
		t.Helper()
		ndistest.Await(t, active+" active", func() bool { return b.active("wan") == active })
	}
	is("up0")
	all, _, _ := b.core.Events(0)
	mark := all[len(all)-1].Seq
	// moved says where the team went from then on, and where it was when up0 was
	// reset.
	moved := func() (moves []string) {
		all, _, _ := b.core.Events(mark)
		for _, e := range all {
			switch {
			case e.What == "bundle.active":
				moves = append(moves, e.To)
			case e.What == "adapter.reset" && e.Adapter == "up0":
				moves = append(moves, "reset")
			}
		}
		return moves
	}
	clock.Advance(time.Second) // hold

	reset := later(func() error { return b.core.Reset(b.ctx(), "up0", "test") })
	is("up1")
	if n := ndistest.Info(t, b.core, "up0").Resets; n != 0 {
		t.Error("reset while frames may be under way to it")
	}
	clock.Advance(500 * time.Millisecond)
	b.must(<-reset)
	clock.Advance(time.Second) // hold
	is("up0")

	b.settle("up0") // it has been looked at, and found well
	up0.Hang()      // broken: there is nothing to wait for
	clock.Advance(2 * time.Second)
	is("up1")
	b.settle("up0")
	if n := ndistest.Info(t, b.core, "up0").Resets; n != 2 {
		t.Errorf("%d resets", n)
	}
	clock.Advance(time.Second)
	is("up0")
	clock.Advance(time.Second) // nothing is under way to up1 any more

	b.must(b.core.Stop(b.ctx(), "up1", "test"))
	b.must(b.core.Reset(b.ctx(), "up0", "test"))
	is("up0")
	if d := cmp.Diff([]string{"up1", "reset", "up0", "up1", "reset", "up0", "reset"}, moved()); d != "" {
		t.Error(d)
	}
}
