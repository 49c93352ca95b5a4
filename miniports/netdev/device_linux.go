package netdev

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Flags reads an interface's IFF_ flags through fd, a socket in its namespace.
func Flags(fd int, name string) (uint16, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return 0, err
	}
	return r.Uint16(), nil
}

// MTU reads an interface's MTU in bytes through fd, a socket in its namespace.
func MTU(fd int, name string) (int, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, r); err != nil {
		return 0, err
	}
	return int(r.Uint32()), nil
}

// ethtoolRequest is struct ifreq with a pointer to a struct ethtool_cmd
// (linux/ethtool.h) in its union.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data *[44]byte
	_    [16]byte
}

// Speed asks for an interface's speed in bit/s through fd, a socket in its
// namespace: 0 when unknown. It asks by ETHTOOL_GSET, the old form, which every
// kernel still answers.
func Speed(fd int, name string) uint64 {
	const (
		getSettings = 1          // ETHTOOL_GSET
		speed       = 12         // where the lower 16 bits stand, in Mbit/s
		speedHi     = 28         // and the upper ones
		unknown     = ^uint32(0) // SPEED_UNKNOWN
	)
	ne := binary.NativeEndian
	r := ethtoolRequest{data: new([44]byte)}
	ne.PutUint32(r.data[:], getSettings)
	copy(r.name[:len(r.name)-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return 0
	}
	mbit := uint32(ne.Uint16(r.data[speedHi:]))<<16 | uint32(ne.Uint16(r.data[speed:]))
	if mbit == unknown {
		return 0
	}
	return uint64(mbit) * 1_000_000
}

// ProbeOffloads finds out which unfinished frames this kernel takes from a
// packet socket: some releases refuse what others of the same age take. It
// sends one tiny super-frame of each kind on the namespace's loopback, to a MAC
// address that is nobody's, so the kernel drops it as soon as it has accepted
// it. When loopback is down nothing is known to be wrong.
func ProbeOffloads(ns *Namespace) ndiscore.Capabilities {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return ndiscore.CapAll
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, lo) != nil {
		return ndiscore.CapAll
	}
	to := &unix.SockaddrLinklayer{Ifindex: int(lo.Uint32()), Halen: 6}
	if unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) != nil {
		return ndiscore.CapAll
	}
	caps := ndiscore.CapAll
	for _, p := range []struct {
		cap ndiscore.Capabilities
		gso ndiscore.GSOKind
		ecn bool
	}{
		{ndiscore.CapTSO4, ndiscore.GSOTCPv4, false},
		{ndiscore.CapTSO6, ndiscore.GSOTCPv6, false},
		{ndiscore.CapUSO, ndiscore.GSOUDPL4, false},
		{ndiscore.CapECN, ndiscore.GSOTCPv4, true},
	} {
		if unix.Sendto(fd, probeFrame(p.gso, p.ecn), unix.MSG_DONTWAIT, to) == unix.EINVAL {
			caps &^= p.cap
		}
	}
	return caps
}

// probeFrame is a virtio_net_hdr and a super-frame of the given kind, of two
// segments with 8 bytes each, from loopback to loopback addresses.
func probeFrame(gso ndiscore.GSOKind, ecn bool) []byte {
	const payload = 16
	be := binary.BigEndian
	l4 := ndiscore.EthernetHeader + 20
	if gso == ndiscore.GSOTCPv6 {
		l4 = ndiscore.EthernetHeader + 40
	}
	proto, l4len, csum := byte(unix.IPPROTO_TCP), 20, 16
	if gso == ndiscore.GSOUDPL4 {
		proto, l4len, csum = unix.IPPROTO_UDP, 8, 6
	}
	b := make([]byte, VnetHeader+l4+l4len+payload)
	f := b[VnetHeader:]
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	ip, tp := f[ndiscore.EthernetHeader:], f[l4:]
	if gso == ndiscore.GSOTCPv6 {
		be.PutUint16(f[12:], unix.ETH_P_IPV6)
		ip[0] = 0x60
		be.PutUint16(ip[4:], uint16(l4len+payload))
		ip[6], ip[7] = proto, 1
		ip[23], ip[39] = 1, 1
	} else {
		be.PutUint16(f[12:], unix.ETH_P_IP)
		ip[0] = 0x45
		be.PutUint16(ip[2:], uint16(20+l4len+payload))
		ip[8], ip[9] = 1, proto
		copy(ip[12:], []byte{127, 0, 0, 1, 127, 0, 0, 1})
		be.PutUint16(ip[10:], ^ndiscore.Checksum(ip[:20], 0))
	}
	if proto == unix.IPPROTO_TCP {
		tp[12] = 5 << 4
	} else {
		be.PutUint16(tp[4:], uint16(l4len+payload))
	}
	o := ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: gso, GSOSize: payload / 2, HdrLen: uint16(l4 + l4len),
		CsumStart: uint16(l4), CsumOffset: uint16(csum)}
	if ecn {
		o.Flags |= ndiscore.GSOECN
		tp[13] = 0x80 // CWR
	}
	EncodeVnet(b[:VnetHeader], len(f), &o)
	return b
}
