package stack

import (
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestForward(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
	}{
		{"v4 small", udp4(flow{ttl: 64, size: 18})},
		{"v4 full", udp4(flow{ttl: 64, df: true, size: 1472})},
		{"v4 in pieces", split(udp4(flow{ttl: 64, size: 1400}), 60)},
		{"v6 small", udp6(flow{ttl: 64, size: 18})},
		{"v6 full", udp6(flow{ttl: 64, size: 1452})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := tc.in.Bytes(nil)
			d.a.inject(tc.in)
			f := d.b.await(t, "UDP", isUDP)
			sound(t, f)
			got := f.Bytes(nil)
			if f.Src() != macB || f.Dst() != hostB {
				t.Errorf("sent from %s to %s", f.Src(), f.Dst())
			}
			if len(got) != len(want) {
				t.Fatalf("%d bytes came out of %d", len(got), len(want))
			}
			// All but MACs, TTL and header checksum is as it was.
			copy(want, got[:12])
			if want[12] == 8 {
				want[22]--
				copy(want[24:26], got[24:26])
			} else {
				want[21]--
			}
			if string(got) != string(want) {
				t.Errorf("changed on the way:\n%x\n%x", got, want)
			}
		})
	}
}

// TestRegressionTooBig checks what the router tells the source of a packet that the next
// network cannot take.
func TestRegressionTooBig(t *testing.T) {
	d := newBed(t, testOptions(), 9000, 1400)
	d.meet()
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
		v6   bool
	}{
		{"v4 DF", udp4(flow{ttl: 64, df: true, size: 1400}), false},
		{"v4 DF in pieces", split(udp4(flow{ttl: 64, df: true, size: 1401}), 50), false},
		{"v6", udp6(flow{ttl: 64, size: 1400}), true},
		{"v6 in pieces", split(udp6(flow{ttl: 64, size: 3001}), 77), true},
		{"v4 super-frame", super(false, flow{ttl: 64, df: true, size: 8000}, 1361), false},
		{"v6 super-frame", super(true, flow{ttl: 64, size: 8000}, 1341), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			orig := tc.in.Bytes(nil)
			d.a.inject(tc.in)
			var f *ndiscore.Frame
			if tc.v6 {
				f = d.a.await(t, "packet too big", func(f *ndiscore.Frame) bool { return isICMP6(f, 2) })
			} else {
				f = d.a.await(t, "fragmentation needed", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) })
			}
			sound(t, f)
			b := f.Bytes(nil)
			p := decode(f)
			if f.Dst() != hostA || f.Src() != macA {
				t.Errorf("sent from %s to %s", f.Src(), f.Dst())
			}
			var quote []byte
			if tc.v6 {
				ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
				if ip.SrcIP.String() != "fd01::1" || ip.DstIP.String() != "fd01::2" || len(b) != 14+1280 {
					t.Errorf("from %s to %s, %d bytes", ip.SrcIP, ip.DstIP, len(b))
				}
				if mtu := binary.BigEndian.Uint32(b[14+44:]); mtu != 1400 {
					t.Errorf("tells an MTU of %d", mtu)
				}
				quote = b[14+48:]
			} else {
				ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
				if ip.SrcIP.String() != "10.1.0.1" || ip.DstIP.String() != "10.1.0.2" || len(b) != 14+576 {
					t.Errorf("from %s to %s, %d bytes", ip.SrcIP, ip.DstIP, len(b))
				}
				if mtu := binary.BigEndian.Uint32(b[14+24:]); mtu != 1400 {
					t.Errorf("tells an MTU of %d", mtu)
				}
				quote = b[14+28:]
			}
			if string(quote) != string(orig[14:14+len(quote)]) {
				t.Errorf("quotes\n%x\nnot\n%x", quote, orig[14:])
			}
		})
	}
	if s := d.b.sentSoFar(); len(s) != 0 {
		t.Errorf("too big, and forwarded: %v", decode(&s[0]))
	}
}

func TestTooBigIsLimited(t *testing.T) {
	o := testOptions()
	o.Limits.TooBigBurst = 5
	o.Limits.TooBigPerSecond = 1
	d := newBed(t, o, 9000, 1400)
	d.meet()
	for range 100 {
		d.a.inject(udp6(flow{ttl: 64, size: 2000}))
	}
	n := 0
	for _, f := range d.a.sentSoFar() {
		if isICMP6(&f, 2) {
			n++
		}
	}
	if n < 5 || n > 7 {
		t.Errorf("%d of 100 were answered, the limit is 5", n)
	}
	if s := d.router.Stats(); s["too_big.sent"]+s["too_big.limited"] != 100 {
		t.Errorf("sent %d and muted %d of 100", s["too_big.sent"], s["too_big.limited"])
	}
}

// TestSuperFrame checks that a super-frame leaves as it came, and that one that
// fits only when cut smaller is.
func TestSuperFrame(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	udp := udp4(flow{ttl: 64, size: 12000})
	udp.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOUDPL4, GSOSize: 1200, CsumStart: 34, CsumOffset: 6, HdrLen: 42}
	ecn := super(false, flow{ttl: 64, df: true, size: 20000}, 1460)
	ecn.Offload.Flags |= ndiscore.GSOECN
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
		size int
	}{
		{"v4", super(false, flow{ttl: 64, df: true, size: 60000}, 1460), 1460},
		{"v6", split(super(true, flow{ttl: 64, size: 60000}, 1440), 100), 1440},
		{"ecn", ecn, 1460},
		{"udp", udp, 1200},
		{"no DF", super(false, flow{ttl: 64, size: 20000}, 3000), 1460},
		{"small", super(false, flow{ttl: 64, df: true, size: 1000}, 500), 500},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := tc.in.Bytes(nil)
			wantOffload := tc.in.Offload
			wantOffload.GSOSize = uint16(tc.size)
			d.a.inject(tc.in)
			f := d.b.await(t, "super-frame", func(f *ndiscore.Frame) bool { return isTCP(f) || isUDP(f) })
			got := f.Bytes(nil)
			if f.Offload != wantOffload {
				t.Errorf("offload %+v, want %+v", f.Offload, wantOffload)
			}
			if len(got) != len(want) || string(got[34:]) != string(want[34:]) {
				t.Errorf("changed on the way")
			}
		})
	}
	if s := d.router.Stats(); s["forward.too_big"] != 0 {
		t.Errorf("netstack found %d too big", s["forward.too_big"])
	}
}

// TestChecksums: what comes open leaves open or finished. What comes corrupt is
// TestRegressionCorruptChecksum's.
func TestChecksums(t *testing.T) {
	d := newBed(t, testOptions(), 9000, 1500)
	d.meet()
	t.Run("corrupt for us", func(t *testing.T) {
		in := echo4("10.1.0.2", "10.1.0.1", 100)
		in.Head[len(in.Head)-1] ^= 4
		d.a.inject(in)
		if v := d.router.fib.Load().check(macA, in); v.drop != ndiscore.DropBadChecksum {
			t.Errorf("verdict %s", v.drop)
		}
		in.Offload.Flags = ndiscore.DataValid // the source vouches for it; netstack sums ICMP itself
		if v := d.router.fib.Load().check(macA, in); v.drop != ndiscore.DropNone {
			t.Errorf("verdict %s", v.drop)
		}
	})
	open := func(f *ndiscore.Frame, l4 int) *ndiscore.Frame {
		b := f.Head[14:]
		src, dst := b[12:16], b[16:20]
		if l4 == 54 {
			src, dst = b[8:24], b[24:40]
		}
		binary.BigEndian.PutUint16(f.Head[l4+6:], ndiscore.PseudoChecksum(src, dst, 17, len(f.Head)-l4))
		f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: uint16(l4), CsumOffset: 6}
		return f
	}
	t.Run("open stays open", func(t *testing.T) {
		for _, in := range []*ndiscore.Frame{open(udp4(flow{ttl: 64, size: 700}), 34), open(udp6(flow{ttl: 64, size: 700}), 54)} {
			want := in.Offload
			d.a.inject(in)
			if f := d.b.await(t, "UDP", isUDP); f.Offload != want {
				t.Errorf("offload %+v, want %+v", f.Offload, want)
			}
		}
	})
	t.Run("finished before it is cut", func(t *testing.T) {
		whole := udp4(flow{ttl: 64, size: 4001})
		want := whole.Bytes(nil)[34:]
		d.a.inject(split(open(udp4(flow{ttl: 64, size: 4001}), 34), 61))
		var got []byte
		for len(got) < len(want) {
			f := d.b.await(t, "fragment", func(f *ndiscore.Frame) bool { return decode(f).Layer(layers.LayerTypeIPv4) != nil })
			if f.Offload != (ndiscore.Offload{}) {
				t.Fatalf("a fragment with offload %+v", f.Offload)
			}
			got = append(got, f.Bytes(nil)[34:]...)
		}
		if string(got) != string(want) {
			t.Error("the fragments do not make up the datagram")
		}
	})
	t.Run("open inside a tunnel", func(t *testing.T) {
		inner := udp4(flow{ttl: 64, size: 333})
		want := inner.Bytes(nil)[14:]
		open(inner, 34)
		f := serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolIPv4, 64, false),
			gopacket.Payload(inner.Head[14:]))
		f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 54, CsumOffset: 6}
		d.a.inject(f)
		out := d.b.await(t, "tunnel", func(f *ndiscore.Frame) bool { return len(f.Bytes(nil)) == 34+len(want) })
		if got := out.Bytes(nil)[34:]; string(got) != string(want) {
			t.Error("the inner packet is not as it should be")
		}
	})
}

// TestEcho pings the router's own addresses, near and far, small and in
// fragments.
func TestEcho(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	for _, to := range []string{"10.1.0.1", "10.2.0.1"} {
		for _, size := range []int{0, 56, 1472, 5000, 20000} {
			whole := echo4("10.1.0.2", to, size).Bytes(nil)
			d.a.inject(fragments(whole, 1480)...)
			var got []byte
			for len(got) < len(whole)-34 {
				f := d.a.await(t, "echo reply", func(f *ndiscore.Frame) bool {
					ip, ok := decode(f).Layer(layers.LayerTypeIPv4).(*layers.IPv4)
					return ok && ip.SrcIP.String() == to && ip.Protocol == layers.IPProtocolICMPv4
				})
				got = append(got, f.Bytes(nil)[34:]...)
			}
			if got[0] != 0 || ndiscore.Checksum(got, 0) != 0xffff || string(got[8:]) != string(whole[42:]) {
				t.Errorf("%s, %d bytes: a bad reply", to, size)
			}
		}
	}
	ip := ip6("fd01::2", "fd02::1", layers.IPProtocolICMPv6, 64)
	i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	_ = i.SetNetworkLayerForChecksum(ip)
	d.a.inject(serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, i, &layers.ICMPv6Echo{Identifier: 1, SeqNumber: 2}, payload(500)))
	sound(t, d.a.await(t, "echo reply", func(f *ndiscore.Frame) bool { return isICMP6(f, 129) }))
}

// fragments cuts an IPv4 packet behind an Ethernet header.
func fragments(whole []byte, size int) []*ndiscore.Frame {
	var out []*ndiscore.Frame
	data := whole[34:]
	for off := 0; off == 0 || off < len(data); off += size {
		part := data[off:min(off+size, len(data))]
		b := append(append([]byte(nil), whole[:34]...), part...)
		binary.BigEndian.PutUint16(b[16:], uint16(20+len(part)))
		flags := uint16(off / 8)
		if off+size < len(data) {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(b[20:], flags)
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], ^ndiscore.Checksum(b[14:34], 0))
		out = append(out, frameOf(b))
	}
	return out
}

// TestLocalTransport: netstack refuses what nobody listens to, and leaves those
// checksums to the endpoint.
func TestLocalTransport(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	ip := ip4("10.1.0.2", "10.1.0.1", layers.IPProtocolTCP, 64, true)
	syn := &layers.TCP{SrcPort: 1234, DstPort: 22, SYN: true, Window: 1000}
	_ = syn.SetNetworkLayerForChecksum(ip)
	d.a.inject(serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, syn))
	f := d.a.await(t, "RST", isTCP)
	if f.Offload != (ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 16}) {
		t.Errorf("offload %+v", f.Offload)
	}
	b := f.Bytes(nil)
	binary.BigEndian.PutUint16(b[50:], ^ndiscore.Checksum(b[34:], 0))
	if !ndiscore.VerifyTransport(b, nil, 14) {
		t.Error("the RST's checksum, finished, is wrong")
	}

	ip = ip4("10.1.0.2", "10.1.0.1", layers.IPProtocolUDP, 64, true)
	u := &layers.UDP{SrcPort: 1234, DstPort: 53}
	_ = u.SetNetworkLayerForChecksum(ip)
	d.a.inject(serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, u, payload(10)))
	sound(t, d.a.await(t, "port unreachable", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) }))
}

// TestNotRouted lists what a router must not pass on.
func TestNotRouted(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	foreign := udp4(flow{ttl: 64, size: 1})
	foreign.Head[5]++
	broadcast := udp4(flow{ttl: 64, size: 2})
	copy(broadcast.Head, ndiscore.Broadcast[:])
	badSum := udp4(flow{ttl: 64, size: 3})
	badSum.Head[24]++
	long := udp4(flow{ttl: 64, size: 4})
	long.Head[16]++ // beyond the padding too
	own := udp4(flow{ttl: 64, size: 5})
	copy(own.Head[26:30], []byte{10, 1, 0, 1})
	for i, f := range []*ndiscore.Frame{badSum, long, own} {
		if i != 0 {
			f.Head[24], f.Head[25] = 0, 0
			binary.BigEndian.PutUint16(f.Head[24:], ^ndiscore.Checksum(f.Head[14:34], 0))
		}
	}
	d.a.inject(foreign, broadcast, badSum, long, own, udp4(flow{ttl: 64, size: 1000}))
	if f := d.b.await(t, "UDP", isUDP); len(f.Bytes(nil)) != 14+28+1000 {
		t.Errorf("was routed: %v", decode(f))
	}
	// Unroutable: the source is told.
	f := udp4(flow{ttl: 64, size: 1})
	copy(f.Head[30:34], []byte{99, 0, 0, 1})
	f.Head[24], f.Head[25] = 0, 0
	binary.BigEndian.PutUint16(f.Head[24:], ^ndiscore.Checksum(f.Head[14:34], 0))
	d.a.inject(f)
	d.a.await(t, "unreachable", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) })
}

// TestUnresolved: packets that waited for ARP leave, with their offload.
func TestUnresolved(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.a.inject(arpRequest(hostA, "10.1.0.2", "10.1.0.1"))
	in := super(false, flow{ttl: 64, df: true, size: 30000}, 1460)
	want := in.Offload
	d.a.inject(in)
	d.b.await(t, "ARP request", func(f *ndiscore.Frame) bool {
		a, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && a.Operation == 1 && a.DstProtAddress[3] == 2
	})
	d.b.inject(arpReply(hostB, macB, "10.2.0.2", "10.2.0.1"))
	if f := d.b.await(t, "super-frame", isTCP); f.Offload != want {
		t.Errorf("offload %+v, want %+v", f.Offload, want)
	}
	found := false
	for _, n := range d.router.Neighbors() {
		found = found || n.Interface == "wan" && n.IP.String() == "10.2.0.2" && n.MAC == hostB && n.State == "Reachable"
	}
	if !found {
		t.Errorf("neighbours: %+v", d.router.Neighbors())
	}
}
