package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Frames that no ordinary station sends, from a raw socket of one host:
//
//	host a ==[if0]== p0 (TAP) -- bridge or router -- p1 (AF_PACKET) ==[if0]== host b
type oddFrames struct {
	*pair
	sw   *lab.Switch
	raw  [2]*lab.RawSocket
	mac  [2]net.HardwareAddr
	ours net.HardwareAddr // of the bridge's or router's end at a
}

func newOddFrames(t *testing.T, router bool, more string) *oddFrames {
	t.Helper()
	lab.CheckLeaks(t)
	p, text := newPair(t, pairOptions{kinds: [2]string{"tap", "veth"}, router: router, mtu: [2]int{1500, 1500}})
	o := &oddFrames{pair: p, sw: start(t, p.l, text+more)}
	p.address(t)
	for i, h := range []*lab.Host{p.a, p.b} {
		var err error
		o.mac[i], err = h.MAC("if0")
		must(t, err)
		o.raw[i], err = h.OpenRaw("if0", lab.RawOptions{})
		must(t, err)
	}
	infos, err := o.sw.Adapters(t.Context())
	must(t, err)
	for _, a := range infos {
		if a.Name == "lan" || router && a.Name == "p0" {
			o.ours = a.MAC[:]
		}
	}
	return o
}

// frame puts an Ethernet header before a payload that tells frames apart. The
// words between are tags and the type.
func frame(dst, src net.HardwareAddr, id byte, words ...uint16) []byte {
	f := slices.Concat(dst, src)
	for _, w := range words {
		f = binary.BigEndian.AppendUint16(f, w)
	}
	payload := bytes.Repeat([]byte{id}, 64)
	copy(payload, "odd frame")
	return append(f, payload...)
}

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger  = net.HardwareAddr{2, 0, 0x5e, 0, 0x53, 0x77}
	localType = uint16(0x88b5) // IEEE 802 local experimental
)

// TestOddFramesArrive has frames with VLAN tags cross the bridge, from TAP to
// AF_PACKET and back: every byte as it was sent.
func TestOddFramesArrive(t *testing.T) {
	o := newOddFrames(t, false, "")
	for from := range 2 {
		to := 1 - from
		for id, tt := range []struct {
			name string
			dst  net.HardwareAddr
			tags []uint16
		}{
			{"untagged unicast", o.mac[to], nil},
			{"untagged unknown unicast", stranger, nil},
			{"untagged broadcast", everybody, nil},
			{"802.1Q unicast", o.mac[to], []uint16{0x8100, 0x6001}},
			{"802.1Q broadcast", everybody, []uint16{0x8100, 0x0fff}},
			{"802.1Q priority tag", o.mac[to], []uint16{0x8100, 0xe000}},
			{"802.1ad unicast", o.mac[to], []uint16{0x88a8, 0x0005}},
			{"802.1Q twice, unicast", o.mac[to], []uint16{0x8100, 0x0001, 0x8100, 0x0002}},
			{"802.1ad and 802.1Q, unicast", o.mac[to], []uint16{0x88a8, 0x0064, 0x8100, 0x00c8}},
			{"802.1ad and 802.1Q, broadcast", everybody, []uint16{0x88a8, 0x0064, 0x8100, 0x00c8}},
			{"IPv4 multicast", net.HardwareAddr{1, 0, 0x5e, 0, 0, 0x42}, nil},
			{"802.3 with a length", o.mac[to], []uint16{46}},
		} {
			name := map[int]string{0: "TAP to veth", 1: "veth to TAP"}[from]
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				words := append(slices.Clone(tt.tags), localType)
				if tt.name == "802.3 with a length" {
					words = tt.tags
				}
				sent := frame(tt.dst, o.mac[from], byte(id), words...)
				must(t, o.raw[from].Send(sent))
				_, err := o.raw[to].Recv(within(t, 10*time.Second), func(f lab.RawFrame) bool { return bytes.Equal(f.Data, sent) })
				if err != nil {
					t.Errorf("% x did not arrive as it was sent: %v", sent[:30], err)
				}
			})
		}
	}
}

// dropped checks that sending a frame makes exactly one counter of the adapter
// rise, by one.
func (o *oddFrames) dropped(t *testing.T, from int, sent []byte, adapter, reason string) {
	t.Helper()
	before := counters(t, o.sw.Switch)[adapter].RxDropped
	must(t, o.raw[from].Send(sent))
	err := lab.Eventually(within(t, 10*time.Second), "the counter to rise", func() error {
		if n := counters(t, o.sw.Switch)[adapter].RxDropped; n[reason] <= before[reason] {
			return fmt.Errorf("%s counts %v, before %v", adapter, n, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
		return
	}
	after := counters(t, o.sw.Switch)[adapter].RxDropped
	for r, n := range after {
		if want := before[r]; r == reason && n != want+1 || r != reason && n != want {
			t.Errorf("%s counts %d %s, before %d", adapter, n, r, want)
		}
	}
}

// TestOddFramesDropped has each frame dropped for its own reason.
func TestOddFramesDropped(t *testing.T) {
	o := newOddFrames(t, false, "[interface.lan]\non = \"lan\"\naddresses = [\"10.1.0.1/24\", \"fd00:1::1/64\"]\n")
	group := net.HardwareAddr{0x03, 0, 0, 0, 0, 1}
	for from := range 2 {
		me, you := o.mac[from], o.mac[1-from]
		for _, tt := range []struct {
			reason ndiscore.DropReason
			name   string
			frame  []byte
		}{
			{ndiscore.DropVLANStack, "three tags", frame(you, me, 1, 0x88a8, 1, 0x8100, 2, 0x8100, 3, localType)},
			{ndiscore.DropBadSource, "source is a group", frame(you, group, 2, localType)},
			{ndiscore.DropBadSource, "source is everybody", frame(everybody, everybody, 3, localType)},
			{ndiscore.DropBadSource, "source is zero", frame(you, make([]byte, 6), 4, localType)},
			{ndiscore.DropReserved, "spanning tree", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, me, 5, localType)},
			{ndiscore.DropReserved, "LLDP", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, me, 6, 0x88cc)},
			{ndiscore.DropReflection, "source is the bridge itself", frame(you, o.ours, 7, localType)},
			{ndiscore.DropSamePort, "to a station on the same port", frame(me, me, 8, localType)},
		} {
			t.Run(fmt.Sprintf("p%d/%s", from, tt.name), func(t *testing.T) {
				o.dropped(t, from, tt.frame, fmt.Sprintf("p%d", from), tt.reason.String())
			})
		}
	}
	t.Run("cut off in its tag", func(t *testing.T) { // only a TAP: behind a veth the kernel throws it away
		o.dropped(t, 0, slices.Concat(o.mac[1], o.mac[0], []byte{0x81, 0}), "p0", "short")
	})
	t.Run("runt", func(t *testing.T) {
		before := counters(t, o.sw.Switch)["p0"].RxDropped
		if err := o.raw[0].Send(slices.Concat(o.mac[1], o.mac[0])); err == nil {
			o.dropped(t, 0, slices.Concat(o.mac[1], o.mac[0]), "p0", "short")
		} else {
			t.Logf("the kernel sends none: %v (counted: %v)", err, before)
		}
	})
	o.works(t)
}

// works checks that ordinary traffic still passes.
func (o *oddFrames) works(t *testing.T) {
	t.Helper()
	for _, dst := range o.dst {
		r, err := o.a.Ping(within(t, 20*time.Second), dst, lab.PingOptions{Count: 3, Timeout: 5 * time.Second})
		if err = errors.Join(err, r.Err()); err != nil {
			t.Error(err)
		}
	}
}

// udp4 is a UDP packet in IPv4 from a to b, without a UDP checksum.
func udp4(src, dst [4]byte, payload []byte) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	p = append(append(p, src[:]...), dst[:]...)
	p = append(p, 0, 9, 0, 9, 0, 0, 0, 0)
	p = append(p, payload...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	binary.BigEndian.PutUint16(p[10:], ^ndiscore.Checksum(p[:20], 0))
	return p
}

// TestOddFramesRouter gives the router what it has to refuse.
func TestOddFramesRouter(t *testing.T) {
	o := newOddFrames(t, true, "")
	a, b := [4]byte{10, 1, 0, 2}, [4]byte{10, 2, 0, 2}
	payload := bytes.Repeat([]byte("routed?"), 9)
	ether := func(dst net.HardwareAddr, kind uint16, p []byte) []byte {
		return append(binary.BigEndian.AppendUint16(slices.Concat(dst, o.mac[0]), kind), p...)
	}
	spoil := func(i int, v byte) []byte {
		p := udp4(a, b, payload)
		p[i] = v
		return p
	}
	for _, tt := range []struct {
		reason ndiscore.DropReason
		name   string
		frame  []byte
	}{
		{ndiscore.DropNotForUs, "for another station", ether(stranger, 0x0800, udp4(a, b, payload))},
		{ndiscore.DropBadIP, "wrong header checksum", ether(o.ours, 0x0800, spoil(8, 63))},
		{ndiscore.DropBadIP, "version 5", ether(o.ours, 0x0800, spoil(0, 0x55))},
		{ndiscore.DropBadIP, "longer than the frame", ether(o.ours, 0x0800, udp4(a, b, payload)[:60])},
		{ndiscore.DropUnknownNetwork, "of another protocol", ether(o.ours, localType, payload)},
	} {
		t.Run(tt.name, func(t *testing.T) { o.dropped(t, 0, tt.frame, "p0", tt.reason.String()) })
	}
	// The same packet for the right station arrives; nothing before it did.
	must(t, o.raw[0].Send(ether(o.ours, 0x0800, udp4(a, b, payload))))
	seen := 0
	_, err := o.raw[1].Recv(within(t, 10*time.Second), func(f lab.RawFrame) bool {
		if bytes.HasSuffix(f.Data, payload) {
			seen++
		}
		return seen > 0
	})
	if err != nil {
		t.Errorf("a good packet was not routed: %v", err)
	}
	must(t, o.raw[0].Send(ether(o.ours, 0x0800, udp4(a, b, []byte("the last one of this test")))))
	_, err = o.raw[1].Recv(within(t, 10*time.Second), func(f lab.RawFrame) bool {
		if bytes.HasSuffix(f.Data, payload) {
			seen++
		}
		return bytes.HasSuffix(f.Data, []byte("the last one of this test"))
	})
	if err != nil || seen != 1 {
		t.Errorf("the packet arrived %d times (%v)", seen, err)
	}
	o.works(t)
}

// TestLyingOffloads sends frames with a virtio_net_hdr that contradicts them,
// as far as the kernel in between lets them pass. None may hurt the switch.
func TestLyingOffloads(t *testing.T) {
	for _, router := range []bool{false, true} {
		t.Run(map[bool]string{false: "bridge", true: "router"}[router], func(t *testing.T) {
			o := newOddFrames(t, router, "")
			src, dst := [2][4]byte{{10, 1, 0, 2}, {10, 1, 0, 3}}, [2][4]byte{{10, 1, 0, 3}, {10, 1, 0, 2}}
			passed, refused := 0, 0
			for from, h := range []*lab.Host{o.a, o.b} {
				raw, err := h.OpenRaw("if0", lab.RawOptions{VnetHeader: true})
				must(t, err)
				to := o.mac[1-from]
				if router {
					to = o.ours // of p0; the frames of b go nowhere then
				}
				whole := append(binary.BigEndian.AppendUint16(slices.Concat(to, o.mac[from]), 0x0800), udp4(src[from], dst[from], make([]byte, 1000))...)
				const tcp4, udp, tcp6, udpl4, ecn = 1, 3, 4, 5, 0x80
				for _, v := range []lab.VnetHeader{
					{Flags: 1, CsumStart: 34, CsumOffset: 6},
					{Flags: 1, CsumStart: 34, CsumOffset: 0xffff},
					{Flags: 1, CsumStart: 0xffff, CsumOffset: 6},
					{Flags: 1, CsumStart: 0, CsumOffset: 0},
					{Flags: 1, CsumStart: 14, CsumOffset: 10},
					{Flags: 1, CsumStart: uint16(len(whole) - 2), CsumOffset: 0},
					{Flags: 1, CsumStart: uint16(len(whole) - 1), CsumOffset: 0},
					{Flags: 1, CsumStart: 35, CsumOffset: 7},
					{Flags: 2},
					{Flags: 3, CsumStart: 34, CsumOffset: 6},
					{Flags: 0xff, CsumStart: 34, CsumOffset: 6},
					{GSOType: tcp4, GSOSize: 500, HdrLen: 54},
					{Flags: 1, CsumStart: 34, CsumOffset: 16, GSOType: tcp4, GSOSize: 500, HdrLen: 54},
					{Flags: 1, CsumStart: 34, CsumOffset: 16, GSOType: tcp4, GSOSize: 1, HdrLen: 54},
					{Flags: 1, CsumStart: 34, CsumOffset: 16, GSOType: tcp4, GSOSize: 0, HdrLen: 54},
					{Flags: 1, CsumStart: 34, CsumOffset: 16, GSOType: tcp4, GSOSize: 0xffff, HdrLen: 0xffff},
					{Flags: 1, CsumStart: 34, CsumOffset: 16, GSOType: tcp4 | ecn, GSOSize: 500, HdrLen: 20},
					{Flags: 1, CsumStart: 54, CsumOffset: 16, GSOType: tcp6, GSOSize: 500, HdrLen: 74},
					{Flags: 1, CsumStart: 34, CsumOffset: 6, GSOType: udpl4, GSOSize: 100, HdrLen: 42},
					{Flags: 1, CsumStart: 34, CsumOffset: 6, GSOType: udpl4, GSOSize: 5000, HdrLen: 42},
					{Flags: 1, CsumStart: 34, CsumOffset: 6, GSOType: udp, GSOSize: 100, HdrLen: 42},
					{GSOType: 77, GSOSize: 100},
				} {
					for _, f := range [][]byte{whole, whole[:60], frame(to, o.mac[from], 9, 0x8100, 5, 0x0800)} {
						if err := raw.SendVnet(v, f); err != nil {
							refused++
						} else {
							passed++
						}
					}
				}
				must(t, raw.Close())
			}
			if passed == 0 {
				t.Error("the kernel let none of them pass: nothing was tested")
			}
			o.works(t)
			bad := uint64(0)
			for name, c := range counters(t, o.sw.Switch) {
				if name == "p0" || name == "p1" {
					bad += c.RxDropped["bad-offload"] + c.TxDropped["bad-offload"] + c.TxDropped["device-error"]
				}
			}
			t.Logf("the kernel refused %d and let %d pass, of which the switch found %d bad", refused, passed, bad)
		})
	}
}
