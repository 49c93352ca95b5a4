package fault_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// rig is a core with two adapters whose driver is interposed; a protocol sends
// what either receives out of the other.
//
//	(wire) a ── protocol ── b (wire)
type rig struct {
	t     testing.TB
	core  *ndiscore.Core
	clock *ndistest.Clock // nil: the system's
	j     *fault.Injector
	p     *ndistest.Protocol
	a, b  *ndistest.Adapter
	ra    *resettable // a, as its driver made it
}

// resettable is a fake adapter that can be reset, with a device of its own.
type resettable struct {
	*ndistest.Adapter
	ndiscore.LowerDevice
	resets atomic.Int32
	hangs  atomic.Bool
}

func (r *resettable) Reset(context.Context) (bool, error) { r.resets.Add(1); return false, nil }
func (r *resettable) CheckForHang() bool                  { return r.hangs.Load() }

func newRig(t testing.TB, clock *ndistest.Clock, o fault.Options) *rig {
	t.Helper()
	r := &rig{t: t, clock: clock}
	co := ndiscore.Options{}
	if clock != nil {
		co.Clock, o.Clock = clock, clock
	}
	r.core = ndistest.NewCore(t, co)
	o.Report = r.core.Report
	r.j = fault.New(o)
	r.j.Use(r.core)
	r.a = ndistest.NewAdapter("a", ndistest.AdapterOptions{Device: true, Transmit: ndiscore.CapAll})
	r.b = ndistest.NewAdapter("b", ndistest.AdapterOptions{Transmit: ndiscore.CapAll})
	r.ra = &resettable{Adapter: r.a, LowerDevice: r.a.Contract().(ndiscore.LowerDevice)}
	if _, err := r.core.RegisterDriver(fault.Interpose(ndistest.VerifiedDriver(t, ndistest.Driver("fake", r.b)), r.j)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.core.RegisterDriver(fault.Interpose(ndistest.Driver("resettable", r.ra), r.j)); err != nil {
		t.Fatal(err)
	}
	r.p = ndistest.NewProtocol("P", nil)
	r.p.ForwardTo(map[string]string{"a": "b", "b": "a"})
	r.must(r.core.AddProtocol(r.ctx(), r.p.Spec("a", "b")))
	r.must(r.core.AddAdapter(r.ctx(), ndiscore.AdapterSpec{Name: "a", Driver: "resettable"}))
	r.must(r.core.AddAdapter(r.ctx(), ndiscore.AdapterSpec{Name: "b", Driver: "fake"}))
	r.must(r.core.Start(r.ctx(), "a", "test"))
	r.must(r.core.Start(r.ctx(), "b", "test"))
	t.Cleanup(func() { r.must(r.j.Close(context.Background())) })
	return r
}

func (r *rig) ctx() context.Context { return ndistest.Context(r.t) }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// inject begins a fault given in words.
func (r *rig) inject(kind string, words ...string) fault.Lease {
	r.t.Helper()
	s, err := fault.ParseSpec(kind, words...)
	r.must(err)
	l, err := r.j.Inject(r.ctx(), s)
	r.must(err)
	return l
}

func (r *rig) clear(id uint64) {
	r.t.Helper()
	n, err := r.j.Clear(r.ctx(), fault.Selection{ID: id}, "test")
	r.must(err)
	if n != 1 {
		r.t.Fatalf("%d faults cleared", n)
	}
}

// send has n frames arrive at a, which go to b.
func (r *rig) send(first, n int) {
	r.t.Helper()
	for i := range n {
		r.must(r.a.Inject(ndistest.Frame(r.b.MAC(), r.a.MAC(), uint32(first+i), 100)))
	}
}

// arrived are the numbers of the frames that left b.
func (r *rig) arrived() []int {
	var ns []int
	for _, f := range r.b.Sent() {
		if id, ok := ndistest.FrameID(f); ok {
			ns = append(ns, int(id))
		}
	}
	return ns
}

func (r *rig) info(name string) ndiscore.AdapterInfo {
	r.t.Helper()
	return ndistest.Info(r.t, r.core, name)
}

func (r *rig) filters(name string) (names []string) {
	for _, f := range r.info(name).Filters {
		names = append(names, f.Name)
	}
	return names
}

func (r *rig) events(what string) (events []ndiscore.Event) {
	all, _, _ := r.core.Events(0)
	return slices.DeleteFunc(all, func(e ndiscore.Event) bool { return e.What != what })
}

// balanced checks that each frame received had one fate.
func (r *rig) balanced(name string) {
	r.t.Helper()
	c := r.info(name).Counters
	sum := c.Forwarded + c.Delivered + c.RxHeld
	for _, n := range c.RxDropped {
		sum += n
	}
	if c.RxFrames != sum {
		r.t.Errorf("%s: %d frames received, %d with a fate: %+v", name, c.RxFrames, sum, c)
	}
}

// flood has frames arrive at a and b without pause until the function returned
// is called.
func (r *rig) flood() (end func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, x := range []struct{ in, out *ndistest.Adapter }{{r.a, r.b}, {r.b, r.a}} {
		wg.Go(func() { // ends with stop
			var frames [][]byte
			for i := range 16 {
				frames = append(frames, ndistest.Frame(x.out.MAC(), x.in.MAC(), uint32(i), 60+100*i))
			}
			for {
				select {
				case <-stop:
					return
				default:
					_ = x.in.Inject(frames...) // not running now: it will be
				}
			}
		})
	}
	return func() { close(stop); wg.Wait() }
}
