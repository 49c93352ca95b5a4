package stack

import (
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Options describes a router. It is copied by New.
type Options struct {
	Interfaces []Interface
	Routes     []Route
	Forwards   []Forward // published ports
	Limits     Limits    // zero values mean the defaults
	NAT        NATLimits // likewise

	Logger *zap.Logger    // nil: no log
	Clock  ndiscore.Clock // nil: ndiscore.SystemClock

	// Event is told what happens to the router, one state change a call:
	// "interface.bound", "interface.unbound", "interface.link", "interface.ipv6", "interface.mac", "interface.mtu",
	// "route.alive", "route.withdrawn", "address.announced", "address.added", "address.removed", "router.rebuilt", "nat.full", "nat.flushed". It must not block and must not
	// call the router. May be nil.
	Event func(what, iface, from, to, why string)
	// Fatal is called once, when netstack has panicked more often than
	// Limits.RebuildsPerHour: the router forwards no more and the process had
	// better be restarted. It must not block. May be nil.
	Fatal func(error)
}

// Interface is one layer-3 interface of the router.
type Interface struct {
	Name      string
	On        string         // the adapter, bundle or bridge that it stands on
	Addresses []netip.Prefix // the router's own, IPv4 and IPv6, with the length of their network
	MTU       int            // bytes of layer-3 packet; 0, or more than the adapter's, means the adapter's

	Masquerade  bool // IPv4 that leaves by it does so with an address of its own
	Masquerade6 bool // so does IPv6
}

// Route is one static route.
type Route struct {
	To        netip.Prefix
	Via       netip.Addr // next hop; the zero Addr means that To is on the link
	Interface string     // may be empty when Via lies in the network of one interface
	Metric    int        // the smallest alive one wins among routes to the same prefix
}

// Limits bounds what the router holds.
type Limits struct {
	PuntFrames      [classes]int // frames waiting for netstack, per class
	PuntBytes       [classes]int // their bytes, per class
	Senders         int          // goroutines that can transmit at a time
	TooBigPerSecond int          // packet-too-big messages
	TooBigBurst     int
	RebuildsPerHour int
}

// The defaults of Limits.
var defaultLimits = Limits{
	//                  ARP/ND   control  local    forward  broadcast
	PuntFrames: [classes]int{256, 256, 512, 1024, 256},
	PuntBytes:  [classes]int{256 << 10, 1 << 20, 4 << 20, 8 << 20, 1 << 20},

	Senders:         16,
	TooBigPerSecond: 1000,
	TooBigBurst:     100,
	RebuildsPerHour: 3,
}

// Bounds of an interface's MTU in bytes.
const (
	minMTU     = 68   // RFC 791: every module must forward this much
	minMTUIPv6 = 1280 // RFC 8200 5; netstack panics when it forwards IPv6 to less
	maxMTU     = 65535
)

func (l Limits) filled() Limits {
	d := defaultLimits
	for i := range classes {
		if l.PuntFrames[i] > 0 {
			d.PuntFrames[i] = l.PuntFrames[i]
		}
		if l.PuntBytes[i] > 0 {
			d.PuntBytes[i] = l.PuntBytes[i]
		}
	}
	set := func(to *int, v int) {
		if v > 0 {
			*to = v
		}
	}
	set(&d.Senders, l.Senders)
	set(&d.TooBigPerSecond, l.TooBigPerSecond)
	set(&d.TooBigBurst, l.TooBigBurst)
	set(&d.RebuildsPerHour, l.RebuildsPerHour)
	return d
}

// Validate returns one error per contradiction, joined with errors.Join.
func (o *Options) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("stack: "+format, a...)) }

	names, on, owner := map[string]*Interface{}, map[string]string{}, map[netip.Addr]string{}
	for i := range o.Interfaces {
		f := &o.Interfaces[i]
		switch {
		case f.Name == "":
			bad("an interface has no name")
			continue
		case names[f.Name] != nil:
			bad("interface %s: the name is used twice", f.Name)
			continue
		case f.On == "":
			bad("interface %s: on: missing", f.Name)
		case on[f.On] != "":
			bad("interface %s: on %s: interface %s is there already; give one of them both networks", f.Name, f.On, on[f.On])
		}
		names[f.Name], on[f.On] = f, f.Name
		if f.MTU != 0 && (f.MTU < minMTU || f.MTU > maxMTU) {
			bad("interface %s: mtu %d: not within %d..%d", f.Name, f.MTU, minMTU, maxMTU)
		}
		for _, p := range f.Addresses {
			a := p.Addr()
			switch {
			case !p.IsValid():
				bad("interface %s: an address is not valid", f.Name)
				continue
			case a.Is4In6():
				bad("interface %s: address %s: write it as IPv4", f.Name, p)
			case a.Zone() != "":
				bad("interface %s: address %s: an address of an interface has no zone", f.Name, p)
			case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
				bad("interface %s: address %s: no station may have it", f.Name, p)
			case a.Is4() && p.Bits() < 31 && (a == p.Masked().Addr() || a == lastAddr(p)):
				bad("interface %s: address %s: it is the network's or its broadcast address", f.Name, p)
			case a.Is6() && f.MTU != 0 && f.MTU < minMTUIPv6:
				bad("interface %s: address %s: IPv6 needs an mtu of at least %d, this one is %d", f.Name, p, minMTUIPv6, f.MTU)
			case owner[a] != "":
				bad("interface %s: address %s: interface %s has it already", f.Name, p, owner[a])
			}
			if !a.IsLinkLocalUnicast() || a.Is4() {
				owner[a] = f.Name
			}
		}
	}
	listed := map[Route]bool{}
	for i := range o.Routes {
		c, err := o.routeInterface(&o.Routes[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r := o.Routes[i]
		r.Interface = c.Name
		if listed[r] {
			bad("route to %s: metric %d: listed twice", r.To, r.Metric)
		}
		listed[r] = true
	}
	c := o.natConfig()
	if err := c.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// routeInterface checks r and finds the interface that it leaves by.
func (o *Options) routeInterface(r *Route) (*Interface, error) {
	fail := func(format string, a ...any) (*Interface, error) {
		return nil, fmt.Errorf("stack: route to %s: %s", r.To, fmt.Sprintf(format, a...))
	}
	switch {
	case !r.To.IsValid() || r.To.Addr().Is4In6():
		return fail("not a prefix")
	case r.To != r.To.Masked():
		return fail("it has host bits; did you mean %s?", r.To.Masked())
	case r.To.Addr().IsMulticast():
		return fail("multicast is not routed")
	case r.Metric < 0:
		return fail("metric %d is negative", r.Metric)
	case r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4():
		return fail("via %s is of the other IP version", r.Via)
	case r.Via.IsValid() && (r.Via.IsMulticast() || r.Via.IsUnspecified() || r.Via.IsLoopback() || r.Via.Zone() != "" || r.Via.Is4In6()):
		return fail("via %s cannot be a next hop", r.Via)
	case !r.Via.IsValid() && r.Interface == "":
		return fail("needs via or interface")
	}
	var found *Interface
	for i := range o.Interfaces {
		f := &o.Interfaces[i]
		if r.Interface != "" && f.Name != r.Interface {
			continue
		}
		onLink := !r.Via.IsValid() || r.Interface != "" && r.Via.Is6() && r.Via.IsLinkLocalUnicast()
		for _, p := range f.Addresses {
			if p.Addr() == r.Via {
				return fail("via %s is the router's own address", r.Via)
			}
			onLink = onLink || p.Contains(r.Via)
		}
		if onLink {
			found = f
			break
		}
		if r.Interface != "" {
			return fail("via %s is in no network of interface %s", r.Via, f.Name)
		}
	}
	switch {
	case found != nil:
		return found, nil
	case r.Interface != "":
		return fail("there is no interface %s", r.Interface)
	}
	return fail("via %s is in no interface's network", r.Via)
}

// lastAddr is the last address of p: an IPv4 network's broadcast address.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
