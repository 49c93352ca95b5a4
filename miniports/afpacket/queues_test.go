package afpacket_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// flows follows many flows into an adapter.
type flows struct {
	mu    sync.Mutex // guards all below
	next  map[uint16]uint32
	from  map[uint16]int // the worker that brought it
	wrong []string
	count int
}

func (x *flows) take(b *ndiscore.Batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range b.Frames {
		flow, seq, ok := netdevtest.FlowOf(f.Bytes(nil))
		if !ok {
			continue
		}
		if seq != x.next[flow] {
			x.wrong = append(x.wrong, fmt.Sprintf("flow %d: %d instead of %d", flow, seq, x.next[flow]))
		}
		if w, known := x.from[flow]; known && w != b.Worker.ID() {
			x.wrong = append(x.wrong, fmt.Sprintf("flow %d changed its queue", flow))
		}
		x.next[flow], x.from[flow] = seq+1, b.Worker.ID()
		x.count++
	}
}

// Each frame arrives once, a flow in order and by one queue, all queues are
// used, and nothing that leaves through the interface comes back, neither the
// adapter's own nor what others on the machine send.
func TestQueues(t *testing.T) {
	for _, queues := range []int{1, 2, 5, 16} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			l := lab.NewTest(t)
			far, near := l.Host("far"), l.Host("near")
			l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
			o := options(near)
			o.Queues, o.RingMiB = queues, 16
			x := &flows{next: map[uint16]uint32{}, from: map[uint16]int{}}
			r := netdevtest.Start(t, afpacket.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("wan0", x.take))
			if r.Attributes.Queues != queues {
				t.Errorf("attributes say %d queues", r.Attributes.Queues)
			}
			raw, err := far.OpenRaw("eth0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			others, err := near.OpenRaw("p0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			const many, each = 64, 20
			own := r.Handle.NewWorker(50)
			for seq := range uint32(each) {
				for flow := range uint16(many) {
					if err := raw.Send(netdevtest.Datagram(flow, seq)); err != nil {
						t.Fatal(err)
					}
					b := ndiscore.NewBatch(own)
					b.Borrowed = true
					f := new(ndiscore.Frame)
					f.Reset(netdevtest.Datagram(1000+flow, 0), 0, len(netdevtest.Datagram(0, 0)))
					b.Append(f)
					r.Send(b)
					if b.Status[0] != ndiscore.DropNone {
						t.Fatalf("send: %v", b.Status[0])
					}
					if err := others.Send(netdevtest.Datagram(2000+flow, 0)); err != nil {
						t.Fatal(err)
					}
				}
				if seq == each/2 { // a rest in between loses nothing
					r.Rest()
					r.Run(t)
					x.mu.Lock()
					clear(x.from) // other workers from here on
					x.mu.Unlock()
				}
			}
			err = lab.Eventually(t.Context(), "all frames", func() error {
				x.mu.Lock()
				defer x.mu.Unlock()
				if x.count < many*each {
					return fmt.Errorf("%d of %d", x.count, many*each)
				}
				return nil
			})
			r.Rest()
			x.mu.Lock()
			defer x.mu.Unlock()
			if err := errors.Join(err); err != nil || len(x.wrong) > 0 || x.count != many*each {
				t.Errorf("%v; %d frames; %s", err, x.count, strings.Join(x.wrong, "; "))
			}
			for flow := range x.next {
				if flow >= 1000 {
					t.Errorf("flow %d, which left, came back", flow)
				}
			}
			if queues == 1 {
				return
			}
			st := r.Adapter.(ndiscore.Statser).DeviceStats()
			var rx, tx uint64
			used := 0
			for i := range queues {
				n := st[fmt.Sprintf("queue%d_rx_frames", i)]
				rx, tx = rx+n, tx+st[fmt.Sprintf("queue%d_tx_frames", i)]
				if n > 0 {
					used++
				}
			}
			if used < min(queues, 4) || rx < many*each || tx != many*each || st[fmt.Sprintf("queue%d_tx_frames", own.ID()%queues)] != tx {
				t.Errorf("%d queues used: %v", used, st)
			}
			r.Run(t)
		})
	}
}

// What happens to an interface happens to all its queues.
func TestQueuesLink(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, func(o *afpacket.Options) { o.Queues = 4 })
	h := p.r.Handle
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.near.Down("p0")
		h.WaitLink(t, ndiscore.MediaDisconnected)
		for q := range 4 {
			if got := p.sendOn(h.NewWorker(q), test(60, 1)); got[0] != ndiscore.DropLinkDown {
				t.Errorf("send on a downed interface: %v", got)
			}
		}
		p.near.Up("p0")
		h.WaitLink(t, ndiscore.MediaConnected)
		for flow := range uint16(16) {
			if err := raw.Send(netdevtest.Datagram(flow, 7)); err != nil {
				t.Fatal(err)
			}
			p.await(t, "frame of the flow", func(f frame) bool { n, _, ok := netdevtest.FlowOf(f.data); return ok && n == flow })
		}
	}
	p.near.Delete("p0")
	h.WaitVanished(t)
	p.r.StopFor(ndiscore.HaltSurpriseRemoved)
}

// The MTU and the address of the interface are followed, and frames longer than
// the ring was made for arrive.
func TestAttributesFollow(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t)
	p.far.SetMTU("eth0", 9000)
	p.near.SetMTU("p0", 9000)
	p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 9000)
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(n int) {
		t.Helper()
		data := test(n, 3).Head
		if err := raw.Send(data); err != nil {
			t.Fatal(err)
		}
		p.await(t, "long frame", func(f frame) bool { return string(f.data) == string(data) })
		if got := p.send(test(n, 4)); got[0] != ndiscore.DropNone {
			t.Fatalf("send: %v", got)
		}
		if _, err := raw.Recv(t.Context(), func(f lab.RawFrame) bool { return len(f.Data) == n && f.Data[11] == 4 }); err != nil {
			t.Fatal(err)
		}
	}
	exchange(9014)
	if _, err := p.r.Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil { // makes the ring for it
		t.Fatal(err)
	}
	exchange(9014)
	p.near.SetMTU("p0", 1500)
	p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 1500)
	if got := p.send(test(9014, 4)); got[0] != ndiscore.DropTooBig {
		t.Errorf("a long frame after the MTU was lowered: %v", got)
	}
	mac := ndiscore.MAC{2, 0, 0, 0, 0, 0x77}
	p.near.SetMAC("p0", mac[:])
	p.r.Handle.WaitAttributes(t, mac, 1500)
}

// A reset keeps link, memberships and address, and frames pass before and after;
// sends that are under way cope.
func TestReset(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, func(o *afpacket.Options) { o.Queues = queues })
			raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var stop atomic.Bool
			var wg sync.WaitGroup
			for i := range 3 {
				w := p.r.Handle.NewWorker(60 + i)
				wg.Go(func() {
					for !stop.Load() {
						for _, r := range p.sendOn(w, test(60, 1), test(900, 2)) {
							if r != ndiscore.DropNone && r != ndiscore.DropReset && r != ndiscore.DropTxQueueFull {
								t.Errorf("send beside a reset: %v", r)
								return
							}
						}
					}
				})
			}
			reset := p.r.Adapter.(ndiscore.Resetter)
			for i := range byte(10) {
				if addressing, err := reset.Reset(t.Context()); err != nil || addressing {
					t.Fatalf("reset: %v, %v", addressing, err)
				}
				if err := raw.Send(test(60, 20+i).Head); err != nil {
					t.Fatal(err)
				}
				p.await(t, "frame after the reset", func(f frame) bool { return f.data[11] == 20+i })
			}
			stop.Store(true)
			wg.Wait()
			if n := promisc(t, p); n != 1 {
				t.Errorf("%d promiscuous memberships after resets", n)
			}
			if n := len(p.r.Handle.Statuses()); n != 0 {
				t.Errorf("%d link changes told", n)
			}

			// Paused, with frames that wait: they are lost, and counted at the restart.
			p.r.Rest()
			for flow := range uint16(30) {
				if err := raw.Send(netdevtest.Datagram(flow, 0)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := reset.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.r.Run(t)
			err = lab.Eventually(t.Context(), "the lost frames to be counted", func() error {
				if n := p.r.Handle.DroppedFor(ndiscore.DropReset); n < 30 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone {
				t.Errorf("send: %v", got)
			}
		})
	}
}

func promisc(t *testing.T, p *port) int {
	t.Helper()
	l, err := p.near.Netlink().LinkByName("p0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Promisc
}

// A reset for which there are no new sockets leaves the old ones at work.
func TestResetFails(t *testing.T) {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	far, near := l.Host("far"), l.Host("near")
	l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
	raw, err := far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken on purpose")
	var count, fail atomic.Int64
	o := options(near)
	o.Queues = 2
	a, err := afpacket.NewWithSteps("wan0", *o, func(what string, f func() error) error {
		if count.Add(1) == fail.Load() {
			return fmt.Errorf("%s: %w", what, broken)
		}
		return afpacket.RealStep(what, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	h := netdevtest.NewHandle("wan0", nil)
	if _, err := a.Initialize(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := int64(1); ; n++ {
		count.Store(0)
		fail.Store(n)
		_, err := a.(ndiscore.Resetter).Reset(t.Context())
		if err == nil {
			if n < 10 {
				t.Errorf("only %d steps", n)
			}
			break
		}
		if !errors.Is(err, broken) || !errors.Is(err, ndiscore.ErrHardErrors) {
			t.Errorf("step %d: %v", n, err)
		}
		if strings.Contains(err.Error(), "listen") { // the new ones are in place, deaf as they are
			continue
		}
		before := h.Received()
		if err := raw.Send(test(60, 1).Head); err != nil {
			t.Fatal(err)
		}
		err = lab.Eventually(t.Context(), "a frame", func() error {
			if h.Received() == before {
				return errors.New("none received")
			}
			return nil
		})
		if err != nil {
			t.Errorf("step %d: %v", n, err)
		}
	}
	a.Pause(t.Context())
	a.Halt(t.Context(), ndiscore.HaltDeviceDisabled)
}

// An interface that takes no more frames is noticed, one that is idle or slow is
// not.
func TestCheckForHang(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, func(o *afpacket.Options) { o.Queues = 2 })
	hung := p.r.Adapter.(ndiscore.HangChecker).CheckForHang
	for range 3 {
		if hung() {
			t.Fatal("idle, and hung")
		}
	}
	mend := wedge(t, p.near, "p0")
	fill := func() {
		t.Helper()
		for range 1 << 20 {
			if got := p.send(test(1514, 1)); got[0] == ndiscore.DropTxQueueFull {
				return
			} else if got[0] != ndiscore.DropNone {
				t.Fatalf("send: %v", got)
			}
		}
		t.Fatal("there is always room")
	}
	fill()
	if hung() {
		t.Error("hung, though frames went out since the last look")
	}
	if hung() {
		t.Error("hung, though nobody sends")
	}
	err := lab.Eventually(t.Context(), "a look between two frames that go out", func() error {
		fill()
		if !hung() {
			return errors.New("not hung")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// New sockets have room again, whatever the old ones still wait for.
	if _, err := p.r.Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone {
		t.Errorf("send after the reset: %v", got)
	}
	if hung() {
		t.Error("hung after the reset")
	}
	mend()
}

// Asleep nothing arrives, nothing collects in the ring, and nothing is told;
// awake it is as it was.
func TestPower(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, func(o *afpacket.Options) { o.Queues, o.RingMiB = queues, 1 })
			raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			power := func(s any) error {
				return p.r.Request(t.Context(), &ndiscore.OIDRequest{ID: ndiscore.OIDPnPSetPower, Kind: ndiscore.OIDSet, Data: s})
			}
			if err := power(ndiscore.PowerState(77)); !errors.Is(err, ndiscore.ErrInvalidData) {
				t.Errorf("no power state: %v", err)
			}
			for round := range byte(3) {
				p.r.Rest()
				waiting := p.r.Handle.DroppedFor(ndiscore.DropLowPower)
				for range 5 { // before the sleep: they wait, and are lost
					if err := raw.Send(test(2000-600, 1).Head); err != nil {
						t.Fatal(err)
					}
				}
				if err := power(ndiscore.PowerD3); err != nil {
					t.Fatal(err)
				}
				full := p.r.Adapter.(ndiscore.Statser).DeviceStats()["kernel_ring_full"]
				for range 3000 { // many times what the ring holds
					if err := raw.Send(test(60, 2).Head); err != nil {
						t.Fatal(err)
					}
				}
				told := len(p.r.Handle.Statuses()) + len(p.r.Handle.Attributes())
				p.near.SetMTU("p0", 1400+int(round))
				p.far.Down("eth0")
				if round == 1 {
					p.far.Up("eth0")
					p.near.WaitLink(t.Context(), "p0", lab.LinkUp)
				}
				if n := len(p.r.Handle.Statuses()) + len(p.r.Handle.Attributes()); n != told {
					t.Errorf("%d things told while asleep", n-told)
				}
				if err := errors.Join(power(ndiscore.PowerD0), power(ndiscore.PowerD0)); err != nil {
					t.Fatal(err)
				}
				p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 1400+int(round))
				if round != 1 {
					p.far.Up("eth0")
				}
				for _, h := range []*lab.Host{p.near, p.far} {
					name := map[*lab.Host]string{p.near: "p0", p.far: "eth0"}[h]
					if err := h.WaitLink(t.Context(), name, lab.LinkUp); err != nil {
						t.Fatal(err)
					}
				}
				p.near.SetMTU("p0", 1500)
				p.r.Run(t)
				_ = raw.Send(test(60, 3).Head) // the socket remembers, once, that it was down
				if err := raw.Send(test(60, 10+round).Head); err != nil {
					t.Fatal(err)
				}
				p.await(t, "frame after the sleep", func(f frame) bool {
					if f.data[11] == 2 {
						t.Error("a frame that came during the sleep")
					}
					return f.data[11] == 10+round
				})
				err := lab.Eventually(t.Context(), "the lost frames to be counted", func() error {
					if n := p.r.Handle.DroppedFor(ndiscore.DropLowPower) - waiting; n < 5 || n > 50 {
						return fmt.Errorf("%d", n)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				if n := p.r.Adapter.(ndiscore.Statser).DeviceStats()["kernel_ring_full"]; n != full {
					t.Errorf("the ring overflowed by %d frames during the sleep", n-full)
				}
			}
		})
	}
}

// allMulticast reports whether somebody has the interface take every group.
func allMulticast(name string) (bool, error) {
	const countAll = 61 // IFLA_ALLMULTI
	i, err := net.InterfaceByName(name)
	if err != nil {
		return false, err
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(i.Index)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return false, err
	}
	attrs, err := nl.ParseRouteAttr(answers[0][unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		if a.Attr.Type == countAll {
			return binary.NativeEndian.Uint32(a.Value) > 0, nil
		}
	}
	return false, errors.Join(err, errors.New("the kernel does not say"))
}

// The interface takes the groups that are wanted, and all of them when they are
// too many.
func TestMulticastList(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t)
	request := func(id ndiscore.OID, data any) error {
		return p.r.Request(t.Context(), &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDSet, Data: data})
	}
	set := func(f ndiscore.PacketFilter, groups ...ndiscore.MAC) {
		t.Helper()
		if err := errors.Join(request(ndiscore.OID8023MulticastList, groups), request(ndiscore.OIDGenCurrentPacketFilter, f)); err != nil {
			t.Fatal(err)
		}
	}
	group := func(i int) ndiscore.MAC { return ndiscore.MAC{0x33, 0x33, 0x77, 0, 0, byte(i)} }
	// state is the groups of ours that the kernel has the interface take, and
	// whether it takes all.
	state := func() (n int, all bool) {
		t.Helper()
		err := p.near.Do(func() error {
			b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
			n = strings.Count(string(b), "333377")
			return err
		})
		if err := errors.Join(err, p.near.Do(func() (err error) { all, err = allMulticast("p0"); return err })); err != nil {
			t.Fatal(err)
		}
		return n, all
	}
	expect := func(what string, n int, all bool) {
		t.Helper()
		if gotN, gotAll := state(); gotN != n || gotAll != all {
			t.Errorf("%s: %d groups, all: %v; want %d, %v", what, gotN, gotAll, n, all)
		}
	}
	expect("promiscuous", 0, true)
	set(ndiscore.FilterDirected|ndiscore.FilterMulticast, group(1), group(2))
	expect("two groups", 2, false)
	set(ndiscore.FilterDirected|ndiscore.FilterMulticast, group(2), group(3), group(4))
	expect("three others", 3, false)
	if _, err := p.r.Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("after a reset", 3, false)
	var many []ndiscore.MAC
	for i := range p.r.Attributes.MaxMulticast + 1 {
		many = append(many, group(i))
	}
	set(ndiscore.FilterDirected|ndiscore.FilterMulticast, many...)
	expect("too many", 0, true)
	set(ndiscore.FilterDirected|ndiscore.FilterMulticast, many[1:]...)
	expect("just as many as there may be", p.r.Attributes.MaxMulticast, false)
	set(ndiscore.FilterStation, group(1))
	expect("all wanted", 0, true)
	set(ndiscore.FilterDirected, group(1))
	expect("none wanted", 0, false)
	for data, want := range map[any]error{"x": ndiscore.ErrInvalidData, ndiscore.MAC{2}: ndiscore.ErrMulticastFull} {
		if m, ok := data.(ndiscore.MAC); ok {
			data = []ndiscore.MAC{m}
		}
		if err := request(ndiscore.OID8023MulticastList, data); !errors.Is(err, want) {
			t.Errorf("list %v: %v", data, err)
		}
	}
	set(ndiscore.FilterDirected|ndiscore.FilterMulticast, group(1))
	p.r.Stop()
	expect("halted", 0, false)
}
