package ndiscore

import (
	"encoding/binary"
	"fmt"
	"time"
)

// OID names one property of an adapter (NDIS object identifier).
type OID uint32

// The OIDs, with NDIS's numbers. Who answers, and with which type of Data,
// stands in oidTable.
const (
	OIDGenSupportedList       OID = 0x00010101
	OIDGenMediaSupported      OID = 0x00010103
	OIDGenMediaInUse          OID = 0x00010104
	OIDGenMaximumLookahead    OID = 0x00010105
	OIDGenMaximumFrameSize    OID = 0x00010106
	OIDGenLinkSpeed           OID = 0x00010107
	OIDGenTransmitBufferSpace OID = 0x00010108
	OIDGenReceiveBufferSpace  OID = 0x00010109
	OIDGenTransmitBlockSize   OID = 0x0001010A
	OIDGenReceiveBlockSize    OID = 0x0001010B
	OIDGenVendorID            OID = 0x0001010C
	OIDGenVendorDescription   OID = 0x0001010D
	OIDGenCurrentPacketFilter OID = 0x0001010E
	OIDGenCurrentLookahead    OID = 0x0001010F
	OIDGenMaximumTotalSize    OID = 0x00010111
	OIDGenMACOptions          OID = 0x00010113
	OIDGenMediaConnectStatus  OID = 0x00010114
	OIDGenVendorDriverVersion OID = 0x00010116
	OIDGenPhysicalMedium      OID = 0x00010202
	OIDGenLinkState           OID = 0x00010207
	OIDGenLinkParameters      OID = 0x00010208
	OIDGenInterruptModeration OID = 0x00010209
	OIDGenLastChange          OID = 0x00010281
	OIDGenOperationalStatus   OID = 0x00010283
	OIDGenAdminStatus         OID = 0x00010288
	OIDGenXmitOK              OID = 0x00020101
	OIDGenRcvOK               OID = 0x00020102
	OIDGenXmitError           OID = 0x00020103
	OIDGenRcvError            OID = 0x00020104
	OIDGenRcvNoBuffer         OID = 0x00020105
	OIDGenStatistics          OID = 0x00020106
	OIDGenTransmitQueueLength OID = 0x0002020E
	OIDGenInitTimeMS          OID = 0x00020213
	OIDGenResetCounts         OID = 0x00020214
	OIDGenMediaSenseCounts    OID = 0x00020215
	OIDGenFriendlyName        OID = 0x00020216
	OIDGenVLANID              OID = 0x0001021C
	OIDGenBytesRcv            OID = 0x0002021F
	OIDGenBytesXmit           OID = 0x00020220
	OIDGenRcvDiscards         OID = 0x00020221
	OIDGenXmitDiscards        OID = 0x00020222
	OID8023PermanentAddress   OID = 0x01010101
	OID8023CurrentAddress     OID = 0x01010102
	OID8023MulticastList      OID = 0x01010103
	OID8023MaximumListSize    OID = 0x01010104
	OIDPnPSetPower            OID = 0xFD010101
	OIDPnPQueryPower          OID = 0xFD010102
)

// oidRow says how one OID is served. A query without answer, and every set,
// goes to the adapter.
type oidRow struct {
	id     OID
	name   string
	query  bool
	set    bool
	answer func(s *slot) any // the core's own answer
}

// oidTable is every OID that the core knows, and who answers a query: the core
// from attributes, status and counters, or the adapter. What stands in it for
// neither direction is known and not supported. Its order is that of
// OIDGenSupportedList.
var oidTable = []oidRow{
	{OIDGenSupportedList, "GEN_SUPPORTED_LIST", true, false, nil},
	{OIDGenMediaSupported, "GEN_MEDIA_SUPPORTED", true, false, func(*slot) any { return uint32(0) }},                                   // NdisMedium802_3
	{OIDGenMediaInUse, "GEN_MEDIA_IN_USE", true, false, func(*slot) any { return uint32(0) }},                                          // NdisMedium802_3
	{OIDGenMaximumLookahead, "GEN_MAXIMUM_LOOKAHEAD", true, false, func(s *slot) any { return uint32(s.attributes().MTU) }},            // whole frames, always
	{OIDGenMaximumFrameSize, "GEN_MAXIMUM_FRAME_SIZE", true, false, func(s *slot) any { return uint32(s.attributes().MTU) }},           // without header
	{OIDGenLinkSpeed, "GEN_LINK_SPEED", true, false, func(s *slot) any { return uint32(min(s.attributes().Link.Speed/100, 1<<32-1)) }}, // unit: 100 bit/s
	{OIDGenTransmitBufferSpace, "GEN_TRANSMIT_BUFFER_SPACE", true, false, nil},
	{OIDGenReceiveBufferSpace, "GEN_RECEIVE_BUFFER_SPACE", true, false, nil},
	{OIDGenTransmitBlockSize, "GEN_TRANSMIT_BLOCK_SIZE", true, false, nil},
	{OIDGenReceiveBlockSize, "GEN_RECEIVE_BLOCK_SIZE", true, false, nil},
	{OIDGenVendorID, "GEN_VENDOR_ID", true, false, func(*slot) any { return uint32(0xFFFFFF) }}, // none
	{OIDGenVendorDescription, "GEN_VENDOR_DESCRIPTION", true, false, func(s *slot) any { return "vswitch " + s.kind() }},
	{OIDGenCurrentPacketFilter, "GEN_CURRENT_PACKET_FILTER", true, true, func(s *slot) any { return s.packetFilter() }},
	{OIDGenCurrentLookahead, "GEN_CURRENT_LOOKAHEAD", true, true, func(s *slot) any { return uint32(s.attributes().MTU) }},
	{OIDGenMaximumTotalSize, "GEN_MAXIMUM_TOTAL_SIZE", true, false, func(s *slot) any { return uint32(s.attributes().MTU + EthernetHeader) }},
	{OIDGenMACOptions, "GEN_MAC_OPTIONS", true, false, func(*slot) any { return uint32(0) }},
	{OIDGenMediaConnectStatus, "GEN_MEDIA_CONNECT_STATUS", true, false, func(s *slot) any { return s.attributes().Link.Media }},
	{OIDGenVendorDriverVersion, "GEN_VENDOR_DRIVER_VERSION", true, false, func(*slot) any { return uint32(ContractVersion) << 16 }},
	{OIDGenPhysicalMedium, "GEN_PHYSICAL_MEDIUM", true, false, func(*slot) any { return uint32(14) }}, // NdisPhysicalMedium802_3
	{OIDGenLinkState, "GEN_LINK_STATE", true, false, func(s *slot) any { return s.attributes().Link }},
	{OIDGenLinkParameters, "GEN_LINK_PARAMETERS", false, true, nil},
	{OIDGenInterruptModeration, "GEN_INTERRUPT_MODERATION", true, true, func(*slot) any { return uint32(1) }}, // NdisInterruptModerationNotSupported
	{OIDGenLastChange, "GEN_LAST_CHANGE", true, false, func(s *slot) any { return uint64(max(s.oper().since.Sub(s.core.born), 0).Milliseconds()) }},
	{OIDGenOperationalStatus, "GEN_OPERATIONAL_STATUS", true, false, func(s *slot) any { return s.oper().status }},
	{OIDGenAdminStatus, "GEN_ADMIN_STATUS", true, false, func(s *slot) any { return s.oper().admin }},
	{OIDGenXmitOK, "GEN_XMIT_OK", true, false, func(s *slot) any { return s.counters().TxFrames }},
	{OIDGenRcvOK, "GEN_RCV_OK", true, false, func(s *slot) any { return s.counters().RxFrames }},
	{OIDGenXmitError, "GEN_XMIT_ERROR", true, false, func(s *slot) any { return s.counters().TxDropped[DropDeviceError.String()] }},
	{OIDGenRcvError, "GEN_RCV_ERROR", true, false, func(s *slot) any { return s.counters().malformed() }},
	{OIDGenRcvNoBuffer, "GEN_RCV_NO_BUFFER", true, false, func(s *slot) any { return s.counters().RxDropped[DropKernelFull.String()] }},
	{OIDGenStatistics, "GEN_STATISTICS", true, false, func(s *slot) any { return s.counters() }},
	{OIDGenTransmitQueueLength, "GEN_TRANSMIT_QUEUE_LENGTH", true, false, func(s *slot) any { return uint32(s.out.sends()) }},
	{OIDGenInitTimeMS, "GEN_INIT_TIME_MS", true, false, func(s *slot) any { return uint32(s.initTime.Load() / int64(time.Millisecond)) }},
	{OIDGenResetCounts, "GEN_RESET_COUNTS", true, false, func(s *slot) any { return s.resets.Load() }},
	{OIDGenMediaSenseCounts, "GEN_MEDIA_SENSE_COUNTS", true, false, func(s *slot) any { return s.linkChanges.Load() }},
	{OIDGenFriendlyName, "GEN_FRIENDLY_NAME", true, false, func(s *slot) any { return s.name }},
	{OIDGenVLANID, "GEN_VLAN_ID", true, true, nil},
	{OIDGenBytesRcv, "GEN_BYTES_RCV", true, false, func(s *slot) any { return s.counters().RxBytes }},
	{OIDGenBytesXmit, "GEN_BYTES_XMIT", true, false, func(s *slot) any { return s.counters().TxBytes }},
	{OIDGenRcvDiscards, "GEN_RCV_DISCARDS", true, false, func(s *slot) any { return total(s.counters().RxDropped) }},
	{OIDGenXmitDiscards, "GEN_XMIT_DISCARDS", true, false, func(s *slot) any { return total(s.counters().TxDropped) }},
	{OID8023PermanentAddress, "802_3_PERMANENT_ADDRESS", true, false, func(s *slot) any { return s.permanentAddress() }},
	{OID8023CurrentAddress, "802_3_CURRENT_ADDRESS", true, false, func(s *slot) any { return s.attributes().MAC }},
	{OID8023MulticastList, "802_3_MULTICAST_LIST", true, true, func(s *slot) any { return s.multicastList() }},
	{OID8023MaximumListSize, "802_3_MAXIMUM_LIST_SIZE", true, false, func(s *slot) any { return uint32(s.attributes().MaxMulticast) }},
	{OIDPnPSetPower, "PNP_SET_POWER", false, true, nil},
	{OIDPnPQueryPower, "PNP_QUERY_POWER", true, false, func(*slot) any { return PowerD3 }}, // always granted
}

var oidRows = func() map[OID]*oidRow {
	m := make(map[OID]*oidRow, len(oidTable))
	for i := range oidTable {
		m[oidTable[i].id] = &oidTable[i]
	}
	return m
}()

// SupportedOIDs lists every OID that the core knows.
func SupportedOIDs() []OID {
	ids := make([]OID, len(oidTable))
	for i, r := range oidTable {
		ids[i] = r.id
	}
	return ids
}

// String is the OID as NDIS names it, without its prefix.
func (o OID) String() string {
	if r := oidRows[o]; r != nil {
		return r.name
	}
	return fmt.Sprintf("%#08x", uint32(o))
}

// OIDKind says whether a request reads or writes.
type OIDKind uint8

// The kinds of request.
const (
	OIDQuery OIDKind = iota + 1
	OIDSet
)

// OIDRequest is one query or set of one property (NDIS_OID_REQUEST). Data is
// typed by the OID: the sender fills it to set, the answer to a query is left
// in it. The context of the call cancels it (NdisCancelOidRequest), and so does
// Timeout, if that is not zero: then, and when a reset overtakes it, it ends
// with ErrRequestAborted, whatever the adapter still does about it.
type OIDRequest struct {
	ID      OID
	Kind    OIDKind
	Data    any
	Timeout time.Duration
}

// EncodeOID writes v, the Data of a query, into buf as NDIS lays it out:
// little-endian integers, enumerations with NDIS's numbers, structures with
// their header and what is not known marked as that, addresses as they are,
// lists one after the other. NDIS ends strings with a zero, and some are UTF-16;
// here they are UTF-8 and end where needed says. needed is the length of the
// whole. A buffer too short holds nothing and gives ErrBufferTooShort, with two
// exceptions for 64-bit counters: four bytes take their low half, and fewer give
// ErrInvalidLength.
func EncodeOID(v any, buf []byte) (written, needed int, err error) {
	var b []byte
	switch v := v.(type) {
	case uint64:
		switch {
		case len(buf) >= 8:
			binary.LittleEndian.PutUint64(buf, v)
			return 8, 8, nil
		case len(buf) >= 4:
			binary.LittleEndian.PutUint32(buf, uint32(v))
			return 4, 8, nil
		}
		return 0, 8, fmt.Errorf("%w: %d bytes for a counter of 8 (or its low 4)", ErrInvalidLength, len(buf))
	case uint32:
		b = binary.LittleEndian.AppendUint32(nil, v)
	case PacketFilter:
		b = binary.LittleEndian.AppendUint32(nil, uint32(v))
	case MediaState: // NDIS_MEDIA_STATE, which is not the enumeration in NDIS_LINK_STATE
		n := uint32(1) // disconnected, which unknown counts as
		if v == MediaConnected {
			n = 0
		}
		b = binary.LittleEndian.AppendUint32(nil, n)
	case PowerState:
		b = binary.LittleEndian.AppendUint32(nil, uint32(v))
	case string:
		b = []byte(v)
	case OperStatus:
		b = binary.LittleEndian.AppendUint32(nil, v.number())
	case MAC:
		b = v[:]
	case []MAC:
		for _, m := range v {
			b = append(b, m[:]...)
		}
	case []OID:
		for _, o := range v {
			b = binary.LittleEndian.AppendUint32(b, uint32(o))
		}
	case LinkState:
		b = encodeLinkState(v)
	case Counters:
		b = encodeStatistics(v)
	default:
		return 0, 0, fmt.Errorf("%w: %T has no layout", ErrNotSupported, v)
	}
	if len(buf) < len(b) {
		return 0, len(b), fmt.Errorf("%w: %d bytes, %d needed", ErrBufferTooShort, len(buf), len(b))
	}
	return copy(buf, b), len(b), nil
}

// objectHeader is an NDIS_OBJECT_HEADER, of type default and revision 1.
func objectHeader(size uint16) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x80, 1}, size)
}

// encodeLinkState lays l out as an NDIS_LINK_STATE. Nobody here knows duplex,
// pause functions or what was negotiated.
func encodeLinkState(l LinkState) []byte {
	const (
		size          = 40
		unknownSpeed  = 1<<64 - 1
		unknownDuplex = 0
		unknownPause  = 4
	)
	speed := l.Speed
	if speed == 0 {
		speed = unknownSpeed
	}
	b := objectHeader(size)
	b = binary.LittleEndian.AppendUint32(b, uint32(l.Media))
	b = binary.LittleEndian.AppendUint32(b, unknownDuplex)
	b = append(b, 0, 0, 0, 0)                      // padding
	b = binary.LittleEndian.AppendUint64(b, speed) // sending
	b = binary.LittleEndian.AppendUint64(b, speed) // receiving
	b = binary.LittleEndian.AppendUint32(b, unknownPause)
	return binary.LittleEndian.AppendUint32(b, 0) // nothing negotiated
}

// encodeStatistics lays c out as an NDIS_STATISTICS_INFO, which says which of its
// members are valid: not those by class of frame, which nobody counts.
func encodeStatistics(c Counters) []byte {
	const (
		size  = 152
		valid = 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x8000 // received bytes, discards, errors; sent bytes, errors, discards
	)
	b := objectHeader(size)
	b = binary.LittleEndian.AppendUint32(b, valid)
	for _, n := range [18]uint64{
		0: total(c.RxDropped), 1: c.malformed(), 2: c.RxBytes, // 3 to 5: frames by class
		6: c.TxBytes, 10: c.TxDropped[DropDeviceError.String()], 11: total(c.TxDropped), // 12 to 17: bytes by class
	} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// PacketFilter says which classes of frames a binding wants
// (OID_GEN_CURRENT_PACKET_FILTER).
type PacketFilter uint32

// Packet filter bits, with NDIS's values. None set: receive nothing.
const (
	FilterDirected     PacketFilter = 0x01 // unicast to the adapter's MAC
	FilterMulticast    PacketFilter = 0x02 // the groups of the binding's multicast list
	FilterAllMulticast PacketFilter = 0x04
	FilterBroadcast    PacketFilter = 0x08
	FilterPromiscuous  PacketFilter = 0x20
)

// FilterStation is what an ordinary station wants: its own unicast, every
// multicast, broadcast.
const FilterStation = FilterDirected | FilterAllMulticast | FilterBroadcast

const filterBits = FilterDirected | FilterMulticast | FilterAllMulticast | FilterBroadcast | FilterPromiscuous

// wants reports whether a binding with filter p and the given multicast list,
// on an adapter whose address is mac, wants the frame with destination dst.
func (p PacketFilter) wants(mac MAC, groups []MAC, dst MAC) bool {
	switch {
	case p&FilterPromiscuous != 0:
		return true
	case dst == Broadcast:
		return p&FilterBroadcast != 0
	case dst.IsGroup():
		if p&FilterAllMulticast != 0 {
			return true
		}
		if p&FilterMulticast != 0 {
			for _, g := range groups {
				if g == dst {
					return true
				}
			}
		}
		return false
	}
	return p&FilterDirected != 0 && dst == mac
}

func total(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// malformed counts the received frames that were broken.
func (c Counters) malformed() (n uint64) {
	for r := DropShort; r <= DropBadChecksum; r++ {
		n += c.RxDropped[r.String()]
	}
	return n
}
