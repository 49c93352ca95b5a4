package stack_test

// The router between two hosts with the kernel's own stack, the second network with a smaller MTU:
//
//	┌─ a ──┐   veth    ┌─── router ───┐   veth    ┌─ b ──┐
//	│ eth0═╪═══════════╪═left    right═╪═══════════╪═eth0 │
//	│  .2  │ MTU 1500  │ .1        .1 │ MTU 1300  │  .2  │
//	└──────┘           └──────────────┘           └──────┘
//	  10.1.0.0/24, 2001:db8:1::/64    10.2.0.0/24, 2001:db8:2::/64

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack"
)

var (
	nearR4, nearR6 = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("2001:db8:1::1")
	farR4, farR6   = netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("2001:db8:2::1")
	farB4, farB6   = netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("2001:db8:2::2")
)

func prefixes(s ...string) (p []netip.Prefix) {
	for _, x := range s {
		p = append(p, netip.MustParsePrefix(x))
	}
	return p
}

// route starts the router and returns when the hosts reach each other.
func route(t testing.TB, mtuB int) (a, b *lab.Host, core *ndiscore.Core, r *stack.Router) {
	t.Helper()
	_, a, b, core, r = routeIn(t, mtuB)
	return a, b, core, r
}

// twoNetworks is how the router of route is configured.
func twoNetworks() stack.Options {
	return stack.Options{Interfaces: []stack.Interface{
		{Name: "a", On: "left", Addresses: prefixes("10.1.0.1/24", "2001:db8:1::1/64")},
		{Name: "b", On: "right", Addresses: prefixes("10.2.0.1/24", "2001:db8:2::1/64")},
	}}
}

// routeIn is route, and tells the lab.
func routeIn(t testing.TB, mtuB int) (l *lab.Lab, a, b *lab.Host, core *ndiscore.Core, r *stack.Router) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l = lab.NewTest(t)
	a, b = l.Host("a"), l.Host("b")
	must(l.Veth(l.Here(), "left", a, "eth0", lab.VethOptions{}))
	must(l.Veth(l.Here(), "right", b, "eth0", lab.VethOptions{MTU: mtuB}))
	must(a.AddAddr("eth0", "10.1.0.2/24", "2001:db8:1::2/64"))
	must(b.AddAddr("eth0", "10.2.0.2/24", "2001:db8:2::2/64"))

	r, err := stack.New(twoNetworks())
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	core = ndiscore.New(ndiscore.Options{})
	ran := make(chan struct{})
	go func() { defer close(ran); _ = core.Run(ctx) }()
	t.Cleanup(func() {
		must(core.Close(ctx, "test over"))
		r.Close()
		cancel()
		<-ran
	})
	_, err = core.RegisterDriver(afpacket.Driver(zap.NewNop()))
	must(err)
	must(r.Start(core))
	must(core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "stack", Protocol: r, Targets: r.Targets()}))
	for _, n := range []string{"left", "right"} {
		must(core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: n, Driver: "afpacket", Options: afpacket.NewOptions()}))
		must(core.Start(ctx, n, "test"))
	}
	for h, n := range map[*lab.Host]string{a: "1", b: "2"} {
		must(h.Route("default", "10."+n+".0.1"))
		must(h.Route("default", "2001:db8:"+n+"::1"))
	}
	for _, dst := range []netip.Addr{farB4, farB6} {
		must(a.WaitReachable(t.Context(), dst))
	}
	return l, a, b, core, r
}

func bothVersions(t *testing.T, v4, v6 netip.Addr, f func(t *testing.T, dst netip.Addr)) {
	t.Run("v4", func(t *testing.T) { f(t, v4) })
	t.Run("v6", func(t *testing.T) { f(t, v6) })
}

func TestKernelPeers(t *testing.T) {
	a, b, _, r := route(t, 1300)
	ping := func(t *testing.T, dst netip.Addr, o lab.PingOptions) lab.PingResult {
		t.Helper()
		res, err := a.Ping(t.Context(), dst, o)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	bothVersions(t, farB4, farB6, func(t *testing.T, dst netip.Addr) {
		near, far := nearR4, farR4
		if dst.Is6() {
			near, far = nearR6, farR6
		}
		t.Run("too big", func(t *testing.T) {
			for range 2 { // the second time too: what the kernel has learned must not answer for the network
				res := ping(t, dst, lab.PingOptions{Size: 1400, DontFragment: true})
				if len(res.Errors) != 1 || !res.Errors[0].TooBig() || res.Errors[0].MTU != 1300 || res.Errors[0].From != near {
					t.Errorf("%+v", res)
				}
			}
		})
		t.Run("hops", func(t *testing.T) {
			res := ping(t, dst, lab.PingOptions{TTL: 1})
			if len(res.Errors) != 1 || !res.Errors[0].TimeExceeded() || res.Errors[0].From != near {
				t.Errorf("%+v", res)
			}
			if err := ping(t, dst, lab.PingOptions{TTL: 2}).Err(); err != nil {
				t.Error(err)
			}
		})
		t.Run("unreachable", func(t *testing.T) {
			nowhere := netip.MustParseAddr("192.0.2.1")
			if dst.Is6() {
				nowhere = netip.MustParseAddr("2001:db8:9::1")
			}
			if res := ping(t, nowhere, lab.PingOptions{}); len(res.Errors) != 1 || !res.Errors[0].Unreachable() {
				t.Errorf("%+v", res)
			}
		})
		t.Run("the router itself", func(t *testing.T) {
			for _, self := range []netip.Addr{near, far} {
				for _, size := range []int{1, 1400, 4000, 40000} {
					if err := ping(t, self, lab.PingOptions{Size: size, Count: 3}).Err(); err != nil {
						t.Errorf("%s, %d bytes: %v", self, size, err)
					}
				}
			}
		})
		t.Run("fragments", func(t *testing.T) {
			if err := lab.Eventually(t.Context(), "a large ping", func() error {
				// Of IPv6 the first one may teach the sender the MTU, since routers do not fragment.
				return ping(t, dst, lab.PingOptions{Size: 8000, Timeout: 200 * time.Millisecond}).Err()
			}); err != nil {
				t.Error(err)
			}
		})
		t.Run("tcp", func(t *testing.T) {
			s, err := a.StartTCPBulk(t.Context(), b, dst, lab.TCPBulkOptions{Duplex: true})
			if err != nil {
				t.Fatal(err)
			}
			var got uint64
			if err := lab.Eventually(t.Context(), "4 MiB", func() error {
				n := s.Snapshot()
				if got += n.AtoB.Received + n.BtoA.Received; n.Err != nil || got < 4<<20 {
					return fmt.Errorf("%d bytes, %w", got, n.Err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if end, err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			} else {
				t.Logf("%.0f Mbit/s", end.BitsPerSecond()/1e6)
			}
		})
	})
	s := r.Stats()
	if s["panics"] != 0 || s["forward.too_big"] != 0 {
		t.Errorf("%d panics, netstack found %d too big itself", s["panics"], s["forward.too_big"])
	}
}

// BenchmarkKernelTCP is one TCP stream through the router; compare it with the
// kernel's own forwarding in the same run only.
func BenchmarkKernelTCP(b *testing.B) {
	ha, hb, _, r := route(b, 1500)
	b.ResetTimer()
	for range b.N {
		s, err := ha.StartTCPBulk(b.Context(), hb, farB4, lab.TCPBulkOptions{})
		if err != nil {
			b.Fatal(err)
		}
		<-time.After(2 * time.Second)
		end, err := s.Stop(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(end.BitsPerSecond()/1e6, "Mbit/s")
	}
	b.StopTimer()
	n := r.Stats()
	b.Logf("punted %d, dropped %d, high %d frames %d bytes", n["punt.forward.frames"], n["punt.forward.dropped"], n["punt.forward.high_frames"], n["punt.forward.high_bytes"])
}

// BenchmarkKernelPingPong is the round trip of small UDP datagrams through the
// router, which sleeps in between: it tells what waking the feeder costs.
func BenchmarkKernelPingPong(b *testing.B) {
	ha, hb, _, _ := route(b, 1500)
	b.ResetTimer()
	l, err := ha.PingPong(b.Context(), hb, farB4, lab.PingPongOptions{UDP: true, Count: max(b.N, 100), Size: 64})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(l.P50.Microseconds()), "p50-us")
	b.ReportMetric(float64(l.P99.Microseconds()), "p99-us")
}

// BenchmarkKernelUDP is how many small datagrams a second get through, when
// more are sent.
func BenchmarkKernelUDP(b *testing.B) {
	ha, hb, _, _ := route(b, 1500)
	b.ResetTimer()
	for range b.N {
		f, err := ha.StartUDPFlow(b.Context(), hb, farB4, lab.UDPFlowOptions{Rate: 400_000, Size: 40, OneWay: true})
		if err != nil {
			b.Fatal(err)
		}
		<-time.After(2 * time.Second)
		s, err := f.Total()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(s.AtoB.Received)/s.Elapsed.Seconds()/1e3, "kpps")
	}
}
