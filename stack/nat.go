package stack

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// Forward is a published port; see package nat.
type Forward = nat.Forward

// PortRange is an inclusive range of ports.
type PortRange = nat.PortRange

// NATLimits bounds the router's NAT.
type NATLimits = nat.Limits

// NATFlow is one flow of the router's NAT.
type NATFlow = nat.Flow

// NATFilter selects flows of the router's NAT: those that match all that is set.
// The zero value matches all.
type NATFilter struct {
	Interface string       // or the adapter, bundle or bridge that it stands on or is bound to
	Address   netip.Prefix // of anybody who takes part, before or after translation
	Protocol  string       // "tcp", "udp", "icmp", "icmpv6", or a number
}

// natTick is how often NAT is told the time.
const natTick = time.Second

// natConfig is what o says of NAT.
func (o *Options) natConfig() nat.Config {
	c := nat.Config{Forwards: o.Forwards}
	for _, i := range o.Interfaces {
		c.Interfaces = append(c.Interfaces, nat.Interface{
			Name: i.Name, Addresses: i.Addresses, Masquerade: i.Masquerade, Masquerade6: i.Masquerade6,
		})
	}
	return c
}

// configureNAT makes NAT do as o says, which is valid and has been taken over, and
// tells the interfaces of their edges. Flows that o still allows remain.
func (r *Router) configureNAT(o *Options) {
	r.nat.Tick(r.clock.Now())
	r.nat.SetLimits(o.NAT)
	r.nat.Configure(o.natConfig())
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.ifaces {
		i.edge.Store(r.nat.Edge(i.name))
	}
	r.tickLocked()
}

// tickLocked has NAT told the time from now on, while it has something to do.
func (r *Router) tickLocked() {
	if r.natTimer == nil && r.started && !r.closed && r.nat.Active() {
		// Timer "stack nat": the clock's; ends by Close, or when no NAT is configured.
		r.natTimer = r.clock.AfterFunc(natTick, r.tickNAT)
	}
}

func (r *Router) tickNAT() {
	r.nat.Tick(r.clock.Now())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.natTimer = nil
	r.tickLocked()
}

// copies are for frames on their way in that NAT changes: it may not change those
// that it was lent. One serves a whole batch, since each frame is copied on its
// way to the queue anyway.
var copies = sync.Pool{New: func() any { return new(nat.Copy) }}

// examined is a frame as the router sees it, and what the guards make of it.
type examined struct {
	frame *ndiscore.Frame // the one that came, or a translated copy
	verdict
}

// examine has the guards and NAT look at a frame that came in by p. The copy is
// used, and made, when NAT changes the frame.
func (t *fib) examine(p *port, mac ndiscore.MAC, f *ndiscore.Frame, c **nat.Copy) examined {
	x := examined{f, t.check(mac, f)}
	if x.edge == nil {
		if e := p.iface.edge.Load(); e != nil && x.drop == ndiscore.DropNone && (x.class == classForward || x.class == classLocal) {
			x.drop = e.Through(f)
		}
		return x
	}
	if *c == nil {
		*c = copies.Get().(*nat.Copy)
	}
	g, why := x.edge.In(f, p.iface.edge.Load(), *c)
	if why != ndiscore.DropNone {
		x.drop = why
		return x
	}
	return examined{g, t.checkAfterNAT(mac, g)}
}

// translate has e translate what t is about to send, and takes away what must not
// leave. It returns how many frames that was: NAT counts the reasons.
func (t *sender) translate(e *nat.Edge) (lost int) {
	frames := t.batch.Frames
	t.used = len(frames)
	why := t.why[:len(frames)]
	clear(why)
	e.Out(frames, why)
	kept := frames[:0]
	for i, f := range frames {
		if why[i] == ndiscore.DropNone {
			kept = append(kept, f)
		}
	}
	t.batch.Frames = kept
	return t.used - len(kept)
}

// NATFlows lists at most limit flows that x selects, all when limit is 0, and
// counts all that it selects. They are in no order, and no picture of one moment:
// packets go on meanwhile. ErrNotFound when there is no such interface.
func (r *Router) NATFlows(x NATFilter, limit int) (flows []NATFlow, total int, err error) {
	f, err := r.natFilter(x)
	if err != nil {
		return nil, 0, fmt.Errorf("stack: list NAT flows: %w", err)
	}
	flows, total = r.nat.Flows(f, limit)
	return flows, total, nil
}

// NATProtocol is the protocol that people write as s, "tcp" or 6, as NATFilter and
// NATFlow have it.
func NATProtocol(s string) (string, error) { return nat.ProtocolName(s) }

// FlushNAT ends the flows that x selects and returns how many there were. It
// raises "nat.flushed" with why for each interface that had some. ErrNotFound when
// there is no such interface.
func (r *Router) FlushNAT(x NATFilter, why string) (int, error) {
	f, err := r.natFilter(x)
	if err != nil {
		return 0, fmt.Errorf("stack: flush NAT flows: %w", err)
	}
	return r.nat.Flush(f, why), nil
}

func (r *Router) natFilter(x NATFilter) (nat.Filter, error) {
	f := nat.Filter{Interface: x.Interface, Address: x.Address, Protocol: x.Protocol}
	if x.Interface == "" {
		return f, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.ifaces {
		if i.name == x.Interface {
			return f, nil
		}
	}
	var there []string
	for _, i := range r.ifaces {
		if i.config.On == x.Interface || i.port != nil && i.port.on == x.Interface {
			f.Interface = i.name
			return f, nil
		}
		there = append(there, fmt.Sprintf("%s (on %s)", i.name, i.config.On))
	}
	if there == nil {
		return f, fmt.Errorf("interface %s: %w: the router has none", x.Interface, ndiscore.ErrNotFound)
	}
	return f, fmt.Errorf("interface %s: %w: there are %s", x.Interface, ndiscore.ErrNotFound, strings.Join(there, ", "))
}
