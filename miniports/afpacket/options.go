package afpacket

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Limits of ring_mib.
const (
	defaultRing = 8
	maxRing     = 256
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
	// we have not taken yet.
	RingMiB int `toml:"ring_mib"`
}

// NewOptions holds the defaults.
func NewOptions() *Options { return &Options{RingMiB: defaultRing} }

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
	return errors.Join(errs...)
}
