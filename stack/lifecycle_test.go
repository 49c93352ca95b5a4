package stack

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"go.uber.org/zap"
	"gvisor.dev/gvisor/pkg/refs"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// eventually waits for cond, which what describes.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ndistest.Await(t, what, cond)
}

// manualClock stands still until it is advanced.
type manualClock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*manualTimer
}

type manualTimer struct {
	c    *manualClock
	at   time.Time
	f    func()
	done bool
}

func (c *manualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) AfterFunc(d time.Duration, f func()) ndiscore.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &manualTimer{c: c, at: c.now.Add(d), f: f}
	if d <= 0 {
		t.done = true
		go f()
		return t
	}
	c.timers = append(c.timers, t)
	return t
}

func (t *manualTimer) Stop() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	was := !t.done
	t.done = true
	return was
}

// advance runs what is due, in order, and returns when it has run.
func (c *manualClock) advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		var next *manualTimer
		for _, t := range c.timers {
			if !t.done && !t.at.After(end) && (next == nil || t.at.Before(next.at)) {
				next = t
			}
		}
		if next == nil {
			break
		}
		next.done = true
		c.now = next.at
		c.mu.Unlock()
		next.f()
		c.mu.Lock()
	}
	c.now = end
	c.timers = slices.DeleteFunc(c.timers, func(t *manualTimer) bool { return t.done })
	c.mu.Unlock()
}

// announcements counts what f announces by address.
func announcements(t *testing.T, frames []ndiscore.Frame) map[string]int {
	n := map[string]int{}
	for i := range frames {
		f := &frames[i]
		p := decode(f)
		if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
			ip, _ := netip.AddrFromSlice(a.SourceProtAddress)
			if a.Operation == 1 && slices.Equal(a.SourceProtAddress, a.DstProtAddress) && f.Dst() == ndiscore.Broadcast &&
				slices.Equal(a.SourceHwAddress, macA[:]) {
				n[ip.String()]++
			}
		}
		if isICMP6(f, 136) && f.Dst() == (ndiscore.MAC{0x33, 0x33, 0, 0, 0, 1}) {
			sound(t, f)
			na := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			if !na.Override() || !na.Router() || na.Solicited() || ip.HopLimit != 255 || !slices.Equal(na.Options[0].Data, macA[:]) {
				t.Errorf("a strange advertisement: %v", p)
			}
			a, _ := netip.AddrFromSlice(na.TargetAddress)
			n[a.String()]++
		}
	}
	return n
}

func TestAnnouncements(t *testing.T) {
	clock := &manualClock{now: time.Unix(1e9, 0)}
	o := testOptions()
	o.Clock = clock
	d := newBed(t, o, 1500, 1500)
	all := []string{"10.1.0.1", "fd01::1", "fe80::ff:fe00:a0"}
	expect := func(what string, times int) {
		t.Helper()
		got := map[string]int{}
		eventually(t, what, func() bool {
			for k, v := range announcements(t, d.a.sentSoFar()) {
				got[k] += v
			}
			for _, a := range all {
				if got[a] < times {
					return false
				}
			}
			return true
		})
		for a, n := range got {
			if n != times || !slices.Contains(all, a) {
				t.Errorf("%s: %s was announced %d times, not %d", what, a, n, times)
			}
		}
	}
	expect("at once", 1)
	clock.advance(99 * time.Millisecond)
	expect("nothing before 100 ms", 0)
	clock.advance(time.Millisecond)
	expect("100 ms", 1)
	clock.advance(time.Minute)
	expect("500 ms", 1)
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "failover"})
	expect("failover", 1)
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "and another"})
	expect("another failover", 1)
	clock.advance(time.Minute)
	expect("the later rounds of the last one only", 2)
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "failover"})
	expect("failover", 1)
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "promoted", After: 100 * time.Millisecond})
	clock.advance(100*time.Millisecond - 1)
	expect("neither the later rounds of what was before, nor itself yet", 0)
	clock.advance(1)
	expect("promoted", 1)
	clock.advance(time.Minute)
	expect("the later rounds after that", 2)
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "promoted", After: 100 * time.Millisecond})
	d.a.handle.IndicateStatus(ndiscore.NetworkChange{Why: "what was left is gone"})
	expect("sooner", 1)
	clock.advance(time.Minute)
	expect("the later rounds of that", 2)
	if !d.events.has(`address.announced lan "">"10.1.0.1": and another`) {
		t.Errorf("events: %q", d.events.events)
	}
}

func TestCarrier(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	lost := ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "carrier lost"}
	d.b.handle.IndicateStatus(lost)
	alive := func(to string) (RouteInfo, bool) {
		for _, r := range d.router.Routes() {
			if r.To.String() == to {
				return r, r.Alive
			}
		}
		t.Fatalf("no route to %s", to)
		return RouteInfo{}, false
	}
	eventually(t, "routes withdrawn", func() bool { _, ok := alive("10.9.0.0/16"); return !ok })
	if r, ok := alive("10.2.0.0/24"); ok || r.Why != "link down: carrier lost" {
		t.Errorf("%+v", r)
	}
	d.a.inject(udp4(flow{ttl: 64, size: 10}))
	d.a.await(t, "unreachable", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) })
	// The address stays ours.
	d.a.inject(echo4("10.1.0.2", "10.2.0.1", 10))
	d.a.await(t, "echo reply", func(f *ndiscore.Frame) bool { return isICMP4(f, 0) })
	d.b.handle.IndicateStatus(connectedLink())
	eventually(t, "routes back", func() bool { _, ok := alive("10.9.0.0/16"); return ok })
	d.a.inject(udp4(flow{ttl: 64, size: 10}))
	d.b.await(t, "UDP", isUDP) // the neighbour is still known
	for _, e := range []string{
		`interface.link wan "up">"down": carrier lost`, `interface.link wan "down">"up"`,
		`route.withdrawn wan "alive">"10.9.0.0/16 via 10.2.0.2 dev wan": link down: carrier lost`,
		`route.alive wan "withdrawn">"10.9.0.0/16 via 10.2.0.2 dev wan"`,
	} {
		if !d.events.has(e) {
			t.Errorf("no event %s in %q", e, d.events.events)
		}
	}
}

// TestMetric: the second best route takes over while the first has no carrier.
func TestMetric(t *testing.T) {
	o := testOptions()
	o.Routes = []Route{
		{To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.1.0.9"), Metric: 20},
		{To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.2.0.2"), Metric: 10},
	}
	d := newBed(t, o, 1500, 1500)
	egress := func() string {
		e := d.router.fib.Load().v4.lookup(key4([]byte{10, 9, 1, 1}))
		if e == nil {
			return ""
		}
		return e.egress.iface.config.Name
	}
	if egress() != "wan" {
		t.Errorf("leaves by %q", egress())
	}
	d.b.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected})
	eventually(t, "lan takes over", func() bool { return egress() == "lan" })
	d.b.handle.IndicateStatus(connectedLink())
	eventually(t, "wan is back", func() bool { return egress() == "wan" })
}

// meet2 is meet for an adapter b that keeps nothing.
func (d *bed) meet2() {
	d.b.inject(arpRequest(hostB, "10.2.0.2", "10.2.0.1"), solicitation(hostB, "fd02::2", "fd02::1"))
	d.a.inject(arpRequest(hostA, "10.1.0.2", "10.1.0.1"), solicitation(hostA, "fd01::2", "fd01::1"))
}

// TestPanic: a packet that makes netstack panic costs a netstack, not the
// router; too many cost the router.
func TestPanic(t *testing.T) {
	// What an abandoned netstack holds is lost, on purpose.
	mode := refs.GetLeakMode()
	refs.SetLeakMode(refs.NoLeakChecking)
	t.Cleanup(func() { refs.SetLeakMode(mode) })
	o := testOptions()
	fatal := make(chan error, 1)
	o.Fatal = func(err error) { fatal <- err }
	o.Logger = zap.NewNop()
	d := newBedPoisoned(t, o)
	for i := range 4 {
		d.bed.meet()
		d.a.inject(udp4(flow{ttl: 64, size: 10}))
		d.b.await(t, "UDP", isUDP)
		d.armed.Store(true)
		d.a.inject(udp4(flow{ttl: 64, size: 11}))
		if i == 3 {
			break
		}
		eventually(t, "a rebuilt netstack", func() bool { return d.events.count("router.rebuilt") == i+1 })
	}
	select {
	case err := <-fatal:
		if !errors.Is(err, ErrPanicked) || !strings.Contains(err.Error(), "poisoned") {
			t.Errorf("fatal: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Fatal was not called")
	}
	f := udp4(flow{ttl: 64, size: 10})
	d.a.inject(f) // dropped, and nothing breaks
	if d.router.Stats()["panics"] != 4 {
		t.Errorf("%d panics", d.router.Stats()["panics"])
	}
}

func (r *recorder) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if strings.Contains(e, part) {
			n++
		}
	}
	return n
}

// TestSmallMTU: an interface that IPv6 cannot use keeps out of its way, instead
// of letting netstack panic.
func TestSmallMTU(t *testing.T) {
	o := testOptions()
	o.Routes = append(o.Routes, Route{To: netip.MustParsePrefix("::/0"), Interface: "wan"})
	d := newBed(t, o, 1500, 600)
	if err := d.router.do(t.Context(), func() {
		if d.router.feed.net.mld {
			t.Error("MLD is on: its timer will never return")
		}
	}); err != nil {
		t.Fatal(err)
	}
	d.a.inject(solicitation(hostA, "fd01::2", "fd01::1"), udp6(flow{ttl: 64, size: 10}))
	d.a.await(t, "unreachable", func(f *ndiscore.Frame) bool { return isICMP6(f, 1) })
	if !d.events.has(`interface.ipv6 wan "">"off"`) {
		t.Errorf("events: %q", d.events.events)
	}
	d.a.inject(arpRequest(hostA, "10.1.0.2", "10.1.0.1"))
	d.b.inject(arpRequest(hostB, "10.2.0.2", "10.2.0.1"))
	d.b.await(t, "ARP reply", isARPReply)
	d.a.inject(udp4(flow{ttl: 64, size: 1000}))
	d.b.await(t, "fragment", func(f *ndiscore.Frame) bool { return len(f.Bytes(nil)) == 14+596 })
	if s := d.router.Stats(); s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
}

func TestInterfaces(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 9000)
	want := []InterfaceInfo{
		{Name: "lan", On: "a", Adapter: "a", MAC: macA, MTU: 1500, Addresses: prefixes("10.1.0.1/24", "fd01::1/64", "fe80::ff:fe00:a0/64"), Up: true, Link: connectedLink()},
		{Name: "wan", On: "b", Adapter: "b", MAC: macB, MTU: 9000, Addresses: prefixes("10.2.0.1/24", "fd02::1/64", "fe80::ff:fe00:b0/64"), Up: true, Link: connectedLink()},
	}
	got := d.router.Interfaces()
	for i := range want {
		if !slices.Equal(got[i].Addresses, want[i].Addresses) {
			t.Errorf("addresses %v, want %v", got[i].Addresses, want[i].Addresses)
		}
		got[i].Addresses, want[i].Addresses = nil, nil
		if got[i].Name != want[i].Name || got[i].Adapter != want[i].Adapter || got[i].MAC != want[i].MAC || got[i].MTU != want[i].MTU || !got[i].Up {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	if err := d.core.Stop(t.Context(), "b", "test"); err != nil {
		t.Fatal(err)
	}
	if got := d.router.Interfaces()[1]; got.Up || got.Adapter != "" || len(got.Addresses) != 2 {
		t.Errorf("%+v", got)
	}
	for _, r := range d.router.Routes() {
		if r.Interface == "wan" && (r.Alive || r.Why != "b is not bound") {
			t.Errorf("%+v", r)
		}
	}
	if !d.events.has(`interface.unbound wan "b">""`) {
		t.Errorf("events: %q", d.events.events)
	}
}

func TestCloseEarly(t *testing.T) {
	r, err := New(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Neighbors(); n != nil {
		t.Errorf("%v", n)
	}
	r.Close()
	r.Close()
	if err := r.start(nil); err == nil {
		t.Error("started after Close")
	}
	if _, err := r.bind(context.Background(), "a", "a", nil, fixed(ndiscore.Attributes{MAC: macA, MTU: 1500})); !errors.Is(err, ErrNotRunning) {
		t.Errorf("bind: %v", err)
	}
}

// poisonedBed is a bed whose netstack can be made to panic once.
type poisonedBed struct {
	*bed
	armed atomic.Bool
}

func newBedPoisoned(t testing.TB, o Options) *poisonedBed {
	p := &poisonedBed{}
	p.bed = newBedWith(t, o, 1500, 1500, func(r *Router) {
		r.poison = func(*port) {
			if p.armed.Swap(false) {
				panic("poisoned")
			}
		}
	})
	return p
}
