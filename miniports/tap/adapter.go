package tap

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Driver is this miniport's row in the list of drivers.
func Driver(log *zap.Logger) ndiscore.Driver {
	links, slabs := new(netdev.Watchers), new(netdev.Slabs)
	return ndiscore.Driver{
		Name:       "tap",
		Version:    ndiscore.ContractVersion,
		NewOptions: func() any { return NewOptions() },
		New: func(name string, options any) (ndiscore.Adapter, error) {
			o, ok := options.(*Options)
			if !ok {
				return nil, fmt.Errorf("tap %s: options are a %T", name, options)
			}
			return newAdapter(name, *o, links, slabs, log)
		},
	}
}

// adapter is one TAP device.
type adapter struct {
	name   string
	opt    Options
	log    *zap.Logger
	links  *netdev.Watchers
	slabs  *netdev.Slabs
	do     step
	queues []*queue
	mac    ndiscore.MAC // of our end

	// From StartDevice to RemoveDevice: a stopped adapter keeps its device, and
	// the kernel the addresses on it.
	dev *device

	// From Initialize to Halt.
	h       ndiscore.AdapterHandle
	ns      *netdev.Namespace
	watcher *netdev.Watcher
	link    netdev.LinkReporter
	follow  follower
	asleep  bool // in D3; Request's, and Halt's

	following sync.Mutex // guards sub
	sub       *netdev.Subscription

	running   sync.WaitGroup // the receive goroutines
	receiving bool           // from Restart to Pause
}

// queue is one queue of the device: what the kernel sends comes out of one of
// them, by flow, and what a worker sends goes into one of them, by worker.
type queue struct {
	loop *netdev.Loop
	rx   receiver
	tx   transmitter
	// Frames thrown away while nobody received, to be counted by the next who
	// does.
	lost map[ndiscore.DropReason]uint64
}

var (
	_ ndiscore.Adapter     = (*adapter)(nil)
	_ ndiscore.LowerDevice = (*adapter)(nil)
	_ ndiscore.HangChecker = (*adapter)(nil)
	_ ndiscore.Statser     = (*adapter)(nil)
)

func newAdapter(name string, o Options, links *netdev.Watchers, slabs *netdev.Slabs, log *zap.Logger) (*adapter, error) {
	if o.Interface == "" {
		o.Interface = name
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	a := &adapter{name: name, opt: o, links: links, slabs: slabs, do: realStep, mac: netdev.StationMAC(name),
		log: log.With(zap.String("adapter", name), zap.String("device", o.Interface))}
	for range o.Queues {
		q := &queue{lost: map[ndiscore.DropReason]uint64{}}
		q.tx.close(ndiscore.DropPaused)
		a.queues = append(a.queues, q)
	}
	return a, nil
}

func (a *adapter) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("tap %s: device %s: %w", a.name, a.opt.Interface, err)
}

// StartDevice makes the device, or adopts one that is there.
func (a *adapter) StartDevice(context.Context) error {
	if a.dev != nil && len(a.dev.fds) > 0 { // stopped, not removed
		if !a.dev.persist {
			_ = a.dev.setPersist(a.dev.fds[0], false) // a reset that failed may have left it so; a device that is gone shows below
		}
		return nil
	}
	ns, err := netdev.OpenNamespace(a.opt.Netns)
	if err != nil {
		return a.wrap(err)
	}
	defer ns.Close()
	if a.dev != nil { // a reset failed half-way
		return a.wrap(a.dev.reopen(a.do, len(a.queues), ns))
	}
	a.dev, err = openDevice(a.do, ns, a.opt.Interface, &a.opt)
	return a.wrap(err)
}

// RemoveDevice lets go of the device, which ends it unless it is persistent.
func (a *adapter) RemoveDevice(context.Context) {
	if a.dev != nil {
		a.dev.close()
		a.dev = nil
	}
}

// AwaitDevice waits until somebody has made a device of the right name again:
// what the operator deleted is not made anew behind his back.
func (a *adapter) AwaitDevice(ctx context.Context) error {
	ns, err := netdev.OpenNamespace(a.opt.Netns)
	if err != nil {
		return a.wrap(err)
	}
	defer ns.Close()
	w, err := a.links.Get(ns)
	if err != nil {
		return a.wrap(err)
	}
	defer w.Release()
	_, err = w.Await(ctx, func(i netdev.LinkInfo) bool { return i.Name == a.opt.Interface && i.Kind == tunKind })
	return a.wrap(err)
}

// Initialize implements ndiscore.Adapter.
func (a *adapter) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (attr ndiscore.Attributes, err error) {
	// After a power-down there is no StartDevice.
	if err = a.StartDevice(ctx); err != nil {
		return attr, err
	}
	a.h = h
	defer func() {
		if err != nil {
			a.release()
			err = a.wrap(err)
		}
	}()
	if a.ns, err = netdev.OpenNamespace(a.opt.Netns); err != nil {
		return attr, err
	}
	if err = a.do("watch links", func() (err error) { a.watcher, err = a.links.Get(a.ns); return err }); err != nil {
		return attr, err
	}
	for _, q := range a.queues {
		q.rx.a, q.rx.h, q.rx.pool = a, h, a.slabs
	}
	if err = a.open(); err != nil {
		return attr, err
	}
	var link ndiscore.LinkState
	var mtu int
	err = a.do("follow the device", func() (err error) { link, mtu, err = a.begin(); return err })
	if err != nil {
		return attr, err
	}
	return ndiscore.Attributes{
		MAC: a.mac, MTU: mtu, Link: link, Queues: len(a.queues),
		Transmit: transmitCaps(a.dev.caps), Receive: a.dev.caps, Device: a.opt.Interface,
		PowerAware: true,
	}, nil
}

// subscribe has the watcher follow the device under the name given.
func (a *adapter) subscribe(name string, call func(netdev.LinkInfo)) (err error) {
	a.following.Lock()
	defer a.following.Unlock()
	a.sub, err = a.watcher.Subscribe(name, call)
	return err
}

// open puts the device's queues to use.
func (a *adapter) open() error {
	for i, q := range a.queues {
		fd := a.dev.fds[i]
		err := a.do("prepare to wait", func() (err error) { q.loop, err = netdev.NewLoop(fd); return err })
		if err != nil {
			a.shut(ndiscore.DropDeviceError)
			return err
		}
		q.rx.fd = fd
		q.tx.use(fd)
	}
	return nil
}

// shut ends the use of the queues: frames to be sent are refused for reason why.
// Nobody may be receiving.
func (a *adapter) shut(why ndiscore.DropReason) {
	for _, q := range a.queues {
		q.tx.close(why)
		if q.loop != nil {
			q.loop.Close()
			q.loop = nil
		}
	}
}

// transmitCaps is what the kernel takes unfinished from us. It always takes
// checksums and TCP; UDP super-frames since it can also give them.
func transmitCaps(gives ndiscore.Capabilities) ndiscore.Capabilities {
	return ndiscore.CapAll&^ndiscore.CapUSO | gives&ndiscore.CapUSO
}

// linkState: the link is there when the kernel's end is up.
func linkState(i netdev.LinkInfo) ndiscore.LinkState {
	if i.Lost != "" {
		return ndiscore.LinkState{Media: ndiscore.MediaUnknown, Why: "device cannot be followed: " + i.Lost}
	}
	if i.Up {
		return ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "kernel's end is up"}
	}
	return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "kernel's end is down"}
}

// changed hears of the device from the watcher, on its goroutine.
func (a *adapter) changed(i netdev.LinkInfo) {
	switch {
	case !i.Deleted:
		a.link.Attributes(a.mac, i.MTU, "device's MTU was set (RTM_NEWLINK)")
		a.link.Observed(linkState(i))
	case a.dev.deleted():
		a.h.SurpriseRemove("device was deleted (RTM_DELLINK, EBADFD)")
	default:
		// Our descriptor is still attached, so it lives on somewhere else.
		// Moving sets it down.
		a.link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "device was moved to another network namespace"})
		a.follow.start(a.look)
	}
}

// failed turns an error of the device into what it means, and returns an error
// if receiving cannot go on.
func (a *adapter) failed(errno unix.Errno, doing string) error {
	if errno == unix.EBADFD && a.dev.deleted() {
		a.h.SurpriseRemove("device was deleted (EBADFD on " + doing + ")")
		return errno
	}
	if errno == unix.EIO {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, errno)
}

// Restart implements ndiscore.Adapter.
func (a *adapter) Restart(context.Context) error {
	for i, q := range a.queues {
		w := a.h.NewWorker(i)
		q.rx.worker = w
		q.rx.batch = ndiscore.NewBatch(w)
		q.rx.batch.Borrowed = true
	}
	a.receiving = true
	a.receive()
	return nil
}

// receive starts the receive goroutines: ended by rest, block on the device.
func (a *adapter) receive() {
	for _, q := range a.queues {
		if q.loop == nil { // a reset failed half-way
			continue
		}
		q.loop.Ready()
		a.running.Go(func() {
			for why, n := range q.lost {
				a.h.Dropped(q.rx.worker, why, n)
			}
			clear(q.lost)
			err := q.loop.Run(&q.rx)
			if err == nil || a.dev.deleted() {
				return // the core knows
			}
			a.log.Error("receiving stopped", zap.Error(err))
			_ = a.h.Remove(err.Error()) // an error says that the adapter is leaving already
		})
	}
}

// rest ends the receive goroutines.
func (a *adapter) rest() {
	for _, q := range a.queues {
		if q.loop != nil {
			q.loop.Stop()
		}
	}
	a.running.Wait()
}

// Pause implements ndiscore.Adapter. Frames that the kernel sends from now on
// wait in the device's queues as far as they reach.
func (a *adapter) Pause(context.Context) {
	a.rest()
	a.receiving = false
	for _, q := range a.queues {
		q.rx.worker.Close()
	}
}

// Reset implements ndiscore.Resetter: new descriptors for the same device, which
// keeps its addresses. What waited in the queues is lost.
func (a *adapter) Reset(context.Context) (addressing bool, err error) {
	a.rest()
	a.discard(ndiscore.DropReset)
	a.shut(ndiscore.DropReset)
	err = a.dev.reopen(a.do, len(a.queues), a.ns)
	if len(a.dev.fds) > 0 {
		err = errors.Join(err, a.open())
	}
	if a.receiving {
		a.receive()
	}
	if err != nil {
		return false, a.wrap(fmt.Errorf("reset: %w: %w", ndiscore.ErrHardErrors, err))
	}
	return false, nil
}

// discard throws away what waits to be received. Nobody may be receiving.
func (a *adapter) discard(why ndiscore.DropReason) {
	for _, q := range a.queues {
		if q.loop != nil {
			q.lost[why] += discard(q.rx.fd)
		}
	}
}

// CheckForHang implements ndiscore.HangChecker.
func (a *adapter) CheckForHang() bool {
	hung := a.queues[0].loop == nil // a reset failed half-way
	for _, q := range a.queues {
		if q.tx.progress.Stuck() { // every queue is asked: it compares with the last time
			hung = true
		}
	}
	return hung
}

// Halt implements ndiscore.Adapter. A device that is to be started again is
// kept.
func (a *adapter) Halt(ctx context.Context, why ndiscore.HaltAction) {
	a.release()
	if why != ndiscore.HaltDeviceStopped && why != ndiscore.HaltPoweredDown {
		a.RemoveDevice(ctx)
	}
}

// release frees what Initialize made, in reverse order, as far as it came.
func (a *adapter) release() {
	a.link.Close()
	if a.asleep {
		a.asleep = false
		_ = a.dev.setCarrier(true) // of a device that is kept; of another it does not matter
	}
	a.follow.stop() // before the subscription, which it may replace
	a.following.Lock()
	if a.sub != nil {
		a.sub.Close()
		a.sub = nil
	}
	a.following.Unlock()
	a.shut(ndiscore.DropPaused)
	if a.watcher != nil {
		a.watcher.Release()
		a.watcher = nil
	}
	if a.ns != nil {
		a.ns.Close()
		a.ns = nil
	}
}

// Send implements ndiscore.Adapter.
func (a *adapter) Send(b *ndiscore.Batch) {
	q := a.queues[0]
	if n := len(a.queues); n > 1 {
		q = a.queues[b.Worker.ID()%n]
	}
	mark := a.link.Seen()
	switch q.tx.send(b) {
	case 0:
	case unix.EIO:
		a.link.Refused(mark, "EIO on write")
	case unix.EBADFD:
		_ = a.failed(unix.EBADFD, "write") // the frames have their reason
	}
	if !b.Borrowed {
		a.h.SendComplete(b)
	}
}

// Return implements ndiscore.Adapter: everything indicated is borrowed.
func (a *adapter) Return(*ndiscore.Batch) {}

// Request implements ndiscore.Adapter.
func (a *adapter) Request(_ context.Context, req *ndiscore.OIDRequest) error {
	if req.Kind == ndiscore.OIDQuery {
		return a.query(req)
	}
	switch req.ID {
	case ndiscore.OIDGenCurrentPacketFilter:
		// A TAP device gives everything that the kernel sends; the core sorts.
		if _, ok := req.Data.(ndiscore.PacketFilter); !ok {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		return nil
	case ndiscore.OIDPnPSetPower:
		p, ok := req.Data.(ndiscore.PowerState)
		if !ok || p != ndiscore.PowerD0 && p != ndiscore.PowerD3 {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		return a.wrap(a.setPower(p == ndiscore.PowerD3))
	}
	return ndiscore.ErrInvalidOID
}

// query answers what the core does not know by itself. A frame that is sent is
// the kernel's at once: there is no memory for it here.
func (a *adapter) query(req *ndiscore.OIDRequest) error {
	switch req.ID {
	case ndiscore.OIDGenLinkState:
		req.Data = a.link.State()
	case ndiscore.OIDGenTransmitBufferSpace, ndiscore.OIDGenTransmitBlockSize:
		req.Data = uint32(0)
	case ndiscore.OIDGenReceiveBufferSpace:
		req.Data = uint32(len(a.queues) * netdev.SlabBytes)
	case ndiscore.OIDGenReceiveBlockSize:
		req.Data = uint32(netdev.SlabRoom + ndiscore.EthernetHeader)
	default:
		return ndiscore.ErrInvalidOID
	}
	return nil
}

// setPower puts the device to sleep or wakes it. Asleep the kernel's end has no
// carrier, so that the kernel knows and sends nothing; what was already on its
// way is thrown away at the end of the sleep.
func (a *adapter) setPower(sleep bool) error {
	if sleep == a.asleep {
		return nil
	}
	if sleep {
		a.link.Hold()
		if err := a.do("take the carrier away", func() error { return a.dev.setCarrier(false) }); err != nil {
			a.link.Resume()
			return err
		}
		a.asleep = true
		return nil
	}
	a.discard(ndiscore.DropLowPower)
	if err := a.do("give the carrier back", func() error { return a.dev.setCarrier(true) }); err != nil {
		return err
	}
	a.asleep = false
	a.link.Resume()
	return nil
}

// DeviceStats implements ndiscore.Statser.
func (a *adapter) DeviceStats() map[string]uint64 {
	m := map[string]uint64{}
	var all uint64
	for i, q := range a.queues {
		sent, full := q.tx.progress.Counts()
		all += full
		if len(a.queues) > 1 {
			m[fmt.Sprintf("queue%d_rx_frames", i)] = q.rx.taken.Load()
			m[fmt.Sprintf("queue%d_tx_frames", i)] = sent
			m[fmt.Sprintf("queue%d_tx_full", i)] = full
		}
	}
	m["tx_full"] = all
	return m
}
