package nat

import (
	"fmt"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// benchFrames are n frames, and what puts the headers of one back.
func benchFrames(n int, f func(i int) pkt) (frames []*ndiscore.Frame, restore func(i int)) {
	orig := make([][]byte, n)
	for i := range n {
		p := f(i)
		frames = append(frames, p.frame())
		orig[i] = p.frame().Bytes(nil)
	}
	return frames, func(i int) { copy(frames[i].Head, orig[i][:min(len(orig[i]), 80)]) }
}

// BenchmarkHit is a packet of a known flow: out in batches of 32, and in.
func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1, 50000} {
		for _, v6 := range []bool{false, true} {
			c, s, p := client4, server4, pub4
			if v6 {
				c, s, p = client6, server6, pub6
			}
			w := newWorld(b, Limits{}, testConfig())
			mk := func(i int) pkt {
				q := tcp(ap(c, uint16(1+i%60000)), ap(s, 443), flagACK)
				q.size = 1000
				return q
			}
			frames, restore := benchFrames(max(n, 32), func(i int) pkt { return mk(i % n) })
			var why [ndiscore.BatchFrames]ndiscore.DropReason
			for i := range frames {
				w.wan.Out(frames[i:i+1], why[:])
			}
			b.Run(fmt.Sprintf("out/%d/v6=%v", n, v6), func(b *testing.B) {
				b.ReportAllocs()
				at := 0
				for i := 0; i < b.N; i += 32 {
					if at += 32; at+32 > len(frames) {
						at = 0
					}
					for k := range 32 {
						restore(at + k)
					}
					w.wan.Out(frames[at:at+32], why[:])
				}
			})
			back, _ := benchFrames(max(n, 32), func(i int) pkt {
				q := tcp(ap(s, 443), ap(p, uint16(1+i%n%60000)), flagACK)
				q.size = 1000
				return q
			})
			b.Run(fmt.Sprintf("in/%d/v6=%v", n, v6), func(b *testing.B) {
				b.ReportAllocs()
				x := new(Copy)
				at := 0
				for b.Loop() {
					if at++; at == len(back) {
						at = 0
					}
					if g, _ := w.wan.In(back[at], w.wan, x); g == back[at] {
						b.Fatal("no flow")
					}
				}
			})
		}
	}
}

// BenchmarkNewFlow makes flows: each to another destination, and to one whose
// ports are nearly all in use.
func BenchmarkNewFlow(b *testing.B) {
	s := ap(server4, 53)
	for _, busy := range []int{0, 65000} {
		b.Run(fmt.Sprintf("busy=%d", busy), func(b *testing.B) {
			w := newWorld(b, Limits{}, testConfig())
			for i := range busy {
				w.out(udp(ap(nthClient(i), 5000), s).frame())
			}
			frames, restore := benchFrames(1, func(i int) pkt { return udp(ap(client4, 5000), s) })
			var why [1]ndiscore.DropReason
			b.ReportAllocs()
			for b.Loop() {
				restore(0)
				w.wan.Out(frames, why[:])
				k := udpKey(w)
				if n := w.find(&k); n != nil {
					w.remove(n.flow)
				} else {
					b.Fatal(why[0])
				}
			}
		})
	}
}

func udpKey(w *world) tuple {
	return tuple{src: numberOf(client4), dst: numberOf(server4), sport: 5000, dport: 53, edge: w.wan.id, proto: protoUDP, side: sideOut}
}

// BenchmarkRefused is what it costs to refuse a flow: all ports to its destination
// are in use, or all flows, by connections or by those that give way.
func BenchmarkRefused(b *testing.B) {
	b.Run("ports", func(b *testing.B) {
		w := newWorld(b, Limits{Flows: 70000}, testConfig())
		s := ap(server4, 53)
		for i := range 65536 - lowPort {
			w.out(udp(ap(nthClient(i), 5000), s).frame())
		}
		refuse(b, w, udp(ap(client4, 5000), s), ndiscore.DropNATFull)
	})
	b.Run("flows", func(b *testing.B) {
		w := newWorld(b, Limits{}, testConfig())
		for i := range 65536 {
			establish(b, w, ap(nthClient(i), 5000), ap(server4, uint16(1+i%1000)))
		}
		refuse(b, w, udp(ap(client4, 5000), ap(server4, 53)), ndiscore.DropNATFull)
	})
	b.Run("gives way", func(b *testing.B) {
		w := newWorld(b, Limits{}, testConfig())
		frames, restore := benchFrames(70000, func(i int) pkt { return udp(ap(nthClient(i%65536), uint16(i)), ap(server4, uint16(1+i%7))) })
		var why [1]ndiscore.DropReason
		for i := range frames {
			w.wan.Out(frames[i:i+1], why[:])
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if i++; i == len(frames) {
				i = 0
			}
			restore(i)
			if w.wan.Out(frames[i:i+1], why[:]); why[0] != ndiscore.DropNone {
				b.Fatal(why[0])
			}
		}
	})
}

func refuse(b *testing.B, w *world, p pkt, want ndiscore.DropReason) {
	frames := []*ndiscore.Frame{p.frame()}
	var why [1]ndiscore.DropReason
	b.ReportAllocs()
	for b.Loop() {
		if w.wan.Out(frames, why[:]); why[0] != want {
			b.Fatal(why[0])
		}
	}
}
