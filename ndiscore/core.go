package ndiscore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options configures a Core. The zero value, with a Decider if there are to be
// teams, works.
type Options struct {
	Clock     Clock         // nil: SystemClock
	Decider   Decider       // chooses the active member of teams; required for AddBundle
	Events    int           // how many events are kept; 0: 4096
	CallLimit time.Duration // how long a driver call may take before its adapter is quarantined; 0: 20 s
}

// Core is the library that owns every adapter, protocol, binding and bundle,
// and orders every call between them.
//
// Run must be running for anything but New to make progress. All other methods
// may be called from any goroutine except workers, and from no callback that
// the core is waiting for.
type Core struct {
	clock     Clock
	born      time.Time // when it was made
	callLimit time.Duration
	patience  time.Duration // how long a worker may stay inside before those elsewhere no longer wait for it
	events    *eventLog

	inbox struct {
		sync.Mutex // a leaf
		posted     []post
		stopped    bool
	}
	wake  chan struct{} // capacity 1: there may be something to do
	ended chan struct{} // Run has returned
	calls sync.WaitGroup

	// Of Run's goroutine alone.
	m        *machine
	slots    map[string]*slot
	order    []string // of slots, as added
	teams    map[string]*team
	replies  map[int]chan error
	nextID   int
	protos   map[string]*protocol
	drivers  map[string]*DriverHandle
	awaiting map[string]context.CancelFunc
	turning  bool // turn is being advanced

	turn    atomic.Uint64 // a clock for the packet path, in turns of turnLength, while a bundle needs it
	workers struct {
		sync.Mutex // guards registration
		live       [MaxWorkers]atomic.Pointer[Worker]
	}
}

// post is something for Run's goroutine: an event, or a function.
type post struct {
	ev event
	fn func()
}

// protocol is a registered protocol driver.
type protocol struct {
	name string
	impl Protocol
}

// DriverHandle is a registered miniport driver.
type DriverHandle struct {
	core     *Core
	driver   Driver
	adapters int  // this and the rest: of Run's goroutine alone
	ready    bool // SetOptions has returned
	gone     bool
	removes  sync.WaitGroup // calls of driver.Remove under way
}

// New makes a core with nothing in it.
func New(o Options) *Core {
	if o.Clock == nil {
		o.Clock = SystemClock{}
	}
	if o.Events <= 0 {
		o.Events = 4096
	}
	if o.CallLimit <= 0 {
		o.CallLimit = 20 * time.Second
	}
	return &Core{
		clock: o.Clock, born: o.Clock.Now(), callLimit: o.CallLimit, patience: max(o.CallLimit/20, time.Millisecond), events: newEventLog(o.Events),
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
		m:     &machine{decider: o.Decider},
		slots: map[string]*slot{}, teams: map[string]*team{}, replies: map[int]chan error{}, protos: map[string]*protocol{},
		drivers: map[string]*DriverHandle{}, awaiting: map[string]context.CancelFunc{},
	}
}

// Run is the control goroutine: it decides with the machine and performs what
// that says, until ctx ends. It does not halt anything by itself: call Close
// first, or what is left is shut down without being freed.
func (c *Core) Run(ctx context.Context) error {
	defer c.stop()
	for {
		c.inbox.Lock()
		posted := c.inbox.posted
		c.inbox.posted = nil
		c.inbox.Unlock()
		for _, p := range posted {
			if p.fn != nil {
				p.fn()
			} else {
				c.step(p.ev)
			}
		}
		c.collect()
		if len(posted) > 0 {
			continue
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends Run: whoever waits is told, and calls under way are told to give up
// and awaited, but not longer than a call may take.
func (c *Core) stop() {
	for _, cancel := range c.awaiting {
		cancel()
	}
	for _, s := range c.slots {
		s.close(DropPaused)
		c.shutdown(s)
	}
	c.inbox.Lock()
	c.inbox.stopped = true
	posted := c.inbox.posted
	c.inbox.posted = nil
	c.inbox.Unlock()
	close(c.ended)
	for _, p := range posted {
		if p.ev.reply != 0 {
			c.answer(p.ev.reply, ErrStopped)
		}
	}
	for id := range c.replies {
		c.answer(id, ErrStopped)
	}
	quiet := make(chan struct{})
	go func() { // "last calls": ends with the last of them
		c.calls.Wait()
		close(quiet)
	}()
	limit := time.NewTimer(c.callLimit)
	defer limit.Stop()
	select {
	case <-quiet:
	case <-limit.C: // a miniport that does not return; it holds up nobody else
	}
}

// shutdown quiets an adapter that is up. No call reaches it afterwards.
func (c *Core) shutdown(s *slot) {
	was := s.alive.Swap(aliveNo)
	s.out.writeOff()
	if d, ok := optional[Shutdowner](s.adapter); ok && was == aliveYes {
		c.calls.Go(d.Shutdown) // "shutdown": ends when the driver returns
	}
}

func (c *Core) post(p post) bool {
	c.inbox.Lock()
	ok := !c.inbox.stopped
	if ok {
		c.inbox.posted = append(c.inbox.posted, p)
	}
	c.inbox.Unlock()
	c.poke()
	return ok
}

// poke wakes Run. It never blocks.
func (c *Core) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// do runs f on Run's goroutine and waits for it.
func (c *Core) do(ctx context.Context, f func()) error {
	if ctx.Value(insideCall{}) != nil {
		return fmt.Errorf("%w: from inside a call of the core, which would wait for itself", ErrInvalidState)
	}
	done := make(chan struct{})
	if !c.post(post{fn: func() {
		c.collect() // whoever asks after something has happened sees that it has
		f()
		close(done)
	}}) {
		return ErrStopped
	}
	select {
	case <-done:
		return nil
	case <-c.ended:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// operate posts an operation and waits for the machine's answer.
func (c *Core) operate(ctx context.Context, ev event) error {
	return c.operateWith(ctx, ev, nil)
}

// insideCall marks the context of the core's calls: an operation that is begun
// with it would wait for itself.
type insideCall struct{}

// operateWith is operate, for an operation that first does something of its own
// on Run's goroutine.
func (c *Core) operateWith(ctx context.Context, ev event, first func() error) error {
	if ctx.Value(insideCall{}) != nil {
		return fmt.Errorf("%w: from inside a call of the core, which would wait for itself", ErrInvalidState)
	}
	answer := make(chan error, 1)
	ok := c.post(post{fn: func() {
		c.nextID++
		ev.reply = c.nextID
		c.replies[ev.reply] = answer
		c.collect() // what has happened already counts as having happened
		if first != nil {
			if err := first(); err != nil {
				c.answer(ev.reply, err)
				return
			}
		}
		c.step(ev)
	}})
	if !ok {
		return ErrStopped
	}
	select {
	case err := <-answer:
		return err
	case <-c.ended:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Core) answer(id int, err error) {
	if ch, ok := c.replies[id]; ok {
		delete(c.replies, id)
		ch <- err
	}
}

// collect turns what the data path marked into events.
func (c *Core) collect() {
	for _, name := range slices.Clone(c.order) {
		s := c.slots[name]
		if s == nil {
			continue
		}
		if s.linkNews.CompareAndSwap(true, false) {
			if l := s.link.Load(); l != nil {
				c.step(event{kind: evLink, adapter: name, link: *l})
			}
		}
		if g := s.gone.Load(); g != nil && g.seen.CompareAndSwap(false, true) {
			c.step(event{kind: evSurprise, adapter: name, why: g.why})
		}
		// Who gives up just after Initialize may be quicker than the news that it
		// has returned: until that is here the machine sees nothing to remove.
		if a := c.m.adapter(name); a == nil || a.state == StateInitializing {
			continue
		}
		if s.attrsNews.CompareAndSwap(true, false) {
			c.step(event{kind: evAttributes, adapter: name, attrs: s.attributes()})
		}
		if r := s.removing.Load(); r != nil && r.seen.CompareAndSwap(false, true) {
			c.step(event{kind: evRemoveMiniport, adapter: name, why: r.why})
		}
		if r := s.wantsReset.Swap(nil); r != nil { // refused or not, it may ask again
			c.step(event{kind: evMiniportReset, adapter: name, why: r.why})
		}
	}
	// After what the members had to say, so that the machine knows why.
	for _, t := range c.teams {
		for _, n := range t.takeMoves() {
			c.step(event{kind: evMoved, adapter: t.name, left: n.left, member: n.to, epoch: n.epoch, why: n.why})
		}
	}
}

func (c *Core) step(ev event) {
	if ev.kind == evDone && ev.action.kind == actInitialize && ev.err == nil {
		// Read here and not where Initialize returned: what was indicated
		// since may have been collected already, and is newer.
		ev.link, ev.attrs = *c.slots[ev.adapter].link.Load(), c.slots[ev.adapter].attributes()
	}
	for _, a := range c.m.step(c.clock.Now(), ev) {
		c.perform(a)
	}
	c.tellJoints()
}

// tellJoints has those above ndis5 bundles with BalanceHash hear of a link that is
// another one without any adapter's having said so: a member came or went.
func (c *Core) tellJoints() {
	for _, b := range c.m.bundles {
		s := c.slots[b.primary]
		if b.mode != BundleNDIS5 || b.balance != BalanceHash || s == nil {
			continue
		}
		if sh := s.path.Load().share; sh != nil && s.joint.news(sh.link()) {
			c.calls.Go(func() { s.tellJoint(sh) }) // "status": ends when those above have heard
		}
	}
}

// perform does what the machine says: the quick things here, calls into drivers
// on a goroutine of their own, which ends by posting evDone.
func (c *Core) perform(a action) {
	switch a.kind {
	case actEvent:
		c.events.add(a.event)
	case actReply:
		c.answer(a.reply, a.err)
	case actClose:
		r := DropPaused
		if a.halt == HaltSurpriseRemoved {
			r = DropSurpriseRemoved
		}
		s := c.slots[a.adapter]
		if a.halt == HaltDeviceFailed {
			s.stuck.Store(true)
		}
		s.close(r)
	case actAwait:
		c.await(a.adapter, a.after)
	case actForget:
		c.forget(a.adapter)
	case actShutdown:
		c.shutdown(c.slots[a.adapter])
	case actTeam:
		c.teams[a.adapter].publish(a.set)
	case actFollow:
		t := c.teams[a.adapter]
		if !a.change.MAC.IsZero() {
			t.mac.Store(a.change.MAC.Key())
		}
		c.tell(c.slots[a.adapter], a.change)
	case actStatus:
		if a.link != (LinkState{}) {
			c.tell(c.slots[a.adapter], a.link)
		} else {
			c.tell(c.slots[a.adapter], NetworkChange{Why: a.why, Groups: a.why == groupsMoved, After: a.after})
		}
	case actOper:
		s := c.slots[a.adapter]
		s.operation.Store(&a.oper)
		c.tell(s, OperChange{Status: a.oper.status, Reason: a.oper.reason})
	case actReorder:
		s := c.slots[a.adapter]
		s.update(func() {
			chain := slices.Clone(s.modules())
			slices.SortStableFunc(chain, func(x, y *filterModule) int {
				return slices.Index(a.names, x.name) - slices.Index(a.names, y.name)
			})
			s.filters.Store(&chain)
		})
	case actUnstack:
		s := c.slots[a.adapter]
		s.update(func() {
			chain := slices.DeleteFunc(slices.Clone(s.modules()), func(m *filterModule) bool { return m.name == a.filter })
			s.filters.Store(&chain)
		})
	case actLeft:
		delete(c.protos, a.protocol)
	case actPrimary:
		c.setPrimary(c.m.bundle(a.target), a.names, a.adapter)
	case actWake:
		c.clock.AfterFunc(a.after, func() { c.post(post{ev: event{kind: evTick}}) })
	default:
		c.call(a)
	}
}

// statusPatience is how long Run's goroutine waits for those above an adapter to
// hear what the core says about it.
const statusPatience = time.Second

// tell indicates what the core itself has to say about an adapter, one thing
// after the other, and waits until those above have heard it. One of them that
// does not return, which it may not, holds up this adapter and nobody else: the
// next pause quarantines it.
func (c *Core) tell(s *slot, st Status) {
	before := s.told
	late := false
	if before != nil {
		select {
		case <-before:
		default:
			late = true
		}
	}
	if late && s.stuck.Load() {
		return
	}
	heard := make(chan struct{})
	s.told = heard
	c.calls.Go(func() { // "status": ends when those above have heard
		defer close(heard)
		if before != nil {
			<-before
		}
		s.indicate(st)
	})
	if late {
		return // nobody waits twice for the same
	}
	limit := time.NewTimer(statusPatience)
	defer limit.Stop()
	select {
	case <-heard:
	case <-limit.C:
		s.fault(fmt.Sprintf("somebody above it does not return from a status (%T), which may not block", st))
	}
}

// updateWithSecondaries changes s and publishes the paths of the ndis5
// secondaries that deliver to its bindings.
func (c *Core) updateWithSecondaries(s *slot, f func()) {
	s.update(f)
	s.publish.Lock()
	secondaries := slices.Clone(s.secondaries)
	s.publish.Unlock()
	for _, t := range secondaries {
		t.update(func() {})
	}
}

// setPrimary points the members of an ndis5 bundle at their primary; of one that
// is no more, b is nil, at nobody.
func (c *Core) setPrimary(b *mBundle, members []string, name string) {
	p := c.slots[name]
	var others []*slot
	for _, n := range members {
		if s := c.slots[n]; s != nil {
			// First of all nobody points at anybody: a secondary's lock is held
			// while its primary's is taken, so the order must never be mixed.
			s.publish.Lock()
			s.primary, s.secondaries, s.share = nil, nil, nil
			s.publish.Unlock()
			if s != p {
				others = append(others, s)
			}
		}
	}
	var share *sharing
	if b != nil && p != nil && len(others) > 0 {
		share = &sharing{hash: b.balance == BalanceHash, lag: b.lag, ours: &sources{turn: &c.turn}}
		for _, s := range append([]*slot{p}, others...) {
			share.members = append(share.members, s)
			share.seeds = append(share.seeds, laneSeed(s.name))
		}
	}
	// The primary first: whoever opens a binding of it meanwhile publishes the
	// secondaries too, or has done so before they look.
	if p != nil {
		p.update(func() { p.secondaries, p.share = others, share })
	}
	for _, s := range others {
		s.update(func() { s.primary, s.share = p, share })
	}
	c.keepTurning()
}

// keepTurning advances turn for as long as a bundle needs it.
func (c *Core) keepTurning() {
	if c.turning || !slices.ContainsFunc(c.m.bundles, (*mBundle).floods) {
		return
	}
	c.turning = true
	c.clock.AfterFunc(turnLength, func() {
		c.turn.Add(1)
		c.post(post{fn: func() {
			c.turning = false
			c.keepTurning()
		}})
	})
}

// grace waits until no worker uses what has just been taken out of the data path
// of s (design: quiescence by epochs): until each has moved on, or, where one is
// stuck, is elsewhere. Never on a worker.
func (c *Core) grace(ctx context.Context, s *slot) error {
	type stay struct {
		worker *Worker
		epoch  uint64
	}
	var inside []stay
	for i := range c.workers.live {
		if w := c.workers.live[i].Load(); w != nil {
			if e := w.epoch.Load(); e&1 != 0 {
				inside = append(inside, stay{w, e})
			}
		}
	}
	if inside == nil {
		return nil
	}
	patience := make(chan struct{})
	t := time.AfterFunc(c.patience, func() { close(patience) }) // what hangs is real, whatever the machine's clock says
	defer t.Stop()
	for _, x := range inside {
		if err := x.worker.passed(ctx, s, x.epoch, patience); err != nil {
			return fmt.Errorf("%w: %w", err, ErrQuarantined)
		}
	}
	return nil
}

// await has evArrived posted once an adapter's device can be started, but not
// before after has passed.
func (c *Core) await(name string, after time.Duration) {
	s := c.slots[name]
	d, ok := optional[LowerDevice](s.adapter)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	if old := c.awaiting[name]; old != nil {
		old()
	}
	c.awaiting[name] = cancel
	c.calls.Go(func() { // "await": ends when the device is there, or the adapter goes
		defer cancel()
		told := ""
		for rest(ctx, after) {
			err := d.AwaitDevice(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				c.post(post{ev: event{kind: evArrived, adapter: name, why: "its device is there again"}})
				return
			case err.Error() != told:
				told = err.Error()
				c.Report(Event{What: "adapter.await-failed", Adapter: name, Why: told})
			}
			after = awaitRetry // its namespace may be gone and come back, too
		}
	})
}

// rest waits for d, and reports whether ctx let it.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitRetry is how long after an AwaitDevice that could not wait it is tried
// again.
const awaitRetry = time.Second

func (c *Core) forget(name string) {
	s := c.slots[name]
	if cancel := c.awaiting[name]; cancel != nil {
		cancel()
		delete(c.awaiting, name)
	}
	delete(c.slots, name)
	c.order = slices.DeleteFunc(c.order, func(n string) bool { return n == name })
	s.abortOID(ErrInvalidHandle)
	if h := s.driver; h != nil {
		h.adapters--
		last := h.adapters == 0
		if last && h.driver.Unload != nil {
			h.ready = false // no adapter more, unless it is registered anew
		}
		h.removes.Add(1)
		c.calls.Go(func() { // "forget": ends when the driver returns
			if h.driver.Remove != nil {
				h.driver.Remove(s.adapter)
			}
			h.removes.Done()
			if last && h.driver.Unload != nil {
				h.removes.Wait() // those of the others may still be under way
				h.driver.Unload(h)
			}
		})
	}
}

// --- Operations -----------------------------------------------------------------

// Close removes every adapter, the last added first, and returns when all are
// halted, with what went wrong.
func (c *Core) Close(ctx context.Context, why string) error {
	var names []string
	if err := c.do(ctx, func() { names = slices.Clone(c.order) }); err != nil {
		return err
	}
	var errs []error
	var late []string
	for _, n := range slices.Backward(names) {
		// One that hangs must not cost the others their halt: half of the time
		// that is left is for them. Its own goes on meanwhile.
		one, cancel := ctx, context.CancelFunc(func() {})
		if end, ok := ctx.Deadline(); ok {
			one, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		}
		err := c.Remove(one, n, why)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			late = append(late, n)
		case err != nil && !errors.Is(err, ErrAdapterNotFound):
			errs = append(errs, err)
		}
	}
	for _, n := range late {
		if err := c.Remove(ctx, n, why); err != nil && !errors.Is(err, ErrAdapterNotFound) {
			errs = append(errs, fmt.Errorf("adapter %s: %s: not halted in time: %w", n, why, err))
		}
	}
	return errors.Join(errs...)
}

// Observe takes a prober's evidence. It never blocks for long.
func (c *Core) Observe(o Observation) {
	c.post(post{ev: event{kind: evObserved, adapter: o.Adapter, observed: o}})
}

// Report puts an event of a protocol's or the switch's own into the log.
func (c *Core) Report(e Event) {
	if e.Time.IsZero() {
		e.Time = c.clock.Now()
	}
	c.events.add(e)
}
