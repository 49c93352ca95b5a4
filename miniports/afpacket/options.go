package afpacket

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Limits of ring_frames.
const (
	defaultRingFrames = 256
	minRingFrames     = ndiscore.BatchFrames
	maxRingFrames     = 8192
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
	// RingFrames is how many received frames the kernel may hold for us, 68 KiB
	// of memory each.
	RingFrames int `toml:"ring_frames"`
}

// NewOptions holds the defaults.
func NewOptions() *Options { return &Options{RingFrames: defaultRingFrames} }

// Validate returns one error per bad key.
func (o *Options) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, &ndiscore.OptionError{Option: key, Err: fmt.Errorf(format, args...)})
	}
	if len(o.Interface) >= unix.IFNAMSIZ {
		bad("interface", "%q is too long: an interface name has at most %d bytes", o.Interface, unix.IFNAMSIZ-1)
	}
	if o.RingFrames < minRingFrames || o.RingFrames > maxRingFrames {
		bad("ring_frames", "%d is out of range: %d to %d", o.RingFrames, minRingFrames, maxRingFrames)
	}
	return errors.Join(errs...)
}
