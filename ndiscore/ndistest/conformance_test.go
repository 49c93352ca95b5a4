package ndistest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The fakes keep the contract that the kit tests.
func TestFakeAdapter(t *testing.T) {
	for _, c := range []struct {
		name string
		o    AdapterOptions
	}{
		{"plain", AdapterOptions{}},
		{"kept", AdapterOptions{KeepReceives: true}},
		{"device", AdapterOptions{Device: true, MTU: 9000}},
		{"offloads", AdapterOptions{Device: true, Transmit: ndiscore.CapAll}},
		{"resets", AdapterOptions{Resets: true}},
		{"sleeps", AdapterOptions{Device: true, Resets: true, PowerAware: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			TestAdapter(t, func(*testing.T) Pair {
				a := NewAdapter("fake0", c.o)
				p := Pair{Driver: Driver("fake", a.Contract()), Name: "fake0", Peer: NewFakePeer(a)}
				p.SetLink = func(up bool) { a.SetLink(up, "the test says so") }
				p.SetMTU = func(mtu int) { a.Handle().IndicateStatus(ndiscore.AttributesChange{MTU: mtu, Why: "the test says so"}) }
				if c.o.Device {
					p.DeleteDevice, p.RestoreDevice = func() { a.Vanish("deleted") }, a.Appear
				}
				return p
			})
		})
	}
}

// reports collects what a Verifier has to say.
type reports struct {
	mu   sync.Mutex // guards said
	said []string
}

func (r *reports) Helper() {}

func (r *reports) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

// broken is a fake adapter with one fault.
type broken struct {
	*Adapter
	send    func(h ndiscore.AdapterHandle, b *ndiscore.Batch)
	paused  func(h ndiscore.AdapterHandle)
	halted  func(h ndiscore.AdapterHandle)
	restart func(h ndiscore.AdapterHandle)
	reset   func() error
}

func (b *broken) Reset(ctx context.Context) (bool, error) {
	if b.reset != nil {
		return false, b.reset()
	}
	return resetAdapter{b.Adapter}.Reset(ctx)
}

func (b *broken) Send(x *ndiscore.Batch) {
	if b.send != nil {
		b.send(b.Handle(), x)
		return
	}
	b.Adapter.Send(x)
}

func (b *broken) Restart(ctx context.Context) error {
	if b.restart != nil {
		b.restart(b.Handle())
	}
	return b.Adapter.Restart(ctx)
}

func (b *broken) Pause(ctx context.Context) {
	b.Adapter.Pause(ctx)
	if b.paused != nil {
		b.paused(b.Handle())
	}
}

// TestVerifierReports gives the Verifier an adapter for each thing that it is
// there to find.
func TestVerifierReports(t *testing.T) {
	one := func(w *ndiscore.Worker) *ndiscore.Batch {
		b := ndiscore.NewBatch(w)
		b.Borrowed = true
		f := new(ndiscore.Frame)
		f.Reset(Frame(ndiscore.Broadcast, peerMAC, 1, 60), 0, 60)
		b.Append(f)
		return b
	}
	for _, c := range []struct {
		name string
		want string
		make func(b *broken, stray *ndiscore.Worker)
	}{
		{"nothing", "", func(*broken, *ndiscore.Worker) {}},
		{"send complete twice", "a second time", func(b *broken, _ *ndiscore.Worker) {
			b.send = func(h ndiscore.AdapterHandle, x *ndiscore.Batch) { h.SendComplete(x); h.SendComplete(x) }
		}},
		{"send never complete", "were not completed", func(b *broken, _ *ndiscore.Worker) {
			b.send = func(ndiscore.AdapterHandle, *ndiscore.Batch) {}
		}},
		{"frames changed", "frames changed", func(b *broken, _ *ndiscore.Worker) {
			b.send = func(h ndiscore.AdapterHandle, x *ndiscore.Batch) { x.Frames[0].Head[20]++; h.SendComplete(x) }
		}},
		{"indication after halt", "IndicateReceive after Halt", func(b *broken, w *ndiscore.Worker) {
			b.halted = func(h ndiscore.AdapterHandle) { h.IndicateReceive(one(w)) }
		}},
		{"indication while pausing on a foreign worker", "a worker that is not the adapter's", func(b *broken, w *ndiscore.Worker) {
			b.paused = func(h ndiscore.AdapterHandle) { h.IndicateReceive(one(w)) }
		}},
		{"empty indication", "of 0 frames", func(b *broken, w *ndiscore.Worker) {
			b.restart = func(h ndiscore.AdapterHandle) {
				x := one(w)
				x.Reset()
				h.IndicateReceive(x)
			}
		}},
		{"worker left open", "still open after Halt", func(b *broken, _ *ndiscore.Worker) {
			b.restart = func(h ndiscore.AdapterHandle) { h.NewWorker(1) }
		}},
		{"status after halt", "IndicateStatus after Halt", func(b *broken, _ *ndiscore.Worker) {
			b.halted = func(h ndiscore.AdapterHandle) { h.IndicateStatus(ndiscore.LinkState{}) }
		}},
		{"batch never returned", "never returned", func(b *broken, _ *ndiscore.Worker) { b.opt.KeepReceives = true }},
		{"reset leaves sends", "Reset returned while 1", func(b *broken, _ *ndiscore.Worker) {
			b.opt.KeepSends = true
			b.reset = func() error { return nil }
		}},
		{"reset fails for no known reason", "neither soft nor hard", func(b *broken, _ *ndiscore.Worker) {
			b.reset = func() error { return errors.New("refused") }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r reports
			b := &broken{Adapter: NewAdapter("M", AdapterOptions{Forget: true})}
			core := NewCore(t, ndiscore.Options{CallLimit: time.Second})
			stray, err := core.NewWorker("stray")
			if err != nil {
				t.Fatal(err)
			}
			defer stray.Close()
			c.make(b, stray)
			if _, err := core.RegisterDriver(Driver("fake", Verifier(&r, b))); err != nil {
				t.Fatal(err)
			}
			p := NewProtocol("P", nil)
			p.Keep = true
			ctx := Context(t)
			for _, err := range []error{
				core.AddProtocol(ctx, p.Spec("M")), core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: "M", Driver: "fake"}), core.Start(ctx, "M", "test"),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			x := one(stray)
			x.Borrowed = false
			p.Binding("M").Send(x)
			if err := b.Inject(Frame(ndiscore.Broadcast, peerMAC, 2, 60)); err != nil {
				t.Fatal(err)
			}
			if b.reset != nil {
				_ = core.Reset(ctx, "M", "test")
			}
			b.CompleteSends()
			if err := core.Stop(ctx, "M", "test"); err != nil {
				t.Fatal(err)
			}
			if b.halted != nil {
				b.halted(b.Handle())
			}
			said := strings.Join(r.said, "\n")
			if c.want == "" && said != "" || !strings.Contains(said, c.want) {
				t.Errorf("want %q, got:\n%s", c.want, said)
			}
		})
	}
}

// The core sees those optional interfaces that an adapter has, and no others.
func TestVerifierInterfaces(t *testing.T) {
	for _, c := range []struct {
		o     AdapterOptions
		calls string
		reset error
	}{
		{AdapterOptions{}, "M.Init M.Restart", ndiscore.ErrNotSupported},
		{AdapterOptions{Device: true}, "M.StartDevice M.Init M.Restart", ndiscore.ErrNotSupported},
		{AdapterOptions{Resets: true}, "M.Init M.Restart M.Reset", nil},
		{AdapterOptions{Hangs: true}, "M.Init M.Restart M.Reset", nil},
		{AdapterOptions{Device: true, Resets: true}, "M.StartDevice M.Init M.Restart M.Reset", nil},
		{AdapterOptions{Device: true, Hangs: true}, "M.StartDevice M.Init M.Restart M.Reset", nil},
	} {
		var tr Trace
		c.o.Trace = &tr
		core, ctx := NewCore(t, ndiscore.Options{}), Context(t)
		if _, err := core.RegisterDriver(VerifiedDriver(t, Driver("fake", NewAdapter("M", c.o).Contract()))); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: "M", Driver: "fake"}), core.Start(ctx, "M", "test")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := core.Reset(ctx, "M", "test"); !errors.Is(err, c.reset) {
			t.Errorf("reset: %v", err)
		}
		if got := strings.Join(tr.Take(), " "); got != c.calls {
			t.Errorf("calls %q, want %q", got, c.calls)
		}
		if err := core.Remove(ctx, "M", "test"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerifiedProtocolReports does to a protocol what the core never does.
func TestVerifiedProtocolReports(t *testing.T) {
	var r reports
	core, ctx := NewCore(t, ndiscore.Options{}), Context(t)
	p := NewProtocol("P", nil)
	v := VerifiedProtocol(&r, p)
	if _, err := core.RegisterDriver(Driver("fake", NewAdapter("M", AdapterOptions{}))); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "P", Protocol: v, Targets: []string{"M"}}),
		core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: "M", Driver: "fake"}), core.Start(ctx, "M", "test"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b := p.Binding("M")
	said := func(want string, f func()) {
		t.Helper()
		r.said = nil
		f()
		if got := strings.Join(r.said, "\n"); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("want %q, got %q", want, got)
		}
	}
	batch := ndiscore.NewBatch(nil)
	batch.Borrowed = true
	said("", func() { v.Receive(b, batch) })
	said("Restart while running", func() { _ = v.Event(ctx, b, ndiscore.EventRestart) })
	said("and none was begun", func() { v.Status(b, ndiscore.ResetEnd{}) })
	said("", func() { v.Status(b, ndiscore.ResetStart{}) })
	said("a second time", func() { v.Status(b, ndiscore.ResetStart{}) })
	said("Unbind while running", func() { v.Unbind(ctx, b) })
	said("Receive while unbound", func() { v.Receive(b, batch) })
	said("and it is not bound", func() { v.Status(b, ndiscore.NetworkChange{}) })
	said("and it is not bound", func() { _ = v.Event(ctx, b, ndiscore.EventQueryPower) })
	said("Pause while unbound", func() { _ = v.Event(ctx, b, ndiscore.EventPause) })
}
