package ndistest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// AdapterOptions says what a fake adapter is like. The zero value is a NIC with
// a link, an MTU of 1500 and no offloads.
type AdapterOptions struct {
	Trace    *Trace
	MAC      ndiscore.MAC // zero: made from the name
	MTU      int          // 0: 1500
	Transmit ndiscore.Capabilities
	Receive  ndiscore.Capabilities
	Down     bool // no link at first
	// KeepReceives: what it indicates is not borrowed.
	KeepReceives bool
	// KeepSends: batches that are not borrowed stay until CompleteSends, or
	// CancelSend, or a reset.
	KeepSends bool
	// Forget: sends are counted, not recorded.
	Forget bool
	// Device: the adapter is a LowerDevice and a DevicePnPNotifier too.
	Device bool
	// Resets: it is a Resetter; Hangs: a HangChecker too, asked every HangCheck.
	Resets, Hangs bool
	HangCheck     time.Duration
	// PowerAware: OIDPnPSetPower puts it to sleep; NoPause: without a pause.
	PowerAware, NoPause bool
	// MaxMulticast is the length of its multicast list.
	MaxMulticast int
	// TraceRequests: the trace has its requests too: "M.Set(802_3_MULTICAST_LIST)".
	TraceRequests bool
}

// queueFrames bounds what waits to be received by a fake adapter.
const queueFrames = 1024

// Adapter is a fake miniport. Between Restart and Pause it has one receive
// goroutine, on which Inject and Do run.
type Adapter struct {
	Script
	name string
	opt  AdapterOptions

	handle atomic.Pointer[ndiscore.AdapterHandle]
	arrive chan []byte // frames off the wire
	jobs   chan job
	refuse atomic.Uint32 // DropReason for everything sent
	filter atomic.Uint32
	count  atomic.Uint64 // frames sent
	out    func([]byte) ndiscore.DropReason
	absent chan struct{} // closed while the device can be started
	hung   atomic.Bool   // CheckForHang says so, until a reset
	forget atomic.Bool   // a reset loses the settings
	polls  atomic.Uint64

	mu       sync.Mutex // guards all below
	stop     chan struct{}
	running  chan struct{} // closed when the receive goroutine has ended
	sent     [][]byte
	kept     []*ndiscore.Batch // sends not completed
	open     int               // of them, and of those that are just being completed
	quiet    chan struct{}     // closed when open is 0
	lent     map[*ndiscore.Batch]bool
	returned int
	link     ndiscore.LinkState
	groups   []ndiscore.MAC // the multicast list that the core has set
	power    ndiscore.PowerState
	present  bool
	live     bool // between Initialize and Halt
}

// job is something to be done on the receive goroutine.
type job struct {
	f    func(w *ndiscore.Worker)
	done chan struct{}
}

// NewAdapter makes a fake adapter.
func NewAdapter(name string, o AdapterOptions) *Adapter {
	if o.MAC.IsZero() {
		h := fnv.New32a()
		h.Write([]byte(name))
		s := h.Sum32()
		o.MAC = ndiscore.MAC{2, 0, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)}
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	a := &Adapter{
		name: name, opt: o, arrive: make(chan []byte, queueFrames), jobs: make(chan job),
		lent: map[*ndiscore.Batch]bool{}, present: true, absent: make(chan struct{}),
	}
	close(a.absent)
	a.link = ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "fake"}
	if o.Down {
		a.link.Media = ndiscore.MediaDisconnected
	}
	return a
}

// Driver is a driver whose adapters are those given, by name: an adapter that
// is removed and added again is the same fake.
func Driver(name string, adapters ...ndiscore.Adapter) ndiscore.Driver {
	return ndiscore.Driver{
		Name: name, Version: ndiscore.ContractVersion,
		NewOptions: func() any { return new(struct{}) },
		New: func(n string, _ any) (ndiscore.Adapter, error) {
			for _, a := range adapters {
				if f, ok := a.(interface{ Name() string }); ok && f.Name() == n {
					return a, nil
				}
			}
			return nil, fmt.Errorf("driver %s: adapter %s: %w", name, n, ndiscore.ErrNotFound)
		},
	}
}

// Contract is the adapter as the core is to see it, with the optional
// interfaces that its options ask for.
func (a *Adapter) Contract() ndiscore.Adapter {
	device, reset, hang := deviceAdapter{a}, resetAdapter{a}, hangAdapter{resetAdapter{a}}
	switch {
	case a.opt.Device && a.opt.Hangs:
		return struct {
			*Adapter
			deviceAdapter
			hangAdapter
		}{a, device, hang}
	case a.opt.Device && a.opt.Resets:
		return struct {
			*Adapter
			deviceAdapter
			resetAdapter
		}{a, device, reset}
	case a.opt.Device:
		return struct {
			*Adapter
			deviceAdapter
		}{a, device}
	case a.opt.Hangs:
		return struct {
			*Adapter
			hangAdapter
		}{a, hang}
	case a.opt.Resets:
		return struct {
			*Adapter
			resetAdapter
		}{a, reset}
	}
	return a
}

type (
	deviceAdapter struct{ a *Adapter }
	resetAdapter  struct{ a *Adapter }
	hangAdapter   struct{ resetAdapter }
)

var (
	_ ndiscore.Adapter           = (*Adapter)(nil)
	_ ndiscore.SendCanceler      = (*Adapter)(nil)
	_ ndiscore.LowerDevice       = deviceAdapter{}
	_ ndiscore.DevicePnPNotifier = deviceAdapter{}
	_ ndiscore.Resetter          = resetAdapter{}
	_ ndiscore.HangChecker       = hangAdapter{}
)

// Name is the adapter's name.
func (a *Adapter) Name() string { return a.name }

// MAC is its address.
func (a *Adapter) MAC() ndiscore.MAC { return a.opt.MAC }

// Handle is the core as the adapter sees it, nil before the first Initialize.
// It stays after Halt, so that a test can misuse it.
func (a *Adapter) Handle() ndiscore.AdapterHandle {
	if h := a.handle.Load(); h != nil {
		return *h
	}
	return nil
}

// PacketFilter is what the core has last set.
func (a *Adapter) PacketFilter() ndiscore.PacketFilter {
	return ndiscore.PacketFilter(a.filter.Load())
}

// --- What the core calls -----------------------------------------------------

func (a *Adapter) play(call, token string) error {
	a.opt.Trace.Add(a.name + "." + token)
	return a.call(call)
}

// Initialize implements ndiscore.Adapter.
func (a *Adapter) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	a.handle.Store(&h)
	if err := a.play("Init", "Init"); err != nil {
		return ndiscore.Attributes{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live, a.power, a.groups = true, ndiscore.PowerD0, nil
	a.filter.Store(0)
	a.hung.Store(false)
	return ndiscore.Attributes{
		MAC: a.opt.MAC, MTU: a.opt.MTU, Link: a.link, Queues: 1,
		Transmit: a.opt.Transmit, Receive: a.opt.Receive, Device: a.name,
		HangCheck: a.opt.HangCheck, PowerAware: a.opt.PowerAware, NoPauseOnSuspend: a.opt.NoPause, MaxMulticast: a.opt.MaxMulticast,
	}, nil
}

// Restart implements ndiscore.Adapter.
func (a *Adapter) Restart(context.Context) error {
	if err := a.play("Restart", "Restart"); err != nil {
		return err
	}
	w := a.Handle().NewWorker(0)
	a.mu.Lock()
	defer a.mu.Unlock()
	stop, ended := make(chan struct{}), make(chan struct{})
	a.stop, a.running = stop, ended
	go func() { // the receive goroutine: ended by Pause, waits for frames and jobs
		defer close(ended)
		defer w.Close()
		a.receive(w, stop)
	}()
	return nil
}

// Pause implements ndiscore.Adapter.
func (a *Adapter) Pause(ctx context.Context) {
	_ = a.play("Pause", "Pause")
	a.Abandon()
	a.mu.Lock()
	quiet := a.quiet
	a.mu.Unlock()
	if quiet != nil {
		select {
		case <-quiet:
		case <-ctx.Done():
		}
	}
}

// Abandon ends the receive goroutine, as Pause does: for a test in which the
// core no longer calls Pause.
func (a *Adapter) Abandon() {
	a.mu.Lock()
	stop, ended := a.stop, a.running
	a.stop = nil
	a.mu.Unlock()
	if stop != nil {
		close(stop)
	}
	if ended != nil {
		<-ended
	}
}

// Halt implements ndiscore.Adapter.
func (a *Adapter) Halt(_ context.Context, why ndiscore.HaltAction) {
	_ = a.play("Halt", "Halt("+why.String()+")")
	a.mu.Lock()
	a.live = false
	a.mu.Unlock()
	for {
		select {
		case <-a.arrive:
		default:
			return
		}
	}
}

// Send implements ndiscore.Adapter.
func (a *Adapter) Send(b *ndiscore.Batch) {
	refused := ndiscore.DropReason(a.refuse.Load())
	for i, f := range b.Frames {
		b.Status[i] = refused
		if refused != ndiscore.DropNone {
			continue
		}
		if a.out != nil {
			b.Status[i] = a.out(f.Bytes(nil))
			continue
		}
		a.count.Add(1)
		if !a.opt.Forget {
			c := f.Bytes(nil)
			a.mu.Lock()
			a.sent = append(a.sent, c)
			a.mu.Unlock()
		}
	}
	switch {
	case b.Borrowed:
	case a.opt.KeepSends:
		a.mu.Lock()
		if a.open == 0 {
			a.quiet = make(chan struct{})
		}
		a.open++
		a.kept = append(a.kept, b)
		a.mu.Unlock()
	default:
		a.Handle().SendComplete(b)
	}
}

// Return implements ndiscore.Adapter.
func (a *Adapter) Return(b *ndiscore.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.lent, b)
	a.returned++
}

// CancelSend implements ndiscore.SendCanceler.
func (a *Adapter) CancelSend(id uint64) {
	a.complete(ndiscore.DropAborted, func(b *ndiscore.Batch) bool { return b.CancelID == id })
}

// Request implements ndiscore.Adapter. The Script knows a request as "Request",
// and setting the power as "SetPower". One that is held ends with its context.
func (a *Adapter) Request(ctx context.Context, req *ndiscore.OIDRequest) error {
	if power, ok := req.Data.(ndiscore.PowerState); ok && req.ID == ndiscore.OIDPnPSetPower {
		if err := a.play("SetPower", "SetPower("+power.String()+")"); err != nil {
			return err
		}
		a.mu.Lock()
		a.power = power
		a.mu.Unlock()
		return nil
	}
	if a.opt.TraceRequests {
		verb := "Query"
		if req.Kind == ndiscore.OIDSet {
			verb = "Set"
		}
		a.opt.Trace.Add(a.name + "." + verb + "(" + req.ID.String() + ")")
	}
	if err := a.callUntil(ctx, "Request"); err != nil {
		return err
	}
	switch {
	case req.ID == ndiscore.OID8023MulticastList && req.Kind == ndiscore.OIDSet:
		a.mu.Lock()
		a.groups = slices.Clone(req.Data.([]ndiscore.MAC))
		a.mu.Unlock()
		return nil
	case req.ID == ndiscore.OIDGenCurrentPacketFilter && req.Kind == ndiscore.OIDSet:
		a.filter.Store(uint32(req.Data.(ndiscore.PacketFilter)))
		return nil
	case req.ID == ndiscore.OIDGenLinkState && req.Kind == ndiscore.OIDQuery:
		a.mu.Lock()
		req.Data = a.link
		a.mu.Unlock()
		return nil
	case req.ID == ndiscore.OIDGenVLANID && req.Kind == ndiscore.OIDQuery:
		req.Data = uint32(0) // no VLAN
		return nil
	case req.ID >= ndiscore.OIDGenTransmitBufferSpace && req.ID <= ndiscore.OIDGenReceiveBlockSize && req.Kind == ndiscore.OIDQuery:
		req.Data = uint32(1 << 20)
		return nil
	}
	return ndiscore.ErrInvalidOID
}

// StartDevice implements ndiscore.LowerDevice.
func (d deviceAdapter) StartDevice(context.Context) error {
	a := d.a
	if err := a.play("StartDevice", "StartDevice"); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.present {
		return fmt.Errorf("%s: %w", a.name, ndiscore.ErrDeviceAbsent)
	}
	return nil
}

// RemoveDevice implements ndiscore.LowerDevice.
func (d deviceAdapter) RemoveDevice(context.Context) { _ = d.a.play("RemoveDevice", "RemoveDevice") }

// AwaitDevice implements ndiscore.LowerDevice.
func (d deviceAdapter) AwaitDevice(ctx context.Context) error {
	a := d.a
	a.opt.Trace.Add(a.name + ".AwaitDevice")
	a.mu.Lock()
	absent := a.absent
	a.mu.Unlock()
	select {
	case <-absent:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// DevicePnP implements ndiscore.DevicePnPNotifier.
func (d deviceAdapter) DevicePnP(ndiscore.DevicePnPEvent) {
	_ = d.a.play("PnP", "PnP(SurpriseRemoved)")
}

// Reset implements ndiscore.Resetter: kept sends are completed, and with
// ForgetOnReset the settings are lost.
func (r resetAdapter) Reset(context.Context) (addressing bool, err error) {
	a := r.a
	err = a.play("Reset", "Reset")
	a.complete(ndiscore.DropReset, func(*ndiscore.Batch) bool { return true })
	if err != nil && !errors.Is(err, ndiscore.ErrSoftErrors) {
		return false, err
	}
	a.hung.Store(false)
	if !a.forget.Load() {
		return false, err
	}
	a.filter.Store(0)
	a.mu.Lock()
	a.groups = nil
	a.mu.Unlock()
	return true, err
}

// CheckForHang implements ndiscore.HangChecker.
func (h hangAdapter) CheckForHang() bool {
	h.a.polls.Add(1)
	return h.a.hung.Load()
}

// --- The receive goroutine --------------------------------------------------------

func (a *Adapter) receive(w *ndiscore.Worker, stop <-chan struct{}) {
	rx := newReceiver(a, w)
	for {
		select { // a pause comes before anything that waits
		case <-stop:
			return
		default:
		}
		select {
		case <-stop:
			return
		case j := <-a.jobs:
			j.f(w)
			close(j.done)
		case f := <-a.arrive:
			frames := [][]byte{f}
		more:
			for len(frames) < ndiscore.BatchFrames {
				select {
				case f := <-a.arrive:
					frames = append(frames, f)
				default:
					break more
				}
			}
			rx.indicate(frames)
		}
	}
}

// receiver makes batches of frames.
type receiver struct {
	a     *Adapter
	batch *ndiscore.Batch
	pool  [ndiscore.BatchFrames]ndiscore.Frame
}

func newReceiver(a *Adapter, w *ndiscore.Worker) *receiver {
	r := &receiver{a: a, batch: ndiscore.NewBatch(w)}
	r.batch.Borrowed = true
	return r
}

// spoilt overwrites what was only lent, so that whoever still looks at it sees
// nothing sensible.
const spoilt = 0xdd

func (r *receiver) indicate(frames [][]byte) {
	b, pool := r.batch, &r.pool
	if r.a.opt.KeepReceives {
		b, pool = ndiscore.NewBatch(r.batch.Worker), new([ndiscore.BatchFrames]ndiscore.Frame)
	}
	b.Reset()
	for i, f := range frames {
		buf := make([]byte, ndiscore.Headroom+len(f))
		copy(buf[ndiscore.Headroom:], f)
		pool[i].Reset(buf, ndiscore.Headroom, len(f))
		b.Append(&pool[i])
	}
	if r.a.opt.KeepReceives {
		r.a.mu.Lock()
		r.a.lent[b] = true
		r.a.mu.Unlock()
		r.a.Handle().IndicateReceive(b)
		return
	}
	r.a.Handle().IndicateReceive(b)
	for _, f := range b.Frames {
		for k := range f.Head {
			f.Head[k] = spoilt
		}
	}
}

// --- What the test calls ------------------------------------------------------------

// ErrNotRunning: the fake adapter has no receive goroutine now.
var ErrNotRunning = errors.New("fake adapter is not between Restart and Pause")

// Do runs f on the receive goroutine and waits for it.
func (a *Adapter) Do(f func(w *ndiscore.Worker)) error {
	a.mu.Lock()
	stop, ended := a.stop, a.running
	a.mu.Unlock()
	if stop == nil {
		return ErrNotRunning
	}
	j := job{f, make(chan struct{})}
	select {
	case a.jobs <- j:
		<-j.done
		return nil
	case <-ended:
		return ErrNotRunning
	}
}

// Inject receives frames, at most 64, as one batch, and returns when the core
// has been through with it.
func (a *Adapter) Inject(frames ...[]byte) error {
	return a.Do(func(w *ndiscore.Worker) { newReceiver(a, w).indicate(frames) })
}

// Indicate receives b, made by the test, on the receive goroutine.
func (a *Adapter) Indicate(b *ndiscore.Batch) error {
	return a.Do(func(w *ndiscore.Worker) {
		b.Worker = w
		a.Handle().IndicateReceive(b)
	})
}

// Arrive puts a frame on the wire towards the adapter, which receives it when
// it runs; false when too many wait already.
func (a *Adapter) Arrive(frame []byte) bool {
	select {
	case a.arrive <- frame:
		return true
	default:
		return false
	}
}

// Sent returns copies of the frames sent, in order.
func (a *Adapter) Sent() [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([][]byte(nil), a.sent...)
}

// SentCount says how many frames were sent.
func (a *Adapter) SentCount() uint64 { return a.count.Load() }

// Refuse has every frame sent from now on refused for reason r; DropNone ends it.
func (a *Adapter) Refuse(r ndiscore.DropReason) { a.refuse.Store(uint32(r)) }

// CompleteSends completes every kept send and says how many there were.
func (a *Adapter) CompleteSends() int {
	return a.complete(ndiscore.DropNone, func(*ndiscore.Batch) bool { return true })
}

// complete completes those kept sends that match, for reason r if that is one.
func (a *Adapter) complete(r ndiscore.DropReason, match func(*ndiscore.Batch) bool) int {
	var done, kept []*ndiscore.Batch
	a.mu.Lock()
	for _, b := range a.kept {
		if match(b) {
			done = append(done, b)
		} else {
			kept = append(kept, b)
		}
	}
	a.kept = kept
	a.mu.Unlock()
	for _, b := range done {
		for i := range b.Frames {
			if r != ndiscore.DropNone {
				b.Status[i] = r
			}
		}
		a.Handle().SendComplete(b)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open -= len(done); a.open == 0 && len(done) > 0 {
		close(a.quiet)
	}
	return len(done)
}

// KeptSends says how many sends are not completed.
func (a *Adapter) KeptSends() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.kept)
}

// Lent says how many kept receives are out, and how many have come back.
func (a *Adapter) Lent() (out, back int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.lent), a.returned
}

// SetLink changes the link and, between Initialize and Halt, indicates it, on
// the caller's goroutine.
func (a *Adapter) SetLink(up bool, why string) {
	l := ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: why}
	if up {
		l.Media = ndiscore.MediaConnected
	}
	a.mu.Lock()
	a.link = l
	live := a.live
	a.mu.Unlock()
	if live {
		a.Handle().IndicateStatus(l)
	}
}

// Hang has CheckForHang say that the device is stuck, until it is reset; Polls
// is how often it was asked.
func (a *Adapter) Hang() { a.hung.Store(true) }

// Polls says how often CheckForHang was called.
func (a *Adapter) Polls() uint64 { return a.polls.Load() }

// ForgetOnReset says whether a reset loses the settings, so that the core has to
// set them anew.
func (a *Adapter) ForgetOnReset(forgets bool) { a.forget.Store(forgets) }

// Multicast is the multicast list that the core has last set.
func (a *Adapter) Multicast() []ndiscore.MAC {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.groups)
}

// Power is the power state that the core has last set.
func (a *Adapter) Power() ndiscore.PowerState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.power
}

// Remove says that the adapter has failed (NdisMRemoveMiniport).
func (a *Adapter) Remove(why string) error { return a.Handle().Remove(why) }

// Vanish takes the device away; Appear brings it back.
func (a *Adapter) Vanish(why string) {
	a.mu.Lock()
	if a.present {
		a.present, a.absent = false, make(chan struct{})
	}
	a.mu.Unlock()
	a.Handle().SurpriseRemove(why)
}

// Appear brings the device back.
func (a *Adapter) Appear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.present {
		a.present = true
		close(a.absent)
	}
}
