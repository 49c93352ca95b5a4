package bridge

import (
	"fmt"
	"slices"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// FDB lists the addresses that the bridge knows, in order.
func (b *Bridge) FDB() []FDBEntry {
	b.mu.Lock()
	names, t := slices.Clone(b.names), b.table()
	b.mu.Unlock()
	return t.list(names, b.name)
}

// Flush forgets what was learned on a port, or on all with "", and reports how
// many addresses that were.
func (b *Bridge) Flush(port string) (int, error) {
	b.mu.Lock()
	names, t := slices.Clone(b.names), b.table()
	b.mu.Unlock()
	n, found := 0, port == ""
	for id, name := range names {
		if port == "" || port == name {
			n += t.flush(uint16(id))
			found = true
		}
	}
	if !found {
		return 0, fmt.Errorf("bridge %s: flush %s: %w: it is not a port", b.name, port, ndiscore.ErrNotFound)
	}
	return n, nil
}

// Stats counts what a bridge has done since it was made.
type Stats struct {
	Entries   int    `json:"entries"`   // addresses known now, without its own
	Limit     int    `json:"limit"`     // most that are learned
	Learned   uint64 `json:"learned"`   // new addresses
	Moved     uint64 `json:"moved"`     // … seen on another port than before
	Aged      uint64 `json:"aged"`      // … forgotten for silence
	Flushed   uint64 `json:"flushed"`   // … forgotten because their port went down or away, or by request
	Full      uint64 `json:"full"`      // … not learned for want of room
	Flooded   uint64 `json:"flooded"`   // frames for a group or an unknown address
	Copies    uint64 `json:"copies"`    // … copies of these, over all ports
	Pruned    uint64 `json:"pruned"`    // … of these, frames that went only where somebody listens
	Announced uint64 `json:"announced"` // reverse-ARP announcements sent
	Probes    uint64 `json:"probes"`    // loop guard: frames sent to find a loop
	Loops     uint64 `json:"loops"`     // loop guard: times a port was shut
	Groups    int    `json:"groups"`    // groups with a listener, now
	Reports   uint64 `json:"reports"`   // IGMP, MLD and PIM messages looked at
	Unread    uint64 `json:"unread"`    // … not looked at for want of room, each a reason to flood for a while
}

// Stats returns the counters.
func (b *Bridge) Stats() Stats {
	t := b.table()
	s := Stats{
		Entries: int(t.entries.Load()), Limit: int(t.limit),
		Learned: t.learned.Load(), Moved: t.moved.Load(),
		Aged: t.aged.Load(), Flushed: t.flushed.Load(), Full: t.refused.Load(),
		Announced: b.announced.Load(), Probes: b.probes.Load(), Loops: b.loops.Load(),
		Reports: b.snoop.reports.Load(), Unread: b.snoop.unread.Load(),
	}
	s.Groups = b.snoop.count()
	for i := range b.scratch {
		if c := b.scratch[i].Load(); c != nil {
			s.Flooded += c.flooded.Load()
			s.Copies += c.copies.Load()
			s.Pruned += c.pruned.Load()
		}
	}
	return s
}

// The states of a port.
const (
	PortForwarding = "forwarding"
	PortDown       = "down" // not running, or its link is down
	PortShut       = "shut" // by the loop guard
	PortAbsent     = "absent"
)

// PortInfo is one port: how it is set, and how it fares. Counters start anew
// when the port is bound anew.
type PortInfo struct {
	Name      string   `json:"name"`
	State     string   `json:"state"`              // one of the above
	Access    uint16   `json:"access,omitempty"`   // VLAN of an access port
	Native    uint16   `json:"native,omitempty"`   // VLAN of a trunk port's untagged frames
	Trunk     []string `json:"trunk,omitempty"`    // VLANs of its tagged frames: "10", "20-29"
	Addresses int      `json:"addresses"`          // learned there
	MACLimit  int      `json:"mac_limit"`          // most of them, 0: no limit of the port's own
	Refused   uint64   `json:"mac_limit_refused"`  // frames of stations beyond it
	Storm     Storm    `json:"storm"`              // limits in frames/s, 0: none
	Dropped   Storm    `json:"storm_dropped"`      // frames over them
	Router    bool     `json:"router"`             // a multicast router, or a way to one
	Reopens   int      `json:"reopens_in_seconds"` // of a port that is shut
}

// Storm is one number for each kind of frame that goes to many ports.
type Storm struct {
	Broadcast uint64 `json:"broadcast"`
	Multicast uint64 `json:"multicast"`
	Unknown   uint64 `json:"unknown"`
}

// Ports tells of each port, in the order of the options.
func (b *Bridge) Ports() []PortInfo {
	routers := b.snoop.routers()
	b.mu.Lock()
	defer b.mu.Unlock()
	o, t := b.opts.Load(), b.table()
	all := make([]PortInfo, 0, len(o.Ports))
	for _, name := range o.Ports {
		set := o.Port[name]
		i := PortInfo{Name: name, State: PortAbsent, MACLimit: set.MACLimit}
		i.Storm = Storm{uint64(set.StormBroadcast), uint64(set.StormMulticast), uint64(set.StormUnknown)}
		if o.VLAN != 0 {
			untagged, tagged := set.vlans(o.VLAN)
			if i.Trunk = tagged.List(); i.Trunk != nil {
				i.Native = untagged
			} else {
				i.Access = untagged
			}
		}
		id := slices.Index(b.names, name)
		if id >= 0 && b.ports[id] != nil {
			p := b.ports[id]
			i.State = PortDown
			switch {
			case p.shut:
				i.State = PortShut
				if b.keeper != nil {
					i.Reopens = max(int(p.reopen.Sub(b.keeper.clock.Now()).Seconds()), 0)
				}
			case p.up.Load():
				i.State = PortForwarding
			}
			i.Addresses = int(t.known[id].Load())
			i.Refused = p.refused.Load()
			i.Dropped = Storm{p.buckets[stormBroadcast].dropped.Load(), p.buckets[stormMulticast].dropped.Load(), p.buckets[stormUnknown].dropped.Load()}
			i.Router = slices.Contains(routers, uint16(id))
		}
		all = append(all, i)
	}
	return all
}
