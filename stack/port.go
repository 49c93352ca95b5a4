package stack

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// wire is the part of a binding that carries frames out.
type wire interface{ Send(*ndiscore.Batch) }

// plug is an adapter that the core has bound to us. An interface stands on it,
// unless the configuration has taken that away and the core has yet to unbind.
type plug struct {
	target string // what we asked to be bound to
	on     string // the adapter bound to
	wire   wire
	gate   gate // open while sends may start

	port atomic.Pointer[port] // the interface on it, or nil; written under Router.mu

	ask   func() ndiscore.Attributes // what the adapter states of itself now
	mu    sync.Mutex                 // guards attrs; ask may be called under it
	attrs ndiscore.Attributes        // as of the last look
}

// newPlug makes a plug that is closed for sends.
func newPlug(target, adapter string, w wire, ask func() ndiscore.Attributes) *plug {
	p := &plug{target: target, on: adapter, wire: w, ask: ask}
	p.gate.init()
	p.look()
	return p
}

// look takes over what the adapter states of itself, and reports whether the
// feeder has to act on it. Indications may overtake each other on their way
// here, and the look that a restart takes; under the lock the last look sees the
// newest.
func (p *plug) look() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.ask()
	if !p.attrs.MAC.IsZero() && !isStation(a.MAC) {
		a.MAC = p.attrs.MAC // of two bad choices the one that may still work
	}
	was := p.attrs
	p.attrs = a
	return was.MAC != a.MAC || was.MTU != a.MTU || was.Link.Connected() != a.Link.Connected()
}

func (p *plug) attributes() ndiscore.Attributes {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.attrs
}

func (p *plug) linkState() ndiscore.LinkState { return p.attributes().Link }

func isStation(m ndiscore.MAC) bool { return !m.IsZero() && !m.IsGroup() }

// port is an interface while it stands on a plug: one netstack NIC.
type port struct {
	*plug
	iface    *iface
	station  atomic.Pointer[station] // never nil
	announce announcer

	// The feeder's own.
	ep  *endpoint // nil while netstack has no NIC for it
	err error     // why
}

// newPort makes the port of i, which is configured as c, on p.
func newPort(i *iface, c *Interface, p *plug) *port {
	n := &port{plug: p, iface: i}
	n.station.Store(newStation(c, p.attributes()))
	return n
}

// station is what a port is on its network. It is immutable, and replaced whole
// by the feeder when the configuration or the adapter changes.
type station struct {
	mac       ndiscore.MAC
	link      tcpip.LinkAddress // mac, as netstack asks for it with each packet
	mtu       int               // the interface's real one
	addresses []netip.Prefix    // configured ones that the MTU allows, and the link-local one
}

func newStation(c *Interface, a ndiscore.Attributes) *station {
	s := &station{mac: a.MAC, link: tcpip.LinkAddress(a.MAC[:]), mtu: min(max(a.MTU, minMTU), maxMTU)}
	if c.MTU != 0 {
		s.mtu = min(s.mtu, c.MTU)
	}
	linkLocal := false
	for _, n := range c.Addresses {
		if n.Addr().Is6() {
			if !s.hasIPv6() {
				continue
			}
			linkLocal = linkLocal || n.Addr().IsLinkLocalUnicast()
		}
		s.addresses = append(s.addresses, n)
	}
	if s.hasIPv6() && !linkLocal {
		ll := header.LinkLocalAddr(s.link)
		s.addresses = append(s.addresses, netip.PrefixFrom(netip.AddrFrom16(ll.As16()), 64))
	}
	return s
}

func (s *station) hasIPv6() bool { return s.mtu >= minMTUIPv6 }

func (s *station) equal(o *station) bool {
	return s.mac == o.mac && s.mtu == o.mtu && slices.Equal(s.addresses, o.addresses)
}

// source is the address that an error about a packet from remote is sent
// from (RFC 1812 4.3.2.4, RFC 4443 2.2): the one in remote's network, else the
// first global one, else any.
func (s *station) source(remote netip.Addr) (netip.Addr, bool) {
	var best netip.Addr
	for _, n := range s.addresses {
		a := n.Addr()
		if a.Is4() != remote.Is4() {
			continue
		}
		if n.Contains(remote) {
			return a, true
		}
		if !best.IsValid() || best.IsLinkLocalUnicast() && !a.IsLinkLocalUnicast() {
			best = a
		}
	}
	return best, best.IsValid()
}

// gate lets senders in while it is open, and whoever closes it wait until the
// last of them has left.
type gate struct {
	state   atomic.Int64 // how many are inside, and gateClosed
	drained chan struct{}
}

const gateClosed = 1 << 62

func (g *gate) init() {
	g.drained = make(chan struct{}, 1)
	g.state.Store(gateClosed)
}

// enter reports whether the caller is let in. If so it must leave.
func (g *gate) enter() bool {
	if g.state.Add(1)&gateClosed == 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.state.Add(-1) == gateClosed {
		select {
		case g.drained <- struct{}{}:
		default:
		}
	}
}

func (g *gate) open() { g.state.And(^gateClosed) }

func (g *gate) isOpen() bool { return g.state.Load()&gateClosed == 0 }

// close shuts the gate and waits until nobody is inside. It stays shut when ctx
// ends first.
func (g *gate) close(ctx context.Context) error {
	g.state.Or(gateClosed)
	for g.state.Load() != gateClosed {
		select {
		case <-g.drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
