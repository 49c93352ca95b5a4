package stack

import (
	"sync"
	"sync/atomic"

	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// punted is one packet on its way to netstack.
type punted struct {
	pkt   *netstack.PacketBuffer // owned by the queue
	in    *port
	super *port // see verdict.super
	fib   *fib  // by which it was looked at
	bytes int
	class class
}

// puntQueue carries packets from the workers to the feeder: bounded in frames
// and bytes per class, and the urgent classes overtake. A worker locks once per
// batch.
type puntQueue struct {
	wake     chan struct{} // holds one token when the feeder has to be woken
	sleeping atomic.Bool   // the feeder waits for wake
	waiting  atomic.Int64  // packets in all rings

	mu    sync.Mutex // a leaf; guards the rings
	rings [classes]puntRing
}

// puntRing is one class of a puntQueue.
type puntRing struct {
	slots    []punted
	head, n  int
	bytes    int
	maxBytes int
	full     atomic.Bool // it refused a packet since the last take: a hint, so that nobody copies in vain

	// Written under the lock, read without it.
	frames, dropped, carried, highFrames, highBytes atomic.Uint64
}

// puntQuota is how many packets of each class the feeder takes at a time,
// urgent classes first. That the forward class has its share even in a flood of
// ARP is why these are not strict priorities.
var puntQuota = [classes]int{16, 16, 16, 32, 4}

func newPuntQueue(l Limits) *puntQueue {
	q := &puntQueue{wake: make(chan struct{}, 1)}
	for i := range q.rings {
		q.rings[i].slots = make([]punted, l.PuntFrames[i])
		q.rings[i].maxBytes = l.PuntBytes[i]
	}
	return q
}

// full reports whether a packet of class c would most likely be refused.
func (q *puntQueue) full(c class) bool { return q.rings[c].full.Load() }

// refuse counts a packet of class c that was not even copied.
func (q *puntQueue) refuse(c class) { q.rings[c].dropped.Add(1) }

// push queues the packets of items in order. Those that were refused remain
// the caller's: their pkt stays, that of the others becomes nil.
func (q *puntQueue) push(items []punted) {
	q.mu.Lock()
	n := 0
	for i := range items {
		it := &items[i]
		r := &q.rings[it.class]
		if r.n == len(r.slots) || r.n > 0 && r.bytes+it.bytes > r.maxBytes {
			r.full.Store(true)
			r.dropped.Add(1)
			continue
		}
		at := r.head + r.n
		if at >= len(r.slots) {
			at -= len(r.slots)
		}
		r.slots[at] = *it
		it.pkt = nil
		r.n++
		r.bytes += it.bytes
		n++
		r.frames.Add(1)
		r.carried.Add(uint64(it.bytes))
		if uint64(r.n) > r.highFrames.Load() {
			r.highFrames.Store(uint64(r.n))
		}
		if uint64(r.bytes) > r.highBytes.Load() {
			r.highBytes.Store(uint64(r.bytes))
		}
	}
	q.waiting.Add(int64(n))
	q.mu.Unlock()
	if n > 0 {
		q.kick()
	}
}

// kick wakes the feeder if it sleeps.
func (q *puntQueue) kick() {
	if q.sleeping.Load() {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// take moves packets to burst, urgent ones first, and returns how many. burst
// must have room for the sum of puntQuota.
func (q *puntQueue) take(burst []punted) int {
	if q.waiting.Load() == 0 {
		return 0
	}
	n := 0
	q.mu.Lock()
	for c := range q.rings {
		r := &q.rings[c]
		for k := puntQuota[c]; k > 0 && r.n > 0; k-- {
			burst[n] = r.slots[r.head]
			r.slots[r.head] = punted{}
			r.bytes -= burst[n].bytes
			r.n--
			if r.head++; r.head == len(r.slots) {
				r.head = 0
			}
			n++
		}
		if r.full.Load() && r.n < len(r.slots) && r.bytes < r.maxBytes {
			r.full.Store(false)
		}
	}
	q.mu.Unlock()
	q.waiting.Add(int64(-n))
	return n
}

// drain releases everything that waits.
func (q *puntQueue) drain() {
	burst := make([]punted, puntBurst)
	for n := q.take(burst); n > 0; n = q.take(burst) {
		for i := range burst[:n] {
			burst[i].pkt.DecRef()
		}
	}
}

// puntBurst is the most packets that take returns.
const puntBurst = 16 + 16 + 16 + 32 + 4
