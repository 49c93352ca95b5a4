package fault

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Unit says how a parameter is written.
type Unit uint8

// The units.
const (
	UnitShare Unit = iota // a part of all frames: "1%", "0.01"
	UnitCount             // a whole number
	UnitTime              // "20ms", "1.5s"
	UnitBytes             // "64KiB", "1500"
	UnitRate              // "10Mbit", "1.25MB", with or without "/s"; a bare number is bytes per second
	UnitFlag              // true or false
	UnitWord              // one of a list
)

// String describes the unit for people.
func (u Unit) String() string {
	switch u {
	case UnitShare:
		return "share"
	case UnitCount:
		return "number"
	case UnitTime:
		return "time"
	case UnitBytes:
		return "bytes"
	case UnitRate:
		return "rate"
	case UnitFlag:
		return "true or false"
	case UnitWord:
		return "word"
	}
	return "invalid"
}

// MarshalText makes a Unit print as its name in JSON.
func (u Unit) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// scales are the suffixes of bytes and rates, the longest first where one ends
// in another.
var scales = []struct {
	suffix string
	factor float64
}{
	{"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8}, {"bit", 1. / 8},
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"b", 1},
}

// longestValue bounds the text of one value.
const longestValue = 64

// parse reads text in unit u: a share from 0 to 1, a count, nanoseconds, bytes,
// bytes per second, 0 or 1, or the place in words.
func (u Unit) parse(text string, words []string) (float64, error) {
	if len(text) > longestValue {
		return 0, fmt.Errorf("is %d bytes long: at most %d make sense", len(text), longestValue)
	}
	bad := func() (float64, error) { return 0, fmt.Errorf("%q is no %s", text, u) }
	number := func(s string) (float64, error) {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return bad()
		}
		return v, nil
	}
	switch u {
	case UnitShare:
		s, percent := strings.CutSuffix(text, "%")
		v, err := number(s)
		if percent {
			v /= 100
		}
		return v, err
	case UnitCount:
		v, err := strconv.ParseInt(text, 10, 52)
		if err != nil {
			return bad()
		}
		return float64(v), nil
	case UnitTime:
		v, err := time.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("%q is no time such as 20ms or 1.5s", text)
		}
		return float64(v), nil
	case UnitBytes, UnitRate:
		s := strings.ToLower(text)
		if u == UnitRate {
			s = strings.TrimSuffix(s, "/s")
		}
		for _, c := range scales {
			if n, ok := strings.CutSuffix(s, c.suffix); ok && (u == UnitRate || !strings.HasSuffix(c.suffix, "bit")) {
				v, err := number(n)
				return v * c.factor, err
			}
		}
		return number(s)
	case UnitFlag:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return 0, fmt.Errorf("%q is neither true nor false", text)
		}
		if v {
			return 1, nil
		}
		return 0, nil
	case UnitWord:
		if i := slices.Index(words, text); i >= 0 {
			return float64(i), nil
		}
		return 0, fmt.Errorf("%q is none of %s", text, strings.Join(words, ", "))
	}
	return bad()
}

// format writes v so that parse reads it again, for ranges and errors.
func (u Unit) format(v float64) string {
	short := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	switch u {
	case UnitShare:
		return short(v*100) + "%"
	case UnitTime:
		return time.Duration(v).String()
	case UnitBytes, UnitRate:
		for _, c := range []struct {
			suffix string
			factor float64
		}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
			if n := v / c.factor; n >= 1 && n == math.Trunc(n) {
				return short(n) + c.suffix
			}
		}
		return short(v) + "B"
	}
	return short(v)
}
