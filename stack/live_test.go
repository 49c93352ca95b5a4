package stack

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// liveBed is a router without a core: the test itself binds and unbinds adapters,
// and changes what they state of themselves.
type liveBed struct {
	t      testing.TB
	router *Router
	events *recorder
	cards  map[string]*card // complete before frames flow
}

// card is an adapter of a liveBed: what the router sends to it is kept.
type card struct {
	*memAdapter
	mu    sync.Mutex
	attrs ndiscore.Attributes
	plug  *plug // while bound
}

func (c *card) ask() ndiscore.Attributes {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attrs
}

// macOfCard is the MAC of the adapter called name, hostOn that of the host behind it.
func macOfCard(name string) ndiscore.MAC { return ndiscore.MAC{2, 0, 0, 0, 1, name[0]} }
func hostOn(name string) ndiscore.MAC    { return ndiscore.MAC{2, 0, 0, 0, 2, name[0]} }

func newLiveBed(t testing.TB, o Options, names ...string) *liveBed {
	t.Helper()
	d := &liveBed{t: t, events: &recorder{}, cards: map[string]*card{}}
	for _, n := range []string{"a", "b", "c", "d"} {
		d.cards[n] = &card{memAdapter: newMemAdapter(n, ndiscore.Attributes{}), attrs: ndiscore.Attributes{MAC: macOfCard(n), Link: connectedLink()}}
	}
	o.Event = d.events.add
	o.Logger = zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	d.router = r
	if err := r.start(func(string) (*ndiscore.Worker, error) { return new(ndiscore.Worker), nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for n := range d.cards {
			d.unplug(n)
		}
		close(r.stop)
		<-r.ended
	})
	for _, n := range names {
		d.plugIn(n, 1500)
	}
	return d
}

// plugIn binds the adapter called name, and lets it send.
func (d *liveBed) plugIn(name string, mtu int) *card {
	d.t.Helper()
	c := d.cards[name]
	c.mu.Lock()
	c.attrs.MTU = mtu
	c.mu.Unlock()
	p, err := d.router.bind(context.Background(), name, name, c, c.ask)
	if err != nil {
		d.t.Fatal(err)
	}
	c.plug = p
	d.router.open(context.Background(), p)
	return c
}

func (d *liveBed) unplug(name string) {
	if c := d.cards[name]; c.plug != nil {
		d.router.unbind(context.Background(), c.plug)
		c.plug = nil
	}
}

// state changes what the adapter called name states of itself, and says so.
func (d *liveBed) state(name string, s ndiscore.Status, change func(a *ndiscore.Attributes)) {
	c := d.cards[name]
	c.mu.Lock()
	change(&c.attrs)
	c.mu.Unlock()
	d.router.status(c.plug, s)
}

func (d *liveBed) link(name string, l ndiscore.LinkState) {
	d.state(name, l, func(a *ndiscore.Attributes) { a.Link = l })
}

// in has the adapter called name receive frames, as the core would.
func (d *liveBed) in(name string, frames ...*ndiscore.Frame) {
	b := ndiscore.NewBatch(new(ndiscore.Worker))
	b.Borrowed = true
	for _, f := range frames {
		b.Append(f)
	}
	if n := d.cards[name].plug.port.Load(); n != nil {
		d.router.receive(n, b)
	}
}

// meet makes the host at ip behind the adapter known to the router's own address.
func (d *liveBed) meet(name, ip, router string) {
	d.t.Helper()
	c := d.cards[name]
	if netip.MustParseAddr(ip).Is4() {
		d.in(name, arpRequest(hostOn(name), ip, router))
		c.await(d.t, "ARP reply", isARPReply)
		return
	}
	d.in(name, solicitation(hostOn(name), ip, router))
	c.await(d.t, "neighbour advertisement", func(f *ndiscore.Frame) bool { return isICMP6(f, 136) && f.Dst() == hostOn(name) })
}

// udp is a datagram from the host behind the adapter called name.
func (d *liveBed) udp(name, src, dst string, size int) *ndiscore.Frame {
	s := netip.MustParseAddr(src)
	u := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	mac := d.cards[name].ask().MAC
	if s.Is4() {
		ip := ip4(src, dst, layers.IPProtocolUDP, 64, false)
		_ = u.SetNetworkLayerForChecksum(ip)
		return serialize(ether(hostOn(name), mac, layers.EthernetTypeIPv4), ip, u, payload(size))
	}
	ip := ip6(src, dst, layers.IPProtocolUDP, 64)
	_ = u.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostOn(name), mac, layers.EthernetTypeIPv6), ip, u, payload(size))
}

// crosses checks that a datagram from in to dst leaves by out.
func (d *liveBed) crosses(in, src, dst, out string) {
	d.t.Helper()
	d.in(in, d.udp(in, src, dst, 99))
	d.cards[out].await(d.t, "UDP to "+dst, func(f *ndiscore.Frame) bool {
		n := decode(f).NetworkLayer()
		return isUDP(f) && n.NetworkFlow().Dst().String() == dst
	})
}

// leavesBy names the interface that the workers' table has for dst, "" for none.
func (d *liveBed) leavesBy(dst string) string {
	e := lookup(d.router.fib.Load(), netip.MustParseAddr(dst))
	if e == nil || e.egress == nil {
		return ""
	}
	return e.egress.iface.name
}

// stream sends numbered datagrams from lan to wan of testOptions until the test
// stops it, and never more than the punt queue holds. stop returns when all have
// come out, none missing and none twice.
func (d *liveBed) stream() (stop func()) {
	d.t.Helper()
	d.meet("a", "10.1.0.2", "10.1.0.1")
	d.meet("b", "10.2.0.2", "10.2.0.1")
	quit := make(chan struct{})
	var wg sync.WaitGroup
	sent := uint32(0)
	wg.Go(func() {
		frames := make([]*ndiscore.Frame, 8)
		for i := range frames {
			frames[i] = d.udp("a", "10.1.0.2", "10.2.0.2", 100)
		}
		for {
			select {
			case <-quit:
				return
			default:
			}
			if d.router.queue.waiting.Load() > 100 {
				runtime.Gosched()
				continue
			}
			for _, f := range frames {
				// The number is not in the checksum: what comes wrong leaves wrong.
				binary.BigEndian.PutUint32(f.Head[60:], sent)
				sent++
			}
			d.in("a", frames...)
		}
	})
	var got []bool
	collect := func() int {
		n := 0
		for _, f := range d.cards["b"].sentSoFar() {
			b := f.Bytes(nil)
			if len(b) != 42+100 || b[12] != 8 || b[13] != 0 {
				continue
			}
			k := int(binary.BigEndian.Uint32(b[60:]))
			for len(got) <= k {
				got = append(got, false)
			}
			if got[k] {
				d.t.Errorf("frame %d came twice", k)
			}
			got[k] = true
			n++
		}
		return n
	}
	eventually(d.t, "the stream flows", func() bool { return collect() > 0 })
	return func() {
		d.t.Helper()
		close(quit)
		wg.Wait()
		eventually(d.t, "all frames of the stream", func() bool {
			collect()
			return len(got) == int(sent) && !slices.Contains(got, false)
		})
		d.t.Logf("%d frames, none lost", sent)
	}
}

func (d *liveBed) apply(o Options) {
	d.t.Helper()
	if err := d.router.Apply(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// route finds what Routes says of the route to to by the interface.
func (d *liveBed) route(to, iface string) (RouteInfo, bool) {
	for _, r := range d.router.Routes() {
		if r.To.String() == to && r.Interface == iface {
			return r, true
		}
	}
	return RouteInfo{}, false
}

// uplinks are two ways out with a default route each, and two interfaces in one
// network.
func uplinks() Options {
	def4, def6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	via := netip.MustParseAddr
	return Options{
		Interfaces: []Interface{
			{Name: "lan", On: "a", Addresses: prefixes("10.1.0.1/24", "fd01::1/64")},
			{Name: "one", On: "b", Addresses: prefixes("10.2.0.1/24", "fd02::1/64", "10.5.0.1/24")},
			{Name: "two", On: "c", Addresses: prefixes("10.3.0.1/24", "fd03::1/64", "10.5.0.2/24")},
		},
		Routes: []Route{
			{To: def4, Via: via("10.3.0.2"), Metric: 20},
			{To: def4, Via: via("10.2.0.2"), Metric: 10},
			{To: def6, Via: via("fd02::2"), Metric: 10},
			{To: def6, Via: via("fd03::2"), Metric: 20},
			{To: netip.MustParsePrefix("10.7.0.0/16"), Via: via("10.3.0.2"), Metric: 5},
			{To: netip.MustParsePrefix("10.7.0.0/16"), Via: via("10.2.0.2"), Metric: 5},
		},
	}
}

// TestDefaultRoutes: of two default routes the better one is used while its
// interface can be; so with two ways to a connected network, and with equal
// metrics.
func TestDefaultRoutes(t *testing.T) {
	d := newLiveBed(t, uplinks(), "a", "b", "c")
	meetAll := func(names ...string) {
		t.Helper()
		for _, n := range names {
			net := map[string]string{"a": "1", "b": "2", "c": "3"}[n]
			d.meet(n, "10."+net+".0.2", "10."+net+".0.1")
			d.meet(n, "fd0"+net+"::2", "fd0"+net+"::1")
		}
	}
	meetAll("a", "b", "c")
	expect := func(what, def, five, seven string) {
		t.Helper()
		eventually(t, what, func() bool {
			return d.leavesBy("192.0.2.1") == def && d.leavesBy("2001:db8::1") == def && d.leavesBy("10.5.0.77") == five && d.leavesBy("10.7.1.1") == seven
		})
		out := map[string]string{"one": "b", "two": "c"}[def]
		d.crosses("a", "10.1.0.2", "192.0.2.1", out)
		d.crosses("a", "fd01::2", "2001:db8::1", out)
	}
	expect("the better one, and the first listed", "one", "one", "two")
	d.link("b", ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "pulled"})
	expect("without b's link", "two", "two", "two")
	if r, _ := d.route("0.0.0.0/0", "one"); r.Alive || r.Why != "link down: pulled" {
		t.Errorf("%+v", r)
	}
	d.link("b", connectedLink())
	expect("b's link is back", "one", "one", "two")
	d.unplug("b")
	expect("b is unbound", "two", "two", "two")
	if r, _ := d.route("10.5.0.0/24", "one"); r.Alive || r.Why != "b is not bound" {
		t.Errorf("%+v", r)
	}
	d.unplug("c")
	eventually(t, "nothing left", func() bool { return d.leavesBy("192.0.2.1") == "" && d.leavesBy("10.7.1.1") == "" })
	d.in("a", d.udp("a", "10.1.0.2", "192.0.2.1", 10))
	d.cards["a"].await(t, "unreachable", func(f *ndiscore.Frame) bool { return isICMP4(f, 3) })
	d.plugIn("b", 1500)
	meetAll("b")
	expect("b alone", "one", "one", "one")
	d.plugIn("c", 1500)
	meetAll("c")
	expect("both again", "one", "one", "two")
	if r, _ := d.route("0.0.0.0/0", "two"); !r.Alive || r.Why != "the static route by one is preferred" {
		t.Errorf("%+v", r)
	}
	// A pause withdraws, too.
	if err := d.cards["b"].plug.gate.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.router.renew()
	expect("b is paused", "two", "two", "two")
	d.router.open(t.Context(), d.cards["b"].plug)
	expect("b runs again", "one", "one", "two")
}

func TestRoutesAtRunTime(t *testing.T) {
	d := newLiveBed(t, testOptions(), "a", "b")
	stop := d.stream()
	def := Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.2.0.9"), Metric: 7}
	add := func(r Route, want string) {
		t.Helper()
		err := d.router.AddRoute(t.Context(), r)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("add %v: %v, want %q", r, err, want)
		}
	}
	del := func(r Route, want string) {
		t.Helper()
		err := d.router.DeleteRoute(t.Context(), r)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, ndiscore.ErrNotFound)) {
			t.Errorf("delete %v: %v, want %q", r, err, want)
		}
	}
	add(def, "")
	if by := d.leavesBy("192.0.2.1"); by != "wan" {
		t.Errorf("leaves by %q", by)
	}
	if !d.events.has(`route.alive wan "">"0.0.0.0/0 via 10.2.0.9 dev wan"`) {
		t.Errorf("events: %q", d.events.events)
	}
	add(def, "already in use")
	same := def
	same.Interface = "wan"
	add(same, "already in use")
	other := def
	other.Via = netip.MustParseAddr("10.1.0.9")
	add(other, "") // of equal metric, and later
	if by := d.leavesBy("192.0.2.1"); by != "wan" {
		t.Errorf("leaves by %q", by)
	}
	better := other
	better.Metric = 6
	add(better, "")
	if by := d.leavesBy("192.0.2.1"); by != "lan" {
		t.Errorf("leaves by %q", by)
	}
	add(Route{To: netip.MustParsePrefix("10.9.0.1/16"), Interface: "wan"}, "did you mean 10.9.0.0/16")
	add(Route{To: netip.MustParsePrefix("10.9.0.0/16")}, "needs via or interface")
	add(Route{To: netip.MustParsePrefix("10.9.0.0/16"), Interface: "dmz"}, "no interface dmz")
	add(Route{}, "not a prefix")

	del(Route{To: def.To, Metric: 7}, "several")
	del(Route{To: def.To, Metric: 5}, "not found")
	del(Route{To: def.To, Metric: 7, Interface: "wan"}, "")
	del(def, "not found")
	del(Route{To: def.To, Metric: 7}, "")
	del(Route{To: netip.MustParsePrefix("10.1.0.0/24")}, "goes with address 10.1.0.1/24 of interface lan")
	if by := d.leavesBy("192.0.2.1"); by != "lan" {
		t.Errorf("leaves by %q", by)
	}
	del(better, "")
	if by := d.leavesBy("192.0.2.1"); by != "" {
		t.Errorf("leaves by %q", by)
	}
	if !d.events.has(`route.withdrawn lan "alive">"0.0.0.0/0 via 10.1.0.9 dev lan": deleted`) {
		t.Errorf("events: %q", d.events.events)
	}
	stop()

	// Cut off from the feeder, an error says so, and the route comes later.
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.router.AddRoute(done, def); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eventually(t, "the route", func() bool { return d.leavesBy("192.0.2.1") == "wan" })
}

// TestApply changes the configuration of a running router, step by step, while
// frames flow between two interfaces that no step names.
func TestApply(t *testing.T) {
	d := newLiveBed(t, testOptions(), "a", "b")
	stop := d.stream()
	o := testOptions()

	// A third interface.
	o.Interfaces = append(o.Interfaces, Interface{Name: "dmz", On: "c", Addresses: prefixes("10.3.0.1/24", "fd03::1/64")})
	o.Routes = append(o.Routes, Route{To: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.MustParseAddr("10.3.0.2")})
	d.apply(o)
	if got := d.router.Targets(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("targets %v", got)
	}
	if r, ok := d.route("10.8.0.0/16", "dmz"); !ok || r.Alive || r.Why != "c is not bound" {
		t.Errorf("%+v", r)
	}
	c := d.plugIn("c", 9000)
	d.meet("c", "10.3.0.2", "10.3.0.1")
	d.meet("c", "fd03::2", "fd03::1")
	d.meet("a", "fd01::2", "fd01::1")
	d.crosses("a", "10.1.0.2", "10.8.1.1", "c")
	d.crosses("a", "fd01::2", "fd03::2", "c")

	// Another address, one less, and a longer prefix.
	o.Interfaces[2].Addresses = prefixes("10.3.0.1/16", "fd03::1/64", "10.4.0.1/24", "fd04::1/64")
	d.apply(o)
	for _, e := range []string{`address.added dmz "">"10.4.0.1/24"`, `address.removed dmz "10.3.0.1/24">""`, `address.added dmz "">"10.3.0.1/16"`} {
		if !d.events.has(e) {
			t.Errorf("no event %s in %q", e, d.events.events)
		}
	}
	c.await(t, "gratuitous ARP", func(f *ndiscore.Frame) bool {
		a, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && f.Dst() == ndiscore.Broadcast && slices.Equal(a.SourceProtAddress, []byte{10, 4, 0, 1})
	})
	d.meet("c", "10.4.0.2", "10.4.0.1")
	d.meet("c", "fd04::2", "fd04::1")
	d.crosses("a", "10.1.0.2", "10.3.0.2", "c") // whom it still knows
	d.crosses("a", "fd01::2", "fd04::2", "c")
	o.Interfaces[2].Addresses = prefixes("10.3.0.1/16")
	d.apply(o)
	if by := d.leavesBy("10.4.0.2"); by != "" {
		t.Errorf("10.4.0.0/24 leaves by %q", by)
	}
	d.in("c", arpRequest(hostOn("c"), "10.4.0.2", "10.4.0.1"))
	d.crosses("a", "10.1.0.2", "10.3.0.2", "c")
	for _, f := range c.sentSoFar() {
		if isARPReply(&f) {
			t.Errorf("answered for an address that is gone: %v", decode(&f))
		}
	}

	// A smaller MTU, and the adapter's again.
	o.Interfaces[2].MTU = 1300
	d.apply(o)
	d.in("a", rewrite(d.udp("a", "10.1.0.2", "10.3.0.2", 1400), func(h []byte) { h[6] = 0x40 }))
	d.cards["a"].await(t, "too big", func(f *ndiscore.Frame) bool {
		return isICMP4(f, 3) && binary.BigEndian.Uint16(f.Bytes(nil)[14+26:]) == 1300
	})
	d.in("a", d.udp("a", "10.1.0.2", "10.3.0.2", 1400))
	c.await(t, "a fragment", func(f *ndiscore.Frame) bool { return len(f.Bytes(nil)) == 14+1300 })
	o.Interfaces[2].MTU = 0
	d.apply(o)
	d.in("a", d.udp("a", "10.1.0.2", "10.3.0.2", 1400))
	c.await(t, "it whole", func(f *ndiscore.Frame) bool { return len(f.Bytes(nil)) == 14+1428 })
	if !d.events.has(`interface.mtu dmz "9000">"1300"`) || !d.events.has(`interface.mtu dmz "1300">"9000"`) {
		t.Errorf("events: %q", d.events.events)
	}

	// Other routes.
	o.Routes[1].Via = netip.MustParseAddr("10.3.0.3")
	o.Routes = append(o.Routes, Route{To: netip.MustParsePrefix("10.77.0.0/16"), Interface: "dmz"})
	d.apply(o)
	if r, ok := d.route("10.8.0.0/16", "dmz"); !ok || !r.Alive || r.Via != o.Routes[1].Via {
		t.Errorf("%+v", r)
	}
	if !d.events.has(`route.withdrawn dmz "alive">"10.8.0.0/16 via 10.3.0.2 dev dmz": deleted`) {
		t.Errorf("events: %q", d.events.events)
	}
	if d.events.has("route.withdrawn wan") || d.events.has("route.withdrawn lan") {
		t.Errorf("routes that stayed were withdrawn: %q", d.events.events)
	}

	// Onto another adapter.
	o.Interfaces[2].On = "d"
	d.apply(o)
	if i := d.router.Interfaces()[2]; i.Up || i.Adapter != "" || i.On != "d" {
		t.Errorf("%+v", i)
	}
	d.unplug("c")
	d.plugIn("d", 1500)
	d.meet("d", "10.3.0.2", "10.3.0.1")
	d.crosses("a", "10.1.0.2", "10.3.0.2", "d")

	// Another name for it: its adapter is bound already.
	o.Interfaces[2].Name, o.Routes[2].Interface = "guest", "guest"
	d.apply(o)
	if i := d.router.Interfaces()[2]; !i.Up || i.Adapter != "d" || i.Name != "guest" {
		t.Errorf("%+v", i)
	}
	d.meet("d", "10.3.0.2", "10.3.0.1")
	d.crosses("a", "10.1.0.2", "10.3.0.2", "d")

	// Nonsense changes nothing.
	bad := o
	bad.Interfaces = slices.Clone(o.Interfaces)
	bad.Interfaces[2].MTU = 5
	bad.Interfaces[2].Addresses = nil
	before := d.router.Interfaces()
	if err := d.router.Apply(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "mtu 5") || !strings.Contains(err.Error(), "10.8.0.0/16") {
		t.Errorf("%v", err)
	}
	if after := d.router.Interfaces(); !slices.Equal(after[2].Addresses, before[2].Addresses) {
		t.Errorf("%+v", after[2])
	}

	// Gone.
	d.apply(testOptions())
	if p := d.cards["d"].plug.port.Load(); p != nil {
		t.Errorf("%s still stands on d", p.iface.name)
	}
	if !d.events.has(`interface.unbound guest "d">"": configuration changed`) {
		t.Errorf("events: %q", d.events.events)
	}
	if by := d.leavesBy("10.3.0.2"); by != "" {
		t.Errorf("leaves by %q", by)
	}
	d.unplug("d")
	stop()
	if s := d.router.Stats(); s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
}

// TestApplySwap: two interfaces change places on adapters that stay bound.
func TestApplySwap(t *testing.T) {
	o := uplinks()
	d := newLiveBed(t, o, "a", "b", "c")
	o.Interfaces[1].On, o.Interfaces[2].On = "c", "b"
	d.apply(o)
	d.meet("a", "10.1.0.2", "10.1.0.1")
	d.meet("b", "10.3.0.2", "10.3.0.1")
	d.meet("c", "10.2.0.2", "10.2.0.1")
	d.crosses("a", "10.1.0.2", "10.3.0.2", "b")
	d.crosses("a", "10.1.0.2", "10.2.0.2", "c")
	d.unplug("c")
	eventually(t, "one is down", func() bool { return d.leavesBy("192.0.2.1") == "two" })
}

// TestApplySmallMTU: an MTU that IPv6 cannot use, and back.
func TestApplySmallMTU(t *testing.T) {
	o := testOptions()
	d := newLiveBed(t, o, "a", "b")
	o.Interfaces[1] = Interface{Name: "wan", On: "b", Addresses: prefixes("10.2.0.1/24"), MTU: 600}
	for range 2 {
		d.apply(o)
		d.meet("a", "10.1.0.2", "10.1.0.1")
		d.meet("b", "10.2.0.2", "10.2.0.1")
		d.in("a", d.udp("a", "10.1.0.2", "10.2.0.2", 1000))
		d.cards["b"].await(t, "a fragment", func(f *ndiscore.Frame) bool { return len(f.Bytes(nil)) == 14+596 })
		d.apply(testOptions())
		d.meet("a", "fd01::2", "fd01::1")
		d.meet("b", "fd02::2", "fd02::1")
		d.crosses("a", "fd01::2", "fd02::2", "b")
	}
	if !d.events.has(`interface.ipv6 wan "on">"off"`) || !d.events.has(`interface.ipv6 wan "off">"on"`) {
		t.Errorf("events: %q", d.events.events)
	}
}

// TestApplyBeforeStart: what is not running yet is only configured.
func TestApplyBeforeStart(t *testing.T) {
	r, err := New(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), uplinks()); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteRoute(t.Context(), uplinks().Routes[0]); err != nil {
		t.Fatal(err)
	}
	if got := r.Targets(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("targets %v", got)
	}
	r.Close()
	if err := r.Apply(t.Context(), testOptions()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after Close: %v", err)
	}
}

// TestAttributesChange: the adapter has another MAC and another MTU, and the
// router goes on with them; its neighbours stay.
func TestAttributesChange(t *testing.T) {
	d := newLiveBed(t, testOptions(), "a", "b")
	for n, net := range map[string]string{"a": "1", "b": "2"} {
		d.meet(n, "10."+net+".0.2", "10."+net+".0.1")
		d.meet(n, "fd0"+net+"::2", "fd0"+net+"::1")
	}
	b := d.cards["b"]
	fresh := ndiscore.MAC{2, 0xaa, 0, 0, 0, 9}
	d.state("b", ndiscore.AttributesChange{MAC: fresh, Why: "set by hand"}, func(a *ndiscore.Attributes) { a.MAC = fresh })
	for _, a := range []string{"10.2.0.1", "fd02::1", "fe80::aa:ff:fe00:9"} {
		b.await(t, "announcement of "+a, func(f *ndiscore.Frame) bool {
			p := decode(f)
			if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
				ip, _ := netip.AddrFromSlice(l.SourceProtAddress)
				return ip.String() == a && f.Dst() == ndiscore.Broadcast && slices.Equal(l.SourceHwAddress, fresh[:])
			}
			na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			return ok && na.TargetAddress.String() == a && slices.Equal(na.Options[0].Data, fresh[:])
		})
	}
	i := d.router.Interfaces()[1]
	if i.MAC != fresh || !slices.Contains(i.Addresses, netip.MustParsePrefix("fe80::aa:ff:fe00:9/64")) || len(i.Addresses) != 3 {
		t.Errorf("%+v", i)
	}
	d.in("a", d.udp("a", "10.1.0.2", "10.2.0.2", 5))
	if f := b.await(t, "UDP", isUDP); f.Src() != fresh || f.Dst() != hostOn("b") {
		t.Errorf("sent from %s to %s", f.Src(), f.Dst())
	}
	d.meet("b", "10.2.0.3", "10.2.0.1")
	d.meet("b", "fe80::77", "fe80::aa:ff:fe00:9")
	// What is sent to the old MAC is somebody else's, and so is the old address.
	old := d.udp("b", "10.2.0.2", "10.1.0.2", 5)
	mac := macOfCard("b")
	copy(old.Head, mac[:])
	if v := d.router.fib.Load().check(d.router.Interfaces()[1].MAC, old); v.drop != ndiscore.DropNotForUs {
		t.Errorf("verdict %s", v.drop)
	}
	d.in("b", solicitation(hostOn("b"), "fe80::77", "fe80::1ff:fe00:62"))
	d.meet("b", "fe80::78", "fe80::aa:ff:fe00:9")
	for _, f := range b.sentSoFar() {
		if isICMP6(&f, 136) && strings.Contains(decode(&f).String(), "fe80::1ff:fe00:62") {
			t.Errorf("advertises its old address: %v", decode(&f))
		}
	}

	d.state("b", ndiscore.AttributesChange{MTU: 1400}, func(a *ndiscore.Attributes) { a.MTU = 1400 })
	eventually(t, "the MTU, for the guards too", func() bool {
		e := lookup(d.router.fib.Load(), netip.MustParseAddr("fd02::2"))
		return d.router.Interfaces()[1].MTU == 1400 && e != nil && e.mtu == 1400
	})
	d.in("a", d.udp("a", "fd01::2", "fd02::2", 1400))
	d.cards["a"].await(t, "packet too big", func(f *ndiscore.Frame) bool {
		return isICMP6(f, 2) && binary.BigEndian.Uint32(f.Bytes(nil)[14+44:]) == 1400
	})
	d.crosses("a", "fd01::2", "fd02::2", "b")
	// One that IP cannot use at all withdraws the routes.
	d.state("b", ndiscore.AttributesChange{MTU: 60}, func(a *ndiscore.Attributes) { a.MTU = 60 })
	eventually(t, "withdrawn, and why", func() bool { // it is told once it is so
		r, _ := d.route("10.2.0.0/24", "wan")
		return d.leavesBy("10.2.0.2") == "" && r.Why == "the mtu of b is 60, IP needs 68"
	})
	d.state("b", ndiscore.AttributesChange{MTU: 9000}, func(a *ndiscore.Attributes) { a.MTU = 9000 })
	eventually(t, "back", func() bool { return d.leavesBy("fd02::2") == "wan" && d.router.Interfaces()[1].MTU == 9000 })

	// No station's MAC is not taken over; other indications are not ours.
	d.state("b", ndiscore.AttributesChange{}, func(a *ndiscore.Attributes) { a.MAC = ndiscore.Broadcast })
	for _, s := range []ndiscore.Status{ndiscore.ResetStart{Why: "x"}, ndiscore.ResetEnd{}, ndiscore.OperChange{Status: ndiscore.OperUp}} {
		d.router.status(b.plug, s)
	}
	if err := d.router.update(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i := d.router.Interfaces()[1]; i.MAC != fresh {
		t.Errorf("%+v", i)
	}
	for _, e := range []string{`interface.mac wan "02:00:00:00:01:62">"02:aa:00:00:00:09"`, `interface.mtu wan "1500">"1400"`} {
		if !d.events.has(e) {
			t.Errorf("no event %s in %q", e, d.events.events)
		}
	}
	if err := d.router.Event(t.Context(), nil, ndiscore.EventBindsComplete); err != nil {
		t.Error(err)
	}
}
