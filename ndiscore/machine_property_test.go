package ndiscore

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var modelSteps = flag.Int("model.steps", 100_000, "how many random steps TestMachineProperties takes")

// TestMachineProperties feeds the machine random sequences of every event, has
// its calls end in any order, well, badly or never, and checks what it asks for
// against a model of what the drivers may be asked, and each answer against what
// was asked for. A failure prints the seed, and rapid how to play it again.
func TestMachineProperties(t *testing.T) {
	const each = 200 // steps in one sequence, on average
	setFlag(t, "rapid.steps", strconv.Itoa(each))
	setFlag(t, "rapid.checks", strconv.Itoa(max(1, *modelSteps/each)))
	if flag.Lookup("rapid.seed").Value.String() == "0" {
		setFlag(t, "rapid.seed", strconv.FormatInt(time.Now().UnixNano(), 10))
	}
	t.Logf("seed %s (-rapid.seed)", flag.Lookup("rapid.seed").Value)
	steps := 0
	rapid.Check(t, func(rt *rapid.T) {
		p := newPlay(rt)
		op := func(k eventKind) func(*rapid.T) { return func(rt *rapid.T) { p.operation(rt, k) } }
		acts := map[string]func(*rapid.T){
			"start":           op(evStart),
			"start more":      op(evStart),
			"start most":      op(evStart),
			"pause":           op(evPause),
			"stop":            op(evStop),
			"remove":          op(evRemove),
			"suspend":         op(evSuspend),
			"resume":          op(evResume),
			"resume more":     op(evResume),
			"query":           op(evQuery),
			"cancel query":    op(evCancelQuery),
			"reset":           op(evReset),
			"inhibit":         op(evInhibit),
			"require pause":   op(evHold),
			"remove miniport": func(rt *rapid.T) { p.mark(rt, evRemoveMiniport) },
			"surprise":        func(rt *rapid.T) { p.mark(rt, evSurprise) },
			"miniport reset":  func(rt *rapid.T) { p.mark(rt, evMiniportReset) },
			"shutdown": func(rt *rapid.T) {
				if rapid.IntRange(0, 19).Draw(rt, "rarely") == 0 {
					p.operation(rt, evShutdown)
				}
			},
			"allow":         func(rt *rapid.T) { p.step(event{kind: evAllow, adapter: p.draw(rt)}) },
			"allow start":   func(rt *rapid.T) { p.step(event{kind: evRelease, adapter: p.draw(rt)}) },
			"insert filter": p.insertFilter,
			"remove filter": p.removeFilter,
			"move filter":   p.moveFilter,
			"arrived":       p.arrived,
			"done":          p.complete,
			"done more":     p.complete,
			"done most":     p.complete,
			"done all":      p.completeAll,
			"link":          p.link,
			"moved":         p.moved,
			"promote":       p.promote,
			"secondary": func(rt *rapid.T) {
				p.ask(event{kind: evSecondary, adapter: p.draw(rt), target: p.draw(rt)})
			},
			"promote self": func(rt *rapid.T) { p.ask(event{kind: evPromoteSelf, adapter: p.draw(rt)}) },
			"observe":      p.observe,
			"tick":         p.tick,
			"poll time":    p.pollTime,
			"protocol":     p.protocol,
			"targets":      p.setTargets,
			"deregister":   p.deregister,
			"unbind":       p.unbind,
			"reenumerate":  p.reenumerate,
			"add":          p.add,
			"":             func(*rapid.T) { steps++ },
		}
		rt.Repeat(acts)
		p.finish()
	})
	t.Logf("%d steps", steps)
	if steps < *modelSteps/2 {
		t.Errorf("only %d steps of %d", steps, *modelSteps)
	}
}

// setFlag sets a flag of rapid's for the length of the test.
func setFlag(t *testing.T, name, v string) {
	f := flag.Lookup(name)
	was := f.Value.String()
	if err := flag.Set(name, v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, was) })
}

// model is what is known of one adapter from the calls made and how they ended.
type model struct {
	hasDevice, hasPnP bool
	state             AdapterState
	device            bool
	busy              *action
	dead              bool // quarantined or shut down
	down              bool // no call but the one in progress: shut down
	surprise          bool
	awaiting          bool
	inits, halts      int
	bindings          map[string]BindingState
	filters           map[string]FilterState
	link              LinkState
	attrs             Attributes
	asleep, forgot    bool     // suspended; and halted for it, with settings lost
	told              NetEvent // the newest power event
	paused            bool     // by hand, and not started since
	resets            int
}

// asked is an operation that waits for its answer.
type asked struct {
	kind     eventKind
	adapter  string
	filter   string
	protocol string
	since    int // how many modules had been inserted
}

type play struct {
	rt       *rapid.T
	m        *machine
	now      time.Time
	adapters map[string]*model
	pending  []action
	replies  int
	answered map[int]int
	ops      map[int]asked
	inserted int                // filter modules, ever
	newest   map[string]int     // the module of that name, as numbered by inserted
	active   map[string]teamSet // as the data path has it
	names    []string
	trace    []string
}

func newPlay(rt *rapid.T) *play {
	p := &play{
		rt: rt, m: &machine{decider: firstUsable{}}, now: time.Unix(1000, 0),
		adapters: map[string]*model{}, answered: map[int]int{}, active: map[string]teamSet{},
		ops: map[int]asked{}, newest: map[string]int{},
	}
	p.names = []string{"a0", "a1", "a2"}
	kind := rapid.SampledFrom([]string{"none", "team", "team", "ndis5"}).Draw(rt, "bundle")
	targets := []string{"a0", "a1", "a2"}
	b := &mBundle{name: "wan", members: []string{"a0", "a1", "a2"}, set: teamSet{member: -1, overlap: -1}}
	if rapid.Bool().Draw(rt, "down delay") {
		b.down = 100 * time.Millisecond
	}
	switch kind {
	case "team":
		if rapid.Bool().Draw(rt, "hash") {
			b.balance = BalanceHash
		}
		p.m.bundles = append(p.m.bundles, b)
		p.m.protocols = append(p.m.protocols, &mProtocol{name: teamProtocol("wan"), targets: b.members})
		p.names = append(p.names, "wan")
		targets = []string{"wan", "a2"}
		p.active["wan"] = b.set
	case "ndis5":
		b.mode = BundleNDIS5
		p.m.bundles = append(p.m.bundles, b)
		targets = []string{"wan"}
	}
	p.m.protocols = append(p.m.protocols, &mProtocol{name: "P1", targets: targets})
	for _, n := range p.names {
		p.addAdapter(n)
	}
	return p
}

func (p *play) addAdapter(n string) {
	virtual := n == "wan"
	a := &mAdapter{name: n, virtual: virtual, hasDevice: !virtual && n != "a2", hasPnP: !virtual && n != "a1"}
	a.hasReset = n == "a1" || n == "a2"
	mo := &model{
		hasDevice: a.hasDevice, hasPnP: a.hasPnP, bindings: map[string]BindingState{}, filters: map[string]FilterState{},
		link: LinkState{Media: MediaConnected}, attrs: Attributes{PowerAware: a.hasReset, NoPauseOnSuspend: n == "a2"},
	}
	if n == "a0" {
		a.filters = []*mFilter{{name: "f"}, {name: "g", mandatory: true}}
		mo.filters["f"], mo.filters["g"] = FilterDetached, FilterDetached
	}
	p.adapters[n] = mo
	p.m.adapters = append(p.m.adapters, a)
}

func (p *play) fail(format string, args ...any) {
	for _, l := range p.trace[max(0, len(p.trace)-60):] {
		p.rt.Log(l)
	}
	p.rt.Fatalf(format, args...)
}

func (p *play) step(ev event) {
	what := fmt.Sprintf("event %d %s %s", ev.kind, ev.adapter, ev.why)
	if ev.action != nil {
		what = fmt.Sprintf("done %s: %v", ev.action, ev.err)
	}
	p.trace = append(p.trace, what)
	for _, a := range p.m.step(p.now, ev) {
		if s := a.String(); s != "" {
			p.trace = append(p.trace, "    "+s)
		}
		p.check(a)
	}
	p.usable()
	for n, mo := range p.adapters {
		if m := p.m.adapter(n); mo.busy == nil && mo.state == StateHalted && m.goal == goalRest && !m.asleep {
			mo.asleep, mo.told = false, 0 // it was stopped in its sleep, or did not wake up
		}
	}
}

// check holds one action against the model.
func (p *play) check(a action) {
	mo := p.adapters[a.adapter]
	switch a.kind {
	case actOper:
		return
	case actReply:
		p.answered[a.reply]++
		if p.answered[a.reply] > 1 {
			p.fail("operation %d is answered twice", a.reply)
		}
		if a.err == nil {
			p.kept(a.reply)
		}
		return
	case actTeam:
		p.published(a)
		return
	case actForget:
		if mo.busy != nil || mo.state != StateHalted {
			p.fail("%s is forgotten while %s", a.adapter, mo.state)
		}
		delete(p.adapters, a.adapter)
		return
	case actAwait:
		mo.awaiting = true
		return
	case actShutdown:
		return
	case actBindsComplete, actBindList:
		p.pending = append(p.pending, a)
		return
	case actLeft:
		for n, mo := range p.adapters {
			for key, s := range mo.bindings {
				if s != BindingUnbound && protocolOf(key) == a.protocol {
					p.fail("%s has left, and is bound to %s", a.protocol, n)
				}
			}
		}
		return
	case actUnstack:
		if mo.filters[a.filter] != FilterDetached {
			p.fail("%s of %s is gone, and %s", a.filter, a.adapter, mo.filters[a.filter])
		}
		delete(mo.filters, a.filter)
		return
	case actReorder:
		if len(a.names) != len(mo.filters) {
			p.fail("the new order %v of %s is not of its modules %v", a.names, a.adapter, mo.filters)
		}
		for _, n := range a.names {
			if _, ok := mo.filters[n]; !ok {
				p.fail("the new order %v of %s is not of its modules %v", a.names, a.adapter, mo.filters)
			}
		}
		return
	case actStatus, actFollow:
		if mo == nil {
			p.fail("status for an adapter that is not there")
		}
		return
	case actClose, actPrimary, actWake, actEvent:
		return
	}
	if mo == nil {
		p.fail("%s: no such adapter", a)
	}
	if mo.busy != nil {
		p.fail("%s while %s is under way", a, mo.busy)
	}
	// Protocols are rid of an adapter that hangs when another one took its place.
	if mo.dead && (mo.down || a.kind != actPauseBinding && a.kind != actUnbind) {
		p.fail("%s after a quarantine or shutdown", a)
	}
	key := a.protocol + "@" + a.target
	need := func(ok bool, why string) {
		if !ok {
			p.fail("%s, but %s (state %s, bindings %v, filters %v)", a, why, mo.state, mo.bindings, mo.filters)
		}
	}
	bindings := func(worst BindingState) bool {
		for _, s := range mo.bindings {
			if s > worst {
				return false
			}
		}
		return true
	}
	filters := func(worst FilterState) bool {
		for _, s := range mo.filters {
			if s > worst {
				return false
			}
		}
		return true
	}
	switch a.kind {
	case actStartDevice:
		need(mo.state == StateHalted && !mo.device && mo.hasDevice, "there is nothing to start")
	case actRemoveDevice:
		need(mo.state == StateHalted && mo.device, "there is nothing to remove")
	case actInitialize:
		need(mo.state == StateHalted, "it is not halted")
		need(mo.asleep || bindings(BindingUnbound) && filters(FilterDetached), "somebody is above it")
		need(mo.device || !mo.hasDevice, "its device is not started")
		need(mo.inits == mo.halts, "it was not halted")
	case actHalt:
		need(mo.state == StatePaused, "it is not paused")
		if a.halt == HaltPoweredDown {
			need(!mo.attrs.PowerAware && mo.told == EventSetPowerD3, "it is not to be halted for that")
			need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
		} else {
			need(bindings(BindingUnbound), "somebody is bound")
			need(filters(FilterDetached), "a filter is attached")
		}
		need(mo.inits == mo.halts+1, "it was not initialised")
		need(a.halt != HaltNone, "there is no reason")
		mo.halts++
	case actRestart:
		need(mo.state == StatePaused, "it is not paused")
		need(!mo.asleep && !(mo.forgot && bound(mo)), "it sleeps, or its settings are lost")
		need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
	case actPause:
		need(mo.state == StateRunning, "it does not run")
		need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
	case actAttach:
		need(mo.state == StatePaused && !mo.asleep, "it is not paused")
		need(mo.filters[a.filter] == FilterDetached, "it is attached")
		need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
		if p.module(a).mandatory {
			need(bindings(BindingUnbound), "somebody is bound, and it is mandatory")
		}
	case actRestartFilter:
		need(mo.state == StateRunning && mo.filters[a.filter] == FilterPaused, "it cannot run")
		need(bindings(BindingPaused), "somebody above runs")
		p.around(a, func(f *mFilter, below bool) {
			s := mo.filters[f.name]
			need(!below || s == FilterRunning || s == FilterDetached, f.name+" below it does not run")
			need(below || s <= FilterPaused, f.name+" above it runs")
		})
	case actPauseFilter:
		need(mo.filters[a.filter] == FilterRunning, "it does not run")
		need(bindings(BindingPaused), "somebody above runs")
		p.around(a, func(f *mFilter, below bool) {
			need(below || mo.filters[f.name] <= FilterPaused, f.name+" above it runs")
		})
	case actDetach:
		need(mo.filters[a.filter] == FilterPaused, "it is not paused")
	case actBind:
		need((mo.state == StatePaused || mo.state == StateRunning) && !mo.asleep, "it is not initialised, or it sleeps")
		need(mo.bindings[key] == BindingUnbound, "it is bound")
		for n, other := range p.adapters {
			need(other == mo || other.bindings[key] == BindingUnbound, "it is bound for the same target to "+n)
		}
		m := p.m.adapter(a.adapter)
		need(!m.queried && !m.inhibited, "nobody is to be bound")
	case actRestartBinding:
		need(mo.state == StateRunning && mo.bindings[key] == BindingPaused, "it cannot run")
		need(!mo.asleep && !p.m.adapter(a.adapter).held, "it is to stay paused")
		for _, f := range p.m.adapter(a.adapter).filters {
			s := mo.filters[f.name]
			need(s == FilterRunning || s == FilterDetached && (f.leaving || !f.mandatory), f.name+" does not run")
		}
	case actPauseBinding:
		need(mo.bindings[key] == BindingRunning, "it does not run")
	case actUnbind:
		need(mo.bindings[key] == BindingPaused, "it is not paused")
	case actPnP:
		need(mo.state != StateHalted && mo.surprise && mo.hasPnP, "there is nothing to tell")
	case actNotify:
		need(mo.state == StatePaused || mo.state == StateRunning || mo.asleep, "it is not initialised")
		switch a.notice {
		case EventQueryPower:
			need(!mo.asleep && mo.told == 0, "they know")
		case EventSetPowerD3:
			need(!mo.asleep && mo.told == EventQueryPower, "it was not asked first")
		case EventSetPowerD0:
			need(!mo.asleep && mo.told != 0, "they do not wait for it")
		}
	case actSetPower:
		need(mo.attrs.PowerAware, "it knows no sleep")
		if a.power == PowerD0 {
			need(mo.asleep, "it is awake")
			break
		}
		need(!mo.asleep && mo.told == EventSetPowerD3, "it is not to be asked now")
		if mo.state != StatePaused {
			need(mo.state == StateRunning && mo.attrs.NoPauseOnSuspend, "it is not paused")
			for _, f := range p.m.adapter(a.adapter).filters {
				need(f.hears || mo.filters[f.name] == FilterDetached, f.name+" does not hear of it")
			}
		}
	case actRestore:
		need(mo.state == StatePaused && !mo.asleep, "it is not just awake")
	case actReset, actPoll:
		m := p.m.adapter(a.adapter)
		need(m.hasReset && (mo.state == StatePaused || mo.state == StateRunning) && !mo.asleep, "it cannot be reset now")
		need(!m.surprise && m.goal != goalDown, "it is leaving")
		if a.kind == actReset {
			mo.resets++
		}
	default:
		p.fail("unexpected action %s (%d)", a, a.kind)
	}
	if a.kind == actInitialize {
		mo.surprise = false // what vanished before is forgotten
		if !p.m.adapter(a.adapter).asleep {
			mo.asleep, mo.told = false, 0 // it went down meanwhile
		}
	}
	mo.busy = &a
	p.pending = append(p.pending, a)
}

func protocolOf(key string) string {
	i := slices.Index([]byte(key), '@')
	return key[:i]
}

func (p *play) module(a action) *mFilter { return p.m.adapter(a.adapter).module(a.filter) }

// around visits the other modules of a's adapter.
func (p *play) around(a action, f func(x *mFilter, below bool)) {
	below := true
	for _, x := range p.m.adapter(a.adapter).filters {
		if x.name == a.filter {
			below = false
			continue
		}
		f(x, below)
	}
}

// kept checks that an operation that is answered well has done what it says.
func (p *play) kept(id int) {
	op := p.ops[id]
	mo, m := p.adapters[op.adapter], p.m.adapter(op.adapter)
	need := func(ok bool) {
		if !ok {
			p.fail("operation %d (event %d on %s) is answered well, and that is not so: %+v", id, op.kind, op.adapter, mo)
		}
	}
	switch op.kind {
	case evStart:
		need(!mo.asleep && (mo.state == StateRunning || m.held))
		mo.paused = false
	case evResume: // what was paused when it was put to sleep stays so
		need(!mo.asleep && (mo.state == StateRunning || m.held || mo.state == StatePaused && mo.paused))
	case evPause:
		need(mo.state == StatePaused)
		mo.paused = true
	case evStop:
		need(mo.state == StateHalted && (m == nil || !m.asleep))
	case evRemove:
		need(mo.state == StateHalted && !mo.device && m == nil)
	case evSuspend:
		need(mo.asleep)
	case evInhibit:
		for _, s := range mo.bindings {
			need(s == BindingUnbound || !m.inhibited)
		}
	case evHold:
		need(mo.state != StateRunning || mo.asleep || !m.held)
	case evFilterAdded:
		if f := m.module(op.filter); f != nil && !f.leaving && p.newest[op.adapter+op.filter] == op.since {
			need(mo.filters[op.filter] != FilterDetached || mo.state == StateHalted)
		}
	case evFilterLeaves:
		need(m.module(op.filter) == nil || p.newest[op.adapter+op.filter] > op.since)
	case evLeave:
		pr := p.m.protocol(op.protocol)
		for _, mo := range p.adapters {
			for key, s := range mo.bindings {
				if protocolOf(key) != op.protocol || s == BindingUnbound {
					continue
				}
				need(pr != nil && slices.Contains(pr.targets, key[len(op.protocol)+1:]))
			}
		}
	}
}

// usableMember reports whether a team may point at member i.
func (p *play) usableMember(b *mBundle, i int) bool {
	mo := p.adapters[b.members[i]]
	a := p.m.adapter(b.members[i])
	if mo != nil && mo.busy != nil && mo.busy.kind == actPauseBinding && mo.busy.protocol == teamProtocol(b.name) {
		return false // from the moment it is asked to pause
	}
	return mo != nil && a != nil && mo.state == StateRunning && !mo.asleep && !mo.dead && !mo.surprise && a.goal == goalUp &&
		mo.bindings[teamProtocol(b.name)+"@"+a.name] == BindingRunning && a.link.Connected()
}

// published holds a team's new set against the members' states.
func (p *play) published(a action) {
	b := p.m.bundle(a.adapter)
	other := false
	for i := range b.members {
		other = other || i != a.set.member && p.usableMember(b, i)
	}
	if a.set.member < 0 && other {
		p.fail("%s: no member, though one is usable", a)
	}
	if a.set.member >= 0 && other && !p.usableMember(b, a.set.member) {
		p.fail("%s: the member is not usable, and another one is", a)
	}
	for _, s := range a.set.successors {
		if !p.usableMember(b, s) {
			p.fail("%s: successor %d is not usable", a, s)
		}
	}
	for _, c := range a.set.carriers {
		if other && !p.usableMember(b, c) {
			p.fail("%s: %d carries flows, and is not usable", a, c)
		}
	}
	if cur := p.active[b.name]; cur.epoch == a.set.epoch { // as team.publish
		set := a.set
		set.epoch++
		p.active[b.name] = set
	}
}

// usable checks, after each step, that control and data path agree.
func (p *play) usable() {
	for name, cur := range p.active {
		b := p.m.bundle(name)
		if p.m.adapter(name) == nil {
			continue
		}
		if cur.epoch != b.set.epoch || cur.member != b.set.member || !slices.Equal(cur.carriers, b.set.carriers) {
			p.fail("team %s: the control side thinks %v (epoch %#x), the data path %v (epoch %#x)", name, b.set, b.set.epoch, cur, cur.epoch)
		}
	}
}

func (p *play) draw(rt *rapid.T) string { return rapid.SampledFrom(p.names).Draw(rt, "adapter") }

func (p *play) operation(rt *rapid.T, k eventKind) {
	n := p.draw(rt)
	p.replies++
	p.ops[p.replies] = asked{kind: k, adapter: n}
	if k == evShutdown {
		if mo := p.adapters[n]; mo != nil {
			mo.dead, mo.down = true, true
		}
	}
	p.step(event{kind: k, adapter: n, why: "test", reply: p.replies})
}

// mark is what a miniport says of itself: only while its handle is good.
func (p *play) mark(rt *rapid.T, k eventKind) {
	n := p.draw(rt)
	mo := p.adapters[n]
	if mo == nil || n == "wan" || mo.down {
		return
	}
	if mo.state == StateHalted && (mo.busy == nil || mo.busy.kind != actInitialize) {
		return
	}
	if k == evSurprise {
		mo.surprise = true
	}
	p.step(event{kind: k, adapter: n, why: "test"})
}

func (p *play) arrived(rt *rapid.T) {
	n := p.draw(rt)
	if mo := p.adapters[n]; mo != nil && mo.awaiting {
		mo.awaiting = false
		p.step(event{kind: evArrived, adapter: n, why: "it is back"})
	}
}

func (p *play) ask(ev event) {
	p.replies++
	ev.reply = p.replies
	p.ops[p.replies] = asked{kind: ev.kind, adapter: ev.adapter, filter: ev.filter, protocol: ev.protocol, since: p.newest[ev.adapter+ev.filter]}
	p.step(ev)
}

// insertFilter is Core.InsertFilter.
func (p *play) insertFilter(rt *rapid.T) {
	n, name := p.draw(rt), rapid.SampledFrom([]string{"f", "g", "h"}).Draw(rt, "filter")
	mandatory, hears, at := rapid.Bool().Draw(rt, "mandatory"), rapid.Bool().Draw(rt, "hears"), rapid.IntRange(0, 3).Draw(rt, "at")
	a := p.m.adapter(n)
	if a == nil || a.module(name) != nil || a.stuck || a.state == StateShutdown || a.sleeping() || a.goal == goalDown && a.forget {
		return
	}
	a.filters = slices.Insert(slices.Clone(a.filters), min(at, len(a.filters)), &mFilter{name: name, mandatory: mandatory, hears: hears})
	p.adapters[n].filters[name] = FilterDetached
	p.inserted++
	p.newest[n+name] = p.inserted
	p.ask(event{kind: evFilterAdded, adapter: n, filter: name, why: "test"})
}

func (p *play) removeFilter(rt *rapid.T) {
	p.ask(event{kind: evFilterLeaves, adapter: p.draw(rt), filter: rapid.SampledFrom([]string{"f", "g", "h"}).Draw(rt, "filter"), why: "test"})
}

// moveFilter is Core.MoveFilter.
func (p *play) moveFilter(rt *rapid.T) {
	n, at := p.draw(rt), rapid.IntRange(0, 3).Draw(rt, "at")
	a := p.m.adapter(n)
	if a == nil || len(a.filters) < 2 {
		return
	}
	p.ask(event{kind: evFilterMoved, adapter: n, filter: a.filters[0].name, place: at, why: "test"})
}

func (p *play) setTargets(rt *rapid.T) {
	pr := p.m.protocol(rapid.SampledFrom([]string{"P1", "P2"}).Draw(rt, "protocol"))
	targets := slices.Clone(p.names)
	targets = targets[rapid.IntRange(0, len(targets)).Draw(rt, "from"):]
	if pr == nil || pr.leaving {
		return
	}
	pr.targets, pr.complete = targets, false
	p.ask(event{kind: evLeave, protocol: pr.name})
}

func (p *play) deregister(*rapid.T) {
	if pr := p.m.protocol("P2"); pr != nil {
		pr.leaving = true
		p.ask(event{kind: evLeave, protocol: "P2"})
	}
}

func (p *play) unbind(rt *rapid.T) {
	p.step(event{kind: evUnbind, adapter: p.draw(rt), protocol: "P1"})
}

func (p *play) reenumerate(*rapid.T) { p.ask(event{kind: evReenumerate, protocol: "P1"}) }

// pollTime lets so much time pass that every poll is due.
func (p *play) pollTime(*rapid.T) {
	p.now = p.now.Add(hangCheckUnit)
	p.step(event{kind: evTick})
}

// completeAll lets most of what is pending return well, so that sequences get
// beyond the starts.
func (p *play) completeAll(*rapid.T) {
	for n := 0; len(p.pending) > 0 && n < 20; n++ {
		p.end(0, 39)
	}
}

func (p *play) complete(rt *rapid.T) {
	if len(p.pending) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.pending)-1).Draw(rt, "which")
	end := rapid.IntRange(0, 39).Draw(rt, "end")
	p.end(i, end)
}

// end has a pending call return: with success for end > 4, never for 0.
func (p *play) end(i, end int) {
	a := p.pending[i]
	p.pending = slices.Delete(p.pending, i, i+1)
	if a.kind == actBindsComplete || a.kind == actBindList {
		p.step(event{kind: evDone, adapter: a.adapter, action: &a})
		return
	}
	mo := p.adapters[a.adapter]
	mo.busy = nil
	ev := event{kind: evDone, adapter: a.adapter, action: &a}
	switch {
	case end == 0 && !mo.dead:
		mo.dead = true
		ev.err = fmt.Errorf("%w", ErrQuarantined)
		p.step(ev)
		return
	case end < 5:
		switch a.kind {
		case actStartDevice, actInitialize, actAttach, actRestart, actRestartFilter, actBind, actRestartBinding, actSetPower, actRestore:
			ev.err = errors.New("refused")
			if end == 1 && a.kind == actStartDevice {
				ev.err = ErrDeviceAbsent
			}
		case actReset:
			ev.err = []error{nil, ErrSoftErrors, ErrHardErrors, ErrHardErrors, ErrHardErrors}[end]
		case actNotify:
			if a.notice == EventQueryRemoveDevice {
				ev.err = ErrNotAccepted
			}
		case actPoll:
			ev.poll = pollResult{hung: end == 1, oid: uint64(end), sends: end - 1, done: 7}
		}
	}
	key := a.protocol + "@" + a.target
	ok := ev.err == nil
	switch a.kind {
	case actStartDevice:
		mo.device = ok
		mo.surprise = false
	case actRemoveDevice:
		mo.device = false
	case actInitialize:
		if ok {
			mo.state = StatePaused
			mo.inits++
			ev.link, ev.attrs = mo.link, mo.attrs
			mo.forgot, mo.asleep = mo.asleep && bound(mo), false
		}
	case actHalt:
		mo.state = StateHalted
		if a.halt == HaltPoweredDown {
			mo.asleep = true
		} else {
			mo.surprise, mo.asleep, mo.forgot, mo.told = false, false, false, 0
		}
	case actSetPower:
		if ok {
			mo.asleep = a.power == PowerD3
		}
	case actRestore:
		mo.forgot = false
	case actNotify:
		switch a.notice {
		case EventQueryPower, EventSetPowerD3:
			mo.told = a.notice
		case EventSetPowerD0:
			mo.told = 0
		}
	case actRestart:
		if ok {
			mo.state, mo.forgot = StateRunning, false
		}
	case actPause:
		mo.state = StatePaused
	case actAttach:
		if ok {
			mo.filters[a.filter] = FilterPaused
		}
	case actRestartFilter:
		if ok {
			mo.filters[a.filter] = FilterRunning
		}
	case actPauseFilter:
		mo.filters[a.filter] = FilterPaused
	case actDetach:
		mo.filters[a.filter] = FilterDetached
	case actBind:
		if ok {
			mo.bindings[key] = BindingPaused
		}
	case actRestartBinding:
		mo.bindings[key] = BindingRunning
	case actPauseBinding:
		mo.bindings[key] = BindingPaused
	case actUnbind:
		mo.bindings[key] = BindingUnbound
	}
	p.step(ev)
}

// bound reports whether anybody is bound to mo.
func bound(mo *model) bool {
	for _, s := range mo.bindings {
		if s != BindingUnbound {
			return true
		}
	}
	return false
}

func (p *play) link(rt *rapid.T) {
	n := p.draw(rt)
	mo := p.adapters[n]
	if mo == nil || n == "wan" {
		return
	}
	mo.link = LinkState{Media: rapid.SampledFrom([]MediaState{MediaConnected, MediaDisconnected}).Draw(rt, "media")}
	if mo.state != StateHalted {
		p.step(event{kind: evLink, adapter: n, link: mo.link})
	}
}

// moved has the data path leave a member for its next successor, or for those
// that share the flows.
func (p *play) moved(rt *rapid.T) {
	cur, ok := p.active["wan"]
	if !ok || cur.stay || cur.member < 0 {
		return
	}
	next := teamSet{epoch: cur.epoch + dataPathEpoch, member: cur.member, overlap: -1, lag: cur.lag}
	left := cur.member
	if cur.carriers != nil {
		left = rapid.SampledFrom(cur.carriers).Draw(rt, "carrier")
		next.carriers = slices.DeleteFunc(slices.Clone(cur.carriers), func(c int) bool { return c == left })
	}
	switch {
	case left != cur.member:
	case len(next.carriers) > 0:
		next.member = next.carriers[0]
	case len(cur.successors) > 0:
		next.member = rapid.SampledFrom(cur.successors).Draw(rt, "successor")
		if cur.carriers != nil {
			next.carriers = []int{next.member}
		}
	default:
		return
	}
	next.successors = slices.DeleteFunc(slices.Clone(cur.successors), func(s int) bool { return s == next.member || s == left })
	p.active["wan"] = next
	p.step(event{kind: evMoved, adapter: "wan", left: left, member: next.member, epoch: next.epoch, why: "data path"})
}

func (p *play) promote(rt *rapid.T) {
	p.ask(event{kind: evPromote, adapter: "wan", why: rapid.SampledFrom([]string{"a0", "a1", "a2", "nobody"}).Draw(rt, "member")})
}

func (p *play) observe(rt *rapid.T) {
	n := p.draw(rt)
	k := rapid.SampledFrom([]ObservationKind{ProbeSent, ProbeAnswered, ProbeLost}).Draw(rt, "kind")
	p.step(event{kind: evObserved, adapter: n, observed: Observation{Adapter: n, At: p.now, Kind: k}})
	p.step(event{kind: evFailureObserved, adapter: n})
}

func (p *play) tick(rt *rapid.T) {
	p.now = p.now.Add(time.Duration(rapid.IntRange(1, 1000).Draw(rt, "ms")) * time.Millisecond)
	p.step(event{kind: evTick})
}

// protocol has a second protocol come.
func (p *play) protocol(rt *rapid.T) {
	if p.m.protocol("P2") != nil {
		return
	}
	p.m.protocols = append(p.m.protocols, &mProtocol{name: "P2", targets: []string{p.draw(rt)}})
	p.step(event{kind: evBindingsChanged})
}

// add adds an adapter that was removed.
func (p *play) add(rt *rapid.T) {
	n := p.draw(rt)
	if p.adapters[n] == nil && n != "wan" {
		p.addAdapter(n)
	}
}

// finish lets every call return and checks that everybody was answered.
func (p *play) finish() {
	for n := 0; n < 3; n++ { // what a member that leaves still has under way ends too
		p.now = p.now.Add(time.Second)
		p.step(event{kind: evTick})
		for calls := 0; len(p.pending) > 0; calls++ {
			if calls > 10000 {
				p.fail("it never comes to rest")
			}
			p.end(0, 39)
		}
	}
	for id := 1; id <= p.replies; id++ {
		if p.answered[id] != 1 {
			p.fail("operation %d was answered %d times", id, p.answered[id])
		}
	}
	for n, mo := range p.adapters {
		if mo.inits-mo.halts > 1 || mo.inits < mo.halts {
			p.fail("%s: %d inits, %d halts", n, mo.inits, mo.halts)
		}
		if a := p.m.adapter(n); a.goal == goalUp && !mo.dead && mo.state != StateRunning && !a.held {
			p.fail("%s is to be up, but stays %s", n, mo.state)
		}
	}
}
