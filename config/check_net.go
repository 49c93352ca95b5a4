package config

import (
	"net/netip"
	"sort"
	"time"
)

// Least values of durations: below them the switch would be busy with itself.
const (
	minInterval = 10 * time.Millisecond
	minAge      = time.Second
)

const day = 24 * time.Hour

// Limits of an MTU.
const (
	minMTU  = 68   // RFC 791
	minMTU6 = 1280 // RFC 8200, section 5
	maxMTU  = 65535
)

func (k *checker) interfaces() {
	on := map[string]string{} // target: the path of the interface on it
	for _, i := range k.c.Interfaces {
		path := join("interface", i.Name)
		p := join(path, "on")
		l, exists := k.lower[i.On]
		member, taken := k.used[i.On]
		switch {
		case k.bad[p]:
		case !k.has(p):
			k.fail(path, "needs the key on: an adapter, bundle or bridge")
		case !exists:
			k.unknownName(p, i.On, []string{"adapter", "bundle", "bridge"})
		case taken:
			k.fail(p, "%s is in %s in line %d, and carries no interface of its own", quote(i.On), parent(member), k.lineOf(member))
		case on[i.On] != "":
			k.fail(p, "the %s %s already carries %s in line %d", l.kind, quote(i.On), on[i.On], k.lineOf(on[i.On]))
		default:
			on[i.On] = path
		}
		k.addresses(path, i)
	}
}

func (k *checker) addresses(path string, i Interface) {
	has4, has6, has6far := false, false, false
	seen := map[netip.Addr]int{}
	for n, p := range i.Addresses {
		at := element(join(path, "addresses"), n)
		if k.bad[at] {
			continue
		}
		has4, has6 = has4 || p.Addr().Is4(), has6 || p.Addr().Is6()
		has6far = has6far || p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast()
		if why := notOwn(p); why != "" {
			k.fail(at, "%s %s", p, why)
		} else if first, ok := seen[p.Addr()]; ok {
			k.fail(at, "%s is already in the list, as %s", p.Addr(), i.Addresses[first])
		} else {
			seen[p.Addr()] = n
		}
	}
	mtu := join(path, "mtu")
	switch {
	case i.MTU == 0 || k.bad[mtu]:
	case i.MTU < minMTU || i.MTU > maxMTU:
		k.fail(mtu, "want 0 (of what it is on) or %d to %d bytes, found %d", minMTU, maxMTU, i.MTU)
	case has6 && i.MTU < minMTU6:
		k.fail(mtu, "IPv6 needs %d bytes or more, found %d", minMTU6, i.MTU)
	}
	if k.bad[join(path, "addresses")] {
		return // one that could not be read may be the one
	}
	if i.Masquerade && !has4 {
		k.fail(join(path, "masquerade"), "needs an IPv4 address on the interface, under which packets leave")
	}
	if i.Masquerade6 && !has6far {
		k.fail(join(path, "masquerade6"), "needs an IPv6 address on the interface beyond link-local, under which packets leave")
	}
}

// notHost says why a can be no host's address, or "".
func notHost(a netip.Addr) string {
	switch {
	case a.IsUnspecified(), a.Is4() && a.As4()[0] == 0:
		return "is not the address of a host"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsMulticast():
		return "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	}
	return ""
}

// notOwn says why p can be no interface's address, or "".
func notOwn(p netip.Prefix) string {
	if why := notHost(p.Addr()); why != "" {
		return why
	}
	if p.Bits() == 0 {
		return "has no network: the prefix length is 0"
	}
	return reserved(p.Addr(), p)
}

// reserved says whether a has a meaning of its own in the subnet, or "". With
// one or two addresses nothing is reserved (RFC 3021, RFC 6164).
func reserved(a netip.Addr, subnet netip.Prefix) string {
	subnet = subnet.Masked()
	switch {
	case a.BitLen() != subnet.Addr().BitLen(), a.BitLen()-subnet.Bits() < 2:
	case a == subnet.Addr() && a.Is4():
		return "is the network's own address"
	case a == subnet.Addr():
		return "is the subnet-router anycast address"
	case a.Is4() && a == broadcast(subnet):
		return "is the broadcast address"
	}
	return ""
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(subnet netip.Prefix) netip.Addr {
	b := subnet.Addr().As4()
	for i := range b {
		host := min(max(8*(i+1)-subnet.Bits(), 0), 8)
		b[i] |= byte(1<<host - 1)
	}
	return netip.AddrFrom4(b)
}

// foot is one address of one interface.
type foot struct {
	iface  int
	path   string
	prefix netip.Prefix
}

// feet lists every address that passed its checks.
func (k *checker) feet() []foot {
	var out []foot
	for n, i := range k.c.Interfaces {
		for a, p := range i.Addresses {
			at := element(join(join("interface", i.Name), "addresses"), a)
			if !k.bad[at] {
				out = append(out, foot{n, at, p})
			}
		}
	}
	return out
}

// subnets finds networks that two interfaces share. Two prefixes are either
// apart or one within the other: sorted, every prefix follows those that hold
// it, and a stack of these is all that has to be looked at. Link-local networks
// are every interface's own.
func (k *checker) subnets() {
	feet := k.feet()
	sort.SliceStable(feet, func(i, j int) bool {
		a, b := feet[i].prefix.Masked(), feet[j].prefix.Masked()
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c < 0
		}
		return a.Bits() < b.Bits()
	})
	var around []foot
	for _, f := range feet {
		if f.prefix.Addr().Is6() && f.prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		for len(around) > 0 && !around[len(around)-1].prefix.Contains(f.prefix.Masked().Addr()) {
			around = around[:len(around)-1]
		}
		// The innermost network of another interface is what f collides with.
		for i := len(around) - 1; i >= 0; i-- {
			if a := around[i]; a.iface != f.iface {
				k.overlap(a, f)
				break
			}
		}
		if n := len(around); n == 0 || around[n-1].prefix.Masked() != f.prefix.Masked() {
			around = append(around, f) // never deeper than there are prefix lengths
		}
	}
}

func (k *checker) overlap(a, b foot) {
	if k.place(a.path) > k.place(b.path) {
		a, b = b, a
	}
	k.fail(b.path, "%s overlaps %s of interface %s in line %d", b.prefix, a.prefix,
		k.c.Interfaces[a.iface].Name, k.lineOf(a.path))
}

func (k *checker) routes() {
	type winner struct {
		to     netip.Prefix
		metric uint32
	}
	seen := map[winner]string{}
	feet := k.feet()
	own := map[netip.Addr]foot{}
	for _, f := range feet {
		own[f.prefix.Addr()] = f
	}
	for n := range k.c.Routes {
		route := &k.c.Routes[n]
		path := element("route", n)
		if k.none[path] {
			continue
		}
		to, via := join(path, "to"), join(path, "via")
		if !k.has(to) && !k.bad[to] {
			k.fail(path, `needs the key to: a prefix or "default"`)
		}
		if !k.has(via) || !route.Via.IsValid() && !k.bad[via] {
			k.hop(path, via)
			continue
		}
		if k.bad[path] {
			continue
		}
		if route.Via.Is4() != route.To.Addr().Is4() {
			k.fail(via, "%s and %s are of different families", route.Via, route.To)
			continue
		}
		if why := notHost(route.Via); why != "" {
			k.fail(via, "%s %s", route.Via, why)
			continue
		}
		if f, ok := own[route.Via]; ok {
			k.fail(via, "%s is our own address, of interface %s in line %d", route.Via, k.c.Interfaces[f.iface].Name, k.lineOf(f.path))
			continue
		}
		if !k.onLink(path, route, feet) {
			continue
		}
		w := winner{route.To, route.Metric}
		if first, ok := seen[w]; ok {
			k.fail(to, "the route in line %d has the same destination %s and metric %d", k.lineOf(first), route.To, route.Metric)
			continue
		}
		seen[w] = path
	}
}

func (k *checker) hop(path, via string) {
	if k.has(via) {
		k.fail(via, "want the address of the next router, found nothing")
		return
	}
	k.fail(path, "needs the key via: the address of the next router")
}

// onLink checks that route's next hop is a neighbour on its interface, and
// finds the interface when the file leaves it out.
func (k *checker) onLink(path string, route *Route, feet []foot) bool {
	via, iface := join(path, "via"), join(path, "interface")
	index := -1
	if route.Interface != "" {
		var ok bool
		if index, ok = k.iface(iface, route.Interface); !ok {
			return false
		}
	}
	linkLocal := route.Via.Is6() && route.Via.IsLinkLocalUnicast()
	if linkLocal && index < 0 {
		k.fail(via, "%s is link-local: the key interface has to say on which side it is", route.Via)
		return false
	}
	for _, f := range feet {
		if index >= 0 && f.iface != index {
			continue
		}
		if linkLocal && f.prefix.Addr().Is6() || f.prefix.Contains(route.Via) {
			if why := reserved(route.Via, f.prefix); why != "" && f.prefix.Contains(route.Via) {
				k.fail(via, "%s %s", route.Via, why)
				return false
			}
			route.Interface = k.c.Interfaces[f.iface].Name
			return true
		}
	}
	switch {
	case k.bad["interface"]: // an address that could not be read may be the one
	case linkLocal:
		k.fail(via, "interface %s has no IPv6 address", route.Interface)
	case index >= 0:
		k.fail(via, "%s is in no network of interface %s", route.Via, route.Interface)
	default:
		k.fail(via, "%s is in no network of any interface", route.Via)
	}
	return false
}

// iface finds the interface that path names.
func (k *checker) iface(path, name string) (int, bool) {
	if i, ok := k.ifaces[name]; ok {
		return i, true
	}
	var names []string
	for _, i := range k.c.Interfaces {
		names = append(names, i.Name)
	}
	k.hint(path, k.nearestQuoted(name, names), "there is no interface %s", quote(short(name)))
	return -1, false
}
