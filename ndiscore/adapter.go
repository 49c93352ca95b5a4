package ndiscore

import (
	"context"
	"time"
)

// Adapter is one device run by a miniport driver. The core serialises
// Initialize, Restart, Pause and Halt on its control side; Send and Return come
// from workers, several at once, between Restart and the return of Pause.
// What NDIS calls PENDING is here a call that has not returned yet.
type Adapter interface {
	// Initialize claims everything the device needs and leaves it Paused
	// (MiniportInitializeEx). On error it has freed everything again, and
	// neither Halt nor any binding follows. No frame may be indicated yet.
	Initialize(ctx context.Context, h AdapterHandle) (Attributes, error)
	// Restart lets data flow, Paused → Running (MiniportRestart). Frames may be
	// indicated from its entry on; Send comes only after it has returned.
	Restart(ctx context.Context) error
	// Pause stops data flow (MiniportPause). It returns when no indication is
	// in progress, nothing accepted by Send is incomplete and no goroutine of
	// the adapter will indicate again. It cannot fail.
	Pause(ctx context.Context)
	// Halt frees everything made since Initialize, from Paused
	// (MiniportHaltEx). It cannot fail. With HaltSurpriseRemoved the device is
	// not there to be touched.
	Halt(ctx context.Context, why HaltAction)
	// Send transmits b (MiniportSendNetBufferLists). It never blocks: what
	// does not fit is dropped, with its reason in b.Status. A borrowed batch is
	// finished when Send returns; any other belongs to the adapter until it
	// calls AdapterHandle.SendComplete, exactly once.
	Send(b *Batch)
	// Return gives back a batch that was indicated and not borrowed
	// (MiniportReturnNetBufferLists).
	Return(b *Batch)
	// Request queries or sets one property (MiniportOidRequest);
	// ErrInvalidOID for one it does not know. Serialised by the core.
	Request(ctx context.Context, req *OIDRequest) error
}

// AdapterHandle is the core as one adapter sees it, good from Initialize until
// Halt returns. Every method may be called on the packet path unless it says
// otherwise: none blocks, and none calls back into the adapter.
type AdapterHandle interface {
	// Name is the adapter's name in the configuration.
	Name() string
	// NewWorker registers the goroutine that is to serve receive queue number
	// queue. Not for the packet path. The goroutine closes it when it ends.
	NewWorker(queue int) *Worker
	// IndicateReceive passes b up (NdisMIndicateReceiveNetBufferLists). With
	// b.Borrowed, b is the adapter's again when the call returns; otherwise
	// when Return brings it back. Frames must have passed no check yet: the
	// core drops what ParseL2 refuses.
	IndicateReceive(b *Batch)
	// SendComplete gives back a batch that Send kept
	// (NdisMSendNetBufferListsComplete), with b.Status filled.
	SendComplete(b *Batch)
	// IndicateStatus tells everybody above, at once, on the caller's goroutine
	// (NdisMIndicateStatusEx).
	IndicateStatus(s Status)
	// Remove says that the adapter has failed for good
	// (NdisMRemoveMiniport). nil means accepted: the data path is closed at
	// once, and Pause and Halt(HaltDeviceFailed) follow later. ErrFailure when
	// there is nothing to remove or a removal is under way.
	Remove(why string) error
	// SurpriseRemove says that the device is gone, not merely down, as proved
	// by why. The data path is closed at once; Halt(HaltSurpriseRemoved)
	// follows later. Repeated calls do nothing.
	SurpriseRemove(why string)
	// Reset asks for a reset, which happens later, never inside this call
	// (NdisMResetMiniport). Only for a Resetter.
	Reset(why string)
	// SetSecondary makes this adapter a secondary of primary, one of the same
	// driver that is initialised, in an ndis5 bundle of the driver's own
	// (NdisMSetMiniportSecondary). Only during Initialize; ErrFailure otherwise.
	SetSecondary(primary string) error
	// Promote makes this secondary the primary of its bundle
	// (NdisMPromoteMiniport). ErrFailure before the primary's Halt has begun, or
	// for an adapter that is no secondary.
	Promote() error
	// InhibitBinds unbinds everybody above and keeps them off until AllowBinds
	// (NetEventInhibitBindsAbove, …AllowBindsAbove). It returns when all are
	// unbound. Not for the packet path; ErrInvalidState from inside a call of
	// the core.
	InhibitBinds(ctx context.Context, why string) error
	AllowBinds()
	// RequirePause returns when the adapter and all above it are paused, which
	// they stay until AllowStart (NetEventRequirePause, …AllowStart). Calls are
	// not counted: one AllowStart ends them all. From where InhibitBinds may be.
	RequirePause(ctx context.Context, why string) error
	AllowStart()
	// Dropped counts n received frames that the adapter itself gave up before
	// they became frames of a batch.
	Dropped(w *Worker, r DropReason, n uint64)
	// Clock is the core's clock.
	Clock() Clock
}

// LowerDevice is implemented by an adapter whose device lives apart from it, in
// the kernel: what the bus driver below a NIC is to NDIS. The core asks once,
// when the adapter is added.
type LowerDevice interface {
	// StartDevice makes the device ready before Initialize
	// (IRP_MN_START_DEVICE). ErrDeviceAbsent when it does not exist and the
	// adapter cannot make it.
	StartDevice(ctx context.Context) error
	// RemoveDevice gives the device up, after Halt (IRP_MN_REMOVE_DEVICE).
	RemoveDevice(ctx context.Context)
	// AwaitDevice returns nil once a device that was absent or vanished could
	// be started, or ctx's error.
	AwaitDevice(ctx context.Context) error
}

// DevicePnPNotifier is implemented by an adapter that wants to hear device
// events (MiniportDevicePnPEventNotify).
type DevicePnPNotifier interface{ DevicePnP(ev DevicePnPEvent) }

// DevicePnPEvent is a notice from the core to a miniport (NET_DEVICE_PNP_EVENT).
type DevicePnPEvent uint8

// DevicePnPSurpriseRemoved: the device is gone; cancel what waits for it.
const DevicePnPSurpriseRemoved DevicePnPEvent = 1

// Resetter is implemented by an adapter whose device can be set up anew while
// its state, bindings and handles stay (MiniportResetEx).
type Resetter interface {
	// Reset returns nil, or an error that wraps ErrSoftErrors (it worked) or
	// ErrHardErrors (it did not). With addressing the core sets the packet filter and
	// the multicast list anew. It is never called beside Initialize, Restart,
	// Pause or Halt, but Send may still be running when it begins, and a
	// Request may be under way.
	Reset(ctx context.Context) (addressing bool, err error)
}

// HangChecker is implemented by an adapter that notices when its device is
// stuck (MiniportCheckForHangEx). It has to be a Resetter.
type HangChecker interface {
	Resetter
	// CheckForHang is asked every Attributes.HangCheck. It looks at the
	// adapter's own state and returns at once; true asks for a reset.
	CheckForHang() bool
}

// SendCanceler is implemented by an adapter or a filter that queues sends
// (MiniportCancelSend, FilterCancelSendNetBufferLists): it completes those of
// its batches whose CancelID is id with DropAborted. Those already in the device
// may go out.
type SendCanceler interface{ CancelSend(id uint64) }

// PowerState is a device power state (NDIS_DEVICE_POWER_STATE).
type PowerState uint8

// The power states that the core uses: working and suspended.
const (
	PowerD0 PowerState = 1
	PowerD3 PowerState = 4
)

// String is the state as traces and events name it.
func (p PowerState) String() string {
	switch p {
	case PowerD0:
		return "D0"
	case PowerD3:
		return "D3"
	}
	return "invalid"
}

// Shutdowner is implemented by an adapter that wants to quiet its device when
// the process ends without time for Halt (MiniportShutdownEx): it frees
// nothing, and nothing is called after it.
type Shutdowner interface{ Shutdown() }

// Statser is implemented by an adapter that keeps counters of its own below
// the core's, such as the kernel's ring overflows. The map's keys are stable.
type Statser interface{ DeviceStats() map[string]uint64 }

// Capabilities says which unfinished frames an adapter takes or gives.
type Capabilities uint8

// Capabilities, in the words of virtio-net's feature bits.
const (
	CapChecksum Capabilities = 1 << iota // NeedsCsum frames
	CapTSO4                              // GSOTCPv4
	CapTSO6                              // GSOTCPv6
	CapUSO                               // GSOUDPL4
	CapECN                               // … with GSOECN

	// CapAll is what a device with a whole virtio_net_hdr can do.
	CapAll = CapChecksum | CapTSO4 | CapTSO6 | CapUSO | CapECN
)

// Attributes is what an adapter states of itself when Initialize succeeds
// (NDIS_MINIPORT_ADAPTER_GENERAL_ATTRIBUTES).
type Attributes struct {
	MAC      MAC          // current address; required
	MTU      int          // bytes of layer-3 packet; required, 68…65535
	Link     LinkState    // at this moment
	Queues   int          // receive queues; 0 means 1
	Transmit Capabilities // what Send takes unfinished
	Receive  Capabilities // what it may indicate unfinished
	Device   string       // the kernel's name of the device, for people

	// HangCheck is how often CheckForHang is asked: 0 means 2 s; anything else
	// is rounded down to a multiple of 2 s, but not to nothing.
	HangCheck time.Duration
	// PowerAware: Request(OIDPnPSetPower) puts the device to sleep and wakes
	// it. Without it, to suspend is to halt (HaltPoweredDown).
	PowerAware bool
	// NoPauseOnSuspend: a power-aware adapter need not be paused first.
	NoPauseOnSuspend bool
	// MaxMulticast is the length of the multicast list that the adapter filters
	// by (OID8023MaximumListSize); 0: it passes every group frame up.
	MaxMulticast int
}

// Options decoded for a driver may check themselves.
type Validator interface {
	// Validate returns one error per bad key, joined with errors.Join.
	Validate() error
}

// Driver is one kind of miniport (NDIS_MINIPORT_DRIVER_CHARACTERISTICS); a row
// of the list in drivers.go.
type Driver struct {
	Name       string                                          // config.toml: driver = "tap"
	Version    int                                             // ContractVersion it was written for
	NewOptions func() any                                      // pointer to an options struct that holds the defaults
	New        func(name string, options any) (Adapter, error) // checks options; all I/O waits for Initialize (MINIPORT_ADD_DEVICE)
	Remove     func(a Adapter)                                 // optional: undoes New, once, when the adapter is forgotten (MINIPORT_REMOVE_DEVICE)
	SetOptions func(*DriverHandle) error                       // optional; called inside RegisterDriver (SET_OPTIONS)
	// Unload, if set, is called once the last adapter of the driver is gone; it
	// undoes the entry routine and calls Deregister (MINIPORT_UNLOAD). A driver
	// without it stays registered until somebody calls Deregister.
	Unload func(*DriverHandle)
}

// ContractVersion is the version of this contract.
const ContractVersion = 1

// HaltAction says why an adapter is halted (NDIS_HALT_ACTION).
type HaltAction uint8

// The halt actions. HaltNone means that the adapter is not halted.
const (
	HaltNone                  HaltAction = iota
	HaltDeviceDisabled                   // removed on request
	HaltInstanceDeInitialized            // its intermediate driver took the virtual miniport down
	HaltPoweredDown                      // suspended, and the driver cannot sleep
	HaltSurpriseRemoved                  // the device vanished
	HaltDeviceFailed                     // the miniport gave up (Remove), or it would not wake up
	HaltInitFailed                       // Initialize succeeded, bring-up did not
	HaltDeviceStopped                    // stopped, to be started again
)

// String is the action as traces, events and the command line name it.
func (h HaltAction) String() string {
	switch h {
	case HaltNone:
		return "none"
	case HaltDeviceDisabled:
		return "Disabled"
	case HaltInstanceDeInitialized:
		return "InstanceDeInitialized"
	case HaltPoweredDown:
		return "PoweredDown"
	case HaltSurpriseRemoved:
		return "SurpriseRemoved"
	case HaltDeviceFailed:
		return "DeviceFailed"
	case HaltInitFailed:
		return "InitFailed"
	case HaltDeviceStopped:
		return "Stopped"
	}
	return "invalid"
}

// MarshalText makes a HaltAction print as its name in JSON.
func (h HaltAction) MarshalText() ([]byte, error) { return []byte(h.String()), nil }
