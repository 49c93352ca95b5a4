package netdevtest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Datagram is the frame with number seq of an UDP flow, by its source port.
func Datagram(flow uint16, seq uint32) []byte {
	const l4 = ndiscore.EthernetHeader + 20
	b := make([]byte, l4+8+18)
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0, 0x45})
	be := binary.BigEndian
	be.PutUint16(b[16:], uint16(len(b)-ndiscore.EthernetHeader))
	b[22], b[23] = 64, unix.IPPROTO_UDP
	copy(b[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	be.PutUint16(b[24:], ^ndiscore.Checksum(b[14:34], 0))
	be.PutUint16(b[l4:], flow)
	be.PutUint16(b[l4+2:], 9)
	be.PutUint16(b[l4+4:], 8+18)
	be.PutUint32(b[l4+8:], seq)
	return b
}

// FlowOf reads what Datagram wrote, and whether it did.
func FlowOf(b []byte) (flow uint16, seq uint32, ok bool) {
	const l4 = ndiscore.EthernetHeader + 20
	if len(b) < l4+12 || b[12] != 8 || b[13] != 0 || b[23] != unix.IPPROTO_UDP || b[l4+3] != 9 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(b[l4:]), binary.BigEndian.Uint32(b[l4+8:]), true
}
