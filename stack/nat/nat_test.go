package nat

import (
	"encoding/binary"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The world of the tests:
//
//	hosts inside      ── lan ─┤ router ├─ wan ──  servers outside
//	10.0.0.0/24, fd00::/64      .1         203.0.113.1/24, 2001:db8::1/64
var (
	epoch   = time.Unix(1_700_000_000, 0)
	pub4    = netip.MustParseAddr("203.0.113.1")
	pub6    = netip.MustParseAddr("2001:db8::1")
	router4 = netip.MustParseAddr("10.0.0.1")
	client4 = netip.MustParseAddr("10.0.0.5")
	client6 = netip.MustParseAddr("fd00::5")
	other4  = netip.MustParseAddr("10.0.0.6")
	server4 = netip.MustParseAddr("192.0.2.9")
	server6 = netip.MustParseAddr("2001:db8:9::9")
	hop4    = netip.MustParseAddr("198.51.100.7")
	hop6    = netip.MustParseAddr("2001:db8:7::7")
)

func prefixes(s ...string) (p []netip.Prefix) {
	for _, x := range s {
		p = append(p, netip.MustParsePrefix(x))
	}
	return p
}

func testConfig(fw ...Forward) Config {
	return Config{
		Interfaces: []Interface{
			{Name: "lan", Addresses: prefixes("10.0.0.1/24", "fd00::1/64")},
			{Name: "wan", Addresses: prefixes("203.0.113.1/24", "2001:db8::1/64"), Masquerade: true, Masquerade6: true},
		},
		Forwards: fw,
	}
}

// world is a table with one edge, and a clock.
type world struct {
	*Table
	wan    *Edge
	clock  time.Time
	events []string
}

func newWorld(t rapid.TB, l Limits, c Config) *world {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	w := &world{clock: epoch}
	w.Table = New(Options{Limits: l, Now: epoch, Seed: 1, Event: func(what, iface, from, to, why string) {
		w.events = append(w.events, what+" "+iface+" "+to+": "+why)
	}})
	w.Configure(c)
	w.wan = w.Edge("wan")
	return w
}

// Flows is the table's, without the count.
func (w *world) Flows(x Filter, limit int) []Flow {
	fs, _ := w.Table.Flows(x, limit)
	return fs
}

func (w *world) pass(d time.Duration) {
	w.clock = w.clock.Add(d)
	w.Tick(w.clock)
}

// out sends f out of wan and returns what becomes of it, and why nothing does.
func (w *world) out(f *ndiscore.Frame) (*ndiscore.Frame, ndiscore.DropReason) {
	g := frameOf(f.Bytes(nil))
	g.Offload = f.Offload
	var why [1]ndiscore.DropReason
	w.wan.Out([]*ndiscore.Frame{g}, why[:])
	return g, why[0]
}

// in is what the router receives instead of f, which came for an address of wan.
func (w *world) in(f *ndiscore.Frame, inside bool) (*ndiscore.Frame, ndiscore.DropReason) {
	before := string(f.Bytes(nil))
	c := new(Copy)
	by := w.wan
	if inside {
		by = nil
	}
	g, why := w.wan.In(f, by, c)
	if string(f.Bytes(nil)) != before {
		panic("In changed the frame that it was lent")
	}
	return g, why
}

// --- Packets --------------------------------------------------------------------

func frameOf(b []byte) *ndiscore.Frame {
	f := new(ndiscore.Frame)
	f.Reset(append(make([]byte, ndiscore.Headroom), b...), ndiscore.Headroom, len(b))
	return f
}

// pkt describes a packet.
type pkt struct {
	proto    uint8
	src, dst netip.AddrPort // an ICMP query has its identifier as the port of src, an answer of dst
	flags    uint8          // TCP
	typ      uint8          // ICMP
	size     int            // bytes behind the transport header
	noSum    bool           // UDP without a checksum
	id       uint32         // IPv4 identification
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func tcp(src, dst netip.AddrPort, flags uint8) pkt {
	return pkt{proto: protoTCP, src: src, dst: dst, flags: flags, size: 10}
}

func udp(src, dst netip.AddrPort) pkt { return pkt{proto: protoUDP, src: src, dst: dst, size: 11} }

// echo is a request with src's port as its identifier, or an answer with dst's.
func echo(src, dst netip.AddrPort, reply bool) pkt {
	p := pkt{proto: protoICMP, src: src, dst: dst, typ: 8, size: 12}
	if src.Addr().Is6() {
		p.proto, p.typ = protoICMPv6, 128
	}
	if reply {
		p.typ++
		if p.proto == protoICMP {
			p.typ = 0
		}
	}
	return p
}

// transport is the packet behind its IP header, its checksum finished.
func (p pkt) transport() []byte {
	var b []byte
	at := 0
	switch p.proto {
	case protoTCP:
		b, at = make([]byte, tcpMin+p.size), tcpCsum
		b[12], b[13] = 5<<4, p.flags
	case protoUDP:
		b, at = make([]byte, udpLen+p.size), udpCsum
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	case protoICMP, protoICMPv6:
		b, at = make([]byte, icmpLen+p.size), icmpCsum
		b[0] = p.typ
		id := p.src.Port()
		if p.typ == 0 || p.typ == 129 {
			id = p.dst.Port()
		}
		binary.BigEndian.PutUint16(b[4:], id)
	default:
		b = make([]byte, 8+p.size)
	}
	for i := len(b) - p.size; i < len(b); i++ {
		b[i] = byte(i*7 + 3)
	}
	if p.proto == protoTCP || p.proto == protoUDP {
		binary.BigEndian.PutUint16(b, p.src.Port())
		binary.BigEndian.PutUint16(b[2:], p.dst.Port())
	}
	if at == 0 || p.noSum {
		return b
	}
	s := uint16(0)
	if p.proto != protoICMP {
		s = ndiscore.PseudoChecksum(p.src.Addr().AsSlice(), p.dst.Addr().AsSlice(), p.proto, len(b))
	}
	if s = ^ndiscore.Checksum(b, s); s == 0 && p.proto == protoUDP {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], s)
	return b
}

// ip puts the header of a packet with proto and body in front of body.
func ip(proto uint8, src, dst netip.Addr, body []byte, id uint32, frag uint16) []byte {
	if src.Is4() {
		h := make([]byte, ipv4Min, ipv4Min+len(body))
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(ipv4Min+len(body)))
		binary.BigEndian.PutUint16(h[4:], uint16(id))
		binary.BigEndian.PutUint16(h[6:], frag)
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^ndiscore.Checksum(h, 0))
		return append(h, body...)
	}
	h := make([]byte, ipv6Min, ipv6Min+8+len(body))
	h[0], h[6], h[7] = 0x60, proto, 64
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	if frag != 0 {
		h[6] = protoFragment
		more := frag >> 13 & 1
		h = append(h, proto, 0, byte(frag<<3>>8), byte(frag<<3)|byte(more))
		h = binary.BigEndian.AppendUint32(h, id)
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)-ipv6Min+len(body)))
	return append(h, body...)
}

func ether(packet []byte) *ndiscore.Frame {
	h := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}
	if packet[0]>>4 == 6 {
		h[12], h[13] = 0x86, 0xdd
	}
	return frameOf(append(h, packet...))
}

func (p pkt) packet() []byte {
	return ip(p.proto, p.src.Addr(), p.dst.Addr(), p.transport(), p.id, 0)
}

func (p pkt) frame() *ndiscore.Frame { return ether(p.packet()) }

// fragments cuts p in pieces of at most n bytes behind the IP header, a multiple of 8.
func (p pkt) fragments(n int) (fs []*ndiscore.Frame) {
	b := p.transport()
	for off := 0; off < len(b); off += n {
		frag, end := uint16(off/8)|0x2000, off+n
		if end >= len(b) {
			frag, end = frag&^0x2000, len(b)
		}
		fs = append(fs, ether(ip(p.proto, p.src.Addr(), p.dst.Addr(), b[off:end], p.id, frag)))
	}
	return fs
}

// icmpError is an error from a host about quote, cut to n bytes.
func icmpError(from, to netip.Addr, typ, code uint8, info uint32, quote []byte, n int) *ndiscore.Frame {
	b := make([]byte, icmpLen, icmpLen+n)
	b[0], b[1] = typ, code
	binary.BigEndian.PutUint32(b[4:], info)
	b = append(b, quote[:min(n, len(quote))]...)
	proto, s := uint8(protoICMP), uint16(0)
	if from.Is6() {
		proto, s = protoICMPv6, ndiscore.PseudoChecksum(from.AsSlice(), to.AsSlice(), protoICMPv6, len(b))
	}
	binary.BigEndian.PutUint16(b[icmpCsum:], ^ndiscore.Checksum(b, s))
	return ether(ip(proto, from, to, b, 1, 0))
}

// ends reads the ends of the packet in f.
func ends(t rapid.TB, f *ndiscore.Frame) (src, dst netip.AddrPort) {
	t.Helper()
	p, ok := parse(f.Bytes(nil)[ethernet:], false)
	if !ok {
		t.Fatalf("no packet: %x", f.Bytes(nil))
	}
	i := p.info()
	return i.Src, i.Dst
}

// is fails the test unless f goes from src to dst and its checksums are right.
func is(t rapid.TB, f *ndiscore.Frame, src, dst netip.AddrPort) {
	t.Helper()
	if s, d := ends(t, f); s != src || d != dst {
		t.Fatalf("it goes from %s to %s, want %s to %s", s, d, src, dst)
	}
	sound(t, f)
}

func sound(t rapid.TB, f *ndiscore.Frame) {
	t.Helper()
	b := f.Bytes(nil)
	if b[12] == 8 && ndiscore.Checksum(b[14:34], 0) != 0xffff {
		t.Fatalf("wrong IP header checksum: %x", b[14:34])
	}
	if !ndiscore.VerifyTransport(b, nil, ethernet) {
		t.Fatalf("wrong checksum: %x", b[14:])
	}
}

func same(t rapid.TB, got, want *ndiscore.Frame) {
	t.Helper()
	if g, w := got.Bytes(nil), want.Bytes(nil); string(g) != string(w) {
		t.Fatalf("got  %x\nwant %x", g, w)
	}
}
