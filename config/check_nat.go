package config

import (
	"net/netip"
	"sort"
	"time"
)

// placed is one forward that passed its own checks.
type placed struct {
	index int // in Config.Forwards
	Forward
}

// forwards checks each published port, and that no two take the same packets.
func (k *checker) forwards() {
	own, special := map[netip.Addr]foot{}, map[netip.Addr]string{}
	type published struct { // an interface has an address of a family
		iface int
		is4   bool
	}
	possible := map[published]bool{}
	for _, f := range k.feet() {
		own[f.prefix.Addr()] = f
		net := f.prefix.Masked()
		special[net.Addr()] = reserved(net.Addr(), net)
		if net.Addr().Is4() {
			special[broadcast(net)] = reserved(broadcast(net), net)
		}
		if a := f.prefix.Addr(); a.Is4() || !a.IsLinkLocalUnicast() {
			possible[published{f.iface, a.Is4()}] = true
		}
	}
	type taker struct {
		iface    int
		protocol string
		is4      bool
	}
	takers := map[taker][]placed{}
	for n, f := range k.c.Forwards {
		path := element("forward", n)
		if k.none[path] {
			continue
		}
		for _, key := range []struct{ name, what string }{
			{"interface", "where the port is published"},
			{"protocol", `"tcp" or "udp"`},
			{"port", `a port such as "8080", or a range such as "8000-8010"`},
			{"to", `an address and a port such as "10.0.0.5:80"`},
		} {
			if !k.has(join(path, key.name)) {
				k.fail(path, "needs the key %s: %s", key.name, key.what)
			}
		}
		iface, known := -1, false
		if at := join(path, "interface"); k.has(at) && !k.bad[at] {
			iface, known = k.iface(at, f.Interface)
		}
		if to := join(path, "to"); k.has(to) && !k.bad[to] {
			is4, addr := f.To.Addr.Is4(), f.To.Addr
			at, ours := own[addr]
			switch {
			case notHost(addr) != "":
				k.fail(to, "%s %s", addr, notHost(addr))
			case special[addr] != "":
				k.fail(to, "%s %s", addr, special[addr])
			case addr.IsLinkLocalUnicast():
				k.fail(to, "%s is link-local, and could be on every side", addr)
			case ours:
				k.fail(to, "%s is our own address, of interface %s in line %d", addr, k.c.Interfaces[at.iface].Name, k.lineOf(at.path))
			case known && !possible[published{iface, is4}] && !k.bad[join(join("interface", f.Interface), "addresses")]:
				k.fail(to, "%s is %s, and interface %s has no such address to publish it at", addr, family(is4), f.Interface)
			case k.has(join(path, "port")) && !k.bad[join(path, "port")] && f.Port.Len() != f.To.Ports.Len():
				k.fail(to, "%s has %d ports, and port = %s has %d: each leads to one", quote(f.To.Ports.String()), f.To.Ports.Len(), quote(f.Port.String()), f.Port.Len())
			}
		}
		if !k.bad[path] {
			t := taker{iface, f.Protocol, f.To.Addr.Is4()}
			takers[t] = append(takers[t], placed{n, f})
		}
	}
	for _, list := range takers {
		k.collisions(list)
	}
}

func family(is4 bool) string {
	if is4 {
		return "IPv4"
	}
	return "IPv6"
}

// collisions finds ports that two of list take. Sorted, a range overlaps an
// earlier one when it overlaps the one that reaches highest.
func (k *checker) collisions(list []placed) {
	sort.SliceStable(list, func(i, j int) bool { return list[i].Port.First < list[j].Port.First })
	high := list[0]
	for _, f := range list[1:] {
		if f.Port.First <= high.Port.Last {
			a, b := high, f
			if a.index > b.index {
				a, b = b, a
			}
			k.fail(join(element("forward", b.index), "port"), "%s is already taken by %s %s of the forward in line %d",
				quote(b.Port.String()), a.Protocol, quote(a.Port.String()), k.lineOf(element("forward", a.index)))
		}
		if f.Port.Last > high.Port.Last {
			high = f
		}
	}
}

// Limits of how long a flow is remembered after its last packet.
const (
	minIdle = time.Second
	maxIdle = 30 * day
)

func (k *checker) nat() {
	n := k.c.NAT
	for _, t := range []struct {
		key string
		d   Duration
	}{
		{"nat.tcp", n.TCP}, {"nat.tcp_transitory", n.TCPTransitory}, {"nat.udp", n.UDP}, {"nat.udp_stream", n.UDPStream}, {"nat.icmp", n.ICMP},
	} {
		k.span(t.key, t.d, minIdle, maxIdle)
	}
	if n.TCP < n.TCPTransitory && !k.bad["nat.tcp"] && !k.bad["nat.tcp_transitory"] {
		k.fail(k.written("nat.tcp_transitory", "nat.tcp"), "an open connection is remembered for at least as long as one that opens or closes: tcp is %s, tcp_transitory %s", n.TCP, n.TCPTransitory)
	}
	if n.UDPStream < n.UDP && !k.bad["nat.udp"] && !k.bad["nat.udp_stream"] {
		k.fail(k.written("nat.udp", "nat.udp_stream"), "a flow with answers is remembered for at least as long as one without: udp_stream is %s, udp %s", n.UDPStream, n.UDP)
	}
}

// written is the first of two keys that the file sets.
func (k *checker) written(a, b string) string {
	if k.has(a) {
		return a
	}
	return b
}

func (k *checker) fault() { k.span("fault.longest", k.c.Fault.Longest, time.Second, day) }
