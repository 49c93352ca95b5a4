package stack

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// candidate is a route that could be used.
type candidate struct {
	RouteInfo
	iface *iface
}

// reroute computes which routes are alive and which of them win, tells
// netstack the winners and the workers all they need, and raises an event for
// each route that came or went. The feeder calls it.
func (r *Router) reroute() {
	var all []candidate
	down := make(map[*iface]string, len(r.feed.ifaces))
	for _, i := range r.feed.ifaces {
		down[i] = unusable(i)
		for k, n := range i.used.Addresses {
			if slices.ContainsFunc(i.used.Addresses[:k], func(o netip.Prefix) bool { return o.Masked() == n.Masked() }) {
				continue // a second address in one network
			}
			all = append(all, candidate{iface: i, RouteInfo: RouteInfo{To: n.Masked(), Interface: i.name, Kind: RouteConnected}})
		}
	}
	for _, s := range r.feed.statics {
		all = append(all, candidate{iface: s.iface, RouteInfo: RouteInfo{
			To: s.To, Via: s.Via, Interface: s.iface.name, Metric: s.Metric, Kind: RouteStatic,
		}})
	}
	// The order in which routes to one prefix are preferred.
	slices.SortStableFunc(all, func(a, b candidate) int {
		if a.Kind != b.Kind {
			if a.Kind == RouteConnected {
				return -1
			}
			return 1
		}
		return a.Metric - b.Metric
	})

	best := map[netip.Prefix]*candidate{}
	var routes []fibRoute
	for _, i := range r.feed.ifaces {
		if i.live != nil {
			routes = append(routes, ownAddresses(i.live)...)
		}
	}
	var push []tcpip.Route
	for n := range all {
		c := &all[n]
		c.Why = down[c.iface]
		mtu := 0
		if c.Why == "" {
			s := c.iface.live.station.Load()
			if mtu = s.mtu; c.To.Addr().Is6() && !s.hasIPv6() {
				c.Why = fmt.Sprintf("the mtu is %d, IPv6 needs %d", mtu, minMTUIPv6)
			}
		}
		c.Alive = c.Why == ""
		if !c.Alive {
			continue
		}
		if b := best[c.To]; b != nil {
			c.Why = fmt.Sprintf("the %s route by %s is preferred", b.Kind, b.Interface)
			continue
		}
		best[c.To] = c
		routes = append(routes, fibRoute{c.To, &fibEntry{kind: fibForward, mtu: mtu, egress: c.iface.live, via: netAddress(c.Via)}})
		subnet, err := tcpip.NewSubnet(netAddress(c.To.Addr()), tcpip.MaskFromBytes(netmask(c.To)))
		if err != nil {
			continue // not reached: To is masked
		}
		push = append(push, tcpip.Route{Destination: subnet, Gateway: netAddress(c.Via), NIC: c.iface.id})
	}
	// netstack keeps its table sorted by length; in ascending order each
	// insertion finds its place at the front.
	slices.SortStableFunc(push, func(a, b tcpip.Route) int { return a.Destination.Prefix() - b.Destination.Prefix() })
	r.feed.net.s.SetRouteTable(push)
	r.fib.Store(newFIB(routes))
	r.publishRoutes(all, down)
}

// unusable says why no route may use i, or "".
func unusable(i *iface) string {
	if i.live == nil {
		return fmt.Sprintf("%s is not bound", i.used.On)
	}
	// Until it may send, netstack's first question for a neighbour would be lost,
	// and it asks again only after a second.
	if !i.live.gate.isOpen() {
		return fmt.Sprintf("%s is paused", i.used.On)
	}
	a := i.live.attributes()
	if a.MTU < minMTU {
		return fmt.Sprintf("the mtu of %s is %d, IP needs %d", i.used.On, a.MTU, minMTU)
	}
	if l := a.Link; !l.Connected() {
		if l.Why != "" {
			return "link down: " + l.Why
		}
		return "link down"
	}
	return ""
}

// ownAddresses are the table's entries for what netstack keeps.
func ownAddresses(p *port) []fibRoute {
	var routes []fibRoute
	for _, n := range p.station.Load().addresses {
		a := n.Addr()
		own := &fibEntry{kind: fibLocal, egress: p}
		if !a.IsLinkLocalUnicast() || a.Is4() {
			own.edge = p.iface.edge.Load()
		}
		routes = append(routes, fibRoute{netip.PrefixFrom(a, a.BitLen()), own})
		if a.Is4() && n.Bits() < 31 {
			b := lastAddr(n)
			routes = append(routes, fibRoute{netip.PrefixFrom(b, 32), &fibEntry{kind: fibBroadcast}})
		}
	}
	return routes
}

// publishRoutes shows the table to Routes and raises events.
func (r *Router) publishRoutes(all []candidate, down map[*iface]string) {
	for _, i := range r.feed.ifaces {
		state := "up"
		if i.live == nil {
			state = "unbound"
		} else if down[i] != "" {
			state = "down"
		}
		// Binding and unbinding have events of their own.
		if was := i.state; was != state && (was == "up" || was == "down") && state != "unbound" {
			r.config.Event("interface.link", i.name, was, state, i.live.linkState().Why)
		}
		i.state = state
	}
	infos := make([]RouteInfo, len(all))
	told := make(map[RouteInfo]string, len(all))
	for n, c := range all {
		infos[n] = c.RouteInfo
		state := "withdrawn"
		if c.Alive {
			state = "alive"
		}
		id := c.identity()
		told[id] = state
		if was, known := r.feed.told[id]; was != state && (known || c.Alive) {
			r.config.Event("route."+state, c.Interface, was, c.String(), cmp.Or(c.Why, "its interface is up"))
		}
	}
	var deleted []RouteInfo
	for id, was := range r.feed.told {
		if told[id] == "" && was == "alive" {
			deleted = append(deleted, id)
		}
	}
	slices.SortFunc(deleted, RouteInfo.compare)
	for _, id := range deleted {
		r.config.Event("route.withdrawn", id.Interface, "alive", id.String(), "deleted")
	}
	r.feed.told = told
	slices.SortStableFunc(infos, RouteInfo.compare)
	r.routes.Store(&infos)
}

func netmask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}
