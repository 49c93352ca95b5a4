package netdev

import (
	"encoding/binary"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Lengths of a virtio_net_hdr: the legacy one, and the one with num_buffers
// that follows it in virtio 1.0 and with mergeable buffers.
const (
	VnetHeader   = 10
	VnetHeaderV1 = 12
)

// Values of virtio_net_hdr (virtio 1.2, 5.1.6).
const (
	vnetNeedsCsum = 1
	vnetDataValid = 2

	vnetGSONone  = 0
	vnetGSOTCPv4 = 1
	vnetGSOTCPv6 = 4
	vnetGSOUDPL4 = 5
	vnetGSOECN   = 0x80
)

// DecodeVnet reads the virtio_net_hdr at the start of hdr, at least VnetHeader
// bytes, that came with a frame of n bytes. The fields are in the machine's own
// byte order, as TAP and AF_PACKET use them unless told otherwise.
//
// Whatever the header says, a decoded Offload points inside the frame and holds
// no field without meaning. Whether it fits the frame's own headers is for
// Frame.CheckOffload to find out.
func DecodeVnet(hdr []byte, n int, o *ndiscore.Offload) ndiscore.DropReason {
	_ = hdr[VnetHeader-1]
	*o = ndiscore.Offload{}
	if binary.NativeEndian.Uint16(hdr) == 0 { // no flags, no GSO: nearly every small frame
		return ndiscore.DropNone
	}
	return decodeVnet(hdr, n, o)
}

func decodeVnet(hdr []byte, n int, o *ndiscore.Offload) ndiscore.DropReason {
	flags, gso := hdr[0], hdr[1]
	if flags&^(vnetNeedsCsum|vnetDataValid) != 0 {
		return ndiscore.DropBadOffload
	}
	switch gso &^ vnetGSOECN {
	case vnetGSONone:
	case vnetGSOTCPv4:
		o.GSO = ndiscore.GSOTCPv4
	case vnetGSOTCPv6:
		o.GSO = ndiscore.GSOTCPv6
	case vnetGSOUDPL4:
		o.GSO = ndiscore.GSOUDPL4
	default: // among them 3, UDP fragmentation offload, which nobody is told that we take
		return ndiscore.DropBadOffload
	}
	if gso&vnetGSOECN != 0 {
		if o.GSO != ndiscore.GSOTCPv4 && o.GSO != ndiscore.GSOTCPv6 {
			return ndiscore.DropBadOffload
		}
		o.Flags |= ndiscore.GSOECN
	}
	if o.GSO != ndiscore.GSONone {
		o.GSOSize = binary.NativeEndian.Uint16(hdr[4:])
		if o.GSOSize == 0 {
			return ndiscore.DropBadOffload
		}
		o.HdrLen = uint16(min(int(binary.NativeEndian.Uint16(hdr[2:])), n))
	}
	switch {
	case flags&vnetNeedsCsum != 0:
		start, offset := binary.NativeEndian.Uint16(hdr[6:]), binary.NativeEndian.Uint16(hdr[8:])
		if start < ndiscore.EthernetHeader || int(start)+int(offset)+2 > n {
			return ndiscore.DropBadOffload
		}
		o.Flags |= ndiscore.NeedsCsum
		o.CsumStart, o.CsumOffset = start, offset
	case flags&vnetDataValid != 0:
		o.Flags |= ndiscore.DataValid
	}
	return ndiscore.DropNone
}

// EncodeVnet writes o as a virtio_net_hdr over all of hdr, VnetHeader or
// VnetHeaderV1 bytes, for a frame of n bytes.
func EncodeVnet(hdr []byte, n int, o *ndiscore.Offload) {
	clear(hdr)
	if o.Flags == 0 && o.GSO == ndiscore.GSONone {
		return
	}
	if o.GSO != ndiscore.GSONone {
		switch o.GSO {
		case ndiscore.GSOTCPv4:
			hdr[1] = vnetGSOTCPv4
		case ndiscore.GSOTCPv6:
			hdr[1] = vnetGSOTCPv6
		case ndiscore.GSOUDPL4:
			hdr[1] = vnetGSOUDPL4
		}
		if o.Flags&ndiscore.GSOECN != 0 && o.GSO != ndiscore.GSOUDPL4 {
			hdr[1] |= vnetGSOECN
		}
		// The kernel refuses a hint beyond the frame's end.
		binary.NativeEndian.PutUint16(hdr[2:], uint16(min(int(o.HdrLen), n)))
		binary.NativeEndian.PutUint16(hdr[4:], o.GSOSize)
	}
	switch {
	case o.Flags&ndiscore.NeedsCsum != 0:
		hdr[0] = vnetNeedsCsum
		binary.NativeEndian.PutUint16(hdr[6:], o.CsumStart)
		binary.NativeEndian.PutUint16(hdr[8:], o.CsumOffset)
	case o.Flags&ndiscore.DataValid != 0:
		hdr[0] = vnetDataValid
	}
}
