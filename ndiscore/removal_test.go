package ndiscore_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestC34RemoveFromDataPath(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	p.OnReceive = func(_ *ndiscore.Binding, batch *ndiscore.Batch) {
		if err := m.Remove("broken"); err != nil {
			t.Errorf("remove: %v", err)
		}
		if err := m.Remove("broken"); !errors.Is(err, ndiscore.ErrFailure) { // C-35
			t.Errorf("second remove: %v", err)
		}
		batch.DropAll(ndiscore.DropDeviceError)
	}
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	hold := m.Hold("Halt") // the halt blocks for as long as we like
	b.must(m.Inject(frame(1)))
	hold.Await(t)
	if s := b.state("M"); s != "paused" {
		t.Errorf("state %s", s)
	}
	if err := m.Remove("broken"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("remove while halting: %v", err)
	}
	hold.Release()
	b.awaitState("M", "halted")
	if tr.Count("M.Halt(DeviceFailed)") != 1 {
		t.Error(tr.Calls())
	}
	if err := m.Remove("broken"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("remove when halted: %v", err)
	}
}

func TestC35RemoveWhileInitializing(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	hold := m.Hold("Init")
	started := make(chan error, 1)
	go func() { started <- b.core.Start(b.ctx(), "M", "test") }() // ended below
	hold.Await(t)
	if err := m.Remove("x"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Error(err)
	}
	hold.Release()
	b.must(<-started)
	if s := b.state("M"); s != "running" {
		t.Error(s)
	}
}

func TestC70SurpriseRemoval(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, Device: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", &tr)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	tr.Await(t, "P1.Event(BindsComplete)")
	tr.Take()
	hold := p.Hold("Event(Pause)")
	m.Vanish("RTM_DELLINK")
	hold.Await(t)
	w := b.worker("test")
	if got := send(w, p.Binding("M"), true, frame(1)); got.Status[0] != ndiscore.DropSurpriseRemoved {
		t.Errorf("send: %s", got.Status[0])
	}
	if err := p.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}); !errors.Is(err, ndiscore.ErrNotAccepted) {
		t.Errorf("request: %v", err)
	}
	hold.Release()
	tr.Await(t, "M.AwaitDevice")
	want := []string{"M.PnP(SurpriseRemoved)", "P1.Event(M, Pause)", "M.Pause", "P1.Unbind(M)", "M.Halt(SurpriseRemoved)", "M.RemoveDevice", "M.AwaitDevice"}
	if d := cmp.Diff(want, tr.Take()); d != "" {
		t.Error(d)
	}
	m.Appear()
	b.awaitState("M", "running")
}

// The request that the adapter is working on ends at once, whatever the device,
// which is not there any more, still does about it.
func TestC70SurpriseRemovalEndsRequest(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	fake := nic("M", ndistest.AdapterOptions{Device: true})
	m := &stubborn{fake.Contract(), make(chan struct{}), make(chan struct{})}
	b.register(named("fake", "M", ndistest.Verifier(t, m)))
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	asked := later(func() error { r := queryVLAN; return bd.Request(b.ctx(), &r) })
	<-m.begun
	hold := p.Hold("Event(Pause)") // nothing but the removal itself has happened when it ends
	fake.Vanish("RTM_DELLINK")
	hold.Await(t)
	if err := <-asked; !errors.Is(err, ndiscore.ErrNotAccepted) {
		t.Errorf("the request under way: %v", err)
	}
	hold.Release()
	close(m.let)
	b.awaitState("M", "halted")
}

// That its device has vanished is said before that it sleeps.
func TestC70SurpriseRemovalAsleep(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, Device: true, PowerAware: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(b.core.Suspend(b.ctx(), "M", "test"))
	hold := m.Hold("PnP")
	m.Vanish("RTM_DELLINK")
	hold.Await(t)
	if got := send(b.worker("test"), p.Binding("M"), true, frame(1)); got.Status[0] != ndiscore.DropSurpriseRemoved {
		t.Errorf("send: %s", got.Status[0])
	}
	r := queryVLAN
	if err := p.Binding("M").Request(b.ctx(), &r); !errors.Is(err, ndiscore.ErrNotAccepted) {
		t.Errorf("request: %v", err)
	}
	hold.Release()
	tr.Await(t, "M.AwaitDevice")
}
