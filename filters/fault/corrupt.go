package fault

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// corrupt flips bits. It writes into the head of the frame itself, and takes
// that back when the frame has been passed on: nobody else looks at it
// meanwhile, and who sends it next must find it as it was. Payload is never
// written to; the frame gets a copy of it for the time.
type corrupt struct {
	effect
	pick  [2]*picker
	place [2]*placer
	bits  int
	whole bool // any bit, not only those behind the link header
}

// placer says which bit is hit. It has a source of its own, so that which frames
// are hit does not depend on how they come in batches.
type placer struct {
	mu  sync.Mutex // guards rnd; a leaf
	rnd *rand.Rand
}

func (p *placer) below(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rnd.IntN(n)
}

func newCorrupt(v values, dirs Direction, seed uint64) *corrupt {
	c := &corrupt{effect: effect{dirs: dirs}, bits: int(v.num("bits")), whole: v.num("where") == 1}
	for _, dir := range []Direction{RX, TX} {
		c.pick[index(dir)] = newPicker(v, seed, dir)
		c.place[index(dir)] = &placer{rnd: source(^seed, dir)}
	}
	return c
}

func (c *corrupt) pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch) {
	hit := c.pick[index(dir)].pick(len(b.Frames))
	if hit == 0 {
		f.pass(dir, rest, b)
		return
	}
	c.count(dir, b, hit)
	s := f.take(b.Worker)
	start := 0
	for m := hit; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		f.some(dir, rest, b, start, i)
		start = i + 1
		if r := c.one(f, dir, rest, b, i, s); r != ndiscore.DropNone {
			b.Status[i] = ndiscore.DropNone
			f.drop(dir, b, 1<<i, r)
		}
	}
	f.some(dir, rest, b, start, len(b.Frames))
	f.give(b.Worker, s)
}

// one spoils frame i of b and passes it on, or says why that cannot be done.
func (c *corrupt) one(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch, i int, s *space) ndiscore.DropReason {
	x := b.Frames[i]
	if x.Offload.GSO != ndiscore.GSONone {
		super, ok := parseSuper(x)
		if !ok {
			return ndiscore.DropFaultCorrupt
		}
		if super.last > 0 {
			return c.super(f, dir, rest, b, i, s, super)
		}
	}
	segs, offload := x.Segs, x.Offload
	defer func() { x.Segs, x.Offload = segs, offload }()
	if offload.Flags&ndiscore.NeedsCsum != 0 {
		at, ok := sumAt(x)
		if !ok {
			return ndiscore.DropFaultCorrupt
		}
		old := [2]byte(x.Head[at:])
		defer func() { copy(x.Head[at:], old[:]) }()
		complete(x, int(offload.CsumStart), at)
	}
	x.Offload = ndiscore.Offload{} // nothing is left to do, and nothing is known to be good
	if len(segs) > 0 {
		src := pieces{nil, segs}
		payload := s.bytes(x.Len() - len(x.Head))
		src.read(payload)
		s.segs[0] = payload
		x.Segs = s.segs[:]
	}
	from, n := c.spot(dir, x)
	flip(x, from, n)
	defer flip(x, from, n) // once more is undone
	if r := c.refused(dir, x); r != ndiscore.DropNone {
		return r
	}
	f.some(dir, rest, b, i, i+1)
	return ndiscore.DropNone
}

// super spoils a super-frame of several segments: the last is cut off, made a
// packet with its sum complete, and spoilt; the others go before it.
func (c *corrupt) super(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch, i int, s *space, p superFrame) ndiscore.DropReason {
	x := b.Frames[i]
	n := x.Len() - p.end - p.last // payload of the last segment
	room := s.bytes(ndiscore.Headroom + p.end + n)
	last := room[ndiscore.Headroom:]
	copy(last, x.Head[:p.end])
	src := pieces{x.Head, x.Segs}
	src.skip(p.end + p.last)
	src.read(last[p.end:])
	s.frame.Reset(room, ndiscore.Headroom, len(last))

	head, segs, offload := x.Head, x.Segs, x.Offload
	s.save = append(s.save[:0], head[:p.end]...)
	cut := truncate(x, p.end+p.last)
	p.shrink(x.Head, p.last)
	if p.proto == protoTCP {
		x.Head[p.l4+tcpFlags] &^= tcpFIN | tcpPSH
	}
	if p.last <= int(offload.GSOSize) {
		x.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: offload.CsumStart, CsumOffset: offload.CsumOffset}
	}
	f.some(dir, rest, b, i, i+1)
	x.Head, x.Segs, x.Offload = head, segs, offload
	if cut.seg != nil {
		x.Segs[cut.index] = cut.seg
	}
	copy(x.Head, s.save)

	p.shrink(last, n)
	if !p.v6 {
		id := last[p.l3+ipv4ID:]
		replace(last[p.l3+ipv4Sum:], id, binary.BigEndian.Uint16(id)+uint16(p.last/int(offload.GSOSize)))
	}
	if p.proto == protoTCP {
		seq := last[p.l4+tcpSeq:]
		binary.BigEndian.PutUint32(seq, binary.BigEndian.Uint32(seq)+uint32(p.last))
		last[p.l4+tcpFlags] &^= tcpCWR
	}
	complete(&s.frame, p.l4, p.l4+p.sum)
	from, bits := c.spot(dir, &s.frame)
	flip(&s.frame, from, bits)
	if c.refused(dir, &s.frame) == ndiscore.DropNone {
		f.one(dir, rest, b.Worker, &s.frame)
	}
	return ndiscore.DropNone
}

// refused: a frame whose link header has become nonsense comes no further than
// the core would have let it.
func (c *corrupt) refused(dir Direction, x *ndiscore.Frame) ndiscore.DropReason {
	if !c.whole || dir == TX {
		return ndiscore.DropNone
	}
	_, r := ndiscore.ParseL2(x.Head)
	return r
}

// spot chooses which bits of x are flipped: n of them from bit from on.
func (c *corrupt) spot(dir Direction, x *ndiscore.Frame) (from, n int) {
	first, end := 0, x.Len()
	if l2, r := ndiscore.ParseL2(x.Head); !c.whole && r == ndiscore.DropNone && int(l2.Offset) < end {
		first = int(l2.Offset)
	}
	n = min(c.bits, 8*(end-first))
	return 8*first + c.place[index(dir)].below(8*(end-first)-n+1), n
}

// flip inverts n bits of x from bit from on. x has one piece of payload at most.
func flip(x *ndiscore.Frame, from, n int) {
	for bit := from; bit < from+n; bit++ {
		at, mask := bit/8, byte(0x80)>>(bit%8)
		if at < len(x.Head) {
			x.Head[at] ^= mask
		} else {
			x.Segs[0][at-len(x.Head)] ^= mask
		}
	}
}

// --- Checksums ------------------------------------------------------------------------

// sctpOffset is where SCTP has its checksum, which is not the Internet's.
const sctpOffset = 8

// sumAt is where the sum of x is to be completed.
func sumAt(x *ndiscore.Frame) (at int, ok bool) {
	at = int(x.Offload.CsumStart) + int(x.Offload.CsumOffset)
	return at, at+2 <= len(x.Head) && x.Offload.CsumOffset != sctpOffset
}

// complete writes the sum of x from start on to at, where the pseudo-header's is.
func complete(x *ndiscore.Frame, start, at int) {
	sum, odd := ndiscore.Checksum(x.Head[start:], 0), (len(x.Head)-start)&1 != 0
	for _, s := range x.Segs {
		q := ndiscore.Checksum(s, 0)
		if odd {
			q = bits.ReverseBytes16(q) // its bytes stand in the other halves of the words
		}
		sum = add(sum, q)
		odd = odd != (len(s)&1 != 0)
	}
	if sum = ^sum; sum == 0 {
		sum = 0xffff // both mean the same, and to UDP 0 means none
	}
	binary.BigEndian.PutUint16(x.Head[at:], sum)
}

// add adds two ones'-complement sums.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// replace writes the 16-bit field anew and carries the change over to the
// checksum that covers it (RFC 1624).
func replace(sum, field []byte, to uint16) {
	s := add(add(^binary.BigEndian.Uint16(sum), ^binary.BigEndian.Uint16(field)), to)
	binary.BigEndian.PutUint16(sum, ^s)
	binary.BigEndian.PutUint16(field, to)
}

// --- Super-frames ---------------------------------------------------------------------

const (
	protoTCP = 6

	ipv4Header = 20
	ipv4Length = 2
	ipv4ID     = 4
	ipv4Sum    = 10
	ipv6Header = 40
	ipv6Length = 4
	tcpHeader  = 20
	tcpSeq     = 4
	tcpOffset  = 12
	tcpFlags   = 13
	udpHeader  = 8
	udpLength  = 4

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// superFrame is where things stand in a frame of a GSO kind.
type superFrame struct {
	l3, l4, end int // the IP header, the transport header, the payload
	sum         int // behind l4: the checksum
	proto       int
	v6          bool
	last        int // behind end: the last segment
}

// parseSuper finds the layers of a super-frame; false when its offload is not
// true of it.
func parseSuper(x *ndiscore.Frame) (p superFrame, ok bool) {
	o := &x.Offload
	l2, r := ndiscore.ParseL2(x.Head)
	if r != ndiscore.DropNone || o.Flags&ndiscore.NeedsCsum == 0 || o.GSOSize == 0 {
		return p, false
	}
	p.l3, p.l4, p.sum = int(l2.Offset), int(o.CsumStart), int(o.CsumOffset)
	p.v6 = l2.EtherType == ndiscore.EtherTypeIPv6
	ip := ipv4Header
	if p.v6 {
		ip = ipv6Header
	}
	if p.l4 < p.l3+ip || p.l4+udpHeader > len(x.Head) {
		return p, false
	}
	p.end = p.l4 + udpHeader
	if o.GSO != ndiscore.GSOUDPL4 {
		p.proto = protoTCP
		if p.l4+tcpHeader > len(x.Head) {
			return p, false
		}
		p.end = p.l4 + int(x.Head[p.l4+tcpOffset]>>4)*4
		if p.end < p.l4+tcpHeader {
			return p, false
		}
	}
	payload := x.Len() - p.end
	if p.end > len(x.Head) || payload <= 0 || p.l4+p.sum+2 > p.end {
		return p, false
	}
	p.last = (payload - 1) / int(o.GSOSize) * int(o.GSOSize)
	return p, true
}

// shrink writes the lengths of a packet of n payload bytes into the headers of
// the super-frame, and carries the change over to their sums.
func (p *superFrame) shrink(head []byte, n int) {
	n += p.end
	var old, new uint16 // IP length
	if p.v6 {
		field := head[p.l3+ipv6Length:]
		old, new = binary.BigEndian.Uint16(field), uint16(n-p.l3-ipv6Header)
		binary.BigEndian.PutUint16(field, new)
	} else {
		field := head[p.l3+ipv4Length:]
		old, new = binary.BigEndian.Uint16(field), uint16(n-p.l3)
		replace(head[p.l3+ipv4Sum:], field, new)
	}
	if p.proto != protoTCP {
		binary.BigEndian.PutUint16(head[p.l4+udpLength:], uint16(n-p.l4))
	}
	// The pseudo-header holds the transport's length, which changes by as much.
	sum := head[p.l4+p.sum:]
	binary.BigEndian.PutUint16(sum, add(add(binary.BigEndian.Uint16(sum), ^old), new))
}

// cutSeg is what truncate changed.
type cutSeg struct {
	index int
	seg   []byte // nil: none
}

// truncate shortens x to n bytes.
func truncate(x *ndiscore.Frame, n int) (cut cutSeg) {
	if n <= len(x.Head) {
		x.Head, x.Segs = x.Head[:n], nil
		return cut
	}
	n -= len(x.Head)
	for i, s := range x.Segs {
		if n <= len(s) {
			cut = cutSeg{i, s}
			x.Segs[i], x.Segs = s[:n:n], x.Segs[:i+1]
			return cut
		}
		n -= len(s)
	}
	return cut
}

// skip passes over n bytes.
func (p *pieces) skip(n int) {
	for n > len(p.cur) {
		n -= len(p.cur)
		p.cur, p.rest = p.rest[0], p.rest[1:]
	}
	p.cur = p.cur[n:]
}
