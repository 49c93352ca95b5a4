package ndiscore

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// conversation is what a flow is made of.
type conversation struct {
	macs     [2]MAC
	tags     []uint16 // VLAN ids, the outer first
	addrs    [2]netip.Addr
	proto    uint8
	ports    [2]uint16
	fragment bool
	hops     bool // IPv6: a hop-by-hop header in front
}

// frame is one frame of c, or with back of its answers.
func (c conversation) frame(back bool, payload int) []byte {
	from, to := 0, 1
	if back {
		from, to = 1, 0
	}
	f := append(append([]byte{}, c.macs[to][:]...), c.macs[from][:]...)
	for _, t := range c.tags {
		f = binary.BigEndian.AppendUint16(f, EtherTypeVLAN)
		f = binary.BigEndian.AppendUint16(f, t)
	}
	var l4 []byte
	l4 = binary.BigEndian.AppendUint16(l4, c.ports[from])
	l4 = binary.BigEndian.AppendUint16(l4, c.ports[to])
	l4 = append(l4, make([]byte, 16+payload)...)
	if !c.addrs[0].IsValid() {
		f = binary.BigEndian.AppendUint16(f, EtherTypeARP)
		return append(f, l4...)
	}
	if c.addrs[0].Is4() {
		f = binary.BigEndian.AppendUint16(f, EtherTypeIPv4)
		h := make([]byte, ipv4MinHeader)
		h[0] = 0x45
		binary.BigEndian.PutUint16(h[ipv4TotalLength:], uint16(len(h)+len(l4)))
		binary.BigEndian.PutUint16(h[ipv4ID:], uint16(payload))
		if c.fragment {
			binary.BigEndian.PutUint16(h[ipv4Fragment:], uint16(payload)&0x1fff|0x2000)
		}
		h[ipv4Proto] = c.proto
		copy(h[ipv4Src:], c.addrs[from].AsSlice())
		copy(h[ipv4Src+4:], c.addrs[to].AsSlice())
		return append(append(f, h...), l4...)
	}
	f = binary.BigEndian.AppendUint16(f, EtherTypeIPv6)
	next := c.proto
	if c.fragment {
		l4 = append([]byte{next, 0, 0, byte(payload) &^ 7, 0, 0, 0, 1}, l4...)
		next = protoFragment
	}
	if c.hops {
		l4 = append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, l4...)
		next = protoHopByHop
	}
	h := make([]byte, ipv6Header)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[ipv6PayloadLen:], uint16(len(l4)))
	h[ipv6NextHeader] = next
	copy(h[ipv6Src:], c.addrs[from].AsSlice())
	copy(h[ipv6Src+16:], c.addrs[to].AsSlice())
	return append(append(f, h...), l4...)
}

var genConversation = rapid.Custom(func(t *rapid.T) conversation {
	c := conversation{
		proto:    rapid.SampledFrom([]uint8{protoTCP, protoUDP, protoSCTP, protoDCCP, protoUDPLite, 1, 47, 58}).Draw(t, "proto"),
		fragment: rapid.Bool().Draw(t, "fragment"), hops: rapid.Bool().Draw(t, "hops"),
	}
	if c.proto == 58 && rapid.Bool().Draw(t, "GRE") {
		c.proto = 47
	}
	for range rapid.IntRange(0, 2).Draw(t, "tags") {
		c.tags = append(c.tags, rapid.Uint16Range(0, 4095).Draw(t, "tag"))
	}
	kind := rapid.IntRange(0, 2).Draw(t, "kind")
	for i := range 2 {
		copy(c.macs[i][:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
		c.macs[i][0] &^= 1
		c.ports[i] = rapid.Uint16().Draw(t, "port")
		switch kind {
		case 1:
			c.addrs[i] = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip")))
		case 2:
			c.addrs[i] = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip")))
		}
	}
	return c
})

// A flow hashes alike both ways, whatever its frames carry, and whether the
// payload lies in the head or not; its fragments hash alike whichever they are.
func TestFlowHash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := genConversation.Draw(t, "flow")
		h := flowHash(c.frame(false, rapid.IntRange(0, 900).Draw(t, "size")))
		if h != flowHash(c.frame(false, rapid.IntRange(0, 900).Draw(t, "size"))) {
			t.Fatal("frames of one flow differ")
		}
		if h != flowHash(c.frame(true, rapid.IntRange(0, 900).Draw(t, "size"))) {
			t.Fatal("the way back differs")
		}
		if c.fragment && c.addrs[0].IsValid() { // others have no ports
			d := c
			d.ports[0]++
			if h != flowHash(d.frame(false, 0)) {
				t.Fatal("what looks like a port of a fragment counts")
			}
		}
		d := c
		d.macs[0][5] ^= 1
		if h == flowHash(d.frame(false, 0)) {
			t.Fatal("the MAC address does not count")
		}
		if c.addrs[0].IsValid() {
			d = c
			d.addrs[1] = d.addrs[1].Next()
			if d.addrs[1].IsValid() && h == flowHash(d.frame(false, 0)) {
				t.Fatal("the IP address does not count")
			}
			if d = c; !c.fragment && c.proto != 1 && c.proto != 47 && c.proto != 58 {
				d.ports[0]++
				if h == flowHash(d.frame(false, 0)) {
					t.Fatal("the port does not count")
				}
			}
		}
		if len(c.tags) > 0 {
			d = c
			d.tags = append([]uint16{c.tags[0] ^ 1}, c.tags[1:]...)
			if h == flowHash(d.frame(false, 0)) {
				t.Fatal("the VLAN does not count")
			}
		}
	})
}

// Flows as they are in the field, alike but for one small number, spread evenly:
// the deviation is that of chance (chi-square, far beyond 0.999).
func TestFlowSpread(t *testing.T) {
	base := conversation{macs: [2]MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, proto: protoTCP, ports: [2]uint16{40000, 443}}
	four := [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")}
	six := [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")}
	for name, vary := range map[string]func(c *conversation, i int){
		"MAC":             func(c *conversation, i int) { binary.BigEndian.PutUint16(c.macs[0][4:], uint16(i)) },
		"IPv4 port":       func(c *conversation, i int) { c.addrs = four; c.ports[0] = 32768 + uint16(i) },
		"IPv4 even ports": func(c *conversation, i int) { c.addrs = four; c.ports[0] = 2 * uint16(i) },
		"IPv4 client": func(c *conversation, i int) {
			c.addrs = four
			c.addrs[0] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		},
		"IPv4 pairs": func(c *conversation, i int) {
			c.addrs = [2]netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
		},
		"IPv6 port": func(c *conversation, i int) { c.addrs = six; c.ports[0] = 32768 + uint16(i) },
		"IPv6 client": func(c *conversation, i int) {
			c.addrs = six
			a := six[0].As16()
			binary.BigEndian.PutUint16(a[14:], uint16(i))
			c.addrs[0] = netip.AddrFrom16(a)
		},
		"IPv6 subnet": func(c *conversation, i int) {
			c.addrs = six
			a := six[0].As16()
			binary.BigEndian.PutUint16(a[6:], uint16(i))
			c.addrs[0] = netip.AddrFrom16(a)
		},
		"VLAN": func(c *conversation, i int) { c.tags = []uint16{uint16(i)} },
	} {
		for _, lanes := range [][]string{{"up0", "up1"}, {"wan0", "wan1", "wan2"}, {"a", "b", "c", "d", "e", "f", "g", "h"}} {
			var seeds []uint64
			for _, l := range lanes {
				seeds = append(seeds, laneSeed(l))
			}
			const flows = 4000
			count := make([]float64, len(lanes))
			for i := range flows {
				c := base
				vary(&c, i)
				count[pickLane(flowHash(c.frame(false, 0)), seeds)]++
			}
			chi, want := 0.0, flows/float64(len(lanes))
			for _, n := range count {
				chi += (n - want) * (n - want) / want
			}
			// Mean and deviation of chi-square with k degrees of freedom: k, sqrt(2k).
			k := float64(len(lanes) - 1)
			if limit := k + 6*math.Sqrt(2*k); chi > limit {
				t.Errorf("%s over %d lanes: %v, chi-square %.1f, limit %.1f", name, len(lanes), count, chi, limit)
			}
		}
	}
}

// When a lane is lost only its flows move, and they spread over the rest; when it
// is back they are back.
func TestFlowStability(t *testing.T) {
	all := []string{"up0", "up1", "up2", "up3"}
	seeds := func(names []string) (s []uint64) {
		for _, n := range names {
			s = append(s, laneSeed(n))
		}
		return s
	}
	for lost := range all {
		rest := append(append([]string{}, all[:lost]...), all[lost+1:]...)
		went := map[string]int{}
		for i := range 4000 {
			h := blend(uint64(i), 0)
			was, is := all[pickLane(h, seeds(all))], rest[pickLane(h, seeds(rest))]
			if was != all[lost] && was != is {
				t.Fatalf("without %s a flow moves from %s to %s", all[lost], was, is)
			}
			if was == all[lost] {
				went[is]++
			}
		}
		for _, n := range rest {
			if went[n] < 200 { // a third of a quarter, if evenly: 333
				t.Errorf("of the flows of %s, %s got %d: %v", all[lost], n, went[n], went)
			}
		}
	}
}

func TestSources(t *testing.T) {
	var turn atomic.Uint64
	s := sources{turn: &turn}
	frame := func(last byte) *Frame {
		f := new(Frame)
		f.Reset(append(make([]byte, 6), 2, 0, 0, 0, 0, last, 8, 0), 0, 14)
		return f
	}
	if s.knows(frame(1)) {
		t.Error("knows somebody already")
	}
	turn.Store(1<<20 - 1) // wraps in its 16 bits
	s.remember([]*Frame{frame(1), frame(2), {Head: []byte{1}}})
	for n, want := range []bool{true, true, false, false} {
		if s.knows(frame(1)) != want || s.knows(frame(3)) {
			t.Errorf("after %d turns: %v", n, !want)
		}
		turn.Add(1)
	}
}

func FuzzFlowHash(f *testing.F) {
	c := conversation{macs: [2]MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, proto: protoTCP, ports: [2]uint16{1, 2}, tags: []uint16{7}}
	f.Add(c.frame(false, 0))
	c.addrs = [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	f.Add(c.frame(false, 9))
	c.addrs = [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	c.hops, c.fragment = true, true
	f.Add(c.frame(true, 8))
	f.Fuzz(func(t *testing.T, head []byte) {
		h := flowHash(head)
		if h != flowHash(head) {
			t.Fatal("not stable")
		}
		// Stations swapped: the same, as long as nothing else is.
		if l2, r := ParseL2(head); r == DropNone && l2.EtherType != EtherTypeIPv4 && l2.EtherType != EtherTypeIPv6 {
			swapped := append(append(append([]byte{}, head[6:12]...), head[:6]...), head[12:]...)
			if flowHash(swapped) != h {
				t.Fatal("not symmetric")
			}
		}
	})
}

func BenchmarkFlowHash(b *testing.B) {
	c := conversation{macs: [2]MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, proto: protoTCP, ports: [2]uint16{1, 2}}
	other := c.frame(false, 0)
	c.addrs = [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	four := c.frame(false, 0)
	c.addrs = [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	six := c.frame(false, 0)
	seeds := []uint64{laneSeed("up0"), laneSeed("up1"), laneSeed("up2"), laneSeed("up3")}
	for _, k := range []struct {
		name  string
		frame []byte
	}{{"other", other}, {"IPv4", four}, {"IPv6", six}} {
		b.Run(k.name, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n += pickLane(flowHash(k.frame), seeds)
			}
		})
	}
}
