package bridge

import (
	"fmt"
	"maps"
	"slices"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// clone makes a copy of o that nobody else changes.
func (o Options) clone() Options {
	o.Ports = slices.Clone(o.Ports)
	o.Port = maps.Clone(o.Port)
	return o
}

// Update changes a bridge while it runs. Ports whose settings stay lose no
// frame. A port that is new is only announced: the caller makes the core bind it
// (Core.SetTargets with Spec().Targets), after Update has returned. A port that
// is gone is out of service at once, and unbound by the same call.
//
// Name, MAC and MTU belong to the virtual adapter and cannot be changed here;
// Clock and Event stay what they were. On an error nothing has changed.
func (b *Bridge) Update(o Options) error {
	b.updates.Lock()
	defer b.updates.Unlock()
	old := b.opts.Load()
	o.complete()
	o.Clock, o.Event = old.Clock, old.Event
	err := o.check()
	switch {
	case err != nil:
	case o.Name != old.Name:
		err = fmt.Errorf("%w: it cannot be renamed to %s: remove it and add another", ndiscore.ErrNotSupported, o.Name)
	case o.MAC != old.MAC:
		err = fmt.Errorf("%w: its mac cannot change from %s to %s while it runs: remove it and add it again", ndiscore.ErrNotSupported, old.MAC, o.MAC)
	case o.MTU != old.MTU:
		err = fmt.Errorf("%w: its mtu cannot change from %d to %d while it runs: remove it and add it again", ndiscore.ErrNotSupported, old.MTU, o.MTU)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: update: %w", b.name, err)
	}
	o = o.clone()

	b.mu.Lock()
	names, listed, err := rename(b.names, b.ports, o.Ports)
	if err != nil {
		b.mu.Unlock()
		return fmt.Errorf("bridge %s: update: %w", b.name, err)
	}
	b.names, b.listed = names, listed
	b.ports = append(b.ports, make([]*port, len(names)-len(b.ports))...)
	b.opts.Store(&o)
	t := b.table()
	if o.MACLimit != old.MACLimit || o.VLAN != old.VLAN {
		t = b.newTable(&o)
		t.adopt(b.table(), b.ports)
	}
	var changed []*port // what is behind them has to be learned again
	var opened []string // the loop guard had shut them
	for id, p := range b.ports {
		if p == nil {
			continue
		}
		if !o.LoopGuard && p.shut {
			p.shut = false
			opened = append(opened, p.name)
		}
		is, was := o.Port[p.name], old.Port[p.name]
		untagged, tagged := is.vlans(o.VLAN)
		untaggedWas, taggedWas := was.vlans(old.VLAN)
		crowded := is.MACLimit > 0 && t.known[id].Load() > int32(is.MACLimit)
		if !listed[id] || crowded || untagged != untaggedWas || tagged != taggedWas {
			changed = append(changed, p)
		}
	}
	b.publishTableLocked(t)
	k := b.keeper
	b.mu.Unlock()
	for _, name := range opened {
		o.Event("bridge.loop", name, "shut", "forwarding", "the loop guard was turned off (loop_guard)")
	}

	if o.Snooping != old.Snooping || o.VLAN != old.VLAN {
		b.snoop.clear()
	}
	if o.Snooping {
		b.snoop.open()
	}
	for _, p := range changed {
		// A worker that still follows the old view may learn its last frames
		// as before: such an address ages, and leads to no port that is not in
		// its VLAN.
		t.flush(p.id)
		b.snoop.forget(p.id)
		b.snoop.fresh(p.id)
	}
	if k != nil {
		k.poke()
	}
	b.tellLink()
	return nil
}

// rename gives the ports of now their ids: those of before keep theirs, new
// ones get free ones. An id is free once nothing is bound under it.
func rename(names []string, ports []*port, now []string) (ids []string, listed []bool, err error) {
	names = slices.Clone(names)
	idOf := make(map[string]int)
	for id, n := range names {
		idOf[n] = id
	}
	wanted := make(map[string]bool)
	for _, n := range now {
		wanted[n] = true
	}
	for id, n := range names {
		if !wanted[n] && ports[id] == nil {
			names[id] = ""
		}
	}
	free := 0
	for _, n := range now {
		if _, ok := idOf[n]; ok {
			continue
		}
		for free < len(names) && names[free] != "" {
			free++
		}
		if free == maxIDs {
			return nil, nil, fmt.Errorf("%w: too many ports that were removed are still bound", ndiscore.ErrResources)
		}
		if free == len(names) {
			names = append(names, "")
		}
		names[free] = n
	}
	listed = make([]bool, len(names))
	for id, n := range names {
		listed[id] = wanted[n]
	}
	return names, listed, nil
}
