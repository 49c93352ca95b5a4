package ndiscore

// OID names one property of an adapter (NDIS object identifier).
type OID uint32

// The OIDs spoken so far, with NDIS's numbers.
const (
	OIDGenCurrentPacketFilter OID = 0x0001010E // set: Data is a PacketFilter, the union over all bindings
	OIDGenLinkState           OID = 0x00010207 // query: Data becomes a LinkState
)

// OIDKind says whether a request reads or writes.
type OIDKind uint8

// The kinds of request.
const (
	OIDQuery OIDKind = iota + 1
	OIDSet
)

// OIDRequest is one query or set of one property (NDIS_OID_REQUEST). Data is
// typed by the OID: the sender fills it to set, the adapter to answer a query.
type OIDRequest struct {
	ID   OID
	Kind OIDKind
	Data any
}

// PacketFilter says which classes of frames a binding wants
// (OID_GEN_CURRENT_PACKET_FILTER).
type PacketFilter uint32

// Packet filter bits, with NDIS's values. None set: receive nothing.
const (
	FilterDirected     PacketFilter = 0x01 // unicast to the adapter's MAC
	FilterAllMulticast PacketFilter = 0x04
	FilterBroadcast    PacketFilter = 0x08
	FilterPromiscuous  PacketFilter = 0x20
)

// FilterStation is what an ordinary station wants: its own unicast, every
// multicast, broadcast.
const FilterStation = FilterDirected | FilterAllMulticast | FilterBroadcast

// wants reports whether a binding with filter p, on an adapter whose address
// is mac, wants the frame with destination address dst.
func (p PacketFilter) wants(mac MAC, dst MAC) bool {
	switch {
	case p&FilterPromiscuous != 0:
		return true
	case dst == Broadcast:
		return p&FilterBroadcast != 0
	case dst.IsGroup():
		return p&FilterAllMulticast != 0
	}
	return p&FilterDirected != 0 && dst == mac
}
