package ndiscore

// DropReason says why a frame went no further. The list is closed: every
// frame that the switch does not pass on carries exactly one of these, and
// docs/operations.md explains each.
type DropReason uint8

// The reasons. DropNone is not a reason: it marks a frame that was not dropped.
const (
	DropNone DropReason = iota

	// Malformed on arrival.
	DropShort       // shorter than its headers
	DropOversize    // longer than MaxFrame, or than the device's buffer
	DropVLANStack   // more than two VLAN tags
	DropBadOffload  // virtio_net_hdr and frame contradict each other
	DropBadSource   // source MAC is a group address or zero
	DropBadIP       // IP header lies: version, lengths, header checksum
	DropBadChecksum // transport checksum wrong, and the frame is for us

	// Nowhere to go.
	DropNoReceiver     // no binding wanted it
	DropNotForUs       // unicast to a MAC that is not ours
	DropSamePort       // the bridge's way out is the way in
	DropReserved       // 01:80:c2:00:00:0x, never forwarded by a bridge (IEEE 802.1Q 8.6.3)
	DropNoPort         // the bridge has no other running port
	DropInactive       // arrived on a bundle member that is not active
	DropReflection     // our own frame, come back through another member
	DropUnknownNetwork // a network protocol that the router does not speak

	// Bridge ports.
	DropVLAN     // its VLAN is none of the port's
	DropStorm    // over the port's limit for frames of its kind
	DropMACLimit // its source is one station too many on the port
	DropLoop     // the loop guard has shut the port

	// States.
	DropPaused          // adapter paused or not yet started (NDIS_STATUS_PAUSED)
	DropSurpriseRemoved // device vanished (NDIS_STATUS_NOT_ACCEPTED)
	DropLinkDown        // device is there, its link is not
	DropNoMember        // the bundle has no usable member
	DropReset           // adapter being reset (NDIS_STATUS_RESET_IN_PROGRESS)
	DropLowPower        // adapter suspended (NDIS_STATUS_LOW_POWER_STATE)
	DropAborted         // its sender called it back (NDIS_STATUS_SEND_ABORTED)

	// Room.
	DropTxQueueFull // the device's queue was full
	DropPuntFull    // the router's queue was full
	DropTooBig      // longer than the egress MTU and not to be cut
	DropDeviceError // the kernel refused the frame
	DropKernelFull  // the kernel's ring in front of us overflowed (counted there)

	// Router.
	DropTTL         // time to live ran out
	DropUnroutable  // no route
	DropNeighbor    // next hop does not answer
	DropRouterOther // netstack dropped it; `stats` has netstack's own counter
	DropNATFull     // no room, or no port, for another translated flow
	DropNATState    // belongs to no translated flow, and cannot begin one
	DropFragment    // fragment of a packet whose first fragment was not seen

	// Filters.
	DropFaultDrop     // an injected fault lost it
	DropFaultRate     // an injected rate limit was used up
	DropFaultHang     // an injected hang swallowed it
	DropFaultLinkDown // an injected link-down refused it
	DropFaultFull     // an injected delay holds all that it may
	DropFaultCorrupt  // it could not be spoiled as asked

	dropReasons // their number
)

var dropNames = [dropReasons]string{
	DropNone: "none", DropShort: "short", DropOversize: "oversize", DropVLANStack: "vlan-stack",
	DropBadOffload: "bad-offload", DropBadSource: "bad-source", DropBadIP: "bad-ip", DropBadChecksum: "bad-checksum",
	DropNoReceiver: "no-receiver", DropNotForUs: "not-for-us", DropSamePort: "same-port", DropReserved: "reserved-multicast",
	DropNoPort: "no-port", DropInactive: "inactive-member", DropReflection: "reflection", DropUnknownNetwork: "unknown-network",
	DropPaused: "paused", DropSurpriseRemoved: "surprise-removed", DropLinkDown: "link-down", DropNoMember: "no-member",
	DropReset: "reset", DropTxQueueFull: "tx-queue-full", DropPuntFull: "punt-full", DropTooBig: "too-big",
	DropDeviceError: "device-error", DropKernelFull: "kernel-full", DropTTL: "ttl", DropUnroutable: "unroutable",
	DropNeighbor: "neighbor", DropRouterOther: "router-other",
	DropVLAN: "vlan", DropStorm: "storm", DropMACLimit: "mac-limit", DropLoop: "loop",
	DropLowPower: "low-power", DropAborted: "send-aborted", DropNATFull: "nat-full", DropNATState: "nat-state", DropFragment: "fragment",
	DropFaultDrop: "fault-drop", DropFaultRate: "fault-rate", DropFaultHang: "fault-hang", DropFaultFull: "fault-full",
	DropFaultCorrupt: "fault-corrupt", DropFaultLinkDown: "fault-link-down",
}

// String is the reason as counters and documents name it.
func (r DropReason) String() string {
	if r < dropReasons {
		return dropNames[r]
	}
	return "invalid"
}

// DropReasons lists every reason in order, for documents and tests.
func DropReasons() []DropReason {
	all := make([]DropReason, 0, dropReasons-1)
	for r := DropNone + 1; r < dropReasons; r++ {
		all = append(all, r)
	}
	return all
}

// A received frame's fate is kept in the frame while it travels and counted
// once, where it came in. Later fates outrank earlier ones: forwarded beats
// delivered beats any drop, so a flooded frame that one port refused is still
// a forwarded frame.
const (
	fateNone      = DropNone
	fateHeld      = DropReason(253)
	fateDelivered = DropReason(254)
	fateForwarded = DropReason(255)
)

// Drop records that whoever holds f gave it up for reason r.
func (f *Frame) Drop(r DropReason) {
	if f.fate == fateNone {
		f.fate = r
	}
}

// Deliver records that a protocol took f for itself.
func (f *Frame) Deliver() {
	if f.fate < fateDelivered {
		f.fate = fateDelivered
	}
}

// Hold records that a filter will pass a copy of f on later, on a worker of its
// own.
func (f *Frame) Hold() {
	if f.fate < fateHeld {
		f.fate = fateHeld
	}
}

// Forward records that f left, or is about to leave, through another adapter.
func (f *Frame) Forward() { f.fate = fateForwarded }

// DropAll records reason r for every frame of b.
func (b *Batch) DropAll(r DropReason) {
	for _, f := range b.Frames {
		f.Drop(r)
	}
}
