package ndiscore

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Check for hang, reset, and what many resets come to (contract §5). The
// machine polls an adapter that can be reset; a reset keeps state and bindings;
// one that is reset very frequently, or in vain, has failed for good.
const (
	hangCheckUnit   = 2 * time.Second // default, and granularity (K-1)
	pollPatience    = 2               // polls over which one request, or all sends, may stand still (K-5, K-10)
	maxFailedResets = 3               // in a row
	maxResets       = 5               // within resetWindow, however well they went
	resetWindow     = time.Minute
)

// Health is how an adapter does, for people.
type Health string

// The states of health.
const (
	Healthy   Health = "healthy"
	Resetting Health = "resetting"
	Degraded  Health = "degraded" // it was reset within the last minute
	Failed    Health = "failed"   // halted for DeviceFailed, or quarantined
)

type resetHistory struct {
	at     []time.Time // within resetWindow
	failed int         // in a row
	now    bool        // one is under way
	why    string      // what the newest is, or was, for
	anew   bool        // none since the adapter was started
}

// pollResult is what one poll saw.
type pollResult struct {
	hung  bool   // CheckForHang said so
	oid   uint64 // number of the request in progress, 0 for none
	sends int    // batches that the adapter keeps
	done  uint64 // batches that it has completed
}

type pollHistory struct {
	due     time.Time // of the next one; zero: none is planned
	last    pollResult
	oidSeen int // polls that saw the same request
	stalled int // polls without any progress of pending sends
}

// task is something to be done to an adapter when nothing else is.
type task struct {
	kind   actionKind
	notice NetEvent
	why    string
	reply  int
	op     eventKind // what was asked for
}

func (m *machine) reset(a *mAdapter, ev event) {
	switch {
	case !a.hasReset:
		m.reply(ev.reply, fmt.Errorf("adapter %s: reset: %w by its driver", a.name, ErrNotSupported))
	case a.goal != goalUp && a.goal != goalRest || a.state == StateHalted || a.asleep || a.surprise:
		m.reply(ev.reply, fmt.Errorf("adapter %s: reset: %w: it is %s", a.name, ErrInvalidState, a.condition()))
	case a.resetPlanned():
		m.reply(ev.reply, fmt.Errorf("adapter %s: reset: %w", a.name, ErrResetInProgress))
	default:
		a.tasks = append(a.tasks, task{kind: actReset, why: ev.why, reply: ev.reply, op: ev.kind})
	}
}

func (a *mAdapter) resetPlanned() bool {
	for _, t := range a.tasks {
		if t.kind == actReset {
			return true
		}
	}
	return false
}

// resetAsked reports whether the next thing to be done to a is a reset that
// somebody asked for, of a device that may be in good order.
func (a *mAdapter) resetAsked() bool {
	return len(a.tasks) > 0 && a.tasks[0].kind == actReset && a.tasks[0].reply != 0
}

// query asks everybody above whether a may go, or says that it stays.
func (m *machine) query(a *mAdapter, ev event) {
	notice := EventQueryRemoveDevice
	if ev.kind == evCancelQuery {
		notice = EventCancelRemoveDevice
		if !a.queried {
			m.reply(ev.reply, fmt.Errorf("adapter %s: cancel remove: %w: no removal was announced", a.name, ErrInvalidState))
			return
		}
	}
	switch {
	case a.state == StateHalted && !a.asleep && a.goal == goalRest:
		m.reply(ev.reply, nil) // nobody is bound who could mind
	case a.goal == goalDown || a.surprise:
		m.reply(ev.reply, fmt.Errorf("adapter %s: query remove: %w: it is %s", a.name, ErrInvalidState, a.condition()))
	default:
		a.tasks = append(a.tasks, task{kind: actNotify, notice: notice, why: ev.why, reply: ev.reply, op: ev.kind})
	}
}

// restrain keeps everybody unbound, or paused.
func (m *machine) restrain(a *mAdapter, ev event) {
	switch {
	case ev.kind == evInhibit:
		a.inhibited = true
	case a.state == StateHalted: // its halt was quicker
		m.reply(ev.reply, fmt.Errorf("adapter %s: require pause: %w: it is %s", a.name, ErrInvalidState, a.condition()))
		return
	default:
		a.held = true
	}
	a.because(ev.why)
	a.settling = append(a.settling, waiter{reply: ev.reply, op: ev.kind})
}

// because names the cause of what is done next to an adapter that stays where it
// is; one that is on its way down has a cause of its own.
func (a *mAdapter) because(why string) {
	if a.goal == goalUp || a.goal == goalRest && a.state == StatePaused {
		a.cause = cmp.Or(why, a.cause)
	}
}

// nextTask does what was asked for, or looks whether the device is stuck.
func (m *machine) nextTask(a *mAdapter) (action, bool) {
	up := a.state == StateRunning || a.state == StatePaused
	for len(a.tasks) > 0 {
		t := a.tasks[0]
		if t.kind == actReset && (!up || a.asleep || a.surprise) {
			m.endTask(a, fmt.Errorf("adapter %s: reset: %w: it is %s", a.name, ErrInvalidState, a.condition()))
			continue
		}
		if t.kind == actReset {
			a.resets.now, a.resets.why = true, t.why
		}
		return action{kind: t.kind, notice: t.notice, why: t.why}, true
	}
	if !a.hasReset || !up || a.asleep || a.surprise || a.goal == goalDown {
		a.polls.due = time.Time{}
		return action{}, false
	}
	switch {
	case a.polls.due.IsZero():
		m.planPoll(a)
	case !m.now.Before(a.polls.due):
		return action{kind: actPoll}, true
	}
	return action{}, false
}

func (m *machine) planPoll(a *mAdapter) {
	every := max(a.attrs.HangCheck/hangCheckUnit*hangCheckUnit, hangCheckUnit)
	a.polls.due = m.now.Add(every)
	m.emit(action{kind: actWake, adapter: a.name, after: every})
}

func (m *machine) endTask(a *mAdapter, err error) {
	if len(a.tasks) > 0 {
		m.reply(a.tasks[0].reply, err)
		a.tasks = a.tasks[1:]
	}
}

// ending is the answer to an operation that is not carried out, by its name.
type ending func(operation string) error

// overtakenBy is the answer to what something else came before.
func (a *mAdapter) overtakenBy(why string) ending {
	return func(operation string) error {
		return fmt.Errorf("adapter %s: %s: %w: overtaken: %s", a.name, operation, ErrInvalidState, why)
	}
}

// whatever is err for every operation.
func whatever(err error) ending { return func(string) error { return err } }

// drop ends what was planned for an adapter that is to go down. Who waits for it
// to settle is answered when it rests.
func (m *machine) drop(a *mAdapter, end ending) {
	for _, t := range a.tasks {
		m.reply(t.reply, end(t.op.operation()))
	}
	a.tasks, a.resets.now = nil, false
}

// forsake is drop for an adapter that will not rest: it is gone, or does not
// answer.
func (m *machine) forsake(a *mAdapter, end ending) {
	m.drop(a, end)
	for _, w := range a.settling {
		m.reply(w.reply, cmp.Or(w.err, end(w.op.operation())))
	}
	a.settling = nil
	m.unstart(a, end)
}

// notified records that those above have heard.
func (m *machine) notified(a *mAdapter, act *action, err error) {
	switch act.notice {
	case EventQueryPower, EventSetPowerD3:
		a.told = act.notice
	case EventSetPowerD0:
		a.told = 0
	case EventQueryRemoveDevice:
		if len(a.tasks) > 0 { // else it was overtaken
			a.queried = err == nil
		}
		if err != nil {
			m.event(Event{What: "adapter.remove-refused", Adapter: a.name, Why: err.Error()})
		}
		m.endTask(a, err)
	case EventCancelRemoveDevice:
		a.queried = false
		m.endTask(a, nil)
	}
}

// polled judges what a poll saw.
func (m *machine) polled(a *mAdapter, now pollResult) {
	p := &a.polls
	switch now.oid {
	case 0:
		p.oidSeen = 0
	case p.last.oid:
		p.oidSeen++
	default:
		p.oidSeen = 1
	}
	if now.sends > 0 && p.last.sends > 0 && now.done == p.last.done {
		p.stalled++
	} else {
		p.stalled = 0
	}
	p.last = now
	why := ""
	switch {
	case now.hung:
		why = "check for hang: its miniport says that it is stuck"
	case p.oidSeen >= pollPatience:
		why = "check for hang: an OID request has not returned over two polls"
	case p.stalled >= pollPatience:
		why = fmt.Sprintf("check for hang: none of %d sends completed over two polls", now.sends)
	}
	m.planPoll(a)
	if why != "" && !a.resetPlanned() && (a.goal == goalUp || a.goal == goalRest) {
		a.tasks = append(a.tasks, task{kind: actReset, why: why})
	}
}

// resetDone records how a reset went, and gives a device up that is reset too
// often or in vain (the documented use of NdisMRemoveMiniport).
func (m *machine) resetDone(a *mAdapter, act *action, err error) {
	h := &a.resets
	h.now, h.anew = false, false
	h.trim(m.now)
	h.at = append(h.at, m.now)
	result := "ok"
	if err != nil {
		result = err.Error()
	}
	m.event(Event{What: "adapter.reset", Adapter: a.name, To: result, Why: act.why})
	if err == nil || errors.Is(err, ErrSoftErrors) {
		h.failed, err = 0, nil
	} else {
		h.failed++
	}
	a.polls.last, a.polls.oidSeen, a.polls.stalled = pollResult{}, 0, 0
	m.endTask(a, err)
	why := ""
	switch {
	case h.failed >= maxFailedResets:
		why = fmt.Sprintf("%d resets in a row did not work: %s", h.failed, result)
	case len(h.at) >= maxResets:
		why = fmt.Sprintf("%d resets within %s; the last one because of %s", len(h.at), resetWindow, act.why)
	default:
		m.emit(action{kind: actWake, adapter: a.name, after: resetWindow}) // then it is healthy again
		return
	}
	if a.goal != goalDown {
		m.down(a, HaltDeviceFailed, event{why: why})
		a.remove = true
	}
}

// trim forgets the resets that are no longer within the window.
func (h *resetHistory) trim(now time.Time) {
	for len(h.at) > 0 && now.Sub(h.at[0]) >= resetWindow {
		h.at = h.at[1:]
	}
}

// derive tells of operational state and health, when they are others.
func (m *machine) derive(a *mAdapter) {
	o := operState{status: OperUp, admin: OperUp, since: a.oper.since}
	switch {
	case a.stuck:
		o.status, o.reason = OperDown, "quarantined"
	case a.asleep:
		o.status, o.reason = OperDormant, "low power"
	case a.state == StateHalted || a.state == StateShutdown || a.surprise:
		o.status, o.admin = OperNotPresent, OperDown
	case a.state != StateRunning:
		o.status, o.reason = OperDormant, "paused"
	case !a.link.Connected():
		o.status, o.reason = OperDown, "not connected"
	}
	if o != a.oper {
		o.since = m.now
		a.oper = o
		m.emit(action{kind: actOper, adapter: a.name, oper: o})
	}
	a.resets.trim(m.now)
	h, why := Healthy, "no reset for "+resetWindow.String()
	if a.resets.anew {
		why = "started anew"
	}
	switch {
	case a.stuck || (a.state == StateHalted || a.state == StateInitializing) && a.lastHalt == HaltDeviceFailed:
		h, why = Failed, a.cause
	case a.resets.now && a.busy:
		h, why = Resetting, a.resets.why
	case len(a.resets.at) > 0:
		h, why = Degraded, fmt.Sprintf("%d of %d resets within %s", len(a.resets.at), maxResets, resetWindow)
	case a.health == Failed:
		why = a.cause
	}
	if was := a.health; h != was {
		a.health = h
		if was != "" {
			m.event(Event{What: "adapter.health", Adapter: a.name, From: string(was), To: string(h), Why: why})
		}
	}
}

// condition is an adapter's state for people, who want to know of sleep too,
// and of what is being done to it.
func (a *mAdapter) condition() string {
	switch {
	case a.goal == goalDown && a.forget:
		return "being removed"
	case a.goal == goalDown && a.halt == HaltDeviceStopped:
		return "being stopped"
	case a.goal == goalDown:
		return "being halted: " + a.cause
	case a.goal == goalPause:
		return "being paused"
	case a.goal == goalSleep:
		return "being suspended"
	case a.goal == goalUp && a.asleep:
		return "being resumed"
	case a.goal == goalUp && a.state == StatePaused && !a.held && !a.rests:
		return "being started"
	case a.asleep:
		return "suspended"
	case a.surprise:
		return a.state.String() + ", its device vanished"
	}
	return a.state.String()
}
