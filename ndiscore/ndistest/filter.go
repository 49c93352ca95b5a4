package ndistest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Filter is a fake filter: it passes on what it sees, but for every so manieth
// frame.
type Filter struct {
	Script
	token string // "M.F1"
	trace *Trace
	// DropEvery n-th frame received, or sent; 0: none. To be set before Attach.
	DropReceived, DropSent uint64
	// TraceStatus: the trace has status indications too: "M.F1.Status(ResetStart)".
	TraceStatus bool
	// Report, if set before Attach, is told of calls in a wrong state.
	Report Reporter

	state          atomic.Int32 // ndiscore.FilterState
	handle         atomic.Pointer[ndiscore.FilterHandle]
	received, sent atomic.Uint64

	mu       sync.Mutex // guards statuses
	statuses []ndiscore.Status
}

var (
	_ ndiscore.Filter        = (*Filter)(nil)
	_ ndiscore.SendFilter    = (*Filter)(nil)
	_ ndiscore.ReceiveFilter = (*Filter)(nil)
	_ ndiscore.StatusFilter  = (*Filter)(nil)
)

// NewFilter makes a filter that the trace knows as token, such as "M.F1".
func NewFilter(token string, t *Trace) *Filter { return &Filter{token: token, trace: t} }

// EventFilter is a Filter that hears events. Script.Fail("Event(…)", err) has it
// refuse one.
type EventFilter struct{ *Filter }

var _ ndiscore.EventFilter = EventFilter{}

// NewEventFilter makes a filter that hears events.
func NewEventFilter(token string, t *Trace) EventFilter { return EventFilter{NewFilter(token, t)} }

// FilterEvent implements ndiscore.EventFilter.
func (f EventFilter) FilterEvent(_ context.Context, ev ndiscore.NetEvent) error {
	f.in("Event", ndiscore.FilterPaused, ndiscore.FilterRunning)
	return f.play("Event(" + ev.String() + ")")
}

func (f *Filter) play(call string) error {
	f.trace.Add(f.token + "." + call)
	return f.call(call)
}

// in reports a call that comes in none of the states given.
func (f *Filter) in(call string, states ...ndiscore.FilterState) {
	if s := ndiscore.FilterState(f.state.Load()); f.Report != nil && !slices.Contains(states, s) {
		f.Report.Errorf("contract: filter %s: core: %s while %s", f.token, call, s)
	}
}

// become goes to state s by a call that is legal in state from, and stays there on
// an error.
func (f *Filter) become(call string, s, from ndiscore.FilterState) error {
	f.in(call, from)
	err := f.play(call)
	if err == nil {
		f.state.Store(int32(s))
	}
	return err
}

// Attach implements ndiscore.Filter.
func (f *Filter) Attach(_ context.Context, h ndiscore.FilterHandle) error {
	f.handle.Store(&h)
	return f.become("Attach", ndiscore.FilterPaused, ndiscore.FilterDetached)
}

// Restart implements ndiscore.Filter.
func (f *Filter) Restart(context.Context) error {
	return f.become("Restart", ndiscore.FilterRunning, ndiscore.FilterPaused)
}

// Pause implements ndiscore.Filter.
func (f *Filter) Pause(context.Context) {
	_ = f.become("Pause", ndiscore.FilterPaused, ndiscore.FilterRunning)
}

// Detach implements ndiscore.Filter.
func (f *Filter) Detach(context.Context) {
	_ = f.become("Detach", ndiscore.FilterDetached, ndiscore.FilterPaused)
}

// Handle is the core as the filter sees it.
func (f *Filter) Handle() ndiscore.FilterHandle { return *f.handle.Load() }

// Seen says how many frames it saw on their way up and down.
func (f *Filter) Seen() (received, sent uint64) { return f.received.Load(), f.sent.Load() }

// FilterReceive implements ndiscore.ReceiveFilter.
func (f *Filter) FilterReceive(b *ndiscore.Batch) {
	f.in("FilterReceive", ndiscore.FilterRunning)
	seen := f.received.Add(uint64(len(b.Frames))) - uint64(len(b.Frames))
	if f.DropReceived == 0 {
		f.Handle().IndicateReceive(b)
		return
	}
	pass := b.Worker.Scratch()
	for i, x := range b.Frames {
		if (seen+uint64(i)+1)%f.DropReceived == 0 {
			x.Drop(ndiscore.DropFaultDrop)
		} else {
			pass.Append(x)
		}
	}
	if len(pass.Frames) > 0 {
		f.Handle().IndicateReceive(pass)
	}
	b.Worker.Done(pass)
}

// FilterSend implements ndiscore.SendFilter.
func (f *Filter) FilterSend(b *ndiscore.Batch) {
	f.in("FilterSend", ndiscore.FilterRunning)
	seen := f.sent.Add(uint64(len(b.Frames))) - uint64(len(b.Frames))
	if f.DropSent != 0 {
		n := 0
		for i, x := range b.Frames {
			if (seen+uint64(i)+1)%f.DropSent == 0 {
				f.Handle().DropSend(b.Worker, ndiscore.DropFaultDrop, 1)
				continue
			}
			b.Frames[n] = x
			n++
		}
		b.Frames = b.Frames[:n]
	}
	if len(b.Frames) > 0 {
		f.Handle().Send(b)
	}
}

// FilterStatus implements ndiscore.StatusFilter.
func (f *Filter) FilterStatus(s ndiscore.Status) {
	f.in("FilterStatus", ndiscore.FilterPaused, ndiscore.FilterRunning)
	f.mu.Lock()
	f.statuses = append(f.statuses, s)
	f.mu.Unlock()
	if f.TraceStatus {
		f.trace.Add(f.token + ".Status(" + statusName(s) + ")")
	}
	f.Handle().IndicateStatus(s)
}

// Statuses returns the indications seen.
func (f *Filter) Statuses() []ndiscore.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.statuses)
}
