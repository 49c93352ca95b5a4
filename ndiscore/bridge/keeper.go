package bridge

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	// Announcements to one port go out in bursts of so many, so far apart: the
	// first few hundred stations are found again at once, and a network of slow
	// stations is not flooded with thousands of broadcasts in one instant.
	announceBurst = 4 * ndiscore.BatchFrames
	announcePace  = 10 * time.Millisecond

	maxTick = time.Second
	minTick = 10 * time.Millisecond

	etherTypeRARP = 0x8035
	rarpRequest   = 3 // "request reverse" (RFC 903)
	rarpLength    = ownLength
	ownLength     = 60 // of a frame of the bridge's own: the least Ethernet frame without FCS
)

// lookLong is how long one look may take before it is taken again at once.
const lookLong = 10 * time.Millisecond

// keeper does what a bridge does in its own time. One goroutine, "bridge NAME
// keeper", runs it: started by Initialize, ended by Halt.
type keeper struct {
	bridge *Bridge
	clock  ndiscore.Clock
	worker *ndiscore.Worker

	wake chan struct{} // one slot
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex       // guards asked and forget
	asked  map[*port]notice // ports to announce on; at most one entry per port
	forget []forgetting     // answered between two looks, in order

	// The goroutine's own.
	started, ticked time.Time
	watched         time.Time // when the buckets were last filled
	probedAt        time.Time
	probed          map[*port]uint16 // the VLAN probed last on a trunk port
	shutLast        time.Time        // when the loop guard last shut a port
	jobs            []*announcement
	frames          [ndiscore.BatchFrames]ndiscore.Frame
	buffers         [ndiscore.BatchFrames][ndiscore.Headroom + ownLength]byte
}

// notice is what asks for an announcement.
type notice struct {
	why string
	at  time.Time
}

type forgetting struct {
	port *port // nil: none, only look again
	gone bool  // it is not bound any more
	done chan struct{}
}

// announcement tells the network behind one port where all others are.
type announcement struct {
	port   *port
	why    string
	begun  time.Time
	round  int       // index into ndiscore.AnnounceAt
	cursor int       // next slot of the table; -1: the bridge's own address
	due    time.Time // of the next burst
	burst  time.Time // the last one
	sent   int
}

func newKeeper(b *Bridge, clock ndiscore.Clock, w *ndiscore.Worker) *keeper {
	k := &keeper{
		bridge: b, clock: clock, worker: w,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		asked:  make(map[*port]notice),
		probed: make(map[*port]uint16),
	}
	k.started = clock.Now()
	k.ticked, k.watched = k.started, k.started
	return k
}

func (k *keeper) close() {
	close(k.stop)
	<-k.done
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// announce asks for an announcement on p, to start after a while. It never
// blocks.
func (k *keeper) announce(p *port, why string, after time.Duration) {
	at := k.clock.Now().Add(after)
	k.mu.Lock()
	k.asked[p] = notice{why, at}
	k.mu.Unlock()
	k.poke()
}

// forgetLimit is how long a port waits for the keeper, which may be in a Send
// that does not return. It comes to it later; meanwhile the core refuses what is
// sent to a port that is paused.
const forgetLimit = time.Second

// forgetPort ends what is under way on p; when it returns nothing is being
// sent there. gone: it is not bound any more, nor are its limits in force.
func (k *keeper) forgetPort(p *port, gone bool) {
	limit := time.NewTimer(forgetLimit)
	defer limit.Stop()
	select {
	case <-k.toForget(p, gone):
	case <-k.done:
	case <-limit.C:
	}
}

// toForget has the keeper forget p; nil: only look again. The channel is closed
// when it has.
func (k *keeper) toForget(p *port, gone bool) <-chan struct{} {
	f := forgetting{p, gone, make(chan struct{})}
	k.mu.Lock()
	k.forget = append(k.forget, f)
	k.mu.Unlock()
	k.poke()
	return f.done
}

// forgetThem ends what is under way on the ports that are to be forgotten.
func (k *keeper) forgetThem() {
	k.mu.Lock()
	forget := k.forget
	k.forget = nil
	k.mu.Unlock()
	for _, f := range forget {
		if f.port != nil {
			k.drop(f.port)
		}
		if f.gone {
			for kind := range stormKinds {
				k.calm(f.port, kind, "it was unbound")
			}
			k.room(f.port, "it was unbound")
		}
		close(f.done)
	}
}

func (k *keeper) run() {
	defer close(k.done)
	defer k.worker.Close()
	for again := false; ; {
		k.forgetThem()
		now := k.clock.Now()
		k.take(now)
		next := k.age(now)
		for _, t := range [...]time.Time{k.announceDue(now), k.watch(now), k.watchLoops(now), k.bridge.snoop.step(now)} {
			if !t.IsZero() && t.Before(next) {
				next = t
			}
		}
		timer := k.clock.AfterFunc(next.Sub(now), k.poke)
		if again = !again && k.clock.Now().Sub(now) >= lookLong; again {
			timer.Stop() // it is late by as long as the look took
			continue
		}
		select {
		case <-k.wake:
		case <-k.stop:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// age moves the coarse clock and the ageing on when a tick is due, and returns
// when the next one is.
func (k *keeper) age(now time.Time) time.Time {
	age := k.bridge.opts.Load().Age
	tick := min(max(age/10, minTick), maxTick)
	if now.Sub(k.ticked) < tick {
		return k.ticked.Add(tick)
	}
	late := now.Sub(k.ticked) > 3*tick
	k.ticked = now
	t := k.bridge.table()
	t.now.Store(uint32(now.Sub(k.started).Milliseconds()))
	if !late {
		t.expire(age)
	}
	// When we were late, so perhaps were the workers, and what they saw bears
	// the stamp of long ago: let them see it again before judging.

	if t.roomAgain() {
		k.fullTold(false)
	} else if t.isFull.Load() {
		k.fullTold(true)
	}
	return now.Add(tick)
}

func (k *keeper) fullTold(full bool) {
	b := k.bridge
	if b.fullTold == full {
		return
	}
	b.fullTold = full
	tell, t := b.opts.Load().Event, b.table()
	if full {
		tell("bridge.fdb", "", "room", "full", fmt.Sprintf("%d addresses are known (mac_limit %d): frames to others are flooded", t.entries.Load(), t.limit))
		return
	}
	tell("bridge.fdb", "", "full", "room", fmt.Sprintf("%d addresses are known (mac_limit %d); %d times one was not learned", t.entries.Load(), t.limit, t.refused.Load()))
}

// take turns requests into announcements.
func (k *keeper) take(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p, n := range k.asked {
		delete(k.asked, p)
		a := k.job(p)
		if a == nil {
			a = &announcement{port: p}
			k.jobs = append(k.jobs, a)
		}
		if now.After(n.at) {
			n.at = now
		}
		// A storm of notices restarts the rounds, not the pace.
		a.why, a.begun, a.round, a.cursor, a.sent = n.why, n.at, 0, -1, 0
		a.due = n.at
		if t := a.burst.Add(announcePace); t.After(a.due) {
			a.due = t
		}
	}
}

func (k *keeper) job(p *port) *announcement {
	for _, a := range k.jobs {
		if a.port == p {
			return a
		}
	}
	return nil
}

// drop ends the announcement on p, which owes it then. A port that runs again,
// because the keeper comes to it late, goes on with it.
func (k *keeper) drop(p *port) {
	delete(k.probed, p)
	k.bridge.mu.Lock()
	defer k.bridge.mu.Unlock() // until p owes: whoever has it run looks for that afterwards
	if p.running {
		return
	}
	k.mu.Lock()
	if n, ok := k.asked[p]; ok {
		delete(k.asked, p)
		p.owed.Store(&n.why)
	}
	k.mu.Unlock()
	for i, a := range k.jobs {
		if a.port == p {
			k.jobs = append(k.jobs[:i], k.jobs[i+1:]...)
			p.owed.CompareAndSwap(nil, &a.why)
			return
		}
	}
}

// announceDue sends the bursts that are due and returns when the next one is,
// zero for never.
func (k *keeper) announceDue(now time.Time) (next time.Time) {
	for i := 0; i < len(k.jobs); i++ {
		a := k.jobs[i]
		if !a.due.After(now) && !k.step(a, now) {
			k.bridge.opts.Load().Event("bridge.announced", a.port.name, "", "", fmt.Sprintf("%s: %d reverse-ARP announcements", a.why, a.sent))
			k.jobs = append(k.jobs[:i], k.jobs[i+1:]...)
			i--
			continue
		}
		if next.IsZero() || a.due.Before(next) {
			next = a.due
		}
	}
	return next
}

// step sends one burst of a and reports whether more follow.
func (k *keeper) step(a *announcement, now time.Time) bool {
	a.burst = now
	done := !a.port.binding.Usable()
	for sent := 0; !done && sent < announceBurst; {
		var n int
		n, done = k.batch(a)
		sent += n
	}
	if !done {
		a.due = now.Add(announcePace)
		return true
	}
	a.round++
	if a.round == len(ndiscore.AnnounceAt) {
		return false
	}
	a.cursor = -1
	a.due = a.begun.Add(ndiscore.AnnounceAt[a.round])
	if t := now.Add(announcePace); a.due.Before(t) {
		a.due = t
	}
	return true
}

// batch sends one batch of a's round and reports whether it was the last.
func (k *keeper) batch(a *announcement) (n int, last bool) {
	b := k.bridge
	v := b.view.Load()
	if int(a.port.id) >= len(v.byID) || v.byID[a.port.id] != a.port {
		return 0, true // it is no port any more
	}
	r := &v.rules[a.port.id]
	q := k.worker.Scratch()
	defer k.worker.Done(q)
	if a.cursor < 0 {
		a.cursor = 0
		if b.filter.Load() != 0 { // somebody is there to be found
			k.add(q, r, b.mac, v.vlan)
		}
	}
	for !q.Full() {
		slot, key, port := v.fdb.next(a.cursor)
		if slot == noSlot {
			last = true
			break
		}
		a.cursor = slot + 1
		if port != a.port.id {
			k.add(q, r, macOf(key), uint16(key>>vlanShift))
		}
	}
	n = len(q.Frames)
	if n == 0 {
		return 0, last
	}
	a.port.binding.Send(q)
	b.announced.Add(uint64(n))
	a.sent += n
	return n, last
}

// frame adds a frame of n bytes to q.
func (k *keeper) frame(q *ndiscore.Batch, n int) *ndiscore.Frame {
	i := len(q.Frames)
	f := &k.frames[i]
	f.Reset(k.buffers[i][:], ndiscore.Headroom, n)
	q.Append(f)
	return f
}

// add writes a reverse-ARP request (RFC 903) of mac for itself, as hypervisors
// send it after a migration: switches learn from its source where mac is now,
// and nobody answers. It leaves by a port with rules r, in vlan if that is one
// of the port's.
func (k *keeper) add(q *ndiscore.Batch, r *rules, mac ndiscore.MAC, vlan uint16) {
	if !r.member(vlan) {
		return
	}
	f := k.frame(q, rarpLength)
	writeRARP(f.Head, mac)
	if vlan != r.untagged {
		pushTag(f, vlan)
	}
}

func writeRARP(h []byte, mac ndiscore.MAC) {
	clear(h)
	copy(h, ndiscore.Broadcast[:])
	copy(h[6:], mac[:])
	binary.BigEndian.PutUint16(h[12:], etherTypeRARP)
	binary.BigEndian.PutUint16(h[14:], 1) // Ethernet
	binary.BigEndian.PutUint16(h[16:], ndiscore.EtherTypeIPv4)
	h[18], h[19] = 6, 4
	binary.BigEndian.PutUint16(h[20:], rarpRequest)
	copy(h[22:], mac[:]) // sender; its address stays zero
	copy(h[32:], mac[:]) // target: whose address is asked for; zero too
}
