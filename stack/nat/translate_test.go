package nat

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func (w *world) mustOut(t rapid.TB, f *ndiscore.Frame) *ndiscore.Frame {
	t.Helper()
	g, why := w.out(f)
	if why != ndiscore.DropNone {
		t.Fatalf("refused on its way out: %s", why)
	}
	return g
}

func (w *world) mustIn(t rapid.TB, f *ndiscore.Frame, inside bool) *ndiscore.Frame {
	t.Helper()
	g, why := w.in(f, inside)
	if why != ndiscore.DropNone {
		t.Fatalf("refused on its way in: %s", why)
	}
	return g
}

// both runs f with the addresses of either IP version.
func both(t *testing.T, f func(t *testing.T, client, server, public netip.Addr)) {
	t.Run("v4", func(t *testing.T) { f(t, client4, server4, pub4) })
	t.Run("v6", func(t *testing.T) { f(t, client6, server6, pub6) })
}

func TestMasquerade(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		c, p := ap(client, 4000), ap(public, 4000)
		for name, pair := range map[string][2]func(a, b netip.AddrPort) pkt{
			"tcp": {func(a, b netip.AddrPort) pkt { return tcp(a, b, flagSYN) }, func(a, b netip.AddrPort) pkt { return tcp(a, b, flagSYN|flagACK) }},
			"udp": {udp, udp},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, Limits{}, testConfig())
				s := ap(server, 80)
				is(t, w.mustOut(t, pair[0](c, s).frame()), p, s)
				is(t, w.mustIn(t, pair[1](s, p).frame(), false), s, c)
				// Somebody else at the same port of ours is none of the client's business.
				x := pair[1](ap(server, 81), p).frame()
				same(t, w.mustIn(t, x, false), x)
			})
		}
		t.Run("ping", func(t *testing.T) {
			w := newWorld(t, Limits{}, testConfig())
			g := w.mustOut(t, echo(c, ap(server, 0), false).frame())
			sound(t, g)
			same(t, g, echo(p, ap(server, 0), false).frame())
			same(t, w.mustIn(t, echo(ap(server, 0), p, true).frame(), false), echo(ap(server, 0), c, true).frame())
			// Their question is not an answer to ours.
			x := echo(p, p, false)
			x.src = ap(server, 4000)
			same(t, w.mustIn(t, x.frame(), false), x.frame())
		})
		t.Run("their ping", func(t *testing.T) {
			// Its identifier is the type of ours: what tells a question from an answer
			// must not be the numbers.
			for _, typ := range []uint8{echo(c, c, false).typ, 13} {
				if client.Is6() && typ == 13 {
					continue
				}
				w := newWorld(t, Limits{}, testConfig())
				ask := func(src, dst netip.Addr) *ndiscore.Frame {
					q := echo(ap(src, uint16(typ)), ap(dst, 0), false)
					q.typ = typ
					return q.frame()
				}
				same(t, w.mustOut(t, ask(client, server)), ask(public, server))
				x := ask(server, public)
				same(t, w.mustIn(t, x, false), x)
				if typ == 13 {
					continue // what answers it is not made by echo
				}
				answer := func(dst netip.Addr) *ndiscore.Frame { return echo(ap(server, 0), ap(dst, uint16(typ)), true).frame() }
				same(t, w.mustIn(t, answer(public), false), answer(client))
			}
		})
		t.Run("other protocol", func(t *testing.T) {
			w := newWorld(t, Limits{}, testConfig())
			gre := func(a, b netip.Addr) *ndiscore.Frame {
				return pkt{proto: 47, src: ap(a, 0), dst: ap(b, 0), size: 20}.frame()
			}
			same(t, w.mustOut(t, gre(client, server)), gre(public, server))
			same(t, w.mustIn(t, gre(server, public), false), gre(server, client))
			second := client.Next()
			if _, why := w.out(gre(second, server)); why != ndiscore.DropNATState {
				t.Errorf("a second host: %s", why)
			}
			w.pass(31 * time.Second)
			same(t, w.mustOut(t, gre(second, server)), gre(public, server))
		})
	})
}

func TestPortIsKeptOrChosen(t *testing.T) {
	w := newWorld(t, Limits{}, testConfig(
		Forward{Interface: "wan", Protocol: "udp", Ports: PortRange{5000, 5010}, To: ap(client4, 5000)}))
	s := ap(server4, 53)
	is(t, w.mustOut(t, udp(ap(client4, 4000), s).frame()), ap(pub4, 4000), s)
	taken := func(why string, f *ndiscore.Frame, not uint16) {
		t.Helper()
		g := w.mustOut(t, f)
		sound(t, g)
		src, _ := ends(t, g)
		if src.Addr() != pub4 || src.Port() == not || src.Port() < midPort {
			t.Errorf("%s: from %s", why, src)
		}
		same(t, w.mustIn(t, udp(s, src).frame(), false), udp(s, mustEnds(t, f)).frame())
	}
	taken("another client has it", udp(ap(other4, 4000), s).frame(), 4000)
	taken("it is published", udp(ap(client4, 5005), s).frame(), 5005)
	is(t, w.mustOut(t, udp(ap(other4, 4000), ap(server4, 54)).frame()), ap(pub4, 4000), ap(server4, 54))
	is(t, w.mustOut(t, udp(ap(other4, 123), ap(server4, 123)).frame()), ap(pub4, 123), ap(server4, 123))
}

func mustEnds(t rapid.TB, f *ndiscore.Frame) netip.AddrPort {
	src, _ := ends(t, f)
	return src
}

// TestLocal: what the router itself talks shares the address with everybody.
func TestLocal(t *testing.T) {
	c := testConfig()
	c.Interfaces[1].Local = []LocalPort{{"udp", PortRange{53, 53}}}
	w := newWorld(t, Limits{}, c)
	s := ap(server4, 700)
	same(t, w.mustOut(t, udp(ap(pub4, 4000), s).frame()), udp(ap(pub4, 4000), s).frame())
	if src := mustEnds(t, w.mustOut(t, udp(ap(client4, 4000), s).frame())); src.Port() == 4000 {
		t.Errorf("a client got the port of a flow of the router's")
	}
	x := udp(s, ap(pub4, 4000)).frame()
	same(t, w.mustIn(t, x, false), x)
	// The other way round.
	is(t, w.mustOut(t, udp(ap(client4, 4001), s).frame()), ap(pub4, 4001), s)
	if src := mustEnds(t, w.mustOut(t, udp(ap(pub4, 4001), s).frame())); src.Port() == 4001 {
		t.Errorf("the router got the port of a client's flow")
	}
	if src := mustEnds(t, w.mustOut(t, udp(ap(client4, 53), s).frame())); src.Port() == 53 {
		t.Errorf("a client got the port of a service")
	}
	// Answers make no flow: whoever asks would fill the table.
	n := w.Stats()["flows"]
	for _, f := range []*ndiscore.Frame{
		udp(ap(pub4, 53), s).frame(), tcp(ap(pub4, 9), s, flagRST).frame(), echo(ap(pub4, 0), ap(server4, 7), true).frame(),
		icmpError(pub4, server4, 3, 3, 0, udp(s, ap(pub4, 99)).packet(), 28),
	} {
		same(t, w.mustOut(t, f), f)
	}
	if m := w.Stats()["flows"]; m != n {
		t.Errorf("%d flows, then %d", n, m)
	}
	// From the address of another interface it needs one that is known outside.
	is(t, w.mustOut(t, udp(ap(router4, 4002), s).frame()), ap(pub4, 4002), s)
	is(t, w.mustIn(t, udp(s, ap(pub4, 4002)).frame(), false), s, ap(router4, 4002))
}

func TestForward(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		w := newWorld(t, Limits{}, testConfig(
			Forward{"wan", "tcp", PortRange{8000, 8010}, ap(client, 80)},
			Forward{"wan", "udp", PortRange{8000, 8000}, ap(client, 53)}))
		s := ap(server, 999)
		is(t, w.mustIn(t, tcp(s, ap(public, 8003), flagSYN).frame(), false), s, ap(client, 83))
		is(t, w.mustOut(t, tcp(ap(client, 83), s, flagSYN|flagACK).frame()), ap(public, 8003), s)
		is(t, w.mustIn(t, udp(s, ap(public, 8000)).frame(), false), s, ap(client, 53))
		for _, port := range []uint16{7999, 8011} {
			f := tcp(s, ap(public, port), flagSYN).frame()
			same(t, w.mustIn(t, f, false), f)
		}
		f := tcp(s, ap(public, 8005), flagRST).frame()
		if _, why := w.in(f, false); why != ndiscore.DropNATState {
			t.Errorf("a reset of nothing: %s", why)
		}
	})
	t.Run("two ports, one service", func(t *testing.T) {
		w := newWorld(t, Limits{}, testConfig(
			Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)}, Forward{"wan", "tcp", PortRange{8080, 8080}, ap(client4, 80)}))
		s := ap(server4, 999)
		is(t, w.mustIn(t, tcp(s, ap(pub4, 80), flagSYN).frame(), false), s, ap(client4, 80))
		g := w.mustIn(t, tcp(s, ap(pub4, 8080), flagSYN).frame(), false)
		sound(t, g)
		src, dst := ends(t, g)
		if src.Addr() != server4 || src.Port() == 999 || dst != ap(client4, 80) {
			t.Fatalf("from %s to %s", src, dst)
		}
		is(t, w.mustOut(t, tcp(ap(client4, 80), src, flagSYN|flagACK).frame()), ap(pub4, 8080), s)
		is(t, w.mustOut(t, tcp(ap(client4, 80), s, flagSYN|flagACK).frame()), ap(pub4, 80), s)
	})
}

func TestHairpin(t *testing.T) {
	both(t, func(t *testing.T, client, _, public netip.Addr) {
		service := ap(client.Next(), 80)
		w := newWorld(t, Limits{}, testConfig(Forward{"wan", "tcp", PortRange{8080, 8080}, service}))
		c, p := ap(client, 4000), ap(public, 8080)
		is(t, w.mustIn(t, tcp(c, p, flagSYN).frame(), true), ap(public, 4000), service)
		is(t, w.mustIn(t, tcp(service, ap(public, 4000), flagSYN|flagACK).frame(), true), p, c)
		// The same port of another client.
		g := w.mustIn(t, tcp(ap(client.Next().Next(), 4000), p, flagSYN).frame(), true)
		if src := mustEnds(t, g); src.Addr() != public || src.Port() == 4000 {
			t.Errorf("from %s", src)
		}
		if fs := w.Flows(Filter{}, 0); len(fs) != 2 || fs[0].Kind != "hairpin" {
			t.Errorf("%+v", fs)
		}
		// The service refuses: the error has to make sense to the client.
		unreach := uint8(3)
		if client.Is6() {
			unreach = 1
		}
		quote := tcp(ap(public, 4000), service, flagSYN).packet()
		e := w.mustIn(t, icmpError(service.Addr(), public, unreach, 3, 0, quote, len(quote)), true)
		want := tcp(c, p, flagSYN).packet()
		same(t, e, icmpError(public, client, unreach, 3, 0, want, len(want)))
	})
}

// TestThrough: what came from outside straight for a host inside is answered as
// it is, masquerading or not.
func TestThrough(t *testing.T) {
	w := newWorld(t, Limits{}, testConfig())
	s, c := ap(server4, 999), ap(client4, 22)
	if why := w.wan.Through(tcp(s, c, flagSYN).frame()); why != ndiscore.DropNone {
		t.Fatal(why)
	}
	f := tcp(c, s, flagSYN|flagACK).frame()
	same(t, w.mustOut(t, f), f)
	is(t, w.mustOut(t, tcp(c, ap(server4, 998), flagSYN).frame()), ap(pub4, 22), ap(server4, 998))
}

// TestTransit: who is outside and has his packets leave again gets no address of the
// router by the edge by which they came. By another one he must, but as somebody
// outside.
func TestTransit(t *testing.T) {
	c := testConfig()
	c.Interfaces = append(c.Interfaces, Interface{Name: "wan2", Addresses: prefixes("198.51.100.1/24", "2001:db8:7::1/64"), Masquerade: true, Masquerade6: true})
	both(t, func(t *testing.T, _, server, _ netip.Addr) {
		w := newWorld(t, Limits{}, c)
		stranger := server.Next()
		for _, p := range []pkt{tcp(ap(stranger, 9), ap(server, 80), flagSYN), udp(ap(stranger, 9), ap(server, 80)), echo(ap(stranger, 9), ap(server, 0), false), {proto: 47, src: ap(stranger, 0), dst: ap(server, 0), size: 9}} {
			for _, f := range append(p.fragments(24), p.frame()) {
				if why := w.wan.Through(f); why != ndiscore.DropNone {
					t.Fatal(why)
				}
				same(t, w.mustOut(t, f), f)
			}
		}
		p := tcp(ap(stranger, 9), ap(server, 80), flagSYN)
		var why [1]ndiscore.DropReason
		w.Edge("wan2").Out([]*ndiscore.Frame{p.frame()}, why[:])
		for _, f := range w.Flows(Filter{}, 0) {
			if f.Kind != "through" && f.Interface != "wan2" {
				t.Errorf("%+v", f)
			}
		}
		if why[0] != ndiscore.DropNone || w.outside != 5 || w.live != 5 {
			t.Errorf("%s: of %d flows %d were begun outside", why[0], w.live, w.outside)
		}
		// So is one from there to a port published here.
		c := c
		c.Forwards = []Forward{{"wan", "tcp", PortRange{80, 80}, ap(other4, 80)}}
		w.Configure(c)
		w.wan.In(tcp(ap(server4, 7), ap(pub4, 80), flagSYN).frame(), w.Edge("wan2"), new(Copy))
		if w.outside != 6 || w.live != 6 {
			t.Errorf("of %d flows %d were begun outside", w.live, w.outside)
		}
		// And one that leaves again since the port is published for a host outside.
		c.Forwards = []Forward{{"wan", "tcp", PortRange{80, 80}, ap(hop4, 80)}}
		w.Configure(c)
		q := tcp(ap(server4, 8), ap(pub4, 80), flagSYN)
		is(t, w.mustOut(t, w.mustIn(t, q.frame(), false)), ap(pub4, 8), ap(hop4, 80))
		is(t, w.mustOut(t, w.mustIn(t, tcp(ap(hop4, 80), ap(pub4, 8), flagSYN|flagACK).frame(), false)), ap(pub4, 80), ap(server4, 8))
		if w.outside != 7 || w.live != 7 {
			t.Errorf("of %d flows %d were begun outside", w.live, w.outside)
		}
		w.Flush(Filter{}, "test")
		if w.outside != 0 {
			t.Errorf("%d flows are left outside", w.outside)
		}
	})
}

// TestErrors: an ICMP error reaches who sent the packet, with the packet as he
// sent it.
func TestErrors(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		hop, ttl, unreach, big := hop4, uint8(11), uint8(3), uint8(3)
		router := router4
		if client.Is6() {
			hop, ttl, unreach, big, router = hop6, 3, 1, 2, netip.MustParseAddr("fd00::1")
		}
		c, s, p := ap(client, 4000), ap(server, 80), ap(public, 4000)
		for name, m := range map[string]func(a, b netip.AddrPort) pkt{
			"tcp": func(a, b netip.AddrPort) pkt { return tcp(a, b, flagSYN) }, "udp": udp,
			"ping": func(a, b netip.AddrPort) pkt { return echo(a, b, false) },
			"gre":  func(a, b netip.AddrPort) pkt { return pkt{proto: 47, src: a, dst: b, size: 20} },
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, Limits{}, testConfig())
				// Another has the port, so that it is not kept.
				if name != "gre" {
					w.mustOut(t, m(ap(client.Next(), 4000), s).frame())
				}
				sent := m(c, s).packet()
				seen := w.mustOut(t, m(c, s).frame()).Bytes(nil)[ethernet:]
				for _, n := range []int{len(sent), len(sent) - 10, ipHeader(client) + 8} {
					n = max(n, ipHeader(client)+8)
					for _, from := range []netip.Addr{hop, server} {
						e := w.mustIn(t, icmpError(from, public, ttl, 0, 0, seen, n), false)
						same(t, e, icmpError(from, client, ttl, 0, 0, sent, n))
						sound(t, e)
					}
				}
				e := w.mustIn(t, icmpError(hop, public, big, 4, 1280, seen, len(seen)), false)
				same(t, e, icmpError(hop, client, big, 4, 1280, sent, len(sent)))
				if n := w.Stats(); n["errors.in"] != 7 || n["errors.out"] != 0 {
					t.Errorf("counted: %v", n)
				}
				w.stateIsUnchanged(t)
			})
		}
		t.Run("from inside", func(t *testing.T) {
			// About answers: by the client, by a router near it, by this router.
			w := newWorld(t, Limits{}, testConfig())
			w.mustOut(t, udp(c, s).frame())
			got := w.mustIn(t, udp(s, p).frame(), false).Bytes(nil)[ethernet:]
			want := udp(s, p).packet()
			for from, as := range map[netip.Addr]netip.Addr{client: public, client.Next(): public, public: public, router: router} {
				e := w.mustOut(t, icmpError(from, server, unreach, 3, 0, got, len(got)))
				same(t, e, icmpError(as, server, unreach, 3, 0, want, len(want)))
			}
			if n := w.Stats(); n["errors.out"] != 4 || n["errors.in"] != 0 {
				t.Errorf("counted: %v", n)
			}
		})
		t.Run("strangers", func(t *testing.T) {
			w := newWorld(t, Limits{}, testConfig())
			quote := udp(s, ap(client, 5)).packet()
			if _, why := w.out(icmpError(client, server, unreach, 3, 0, quote, len(quote))); why != ndiscore.DropNATState {
				t.Errorf("an error about nothing may leave: %s", why)
			}
			w.mustOut(t, udp(c, s).frame())
			// Quotes a packet that went elsewhere than the error comes to.
			quote = udp(p, s).packet()
			other := public.Next()
			e := icmpError(hop, other, ttl, 0, 0, quote, len(quote))
			same(t, w.mustIn(t, e, false), e)
			// Of another flow, and cut too short.
			for _, q := range [][]byte{udp(ap(public, 4001), s).packet(), quote[:ipHeader(client)+4]} {
				e = icmpError(hop, public, ttl, 0, 0, q, len(q))
				same(t, w.mustIn(t, e, false), e)
			}
		})
	})
}

func ipHeader(a netip.Addr) int {
	if a.Is4() {
		return ipv4Min
	}
	return ipv6Min
}

// stateIsUnchanged: whoever can forge an error must not end a flow by it.
func (w *world) stateIsUnchanged(t *testing.T) {
	t.Helper()
	for _, f := range w.Flows(Filter{}, 0) {
		if f.Packets != 1 || f.BackPackets != 0 {
			t.Errorf("%+v", f)
		}
	}
}

func TestFragments(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		w := newWorld(t, Limits{Fragments: 4}, testConfig(Forward{"wan", "udp", PortRange{53, 53}, ap(client, 53)}))
		big := func(src, dst netip.AddrPort, id uint32) pkt {
			return pkt{proto: protoUDP, src: src, dst: dst, size: 100, id: id}
		}
		c, s, p := ap(client, 4000), ap(server, 80), ap(public, 4000)
		all := func(t *testing.T, pass func(rapid.TB, *ndiscore.Frame) *ndiscore.Frame, from, want pkt) {
			t.Helper()
			fs, ws := from.fragments(40), want.fragments(40)
			for i := range fs {
				same(t, pass(t, fs[i]), ws[i])
			}
		}
		out := func(t rapid.TB, f *ndiscore.Frame) *ndiscore.Frame { t.Helper(); return w.mustOut(t, f) }
		in := func(t rapid.TB, f *ndiscore.Frame) *ndiscore.Frame { t.Helper(); return w.mustIn(t, f, false) }
		all(t, out, big(c, s, 7), big(p, s, 7))
		all(t, in, big(s, p, 7), big(s, c, 7))
		all(t, in, big(s, ap(public, 53), 8), big(s, ap(client, 53), 8))
		all(t, in, big(s, ap(public, 99), 9), big(s, ap(public, 99), 9)) // the router's own
		all(t, out, big(ap(public, 99), s, 9), big(ap(public, 99), s, 9))

		late := big(s, p, 10).fragments(40)
		for _, f := range late[1:] {
			if _, why := w.in(f, false); why != ndiscore.DropFragment {
				t.Errorf("a later fragment without the first: %s", why)
			}
		}
		w.mustIn(t, late[0], false)
		for range 4 { // others push it out
			w.mustIn(t, big(s, p, uint32(w.rng.IntN(60000))+100).fragments(40)[0], false)
		}
		if _, why := w.in(late[1], false); why != ndiscore.DropFragment {
			t.Errorf("the table of fragments has no bound: %s", why)
		}
		w.mustIn(t, late[0], false)
		w.pass(fragmentLife + time.Second)
		if _, why := w.in(late[1], false); why != ndiscore.DropFragment {
			t.Errorf("half a minute later: %s", why)
		}
		short := big(c, s, 11)
		short.proto = protoTCP
		if _, why := w.out(short.fragments(8)[0]); why != ndiscore.DropFragment {
			t.Errorf("a first fragment that hides the flags: %s", why)
		}
		if got := w.Stats()["dropped.fragments"]; got != uint64(len(late)-1+3) {
			t.Errorf("%d counted", got)
		}
	})
}

// TestFragmentsOfOthers: what NAT has nothing to do with may come in any order.
func TestFragmentsOfOthers(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		only := func(masquerade bool, fw ...Forward) *world {
			c := testConfig(append(fw, Forward{"wan", "tcp", PortRange{80, 80}, ap(client.Next(), 80)})...)
			c.Interfaces[1].Masquerade, c.Interfaces[1].Masquerade6 = masquerade && client.Is4(), masquerade && client.Is6()
			return newWorld(t, Limits{}, c)
		}
		later := func(src, dst netip.Addr, proto uint8) *ndiscore.Frame {
			return pkt{proto: proto, src: ap(src, 1), dst: ap(dst, 2), size: 100, id: 7}.fragments(40)[1]
		}
		passes := func(what string, f, g *ndiscore.Frame, why ndiscore.DropReason) {
			t.Helper()
			if why != ndiscore.DropNone || string(f.Bytes(nil)) != string(g.Bytes(nil)) {
				t.Errorf("%s: %s", what, why)
			}
		}
		lost := func(what string, why ndiscore.DropReason) {
			t.Helper()
			if why != ndiscore.DropFragment {
				t.Errorf("%s: %s", what, why)
			}
		}
		w := only(false)
		f := later(client, server, protoUDP)
		g, why := w.out(f)
		passes("out, not masqueraded", f, g, why)
		_, why = w.out(later(client.Next(), server, protoTCP))
		lost("out, maybe the answer of a published port", why)
		_, why = w.in(later(server, public, protoTCP), false)
		lost("in, maybe for a published port", why)
		if client.Is4() { // in IPv6 a later fragment does not say what it is of
			f = later(server, public, protoUDP)
			g, why = w.in(f, false)
			passes("in, nothing is published", f, g, why)
		}

		w = only(true)
		_, why = w.out(later(client, server, protoUDP))
		lost("out, to be masqueraded", why)
		f = later(public, server, protoUDP)
		g, why = w.out(f)
		passes("out, the router's own", f, g, why)
		_, why = w.in(later(server, public, protoUDP), false)
		lost("in, maybe an answer", why)
		if client.Is4() {
			f = later(client, public, protoUDP)
			g, why = w.in(f, true)
			passes("from inside, for the router", f, g, why)
		}

		// The other version of IP, of which nothing is translated.
		c := testConfig()
		c.Interfaces[1].Masquerade, c.Interfaces[1].Masquerade6 = client.Is6(), client.Is4()
		w = newWorld(t, Limits{}, c)
		for _, f := range []*ndiscore.Frame{later(client, server, protoUDP), later(server, public, protoUDP)} {
			g, why = w.out(f)
			passes("out, the other version", f, g, why)
			g, why = w.in(f, false)
			passes("in, the other version", f, g, why)
		}
	})
}

// TestFragmentsCount: each fragment counts for its flow, and keeps it alive.
func TestFragmentsCount(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		w := newWorld(t, Limits{}, testConfig())
		pass := func(f *ndiscore.Frame, in bool) (bytes uint64) {
			if in {
				w.mustIn(t, f, false)
			} else {
				w.mustOut(t, f)
			}
			return uint64(f.Len() - ethernet)
		}
		there := pkt{proto: protoUDP, src: ap(client, 4000), dst: ap(server, 80), size: 100, id: 7}.fragments(40)
		back := pkt{proto: protoUDP, src: ap(server, 80), dst: ap(public, 4000), size: 100, id: 8}.fragments(40)
		var sent, got uint64
		for _, f := range there[:2] {
			sent += pass(f, false)
		}
		for _, f := range back {
			got += pass(f, true)
		}
		w.pass(29 * time.Second)
		sent += pass(there[2], false) // late
		f := w.Flows(Filter{}, 0)[0]
		if f.Packets != 3 || f.Bytes != sent || f.BackPackets != 3 || f.BackBytes != got || f.Expires != 30*time.Second {
			t.Errorf("%+v, want %d and %d bytes", f, sent, got)
		}
		if f.State != "answered" {
			t.Errorf("a late fragment made the flow %s", f.State)
		}
		if s := w.Stats(); s["translated.out"] != 3 || s["translated.in"] != 3 {
			t.Errorf("%v", s)
		}
	})
}

// TestOffload: a checksum that is left to the device stays so, and is right when
// the device has done its part.
func TestOffload(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		w := newWorld(t, Limits{}, testConfig())
		w.mustOut(t, tcp(ap(client.Next(), 4000), ap(server, 80), flagSYN).frame()) // so that the port changes too
		f := tcp(ap(client, 4000), ap(server, 80), flagSYN).frame()
		l4 := ethernet + ipHeader(client)
		n := f.Len() - l4
		f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: uint16(l4), CsumOffset: tcpCsum}
		binary.BigEndian.PutUint16(f.Head[l4+tcpCsum:], ndiscore.PseudoChecksum(client.AsSlice(), server.AsSlice(), protoTCP, n))
		g := w.mustOut(t, f)
		if got, want := binary.BigEndian.Uint16(g.Head[l4+tcpCsum:]), ndiscore.PseudoChecksum(public.AsSlice(), server.AsSlice(), protoTCP, n); got != want {
			t.Errorf("%x, want %x", got, want)
		}
		if g.Offload != f.Offload {
			t.Errorf("%+v", g.Offload)
		}
	})
	t.Run("ICMP", func(t *testing.T) {
		both(t, func(t *testing.T, client, server, public netip.Addr) {
			w := newWorld(t, Limits{}, testConfig())
			w.mustOut(t, echo(ap(client, 7), ap(server, 0), false).frame())
			g := w.mustOut(t, echo(ap(client.Next(), 7), ap(server, 0), false).frame())
			l4, proto := ethernet+ipHeader(client), uint8(protoICMP)
			typ := uint8(11)
			if client.Is6() {
				proto, typ = protoICMPv6, 3
			}
			id := binary.BigEndian.Uint16(g.Head[l4+4:])
			for _, f := range []*ndiscore.Frame{
				echo(ap(server, 0), ap(public, id), true).frame(),
				icmpError(server, public, typ, 0, 0, g.Bytes(nil)[ethernet:], 60),
			} {
				n := f.Len() - l4
				open := uint16(0)
				if client.Is6() {
					open = ndiscore.PseudoChecksum(server.AsSlice(), public.AsSlice(), proto, n)
				}
				binary.BigEndian.PutUint16(f.Head[l4+icmpCsum:], open)
				f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: uint16(l4), CsumOffset: icmpCsum}
				h := w.mustIn(t, f, false).Bytes(nil)
				binary.BigEndian.PutUint16(h[l4+icmpCsum:], ^ndiscore.Checksum(h[l4:], 0))
				sound(t, frameOf(h))
			}
		})
	})
	t.Run("zero stays zero", func(t *testing.T) {
		w := newWorld(t, Limits{}, testConfig())
		p := udp(ap(client4, 4000), ap(server4, 80))
		p.noSum = true
		if g := w.mustOut(t, p.frame()).Head[ethernet+ipv4Min+udpCsum:]; g[0]|g[1] != 0 {
			t.Errorf("%x", g[:2])
		}
	})
	t.Run("wrong stays wrong", func(t *testing.T) {
		w := newWorld(t, Limits{}, testConfig())
		f := udp(ap(client4, 4000), ap(server4, 80)).frame()
		f.Head[len(f.Head)-1] ^= 4
		if g := w.mustOut(t, f); ndiscore.VerifyTransport(g.Head, nil, ethernet) {
			t.Error("a corrupt packet became a valid one")
		}
	})
	t.Run("payload elsewhere", func(t *testing.T) {
		w := newWorld(t, Limits{}, testConfig())
		w.mustOut(t, udp(ap(client4, 4000), ap(server4, 80)).frame())
		x := udp(ap(server4, 80), ap(pub4, 4000))
		x.size = 3000
		b := x.frame().Bytes(nil)
		f := frameOf(b[:500])
		f.Segs = [][]byte{b[500:1000], b[1000:]}
		c := new(Copy)
		for range 2 {
			g, why := w.wan.In(f, w.wan, c)
			if why != ndiscore.DropNone || g == f {
				t.Fatal(why)
			}
			is(t, g, ap(server4, 80), ap(client4, 4000))
			if len(g.Segs) != 3 || &g.Segs[2][0] != &b[1000] {
				t.Error("the payload was copied")
			}
			c.Release()
		}
	})
}

func TestLeftAlone(t *testing.T) {
	w := newWorld(t, Limits{}, testConfig())
	ll := netip.MustParseAddr("fe80::1")
	nd := echo(ap(pub6, 0), ap(server6, 0), false)
	nd.typ = 135
	for _, f := range []*ndiscore.Frame{
		udp(ap(client4, 1), ap(netip.MustParseAddr("224.0.0.5"), 1)).frame(),
		udp(ap(ll, 1), ap(server6, 1)).frame(), udp(ap(client6, 1), ap(ll, 1)).frame(), nd.frame(),
		frameOf([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 1, 2, 3}),
	} {
		same(t, w.mustOut(t, f), f)
	}
	redirect := echo(ap(client4, 0), ap(server4, 0), false)
	redirect.typ = 5
	if _, why := w.out(redirect.frame()); why != ndiscore.DropNATState {
		t.Errorf("a redirect from inside: %s", why)
	}
	// No masquerading, no change; a forward alone does not make it.
	c := testConfig(Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)})
	c.Interfaces[1].Masquerade = false
	w = newWorld(t, Limits{}, c)
	f := udp(ap(client4, 1), ap(server4, 1)).frame()
	same(t, w.mustOut(t, f), f)
	is(t, w.mustIn(t, tcp(ap(server4, 9), ap(pub4, 80), flagSYN).frame(), false), ap(server4, 9), ap(client4, 80))
	is(t, w.mustOut(t, tcp(ap(client4, 80), ap(server4, 9), flagSYN|flagACK).frame()), ap(pub4, 80), ap(server4, 9))
}

func TestAddressChoice(t *testing.T) {
	c := testConfig()
	c.Interfaces[1].Addresses = append(c.Interfaces[1].Addresses, prefixes("198.51.100.1/24")...)
	w := newWorld(t, Limits{}, c)
	is(t, w.mustOut(t, udp(ap(client4, 1), ap(server4, 1)).frame()), ap(pub4, 1), ap(server4, 1))
	is(t, w.mustOut(t, udp(ap(client4, 1), ap(hop4, 1)).frame()), ap(netip.MustParseAddr("198.51.100.1"), 1), ap(hop4, 1))
	c.Interfaces[1].Addresses = prefixes("fe80::1/64")
	w = newWorld(t, Limits{}, c)
	if _, why := w.out(udp(ap(client6, 1), ap(server6, 1)).frame()); why != ndiscore.DropNATState {
		t.Errorf("no address to masquerade with: %s", why)
	}
}

func TestValidate(t *testing.T) {
	to := ap(client4, 80)
	for want, f := range map[string]Forward{
		"there is no interface x":       {"x", "tcp", PortRange{1, 1}, to},
		`protocol "sctp"`:               {"wan", "sctp", PortRange{1, 1}, to},
		"not a port":                    {"wan", "tcp", PortRange{9, 1}, to},
		"needs the address of a host":   {"wan", "tcp", PortRange{1, 1}, ap(netip.IPv4Unspecified(), 80)},
		"beyond port 65535":             {"wan", "tcp", PortRange{1, 10}, ap(client4, 65530)},
		"no address of that IP":         {"lan4", "tcp", PortRange{1, 1}, ap(client6, 80)},
		"is there already":              {"wan", "tcp", PortRange{75, 80}, to},
		"and a port, like 192.0.2.5:80": {"wan", "tcp", PortRange{1, 1}, ap(client4, 0)},
	} {
		c := testConfig(Forward{"wan", "tcp", PortRange{80, 90}, to}, f)
		c.Interfaces = append(c.Interfaces, Interface{Name: "lan4", Addresses: prefixes("10.7.0.1/24")})
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	c := testConfig(Forward{"wan", "tcp", PortRange{80, 80}, to}, Forward{"wan", "udp", PortRange{80, 80}, to}, Forward{"wan", "tcp", PortRange{80, 80}, ap(client6, 80)})
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
