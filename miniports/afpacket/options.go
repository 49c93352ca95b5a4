package afpacket

import (
	"cmp"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Limits of ring_mib and queues.
const (
	defaultRing = 8
	maxRing     = 256
	maxQueues   = 16
)

// Options are the keys of an adapter with driver = "afpacket".
type Options struct {
	// Interface is the kernel interface to take over; by default the one named
	// like the adapter.
	Interface string `toml:"interface"`
	// Netns is the network namespace where the interface is: a path, or a name
	// known to `ip netns`. By default the switch's own.
	Netns string `toml:"netns"`
	// Shared allows an interface that carries IP addresses of the kernel.
	Shared bool `toml:"shared"`
	// RingMiB is how much memory the kernel may fill with received frames that
	// we have not taken yet. Several queues share it, with at least 1 MiB each.
	RingMiB int `toml:"ring_mib"`
	// Queues is by how many sockets, each with a goroutine that receives, the
	// interface is served. A flow keeps to one of them.
	Queues int `toml:"queues"`
}

// NewOptions holds the defaults.
func NewOptions() *Options { return &Options{RingMiB: defaultRing, Queues: 1} }

// DeviceKey says which interface an adapter of that name takes, whatever its
// driver: the configuration gives it to one adapter only (config.DeviceKeyer).
func (o *Options) DeviceKey(adapter string) string {
	return netdev.DeviceKey(o.Netns, cmp.Or(o.Interface, adapter))
}

// Validate returns one error per bad key.
func (o *Options) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, &ndiscore.OptionError{Option: key, Err: fmt.Errorf(format, args...)})
	}
	if len(o.Interface) >= unix.IFNAMSIZ {
		bad("interface", "%q is too long: an interface name has at most %d bytes", o.Interface, unix.IFNAMSIZ-1)
	}
	if o.RingMiB < 1 || o.RingMiB > maxRing {
		bad("ring_mib", "%d is out of range: 1 to %d", o.RingMiB, maxRing)
	}
	if o.Queues < 1 || o.Queues > maxQueues {
		bad("queues", "%d is out of range: 1 to %d", o.Queues, maxQueues)
	}
	return errors.Join(errs...)
}
