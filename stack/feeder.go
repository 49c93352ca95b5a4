package stack

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// feeder is what belongs to the feeder goroutine alone.
type feeder struct {
	net      *instance
	ifaces   []*iface             // as of the last reconcile; none but these has a live port
	statics  []static             // likewise
	rebuilds []time.Time          // of the last hour
	told     map[RouteInfo]string // "alive" or "withdrawn", as last told, by identity
	burst    [puntBurst]punted
	next     int // of burst: what is delivered
	n        int // of burst
}

// spinRounds is how often the feeder looks again before it sleeps. Waking it
// costs its next packet tens of microseconds on another core, and the worker
// that wakes it a system call.
const spinRounds = 100

// feederLoop is the goroutine that owns netstack: it delivers what workers
// punted, and changes NICs, addresses and routes between deliveries, so that
// RemoveNIC never meets a delivery of ours.
func (r *Router) feederLoop() {
	defer close(r.ended)
	r.rebuild("start")
	for {
		if r.stale.Load() {
			r.stale.Store(false)
			r.guarded(r.reconcile)
		}
		if r.due.some.Load() {
			r.runDue()
		}
		select {
		case c := <-r.commands:
			r.serve(c)
		case <-r.stop:
			r.end()
			return
		default:
		}
		if r.deliverBurst() || r.spin() {
			continue
		}
		r.queue.sleeping.Store(true)
		// Look once more: what came before the store above woke nobody.
		if r.queue.waiting.Load() == 0 && !r.stale.Load() && !r.due.some.Load() {
			select {
			case <-r.queue.wake:
			case c := <-r.commands:
				r.queue.sleeping.Store(false)
				r.serve(c)
			case <-r.stop:
				r.queue.sleeping.Store(false)
				r.end()
				return
			}
		}
		r.queue.sleeping.Store(false)
	}
}

// spin reports whether something came while it looked.
func (r *Router) spin() bool {
	for range spinRounds {
		if r.queue.waiting.Load() != 0 {
			return true
		}
		runtime.Gosched()
	}
	return false
}

// runDue runs netstack's timers that have run down, and those that they start for
// at once.
func (r *Router) runDue() {
	for r.due.some.Load() {
		for _, c := range r.due.take() {
			if !c.clock.dead.Load() && !r.dead.Load() {
				r.guarded(c.f)
			}
		}
	}
}

func (r *Router) serve(c *command) {
	if r.dead.Load() {
		c.done <- ErrNotRunning
		return
	}
	if !r.guarded(c.run) {
		c.done <- ErrPanicked
		return
	}
	c.done <- nil
}

// deliverBurst delivers some of what waits, urgent packets first, and reports
// whether there was any. What is sent meanwhile leaves together at the end: one
// system call for many small packets.
func (r *Router) deliverBurst() bool {
	f := &r.feed
	f.next, f.n = 0, r.queue.take(f.burst[:])
	if f.n == 0 {
		return false
	}
	r.bursting.Store(f.n > 1)
	for f.next < f.n {
		if r.dead.Load() {
			for ; f.next < f.n; f.next++ {
				f.burst[f.next].pkt.DecRef()
				r.stats.orphans.Add(1)
			}
			break
		}
		// Again after a panic, without the packet that made it.
		r.guarded(r.deliverAll)
	}
	clear(f.burst[:f.n])
	if f.n > 1 {
		r.bursting.Store(false)
		for _, i := range f.ifaces {
			if i.live != nil && i.live.ep != nil {
				i.live.ep.endBurst()
			}
		}
	}
	return true
}

func (r *Router) deliverAll() {
	f := &r.feed
	for f.next < f.n {
		it := &f.burst[f.next]
		f.next++
		r.deliver(it)
	}
}

// deliver hands one packet to netstack, which runs it to its end: to the
// endpoint of another NIC, to a local socket, or to a reply.
func (r *Router) deliver(it *punted) {
	if r.feed.net.neighbors.asking.Load() >= maxQuestions {
		r.limitQuestions()
	}
	e := it.in.ep
	if e == nil || e.up.Load() == nil {
		r.stats.orphans.Add(1) // its interface was unbound meanwhile
		it.pkt.DecRef()
		return
	}
	if it.class == classForward && r.nowOurs(it) {
		r.stats.orphans.Add(1)
		it.pkt.DecRef()
		return
	}
	r.stats.delivered.Add(1)
	if r.poison != nil {
		r.poison(it.in)
	}
	switch {
	case it.pkt.NetworkProtocolNumber == header.ARPProtocolNumber:
		r.noticeMove(it)
	case !r.mayWait(it):
		it.pkt.DecRef()
		return
	}
	detour := r.detour(it)
	up := *e.up.Load()
	if it.super != nil && it.super.ep != nil {
		out := it.super.ep
		out.mtu.Store(maxMTU)
		up.DeliverNetworkPacket(it.pkt.NetworkProtocolNumber, it.pkt)
		out.mtu.Store(uint32(it.super.station.Load().mtu))
	} else {
		up.DeliverNetworkPacket(it.pkt.NetworkProtocolNumber, it.pkt)
	}
	it.pkt.DecRef()
	for _, back := range detour { // after a panic there is a netstack that has them all
		r.feed.net.s.AddRoute(back)
	}
}

// detour takes away the routes by which netstack would answer a packet to an
// address of ours out of the wrong interface, and returns them; netstack routes its
// answers within the delivery. The best route to the sender may lead out of another
// interface than the one that has the address. netstack, a strong host, then prefers
// any route that leads out of the latter, such as the default route to the network
// next door, and follows the best one only when there is none. A router is a weak host
// (RFC 1122 3.3.4.2).
func (r *Router) detour(it *punted) (gone []tcpip.Route) {
	if it.class != classLocal && it.class != classControl {
		return nil
	}
	f := r.fib.Load()
	at, n, l := 12, 4, &f.v4
	if it.pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		at, n, l = 8, 16, &f.v6
	}
	b, ok := it.pkt.Data().PullUp(at + 2*n)
	if !ok {
		return nil
	}
	src, dst := key4(b[at:]), key4(b[at+n:])
	if n == 16 {
		src, dst = key6(b[at:]), key6(b[at+n:])
	}
	own, best := l.lookup(dst), l.lookup(src)
	if own == nil || own.kind != fibLocal || best == nil || best.kind != fibForward || best.egress == own.egress {
		return nil
	}
	from := tcpip.AddrFromSlice(b[at : at+n])
	r.feed.net.s.RemoveRoutes(func(o tcpip.Route) bool {
		if o.NIC != own.egress.iface.id || !o.Destination.Contains(from) {
			return false
		}
		gone = append(gone, o)
		return true
	})
	return gone
}

// nowOurs reports whether a packet that was to be forwarded when it came is for
// an address that the router has got since: its interface was bound anew while the
// packet waited. NAT, which might have translated it, has not seen it, and netstack
// would refuse it and so end a connection. Its sender sends it again.
func (r *Router) nowOurs(it *punted) bool {
	t := r.fib.Load()
	if it.fib == t {
		return false
	}
	at, n, l := 16, 4, &t.v4
	if it.pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		at, n, l = 24, 16, &t.v6
	}
	b, ok := it.pkt.Data().PullUp(at + n)
	if !ok {
		return false
	}
	k := key4(b[at:])
	if n == 16 {
		k = key6(b[at:])
	}
	e := l.lookup(k)
	return e != nil && e.kind == fibLocal
}

// guarded runs f on the feeder, and if netstack panics in it, replaces
// netstack. It reports whether f ran to its end.
func (r *Router) guarded(f func()) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			r.panicked(v, debug.Stack())
		}
	}()
	f()
	return true
}

// panicked abandons a netstack that panicked: its locks may be held for ever.
// Its packets, timers and the goroutines of its TCP are lost with it, which is
// why this may happen a few times only.
func (r *Router) panicked(v any, trace []byte) {
	r.stats.panics.Add(1)
	r.log.Error("netstack panicked", zap.Any("panic", v), zap.ByteString("stack", trace))
	r.rebuild(fmt.Sprint(v))
}

// rebuild makes a netstack, and its NICs, addresses and routes, from what is
// bound.
func (r *Router) rebuild(why string) {
	f := &r.feed
	first := f.net == nil
	for _, i := range f.ifaces {
		if i.live == nil {
			continue
		}
		if e := i.live.ep; e != nil {
			e.Close()
			e.abandon()
			i.live.ep = nil
		}
		i.live = nil
	}
	if !first {
		f.net.abandon()
		now := r.clock.Now()
		kept := f.rebuilds[:0]
		for _, t := range f.rebuilds {
			if now.Sub(t) < time.Hour {
				kept = append(kept, t)
			}
		}
		f.rebuilds = append(kept, now)
		if len(f.rebuilds) > r.limits.RebuildsPerHour {
			r.die(fmt.Errorf("stack: %w %d times within an hour, the last time: %s", ErrPanicked, len(f.rebuilds), why))
			return
		}
	}
	if err := r.install(first || f.net.mld); err != nil {
		r.die(err)
		return
	}
	if !r.guarded(r.reconcile) || first {
		return // a panic has built the next one already, or given up
	}
	r.log.Warn("netstack rebuilt", zap.String("reason", why))
	r.config.Event("router.rebuilt", "", "", "", why)
}

// install puts a new netstack in place of the one there is.
func (r *Router) install(mld bool) error {
	net, err := newInstance(r.clock, &r.due, mld)
	if err != nil {
		return err
	}
	r.feed.net = net
	r.stack.Store(net)
	return nil
}

// die ends forwarding for good: the process had better be restarted.
func (r *Router) die(err error) {
	if r.dead.Swap(true) {
		return
	}
	r.stack.Store(nil)
	r.fib.Store(newFIB(nil))
	r.log.Error("router given up", zap.Error(err))
	r.config.Fatal(err)
}

// end takes everything down when the router is closed.
func (r *Router) end() {
	r.mu.Lock()
	for _, p := range r.plugs {
		r.plugOutLocked(p)
	}
	r.mu.Unlock()
	if !r.dead.Load() {
		r.guarded(func() {
			r.reconcile()
			r.feed.net.destroy()
		})
	}
	r.dead.Store(true)
	r.queue.drain()
}

// reconcile makes netstack's NICs those of the ports that are bound, as they are
// configured and as their adapters are now, and its routes those that are alive.
// What has not changed is not touched.
func (r *Router) reconcile() {
	if r.dead.Load() {
		return
	}
	f := &r.feed
	r.mu.Lock()
	ifaces, statics := r.ifaces, r.statics
	ports, now := make([]*port, len(ifaces)), make([]*station, len(ifaces))
	noMLD := false
	for n, i := range ifaces {
		i.used, ports[n] = i.config, i.port
		if p := i.port; p != nil {
			now[n] = newStation(&i.used, p.attributes())
			noMLD = noMLD || !now[n].hasIPv6()
		}
	}
	r.mu.Unlock()
	noMLD = noMLD && f.net.mld
	for _, i := range f.ifaces {
		n := slices.Index(ifaces, i)
		if p := i.live; p != nil && (noMLD || n < 0 || p != ports[n] || p.station.Load().hasIPv6() != now[n].hasIPv6()) {
			r.removeNIC(i)
		}
	}
	f.ifaces, f.statics = ifaces, statics
	if noMLD {
		old := f.net
		if err := r.install(false); err != nil {
			r.die(err)
			return
		}
		old.destroy()
	}
	for n, i := range ifaces {
		p := ports[n]
		if p == nil {
			continue
		}
		was := p.station.Swap(now[n])
		if i.live == p && !was.equal(now[n]) {
			if p.err = f.net.changeNIC(i.id, was, now[n]); p.err != nil {
				r.log.Error("interface rebuilt", zap.String("interface", i.name), zap.Error(p.err))
				r.removeNIC(i)
			} else {
				p.ep.mtu.Store(uint32(now[n].mtu))
			}
		}
		if i.live != p {
			// Known before it is used: should netstack panic now, rebuild closes it.
			p.ep, i.live = newEndpoint(r, p), p
			if p.err = f.net.addNIC(i.id, p, p.ep); p.err != nil {
				p.ep, i.live = nil, nil
			}
		}
		r.tellChanges(p, was, now[n])
	}
	r.reroute()
}

func (r *Router) removeNIC(i *iface) {
	r.feed.net.removeNIC(i.id) // closes the endpoint
	i.live.ep = nil
	i.live = nil
}

// tellChanges raises an event for what is new of p, and tells its network.
func (r *Router) tellChanges(p *port, was, now *station) {
	if was.equal(now) {
		return
	}
	tell := func(what, from, to string) { r.config.Event(what, p.iface.name, from, to, "") }
	announce := was.mac != now.mac
	if announce {
		tell("interface.mac", was.mac.String(), now.mac.String())
	}
	if was.mtu != now.mtu {
		tell("interface.mtu", strconv.Itoa(was.mtu), strconv.Itoa(now.mtu))
	}
	if was.hasIPv6() != now.hasIPv6() {
		tell("interface.ipv6", onOff(was.hasIPv6()), onOff(now.hasIPv6()))
	}
	for _, a := range was.addresses {
		if !slices.Contains(now.addresses, a) {
			tell("address.removed", a.String(), "")
		}
	}
	for _, a := range now.addresses {
		if !slices.Contains(was.addresses, a) {
			tell("address.added", "", a.String())
			announce = true
		}
	}
	if announce {
		r.announceAddresses(p, "interface changed", 0)
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
