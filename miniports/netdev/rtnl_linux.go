package netdev

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// skipStats is RTEXT_FILTER_SKIP_STATS, which x/sys lacks.
const skipStats = 1 << 3

// linkMessage is what the watcher wants to know of one RTM_NEWLINK or
// RTM_DELLINK. Byte slices point into the message.
type linkMessage struct {
	index   int
	flags   uint32
	name    []byte
	kind    []byte
	mac     ndiscore.MAC
	mtu     int
	moved   bool // RTM_DELLINK because it left for another namespace
	movedTo int  // that namespace's id here, when moved
	reindex int  // its number there, when moved
}

// nextMessage cuts the first netlink message off b; ok is false at the end and
// at anything that is not a whole message.
func nextMessage(b []byte) (h unix.NlMsghdr, body, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, false
	}
	h.Len = binary.NativeEndian.Uint32(b)
	h.Type = binary.NativeEndian.Uint16(b[4:])
	h.Flags = binary.NativeEndian.Uint16(b[6:])
	h.Seq = binary.NativeEndian.Uint32(b[8:])
	h.Pid = binary.NativeEndian.Uint32(b[12:])
	if h.Len < unix.SizeofNlMsghdr || uint64(h.Len) > uint64(len(b)) {
		return h, nil, nil, false
	}
	body = b[unix.SizeofNlMsghdr:h.Len]
	rest = b[min(align4(int(h.Len)), len(b)):]
	return h, body, rest, true
}

// nextAttribute cuts the first attribute off b.
func nextAttribute(b []byte) (kind uint16, value, rest []byte, ok bool) {
	if len(b) < unix.SizeofRtAttr {
		return 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < unix.SizeofRtAttr || n > len(b) {
		return 0, nil, nil, false
	}
	kind = binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	return kind, b[unix.SizeofRtAttr:n], b[min(align4(n), len(b)):], true
}

// parseLink reads the body of RTM_NEWLINK or RTM_DELLINK. ok is false for
// messages about something other than the link itself: a bridge tells of its
// ports in the same group with messages of its own family, and its "delete"
// means that the port left the bridge.
func parseLink(body []byte) (m linkMessage, ok bool) {
	if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
		return m, false
	}
	m.index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	m.flags = binary.NativeEndian.Uint32(body[8:])
	if m.index <= 0 {
		return m, false
	}
	for b := body[unix.SizeofIfInfomsg:]; ; {
		kind, value, rest, more := nextAttribute(b)
		if !more {
			return m, true
		}
		b = rest
		switch kind {
		case unix.IFLA_IFNAME:
			m.name = zeroTerminated(value)
		case unix.IFLA_ADDRESS:
			if len(value) == len(m.mac) {
				copy(m.mac[:], value)
			}
		case unix.IFLA_MTU:
			if len(value) == 4 {
				m.mtu = int(binary.NativeEndian.Uint32(value))
			}
		case unix.IFLA_NEW_NETNSID:
			if len(value) == 4 {
				m.moved = true
				m.movedTo = int(int32(binary.NativeEndian.Uint32(value)))
			}
		case unix.IFLA_NEW_IFINDEX:
			if len(value) == 4 {
				m.reindex = int(int32(binary.NativeEndian.Uint32(value)))
			}
		case unix.IFLA_LINKINFO:
			for in := value; ; {
				kind, value, rest, more := nextAttribute(in)
				if !more {
					break
				}
				in = rest
				if kind == unix.IFLA_INFO_KIND {
					m.kind = zeroTerminated(value)
				}
			}
		}
	}
}

func zeroTerminated(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

func align4(n int) int { return (n + 3) &^ 3 }

// appendDump appends an RTM_GETLINK request for every link, numbered seq, that
// leaves the statistics out.
func appendDump(b []byte, seq uint32) []byte {
	const length = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg + unix.SizeofRtAttr + 4
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, length)
	b = ne.AppendUint16(b, unix.RTM_GETLINK)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
	b = ne.AppendUint16(b, unix.SizeofRtAttr+4)
	b = ne.AppendUint16(b, unix.IFLA_EXT_MASK)
	return ne.AppendUint32(b, skipStats)
}
