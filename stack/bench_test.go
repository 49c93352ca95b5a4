package stack

import (
	"runtime"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// countWire takes everything and looks at nothing.
type countWire struct{ batches, frames uint64 }

func (w *countWire) Send(b *ndiscore.Batch) {
	w.batches++
	w.frames += uint64(len(b.Frames))
	clear(b.Status[:len(b.Frames)])
}

var benchFrames = []struct {
	name  string
	frame func() *ndiscore.Frame
}{
	{"64B", func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 22}) }},
	{"64B-v6", func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 2}) }},
	{"1500B", func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 1472}) }},
	{"64KiB", func() *ndiscore.Frame { return super(false, flow{ttl: 64, df: true, size: 65000}, 1460) }},
}

// BenchmarkCheck is the guards alone.
func BenchmarkCheck(b *testing.B) {
	for _, f := range benchFrames {
		b.Run(f.name, func(b *testing.B) {
			table, _ := testFIB(1500)
			fr := f.frame()
			b.ReportAllocs()
			for b.Loop() {
				if v := table.check(macA, fr); v.drop != 0 {
					b.Fatal(v.drop)
				}
			}
		})
	}
}

// BenchmarkPunt is what a frame costs the worker: guards, copy, queue; and
// taking it out again.
func BenchmarkPunt(b *testing.B) {
	for _, f := range benchFrames {
		b.Run(f.name, func(b *testing.B) {
			r, err := New(testOptions())
			if err != nil {
				b.Fatal(err)
			}
			table, _ := testFIB(1500)
			r.fib.Store(table)
			p := newPort(r.ifaces[0], &r.ifaces[0].config, newPlug("a", "a", nil, fixed(ndiscore.Attributes{MAC: macA, MTU: 1500})))
			batch := ndiscore.NewBatch(nil)
			for range 32 {
				batch.Append(f.frame())
			}
			var burst [puntBurst]punted
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += len(batch.Frames) {
				r.receive(p, batch)
				for n := r.queue.take(burst[:]); n > 0; n = r.queue.take(burst[:]) {
					for i := range burst[:n] {
						burst[i].pkt.DecRef()
					}
				}
			}
		})
	}
}

// BenchmarkForward is the whole way: worker, queue, feeder, netstack, endpoint.
// One of the two goroutines always waits for the other.
func BenchmarkForward(b *testing.B) {
	for _, f := range benchFrames {
		for _, n := range []int{1, 32} {
			name := f.name
			if n > 1 {
				name += "-batch"
			}
			b.Run(name, func(b *testing.B) {
				d := newBareRouter(b, testOptions(), 1500, 1500)
				w := &countWire{}
				d.b.gate.state.Store(gateClosed)
				d.b.wire = w
				d.b.gate.open()
				d.batch.Reset()
				for range n { // with those that wait, below the bound of bytes
					d.batch.Append(f.frame())
				}
				b.SetBytes(int64(f.frame().Len()))
				b.ReportAllocs()
				b.ResetTimer()
				for i := 0; i < b.N; i += n {
					for d.queue.waiting.Load() > 64 {
						runtime.Gosched()
					}
					d.receive(d.a, d.batch)
				}
				d.settle()
				b.StopTimer()
				s := d.Stats()
				if s["punt.forward.dropped"] != 0 || w.frames < uint64(b.N) {
					b.Fatalf("%d of %d came out, %d dropped", w.frames, b.N, s["punt.forward.dropped"])
				}
				b.ReportMetric(float64(w.frames)/float64(w.batches), "frames/send")
			})
		}
	}
}

// BenchmarkReroute is what a link change costs the feeder.
func BenchmarkReroute(b *testing.B) {
	d := newBareRouter(b, testOptions(), 1500, 1500)
	for b.Loop() {
		if err := d.do(b.Context(), d.reroute); err != nil {
			b.Fatal(err)
		}
	}
}
