package tap

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Limits of mtu, the least that IPv4 allows and what the kernel's driver takes,
// and of queues.
const (
	minMTU = 68
	maxMTU = 65535 - ndiscore.EthernetHeader

	maxQueues = 16
)

// Options are the keys of an adapter with driver = "tap".
type Options struct {
	// Interface is the name of the TAP device; by default the adapter's.
	Interface string `toml:"interface"`
	// Netns is the network namespace where the device is, or is made: a path,
	// or a name known to `ip netns`. By default the switch's own.
	Netns string `toml:"netns"`
	// MTU is set on the device; 0 leaves it as it is, 1500 for a new one.
	MTU int `toml:"mtu"`
	// MAC is the address that the kernel's end of the link gets; empty leaves
	// it as it is, random for a new device. The switch's end has another one,
	// derived from the adapter's name.
	MAC string `toml:"mac"`
	// Up has the kernel's end set up (ip link set up) when the adapter starts.
	Up bool `toml:"up"`
	// Persist leaves the device in place when the adapter is removed. A device
	// that was persistent before stays so in any case.
	Persist bool `toml:"persist"`
	// Queues is how many queues the device has, each with a goroutine that
	// receives. A device that is there already must have been made for several
	// if this is more than 1.
	Queues int `toml:"queues"`
}

// NewOptions holds the defaults.
func NewOptions() *Options { return &Options{Up: true, Queues: 1} }

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
	// What the kernel refuses, and "%", by which it would choose a number itself.
	if strings.ContainsAny(o.Interface, "/:% \t\n\v\f\r") || o.Interface == "." || o.Interface == ".." {
		bad("interface", "%q cannot be the name of an interface", o.Interface)
	}
	if o.MTU != 0 && (o.MTU < minMTU || o.MTU > maxMTU) {
		bad("mtu", "%d is out of range: %d to %d, or 0 to leave it alone", o.MTU, minMTU, maxMTU)
	}
	if o.MAC != "" {
		if m, err := net.ParseMAC(o.MAC); err != nil || len(m) != 6 {
			bad("mac", "%q is not an Ethernet address such as 02:00:00:00:00:01", o.MAC)
		} else if mac := ndiscore.MAC(m); mac.IsGroup() || mac.IsZero() {
			bad("mac", "%s cannot be the address of one station", o.MAC)
		}
	}
	if o.Queues < 1 || o.Queues > maxQueues {
		bad("queues", "%d is out of range: 1 to %d", o.Queues, maxQueues)
	}
	return errors.Join(errs...)
}
