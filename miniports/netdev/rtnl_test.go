package netdev

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func attribute(kind uint16, value []byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(ne.AppendUint16(b, kind), value...)
	return append(b, make([]byte, align4(len(b))-len(b))...)
}

func linkBody(family byte, index uint32, flags uint32, attrs ...[]byte) []byte {
	ne := binary.NativeEndian
	b := []byte{family, 0, 0, 0}
	b = ne.AppendUint32(b, index)
	b = ne.AppendUint32(b, flags)
	b = ne.AppendUint32(b, 0)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func message(kind uint16, body []byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = ne.AppendUint16(b, kind)
	b = append(b, make([]byte, 10)...)
	return append(b, body...)
}

func TestParseLink(t *testing.T) {
	body := linkBody(unix.AF_UNSPEC, 7, unix.IFF_UP,
		attribute(unix.IFLA_IFNAME, []byte("eth7\x00")),
		attribute(unix.IFLA_ADDRESS, []byte{2, 0, 0, 0, 0, 1}),
		attribute(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, 9000)),
		attribute(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, attribute(unix.IFLA_INFO_KIND, []byte("veth\x00"))),
		attribute(unix.IFLA_NEW_NETNSID, binary.NativeEndian.AppendUint32(nil, 3)))
	m, ok := parseLink(body)
	if !ok || m.index != 7 || m.flags != unix.IFF_UP || string(m.name) != "eth7" || m.mtu != 9000 ||
		string(m.kind) != "veth" || m.mac.String() != "02:00:00:00:00:01" || !m.moved || m.movedTo != 3 {
		t.Errorf("%+v, %v", m, ok)
	}
	// A port that leaves a bridge is no link that goes.
	if _, ok := parseLink(linkBody(unix.AF_BRIDGE, 7, 0)); ok {
		t.Error("a bridge's message was taken for the link's")
	}
}

// dumped makes message part of the answer to dump number seq.
func dumped(message []byte, seq uint32) []byte {
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_MULTI)
	binary.NativeEndian.PutUint32(message[8:], seq)
	return message
}

// An event that overtakes the answer to a dump is the newer one.
func TestEventOvertakesDump(t *testing.T) {
	w := &Watcher{links: map[int]*link{}, byName: map[string]*link{}, awaits: map[*await]struct{}{}, touched: map[int]struct{}{}, dumping: 1, seq: 1}
	eth := func(index, flags uint32) []byte {
		return linkBody(unix.AF_UNSPEC, index, flags, attribute(unix.IFLA_IFNAME, []byte("eth"+string(rune('0'+index))+"\x00")))
	}
	const running = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING
	w.read(message(unix.RTM_DELLINK, eth(5, 0)))
	w.read(message(unix.RTM_NEWLINK, eth(6, 0)))
	for i := uint32(5); i <= 7; i++ {
		w.read(dumped(message(unix.RTM_NEWLINK, eth(i, running)), 1))
	}
	w.read(dumped(message(unix.NLMSG_DONE, make([]byte, 4)), 1))
	if w.byName["eth5"] != nil || w.links[5] != nil {
		t.Error("the deleted link is back")
	}
	if l := w.byName["eth6"]; l == nil || l.Up {
		t.Errorf("eth6: %+v", l)
	}
	if l := w.byName["eth7"]; l == nil || !l.Running {
		t.Errorf("eth7: %+v", l)
	}
	if !w.stale {
		t.Error("no other dump is asked for")
	}
	// The next dump is believed again.
	w.seq, w.dumping = 2, 2
	clear(w.touched)
	w.read(dumped(message(unix.RTM_NEWLINK, eth(6, running)), 2))
	if l := w.byName["eth6"]; l == nil || !l.Running {
		t.Errorf("eth6: %+v", l)
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add(message(unix.RTM_NEWLINK, linkBody(unix.AF_UNSPEC, 7, unix.IFF_UP, attribute(unix.IFLA_IFNAME, []byte("eth7\x00")))))
	f.Add(message(unix.RTM_DELLINK, linkBody(unix.AF_UNSPEC, 7, 0, attribute(unix.IFLA_NEW_NETNSID, []byte{1, 0, 0, 0}))))
	f.Add(append(message(unix.NLMSG_DONE, make([]byte, 4)), message(unix.NLMSG_ERROR, make([]byte, 20))...))
	f.Add(appendDump(nil, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &Watcher{links: map[int]*link{}, byName: map[string]*link{}, awaits: map[*await]struct{}{}, touched: map[int]struct{}{}, dumping: 1, seq: 1}
		w.read(b)
		for name, l := range w.byName {
			if l.Name != name || w.links[l.Index] != l {
				t.Fatalf("%q names %+v", name, l.LinkInfo)
			}
		}
	})
}

// From the return of the netlink read to the callback.
func BenchmarkEvent(b *testing.B) {
	event := func(flags uint32) []byte {
		return message(unix.RTM_NEWLINK, linkBody(unix.AF_UNSPEC, 7, flags,
			attribute(unix.IFLA_IFNAME, []byte("eth7\x00")), attribute(unix.IFLA_MTU, []byte{0, 6, 0, 0}),
			attribute(unix.IFLA_STATS64, make([]byte, 200)), attribute(unix.IFLA_AF_SPEC, make([]byte, 900))))
	}
	up, down := event(unix.IFF_UP|unix.IFF_RUNNING|unix.IFF_LOWER_UP), event(unix.IFF_UP)
	told := 0
	l := &link{LinkInfo: LinkInfo{Index: 7}, subs: []*Subscription{{call: func(LinkInfo) { told++ }}}}
	w := &Watcher{links: map[int]*link{7: l}, byName: map[string]*link{}, awaits: map[*await]struct{}{}}
	b.ReportAllocs()
	for b.Loop() {
		w.read(down)
		w.read(up)
	}
	if told < 2*b.N {
		b.Errorf("told %d times of %d events", told, 2*b.N)
	}
}
