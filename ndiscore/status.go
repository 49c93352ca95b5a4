package ndiscore

import (
	"slices"
	"time"
)

// Status is an unsolicited notice that travels up from an adapter
// (NDIS_STATUS_INDICATION). An adapter says LinkState, NetworkChange and
// AttributesChange; ResetStart, ResetEnd and OperChange are the core's alone.
type Status interface{ status() }

// MediaState says whether a link is there (NET_IF_MEDIA_CONNECT_STATE).
type MediaState uint8

// Media states. Unknown counts as disconnected.
const (
	MediaUnknown MediaState = iota
	MediaConnected
	MediaDisconnected
)

// String names m as events print it.
func (m MediaState) String() string {
	switch m {
	case MediaConnected:
		return "connected"
	case MediaDisconnected:
		return "disconnected"
	}
	return "unknown"
}

// MarshalText makes a MediaState print as its name in JSON.
func (m MediaState) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// LinkState is the state of an adapter's link (NDIS_STATUS_LINK_STATE). A
// repetition of the same content is not passed on.
type LinkState struct {
	Media MediaState `json:"media"`
	Speed uint64     `json:"speed_bits"` // bit/s, 0 when unknown
	Why   string     `json:"why"`        // what was seen: "carrier lost", "ENETDOWN on send"
}

// Connected reports whether frames can be expected to pass.
func (l LinkState) Connected() bool { return l.Media == MediaConnected }

func (l LinkState) same(o LinkState) bool { return l.Media == o.Media && l.Speed == o.Speed }

// NetworkChange says that the network behind the adapter may be another one
// (NDIS_STATUS_NETWORK_CHANGE): after a failover, everybody above announces the
// addresses that live behind it, so that the switches outside learn the new way.
type NetworkChange struct {
	Why string
	// Groups: only frames to groups take another way, and nobody has to learn
	// where a station is.
	Groups bool
	// After is how long to wait with the announcements: what is under way to us
	// comes in by the old way, and would be turned away by them.
	After time.Duration
}

// AnnounceAt is when those above announce after a NetworkChange and its After: at
// once, and again, because nobody acknowledges it, and the first may be lost while
// a switch port settles.
var AnnounceAt = [...]time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond}

// AttributesChange says that a running adapter's address or MTU is another one
// now. The core adopts it before it tells those above. Zero values mean no
// change.
type AttributesChange struct {
	MAC MAC
	MTU int
	Why string
}

// ResetStart and ResetEnd bracket a reset (NDIS_STATUS_RESET_START, _END): in
// between, sends and requests are refused; received batches may be returned.
type ResetStart struct{ Why string }

// ResetEnd is ResetStart's counterpart. Err is what the reset came to: nil,
// ErrSoftErrors or ErrHardErrors.
type ResetEnd struct{ Err error }

// OperChange says that the operational state is another one, and why
// (NDIS_STATUS_OPER_STATUS).
type OperChange struct {
	Status OperStatus
	Reason string // "", "paused", "low power", "not connected", "quarantined"
}

func (LinkState) status()        {}
func (NetworkChange) status()    {}
func (AttributesChange) status() {}
func (ResetStart) status()       {}
func (ResetEnd) status()         {}
func (OperChange) status()       {}

// OperStatus is the state of an adapter as RFC 2863 names it, derived by the
// core alone (NDIS_STATUS_OPER_STATUS).
type OperStatus string

// The operational states that occur (RFC 2863 ifOperStatus).
const (
	OperUp         OperStatus = "up"
	OperDown       OperStatus = "down"
	OperDormant    OperStatus = "dormant"    // initialised and paused, or suspended
	OperNotPresent OperStatus = "notPresent" // no device
)

// number is the state as RFC 2863 and NDIS number it (NET_IF_OPER_STATUS; the
// first three are those of NET_IF_ADMIN_STATUS too).
func (o OperStatus) number() uint32 {
	if i := slices.Index([]OperStatus{OperUp, OperDown, "testing", "unknown", OperDormant, OperNotPresent, "lowerLayerDown"}, o); i >= 0 {
		return uint32(i + 1)
	}
	return 4 // unknown
}
