package ndiscore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The tests below know the rules of checksums and segments a second time, and
// naively: nothing here uses checksum.go.

// naiveSum is RFC 1071, word by word.
func naiveSum(b []byte, initial uint32) uint16 {
	s := uint64(initial)
	for i, v := range b {
		if i&1 == 0 {
			s += uint64(v) << 8
		} else {
			s += uint64(v)
		}
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func naivePseudo(src, dst []byte, proto uint8, n int) uint16 {
	p := append(bytes.Clone(src), dst...)
	p = binary.BigEndian.AppendUint32(p, uint32(n))
	return naiveSum(append(p, 0, 0, 0, proto), 0)
}

func TestChecksum(t *testing.T) {
	// RFC 1071 section 3.
	if got := Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 {
		t.Errorf("RFC 1071's example sums to %#x", got)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 1<<16)
	for _, fill := range []func() byte{
		func() byte { return byte(rnd.Uint32()) },
		func() byte { return 0xff }, // every addition carries
		func() byte { return byte(rnd.IntN(2)) * 0xff },
		func() byte { return 0 },
	} {
		for i := range b {
			b[i] = fill()
		}
		for n := range 700 {
			at, init := rnd.IntN(64), uint16(rnd.Uint32())
			if got, want := Checksum(b[at:at+n], init), naiveSum(b[at:at+n], uint32(init)); got != want {
				t.Fatalf("%d bytes on %#x: %#x, want %#x", n, init, got, want)
			}
		}
		if got, want := Checksum(b, 0xffff), naiveSum(b, 0xffff); got != want {
			t.Fatalf("64 KiB: %#x, want %#x", got, want)
		}
	}
}

func TestSumPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 40), 1, 8).Draw(t, "pieces")
		all := slices.Concat(pieces...)
		n := rapid.IntRange(0, len(all)+3).Draw(t, "n")
		init := rapid.Uint16().Draw(t, "init")
		got := sumPieces(init, pieces[0], pieces[1:], n)
		if want := naiveSum(all[:min(n, len(all))], uint32(init)); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

func TestPseudoChecksum(t *testing.T) {
	v4, v6 := []byte{192, 0, 2, 1, 198, 51, 100, 7}, make([]byte, 32)
	for i := range v6 {
		v6[i] = byte(0xff - i)
	}
	for _, n := range []int{0, 8, 1480, 65535, 70000} {
		for _, a := range [][]byte{v4, v6} {
			src, dst := a[:len(a)/2], a[len(a)/2:]
			if got, want := PseudoChecksum(src, dst, 17, n), naivePseudo(src, dst, 17, n); got != want {
				t.Errorf("%d bytes: %#x, want %#x", n, got, want)
			}
		}
	}
}

func TestVerifyTransport(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	payload := []byte("a payload of odd length.!")
	for _, s := range []spec{
		{kind: GSOTCPv4, payload: payload},
		{kind: GSOTCPv4, payload: payload, ipOpts: []byte{1, 1, 1, 1}, tcpOpts: []byte{1, 1, 1, 1}, tags: 2},
		{kind: GSOTCPv6, payload: payload, tags: 1},
		{kind: GSOTCPv6, payload: payload, ipOpts: []byte{0, 60, 0, 1, 4, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0}},
		{kind: GSOUDPL4, payload: payload},
		{kind: GSOUDPL4, payload: payload, v6: true},
		{kind: GSOUDPL4, v6: true},
	} {
		frame, _, l3, l4, end := s.build()
		for _, padding := range []int{0, 7} { // as on Ethernet: not part of the packet
			b := append(bytes.Clone(frame), bytes.Repeat([]byte{0xee}, padding)...)
			f := newFrame(b, Offload{}, end, rnd)
			if !VerifyTransport(f.Head, f.Segs, l3) {
				t.Errorf("%+v, padding %d: right checksum refused", s, padding)
			}
			for i := l4; i < len(frame); i++ {
				bad := bytes.Clone(b)
				bad[i] ^= 0x10
				if f := newFrame(bad, Offload{}, end, rnd); VerifyTransport(f.Head, f.Segs, l3) {
					t.Errorf("%+v: flipped bit in byte %d not seen", s, i-l4)
				}
			}
		}
		f := newFrame(frame[:len(frame)-1], Offload{}, end-1, rnd)
		if VerifyTransport(f.Head, f.Segs, l3) {
			t.Errorf("%+v: truncated packet passes", s)
		}
	}

	v4 := func(proto byte, body ...byte) []byte {
		h := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
		return append(h, body...)
	}
	v6 := func(proto byte, body ...byte) []byte {
		h := append([]byte{0x60, 0, 0, 0, 0, byte(len(body)), proto, 64}, make([]byte, 32)...)
		return append(h, body...)
	}
	sealed := func(p []byte, l4, at int, pseudo uint16) []byte {
		binary.BigEndian.PutUint16(p[l4+at:], ^naiveSum(p[l4:], uint32(pseudo)))
		return p
	}
	fragment := v4(protoTCP, 1, 2, 3)
	fragment[6] = 0x20
	for _, c := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"ICMP right", sealed(v4(protoICMP, 8, 0, 0, 0, 1, 2, 3, 4, 9), 20, 2, 0), true},
		{"ICMP wrong", v4(protoICMP, 8, 0, 0, 1, 1, 2, 3, 4, 9), false},
		{"ICMPv6 right", sealed(v6(protoICMPv6, 128, 0, 0, 0, 1, 2, 3, 4), 40, 2, naivePseudo(make([]byte, 16), make([]byte, 16), protoICMPv6, 8)), true},
		{"ICMPv6 wrong", v6(protoICMPv6, 128, 0, 0, 0, 1, 2, 3, 4), false},
		{"other protocol", v4(47, 1, 2, 3), true},
		{"fragment", fragment, true},
		{"IPv6 fragment", v6(protoFragment, protoTCP, 0, 0, 1, 0, 0, 0, 1), true},
		{"UDP without checksum", v4(protoUDP, 0, 1, 0, 2, 0, 9, 0, 0, 5), true},
		{"IPv6 UDP without checksum", v6(protoUDP, 0, 1, 0, 2, 0, 9, 0, 0, 5), false},
		{"UDP length beyond the packet", v4(protoUDP, 0, 1, 0, 2, 0, 10, 0, 0, 5), false},
		{"UDP length below its header", v4(protoUDP, 0, 1, 0, 2, 0, 7, 0, 0, 5), false},
		{"short UDP", v4(protoUDP, 0, 1, 0, 2), false},
		{"short TCP", v4(protoTCP, 0, 1, 0, 2), false},
		{"version 5", append([]byte{0x55}, v4(protoTCP)[1:]...), false},
		{"empty", nil, false},
		{"too many extension headers", v6(0, bytes.Repeat(make([]byte, 8), 7)...), false},
		{"hops left", v6(protoRouting, protoTCP, 0, 0, 1, 0, 0, 0, 0), true},
	} {
		if got := VerifyTransport(c.packet, nil, 0); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 40, 1460, 65536} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(i * 7)
			}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			s := uint16(0)
			for b.Loop() {
				s = Checksum(p, s)
			}
		})
	}
}
