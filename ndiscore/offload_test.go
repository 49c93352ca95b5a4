package ndiscore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
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

// spec describes a frame to be built.
type spec struct {
	tags    int
	kind    GSOKind // also says what protocol: GSONone is TCP over IPv4
	v6      bool    // for UDP
	ipOpts  []byte  // IPv4 options, or whole IPv6 extension headers after a first next-header byte
	tcpOpts []byte
	flags   uint8
	seq     uint32
	id      uint16
	size    int
	payload []byte
	csum    bool // partial checksum
	ecn     bool
}

func (s spec) isUDP() bool { return s.kind == GSOUDPL4 }
func (s spec) isV6() bool  { return s.kind == GSOTCPv6 || s.kind == GSOUDPL4 && s.v6 }

// build makes the bytes of the frame and its Offload; l4 and end are where its
// transport header begins and ends.
func (s spec) build() (frame []byte, o Offload, l3, l4, end int) {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for i := range s.tags {
		b = append(b, [2]byte{0x81, 0x88}[(s.tags-i)-1], [2]byte{0x00, 0xa8}[(s.tags-i)-1], 0x20, byte(7+i))
	}
	th := 20 + len(s.tcpOpts)
	proto := byte(protoTCP)
	if s.isUDP() {
		th, proto = 8, protoUDP
	}
	var src, dst []byte
	if s.isV6() {
		b = append(b, 0x86, 0xdd)
		l3 = len(b)
		next, ext := proto, []byte(nil)
		if len(s.ipOpts) > 0 {
			next, ext = s.ipOpts[0], slices.Clone(s.ipOpts[1:])
			// The last extension header's next-header byte stands at the start of its last piece.
			for at := 0; ; {
				n := 8 + int(ext[at+1])*8
				if at+n == len(ext) {
					ext[at] = proto
					break
				}
				at += n
			}
		}
		b = append(b, 0x6b, 1, 2, 3)
		b = binary.BigEndian.AppendUint16(b, uint16(len(ext)+th+len(s.payload)))
		b = append(b, next, 64)
		src = []byte{0xfd, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
		dst = []byte{0xfd, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99}
		b = append(append(append(b, src...), dst...), ext...)
	} else {
		b = append(b, 0x08, 0x00)
		l3 = len(b)
		ihl := 20 + len(s.ipOpts)
		b = append(b, 0x40|byte(ihl/4), 0x02)
		b = binary.BigEndian.AppendUint16(b, uint16(ihl+th+len(s.payload)))
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = append(b, 0x40, 0, 64, proto, 0, 0)
		src, dst = []byte{192, 0, 2, 1}, []byte{198, 51, 100, 7}
		b = append(append(append(b, src...), dst...), s.ipOpts...)
		binary.BigEndian.PutUint16(b[l3+10:], ^naiveSum(b[l3:], 0))
	}
	l4 = len(b)
	b = append(b, 0x9c, 0x40, 0x1f, 0x90)
	at := 16
	if s.isUDP() {
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(s.payload)))
		b = append(b, 0, 0)
		at = 6
	} else {
		b = binary.BigEndian.AppendUint32(b, s.seq)
		b = append(b, 1, 2, 3, 4, byte(th/4)<<4, s.flags, 0xff, 0xff, 0, 0, 0, 7)
		b = append(b, s.tcpOpts...)
	}
	end = len(b)
	pseudo := naivePseudo(src, dst, proto, th+len(s.payload))
	b = append(b, s.payload...)
	if s.csum {
		binary.BigEndian.PutUint16(b[l4+at:], pseudo)
		o.Flags, o.CsumStart, o.CsumOffset = NeedsCsum, uint16(l4), uint16(at)
	} else {
		c := ^naiveSum(b[l4:], uint32(pseudo))
		if c == 0 && s.isUDP() {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(b[l4+at:], c)
	}
	if s.size > 0 {
		o.GSO, o.GSOSize, o.HdrLen = s.kind, uint16(s.size), uint16(end)
		if s.ecn {
			o.Flags |= GSOECN
		}
	}
	return b, o, l3, l4, end
}

// newFrame makes a Frame of b whose first headLen bytes are its Head and whose
// rest lies in pieces cut at random.
func newFrame(b []byte, o Offload, headLen int, rnd *rand.Rand) *Frame {
	f := new(Frame)
	buf := append(make([]byte, Headroom), b[:headLen]...)
	f.Reset(buf, Headroom, headLen)
	f.Offload = o
	for rest := b[headLen:]; len(rest) > 0; {
		n := 1 + rnd.IntN(len(rest))
		if n > 3 && rnd.IntN(3) == 0 {
			n = 1 + rnd.IntN(3)
		}
		f.Segs = append(f.Segs, slices.Clone(rest[:n]))
		rest = rest[n:]
		if rnd.IntN(4) == 0 {
			f.Segs = append(f.Segs, nil) // an empty piece is allowed too
		}
	}
	return f
}

// recorder is an egress adapter that remembers. Only Send may be called.
type recorder struct {
	Adapter
	sent   []sent
	refuse func(n int) DropReason // of the n-th frame; nil: none
	fail   func(format string, args ...any)
}

type sent struct {
	frame   *Frame
	bytes   []byte
	head    int
	offload Offload
}

func (r *recorder) Send(b *Batch) {
	if !b.Borrowed || len(b.Frames) == 0 || len(b.Frames) > BatchFrames || b.Worker == nil {
		r.fail("a bad batch was sent: borrowed %v, %d frames", b.Borrowed, len(b.Frames))
	}
	for i, f := range b.Frames {
		if b.Status[i] != DropNone {
			r.fail("status %v was there before Send", b.Status[i])
		}
		if r.refuse != nil {
			b.Status[i] = r.refuse(len(r.sent))
		}
		r.sent = append(r.sent, sent{f, f.Bytes(nil), len(f.Head), f.Offload})
	}
}

// checkSegment checks everything about one finished packet that its own bytes
// tell, naively.
func checkSegment(b []byte, o Offload, l3, l4 int) error {
	h, t := b[l3:], b[l4:]
	var src, dst []byte
	var proto byte
	switch h[0] >> 4 {
	case 4:
		if n := int(binary.BigEndian.Uint16(h[2:])); n != len(h) {
			return fmt.Errorf("IPv4 total length %d, packet %d", n, len(h))
		}
		if s := naiveSum(h[:l4-l3], 0); s != 0xffff {
			return fmt.Errorf("IPv4 header sums to %#x", s)
		}
		src, dst, proto = h[12:16], h[16:20], h[9]
	case 6:
		if n := int(binary.BigEndian.Uint16(h[4:])); n != len(h)-40 {
			return fmt.Errorf("IPv6 payload length %d, packet %d", n, len(h))
		}
		src, dst, proto = h[8:24], h[24:40], protoTCP
		if h[6] == protoUDP || h[6] != protoTCP && bytes.HasPrefix(t, []byte{0x9c, 0x40, 0x1f, 0x90}) && len(t) == int(binary.BigEndian.Uint16(t[4:])) {
			proto = protoUDP
		}
	}
	at := 16
	if proto == protoUDP {
		at = 6
		if n := int(binary.BigEndian.Uint16(t[4:])); n != len(t) {
			return fmt.Errorf("UDP length %d, datagram %d", n, len(t))
		}
	}
	pseudo := naivePseudo(src, dst, proto, len(t))
	if o.Flags&NeedsCsum != 0 {
		want := Offload{Flags: NeedsCsum, CsumStart: uint16(l4), CsumOffset: uint16(at)}
		if o != want {
			return fmt.Errorf("offload %+v, want %+v", o, want)
		}
		if got := binary.BigEndian.Uint16(t[at:]); got%0xffff != pseudo%0xffff { // 0 and 0xffff are one number
			return fmt.Errorf("partial checksum %#x, want %#x", got, pseudo)
		}
		return nil
	}
	if o != (Offload{}) {
		return fmt.Errorf("offload %+v of a finished frame", o)
	}
	if s := naiveSum(t, uint32(pseudo)); s != 0xffff {
		return fmt.Errorf("transport checksum: sums to %#x", s)
	}
	if proto == protoUDP && t[6]|t[7] == 0 {
		return fmt.Errorf("UDP checksum zero")
	}
	return nil
}

// checkCut checks that out are the segments of the super-frame in.
func checkCut(in spec, out []sent, partial bool) error {
	frame, _, l3, l4, end := in.build()
	want := (len(in.payload) + in.size - 1) / in.size
	if len(out) != want {
		return fmt.Errorf("%d segments, want %d", len(out), want)
	}
	var payload []byte
	for i, s := range out {
		if err := checkSegment(s.bytes, s.offload, l3, l4); err != nil {
			return fmt.Errorf("segment %d of %d: %w", i, len(out), err)
		}
		if s.offload.Flags&NeedsCsum != 0 != partial {
			return fmt.Errorf("segment %d: flags %v", i, s.offload.Flags)
		}
		if s.head != end {
			return fmt.Errorf("segment %d: head of %d bytes, want %d", i, s.head, end)
		}
		// All of the header but what must differ is as it was.
		got, orig := bytes.Clone(s.bytes[:end]), bytes.Clone(frame[:end])
		mask := func(at, n int) { clear(got[at : at+n]); clear(orig[at : at+n]) }
		if in.isV6() {
			mask(l3+4, 2)
		} else {
			if id := binary.BigEndian.Uint16(got[l3+4:]); id != in.id+uint16(i) {
				return fmt.Errorf("segment %d: id %d", i, id)
			}
			mask(l3+2, 4)
			mask(l3+10, 2)
		}
		if in.isUDP() {
			mask(l4+4, 4)
		} else {
			if seq := binary.BigEndian.Uint32(got[l4+4:]); seq != in.seq+uint32(len(payload)) {
				return fmt.Errorf("segment %d: seq %d", i, seq)
			}
			flags := in.flags
			if i > 0 {
				flags &^= 0x80
			}
			if i < len(out)-1 {
				flags &^= 0x09
			}
			if got[l4+13] != flags {
				return fmt.Errorf("segment %d: flags %#x, want %#x", i, got[l4+13], flags)
			}
			mask(l4+4, 4)
			mask(l4+13, 1)
			mask(l4+16, 2)
		}
		if !bytes.Equal(got, orig) {
			return fmt.Errorf("segment %d: header\n%x, of\n%x", i, got, orig)
		}
		if n := len(s.bytes) - end; n > in.size || i < len(out)-1 && n != in.size {
			return fmt.Errorf("segment %d: %d bytes of payload", i, n)
		}
		payload = append(payload, s.bytes[end:]...)
	}
	if !bytes.Equal(payload, in.payload) {
		return fmt.Errorf("payload differs")
	}
	return nil
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

func TestCheckOffload(t *testing.T) {
	payload := make([]byte, 4000)
	super := func(k GSOKind) spec { return spec{kind: k, size: 1000, payload: payload, csum: true} }
	type change func(f *Frame)
	poke := func(at int, v byte) change { return func(f *Frame) { f.Head[at] = v } }
	none := func(*Frame) {}
	for _, c := range []struct {
		name   string
		spec   spec
		change change
		want   DropReason
		wantO  func(before Offload) Offload // nil: as before
	}{
		{name: "tcpv4", spec: super(GSOTCPv4)},
		{name: "tcpv6", spec: super(GSOTCPv6)},
		{name: "udp over v4", spec: super(GSOUDPL4)},
		{name: "two tags", spec: spec{kind: GSOTCPv4, size: 1000, payload: payload, csum: true, tags: 2}},
		{name: "ecn", spec: spec{kind: GSOTCPv6, size: 1000, payload: payload, csum: true, ecn: true, flags: 0x80}},
		{name: "header length lies", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.HdrLen = 7 },
			wantO: func(o Offload) Offload { o.HdrLen = 54; return o }},
		{name: "hop-by-hop and destination options", spec: spec{kind: GSOTCPv6, size: 1000, payload: payload, csum: true,
			ipOpts: append([]byte{protoHopByHop}, append([]byte{protoDestination, 0, 1, 4, 0, 0, 0, 0}, make([]byte, 8)...)...)}},
		{name: "one segment", spec: spec{kind: GSOTCPv4, size: 4000, payload: payload, csum: true, ecn: true},
			wantO: func(o Offload) Offload {
				return Offload{Flags: NeedsCsum, CsumStart: o.CsumStart, CsumOffset: o.CsumOffset}
			}},
		{name: "no payload", spec: spec{kind: GSOUDPL4, size: 1, csum: true},
			wantO: func(o Offload) Offload {
				return Offload{Flags: NeedsCsum, CsumStart: o.CsumStart, CsumOffset: o.CsumOffset}
			}},
		{name: "one segment, complete", spec: spec{kind: GSOTCPv4, size: 4000, payload: payload},
			wantO: func(Offload) Offload { return Offload{} }},
		{name: "nothing asked, stale fields", spec: spec{kind: GSOTCPv4, payload: payload},
			change: func(f *Frame) { f.Offload = Offload{Flags: DataValid, CsumStart: 900, HdrLen: 3} },
			wantO:  func(Offload) Offload { return Offload{Flags: DataValid} }},
		{name: "plain with partial checksum", spec: spec{kind: GSOTCPv4, payload: payload, csum: true}},

		{name: "segment size 0", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.GSOSize = 0 }, want: DropBadOffload},
		{name: "too many segments", spec: spec{kind: GSOTCPv4, size: 1, payload: make([]byte, 8193), csum: true}, want: DropBadOffload},
		{name: "unknown kind", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.GSO = 9 }, want: DropBadOffload},
		{name: "kind of other version", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.GSO = GSOTCPv6 }, want: DropBadOffload},
		{name: "kind of other protocol", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.GSO = GSOUDPL4 }, want: DropBadOffload},
		{name: "ethertype of other version", spec: super(GSOTCPv4), change: func(f *Frame) { f.Head[12], f.Head[13] = 0x86, 0xdd }, want: DropBadOffload},
		{name: "ARP", spec: super(GSOTCPv4), change: poke(13, 6), want: DropBadOffload},
		{name: "version 6 in IPv4", spec: super(GSOTCPv4), change: poke(14, 0x65), want: DropBadOffload},
		{name: "header length 4 words", spec: super(GSOTCPv4), change: poke(14, 0x44), want: DropBadOffload},
		{name: "more fragments", spec: super(GSOTCPv4), change: poke(20, 0x20), want: DropBadOffload},
		{name: "fragment offset", spec: super(GSOUDPL4), change: poke(21, 1), want: DropBadOffload},
		{name: "fragment header", spec: super(GSOTCPv6), change: poke(20, protoFragment), want: DropBadOffload},
		{name: "IPv4 length lies", spec: super(GSOTCPv4), change: poke(17, 1), want: DropBadOffload},
		{name: "IPv6 length lies", spec: super(GSOTCPv6), change: poke(19, 1), want: DropBadOffload},
		{name: "UDP length lies", spec: super(GSOUDPL4), change: poke(39, 1), want: DropBadOffload},
		{name: "TCP data offset too small", spec: super(GSOTCPv4), change: poke(46, 0x40), want: DropBadOffload},
		{name: "TCP header beyond head", spec: super(GSOTCPv4), change: poke(46, 0xf0), want: DropBadOffload},
		{name: "headers not in head", spec: super(GSOTCPv4), change: func(f *Frame) {
			f.Segs = append([][]byte{f.Head[53:]}, f.Segs...)
			f.Head = f.Head[:53]
		}, want: DropBadOffload},
		{name: "checksum elsewhere", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.CsumOffset = 6 }, want: DropBadOffload},
		{name: "checksum from elsewhere", spec: super(GSOTCPv4), change: func(f *Frame) { f.Offload.CsumStart-- }, want: DropBadOffload},
		{name: "ECN for UDP", spec: spec{kind: GSOUDPL4, size: 1000, payload: payload, csum: true, ecn: true}, want: DropBadOffload},
		{name: "ECN without GSO", spec: spec{kind: GSOTCPv4, payload: payload}, change: func(f *Frame) { f.Offload.Flags = GSOECN }, want: DropBadOffload},
		{name: "three tags", spec: spec{kind: GSOTCPv4, size: 1000, payload: payload, csum: true, tags: 2},
			change: func(f *Frame) { f.Head[20], f.Head[21] = 0x81, 0 }, want: DropBadOffload},

		{name: "plain: checksum behind head", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumOffset = 20 }, want: DropBadOffload},
		{name: "plain: far behind head", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumStart, f.Offload.CsumOffset = 65535, 65534 }, want: DropBadOffload},
		{name: "plain: last place in head", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumOffset = 18 }},
		{name: "plain: odd", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumOffset = 3 }, want: DropBadOffload},
		{name: "plain: in MAC header", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumStart = 0 }, want: DropBadOffload},
		{name: "plain: in IPv4 header", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Offload.CsumStart = 33 }, want: DropBadOffload},
		{name: "plain: in IPv4 options", spec: spec{kind: GSOTCPv4, csum: true, ipOpts: make([]byte, 8)}, change: func(f *Frame) { f.Offload.CsumStart = 40 }, want: DropBadOffload},
		{name: "plain: in IPv6 header", spec: spec{kind: GSOTCPv6, csum: true}, change: func(f *Frame) { f.Offload.CsumStart = 53 }, want: DropBadOffload},
		{name: "plain: neither IP", spec: spec{kind: GSOTCPv4, csum: true}, change: func(f *Frame) { f.Head[12], f.Offload.CsumStart = 0x89, 14 }},
		{name: "plain: three tags", spec: spec{kind: GSOTCPv4, tags: 2, csum: true}, change: func(f *Frame) { f.Head[20], f.Head[21] = 0x81, 0 }, want: DropBadOffload},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, o, _, _, end := c.spec.build()
			f := newFrame(b, o, end, rand.New(rand.NewPCG(5, 6)))
			if c.change == nil {
				c.change = none
			}
			c.change(f)
			if got := f.CheckOffload(); got != c.want {
				t.Fatalf("%v, want %v", got, c.want)
			}
			if c.want != DropNone {
				return
			}
			want := f.Offload
			if c.wantO != nil {
				want = c.wantO(o)
			} else if c.spec.size > 0 {
				want = o
			}
			if f.Offload != want {
				t.Errorf("offload %+v, want %+v", f.Offload, want)
			}
			if again := *f; again.CheckOffload() != DropNone || again.Offload != f.Offload {
				t.Errorf("a second look says otherwise: %+v", again.Offload)
			}
		})
	}
}

func TestCheckOffloadMakesPartialChecksum(t *testing.T) {
	for _, k := range []GSOKind{GSOTCPv4, GSOTCPv6, GSOUDPL4} {
		s := spec{kind: k, size: 900, payload: make([]byte, 5000)}
		b, o, _, _, end := s.build()
		f := newFrame(b, o, end, rand.New(rand.NewPCG(1, 1)))
		if r := f.CheckOffload(); r != DropNone {
			t.Fatalf("%v: %v", k, r)
		}
		s.csum = true
		want, wantO, _, _, _ := s.build()
		if !bytes.Equal(f.Bytes(nil), want) || f.Offload != wantO {
			t.Errorf("%v: not what NeedsCsum promises: %+v", k, f.Offload)
		}
	}

	// With hops left to go, nobody here knows the last destination.
	s := spec{kind: GSOTCPv6, size: 900, payload: make([]byte, 5000), ipOpts: []byte{protoRouting, 0, 0, 4, 1, 0, 0, 0, 0}}
	b, o, _, _, end := s.build()
	if r := newFrame(b, o, end, rand.New(rand.NewPCG(1, 1))).CheckOffload(); r != DropBadOffload {
		t.Errorf("routing header with hops left: %v", r)
	}
}

func TestAccepts(t *testing.T) {
	plain := func(n, tags int, csum bool) spec {
		return spec{kind: GSOTCPv4, tags: tags, payload: make([]byte, n-40), csum: csum}
	}
	super := func(k GSOKind, size int, ecn bool) spec {
		return spec{kind: k, size: size, payload: make([]byte, 9000), csum: true, ecn: ecn}
	}
	for _, c := range []struct {
		name string
		spec spec
		caps Capabilities
		mtu  int
		want bool
	}{
		{"plain fits", plain(1500, 0, false), 0, 1500, true},
		{"plain too long", plain(1501, 0, false), CapAll, 1500, false},
		{"tags are free", plain(1500, 2, false), 0, 1500, true},
		{"tags are free, but no more", plain(1501, 1, false), 0, 1500, false},
		{"partial", plain(1500, 0, true), CapChecksum, 1500, true},
		{"partial, not able", plain(1500, 0, true), CapAll &^ CapChecksum, 1500, false},
		{"tcpv4", super(GSOTCPv4, 1460, false), CapChecksum | CapTSO4, 1500, true},
		{"tcpv4, segment too long", super(GSOTCPv4, 1461, false), CapAll, 1500, false},
		{"tcpv4, not able", super(GSOTCPv4, 1460, false), CapAll &^ CapTSO4, 1500, false},
		{"tcpv4 without checksum", super(GSOTCPv4, 1460, false), CapTSO4, 1500, false},
		{"tcpv6", super(GSOTCPv6, 1440, false), CapChecksum | CapTSO6, 1500, true},
		{"tcpv6, segment too long", super(GSOTCPv6, 1441, false), CapAll, 1500, false},
		{"tcpv6, not able", super(GSOTCPv6, 1440, false), CapAll &^ CapTSO6, 1500, false},
		{"udp", super(GSOUDPL4, 1472, false), CapChecksum | CapUSO, 1500, true},
		{"udp, not able", super(GSOUDPL4, 1472, false), CapAll &^ CapUSO, 1500, false},
		{"ecn", super(GSOTCPv4, 1460, true), CapAll, 1500, true},
		{"ecn, not able", super(GSOTCPv4, 1460, true), CapAll &^ CapECN, 1500, false},
	} {
		b, o, _, _, end := c.spec.build()
		f := newFrame(b, o, end, rand.New(rand.NewPCG(1, 1)))
		if got := accepts(f, c.caps, c.mtu); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// drawSpec draws a frame of any kind the switch can meet.
func drawSpec(t *rapid.T) spec {
	s := spec{
		tags:  rapid.IntRange(0, 2).Draw(t, "tags"),
		kind:  rapid.SampledFrom([]GSOKind{GSOTCPv4, GSOTCPv6, GSOUDPL4}).Draw(t, "kind"),
		v6:    rapid.Bool().Draw(t, "v6"),
		flags: rapid.Byte().Draw(t, "flags"),
		seq:   rapid.Uint32().Draw(t, "seq"),
		id:    rapid.Uint16().Draw(t, "id"),
		csum:  rapid.Bool().Draw(t, "csum"),
		ecn:   rapid.Bool().Draw(t, "ecn"),
	}
	if s.isUDP() {
		s.ecn = false
	} else {
		s.tcpOpts = bytes.Repeat([]byte{1}, 4*rapid.IntRange(0, 10).Draw(t, "tcpOpts"))
	}
	if s.isV6() {
		next := byte(0)
		for i := range rapid.IntRange(0, 4).Draw(t, "extensions") {
			h := make([]byte, 8*rapid.SampledFrom([]int{1, 1, 1, 2, 4}).Draw(t, "extLen"))
			h[0], h[1] = protoDestination, byte(len(h)/8-1)
			if i == 0 {
				next = rapid.SampledFrom([]byte{protoHopByHop, protoRouting, protoDestination}).Draw(t, "first")
				s.ipOpts = []byte{next}
			}
			s.ipOpts = append(s.ipOpts, h...)
		}
	} else {
		s.ipOpts = bytes.Repeat([]byte{1}, 4*rapid.IntRange(0, 10).Draw(t, "ipOpts"))
	}
	n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 9000), rapid.IntRange(0, 64000)).Draw(t, "payload")
	seed := rapid.Uint64().Draw(t, "payloadSeed")
	s.payload = make([]byte, n)
	rnd := rand.New(rand.NewPCG(seed, seed))
	for i := range s.payload {
		s.payload[i] = byte(rnd.Uint32())
	}
	if rapid.IntRange(0, 3).Draw(t, "gso") > 0 && n > 0 {
		s.size = rapid.OneOf(rapid.IntRange(1, n), rapid.IntRange(min(n, 1000), min(n+1, 2000))).Draw(t, "size")
		s.size = max(s.size, n/500+1) // keep the test quick; the limit itself has a case above
	} else {
		s.ecn = false
	}
	return s
}

// TestFinish puts random batches through finish and checks each frame that
// comes out against what went in. A failure prints rapid's seed.
func TestFinish(t *testing.T) {
	w := new(Worker)
	rapid.Check(t, func(t *rapid.T) {
		specs := make([]spec, rapid.IntRange(1, 6).Draw(t, "frames"))
		seed := rapid.Uint64().Draw(t, "seed")
		rnd := rand.New(rand.NewPCG(seed, seed))
		caps := Capabilities(rapid.IntRange(0, int(CapAll)).Draw(t, "caps"))
		mtu := rapid.SampledFrom([]int{68, 576, 1280, 1500, 9000, 65535}).Draw(t, "mtu")
		b := NewBatch(w)
		var before [][]byte
		for i := range specs {
			specs[i] = drawSpec(t)
			bytes, o, _, _, end := specs[i].build()
			if len(bytes) > MaxFrame {
				t.Skip("too long")
			}
			head := end + rnd.IntN(len(bytes)-end+1)
			if rnd.IntN(2) == 0 {
				head = end + rnd.IntN(min(8, len(bytes)-end+1))
			}
			f := newFrame(bytes, o, head, rnd)
			if r := f.CheckOffload(); r != DropNone {
				t.Fatalf("frame %d: CheckOffload: %v: %+v", i, r, o)
			}
			b.Append(f)
			before = append(before, f.Bytes(nil))
			b.Status[i] = DropFault // stale
		}

		refuseAt := rapid.IntRange(-1, 20).Draw(t, "refuseAt")
		a := &recorder{fail: t.Fatalf, refuse: func(n int) DropReason {
			switch n {
			case refuseAt:
				return DropTxQueueFull
			case refuseAt + 1:
				return DropDeviceError
			}
			return DropNone
		}}
		segments := w.fin.finish(w, b, caps, mtu, a)

		next, extra := 0, 0
		for i, s := range specs {
			f := b.Frames[i]
			if !bytes.Equal(f.Bytes(nil), before[i]) {
				t.Fatalf("frame %d was changed", i)
			}
			_, _, l3, l4, end := s.build()
			n := 1
			super := s.size > 0 && len(s.payload) > s.size
			longest := end - l3 + len(s.payload)
			if super {
				longest = end - l3 + s.size
			}
			if longest > mtu {
				if b.Status[i] != DropTooBig {
					t.Fatalf("frame %d of %d bytes: %v", i, longest, b.Status[i])
				}
				continue
			}
			able := caps&CapChecksum != 0 || f.Offload.Flags&NeedsCsum == 0
			if super {
				need := CapChecksum | map[GSOKind]Capabilities{GSOTCPv4: CapTSO4, GSOTCPv6: CapTSO6, GSOUDPL4: CapUSO}[s.kind]
				if s.ecn {
					need |= CapECN
				}
				if able = caps&need == need; !able {
					n = (len(s.payload) + s.size - 1) / s.size
				}
			}
			if next+n > len(a.sent) {
				t.Fatalf("frame %d: %d parts, %d frames left", i, n, len(a.sent)-next)
			}
			out := a.sent[next : next+n]
			switch {
			case able:
				if out[0].frame != f || out[0].offload != f.Offload {
					t.Fatalf("frame %d was not passed as it is", i)
				}
			case super:
				if err := checkCut(s, out, caps&CapChecksum != 0); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
			default:
				if err := checkSegment(out[0].bytes, out[0].offload, l3, l4); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				s.csum = false
				s.size = 0
				want, _, _, _, _ := s.build()
				got := out[0].bytes
				if at := l4 + int(f.Offload.CsumOffset); want[at]|want[at+1] == 0 {
					want[at], want[at+1] = 0xff, 0xff
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("frame %d: completed frame differs", i)
				}
			}
			want := DropNone
			switch {
			case refuseAt >= next && refuseAt < next+n:
				want = DropTxQueueFull
			case refuseAt+1 >= next && refuseAt+1 < next+n:
				want = DropDeviceError
			}
			if b.Status[i] != want {
				t.Fatalf("frame %d: status %v, want %v", i, b.Status[i], want)
			}
			next += n
			extra += n - 1
		}
		if next != len(a.sent) || segments != uint64(extra) {
			t.Fatalf("%d frames sent, %d wanted; %d extra reported, %d wanted", len(a.sent), next, segments, extra)
		}
		if w.fin.depth != 0 || len(w.lent) != 1 {
			t.Fatalf("depth %d, %d scratch batches at home", w.fin.depth, len(w.lent))
		}
	})
}

// TestFinishUDPZero: a UDP checksum that comes out as zero is sent as 0xffff,
// when completed and when cut.
func TestFinishUDPZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := spec{kind: GSOUDPL4, v6: v6, size: 4, payload: make([]byte, 8), csum: true}
		// Find the payload word that makes the datagram's sum 0xffff.
		one := s
		one.payload, one.size = make([]byte, 4), 0
		b, _, l3, l4, _ := one.build()
		c := ^naiveSum(b[l4:], 0) // the field holds the pseudo-header's sum
		for i := range 2 {
			binary.BigEndian.PutUint16(s.payload[i*4:], c)
		}
		copy(one.payload, s.payload)
		for _, s := range []spec{s, one} {
			b, o, _, _, end := s.build()
			w := new(Worker)
			batch := NewBatch(w)
			batch.Append(newFrame(b, o, end, rand.New(rand.NewPCG(1, 1))))
			a := &recorder{fail: t.Fatalf}
			w.fin.finish(w, batch, 0, 1500, a)
			for _, out := range a.sent {
				if got := binary.BigEndian.Uint16(out.bytes[l4+6:]); got != 0xffff {
					t.Errorf("v6 %v: checksum %#x", v6, got)
				}
				if err := checkSegment(out.bytes, out.offload, l3, l4); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// TestFinishKeepsCorruption: what was wrong on arrival is wrong afterwards.
func TestFinishKeepsCorruption(t *testing.T) {
	s := spec{kind: GSOTCPv4, size: 500, payload: make([]byte, 2000), csum: true}
	for name, at := range map[string]int{"IP header": 14 + 8, "pseudo-header sum": 14 + 20 + 16} {
		b, o, l3, l4, end := s.build()
		b[at] ^= 0x40
		w := new(Worker)
		batch := NewBatch(w)
		f := newFrame(b, o, end, rand.New(rand.NewPCG(1, 1)))
		if r := f.CheckOffload(); r != DropNone {
			t.Fatal(r)
		}
		batch.Append(f)
		a := &recorder{fail: t.Fatalf}
		w.fin.finish(w, batch, 0, 1500, a)
		if len(a.sent) != 4 {
			t.Fatalf("%d segments", len(a.sent))
		}
		for i, out := range a.sent {
			if checkSegment(out.bytes, out.offload, l3, l4) == nil {
				t.Errorf("%s: segment %d was healed", name, i)
			}
		}
	}
}

// TestFinishSCTP: a partial SCTP checksum is a CRC-32C, and no adapter is
// trusted with it.
func TestFinishSCTP(t *testing.T) {
	for _, n := range []int{0, 100, 1001} {
		b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}
		b = append(b, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protoSCTP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		binary.BigEndian.PutUint16(b[16:], uint16(20+12+n))
		b = append(b, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0)
		b = append(b, bytes.Repeat([]byte{0x5a}, n)...)
		for _, head := range []int{34 + 12, 34 + 10, len(b)} {
			w := new(Worker)
			batch := NewBatch(w)
			f := newFrame(b, Offload{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 8}, head, rand.New(rand.NewPCG(1, 1)))
			if r := f.CheckOffload(); r != DropNone {
				t.Fatal(r)
			}
			batch.Append(f)
			a := &recorder{fail: t.Fatalf}
			w.fin.finish(w, batch, CapAll, 1500, a)
			if head < 34+12 {
				if batch.Status[0] != DropBadOffload {
					t.Errorf("half a checksum in head: %v", batch.Status[0])
				}
				continue
			}
			want := bytes.Clone(b)
			binary.LittleEndian.PutUint32(want[34+8:], crc32.Checksum(b[34:], crc32.MakeTable(crc32.Castagnoli)))
			if !bytes.Equal(a.sent[0].bytes, want) || a.sent[0].offload != (Offload{}) {
				t.Errorf("%d bytes, head %d: not the packet with its CRC", n, head)
			}
		}
	}
}

// TestFinishMoved: a frame whose headers somebody moved without saying so is
// dropped, not cut in the wrong place.
func TestFinishMoved(t *testing.T) {
	super := spec{kind: GSOTCPv4, size: 500, payload: make([]byte, 2000), csum: true}
	plain := spec{kind: GSOTCPv4, payload: make([]byte, 10), csum: true}
	for name, c := range map[string]struct {
		s      spec
		change func(f *Frame)
	}{
		"tag pushed": {super, func(f *Frame) {
			f.Head = append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 5}, f.Head[12:]...)
		}},
		"shortened":         {super, func(f *Frame) { f.Segs = nil }},
		"no partial":        {super, func(f *Frame) { f.Offload.Flags = 0 }},
		"checksum not here": {plain, func(f *Frame) { f.Head = f.Head[:50] }},
	} {
		b, o, _, _, end := c.s.build()
		f := newFrame(b, o, end, rand.New(rand.NewPCG(1, 1)))
		c.change(f)
		w := new(Worker)
		batch := NewBatch(w)
		batch.Append(f)
		a := &recorder{fail: t.Fatalf}
		w.fin.finish(w, batch, 0, 1500, a)
		if len(a.sent) != 0 || batch.Status[0] != DropBadOffload {
			t.Errorf("%s: %d sent, %v", name, len(a.sent), batch.Status[0])
		}
	}
}

// nester finishes again what it is sent, as a bundle's Send does.
type nester struct {
	recorder
	w     *Worker
	inner *recorder
}

func (n *nester) Send(b *Batch) {
	n.w.fin.finish(n.w, b, 0, 1500, n.inner)
	n.recorder.Send(&Batch{Worker: b.Worker, Frames: b.Frames, Borrowed: true})
}

func TestFinishNested(t *testing.T) {
	w := new(Worker)
	rnd := rand.New(rand.NewPCG(1, 1))
	b := NewBatch(w)
	var specs []spec
	for i := range 4 {
		s := spec{kind: GSOTCPv4, size: 700 + i, payload: make([]byte, 60000), csum: true, id: uint16(i) << 12}
		specs = append(specs, s)
		bytes, o, _, _, end := s.build()
		b.Append(newFrame(bytes, o, end, rnd))
	}
	n := &nester{recorder: recorder{fail: t.Fatalf}, w: w, inner: &recorder{fail: t.Fatalf}}
	// Outside, segments stay partial; inside, they are completed.
	w.fin.finish(w, b, CapChecksum, 1500, n)
	for name, sent := range map[string][]sent{"outer": n.sent, "inner": n.inner.sent} {
		for i, s := range specs {
			k := (len(s.payload) + s.size - 1) / s.size
			if err := checkCut(s, sent[:k], name == "outer"); err != nil {
				t.Errorf("%s: frame %d: %v", name, i, err)
			}
			sent = sent[k:]
		}
		if len(sent) != 0 {
			t.Errorf("%s: %d frames too many", name, len(sent))
		}
	}
}

// TestFinishLongHead: a checksum field deep inside a long head makes the scratch
// memory grow, not the result wrong.
func TestFinishLongHead(t *testing.T) {
	w := new(Worker)
	b := NewBatch(w)
	rnd := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 60000)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	copy(data[12:], []byte{0x89, 0x00})
	starts := []int{100, 20000, 59990, 14, 40001}
	for _, start := range starts {
		b.Append(newFrame(data, Offload{Flags: NeedsCsum, CsumStart: uint16(start), CsumOffset: 4}, len(data), rnd))
	}
	a := &recorder{fail: t.Fatalf}
	w.fin.finish(w, b, 0, 65535, a)
	if len(a.sent) != len(starts) {
		t.Fatalf("%d frames", len(a.sent))
	}
	for i, start := range starts {
		want := bytes.Clone(data)
		binary.BigEndian.PutUint16(want[start+4:], ^naiveSum(data[start:], 0))
		if !bytes.Equal(a.sent[i].bytes, want) {
			t.Errorf("start %d: frame differs", start)
		}
	}
}

// FuzzCheckOffload: whatever a guest writes in front of whatever frame, nothing
// panics, and what passes the check is finished without losing a byte.
func FuzzCheckOffload(f *testing.F) {
	seed := func(s spec, caps byte) {
		b, o, _, _, end := s.build()
		f.Add(byte(o.Flags), byte(o.GSO), o.GSOSize, o.CsumStart, o.CsumOffset, uint16(end), caps, uint16(1500), b)
	}
	payload := make([]byte, 700)
	seed(spec{kind: GSOTCPv4, size: 200, payload: payload, csum: true, ecn: true, flags: 0x99}, 0)
	seed(spec{kind: GSOTCPv4, size: 200, payload: payload, tags: 2, tcpOpts: make([]byte, 12), ipOpts: make([]byte, 4)}, 1)
	seed(spec{kind: GSOTCPv6, size: 200, payload: payload, csum: true, ipOpts: []byte{0, 0, 0, 0, 0, 0, 0, 0, 0}}, 2)
	seed(spec{kind: GSOUDPL4, size: 200, payload: payload, csum: true}, 0)
	seed(spec{kind: GSOUDPL4, size: 1, payload: payload, csum: true, v6: true, tags: 1}, 1)
	seed(spec{kind: GSOTCPv4, payload: payload, csum: true}, 0)
	f.Add(byte(0), byte(0), uint16(0), uint16(0), uint16(0), uint16(60), byte(0), uint16(68), make([]byte, 60))

	w := new(Worker)
	f.Fuzz(func(t *testing.T, flags, kind byte, size, start, offset, head uint16, caps byte, mtu uint16, data []byte) {
		if len(data) < EthernetHeader || len(data) > MaxFrame {
			return
		}
		n := max(EthernetHeader, min(int(head), len(data)))
		rnd := rand.New(rand.NewPCG(uint64(head), uint64(size)))
		o := Offload{Flags: OffloadFlags(flags), GSO: GSOKind(kind), GSOSize: size, CsumStart: start, CsumOffset: offset, HdrLen: head}
		fr := newFrame(data, o, n, rnd)
		VerifyTransport(fr.Head, fr.Segs, int(start)-1)
		r := fr.CheckOffload()
		if r != DropNone && r != DropBadOffload {
			t.Fatalf("reason %v", r)
		}

		// finish must stand what was not checked, too.
		b := NewBatch(w)
		b.Append(fr)
		sentFrames, sentPayload, sentBytes := 0, 0, 0
		a := &counter{send: func(f *Frame) {
			sentFrames++
			sentBytes += f.Len()
			if f.Offload.GSO == GSONone && r == DropNone && fr.Offload.GSO != GSONone {
				if len(f.Head) != int(fr.Offload.HdrLen) || f.Len()-len(f.Head) > int(fr.Offload.GSOSize) {
					t.Fatalf("segment of %d+%d bytes", len(f.Head), f.Len()-len(f.Head))
				}
				sentPayload += f.Len() - len(f.Head)
			}
		}}
		segments := w.fin.finish(w, b, Capabilities(caps)&CapAll, int(mtu), a)
		if r != DropNone {
			return
		}
		switch {
		case b.Status[0] != DropNone:
			if sentFrames != 0 || segments != 0 {
				t.Fatalf("%v, and yet %d frames were sent", b.Status[0], sentFrames)
			}
			if b.Status[0] != DropTooBig && !(b.Status[0] == DropBadOffload && offset == sctpCsumOffset) {
				t.Fatalf("a checked frame was refused: %v", b.Status[0])
			}
		case sentFrames != int(segments)+1 || sentFrames > maxSegments:
			t.Fatalf("%d frames sent, %d extra reported", sentFrames, segments)
		case sentPayload > 0 && sentPayload != fr.Len()-int(fr.Offload.HdrLen):
			t.Fatalf("%d bytes of payload sent, of %d", sentPayload, fr.Len()-int(fr.Offload.HdrLen))
		case sentPayload == 0 && sentBytes != fr.Len():
			t.Fatalf("%d bytes sent, of %d", sentBytes, fr.Len())
		}
	})
}

// counter is an egress adapter that shows each frame to a function.
type counter struct {
	Adapter
	send func(f *Frame)
}

func (c *counter) Send(b *Batch) {
	if c.send == nil {
		return
	}
	for _, f := range b.Frames {
		c.send(f)
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

// benchmarkFinish measures finish on batches of one frame.
func benchmarkFinish(b *testing.B, s spec, caps Capabilities) {
	data, o, _, _, end := s.build()
	w := new(Worker)
	f := newFrame(data, o, end, rand.New(rand.NewPCG(1, 1)))
	f.Segs = append(f.Segs[:0], data[end:])
	if r := f.CheckOffload(); r != DropNone {
		b.Fatal(r)
	}
	batch := NewBatch(w)
	batch.Append(f)
	a := new(counter)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	run := func() {
		w.fin.finish(w, batch, caps, 1500, a)
		if batch.Status[0] != DropNone {
			b.Fatal(batch.Status[0])
		}
	}
	run()
	if n := testing.AllocsPerRun(10, run); n != 0 {
		b.Fatalf("%v allocations per frame", n)
	}
	for b.Loop() {
		run()
	}
}

func BenchmarkFinish(b *testing.B) {
	big := make([]byte, 65000)
	for _, c := range []struct {
		name string
		s    spec
		caps Capabilities
	}{
		{"cut64K/complete", spec{kind: GSOTCPv4, size: 1460, payload: big, csum: true}, 0},
		{"cut64K/partial", spec{kind: GSOTCPv4, size: 1460, payload: big, csum: true}, CapChecksum},
		{"cut64Kv6/complete", spec{kind: GSOTCPv6, size: 1440, payload: big, csum: true}, 0},
		{"cut64KUDP/complete", spec{kind: GSOUDPL4, size: 1472, payload: big, csum: true}, 0},
		{"complete1500", spec{kind: GSOTCPv4, payload: big[:1460], csum: true}, 0},
		{"pass1500", spec{kind: GSOTCPv4, payload: big[:1460]}, 0},
		{"pass64K", spec{kind: GSOTCPv4, size: 1460, payload: big, csum: true}, CapAll},
	} {
		b.Run(c.name, func(b *testing.B) { benchmarkFinish(b, c.s, c.caps) })
	}
}

func BenchmarkCheckOffload(b *testing.B) {
	for _, c := range []struct {
		name string
		s    spec
	}{
		{"none", spec{kind: GSOTCPv4, payload: make([]byte, 100)}},
		{"csum", spec{kind: GSOTCPv4, payload: make([]byte, 100), csum: true}},
		{"gso", spec{kind: GSOTCPv4, payload: make([]byte, 60000), size: 1460, csum: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			data, o, _, _, end := c.s.build()
			f := newFrame(data, o, end, rand.New(rand.NewPCG(1, 1)))
			f.Segs = append(f.Segs[:0], data[end:])
			b.ReportAllocs()
			for b.Loop() {
				f.Offload = o
				if f.CheckOffload() != DropNone {
					b.Fatal("refused")
				}
			}
		})
	}
}

// TestFinishAllocates nothing once its memory is there.
func TestFinishAllocates(t *testing.T) {
	w := new(Worker)
	rnd := rand.New(rand.NewPCG(1, 1))
	b := NewBatch(w)
	for _, s := range []spec{
		{kind: GSOTCPv4, size: 1400, payload: make([]byte, 64000), csum: true},
		{kind: GSOTCPv4, payload: make([]byte, 1000), csum: true},
		{kind: GSOUDPL4, v6: true, size: 1000, payload: make([]byte, 30000), csum: true},
		{kind: GSOTCPv6, payload: make([]byte, 100)},
	} {
		data, o, _, _, end := s.build()
		b.Append(newFrame(data, o, end, rnd))
	}
	a := new(counter)
	run := func() { w.fin.finish(w, b, 0, 1500, a) }
	for range 3 {
		run()
	}
	if n := testing.AllocsPerRun(50, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
