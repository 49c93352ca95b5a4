package tap

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// followEvery is how often a device in a foreign namespace is looked at.
const followEvery = 100 * time.Millisecond

// follower looks after a device that was moved to another network namespace
// while we are attached, until it comes home. A netlink socket there would keep
// that namespace, and with it the device, alive after everybody else has left;
// so the follower looks from time to time, and holds nothing in between. Down is
// noticed sooner by a refused write, deletion at once by the descriptor.
type follower struct {
	mu     sync.Mutex    // guards all but done
	quit   chan struct{} // nil while not following
	again  bool          // started anew while it was about to end
	closed bool
	done   sync.WaitGroup
}

// ready allows start after a stop.
func (f *follower) ready() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = false
}

// start has look called from time to time until it says that there is no more
// to see.
func (f *follower) start(look func() (more bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	if f.quit != nil {
		f.again = true
		return
	}
	quit := make(chan struct{})
	f.quit, f.again = quit, false
	// The follower's goroutine: ended by stop or by look, blocks on its ticker.
	f.done.Go(func() {
		t := time.NewTicker(followEvery)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			if !look() && f.end() {
				return
			}
		}
	})
}

// end stops following unless there is a new reason to.
func (f *follower) end() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.again {
		f.again = false
		return false
	}
	f.quit = nil
	return true
}

// stop ends it, and keeps it from starting.
func (f *follower) stop() {
	f.mu.Lock()
	f.closed = true
	if f.quit != nil {
		close(f.quit)
		f.quit = nil
	}
	f.mu.Unlock()
	f.done.Wait()
}

// look tells of the device while it is in a foreign namespace. When it is home
// again the watcher does that, and look reports that it has done its part.
func (a *adapter) look() (more bool) {
	const away = " in another network namespace"
	s, err := a.dev.state(a.ns)
	switch {
	case errors.Is(err, unix.EBADFD):
		return false // deleted: the receive goroutine or the next send tells
	case err != nil:
		a.link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "device is" + away + ": " + err.Error()})
		return true
	case s.home:
		// The subscription before ended with the move. An error: it is not there
		// under this name, so look again.
		return a.subscribe(s.name, a.changed) != nil
	}
	a.link.Attributes(a.mac, s.mtu, "device's MTU was set"+away)
	if s.up {
		a.link.Observed(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "kernel's end is up" + away})
	} else {
		a.link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "kernel's end is down" + away})
	}
	return true
}

// deviceState is how a device is, wherever it is.
type deviceState struct {
	name string
	home bool // in the namespace asked about; the rest is not looked at then
	up   bool
	mtu  int
}

// state looks at the device.
func (d *device) state(home *netdev.Namespace) (s deviceState, err error) {
	name, ns, err := d.where()
	if err != nil {
		return s, err
	}
	defer ns.Close() // at once: it keeps the namespace alive
	s.name, s.home = name, ns.Same(home)
	if s.home {
		return s, nil
	}
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		flags, err := netdev.Flags(fd, name)
		if err != nil {
			return err
		}
		s.up = flags&unix.IFF_UP != 0
		s.mtu, err = netdev.MTU(fd, name)
		return err
	})
	return s, err
}
