// Package netdevtest runs one adapter without a core: a handle that records
// what the adapter says, and passes what it receives to a function. The tests
// of the kernel-device miniports use it; the conformance kit for any miniport
// is ndiscore/ndistest.
package netdevtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Handle is the core as one adapter under test sees it.
type Handle struct {
	name    string
	core    *ndiscore.Core // for workers
	receive func(*ndiscore.Batch)

	received atomic.Uint64
	dropped  [256]atomic.Uint64

	mu         sync.Mutex // guards all below
	statuses   []ndiscore.LinkState
	attributes []ndiscore.AttributesChange
	resets     []string // why, of Reset
	removed    []string // why, of Remove
	vanished   []string // why, of SurpriseRemove
	sent       int      // SendComplete calls
	changed    chan struct{}
}

var _ ndiscore.AdapterHandle = (*Handle)(nil)

// NewHandle makes a handle whose batches go to receive, which may be nil.
func NewHandle(name string, receive func(*ndiscore.Batch)) *Handle {
	return &Handle{name: name, core: ndiscore.New(ndiscore.Options{}), receive: receive, changed: make(chan struct{})}
}

// Name implements ndiscore.AdapterHandle.
func (h *Handle) Name() string { return h.name }

// NewWorker implements ndiscore.AdapterHandle.
func (h *Handle) NewWorker(queue int) *ndiscore.Worker {
	w, err := h.core.NewWorker(fmt.Sprintf("%s/rx%d", h.name, queue))
	if err != nil {
		panic(err) // a test that leaks workers
	}
	return w
}

// IndicateReceive implements ndiscore.AdapterHandle.
func (h *Handle) IndicateReceive(b *ndiscore.Batch) {
	h.received.Add(uint64(len(b.Frames)))
	if h.receive != nil {
		h.receive(b)
	}
}

// SendComplete implements ndiscore.AdapterHandle.
func (h *Handle) SendComplete(*ndiscore.Batch) { h.note(func() { h.sent++ }) }

// IndicateStatus implements ndiscore.AdapterHandle.
func (h *Handle) IndicateStatus(s ndiscore.Status) {
	switch s := s.(type) {
	case ndiscore.LinkState:
		h.note(func() { h.statuses = append(h.statuses, s) })
	case ndiscore.AttributesChange:
		h.note(func() { h.attributes = append(h.attributes, s) })
	}
}

// Reset implements ndiscore.AdapterHandle.
func (h *Handle) Reset(why string) { h.note(func() { h.resets = append(h.resets, why) }) }

// SetSecondary implements ndiscore.AdapterHandle: there are no bundles here.
func (h *Handle) SetSecondary(string) error { return ndiscore.ErrFailure }

// Promote implements ndiscore.AdapterHandle.
func (h *Handle) Promote() error { return ndiscore.ErrFailure }

// InhibitBinds implements ndiscore.AdapterHandle: there is nobody to unbind.
func (h *Handle) InhibitBinds(context.Context, string) error { return nil }

// AllowBinds implements ndiscore.AdapterHandle.
func (h *Handle) AllowBinds() {}

// RequirePause implements ndiscore.AdapterHandle: nobody would pause it here.
func (h *Handle) RequirePause(context.Context, string) error { return ndiscore.ErrFailure }

// AllowStart implements ndiscore.AdapterHandle.
func (h *Handle) AllowStart() {}

// Remove implements ndiscore.AdapterHandle.
func (h *Handle) Remove(why string) error {
	h.note(func() { h.removed = append(h.removed, why) })
	return nil
}

// SurpriseRemove implements ndiscore.AdapterHandle.
func (h *Handle) SurpriseRemove(why string) {
	h.note(func() { h.vanished = append(h.vanished, why) })
}

// Dropped implements ndiscore.AdapterHandle.
func (h *Handle) Dropped(_ *ndiscore.Worker, r ndiscore.DropReason, n uint64) { h.dropped[r].Add(n) }

// Clock implements ndiscore.AdapterHandle.
func (h *Handle) Clock() ndiscore.Clock { return ndiscore.SystemClock{} }

func (h *Handle) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// Received counts the frames indicated.
func (h *Handle) Received() uint64 { return h.received.Load() }

// DroppedFor counts the frames reported dropped for reason r.
func (h *Handle) DroppedFor(r ndiscore.DropReason) uint64 { return h.dropped[r].Load() }

// SendCompletes counts the batches given back.
func (h *Handle) SendCompletes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent
}

// Statuses lists the link states indicated so far.
func (h *Handle) Statuses() []ndiscore.LinkState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]ndiscore.LinkState(nil), h.statuses...)
}

// WaitLink waits until the last link state indicated has the given media state.
func (h *Handle) WaitLink(t testing.TB, want ndiscore.MediaState) ndiscore.LinkState {
	t.Helper()
	var last ndiscore.LinkState
	h.wait(t, fmt.Sprintf("link %v", want), func() bool {
		if len(h.statuses) == 0 {
			return false
		}
		last = h.statuses[len(h.statuses)-1]
		return last.Media == want
	})
	return last
}

// Attributes lists the changes of attributes indicated so far.
func (h *Handle) Attributes() []ndiscore.AttributesChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]ndiscore.AttributesChange(nil), h.attributes...)
}

// WaitAttributes waits until the changes indicated add up to this address and
// MTU; a zero one is not waited for.
func (h *Handle) WaitAttributes(t testing.TB, mac ndiscore.MAC, mtu int) {
	t.Helper()
	h.wait(t, fmt.Sprintf("attributes %s, %d", mac, mtu), func() bool {
		var last ndiscore.AttributesChange
		for _, c := range h.attributes {
			if c.MTU != 0 {
				last.MTU = c.MTU
			}
			if !c.MAC.IsZero() {
				last.MAC = c.MAC
			}
		}
		return (mtu == 0 || last.MTU == mtu) && (mac.IsZero() || last.MAC == mac)
	})
}

// WaitVanished waits until the adapter reports its device gone.
func (h *Handle) WaitVanished(t testing.TB) string {
	t.Helper()
	h.wait(t, "surprise removal", func() bool { return len(h.vanished) > 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.vanished[0]
}

// Vanished reports how often the adapter reported its device gone.
func (h *Handle) Vanished() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.vanished)
}

// Removed lists why the adapter asked to be removed.
func (h *Handle) Removed() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.removed...)
}

func (h *Handle) wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		h.mu.Lock()
		ok, changed := cond(), h.changed
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: no %s; statuses %v, vanished %v", h.name, what, h.Statuses(), h.Vanished())
		}
	}
}

// Start makes an adapter from d, starts its device and brings it to Running.
// When the test ends it is stopped for good, unless Stop was called before.
func Start(t testing.TB, d ndiscore.Driver, options any, h *Handle) *Running {
	t.Helper()
	r := Prepare(t, d, options, h)
	r.Run(t)
	return r
}

// Running is an adapter between Prepare and Stop.
type Running struct {
	ndiscore.Adapter
	Handle     *Handle
	Attributes ndiscore.Attributes
	state      state
}

type state int

const (
	stopped state = iota
	paused
	running
)

// Prepare is Start up to Paused; Run does the rest.
func Prepare(t testing.TB, d ndiscore.Driver, options any, h *Handle) *Running {
	t.Helper()
	a, err := d.New(h.name, options)
	if err != nil {
		t.Fatal(err)
	}
	r := &Running{Adapter: a, Handle: h}
	t.Cleanup(r.Stop)
	r.Initialize(t)
	return r
}

// Initialize starts the device and brings the adapter to Paused.
func (r *Running) Initialize(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	if err := r.Adapter.(ndiscore.LowerDevice).StartDevice(ctx); err != nil {
		t.Fatal(err)
	}
	var err error
	r.Attributes, err = r.Adapter.Initialize(ctx, r.Handle)
	if err != nil {
		r.Adapter.(ndiscore.LowerDevice).RemoveDevice(ctx)
		t.Fatal(err)
	}
	r.state = paused
	err = r.Request(ctx, &ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentPacketFilter, Kind: ndiscore.OIDSet,
		Data: ndiscore.FilterPromiscuous | ndiscore.FilterStation})
	if err != nil {
		t.Fatal(err)
	}
}

// Run goes from Paused to Running.
func (r *Running) Run(t testing.TB) {
	t.Helper()
	if err := r.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.state = running
}

// Rest goes from Running to Paused.
func (r *Running) Rest() {
	r.Pause(context.Background())
	r.state = paused
}

// Stop pauses, halts and removes the adapter. It may be called again.
func (r *Running) Stop() { r.StopFor(ndiscore.HaltDeviceDisabled) }

// StopFor is Stop with a reason.
func (r *Running) StopFor(why ndiscore.HaltAction) {
	ctx := context.Background()
	if r.state == running {
		r.Rest()
	}
	if r.state == paused {
		r.Halt(ctx, why)
		r.state = stopped
		if why != ndiscore.HaltDeviceStopped {
			r.Adapter.(ndiscore.LowerDevice).RemoveDevice(ctx)
		}
	}
}

// Pipe passes everything that a receives to b, and back. Both are Paused.
func Pipe(a, b *Running) {
	a.Handle.receive = b.Send
	b.Handle.receive = a.Send
}
