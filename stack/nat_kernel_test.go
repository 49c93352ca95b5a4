package stack_test

// The router masquerades between hosts with the kernel's own stack. Nobody outside knows of the networks
// inside; the last link outside has a smaller MTU, and so has the one inside:
//
//	┌─ client ─┐  veth   ┌─ router ─┐  veth   ┌─── isp ───┐   veth    ┌─ server ─┐
//	│     eth0═╪═════════╪═left right═╪═══════╪═eth0  eth1═╪══════════╪═eth0     │
//	│      .2  │ MTU 1400│ .1     .1 │ MTU 1500│ .254   .1 │ MTU 1300 │  .2      │
//	└──────────┘         └──────────┘         └───────────┘          └──────────┘
//	  10.1.0.0/24           203.0.113.0/24, 2001:db8:2::/64   198.51.100.0/24, 2001:db8:3::/64
//	  fd01::/64

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack"
)

// natLab are the hosts around a masquerading router.
type natLab struct {
	client, isp, server *lab.Host
	core                *ndiscore.Core
	router              *stack.Router
}

// natEnds are the addresses in one version of IP.
type natEnds struct{ client, near, public, isp, server netip.Addr }

var natVersions = map[string]natEnds{
	"v4": {netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.254"), netip.MustParseAddr("198.51.100.2")},
	"v6": {netip.MustParseAddr("fd01::2"), netip.MustParseAddr("fd01::1"), netip.MustParseAddr("2001:db8:2::1"), netip.MustParseAddr("2001:db8:2::fe"), netip.MustParseAddr("2001:db8:3::2")},
}

func newNATLab(t testing.TB) *natLab {
	t.Helper()
	l := lab.NewTest(t)
	n := &natLab{client: l.Host("client"), isp: l.Host("isp"), server: l.Host("server")}
	must(t, l.Veth(l.Here(), "left", n.client, "eth0", lab.VethOptions{MTU: 1400}))
	must(t, l.Veth(l.Here(), "right", n.isp, "eth0", lab.VethOptions{}))
	must(t, l.Veth(n.isp, "eth1", n.server, "eth0", lab.VethOptions{MTU: 1300}))
	must(t, n.client.AddAddr("eth0", "10.1.0.2/24", "fd01::2/64"))
	must(t, n.isp.AddAddr("eth0", "203.0.113.254/24", "2001:db8:2::fe/64"))
	must(t, n.isp.AddAddr("eth1", "198.51.100.1/24", "2001:db8:3::1/64"))
	must(t, n.server.AddAddr("eth0", "198.51.100.2/24", "2001:db8:3::2/64"))
	must(t, n.isp.Forwarding(true))

	forward := func(to string) stack.Forward {
		return stack.Forward{Interface: "wan", Protocol: "tcp", Ports: stack.PortRange{First: 8080, Last: 8080}, To: netip.MustParseAddrPort(to)}
	}
	udp := func(to string) stack.Forward {
		f := forward(to)
		f.Protocol = "udp"
		return f
	}
	r, err := stack.New(stack.Options{
		Interfaces: []stack.Interface{
			{Name: "lan", On: "left", Addresses: prefixes("10.1.0.1/24", "fd01::1/64")},
			{Name: "wan", On: "right", Addresses: prefixes("203.0.113.1/24", "2001:db8:2::1/64"), Masquerade: true, Masquerade6: true},
		},
		Routes: []stack.Route{
			{To: netip.MustParsePrefix("0.0.0.0/0"), Via: natVersions["v4"].isp},
			{To: netip.MustParsePrefix("::/0"), Via: natVersions["v6"].isp},
		},
		Forwards: []stack.Forward{forward("10.1.0.2:80"), forward("[fd01::2]:80"), udp("10.1.0.2:80"), udp("[fd01::2]:80")},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.core, n.router = ndiscore.New(ndiscore.Options{}), r
	ran := make(chan struct{})
	go func() { defer close(ran); _ = n.core.Run(ctx) }()
	t.Cleanup(func() {
		must(t, n.core.Close(ctx, "test over"))
		r.Close()
		cancel()
		<-ran
	})
	_, err = n.core.RegisterDriver(afpacket.Driver(zap.NewNop()))
	must(t, err)
	must(t, r.Start(n.core))
	must(t, n.core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "stack", Protocol: r, Targets: r.Targets()}))
	for _, name := range []string{"left", "right"} {
		must(t, n.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: name, Driver: "afpacket", Options: afpacket.NewOptions()}))
		must(t, n.core.Start(ctx, name, "test"))
	}
	for _, e := range natVersions {
		all := "default"
		must(t, n.client.Route(all, e.near.String()))
		gateway := "198.51.100.1"
		if e.near.Is6() {
			gateway = "2001:db8:3::1"
		}
		must(t, n.server.Route(all, gateway)) // the isp knows no way to the client
		must(t, n.client.WaitReachable(t.Context(), e.server))
	}
	return n
}

func TestKernelNAT(t *testing.T) {
	n := newNATLab(t)
	for name, e := range natVersions {
		t.Run(name, func(t *testing.T) {
			ping := func(t *testing.T, o lab.PingOptions) lab.PingResult {
				t.Helper()
				res, err := n.client.Ping(t.Context(), e.server, o)
				must(t, err)
				return res
			}
			t.Run("hops", func(t *testing.T) {
				for ttl, from := range map[int]netip.Addr{1: e.near, 2: e.isp} {
					res := ping(t, lab.PingOptions{TTL: ttl})
					if len(res.Errors) != 1 || !res.Errors[0].TimeExceeded() || res.Errors[0].From != from {
						t.Errorf("ttl %d: %+v", ttl, res)
					}
				}
				must(t, ping(t, lab.PingOptions{TTL: 3}).Err())
			})
			t.Run("too big", func(t *testing.T) {
				res := ping(t, lab.PingOptions{Size: 1320, DontFragment: true})
				if len(res.Errors) != 1 || !res.Errors[0].TooBig() || res.Errors[0].MTU != 1300 || res.Errors[0].From != e.isp {
					t.Errorf("%+v", res)
				}
			})
			t.Run("fragments", func(t *testing.T) {
				must(t, lab.Eventually(t.Context(), "a large ping", func() error {
					return ping(t, lab.PingOptions{Size: 8000, Timeout: 200 * time.Millisecond}).Err()
				}))
			})
			t.Run("too big, inwards", func(t *testing.T) {
				// A datagram for the published port that is too long for the network inside.
				var got error
				var mtu int
				must(t, n.isp.Do(func() error {
					c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.public, 8080)))
					if err != nil {
						return err
					}
					defer c.Close()
					raw, err := c.SyscallConn()
					if err != nil {
						return err
					}
					level, opt, size := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
					if e.public.Is6() {
						level, opt, size = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
					}
					if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, unix.IP_PMTUDISC_DO) }); errors.Join(e, err) != nil {
						return errors.Join(e, err)
					}
					return lab.Eventually(t.Context(), "too big", func() error {
						_, got = c.Write(make([]byte, 1420))
						_ = raw.Control(func(fd uintptr) { mtu, _ = unix.GetsockoptInt(int(fd), level, size) })
						if mtu != 1400 {
							return fmt.Errorf("path mtu %d, %w", mtu, got)
						}
						return nil
					})
				}))
			})
			t.Run("unreachable port", func(t *testing.T) {
				must(t, n.client.Do(func() error {
					c, err := net.Dial("udp", netip.AddrPortFrom(e.server, 9).String())
					if err != nil {
						return err
					}
					defer c.Close()
					return lab.Eventually(t.Context(), "connection refused", func() error {
						if _, err := c.Write([]byte("x")); errors.Is(err, unix.ECONNREFUSED) {
							return nil
						}
						return errors.New("not yet")
					})
				}))
			})
			bulk := func(t *testing.T, from, to *lab.Host, dst netip.Addr, o lab.TCPBulkOptions) {
				t.Helper()
				o.Duplex = true
				s, err := from.StartTCPBulk(t.Context(), to, dst, o)
				must(t, err)
				var got uint64
				must(t, lab.Eventually(t.Context(), "4 MiB", func() error {
					x := s.Snapshot()
					if got += x.AtoB.Received + x.BtoA.Received; x.Err != nil || got < 4<<20 {
						return fmt.Errorf("%d bytes, %w", got, x.Err)
					}
					return nil
				}))
				end, err := s.Stop(t.Context())
				must(t, err)
				t.Logf("%.0f Mbit/s", end.BitsPerSecond()/1e6)
			}
			service := lab.TCPBulkOptions{Port: 8080, Listen: netip.AddrPortFrom(e.client, 80)}
			t.Run("tcp", func(t *testing.T) { bulk(t, n.client, n.server, e.server, lab.TCPBulkOptions{}) })
			t.Run("published", func(t *testing.T) { bulk(t, n.server, n.client, e.public, service) })
			t.Run("hairpin", func(t *testing.T) { bulk(t, n.client, n.client, e.public, service) })
			t.Run("udp", func(t *testing.T) {
				l, err := n.client.PingPong(t.Context(), n.server, e.server, lab.PingPongOptions{UDP: true, Count: 200, Size: 1200})
				must(t, err)
				if l.Lost > 0 {
					t.Errorf("%+v", l)
				}
			})
		})
	}
	kinds := map[string]int{}
	flows, _, err := n.router.NATFlows(stack.NATFilter{Interface: "right"}, 0)
	must(t, err)
	for _, f := range flows {
		kinds[f.Kind]++
	}
	for _, k := range []string{"masquerade", "forward", "hairpin"} {
		if kinds[k] == 0 {
			t.Errorf("no %s flow: %v", k, kinds)
		}
	}
	s := n.router.Stats()
	if s["panics"] != 0 || s["nat.dropped.fragments"] != 0 || s["nat.refused.no_room"]+s["nat.refused.no_port"] != 0 {
		t.Errorf("%v", s)
	}
}

// TestKernelNATRebind takes the way out away under a TCP connection and brings it back, many times.
func TestKernelNATRebind(t *testing.T) {
	n := newNATLab(t)
	e := natVersions["v4"]
	s, err := n.client.StartTCPBulk(t.Context(), n.server, e.server, lab.TCPBulkOptions{Duplex: true, Rate: 2 << 20})
	must(t, err)
	for range 5 {
		must(t, n.core.Stop(t.Context(), "right", "test"))
		must(t, n.core.Start(t.Context(), "right", "test"))
		s.Snapshot()
		must(t, lab.Eventually(t.Context(), "data both ways", func() error {
			if x := s.Snapshot(); x.Err != nil || x.AtoB.Received == 0 || x.BtoA.Received == 0 {
				return fmt.Errorf("%+v", x)
			}
			return nil
		}))
	}
	end, err := s.Stop(t.Context())
	must(t, err)
	if !end.Survived() {
		t.Error(end.Err)
	}
	tcp := 0
	flows, _, err := n.router.NATFlows(stack.NATFilter{Protocol: "tcp"}, 0)
	must(t, err)
	for _, f := range flows {
		tcp++
		t.Logf("%+v", f)
	}
	if tcp != 1 {
		t.Errorf("%d flows for one connection", tcp)
	}
}

// BenchmarkKernelNAT is one TCP stream through the masquerading router; compare it with BenchmarkKernelTCP in the
// same run only.
func BenchmarkKernelNAT(b *testing.B) {
	n := newNATLab(b)
	for b.Loop() {
		s, err := n.client.StartTCPBulk(b.Context(), n.isp, natVersions["v4"].isp, lab.TCPBulkOptions{})
		must(b, err)
		<-time.After(2 * time.Second)
		end, err := s.Stop(b.Context())
		must(b, err)
		b.ReportMetric(end.BitsPerSecond()/1e6, "Mbit/s")
	}
}
