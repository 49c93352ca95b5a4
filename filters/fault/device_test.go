package fault_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func (r *rig) awaitLink(name string, up bool) {
	r.t.Helper()
	ndistest.Await(r.t, "link of "+name, func() bool { return r.info(name).Link.Connected() == up })
}

func TestLinkDown(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	l := r.inject("link-down", "on=b")
	r.awaitLink("b", false)
	if why := r.info("b").Link.Why; !strings.Contains(why, "injected link-down, lease 1") {
		t.Errorf("why: %s", why)
	}
	r.send(0, 3)
	r.must(r.b.Inject(ndistest.Frame(r.a.MAC(), r.b.MAC(), 9, 100)))
	c := r.info("b").Counters
	if tx, rx := c.TxDropped["fault-link-down"], c.RxDropped["fault-link-down"]; tx != 3 || rx != 1 {
		t.Errorf("dropped %d, %d", tx, rx)
	}
	if l := r.j.List()[0]; l.TX.Frames != 3 || l.RX.Frames != 1 {
		t.Errorf("counted %+v", l)
	}
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}
	r.must(r.p.Binding("b").Request(r.ctx(), req))
	if s := req.Data.(ndiscore.LinkState); s.Connected() {
		t.Error("asked, it says that its link is up")
	}
	// What the device says meanwhile shows only afterwards.
	r.b.SetLink(false, "cable")
	r.b.SetLink(true, "cable")
	if r.info("b").Link.Connected() {
		t.Error("the link came up under the fault")
	}
	r.b.SetLink(false, "cable")
	r.clear(l.ID)
	if s := r.info("b").Link; s.Connected() {
		t.Errorf("the cable is out, the link %+v", s)
	}
	r.b.SetLink(true, "cable")
	r.awaitLink("b", true)
	// A link that is down from the start of the adapter on.
	l = r.inject("link-down", "on=b")
	r.must(r.core.Stop(r.ctx(), "b", "test"))
	r.must(r.core.Start(r.ctx(), "b", "test"))
	r.awaitLink("b", false)
	r.clear(l.ID)
	r.awaitLink("b", true)
	r.send(3, 2)
	if got := r.arrived(); !slices.Equal(got, []int{3, 4}) {
		t.Errorf("arrived %v", got)
	}
}

func TestHang(t *testing.T) {
	clock := ndistest.NewClock()
	r := newRig(t, clock, fault.Options{Allow: true})
	l := r.inject("hang", "on=a", "heals=true", "for=1h")
	r.send(0, 3)
	if n := r.info("a").Counters.RxDropped["fault-hang"]; n != 3 {
		t.Errorf("%d received frames swallowed", n)
	}
	kept := ndiscore.NewBatch(nil)
	kept.Append(frameOf(ndistest.Frame(r.b.MAC(), r.a.MAC(), 1, 100)))
	r.must(r.b.Do(func(w *ndiscore.Worker) {
		kept.Worker = w
		r.p.Binding("a").Send(kept)
	}))
	if kept.Status[0] != ndiscore.DropFaultHang || r.p.Completed() != 1 {
		t.Errorf("a kept batch: %s, %d completed", kept.Status[0], r.p.Completed())
	}
	// The core notices at its next poll, and a reset heals it.
	ndistest.Await(t, "a reset", func() bool { clock.Advance(time.Second); return r.ra.resets.Load() > 0 })
	ndistest.Await(t, "the end of the fault", func() bool { return len(r.j.List()) == 0 })
	if e := r.events("fault.cleared"); len(e) != 1 || !strings.Contains(e[0].Why, "reset") {
		t.Errorf("events %+v", e)
	}
	r.send(10, 2)
	if got := r.arrived(); !slices.Equal(got, []int{10, 11}) {
		t.Errorf("arrived %v", got)
	}
	if _, err := r.j.Clear(r.ctx(), fault.Selection{ID: l.ID}, ""); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("cleared twice: %v", err)
	}
	// One that no reset heals costs the adapter.
	r.inject("hang", "on=a", "for=1h")
	ndistest.Await(t, "removal", func() bool {
		clock.Advance(time.Second)
		return r.info("a").LastHalt == ndiscore.HaltDeviceFailed
	})
}

func TestFailInit(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	l := r.inject("fail-init", "on=b", "times=2")
	if r.info("b").State != ndiscore.StateRunning {
		t.Error("a running adapter minds")
	}
	r.must(r.core.Stop(r.ctx(), "b", "test"))
	for range 2 {
		if err := r.core.Start(r.ctx(), "b", "test"); !errors.Is(err, ndiscore.ErrFailure) || !strings.Contains(err.Error(), "injected fail-init, lease 1") {
			t.Errorf("start: %v", err)
		}
	}
	r.must(r.core.Start(r.ctx(), "b", "test"))
	if l := r.j.List()[0]; l.Calls != 2 {
		t.Errorf("two initialisations failed, counted %+v", l)
	}
	r.clear(l.ID)
	l = r.inject("fail-init", "on=b")
	r.must(r.core.Stop(r.ctx(), "b", "test"))
	for range 3 {
		if err := r.core.Start(r.ctx(), "b", "test"); err == nil {
			t.Error("it started")
		}
	}
	r.clear(l.ID)
	r.must(r.core.Start(r.ctx(), "b", "test"))
}

func TestResetStorm(t *testing.T) {
	clock := ndistest.NewClock()
	r := newRig(t, clock, fault.Options{Allow: true})
	l := r.inject("reset-storm", "on=a", "every=100ms", "for=1h")
	for want := range int32(2) {
		ndistest.Await(t, "a reset", func() bool { return r.ra.resets.Load() > want })
		clock.Advance(100 * time.Millisecond)
	}
	if l := r.j.List()[0]; l.Calls != 3 {
		t.Errorf("three resets asked for, counted %+v", l)
	}
	r.clear(l.ID)
	ndistest.Await(t, "the last reset", func() bool {
		i := r.info("a")
		return i.State == ndiscore.StateRunning && len(r.events("adapter.reset")) == int(r.ra.resets.Load())
	})
	n := r.ra.resets.Load()
	clock.Advance(time.Second)
	r.send(0, 1)
	if m := r.ra.resets.Load(); m > n+1 { // one may have been asked for already
		t.Errorf("%d resets after the end", m-n)
	}
	// Resets that do not work cost the adapter.
	clock.Advance(time.Hour)
	r.inject("reset-storm", "on=a", "every=100ms", "result=hard", "for=1h")
	ndistest.Await(t, "removal", func() bool {
		clock.Advance(100 * time.Millisecond)
		return r.info("a").LastHalt == ndiscore.HaltDeviceFailed
	})
}

func TestSurprise(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	l := r.inject("surprise", "on=a")
	gone := func() bool {
		i := r.info("a")
		return i.State == ndiscore.StateHalted && i.LastHalt == ndiscore.HaltSurpriseRemoved && i.Waiting
	}
	ndistest.Await(t, "halt", gone)
	if l := r.j.List()[0]; l.Calls != 1 {
		t.Errorf("one removal, counted %+v", l)
	}
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "surprise", Adapter: "a"}); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("again: %v", err)
	}
	if err := r.core.Start(r.ctx(), "a", "test"); !errors.Is(err, ndiscore.ErrDeviceAbsent) {
		t.Errorf("start while it is away: %v", err)
	}
	r.clear(l.ID)
	ndistest.Await(t, "the device", func() bool {
		// The start that failed above may have ended the waiting.
		_ = r.core.Start(r.ctx(), "a", "test")
		return r.info("a").State == ndiscore.StateRunning
	})
	// Left alone it comes back by itself.
	l = r.inject("surprise", "on=a")
	ndistest.Await(t, "halt", gone)
	r.clear(l.ID)
	ndistest.Await(t, "the device, and who is bound to it", func() bool {
		bs := r.info("a").Bindings
		return len(bs) > 0 && !slices.ContainsFunc(bs, func(b ndiscore.BindingInfo) bool { return b.State != ndiscore.BindingRunning })
	})
	r.send(0, 2)
	if got := r.arrived(); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("arrived %v", got)
	}
	// And it can be ended before anybody has noticed.
	starts := func() int {
		return len(slices.DeleteFunc(r.events("adapter.state"), func(e ndiscore.Event) bool {
			return e.Adapter != "a" || e.To != ndiscore.StateRunning.String()
		}))
	}
	for range 20 {
		before := starts()
		l = r.inject("surprise", "on=a")
		r.clear(l.ID)
		ndistest.Await(t, "the device", func() bool { return starts() > before })
	}
	r.must(r.core.Stop(r.ctx(), "a", "test"))
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "surprise", Adapter: "a"}); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("on what is down: %v", err)
	}
}

// At the end of a switch a device that was taken away is not started once more.
func TestSurpriseAtTheEnd(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	r.inject("surprise", "on=a")
	ndistest.Await(t, "halt", func() bool { i := r.info("a"); return i.State == ndiscore.StateHalted && i.Waiting })
	seen := len(r.events("adapter.state"))
	r.must(r.j.Close(r.ctx()))
	if e := r.events("fault.stopped"); len(e) != 1 || len(r.j.List()) != 0 {
		t.Errorf("events %+v, left %+v", e, r.j.List())
	}
	if err := r.core.Start(r.ctx(), "a", "test"); !errors.Is(err, ndiscore.ErrDeviceAbsent) {
		t.Errorf("start: %v", err)
	}
	r.must(r.core.Close(r.ctx(), "shutdown"))
	for _, e := range r.events("adapter.state")[seen:] {
		if e.Adapter == "a" && e.To == ndiscore.StateRunning.String() {
			t.Errorf("it was started again: %+v", e)
		}
	}
}

// shy is an adapter without any optional method.
type shy struct{ ndiscore.Adapter }

// An interposer offers what the adapter behind it offers, no more and no less.
func TestInterposerIsInvisible(t *testing.T) {
	j := fault.New(fault.Options{})
	a := ndistest.NewAdapter("x", ndistest.AdapterOptions{})
	var removed atomic.Int32
	d := ndistest.Driver("fake", a)
	make := d.New
	d.New = func(name string, o any) (ndiscore.Adapter, error) {
		a, err := make(name, o)
		return shy{a}, err
	}
	d.Remove = func(x ndiscore.Adapter) {
		if _, ok := x.(shy); !ok {
			t.Errorf("Remove gets a %T", x)
		}
		removed.Add(1)
	}
	d = fault.Interpose(d, j)
	x, err := d.New("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if i, ok := x.(ndiscore.Interposer); !ok || i.Inner() != (shy{a}) {
		t.Fatalf("it is a %T", x)
	}
	c := ndistest.NewCore(t, ndiscore.Options{})
	if _, err := c.RegisterDriver(d); err != nil {
		t.Fatal(err)
	}
	ctx := ndistest.Context(t)
	if err := c.AddAdapter(ctx, ndiscore.AdapterSpec{Name: "x", Driver: "fake"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx, "x", "test"); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(ctx, "x", "test"); !errors.Is(err, ndiscore.ErrNotSupported) {
		t.Errorf("reset: %v", err)
	}
	if err := c.Remove(ctx, "x", "test"); err != nil {
		t.Fatal(err)
	}
	ndistest.Await(t, "the driver's own Remove", func() bool { return removed.Load() == 1 })
	// Calls that a core never makes do no harm.
	if err := x.(ndiscore.LowerDevice).StartDevice(ctx); err != nil {
		t.Error(err)
	}
	if err := x.(ndiscore.LowerDevice).AwaitDevice(ctx); err != nil {
		t.Error(err)
	}
	if _, err := x.(ndiscore.Resetter).Reset(ctx); !errors.Is(err, ndiscore.ErrNotSupported) {
		t.Errorf("reset: %v", err)
	}
	if x.(ndiscore.HangChecker).CheckForHang() {
		t.Error("it hangs")
	}
}

// With nothing injected an interposed adapter passes what every adapter must.
func TestConformance(t *testing.T) {
	ndistest.TestAdapter(t, func(t *testing.T) ndistest.Pair {
		a := ndistest.NewAdapter("x", ndistest.AdapterOptions{Device: true})
		whole := &resettable{Adapter: a, LowerDevice: a.Contract().(ndiscore.LowerDevice)}
		return ndistest.Pair{
			Driver: fault.Interpose(ndistest.Driver("fake", whole), fault.New(fault.Options{})), Name: "x",
			Peer: ndistest.NewFakePeer(a), SetLink: func(up bool) { a.SetLink(up, "test") },
			DeleteDevice: func() { a.Vanish("test") }, RestoreDevice: a.Appear,
		}
	})
}
