package ndiscore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// modules names the filter modules of an adapter, from the miniport up.
func (b *bench) modules(adapter string) (names []string) {
	for _, f := range ndistest.Info(b.t, b.core, adapter).Filters {
		names = append(names, f.Name)
	}
	return names
}

// A change of the chain that a stop overtakes is answered as it is: what was
// asked for holds when the adapter rests.
func TestChainChangedWhileStopping(t *testing.T) {
	for what, do := range map[string]func(*bench) error{
		"[F1 F2 F3]": func(b *bench) error {
			return b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: ndistest.NewFilter("M.F3", nil)}, -1, "test")
		},
		"[F2]":    func(b *bench) error { return b.core.RemoveFilter(b.ctx(), "M", "F1", "test") },
		"[F2 F1]": func(b *bench) error { return b.core.MoveFilter(b.ctx(), "M", "F1", 1, "test") },
	} {
		b, _, _, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
		hold := p1.Hold("Event(Pause)")
		changed := later(func() error { return do(b) })
		hold.Await(t)
		stopped := later(func() error { return b.core.Stop(b.ctx(), "M", "stop") })
		ndistest.Await(t, "the stop", func() bool { return ndistest.Info(t, b.core, "M").Cause == "stop" })
		hold.Release()
		b.must(<-stopped)
		if err := <-changed; err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := fmt.Sprint(b.modules("M")); got != what {
			t.Errorf("%s, want %s", got, what)
		}
		b.start("M")
		if got := fmt.Sprint(b.modules("M")); got != what || b.state("M") != "running" {
			t.Errorf("%s and %s, want %s", got, b.state("M"), what)
		}
	}
}

// Two moves at once are both made.
func TestMoveFiltersAtOnce(t *testing.T) {
	b, _, _, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	for _, n := range []string{"F3", "F4"} {
		b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: n, Filter: ndistest.NewFilter("M."+n, nil)}, -1, "test"))
	}
	hold := p1.Hold("Event(Pause)")
	first := later(func() error { return b.core.MoveFilter(b.ctx(), "M", "F4", 0, "test") })
	hold.Await(t)
	second := later(func() error { return b.core.MoveFilter(b.ctx(), "M", "F2", 3, "test") })
	ctx, cancel := context.WithCancel(b.ctx())
	cancel()
	_ = b.core.Settle(ctx, "M") // it is heard after the second
	hold.Release()
	b.must(<-first)
	b.must(<-second)
	b.settle("M")
	if got := fmt.Sprint(b.modules("M")); got != "[F4 F1 F3 F2]" && got != "[F4 F3 F1 F2]" {
		t.Error(got)
	}
}

// The caller of a restart who gives up does not leave the adapter paused.
func TestRestartGivenUp(t *testing.T) {
	b, _, _, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	hold := p1.Hold("Event(Pause)")
	ctx, cancel := context.WithCancel(b.ctx())
	restarted := later(func() error { return b.core.Restart(ctx, "M", "test") })
	hold.Await(t)
	cancel()
	if err := <-restarted; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	hold.Release()
	b.awaitState("M", "running")
	b.settle("M")
	if s := b.state("M"); s != "running" {
		t.Error(s)
	}
}

// An adapter that waits for its device can be stopped: it then stays down.
func TestStopWhileAwaiting(t *testing.T) {
	b, _, m, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{Device: true})
	m.Vanish("pulled")
	ndistest.Await(t, "waiting", func() bool { return ndistest.Info(t, b.core, "M").Waiting })
	if i := ndistest.Info(t, b.core, "M"); i.Retrying || i.Link != (ndiscore.LinkState{}) {
		t.Errorf("retrying %v, link %+v", i.Retrying, i.Link)
	}
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	if i := ndistest.Info(t, b.core, "M"); i.Waiting || i.Retrying {
		t.Error("it still waits")
	}
	m.Appear()
	b.settle("M")
	if s := b.state("M"); s != "halted" {
		t.Error(s)
	}
	if err := b.core.Stop(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("twice: %v", err)
	}
	b.start("M")
}

// A device that gave itself up is on its way down, and who starts it need not
// know when that is done. Who stops or removes it afterwards has the last word.
func TestStartWhileGoingDown(t *testing.T) {
	for _, last := range []string{"running", "halted", "gone"} {
		b, _, m, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{Device: true})
		hold := m.Hold("Halt")
		b.must(m.Handle().Remove("broken"))
		hold.Await(t)
		given, up := context.WithCancel(b.ctx())
		up()
		for range 2 { // asked for, and not waited for
			if err := b.core.Start(given, "M", "test"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		var then <-chan error
		switch last {
		case "running":
			then = later(func() error { return b.core.Start(b.ctx(), "M", "test") })
		case "halted":
			then = later(func() error { return b.core.Stop(b.ctx(), "M", "test") })
		case "gone":
			then = later(func() error { return b.core.Remove(b.ctx(), "M", "test") })
		}
		hold.Release()
		if err := <-then; err != nil && last != "running" { // that may have been too late: it runs
			t.Errorf("%s: %v", last, err)
		}
		if last == "gone" {
			infos, err := b.core.Adapters(b.ctx())
			b.must(err)
			if len(infos) > 0 {
				t.Errorf("still there: %+v", infos)
			}
			continue
		}
		b.awaitState("M", last)
		b.settle("M")
		if s := b.state("M"); s != last {
			t.Errorf("%s, want %s", s, last)
		}
	}
}

// What a miniport asked to be paused for ends with it.
func TestRequirePauseEndsWithHalt(t *testing.T) {
	b, _, m, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	b.must(m.Handle().RequirePause(b.ctx(), "the device is set up anew"))
	b.must(m.Remove("it cannot be"))
	b.awaitState("M", "halted")
	b.start("M")
	if s := b.state("M"); s != "running" {
		t.Error(s)
	}
}

// blocked does not return from Status until released.
type blocked struct {
	*ndistest.Protocol
	on, release chan struct{}
}

func (p *blocked) Status(b *ndiscore.Binding, s ndiscore.Status) {
	if _, ok := s.(ndiscore.OperChange); ok {
		select {
		case <-p.on:
			<-p.release
		default:
		}
	}
	p.Protocol.Status(b, s)
}

// A protocol that does not return from Status holds up nobody else.
func TestStatusThatBlocks(t *testing.T) {
	m, n := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m, n)
	p := &blocked{Protocol: ndistest.NewProtocol("P1", nil), on: make(chan struct{}), release: make(chan struct{})}
	b.must(b.core.AddProtocol(b.ctx(), ndiscore.ProtocolSpec{Name: "P1", Protocol: p, Targets: []string{"M"}}))
	b.protocol(ndistest.NewProtocol("P2", nil), "N")
	b.add("M")
	b.add("N")
	b.start("M", "N")
	close(p.on)
	defer close(p.release)
	m.SetLink(false, "carrier") // the core says OperChange
	b.must(b.core.Pause(b.ctx(), "N", "test"))
	b.must(b.core.Start(b.ctx(), "N", "test"))
	if s := b.state("N"); s != "running" {
		t.Error(s)
	}
	if len(b.events("adapter.fault", "M")) == 0 {
		t.Error("nobody was told")
	}
}

// eager is a filter that uses its handle when it should not.
type eager struct {
	h       ndiscore.FilterHandle
	restart func(ndiscore.FilterHandle)
}

func (f *eager) Attach(_ context.Context, h ndiscore.FilterHandle) error { f.h = h; return nil }
func (f *eager) Restart(context.Context) error                           { f.restart(f.h); return nil }
func (f *eager) Pause(context.Context)                                   {}
func (f *eager) Detach(context.Context)                                  {}

// A filter that passes frames on before it runs, or when it is gone, harms
// nobody, and they are counted.
func TestFilterHandleOutOfSeason(t *testing.T) {
	b, _, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	w := b.worker("test")
	batch := func() *ndiscore.Batch {
		x := ndiscore.NewBatch(w)
		x.Borrowed = true
		f := new(ndiscore.Frame)
		buf := make([]byte, ndiscore.Headroom+60)
		copy(buf[ndiscore.Headroom:], frame(1))
		f.Reset(buf, ndiscore.Headroom, 60)
		x.Append(f)
		return x
	}
	use := func(h ndiscore.FilterHandle) {
		h.IndicateReceive(batch())
		h.Send(batch())
		h.IndicateStatus(ndiscore.NetworkChange{Why: "test"})
	}
	f := &eager{restart: use}
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: f}, 1, "test"))
	b.must(b.core.RemoveFilter(b.ctx(), "M", "F3", "test"))
	received, statuses, sent := p1.Received(), len(p1.Statuses()), len(m.Sent())
	use(f.h)
	if p1.Received() != received || len(p1.Statuses()) != statuses || len(m.Sent()) != sent {
		t.Errorf("received %d, statuses %d, sent %d", p1.Received(), len(p1.Statuses()), len(m.Sent()))
	}
	if n := b.counters("M").TxDropped["paused"]; n == 0 {
		t.Errorf("nothing is counted: %v", b.counters("M").TxDropped)
	}
}

// Events name what was asked for, not what was asked for before it.
func TestEventsSayWhy(t *testing.T) {
	b, _, _, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	b.must(b.core.InsertFilter(b.ctx(), "M", ndiscore.FilterSpec{Name: "F3", Filter: ndistest.NewFilter("M.F3", nil)}, -1, "to look closer"))
	if ev := b.events("adapter.state", "M"); ev[len(ev)-1].Why != "to look closer" {
		t.Errorf("%+v", ev[len(ev)-1])
	}
	b.must(b.core.RemoveProtocol(b.ctx(), "P2"))
	if ev := b.events("binding.unbound", "M"); len(ev) != 1 || !contains(ev[0].Why, "leaves") {
		t.Errorf("%+v", ev)
	}
}

// A driver is unloaded when its last adapter is gone; one that is added then has
// to wait until it is registered again.
func TestAddWhileUnloading(t *testing.T) {
	b := newBench(t, ndiscore.Options{})
	gone, proceed := make(chan struct{}), make(chan struct{})
	d := ndistest.Driver("brief", nic("M", ndistest.AdapterOptions{}))
	d.Unload = func(h *ndiscore.DriverHandle) {
		<-proceed
		if err := h.Deregister(); err != nil {
			t.Error(err)
		}
		close(gone)
	}
	_, err := b.core.RegisterDriver(d)
	b.must(err)
	spec := ndiscore.AdapterSpec{Name: "M", Driver: "brief"}
	b.must(b.core.AddAdapter(b.ctx(), spec))
	b.must(b.core.Remove(b.ctx(), "M", "test"))
	if err := b.core.AddAdapter(b.ctx(), spec); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Error(err)
	}
	close(proceed)
	<-gone
}

// A driver whose New does not return holds up its caller, and nobody else.
func TestNewThatBlocks(t *testing.T) {
	b := newBench(t, ndiscore.Options{}, nic("M", ndistest.AdapterOptions{}))
	entered, release := make(chan struct{}), make(chan struct{})
	d := ndistest.Driver("slow", nic("N", ndistest.AdapterOptions{}))
	makeNIC := d.New
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		close(entered)
		<-release
		return makeNIC(name, options)
	}
	h, err := b.core.RegisterDriver(d)
	b.must(err)
	added := later(func() error { return b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "N", Driver: "slow"}) })
	<-entered
	b.add("M")
	b.start("M")
	if err := h.Deregister(); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("deregistered meanwhile: %v", err)
	}
	close(release)
	b.must(<-added)
	b.start("N")
}

// An adapter that waits for its device can be removed: nobody is bound who could
// mind.
func TestRemoveWhileAwaiting(t *testing.T) {
	b, _, m, _, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{Device: true})
	m.Vanish("pulled")
	ndistest.Await(t, "waiting", func() bool { return ndistest.Info(t, b.core, "M").Waiting })
	b.must(b.core.RemoveAfterQuery(b.ctx(), "M", "test", false))
	if err := b.core.Settle(b.ctx(), "M"); !errors.Is(err, ndiscore.ErrAdapterNotFound) {
		t.Error(err)
	}
}

// The handle of an adapter that is gone does nothing to the next one of its name.
func TestStaleHandle(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	h, bd := m.Handle(), p.Binding("M")
	b.must(b.core.Remove(b.ctx(), "M", "test"))
	b.add("M")
	b.must(b.core.InhibitBinds(b.ctx(), "M", "test"))
	b.start("M")
	h.AllowBinds()
	bd.RequestUnbind()
	if err := h.Promote(); !errors.Is(err, ndiscore.ErrFailure) {
		t.Error(err)
	}
	b.settle("M")
	if p.Binding("M") != nil {
		t.Error("bound, by the word of a stale handle")
	}
	b.core.AllowBinds("M")
	b.settle("M")
	if p.Binding("M") == nil {
		t.Error("not bound, by the word of a stale binding")
	}
}
