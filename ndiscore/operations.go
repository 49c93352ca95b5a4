package ndiscore

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// What operators, and whoever assembles a switch, may ask of the core. Each
// operation returns when it is done, or when it is known that it will not be;
// ErrInvalidState when the adapter is in no state for it, or something else
// overtook it, and also when it is called from inside a call of the core with
// that call's context.

// Start brings an adapter up, and returns when it runs and everybody is bound. One
// that is on its way down is brought up once it rests, unless it is stopped or
// removed before.
func (c *Core) Start(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evStart, adapter: name, why: why})
}

// Pause stops an adapter's data flow and leaves everybody bound; Start resumes.
func (c *Core) Pause(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evPause, adapter: name, why: why})
}

// Stop halts an adapter (HaltDeviceStopped) and keeps it for a later Start.
func (c *Core) Stop(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evStop, adapter: name, why: why})
}

// Remove halts an adapter (HaltDeviceDisabled, or HaltInstanceDeInitialized for
// a virtual one), gives its device up and forgets it. With a team's virtual
// adapter goes the team.
func (c *Core) Remove(ctx context.Context, name, why string) error {
	return c.remove(ctx, name, why, nil)
}

// Shutdown ends an adapter without freeing anything (MiniportShutdownEx): no
// call reaches it afterwards.
func (c *Core) Shutdown(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evShutdown, adapter: name, why: why})
}

// Promote makes a member of a team active, and keeps it preferred until it
// fails.
func (c *Core) Promote(ctx context.Context, bundle, member string) error {
	return c.operate(ctx, event{kind: evPromote, adapter: bundle, why: member})
}

// Restart pauses a running adapter and starts it again; one that is paused or
// halted it starts.
func (c *Core) Restart(ctx context.Context, name, why string) error {
	var state AdapterState
	if err := c.do(ctx, func() {
		if a := c.m.adapter(name); a != nil {
			state = a.state
		}
	}); err != nil {
		return err
	}
	if state == StateRunning {
		if err := c.Pause(ctx, name, why); err != nil {
			if ctx.Err() != nil { // who asked for it has given up; it is not to stay paused for that
				c.post(post{ev: event{kind: evStart, adapter: name, why: why}})
			}
			return err
		}
	}
	return c.Start(ctx, name, why)
}

// Reset has an adapter set up its device anew, while bindings and handles stay
// (MiniportResetEx). ErrNotSupported when its driver cannot, ErrResetInProgress
// when it is at it. ErrHardErrors when it did not work.
func (c *Core) Reset(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evReset, adapter: name, why: why})
}

// Suspend puts an adapter to sleep, with everybody left bound: a power-aware
// device by OIDPnPSetPower, any other by a halt (HaltPoweredDown).
func (c *Core) Suspend(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evSuspend, adapter: name, why: why})
}

// Resume wakes a suspended adapter; what was paused when it was suspended stays
// so. One that cannot be woken is removed (HaltDeviceFailed).
func (c *Core) Resume(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evResume, adapter: name, why: why})
}

// QueryRemove asks filters and protocols whether an adapter may be removed, or
// stopped, soon (IRP_MN_QUERY_REMOVE_DEVICE). ErrNotAccepted when somebody
// refuses; then everybody who was asked has been told that it is off. After
// consent nobody new is bound until Remove, Stop or CancelRemove.
func (c *Core) QueryRemove(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evQuery, adapter: name, why: why})
}

// CancelRemove says that an announced removal is off (IRP_MN_CANCEL_REMOVE_DEVICE).
func (c *Core) CancelRemove(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evCancelQuery, adapter: name, why: why})
}

// RemoveAfterQuery removes an adapter if nobody minds, or with force anyway. One
// that is on its way down already has nobody to ask.
func (c *Core) RemoveAfterQuery(ctx context.Context, name, why string, force bool) error {
	err := c.QueryRemove(ctx, name, why)
	if err != nil && !errors.Is(err, ErrInvalidState) && !(force && errors.Is(err, ErrNotAccepted)) {
		return err
	}
	return c.Remove(ctx, name, why)
}

// InhibitBinds unbinds everybody from an adapter, and keeps them off until
// AllowBinds.
func (c *Core) InhibitBinds(ctx context.Context, name, why string) error {
	return c.operate(ctx, event{kind: evInhibit, adapter: name, why: why})
}

// AllowBinds ends InhibitBinds.
func (c *Core) AllowBinds(name string) {
	c.post(post{ev: event{kind: evAllow, adapter: name}})
}

// Settle returns when there is nothing left to do for an adapter: everybody who
// wants to be bound to it is, or it is down. What the core was told before the
// call is done.
func (c *Core) Settle(ctx context.Context, name string) error {
	return c.operate(ctx, event{kind: evSettle, adapter: name})
}

// --- Filters -----------------------------------------------------------------

// InsertFilter puts a module into the chain of an adapter, at position index
// from the miniport up; a negative one, or one beyond the end, means the top.
// Bound protocols are paused meanwhile, and unbound only for a mandatory module.
// When the module will not attach or restart it is taken out again, and its
// error returned.
func (c *Core) InsertFilter(ctx context.Context, adapter string, spec FilterSpec, index int, why string) error {
	if spec.Name == "" || spec.Filter == nil {
		return fmt.Errorf("adapter %s: filter %q: %w: it needs a name and an implementation", adapter, spec.Name, ErrBadCharacteristics)
	}
	return c.operateWith(ctx, event{kind: evFilterAdded, adapter: adapter, filter: spec.Name, why: why}, func() error {
		a, s := c.m.adapter(adapter), c.slots[adapter]
		switch {
		case a == nil:
			return fmt.Errorf("adapter %s: %w", adapter, ErrAdapterNotFound)
		case a.module(spec.Name) != nil:
			return fmt.Errorf("adapter %s: filter %s: %w", adapter, spec.Name, ErrExists)
		case a.stuck || a.state == StateShutdown || a.sleeping() || a.goal == goalDown && a.forget:
			return fmt.Errorf("adapter %s: filter %s: insert: %w: it is %s", adapter, spec.Name, ErrInvalidState, a.condition())
		}
		if index < 0 || index > len(a.filters) {
			index = len(a.filters)
		}
		_, hears := spec.Filter.(EventFilter)
		s.update(func() {
			chain := slices.Insert(slices.Clone(s.modules()), index, &filterModule{slot: s, name: spec.Name, filter: spec.Filter})
			s.filters.Store(&chain)
		})
		a.filters = slices.Insert(slices.Clone(a.filters), index, &mFilter{name: spec.Name, mandatory: spec.Mandatory, hears: hears})
		return nil
	})
}

// RemoveFilter takes a module out of the chain of an adapter.
func (c *Core) RemoveFilter(ctx context.Context, adapter, filter, why string) error {
	return c.operate(ctx, event{kind: evFilterLeaves, adapter: adapter, filter: filter, why: why})
}

// MoveFilter gives a module another place in the chain, counted from the
// miniport up without the module itself.
func (c *Core) MoveFilter(ctx context.Context, adapter, filter string, index int, why string) error {
	return c.operate(ctx, event{kind: evFilterMoved, adapter: adapter, filter: filter, place: index, why: why})
}

// --- Protocols ---------------------------------------------------------------

// RemoveProtocol unbinds a protocol from everything, inside the call, and
// forgets it (NdisDeregisterProtocolDriver).
func (c *Core) RemoveProtocol(ctx context.Context, name string) error {
	return c.operateWith(ctx, event{kind: evLeave, protocol: name}, func() error {
		p := c.m.protocol(name)
		if p == nil {
			return fmt.Errorf("protocol %s: %w", name, ErrNotFound)
		}
		p.leaving = true
		return nil
	})
}

// SetTargets says anew what a protocol is to be bound to, in order of
// preference. It returns when the protocol is unbound from what is not on the
// list; what is new there is bound as soon as it runs. The protocol is told
// (EventBindList).
func (c *Core) SetTargets(ctx context.Context, name string, targets []string) error {
	return c.operateWith(ctx, event{kind: evLeave, protocol: name}, func() error {
		p := c.m.protocol(name)
		if p == nil || p.leaving {
			return fmt.Errorf("protocol %s: %w", name, ErrNotFound)
		}
		p.targets, p.complete = slices.Clone(targets), false
		return nil
	})
}

// ReenumerateBindings offers a protocol again what it is not bound to, although
// it was asked for (NdisReEnumerateProtocolBindings).
func (c *Core) ReenumerateBindings(ctx context.Context, protocol string) error {
	return c.operate(ctx, event{kind: evReenumerate, protocol: protocol})
}

// RequestUnbind asks the core to end this binding (NdisUnbindAdapter): Unbind
// follows, on the control side, and the adapter is not offered again before
// Core.ReenumerateBindings. Any goroutine, workers too.
func (b *Binding) RequestUnbind() {
	b.slot.raise(event{kind: evUnbind, protocol: b.protocol.name, target: b.target}, b.stale.Load)
}

// --- What an adapter may ask for ------------------------------------------------

// InhibitBinds implements AdapterHandle.
func (s *slot) InhibitBinds(ctx context.Context, why string) error {
	if err := s.mayRaise("inhibit binds"); err != nil {
		return err
	}
	return s.core.InhibitBinds(ctx, s.name, why)
}

// AllowBinds implements AdapterHandle.
func (s *slot) AllowBinds() { s.raise(event{kind: evAllow}, nil) }

// RequirePause implements AdapterHandle.
func (s *slot) RequirePause(ctx context.Context, why string) error {
	if err := s.mayRaise("require pause"); err != nil {
		return err
	}
	return s.core.operate(ctx, event{kind: evHold, adapter: s.name, why: why})
}

// AllowStart implements AdapterHandle.
func (s *slot) AllowStart() { s.raise(event{kind: evRelease}, nil) }

// raise posts an event about s that nobody waits for. From a handle that is stale
// when its turn comes it means nothing: another adapter may have that name now.
func (s *slot) raise(ev event, stale func() bool) {
	ev.adapter = s.name
	s.core.post(post{fn: func() {
		if s.core.slots[s.name] == s && (stale == nil || !stale()) {
			s.core.step(ev)
		}
	}})
}

// mayRaise refuses an event that a miniport raises while a request is with it:
// those above, who would be waited for, may wait for the request (P-19).
func (s *slot) mayRaise(what string) error {
	if s.oid.Load() != nil || s.alive.Load() != aliveYes {
		return fmt.Errorf("adapter %s: %s: %w: an OID request is with it, or it is not initialised", s.name, what, ErrInvalidState)
	}
	return nil
}
