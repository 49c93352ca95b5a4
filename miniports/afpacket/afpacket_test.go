package afpacket_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestMain(m *testing.M) { lab.Main(m) }

// port is one adapter on a veth whose far end belongs to a host.
//
//	far [eth0]==veth==[p0] near ##adapter##
type port struct {
	lab       *lab.Lab
	far, near *lab.Host
	r         *netdevtest.Running
	worker    *ndiscore.Worker
	frames    chan frame // a copy of everything received
}

type frame struct {
	data    []byte
	offload ndiscore.Offload
}

func options(near *lab.Host) *afpacket.Options {
	o := afpacket.NewOptions()
	o.Netns, o.Interface = near.Path(), "p0"
	return o
}

func newPort(t testing.TB, change ...func(*afpacket.Options)) *port {
	l := lab.NewTest(t)
	p := &port{lab: l, far: l.Host("far"), near: l.Host("near"), frames: make(chan frame, 10000)}
	l.Veth(p.far, "eth0", p.near, "p0", lab.VethOptions{})
	o := options(p.near)
	for _, f := range change {
		f(o)
	}
	p.r = netdevtest.Start(t, afpacket.Driver(zaptest.NewLogger(t)), o, netdevtest.NewHandle("wan0", func(b *ndiscore.Batch) {
		if !b.Borrowed {
			panic("ring memory indicated as if it could be kept")
		}
		for _, f := range b.Frames {
			select {
			case p.frames <- frame{f.Bytes(nil), f.Offload}:
			default: // a flood; those who count do it elsewhere
			}
		}
	}))
	p.worker = p.r.Handle.NewWorker(99)
	return p
}

// send passes one frame to the adapter and returns what became of it.
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

// await returns the next received frame that want accepts.
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

func isTest(mark byte) func(lab.RawFrame) bool {
	return func(f lab.RawFrame) bool { return len(f.Data) > 14 && f.Data[11] == mark && f.Data[12] == 0x88 }
}

func TestSend(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t)
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pieces := test(14, 3)
	pieces.Segs = [][]byte{bytes.Repeat([]byte{4}, 300), nil, bytes.Repeat([]byte{5}, 700)}
	many := test(14, 6)
	for range 1000 {
		many.Segs = append(many.Segs, []byte{7})
	}
	tooMany := test(14, 8)
	tooMany.Segs = make([][]byte, afpacket.SendVectors)
	got := p.send(test(60, 1), test(20, 2), pieces, test(1515, 9), many, tooMany, test(1514, 10))
	want := []ndiscore.DropReason{0, 0, 0, ndiscore.DropTooBig, 0, ndiscore.DropTooBig, 0}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("status %v, want %v", got, want)
	}
	for _, c := range []struct {
		mark byte
		data []byte
	}{
		{1, test(60, 1).Head},
		{2, append(test(20, 2).Head, make([]byte, 40)...)}, // padded with zeros
		{3, pieces.Bytes(nil)},
		{6, many.Bytes(nil)},
		{10, test(1514, 10).Head},
	} {
		f, err := raw.Recv(t.Context(), isTest(c.mark))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.Data, c.data) {
			t.Errorf("frame %d arrived as %x", c.mark, f.Data)
		}
	}
	if p.r.Handle.SendCompletes() != 0 {
		t.Error("a borrowed batch was given back")
	}
	kept := ndiscore.NewBatch(nil)
	kept.Append(test(60, 11))
	p.r.Send(kept)
	if p.r.Handle.SendCompletes() != 1 {
		t.Error("a batch that the adapter owned was not given back")
	}
}

// superTCP is a TCP/IPv4 super-frame with the given payload.
func superTCP(payload, mss int) *ndiscore.Frame {
	const l4 = ndiscore.EthernetHeader + 20
	room := make([]byte, ndiscore.Headroom+l4+20+payload)
	b := room[ndiscore.Headroom:]
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0})
	be := binary.BigEndian
	b[14] = 0x45
	be.PutUint16(b[16:], uint16(40+payload))
	b[22], b[23] = 64, unix.IPPROTO_TCP
	copy(b[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	be.PutUint16(b[24:], ^ndiscore.Checksum(b[14:34], 0))
	be.PutUint16(b[l4:], 7)
	be.PutUint16(b[l4+2:], 7)
	b[l4+12], b[l4+13] = 5<<4, 0x10
	for i := range payload {
		b[l4+20+i] = byte(i * 31)
	}
	be.PutUint16(b[l4+16:], ndiscore.PseudoChecksum(b[26:30], b[30:34], unix.IPPROTO_TCP, 20+payload))
	f := new(ndiscore.Frame)
	f.Reset(room, ndiscore.Headroom, len(b))
	f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOTCPv4, GSOSize: uint16(mss), HdrLen: l4 + 20, CsumStart: l4, CsumOffset: 16}
	return f
}

// A super-frame as long as the kernel makes them passes whole in both directions.
func TestSuperFrame(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t)
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	f := superTCP(65400, 1460) // with its headers just below the gso_max_size of a veth
	if got := p.send(f); got[0] != ndiscore.DropNone {
		t.Fatalf("send: %v", got)
	}
	in, err := raw.Recv(t.Context(), func(r lab.RawFrame) bool { return len(r.Data) > 60000 })
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in.Data, f.Head) || in.Vnet.GSOType != 1 || in.Vnet.GSOSize != 1460 || in.Vnet.Flags != lab.VnetNeedsChecksum || in.Vnet.CsumStart != 34 {
		t.Errorf("sent: %d bytes, %+v", len(in.Data), in.Vnet)
	}
	if err := raw.SendVnet(lab.VnetHeader{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 1460, CsumStart: 34, CsumOffset: 16}, f.Head); err != nil {
		t.Fatal(err)
	}
	out := p.await(t, "super-frame", func(x frame) bool { return len(x.data) > 60000 })
	if !bytes.Equal(out.data, f.Head) || out.offload != f.Offload {
		t.Errorf("received: %d bytes, %+v, want %+v", len(out.data), out.offload, f.Offload)
	}
}

// The kernel takes the outer VLAN tag out of a frame; it must be back, with the
// offload's offsets moved along.
func TestVLAN(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) { testVLAN(t, queues) })
	}
}

func testVLAN(t *testing.T, queues int) {
	lab.CheckLeaks(t)
	p := newPort(t, func(o *afpacket.Options) { o.Queues = queues })
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	tagged := func(tpid, tci uint16, rest []byte) []byte {
		b := append([]byte(nil), rest[:12]...)
		b = binary.BigEndian.AppendUint16(b, tpid)
		b = binary.BigEndian.AppendUint16(b, tci)
		return append(b, rest[12:]...)
	}
	for _, tpid := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
		data := tagged(tpid, 0xe123, test(100, 1).Head)
		if err := raw.Send(data); err != nil {
			t.Fatal(err)
		}
		got := p.await(t, "tagged frame", func(f frame) bool { return len(f.data) == 104 })
		if !bytes.Equal(got.data, data) {
			t.Errorf("%#x: got %x", tpid, got.data[:32])
		}
	}
	two := tagged(unix.ETH_P_8021AD, 5, tagged(unix.ETH_P_8021Q, 6, test(100, 1).Head))
	if err := raw.Send(two); err != nil {
		t.Fatal(err)
	}
	if got := p.await(t, "frame with two tags", func(f frame) bool { return len(f.data) == 108 }); !bytes.Equal(got.data, two) {
		t.Errorf("two tags: got %x", got.data[:32])
	}
	super := superTCP(4000, 1000)
	data := tagged(unix.ETH_P_8021Q, 7, super.Head)
	if err := raw.SendVnet(lab.VnetHeader{Flags: 1, GSOType: 1, HdrLen: 58, GSOSize: 1000, CsumStart: 38, CsumOffset: 16}, data); err != nil {
		t.Fatal(err)
	}
	got := p.await(t, "tagged super-frame", func(f frame) bool { return len(f.data) == len(data) })
	if !bytes.Equal(got.data, data) || got.offload.CsumStart != 38 || got.offload.HdrLen != 58 || got.offload.GSO != ndiscore.GSOTCPv4 {
		t.Errorf("tagged super-frame: %+v", got.offload)
	}
	// And out again: the far end sees what was received.
	back := &ndiscore.Frame{Head: got.data, Offload: got.offload}
	if s := p.send(back); s[0] != ndiscore.DropNone {
		t.Fatalf("send: %v", s)
	}
	in, err := raw.Recv(t.Context(), func(r lab.RawFrame) bool { return len(r.Data) > 4000 })
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in.Data, data) {
		t.Errorf("sent on: %d bytes, %+v", len(in.Data), in.Vnet)
	}
}

// C-72: down is down, and only deletion is gone.
func TestLink(t *testing.T) {
	lab.CheckLeaks(t)
	p := newPort(t)
	h := p.r.Handle
	p.near.Down("p0")
	h.WaitLink(t, ndiscore.MediaDisconnected)
	if got := p.send(test(60, 1), test(60, 2)); got[0] != ndiscore.DropLinkDown || got[1] != ndiscore.DropLinkDown {
		t.Errorf("send on a downed interface: %v", got)
	}
	p.near.Up("p0")
	h.WaitLink(t, ndiscore.MediaConnected)
	if err := p.near.WaitLink(t.Context(), "p0", lab.LinkUp); err != nil {
		t.Fatal(err)
	}
	// The socket's memory of having been down is not to be believed.
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropNone {
		t.Errorf("send on an interface that is up again: %v", got)
	}
	p.far.Down("eth0")
	if s := h.WaitLink(t, ndiscore.MediaDisconnected); s.Why != "carrier lost" {
		t.Errorf("peer down: %+v", s)
	}
	p.far.Up("eth0")
	h.WaitLink(t, ndiscore.MediaConnected)
	var req = ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}
	if err := p.r.Request(t.Context(), &req); err != nil || !req.Data.(ndiscore.LinkState).Connected() || req.Data.(ndiscore.LinkState).Speed != 10e9 {
		t.Errorf("query: %+v, %v", req.Data, err)
	}
	if h.Vanished() != 0 || len(h.Removed()) != 0 {
		t.Error("down was taken for gone")
	}
	p.near.Delete("p0")
	if why := h.WaitVanished(t); !strings.Contains(why, "deleted") {
		t.Errorf("deleted: %q", why)
	}
	if got := p.send(test(60, 1)); got[0] != ndiscore.DropLinkDown {
		t.Errorf("send on what is gone: %v", got)
	}
	p.r.StopFor(ndiscore.HaltSurpriseRemoved)

	// It comes back: AwaitDevice ends, and the same adapter starts again.
	back := make(chan error, 1)
	go func() { back <- p.r.Adapter.(ndiscore.LowerDevice).AwaitDevice(context.Background()) }()
	p.lab.Veth(p.far, "eth0", p.near, "p0", lab.VethOptions{})
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	p.r.Initialize(t)
	p.r.Run(t)
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Send(test(60, 9).Head); err != nil {
		t.Fatal(err)
	}
	p.await(t, "frame after the return", func(f frame) bool { return f.data[11] == 9 })
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

func TestMoved(t *testing.T) {
	p := newPort(t)
	move(t, p.near, "p0", p.lab.Host("elsewhere"))
	if why := p.r.Handle.WaitVanished(t); !strings.Contains(why, "moved") {
		t.Errorf("moved: %q", why)
	}
}

// With a core above: an interface that was taken to another namespace is gone,
// and one that comes back is started again without anybody's doing.
func TestComesBack(t *testing.T) {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	far, near, elsewhere := l.Host("far"), l.Host("near"), l.Host("elsewhere")
	l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
	core := ndistest.NewCore(t, ndiscore.Options{})
	if _, err := core.RegisterDriver(ndistest.VerifiedDriver(t, afpacket.Driver(zaptest.NewLogger(t)))); err != nil {
		t.Fatal(err)
	}
	ctx := ndistest.Context(t)
	if err := errors.Join(
		core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: "wan0", Driver: "afpacket", Options: options(near)}),
		core.Start(ctx, "wan0", "test"),
	); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		move(t, near, "p0", elsewhere)
		ndistest.Await(t, "surprise removal", func() bool {
			i := ndistest.Info(t, core, "wan0")
			return i.State == ndiscore.StateHalted && i.LastHalt == ndiscore.HaltSurpriseRemoved
		})
		move(t, elsewhere, "p0", near)
		near.Up("p0")
		ndistest.Await(t, "a running adapter with a link", func() bool {
			i := ndistest.Info(t, core, "wan0")
			return i.State == ndiscore.StateRunning && i.Link.Connected()
		})
	}
}

func TestPacketFilter(t *testing.T) {
	p := newPort(t)
	promisc := func() int {
		l, err := p.near.Netlink().LinkByName("p0")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Promisc
	}
	if promisc() != 1 {
		t.Error("not promiscuous though wanted")
	}
	set := func(f any) error {
		return p.r.Request(t.Context(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentPacketFilter, Kind: ndiscore.OIDSet, Data: f})
	}
	if err := set(ndiscore.FilterStation); err != nil {
		t.Fatal(err)
	}
	if promisc() != 0 {
		t.Error("still promiscuous")
	}
	if err := errors.Join(set(ndiscore.FilterPromiscuous), set(ndiscore.FilterPromiscuous)); err != nil || promisc() != 1 {
		t.Errorf("promiscuous twice: %v", err)
	}
	if err := set("all"); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("%v", err)
	}
	if err := p.r.Request(t.Context(), &ndiscore.OIDRequest{ID: 1}); !errors.Is(err, ndiscore.ErrInvalidOID) {
		t.Errorf("%v", err)
	}
	p.r.Stop()
	if promisc() != 0 {
		t.Error("promiscuous after the halt")
	}
}

// What finds the ring full is counted here and reported as dropped.
func TestRingFull(t *testing.T) {
	p := newPort(t, func(o *afpacket.Options) { o.RingMiB = 1 })
	p.r.Rest()
	raw, err := p.far.OpenRaw("eth0", lab.RawOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // a MiB has room for 606
		if err := raw.Send(test(60, 1).Head); err != nil {
			t.Fatal(err)
		}
	}
	p.r.Run(t)
	for range 200 {
		if err := raw.Send(test(60, 2).Head); err != nil {
			t.Fatal(err)
		}
	}
	err = lab.Eventually(t.Context(), "drops", func() error {
		n := p.r.Handle.DroppedFor(ndiscore.DropKernelFull)
		if got := p.r.Adapter.(ndiscore.Statser).DeviceStats()["kernel_ring_full"]; n < 100 || n != got {
			return fmt.Errorf("%d reported, %d counted", n, got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	far, near := l.Host("far"), l.Host("near")
	l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
	initialize := func(change func(*afpacket.Options)) error {
		o := options(near)
		change(o)
		a, err := afpacket.Driver(zap.NewNop()).New("wan0", o)
		if err != nil {
			return err
		}
		_, err = a.Initialize(t.Context(), netdevtest.NewHandle("wan0", nil))
		if err == nil {
			a.Halt(t.Context(), ndiscore.HaltDeviceDisabled)
		}
		return err
	}
	for _, c := range []struct {
		name   string
		setup  func()
		change func(*afpacket.Options)
		want   string // "" for success
		is     error
	}{
		{name: "absent", change: func(o *afpacket.Options) { o.Interface = "eth7" }, want: `afpacket wan0: interface "eth7" does not exist in network namespace`, is: ndiscore.ErrDeviceAbsent},
		{name: "named like the adapter", change: func(o *afpacket.Options) { o.Interface = "" }, want: `"wan0" does not exist`, is: ndiscore.ErrDeviceAbsent},
		{name: "no such namespace", change: func(o *afpacket.Options) { o.Netns = "nowhere" }, want: `network namespace "nowhere" does not exist`},
		{name: "options", change: func(o *afpacket.Options) { o.RingMiB, o.Interface = 0, "an-interface-name-too-long" }, want: "ring_mib: 0 is out of range"},
		{name: "link-local addresses", change: func(*afpacket.Options) {}},
		{name: "the kernel's address", setup: func() { near.AddAddr("p0", "10.0.0.1/24") }, change: func(*afpacket.Options) {}, want: "(10.0.0.1/24)"},
		{name: "shared", change: func(o *afpacket.Options) { o.Shared = true }},
		{name: "loopback", change: func(o *afpacket.Options) { o.Interface, o.Shared = "lo", true }},
		{name: "not Ethernet", setup: func() {
			err := near.Do(func() error {
				return near.Netlink().LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN})
			})
			if err != nil {
				t.Fatal(err)
			}
		}, change: func(o *afpacket.Options) { o.Interface = "tun0" }, want: "not Ethernet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.setup != nil {
				c.setup()
			}
			err := initialize(c.change)
			switch {
			case c.want == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("%v, want %q", err, c.want)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("%v is not %v", err, c.is)
			}
		})
	}
	o := options(near)
	o.Interface = "eth7"
	a, err := afpacket.Driver(zap.NewNop()).New("wan0", o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.(ndiscore.LowerDevice).StartDevice(t.Context()); !errors.Is(err, ndiscore.ErrDeviceAbsent) {
		t.Errorf("start: %v", err)
	}
}

// Let the Nth step fail, then the next, until all pass: nothing may be left.
func TestEachStepFails(t *testing.T) {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	far, near := l.Host("far"), l.Host("near")
	l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
	broken := errors.New("broken on purpose")
	for n := 1; ; n++ {
		count := 0
		a, err := afpacket.NewWithSteps("wan0", *options(near), func(what string, f func() error) error {
			if count++; count == n {
				return fmt.Errorf("%s: %w", what, broken)
			}
			return afpacket.RealStep(what, f)
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Initialize(t.Context(), netdevtest.NewHandle("wan0", nil))
		if err == nil {
			a.Halt(t.Context(), ndiscore.HaltDeviceDisabled)
			if n < 8 {
				t.Errorf("only %d steps", n)
			}
			return
		}
		if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "afpacket wan0: ") {
			t.Errorf("step %d: %v", n, err)
		}
		if !afpacket.Empty(a) {
			t.Errorf("step %d: %v: something was left", n, err)
		}
	}
}

// Eight at once, because closing a packet socket waits for an RCU grace period.
func TestCycles(t *testing.T) {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	far, near := l.Host("far"), l.Host("near")
	d := afpacket.Driver(zap.NewNop())
	var cycles sync.WaitGroup
	for i := range 8 {
		name := fmt.Sprintf("p%d", i)
		l.Veth(far, name, near, name, lab.VethOptions{})
		o := options(near)
		o.Interface = name
		r := netdevtest.Start(t, d, o, netdevtest.NewHandle(name, nil))
		cycles.Go(func() {
			for range 25 {
				r.StopFor(ndiscore.HaltDeviceStopped)
				r.Initialize(t)
				r.Run(t)
			}
		})
	}
	cycles.Wait()
}

// Sends from many workers, with the interface going up and down.
func TestConcurrentSend(t *testing.T) {
	p := newPort(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.send(test(60, 1), test(700, 2), test(1514, 3))
				}
			}
		})
	}
	for range 20 {
		p.near.Down("p0")
		p.near.Up("p0")
	}
	close(stop)
	wg.Wait()
	err := lab.Eventually(t.Context(), "the last state to be told", func() error {
		if s := p.r.Handle.Statuses(); len(s) > 0 && !s[len(s)-1].Connected() {
			return fmt.Errorf("%+v", s[len(s)-1])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkSend(b *testing.B) {
	for _, size := range []int{60, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := newPort(b)
			batch := ndiscore.NewBatch(nil)
			batch.Borrowed = true
			for range ndiscore.BatchFrames {
				batch.Append(test(size, 1))
			}
			b.ReportAllocs()
			for b.Loop() {
				p.r.Send(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ndiscore.BatchFrames), "ns/frame")
		})
	}
}

// Receive alone: the ring is filled by the kernel, then emptied.
func BenchmarkReceive(b *testing.B) {
	l := lab.NewTest(b)
	far, near := l.Host("far"), l.Host("near")
	l.Veth(far, "eth0", near, "p0", lab.VethOptions{})
	d := afpacket.Driver(zap.NewNop())
	tx := afpacket.NewOptions()
	tx.Netns, tx.Interface = far.Path(), "eth0"
	sender := netdevtest.Start(b, d, tx, netdevtest.NewHandle("tx", nil))
	h := netdevtest.NewHandle("rx", nil)
	r := netdevtest.Prepare(b, d, options(near), h)
	rx := afpacket.Source(r.Adapter, h.NewWorker(0))
	batch := ndiscore.NewBatch(nil)
	batch.Borrowed = true
	for range ndiscore.BatchFrames {
		batch.Append(test(60, 1))
	}
	b.ReportAllocs()
	frames := 0
	var spent time.Duration
	for b.Loop() {
		sender.Send(batch)
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
	if frames < b.N*ndiscore.BatchFrames {
		b.Errorf("%d of %d frames", frames, b.N*ndiscore.BatchFrames)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(frames), "ns/frame")
}
