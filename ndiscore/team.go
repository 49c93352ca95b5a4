package ndiscore

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// team is an intermediate driver: a protocol bound to each member below, and a
// virtual miniport above to which protocols bind once and for all. What goes
// down leaves through the active member; what comes up is taken from it alone.
//
// A failover is one compare-and-swap of active, made by whoever sees the
// failure first: the member's receive goroutine, its link watcher, a sender, or
// the control side. The control side then tells the world.
type team struct {
	core    *Core
	name    string
	attrs   Attributes // as configured; Initialize fills in the rest, for the core
	members []*teamMember

	handle atomic.Pointer[AdapterHandle]
	active atomic.Pointer[teamSet]

	// ours remembers, while two members receive, whose frames have left through
	// the active one: what the network floods back to the other is not news.
	ours [256]atomic.Uint64
	mac  atomic.Uint64 // the virtual adapter's own, as MACKey

	moves struct {
		sync.Mutex // a leaf; taken once per failover
		made       []move
	}
}

type teamMember struct {
	index   int
	name    string
	binding atomic.Pointer[Binding] // nil while unbound
}

// move is a failover that the data path made.
type move struct {
	to    int
	epoch uint64
	why   string
}

var (
	_ Adapter  = (*team)(nil)
	_ Protocol = (*team)(nil)
)

func newTeam(c *Core, spec BundleSpec) *team {
	t := &team{core: c, name: spec.Name, attrs: Attributes{
		MAC: spec.MAC, MTU: spec.MTU, Link: LinkState{Media: MediaDisconnected, Why: "no member yet"},
		Transmit: CapAll, Receive: CapAll, Device: spec.Name,
	}}
	for i, n := range spec.Members {
		t.members = append(t.members, &teamMember{index: i, name: n})
	}
	t.active.Store(&teamSet{member: -1, overlap: -1})
	return t
}

// Kind names the virtual miniport's driver.
func (t *team) Kind() string { return "team" }

// --- The virtual miniport above ---------------------------------------------

// Initialize takes from the members what the configuration leaves open: the
// first one's address, and the smallest MTU among them.
func (t *team) Initialize(_ context.Context, h AdapterHandle) (Attributes, error) {
	attrs, smallest := t.attrs, 0
	for _, m := range t.members {
		b := m.binding.Load()
		if b == nil {
			continue
		}
		a := b.Attributes()
		if attrs.MAC.IsZero() {
			attrs.MAC = a.MAC
		}
		if smallest == 0 || a.MTU < smallest {
			smallest = a.MTU
		}
	}
	if attrs.MAC.IsZero() {
		return Attributes{}, fmt.Errorf("%w: it is to have its first member's MAC, and no member is up", ErrNotAccepted)
	}
	if attrs.MTU == 0 {
		attrs.MTU = cmp.Or(smallest, 1500)
	}
	t.mac.Store(attrs.MAC.Key())
	t.handle.Store(&h)
	if t.active.Load().member >= 0 {
		attrs.Link = LinkState{Media: MediaConnected, Why: "a member is active"}
	}
	return attrs, nil
}

func (t *team) Restart(context.Context) error    { return nil }
func (t *team) Pause(context.Context)            {}
func (t *team) Halt(context.Context, HaltAction) { t.handle.Store(nil) }

func (t *team) Return(*Batch) {} // what it indicates is always borrowed

// Request answers for the team; members are asked by their own bindings.
func (t *team) Request(_ context.Context, req *OIDRequest) error {
	switch {
	case req.ID == OIDGenCurrentPacketFilter && req.Kind == OIDSet:
		return nil // members are promiscuous: the team's address is not theirs
	case req.ID == OIDGenLinkState && req.Kind == OIDQuery:
		req.Data = t.attrs.Link
		return nil
	}
	return ErrInvalidOID
}

// Send passes b to the active member. A member found unusable is left for its
// successor at once, before any frame is lost on it.
func (t *team) Send(b *Batch) {
	for {
		set := t.active.Load()
		if set.member < 0 {
			t.refuse(b, DropNoMember)
			return
		}
		m := t.members[set.member]
		lower := m.binding.Load()
		if lower == nil || !lower.Usable() {
			if t.failAway(set.member, m.name+": closed when a frame was to be sent") {
				continue
			}
			t.refuse(b, DropNoMember)
			return
		}
		if set.overlap >= 0 {
			t.remember(b)
		}
		if b.Borrowed {
			lower.Send(b)
			return
		}
		// A kept batch stays the team's until its frames are out: lend it on.
		lent := b.Worker.Scratch()
		lent.Frames = append(lent.Frames, b.Frames...)
		clear(lent.Status[:len(lent.Frames)])
		lower.Send(lent)
		b.takeStatus(lent)
		b.Worker.Done(lent)
		(*t.handle.Load()).SendComplete(b)
		return
	}
}

func (t *team) refuse(b *Batch, r DropReason) {
	for i := range b.Frames {
		b.Status[i] = r
	}
	if !b.Borrowed {
		(*t.handle.Load()).SendComplete(b)
	}
}

// --- The protocol below -------------------------------------------------------

func (t *team) Bind(ctx context.Context, b *Binding) error {
	for _, m := range t.members {
		if m.name == b.Adapter() {
			b.SetContext(m)
			m.binding.Store(b)
			return b.SetPacketFilter(ctx, FilterPromiscuous)
		}
	}
	return ErrNotAccepted
}

func (t *team) Unbind(_ context.Context, b *Binding) {
	b.Context().(*teamMember).binding.Store(nil)
}

// Event needs nothing done: the machine knows the states of the bindings, and
// has moved the team away before it pauses the active one.
func (t *team) Event(context.Context, *Binding, NetEvent) error { return nil }

func (t *team) Receive(b *Binding, batch *Batch) {
	m := b.Context().(*teamMember)
	h := t.handle.Load()
	set := t.active.Load()
	switch {
	case h == nil:
		batch.DropAll(DropPaused)
	case m.index == set.member || m.index == set.overlap:
		t.indicate(*h, batch, m.index == set.overlap)
	default:
		// What a prober has taken for itself stays delivered.
		batch.DropAll(DropInactive)
	}
	if !batch.Borrowed {
		b.Return(batch)
	}
}

// indicate passes batch up, always lent, without what a prober has taken for
// itself. From the member just left it takes what was still under way: unicast
// frames, unless they are our own come back.
func (t *team) indicate(h AdapterHandle, batch *Batch, overlap bool) {
	whole := batch.Borrowed && !overlap
	for _, f := range batch.Frames {
		whole = whole && f.fate == fateNone
	}
	if whole {
		h.IndicateReceive(batch)
		return
	}
	lent := batch.Worker.Scratch()
	for _, f := range batch.Frames {
		switch {
		case f.fate == fateDelivered:
		case overlap && f.Dst().IsGroup():
			f.Drop(DropInactive)
		case overlap && t.remembers(f):
			f.Drop(DropReflection)
		default:
			lent.Append(f)
		}
	}
	if len(lent.Frames) > 0 {
		h.IndicateReceive(lent)
	}
	batch.Worker.Done(lent)
}

func (t *team) remember(b *Batch) {
	for _, f := range b.Frames {
		if len(f.Head) < EthernetHeader {
			continue // no protocol should, but what it sends has been checked by nobody
		}
		k := MACKey(f.Head[6:])
		if e := &t.ours[ourIndex(k)]; e.Load() != k {
			e.Store(k)
		}
	}
}

func (t *team) remembers(f *Frame) bool {
	k := MACKey(f.Head[6:])
	return t.ours[ourIndex(k)].Load() == k || t.mac.Load() == k
}

// ourIndex spreads MAC addresses over team.ours (Fibonacci hashing).
func ourIndex(k uint64) uint64 { return k * 0x9e3779b97f4a7c15 >> 56 }

func (t *team) SendComplete(*Binding, *Batch) {} // what it sends is always borrowed

// Status hears of a member's link on the goroutine that saw it.
func (t *team) Status(b *Binding, s Status) {
	l, ok := s.(LinkState)
	if !ok {
		return
	}
	m := b.Context().(*teamMember)
	if !l.Connected() {
		t.failAway(m.index, m.name+": "+l.Why)
	}
}

// --- Failover --------------------------------------------------------------------

// failAway leaves member for the first usable successor and reports whether
// another member is active now. It does nothing if member is not active, or if
// the control side has said that a link that is down is not to be left at once
// (a down_delay leaves no successors).
func (t *team) failAway(member int, why string) bool {
	for {
		cur := t.active.Load()
		if cur.member != member {
			return cur.member >= 0
		}
		next := teamSet{epoch: cur.epoch + dataPathEpoch, member: -1, overlap: -1}
		for i, s := range cur.successors {
			m := t.members[s]
			// The link as its adapter last said it: two indications may reach
			// Status in either order.
			b := m.binding.Load()
			if b == nil || !b.Usable() {
				continue
			}
			if l := b.slot.link.Load(); l == nil || !l.Connected() {
				continue
			}
			next.member = s
			next.successors = cur.successors[i+1:]
			break
		}
		if next.member < 0 {
			return false // the control side decides
		}
		// Under the lock, so that moves are told in the order in which they were
		// made: the control side publishes on top of the last one it was told.
		t.moves.Lock()
		made := t.active.CompareAndSwap(cur, &next)
		if made {
			t.moves.made = append(t.moves.made, move{next.member, next.epoch, why})
		}
		t.moves.Unlock()
		if made {
			t.core.poke()
			return true
		}
	}
}

// takeMoves returns the failovers made since it was last called.
func (t *team) takeMoves() []move {
	t.moves.Lock()
	defer t.moves.Unlock()
	made := t.moves.made
	t.moves.made = nil
	return made
}

// publish sets what the control side decided, unless the data path has moved
// since: then news of that is on its way, and leads to a new decision.
func (t *team) publish(set teamSet) {
	cur := t.active.Load()
	if cur.epoch != set.epoch {
		return
	}
	set.epoch++
	t.active.CompareAndSwap(cur, &set)
}
