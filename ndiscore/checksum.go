package ndiscore

import (
	"encoding/binary"
	"math/bits"
)

// IP protocol numbers whose checksums the switch knows (IANA).
const (
	protoHopByHop    = 0 // IPv6 extension
	protoICMP        = 1
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43 // IPv6 extension
	protoFragment    = 44 // IPv6 extension
	protoICMPv6      = 58
	protoDestination = 60 // IPv6 extension
	protoSCTP        = 132
)

// Where the checksum stands behind the first byte of each header.
const (
	icmpCsumOffset   = 2 // ICMP and ICMPv6
	tcpCsumOffset    = 16
	udpCsumOffset    = 6
	sctpCsumOffset   = 8 // four bytes, and a CRC-32C: see finishSCTP
	ipv4CsumOffset   = 10
	mangledZero      = 0xffff // what UDP sends for a sum of zero (RFC 768)
	checksumVerified = 0xffff // the sum over a part that holds its own right checksum
)

// Checksum is the Internet checksum's sum (RFC 1071) of b on top of initial:
// folded, in host order, not yet complemented. What initial sums must have an
// even length. A part that holds its own checksum is sound when the result,
// with its pseudo-header's sum as initial, is 0xffff.
func Checksum(b []byte, initial uint16) uint16 {
	// The sum does not depend on byte order but for a swap of the result (RFC
	// 1071 2.B), so add little-endian words and swap once.
	return addSums(initial, bits.ReverseBytes16(fold(sumWords(b))))
}

// PseudoChecksum is the sum of the pseudo-header of TCP, UDP or ICMPv6 (RFC 793,
// RFC 8200 8.1): src and dst are both IPv4 or both IPv6 addresses, length is
// that of the transport header and its payload.
func PseudoChecksum(src, dst []byte, proto uint8, length int) uint16 {
	s := Checksum(src, uint16(proto))
	s = Checksum(dst, s)
	return addSums(addSums(s, uint16(length>>16)), uint16(length))
}

// VerifyTransport reports whether the transport checksum of the IP packet that
// begins at head[l3] and goes on through segs is right: TCP, UDP, ICMP and
// ICMPv6. What cannot be checked here passes: fragments, other protocols, IPv4
// UDP without a checksum, a routing header that is not done. A packet that
// contradicts its own lengths does not. Do not ask for a frame with NeedsCsum.
func VerifyTransport(head []byte, segs [][]byte, l3 int) bool {
	p, ok := parseIP(head, l3)
	if !ok {
		return false
	}
	if p.fragment || p.detour {
		return true
	}
	n := p.length - (p.l4 - l3)
	room := len(head) - p.l4
	for _, s := range segs {
		room += len(s)
	}
	if n > room {
		return false
	}
	s := uint16(0)
	switch p.proto {
	case protoTCP:
		if n < tcpMinHeader {
			return false
		}
	case protoUDP:
		if n < udpHeader || len(head) < p.l4+udpHeader {
			return false
		}
		u := head[p.l4:]
		// The datagram may be shorter than the packet (RFC 768), not longer.
		l := int(binary.BigEndian.Uint16(u[4:]))
		if l < udpHeader || l > n {
			return false
		}
		n = l
		if u[udpCsumOffset]|u[udpCsumOffset+1] == 0 {
			return !p.v6 // IPv6 knows no UDP without one (RFC 8200 8.1)
		}
	case protoICMP:
		if p.v6 {
			return true
		}
	case protoICMPv6:
		if !p.v6 {
			return true
		}
	default:
		return true
	}
	if p.proto != protoICMP {
		src, dst := p.addresses(head, l3)
		s = PseudoChecksum(src, dst, p.proto, n)
	}
	return sumPieces(s, head[p.l4:], segs, n) == checksumVerified
}

// sumPieces is the sum of the first n bytes of head and then segs, on top of
// initial. Pieces may have any length.
func sumPieces(initial uint16, head []byte, segs [][]byte, n int) uint16 {
	head = head[:min(n, len(head))]
	s := Checksum(head, initial)
	n -= len(head)
	odd := len(head)&1 != 0
	for i := 0; i < len(segs) && n > 0; i++ {
		p := segs[i][:min(n, len(segs[i]))]
		q := Checksum(p, 0)
		if odd {
			q = bits.ReverseBytes16(q) // its bytes stand in the other halves of the words
		}
		s = addSums(s, q)
		n -= len(p)
		odd = odd != (len(p)&1 != 0)
	}
	return s
}

// addSums adds two ones'-complement sums.
func addSums(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// fold brings a 64-bit ones'-complement sum down to 16 bits. Only a sum of
// zeros folds to zero.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff // 33 bits at most
	s = s>>16 + s&0xffff     // 18
	s = s>>16 + s&0xffff     // 17
	s = s>>16 + s&0xffff
	return uint16(s)
}

// sumWords is the 64-bit ones'-complement sum of b as little-endian words; a
// last odd byte counts as if a zero followed it.
func sumWords(b []byte) uint64 {
	var s, c uint64
	// One carry chain, eight bytes a link, unrolled so that the loop itself
	// costs little beside it.
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), c)
		// With a carry in, a sum may carry out and still be all ones: the
		// carry may carry once more.
		s, c = bits.Add64(s, 0, c)
		s += c
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	var last uint64
	if len(b) >= 4 {
		last = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
		switch len(b) {
		case 3:
			last |= uint64(b[0])<<32 | uint64(b[1])<<40 | uint64(b[2])<<48
		case 2:
			last |= uint64(b[0])<<32 | uint64(b[1])<<40
		case 1:
			last |= uint64(b[0]) << 32
		}
	} else {
		switch len(b) {
		case 3:
			last = uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16
		case 2:
			last = uint64(b[0]) | uint64(b[1])<<8
		case 1:
			last = uint64(b[0])
		}
	}
	s, c = bits.Add64(s, last, 0)
	return s + c
}
