package control

import (
	"net/netip"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/stack"
)

// each converts a list; the result is never nil.
func each[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, len(list))
	for i, x := range list {
		out[i] = convert(x)
	}
	return out
}

// wireMAC is "" for no address.
func wireMAC(m ndiscore.MAC) string {
	if m.IsZero() {
		return ""
	}
	return m.String()
}

func wireLink(l ndiscore.LinkState) Link {
	return Link{Media: l.Media.String(), SpeedBits: l.Speed, Why: l.Why}
}

func wireBinding(b ndiscore.BindingInfo) Binding {
	return Binding{Protocol: b.Protocol, Adapter: b.Adapter, Target: b.Target, State: b.State.String()}
}

func wireAdapter(a ndiscore.AdapterInfo) Adapter {
	return Adapter{
		Name: a.Name, Driver: a.Driver, Virtual: a.Virtual, State: a.State.String(), Oper: string(a.Oper),
		Cause: a.Cause, LastHalt: a.LastHalt.String(), Waiting: a.Waiting, Retrying: a.Retrying, Quarantined: a.Stuck, Suspended: a.Asleep, Health: string(a.Health), Resets: a.Resets,
		Device: a.Device, MAC: wireMAC(a.MAC), MTU: a.MTU, Link: wireLink(a.Link), Bundle: a.Bundle,
		Filters:  each(a.Filters, func(f ndiscore.FilterInfo) Filter { return Filter{f.Name, f.State.String(), f.Mandatory} }),
		Bindings: each(a.Bindings, wireBinding),
		Counters: a.Counters,
	}
}

func wireBundle(b ndiscore.BundleInfo) Bundle {
	return Bundle{
		Name: b.Name, Mode: b.Mode.String(), Active: b.Active, Balance: b.Balance.String(), Failback: b.Failback.String(), Hold: time.Duration(b.Hold).String(),
		Members: each(b.Members, func(m ndiscore.BundleMember) Member {
			return Member{
				Adapter: m.Adapter, Role: m.Role, Verdict: m.Verdict.String(), State: m.State.String(),
				Link: wireLink(m.Link), Probe: m.Probe,
			}
		}),
	}
}

func wireFDBEntry(e bridge.FDBEntry) FDBEntry {
	return FDBEntry{MAC: e.MAC.String(), VLAN: int(e.VLAN), Port: e.Port, AgeSeconds: e.Age, Local: e.Local}
}

func wireInterface(i stack.InterfaceInfo) Interface {
	return Interface{
		Name: i.Name, On: i.On, Adapter: i.Adapter, MAC: wireMAC(i.MAC), MTU: i.MTU,
		Addresses: each(i.Addresses, netip.Prefix.String), Up: i.Up, Link: wireLink(i.Link),
		Masquerade: i.Masquerade, Masquerade6: i.Masquerade6,
	}
}

func wireRoute(r stack.RouteInfo) Route {
	w := Route{To: r.To.String(), Interface: r.Interface, Metric: r.Metric, Kind: string(r.Kind), Alive: r.Alive, Why: r.Why}
	if r.Via.IsValid() {
		w.Via = r.Via.String()
	}
	return w
}

func wireNeighbor(n stack.NeighborInfo) Neighbor {
	return Neighbor{Interface: n.Interface, IP: n.IP.String(), MAC: wireMAC(n.MAC), State: n.State, Updated: n.Updated}
}

// wireStats makes sure that maps are objects, never null.
func wireStats(s Stats) Stats {
	if s.Adapters == nil {
		s.Adapters = map[string]ndiscore.Counters{}
	}
	if s.Router == nil {
		s.Router = map[string]uint64{}
	}
	if s.Bridges == nil {
		s.Bridges = map[string]map[string]uint64{}
	}
	return s
}
