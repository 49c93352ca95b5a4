package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Plan lists what turns a switch that runs old into one that runs new, both of
// them checked, and touches nothing else. A nil old is a switch that runs
// nothing yet. It is pure.
//
// Its order, from the top of the old down, and up again with the new:
//
//	log, fault
//	interfaces that go, with their routes and forwards
//	ports that leave their bridge, bridges, bundles with their probes
//	members that leave their bundle because they go, or are somebody else's
//	interfaces that stand on something else from now on (there or not yet)
//	adapters that go
//	adapters that are made anew or added, filters
//	probes, bundles, bridges, ports
//	routes and forwards that go, interfaces, routes, forwards, NAT
//
// What belongs to the router and follows each other is one change: between two
// such steps an address may be on two interfaces, or a route lead nowhere.
func Plan(old, new *Config) Changes {
	if old == nil {
		old = &Config{Control: new.Control, Log: new.Log, NAT: new.NAT, Fault: new.Fault}
	}
	p := newPlanner(old, new)
	p.process()
	p.interfacesAway()
	p.bridgesAway()
	p.bundlesAway()
	p.membersAway()
	p.interfacesMoved()
	p.adaptersAway()
	p.adapters()
	p.bundles()
	p.bridges()
	p.router()
	return p.plan
}

// planner compares two configurations.
type planner struct {
	old, new *Config
	plan     Changes

	oldAdapters, newAdapters     map[string]int // by name: places in the lists
	oldFilters, newFilters       map[string]int
	oldBundles, newBundles       map[string]int
	oldBridges, newBridges       map[string]int
	oldInterfaces, newInterfaces map[string]int

	restarted map[string][]Change // adapters in both whose options changed
	freed     map[string]bool     // those of them whose device another one takes over
	remade    map[string][]Change // bundles and bridges in both that have to be made anew
	kept      map[string][]string // by name of a bundle in both: the members left by membersAway
	away      map[string]bool     // old adapters that are halted for a while, or for good
	upon      map[string][]string // by name of an adapter, bundle or bridge: who of old stands on it
	bundleOf  map[string]*Bundle  // by name of an adapter: the old bundle
}

func index[T any](list []T, name func(*T) string) map[string]int {
	m := make(map[string]int, len(list))
	for i := range list {
		m[name(&list[i])] = i
	}
	return m
}

func newPlanner(old, new *Config) *planner {
	p := &planner{
		old: old, new: new, plan: Changes{Refused: []Change{}, Steps: []Step{}},
		restarted: map[string][]Change{}, freed: map[string]bool{}, remade: map[string][]Change{}, kept: map[string][]string{},
		away: map[string]bool{}, upon: map[string][]string{}, bundleOf: map[string]*Bundle{},
	}
	adapter, filter := func(a *Adapter) string { return a.Name }, func(f *Filter) string { return f.Name }
	bundle, bridge := func(b *Bundle) string { return b.Name }, func(b *Bridge) string { return b.Name }
	iface := func(i *Interface) string { return i.Name }
	p.oldAdapters, p.newAdapters = index(old.Adapters, adapter), index(new.Adapters, adapter)
	p.oldFilters, p.newFilters = index(old.Filters, filter), index(new.Filters, filter)
	p.oldBundles, p.newBundles = index(old.Bundles, bundle), index(new.Bundles, bundle)
	p.oldBridges, p.newBridges = index(old.Bridges, bridge), index(new.Bridges, bridge)
	p.oldInterfaces, p.newInterfaces = index(old.Interfaces, iface), index(new.Interfaces, iface)

	p.compareAdapters()
	p.compareBundles()
	p.compareBridges()
	for i := range old.Bundles {
		for _, m := range old.Bundles[i].Members {
			p.bundleOf[m] = &old.Bundles[i]
		}
	}
	for _, b := range old.Bridges {
		for _, port := range b.Ports {
			p.upon[port] = append(p.upon[port], fmt.Sprintf("port %s of bridge %s", port, b.Name))
		}
	}
	for _, i := range old.Interfaces {
		p.upon[i.On] = append(p.upon[i.On], "interface "+i.Name)
	}
	return p
}

// step adds a step. Lists are never nil, so that JSON has none that is null.
func (p *planner) step(s Step) {
	s.Why = append([]Change{}, s.Why...)
	s.Disruptive = append([]string{}, s.Disruptive...)
	p.plan.Steps = append(p.plan.Steps, s)
}

// differences lists the keys in which two structs of one type differ, in the
// order of the keys.
func differences(path string, a, b reflect.Value) []Change {
	var out []Change
	for _, f := range mustFields(a.Type()) {
		key, av, bv := join(path, f.key), a.FieldByIndex(f.index), b.FieldByIndex(f.index)
		if formOf(f.typ) == formTable {
			out = append(out, differences(key, av, bv)...)
		} else if from, to := literal(av), literal(bv); from != to {
			out = append(out, Change{key, cut(from), cut(to)})
		}
	}
	return out
}

// cut keeps a value short enough to be shown.
func cut(literal string) string {
	if len(literal) <= maxShown {
		return literal
	}
	return strings.ToValidUTF8(literal[:maxShown], "") + "..."
}

// differ is differences of two whole tables.
func differ[T any](a, b T) []Change { return differences("", reflect.ValueOf(a), reflect.ValueOf(b)) }

// driverDifferences compares what a driver was told.
func driverDifferences(oldDriver, newDriver string, old, new any) []Change {
	if oldDriver != newDriver {
		return []Change{{"driver", quote(oldDriver), quote(newDriver)}}
	}
	return differences("", reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem())
}

// only keeps the changes of the keys listed.
func only(changes []Change, keys ...string) []Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c Change) bool { return !slices.Contains(keys, c.Key) })
}

// without drops the changes of the keys listed.
func without(changes []Change, keys ...string) []Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c Change) bool { return slices.Contains(keys, c.Key) })
}

func prefixed(prefix string, changes []Change) []Change {
	out := slices.Clone(changes)
	for i := range out {
		out[i].Key = prefix + "." + out[i].Key
	}
	return out
}

// process plans what belongs to the process itself.
func (p *planner) process() {
	refuse := func(section string, changes []Change) {
		for _, c := range changes {
			c.Key = section + "." + c.Key
			p.plan.Refused = append(p.plan.Refused, c)
		}
	}
	refuse("control", differ(p.old.Control, p.new.Control))
	log := differ(p.old.Log, p.new.Log)
	refuse("log", only(log, "format"))
	if c := only(log, "level"); len(c) > 0 {
		p.step(Step{Op: OpUpdate, Kind: KindLog, Why: c})
	}
	if c := differ(p.old.Fault, p.new.Fault); len(c) > 0 {
		p.step(Step{Op: OpUpdate, Kind: KindFault, Why: c})
	}
}

// ---- adapters and their filters ----

func deviceKey(a Adapter) string {
	if d, ok := a.Options.(DeviceKeyer); ok {
		return d.DeviceKey(a.Name)
	}
	return ""
}

func (p *planner) compareAdapters() {
	wanted := map[string]string{} // device: the adapter that is made anew for it
	for _, o := range p.old.Adapters {
		i, stays := p.newAdapters[o.Name]
		if !stays {
			p.away[o.Name] = true
			continue
		}
		n := p.new.Adapters[i]
		if c := driverDifferences(o.Driver, n.Driver, o.Options, n.Options); len(c) > 0 {
			p.restarted[o.Name], p.away[o.Name] = c, true
			wanted[deviceKey(n)] = o.Name
		}
	}
	for _, o := range p.old.Adapters {
		if p.restarted[o.Name] == nil {
			continue
		}
		key := deviceKey(o)
		if by, ok := wanted[key]; ok && key != "" && by != o.Name {
			p.freed[o.Name] = true
		}
	}
}

// losers names who loses traffic while an old adapter, bundle or bridge is away.
func (p *planner) losers(name string) []string {
	b := p.bundleOf[name]
	if b == nil {
		return p.upon[name]
	}
	members := b.Members
	if kept := p.kept[b.Name]; kept != nil {
		if !slices.Contains(kept, name) {
			return nil // it has left before
		}
		members = kept
	}
	for _, m := range members {
		if _, was := p.oldAdapters[m]; b.Mode == "team" && was && !p.away[m] {
			return nil // another member takes over
		}
	}
	return p.upon[b.Name]
}

func (p *planner) adaptersAway() {
	for i, a := range p.old.Adapters {
		if _, stays := p.newAdapters[a.Name]; !stays || p.freed[a.Name] {
			p.step(Step{
				Op: OpRemove, Kind: KindAdapter, Name: a.Name, Index: i, Again: stays,
				Why: p.restarted[a.Name], Disruptive: p.losers(a.Name),
			})
		}
	}
}

func (p *planner) adapters() {
	for i, n := range p.new.Adapters {
		if why := p.restarted[n.Name]; why != nil && !p.freed[n.Name] {
			p.step(Step{Op: OpRestart, Kind: KindAdapter, Name: n.Name, Index: i, Why: why, Disruptive: p.losers(n.Name)})
		}
	}
	for i, n := range p.new.Adapters {
		if _, was := p.oldAdapters[n.Name]; !was || p.freed[n.Name] {
			p.step(Step{Op: OpAdd, Kind: KindAdapter, Name: n.Name, Index: i, Again: was, Why: p.restarted[n.Name]})
		}
	}
	changed := map[string][]Change{}
	for _, o := range p.old.Filters {
		if i, stays := p.newFilters[o.Name]; stays {
			n := p.new.Filters[i]
			changed[o.Name] = prefixed("filter."+quoteKey(o.Name), driverDifferences(o.Driver, n.Driver, o.Options, n.Options))
		}
	}
	for _, n := range p.new.Adapters {
		if i, was := p.oldAdapters[n.Name]; was && p.restarted[n.Name] == nil {
			p.filters(p.old.Adapters[i], n, changed)
		}
	}
}

// filters turns the modules of one adapter into those it is to have. Of the
// modules that stay, as many as possible stay where they are.
func (p *planner) filters(old, new Adapter, changed map[string][]Change) {
	place := index(new.Filters, func(s *string) string { return *s })
	losers := p.losers(old.Name) // the adapter is paused for a moment
	var now []string
	anew := map[string]bool{}
	for _, f := range old.Filters {
		_, stays := place[f]
		if stays && len(changed[f]) == 0 {
			now = append(now, f)
			continue
		}
		anew[f] = stays
		s := Step{Op: OpRemove, Kind: KindFilter, Name: f, On: old.Name, Index: len(now), Again: stays, Disruptive: losers}
		if stays {
			s.Why = changed[f]
		}
		p.step(s)
	}
	settled := map[string]bool{}
	for _, f := range longestRising(now, place) {
		settled[f] = true
	}
	for i, f := range new.Filters {
		if settled[f] {
			continue
		}
		s := Step{Op: OpAdd, Kind: KindFilter, Name: f, On: old.Name, Disruptive: losers}
		if at := slices.Index(now, f); at >= 0 {
			now = slices.Delete(now, at, at+1)
			s.Op = OpMove
		} else if anew[f] {
			s.Again, s.Why = true, changed[f]
		}
		if i > 0 {
			s.Index = slices.Index(now, new.Filters[i-1]) + 1
		}
		now = slices.Insert(now, s.Index, f)
		p.step(s)
	}
}

// longestRising is the longest part of list, in order, whose places rise.
func longestRising(list []string, place map[string]int) []string {
	places := make([]int, len(list))
	best, before := make([]int, len(list)), make([]int, len(list)) // ending at i: length, and the element before
	last := -1
	for i, name := range list {
		places[i], best[i], before[i] = place[name], 1, -1
		for j := range i {
			if places[j] < places[i] && best[j] >= best[i] {
				best[i], before[i] = best[j]+1, j
			}
		}
		if last < 0 || best[i] > best[last] {
			last = i
		}
	}
	var out []string
	for ; last >= 0; last = before[last] {
		out = append(out, list[last])
	}
	slices.Reverse(out)
	return out
}

// ---- bundles and what probes their members ----

// probing are the keys that concern the prober alone.
var probing = []string{"health.target", "health.interval"}

// compareBundles finds the bundles that do not outlive the change: those of
// another mode, those of which no member stays, and those whose address is the
// first member's and does not stay that: a team takes it over when it begins.
func (p *planner) compareBundles() {
	for _, o := range p.old.Bundles {
		i, stays := p.newBundles[o.Name]
		if !stays {
			continue
		}
		n := p.new.Bundles[i]
		keys := []string{"mode"}
		if !slices.ContainsFunc(o.Members, func(m string) bool { return slices.Contains(n.Members, m) }) {
			keys = append(keys, "members")
		}
		if (o.MAC == "first" || n.MAC == "first") && (o.MAC != n.MAC || o.Members[0] != n.Members[0]) {
			keys = append(keys, "members", "mac")
		}
		why := only(differ(o, n), keys...)
		if o.Mode == "ndis5" && len(why) == 0 {
			for _, m := range o.Members { // of one driver, always
				for _, c := range only(p.restarted[m], "driver") {
					why = append(why, prefixed("adapter."+quoteKey(m), []Change{c})...)
				}
			}
		}
		if len(why) > 0 {
			p.remade[o.Name] = why
		}
	}
}

// probe is how the members of a bundle are asked.
type probe struct {
	Members []string `toml:"members"`
	Health  struct {
		Probe    string     `toml:"probe"`
		Target   netip.Addr `toml:"target"`
		Interval Duration   `toml:"interval"`
	} `toml:"health"`
}

// probeOf is nothing for a bundle without: the secondaries of an ndis5 bundle
// are hidden from every protocol.
func probeOf(b Bundle) (probe, bool) {
	p := probe{Members: b.Members}
	p.Health.Probe, p.Health.Target, p.Health.Interval = b.Health.Probe, b.Health.Target, b.Health.Interval
	return p, b.Mode == "team" && b.Health.Probe != ""
}

// newProbe is what is asked over the members of the bundle called name.
func (p *planner) newProbe(name string) (probe, bool) {
	if i, ok := p.newBundles[name]; ok {
		return probeOf(p.new.Bundles[i])
	}
	return probe{}, false
}

func (p *planner) bundlesAway() {
	for i, b := range p.old.Bundles {
		_, stays := p.newBundles[b.Name]
		if stays && p.remade[b.Name] == nil {
			continue
		}
		p.step(Step{
			Op: OpRemove, Kind: KindBundle, Name: b.Name, Index: i, Again: stays,
			Why: p.remade[b.Name], Disruptive: p.upon[b.Name],
		})
		p.probeAway(i)
	}
}

// membersAway takes members out of bundles that stay, where they are not there
// any more or belong to something else afterwards. Whoever else leaves does so
// when others have come.
func (p *planner) membersAway() {
	taken := map[string]bool{}
	for _, b := range p.new.Bundles {
		for _, m := range b.Members {
			taken[m] = true
		}
	}
	for _, b := range p.new.Bridges {
		for _, port := range b.Ports {
			taken[port] = true
		}
	}
	for _, i := range p.new.Interfaces {
		taken[i.On] = true
	}
	for _, o := range p.old.Bundles {
		i, stays := p.newBundles[o.Name]
		if !stays || p.remade[o.Name] != nil {
			continue
		}
		n, less := p.new.Bundles[i], o
		less.Members = slices.DeleteFunc(slices.Clone(o.Members), func(m string) bool {
			_, there := p.newAdapters[m]
			wanted := taken[m]
			return !slices.Contains(n.Members, m) && (!there || wanted)
		})
		if p.kept[o.Name] = less.Members; len(less.Members) < len(o.Members) {
			p.step(Step{
				Op: OpUpdate, Kind: KindBundle, Name: o.Name, Index: i, Members: less.Members,
				Why: differ(o, less), Disruptive: p.membersLosers(o, less.Members),
			})
		}
	}
}

// membersLosers names who loses traffic when an old bundle keeps of its members
// only some: those on one of mode ndis5, which may lose its primary, those on a
// team of which nobody is left who is there, and for a moment those whose address
// is that of whichever member is active.
func (p *planner) membersLosers(b Bundle, keeps []string) []string {
	there := func(m string) bool { _, was := p.oldAdapters[m]; return was }
	if len(keeps) == len(b.Members) || b.Mode == "team" && b.MAC != "active" && slices.ContainsFunc(keeps, there) {
		return nil
	}
	return p.upon[b.Name]
}

// probeAway ends the probe of an old bundle if the new one has none.
func (p *planner) probeAway(i int) {
	b := p.old.Bundles[i]
	_, was := probeOf(b)
	if _, is := p.newProbe(b.Name); was && !is {
		p.step(Step{Op: OpRemove, Kind: KindProbe, Name: b.Name, Index: i})
	}
}

// bundles asks for proof only while there is a probe that may give it.
func (p *planner) bundles() {
	for i, n := range p.new.Bundles {
		is, wanted := probeOf(n)
		if !wanted {
			continue
		}
		if o, ok := p.oldBundles[n.Name]; ok {
			if was, had := probeOf(p.old.Bundles[o]); had {
				if c := differ(was, is); len(c) > 0 {
					p.step(Step{Op: OpUpdate, Kind: KindProbe, Name: n.Name, Index: i, Why: c})
				}
				continue
			}
		}
		p.step(Step{Op: OpAdd, Kind: KindProbe, Name: n.Name, Index: i})
	}
	for i, n := range p.new.Bundles {
		o, was := p.oldBundles[n.Name]
		if why := p.remade[n.Name]; !was || why != nil {
			p.step(Step{Op: OpAdd, Kind: KindBundle, Name: n.Name, Index: i, Again: was, Why: why})
			continue
		}
		now := p.old.Bundles[o]
		now.Members = p.kept[n.Name]
		if c := without(differ(now, n), probing...); len(c) > 0 {
			stay := slices.DeleteFunc(slices.Clone(now.Members), func(m string) bool { return !slices.Contains(n.Members, m) })
			losers := p.membersLosers(now, stay)
			if len(only(c, "mac")) > 0 { // until the neighbours know the new one
				losers = p.upon[n.Name]
			}
			p.step(Step{Op: OpUpdate, Kind: KindBundle, Name: n.Name, Index: i, Why: c, Disruptive: losers})
		}
		p.probeAway(o)
	}
}

// ---- bridges ----

func (p *planner) compareBridges() {
	for _, o := range p.old.Bridges {
		if i, stays := p.newBridges[o.Name]; stays {
			if c := only(differ(o, p.new.Bridges[i]), "mac"); len(c) > 0 {
				p.remade[o.Name] = c
			}
		}
	}
}

func (p *planner) bridgesAway() {
	for _, o := range p.old.Bridges {
		i, stays := p.newBridges[o.Name]
		if !stays || p.remade[o.Name] != nil {
			continue
		}
		for at, port := range o.Ports {
			if !slices.Contains(p.new.Bridges[i].Ports, port) {
				p.step(Step{
					Op: OpRemove, Kind: KindPort, Name: port, On: o.Name, Index: at,
					Disruptive: []string{fmt.Sprintf("port %s of bridge %s", port, o.Name)},
				})
			}
		}
	}
	for i, o := range p.old.Bridges {
		_, stays := p.newBridges[o.Name]
		if why := p.remade[o.Name]; !stays || why != nil {
			p.step(Step{
				Op: OpRemove, Kind: KindBridge, Name: o.Name, Index: i, Again: stays,
				Why: why, Disruptive: append([]string{"bridge " + o.Name}, p.upon[o.Name]...),
			})
		}
	}
}

func (p *planner) bridges() {
	for i, n := range p.new.Bridges {
		at, was := p.oldBridges[n.Name]
		if why := p.remade[n.Name]; !was || why != nil {
			p.step(Step{Op: OpAdd, Kind: KindBridge, Name: n.Name, Index: i, Again: was, Why: why})
			continue
		}
		o := p.old.Bridges[at]
		why := without(differ(o, n), "ports")
		var losers []string
		if len(only(why, "vlan")) > 0 {
			losers = append([]string{"bridge " + n.Name}, p.upon[n.Name]...)
		}
		for _, port := range n.Ports {
			if !slices.Contains(o.Ports, port) {
				continue
			}
			c := differ(o.Port(port), n.Port(port))
			if len(only(c, "access", "trunk", "native")) > 0 {
				losers = append(losers, fmt.Sprintf("port %s of bridge %s", port, n.Name))
			}
			why = append(why, prefixed("port."+quoteKey(port), c)...)
		}
		if len(why) > 0 {
			p.step(Step{Op: OpUpdate, Kind: KindBridge, Name: n.Name, Index: i, Why: why, Disruptive: losers})
		}
	}
	for _, n := range p.new.Bridges {
		at, was := p.oldBridges[n.Name]
		if !was || p.remade[n.Name] != nil {
			continue
		}
		for i, port := range n.Ports {
			if !slices.Contains(p.old.Bridges[at].Ports, port) {
				p.step(Step{Op: OpAdd, Kind: KindPort, Name: port, On: n.Name, Index: i})
			}
		}
	}
}

// ---- the router ----

// interfacesAway removes interfaces, and first what names them. What names an
// interface that stays can wait: no other step depends on it.
func (p *planner) interfacesAway() {
	goes := func(name string) bool { _, stays := p.newInterfaces[name]; return !stays }
	p.routesAway(goes)
	for i, f := range p.old.Interfaces {
		if goes(f.Name) {
			p.step(Step{Op: OpRemove, Kind: KindInterface, Name: f.Name, Index: i, Disruptive: []string{"interface " + f.Name}})
		}
	}
}

// routesAway removes the routes and forwards of interfaces for which of is true
// that the new configuration does not have.
func (p *planner) routesAway(of func(iface string) bool) {
	routes, to := map[Route]bool{}, map[netip.Prefix]bool{}
	for _, r := range p.new.Routes {
		routes[r], to[r.To] = true, true
	}
	for i, r := range p.old.Routes {
		if routes[r] || !of(r.Interface) {
			continue
		}
		s := Step{Op: OpRemove, Kind: KindRoute, Name: r.String(), Index: i}
		if !to[r.To] {
			s.Disruptive = []string{"what goes to " + r.To.String()}
		}
		p.step(s)
	}
	forwards := map[Forward]bool{}
	for _, f := range p.new.Forwards {
		forwards[f] = true
	}
	for i, f := range p.old.Forwards {
		if !forwards[f] && of(f.Interface) {
			p.step(Step{
				Op: OpRemove, Kind: KindForward, Name: f.String(), Index: i,
				Disruptive: []string{fmt.Sprintf("%s %s at interface %s", f.Protocol, f.Port, f.Interface)},
			})
		}
	}
}

// interfacesMoved has interfaces let go of what they stand on. They take hold
// of the other thing when that appears.
func (p *planner) interfacesMoved() {
	for i, n := range p.new.Interfaces {
		o, was := p.oldInterfaces[n.Name]
		if !was {
			continue
		}
		if c := only(differ(p.old.Interfaces[o], n), "on"); len(c) > 0 {
			p.step(Step{Op: OpMove, Kind: KindInterface, Name: n.Name, Index: i, Why: c, Disruptive: []string{"interface " + n.Name}})
		}
	}
}

func (p *planner) router() {
	p.routesAway(func(name string) bool { _, stays := p.newInterfaces[name]; return stays })
	for i, n := range p.new.Interfaces {
		at, was := p.oldInterfaces[n.Name]
		if !was {
			p.step(Step{Op: OpAdd, Kind: KindInterface, Name: n.Name, Index: i})
			continue
		}
		o := p.old.Interfaces[at]
		if c := without(differ(o, n), "on"); len(c) > 0 {
			p.step(Step{Op: OpUpdate, Kind: KindInterface, Name: n.Name, Index: i, Why: c, Disruptive: interfaceLosers(o, n)})
		}
	}
	routes, forwards := map[Route]bool{}, map[Forward]bool{}
	for _, r := range p.old.Routes {
		routes[r] = true
	}
	for i, r := range p.new.Routes {
		if !routes[r] {
			p.step(Step{Op: OpAdd, Kind: KindRoute, Name: r.String(), Index: i})
		}
	}
	for _, f := range p.old.Forwards {
		forwards[f] = true
	}
	for i, f := range p.new.Forwards {
		if !forwards[f] {
			p.step(Step{Op: OpAdd, Kind: KindForward, Name: f.String(), Index: i})
		}
	}
	if c := differ(p.old.NAT, p.new.NAT); len(c) > 0 {
		p.step(Step{Op: OpUpdate, Kind: KindNAT, Why: c})
	}
}

// interfaceLosers says who loses connections when o becomes n in place.
func interfaceLosers(o, n Interface) []string {
	small := func(mtu int) bool { return mtu != 0 && mtu < minMTU6 }
	if small(o.MTU) != small(n.MTU) {
		return []string{"interface " + n.Name}
	}
	var out []string
	stays := map[netip.Addr]bool{}
	for _, a := range n.Addresses {
		stays[a.Addr()] = true
	}
	for _, a := range o.Addresses {
		if !stays[a.Addr()] {
			out = append(out, "address "+a.Addr().String())
		}
	}
	if o.Masquerade != n.Masquerade || o.Masquerade6 != n.Masquerade6 {
		out = append(out, "connections masqueraded at interface "+n.Name)
	}
	return out
}
