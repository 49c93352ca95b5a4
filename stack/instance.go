package stack

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// instance is one netstack, configured as a router. The feeder alone calls
// what changes it.
type instance struct {
	s     *netstack.Stack
	clock *feederClock
	mld   bool

	neighbors *neighborTable
}

// newInstance makes a netstack without NICs. With mld it reports the multicast
// groups that it listens to, without which a snooping switch may keep neighbour
// solicitations from it. But then no NIC may have an MTU too small for IPv6: for
// such a one netstack makes reports without end, on a timer of its own.
func newInstance(c ndiscore.Clock, due *dueQueue, mld bool) (*instance, error) {
	i := &instance{clock: &feederClock{Clock: netClock(c), due: due}, mld: mld, neighbors: newNeighborTable()}
	i.s = netstack.New(netstack.Options{
		NetworkProtocols: []netstack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			ipv6.NewProtocolWithOptions(ipv6.Options{
				// A router takes no advice from routers, and its addresses
				// are good at once: no duplicate address detection.
				NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
				MLD:        ipv6.MLDOptions{Enabled: mld},
			}),
			arp.NewProtocol,
		},
		TransportProtocols: []netstack.TransportProtocolFactory{
			icmp.NewProtocol4, icmp.NewProtocol6, tcp.NewProtocol, udp.NewProtocol,
		},
		Clock:       i.clock,
		NUDDisp:     i.neighbors,
		HandleLocal: true,
	})
	for _, p := range []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber, ipv6.ProtocolNumber} {
		if err := i.s.SetForwardingDefaultAndAllNICs(p, true); err != nil {
			return nil, fmt.Errorf("stack: enable forwarding: %w", goError(err))
		}
	}
	return i, nil
}

// addNIC gives netstack the interface of p.
func (i *instance) addNIC(id tcpip.NICID, p *port, e *endpoint) error {
	if err := i.s.CreateNICWithOptions(id, e, netstack.NICOptions{Name: p.iface.name}); err != nil {
		return fmt.Errorf("create NIC: %w", goError(err))
	}
	s := p.station.Load()
	if !s.hasIPv6() {
		// It is to see nothing of this NIC.
		v6, err := i.s.GetNetworkEndpoint(id, ipv6.ProtocolNumber)
		if err != nil {
			i.removeNIC(id)
			return fmt.Errorf("switch IPv6 off: %w", goError(err))
		}
		v6.Disable()
	}
	for _, a := range s.addresses {
		if err := i.addAddress(id, a); err != nil {
			i.removeNIC(id)
			return err
		}
	}
	return nil
}

func (i *instance) addAddress(id tcpip.NICID, a netip.Prefix) error {
	pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: netAddress(a.Addr()), PrefixLen: a.Bits(),
	}}
	if a.Addr().Is6() {
		pa.Protocol = ipv6.ProtocolNumber
	}
	if err := i.s.AddProtocolAddress(id, pa, netstack.AddressProperties{}); err != nil {
		return fmt.Errorf("address %s: %w", a, goError(err))
	}
	return nil
}

// changeNIC makes another station of a NIC: what stays is not touched. Both must
// be able to do IPv6, or neither. An error leaves the NIC in between.
func (i *instance) changeNIC(id tcpip.NICID, was, now *station) error {
	for _, a := range was.addresses {
		if !slices.Contains(now.addresses, a) {
			if err := i.s.RemoveAddress(id, netAddress(a.Addr())); err != nil {
				return fmt.Errorf("remove address %s: %w", a, goError(err))
			}
		}
	}
	for _, a := range now.addresses {
		if !slices.Contains(was.addresses, a) {
			if err := i.addAddress(id, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeNIC takes it away again. Its routes, neighbours and waiting packets go
// with it.
func (i *instance) removeNIC(id tcpip.NICID) { i.s.RemoveNIC(id) }

// destroy ends the instance and the goroutines of its TCP.
func (i *instance) destroy() {
	i.s.Destroy()
	i.abandon()
}

// abandon has its timers do nothing any more: after a panic they would wait for
// locks that nobody will release.
func (i *instance) abandon() { i.clock.dead.Store(true) }

// goError makes an error of a tcpip.Error, which is deliberately none.
func goError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return netstackError{err.String()}
}

type netstackError struct{ text string }

func (e netstackError) Error() string { return "netstack: " + e.text }

func netAddress(a netip.Addr) tcpip.Address {
	if !a.IsValid() {
		return tcpip.Address{}
	}
	return tcpip.AddrFromSlice(a.AsSlice())
}

func goAddress(a tcpip.Address) netip.Addr {
	b, _ := netip.AddrFromSlice(a.AsSlice())
	return b
}

// netClock is c as netstack wants it.
func netClock(c ndiscore.Clock) tcpip.Clock {
	if _, ok := c.(ndiscore.SystemClock); ok {
		return tcpip.NewStdClock()
	}
	return &clockAdapter{c: c, start: c.Now()}
}

// feederClock is netstack's clock. What falls due runs on the feeder between two
// deliveries, as everything does that netstack does for us: so a panic in it is
// caught, and nobody takes memory from netstack's pools while the feeder is inside
// (see newView).
type feederClock struct {
	tcpip.Clock
	due  *dueQueue
	dead atomic.Bool
}

// AfterFunc implements tcpip.Clock. What is due at once takes no way around by a
// goroutine.
func (c *feederClock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	push := func() { c.due.push(dueCall{c, f}) }
	if d > 0 {
		return c.Clock.AfterFunc(d, push)
	}
	t := c.Clock.AfterFunc(math.MaxInt64, push) // for its Reset
	t.Stop()
	push()
	return t
}

// dueQueue holds the timers that have run down until the feeder comes to them.
// There are never more than netstack has timers.
type dueQueue struct {
	kick func()
	some atomic.Bool

	mu    sync.Mutex // a leaf; guards calls
	calls []dueCall
}

type dueCall struct {
	clock *feederClock
	f     func()
}

func (q *dueQueue) push(c dueCall) {
	if c.clock.dead.Load() {
		return
	}
	q.mu.Lock()
	q.calls = append(q.calls, c)
	q.mu.Unlock()
	q.some.Store(true)
	q.kick()
}

func (q *dueQueue) take() []dueCall {
	q.some.Store(false)
	q.mu.Lock()
	defer q.mu.Unlock()
	calls := q.calls
	q.calls = nil
	return calls
}

type clockAdapter struct {
	c     ndiscore.Clock
	start time.Time
}

func (a *clockAdapter) Now() time.Time { return a.c.Now() }

func (a *clockAdapter) NowMonotonic() tcpip.MonotonicTime {
	return tcpip.MonotonicTime{}.Add(a.c.Now().Sub(a.start))
}

func (a *clockAdapter) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	return &timerAdapter{c: a.c, f: f, t: a.c.AfterFunc(d, f)}
}

// timerAdapter adds Reset, which netstack calls on stopped or expired timers
// only, and one at a time.
type timerAdapter struct {
	c ndiscore.Clock
	f func()
	t ndiscore.Timer
}

func (t *timerAdapter) Stop() bool { return t.t.Stop() }

func (t *timerAdapter) Reset(d time.Duration) {
	t.t.Stop()
	t.t = t.c.AfterFunc(d, t.f)
}
