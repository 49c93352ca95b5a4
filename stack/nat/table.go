package nat

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"time"
)

// flow is one translated connection, or exchange. A packet in direction d has the
// tuple node[d]; it leaves as what node[1-d] answers.
type flow struct {
	node [2]node // of who spoke first, and of who answers

	state   state
	kind    flowKind
	outside bool  // anyone on the net can make such
	opener  int   // TCP: the direction of the first SYN
	spoke   uint8 // tcpReset: the directions in which packets came since

	packets, bytes [2]uint64
	born, seen     time.Duration // since Table.start
	expires        time.Duration

	due  slot // the wheel's slot that it is in
	prev *flow
	next *flow // in that slot, or in the list of free flows

	weak               list // the list of weak flows that it is in
	weakPrev, weakNext *flow

	crowd                *crowd // those that share its destination and public address
	crowdPrev, crowdNext *flow
}

// node is a flow in the hash table, once for each direction.
type node struct {
	tuple
	next *node
	flow *flow
	dir  int
}

// flowKind says what the table does for a flow.
type flowKind uint8

const (
	flowMasquerade flowKind = iota // from inside, by a masquerading edge
	flowForward                    // from outside, to a published port
	flowHairpin                    // from inside, to a published port
	flowLocal                      // the router's own
	flowThrough                    // from outside, untranslated
)

var flowKindNames = [...]string{"masquerade", "forward", "hairpin", "local", "through"}

type (
	slot int16
	list int8
)

// The lists of weak flows.
const (
	listNone list = iota
	listInside
	listOutside
	lists
)

// wheelSlots is how many seconds ahead the wheel reaches; who lives longer goes
// round again.
const wheelSlots = 1024

// slice is how many flows are looked at under one hold of the lock.
const slice = 256

// Table is a NAT: flows, edges, fragments. Its methods may be called by any
// goroutine.
type Table struct {
	event func(what, iface, from, to, why string)
	start time.Time

	mu sync.Mutex // a leaf, held for one frame or one batch on the packet path; guards all that follows

	limits  Limits
	rng     *rand.Rand
	secret  [5]uint64
	now     time.Duration // since start, as Tick told it
	edges   map[string]*Edge
	byID    []*Edge // index: Edge.id; nil is free
	own     map[hostAddr]bool
	buckets []*node
	chunks  [][]flow
	free    *flow
	live    int
	outside int // of live: begun outside

	wheel  [wheelSlots]*flow
	hand   int64 // the last second that the wheel has shown
	weak   [lists]struct{ oldest, newest *flow }
	crowds map[dest]*crowd
	spare  *crowd // for reuse
	frags  fragments
	full   fullness
	stats  counters
}

// hostAddr is an address with its version.
type hostAddr struct {
	addr
	v6 bool
}

type counters struct {
	created, expired, evicted, flushed    uint64
	noFlow, noPort, noState, noFirst      uint64
	translatedIn, translatedOut, errorsIn uint64
	errorsOut                             uint64
}

// fullness is what is to be told of refusals.
type fullness struct {
	last   time.Duration
	edge   *Edge
	dest   dest
	ports  bool // it was the ports that ran out
	share  bool // what may be begun outside was used up, not all
	news   bool // not told yet
	inside bool // an episode: told, and not over yet
}

// New makes a table without edges.
func New(o Options) *Table {
	if o.Event == nil {
		o.Event = func(_, _, _, _, _ string) {}
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	t := &Table{
		event: o.Event, start: o.Now, limits: o.Limits.filled(),
		rng:   rand.New(rand.NewPCG(o.Seed, 0)),
		edges: map[string]*Edge{}, crowds: map[dest]*crowd{}, own: map[hostAddr]bool{},
	}
	for i := range t.secret {
		t.secret[i] = t.rng.Uint64()
	}
	return t
}

// prepare makes room for what an edge needs: a table without edges is small.
func (t *Table) prepare() {
	if t.buckets == nil {
		t.frags.init(t.limits.Fragments)
	}
	n := 1 << bits.Len(uint(2*t.limits.Flows-1))
	if len(t.buckets) >= n {
		return
	}
	t.buckets = make([]*node, n)
	for _, c := range t.chunks {
		for i := range c {
			if f := &c[i]; f.node[0].flow != nil {
				t.insert(&f.node[0])
				t.insert(&f.node[1])
			}
		}
	}
}

// SetLimits changes the bounds of a table. Flows learn of a new time-out with
// their next packet. When there are too many, those that can be given up make room
// as others come. How many fragments are tracked is settled by the first edge.
func (t *Table) SetLimits(l Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l.filled()
	if t.buckets != nil {
		t.prepare()
	}
}

// Active reports whether there are edges, so that time has to go on.
func (t *Table) Active() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.edges) > 0
}

// --- Hash table -----------------------------------------------------------------

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash is keyed, so that nobody outside can choose flows for one bucket.
func (t *Table) hash(k *tuple) uint64 {
	s := &t.secret
	small := uint64(k.sport)<<48 | uint64(k.dport)<<32 | uint64(k.edge)<<16 | uint64(k.proto)<<8 | uint64(k.side)
	h := mix(k.src.hi^s[0], k.src.lo^s[1]) ^ small
	h ^= bits.RotateLeft64(mix(k.dst.hi^s[2], k.dst.lo^s[3]), 32)
	return mix(h^s[4], s[0]|1)
}

func (t *Table) bucket(k *tuple) **node { return &t.buckets[t.hash(k)&uint64(len(t.buckets)-1)] }

// find is the node of k, or nil.
func (t *Table) find(k *tuple) *node {
	for n := *t.bucket(k); n != nil; n = n.next {
		if n.tuple == *k {
			return n
		}
	}
	return nil
}

// alive is find, for flows whose time has not run out.
func (t *Table) alive(k *tuple) *node {
	n := t.find(k)
	if n != nil && n.flow.expires <= t.now {
		t.remove(n.flow)
		t.stats.expired++
		return nil
	}
	return n
}

func (t *Table) insert(n *node) {
	b := t.bucket(&n.tuple)
	n.next, *b = *b, n
}

func (t *Table) delete(n *node) {
	for at := t.bucket(&n.tuple); *at != nil; at = &(*at).next {
		if *at == n {
			*at, n.next = n.next, nil
			return
		}
	}
}

// --- Flows ------------------------------------------------------------------------

// insidePart is the part of the table that flows begun outside never take.
const insidePart = 8

// room makes sure that a flow can be had, begun outside or not, if need be by
// giving up the weak one that was silent longest. Who is outside cannot crowd out
// those inside.
func (t *Table) room(outside bool) bool {
	most := t.limits.Flows - t.limits.Flows/insidePart
	// Twice, should the limit have been lowered: so the table shrinks.
	for i := 0; i < 2 && (t.live >= t.limits.Flows || outside && t.outside >= most); i++ {
		f := t.weak[listOutside].oldest
		if f == nil && !outside {
			f = t.weak[listInside].oldest
		}
		if f == nil {
			return false
		}
		t.remove(f)
		t.stats.evicted++
	}
	if t.free == nil {
		c := make([]flow, min(chunkFlows, t.limits.Flows))
		for i := range c {
			c[i].next, t.free = t.free, &c[i]
		}
		t.chunks = append(t.chunks, c)
	}
	return true
}

// chunkFlows is how many flows are allocated at a time.
const chunkFlows = 1024

// add makes a flow of a packet with tuple orig, answered by reply. room has been
// asked.
func (t *Table) add(k flowKind, outside bool, orig, reply tuple) *flow {
	f := t.free
	t.free = f.next
	*f = flow{kind: k, outside: outside, born: t.now, seen: t.now}
	if outside {
		t.outside++
	}
	f.node[0] = node{tuple: orig, flow: f}
	f.node[1] = node{tuple: reply, flow: f, dir: 1}
	if orig.proto != protoTCP {
		f.state = stateNew
	}
	t.insert(&f.node[0])
	t.insert(&f.node[1])
	t.arm(f)
	t.live++
	t.stats.created++
	return f
}

func (t *Table) remove(f *flow) {
	t.delete(&f.node[0])
	t.delete(&f.node[1])
	t.disarm(f)
	t.setWeak(f, listNone)
	t.leave(f)
	t.live--
	if f.outside {
		t.outside--
	}
	*f = flow{next: t.free}
	t.free = f
}

// touch counts a packet of f and moves its state and its end.
func (t *Table) touch(n *node, p *header) {
	s, life := t.step(n.flow, n.dir, p.flags)
	t.note(n, p, s, life)
}

// note counts a packet of n's flow, which is in state s from now on and ends after
// life without another, or when it would have if life is 0.
func (t *Table) note(n *node, p *header, s state, life time.Duration) {
	f := n.flow
	f.packets[n.dir]++
	f.bytes[n.dir] += uint64(p.total)
	moved := f.seen != t.now
	f.seen = t.now
	f.state = s
	if life != 0 {
		sooner := t.now+life < f.expires
		f.expires = t.now + life
		if sooner {
			t.disarm(f)
			t.arm(f)
		}
	}
	want := listNone
	if s.weak() {
		if want = listInside; f.outside {
			want = listOutside
		}
	}
	if want != f.weak || moved && want != listNone {
		t.setWeak(f, want)
	}
}

// setWeak moves f to the newest end of l.
func (t *Table) setWeak(f *flow, l list) {
	if f.weak != listNone {
		w := &t.weak[f.weak]
		if f.weakPrev != nil {
			f.weakPrev.weakNext = f.weakNext
		} else {
			w.oldest = f.weakNext
		}
		if f.weakNext != nil {
			f.weakNext.weakPrev = f.weakPrev
		} else {
			w.newest = f.weakPrev
		}
		f.weakPrev, f.weakNext = nil, nil
	}
	if f.weak = l; l == listNone {
		return
	}
	w := &t.weak[l]
	if f.weakPrev = w.newest; w.newest != nil {
		w.newest.weakNext = f
	} else {
		w.oldest = f
	}
	w.newest = f
}

// --- Time -------------------------------------------------------------------------

// arm puts f where the wheel will find it when its time may have run out. A
// later end is noticed only then.
func (t *Table) arm(f *flow) {
	ahead := int64(f.expires/time.Second) + 1 - t.hand
	ahead = max(1, min(ahead, wheelSlots-1))
	t.push(f, slot((t.hand+ahead)%wheelSlots))
}

func (t *Table) push(f *flow, s slot) {
	f.due, f.prev, f.next = s, nil, t.wheel[s]
	if f.next != nil {
		f.next.prev = f
	}
	t.wheel[s] = f
}

func (t *Table) disarm(f *flow) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		t.wheel[f.due] = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
}

// Tick tells the table the time, which nothing else does: its owner calls it
// about once a second. It ends flows whose time has run out, and raises events.
func (t *Table) Tick(now time.Time) {
	t.mu.Lock()
	t.now = max(t.now, now.Sub(t.start))
	second := int64(t.now / time.Second)
	for n := min(second-t.hand, wheelSlots); n > 0; n-- {
		t.hand = second - n + 1
		for !t.expireSome(slot(t.hand % wheelSlots)) {
			t.mu.Unlock() // let packets through
			t.mu.Lock()
		}
	}
	news, why := t.fullNews()
	t.mu.Unlock()
	if news != "" {
		t.event("nat.full", news, "", "", why)
	}
}

// expireSome looks at some of the flows in slot s, which is due, and reports
// whether it was the last of them. None comes back to s: arm looks ahead.
func (t *Table) expireSome(s slot) bool {
	for range slice {
		f := t.wheel[s]
		if f == nil {
			return true
		}
		if f.expires <= t.now {
			t.remove(f)
			t.stats.expired++
			continue
		}
		t.disarm(f)
		t.arm(f)
	}
	return t.wheel[s] == nil
}

// refused notes that a flow of e had no room, or no port to d.
func (t *Table) refused(e *Edge, ports bool, d dest) {
	if ports {
		t.stats.noPort++
	} else {
		t.stats.noFlow++
	}
	t.full.last = t.now
	if !t.full.inside && !t.full.news {
		t.full.news, t.full.edge, t.full.ports, t.full.dest = true, e, ports, d
		t.full.share = t.live < t.limits.Flows
	}
}

// fullQuiet is how long no flow must have been refused for an episode to be over.
const fullQuiet = 10 * time.Second

// fullNews is the interface and the reason of an episode of refusals that has
// begun, or "".
func (t *Table) fullNews() (iface, why string) {
	u := &t.full
	if u.inside && t.now-u.last >= fullQuiet {
		u.inside = false
	}
	if !u.news {
		return "", ""
	}
	u.news, u.inside = false, true
	const limit = "none of them can be given up; raise flows in [nat], or end some by nat flush"
	switch d := &u.dest; {
	case u.ports:
		remote := d.remote.netip(d.v6)
		all, at := "ports", fmt.Sprintf(" port %d", d.port)
		if d.proto == protoICMP || d.proto == protoICMPv6 {
			all, at = "identifiers", ""
		}
		return u.edge.name, fmt.Sprintf("all %s %s of %s to %s%s are in use; nat list --address %[4]s shows by whom",
			protocolName(d.proto), all, d.pub.netip(d.v6), remote, at)
	case u.share:
		return u.edge.name, fmt.Sprintf("%s begun outside, which get seven eighths of %d, and %s", flows(t.outside), t.limits.Flows, limit)
	}
	return u.edge.name, fmt.Sprintf("%s of at most %d, and %s", flows(t.live), t.limits.Flows, limit)
}
