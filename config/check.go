package config

import (
	"errors"
	"net"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// checker holds a decoded configuration against itself.
type checker struct {
	*reader
	c *Config

	lower  map[string]lower  // adapters, bundles and bridges by name
	used   map[string]string // what is a member or port: the path that says so
	ifaces map[string]int    // interfaces by name: index
}

// lower is what an interface, bridge or bundle can stand on.
type lower struct {
	kind   string // "adapter", "bundle", "bridge"
	path   string
	driver string // of an adapter
}

func newChecker(r *reader, c *Config) *checker {
	return &checker{reader: r, c: c, lower: map[string]lower{}, used: map[string]string{}, ifaces: map[string]int{}}
}

func (k *checker) check() {
	k.control()
	k.names()
	k.filters()
	k.adapters()
	for i := range k.c.Bundles {
		k.bundle(&k.c.Bundles[i])
	}
	for i := range k.c.Bridges {
		k.bridge(&k.c.Bridges[i])
	}
	k.interfaces()
	k.subnets()
	k.routes()
	k.forwards()
	k.nat()
	k.fault()
}

// socketBytes is the longest path that fits into a unix socket's address
// (sun_path in unix(7), less the final zero).
const socketBytes = 107

func (k *checker) control() {
	s := k.c.Control.Socket
	switch {
	case s == "" || k.bad["control.socket"]:
	case s[0] != '/':
		k.fail("control.socket", "%s: want an absolute path", quote(short(s)))
	case strings.ContainsRune(s, 0):
		k.fail("control.socket", "a path cannot contain a zero byte")
	case len(s) > socketBytes:
		k.fail("control.socket", "is %d bytes long; the path of a unix socket has at most %d", len(s), socketBytes)
	}
	if k.bad["control.mode"] || k.bad["control.group"] {
		return
	}
	m := k.c.Control.Mode
	n, err := strconv.ParseUint(m, 8, 9)
	switch {
	case err != nil || len(m) < 3 || len(m) > 4:
		k.fail("control.mode", `%s is not a mode such as "0600"`, quote(short(m)))
	case n&0o007 != 0:
		k.fail("control.mode", "%s lets everybody in; set group, and leave the last digit 0", quote(m))
	case n&0o600 != 0o600:
		k.fail("control.mode", "%s shuts the owner out, who must read and write", quote(m))
	case k.c.Control.Group != "" && n&0o060 != 0o060:
		k.hint("control.mode", `"0660"`, "%s shuts the group %s out", quote(m), quote(short(k.c.Control.Group)))
	case k.c.Control.Group == "" && n&0o070 != 0:
		k.fail("control.mode", "%s lets a group in, and the key group is not set", quote(m))
	}
}

var goodName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,14}$`)

// names checks names and collects what they stand for.
func (k *checker) names() {
	add := func(kind, name, driver string) {
		path := join(kind, name)
		k.name(path, name)
		if old, ok := k.lower[name]; ok {
			k.fail(path, "the %s in line %d has the same name", old.kind, k.lineOf(old.path))
			return
		}
		k.lower[name] = lower{kind, path, driver}
	}
	for _, a := range k.c.Adapters {
		add("adapter", a.Name, a.Driver)
	}
	for _, b := range k.c.Bundles {
		add("bundle", b.Name, "")
	}
	for _, b := range k.c.Bridges {
		add("bridge", b.Name, "")
	}
	for n, i := range k.c.Interfaces {
		k.name(join("interface", i.Name), i.Name)
		k.ifaces[i.Name] = n
	}
}

func (k *checker) name(path, name string) {
	if goodName.MatchString(name) {
		return
	}
	suggestion := strings.ToLower(strings.ReplaceAll(name, " ", "-"))
	if !goodName.MatchString(suggestion) {
		suggestion = ""
	}
	k.hint(path, suggestion, "a name is 1 to 15 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit")
}

// ReservedFilters begins the names of the filters that carry injected faults,
// which come and go beside those configured.
const ReservedFilters = "inject-"

const reservedFilter = `names that begin with "inject-" are those of filters with injected faults: choose another`

// filters lets their drivers check their options, and looks up the lists of
// the adapters.
func (k *checker) filters() {
	var known []string
	for _, f := range k.c.Filters {
		path := join("filter", f.Name)
		k.name(path, f.Name)
		if strings.HasPrefix(f.Name, ReservedFilters) {
			k.fail(path, reservedFilter)
		}
		k.validate(path, f.Options)
		known = append(known, f.Name)
	}
	for _, a := range k.c.Adapters {
		list, seen := join(join("adapter", a.Name), "filters"), map[string]bool{}
		for i, name := range a.Filters {
			p := element(list, i)
			switch {
			case k.bad[p]:
			case k.has(join("filter", name)):
				if seen[name] {
					k.fail(p, "%s is listed twice", quote(name))
				}
				seen[name] = true
			case strings.HasPrefix(name, ReservedFilters):
				k.fail(p, "%s: %s", quote(short(name)), reservedFilter)
			default:
				k.hint(p, k.nearestQuoted(name, known), "there is no filter %s", quote(short(name)))
			}
		}
	}
}

// validate lets options check themselves.
func (k *checker) validate(path string, options any) {
	if v, ok := options.(ndiscore.Validator); ok {
		for _, err := range leaves(v.Validate()) {
			k.option(path, err)
		}
	}
}

// nearestQuoted is nearest as it would be written, or "".
func (k *checker) nearestQuoted(name string, candidates []string) string {
	if s := nearest(name, candidates, &k.budget); s != "" {
		return quote(s)
	}
	return ""
}

// adapters lets drivers check their options, and finds devices claimed twice.
func (k *checker) adapters() {
	owner := map[string]Adapter{}
	for _, a := range k.c.Adapters {
		path := join("adapter", a.Name)
		if a.Options == nil {
			continue
		}
		k.validate(path, a.Options)
		d, ok := a.Options.(DeviceKeyer)
		if !ok || k.bad[path] {
			continue
		}
		key := d.DeviceKey(a.Name)
		if key == "" {
			continue
		}
		if first, ok := owner[key]; ok {
			at := ""
			if k.file != "" { // the lines of what a command was put together from mean nothing
				at = " in line " + strconv.Itoa(k.lineOf(join("adapter", first.Name)))
			}
			k.fail(path, "the %s already belongs to adapter %s%s", oneLine(key), first.Name, at)
			continue
		}
		owner[key] = a
	}
}

// option places one error of a driver's Validate.
func (k *checker) option(path string, err error) {
	var keyed interface {
		error
		Key() string
	}
	if !errors.As(err, &keyed) {
		k.fail(path, "%s", oneLine(err.Error()))
		return
	}
	p := path
	for _, part := range strings.Split(keyed.Key(), ".") {
		p = join(p, part)
	}
	if !k.bad[p] {
		k.fail(p, "%s", oneLine(strings.TrimPrefix(keyed.Error(), keyed.Key()+": ")))
	}
}

// oneLine keeps an error that is not ours on one line.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return printable([]byte(s[:min(len(s), sourceBytes)]))
}

// leaves takes errors apart that errors.Join put together.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, leaves(e)...)
	}
	return out
}

// claim checks that name is one of kinds and nobody else's, and takes it.
func (k *checker) claim(path, name string, kinds ...string) (lower, bool) {
	if k.bad[path] {
		return lower{}, false
	}
	l, ok := k.lower[name]
	if !ok {
		k.unknownName(path, name, kinds)
		return l, false
	}
	if !slices.Contains(kinds, l.kind) {
		k.fail(path, "%s is a %s; want %s", quote(name), l.kind, anyOf(kinds))
		return l, false
	}
	if by, ok := k.used[name]; ok {
		if parent(by) == parent(path) {
			k.fail(path, "%s is listed twice", quote(name))
		} else {
			k.fail(path, "%s is already in %s in line %d", quote(name), parent(by), k.lineOf(by))
		}
		return l, false
	}
	k.used[name] = path
	return l, true
}

func (k *checker) unknownName(path, name string, kinds []string) {
	var candidates []string
	for _, kind := range kinds {
		switch kind {
		case "adapter":
			for _, a := range k.c.Adapters {
				candidates = append(candidates, a.Name)
			}
		case "bundle":
			for _, b := range k.c.Bundles {
				candidates = append(candidates, b.Name)
			}
		case "bridge":
			for _, b := range k.c.Bridges {
				candidates = append(candidates, b.Name)
			}
		}
	}
	k.hint(path, k.nearestQuoted(name, candidates), "there is no %s %s", strings.Join(kinds, " or "), quote(short(name)))
}

func anyOf(kinds []string) string {
	out := make([]string, len(kinds))
	for i, s := range kinds {
		out[i] = "a " + s
		if s == "adapter" {
			out[i] = "an " + s
		}
	}
	return strings.Join(out, " or ")
}

func (k *checker) bundle(b *Bundle) {
	path := join("bundle", b.Name)
	members := join(path, "members")
	switch {
	case !k.has(members):
		k.fail(path, "needs the key members: a list of two adapters or more")
	case k.bad[members]:
	case len(b.Members) < 2:
		k.fail(members, "a bundle needs two members or more, found %d", len(b.Members))
	}
	var first lower
	for i, name := range b.Members {
		p := element(members, i)
		l, ok := k.claim(p, name, "adapter")
		if !ok || b.Mode != "ndis5" || l.driver == "" {
			continue
		}
		if first.driver == "" {
			first = l
		} else if l.driver != first.driver {
			k.fail(p, `the members of an "ndis5" bundle have one driver: %s has %s, %s has %s`,
				quote(b.Members[0]), quote(first.driver), quote(name), quote(l.driver))
		}
	}
	if lag := join(path, "lag"); b.LAG && b.Balance != "hash" && !k.bad[lag] {
		k.fail(lag, `is for balance = "hash": only then more than one member sends`)
	}
	mac := join(path, "mac")
	switch {
	case k.bad[mac] || b.MAC == "":
	case b.Mode == "ndis5":
		k.fail(mac, `an "ndis5" bundle has no address of its own: each primary uses its own`)
	case b.MAC == "active" && b.Balance == "hash":
		k.fail(mac, `with balance = "hash" all members send, under one address: "active" goes with "active-backup"`)
	case b.MAC == "first", b.MAC == "active":
	default:
		b.MAC = k.mac(mac, b.MAC, `"" (a stable local address), "first" (the first member's), "active" (the active member's) or an address such as "02:00:5e:00:53:01"`)
	}
	if b.Mode == "ndis5" {
		k.teamOnly(path, b)
		return
	}
	k.health(join(path, "health"), b.Health)
}

// teamOnly refuses in an ndis5 bundle what nobody would look at. The defaults
// are let pass: they are what config show prints.
func (k *checker) teamOnly(path string, b *Bundle) {
	d, health := defaultBundle(), join(path, "health")
	for _, x := range []struct {
		path string
		set  bool
	}{
		{join(path, "failback"), b.Failback != d.Failback},
		{join(path, "hold"), b.Hold != d.Hold},
		{join(path, "up_delay"), b.UpDelay != d.UpDelay},
		{join(path, "down_delay"), b.DownDelay != d.DownDelay},
		{join(health, "carrier"), b.Health.Carrier != d.Health.Carrier},
		{join(health, "probe"), b.Health.Probe != d.Health.Probe},
		{join(health, "target"), b.Health.Target != d.Health.Target},
		{join(health, "interval"), b.Health.Interval != d.Health.Interval},
	} {
		if x.set && !k.bad[x.path] {
			k.fail(x.path, `an "ndis5" bundle changes its primary when that has left, and at no other time: leave the key out, or set mode = "team"`)
		}
	}
}

func (k *checker) health(path string, h Health) {
	carrier, probe, target, interval := join(path, "carrier"), join(path, "probe"), join(path, "target"), join(path, "interval")
	if !h.Carrier && h.Probe == "" && !k.bad[carrier] && !k.bad[probe] {
		k.fail(carrier, `nothing is left that could find a failed member: leave carrier true or set probe = "neighbor"`)
	}
	if !k.bad[probe] && !k.bad[target] {
		switch {
		case h.Probe != "" && !h.Target.IsValid():
			k.fail(probe, "%s needs the key target: the address that is to answer", quote(h.Probe))
		case h.Probe == "" && h.Target.IsValid():
			k.fail(target, `is of no use without probe = "neighbor"`)
		case h.Target.IsValid():
			if why := notHost(h.Target); why != "" {
				k.fail(target, "%s %s", h.Target, why)
			}
		}
	}
	k.span(interval, h.Interval, minInterval, 0)
}

func (k *checker) bridge(b *Bridge) {
	path := join("bridge", b.Name)
	ports := join(path, "ports")
	switch {
	case !k.has(ports):
		k.fail(path, "needs the key ports: a list of adapters or bundles")
	case k.bad[ports]:
	case len(b.Ports) == 0:
		k.fail(ports, "a bridge needs a port")
	case len(b.Ports) > maxPorts:
		k.fail(ports, "a bridge has at most %d ports, found %d", maxPorts, len(b.Ports))
	}
	for i, name := range b.Ports {
		k.claim(element(ports, i), name, "adapter", "bundle")
	}
	k.span(join(path, "mac_age"), b.MACAge, minAge, 7*day)
	k.span(join(path, "loop_hold"), b.LoopHold, time.Second, day)
	mac := join(path, "mac")
	if !k.bad[mac] && b.MAC != "" {
		b.MAC = k.mac(mac, b.MAC, `"" (a stable local address) or an address such as "02:00:5e:00:53:01"`)
	}
	k.bridgePorts(path, b)
}

// maxPorts is how many ports a bridge can have.
const maxPorts = 1024

// bridgePorts checks the tables of a bridge's ports and sorts them as the ports
// are.
func (k *checker) bridgePorts(path string, b *Bridge) {
	place := map[string]int{}
	for i, name := range b.Ports {
		place[name] = i
	}
	for i := range b.PortOptions {
		p := &b.PortOptions[i]
		at := join(join(path, "port"), p.Name)
		if _, ok := place[p.Name]; !ok && !k.bad[join(path, "ports")] {
			k.hint(at, k.nearestQuoted(p.Name, b.Ports), "the bridge has no port %s", quote(short(p.Name)))
		}
		k.portVLANs(at, b, p)
	}
	sort.SliceStable(b.PortOptions, func(i, j int) bool {
		return place[b.PortOptions[i].Name] < place[b.PortOptions[j].Name]
	})
}

// portVLANs checks what one port says about VLANs.
func (k *checker) portVLANs(path string, b *Bridge, p *BridgePort) {
	access, trunk, native := join(path, "access"), join(path, "trunk"), join(path, "native")
	if k.bad[access] || k.bad[trunk] || k.bad[native] {
		return
	}
	isTrunk := len(p.Trunk) > 0
	if b.VLAN == 0 && !k.bad[join(join("bridge", b.Name), "vlan")] {
		const why = "the bridge does not look at VLANs: set its key vlan"
		if p.Access != 0 {
			k.fail(access, why)
		}
		if isTrunk {
			k.fail(trunk, why)
		}
		if p.Native != 0 {
			k.fail(native, why)
		}
		return
	}
	switch {
	case p.Access != 0 && isTrunk:
		k.fail(trunk, "a port is an access port or a trunk: access is set in line %d", k.lineOf(access))
	case p.Native != 0 && !isTrunk:
		k.fail(native, "is of a trunk: VLANs with a tag are in trunk; the VLAN of a port without tags is access")
	case slices.ContainsFunc(p.Trunk, func(v VLANRange) bool { return int(v.First) <= p.Native && p.Native <= int(v.Last) }):
		k.fail(native, "VLAN %d is in trunk too: its frames have a tag or they have none", p.Native)
	}
	k.trunk(trunk, p)
}

// trunk sorts the VLANs of a trunk and finds those listed twice.
func (k *checker) trunk(path string, p *BridgePort) {
	order := make([]int, len(p.Trunk)) // by VLAN: places in the list
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return p.Trunk[order[i]].First < p.Trunk[order[j]].First })
	sorted := make([]VLANRange, 0, len(p.Trunk))
	high := 0 // place of the range that reaches highest so far
	for n, i := range order {
		v := p.Trunk[i]
		if n > 0 && v.First <= p.Trunk[high].Last {
			k.fail(element(path, max(i, high)), "%s overlaps %s, which is in the list too", quote(p.Trunk[max(i, high)].String()), quote(p.Trunk[min(i, high)].String()))
		}
		if n == 0 || v.Last > p.Trunk[high].Last {
			high = i
		}
		sorted = append(sorted, v)
	}
	if len(sorted) > 0 {
		p.Trunk = sorted
	}
}

// span checks that a duration is from least to most; most may be 0 for no
// limit.
func (k *checker) span(path string, d Duration, least, most time.Duration) {
	switch {
	case k.bad[path]:
	case d.Std() < least:
		k.fail(path, "%s is too short; the least is %s", d, Duration(least))
	case most > 0 && d.Std() > most:
		k.fail(path, "%s is too long; the most is %s", d, Duration(most))
	}
}

// mac checks an address for a device and returns it in the form that everybody
// compares.
func (k *checker) mac(path, s, accepted string) string {
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != 6:
		k.fail(path, "%s is none of %s", quote(short(s)), accepted)
	case hw[0]&1 != 0:
		k.fail(path, "%s is a group address", quote(s))
	case ndiscore.MAC(hw).IsZero():
		k.fail(path, "%s is nobody's address", quote(s))
	default:
		return hw.String()
	}
	return s
}
