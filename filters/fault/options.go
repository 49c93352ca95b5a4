package fault

import (
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// FilterOptions are the keys of a filter with driver = "fault". Each fault is
// off while its key is empty; frames pass those that are on in the order in
// which they stand here.
type FilterOptions struct {
	// Drop is the share of frames that is lost: "1%".
	Drop string `toml:"drop"`
	// Corrupt is the share of frames in which a bit is flipped behind the link
	// header.
	Corrupt string `toml:"corrupt"`
	// Duplicate is the share of frames that is passed on twice.
	Duplicate string `toml:"duplicate"`
	// Rate is how many bytes a second pass, each way: "10Mbit", "1.25MB".
	Rate string `toml:"rate"`
	// Delay is how long frames are held back: "20ms".
	Delay string `toml:"delay"`
	// Jitter is by how much longer or shorter at most; the order stays.
	Jitter string `toml:"jitter"`
	// Seed makes the same frames meet the same chance at every start; 0 makes
	// one from the filter's name.
	Seed uint64 `toml:"seed"`
	// Direction says which frames are meant: into the switch (rx), out of it
	// (tx) or both.
	Direction string `toml:"direction" oneof:"both,rx,tx"`
}

// NewFilterOptions holds the defaults.
func NewFilterOptions() *FilterOptions { return &FilterOptions{Direction: Both.String()} }

// Validate returns one error per bad key.
func (o *FilterOptions) Validate() error {
	_, err := o.stages(1)
	return err
}

// stages are the faults that o asks for.
func (o *FilterOptions) stages(seed uint64) ([]stage, error) {
	var stages []stage
	var errs []error
	bad := func(key string, err error) { errs = append(errs, &ndiscore.OptionError{Option: key, Err: err}) }
	var dirs Direction
	if err := dirs.UnmarshalText([]byte(o.Direction)); err != nil {
		bad("direction", err)
	}
	if o.Seed != 0 {
		seed = o.Seed
	}
	for i, x := range []struct {
		key, kind, param, text string
	}{
		{"drop", KindDrop, "chance", o.Drop},
		{"corrupt", KindCorrupt, "chance", o.Corrupt},
		{"duplicate", KindDuplicate, "chance", o.Duplicate},
		{"rate", KindRate, "rate", o.Rate},
		{"delay", KindDelay, "delay", o.Delay},
	} {
		params := map[string]string{x.param: x.text}
		if x.kind == KindDelay && o.Jitter != "" {
			if x.text == "" {
				bad("jitter", errors.New("varies a delay: set delay too"))
			}
			params["jitter"] = o.Jitter
		}
		if x.text == "" {
			continue
		}
		k, err := kindOf(x.kind)
		if err != nil {
			return nil, err
		}
		v, err := k.read(params)
		if err != nil {
			errs = append(errs, rename(err, x.param, x.key))
			continue
		}
		stages = append(stages, k.frame(v, dirs, seed+uint64(i)))
	}
	return stages, errors.Join(errs...)
}

// rename has the errors of parameter from speak of key to.
func rename(err error, from, to string) error {
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var errs []error
	for _, e := range many.Unwrap() {
		var o *ndiscore.OptionError
		if errors.As(e, &o) && o.Option == from {
			e = &ndiscore.OptionError{Option: to, Err: o.Err}
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// FilterDriver is this filter's row in the list of filters.
func FilterDriver() ndiscore.FilterDriver {
	return ndiscore.FilterDriver{
		Name:       "fault",
		NewOptions: func() any { return NewFilterOptions() },
		New: func(name string, options any) (ndiscore.Filter, error) {
			o, ok := options.(*FilterOptions)
			if !ok {
				return nil, fmt.Errorf("fault %s: options are a %T", name, options)
			}
			h := fnv.New64a()
			h.Write([]byte(name))
			stages, err := o.stages(h.Sum64())
			if err != nil {
				return nil, fmt.Errorf("fault %s: %w", name, err)
			}
			return newFilter(stages...), nil
		},
	}
}
