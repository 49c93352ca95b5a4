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

const away = " in another network namespace"

// begin follows the device from where it is now, and returns what there is to
// tell of it at first. A stopped adapter keeps its device, and somebody may have
// moved it, or given it another name, since.
func (a *adapter) begin() (link ndiscore.LinkState, mtu int, err error) {
	a.follow.ready()
	open := func(l ndiscore.LinkState, m int) {
		link, mtu = l, m
		a.link.Open(a.h, l, a.mac, m)
	}
	s, unseen := a.dev.state(a.ns)
	if errors.Is(unseen, unix.EBADFD) {
		return link, 0, ndiscore.ErrDeviceAbsent // deleted
	}
	if s.home || s.name == "" {
		name := s.name
		if name == "" { // old kernels do not say where it is, nor does any without the rights: most likely at home
			name = a.opt.Interface
		}
		first := true
		err = a.subscribe(name, func(i netdev.LinkInfo) {
			if first { // at once, while subscribe waits
				first = false
				open(linkState(i), i.MTU)
				return
			}
			a.changed(i)
		})
		if !errors.Is(err, ndiscore.ErrDeviceAbsent) {
			return link, mtu, err
		}
		// It has left this moment, or long ago without being seen.
	}
	if s.mtu == 0 {
		if s.mtu = a.link.MTU(); s.mtu == 0 { // as it was before the stop
			return link, 0, errors.Join(ndiscore.ErrDeviceAbsent, unseen)
		}
	}
	open(elsewhere(s, unseen), s.mtu)
	a.follow.start(a.look)
	return link, mtu, nil
}

// look tells of the device while it is in a foreign namespace. When it is home
// again the watcher does that, and look reports that it has done its part.
func (a *adapter) look() (more bool) {
	s, err := a.dev.state(a.ns)
	switch {
	case errors.Is(err, unix.EBADFD):
		return false // deleted: the receive goroutine or the next send tells
	case err == nil && s.home:
		// The subscription before ended with the move. An error: it is not there
		// under this name, so look again.
		return a.subscribe(s.name, a.changed) != nil
	case err == nil:
		a.link.Attributes(a.mac, s.mtu, "device's MTU was set"+away)
	}
	a.link.Observed(elsewhere(s, err))
	return true
}

// elsewhere is the link of a device in a foreign namespace, or err if it could
// not be looked at there.
func elsewhere(s deviceState, err error) ndiscore.LinkState {
	switch {
	case err != nil:
		return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "device is" + away + ": " + err.Error()}
	case s.up:
		return ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "kernel's end is up" + away}
	}
	return ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "kernel's end is down" + away}
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
