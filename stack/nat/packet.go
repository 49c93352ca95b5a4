package nat

import (
	"encoding/binary"
	"net/netip"
)

// addr is an IP address as a number; IPv4 uses lo alone.
type addr struct{ hi, lo uint64 }

func addr4(b []byte) addr { return addr{lo: uint64(binary.BigEndian.Uint32(b))} }

func addr6(b []byte) addr {
	return addr{hi: binary.BigEndian.Uint64(b), lo: binary.BigEndian.Uint64(b[8:])}
}

func numberOf(a netip.Addr) addr {
	if a.Is4() {
		b := a.As4()
		return addr4(b[:])
	}
	b := a.As16()
	return addr6(b[:])
}

func (a addr) netip(v6 bool) netip.Addr {
	if v6 {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], a.hi)
		binary.BigEndian.PutUint64(b[8:], a.lo)
		return netip.AddrFrom16(b)
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(a.lo))
	return netip.AddrFrom4(b)
}

// special reports whether packets from or to a are never translated: the
// unspecified address, multicast, limited broadcast, IPv6 link-local.
func (a addr) special(v6 bool) bool {
	if v6 {
		return a.hi>>56 == 0xff || a.hi>>54 == 0xfe80>>6 || a == addr{}
	}
	return a.lo == 0 || a.lo>>28 == 0xe || a.lo == 0xffffffff
}

// tuple is what tells the packets of one direction of a flow: the key of the
// table.
//
// An ICMP query has its identifier as the port of the side that asks, and its
// type as the port of the side that answers; sideAnswer tells the two apart when
// those are the same number. A protocol without ports has none.
type tuple struct {
	src, dst     addr
	sport, dport uint16
	edge         uint16 // whose packets: Edge.id
	proto        uint8
	side         side
}

// side is where a packet is seen, the version of IP, and what else tells one direction
// from the other.
type side uint8

const (
	sideV6     side = 1 << iota
	sideOut         // as it comes to an edge to be sent out of it, before translation; else: as it comes in
	sideAnswer      // it answers an ICMP query
)

func (s side) v6() bool { return s&sideV6 != 0 }

// answer is the tuple of a packet that answers one of t, at the other side s.
func (t *tuple) answer(s side) tuple {
	if t.proto == protoICMP || t.proto == protoICMPv6 {
		s |= ^t.side & sideAnswer
	}
	return tuple{src: t.dst, dst: t.src, sport: t.dport, dport: t.sport, edge: t.edge, proto: t.proto, side: t.side&sideV6 | s}
}

// Where things stand in headers, and IANA numbers.
const (
	ethernet      = 14
	ipv4Min       = 20
	ipv6Min       = 40
	tcpMin        = 20
	tcpMost       = 60 // with all options
	udpLen        = 8
	icmpLen       = 8
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoDCCP     = 33
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDestOpts = 60
	protoUDPLite  = 136
	tcpCsum       = 16
	udpCsum       = 6 // UDP-Lite's and DCCP's too
	icmpCsum      = 2

	flagFIN = 1
	flagSYN = 2
	flagRST = 4
	flagACK = 16
)

// maxChain bounds the IPv6 extension headers of one packet in bytes.
const maxChain = 160

// kind says how a packet can be translated.
type kind uint8

const (
	kindBare  kind = iota // by its addresses alone: no ports are known
	kindPorts             // TCP, UDP
	kindQuery             // ICMP with an identifier: echo, timestamp
	kindError             // ICMP about another packet, which is quoted
	kindLater             // a fragment but the first: like the first
	kindNone              // not at all
)

// header is where things stand in one IP packet, and its tuple.
type header struct {
	tuple
	kind  kind
	first bool // the first of several fragments
	reply bool // kindQuery: it answers
	total int  // bytes of the packet, by its own header
	l4    int  // where the transport header begins
	csum  int  // where, behind l4, its checksum stands; 0: it has none
	id    uint32
	flags uint8 // of TCP
	quote int   // kindError: where the quoted packet begins
}

// parse reads the headers of the IP packet that begins at h[0]. h holds at least
// all headers. Of a quoted packet there may be no more than eight bytes behind
// the IP header. False when the headers contradict themselves or are cut off.
func parse(h []byte, quoted bool) (p header, ok bool) {
	if len(h) < ipv4Min {
		return p, false
	}
	var later bool
	switch h[0] >> 4 {
	case 4:
		p.l4, p.total, p.proto = int(h[0]&15)*4, int(binary.BigEndian.Uint16(h[2:])), h[9]
		if p.l4 < ipv4Min || p.l4 > len(h) || p.total < p.l4 {
			return p, false
		}
		p.src, p.dst, p.id = addr4(h[12:]), addr4(h[16:]), uint32(binary.BigEndian.Uint16(h[4:]))
		frag := binary.BigEndian.Uint16(h[6:])
		later, p.first = frag&0x1fff != 0, frag&0x3fff == 0x2000
	case 6:
		if len(h) < ipv6Min {
			return p, false
		}
		p.side = sideV6
		p.total = ipv6Min + int(binary.BigEndian.Uint16(h[4:]))
		p.src, p.dst = addr6(h[8:]), addr6(h[24:])
		if later, ok = p.walk(h); !ok {
			return p, false
		}
	default:
		return p, false
	}
	if later {
		p.kind = kindLater
		return p, true
	}
	return p, p.transport(h, quoted)
}

// walk follows the chain of IPv6 extension headers to the transport header.
func (p *header) walk(h []byte) (later, ok bool) {
	p.l4, p.proto = ipv6Min, h[6]
	for {
		n := 8
		switch p.proto {
		case protoHopByHop, protoRouting, protoDestOpts, protoFragment:
		default:
			return false, true
		}
		if p.l4+8 > min(len(h), p.total) {
			return false, false
		}
		e := h[p.l4:]
		switch p.proto {
		case protoFragment:
			frag := binary.BigEndian.Uint16(e[2:])
			p.id, p.first, later = binary.BigEndian.Uint32(e[4:]), frag&^6 == 1, frag>>3 != 0
		case protoRouting:
			if e[3] != 0 {
				// The checksum is over the last destination, not this one.
				p.kind = kindNone
			}
			fallthrough
		default:
			n += int(e[1]) * 8
		}
		p.proto = e[0]
		p.l4 += n
		if p.l4 > min(len(h), p.total) || p.l4 > ipv6Min+maxChain {
			return false, false
		}
		if later {
			return true, true // what follows is no header
		}
	}
}

func (p *header) transport(h []byte, quoted bool) bool {
	if p.kind == kindNone {
		return true
	}
	b := h[p.l4:min(len(h), max(p.total, p.l4))]
	need := 0
	switch p.proto {
	case protoTCP:
		p.kind, p.csum, need = kindPorts, tcpCsum, tcpMin
	case protoUDP:
		p.kind, p.csum, need = kindPorts, udpCsum, udpLen
	case protoICMP, protoICMPv6:
		if (p.proto == protoICMPv6) != p.side.v6() {
			p.kind = kindNone
			return true
		}
		p.csum, need = icmpCsum, icmpLen
	case protoUDPLite, protoDCCP:
		p.csum, need = udpCsum, udpLen
	}
	if quoted {
		need = min(need, udpLen)
	}
	if len(b) < need {
		return false
	}
	if p.csum+2 > len(b) {
		p.csum = 0 // of a quoted TCP header only the beginning is there
	}
	switch {
	case p.kind == kindPorts:
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p.proto == protoTCP && len(b) > 13 {
			p.flags = b[13]
		}
	case p.csum == icmpCsum:
		p.icmp(b, quoted)
	}
	return true
}

// icmp tells queries, errors and the rest apart.
func (p *header) icmp(b []byte, quoted bool) {
	query := uint16(b[0])
	if p.proto == protoICMP {
		switch b[0] {
		case 8, 13: // echo, timestamp
			p.kind = kindQuery
		case 0, 14:
			p.kind, p.reply = kindQuery, true
			query = 8
			if b[0] == 14 {
				query = 13
			}
		case 3, 4, 11, 12:
			p.kind = kindError
		default:
			p.kind = kindNone // a redirect is for this link alone
		}
	} else {
		switch b[0] {
		case 128:
			p.kind = kindQuery
		case 129:
			p.kind, p.reply, query = kindQuery, true, 128
		case 1, 2, 3, 4:
			p.kind = kindError
		default:
			p.kind = kindNone // neighbours, routers, groups
		}
	}
	switch p.kind {
	case kindQuery:
		p.sport, p.dport = binary.BigEndian.Uint16(b[4:]), query
		if p.reply {
			p.sport, p.dport = p.dport, p.sport
			p.side |= sideAnswer
		}
	case kindError:
		p.quote = p.l4 + icmpLen
		if quoted {
			p.kind = kindNone // no error is sent about an error
		}
	}
}

// sums of 16-bit words that changed, old ones complemented: what RFC 1624 adds
// to a checksum.
type change uint32

func put16(b []byte, v uint16) change {
	c := change(^binary.BigEndian.Uint16(b)) + change(v)
	binary.BigEndian.PutUint16(b, v)
	return c
}

func put32(b []byte, v uint32) change {
	return put16(b, uint16(v>>16)) + put16(b[2:], uint16(v))
}

func putAddr(b []byte, a addr, v6 bool) change {
	if !v6 {
		return put32(b, uint32(a.lo))
	}
	return put32(b, uint32(a.hi>>32)) + put32(b[4:], uint32(a.hi)) + put32(b[8:], uint32(a.lo>>32)) + put32(b[12:], uint32(a.lo))
}

func (c change) fold() uint16 {
	c = c>>16 + c&0xffff
	return uint16(c>>16 + c)
}

// on applies c to the checksum at b (RFC 1624 eqn. 3), and returns how that
// changed it.
func (c change) on(b []byte) change {
	if c == 0 {
		return 0
	}
	return put16(b, ^(change(^binary.BigEndian.Uint16(b)) + change(c.fold())).fold())
}

// rewrite gives the packet at h, whose headers are p, the addresses and ports of
// to, and repairs its checksums by what changed: one that was wrong stays wrong.
// With partial the transport checksum is that of the pseudo-header alone, not
// complemented. more is what changed behind the transport header. It returns what
// changed in all.
func (p *header) rewrite(h []byte, to *tuple, partial bool, more change) change {
	var addrs, ports, all change
	if v6 := p.side.v6(); v6 {
		addrs = putAddr(h[8:], to.src, true) + putAddr(h[24:], to.dst, true)
	} else {
		addrs = putAddr(h[12:], to.src, false) + putAddr(h[16:], to.dst, false)
		all = addrs.on(h[10:])
	}
	all += addrs + more
	if p.kind == kindLater || p.kind == kindNone {
		return all
	}
	b := h[p.l4:]
	switch p.kind {
	case kindPorts:
		ports = put16(b, to.sport) + put16(b[2:], to.dport)
	case kindQuery:
		id := to.sport
		if p.reply {
			id = to.dport
		}
		ports = put16(b[4:], id)
	}
	all += ports
	if p.csum == 0 {
		return all
	}
	sum := b[p.csum:]
	switch {
	case partial && p.proto == protoICMP: // it holds nothing: there is no pseudo-header
	case partial:
		all += put16(sum, (change(binary.BigEndian.Uint16(sum)) + change(addrs.fold())).fold())
	case p.proto == protoUDP && sum[0]|sum[1] == 0: // it has none
	case p.proto == protoICMP: // has no pseudo-header
		all += (ports + change(more.fold())).on(sum)
	default:
		all += (change(addrs.fold()) + change(ports.fold()) + change(more.fold())).on(sum)
		if p.proto == protoUDP && sum[0]|sum[1] == 0 {
			all += put16(sum, 0xffff) // the same number, and zero means "none"
		}
	}
	return all
}
