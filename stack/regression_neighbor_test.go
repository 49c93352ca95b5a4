package stack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// TestRegressionNeighborMove: a neighbour has another MAC from now on, and says so
// in one of the ways that stations use. netstack would send to the old one for half
// a minute.
func TestRegressionNeighborMove(t *testing.T) {
	garp := func(op uint16, src, dst, sha ndiscore.MAC, ip, target string) *ndiscore.Frame {
		f := arpRequest(sha, ip, target)
		copy(f.Head, dst[:])
		copy(f.Head[6:], src[:])
		binary.BigEndian.PutUint16(f.Head[20:], op)
		return f
	}
	na := func(mac ndiscore.MAC, ip string, flags byte) *ndiscore.Frame {
		f := frameOf(make([]byte, 86))
		room := make([]byte, ndiscore.Headroom+headBytes)
		buildUnsolicitedNA(f, room, mac, netip.MustParseAddr(ip))
		n := f.Head[54:]
		n[4] = flags
		n[2], n[3] = 0, 0
		binary.BigEndian.PutUint16(n[2:], ^ndiscore.Checksum(n[:32], ndiscore.PseudoChecksum(f.Head[22:38], f.Head[38:54], protoICMPv6, 32)))
		return f
	}
	for _, tc := range []struct {
		name string
		says func(mac, router ndiscore.MAC) *ndiscore.Frame
		v6   bool
	}{
		{"gratuitous request", func(mac, _ ndiscore.MAC) *ndiscore.Frame {
			return garp(1, mac, ndiscore.Broadcast, mac, "10.2.0.2", "10.2.0.2")
		}, false},
		{"gratuitous reply", func(mac, _ ndiscore.MAC) *ndiscore.Frame {
			return garp(2, mac, ndiscore.Broadcast, mac, "10.2.0.2", "10.2.0.2")
		}, false},
		{"unicast reply", func(mac, router ndiscore.MAC) *ndiscore.Frame {
			return garp(2, mac, router, mac, "10.2.0.2", "10.2.0.1")
		}, false},
		{"request for us", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return arpRequest(mac, "10.2.0.2", "10.2.0.1") }, false},
		{"request for another", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return arpRequest(mac, "10.2.0.2", "10.2.0.77") }, false},
		{"advertisement", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return na(mac, "fd02::2", 0x20) }, true},
		{"advertisement of a router", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return na(mac, "fd02::2", 0xa0) }, true},
		{"solicitation", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return solicitation(mac, "fd02::2", "fd02::1") }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newLiveBed(t, testOptions(), "a", "b")
			b := d.cards["b"]
			src, dst := "10.1.0.2", "10.2.0.2"
			if tc.v6 {
				src, dst = "fd01::2", "fd02::2"
			}
			first, last := ndiscore.MAC{2, 0, 0, 0, 9, 1}, ndiscore.MAC{2, 0, 0, 0, 9, 2}
			if tc.v6 {
				d.in("b", solicitation(first, dst, "fd02::1"))
			} else {
				d.in("b", arpRequest(first, dst, "10.2.0.1"))
				d.in("b", arpReply(first, macOfCard("b"), dst, "10.2.0.1"))
			}
			send := func(to ndiscore.MAC) {
				t.Helper()
				d.in("a", d.udp("a", src, dst, 20))
				f := b.await(t, "UDP, or a question", func(f *ndiscore.Frame) bool {
					l, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
					return isUDP(f) || ok && l.Operation == 1 && l.DstProtAddress[3] == 2 && f.Dst() == ndiscore.Broadcast
				})
				if !isUDP(f) {
					d.in("b", arpReply(to, macOfCard("b"), dst, "10.2.0.1"))
					f = b.await(t, "UDP", isUDP)
				}
				if f.Dst() != to {
					t.Fatalf("sent to %s, not %s", f.Dst(), to)
				}
			}
			send(first)
			for _, mac := range []ndiscore.MAC{last, first, last} {
				d.in("b", tc.says(mac, macOfCard("b")))
				send(mac)
			}
			// Who has not moved is not asked again.
			was := d.router.Stats()["neighbor.moved"]
			d.in("b", tc.says(last, macOfCard("b")))
			d.in("b", garp(1, last, ndiscore.Broadcast, ndiscore.Broadcast, "10.2.0.2", "10.2.0.2")) // nonsense
			send(last)
			if now := d.router.Stats()["neighbor.moved"]; now != was {
				t.Errorf("%d neighbours moved", now-was)
			}
		})
	}
}

// crowd is a testOptions whose wan has room for many neighbours.
func crowd() Options {
	o := testOptions()
	o.Interfaces[1].Addresses = prefixes("10.64.0.1/10", "fd02::1/64")
	o.Routes = nil
	return o
}

// person is the n-th neighbour of a crowd.
func person(v6 bool, n int) netip.Addr {
	if v6 {
		a := netip.MustParseAddr("fd02::5:0:0").As16()
		binary.BigEndian.PutUint32(a[12:], uint32(n))
		return netip.AddrFrom16(a)
	}
	a := [4]byte{10, 65}
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n)+2)
	return netip.AddrFrom4(a)
}

func macOfPerson(n int) ndiscore.MAC {
	return ndiscore.MAC{2, 0x77, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// advert answers a solicitation of target.
func advert(from, to ndiscore.MAC, target, router string) *ndiscore.Frame {
	l3 := ip6(target, router, layers.IPProtocolICMPv6, 255)
	i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(136, 0)}
	_ = i.SetNetworkLayerForChecksum(l3)
	return serialize(ether(from, to, layers.EthernetTypeIPv6), l3, i, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0x60, TargetAddress: netip.MustParseAddr(target).AsSlice(),
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: from[:]}},
	})
}

// TestRegressionManyNeighbors: netstack keeps 512 neighbours a NIC. More of them
// cost questions, not packets.
func TestRegressionManyNeighbors(t *testing.T) {
	const people, chunk = 1000, 32 // netstack has at most 64 open questions
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			d := newLiveBed(t, crowd(), "a", "b")
			b, src := d.cards["b"], "10.1.0.2"
			if v6 {
				src = "fd01::2"
			}
			asked, numbers := 0, map[netip.Addr]int{}
			for n := range people {
				numbers[person(v6, n)] = n
			}
			for range 2 {
				for n := 0; n < people; n += chunk {
					want := map[netip.Addr]bool{}
					for k := n; k < min(n+chunk, people); k++ {
						want[person(v6, k)] = true
						d.in("a", d.udp("a", src, person(v6, k).String(), 20))
					}
					eventually(t, "their packets", func() bool {
						for _, f := range b.sentSoFar() {
							p := decode(&f)
							if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
								a, _ := netip.AddrFromSlice(l.DstProtAddress)
								if who, ok := numbers[a]; ok {
									asked++
									d.in("b", arpReply(macOfPerson(who), macOfCard("b"), a.String(), "10.64.0.1"))
								}
							}
							if l, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation); ok {
								a, _ := netip.AddrFromSlice(l.TargetAddress)
								if who, ok := numbers[a]; ok {
									asked++
									d.in("b", advert(macOfPerson(who), macOfCard("b"), a.String(), "fd02::1"))
								}
							}
							if !isUDP(&f) {
								continue
							}
							a, _ := netip.ParseAddr(p.NetworkLayer().NetworkFlow().Dst().String())
							if f.Dst() != macOfPerson(numbers[a]) {
								t.Errorf("%s is reached at %s", a, f.Dst())
							}
							delete(want, a)
						}
						return len(want) == 0
					})
				}
			}
			if n := len(d.router.Neighbors()); n == 0 || n > 512 {
				t.Errorf("%d neighbours", n)
			}
			t.Logf("%d packets to %d people cost %d questions", 2*people, people, asked)
		})
	}
}

// TestRegressionNeighborFlood: 65,536 stations, none of which exists, ask for us, or
// are asked for. That costs a bounded memory, and no frame of a flow that goes on
// meanwhile.
func TestRegressionNeighborFlood(t *testing.T) {
	people := 65536
	if testing.Short() || ndistest.RaceEnabled {
		people = 4096
	}
	for _, tc := range []struct {
		name  string
		in    string
		frame func(d *liveBed, n int) *ndiscore.Frame
	}{
		{"ARP", "b", func(_ *liveBed, n int) *ndiscore.Frame {
			return arpRequest(macOfPerson(n), person(false, n).String(), "10.64.0.1")
		}},
		{"ND", "b", func(_ *liveBed, n int) *ndiscore.Frame {
			return solicitation(macOfPerson(n), person(true, n).String(), "fd02::1")
		}},
		{"scan", "a", func(d *liveBed, n int) *ndiscore.Frame {
			return d.udp("a", "10.1.0.2", person(false, n).String(), 1000)
		}},
		{"scan6", "a", func(d *liveBed, n int) *ndiscore.Frame {
			return d.udp("a", "fd01::2", person(true, n).String(), 1000)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newLiveBed(t, crowd(), "a", "b")
			a, b := d.cards["a"], d.cards["b"]
			d.meet("a", "10.1.0.2", "10.1.0.1")
			d.meet("b", "10.64.0.2", "10.64.0.1")
			b.memAdapter.mu.Lock()
			b.sent = nil
			b.memAdapter.mu.Unlock()
			flow, got, most := 0, 0, 0
			collect := func() {
				a.sentSoFar()
				for _, f := range b.sentSoFar() {
					if f.Len() != 42+333 {
						continue
					}
					got++
					if b := f.Bytes(nil); b[22] != 63 {
						t.Errorf("a time to live of %d", b[22])
					}
				}
			}
			before := measure()
			for n := 0; n < people; n += 16 {
				frames := []*ndiscore.Frame{d.udp("a", "10.1.0.2", "10.64.0.2", 333)}
				flow++
				for k := n; k < n+16; k++ {
					frames = append(frames, tc.frame(d, k))
				}
				if tc.in == "a" {
					d.in("a", frames...)
				} else {
					d.in("a", frames[0])
					d.in("b", frames[1:]...)
				}
				// As fast as netstack takes it: what the punt queue refuses is no flood of netstack.
				eventually(t, "delivered", func() bool { return d.router.queue.waiting.Load() < 64 })
				if n%1024 == 0 {
					collect()
					most = max(most, runtime.NumGoroutine())
				}
			}
			eventually(t, "the flow", func() bool { collect(); return got == flow })
			// Two families on wan; on lan only who asked.
			if n := len(d.router.Neighbors()); n > 512+8 {
				t.Errorf("%d neighbours", n)
			}
			before.grownTo(t)
			// netstack would give up on the oldest question on a goroutine of its own.
			if most > before.goroutines+20 {
				t.Errorf("%d goroutines, %d before", most, before.goroutines)
			}
			// Who does exist is found at once.
			d.in("a", d.udp("a", "10.1.0.2", "10.64.0.3", 20))
			b.await(t, "question", func(f *ndiscore.Frame) bool {
				l, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
				return ok && slices.Equal(l.DstProtAddress, []byte{10, 64, 0, 3})
			})
			d.in("b", arpReply(hostB, macOfCard("b"), "10.64.0.3", "10.64.0.1"))
			b.await(t, "UDP", func(f *ndiscore.Frame) bool { return isUDP(f) && f.Len() == 42+20 })
			if s := d.router.Stats(); s["panics"] != 0 {
				t.Errorf("%d panics", s["panics"])
			}
		})
	}
}

// TestRegressionWaitingBytes: what waits for neighbours that do not exist is bounded
// in bytes, too.
func TestRegressionWaitingBytes(t *testing.T) {
	d := newLiveBed(t, crowd(), "a", "b")
	b := d.cards["b"]
	b.drain = true
	d.meet("a", "10.1.0.2", "10.1.0.1")
	d.meet("a", "fd01::2", "fd01::1")
	before := measure()
	sent, waited, mac := 0, uint64(0), macOfCard("a")
	frames := map[bool]*ndiscore.Frame{}
	for _, v6 := range []bool{false, true} {
		frames[v6] = super(v6, flow{ttl: 64, df: true, size: 60000}, 1400)
		copy(frames[v6].Head, mac[:])
	}
	for n := range 100 {
		for _, to := range []netip.Addr{person(false, n), person(true, n)} {
			f, at := frames[to.Is6()], 16
			if to.Is6() {
				at = 24
			}
			rewrite(f, func(h []byte) { copy(h[at:], to.AsSlice()) })
			for range 20 {
				d.in("a", f)
				sent++
				eventually(t, "delivered", func() bool { return d.router.queue.waiting.Load() < 8 })
			}
		}
		if n%20 == 19 {
			waited = max(waited, measure().heap)
		}
	}
	full := d.router.Stats()["neighbor.full"]
	t.Logf("%d super-frames, %d refused, heap %d KiB, at most %d KiB", sent, full, before.heap>>10, waited>>10)
	if full < uint64(sent)/2 || waited > before.heap+80<<20 {
		t.Errorf("%d of %d were refused; the heap went from %d to %d KiB", full, sent, before.heap>>10, waited>>10)
	}
	eventually(t, "netstack has given up", func() bool { return d.router.stack.Load().neighbors.asking.Load() == 0 })
	before.grownTo(t)
}
