package nat

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// TestProperty lets hosts on both sides talk at random, and time pass. What goes out
// and is answered comes back to who began, as if nothing had been between, an
// error about it quotes what he sent, and no two flows share a tuple.
func TestProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, Limits{Flows: 40, Fragments: 5}, testConfig(
			Forward{"wan", "tcp", PortRange{80, 83}, ap(client4, 80)}, Forward{"wan", "udp", PortRange{80, 83}, ap(client6, 80)},
			Forward{"wan", "udp", PortRange{midPort + 5, 65530}, ap(client4, 1000)})) // few ports are left for UDP over IPv4 and IPv6
		hosts := map[bool][]netip.Addr{
			false: {client4, other4, pub4, nthClient(1)},
			true:  {client6, client6.Next(), pub6},
		}
		servers := map[bool][]netip.Addr{false: {server4, hop4}, true: {server6, hop6}}
		publics := map[bool]netip.Addr{false: pub4, true: pub6}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { w.check(t) },
			"time": func(t *rapid.T) {
				w.pass(rapid.SampledFrom([]time.Duration{time.Second, 20 * time.Second, 300 * time.Second, 2 * time.Hour}).Draw(t, "time"))
			},
			"flush": func(t *rapid.T) {
				w.Flush(Filter{Protocol: rapid.SampledFrom([]string{"tcp", "udp", "icmp", "47"}).Draw(t, "protocol")}, "test")
			},
			"out": func(t *rapid.T) {
				v6 := rapid.Bool().Draw(t, "v6")
				from := ap(rapid.SampledFrom(hosts[v6]).Draw(t, "from"), rapid.SampledFrom([]uint16{53, 80, 1025, 5000, 5001}).Draw(t, "port"))
				to := ap(rapid.SampledFrom(servers[v6]).Draw(t, "to"), rapid.Uint16Range(1, 2).Draw(t, "remote port"))
				w.exchange(t, draw(t, from, to), publics[v6])
			},
			"in": func(t *rapid.T) {
				v6 := rapid.Bool().Draw(t, "v6")
				from := ap(rapid.SampledFrom(servers[v6]).Draw(t, "from"), rapid.Uint16Range(1, 2).Draw(t, "remote port"))
				inside := rapid.Bool().Draw(t, "inside")
				if inside {
					from = ap(hosts[v6][1], 1000)
				}
				p := draw(t, from, ap(publics[v6], rapid.Uint16Range(79, 84).Draw(t, "port")))
				g, why := w.in(p.frame(), inside)
				if why != ndiscore.DropNone || string(g.Bytes(nil)) == string(p.frame().Bytes(nil)) {
					return
				}
				s, d := ends(t, g)
				a := p.answer(d, s)
				if inside {
					same(t, w.mustIn(t, a.frame(), true), p.answer(p.dst, p.src).frame())
				} else {
					same(t, w.mustOut(t, a.frame()), p.answer(p.dst, p.src).frame())
				}
			},
			"through": func(t *rapid.T) {
				w.wan.Through(draw(t, ap(server4, 1), ap(client4, rapid.Uint16Range(5000, 5001).Draw(t, "port"))).frame())
			},
		})
	})
}

// draw makes a packet from one to the other, of any protocol.
func draw(t *rapid.T, from, to netip.AddrPort) pkt {
	p := rapid.SampledFrom([]pkt{
		tcp(from, to, rapid.SampledFrom([]uint8{flagSYN, flagACK, flagFIN | flagACK, flagRST}).Draw(t, "flags")),
		udp(from, to), echo(from, to, false), {proto: 47, src: from, dst: to, size: 9},
	}).Draw(t, "packet")
	p.size = rapid.IntRange(0, 40).Draw(t, "size")
	return p
}

// answer is a packet like p from src to dst.
func (p pkt) answer(src, dst netip.AddrPort) pkt {
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		q := echo(ap(src.Addr(), 0), ap(dst.Addr(), dst.Port()), true)
		q.size = p.size
		return q
	}
	p.src, p.dst = src, dst
	return p
}

// exchange sends p out, and has it answered, and complained about.
func (w *world) exchange(t *rapid.T, p pkt, public netip.Addr) {
	f := p.frame()
	g, why := w.out(f)
	if why != ndiscore.DropNone {
		return
	}
	sound(t, g)
	src, dst := ends(t, g)
	if src.Addr() != public && src.Addr() != p.src.Addr() || p.proto == protoTCP && dst != p.dst {
		t.Fatalf("%v left from %s to %s", p, src, dst)
	}
	if src.Addr() != public || p.src.Addr() == public && p.flags&flagRST != 0 {
		return // an answer to one from outside; a reset of the router's own
	}
	untracked := string(g.Bytes(nil)) == string(f.Bytes(nil))
	a := p.answer(ap(dst.Addr(), p.dst.Port()), src)
	if b := w.mustIn(t, a.frame(), false); untracked {
		same(t, b, a.frame())
	} else {
		same(t, b, p.answer(ap(dst.Addr(), p.dst.Port()), p.src).frame())
	}
	typ := uint8(11)
	if public.Is6() {
		typ = 3
	}
	sent, seen := f.Bytes(nil)[ethernet:], g.Bytes(nil)[ethernet:]
	same(t, w.mustIn(t, icmpError(dst.Addr(), public, typ, 0, 0, seen, len(seen)), false), icmpError(dst.Addr(), p.src.Addr(), typ, 0, 0, sent, len(sent)))
}

// check holds the table against itself.
func (w *world) check(t *rapid.T) {
	count := 0
	w.each(nil, func(f *flow) {
		count++
		for i := range f.node {
			if w.find(&f.node[i].tuple) != &f.node[i] {
				t.Fatalf("two flows share %+v", f.node[i].tuple.info())
			}
		}
		if (f.weak != listNone) != f.state.weak() {
			t.Fatalf("flow in state %s is in list %d", f.state, f.weak)
		}
	})
	onWheel, weak := 0, 0
	for _, f := range w.wheel {
		for ; f != nil; f = f.next {
			onWheel++
		}
	}
	for l := range w.weak {
		for f := w.weak[l].oldest; f != nil; f = f.weakNext {
			weak++
			if int(f.weak) != l || f.weakNext == nil && w.weak[l].newest != f {
				t.Fatal("a list of weak flows is broken")
			}
		}
	}
	if count != w.live || onWheel != count || weak > count || count > w.limits.Flows {
		t.Fatalf("%d flows, %d counted, %d on the wheel, %d weak", count, w.live, onWheel, weak)
	}
	for d, c := range w.crowds {
		n := 0
		for f := c.first; f != nil; f = f.crowdNext {
			if n++; f.crowd != c || destOf(&f.node[1].tuple) != d {
				t.Fatal("a crowd is broken")
			}
		}
		if n != c.n || n == 0 || c.set != nil && c.inUse < n-5 {
			t.Fatalf("a crowd of %d says %d, %d ports", n, c.n, c.inUse)
		}
	}
}
