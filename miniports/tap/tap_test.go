package tap_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestMain(m *testing.M) { lab.Main(m) }

// port is one adapter whose device's kernel end belongs to a host.
//
//	host [tap0] ##adapter##
type port struct {
	lab    *lab.Lab
	host   *lab.Host
	r      *netdevtest.Running
	worker *ndiscore.Worker
	frames chan frame // a copy of everything received
}

type frame struct {
	data    []byte
	offload ndiscore.Offload
}

func options(h *lab.Host) *tap.Options {
	o := tap.NewOptions()
	o.Netns, o.Interface = h.Path(), "tap0"
	return o
}

func newHost(t testing.TB) (*lab.Lab, *lab.Host) {
	l := lab.NewTest(t)
	return l, l.Host("host")
}

func newPort(t testing.TB, change func(*tap.Options)) *port {
	l, h := newHost(t)
	p := &port{lab: l, host: h, frames: make(chan frame, 1000)}
	o := options(h)
	if change != nil {
		change(o)
	}
	p.r = netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", p.take))
	p.worker = p.r.Handle.NewWorker(99)
	return p
}

func (p *port) take(b *ndiscore.Batch) {
	if !b.Borrowed {
		panic("pooled memory indicated as if it could be kept")
	}
	for _, f := range b.Frames {
		select {
		case p.frames <- frame{f.Bytes(nil), f.Offload}:
		default:
		}
	}
}

func (p *port) send(frames ...*ndiscore.Frame) []ndiscore.DropReason {
	return p.sendOn(p.worker, frames...)
}

// sendOn is send by the goroutine of w.
func (p *port) sendOn(w *ndiscore.Worker, frames ...*ndiscore.Frame) []ndiscore.DropReason {
	b := ndiscore.NewBatch(w)
	b.Borrowed = true
	for _, f := range frames {
		b.Append(f)
	}
	p.r.Send(b)
	return append([]ndiscore.DropReason(nil), b.Status[:len(frames)]...)
}

func (p *port) await(t *testing.T, what string, want func(frame) bool) frame {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case f := <-p.frames:
			if want(f) {
				return f
			}
		case <-limit:
			t.Fatalf("no %s", what)
		}
	}
}

// test makes a frame of n bytes of a type that no kernel speaks.
func test(n int, mark byte) *ndiscore.Frame {
	b := bytes.Repeat([]byte{mark}, n)
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, mark, 0x88, 0xb5})
	f := new(ndiscore.Frame)
	f.Reset(b, 0, n)
	return f
}

// superUDP is a train of UDP/IPv6 datagrams as one frame.
func superUDP(payload, size int) *ndiscore.Frame {
	const l4 = ndiscore.EthernetHeader + 40
	room := make([]byte, ndiscore.Headroom+l4+8+payload)
	b := room[ndiscore.Headroom:]
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60})
	be := binary.BigEndian
	be.PutUint16(b[18:], uint16(8+payload))
	b[20], b[21] = unix.IPPROTO_UDP, 64
	b[22], b[37], b[38], b[53] = 0xfd, 1, 0xfd, 2
	be.PutUint16(b[l4:], 7)
	be.PutUint16(b[l4+2:], 7)
	be.PutUint16(b[l4+4:], uint16(8+payload))
	for i := range payload {
		b[l4+8+i] = byte(i * 31)
	}
	be.PutUint16(b[l4+6:], ndiscore.PseudoChecksum(b[22:38], b[38:54], unix.IPPROTO_UDP, 8+payload))
	f := new(ndiscore.Frame)
	f.Reset(room, ndiscore.Headroom, len(b))
	f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOUDPL4, GSOSize: uint16(size), HdrLen: l4 + 8, CsumStart: l4, CsumOffset: 6}
	return f
}

func TestSend(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, nil)
	raw, err := p.host.OpenRaw("tap0", lab.RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	pieces := test(14, 3)
	pieces.Segs = [][]byte{bytes.Repeat([]byte{4}, 300), nil, bytes.Repeat([]byte{5}, 700)}
	tooMany := test(14, 8)
	tooMany.Segs = make([][]byte, tap.MaxVectors)
	super := superUDP(40*1000, 1000)
	got := p.send(test(60, 1), test(20, 2), pieces, tooMany, super, test(1514, 10))
	want := []ndiscore.DropReason{0, 0, 0, ndiscore.DropTooBig, 0, 0}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("status %v, want %v", got, want)
	}
	for i, data := range [][]byte{test(60, 1).Head, test(20, 2).Head, pieces.Bytes(nil), super.Head, test(1514, 10).Head} {
		f, err := raw.Recv(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.Data, data) {
			t.Errorf("frame %d arrived as %d bytes, %+v", i, len(f.Data), f.Vnet)
		}
	}
	kept := ndiscore.NewBatch(nil)
	kept.Append(test(60, 11))
	p.r.Send(kept)
	if p.r.Handle.SendCompletes() != 1 {
		t.Error("a batch that the adapter owned was not given back")
	}
}

func TestReceive(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, nil)
	raw, err := p.host.OpenRaw("tap0", lab.RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	vlan := append(append([]byte(nil), test(100, 1).Head[:12]...), 0x81, 0, 0xe1, 0x23)
	vlan = append(vlan, test(100, 1).Head[12:]...)
	for _, data := range [][]byte{test(60, 1).Head, vlan, test(1514, 2).Head} {
		if err := raw.Send(data); err != nil {
			t.Fatal(err)
		}
		got := p.await(t, "frame", func(f frame) bool { return len(f.data) == len(data) })
		if !bytes.Equal(got.data, data) || got.offload != (ndiscore.Offload{}) {
			t.Errorf("%d bytes: %x…, %+v", len(got.data), got.data[:20], got.offload)
		}
	}
	super := superUDP(40*1000, 1000)
	v := lab.VnetHeader{Flags: lab.VnetNeedsChecksum, GSOType: 5, HdrLen: 62, GSOSize: 1000, CsumStart: 54, CsumOffset: 6}
	if err := raw.SendVnet(v, super.Head); err != nil {
		t.Fatal(err)
	}
	got := p.await(t, "super-frame", func(f frame) bool { return len(f.data) > 40000 })
	if !bytes.Equal(got.data, super.Head) || got.offload != super.Offload {
		t.Errorf("super-frame: %d bytes, %+v, want %+v", len(got.data), got.offload, super.Offload)
	}
	err = lab.Eventually(t.Context(), "the buffers to go back", func() error {
		p.r.Rest() // otherwise the goroutine owns what we look at
		defer p.r.Run(t)
		if tap.Awake(p.r.Adapter) {
			return errors.New("held while asleep")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// C-72: EIO is down, and only EBADFD is gone.
func TestLink(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, nil)
	h := p.r.Handle
	if !p.r.Attributes.Link.Connected() {
		t.Errorf("at first %+v", p.r.Attributes)
	}
	p.host.Down("tap0")
	if got := p.send(test(60, 1), test(60, 2)); got[0] != ndiscore.DropLinkDown || got[1] != ndiscore.DropLinkDown {
		t.Errorf("send on a downed device: %v", got)
	}
	h.WaitLink(t, ndiscore.MediaDisconnected)
	p.host.Up("tap0")
	h.WaitLink(t, ndiscore.MediaConnected)
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone {
		t.Errorf("send on a device that is up again: %v", got)
	}
	if h.Vanished() != 0 || len(h.Removed()) != 0 {
		t.Error("down was taken for gone")
	}
	p.host.Delete("tap0")
	h.WaitVanished(t)
	if got := p.send(test(60, 1), test(60, 2)); got[0] != ndiscore.DropSurpriseRemoved || got[1] != ndiscore.DropSurpriseRemoved {
		t.Errorf("send on what is gone: %v", got)
	}
	if n := len(h.Removed()); n != 0 {
		t.Errorf("removed as failed %d times", n)
	}
	p.r.StopFor(ndiscore.HaltSurpriseRemoved)
	if p.host.Exists("tap0") {
		t.Error("a deleted device is back")
	}

	// Somebody makes it again: AwaitDevice ends, and the adapter adopts it.
	back := make(chan error, 1)
	go func() { back <- p.r.Adapter.(ndiscore.LowerDevice).AwaitDevice(context.Background()) }()
	persistent(t, p.host, "tap0")
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	p.r.Initialize(t)
	p.r.Run(t)
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone {
		t.Errorf("send after the return: %v", got)
	}
}

// The first to notice a deletion may be a send.
func TestDeletedWhilePaused(t *testing.T) {
	p := newPort(t, nil)
	p.r.Rest()
	p.host.Delete("tap0")
	p.r.Handle.WaitVanished(t)
	p.r.Run(t)
	p.r.StopFor(ndiscore.HaltSurpriseRemoved)
}

// persistent makes a TAP device that outlives its maker.
func persistent(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	err := h.Do(func() error {
		return h.Netlink().LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPersistence(t *testing.T) {
	for _, c := range []struct {
		name   string
		found  bool
		option bool
		stays  bool
	}{
		{"made and taken away", false, false, false},
		{"made to stay", false, true, true},
		{"found, so it stays", true, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.CheckLeaks(t)
			l, h := newHost(t)
			if c.found {
				persistent(t, h, "tap0")
			}
			o := options(h)
			o.Persist = c.option
			p := &port{lab: l, host: h}
			p.r = netdevtest.Start(t, tap.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("lan0", nil))
			h.AddAddr("tap0", "10.0.0.1/24")
			index := func() int {
				l, err := h.Netlink().LinkByName("tap0")
				if err != nil {
					t.Fatal(err)
				}
				return l.Attrs().Index
			}
			was := index()
			// Stopped to be started again: the device and its addresses stay.
			p.r.StopFor(ndiscore.HaltDeviceStopped)
			if index() != was {
				t.Error("the stop cost the device")
			}
			p.r.Initialize(t)
			p.r.Run(t)
			l4, err := h.Netlink().AddrList(nil, netlink.FAMILY_V4)
			if err != nil || index() != was || !strings.Contains(fmt.Sprint(l4), "10.0.0.1") {
				t.Errorf("the restart cost the device or its address: %v %v", l4, err)
			}
			p.r.Stop()
			if h.Exists("tap0") != c.stays {
				t.Errorf("afterwards there: %v, want %v", h.Exists("tap0"), c.stays)
			}
		})
	}
}

func TestOptionsAreSet(t *testing.T) {
	p := newPort(t, func(o *tap.Options) { o.MTU, o.MAC = 4321, "02:00:00:00:12:34" })
	mac, _ := p.host.MAC("tap0")
	if mtu, _ := p.host.MTU("tap0"); mtu != 4321 || p.r.Attributes.MTU != 4321 || mac.String() != "02:00:00:00:12:34" {
		t.Errorf("mtu %d, %d, mac %v", mtu, p.r.Attributes.MTU, mac)
	}
	own := p.r.Attributes.MAC
	if own == ndiscore.MAC(mac) || own.IsGroup() || own[0]&2 == 0 || own != netdev.StationMAC("lan0") {
		t.Errorf("our own end has %v", own)
	}
	if p.r.Attributes.Transmit != ndiscore.CapAll || p.r.Attributes.Receive != ndiscore.CapAll || p.r.Attributes.Device != "tap0" {
		t.Errorf("%+v", p.r.Attributes)
	}
	q := newPort(t, func(o *tap.Options) { o.Up = false })
	if q.r.Attributes.Link.Connected() {
		t.Error("set up though it should not be")
	}
}

// move takes an interface of one host to another, where it is down.
func move(t *testing.T, from *lab.Host, name string, to *lab.Host) {
	t.Helper()
	l, err := from.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	err = to.Do(func() error {
		ns, err := netdev.OpenNamespace("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		return from.Netlink().LinkSetNsFd(l, ns.FD())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A device that somebody moves to another namespace works there as at home, link
// and MTU are followed, a reset finds it, and it may come home and leave again.
// Its deletion is a surprise removal wherever it is.
func TestMoved(t *testing.T) {
	for _, c := range []struct {
		name   string
		queues int
		end    string // where it is deleted
	}{
		{"deleted there", 1, "there"},
		{"deleted at home", 1, "home"},
		{"several queues", 2, "there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, func(o *tap.Options) { o.Queues = c.queues })
			there := p.lab.Host("there")
			h := p.r.Handle
			works := func(at *lab.Host, mark byte) {
				t.Helper()
				h.WaitLink(t, ndiscore.MediaDisconnected) // moving sets it down
				at.Up("tap0")
				h.WaitLink(t, ndiscore.MediaConnected)
				mtu := 2000 + int(mark)
				at.SetMTU("tap0", mtu)
				h.WaitAttributes(t, ndiscore.MAC{}, mtu)
				raw, err := at.OpenRaw("tap0", lab.RawOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				if got := p.send(test(60, mark)); got[0] != ndiscore.DropNone {
					t.Errorf("send: %v", got)
				}
				if _, err := raw.Recv(t.Context(), func(f lab.RawFrame) bool { return f.Data[11] == mark }); err != nil {
					t.Error(err)
				}
				if err := raw.Send(test(60, mark+1).Head); err != nil {
					t.Fatal(err)
				}
				p.await(t, "frame", func(f frame) bool { return f.data[11] == mark+1 })
			}
			move(t, p.host, "tap0", there)
			works(there, 10)
			if _, err := p.r.Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			there.Down("tap0")
			works(there, 20)
			move(t, there, "tap0", p.host)
			works(p.host, 30)
			if h.Vanished() != 0 || len(h.Removed()) != 0 {
				t.Error("moved was taken for gone")
			}
			at := p.host
			if c.end == "there" {
				move(t, p.host, "tap0", there)
				works(there, 40)
				at = there
			}
			at.Delete("tap0")
			h.WaitVanished(t)
			p.r.StopFor(ndiscore.HaltSurpriseRemoved)
		})
	}
}

// A stopped adapter keeps its device, which is found again wherever it is by then,
// under whatever name.
func TestStoppedAndMoved(t *testing.T) {
	for _, c := range []struct {
		name string
		when string
	}{
		{"moved before the stop", "before"},
		{"moved while stopped", "while"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPort(t, nil)
			there := p.lab.Host("there")
			if c.when == "before" {
				move(t, p.host, "tap0", there)
				p.r.Handle.WaitLink(t, ndiscore.MediaDisconnected)
			}
			p.r.StopFor(ndiscore.HaltDeviceStopped)
			h := netdevtest.NewHandle("lan0", p.take) // that has heard nothing yet
			p.r.Handle = h
			if c.when == "while" {
				move(t, p.host, "tap0", there)
			}
			there.SetMTU("tap0", 2001)
			there.Up("tap0")
			mac, _ := there.MAC("tap0")
			p.r.Initialize(t)
			p.r.Run(t)
			if a := p.r.Attributes; !a.Link.Connected() || !strings.Contains(a.Link.Why, "another network namespace") || a.MTU != 2001 {
				t.Errorf("started with %+v", a)
			}
			if now, err := there.MAC("tap0"); err != nil || now.String() != mac.String() {
				t.Errorf("its address was %s, now %s (%v)", mac, now, err)
			}
			if p.host.Exists("tap0") {
				t.Error("another device was made at home")
			}
			raw, err := there.OpenRaw("tap0", lab.RawOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if err := raw.Send(test(60, 7).Head); err != nil {
				t.Fatal(err)
			}
			p.await(t, "frame", func(f frame) bool { return f.data[11] == 7 })
			// It is followed there, home, and to its end.
			there.Down("tap0")
			h.WaitLink(t, ndiscore.MediaDisconnected)
			move(t, there, "tap0", p.host)
			p.host.Up("tap0")
			h.WaitLink(t, ndiscore.MediaConnected)
			p.host.SetMTU("tap0", 2002)
			h.WaitAttributes(t, ndiscore.MAC{}, 2002)
			p.host.Delete("tap0")
			h.WaitVanished(t)
			p.r.StopFor(ndiscore.HaltSurpriseRemoved)
		})
	}
	t.Run("renamed while stopped", func(t *testing.T) {
		lab.CheckLeaks(t)
		p := newPort(t, nil)
		p.r.StopFor(ndiscore.HaltDeviceStopped)
		p.host.Down("tap0")
		l, err := p.host.Netlink().LinkByName("tap0")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.host.Netlink().LinkSetName(l, "other0"); err != nil {
			t.Fatal(err)
		}
		p.r.Initialize(t)
		p.r.Run(t)
		if p.r.Attributes.Link.Connected() || p.host.Exists("tap0") {
			t.Errorf("started with %+v; tap0 there: %v", p.r.Attributes, p.host.Exists("tap0"))
		}
		p.host.Up("other0")
		p.r.Handle.WaitLink(t, ndiscore.MediaConnected)
	})
	t.Run("deleted while stopped", func(t *testing.T) {
		lab.CheckLeaks(t)
		p := newPort(t, nil)
		p.r.StopFor(ndiscore.HaltDeviceStopped)
		p.host.Delete("tap0")
		persistent(t, p.host, "tap0") // another one, which the descriptor knows nothing of
		_, err := p.r.Adapter.Initialize(t.Context(), p.r.Handle)
		if !errors.Is(err, ndiscore.ErrDeviceAbsent) || !tap.Empty(p.r.Adapter) {
			t.Errorf("%v; nothing left: %v", err, tap.Empty(p.r.Adapter))
		}
		p.r.Adapter.(ndiscore.LowerDevice).RemoveDevice(t.Context())
	})
}

func TestRefusals(t *testing.T) {
	lab.CheckLeaks(t)
	l, h := newHost(t)
	l.Veth(h, "veth0", l.Host("far"), "eth0", lab.VethOptions{})
	persistent(t, h, "busy0")
	persistent(t, h, "single0")
	for name, queues := range map[string]int{"busy0": 1, "many0": 2} {
		other := options(h)
		other.Interface, other.Queues = name, queues
		netdevtest.Start(t, tap.Driver(zap.NewNop()), other, netdevtest.NewHandle("other", nil))
	}
	start := func(change func(*tap.Options)) error {
		o := options(h)
		change(o)
		a, err := tap.Driver(zap.NewNop()).New("lan0", o)
		if err != nil {
			return err
		}
		d := a.(ndiscore.LowerDevice)
		defer d.RemoveDevice(t.Context())
		return d.StartDevice(t.Context())
	}
	for _, c := range []struct {
		name   string
		change func(*tap.Options)
		want   string
	}{
		{"name taken", func(o *tap.Options) { o.Interface = "veth0" }, `tap lan0: device veth0: look for the device: the name "veth0" is taken by an interface of kind "veth"`},
		{"in use", func(o *tap.Options) { o.Interface = "busy0" }, "another adapter or another process is attached"},
		{"in use by several queues", func(o *tap.Options) { o.Interface = "many0" }, "another adapter or another process is attached to it, by 2 queues"},
		{"made for one queue", func(o *tap.Options) { o.Interface, o.Queues = "single0", 2 }, "was made for one queue"},
		{"no such namespace", func(o *tap.Options) { o.Netns = "nowhere" }, `network namespace "nowhere" does not exist`},
		{"options", func(o *tap.Options) { o.MTU, o.MAC, o.Queues, o.Interface = 1, "x", 17, strings.Repeat("x", 16) }, "mtu: 1 is out of range"},
		{"group address", func(o *tap.Options) { o.MAC = "01:00:00:00:00:01" }, "mac: 01:00:00:00:00:01 cannot be"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := start(c.change); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if h.Exists("tap0") {
				t.Error("a device was left")
			}
		})
	}
	o := options(h)
	o.MTU, o.MAC, o.Queues, o.Interface = 1, "x", 17, strings.Repeat("x", 16)
	if n := len(o.Validate().(interface{ Unwrap() []error }).Unwrap()); n != 4 {
		t.Errorf("%d errors for 4 bad keys", n)
	}
}

// Let the Nth step fail, then the next, until all pass: nothing may be left.
func TestEachStepFails(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) { testEachStepFails(t, queues) })
	}
}

func testEachStepFails(t *testing.T, queues int) {
	lab.CheckLeaks(t)
	_, h := newHost(t)
	o := options(h)
	o.Queues = queues
	broken := errors.New("broken on purpose")
	for n := 1; ; n++ {
		count := 0
		a, err := tap.NewWithSteps("lan0", *o, func(what string, f func() error) error {
			if count++; count == n {
				return fmt.Errorf("%s: %w", what, broken)
			}
			return tap.RealStep(what, f)
		})
		if err != nil {
			t.Fatal(err)
		}
		d := a.(ndiscore.LowerDevice)
		err = d.StartDevice(t.Context())
		if err == nil {
			_, err = a.Initialize(t.Context(), netdevtest.NewHandle("lan0", nil))
			if err == nil {
				a.Halt(t.Context(), ndiscore.HaltDeviceDisabled)
			}
			d.RemoveDevice(t.Context())
		}
		if !tap.Empty(a) || h.Exists("tap0") {
			t.Errorf("step %d (%v): something was left", n, err)
		}
		if err == nil {
			if n < 8 {
				t.Errorf("only %d steps", n)
			}
			return
		}
		if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "tap lan0: ") {
			t.Errorf("step %d: %v", n, err)
		}
	}
}

func TestCycles(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t, nil)
	for i := range 200 {
		why := ndiscore.HaltDeviceStopped
		if i%2 == 1 {
			why = ndiscore.HaltDeviceDisabled
		}
		p.r.StopFor(why)
		p.r.Initialize(t)
		p.r.Run(t)
	}
	raw, err := p.host.OpenRaw("tap0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Send(test(60, 3).Head); err != nil {
		t.Fatal(err)
	}
	p.await(t, "frame", func(f frame) bool { return f.data[11] == 3 })
}

func BenchmarkSend(b *testing.B) {
	p := newPort(b, nil)
	batch := ndiscore.NewBatch(nil)
	batch.Borrowed = true
	for range ndiscore.BatchFrames {
		batch.Append(test(60, 1))
	}
	b.ReportAllocs()
	for b.Loop() {
		p.r.Send(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ndiscore.BatchFrames), "ns/frame")
}

// Receive alone: the device's queue is filled by the kernel, then emptied.
func BenchmarkReceive(b *testing.B) {
	_, host := newHost(b)
	h := netdevtest.NewHandle("lan0", nil)
	r := netdevtest.Prepare(b, tap.Driver(zap.NewNop()), options(host), h)
	// A bare socket, because what the lab's allocates would be counted.
	var fd int
	err := host.Do(func() (err error) {
		l, err := host.Netlink().LinkByName("tap0")
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
	})
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	rx := tap.Source(r.Adapter, h.NewWorker(0))
	data := test(60, 1).Head
	b.ReportAllocs()
	frames := 0
	var spent time.Duration
	for b.Loop() {
		for range ndiscore.BatchFrames {
			if _, err := unix.Write(fd, data); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		for {
			n, err := rx.Receive()
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
			frames += n
		}
		spent += time.Since(start)
	}
	rx.Sleep()
	b.ReportMetric(float64(spent.Nanoseconds())/float64(frames), "ns/frame")
}
