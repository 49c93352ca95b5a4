package ndiscore_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

var (
	systemFor  = flag.Duration("model.for", 1500*time.Millisecond, "how long TestC91EverySendCompletesOnce runs")
	systemSeed = flag.Uint64("model.seed", 0, "what its operations are drawn from; 0: the time")
)

// onceProtocol notes how often each batch came back.
type onceProtocol struct {
	*ndistest.Protocol
	mu    sync.Mutex // guards all below
	taken map[*ndiscore.Batch]int
}

func (o *onceProtocol) SendComplete(_ *ndiscore.Binding, b *ndiscore.Batch) {
	o.mu.Lock()
	o.taken[b]++
	o.mu.Unlock()
}

// C-91: the real core, with fakes that keep what they are sent and what they
// indicate, and every operation in a random order, several at once. Everything
// that was handed to Send comes back once; every operation comes back; at the
// end everything runs; and nobody breaks the contract.
func TestC91EverySendCompletesOnce(t *testing.T) {
	seed := *systemSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (-model.seed)", seed)
	ms := []*ndistest.Adapter{
		nic("m0", ndistest.AdapterOptions{KeepSends: true, KeepReceives: true, Device: true, Hangs: true, PowerAware: true, MaxMulticast: 4, Forget: true}),
		nic("m1", ndistest.AdapterOptions{KeepSends: true, KeepReceives: true, Forget: true}),
		nic("m2", ndistest.AdapterOptions{KeepSends: true, Device: true, Resets: true, PowerAware: true, NoPause: true, Forget: true}),
	}
	b := newBench(t, ndiscore.Options{CallLimit: 15 * time.Second}, ms...)
	p := &onceProtocol{Protocol: ndistest.NewProtocol("P1", nil), taken: map[*ndiscore.Batch]int{}}
	p.Keep, p.Protocol.Forget = true, true
	names := []string{"m0", "m1", "m2"}
	b.must(b.core.AddProtocol(b.ctx(), ndiscore.ProtocolSpec{Name: "P1", Protocol: ndistest.VerifiedProtocol(t, p), Targets: names}))
	q := ndistest.NewProtocol("P2", nil)
	q.Forget = true
	b.verified(q, names...)
	filter := func(n string) ndiscore.FilterSpec {
		f := ndistest.NewEventFilter(n, nil)
		f.Report, f.DropReceived, f.DropSent = t, 5, 7
		return ndiscore.FilterSpec{Name: n, Filter: f}
	}
	for _, n := range names {
		b.add(n, filter("f"))
		b.start(n)
	}

	ctx, cancel := context.WithTimeout(context.Background(), *systemFor)
	defer cancel()
	var users, keeper sync.WaitGroup
	for i := range 2 { // senders, each with its worker, and what arrives
		users.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			w, err := b.core.NewWorker(fmt.Sprint("sender", i))
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			for ctx.Err() == nil {
				m := ms[r.IntN(len(ms))]
				_ = m.Inject(frame(r.IntN(100)), frame(r.IntN(100)))
				bd := p.Binding(m.Name())
				if bd == nil {
					continue
				}
				x := ndiscore.NewBatch(w)
				f := new(ndiscore.Frame)
				f.Reset(frame(1), 0, 60)
				x.Append(f)
				x.CancelID = uint64(1 + r.IntN(3))
				p.mu.Lock()
				p.taken[x] = 0
				p.mu.Unlock()
				bd.Send(x)
				if r.IntN(50) == 0 {
					bd.CancelSend(uint64(1 + r.IntN(3)))
				}
			}
		})
	}
	calm := make(chan struct{})
	keeper.Go(func() { // completes and returns, until nobody waits for it any more
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-calm:
				return
			case <-tick.C:
				for _, m := range ms {
					m.CompleteSends()
				}
				p.ReturnKept()
				q.ReturnKept()
			}
		}
	})
	ops := func(r *rand.Rand) (string, func(context.Context) error) {
		m := ms[r.IntN(len(ms))]
		n := m.Name()
		core := b.core
		all := []struct {
			what string
			f    func(context.Context) error
		}{
			{"start", func(c context.Context) error { return core.Start(c, n, "test") }},
			{"start", func(c context.Context) error { return core.Start(c, n, "test") }},
			{"restart", func(c context.Context) error { return core.Restart(c, n, "test") }},
			{"pause", func(c context.Context) error { return core.Pause(c, n, "test") }},
			{"stop", func(c context.Context) error { return core.Stop(c, n, "test") }},
			{"suspend", func(c context.Context) error { return core.Suspend(c, n, "test") }},
			{"resume", func(c context.Context) error { return core.Resume(c, n, "test") }},
			{"resume", func(c context.Context) error { return core.Resume(c, n, "test") }},
			{"query", func(c context.Context) error { return core.QueryRemove(c, n, "test") }},
			{"cancel", func(c context.Context) error { return core.CancelRemove(c, n, "test") }},
			{"inhibit", func(c context.Context) error {
				defer core.AllowBinds(n)
				return core.InhibitBinds(c, n, "test")
			}},
			{"insert", func(c context.Context) error {
				f := filter("g")
				f.Mandatory = r.IntN(2) == 0
				return core.InsertFilter(c, n, f, r.IntN(2), "test")
			}},
			{"remove filter", func(c context.Context) error { return core.RemoveFilter(c, n, "g", "test") }},
			{"move filter", func(c context.Context) error { return core.MoveFilter(c, n, "f", r.IntN(2), "test") }},
			{"targets", func(c context.Context) error { return core.SetTargets(c, "P2", names[r.IntN(len(names)+1):]) }},
			{"reenumerate", func(c context.Context) error { return core.ReenumerateBindings(c, "P2") }},
			{"link", func(context.Context) error { m.SetLink(r.IntN(2) == 0, "test"); return nil }},
			{"request", func(c context.Context) error {
				if bd := q.Binding(n); bd != nil {
					x := queryVLAN
					return bd.Request(c, &x)
				}
				return nil
			}},
			{"multicast", func(c context.Context) error {
				if bd := q.Binding(n); bd != nil {
					return bd.SetMulticast(c, []ndiscore.MAC{{1, 0, 0x5e, 0, 0, byte(r.IntN(8))}})
				}
				return nil
			}},
			{"unbind", func(context.Context) error {
				if bd := q.Binding(n); bd != nil {
					bd.RequestUnbind()
				}
				return nil
			}},
			{"rare", func(c context.Context) error {
				switch r.IntN(5) {
				case 0:
					m.Hang()
					return core.Reset(c, n, "test")
				case 1:
					if h := m.Handle(); h != nil {
						_ = m.Remove("test")
					}
				case 2:
					m.Vanish("test")
					m.Appear()
				case 3:
					if err := core.Remove(c, n, "test"); err != nil {
						return err
					}
					return core.AddAdapter(c, ndiscore.AdapterSpec{Name: n, Driver: "fake", Filters: []ndiscore.FilterSpec{filter("f")}})
				case 4:
					if h := m.Handle(); h != nil {
						defer h.AllowStart()
						return h.RequirePause(c, "test")
					}
				}
				return nil
			}},
		}
		o := all[r.IntN(len(all))]
		return o.what + " " + n, o.f
	}
	count := make(chan int, 3)
	for i := range 3 {
		users.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+i)))
			n := 0
			for ; ctx.Err() == nil; n++ {
				what, f := ops(r)
				c, done := context.WithTimeout(context.Background(), 20*time.Second)
				if err := f(c); errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s did not come back", what)
				}
				done()
			}
			count <- n
		})
	}
	users.Wait()

	for _, m := range ms { // everything comes to rest, and works
		n := m.Name()
		m.Appear()
		ndistest.Await(t, n+" runs", func() bool {
			b.core.AllowBinds(n)
			_ = b.core.CancelRemove(b.ctx(), n, "calm")
			_ = b.core.Resume(b.ctx(), n, "calm")
			if err := b.core.Start(b.ctx(), n, "calm"); errors.Is(err, ndiscore.ErrAdapterNotFound) {
				b.add(n)
			}
			return b.state(n) == "running" && p.Binding(n) != nil
		})
		b.settle(n)
		b.must(m.Inject(frame(1)))
		checkSums(t, ndistest.Info(t, b.core, n))
		b.must(b.core.Remove(b.ctx(), n, "end"))
	}
	close(calm)
	keeper.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	wrong := 0
	for _, times := range p.taken {
		if times != 1 {
			wrong++
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d batches did not come back exactly once", wrong, len(p.taken))
	}
	t.Logf("%d batches, %d operations", len(p.taken), <-count+<-count+<-count)
}
