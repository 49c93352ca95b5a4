package health_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/health"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
)

func TestMain(m *testing.M) { lab.Main(m) }

// counter is a core that counts what it is told.
type counter struct {
	*ndiscore.Core
	mu    sync.Mutex
	kinds map[ndiscore.ObservationKind]int
}

func (c *counter) Observe(o ndiscore.Observation) {
	c.mu.Lock()
	c.kinds[o.Kind]++
	c.mu.Unlock()
	c.Core.Observe(o)
}

func (c *counter) count(kind ndiscore.ObservationKind) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kinds[kind]
}

// runCore runs a core until the test ends.
func runCore(t *testing.T, o ndiscore.Options) *counter {
	c := &counter{Core: ndiscore.New(o), kinds: make(map[ndiscore.ObservationKind]int)}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() {
		if err := c.Core.Close(context.Background(), "test ends"); err != nil {
			t.Error(err)
		}
		cancel()
		run.Wait()
	})
	return c
}

// add makes an adapter known, of a driver of its own.
func (c *counter) add(t *testing.T, name string, a ndiscore.Adapter) {
	t.Helper()
	_, err := c.RegisterDriver(ndiscore.Driver{
		Name: "driver of " + name, Version: ndiscore.ContractVersion, NewOptions: func() any { return nil },
		New: func(string, any) (ndiscore.Adapter, error) { return a, nil },
	})
	if err == nil {
		err = c.AddAdapter(context.Background(), ndiscore.AdapterSpec{Name: name, Driver: "driver of " + name})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// socket is an adapter on a kernel interface, as little as these tests need.
type socket struct {
	host   *lab.Host
	ifname string

	handle ndiscore.AdapterHandle
	file   *os.File
	run    sync.WaitGroup
}

func (s *socket) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	s.handle = h
	mac, err := s.host.MAC(s.ifname)
	if err != nil {
		return ndiscore.Attributes{}, err
	}
	err = s.host.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		l, err := s.host.Netlink().LinkByName(s.ifname)
		if err == nil {
			all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
		}
		if err == nil {
			err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(l.Attrs().Index), Type: unix.PACKET_MR_PROMISC})
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		s.file = os.NewFile(uintptr(fd), "packet "+s.ifname)
		return nil
	})
	return ndiscore.Attributes{MAC: ndiscore.MAC(mac), MTU: 1500, Link: ndiscore.LinkState{Media: ndiscore.MediaConnected}}, err
}

func (s *socket) Restart(context.Context) error {
	_ = s.file.SetReadDeadline(time.Time{})
	s.run.Go(func() { // "rx": ends with Pause
		w := s.handle.NewWorker(0)
		defer w.Close()
		b := ndiscore.NewBatch(w)
		b.Borrowed = true
		var f ndiscore.Frame
		buf := make([]byte, 2048)
		for {
			n, err := s.file.Read(buf)
			if errors.Is(err, unix.ENETDOWN) {
				continue // told once
			}
			if err != nil {
				return
			}
			f.Reset(buf, 0, n)
			b.Append(&f)
			s.handle.IndicateReceive(b)
			b.Reset()
		}
	})
	return nil
}

func (s *socket) Pause(context.Context) {
	_ = s.file.SetReadDeadline(time.Unix(1, 0))
	s.run.Wait()
}
func (s *socket) Halt(context.Context, ndiscore.HaltAction)           { s.file.Close() }
func (s *socket) Return(*ndiscore.Batch)                              {}
func (s *socket) Request(context.Context, *ndiscore.OIDRequest) error { return nil }
func (s *socket) Send(b *ndiscore.Batch) {
	for i, f := range b.Frames {
		if _, err := s.file.Write(f.Bytes(nil)); err != nil {
			b.Status[i] = ndiscore.DropDeviceError
		}
	}
}

// TestKernelAnswers has a real Linux answer both kinds of probe.
//
//	near [y0]══════[x0] far 192.0.2.1, 2001:db8::1
func TestKernelAnswers(t *testing.T) {
	for name, target := range map[string]netip.Addr{
		"arp":                netip.MustParseAddr("192.0.2.1"),
		"nd":                 netip.MustParseAddr("2001:db8::1"),
		"nd of a link-local": netip.MustParseAddr("fe80::1"),
	} {
		t.Run(name, func(t *testing.T) {
			l := lab.NewTest(t)
			near, far := l.Host("near"), l.Host("far")
			_ = l.Veth(near, "y0", far, "x0", lab.VethOptions{})
			_ = far.AddAddr("x0", "192.0.2.1/24", "2001:db8::1/64", "fe80::1/64")

			s := runCore(t, ndiscore.Options{})
			s.add(t, "wan0", &socket{host: near, ifname: "y0"})
			p, err := health.New(health.Options{Core: s, Identity: "test", Members: []health.Member{{Bundle: "wan", Adapter: "wan0", Target: target, Interval: 20 * time.Millisecond}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			if err := s.AddProtocol(context.Background(), p.Spec()); err != nil {
				t.Fatal(err)
			}
			if err := s.Start(context.Background(), "wan0", "test"); err != nil {
				t.Fatal(err)
			}
			ndistest.Await(t, "ten answers", func() bool { return s.count(ndiscore.ProbeAnswered) >= 10 })

			// The ARP probe leaves no trace in the target's cache. (A solicitation
			// does: its source is how the answer finds us.)
			if target.Is4() {
				_ = far.Do(func() error {
					link, err := far.Netlink().LinkByName("x0")
					if err != nil {
						return err
					}
					neighbours, err := far.Netlink().NeighList(link.Attrs().Index, netlink.FAMILY_V4)
					for _, n := range neighbours {
						if n.IP.To4() != nil && !n.IP.IsMulticast() {
							t.Errorf("the probe made a neighbour: %+v", n)
						}
					}
					return err
				})
			}

			_ = far.DelAddr("x0", prefixOf(target))
			lost := s.count(ndiscore.ProbeLost)
			ndistest.Await(t, "losses", func() bool { return s.count(ndiscore.ProbeLost) >= lost+5 })
			_ = far.AddAddr("x0", prefixOf(target))
			answered := s.count(ndiscore.ProbeAnswered)
			ndistest.Await(t, "answers again", func() bool { return s.count(ndiscore.ProbeAnswered) >= answered+3 })
		})
	}
}

func prefixOf(a netip.Addr) string {
	if a.Is4() {
		return a.String() + "/24"
	}
	return a.String() + "/64"
}

// TestKernelFailback is the whole way from probe to policy to team: a member
// whose link is back, but not its path, is not gone back to.
//
//	near [y0]══wire══[x0]──┐
//	     [y1]══wire══[x1]──┴ bridge of far, 192.0.2.1
func TestKernelFailback(t *testing.T) {
	ctx := context.Background()
	l := lab.NewTest(t)
	near, far := l.Host("near"), l.Host("far")
	w0, _ := l.Wire(near, "y0", far, "x0", lab.VethOptions{})
	_, _ = l.Wire(near, "y1", far, "x1", lab.VethOptions{})
	_ = l.Bridge(far, "br", "x0", "x1")
	_ = far.AddAddr("br", "192.0.2.1/24")

	s := runCore(t, ndiscore.Options{Decider: policy.ActiveBackup{}})
	wan0 := &socket{host: near, ifname: "y0"}
	s.add(t, "wan0", wan0)
	s.add(t, "wan1", &socket{host: near, ifname: "y1"})
	target := netip.MustParseAddr("192.0.2.1")
	p, err := health.New(health.Options{Core: s, Identity: "test", Members: []health.Member{
		{Bundle: "wan", Adapter: "wan0", Target: target, Interval: 20 * time.Millisecond},
		{Bundle: "wan", Adapter: "wan1", Target: target, Interval: 20 * time.Millisecond},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(s.AddProtocol(ctx, p.Spec()))
	do(s.AddBundle(ctx, ndiscore.BundleSpec{Name: "wan", Members: []string{"wan0", "wan1"}, NeedProof: true, MAC: ndiscore.MAC{2, 1, 1, 1, 1, 1}}))
	for _, n := range []string{"wan0", "wan1", "wan"} {
		do(s.Start(ctx, n, "test"))
	}
	active := func() string {
		b, err := s.Bundles(ctx)
		do(err)
		return b[0].Active
	}
	ndistest.Await(t, "the first listed is active", func() bool { return active() == "wan0" })
	ndistest.Await(t, "both are proven", func() bool { return s.count(ndiscore.ProbeAnswered) > 4 })

	_ = w0.Unplug(lab.EndB) // the path is cut beyond the near link
	wan0.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
	ndistest.Await(t, "failover", func() bool { return active() == "wan1" })
	wan0.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "test"})
	lost := s.count(ndiscore.ProbeLost)
	ndistest.Await(t, "the link is back, the path is not", func() bool { return s.count(ndiscore.ProbeLost) > lost+5 })
	if a := active(); a != "wan1" {
		t.Fatalf("active is %s", a)
	}
	_ = w0.Plug(lab.EndB)
	ndistest.Await(t, "fail-back once a probe is answered", func() bool { return active() == "wan0" })
	events, _, _ := s.Events(0)
	var moves []string
	for _, e := range events {
		if e.What == "bundle.active" {
			moves = append(moves, fmt.Sprintf("%s>%s: %s", e.From, e.To, e.Why))
		}
	}
	t.Log(moves)
	if len(moves) != 3 {
		t.Errorf("%d moves", len(moves))
	}
}
