package ndiscore

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	Balance   Balance
	Members   []MemberView // in order of preference
}

// MemberView is what is known of one member.
type MemberView struct {
	Name        string
	Running     bool      // the adapter, and the bundle's binding on it, are Running
	Leaving     bool      // a removal, stop or pause is under way
	Resetting   bool      // a reset is about to begin, or under way
	Link        LinkState // as last indicated
	Since       time.Time // when it became usable, or unusable, as it is now; a reset makes it unusable
	Failures    uint64    // send errors and the like, ever
	LastFailure time.Time
	Proof       time.Time // newest answered probe, zero for none since it came back
	LastProbe   time.Time // newest probe sent
	ProbesLost  int       // unanswered in a row
	Late        bool      // our own scheduler was late: probes prove nothing
	Carries     bool      // BalanceHash: it has its share of the flows
}

// BundleDecision is what is to be done.
type BundleDecision struct {
	Active     int           // index into the view's Members, -1 for none
	Carriers   []int         // BalanceHash: who shares the flows, in order of preference; Active among them
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
	Name      string // compared without case (B-2)
	Mode      BundleMode
	Members   []string // adapters, in order of preference
	Failback  Failback // with BalanceHash: who takes group frames; flows go back whenever a member is proven good
	Hold      time.Duration
	UpDelay   time.Duration
	DownDelay time.Duration
	NeedProof bool // a prober is configured
	Balance   Balance
	LAG       bool // BalanceHash: the far end is a static link aggregate over all members
	MAC       MAC  // of a team's virtual adapter; zero: its first member's, as it is when the team starts
	ActiveMAC bool // … instead that of whichever member is active; not with BalanceHash
	MTU       int  // of a team's virtual adapter; 0: the smallest of its members', as they change
}

// check refuses what contradicts itself.
func (spec *BundleSpec) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("bundle %s: %w: %s", spec.Name, ErrInvalidData, fmt.Sprintf(format, args...))
	}
	switch {
	case len(spec.Members) == 0:
		return fail("it has no members")
	case len(spec.Members) > maxMembers:
		return fail("it has %d members, and %d is the most", len(spec.Members), maxMembers)
	case spec.ActiveMAC && spec.Balance == BalanceHash:
		return fail("all its members send, under one address, so that cannot be the active one's")
	}
	for i, n := range spec.Members {
		if n == "" || slices.Contains(spec.Members[:i], n) {
			return fail("member %q is empty, or in the list twice", n)
		}
	}
	return nil
}

// failbackOverlap is how long a team keeps delivering unicast that arrives on
// the member it has just left while that member still works: frames that were
// under way when the switches outside learned the new way. A member that is
// taken away in good order is paused when it is over, one that somebody asked to
// be reset is reset then.
const failbackOverlap = 500 * time.Millisecond

// announceDelay is how long those above a team put off their announcements while
// it still takes all that the network sends by ways that it has left. An
// announcement is flooded, and comes down the line of a member that was left from
// the far side: a learning switch on it takes the station to be there, and drops
// what it still has to pass on to us. Until then what we send teaches the
// switches by which it passes, and the others have nothing to learn yet.
const announceDelay = 100 * time.Millisecond

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
	carriers   []int // BalanceHash: who carries flows, member among them; else nil
	stay       bool  // leaving a member is not the data path's to decide (down_delay)
	lag        bool  // BundleSpec.LAG
}

// String is the set as golden traces show it.
func (t teamSet) String() string {
	s := fmt.Sprint(t.member)
	if t.carriers != nil {
		s += fmt.Sprint(" of ", t.carriers)
	}
	if len(t.successors) > 0 {
		s += fmt.Sprint(" then ", t.successors)
	}
	if t.overlap >= 0 {
		s += fmt.Sprint(" overlap ", t.overlap)
	}
	return s
}

func (t teamSet) same(o teamSet) bool {
	return t.member == o.member && t.overlap == o.overlap && t.stay == o.stay && t.lag == o.lag &&
		(t.carriers == nil) == (o.carriers == nil) && slices.Equal(t.carriers, o.carriers) && slices.Equal(t.successors, o.successors)
}

// active reports whether frames leave by member i.
func (t teamSet) active(i int) bool {
	return i >= 0 && (i == t.member || slices.Contains(t.carriers, i))
}

// mBundle is a bundle inside the machine.
type mBundle struct {
	name     string
	mode     BundleMode
	members  []string // by the indices that a team's sets hold; one that is not preferred has left
	prefer   []int    // indices, in order of preference; nil: as they come
	failback Failback
	hold     time.Duration
	up, down time.Duration
	proof    bool
	balance  Balance
	lag      bool

	// team
	mac       MAC       // configured; zero: it has that of a member
	activeMAC bool      // … of the active one
	mtu       int       // configured; 0: the smallest of the members'
	set       teamSet   // as published, or as the data path reported
	published bool      // a first set is out
	pinned    string    // member promoted by hand, preferred while it lasts
	overlapTo time.Time // when the overlap ends
	announced time.Time // when those above announce the last change
	known     []int     // members by which the network may send until that is done
	verdicts  []Verdict
	link      LinkState // as those above were told
	wake      time.Time // when a tick is due

	// ndis5
	primary string // "": none
	own     bool   // made by its driver (SetSecondary), and gone when nobody can be its primary
}

// newBundle is a bundle as spec has it.
func newBundle(spec BundleSpec) *mBundle {
	b := &mBundle{name: spec.Name, mode: spec.Mode, members: slices.Clone(spec.Members), set: teamSet{member: -1, overlap: -1}}
	b.adopt(spec)
	return b
}

// adopt takes over what may change while b lives, but for its members.
func (b *mBundle) adopt(spec BundleSpec) {
	b.failback, b.hold, b.up, b.down, b.proof = spec.Failback, spec.Hold, spec.UpDelay, spec.DownDelay, spec.NeedProof
	b.balance, b.lag = spec.Balance, spec.LAG
	b.mac, b.activeMAC, b.mtu = spec.MAC, spec.ActiveMAC, spec.MTU
}

// preference lists the indices of b's members in order of preference.
func (b *mBundle) preference() []int {
	if b.prefer != nil {
		return b.prefer
	}
	all := make([]int, len(b.members))
	for i := range all {
		all[i] = i
	}
	return all
}

// has reports whether an adapter is a member.
func (b *mBundle) has(name string) bool { return b.index(name) >= 0 }

// index is that of a member, -1 for none.
func (b *mBundle) index(name string) int {
	for _, i := range b.preference() {
		if b.members[i] == name {
			return i
		}
	}
	return -1
}

// names lists b's members in order of preference.
func (b *mBundle) names() []string {
	var names []string
	for _, i := range b.preference() {
		names = append(names, b.members[i])
	}
	return names
}

// floods reports whether what b sends may come back to it at any time.
func (b *mBundle) floods() bool {
	return !b.lag && (b.mode == BundleNDIS5 || b.balance == BalanceHash)
}

func (m *machine) bundle(name string) *mBundle {
	for _, b := range m.bundles {
		if b.name == name {
			return b
		}
	}
	return nil
}

// bundleID finds a bundle by a name in any case (B-2, C-50).
func (m *machine) bundleID(name string) *mBundle {
	for _, b := range m.bundles {
		if strings.EqualFold(b.name, name) {
			return b
		}
	}
	return nil
}

func (m *machine) bundleOf(a *mAdapter) *mBundle { return m.bundleWith(a.name) }

// bundleWith finds the bundle that an adapter is a member of.
func (m *machine) bundleWith(member string) *mBundle {
	for _, b := range m.bundles {
		if b.has(member) {
			return b
		}
	}
	return nil
}

func (m *machine) dropBundle(b *mBundle) {
	m.bundles = slices.DeleteFunc(slices.Clone(m.bundles), func(x *mBundle) bool { return x == b })
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

// view is what the decider may know of team b.
func (m *machine) view(b *mBundle) (v BundleView, order []int) {
	for _, i := range b.preference() {
		if b.members[i] == b.pinned {
			order = append([]int{i}, order...)
		} else {
			order = append(order, i)
		}
	}
	v = BundleView{
		Name: b.name, Now: m.now, Active: -1, Failback: b.failback, UpDelay: b.up, DownDelay: b.down, Hold: b.hold, NeedProof: b.proof,
		Balance: b.balance,
	}
	for vi, i := range order {
		// Until the team runs nothing is carried, and no choice is one to keep:
		// members that are bound one after the other must not count as lost.
		if t := m.adapter(b.name); i == b.set.member && t != nil && t.state == StateRunning {
			v.Active = vi
		}
		mv := m.memberView(b, b.members[i])
		mv.Carries = slices.Contains(b.set.carriers, i)
		v.Members = append(v.Members, mv)
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
	if usable := running && a.link.Connected() && !a.resetPlanned(); usable != a.usable || a.usableSince.IsZero() {
		a.usable, a.usableSince = usable, m.now
		a.proof, a.probesLost = time.Time{}, 0
	}
	return MemberView{
		Name: name, Running: running, Leaving: a.goal != goalUp || a.surprise, Resetting: a.resetPlanned(), Link: a.link, Since: a.usableSince,
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
	set := teamSet{epoch: b.set.epoch, member: -1, overlap: -1, stay: b.down > 0, lag: b.lag}
	if d.Active >= 0 {
		set.member = order[d.Active]
	}
	if b.down == 0 { // with a delay, leaving a member is never the data path's to decide
		for _, s := range d.Successors {
			set.successors = append(set.successors, order[s])
		}
	}
	if b.balance == BalanceHash && set.member >= 0 {
		for _, c := range d.Carriers {
			set.carriers = append(set.carriers, order[c])
		}
		if !slices.Contains(set.carriers, set.member) {
			set.carriers = append(set.carriers, set.member)
		}
	}
	old := b.set
	left := -1 // a member that carries no more, and may have frames under way to it
	for i := range b.members {
		if set.member >= 0 && old.active(i) && !set.active(i) && m.stillDelivers(b, i) {
			left = i
		}
	}
	switch {
	case left >= 0:
		set.overlap = left
		b.overlapTo = m.now.Add(failbackOverlap)
	case old.overlap >= 0 && !set.active(old.overlap) && (set.member == old.member || set.carriers != nil) &&
		m.now.Before(b.overlapTo) && m.stillDelivers(b, old.overlap):
		set.overlap = old.overlap
	}
	if b.pinned != "" && set.member >= 0 && b.members[set.member] != b.pinned && !m.beingReset(b.pinned) {
		b.pinned = "" // what was promoted by hand has failed; the usual order holds again
	}
	if !b.published || !set.same(old) {
		m.publish(b, set, d.Why)
	} else {
		m.follow(b)
		m.teamLink(b, d.Why)
		m.announce(b, old)
	}
	m.wakeFor(b, d.Recheck)
}

// publish has the data path of team b go by set.
func (m *machine) publish(b *mBundle, set teamSet, why string) {
	old := b.set
	m.activeChanged(b, old, set, why)
	m.emit(action{kind: actTeam, adapter: b.name, set: set, why: why})
	set.epoch++
	b.set, b.published = set, true
	m.follow(b)
	m.teamLink(b, why)
	m.announce(b, old)
}

// changed reports whether the network outside has to learn where to send to now:
// another member takes group frames, or one of those that carried flows, and may
// be where they are answered, does so no more.
func changed(old, set teamSet) bool {
	return set.member >= 0 && (set.member != old.member ||
		slices.ContainsFunc(old.carriers, func(c int) bool { return !set.active(c) }))
}

// beingReset reports whether a member is only away for a reset.
func (m *machine) beingReset(member string) bool {
	a := m.adapter(member)
	return a != nil && a.goal == goalUp && !a.surprise && a.resetPlanned()
}

func (m *machine) stillUsable(b *mBundle, member int) bool {
	mv := m.memberView(b, b.members[member])
	return mv.Running && !mv.Leaving && !mv.Resetting && mv.Link.Connected()
}

// stillDelivers reports whether frames that are under way to a member that was
// left can still come in by it. One that is taken away in good order can: it
// lingers.
func (m *machine) stillDelivers(b *mBundle, member int) bool {
	a := m.adapter(b.members[member])
	mv := m.memberView(b, b.members[member])
	return mv.Running && mv.Link.Connected() && (!mv.Leaving || a.leavesInOrder())
}

// stillWell reports whether a member that was left was not left for a failure: all
// that comes its way gets through.
func (m *machine) stillWell(b *mBundle, member int) bool {
	a := m.adapter(b.members[member])
	mv := m.memberView(b, b.members[member])
	return m.stillDelivers(b, member) && mv.ProbesLost == 0 && (a.leavesInOrder() || !mv.Resetting)
}

// leavesInOrder reports whether a was told to go, or to be reset, rather than
// found broken.
func (a *mAdapter) leavesInOrder() bool {
	switch {
	case a.surprise:
		return false
	case a.goal == goalUp:
		return a.resetAsked()
	}
	return a.goal == goalPause || a.goal == goalSleep || a.goal == goalDown && (a.halt == HaltDeviceDisabled || a.halt == HaltDeviceStopped)
}

// lingers reports whether a's pause, or reset, has to wait: its team has moved on, and a
// still delivers what the switches outside send its way until they have learned
// the new one. So a planned change loses nothing.
func (m *machine) lingers(a *mAdapter) bool {
	b := m.bundleOf(a)
	return b != nil && a.leavesInOrder() && m.overlaps(b, a)
}

// overlaps reports whether team b still takes what comes in by a, which it left.
func (m *machine) overlaps(b *mBundle, a *mAdapter) bool {
	return b.mode == BundleTeam && b.memberName(b.set.overlap) == a.name && m.adapter(b.name) != nil
}

// lingersFor reports whether a binding that is wanted no more stays a while: a
// team has given up the member, and still takes what comes in by it.
func (m *machine) lingersFor(a *mAdapter, mb *mBinding) bool {
	for _, b := range m.bundles {
		if mb.protocol.name == teamProtocol(b.name) && !mb.protocol.leaving && !a.inhibited && m.overlaps(b, a) {
			return true
		}
	}
	return false
}

func (b *mBundle) memberName(i int) string {
	if i < 0 {
		return ""
	}
	return b.members[i]
}

func (m *machine) activeChanged(b *mBundle, old, set teamSet, why string) {
	if from, to := b.activeNames(old), b.activeNames(set); from != to {
		m.event(Event{What: "bundle.active", Adapter: b.name, From: from, To: to, Why: why})
	}
}

// activeNames are the active member, or those that share the flows, for people.
func (b *mBundle) activeNames(set teamSet) string {
	if set.carriers == nil {
		return b.memberName(set.member)
	}
	names := make([]string, len(set.carriers))
	for i, c := range set.carriers {
		names[i] = b.memberName(c)
	}
	return strings.Join(names, " ")
}

// teamLink keeps the virtual adapter's link: connected while a member is active,
// as fast as that one, or as all that share the flows.
func (m *machine) teamLink(b *mBundle, why string) {
	l := LinkState{Media: MediaDisconnected}
	if b.set.member >= 0 {
		l.Media = MediaConnected
		for i, n := range b.members {
			if a := m.adapter(n); a != nil && b.set.active(i) {
				l.Speed += a.link.Speed
			}
		}
	}
	if l.same(b.link) || b.link.Media == MediaUnknown && !l.Connected() {
		return
	}
	what := "link " + l.Media.String()
	if l.Media == b.link.Media {
		what = "link speed"
	}
	l.Why = cmp.Or(why, "active: "+b.activeNames(b.set))
	b.link = l
	m.emit(action{kind: actStatus, adapter: b.name, link: l, why: what})
}

// follow keeps the virtual adapter's MTU and MAC as its members have them.
func (m *machine) follow(b *mBundle) {
	t := m.adapter(b.name)
	if t.state == StateHalted || t.state == StateInitializing || t.state == StateShutdown {
		return // Initialize takes them from the members, and then it is compared
	}
	mtu, mac := b.mtu, b.mac
	if mtu == 0 {
		for _, n := range b.names() { // one that is halted will be back
			if a := m.adapter(n); a != nil && a.attrs.MTU > 0 && (mtu == 0 || a.attrs.MTU < mtu) {
				mtu = a.attrs.MTU
			}
		}
	}
	if a := m.adapter(b.memberName(b.set.member)); a != nil && b.activeMAC {
		mac = a.attrs.MAC
	}
	change := AttributesChange{Why: "its members"}
	if mtu > 0 && mtu != t.attrs.MTU {
		change.MTU, t.attrs.MTU = mtu, mtu
	}
	if !mac.IsZero() && mac != t.attrs.MAC {
		change.MAC, t.attrs.MAC = mac, mac
	}
	if change.MTU > 0 || !change.MAC.IsZero() {
		m.emit(action{kind: actFollow, adapter: b.name, change: change})
	}
}

// grown reports whether all who shared the flows go on, and others came: then
// where the switches outside have learned stations to be is right.
func grown(old, set teamSet) bool {
	return set.carriers != nil && len(old.carriers) > 0 && !slices.ContainsFunc(old.carriers, func(c int) bool { return !slices.Contains(set.carriers, c) })
}

// What a team says of the network behind it.
const (
	networkChange = "network change"
	groupsMoved   = "network change of groups"
)

// announce has everybody above the team know that b.set has followed old, so that
// the switches outside learn it. When all who shared the flows go on, it is only
// that frames to groups go another way, and there is nothing to learn.
func (m *machine) announce(b *mBundle, old teamSet) {
	if !m.now.Before(b.announced.Add(AnnounceAt[len(AnnounceAt)-1])) { // every round has begun
		b.known = nil
	}
	for i := range b.members {
		if old.active(i) && !slices.Contains(b.known, i) {
			b.known = append(b.known, i)
		}
	}
	lost := slices.ContainsFunc(b.known, func(i int) bool {
		return !b.set.active(i) && (i != b.set.overlap || !m.stillWell(b, i))
	})
	if b.activeMAC && b.set.member != old.member {
		lost = true // what is sent to the address that the team had
	}
	soon := m.now.Before(b.announced)
	switch {
	case b.set.member < 0 || !changed(old, b.set) && !(soon && lost):
	case !lost && grown(old, b.set):
		m.emit(action{kind: actStatus, adapter: b.name, why: groupsMoved})
	case !lost && b.set.overlap >= 0:
		b.announced = m.now.Add(announceDelay)
		m.emit(action{kind: actStatus, adapter: b.name, why: networkChange, after: announceDelay})
	default:
		b.announced = m.now
		m.emit(action{kind: actStatus, adapter: b.name, why: networkChange})
	}
}

// moved takes note that the data path has left a member by itself.
func (m *machine) moved(ev event) {
	b := m.bundle(ev.adapter)
	if b == nil || m.adapter(b.name) == nil {
		return // the team is gone; its lower edge is still bound
	}
	old := b.set
	set := teamSet{epoch: ev.epoch, member: ev.member, overlap: -1, stay: old.stay, lag: old.lag} // successors are unknown until published anew
	if old.carriers != nil {
		set.carriers = slices.DeleteFunc(slices.Clone(old.carriers), func(c int) bool { return c == ev.left })
		if !slices.Contains(set.carriers, ev.member) {
			set.carriers = append(set.carriers, ev.member)
		}
	}
	b.set = set
	m.activeChanged(b, old, set, ev.why)
	if a := m.adapter(b.memberName(ev.left)); a != nil && !set.active(ev.left) {
		// It failed, however short: it has to prove itself from now on.
		a.usable, a.usableSince = false, m.now
		a.failures++
		a.lastFailure = m.now
	}
	m.follow(b)
	m.teamLink(b, ev.why)
	m.announce(b, old)
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
	b := m.bundleID(ev.adapter)
	if b == nil || b.mode == BundleTeam && m.adapter(b.name) == nil {
		m.reply(ev.reply, fmt.Errorf("bundle %s: %w", ev.adapter, ErrNotFound))
		return
	}
	i := b.index(ev.why)
	if i < 0 {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: it is not a member", b.name, ev.why, ErrNotFound))
		return
	}
	if b.mode == BundleNDIS5 {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: an ndis5 bundle promotes only when its primary has left (remove %s first)", b.name, ev.why, ErrFailure, b.primary))
		return
	}
	if !m.stillUsable(b, i) {
		m.reply(ev.reply, fmt.Errorf("bundle %s: promote %s: %w: it is not running and connected, or is being reset", b.name, ev.why, ErrInvalidState))
		return
	}
	b.pinned = ev.why
	if b.set.member != i {
		const why = "promoted by hand"
		old := b.set
		set := teamSet{epoch: old.epoch, member: i, overlap: -1, stay: old.stay, lag: old.lag}
		if old.carriers != nil {
			set.carriers = old.carriers
			if !old.active(i) {
				set.carriers = append(slices.Clone(old.carriers), i)
			}
			if old.overlap != i {
				set.overlap = old.overlap
			}
		} else if old.member >= 0 && m.stillUsable(b, old.member) {
			set.overlap = old.member
			b.overlapTo = m.now.Add(failbackOverlap)
		}
		if old.member >= 0 && m.stillUsable(b, old.member) {
			set.successors = []int{old.member}
		}
		m.publish(b, set, why)
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
	Active   string         `json:"active"` // "" when no member is usable; with BalanceHash the one that takes group frames
	Balance  Balance        `json:"balance"`
	Failback Failback       `json:"failback"`
	Hold     jsonDuration   `json:"hold"`
	Members  []BundleMember `json:"members"`
}

// BundleMember is one member in a BundleInfo.
type BundleMember struct {
	Adapter string       `json:"adapter"`
	Role    string       `json:"role"`    // "active" (with BalanceHash several are), "standby", "down"; in ndis5 mode "primary", "secondary"
	Verdict Verdict      `json:"verdict"` // in ndis5 mode up or down: of use or not, whatever its role
	State   AdapterState `json:"state"`
	Link    LinkState    `json:"link"`
	Probe   string       `json:"probe,omitempty"`
}

// jsonDuration prints as "1s" in JSON.
type jsonDuration time.Duration

// MarshalJSON writes the duration with its unit.
func (d jsonDuration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

func (m *machine) bundleInfo(b *mBundle) BundleInfo {
	info := BundleInfo{Name: b.name, Mode: b.mode, Balance: b.balance, Failback: b.failback, Hold: jsonDuration(b.hold), Active: b.primary}
	if b.mode == BundleTeam {
		info.Active = b.memberName(b.set.member)
	}
	for _, i := range b.preference() {
		n := b.members[i]
		bm := BundleMember{Adapter: n, Role: "down"}
		if a := m.adapter(n); a != nil {
			bm.State, bm.Link = a.state, a.link
			up := a.state == StateRunning && !a.surprise
			if b.mode == BundleNDIS5 {
				if up && a.link.Connected() && !a.stuck && !a.asleep { // without a link it keeps its place, and carries nothing
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
				case b.set.active(i):
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
