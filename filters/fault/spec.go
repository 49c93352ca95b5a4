package fault

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Direction says which frames are meant: RX those into the switch, TX those out
// of it.
type Direction uint8

// The directions. The zero value stands for Both.
const (
	RX   Direction = 1
	TX   Direction = 2
	Both Direction = RX | TX
)

// String is the direction as it is written.
func (d Direction) String() string {
	switch d {
	case RX:
		return "rx"
	case TX:
		return "tx"
	}
	return "both"
}

// MarshalText is String.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what String writes; nothing is Both.
func (d *Direction) UnmarshalText(text []byte) error {
	switch string(text) {
	case "rx":
		*d = RX
	case "tx":
		*d = TX
	case "both", "":
		*d = Both
	default:
		return fmt.Errorf("%q is no direction: rx (into the switch), tx (out of it) or both", text)
	}
	return nil
}

// Spec is a fault to be injected.
type Spec struct {
	Kind      string            `json:"kind"`
	Adapter   string            `json:"adapter"`             // adapter, or for a fault of frames bundle or bridge
	Direction Direction         `json:"direction,omitempty"` // of a fault of frames
	Params    map[string]string `json:"params,omitempty"`    // as Kinds says
	For       time.Duration     `json:"for,omitempty"`       // how long; 0: as long as is allowed
	Seed      uint64            `json:"seed,omitempty"`      // 0: any
	Owner     string            `json:"owner,omitempty"`     // who it ends with; see Injector.EndOwner
}

// longestSpec bounds the text of a fault in bytes.
const longestSpec = 4096

// ParseSpec reads a fault as people write it: a kind, then words of the form
// key=value. The keys are on (the adapter), direction, for, seed and the kind's
// own parameters.
//
//	ParseSpec("drop", "on=wan0", "chance=1%", "direction=rx", "for=30s")
//
// The words are checked when it is injected, or by Validate.
func ParseSpec(kind string, words ...string) (Spec, error) {
	s := Spec{Kind: kind, Direction: Both}
	n := len(kind)
	var errs []error
	for _, w := range words {
		if n += len(w); n > longestSpec {
			return Spec{}, fmt.Errorf("fault %.20q: more than %d bytes long: %w", kind, longestSpec, ndiscore.ErrInvalidData)
		}
		key, value, ok := strings.Cut(w, "=")
		bad := func(err error) { errs = append(errs, &ndiscore.OptionError{Option: key, Err: err}) }
		if !ok {
			bad(errors.New("has no value: key=value"))
			continue
		}
		switch key {
		case "on":
			s.Adapter = value
		case "direction":
			if err := s.Direction.UnmarshalText([]byte(value)); err != nil {
				bad(err)
			}
		case "for":
			d, err := time.ParseDuration(value)
			if err != nil {
				bad(fmt.Errorf("%q is no time such as 30s", value))
			}
			s.For = d
		case "seed":
			v, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				bad(fmt.Errorf("%q is no number from 0 to %d", value, uint64(1<<64-1)))
			}
			s.Seed = v
		default:
			if _, twice := s.Params[key]; twice {
				bad(errors.New("is given twice"))
			}
			if s.Params == nil {
				s.Params = map[string]string{}
			}
			s.Params[key] = value
		}
	}
	if len(errs) > 0 {
		return Spec{}, fmt.Errorf("fault %s: %w: %w", kind, ndiscore.ErrInvalidData, errors.Join(errs...))
	}
	return s, nil
}

// String is the fault as ParseSpec reads it, in one line.
func (s Spec) String() string {
	var b strings.Builder
	b.WriteString(s.Kind)
	word := func(key, value string) { b.WriteString(" " + key + "=" + value) }
	if s.Adapter != "" {
		word("on", s.Adapter)
	}
	for _, key := range slices.Sorted(maps.Keys(s.Params)) {
		word(key, s.Params[key])
	}
	if s.Direction == RX || s.Direction == TX {
		word("direction", s.Direction.String())
	}
	if s.For != 0 {
		word("for", s.For.String())
	}
	if s.Seed != 0 {
		word("seed", strconv.FormatUint(s.Seed, 10))
	}
	return b.String()
}

// Validate reports what is wrong with s, as far as that can be told without a
// switch: errors wrap ndiscore.ErrInvalidData.
func (s Spec) Validate() error {
	_, _, err := s.read()
	return err
}

// read checks s and reads its parameters.
func (s Spec) read() (*Kind, values, error) {
	k, err := kindOf(s.Kind)
	if err != nil {
		return nil, nil, fmt.Errorf("fault: %w", err)
	}
	v, err := k.read(s.Params)
	errs := []error{}
	if err != nil {
		errs = append(errs, err)
	}
	bad := func(key, format string, args ...any) {
		errs = append(errs, &ndiscore.OptionError{Option: key, Err: fmt.Errorf(format, args...)})
	}
	if s.Adapter == "" {
		bad("on", "is needed: the adapter that is to fail")
	}
	if s.For < 0 {
		bad("for", "%s: a fault lasts some time", s.For)
	}
	switch {
	case s.Direction > Both:
		bad("direction", "%d is none", s.Direction)
	case k.Device && s.Direction != 0 && s.Direction != Both:
		bad("direction", "%s has none: it is the device that fails", k.Name)
	}
	if len(errs) > 0 {
		return nil, nil, fmt.Errorf("fault %s: %w: %w", s.Kind, ndiscore.ErrInvalidData, errors.Join(errs...))
	}
	return k, v, nil
}
