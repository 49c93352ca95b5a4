package ndiscore

import (
	"fmt"
	"slices"
)

// The filter chain of a live adapter: modules come, go and change places
// between a pause downward and a restart upward (§7.8). Nobody is unbound for an
// optional module; for a mandatory one, everybody is (F-4).

// sleeping reports whether a is suspended, or is being put to sleep: its chain
// then stays as it is, since whoever waits for a change would wait for the
// resume.
func (a *mAdapter) sleeping() bool { return a.asleep || a.goal == goalSleep }

func (a *mAdapter) module(name string) *mFilter {
	for _, f := range a.filters {
		if f.name == name {
			return f
		}
	}
	return nil
}

// nextChain brings the chain nearer to what it is to be. The adapter is
// initialised and awake.
func (m *machine) nextChain(a *mAdapter) (action, bool) {
	for _, f := range a.filters {
		switch {
		case f.leaving && f.state == FilterDetached:
			m.unstack(a, f)
			return m.nextChain(a)
		case f.leaving, f.state == FilterDetached && !f.failed:
			if act, ok := m.clearFor(a, f.mandatory); ok {
				return act, true
			}
			if f.leaving {
				return action{kind: actDetach, filter: f.name}, true
			}
			a.restacked = true
			return action{kind: actAttach, filter: f.name}, true
		}
	}
	if a.order != nil {
		if act, ok := m.clearFor(a, false); ok {
			return act, true
		}
		m.reorder(a)
	}
	if a.restacked {
		a.restacked = false
		if len(a.bindings) > 0 {
			return action{kind: actNotify, notice: EventReconfigure}, true
		}
	}
	return action{}, false
}

// clearFor pauses what stands on an adapter before its chain is changed, and
// unbinds everybody where a mandatory module is concerned.
func (m *machine) clearFor(a *mAdapter, mandatory bool) (action, bool) {
	if act, ok := m.nextPause(a); ok {
		return act, true
	}
	if mandatory {
		for i := len(a.bindings) - 1; i >= 0; i-- {
			if b := a.bindings[i]; b.state == BindingPaused {
				return action{kind: actUnbind, protocol: b.protocol.name, target: b.target}, true
			}
		}
	}
	return action{}, false
}

// nextChainHalted changes the chain of an adapter on which nothing is attached.
func (m *machine) nextChainHalted(a *mAdapter) (action, bool) {
	for _, f := range slices.Clone(a.filters) {
		if f.leaving && f.state == FilterDetached {
			m.unstack(a, f)
		}
	}
	if a.order != nil {
		m.reorder(a)
	}
	a.restacked = false
	return action{}, false
}

func (m *machine) unstack(a *mAdapter, f *mFilter) {
	a.filters = slices.DeleteFunc(slices.Clone(a.filters), func(x *mFilter) bool { return x == f })
	a.restacked = true
	m.emit(action{kind: actUnstack, adapter: a.name, filter: f.name})
	m.event(Event{What: "filter.removed", Adapter: a.name, From: f.name, Why: a.cause})
}

func (m *machine) reorder(a *mAdapter) {
	a.filters = a.ordered()
	names := make([]string, len(a.filters))
	for i, f := range a.filters {
		names[i] = f.name
	}
	a.order, a.restacked = nil, true
	m.emit(action{kind: actReorder, adapter: a.name, names: names})
	m.event(Event{What: "filter.moved", Adapter: a.name, To: fmt.Sprint(names), Why: a.cause})
}

// ordered are the modules in the order that they are to have; who is not named
// there is above the others.
func (a *mAdapter) ordered() []*mFilter {
	at := func(f *mFilter) int {
		if i := slices.Index(a.order, f.name); i >= 0 {
			return i
		}
		return len(a.order)
	}
	fs := slices.Clone(a.filters)
	slices.SortStableFunc(fs, func(x, y *mFilter) int { return at(x) - at(y) })
	return fs
}

// filterAdded takes note of a module that the core has put into the chain.
func (m *machine) filterAdded(a *mAdapter, ev event) {
	a.settling = append(a.settling, waiter{reply: ev.reply, op: ev.kind, filter: ev.filter})
	a.because(ev.why)
	m.event(Event{What: "filter.added", Adapter: a.name, To: ev.filter, Why: ev.why})
}

func (m *machine) filterLeaves(a *mAdapter, ev event) {
	f := a.module(ev.filter)
	switch {
	case f == nil || f.leaving:
		m.reply(ev.reply, fmt.Errorf("adapter %s: filter %s: %w", a.name, ev.filter, ErrNotFound))
		return
	case a.sleeping():
		m.reply(ev.reply, fmt.Errorf("adapter %s: filter %s: remove: %w: it is suspended", a.name, ev.filter, ErrInvalidState))
		return
	}
	f.leaving = true
	a.because(ev.why)
	a.settling = append(a.settling, waiter{reply: ev.reply, op: ev.kind})
}

func (m *machine) filterMoved(a *mAdapter, ev event) {
	f := a.module(ev.filter)
	switch {
	case f == nil || f.leaving:
		m.reply(ev.reply, fmt.Errorf("adapter %s: filter %s: %w", a.name, ev.filter, ErrNotFound))
		return
	case a.sleeping():
		m.reply(ev.reply, fmt.Errorf("adapter %s: filter %s: move: %w: it is suspended", a.name, ev.filter, ErrInvalidState))
		return
	}
	var names []string
	for _, x := range a.ordered() { // as another move, which is under way, will leave it
		if x != f {
			names = append(names, x.name)
		}
	}
	at := ev.place
	if at < 0 || at > len(names) {
		at = len(names)
	}
	a.order = slices.Insert(names, at, f.name)
	a.because(ev.why)
	a.settling = append(a.settling, waiter{reply: ev.reply, op: ev.kind})
}
