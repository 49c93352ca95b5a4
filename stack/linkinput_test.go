package stack

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// An input of FuzzLinkInput is a list of steps, each a byte of flags, two of
// length, and that many bytes of a frame.
const (
	stepFar  = 1 << iota // it comes in by b
	stepOurs             // its destination MAC becomes the port's
	stepMend             // its checksums become right, so that netstack looks deeper
	stepWait             // before it, time passes: reassembly, neighbours and MLD have timers
	stepHead             // only its first 60 bytes are in the head
	stepSafe = stepOurs | stepMend
)

const maxSteps = 16

func step(flags byte, f *ndiscore.Frame) []byte {
	b := f.Bytes(nil)
	return append([]byte{flags, byte(len(b) >> 8), byte(len(b))}, b...)
}

// mend makes the checksums of f right, as far as it is a packet.
func mend(f *ndiscore.Frame) {
	if len(f.Head) < ndiscore.EthernetHeader+ipv4Min {
		return
	}
	p := packet{f: f, h: f.Head[ndiscore.EthernetHeader:], size: f.Len() - ndiscore.EthernetHeader}
	h := p.h
	var src, dst []byte
	switch {
	case f.Head[12] == 8 && f.Head[13] == 0:
		p.l4, p.total, p.proto = int(h[0]&15)*4, int(binary.BigEndian.Uint16(h[2:])), h[9]
		if p.l4 < ipv4Min || p.l4 > len(h) || p.total > len(h) || p.total < p.l4 {
			return
		}
		h[10], h[11] = 0, 0
		binary.BigEndian.PutUint16(h[10:], ^ndiscore.Checksum(h[:p.l4], 0))
		p.fragment = binary.BigEndian.Uint16(h[6:])&ipv4FragMask != 0
		src, dst = h[12:16], h[16:20]
	case f.Head[12] == 0x86 && f.Head[13] == 0xdd && len(h) >= ipv6Min:
		p.v6, p.total = true, ipv6Min+int(binary.BigEndian.Uint16(h[4:]))
		if p.total > len(h) || !p.walk() {
			return
		}
		src, dst = h[8:24], h[24:40]
	default:
		return
	}
	t := h[p.l4:p.total]
	at, sum := -1, ndiscore.PseudoChecksum(src, dst, p.proto, len(t))
	switch p.proto {
	case protoTCP:
		at = tcpCsum
	case protoUDP:
		at = udpCsum
	case protoICMPv6:
		at = 2
	case protoICMP, 2: // IGMP
		at, sum = 2, 0
	}
	if at < 0 || p.fragment || at+2 > len(t) {
		return
	}
	t[at], t[at+1] = 0, 0
	binary.BigEndian.PutUint16(t[at:], ^ndiscore.Checksum(t, sum))
}

// icmp4 and icmp6 are messages from the host behind a.
func icmp4(dst string, typ, code byte, body []byte) *ndiscore.Frame {
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", dst, layers.IPProtocolICMPv4, 64, false),
		gopacket.Payload(append([]byte{typ, code, 0, 0}, body...)))
}

func icmp6(src, dst string, hops, typ, code byte, body []byte) *ndiscore.Frame {
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6(src, dst, layers.IPProtocolICMPv6, hops),
		gopacket.Payload(append([]byte{typ, code, 0, 0}, body...)))
}

// linkInputs are the seeds: what a network may hold to vex a router.
func linkInputs() map[string][]byte {
	quote4 := udp4(flow{ttl: 3, size: 40}).Bytes(nil)[14:]
	quote6 := udp6(flow{ttl: 3, size: 40}).Bytes(nil)[14:]
	echo := echo4("10.2.0.1", "10.1.0.2", 30).Bytes(nil)[14:]
	rest := func(n int, b []byte) []byte { return append(make([]byte, n), b...) }
	join := func(steps ...[]byte) []byte { return slices.Concat(steps...) }
	group := func(f *ndiscore.Frame, dst string) *ndiscore.Frame {
		m := macOf(netip.MustParseAddr(dst))
		copy(f.Head, m[:])
		return f
	}
	nd := func(typ byte, body ...byte) *ndiscore.Frame { return icmp6("fd01::2", "fd01::1", 255, typ, 0, body) }
	us, them := netip.MustParseAddr("fd01::1").As16(), netip.MustParseAddr("fd01::2").As16()
	lladdr := func(kind, units byte) []byte {
		o := make([]byte, max(8, int(units)*8))
		o[0], o[1] = kind, units
		copy(o[2:], hostA[:])
		return o
	}
	ra := func(options ...[]byte) *ndiscore.Frame {
		return group(icmp6("fe80::2", "ff02::1", 255, 134, 0, append([]byte{64, 0xc0, 7, 8, 0, 0, 0, 1, 0, 0, 0, 1}, slices.Concat(options...)...)), "ff02::1")
	}
	prefix := append([]byte{3, 4, 64, 0xc0, 0, 0, 9, 9, 0, 0, 9, 9, 0, 0, 0, 0}, make([]byte, 16)...)
	copy(prefix[16:], us[:8])
	fragment6 := func(id byte, off uint16, more bool, data []byte) *ndiscore.Frame {
		h := []byte{protoUDP, 0, byte(off >> 8), byte(off) &^ 7, 0, 0, 0, id}
		if more {
			h[3] |= 1
		}
		return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd01::1", protoFragment, 64), gopacket.Payload(append(h, data...)))
	}
	whole := echo4("10.1.0.2", "10.1.0.1", 3000).Bytes(nil)
	pieces := fragments(whole, 1000)
	overlap := fragments(whole, 808)
	options := func(o ...byte) *ndiscore.Frame {
		for len(o)%4 != 0 {
			o = append(o, 0)
		}
		f := udp4(flow{ttl: 9, size: 30}).Bytes(nil)
		b := slices.Concat(f[:34], o, f[34:])
		b[14] = 0x40 | byte(5+len(o)/4)
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		return frameOf(b)
	}
	tcp := func(v6 bool, flags byte, opts ...byte) *ndiscore.Frame {
		f, l4 := tcp4(20), 34
		if v6 {
			f, l4 = tcp6(20), 54
			a := netip.MustParseAddr("fd02::1").As16()
			copy(f.Head[38:], a[:])
		} else {
			copy(f.Head[30:], []byte{10, 2, 0, 1})
		}
		f.Head[l4+13] = flags
		copy(f.Head[l4+20:], opts)
		f.Head[l4+12] = byte(5+(len(opts)+3)/4) << 4
		return f
	}
	mld := func(typ byte, dst string, body []byte) *ndiscore.Frame {
		b := serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fe80::2", dst, 0, 1),
			gopacket.Payload(append([]byte{protoICMPv6, 0, 5, 2, 0, 0, 1, 0, typ, 0, 0, 0}, body...)))
		return group(b, dst)
	}
	igmp := func(dst string, body ...byte) *ndiscore.Frame {
		f := serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", dst, 2, 1, false), gopacket.Payload(body))
		a := netip.MustParseAddr(dst).As4()
		copy(f.Head, []byte{1, 0, 0x5e, a[1] & 127, a[2], a[3]})
		return f
	}
	arp := func(change func(a []byte)) *ndiscore.Frame {
		f := arpRequest(hostA, "10.1.0.2", "10.1.0.1")
		change(f.Head[14:])
		return f
	}
	return map[string][]byte{
		"forward":       join(step(stepSafe, udp4(flow{ttl: 64, size: 100})), step(stepSafe, udp6(flow{ttl: 64, size: 100})), step(stepSafe|stepHead, udp4(flow{ttl: 64, size: 1400}))),
		"expired":       join(step(stepSafe, udp4(flow{ttl: 1, size: 100})), step(stepSafe, udp6(flow{ttl: 0, size: 100}))),
		"too long":      join(step(stepSafe, udp4(flow{ttl: 64, size: 1600})), step(stepSafe, udp6(flow{ttl: 64, size: 1600}))),
		"icmp errors":   join(step(stepSafe, icmp4("10.2.0.2", 3, 4, rest(4, quote4))), step(stepSafe, icmp4("10.1.0.1", 3, 4, rest(4, echo))), step(stepSafe, icmp4("10.1.0.1", 11, 0, rest(4, echo[:25])))),
		"icmp odd":      join(step(stepSafe, icmp4("10.1.0.1", 5, 1, rest(4, quote4))), step(stepSafe, icmp4("10.1.0.1", 13, 0, rest(16, nil))), step(stepSafe, icmp4("10.1.0.1", 12, 0, rest(4, quote4[:20])))),
		"icmp6 errors":  join(step(stepSafe, icmp6("fd01::2", "fd01::1", 64, 2, 0, append([]byte{0, 0, 5, 0}, quote6...))), step(stepSafe, icmp6("fd01::2", "fd02::2", 64, 1, 4, rest(4, quote6))), step(stepSafe, icmp6("fd01::2", "fd01::1", 64, 4, 1, rest(4, quote6[:41])))),
		"too big of 0":  join(step(stepSafe, icmp6("fd01::2", "fd01::1", 64, 2, 0, append([]byte{0, 0, 0, 0}, quote6...))), step(stepSafe, icmp4("10.1.0.1", 3, 4, rest(4, echo)))),
		"chains":        join(step(stepSafe, chain6(0, 0, 60, 43, 60)), step(stepSafe, chain6(1, 43, 0)), step(stepSafe, chain6(0, protoFragment, protoFragment)), step(stepSafe, chain6(0, repeat(60, 19)...))),
		"bad options":   join(step(stepSafe, rewrite(chain6(0, 60), func(h []byte) { h[42] = 0xc3 })), step(stepSafe, rewrite(chain6(0, 0), func(h []byte) { h[42], h[43] = 0xc2, 4 })), step(stepSafe, rewrite(chain6(0, 60), func(h []byte) { h[43] = 200 }))),
		"routing":       join(step(stepSafe, rewrite(chain6(2, 43), func(h []byte) { h[42], h[43] = 0, 1 })), step(stepSafe, rewrite(chain6(2, 43), func(h []byte) { h[42], h[43] = 4, 255 }))),
		"fragments":     join(step(stepSafe, pieces[0]), step(stepSafe, pieces[2]), step(stepSafe, pieces[1]), step(stepSafe, pieces[3])),
		"overlap":       join(step(stepSafe, pieces[0]), step(stepSafe, overlap[1]), step(stepSafe, overlap[3]), step(stepSafe|stepWait, pieces[1])),
		"fragments6":    join(step(stepSafe, fragment6(1, 0, true, payload(800))), step(stepSafe, fragment6(1, 800, false, payload(99)))),
		"overlap6":      join(step(stepSafe, fragment6(2, 0, true, payload(800))), step(stepSafe, fragment6(2, 792, true, payload(80))), step(stepSafe|stepWait, fragment6(2, 65528, false, payload(99))), step(stepSafe, fragment6(3, 0, true, payload(7)))),
		"ip options":    join(step(stepSafe, options(7, 7, 4, 0, 0, 0, 0)), step(stepSafe, options(68, 12, 5, 1)), step(stepSafe, options(68, 8, 9, 0xf3, 1, 2, 3, 4)), step(stepSafe, options(131, 7, 4, 10, 2, 0, 2)), step(stepSafe, options(148, 4, 0, 0)), step(stepSafe, options(7, 255, 4))),
		"solicitations": join(step(stepSafe, solicitation(hostA, "fd01::2", "fd01::1")), step(stepSafe, nd(135, rest(4, append(us[:], lladdr(1, 0)...))...)), step(stepSafe, nd(135, rest(4, append(us[:], lladdr(1, 2)...))...)), step(stepSafe, nd(135, rest(4, us[:15])...))),
		"adverts":       join(step(stepSafe, nd(136, append([]byte{0xe0, 0, 0, 0}, append(them[:], lladdr(2, 1)...)...)...)), step(stepSafe, nd(136, append([]byte{0x20, 0, 0, 0}, them[:]...)...)), step(stepSafe, nd(136, append([]byte{0x60, 0, 0, 0}, us[:]...)...))),
		"routers":       join(step(stepMend, ra(lladdr(1, 1), prefix)), step(stepMend, ra([]byte{5, 1, 0, 0, 0, 0, 4, 0}, []byte{25, 3, 0, 0, 0, 0, 9, 9}, us[:])), step(stepMend, ra([]byte{31, 2, 0, 0, 0, 0, 9, 9, 3, 'l', 'a', 'n', 0, 0, 0, 0})), step(stepSafe, nd(133, rest(4, lladdr(1, 1))...))),
		"redirect":      join(step(stepSafe, icmp6("fe80::2", "fd01::1", 255, 137, 0, slices.Concat(make([]byte, 4), them[:], us[:], lladdr(2, 1), []byte{4, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}))), step(stepSafe, nd(137, rest(36, nil)...))),
		"mld":           join(step(stepMend, mld(130, "ff02::1", rest(20, nil))), step(stepMend|stepWait, mld(130, "ff02::1", rest(24, nil))), step(stepMend, mld(143, "ff02::16", append([]byte{0, 0, 0, 1, 4, 255, 0, 9}, us[:]...))), step(stepMend|stepWait, mld(132, "ff02::2", rest(4, us[:])))),
		"igmp":          join(step(stepMend, igmp("224.0.0.1", 0x11, 10, 0, 0, 0, 0, 0, 0)), step(stepMend|stepWait, igmp("224.0.0.1", 0x11, 255, 0, 0, 224, 0, 0, 1, 2, 125, 0, 9)), step(stepMend, igmp("224.0.0.22", 0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 1, 1)), step(stepMend, igmp("224.0.0.2", 0x17, 0, 0))),
		"arp":           join(step(0, arp(func([]byte) {})), step(0, arp(func(a []byte) { a[7] = 2 })), step(stepOurs, arp(func(a []byte) { copy(a[14:], []byte{10, 1, 0, 1}) })), step(0, arp(func(a []byte) { a[4] = 8 })), step(0, arp(func(a []byte) { a[7] = 9 })), step(0, arp(func(a []byte) { copy(a[14:], []byte{0, 0, 0, 0}) })), step(0, arp(func(a []byte) { copy(a[14:], []byte{255, 255, 255, 255}); a[8] = 255 }))),
		"tcp":           join(step(stepSafe, tcp(false, 2, 2, 4, 5, 180, 3, 3, 14, 0, 4, 2, 8, 10, 0, 0)), step(stepSafe, tcp(true, 2, 2, 0)), step(stepSafe, tcp(false, 0x10)), step(stepSafe, tcp(true, 0x3f, 3, 255)), step(stepSafe, tcp(false, 4))),
		"echoes":        join(step(stepSafe, echo4("10.1.0.2", "10.1.0.1", 1000)), step(stepSafe, echo4("10.1.0.2", "10.1.0.255", 10)), step(stepSafe, echo4("10.1.0.1", "10.1.0.1", 10)), step(stepSafe, echo4("127.0.0.1", "10.1.0.1", 10)), step(stepSafe, icmp6("fd01::2", "fd01::1", 64, 128, 0, payload(50))), step(stepSafe, icmp6("fd01::2", "fe80::ff:fe00:a0", 64, 128, 0, payload(50)))),
		"strange roads": join(step(stepSafe, echo4("10.1.0.2", "169.254.1.1", 10)), step(stepSafe, echo4("10.1.0.2", "0.0.0.0", 10)), step(stepSafe, echo4("10.1.0.2", "127.0.0.1", 10)), step(stepSafe, echo4("10.1.0.2", "10.2.0.255", 10)), step(stepSafe, icmp6("fe80::2", "fd02::2", 64, 128, 0, payload(50))), step(stepSafe, icmp6("fd01::2", "fe80::7", 64, 128, 0, nil)), step(stepSafe, icmp6("fd01::2", "::1", 64, 128, 0, nil)), step(stepSafe, icmp6("fd01::2", "::ffff:10.2.0.2", 64, 128, 0, nil))),
		"unresolved":    join(step(stepSafe, rewrite(udp4(flow{ttl: 9, size: 20}), func(h []byte) { h[19] = 77 })), step(stepSafe|stepWait, rewrite(udp6(flow{ttl: 9, size: 20}), func(h []byte) { h[39] = 77 })), step(stepSafe|stepWait, echo4("10.1.0.99", "10.1.0.1", 10)), step(stepFar|stepSafe|stepWait, arpReply(hostB, macB, "10.2.0.77", "10.2.0.1"))),
		"tunnels":       join(step(stepSafe, serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.1.0.1", layers.IPProtocolIPv4, 64, true), gopacket.Payload(quote4))), step(stepSafe, serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd01::1", layers.IPProtocolGRE, 64), gopacket.Payload(rest(4, quote4)))), step(stepSafe, serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.1.0.1", 200, 64, true)))),
		"groups":        join(step(stepMend, group(icmp6("fd01::2", "ff02::1", 64, 128, 0, payload(9)), "ff02::1")), step(stepMend, igmp("239.1.1.1", payload(40)...)), step(stepMend, group(icmp6("fd01::2", "ff0e::99", 64, 1, 0, rest(4, quote6)), "ff0e::99"))),
	}
}

// linkInput runs the steps of an input through a router, and fails the test if
// netstack panics or sends what a device must not be given.
func linkInput(t *testing.T, d *bareRouter, c *manualClock, in []byte) {
	for n := 0; n < maxSteps && len(in) >= 3; n++ {
		flags, size := in[0], int(binary.BigEndian.Uint16(in[1:]))
		size = min(size, len(in)-3)
		f := frameOf(in[3 : 3+size])
		in = in[3+size:]
		p, mac := d.a, macA
		if flags&stepFar != 0 {
			p, mac = d.b, macB
		}
		if flags&stepOurs != 0 && size >= 6 {
			copy(f.Head, mac[:])
		}
		if flags&stepMend != 0 {
			mend(f)
		}
		if flags&stepHead != 0 {
			f = split(f, 60)
		}
		if flags&stepWait != 0 {
			c.advance(7 * time.Second)
			d.settle()
		}
		d.in(p, f)
	}
	if s := d.Stats(); s["panics"] != 0 {
		t.Fatal("netstack panicked")
	}
	for _, w := range []*checkedWire{d.wa, d.wb} {
		if s := w.wrong.Load(); s != nil {
			t.Fatal(*s)
		}
	}
}

// newLinkRouter is a router whose time passes when a step says so.
func newLinkRouter(t testing.TB) (*bareRouter, *manualClock) {
	c := &manualClock{now: time.Unix(1e9, 0)}
	o := testOptions()
	o.Clock = c
	return newBareRouter(t, o, 9000, 1500), c
}

// FuzzLinkInput: no sequence of frames, from whichever side, makes netstack panic.
func FuzzLinkInput(f *testing.F) {
	for _, in := range linkInputs() {
		f.Add(in)
	}
	d, c := newLinkRouter(f)
	f.Fuzz(func(t *testing.T, in []byte) { linkInput(t, d, c, in) })
}

// TestLinkInputs: the seeds do what they were made for: they get past the guards.
func TestLinkInputs(t *testing.T) {
	d, c := newLinkRouter(t)
	for name, in := range linkInputs() {
		before := d.Stats()
		linkInput(t, d, c, in)
		after := d.Stats()
		steps := 0
		for b := in; len(b) >= 3; b = b[3+int(binary.BigEndian.Uint16(b[1:])):] {
			steps++
		}
		if n := after["delivered"] - before["delivered"]; n == 0 || name != "chains" && name != "bad options" && int(n) < steps-1 {
			t.Errorf("%s: %d of %d steps reached netstack", name, n, steps)
		}
	}
	if s := d.Stats(); s["ip.malformed"] > 40 {
		t.Errorf("netstack found %d malformed", s["ip.malformed"])
	}
	goroutines := runtime.NumGoroutine()
	c.advance(10 * time.Minute)
	d.settle()
	eventually(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= goroutines })
}
