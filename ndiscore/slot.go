package ndiscore

import (
	"context"
	"fmt"
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
	filters []*filterModule // from the miniport up; fixed

	path   atomic.Pointer[path] // what the data path sees; never nil
	shards [MaxWorkers]atomic.Pointer[shard]

	// What the data path tells the control side, as sticky marks.
	link     atomic.Pointer[LinkState] // as last indicated
	linkNews atomic.Bool
	removing atomic.Pointer[string] // Remove was accepted, for this reason
	gone     atomic.Pointer[string] // SurpriseRemove was called, for this reason
	removed  atomic.Bool            // the control side has taken note of removing
	goneSeen atomic.Bool            // … of gone
	alive    atomic.Int32           // aliveNo, aliveInitializing, aliveYes: whether the handle is good

	kept atomic.Int64 // batches out: kept receives above, kept sends below
	idle chan struct{}

	publish     sync.Mutex // guards replacing path, and all below
	state       pathState
	attrs       Attributes
	bindings    []*Binding // open ones, in bind order
	primary     *slot      // ndis5: whose bindings get what this secondary receives
	secondaries []*slot    // ndis5: who delivers to this primary's bindings

	oids sync.Mutex // serialises Request (O-1); held across it, on the control side only
}

// The life of an adapter handle: it is good from Initialize on, and can ask for
// removal once that has succeeded, until Halt returns.
const (
	aliveNo int32 = iota
	aliveInitializing
	aliveYes
)

// pathState is what the control side has opened.
type pathState struct {
	receive bool
	send    bool
	closed  DropReason // why not, when not
}

// path is what the data path knows of an adapter: immutable, replaced whole.
type path struct {
	rxClosed, txClosed DropReason // DropNone when open
	caps               Capabilities
	mtu                int
	mac                MAC
	receivers          []*Binding
	receive            ReceiveFilter // the lowest module that looks at receives
	send               SendFilter    // the highest module that looks at sends
}

// republish builds the path anew; publish must be held.
func (s *slot) republishLocked() {
	p := &path{caps: s.attrs.Transmit, mtu: s.attrs.MTU, mac: s.attrs.MAC, rxClosed: s.state.closed, txClosed: s.state.closed}
	if s.state.receive {
		p.rxClosed = DropNone
	}
	if s.state.send {
		p.txClosed = DropNone
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
	for _, b := range from.bindings {
		if b.open.Load() {
			p.receivers = append(p.receivers, b)
		}
	}
	if from != s {
		from.publish.Unlock()
	}
	var up receiveUp = slotTop{s}
	for i := len(s.filters) - 1; i >= 0; i-- {
		m := s.filters[i]
		if !m.running {
			continue
		}
		m.up.Store(&up)
		if r, ok := m.filter.(ReceiveFilter); ok {
			p.receive = r
			up = filterUp{r}
		}
	}
	var down sendDown = slotBottom{s}
	for _, m := range s.filters {
		if !m.running {
			continue
		}
		m.down.Store(&down)
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

// close takes the adapter out of the data path at once. Any goroutine.
func (s *slot) close(r DropReason) {
	s.update(func() { s.state = pathState{closed: r} })
}

// --- Receiving -----------------------------------------------------------

// IndicateReceive implements AdapterHandle.
func (s *slot) IndicateReceive(b *Batch) {
	w := b.Worker
	w.enter()
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
	switch {
	case p.rxClosed != DropNone:
		b.DropAll(p.rxClosed)
	case !b.Borrowed:
		s.receiveKept(c, p, b)
		return
	case bad:
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

// receiveKept passes up a batch that those above may hold. What becomes of it
// shows only later, and not to us: it counts as delivered.
func (s *slot) receiveKept(c *shard, p *path, b *Batch) {
	n := 0
	for _, f := range b.Frames {
		if f.fate == fateNone {
			b.Frames[n] = f
			n++
		} else {
			c.rxDropped[f.fate].Add(1)
		}
	}
	b.Frames = b.Frames[:n]
	c.delivered.Add(uint64(n))
	b.lender = s
	// One hold for ourselves, so that an early Return does not end it while
	// the batch is still being handed round.
	b.keeps.Store(int32(len(p.receivers)) + 1)
	s.kept.Add(1)
	for _, r := range p.receivers {
		r.protocol.impl.Receive(r, b)
	}
	s.giveBack(b)
}

// giveBack ends one hold of a kept receive.
func (s *slot) giveBack(b *Batch) {
	l := b.lender
	if l == nil {
		return // a fault of the protocol: it was borrowed, or came back twice
	}
	if b.keeps.Add(-1) == 0 {
		b.lender = nil
		l.adapter.Return(b)
		l.returned()
	}
}

func (s *slot) returned() {
	if s.kept.Add(-1) == 0 {
		select {
		case s.idle <- struct{}{}:
		default:
		}
	}
}

// up passes a borrowed batch through the filters to the bindings.
func (s *slot) up(p *path, b *Batch) {
	if p.receive != nil {
		p.receive.FilterReceive(b)
		return
	}
	s.deliver(p, b)
}

// deliver hands a borrowed batch to every binding that wants it.
func (s *slot) deliver(p *path, b *Batch) {
	for _, r := range p.receivers {
		filter := PacketFilter(r.filter.Load())
		if filter&FilterPromiscuous != 0 {
			r.protocol.impl.Receive(r, b)
			continue
		}
		s.deliverSome(p, r, filter, b)
	}
}

func (s *slot) deliverSome(p *path, r *Binding, filter PacketFilter, b *Batch) {
	mac := p.mac
	if s.primary != nil {
		mac = r.slot.path.Load().mac
	}
	some := b.Worker.Scratch()
	for _, f := range b.Frames {
		if filter.wants(mac, f.Dst()) {
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

// send carries b down through the filters to the adapter.
func (s *slot) send(b *Batch) {
	w := b.Worker
	w.enter()
	p := s.path.Load()
	switch {
	case p.txClosed != DropNone:
		s.reject(w, b, p.txClosed)
	case p.send != nil:
		if !b.Borrowed {
			s.kept.Add(1)
		}
		p.send.FilterSend(b)
	default:
		if !b.Borrowed {
			s.kept.Add(1)
		}
		s.transmit(w, p, b)
	}
	w.leave()
}

// rejectSend completes a send that was not allowed to begin.
func (s *slot) rejectSend(b *Batch, r DropReason) {
	b.Worker.enter()
	s.reject(b.Worker, b, r)
	b.Worker.leave()
}

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
					s.completed(b)
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
	s.adapter.Send(b)
}

// SendComplete implements AdapterHandle.
func (s *slot) SendComplete(b *Batch) {
	s.shard(b.Worker).tallySend(b, 0)
	s.completed(b)
}

func (s *slot) completed(b *Batch) {
	b.origin.protocol.impl.SendComplete(b.origin, b)
	s.returned()
}

// drained waits until nothing that was kept is out any more. What never comes
// back is declared orphaned: it lives in collected memory, so going on is safe.
func (s *slot) drained(ctx context.Context) (orphans int64) {
	for {
		n := s.kept.Load()
		if n <= 0 {
			return 0
		}
		select {
		case <-s.idle:
		case <-ctx.Done():
			s.kept.Store(0)
			return n
		}
	}
}

// --- Status and the end ---------------------------------------------------

// Name implements AdapterHandle.
func (s *slot) Name() string { return s.name }

// Clock implements AdapterHandle.
func (s *slot) Clock() Clock { return s.core.clock }

// NewWorker implements AdapterHandle.
func (s *slot) NewWorker(queue int) *Worker {
	return s.core.mustWorker(fmt.Sprintf("%s/rx%d", s.name, queue))
}

// IndicateStatus implements AdapterHandle. Everybody above hears of it on the
// caller's goroutine; the control side takes note afterwards.
func (s *slot) IndicateStatus(st Status) {
	if s.alive.Load() == aliveNo {
		return // H-13: nothing after Halt
	}
	if l, ok := st.(LinkState); ok {
		for {
			old := s.link.Load()
			if old != nil && old.same(l) {
				return
			}
			if s.link.CompareAndSwap(old, &l) {
				break
			}
		}
		s.linkNews.Store(true)
		defer s.core.poke()
	}
	for _, m := range s.filters {
		if f, ok := m.filter.(StatusFilter); ok && m.attached.Load() {
			f.FilterStatus(st)
			return
		}
	}
	s.statusUp(st)
}

func (s *slot) statusUp(st Status) {
	for _, b := range s.path.Load().receivers {
		if b.slot == s {
			b.protocol.impl.Status(b, st)
		}
	}
}

// Remove implements AdapterHandle (NdisMRemoveMiniport).
func (s *slot) Remove(why string) error {
	if s.alive.Load() != aliveYes || s.gone.Load() != nil || !s.removing.CompareAndSwap(nil, &why) {
		return fmt.Errorf("adapter %s: remove: %w: not running, or already being removed", s.name, ErrFailure)
	}
	s.leave(why)
	return nil
}

// SurpriseRemove implements AdapterHandle.
func (s *slot) SurpriseRemove(why string) {
	if s.alive.Load() == aliveNo || !s.gone.CompareAndSwap(nil, &why) {
		return
	}
	s.leave(why)
}

// leave closes the data path and lets those above fall over to somebody else,
// now, on the caller's goroutine; the halt follows on the control side.
func (s *slot) leave(why string) {
	s.update(func() {})
	s.IndicateStatus(LinkState{Media: MediaDisconnected, Why: why})
	s.core.poke()
}

// request sends one OID to the adapter.
func (s *slot) request(ctx context.Context, req *OIDRequest) error {
	if s.gone.Load() != nil {
		return fmt.Errorf("adapter %s: OID %#08x: %w", s.name, uint32(req.ID), ErrNotAccepted)
	}
	if s.alive.Load() == aliveNo {
		return fmt.Errorf("adapter %s: OID %#08x: %w", s.name, uint32(req.ID), ErrInvalidState)
	}
	s.oids.Lock()
	defer s.oids.Unlock()
	if err := s.adapter.Request(ctx, req); err != nil {
		return fmt.Errorf("adapter %s: OID %#08x: %w", s.name, uint32(req.ID), err)
	}
	return nil
}

// updateFilter gives the adapter the union of its bindings' packet filters.
func (s *slot) updateFilter(ctx context.Context) error {
	var union PacketFilter
	s.publish.Lock()
	for _, b := range s.bindings {
		union |= PacketFilter(b.filter.Load())
	}
	s.publish.Unlock()
	return s.request(ctx, &OIDRequest{ID: OIDGenCurrentPacketFilter, Kind: OIDSet, Data: union})
}

// --- Filter modules ---------------------------------------------------------

type receiveUp interface{ receive(b *Batch) }
type sendDown interface{ send(b *Batch) }

type slotTop struct{ s *slot }

func (t slotTop) receive(b *Batch) { t.s.deliver(t.s.path.Load(), b) }

type slotBottom struct{ s *slot }

func (t slotBottom) send(b *Batch) { t.s.transmit(b.Worker, t.s.path.Load(), b) }

type filterUp struct{ f ReceiveFilter }

func (u filterUp) receive(b *Batch) { u.f.FilterReceive(b) }

type filterDown struct{ f SendFilter }

func (d filterDown) send(b *Batch) { d.f.FilterSend(b) }

// filterModule is one filter on one adapter; it implements FilterHandle.
type filterModule struct {
	slot     *slot
	name     string
	filter   Filter
	index    int
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
func (m *filterModule) Send(b *Batch) { (*m.down.Load()).send(b) }

// IndicateReceive implements FilterHandle.
func (m *filterModule) IndicateReceive(b *Batch) { (*m.up.Load()).receive(b) }

// IndicateStatus implements FilterHandle.
func (m *filterModule) IndicateStatus(st Status) {
	for _, n := range m.slot.filters[m.index+1:] {
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
