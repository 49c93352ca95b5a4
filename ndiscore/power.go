package ndiscore

import (
	"fmt"
	"slices"
)

// Suspend and resume (§7.6, §7.7). Those above are told first, and the stack is
// paused downward; then a power-aware adapter puts its device to sleep, and any
// other is halted with its bindings left in place. On the way back the device
// comes first, then the restart upward, then the word that traffic may resume.
// What was paused by hand is not restarted.

func (m *machine) suspend(a *mAdapter, ev event) {
	if a.goal != goalUp && a.goal != goalRest || a.asleep || a.state == StateHalted || a.surprise {
		m.reply(ev.reply, fmt.Errorf("adapter %s: suspend: %w: it is %s", a.name, ErrInvalidState, a.condition()))
		return
	}
	paused := a.goal == goalRest || a.rests
	m.redirect(a, goalSleep, ev)
	a.rests = paused // and is so again when it wakes
}

func (m *machine) resume(a *mAdapter, ev event) {
	if !a.asleep || a.goal != goalRest {
		m.reply(ev.reply, fmt.Errorf("adapter %s: resume: %w: it is %s", a.name, ErrInvalidState, a.condition()))
		return
	}
	rests := a.rests
	m.redirect(a, goalUp, ev)
	a.rests = rests
	a.tryAgain()
}

// nextSleep is the order of a suspend.
func (m *machine) nextSleep(a *mAdapter) (action, bool) {
	if a.asleep {
		return action{}, false
	}
	if act, ok := m.nextChain(a); ok { // what was begun is finished first
		return act, true
	}
	switch a.told {
	case 0:
		return action{kind: actNotify, notice: EventQueryPower}, true
	case EventQueryPower:
		return action{kind: actNotify, notice: EventSetPowerD3}, true
	}
	if !a.attrs.NoPauseOnSuspend || !a.attrs.PowerAware || a.state != StateRunning || slices.ContainsFunc(a.filters, (*mFilter).deaf) {
		if act, ok := m.nextPause(a); ok {
			return act, true
		}
	}
	if a.attrs.PowerAware {
		return action{kind: actSetPower, power: PowerD3}, true
	}
	return action{kind: actHalt, halt: HaltPoweredDown, why: a.cause}, true
}

// deaf reports whether f is attached and does not hear of power events, so that
// the stack has to be paused for it as for an old driver.
func (f *mFilter) deaf() bool { return f.state != FilterDetached && !f.hears }

func (m *machine) fellAsleep(a *mAdapter) {
	a.asleep = true
	m.event(Event{What: "adapter.power", Adapter: a.name, From: PowerD0.String(), To: PowerD3.String(), Why: a.cause})
}

func (m *machine) awoke(a *mAdapter) {
	a.asleep = false
	m.event(Event{What: "adapter.power", Adapter: a.name, From: PowerD3.String(), To: PowerD0.String(), Why: a.cause})
}

// powered records that a power-aware device sleeps, or is awake, or would not.
func (m *machine) powered(a *mAdapter, act *action, err error) {
	switch {
	case act.power == PowerD3 && err == nil:
		m.fellAsleep(a)
	case act.power == PowerD3:
		m.event(Event{What: "adapter.power-failed", Adapter: a.name, To: PowerD3.String(), Why: err.Error()})
		if a.goal == goalSleep { // it stays awake
			for _, w := range a.waiters {
				m.reply(w.reply, err)
			}
			a.waiters = nil
			a.goal, a.cause = goalUp, err.Error()
			a.tryAgain() // what failed on the way to sleep, when nobody judged it, is judged now
		}
	case err == nil:
		m.awoke(a)
	case a.goal == goalUp: // §7.7: what cannot be powered is removed
		m.event(Event{What: "adapter.power-failed", Adapter: a.name, To: PowerD0.String(), Why: err.Error()})
		m.failed(a, err)
		m.down(a, HaltDeviceFailed, event{why: err.Error()})
		a.remove = true
	}
}
