package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ethtoolOffloads are the switches that Offloads turns, in the order in which they can be turned on: each
// rests on those before it.
var ethtoolOffloads = []struct {
	name     string
	get, set uint32
}{
	{"rx-checksum", unix.ETHTOOL_GRXCSUM, unix.ETHTOOL_SRXCSUM},
	{"tx-checksum", unix.ETHTOOL_GTXCSUM, unix.ETHTOOL_STXCSUM},
	{"scatter-gather", unix.ETHTOOL_GSG, unix.ETHTOOL_SSG},
	{"tso", unix.ETHTOOL_GTSO, unix.ETHTOOL_STSO},
	{"gso", unix.ETHTOOL_GGSO, unix.ETHTOOL_SGSO},
	{"gro", unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO},
}

// Offloads turns checksum and segmentation offloads of an interface on or off: TX and RX checksum,
// scatter-gather, TSO, GSO and GRO. Off, every packet on the wire is whole: with its checksum and no larger
// than the MTU. What the device cannot switch is left as it is.
func (h *Host) Offloads(ifname string, on bool) error {
	if h.err != nil {
		return h.err
	}
	var v uint32
	if on {
		v = 1
	}
	return h.lab.check(h.ethtool(ifname, func(call func(cmd uint32, v *uint32) error) error {
		for i := range ethtoolOffloads {
			o := ethtoolOffloads[i]
			if !on {
				o = ethtoolOffloads[len(ethtoolOffloads)-1-i]
			}
			err := call(o.set, &v)
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("set %s: %w", o.name, err)
			}
		}
		return nil
	}))
}

// OffloadState reads those switches back, by name: "rx-checksum", "tx-checksum", "scatter-gather", "tso",
// "gso", "gro".
func (h *Host) OffloadState(ifname string) (map[string]bool, error) {
	if h.err != nil {
		return nil, h.err
	}
	state := make(map[string]bool)
	err := h.ethtool(ifname, func(call func(cmd uint32, v *uint32) error) error {
		for _, o := range ethtoolOffloads {
			var v uint32
			if err := call(o.get, &v); err != nil {
				return fmt.Errorf("get %s: %w", o.name, err)
			}
			state[o.name] = v != 0
		}
		return nil
	})
	return state, h.lab.check(err)
}

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in its union.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolValue
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

func (n *Namespace) ethtool(ifname string, fn func(call func(cmd uint32, v *uint32) error) error) error {
	// Check first: the ioctl's answer to a missing interface does not say that it is that.
	if err := n.withLink(ifname, "ethtool", func(netlink.Link) error { return nil }); err != nil {
		return err
	}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		return fn(func(cmd uint32, v *uint32) error {
			val := ethtoolValue{cmd: cmd, data: *v}
			req := ethtoolRequest{data: &val}
			copy(req.name[:unix.IFNAMSIZ-1], ifname)
			// The kernel follows the pointer inside req, so both must stay where they are.
			var pin runtime.Pinner
			pin.Pin(&val)
			defer pin.Unpin()
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
			if errno != 0 {
				return errno
			}
			*v = val.data
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("lab: %s: ethtool %s: %w", n.name, ifname, err)
	}
	return nil
}
