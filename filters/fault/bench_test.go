package fault_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// free is the core as the filter sees it, at no cost.
type free struct{ *handle }

func (free) IndicateReceive(*ndiscore.Batch)                        {}
func (free) Send(b *ndiscore.Batch)                                 { clear(b.Status[:len(b.Frames)]) }
func (free) DropSend(*ndiscore.Worker, ndiscore.DropReason, uint64) {}

// sink is a device that takes everything at no cost.
type sink struct{ ndiscore.Adapter }

func (sink) Name() string           { return "sink" }
func (sink) Send(b *ndiscore.Batch) { clear(b.Status[:len(b.Frames)]) }

var benchFaults = []string{
	"drop chance=10%", "drop every=1000", "duplicate chance=1%", "corrupt chance=1%", "rate rate=100GB burst=1GiB", "delay delay=1ms",
}

// carry returns a function that sends one batch of n frames of size bytes
// through the faults in words.
func carry(t testing.TB, words string, n, size int) (once func()) {
	u := newUnit(t, strings.Fields(words))
	if err := u.f.Attach(t.Context(), free{u.handle}); err != nil {
		t.Fatal(err)
	}
	b := ndiscore.NewBatch(u.w)
	b.Borrowed = true
	for _, f := range numbered(0, n) {
		f.Segs = append(f.Segs, make([]byte, size-len(f.Head)))
		b.Append(f)
	}
	return func() {
		u.f.FilterSend(b)
		// The delay's goroutine runs beside it, or finds the line full.
		u.clock.Advance(time.Millisecond)
	}
}

// TestNoAllocation: nothing is allocated for a frame once the first have passed.
func TestNoAllocation(t *testing.T) {
	for _, words := range benchFaults {
		if strings.HasPrefix(words, "delay") {
			continue // its goroutine sets timers
		}
		once := carry(t, words, 64, 1514)
		for range 100 {
			once()
		}
		if n := testing.AllocsPerRun(300, once); n != 0 {
			t.Errorf("%s: %v allocations a batch", words, n)
		}
	}
}

// BenchmarkFaults is what a fault costs the frames that it does not hit, and
// those that it does.
func BenchmarkFaults(b *testing.B) {
	for _, words := range benchFaults {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/batch=%d", strings.ReplaceAll(words, " ", ","), n), func(b *testing.B) {
				once := carry(b, words, n, 1514)
				b.ReportAllocs()
				for b.Loop() {
					once()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/frame")
			})
		}
	}
}

// BenchmarkInterposer is what an interposed device costs as long as nothing is
// injected.
func BenchmarkInterposer(b *testing.B) {
	for _, interposed := range []bool{false, true} {
		b.Run(fmt.Sprint("interposed=", interposed), func(b *testing.B) {
			d := ndistest.Driver("sink", sink{})
			if interposed {
				d = fault.Interpose(d, fault.New(fault.Options{}))
			}
			a, err := d.New("sink", nil)
			if err != nil {
				b.Fatal(err)
			}
			w, err := ndiscore.New(ndiscore.Options{}).NewWorker("bench")
			if err != nil {
				b.Fatal(err)
			}
			batch := ndiscore.NewBatch(w)
			batch.Borrowed = true
			for _, f := range numbered(0, 64) {
				batch.Append(f)
			}
			b.ReportAllocs()
			for b.Loop() {
				a.Send(batch)
			}
		})
	}
}
