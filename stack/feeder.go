package stack

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// feeder is what belongs to the feeder goroutine alone.
type feeder struct {
	net      *instance
	rebuilds []time.Time // of the last hour
	states   map[string]string
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
	r.feed.states = map[string]string{}
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

// runDue runs netstack's timers that have run down.
func (r *Router) runDue() {
	for _, c := range r.due.take() {
		if !c.clock.dead.Load() && !r.dead.Load() {
			r.guarded(c.f)
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
		for _, i := range r.ifaces {
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
	e := it.in.ep
	if e == nil || e.up.Load() == nil {
		r.stats.orphans.Add(1) // its interface was unbound meanwhile
		it.pkt.DecRef()
		return
	}
	r.stats.delivered.Add(1)
	if r.poison != nil {
		r.poison(it.in)
	}
	up := *e.up.Load()
	if it.super != nil && it.super.ep != nil {
		out := it.super.ep
		out.mtu.Store(maxMTU)
		up.DeliverNetworkPacket(it.pkt.NetworkProtocolNumber, it.pkt)
		out.mtu.Store(uint32(it.super.mtu))
	} else {
		up.DeliverNetworkPacket(it.pkt.NetworkProtocolNumber, it.pkt)
	}
	it.pkt.DecRef()
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
	for _, i := range r.ifaces {
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
	for _, i := range r.ifaces {
		i.port = nil
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

// reconcile makes netstack's NICs those of the ports that are bound, and its
// routes those that are alive.
func (r *Router) reconcile() {
	if r.dead.Load() {
		return
	}
	r.mu.Lock()
	want := make([]*port, len(r.ifaces))
	noMLD := false
	for n, i := range r.ifaces {
		want[n] = i.port
		noMLD = noMLD || i.port != nil && i.port.mtu < minMTUIPv6
	}
	r.mu.Unlock()
	noMLD = noMLD && r.feed.net.mld
	for n, i := range r.ifaces {
		if i.live != nil && (noMLD || i.live != want[n]) {
			r.feed.net.removeNIC(i.id) // closes the endpoint
			i.live.ep = nil
			i.live = nil
		}
	}
	if noMLD {
		old := r.feed.net
		if err := r.install(false); err != nil {
			r.die(err)
			return
		}
		old.destroy()
	}
	net := r.feed.net
	for n, i := range r.ifaces {
		p := want[n]
		if p == nil || i.live == p {
			continue
		}
		// Known before it is used: should netstack panic now, rebuild closes it.
		p.ep, i.live = newEndpoint(r, p), p
		if p.err = net.addNIC(i.id, p, p.ep); p.err != nil {
			p.ep, i.live = nil, nil
		}
	}
	r.reroute()
}
