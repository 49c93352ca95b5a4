// Package bridge is a learning switch (IEEE 802.1D, VLANs of 802.1Q), built as
// an NDIS MUX intermediate driver: many adapters below, one virtual adapter
// above.
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
//     looked up without locks. Only an address that is new, or has moved, takes
//     the writer's mutex, and only an IGMP, MLD or PIM message that of its queue.
//   - A frame never goes back out of the port it came in by, and frames for
//     01:80:c2:00:00:00…0f go nowhere (IEEE 802.1Q 8.6.3).
//   - Frames are never changed: a flooded frame is the same frame on every port.
//     Where a tag has to come or go, the port gets a copy of the head and the
//     same payload behind it; the copy is made once for all ports.
//   - Frames of one flow stay in order: each port's frames are collected in
//     order and sent as one batch.
//   - A received frame that was handed to a port counts as forwarded; if that
//     port then refuses it, the loss is counted there, once. In the same way a
//     frame that lost its tag on its way up counts as delivered.
//   - The database is bounded. An address that does not fit is not learned, so
//     frames to it are flooded; this is counted, and told once per episode.
//   - When a port reports that the network behind it may be another one
//     (NetworkChange: its team failed over), the bridge announces every address
//     learned on other ports there, by reverse-ARP requests, since it knows no IP
//     addresses, and passes the notice up, so that the router announces its own.
//
// A frame whose source is the bridge's own address has gone round a loop, or is
// forged: it is dropped (reflection) and never learned.
//
// # VLANs
//
// A bridge with a VLAN of its own looks at tags (0x8100 and 0x88a8 alike); one
// without carries them as payload. Addresses are learned, and frames flooded,
// within a VLAN. The virtual adapter is an access port of the bridge's VLAN.
//
//	port    a frame without tag, or with VLAN 0   with a tag         leaves
//	access  in its VLAN                           dropped            without tag
//	trunk   in native; dropped if there is none   in trunk, or dropped   with tag; those of native without
//
// Dropped means DropVLAN. The outer tag decides; what is behind it is payload,
// but does not leave by a trunk port with its outer tag taken off: it would be in
// another VLAN there. A tag's priority bits stay while it stays. VLAN 0 is a priority and no VLAN: a
// trunk port fills the VLAN in, another takes the tag off; in front of a second
// tag it is dropped, since that one would lead into any VLAN. So is a tag on an
// access port, for the same reason.
//
// # Limits of a port
//
// MACLimit is for security: only so many stations are served, those seen first.
// Frames of others are dropped (DropMACLimit), also when the whole table is
// full. An address counts once in each VLAN, and is forgotten like any other.
//
// The storm limits bound the broadcast, the multicast and the unknown unicast
// frames that a port may bring each second, each by itself; what is above is
// dropped (DropStorm). Workers take from a bucket that the keeper fills every
// 100 ms; it holds a second's worth. Both limits are told of when they begin to
// bite, and again when they have not for 5 s, or are there no more: taken away,
// or with their port.
//
// # Multicast
//
// With snooping the bridge reads IGMPv1–3, MLDv1–2 and PIM hellos as RFC 4541
// describes, for each VLAN, IPv4 and IPv6 apart. Where somebody is known to
// listen to a group, its frames go to those ports and to the routers' only.
// Flooding is the fallback, whenever it is not certain who listens:
//
//   - no querier is heard, or it fell silent, or not everybody has had the time
//     to answer its first query;
//   - nobody is known to listen to the group; always so for 224.0.0.0/24, ff02::1,
//     groups of a node, and solicited-node groups;
//   - more groups than the table holds, frames behind a tag that the bridge does
//     not look at, and, for one membership time, messages that came too fast;
//   - on a port that came up, or whose network changed, until a query was answered.
//
// Reports and leaves go to router ports only, so that nobody keeps silent for
// having heard another; queries go everywhere. A router port is one where a
// query with an address or a PIM hello came in. Sources of IGMPv3 and MLDv2
// are not told apart. A leave by itself changes nothing: when the querier then
// asks, who does not answer is out. Messages are read by the keeper, checksums
// verified; spoilt ones are passed on and not believed. Those above always get
// all group frames. Reports and hellos that a storm limit drops are read all the
// same; queries are not, since those who listen could not answer.
//
// # Loop guard
//
// With it, once a second, each port sends a probe in each of its VLANs (at most
// 16 tagged ones a second, in turn): EtherType 0x88b5 (local experimental), to
// 03:76:73:77:6c:67, from the bridge's address, with a number that only those
// know who hear the port: they could shut it, and no other. When a probe comes back, in whatever VLAN, the two
// ports are joined outside, and the one listed later is shut; when any other
// frame with the bridge's own address comes in, the port that it came in by is.
// So a single way from one VLAN into another is shut too, although frames go
// round only when there is a second one back: the bridge cannot tell. A port
// that is shut sends and takes nothing (DropLoop) for LoopHold, and then opens
// by itself; before, when the guard is turned off or the bridge is halted. One
// that is unbound is forgotten: bound again, it is open. All of it is told.
//
// # Changing it
//
// Update changes ports, their settings, VLANs, ages and limits of a running
// bridge. Ports whose settings stay lose no frame.
//
// # Time
//
// One goroutine per bridge, the keeper, started by Initialize and ended by
// Halt, moves the coarse clock, ages the database, fills the storm buckets,
// reads multicast messages, guards against loops, and sends announcements. It
// blocks on its timer and on requests only. While the virtual adapter is halted
// all of these rest: ports go on, without storm limits, snooping and loop guard.
//
// Events, by Options.Event: "bridge.fdb" (room, full), "bridge.announced",
// "bridge.storm" (calm, storm), "bridge.mac-limit" (room, full), "bridge.loop"
// (forwarding, shut; absent: it was shut, and is unbound).
//
// Locks, in the order in which they may be taken: Bridge.updates, Bridge.mu, then
// one of the leaves fdb.mu, snooper.mu, notes.mu, keeper.mu.
package bridge
