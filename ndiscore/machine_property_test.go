package ndiscore

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMachineProperties feeds the machine random sequences of every event, has
// its calls end in any order, well, badly or never, and checks what it asks for
// against a model of what the drivers may be asked.
func TestMachineProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := newPlay(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"start":           func(rt *rapid.T) { p.operation(rt, evStart) },
			"pause":           func(rt *rapid.T) { p.operation(rt, evPause) },
			"stop":            func(rt *rapid.T) { p.operation(rt, evStop) },
			"remove":          func(rt *rapid.T) { p.operation(rt, evRemove) },
			"start more":      func(rt *rapid.T) { p.operation(rt, evStart) },
			"remove miniport": func(rt *rapid.T) { p.mark(rt, evRemoveMiniport) },
			"surprise":        func(rt *rapid.T) { p.mark(rt, evSurprise) },
			"shutdown": func(rt *rapid.T) {
				if rapid.IntRange(0, 19).Draw(rt, "rarely") == 0 {
					p.operation(rt, evShutdown)
				}
			},
			"arrived":   p.arrived,
			"done":      p.complete,
			"done more": p.complete,
			"done most": p.complete,
			"link":      p.link,
			"moved":     p.moved,
			"promote":   p.promote,
			"observe":   p.observe,
			"tick":      p.tick,
			"protocol":  p.protocol,
			"add":       p.add,
			"":          func(*rapid.T) {},
		})
		p.finish()
	})
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
}

type play struct {
	rt       *rapid.T
	m        *machine
	now      time.Time
	adapters map[string]*model
	pending  []action
	replies  int
	answered map[int]int
	active   map[string]teamSet // as the data path has it
	names    []string
	trace    []string
}

func newPlay(rt *rapid.T) *play {
	p := &play{
		rt: rt, m: &machine{decider: firstUsable{}}, now: time.Unix(1000, 0),
		adapters: map[string]*model{}, answered: map[int]int{}, active: map[string]teamSet{},
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
	mo := &model{hasDevice: a.hasDevice, hasPnP: a.hasPnP, bindings: map[string]BindingState{}, link: LinkState{Media: MediaConnected}}
	if n == "a0" {
		a.filters = []*mFilter{{name: "f"}, {name: "g", mandatory: true}}
		mo.filters = map[string]FilterState{"f": FilterDetached, "g": FilterDetached}
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
	case actBindsComplete:
		p.pending = append(p.pending, a)
		return
	case actStatus:
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
	if mo.dead {
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
		need(mo.device || !mo.hasDevice, "its device is not started")
		need(mo.inits == mo.halts, "it was not halted")
	case actHalt:
		need(mo.state == StatePaused, "it is not paused")
		need(bindings(BindingUnbound), "somebody is bound")
		need(filters(FilterDetached), "a filter is attached")
		need(mo.inits == mo.halts+1, "it was not initialised")
		need(a.halt != HaltNone, "there is no reason")
		mo.halts++
	case actRestart:
		need(mo.state == StatePaused, "it is not paused")
		need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
	case actPause:
		need(mo.state == StateRunning, "it does not run")
		need(bindings(BindingPaused) && filters(FilterPaused), "somebody above runs")
	case actAttach:
		need(mo.state == StatePaused || mo.state == StateRunning, "it is not initialised")
		need(mo.filters[a.filter] == FilterDetached, "it is attached")
	case actRestartFilter:
		need(mo.state == StateRunning && mo.filters[a.filter] == FilterPaused, "it cannot run")
	case actPauseFilter:
		need(mo.filters[a.filter] == FilterRunning, "it does not run")
	case actDetach:
		need(mo.filters[a.filter] == FilterPaused, "it is not paused")
	case actBind:
		need(mo.state == StatePaused || mo.state == StateRunning, "it is not initialised")
		need(mo.bindings[key] == BindingUnbound, "it is bound")
	case actRestartBinding:
		need(mo.state == StateRunning && mo.bindings[key] == BindingPaused, "it cannot run")
	case actPauseBinding:
		need(mo.bindings[key] == BindingRunning, "it does not run")
	case actUnbind:
		need(mo.bindings[key] == BindingPaused, "it is not paused")
	case actPnP:
		need(mo.state != StateHalted && mo.surprise && mo.hasPnP, "there is nothing to tell")
	default:
		p.fail("unexpected action %s (%d)", a, a.kind)
	}
	mo.busy = &a
	p.pending = append(p.pending, a)
}

// usableMember reports whether a team may point at member i.
func (p *play) usableMember(b *mBundle, i int) bool {
	mo := p.adapters[b.members[i]]
	a := p.m.adapter(b.members[i])
	return mo != nil && a != nil && mo.state == StateRunning && !mo.dead && !mo.surprise && a.goal == goalUp &&
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
		if cur.epoch != b.set.epoch || cur.member != b.set.member {
			p.fail("team %s: the control side thinks %v (epoch %#x), the data path %v (epoch %#x)", name, b.set, b.set.epoch, cur, cur.epoch)
		}
	}
}

func (p *play) draw(rt *rapid.T) string { return rapid.SampledFrom(p.names).Draw(rt, "adapter") }

func (p *play) operation(rt *rapid.T, k eventKind) {
	n := p.draw(rt)
	p.replies++
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
	if a.kind == actBindsComplete {
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
		case actStartDevice, actInitialize, actAttach, actRestart, actRestartFilter, actBind:
			ev.err = errors.New("refused")
			if end == 1 && a.kind == actStartDevice {
				ev.err = ErrDeviceAbsent
			}
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
			ev.link = mo.link
		}
	case actHalt:
		mo.state = StateHalted
		mo.surprise = false
	case actRestart:
		if ok {
			mo.state = StateRunning
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

// moved has the data path go to its next successor.
func (p *play) moved(rt *rapid.T) {
	cur, ok := p.active["wan"]
	if !ok || len(cur.successors) == 0 {
		return
	}
	i := rapid.IntRange(0, len(cur.successors)-1).Draw(rt, "successor")
	next := teamSet{epoch: cur.epoch + dataPathEpoch, member: cur.successors[i], overlap: -1, successors: cur.successors[i+1:]}
	p.active["wan"] = next
	if p.m.adapter("wan") == nil {
		p.step(event{kind: evMoved, adapter: "wan", member: next.member, epoch: next.epoch, why: "data path"})
		return
	}
	p.step(event{kind: evMoved, adapter: "wan", member: next.member, epoch: next.epoch, why: "data path"})
}

func (p *play) promote(rt *rapid.T) {
	p.replies++
	p.step(event{kind: evPromote, adapter: "wan", why: rapid.SampledFrom([]string{"a0", "a1", "a2", "nobody"}).Draw(rt, "member"), reply: p.replies})
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
	for n := 0; len(p.pending) > 0; n++ {
		if n > 10000 {
			p.fail("it never comes to rest")
		}
		p.end(0, 39)
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
		if a := p.m.adapter(n); a.goal == goalUp && !mo.dead && mo.state != StateRunning {
			p.fail("%s is to be up, but stays %s", n, mo.state)
		}
	}
}
