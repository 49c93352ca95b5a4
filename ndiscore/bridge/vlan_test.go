package bridge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// withTags puts tags, outermost first, behind the addresses of an untagged
// frame.
func withTags(frame []byte, tags ...uint32) []byte {
	f := append([]byte(nil), frame[:12]...)
	for _, t := range tags {
		f = binary.BigEndian.AppendUint32(f, t)
	}
	return append(f, frame[12:]...)
}

func tagOf(vlan uint16) uint32 { return 0x8100<<16 | uint32(vlan) }

func trunk(t testing.TB, list ...string) VLANSet {
	s, err := ParseVLANs(list)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vlanPorts: p0 access 10, p1 access 20, p2 trunk 10 and 20, p3 trunk 20 with
// native 10, p4 not set; the station above is in VLAN 10.
func vlanPorts(t testing.TB) func(*Options) {
	return func(o *Options) {
		o.VLAN = 10
		o.Port = map[string]PortOptions{
			"p0": {Access: 10}, "p1": {Access: 20}, "p2": {Trunk: trunk(t, "10", "20")},
			"p3": {Trunk: trunk(t, "20"), Native: 10},
		}
	}
}

func TestVLANSet(t *testing.T) {
	s := trunk(t, "10", "20-29", "11", "4094", "1")
	if diff := cmp.Diff([]string{"1", "10-11", "20-29", "4094"}, s.List()); diff != "" {
		t.Error(diff)
	}
	if s.Has(0) || !s.Has(25) || s.Has(30) || !s.Has(4094) || s.Empty() {
		t.Error("members are wrong")
	}
	var walk []uint16
	for v := s.after(0); len(walk) < 16; v = s.after(v) {
		walk = append(walk, v)
	}
	if fmt.Sprint(walk) != "[1 10 11 20 21 22 23 24 25 26 27 28 29 4094 1 10]" {
		t.Error(walk)
	}
	var none VLANSet
	if !none.Empty() || none.after(5) != 0 || none.List() != nil {
		t.Error("the empty set is not empty")
	}
	for _, bad := range []string{"", "0", "4095", "9-3", "a", "1-", "-1", "1-2-3", " 1", "70000"} {
		if _, err := ParseVLANs([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestVLANFlood sends every kind of frame into every port and compares what
// comes out everywhere with what 802.1Q says, written down once more.
func TestVLANFlood(t *testing.T) {
	type rule struct {
		untagged uint16
		tagged   []uint16
	}
	rules := []rule{{10, nil}, {20, nil}, {0, []uint16{10, 20}}, {10, []uint16{20}}, {10, nil}}
	above := rule{10, nil}
	plain := frame(ndiscore.Broadcast, mac(1), 1, 2, 3)
	kinds := map[string][]uint32{
		"untagged": nil, "priority": {0x8100e000}, "10": {0x8100a00a}, "20": {0x81001014}, "30": {tagOf(30)}, "4095": {tagOf(4095)},
		"20 in 10": {tagOf(10), tagOf(20)}, "20 in priority": {tagOf(0), tagOf(20)}, "service 10": {0x88a8000a}, "priority service": {0x88a86000},
	}
	for name, tags := range kinds {
		for in := range rules {
			t.Run(fmt.Sprintf("%s into p%d", name, in), func(t *testing.T) {
				l := newLAN(t, len(rules), true, vlanPorts(t))
				data := withTags(plain, tags...)
				sent := bytes.Clone(data)

				vlan, keep := rules[in].untagged, uint32(0) // keep: what a tag says beside the VLAN
				inner, have := plain, false
				if len(tags) > 0 {
					keep = tags[0] &^ 0xfff
					have = true
					inner = withTags(plain, tags[1:]...)
					if v := uint16(tags[0] & 0xfff); v != 0 {
						vlan = 0
						if slices.Contains(rules[in].tagged, v) {
							vlan = v
						}
					} else if len(tags) > 1 {
						vlan = 0
					}
				}
				leaves := func(r rule) [][]byte {
					switch {
					case vlan == 0:
						return nil
					case r.untagged == vlan && len(r.tagged) > 0 && len(tags) > 1:
						return nil // it would be in the inner tag's VLAN there
					case r.untagged == vlan:
						return [][]byte{inner}
					case !slices.Contains(r.tagged, vlan):
						return nil
					case have:
						return [][]byte{withTags(inner, keep|uint32(vlan))}
					}
					return [][]byte{withTags(inner, tagOf(vlan))}
				}
				l.wires[in].receive(data)
				for i, w := range l.wires {
					want := leaves(rules[i])
					if i == in {
						want = nil
					}
					if diff := cmp.Diff(want, w.take()); diff != "" {
						t.Errorf("out of p%d (-want +got):\n%s", i, diff)
					}
				}
				if diff := cmp.Diff(leaves(above), l.above.take()); diff != "" {
					t.Errorf("above (-want +got):\n%s", diff)
				}
				c := l.counters(fmt.Sprint("p", in))
				if vlan == 0 && c.RxDropped["vlan"] != 1 || vlan != 0 && c.Forwarded != 1 {
					t.Errorf("VLAN %d: %+v", vlan, c)
				}
				if !bytes.Equal(data, sent) {
					t.Error("the frame itself was changed")
				}
			})
		}
	}
}

func TestVLANUnicast(t *testing.T) {
	l := newLAN(t, 5, true, vlanPorts(t))
	a, b := mac(1), mac(2)
	p0, p1, p2, p3 := l.wires[0], l.wires[1], l.wires[2], l.wires[3]
	// The same address in both VLANs, at different ports.
	p0.receive(frame(ndiscore.Broadcast, a))
	p1.receive(frame(ndiscore.Broadcast, a))
	l.counts()
	p2.receive(withTags(frame(a, b), tagOf(10)))
	l.want("to a in VLAN 10", 1, 0, 0, 0, 0, 0)
	p2.receive(withTags(frame(a, b), tagOf(20)), withTags(frame(a, b), tagOf(10)), withTags(frame(a, b), tagOf(20)))
	l.want("to a in VLAN 20, 10, 20: one train, two VLANs", 1, 2, 0, 0, 0, 0)
	p3.receive(frame(l.bridge.MAC(), mac(3)))
	l.want("to us, in our VLAN", 0, 0, 0, 0, 0, 1)
	p1.receive(frame(l.bridge.MAC(), mac(3)))
	l.want("to our address in another VLAN: it is unknown there", 0, 0, 1, 1, 0, 0)
	p1.receive(frame(ndiscore.Broadcast, l.bridge.MAC()))
	l.want("our own address from outside, in another VLAN", 0, 0, 0, 0, 0, 0)
	want := []FDBEntry{
		{MAC: a, VLAN: 10, Port: "p0"}, {MAC: a, VLAN: 20, Port: "p1"},
		{MAC: b, VLAN: 10, Port: "p2"}, {MAC: b, VLAN: 20, Port: "p2"},
		{MAC: mac(3), VLAN: 10, Port: "p3"}, {MAC: mac(3), VLAN: 20, Port: "p1"},
		{MAC: l.bridge.MAC(), VLAN: 10, Port: "lan", Local: true},
	}
	slices.SortFunc(want, func(a, b FDBEntry) int { return bytes.Compare(a.MAC[:], b.MAC[:])*2 + int(a.VLAN)/20 - int(b.VLAN)/20 })
	if diff := cmp.Diff(want, l.bridge.FDB()); diff != "" {
		t.Error(diff)
	}
	for _, w := range l.wires {
		l.counters(w.name)
	}
}

func TestVLANSend(t *testing.T) {
	l := newLAN(t, 5, true, vlanPorts(t))
	l.wires[2].receive(withTags(frame(ndiscore.Broadcast, mac(1)), tagOf(10)))
	l.counts()
	w, err := l.core.NewWorker("test")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	send := func(frames ...[]byte) []ndiscore.DropReason {
		b := ndiscore.NewBatch(w)
		b.Borrowed = true
		for _, data := range frames {
			f := new(ndiscore.Frame)
			f.Reset(data, 0, len(data))
			b.Append(f)
		}
		l.above.binding.Send(b)
		return b.Status[:len(frames)]
	}
	own := l.bridge.MAC()
	to := frame(mac(1), own)
	st := send(to, withTags(to, tagOf(10)), withTags(to, 0x8100a000), frame(ndiscore.Broadcast, own))
	if diff := cmp.Diff([]ndiscore.DropReason{0, ndiscore.DropVLAN, 0, 0}, st); diff != "" {
		t.Error(diff)
	}
	all := frame(ndiscore.Broadcast, own)
	want := [][][]byte{{all}, nil, {withTags(to, tagOf(10)), withTags(to, 0x8100a00a), withTags(all, tagOf(10))}, {all}, {all}}
	for i, x := range l.wires {
		if diff := cmp.Diff(want[i], x.take()); diff != "" {
			t.Errorf("p%d (-want +got):\n%s", i, diff)
		}
	}
	// A port that refuses the tagged form refuses the frame.
	l.wires[2].full = true
	if st = send(all, to, all); st[0] != 0 || st[1] != ndiscore.DropTxQueueFull || st[2] != 0 {
		t.Error(st)
	}
}

// TestVLANSegments passes frames that are longer than what is copied, in
// several pieces, with offloads: contents and offsets have to move together.
func TestVLANSegments(t *testing.T) {
	for _, head := range []int{60, formHead - 1, formHead, formHead + 1, formHead + 4, formHead + 5, 1514, 9000} {
		for _, in := range []int{0, 2} {
			s := new(scratch)
			var f ndiscore.Frame
			data := frame(mac(2), mac(1))
			data = append(data, make([]byte, head-len(data))...)
			if in == 2 {
				data = withTags(data, 0x8100600a)
			}
			for i := 18; i < len(data); i++ {
				data[i] = byte(i * 7)
			}
			f.Reset(data, 0, len(data))
			f.Segs = append(f.Segs, []byte("payload"), []byte("behind"))
			at := uint16(len(data) - head + 14 + 20)
			f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOTCPv4, GSOSize: 1448, HdrLen: at + 20, CsumStart: at, CsumOffset: 16}
			if in == 0 {
				r := rules{tagged: trunk(t, "10")}
				g := s.dress(&r, &f, 5, 10, untagged)
				if want := withTags(f.Bytes(nil), tagOf(10)); !bytes.Equal(g.Bytes(nil), want) {
					t.Errorf("%d: tagged %x", head, g.Bytes(nil))
				}
				if g.Offload.CsumStart != at+4 || g.Offload.HdrLen != at+24 || g.Offload.GSOSize != 1448 || g.Offload.CsumOffset != 16 {
					t.Errorf("%d: %+v", head, g.Offload)
				}
				if s.dress(&r, &f, 5, 10, untagged) != g {
					t.Error("made twice")
				}
			} else {
				r := rules{untagged: 10}
				g := s.dress(&r, &f, 5, 10, tagged)
				whole := f.Bytes(nil)
				if want := append(bytes.Clone(whole[:12]), whole[16:]...); !bytes.Equal(g.Bytes(nil), want) {
					t.Errorf("%d: untagged %x", head, g.Bytes(nil))
				}
				if g.Offload.CsumStart != at-4 || g.Offload.HdrLen != at+16 {
					t.Errorf("%d: %+v", head, g.Offload)
				}
				if !g.Retreat(ndiscore.Headroom) {
					t.Error("no headroom")
				}
			}
			if f.Offload.CsumStart != at || len(f.Head) != len(data) {
				t.Error("the frame itself was changed")
			}
			s.leave()
			if s.formed != 0 || s.withTag != nil && s.withTag.made[5] || s.noTag != nil && s.noTag.made[5] {
				t.Error("forms outlive their batch")
			}
		}
	}
}

// TestVLANAnnounce: after a failover a trunk port hears of each station in its
// VLAN, and only of its VLANs.
func TestVLANAnnounce(t *testing.T) {
	l := newLAN(t, 5, true, vlanPorts(t))
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(10)))
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(20)))
	l.counts()
	rarp := func(m ndiscore.MAC) []byte {
		b := make([]byte, rarpLength)
		writeRARP(b, m)
		return b
	}
	sorted := func(all [][]byte) [][]byte { slices.SortFunc(all, bytes.Compare); return all }
	announced := func(i int, want ...[]byte) {
		t.Helper()
		l.wires[i].handle.IndicateStatus(ndiscore.NetworkChange{Why: "test"})
		var got [][]byte
		l.await("announcements", func() bool {
			got = append(got, l.wires[i].take()...)
			return len(got) >= len(want)
		})
		if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
			t.Errorf("p%d (-want +got):\n%s", i, diff)
		}
	}
	l.wires[1].handle.IndicateStatus(ndiscore.NetworkChange{Why: "test"}) // nobody else is in VLAN 20 alone
	announced(2, withTags(rarp(mac(10)), tagOf(10)), withTags(rarp(mac(20)), tagOf(20)), withTags(rarp(l.bridge.MAC()), tagOf(10)))
	announced(3, rarp(mac(10)), withTags(rarp(mac(20)), tagOf(20)), rarp(l.bridge.MAC()))
	announced(4, rarp(mac(10)), rarp(l.bridge.MAC()))
	l.await("the announcement on p1", func() bool { return len(l.told("bridge.announced p1")) == 0 && l.bridge.announced.Load() == 8 })
	if got := l.wires[1].take(); got != nil {
		t.Errorf("p1 was told of stations that it cannot reach: %x", got)
	}
}

func BenchmarkVLAN(b *testing.B) {
	batch := func(l *lan, w *wire, frames ...[]byte) *ndiscore.Batch {
		q := ndiscore.NewBatch(w.worker)
		q.Borrowed = true
		for i := range ndiscore.BatchFrames {
			f, data := new(ndiscore.Frame), bytes.Clone(frames[i%len(frames)])
			f.Reset(data, 0, len(data))
			q.Append(f)
		}
		return q
	}
	long := func(f []byte) []byte { return append(f, make([]byte, 1514-len(f))...) }
	for _, c := range []struct {
		name  string
		in    int
		frame []byte
	}{
		{"access to access", 4, frame(mac(1), mac(2))},
		{"trunk to access", 2, withTags(frame(mac(1), mac(2)), tagOf(10))},
		{"trunk to access 1514", 2, withTags(long(frame(mac(1), mac(2))), tagOf(10))},
		{"access to trunk", 4, frame(mac(3), mac(2))},
		{"access to trunk 1514", 4, long(frame(mac(3), mac(2)))},
		{"flood to 2 access and 1 trunk", 3, frame(ndiscore.Broadcast, mac(4))},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLAN(b, 5, false, vlanPorts(b))
			for _, w := range l.wires {
				w.keep = false
			}
			l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
			l.wires[2].receive(withTags(frame(ndiscore.Broadcast, mac(3)), tagOf(10)))
			q := batch(l, l.wires[c.in], c.frame)
			l.wires[c.in].handle.IndicateReceive(q)
			b.ReportAllocs()
			for b.Loop() {
				l.wires[c.in].handle.IndicateReceive(q)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ndiscore.BatchFrames), "ns/frame")
		})
	}
}
