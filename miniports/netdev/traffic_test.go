package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// path is two hosts with two adapters between them that pass everything on.
//
//	afpacket:  a [eth0]==veth==[p0] ##adapter##pipe##adapter## [p1]==veth==[eth0] b
//	tap:       a [eth0]             ##adapter##pipe##adapter##             [eth0] b
type path struct {
	lab   *lab.Lab
	a, b  *lab.Host
	ports [2]*netdevtest.Running
	// Super-frames that each port received whole.
	super [2]atomic.Uint64
}

var (
	addrA  = netip.MustParseAddr("10.0.0.1")
	addrB  = netip.MustParseAddr("10.0.0.2")
	addrA6 = netip.MustParseAddr("fd00::1")
	addrB6 = netip.MustParseAddr("fd00::2")
)

// kernelPath is the same picture with a kernel bridge for the adapters.
func kernelPath(t testing.TB, mtu int) *path {
	l := lab.NewTest(t)
	p := &path{lab: l, a: l.Host("a"), b: l.Host("b")}
	s := l.Host("s")
	l.Veth(p.a, "eth0", s, "p0", lab.VethOptions{MTU: mtu})
	l.Veth(p.b, "eth0", s, "p1", lab.VethOptions{MTU: mtu})
	l.Bridge(s, "br0", "p0", "p1")
	p.addresses()
	return p
}

func newPath(t testing.TB, driver string, mtu int) *path {
	t.Helper()
	l := lab.NewTest(t)
	p := &path{lab: l, a: l.Host("a"), b: l.Host("b")}
	log := zaptest.NewLogger(t)
	for i, h := range []*lab.Host{p.a, p.b} {
		var d ndiscore.Driver
		var options any
		switch driver {
		case "afpacket":
			s := l.Host("s")
			name := fmt.Sprintf("p%d", i)
			l.Veth(h, "eth0", s, name, lab.VethOptions{MTU: mtu})
			o := afpacket.NewOptions()
			o.Netns, o.Interface = s.Path(), name
			d, options = afpacket.Driver(log), o
		case "tap":
			o := tap.NewOptions()
			o.Netns, o.Interface, o.MTU = h.Path(), "eth0", mtu
			d, options = tap.Driver(log), o
		}
		p.ports[i] = netdevtest.Prepare(t, d, options, netdevtest.NewHandle(fmt.Sprintf("port%d", i), func(b *ndiscore.Batch) {
			for _, f := range b.Frames {
				if f.Offload.GSO != ndiscore.GSONone && f.Len() > mtu+ndiscore.EthernetHeader {
					p.super[i].Add(1)
				}
			}
			p.ports[1-i].Send(b)
		}))
	}
	p.addresses()
	for _, r := range p.ports {
		r.Run(t)
	}
	t.Cleanup(func() { // both come to rest before either halts: they send through each other
		for _, r := range p.ports {
			r.Rest()
		}
	})
	return p
}

func (p *path) addresses() {
	p.a.AddAddr("eth0", addrA.String()+"/24", addrA6.String()+"/64")
	p.b.AddAddr("eth0", addrB.String()+"/24", addrB6.String()+"/64")
}

// bulk moves at least the given number of bytes each way over TCP, checked.
func (p *path) bulk(t testing.TB, dst netip.Addr, bytes uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.a.StartTCPBulk(ctx, p.b, dst, lab.TCPBulkOptions{Duplex: true})
	if err != nil {
		t.Fatal(err)
	}
	var ab, ba uint64
	err = lab.Eventually(ctx, "the bytes to arrive", func() error {
		st := s.Snapshot()
		ab, ba = ab+st.AtoB.Received, ba+st.BtoA.Received
		if ab < bytes || ba < bytes {
			return fmt.Errorf("%d and %d of %d", ab, ba, bytes)
		}
		return nil
	})
	_, stopErr := s.Stop(ctx)
	if err := errors.Join(err, stopErr); err != nil {
		t.Error(err)
	}
}

func TestTraffic(t *testing.T) {
	for _, driver := range []string{"afpacket", "tap"} {
		for _, mtu := range []int{1500, 9000} {
			for _, offloads := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/mtu%d/offloads=%v", driver, mtu, offloads), func(t *testing.T) {
					lab.CheckLeaks(t)
					p := newPath(t, driver, mtu)
					p.a.Offloads("eth0", offloads)
					p.b.Offloads("eth0", offloads)
					for _, dst := range []netip.Addr{addrB, addrB6} {
						if err := p.a.WaitReachable(t.Context(), dst); err != nil {
							t.Fatal(err)
						}
						if r, err := p.a.Ping(t.Context(), dst, lab.PingOptions{Size: mtu - 48, Count: 3}); err != nil || r.Err() != nil {
							t.Errorf("ping %v: %v %v", dst, err, r.Err())
						}
						before := [2]uint64{p.super[0].Load(), p.super[1].Load()}
						p.bulk(t, dst, 8<<20)
						for i := range p.ports {
							if got := p.super[i].Load() - before[i]; (got > 10) != offloads {
								t.Errorf("to %v: port %d received %d super-frames", dst, i, got)
							}
						}
					}
					for i, r := range p.ports {
						if r.Attributes.MTU != mtu || !r.Attributes.Link.Connected() {
							t.Errorf("port %d: %+v", i, r.Attributes)
						}
						for _, why := range ndiscore.DropReasons() {
							if n := r.Handle.DroppedFor(why); n > 0 && why != ndiscore.DropKernelFull {
								t.Errorf("port %d dropped %d frames: %v", i, n, why)
							}
						}
					}
				})
			}
		}
	}
}

// A pause and a restart in the middle of a stream cost frames, not the stream.
func TestTrafficAcrossPause(t *testing.T) {
	for _, driver := range []string{"afpacket", "tap"} {
		t.Run(driver, func(t *testing.T) {
			lab.CheckLeaks(t)
			p := newPath(t, driver, 1500)
			if err := p.a.WaitReachable(t.Context(), addrB); err != nil {
				t.Fatal(err)
			}
			s, err := p.a.StartTCPBulk(t.Context(), p.b, addrB, lab.TCPBulkOptions{Duplex: true})
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				for _, r := range p.ports {
					r.Rest()
				}
				before := p.ports[0].Handle.Received()
				for _, r := range p.ports {
					r.Run(t)
				}
				err := lab.Eventually(t.Context(), "traffic", func() error {
					if p.ports[0].Handle.Received() == before {
						return errors.New("nothing received")
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if st, err := s.Stop(t.Context()); err != nil || !st.Survived() {
				t.Errorf("%v %v", err, st.Err)
			}
		})
	}
}

// The numbers of doc.go: TCP through two ports against a kernel bridge, round by
// round in one run. Others' load on the machine shows in both.
func BenchmarkTCP(b *testing.B) {
	paths := map[string]*path{"kernel": kernelPath(b, 1500), "afpacket": newPath(b, "afpacket", 1500), "tap": newPath(b, "tap", 1500)}
	bits, p50 := map[string]float64{}, map[string]float64{}
	rounds := 0.0
	for b.Loop() {
		for name, p := range paths {
			if err := p.a.WaitReachable(b.Context(), addrB); err != nil {
				b.Fatal(err)
			}
			s, err := p.a.StartTCPBulk(b.Context(), p.b, addrB, lab.TCPBulkOptions{})
			if err != nil {
				b.Fatal(err)
			}
			select {
			case <-time.After(time.Second): // the time that a rate is measured over
			case <-b.Context().Done():
			}
			st, err := s.Stop(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			bits[name] += st.BitsPerSecond()
			rtt, err := p.a.PingPong(b.Context(), p.b, addrB, lab.PingPongOptions{Count: 2000})
			if err != nil {
				b.Fatal(err)
			}
			p50[name] += float64(rtt.P50.Nanoseconds()) / 1e3
		}
		rounds++
	}
	for name := range paths {
		b.ReportMetric(bits[name]/rounds/1e9, name+"-Gbit/s")
		b.ReportMetric(p50[name]/rounds, name+"-rtt-µs")
		if name != "kernel" {
			b.ReportMetric(bits[name]/bits["kernel"], name+"/kernel")
		}
	}
	b.ReportMetric(0, "ns/op")
}
