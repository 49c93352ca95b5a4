// Package ndiscore is the contract between links that may fail and those who
// use them, and the core that keeps it: NDIS's library in Go dress. It owns
// every adapter, filter, protocol, binding and bundle, and orders every call
// between them; they never call each other. It knows no device, no kernel and
// no network protocol above Ethernet, and imports the standard library alone.
//
//	protocols     router (stack)     bridge's lower edge     prober
//	                 ▲ Bind Unbind Event Receive Status    │ Send Request
//	bindings         │                                     ▼
//	virtual       team "wan"  bridge "lan"        each an Adapter above, a Protocol below
//	filters       an ordered list per adapter; an empty list costs nothing
//	adapters      tap   afpacket   …              miniports/*: Initialize Restart Pause Halt Send
//	devices       TAP, kernel interface, …        LowerDevice: StartDevice RemoveDevice
//
// Words. rx is into the switch, tx out of it, everywhere. An Adapter is one
// device run by a Driver (a miniport); a Binding is one Protocol on one
// adapter; a Frame is one Ethernet frame and a Batch up to BatchFrames of them
// that travel together. The NDIS name of each entry stands in its comment.
//
// # The three orders
//
// Start goes up: device, adapter, filters from the miniport up, bindings in
// the order of their protocols; then restart upward: adapter, filters from the
// miniport up, bindings. Pause goes down: bindings, last bound first, filters
// from the top, adapter. Teardown goes down: pause; then unbind all, detach
// filters from the top, halt, device. Nothing skips a step that the state calls
// for: a removal in the middle of a start undoes just what was done. The golden
// traces in testdata show each order, call by call.
//
// Which call comes next is decided by the machine (machine.go), a pure function
// of events; Core performs it. A halt has one HaltAction: the first cause wins.
//
// # Two speeds
//
// What NDIS allows at DISPATCH_LEVEL may happen on the packet path, at once, and
// is an atomic change: AdapterHandle.Remove, SurpriseRemove and IndicateStatus
// close an adapter to frames, or move a team to its next member, before they
// return. What needs PASSIVE_LEVEL (pause, unbind, halt, announcements) follows
// on the control side, in order. News travels from the packet path to the
// control side as sticky marks and a wake-up that never blocks, so none is lost.
//
// # Who may call what, from where
//
//	on a worker (packet path):  IndicateReceive, Binding.Send, Return, SendComplete, IndicateStatus,
//	                            Remove, SurpriseRemove, Dropped. None blocks. None calls back into its caller,
//	                            except that Send may complete a kept batch before it returns.
//	on a call from the core:    whatever the call's comment allows; SetPacketFilter and Request too
//	on any other goroutine:     Core's methods, Request, IndicateStatus, Remove, SurpriseRemove
//	never:                      Core's operations from inside a callback that the core waits for; Pause or
//	                            Halt work on a worker
//
// The core serialises Initialize, Restart, Pause, Halt, Bind, Unbind, Event and
// the filters' life cycle for one adapter; adapters among each other run side by
// side. Receive, Send, Status, FilterSend and FilterReceive come from many
// workers at once. A driver call that does not return within the limit
// quarantines its adapter; everybody else goes on.
//
// # Ownership
//
// Ownership is per batch. A Borrowed batch is lent for the call that passes it,
// both ways: finish or copy before returning. That is the common path, and
// costs no count. Any other batch is kept: by Send until SendComplete, by
// Receive until Binding.Return, each exactly once; it lives in collected memory
// only, so that one which never comes back can be declared orphaned after a
// limit. A frame's Segs are read-only to all; its Head belongs to whoever holds
// it alone. A flooded frame is held by many: who rewrites, copies the head first.
//
// Each received frame ends in exactly one fate, counted where it came in:
// forwarded, delivered or dropped for one DropReason. The fate travels in the
// frame, so the sums are right by construction.
//
// # Quiescence
//
// Every goroutine that carries frames is a Worker, whose epoch is odd while it
// is inside the core. To take something out of the data path the core replaces
// the immutable path of the adapter, then waits until every worker that was
// inside has moved on (Core.grace). Pause then joins the device's own goroutines
// and waits for kept batches. No count is shared between workers.
//
// A worker also notes in which adapters' data paths it is, so that one who never
// comes back costs those adapters and nobody else: after a while (the call limit
// over 20) the others no longer wait for it.
//
// # Locks, in the order in which they may be taken
//
//  1. slot.oids        one Request at a time to an adapter
//  2. protocols' and adapters' own control locks
//  3. slot.publish     replacing an adapter's path; an ndis5 secondary's before its primary's
//  4. an adapter's tx queue lock: held for one batch's system calls
//  5. leaves: Core.inbox, Core.workers, team.moves, eventLog
//
// None is held across IndicateReceive or Send, and none is taken per frame.
package ndiscore
