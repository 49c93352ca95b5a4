package ndiscore

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// slot is the core's object for one adapter, kept from its addition to its
// removal through any number of halts and starts.
type slot struct {
	core    *Core
	name    string
	driver  *DriverHandle // nil for a virtual miniport
	adapter Adapter
	virtual bool
	resets  atomic.Uint64 // how many there were (OIDGenResetCounts)

	filters atomic.Pointer[[]*filterModule] // from the miniport up; replaced whole by the control side

	path   atomic.Pointer[path]                  // what the data path sees; never nil
	shards [MaxWorkers + 1]atomic.Pointer[shard] // the last one is the spare workers'

	// What the data path tells the control side, as sticky marks.
	link       atomic.Pointer[LinkState] // as last indicated
	linkNews   atomic.Bool
	attrsNews  atomic.Bool          // MAC or MTU are others
	removing   atomic.Pointer[mark] // Remove was accepted
	gone       atomic.Pointer[mark] // SurpriseRemove was called
	wantsReset atomic.Pointer[mark] // Reset was called
	crowded    atomic.Bool          // there was no worker left for it
	alive      atomic.Int32         // aliveNo … aliveHalting: whether the handle is good
	stuck      atomic.Bool          // quarantined: its miniport is called no more

	out ledger // kept receives above, kept sends below, status calls

	linkChanges atomic.Uint64             // how often the link came or went
	networks    networkNews               // what was told of it
	initTime    atomic.Int64              // ns that Initialize last took
	operation   atomic.Pointer[operState] // as the control side last derived it
	oid         atomic.Pointer[oidCall]   // the request that the adapter is working on
	oidSeq      atomic.Uint64             // numbers them
	unsent      atomic.Bool               // a union could not be given to the device when it changed

	publish     sync.Mutex // guards replacing path, and all below
	state       pathState
	attrs       Attributes
	permanent   MAC        // as Initialize stated it
	bindings    []*Binding // open ones, in bind order
	primary     *slot      // ndis5: whose bindings get what this secondary receives
	secondaries []*slot    // ndis5: who delivers to this primary's bindings
	share       *sharing   // ndis5: the bundle, if there is more than a primary
	joint       jointLink  // ndis5: as a primary

	told chan struct{} // closed when those above have heard the newest that the core said; of Run's goroutine alone

	oids chan struct{} // capacity 1; whoever fills it may call Request (O-1)
}

// mark is what the data path tells the control side, once.
type mark struct {
	why  string
	seen atomic.Bool // the control side has taken note
}

// The life of an adapter handle: it is good from Initialize until Halt returns;
// removal can be asked for, and OIDs are answered, only when aliveYes.
const (
	aliveNo int32 = iota
	aliveInitializing
	aliveYes
	aliveHalting
)

// pathState is what the control side has opened.
type pathState struct {
	receive   bool
	send      bool
	closed    DropReason // why not, when not
	resetting bool       // nothing is sent meanwhile
	asleep    bool       // suspended
}

// operState is the operational state of an adapter.
type operState struct {
	status OperStatus
	reason string
	admin  OperStatus // up, or down when it is halted or held paused
	since  time.Time
}

func (s *slot) oper() operState {
	if o := s.operation.Load(); o != nil {
		return *o
	}
	return operState{status: OperNotPresent, admin: OperDown}
}

// kind names the driver.
func (s *slot) kind() string {
	if k, ok := s.adapter.(interface{ Kind() string }); ok && s.virtual {
		return k.Kind()
	}
	if s.driver != nil {
		return s.driver.driver.Name
	}
	return ""
}

// modules are the filter modules, from the miniport up. The list is never
// changed in place.
func (s *slot) modules() []*filterModule {
	if p := s.filters.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *slot) module(name string) *filterModule {
	for _, m := range s.modules() {
		if m.name == name {
			return m
		}
	}
	return nil
}

// path is what the data path knows of an adapter: immutable, replaced whole.
type path struct {
	rxClosed, txClosed DropReason // DropNone when open
	caps               Capabilities
	mtu                int
	mac                MAC // that the receivers know: an ndis5 secondary's is its primary's
	receivers          []*Binding
	receive            ReceiveFilter // the lowest module that looks at receives
	send               SendFilter    // the highest module that looks at sends
	share              *sharing      // ndis5: whom it shares its frames with
}

// republish builds the path anew; publish must be held.
func (s *slot) republishLocked() {
	p := &path{caps: s.attrs.Transmit, mtu: s.attrs.MTU, rxClosed: s.state.closed, txClosed: s.state.closed, share: s.share}
	if s.state.receive {
		p.rxClosed = DropNone
	}
	if s.state.send {
		p.txClosed = DropNone
	}
	if s.state.resetting && p.txClosed == DropNone {
		p.txClosed = DropReset
	}
	if s.state.asleep {
		p.rxClosed, p.txClosed = DropLowPower, DropLowPower
	}
	// A miniport that gave up, or whose device vanished, is closed whatever
	// the control side was about to open.
	if s.removing.Load() != nil {
		p.rxClosed, p.txClosed = DropPaused, DropPaused
	}
	if s.gone.Load() != nil {
		p.rxClosed, p.txClosed = DropSurpriseRemoved, DropSurpriseRemoved
	}
	from := s
	if s.primary != nil {
		from = s.primary
		from.publish.Lock()
	}
	p.mac = from.attrs.MAC
	for _, b := range from.bindings {
		if b.open.Load() {
			p.receivers = append(p.receivers, b)
		}
	}
	if from != s {
		from.publish.Unlock()
	}
	var up receiveUp = slotTop{s}
	modules := s.modules()
	for i := len(modules) - 1; i >= 0; i-- {
		m := modules[i]
		above := up // each module has its own
		m.up.Store(&above)
		if !m.running {
			continue
		}
		if r, ok := m.filter.(ReceiveFilter); ok {
			p.receive = r
			up = filterUp{r}
		}
	}
	var down sendDown = slotBottom{s}
	for _, m := range modules {
		below := down
		m.down.Store(&below)
		if !m.running {
			continue
		}
		if f, ok := m.filter.(SendFilter); ok {
			p.send = f
			down = filterDown{f}
		}
	}
	s.path.Store(p)
}

// update changes what the control side has set, and publishes it.
func (s *slot) update(f func()) {
	s.publish.Lock()
	defer s.publish.Unlock()
	f()
	s.republishLocked()
}

func (s *slot) attributes() Attributes {
	s.publish.Lock()
	defer s.publish.Unlock()
	a := s.attrs
	if l := s.link.Load(); l != nil {
		a.Link = *l
	}
	return a
}

// permanentAddress is the MAC that the adapter was initialised with.
func (s *slot) permanentAddress() MAC {
	s.publish.Lock()
	defer s.publish.Unlock()
	return s.permanent
}

// close takes the adapter out of the data path at once. Any goroutine.
func (s *slot) close(r DropReason) {
	s.update(func() { s.state = pathState{closed: r, asleep: s.state.asleep} })
}

// --- Receiving -----------------------------------------------------------

// IndicateReceive implements AdapterHandle.
func (s *slot) IndicateReceive(b *Batch) {
	w := b.Worker
	w.enter(s)
	s.receive(w, b)
	w.leave()
}

func (s *slot) receive(w *Worker, b *Batch) {
	c := s.shard(w)
	frames := b.Frames
	var bytes uint64
	var before [BatchFrames]DropReason
	bad := false
	for i, f := range frames {
		bytes += uint64(f.Len())
		before[i] = f.fate
		f.fate = fateNone
		if !s.virtual {
			if _, r := ParseL2(f.Head); r != DropNone {
				f.fate, bad = r, true
			} else if f.Len() > MaxFrame {
				f.fate, bad = DropOversize, true
			}
		}
	}
	c.rxFrames.Add(uint64(len(frames)))
	c.rxBytes.Add(bytes)
	p := s.path.Load()
	if p.share != nil && p.rxClosed == DropNone && p.share.screen(s, frames) {
		bad = true
	}
	switch {
	case p.rxClosed != DropNone:
		b.DropAll(p.rxClosed)
	case w.spare:
		b.DropAll(DropPaused) // there is no room for it in what is indexed by worker
	case !b.Borrowed && !bad && p.receive == nil:
		s.receiveKept(c, p, b, &before)
		return
	case bad || !b.Borrowed:
		// Filters see only lent batches, so that those above need not know of
		// which frames a filter kept itself.
		good := w.Scratch()
		for _, f := range frames {
			if f.fate == fateNone {
				good.Append(f)
			}
		}
		if len(good.Frames) > 0 {
			s.up(p, good)
		}
		w.Done(good)
	default:
		s.up(p, b)
	}
	c.tallyReceive(frames, &before)
	if !b.Borrowed {
		s.adapter.Return(b)
	}
}

// receiveKept passes up a batch that those above may hold. Its frames count by
// what was said of them before the calls returned; of one that is held without
// a word nobody will tell us, so it counts as delivered.
func (s *slot) receiveKept(c *shard, p *path, b *Batch, before *[BatchFrames]DropReason) {
	s.out.lend(&b.up, false)
	b.lender = s
	// One hold for ourselves, so that an early Return does not end it while
	// the batch is still being handed round.
	b.keeps.Store(1)
	s.deliver(p, b)
	if b.keeps.Load() > 1 {
		for _, f := range b.Frames {
			if f.fate == fateNone {
				f.fate = fateDelivered
			}
		}
	}
	c.tallyReceive(b.Frames, before)
	b.giveBack()
}

// giveBack ends one hold of a kept receive. Too many of them, and any of a
// borrowed batch, are a fault of the protocol and end nothing.
func (b *Batch) giveBack() {
	if b.keeps.Add(-1) != 0 {
		return
	}
	s := b.lender
	if s == nil || !s.out.claim(&b.up) {
		return
	}
	b.lender = nil
	s.adapter.Return(b)
	s.out.end()
}

// up passes a borrowed batch through the filters to the bindings.
func (s *slot) up(p *path, b *Batch) {
	if p.receive != nil {
		p.receive.FilterReceive(b)
		return
	}
	s.deliver(p, b)
}

// deliver hands a batch to every binding that wants it. Who wants only some
// frames of a kept batch is lent those.
func (s *slot) deliver(p *path, b *Batch) {
	for _, r := range p.receivers {
		if r.slot == s {
			s.deliverTo(p, r, b)
			continue
		}
		// An ndis5 primary's, and this is a secondary: it closes without us.
		b.Worker.enter(r.slot)
		if r.open.Load() {
			s.deliverTo(p, r, b)
		}
		b.Worker.leave()
	}
}

func (s *slot) deliverTo(p *path, r *Binding, b *Batch) {
	filter := PacketFilter(r.filter.Load())
	if filter&FilterPromiscuous == 0 {
		s.deliverSome(p, r, filter, b)
		return
	}
	if !b.Borrowed {
		b.keeps.Add(1)
	}
	r.protocol.impl.Receive(r, b)
}

func (s *slot) deliverSome(p *path, r *Binding, filter PacketFilter, b *Batch) {
	some := b.Worker.Scratch()
	var groups []MAC
	if g := r.groups.Load(); g != nil {
		groups = *g
	}
	for _, f := range b.Frames {
		if filter.wants(p.mac, groups, f.Dst()) {
			some.Append(f)
		} else if len(p.receivers) == 1 {
			f.Drop(DropNotForUs)
		}
	}
	if len(some.Frames) > 0 {
		r.protocol.impl.Receive(r, some)
	}
	b.Worker.Done(some)
}

// Dropped implements AdapterHandle.
func (s *slot) Dropped(w *Worker, r DropReason, n uint64) {
	c := s.shard(w)
	c.rxFrames.Add(n)
	c.rxDropped[r].Add(n)
}

// --- Sending -------------------------------------------------------------

// send carries b, of worker w, which is inside, down through the filters to
// the adapter.
func (s *slot) send(w *Worker, b *Batch) {
	p := s.path.Load()
	switch {
	case p.txClosed != DropNone:
		s.reject(w, b, p.txClosed)
	case w.spare:
		s.reject(w, b, DropPaused)
	case p.share != nil && p.share.members[0] == s:
		p.share.send(w, p, b)
	default:
		s.sendDown(w, p, b)
	}
}

// sendDown is send for frames that leave by this adapter and no other.
func (s *slot) sendDown(w *Worker, p *path, b *Batch) {
	switch {
	case p.send == nil:
		s.transmit(w, p, b)
	case b.Borrowed:
		p.send.FilterSend(b)
	default:
		s.sendLent(w, p, b)
	}
}

// sendLent passes a kept batch through the filters, which see only lent ones:
// they may take frames out of a batch, and nobody would give those back.
func (s *slot) sendLent(w *Worker, p *path, b *Batch) {
	lent := w.Scratch()
	lent.Frames = append(lent.Frames, b.Frames...)
	clear(lent.Status[:len(lent.Frames)])
	p.send.FilterSend(lent)
	b.takeStatus(lent)
	w.Done(lent)
	b.origin.protocol.impl.SendComplete(b.origin, b)
}

// takeStatus fills b.Status from lent, which was sent with the same frames. What
// a filter took out of it is gone as if it had been sent.
func (b *Batch) takeStatus(lent *Batch) {
	n := 0
	for i, f := range b.Frames {
		b.Status[i] = DropNone
		if n < len(lent.Frames) && lent.Frames[n] == f {
			b.Status[i] = lent.Status[n]
			n++
		}
	}
}

// reject completes a send that was not allowed to begin.
func (s *slot) reject(w *Worker, b *Batch, r DropReason) {
	for i := range b.Frames {
		b.Status[i] = r
	}
	s.shard(w).txDropped[r].Add(uint64(len(b.Frames)))
	if !b.Borrowed {
		b.origin.protocol.impl.SendComplete(b.origin, b)
	}
}

// transmit hands b to the adapter, finished as far as the adapter needs it. A
// virtual adapter gets frames as they are: what is below it finishes them.
func (s *slot) transmit(w *Worker, p *path, b *Batch) {
	for i := range b.Frames {
		b.Status[i] = DropNone
	}
	if !s.virtual {
		for _, f := range b.Frames {
			if !accepts(f, p.caps, p.mtu) {
				segments := w.fin.finish(w, b, p.caps, p.mtu, s.adapter)
				s.shard(w).tallySend(b, segments)
				if !b.Borrowed {
					b.origin.protocol.impl.SendComplete(b.origin, b)
				}
				return
			}
		}
	}
	if b.Borrowed {
		s.adapter.Send(b)
		s.shard(w).tallySend(b, 0)
		return
	}
	s.out.lend(&b.down, true)
	s.adapter.Send(b)
}

// SendComplete implements AdapterHandle. What comes twice, or after it was
// given up for lost, is a fault of the adapter and reaches nobody.
func (s *slot) SendComplete(b *Batch) {
	if !s.out.claim(&b.down) {
		return
	}
	s.shard(b.Worker).tallySend(b, 0)
	b.origin.protocol.impl.SendComplete(b.origin, b)
	s.out.end()
}

// --- Status and the end ---------------------------------------------------

// Name implements AdapterHandle.
func (s *slot) Name() string { return s.name }

// Clock implements AdapterHandle.
func (s *slot) Clock() Clock { return s.core.clock }

// NewWorker implements AdapterHandle.
func (s *slot) NewWorker(queue int) *Worker {
	w, err := s.core.NewWorker(fmt.Sprintf("%s/rx%d", s.name, queue))
	if err != nil {
		// The call in progress, Initialize or Restart, fails when it returns.
		s.crowded.Store(true)
		w = &Worker{id: MaxWorkers, spare: true, name: s.name, core: s.core}
	}
	return w
}

// IndicateStatus implements AdapterHandle. Everybody above hears of it on the
// caller's goroutine; the control side takes note afterwards.
func (s *slot) IndicateStatus(st Status) {
	switch st.(type) {
	case ResetStart, ResetEnd, OperChange: // the core's alone
		s.fault(fmt.Sprintf("its miniport tried to indicate %T, which is the core's to say", st))
	default:
		if s.alive.Load() == aliveNo { // H-13: nothing after Halt
			s.fault(fmt.Sprintf("its miniport indicates %T, and it is halted", st))
			return
		}
		s.indicate(st)
	}
}

// fault tells of a driver that does what it may not. Nothing else comes of it.
func (s *slot) fault(why string) {
	s.core.Report(Event{What: "adapter.fault", Adapter: s.name, Why: why})
}

func (s *slot) indicate(st Status) {
	s.out.begin()
	defer s.out.end()
	if s.alive.Load() == aliveNo {
		return // H-13: nothing after Halt
	}
	switch st := st.(type) {
	case LinkState:
		for {
			old := s.link.Load()
			if old != nil && old.same(st) {
				return
			}
			if s.link.CompareAndSwap(old, &st) {
				if old == nil || old.Media != st.Media {
					s.linkChanges.Add(1)
				}
				break
			}
		}
		s.linkNews.Store(true)
		defer s.core.poke()
	case AttributesChange:
		if !s.adopt(st) {
			return
		}
	}
	for _, m := range s.modules() {
		if f, ok := m.filter.(StatusFilter); ok && m.attached.Load() {
			f.FilterStatus(st)
			return
		}
	}
	s.statusUp(st)
}

// jointLink is what the bindings of an ndis5 bundle with BalanceHash know of its
// link: the bundle is connected for as long as any member is.
type jointLink struct {
	mu      sync.Mutex // guards all below; not held while it is told
	told    LinkState
	known   bool // that is what they know
	telling bool
	again   bool // it may have changed while it was told
}

// tellJoint has the bindings of s, the primary, hear of the bundle's link if that
// is another one. Members change at the same time: whoever finds nobody telling
// tells until what was told is what is.
func (s *slot) tellJoint(sh *sharing) {
	s.out.begin()
	defer s.out.end()
	if s.alive.Load() == aliveNo {
		return // H-13: nothing after Halt
	}
	j := &s.joint
	j.mu.Lock()
	if j.again = true; j.telling {
		j.mu.Unlock()
		return
	}
	for j.telling = true; j.again; {
		j.again = false
		l := sh.link()
		if j.known && j.told.same(l) {
			break
		}
		j.told, j.known = l, true
		j.mu.Unlock()
		s.hear(l)
		j.mu.Lock()
	}
	j.telling = false
	j.mu.Unlock()
}

// news reports whether the bindings know something else of their link than l.
func (j *jointLink) news(l LinkState) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.known || !j.told.same(l)
}

// adopt takes over what a running adapter says of itself, and reports whether
// that is news.
func (s *slot) adopt(c AttributesChange) bool {
	var was, is Attributes
	s.core.updateWithSecondaries(s, func() {
		was = s.attrs
		if !c.MAC.IsZero() && !c.MAC.IsGroup() {
			s.attrs.MAC = c.MAC
		}
		if c.MTU >= minAttributesMTU && c.MTU <= maxAttributesMTU {
			s.attrs.MTU = c.MTU
		}
		is = s.attrs
	})
	if was.MAC != is.MAC {
		s.core.Report(Event{What: "adapter.mac", Adapter: s.name, From: was.MAC.String(), To: is.MAC.String(), Why: c.Why})
	}
	if was.MAC != is.MAC || was.MTU != is.MTU {
		s.attrsNews.Store(true)
		defer s.core.poke()
	}
	if was.MTU != is.MTU {
		s.core.Report(Event{What: "adapter.mtu", Adapter: s.name, From: fmt.Sprint(was.MTU), To: fmt.Sprint(is.MTU), Why: c.Why})
	}
	return was.MAC != is.MAC || was.MTU != is.MTU
}

func (s *slot) statusUp(st Status) {
	if _, ok := st.(LinkState); ok {
		if sh := s.path.Load().share; sh != nil && sh.hash {
			sh.members[0].tellJoint(sh)
			return
		}
	}
	s.hear(st)
}

// networkNews counts NetworkChanges.
type networkNews struct {
	all, groups atomic.Uint64 // groups: of all, those of frames to groups only
}

// hear has the bindings of s hear of a status.
func (s *slot) hear(st Status) {
	n, network := st.(NetworkChange)
	if network { // before it is known who hears of it: see catchUp
		s.networks.all.Add(1)
		if n.Groups {
			s.networks.groups.Add(1)
		}
	}
	for _, b := range s.path.Load().receivers {
		if b.slot == s {
			if network {
				b.learn()
			}
			b.protocol.impl.Status(b, st)
		}
	}
}

// learn takes note of what there is to know of the network, and reports whether
// any of it is new, and whether that is of more than groups.
func (b *Binding) learn() (news, places bool) {
	all, groups := b.slot.networks.all.Load(), b.slot.networks.groups.Load()
	newAll, newGroups := all-b.networks.all.Swap(all), groups-b.networks.groups.Swap(groups)
	return newAll > 0, newAll > newGroups
}

// catchUp has a binding that is running again hear that the network has changed
// while it was paused.
func (s *slot) catchUp(b *Binding) {
	if news, places := b.learn(); news {
		s.out.begin()
		defer s.out.end()
		b.protocol.impl.Status(b, NetworkChange{Why: "the network changed while it was paused", Groups: !places})
	}
}

// Remove implements AdapterHandle (NdisMRemoveMiniport).
func (s *slot) Remove(why string) error {
	if s.alive.Load() != aliveYes || s.gone.Load() != nil || !s.removing.CompareAndSwap(nil, &mark{why: why}) {
		return fmt.Errorf("adapter %s: remove: %w: not running, or already being removed", s.name, ErrFailure)
	}
	s.leave(why)
	return nil
}

// SurpriseRemove implements AdapterHandle.
func (s *slot) SurpriseRemove(why string) {
	if a := s.alive.Load(); a == aliveNo || a == aliveHalting || !s.gone.CompareAndSwap(nil, &mark{why: why}) {
		return
	}
	s.abortOID(ErrNotAccepted)
	s.leave(why)
}

// Reset implements AdapterHandle (NdisMResetMiniport).
func (s *slot) Reset(why string) {
	if s.alive.Load() == aliveYes && s.wantsReset.CompareAndSwap(nil, &mark{why: why}) {
		s.core.poke()
	}
}

// leave closes the data path and lets those above fall over to somebody else,
// now, on the caller's goroutine; the halt follows on the control side.
func (s *slot) leave(why string) {
	s.update(func() {})
	s.indicate(LinkState{Media: MediaDisconnected, Why: why})
	s.core.poke()
}

// --- Filter modules ---------------------------------------------------------

type receiveUp interface{ receive(b *Batch) }
type sendDown interface{ send(b *Batch) }

type slotTop struct{ s *slot }

func (t slotTop) receive(b *Batch) { t.s.deliver(t.s.path.Load(), b) }

type slotBottom struct{ s *slot }

func (t slotBottom) send(b *Batch) {
	if b.Borrowed {
		t.s.transmit(b.Worker, t.s.path.Load(), b)
		return
	}
	// A filter's own, which is its own again when Send returns (F-9).
	lent := b.Worker.Scratch()
	lent.Frames = append(lent.Frames, b.Frames...)
	t.s.transmit(b.Worker, t.s.path.Load(), lent)
	copy(b.Status[:], lent.Status[:len(lent.Frames)])
	b.Worker.Done(lent)
}

type filterUp struct{ f ReceiveFilter }

func (u filterUp) receive(b *Batch) { u.f.FilterReceive(b) }

type filterDown struct{ f SendFilter }

func (d filterDown) send(b *Batch) { d.f.FilterSend(b) }

// filterModule is one filter on one adapter; it implements FilterHandle.
type filterModule struct {
	slot     *slot
	name     string
	filter   Filter
	running  bool        // guarded by slot.publish
	attached atomic.Bool // sees status
	up       atomic.Pointer[receiveUp]
	down     atomic.Pointer[sendDown]
}

// Name implements FilterHandle.
func (m *filterModule) Name() string { return m.name }

// Clock implements FilterHandle.
func (m *filterModule) Clock() Clock { return m.slot.core.clock }

// Send implements FilterHandle.
func (m *filterModule) Send(b *Batch) {
	w := b.Worker
	w.enter(m.slot)
	defer w.leave()
	// What comes on a worker that was outside is the filter's own, and meets a
	// closed path like anybody's.
	r := m.slot.path.Load().txClosed
	if w.depth > 1 {
		r = DropNone
	}
	if !m.attached.Load() {
		r = DropPaused // it is gone
	}
	if r != DropNone {
		for i := range b.Frames {
			b.Status[i] = r
		}
		m.DropSend(w, r, uint64(len(b.Frames)))
		return
	}
	(*m.down.Load()).send(b)
}

// IndicateReceive implements FilterHandle.
func (m *filterModule) IndicateReceive(b *Batch) {
	w := b.Worker
	w.enter(m.slot)
	defer w.leave()
	if !m.attached.Load() { // it is gone
		b.DropAll(DropPaused)
		return
	}
	(*m.up.Load()).receive(b)
}

// Settle implements FilterHandle.
func (m *filterModule) Settle(b *Batch, made bool) {
	var before [BatchFrames]DropReason
	c := m.slot.shard(b.Worker)
	c.tallyReceive(b.Frames, &before)
	if !made {
		c.released.Add(uint64(len(b.Frames)))
		return
	}
	c.rxFrames.Add(uint64(len(b.Frames)))
	for _, f := range b.Frames {
		c.rxBytes.Add(uint64(f.Len()))
	}
}

// NewWorker implements FilterHandle.
func (m *filterModule) NewWorker() (*Worker, error) {
	return m.slot.core.NewWorker(m.slot.name + "/" + m.name)
}

// IndicateStatus implements FilterHandle.
func (m *filterModule) IndicateStatus(st Status) {
	m.slot.out.begin()
	defer m.slot.out.end()
	above := m.slot.modules()
	at := slices.Index(above, m)
	if at < 0 {
		return // it is gone
	}
	for _, n := range above[at+1:] {
		if f, ok := n.filter.(StatusFilter); ok && n.attached.Load() {
			f.FilterStatus(st)
			return
		}
	}
	m.slot.statusUp(st)
}

// DropSend implements FilterHandle.
func (m *filterModule) DropSend(w *Worker, r DropReason, n uint64) {
	m.slot.shard(w).txDropped[r].Add(n)
}

// drainLimit is how long a pause waits for kept batches (design: nothing waits
// for ever).
const drainLimit = 10 * time.Second
