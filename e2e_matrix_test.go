package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Two hosts, each with one device, and the switch between them, bridging or
// routing:
//
//	host a 10.1.0.2 ==[if0]== p0 -- bridge or router -- p1 ==[if0]== host b 10.1.0.3, or 10.2.0.2 behind the router
type pair struct {
	l    *lab.Lab
	a, b *lab.Host
	mtu  [2]int
	dst  map[string]netip.Addr // of b as a sees it, by family
}

type pairOptions struct {
	kinds  [2]string // "tap" or "veth"
	router bool
	mtu    [2]int
	driver string // instead of the usual ones; "" for those
}

// newPair makes the networks, and the text of the configuration between them.
func newPair(t *testing.T, o pairOptions) (*pair, string) {
	t.Helper()
	l := lab.NewTest(t)
	p := &pair{l: l, a: l.Host("a"), b: l.Host("b"), mtu: o.mtu}
	text := ""
	for i, h := range []*lab.Host{p.a, p.b} {
		port := fmt.Sprintf("p%d", i)
		switch o.kinds[i] {
		case "tap":
			needTAP(t)
			text += fmt.Sprintf("[adapter.%s]\ndriver = \"%stap\"\nnetns = %q\ninterface = \"if0\"\nmtu = %d\n", port, o.driver, h.Path(), o.mtu[i])
		default:
			l.Veth(l.Here(), port, h, "if0", lab.VethOptions{MTU: o.mtu[i]})
			text += fmt.Sprintf("[adapter.%s]\ndriver = \"%safpacket\"\n", port, o.driver)
		}
	}
	if o.router {
		p.dst = map[string]netip.Addr{"v4": addr("10.2.0.2"), "v6": addr("fd00:2::2")}
		return p, text + `
[interface.left]
on = "p0"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.right]
on = "p1"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
`
	}
	p.dst = map[string]netip.Addr{"v4": addr("10.1.0.3"), "v6": addr("fd00:1::3")}
	return p, text + "[bridge.lan]\nports = [\"p0\", \"p1\"]\n"
}

// address gives the hosts their addresses, once the switch has made the TAP
// devices, and waits until they reach each other.
func (p *pair) address(t *testing.T) {
	t.Helper()
	must(t, p.a.AddAddr("if0", "10.1.0.2/24", "fd00:1::2/64"))
	if p.dst["v4"] == addr("10.1.0.3") {
		must(t, p.b.AddAddr("if0", "10.1.0.3/24", "fd00:1::3/64"))
	} else {
		must(t,
			p.b.AddAddr("if0", "10.2.0.2/24", "fd00:2::2/64"),
			p.a.Route("default", "10.1.0.1"), p.a.Route("::/0", "fd00:1::1"),
			p.b.Route("default", "10.2.0.1"), p.b.Route("::/0", "fd00:2::1"))
	}
	for _, dst := range p.dst {
		must(t, p.a.WaitReachable(within(t, 20*time.Second), dst))
	}
}

// TestMatrix sends everything over every pair of ports, bridged and routed, in
// both families, with offloads on and off at either end, and with both MTUs.
func TestMatrix(t *testing.T) {
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}, {"tap", "veth"}} {
		for _, router := range []bool{false, true} {
			for _, mtu := range []int{1500, 9000} {
				way := map[bool]string{false: "bridge", true: "router"}[router]
				t.Run(fmt.Sprintf("%s-%s/%s/%d", kinds[0], kinds[1], way, mtu), func(t *testing.T) {
					lab.CheckLeaks(t)
					p, text := newPair(t, pairOptions{kinds: kinds, router: router, mtu: [2]int{mtu, mtu}})
					start(t, p.l, text)
					p.address(t)
					p.allOffloads(t)
					noChecksumErrors(t, p.a, p.b)
				})
			}
		}
	}
}

func (p *pair) allOffloads(t *testing.T) {
	word := map[bool]string{true: "on", false: "off"}
	for _, atA := range []bool{true, false} {
		for _, atB := range []bool{true, false} {
			setOffloads(t, p.a, atA)
			setOffloads(t, p.b, atB)
			for _, family := range []string{"v4", "v6"} {
				t.Run(fmt.Sprintf("%s/a-%s/b-%s", family, word[atA], word[atB]), func(t *testing.T) {
					p.everything(t, family)
				})
			}
		}
	}
}

func setOffloads(t *testing.T, h *lab.Host, on bool) {
	t.Helper()
	must(t, h.Offloads("if0", on))
	state, err := h.OffloadState("if0")
	must(t, err)
	for _, name := range []string{"tx-checksum", "tso"} {
		if state[name] != on {
			t.Fatalf("%s: %s cannot be switched to %v: %v", h.Name(), name, on, state)
		}
	}
}

const bulkBytes = 3 << 20

// everything sends each kind of traffic over the smaller of the two MTUs.
func (p *pair) everything(t *testing.T, family string) {
	t.Helper()
	ctx := within(t, 60*time.Second)
	dst, mtu := p.dst[family], min(p.mtu[0], p.mtu[1])
	header := 28 // IP, and ICMP or UDP
	if family == "v6" {
		header = 48
	}

	// Datagrams while the pings are under way.
	flow, err := p.a.StartUDPFlow(ctx, p.b, dst, lab.UDPFlowOptions{Rate: 500, Size: mtu - header})
	must(t, err)
	for _, o := range []lab.PingOptions{
		{},
		{Size: mtu - header, DontFragment: true},
		{Size: 3*mtu + 1}, // in fragments
	} {
		o.Count, o.Interval, o.Timeout = 3, time.Millisecond, 5*time.Second
		r, err := p.a.Ping(ctx, dst, o)
		if err = errors.Join(err, r.Err()); err != nil {
			t.Errorf("ping with %d bytes: %v", o.Size, err)
		}
	}
	total, err := flow.Total()
	must(t, err)
	for way, s := range map[string]lab.DirectionStats{"a to b": total.AtoB, "b to a": total.BtoA} {
		if s.Lost > s.Overrun || s.Duplicated > 0 || s.Corrupted > 0 || s.Sent == 0 {
			t.Errorf("UDP %s: %+v", way, s)
		}
	}

	// TCP as fast as it goes, one way and then the other.
	bulk := func(from, to *lab.Host, dst netip.Addr) {
		tcp, err := from.StartTCPBulk(ctx, to, dst, lab.TCPBulkOptions{})
		must(t, err)
		received := uint64(0)
		err = lab.Eventually(ctx, "the bytes to arrive", func() error {
			s := tcp.Snapshot()
			if received += s.AtoB.Received; received < bulkBytes && s.Err == nil {
				return fmt.Errorf("%d of %d arrived", received, bulkBytes)
			}
			return s.Err
		})
		s, stopErr := tcp.Stop(ctx)
		if err = errors.Join(err, stopErr); err != nil || !s.Survived() {
			t.Errorf("TCP from %s: %v (%+v)", from.Name(), err, s)
		}
	}
	bulk(p.a, p.b, dst)
	back := map[string]netip.Addr{"v4": addr("10.1.0.2"), "v6": addr("fd00:1::2")}[family]
	bulk(p.b, p.a, back)
}

// TestMixedMTU has 9000 bytes on the left and 1500 on the right: the router
// tells the sender, a bridge cannot.
func TestMixedMTU(t *testing.T) {
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}, {"tap", "veth"}, {"veth", "tap"}} {
		t.Run(kinds[0]+"-"+kinds[1], func(t *testing.T) {
			t.Run("router", func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, router: true, mtu: [2]int{9000, 1500}})
				start(t, p.l, text)
				p.address(t)
				for family, dst := range p.dst {
					r, err := p.a.Ping(within(t, 20*time.Second), dst, lab.PingOptions{Size: 4000, DontFragment: true, Timeout: 5 * time.Second})
					must(t, err)
					if len(r.Errors) != 1 || !r.Errors[0].TooBig() || r.Errors[0].MTU != 1500 {
						t.Errorf("%s: ping with 4000 bytes: %v, want one answer that says too big and 1500", family, r.Errors)
					}
				}
				p.allOffloads(t)
				noChecksumErrors(t, p.a, p.b)
			})
			t.Run("bridge", func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, mtu: [2]int{9000, 1500}})
				sw := start(t, p.l, text)
				p.address(t)
				before := counters(t, sw.Switch)["p1"]
				ctx := within(t, 20*time.Second)
				r, err := p.a.Ping(ctx, p.dst["v4"], lab.PingOptions{Size: 4000, DontFragment: true, Timeout: time.Millisecond})
				must(t, err)
				if r.Received > 0 {
					t.Errorf("4028 bytes passed a link of 1500: %+v", r)
				}
				must(t, lab.Eventually(ctx, "too-big to be counted", func() error {
					if c := counters(t, sw.Switch)["p1"]; c.TxDropped["too-big"] != before.TxDropped["too-big"]+1 {
						return fmt.Errorf("p1 dropped %v, before %v", c.TxDropped, before.TxDropped)
					}
					return nil
				}))
				r, err = p.a.Ping(ctx, p.dst["v4"], lab.PingOptions{Size: 1472, DontFragment: true, Timeout: 5 * time.Second})
				if err = errors.Join(err, r.Err()); err != nil {
					t.Errorf("1500 bytes: %v", err)
				}
			})
		})
	}
}

// plain is a driver whose adapters say that they can finish nothing, around one
// whose adapters can: so the core has to cut super-frames and complete
// checksums, and the kernel behind the device judges them.
func plain(d ndiscore.Driver) ndiscore.Driver {
	real := d.New
	d.Name = "plain-" + d.Name
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := real(name, options)
		if err != nil {
			return nil, err
		}
		p := &plainAdapter{Adapter: a}
		if device, ok := a.(ndiscore.LowerDevice); ok {
			return &plainDevice{p, device}, nil
		}
		return p, nil
	}
	return d
}

type plainAdapter struct{ ndiscore.Adapter }

func (a *plainAdapter) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	attrs, err := a.Adapter.Initialize(ctx, h)
	attrs.Transmit = 0
	return attrs, err
}

// Send fails the test in the kernel's place when something unfinished comes.
func (a *plainAdapter) Send(b *ndiscore.Batch) {
	for _, f := range b.Frames {
		if f.Offload.GSO != ndiscore.GSONone || f.Offload.Flags&ndiscore.NeedsCsum != 0 {
			panic(fmt.Sprintf("a device without offloads was given %+v", f.Offload))
		}
	}
	a.Adapter.Send(b)
}

type plainDevice struct {
	*plainAdapter
	ndiscore.LowerDevice
}

// TestWithoutOffloads runs everything through devices that can finish nothing.
func TestWithoutOffloads(t *testing.T) {
	var drivers []ndiscore.Driver
	for _, d := range vswitch.Drivers(zap.NewNop()) {
		drivers = append(drivers, plain(d))
	}
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}} {
		for _, router := range []bool{false, true} {
			way := map[bool]string{false: "bridge", true: "router"}[router]
			t.Run(kinds[0]+"/"+way, func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, router: router, mtu: [2]int{1500, 1500}, driver: "plain-"})
				sw := startWith(t, p.l, text, drivers)
				p.address(t)
				setOffloads(t, p.a, true)
				setOffloads(t, p.b, true)
				for _, family := range []string{"v4", "v6"} {
					t.Run(family, func(t *testing.T) { p.everything(t, family) })
				}
				noChecksumErrors(t, p.a, p.b)
				for name, c := range counters(t, sw) {
					if (name == "p0" || name == "p1") && c.TxSegments == 0 {
						t.Errorf("%s: no super-frame was cut: %+v", name, c)
					}
				}
			})
		}
	}
}
