package bridge

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	tagLength = 4
	tagAt     = 12 // where a tag stands in a frame
	maxVLAN   = 4094
	vidMask   = 0x0fff
)

// VLANSet is a set of VLAN ids, 1…4094. The zero value is empty.
type VLANSet [64]uint64

// ParseVLANs reads a list such as "10", "20-29".
func ParseVLANs(list []string) (VLANSet, error) {
	var s VLANSet
	for _, e := range list {
		from, to, isRange := strings.Cut(e, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || a < 1 || b > maxVLAN || a > b {
			return VLANSet{}, fmt.Errorf("VLANs %q: want one such as \"10\", or a range such as \"20-29\", within 1…%d", e, maxVLAN)
		}
		for v := a; v <= b; v++ {
			s.add(uint16(v))
		}
	}
	return s, nil
}

func (s *VLANSet) add(vlan uint16) { s[vlan>>6&63] |= 1 << (vlan & 63) }

// Has reports whether vlan is in s.
func (s *VLANSet) Has(vlan uint16) bool { return s[vlan>>6&63]>>(vlan&63)&1 != 0 }

// Empty reports whether nothing is in s.
func (s *VLANSet) Empty() bool { return *s == VLANSet{} }

// each calls f for every id of s, in order.
func (s *VLANSet) each(f func(vlan uint16)) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			f(uint16(i*64 + bits.TrailingZeros64(w)))
		}
	}
}

// after returns the first id of s behind vlan, from the beginning again behind
// the last; 0 if s is empty.
func (s *VLANSet) after(vlan uint16) (next uint16) {
	s.each(func(v uint16) {
		if next == 0 || next <= vlan && v > vlan {
			next = v
		}
	})
	return next
}

// List is s as ParseVLANs reads it.
func (s *VLANSet) List() []string {
	var list []string
	first, last := uint16(0), uint16(0)
	flush := func() {
		switch {
		case first == 0:
		case first == last:
			list = append(list, fmt.Sprint(first))
		default:
			list = append(list, fmt.Sprintf("%d-%d", first, last))
		}
	}
	s.each(func(v uint16) {
		if first != 0 && v == last+1 {
			last = v
			return
		}
		flush()
		first, last = v, v
	})
	flush()
	return list
}

// tagging is how a frame came in.
type tagging uint8

const (
	untagged tagging = iota
	tagged           // with its VLAN
	priority         // with VLAN 0: a priority, no VLAN
)

// classify finds the VLAN of a frame that came in by a port with rules r (IEEE
// 802.1Q 6.9): the outer tag decides; without one, or with VLAN 0, the port does.
func (r *rules) classify(h []byte) (vlan uint16, how tagging, drop ndiscore.DropReason) {
	if !isTag(binary.BigEndian.Uint16(h[tagAt:])) {
		if r.untagged == 0 {
			return 0, untagged, ndiscore.DropVLAN
		}
		return r.untagged, untagged, ndiscore.DropNone
	}
	if len(h) < ndiscore.EthernetHeader+tagLength {
		return 0, tagged, ndiscore.DropShort
	}
	vlan = binary.BigEndian.Uint16(h[tagAt+2:]) & vidMask
	if vlan != 0 {
		if !r.tagged.Has(vlan) {
			return 0, tagged, ndiscore.DropVLAN
		}
		return vlan, tagged, ndiscore.DropNone
	}
	// Behind a priority tag another one would become the outer tag wherever
	// the frame leaves untagged: a way into any VLAN.
	if r.untagged == 0 || isTag(binary.BigEndian.Uint16(h[tagAt+tagLength:])) {
		return 0, priority, ndiscore.DropVLAN
	}
	return r.untagged, priority, ndiscore.DropNone
}

func isTag(etherType uint16) bool {
	return etherType == ndiscore.EtherTypeVLAN || etherType == ndiscore.EtherTypeQinQ
}

// member reports whether frames of vlan leave by a port with rules r.
func (r *rules) member(vlan uint16) bool { return vlan == r.untagged || r.tagged.Has(vlan) }

// formHead is how much of a frame is copied into the head of its other form:
// all headers, and most frames whole. The rest stays where it is.
const formHead = 448

// forms are the other forms of the frames of one batch: with a tag, and without.
// They are made when first asked for, once for all ports, and are good until the
// worker leaves the bridge.
type forms struct {
	frames  [ndiscore.BatchFrames]ndiscore.Frame
	made    [ndiscore.BatchFrames]bool
	buffers [ndiscore.BatchFrames][ndiscore.Headroom + formHead + tagLength]byte
}

// dress returns f, the i-th frame of the batch, which is in vlan and came in
// as how says, in the form in which it leaves by a port with rules r; nil if it
// does not leave there.
func (s *scratch) dress(r *rules, f *ndiscore.Frame, i int, vlan uint16, how tagging) *ndiscore.Frame {
	switch {
	case vlan == r.untagged:
		if how == tagged && isTag(binary.BigEndian.Uint16(f.Head[tagAt+tagLength:])) && !r.tagged.Empty() {
			return nil // the next switch would take the tag behind for the frame's VLAN
		}
		return s.strip(f, i, how)
	case !r.tagged.Has(vlan):
		return nil
	case how == tagged:
		return f
	}
	t := s.form(&s.withTag, i)
	if t.made[i] {
		return &t.frames[i]
	}
	skip, tci := 0, vlan
	if how == priority {
		skip = tagLength
		tci |= binary.BigEndian.Uint16(f.Head[tagAt+2:]) &^ vidMask // priority and drop eligibility
	}
	g := t.copy(f, i, skip, tagLength)
	binary.BigEndian.PutUint16(g.Head[tagAt:], ndiscore.EtherTypeVLAN)
	if how == priority {
		copy(g.Head[tagAt:tagAt+2], f.Head[tagAt:])
	}
	binary.BigEndian.PutUint16(g.Head[tagAt+2:], tci)
	return g
}

// strip returns f without its outer tag.
func (s *scratch) strip(f *ndiscore.Frame, i int, how tagging) *ndiscore.Frame {
	if how == untagged {
		return f
	}
	t := s.form(&s.noTag, i)
	if t.made[i] {
		return &t.frames[i]
	}
	return t.copy(f, i, tagLength, 0)
}

func (s *scratch) form(t **forms, i int) *forms {
	if *t == nil {
		*t = new(forms)
	}
	s.formed = max(s.formed, i+1)
	return *t
}

// unmake forgets the forms of a batch that is done, and what they borrowed.
func (s *scratch) unmake() {
	for _, t := range [...]*forms{s.withTag, s.noTag} {
		if t == nil {
			continue
		}
		for i := range s.formed {
			if t.made[i] {
				t.made[i] = false
				clear(t.frames[i].Segs)
			}
		}
	}
	s.formed = 0
}

// copy makes frame i a copy of f in which room bytes stand for the skip bytes
// behind the addresses. f belongs to others too: its head is copied, as far as
// headers reach, and the rest borrowed.
func (t *forms) copy(f *ndiscore.Frame, i, skip, room int) *ndiscore.Frame {
	g := &t.frames[i]
	h := f.Head
	n := min(len(h), formHead)
	g.Reset(t.buffers[i][:], ndiscore.Headroom, n-skip+room)
	copy(g.Head, h[:tagAt])
	copy(g.Head[tagAt+room:], h[tagAt+skip:n])
	if n < len(h) {
		g.Segs = append(g.Segs, h[n:])
	}
	g.Segs = append(g.Segs, f.Segs...)
	g.Offload = f.Offload
	o := &g.Offload
	if o.Flags&ndiscore.NeedsCsum != 0 {
		o.CsumStart = moved(o.CsumStart, room-skip)
	}
	if o.HdrLen != 0 {
		o.HdrLen = moved(o.HdrLen, room-skip)
	}
	t.made[i] = true
	return g
}

// moved shifts an offset that points behind the addresses; one that does not is
// a lie, which stays one.
func moved(at uint16, by int) uint16 {
	if int(at) < tagAt {
		return at
	}
	return uint16(max(int(at)+by, 0))
}

// pushTag puts a tag in front of f, a frame of the bridge's own, which has
// headroom.
func pushTag(f *ndiscore.Frame, vlan uint16) {
	if !f.Retreat(tagLength) {
		return // never: who makes a frame here leaves headroom
	}
	copy(f.Head, f.Head[tagLength:tagLength+tagAt])
	binary.BigEndian.PutUint16(f.Head[tagAt:], ndiscore.EtherTypeVLAN)
	binary.BigEndian.PutUint16(f.Head[tagAt+2:], vlan)
}
