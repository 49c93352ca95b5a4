// Package bridge is a learning switch (IEEE 802.1D), built as an NDIS MUX
// intermediate driver: many adapters below, one virtual adapter above.
//
//	  protocols above: router, prober …
//	     ▲ receive, status   │ send
//	┌────┴───────────────────▼────┐
//	│ virtual adapter "lan"       │  ndiscore.Adapter
//	│     forwarding database     │
//	│ lower edge                  │  ndiscore.Protocol
//	└─┬────────┬────────┬─────────┘
//	  ▼        ▼        ▼
//	tap0     tap1      wan (a team)
//
// One *Bridge is both edges. Hand it to the core as the virtual adapter of its
// name and as the protocol that Spec describes.
//
// Rules:
//
//   - Run to completion: the worker that brought a batch carries it to every
//     port. Per frame there is no lock, clock, log or allocation; addresses are
//     looked up without locks, and only an address that is new, or has moved,
//     takes the writer's mutex.
//   - A frame never goes back out of the port it came in by, and frames for
//     01:80:c2:00:00:00…0f go nowhere (IEEE 802.1Q 8.6.3).
//   - Frames are never changed: a flooded frame is the same frame on every port.
//   - Frames of one flow stay in order: each port's frames are collected in
//     order and sent as one batch.
//   - A received frame that was handed to a port counts as forwarded; if that
//     port then refuses it, the loss is counted there, once.
//   - The database is bounded. An address that does not fit is not learned, so
//     frames to it are flooded; this is counted, and told once per episode.
//   - When a port reports that the network behind it may be another one
//     (NetworkChange: its team failed over), the bridge announces every address
//     learned on other ports there, by reverse-ARP requests, since it knows no IP
//     addresses, and passes the notice up, so that the router announces its own.
//
// One goroutine per bridge, the keeper, started by Initialize and ended by
// Halt, moves the coarse clock, ages the database and sends announcements. It
// blocks on its timer and on requests only.
//
// A frame whose source is the bridge's own address has gone round a loop, or is
// forged: it is dropped (reflection) and never learned.
package bridge
