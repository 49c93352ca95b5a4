package afpacket

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
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

// maxMulticast is how many groups the interface is asked for one by one; NICs
// that filter have room for about so many, and beyond it all are taken.
const maxMulticast = 64

// adapter is one kernel interface. Fields from the second group on are set by
// Initialize and taken back by Halt.
type adapter struct {
	name   string
	opt    Options
	log    *zap.Logger
	links  *netdev.Watchers
	slabs  *netdev.Slabs
	do     step
	queues []*queue

	h       ndiscore.AdapterHandle
	ns      *netdev.Namespace
	watcher *netdev.Watcher
	sub     *netdev.Subscription
	link    netdev.LinkReporter
	index   int    // the interface's number
	speed   uint64 // bit/s

	control sync.Mutex // guards all below, and serialises Reset with Request
	filter  ndiscore.PacketFilter
	groups  []ndiscore.MAC
	joined  map[membership]bool // by the first queue's socket
	asleep  bool                // in D3

	broken    bool           // a reset failed half-way
	running   sync.WaitGroup // the receive goroutines
	receiving bool           // from Restart to Pause
}

// queue is one socket with what receives and sends through it: what arrives
// comes out of one of them, by flow, and what a worker sends goes into one of
// them, by worker.
type queue struct {
	opened
	rx receiver
	tx transmitter
	// Frames thrown away while nobody received, to be counted by the next who
	// does.
	lost map[ndiscore.DropReason]uint64
}

// opened is what a queue holds of the kernel.
type opened struct {
	sock *socket // nil while halted
	loop *netdev.Loop
}

func (o *opened) close() {
	if o.loop != nil {
		o.loop.Close()
	}
	if o.sock != nil {
		o.sock.close()
	}
	*o = opened{}
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
		return nil, fmt.Errorf("afpacket %s: %w", name, err)
	}
	a := &adapter{name: name, opt: o, links: links, slabs: slabs, do: realStep,
		log: log.With(zap.String("adapter", name), zap.String("device", o.Interface))}
	for range o.Queues {
		q := &queue{lost: map[ndiscore.DropReason]uint64{}}
		q.tx.close(ndiscore.DropPaused)
		a.queues = append(a.queues, q)
	}
	return a, nil
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
	a.index = info.Index
	for _, q := range a.queues {
		q.rx.a, q.rx.h, q.rx.pool = a, h, a.slabs
	}
	fresh, err := a.open(info.MTU)
	if errors.Is(err, unix.ENODEV) { // it went between the look and the bind
		err = fmt.Errorf("%w: %w", ndiscore.ErrDeviceAbsent, err)
	}
	if err != nil {
		return attr, fmt.Errorf("interface %s: %w", a.opt.Interface, err)
	}
	a.joined, a.broken = nil, false
	if err = a.use(fresh); err != nil {
		return attr, fmt.Errorf("interface %s: %w", a.opt.Interface, err)
	}
	if hw, err := a.queues[0].sock.hardware(); err != nil || hw != unix.ARPHRD_ETHER && hw != unix.ARPHRD_LOOPBACK {
		return attr, fmt.Errorf("interface %s is not Ethernet (link type %d, %v): only Ethernet can be switched", a.opt.Interface, hw, err)
	}
	a.speed = netdev.Speed(a.queues[0].sock.fd, a.opt.Interface)
	first := true
	err = a.do("follow the interface", func() (err error) {
		a.sub, err = a.watcher.Subscribe(a.opt.Interface, func(i netdev.LinkInfo) {
			if first { // at once, while Subscribe waits
				first, info = false, i
				a.link.Open(h, a.linkState(i), i.MAC, i.MTU)
				return
			}
			a.changed(i)
		})
		return err
	})
	if err != nil {
		return attr, err
	}
	if info.Index != a.index {
		return attr, fmt.Errorf("interface %q was replaced meanwhile: %w", a.opt.Interface, ndiscore.ErrDeviceAbsent)
	}
	caps := netdev.ProbeOffloads(a.ns)
	if caps != ndiscore.CapAll {
		a.log.Warn("the kernel refuses some unfinished frames on packet sockets; the switch will finish them", zap.Uint8("takes", uint8(caps)))
	}
	return ndiscore.Attributes{
		MAC: info.MAC, MTU: info.MTU, Link: a.linkState(info), Queues: len(a.queues),
		Transmit: caps, Receive: ndiscore.CapAll, Device: a.opt.Interface,
		PowerAware: true, MaxMulticast: maxMulticast,
	}, nil
}

// open opens a socket for each queue, deaf, with a ring for packets of mtu bytes.
func (a *adapter) open(mtu int) ([]opened, error) {
	socks, err := openSockets(a.do, a.ns, a.index, mtu, len(a.queues), a.opt.RingMiB)
	if err != nil {
		return nil, err
	}
	fresh := make([]opened, len(socks))
	for i, s := range socks {
		fresh[i].sock = s
	}
	for i := range fresh {
		o := &fresh[i]
		err := a.do("prepare to wait", func() (err error) { o.loop, err = netdev.NewLoop(o.sock.fd); return err })
		if err != nil {
			for i := range fresh {
				fresh[i].close()
			}
			return nil, err
		}
	}
	return fresh, nil
}

// use puts what was opened to use.
func (a *adapter) use(fresh []opened) error {
	for i, q := range a.queues {
		q.opened = fresh[i]
		q.rx.use(q.sock)
		q.tx.use(q.sock.fd)
	}
	return a.hear()
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

func (a *adapter) linkState(i netdev.LinkInfo) ndiscore.LinkState {
	speed := a.speed
	switch {
	case i.Lost != "":
		return ndiscore.LinkState{Media: ndiscore.MediaUnknown, Speed: speed, Why: "interface cannot be followed: " + i.Lost}
	case i.Running:
		return ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: speed, Why: "carrier"}
	case i.Up:
		return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Speed: speed, Why: "carrier lost"}
	}
	return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Speed: speed, Why: "interface set down"}
}

// changed hears of the interface from the watcher, on its goroutine.
func (a *adapter) changed(i netdev.LinkInfo) {
	switch {
	case i.Deleted && i.Moved:
		a.h.SurpriseRemove("interface was moved to another network namespace (RTM_DELLINK)")
	case i.Deleted:
		a.h.SurpriseRemove("interface was deleted (RTM_DELLINK)")
	default:
		a.link.Attributes(i.MAC, i.MTU, "interface's address or MTU was set (RTM_NEWLINK)")
		a.link.Observed(a.linkState(i))
	}
}

// up asks the kernel whether the interface is up. True when it cannot tell.
func (a *adapter) up() bool {
	flags, err := netdev.Flags(a.queues[0].sock.fd, a.opt.Interface)
	return err != nil || flags&unix.IFF_UP != 0
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

// receive starts the receive goroutines: ended by rest, block on the ring.
func (a *adapter) receive() {
	for _, q := range a.queues {
		q.loop.Ready()
		a.running.Go(func() {
			for why, n := range q.lost {
				a.h.Dropped(q.rx.worker, why, n)
			}
			clear(q.lost)
			if err := q.loop.Run(&q.rx); err != nil {
				a.log.Error("receiving stopped", zap.Error(err))
				_ = a.h.Remove(err.Error()) // an error says that the adapter is leaving already
			}
		})
	}
}

// rest ends the receive goroutines.
func (a *adapter) rest() {
	for _, q := range a.queues {
		q.loop.Stop()
	}
	a.running.Wait()
}

// Pause implements ndiscore.Adapter. Frames that arrive from now on wait in the
// rings as far as they reach.
func (a *adapter) Pause(context.Context) {
	a.rest()
	a.receiving = false
	for _, q := range a.queues {
		q.rx.worker.Close()
	}
}

// Reset implements ndiscore.Resetter: new sockets, with rings for the MTU of now.
// What waited in the old ones is lost. The old ones stay when the new ones
// cannot be had.
func (a *adapter) Reset(context.Context) (addressing bool, err error) {
	a.control.Lock()
	defer a.control.Unlock()
	a.rest()
	if a.receiving {
		defer a.receive()
	}
	fail := func(err error) (bool, error) {
		return false, a.wrap(fmt.Errorf("interface %s: reset: %w: %w", a.opt.Interface, ndiscore.ErrHardErrors, err))
	}
	fresh, err := a.open(a.link.MTU())
	if err != nil {
		return fail(err)
	}
	for _, q := range a.queues {
		_ = q.sock.deafen() // it is about to be closed
		q.lost[ndiscore.DropReset] += q.rx.discard()
		q.rx.takeDropped()
		q.tx.close(ndiscore.DropReset)
		q.opened.close()
	}
	a.joined = nil // the memberships went with the sockets
	err = errors.Join(a.use(fresh), a.join())
	if a.broken = err != nil; a.broken {
		return fail(err)
	}
	return false, nil
}

// CheckForHang implements ndiscore.HangChecker.
func (a *adapter) CheckForHang() bool {
	hung := a.broken
	for _, q := range a.queues {
		if q.tx.progress.Stuck() { // every queue is asked: it compares with the last time
			hung = true
		}
	}
	return hung
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
	for _, q := range a.queues {
		q.tx.close(ndiscore.DropPaused)
		if q.sock != nil {
			q.rx.takeDropped()
		}
		q.opened.close()
	}
	if a.watcher != nil {
		a.watcher.Release()
		a.watcher = nil
	}
	if a.ns != nil {
		a.ns.Close()
		a.ns = nil
	}
	a.control.Lock()
	defer a.control.Unlock()
	a.filter, a.groups, a.joined, a.asleep = 0, nil, nil, false
}

// Send implements ndiscore.Adapter.
func (a *adapter) Send(b *ndiscore.Batch) {
	q := a.queues[0]
	if n := len(a.queues); n > 1 {
		q = a.queues[b.Worker.ID()%n]
	}
	mark := a.link.Seen()
	if res := q.tx.send(b); res.down != 0 {
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
	if req.Kind == ndiscore.OIDQuery && req.ID == ndiscore.OIDGenLinkState {
		req.Data = a.link.State()
		return nil
	}
	a.control.Lock() // a reset may be under way
	defer a.control.Unlock()
	if req.Kind == ndiscore.OIDQuery {
		return a.queryLocked(req)
	}
	switch req.ID {
	case ndiscore.OIDGenCurrentPacketFilter:
		f, ok := req.Data.(ndiscore.PacketFilter)
		if !ok {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		a.filter = f
		return a.wrap(a.join())
	case ndiscore.OID8023MulticastList:
		groups, ok := req.Data.([]ndiscore.MAC)
		if !ok {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		for _, g := range groups {
			if !g.IsGroup() {
				return a.wrap(fmt.Errorf("%w: %s is not the address of a group", ndiscore.ErrMulticastFull, g))
			}
		}
		a.groups = slices.Clone(groups)
		return a.wrap(a.join())
	case ndiscore.OIDPnPSetPower:
		p, ok := req.Data.(ndiscore.PowerState)
		if !ok || p != ndiscore.PowerD0 && p != ndiscore.PowerD3 {
			return a.wrap(ndiscore.ErrInvalidData)
		}
		return a.wrap(a.setPower(p == ndiscore.PowerD3))
	}
	return ndiscore.ErrInvalidOID
}

// queryLocked answers what the core does not know by itself. The memory is the
// kernel's: rings of slots, and what the sockets may send at once.
func (a *adapter) queryLocked(req *ndiscore.OIDRequest) error {
	var send, rings int
	slot := minFrame
	for _, q := range a.queues {
		if q.sock != nil {
			send, rings, slot = send+q.sock.send, rings+len(q.sock.ring), len(q.sock.slots[0])
		}
	}
	switch req.ID {
	case ndiscore.OIDGenTransmitBufferSpace:
		req.Data = uint32(min(send, math.MaxUint32))
	case ndiscore.OIDGenTransmitBlockSize:
		req.Data = uint32(minFrame)
	case ndiscore.OIDGenReceiveBufferSpace:
		req.Data = uint32(min(rings, math.MaxUint32))
	case ndiscore.OIDGenReceiveBlockSize:
		req.Data = uint32(slot)
	default:
		return ndiscore.ErrInvalidOID
	}
	return nil
}

// wanted is what the interface has to receive for the packet filter and the
// multicast list of now.
func (a *adapter) wanted() map[membership]bool {
	promisc := membership{kind: unix.PACKET_MR_PROMISC}
	all := membership{kind: unix.PACKET_MR_ALLMULTI}
	some := a.filter&ndiscore.FilterMulticast != 0
	m := map[membership]bool{}
	if a.filter&ndiscore.FilterPromiscuous != 0 {
		m[promisc] = true
	}
	if a.filter&(ndiscore.FilterAllMulticast|ndiscore.FilterPromiscuous) != 0 || some && len(a.groups) > maxMulticast {
		m[all] = true
		some = false
	}
	if some {
		for _, g := range a.groups {
			m[membership{unix.PACKET_MR_MULTICAST, g}] = true
		}
	}
	return m
}

// join has the interface receive what is wanted beyond its own unicast and
// broadcast, for as long as it is wanted. New memberships come before old ones
// go, so that nothing is missed in between.
func (a *adapter) join() error {
	want, sock := a.wanted(), a.queues[0].sock
	if a.joined == nil {
		a.joined = map[membership]bool{}
	}
	var errs []error
	for m := range want {
		if a.joined[m] {
			continue
		}
		if err := sock.change(m, true); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: enter %s: %w", a.opt.Interface, m, err))
			continue
		}
		a.joined[m] = true
	}
	for m := range a.joined {
		if want[m] {
			continue
		}
		if err := sock.change(m, false); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: leave %s: %w", a.opt.Interface, m, err))
			continue
		}
		delete(a.joined, m)
	}
	return errors.Join(errs...)
}

// setPower puts the device to sleep or wakes it. Asleep the sockets stay bound
// and take nothing in; what they had taken before is thrown away at the end of
// the sleep. The interface stays as it is: it is the kernel's.
func (a *adapter) setPower(sleep bool) error {
	if sleep == a.asleep {
		return nil
	}
	if sleep {
		a.link.Hold()
		for _, q := range a.queues {
			if err := a.do("stop listening", q.sock.deafen); err != nil {
				a.link.Resume()
				return errors.Join(err, a.hear())
			}
		}
		a.asleep = true
		return nil
	}
	for _, q := range a.queues {
		q.lost[ndiscore.DropLowPower] += q.rx.discard()
	}
	if err := a.hear(); err != nil {
		return err
	}
	a.asleep = false
	a.link.Resume()
	return nil
}

func (a *adapter) hear() error {
	var errs []error
	for _, q := range a.queues {
		errs = append(errs, a.do("listen", q.sock.hear))
	}
	return errors.Join(errs...)
}

// DeviceStats implements ndiscore.Statser.
func (a *adapter) DeviceStats() map[string]uint64 {
	m := map[string]uint64{}
	var lost, all uint64
	for i, q := range a.queues {
		dropped := q.rx.dropped.Load()
		sent, full := q.tx.progress.Counts()
		lost, all = lost+dropped, all+full
		if len(a.queues) > 1 {
			m[fmt.Sprintf("queue%d_rx_frames", i)] = q.rx.taken.Load()
			m[fmt.Sprintf("queue%d_kernel_ring_full", i)] = dropped
			m[fmt.Sprintf("queue%d_tx_frames", i)] = sent
			m[fmt.Sprintf("queue%d_tx_full", i)] = full
		}
	}
	m["kernel_ring_full"], m["tx_full"] = lost, all
	return m
}
