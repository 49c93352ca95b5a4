package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one netlink request. The kernel answers at once; a busy machine may not.
const netlinkTimeout = 10 * time.Second

// Namespace is a network namespace without a name in the file system: the fd held here is what keeps it
// alive, so nothing stays behind when the process ends.
type Namespace struct {
	name string
	nl   *netlink.Handle

	mu struct {
		sync.RWMutex // taken for reading by whoever uses fd
		fd           int
	}
}

// NewNamespace makes a network namespace with loopback up and IPv6 addresses usable at once (no duplicate
// address detection, no router solicitations). The name is only used in errors.
func NewNamespace(name string) (*Namespace, error) {
	type result struct {
		fd  int
		err error
	}
	c := make(chan result, 1)
	go func() {
		// A thread that cannot be brought back is never unlocked: the runtime ends it with the goroutine.
		runtime.LockOSThread()
		home, err := openThreadNamespace()
		if err != nil {
			runtime.UnlockOSThread()
			c <- result{err: err}
			return
		}
		defer unix.Close(home)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			c <- result{err: fmt.Errorf("unshare: %w", err)}
			return
		}
		fd, err := openThreadNamespace()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		c <- result{fd: fd, err: err}
	}()
	r := <-c
	if r.err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w", name, r.err)
	}
	n, err := newNamespace(name, r.fd)
	if err != nil {
		return nil, err
	}
	if err := n.prepare(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Current holds the namespace of the calling thread. Closing it lets go of it and nothing more.
func Current(name string) (*Namespace, error) {
	fd, err := openThreadNamespace()
	if err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w", name, err)
	}
	return newNamespace(name, fd)
}

func openThreadNamespace() (int, error) {
	const path = "/proc/thread-self/ns/net"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// newNamespace owns fd, also when it fails.
func newNamespace(name string, fd int) (*Namespace, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lab: namespace %s: netlink: %w", name, err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		unix.Close(fd)
		return nil, fmt.Errorf("lab: namespace %s: netlink timeout: %w", name, err)
	}
	n := &Namespace{name: name, nl: h}
	n.mu.fd = fd
	return n, nil
}

// prepare gives a new namespace the manners that tests need.
func (n *Namespace) prepare() error {
	for _, kv := range [][2]string{
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/dad_transmits", "0"},
		{"net/ipv6/conf/all/router_solicitations", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	} {
		err := n.Sysctl(kv[0], kv[1])
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has nothing to switch off
			return err
		}
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lab: namespace %s: lo: %w", n.name, err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lab: namespace %s: set lo up: %w", n.name, err)
	}
	return nil
}

// Name is the name given at birth; the kernel does not know it.
func (n *Namespace) Name() string { return n.name }

// Netlink is a handle whose requests are answered by this namespace, from any goroutine.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Path names the namespace in the file system, for a configuration key or setns(2): it is good as long as
// the namespace is open, in this process and in others of the same user.
func (n *Namespace) Path() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.mu.fd)
}

// Do runs fn on this goroutine with its thread inside the namespace. Sockets that fn opens and processes
// that it starts belong to the namespace for good; goroutines that fn starts run outside.
func (n *Namespace) Do(fn func() error) error {
	runtime.LockOSThread()
	home, err := openThreadNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: namespace %s: %w", n.name, err)
	}
	if err := n.enter(); err != nil {
		unix.Close(home)
		runtime.UnlockOSThread()
		return err
	}
	var back error
	err = func() error {
		defer func() { // also when fn panics or ends the goroutine, as t.Fatal does
			back = unix.Setns(home, unix.CLONE_NEWNET)
			unix.Close(home)
			if back == nil {
				runtime.UnlockOSThread()
			}
		}()
		return fn()
	}()
	if back != nil {
		// The thread stays locked and dies with this goroutine, so nobody else runs in the wrong place.
		return errors.Join(err, fmt.Errorf("lab: namespace %s: this goroutine cannot leave it: setns: %w", n.name, back))
	}
	return err
}

func (n *Namespace) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.fd < 0 {
		return fmt.Errorf("lab: namespace %s: %w", n.name, ErrClosed)
	}
	if err := unix.Setns(n.mu.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("lab: namespace %s: setns: %w", n.name, err)
	}
	return nil
}

// withFD lends the descriptor to fn.
func (n *Namespace) withFD(fn func(fd int) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.fd < 0 {
		return fmt.Errorf("lab: namespace %s: %w", n.name, ErrClosed)
	}
	return fn(n.mu.fd)
}

// Sysctl sets a key of this namespace, as in Sysctl("net/ipv4/ip_forward", "1"). Slashes, not dots, part
// the key, because interface names may hold dots.
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error {
		f, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
		if err != nil {
			return n.sysctlErr("set", key, err)
		}
		_, err = f.WriteString(value)
		if err := errors.Join(err, f.Close()); err != nil {
			return n.sysctlErr("set", key, err)
		}
		return nil
	})
}

// ReadSysctl reads a key of this namespace.
func (n *Namespace) ReadSysctl(key string) (value string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile("/proc/sys/" + key)
		if err != nil {
			return n.sysctlErr("read", key, err)
		}
		value = strings.TrimSpace(string(b))
		return nil
	})
	return value, err
}

func (n *Namespace) sysctlErr(verb, key string, err error) error {
	hint := ""
	if errors.Is(err, unix.EROFS) {
		hint = " (this container mounts /proc/sys read-only: start it with --privileged or unmask /proc/sys)"
	}
	return fmt.Errorf("lab: namespace %s: %s %s: %w%s", n.name, verb, key, err, hint)
}

// Close lets go of the namespace; the kernel removes it and what is in it when nobody else holds it. It
// may be called again.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.fd < 0 {
		return nil
	}
	n.nl.Close()
	err := unix.Close(n.mu.fd)
	n.mu.fd = -1
	return closeErr("namespace "+n.name, err)
}

// withLink finds an interface by name, or says which one is missing where, and lends it to fn. The handle
// stays open meanwhile: a closed one would quietly talk to the namespace of the calling thread.
func (n *Namespace) withLink(ifname, doing string, fn func(l netlink.Link) error) error {
	return n.withFD(func(int) error {
		l, err := n.nl.LinkByName(ifname)
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			return fmt.Errorf("lab: %s: %s %s: %w", n.name, doing, ifname, ErrNoLink)
		}
		if err == nil {
			err = fn(l)
		}
		if err != nil {
			return fmt.Errorf("lab: %s: %s %s: %w", n.name, doing, ifname, err)
		}
		return nil
	})
}

func (n *Namespace) deleteLink(ifname string) error {
	return n.withLink(ifname, "delete", n.nl.LinkDel)
}
