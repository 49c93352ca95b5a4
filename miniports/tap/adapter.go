package tap

import (
	"context"
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
	name  string
	opt   Options
	log   *zap.Logger
	links *netdev.Watchers
	slabs *netdev.Slabs
	do    step

	// From StartDevice to RemoveDevice: a stopped adapter keeps its device, and
	// the kernel the addresses on it.
	dev *device

	// From Initialize to Halt.
	h       ndiscore.AdapterHandle
	ns      *netdev.Namespace
	watcher *netdev.Watcher
	loop    *netdev.Loop
	sub     *netdev.Subscription
	link    netdev.LinkReporter
	follow  follower
	tx      transmitter
	rx      receiver

	running sync.WaitGroup // the receive goroutine
}

var (
	_ ndiscore.Adapter     = (*adapter)(nil)
	_ ndiscore.LowerDevice = (*adapter)(nil)
)

func newAdapter(name string, o Options, links *netdev.Watchers, slabs *netdev.Slabs, log *zap.Logger) (*adapter, error) {
	if o.Interface == "" {
		o.Interface = name
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return &adapter{name: name, opt: o, links: links, slabs: slabs, do: realStep,
		log: log.With(zap.String("adapter", name), zap.String("device", o.Interface))}, nil
}

func (a *adapter) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("tap %s: device %s: %w", a.name, a.opt.Interface, err)
}

// StartDevice makes the device, or adopts one that is there.
func (a *adapter) StartDevice(context.Context) error {
	if a.dev != nil {
		return nil // stopped, not removed
	}
	ns, err := netdev.OpenNamespace(a.opt.Netns)
	if err != nil {
		return a.wrap(err)
	}
	defer ns.Close()
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
	if err = a.do("prepare to wait", func() (err error) { a.loop, err = netdev.NewLoop(a.dev.fd); return err }); err != nil {
		return attr, err
	}
	a.tx.use(a.dev.fd)
	a.rx = receiver{a: a, h: h, fd: a.dev.fd, pool: a.slabs}

	var info netdev.LinkInfo
	first := true
	err = a.do("follow the device", func() (err error) {
		a.sub, err = a.watcher.Subscribe(a.opt.Interface, func(i netdev.LinkInfo) {
			if first { // at once, while Subscribe waits
				first, info = false, i
				a.link.Open(h, linkState(i))
				return
			}
			a.changed(i)
		})
		return err
	})
	if err != nil {
		return attr, err
	}
	return ndiscore.Attributes{
		MAC: netdev.StationMAC(a.name), MTU: info.MTU, Link: linkState(info), Queues: 1,
		Transmit: transmitCaps(a.dev.caps), Receive: a.dev.caps, Device: a.opt.Interface,
	}, nil
}

// transmitCaps is what the kernel takes unfinished from us. It always takes
// checksums and TCP; UDP super-frames since it can also give them.
func transmitCaps(gives ndiscore.Capabilities) ndiscore.Capabilities {
	return ndiscore.CapAll&^ndiscore.CapUSO | gives&ndiscore.CapUSO
}

// linkState: the link is there when the kernel's end is up.
func linkState(i netdev.LinkInfo) ndiscore.LinkState {
	if i.Up {
		return ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "kernel's end is up"}
	}
	return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "kernel's end is down"}
}

// changed hears of the device from the watcher, on its goroutine.
func (a *adapter) changed(i netdev.LinkInfo) {
	switch {
	case !i.Deleted:
		a.link.Observed(linkState(i))
	case a.dev.deleted():
		a.h.SurpriseRemove("device was deleted (RTM_DELLINK, EBADFD)")
	default:
		// Our descriptor is still attached, so it lives on somewhere else.
		// Moving sets it down.
		a.link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "device was moved to another network namespace"})
		a.follow.start(a.dev, &a.link)
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
	w := a.h.NewWorker(0)
	a.rx.worker = w
	a.rx.batch = ndiscore.NewBatch(w)
	a.rx.batch.Borrowed = true
	a.loop.Ready()
	// The receive goroutine: ended by Pause, blocks on the device.
	a.running.Go(func() {
		defer w.Close()
		err := a.loop.Run(&a.rx)
		if err == nil || a.dev.deleted() {
			return // the core knows
		}
		a.log.Error("receiving stopped", zap.Error(err))
		_ = a.h.Remove(err.Error()) // an error says that the adapter is leaving already
	})
	return nil
}

// Pause implements ndiscore.Adapter. Frames that the kernel sends from now on
// wait in the device's queue as far as it reaches.
func (a *adapter) Pause(context.Context) {
	a.loop.Stop()
	a.running.Wait()
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
	if a.sub != nil {
		a.sub.Close()
		a.sub = nil
	}
	a.follow.stop()
	if a.loop != nil {
		a.loop.Close()
		a.loop = nil
	}
	if a.watcher != nil {
		a.watcher.Release()
		a.watcher = nil
	}
	if a.ns != nil {
		a.ns.Close()
		a.ns = nil
	}
	a.tx.use(-1)
}

// Send implements ndiscore.Adapter.
func (a *adapter) Send(b *ndiscore.Batch) {
	mark := a.link.Seen()
	switch a.tx.send(b) {
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
	switch {
	case req.ID == ndiscore.OIDGenLinkState && req.Kind == ndiscore.OIDQuery:
		req.Data = a.link.State()
		return nil
	case req.ID == ndiscore.OIDGenCurrentPacketFilter && req.Kind == ndiscore.OIDSet:
		// A TAP device gives everything that the kernel sends; the core sorts.
		if _, ok := req.Data.(ndiscore.PacketFilter); !ok {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		return nil
	}
	return ndiscore.ErrInvalidOID
}
