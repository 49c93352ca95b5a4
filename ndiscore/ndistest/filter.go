package ndistest

import (
	"context"
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

	handle         atomic.Pointer[ndiscore.FilterHandle]
	received, sent atomic.Uint64
}

var (
	_ ndiscore.Filter        = (*Filter)(nil)
	_ ndiscore.SendFilter    = (*Filter)(nil)
	_ ndiscore.ReceiveFilter = (*Filter)(nil)
	_ ndiscore.StatusFilter  = (*Filter)(nil)
)

// NewFilter makes a filter that the trace knows as token, such as "M.F1".
func NewFilter(token string, t *Trace) *Filter { return &Filter{token: token, trace: t} }

func (f *Filter) play(call string) error {
	f.trace.Add(f.token + "." + call)
	return f.call(call)
}

// Attach implements ndiscore.Filter.
func (f *Filter) Attach(_ context.Context, h ndiscore.FilterHandle) error {
	f.handle.Store(&h)
	return f.play("Attach")
}

// Restart implements ndiscore.Filter.
func (f *Filter) Restart(context.Context) error { return f.play("Restart") }

// Pause implements ndiscore.Filter.
func (f *Filter) Pause(context.Context) { _ = f.play("Pause") }

// Detach implements ndiscore.Filter.
func (f *Filter) Detach(context.Context) { _ = f.play("Detach") }

// Handle is the core as the filter sees it.
func (f *Filter) Handle() ndiscore.FilterHandle { return *f.handle.Load() }

// Seen says how many frames it saw on their way up and down.
func (f *Filter) Seen() (received, sent uint64) { return f.received.Load(), f.sent.Load() }

// FilterReceive implements ndiscore.ReceiveFilter.
func (f *Filter) FilterReceive(b *ndiscore.Batch) {
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
func (f *Filter) FilterStatus(s ndiscore.Status) { f.Handle().IndicateStatus(s) }
