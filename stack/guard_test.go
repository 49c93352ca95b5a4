package stack

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// testFIB is the table of testOptions with b's MTU.
func testFIB(mtu int) (*fib, *port) {
	b := &port{}
	host := func(s string, k fibKind) fibRoute {
		a := netip.MustParseAddr(s)
		return fibRoute{netip.PrefixFrom(a, a.BitLen()), &fibEntry{kind: k}}
	}
	return newFIB([]fibRoute{
		host("10.1.0.1", fibLocal), host("10.2.0.1", fibLocal), host("fd01::1", fibLocal), host("10.1.0.255", fibBroadcast),
		{netip.MustParsePrefix("10.2.0.0/24"), &fibEntry{kind: fibForward, mtu: mtu, egress: b}},
		{netip.MustParsePrefix("fd02::/64"), &fibEntry{kind: fibForward, mtu: mtu, egress: b}},
	}), b
}

// rewrite changes f and makes its IPv4 header checksum right again.
func rewrite(f *ndiscore.Frame, change func(h []byte)) *ndiscore.Frame {
	h := f.Head[14:]
	change(h)
	if h[0]>>4 == 4 {
		n := int(h[0]&15) * 4
		if n >= 20 && n <= len(h) {
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], ^ndiscore.Checksum(h[:n], 0))
		}
	}
	return f
}

func cut(f *ndiscore.Frame, n int) *ndiscore.Frame { return frameOf(f.Head[:n]) }

func with(f *ndiscore.Frame, o ndiscore.Offload) *ndiscore.Frame {
	f.Offload = o
	return f
}

// chain6 is a UDP packet behind extension headers of the given numbers, each
// of 8·(extra+1) bytes.
func chain6(extra byte, numbers ...byte) *ndiscore.Frame {
	f := udp6(flow{ttl: 64, size: 100})
	b := f.Bytes(nil)
	tail := append([]byte(nil), b[54:]...)
	b = b[:54]
	next := byte(17)
	var ext []byte
	for i := len(numbers) - 1; i >= 0; i-- {
		h := make([]byte, 8*(int(extra)+1))
		h[0], h[1] = next, extra
		if len(h) > 2 {
			h[2] = 1 // PadN
			h[3] = byte(len(h) - 4)
		}
		if numbers[i] == protoFragment {
			h[1], h[2], h[3] = 0, 0, 0
		}
		ext = append(h, ext...)
		next = numbers[i]
	}
	b[20] = next
	b = append(append(b, ext...), tail...)
	binary.BigEndian.PutUint16(b[18:], uint16(len(b)-54))
	return frameOf(b)
}

func repeat(n byte, times int) []byte {
	b := make([]byte, times)
	for i := range b {
		b[i] = n
	}
	return b
}

func TestGuards(t *testing.T) {
	u4 := func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 100}) }
	u6 := func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 100}) }
	needs := ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 6}
	multicast := u4()
	copy(multicast.Head, []byte{1, 0, 0x5e, 0, 0, 1})
	rewrite(multicast, func(h []byte) { copy(h[16:], []byte{224, 0, 0, 1}) })
	group := u4()
	group.Head[6] |= 1
	foreign := u4()
	foreign.Head[5] ^= 1
	zero := u4()
	clear(zero.Head[6:12])
	tagged := frameOf(append(append(append([]byte(nil), u4().Head[:12]...), 0x81, 0, 0, 5), u4().Head[12:]...))
	llc := u4()
	llc.Head[12], llc.Head[13] = 0, 100
	lldp := u4()
	lldp.Head[12], lldp.Head[13] = 0x88, 0xcc
	superOf := func(change func(f *ndiscore.Frame)) *ndiscore.Frame {
		f := super(false, flow{ttl: 64, df: true, size: 5000}, 1400)
		change(f)
		return f
	}
	for _, tc := range []struct {
		name  string
		in    *ndiscore.Frame
		drop  ndiscore.DropReason
		class class
		check func(v verdict) bool
	}{
		{"plain", u4(), 0, classForward, func(v verdict) bool { return v.l3len == 128 && v.mark == 0 }},
		{"padded", udp4(flow{ttl: 64, size: 1}), 0, classForward, func(v verdict) bool { return v.l3len == 29 }},
		{"arp", arpRequest(hostA, "10.1.0.2", "10.1.0.1"), 0, classNeighbor, nil},
		{"arp short", cut(arpRequest(hostA, "10.1.0.2", "10.1.0.1"), 41), ndiscore.DropShort, 0, nil},
		{"nd", solicitation(hostA, "fd01::2", "fd01::1"), 0, classNeighbor, nil},
		{"echo", echo4("10.1.0.2", "10.2.0.1", 10), 0, classLocal, nil},
		{"broadcast", echo4("10.1.0.2", "10.1.0.255", 10), 0, classBroadcast, nil},
		{"no route", rewrite(u4(), func(h []byte) { h[16] = 99 }), 0, classForward, nil},
		{"vlan", tagged, ndiscore.DropUnknownNetwork, 0, nil},
		{"llc", llc, ndiscore.DropUnknownNetwork, 0, nil},
		{"lldp", lldp, ndiscore.DropUnknownNetwork, 0, nil},
		{"group source", group, ndiscore.DropBadSource, 0, nil},
		{"another station's", foreign, ndiscore.DropNotForUs, 0, nil},
		{"zero source", zero, ndiscore.DropBadSource, 0, nil},
		{"ttl 1", udp4(flow{ttl: 1, size: 10}), 0, classForward, func(v verdict) bool { return v.zeroTTL }},
		{"ttl 1 for us", rewrite(echo4("10.1.0.2", "10.1.0.1", 10), func(h []byte) { h[8] = 1 }), 0, classLocal, func(v verdict) bool { return !v.zeroTTL }},
		{"ttl before mtu", udp4(flow{ttl: 1, df: true, size: 1473}), 0, classForward, nil},
		{"hops before mtu", udp6(flow{ttl: 1, size: 2000}), 0, classForward, nil},

		{"empty", cut(u4(), 14), ndiscore.DropShort, 0, nil},
		{"no ethernet", cut(u4(), 13), ndiscore.DropShort, 0, nil},
		{"half an ip header", cut(u4(), 30), ndiscore.DropShort, 0, nil},
		{"half an ipv6 header", cut(u6(), 50), ndiscore.DropShort, 0, nil},
		{"version 5", rewrite(u4(), func(h []byte) { h[0] = 0x55 }), ndiscore.DropBadIP, 0, nil},
		{"version 4 in ipv6", rewrite(u6(), func(h []byte) { h[0] = 0x40 }), ndiscore.DropBadIP, 0, nil},
		{"header length 16", rewrite(u4(), func(h []byte) { h[0] = 0x44 }), ndiscore.DropBadIP, 0, nil},
		{"header longer than frame", rewrite(cut(udp4(flow{ttl: 64, size: 1}), 14+40), func(h []byte) { h[0] = 0x4f }), ndiscore.DropBadIP, 0, nil},
		{"total below header", rewrite(u4(), func(h []byte) { h[2], h[3] = 0, 19 }), ndiscore.DropBadIP, 0, nil},
		{"total beyond frame", rewrite(u4(), func(h []byte) { h[3]++ }), ndiscore.DropBadIP, 0, nil},
		{"payload beyond frame", rewrite(u6(), func(h []byte) { h[5]++ }), ndiscore.DropBadIP, 0, nil},

		{"chain of 5", chain6(0, 0, 60, 43, 60, 60), 0, classForward, func(v verdict) bool { return v.split >= 40+5*8+8 }},
		{"chain of 20", chain6(0, repeat(60, 20)...), 0, classForward, nil},
		{"chain too long", chain6(0, repeat(60, 21)...), ndiscore.DropBadIP, 0, nil},
		{"chain of atomic fragments", chain6(0, repeat(protoFragment, 21)...), ndiscore.DropBadIP, 0, nil},
		{"chain of experiments", chain6(0, repeat(protoExperiment, 21)...), ndiscore.DropBadIP, 0, nil},
		{"one long header", chain6(30, 60), ndiscore.DropBadIP, 0, nil},
		{"header beyond packet", rewrite(chain6(0, 60), func(h []byte) { h[41] = 200 }), ndiscore.DropBadIP, 0, nil},
		{"no next header", rewrite(u6(), func(h []byte) { h[6] = protoNoNext }), 0, classForward, nil},
		{"no next header, long", rewrite(udp6(flow{ttl: 64, size: 1300}), func(h []byte) { h[6] = protoNoNext }), ndiscore.DropBadIP, 0, nil},

		{"open", with(u4(), needs), 0, classForward, func(v verdict) bool { return v.mark == markNeedsCsum && !v.complete }},
		{"open for us", with(rewrite(u4(), func(h []byte) { copy(h[16:], []byte{10, 1, 0, 1}) }), needs), 0, classLocal, func(v verdict) bool { return !v.complete }},
		{"open icmp for us", with(echo4("10.1.0.2", "10.1.0.1", 10), ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 2}), 0, classLocal, func(v verdict) bool { return v.complete }},
		{"open in the ip header", with(u4(), ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 14, CsumOffset: 10}), ndiscore.DropBadOffload, 0, nil},
		{"open behind the end", with(u4(), ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 200}), ndiscore.DropBadOffload, 0, nil},
		{"open in padding", with(udp4(flow{ttl: 64, size: 1}), ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 42, CsumOffset: 0}), ndiscore.DropBadOffload, 0, nil},
		{"open far behind", with(u4(), ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 65535, CsumOffset: 65535}), ndiscore.DropBadOffload, 0, nil},
		{"open fragment", with(rewrite(u4(), func(h []byte) { h[6] = 0x20 }), needs), ndiscore.DropBadOffload, 0, nil},
		{"open, to be cut", with(udp4(flow{ttl: 64, size: 1473}), needs), 0, classForward, func(v verdict) bool { return v.complete && v.mark == 0 }},

		{"too big", udp4(flow{ttl: 64, df: true, size: 1473}), ndiscore.DropTooBig, 0, func(v verdict) bool { return v.tooBig == 1500 }},
		{"too big v6", udp6(flow{ttl: 64, size: 1453}), ndiscore.DropTooBig, 0, func(v verdict) bool { return v.tooBig == 1500 }},
		{"to be cut", udp4(flow{ttl: 64, size: 1473}), 0, classForward, nil},

		{"super", superOf(func(*ndiscore.Frame) {}), 0, classForward, func(v verdict) bool { return v.super != nil && v.mark == 1400<<16|markNeedsCsum }},
		{"super too big", superOf(func(f *ndiscore.Frame) { f.Offload.GSOSize = 1461 }), ndiscore.DropTooBig, 0, nil},
		{"super without csum", superOf(func(f *ndiscore.Frame) { f.Offload.Flags = 0 }), ndiscore.DropBadOffload, 0, nil},
		{"super of size 0", superOf(func(f *ndiscore.Frame) { f.Offload.GSOSize = 0 }), ndiscore.DropBadOffload, 0, nil},
		{"super of the other version", superOf(func(f *ndiscore.Frame) { f.Offload.GSO = ndiscore.GSOTCPv6 }), ndiscore.DropBadOffload, 0, nil},
		{"super that is udp", superOf(func(f *ndiscore.Frame) { f.Offload.GSO = ndiscore.GSOUDPL4 }), ndiscore.DropBadOffload, 0, nil},
		{"super of unknown kind", superOf(func(f *ndiscore.Frame) { f.Offload.GSO = 9; f.Head[23] = 17; f.Offload.CsumOffset = 6 }), ndiscore.DropBadIP, 0, nil},
		{"super with a short tcp header", superOf(func(f *ndiscore.Frame) { f.Head[46] = 0x40 }), ndiscore.DropBadOffload, 0, nil},
		{"super with a long tcp header", split(superOf(func(f *ndiscore.Frame) { f.Head[46] = 0xf0 }), 60), ndiscore.DropBadOffload, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table, _ := testFIB(1500)
			v := table.check(macA, tc.in)
			if v.drop != tc.drop {
				t.Fatalf("drop %s, want %s", v.drop, tc.drop)
			}
			if v.drop == 0 && v.class != tc.class {
				t.Errorf("class %d, want %d", v.class, tc.class)
			}
			if tc.check != nil && !tc.check(v) {
				t.Errorf("verdict %+v", v)
			}
			if v.drop == 0 {
				copyIn(tc.in, &v).DecRef()
			}
		})
	}
}

// TestCopyIn compares the copy with the packet, however it is cut in pieces.
func TestCopyIn(t *testing.T) {
	table, _ := testFIB(9000)
	for _, size := range []int{0, 1, 17, 86, 87, 99, 100, 101, 1472, 8000} {
		for _, head := range []int{42, 43, 100, 128, 141, 142, 143, 5000} {
			whole := udp4(flow{ttl: 64, size: size})
			want := whole.Bytes(nil)[14 : 14+28+size]
			f := split(whole, head)
			v := table.check(macA, f)
			pkt := copyIn(f, &v)
			view := pkt.ToView()
			if string(view.AsSlice()) != string(want) {
				t.Errorf("payload %d, head %d: another packet", size, head)
			}
			view.Release()
			pkt.DecRef()
		}
	}
}

// TestComplete compares our completion with gopacket's checksum, wherever the
// copy is cut.
func TestComplete(t *testing.T) {
	for size := range 300 {
		f := udp4(flow{ttl: 64, size: size + 100})
		want := f.Bytes(nil)[14:]
		for _, at := range []int{20, 25, 26, 27, 28, 57, 128} {
			b := append([]byte(nil), want...)
			binary.BigEndian.PutUint16(b[26:], ndiscore.PseudoChecksum(b[12:16], b[16:20], 17, len(b)-20))
			complete(b[:at], b[at:], 20, 26)
			if string(b) != string(want) {
				t.Fatalf("size %d, cut at %d: %x, want %x", size, at, b[26:28], want[26:28])
			}
		}
	}
}

func TestMayAnswer(t *testing.T) {
	icmp := func(typ uint8) *ndiscore.Frame {
		return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolICMPv4, 64, true),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0)}, payload(10))
	}
	icmp6 := func(typ uint8) *ndiscore.Frame {
		ip := ip6("fd01::2", "fd02::2", layers.IPProtocolICMPv6, 64)
		i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
		_ = i.SetNetworkLayerForChecksum(ip)
		return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, i, gopacket.Payload(payload(10)))
	}
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
		want bool
	}{
		{"udp", udp4(flow{ttl: 9, size: 1}), true},
		{"udp6", udp6(flow{ttl: 9, size: 1}), true},
		{"echo", icmp(8), true},
		{"unreachable", icmp(3), false},
		{"redirect", icmp(5), false},
		{"echo6", icmp6(128), true},
		{"unreachable6", icmp6(1), false},
		{"redirect6", icmp6(137), false},
		{"later fragment", rewrite(udp4(flow{ttl: 9, size: 1}), func(h []byte) { h[7] = 1 }), false},
		{"from multicast", rewrite(udp4(flow{ttl: 9, size: 1}), func(h []byte) { h[12] = 225 }), false},
		{"from broadcast", rewrite(udp4(flow{ttl: 9, size: 1}), func(h []byte) { h[12] = 255 }), false},
		{"from 0", rewrite(udp4(flow{ttl: 9, size: 1}), func(h []byte) { h[12] = 0 }), false},
		{"from ::", rewrite(udp6(flow{ttl: 9, size: 1}), func(h []byte) { clear(h[8:24]) }), false},
		{"from ff02::", rewrite(udp6(flow{ttl: 9, size: 1}), func(h []byte) { h[8] = 0xff }), false},
	} {
		if got := mayAnswer(tc.in); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	l.init(10, 3)
	now := time.Unix(1e9, 0)
	got := ""
	for i := range 30 {
		if l.allow(now.Add(time.Duration(i) * 25 * time.Millisecond)) {
			got += "x"
		} else {
			got += "."
		}
	}
	if want := "xxx.x...x...x...x...x...x...x."; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
