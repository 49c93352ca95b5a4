package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	tunPath = "/dev/net/tun"
	tunKind = "tun" // the kernel's name for TUN and TAP devices alike
)

// step performs one step of making the device and says in its error which one.
// Tests let the Nth fail.
type step func(what string, f func() error) error

func realStep(what string, f func() error) error {
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// device is a TAP device that we are attached to. It lives from StartDevice to
// RemoveDevice: without persistence the kernel keeps it, with its addresses, as
// long as one of its queues is attached.
type device struct {
	name    string                // at the start; see where
	caps    ndiscore.Capabilities // what the kernel leaves unfinished for us
	multi   bool                  // made for several queues
	persist bool                  // it is to stay when nobody is attached

	mu  sync.RWMutex // guards fds while they are others' to look at, too
	fds []int        // one per queue; empty after a reopen that failed half-way
}

// openDevice makes the device in ns or adopts one that is there, and attaches
// to it. What the options say of it is set.
func openDevice(do step, ns *netdev.Namespace, name string, o *Options) (d *device, err error) {
	d = &device{name: name, multi: o.Queues > 1, persist: o.Persist}
	var exists bool
	err = do("look for the device", func() (err error) { exists, err = d.find(ns, o.Queues); return err })
	if err != nil {
		return nil, err
	}
	if !exists {
		// water makes the device and knows no virtio_net_hdr, so it is only the
		// midwife: the device must outlive its descriptor, and while that is
		// attached ours could not have the header.
		err = do("make the device", func() error { return ns.Do(func() error { return create(name, d.multi) }) })
		if err != nil {
			return nil, explain(err)
		}
	}
	defer func() {
		if err != nil {
			d.close()
			if !exists {
				err = errors.Join(err, deleteLink(ns, name))
			}
			d = nil
		}
	}()
	if d.fds, err = openQueues(do, ns, o.Queues); err != nil {
		return d, err
	}
	if err = d.attachAll(do, d.fds, name); err != nil {
		return d, err
	}
	if err = do("set the header's size", func() error {
		return unix.IoctlSetPointerInt(d.fds[0], unix.TUNSETVNETHDRSZ, netdev.VnetHeader)
	}); err != nil {
		return d, err
	}
	d.offloads()
	if !exists || o.Persist { // one that we found persistent stays so
		err = do("set persistence", func() error { return d.setPersist(d.fds[0], o.Persist) })
		if err != nil {
			return d, err
		}
	}
	return d, do("set up the device", func() error { return configure(ns, name, o) })
}

// openQueues opens n descriptors that belong to ns and are attached to nothing.
func openQueues(do step, ns *netdev.Namespace, n int) (fds []int, err error) {
	for range n {
		err = do("open "+tunPath, func() error {
			return ns.Do(func() error {
				fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
				if err == nil {
					fds = append(fds, fd)
				}
				return err
			})
		})
		if err != nil {
			closeAll(fds)
			return nil, explain(err)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// find reports whether there is a TAP device of that name, and refuses
// whatever else has it, or cannot be used as it is.
func (d *device) find(ns *netdev.Namespace, queues int) (exists bool, err error) {
	h, err := ns.Netlink()
	if err != nil {
		return false, err
	}
	defer h.Close()
	l, err := h.LinkByName(d.name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t, ok := l.(*netlink.Tuntap)
	if !ok || t.Mode == netlink.TUNTAP_MODE_TUN {
		return false, fmt.Errorf("the name %q is taken by an interface of kind %q that is no TAP device: choose another one with the key interface", d.name, l.Type())
	}
	d.multi = t.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
	d.persist = d.persist || !t.NonPersist
	switch {
	case queues > 1 && !d.multi:
		return false, fmt.Errorf("it is there already and was made for one queue, which cannot be changed: delete it (ip link delete %s), or set queues = 1", d.name)
	case t.Queues+t.DisabledQueues > 0: // of a device with one queue the attachment tells
		return false, fmt.Errorf("another adapter or another process is attached to it, by %d queues, and would get a part of its frames", t.Queues+t.DisabledQueues)
	}
	return true, nil
}

// create makes a persistent device and leaves it behind, attached to nobody.
//
// water v0.0.0-20200317203138 leaves its descriptor open when the kernel
// refuses the device, so what the kernel is likely to refuse is asked first. A
// refusal for another reason (no memory, or somebody took the name this moment)
// still costs one descriptor.
func create(name string, multi bool) error {
	if err := mayCreate(); err != nil {
		return err
	}
	w, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true, MultiQueue: multi},
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// mayCreate asks for a device that is neither TUN nor TAP. The kernel looks at
// the right to make one before it looks at the kind, which it refuses.
func mayCreate() error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// explain tells what to do about a refusal to open or create.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: the kernel has no TAP driver here: modprobe tun, or give the container %s", err, tunPath)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: it takes read and write permission on %s (chmod 0666, as udev does) and CAP_NET_ADMIN in the device's network namespace", err, tunPath)
	}
	return err
}

func explainAttach(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another adapter or another process is attached to it already, and it takes only one: end that, or choose another device with the key interface", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it belongs to another user (ip tuntap), or CAP_NET_ADMIN is missing in its network namespace", err)
	}
	return err
}

// attach makes fd a queue of the device of that name, with a virtio_net_hdr on
// each frame.
func (d *device) attach(fd int, name string) error {
	var flags uint16 = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if d.multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return err
	}
	// The kernel ignores IFF_VNET_HDR without a word while somebody else is
	// attached without it.
	_, got, err := attachment(fd)
	if err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	if got&flags != flags {
		return fmt.Errorf("the kernel gives flags %#x instead of %#x: another process is attached in another mode", got, flags)
	}
	return nil
}

// attachment asks which device fd is attached to. EBADFD proves that it was
// deleted.
func attachment(fd int) (name string, flags uint16, err error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, r); err != nil {
		return "", 0, err
	}
	return r.Name(), r.Uint16(), nil
}

// deleted asks the kernel whether the device is gone for good. Without a queue
// nobody keeps it, so whatever raised the question is believed.
func (d *device) deleted() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if len(d.fds) == 0 {
		return true
	}
	_, _, err := attachment(d.fds[0])
	return errors.Is(err, unix.EBADFD)
}

// where says under which name, and in which namespace, the device is now. The
// namespace lives on as long as it is held: close it at once.
func (d *device) where() (name string, ns *netdev.Namespace, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if len(d.fds) == 0 {
		return "", nil, errDetached
	}
	if name, _, err = attachment(d.fds[0]); err != nil {
		return "", nil, err
	}
	fd, err := unix.IoctlRetInt(d.fds[0], unix.TUNGETDEVNETNS)
	if err != nil {
		return "", nil, err
	}
	ns, err = netdev.AdoptNamespace(fd)
	return name, ns, err
}

var errDetached = errors.New("no queue is attached to it")

// setPersist says whether the device outlives its last queue.
func (d *device) setPersist(fd int, on bool) error {
	v := 0
	if on {
		v = 1
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, v)
}

// setCarrier plugs the cable of the kernel's end in, or pulls it out.
func (d *device) setCarrier(on bool) error {
	v := 0
	if on {
		v = 1
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if len(d.fds) == 0 {
		return errDetached
	}
	return unix.IoctlSetPointerInt(d.fds[0], unix.TUNSETCARRIER, v)
}

// reopen replaces the n queues by new ones, wherever the device is now. It fails
// with the old ones in place wherever it can; when it could not, the next one
// looks for the device in home. The queues must not be in use.
func (d *device) reopen(do step, n int, home *netdev.Namespace) error {
	name, ns, err := d.where()
	if errors.Is(err, errDetached) {
		name = d.name
		ns, err = home.Dup()
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	fresh, err := openQueues(do, ns, n)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.multi && len(d.fds) > 0 {
		// The one queue has to go before another can come, and the device with it
		// unless it is persistent.
		if err = do("make it persistent", func() error { return d.setPersist(d.fds[0], true) }); err != nil {
			closeAll(fresh)
			return err
		}
		closeAll(d.fds)
		d.fds = nil
	}
	if err = d.attachAll(do, fresh, name); err != nil {
		closeAll(fresh)
		if len(d.fds) == 0 {
			err = fmt.Errorf("%w; the device is left without us", err)
		}
		return err
	}
	closeAll(d.fds)
	d.fds = fresh
	if d.multi || d.persist {
		return nil
	}
	return do("set persistence", func() error { return d.setPersist(fresh[0], false) })
}

func (d *device) attachAll(do step, fds []int, name string) error {
	for _, fd := range fds {
		if err := do("attach", func() error { return d.attach(fd, name) }); err != nil {
			return explainAttach(err)
		}
	}
	return nil
}

// offloads tells the kernel which frames it need not finish before it hands
// them to us: the best it knows.
func (d *device) offloads() {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	for _, try := range []struct {
		flags int
		caps  ndiscore.Capabilities
	}{
		{tso | unix.TUN_F_USO4 | unix.TUN_F_USO6, ndiscore.CapAll}, // Linux 6.2
		{tso, ndiscore.CapAll &^ ndiscore.CapUSO},
		{unix.TUN_F_CSUM, ndiscore.CapChecksum},
		{0, 0},
	} {
		if unix.IoctlSetInt(d.fds[0], unix.TUNSETOFFLOAD, try.flags) == nil {
			d.caps = try.caps
			return
		}
	}
}

// close lets go of the device, which ends it unless it is persistent.
func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeAll(d.fds)
	d.fds = nil
}

// configure sets on the kernel's end what the options say.
func configure(ns *netdev.Namespace, name string, o *Options) error {
	if o.MTU == 0 && o.MAC == "" && !o.Up {
		return nil
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if o.MAC != "" {
		mac, err := net.ParseMAC(o.MAC)
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("set MAC %s: %w", o.MAC, err)
		}
	}
	if o.MTU != 0 {
		if err := h.LinkSetMTU(l, o.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", o.MTU, err)
		}
	}
	if o.Up {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set it up: %w", err)
		}
	}
	return nil
}

// deleteLink takes back a device that could not be finished.
func deleteLink(ns *netdev.Namespace, name string) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	if err != nil {
		return err
	}
	return h.LinkDel(l)
}
