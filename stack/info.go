package stack

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// InterfaceInfo tells what an interface is bound to.
type InterfaceInfo struct {
	Name      string             `json:"name"`
	On        string             `json:"on"`
	Adapter   string             `json:"adapter,omitempty"` // bound to; empty when it is not
	MAC       ndiscore.MAC       `json:"mac"`
	MTU       int                `json:"mtu"`
	Addresses []netip.Prefix     `json:"addresses"` // with the link-local one while bound
	Up        bool               `json:"up"`        // bound, and its link connected
	Link      ndiscore.LinkState `json:"link"`

	Masquerade  bool `json:"masquerade,omitempty"`
	Masquerade6 bool `json:"masquerade6,omitempty"`
}

// RouteKind says where a route comes from.
type RouteKind string

// The kinds of route.
const (
	RouteConnected RouteKind = "connected" // the network of an address of the interface
	RouteStatic    RouteKind = "static"    // configured
)

// RouteInfo is one route, alive or not.
type RouteInfo struct {
	To        netip.Prefix `json:"to"`
	Via       netip.Addr   `json:"via,omitzero"`
	Interface string       `json:"interface"`
	Metric    int          `json:"metric"`
	Kind      RouteKind    `json:"kind"`
	Alive     bool         `json:"alive"`
	Why       string       `json:"why,omitempty"` // why it is not alive, or not the one that is used
}

// String is the route in the words of ip-route(8).
func (i RouteInfo) String() string {
	if !i.Via.IsValid() {
		return fmt.Sprintf("%s dev %s", i.To, i.Interface)
	}
	return fmt.Sprintf("%s via %s dev %s", i.To, i.Via, i.Interface)
}

// identity is what tells i from other routes.
func (i RouteInfo) identity() RouteInfo {
	i.Alive, i.Why = false, ""
	return i
}

// compare orders routes by destination.
func (i RouteInfo) compare(o RouteInfo) int {
	return cmp.Or(i.To.Addr().Compare(o.To.Addr()), i.To.Bits()-o.To.Bits())
}

// NeighborInfo is one entry of the neighbour tables (ARP and ND).
type NeighborInfo struct {
	Interface string       `json:"interface"`
	IP        netip.Addr   `json:"ip"`
	MAC       ndiscore.MAC `json:"mac"`
	State     string       `json:"state"` // as RFC 4861 7.3.2 names it
	Updated   time.Time    `json:"updated"`
}

// Interfaces lists the interfaces in configured order.
func (r *Router) Interfaces() []InterfaceInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	infos := make([]InterfaceInfo, 0, len(r.ifaces))
	for _, i := range r.ifaces {
		n := InterfaceInfo{
			Name: i.name, On: i.config.On, MTU: i.config.MTU, Addresses: slices.Clone(i.config.Addresses),
			Masquerade: i.config.Masquerade, Masquerade6: i.config.Masquerade6,
		}
		if p := i.port; p != nil {
			s := p.station.Load()
			n.Adapter, n.MAC, n.MTU = p.on, s.mac, s.mtu
			n.Addresses = slices.Clone(s.addresses)
			n.Link = p.linkState()
			n.Up = n.Link.Connected()
		}
		infos = append(infos, n)
	}
	return infos
}

// Routes lists all routes, ordered by destination, the preferred one first.
func (r *Router) Routes() []RouteInfo { return slices.Clone(*r.routes.Load()) }

// neighborsLimit bounds how long Neighbors waits for the feeder.
const neighborsLimit = time.Second

// Neighbors lists the neighbours of all interfaces; none when the feeder does
// not answer.
func (r *Router) Neighbors() []NeighborInfo {
	ctx, cancel := context.WithTimeout(context.Background(), neighborsLimit)
	defer cancel()
	found := make(chan []NeighborInfo, 1)
	// The feeder asks: netstack's locks may be held for ever after a panic.
	if r.do(ctx, func() { found <- r.neighbors() }) != nil {
		return nil
	}
	return <-found
}

func (r *Router) neighbors() []NeighborInfo {
	var infos []NeighborInfo
	net := r.feed.net
	now, mono := net.clock.Now(), net.clock.NowMonotonic()
	for _, i := range r.feed.ifaces {
		if i.live == nil {
			continue
		}
		for _, proto := range []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber, ipv6.ProtocolNumber} {
			entries, err := net.s.Neighbors(i.id, proto)
			if err != nil {
				continue
			}
			for _, e := range entries {
				n := NeighborInfo{
					Interface: i.name, IP: goAddress(e.Addr), State: e.State.String(),
					Updated: now.Add(-mono.Sub(e.UpdatedAt)),
				}
				copy(n.MAC[:], e.LinkAddr)
				infos = append(infos, n)
			}
		}
	}
	slices.SortFunc(infos, func(a, b NeighborInfo) int {
		if a.Interface != b.Interface {
			if a.Interface < b.Interface {
				return -1
			}
			return 1
		}
		return a.IP.Compare(b.IP)
	})
	return infos
}

// Stats are the router's counters and netstack's own. Their names are stable.
// Those of netstack begin again when it was rebuilt.
func (r *Router) Stats() map[string]uint64 {
	m := map[string]uint64{
		"delivered":       r.stats.delivered.Load(),
		"orphaned":        r.stats.orphans.Load(),
		"panics":          r.stats.panics.Load(),
		"announced":       r.stats.announced.Load(),
		"neighbor.moved":  r.stats.moves.Load(),
		"neighbor.full":   r.stats.impatient.Load(),
		"too_big.sent":    r.stats.tooBigSent.Load(),
		"too_big.limited": r.stats.tooBigMuted.Load(),
		"send.no_sender":  r.senders.empty.Load(),
	}
	for c := range r.queue.rings {
		q, name := &r.queue.rings[c], "punt."+classNames[c]+"."
		m[name+"frames"] = q.frames.Load()
		m[name+"dropped"] = q.dropped.Load()
		m[name+"bytes"] = q.carried.Load()
		m[name+"high_frames"] = q.highFrames.Load()
		m[name+"high_bytes"] = q.highBytes.Load()
	}
	r.mu.Lock()
	ifaces := r.ifaces
	r.mu.Unlock()
	for _, i := range ifaces {
		s, name := &i.stats, "send."+i.name+"."
		m[name+"frames"] = s.sent.Load()
		m[name+"refused"] = s.refused.Load()
		m[name+"closed"] = s.closed.Load()
		m[name+"no_sender"] = s.noSender.Load()
		m[name+"nat"] = s.nat.Load()
	}
	for name, n := range r.nat.Stats() {
		m["nat."+name] = n
	}
	net := r.stack.Load()
	if net == nil {
		return m
	}
	s := net.s.Stats()
	for name, c := range map[string]*tcpip.StatCounter{
		"ip.received":                    s.IP.PacketsReceived,
		"ip.delivered":                   s.IP.PacketsDelivered,
		"ip.sent":                        s.IP.PacketsSent,
		"ip.send_errors":                 s.IP.OutgoingPacketErrors,
		"ip.malformed":                   s.IP.MalformedPacketsReceived,
		"ip.malformed_fragments":         s.IP.MalformedFragmentsReceived,
		"ip.invalid_source":              s.IP.InvalidSourceAddressesReceived,
		"ip.invalid_destination":         s.IP.InvalidDestinationAddressesReceived,
		"forward.errors":                 s.IP.Forwarding.Errors,
		"forward.unroutable":             s.IP.Forwarding.Unrouteable,
		"forward.ttl":                    s.IP.Forwarding.ExhaustedTTL,
		"forward.too_big":                s.IP.Forwarding.PacketTooBig,
		"forward.host_unreachable":       s.IP.Forwarding.HostUnreachable,
		"forward.no_output":              s.IP.Forwarding.UnknownOutputEndpoint,
		"forward.no_buffer":              s.IP.Forwarding.OutgoingDeviceNoBufferSpace,
		"forward.link_local_source":      s.IP.Forwarding.LinkLocalSource,
		"forward.link_local_destination": s.IP.Forwarding.LinkLocalDestination,
		"forward.source_zero":            s.IP.Forwarding.InitializingSource,
		"forward.extension_header":       s.IP.Forwarding.ExtensionHeaderProblem,
		"nic.malformed_l4":               s.NICs.MalformedL4RcvdPackets,
		"nic.no_buffer":                  s.NICs.TxPacketsDroppedNoBufferSpace,
		"nic.disabled":                   s.NICs.DisabledRx.Packets,
		"arp.requests_received":          s.ARP.RequestsReceived,
		"arp.replies_sent":               s.ARP.OutgoingRepliesSent,
		"arp.requests_sent":              s.ARP.OutgoingRequestsSent,
		"icmp4.rate_limited":             s.ICMP.V4.PacketsSent.RateLimited,
		"icmp6.rate_limited":             s.ICMP.V6.PacketsSent.RateLimited,
		"icmp4.invalid":                  s.ICMP.V4.PacketsReceived.Invalid,
		"icmp6.invalid":                  s.ICMP.V6.PacketsReceived.Invalid,
		"transport.dropped":              s.DroppedPackets,
	} {
		m[name] = c.Value()
	}
	return m
}
