package ndiscore

// AdapterState is the state of an adapter (M-States of the NDIS documents).
type AdapterState uint8

// The adapter states. StateShutdown is final: no call reaches the adapter again.
const (
	StateHalted AdapterState = iota
	StateInitializing
	StatePaused
	StateRestarting
	StateRunning
	StatePausing
	StateShutdown
)

var adapterStateNames = [...]string{"halted", "initializing", "paused", "restarting", "running", "pausing", "shutdown"}

// String names s as events and the command line print it.
func (s AdapterState) String() string { return adapterStateNames[s] }

// MarshalText makes an AdapterState print as its name in JSON.
func (s AdapterState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// BindingState is the state of a binding (P-States).
type BindingState uint8

// The binding states.
const (
	BindingUnbound BindingState = iota
	BindingOpening
	BindingPaused
	BindingRestarting
	BindingRunning
	BindingPausing
	BindingClosing
)

var bindingStateNames = [...]string{"unbound", "opening", "paused", "restarting", "running", "pausing", "closing"}

// String names s as events and the command line print it.
func (s BindingState) String() string { return bindingStateNames[s] }

// MarshalText makes a BindingState print as its name in JSON.
func (s BindingState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// FilterState is the state of a filter module (F-States).
type FilterState uint8

// The filter states.
const (
	FilterDetached FilterState = iota
	FilterAttaching
	FilterPaused
	FilterRestarting
	FilterRunning
	FilterPausing
)

var filterStateNames = [...]string{"detached", "attaching", "paused", "restarting", "running", "pausing"}

// String names s as events and the command line print it.
func (s FilterState) String() string { return filterStateNames[s] }

// MarshalText makes a FilterState print as its name in JSON.
func (s FilterState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
