package ndiscore

import (
	"fmt"
	"slices"
)

// The bundle of the NDIS 5.1 documents (§6.1, §6.2). One that is
// configured is led by the core: its next primary is chosen when the halt of the
// old one has begun. One that its driver makes (SetSecondary), named after its
// first primary, is led by the driver: it promotes while the primary is halted,
// and what it has not done when the halt has ended the core does for it. When
// nobody can take over, that bundle is gone, and each member stands alone; of a
// configured one the first to recover becomes the primary.
//
// A suspended primary counts as having left as soon as there is another one to
// take over, and one that does not answer at once. Both come back as secondaries.

// evaluateNDIS5 keeps a primary: the first member initialised; when that one has
// left, and so nobody is to be bound to it any more, the first of the others, in
// order, that runs (B-3, B-10, B-13, C-54).
func (m *machine) evaluateNDIS5(b *mBundle) bool {
	for _, n := range b.names() {
		if a := m.adapter(n); a != nil && b.primary != "" && b.primary != n && a.initialised() {
			a.secondary = true
		}
	}
	p := m.adapter(b.primary)
	if b.primary != "" && !b.vacant(p) {
		return false
	}
	next := ""
	for _, n := range b.names() {
		a := m.adapter(n)
		if a == nil || n == b.primary || !a.promotable(b.primary == "") {
			continue
		}
		if next == "" {
			next = n
		}
		if a.link.Connected() { // rather one with a link, else the first
			next = n
			break
		}
	}
	switch {
	case next == "" && p != nil && (p.asleep || p.goal == goalSleep) && !p.stuck && b.has(p.name):
		return false // it goes to sleep last, and keeps what is bound to it
	case next == "" && b.primary == "":
		return false
	}
	if next == "" && b.own {
		m.emit(action{kind: actPrimary, target: b.name, names: b.members})
		m.event(Event{What: "bundle.removed", Adapter: b.name, From: b.primary, Why: "no member can be its primary: each stands alone"})
		m.dropBundle(b)
		return true
	}
	m.lead(b, next)
	return true
}

// vacant reports whether the place of b's primary p may be taken: its halt has
// begun, or in a bundle that its driver leads has ended.
func (b *mBundle) vacant(p *mAdapter) bool {
	switch {
	case p == nil || !b.has(p.name) || p.state == StateHalted || p.asleep || p.stuck:
		return true // a stuck one counts as gone: it is called no more, and closed
	}
	return p.halting && !b.own
}

// initialised reports whether a is between Initialize and Halt.
func (a *mAdapter) initialised() bool {
	return a.state != StateHalted && a.state != StateInitializing && a.state != StateShutdown
}

// promotable reports whether a can be its bundle's primary: it runs, or, as the
// very first, is about to.
func (a *mAdapter) promotable(first bool) bool {
	return a.goal == goalUp && !a.surprise && !a.stuck && !a.asleep && (a.state == StateRunning || first && a.state == StatePaused && !a.rests)
}

// lead makes next the primary of b, "" for nobody, and points the others at it.
func (m *machine) lead(b *mBundle, next string) {
	was := b.primary
	b.primary = next
	why := "first member initialised"
	if was != "" {
		why = "primary " + was + " has left"
		if a := m.adapter(was); a != nil {
			why += ": " + a.cause
		}
	}
	if next == "" {
		why = "no member left: " + why
	}
	if a := m.adapter(next); a != nil && was != "" {
		a.cause = why // of the bindings that follow
	}
	m.event(Event{What: "bundle.primary", Adapter: b.name, From: was, To: next, Why: why})
	m.emit(action{kind: actPrimary, adapter: next, target: b.name, names: b.members})
}

// setSecondary makes a, which is just being initialised, a secondary of an
// adapter of the same driver that is initialised (B-4, C-51).
func (m *machine) setSecondary(a *mAdapter, ev event) {
	fail := func(why string) {
		m.reply(ev.reply, fmt.Errorf("adapter %s: set secondary of %s: %w: %s", a.name, ev.target, ErrFailure, why))
	}
	p := m.adapter(ev.target)
	switch {
	case a.state != StateInitializing:
		fail("it is " + a.condition() + ", and this is for Initialize only")
		return
	case p == nil || p == a || !p.initialised() || p.halting:
		fail("that is no other adapter that is initialised")
		return
	case p.virtual || p.driver != a.driver:
		fail("they are of different drivers")
		return
	}
	b, mine := m.bundleOf(p), m.bundleOf(a)
	switch {
	case b == nil && mine == nil:
		b = newBundle(BundleSpec{Name: p.name, Mode: BundleNDIS5, Members: []string{p.name}})
		b.own, b.primary = true, p.name
		m.bundles = append(slices.Clone(m.bundles), b)
	case b == nil || mine != nil && mine != b || b.mode != BundleNDIS5 || !b.own && mine == nil:
		fail("they are not in one ndis5 bundle")
		return
	case b.primary != p.name:
		fail("the primary of their bundle is " + b.primary)
		return
	}
	if mine == nil {
		if len(b.members) == maxMembers {
			fail(fmt.Sprintf("bundle %s has %d members already", b.name, maxMembers))
			return
		}
		b.members = append(slices.Clone(b.members), a.name)
	}
	a.secondary = true
	m.event(Event{What: "bundle.secondary", Adapter: b.name, To: a.name, Why: "set by its driver"})
	m.emit(action{kind: actPrimary, adapter: p.name, target: b.name, names: b.members})
	m.reply(ev.reply, nil)
}

// promoteSelf makes a secondary the primary, as its driver asks (B-10, C-54).
func (m *machine) promoteSelf(a *mAdapter, ev event) {
	fail := func(why string) {
		m.reply(ev.reply, fmt.Errorf("adapter %s: promote: %w: %s", a.name, ErrFailure, why))
	}
	b := m.bundleOf(a)
	if b == nil || b.mode != BundleNDIS5 || !a.secondary {
		fail("it was never made a secondary")
		return
	}
	p := m.adapter(b.primary)
	switch {
	case b.primary == a.name: // by the core, or it is called twice
	case b.primary != "" && !b.vacant(p) && !p.halting:
		fail("the halt of the primary, " + b.primary + ", has not begun")
		return
	case !a.promotable(false):
		fail("it is " + a.condition())
		return
	default:
		m.lead(b, a.name)
	}
	m.reply(ev.reply, nil)
}

// elsewhere reports whether a protocol is still bound, for the same target, to a
// member that was the primary: it is bound to one at a time.
func (m *machine) elsewhere(a *mAdapter, p *mProtocol, target string) bool {
	for _, x := range m.adapters {
		if b := x.binding(p, target); x != a && b != nil && b.state != BindingUnbound {
			return true
		}
	}
	return false
}

// nextStuck rids protocols of an adapter that does not answer and that they do
// not want, since another one has taken its place: they are told, the adapter is
// not. A protocol that hangs
// itself, in a call about this adapter, is left alone.
func (m *machine) nextStuck(a *mAdapter) (action, bool) {
	ws := m.wanted(a)
	for _, b := range slices.Backward(a.bindings) {
		if (b.state == BindingRunning || b.state == BindingPaused) && !slices.Contains(ws, want{b.protocol, b.target}) {
			return b.leave(), true
		}
	}
	return action{}, false
}
