// Package health watches paths that carry no traffic: it sends probes over each
// member of a bundle, the active one and the standbys, and tells the core which
// were answered. What follows from that is for package policy to say.
//
//	Prober ──probe──▶ member adapter ──▶ network ──▶ target (usually the gateway)
//	   ▲                                                │
//	   └── Receive, beside the bundle's own binding ◀── answer
//	   │
//	   └─▶ core.Observe(ProbeSent | ProbeAnswered | ProbeLost, late or not)
//
// The probe of an IPv4 target is an ARP probe (RFC 5227: the sender's IP address
// is zero, so that nobody's cache changes); of an IPv6 target, a neighbour
// solicitation (RFC 4861) from the link-local address of the probe's own MAC.
//
// One limit of ARP probes: a target that is just claiming its address by
// address conflict detection (RFC 5227 2.1.1; not Linux by itself, but some of
// its network managers, and Windows) takes the probe of somebody else for a
// conflict. Neighbour solicitations have no such effect, since theirs come from
// an address.
//
// Rules:
//
//   - Probes carry neither the bundle's MAC nor its addresses: on a standby they
//     would teach the switches outside a wrong port. Each member has a probe MAC
//     of its own, locally administered and stable.
//   - Neither kind of answer echoes anything that was sent, so what makes an
//     answer ours is its destination, the probe MAC, together with the target's
//     address. One that comes later than one interval counts for the newest
//     probe: it proves that the path works all the same.
//   - An unanswered probe is evidence against the path only if we were there to
//     send and to hear. A round knows when it should have run: when it ran more
//     than two intervals late, what it says is marked Late, and proves nothing.
//   - While a member's link is down, or its adapter does not take the probe, no
//     probe is sent, hence none is lost: the core knows of that by itself.
//   - Frames that are not our answers are left as they are.
//
// One goroutine, "health prober", started by New and ended by Close, sends for
// all members. It blocks on its timer and on requests only. Answers are seen on
// the workers that receive them, which leave a note and wake it.
package health
