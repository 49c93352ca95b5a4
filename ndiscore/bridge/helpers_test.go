package bridge

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// wire is an adapter in memory: what the bridge sends through it is kept, and
// the test receives on it by hand.
type wire struct {
	name   string
	mac    ndiscore.MAC
	keep   bool // sent frames, for the test to look at
	mtu    int
	full   bool // refuse every frame
	answer func(w *ndiscore.Worker)

	mu     sync.Mutex
	handle ndiscore.AdapterHandle
	worker *ndiscore.Worker
	sent   [][]byte
	filter ndiscore.PacketFilter
}

func (a *wire) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handle, a.worker = h, h.NewWorker(0)
	mtu := a.mtu
	if mtu == 0 {
		mtu = 1500
	}
	return ndiscore.Attributes{MAC: a.mac, MTU: mtu, Link: ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: 1e9}}, nil
}
func (a *wire) Restart(context.Context) error { return nil }
func (a *wire) Pause(context.Context)         {}
func (a *wire) Halt(context.Context, ndiscore.HaltAction) {
	a.worker.Close()
}
func (a *wire) Return(*ndiscore.Batch) {}
func (a *wire) Request(_ context.Context, req *ndiscore.OIDRequest) error {
	if req.ID == ndiscore.OIDGenCurrentPacketFilter {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.filter = req.Data.(ndiscore.PacketFilter)
		return nil
	}
	return ndiscore.ErrInvalidOID
}
func (a *wire) Send(b *ndiscore.Batch) {
	if !b.Borrowed {
		panic("the bridge sends borrowed batches only")
	}
	if a.full {
		for i := range b.Frames {
			b.Status[i] = ndiscore.DropTxQueueFull
		}
		return
	}
	if a.keep {
		a.mu.Lock()
		for _, f := range b.Frames {
			a.sent = append(a.sent, f.Bytes(nil))
		}
		a.mu.Unlock()
	}
	if a.answer != nil {
		a.answer(b.Worker)
	}
}

// take returns what was sent since the last take.
func (a *wire) take() [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sent
	a.sent = nil
	return s
}

// receive passes frames up as one borrowed batch.
func (a *wire) receive(frames ...[]byte) {
	b := ndiscore.NewBatch(a.worker)
	b.Borrowed = true
	for _, data := range frames {
		f := new(ndiscore.Frame)
		f.Reset(data, 0, len(data))
		b.Append(f)
	}
	a.handle.IndicateReceive(b)
}

// station is a protocol above the bridge.
type station struct {
	mu       sync.Mutex
	binding  *ndiscore.Binding
	got      [][]byte
	statuses []ndiscore.Status
	filter   ndiscore.PacketFilter
	answer   []byte // sent back for every batch
}

func (s *station) Bind(ctx context.Context, b *ndiscore.Binding) error {
	s.mu.Lock()
	s.binding = b
	s.mu.Unlock()
	return b.SetPacketFilter(ctx, s.filter)
}
func (s *station) Unbind(context.Context, *ndiscore.Binding) {}
func (s *station) Event(context.Context, *ndiscore.Binding, ndiscore.NetEvent) error {
	return nil
}
func (s *station) Receive(bd *ndiscore.Binding, b *ndiscore.Batch) {
	s.mu.Lock()
	for _, f := range b.Frames {
		s.got = append(s.got, f.Bytes(nil))
		f.Deliver()
	}
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		q := b.Worker.Scratch()
		f := new(ndiscore.Frame)
		f.Reset(answer, 0, len(answer))
		q.Append(f)
		bd.Send(q)
		b.Worker.Done(q)
	}
}
func (s *station) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}
func (s *station) Status(_ *ndiscore.Binding, st ndiscore.Status) {
	s.mu.Lock()
	s.statuses = append(s.statuses, st)
	s.mu.Unlock()
}
func (s *station) take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.got
	s.got = nil
	return g
}

// verdicts is where the verifier reports. One rule of miniports does not hold
// for the upper half of an intermediate driver: it indicates on the workers of
// the adapters below.
type verdicts struct{ *testing.T }

func (v verdicts) Errorf(format string, args ...any) {
	v.Helper()
	if s := fmt.Sprintf(format, args...); !strings.HasSuffix(s, "on a worker that is not the adapter's") {
		v.Error(s)
	}
}

// lan is a bridge under a real core, with wires as its ports.
type lan struct {
	t      testing.TB
	core   *ndiscore.Core
	bridge *Bridge
	wires  []*wire
	above  *station
	clock  *ndistest.Clock
	mu     sync.Mutex
	events []string
}

func newLAN(t testing.TB, ports int, withStation bool, change func(*Options)) *lan {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Cleanup(func() { goleak.VerifyNone(t) })
	}
	l := &lan{t: t, clock: ndistest.NewClock()}
	o := Options{Name: "lan", Event: func(what, port, from, to, why string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.events = append(l.events, fmt.Sprintf("%s %s %s>%s %s", what, port, from, to, why))
	}}
	for i := range ports {
		o.Ports = append(o.Ports, fmt.Sprint("p", i))
	}
	if change != nil {
		change(&o)
	}
	var err error
	if l.bridge, err = New(o); err != nil {
		t.Fatal(err)
	}
	l.core = ndiscore.New(ndiscore.Options{Clock: l.clock})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = l.core.Run(ctx) })
	t.Cleanup(func() {
		if err := l.core.Close(context.Background(), "test ends"); err != nil {
			t.Error(err)
		}
		cancel()
		run.Wait()
	})
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h, err := l.core.RegisterDriver(ndiscore.Driver{
		Name: "wire", Version: ndiscore.ContractVersion, NewOptions: func() any { return new(wire) },
		New: func(name string, o any) (ndiscore.Adapter, error) { return o.(*wire), nil },
	})
	do(err)
	_ = h
	for i := range ports {
		w := &wire{name: fmt.Sprint("p", i), keep: true, mac: ndiscore.MAC{2, 0, 0, 0, 0, byte(i + 1)}}
		l.wires = append(l.wires, w)
		do(l.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: w.name, Driver: "wire", Options: w}))
	}
	var virtual ndiscore.Adapter = l.bridge
	if t, ok := t.(*testing.T); ok {
		virtual = ndistest.Verifier(verdicts{t}, virtual)
	}
	do(l.core.AddVirtual(ctx, "lan", virtual, nil))
	do(l.core.AddProtocol(ctx, l.bridge.Spec()))
	if withStation {
		l.above = &station{filter: ndiscore.FilterStation}
		do(l.core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "station", Protocol: l.above, Targets: []string{"lan"}}))
	}
	for _, w := range l.wires {
		do(l.core.Start(ctx, w.name, "test"))
	}
	do(l.core.Start(ctx, "lan", "test"))
	return l
}

func (l *lan) await(what string, cond func() bool) {
	l.t.Helper()
	ndistest.Await(l.t, what, cond)
}

// told returns the events so far that begin with what.
func (l *lan) told(what string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, e := range l.events {
		if strings.HasPrefix(e, what) {
			all = append(all, e)
		}
	}
	return all
}

// counters of one adapter, with the sum rule checked.
func (l *lan) counters(name string) ndiscore.Counters {
	l.t.Helper()
	all, err := l.core.Adapters(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, a := range all {
		if a.Name != name {
			continue
		}
		c := a.Counters
		sum := c.Forwarded + c.Delivered
		for _, n := range c.RxDropped {
			sum += n
		}
		if sum != c.RxFrames {
			l.t.Errorf("%s: %d frames received, %d accounted for: %+v", name, c.RxFrames, sum, c)
		}
		return c
	}
	l.t.Fatalf("no adapter %s", name)
	return ndiscore.Counters{}
}

// tick advances the clock once the keeper has done what it was asked for until
// now: of two looks that it is asked for it has begun the first afterwards, and
// ended that when the second begins.
func (l *lan) tick(d time.Duration) {
	l.t.Helper()
	for range 2 {
		select {
		case <-l.bridge.keeper.toForget(nil, false):
		case <-l.bridge.keeper.done: // it has ended
		}
	}
	l.clock.Jump(d)
}

func mac(n int) ndiscore.MAC {
	return ndiscore.MAC{0x02, 0xaa, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// frame is one of 60 bytes with a mark in its payload.
func frame(dst, src ndiscore.MAC, mark ...byte) []byte {
	f := make([]byte, 60)
	copy(f, dst[:])
	copy(f[6:], src[:])
	f[12], f[13] = 0x08, 0x00
	copy(f[14:], mark)
	return f
}
