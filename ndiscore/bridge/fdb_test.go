package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func upPort(id uint16) *port {
	p := &port{id: id}
	p.up.Store(true)
	return p
}

// TestFDBModel drives the table and a plain map side by side.
func TestFDBModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			port uint16
			seen uint32
		}
		const own = 0x02ffffffffff
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		age := time.Duration(rapid.IntRange(1, 50).Draw(t, "age")) * time.Second
		vlans := rapid.Bool().Draw(t, "vlans")
		f := newFDB(limit, vlans)
		f.setLocal(own)
		start := rapid.SampledFrom([]uint32{0, 5, 1<<32 - 20000}).Draw(t, "start") // the clock wraps
		f.now.Store(start)
		model := map[uint64]entry{}
		ports := []*port{upPort(0), upPort(1), upPort(2)}
		key := rapid.Custom(func(t *rapid.T) uint64 {
			if rapid.IntRange(0, 20).Draw(t, "own") == 0 {
				return own
			}
			k := uint64(rapid.IntRange(1, 60).Draw(t, "key")) << rapid.SampledFrom([]int{0, 17, 41}).Draw(t, "shift")
			if vlans {
				k = keyOf(k, rapid.SampledFrom([]uint16{1, 2, maxVLAN}).Draw(t, "vlan"))
			}
			return k
		})
		in := rapid.Custom(func(t *rapid.T) *port { return ports[rapid.IntRange(0, 2).Draw(t, "port")] })
		t.Repeat(map[string]func(*rapid.T){
			"learn": func(t *rapid.T) {
				k, p, now := key.Draw(t, "k"), in.Draw(t, "in"), f.now.Load()
				served := f.learn(k, p, now)
				onPort, most := 0, int(p.macLimit.Load())
				for _, e := range model {
					if e.port == p.id {
						onPort++
					}
				}
				old, known := model[k]
				room := known && old.port == p.id || most == 0 || onPort < most
				want := most == 0 || k == own && room // what a port with a limit serves is in the table
				if k != own && p.up.Load() && room && (known || len(model) < limit) {
					model[k] = entry{p.id, now}
					want = true
				}
				if served != want && k != own {
					t.Fatalf("learn %x on %d: served %t, want %t", k, p.id, served, want)
				}
			},
			"limit": func(t *rapid.T) {
				in.Draw(t, "in").macLimit.Store(int32(rapid.IntRange(0, 10).Draw(t, "limit")))
			},
			"adopt": func(t *rapid.T) {
				for _, p := range ports {
					if !p.up.Load() || p.macLimit.Load() != 0 {
						return // not all of it would be taken over
					}
				}
				g := newFDB(limit, vlans)
				g.setLocal(own)
				g.adopt(f, ports)
				f = g
			},
			"seen": func(t *rapid.T) {
				k := key.Draw(t, "k")
				if slot, _ := f.find(k); slot != noSlot && k != own {
					f.seen(slot, f.now.Load())
					model[k] = entry{model[k].port, f.now.Load()}
				}
			},
			"tick": func(t *rapid.T) {
				f.now.Add(uint32(rapid.IntRange(0, 20000).Draw(t, "ms")))
			},
			"expire": func(t *rapid.T) {
				f.expire(age)
				for k, e := range model {
					if f.now.Load()-e.seen >= uint32(age.Milliseconds()) {
						delete(model, k)
					}
				}
			},
			"flush": func(t *rapid.T) {
				p, n := in.Draw(t, "in"), 0
				for k, e := range model {
					if e.port == p.id {
						delete(model, k)
						n++
					}
				}
				if got := f.flush(p.id); got != n {
					t.Fatalf("flushed %d, want %d", got, n)
				}
			},
			"up or down": func(t *rapid.T) {
				in.Draw(t, "in").up.Store(rapid.Bool().Draw(t, "up"))
			},
			"": func(t *rapid.T) {
				var onPort [3]int32
				for _, e := range model {
					onPort[e.port]++
				}
				for i, n := range onPort {
					if f.known[i].Load() != n {
						t.Fatalf("%d addresses on port %d, want %d", f.known[i].Load(), i, n)
					}
				}
				if int(f.entries.Load()) != len(model) {
					t.Fatalf("%d entries, want %d", f.entries.Load(), len(model))
				}
				for k, e := range model {
					slot, p := f.find(k)
					if slot == noSlot || p != e.port || f.stamps[slot].Load() != e.seen {
						t.Fatalf("%x: slot %d port %d, want %+v", k, slot, p, e)
					}
				}
				n := 0
				for slot, k, p := f.next(0); slot != noSlot; slot, k, p = f.next(slot + 1) {
					if e, ok := model[k]; !ok || e.port != p {
						t.Fatalf("%x is listed with port %d, want %+v", k, p, e)
					}
					n++
				}
				if n != len(model) {
					t.Fatalf("%d entries listed, want %d: one stands twice", n, len(model))
				}
				if slot, p := f.find(own); slot == noSlot || p != localPort {
					t.Fatal("the bridge's own address has gone")
				}
			},
		})
	})
}

// TestFDBFills checks that the two-choice table takes all addresses that its
// bound allows, for several kinds of address and seeds.
func TestFDBFills(t *testing.T) {
	p := upPort(1)
	for _, limit := range []int{1, 7, 100, 1000, DefaultMACLimit} {
		for kind, key := range map[string]func(i int) uint64{
			"counting": func(i int) uint64 { return 0x020000000000 + uint64(i) },
			"vendors":  func(i int) uint64 { return uint64(i)<<24 + 0x02_000000000000>>8 },
			"random":   func(int) uint64 { return rand.Uint64() & 0xfeffffffffff },
		} {
			for range 5 {
				f := newFDB(limit, false)
				f.setLocal(0x02ffffffffff)
				for i := 1; i <= 2*limit; i++ {
					f.learn(key(i), p, 0)
				}
				if n := f.entries.Load(); n != int64(limit) {
					t.Errorf("limit %d, %s addresses: %d learned (seed %#x)", limit, kind, n, f.seed)
				}
			}
		}
	}
}

func TestFDBConcurrent(t *testing.T) {
	const limit = 256
	f := newFDB(limit, false)
	f.setLocal(0x02ffffffffff)
	ports := []*port{upPort(0), upPort(1), upPort(2), upPort(3)}
	var work, wg sync.WaitGroup
	for i, p := range ports {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		work.Go(func() {
			for range 20000 {
				k := r.Uint64N(400) + 1
				slot, in := f.find(k)
				switch {
				case slot != noSlot && in > 3:
					t.Errorf("port %d", in)
				case slot != noSlot && in == p.id:
					f.seen(slot, f.now.Load())
				default:
					f.learn(k, p, f.now.Load())
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for ctx.Err() == nil {
			f.now.Add(1)
			f.expire(3 * time.Millisecond)
			f.list([]string{"a", "b", "c", "d"}, "own")
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			ports[0].up.Store(false)
			f.flush(0)
			// Nothing may be learned on a port after its flush while it is down.
			for slot, k, p := f.next(0); slot != noSlot; slot, k, p = f.next(slot + 1) {
				if p == 0 {
					t.Errorf("%x learned on a port that is down", k)
				}
			}
			ports[0].up.Store(true)
		}
	})
	work.Wait()
	cancel()
	wg.Wait()
	n, seen := int64(0), map[uint64]bool{}
	for slot, k, _ := f.next(0); slot != noSlot; slot, k, _ = f.next(slot + 1) {
		if seen[k] {
			t.Errorf("%x stands twice", k)
		}
		seen[k] = true
		n++
	}
	if n != f.entries.Load() || n > limit {
		t.Errorf("%d entries, counted %d, limit %d", n, f.entries.Load(), limit)
	}
}

// TestFDBVLANConcurrent reads entries whose places are given up and taken again
// all the time: what is found in a VLAN was learned in it.
func TestFDBVLANConcurrent(t *testing.T) {
	f := newFDB(4, true)
	ports := []*port{upPort(0), upPort(1), upPort(2)}
	var work, wg sync.WaitGroup
	for i := range 3 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			for range 30000 {
				k, v := r.Uint64N(3)+1, uint16(r.UintN(3))
				if r.UintN(4) == 0 {
					f.flush(v)
				}
				f.learn(keyOf(k, 100+v), ports[v], 0)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for ctx.Err() == nil {
			for k := uint64(1); k <= 3; k++ {
				for v := range uint16(4) {
					if slot, p := f.find(keyOf(k, 100+v)); slot != noSlot && p != v {
						t.Errorf("%d in VLAN %d is found on port %d", k, 100+v, p)
					}
				}
			}
			for slot, k, p := f.next(0); slot != noSlot; slot, k, p = f.next(slot + 1) {
				if k>>vlanShift != 100+uint64(p) {
					t.Errorf("%x is listed on port %d", k, p)
				}
			}
		}
	})
	work.Wait()
	cancel()
	wg.Wait()
}

// FuzzReceive passes any bytes, cut into frames, through a whole bridge, one
// that does not look at VLANs and one with everything on: no panic, every frame
// accounted for, nothing returned to its port, nothing in a VLAN that is not the
// port's.
func FuzzReceive(f *testing.F) {
	f.Add(frame(ndiscore.Broadcast, mac(1)), uint8(0))
	f.Add(frame(mac(1), mac(2), 1, 2, 3), uint8(1))
	f.Add(append(frame(mac(2), mac(1)), frame(mac(1), mac(1))...), uint8(2))
	f.Add([]byte{1, 0x80, 0xc2, 0, 0, 3, 2, 2, 2, 2, 2, 2, 0x88, 0xcc}, uint8(0))
	f.Add(withTags(frame(ndiscore.Broadcast, mac(1)), tagOf(10), tagOf(20)), uint8(7))
	f.Add(withTags(frame(mac(1), mac(2)), tagOf(20))[:16], uint8(8))
	f.Add(withTags(packet(mac(3), report6(group6)), tagOf(20)), uint8(7))
	f.Add(packet(mac(3), generalQuery4()), uint8(5))
	f.Add(frame(probeGroup, stableMAC("lan")), uint8(6))
	plain := newLAN(f, 3, true, func(o *Options) { o.MACLimit = 16 })
	whole := newLAN(f, 5, true, func(o *Options) {
		vlanPorts(f)(o)
		o.MACLimit, o.Snooping, o.LoopGuard = 16, true, true
		for p, s := range o.Port {
			s.MACLimit, s.StormBroadcast, s.StormMulticast, s.StormUnknown = 5, 1000, 1000, 1000
			o.Port[p] = s
		}
	})
	f.Fuzz(func(t *testing.T, data []byte, from uint8) {
		l, n := plain, int(from)
		if n%8 >= 3 {
			l, n = whole, n%8-3
		} else {
			n %= 8
		}
		l.t = t
		in := l.wires[n]
		var frames [][]byte
		for len(data) > 0 && len(frames) < ndiscore.BatchFrames {
			n := min(len(data), 14+int(data[0]%100))
			frames = append(frames, append([]byte(nil), data[:n]...))
			data = data[n:]
		}
		in.receive(frames...)
		l.counters(in.name)
		l.counters("lan")
		if n := len(in.take()); n > 0 && l == plain {
			t.Errorf("%d frames came back out of the port they came in by", n)
		}
		for i, w := range l.wires {
			for _, g := range w.take() {
				if l == plain || len(g) < 18 {
					continue
				}
				tag := g[12] == 0x81 && g[13] == 0 || g[12] == 0x88 && g[13] == 0xa8
				vlan := (uint16(g[14])<<8 | uint16(g[15])) & 0xfff
				if i == 2 && !(tag && (vlan == 10 || vlan == 20)) {
					t.Errorf("p2 sent %x", g)
				}
			}
		}
		l.counts()
		if l == whole {
			l.clock.Advance(100 * time.Millisecond)
		}
		if s := l.bridge.Stats(); s.Entries > s.Limit {
			t.Errorf("%+v", s)
		}
	})
}

func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name           string
		ports, src, to int // stations
		group          bool
	}{
		{"one flow", 2, 1, 1, false},
		{"64 flows", 2, 64, 64, false},
		{"4096 stations", 2, 4096, 4096, false},
		{"broadcast to 7", 8, 1, 0, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLAN(b, c.ports, false, nil)
			for _, w := range l.wires {
				w.keep = false
			}
			for i := range c.to {
				l.wires[1].receive(frame(ndiscore.Broadcast, mac(100000+i)))
			}
			in := l.wires[0]
			var batches []*ndiscore.Batch
			n := max(c.src, ndiscore.BatchFrames)
			for i := range n {
				if i%ndiscore.BatchFrames == 0 {
					q := ndiscore.NewBatch(in.worker)
					q.Borrowed = true
					batches = append(batches, q)
				}
				dst := ndiscore.Broadcast
				if !c.group {
					dst = mac(100000 + i%c.to)
				}
				f, data := new(ndiscore.Frame), frame(dst, mac(i%c.src))
				f.Reset(data, 0, len(data))
				batches[len(batches)-1].Append(f)
			}
			for _, q := range batches {
				in.handle.IndicateReceive(q)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				in.handle.IndicateReceive(batches[i])
				if i++; i == len(batches) {
					i = 0
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ndiscore.BatchFrames), "ns/frame")
		})
	}
}

// BenchmarkLearn is the slow half: every source is new, the table is emptied
// as it goes.
func BenchmarkLearn(b *testing.B) {
	f := newFDB(DefaultMACLimit, false)
	p := upPort(1)
	b.ReportAllocs()
	i := uint64(0)
	for b.Loop() {
		i++
		f.learn(i, p, 0)
		if i%DefaultMACLimit == 0 {
			b.StopTimer()
			f.flush(1)
			b.StartTimer()
		}
	}
}

func ExampleNew() {
	b, err := New(Options{Name: "lan", Ports: []string{"tap0", "tap1"}, Age: time.Minute})
	if err != nil {
		fmt.Println(err)
		return
	}
	// core.AddVirtual(ctx, b.Name(), b, nil), then core.AddProtocol(ctx, b.Spec())
	fmt.Println(b.Name(), b.Spec().Targets)
	// Output: lan [tap0 tap1]
}
