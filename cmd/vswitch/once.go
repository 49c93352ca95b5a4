package main

import (
	"errors"
	"flag"

	"github.com/urfave/cli/v2"
)

// A flag that is given twice is a mistake: the package flag would take the last
// and say nothing.

const givenTwice = "is given twice"

// onceEach are flags that each refuse to be given a second time.
func onceEach(flags []cli.Flag) []cli.Flag {
	out := make([]cli.Flag, len(flags))
	for i, f := range flags {
		switch f := f.(type) {
		case *cli.StringFlag:
			out[i] = onceString{f}
		case *cli.BoolFlag:
			out[i] = onceBool{f}
		case *cli.IntFlag:
			out[i] = onceInt{f}
		case *cli.UintFlag:
			out[i] = onceUint{f}
		case *cli.Uint64Flag:
			out[i] = onceUint64{f}
		default:
			out[i] = f
		}
	}
	return out
}

// Each is the flag itself but for Apply: help and manual ask it for much more
// than cli.Flag has.
type (
	onceString struct{ *cli.StringFlag }
	onceBool   struct{ *cli.BoolFlag }
	onceInt    struct{ *cli.IntFlag }
	onceUint   struct{ *cli.UintFlag }
	onceUint64 struct{ *cli.Uint64Flag }
)

func (f onceString) Apply(set *flag.FlagSet) error { return applyOnce(f.StringFlag, set) }
func (f onceBool) Apply(set *flag.FlagSet) error   { return applyOnce(f.BoolFlag, set) }
func (f onceInt) Apply(set *flag.FlagSet) error    { return applyOnce(f.IntFlag, set) }
func (f onceUint) Apply(set *flag.FlagSet) error   { return applyOnce(f.UintFlag, set) }
func (f onceUint64) Apply(set *flag.FlagSet) error { return applyOnce(f.Uint64Flag, set) }

func applyOnce(f cli.Flag, set *flag.FlagSet) error {
	if err := f.Apply(set); err != nil {
		return err
	}
	for _, name := range f.Names() {
		x := set.Lookup(name)
		x.Value = &onceValue{Value: x.Value}
	}
	return nil
}

// onceValue is a value that can be set once.
type onceValue struct {
	flag.Value
	set bool
}

// Set implements flag.Value.
func (v *onceValue) Set(text string) error {
	if v.set {
		return errors.New(givenTwice)
	}
	v.set = true
	return v.Value.Set(text)
}

// IsBoolFlag says that a flag needs no value if the value inside says so.
func (v *onceValue) IsBoolFlag() bool {
	b, ok := v.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}
