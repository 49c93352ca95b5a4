// Package fault breaks links on purpose: the filter that spoils frames, the
// interposer that makes a device fail, and the Injector, which lends both out
// as leases.
//
//	     protocols
//	         │
//	┌────────┴────────┐   Filter: drop, corrupt, duplicate, rate, delay
//	│ filter "inject" │   there only while a lease needs it
//	└────────┬────────┘
//	┌────────┴────────┐   interposer: link-down, hang, fail-init, reset-storm, surprise
//	│     device      │   always there: one call more for each batch
//	│ ┌─────────────┐ │
//	│ │   adapter   │ │   tap, afpacket, …
//	└─┴─────────────┴─┘
//
// A fault is a lease: it has an id, an owner, a seed and an end, and is counted
// for itself. It ends by the clock, by Clear, with its owner, or with the adapter
// that it is on; then everything is as it was. What there is to inject, with
// every parameter, is the table that Kinds returns; the command line, the API
// and the documents are made from it.
//
// # Chance
//
// Each fault has its own source of chance, made from its seed, one for each
// direction. The same seed and the same frames in the same order give the same
// decisions. (Frames of several receive queues reach a fault in an order that
// the machine's scheduler makes.)
//
// # Frames
//
// Faults are passed in the order in which they were injected, in both
// directions; rx is into the switch. Frames stay in their batches as far as the
// fault allows. What is lost has its own DropReason. A frame that is lost on the
// way out counts as sent for its sender, as it would on a wire.
//
// A spoilt frame must be seen to be spoilt. A sum that the sender left to the
// device is therefore completed before bits are flipped, and a mark that the sum
// was found good is taken away; no sum is ever made anew. A super-frame is
// checked by nobody before it is cut, so one segment is cut off and spoilt as a
// packet of its own. The frame itself is changed only while it is passed on, and
// is afterwards as it was: others may be about to send it too.
//
// A delayed frame is copied into memory set aside when the fault begins; the
// original is done with. The copy goes on as a frame of the filter's own, on a
// worker of the filter's own, and its completion ends there.
//
// # Goroutines and locks
//
// Each delay has one goroutine, from the filter's Restart (or its own beginning)
// to Pause (or its end). Locks, in the order in which they may be taken: an
// adapter's turn (one injection or end at a time), Filter.mu, Injector.mu,
// device.mu, and as leaves each fault's own, taken once for each batch. Turn and
// Filter.mu belong to the control side; no other is held across a call.
package fault
