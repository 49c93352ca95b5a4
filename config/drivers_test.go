package config

import (
	"errors"
	"net/netip"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// wireOptions has one field of each form that a driver may use.
type wireOptions struct {
	Interface string         `toml:"interface"`
	Queues    int            `toml:"queues" range:"1..16"`
	Offload   string         `toml:"offload" oneof:"auto,on,off"`
	Poll      time.Duration  `toml:"poll"`
	Shared    bool           `toml:"shared"`
	Peers     []netip.Addr   `toml:"peers"`
	Networks  []netip.Prefix `toml:"networks"`
	Tags      []string       `toml:"tags"`
	Weight    uint8          `toml:"weight"`
	Ring      ringOptions    `toml:"ring"`
	ownership

	hidden int
}

type ringOptions struct {
	Frames int  `toml:"frames"`
	Mapped bool `toml:"mapped"`
}

type ownership struct {
	Owner string `toml:"owner"`
}

func (o *wireOptions) Validate() error {
	var errs []error
	if o.Interface == "" {
		errs = append(errs, &ndiscore.OptionError{Option: "interface", Err: errors.New("is required: the kernel's name of the device")})
	}
	if o.Ring.Frames&(o.Ring.Frames-1) != 0 {
		errs = append(errs, &ndiscore.OptionError{Option: "ring.frames", Err: errors.New("is not a power of two")})
	}
	if o.Shared && o.Queues > 1 {
		errs = append(errs, errors.New("a shared device has one queue"))
	}
	return errors.Join(errs...)
}

func (o *wireOptions) DeviceKey(string) string { return "interface " + o.Interface }

// loopOptions is a driver with next to nothing to tell.
type loopOptions struct {
	Queues int `toml:"queues"`
}

func testDrivers() []ndiscore.Driver {
	return []ndiscore.Driver{
		{Name: "wire", NewOptions: func() any {
			return &wireOptions{
				Queues: 1, Offload: "auto", Poll: 50 * time.Microsecond, Tags: []string{"a", `b"c`},
				Ring: ringOptions{Frames: 256}, hidden: 1,
			}
		}},
		{Name: "loop", NewOptions: func() any { return &loopOptions{Queues: 1} }},
	}
}
