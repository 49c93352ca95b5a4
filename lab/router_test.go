package lab

// Two hosts and a router whose second network has a smaller MTU:
//
//	┌─ a ──┐   veth    ┌──── r ────┐   veth    ┌─ b ──┐
//	│ eth0═╪═══════════╪═eth0 eth1═╪═══════════╪═eth0 │
//	│  .1  │ MTU 1500  │ .254  .254│ MTU 1300  │  .2  │
//	└──────┘           └───────────┘           └──────┘
//	  10.1.0.0/24, 2001:db8:1::/64    10.2.0.0/24, 2001:db8:2::/64

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func routed(t *testing.T) (a, r, b *Host) {
	t.Helper()
	l := NewTest(t)
	a, r, b = l.Host("a"), l.Host("r"), l.Host("b")
	l.Veth(a, "eth0", r, "eth0", VethOptions{})
	l.Veth(r, "eth1", b, "eth0", VethOptions{MTU: 1300})
	r.Forwarding(true)
	r.AddAddr("eth0", "10.1.0.254/24", "2001:db8:1::fe/64")
	r.AddAddr("eth1", "10.2.0.254/24", "2001:db8:2::fe/64")
	a.AddAddr("eth0", "10.1.0.1/24", "2001:db8:1::1/64")
	b.AddAddr("eth0", "10.2.0.2/24", "2001:db8:2::2/64")
	for h, net := range map[*Host]string{a: "1", b: "2"} {
		h.Route("default", "10."+net+".0.254")
		h.Route("default", "2001:db8:"+net+"::fe")
	}
	return a, r, b
}

var (
	farB4, farB6 = netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("2001:db8:2::2")
	nearR4       = netip.MustParseAddr("10.1.0.254")
	nearR6       = netip.MustParseAddr("2001:db8:1::fe")
)

func TestRouter(t *testing.T) {
	CheckLeaks(t)
	a, r, b := routed(t)
	bothVersions(t, farB4, farB6, func(t *testing.T, dst netip.Addr) {
		router := nearR4
		if dst.Is6() {
			router = nearR6
		}
		if err := a.WaitReachable(t.Context(), dst); err != nil {
			t.Fatal(err)
		}
		t.Run("too big", func(t *testing.T) {
			for range 2 { // the second time too: what the kernel has learned must not answer for the network
				res, err := a.Ping(t.Context(), dst, PingOptions{Size: 1400, DontFragment: true})
				if err != nil || len(res.Errors) != 1 {
					t.Fatalf("%v, %+v", err, res)
				}
				if e := res.Errors[0]; !e.TooBig() || e.MTU != 1300 || e.From != router {
					t.Errorf("got %v from %v", e, e.From)
				}
				if !errors.Is(res.Err(), ErrLost) {
					t.Errorf("Err() = %v", res.Err())
				}
			}
		})
		t.Run("hops", func(t *testing.T) {
			res, err := a.Ping(t.Context(), dst, PingOptions{TTL: 1})
			if err != nil || len(res.Errors) != 1 || !res.Errors[0].TimeExceeded() || res.Errors[0].From != router {
				t.Errorf("%v, %+v", err, res)
			}
		})
		t.Run("unreachable", func(t *testing.T) {
			nowhere := netip.MustParseAddr("192.0.2.1")
			if dst.Is6() {
				nowhere = netip.MustParseAddr("2001:db8:9::1")
			}
			res, err := a.Ping(t.Context(), nowhere, PingOptions{})
			if err != nil || len(res.Errors) != 1 || !res.Errors[0].Unreachable() {
				t.Errorf("%v, %+v", err, res)
			}
		})
		t.Run("fragments allowed", func(t *testing.T) {
			if err := Eventually(t.Context(), "a large ping", func() error {
				// Of IPv6 the first one may teach the sender the MTU, since routers do not fragment.
				res, err := a.Ping(t.Context(), dst, PingOptions{Size: 4000, Timeout: 100 * time.Millisecond})
				return errors.Join(err, res.Err())
			}); err != nil {
				t.Error(err)
			}
		})
		t.Run("tcp", func(t *testing.T) {
			s, err := a.StartTCPBulk(t.Context(), b, dst, TCPBulkOptions{})
			if err != nil {
				t.Fatal(err)
			}
			awaitBytes(t, s, 1<<20)
			if _, err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	r.Forwarding(false)
	if res, err := a.Ping(t.Context(), farB4, PingOptions{Timeout: 20 * time.Millisecond}); err != nil || res.Lost != 1 {
		t.Errorf("without forwarding: %v, %+v", err, res)
	}
}

func TestRoutes(t *testing.T) {
	a, _, _ := routed(t)
	a.DelRoute("default", "10.1.0.254")
	if res, err := a.Ping(t.Context(), farB4, PingOptions{}); err != nil || res.SendErr == nil {
		t.Errorf("without a route: %v, %+v", err, res)
	}
	a.Route("10.2.0.0/24", "10.1.0.254")
	a.DelRoute("default", "2001:db8:1::fe")
	a.Route("2001:db8:2::/64", "2001:db8:1::fe")
	a.Route("198.51.100.0/24", "dev eth0")
	for _, dst := range []netip.Addr{farB4, farB6} {
		if err := a.WaitReachable(t.Context(), dst); err != nil {
			t.Error(err)
		}
	}
}
