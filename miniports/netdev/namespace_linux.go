package netdev

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namedNamespaces is where ip-netns(8) keeps namespaces by name.
const namedNamespaces = "/run/netns"

// Namespace is a network namespace that the process holds open.
type Namespace struct {
	fd   int
	id   namespaceID
	spec string
}

// namespaceID tells namespaces apart: /proc/*/ns/net of the same namespace has
// the same device and inode.
type namespaceID struct{ dev, ino uint64 }

// OpenNamespace opens the namespace that spec says: a path, a name known to
// `ip netns`, or the process's own when spec is empty. Close it.
func OpenNamespace(spec string) (*Namespace, error) {
	path := spec
	switch {
	case spec == "":
		path = "/proc/thread-self/ns/net" // not self: that is the main thread, which may be in Do
	case !strings.Contains(spec, "/"):
		path = filepath.Join(namedNamespaces, spec)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && spec != "" {
		return nil, fmt.Errorf("network namespace %q does not exist: %w", spec, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n, err := AdoptNamespace(fd)
	if err == nil {
		n.spec = spec
	}
	return n, err
}

// DeviceKey names an interface in a namespace, for people too, in a way that two
// adapters have in common if they mean the same. Namespaces are compared as they
// are written: which one a path leads to is known only when it is opened.
func DeviceKey(spec, name string) string {
	if spec == "" {
		return "interface " + name
	}
	return fmt.Sprintf("interface %s in network namespace %q", name, spec)
}

// AdoptNamespace makes a Namespace of a descriptor, which it owns from then on,
// also when it fails.
func AdoptNamespace(fd int) (*Namespace, error) {
	id, err := identify(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look at a network namespace: %w", err)
	}
	return &Namespace{fd: fd, id: id}, nil
}

func identify(fd int) (namespaceID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return namespaceID{}, err
	}
	return namespaceID{dev: st.Dev, ino: st.Ino}, nil
}

// String names the namespace in errors.
func (n *Namespace) String() string {
	if n.spec == "" {
		return "this network namespace"
	}
	return fmt.Sprintf("network namespace %q", n.spec)
}

// Dup is the namespace once more, to be closed on its own.
func (n *Namespace) Dup() (*Namespace, error) {
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", n, err)
	}
	return &Namespace{fd: fd, id: n.id, spec: n.spec}, nil
}

// Same reports whether both are the same namespace.
func (n *Namespace) Same(o *Namespace) bool { return n.id == o.id }

// FD is the namespace's descriptor, still owned by n.
func (n *Namespace) FD() int { return n.fd }

// Close lets go of the namespace.
func (n *Namespace) Close() { unix.Close(n.fd) }

// Do runs fn on a thread that is inside the namespace and waits for it. Sockets
// and devices that fn opens belong to the namespace for good; goroutines that
// it starts run outside.
func (n *Namespace) Do(fn func() error) error {
	c := make(chan error, 1)
	// A goroutine of its own: a thread that cannot be brought back is left
	// locked, and ends with it.
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			c <- fmt.Errorf("open the thread's network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if id, err := identify(home); err == nil && id == n.id {
			defer runtime.UnlockOSThread() // setns would ask for rights that nobody needs here
			c <- fn()
			return
		}
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			c <- fmt.Errorf("enter %s: %w", n, err)
			return
		}
		err = fn()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		c <- err
	}()
	return <-c
}

// Netlink opens a handle for requests that this namespace answers. Close it.
func (n *Namespace) Netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n, err)
	}
	return h, nil
}

// Configured lists the kernel's own IP addresses on interface number index,
// without IPv6 link-local ones, which every interface that is up has.
func (n *Namespace) Configured(index int) ([]string, error) {
	h, err := n.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	addrs, err := h.AddrList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var found []string
	for _, a := range addrs {
		if a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() {
			continue
		}
		found = append(found, a.IPNet.String())
	}
	return found, nil
}
