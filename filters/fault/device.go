package fault

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Interpose is d with each of its adapters behind an interposer through which j
// can make the device fail. As long as no fault is injected, everything passes.
func Interpose(d ndiscore.Driver, j *Injector) ndiscore.Driver {
	makeOne, removeOne := d.New, d.Remove
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := makeOne(name, options)
		if err != nil {
			return nil, err
		}
		i := &device{inner: a, name: name, j: j}
		j.addDevice(i)
		return i, nil
	}
	d.Remove = func(a ndiscore.Adapter) {
		if i, ok := a.(*device); ok {
			j.removeDevice(i)
			a = i.inner
		}
		if removeOne != nil {
			removeOne(a)
		}
	}
	return d
}

// device stands between the core and an adapter.
type device struct {
	inner ndiscore.Adapter
	name  string
	j     *Injector

	refuse atomic.Pointer[refusal] // why frames do not pass; nil: they do

	mu      sync.Mutex         // guards all below; not held across a call
	handle  *deviceHandle      // from Initialize to Halt
	calls   sync.WaitGroup     // of ours into handle; begun only with mu held
	link    ndiscore.LinkState // as the adapter says
	version uint64             // of link and of the fault that hides it
	faults  map[string]*deviceFault
	away    chan struct{} // the device has been taken away; closed: it may come back
}

// refusal is what becomes of every frame, and the fault that counts it.
type refusal struct {
	reason ndiscore.DropReason
	effect *effect
}

// deviceFault is one fault that is on.
type deviceFault struct {
	effect
	kind   string
	why    string
	v      values
	failed int64          // fail-init: how often
	timer  ndiscore.Timer // reset-storm: the next time
	heal   func()         // hang: ends the lease; does not block
}

var (
	_ ndiscore.Adapter     = (*device)(nil)
	_ ndiscore.Interposer  = (*device)(nil)
	_ ndiscore.LowerDevice = (*device)(nil)
	_ ndiscore.HangChecker = (*device)(nil)
)

// Inner implements ndiscore.Interposer: the optional methods of a device below
// count only where the adapter has them too, and its others stay visible.
func (d *device) Inner() ndiscore.Adapter { return d.inner }

// offers looks for an optional interface of a as the core does
// (ndiscore.Interposer): what stands around another adapter has what that has.
func offers[T any](a ndiscore.Adapter) (T, bool) {
	t, ok := a.(T)
	if i, around := a.(ndiscore.Interposer); around {
		inner, has := offers[T](i.Inner())
		if !ok {
			return inner, has
		}
		ok = has
	}
	return t, ok
}

// --- The core calls the adapter -------------------------------------------------

func (d *device) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	if err := d.failInit(); err != nil {
		return ndiscore.Attributes{}, err
	}
	dh := &deviceHandle{AdapterHandle: h, d: d}
	d.mu.Lock()
	d.link = ndiscore.LinkState{}
	d.mu.Unlock()
	attrs, err := d.inner.Initialize(ctx, dh)
	if err != nil {
		return attrs, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == (ndiscore.LinkState{}) {
		d.link = attrs.Link // otherwise what was indicated meanwhile is newer
	}
	d.handle = dh
	attrs.Link = d.shownLocked()
	return attrs, nil
}

// failInit is the error that an injected failure makes of Initialize.
func (d *device) failInit() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := d.faults[KindFailInit]
	if x == nil {
		return nil
	}
	if times := int64(x.v.num("times")); times > 0 && x.failed >= times {
		return nil
	}
	x.failed++
	x.calls.Add(1)
	return fmt.Errorf("%w: %s", ndiscore.ErrFailure, x.why)
}

func (d *device) Restart(ctx context.Context) error { return d.inner.Restart(ctx) }

func (d *device) Pause(ctx context.Context) { d.inner.Pause(ctx) }

func (d *device) Halt(ctx context.Context, why ndiscore.HaltAction) {
	d.mu.Lock()
	d.handle = nil
	d.mu.Unlock()
	d.calls.Wait() // the handle is good until we return
	d.inner.Halt(ctx, why)
}

func (d *device) Send(b *ndiscore.Batch) {
	if r := d.refuse.Load(); r != nil {
		d.swallow(b, r)
		return
	}
	d.inner.Send(b)
}

// swallow is what becomes of sends that do not pass.
func (d *device) swallow(b *ndiscore.Batch, r *refusal) {
	r.count(TX, b)
	for i := range b.Frames {
		b.Status[i] = r.reason
	}
	if b.Borrowed {
		return
	}
	d.mu.Lock()
	h := d.handle
	d.mu.Unlock()
	if h != nil { // always: sends come only between Restart and Pause
		h.SendComplete(b)
	}
}

// count notes frames that did not pass.
func (r *refusal) count(dir Direction, b *ndiscore.Batch) {
	r.effect.count(dir, b, ^uint64(0)>>(ndiscore.BatchFrames-len(b.Frames)))
}

func (d *device) Return(b *ndiscore.Batch) { d.inner.Return(b) }

func (d *device) Request(ctx context.Context, req *ndiscore.OIDRequest) error {
	if err := d.inner.Request(ctx, req); err != nil {
		return err
	}
	if req.ID == ndiscore.OIDGenLinkState && req.Kind == ndiscore.OIDQuery {
		d.mu.Lock()
		if d.faults[KindLinkDown] != nil {
			req.Data = d.shownLocked()
		}
		d.mu.Unlock()
	}
	return nil
}

// StartDevice implements ndiscore.LowerDevice. A device that was taken away is
// absent until its fault ends.
func (d *device) StartDevice(ctx context.Context) error {
	d.mu.Lock()
	if d.away != nil {
		select {
		case <-d.away:
			d.away = nil
		default:
			d.mu.Unlock()
			return fmt.Errorf("%s: %w: an injected surprise removal lasts", d.name, ndiscore.ErrDeviceAbsent)
		}
	}
	d.mu.Unlock()
	if l, ok := offers[ndiscore.LowerDevice](d.inner); ok {
		return l.StartDevice(ctx)
	}
	return nil
}

// RemoveDevice implements ndiscore.LowerDevice.
func (d *device) RemoveDevice(ctx context.Context) {
	if l, ok := offers[ndiscore.LowerDevice](d.inner); ok {
		l.RemoveDevice(ctx)
	}
}

// AwaitDevice implements ndiscore.LowerDevice. A device that was taken away
// comes back with the end of the fault, without anybody's making it anew.
func (d *device) AwaitDevice(ctx context.Context) error {
	d.mu.Lock()
	away := d.away
	d.mu.Unlock()
	if away != nil {
		select {
		case <-away:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l, ok := offers[ndiscore.LowerDevice](d.inner); ok {
		return l.AwaitDevice(ctx)
	}
	return nil
}

// CheckForHang implements ndiscore.HangChecker.
func (d *device) CheckForHang() bool {
	d.mu.Lock()
	hangs := d.faults[KindHang] != nil
	d.mu.Unlock()
	if hangs {
		return true
	}
	c, ok := offers[ndiscore.HangChecker](d.inner)
	return ok && c.CheckForHang()
}

// Reset implements ndiscore.Resetter.
func (d *device) Reset(ctx context.Context) (addressing bool, err error) {
	r, ok := offers[ndiscore.Resetter](d.inner)
	if !ok {
		return false, fmt.Errorf("%s: reset: %w", d.name, ndiscore.ErrNotSupported)
	}
	if addressing, err = r.Reset(ctx); err != nil {
		return addressing, err
	}
	d.mu.Lock()
	hang, storm := d.faults[KindHang], d.faults[KindResetStorm]
	d.mu.Unlock()
	if hang != nil && hang.v.flag("heals") {
		d.finish(hang, false)
		hang.heal()
	}
	if storm != nil {
		switch storm.v.num("result") {
		case 1:
			err = fmt.Errorf("%w: %s", ndiscore.ErrSoftErrors, storm.why)
		case 2:
			err = fmt.Errorf("%w: %s", ndiscore.ErrHardErrors, storm.why)
		}
	}
	return addressing, err
}

// --- The adapter calls the core -----------------------------------------------------

// deviceHandle is the core as the adapter sees it through the interposer.
type deviceHandle struct {
	ndiscore.AdapterHandle
	d *device
}

// IndicateReceive implements ndiscore.AdapterHandle.
func (h *deviceHandle) IndicateReceive(b *ndiscore.Batch) {
	r := h.d.refuse.Load()
	if r == nil {
		h.AdapterHandle.IndicateReceive(b)
		return
	}
	r.count(RX, b)
	h.Dropped(b.Worker, r.reason, uint64(len(b.Frames)))
	if !b.Borrowed {
		h.d.inner.Return(b)
	}
}

// IndicateStatus implements ndiscore.AdapterHandle.
func (h *deviceHandle) IndicateStatus(s ndiscore.Status) {
	l, ok := s.(ndiscore.LinkState)
	if !ok {
		h.AdapterHandle.IndicateStatus(s)
		return
	}
	h.d.mu.Lock()
	h.d.link = l
	h.d.version++
	h.d.mu.Unlock()
	h.d.showLink(h)
}

// shownLocked is the link as the core is to see it.
func (d *device) shownLocked() ndiscore.LinkState {
	l := d.link
	if x := d.faults[KindLinkDown]; x != nil {
		l.Media, l.Why = ndiscore.MediaDisconnected, x.why
	}
	return l
}

// showLink tells the core of the link. When several do so at once, the newest
// state is told last.
func (d *device) showLink(h *deviceHandle) {
	for {
		d.mu.Lock()
		l, version := d.shownLocked(), d.version
		d.mu.Unlock()
		h.AdapterHandle.IndicateStatus(l)
		d.mu.Lock()
		same := d.version == version
		d.mu.Unlock()
		if same {
			return
		}
	}
}

// with calls f with the core's handle, if the adapter is up.
func (d *device) with(f func(h *deviceHandle)) bool {
	d.mu.Lock()
	h := d.handle
	if h != nil {
		d.calls.Add(1)
	}
	d.mu.Unlock()
	if h == nil {
		return false
	}
	defer d.calls.Done()
	f(h)
	return true
}

// --- Faults ---------------------------------------------------------------------------

// begin turns a fault on; why tells the core, heal ends its lease.
func (d *device) begin(kind string, v values, why string, heal func()) (*deviceFault, error) {
	x := &deviceFault{kind: kind, why: why, v: v, heal: heal}
	if kind == KindResetStorm {
		if _, ok := offers[ndiscore.Resetter](d.inner); !ok {
			return nil, fmt.Errorf("%w: a device of this kind cannot be reset", ndiscore.ErrNotSupported)
		}
	}
	d.mu.Lock()
	if d.faults[kind] != nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: it has that fault already", ndiscore.ErrExists)
	}
	if kind == KindSurprise {
		if d.handle == nil {
			d.mu.Unlock()
			return nil, fmt.Errorf("%w: it is not up, so nobody would be surprised", ndiscore.ErrInvalidState)
		}
		d.away = make(chan struct{})
	}
	if d.faults == nil {
		d.faults = map[string]*deviceFault{}
	}
	d.faults[kind] = x
	d.version++
	d.refuseLocked()
	d.mu.Unlock()

	switch kind {
	case KindLinkDown:
		d.with(d.showLink)
	case KindSurprise:
		d.with(func(h *deviceHandle) {
			x.calls.Add(1)
			h.SurpriseRemove(why)
		})
	case KindResetStorm:
		d.storm(x)
	}
	return x, nil
}

// finish turns a fault off; a second time does nothing. Before the last halt the
// adapter hears nothing of it, and a device that was taken away stays away.
func (d *device) finish(x *deviceFault, last bool) {
	d.mu.Lock()
	if d.faults[x.kind] != x {
		d.mu.Unlock()
		return
	}
	delete(d.faults, x.kind)
	d.version++
	d.refuseLocked()
	if x.timer != nil {
		x.timer.Stop()
	}
	if x.kind == KindSurprise && d.away != nil && !last {
		close(d.away)
	}
	d.mu.Unlock()
	if x.kind == KindLinkDown && !last {
		d.with(d.showLink)
	}
}

// refuseLocked says what becomes of frames.
func (d *device) refuseLocked() {
	var r *refusal
	if x := d.faults[KindHang]; x != nil {
		r = &refusal{ndiscore.DropFaultHang, &x.effect}
	} else if x := d.faults[KindLinkDown]; x != nil {
		r = &refusal{ndiscore.DropFaultLinkDown, &x.effect}
	}
	d.refuse.Store(r)
}

// storm asks for a reset, and sets the time of the next.
func (d *device) storm(x *deviceFault) {
	d.with(func(h *deviceHandle) {
		x.calls.Add(1)
		h.Reset(x.why)
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.faults[x.kind] == x {
		x.timer = d.j.clock.AfterFunc(x.v.duration("every"), func() { d.storm(x) })
	}
}
