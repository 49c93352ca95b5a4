package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	near  []end // the ports' own interfaces, where they are not the hosts'
	ports [2]*netdevtest.Running
	// Super-frames that each port received whole.
	super [2]atomic.Uint64
}

// end is an interface.
type end struct {
	host *lab.Host
	name string
}

// setMTU sets that of every interface on the path.
func (p *path) setMTU(mtu int) {
	for _, e := range append([]end{{p.a, "eth0"}, {p.b, "eth0"}}, p.near...) {
		e.host.SetMTU(e.name, mtu)
	}
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

func newPath(t testing.TB, driver string, mtu, queues int) *path {
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
			o.Netns, o.Interface, o.Queues = s.Path(), name, queues
			p.near = append(p.near, end{s, name})
			d, options = afpacket.Driver(log), o
		case "tap":
			o := tap.NewOptions()
			o.Netns, o.Interface, o.MTU, o.Queues = h.Path(), "eth0", mtu, queues
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
				queues := 1
				if mtu == 1500 {
					queues = 2
				}
				t.Run(fmt.Sprintf("%s/mtu%d/offloads=%v/queues=%d", driver, mtu, offloads, queues), func(t *testing.T) {
					lab.CheckLeaks(t)
					p := newPath(t, driver, mtu, queues)
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
			p := newPath(t, driver, 1500, 1)
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

// The MTU goes up and down in the middle of a stream; packets of the greater
// one pass as soon as it is there, without a restart.
func TestMTUUnderTraffic(t *testing.T) {
	for _, driver := range []string{"afpacket", "tap"} {
		for _, offloads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/offloads=%v", driver, offloads), func(t *testing.T) {
				lab.CheckLeaks(t)
				p := newPath(t, driver, 1500, 2)
				p.a.Offloads("eth0", offloads)
				p.b.Offloads("eth0", offloads)
				if err := p.a.WaitReachable(t.Context(), addrB); err != nil {
					t.Fatal(err)
				}
				s, err := p.a.StartTCPBulk(t.Context(), p.b, addrB, lab.TCPBulkOptions{Duplex: true})
				if err != nil {
					t.Fatal(err)
				}
				for _, mtu := range []int{9000, 1500, 9000, 1500} {
					p.setMTU(mtu)
					for _, r := range p.ports {
						r.Handle.WaitAttributes(t, ndiscore.MAC{}, mtu)
					}
					err := lab.Eventually(t.Context(), "a full packet to be answered", func() error { // one may be lost in the crowd
						r, err := p.a.Ping(t.Context(), addrB, lab.PingOptions{Size: mtu - 28, DontFragment: true})
						return errors.Join(err, r.Err())
					})
					if err != nil {
						t.Errorf("MTU %d: %v", mtu, err)
					}
				}
				if st, err := s.Stop(t.Context()); err != nil || !st.Survived() {
					t.Errorf("%v %v", err, st.Err)
				}
				for i, r := range p.ports {
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

// Resets in the middle of a stream cost frames, not the stream.
func TestResetUnderTraffic(t *testing.T) {
	for _, driver := range []string{"afpacket", "tap"} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/queues=%d", driver, queues), func(t *testing.T) {
				lab.CheckLeaks(t)
				p := newPath(t, driver, 1500, queues)
				if err := p.a.WaitReachable(t.Context(), addrB); err != nil {
					t.Fatal(err)
				}
				s, err := p.a.StartTCPBulk(t.Context(), p.b, addrB, lab.TCPBulkOptions{Duplex: true})
				if err != nil {
					t.Fatal(err)
				}
				for i := range 10 {
					if _, err := p.ports[i%2].Adapter.(ndiscore.Resetter).Reset(t.Context()); err != nil {
						t.Fatal(err)
					}
					before := [2]uint64{p.ports[0].Handle.Received(), p.ports[1].Handle.Received()}
					err := lab.Eventually(t.Context(), "traffic both ways", func() error {
						for i, r := range p.ports {
							if r.Handle.Received() == before[i] {
								return fmt.Errorf("port %d received nothing", i)
							}
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
				for i, r := range p.ports {
					if n := len(r.Handle.Statuses()); n != 0 || r.Handle.Vanished() != 0 {
						t.Errorf("port %d: %d link changes, %d removals", i, n, r.Handle.Vanished())
					}
				}
			})
		}
	}
}

// One flow, and eight, through ports with one queue and with two, in turns in one
// run: the ratio of the medians is what counts.
func BenchmarkQueues(b *testing.B) {
	for _, driver := range []string{"afpacket", "tap"} {
		for _, flows := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/flows=%d", driver, flows), func(b *testing.B) {
				paths := []*path{newPath(b, driver, 1500, 1), newPath(b, driver, 1500, 2)}
				var bits, p50 [2][]float64
				for round := 0; b.Loop(); round++ {
					for turn := range paths {
						i := (round + turn) % 2
						rate, rtt := measure(b, paths[i], flows)
						bits[i], p50[i] = append(bits[i], rate), append(p50[i], rtt)
					}
				}
				b.ReportMetric(median(bits[0])/1e9, "1queue-Gbit/s")
				b.ReportMetric(median(bits[1])/median(bits[0]), "2/1-throughput")
				b.ReportMetric(median(p50[0])/1e3, "1queue-rtt-µs")
				b.ReportMetric(median(p50[1])/median(p50[0]), "2/1-rtt")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// measure is the rate of so many TCP flows at once, in bit/s, and the median of
// a ping-pong, in ns.
func measure(b *testing.B, p *path, flows int) (bits, rtt float64) {
	if err := p.a.WaitReachable(b.Context(), addrB); err != nil {
		b.Fatal(err)
	}
	var streams []*lab.TCPBulk
	for range flows {
		s, err := p.a.StartTCPBulk(b.Context(), p.b, addrB, lab.TCPBulkOptions{})
		if err != nil {
			b.Fatal(err)
		}
		streams = append(streams, s)
	}
	select {
	case <-time.After(time.Second): // the time that a rate is measured over
	case <-b.Context().Done():
	}
	for _, s := range streams {
		st, err := s.Stop(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		bits += st.BitsPerSecond()
	}
	l, err := p.a.PingPong(b.Context(), p.b, addrB, lab.PingPongOptions{Count: 2000})
	if err != nil {
		b.Fatal(err)
	}
	return bits, float64(l.P50.Nanoseconds())
}

// The numbers of doc.go: TCP through two ports against a kernel bridge, round by
// round in one run. Others' load on the machine shows in both.
func BenchmarkTCP(b *testing.B) {
	paths := map[string]*path{"kernel": kernelPath(b, 1500), "afpacket": newPath(b, "afpacket", 1500, 1), "tap": newPath(b, "tap", 1500, 1)}
	bits, p50 := map[string]float64{}, map[string]float64{}
	rounds := 0.0
	for b.Loop() {
		for name, p := range paths {
			rate, rtt := measure(b, p, 1)
			bits[name] += rate
			p50[name] += rtt / 1e3
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
