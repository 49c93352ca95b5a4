package ndiscore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The calls into adapters, filters and protocols: what each action of the machine
// comes to.

// call performs one call into a driver, bounded in time.
func (c *Core) call(a action) {
	s := c.slots[a.adapter]
	p := c.protos[a.protocol]
	if cancel := c.awaiting[a.adapter]; cancel != nil {
		cancel() // the operator was quicker than the device
		delete(c.awaiting, a.adapter)
	}
	done := make(chan event, 1)
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), insideCall{}, true), c.callLimit/2)
	c.calls.Go(func() { // "call": ends when the driver returns
		ev := event{kind: evDone, adapter: a.adapter, action: &a}
		if a.kind == actPoll {
			ev.poll = s.poll()
		} else {
			ev.err = c.callDriver(ctx, s, p, a)
		}
		done <- ev
	})
	c.calls.Go(func() { // "call watch": ends with the call, or gives up on it
		defer cancel()
		limit := time.NewTimer(c.callLimit) // the machine's time may be a manual clock; a hung driver is real
		defer limit.Stop()
		select {
		case ev := <-done:
			c.post(post{ev: ev})
		case <-c.ended: // nobody needs it any more
		case <-limit.C:
			c.post(post{ev: event{kind: evDone, adapter: a.adapter, action: &a,
				err: fmt.Errorf("adapter %s: %s: %w after %s", a.adapter, a, ErrQuarantined, c.callLimit)}})
		}
	})
}

func (c *Core) callDriver(ctx context.Context, s *slot, p *protocol, a action) error {
	switch a.kind {
	case actStartDevice:
		d, _ := optional[LowerDevice](s.adapter)
		return d.StartDevice(ctx)
	case actRemoveDevice:
		d, _ := optional[LowerDevice](s.adapter)
		d.RemoveDevice(ctx)
	case actInitialize:
		return s.initialize(ctx)
	case actHalt:
		s.close(DropPaused)
		s.alive.Store(aliveHalting)
		select { // H-2: not while an OID is in progress; none begins after this
		case s.oids <- struct{}{}:
			<-s.oids
		case <-ctx.Done():
			return fmt.Errorf("adapter %s: halt: an OID request does not return: %w", s.name, ErrQuarantined)
		}
		if s.out.quiet(ctx, false) != nil { // nor while sends are cancelled
			return fmt.Errorf("adapter %s: halt: a call into it does not return: %w", s.name, ErrQuarantined)
		}
		s.adapter.Halt(ctx, a.halt)
		s.alive.Store(aliveNo)
		if a.halt == HaltPoweredDown {
			s.update(func() { s.state.asleep = true })
		}
	case actRestart:
		s.update(func() { s.state.receive = true })
		if err := s.adapter.Restart(ctx); err != nil {
			s.close(DropPaused)
			return fmt.Errorf("adapter %s: restart: %w", s.name, err)
		}
		if err := s.crowdedError(); err != nil {
			s.close(DropPaused)
			s.adapter.Pause(ctx)
			return fmt.Errorf("adapter %s: restart: %w", s.name, err)
		}
		s.update(func() { s.state.send = s.state.receive }) // unless it was closed again meanwhile
	case actPause:
		s.close(DropPaused)
		if err := c.grace(ctx, s); err != nil {
			return fmt.Errorf("adapter %s: pause: %w", s.name, err)
		}
		s.adapter.Pause(ctx)
		drain, cancel := context.WithTimeout(context.Background(), min(drainLimit, c.callLimit*2/5)) // with a Pause that used all of its time, still within the limit
		defer cancel()
		if s.out.quiet(drain, true) != nil {
			if n := s.out.writeOff(); n > 0 {
				c.Report(Event{What: "adapter.orphaned", Adapter: s.name, Why: fmt.Sprintf("%d batches did not come back within the limit", n)})
			}
			if err := s.out.quiet(ctx, false); err != nil {
				return fmt.Errorf("adapter %s: pause: a batch's return does not end: %w", s.name, ErrQuarantined)
			}
		}
	case actAttach:
		m := s.module(a.filter)
		if err := m.filter.Attach(ctx, m); err != nil {
			return fmt.Errorf("adapter %s: filter %s: attach: %w", s.name, m.name, err)
		}
		m.attached.Store(true)
	case actRestartFilter:
		m := s.module(a.filter)
		if err := m.filter.Restart(ctx); err != nil {
			return fmt.Errorf("adapter %s: filter %s: restart: %w", s.name, m.name, err)
		}
		s.update(func() { m.running = true })
	case actPauseFilter:
		m := s.module(a.filter)
		s.update(func() { m.running = false })
		if err := c.grace(ctx, s); err != nil {
			return fmt.Errorf("adapter %s: filter %s: pause: %w", s.name, m.name, err)
		}
		m.filter.Pause(ctx)
	case actDetach:
		m := s.module(a.filter)
		m.attached.Store(false)
		if s.out.quiet(ctx, false) != nil {
			return fmt.Errorf("adapter %s: filter %s: detach: a status indication does not end: %w", s.name, m.name, ErrQuarantined)
		}
		m.filter.Detach(ctx)
	case actBind:
		return c.bind(ctx, s, p, a.target)
	case actUnbind:
		c.unbind(ctx, s, p, a.target)
	case actRestartBinding:
		b := s.binding(p, a.target)
		b.open.Store(true)
		c.updateWithSecondaries(s, func() {})
		b.running.Store(true)
		if err := p.impl.Event(ctx, b, EventRestart); err != nil {
			return err
		}
		s.catchUp(b)
	case actPauseBinding:
		b := s.binding(p, a.target)
		// Nothing more is handed to it first, so that it can say that it
		// holds nothing.
		b.open.Store(false)
		c.updateWithSecondaries(s, func() {})
		if err := c.grace(ctx, s); err != nil {
			return fmt.Errorf("adapter %s: pause of %s: %w", s.name, p.name, err)
		}
		if s.out.quiet(ctx, false) != nil {
			return fmt.Errorf("adapter %s: pause of %s: a status indication does not end: %w", s.name, p.name, ErrQuarantined)
		}
		if err := p.impl.Event(ctx, b, EventPause); err != nil {
			s.fault(fmt.Sprintf("%s refuses to pause, which it may not: %v", p.name, err))
		}
		b.running.Store(false)
		if err := c.grace(ctx, s); err != nil {
			return fmt.Errorf("adapter %s: pause of %s: %w", s.name, p.name, err)
		}
	case actBindsComplete:
		return p.impl.Event(ctx, nil, EventBindsComplete)
	case actBindList:
		return p.impl.Event(ctx, nil, EventBindList)
	case actPnP:
		d, _ := optional[DevicePnPNotifier](s.adapter)
		d.DevicePnP(DevicePnPSurpriseRemoved)
	case actNotify:
		return s.notify(ctx, a.notice)
	case actSetPower:
		return s.setPower(ctx, a.power)
	case actRestore:
		return s.restore(ctx)
	case actReset:
		return s.reset(ctx, a.why)
	}
	return nil
}

// notify tells filters, from the miniport up, and then bindings. A query ends at
// the first who refuses: everybody who was asked is told that it is off.
func (s *slot) notify(ctx context.Context, ev NetEvent) error {
	tell := s.audience(ctx)
	for i, t := range tell {
		err := t.event(ev)
		if err == nil {
			continue
		}
		err = fmt.Errorf("adapter %s: %s refuses %s: %w: %w", s.name, t.name, ev, ErrNotAccepted, err)
		if ev != EventQueryRemoveDevice {
			s.fault(err.Error() + ", which it may not")
			continue
		}
		for _, t := range tell[:i+1] {
			_ = t.event(EventCancelRemoveDevice) // it has to agree
		}
		return err
	}
	return nil
}

// listener is somebody above an adapter who hears of events.
type listener struct {
	name  string
	event func(NetEvent) error
}

func (s *slot) audience(ctx context.Context) (ls []listener) {
	for _, m := range s.modules() {
		if f, ok := m.filter.(EventFilter); ok && m.attached.Load() {
			ls = append(ls, listener{"filter " + m.name, func(ev NetEvent) error { return f.FilterEvent(ctx, ev) }})
		}
	}
	s.publish.Lock()
	defer s.publish.Unlock()
	for _, b := range s.bindings {
		ls = append(ls, listener{b.protocol.name, func(ev NetEvent) error { return b.protocol.impl.Event(ctx, b, ev) }})
	}
	return ls
}

// setPower puts a power-aware device to sleep, or wakes it. Nothing passes while
// it sleeps.
func (s *slot) setPower(ctx context.Context, p PowerState) error {
	if p == PowerD3 {
		s.update(func() { s.state.asleep = true })
		if err := s.core.grace(ctx, s); err != nil {
			return fmt.Errorf("adapter %s: suspend: %w", s.name, err)
		}
	}
	err := s.ask(ctx, true, func() *OIDRequest { return &OIDRequest{ID: OIDPnPSetPower, Kind: OIDSet, Data: p} })
	if p == PowerD0 && err == nil || p == PowerD3 && err != nil {
		s.update(func() { s.state.asleep = false })
		s.sendUnsent(ctx)
	}
	return err
}

// reset has the device set up anew, with those above warned before and after.
func (s *slot) reset(ctx context.Context, why string) error {
	d, _ := optional[Resetter](s.adapter)
	s.wantsReset.Store(nil)
	s.update(func() { s.state.resetting = true })
	s.indicate(ResetStart{Why: why})
	addressing, err := d.Reset(ctx)
	s.resets.Add(1)
	if s.abortOID(ErrRequestAborted) {
		s.fault("its reset left an OID request that it should have completed") // Z-4
	}
	if addressing && (err == nil || errors.Is(err, ErrSoftErrors)) {
		s.unsent.Store(false)
		if e := s.restore(ctx); e != nil {
			err = errors.Join(fmt.Errorf("%w: settings", ErrSoftErrors), e)
		}
	}
	s.update(func() { s.state.resetting = false })
	s.sendUnsent(ctx)
	s.indicate(ResetEnd{Err: err})
	if err != nil {
		return fmt.Errorf("adapter %s: reset: %w", s.name, err)
	}
	return nil
}

// poll looks whether the device is stuck.
func (s *slot) poll() (r pollResult) {
	if h, ok := optional[HangChecker](s.adapter); ok {
		r.hung = h.CheckForHang()
	}
	if o := s.oid.Load(); o != nil {
		r.oid = o.seq
	}
	r.sends, r.done = s.out.sends(), s.out.progress()
	return r
}

func (s *slot) initialize(ctx context.Context) error {
	s.removing.Store(nil)
	s.wantsReset.Store(nil)
	s.gone.Store(nil)
	s.crowded.Store(false)
	s.link.Store(nil)
	s.linkNews.Store(false)
	s.alive.Store(aliveInitializing)
	began := s.core.clock.Now()
	attrs, err := s.adapter.Initialize(ctx, s)
	s.initTime.Store(int64(s.core.clock.Now().Sub(began)))
	if err == nil && (attrs.MAC.IsZero() || attrs.MAC.IsGroup() || attrs.MTU < minAttributesMTU || attrs.MTU > maxAttributesMTU) {
		// S-5: without its general attributes nothing can be bound to it.
		s.adapter.Halt(ctx, HaltInitFailed)
		err = fmt.Errorf("%w: attributes: MAC %s, MTU %d", ErrInvalidData, attrs.MAC, attrs.MTU)
	}
	if err == nil {
		if err = s.crowdedError(); err != nil {
			s.adapter.Halt(ctx, HaltInitFailed)
		}
	}
	if err != nil {
		s.alive.Store(aliveNo)
		return fmt.Errorf("adapter %s: initialize: %w", s.name, err)
	}
	s.update(func() { s.attrs, s.permanent = attrs, attrs.MAC; s.state = pathState{closed: DropPaused} })
	// A status that came during Initialize is newer than the attributes.
	s.link.CompareAndSwap(nil, &attrs.Link)
	s.alive.Store(aliveYes)
	return nil
}

// Bounds of an MTU that an adapter may state.
const (
	minAttributesMTU = 68 // RFC 791
	maxAttributesMTU = 65535
)

// crowdedError tells of a worker that the adapter asked for and there was not.
func (s *slot) crowdedError() error {
	if !s.crowded.Swap(false) {
		return nil
	}
	return fmt.Errorf("%w: it needs a worker for a queue, and all %d are taken", ErrResources, MaxWorkers)
}

func (s *slot) binding(p *protocol, target string) *Binding {
	s.publish.Lock()
	defer s.publish.Unlock()
	for _, b := range s.bindings {
		if b.protocol == p && b.target == target {
			return b
		}
	}
	return nil
}

func (c *Core) bind(ctx context.Context, s *slot, p *protocol, target string) error {
	b := &Binding{core: c, slot: s, protocol: p, target: target}
	b.learn()
	s.publish.Lock()
	s.bindings = append(s.bindings, b)
	s.publish.Unlock()
	if err := p.impl.Bind(ctx, b); err != nil {
		s.dropBinding(ctx, b)
		return fmt.Errorf("adapter %s: bind %s: %w", s.name, p.name, err)
	}
	return nil
}

func (c *Core) unbind(ctx context.Context, s *slot, p *protocol, target string) {
	b := s.binding(p, target)
	p.impl.Unbind(ctx, b)
	s.dropBinding(ctx, b)
}

func (s *slot) dropBinding(ctx context.Context, b *Binding) {
	b.stale.Store(true)
	s.update(func() {
		s.bindings = slices.DeleteFunc(slices.Clone(s.bindings), func(x *Binding) bool { return x == b })
	})
	if s.gone.Load() == nil && !s.stuck.Load() {
		// The union of packet filters may have shrunk. An adapter that will
		// not have it keeps delivering more than is wanted; the core filters.
		_ = s.updateFilter(ctx, false)
		_ = s.updateMulticast(ctx, false)
	}
}
