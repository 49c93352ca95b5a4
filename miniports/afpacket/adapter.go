package afpacket

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
		Name:       "afpacket",
		Version:    ndiscore.ContractVersion,
		NewOptions: func() any { return NewOptions() },
		New: func(name string, options any) (ndiscore.Adapter, error) {
			o, ok := options.(*Options)
			if !ok {
				return nil, fmt.Errorf("afpacket %s: options are a %T", name, options)
			}
			return newAdapter(name, *o, links, slabs, log)
		},
	}
}

// adapter is one kernel interface. Fields from the second group on are set by
// Initialize and taken back by Halt.
type adapter struct {
	name  string
	opt   Options
	log   *zap.Logger
	links *netdev.Watchers
	slabs *netdev.Slabs
	do    step

	h       ndiscore.AdapterHandle
	ns      *netdev.Namespace
	watcher *netdev.Watcher
	sock    *socket
	loop    *netdev.Loop
	sub     *netdev.Subscription
	link    netdev.LinkReporter
	tx      transmitter
	rx      receiver
	promisc bool // memberships that we hold
	multi   bool

	running sync.WaitGroup // the receive goroutine

	kernelDrops struct {
		sync.Mutex        // guards reading the kernel's counter, which empties it, too
		total      uint64 // since the adapter was made
	}
}

var (
	_ ndiscore.Adapter     = (*adapter)(nil)
	_ ndiscore.LowerDevice = (*adapter)(nil)
	_ ndiscore.Statser     = (*adapter)(nil)
)

func newAdapter(name string, o Options, links *netdev.Watchers, slabs *netdev.Slabs, log *zap.Logger) (*adapter, error) {
	if o.Interface == "" {
		o.Interface = name
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("afpacket %s: %w", name, err)
	}
	return &adapter{name: name, opt: o, links: links, slabs: slabs, do: realStep,
		log: log.With(zap.String("adapter", name), zap.String("device", o.Interface))}, nil
}

// StartDevice checks that the interface is there.
func (a *adapter) StartDevice(context.Context) error {
	return a.withWatcher(func(w *netdev.Watcher, ns *netdev.Namespace) error {
		_, err := a.find(w, ns)
		return err
	})
}

// RemoveDevice has nothing to give up: the interface is the kernel's.
func (a *adapter) RemoveDevice(context.Context) {}

// AwaitDevice waits for an interface of the right name.
func (a *adapter) AwaitDevice(ctx context.Context) error {
	return a.withWatcher(func(w *netdev.Watcher, _ *netdev.Namespace) error {
		_, err := w.Await(ctx, func(i netdev.LinkInfo) bool { return i.Name == a.opt.Interface })
		return err
	})
}

// withWatcher lends fn the watcher of the interface's namespace.
func (a *adapter) withWatcher(fn func(*netdev.Watcher, *netdev.Namespace) error) error {
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
	return a.wrap(fn(w, ns))
}

func (a *adapter) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("afpacket %s: %w", a.name, err)
}

// find looks the interface up.
func (a *adapter) find(w *netdev.Watcher, ns *netdev.Namespace) (netdev.LinkInfo, error) {
	info, ok, err := w.Lookup(a.opt.Interface)
	if err == nil && !ok {
		err = fmt.Errorf("interface %q does not exist in %s: %w", a.opt.Interface, ns, ndiscore.ErrDeviceAbsent)
	}
	return info, err
}

// Initialize implements ndiscore.Adapter.
func (a *adapter) Initialize(_ context.Context, h ndiscore.AdapterHandle) (attr ndiscore.Attributes, err error) {
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
	info, err := a.find(a.watcher, a.ns)
	if err != nil {
		return attr, err
	}
	if err = a.refuseShared(info.Index); err != nil {
		return attr, err
	}
	if a.sock, err = openSocket(a.do, a.ns, info, a.opt.RingMiB); err != nil {
		if errors.Is(err, unix.ENODEV) { // it went between the look and the bind
			err = fmt.Errorf("%w: %w", ndiscore.ErrDeviceAbsent, err)
		}
		return attr, fmt.Errorf("interface %s: %w", a.opt.Interface, err)
	}
	if hw, err := a.sock.hardware(); err != nil || hw != unix.ARPHRD_ETHER && hw != unix.ARPHRD_LOOPBACK {
		return attr, fmt.Errorf("interface %s is not Ethernet (link type %d, %v): only Ethernet can be switched", a.opt.Interface, hw, err)
	}
	if err = a.do("prepare to wait", func() (err error) { a.loop, err = netdev.NewLoop(a.sock.fd); return err }); err != nil {
		return attr, err
	}
	a.tx.use(a.sock.fd)
	a.rx = receiver{a: a, h: h, sock: a.sock, pool: a.slabs}

	speed := netdev.Speed(a.sock.fd, a.opt.Interface)
	first := true
	err = a.do("follow the interface", func() (err error) {
		a.sub, err = a.watcher.Subscribe(a.opt.Interface, func(i netdev.LinkInfo) {
			if first { // at once, while Subscribe waits
				first, info = false, i
				a.link.Open(h, linkState(i, speed))
				return
			}
			a.changed(i, speed)
		})
		return err
	})
	if err != nil {
		return attr, err
	}
	if info.Index != a.sock.index {
		return attr, fmt.Errorf("interface %q was replaced meanwhile: %w", a.opt.Interface, ndiscore.ErrDeviceAbsent)
	}
	caps := netdev.ProbeOffloads(a.ns)
	if caps != ndiscore.CapAll {
		a.log.Warn("the kernel refuses some unfinished frames on packet sockets; the switch will finish them", zap.Uint8("takes", uint8(caps)))
	}
	return ndiscore.Attributes{
		MAC: info.MAC, MTU: info.MTU, Link: linkState(info, speed), Queues: 1,
		Transmit: caps, Receive: ndiscore.CapAll, Device: a.opt.Interface,
	}, nil
}

// refuseShared keeps us away from an interface that the kernel itself speaks IP
// on: it would answer frames that are ours, and reset our flows.
func (a *adapter) refuseShared(index int) error {
	if a.opt.Shared {
		return nil
	}
	addrs, err := a.ns.Configured(index)
	if err != nil {
		return err
	}
	if len(addrs) > 0 {
		return fmt.Errorf("interface %s carries the kernel's own addresses (%s), and the kernel would answer what is meant for the switch: remove them, or set shared = true",
			a.opt.Interface, strings.Join(addrs, ", "))
	}
	return nil
}

func linkState(i netdev.LinkInfo, speed uint64) ndiscore.LinkState {
	switch {
	case i.Running:
		return ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: speed, Why: "carrier"}
	case i.Up:
		return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Speed: speed, Why: "carrier lost"}
	}
	return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Speed: speed, Why: "interface set down"}
}

// changed hears of the interface from the watcher, on its goroutine.
func (a *adapter) changed(i netdev.LinkInfo, speed uint64) {
	switch {
	case i.Deleted && i.Moved:
		a.h.SurpriseRemove("interface was moved to another network namespace (RTM_DELLINK)")
	case i.Deleted:
		a.h.SurpriseRemove("interface was deleted (RTM_DELLINK)")
	default:
		a.link.Observed(linkState(i, speed))
	}
}

// up asks the kernel whether the interface is up. True when it cannot tell.
func (a *adapter) up() bool {
	flags, err := netdev.Flags(a.sock.fd, a.opt.Interface)
	return err != nil || flags&unix.IFF_UP != 0
}

// Restart implements ndiscore.Adapter.
func (a *adapter) Restart(context.Context) error {
	w := a.h.NewWorker(0)
	a.rx.worker = w
	a.rx.batch = ndiscore.NewBatch(w)
	a.rx.batch.Borrowed = true
	a.loop.Ready()
	// The receive goroutine: ended by Pause, blocks on the ring.
	a.running.Go(func() {
		defer w.Close()
		if err := a.loop.Run(&a.rx); err != nil {
			a.log.Error("receiving stopped", zap.Error(err))
			_ = a.h.Remove(err.Error()) // an error says that the adapter is leaving already
		}
	})
	return nil
}

// Pause implements ndiscore.Adapter. Frames that arrive from now on wait in the
// ring as far as it reaches.
func (a *adapter) Pause(context.Context) {
	a.loop.Stop()
	a.running.Wait()
}

// Halt implements ndiscore.Adapter.
func (a *adapter) Halt(context.Context, ndiscore.HaltAction) { a.release() }

// release frees what Initialize made, in reverse order, as far as it came. It
// touches nothing but our own descriptors, so it is right for a device that is
// gone, too.
func (a *adapter) release() {
	a.link.Close()
	if a.sub != nil {
		a.sub.Close()
		a.sub = nil
	}
	if a.loop != nil {
		a.loop.Close()
		a.loop = nil
	}
	if a.sock != nil {
		a.takeKernelDrops()
		a.tx.use(-1)
		a.sock.close()
		a.sock = nil
	}
	if a.watcher != nil {
		a.watcher.Release()
		a.watcher = nil
	}
	if a.ns != nil {
		a.ns.Close()
		a.ns = nil
	}
	a.promisc, a.multi = false, false
}

// Send implements ndiscore.Adapter.
func (a *adapter) Send(b *ndiscore.Batch) {
	mark := a.link.Seen()
	if res := a.tx.send(b); res.down != 0 {
		a.link.Refused(mark, "ENETDOWN on send")
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
		f, ok := req.Data.(ndiscore.PacketFilter)
		if !ok {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		return a.wrap(a.setFilter(f))
	}
	return ndiscore.ErrInvalidOID
}

// setFilter has the interface receive what f wants beyond its own unicast and
// broadcast, for as long as it is wanted.
func (a *adapter) setFilter(f ndiscore.PacketFilter) error {
	set := func(held *bool, kind uint16, want bool, what string) error {
		if *held == want {
			return nil
		}
		if err := a.sock.membership(kind, want); err != nil {
			return fmt.Errorf("interface %s: set %s mode: %w", a.opt.Interface, what, err)
		}
		*held = want
		return nil
	}
	return errors.Join(
		set(&a.promisc, unix.PACKET_MR_PROMISC, f&ndiscore.FilterPromiscuous != 0, "promiscuous"),
		set(&a.multi, unix.PACKET_MR_ALLMULTI, f&(ndiscore.FilterAllMulticast|ndiscore.FilterPromiscuous) != 0, "all-multicast"),
	)
}

// takeKernelDrops moves the kernel's counter into ours and returns the
// difference.
func (a *adapter) takeKernelDrops() uint64 {
	k := &a.kernelDrops
	k.Lock()
	defer k.Unlock()
	n := a.sock.dropped()
	k.total += n
	return n
}

// DeviceStats implements ndiscore.Statser.
func (a *adapter) DeviceStats() map[string]uint64 {
	a.kernelDrops.Lock()
	defer a.kernelDrops.Unlock()
	return map[string]uint64{"kernel_ring_full": a.kernelDrops.total}
}
