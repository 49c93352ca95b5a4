package ndiscore

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"
)

// Protocol is an upper user of adapters: the router, a bridge's lower edge, a
// prober (a protocol driver). The core serialises Bind, Unbind and Event per
// binding; Receive, Status and SendComplete come on the packet path, several at
// once, and must not block.
type Protocol interface {
	// Bind offers an adapter (ProtocolBindAdapterEx). On success the binding is
	// Paused: it may be asked about its adapter, not sent on. An error leaves
	// the adapter unbound.
	Bind(ctx context.Context, b *Binding) error
	// Unbind ends it (ProtocolUnbindAdapterEx), always from Paused. When it
	// returns the protocol uses b no more. It cannot fail.
	Unbind(ctx context.Context, b *Binding)
	// Event tells what happens to a binding, or with a nil binding to all of
	// the protocol (ProtocolNetPnPEvent). After EventPause returns the protocol
	// starts no sends and holds no received batch.
	Event(ctx context.Context, b *Binding, ev NetEvent) error
	// Receive hands over received frames (ProtocolReceiveNetBufferLists). A
	// borrowed batch is lent for the call; any other must be given back with
	// b.Return, exactly once. For each frame the protocol says what became of
	// it, before Receive returns: Frame.Deliver, Forward or Drop. Silence counts
	// as DropNoReceiver, or as delivered if it has not returned the batch.
	Receive(b *Binding, batch *Batch)
	// SendComplete gives back a batch that was sent and not borrowed.
	SendComplete(b *Binding, batch *Batch)
	// Status tells of a status indication from below (ProtocolStatusEx).
	Status(b *Binding, s Status)
}

// NetEvent is a notice to a protocol (NET_PNP_EVENT).
type NetEvent uint8

// The events. A protocol returns nil for one that it does not know; only
// EventQueryRemoveDevice may be refused.
const (
	EventPause              NetEvent = iota + 1 // stop sending, return what is held
	EventRestart                                // data may flow; attributes may be others
	EventBindsComplete                          // no binding: every adapter present was offered
	EventBindList                               // no binding: the list of targets is another one
	EventReconfigure                            // the stack below the binding was changed: a filter came or went
	EventQueryRemoveDevice                      // may the adapter be removed or stopped? An error is a veto
	EventCancelRemoveDevice                     // … it stays after all; also told to who refused
	EventQueryPower                             // it is about to be suspended
	EventSetPowerD3                             // it is being suspended: start no I/O, wait for none
	EventSetPowerD0                             // it is awake: data may flow
)

var netEventNames = [...]string{
	EventPause: "Pause", EventRestart: "Restart", EventBindsComplete: "BindsComplete", EventBindList: "BindList",
	EventReconfigure: "Reconfigure", EventQueryRemoveDevice: "QueryRemoveDevice", EventCancelRemoveDevice: "CancelRemoveDevice",
	EventQueryPower: "QueryPower", EventSetPowerD3: "SetPower(D3)", EventSetPowerD0: "SetPower(D0)",
}

// String is the event as traces name it.
func (e NetEvent) String() string {
	if e > 0 && int(e) < len(netEventNames) {
		return netEventNames[e]
	}
	return "invalid"
}

// ProtocolSpec is one protocol driver and where it wants to be bound.
type ProtocolSpec struct {
	Name     string
	Protocol Protocol
	// Targets are the adapters, bundles or bridges to bind to, in order of
	// preference.
	Targets []string
}

// Binding is one protocol attached to one adapter. Its states are those of
// BindingState; the core moves it.
type Binding struct {
	core     *Core
	slot     *slot
	protocol *protocol
	target   string

	open     atomic.Bool           // receives may be delivered: from Bind's success to Unbind
	running  atomic.Bool           // sends may be passed down: from EventRestart to EventPause
	stale    atomic.Bool           // Unbind has returned, or Bind has failed
	filter   atomic.Uint32         // PacketFilter
	groups   atomic.Pointer[[]MAC] // multicast list; never changed in place
	networks networkNews           // what it knows of the slot's
	context  any                   // the protocol's own; set during Bind only
}

// Adapter is the name of the adapter bound to.
func (b *Binding) Adapter() string { return b.slot.name }

// Target is the name under which the protocol asked for it: the adapter's, or
// that of an ndis5 bundle whose primary it is.
func (b *Binding) Target() string { return b.target }

// Attributes is what the adapter states of itself, with its link as last
// indicated; of an ndis5 bundle with BalanceHash, the link is up for as long as
// any member's is.
func (b *Binding) Attributes() Attributes {
	a := b.slot.attributes()
	if sh := b.slot.path.Load().share; sh != nil && sh.hash {
		a.Link = sh.link()
	}
	return a
}

// SetContext keeps the protocol's own data with the binding; only during Bind.
func (b *Binding) SetContext(v any) { b.context = v }

// Context is what SetContext kept.
func (b *Binding) Context() any { return b.context }

// Usable reports whether a Send would reach the adapter now.
func (b *Binding) Usable() bool {
	if !b.running.Load() {
		return false
	}
	p := b.slot.path.Load()
	return p.txClosed == DropNone
}

// Send passes batch down to the adapter (NdisSendNetBufferLists). batch.Worker
// must be the worker on whose goroutine the caller runs. A borrowed batch is
// the caller's again when Send returns; any other when SendComplete brings it
// back, which may be before Send returns. batch.Status tells of each frame.
func (b *Binding) Send(batch *Batch) {
	batch.origin = b
	w := batch.Worker
	w.enter(b.slot) // first, so that a pause waits for whoever it still lets through
	if b.running.Load() {
		b.slot.send(w, batch)
	} else {
		why := b.slot.path.Load().txClosed // the adapter's own reason comes first
		b.slot.reject(w, batch, cmp.Or(why, DropPaused))
	}
	w.leave()
}

// Return gives back a received batch that was not borrowed
// (NdisReturnNetBufferLists).
func (b *Binding) Return(batch *Batch) { batch.giveBack() }

func (b *Binding) invalid(what string) error {
	return fmt.Errorf("adapter %s: binding of %s: %s: %w: it is unbound", b.slot.name, b.protocol.name, what, ErrInvalidHandle)
}
