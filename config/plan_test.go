package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestPlanGolden compares the plans from testdata/plan/NAME.old.toml to
// NAME.new.toml with the golden files beside them. Without an old file the
// switch runs nothing yet.
func TestPlanGolden(t *testing.T) {
	for _, path := range globbed(t, "testdata/plan/*.new.toml") {
		stem := strings.TrimSuffix(path, ".new.toml")
		t.Run(filepath.Base(stem), func(t *testing.T) {
			load := func(path string) *Config {
				c, err := Load(path, testDrivers(), testFilters()...)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			var old *Config
			if _, err := os.Stat(stem + ".old.toml"); err == nil {
				old = load(stem + ".old.toml")
			}
			wanted := load(path)
			plan := Plan(old, wanted)
			if len(plan.Refused) == 0 && old != nil {
				carryOut(t, plan, old, wanted)
			}
			golden(t, stem+".plan", []byte(plan.String()))
			js, err := json.MarshalIndent(plan, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, stem+".json", append(js, '\n'))
		})
	}
}

func TestPlanEmpty(t *testing.T) {
	for _, path := range globbed(t, "testdata/good/*.toml") {
		c, err := Load(path, testDrivers(), testFilters()...)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Load(path, testDrivers(), testFilters()...)
		if err != nil {
			t.Fatal(err)
		}
		if p := Plan(c, again); !p.Empty() || p.Err() != nil || p.String() != "nothing to do\n" {
			t.Errorf("%s: to itself:\n%s", path, p)
		}
	}
	if js, err := json.Marshal(Plan(Default(), Default())); err != nil || string(js) != `{"refused":[],"steps":[]}` {
		t.Errorf("empty as JSON: %s %v", js, err)
	}
}

// TestPlanRefused: what only a new process takes over is said, and nothing else
// hides it.
func TestPlanRefused(t *testing.T) {
	a, b := Default(), Default()
	b.Control, b.Log.Format, b.Log.Level = Control{Socket: "/s", Mode: "0660", Group: "net"}, "json", "debug"
	p := Plan(a, b)
	want := `control.socket "" -> "/s": needs a restart of the process
control.mode "0600" -> "0660": needs a restart of the process
control.group "" -> "net": needs a restart of the process
log.format "console" -> "json": needs a restart of the process`
	if err := p.Err(); err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if len(p.Steps) != 1 || p.Steps[0].String() != `update log: level "info" -> "debug"` {
		t.Errorf("steps: %v", p.Steps)
	}
}

// running is a model of the switch: what is there, and how it was told to be.
type running struct {
	Log, Fault, NAT keyed
	Adapters        map[string]*runningAdapter
	Bundles         map[string]keyed
	Probes          map[string]keyed
	Bridges         map[string]*runningBridge
	Interfaces      map[string]*runningInterface
	Routes          map[string]Route
	Forwards        map[string]Forward
}

// keyed is a table: its keys as TOML writes their values.
type keyed map[string]string

type runningAdapter struct {
	Driver, Device string
	Options        keyed
	Filters        []string // name and what it is told
}

type runningBridge struct {
	Keys  keyed
	Ports map[string]keyed
}

type runningInterface struct {
	Keys      keyed
	Addresses []netip.Prefix
}

// tableOf flattens a struct, less some keys.
func tableOf(v any, less ...string) keyed {
	out := keyed{}
	var add func(path string, v reflect.Value)
	add = func(path string, v reflect.Value) {
		for _, f := range mustFields(v.Type()) {
			if key := join(path, f.key); formOf(f.typ) == formTable {
				add(key, v.FieldByIndex(f.index))
			} else if !slices.Contains(less, key) {
				out[key] = literal(v.FieldByIndex(f.index))
			}
		}
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer {
		rv = rv.Elem()
	}
	add("", rv)
	return out
}

func named[T any](list []T, name string, of func(T) string) (T, bool) {
	i := slices.IndexFunc(list, func(e T) bool { return of(e) == name })
	if i < 0 {
		var none T
		return none, false
	}
	return list[i], true
}

func modelFilter(c *Config, name string) string {
	f, _ := named(c.Filters, name, func(f Filter) string { return f.Name })
	return fmt.Sprint(name, " ", f.Driver, " ", tableOf(f.Options))
}

func modelAdapter(c *Config, a Adapter) *runningAdapter {
	m := &runningAdapter{Driver: a.Driver, Device: deviceKey(a), Options: tableOf(a.Options)}
	for _, f := range a.Filters {
		m.Filters = append(m.Filters, modelFilter(c, f))
	}
	return m
}

func modelBridge(b Bridge) *runningBridge {
	m := &runningBridge{tableOf(b, "ports"), map[string]keyed{}}
	for _, p := range b.Ports {
		m.Ports[p] = tableOf(b.Port(p))
	}
	return m
}

func modelInterface(i Interface) *runningInterface {
	return &runningInterface{tableOf(i), i.Addresses}
}

func modelBundle(b Bundle) keyed { return tableOf(b, probing...) }

func model(c *Config) *running {
	m := &running{
		Log: tableOf(c.Log), Fault: tableOf(c.Fault), NAT: tableOf(c.NAT),
		Adapters: map[string]*runningAdapter{}, Bundles: map[string]keyed{}, Probes: map[string]keyed{},
		Bridges: map[string]*runningBridge{}, Interfaces: map[string]*runningInterface{}, Routes: map[string]Route{}, Forwards: map[string]Forward{},
	}
	for _, a := range c.Adapters {
		m.Adapters[a.Name] = modelAdapter(c, a)
	}
	for _, b := range c.Bundles {
		m.Bundles[b.Name] = modelBundle(b)
		if p, ok := probeOf(b); ok {
			m.Probes[b.Name] = tableOf(p)
		}
	}
	for _, b := range c.Bridges {
		m.Bridges[b.Name] = modelBridge(b)
	}
	for _, i := range c.Interfaces {
		m.Interfaces[i.Name] = modelInterface(i)
	}
	for _, r := range c.Routes {
		m.Routes[r.String()] = r
	}
	for _, f := range c.Forwards {
		m.Forwards[f.String()] = f
	}
	return m
}

// fataler is a test, of rapid or not.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// operator carries a plan out on a model, knowing no more than the plan says and
// what the new configuration says about the things that it names.
type operator struct {
	fataler
	plan     Changes
	old, new *Config
	m        *running
	at       int
	broken   bool // old is no configuration that Parse would accept
}

func carryOut(t fataler, plan Changes, old, wanted *Config) {
	t.Helper()
	(&operator{fataler: t, plan: plan, old: old, new: wanted, m: model(old)}).carryOut()
}

func (o *operator) carryOut() {
	o.Helper()
	for i, s := range o.plan.Steps {
		o.at = i
		o.step(s)
		if !o.broken {
			o.check(s)
		}
	}
	if d := cmp.Diff(model(o.new), o.m, compare); d != "" {
		o.Fatalf("the plan leads elsewhere (-wanted +got):\n%s\n%s", d, o.plan)
	}
}

// want fails the test unless ok.
func (o *operator) want(ok bool, format string, args ...any) {
	o.Helper()
	if !ok {
		o.Fatalf("step %d, %s: %s\nin:\n%s", o.at, o.plan.Steps[o.at], fmt.Sprintf(format, args...), o.plan)
	}
}

// set makes the changes of a step in a table.
func (o *operator) set(k keyed, changes []Change) {
	o.want(len(changes) > 0, "changes nothing")
	for _, c := range changes {
		o.want(k[c.Key] == c.From && c.From != c.To, "%s is %s", c.Key, k[c.Key])
		k[c.Key] = c.To
	}
}

// put adds name, or removes it, or has change change it.
func put[T any](o *operator, m map[string]T, s Step, made func() (T, bool), change func(T)) {
	_, there := m[s.Name]
	o.want(there == (s.Op != OpAdd), "is it there? %v", there)
	switch s.Op {
	case OpAdd:
		v, ok := made()
		o.want(ok, "the configuration has none")
		m[s.Name] = v
	case OpRemove:
		delete(m, s.Name)
	default:
		o.want(change != nil, "cannot be done")
		change(m[s.Name])
	}
}

func (o *operator) step(s Step) {
	o.want(s.Why != nil && s.Disruptive != nil, "a list is nil")
	m := o.m
	switch s.Kind {
	case KindLog:
		o.set(m.Log, s.Why)
	case KindFault:
		o.set(m.Fault, s.Why)
	case KindNAT:
		o.set(m.NAT, s.Why)
	case KindAdapter:
		o.adapter(s)
	case KindFilter:
		o.filter(s)
	case KindBundle:
		put(o, m.Bundles, s, func() (keyed, bool) {
			b, ok := named(o.new.Bundles, s.Name, func(b Bundle) string { return b.Name })
			for _, member := range b.Members {
				o.want(m.Adapters[member] != nil, "member %s is missing", member)
			}
			return modelBundle(b), ok
		}, func(k keyed) {
			o.want(len(only(s.Why, "mode")) == 0, "cannot be done to a running bundle")
			was, mac := unlisted(k["members"]), k["mac"]
			o.set(k, s.Why)
			now := unlisted(k["members"])
			o.want(k["mac"] != `"first"` || mac == k["mac"] && was[0] == now[0], "a running team does not take over another first member's address")
			o.want(slices.ContainsFunc(now, func(m string) bool { return slices.Contains(was, m) }), "nobody stays of %v", was)
			if s.Members != nil {
				o.want(slices.Equal(s.Members, now) && len(now) < len(was), "it says that %v stay", s.Members)
			}
			for _, member := range now {
				o.want(m.Adapters[member] != nil || slices.Contains(was, member), "member %s is missing", member)
			}
		})
	case KindProbe:
		put(o, m.Probes, s, func() (keyed, bool) {
			b, ok := named(o.new.Bundles, s.Name, func(b Bundle) string { return b.Name })
			p, _ := probeOf(b)
			return tableOf(p), ok
		}, func(k keyed) { o.set(k, s.Why) })
	case KindBridge:
		put(o, m.Bridges, s, func() (*runningBridge, bool) {
			b, ok := named(o.new.Bridges, s.Name, func(b Bridge) string { return b.Name })
			for _, port := range b.Ports {
				o.want(m.Adapters[port] != nil || m.Bundles[port] != nil, "port %s is missing", port)
			}
			return modelBridge(b), ok
		}, func(b *runningBridge) {
			o.want(len(only(s.Why, "mac")) == 0, "cannot be done to a running bridge")
			for _, c := range s.Why {
				k := b.Keys
				if rest, ok := strings.CutPrefix(c.Key, "port."); ok {
					port, key, _ := strings.Cut(rest, ".")
					k, c.Key = b.Ports[port], key
				}
				o.set(k, []Change{c})
			}
		})
	case KindPort:
		bridge := m.Bridges[s.On]
		o.want(bridge != nil, "there is no bridge %s", s.On)
		put(o, bridge.Ports, s, func() (keyed, bool) {
			b, ok := named(o.new.Bridges, s.On, func(b Bridge) string { return b.Name })
			o.want(m.Adapters[s.Name] != nil || m.Bundles[s.Name] != nil, "there is no such port")
			return tableOf(b.Port(s.Name)), ok && slices.Contains(b.Ports, s.Name)
		}, nil)
	case KindInterface:
		put(o, m.Interfaces, s, func() (*runningInterface, bool) {
			i, ok := named(o.new.Interfaces, s.Name, func(i Interface) string { return i.Name })
			o.want(m.Adapters[i.On] != nil || m.Bundles[i.On] != nil || m.Bridges[i.On] != nil, "there is no %s to stand on", i.On)
			return modelInterface(i), ok
		}, func(i *runningInterface) {
			o.set(i.Keys, s.Why)
			if len(only(s.Why, "addresses")) > 0 {
				n, _ := named(o.new.Interfaces, s.Name, func(i Interface) string { return i.Name })
				i.Addresses = n.Addresses
			}
		})
	case KindRoute:
		put(o, m.Routes, s, func() (Route, bool) { return named(o.new.Routes, s.Name, Route.String) }, nil)
	case KindForward:
		put(o, m.Forwards, s, func() (Forward, bool) { return named(o.new.Forwards, s.Name, Forward.String) }, nil)
	default:
		o.want(false, "unknown kind")
	}
}

func (o *operator) adapter(s Step) {
	made := func() (*runningAdapter, bool) {
		a, ok := named(o.new.Adapters, s.Name, func(a Adapter) string { return a.Name })
		return modelAdapter(o.new, a), ok
	}
	put(o, o.m.Adapters, s, made, func(*runningAdapter) {
		o.want(s.Op == OpRestart && len(s.Why) > 0, "cannot be done")
		o.m.Adapters[s.Name], _ = made()
	})
}

func (o *operator) filter(s Step) {
	a := o.m.Adapters[s.On]
	o.want(a != nil, "there is no adapter %s", s.On)
	is := func(f string) bool { return strings.HasPrefix(f, s.Name+" ") }
	at := slices.IndexFunc(a.Filters, is)
	o.want((at >= 0) == (s.Op != OpAdd), "is it there? %d", at)
	o.want(s.Op != OpRemove || at == s.Index, "it is at %d", at)
	if s.Op != OpAdd {
		a.Filters = slices.Delete(slices.Clone(a.Filters), at, at+1)
	}
	if s.Op != OpRemove {
		o.want(s.Index >= 0 && s.Index <= len(a.Filters), "there are %d", len(a.Filters))
		a.Filters = slices.Insert(slices.Clone(a.Filters), s.Index, modelFilter(o.new, s.Name))
	}
	if len(a.Filters) == 0 {
		a.Filters = nil
	}
}

func isRouter(k Kind) bool {
	return k == KindInterface || k == KindRoute || k == KindForward || k == KindNAT
}

// check looks for what a running switch cannot be.
func (o *operator) check(s Step) {
	m := o.m
	lower := slices.Concat(slices.Collect(maps.Keys(m.Adapters)), slices.Collect(maps.Keys(m.Bundles)), slices.Collect(maps.Keys(m.Bridges)))
	for i, name := range lower {
		o.want(!slices.Contains(lower[:i], name), "two things are called %s", name)
	}
	devices := map[string]bool{}
	for name, a := range m.Adapters {
		o.want(a.Device == "" || !devices[a.Device], "adapter %s: somebody else has %s", name, a.Device)
		devices[a.Device] = true
	}
	for name, b := range m.Bundles {
		o.want(b["health.probe"] == `""` || b["mode"] == `"ndis5"` || m.Probes[name] != nil, "bundle %s asks for proof that nobody gives", name)
	}
	// What is used, and that it is used once. A name that is missing is one that
	// is made anew, or the bundle or bridge of an interface that moves.
	used := map[string]string{}
	use := func(name, by string) {
		if !slices.Contains(lower, name) {
			_, wasAdapter := named(o.old.Adapters, name, func(a Adapter) string { return a.Name })
			o.want(o.comes(name) || o.moves(by) && !wasAdapter, "%s uses %s, which is gone", by, name)
		}
		o.want(used[name] == "", "%s and %s use %s", used[name], by, name)
		used[name] = by
	}
	for name, b := range m.Bundles {
		var drivers []string
		for _, member := range unlisted(b["members"]) {
			use(member, "bundle "+name)
			if a := m.Adapters[member]; a != nil {
				drivers = append(drivers, a.Driver)
			}
		}
		slices.Sort(drivers)
		o.want(b["mode"] != `"ndis5"` || len(slices.Compact(drivers)) < 2, "the members of bundle %s have drivers %v", name, drivers)
	}
	for name, b := range m.Bridges {
		for port := range b.Ports {
			use(port, "bridge "+name)
		}
	}
	if last := o.at == len(o.plan.Steps)-1; isRouter(s.Kind) && !last && isRouter(o.plan.Steps[o.at+1].Kind) {
		return // the router comes to know of its steps together
	}
	for name, i := range m.Interfaces {
		use(strings.Trim(i.Keys["on"], `"`), "interface "+name)
		for other, j := range m.Interfaces {
			for _, a := range i.Addresses {
				for _, b := range j.Addresses {
					o.want(name == other || !a.Overlaps(b) || a.Addr().IsLinkLocalUnicast(), "%s of %s and %s of %s", a, name, b, other)
				}
			}
		}
		o.want(i.Keys["masquerade"] == "false" || slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() }), "%s masquerades without an address", name)
	}
	for name, r := range m.Routes {
		i := m.Interfaces[r.Interface]
		o.want(i != nil && slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Contains(r.Via) }), "route %s leads nowhere", name)
	}
	for name, f := range m.Forwards {
		i := m.Interfaces[f.Interface]
		o.want(i != nil && slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == f.To.Addr.Is4() }), "forward %s has no interface", name)
	}
}

// comes reports whether a later step adds something called name.
func (o *operator) comes(name string) bool {
	return slices.ContainsFunc(o.plan.Steps[o.at:], func(s Step) bool {
		return s.Op == OpAdd && s.Name == name && (s.Kind == KindAdapter || s.Kind == KindBundle || s.Kind == KindBridge)
	})
}

// moves reports whether a later step moves an interface.
func (o *operator) moves(by string) bool {
	return slices.ContainsFunc(o.plan.Steps[o.at:], func(s Step) bool { return s.Op == OpMove && by == "interface "+s.Name })
}

// unlisted takes a list of names apart.
func unlisted(list string) []string {
	var out []string
	for _, s := range strings.Split(strings.Trim(list, "[]"), ", ") {
		if s != "" {
			out = append(out, strings.Trim(s, `"`))
		}
	}
	return out
}

// drawSmall makes a configuration of few names and few values, so that two of
// them have much in common.
func drawSmall(t *rapid.T) *Config {
	c := Default()
	chance := func(label string) bool { return rapid.Bool().Draw(t, label) }
	pick := func(label string, n int) int { return rapid.IntRange(0, n-1).Draw(t, label) }
	c.Log.Level = []string{"info", "debug"}[pick("level", 2)]
	c.Fault.Allow = chance("allow")
	c.NAT.Flows += pick("flows", 2)

	var filters []string
	for i := range 4 {
		if pick("filter", 6) > 0 {
			f := Filter{Name: fmt.Sprint("f", i), Driver: "mangle", Options: &mangleOptions{Drop: share(pick("drop", 8) / 7), Direction: "both"}}
			c.Filters = append(c.Filters, f)
			filters = append(filters, f.Name)
		}
	}
	names := []string{"n0", "n1", "n2", "n3", "n4", "n5", "n6"}
	if pick("shuffled", 4) == 0 {
		names = rapid.Permutation(names).Draw(t, "names")
	}
	devices := []int{0, 1, 2, 3, 4, 5, 6}
	if pick("recabled", 3) == 0 {
		devices = rapid.Permutation(devices).Draw(t, "devices")
	}
	take := func() string { // a name that nothing has
		name := names[0]
		names = names[1:]
		return name
	}
	takeLast := func() string {
		slices.Reverse(names)
		defer func() { slices.Reverse(names) }()
		return take()
	}
	other := pick("other drivers", 4) == 0
	var free []Adapter
	for i := range 5 - pick("fewer adapters", 3)*pick("yes", 2) {
		a := Adapter{Name: take()}
		if a.Driver = "loop"; (i < 3) != other || pick("wire", 4) == 0 {
			a.Driver = "wire"
		}
		for _, d := range testDrivers() {
			if d.Name == a.Driver {
				a.Options = d.NewOptions()
			}
		}
		switch o := a.Options.(type) {
		case *wireOptions:
			o.Interface = fmt.Sprint("eth", devices[i])
		case *loopOptions:
			o.Queues += pick("queues", 4) / 3
		}
		if len(filters) > 0 && chance("filtered") {
			a.Filters = rapid.Permutation(filters).Draw(t, "modules")[:1+pick("modules", len(filters))]
		}
		c.Adapters = append(c.Adapters, a)
		free = append(free, a)
	}
	var lower []string // what nothing stands on yet
	for len(names) > 0 && len(free) >= 2 && chance("bundle") {
		b := defaultBundle()
		b.Name = takeLast()
		n := min(2+pick("more", 2), len(free))
		for _, a := range free[:n] {
			b.Members = append(b.Members, a.Name)
		}
		if b.Mode = "team"; free[0].Driver == free[1].Driver && n == 2 && chance("ndis5") {
			b.Mode = "ndis5"
		}
		if b.Mode == "team" && chance("mac") {
			b.MAC = "first"
		}
		if b.Mode == "team" && chance("probe") {
			b.Health.Probe, b.Health.Target = "neighbor", netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + pick("target", 2))})
		}
		if b.Mode == "team" {
			b.Failback = []string{"always", "never"}[pick("failback", 2)]
		}
		c.Bundles = append(c.Bundles, b)
		lower, free = append(lower, b.Name), free[n:]
	}
	for _, a := range free {
		lower = append(lower, a.Name)
	}
	for len(names) > 0 && len(lower) > 0 && chance("bridge") {
		b := defaultBridge()
		b.Name, b.VLAN = takeLast(), pick("vlan", 2)
		n := 1 + pick("ports", len(lower))
		b.Ports, lower = lower[:n:n], lower[n:]
		b.MAC = []string{"", "02:00:5e:00:53:01"}[pick("bridge mac", 2)]
		for _, port := range b.Ports {
			if chance("port options") {
				b.PortOptions = append(b.PortOptions, BridgePort{Name: port, Access: b.VLAN * pick("access", 3), StormUnknown: pick("storm", 2)})
			}
		}
		c.Bridges = append(c.Bridges, b)
		lower = append(lower, b.Name)
		if len(lower) > 1 && chance("no more bridges") {
			break
		}
		// A bridge is no port of another one.
		lower = slices.DeleteFunc(lower, func(s string) bool { return s == b.Name && chance("bare bridge") })
		if slices.Contains(lower, b.Name) {
			break
		}
	}
	nets := rapid.Permutation([]int{1, 2, 3, 4}).Draw(t, "nets")
	for i, on := range lower {
		if i == len(nets) || !chance("interface") {
			continue
		}
		f := Interface{Name: fmt.Sprint("i", pick("interface name", 2)*4+i), On: on, MTU: []int{0, 1500}[pick("mtu", 2)]}
		four := netip.AddrFrom4([4]byte{10, byte(nets[i]), 0, byte(1 + pick("host", 2))})
		f.Addresses = append(f.Addresses, netip.PrefixFrom(four, 24))
		six := netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1/64", nets[i]))
		if chance("IPv6") {
			f.Addresses = append(f.Addresses, six)
		}
		f.Masquerade = chance("masquerade")
		c.Interfaces = append(c.Interfaces, f)
		if chance("route") {
			via := netip.AddrFrom4([4]byte{10, byte(nets[i]), 0, byte(8 + pick("via", 2))})
			c.Routes = append(c.Routes, Route{netip.MustParsePrefix("0.0.0.0/0"), via, f.Name, uint32(i)})
		}
		if chance("forward") {
			to := Target{netip.AddrFrom4([4]byte{10, 9, 0, byte(1 + pick("to", 2))}), PortRange{80, 80}}
			c.Forwards = append(c.Forwards, Forward{f.Name, "tcp", PortRange{8080, 8080}, to})
		}
	}
	checked, err := Parse("drawn", c.TOML(), testDrivers(), testFilters()...)
	if err != nil {
		t.Fatalf("the test draws what is no configuration: %v\n%s", err, c.TOML())
	}
	return checked
}

// TestPlanReaches: whatever runs and whatever is wanted, the plan leads there,
// by states that a switch can be in, and touches nothing that stays as it is.
func TestPlanReaches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := drawSmall(t)
		wanted := old
		switch rapid.IntRange(0, 9).Draw(t, "wanted") {
		case 0: // the same
		case 1:
			wanted = Default()
		default:
			wanted = drawSmall(t)
		}
		plan := Plan(old, wanted)
		if wanted == old && !plan.Empty() {
			t.Fatalf("to itself: %s", plan)
		}
		carryOut(t, plan, old, wanted)
		untouched(t, plan, old, wanted)
		if again := Plan(old, wanted); !reflect.DeepEqual(plan, again) {
			t.Fatalf("another plan the second time:\n%s\nand\n%s", plan, again)
		}
		back := Plan(wanted, old)
		carryOut(t, back, wanted, old)
		if plan.Empty() != back.Empty() {
			t.Fatalf("there:\n%s\nback:\n%s", plan, back)
		}
	})
}

// TestPlanFromBroken: also where things were taken away by hand under others, the
// plan leads to what is wanted.
func TestPlanFromBroken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, wanted := *drawSmall(t), drawSmall(t)
		gone := func() bool { return rapid.IntRange(0, 3).Draw(t, "gone") == 0 }
		old.Adapters = slices.DeleteFunc(slices.Clone(old.Adapters), func(Adapter) bool { return gone() })
		old.Bundles = slices.DeleteFunc(slices.Clone(old.Bundles), func(Bundle) bool { return gone() })
		old.Bridges = slices.DeleteFunc(slices.Clone(old.Bridges), func(Bridge) bool { return gone() })
		old.Interfaces = slices.DeleteFunc(slices.Clone(old.Interfaces), func(Interface) bool { return gone() })
		(&operator{fataler: t, plan: Plan(&old, wanted), old: &old, new: wanted, m: model(&old), broken: true}).carryOut()
	})
}

// TestPlanAroundRemoved: what was removed by hand and stays configured is no reason
// to touch anything else.
func TestPlanAroundRemoved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := *drawSmall(t)
		now.Adapters = slices.DeleteFunc(slices.Clone(now.Adapters), func(Adapter) bool { return rapid.IntRange(0, 2).Draw(t, "gone") == 0 })
		goal := now
		goal.Routes = nil
		for _, s := range Plan(&now, &goal).Steps {
			if s.Kind != KindRoute {
				t.Fatalf("%s", s)
			}
		}
	})
}

// TestPlanBounded: a plan is not much longer than the files it is made of, nor
// does it take long.
func TestPlanBounded(t *testing.T) {
	var old, wanted, list strings.Builder
	for i := range 2500 {
		fmt.Fprintf(&old, "[filter.f%d]\ndriver=\"count\"\n", i)
		fmt.Fprintf(&list, "\"f%d\",", i)
	}
	wanted.WriteString(old.String())
	fmt.Fprintf(&old, "[adapter.a]\ndriver=\"loop\"\nfilters=[%s]\n", list.String())
	list.Reset()
	for i := range 2500 {
		fmt.Fprintf(&list, "\"f%d\",", 2499-i)
	}
	fmt.Fprintf(&wanted, "[adapter.a]\ndriver=\"loop\"\nfilters=[%s]\n", list.String())
	fmt.Fprintf(&wanted, "[adapter.b]\ndriver=\"wire\"\ninterface=\"b\"\ntags=[\"%s\"]\n", strings.Repeat("ä", 400_000))
	fmt.Fprintf(&old, "[adapter.b]\ndriver=\"wire\"\ninterface=\"b\"\n")
	parse := func(text string) *Config {
		c, err := Parse("f", []byte(text), testDrivers(), testFilters()...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plan := Plan(parse(old.String()), parse(wanted.String()))
	if len(plan.Steps) != 2500 { // the adapter, and all modules but one
		t.Errorf("%d steps", len(plan.Steps))
	}
	if n := len(plan.String()); n > 200_000 {
		t.Errorf("%d bytes", n)
	}
}

// untouched checks that each step is about something that is different.
func untouched(t fataler, plan Changes, old, wanted *Config) {
	t.Helper()
	a, b := model(old), model(wanted)
	same := func(x, y any) bool { return cmp.Equal(x, y, compare) }
	for _, s := range plan.Steps {
		var idle bool
		switch s.Kind {
		case KindAdapter:
			x, y := a.Adapters[s.Name], b.Adapters[s.Name]
			idle = x != nil && y != nil && x.Driver == y.Driver && same(x.Options, y.Options)
		case KindFilter:
			idle = same(a.Adapters[s.On].Filters, b.Adapters[s.On].Filters)
		case KindBundle:
			// The members of an ndis5 bundle change their driver together.
			idle = same(a.Bundles[s.Name], b.Bundles[s.Name]) && !strings.HasPrefix(fmt.Sprint(s.Why), "[adapter.")
		case KindProbe:
			idle = same(a.Probes[s.Name], b.Probes[s.Name])
		case KindBridge:
			idle = same(a.Bridges[s.Name], b.Bridges[s.Name])
		case KindPort:
			x, y := a.Bridges[s.On].Ports[s.Name], b.Bridges[s.On].Ports[s.Name]
			idle = x != nil && y != nil
		case KindInterface:
			idle = same(a.Interfaces[s.Name], b.Interfaces[s.Name])
		case KindRoute:
			idle = same(a.Routes[s.Name], b.Routes[s.Name])
		case KindForward:
			idle = same(a.Forwards[s.Name], b.Forwards[s.Name])
		}
		if idle {
			t.Fatalf("%s: is as it was\n%s", s, plan)
		}
	}
}

// TestPlanFilters: of the modules of an adapter as few as possible are moved.
func TestPlanFilters(t *testing.T) {
	config := func(list string) *Config {
		c := Default()
		a := Adapter{Name: "a", Driver: "loop", Options: &loopOptions{}}
		a.Filters = append(a.Filters, strings.Fields(list)...)
		for _, f := range []string{"a", "b", "c", "d", "e"} {
			c.Filters = append(c.Filters, Filter{Name: f, Driver: "count", Options: &struct{}{}})
		}
		c.Adapters = append(c.Adapters, a)
		return c
	}
	for _, tt := range []struct{ old, new, want string }{
		{"a b c d e", "b c d e a", "move a at 4"},
		{"a b c d e", "e a b c d", "move e at 0"},
		{"a b c", "c b a", "move c at 0, move b at 1"},
		{"", "a b", "add a at 0, add b at 1"},
		{"a b c", "b", "remove a at 0, remove c at 1"},
		{"a b c", "a d c b", "add d at 1, move c at 2"},
	} {
		var got []string
		for _, s := range Plan(config(tt.old), config(tt.new)).Steps {
			got = append(got, fmt.Sprintf("%s %s at %d", s.Op, s.Name, s.Index))
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("[%s] to [%s]: %s, want %s", tt.old, tt.new, s, tt.want)
		}
	}
}
