//go:build linux

package ndiscore_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestFinishIsTheKernels sends unfinished frames into a device that can do
// nothing by itself, so that the kernel's own software finishes them, and
// compares what arrives with what this package makes of them, byte by byte.
//
//	AF_PACKET + virtio_net_hdr → a0 (offloads off) ── b0 → AF_PACKET
func TestFinishIsTheKernels(t *testing.T) {
	const mtu = 9000
	l := lab.NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	for _, h := range []*lab.Host{a, b} { // nobody else shall talk on this cable
		for _, k := range []string{"all", "default"} {
			if err := h.Sysctl("net/ipv6/conf/"+k+"/disable_ipv6", "1"); err != nil {
				t.Log(err)
			}
		}
	}
	if err := l.Veth(a, "a0", b, "b0", lab.VethOptions{MTU: mtu}); err != nil {
		t.Fatal(err)
	}
	if err := a.Offloads("a0", false); err != nil {
		t.Fatal(err)
	}
	if err := b.Offloads("b0", false); err != nil {
		t.Fatal(err)
	}
	tx, rx := packetSocket(t, a, "a0", 0), packetSocket(t, b, "b0", unix.ETH_P_ALL)
	if err := unix.SetsockoptInt(tx, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		t.Fatalf("PACKET_VNET_HDR: %v", err)
	}
	if err := unix.SetsockoptInt(rx, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		t.Fatalf("PACKET_AUXDATA: %v", err)
	}
	// Best effort: without the right to it, what the system allows must do.
	if unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		_ = unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}

	seed := uint64(time.Now().UnixNano())
	random := 300
	if testing.Short() {
		random = 50
	}
	compared, packets := 0, 0
	for i, c := range ndiscore.KernelCases(seed, random, mtu) {
		t.Run(c.Name, func(t *testing.T) {
			ours, err := c.FinishForTest(mtu)
			if err != nil {
				t.Fatal(err)
			}
			_, err = unix.Write(tx, append(vnetHeader(c), c.Frame...))
			if errors.Is(err, unix.EINVAL) && c.Offload.GSO == ndiscore.GSOUDPL4 {
				t.Skip("this kernel takes no VIRTIO_NET_HDR_GSO_UDP_L4 from a packet socket (Linux 6.2 does)")
			}
			if err != nil {
				t.Fatalf("the kernel refuses the frame: %v", err)
			}
			mark := binary.BigEndian.AppendUint32([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, uint32(i))
			mark = append(mark, make([]byte, 60-len(mark))...)
			if _, err := unix.Write(tx, append(make([]byte, 10), mark...)); err != nil {
				t.Fatalf("send the mark: %v", err)
			}
			theirs, err := receiveUntil(rx, mark)
			if err != nil {
				t.Fatal(err)
			}
			if len(theirs) != len(ours) {
				t.Fatalf("the kernel makes %d packets of it, we make %d", len(theirs), len(ours))
			}
			for k := range ours {
				if !bytes.Equal(ours[k], theirs[k]) {
					n := min(c.Head, len(ours[k]), len(theirs[k]))
					t.Fatalf("packet %d of %d differs; ours, %d bytes:\n%stheir %d bytes:\n%s", k, len(ours),
						len(ours[k]), hex.Dump(ours[k][:n]), len(theirs[k]), hex.Dump(theirs[k][:n]))
				}
			}
			compared, packets = compared+1, packets+len(ours)
		})
	}
	t.Logf("%d frames, %d packets: all as the kernel makes them (seed %d)", compared, packets, seed)
}

// packetSocket opens a raw packet socket on one interface of a host. Protocol 0
// receives nothing.
func packetSocket(t *testing.T, h *lab.Host, ifname string, proto uint16) int {
	t.Helper()
	fd := -1
	err := h.Do(func() error {
		i, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		be := proto<<8 | proto>>8
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be, Ifindex: i.Index})
	})
	if fd >= 0 {
		t.Cleanup(func() { unix.Close(fd) })
	}
	if err != nil {
		t.Fatalf("packet socket on %s: %v", ifname, err)
	}
	return fd
}

// vnetHeader is the struct virtio_net_hdr that says what c.Offload says.
func vnetHeader(c ndiscore.KernelCase) []byte {
	o := c.Offload
	h := make([]byte, 2, 10)
	if o.Flags&ndiscore.NeedsCsum != 0 {
		h[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	}
	switch o.GSO {
	case ndiscore.GSOTCPv4:
		h[1] = 1
	case ndiscore.GSOTCPv6:
		h[1] = 4
	case ndiscore.GSOUDPL4:
		h[1] = 5
	}
	if o.Flags&ndiscore.GSOECN != 0 {
		h[1] |= 0x80
	}
	for _, v := range []uint16{uint16(c.Head), o.GSOSize, o.CsumStart, o.CsumOffset} {
		h = binary.NativeEndian.AppendUint16(h, v)
	}
	return h
}

// receiveUntil collects packets until mark arrives, each with its outer VLAN tag
// back in place: the kernel takes it off before a packet socket sees it.
func receiveUntil(fd int, mark []byte) (packets [][]byte, err error) {
	buf, oob := make([]byte, 1<<17), make([]byte, 256)
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("timed out after %d packets: the kernel dropped something", len(packets))
		}
		tv := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return nil, fmt.Errorf("SO_RCVTIMEO: %w", err)
		}
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		p := slices.Clone(buf[:n])
		if bytes.Equal(p, mark) {
			return packets, nil
		}
		if len(p) < 14 || !bytes.Equal(p[:12], mark[:12]) || bytes.Equal(p[:14], mark[:14]) {
			continue // not of this case
		}
		if p, err = retag(p, oob[:oobn]); err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
}

// retag puts the VLAN tag back that struct tpacket_auxdata carries.
func retag(p, oob []byte) ([]byte, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("auxiliary data: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		status := binary.NativeEndian.Uint32(m.Data)
		if status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		tag := binary.BigEndian.AppendUint16(nil, binary.NativeEndian.Uint16(m.Data[18:]))
		tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:]))
		return slices.Insert(p, 12, tag...), nil
	}
	return p, nil
}
