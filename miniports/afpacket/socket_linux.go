package afpacket

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Geometry of the receive ring (Documentation/networking/packet_mmap.rst).
const (
	blockBytes = 1 << 20

	// slotHeader is what the kernel puts at a slot's start: its tpacket2_hdr
	// and a sockaddr_ll.
	slotHeader = (unix.SizeofTpacket2Hdr+15)&^15 + unix.SizeofSockaddrLinklayer
	// slotReserve makes room for the headroom of a frame, and aligns its IP
	// header to 16 bytes.
	slotReserve = 70
	// slotIP is where the kernel puts the IP header then.
	slotIP = (slotHeader+16+15)&^15 + slotReserve + netdev.VnetHeader

	// receiveBuffer holds the frames that are too long for a slot.
	receiveBuffer = 8 << 20
	// sendBuffer bounds the frames on their way out through a real NIC.
	sendBuffer = 4 << 20
)

// slotLength is a slot for a packet of mtu bytes behind two VLAN tags, one of
// which the kernel leaves in front of it: an odd number of cache lines, so that
// the headers of neighbouring frames do not compete for the same places in the
// CPU's cache.
func slotLength(mtu int) int {
	const line = 64
	lines := (slotIP+4+min(mtu, maxSlotMTU)+line-1)/line | 1
	return lines * line
}

// maxSlotMTU bounds a slot; loopback has an MTU of 65536.
const maxSlotMTU = 9216

// step performs one step of opening the socket and says in its error which one.
// Tests let the Nth fail.
type step func(what string, f func() error) error

func realStep(what string, f func() error) error {
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// socket is a bound AF_PACKET socket with its receive ring.
type socket struct {
	fd      int
	index   int
	grouped bool // member of a fanout group
	ring    []byte
	slots   [][]byte
	send    int // bytes that it may have on their way out
}

// openSockets opens one socket per queue on interface number index of ns, with
// rings for packets of mtu bytes, deaf until hear. Several of them form a fanout
// group.
//
// The group is PACKET_FANOUT_HASH, by the kernel's symmetric flow hash: a flow
// stays with its queue. It is without PACKET_FANOUT_FLAG_ROLLOVER: that would
// pass on what does not fit into a queue's ring to another queue, where it
// overtakes what waits in the first. A queue that is too slow drops, as a single
// one does.
func openSockets(do step, ns *netdev.Namespace, index, mtu, queues, ringMiB int) (socks []*socket, err error) {
	defer func() {
		if err != nil {
			for _, s := range socks {
				s.close()
			}
			socks = nil
		}
	}()
	for range queues {
		s, err := openSocket(do, ns, index, mtu, max(1, ringMiB/queues))
		if err != nil {
			return socks, err
		}
		socks = append(socks, s)
		if queues == 1 {
			return socks, nil
		}
		err = do("join the fanout group", func() error { return s.join(socks[0]) })
		if err != nil {
			return socks, err
		}
	}
	return socks, nil
}

// join puts the socket into the fanout group of first, which may be itself: then
// it makes a group with a number that nobody else has (FLAG_UNIQUEID). The
// kernel does not heed a member's PACKET_IGNORE_OUTGOING, but the group's own
// flag, and before Linux 6.0 not that either; see hear.
func (s *socket) join(first *socket) error {
	const kind = unix.PACKET_FANOUT_HASH | unix.PACKET_FANOUT_FLAG_IGNORE_OUTGOING
	how := kind | unix.PACKET_FANOUT_FLAG_UNIQUEID
	if s != first {
		group, err := unix.GetsockoptInt(first.fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
		if err != nil {
			return err
		}
		how = kind<<16 | group&0xffff
	} else {
		how <<= 16
	}
	s.grouped = true
	return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT, how)
}

// Filters of a socket, in classic BPF.
var (
	hearNothing = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	// hearArriving takes what is not PACKET_OUTGOING whole.
	hearArriving = []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0xfffff000 + 4}, // SKF_AD_OFF + SKF_AD_PKTTYPE
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
)

// filter has the socket take only what f lets through.
func (s *socket) filter(f []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
}

// deafen keeps further frames out of the ring.
func (s *socket) deafen() error { return s.filter(hearNothing) }

// hear lets them in again. A kernel that does not know the fanout flag does not
// say so, hence the filter for what we sent ourselves.
func (s *socket) hear() error {
	if s.grouped {
		return s.filter(hearArriving)
	}
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
}

// openSocket opens a socket on the interface of ns. It is made without a
// protocol, and bound last: a socket made with one hears every interface until
// it is bound. It is deaf even then: one that is to join a fanout group would
// hear what the group hears until it has joined.
func openSocket(do step, ns *netdev.Namespace, index, mtu, ringMiB int) (s *socket, err error) {
	s = &socket{fd: -1, index: index}
	defer func() {
		if err != nil {
			s.close()
			s = nil
		}
	}()
	err = do("open a packet socket", func() error {
		return ns.Do(func() (err error) {
			s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			return err
		})
	})
	if errors.Is(err, fs.ErrPermission) {
		return s, fmt.Errorf("%w: it needs CAP_NET_RAW in the interface's network namespace: run as root, or setcap cap_net_raw,cap_net_admin+ep", err)
	}
	if err != nil {
		return s, err
	}
	if err = do("set SO_ATTACH_FILTER", s.deafen); err != nil {
		return s, err
	}
	for _, o := range []struct {
		name  string
		which int
		value int
	}{
		{"PACKET_VERSION", unix.PACKET_VERSION, unix.TPACKET_V2},
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR, 1},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING, 1},
		{"PACKET_RESERVE", unix.PACKET_RESERVE, slotReserve},
		{"PACKET_COPY_THRESH", unix.PACKET_COPY_THRESH, 1},
	} {
		err = do("set "+o.name, func() error { return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, o.which, o.value) })
		if err != nil {
			return s, err
		}
	}
	// Best effort: without the right, up to net.core.wmem_max and rmem_max.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	err = do("read SO_SNDBUF", func() (err error) {
		s.send, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return err
	})
	if err != nil {
		return s, err
	}
	if err = s.makeRing(do, slotLength(mtu), ringMiB); err != nil {
		return s, err
	}
	err = do("bind to the interface", func() error {
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(unix.ETH_P_ALL), Ifindex: index})
	})
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: it vanished meanwhile: %w", err, ndiscore.ErrDeviceAbsent)
	}
	return s, err
}

// makeRing has the kernel allocate slots of the given length in blocks of a MiB
// each, and maps them.
func (s *socket) makeRing(do step, slot, blocks int) error {
	perBlock := blockBytes / slot
	req := &unix.TpacketReq{Block_size: blockBytes, Block_nr: uint32(blocks), Frame_size: uint32(slot), Frame_nr: uint32(blocks * perBlock)}
	err := do("make a receive ring", func() error {
		return unix.SetsockoptTpacketReq(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req)
	})
	if errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w: it takes %d MiB; a smaller ring_mib takes less", err, blocks)
	}
	if err != nil {
		return err
	}
	err = do("map the receive ring", func() (err error) {
		s.ring, err = unix.Mmap(s.fd, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return err
	}
	s.slots = make([][]byte, 0, req.Frame_nr)
	for b := range blocks {
		for f := range perBlock {
			at := b*blockBytes + f*slot
			s.slots = append(s.slots, s.ring[at:at+slot:at+slot])
		}
	}
	return nil
}

// hardware is the interface's ARPHRD_ type, as the bound socket knows it.
func (s *socket) hardware() (uint16, error) {
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, err
	}
	ll, ok := sa.(*unix.SockaddrLinklayer)
	if !ok {
		return 0, fmt.Errorf("unexpected address %T", sa)
	}
	return ll.Hatype, nil
}

// membership is what a socket has the interface receive beyond its own unicast
// and broadcast.
type membership struct {
	kind  uint16       // PACKET_MR_PROMISC, _ALLMULTI or _MULTICAST
	group ndiscore.MAC // of the last one
}

func (m membership) String() string {
	switch m.kind {
	case unix.PACKET_MR_PROMISC:
		return "promiscuous mode"
	case unix.PACKET_MR_ALLMULTI:
		return "all-multicast mode"
	}
	return "group " + m.group.String()
}

// change joins or leaves. The kernel counts memberships, and drops this socket's
// when it is closed.
func (s *socket) change(m membership, join bool) error {
	option := unix.PACKET_DROP_MEMBERSHIP
	if join {
		option = unix.PACKET_ADD_MEMBERSHIP
	}
	r := &unix.PacketMreq{Ifindex: int32(s.index), Type: m.kind}
	if m.kind == unix.PACKET_MR_MULTICAST {
		r.Alen = uint16(copy(r.Address[:], m.group[:]))
	}
	err := unix.SetsockoptPacketMreq(s.fd, unix.SOL_PACKET, option, r)
	if !join && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)) {
		return nil // gone with the interface
	}
	return err
}

// dropped takes the kernel's count of frames that found the ring full.
func (s *socket) dropped() uint64 {
	st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(st.Drops)
}

// takeError reads and clears the socket's pending error.
func (s *socket) takeError() error {
	v, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v != 0 {
		return unix.Errno(v)
	}
	return nil
}

// close frees what is there, in reverse order of its making.
func (s *socket) close() {
	if s.ring != nil {
		// It fails only for memory that is not a mapping.
		_ = unix.Munmap(s.ring)
		s.ring, s.slots = nil, nil
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// header is the slot's header, written by the kernel.
func header(slot []byte) *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(unsafe.SliceData(slot)))
}
