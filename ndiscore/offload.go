package ndiscore

import "encoding/binary"

// Lengths of headers in bytes.
const (
	ipv4MinHeader = 20
	ipv6Header    = 40
	tcpMinHeader  = 20
	udpHeader     = 8
)

// Places inside the headers.
const (
	ipv4TotalLength = 2
	ipv4ID          = 4
	ipv4Fragment    = 6
	ipv4Proto       = 9
	ipv4Src         = 12
	ipv6PayloadLen  = 4
	ipv6NextHeader  = 6
	ipv6Src         = 8
	tcpSeq          = 4
	tcpDataOffset   = 12
	tcpFlags        = 13
	udpLength       = 4
)

// The TCP flags that not every segment of a super-frame may carry (RFC 9293, RFC 3168).
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

const (
	// ipv4FragmentMask covers More Fragments and the fragment offset.
	ipv4FragmentMask = 0x3fff
	// maxExtHeaders bounds the walk through IPv6 extension headers. RFC 8200
	// 4.1 knows four in front of a transport header, one of them twice.
	maxExtHeaders = 5
	// maxSegments bounds what one super-frame may be cut into: 64 KiB in the
	// smallest segments that Linux makes (TCP_MIN_GSO_SIZE, 8 bytes). Without
	// it a frame with a segment size of 1 buys 65000 frames of work.
	maxSegments = 8192
)

// ipLayout is where the layers of an IP packet stand, as its own header says.
type ipLayout struct {
	l4       int // where the transport header begins
	length   int // of the packet, from the IP header on
	proto    uint8
	v6       bool
	fragment bool // part of a datagram: the transport header may be missing
	detour   bool // a routing header has hops left: the destination is not the last one
}

// parseIP reads the IP header at head[l3], and behind an IPv6 header the
// extension headers. False when the headers contradict themselves or do not
// lie inside head.
func parseIP(head []byte, l3 int) (p ipLayout, ok bool) {
	if l3 < 0 || len(head) < l3+ipv4MinHeader {
		return p, false
	}
	h := head[l3:]
	switch h[0] >> 4 {
	case 4:
		n := int(h[0]&15) * 4
		p.l4 = l3 + n
		p.length = int(binary.BigEndian.Uint16(h[ipv4TotalLength:]))
		p.proto = h[ipv4Proto]
		p.fragment = binary.BigEndian.Uint16(h[ipv4Fragment:])&ipv4FragmentMask != 0
		return p, n >= ipv4MinHeader && n <= len(h) && p.length >= n
	case 6:
		if len(h) < ipv6Header {
			return p, false
		}
		p.v6 = true
		p.length = ipv6Header + int(binary.BigEndian.Uint16(h[ipv6PayloadLen:]))
		p.proto = h[ipv6NextHeader]
		p.l4 = l3 + ipv6Header
		ok = p.extensions(head)
		return p, ok && p.length >= p.l4-l3
	}
	return p, false
}

// extensions moves p.l4 and p.proto past the extension headers that stand
// there. It stops at a fragment header.
func (p *ipLayout) extensions(head []byte) bool {
	for range maxExtHeaders + 1 {
		switch p.proto {
		case protoHopByHop, protoRouting, protoDestination:
			if len(head) < p.l4+8 {
				return false
			}
			e := head[p.l4:]
			if p.proto == protoRouting && e[3] != 0 {
				p.detour = true
			}
			p.proto = e[0]
			p.l4 += 8 + int(e[1])*8
			if p.l4 > len(head) {
				return false
			}
		case protoFragment:
			p.fragment = true
			return true
		default:
			return true
		}
	}
	return false
}

// addresses are the source and destination in the IP header at head[l3].
func (p *ipLayout) addresses(head []byte, l3 int) (src, dst []byte) {
	if p.v6 {
		return head[l3+ipv6Src : l3+ipv6Src+16], head[l3+ipv6Src+16 : l3+ipv6Header]
	}
	return head[l3+ipv4Src : l3+ipv4Src+4], head[l3+ipv4Src+4 : l3+ipv4MinHeader]
}

// superLayout is where the layers of a GSO frame stand.
type superLayout struct {
	ipLayout
	l3      int
	end     int // of the transport header: what each segment repeats
	payload int // bytes behind it
	csum    int // where, behind l4, the checksum stands
}

// parseSuper finds the layers of a GSO frame and checks that they are of the
// kind that it claims and that its headers lie in its Head.
func parseSuper(f *Frame) (s superLayout, ok bool) {
	l2, r := ParseL2(f.Head)
	if r != DropNone || l2.EtherType != EtherTypeIPv4 && l2.EtherType != EtherTypeIPv6 {
		return s, false
	}
	s.l3 = int(l2.Offset)
	s.ipLayout, ok = parseIP(f.Head, s.l3)
	if !ok || s.fragment || s.v6 != (l2.EtherType == EtherTypeIPv6) {
		return s, false
	}
	switch f.Offload.GSO {
	case GSOTCPv4, GSOTCPv6:
		if s.proto != protoTCP || s.v6 != (f.Offload.GSO == GSOTCPv6) || len(f.Head) < s.l4+tcpMinHeader {
			return s, false
		}
		n := int(f.Head[s.l4+tcpDataOffset]>>4) * 4
		if n < tcpMinHeader {
			return s, false
		}
		s.end, s.csum = s.l4+n, tcpCsumOffset
	case GSOUDPL4:
		if s.proto != protoUDP {
			return s, false
		}
		s.end, s.csum = s.l4+udpHeader, udpCsumOffset
	default:
		return s, false
	}
	s.payload = f.Len() - s.end
	return s, s.end <= len(f.Head)
}

// exact reports whether the lengths inside the headers are those of the frame:
// segmentation adds to and takes from them.
func (s *superLayout) exact(f *Frame) bool {
	if s.length != s.end-s.l3+s.payload {
		return false
	}
	return f.Offload.GSO != GSOUDPL4 ||
		int(binary.BigEndian.Uint16(f.Head[s.l4+udpLength:])) == udpHeader+s.payload
}

// CheckOffload compares the frame's Offload with its bytes, once, where the
// frame came in: a virtio_net_hdr written by a guest may say anything. The
// reason is DropNone or DropBadOffload. Afterwards everything in Offload may be
// trusted as long as nobody moves the headers: a frame of a GSO kind really is
// one, is longer than one segment, has NeedsCsum, and its HdrLen is exact.
//
// What Linux sends, though it looks odd, is brought to that form: a frame of a
// GSO kind that fits into one segment becomes an ordinary frame, and one
// without NeedsCsum gets the pseudo-header's sum that NeedsCsum promises.
func (f *Frame) CheckOffload() DropReason {
	o := &f.Offload
	if o.GSO == GSONone && o.Flags&(NeedsCsum|GSOECN) == 0 {
		*o = Offload{Flags: o.Flags & DataValid}
		return DropNone
	}
	if o.GSO == GSONone {
		if o.Flags&GSOECN != 0 || !f.checkCsum() {
			return DropBadOffload
		}
		o.GSOSize, o.HdrLen = 0, 0
		return DropNone
	}

	s, ok := parseSuper(f)
	if !ok || o.GSOSize == 0 || o.GSO == GSOUDPL4 && o.Flags&GSOECN != 0 {
		return DropBadOffload
	}
	if o.Flags&NeedsCsum != 0 && (int(o.CsumStart) != s.l4 || int(o.CsumOffset) != s.csum) {
		return DropBadOffload
	}
	if s.payload <= int(o.GSOSize) {
		*o = Offload{Flags: o.Flags &^ GSOECN, CsumStart: o.CsumStart, CsumOffset: o.CsumOffset}
		if o.Flags&NeedsCsum == 0 {
			o.CsumStart, o.CsumOffset = 0, 0
		}
		return DropNone
	}
	if !s.exact(f) || s.payload > maxSegments*int(o.GSOSize) {
		return DropBadOffload
	}
	if o.Flags&NeedsCsum == 0 {
		if s.detour {
			return DropBadOffload // whose sum it would be only the last hop knows
		}
		src, dst := s.addresses(f.Head, s.l3)
		sum := PseudoChecksum(src, dst, s.proto, s.end-s.l4+s.payload)
		binary.BigEndian.PutUint16(f.Head[s.l4+s.csum:], sum)
		o.Flags |= NeedsCsum
		o.CsumStart, o.CsumOffset = uint16(s.l4), uint16(s.csum)
	}
	o.HdrLen = uint16(s.end)
	return DropNone
}

// checkCsum reports whether the checksum that an ordinary frame wants
// completed stands in its head, behind the headers by which the switch decides:
// nobody may have the switch rewrite those behind its own back.
func (f *Frame) checkCsum() bool {
	start, at := int(f.Offload.CsumStart), f.csumAt()
	if f.Offload.CsumOffset&1 != 0 || at+2 > len(f.Head) {
		return false
	}
	l2, r := ParseL2(f.Head)
	if r != DropNone {
		return false
	}
	lowest := int(l2.Offset)
	switch l2.EtherType {
	case EtherTypeIPv4:
		// start is inside Head, so the first byte is there if there is room at all.
		lowest += ipv4MinHeader
		if start >= lowest {
			lowest = max(lowest, int(l2.Offset)+int(f.Head[l2.Offset]&15)*4)
		}
	case EtherTypeIPv6:
		lowest += ipv6Header
	}
	return start >= lowest
}

// csumAt is where the checksum of a NeedsCsum frame stands in its head.
func (f *Frame) csumAt() int { return int(f.Offload.CsumStart) + int(f.Offload.CsumOffset) }

// kindCapability is what an adapter needs to take a frame of kind k, beside
// CapChecksum.
func kindCapability(k GSOKind) Capabilities {
	switch k {
	case GSOTCPv4:
		return CapTSO4
	case GSOTCPv6:
		return CapTSO6
	case GSOUDPL4:
		return CapUSO
	}
	return 0
}

// accepts reports whether an adapter with these capabilities and MTU takes f as
// it is. VLAN tags do not count against the MTU, as in Linux.
func accepts(f *Frame, caps Capabilities, mtu int) bool {
	o := &f.Offload
	if o.GSO == GSONone {
		if o.Flags&NeedsCsum != 0 && (caps&CapChecksum == 0 || o.CsumOffset == sctpCsumOffset) {
			return false // for SCTP see finisher.complete
		}
		return fits(f, mtu)
	}
	need := CapChecksum | kindCapability(o.GSO)
	if o.Flags&GSOECN != 0 {
		need |= CapECN
	}
	if caps&need != need {
		return false
	}
	s, ok := parseSuper(f) // not HdrLen: frames made by protocols pass here too
	return ok && s.end-s.l3+int(o.GSOSize) <= mtu
}

// fits reports whether f as one packet is no longer than the MTU.
func fits(f *Frame, mtu int) bool {
	n := f.Len()
	if n <= mtu+EthernetHeader {
		return true
	}
	l2, r := ParseL2(f.Head)
	return r == DropNone && n-int(l2.Offset) <= mtu
}
