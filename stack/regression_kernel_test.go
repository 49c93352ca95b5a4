package stack_test

// What breaks, or changes, under a router between two hosts with the kernel's own
// stack: see kernel_test.go.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func alive(r *stack.Router, iface string) bool {
	for _, route := range r.Routes() {
		if route.Interface == iface && !route.Alive {
			return false
		}
	}
	return true
}

// TestRegressionKernelLinkDown: the far host's interface goes down and up while
// datagrams are forwarded to it.
func TestRegressionKernelLinkDown(t *testing.T) {
	a, b, _, r := route(t, 1500)
	flow, err := a.StartUDPFlow(t.Context(), b, farB4, lab.UDPFlowOptions{OneWay: true, Rate: 500})
	must(t, err)
	for range 5 {
		must(t, b.Down("eth0"))
		must(t, lab.Eventually(t.Context(), "routes withdrawn", func() error {
			if alive(r, "b") {
				return errors.New("still there")
			}
			return nil
		}))
		// The flow uses up most of the errors that a second may have.
		must(t, lab.Eventually(t.Context(), "unreachable", func() error {
			res, err := a.Ping(t.Context(), farB4, lab.PingOptions{Timeout: 200 * time.Millisecond})
			if err != nil || len(res.Errors) != 1 || !res.Errors[0].Unreachable() || res.Errors[0].From != nearR4 {
				return fmt.Errorf("%+v %w", res, err)
			}
			return nil
		}))
		must(t, b.Up("eth0"))
		must(t, b.AddAddr("eth0", "2001:db8:2::2/64")) // the kernel has taken it away
		must(t, b.Route("default", "10.2.0.1"))
		must(t, b.Route("default", "2001:db8:2::1"))
		must(t, a.WaitReachable(t.Context(), farB4))
		must(t, a.WaitReachable(t.Context(), farB6))
	}
	flow.Snapshot(t.Context())
	if s := flow.Snapshot(t.Context()); s.AtoB.Received == 0 {
		t.Errorf("the flow did not come back: %+v", s)
	}
	must(t, flow.Stop())
	if s := r.Stats(); s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
}

// TestRegressionKernelNeighborMove: the far host has another MAC, and says so once,
// as after a failover. Nothing flows back from it that would tell.
func TestRegressionKernelNeighborMove(t *testing.T) {
	a, b, _, r := route(t, 1500)
	must(t, b.Sysctl("net/ipv4/conf/eth0/arp_notify", "1"))
	must(t, b.Sysctl("net/ipv6/conf/eth0/ndisc_notify", "1"))
	bothVersions(t, farB4, farB6, func(t *testing.T, dst netip.Addr) {
		flow, err := a.StartUDPFlow(t.Context(), b, dst, lab.UDPFlowOptions{OneWay: true, Rate: 200})
		must(t, err)
		flow.Snapshot(t.Context())
		for n := range byte(4) {
			must(t, b.SetMAC("eth0", net.HardwareAddr{2, 0, 0, 0, 7, n}))
			began := time.Now()
			flow.Snapshot(t.Context()) // what was under way to the old one
			must(t, lab.Eventually(t.Context(), "the flow goes on", func() error {
				if s := flow.Snapshot(t.Context()); s.AtoB.Received == 0 {
					return fmt.Errorf("%+v", s)
				}
				return nil
			}))
			if d := time.Since(began); d > 5*time.Second { // netstack's own way takes eight and more
				t.Errorf("silent for %v", d)
			}
		}
		must(t, flow.Stop())
	})
	if s := r.Stats(); s["neighbor.moved"] == 0 {
		t.Error("no ARP told of a move: this test proves nothing")
	}
}

// TestRegressionKernelForeignMAC: frames for other stations are not routed, and
// what comes after them is.
func TestRegressionKernelForeignMAC(t *testing.T) {
	a, b, _, r := route(t, 1500)
	raw, err := a.OpenRaw("eth0", lab.RawOptions{})
	must(t, err)
	near, err := a.MAC("eth0")
	must(t, err)
	there, err := b.OpenRaw("eth0", lab.RawOptions{})
	must(t, err)
	// UDP from a to b's port 9, without a checksum.
	packet := []byte{0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x66, 0xc9, 10, 1, 0, 2, 10, 2, 0, 2, 0x30, 0x39, 0, 9, 0, 12, 0, 0, 'd', 'e', 'a', 'd'}
	for n := range 1000 {
		frame := append([]byte{2, 0xbb, 0, 0, byte(n >> 8), byte(n)}, near...)
		must(t, raw.Send(append(append(frame, 8, 0), packet...)))
	}
	must(t, a.WaitReachable(t.Context(), farB4))
	res, err := a.Ping(t.Context(), farB4, lab.PingOptions{Count: 5})
	must(t, err)
	must(t, res.Err())
	frame, err := there.Recv(t.Context(), func(f lab.RawFrame) bool {
		d := f.Data
		return len(d) >= 42 && d[12] == 8 && (d[23] == 17 && d[37] == 9 || d[23] == 1 && d[34] == 8)
	})
	must(t, err)
	if frame.Data[23] == 17 {
		t.Errorf("was routed: %x", frame.Data)
	}
	if s := r.Stats(); s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
}

// TestApplyKernel adds a third network to the running router, changes it and takes
// it away, while datagrams flow between the first two: none of them is lost.
func TestApplyKernel(t *testing.T) {
	l, a, b, core, r := routeIn(t, 1500)
	c, d := l.Host("c"), l.Host("d")
	must(t, l.Veth(l.Here(), "third", c, "eth0", lab.VethOptions{}))
	must(t, l.Veth(l.Here(), "fourth", d, "eth0", lab.VethOptions{}))
	for h, n := range map[*lab.Host]string{c: "3", d: "3"} {
		must(t, h.AddAddr("eth0", "10."+n+".0.2/24", "2001:db8:"+n+"::2/64"))
		must(t, h.Route("default", "10."+n+".0.1"))
		must(t, h.Route("default", "2001:db8:"+n+"::1"))
	}
	for _, n := range []string{"third", "fourth"} {
		must(t, core.AddAdapter(t.Context(), ndiscore.AdapterSpec{Name: n, Driver: "afpacket", Options: afpacket.NewOptions()}))
		must(t, core.Start(t.Context(), n, "test"))
	}
	// Slow enough for the slowest machine: a full punt queue would lose some.
	slow := lab.UDPFlowOptions{Rate: 100, Settle: 2 * time.Second}
	flow4, err := a.StartUDPFlow(t.Context(), b, farB4, slow)
	must(t, err)
	flow6, err := a.StartUDPFlow(t.Context(), b, farB6, slow)
	must(t, err)
	apply := func(o stack.Options) {
		t.Helper()
		must(t, r.Apply(t.Context(), o))
		must(t, core.SetTargets(t.Context(), "stack", r.Targets()))
	}
	third4, third6 := netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("2001:db8:3::2")
	reaches := func() {
		t.Helper()
		for _, dst := range []netip.Addr{third4, third6} {
			if err := a.WaitReachable(t.Context(), dst); err != nil {
				t.Fatalf("%v\n%+v\n%+v\n%+v\n%+v", err, r.Interfaces(), r.Routes(), r.Neighbors(), r.Stats())
			}
		}
	}
	for range 3 {
		o := twoNetworks()
		o.Interfaces = append(o.Interfaces, stack.Interface{Name: "c", On: "third", Addresses: prefixes("10.3.0.1/24", "2001:db8:3::1/64")})
		apply(o)
		reaches()
		o.Interfaces[2].Addresses = append(o.Interfaces[2].Addresses, prefixes("10.33.0.1/24")...)
		o.Interfaces[2].MTU = 1400
		apply(o)
		if err := lab.Eventually(t.Context(), "too big", func() error {
			res, err := a.Ping(t.Context(), third4, lab.PingOptions{Size: 1450, DontFragment: true})
			if err != nil || len(res.Errors) != 1 || !res.Errors[0].TooBig() || res.Errors[0].MTU != 1400 {
				return fmt.Errorf("%+v %w", res, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		must(t, r.AddRoute(t.Context(), stack.Route{To: netip.MustParsePrefix("10.77.0.0/16"), Via: third4}))
		must(t, r.DeleteRoute(t.Context(), stack.Route{To: netip.MustParsePrefix("10.77.0.0/16"), Via: third4}))
		// The same network behind another adapter.
		o.Interfaces[2].On = "fourth"
		apply(o)
		reaches()
		o.Interfaces[2].Name = "renamed"
		apply(o)
		reaches()
		apply(twoNetworks())
		res, err := a.Ping(t.Context(), third4, lab.PingOptions{})
		must(t, err)
		if len(res.Errors) != 1 || !res.Errors[0].Unreachable() {
			t.Errorf("%+v", res)
		}
	}
	for _, f := range []*lab.UDPFlow{flow4, flow6} {
		must(t, f.Stop())
		s, err := f.Total()
		must(t, err)
		if s.Err() != nil {
			t.Errorf("%v", s.Err())
		}
		t.Logf("%d and %d datagrams, lost %d", s.AtoB.Sent, s.BtoA.Sent, s.Lost())
	}
}

// TestAttributesChangeKernel: the interface under the router gets another MAC and
// another MTU.
func TestAttributesChangeKernel(t *testing.T) {
	l, a, b, _, r := routeIn(t, 1500)
	here := l.Here()
	for n := range byte(3) {
		must(t, here.SetMAC("right", net.HardwareAddr{2, 0, 0, 0, 8, n}))
		must(t, lab.Eventually(t.Context(), "the MAC", func() error {
			if m := r.Interfaces()[1].MAC; m != (ndiscore.MAC{2, 0, 0, 0, 8, n}) {
				return fmt.Errorf("still %s", m)
			}
			return nil
		}))
		for _, dst := range []netip.Addr{farB4, farB6} {
			must(t, a.WaitReachable(t.Context(), dst))
		}
		mtu := 1400 + int(n)
		must(t, b.SetMTU("eth0", mtu))
		must(t, here.SetMTU("right", mtu))
		for _, dst := range []netip.Addr{farB4, farB6} {
			must(t, lab.Eventually(t.Context(), "too big", func() error {
				res, err := a.Ping(t.Context(), dst, lab.PingOptions{Size: 1450, DontFragment: true})
				if err != nil || len(res.Errors) != 1 || !res.Errors[0].TooBig() || res.Errors[0].MTU != mtu {
					return fmt.Errorf("%+v %w", res, err)
				}
				return nil
			}))
		}
	}
}
