package netdev_test

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestMain(m *testing.M) { lab.Main(m) }

// vnet writes a virtio_net_hdr.
func vnet(flags, gso uint8, hdrLen, gsoSize, start, offset uint16) []byte {
	ne := binary.NativeEndian
	b := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, gsoSize, start, offset} {
		b = ne.AppendUint16(b, v)
	}
	return b
}

func TestDecodeVnet(t *testing.T) {
	const frame = 3000
	for _, c := range []struct {
		name string
		hdr  []byte
		want ndiscore.Offload
		why  ndiscore.DropReason
	}{
		{name: "nothing to do", hdr: vnet(0, 0, 0, 0, 0, 0)},
		{name: "stray fields without meaning", hdr: vnet(0, 0, 9, 9, 9, 9)},
		{name: "checksum", hdr: vnet(1, 0, 0, 0, 34, 16), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 16}},
		{name: "checksum verified", hdr: vnet(2, 0, 0, 0, 34, 16), want: ndiscore.Offload{Flags: ndiscore.DataValid}},
		{name: "needs it, whatever else is said", hdr: vnet(3, 0, 0, 0, 34, 16), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 16}},
		{name: "tcpv4", hdr: vnet(1, 1, 54, 1448, 34, 16), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOTCPv4, GSOSize: 1448, HdrLen: 54, CsumStart: 34, CsumOffset: 16}},
		{name: "tcpv6 with ECN", hdr: vnet(1, 0x84, 74, 1428, 54, 16), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum | ndiscore.GSOECN, GSO: ndiscore.GSOTCPv6, GSOSize: 1428, HdrLen: 74, CsumStart: 54, CsumOffset: 16}},
		{name: "udp", hdr: vnet(1, 5, 42, 1200, 34, 6), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOUDPL4, GSOSize: 1200, HdrLen: 42, CsumStart: 34, CsumOffset: 6}},
		{name: "a hint beyond the end is cut", hdr: vnet(1, 1, 60000, 1448, 34, 16), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOTCPv4, GSOSize: 1448, HdrLen: frame, CsumStart: 34, CsumOffset: 16}},
		{name: "checksum is the last two bytes", hdr: vnet(1, 0, 0, 0, frame-2, 0), want: ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: frame - 2}},

		{name: "unknown flag", hdr: vnet(4, 0, 0, 0, 0, 0), why: ndiscore.DropBadOffload},
		{name: "unknown kind", hdr: vnet(1, 2, 54, 1448, 34, 16), why: ndiscore.DropBadOffload},
		{name: "udp fragmentation offload", hdr: vnet(1, 3, 42, 1448, 34, 6), why: ndiscore.DropBadOffload},
		{name: "udp tunnel", hdr: vnet(1, 0x21, 54, 1448, 34, 16), why: ndiscore.DropBadOffload},
		{name: "ECN without TCP", hdr: vnet(1, 0x85, 42, 1200, 34, 6), why: ndiscore.DropBadOffload},
		{name: "ECN without GSO", hdr: vnet(1, 0x80, 0, 0, 34, 16), why: ndiscore.DropBadOffload},
		{name: "no segment size", hdr: vnet(1, 1, 54, 0, 34, 16), why: ndiscore.DropBadOffload},
		{name: "checksum in the link header", hdr: vnet(1, 0, 0, 0, 13, 16), why: ndiscore.DropBadOffload},
		{name: "checksum across the end", hdr: vnet(1, 0, 0, 0, frame-1, 0), why: ndiscore.DropBadOffload},
		{name: "checksum far beyond", hdr: vnet(1, 0, 0, 0, 0xffff, 0xffff), why: ndiscore.DropBadOffload},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o ndiscore.Offload
			if why := netdev.DecodeVnet(c.hdr, frame, &o); why != c.why {
				t.Fatalf("reason %v, want %v", why, c.why)
			}
			if c.why == ndiscore.DropNone && o != c.want {
				t.Fatalf("(-got +want)\n%s", cmp.Diff(o, c.want))
			}
		})
	}
}

// FuzzDecodeVnet: what is accepted points inside the frame and survives the way
// out and back in.
func FuzzDecodeVnet(f *testing.F) {
	f.Add(vnet(1, 1, 54, 1448, 34, 16), uint16(3000))
	f.Add(vnet(1, 0x84, 74, 1428, 54, 16), uint16(3000))
	f.Add(vnet(1, 5, 42, 1200, 34, 6), uint16(1400))
	f.Add(vnet(2, 0, 0, 0, 0, 0), uint16(60))
	f.Add(vnet(0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff), uint16(0))
	f.Fuzz(func(t *testing.T, hdr []byte, length uint16) {
		if len(hdr) < netdev.VnetHeader {
			return
		}
		n := int(length)
		var o ndiscore.Offload
		if netdev.DecodeVnet(hdr, n, &o) != ndiscore.DropNone {
			return
		}
		if int(o.HdrLen) > n || o.GSO != ndiscore.GSONone && o.GSOSize == 0 {
			t.Fatalf("%+v for a frame of %d bytes", o, n)
		}
		if o.Flags&ndiscore.NeedsCsum != 0 && int(o.CsumStart)+int(o.CsumOffset)+2 > n {
			t.Fatalf("checksum outside: %+v for a frame of %d bytes", o, n)
		}
		for _, size := range []int{netdev.VnetHeader, netdev.VnetHeaderV1} {
			out := make([]byte, size)
			netdev.EncodeVnet(out, n, &o)
			var back ndiscore.Offload
			if why := netdev.DecodeVnet(out, n, &back); why != ndiscore.DropNone || back != o {
				t.Fatalf("%+v became %+v (%v)", o, back, why)
			}
		}
	})
}

func BenchmarkVnet(b *testing.B) {
	hdr := vnet(1, 1, 54, 1448, 34, 16)
	var o ndiscore.Offload
	b.ReportAllocs()
	for b.Loop() {
		netdev.DecodeVnet(hdr, 3000, &o)
		netdev.EncodeVnet(hdr, 3000, &o)
	}
}
