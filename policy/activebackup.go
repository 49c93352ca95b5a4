package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	// lostProbes is how many probes in a row must stay unanswered before a
	// standby counts as not working. One is ordinary loss; teamd's missed_max
	// is 3 too.
	lostProbes = 3
	// quietTime is the least time without failures before a member counts as
	// recovered whose link never went down. Without it the data path, which
	// leaves a failing member by itself, and a fail-back with Hold 0 would play
	// ping-pong until the link event arrives.
	quietTime = time.Second
)

// ActiveBackup is the decider of bundles: of those with one active member, and
// with BalanceHash of those whose healthy members share the flows, where being
// active means to take the group frames too. See the package comment for its
// rules.
type ActiveBackup struct{}

var _ ndiscore.Decider = ActiveBackup{}

// Decide implements ndiscore.Decider.
func (ActiveBackup) Decide(v ndiscore.BundleView) ndiscore.BundleDecision {
	if v.Active < 0 || v.Active >= len(v.Members) {
		v.Active = -1
	}
	active, why := choose(&v)
	d := ndiscore.BundleDecision{Active: active, Verdicts: make([]ndiscore.Verdict, len(v.Members))}
	if active != v.Active {
		d.Why = why
	}
	for i := range v.Members {
		d.Verdicts[i] = verdict(&v, i, active, v.Now)
	}
	// Who is waited for is not left by the data path either.
	if v.DownDelay == 0 && (active < 0 || !v.Members[active].Resetting) {
		d.Successors = successors(d.Verdicts, active)
	}
	if v.Balance == ndiscore.BalanceHash {
		d.Carriers = carriers(&v, active, d.Verdicts)
	}
	d.Recheck = recheck(&v, active, d.Verdicts)
	return d
}

// choose names the member to be active, and why.
func choose(v *ndiscore.BundleView) (active int, why string) {
	if v.Active < 0 {
		return start(v)
	}
	a := &v.Members[v.Active]
	if cause, left := leave(v, a); left {
		return replace(v, cause)
	}
	if a.Resetting && alive(a) {
		return standIn(v, a)
	}
	return failback(v)
}

// start chooses when nothing is active. Delays do not count; signs of failure
// only decide between members that are both alive.
func start(v *ndiscore.BundleView) (int, string) {
	fallback := -1
	for i := range v.Members {
		m := &v.Members[i]
		if !alive(m) {
			continue
		}
		if !failing(v, m) {
			return i, fmt.Sprintf("nothing was active; %s is the first usable member", describe(v, m))
		}
		if fallback < 0 || v.Members[fallback].Resetting && !m.Resetting {
			fallback = i
		}
	}
	if fallback < 0 {
		return -1, ""
	}
	return fallback, fmt.Sprintf("nothing was active; no usable member is free of failures, %s is the first of them", describe(v, &v.Members[fallback]))
}

// failing reports signs that m does not work though it is alive.
func failing(v *ndiscore.BundleView, m *ndiscore.MemberView) bool {
	return m.Resetting || probesLost(m) || !m.LastFailure.IsZero() && quiet(v, m, v.Now) > 0
}

// leave reports whether the active member m must be left now, and the cause.
func leave(v *ndiscore.BundleView, m *ndiscore.MemberView) (cause string, left bool) {
	if alive(m) {
		// Where flows are shared, one that does not answer is no better than the
		// next that does not, and there is somebody who does.
		if v.Balance == ndiscore.BalanceHash && probesLost(m) && otherUp(v) {
			return describe(v, m), true
		}
		return "", false
	}
	if tolerated(v, m) {
		return "", false
	}
	return describe(v, m), true
}

// standIn chooses who takes over from the active member a while that is reset:
// the first that is up, or else the first that is held by time alone. Without
// either the reset is waited out.
func standIn(v *ndiscore.BundleView, a *ndiscore.MemberView) (int, string) {
	next := -1
	for i := range v.Members {
		m := &v.Members[i]
		if i == v.Active || !alive(m) || m.Resetting {
			continue
		}
		if verdict(v, i, v.Active, v.Now) == ndiscore.VerdictUp {
			next = i
			break
		}
		if next < 0 && m.ProbesLost < lostProbes && (!v.NeedProof || hasProof(m)) {
			next = i
		}
	}
	if next < 0 {
		return v.Active, ""
	}
	return next, fmt.Sprintf("%s; next is %s", describe(v, a), describe(v, &v.Members[next]))
}

// tolerated reports whether m only lacks its link, and not for long.
func tolerated(v *ndiscore.BundleView, m *ndiscore.MemberView) bool {
	return m.Running && !m.Leaving && !m.Link.Connected() && downFor(v, m) < v.DownDelay
}

// otherUp reports whether a member other than the active one is up.
func otherUp(v *ndiscore.BundleView) bool {
	for i := range v.Members {
		if i != v.Active && verdict(v, i, v.Active, v.Now) == ndiscore.VerdictUp {
			return true
		}
	}
	return false
}

// carriers lists who shares the flows: the active member, whoever is up, and
// whoever has a share and is not known to have failed.
func carriers(v *ndiscore.BundleView, active int, verdicts []ndiscore.Verdict) (list []int) {
	for i := range v.Members {
		m := &v.Members[i]
		if i == active || verdicts[i] == ndiscore.VerdictUp ||
			m.Carries && active >= 0 && (verdicts[i] == ndiscore.VerdictInconclusive || tolerated(v, m)) {
			list = append(list, i)
		}
	}
	return list
}

// replace chooses when the active member is lost.
func replace(v *ndiscore.BundleView, cause string) (int, string) {
	held := -1
	for i := range v.Members {
		if i == v.Active {
			continue
		}
		switch verdict(v, i, -1, v.Now) {
		case ndiscore.VerdictUp, ndiscore.VerdictInconclusive:
			return i, fmt.Sprintf("%s; next is %s", cause, describe(v, &v.Members[i]))
		case ndiscore.VerdictHeld:
			if held < 0 || v.Members[held].Resetting && !v.Members[i].Resetting {
				held = i
			}
		}
	}
	if held >= 0 {
		return held, fmt.Sprintf("%s; nothing better is left than %s", cause, describe(v, &v.Members[held]))
	}
	return -1, cause + "; no member is usable"
}

// failback looks for a better member while the active one works.
func failback(v *ndiscore.BundleView) (int, string) {
	if v.Failback == ndiscore.FailbackNever {
		return v.Active, ""
	}
	a := &v.Members[v.Active]
	for i := range v.Active {
		m := &v.Members[i]
		if verdict(v, i, v.Active, v.Now) != ndiscore.VerdictUp {
			continue
		}
		if v.Failback == ndiscore.FailbackBetter {
			if m.Link.Speed <= a.Link.Speed {
				continue
			}
			return i, fmt.Sprintf("fail-back %s: %s, %d bit/s, is faster than %s, %d bit/s; %s", v.Failback, m.Name, m.Link.Speed, a.Name, a.Link.Speed, proven(v, m))
		}
		return i, fmt.Sprintf("fail-back %s: %s is preferred to %s; %s", v.Failback, m.Name, a.Name, proven(v, m))
	}
	return v.Active, ""
}

// verdict judges member i at time now, given which one is active.
func verdict(v *ndiscore.BundleView, i, active int, now time.Time) ndiscore.Verdict {
	m := &v.Members[i]
	switch {
	case !alive(m):
		return ndiscore.VerdictDown
	case i == active:
		return ndiscore.VerdictUp
	case m.Resetting:
		return ndiscore.VerdictHeld
	case m.Carries && v.Balance == ndiscore.BalanceHash: // only news of a failure takes its share away
		switch {
		case m.ProbesLost < lostProbes:
			return ndiscore.VerdictUp
		case m.Late:
			return ndiscore.VerdictInconclusive
		}
		return ndiscore.VerdictHeld
	case wait(v, m, now) > 0:
		return ndiscore.VerdictHeld
	case !v.NeedProof && m.ProbesLost < lostProbes:
		return ndiscore.VerdictUp
	case m.Late && (m.ProbesLost >= lostProbes || !hasProof(m)):
		return ndiscore.VerdictInconclusive
	case m.ProbesLost >= lostProbes || v.NeedProof && !hasProof(m):
		return ndiscore.VerdictHeld
	}
	return ndiscore.VerdictUp
}

// successors lists where the data path may go when active fails: members that
// are not held, in order; when there is none, those that are.
func successors(verdicts []ndiscore.Verdict, active int) []int {
	if active < 0 {
		return nil
	}
	var free, held []int
	for i, verdict := range verdicts {
		if i == active {
			continue
		}
		switch verdict {
		case ndiscore.VerdictUp, ndiscore.VerdictInconclusive:
			free = append(free, i)
		case ndiscore.VerdictHeld:
			held = append(held, i)
		}
	}
	if free == nil {
		return held
	}
	return free
}

// recheck is the time after which the same evidence gives another decision.
func recheck(v *ndiscore.BundleView, active int, verdicts []ndiscore.Verdict) time.Duration {
	next := time.Duration(0)
	at := func(d time.Duration) {
		if d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	if active >= 0 && !alive(&v.Members[active]) {
		at(v.DownDelay - downFor(v, &v.Members[active]))
	}
	for i := range v.Members {
		m := &v.Members[i]
		if active >= 0 && i != active && m.Carries && v.Balance == ndiscore.BalanceHash && tolerated(v, m) {
			at(v.DownDelay - downFor(v, m))
		}
		if d := wait(v, m, v.Now); d > 0 && verdict(v, i, active, v.Now.Add(d)) != verdicts[i] {
			at(d)
		}
	}
	return next
}

func alive(m *ndiscore.MemberView) bool {
	return m.Running && !m.Leaving && m.Link.Connected()
}

// recovered is when m was last known to be bad.
func recovered(m *ndiscore.MemberView) time.Time {
	if m.LastFailure.After(m.Since) {
		return m.LastFailure
	}
	return m.Since
}

func hasProof(m *ndiscore.MemberView) bool { return m.Proof.After(recovered(m)) }

func probesLost(m *ndiscore.MemberView) bool { return m.ProbesLost >= lostProbes && !m.Late }

func downFor(v *ndiscore.BundleView, m *ndiscore.MemberView) time.Duration {
	return v.Now.Sub(m.Since)
}

// wait is how long after now a living standby is still held by time alone.
func wait(v *ndiscore.BundleView, m *ndiscore.MemberView, now time.Time) time.Duration {
	if !alive(m) {
		return 0
	}
	w := m.Since.Add(v.UpDelay).Sub(now)
	w = max(w, recovered(m).Add(v.Hold).Sub(now))
	if !m.LastFailure.IsZero() {
		w = max(w, quiet(v, m, now))
	}
	return max(w, 0)
}

// quiet is how long after now m must still stay without failures.
func quiet(v *ndiscore.BundleView, m *ndiscore.MemberView, now time.Time) time.Duration {
	return m.LastFailure.Add(max(v.Hold, quietTime)).Sub(now)
}

// describe gives the evidence about m in words.
func describe(v *ndiscore.BundleView, m *ndiscore.MemberView) string {
	var b strings.Builder
	b.WriteString(m.Name)
	switch {
	case m.Leaving:
		b.WriteString(" is leaving")
	case !m.Running:
		b.WriteString(" is not running")
	case m.Resetting:
		b.WriteString(" is being reset")
	default:
		fmt.Fprintf(&b, " link %s", m.Link.Media)
		// "For 0s" tells nothing, and is read for long in the reason of a link.
		if d := short(v.Now.Sub(m.Since)); !m.Since.IsZero() && d > 0 {
			fmt.Fprintf(&b, " for %s", d)
		}
		if m.Link.Why != "" {
			fmt.Fprintf(&b, " (%s)", m.Link.Why)
		}
	}
	if !m.LastFailure.IsZero() && !m.LastFailure.Before(m.Since) {
		fmt.Fprintf(&b, ", %d failures, last %s ago", m.Failures, short(v.Now.Sub(m.LastFailure)))
	}
	if m.ProbesLost > 0 {
		fmt.Fprintf(&b, ", %d probes lost in a row", m.ProbesLost)
		if m.Late {
			b.WriteString(" while we were late ourselves")
		}
	}
	return b.String()
}

// proven says what a fail-back to m rests on.
func proven(v *ndiscore.BundleView, m *ndiscore.MemberView) string {
	s := "good since its start"
	if r := recovered(m); !r.IsZero() {
		s = fmt.Sprintf("good for %s (hold %s)", short(v.Now.Sub(r)), v.Hold)
	}
	if hasProof(m) {
		s += fmt.Sprintf(", probe answered %s ago", short(v.Now.Sub(m.Proof)))
	}
	return s
}

// short rounds d for people, keeping four digits or so.
func short(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}
