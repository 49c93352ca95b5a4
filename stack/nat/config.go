package nat

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Options describes a table. It is copied by New.
type Options struct {
	Limits Limits
	Now    time.Time // when it is made; from then on Tick tells the time
	Seed   uint64    // of the ports chosen; 0: drawn

	// Event is told, from Tick and the flushing calls, what an operator should
	// know: "nat.full" when flows begin to be refused, once until none has been for
	// ten seconds; "nat.flushed", for each interface and reason. May be nil.
	Event func(what, iface, from, to, why string)
}

// Limits bounds a table. Zero values mean the defaults.
type Limits struct {
	Flows     int // at a time
	Fragments int // packets in fragments that are tracked at a time

	TCP           time.Duration // established connections
	TCPTransitory time.Duration // those that open, close or were reset
	UDP           time.Duration // and other protocols, until both sides have spoken and the first one again
	UDPStream     time.Duration // after that
	ICMP          time.Duration // queries
}

// The defaults of Limits: RFC 5382 REQ-5, RFC 4787 REQ-5 and common use, RFC 5508
// REQ-2.
var defaultLimits = Limits{
	Flows: 65536, Fragments: 4096,
	TCP: 7440 * time.Second, TCPTransitory: 240 * time.Second,
	UDP: 30 * time.Second, UDPStream: 120 * time.Second, ICMP: 30 * time.Second,
}

func (l Limits) filled() Limits {
	d := defaultLimits
	if l.Flows > 0 {
		d.Flows = l.Flows
	}
	if l.Fragments > 0 {
		d.Fragments = l.Fragments
	}
	set := func(to *time.Duration, v time.Duration) {
		if v > 0 {
			*to = v
		}
	}
	set(&d.TCP, l.TCP)
	set(&d.TCPTransitory, l.TCPTransitory)
	set(&d.UDP, l.UDP)
	set(&d.UDPStream, l.UDPStream)
	set(&d.ICMP, l.ICMP)
	return d
}

// Config is what a table does, as opposed to how much.
type Config struct {
	Interfaces []Interface // all of the router's
	Forwards   []Forward
}

// Interface is an interface of the router as its NAT sees it. The name is what
// flows belong to, whatever device is under it at the moment.
type Interface struct {
	Name        string
	Addresses   []netip.Prefix
	Masquerade  bool // IPv4 that leaves by it does so with an address of its own
	Masquerade6 bool // so does IPv6
	Local       []LocalPort
}

// LocalPort are ports that local services listen on: no flow of anybody else is
// given them.
type LocalPort struct {
	Protocol string // "tcp" or "udp"
	PortRange
}

// Forward is a published port: what comes for it to an address of the interface
// goes to another host.
type Forward struct {
	Interface string
	Protocol  string // "tcp" or "udp"
	Ports     PortRange
	To        netip.AddrPort // where the first of Ports goes; the next go to the next
}

// String is f as messages name it.
func (f Forward) String() string {
	if f.Ports.First == f.Ports.Last {
		return fmt.Sprintf("%s %s port %d", f.Interface, f.Protocol, f.Ports.First)
	}
	return fmt.Sprintf("%s %s ports %d-%d", f.Interface, f.Protocol, f.Ports.First, f.Ports.Last)
}

func (f *Forward) proto() uint8 { return protocols[f.Protocol] }

var protocols = map[string]uint8{"tcp": protoTCP, "udp": protoUDP}

// Validate returns one error per contradiction, joined with errors.Join.
func (c *Config) Validate() error {
	var errs []error
	for i := range c.Forwards {
		f := &c.Forwards[i]
		bad := func(format string, a ...any) {
			errs = append(errs, fmt.Errorf("forward %s: %s", f, fmt.Sprintf(format, a...)))
		}
		to := f.To.Addr()
		at := slices.IndexFunc(c.Interfaces, func(n Interface) bool { return n.Name == f.Interface })
		switch {
		case at < 0:
			bad("there is no interface %s", f.Interface)
			continue
		case f.proto() == 0:
			bad("protocol %q: not tcp or udp", f.Protocol)
		case f.Ports.First == 0 || f.Ports.Last < f.Ports.First:
			bad("not a port, or a range of ports")
		case !f.To.IsValid() || f.To.Port() == 0 || to.Is4In6() || to.Zone() != "" || numberOf(to).special(to.Is6()) || to.IsLoopback():
			bad("to %s: needs the address of a host and a port, like 192.0.2.5:80", f.To)
			continue
		case int(f.To.Port())+int(f.Ports.Last-f.Ports.First) > math.MaxUint16:
			bad("to %s: the range goes on beyond port 65535 there", f.To)
		}
		if !slices.ContainsFunc(c.Interfaces[at].Addresses, func(p netip.Prefix) bool {
			return p.Addr().Is4() == to.Is4() && !numberOf(p.Addr()).special(p.Addr().Is6())
		}) {
			bad("to %s: interface %s has no address of that IP version", f.To, f.Interface)
		}
		for _, g := range c.Forwards[:i] {
			if g.Interface == f.Interface && g.Protocol == f.Protocol && g.To.Addr().Is4() == to.Is4() &&
				g.Ports.First <= f.Ports.Last && f.Ports.First <= g.Ports.Last {
				bad("forward %s is there already", &g)
			}
		}
	}
	return errors.Join(errs...)
}

// Edge is an interface with NAT: what the router asks about packets that come in
// and go out there.
type Edge struct {
	table *Table
	name  string
	id    uint16

	// Guarded by Table.mu.
	masq     [2]bool // IPv4, IPv6
	public   [2][]public
	forwards []forward
	ports    map[uint8]*portSet // by protocol; those that have reserved ones
	local    []LocalPort
}

// public is an address that flows may be given.
type public struct {
	addr
	net netip.Prefix
}

// forward is a Forward, ready.
type forward struct {
	name        string // as messages name it
	proto       uint8
	v6          bool
	first, last uint16
	to          addr
	port        uint16
}

func version(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// Configure makes the table do as c says, which must be valid. Flows remain but
// those of addresses and forwards that are gone, and of interfaces that have no
// NAT any more.
func (t *Table) Configure(c Config) {
	forwards := map[string][]Forward{}
	for _, f := range c.Forwards {
		forwards[f.Interface] = append(forwards[f.Interface], f)
	}
	t.mu.Lock()
	gone := t.own
	t.own = map[hostAddr]bool{}
	names := map[string]bool{}
	before := map[*Edge][]forward{}
	had := map[*Edge][2][]public{}
	for _, e := range t.edges {
		before[e] = e.forwards
		had[e] = e.public
	}
	for _, n := range c.Interfaces {
		for _, p := range n.Addresses {
			a := hostAddr{numberOf(p.Addr()), p.Addr().Is6()}
			t.own[a] = true
			delete(gone, a)
		}
		if !n.Masquerade && !n.Masquerade6 && len(forwards[n.Name]) == 0 {
			continue
		}
		names[n.Name] = true
		t.edge(n.Name).configure(&n, forwards[n.Name])
	}
	var lost []*Edge
	for name, e := range t.edges {
		if !names[name] {
			e.configure(&Interface{}, nil)
			lost = append(lost, e)
			delete(t.edges, name)
			delete(had, e)
		}
	}
	// Addresses that the router still has, but not on that interface.
	moved := map[*Edge][]hostAddr{}
	for e, was := range had {
		for v, all := range was {
			for _, p := range all {
				if a := (hostAddr{p.addr, v == version(true)}); !gone[a] && !e.has(a.addr, a.v6) {
					moved[e] = append(moved[e], a)
				}
			}
		}
	}
	t.mu.Unlock()

	for _, e := range lost {
		t.flush(e, func(*flow) string { return "it has no NAT any more" })
		t.mu.Lock()
		t.byID[e.id] = nil
		t.mu.Unlock()
	}
	for a := range gone {
		why := fmt.Sprintf("the router has no address %s any more", a.netip(a.v6))
		t.flush(nil, func(f *flow) string {
			if f.has(a) {
				return why
			}
			return ""
		})
	}
	for e, all := range moved {
		for _, a := range all {
			why := fmt.Sprintf("interface %s has no address %s any more", e.name, a.netip(a.v6))
			t.flush(e, func(f *flow) string {
				if f.has(a) {
					return why
				}
				return ""
			})
		}
	}
	t.flush(nil, func(f *flow) string {
		n := &f.node[0]
		e := t.byID[n.edge]
		switch f.kind {
		case flowMasquerade:
			if v := version(n.side.v6()); !e.masq[v] {
				return masqueradeKeys[v] + " is not configured any more"
			}
		case flowForward, flowHairpin:
			if to, port, ok := e.forward(&n.tuple); ok && to == f.node[1].src && port == f.node[1].sport {
				return ""
			}
			if was := published(before[e], &n.tuple); was != nil {
				return "forward " + was.name + " is not configured any more"
			}
			return "its forward is not configured any more"
		}
		return ""
	})
}

// masqueradeKeys are what the configuration calls it, for IPv4 and IPv6.
var masqueradeKeys = [2]string{"masquerade", "masquerade6"}

// edge is the edge called name, made when there is none.
func (t *Table) edge(name string) *Edge {
	if e := t.edges[name]; e != nil {
		return e
	}
	t.prepare()
	id := slices.Index(t.byID, nil)
	if id < 0 {
		id = len(t.byID)
		t.byID = append(t.byID, nil)
	}
	e := &Edge{table: t, name: name, id: uint16(id)}
	t.byID[id] = e
	t.edges[name] = e
	return e
}

func (e *Edge) configure(n *Interface, forwards []Forward) {
	e.masq = [2]bool{n.Masquerade, n.Masquerade6}
	e.public = [2][]public{}
	for _, p := range n.Addresses {
		if a, v6 := numberOf(p.Addr()), p.Addr().Is6(); !a.special(v6) {
			e.public[version(v6)] = append(e.public[version(v6)], public{a, p.Masked()})
		}
	}
	e.local = n.Local
	e.forwards = nil
	reserved := map[uint8][]PortRange{}
	for _, f := range forwards {
		e.forwards = append(e.forwards, forward{
			name: f.String() + " to " + f.To.String(), proto: f.proto(), v6: f.To.Addr().Is6(), first: f.Ports.First, last: f.Ports.Last,
			to: numberOf(f.To.Addr()), port: f.To.Port(),
		})
		reserved[f.proto()] = append(reserved[f.proto()], f.Ports)
	}
	for _, l := range n.Local {
		reserved[protocols[l.Protocol]] = append(reserved[protocols[l.Protocol]], l.PortRange)
	}
	slices.SortFunc(e.forwards, func(a, b forward) int { return a.order(b.proto, b.v6, b.first) })
	e.ports = map[uint8]*portSet{}
	for proto, r := range reserved {
		e.ports[proto] = newPortSet(r)
	}
}

func (f forward) order(proto uint8, v6 bool, port uint16) int {
	if d := int(f.proto) - int(proto); d != 0 {
		return d
	}
	if d := version(f.v6) - version(v6); d != 0 {
		return d
	}
	return int(f.first) - int(port)
}

// forward is where packets of k are published to, if they are.
func (e *Edge) forward(k *tuple) (to addr, port uint16, ok bool) {
	f := published(e.forwards, k)
	if f == nil {
		return addr{}, 0, false
	}
	return f.to, f.port + (k.dport - f.first), true
}

// published is the one of forwards that packets of k are for, or nil.
func published(forwards []forward, k *tuple) *forward {
	lo, hi := 0, len(forwards) // the last that begins at the port or before it is at lo-1
	for lo < hi {
		m := (lo + hi) / 2
		if forwards[m].order(k.proto, k.side.v6(), k.dport) <= 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == 0 {
		return nil
	}
	f := &forwards[lo-1]
	if f.proto != k.proto || f.v6 != k.side.v6() || k.dport > f.last {
		return nil
	}
	return f
}

// address is the public address for flows to dst: the one in dst's own network,
// else the first.
func (e *Edge) address(dst addr, v6 bool) (addr, bool) {
	all := e.public[version(v6)]
	if len(all) == 0 {
		return addr{}, false
	}
	if len(all) > 1 {
		d := dst.netip(v6)
		for i := range all {
			if all[i].net.Contains(d) {
				return all[i].addr, true
			}
		}
	}
	return all[0].addr, true
}

// serves reports whether a local service has port.
func (e *Edge) serves(proto uint8, port uint16) bool {
	return slices.ContainsFunc(e.local, func(l LocalPort) bool {
		return protocols[l.Protocol] == proto && l.First <= port && port <= l.Last
	})
}

// portSet are the ports that e may give to flows of proto.
func (e *Edge) portSet(proto uint8) *portSet {
	if s := e.ports[proto]; s != nil {
		return s
	}
	return anyPort()
}

// Edge is the edge of the interface called name, or nil when it has no NAT.
func (t *Table) Edge(name string) *Edge {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.edges[name]
}
