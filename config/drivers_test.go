package config

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
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

// share is a part of the whole, written as a filter driver may want it: "1.5%".
type share float64

func (s share) MarshalText() ([]byte, error) {
	return []byte(strconv.FormatFloat(float64(s), 'g', -1, 64) + "%"), nil
}

func (s *share) UnmarshalText(text []byte) error {
	number, ok := strings.CutSuffix(string(text), "%")
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(n >= 0 && n <= 100) {
		return errors.New(`want a share such as "1.5%"`)
	}
	*s = share(n)
	return nil
}

// mangleOptions are those of a filter.
type mangleOptions struct {
	Drop      share         `toml:"drop"`
	Delay     time.Duration `toml:"delay"`
	Jitter    time.Duration `toml:"jitter"`
	Direction string        `toml:"direction" oneof:"both,send,receive"`
}

func (o *mangleOptions) Validate() error {
	if o.Jitter > o.Delay {
		return &ndiscore.OptionError{Option: "jitter", Err: errors.New("is more than delay")}
	}
	return nil
}

func testFilters() []ndiscore.FilterDriver {
	return []ndiscore.FilterDriver{
		{Name: "mangle", NewOptions: func() any { return &mangleOptions{Direction: "both"} }},
		{Name: "count", NewOptions: func() any { return &struct{}{} }},
	}
}
