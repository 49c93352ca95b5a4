package nat

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Flow is one flow of a table, as it was when it was listed.
type Flow struct {
	Interface string `json:"interface"`
	Protocol  string `json:"protocol"` // "tcp", "udp", "icmp", "icmpv6", or its number
	Kind      string `json:"kind"`     // "masquerade", "forward", "hairpin", "local" (the router's own), "through" (untranslated, from outside)
	State     string `json:"state"`
	// The first packet as it came, and what answers it as it comes. An ICMP query
	// has its identifier as the port of who asks, and the other port is its type.
	Original Tuple `json:"original"`
	Reply    Tuple `json:"reply"`
	// Packets and bytes of IP in the direction of Original, and back. A super-frame
	// is one packet.
	Packets     uint64 `json:"packets"`
	Bytes       uint64 `json:"bytes"`
	BackPackets uint64 `json:"back_packets"`
	BackBytes   uint64 `json:"back_bytes"`

	Age     time.Duration `json:"age"`
	Expires time.Duration `json:"expires"` // from now, if nothing more comes
}

// Tuple is where a packet comes from and goes to. Protocols without ports have 0.
type Tuple struct {
	Src netip.AddrPort `json:"src"`
	Dst netip.AddrPort `json:"dst"`
}

func (t *tuple) info() Tuple {
	v6 := t.side.v6()
	return Tuple{netip.AddrPortFrom(t.src.netip(v6), t.sport), netip.AddrPortFrom(t.dst.netip(v6), t.dport)}
}

// Filter selects flows: those that match all that is set. The zero value
// matches all.
type Filter struct {
	Interface string
	Address   netip.Prefix // of anybody who takes part, before or after translation
	Protocol  string       // as in Flow
}

func (x *Filter) match(f *flow) bool {
	return (x.Protocol == "" || x.Protocol == protocolName(f.node[0].proto)) && (!x.Address.IsValid() || f.in(x.Address))
}

// in reports whether an address of f is one of p's.
func (f *flow) in(p netip.Prefix) bool {
	if v6 := f.node[0].side.v6(); v6 == p.Addr().Is6() {
		for i := range f.node {
			if n := &f.node[i]; p.Contains(n.src.netip(v6)) || p.Contains(n.dst.netip(v6)) {
				return true
			}
		}
	}
	return false
}

func (f *flow) has(a hostAddr) bool {
	for i := range f.node {
		if n := &f.node[i]; n.side.v6() == a.v6 && (n.src == a.addr || n.dst == a.addr) {
			return true
		}
	}
	return false
}

// ProtocolName is the protocol that people write as s, "tcp" or 6, as Flow has it.
func ProtocolName(s string) (string, error) {
	switch s {
	case "tcp", "udp", "icmp", "icmpv6":
		return s, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return "", fmt.Errorf("protocol %.20q: not tcp, udp, icmp, icmpv6 or a number up to 255", s)
	}
	return protocolName(uint8(n)), nil
}

func protocolName(p uint8) string {
	switch p {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// each calls f for each flow of the edge, or of all when it is nil. It lets packets
// through in between, so that what it shows is of no one moment. f may remove the
// flow.
func (t *Table) each(e *Edge, f func(*flow)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := 0; c < len(t.chunks); c++ {
		flows := t.chunks[c]
		for i := range flows {
			if i%slice == slice-1 {
				t.mu.Unlock()
				t.mu.Lock()
			}
			n := &flows[i].node[0]
			if n.flow != nil && (e == nil || n.edge == e.id) {
				f(n.flow)
			}
		}
	}
}

// Flows lists at most limit flows that x selects, all when limit is 0, and counts
// all that it selects. They are in no order.
func (t *Table) Flows(x Filter, limit int) (out []Flow, total int) {
	var e *Edge
	if x.Interface != "" {
		if e = t.Edge(x.Interface); e == nil {
			return nil, 0
		}
	}
	t.each(e, func(f *flow) {
		if f.expires <= t.now || !x.match(f) {
			return
		}
		if total++; limit == 0 || total <= limit {
			n := &f.node[0]
			out = append(out, Flow{
				Interface: t.byID[n.edge].name, Protocol: protocolName(n.proto), Kind: flowKindNames[f.kind], State: f.state.String(),
				Original: n.info(), Reply: f.node[1].info(),
				Packets: f.packets[0], Bytes: f.bytes[0], BackPackets: f.packets[1], BackBytes: f.bytes[1],
				Age: t.now - f.born, Expires: f.expires - t.now,
			})
		}
	})
	return out, total
}

// Flush ends the flows that x selects and returns how many there were. What comes
// next of a connection begins a flow anew, maybe with another port.
func (t *Table) Flush(x Filter, why string) int {
	var e *Edge
	if x.Interface != "" {
		if e = t.Edge(x.Interface); e == nil {
			return 0
		}
	}
	return t.flush(e, func(f *flow) string {
		if x.match(f) {
			return why
		}
		return ""
	})
}

// flush ends the flows, of e or of all edges, for which why knows a reason, and
// tells how many it were of each interface for each reason.
func (t *Table) flush(e *Edge, why func(*flow) string) int {
	type cause struct{ iface, why string }
	var order []cause
	count := map[cause]int{}
	n := 0
	t.each(e, func(f *flow) {
		w := why(f)
		if w == "" {
			return
		}
		c := cause{t.byID[f.node[0].edge].name, w}
		if count[c]++; count[c] == 1 {
			order = append(order, c)
		}
		t.remove(f)
		t.stats.flushed++
		n++
	})
	for _, c := range order {
		t.event("nat.flushed", c.iface, "", flows(count[c]), c.why)
	}
	return n
}

func flows(n int) string {
	if n == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", n)
}

// Stats are the table's counters. Their names are stable.
func (t *Table) Stats() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.stats
	return map[string]uint64{
		"flows":             uint64(t.live),
		"limit":             uint64(t.limits.Flows),
		"created":           s.created,
		"expired":           s.expired,
		"evicted":           s.evicted,
		"flushed":           s.flushed,
		"translated.in":     s.translatedIn,
		"translated.out":    s.translatedOut,
		"errors.in":         s.errorsIn,
		"errors.out":        s.errorsOut,
		"refused.no_room":   s.noFlow,
		"refused.no_port":   s.noPort,
		"dropped.state":     s.noState,
		"dropped.fragments": s.noFirst,
	}
}
