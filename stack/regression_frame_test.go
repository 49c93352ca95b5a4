package stack

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// tcp4 and tcp6 are TCP segments from a host behind a to one behind b.
func tcp4(size int) *ndiscore.Frame {
	ip := ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolTCP, 64, true)
	l := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1, ACK: true, Window: 1000}
	_ = l.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, l, payload(size))
}

func tcp6(size int) *ndiscore.Frame {
	ip := ip6("fd01::2", "fd02::2", layers.IPProtocolTCP, 64)
	l := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1, ACK: true, Window: 1000}
	_ = l.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, l, payload(size))
}

// transportOf is where the transport header of f begins.
func transportOf(f *ndiscore.Frame) int {
	if f.Head[12] == 8 {
		return 34
	}
	return 54
}

// TestRegressionCorruptChecksum: netstack computes transport checksums anew when
// it forwards, and so makes corrupt packets valid.
func TestRegressionCorruptChecksum(t *testing.T) {
	d := newBed(t, testOptions(), 9000, 1500)
	d.meet()
	is := func(f *ndiscore.Frame) bool {
		return decode(f).Layer(layers.LayerTypeIPv4) != nil && !isICMP4(f, 3) || isUDP(f) || isTCP(f)
	}
	for name, make := range map[string]func() *ndiscore.Frame{
		"udp4": func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 100}) },
		"udp6": func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 100}) },
		"tcp4": func() *ndiscore.Frame { return tcp4(100) },
		"tcp6": func() *ndiscore.Frame { return tcp6(100) },
		"odd":  func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 101}) },
		"long": func() *ndiscore.Frame { return split(udp4(flow{ttl: 64, size: 1400}), 60) },
	} {
		clean := make().Bytes(nil)
		for _, at := range []int{transportOf(make()) + 1, len(clean) - 1, len(clean) - 40, transportOf(make()) + 7} {
			in := make()
			if at < len(in.Head) {
				in.Head[at] ^= 4
			} else {
				in.Segs[len(in.Segs)-1][len(in.Segs[len(in.Segs)-1])-1] ^= 4
			}
			want := string(in.Bytes(nil)[transportOf(in):])
			d.a.inject(in)
			f := d.b.await(t, name, is)
			if got := string(f.Bytes(nil)[transportOf(in):]); got != want || f.Offload != (ndiscore.Offload{}) {
				t.Errorf("%s, byte %d: changed on the way: %+v", name, at, f.Offload)
			}
		}
	}
	// One that must be cut into fragments is not repaired, either.
	in := udp4(flow{ttl: 64, size: 4000})
	in.Head[60] ^= 4
	want := string(in.Head[34:])
	d.a.inject(in)
	got := ""
	for len(got) < len(want) {
		got += string(d.b.await(t, "fragment", is).Bytes(nil)[34:])
	}
	if got != want {
		t.Error("the fragments are not what came")
	}
}

// leaveOpen makes f one whose transport checksum is left to the device.
func leaveOpen(f *ndiscore.Frame) *ndiscore.Frame {
	l4, b := transportOf(f), f.Bytes(nil)
	src, dst, proto := b[26:30], b[30:34], b[23]
	if l4 == 54 {
		src, dst, proto = b[22:38], b[38:54], b[20]
	}
	at := udpCsum
	if proto == protoTCP {
		at = tcpCsum
	}
	binary.BigEndian.PutUint16(f.Head[l4+at:], ndiscore.PseudoChecksum(src, dst, proto, len(b)-l4))
	f.Offload.Flags |= ndiscore.NeedsCsum
	f.Offload.CsumStart, f.Offload.CsumOffset = uint16(l4), uint16(at)
	return f
}

// plainPort is a bed whose way out has no offload at all.
func plainPort(t *testing.T) *bed {
	d := newBedOn(t, testOptions(), ndiscore.Attributes{MTU: 9000, Transmit: ndiscore.CapAll}, ndiscore.Attributes{MTU: 1500}, func(*Router) {})
	d.meet()
	return d
}

// TestRegressionPartialChecksum: a checksum that was left open must not reach a
// port that cannot finish it.
func TestRegressionPartialChecksum(t *testing.T) {
	d := plainPort(t)
	for name, make := range map[string]func() *ndiscore.Frame{
		"udp4": func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 100}) },
		"udp6": func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 101}) },
		"tcp4": func() *ndiscore.Frame { return tcp4(1000) },
		"tcp6": func() *ndiscore.Frame { return tcp6(7) },
	} {
		want := make().Bytes(nil)
		d.a.inject(leaveOpen(make()))
		f := d.b.await(t, name, func(f *ndiscore.Frame) bool { return isUDP(f) || isTCP(f) })
		sound(t, f)
		if got := f.Bytes(nil); string(got[transportOf(f):]) != string(want[transportOf(f):]) {
			t.Errorf("%s: changed on the way", name)
		}
	}
	// The router's own, too.
	ip := ip4("10.2.0.2", "10.2.0.1", layers.IPProtocolTCP, 64, true)
	syn := &layers.TCP{SrcPort: 1234, DstPort: 22, SYN: true, Window: 1000}
	_ = syn.SetNetworkLayerForChecksum(ip)
	d.b.inject(serialize(ether(hostB, macB, layers.EthernetTypeIPv4), ip, syn))
	sound(t, d.b.await(t, "RST", isTCP))
}

// TestRegressionSuperFrame: a frame of 64 KiB meets a port that cannot cut it.
func TestRegressionSuperFrame(t *testing.T) {
	d := plainPort(t)
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
		mss  int
	}{
		{"tcp4", leaveOpen(super(false, flow{ttl: 64, df: true, size: 64000}, 1460)), 1460},
		{"tcp6", leaveOpen(super(true, flow{ttl: 64, size: 64000}, 1440)), 1440},
		{"tcp4 in pieces", split(leaveOpen(super(false, flow{ttl: 64, df: true, size: 64000}, 1000)), 100), 1000},
		{"tcp4 for a larger MTU", leaveOpen(super(false, flow{ttl: 64, size: 64000}, 8000)), 1460},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := payload(64000)
			d.a.inject(tc.in)
			got := make([]byte, 0, len(want))
			for n := 0; len(got) < len(want); n++ {
				f := d.b.await(t, "segment", isTCP)
				sound(t, f)
				tcp := decode(f).Layer(layers.LayerTypeTCP).(*layers.TCP)
				if f.Len() > 14+1500 || len(tcp.Payload) > tc.mss || int(tcp.Seq) != 1+len(got) {
					t.Fatalf("segment %d: %d bytes, sequence %d", n, f.Len(), tcp.Seq)
				}
				got = append(got, tcp.Payload...)
			}
			if string(got) != string(want) {
				t.Error("the segments do not make up the frame")
			}
		})
	}
}

// TestRegressionGSOProbeFailure: some kernels refuse super-frames although they
// offer them (EINVAL). A miniport that finds out when it starts does not offer
// them (TestRegressionSuperFrame); here one finds out too late. It costs the frames
// that it refused, and nothing else.
func TestRegressionGSOProbeFailure(t *testing.T) {
	d, w := sickRouter(t, testOptions())
	w.large.Store(true)
	w.reason.Store(uint32(ndiscore.DropDeviceError))
	for range 100 {
		d.in(d.a, super(false, flow{ttl: 64, df: true, size: 64000}, 1460), udp4(flow{ttl: 64, size: 10}),
			super(true, flow{ttl: 64, size: 64000}, 1440), udp6(flow{ttl: 64, size: 10}))
	}
	s := d.Stats()
	// What netstack sends by itself, MLD reports, is taken too.
	if w.taken.Load() < 200 || s["send.wan.refused"] != 200 || s["panics"] != 0 {
		t.Errorf("%d were taken, %d refused of 200 each, %d panics", w.taken.Load(), s["send.wan.refused"], s["panics"])
	}
}

// TestRegressionFragmentsAndGRE: what has no ports passes untouched.
func TestRegressionFragmentsAndGRE(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	var in []*ndiscore.Frame
	whole := udp4(flow{ttl: 64, size: 5000}).Bytes(nil)
	in = append(in, fragments(whole, 1480)...)
	// The last piece first, and one whose header alone is a fragment's.
	in = append(in, slices.Clone(fragments(whole, 800))...)
	slices.Reverse(in[4:])
	for _, proto := range []layers.IPProtocol{layers.IPProtocolGRE, layers.IPProtocolESP, layers.IPProtocolSCTP, 200} {
		in = append(in, serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.2.0.2", proto, 64, true), gopacket.Payload(payload(300))),
			serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd02::2", proto, 64), gopacket.Payload(payload(300))))
	}
	for off := 0; off < 3; off++ { // of IPv6
		h := make([]byte, 8, 1008)
		h[0] = protoUDP
		binary.BigEndian.PutUint16(h[2:], uint16(off*1000)&^7|min(1, uint16(2-off)))
		h[7] = 42
		in = append(in, serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd02::2", protoFragment, 64), gopacket.Payload(append(h, payload(1000)...))))
	}
	for n, f := range in {
		want := f.Bytes(nil)
		d.a.inject(f)
		got := d.b.await(t, fmt.Sprintf("packet %d", n), func(f *ndiscore.Frame) bool { return f.Dst() == hostB && f.Len() == len(want) }).Bytes(nil)
		if string(got[transportOf(f):]) != string(want[transportOf(f):]) {
			t.Errorf("packet %d: changed on the way", n)
		}
	}
}
