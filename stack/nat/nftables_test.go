package nat_test

// The same packets through this NAT and through nftables, in a namespace with the
// kernel's router; raw sockets stand for all hosts:
//
//	┌ inside ┐  veth   ┌─ router ─┐   veth   ┌ outside ┐
//	│ raw eth0═════════╪═lan   wan═╪═════════╪═eth0 raw │
//	└────────┘         └──────────┘          └─────────┘
//	10.0.0.5, .6, fd00::5 …   203.0.113.1, 2001:db8::1    192.0.2.9 … behind 203.0.113.254

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// cast are the addresses of one version of IP.
type cast struct {
	v6       bool
	router   string // its address inside
	public   netip.Addr
	net      string // lengths of the networks
	clients  []netip.Addr
	servers  []netip.Addr
	hop      netip.Addr // a router between
	next     netip.Addr // where everything goes
	bystand  netip.Addr // an inside host that proves that what was sent before is through
	nftables string
}

var casts = map[string]cast{
	"v4": {
		router: "10.0.0.1/24", public: netip.MustParseAddr("203.0.113.1"), net: "/24",
		clients: addrs("10.0.0.5", "10.0.0.6"), servers: addrs("192.0.2.9", "192.0.2.10"),
		hop: addrs("198.51.100.7")[0], next: addrs("203.0.113.254")[0], bystand: addrs("10.0.0.9")[0], nftables: "ip",
	},
	"v6": {
		v6: true, router: "fd00::1/64", public: netip.MustParseAddr("2001:db8::1"), net: "/64",
		clients: addrs("fd00::5", "fd00::6"), servers: addrs("2001:db8:9::9", "2001:db8:9::10"),
		hop: addrs("2001:db8:7::7")[0], next: addrs("2001:db8::fe")[0], bystand: addrs("fd00::9")[0], nftables: "ip6",
	},
}

func addrs(s ...string) (a []netip.Addr) {
	for _, x := range s {
		a = append(a, netip.MustParseAddr(x))
	}
	return a
}

// oracle is the kernel's NAT.
type oracle struct {
	*cast
	inside, outside     *lab.RawSocket
	lan, wan, mac1, mac net.HardwareAddr // the router's, and those of the hosts
	n                   uint32
}

func newOracle(t *testing.T, c *cast) *oracle {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft: ", err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l := lab.NewTest(t)
	in, k, out := l.Host("inside"), l.Host("router"), l.Host("outside")
	must(l.Veth(in, "eth0", k, "lan", lab.VethOptions{}))
	must(l.Veth(k, "wan", out, "eth0", lab.VethOptions{}))
	must(k.AddAddr("lan", c.router))
	must(k.AddAddr("wan", c.public.String()+c.net))
	must(k.Forwarding(true))
	o := &oracle{cast: c}
	for _, x := range []struct {
		h    *lab.Host
		name string
		to   *net.HardwareAddr
	}{{in, "eth0", &o.mac1}, {k, "lan", &o.lan}, {k, "wan", &o.wan}, {out, "eth0", &o.mac}} {
		m, err := x.h.MAC(x.name)
		must(err)
		*x.to = m
		must(x.h.Offloads(x.name, false))
	}
	for _, a := range append(slices.Clone(c.clients), c.bystand) {
		must(k.AddNeighbour("lan", a, o.mac1))
	}
	must(k.AddNeighbour("wan", c.next, o.mac))
	must(k.Route("default", c.next.String()))
	rules := fmt.Sprintf(`
		table %[1]s nat {
			chain post { type nat hook postrouting priority 100; oifname "wan" masquerade; }
			chain pre {
				type nat hook prerouting priority -100;
				iifname "wan" tcp dport 8080 dnat to %[2]s:80;
				iifname "wan" udp dport 8080 dnat to %[2]s:80;
			}
		}`, c.nftables, bracket(c.clients[0]))
	must(k.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("nftables has no NAT here: %v: %s", err, b)
		}
		return nil
	}))
	// Windows are not looked at here.
	must(k.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1"))
	var err error
	o.inside, err = in.OpenRaw("eth0", lab.RawOptions{})
	must(err)
	o.outside, err = out.OpenRaw("eth0", lab.RawOptions{})
	must(err)
	return o
}

func bracket(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// pass sends an IP packet that holds mark through the kernel and returns what comes
// out on the other side, or nil.
func (o *oracle) pass(t *testing.T, packet []byte, mark []byte, outward bool) []byte {
	t.Helper()
	// What proves that a lost packet is lost: it is sent after it and arrives.
	o.n++
	proof := binary.BigEndian.AppendUint32([]byte("proof"), o.n)
	from, to, src, dst := o.outside, o.inside, o.mac, o.wan
	end := segment{proto: layers.IPProtocolUDP, src: netip.AddrPortFrom(o.servers[0], 9), dst: netip.AddrPortFrom(o.bystand, 9), payload: proof}
	if outward {
		from, to, src, dst = o.inside, o.outside, o.mac1, o.lan
		end.src, end.dst = end.dst, end.src
	}
	send := func(p []byte) {
		h := append(append(slices.Clone(dst), src...), 8, 0)
		if o.v6 {
			h[12], h[13] = 0x86, 0xdd
		}
		if err := from.Send(append(h, p...)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	send(packet)
	send(end.bytes())
	var got []byte
	if _, err := to.Recv(ctx, func(f lab.RawFrame) bool {
		if bytes.Contains(f.Data, mark) {
			got = slices.Clone(f.Data[14:])
		}
		return bytes.Contains(f.Data, proof)
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// segment describes a packet.
type segment struct {
	proto    layers.IPProtocol
	src, dst netip.AddrPort // an ICMP query has its identifier as the port of src, an answer of dst
	reply    bool           // ICMP
	tcp      layers.TCP     // flags
	payload  []byte
}

func (s segment) bytes() []byte {
	var l4 gopacket.SerializableLayer
	switch s.proto {
	case layers.IPProtocolTCP:
		l := s.tcp
		l.SrcPort, l.DstPort, l.Window, l.Seq = layers.TCPPort(s.src.Port()), layers.TCPPort(s.dst.Port()), 1000, 1
		l4 = &l
	case layers.IPProtocolUDP:
		l4 = &layers.UDP{SrcPort: layers.UDPPort(s.src.Port()), DstPort: layers.UDPPort(s.dst.Port())}
	default:
		typ, id := [2]byte{8, 128}, s.src.Port()
		if s.reply {
			typ, id = [2]byte{0, 129}, s.dst.Port()
		}
		b := binary.BigEndian.AppendUint16(nil, id)
		b = append(append(b, 0, 1), s.payload...)
		return icmp(s.src.Addr(), s.dst.Addr(), typ, 0, b)
	}
	return packet(s.src.Addr(), s.dst.Addr(), s.proto, l4, gopacket.Payload(s.payload))
}

// icmp is a message of type typ[0], or typ[1] in IPv6, with b behind its checksum.
func icmp(src, dst netip.Addr, typ [2]byte, code byte, b []byte) []byte {
	if src.Is4() {
		return packet(src, dst, layers.IPProtocolICMPv4, &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(typ[0], code), Id: binary.BigEndian.Uint16(b), Seq: binary.BigEndian.Uint16(b[2:]),
		}, gopacket.Payload(b[4:]))
	}
	return packet(src, dst, layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ[1], code)}, gopacket.Payload(b))
}

func packet(src, dst netip.Addr, proto layers.IPProtocol, l4 gopacket.SerializableLayer, rest gopacket.Payload) []byte {
	type pseudo interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}
	var l3 interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = &layers.IPv4{Version: 4, TTL: 60, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), Flags: layers.IPv4DontFragment}
	if src.Is6() {
		l3 = &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	if p, ok := l4.(pseudo); ok {
		_ = p.SetNetworkLayerForChecksum(l3)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l3, l4, rest); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// subject is our NAT, with as much of a router as it takes.
type subject struct {
	*cast
	wan *nat.Edge
}

func newSubject(c *cast) *subject {
	t := nat.New(nat.Options{Now: time.Now(), Seed: 7})
	to := netip.AddrPortFrom(c.clients[0], 80)
	one := nat.PortRange{First: 8080, Last: 8080}
	t.Configure(nat.Config{
		Interfaces: []nat.Interface{
			{Name: "lan", Addresses: []netip.Prefix{netip.MustParsePrefix(c.router)}},
			{Name: "wan", Addresses: []netip.Prefix{netip.MustParsePrefix(c.public.String() + c.net)}, Masquerade: true, Masquerade6: true},
		},
		Forwards: []nat.Forward{{Interface: "wan", Protocol: "tcp", Ports: one, To: to}, {Interface: "wan", Protocol: "udp", Ports: one, To: to}},
	})
	return &subject{c, t.Edge("wan")}
}

// pass is oracle.pass.
func (s *subject) pass(p []byte, outward bool) []byte {
	h := make([]byte, 14, 14+len(p))
	h[12] = 8
	if s.v6 {
		h[12], h[13] = 0x86, 0xdd
	}
	h = append(h, p...)
	f := new(ndiscore.Frame)
	f.Reset(append(make([]byte, ndiscore.Headroom), h...), ndiscore.Headroom, len(h))
	if outward {
		var why [1]ndiscore.DropReason
		if s.wan.Out([]*ndiscore.Frame{f}, why[:]); why[0] != ndiscore.DropNone {
			return nil
		}
		return f.Bytes(nil)[14:]
	}
	dst := netip.AddrFrom4([4]byte(p[16:]))
	if s.v6 {
		dst = netip.AddrFrom16([16]byte(p[24:]))
	}
	if dst != s.public {
		if s.wan.Through(f) != ndiscore.DropNone {
			return nil
		}
		return f.Bytes(nil)[14:]
	}
	g, why := s.wan.In(f, s.wan, new(nat.Copy))
	if g == f || why != ndiscore.DropNone {
		return nil // for the router itself, or nobody
	}
	return g.Bytes(nil)[14:]
}

// conversation is a flow as the test knows it: as seen inside, and what either NAT
// made of it outside.
type conversation struct {
	proto          layers.IPProtocol
	inner, remote  netip.AddrPort
	outer          [2]netip.AddrPort // ours, the kernel's
	step           int               // packets so far
	fromOutside    bool
	lastIn, lastTo [][]byte // the last packet as it came, and as it was seen inside, of either NAT
}

func TestAgainstNftables(t *testing.T) {
	for name, c := range casts {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			d := &duel{t: t, rng: rand.New(rand.NewPCG(seed, 0)), cast: &c, ours: newSubject(&c), theirs: newOracle(t, &c)}
			for range 400 {
				d.move()
			}
			t.Logf("%d conversations, %v", len(d.all), d.moves)
			for _, m := range []string{"out", "answer", "published", "through", "error in", "error out", "stranger", "kept", "moved"} {
				if d.moves[m] == 0 {
					t.Errorf("nothing of kind %q was tried", m)
				}
			}
		})
	}
}

// duel compares the two.
type duel struct {
	*cast
	t      *testing.T
	rng    *rand.Rand
	ours   *subject
	theirs *oracle
	all    []*conversation
	moves  map[string]int
	mark   []byte
}

// both sends what make builds for either NAT and returns what came out; whether
// something did must be the same.
func (d *duel) both(what string, outward bool, build func(i int) []byte) (sent, got [2][]byte) {
	d.t.Helper()
	if d.moves == nil {
		d.moves = map[string]int{}
	}
	d.moves[what]++
	d.mark = binary.BigEndian.AppendUint64(nil, d.rng.Uint64())
	for i := range sent {
		sent[i] = build(i)
	}
	got[0] = d.ours.pass(slices.Clone(sent[0]), outward)
	got[1] = d.theirs.pass(d.t, sent[1], d.mark, outward)
	if (got[0] == nil) != (got[1] == nil) {
		d.t.Fatalf("%s: sent %s\nours   %s\nkernel %s", what, show(sent[0]), show(got[0]), show(got[1]))
	}
	return sent, got
}

func show(b []byte) string {
	if b == nil {
		return "nothing"
	}
	l := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		l = layers.LayerTypeIPv6
	}
	return strings.ReplaceAll(gopacket.NewPacket(b, l, gopacket.Default).String(), "\n", "\n\t")
}

// same fails unless a and b are one packet, but for hops and what is theirs alone.
func (d *duel) same(what string, a, b []byte) {
	d.t.Helper()
	norm := func(p []byte) []byte {
		p = slices.Clone(p)
		if d.v6 {
			p[7] = 0
		} else {
			p[8], p[10], p[11] = 0, 0, 0
			clear(p[4:6])
		}
		return p
	}
	if a != nil && !bytes.Equal(norm(a), norm(b)) {
		d.t.Fatalf("%s\nours   %s\n%x\nkernel %s\n%x", what, show(a), a, show(b), b)
	}
}

func pick[T any](d *duel, from []T) T { return from[d.rng.IntN(len(from))] }

func (d *duel) move() {
	var c *conversation
	if len(d.all) > 0 {
		c = pick(d, d.all)
	}
	switch k := d.rng.IntN(10); {
	case k < 3 || c == nil:
		d.begin()
	case k < 4:
		d.beginOutside()
	case k < 6:
		d.say(c, c.fromOutside == (c.step%2 == 1))
	case k < 7:
		d.errorIn(c)
	case k < 8:
		d.errorOut(c)
	default:
		d.say(c, d.rng.IntN(2) == 0)
	}
}

// begin is a client's first packet, or another if the conversation is known.
func (d *duel) begin() {
	c := &conversation{
		proto: pick(d, []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv4}),
		inner: netip.AddrPortFrom(pick(d, d.clients), pick(d, []uint16{4000, 4001})), remote: netip.AddrPortFrom(pick(d, d.servers), pick(d, []uint16{80, 81})),
	}
	if c.proto == layers.IPProtocolICMPv4 {
		c.remote = netip.AddrPortFrom(c.remote.Addr(), 0)
	}
	if known := d.known(c); known != nil {
		c = known
	} else {
		d.all = append(d.all, c)
	}
	d.say(c, true)
}

func (d *duel) known(c *conversation) *conversation {
	for _, o := range d.all {
		if o.proto == c.proto && o.inner == c.inner && o.remote == c.remote {
			return o
		}
	}
	return nil
}

// beginOutside is a packet to the published port, to another one, or straight to a
// client.
func (d *duel) beginOutside() {
	c := &conversation{
		proto: pick(d, []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP}), fromOutside: true,
		inner: netip.AddrPortFrom(d.clients[0], 80), remote: netip.AddrPortFrom(pick(d, d.servers), uint16(3000+d.rng.IntN(3))),
	}
	outer := netip.AddrPortFrom(d.public, 8080)
	switch d.rng.IntN(3) {
	case 0:
		d.both("stranger", false, func(int) []byte {
			return segment{proto: c.proto, src: c.remote, dst: netip.AddrPortFrom(d.public, 7777), tcp: layers.TCP{SYN: true}, payload: d.mark}.bytes()
		})
		return
	case 1:
		c.inner = netip.AddrPortFrom(d.clients[1], 22)
		outer = c.inner
	}
	c.outer = [2]netip.AddrPort{outer, outer}
	if known := d.known(c); known != nil {
		c = known
	} else {
		d.all = append(d.all, c)
	}
	d.say(c, false)
}

// say is one packet of c, either way.
func (d *duel) say(c *conversation, outward bool) {
	d.t.Helper()
	first := outward != c.fromOutside // it goes the way of the first one
	s := segment{proto: c.proto, src: c.inner, dst: c.remote, reply: !first}
	switch {
	case c.step == 0:
		s.tcp.SYN = true
	case c.step == 1:
		if first {
			return // the other one's turn
		}
		s.tcp.SYN, s.tcp.ACK, s.tcp.Ack = true, true, 2
	default:
		if c.step == 2 && !first {
			return
		}
		s.tcp.ACK, s.tcp.Ack = true, 2
	}
	c.step++
	if outward {
		what := "out"
		if c.fromOutside {
			what = "answer"
		}
		_, got := d.both(what, true, func(int) []byte { s.payload = d.mark; return s.bytes() })
		if got[0] == nil {
			d.t.Fatalf("not translated: %+v", s)
		}
		if c.step == 1 {
			for i := range got {
				c.outer[i] = d.source(got[i], c.proto)
			}
			// The choice of ports is free: the kernel gives a client's port the mapping
			// that it has already, if it can; we keep the port wherever it is free.
			kept := c.outer[0].Port() == c.inner.Port()
			if c.outer[0].Addr() != c.outer[1].Addr() {
				d.t.Fatalf("of %s to %s we made %s, the kernel %s", c.inner, c.remote, c.outer[0], c.outer[1])
			}
			if kept {
				d.moves["kept"]++
			} else {
				d.moves["moved"]++
			}
		}
		for i := range got {
			want := s
			want.src = c.outer[i]
			d.same(fmt.Sprintf("%s, by NAT %d, against what it should be", what, i), got[i], want.bytes())
		}
		return
	}
	what := "answer"
	if c.outer[0] == c.inner {
		what = "through"
	} else if c.fromOutside {
		what = "published"
	}
	sent, got := d.both(what, false, func(i int) []byte {
		x := s
		x.payload, x.src, x.dst = d.mark, c.remote, c.outer[i]
		return x.bytes()
	})
	d.same(what, got[0], got[1])
	if got[0] != nil {
		c.lastIn, c.lastTo = sent[:], got[:]
	}
}

// source is the source of a packet, an ICMP query's identifier as its port.
func (d *duel) source(b []byte, proto layers.IPProtocol) netip.AddrPort {
	l4, a := b[20:], netip.AddrFrom4([4]byte(b[12:16]))
	if d.v6 {
		l4, a = b[40:], netip.AddrFrom16([16]byte(b[8:24]))
	}
	if proto == layers.IPProtocolICMPv4 {
		l4 = l4[4:]
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(l4))
}

// errorIn is an error from outside about a client's packet.
func (d *duel) errorIn(c *conversation) {
	if c.step == 0 || c.outer[0] == c.inner {
		return
	}
	from := pick(d, []netip.Addr{d.hop, c.remote.Addr()})
	typ, code := pick(d, [][2]byte{{11, 3}, {3, 2}}), byte(0)
	_, got := d.both("error in", false, func(i int) []byte {
		s := segment{proto: c.proto, src: c.outer[i], dst: c.remote, reply: c.fromOutside, tcp: layers.TCP{ACK: true}, payload: d.mark}
		quote := s.bytes()
		return icmp(from, d.public, typ, code, append(make([]byte, 4), quote...))
	})
	d.same("error in", got[0], got[1])
}

// errorOut is an error of a client's about what it was sent.
func (d *duel) errorOut(c *conversation) {
	if c.lastTo == nil || c.outer[0] == c.inner {
		return
	}
	_, got := d.both("error out", true, func(i int) []byte {
		// With a new mark, in place of the one that was quoted.
		quote := append(slices.Clone(c.lastTo[i][:len(c.lastTo[i])-8]), d.mark...)
		return icmp(c.inner.Addr(), c.remote.Addr(), [2]byte{3, 1}, 3, append(make([]byte, 4), quote...))
	})
	// Both quote what was sent to them: the ports of ours are not the kernel's.
	for i := range got {
		if got[i] == nil {
			return
		}
		quote := append(slices.Clone(c.lastIn[i][:len(c.lastIn[i])-8]), d.mark...)
		// But with the hops left that it arrived with.
		at := 20 + 8
		if d.v6 {
			at = 40 + 8
			quote[7] = got[i][at+7]
		} else {
			quote[8] = got[i][at+8]
			copy(quote[10:12], got[i][at+10:])
		}
		want := icmp(d.public, c.remote.Addr(), [2]byte{3, 1}, 3, append(make([]byte, 4), quote...))
		d.same(fmt.Sprintf("error out, by NAT %d, against what it should be", i), got[i], want)
	}
}
