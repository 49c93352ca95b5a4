package ndiscore

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// The machine holds every decision about life cycles: who is in which state,
// what comes next, and why. It is pure: step takes an event with its time and
// returns the actions to perform; the same events give the same actions. Core
// performs them and feeds what they return back as events, one action at a time
// for each adapter.
//
// It is driven by goals, not by scripts: next looks at where an adapter stands
// and where it is to go, and names the one call that brings it nearer. A
// removal that arrives while an adapter is starting needs no case of its own.

// goal is where an adapter is to go.
type goal uint8

const (
	goalRest  goal = iota // stay where it is
	goalUp                // Running, with everybody bound
	goalPause             // Paused, with everybody bound
	goalDown              // Halted, for reason adapter.halt
	goalSleep             // suspended, with everybody bound
)

type machine struct {
	decider   Decider
	leavers   []leaver    // protocols that wait to be bound nowhere
	adapters  []*mAdapter // in the order in which they were added
	protocols []*mProtocol
	bundles   []*mBundle

	now time.Time // of the current step
	out []action  // of the current step
}

type mProtocol struct {
	name     string
	targets  []string
	complete bool            // BindsComplete was sent
	leaving  bool            // it wants nothing any more
	shuns    map[string]bool // adapters that it asked to be unbound from
}

// leaver is an operation that ends when a protocol has no binding that it does
// not want; or, without a protocol, when nobody has one on these adapters.
type leaver struct {
	protocol *mProtocol
	adapters []string
	reply    int
}

type mFilter struct {
	name      string
	mandatory bool
	state     FilterState
	failed    bool
	leaving   bool // it is to be taken out
	hears     bool // implements EventFilter
}

type mBinding struct {
	protocol *mProtocol
	target   string
	state    BindingState
	failed   bool
}

type mAdapter struct {
	name, driver string
	virtual      bool // an intermediate driver's
	hasDevice    bool // implements LowerDevice
	hasPnP       bool // implements DevicePnPNotifier

	state    AdapterState
	filters  []*mFilter
	bindings []*mBinding // those that exist, in the order in which they were bound
	device   bool        // StartDevice succeeded, RemoveDevice has not been called

	goal   goal
	halt   HaltAction    // with goalDown
	remove bool          // with goalDown: RemoveDevice too
	forget bool          // with goalDown: the slot goes
	await  bool          // with goalDown: wait for the device to come back
	after  time.Duration // with await: not before
	cause  string        // why it goes where it goes

	surprise    bool // the device is gone
	pnpTold     bool
	stuck       bool       // a call did not return
	busy        bool       // a call is under way
	call        actionKind // … namely this
	halting     bool       // … and it is Halt
	lastHalt    HaltAction
	hasReset    bool       // implements Resetter
	attrs       Attributes // as last stated
	asleep      bool       // suspended
	told        NetEvent   // of the power events, the newest told; 0 when awake
	forgot      bool       // the device was halted with bindings in place: settings are to be restored
	queried     bool       // a removal was announced: nobody new is bound
	inhibited   bool       // nobody is to be bound
	held        bool       // it is to stay paused until AllowStart
	restacked   bool       // the chain is another one, and those above have not been told
	order       []string   // the order that the chain is to have; nil: as it is
	tasks       []task     // what is to be done when nothing else is
	rests       bool       // it was paused when it was put to sleep: waking does not start it
	again       []event    // starts that wait until it has gone down
	settling    []waiter   // operations that are answered when nothing is left to do
	resets      resetHistory
	polls       pollHistory
	health      Health
	oper        operState
	initialized bool          // since the last start: the device was once up
	returned    bool          // the start under way is for a device that came back; no operator waits for it
	retry       time.Duration // what the next failure of such a start adds
	link        LinkState
	usableSince time.Time // since when usable is what it is
	usable      bool      // Running and connected, and no reset is planned
	failures    uint64
	lastFailure time.Time
	proof       time.Time
	lastProbe   time.Time
	probesLost  int
	late        bool
	waiters     []waiter
	secondary   bool // of an ndis5 bundle, since it was initialised
}

// waiter is an operation that is answered when its adapter reaches goal: with
// err, if that is set, however well that goes.
type waiter struct {
	reply  int
	goal   goal
	op     eventKind // what was asked for
	err    error
	filter string // settling: the module it is about
}

func (m *machine) adapter(name string) *mAdapter {
	for _, a := range m.adapters {
		if a.name == name {
			return a
		}
	}
	return nil
}

func (m *machine) protocol(name string) *mProtocol {
	for _, p := range m.protocols {
		if p.name == name {
			return p
		}
	}
	return nil
}

// step takes one event and returns what is to be done about it, in order.
func (m *machine) step(now time.Time, ev event) []action {
	m.now, m.out = now, nil
	a := m.adapter(ev.adapter)
	switch ev.kind {
	case evTick, evBindingsChanged:
	case evReenumerate:
		m.reenumerate(ev)
	case evLeave:
		m.leave(ev)
	case evMoved:
		m.moved(ev)
	case evPromote:
		m.promote(ev)
	case evBundleLeft:
		m.leavers = append(m.leavers, leaver{adapters: ev.names, reply: ev.reply})
	default:
		if a == nil {
			if ev.kind != evDone || ev.action.protocol == "" {
				m.reply(ev.reply, fmt.Errorf("adapter %s: %w", ev.adapter, ErrAdapterNotFound))
			}
			break
		}
		m.adapterEvent(a, ev)
	}
	// What one adapter did may let another go on (an ndis5 promotion, a team
	// whose member came up), so look at all of them until nothing moves.
	for moved := true; moved; {
		moved = false
		for _, b := range m.bundles {
			moved = m.evaluate(b) || moved
		}
		for _, a := range m.adapters {
			moved = m.advance(a) || moved
		}
	}
	m.bindsComplete()
	m.left()
	for _, a := range m.adapters {
		m.derive(a)
	}
	return m.out
}

func (m *machine) emit(a action) { m.out = append(m.out, a) }

func (m *machine) reply(id int, err error) {
	if id != 0 {
		m.emit(action{kind: actReply, reply: id, err: err})
	}
}

func (m *machine) event(e Event) {
	e.Time = m.now
	m.emit(action{kind: actEvent, event: e})
}

func (m *machine) setState(a *mAdapter, s AdapterState, why string) {
	if a.state == s {
		return
	}
	m.event(Event{What: "adapter.state", Adapter: a.name, From: a.state.String(), To: s.String(), Why: why})
	a.state = s
}

func (m *machine) adapterEvent(a *mAdapter, ev event) {
	if a.state == StateShutdown && ev.kind != evDone {
		m.reply(ev.reply, fmt.Errorf("adapter %s: %w: shut down", a.name, ErrInvalidState))
		return
	}
	if a.stuck && ev.reply != 0 && ev.kind != evStart && ev.kind != evShutdown {
		m.reply(ev.reply, fmt.Errorf("adapter %s: %s: %w", a.name, ev.why, ErrQuarantined))
		return
	}
	switch ev.kind {
	case evStart, evArrived:
		m.start(a, ev)
	case evPause:
		if a.goal != goalUp || a.state == StateHalted {
			m.reply(ev.reply, fmt.Errorf("adapter %s: pause: %w: it is %s", a.name, ErrInvalidState, a.condition()))
			return
		}
		m.redirect(a, goalPause, ev)
	case evStop:
		if a.await { // whatever happens to its device, it stays down
			a.await = false
			m.unstart(a, a.overtakenBy(ev.why))
			if a.goal == goalDown {
				m.down(a, HaltDeviceStopped, ev)
			} else {
				m.reply(ev.reply, nil)
			}
			return
		}
		if m.unstart(a, a.overtakenBy(ev.why)) { // it goes down, and is not to come up again
			m.down(a, HaltDeviceStopped, ev)
			return
		}
		if a.goal == goalDown || a.state == StateHalted && !a.busy && !a.asleep {
			m.reply(ev.reply, fmt.Errorf("adapter %s: stop: %w: it is %s", a.name, ErrInvalidState, a.condition()))
			return
		}
		m.down(a, HaltDeviceStopped, ev)
	case evRemove:
		why := HaltDeviceDisabled
		if a.virtual {
			why = HaltInstanceDeInitialized
		}
		m.down(a, why, ev)
		a.remove, a.forget, a.await = true, true, false
	case evRemoveMiniport:
		if a.goal == goalDown || a.state == StateHalted || a.state == StateInitializing {
			m.reply(ev.reply, fmt.Errorf("adapter %s: %w: %s", a.name, ErrFailure, a.state))
			return
		}
		m.down(a, HaltDeviceFailed, ev)
		a.remove = true
	case evSurprise:
		m.surprise(a, ev)
	case evShutdown:
		m.emit(action{kind: actClose, adapter: a.name, halt: HaltNone})
		if a.state != StateHalted && a.state != StateInitializing {
			m.emit(action{kind: actShutdown, adapter: a.name})
		}
		m.setState(a, StateShutdown, ev.why)
		a.goal = goalRest
		m.answer(a, ErrStopped)
		m.forsake(a, whatever(ErrStopped))
		m.reply(ev.reply, nil)
	case evDone:
		m.done(a, ev)
	case evSuspend:
		m.suspend(a, ev)
	case evResume:
		m.resume(a, ev)
	case evQuery, evCancelQuery:
		m.query(a, ev)
	case evReset, evMiniportReset:
		m.reset(a, ev)
	case evInhibit, evHold:
		m.restrain(a, ev)
	case evAllow:
		a.inhibited = false
	case evRelease:
		a.held = false
	case evFilterAdded:
		m.filterAdded(a, ev)
	case evFilterLeaves:
		m.filterLeaves(a, ev)
	case evFilterMoved:
		m.filterMoved(a, ev)
	case evSettle:
		a.settling = append(a.settling, waiter{reply: ev.reply, op: ev.kind})
	case evUnbind:
		if p := m.protocol(ev.protocol); p != nil {
			p.shun(a.name)
		}
	case evAttributes:
		a.attrs = ev.attrs
	case evSecondary:
		m.setSecondary(a, ev)
	case evPromoteSelf:
		m.promoteSelf(a, ev)
	case evLink:
		if a.state == StateHalted { // said before the halt, and heard after it
			return
		}
		if a.link.Media == ev.link.Media { // another speed, or another sign of the same
			a.link.Speed = ev.link.Speed
			return
		}
		m.event(Event{What: "link", Adapter: a.name, From: a.link.Media.String(), To: ev.link.Media.String(), Why: ev.link.Why})
		a.link = ev.link
		if a.resetPlanned() { // how long it has been so is counted from here
			a.usableSince = m.now
		}
	case evObserved:
		m.observed(a, ev.observed)
	case evFailureObserved:
		a.failures++
		a.lastFailure = m.now
	}
}

func (m *machine) start(a *mAdapter, ev event) {
	switch {
	case a.stuck:
		m.reply(ev.reply, fmt.Errorf("adapter %s: start: %w", a.name, ErrQuarantined))
	case ev.kind == evStart && ev.reply != 0 && a.goal == goalDown && !a.forget:
		// On its way down, perhaps by itself and unnoticed: it starts once it rests.
		a.again = append(a.again, ev)
	case a.goal == goalUp || a.goal == goalDown || a.goal == goalSleep || a.asleep:
		if ev.kind == evStart {
			m.reply(ev.reply, fmt.Errorf("adapter %s: start: %w: it is %s", a.name, ErrInvalidState, a.condition()))
		}
	case ev.kind == evArrived && !a.await:
		// The operator was quicker.
	default:
		a.surprise, a.pnpTold, a.await, a.after = false, false, false, 0
		if a.returned = ev.kind == evArrived; !a.returned {
			a.retry = 0
		}
		m.redirect(a, goalUp, ev)
		a.tryAgain()
	}
}

// unstart answers the starts that wait until a has gone down, and reports whether
// there were any.
func (m *machine) unstart(a *mAdapter, end ending) bool {
	for _, ev := range a.again {
		m.reply(ev.reply, end(ev.kind.operation()))
	}
	any := len(a.again) > 0
	a.again = nil
	return any
}

// tryAgain forgets who failed before.
func (a *mAdapter) tryAgain() {
	for _, b := range a.bindings {
		b.failed = false
	}
	for _, f := range a.filters {
		f.failed = false
	}
}

// redirect gives a a new goal; whoever waited for another one is told.
func (m *machine) redirect(a *mAdapter, g goal, ev event) {
	keep := a.waiters[:0]
	for _, w := range a.waiters {
		if w.goal == g {
			keep = append(keep, w)
			continue
		}
		m.reply(w.reply, a.overtakenBy(ev.why)(w.op.operation()))
	}
	a.waiters = keep
	a.goal, a.cause, a.rests = g, ev.why, false
	if ev.reply != 0 {
		a.waiters = append(a.waiters, waiter{reply: ev.reply, goal: g, op: ev.kind})
	}
}

// down starts the way to Halted. The first cause wins: a second one adds its
// waiter, not its halt action (C-71).
func (m *machine) down(a *mAdapter, why HaltAction, ev event) {
	if a.goal == goalDown {
		if ev.reply != 0 {
			a.waiters = append(a.waiters, waiter{reply: ev.reply, goal: goalDown, op: ev.kind})
		}
		return
	}
	m.redirect(a, goalDown, ev)
	a.halt, a.remove, a.forget, a.await = why, false, false, false
	a.queried = false
	m.drop(a, a.overtakenBy(ev.why))
}

func (m *machine) surprise(a *mAdapter, ev event) {
	if a.surprise {
		return
	}
	m.event(Event{What: "adapter.surprise-removed", Adapter: a.name, Why: ev.why})
	a.surprise = true
	m.emit(action{kind: actClose, adapter: a.name, halt: HaltSurpriseRemoved})
	if a.goal == goalDown && !a.forget && a.halt != HaltDeviceStopped {
		// It failed first, and the proof of why comes after: one whose device
		// vanished starts again when that is back.
		a.remove, a.await = true, a.hasDevice
		return
	}
	if a.goal == goalDown || a.state == StateHalted && !a.busy && !a.asleep {
		return // already leaving, for a cause of its own; or nothing is up
	}
	m.down(a, HaltSurpriseRemoved, ev)
	a.remove, a.await = true, a.hasDevice
}

// answer tells everybody who waits for a's goal.
func (m *machine) answer(a *mAdapter, err error) {
	for _, w := range a.waiters {
		m.reply(w.reply, cmp.Or(w.err, err))
	}
	a.waiters = nil
}

// failed has everybody who waits for a told err, once what was half done has
// been undone.
func (m *machine) failed(a *mAdapter, err error) {
	for i := range a.waiters {
		a.waiters[i].goal, a.waiters[i].err = goalDown, err
	}
}

// advance performs what a needs next and reports whether anything changed.
func (m *machine) advance(a *mAdapter) bool {
	if a.busy || a.state == StateShutdown || m.lingers(a) {
		return false
	}
	next := m.next
	if a.stuck {
		next = m.nextStuck
	}
	if act, ok := next(a); ok {
		act.adapter = a.name
		a.busy, a.call = true, act.kind
		m.began(a, act)
		m.emit(act)
		return true
	}
	if a.stuck {
		return false
	}
	if m.arrived(a) {
		return true
	}
	for _, w := range a.settling {
		m.reply(w.reply, w.err)
	}
	a.settling = nil
	return false
}

// arrived closes a goal that has been reached.
func (m *machine) arrived(a *mAdapter) bool {
	switch a.goal {
	case goalUp:
		a.retry, a.returned = 0, false
		if a.waiters != nil {
			m.answer(a, nil)
		}
		if a.rests {
			a.goal, a.rests = goalRest, false
		}
		return a.goal == goalRest
	case goalPause, goalSleep:
		m.answer(a, nil)
		a.goal = goalRest
		return true
	case goalDown:
		a.asleep, a.told, a.forgot = false, 0, false
		m.answer(a, nil)
		a.goal = goalRest
		if a.forget {
			m.forsake(a, a.overtakenBy(a.cause))
			m.event(Event{What: "adapter.removed", Adapter: a.name, Why: a.cause})
			m.emit(action{kind: actForget, adapter: a.name})
			for i, x := range m.adapters {
				if x == a {
					m.adapters = append(m.adapters[:i:i], m.adapters[i+1:]...)
					break
				}
			}
			return true
		}
		if a.await {
			m.emit(action{kind: actAwait, adapter: a.name, after: a.after})
		}
		again := a.again
		a.again = nil
		for i, ev := range again {
			if i == 0 {
				m.start(a, ev)
			} else {
				a.waiters = append(a.waiters, waiter{reply: ev.reply, goal: goalUp, op: ev.kind})
			}
		}
		return true
	}
	return false
}

// next names the one call that brings a nearer to its goal.
func (m *machine) next(a *mAdapter) (action, bool) {
	if a.surprise && !a.pnpTold && a.state != StateHalted {
		a.pnpTold = true
		if a.hasPnP {
			return action{kind: actPnP}, true
		}
	}
	var act action
	var ok bool
	switch a.goal {
	case goalUp:
		act, ok = m.nextUp(a)
	case goalPause:
		act, ok = m.nextPause(a)
	case goalDown:
		act, ok = m.nextDown(a)
	case goalSleep:
		act, ok = m.nextSleep(a)
	case goalRest:
		act, ok = m.nextRest(a)
	}
	if ok {
		return act, true
	}
	return m.nextTask(a)
}

// nextRest keeps up what is decided about an adapter while it rests: filters
// come and go, protocols leave.
func (m *machine) nextRest(a *mAdapter) (action, bool) {
	if a.state != StatePaused && !a.asleep {
		return m.nextChainHalted(a)
	}
	if !a.asleep {
		if act, ok := m.nextChain(a); ok {
			return act, true
		}
	}
	if b := m.unwanted(a); b != nil {
		return b.leave(), true
	}
	return action{}, false
}

// nextUp is the order of a start: device, adapter, filters from the miniport
// up, bindings; then restart upward.
func (m *machine) nextUp(a *mAdapter) (action, bool) {
	if a.hasDevice && !a.device {
		return action{kind: actStartDevice}, true
	}
	if a.state == StateHalted {
		return action{kind: actInitialize}, true
	}
	if a.asleep {
		return action{kind: actSetPower, power: PowerD0}, true
	}
	if a.forgot {
		return action{kind: actRestore}, true
	}
	if act, ok := m.nextChain(a); ok {
		return act, true
	}
	for _, w := range m.wanted(a) {
		if b := a.binding(w.protocol, w.target); !a.queried && (b == nil || b.state == BindingUnbound && !b.failed) {
			return action{kind: actBind, protocol: w.protocol.name, target: w.target}, true
		}
	}
	if b := m.unwanted(a); b != nil {
		return b.leave(), true
	}
	if a.rests {
		return m.nextTold(a)
	}
	if a.held {
		return m.nextPause(a)
	}
	if a.state == StatePaused {
		return action{kind: actRestart}, true
	}
	for _, f := range a.filters {
		if f.state == FilterPaused && f.failed { // F-7: one that will not run is taken out
			return action{kind: actDetach, filter: f.name}, true
		}
		if f.state == FilterPaused {
			return action{kind: actRestartFilter, filter: f.name}, true
		}
	}
	for _, b := range a.bindings {
		if b.state == BindingPaused {
			return action{kind: actRestartBinding, protocol: b.protocol.name, target: b.target}, true
		}
	}
	return m.nextTold(a) // last: traffic may resume
}

// nextTold has those above know that a is awake again.
func (m *machine) nextTold(a *mAdapter) (action, bool) {
	if a.told != 0 {
		return action{kind: actNotify, notice: EventSetPowerD0}, true
	}
	return action{}, false
}

// nextPause is the order of a pause: bindings, last bound first; filters from
// the top; the adapter.
func (m *machine) nextPause(a *mAdapter) (action, bool) {
	for i := len(a.bindings) - 1; i >= 0; i-- {
		if b := a.bindings[i]; b.state == BindingRunning {
			return action{kind: actPauseBinding, protocol: b.protocol.name, target: b.target}, true
		}
	}
	for i := len(a.filters) - 1; i >= 0; i-- {
		if a.filters[i].state == FilterRunning {
			return action{kind: actPauseFilter, filter: a.filters[i].name}, true
		}
	}
	if a.state == StateRunning {
		return action{kind: actPause}, true
	}
	return action{}, false
}

// nextDown is the order of a teardown: pause downward, unbind all, detach from
// the top, halt, give the device up.
func (m *machine) nextDown(a *mAdapter) (action, bool) {
	if act, ok := m.nextPause(a); ok {
		return act, true
	}
	for i := len(a.bindings) - 1; i >= 0; i-- {
		if b := a.bindings[i]; b.state == BindingPaused {
			return action{kind: actUnbind, protocol: b.protocol.name, target: b.target}, true
		}
	}
	for i := len(a.filters) - 1; i >= 0; i-- {
		if a.filters[i].state == FilterPaused {
			return action{kind: actDetach, filter: a.filters[i].name}, true
		}
	}
	if a.state == StatePaused {
		return action{kind: actHalt, halt: a.halt, why: a.cause}, true
	}
	if a.device && a.remove {
		return action{kind: actRemoveDevice}, true
	}
	return action{}, false
}

// began records that a call is under way.
func (m *machine) began(a *mAdapter, act action) {
	switch act.kind {
	case actInitialize:
		m.setState(a, StateInitializing, a.cause)
	case actHalt:
		a.halting = true
	case actRestart:
		m.setState(a, StateRestarting, a.cause)
	case actPause:
		m.setState(a, StatePausing, a.cause)
	case actAttach:
		a.module(act.filter).state = FilterAttaching
	case actRestartFilter:
		a.module(act.filter).state = FilterRestarting
	case actPauseFilter:
		a.module(act.filter).state = FilterPausing
	case actBind:
		p := m.protocol(act.protocol)
		b := a.binding(p, act.target)
		if b == nil {
			b = &mBinding{protocol: p, target: act.target}
			a.bindings = append(a.bindings, b)
		}
		b.state = BindingOpening
	case actRestartBinding:
		a.bindingOf(&act).state = BindingRestarting
	case actPauseBinding:
		a.bindingOf(&act).state = BindingPausing
	case actUnbind:
		a.bindingOf(&act).state = BindingClosing
	}
}

// done records how a call ended.
func (m *machine) done(a *mAdapter, ev event) {
	act, err := ev.action, ev.err
	if !a.busy || act.kind != a.call {
		m.event(Event{What: "adapter.fault", Adapter: a.name, Why: act.String() + " ended, and was not under way"})
		return
	}
	a.busy = false
	if a.state == StateShutdown {
		return
	}
	if errors.Is(err, ErrQuarantined) {
		a.stuck = true
		m.emit(action{kind: actClose, adapter: a.name, halt: HaltDeviceFailed})
		m.event(Event{What: "adapter.quarantined", Adapter: a.name, Why: err.Error()})
		m.answer(a, err)
		m.forsake(a, whatever(err))
		return
	}
	switch act.kind {
	case actStartDevice:
		if err != nil {
			m.failStart(a, err)
			return
		}
		a.device = true
	case actInitialize:
		if err != nil {
			m.halted(a, err.Error())
			m.failStart(a, err)
			return
		}
		m.setState(a, StatePaused, "initialized")
		a.link, a.attrs = ev.link, ev.attrs
		if b := m.bundle(a.name); b != nil && a.virtual && ev.link.Media != MediaUnknown {
			b.link = ev.link
		}
		a.forgot = a.asleep && len(a.bindings) > 0
		if a.asleep {
			m.awoke(a)
		}
		a.resets, a.polls = resetHistory{anew: true}, pollHistory{}
		a.initialized = true
	case actAttach:
		f := a.module(act.filter)
		f.state = FilterPaused
		if err != nil {
			f.state, f.failed = FilterDetached, true
			m.filterFailed(a, f, err)
		}
	case actRestart:
		if err != nil {
			m.setState(a, StatePaused, err.Error())
			if a.goal == goalUp {
				m.failed(a, err)
				m.down(a, HaltDeviceFailed, event{why: err.Error()})
				a.remove = true
				a.awaitNext(err)
			}
			return
		}
		m.setState(a, StateRunning, a.cause)
	case actRestartFilter:
		f := a.module(act.filter)
		f.state = FilterRunning
		if err != nil {
			f.state, f.failed = FilterPaused, true
			m.filterFailed(a, f, err)
		}
	case actPauseFilter:
		a.module(act.filter).state = FilterPaused
	case actDetach:
		a.module(act.filter).state = FilterDetached
	case actPause:
		m.setState(a, StatePaused, a.cause)
	case actBind:
		b := a.bindingOf(act)
		if err != nil {
			b.state, b.failed = BindingUnbound, true
			m.event(Event{What: "binding.failed", Adapter: a.name, Protocol: act.protocol, Why: err.Error()})
			return
		}
		b.state = BindingPaused
		m.event(Event{What: "binding.bound", Adapter: a.name, Protocol: act.protocol, Why: a.cause})
	case actRestartBinding:
		b := a.bindingOf(act)
		b.state = BindingRunning
		if err != nil {
			b.state, b.failed = BindingPaused, true
			m.event(Event{What: "binding.failed", Adapter: a.name, Protocol: act.protocol, Why: err.Error()})
			b.state = BindingRunning // it may receive; what it does with it is its own affair
		}
	case actPauseBinding:
		a.bindingOf(act).state = BindingPaused
	case actUnbind:
		a.dropBinding(act)
		m.event(Event{What: "binding.unbound", Adapter: a.name, Protocol: act.protocol, Why: cmp.Or(act.why, a.cause)})
	case actHalt:
		a.halting = false
		a.lastHalt, a.secondary, a.held = act.halt, false, false
		m.event(Event{What: "adapter.halt", Adapter: a.name, To: act.halt.String(), Why: a.cause})
		m.halted(a, act.halt.String())
		if act.halt == HaltPoweredDown {
			m.fellAsleep(a)
		}
	case actRemoveDevice:
		a.device = false
	case actNotify:
		m.notified(a, act, err)
	case actSetPower:
		m.powered(a, act, err)
	case actRestore:
		a.forgot = false
		if err != nil {
			m.event(Event{What: "adapter.restore-failed", Adapter: a.name, Why: err.Error()})
		}
	case actReset:
		m.resetDone(a, act, err)
	case actPoll:
		m.polled(a, ev.poll)
	}
}

// halted records that a's device is not in use: nothing is known of its link.
func (m *machine) halted(a *mAdapter, why string) {
	m.setState(a, StateHalted, why)
	a.link = LinkState{}
}

// How long after a start that failed for a device that had come back the next
// one is tried.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// failStart ends a start that never got to an initialised adapter: no halt, no
// binding, only the device is given back (S-6, C-11, C-63).
func (m *machine) failStart(a *mAdapter, err error) {
	m.event(Event{What: "adapter.start-failed", Adapter: a.name, Why: err.Error()})
	if a.goal == goalDown || a.goal == goalRest {
		return // it is leaving anyway
	}
	m.failed(a, err)
	a.goal, a.halt, a.remove, a.forget = goalDown, HaltNone, true, false
	m.drop(a, a.overtakenBy(err.Error()))
	a.awaitNext(err)
	a.cause = err.Error()
}

// awaitNext decides whether a's device is waited for after a start that failed with
// err, and for how long it is left alone before.
func (a *mAdapter) awaitNext(err error) {
	// A device that vanished again between its arrival and our start may come
	// back once more; at the first start the operator is there to see.
	absent := errors.Is(err, ErrDeviceAbsent)
	a.await = a.initialized && absent
	if a.returned {
		// Nobody would start it again: whoever made the device may still hold
		// it, or have put an address on it. Ever more slowly, lest it be a loop.
		a.await, a.after = true, a.retry
		if !absent {
			a.after = max(a.after, retryFirst)
		}
		a.retry = min(max(2*a.retry, retryFirst), retryMost)
	}
}

func (m *machine) filterFailed(a *mAdapter, f *mFilter, err error) {
	m.event(Event{What: "filter.failed", Adapter: a.name, To: f.name, Why: err.Error()})
	for i := range a.settling {
		if w := &a.settling[i]; w.filter == f.name {
			w.err, f.leaving = err, true // what was asked for now is not kept for later
		}
	}
	if !f.mandatory || a.goal != goalUp {
		return
	}
	err = fmt.Errorf("adapter %s: mandatory filter %s: %w", a.name, f.name, err)
	m.failed(a, err)
	m.down(a, HaltInitFailed, event{why: err.Error()})
	a.remove = true
}
