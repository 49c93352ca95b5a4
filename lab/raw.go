package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RawOptions changes a raw socket. The zero value sees every frame that arrives and has no virtio-net header.
type RawOptions struct {
	VnetHeader     bool // exchange offload meta data with the kernel: see VnetHeader
	NotPromiscuous bool // only frames for the interface's own address, broadcast and multicast
}

// VnetHeader is struct virtio_net_hdr: what is left to do to a frame (checksum, segmentation).
type VnetHeader struct {
	Flags, GSOType        uint8
	HdrLen, GSOSize       uint16
	CsumStart, CsumOffset uint16
}

const (
	vnetHeaderLen = 10
	vlanHeaderLen = 4

	// VnetNeedsChecksum in Flags: the checksum from CsumStart on is to be stored CsumOffset bytes after it.
	VnetNeedsChecksum = 1
	// VnetDataValid in Flags: the checksum was found right.
	VnetDataValid = 2
)

// RawFrame is a frame as it was on the wire, VLAN tag included.
type RawFrame struct {
	Data            []byte
	Vnet            VnetHeader // with RawOptions.VnetHeader
	ChecksumPending bool       // the sender left the checksum to hardware that is not there: do not judge it
}

// RawSocket sends and receives whole frames on one interface. It does not see what its host sends.
type RawSocket struct {
	ifname, host string
	s            *socket
	vnet         bool
	forget       func()
}

// OpenRaw opens a raw socket on an interface; frames that arrive from then on wait in it. Close it, or let
// the lab do so.
func (h *Host) OpenRaw(ifname string, o RawOptions) (*RawSocket, error) {
	if h.err != nil {
		return nil, h.err
	}
	index := 0
	err := h.withLink(ifname, "open a raw socket on", func(l netlink.Link) error {
		index = l.Attrs().Index
		return nil
	})
	if err != nil {
		return nil, h.lab.check(err)
	}
	r := &RawSocket{ifname: ifname, host: h.name, vnet: o.VnetHeader}
	// Protocol 0 until it is bound: otherwise it would read every interface for a moment.
	r.s, err = h.openSocket(unix.AF_PACKET, unix.SOCK_RAW, 0, func(fd int) error { return setUpRaw(fd, index, o) })
	if err != nil {
		return nil, h.lab.check(fmt.Errorf("lab: %s: open a raw socket on %s: %w", h.name, ifname, err))
	}
	r.forget = h.lab.OnClose("raw socket on "+ifname+" of "+h.name, r.s.closeOnce)
	return r, nil
}

func setUpRaw(fd, index int, o RawOptions) error {
	opts := []struct {
		name string
		opt  int
		on   bool
	}{
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING, true},
		{"PACKET_AUXDATA", unix.PACKET_AUXDATA, true},
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR, o.VnetHeader},
	}
	for _, x := range opts {
		if !x.on {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, x.opt, 1); err != nil {
			return fmt.Errorf("setsockopt %s: %w", x.name, err)
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // a bigger one only helps
	if !o.NotPromiscuous {
		mreq := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return fmt.Errorf("be promiscuous: %w", err)
		}
	}
	all := uint16(unix.ETH_P_ALL)
	err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: index})
	return os.NewSyscallError("bind", err)
}

// Send sends a frame as it is, from the Ethernet header on; a VLAN tag is part of it.
func (r *RawSocket) Send(frame []byte) error { return r.SendVnet(VnetHeader{}, frame) }

// SendVnet sends a frame with work left to do, on a socket opened with VnetHeader.
func (r *RawSocket) SendVnet(v VnetHeader, frame []byte) error {
	if !r.vnet && v != (VnetHeader{}) {
		return fmt.Errorf("lab: %s: send on %s: the socket was opened without RawOptions.VnetHeader", r.host, r.ifname)
	}
	if r.vnet {
		b := make([]byte, 0, vnetHeaderLen+len(frame))
		b = append(b, v.Flags, v.GSOType)
		for _, x := range []uint16{v.HdrLen, v.GSOSize, v.CsumStart, v.CsumOffset} {
			b = binary.NativeEndian.AppendUint16(b, x)
		}
		frame = append(b, frame...)
	}
	if err := r.s.f.SetWriteDeadline(time.Now().Add(eventuallyLimit)); err != nil {
		return fmt.Errorf("lab: %s: send on %s: %w", r.host, r.ifname, err)
	}
	if err := r.s.send(frame, nil); err != nil {
		return fmt.Errorf("lab: %s: send %d bytes on %s: %w", r.host, len(frame), r.ifname, err)
	}
	return nil
}

// Recv returns the next frame that want accepts (any frame when want is nil); others are dropped. It gives
// up when ctx ends, after ten seconds when that has no deadline. Call it from one goroutine at a time.
func (r *RawSocket) Recv(ctx context.Context, want func(RawFrame) bool) (RawFrame, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(eventuallyLimit)
	}
	fail := func(err error) (RawFrame, error) {
		if cerr := ctx.Err(); cerr != nil {
			err = ctxErr(ctx)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ErrTimeout
		}
		return RawFrame{}, fmt.Errorf("lab: %s: receive on %s: %w", r.host, r.ifname, err)
	}
	if err := r.s.f.SetReadDeadline(deadline); err != nil {
		return fail(err)
	}
	defer r.s.interruptBy(ctx)()
	buf, oob := make([]byte, 1<<16+vnetHeaderLen+64), make([]byte, 128)
	seen := 0
	for {
		n, oobn, flags, _, err := r.s.recv(buf, oob)
		if err != nil {
			if seen > 0 {
				err = fmt.Errorf("%w (%d other frames came)", err, seen)
			}
			return fail(err)
		}
		if flags&unix.MSG_TRUNC != 0 {
			return fail(errors.New("the frame is larger than 64 KiB"))
		}
		f, err := r.parse(buf[:n], oob[:oobn])
		if err != nil {
			return fail(err)
		}
		if want == nil || want(f) {
			return f, nil
		}
		seen++
	}
}

// parse copies the frame and puts the VLAN tag, which the kernel keeps apart, back where it was.
func (r *RawSocket) parse(b, oob []byte) (RawFrame, error) {
	var f RawFrame
	if r.vnet {
		if len(b) < vnetHeaderLen {
			return f, errors.New("no virtio-net header")
		}
		u16 := func(i int) uint16 { return binary.NativeEndian.Uint16(b[i:]) }
		f.Vnet = VnetHeader{Flags: b[0], GSOType: b[1], HdrLen: u16(2), GSOSize: u16(4), CsumStart: u16(6), CsumOffset: u16(8)}
		b = b[vnetHeaderLen:]
	}
	status, tpid, tci := auxdata(oob)
	f.ChecksumPending = status&unix.TP_STATUS_CSUMNOTREADY != 0
	const macs = 12
	if status&unix.TP_STATUS_VLAN_VALID == 0 || len(b) < macs {
		f.Data = append([]byte(nil), b...)
		return f, nil
	}
	f.Data = make([]byte, 0, len(b)+vlanHeaderLen)
	f.Data = append(f.Data, b[:macs]...)
	f.Data = binary.BigEndian.AppendUint16(f.Data, tpid)
	f.Data = binary.BigEndian.AppendUint16(f.Data, tci)
	f.Data = append(f.Data, b[macs:]...)
	if f.Vnet.Flags&VnetNeedsChecksum != 0 {
		f.Vnet.CsumStart += vlanHeaderLen
	}
	if f.Vnet.HdrLen != 0 {
		f.Vnet.HdrLen += vlanHeaderLen
	}
	return f, nil
}

// auxdata reads struct tpacket_auxdata: status, len, snaplen (32 bits each), mac, net, tci, tpid (16 each).
func auxdata(oob []byte) (status uint32, tpid, tci uint16) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0, 0, 0
		}
		if h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= 20 {
			status = binary.NativeEndian.Uint32(data)
			tci, tpid = binary.NativeEndian.Uint16(data[16:]), binary.NativeEndian.Uint16(data[18:])
			if status&unix.TP_STATUS_VLAN_TPID_VALID == 0 {
				tpid = unix.ETH_P_8021Q
			}
			return status, tpid, tci
		}
		oob = rest
	}
	return 0, 0, 0
}

// Close lets go of the socket. It may be called again.
func (r *RawSocket) Close() error {
	r.forget()
	return r.s.closeOnce()
}
