package ndiscore

import "context"

// FilterDriver is one kind of filter; a row of the list in drivers.go.
type FilterDriver struct {
	Name       string
	NewOptions func() any
	New        func(name string, options any) (Filter, error)
}

// FilterSpec is one filter module of an adapter. The order of an adapter's
// specs is the order of its modules, the first nearest the miniport.
type FilterSpec struct {
	Name      string
	Filter    Filter
	Mandatory bool // no adapter without it
}

// Filter is one module between an adapter and what is bound to it, invisible
// to both. It implements SendFilter, ReceiveFilter or StatusFilter as it needs;
// a path that it does not implement passes it by at no cost.
type Filter interface {
	Attach(ctx context.Context, h FilterHandle) error // Detached → Paused (FilterAttach)
	Restart(ctx context.Context) error                // Paused → Running (FilterRestart)
	Pause(ctx context.Context)                        // Running → Paused: nothing of its own in flight (FilterPause)
	Detach(ctx context.Context)                       // frees everything (FilterDetach)
}

// SendFilter sees frames on their way down. It passes them on with
// FilterHandle.Send; what it does not pass on it reports with
// FilterHandle.DropSend. It may shorten the batch in place.
type SendFilter interface{ FilterSend(b *Batch) }

// ReceiveFilter sees frames on their way up. It passes them on with
// FilterHandle.IndicateReceive; what it does not pass on it marks with
// Frame.Drop. It may pass a borrowed batch on in parts, in batches of its own,
// within the call; it does not reorder or shorten b.Frames, which is what the
// core counts by.
type ReceiveFilter interface{ FilterReceive(b *Batch) }

// StatusFilter sees status indications on their way up and passes them on, or
// not, with FilterHandle.IndicateStatus.
type StatusFilter interface{ FilterStatus(s Status) }

// EventFilter hears the events that protocols hear about the adapter
// (FilterNetPnPEvent), before they do, the lowest module first. The core passes
// them on. An error to EventQueryRemoveDevice is a veto.
type EventFilter interface {
	FilterEvent(ctx context.Context, ev NetEvent) error
}

// FilterHandle is the core as one filter module sees it, good from Attach until
// Detach returns.
type FilterHandle interface {
	Name() string
	Send(b *Batch)            // to the next module down, or the adapter
	IndicateReceive(b *Batch) // to the next module up, or the bindings
	IndicateStatus(s Status)
	// DropSend counts one frame of b as dropped on transmit.
	DropSend(w *Worker, r DropReason, n uint64)
	// NewWorker registers a goroutine of the filter's own, which may then pass
	// batches on: frames that it makes, or that it has held (Frame.Hold). Not for
	// the packet path. The goroutine closes it when it ends, in Pause at the
	// latest.
	NewWorker() (*Worker, error)
	// Settle counts what has become of received frames of the filter's own, once
	// it has passed them on or marked them with Frame.Drop: frames that it had
	// held, or, with made, others that it made itself.
	Settle(b *Batch, made bool)
	Clock() Clock
}
