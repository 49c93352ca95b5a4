package ndiscore

import (
	"fmt"
	"slices"
)

// Who is bound to whom, inside the machine, and protocols that change their mind.

// want is one binding that the configuration asks for.
type want struct {
	protocol *mProtocol
	target   string
}

// wanted lists who is to be bound to a, in the order of the protocols. An
// ndis5 bundle shows protocols its primary under the bundle's name, and hides
// its secondaries whatever they are called by (B-5).
func (m *machine) wanted(a *mAdapter) []want {
	if a.inhibited {
		return nil
	}
	name := a.name
	if b := m.bundleOf(a); b != nil && b.mode == BundleNDIS5 {
		if b.primary != a.name {
			return nil
		}
		name = b.name
	}
	var ws []want
	for _, p := range m.protocols {
		if p.leaving || p.shuns[a.name] {
			continue
		}
		for _, t := range p.targets {
			if (t == name || t == a.name) && !m.elsewhere(a, p, t) {
				ws = append(ws, want{p, t})
			}
		}
	}
	return ws
}

// unwanted finds a binding that nobody asks for any more: its protocol has left,
// or gave up the target. One that failed is forgotten on the way.
func (m *machine) unwanted(a *mAdapter) *mBinding {
	ws := m.wanted(a)
	for i := len(a.bindings) - 1; i >= 0; i-- {
		b := a.bindings[i]
		if slices.Contains(ws, want{b.protocol, b.target}) || m.lingersFor(a, b) {
			continue
		}
		if b.state != BindingUnbound {
			return b
		}
		a.bindings = slices.Delete(a.bindings, i, i+1)
	}
	return nil
}

// leave is the next step to the end of a binding that nobody wants.
func (b *mBinding) leave() action {
	act := action{kind: actUnbind, protocol: b.protocol.name, target: b.target}
	switch {
	case b.state == BindingRunning:
		act.kind = actPauseBinding
	case b.protocol.leaving:
		act.why = "its protocol leaves"
	case !slices.Contains(b.protocol.targets, b.target):
		act.why = "its protocol has other targets"
	}
	return act
}

func (a *mAdapter) binding(p *mProtocol, target string) *mBinding {
	for _, b := range a.bindings {
		if b.protocol == p && b.target == target {
			return b
		}
	}
	return nil
}

func (a *mAdapter) bindingOf(act *action) *mBinding {
	for _, b := range a.bindings {
		if b.protocol.name == act.protocol && b.target == act.target {
			return b
		}
	}
	return nil
}

func (a *mAdapter) dropBinding(act *action) {
	for i, b := range a.bindings {
		if b.protocol.name == act.protocol && b.target == act.target {
			a.bindings = append(a.bindings[:i:i], a.bindings[i+1:]...)
			return
		}
	}
}

// bindsComplete tells each protocol, once, that it has seen all its adapters.
func (m *machine) bindsComplete() {
	for _, p := range m.protocols {
		if p.complete || len(p.targets) == 0 {
			continue
		}
		all := true
		for _, t := range p.targets {
			if !m.settled(p, t) {
				all = false
				break
			}
		}
		if all {
			p.complete = true
			m.emit(action{kind: actBindsComplete, protocol: p.name})
		}
	}
}

// settled reports whether target has been offered to p and is running.
func (m *machine) settled(p *mProtocol, target string) bool {
	a := m.adapter(target)
	if b := m.bundle(target); b != nil && b.mode == BundleNDIS5 {
		a = m.adapter(b.primary)
	}
	if a == nil || a.busy || a.goal != goalUp {
		return false
	}
	b := a.binding(p, target)
	return b != nil && (b.state == BindingRunning || b.failed)
}

func (p *mProtocol) shun(adapter string) {
	if p.shuns == nil {
		p.shuns = map[string]bool{}
	}
	p.shuns[adapter] = true
}

// reenumerate offers a protocol again what it is not bound to (P-13).
func (m *machine) reenumerate(ev event) {
	p := m.protocol(ev.protocol)
	if p == nil {
		m.reply(ev.reply, fmt.Errorf("protocol %s: %w", ev.protocol, ErrNotFound))
		return
	}
	p.shuns = nil
	for _, a := range m.adapters {
		for _, b := range a.bindings {
			if b.protocol == p {
				b.failed = false
			}
		}
	}
	m.reply(ev.reply, nil)
}

// leave answers when a protocol is bound to nothing that it does not want.
func (m *machine) leave(ev event) {
	p := m.protocol(ev.protocol)
	m.leavers = append(m.leavers, leaver{protocol: p, reply: ev.reply})
	if !p.leaving {
		m.emit(action{kind: actBindList, protocol: p.name})
	}
}

func (m *machine) left() {
	keep := m.leavers[:0]
	for _, l := range m.leavers {
		if held, stuck := m.holds(l); held && !stuck {
			keep = append(keep, l)
			continue
		} else if stuck {
			m.reply(l.reply, fmt.Errorf("unbind: %w", ErrQuarantined))
			continue
		}
		if l.protocol != nil && l.protocol.leaving {
			for _, a := range m.adapters { // where it could not be bound: its name may come again
				a.bindings = slices.DeleteFunc(a.bindings, func(b *mBinding) bool { return b.protocol == l.protocol })
			}
			for i, p := range m.protocols {
				if p == l.protocol {
					m.protocols = append(m.protocols[:i:i], m.protocols[i+1:]...)
					break
				}
			}
			m.emit(action{kind: actLeft, protocol: l.protocol.name})
		}
		m.reply(l.reply, nil)
	}
	m.leavers = keep
}

// holds reports whether there is a binding that l waits for the end of, and
// whether that is one that its protocol cannot be rid of.
func (m *machine) holds(l leaver) (held, stuck bool) {
	for _, a := range m.adapters {
		if l.protocol == nil && !slices.Contains(l.adapters, a.name) {
			continue
		}
		ws := m.wanted(a)
		for _, b := range a.bindings {
			if l.protocol != nil && b.protocol != l.protocol || b.state == BindingUnbound {
				continue
			}
			wanted := false
			for _, w := range ws {
				wanted = wanted || w.protocol == b.protocol && w.target == b.target
			}
			if !wanted {
				held, stuck = true, stuck || a.stuck && !a.busy || a.state == StateShutdown
			}
		}
	}
	return held, stuck
}
