package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

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
// long as fd is open.
type device struct {
	fd   int
	name string
	caps ndiscore.Capabilities // what the kernel leaves unfinished for us
}

// openDevice makes the device in ns or adopts one that is there, and attaches
// to it. What the options say of it is set.
func openDevice(do step, ns *netdev.Namespace, name string, o *Options) (d *device, err error) {
	var exists bool
	err = do("look for the device", func() (err error) { exists, err = checkFree(ns, name); return err })
	if err != nil {
		return nil, err
	}
	if !exists {
		// water makes the device and knows no virtio_net_hdr, so it is only the
		// midwife: the device must outlive its descriptor, and while that is
		// attached ours could not have the header.
		err = do("make the device", func() error { return ns.Do(func() error { return create(name) }) })
		if err != nil {
			return nil, explain(err)
		}
	}
	d = &device{fd: -1, name: name}
	defer func() {
		if err != nil {
			d.close()
			if !exists {
				err = errors.Join(err, deleteLink(ns, name))
			}
			d = nil
		}
	}()
	err = do("open "+tunPath, func() error {
		return ns.Do(func() (err error) {
			d.fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			return err
		})
	})
	if err != nil {
		return d, explain(err)
	}
	if err = do("attach", d.attach); err != nil {
		return d, explainAttach(err)
	}
	if err = do("set the header's size", func() error {
		return unix.IoctlSetPointerInt(d.fd, unix.TUNSETVNETHDRSZ, netdev.VnetHeader)
	}); err != nil {
		return d, err
	}
	d.offloads()
	if !exists || o.Persist { // one that we found persistent stays so
		persist := 0
		if o.Persist {
			persist = 1
		}
		err = do("set persistence", func() error { return unix.IoctlSetInt(d.fd, unix.TUNSETPERSIST, persist) })
		if err != nil {
			return d, err
		}
	}
	return d, do("set up the device", func() error { return configure(ns, name, o) })
}

// checkFree reports whether there is a TAP device of that name, and refuses
// anything else of that name.
func checkFree(ns *netdev.Namespace, name string) (exists bool, err error) {
	h, err := ns.Netlink()
	if err != nil {
		return false, err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if t, ok := l.(*netlink.Tuntap); !ok || t.Mode == netlink.TUNTAP_MODE_TUN {
		return false, fmt.Errorf("the name %q is taken by an interface of kind %q that is no TAP device: choose another one with the key interface", name, l.Type())
	}
	return true, nil
}

// create makes a persistent device and leaves it behind, attached to nobody.
func create(name string) error {
	w, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true},
	})
	if err != nil {
		return err
	}
	return w.Close()
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
		return fmt.Errorf("%w: another process is attached to it", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it belongs to another user (ip tuntap), or CAP_NET_ADMIN is missing in its network namespace", err)
	}
	return err
}

// attach makes fd the device's queue, with a virtio_net_hdr on each frame.
func (d *device) attach() error {
	const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	err := d.setIff(flags)
	if errors.Is(err, unix.EINVAL) { // one made for several queues wants to hear so
		err = d.setIff(flags | unix.IFF_MULTI_QUEUE)
	}
	if err != nil {
		return err
	}
	// The kernel ignores IFF_VNET_HDR without a word while somebody else is
	// attached without it.
	got, err := d.flags()
	if err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	if got&flags != flags {
		return fmt.Errorf("the kernel gives flags %#x instead of %#x: another process is attached in another mode", got, flags)
	}
	return nil
}

func (d *device) setIff(flags uint16) error {
	r, err := unix.NewIfreq(d.name)
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	return unix.IoctlIfreq(d.fd, unix.TUNSETIFF, r)
}

// flags asks which device fd is attached to, by its flags. EBADFD proves that it
// was deleted.
func (d *device) flags() (uint16, error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(d.fd, unix.TUNGETIFF, r); err != nil {
		return 0, err
	}
	return r.Uint16(), nil
}

// deleted asks the kernel whether the device is gone for good.
func (d *device) deleted() bool {
	_, err := d.flags()
	return errors.Is(err, unix.EBADFD)
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
		if unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, try.flags) == nil {
			d.caps = try.caps
			return
		}
	}
}

// close lets go of the device, which ends it unless it is persistent.
func (d *device) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
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
