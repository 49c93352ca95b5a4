package bridge

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// counts is how many frames each port, and the station above, got.
func (l *lan) counts() []int {
	var n []int
	for _, w := range l.wires {
		n = append(n, len(w.take()))
	}
	if l.above != nil {
		n = append(n, len(l.above.take()))
	}
	return n
}

func (l *lan) want(what string, want ...int) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.counts()); diff != "" {
		l.t.Errorf("%s: frames per port, then above (-want +got):\n%s", what, diff)
	}
}

func TestForwarding(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	a, b, own := mac(1), mac(2), l.bridge.MAC()
	p0, p1, p2 := l.wires[0], l.wires[1], l.wires[2]

	p0.receive(frame(ndiscore.Broadcast, a))
	l.want("broadcast goes to all others and up", 0, 1, 1, 1)
	p1.receive(frame(a, b))
	l.want("to a learned address", 1, 0, 0, 0)
	p0.receive(frame(b, a))
	l.want("and back", 0, 1, 0, 0)
	p0.receive(frame(mac(9), a))
	l.want("unknown unicast is flooded, not delivered up", 0, 1, 1, 0)
	p2.receive(frame(own, mac(3)))
	l.want("own address goes up only", 0, 0, 0, 1)
	p0.receive(frame(ndiscore.MAC{1, 0, 0x5e, 0, 0, 1}, a))
	l.want("multicast", 0, 1, 1, 1)
	p0.receive(frame(a, mac(4)))
	l.want("same port", 0, 0, 0, 0)
	p2.receive(frame(ndiscore.Broadcast, a))
	l.want("moves with its broadcast", 1, 1, 0, 1)
	p1.receive(frame(a, b))
	l.want("found at its new port", 0, 0, 1, 0)
	for i := range 16 {
		p0.receive(frame(ndiscore.MAC{1, 0x80, 0xc2, 0, 0, byte(i)}, a))
	}
	l.want("reserved addresses go nowhere", 0, 0, 0, 0)
	p0.receive(frame(ndiscore.MAC{1, 0x80, 0xc2, 0, 0, 0x10}, a))
	l.want("the next one is ordinary multicast", 0, 1, 1, 1)
	p0.receive(frame(ndiscore.Broadcast, ndiscore.Broadcast), frame(ndiscore.Broadcast, ndiscore.MAC{}), frame(b, ndiscore.MAC{1, 2, 3, 4, 5, 6}))
	l.want("bad sources", 0, 0, 0, 0)
	p0.receive(frame(ndiscore.Broadcast, own))
	l.want("our own address from outside is a loop", 0, 0, 0, 0)
	p0.receive(make([]byte, 13), nil)
	l.want("too short", 0, 0, 0, 0)

	c := l.counters("p0")
	want := map[string]uint64{"same-port": 1, "reserved-multicast": 16, "bad-source": 3, "reflection": 1, "short": 2}
	if diff := cmp.Diff(want, c.RxDropped); diff != "" {
		t.Errorf("drops on p0 (-want +got):\n%s", diff)
	}
	if c.Forwarded != 5 {
		t.Errorf("p0: forwarded %d, want 5", c.Forwarded)
	}
	if c := l.counters("p2"); c.Delivered != 1 || c.Forwarded != 1 {
		t.Errorf("p2: %+v", c)
	}
	if c := l.counters("lan"); c.Delivered != 5 || c.RxFrames != 5 {
		t.Errorf("lan: %+v", c)
	}
	s := l.bridge.Stats()
	if s.Learned != 4 || s.Moved != 2 || s.Entries != 4 || s.Flooded != 5 {
		t.Errorf("stats %+v", s)
	}
}

func TestFDBList(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(7)))
	want := []FDBEntry{{MAC: mac(7), Port: "p1"}, {MAC: l.bridge.MAC(), Port: "lan", Local: true}}
	if bytes.Compare(want[0].MAC[:], want[1].MAC[:]) > 0 {
		want[0], want[1] = want[1], want[0]
	}
	if diff := cmp.Diff(want, l.bridge.FDB()); diff != "" {
		t.Error(diff)
	}
	if n, err := l.bridge.Flush("p0"); n != 0 || err != nil {
		t.Errorf("flush p0: %d, %v", n, err)
	}
	if n, err := l.bridge.Flush(""); n != 1 || err != nil {
		t.Errorf("flush: %d, %v", n, err)
	}
	if _, err := l.bridge.Flush("p7"); err == nil || !strings.Contains(err.Error(), "it is not a port") {
		t.Errorf("flush p7: %v", err)
	}
	if s := l.bridge.Stats(); s.Entries != 0 || s.Flushed != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestNobodyAbove(t *testing.T) {
	l := newLAN(t, 1, false, nil)
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)), frame(l.bridge.MAC(), mac(1)), frame(mac(5), mac(1)))
	l.want("nowhere to go", 0)
	want := map[string]uint64{"no-port": 2, "no-receiver": 1}
	if diff := cmp.Diff(want, l.counters("p0").RxDropped); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
	if c := l.counters("lan"); c.RxFrames != 0 {
		t.Errorf("lan: %+v", c)
	}
}

func TestPromiscuousAbove(t *testing.T) {
	l := newLAN(t, 2, true, nil)
	if err := l.above.binding.SetPacketFilter(context.Background(), ndiscore.FilterPromiscuous); err != nil {
		t.Fatal(err)
	}
	p0, p1 := l.wires[0], l.wires[1]
	p0.receive(frame(mac(2), mac(1)))
	l.want("unknown", 0, 1, 1)
	p1.receive(frame(mac(1), mac(2)))
	l.want("known", 1, 0, 1)
	p0.receive(frame(mac(1), mac(3)))
	l.want("same port", 0, 0, 1)
	if c := l.counters("p0"); c.Forwarded != 1 || c.Delivered != 1 {
		t.Errorf("%+v", c)
	}
}

func TestOrderAndBatches(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(101)))
	l.wires[2].receive(frame(ndiscore.Broadcast, mac(102)))
	l.counts()
	var batch [][]byte
	for i := range ndiscore.BatchFrames {
		dst := mac(101 + i%2)
		if i%8 == 7 {
			dst = ndiscore.Broadcast
		}
		batch = append(batch, frame(dst, mac(1), byte(i)))
	}
	l.wires[0].receive(batch...)
	for k, w := range l.wires[1:] {
		var got, want []byte
		for _, f := range w.take() {
			got = append(got, f[14])
		}
		for i := range ndiscore.BatchFrames {
			if i%8 == 7 || i%2 == k {
				want = append(want, byte(i))
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("port %s: order %d, want %d", w.name, got, want)
		}
	}
}

func TestSend(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
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
	st := send(frame(mac(1), own), frame(mac(9), own), frame(ndiscore.Broadcast, own), frame(own, own), make([]byte, 5))
	if diff := cmp.Diff([]ndiscore.DropReason{0, 0, 0, ndiscore.DropSamePort, ndiscore.DropShort}, st); diff != "" {
		t.Error(diff)
	}
	l.want("sent from above", 2, 3, 2, 0)
	l.wires[1].full = true
	st = send(frame(mac(1), own), frame(ndiscore.Broadcast, own))
	if diff := cmp.Diff([]ndiscore.DropReason{ndiscore.DropTxQueueFull, 0}, st); diff != "" {
		t.Error(diff)
	}
	l.want("one port full", 1, 0, 1, 0)
	for _, x := range l.wires {
		x.full = true
	}
	if st = send(frame(ndiscore.Broadcast, own)); st[0] != ndiscore.DropTxQueueFull {
		t.Errorf("all full: %s", st[0])
	}
	for _, x := range l.wires {
		if err := l.core.Pause(context.Background(), x.name, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if st = send(frame(ndiscore.Broadcast, own)); st[0] != ndiscore.DropNoPort {
		t.Errorf("no port: %s", st[0])
	}
	if c := l.counters("lan"); c.TxFrames != 4 || c.TxDropped["no-port"] != 1 || c.TxDropped["tx-queue-full"] != 2 {
		t.Errorf("%+v", c)
	}
	if e := l.bridge.FDB(); len(e) != 2 {
		t.Errorf("sources of those above were learned: %v", e)
	}
}

// TestKept passes batches that are not borrowed, both ways.
func TestKept(t *testing.T) {
	l := newLAN(t, 2, true, nil)
	p := l.wires[0]
	b := ndiscore.NewBatch(p.worker)
	data := frame(ndiscore.Broadcast, mac(1))
	f := new(ndiscore.Frame)
	f.Reset(data, 0, len(data))
	b.Append(f)
	p.handle.IndicateReceive(b)
	l.want("kept receive", 0, 1, 1)
	s := ndiscore.NewBatch(p.worker)
	s.Append(f)
	l.above.binding.Send(s)
	l.want("kept send", 1, 1, 0)
	// Were one still out, this would wait for it.
	if err := l.core.Pause(context.Background(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	if c := l.counters("lan"); c.TxFrames != 1 {
		t.Errorf("%+v", c)
	}
}

// TestReentry has the station answer from within the receive, on the same
// worker, while the bridge still holds frames of the batch.
func TestReentry(t *testing.T) {
	l := newLAN(t, 2, true, nil)
	l.above.answer = frame(mac(1), l.bridge.MAC(), 42)
	l.wires[0].receive(frame(l.bridge.MAC(), mac(1)), frame(ndiscore.Broadcast, mac(1)))
	got := l.wires[0].take()
	if len(got) != 1 || got[0][14] != 42 {
		t.Errorf("answers %x", got)
	}
	if n := len(l.wires[1].take()); n != 1 {
		t.Errorf("broadcast reached p1 %d times", n)
	}
}

// TestLoop joins two ports by a wire: a frame that is flooded comes back in on
// the same worker. Both it and the bridge must survive; the frame count is cut
// by the test, as there is no spanning tree.
func TestLoop(t *testing.T) {
	l := newLAN(t, 3, false, nil)
	depth := 0
	l.wires[1].answer = func(w *ndiscore.Worker) {
		if depth++; depth > 5 {
			return
		}
		b := w.Scratch()
		data := frame(ndiscore.Broadcast, mac(1), byte(depth))
		f := new(ndiscore.Frame)
		f.Reset(data, 0, len(data))
		b.Append(f)
		l.wires[2].handle.IndicateReceive(b)
		w.Done(b)
	}
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("loop", 5, 6, 1)
}

func TestLinkAndPause(t *testing.T) {
	ctx := context.Background()
	l := newLAN(t, 2, true, nil)
	p0, p1 := l.wires[0], l.wires[1]
	p0.receive(frame(ndiscore.Broadcast, mac(1)))
	p1.receive(frame(ndiscore.Broadcast, mac(2)))
	l.counts()

	if l.bridge.linkState().Media != ndiscore.MediaConnected {
		t.Fatal("not connected")
	}
	p1.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
	if e := l.bridge.Stats().Entries; e != 1 {
		t.Errorf("%d entries after p1 lost its link", e)
	}
	p0.receive(frame(ndiscore.Broadcast, mac(1)), frame(mac(2), mac(1)))
	l.want("p1 has no link", 0, 0, 1)
	p1.receive(frame(mac(1), mac(2)))
	l.want("a frame that was under way still goes through", 1, 0, 0)
	if e := l.bridge.Stats().Entries; e != 1 {
		t.Error("learned on a port without link")
	}
	p1.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: 10e9, Why: "test"})
	p0.receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("p1 is back", 0, 1, 1)

	if err := l.core.Pause(ctx, "p1", "test"); err != nil {
		t.Fatal(err)
	}
	p0.receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("p1 is paused", 0, 0, 1)
	if err := l.core.Start(ctx, "p1", "test"); err != nil {
		t.Fatal(err)
	}
	p1.receive(frame(ndiscore.Broadcast, mac(2)))
	p0.receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("p1 runs again", 1, 1, 2)

	if err := l.core.Remove(ctx, "p1", "test"); err != nil {
		t.Fatal(err)
	}
	if e := l.bridge.Stats().Entries; e != 1 {
		t.Errorf("%d entries after p1 was removed", e)
	}
	p0.receive(frame(mac(2), mac(1)))
	l.want("p1 is gone", 0, 0, 0)

	p0.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
	l.above.mu.Lock()
	var links []string
	for _, s := range l.above.statuses {
		if ls, ok := s.(ndiscore.LinkState); ok {
			links = append(links, fmt.Sprint(ls.Media, " ", ls.Speed))
		}
	}
	l.above.mu.Unlock()
	want := []string{"connected 10000000000", "connected 1000000000", "connected 10000000000", "connected 1000000000", "disconnected 0"}
	if diff := cmp.Diff(want, links); diff != "" {
		t.Errorf("link states above (-want +got):\n%s", diff)
	}
}

func TestAttributes(t *testing.T) {
	l := newLAN(t, 2, true, nil)
	a := l.above.binding.Attributes()
	if a.MTU != 1500 || a.Transmit != ndiscore.CapAll || a.MAC != stableMAC("lan") || a.MAC[0]&3 != 2 {
		t.Errorf("%+v", a)
	}
	if p := l.wires[0].filter; p != ndiscore.FilterPromiscuous {
		t.Errorf("filter of a port %#x", p)
	}
}

// TestMTU: the virtual adapter's follows the smallest of the ports', and a port
// that comes later.
func TestMTU(t *testing.T) {
	l := newLAN(t, 2, true, func(o *Options) { o.Ports = append(o.Ports, "p2") })
	mtu := func() int { return l.above.binding.Attributes().MTU }
	l.wires[1].handle.IndicateStatus(ndiscore.AttributesChange{MTU: 1400, Why: "test"})
	if m := mtu(); m != 1400 {
		t.Error(m)
	}
	l.wires[1].handle.IndicateStatus(ndiscore.AttributesChange{MTU: 9000, Why: "test"})
	if m := mtu(); m != 1500 {
		t.Error(m)
	}
	l.addWire("p2", func(w *wire) { w.mtu = 1300 })
	l.await("p2", func() bool { return mtu() == 1300 })
	var told []int
	l.above.mu.Lock()
	defer l.above.mu.Unlock()
	for _, s := range l.above.statuses {
		if c, ok := s.(ndiscore.AttributesChange); ok {
			told = append(told, c.MTU)
		}
	}
	if diff := cmp.Diff([]int{1400, 1500, 1300}, told); diff != "" {
		t.Errorf("told above (-want +got):\n%s", diff)
	}
}

func TestGivenAttributes(t *testing.T) {
	l := newLAN(t, 1, true, func(o *Options) { o.MTU, o.MAC = 9000, mac(77) })
	if a := l.above.binding.Attributes(); a.MTU != 9000 || a.MAC != mac(77) {
		t.Errorf("%+v", a)
	}
}

func TestAgeing(t *testing.T) {
	l := newLAN(t, 2, false, func(o *Options) { o.Age = 10 * time.Second })
	p0 := l.wires[0]
	p0.receive(frame(ndiscore.Broadcast, mac(1)), frame(ndiscore.Broadcast, mac(2)))
	coarse := func() uint32 { return l.bridge.table().now.Load() }
	for s := range 9 {
		l.tick(time.Second)
		ndistest.Await(t, "coarse clock", func() bool { return coarse() == uint32(s+1)*1000 })
	}
	p0.receive(frame(ndiscore.Broadcast, mac(2)))
	if f := l.bridge.FDB(); len(f) != 3 {
		t.Fatalf("%+v", f)
	}
	for _, e := range l.bridge.FDB() {
		if e.MAC == mac(1) && e.Age != 9 || e.MAC == mac(2) && e.Age != 0 {
			t.Errorf("age of %+v", e)
		}
	}
	l.tick(time.Second)
	ndistest.Await(t, "mac 1 ages", func() bool { return l.bridge.Stats().Entries == 1 })
	if s := l.bridge.Stats(); s.Aged != 1 {
		t.Errorf("%+v", s)
	}
	// A jump of an hour is our own fault, not the station's: what it is asked
	// for is to be seen within one more tick.
	l.tick(time.Hour)
	ndistest.Await(t, "coarse clock", func() bool { return coarse() > 3600_000 })
	if e := l.bridge.Stats().Entries; e != 1 {
		t.Error("aged by a late tick")
	}
	l.tick(time.Second)
	ndistest.Await(t, "mac 2 ages", func() bool { return l.bridge.Stats().Entries == 0 })
}

func TestFull(t *testing.T) {
	l := newLAN(t, 2, false, func(o *Options) { o.MACLimit, o.Age = 100, 10*time.Second })
	for i := range 300 {
		l.wires[0].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	s := l.bridge.Stats()
	if s.Entries != 100 || s.Learned != 100 || s.Full != 200 {
		t.Errorf("%+v", s)
	}
	l.counts()
	l.wires[1].receive(frame(mac(250), mac(1000)), frame(mac(5), mac(1000)))
	l.want("to an address that was not learned, and to one that was", 2, 0)
	events := func() []string {
		l.mu.Lock()
		defer l.mu.Unlock()
		return append([]string(nil), l.events...)
	}
	l.tick(time.Second)
	ndistest.Await(t, "event", func() bool { return len(events()) == 1 })
	if e := events()[0]; e != "bridge.fdb  room>full 100 addresses are known (mac_limit 100): frames to others are flooded" {
		t.Error(e)
	}
	for range 9 {
		c := l.bridge.table().now.Load()
		l.tick(time.Second)
		ndistest.Await(t, "coarse clock", func() bool { return l.bridge.table().now.Load() == c+1000 })
	}
	ndistest.Await(t, "end of the episode", func() bool { return len(events()) == 2 })
	if e := events()[1]; !strings.HasPrefix(e, "bridge.fdb  full>room 0 addresses are known") {
		t.Error(e)
	}
}

func TestAnnounce(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	for i := range 3 {
		l.wires[1].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(100)))
	l.counts()
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "failed over"})
	for round, at := range ndiscore.AnnounceAt {
		if round > 0 {
			l.tick(at - ndiscore.AnnounceAt[round-1])
		}
		var got [][]byte
		ndistest.Await(t, fmt.Sprint("round ", round), func() bool {
			got = append(got, l.wires[0].take()...)
			return len(got) == 4
		})
		seen := map[ndiscore.MAC]bool{}
		for _, f := range got {
			seen[ndiscore.MAC(f[6:12])] = true
			want := make([]byte, rarpLength)
			writeRARP(want, ndiscore.MAC(f[6:12]))
			if !bytes.Equal(f, want) {
				t.Errorf("announcement %x", f)
			}
		}
		if !seen[l.bridge.MAC()] || !seen[mac(0)] || !seen[mac(1)] || !seen[mac(2)] {
			t.Errorf("announced %v", seen)
		}
	}
	ndistest.Await(t, "event", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.events) == 1 && l.events[0] == "bridge.announced p0 > failed over: 12 reverse-ARP announcements"
	})
	l.want("nothing on other ports, nor up", 0, 0, 0, 0)
	if s := l.bridge.Stats(); s.Announced != 12 {
		t.Errorf("%+v", s)
	}
	l.above.mu.Lock()
	defer l.above.mu.Unlock()
	changes := 0
	for _, s := range l.above.statuses {
		if c, ok := s.(ndiscore.NetworkChange); ok {
			changes++
			if c.Why != "port p0: failed over" {
				t.Error(c.Why)
			}
		}
	}
	if changes != 1 {
		t.Errorf("%d notices passed up", changes)
	}
}

// Where frames to groups go another way only, nobody has to learn anything.
func TestAnnounceGroups(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	l.counts()
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "a member came", Groups: true})
	l.tick(0) // the keeper has seen all notices
	if n := l.bridge.Stats().Announced; n != 0 {
		t.Errorf("%d announced", n)
	}
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "a member left"})
	ndistest.Await(t, "announcement", func() bool { return l.bridge.Stats().Announced > 0 })
}

// While the old way still delivers, nobody is told of the new one; at once when it
// does no more.
func TestAnnounceLater(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	l.counts()
	const after = 100 * time.Millisecond
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "promoted", After: after})
	l.tick(after - 1)
	l.tick(0) // the keeper has looked
	if n := l.bridge.Stats().Announced; n != 0 {
		t.Errorf("%d announced", n)
	}
	l.tick(1)
	ndistest.Await(t, "announcement", func() bool { return l.bridge.Stats().Announced == 1 })
	l.tick(ndiscore.AnnounceAt[1])
	ndistest.Await(t, "second round", func() bool { return l.bridge.Stats().Announced == 2 })
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "promoted", After: after})
	l.tick(announcePace)
	l.tick(0)
	if n := l.bridge.Stats().Announced; n != 2 {
		t.Errorf("%d announced", n)
	}
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "what was left is gone"})
	ndistest.Await(t, "announcement", func() bool { return l.bridge.Stats().Announced == 3 })
}

// An announcement that a pause ended, or kept from beginning, is made when the port
// is back.
func TestAnnounceOwed(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	l.counts()
	for i, after := range []time.Duration{0, 100 * time.Millisecond} {
		l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "promoted", After: after})
		if after == 0 {
			ndistest.Await(t, "first round", func() bool { return l.bridge.Stats().Announced == 1 })
		}
		before := l.bridge.Stats().Announced
		if err := l.core.Restart(t.Context(), "p0", "test"); err != nil {
			t.Fatal(err)
		}
		l.tick(announcePace)
		ndistest.Await(t, fmt.Sprint("announcement ", i), func() bool { return l.bridge.Stats().Announced == before+1 })
		l.tick(ndiscore.AnnounceAt[1])
		ndistest.Await(t, "second round", func() bool { return l.bridge.Stats().Announced == before+2 })
		l.tick(ndiscore.AnnounceAt[2] - ndiscore.AnnounceAt[1])
		ndistest.Await(t, "third round", func() bool { return l.bridge.Stats().Announced == before+3 })
		l.tick(announcePace)
	}
	before := l.bridge.Stats().Announced
	if err := l.core.Restart(t.Context(), "p0", "test"); err != nil {
		t.Fatal(err)
	}
	l.tick(ndiscore.AnnounceAt[2])
	l.tick(0)
	if n := l.bridge.Stats().Announced; n != before {
		t.Errorf("%d announced of which nobody asked", n-before)
	}
}

// The keeper hangs in the Send of one port; the others go and come.
func TestKeeperStuck(t *testing.T) {
	l := newLAN(t, 3, false, nil)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	begun, let := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	l.wires[0].answer = func(*ndiscore.Worker) {
		if first.CompareAndSwap(false, true) {
			close(begun)
			<-let
		}
	}
	l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "a member left"})
	<-begun
	if err := l.core.Restart(t.Context(), "p2", "test"); err != nil {
		t.Error(err)
	}
	l.wires[1].take()
	l.wires[2].receive(frame(ndiscore.Broadcast, mac(2)))
	if n := len(l.wires[1].take()); n != 1 {
		t.Errorf("%d frames from the port that is back", n)
	}
	l.wires[2].handle.IndicateStatus(ndiscore.NetworkChange{Why: "meanwhile"})
	announced := l.bridge.Stats().Announced
	close(let)
	ndistest.Await(t, "what was asked for meanwhile", func() bool { return l.bridge.Stats().Announced > announced+1 })
	if err := l.core.Restart(t.Context(), "p0", "test"); err != nil {
		t.Error(err)
	}
}

// TestAnnouncePace checks that many addresses go out in bounded bursts, that a
// storm of notices does not speed them up, and that a paused port gets none.
func TestAnnouncePace(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	const n = 600
	for i := range n {
		l.wires[1].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	l.counts()
	sent := func() int { return int(l.bridge.Stats().Announced) }
	notice := func() { l.wires[0].handle.IndicateStatus(ndiscore.NetworkChange{Why: "x"}) }
	notice()
	ndistest.Await(t, "first burst", func() bool { return sent() >= announceBurst })
	if s := sent(); s >= announceBurst+ndiscore.BatchFrames {
		t.Errorf("first burst %d", s)
	}
	before := sent()
	for range 100 {
		notice()
	}
	if k := l.bridge.keeper; k != nil {
		k.forgetPort(&port{}, false) // the keeper has seen all notices when it answers
	}
	if s := sent(); s != before {
		t.Errorf("a storm of notices sent %d more at once", s-before)
	}
	l.tick(announcePace)
	ndistest.Await(t, "second burst", func() bool { return sent() > before })
	if err := l.core.Pause(context.Background(), "p0", "test"); err != nil {
		t.Fatal(err)
	}
	before = sent()
	l.tick(announcePace)
	l.bridge.keeper.forgetPort(&port{}, false)
	l.bridge.keeper.forgetPort(&port{}, false)
	if s := sent(); s != before {
		t.Error("announced on a paused port")
	}
}

func TestRARPBytes(t *testing.T) {
	h := make([]byte, rarpLength)
	writeRARP(h, ndiscore.MAC{2, 3, 4, 5, 6, 7})
	want := "ffffffffffff" + "020304050607" + "8035" +
		"0001" + "0800" + "06" + "04" + "0003" +
		"020304050607" + "00000000" + "020304050607" + "00000000" + strings.Repeat("00", 18)
	if got := hex.EncodeToString(h); got != want {
		t.Errorf("\n%s, want\n%s", got, want)
	}
}

func TestRestart(t *testing.T) {
	ctx := context.Background()
	l := newLAN(t, 2, true, nil)
	for range 3 {
		if err := l.core.Stop(ctx, "lan", "test"); err != nil {
			t.Fatal(err)
		}
		l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
		l.want("ports go on without the virtual adapter", 0, 1, 0)
		if err := l.core.Start(ctx, "lan", "test"); err != nil {
			t.Fatal(err)
		}
		l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
		l.want("and the station is back", 0, 1, 1)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"needs a name":      {},
		"its own port":      {Name: "a", Ports: []string{"a"}},
		"listed twice":      {Name: "a", Ports: []string{"b", "b"}},
		"group address":     {Name: "a", MAC: ndiscore.Broadcast},
		"mtu 67":            {Name: "a", MTU: 67},
		"mac_age 1ms":       {Name: "a", Age: time.Millisecond},
		"mac_limit -1":      {Name: "a", MACLimit: -1},
		"1025 ports, at mo": {Name: "a", Ports: make([]string, 1025)},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestConcurrent runs receives on all ports against link changes, flushes,
// pauses, ageing and readers; the race detector and the sum rule judge.
func TestConcurrent(t *testing.T) {
	ctx := context.Background()
	l := newLAN(t, 4, true, func(o *Options) { o.MACLimit, o.Age = 64, 100*time.Millisecond })
	for _, w := range l.wires {
		w.keep = false
	}
	stop := make(chan struct{})
	var work, wg sync.WaitGroup
	for i, w := range l.wires {
		work.Go(func() {
			for n := range 500 {
				w.receive(frame(mac((n*7+i)%90), mac(n%80)), frame(ndiscore.Broadcast, mac(i*1000+n%30)), frame(l.bridge.MAC(), mac(n%80)))
			}
		})
	}
	go func() { work.Wait(); close(stop) }()
	loop := func(f func(n int)) {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					f(n)
				}
			}
		})
	}
	loop(func(int) { l.clock.Advance(10 * time.Millisecond); l.bridge.FDB(); l.bridge.Stats() })
	loop(func(n int) {
		m := ndiscore.MediaConnected
		if n%2 == 0 {
			m = ndiscore.MediaDisconnected
		}
		l.wires[0].handle.IndicateStatus(ndiscore.LinkState{Media: m, Why: "test"})
	})
	loop(func(n int) {
		if n%2 == 0 {
			_ = l.core.Pause(ctx, "p1", "test")
		} else {
			_ = l.core.Start(ctx, "p1", "test")
		}
	})
	loop(func(int) { _, _ = l.bridge.Flush("p2") })
	loop(func(int) { l.wires[3].handle.IndicateStatus(ndiscore.NetworkChange{Why: "test"}) })
	wg.Wait()
	for _, w := range l.wires {
		l.counters(w.name)
	}
	if s := l.bridge.Stats(); s.Entries > 64 {
		t.Errorf("%+v", s)
	}
}
