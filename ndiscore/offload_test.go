package ndiscore

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

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
