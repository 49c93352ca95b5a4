package ndiscore_test

import (
	"fmt"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// sink is an adapter that sends into nothing, so that what is measured is the
// core.
type sink struct{ *ndistest.Adapter }

func (s sink) Send(b *ndiscore.Batch) {
	for i := range b.Frames {
		b.Status[i] = ndiscore.DropNone
	}
	if !b.Borrowed {
		s.Handle().SendComplete(b)
	}
}

// pass is the cheapest filter there can be.
type pass struct{ *ndistest.Filter }

func (p pass) FilterReceive(b *ndiscore.Batch) { p.Handle().IndicateReceive(b) }
func (p pass) FilterSend(b *ndiscore.Batch)    { p.Handle().Send(b) }

// path is one way through the core: in at adapter "in", a protocol that sends
// everything out of "out".
func path(t testing.TB, kind string) (in *ndistest.Adapter, core *bench) {
	in = nic("in", ndistest.AdapterOptions{})
	out := sink{nic("out", ndistest.AdapterOptions{})}
	b := &bench{t: t, core: ndistest.NewCore(t, ndiscore.Options{Decider: sticky{}})}
	if _, err := b.core.RegisterDriver(ndistest.Driver("fake", in, out)); err != nil {
		t.Fatal(err)
	}
	p := ndistest.NewProtocol("P1", nil)
	to := "out"
	if kind == "team" {
		to = "wan"
	}
	var way *ndiscore.Binding
	p.OnReceive = func(_ *ndiscore.Binding, batch *ndiscore.Batch) {
		for _, f := range batch.Frames {
			f.Forward()
		}
		way.Send(batch)
	}
	b.protocol(p, "in", to)
	var filters []ndiscore.FilterSpec
	if kind == "filter" {
		filters = append(filters, ndiscore.FilterSpec{Name: "pass", Filter: pass{ndistest.NewFilter("f", nil)}})
	}
	b.add("in", filters...)
	b.add("out", filters...)
	b.start("in", "out")
	if kind == "team" {
		b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"out"}, MAC: macB}))
		b.start("wan")
		ndistest.Await(t, "active", func() bool { return b.active("wan") == "out" })
	}
	way = p.Binding(to)
	return in, b
}

// carry calls run on the receive goroutine of in, with a function that carries
// a batch of n frames through the core.
func carry(t testing.TB, in *ndistest.Adapter, n int, run func(once func())) {
	err := in.Do(func(w *ndiscore.Worker) {
		batch := ndiscore.NewBatch(w)
		batch.Borrowed = true
		pool := make([]ndiscore.Frame, n)
		raw := append(make([]byte, ndiscore.Headroom), frame(1)...)
		h := in.Handle()
		run(func() {
			batch.Reset()
			for i := range pool {
				pool[i].Reset(raw, ndiscore.Headroom, len(raw)-ndiscore.Headroom)
				batch.Append(&pool[i])
			}
			h.IndicateReceive(batch)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

var pathKinds = []string{"binding", "filter", "team"}

// TestDataPathDoesNotAllocate: the way from IndicateReceive to Send.
func TestDataPathDoesNotAllocate(t *testing.T) {
	for _, kind := range pathKinds {
		for _, n := range []int{1, ndiscore.BatchFrames} {
			t.Run(fmt.Sprintf("%s/%d", kind, n), func(t *testing.T) {
				in, b := path(t, kind)
				var allocs float64
				carry(t, in, n, func(once func()) { allocs = testing.AllocsPerRun(200, once) })
				if allocs != 0 {
					t.Errorf("%v allocations a batch", allocs)
				}
				c := b.counters("in")
				if c.Forwarded != c.RxFrames || c.RxFrames == 0 {
					t.Errorf("%+v", c)
				}
				if out := b.counters("out"); out.TxFrames != c.Forwarded {
					t.Errorf("forwarded %d, sent %d", c.Forwarded, out.TxFrames)
				}
			})
		}
	}
}

// BenchmarkPath measures the core alone: a batch of 60-byte frames from
// IndicateReceive through a protocol to the egress adapter's Send. ns/frame is
// what one frame costs.
func BenchmarkPath(b *testing.B) {
	for _, kind := range pathKinds {
		for _, n := range []int{1, ndiscore.BatchFrames} {
			b.Run(fmt.Sprintf("%s/batch=%d", kind, n), func(b *testing.B) {
				in, _ := path(b, kind)
				b.ReportAllocs()
				carry(b, in, n, func(once func()) {
					for b.Loop() {
						once()
					}
				})
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/frame")
			})
		}
	}
}
