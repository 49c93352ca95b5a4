package ndistest

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Reporter is where breaches of the contract go: a testing.TB.
type Reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

// Verifier stands between the core and an adapter, and reports what either does
// against the contract: calls in a wrong state, or in its sleep; indications
// outside Restart … Pause; batches completed twice or never; workers left open;
// frames changed while they were lent; and so on. The core sees those optional
// interfaces that the adapter has, and no others (ndiscore.Interposer).
func Verifier(r Reporter, a ndiscore.Adapter) ndiscore.Adapter {
	return &verifier{r: r, inner: a, name: "adapter", sends: map[*ndiscore.Batch]uint64{}, lent: map[*ndiscore.Batch][]*ndiscore.Frame{}, seed: maphash.MakeSeed()}
}

// VerifiedDriver is d with each of its adapters behind a Verifier. It reports
// too when one is removed that was not made, or twice, and when the driver is
// unloaded while it has adapters.
func VerifiedDriver(r Reporter, d ndiscore.Driver) ndiscore.Driver {
	var mu sync.Mutex // guards alive
	alive := map[ndiscore.Adapter]bool{}
	real := d
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := real.New(name, options)
		if err != nil {
			return nil, err
		}
		v := Verifier(r, a)
		mu.Lock()
		alive[v] = true
		mu.Unlock()
		return v, nil
	}
	d.Remove = func(a ndiscore.Adapter) {
		r.Helper()
		mu.Lock()
		known := alive[a]
		delete(alive, a)
		mu.Unlock()
		v, ours := a.(*verifier)
		if !known || !ours {
			r.Errorf("contract: driver %s: core: Remove of an adapter that it has not", d.Name)
			return
		}
		if v.now() != ndiscore.StateHalted {
			v.report("core: Remove while %s", v.now())
		}
		if real.Remove != nil {
			real.Remove(v.inner)
		}
	}
	if real.Unload != nil {
		d.Unload = func(h *ndiscore.DriverHandle) {
			r.Helper()
			mu.Lock()
			n := len(alive)
			mu.Unlock()
			if n > 0 {
				r.Errorf("contract: driver %s: core: Unload while it has %d adapters", d.Name, n)
			}
			real.Unload(h)
		}
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
	asleep     bool   // set by OIDPnPSetPower
	calling    string // the life-cycle call in progress
	told       func(ndiscore.AdapterHandle)
}

var (
	_ ndiscore.Interposer        = (*verifier)(nil)
	_ ndiscore.LowerDevice       = (*verifier)(nil)
	_ ndiscore.DevicePnPNotifier = (*verifier)(nil)
	_ ndiscore.Shutdowner        = (*verifier)(nil)
	_ ndiscore.Statser           = (*verifier)(nil)
	_ ndiscore.HangChecker       = (*verifier)(nil)
	_ ndiscore.SendCanceler      = (*verifier)(nil)
)

// able is an optional interface of a, or of what a stands around. It is there:
// the core asks only for what it found.
func able[T any](a ndiscore.Adapter) T {
	if t, ok := a.(T); ok {
		return t
	}
	return able[T](a.(ndiscore.Interposer).Inner())
}

// Inner implements ndiscore.Interposer.
func (v *verifier) Inner() ndiscore.Adapter { return v.inner }

func (v *verifier) now() ndiscore.AdapterState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
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
	state, shut, halting, calling := v.state, v.shut, v.halting, v.calling
	v.state, v.calling = to, call
	v.mu.Unlock()
	if shut {
		v.report("core: %s after Shutdown", call)
	}
	if calling != "" {
		v.report("core: %s while %s is in progress", call, calling)
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

// become ends a call that enter began.
func (v *verifier) become(s ndiscore.AdapterState) {
	v.mu.Lock()
	v.state, v.calling = s, ""
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
	v.asleep = false
	v.mu.Unlock()
	v.become(ndiscore.StatePaused)
	return at, nil
}

func (v *verifier) Restart(ctx context.Context) error {
	v.enter("Restart", ndiscore.StateRestarting, ndiscore.StatePaused)
	v.awake("Restart")
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
	v.state, v.calling = ndiscore.StatePaused, ""
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
	v.halting, v.state, v.calling, v.asleep = false, ndiscore.StateHalted, "", false
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
	v.awake("Send")
	if state := v.now(); state != ndiscore.StateRunning {
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
	state, halting, shut, asleep := v.state, v.halting, v.shut, v.asleep
	v.requesting++
	n := v.requesting
	v.mu.Unlock()
	power, isPower := req.Data.(ndiscore.PowerState)
	isPower = isPower && req.ID == ndiscore.OIDPnPSetPower && req.Kind == ndiscore.OIDSet
	switch {
	case asleep && !isPower:
		v.report("core: Request %s while it sleeps", req.ID)
	case isPower && asleep == (power == ndiscore.PowerD3):
		v.report("core: set power %s, which it has", power)
	}
	if halting || shut || state == ndiscore.StateHalted || state == ndiscore.StateInitializing {
		v.report("core: Request while %s", v.phase(state, halting))
	}
	if n > 1 {
		v.report("core: %d Requests at once", n)
	}
	err := v.inner.Request(ctx, req)
	v.mu.Lock()
	v.requesting--
	if isPower && err == nil {
		v.asleep = power == ndiscore.PowerD3
	}
	v.mu.Unlock()
	return err
}

// awake reports a call that must not come while the device sleeps.
func (v *verifier) awake(call string) {
	v.mu.Lock()
	asleep := v.asleep
	v.mu.Unlock()
	if asleep {
		v.report("core: %s while it sleeps", call)
	}
}

// Reset comes beside no other life-cycle call; what was sent before it has been
// completed when it returns (Z-4).
func (v *verifier) Reset(ctx context.Context) (bool, error) {
	v.awake("Reset")
	state := v.now()
	v.enter("Reset", state, ndiscore.StatePaused, ndiscore.StateRunning)
	v.mu.Lock()
	before := maps.Clone(v.sends)
	v.mu.Unlock()
	addressing, err := able[ndiscore.Resetter](v.inner).Reset(ctx)
	v.mu.Lock()
	left := 0
	for b := range before {
		if _, still := v.sends[b]; still {
			left++
		}
	}
	v.calling = ""
	v.mu.Unlock()
	if left > 0 {
		v.report("Reset returned while %d accepted batches were not completed", left)
	}
	if err != nil && !errors.Is(err, ndiscore.ErrSoftErrors) && !errors.Is(err, ndiscore.ErrHardErrors) {
		v.report("Reset: neither soft nor hard errors: %v", err)
	}
	return addressing, err
}

// promptly is how long a call may take that is to return at once.
const promptly = 5 * time.Second

func (v *verifier) CheckForHang() bool {
	v.awake("CheckForHang")
	if state := v.now(); state != ndiscore.StatePaused && state != ndiscore.StateRunning {
		v.report("core: CheckForHang while %s", state)
	}
	began := time.Now()
	hung := able[ndiscore.HangChecker](v.inner).CheckForHang()
	if took := time.Since(began); took > promptly {
		v.report("CheckForHang took %s", took)
	}
	return hung
}

func (v *verifier) CancelSend(id uint64) {
	if state := v.now(); state == ndiscore.StateHalted || state == ndiscore.StateInitializing {
		v.report("core: CancelSend while %s", state)
	}
	able[ndiscore.SendCanceler](v.inner).CancelSend(id)
}

func (v *verifier) DeviceStats() map[string]uint64 {
	return able[ndiscore.Statser](v.inner).DeviceStats()
}

func (v *verifier) StartDevice(ctx context.Context) error {
	v.enter("StartDevice", ndiscore.StateHalted, ndiscore.StateHalted)
	err := able[ndiscore.LowerDevice](v.inner).StartDevice(ctx)
	v.mu.Lock()
	twice := v.device && err == nil
	v.device = v.device || err == nil
	v.mu.Unlock()
	v.become(ndiscore.StateHalted)
	if twice {
		v.report("core: StartDevice of a started device")
	}
	return err
}

func (v *verifier) RemoveDevice(ctx context.Context) {
	v.enter("RemoveDevice", ndiscore.StateHalted, ndiscore.StateHalted)
	v.mu.Lock()
	had := v.device
	v.device = false
	v.mu.Unlock()
	if !had {
		v.report("core: RemoveDevice of a device that was not started")
	}
	able[ndiscore.LowerDevice](v.inner).RemoveDevice(ctx)
	v.become(ndiscore.StateHalted)
}

func (v *verifier) AwaitDevice(ctx context.Context) error {
	return able[ndiscore.LowerDevice](v.inner).AwaitDevice(ctx)
}

func (v *verifier) DevicePnP(ev ndiscore.DevicePnPEvent) {
	v.mu.Lock()
	state, halting := v.state, v.halting
	v.mu.Unlock()
	if halting || state == ndiscore.StateHalted || state == ndiscore.StateInitializing {
		v.report("core: DevicePnP while %s", v.phase(state, halting))
	}
	able[ndiscore.DevicePnPNotifier](v.inner).DevicePnP(ev)
}

func (v *verifier) Shutdown() {
	v.mu.Lock()
	twice := v.shut
	v.shut = true
	v.mu.Unlock()
	if twice {
		v.report("core: a second Shutdown")
	}
	able[ndiscore.Shutdowner](v.inner).Shutdown()
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
