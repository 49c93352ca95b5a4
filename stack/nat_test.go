package stack

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

func natOptions() Options {
	o := testOptions()
	o.Interfaces[1].Masquerade, o.Interfaces[1].Masquerade6 = true, true
	o.Forwards = []Forward{
		{Interface: "wan", Protocol: "udp", Ports: PortRange{First: 8000, Last: 8000}, To: netip.MustParseAddrPort("10.1.0.2:4000")},
		{Interface: "wan", Protocol: "udp", Ports: PortRange{First: 8000, Last: 8000}, To: netip.MustParseAddrPort("[fd01::2]:4000")},
	}
	return o
}

// talk is UDP from one end to the other, as a frame of the host on that side.
func talk(src, dst string, size int) *ndiscore.Frame {
	return ipFrame(src, dst, 64, layers.IPProtocolUDP, func(s, d netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer {
		u := &layers.UDP{SrcPort: layers.UDPPort(s.Port()), DstPort: layers.UDPPort(d.Port())}
		_ = u.SetNetworkLayerForChecksum(l3)
		return u
	}, size)
}

func ipFrame(src, dst string, ttl uint8, proto layers.IPProtocol, l4 func(s, d netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer, size int) *ndiscore.Frame {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	host, router := hostA, macA
	for _, p := range prefixes("10.2.0.0/24", "fd02::/64") {
		if p.Contains(s.Addr()) {
			host, router = hostB, macB
		}
	}
	if s.Addr().Is4() {
		l3 := ip4(s.Addr().String(), d.Addr().String(), proto, ttl, true)
		return serialize(ether(host, router, layers.EthernetTypeIPv4), l3, l4(s, d, l3), payload(size))
	}
	l3 := ip6(s.Addr().String(), d.Addr().String(), proto, ttl)
	return serialize(ether(host, router, layers.EthernetTypeIPv6), l3, l4(s, d, l3), payload(size))
}

// goes reports whether f is TCP or UDP from src to dst.
func goes(src, dst string) func(*ndiscore.Frame) bool {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return func(f *ndiscore.Frame) bool {
		p := decode(f)
		if p.NetworkLayer() == nil || p.TransportLayer() == nil {
			return false
		}
		a, b := p.NetworkLayer().NetworkFlow().Endpoints()
		x, y := p.TransportLayer().TransportFlow().Endpoints()
		end := func(a, p gopacket.Endpoint) netip.AddrPort {
			ip, _ := netip.AddrFromSlice(a.Raw())
			return netip.AddrPortFrom(ip, uint16(p.Raw()[0])<<8|uint16(p.Raw()[1]))
		}
		return end(a, x) == s && end(b, y) == d
	}
}

// natEnds are the ends in the tests of both versions of IP.
type natEnds struct{ client, server, public, service, gateway string }

var natVersions = map[string]natEnds{
	"v4": {"10.1.0.2:4000", "10.2.0.2:5000", "10.2.0.1:4000", "10.2.0.1:8000", "10.2.0.1"},
	"v6": {"[fd01::2]:4000", "[fd02::2]:5000", "[fd02::1]:4000", "[fd02::1]:8000", "fd02::1"},
}

func bothNAT(t *testing.T, mtuA, mtuB int, f func(t *testing.T, d *bed, e natEnds)) {
	for name, e := range natVersions {
		t.Run(name, func(t *testing.T) {
			d := newBed(t, natOptions(), mtuA, mtuB)
			d.meet()
			f(t, d, e)
		})
	}
}

func TestNATWays(t *testing.T) {
	bothNAT(t, 1500, 1500, func(t *testing.T, d *bed, e natEnds) {
		d.a.inject(talk(e.client, e.server, 700))
		sound(t, d.b.await(t, "the client's packet", goes(e.public, e.server)))
		d.b.inject(talk(e.server, e.public, 600))
		f := d.a.await(t, "the answer", goes(e.server, e.client))
		sound(t, f)
		if f.Dst() != hostA {
			t.Errorf("to %s", f.Dst())
		}
		// A published port.
		d.b.inject(talk(e.server[:len(e.server)-1]+"1", e.service, 50))
		sound(t, d.a.await(t, "a packet for the service", goes(e.server[:len(e.server)-1]+"1", e.client)))
		// And from inside: the client is its own server here, and must not notice.
		me := e.client[:len(e.client)-4] + "4007"
		d.a.inject(talk(me, e.service, 50))
		sound(t, d.a.await(t, "a packet for the service", goes(e.public[:len(e.public)-4]+"4007", e.client)))
		d.a.inject(talk(e.client, e.public[:len(e.public)-4]+"4007", 50))
		sound(t, d.a.await(t, "its answer", goes(e.service, me)))

		s := d.router.Stats()
		if s["nat.flows"] != 3 || s["nat.translated.in"] != 4 || s["nat.translated.out"] != 1 {
			t.Errorf("flows %d, in %d, out %d", s["nat.flows"], s["nat.translated.in"], s["nat.translated.out"])
		}
	})
}

// TestNATSuperFrames: a super-frame is translated once, and its open checksum with
// it.
func TestNATSuperFrames(t *testing.T) {
	bothNAT(t, 1500, 1500, func(t *testing.T, d *bed, e natEnds) {
		v6 := strings.HasPrefix(e.client, "[")
		for _, way := range []struct {
			in, out  *memAdapter
			src, dst string
			as, to   string
		}{{d.a, d.b, e.client, e.server, e.public, e.server}, {d.b, d.a, e.server, e.public, e.server, e.client}} {
			f := superOf(way.src, way.dst, 60000)
			way.in.inject(split(f, 200))
			g := way.out.await(t, "the super-frame", goes(way.as, way.to))
			if g.Offload.GSOSize != 1400 || g.Offload.Flags&ndiscore.NeedsCsum == 0 || len(g.Bytes(nil)) != len(f.Bytes(nil)) {
				t.Fatalf("%+v, %d bytes", g.Offload, len(g.Bytes(nil)))
			}
			l4 := 34
			if v6 {
				l4 = 54
			}
			want := superOf(way.as, way.to, 60000)
			if string(g.Bytes(nil)[l4:]) != string(want.Bytes(nil)[l4:]) {
				t.Errorf("got %x, want %x", g.Bytes(nil)[l4:l4+20], want.Bytes(nil)[l4:l4+20])
			}
		}
	})
}

// superOf is a TCP super-frame with a proper partial checksum.
func superOf(src, dst string, size int) *ndiscore.Frame {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	f := ipFrame(src, dst, 64, layers.IPProtocolTCP, func(s, d netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer {
		u := &layers.TCP{SrcPort: layers.TCPPort(s.Port()), DstPort: layers.TCPPort(d.Port()), ACK: true, Window: 9}
		_ = u.SetNetworkLayerForChecksum(l3)
		return u
	}, size)
	l4, kind := 34, ndiscore.GSOTCPv4
	if s.Addr().Is6() {
		l4, kind = 54, ndiscore.GSOTCPv6
	}
	sum := ndiscore.PseudoChecksum(s.Addr().AsSlice(), d.Addr().AsSlice(), protoTCP, f.Len()-l4)
	f.Head[l4+tcpCsum], f.Head[l4+tcpCsum+1] = byte(sum>>8), byte(sum)
	f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: kind, GSOSize: 1400, CsumStart: uint16(l4), CsumOffset: tcpCsum, HdrLen: uint16(l4 + 20)}
	return f
}

// TestNATRouterErrors: what the router itself says of a translated packet makes
// sense to who sent it, on either side.
func TestNATRouterErrors(t *testing.T) {
	bothNAT(t, 1300, 1300, func(t *testing.T, d *bed, e natEnds) {
		v6 := strings.HasPrefix(e.client, "[")
		isError := func(f *ndiscore.Frame) bool {
			return isICMP4(f, 11) || isICMP4(f, 3) || isICMP6(f, 3) || isICMP6(f, 2) || isICMP6(f, 1)
		}
		quotes := func(t *testing.T, what string, out *memAdapter, sent *ndiscore.Frame) {
			t.Helper()
			f := out.await(t, what, isError)
			sound(t, f)
			l4 := 34
			if v6 {
				l4 = 54
			}
			quote, want := f.Bytes(nil)[l4+8:], sent.Bytes(nil)[14:]
			want = want[:min(len(quote), len(want))]
			// The router may have used up the last hop, in the header or not.
			mask := func(b []byte) string {
				b = append([]byte(nil), b[:min(len(b), 100)]...)
				if v6 {
					b[7] = 0
				} else {
					b[8], b[10], b[11] = 0, 0, 0
				}
				return string(b)
			}
			if mask(quote) != mask(want) {
				t.Errorf("%s quotes\n%x, sent\n%x", what, mask(quote), mask(want))
			}
			if got := decode(f).NetworkLayer().NetworkFlow().Src().String(); out == d.b && got != e.gateway {
				t.Errorf("%s is from %s", what, got)
			}
		}
		d.a.inject(talk(e.client, e.server, 10))
		d.b.await(t, "the client's packet", goes(e.public, e.server))
		hops := func(f *ndiscore.Frame) *ndiscore.Frame {
			if v6 {
				f.Head[14+7] = 1
				return f
			}
			s := uint32(f.Head[24])<<8 + uint32(f.Head[25]) + uint32(f.Head[22]-1)<<8
			s += s >> 16
			f.Head[22], f.Head[24], f.Head[25] = 1, byte(s>>8), byte(s)
			return f
		}
		f := hops(talk(e.server, e.public, 100))
		d.b.inject(f)
		quotes(t, "time exceeded, outside", d.b, f)
		f = hops(talk(e.client, e.server, 100))
		d.a.inject(f)
		quotes(t, "time exceeded, inside", d.a, f)
		f = talk(e.server, e.public, 1400)
		d.b.inject(f)
		quotes(t, "too big, outside", d.b, f)
		f = talk(e.client, e.server, 1400)
		d.a.inject(f)
		quotes(t, "too big, inside", d.a, f)
	})
}

// TestNATHonest: a checksum that comes wrong leaves wrong, both ways.
func TestNATHonest(t *testing.T) {
	bothNAT(t, 1500, 1500, func(t *testing.T, d *bed, e natEnds) {
		spoil := func(f *ndiscore.Frame) *ndiscore.Frame {
			f.Head[len(f.Head)-1] ^= 1
			return f
		}
		d.a.inject(spoil(talk(e.client, e.server, 100)))
		if f := d.b.await(t, "the client's packet", goes(e.public, e.server)); ndiscore.VerifyTransport(f.Bytes(nil), nil, 14) {
			t.Error("it became valid")
		}
		d.b.inject(spoil(talk(e.server, e.public, 100)))
		if f := d.a.await(t, "the answer", goes(e.server, e.client)); ndiscore.VerifyTransport(f.Bytes(nil), nil, 14) {
			t.Error("it became valid")
		}
	})
}

// TestNATLocal: a socket of the router's own and a client with the same port
// talk to one server without getting in each other's way.
func TestNATLocal(t *testing.T) {
	d := newBed(t, natOptions(), 1500, 1500)
	d.meet()
	e := natVersions["v4"]
	var c *gonet.UDPConn
	if err := d.router.do(t.Context(), func() {
		s := d.router.feed.net.s
		var err error
		c, err = gonet.DialUDP(s, &tcpip.FullAddress{Addr: netAddress(netip.MustParseAddr("10.2.0.1")), Port: 4000},
			&tcpip.FullAddress{Addr: netAddress(netip.MustParseAddr("10.2.0.2")), Port: 5000}, ipv4.ProtocolNumber)
		if err != nil {
			t.Error(err)
		}
	}); err != nil || c == nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("mine")); err != nil {
		t.Fatal(err)
	}
	d.b.await(t, "the router's packet", goes(e.public, e.server))
	d.a.inject(talk(e.client, e.server, 33))
	f := d.b.await(t, "the client's packet", func(f *ndiscore.Frame) bool { return isUDP(f) && !goes(e.public, e.server)(f) })
	u := decode(f).Layer(layers.LayerTypeUDP).(*layers.UDP)
	d.b.inject(talk(e.server, e.public, 4), talk(e.server, netip.AddrPortFrom(netip.MustParseAddr("10.2.0.1"), uint16(u.SrcPort)).String(), 33))
	d.a.await(t, "the client's answer", goes(e.server, e.client))
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || n != 4 {
		t.Errorf("%d bytes, %v", n, err)
	}
	kinds := map[string]int{}
	flows, _, err := d.router.NATFlows(NATFilter{Interface: "b"}, 0)
	for _, f := range flows {
		kinds[f.Kind]++
	}
	if err != nil || len(kinds) != 2 || kinds["local"] != 1 || kinds["masquerade"] != 1 {
		t.Errorf("%v, %v", kinds, err)
	}
	// Who asks the router something makes no flow.
	d.b.inject(serialize(ether(hostB, macB, layers.EthernetTypeIPv4), ip4("10.2.0.2", "10.2.0.1", layers.IPProtocolICMPv4, 64, false),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 9, Seq: 1}, payload(20)), talk("10.2.0.2:7", "10.2.0.1:7", 10))
	d.b.await(t, "an echo", func(f *ndiscore.Frame) bool { return isICMP4(f, 0) })
	sound(t, d.b.await(t, "port unreachable", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) }))
	if n := d.router.Stats()["nat.flows"]; n != 2 {
		t.Errorf("%d flows", n)
	}
}

// TestNATRebind takes the way out away and brings it back, as an ndis5 bundle
// does: flows go on.
func TestNATRebind(t *testing.T) {
	bothNAT(t, 1500, 1500, func(t *testing.T, d *bed, e natEnds) {
		other := strings.Replace(e.client, "::2", "::3", 1)
		other = strings.Replace(other, "10.1.0.2", "10.1.0.3", 1)
		d.a.inject(talk(other, e.server, 10)) // so that the client's port is not kept
		d.b.await(t, "the other client's packet", goes(e.public, e.server))
		d.a.inject(talk(e.client, e.server, 11))
		f := d.b.await(t, "the client's packet", isUDP)
		port := uint16(decode(f).Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)
		public := netip.AddrPortFrom(netip.MustParseAddr(e.gateway), port).String()
		for range 3 {
			for _, err := range []error{d.core.Stop(t.Context(), "b", "test"), d.core.Start(t.Context(), "b", "test")} {
				if err != nil {
					t.Fatal(err)
				}
			}
			d.meet()
			d.b.inject(talk(e.server, public, 20))
			d.a.await(t, "the answer", goes(e.server, e.client))
			d.a.inject(talk(e.client, e.server, 12))
			d.b.await(t, "the client's packet", goes(public, e.server))
		}
		if n := d.router.Stats()["nat.created"]; n != 2 {
			t.Errorf("%d flows were made", n)
		}
	})
}

// TestNATDrops: each frame that NAT refuses is counted where it came in, or where
// it would have left.
func TestNATDrops(t *testing.T) {
	o := natOptions()
	o.NAT.Flows = 1
	d := newBed(t, o, 1500, 1500)
	d.meet()
	e := natVersions["v4"]
	tcp := func(src, dst string, flags layers.TCP) *ndiscore.Frame {
		return ipFrame(src, dst, 64, layers.IPProtocolTCP, func(s, d netip.AddrPort, l3 gopacket.NetworkLayer) gopacket.SerializableLayer {
			flags.SrcPort, flags.DstPort = layers.TCPPort(s.Port()), layers.TCPPort(d.Port())
			_ = flags.SetNetworkLayerForChecksum(l3)
			return &flags
		}, 0)
	}
	for _, step := range []struct {
		from, to *memAdapter
		f        *ndiscore.Frame
	}{
		{d.a, d.b, tcp(e.client, e.server, layers.TCP{SYN: true})},
		{d.b, d.a, tcp(e.server, e.public, layers.TCP{SYN: true, ACK: true})},
		{d.a, d.b, tcp(e.client, e.server, layers.TCP{ACK: true})},
	} {
		step.from.inject(step.f)
		step.to.await(t, "TCP", isTCP)
	}
	d.a.inject(talk(e.client, e.server, 10), tcp(e.client, "10.2.0.2:99", layers.TCP{RST: true}), talk(e.client, e.server, 10))
	eventually(t, "counted", func() bool { return d.router.Stats()["send.wan.nat"] == 3 })
	s := d.router.Stats()
	if s["nat.refused.no_room"] != 2 || s["nat.dropped.state"] != 1 {
		t.Errorf("no room %d, state %d", s["nat.refused.no_room"], s["nat.dropped.state"])
	}
	d.b.inject(talk(e.server, e.service, 10))
	drops := func(r ndiscore.DropReason) uint64 {
		all, err := d.core.Adapters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all[1].Counters.RxDropped[r.String()]
	}
	if drops(ndiscore.DropNATFull) != 1 {
		t.Errorf("a new flow from outside: not counted")
	}
	late := talk(e.server, e.public, 40)
	late.Head[14+6], late.Head[14+7] = 0, 9 // a later fragment
	late.Head[24], late.Head[25] = 0, 0
	sum := ^ndiscore.Checksum(late.Head[14:34], 0)
	late.Head[24], late.Head[25] = byte(sum>>8), byte(sum)
	d.b.inject(late)
	if drops(ndiscore.DropFragment) != 1 {
		t.Errorf("a fragment without its first: not counted")
	}
	eventually(t, "an event", func() bool {
		return d.events.has(`nat.full wan "">"": 1 flow of at most 1, and none of them can be given up`)
	})
}

func TestNATApply(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	e := natVersions["v4"]
	through := func(as string) {
		t.Helper()
		d.a.inject(talk(e.client, e.server, 10))
		d.b.await(t, "the client's packet from "+as, goes(as, e.server))
	}
	through(e.client)
	apply := func(change func(*Options)) {
		t.Helper()
		o := natOptions()
		change(&o)
		if err := d.router.Apply(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	apply(func(*Options) {})
	through(e.public)
	apply(func(o *Options) { o.Forwards = nil })
	through(e.public)
	if n := d.router.Stats(); n["nat.flushed"] != 0 || n["nat.flows"] != 1 {
		t.Errorf("flushed %d", n["nat.flushed"])
	}
	apply(func(o *Options) { o.Interfaces[1].Addresses = prefixes("10.2.0.7/24", "fd02::1/64") })
	through("10.2.0.7:4000")
	if !d.events.has("nat.flushed") || d.router.Stats()["nat.flushed"] != 1 {
		t.Error("flows of an address that is gone remain")
	}
	apply(func(o *Options) {
		o.Interfaces[1].Addresses = prefixes("10.2.0.7/24", "fd02::1/64")
		o.Interfaces[1].Masquerade, o.Interfaces[1].Masquerade6, o.Forwards = false, false, nil
	})
	through(e.client)

	bad := natOptions()
	bad.Forwards[0].Interface = "x"
	if err := d.router.Apply(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "there is no interface x") {
		t.Errorf("%v", err)
	}
	if _, err := d.router.FlushNAT(NATFilter{Interface: "x"}, "test"); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestNATTransit: a host outside cannot use the router to speak in its name.
func TestNATTransit(t *testing.T) {
	d := newBed(t, natOptions(), 1500, 1500)
	d.meet()
	d.b.inject(talk("10.2.0.66:4000", "10.9.0.9:5000", 10))
	sound(t, d.b.await(t, "the stranger's packet as it was", goes("10.2.0.66:4000", "10.9.0.9:5000")))
}

// TestNATUnderChange: everything that can be changed is, under traffic of all kinds,
// some of it spoilt. Each frame received has one fate.
func TestNATUnderChange(t *testing.T) {
	o := natOptions()
	o.NAT = NATLimits{Flows: 300, Fragments: 4}
	d := newBed(t, o, 1500, 1500)
	d.meet()
	stop := time.Now().Add(1500 * time.Millisecond)
	var wg sync.WaitGroup
	for n, x := range []*memAdapter{d.a, d.b} {
		x.mu.Lock()
		x.drain = true
		x.mu.Unlock()
		wg.Go(func() { // ends when the time is up
			r := rand.New(rand.NewPCG(uint64(n), 1))
			one := func() *ndiscore.Frame {
				e := natVersions[[]string{"v4", "v6"}[r.IntN(2)]]
				port := func(s string) string {
					return netip.AddrPortFrom(netip.MustParseAddrPort(s).Addr(), uint16(1+r.IntN(400))).String()
				}
				src, to := port(e.client), []string{port(e.server), e.service}
				if x == d.b {
					src, to = port(e.server), []string{port(e.public), e.service, port(e.client), port(e.server)}
				}
				f := talk(src, to[r.IntN(len(to))], r.IntN(1400))
				if r.IntN(8) == 0 {
					f.Head[14+r.IntN(len(f.Head)-14)] ^= 1 << r.IntN(8)
				}
				return split(f, 60+r.IntN(1000))
			}
			for time.Now().Before(stop) {
				var frames []*ndiscore.Frame
				for range 32 {
					frames = append(frames, one())
				}
				x.inject(frames...)
			}
		})
	}
	wg.Go(func() { // ends when the time is up
		for i := 0; time.Now().Before(stop); i++ {
			o := natOptions()
			o.NAT = NATLimits{Flows: 100 + 100*(i%3), Fragments: 4}
			o.Interfaces[0].Masquerade = i%5 == 0
			o.Interfaces[1].Masquerade, o.Interfaces[1].Masquerade6 = i%2 == 0, i%3 == 0
			if i%3 == 1 {
				o.Forwards = nil
			}
			if i%7 == 0 {
				o.Interfaces[1].Addresses = prefixes("10.2.0.7/24", "fd02::1/64")
			}
			if err := d.router.Apply(t.Context(), o); err != nil {
				t.Error(err)
			}
			if _, err := d.router.FlushNAT(NATFilter{Address: netip.MustParsePrefix("10.1.0.0/16")}, "test"); err != nil {
				t.Error(err)
			}
			if _, _, err := d.router.NATFlows(NATFilter{Interface: "wan"}, 0); err != nil {
				t.Error(err)
			}
			d.router.nat.Tick(time.Now())
			runtime.Gosched()
		}
	})
	wg.Wait()
	all, err := d.core.Adapters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		c := a.Counters
		sum := c.Forwarded + c.Delivered + c.RxHeld
		for _, n := range c.RxDropped {
			sum += n
		}
		if c.RxFrames != sum {
			t.Errorf("%s: %d frames received, %d with a fate: %+v", a.Name, c.RxFrames, sum, c)
		}
	}
	if s := d.router.Stats(); s["nat.flows"] > 300 || s["panics"] != 0 {
		t.Errorf("%d flows, %d panics", s["nat.flows"], s["panics"])
	}
}

// BenchmarkReceiveNAT is what NAT costs a received frame, over none.
func BenchmarkReceiveNAT(b *testing.B) {
	for _, masquerade := range []bool{false, true} {
		name := "without"
		if masquerade {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			o := testOptions()
			o.Interfaces[1].Masquerade = masquerade
			d := newBareRouter(b, o, 1500, 1500)
			e := natVersions["v4"]
			f := talk(e.server, e.client, 1000)
			if masquerade {
				out := talk(e.client, e.server, 1000)
				d.b.iface.edge.Load().Out([]*ndiscore.Frame{out}, make([]ndiscore.DropReason, 1))
				f = talk(e.server, e.public, 1000)
			}
			t, mac := d.fib.Load(), d.b.station.Load().mac
			f = split(f, 200)
			var own *nat.Copy
			b.ReportAllocs()
			for b.Loop() {
				if x := t.examine(d.b, mac, f, &own); x.drop != ndiscore.DropNone || x.class != classForward {
					b.Fatal(x.drop)
				}
				if own != nil {
					own.Release()
				}
			}
		})
	}
}

// FuzzNAT is FuzzReceive on both sides of a router that masquerades: what comes in
// may be for anybody, and belong to flows.
func FuzzNAT(f *testing.F) {
	add := func(fr *ndiscore.Frame, outside bool) {
		o := fr.Offload
		f.Add(fr.Bytes(nil), outside, uint8(o.Flags), uint8(o.GSO), o.GSOSize, o.CsumStart, o.CsumOffset, uint16(200))
	}
	for _, e := range natVersions {
		add(talk(e.client, e.server, 100), false)
		add(talk(e.server, e.public, 1600), true)
		add(talk(e.server, e.service, 100), true)
		add(talk(e.client, e.service, 100), false)
		add(superOf(e.client, e.server, 5000), false)
		add(superOf(e.server, e.public, 5000), true)
	}
	quote := talk(natVersions["v4"].public, natVersions["v4"].server, 20).Bytes(nil)[14:]
	add(serialize(ether(hostB, macB, layers.EthernetTypeIPv4), ip4("10.2.0.9", "10.2.0.1", layers.IPProtocolICMPv4, 64, false),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4)}, gopacket.Payload(quote)), true)
	o := natOptions()
	o.NAT = NATLimits{Flows: 16, Fragments: 4}
	d := newBareRouter(f, o, 9000, 1500)
	f.Fuzz(func(t *testing.T, b []byte, outside bool, flags, gso uint8, size, start, off, head uint16) {
		if len(b) > ndiscore.MaxFrame {
			return
		}
		from, mac, host := d.a, macA, hostA
		if outside {
			from, mac, host = d.b, macB, hostB
		}
		fr := split(frameOf(b), max(int(head), 1))
		fr.Offload = ndiscore.Offload{Flags: ndiscore.OffloadFlags(flags), GSO: ndiscore.GSOKind(gso), GSOSize: size, CsumStart: start, CsumOffset: off}
		if len(fr.Head) >= 34 {
			copy(fr.Head, mac[:])
			copy(fr.Head[6:], host[:])
			if fr.Head[12], fr.Head[13] = 0x86, 0xdd; fr.Head[14]>>4 == 4 {
				fr.Head[12], fr.Head[13] = 8, 0
				rewrite(fr, func([]byte) {})
			}
		}
		before := string(fr.Bytes(nil))
		d.in(from, fr)
		if string(fr.Bytes(nil)) != before {
			t.Fatal("a frame that was lent was changed")
		}
		if s := d.Stats(); s["panics"] != 0 {
			t.Fatal("netstack panicked")
		}
		for _, w := range []*checkedWire{d.wa, d.wb} {
			if s := w.wrong.Load(); s != nil {
				t.Fatal(*s)
			}
		}
	})
}
