package ndiscore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

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
func checkSegment(b []byte, o Offload, l3, l4 int, udp bool) error {
	h, t := b[l3:], b[l4:]
	var src, dst []byte
	switch h[0] >> 4 {
	case 4:
		if n := int(binary.BigEndian.Uint16(h[2:])); n != len(h) {
			return fmt.Errorf("IPv4 total length %d, packet %d", n, len(h))
		}
		if s := naiveSum(h[:l4-l3], 0); s != 0xffff {
			return fmt.Errorf("IPv4 header sums to %#x", s)
		}
		src, dst = h[12:16], h[16:20]
	case 6:
		if n := int(binary.BigEndian.Uint16(h[4:])); n != len(h)-40 {
			return fmt.Errorf("IPv6 payload length %d, packet %d", n, len(h))
		}
		src, dst = h[8:24], h[24:40]
	}
	at, proto := 16, byte(protoTCP)
	if udp {
		at, proto = 6, protoUDP
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
	if udp && t[6]|t[7] == 0 {
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
		if err := checkSegment(s.bytes, s.offload, l3, l4, in.isUDP()); err != nil {
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
			b.Status[i] = DropFaultDrop // stale
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
				if err := checkSegment(out[0].bytes, out[0].offload, l3, l4, s.isUDP()); err != nil {
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

// zeroSum fills s with a payload of four bytes, or of two segments of that size,
// for which the transport checksum of each packet comes out as zero. All else
// in s must be zero.
func zeroSum(s spec) spec {
	one := s
	one.payload, one.size = make([]byte, 4), 0
	n := 1
	if s.size > 0 {
		n = 2
	}
	s.payload = nil
	for i := range n {
		one.seq = uint32(i * 4)
		b, _, _, l4, _ := one.build()
		c := ^naiveSum(b[l4:], 0) // the field holds the pseudo-header's sum
		s.payload = binary.BigEndian.AppendUint16(s.payload, c)
		s.payload = append(s.payload, 0, 0)
	}
	return s
}

// TestFinishUDPZero: a UDP checksum that comes out as zero is sent as 0xffff,
// when completed and when cut.
func TestFinishUDPZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{0, 4} {
			s := zeroSum(spec{kind: GSOUDPL4, v6: v6, size: size, csum: true})
			b, o, l3, l4, end := s.build()
			w := new(Worker)
			batch := NewBatch(w)
			batch.Append(newFrame(b, o, end, rand.New(rand.NewPCG(1, 1))))
			a := &recorder{fail: t.Fatalf}
			w.fin.finish(w, batch, 0, 1500, a)
			if len(a.sent) != 1+size/4 {
				t.Fatalf("%d packets", len(a.sent))
			}
			for _, out := range a.sent {
				if got := binary.BigEndian.Uint16(out.bytes[l4+6:]); got != 0xffff {
					t.Errorf("v6 %v, size %d: checksum %#x", v6, size, got)
				}
				if err := checkSegment(out.bytes, out.offload, l3, l4, s.isUDP()); err != nil {
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
			if checkSegment(out.bytes, out.offload, l3, l4, s.isUDP()) == nil {
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
