package ndiscore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// team is an intermediate driver: a protocol bound to each member below, and a
// virtual miniport above to which protocols bind once and for all. What goes
// down leaves through the active member, and what comes up is taken from it
// alone; with BalanceHash several members are active, and share the flows.
//
// A failover is one compare-and-swap of active, made by whoever sees the
// failure first: the member's receive goroutine, its link watcher, a sender, or
// the control side. The control side then tells the world.
type team struct {
	core  *Core
	name  string
	attrs Attributes // as configured; Initialize fills in the rest, for the core

	// members has them by the indices that a teamSet holds. The control side
	// fills and empties places; an index in use never changes its meaning.
	members [maxMembers]atomic.Pointer[teamMember]

	handle atomic.Pointer[AdapterHandle]
	active atomic.Pointer[teamSet]

	ours sources       // written while more than one member receives
	mac  atomic.Uint64 // the virtual adapter's own, as MACKey

	moves struct {
		sync.Mutex // a leaf; taken once per failover
		made       []move
	}
}

type teamMember struct {
	index   int
	name    string
	seed    uint64                  // its share of the flows
	binding atomic.Pointer[Binding] // nil while unbound
}

// way is m's binding if frames can leave by it now; nil otherwise, and of a nil m.
func (m *teamMember) way() *Binding {
	if m == nil {
		return nil
	}
	b := m.binding.Load()
	if b == nil || !b.Usable() {
		return nil
	}
	return b
}

// move is a failover that the data path made.
type move struct {
	left  int // no longer active
	to    int // the first that is
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
		PowerAware: true, // an intermediate driver never passes power down
	}}
	t.ours.turn = &c.turn
	for i, n := range spec.Members {
		t.setMember(i, n)
	}
	t.active.Store(&teamSet{member: -1, overlap: -1})
	return t
}

// setMember puts a member at index i, where there is none, or "" for none again.
func (t *team) setMember(i int, name string) {
	var m *teamMember
	if name != "" {
		m = &teamMember{index: i, name: name, seed: laneSeed(name)}
	}
	t.members[i].Store(m)
}

// Kind names the virtual miniport's driver.
func (t *team) Kind() string { return "team" }

// --- The virtual miniport above ---------------------------------------------

// Initialize takes from the members what the configuration leaves open: the
// first one's address, and the smallest MTU among them.
func (t *team) Initialize(_ context.Context, h AdapterHandle) (Attributes, error) {
	attrs, smallest := t.attrs, 0
	for i := range t.members {
		m := t.members[i].Load()
		if m == nil {
			continue
		}
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
	case req.ID == OIDPnPSetPower:
		return nil // members sleep and wake on their own
	case req.ID == OIDGenLinkState && req.Kind == OIDQuery:
		req.Data = t.attrs.Link
		return nil
	}
	return ErrInvalidOID
}

// Send passes b to the active member, or its frames to those that share the
// flows. A member found unusable is left for its successor at once, before any
// frame is lost on it.
func (t *team) Send(b *Batch) {
	for {
		set := t.active.Load()
		if set.member < 0 {
			t.refuse(b, DropNoMember)
			return
		}
		if set.carriers != nil {
			if t.sendSpread(b, set) {
				return
			}
			continue
		}
		m := t.members[set.member].Load()
		lower := m.way()
		if lower == nil {
			if t.failAway(set.member, "closed when a frame was to be sent") {
				continue
			}
			t.refuse(b, DropNoMember)
			return
		}
		if set.overlap >= 0 {
			t.ours.remember(b.Frames)
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

// sendSpread sends b over the members that carry flows. False: one of them has
// just been left, so that there is another set.
func (t *team) sendSpread(b *Batch, set *teamSet) bool {
	var ways [maxMembers]*Binding
	var seeds [maxMembers]uint64
	n, group := 0, 0
	for _, c := range set.carriers {
		m := t.members[c].Load()
		lower := m.way()
		if lower == nil {
			if t.failAway(c, "closed when a frame was to be sent") {
				return false
			}
			continue
		}
		if c == set.member {
			group = n
		}
		ways[n], seeds[n] = lower, m.seed
		n++
	}
	if n == 0 {
		t.refuse(b, DropNoMember)
		return true
	}
	if set.lag {
		group = -1
	} else {
		t.ours.remember(b.Frames)
	}
	spread(b, seeds[:n], group, func(lane int, lent *Batch) { ways[lane].Send(lent) })
	if !b.Borrowed {
		(*t.handle.Load()).SendComplete(b)
	}
	return true
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
	for i := range t.members {
		if m := t.members[i].Load(); m != nil && m.name == b.Adapter() {
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
	switch take := set.takes(m.index); {
	case h == nil:
		batch.DropAll(DropPaused)
	case take == takeNothing:
		// What a prober has taken for itself stays delivered.
		batch.DropAll(DropInactive)
	default:
		t.indicate(*h, batch, take)
	}
	if !batch.Borrowed {
		b.Return(batch)
	}
}

// taking is what comes in by a member and goes up.
type taking uint8

const (
	takeNothing taking = iota
	takeUnicast        // no group frames: another member has them; and nothing of ours
	takeForeign        // nothing of ours, come back
	takeAll
)

// takes says what goes up of what member i receives.
func (s *teamSet) takes(i int) taking {
	switch {
	case s.lag && s.carriers != nil:
		return takeAll // it was sent to this member alone, whatever we think of that
	case i == s.member && s.carriers == nil:
		return takeAll
	case i == s.member:
		return takeForeign
	case i == s.overlap || slices.Contains(s.carriers, i):
		return takeUnicast
	}
	return takeNothing
}

// indicate passes batch up, always lent, without what a prober has taken for
// itself and what is not to be taken.
func (t *team) indicate(h AdapterHandle, batch *Batch, take taking) {
	whole := batch.Borrowed
	for _, f := range batch.Frames {
		if f.fate == fateNone && take != takeAll {
			switch {
			case take == takeUnicast && f.Dst().IsGroup():
				f.Drop(DropInactive)
			case t.mac.Load() == MACKey(f.Head[6:]) || t.ours.knows(f):
				f.Drop(DropReflection)
			}
		}
		whole = whole && f.fate == fateNone
	}
	if whole {
		h.IndicateReceive(batch)
		return
	}
	lent := batch.Worker.Scratch()
	for _, f := range batch.Frames {
		if f.fate == fateNone {
			lent.Append(f)
		}
	}
	if len(lent.Frames) > 0 {
		h.IndicateReceive(lent)
	}
	batch.Worker.Done(lent)
}

func (t *team) SendComplete(*Binding, *Batch) {} // what it sends is always borrowed

// Status hears of a member's link on the goroutine that saw it.
func (t *team) Status(b *Binding, s Status) {
	l, ok := s.(LinkState)
	if !ok {
		return
	}
	m := b.Context().(*teamMember)
	if !l.Connected() {
		t.failAway(m.index, l.Why)
	}
}

// --- Failover --------------------------------------------------------------------

// failAway leaves member for those that share the flows with it, or for the
// first usable successor, and reports whether there is another set now. It does
// nothing if member is not active, or if the control side has said that a link
// that is down is not to be left at once (down_delay).
func (t *team) failAway(member int, why string) bool {
	for {
		cur := t.active.Load()
		next := teamSet{epoch: cur.epoch + dataPathEpoch, member: cur.member, overlap: -1, successors: cur.successors, lag: cur.lag, stay: cur.stay}
		if cur.carriers != nil {
			if !slices.Contains(cur.carriers, member) {
				return cur.member >= 0 // somebody was quicker
			}
			next.carriers = slices.DeleteFunc(slices.Clone(cur.carriers), func(c int) bool { return c == member })
		} else if cur.member != member {
			return cur.member >= 0
		}
		if cur.stay {
			return false
		}
		if cur.member == member {
			if next.member = t.firstUsable(next.carriers); next.member < 0 {
				next.member = t.firstUsable(cur.successors)
				if next.carriers != nil {
					next.carriers = []int{next.member}
				}
			}
		}
		if next.member < 0 {
			return false // the control side decides
		}
		next.successors = slices.DeleteFunc(slices.Clone(cur.successors), func(s int) bool { return s == next.member || s == member })
		// Under the lock, so that moves are told in the order in which they were
		// made: the control side publishes on top of the last one it was told.
		t.moves.Lock()
		made := t.active.CompareAndSwap(cur, &next)
		if made {
			if m := t.members[member].Load(); m != nil {
				why = m.name + ": " + why
			}
			t.moves.made = append(t.moves.made, move{member, next.member, next.epoch, why})
		}
		t.moves.Unlock()
		if made {
			t.core.poke()
			return true
		}
	}
}

// firstUsable is the first of members by which frames can leave, -1 for none.
func (t *team) firstUsable(members []int) int {
	for _, i := range members {
		// The link as its adapter last said it: two indications may reach
		// Status in either order.
		if b := t.members[i].Load().way(); b != nil && b.slot.live() {
			return i
		}
	}
	return -1
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
