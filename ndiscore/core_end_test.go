package ndiscore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// A miniport call that never returns costs its own adapter and nobody else, and
// the core still closes and ends, within its limits.
func TestQuarantine(t *testing.T) {
	const limit = 200 * time.Millisecond
	for _, call := range []string{"Init", "Restart", "Pause", "Halt"} {
		t.Run(call, func(t *testing.T) {
			leakFree(t)
			m, n := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{})
			core := ndiscore.New(ndiscore.Options{CallLimit: limit})
			run, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- core.Run(run) }() // ended below
			b := &bench{t: t, core: core}
			_, err := core.RegisterDriver(ndistest.Driver("fake", m, n))
			b.must(err)
			p := ndistest.NewProtocol("P1", nil)
			b.protocol(p, "M", "N")
			b.add("M")
			b.add("N")
			hold := m.Hold(call)
			defer hold.Release()
			err = core.Start(b.ctx(), "M", "test")
			if call == "Pause" || call == "Halt" {
				b.must(err)
				err = core.Stop(b.ctx(), "M", "test")
			}
			if !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("%s: %v", call, err)
			}
			if err := core.Start(b.ctx(), "M", "again"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("start: %v", err)
			}
			if err := core.Remove(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("remove: %v", err)
			}
			b.start("N")
			b.must(n.Inject(frame(1)))
			if p.Received() != 1 {
				t.Error("N does not work")
			}
			if err := core.Close(b.ctx(), "test"); !errors.Is(err, ndiscore.ErrQuarantined) {
				t.Errorf("close: %v", err)
			}
			cancel()
			select {
			case <-ended:
			case <-time.After(20 * limit):
				t.Error("Run did not end")
			}
			hold.Release()
			if call == "Restart" { // it starts its receive goroutine now
				ndistest.Await(t, "the late Restart", func() bool { return m.Do(func(*ndiscore.Worker) {}) == nil })
			}
			m.Abandon()
		})
	}
}

// Run ends though a miniport call hangs, and whoever waits is told.
func TestRunEndsWithCallInProgress(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	core := ndiscore.New(ndiscore.Options{CallLimit: 200 * time.Millisecond})
	run, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- core.Run(run) }() // ended below
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m))
	b.must(err)
	b.add("M")
	hold := m.Hold("Init")
	started := make(chan error, 1)
	go func() { started <- core.Start(b.ctx(), "M", "test") }() // ended below
	hold.Await(t)
	cancel()
	if err := <-started; !errors.Is(err, ndiscore.ErrStopped) {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("Run did not end")
	}
	hold.Release()
	if err := core.Start(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrStopped) {
		t.Error(err)
	}
}

func TestShutdownerAtEndOfRun(t *testing.T) {
	m := &shutdowner{Adapter: nic("M", ndistest.AdapterOptions{})}
	core := ndiscore.New(ndiscore.Options{})
	run, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- core.Run(run) }() // ended below
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", ndistest.Verifier(t, m)))
	b.must(err)
	b.add("M")
	b.start("M")
	cancel()
	<-ended
	if m.shut.Load() != 1 {
		t.Errorf("%d shutdowns", m.shut.Load())
	}
	m.Abandon()
}

type shutdowner struct {
	*ndistest.Adapter
	shut atomic.Int32
}

func (s *shutdowner) Shutdown() { s.shut.Add(1) }

// Beyond MaxWorkers an adapter is refused with a reason, not handed nothing.
func TestWorkersExhausted(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	var all []*ndiscore.Worker
	for i := range ndiscore.MaxWorkers {
		w, err := b.core.NewWorker(fmt.Sprint("w", i))
		b.must(err)
		all = append(all, w)
	}
	if _, err := b.core.NewWorker("one more"); !errors.Is(err, ndiscore.ErrResources) || !strings.Contains(err.Error(), "256") {
		t.Errorf("%v", err)
	}
	err := b.core.Start(b.ctx(), "M", "test")
	if !errors.Is(err, ndiscore.ErrResources) {
		t.Errorf("start: %v", err)
	}
	if s := b.state("M"); s != "halted" {
		t.Errorf("state %s", s)
	}
	for _, w := range all {
		w.Close()
	}
	b.start("M")
	b.must(m.Inject(frame(1)))
	if p.Received() != 1 {
		t.Error("does not work afterwards")
	}
}

// The team's virtual adapter goes while members still fail over below it.
func TestTeamRemovedWhileMembersFail(t *testing.T) {
	a, c := nic("up0", ndistest.AdapterOptions{}), nic("up1", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, a, c)
	b.add("up0")
	b.add("up1")
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, MAC: macA}))
	b.start("up0", "up1", "wan")
	b.must(b.core.Remove(b.ctx(), "wan", "test"))
	a.SetLink(false, "carrier")
	ndistest.Await(t, "link event", func() bool { return len(b.events("link", "up0")) > 0 })
	if s := b.state("up1"); s != "running" {
		t.Error(s)
	}
}

func TestC35RemoveTwiceIsOneHalt(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	b.start("M")
	var ok atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if m.Remove("x") == nil {
				ok.Add(1)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 {
		t.Errorf("%d removals were accepted", ok.Load())
	}
	b.awaitState("M", "halted")
	if tr.Count("M.Halt(DeviceFailed)") != 1 {
		t.Error(tr.Calls())
	}
}

// Protocols come while adapters run, and an adapter added before its protocol
// is offered to it.
func TestProtocolAddedLate(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	b.start("M")
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	ndistest.Await(t, "bound", func() bool { bd := p.Binding("M"); return bd != nil && bd.Usable() })
	b.must(m.Inject(frame(1)))
	if p.Received() != 1 {
		t.Error("not received")
	}
}

// A link that changes just as Initialize returns: the control side ends up
// with the newest, whichever news it gets first.
func TestLinkChangesDuringStart(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{Down: true})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	for i := range 300 {
		var wg sync.WaitGroup
		done := make(chan struct{})
		wg.Go(func() { // ended below
			for up := true; ; up = !up {
				select {
				case <-done:
					m.SetLink(i%2 == 0, "last")
					return
				default:
					m.SetLink(up, "flap")
				}
			}
		})
		b.start("M")
		close(done)
		wg.Wait()
		ndistest.Await(t, "the last link", func() bool { return ndistest.Info(t, b.core, "M").Link.Connected() == (i%2 == 0) })
		b.must(b.core.Stop(b.ctx(), "M", "test"))
	}
}
