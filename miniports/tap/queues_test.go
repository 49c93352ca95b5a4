package tap_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Each frame arrives once, a flow in order, and all queues are used.
func TestQueues(t *testing.T) {
	for _, queues := range []int{1, 2, 5, 16} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			_, host := newHost(t)
			o := options(host)
			o.Queues = queues
			const many, each = 64, 10
			var mu sync.Mutex // guards next, count and wrong
			next, count, wrong := map[uint16]uint32{}, 0, []string{}
			r := netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", func(b *ndiscore.Batch) {
				mu.Lock()
				defer mu.Unlock()
				for _, f := range b.Frames {
					flow, seq, ok := netdevtest.FlowOf(f.Bytes(nil))
					if !ok {
						continue
					}
					if seq != next[flow] {
						wrong = append(wrong, fmt.Sprintf("flow %d: %d instead of %d", flow, seq, next[flow]))
					}
					next[flow] = seq + 1
					count++
				}
			}))
			if r.Attributes.Queues != queues {
				t.Errorf("attributes say %d queues", r.Attributes.Queues)
			}
			raw, err := host.OpenRaw("tap0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			own := r.Handle.NewWorker(50)
			for seq := range uint32(each) {
				for flow := range uint16(many) {
					if err := raw.Send(netdevtest.Datagram(flow, seq)); err != nil {
						t.Fatal(err)
					}
					b := ndiscore.NewBatch(own)
					b.Borrowed = true
					f := new(ndiscore.Frame)
					f.Reset(netdevtest.Datagram(1000+flow, seq), 0, len(netdevtest.Datagram(0, 0)))
					b.Append(f)
					r.Send(b)
					if b.Status[0] != ndiscore.DropNone {
						t.Fatalf("send: %v", b.Status[0])
					}
					got, err := raw.Recv(t.Context(), nil)
					if n, s, ok := netdevtest.FlowOf(got.Data); err != nil || !ok || n != 1000+flow || s != seq {
						t.Fatalf("got %d of flow %d, want %d of %d: %v", s, n, seq, 1000+flow, err)
					}
				}
				if seq == each/2 { // a rest in between loses nothing
					r.Rest()
					r.Run(t)
				}
			}
			err = lab.Eventually(t.Context(), "all frames", func() error {
				mu.Lock()
				defer mu.Unlock()
				if count < many*each {
					return fmt.Errorf("%d of %d", count, many*each)
				}
				return nil
			})
			r.Rest()
			if err != nil || len(wrong) > 0 || count != many*each {
				t.Errorf("%v; %d frames; %s", err, count, strings.Join(wrong, "; "))
			}
			r.Run(t)
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
		})
	}
}

// A device with several queues is adopted, kept through stops, and noticed by
// all of them when it goes.
func TestQueuesLife(t *testing.T) {
	lab.CheckLeaks(t)
	l, host := newHost(t)
	err := host.Do(func() error {
		return host.Netlink().LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_MULTI_QUEUE, Queues: 0})
	})
	if err != nil {
		t.Fatal(err)
	}
	o := options(host)
	o.Queues = 4
	p := &port{lab: l, host: host, frames: make(chan frame, 1000)}
	p.r = netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", p.take))
	for range 5 {
		p.r.StopFor(ndiscore.HaltDeviceStopped)
		p.r.Initialize(t)
		p.r.Run(t)
	}
	p.r.Stop()
	if !host.Exists("tap0") {
		t.Fatal("the device that was found is gone")
	}
	o.Queues = 1 // is right for it, too
	p.r = netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", p.take))
	p.r.Stop()
	o.Queues = 3
	p.r = netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", p.take))
	host.Delete("tap0")
	p.r.Handle.WaitVanished(t)
	for i := range 3 {
		if got := p.sendOn(p.r.Handle.NewWorker(i), test(60, 1)); got[0] != ndiscore.DropSurpriseRemoved {
			t.Errorf("send on what is gone: %v", got)
		}
	}
	p.r.StopFor(ndiscore.HaltSurpriseRemoved)
	if n := len(p.r.Handle.Removed()); n != 0 {
		t.Errorf("removed as failed %d times", n)
	}
}

func TestAttributesFollow(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, nil)
	raw, err := p.host.OpenRaw("tap0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.host.SetMTU("tap0", 9000)
	p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 9000)
	if err := raw.Send(test(9014, 3).Head); err != nil {
		t.Fatal(err)
	}
	p.await(t, "long frame", func(f frame) bool { return len(f.data) == 9014 })
	if got := p.send(test(9014, 4)); got[0] != ndiscore.DropNone {
		t.Errorf("send: %v", got)
	}
	// The address of the kernel's end is not ours.
	p.host.SetMAC("tap0", net.HardwareAddr{2, 0, 0, 0, 0, 9})
	p.host.SetMTU("tap0", 1500)
	p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 1500)
	for _, c := range p.r.Handle.Attributes() {
		if !c.MAC.IsZero() {
			t.Errorf("our end's address changed: %+v", c)
		}
	}
}

// A reset keeps the device, with its addresses, and sends under way cope.
func TestReset(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, func(o *tap.Options) { o.Queues = queues })
			p.host.AddAddr("tap0", "10.0.0.1/24")
			index := func() (int, string) {
				l, err := p.host.Netlink().LinkByName("tap0")
				if err != nil {
					t.Fatal(err)
				}
				addrs, err := p.host.Netlink().AddrList(l, netlink.FAMILY_V4)
				if err != nil {
					t.Fatal(err)
				}
				return l.Attrs().Index, fmt.Sprint(addrs)
			}
			was, addrs := index()
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
			send := func(mark byte) {
				t.Helper()
				raw, err := p.host.OpenRaw("tap0", lab.RawOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				// Its qdisc takes a moment to notice the carrier of one queue.
				err = lab.Eventually(t.Context(), "a frame", func() error {
					if err := raw.Send(test(60, mark).Head); err != nil {
						return err
					}
					for {
						select {
						case f := <-p.frames:
							if f.data[11] == mark {
								return nil
							}
						default:
							return errors.New("none yet")
						}
					}
				})
				if err != nil {
					t.Error(err)
				}
			}
			for i := range byte(10) {
				if addressing, err := reset.Reset(t.Context()); err != nil || addressing {
					t.Fatalf("reset: %v, %v", addressing, err)
				}
				send(20 + i)
			}
			stop.Store(true)
			wg.Wait()
			if n, a := index(); n != was || a != addrs {
				t.Errorf("the reset cost the device or its address: %s, was %s", a, addrs)
			}
			if n := len(p.r.Handle.Statuses()); n != 0 {
				t.Errorf("%d link changes told", n)
			}
			if p.r.Handle.Vanished() != 0 {
				t.Error("a reset was taken for a removal")
			}

			// Paused, with frames that wait: they are lost, and counted at the restart.
			p.r.Rest()
			raw, err := p.host.OpenRaw("tap0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
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
			p.r.Stop()
			if p.host.Exists("tap0") {
				t.Error("the reset made the device persistent")
			}
		})
	}
}

// A reset that cannot get new descriptors leaves the device with the old ones,
// if it can, and never with a reason to believe that the device is gone. The
// next one mends it.
func TestResetFails(t *testing.T) {
	for i := range 4 {
		queues, stops := 1+i%2, i > 1 // what comes after it: a stop and a start, or a reset that works
		t.Run(fmt.Sprintf("queues=%d,stops=%v", queues, stops), func(t *testing.T) {
			lab.CheckLeaks(t)
			_, host := newHost(t)
			broken := errors.New("broken on purpose")
			o := options(host)
			o.Queues = queues
			for n := 1; ; n++ {
				count, fail := 0, 0
				last := ""
				a, err := tap.NewWithSteps("lan0", *o, func(what string, f func() error) error {
					if count++; count == fail {
						last = what
						return fmt.Errorf("%s: %w", what, broken)
					}
					return tap.RealStep(what, f)
				})
				if err != nil {
					t.Fatal(err)
				}
				h := netdevtest.NewHandle("lan0", nil)
				if _, err := a.Initialize(t.Context(), h); err != nil {
					t.Fatal(err)
				}
				if err := a.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				count, fail = 0, n
				_, err = a.(ndiscore.Resetter).Reset(t.Context())
				if last != "" && (!errors.Is(err, broken) || !errors.Is(err, ndiscore.ErrHardErrors)) {
					t.Errorf("step %d: %v", n, err)
				}
				if !host.Exists("tap0") || h.Vanished() != 0 {
					t.Errorf("step %d (%s): the device is gone", n, last)
				}
				halfWay := last == "prepare to wait" || queues == 1 && last == "attach"
				if halfWay && !a.(ndiscore.HangChecker).CheckForHang() {
					t.Errorf("step %d (%s): without a queue, and not hung", n, last)
				}
				fail = 0
				if stops {
					a.Pause(t.Context())
					a.Halt(t.Context(), ndiscore.HaltDeviceStopped)
					if _, err := a.Initialize(t.Context(), h); err != nil {
						t.Fatalf("start after step %d (%s) failed: %v", n, last, err)
					}
					if err := a.Restart(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else if _, err := a.(ndiscore.Resetter).Reset(t.Context()); err != nil {
					t.Errorf("reset after step %d (%s) failed: %v", n, last, err)
				}
				a.Pause(t.Context())
				a.Halt(t.Context(), ndiscore.HaltDeviceDisabled)
				if host.Exists("tap0") {
					t.Errorf("step %d (%s): the device is left", n, last)
				}
				if last == "" {
					if err != nil || n < 4 {
						t.Errorf("%d steps, %v", n, err)
					}
					return
				}
			}
		})
	}
}

// Asleep the kernel's end has no carrier, and nothing is received or told.
func TestPower(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, func(o *tap.Options) { o.Queues = queues })
			power := func(s any) error {
				return p.r.Request(t.Context(), &ndiscore.OIDRequest{ID: ndiscore.OIDPnPSetPower, Kind: ndiscore.OIDSet, Data: s})
			}
			if err := power(ndiscore.PowerState(77)); !errors.Is(err, ndiscore.ErrInvalidData) {
				t.Errorf("no power state: %v", err)
			}
			raw, err := p.host.OpenRaw("tap0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for round := range byte(3) {
				p.r.Rest()
				for range 5 { // before the sleep: they wait, and are lost
					if err := raw.Send(test(60, 1).Head); err != nil {
						t.Fatal(err)
					}
				}
				if err := power(ndiscore.PowerD3); err != nil {
					t.Fatal(err)
				}
				if err := p.host.WaitLink(t.Context(), "tap0", lab.LinkDown); err != nil {
					t.Error(err)
				}
				told := len(p.r.Handle.Statuses()) + len(p.r.Handle.Attributes())
				p.host.SetMTU("tap0", 1400+int(round))
				if n := len(p.r.Handle.Statuses()) + len(p.r.Handle.Attributes()); n != told {
					t.Errorf("%d things told while asleep", n-told)
				}
				if err := errors.Join(power(ndiscore.PowerD0), power(ndiscore.PowerD0)); err != nil {
					t.Fatal(err)
				}
				p.r.Handle.WaitAttributes(t, ndiscore.MAC{}, 1400+int(round))
				p.r.Run(t)
				if err := p.host.WaitLink(t.Context(), "tap0", lab.LinkUp); err != nil {
					t.Error(err)
				}
				if err := raw.Send(test(60, 10+round).Head); err != nil {
					t.Fatal(err)
				}
				p.await(t, "frame after the sleep", func(f frame) bool {
					if f.data[11] == 1 {
						t.Error("a frame from before the sleep")
					}
					return f.data[11] == 10+round
				})
				err := lab.Eventually(t.Context(), "the lost frames to be counted", func() error {
					if n := p.r.Handle.DroppedFor(ndiscore.DropLowPower); n < 5*uint64(round+1) {
						return fmt.Errorf("%d", n)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			// Stopped while asleep, the device that is kept has its carrier back.
			p.r.Rest()
			if err := power(ndiscore.PowerD3); err != nil {
				t.Fatal(err)
			}
			p.r.StopFor(ndiscore.HaltDeviceStopped)
			if err := p.host.WaitLink(t.Context(), "tap0", lab.LinkUp); err != nil {
				t.Error(err)
			}
			p.r.Initialize(t)
			p.r.Run(t)
		})
	}
}

// What the kernel refuses to make costs no descriptor.
func TestRefusalLeaksNothing(t *testing.T) {
	lab.CheckLeaks(t)
	for range 3 {
		err := tap.WithoutRights(func() error { return tap.Create("tap9") })
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("made without the right to: %v", err)
		}
	}
}

// A send queue that takes nothing is noticed, and a reset mends it.
func TestCheckForHang(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, func(o *tap.Options) { o.Queues = 2 })
	hung := p.r.Adapter.(ndiscore.HangChecker).CheckForHang
	p.send(test(60, 1))
	if hung() {
		t.Error("hung, though a frame went out")
	}
	tap.SendThrough(p.r.Adapter, fullPipe(t))
	for range 3 {
		if hung() {
			t.Error("hung, though nobody sends")
		}
	}
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropTxQueueFull {
		t.Errorf("send into a full pipe: %v", got)
	}
	if !hung() {
		t.Error("not hung, though nothing goes out")
	}
	if st := p.r.Adapter.(ndiscore.Statser).DeviceStats(); st["tx_full"] != 1 {
		t.Errorf("%v", st)
	}
	if _, err := p.r.Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone || hung() {
		t.Errorf("send after the reset: %v", got)
	}
}
