package lab

// Two hosts and a cable:
//
//	┌─ a ──┐   veth   ┌─ b ──┐
//	│ eth0═╪══════════╪═eth0 │
//	│  .1  │          │  .2  │   10.0.0.0/24, 2001:db8::/64
//	└──────┘          └──────┘

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	a4, b4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	b6     = netip.MustParseAddr("2001:db8::2")
)

func cable(t *testing.T, o VethOptions) (l *Lab, a, b *Host) {
	t.Helper()
	l = NewTest(t)
	a, b = l.Host("a"), l.Host("b")
	l.Veth(a, "eth0", b, "eth0", o)
	a.AddAddr("eth0", "10.0.0.1/24", "2001:db8::1/64")
	b.AddAddr("eth0", "10.0.0.2/24", "2001:db8::2/64")
	return l, a, b
}

// bothVersions runs a test over IPv4 and IPv6.
func bothVersions(t *testing.T, v4, v6 netip.Addr, test func(t *testing.T, dst netip.Addr)) {
	t.Helper()
	for _, dst := range []netip.Addr{v4, v6} {
		name := "IPv4"
		if dst.Is6() {
			name = "IPv6"
		}
		t.Run(name, func(t *testing.T) { test(t, dst) })
	}
}

func TestPing(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	bothVersions(t, b4, b6, func(t *testing.T, dst netip.Addr) {
		for _, size := range []int{1, 56, 1400, 5000} {
			r, err := a.Ping(t.Context(), dst, PingOptions{Count: 5, Interval: time.Millisecond, Size: size})
			if err := errors.Join(err, r.Err()); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			if r.Sent != 5 || r.Received != 5 || len(r.RTTs) != 5 || r.Duplicates+r.Corrupted+r.Strangers != 0 {
				t.Errorf("%d bytes: %+v", size, r)
			}
		}
		// Larger than the cable, and must not be split: this host's own kernel refuses.
		r, err := a.Ping(t.Context(), dst, PingOptions{Size: 5000, DontFragment: true})
		if err != nil || r.SendErr == nil || !errors.Is(r.Err(), ErrLost) {
			t.Errorf("5000 bytes unfragmented: %v, %+v", err, r)
		}
	})
	ll := linkLocal(t, b, "eth0")
	if err := a.WaitReachable(t.Context(), ll.WithZone("eth0")); err != nil {
		t.Error(err)
	}
}

// linkLocal is the address that the kernel made of the interface's MAC.
func linkLocal(t *testing.T, h *Host, ifname string) netip.Addr {
	t.Helper()
	m, err := h.MAC(ifname)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func TestPingLost(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	if err := b.Sysctl("net/ipv4/icmp_echo_ignore_all", "1"); err != nil {
		t.Fatal(err)
	}
	r, err := a.Ping(t.Context(), b4, PingOptions{Count: 2, Timeout: 20 * time.Millisecond})
	if err != nil || r.Lost != 2 || !errors.Is(r.Err(), ErrLost) {
		t.Errorf("%v, %+v, %v", err, r, r.Err())
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.Ping(ctx, b4, PingOptions{Timeout: time.Hour}); !errors.Is(err, ErrTimeout) {
		t.Errorf("with a context that ends: %v", err)
	}
	if err := a.WaitReachable(ctx, b4); !errors.Is(err, ErrTimeout) {
		t.Errorf("WaitReachable: %v", err)
	}
	if _, err := a.Ping(t.Context(), netip.Addr{}, PingOptions{}); err == nil {
		t.Error("a ping to nowhere went well")
	}
	if r, err := a.Ping(t.Context(), netip.MustParseAddr("192.0.2.1"), PingOptions{}); err != nil || r.SendErr == nil {
		t.Errorf("without a route: %v, %+v", err, r)
	}
}

func TestUDPFlow(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	bothVersions(t, b4, b6, func(t *testing.T, dst netip.Addr) {
		f, err := a.StartUDPFlow(t.Context(), b, dst, UDPFlowOptions{Size: 1400})
		if err != nil {
			t.Fatal(err)
		}
		var sum uint64
		for range 3 {
			awaitSent(t, f, 50)
			s := f.Snapshot(t.Context())
			if err := s.Err(); err != nil {
				t.Error(err)
			}
			if s.AtoB.Sent < 50 || s.AtoB.Received != s.AtoB.Sent || s.BtoA.Received != s.BtoA.Sent || s.BtoA.Received < 50 {
				t.Errorf("%+v", s)
			}
			if s.AtoB.LongestGap <= 0 || s.AtoB.GapAt.IsZero() || s.AtoB.MeanDelay <= 0 {
				t.Errorf("no times: %+v", s.AtoB)
			}
			sum += s.AtoB.Received
		}
		total, err := f.Total()
		if err != nil || total.Err() != nil {
			t.Error(err, total.Err())
		}
		if total.AtoB.Received < sum || total.AtoB.Sent != total.AtoB.Received || total.BtoA.Received == 0 {
			t.Errorf("phases sum to %d, the total is %+v", sum, total.AtoB)
		}
		if s := f.Snapshot(t.Context()); s != (FlowStats{}) {
			t.Errorf("a phase after the end: %+v", s)
		}
	})
}

// awaitSent waits until n more datagrams were sent in each direction.
func awaitSent(t *testing.T, f *UDPFlow, n uint64) {
	t.Helper()
	fromA, fromB := f.a.out.next.Load(), f.b.out.next.Load()
	err := Eventually(t.Context(), "datagrams to be sent", func() error {
		if f.a.out.next.Load() < fromA+n || !f.o.OneWay && f.b.out.next.Load() < fromB+n {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The rate is kept over the long run, whatever single sleeps do.
func TestUDPFlowRate(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	f, err := a.StartUDPFlow(t.Context(), b, b4, UDPFlowOptions{Rate: 5000, OneWay: true})
	if err != nil {
		t.Fatal(err)
	}
	awaitSent(t, f, 1000)
	s, err := f.Total()
	if err != nil {
		t.Fatal(err)
	}
	rate := float64(s.AtoB.Sent) / s.Elapsed.Seconds()
	if rate > 5500 || s.BtoA.Sent != 0 {
		t.Errorf("%.0f a second one way: %+v", rate, s)
	}
}

func TestUDPFlowEnds(t *testing.T) {
	CheckLeaks(t)
	l, a, b := cable(t, VethOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	f, err := a.StartUDPFlow(ctx, b, b4, UDPFlowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	f.sends.Wait() // the context ends the senders
	if _, err := a.StartUDPFlow(t.Context(), b, b6, UDPFlowOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // both, one of them still sending
		t.Error(err)
	}

	_, a, b = cable(t, VethOptions{})
	a.Down("eth0")
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := a.StartUDPFlow(ctx, b, b4, UDPFlowOptions{}); !errors.Is(err, ErrTimeout) {
		t.Errorf("a flow over a cable that is down: %v", err)
	}
	if _, err := a.StartUDPFlow(t.Context(), b, b4, UDPFlowOptions{Size: 10}); err == nil {
		t.Error("a flow of 10 bytes went well")
	}
}

func TestTCPBulk(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	bothVersions(t, b4, b6, func(t *testing.T, dst netip.Addr) {
		s, err := a.StartTCPBulk(t.Context(), b, dst, TCPBulkOptions{Duplex: true})
		if err != nil {
			t.Fatal(err)
		}
		var seen uint64
		for range 2 {
			seen += awaitBytes(t, s, 4<<20)
		}
		total, err := s.Stop(t.Context())
		if err != nil || !total.Survived() {
			t.Fatal(err)
		}
		if total.AtoB.Received < seen || total.AtoB.Received != total.AtoB.Sent || total.BtoA.Received != total.BtoA.Sent || total.BtoA.Received == 0 {
			t.Errorf("phases sum to %d, the total is %+v", seen, total)
		}
		if total.AtoB.SRTT <= 0 || total.AtoB.LongestStall <= 0 || total.BitsPerSecond() <= 0 {
			t.Errorf("no times: %+v", total)
		}
	})
}

// awaitBytes waits until a phase of the stream has brought b at least n bytes, ends it and returns how many.
func awaitBytes(t *testing.T, s *TCPBulk, n uint64) (got uint64) {
	t.Helper()
	err := Eventually(t.Context(), "bytes to arrive", func() error {
		p := s.Snapshot()
		if p.Err != nil {
			t.Fatal(p.Err)
		}
		if got += p.AtoB.Received; got < n {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTCPBulkRate(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	s, err := a.StartTCPBulk(t.Context(), b, b4, TCPBulkOptions{Rate: 10 << 20})
	if err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, s, 2<<20)
	total, err := s.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := total.BitsPerSecond() / 8; got > 12<<20 {
		t.Errorf("%.0f bytes a second, the limit is %d", got, 10<<20)
	}
}

func TestTCPBulkBroken(t *testing.T) {
	CheckLeaks(t)
	l, a, b := cable(t, VethOptions{})
	s, err := a.StartTCPBulk(t.Context(), b, b4, TCPBulkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, s, 1)
	a.Down("eth0")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	total, err := s.Stop(ctx)
	if !errors.Is(err, ErrTimeout) || total.Survived() {
		t.Errorf("a stream over a dead cable ended well: %v, %+v", err, total)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.StartTCPBulk(ctx, b, b4, TCPBulkOptions{}); err == nil {
		t.Error("connected over a dead cable")
	}
	a.Up("eth0")
	if err := a.WaitReachable(t.Context(), b4); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if s, err = a.StartTCPBulk(ctx, b, b4, TCPBulkOptions{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Stop(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("a stream whose context was cancelled: %v", err)
	}
	if _, err = a.StartTCPBulk(t.Context(), b, b4, TCPBulkOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // with the stream at full speed
		t.Error(err)
	}
}

func TestPingPong(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	bothVersions(t, b4, b6, func(t *testing.T, dst netip.Addr) {
		for _, o := range []PingPongOptions{
			{Count: 200}, {Count: 200, Size: 3000}, {Count: 200, UDP: true}, {Count: 200, UDP: true, Size: 1000},
		} {
			lat, err := a.PingPong(t.Context(), b, dst, o)
			if err != nil {
				t.Errorf("%+v: %v", o, err)
			}
			if lat.Count != 200 || lat.Lost != 0 || lat.Min <= 0 || lat.P50 < lat.Min || lat.P99 < lat.P50 || lat.Max < lat.P99 {
				t.Errorf("%+v: %+v", o, lat)
			}
		}
	})
	a.Down("eth0")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, udp := range []bool{false, true} {
		if lat, err := a.PingPong(ctx, b, b4, PingPongOptions{UDP: udp}); err == nil {
			t.Errorf("udp %v over a dead cable: %+v", udp, lat)
		}
	}
}

func TestOffloads(t *testing.T) {
	_, a, b := cable(t, VethOptions{})
	for _, on := range []bool{false, true} {
		for _, h := range []*Host{a, b} {
			h.Offloads("eth0", on)
			state, err := h.OffloadState("eth0")
			if err != nil {
				t.Fatal(err)
			}
			for name, is := range state {
				if is != on {
					t.Errorf("%s is %v after Offloads(%v)", name, is, on)
				}
			}
		}
		s, err := a.StartTCPBulk(t.Context(), b, b4, TCPBulkOptions{})
		if err != nil {
			t.Fatal(err)
		}
		awaitBytes(t, s, 1<<20)
		if _, err := s.Stop(t.Context()); err != nil {
			t.Errorf("offloads %v: %v", on, err)
		}
	}
}

func TestLinkProperties(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{MTU: 9000})
	for _, h := range []*Host{a, b} {
		if mtu, err := h.MTU("eth0"); mtu != 9000 || err != nil {
			t.Errorf("%s: mtu %d, %v", h.Name(), mtu, err)
		}
	}
	ma, _ := a.MAC("eth0")
	mb, _ := b.MAC("eth0")
	if len(ma) != 6 || ma.String() == mb.String() {
		t.Errorf("MACs %v and %v", ma, mb)
	}
	a.SetMAC("eth0", net.HardwareAddr{2, 0, 0, 0, 0, 9})
	a.SetMTU("eth0", 1280)
	if m, _ := a.MAC("eth0"); m.String() != "02:00:00:00:00:09" {
		t.Errorf("MAC %v", m)
	}
	a.DelAddr("eth0", "10.0.0.1/24")
	if r, err := a.Ping(t.Context(), b4, PingOptions{}); err != nil || r.SendErr == nil {
		t.Errorf("without an address: %v, %+v", err, r)
	}
	// Without ARP the far end is found by what is written down.
	a.AddAddr("eth0", "10.0.0.1/24")
	a.AddNeighbour("eth0", b4, mb)
	b.AddNeighbour("eth0", a4, net.HardwareAddr{2, 0, 0, 0, 0, 9})
	if r, err := a.Ping(t.Context(), b4, PingOptions{}); errors.Join(err, r.Err()) != nil {
		t.Error(err, r.Err())
	}
	a.Delete("eth0")
	if a.Exists("eth0") || b.Exists("eth0") {
		t.Error("a veth outlived its other end")
	}
}

func TestWaitLink(t *testing.T) {
	CheckLeaks(t)
	_, a, b := cable(t, VethOptions{})
	ctx := t.Context()
	check := func(h *Host, want LinkState) {
		t.Helper()
		if err := h.WaitLink(ctx, "eth0", want); err != nil {
			t.Error(err)
		}
	}
	check(a, LinkUp)
	b.Down("eth0") // the far end: a loses its carrier
	check(a, LinkDown)

	// One that is waiting when it happens.
	up := make(chan error, 1)
	go func() { up <- a.WaitLink(ctx, "eth0", LinkUp) }()
	b.Up("eth0")
	if err := <-up; err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	err := a.WaitLink(short, "eth0", LinkGone)
	if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "a: wait for eth0 to be gone") {
		t.Errorf("got %v", err)
	}
	go func() { up <- a.WaitLink(ctx, "eth0", LinkGone) }()
	b.Delete("eth0")
	if err := <-up; err != nil {
		t.Error(err)
	}
	check(a, LinkDown)
	check(a, LinkGone)
}

// Here is the program's own namespace: links in it go when the lab closes, and nothing else does.
func TestHere(t *testing.T) {
	CheckLeaks(t)
	l := NewTest(t)
	here, a := l.Here(), l.Host("a")
	l.Veth(a, "eth0", here, "lab0", VethOptions{})
	l.Veth(here, "lab1", a, "eth1", VethOptions{})
	l.Bridge(here, "labbr", "lab0", "lab1")
	if _, err := net.InterfaceByName("lab0"); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"lab0", "lab1", "labbr"} {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, b := l.Host("a"), l.Host("b")
	if l.Host("a") != a {
		t.Error("two hosts of one name")
	}
	if err := l.Veth(a, "eth0", b, "eth0", VethOptions{}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"no link", a.AddAddr("eth7", "10.0.0.1/24"), "lab: a: add address 10.0.0.1/24 to eth7: no such interface"},
		{"no prefix", a.AddAddr("eth0", "10.0.0.1"), "write it as 10.0.0.2/24"},
		{"taken name", l.Veth(a, "eth0", b, "eth1", VethOptions{}), "lab: veth a/eth0 to b/eth1: file exists"},
		{"no gateway", a.Route("default", "10.9.9.9"), "lab: a: add route to default via 10.9.9.9: network is unreachable (the gateway"},
		{"mixed versions", a.Route("10.0.0.0/8", "fe80::1%eth0"), "different IP versions"},
		{"not an address", a.Route("default", "eth0"), `write the gateway as an address or as "dev eth0"`},
		{"no bridge", a.AddPort("br9", "eth0"), "lab: a: put on bridge br9 port eth0"},
		{"no raw link", second(a.OpenRaw("eth7", RawOptions{})), "lab: a: open a raw socket on eth7: no such interface"},
		{"no ethtool link", a.Offloads("eth7", true), "no such interface"},
	}
	for _, tt := range tests {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", tt.name, tt.err, tt.want)
		}
	}
	if l.Err() != tests[0].err {
		t.Errorf("the lab's first error is %v", l.Err())
	}
	if b.Exists("eth1") {
		t.Error("a failed Veth left its far end")
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := a.Up("eth0"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	late := l.Host("late")
	for _, err := range []error{late.Up("lo"), late.Forwarding(true), second(late.Ping(t.Context(), b4, PingOptions{})), second(late.MAC("lo"))} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("a host made after Close: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// In a test's lab a failure to build ends the test where it happens.
func TestNewTestFails(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	ft := &fakeT{name: "TestFake"}
	ft.run(func() {
		l := NewTest(ft)
		l.Host("a").Up("eth0")
		t.Error("it went on after a failure")
	})
	ft.finish()
	if !strings.Contains(ft.failed, "lab: a: set up eth0: no such interface") {
		t.Errorf("it failed with %q", ft.failed)
	}
}
