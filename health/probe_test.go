package health

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var (
	testMAC = ndiscore.MAC{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
	peerMAC = ndiscore.MAC{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee}
	v4      = netip.MustParseAddr("192.0.2.1")
	v6      = netip.MustParseAddr("2001:db8::12:3456")
)

func expect(target netip.Addr) *expected {
	return &expected{mac: testMAC, key: testMAC.Key(), target: target, local: linkLocal(testMAC)}
}

// TestARPProbeBytes writes the frame down as RFC 826 and RFC 5227 draw it.
func TestARPProbeBytes(t *testing.T) {
	want := "ffffffffffff" + "021122334455" + "0806" + // Ethernet
		"0001" + "0800" + "06" + "04" + "0001" + // Ethernet, IPv4, request
		"021122334455" + "00000000" + // sender: the probe MAC, no address
		"000000000000" + "c0000201" + // target
		strings.Repeat("00", 18)
	if got := hex.EncodeToString(probe(testMAC, v4)); got != want {
		t.Errorf("\n%s, want\n%s", got, want)
	}
}

func TestSolicitationBytes(t *testing.T) {
	f := probe(testMAC, v6)
	want := "3333ff123456" + "021122334455" + "86dd" +
		"60000000" + "0020" + "3a" + "ff" +
		"fe80000000000000001122fffe334455" + "ff0200000000000000000001ff123456" +
		"87" + "00"
	if got := hex.EncodeToString(f[:56]); got != want {
		t.Errorf("\n%s, want\n%s", got, want)
	}
	rest := "00000000" + "20010db8000000000000000000123456" + "0101" + "021122334455"
	if got := hex.EncodeToString(f[58:]); got != rest {
		t.Errorf("\n%s, want\n%s", got, rest)
	}
	// An independent decoder agrees, checksum included.
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
	if !ok || ns.TargetAddress.String() != v6.String() || p.ErrorLayer() != nil {
		t.Fatalf("%v", p)
	}
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	ic := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	_ = ic.SetNetworkLayerForChecksum(ip)
	if err, res := ic.VerifyChecksum(); err != nil || !res.Valid {
		t.Errorf("checksum %+v, %v", res, err)
	}
}

func TestLinkLocal(t *testing.T) {
	if a := linkLocal(ndiscore.MAC{0x00, 0x1b, 0x21, 0x01, 0x02, 0x03}); a != netip.MustParseAddr("fe80::21b:21ff:fe01:203") {
		t.Error(a)
	}
}

func TestProbeMAC(t *testing.T) {
	a := probeMAC("id", "wan", "wan0")
	if a[0]&3 != 2 || a.IsZero() {
		t.Errorf("%s is not a locally administered station address", a)
	}
	if a != probeMAC("id", "wan", "wan0") {
		t.Error("not stable")
	}
	for _, other := range []ndiscore.MAC{probeMAC("id", "wan", "wan1"), probeMAC("id2", "wan", "wan0"), probeMAC("idw", "an", "wan0")} {
		if other == a {
			t.Error("not distinct")
		}
	}
}

// arpAnswer is what a host of mac peerMAC answers.
func arpAnswer(change func([]byte)) []byte {
	f := arpProbe(testMAC, v4)
	copy(f, testMAC[:])
	copy(f[6:], peerMAC[:])
	f[21] = arpReply
	copy(f[22:], peerMAC[:])
	ip := v4.As4()
	copy(f[28:], ip[:])
	copy(f[32:], testMAC[:])
	copy(f[38:], make([]byte, 4))
	if change != nil {
		change(f)
	}
	return f
}

// ndAnswer is an advertisement; its checksum is right unless spoil changes it.
func ndAnswer(change, spoil func([]byte)) []byte {
	f := solicitation(testMAC, v6)
	copy(f, testMAC[:])
	copy(f[6:], peerMAC[:])
	src, dst := v6.As16(), linkLocal(testMAC).As16()
	copy(f[22:], src[:])
	copy(f[38:], dst[:])
	nd := f[54:]
	nd[0], nd[4], nd[24] = advertise, 0x60, 2
	copy(nd[26:], peerMAC[:])
	if change != nil {
		change(f)
	}
	nd[2], nd[3] = 0, 0
	sum := ^ndiscore.Checksum(nd, ndiscore.PseudoChecksum(f[22:38], f[38:54], icmpv6, len(nd)))
	nd[2], nd[3] = byte(sum>>8), byte(sum)
	if spoil != nil {
		spoil(f)
	}
	return f
}

func set(i int, v ...byte) func([]byte) { return func(f []byte) { copy(f[i:], v) } }

func TestMatches(t *testing.T) {
	tests := []struct {
		name   string
		target netip.Addr
		frame  []byte
		want   bool
	}{
		{"arp", v4, arpAnswer(nil), true},
		{"arp without padding", v4, arpAnswer(nil)[:42], true},
		{"arp cut short", v4, arpAnswer(nil)[:41], false},
		{"arp to another mac", v4, arpAnswer(set(0, 0x02, 1)), false},
		{"arp broadcast", v4, arpAnswer(set(0, 255, 255, 255, 255, 255, 255)), false},
		{"arp request", v4, arpAnswer(set(21, arpRequest)), false},
		{"arp from another address", v4, arpAnswer(set(31, 2)), false},
		{"arp for another mac", v4, arpAnswer(set(32, 0x02, 1)), false},
		{"arp of another hardware", v4, arpAnswer(set(15, 6)), false},
		{"arp of another protocol", v4, arpAnswer(set(16, 0x86, 0xdd)), false},
		{"arp of other lengths", v4, arpAnswer(set(18, 8)), false},
		{"arp when asked by nd", v6, arpAnswer(nil), false},
		{"arp in a vlan", v4, arpAnswer(set(12, 0x81, 0)), false},
		{"nothing", v4, nil, false},
		{"header only", v4, arpAnswer(nil)[:14], false},

		{"nd", v6, ndAnswer(nil, nil), true},
		{"nd without option", v6, ndAnswer(nil, nil)[:78], false}, // the length says otherwise
		{"nd when asked by arp", v4, ndAnswer(nil, nil), false},
		{"nd bad checksum", v6, ndAnswer(nil, set(56, 1, 2)), false},
		{"nd hop limit", v6, ndAnswer(set(21, 254), nil), false},
		{"nd not solicited", v6, ndAnswer(set(58, 0x20), nil), false},
		{"nd of another target", v6, ndAnswer(set(77, 9), nil), false},
		{"nd to all nodes", v6, ndAnswer(set(38, 0xff, 2), nil), false},
		{"nd solicitation", v6, ndAnswer(set(54, solicit), nil), false},
		{"nd code", v6, ndAnswer(set(55, 1), nil), false},
		{"nd other protocol", v6, ndAnswer(set(20, 17), nil), false},
		{"nd version", v6, ndAnswer(set(14, 0x40), nil), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for cut := -1; cut <= len(tt.frame); cut += 7 { // -1: linear, else split there
				f := &ndiscore.Frame{Head: tt.frame}
				if cut >= 0 {
					f.Head, f.Segs = tt.frame[:cut], [][]byte{tt.frame[cut:]}
				}
				got := expect(tt.target).matches(f)
				if want := tt.want && (cut < 0 || cut >= ndiscore.EthernetHeader); got != want {
					t.Errorf("cut at %d: %v, want %v", cut, got, want)
				}
			}
		})
	}
	f := &ndiscore.Frame{Head: ndAnswer(nil, set(56, 1, 2))}
	for _, flag := range []ndiscore.OffloadFlags{ndiscore.NeedsCsum, ndiscore.DataValid} {
		f.Offload.Flags = flag
		if !expect(v6).matches(f) {
			t.Errorf("flags %d: the checksum is somebody else's, yet it was looked at", flag)
		}
	}
}

func FuzzMatches(f *testing.F) {
	f.Add(arpAnswer(nil), uint8(20), true)
	f.Add(ndAnswer(nil, nil), uint8(60), false)
	f.Fuzz(func(t *testing.T, data []byte, cut uint8, arp bool) {
		target := v6
		if arp {
			target = v4
		}
		e := expect(target)
		n := min(int(cut), len(data))
		split := e.matches(&ndiscore.Frame{Head: data[:n], Segs: [][]byte{data[n:]}})
		whole := e.matches(&ndiscore.Frame{Head: data})
		if n >= ndiscore.EthernetHeader && len(data) <= answerBytes && split != whole {
			t.Errorf("split %v, whole %v", split, whole)
		}
		if whole && (ndiscore.MACKey(data) != testMAC.Key() || len(data) < 42) {
			t.Error("matched something that is not ours")
		}
	})
}

func TestMatchesDoesNotAllocate(t *testing.T) {
	fs := []*ndiscore.Frame{{Head: arpAnswer(nil)}, {Head: ndAnswer(nil, nil)}, {Head: ndAnswer(nil, nil)[:60], Segs: [][]byte{ndAnswer(nil, nil)[60:]}}, {Head: arpProbe(peerMAC, v4)}}
	e4, e6 := expect(v4), expect(v6)
	got := testing.AllocsPerRun(100, func() {
		for _, f := range fs {
			e4.matches(f)
			e6.matches(f)
		}
	})
	if diff := cmp.Diff(0.0, got); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkMatches(b *testing.B) {
	other := &ndiscore.Frame{Head: arpProbe(peerMAC, v4)}
	e := expect(v4)
	b.ReportAllocs()
	for b.Loop() {
		e.matches(other)
	}
}
