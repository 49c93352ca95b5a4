package ndistest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Protocol is a fake protocol driver. It takes every frame for itself and
// remembers copies, unless told otherwise.
type Protocol struct {
	Script
	name  string
	trace *Trace

	// Filter is set on each binding; promiscuous unless changed before the
	// first bind.
	Filter ndiscore.PacketFilter
	// OnReceive, if set before the first bind, replaces what Receive does.
	OnReceive func(b *ndiscore.Binding, batch *ndiscore.Batch)
	// OnStatus, if set before the first bind, is called too.
	OnStatus func(b *ndiscore.Binding, s ndiscore.Status)
	// TraceStatus: the trace has status indications too: "P1.Status(M, ResetStart)".
	TraceStatus bool
	// Keep: received batches that are not borrowed are held until ReturnKept.
	Keep bool
	// Forget: frames are counted, not remembered.
	Forget bool

	received  atomic.Uint64
	completed atomic.Uint64

	mu       sync.Mutex // guards all below
	bindings map[string]*ndiscore.Binding
	frames   [][]byte
	statuses []ndiscore.Status
	kept     []held
}

type held struct {
	b     *ndiscore.Binding
	batch *ndiscore.Batch
}

var _ ndiscore.Protocol = (*Protocol)(nil)

// NewProtocol makes a fake protocol.
func NewProtocol(name string, t *Trace) *Protocol {
	return &Protocol{name: name, trace: t, Filter: ndiscore.FilterPromiscuous, bindings: map[string]*ndiscore.Binding{}}
}

// Spec is the protocol, to be bound to targets.
func (p *Protocol) Spec(targets ...string) ndiscore.ProtocolSpec {
	return ndiscore.ProtocolSpec{Name: p.name, Protocol: p, Targets: targets}
}

// Bind implements ndiscore.Protocol.
func (p *Protocol) Bind(ctx context.Context, b *ndiscore.Binding) error {
	p.trace.Add(p.name + ".Bind(" + b.Adapter() + ")")
	if err := p.call("Bind"); err != nil {
		return err
	}
	p.mu.Lock()
	p.bindings[b.Adapter()] = b
	p.mu.Unlock()
	return b.SetPacketFilter(ctx, p.Filter)
}

// Unbind implements ndiscore.Protocol.
func (p *Protocol) Unbind(_ context.Context, b *ndiscore.Binding) {
	p.trace.Add(p.name + ".Unbind(" + b.Adapter() + ")")
	_ = p.call("Unbind")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bindings[b.Adapter()] == b {
		delete(p.bindings, b.Adapter())
	}
}

// Event implements ndiscore.Protocol.
func (p *Protocol) Event(_ context.Context, b *ndiscore.Binding, ev ndiscore.NetEvent) error {
	if b == nil {
		p.trace.Add(p.name + ".Event(" + ev.String() + ")")
	} else {
		p.trace.Add(p.name + ".Event(" + b.Adapter() + ", " + ev.String() + ")")
	}
	return p.call("Event(" + ev.String() + ")")
}

// Receive implements ndiscore.Protocol.
func (p *Protocol) Receive(b *ndiscore.Binding, batch *ndiscore.Batch) {
	if p.OnReceive != nil {
		p.OnReceive(b, batch)
		return
	}
	p.received.Add(uint64(len(batch.Frames)))
	for _, f := range batch.Frames {
		f.Deliver()
	}
	if !p.Forget {
		p.mu.Lock()
		for _, f := range batch.Frames {
			p.frames = append(p.frames, f.Bytes(nil))
		}
		p.mu.Unlock()
	}
	if batch.Borrowed {
		return
	}
	if p.Keep {
		p.mu.Lock()
		p.kept = append(p.kept, held{b, batch})
		p.mu.Unlock()
		return
	}
	b.Return(batch)
}

// SendComplete implements ndiscore.Protocol.
func (p *Protocol) SendComplete(*ndiscore.Binding, *ndiscore.Batch) { p.completed.Add(1) }

// Status implements ndiscore.Protocol.
func (p *Protocol) Status(b *ndiscore.Binding, s ndiscore.Status) {
	p.mu.Lock()
	p.statuses = append(p.statuses, s)
	p.mu.Unlock()
	if p.TraceStatus {
		p.trace.Add(p.name + ".Status(" + b.Adapter() + ", " + statusName(s) + ")")
	}
	if p.OnStatus != nil {
		p.OnStatus(b, s)
	}
}

// statusName names the kind of a status.
func statusName(s ndiscore.Status) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", s), "ndiscore.")
}

// Binding is the binding to an adapter, nil when there is none.
func (p *Protocol) Binding(adapter string) *ndiscore.Binding {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bindings[adapter]
}

// Frames returns copies of the frames received.
func (p *Protocol) Frames() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.frames)
}

// Received says how many frames were received.
func (p *Protocol) Received() uint64 { return p.received.Load() }

// Completed says how many sends were completed.
func (p *Protocol) Completed() uint64 { return p.completed.Load() }

// Statuses returns the indications heard.
func (p *Protocol) Statuses() []ndiscore.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.statuses)
}

// ReturnKept gives every held batch back and says how many there were.
func (p *Protocol) ReturnKept() int {
	p.mu.Lock()
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	for _, k := range kept {
		k.b.Return(k.batch)
	}
	return len(kept)
}

// Kept says how many batches are held.
func (p *Protocol) Kept() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.kept)
}

// ForwardTo has the protocol send what it receives on, through the binding to
// another adapter. To be called before the first bind.
func (p *Protocol) ForwardTo(way map[string]string) {
	p.OnReceive = func(b *ndiscore.Binding, batch *ndiscore.Batch) {
		p.received.Add(uint64(len(batch.Frames)))
		if out := p.Binding(way[b.Adapter()]); out != nil {
			lent := batch.Worker.Scratch()
			lent.Frames = append(lent.Frames, batch.Frames...)
			out.Send(lent)
			for i, f := range batch.Frames {
				if i < len(lent.Frames) && lent.Status[i] == ndiscore.DropNone {
					f.Forward()
				} else {
					f.Drop(lent.Status[i])
				}
			}
			batch.Worker.Done(lent)
		}
		if !batch.Borrowed {
			b.Return(batch)
		}
	}
}
