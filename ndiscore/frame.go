package ndiscore

import (
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
)

// BatchFrames is the most frames that travel together in one Batch.
const BatchFrames = 64

// Headroom is the free space, in bytes, that a miniport leaves in front of
// each frame it indicates: room for a virtio_net_hdr and two VLAN tags.
const Headroom = 64

// EthernetHeader is the length of an untagged Ethernet II header in bytes.
const EthernetHeader = 14

// MaxFrame is the longest frame, in bytes from the destination MAC on, that
// the switch carries: a 64 KiB IP packet (the limit of IP_MAX_MTU and of a
// classic GSO super-frame) behind an Ethernet header with two VLAN tags.
const MaxFrame = 65535 + EthernetHeader + 8

// MAC is an IEEE 802 MAC-48 address in transmission order.
type MAC [6]byte

// IsGroup reports whether m is a multicast or broadcast address (I/G bit).
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

// IsZero reports whether m is the all-zero address, which no station uses.
func (m MAC) IsZero() bool { return m == MAC{} }

// Key is m as the low 48 bits of an integer, for tables.
func (m MAC) Key() uint64 { return MACKey(m[:]) }

// MACKey reads the six bytes at the start of b as the low 48 bits of an integer.
func MACKey(b []byte) uint64 {
	_ = b[5]
	return uint64(binary.BigEndian.Uint16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
}

// String writes m as six colon-separated hex bytes.
func (m MAC) String() string {
	const hex = "0123456789abcdef"
	b := make([]byte, 0, 17)
	for i, v := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, hex[v>>4], hex[v&15])
	}
	return string(b)
}

// LocalMAC derives a locally administered unicast address from parts: the same
// parts give the same address, on every start.
func LocalMAC(parts ...string) MAC {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	m := MAC(h.Sum(nil)[:6])
	m[0] = m[0]&^1 | 2
	return m
}

// MarshalText makes a MAC print as text in JSON.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Broadcast is ff:ff:ff:ff:ff:ff.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// GSOKind says how a super-frame is to be cut (virtio_net_hdr gso_type).
type GSOKind uint8

// The kinds of super-frame. A frame of kind GSONone is one packet on the wire.
const (
	GSONone  GSOKind = iota
	GSOTCPv4         // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6         // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4         // VIRTIO_NET_HDR_GSO_UDP_L4: a train of equal UDP datagrams
)

// String names k as `stats` and tests print it.
func (k GSOKind) String() string {
	switch k {
	case GSONone:
		return "none"
	case GSOTCPv4:
		return "tcpv4"
	case GSOTCPv6:
		return "tcpv6"
	case GSOUDPL4:
		return "udp"
	}
	return "invalid"
}

// OffloadFlags says what is known of a frame's transport checksum.
type OffloadFlags uint8

const (
	// NeedsCsum: the checksum field at CsumStart+CsumOffset holds the
	// pseudo-header sum only; whoever puts the frame on a wire completes it
	// (VIRTIO_NET_HDR_F_NEEDS_CSUM, Linux CHECKSUM_PARTIAL).
	NeedsCsum OffloadFlags = 1 << iota
	// DataValid: the source has verified the checksum
	// (VIRTIO_NET_HDR_F_DATA_VALID, Linux CHECKSUM_UNNECESSARY).
	DataValid
	// GSOECN: a GSO TCP frame has CWR set; only its first segment keeps it
	// (VIRTIO_NET_HDR_GSO_ECN).
	GSOECN
)

// Offload is the meaning of a virtio_net_hdr: work that the frame's source
// left to whoever transmits it. All offsets count from the first byte of the
// destination MAC. The zero value is a finished, ordinary frame.
type Offload struct {
	Flags      OffloadFlags
	GSO        GSOKind
	GSOSize    uint16 // payload bytes of each segment, all but the last
	HdrLen     uint16 // bytes up to and including the transport header; a hint, never trusted
	CsumStart  uint16 // where the checksummed part begins
	CsumOffset uint16 // where, behind CsumStart, the 16-bit checksum stands
}

// Frame is one Ethernet frame: a private linear head that holds at least all
// protocol headers, and borrowed payload behind it.
//
// Ownership: the Head belongs to whoever holds the frame alone. A frame that
// others will see too (a flood) is read-only: who rewrites it copies the head
// first. Segs are read-only to everyone, always.
type Frame struct {
	Head    []byte   // from the destination MAC on
	Segs    [][]byte // rest of the frame, in order; usually empty
	Offload Offload

	room []byte // Head with its headroom in front: Head = room[off:]
	off  int
	fate DropReason // what has become of it so far; see Fate in counters.go
}

// Reset makes f the frame buf[off:off+n], with buf[:off] as its headroom, and
// forgets everything else. buf stays the caller's.
func (f *Frame) Reset(buf []byte, off, n int) {
	f.room, f.off = buf[:off+n], off
	f.Head = buf[off : off+n]
	f.Segs = f.Segs[:0]
	f.Offload = Offload{}
	f.fate = fateNone
}

// Retreat grows Head by n bytes at its front and reports whether the headroom
// allowed it (NdisRetreatNetBufferDataStart). The new bytes are unspecified.
// Offsets in Offload are moved along.
func (f *Frame) Retreat(n int) bool {
	if n < 0 || n > f.off || len(f.room) != f.off+len(f.Head) {
		return false
	}
	f.off -= n
	f.Head = f.room[f.off:]
	if f.Offload.Flags&NeedsCsum != 0 {
		f.Offload.CsumStart += uint16(n)
	}
	if f.Offload.HdrLen != 0 {
		f.Offload.HdrLen += uint16(n)
	}
	return true
}

// Len is the length of the whole frame in bytes.
func (f *Frame) Len() int {
	n := len(f.Head)
	for _, s := range f.Segs {
		n += len(s)
	}
	return n
}

// Dst is the destination MAC. The frame must have passed CheckEthernet.
func (f *Frame) Dst() MAC { return MAC(f.Head[0:6]) }

// Src is the source MAC. The frame must have passed CheckEthernet.
func (f *Frame) Src() MAC { return MAC(f.Head[6:12]) }

// Bytes appends the whole frame to b and returns it: for tests and traces, not
// for the packet path.
func (f *Frame) Bytes(b []byte) []byte {
	b = append(b, f.Head...)
	for _, s := range f.Segs {
		b = append(b, s...)
	}
	return b
}

// EtherTypes that the switch itself looks at (IEEE 802 numbers).
const (
	EtherTypeIPv4  = 0x0800
	EtherTypeARP   = 0x0806
	EtherTypeVLAN  = 0x8100
	EtherTypeQinQ  = 0x88a8
	EtherTypeIPv6  = 0x86dd
	maxVLANTags    = 2
	minEtherType   = 0x0600 // below: an 802.3 length field
	vlanTagLength  = 4
	vlanIDMask     = 0x0fff
	ethertypeIndex = 12
)

// L2 is what one look at a frame's link header tells.
type L2 struct {
	EtherType uint16 // of the payload; 0 for an 802.3 length-encoded frame
	Offset    uint16 // where the payload begins
	Tags      uint8  // VLAN tags in front of it, 0…2
	VLAN      uint16 // VLAN id of the outer tag, 0 without one
}

// ParseL2 reads the link header at the start of head (IEEE 802.3, 802.1Q,
// 802.1ad; two tags at most). The reason is zero when the header is sound.
func ParseL2(head []byte) (L2, DropReason) {
	if len(head) < EthernetHeader {
		return L2{}, DropShort
	}
	l := L2{EtherType: binary.BigEndian.Uint16(head[ethertypeIndex:]), Offset: EthernetHeader}
	for l.EtherType == EtherTypeVLAN || l.EtherType == EtherTypeQinQ {
		if l.Tags == maxVLANTags {
			return L2{}, DropVLANStack
		}
		if len(head) < int(l.Offset)+vlanTagLength {
			return L2{}, DropShort
		}
		if l.Tags == 0 {
			l.VLAN = binary.BigEndian.Uint16(head[l.Offset:]) & vlanIDMask
		}
		l.EtherType = binary.BigEndian.Uint16(head[l.Offset+2:])
		l.Offset += vlanTagLength
		l.Tags++
	}
	if l.EtherType < minEtherType {
		l.EtherType = 0
	}
	return l, DropNone
}

// Batch is up to BatchFrames frames that travel together, the unit in which
// ownership moves (a NET_BUFFER_LIST chain).
//
// A Borrowed batch is only lent for the call that passes it, upward and
// downward alike (NDIS_RECEIVE_FLAGS_RESOURCES): the callee finishes with
// every frame, or copies it, before it returns. Any other batch belongs to the
// callee until it is given back by Return (receive) or SendComplete (send), and
// must live in garbage-collected memory: the core may declare it orphaned.
type Batch struct {
	Worker   *Worker // whose goroutine carries the batch
	Frames   []*Frame
	Borrowed bool
	// CancelID, if not zero, is what the sender of a kept batch may call it back
	// by (Binding.CancelSend).
	CancelID uint64

	// Status is filled by the adapter that Send hands the batch to: entry i
	// tells what became of Frames[i]. Zero means transmitted.
	Status [BatchFrames]DropReason

	origin   *Binding     // who sent it; nil for a receive
	lender   *slot        // whose receive it is, when kept
	keeps    atomic.Int32 // holds of a kept receive, the core's own among them
	up, down loan         // as a kept receive, as a kept send
}

// NewBatch makes an empty batch with room for BatchFrames frames.
func NewBatch(w *Worker) *Batch {
	return &Batch{Worker: w, Frames: make([]*Frame, 0, BatchFrames)}
}

// Reset empties b for its next use by the worker that made it.
func (b *Batch) Reset() { b.Frames = b.Frames[:0] }

// Full reports whether no further frame fits.
func (b *Batch) Full() bool { return len(b.Frames) == BatchFrames }

// Append adds f. The batch must not be full.
func (b *Batch) Append(f *Frame) { b.Frames = append(b.Frames, f) }
