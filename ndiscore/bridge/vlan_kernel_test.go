package bridge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// house is a core with bridges on kernel interfaces of one namespace.
type house struct {
	t    *testing.T
	lab  *lab.Lab
	near *lab.Host
	core *ndiscore.Core
}

func newHouse(t *testing.T) *house {
	t.Helper()
	l := lab.NewTest(t)
	h := &house{t: t, lab: l, near: l.Host("near"), core: ndistest.NewCore(t, ndiscore.Options{})}
	_, err := h.core.RegisterDriver(afpacket.Driver(zaptest.NewLogger(t)))
	h.do(err)
	return h
}

func (h *house) do(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// bridge starts one on kernel interfaces of near, which are its ports' names.
func (h *house) bridge(o bridge.Options) *bridge.Bridge {
	h.t.Helper()
	ctx := h.t.Context()
	b, err := bridge.New(o)
	h.do(err)
	for _, p := range o.Ports {
		a := afpacket.NewOptions()
		a.Netns, a.Interface, a.RingMiB = h.near.Path(), p, 1
		h.do(h.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: p, Driver: "afpacket", Options: a}))
	}
	h.do(h.core.AddVirtual(ctx, o.Name, b, nil))
	h.do(h.core.AddProtocol(ctx, b.Spec()))
	for _, n := range append(o.Ports, o.Name) {
		h.do(h.core.Start(ctx, n, "test"))
	}
	return b
}

func vlans(t *testing.T, list ...string) bridge.VLANSet {
	t.Helper()
	s, err := bridge.ParseVLANs(list)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tagged puts a tag into an untagged frame.
func tagged(f []byte, tci uint16) []byte {
	g := append(bytes.Clone(f[:12]), 0x81, 0)
	g = binary.BigEndian.AppendUint16(g, tci)
	return append(g, f[12:]...)
}

// TestKernelTags: tagged frames of a real interface, both ways.
//
//	a ── pa ┐
//	b ── pb ┼ bridge ── pt ── trunk (a raw socket, since tags are what is looked at)
//	        VLANs: pa 10, pb 20, pt 10 and 20
func TestKernelTags(t *testing.T) {
	h := newHouse(t)
	socks := map[string]*lab.RawSocket{}
	for _, n := range []string{"a", "b", "t"} {
		host := h.lab.Host(n)
		h.lab.Veth(host, "eth0", h.near, "p"+n, lab.VethOptions{})
		s, err := host.OpenRaw("eth0", lab.RawOptions{})
		h.do(err)
		socks[n] = s
	}
	h.bridge(bridge.Options{Name: "lan", Ports: []string{"pa", "pb", "pt"}, VLAN: 10, Port: map[string]bridge.PortOptions{
		"pb": {Access: 20}, "pt": {Trunk: vlans(t, "10", "20")},
	}})
	station := func(n byte) ndiscore.MAC { return ndiscore.MAC{2, 0xaa, 0, 0, 0, n} }
	ours := func(f lab.RawFrame) bool { return len(f.Data) > 12 && bytes.HasPrefix(f.Data[6:], []byte{2, 0xaa}) }
	next := func(at string, want []byte) {
		t.Helper()
		f, err := socks[at].Recv(t.Context(), ours)
		h.do(err)
		if !bytes.Equal(f.Data, want) {
			t.Errorf("%s got\n%x, want\n%x", at, f.Data, want)
		}
	}
	toAll := func(src, mark byte) []byte {
		return ndistest.Frame(ndiscore.Broadcast, station(src), uint32(mark), 100)
	}
	h.do(socks["a"].Send(toAll(1, 1)))
	next("t", tagged(toAll(1, 1), 10))
	h.do(socks["b"].Send(toAll(2, 2)))
	next("t", tagged(toAll(2, 2), 20))
	h.do(socks["t"].Send(tagged(toAll(3, 3), 20|5<<13)))
	next("b", toAll(3, 3)) // were the frames of a before it, they would be seen here
	h.do(socks["t"].Send(tagged(toAll(3, 4), 10)))
	next("a", toAll(3, 4))
	// Unicast: priority bits stay where a tag stays, and go with it.
	unicast := ndistest.Frame(station(3), station(1), 5, 1200)
	h.do(socks["a"].Send(tagged(unicast, 3<<13)))
	next("t", tagged(unicast, 3<<13|10))
	back := ndistest.Frame(station(1), station(3), 6, 1200)
	h.do(socks["t"].Send(tagged(back, 7<<13|10)))
	next("a", back)
}

// TestKernelTrunk: two kernels, untagged, talk through two bridges that are
// joined by a trunk: segments that a kernel left unfinished get their tag, with
// every offset in them, and lose it again.
//
//	a ── pa ── one ── t1 ══ trunk 10 ══ t2 ── two ── pb ── b
func TestKernelTrunk(t *testing.T) {
	h := newHouse(t)
	a, b := h.lab.Host("a"), h.lab.Host("b")
	h.lab.Veth(a, "eth0", h.near, "pa", lab.VethOptions{})
	h.lab.Veth(b, "eth0", h.near, "pb", lab.VethOptions{})
	h.lab.Veth(h.near, "t1", h.near, "t2", lab.VethOptions{})
	h.do(a.AddAddr("eth0", "192.0.2.1/24", "2001:db8::1/64"))
	h.do(b.AddAddr("eth0", "192.0.2.2/24", "2001:db8::2/64"))
	for _, x := range [][3]string{{"one", "pa", "t1"}, {"two", "pb", "t2"}} {
		h.bridge(bridge.Options{Name: x[0], Ports: x[1:], VLAN: 10, Snooping: true, Port: map[string]bridge.PortOptions{x[2]: {Trunk: vlans(t, "10")}}})
	}
	for _, dst := range []string{"192.0.2.2", "2001:db8::2"} {
		to := netip.MustParseAddr(dst)
		h.do(a.WaitReachable(t.Context(), to))
		bulk, err := a.StartTCPBulk(t.Context(), b, to, lab.TCPBulkOptions{})
		h.do(err)
		received := uint64(0)
		h.do(lab.Eventually(t.Context(), "bytes to "+dst, func() error {
			received += bulk.Snapshot().AtoB.Received
			if received < 20<<20 {
				return fmt.Errorf("%d so far", received)
			}
			return nil
		}))
		end, err := bulk.Stop(t.Context())
		h.do(err)
		h.do(end.Err) // contents are checked there
	}
	all, err := h.core.Adapters(t.Context())
	h.do(err)
	for _, i := range all {
		c := i.Counters
		if n := c.TxDropped["bad-offload"] + c.RxDropped["bad-offload"] + c.TxSegments; n != 0 {
			t.Errorf("%s: %+v", i.Name, c)
		}
		if i.Name == "t1" && c.TxBytes/c.TxFrames < 5000 {
			t.Errorf("%d bytes in %d frames left by the trunk: the large ones were not whole", c.TxBytes, c.TxFrames)
		}
	}
}

// TestKernelLoop: a cable from one port to another. Without the guard the first
// broadcast would go round for ever.
func TestKernelLoop(t *testing.T) {
	h := newHouse(t)
	a := h.lab.Host("a")
	h.lab.Veth(a, "eth0", h.near, "pa", lab.VethOptions{})
	h.lab.Veth(h.near, "x", h.near, "y", lab.VethOptions{})
	shut := make(chan string, 10)
	b := h.bridge(bridge.Options{Name: "lan", Ports: []string{"pa", "x", "y"}, LoopGuard: true, LoopHold: time.Hour, Event: func(what, port, from, to, why string) {
		if what == "bridge.loop" {
			shut <- port + " " + to
		}
	}})
	s, err := a.OpenRaw("eth0", lab.RawOptions{})
	h.do(err)
	h.do(s.Send(ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0xaa, 0, 0, 0, 1}, 1, 60)))
	select {
	case e := <-shut:
		if e != "y shut" {
			t.Error(e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no loop was found")
	}
	// Peace: what the loop made ends, and nobody else is shut.
	var flooded uint64
	h.do(lab.Eventually(context.Background(), "the loop to end", func() error {
		was := flooded
		if flooded = b.Stats().Flooded; flooded != was {
			return fmt.Errorf("%d frames flooded", flooded)
		}
		return nil
	}))
	if p := b.Ports(); p[0].State != bridge.PortForwarding || p[1].State != bridge.PortForwarding || p[2].State != bridge.PortShut {
		t.Errorf("%+v", p)
	}
}
