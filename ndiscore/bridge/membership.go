package bridge

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Messages of IGMP (RFC 1112, 2236, 3376), MLD (RFC 2710, 3810) and PIM (RFC 7761).
const (
	protoIGMP   = 2
	protoHop    = 0 // IPv6 hop-by-hop options
	protoICMPv6 = 58
	protoPIM    = 103

	igmpQuery    = 0x11
	igmpReportV1 = 0x12
	igmpReportV2 = 0x16
	igmpLeave    = 0x17
	igmpReportV3 = 0x22

	mldQuery    = 130
	mldReportV1 = 131
	mldDone     = 132
	mldReportV2 = 143

	pimHello = 0x20 // version 2, type 0

	ipv4Header = 20
	ipv6Header = 40
)

// Defaults and bounds of a querier's timers (RFC 3376 section 8, RFC 3810
// section 9).
const (
	defaultRobustness = 2
	maxRobustness     = 7
	defaultInterval   = 125 * time.Second
	minInterval       = time.Second
	maxInterval       = time.Hour
	defaultResponse   = 10 * time.Second
	minResponse       = 100 * time.Millisecond // so long an answer may take in any case
	defaultLast       = time.Second            // last member query interval
)

// messageKind says what a message is to a switch.
type messageKind uint8

const (
	noMessage     messageKind = iota
	queryMessage              // who asks: a multicast router is behind the port
	reportMessage             // who listens, or no longer does
	helloMessage              // PIM: a multicast router that may not be the one who asks
)

// message is one of them, read.
type message struct {
	kind messageKind
	v6   bool
	from netip.Addr

	// Of a query.
	group      netip.Addr // asked for; not valid: all groups
	narrow     bool       // about some sources of group, or one that routers have seen already: no timer is lowered
	response   time.Duration
	interval   time.Duration // between queries
	robustness int

	// Of a report: the groups that somebody now listens to. Who leaves is not
	// noted: the querier asks who is left, and that is.
	joins []netip.Addr
}

// peek tells from the headers alone what the IP packet p, in an EtherType
// etherType frame to a group, is: what the data path needs to pass it on. It
// verifies nothing.
func peek(etherType uint16, p []byte) messageKind {
	switch etherType {
	case ndiscore.EtherTypeIPv4:
		if len(p) < ipv4Header {
			return noMessage
		}
		n := int(p[0]&15) * 4
		switch {
		case n < ipv4Header || len(p) < n+8 || p[6]&0x1f != 0 || p[7] != 0:
		case p[9] == protoIGMP:
			switch p[n] {
			case igmpQuery:
				return queryMessage
			case igmpReportV1, igmpReportV2, igmpReportV3, igmpLeave:
				return reportMessage
			}
		case p[9] == protoPIM && p[n] == pimHello:
			return helloMessage
		}
	case ndiscore.EtherTypeIPv6:
		if len(p) < ipv6Header+8 {
			return noMessage
		}
		switch p[6] {
		case protoPIM:
			if p[ipv6Header] == pimHello {
				return helloMessage
			}
		case protoHop:
			n := ipv6Header + 8 + int(p[ipv6Header+1])*8
			if p[ipv6Header] != protoICMPv6 || len(p) < n+8 {
				return noMessage
			}
			switch p[n] {
			case mldQuery:
				return queryMessage
			case mldReportV1, mldReportV2, mldDone:
				return reportMessage
			}
		}
	}
	return noMessage
}

// parse reads the IP packet p, of which padding may be left, and reports whether
// it is a sound message. Bytes come from anywhere: every length is checked,
// every checksum verified. joins is memory to use.
func parse(etherType uint16, p []byte, joins []netip.Addr) (message, bool) {
	if peek(etherType, p) == noMessage {
		return message{}, false
	}
	if etherType == ndiscore.EtherTypeIPv4 {
		return parseIPv4(p, joins[:0])
	}
	return parseIPv6(p, joins[:0])
}

func parseIPv4(p []byte, joins []netip.Addr) (message, bool) {
	n, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 != 4 || total > len(p) || total < n+8 || p[6]&0x3f != 0 || p[7] != 0 || sum(0, p[:n]) != 0xffff {
		return message{}, false // not IPv4, cut short, a fragment, or spoilt
	}
	m := message{from: netip.AddrFrom4([4]byte(p[12:16]))}
	body := p[n:total]
	if sum(0, body) != 0xffff {
		return message{}, false
	}
	if p[9] == protoPIM {
		m.kind = helloMessage
		return m, true
	}
	group := netip.AddrFrom4([4]byte(body[4:8]))
	m.joins = joins
	switch body[0] {
	case igmpQuery:
		m.kind = queryMessage
		m.response, m.interval, m.robustness = time.Duration(body[1])*100*time.Millisecond, defaultInterval, defaultRobustness
		if !group.IsUnspecified() {
			m.group = group
		}
		switch {
		case body[1] == 0 && len(body) == 8: // version 1
			m.response = defaultResponse
		case len(body) >= 12:
			m.response = code8(body[1]) * 100 * time.Millisecond
			m.details(body[8:])
		case len(body) > 8:
			return message{}, false // RFC 3376 section 7.1
		}
		return m, m.checkQuery(p[16:20], allHosts)
	case igmpReportV1, igmpReportV2:
		m.kind = reportMessage
		return m, m.join(group)
	case igmpLeave:
		m.kind = reportMessage
		return m, true
	}
	m.kind = reportMessage
	return m, m.records(body[8:], int(binary.BigEndian.Uint16(body[6:])), 4)
}

func parseIPv6(p []byte, joins []netip.Addr) (message, bool) {
	total := ipv6Header + int(binary.BigEndian.Uint16(p[4:]))
	if p[0]>>4 != 6 || total > len(p) {
		return message{}, false
	}
	m := message{v6: true, from: netip.AddrFrom16([16]byte(p[8:24]))}
	n, next := ipv6Header, p[6]
	if next == protoHop {
		n += 8 + int(p[ipv6Header+1])*8
		if n > total || !routerAlert(p[ipv6Header+2:n]) {
			return message{}, false
		}
		next = protoICMPv6
	}
	// RFC 3810 section 5.1.14: link-local, with a hop limit of 1.
	local := m.from.IsLinkLocalUnicast()
	if total < n+8 || p[7] != 1 || !local && !m.from.IsUnspecified() {
		return message{}, false
	}
	body := p[n:total]
	pseudo := sum(uint32(len(body)>>16)+uint32(len(body)&0xffff)+uint32(next), p[8:40])
	if sum(uint32(pseudo), body) != 0xffff {
		return message{}, false
	}
	if next == protoPIM {
		m.kind = helloMessage
		return m, local
	}
	m.joins = joins
	if body[0] == mldReportV2 {
		m.kind = reportMessage
		return m, m.records(body[8:], int(binary.BigEndian.Uint16(body[6:])), 16)
	}
	if len(body) < 24 {
		return message{}, false
	}
	group := netip.AddrFrom16([16]byte(body[8:24]))
	switch body[0] {
	case mldQuery:
		m.kind = queryMessage
		code := binary.BigEndian.Uint16(body[4:])
		m.response, m.interval, m.robustness = time.Duration(code)*time.Millisecond, defaultInterval, defaultRobustness
		if !group.IsUnspecified() {
			m.group = group
		}
		switch {
		case len(body) >= 28:
			m.response = code16(code) * time.Millisecond
			m.details(body[24:])
		case len(body) > 24:
			return message{}, false // RFC 3810 section 8.1
		}
		return m, local && m.checkQuery(p[24:40], allNodes)
	case mldReportV1:
		m.kind = reportMessage
		return m, m.join(group)
	}
	m.kind = reportMessage // done
	return m, true
}

// details reads what a query of the newest version says more: S and QRV, QQIC,
// number of sources.
func (m *message) details(b []byte) {
	m.narrow = b[0]&8 != 0 || b[2] != 0 || b[3] != 0
	if r := int(b[0] & 7); r != 0 {
		m.robustness = r
	}
	if i := code8(b[1]) * time.Second; i != 0 {
		m.interval = i
	}
}

// checkQuery bounds the times of a query, and reports whether it is one to those
// who would have to answer: all, or the group asked for. The longest time for an
// answer is not bounded but by its code, since hosts believe it.
func (m *message) checkQuery(to []byte, all netip.Addr) bool {
	m.response = max(m.response, minResponse)
	m.interval = min(max(m.interval, minInterval), maxInterval)
	dst, _ := netip.AddrFromSlice(to)
	return dst == all && !m.group.IsValid() || m.group.IsMulticast() && (dst == all || dst == m.group)
}

// records reads the n group records of an IGMPv3 or MLDv2 report, whose
// addresses have size bytes.
func (m *message) records(b []byte, n, size int) bool {
	const (
		isInclude = 1
		isExclude = 2
		toInclude = 3
		toExclude = 4
		allow     = 5
	)
	for range n {
		if len(b) < 4+size {
			return false
		}
		sources := int(binary.BigEndian.Uint16(b[2:]))
		end := 4 + size + sources*size + int(b[1])*4
		if len(b) < end {
			return false
		}
		group, _ := netip.AddrFromSlice(b[4 : 4+size])
		switch b[0] {
		case isExclude, toExclude:
			if !m.join(group) {
				return false
			}
		case isInclude, toInclude, allow:
			if sources > 0 && !m.join(group) {
				return false
			}
		}
		b = b[end:]
	}
	return true
}

// join notes that somebody listens to group. Groups that everybody needs are
// left out, and so stay flooded: 224.0.0.0/24 (RFC 4541 section 2.1.2), all nodes
// and what does not leave a node (RFC 3810 section 6), and the solicited-node
// groups, on which finding neighbours rests.
func (m *message) join(group netip.Addr) bool {
	if !group.IsMulticast() {
		return false
	}
	a := group.As16()
	switch {
	case group.Is4() && a[12] == 224 && a[13] == 0 && a[14] == 0:
	case group.Is6() && (a[1]&15 < 2 || group == allNodes || solicitedNode.Contains(group)):
	default:
		m.joins = append(m.joins, group)
	}
	return true
}

var (
	allHosts      = netip.MustParseAddr("224.0.0.1")
	allNodes      = netip.MustParseAddr("ff02::1")
	solicitedNode = netip.MustParsePrefix("ff02::1:ff00:0/104")
)

// routerAlert looks for the router alert option of MLD (RFC 2711).
func routerAlert(options []byte) bool {
	for len(options) > 0 {
		if options[0] == 0 { // Pad1
			options = options[1:]
			continue
		}
		if len(options) < 2 || len(options) < 2+int(options[1]) {
			return false
		}
		if options[0] == 5 && options[1] == 2 {
			return options[2] == 0 && options[3] == 0
		}
		options = options[2+int(options[1]):]
	}
	return false
}

// code8 reads an eight-bit number with exponent (RFC 3376 section 4.1.1).
func code8(c byte) time.Duration {
	if c < 128 {
		return time.Duration(c)
	}
	return time.Duration(c&15|16) << (c>>4&7 + 3)
}

// code16 is its sixteen-bit sister (RFC 3810 section 5.1.3).
func code16(c uint16) time.Duration {
	if c < 1<<15 {
		return time.Duration(c)
	}
	return time.Duration(c&0xfff|0x1000) << (c>>12&7 + 3)
}

// sum is the ones' complement sum of b (RFC 1071), begun with start; 0xffff over
// bytes that hold their own checksum.
func sum(start uint32, b []byte) uint16 {
	s := start
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
