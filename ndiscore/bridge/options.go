package bridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Defaults and bounds of Options.
const (
	DefaultAge      = 300 * time.Second // IEEE 802.1D-2004 table 7-5
	DefaultMACLimit = 8192
	DefaultLoopHold = 30 * time.Second
	defaultMTU      = 1500
	maxPorts        = 1024
	maxIDs          = 2 * maxPorts // ports that are going away among them
	minAge          = 100 * time.Millisecond
	maxAge          = 7 * 24 * time.Hour // well within what the 32-bit coarse clock tells apart
	maxMACLimit     = 1 << 20
	minLoopHold     = time.Second
	maxLoopHold     = 24 * time.Hour
	maxStormRate    = 1_000_000_000
)

// Options describe one bridge.
type Options struct {
	Name  string
	Ports []string // adapters, bundles or bridges; the order matters to the loop guard only
	// Port says more of some ports, by name. The others have no limits and,
	// with VLANs, are access ports of the bridge's own VLAN.
	Port map[string]PortOptions
	// VLAN is the one in which the virtual adapter is, 1…4094. With 0 the
	// bridge does not look at VLANs: tags are payload.
	VLAN uint16
	// MAC is the virtual adapter's; zero derives a locally administered one
	// from Name. Two machines with equally named bridges on one network need
	// to be given different ones.
	MAC      ndiscore.MAC
	MTU      int           // of the virtual adapter; 0: the smallest of the ports', followed as it changes
	Age      time.Duration // an address not seen for so long is forgotten; 0: DefaultAge
	MACLimit int           // most addresses learned; 0: DefaultMACLimit
	// Snooping sends group frames only where IGMP and MLD say that somebody
	// listens, while a querier is there; see the package comment.
	Snooping bool
	// LoopGuard shuts a port that brings the bridge's own frames back.
	LoopGuard bool
	LoopHold  time.Duration  // how long it stays shut; 0: DefaultLoopHold
	Clock     ndiscore.Clock // nil: the core's
	// Event hears what people may want to know, never on the packet path and
	// never per frame; may be nil. It must not wait for the core.
	Event func(what, port, from, to, why string)
}

// PortOptions say what one port may do. VLANs are for a bridge that has one of
// its own: an access port is in one, a trunk port in several.
type PortOptions struct {
	Access uint16  // access port: the VLAN of its frames, none of which is tagged
	Trunk  VLANSet // trunk port: VLANs whose frames are tagged
	Native uint16  // trunk port: the VLAN of frames without a tag; 0: there are none
	// MACLimit is the most addresses learned on the port; frames of further
	// stations are dropped. 0: no limit but the bridge's. An address counts in
	// each VLAN in which it is seen.
	MACLimit int
	// Most frames per second that the port may bring, 0: no limit. Bursts of a
	// second's worth pass.
	StormBroadcast, StormMulticast, StormUnknown int
}

// complete fills in the defaults.
func (o *Options) complete() {
	if o.Age == 0 {
		o.Age = DefaultAge
	}
	if o.MACLimit == 0 {
		o.MACLimit = DefaultMACLimit
	}
	if o.LoopHold == 0 {
		o.LoopHold = DefaultLoopHold
	}
	if o.MAC.IsZero() {
		o.MAC = stableMAC(o.Name)
	}
	if o.Event == nil {
		o.Event = func(string, string, string, string, string) {}
	}
}

func (o *Options) check() error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if o.Name == "" {
		fail("a bridge needs a name")
	}
	if len(o.Ports) > maxPorts {
		fail("%d ports, at most %d are possible", len(o.Ports), maxPorts)
	}
	seen := make(map[string]bool)
	for _, p := range o.Ports {
		switch {
		case p == "":
			fail("a port needs a name")
		case p == o.Name:
			fail("it cannot be its own port")
		case seen[p]:
			fail("port %s is listed twice", p)
		}
		seen[p] = true
		if s, ok := o.Port[p]; ok {
			if err := s.check(o.VLAN); err != nil {
				fail("port %s: %w", p, err)
			}
		}
	}
	for p := range o.Port {
		if !seen[p] {
			fail("port %s has settings and is not listed", p)
		}
	}
	if o.MAC.IsGroup() {
		fail("mac %s is a group address: its first byte must be even", o.MAC)
	}
	if o.VLAN > maxVLAN {
		fail("vlan %d is not within 1…%d, nor 0", o.VLAN, maxVLAN)
	}
	if o.MTU != 0 && (o.MTU < 68 || o.MTU > 65535) {
		fail("mtu %d is not within 68…65535", o.MTU)
	}
	if o.Age < minAge || o.Age > maxAge {
		fail("mac_age %s is not within %s…%s", o.Age, minAge, maxAge)
	}
	if o.MACLimit < 1 || o.MACLimit > maxMACLimit {
		fail("mac_limit %d is not within 1…%d", o.MACLimit, maxMACLimit)
	}
	if o.LoopHold < minLoopHold || o.LoopHold > maxLoopHold {
		fail("loop_hold %s is not within %s…%s", o.LoopHold, minLoopHold, maxLoopHold)
	}
	return errors.Join(errs...)
}

// check judges the settings of one port of a bridge that is in vlan itself.
func (p *PortOptions) check(vlan uint16) error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	trunk := !p.Trunk.Empty()
	switch {
	case vlan == 0 && (p.Access != 0 || p.Native != 0 || trunk):
		fail("it has VLANs and the bridge has none: set the bridge's vlan")
	case p.Access != 0 && (p.Native != 0 || trunk):
		fail("it is an access port or a trunk port, not both")
	case p.Native != 0 && !trunk:
		fail("native is for trunk ports: for a port in one VLAN set access")
	case p.Native != 0 && p.Trunk.Has(p.Native):
		fail("VLAN %d is native, so untagged, and in trunk, so tagged", p.Native)
	}
	for what, v := range map[string]uint16{"access": p.Access, "native": p.Native} {
		if v > maxVLAN {
			fail("%s %d is not within 1…%d", what, v, maxVLAN)
		}
	}
	if p.Trunk[0]&1 != 0 || p.Trunk[63]>>63 != 0 {
		fail("trunk has a VLAN that is not within 1…%d", maxVLAN)
	}
	if p.MACLimit < 0 || p.MACLimit > maxMACLimit {
		fail("mac_limit %d is not within 1…%d, nor 0", p.MACLimit, maxMACLimit)
	}
	for kind, rate := range p.storm() {
		if rate < 0 || rate > maxStormRate {
			fail("storm_%s %d is not within 1…%d frames/s, nor 0", stormNames[kind], rate, maxStormRate)
		}
	}
	return errors.Join(errs...)
}

// storm is the rates by kind of storm.
func (p *PortOptions) storm() [stormKinds]int {
	return [stormKinds]int{stormBroadcast: p.StormBroadcast, stormMulticast: p.StormMulticast, stormUnknown: p.StormUnknown}
}

// vlans is what the data path has to know of the port's VLANs; vlan is the
// bridge's own.
func (p *PortOptions) vlans(vlan uint16) (untagged uint16, tagged VLANSet) {
	switch {
	case p.Access != 0:
		return p.Access, VLANSet{}
	case !p.Trunk.Empty():
		return p.Native, p.Trunk
	}
	return vlan, VLANSet{}
}

// stableMAC derives a locally administered address from a name.
func stableMAC(name string) ndiscore.MAC {
	return ndiscore.LocalMAC("vswitch bridge", name)
}
