package ndiscore

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

const (
	// completeHead is how much of a frame is copied when only its checksum is
	// missing: all of the headers in practice, so that a filter on the way out
	// still finds them in Head, and all of a small frame.
	completeHead = 192
	// behindCsum is what is copied behind a checksum field that stands deeper
	// than that: the rest of the longest TCP header.
	behindCsum = 60 - tcpCsumOffset
	// finishArena is where the copied heads of one outgoing batch live, at
	// first; a frame with a longer head makes it grow.
	finishArena = BatchFrames * 256
)

// finisher does for an egress adapter what it cannot do itself: it completes
// checksums and cuts super-frames. There is no other place that does. It
// belongs to one Worker; its scratch memory is made at the first frame that
// needs it and kept. The zero value is ready.
type finisher struct {
	levels []*finishLevel
	depth  int // of nested finishes: a bundle's or bridge's Send sends again
}

// finishLevel is one finish in progress.
type finishLevel struct {
	adapter  Adapter
	in, out  *Batch
	owner    [BatchFrames]uint8 // which frame of in a frame of out comes from
	frames   [BatchFrames]Frame // those of out that are ours
	made     int                // how many of them are in use
	arena    []byte             // their heads, each behind its headroom
	used     int
	segments uint64
}

// finish sends the frames of b through a, which is known by its capabilities
// and MTU: as they are where a accepts them, completed and cut where not, in
// order. b.Status tells what became of each: zero when all parts of it were
// sent, else the first refusal. The result counts the frames that were made
// beyond those of b.
//
// The frames of b stay as they are. What is made refers to their payload and
// lives in borrowed batches only.
func (fin *finisher) finish(w *Worker, b *Batch, caps Capabilities, mtu int, a Adapter) (segments uint64) {
	if fin.depth == len(fin.levels) {
		fin.levels = append(fin.levels, &finishLevel{arena: make([]byte, finishArena)})
	}
	l := fin.levels[fin.depth]
	fin.depth++
	l.adapter, l.in, l.out, l.segments = a, b, w.Scratch(), 0

	clear(b.Status[:len(b.Frames)])
	for i, f := range b.Frames {
		switch {
		case accepts(f, caps, mtu):
			l.append(i, f)
		case f.Offload.GSO != GSONone:
			l.cut(i, f, caps, mtu)
		case !fits(f, mtu):
			l.refuse(i, DropTooBig)
		default:
			l.complete(i, f)
		}
	}
	l.flush()

	w.Done(l.out)
	l.adapter, l.in, l.out = nil, nil, nil
	fin.depth--
	return l.segments
}

// refuse records why a part of frame i was not sent, if it is the first.
func (l *finishLevel) refuse(i int, r DropReason) {
	if l.in.Status[i] == DropNone {
		l.in.Status[i] = r
	}
}

// append adds f, made from frame i, to the outgoing batch.
func (l *finishLevel) append(i int, f *Frame) {
	if l.out.Full() {
		l.flush()
	}
	l.owner[len(l.out.Frames)] = uint8(i)
	l.out.Append(f)
}

// flush sends what has gathered and takes its memory back.
func (l *finishLevel) flush() {
	n := len(l.out.Frames)
	if n == 0 {
		return
	}
	clear(l.out.Status[:n])
	l.adapter.Send(l.out)
	for j, r := range l.out.Status[:n] {
		if r != DropNone {
			l.refuse(int(l.owner[j]), r)
		}
	}
	l.out.Reset()
	for k := range l.frames[:l.made] {
		// Borrowed payload may be unmapped after its frame is gone; no pointer
		// to it may stay where the garbage collector looks.
		clear(l.frames[k].Segs)
	}
	l.made, l.used = 0, 0
}

// private adds a frame of ours, made from frame i, whose Head are n bytes
// still to be written, and makes room for it first.
func (l *finishLevel) private(i, n int) *Frame {
	need := Headroom + n
	if l.out.Full() || l.used+need > len(l.arena) {
		l.flush()
	}
	if need > len(l.arena) {
		l.arena = make([]byte, need) // an offset is 16 bits: 128 KiB at most
	}
	f := &l.frames[l.made]
	l.made++
	f.Reset(l.arena[l.used:l.used+need], Headroom, n)
	l.used += need
	l.append(i, f)
	return f
}

// complete sends frame i with the checksum that it lacks.
func (l *finishLevel) complete(i int, f *Frame) {
	start, at := int(f.Offload.CsumStart), f.csumAt()
	if f.Offload.Flags&NeedsCsum == 0 || at+2 > len(f.Head) {
		l.refuse(i, DropBadOffload)
		return
	}
	sctp := f.Offload.CsumOffset == sctpCsumOffset && isSCTP(f.Head, start)
	if sctp && at+4 > len(f.Head) {
		l.refuse(i, DropBadOffload)
		return
	}
	n := min(len(f.Head), max(completeHead, at+behindCsum))
	s := l.private(i, n)
	copy(s.Head, f.Head)
	if n < len(f.Head) {
		s.Segs = append(s.Segs, f.Head[n:])
	}
	s.Segs = append(s.Segs, f.Segs...)
	if sctp {
		// The one protocol whose partial checksum is not the Internet's. Linux
		// hands SCTP to a socket with the same flag and nothing that tells it
		// apart, so it is finished here, always: no device behind a
		// virtio_net_hdr would do it right.
		finishSCTP(s, start, at)
		return
	}
	sum := ^sumPieces(0, s.Head[start:], s.Segs, math.MaxInt)
	if sum == 0 {
		sum = mangledZero // as Linux does, for every protocol; 0 and 0xffff verify alike
	}
	binary.BigEndian.PutUint16(s.Head[at:], sum)
}

// isSCTP reports whether head is an IP packet with an SCTP header at start.
func isSCTP(head []byte, start int) bool {
	l2, r := ParseL2(head)
	if r != DropNone || l2.EtherType != EtherTypeIPv4 && l2.EtherType != EtherTypeIPv6 {
		return false
	}
	p, ok := parseIP(head, int(l2.Offset))
	return ok && p.proto == protoSCTP && p.l4 == start
}

// finishSCTP writes the CRC-32C of everything from start on, as if the field
// were zero (RFC 9260 6.8).
func finishSCTP(s *Frame, start, at int) {
	binary.LittleEndian.PutUint32(s.Head[at:], 0)
	table := crc32.MakeTable(crc32.Castagnoli) // shared, made once
	c := crc32.Update(0, table, s.Head[start:])
	for _, p := range s.Segs {
		c = crc32.Update(c, table, p)
	}
	binary.LittleEndian.PutUint32(s.Head[at:], c)
}

// cut sends super-frame i in segments of GSOSize payload bytes.
//
// Checksums are carried over, never made anew: the sums that the source wrote
// are changed by what differs between super-frame and segment (RFC 1624), so
// a header that was wrong on arrival stays wrong and its receiver sees it.
func (l *finishLevel) cut(i int, f *Frame, caps Capabilities, mtu int) {
	lay, ok := parseSuper(f)
	size := int(f.Offload.GSOSize)
	if !ok || size == 0 || !lay.exact(f) || lay.payload > maxSegments*size ||
		f.Offload.Flags&NeedsCsum == 0 || int(f.Offload.CsumStart) != lay.l4 || int(f.Offload.CsumOffset) != lay.csum {
		l.refuse(i, DropBadOffload) // CheckOffload would have found it: somebody has moved the headers since
		return
	}
	if lay.end-lay.l3+min(size, lay.payload) > mtu {
		l.refuse(i, DropTooBig)
		return
	}
	c := cutter{
		lay:     lay,
		head:    f.Head[:lay.end],
		cur:     f.Head[lay.end:],
		rest:    f.Segs,
		partial: caps&CapChecksum != 0,
	}
	c.begin()
	for off := 0; ; {
		n := min(size, lay.payload-off)
		s := l.private(i, lay.end)
		c.segment(s, off, n, off+n == lay.payload)
		off += n
		if off >= lay.payload {
			return
		}
		l.segments++
	}
}

// cutter makes the segments of one super-frame, in order.
type cutter struct {
	lay     superLayout
	head    []byte   // the super-frame's headers
	cur     []byte   // payload not yet given out: cur, then rest
	rest    [][]byte //
	partial bool     // leave the transport checksum to the adapter

	csum   uint16 // the pseudo-header's sum without the length
	ipCsum uint16 // IPv4: the header's sum without total length and identification
	id     uint16 // IPv4: the next identification
}

func (c *cutter) begin() {
	t := c.head[c.lay.l4:]
	length := c.lay.end - c.lay.l4 + c.lay.payload // under 64 KiB: exact compared it with a 16-bit field
	c.csum = addSums(binary.BigEndian.Uint16(t[c.lay.csum:]), ^uint16(length))
	if !c.lay.v6 {
		h := c.head[c.lay.l3:]
		c.id = binary.BigEndian.Uint16(h[ipv4ID:])
		c.ipCsum = addSums(^binary.BigEndian.Uint16(h[ipv4CsumOffset:]), ^uint16(c.lay.length))
		c.ipCsum = addSums(c.ipCsum, ^c.id)
	}
}

// segment makes s, whose Head has the room, the segment of n payload bytes
// that begins off bytes into the payload.
func (c *cutter) segment(s *Frame, off, n int, last bool) {
	copy(s.Head, c.head)
	c.take(s, n)

	length := c.lay.end - c.lay.l3 + n
	h := s.Head[c.lay.l3:]
	if c.lay.v6 {
		binary.BigEndian.PutUint16(h[ipv6PayloadLen:], uint16(length-ipv6Header))
	} else {
		// One identification for each packet, counting up, as Linux and the
		// network cards do it.
		binary.BigEndian.PutUint16(h[ipv4TotalLength:], uint16(length))
		binary.BigEndian.PutUint16(h[ipv4ID:], c.id)
		sum := addSums(addSums(c.ipCsum, uint16(length)), c.id)
		binary.BigEndian.PutUint16(h[ipv4CsumOffset:], ^sum)
		c.id++
	}

	t := s.Head[c.lay.l4:]
	length = len(t) + n
	if c.lay.proto == protoTCP {
		seq := binary.BigEndian.Uint32(t[tcpSeq:])
		binary.BigEndian.PutUint32(t[tcpSeq:], seq+uint32(off))
		if !last {
			t[tcpFlags] &^= tcpFIN | tcpPSH
		}
		if off > 0 {
			t[tcpFlags] &^= tcpCWR // RFC 3168 6.1.2: once per reduction
		}
	} else {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(length))
	}

	sum := addSums(c.csum, uint16(length))
	binary.BigEndian.PutUint16(t[c.lay.csum:], sum)
	if c.partial {
		s.Offload = Offload{Flags: NeedsCsum, CsumStart: uint16(c.lay.l4), CsumOffset: uint16(c.lay.csum)}
		return
	}
	sum = ^sumPieces(0, t, s.Segs, math.MaxInt)
	if sum == 0 && c.lay.proto == protoUDP {
		sum = mangledZero
	}
	binary.BigEndian.PutUint16(t[c.lay.csum:], sum)
}

// take gives the next n payload bytes to s, as references.
func (c *cutter) take(s *Frame, n int) {
	for n > 0 {
		for len(c.cur) == 0 {
			c.cur, c.rest = c.rest[0], c.rest[1:]
		}
		m := min(n, len(c.cur))
		s.Segs = append(s.Segs, c.cur[:m:m])
		c.cur = c.cur[m:]
		n -= m
	}
}
