package ndiscore

import (
	"encoding/json"
	"fmt"
	"time"
)

// BundleMode says what protocols see of a bundle.
type BundleMode uint8

const (
	// BundleTeam is an intermediate driver: one virtual adapter over its
	// members, which stays when the active member changes.
	BundleTeam BundleMode = iota
	// BundleNDIS5 is the bundle of the NDIS 5.1 documents: protocols are bound
	// to the primary member, and to another one after it has been removed.
	BundleNDIS5
)

// String is the mode as the configuration names it.
func (m BundleMode) String() string {
	if m == BundleNDIS5 {
		return "ndis5"
	}
	return "team"
}

// MarshalText makes a BundleMode print as its name in JSON.
func (m BundleMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Failback says when a bundle goes back to a preferred member that recovered.
type Failback uint8

// The fail-back policies, in the words of Linux bonding's primary_reselect.
const (
	FailbackAlways Failback = iota // whenever a preferred member is proven good
	FailbackBetter                 // only if it is faster than the active one
	FailbackNever                  // stay until the active one fails
)

// String is the policy as the configuration names it.
func (f Failback) String() string {
	switch f {
	case FailbackBetter:
		return "better"
	case FailbackNever:
		return "never"
	}
	return "always"
}

// MarshalText makes a Failback print as its name in JSON.
func (f Failback) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// Decider chooses the active member of a bundle. It is pure: the same view
// gives the same decision.
type Decider interface {
	Decide(v BundleView) BundleDecision
}

// BundleView is all that a decision about a bundle may rest on.
type BundleView struct {
	Name      string
	Now       time.Time
	Active    int // index into Members, -1 for none
	Failback  Failback
	UpDelay   time.Duration // a link must have been up that long to be chosen
	DownDelay time.Duration // a link must have been down that long to be left
	Hold      time.Duration // a recovered member must have held that long before a fail-back
	NeedProof bool          // a prober watches: fail-back needs a probe answered over the member
	Members   []MemberView  // in order of preference
}

// MemberView is what is known of one member.
type MemberView struct {
	Name        string
	Running     bool      // the adapter, and the bundle's binding on it, are Running
	Leaving     bool      // a removal, stop or pause is under way
	Link        LinkState // as last indicated
	Since       time.Time // when it became usable, or unusable, as it is now
	Failures    uint64    // send errors and the like, ever
	LastFailure time.Time
	Proof       time.Time // newest answered probe, zero for none since it came back
	LastProbe   time.Time // newest probe sent
	ProbesLost  int       // unanswered in a row
	Late        bool      // our own scheduler was late: probes prove nothing
}

// BundleDecision is what is to be done.
type BundleDecision struct {
	Active     int           // index into the view's Members, -1 for none
	Successors []int         // where the data path may go by itself, in order
	Verdicts   []Verdict     // one per member
	Why        string        // the cause, when Active changes
	Recheck    time.Duration // decide again after this long; 0: nothing is pending
}

// Verdict is the judgement of one member.
type Verdict uint8

// The verdicts.
const (
	VerdictDown         Verdict = iota // not usable
	VerdictUp                          // usable
	VerdictHeld                        // up, and waiting for a delay, the hold time or proof
	VerdictInconclusive                // evidence is missing because we were late
)

// String names v as `bundle show` prints it.
func (v Verdict) String() string {
	switch v {
	case VerdictUp:
		return "up"
	case VerdictHeld:
		return "held"
	case VerdictInconclusive:
		return "inconclusive"
	}
	return "down"
}

// MarshalText makes a Verdict print as its name in JSON.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// ObservationKind says what a prober saw.
type ObservationKind uint8

// The kinds of observation.
const (
	ProbeSent ObservationKind = iota + 1
	ProbeAnswered
	ProbeLost
)

// Observation is one piece of evidence about an adapter, from outside the core.
type Observation struct {
	Adapter string
	At      time.Time
	Kind    ObservationKind
	Late    bool // the observer itself was late
	Detail  string
}

// BundleSpec is one bundle.
type BundleSpec struct {
	Name      string
	Mode      BundleMode
	Members   []string // adapters, in order of preference
	Failback  Failback
	Hold      time.Duration
	UpDelay   time.Duration
	DownDelay time.Duration
	NeedProof bool // a prober is configured
	MAC       MAC  // of a team's virtual adapter; zero: its first member's
	MTU       int  // of a team's virtual adapter; 0: the smallest of its members'

}

// failbackOverlap is how long a team keeps delivering unicast that arrives on
// the member it has just left while that member still works: frames that were
// under way when the switches outside learned the new way. A member that is
// taken away in good order is paused when it is over.
const failbackOverlap = 500 * time.Millisecond

// dataPathEpoch is what the data path adds to a teamSet's epoch.
const dataPathEpoch = 1 << 32

// teamSet says which member of a team is active. It is immutable; the data path
// may replace it by the next successor on its own, and the epoch keeps the
// control side from overwriting what it has not heard of yet: the control side
// counts in its low half, the data path in its high half.
type teamSet struct {
	epoch      uint64
	member     int   // -1: none
	overlap    int   // still delivers unicast, -1: none
	successors []int // where the data path may go by itself
}

// String is the set as golden traces show it.
func (t teamSet) String() string {
	s := fmt.Sprint(t.member)
	if len(t.successors) > 0 {
		s += fmt.Sprint(" then ", t.successors)
	}
	if t.overlap >= 0 {
		s += fmt.Sprint(" overlap ", t.overlap)
	}
	return s
}

func (t teamSet) same(o teamSet) bool {
	if t.member != o.member || t.overlap != o.overlap || len(t.successors) != len(o.successors) {
		return false
	}
	for i, s := range t.successors {
		if o.successors[i] != s {
			return false
		}
	}
	return true
}

// mBundle is a bundle inside the machine.
type mBundle struct {
	name     string
	mode     BundleMode
	members  []string
	failback Failback
	hold     time.Duration
	up, down time.Duration
	proof    bool

	// team
	set       teamSet   // as published, or as the data path reported
	published bool      // a first set is out
	pinned    string    // member promoted by hand, preferred while it lasts
	overlapTo time.Time // when the overlap ends
	verdicts  []Verdict
	linkUp    bool
	wake      time.Time // when a tick is due

	// ndis5
	primary string // "": none
}

func (m *machine) bundle(name string) *mBundle {
	for _, b := range m.bundles {
		if b.name == name {
			return b
		}
	}
	return nil
}

func (m *machine) bundleOf(a *mAdapter) *mBundle {
	for _, b := range m.bundles {
		for _, n := range b.members {
			if n == a.name {
				return b
			}
		}
	}
	return nil
}

// evaluate looks at one bundle again and reports whether that let something
// else move on.
func (m *machine) evaluate(b *mBundle) bool {
	if b.mode == BundleNDIS5 {
		return m.evaluateNDIS5(b)
	}
	m.evaluateTeam(b)
	return false
}

// evaluateNDIS5 keeps a primary: the first member initialised; when that one's
// halt has begun, and so nobody is bound to it any more, the first of the
// others, in order, that runs (B-3, B-10, B-13, C-54).
func (m *machine) evaluateNDIS5(b *mBundle) bool {
	if p := m.adapter(b.primary); p != nil && p.state != StateHalted && !p.halting && !p.stuck {
		return false // a stuck one counts as gone: it is called no more, and closed
	}
	was := b.primary
	b.primary = ""
	for _, n := range b.members {
		a := m.adapter(n)
		if a == nil || a.goal != goalUp || a.surprise || a.stuck {
			continue
		}
		if a.state != StateRunning && (was != "" || a.state != StatePaused) {
			continue
		}
		if b.primary == "" {
			b.primary = n
		}
		if a.link.Connected() { // rather one with a link, else the first
			b.primary = n
			break
		}
	}
	if b.primary == was {
		return false
	}
	why := "first member initialised"
	if was != "" {
		why = "primary " + was + " has left"
		if a := m.adapter(was); a != nil {
			why += ": " + a.cause
		}
	}
	if b.primary == "" {
		why = "no member left: " + why
	}
	if a := m.adapter(b.primary); a != nil && was != "" {
		a.cause = why // of the bindings that follow
	}
	m.event(Event{What: "bundle.primary", Adapter: b.name, From: was, To: b.primary, Why: why})
	m.emit(action{kind: actPrimary, adapter: b.primary, target: b.name})
	return true
}

// view is what the decider may know of team b.
func (m *machine) view(b *mBundle) (v BundleView, order []int) {
	order = make([]int, 0, len(b.members))
	for i, n := range b.members {
		if n == b.pinned {
			order = append([]int{i}, order...)
		} else {
			order = append(order, i)
		}
	}
	v = BundleView{Name: b.name, Now: m.now, Active: -1, Failback: b.failback, UpDelay: b.up, DownDelay: b.down, Hold: b.hold, NeedProof: b.proof}
	for vi, i := range order {
		if i == b.set.member {
			v.Active = vi
		}
		v.Members = append(v.Members, m.memberView(b, b.members[i]))
	}
	return v, order
}

func (m *machine) memberView(b *mBundle, name string) MemberView {
	a := m.adapter(name)
	if a == nil {
		return MemberView{Name: name}
	}
	running := false
	if p := m.protocol(teamProtocol(b.name)); p != nil {
		mb := a.binding(p, name)
		running = a.state == StateRunning && !a.surprise && !a.stuck && !a.asleep && mb != nil && mb.state == BindingRunning
	}
	if usable := running && a.link.Connected(); usable != a.usable || a.usableSince.IsZero() {
		a.usable, a.usableSince = usable, m.now
		a.proof, a.probesLost = time.Time{}, 0
	}
	return MemberView{
		Name: name, Running: running, Leaving: a.goal != goalUp || a.surprise, Link: a.link, Since: a.usableSince,
		Failures: a.failures, LastFailure: a.lastFailure,
		Proof: a.proof, LastProbe: a.lastProbe, ProbesLost: a.probesLost, Late: a.late,
	}
}

// evaluateTeam asks the decider and publishes what it says.
func (m *machine) evaluateTeam(b *mBundle) {
	if m.adapter(b.name) == nil {
		return // the virtual adapter is not there (yet, or any more)
	}
	v, order := m.view(b)
	d := m.decider.Decide(v)
	b.verdicts = make([]Verdict, len(b.members))
	for vi, i := range order {
		if vi < len(d.Verdicts) {
			b.verdicts[i] = d.Verdicts[vi]
		}
	}
	set := teamSet{epoch: b.set.epoch, member: -1, overlap: -1}
	if d.Active >= 0 {
		set.member = order[d.Active]
	}
	if b.down == 0 { // with a delay, leaving a member is never the data path's to decide
		for _, s := range d.Successors {
			set.successors = append(set.successors, order[s])
		}
	}
	old := b.set
	switch {
	case set.member == old.member:
		if old.overlap >= 0 && m.now.Before(b.overlapTo) && m.stillDelivers(b, old.overlap) {
			set.overlap = old.overlap
		}
	case old.member >= 0 && set.member >= 0 && m.stillDelivers(b, old.member):
		set.overlap = old.member
		b.overlapTo = m.now.Add(failbackOverlap)
	}
	if b.pinned != "" && set.member >= 0 && b.members[set.member] != b.pinned {
		b.pinned = "" // what was promoted by hand has failed; the usual order holds again
	}
	if !b.published || !set.same(old) {
		if set.member != old.member || !b.published {
			m.activeChanged(b, old.member, set.member, d.Why)
		}
		b.published = true
		m.emit(action{kind: actTeam, adapter: b.name, set: set, why: d.Why})
		set.epoch++
		b.set = set
		m.teamLink(b, d.Why)
		if set.member != old.member && set.member >= 0 {
			m.announce(b, d.Why)
		}
	}
	m.wakeFor(b, d.Recheck)
}

func (m *machine) stillUsable(b *mBundle, member int) bool {
	mv := m.memberView(b, b.members[member])
	return mv.Running && !mv.Leaving && mv.Link.Connected()
}

// stillDelivers reports whether frames that are under way to a member that was
// left can still come in by it. One that is taken away in good order can: it
// lingers.
func (m *machine) stillDelivers(b *mBundle, member int) bool {
	a := m.adapter(b.members[member])
	mv := m.memberView(b, b.members[member])
	return mv.Running && mv.Link.Connected() && (!mv.Leaving || a.leavesInOrder())
}

// leavesInOrder reports whether a was told to go, rather than found broken.
func (a *mAdapter) leavesInOrder() bool {
	return !a.surprise && (a.goal == goalPause || a.goal == goalSleep || a.goal == goalDown && (a.halt == HaltDeviceDisabled || a.halt == HaltDeviceStopped))
}

// lingers reports whether a's pause has to wait: its team has moved on, and a
// still delivers what the switches outside send its way until they have learned
// the new one. So a planned change loses nothing.
func (m *machine) lingers(a *mAdapter) bool {
	b := m.bundleOf(a)
	return b != nil && b.mode == BundleTeam && b.memberName(b.set.overlap) == a.name && a.leavesInOrder() &&
		m.adapter(b.name) != nil
}

func (b *mBundle) memberName(i int) string {
	if i < 0 {
		return ""
	}
	return b.members[i]
}

func (m *machine) activeChanged(b *mBundle, from, to int, why string) {
	if from == to {
		return
	}
	m.event(Event{What: "bundle.active", Adapter: b.name, From: b.memberName(from), To: b.memberName(to), Why: why})
}

// teamLink keeps the virtual adapter's link: connected while a member is active.
func (m *machine) teamLink(b *mBundle, why string) {
	up := b.set.member >= 0
	if up == b.linkUp {
		return
	}
	b.linkUp = up
	l := LinkState{Media: MediaDisconnected, Why: why}
	if up {
		l.Media = MediaConnected
		if a := m.adapter(b.members[b.set.member]); a != nil {
			l.Speed = a.link.Speed
		}
	}
	m.emit(action{kind: actStatus, adapter: b.name, link: l, why: "link " + l.Media.String()})
}

// announce has everybody above the team tell the switches outside.
func (m *machine) announce(b *mBundle, why string) {
	m.emit(action{kind: actStatus, adapter: b.name, why: "network change"})
}

// moved takes note that the data path has gone to a successor by itself.
func (m *machine) moved(ev event) {
	b := m.bundle(ev.adapter)
	if b == nil || m.adapter(b.name) == nil {
		return // the team is gone; its lower edge is still bound
	}
	from := b.set.member
	b.set.member, b.set.epoch, b.set.overlap = ev.member, ev.epoch, -1
	b.set.successors = nil // unknown until published anew
	m.activeChanged(b, from, ev.member, ev.why)
	if a := m.adapter(b.memberName(from)); a != nil && from != ev.member {
		// It failed, however short: it has to prove itself from now on.
		a.usable, a.usableSince = false, m.now
		a.failures++
		a.lastFailure = m.now
	}
	m.teamLink(b, ev.why)
	if ev.member >= 0 && from != ev.member {
		m.announce(b, ev.why)
	}
}

func (m *machine) wakeFor(b *mBundle, recheck time.Duration) {
	due := time.Time{}
	if recheck > 0 {
		due = m.now.Add(recheck)
	}
	if b.set.overlap >= 0 && (due.IsZero() || b.overlapTo.Before(due)) {
		due = b.overlapTo
	}
	if due.IsZero() || !b.wake.Before(m.now) && !due.Before(b.wake) && b.wake.After(m.now) {
		return // nothing to wait for, or an earlier wake-up is on its way
	}
	b.wake = due
	m.emit(action{kind: actWake, adapter: b.name, after: due.Sub(m.now)})
}

// promote makes a member active by hand.
func (m *machine) promote(ev event) {
	b := m.bundle(ev.adapter)
	if b == nil || b.mode == BundleTeam && m.adapter(b.name) == nil {
		m.reply(ev.reply, fmt.Errorf("bundle %s: %w", ev.adapter, ErrNotFound))
		return
	}
	i := -1
	for k, n := range b.members {
		if n == ev.why {
			i = k
		}
	}
	if i < 0 {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: it is not a member", b.name, ev.why, ErrNotFound))
		return
	}
	if b.mode == BundleNDIS5 {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: an ndis5 bundle promotes only when its primary has left (remove %s first)", b.name, ev.why, ErrFailure, b.primary))
		return
	}
	if !m.stillUsable(b, i) {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: it is not running and connected", b.name, ev.why, ErrInvalidState))
		return
	}
	b.pinned = ev.why
	if b.set.member != i {
		old := b.set
		set := teamSet{epoch: old.epoch, member: i, overlap: -1}
		if old.member >= 0 && m.stillUsable(b, old.member) {
			set.overlap = old.member
			set.successors = []int{old.member}
			b.overlapTo = m.now.Add(failbackOverlap)
		}
		m.activeChanged(b, old.member, i, "promoted by hand")
		m.emit(action{kind: actTeam, adapter: b.name, set: set, why: "promoted by hand"})
		set.epoch++
		b.set, b.published = set, true
		m.teamLink(b, "promoted by hand")
		m.announce(b, "promoted by hand")
	}
	m.reply(ev.reply, nil)
}

// observed keeps a prober's evidence.
func (m *machine) observed(a *mAdapter, o Observation) {
	a.late = o.Late
	switch o.Kind {
	case ProbeSent:
		a.lastProbe = o.At
	case ProbeAnswered:
		a.proof, a.probesLost = o.At, 0
	case ProbeLost:
		if !o.Late {
			a.probesLost++
		}
	}
}

// teamProtocol is the name of the lower edge of team name.
func teamProtocol(name string) string { return "team " + name }

// BundleInfo is what `bundle show` tells.
type BundleInfo struct {
	Name     string         `json:"name"`
	Mode     BundleMode     `json:"mode"`
	Active   string         `json:"active"` // "" when no member is usable
	Failback Failback       `json:"failback"`
	Hold     jsonDuration   `json:"hold"`
	Members  []BundleMember `json:"members"`
}

// BundleMember is one member in a BundleInfo.
type BundleMember struct {
	Adapter string       `json:"adapter"`
	Role    string       `json:"role"` // "active", "standby", "down"; in ndis5 mode "primary", "secondary"
	Verdict Verdict      `json:"verdict"`
	State   AdapterState `json:"state"`
	Link    LinkState    `json:"link"`
	Probe   string       `json:"probe,omitempty"`
}

// jsonDuration prints as "1s" in JSON.
type jsonDuration time.Duration

// MarshalJSON writes the duration with its unit.
func (d jsonDuration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

func (m *machine) bundleInfo(b *mBundle) BundleInfo {
	info := BundleInfo{Name: b.name, Mode: b.mode, Failback: b.failback, Hold: jsonDuration(b.hold), Active: b.primary}
	if b.mode == BundleTeam {
		info.Active = b.memberName(b.set.member)
	}
	for i, n := range b.members {
		bm := BundleMember{Adapter: n, Role: "down"}
		if a := m.adapter(n); a != nil {
			bm.State, bm.Link = a.state, a.link
			up := a.state == StateRunning && !a.surprise
			if b.mode == BundleNDIS5 {
				if up {
					bm.Verdict = VerdictUp
				}
				switch {
				case n == b.primary:
					bm.Role = "primary"
				case up:
					bm.Role = "secondary"
				}
			} else {
				if i < len(b.verdicts) {
					bm.Verdict = b.verdicts[i]
				}
				switch {
				case i == b.set.member:
					bm.Role = "active"
				case up && a.link.Connected():
					bm.Role = "standby"
				}
				if !a.lastProbe.IsZero() {
					bm.Probe = fmt.Sprintf("%d lost in a row", a.probesLost)
					if !a.proof.IsZero() {
						bm.Probe = "answered " + m.now.Sub(a.proof).Round(time.Millisecond).String() + " ago, " + bm.Probe
					}
				}
			}
		}
		info.Members = append(info.Members, bm)
	}
	return info
}
