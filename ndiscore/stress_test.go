package ndiscore_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

var stressFor = flag.Duration("stress", 2*time.Second, "how long TestStress runs")

// TestStress lets full traffic flow between a LAN adapter, a plain one and a
// team, while everything that the control side can do happens to them. What
// must hold: the contract (Verifier), one fate per frame, nobody waits for
// ever, no goroutine stays.
//
//	lan0 --- P1 (forwards) --- wan = team(up0, up1, up2)
//	         P2 (keeps)   --- solo, kept batches, one filter
//
// Impatient: nobody waits for a worker that is elsewhere, as if it were stuck.
func TestStress(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	t.Run("patient", func(t *testing.T) { stress(t, 0) })
	t.Run("impatient", func(t *testing.T) { stress(t, time.Nanosecond) })
}

func stress(t *testing.T, patience time.Duration) {
	lan := nic("lan0", ndistest.AdapterOptions{Forget: true, Hangs: true})
	solo := nic("solo", ndistest.AdapterOptions{Forget: true, KeepReceives: true, Device: true, Resets: true, PowerAware: true})
	ups := []*ndistest.Adapter{
		nic("up0", ndistest.AdapterOptions{Forget: true, Device: true, Hangs: true, PowerAware: true, NoPause: true}),
		nic("up1", ndistest.AdapterOptions{Forget: true}),
		nic("up2", ndistest.AdapterOptions{Forget: true, MTU: 1000, Device: true, Resets: true}),
	}
	all := append([]*ndistest.Adapter{lan, solo}, ups...)
	b := newBench(t, ndiscore.Options{Decider: sticky{}, CallLimit: 15 * time.Second}, all...)
	if patience > 0 {
		ndiscore.SetPatience(b.core, patience)
	}
	p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
	p1.ForwardTo(map[string]string{"lan0": "wan", "wan": "lan0"})
	var keep struct {
		sync.Mutex
		held []func()
	}
	release := func() {
		keep.Lock()
		held := keep.held
		keep.held = nil
		keep.Unlock()
		for _, giveBack := range held {
			giveBack()
		}
	}
	p2.OnReceive = func(bd *ndiscore.Binding, batch *ndiscore.Batch) {
		for _, f := range batch.Frames {
			f.Deliver()
		}
		if !batch.Borrowed { // to be returned by another goroutine, later
			keep.Lock()
			keep.held = append(keep.held, func() { bd.Return(batch) })
			keep.Unlock()
		}
	}
	p2.Filter = ndiscore.FilterPromiscuous
	b.verified(p1, "lan0", "wan")
	b.verified(p2, "solo", "up0")
	filter := func() ndiscore.FilterSpec {
		f := ndistest.NewFilter("f", nil)
		f.DropReceived, f.DropSent, f.Report = 7, 11, t
		return ndiscore.FilterSpec{Name: "f", Filter: f}
	}
	b.add("lan0", filter())
	b.add("solo")
	for _, u := range ups {
		b.add(u.Name())
	}
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1", "up2"}, MAC: macB}))
	for _, n := range []string{"lan0", "solo", "up0", "up1", "up2", "wan"} {
		b.start(n)
	}

	ctx, cancel := context.WithTimeout(context.Background(), *stressFor)
	defer cancel()
	var wg sync.WaitGroup
	var injected, sent, ops atomic.Uint64

	// Traffic: off the wire of each adapter, and from a worker of its own.
	for i, a := range all {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for ctx.Err() == nil {
				fs := make([][]byte, 1+r.IntN(ndiscore.BatchFrames))
				for k := range fs {
					if r.IntN(20) == 0 {
						fs[k] = make([]byte, r.IntN(14))
					} else {
						fs[k] = ndistest.Frame(macB, macA, r.Uint32(), 60+r.IntN(1400))
					}
				}
				if a.Inject(fs...) == nil {
					injected.Add(uint64(len(fs)))
				} else {
					time.Sleep(time.Millisecond) // it does not run now
				}
			}
		})
	}
	wg.Go(func() {
		w, err := b.core.NewWorker("sender")
		if err != nil {
			t.Error(err)
			return
		}
		defer w.Close()
		for n := 0; ctx.Err() == nil; n++ {
			if bd := p1.Binding("wan"); bd != nil {
				send(w, bd, n%2 == 0, frame(n), frame(n+1))
				sent.Add(2)
			}
		}
	})
	// Returns what P2 keeps, for as long as anybody may wait for it: a pause
	// that began before the end ends only when the last batch is back.
	var keeper sync.WaitGroup
	calm := make(chan struct{})
	keeper.Go(func() {
		tick := time.NewTicker(50 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-calm:
				release()
				return
			case <-tick.C:
				release()
			}
		}
	})

	// Trouble. An operation may be refused; it must come back.
	trouble := func(seed uint64, f func(r *rand.Rand)) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 9))
			for ctx.Err() == nil {
				f(r)
				ops.Add(1)
				time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
			}
		})
	}
	bounded := func(what string, f func(context.Context) error) {
		c, done := context.WithTimeout(context.Background(), 20*time.Second)
		defer done()
		_ = f(c)
		if c.Err() != nil {
			t.Errorf("%s did not come back", what)
		}
	}
	for i, a := range all {
		trouble(uint64(i), func(r *rand.Rand) {
			n := a.Name()
			switch r.IntN(14) {
			case 0:
				bounded("pause "+n, func(c context.Context) error { return b.core.Pause(c, n, "stress") })
			case 1, 2, 3:
				bounded("start "+n, func(c context.Context) error { return b.core.Start(c, n, "stress") })
			case 4:
				bounded("stop "+n, func(c context.Context) error { return b.core.Stop(c, n, "stress") })
			case 5:
				if a != lan && r.IntN(3) == 0 {
					bounded("remove "+n, func(c context.Context) error { return b.core.Remove(c, n, "stress") })
					spec := ndiscore.AdapterSpec{Name: n, Driver: "fake"}
					if r.IntN(2) == 0 {
						spec.Filters = append(spec.Filters, filter())
					}
					bounded("add "+n, func(c context.Context) error { return b.core.AddAdapter(c, spec) })
				}
			case 6:
				bounded("oid "+n, func(c context.Context) error {
					if bd := p1.Binding("lan0"); bd != nil {
						return bd.Request(c, &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery})
					}
					return nil
				})
			case 7:
				bounded("list", func(c context.Context) error { _, err := b.core.Adapters(c); return err })
			case 8:
				bounded("suspend "+n, func(c context.Context) error { return b.core.Suspend(c, n, "stress") })
				bounded("resume "+n, func(c context.Context) error { return b.core.Resume(c, n, "stress") })
			case 9:
				if r.IntN(20) == 0 { // the fifth within a minute takes the device away
					bounded("reset "+n, func(c context.Context) error { return b.core.Reset(c, n, "stress") })
				}
			case 10, 11:
				f := filter()
				f.Name, f.Mandatory = "g", r.IntN(3) == 0
				at := r.IntN(3)
				bounded("insert a filter into "+n, func(c context.Context) error { return b.core.InsertFilter(c, n, f, at, "stress") })
			case 12:
				bounded("remove a filter of "+n, func(c context.Context) error { return b.core.RemoveFilter(c, n, "g", "stress") })
			case 13:
				at := r.IntN(3)
				bounded("move a filter of "+n, func(c context.Context) error { return b.core.MoveFilter(c, n, "f", at, "stress") })
			}
		})
	}
	for i, u := range ups { // from the data path
		trouble(uint64(100+i), func(r *rand.Rand) {
			switch r.IntN(10) {
			case 0:
				_ = u.Do(func(*ndiscore.Worker) { _ = u.Remove("stress") })
			case 1:
				_ = u.Do(func(*ndiscore.Worker) { u.Vanish("stress") })
				u.Appear()
			default:
				up := r.IntN(2) == 0
				_ = u.Do(func(*ndiscore.Worker) { u.SetLink(up, "stress") })
			}
		})
	}
	trouble(200, func(r *rand.Rand) {
		m := ups[r.IntN(len(ups))].Name()
		bounded("promote", func(c context.Context) error { return b.core.Promote(c, "wan", m) })
		targets := [][]string{{"solo", "up0"}, {"solo"}, {"up0", "lan0"}}[r.IntN(3)]
		bounded("set targets", func(c context.Context) error { return b.core.SetTargets(c, "P2", targets) })
		if bd := p2.Binding("up0"); bd != nil && r.IntN(4) == 0 {
			bd.RequestUnbind()
			bounded("reenumerate", func(c context.Context) error { return b.core.ReenumerateBindings(c, "P2") })
		}
	})
	wg.Wait()
	close(calm)
	keeper.Wait()

	// At rest everything adds up, and everything still works.
	for _, a := range all {
		a.SetLink(true, "calm") // what has halted ignores it
		switch b.state(a.Name()) {
		case "running":
		default:
			ndistest.Await(t, a.Name()+" runs", func() bool {
				_ = b.core.Resume(b.ctx(), a.Name(), "calm")
				_ = b.core.Start(b.ctx(), a.Name(), "calm")
				return b.state(a.Name()) == "running"
			})
		}
	}
	ndistest.Await(t, "an active member", func() bool { return b.active("wan") != "" })
	w := b.worker("calm")
	ndistest.Await(t, "a frame through the team", func() bool {
		return send(w, p1.Binding("wan"), true, frame(1)).Status[0] == ndiscore.DropNone
	})
	infos, err := b.core.Adapters(b.ctx())
	b.must(err)
	var rx uint64
	for _, i := range infos {
		checkSums(t, i)
		rx += i.Counters.RxFrames
		if i.Stuck {
			t.Errorf("%s is quarantined", i.Name)
		}
	}
	for _, e := range b.events("adapter.orphaned", "solo") {
		t.Errorf("%+v", e)
	}
	t.Logf("%d frames injected, %d sent, %d operations", injected.Load(), sent.Load(), ops.Load())
	if injected.Load() == 0 || rx == 0 {
		t.Error("no traffic")
	}
}
