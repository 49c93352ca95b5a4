package ndistest

import (
	"context"
	"fmt"
	"sync"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// VerifiedProtocol stands between the core and a protocol, and reports what the
// core does against the contract: events out of order, frames for a binding that
// is paused, statuses and completions for one that is gone, resets that end
// before they begin.
func VerifiedProtocol(r Reporter, p ndiscore.Protocol) ndiscore.Protocol {
	return &verifiedProtocol{r: r, inner: p, bindings: map[*ndiscore.Binding]*verifiedBinding{}}
}

type verifiedProtocol struct {
	r     Reporter
	inner ndiscore.Protocol

	mu       sync.Mutex // guards all below; never held across a call
	bindings map[*ndiscore.Binding]*verifiedBinding
}

type verifiedBinding struct {
	state     ndiscore.BindingState
	calling   string            // the call in progress
	power     ndiscore.NetEvent // the newest power event, 0 when it is awake
	resetting bool
}

func (v *verifiedProtocol) report(b *ndiscore.Binding, format string, args ...any) {
	v.r.Helper()
	v.r.Errorf("contract: binding on %s: core: %s", b.Adapter(), fmt.Sprintf(format, args...))
}

// enter begins a call that is legal in state from, and leads to state to.
func (v *verifiedProtocol) enter(b *ndiscore.Binding, call string, from, to ndiscore.BindingState) {
	v.mu.Lock()
	vb := v.bindings[b]
	if vb == nil {
		vb = &verifiedBinding{}
		v.bindings[b] = vb
	}
	was, calling := vb.state, vb.calling
	vb.state, vb.calling = to, call
	v.mu.Unlock()
	if calling != "" {
		v.report(b, "%s while %s is in progress", call, calling)
	}
	if was != from {
		v.report(b, "%s while %s", call, was)
	}
}

func (v *verifiedProtocol) become(b *ndiscore.Binding, s ndiscore.BindingState) {
	v.mu.Lock()
	if s == ndiscore.BindingUnbound {
		delete(v.bindings, b)
	} else {
		v.bindings[b].state, v.bindings[b].calling = s, ""
	}
	v.mu.Unlock()
}

// see looks at a binding for a call on the packet path.
func (v *verifiedProtocol) see(b *ndiscore.Binding) verifiedBinding {
	v.mu.Lock()
	defer v.mu.Unlock()
	if vb := v.bindings[b]; vb != nil {
		return *vb
	}
	return verifiedBinding{}
}

// Bind implements ndiscore.Protocol.
func (v *verifiedProtocol) Bind(ctx context.Context, b *ndiscore.Binding) error {
	v.enter(b, "Bind", ndiscore.BindingUnbound, ndiscore.BindingOpening)
	err := v.inner.Bind(ctx, b)
	if err != nil {
		v.become(b, ndiscore.BindingUnbound)
	} else {
		v.become(b, ndiscore.BindingPaused)
	}
	return err
}

// Unbind implements ndiscore.Protocol.
func (v *verifiedProtocol) Unbind(ctx context.Context, b *ndiscore.Binding) {
	v.enter(b, "Unbind", ndiscore.BindingPaused, ndiscore.BindingClosing)
	v.inner.Unbind(ctx, b)
	v.become(b, ndiscore.BindingUnbound)
}

// Event implements ndiscore.Protocol.
func (v *verifiedProtocol) Event(ctx context.Context, b *ndiscore.Binding, ev ndiscore.NetEvent) error {
	if b == nil {
		return v.inner.Event(ctx, b, ev)
	}
	switch ev {
	case ndiscore.EventRestart:
		v.enter(b, ev.String(), ndiscore.BindingPaused, ndiscore.BindingRestarting)
		err := v.inner.Event(ctx, b, ev)
		v.become(b, ndiscore.BindingRunning) // whatever it says
		return err
	case ndiscore.EventPause:
		v.enter(b, ev.String(), ndiscore.BindingRunning, ndiscore.BindingPausing)
		err := v.inner.Event(ctx, b, ev)
		v.become(b, ndiscore.BindingPaused)
		return err
	}
	v.mu.Lock()
	vb := v.bindings[b]
	if vb == nil {
		v.mu.Unlock()
		v.report(b, "%s, and it is not bound", ev)
		return v.inner.Event(ctx, b, ev)
	}
	calling, power := vb.calling, vb.power
	switch ev {
	case ndiscore.EventQueryPower, ndiscore.EventSetPowerD3:
		vb.power = ev
	case ndiscore.EventSetPowerD0:
		vb.power = 0
	}
	v.mu.Unlock()
	switch {
	case calling != "":
		v.report(b, "%s while %s is in progress", ev, calling)
	case ev == ndiscore.EventSetPowerD3 && power != ndiscore.EventQueryPower && power != 0: // 0: bound meanwhile
		v.report(b, "%s, which it knows", ev)
	}
	return v.inner.Event(ctx, b, ev)
}

// Receive implements ndiscore.Protocol.
func (v *verifiedProtocol) Receive(b *ndiscore.Binding, batch *ndiscore.Batch) {
	// Restart opens the binding just before it is told, and Pause closes it
	// just before: in both, the call that follows is still to come or running.
	switch s := v.see(b).state; s {
	case ndiscore.BindingPaused, ndiscore.BindingRestarting, ndiscore.BindingRunning:
	default:
		v.report(b, "Receive while %s", s)
	}
	v.inner.Receive(b, batch)
}

// SendComplete implements ndiscore.Protocol.
func (v *verifiedProtocol) SendComplete(b *ndiscore.Binding, batch *ndiscore.Batch) {
	if s := v.see(b).state; s == ndiscore.BindingUnbound && !b.Usable() {
		// A send on a stale handle comes back, too: rejected, at once.
		for i := range batch.Frames {
			if batch.Status[i] == ndiscore.DropNone {
				v.report(b, "SendComplete of a sent frame while %s", s)
				break
			}
		}
	}
	v.inner.SendComplete(b, batch)
}

// Status implements ndiscore.Protocol.
func (v *verifiedProtocol) Status(b *ndiscore.Binding, s ndiscore.Status) {
	v.mu.Lock()
	vb := v.bindings[b]
	wrong := ""
	switch {
	case vb == nil || vb.state == ndiscore.BindingOpening:
		wrong = "and it is not bound"
	default:
		switch s.(type) {
		case ndiscore.ResetStart:
			if vb.resetting {
				wrong = "a second time"
			}
			vb.resetting = true
		case ndiscore.ResetEnd:
			if !vb.resetting {
				wrong = "and none was begun"
			}
			vb.resetting = false
		}
	}
	v.mu.Unlock()
	if wrong != "" {
		v.report(b, "status %T, %s", s, wrong)
	}
	v.inner.Status(b, s)
}
