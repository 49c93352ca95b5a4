// Package stack is the router: a protocol driver that binds a gVisor netstack to
// adapters. All that vswitch has to do with gVisor is in this folder.
//
//	workers (receive goroutines of adapters)              │ the feeder, one goroutine
//	                                                      │
//	Receive ─ guards ─ one copy ─► punt queue (5 classes) ─► netstack ─► endpoint.WritePackets
//	   │  NAT, for an address of an interface that has it │     ▲              │ NAT, likewise
//	   │  fib: ours? MTU of the way out?                  │     ▲              │ head copied,
//	   └─ too big: ICMP, back where it came from          │     │              │ payload borrowed
//	                                                      │  Bind, Unbind,     ▼
//	                                                      │  routes, links   Binding.Send
//
// Netstack does ARP and neighbour discovery, ICMP, fragments, route lookup and
// local sockets, and forwards what nobody has a shorter way for. One netstack
// NIC stands for one interface of the configuration. Over a team it never
// notices a failover; over an ndis5 bundle it goes and comes with the binding.
//
// # What stands between netstack and the world
//
// The guards (guard.go) see to it that netstack's known faults cannot show, and
// that nothing is counted as netstack's that need not reach it:
//
//   - It routes frames for other stations, and unicast packets in broadcast frames.
//   - With receive checksum offload it checks not even the IPv4 header, and
//     writes a fresh one when it forwards.
//   - It forwards IPv4 with a time to live of 1; it says "packet too big, MTU 0" in
//     IPv6; it takes forwarded super-frames for oversized packets.
//   - It panics when it forwards an IPv6 header longer than 1280 bytes (many
//     extension headers, or "no next header" in front of a long rest), or IPv6 to
//     a NIC with an MTU below 1280, whose MLD moreover never returns.
//   - It computes transport checksums anew when it forwards, unless told that the
//     link does: then corrupt packets would become valid ones. Here a checksum that
//     comes wrong leaves wrong. One that was left open is left open, and finished
//     only where the frame's meaning cannot travel through netstack (see verdict).
//
// The endpoint (endpoint.go) returns nil or ErrNoBufferSpace, never blocks and
// never calls back: netstack panics, or deadlocks, otherwise. NICs are never
// promiscuous, never disabled for want of a carrier, have no queueing discipline
// and no GRO, and netstack holds no rules. The feeder alone changes netstack,
// between deliveries, so that removing a NIC never meets a delivery.
//
// A panic during a delivery, or in one of netstack's timers, which the feeder runs
// too, costs that netstack: it is abandoned, locks and all, and another is built
// from what is bound, a few times an hour. A panic on netstack's own goroutines
// cannot be caught and ends the process.
//
// # NAT
//
// Package stack/nat translates at the edges of netstack, which sees inside addresses
// only and has no rules. The guards find that a packet is for an address of an
// interface with NAT; In makes a translated copy of its headers, and the guards look
// again. What netstack sends is translated as it leaves, a batch at a time. So each
// error is about the packet that its reader knows: netstack's own are about
// inside packets, and translated on their way out like everything; answerTooBig
// quotes the frame as it came. Interfaces without NAT pay for a nil pointer. Flows
// belong to an interface's name and outlive its bindings; Apply ends those
// that the configuration no longer allows. A hairpinned packet that runs out of hops
// here is lost without an answer: netstack would answer itself.
//
// # Answers
//
// What the router itself says goes to its reader by the best route, whatever address
// it comes from, as RFC 1122 3.3.4.2 has it for a weak host. netstack prefers any
// route out of the interface that has the address, such as the default route, even
// when the reader is next door at another one. While it is delivered a packet that it
// would answer so, it does not have those routes (detour, in feeder.go).
//
// # Neighbours
//
// netstack keeps 512 neighbours per NIC and version of IP and forgets the one that
// was used longest ago: on a larger network that costs questions, not packets. What
// neighbors.go adds, from a mirror of that table:
//
//   - In IPv4 netstack does not follow a neighbour that announces another MAC, and
//     sends to the old one for half a minute. Here any ARP packet is heeded (RFC 826).
//   - While it asks for a neighbour, it holds 256 packets for it, of any length, for
//     64 neighbours. Here their bytes are bounded (counter neighbor.full).
//   - With more than 64 questions it gives up on one on a goroutine of its own, which
//     must not be (see newView: packets of others left with a TTL of 255). Here the
//     oldest is given up before that, by the feeder.
//
// # Links, announcements and change
//
// An interface without carrier keeps its NIC, addresses and neighbours; its
// routes are withdrawn, so that others take over or the sender is told. Of the
// routes to one prefix that are alive, a connected one wins, then the smallest
// metric, then the first listed. When a binding starts, when an adapter says that
// its network has changed, and when a MAC or an address is new, the addresses of
// the interface are announced: gratuitous ARP, and unsolicited neighbour
// advertisements.
//
// A plug is an adapter that the core has bound to us, a port an interface that
// stands on it. Configuration (Apply, AddRoute) and adapters (Status) only say what
// should be; the feeder compares it with what is (reconcile) and changes no more
// than the difference. What a port is at the moment, its station, is replaced whole.
//
// # Goroutines
//
//   - stack feeder: started by Start, stopped by Close, which waits for it; waits
//     for the punt queue, commands and Close. Polls shortly before it sleeps.
//   - stack announce: the clock's; each ends by itself after a few sends.
//   - stack nat: a timer of the clock's, once a second while an interface has NAT;
//     stopped by Close.
//   - netstack's own: the workers of its TCP; they end with Close. What waited for
//     a neighbour leaves on the feeder, since netstack's timers run there.
//
// Locks: Router.mu (configuration and bindings) is held across no call but a look at
// a plug, whose lock is held while it asks the core for attributes. The punt
// queue's, an endpoint's, the neighbour mirror's, NAT's and an announcer's are leaves,
// held for a few instructions, once per batch or burst on the packet path; NAT's,
// for packets received, once each. Router.configuring, taken before Router.mu, is
// Apply's alone.
//
// # Accounting
//
// A frame is dropped here with a reason, or delivered: from then on it is
// netstack's, whose own counters are in Stats. What NAT refuses as it leaves counts as
// send.INTERFACE.nat, and by reason as nat.refused and nat.dropped. A punted packet
// whose interface was unbound before its turn counts as orphaned.
//
// # Regression tests
//
// Each way in which netstack, or a link below, is known to have broken a router has
// a test that is named after it:
//
//	TestRegressionEndpointErrors      the link returns an error: netstack panics on 42 of its 45
//	TestRegressionLinkDown            a link goes down while packets are forwarded over it
//	TestRegressionForeignMAC          frames for other stations
//	TestRegressionRemovalUnderFlood   a NIC goes and comes a thousand times under full traffic
//	TestRegressionTTL                 a time to live of 0, 1 and 2
//	TestRegressionTooBig              the MTU that the source is told
//	TestRegressionCorruptChecksum     a corrupt packet stays corrupt
//	TestRegressionPartialChecksum     an open checksum, and a port that cannot finish it
//	TestRegressionSuperFrame          64 KiB, and a port that cannot cut them
//	TestRegressionGSOProbeFailure     a port that refuses super-frames although it offered to take them
//	TestRegressionFragmentsAndGRE     what has no ports
//	TestRegressionAnswerInterface     an answer from the address of another interface
//	TestRegressionNeighborMove        a neighbour with another MAC
//	TestRegressionManyNeighbors       more neighbours than netstack keeps
//	TestRegressionNeighborFlood       65,536 stations that do not exist
//	TestRegressionWaitingBytes        what waits for them
//	TestRegressionKernel…             the same with the kernel's own stack on both sides
//
// FuzzReceive and FuzzLinkInput look for more of them.
//
// # Not here yet
//
// The flow cache will stand in front of the
// guards, in Receive, and record in WritePackets what the feeder's current
// delivery became: that is what the 14 low bits of PacketBuffer.Mark are kept for.
// Local TCP and UDP services have a class of the punt queue. Two things to know
// for them: netstack does not verify the checksum of datagrams that came in
// fragments, and does not compute that of UDP over IPv6 which it must fragment
// itself.
package stack
