package stack

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The two networks of the router under test:
//
//	10.1.0.2, fd01::2 ── a ─┤ router ├─ b ── 10.2.0.2, fd02::2
//	                       .1, ::1  .1, ::1
var (
	macA  = ndiscore.MAC{2, 0, 0, 0, 0, 0xa0}
	macB  = ndiscore.MAC{2, 0, 0, 0, 0, 0xb0}
	hostA = ndiscore.MAC{2, 0, 0, 0, 0, 0xa2}
	hostB = ndiscore.MAC{2, 0, 0, 0, 0, 0xb2}
)

// memAdapter is an adapter whose device is the test.
type memAdapter struct {
	name   string
	attrs  ndiscore.Attributes
	handle ndiscore.AdapterHandle
	worker *ndiscore.Worker
	batch  *ndiscore.Batch

	mu    sync.Mutex
	sent  []ndiscore.Frame // deep copies
	more  chan struct{}
	drain bool // count only
	count int
}

func newMemAdapter(name string, a ndiscore.Attributes) *memAdapter {
	return &memAdapter{name: name, attrs: a, more: make(chan struct{}, 1)}
}

func (a *memAdapter) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	a.handle = h
	a.worker = h.NewWorker(0)
	a.batch = ndiscore.NewBatch(a.worker)
	a.batch.Borrowed = true
	return a.attrs, nil
}
func (a *memAdapter) Restart(context.Context) error                       { return nil }
func (a *memAdapter) Pause(context.Context)                               {}
func (a *memAdapter) Halt(context.Context, ndiscore.HaltAction)           { a.worker.Close() }
func (a *memAdapter) Return(*ndiscore.Batch)                              {}
func (a *memAdapter) Request(context.Context, *ndiscore.OIDRequest) error { return nil }
func (a *memAdapter) Send(b *ndiscore.Batch) {
	a.mu.Lock()
	a.count += len(b.Frames)
	if !a.drain {
		for _, f := range b.Frames {
			c := ndiscore.Frame{Head: f.Bytes(nil), Offload: f.Offload}
			a.sent = append(a.sent, c)
		}
	}
	a.mu.Unlock()
	for i := range b.Frames {
		b.Status[i] = ndiscore.DropNone
	}
	select {
	case a.more <- struct{}{}:
	default:
	}
}

// inject passes frames up as the receive goroutine would.
func (a *memAdapter) inject(frames ...*ndiscore.Frame) {
	for len(frames) > 0 {
		n := min(len(frames), ndiscore.BatchFrames)
		a.batch.Reset()
		for _, f := range frames[:n] {
			a.batch.Append(f)
		}
		a.handle.IndicateReceive(a.batch)
		frames = frames[n:]
	}
}

// sentSoFar returns what was sent and forgets it.
func (a *memAdapter) sentSoFar() []ndiscore.Frame {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sent
	a.sent = nil
	return s
}

// await returns the first sent frame that want accepts, and forgets what came
// before it.
func (a *memAdapter) await(t testing.TB, what string, want func(*ndiscore.Frame) bool) *ndiscore.Frame {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		a.mu.Lock()
		for i := range a.sent {
			if f := &a.sent[i]; want(f) {
				a.sent = a.sent[i+1:]
				a.mu.Unlock()
				return f
			}
		}
		a.mu.Unlock()
		select {
		case <-a.more:
		case <-deadline:
			a.mu.Lock()
			defer a.mu.Unlock()
			var seen []string
			for _, f := range a.sent {
				seen = append(seen, decode(&f).String())
			}
			t.Fatalf("%s: no %s in 20 s; sent: %s", a.name, what, strings.Join(seen, "\n"))
		}
	}
}

// bed is a router between two adapters, in a real core.
type bed struct {
	t      testing.TB
	core   *ndiscore.Core
	router *Router
	a, b   *memAdapter
	events *recorder
}

type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(what, iface, from, to, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %s %q>%q: %s", what, iface, from, to, why))
}

func (r *recorder) has(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if strings.Contains(e, part) {
			return true
		}
	}
	return false
}

func prefixes(s ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, x := range s {
		p = append(p, netip.MustParsePrefix(x))
	}
	return p
}

func testOptions() Options {
	return Options{
		Interfaces: []Interface{
			{Name: "lan", On: "a", Addresses: prefixes("10.1.0.1/24", "fd01::1/64")},
			{Name: "wan", On: "b", Addresses: prefixes("10.2.0.1/24", "fd02::1/64")},
		},
		Routes: []Route{{To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.2.0.2")}},
	}
}

func connectedLink() ndiscore.LinkState { return ndiscore.LinkState{Media: ndiscore.MediaConnected} }

func newBed(t testing.TB, o Options, mtuA, mtuB int) *bed {
	t.Helper()
	return newBedWith(t, o, mtuA, mtuB, func(*Router) {})
}

func newBedWith(t testing.TB, o Options, mtuA, mtuB int, before func(*Router)) *bed {
	t.Helper()
	return newBedOn(t, o, ndiscore.Attributes{MTU: mtuA, Transmit: ndiscore.CapAll}, ndiscore.Attributes{MTU: mtuB, Transmit: ndiscore.CapAll}, before)
}

// newBedOn makes a bed of two adapters that are as a and b say.
func newBedOn(t testing.TB, o Options, a, b ndiscore.Attributes, before func(*Router)) *bed {
	t.Helper()
	a.MAC, a.Link, a.Receive = macA, connectedLink(), ndiscore.CapAll
	b.MAC, b.Link, b.Receive = macB, connectedLink(), ndiscore.CapAll
	d := &bed{t: t, events: &recorder{}}
	if o.Event == nil {
		o.Event = d.events.add
	}
	if o.Logger == nil {
		if tt, ok := t.(*testing.T); ok {
			o.Logger = zaptest.NewLogger(tt, zaptest.Level(zap.WarnLevel))
		}
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	d.router = r
	before(r)
	d.a, d.b = newMemAdapter("a", a), newMemAdapter("b", b)
	ctx, cancel := context.WithCancel(context.Background())
	d.core = ndiscore.New(ndiscore.Options{})
	ran := make(chan struct{})
	go func() { defer close(ran); _ = d.core.Run(ctx) }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.core.RegisterDriver(ndiscore.Driver{
		Name: "mem", Version: ndiscore.ContractVersion, NewOptions: func() any { return nil },
		New: func(name string, _ any) (ndiscore.Adapter, error) {
			if name == "a" {
				return d.a, nil
			}
			return d.b, nil
		},
	})
	must(err)
	must(r.Start(d.core))
	must(d.core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "stack", Protocol: r, Targets: r.Targets()}))
	for _, n := range []string{"a", "b"} {
		must(d.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: n, Driver: "mem"}))
		must(d.core.Start(ctx, n, "test"))
	}
	t.Cleanup(func() {
		must(d.core.Close(ctx, "test over"))
		r.Close()
		cancel()
		<-ran
	})
	return d
}

// meet makes the hosts known to the router, as their own ARP and ND would.
func (d *bed) meet() {
	d.t.Helper()
	d.a.inject(arpRequest(hostA, "10.1.0.2", "10.1.0.1"))
	d.a.await(d.t, "ARP reply", isARPReply)
	d.b.inject(arpRequest(hostB, "10.2.0.2", "10.2.0.1"))
	d.b.await(d.t, "ARP reply", isARPReply)
	d.a.inject(solicitation(hostA, "fd01::2", "fd01::1"))
	d.a.await(d.t, "neighbour advertisement", func(f *ndiscore.Frame) bool { return isICMP6(f, 136) && f.Dst() == hostA })
	d.b.inject(solicitation(hostB, "fd02::2", "fd02::1"))
	d.b.await(d.t, "neighbour advertisement", func(f *ndiscore.Frame) bool { return isICMP6(f, 136) && f.Dst() == hostB })
}

// --- Frames ------------------------------------------------------------------

func frameOf(b []byte) *ndiscore.Frame {
	buf := make([]byte, ndiscore.Headroom+len(b))
	copy(buf[ndiscore.Headroom:], b)
	f := new(ndiscore.Frame)
	f.Reset(buf, ndiscore.Headroom, len(b))
	return f
}

// split moves all but the first n bytes of f to two segments.
func split(f *ndiscore.Frame, n int) *ndiscore.Frame {
	if len(f.Head) <= n {
		return f
	}
	rest := append([]byte(nil), f.Head[n:]...)
	o := f.Offload
	g := frameOf(f.Head[:n])
	g.Offload = o
	g.Segs = append(g.Segs, rest[:len(rest)/3], rest[len(rest)/3:])
	return g
}

func serialize(ls ...gopacket.SerializableLayer) *ndiscore.Frame {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	return frameOf(b.Bytes())
}

func ether(src, dst ndiscore.MAC, t layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: t}
}

func ip4(src, dst string, proto layers.IPProtocol, ttl uint8, df bool) *layers.IPv4 {
	l := &layers.IPv4{Version: 4, TTL: ttl, Protocol: proto, Id: 77, SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice()}
	if df {
		l.Flags = layers.IPv4DontFragment
	}
	return l
}

func ip6(src, dst string, next layers.IPProtocol, hops uint8) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: next, SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice()}
}

func payload(n int) gopacket.Payload {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

type flow struct {
	ttl  uint8
	df   bool
	size int // of the payload
}

func udp4(f flow) *ndiscore.Frame {
	ip := ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolUDP, f.ttl, f.df)
	u := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	_ = u.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, u, payload(f.size))
}

func udp6(f flow) *ndiscore.Frame {
	ip := ip6("fd01::2", "fd02::2", layers.IPProtocolUDP, f.ttl)
	u := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	_ = u.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, u, payload(f.size))
}

// super makes a TCP super-frame with a partial checksum.
func super(v6 bool, f flow, mss int) *ndiscore.Frame {
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1, ACK: true, Window: 1000}
	var fr *ndiscore.Frame
	l4 := 34
	kind := ndiscore.GSOTCPv4
	if v6 {
		ip := ip6("fd01::2", "fd02::2", layers.IPProtocolTCP, f.ttl)
		_ = tcp.SetNetworkLayerForChecksum(ip)
		fr = serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, tcp, payload(f.size))
		l4, kind = 54, ndiscore.GSOTCPv6
	} else {
		ip := ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolTCP, f.ttl, f.df)
		_ = tcp.SetNetworkLayerForChecksum(ip)
		fr = serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, tcp, payload(f.size))
	}
	fr.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: kind, GSOSize: uint16(mss), CsumStart: uint16(l4), CsumOffset: 16, HdrLen: uint16(l4 + 20)}
	fr.Head[l4+16], fr.Head[l4+17] = 0x12, 0x34 // stands for the pseudo-header's sum
	return fr
}

func arpRequest(from ndiscore.MAC, ip, target string) *ndiscore.Frame {
	return serialize(ether(from, ndiscore.Broadcast, layers.EthernetTypeARP), &layers.ARP{
		AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
		SourceHwAddress: from[:], SourceProtAddress: netip.MustParseAddr(ip).AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: netip.MustParseAddr(target).AsSlice(),
	})
}

func arpReply(from, to ndiscore.MAC, ip, target string) *ndiscore.Frame {
	return serialize(ether(from, to, layers.EthernetTypeARP), &layers.ARP{
		AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2,
		SourceHwAddress: from[:], SourceProtAddress: netip.MustParseAddr(ip).AsSlice(),
		DstHwAddress: to[:], DstProtAddress: netip.MustParseAddr(target).AsSlice(),
	})
}

func solicitation(from ndiscore.MAC, ip, target string) *ndiscore.Frame {
	t := netip.MustParseAddr(target).As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], t[13:])
	g := netip.AddrFrom16(group)
	l3 := ip6(ip, g.String(), layers.IPProtocolICMPv6, 255)
	i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = i.SetNetworkLayerForChecksum(l3)
	return serialize(ether(from, macOf(g), layers.EthernetTypeIPv6), l3, i, &layers.ICMPv6NeighborSolicitation{
		TargetAddress: t[:],
		Options:       layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: from[:]}},
	})
}

func echo4(src, dst string, size int) *ndiscore.Frame {
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4, 64, false),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 9, Seq: 1}, payload(size))
}

func decode(f *ndiscore.Frame) gopacket.Packet {
	return gopacket.NewPacket(f.Bytes(nil), layers.LayerTypeEthernet, gopacket.Default)
}

func isARPReply(f *ndiscore.Frame) bool {
	a, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
	return ok && a.Operation == 2
}

func isICMP4(f *ndiscore.Frame, typ uint8) bool {
	i, ok := decode(f).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	return ok && i.TypeCode.Type() == typ
}

func isICMP6(f *ndiscore.Frame, typ uint8) bool {
	i, ok := decode(f).Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	return ok && i.TypeCode.Type() == typ
}

func isUDP(f *ndiscore.Frame) bool { return decode(f).Layer(layers.LayerTypeUDP) != nil }
func isTCP(f *ndiscore.Frame) bool { return decode(f).Layer(layers.LayerTypeTCP) != nil }

// sound fails the test if a checksum of f is wrong.
func sound(t testing.TB, f *ndiscore.Frame) {
	t.Helper()
	if f.Offload.Flags&ndiscore.NeedsCsum != 0 {
		t.Fatalf("checksum still open: %+v", f.Offload)
	}
	b := f.Bytes(nil)
	if b[12] == 8 && b[13] == 0 {
		if ndiscore.Checksum(b[14:14+int(b[14]&15)*4], 0) != 0xffff {
			t.Fatalf("IP header checksum wrong: %x", b[:60])
		}
	}
	if !ndiscore.VerifyTransport(b, nil, 14) {
		t.Fatalf("transport checksum wrong: %v", decode(f))
	}
}
