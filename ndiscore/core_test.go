package ndiscore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// plain is the plainest decider: the first usable member.
type plain struct{}

func (plain) Decide(v ndiscore.BundleView) ndiscore.BundleDecision {
	d := ndiscore.BundleDecision{Active: -1, Why: "no member is usable"}
	for i, m := range v.Members {
		switch {
		case !m.Running || m.Leaving || !m.Link.Connected():
		case d.Active < 0:
			d.Active, d.Why = i, m.Name+" is the first usable member"
		default:
			d.Successors = append(d.Successors, i)
		}
	}
	return d
}

// sticky stays with the active member while that is usable.
type sticky struct{}

func (sticky) Decide(v ndiscore.BundleView) ndiscore.BundleDecision {
	usable := func(m ndiscore.MemberView) bool { return m.Running && !m.Leaving && m.Link.Connected() }
	d := ndiscore.BundleDecision{Active: -1, Why: "no member is usable"}
	if v.Active >= 0 && usable(v.Members[v.Active]) {
		d.Active, d.Why = v.Active, "still usable"
	}
	for i, m := range v.Members {
		switch {
		case !usable(m) || i == d.Active:
		case d.Active < 0:
			d.Active, d.Why = i, m.Name+" is the first usable member"
		default:
			d.Successors = append(d.Successors, i)
		}
	}
	return d
}

// bench is a core with fake adapters, each behind a Verifier.
type bench struct {
	t    testing.TB
	core *ndiscore.Core
}

func newBench(t testing.TB, o ndiscore.Options, nics ...*ndistest.Adapter) *bench {
	t.Helper()
	leakFree(t)
	if o.Decider == nil {
		o.Decider = sticky{}
	}
	b := &bench{t: t, core: ndistest.NewCore(t, o)}
	var as []ndiscore.Adapter
	for _, n := range nics {
		as = append(as, ndistest.Verifier(t, n.Contract()))
	}
	if _, err := b.core.RegisterDriver(ndistest.Driver("fake", as...)); err != nil {
		t.Fatal(err)
	}
	return b
}

// leakFree fails the test if it leaves goroutines. To be called first.
func leakFree(t testing.TB) {
	there := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, there) })
}

func (b *bench) ctx() context.Context { return ndistest.Context(b.t) }

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) add(name string, filters ...ndiscore.FilterSpec) {
	b.t.Helper()
	b.must(b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: name, Driver: "fake", Filters: filters}))
}

func (b *bench) start(names ...string) {
	b.t.Helper()
	for _, n := range names {
		b.must(b.core.Start(b.ctx(), n, "test"))
	}
}

func (b *bench) protocol(p *ndistest.Protocol, targets ...string) {
	b.t.Helper()
	b.must(b.core.AddProtocol(b.ctx(), p.Spec(targets...)))
}

// verified is protocol, with p behind a Verifier.
func (b *bench) verified(p *ndistest.Protocol, targets ...string) {
	b.t.Helper()
	s := p.Spec(targets...)
	s.Protocol = ndistest.VerifiedProtocol(b.t, p)
	b.must(b.core.AddProtocol(b.ctx(), s))
}

func (b *bench) state(name string) string { return ndistest.State(b.t, b.core, name) }

func (b *bench) awaitState(name, state string) {
	b.t.Helper()
	ndistest.Await(b.t, name+" "+state, func() bool { return b.state(name) == state })
}

func (b *bench) counters(name string) ndiscore.Counters {
	return ndistest.Info(b.t, b.core, name).Counters
}

// active is the active member of a bundle.
func (b *bench) active(bundle string) string {
	infos, err := b.core.Bundles(b.ctx())
	b.must(err)
	for _, i := range infos {
		if i.Name == bundle {
			return i.Active
		}
	}
	return ""
}

// events lists the events of one kind about an adapter.
func (b *bench) events(what, adapter string) []ndiscore.Event {
	all, _, _ := b.core.Events(0)
	return slices.DeleteFunc(all, func(e ndiscore.Event) bool { return e.What != what || e.Adapter != adapter })
}

// send sends frames through a binding as a batch of worker w.
func send(w *ndiscore.Worker, bd *ndiscore.Binding, borrowed bool, frames ...[]byte) *ndiscore.Batch {
	batch := ndiscore.NewBatch(w)
	batch.Borrowed = borrowed
	for _, f := range frames {
		buf := make([]byte, ndiscore.Headroom+len(f))
		copy(buf[ndiscore.Headroom:], f)
		x := new(ndiscore.Frame)
		x.Reset(buf, ndiscore.Headroom, len(f))
		batch.Append(x)
	}
	bd.Send(batch)
	return batch
}

func (b *bench) worker(name string) *ndiscore.Worker {
	b.t.Helper()
	w, err := b.core.NewWorker(name)
	b.must(err)
	b.t.Cleanup(w.Close)
	return w
}

var (
	macA = ndiscore.MAC{2, 0, 0, 0, 0, 0xa}
	macB = ndiscore.MAC{2, 0, 0, 0, 0, 0xb}
)

func frame(id int) []byte { return ndistest.Frame(macB, macA, uint32(id), 60) }

func frames(n int) [][]byte {
	fs := make([][]byte, n)
	for i := range fs {
		fs[i] = frame(i)
	}
	return fs
}

func nic(name string, o ndistest.AdapterOptions) *ndistest.Adapter {
	return ndistest.NewAdapter(name, o)
}

// The fakes over the real core give the golden trace of C-62 and C-36/C-67.
func TestTraceOfRealCore(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, Device: true})
	b := newBench(t, ndiscore.Options{}, m)
	b.protocol(ndistest.NewProtocol("P1", &tr), "M")
	b.protocol(ndistest.NewProtocol("P2", &tr), "M")
	b.add("M", ndiscore.FilterSpec{Name: "a", Filter: ndistest.NewFilter("M.F1", &tr)}, ndiscore.FilterSpec{Name: "b", Filter: ndistest.NewFilter("M.F2", &tr)})
	b.start("M")
	tr.Await(t, "P1.Event(BindsComplete)")
	tr.Await(t, "P2.Event(BindsComplete)")
	up := strings.Fields(strings.NewReplacer(", ", ",", "P1.Event(BindsComplete)", "", "P2.Event(BindsComplete)", "").Replace(strings.Join(tr.Take(), " ")))
	want := strings.Fields("M.StartDevice M.Init M.F1.Attach M.F2.Attach P1.Bind(M) P2.Bind(M) M.Restart M.F1.Restart M.F2.Restart P1.Event(M,Restart) P2.Event(M,Restart)")
	if d := cmp.Diff(want, up); d != "" {
		t.Errorf("start:\n%s", d)
	}
	b.must(m.Remove("given up"))
	b.awaitState("M", "halted")
	down := strings.Fields(strings.ReplaceAll(strings.Join(tr.Take(), " "), ", ", ","))
	want = strings.Fields("P2.Event(M,Pause) P1.Event(M,Pause) M.F2.Pause M.F1.Pause M.Pause P2.Unbind(M) P1.Unbind(M) M.F2.Detach M.F1.Detach M.Halt(DeviceFailed) M.RemoveDevice")
	if d := cmp.Diff(want, down[:min(len(down), len(want))]); d != "" {
		t.Errorf("remove:\n%s", d)
	}
}

func TestC10NoSendBeforeRestart(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	b.add("M")
	hold := m.Hold("Restart")
	started := make(chan error, 1)
	go func() { started <- b.core.Start(b.ctx(), "M", "test") }() // ended below
	hold.Await(t)
	w := b.worker("test")
	got := send(w, p.Binding("M"), true, frame(1))
	if got.Status[0] != ndiscore.DropPaused {
		t.Errorf("status %s", got.Status[0])
	}
	if n := len(m.Sent()); n != 0 {
		t.Errorf("%d frames reached M", n)
	}
	hold.Release()
	b.must(<-started)
	if got := send(w, p.Binding("M"), true, frame(2)); got.Status[0] != ndiscore.DropNone || len(m.Sent()) != 1 {
		t.Errorf("running: status %s, %d sent", got.Status[0], len(m.Sent()))
	}
}

func TestC11InitializeFails(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	b.protocol(ndistest.NewProtocol("P1", &tr), "M")
	b.add("M")
	m.Fail("Init", ndiscore.ErrResources)
	if err := b.core.Start(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrResources) {
		t.Errorf("start: %v", err)
	}
	if d := cmp.Diff([]string{"M.Init"}, tr.Calls()); d != "" {
		t.Error(d)
	}
	if s := b.state("M"); s != "halted" {
		t.Error(s)
	}
}

func TestC18SendWhilePausedAndPausing(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	w := b.worker("test")
	bd := p.Binding("M")
	hold := m.Hold("Pause")
	paused := make(chan error, 1)
	go func() { paused <- b.core.Pause(b.ctx(), "M", "test") }() // ended below
	hold.Await(t)
	for _, phase := range []string{"pausing", "paused"} {
		if s := b.state("M"); s != phase {
			t.Fatalf("state %s", s)
		}
		before := p.Completed()
		got := send(w, bd, false, frame(1), frame(2))
		if got.Status[0] != ndiscore.DropPaused || got.Status[1] != ndiscore.DropPaused {
			t.Errorf("%s: status %v", phase, got.Status[:2])
		}
		if n := p.Completed() - before; n != 1 {
			t.Errorf("%s: completed %d times", phase, n)
		}
		if phase == "pausing" {
			hold.Release()
			b.must(<-paused)
		}
	}
	if len(m.Sent()) != 0 {
		t.Error("a frame reached M")
	}
	if got := b.counters("M").TxDropped["paused"]; got != 4 {
		t.Errorf("tx paused %d", got)
	}
}

func TestC19ReceiveWhileRestartingAndPaused(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepReceives: true})
	// Without a Verifier: this test breaks the contract.
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m))
	b.must(err)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1)))
	if p.Received() != 1 {
		t.Errorf("running: received %d", p.Received())
	}
	b.must(core.Pause(b.ctx(), "M", "test"))
	// A batch that a badly written miniport indicates while Paused.
	w := b.worker("test")
	batch := ndiscore.NewBatch(w)
	f := new(ndiscore.Frame)
	f.Reset(frame(2), 0, 60)
	batch.Append(f)
	m.Handle().IndicateReceive(batch)
	if p.Received() != 1 {
		t.Error("a frame indicated while Paused was delivered")
	}
	if _, back := m.Lent(); back != 2 {
		t.Errorf("returned %d batches", back)
	}
	c := b.counters("M")
	if c.RxFrames != 2 || c.Delivered != 1 || c.RxDropped["paused"] != 1 {
		t.Errorf("%+v", c)
	}
}

func TestC20OIDByState(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	ask := func() error {
		return bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery})
	}
	b.must(ask())
	b.must(b.core.Pause(b.ctx(), "M", "test"))
	b.must(ask())
	if err := bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: 7, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrInvalidOID) {
		t.Error(err)
	}
	b.must(b.core.Shutdown(b.ctx(), "M", "test"))
	if err := ask(); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("after shutdown: %v", err)
	}
	if err := m.Remove("late"); !errors.Is(err, ndiscore.ErrFailure) { // C-35
		t.Errorf("remove after shutdown: %v", err)
	}
}

func TestC24OIDInFlightDelaysHalt(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	hold := m.Hold("Request")
	asked := make(chan error, 1)
	go func() { // ended below
		asked <- bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery})
	}()
	hold.Await(t)
	removed := make(chan error, 1)
	go func() { removed <- b.core.Remove(b.ctx(), "M", "test") }() // ended below
	tr.Await(t, "P1.Unbind(M)")
	select {
	case <-removed:
		t.Error("removed while an OID was in flight")
	default:
	}
	if tr.Count("M.Halt(Disabled)") != 0 {
		t.Error("halted while an OID was in flight")
	}
	hold.Release()
	b.must(<-asked)
	b.must(<-removed)
	if tr.Count("M.Halt(Disabled)") != 1 {
		t.Error("not halted once")
	}
}

func TestC25SendInFlightDelaysHalt(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, KeepSends: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	send(b.worker("test"), p.Binding("M"), false, frame(1))
	removed := make(chan error, 1)
	go func() { removed <- b.core.Remove(b.ctx(), "M", "test") }() // ended below
	tr.Await(t, "M.Pause")
	if s := b.state("M"); s != "pausing" {
		t.Errorf("state %s", s)
	}
	if tr.Count("P1.Unbind(M)") != 0 {
		t.Error("unbound with a send in flight")
	}
	if m.CompleteSends() != 1 {
		t.Error("no send was kept")
	}
	b.must(<-removed)
	if p.Completed() != 1 {
		t.Errorf("completed %d times", p.Completed())
	}
}

func TestC26KeptReceiveDelaysHalt(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, KeepReceives: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	p.Keep = true
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1)))
	if p.Kept() != 1 {
		t.Fatal("nothing kept")
	}
	removed := make(chan error, 1)
	go func() { removed <- b.core.Remove(b.ctx(), "M", "test") }() // ended below
	tr.Await(t, "M.Pause")
	if s := b.state("M"); s != "pausing" {
		t.Errorf("state %s", s)
	}
	if out, _ := m.Lent(); out != 1 {
		t.Errorf("%d out", out)
	}
	p.ReturnKept()
	b.must(<-removed)
	if out, back := m.Lent(); out != 0 || back != 1 {
		t.Errorf("%d out, %d back", out, back)
	}
	if len(b.events("adapter.orphaned", "M")) != 0 {
		t.Error("orphaned")
	}
}

// What never comes back is given up after a limit; when it comes after all,
// the adapter, halted or started anew, does not hear of it.
func TestC26Orphan(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepReceives: true})
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{CallLimit: 400 * time.Millisecond})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m)) // no Verifier: it would report the orphan
	b.must(err)
	p := ndistest.NewProtocol("P1", nil)
	p.Keep = true
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1)))
	b.must(core.Stop(b.ctx(), "M", "test"))
	if ev := b.events("adapter.orphaned", "M"); len(ev) != 1 {
		t.Errorf("orphan events: %v", ev)
	}
	p.ReturnKept()
	if _, back := m.Lent(); back != 0 {
		t.Error("a late return reached the halted adapter")
	}
	b.start("M")
	b.must(m.Inject(frame(2)))
	if p.ReturnKept() != 1 {
		t.Error("nothing kept")
	}
	if _, back := m.Lent(); back != 1 {
		t.Errorf("back %d", back)
	}
	b.must(core.Stop(b.ctx(), "M", "test"))
	if ev := b.events("adapter.orphaned", "M"); len(ev) != 1 {
		t.Errorf("orphan events: %v", ev)
	}
}

// C-27: each trigger raises exactly its halt action.
func TestC27HaltActions(t *testing.T) {
	for _, c := range []struct {
		want    string
		trigger func(b *bench, m *ndistest.Adapter)
	}{
		{"Disabled", func(b *bench, m *ndistest.Adapter) { b.must(b.core.Remove(b.ctx(), "M", "test")) }},
		{"Stopped", func(b *bench, m *ndistest.Adapter) { b.must(b.core.Stop(b.ctx(), "M", "test")) }},
		{"SurpriseRemoved", func(b *bench, m *ndistest.Adapter) { m.Vanish("gone") }},
		{"DeviceFailed", func(b *bench, m *ndistest.Adapter) { b.must(m.Remove("failed")) }},
		{"PoweredDown", func(b *bench, m *ndistest.Adapter) { b.must(b.core.Suspend(b.ctx(), "M", "test")) }},
		{"InitFailed", nil},
	} {
		t.Run(c.want, func(t *testing.T) {
			var tr ndistest.Trace
			m := nic("M", ndistest.AdapterOptions{Trace: &tr, Device: true})
			b := newBench(t, ndiscore.Options{}, m)
			f := ndistest.NewFilter("M.F1", &tr)
			b.add("M", ndiscore.FilterSpec{Name: "must", Filter: f, Mandatory: true})
			if c.trigger == nil {
				f.Fail("Attach", errors.New("refused"))
				if err := b.core.Start(b.ctx(), "M", "test"); err == nil {
					t.Error("started")
				}
			} else {
				b.start("M")
				c.trigger(b, m)
			}
			tr.Await(t, "M.Halt("+c.want+")")
			n := 0
			for _, call := range tr.Calls() {
				if strings.HasPrefix(call, "M.Halt(") {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d halts: %v", n, tr.Calls())
			}
		})
	}
	t.Run("InstanceDeInitialized", func(t *testing.T) {
		var tr ndistest.Trace
		b := newBench(t, ndiscore.Options{})
		b.must(b.core.AddVirtual(b.ctx(), "V", ndistest.Verifier(t, nic("V", ndistest.AdapterOptions{Trace: &tr})), nil))
		b.start("V")
		b.must(b.core.Remove(b.ctx(), "V", "test"))
		if tr.Count("V.Halt(InstanceDeInitialized)") != 1 {
			t.Error(tr.Calls())
		}
	})
}

func TestC22WithoutAttributes(t *testing.T) {
	for _, o := range []ndistest.AdapterOptions{{MTU: 67}, {MTU: 65536}, {MAC: ndiscore.Broadcast}} {
		var tr ndistest.Trace
		o.Trace = &tr
		m := nic("M", o)
		leakFree(t)
		core := ndistest.NewCore(t, ndiscore.Options{})
		b := &bench{t: t, core: core}
		_, err := core.RegisterDriver(ndistest.Driver("fake", m))
		b.must(err)
		b.add("M")
		if err := core.Start(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrInvalidData) {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"M.Init", "M.Halt(InitFailed)"}, tr.Calls()); d != "" {
			t.Error(d)
		}
	}
}

// hoarder is an adapter that acquires things in Initialize and later, with a
// timer and a goroutine that blocks in a read.
type hoarder struct {
	*ndistest.Adapter
	mu       sync.Mutex
	released []string
	acquired []string
	fire     func()        // the timer's callback, as if its time had come
	ticking  chan struct{} // a callback is running
	unblock  chan struct{}
	read     chan struct{} // what the reader blocks on
	reader   sync.WaitGroup
	ticks    sync.WaitGroup
	armed    bool
}

func (h *hoarder) acquire(s string) {
	h.mu.Lock()
	h.acquired = append(h.acquired, s)
	h.mu.Unlock()
}

func (h *hoarder) Initialize(ctx context.Context, a ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	for _, s := range []string{"a", "b", "c"} {
		h.acquire(s)
	}
	h.read = make(chan struct{})
	h.reader.Go(func() { <-h.read }) // ended by Halt
	h.armed = true
	h.fire = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.armed {
			h.ticks.Go(func() { close(h.ticking); <-h.unblock })
		}
	}
	return h.Adapter.Initialize(ctx, a)
}

func (h *hoarder) Halt(ctx context.Context, why ndiscore.HaltAction) {
	h.mu.Lock()
	h.armed = false
	h.mu.Unlock()
	h.ticks.Wait()
	close(h.read)
	h.reader.Wait()
	for _, s := range slices.Backward(h.acquired) {
		h.released = append(h.released, s)
	}
	h.acquired = nil
	h.Adapter.Halt(ctx, why)
}

// C-28, C-29, C-30: nothing keeps a halt from taking its time, and the core
// waits for it.
func TestC28C29C30HaltReleasesInReverse(t *testing.T) {
	var tr ndistest.Trace
	h := &hoarder{Adapter: nic("M", ndistest.AdapterOptions{Trace: &tr}), ticking: make(chan struct{}), unblock: make(chan struct{})}
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", ndistest.Verifier(t, h)))
	b.must(err)
	b.add("M")
	b.start("M")
	h.acquire("d")
	h.fire()
	<-h.ticking
	stopped := make(chan error, 1)
	go func() { stopped <- core.Stop(b.ctx(), "M", "test") }() // ended below
	tr.Await(t, "M.Pause")
	select {
	case err := <-stopped:
		t.Errorf("halted while the timer's callback ran: %v", err)
	default:
	}
	close(h.unblock)
	b.must(<-stopped)
	if d := cmp.Diff([]string{"d", "c", "b", "a"}, h.released); d != "" {
		t.Error(d)
	}
	h.fire() // nothing is armed any more
}

func TestC31StatusAfterHalt(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m)) // no Verifier: this breaks the contract
	b.must(err)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	m.SetLink(false, "carrier")
	if n := len(p.Statuses()); n == 0 { // and the operational state, from the control side
		t.Errorf("%d statuses", n)
	}
	ndistest.Await(t, "link event", func() bool { return len(b.events("link", "M")) > 0 })
	before := len(b.events("link", "M"))
	b.must(core.Stop(b.ctx(), "M", "test"))
	m.Handle().IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "too late"})
	_ = b.state("M") // Run has been round
	for _, st := range p.Statuses() {
		if l, ok := st.(ndiscore.LinkState); ok && l.Why == "too late" {
			t.Error("a status after halt")
		}
	}
	if n := len(b.events("link", "M")); n != before {
		t.Error("a status after halt became an event")
	}
	if n := len(b.events("adapter.fault", "M")); n != 1 {
		t.Errorf("%d faults", n)
	}
}

func TestC32StopStart(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, Device: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	for i := range 3 {
		b.start("M")
		b.must(m.Inject(frame(i)))
		b.must(b.core.Stop(b.ctx(), "M", "test"))
	}
	if tr.Count("M.Init") != 3 || tr.Count("M.Halt(Stopped)") != 3 || tr.Count("M.StartDevice") != 1 {
		t.Error(tr.Calls())
	}
	if c := b.counters("M"); c.RxFrames != 3 || c.Delivered != 3 {
		t.Errorf("%+v", c)
	}
}

// Of the link of an adapter that is halted nothing is known, whatever was said of
// it before.
func TestHaltedLinkUnknown(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Mode: ndiscore.BundleNDIS5, Members: []string{"M"}}))
	links := func() [2]ndiscore.LinkState {
		infos, err := b.core.Bundles(b.ctx())
		b.must(err)
		return [2]ndiscore.LinkState{ndistest.Info(t, b.core, "M").Link, infos[0].Members[0].Link}
	}
	for what, down := range map[string]func(){
		"stopped":   func() { b.must(b.core.Stop(b.ctx(), "M", "test")) },
		"suspended": func() { b.must(b.core.Suspend(b.ctx(), "M", "test")) },
		"failed": func() {
			b.must(m.Handle().Remove("test")) // which says that the link is lost
			b.awaitState("M", "halted")
			b.settle("M")
		},
	} {
		b.start("M")
		if l := links(); !l[0].Connected() || !l[1].Connected() {
			t.Errorf("running: %+v", l)
		}
		down()
		if l := links(); l != [2]ndiscore.LinkState{} {
			t.Errorf("%s: %+v", what, l)
		}
		if what == "suspended" {
			b.must(b.core.Resume(b.ctx(), "M", "test"))
			b.must(b.core.Stop(b.ctx(), "M", "test"))
		}
	}
}

// Whoever asks what is going on after an adapter has said something sees it.
func TestAskAfterIndicate(t *testing.T) {
	a := nic("a", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, a)
	b.add("a")
	b.start("a")
	for i := range 500 {
		up := i%2 == 1
		a.SetLink(up, "test")
		if l := ndistest.Info(t, b.core, "a").Link; l.Connected() != up {
			t.Fatalf("link %+v, which was just set to %v", l, up)
		}
	}
}

// Who was paused hears that the network changed meanwhile, once.
func TestNetworkChangeWhilePaused(t *testing.T) {
	a := nic("a", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, a)
	p := ndistest.NewProtocol("p", nil)
	var heard, groups atomic.Int32
	p.OnStatus = func(_ *ndiscore.Binding, s ndiscore.Status) {
		if n, ok := s.(ndiscore.NetworkChange); ok {
			heard.Add(1)
			if n.Groups {
				groups.Add(1)
			}
		}
	}
	b.protocol(p, "a")
	b.add("a")
	b.start("a")
	step := func(what string, want int32, f func()) {
		t.Helper()
		heard.Store(0)
		f()
		if n := heard.Load(); n != want {
			t.Errorf("%s: heard %d times, not %d", what, n, want)
		}
	}
	change := func() { a.Handle().IndicateStatus(ndiscore.NetworkChange{Why: "test"}) }
	pause := func() { b.must(b.core.Pause(b.ctx(), "a", "test")) }
	step("running", 1, change)
	step("paused", 0, func() { pause(); change(); change() })
	step("running again", 1, func() { b.start("a") })
	step("paused, nothing new", 0, func() { pause(); b.start("a") })
	if n := groups.Load(); n != 0 {
		t.Errorf("%d times of groups only", n)
	}
	step("of groups", 1, func() {
		pause()
		a.Handle().IndicateStatus(ndiscore.NetworkChange{Why: "test", Groups: true})
		b.start("a")
	})
	if n := groups.Load(); n != 1 {
		t.Errorf("%d times of groups only, not once", n)
	}
}

func TestC33StaleHandles(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m)) // no Verifier: this breaks the contract
	b.must(err)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	old, h := p.Binding("M"), m.Handle()
	b.must(core.Stop(b.ctx(), "M", "test"))
	w := b.worker("test")
	check := func(phase string) {
		t.Helper()
		sent := len(m.Sent())
		if got := send(w, old, true, frame(1)); got.Status[0] == ndiscore.DropNone || len(m.Sent()) != sent {
			t.Errorf("%s: a send on a stale binding got through", phase)
		}
		if err := old.Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrInvalidHandle) {
			t.Errorf("%s: request: %v", phase, err)
		}
		if err := old.SetPacketFilter(b.ctx(), ndiscore.FilterDirected); !errors.Is(err, ndiscore.ErrInvalidHandle) {
			t.Errorf("%s: filter: %v", phase, err)
		}
		if old.Usable() {
			t.Errorf("%s: usable", phase)
		}
	}
	check("halted")
	if err := h.Remove("late"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("remove: %v", err)
	}
	h.SurpriseRemove("late")
	batch := ndiscore.NewBatch(w)
	f := new(ndiscore.Frame)
	f.Reset(frame(1), 0, 60)
	batch.Append(f)
	batch.Borrowed = true
	h.IndicateReceive(batch)
	if p.Received() != 0 {
		t.Error("a frame got up")
	}
	b.start("M")
	check("started anew")
	b.must(core.Remove(b.ctx(), "M", "test"))
	check("removed")
	if m.PacketFilter() != 0 {
		t.Errorf("packet filter %v", m.PacketFilter())
	}
}
