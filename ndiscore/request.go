package ndiscore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// oidCall is a request that an adapter is working on.
type oidCall struct {
	seq    uint64
	cancel context.CancelCauseFunc
}

// request serves one OID: from what the core knows, or by the adapter, one at a
// time (O-1). It returns when the answer is there, or the request has been given
// up, whatever the adapter then still does.
func (s *slot) request(ctx context.Context, req *OIDRequest) error {
	row := oidRows[req.ID]
	if err := s.mayRequest(false); err != nil {
		return s.oidError(req, err)
	}
	if row != nil {
		switch {
		case req.Kind == OIDQuery && req.ID == OIDGenSupportedList:
			req.Data = SupportedOIDs()
			return nil
		case req.Kind == OIDQuery && row.answer != nil:
			req.Data = row.answer(s)
			return nil
		case req.Kind == OIDQuery && !row.query, req.Kind == OIDSet && !row.set:
			return s.oidError(req, ErrNotSupported)
		case req.ID == OIDGenCurrentLookahead: // whole frames are indicated, always
			if _, ok := req.Data.(uint32); !ok {
				return s.oidError(req, fmt.Errorf("%w: %T, and it takes a uint32", ErrInvalidData, req.Data))
			}
			return nil
		case req.ID == OIDGenInterruptModeration: // there is none to set
			return s.oidError(req, ErrInvalidData)
		}
	}
	err := s.ask(ctx, false, func() *OIDRequest { return req })
	if row != nil && errors.Is(err, ErrInvalidOID) { // O-3: it is known, and not there
		return s.oidError(req, ErrNotSupported)
	}
	return err
}

// mayRequest says why no request may go to the adapter now; own are those of the
// core itself.
func (s *slot) mayRequest(own bool) error {
	s.publish.Lock()
	asleep, resetting := s.state.asleep, s.state.resetting
	s.publish.Unlock()
	switch {
	case s.stuck.Load():
		return ErrQuarantined
	case s.gone.Load() != nil:
		return ErrNotAccepted
	case asleep && !own:
		return ErrLowPower
	case s.alive.Load() != aliveYes:
		return ErrInvalidState
	case resetting && !own:
		return ErrResetInProgress
	}
	return nil
}

func (s *slot) oidError(req *OIDRequest, err error) error {
	return fmt.Errorf("adapter %s: OID %s: %w", s.name, req.ID, err)
}

// ask passes a request to the adapter. What it is made of is looked up when its
// turn has come, so that of two unions the later one is the newer. own is the
// core's own, which resets and power changes do not hold up.
func (s *slot) ask(ctx context.Context, own bool, build func() *OIDRequest) error {
	select {
	case s.oids <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("adapter %s: an OID request: another one does not return: %w", s.name, ctx.Err())
	}
	req := build()
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	call := &oidCall{seq: s.oidSeq.Add(1), cancel: cancel}
	s.oid.Store(call) // first, so that who forbids requests from now on finds this one
	if err := s.mayRequest(own); err != nil {
		s.oid.Store(nil)
		<-s.oids
		return s.oidError(req, err)
	}
	if req.Timeout > 0 {
		limit := s.core.clock.AfterFunc(req.Timeout, func() { cancel(ErrRequestAborted) })
		defer limit.Stop()
	}
	answer := *req // the adapter's own, should it be given up
	done := make(chan error, 1)
	go func() { // "oid": ends when the adapter returns
		err := s.adapter.Request(work, &answer)
		s.oid.CompareAndSwap(call, nil)
		<-s.oids
		done <- err
	}()
	select {
	case err := <-done:
		if cause := context.Cause(work); err != nil && errors.Is(err, context.Canceled) && cause != nil {
			err = cause
		}
		if err != nil {
			return s.oidError(req, err)
		}
		req.Data = answer.Data
		return nil
	case <-work.Done():
		return s.oidError(req, context.Cause(work))
	}
}

// abortOID gives up the request that the adapter is working on, if there is one.
func (s *slot) abortOID(why error) bool {
	c := s.oid.Load()
	if c != nil {
		c.cancel(why)
	}
	return c != nil
}

// packetFilter is the union over the bindings.
func (s *slot) packetFilter() (union PacketFilter) {
	s.publish.Lock()
	defer s.publish.Unlock()
	for _, b := range s.bindings {
		union |= PacketFilter(b.filter.Load())
	}
	return union
}

// multicastList is the union over the bindings, in no order that matters.
func (s *slot) multicastList() (union []MAC) {
	s.publish.Lock()
	defer s.publish.Unlock()
	for _, b := range s.bindings {
		if g := b.groups.Load(); g != nil {
			for _, m := range *g {
				if !slices.Contains(union, m) {
					union = append(union, m)
				}
			}
		}
	}
	return union
}

// updateFilter gives the adapter the union of its bindings' packet filters.
func (s *slot) updateFilter(ctx context.Context, own bool) error {
	return s.ask(ctx, own, func() *OIDRequest {
		return &OIDRequest{ID: OIDGenCurrentPacketFilter, Kind: OIDSet, Data: s.packetFilter()}
	})
}

// updateMulticast gives an adapter that filters by it the union of its bindings'
// multicast lists.
func (s *slot) updateMulticast(ctx context.Context, own bool) error {
	if s.attributes().MaxMulticast == 0 {
		return nil
	}
	return s.ask(ctx, own, func() *OIDRequest {
		return &OIDRequest{ID: OID8023MulticastList, Kind: OIDSet, Data: s.multicastList()}
	})
}

// tell gives the device a union that has changed. One that is refused because it
// is being reset, or sleeps, is given to it afterwards.
func (s *slot) tell(ctx context.Context, update func(context.Context, bool) error) error {
	err := update(ctx, false)
	if errors.Is(err, ErrResetInProgress) || errors.Is(err, ErrLowPower) {
		s.unsent.Store(true)
		if s.mayRequest(false) == nil { // it has just ended, and may not have seen the mark
			s.sendUnsent(ctx)
		}
	}
	return err
}

// sendUnsent gives the device the unions that it could not be given before.
func (s *slot) sendUnsent(ctx context.Context) {
	if s.unsent.Swap(false) {
		if err := s.restore(ctx); err != nil {
			s.core.Report(Event{What: "adapter.restore-failed", Adapter: s.name, Why: err.Error()})
		}
	}
}

// restore sets what a device has forgotten.
func (s *slot) restore(ctx context.Context) error {
	return errors.Join(s.updateFilter(ctx, true), s.updateMulticast(ctx, true))
}

// SetPacketFilter says which frames this binding wants
// (OID_GEN_CURRENT_PACKET_FILTER); until then, none. The adapter gets the union
// over its bindings. Not for the packet path; legal during Bind.
func (b *Binding) SetPacketFilter(ctx context.Context, f PacketFilter) error {
	if b.stale.Load() {
		return b.invalid("set packet filter")
	}
	if f&^filterBits != 0 {
		return fmt.Errorf("adapter %s: binding of %s: packet filter %#x: %w", b.slot.name, b.protocol.name, uint32(f), ErrInvalidData)
	}
	b.filter.Store(uint32(f))
	return b.slot.tell(ctx, b.slot.updateFilter)
}

// SetMulticast says which groups this binding wants with FilterMulticast
// (OID_802_3_MULTICAST_LIST), all of them at once. The adapter gets the union
// over its bindings. ErrMulticastFull, and nothing changed, when that is longer
// than the adapter's list, or an address is not a group's.
func (b *Binding) SetMulticast(ctx context.Context, groups []MAC) error {
	if b.stale.Load() {
		return b.invalid("set multicast list")
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("adapter %s: binding of %s: multicast list: %w: %s", b.slot.name, b.protocol.name, ErrMulticastFull, fmt.Sprintf(format, args...))
	}
	for _, m := range groups {
		if !m.IsGroup() || m == Broadcast {
			return fail("%s is no group", m)
		}
	}
	list := slices.Clone(groups)
	old := b.groups.Swap(&list)
	most := cmp.Or(b.slot.attributes().MaxMulticast, maxGroups)
	if n := len(b.slot.multicastList()); n > most {
		b.groups.Store(old)
		return fail("%d groups with those of the others, and the adapter takes %d", n, most)
	}
	return b.slot.tell(ctx, b.slot.updateMulticast)
}

// maxGroups bounds the multicast lists on an adapter that does not bound them.
const maxGroups = 1024

// Request asks the adapter below for one property. What belongs to the binding
// alone, its packet filter and multicast list, is set here too. Not for the
// packet path.
func (b *Binding) Request(ctx context.Context, req *OIDRequest) error {
	if b.stale.Load() {
		return b.invalid("request")
	}
	if req.Kind == OIDSet {
		switch v := req.Data.(type) {
		case PacketFilter:
			if req.ID == OIDGenCurrentPacketFilter {
				return b.SetPacketFilter(ctx, v)
			}
		case []MAC:
			if req.ID == OID8023MulticastList {
				return b.SetMulticast(ctx, v)
			}
		}
		switch req.ID {
		case OIDPnPSetPower: // the core's alone
			return b.slot.oidError(req, ErrNotAccepted)
		case OIDGenCurrentPacketFilter, OID8023MulticastList:
			return b.slot.oidError(req, fmt.Errorf("%w: %T", ErrInvalidData, req.Data))
		}
	}
	return b.slot.request(ctx, req)
}

// QueryBytes is Request for whoever wants an answer in NDIS's layout: see
// EncodeOID.
func (b *Binding) QueryBytes(ctx context.Context, id OID, buf []byte) (written, needed int, err error) {
	req := OIDRequest{ID: id, Kind: OIDQuery}
	if err := b.Request(ctx, &req); err != nil {
		return 0, 0, err
	}
	if written, needed, err = EncodeOID(req.Data, buf); err != nil {
		err = b.slot.oidError(&req, err)
	}
	return written, needed, err
}

// CancelSend calls back the kept batches with this CancelID that are still
// queued below (NdisCancelSendNetBufferLists). Each still comes back once, by
// SendComplete. Not for the packet path.
func (b *Binding) CancelSend(id uint64) {
	s := b.slot
	s.out.begin()
	defer s.out.end()
	if b.stale.Load() || s.alive.Load() != aliveYes {
		return
	}
	for _, m := range slices.Backward(s.modules()) {
		if f, ok := m.filter.(SendCanceler); ok && m.attached.Load() {
			f.CancelSend(id)
		}
	}
	if a, ok := optional[SendCanceler](s.adapter); ok {
		a.CancelSend(id)
	}
}
