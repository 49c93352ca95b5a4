package ndiscore

import (
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"sync/atomic"
	"time"
)

// Balance says who sends in a bundle.
type Balance uint8

const (
	// BalanceActiveBackup: the active member alone, or an ndis5 bundle's primary.
	BalanceActiveBackup Balance = iota
	// BalanceHash: each healthy member carries its share of the flows. A flow is
	// a pair of stations: MAC and IP addresses, and ports if there are any, with
	// VLAN and protocol, whatever the direction. When a member is lost only its
	// flows move.
	//
	// What comes in is taken from every healthy member. At the far end there may
	// be one switch that knows nothing of the bundle: it floods a copy of each
	// group frame to every member, so one member alone sends and takes those, the
	// first that is healthy; and it sends our own frames to unknown stations back
	// to us, which are dropped (DropReflection). Replies arrive where the station
	// here sent last; the switch has to put up with its address moving from port
	// to port. Or there is a static link aggregate (BundleSpec.LAG), which sends
	// each frame to one member only, any of them, and none back.
	BalanceHash
)

// String is the balance as the configuration names it.
func (b Balance) String() string {
	if b == BalanceHash {
		return "hash"
	}
	return "active-backup"
}

// MarshalText makes a Balance print as its name in JSON.
func (b Balance) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// maxMembers is the most members of a bundle: what is decided for each frame
// looks at all of them.
const maxMembers = 32

// The other protocols whose header begins with two ports (IANA protocol numbers).
const (
	protoDCCP    = 33
	protoUDPLite = 136
)

// blend hashes two words into one: the halves of their 128-bit product.
func blend(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xd1b54a32d192ed03) // of the golden ratio; Steele and Vigna's mixer for 64 bits
	return hi ^ lo
}

// flowHash is equal for the frames of one flow, both ways. The fragments of a
// datagram have no ports, so they count among the flow of their two hosts. Of a
// frame whose headers make no sense it is the hash of what does.
func flowHash(head []byte) uint64 {
	l2, r := ParseL2(head)
	if r != DropNone {
		return 0
	}
	dst, src := MACKey(head), MACKey(head[6:])
	sort := uint64(l2.VLAN)<<16 | uint64(l2.EtherType)
	if l2.EtherType != EtherTypeIPv4 && l2.EtherType != EtherTypeIPv6 {
		return blend(blend(src, sort)+blend(dst, sort), sort)
	}
	l3 := int(l2.Offset)
	ip, ok := parseIP(head, l3)
	if !ok || ip.v6 != (l2.EtherType == EtherTypeIPv6) {
		return blend(blend(src, sort)+blend(dst, sort), sort)
	}
	if !ip.fragment && len(head) >= ip.l4+4 {
		switch ip.proto {
		case protoTCP, protoUDP, protoUDPLite, protoSCTP, protoDCCP:
			// A MAC address leaves just the room for a port.
			src |= uint64(binary.BigEndian.Uint16(head[ip.l4:])) << 48
			dst |= uint64(binary.BigEndian.Uint16(head[ip.l4+2:])) << 48
		}
	}
	from, to := ip.addresses(head, l3)
	if ip.v6 {
		src = blend(blend(src, binary.BigEndian.Uint64(from)), binary.BigEndian.Uint64(from[8:]))
		dst = blend(blend(dst, binary.BigEndian.Uint64(to)), binary.BigEndian.Uint64(to[8:]))
	} else {
		src = blend(src, uint64(binary.BigEndian.Uint32(from)))
		dst = blend(dst, uint64(binary.BigEndian.Uint32(to)))
	}
	if !ip.fragment { // of a fragment the protocol may stand in another one (RFC 8200 4.5)
		sort |= uint64(ip.proto) << 32
	}
	return blend(src+dst, sort)
}

// laneSeed is what a member's share of the flows depends on: its name, so that
// it has the same share in every set of members.
func laneSeed(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}

// pickLane is the lane with the highest score for a flow (rendezvous hashing):
// without it each other flow keeps its own.
func pickLane(flow uint64, seeds []uint64) int {
	best, top := 0, uint64(0)
	for i, s := range seeds {
		if score := blend(flow, s); score >= top {
			best, top = i, score
		}
	}
	return best
}

// spread sends the frames of b over lanes by their flows: lane by lane, in the
// order in which they stand in b, in batches that are lent. group is the lane of
// frames to groups, or -1 if they are spread like any other. b.Status is filled.
func spread(b *Batch, seeds []uint64, group int, send func(lane int, lent *Batch)) {
	var lanes [BatchFrames]uint8
	one := true
	for i, f := range b.Frames {
		switch {
		case len(seeds) == 1 || len(f.Head) < EthernetHeader: // what protocols send has been checked by nobody
			lanes[i] = 0
		case group >= 0 && f.Head[0]&1 != 0:
			lanes[i] = uint8(group)
		default:
			lanes[i] = uint8(pickLane(flowHash(f.Head), seeds))
		}
		one = one && lanes[i] == lanes[0]
	}
	if one && b.Borrowed {
		send(int(lanes[0]), b)
		return
	}
	for l := range seeds {
		lent := b.Worker.Scratch()
		for i, f := range b.Frames {
			if int(lanes[i]) == l {
				lent.Status[len(lent.Frames)] = DropNone
				lent.Append(f)
			}
		}
		if len(lent.Frames) > 0 {
			send(l, lent)
			n := 0 // a filter may have taken frames out: those count as sent
			for i, f := range b.Frames {
				if int(lanes[i]) != l {
					continue
				}
				b.Status[i] = DropNone
				if n < len(lent.Frames) && lent.Frames[n] == f {
					b.Status[i] = lent.Status[n]
					n++
				}
			}
		}
		b.Worker.Done(lent)
	}
}

// sources remembers, for a moment, whose frames have left by a bundle: what the
// network floods back is not news. A station that moves to the other side is
// forgotten after at most two turns.
type sources struct {
	turn  *atomic.Uint64 // Core.turn
	cells [1024]atomic.Uint64
}

// turnLength is how long one turn of Core.turn takes: far longer than a frame is
// under way to the next switch and back.
const turnLength = 250 * time.Millisecond

const macBits = 48

func (s *sources) remember(frames []*Frame) {
	turn := s.turn.Load() << macBits
	for _, f := range frames {
		if len(f.Head) < EthernetHeader {
			continue
		}
		k := MACKey(f.Head[6:])
		if e, v := s.cell(k), k|turn; e.Load() != v {
			e.Store(v)
		}
	}
}

// knows reports whether the source of f is behind us.
func (s *sources) knows(f *Frame) bool {
	k := MACKey(f.Head[6:])
	v := s.cell(k).Load()
	return v<<16>>16 == k && uint16(s.turn.Load())-uint16(v>>macBits) <= 1
}

// cell spreads MAC addresses over the cells (Fibonacci hashing).
func (s *sources) cell(k uint64) *atomic.Uint64 { return &s.cells[k*0x9e3779b97f4a7c15>>54] }

// sharing is an ndis5 bundle on the data path: its members, the primary first.
// It is immutable but for what it remembers.
type sharing struct {
	members []*slot
	seeds   []uint64 // of the members
	hash    bool
	lag     bool
	ours    *sources
}

// live reports whether frames can leave and come in by s.
func (s *slot) live() bool {
	if s.path.Load().txClosed != DropNone {
		return false
	}
	l := s.link.Load()
	return l != nil && l.Connected()
}

// first is the member that takes and sends group frames.
func (sh *sharing) first() *slot {
	for _, s := range sh.members {
		if s.live() {
			return s
		}
	}
	return sh.members[0]
}

// link is the bundle's link: that of the first member by which frames can leave,
// of the primary if there is none.
func (sh *sharing) link() LinkState {
	if l := sh.first().link.Load(); l != nil {
		return *l
	}
	return LinkState{}
}

// screen marks what s must not pass up, and reports whether there was anything:
// copies of group frames, and our own come back.
func (sh *sharing) screen(s *slot, frames []*Frame) (found bool) {
	if sh.lag {
		return false
	}
	first := sh.first() == s
	loops := sh.hash || s != sh.members[0] // else nothing of ours left by another member
	for _, f := range frames {
		switch {
		case f.fate != fateNone: // malformed
		case !first && f.Dst().IsGroup():
			f.fate, found = DropInactive, true
		case loops && sh.ours.knows(f):
			f.fate, found = DropReflection, true
		}
	}
	return found
}

// send passes on what a protocol sends to the primary: by the primary, or farmed
// out to the secondaries too.
func (sh *sharing) send(w *Worker, p *path, b *Batch) {
	if !sh.lag {
		sh.ours.remember(b.Frames)
	}
	primary := sh.members[0]
	if !sh.hash {
		primary.sendDown(w, p, b)
		return
	}
	var who [maxMembers]*slot
	var seeds [maxMembers]uint64
	n := 0
	for i, s := range sh.members {
		if s.live() {
			who[n], seeds[n] = s, sh.seeds[i]
			n++
		}
	}
	if n == 0 || n == 1 && who[0] == primary {
		primary.sendDown(w, p, b)
		return
	}
	group := 0
	if sh.lag {
		group = -1
	}
	spread(b, seeds[:n], group, func(lane int, lent *Batch) {
		if s := who[lane]; s == primary {
			s.sendDown(w, p, lent)
		} else {
			w.enter(s)
			s.send(w, lent)
			w.leave()
		}
	})
	if !b.Borrowed {
		b.origin.protocol.impl.SendComplete(b.origin, b)
	}
}
