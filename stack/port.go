package stack

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// wire is the part of a binding that carries frames out.
type wire interface{ Send(*ndiscore.Batch) }

// port is an interface while it is bound: one Binding, one netstack NIC.
type port struct {
	iface *iface
	wire  wire
	on    string // the adapter bound to
	mtu   int    // the interface's real MTU
	gate  gate   // open while sends may start

	binding *ndiscore.Binding // wire, once Bind has succeeded; nil in tests without a core

	station   atomic.Pointer[station]
	addresses []netip.Prefix // configured ones that this port can have, and the link-local one
	announce  announcer

	mu   sync.Mutex // guards link; Binding.Attributes may be called under it
	link ndiscore.LinkState

	// The feeder's own.
	ep  *endpoint
	err error // why it has no endpoint
}

// station is the link-layer address of a port in both notations: netstack asks
// for its own once per packet.
type station struct {
	mac  ndiscore.MAC
	link tcpip.LinkAddress
}

func newStation(m ndiscore.MAC) *station {
	return &station{mac: m, link: tcpip.LinkAddress(m[:])}
}

// newPort makes the port of i on an adapter. It is closed for sends.
func newPort(i *iface, w wire, adapter string, a ndiscore.Attributes) *port {
	p := &port{iface: i, wire: w, on: adapter, mtu: a.MTU, link: a.Link}
	if i.config.MTU != 0 {
		p.mtu = min(p.mtu, i.config.MTU)
	}
	p.gate.init()
	p.station.Store(newStation(a.MAC))
	linkLocal := false
	for _, n := range i.config.Addresses {
		if n.Addr().Is6() {
			if p.mtu < minMTUIPv6 {
				continue
			}
			linkLocal = linkLocal || n.Addr().IsLinkLocalUnicast()
		}
		p.addresses = append(p.addresses, n)
	}
	if p.mtu >= minMTUIPv6 && !linkLocal {
		ll := header.LinkLocalAddr(p.station.Load().link)
		p.addresses = append(p.addresses, netip.PrefixFrom(netip.AddrFrom16(ll.As16()), 64))
	}
	return p
}

func (p *port) linkState() ndiscore.LinkState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link
}

// setLink stores s and reports whether the link came or went.
func (p *port) setLink(s ndiscore.LinkState) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := p.link.Connected() != s.Connected()
	p.link = s
	return changed
}

// look stores the link as its adapter last said it, and reports whether it came
// or went. Indications may overtake each other on their way here, and the look
// that a restart takes; under the lock the last look sees the newest.
func (p *port) look() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.binding.Attributes().Link
	changed := p.link.Connected() != s.Connected()
	p.link = s
	return changed
}

// source is the address of p that an error about a packet from remote is sent
// from (RFC 1812 4.3.2.4, RFC 4443 2.2): the one in remote's network, else the
// first global one, else any.
func (p *port) source(remote netip.Addr) (netip.Addr, bool) {
	var best netip.Addr
	for _, n := range p.addresses {
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
