// Package nat translates addresses and ports at the edges of a router: NAT44 and
// NAT66 for what leaves by a masquerading interface, and published ports
// (forwards) for what comes in.
//
//	              inside                    │ e, an Edge      outside
//	                                        │
//	10.0.0.5:4000 ─► 192.0.2.9:80 ── Out ───┼─► 203.0.113.1:4000 ─► 192.0.2.9:80
//	10.0.0.5:4000 ◄─ 192.0.2.9:80 ── In  ◄──┼── 203.0.113.1:4000 ◄─ 192.0.2.9:80
//
// The router asks Out about what is about to leave by an edge, after it has been
// routed, and In about what came for one of the edge's addresses, before it is
// routed. So the router itself sees inside addresses only, and what it says of a
// packet (ICMP) it says of what the host inside sent or gets; Out and In translate
// the quotation too. Through is told of the rest that comes in by a masquerading
// edge, straight for an address inside: its answers then leave as they are.
//
// # Flows
//
// A flow is two tuples: its packets as they come from who spoke first, and as they
// come from who answers. Each direction leaves as the reverse of the other's
// tuple. Translation depends on both ends (RFC 4787 calls it address- and
// port-dependent): one public port serves many flows, as long as their other
// ends differ. An edge is known by its interface's name, and nothing here
// knows devices: flows outlive a link, a binding and a failover.
//
//	kind         begun by                 forward direction           answers
//	masquerade   a host inside            Out: source                 In: destination
//	forward      a host outside           In: destination             Out: source
//	hairpin      a host inside, for a     In: both                    In: both
//	             published port
//	local        the router itself        Out: source, if in use      In
//	through      a host outside           as it is                    as it is
//
// What comes in by a masquerading edge and leaves by it again is of the last kind:
// nobody outside gets an address of the router's. What leaves by another one is
// masqueraded there.
//
// A port is kept if it can be, else chosen at random from 1024 up; below that to
// 512 only when all others are in use. The ports of forwards and of local services
// are given to nobody. The router's own flows take tuples like everyone's.
//
// TCP follows RFC 6146 3.5.2, with two differences: connections that are half
// closed have the transitory time-out, and one that was reset lives on only when
// both sides go on. A connection that the table does not know (it was restarted) is
// taken up where it is. UDP has its long time-out once both sides have spoken and
// the first one again.
//
// # What is translated, and what is not
//
//   - TCP, UDP, ICMP and ICMPv6 queries (echo, timestamp): addresses and ports.
//   - ICMP errors: with the packet that they quote, as far as it is quoted.
//   - Other protocols (GRE, ESP, SCTP …): the addresses, if only one host inside
//     talks it with the same host outside. A second one is refused (DropNATState).
//   - Fragments: the later ones follow the first, and count for its flow. Those that
//     come before it are lost (DropFragment) if they might have to be translated;
//     their sender's protocol sends them again. The identification is not changed.
//   - Not at all: other ICMP, link-local and multicast packets, IPv6 with a routing
//     header that is not done. What a host inside sends of the latter is refused.
//
// Checksums are updated by what has changed (RFC 1624), never computed: a wrong one
// stays wrong. Of one that is left to the device, the part of the pseudo-header
// is updated. A UDP checksum of zero stays zero. A super-frame is one packet.
//
// # Bounds
//
// Flows, fragments and the work per packet are bounded. When the table is full, the
// flow that was silent longest among those that nobody would miss makes room: TCP
// not established or closed, UDP and others without a stream. Flows begun outside
// never take the place of those begun inside, nor the last eighth of the table. If
// there is none, or no free port,
// the packet is refused (DropNATFull), and an event says so once.
//
// # Time, goroutines, locks
//
// The package has no goroutine and reads no clock: Tick tells the time, about
// once a second. One lock guards the table, a leaf, held for one received frame or
// one sent batch; listing and flushing let packets through every few hundred
// flows. Nothing is allocated for a packet of a known flow.
package nat
