package ndistest

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Reporter is where breaches of the contract go: a testing.TB.
type Reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

// Verifier stands between the core and an adapter, and reports what either does
// against the contract: calls in a wrong state, indications outside Restart …
// Pause, batches completed twice or never, workers left open, frames changed
// while they were lent, and so on. The optional interfaces of the adapter stay
// visible.
func Verifier(r Reporter, a ndiscore.Adapter) ndiscore.Adapter {
	v := &verifier{r: r, inner: a, name: "adapter", sends: map[*ndiscore.Batch]uint64{}, lent: map[*ndiscore.Batch][]*ndiscore.Frame{}, seed: maphash.MakeSeed()}
	lower, isLower := a.(ndiscore.LowerDevice)
	pnp, isPnP := a.(ndiscore.DevicePnPNotifier)
	down, isDown := a.(ndiscore.Shutdowner)
	stats, isStats := a.(ndiscore.Statser)
	l, p, d := verifiedDevice{v, lower}, verifiedPnP{v, pnp}, verifiedShutdown{v, down}
	mask := 0
	for i, has := range []bool{isLower, isPnP, isDown, isStats} {
		if has {
			mask |= 1 << i
		}
	}
	type (
		ld = ndiscore.LowerDevice
		pn = ndiscore.DevicePnPNotifier
		sd = ndiscore.Shutdowner
		st = ndiscore.Statser
	)
	switch mask {
	case 1:
		return struct {
			*verifier
			ld
		}{v, l}
	case 2:
		return struct {
			*verifier
			pn
		}{v, p}
	case 3:
		return struct {
			*verifier
			ld
			pn
		}{v, l, p}
	case 4:
		return struct {
			*verifier
			sd
		}{v, d}
	case 5:
		return struct {
			*verifier
			ld
			sd
		}{v, l, d}
	case 6:
		return struct {
			*verifier
			pn
			sd
		}{v, p, d}
	case 7:
		return struct {
			*verifier
			ld
			pn
			sd
		}{v, l, p, d}
	case 8:
		return struct {
			*verifier
			st
		}{v, stats}
	case 9:
		return struct {
			*verifier
			ld
			st
		}{v, l, stats}
	case 10:
		return struct {
			*verifier
			pn
			st
		}{v, p, stats}
	case 11:
		return struct {
			*verifier
			ld
			pn
			st
		}{v, l, p, stats}
	case 12:
		return struct {
			*verifier
			sd
			st
		}{v, d, stats}
	case 13:
		return struct {
			*verifier
			ld
			sd
			st
		}{v, l, d, stats}
	case 14:
		return struct {
			*verifier
			pn
			sd
			st
		}{v, p, d, stats}
	case 15:
		return struct {
			*verifier
			ld
			pn
			sd
			st
		}{v, l, p, d, stats}
	}
	return v
}

// VerifiedDriver is d with each of its adapters behind a Verifier.
func VerifiedDriver(r Reporter, d ndiscore.Driver) ndiscore.Driver {
	make := d.New
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := make(name, options)
		if err != nil {
			return nil, err
		}
		return Verifier(r, a), nil
	}
	return d
}

type verifier struct {
	r     Reporter
	inner ndiscore.Adapter
	seed  maphash.Seed

	mu         sync.Mutex // guards all below; never held across a call
	name       string
	state      ndiscore.AdapterState
	halting    bool
	shut       bool
	handle     *verifiedHandle
	indicating int // IndicateReceive calls in progress
	requesting int
	sends      map[*ndiscore.Batch]uint64 // accepted and not completed, with their hash
	lent       map[*ndiscore.Batch][]*ndiscore.Frame
	workers    []*ndiscore.Worker
	inits      int // successful ones
	halts      int
	device     bool
	told       func(ndiscore.AdapterHandle)
}

// verifiedHandle is the core as the adapter sees it through the verifier, from
// one Initialize to the Halt after it.
type verifiedHandle struct {
	ndiscore.AdapterHandle
	v    *verifier
	dead atomic.Bool
}

func (v *verifier) Name() string {
	if n, ok := v.inner.(interface{ Name() string }); ok {
		return n.Name()
	}
	return v.name
}

func (v *verifier) report(format string, args ...any) {
	v.r.Helper()
	v.r.Errorf("contract: %s: %s", v.Name(), fmt.Sprintf(format, args...))
}

// enter checks that a call by the core comes in one of the states allowed, and
// moves to state to.
func (v *verifier) enter(call string, to ndiscore.AdapterState, allowed ...ndiscore.AdapterState) {
	v.mu.Lock()
	state, shut, halting := v.state, v.shut, v.halting
	v.state = to
	v.mu.Unlock()
	if shut {
		v.report("core: %s after Shutdown", call)
	}
	if halting || !slices.Contains(allowed, state) {
		v.report("core: %s while %s", call, v.phase(state, halting))
	}
}

func (v *verifier) phase(s ndiscore.AdapterState, halting bool) string {
	if halting {
		return "halting"
	}
	return s.String()
}

func (v *verifier) become(s ndiscore.AdapterState) {
	v.mu.Lock()
	v.state = s
	v.mu.Unlock()
}

// onInitialize has f called with each handle that the adapter gets.
func (v *verifier) onInitialize(f func(ndiscore.AdapterHandle)) { v.told = f }

// hash is of the frames and their bytes.
func (v *verifier) hash(b *ndiscore.Batch) uint64 {
	var h maphash.Hash
	h.SetSeed(v.seed)
	for _, f := range b.Frames {
		h.Write(f.Head)
		for _, s := range f.Segs {
			h.Write(s)
		}
		h.WriteByte(0xff)
	}
	return h.Sum64()
}

// --- The core calls the adapter ------------------------------------------------

func (v *verifier) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	v.enter("Initialize", ndiscore.StateInitializing, ndiscore.StateHalted)
	vh := &verifiedHandle{AdapterHandle: h, v: v}
	v.mu.Lock()
	v.handle, v.name = vh, h.Name()
	v.mu.Unlock()
	if v.told != nil {
		v.told(vh)
	}
	at, err := v.inner.Initialize(ctx, vh)
	if err != nil {
		vh.dead.Store(true)
		v.checkWorkers("a failed Initialize")
		v.become(ndiscore.StateHalted)
		return at, err
	}
	if at.MAC.IsZero() || at.MAC.IsGroup() || at.MTU < 68 || at.MTU > 65535 {
		v.report("Initialize: attributes: MAC %s, MTU %d", at.MAC, at.MTU)
	}
	v.mu.Lock()
	v.inits++
	v.mu.Unlock()
	v.become(ndiscore.StatePaused)
	return at, nil
}

func (v *verifier) Restart(ctx context.Context) error {
	v.enter("Restart", ndiscore.StateRestarting, ndiscore.StatePaused)
	if err := v.inner.Restart(ctx); err != nil {
		v.become(ndiscore.StatePaused)
		return err
	}
	v.become(ndiscore.StateRunning)
	return nil
}

func (v *verifier) Pause(ctx context.Context) {
	v.enter("Pause", ndiscore.StatePausing, ndiscore.StateRunning)
	v.inner.Pause(ctx)
	v.mu.Lock()
	indicating, sends := v.indicating, len(v.sends)
	v.state = ndiscore.StatePaused
	v.mu.Unlock()
	if indicating > 0 {
		v.report("Pause returned while %d indications were in progress", indicating)
	}
	if sends > 0 {
		v.report("Pause returned while %d accepted batches were not completed", sends)
	}
}

func (v *verifier) Halt(ctx context.Context, why ndiscore.HaltAction) {
	v.enter("Halt", ndiscore.StatePaused, ndiscore.StatePaused)
	v.mu.Lock()
	v.halting = true
	v.halts++
	halts, inits, requesting, lent, h := v.halts, v.inits, v.requesting, len(v.lent), v.handle
	v.mu.Unlock()
	if halts > inits {
		v.report("core: %d halts after %d successful Initializes", halts, inits)
	}
	if requesting > 0 {
		v.report("core: Halt while a Request was in progress")
	}
	if lent > 0 {
		v.report("Halt: %d received batches were never returned", lent)
	}
	v.inner.Halt(ctx, why)
	if h != nil {
		h.dead.Store(true)
	}
	v.checkWorkers("Halt")
	v.mu.Lock()
	v.halting, v.state = false, ndiscore.StateHalted
	clear(v.lent)
	v.mu.Unlock()
}

// checkWorkers reports workers that an ended adapter left open.
func (v *verifier) checkWorkers(after string) {
	v.mu.Lock()
	workers := v.workers
	v.workers = nil
	v.mu.Unlock()
	for _, w := range workers {
		if !w.Closed() {
			v.report("worker %s is still open after %s", w.Name(), after)
		}
	}
}

func (v *verifier) Send(b *ndiscore.Batch) {
	v.mu.Lock()
	state := v.state
	v.mu.Unlock()
	if state != ndiscore.StateRunning {
		v.report("core: Send while %s", state)
	}
	if len(b.Frames) == 0 || len(b.Frames) > ndiscore.BatchFrames {
		v.report("core: Send of %d frames", len(b.Frames))
	}
	before := v.hash(b)
	if b.Borrowed {
		v.inner.Send(b)
		if v.hash(b) != before {
			v.report("frames changed while Send had them")
		}
		return
	}
	v.mu.Lock()
	v.sends[b] = before
	v.mu.Unlock()
	v.inner.Send(b)
}

func (v *verifier) Return(b *ndiscore.Batch) {
	v.mu.Lock()
	_, known := v.lent[b]
	delete(v.lent, b)
	v.mu.Unlock()
	if !known {
		v.report("core: Return of a batch that is not out")
	}
	v.inner.Return(b)
}

func (v *verifier) Request(ctx context.Context, req *ndiscore.OIDRequest) error {
	v.mu.Lock()
	state, halting, shut := v.state, v.halting, v.shut
	v.requesting++
	n := v.requesting
	v.mu.Unlock()
	if halting || shut || state == ndiscore.StateHalted || state == ndiscore.StateInitializing {
		v.report("core: Request while %s", v.phase(state, halting))
	}
	if n > 1 {
		v.report("core: %d Requests at once", n)
	}
	err := v.inner.Request(ctx, req)
	v.mu.Lock()
	v.requesting--
	v.mu.Unlock()
	return err
}

type verifiedDevice struct {
	v *verifier
	d ndiscore.LowerDevice
}

func (d verifiedDevice) StartDevice(ctx context.Context) error {
	d.v.enter("StartDevice", ndiscore.StateHalted, ndiscore.StateHalted)
	err := d.d.StartDevice(ctx)
	if err == nil {
		d.v.mu.Lock()
		twice := d.v.device
		d.v.device = true
		d.v.mu.Unlock()
		if twice {
			d.v.report("core: StartDevice of a started device")
		}
	}
	return err
}

func (d verifiedDevice) RemoveDevice(ctx context.Context) {
	d.v.enter("RemoveDevice", ndiscore.StateHalted, ndiscore.StateHalted)
	d.v.mu.Lock()
	had := d.v.device
	d.v.device = false
	d.v.mu.Unlock()
	if !had {
		d.v.report("core: RemoveDevice of a device that was not started")
	}
	d.d.RemoveDevice(ctx)
}

func (d verifiedDevice) AwaitDevice(ctx context.Context) error { return d.d.AwaitDevice(ctx) }

type verifiedPnP struct {
	v *verifier
	p ndiscore.DevicePnPNotifier
}

func (p verifiedPnP) DevicePnP(ev ndiscore.DevicePnPEvent) {
	p.v.mu.Lock()
	state, halting := p.v.state, p.v.halting
	p.v.mu.Unlock()
	if halting || state == ndiscore.StateHalted || state == ndiscore.StateInitializing {
		p.v.report("core: DevicePnP while %s", p.v.phase(state, halting))
	}
	p.p.DevicePnP(ev)
}

type verifiedShutdown struct {
	v *verifier
	d ndiscore.Shutdowner
}

func (s verifiedShutdown) Shutdown() {
	s.v.mu.Lock()
	twice := s.v.shut
	s.v.shut = true
	s.v.mu.Unlock()
	if twice {
		s.v.report("core: a second Shutdown")
	}
	s.d.Shutdown()
}

// --- The adapter calls the core ---------------------------------------------------

func (h *verifiedHandle) NewWorker(queue int) *ndiscore.Worker {
	if h.dead.Load() {
		h.v.report("NewWorker after Halt")
	}
	w := h.AdapterHandle.NewWorker(queue)
	h.v.mu.Lock()
	h.v.workers = append(h.v.workers, w)
	h.v.mu.Unlock()
	return w
}

func (h *verifiedHandle) IndicateReceive(b *ndiscore.Batch) {
	v := h.v
	v.mu.Lock()
	state := v.state
	v.indicating++
	known := slices.Contains(v.workers, b.Worker)
	if !b.Borrowed {
		if _, twice := v.lent[b]; twice {
			v.mu.Unlock()
			v.report("IndicateReceive of a kept batch that is still out")
			v.mu.Lock()
		}
		v.lent[b] = nil
	}
	v.mu.Unlock()
	switch {
	case h.dead.Load():
		v.report("IndicateReceive after Halt")
	case state != ndiscore.StateRestarting && state != ndiscore.StateRunning && state != ndiscore.StatePausing:
		v.report("IndicateReceive while %s", state)
	}
	if !known {
		v.report("IndicateReceive on a worker that is not the adapter's")
	} else if b.Worker.Closed() {
		v.report("IndicateReceive on worker %s, which is closed", b.Worker.Name())
	}
	if n := len(b.Frames); n == 0 || n > ndiscore.BatchFrames {
		v.report("IndicateReceive of %d frames", n)
	}
	borrowed, frames := b.Borrowed, slices.Clone(b.Frames)
	h.AdapterHandle.IndicateReceive(b)
	if borrowed && !slices.Equal(frames, b.Frames) {
		v.report("core: the list of frames changed while it was lent")
	}
	v.mu.Lock()
	v.indicating--
	v.mu.Unlock()
}

func (h *verifiedHandle) SendComplete(b *ndiscore.Batch) {
	v := h.v
	v.mu.Lock()
	before, known := v.sends[b]
	delete(v.sends, b)
	v.mu.Unlock()
	switch {
	case b.Borrowed:
		v.report("SendComplete of a borrowed batch")
	case !known:
		v.report("SendComplete of a batch that is not its own, or a second time")
	case v.hash(b) != before:
		v.report("frames changed between Send and SendComplete")
	}
	if h.dead.Load() {
		v.report("SendComplete after Halt")
	}
	h.AdapterHandle.SendComplete(b)
}

func (h *verifiedHandle) IndicateStatus(s ndiscore.Status) {
	if h.dead.Load() {
		h.v.report("IndicateStatus after Halt")
	}
	h.AdapterHandle.IndicateStatus(s)
}

func (h *verifiedHandle) Dropped(w *ndiscore.Worker, r ndiscore.DropReason, n uint64) {
	if h.dead.Load() {
		h.v.report("Dropped after Halt")
	}
	if r == ndiscore.DropNone {
		h.v.report("Dropped without a reason")
	}
	h.AdapterHandle.Dropped(w, r, n)
}
