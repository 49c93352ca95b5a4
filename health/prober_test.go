package health

import (
	"context"
	"net/netip"
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

// seen is a core whose observations the test reads.
type seen struct {
	*ndiscore.Core
	mu  sync.Mutex
	all []ndiscore.Observation
}

func (s *seen) Observe(o ndiscore.Observation) {
	s.mu.Lock()
	s.all = append(s.all, o)
	s.mu.Unlock()
	s.Core.Observe(o)
}

func (s *seen) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, o := range s.all {
		kind := []string{"", "sent", "answered", "lost"}[o.Kind]
		if o.Late {
			kind += " late"
		}
		out = append(out, o.Adapter+" "+kind+": "+o.Detail)
	}
	s.all = nil
	return out
}

// runCore runs a core until the test ends.
func runCore(t *testing.T, o ndiscore.Options) *seen {
	s := &seen{Core: ndiscore.New(o)}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() {
		if err := s.Core.Close(context.Background(), "test ends"); err != nil {
			t.Error(err)
		}
		cancel()
		run.Wait()
	})
	return s
}

// add makes and starts an adapter of a driver of its own.
func (s *seen) add(t *testing.T, name string, a ndiscore.Adapter) {
	t.Helper()
	_, err := s.RegisterDriver(ndiscore.Driver{
		Name: "driver of " + name, Version: ndiscore.ContractVersion, NewOptions: func() any { return nil },
		New: func(string, any) (ndiscore.Adapter, error) { return a, nil },
	})
	if err == nil {
		err = s.AddAdapter(context.Background(), ndiscore.AdapterSpec{Name: name, Driver: "driver of " + name})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// echo is an adapter in memory behind which the target answers, or not.
type echo struct {
	mu     sync.Mutex
	silent bool
	full   bool
	sent   int
	handle ndiscore.AdapterHandle
	worker *ndiscore.Worker
}

func (e *echo) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	e.handle, e.worker = h, h.NewWorker(0)
	return ndiscore.Attributes{MAC: peerMAC, MTU: 1500, Link: ndiscore.LinkState{Media: ndiscore.MediaConnected}}, nil
}
func (e *echo) Restart(context.Context) error                       { return nil }
func (e *echo) Pause(context.Context)                               {}
func (e *echo) Halt(context.Context, ndiscore.HaltAction)           { e.worker.Close() }
func (e *echo) Return(*ndiscore.Batch)                              {}
func (e *echo) Request(context.Context, *ndiscore.OIDRequest) error { return nil }
func (e *echo) set(f func())                                        { e.mu.Lock(); defer e.mu.Unlock(); f() }
func (e *echo) probes() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sent
}
func (e *echo) Send(b *ndiscore.Batch) {
	e.mu.Lock()
	silent, full := e.silent, e.full
	e.sent += len(b.Frames)
	e.mu.Unlock()
	if full {
		b.Status[0] = ndiscore.DropTxQueueFull
		return
	}
	if silent {
		return
	}
	for _, f := range b.Frames {
		e.answer(b.Worker, f.Src(), v4)
	}
}

func (e *echo) answer(w *ndiscore.Worker, to ndiscore.MAC, from netip.Addr) {
	ip := from.As4()
	data := arpAnswer(func(f []byte) { copy(f, to[:]); copy(f[32:], to[:]); copy(f[28:], ip[:]) })
	b := w.Scratch()
	f := new(ndiscore.Frame)
	f.Reset(data, 0, len(data))
	b.Append(f)
	e.handle.IndicateReceive(b)
	w.Done(b)
}

// manual is a clock that the test moves, for a prober that is then looked at.
type manual struct {
	*ndistest.Clock
	prober *Prober
}

// advance moves the clock between two looks of the prober, and returns when it
// has done what was due.
func (c *manual) advance(d time.Duration) {
	c.settle()
	c.Jump(d)
	c.settle()
}

// settle waits for two looks: the prober has begun the first afterwards, and
// ended that when the second begins.
func (c *manual) settle() {
	for range 2 {
		select {
		case <-c.prober.ask(nil, false):
		case <-c.prober.done: // it has ended
		}
	}
}

// deadEnd is an echo whose first Send hangs until it is let.
type deadEnd struct {
	echo
	first      atomic.Bool
	begun, let chan struct{}
}

func (d *deadEnd) Send(b *ndiscore.Batch) {
	if d.first.CompareAndSwap(false, true) {
		close(d.begun)
		<-d.let
	}
	d.echo.Send(b)
}

// The prober hangs in the Send of one member; the others go and come, and are
// probed again when it is back.
func TestProberStuck(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	var p *Prober
	t.Cleanup(func() { p.Close() }) // after the core
	s := runCore(t, ndiscore.Options{})
	dead, other := &deadEnd{begun: make(chan struct{}), let: make(chan struct{})}, &echo{}
	s.add(t, "wan0", dead)
	s.add(t, "wan1", other)
	var err error
	if p, err = New(Options{Core: s, Members: []Member{{Bundle: "wan", Adapter: "wan0", Target: v4}, {Bundle: "wan", Adapter: "wan1", Target: v4}}}); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(s.AddProtocol(t.Context(), p.Spec()))
	must(s.Start(t.Context(), "wan1", "test"))
	must(s.Start(t.Context(), "wan0", "test"))
	<-dead.begun
	must(s.Restart(t.Context(), "wan1", "test"))
	before := other.probes()
	close(dead.let)
	ndistest.Await(t, "a probe of wan1", func() bool { return other.probes() > before })
	must(s.Restart(t.Context(), "wan0", "test"))
}

func newEcho(t *testing.T) (*seen, *echo, *manual) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	clock := &manual{Clock: ndistest.NewClock()}
	s := runCore(t, ndiscore.Options{})
	e := &echo{}
	s.add(t, "wan0", e)
	p, err := New(Options{Core: s, Clock: clock, Members: []Member{{Bundle: "wan", Adapter: "wan0", Target: v4}}})
	if err != nil {
		t.Fatal(err)
	}
	clock.prober = p
	t.Cleanup(p.Close)
	if err := s.AddProtocol(context.Background(), p.Spec()); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(context.Background(), "wan0", "test"); err != nil {
		t.Fatal(err)
	}
	return s, e, clock
}

// expectSeen waits for observations that begin as the lines do.
func (s *seen) expectSeen(t *testing.T, what string, want ...string) {
	t.Helper()
	var got []string
	ndistest.Await(t, what, func() bool { got = append(got, s.take()...); return len(got) >= len(want) })
	match := len(got) == len(want)
	for i := range got {
		match = match && strings.HasPrefix(got[i], want[i])
	}
	if !match {
		t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
}

func TestRounds(t *testing.T) {
	s, e, clock := newEcho(t)
	const round = DefaultInterval
	s.expectSeen(t, "the first probe leaves at once", "wan0 sent: to 192.0.2.1", "wan0 answered: 192.0.2.1 answered after 0s")
	clock.advance(round)
	s.expectSeen(t, "and one per interval", "wan0 sent", "wan0 answered")

	e.set(func() { e.silent = true })
	clock.advance(round)
	s.expectSeen(t, "silence", "wan0 sent")
	clock.advance(round)
	s.expectSeen(t, "is noticed by the next round", "wan0 lost: 192.0.2.1 did not answer within 100ms", "wan0 sent")
	clock.advance(2*round + round/2)
	s.expectSeen(t, "a little late is not late", "wan0 lost: 192.0.2.1 did not answer within 250ms", "wan0 sent: ")
	clock.advance(4 * round)
	s.expectSeen(t, "late: no burst, and no verdict", "wan0 lost late: 192.0.2.1 did not answer within 400ms; we were 300ms late ourselves", "wan0 sent late")
	clock.advance(round)
	s.expectSeen(t, "nor for the probe that was sent late", "wan0 lost late: 192.0.2.1 did not answer within 100ms", "wan0 sent: ")
	clock.advance(round)
	s.expectSeen(t, "then all is as before", "wan0 lost: 1", "wan0 sent: ")

	e.set(func() { e.silent = false })
	clock.advance(round)
	s.expectSeen(t, "the answer is back", "wan0 lost", "wan0 sent", "wan0 answered")

	e.set(func() { e.full = true })
	clock.advance(round)
	clock.advance(round)
	clock.advance(round)
	e.set(func() { e.full = false })
	clock.advance(round)
	s.expectSeen(t, "what was not sent was not lost", "wan0 sent", "wan0 answered")

	e.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
	clock.advance(round)
	clock.advance(round)
	e.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "test"})
	clock.advance(round)
	s.expectSeen(t, "no probes without link", "wan0 sent", "wan0 answered")

	if err := s.Pause(context.Background(), "wan0", "test"); err != nil {
		t.Fatal(err)
	}
	sent := e.probes()
	if err := s.Start(context.Background(), "wan0", "test"); err != nil {
		t.Fatal(err)
	}
	s.expectSeen(t, "a restart probes at once", "wan0 sent", "wan0 answered")
	if n := e.probes() - sent; n != 1 {
		t.Errorf("%d probes sent", n)
	}
}

func TestOnlyItsOwnAnswers(t *testing.T) {
	s, e, clock := newEcho(t)
	s.expectSeen(t, "first", "wan0 sent", "wan0 answered")
	e.set(func() { e.silent = true })
	clock.advance(DefaultInterval)
	s.expectSeen(t, "second", "wan0 sent")
	mac := probeMAC("", "wan", "wan0", peerMAC.String())
	e.answer(e.worker, mac, netip.MustParseAddr("192.0.2.9"))
	e.answer(e.worker, testMAC, v4)
	e.answer(e.worker, mac, v4)
	s.expectSeen(t, "the third one is it", "wan0 answered")
	for range 100 {
		e.answer(e.worker, mac, v4)
	}
	clock.advance(DefaultInterval)
	s.expectSeen(t, "more of them are no more evidence", "wan0 sent")
	all, err := s.Adapters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c := all[0].Counters
	if c.Delivered != 102 || c.RxDropped["no-receiver"] != 2 || c.RxFrames != 104 {
		t.Errorf("%+v", c)
	}
}

func TestOptions(t *testing.T) {
	s := runCore(t, ndiscore.Options{})
	ok := Member{Bundle: "b", Adapter: "a", Target: v4}
	edit := func(f func(*Member)) []Member { m := ok; f(&m); return []Member{m} }
	for want, o := range map[string]Options{
		"needs a core":     {Members: []Member{ok}},
		"listed twice":     {Core: s, Members: []Member{ok, ok}},
		"names no adapter": {Core: s, Members: edit(func(m *Member) { m.Adapter = "" })},
		"not the address":  {Core: s, Members: edit(func(m *Member) { m.Target = netip.MustParseAddr("224.0.0.1") })},
		"target invalid":   {Core: s, Members: edit(func(m *Member) { m.Target = netip.Addr{} })},
		"leave out %eth0":  {Core: s, Members: edit(func(m *Member) { m.Target = netip.MustParseAddr("fe80::1%eth0") })},
		"interval 1ms":     {Core: s, Members: edit(func(m *Member) { m.Interval = time.Millisecond })},
	} {
		p, err := New(o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
		if p != nil {
			p.Close()
		}
	}
}
