package stack

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// TestRegressionAnswerInterface: netstack answers out of the interface that has the
// address which was asked, if any route leads there, and so sends to the provider
// what is for a host next door.
func TestRegressionAnswerInterface(t *testing.T) {
	route := func(to, via string) Route {
		return Route{To: netip.MustParsePrefix(to), Via: netip.MustParseAddr(via)}
	}
	out4, out6 := route("0.0.0.0/0", "10.2.0.2"), route("::/0", "fd02::2")
	for name, c := range map[string]struct {
		routes []Route
		masq   bool
	}{
		"no other route":         {},
		"default":                {routes: []Route{out4, out6}},
		"default and masquerade": {routes: []Route{out4, out6}, masq: true},
		"longer ones":            {routes: []Route{out4, out6, route("10.0.0.0/8", "10.2.0.2"), route("fd00::/8", "fd02::2")}},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions()
			// Some ask from behind the host in the network inside.
			o.Routes = append(c.routes, route("10.3.0.0/16", "10.1.0.2"), route("fd03::/64", "fd01::2"))
			o.Interfaces[1].Masquerade, o.Interfaces[1].Masquerade6 = c.masq, c.masq
			d := newBed(t, o, 1500, 1500)
			d.meet()
			table := func() (all []string) {
				t.Helper()
				if err := d.router.do(t.Context(), func() {
					for _, r := range d.router.feed.net.s.GetRouteTable() {
						all = append(all, r.String())
					}
				}); err != nil {
					t.Fatal(err)
				}
				slices.Sort(all)
				return all
			}
			before := table()
			for _, x := range []struct {
				at       *memAdapter
				host     ndiscore.MAC
				from, to string
			}{
				{d.a, hostA, "10.1.0.2", "10.2.0.1"}, {d.a, hostA, "fd01::2", "fd02::1"},
				{d.a, hostA, "10.3.0.9", "10.2.0.1"}, {d.a, hostA, "fd03::9", "fd02::1"},
				{d.b, hostB, "10.2.0.2", "10.1.0.1"}, {d.b, hostB, "fd02::2", "fd01::1"},
			} {
				for want, q := range inquiries(x.from, x.to) {
					x.at.inject(q.ask...)
					f := x.at.await(t, want+" for "+x.from, func(f *ndiscore.Frame) bool { return f.Dst() == x.host && q.answers(f) })
					flow := decode(f).NetworkLayer().NetworkFlow()
					if src, dst := flow.Endpoints(); src.String() != x.to || dst.String() != x.from {
						t.Errorf("%s goes from %s to %s", want, src, dst)
					}
				}
			}
			// What is forwarded goes where it went.
			d.a.inject(udp4(flow{ttl: 64, size: 9}), udp6(flow{ttl: 64, size: 9}))
			for range 2 {
				d.b.await(t, "datagram", isUDP)
			}
			if now := table(); !slices.Equal(now, before) {
				t.Errorf("netstack's routes are %q, and were %q", now, before)
			}
		})
	}
}

// inquiry is something that netstack answers by itself.
type inquiry struct {
	ask     []*ndiscore.Frame
	answers func(*ndiscore.Frame) bool
}

// inquiries are put to an address of the router's, by what is to be the answer.
func inquiries(from, to string) map[string]inquiry {
	echo, reply, refusal := uint8(8), uint8(0), uint8(3)
	proto, is := layers.IPProtocolICMPv4, isICMP4
	v6 := netip.MustParseAddr(from).Is6()
	if v6 {
		echo, reply, refusal, proto, is = 128, 129, 1, layers.IPProtocolICMPv6, isICMP6
	}
	src := netip.AddrPortFrom(netip.MustParseAddr(from), 1234).String()
	dst := netip.AddrPortFrom(netip.MustParseAddr(to), 22).String()
	ping := func(size int) *ndiscore.Frame {
		return ipFrame(src, dst, 64, proto, func(_, _ netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer {
			if !v6 {
				return &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(echo, 0), Id: 9}
			}
			i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(echo, 0)}
			_ = i.SetNetworkLayerForChecksum(l3)
			return i
		}, size)
	}
	syn := ipFrame(src, dst, 64, layers.IPProtocolTCP, func(s, d netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer {
		l := &layers.TCP{SrcPort: layers.TCPPort(s.Port()), DstPort: layers.TCPPort(d.Port()), SYN: true, Window: 1000}
		_ = l.SetNetworkLayerForChecksum(l3)
		return l
	}, 0)
	all := map[string]inquiry{
		"echo reply":       {[]*ndiscore.Frame{ping(56)}, func(f *ndiscore.Frame) bool { return is(f, reply) }},
		"RST":              {[]*ndiscore.Frame{syn}, isTCP},
		"port unreachable": {[]*ndiscore.Frame{talk(src, dst, 10)}, func(f *ndiscore.Frame) bool { return is(f, refusal) }},
	}
	if !v6 {
		all["echo reply in fragments"] = inquiry{fragments(ping(4000).Bytes(nil), 1480), func(f *ndiscore.Frame) bool {
			l, ok := decode(f).Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			return ok && l.Protocol == proto && l.FragOffset != 0 && l.Flags&layers.IPv4MoreFragments == 0
		}}
	}
	return all
}
