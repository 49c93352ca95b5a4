// Package policy decides which member of a bundle is active. It implements
// ndiscore.Decider; the core gathers the evidence, asks, and acts.
//
//	evidence (ndiscore.BundleView)  →  verdict per member  →  active member, successors, when to look again
//
// A decision is a pure function: no clock, no memory, no I/O. Everything it may
// rest on is in the view, time included, so a decision can be replayed from a
// log and tested without waiting.
//
// Rules of ActiveBackup, the only decider so far. With BalanceHash the active
// member is the one that takes and sends group frames.
//
//   - A member is alive when it is running, not leaving, and its link is
//     connected. Its recovery is the later of the moment it came alive and its
//     last failure.
//   - The active member is left as soon as it is not alive; only a lost link is
//     tolerated, for DownDelay. What probes say does not take down an active
//     member: an unanswered probe on the path in use is for now evidence only.
//     One that is to be reset is left too, if another is up, or held by time
//     alone: else it stays, and the reset is waited out.
//   - A standby is held, though alive, until UpDelay and Hold have passed since
//     its recovery, until a probe has been answered since then (where a prober
//     watches), and while its probes are lost or it is being reset.
//   - When the active member is left, the first standby that is not held
//     follows; when all are held, the first that is alive. When nothing is
//     active, delays and the fail-back policy are ignored: any path is better
//     than none, and the first in order of preference wins that shows no sign
//     of failure.
//   - Successors are where the data path may go by itself, without asking: the
//     members that are not held, or all that are alive. With a DownDelay there
//     are none, since the data path cannot tell a lost link from worse.
//   - Fail-back goes to the most preferred member that stands before the active
//     one and is not held: always, only if its link is faster, or never.
//   - With BalanceHash flows are shared by the active member and every other one
//     that is not held. A member has its share until it is not alive (a lost link
//     is tolerated for DownDelay), or its probes are lost; that takes down the
//     active one too, if another one answers. It gets its share back when it is
//     no longer held, whatever the fail-back policy says.
//   - A verdict that rests on probes while our own scheduler was late is
//     inconclusive: it neither condemns a member nor moves traffic to it.
package policy
