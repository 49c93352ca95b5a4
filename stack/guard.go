package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// class is a priority of the punt queue, the most urgent first.
type class uint8

const (
	classNeighbor  class = iota // ARP and IPv6 neighbour discovery
	classControl                // local control services (DHCP, DNS): reserved
	classLocal                  // other packets to an address of ours
	classForward                // packets to be forwarded
	classBroadcast              // broadcast and multicast

	classes = 5
)

var classNames = [classes]string{"neighbor", "control", "local", "forward", "broadcast"}

// verdict is what the guards make of one frame.
type verdict struct {
	drop  ndiscore.DropReason // DropNone: to be punted
	class class
	proto tcpip.NetworkProtocolNumber
	l3len int // bytes of the packet behind the Ethernet header; the rest is padding
	split int // where the copy is cut in two: behind all headers

	mark     uint32 // see mark
	zeroTTL  bool   // in the copy, the time to live becomes 0
	complete bool   // in the copy, the transport checksum is completed
	tooBig   int    // with DropTooBig: the MTU to tell the source
	super    *port  // leaves as a super-frame that fits this port's MTU segment by segment
	group    bool   // the destination MAC is a group address

	edge *nat.Edge // it is for an address of this one, and not examined further: see examine
}

// Fields of PacketBuffer.Mark, which survives netstack's forwarding copy where
// GSOOptions do not (gvisor.dev/issue/14011).
const (
	markGSOShift  = 16      // the high half: GSO segment size in bytes, 0 for an ordinary frame
	markNeedsCsum = 1 << 15 // Offload.Flags has NeedsCsum, at the transport header's own place
	markECN       = 1 << 14 // Offload.Flags has GSOECN
	// The low 14 bits are reserved for the cookie of the delivery.
)

// Where things stand in the headers read here.
const (
	arpLength       = 28
	ipv4Min         = 20
	ipv6Min         = 40
	tcpMin          = 20
	udpLen          = 8
	protoICMP       = 1
	protoTCP        = 6
	protoUDP        = 17
	protoRouting    = 43
	protoFragment   = 44
	protoICMPv6     = 58
	protoNoNext     = 59
	protoDestOpts   = 60
	protoExperiment = 253
	tcpCsum         = 16
	udpCsum         = 6
	ipv4DF          = 0x4000
	ipv4FragMask    = 0x3fff // More Fragments and the offset
	ipv4OffMask     = 0x1fff
	icmp6EchoReq    = 128 // below: errors
	ndFirst         = 133 // router solicitation
	ndLast          = 137 // redirect
)

// maxChain bounds the IPv6 extension headers of one packet in bytes. RFC 8504
// 5.3 lets a node limit them, and netstack needs it: it panics when it forwards
// a header chain longer than 1280 bytes.
const maxChain = 160

// maxHeaders is the longest that all headers of an IP packet are together: an
// IPv6 header, the extension headers, a TCP header with all its options.
const maxHeaders = ipv6Min + maxChain + 60

// splitAt is where the copy of an ordinary packet is cut in two: netstack copies
// the piece that holds the headers once more, and should find it short.
const splitAt = 128

// check looks at one frame that came in by in and decides. It reads nothing but
// the frame and the table, and never what lies behind f.Head, except to verify
// the checksum of a packet for us.
//
// What netstack itself drops soundly (martians, its own addresses as source, no
// route) is left to it.
func (t *fib) check(mac ndiscore.MAC, f *ndiscore.Frame) (v verdict) {
	return t.judge(mac, f, false)
}

// checkAfterNAT is check for a frame that NAT has seen.
func (t *fib) checkAfterNAT(mac ndiscore.MAC, f *ndiscore.Frame) verdict {
	return t.judge(mac, f, true)
}

func (t *fib) judge(mac ndiscore.MAC, f *ndiscore.Frame, final bool) (v verdict) {
	l2, why := ndiscore.ParseL2(f.Head)
	if why != ndiscore.DropNone {
		return verdict{drop: why}
	}
	v.group = f.Head[0]&1 != 0
	switch src := ndiscore.MAC(f.Head[6:12]); {
	case !v.group && ndiscore.MAC(f.Head[:6]) != mac:
		return verdict{drop: ndiscore.DropNotForUs}
	case src.IsGroup() || src.IsZero():
		return verdict{drop: ndiscore.DropBadSource}
	case l2.Tags != 0:
		return verdict{drop: ndiscore.DropUnknownNetwork}
	}
	p := packet{f: f, h: f.Head[ndiscore.EthernetHeader:], size: f.Len() - ndiscore.EthernetHeader, final: final}
	switch l2.EtherType {
	case ndiscore.EtherTypeARP:
		if len(p.h) < arpLength {
			return verdict{drop: ndiscore.DropShort}
		}
		v.proto, v.class, v.l3len, v.split = header.ARPProtocolNumber, classNeighbor, arpLength, splitAt
		return v
	case ndiscore.EtherTypeIPv4:
		v.proto = header.IPv4ProtocolNumber
		v.drop = t.checkIPv4(&p, &v)
	case ndiscore.EtherTypeIPv6:
		v.proto = header.IPv6ProtocolNumber
		v.drop = t.checkIPv6(&p, &v)
	default:
		v.drop = ndiscore.DropUnknownNetwork
	}
	v.split = max(splitAt, p.l4+60)
	return v
}

// packet is an IP packet under examination.
type packet struct {
	f        *ndiscore.Frame
	h        []byte // the part of it that lies in the head
	size     int    // of frame behind the Ethernet header
	total    int    // of the packet, by its own header
	l4       int    // where the transport header begins, in h
	proto    uint8
	fragment bool
	later    bool // a fragment but the first
	df       bool
	v6       bool
	final    bool // NAT has nothing to do with it any more
}

// forNAT reports whether NAT has to see p first, which is for e.
func (p *packet) forNAT(e *fibEntry, v *verdict) bool {
	if e == nil || e.edge == nil || p.final || v.group {
		return false
	}
	v.class, v.edge = classLocal, e.edge
	return true
}

func (t *fib) checkIPv4(p *packet, v *verdict) ndiscore.DropReason {
	h := p.h
	if len(h) < ipv4Min {
		return ndiscore.DropShort
	}
	p.l4 = int(h[0]&15) * 4
	p.total = int(binary.BigEndian.Uint16(h[2:]))
	if h[0]>>4 != 4 || p.l4 < ipv4Min || p.l4 > len(h) || p.total < p.l4 || p.total > p.size ||
		ndiscore.Checksum(h[:p.l4], 0) != 0xffff {
		return ndiscore.DropBadIP
	}
	v.l3len = p.total
	frag := binary.BigEndian.Uint16(h[6:])
	p.fragment, p.later, p.df = frag&ipv4FragMask != 0, frag&ipv4OffMask != 0, frag&ipv4DF != 0
	p.proto = h[9]
	var e *fibEntry
	if h[16] >= 224 {
		v.class = classBroadcast // multicast, 255.255.255.255, and class E, which netstack drops
	} else if e = t.v4.lookup(key4(h[16:20])); p.forNAT(e, v) {
		return ndiscore.DropNone
	} else if e == nil || e.kind == fibForward {
		v.class = classForward
	} else if v.class = classLocal; e.kind == fibBroadcast {
		v.class = classBroadcast
	}
	if v.class != classForward {
		return p.checkLocal(v)
	}
	if h[8] <= 1 {
		// netstack tests for 0 before it decrements, and so forwards a packet
		// with 1 as one with 0 (gVisor PR 13521). With 0 it answers Time Exceeded.
		v.zeroTTL = h[8] == 1
		e = nil
	}
	return p.checkForward(v, e)
}

func (t *fib) checkIPv6(p *packet, v *verdict) ndiscore.DropReason {
	h := p.h
	if len(h) < ipv6Min {
		return ndiscore.DropShort
	}
	p.v6, p.df = true, true
	p.total = ipv6Min + int(binary.BigEndian.Uint16(h[4:]))
	if h[0]>>4 != 6 || p.total > p.size || !p.walk() {
		return ndiscore.DropBadIP
	}
	v.l3len = p.total
	var e *fibEntry
	if h[24] == 0xff {
		v.class = classBroadcast
	} else if e = t.v6.lookup(key6(h[24:40])); p.forNAT(e, v) {
		return ndiscore.DropNone
	} else if e != nil && e.kind == fibLocal {
		v.class = classLocal
	} else {
		v.class = classForward
	}
	if v.class != classForward {
		if p.proto == protoICMPv6 && !p.fragment && p.l4 < len(h) && h[p.l4] >= ndFirst && h[p.l4] <= ndLast {
			v.class = classNeighbor
		}
		return p.checkLocal(v)
	}
	if h[7] <= 1 {
		e = nil // netstack answers Time Exceeded
	}
	return p.checkForward(v, e)
}

// walk follows the chain of IPv6 extension headers as netstack does, and
// reports whether it is short enough and lies in the head.
func (p *packet) walk() bool {
	p.l4, p.proto = ipv6Min, p.h[6]
	for {
		n := 8
		switch p.proto {
		case header0HopByHop, protoRouting, protoDestOpts:
			if p.l4+8 > min(len(p.h), p.total) {
				return false
			}
			n += int(p.h[p.l4+1]) * 8
		case protoExperiment:
			if p.l4+8 > min(len(p.h), p.total) {
				return false
			}
		case protoFragment:
			if p.l4+8 > min(len(p.h), p.total) {
				return false
			}
			p.fragment = true
			p.later = p.later || binary.BigEndian.Uint16(p.h[p.l4+2:])&^7 != 0
		case protoNoNext:
			// netstack counts all that follows as header.
			return p.total <= minMTUIPv6
		default:
			return true
		}
		p.proto = p.h[p.l4]
		p.l4 += n
		if p.l4 > min(len(p.h), p.total) || p.l4 > ipv6Min+maxChain {
			return false
		}
		if p.later {
			return true // what follows is no header
		}
	}
}

const header0HopByHop = 0

// checkLocal is for packets that netstack keeps. It trusts our verdict on the
// transport checksum (CapabilityRXChecksumOffload), because it cannot be told
// of each packet that the source has vouched for it.
func (p *packet) checkLocal(v *verdict) ndiscore.DropReason {
	o := &p.f.Offload
	switch {
	case o.Flags&ndiscore.NeedsCsum != 0:
		if !p.soundCsum() {
			return ndiscore.DropBadOffload
		}
		// netstack sums ICMP itself, whatever the link says.
		v.complete = p.proto != protoTCP && p.proto != protoUDP
	case o.Flags&ndiscore.DataValid != 0:
	case !ndiscore.VerifyTransport(p.f.Head, p.f.Segs, ndiscore.EthernetHeader):
		return ndiscore.DropBadChecksum
	}
	return ndiscore.DropNone
}

// checkForward is for packets that netstack passes on, to e if it is known.
func (p *packet) checkForward(v *verdict, e *fibEntry) ndiscore.DropReason {
	if v.group {
		// RFC 1812 5.3.4: a unicast packet in a link-layer broadcast is not
		// forwarded; netstack would.
		return ndiscore.DropNotForUs
	}
	o := &p.f.Offload
	if o.Flags&ndiscore.NeedsCsum != 0 {
		if !p.soundCsum() {
			return ndiscore.DropBadOffload
		}
		if p.ownCsum() {
			v.mark |= markNeedsCsum
		} else {
			v.complete = true // of a packet inside this one: the mark cannot say where
		}
	}
	if o.GSO != ndiscore.GSONone {
		return p.checkSuper(v, e)
	}
	if e == nil || p.total <= e.mtu {
		return ndiscore.DropNone
	}
	if p.df {
		v.tooBig = e.mtu
		return ndiscore.DropTooBig
	}
	// netstack cuts it into fragments; a checksum cannot be left to the
	// device then.
	if v.mark&markNeedsCsum != 0 {
		v.mark, v.complete = 0, true
	}
	return ndiscore.DropNone
}

// checkSuper holds a super-frame against the MTU that its segments must fit.
func (p *packet) checkSuper(v *verdict, e *fibEntry) ndiscore.DropReason {
	o := &p.f.Offload
	end := p.l4
	switch {
	case v.mark&markNeedsCsum == 0 || p.fragment || o.GSOSize == 0:
		return ndiscore.DropBadOffload
	case p.proto == protoTCP && (o.GSO == ndiscore.GSOTCPv6) == p.v6 && o.GSO != ndiscore.GSOUDPL4 && len(p.h) >= end+tcpMin:
		n := int(p.h[end+12]>>4) * 4
		if n < tcpMin {
			return ndiscore.DropBadOffload
		}
		end += n
	case p.proto == protoUDP && o.GSO == ndiscore.GSOUDPL4:
		end += udpLen
	default:
		return ndiscore.DropBadOffload
	}
	if end > len(p.h) || end >= p.total || p.total != p.size {
		return ndiscore.DropBadOffload
	}
	size := int(o.GSOSize)
	if e != nil && min(end+size, p.total) > e.mtu {
		// A TCP sender that allows fragments gets smaller segments instead:
		// the same bytes, and cheaper than fragments.
		if p.df || p.proto != protoTCP || e.mtu < end+8 {
			v.tooBig = e.mtu
			return ndiscore.DropTooBig
		}
		size = e.mtu - end
	}
	v.mark |= uint32(size) << markGSOShift
	if o.Flags&ndiscore.GSOECN != 0 {
		v.mark |= markECN
	}
	if e != nil && p.total > e.mtu {
		v.super = e.egress
	}
	return ndiscore.DropNone
}

// soundCsum reports whether the checksum that the frame's source left open
// stands inside the packet, behind its IP header.
func (p *packet) soundCsum() bool {
	start, at := int(p.f.Offload.CsumStart), int(p.f.Offload.CsumStart)+int(p.f.Offload.CsumOffset)
	return !p.fragment && start >= ndiscore.EthernetHeader+p.l4 && at+2 <= ndiscore.EthernetHeader+p.total
}

// ownCsum reports whether it is that of the packet's own TCP or UDP header.
func (p *packet) ownCsum() bool {
	o := &p.f.Offload
	return int(o.CsumStart) == ndiscore.EthernetHeader+p.l4 &&
		(p.proto == protoTCP && o.CsumOffset == tcpCsum || p.proto == protoUDP && o.CsumOffset == udpCsum)
}
