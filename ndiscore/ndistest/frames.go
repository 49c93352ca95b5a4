package ndistest

import (
	"encoding/binary"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// testEtherType marks the kit's own frames (IEEE 802 Local Experimental 1), so
// that what a kernel says by itself can be told from them.
const testEtherType = 0x88b5

// frameHeader is what Frame writes in front of its pattern: Ethernet and a number.
const frameHeader = ndiscore.EthernetHeader + 4

// Frame is a frame of n bytes, at least 18, with number id in it.
func Frame(dst, src ndiscore.MAC, id uint32, n int) []byte {
	f := make([]byte, max(n, frameHeader))
	copy(f, dst[:])
	copy(f[6:], src[:])
	binary.BigEndian.PutUint16(f[12:], testEtherType)
	binary.BigEndian.PutUint32(f[14:], id)
	for i := frameHeader; i < len(f); i++ {
		f[i] = byte(i) + byte(id)
	}
	return f
}

// FrameID reads the number of a frame made by Frame; false for any other.
func FrameID(f []byte) (uint32, bool) {
	if len(f) < frameHeader || binary.BigEndian.Uint16(f[12:]) != testEtherType {
		return 0, false
	}
	return binary.BigEndian.Uint32(f[14:]), true
}
