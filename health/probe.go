package health

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	arpLength   = 28 // RFC 826, Ethernet and IPv4
	arpRequest  = 1
	arpReply    = 2
	ipv6Header  = 40
	icmpv6      = 58 // next header
	hopLimit    = 255
	solicit     = 135 // RFC 4861 4.3
	advertise   = 136 // RFC 4861 4.4
	ndLength    = 24  // either, without options
	sourceLLA   = 1   // option: source link-layer address
	minEthernet = 60  // without FCS; shorter ARP frames are padded

	// answerBytes is as much of a frame as is looked at: an advertisement with
	// all the options of today is far shorter.
	answerBytes = 256
)

// probeMAC derives the fixed address from which member probes.
func probeMAC(seed ...string) ndiscore.MAC {
	return ndiscore.LocalMAC(append([]string{"vswitch probe"}, seed...)...)
}

// linkLocal is mac's address of RFC 4291 appendix A.
func linkLocal(mac ndiscore.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 0x02, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// probe builds the frame that asks for target.
func probe(mac ndiscore.MAC, target netip.Addr) []byte {
	if target.Is4() {
		return arpProbe(mac, target)
	}
	return solicitation(mac, target)
}

func arpProbe(mac ndiscore.MAC, target netip.Addr) []byte {
	f := make([]byte, minEthernet)
	copy(f, ndiscore.Broadcast[:])
	copy(f[6:], mac[:])
	binary.BigEndian.PutUint16(f[12:], ndiscore.EtherTypeARP)
	a := f[ndiscore.EthernetHeader:]
	binary.BigEndian.PutUint16(a, 1) // Ethernet
	binary.BigEndian.PutUint16(a[2:], ndiscore.EtherTypeIPv4)
	a[4], a[5] = 6, 4
	binary.BigEndian.PutUint16(a[6:], arpRequest)
	copy(a[8:], mac[:]) // sender; its IP address stays zero
	ip := target.As4()
	copy(a[24:], ip[:])
	return f
}

func solicitation(mac ndiscore.MAC, target netip.Addr) []byte {
	const option = 8
	f := make([]byte, ndiscore.EthernetHeader+ipv6Header+ndLength+option)
	to := target.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16() // solicited-node (RFC 4291 2.7.1)
	copy(group[13:], to[13:])
	src := linkLocal(mac).As16()
	copy(f, []byte{0x33, 0x33, group[12], group[13], group[14], group[15]})
	copy(f[6:], mac[:])
	binary.BigEndian.PutUint16(f[12:], ndiscore.EtherTypeIPv6)
	ip := f[ndiscore.EthernetHeader:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], ndLength+option)
	ip[6], ip[7] = icmpv6, hopLimit
	copy(ip[8:], src[:])
	copy(ip[24:], group[:])
	nd := ip[ipv6Header:]
	nd[0] = solicit
	copy(nd[8:], to[:])
	nd[24], nd[25] = sourceLLA, option/8
	copy(nd[26:], mac[:])
	sum := ndiscore.Checksum(nd, ndiscore.PseudoChecksum(src[:], group[:], icmpv6, len(nd)))
	binary.BigEndian.PutUint16(nd[2:], ^sum)
	return f
}

// expected is what an answer must match.
type expected struct {
	mac    ndiscore.MAC
	key    uint64 // mac, for a quick look
	target netip.Addr
	local  netip.Addr // where advertisements go
}

// matches reports whether f answers the probe. All but our own frames leave it
// after one comparison.
func (e *expected) matches(f *ndiscore.Frame) bool {
	if len(f.Head) < ndiscore.EthernetHeader || ndiscore.MACKey(f.Head) != e.key {
		return false
	}
	var buf [answerBytes]byte
	b := f.Head
	if len(f.Segs) > 0 {
		n := copy(buf[:], f.Head)
		for _, s := range f.Segs {
			n += copy(buf[n:], s)
		}
		b = buf[:n]
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case ndiscore.EtherTypeARP:
		return e.target.Is4() && e.matchesARP(b[ndiscore.EthernetHeader:])
	case ndiscore.EtherTypeIPv6:
		// A checksum that is not finished, or was verified below, is no news.
		known := f.Offload.Flags&(ndiscore.NeedsCsum|ndiscore.DataValid) != 0
		return e.target.Is6() && e.matchesND(b[ndiscore.EthernetHeader:]) &&
			(known || ndiscore.VerifyTransport(b, nil, ndiscore.EthernetHeader))
	}
	return false
}

func (e *expected) matchesARP(a []byte) bool {
	if len(a) < arpLength || binary.BigEndian.Uint16(a) != 1 || binary.BigEndian.Uint16(a[2:]) != ndiscore.EtherTypeIPv4 ||
		a[4] != 6 || a[5] != 4 || binary.BigEndian.Uint16(a[6:]) != arpReply {
		return false
	}
	ip := e.target.As4()
	return bytes.Equal(a[14:18], ip[:]) && bytes.Equal(a[18:24], e.mac[:])
}

// matchesND checks what RFC 4861 7.1.2 asks of an advertisement, but for the
// checksum.
func (e *expected) matchesND(ip []byte) bool {
	if len(ip) < ipv6Header+ndLength || ip[0]>>4 != 6 || ip[6] != icmpv6 || ip[7] != hopLimit {
		return false
	}
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if n < ndLength || n > len(ip)-ipv6Header {
		return false
	}
	nd := ip[ipv6Header:]
	to, target := e.local.As16(), e.target.As16()
	const solicited = 0x40
	return bytes.Equal(ip[24:40], to[:]) && nd[0] == advertise && nd[1] == 0 && nd[4]&solicited != 0 && bytes.Equal(nd[8:24], target[:])
}
