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

// follower reports the link of a device that was moved to another network
// namespace while we are attached. A netlink socket there would keep that
// namespace, and with it the device, alive after everybody else has left; so
// the follower looks from time to time, and holds nothing in between. Down is
// noticed sooner by a refused write, deletion at once by the descriptor.
type follower struct {
	mu   sync.Mutex
	quit chan struct{} // nil while not following
	done sync.WaitGroup
}

// start begins to follow d, once.
func (f *follower) start(d *device, link *netdev.LinkReporter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.quit != nil {
		return
	}
	quit := make(chan struct{})
	f.quit = quit
	// Ended by stop, blocks on its ticker.
	f.done.Go(func() {
		t := time.NewTicker(followEvery)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			switch up, err := d.up(); {
			case errors.Is(err, unix.EBADFD):
				return // the receive goroutine or the next send tells
			case err != nil:
				link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "device is in another network namespace: " + err.Error()})
			case up:
				link.Observed(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "kernel's end is up in another network namespace"})
			default:
				link.Observed(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "kernel's end is down in another network namespace"})
			}
		}
	})
}

// stop ends it.
func (f *follower) stop() {
	f.mu.Lock()
	if f.quit != nil {
		close(f.quit)
		f.quit = nil
	}
	f.mu.Unlock()
	f.done.Wait()
}

// up looks whether the device is up, wherever it is.
func (d *device) up() (bool, error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	if err := unix.IoctlIfreq(d.fd, unix.TUNGETIFF, r); err != nil {
		return false, err
	}
	fd, err := unix.IoctlRetInt(d.fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return false, err
	}
	ns, err := netdev.AdoptNamespace(fd)
	if err != nil {
		return false, err
	}
	defer ns.Close() // at once: it keeps the namespace alive
	var flags uint16
	err = ns.Do(func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		flags, err = netdev.Flags(s, r.Name())
		return err
	})
	return flags&unix.IFF_UP != 0, err
}
