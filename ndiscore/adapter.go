package ndiscore

import "context"

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
	New        func(name string, options any) (Adapter, error) // checks options; all I/O waits for Initialize
	SetOptions func(*DriverHandle) error                       // optional; called inside RegisterDriver (SET_OPTIONS)
	Unload     func()                                          // optional; after the last adapter is gone (MINIPORT_UNLOAD)
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
