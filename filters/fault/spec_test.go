package fault_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestParseSpec(t *testing.T) {
	s, err := fault.ParseSpec("delay", "on=wan0", "delay=20ms", "jitter=5ms", "direction=rx", "for=30s", "seed=7")
	if err != nil {
		t.Fatal(err)
	}
	want := fault.Spec{
		Kind: "delay", Adapter: "wan0", Direction: fault.RX, For: 30 * time.Second, Seed: 7,
		Params: map[string]string{"delay": "20ms", "jitter": "5ms"},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("%+v", s)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	if got := s.String(); got != "delay on=wan0 delay=20ms jitter=5ms direction=rx for=30s seed=7" {
		t.Error(got)
	}
	for _, words := range [][]string{
		{"drop", "chance"}, {"drop", "direction=up"}, {"drop", "for=soon"}, {"drop", "seed=-1"}, {"drop", "chance=1", "chance=2"},
		{"drop", strings.Repeat("x", 5000) + "=1"},
	} {
		if _, err := fault.ParseSpec(words[0], words[1:]...); !errors.Is(err, ndiscore.ErrInvalidData) {
			t.Errorf("%.40v: %v", words, err)
		}
	}
}

// Each parameter, good and bad, of each unit.
func TestParams(t *testing.T) {
	for _, c := range []struct {
		spec string
		bad  string // the parameter at fault; "": none
	}{
		{"drop chance=1%", ""}, {"drop chance=0.5", ""}, {"drop chance=100%", ""}, {"drop chance=101%", "chance"}, {"drop chance=-1%", "chance"},
		{"drop chance=x", "chance"}, {"drop chance=NaN", "chance"}, {"drop chance=", "chance"}, {"drop", "chance"}, {"drop every=0", "every"},
		{"drop every=1.5", "every"}, {"drop every=10 first=3", "chance"}, {"drop every=99999999999999999999", "every"}, {"drop chance=1 colour=red", "colour"},
		{"drop chance=1 burst=0", "burst"},
		{"delay delay=20ms", ""}, {"delay", "delay"}, {"delay delay=20", "delay"}, {"delay delay=61s", "delay"}, {"delay delay=-1s", "delay"},
		{"delay delay=1ms jitter=2ms", "jitter"}, {"delay delay=1ms reorder=maybe", "reorder"}, {"delay delay=1ms limit=1MiB", ""}, {"delay delay=1ms limit=1KiB", "limit"},
		{"delay delay=1ms limit=10Mbit", "limit"}, {"delay delay=1ms limit=65GiB", "limit"},
		{"duplicate every=3", ""}, {"corrupt chance=1% bits=3 where=frame", ""}, {"corrupt chance=1% where=head", "where"}, {"corrupt chance=1% bits=65", "bits"},
		{"rate rate=10Mbit", ""}, {"rate rate=1.25MB/s", ""}, {"rate rate=1000", ""}, {"rate rate=10mbit/s burst=64KiB", ""}, {"rate rate=1", "rate"}, {"rate", "rate"},
		{"rate rate=1MB burst=1000", "burst"},
		{"link-down", ""}, {"link-down why=fun", "why"}, {"hang heals=true", ""}, {"fail-init times=3", ""}, {"reset-storm every=1s result=hard", ""},
		{"reset-storm every=1ms", "every"}, {"surprise", ""},
	} {
		words := strings.Fields(c.spec)
		s, err := fault.ParseSpec(words[0], append(words[1:], "on=x")...)
		if err == nil {
			err = s.Validate()
		}
		var o *ndiscore.OptionError
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%s: %v", c.spec, err)
		case c.bad != "" && (!errors.Is(err, ndiscore.ErrInvalidData) || !errors.As(err, &o) || o.Option != c.bad):
			t.Errorf("%s: %v", c.spec, err)
		}
	}
}

// Every default is good, in its range, and every parameter explained.
func TestKinds(t *testing.T) {
	var names []string
	for _, k := range fault.Kinds() {
		names = append(names, k.Name)
		if k.Help == "" {
			t.Errorf("%s: no help", k.Name)
		}
		s := fault.Spec{Kind: k.Name, Adapter: "x", Params: map[string]string{}}
		for _, p := range k.Params {
			if p.Help == "" || p.Needed && p.Default != "" {
				t.Errorf("%s %s: %+v", k.Name, p.Name, p)
			}
			if p.Default != "" {
				s.Params[p.Name] = p.Default
			}
		}
		if i := slices.IndexFunc(k.Params, func(p fault.Param) bool { return p.Needed }); i >= 0 {
			s.Params[k.Params[i].Name] = map[fault.Unit]string{fault.UnitTime: "1ms", fault.UnitRate: "1MB"}[k.Params[i].Unit]
		} else if len(k.OneOf) > 0 {
			if err := s.Validate(); err == nil {
				t.Errorf("%s needs none of %v", k.Name, k.OneOf)
			}
			s.Params["chance"] = "1%"
		}
		if err := s.Validate(); err != nil {
			t.Errorf("%s with its defaults: %v", k.Name, err)
		}
	}
	if want := "[drop delay duplicate corrupt rate link-down hang fail-init reset-storm surprise]"; fmt.Sprint(names) != want {
		t.Errorf("%v", names)
	}
}

func TestFilterOptions(t *testing.T) {
	d := fault.FilterDriver()
	o := d.NewOptions().(*fault.FilterOptions)
	if err := o.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	*o = fault.FilterOptions{Drop: "1%", Corrupt: "1%", Duplicate: "1%", Rate: "10Mbit", Delay: "20ms", Jitter: "1ms", Seed: 3, Direction: "tx"}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := d.New("lossy", o); err != nil {
		t.Error(err)
	}
	for key, o := range map[string]fault.FilterOptions{
		"drop":      {Drop: "2"},
		"corrupt":   {Corrupt: "x"},
		"duplicate": {Duplicate: "-1%"},
		"rate":      {Rate: "fast"},
		"delay":     {Delay: "1h"},
		"jitter":    {Delay: "1ms", Jitter: "1s"},
		"direction": {Direction: "up"},
	} {
		var e *ndiscore.OptionError
		if err := o.Validate(); !errors.As(err, &e) || e.Option != key {
			t.Errorf("%s: %v", key, err)
		}
		if _, err := d.New("lossy", &o); err == nil {
			t.Errorf("%s: made all the same", key)
		}
	}
	if err := (&fault.FilterOptions{Jitter: "1ms"}).Validate(); err == nil {
		t.Error("jitter without delay")
	}
	if _, err := d.New("lossy", "nonsense"); err == nil {
		t.Error("options of another type")
	}
}

// FuzzSpec: what can be read can be written and read again, and nothing panics.
func FuzzSpec(f *testing.F) {
	f.Add("drop", "chance=1%", "on=wan0", "for=30s")
	f.Add("delay", "delay=1ms", "limit=1MiB", "seed=18446744073709551615")
	f.Add("rate", "rate=10Mbit/s", "burst=64KiB", "direction=rx")
	f.Add("corrupt", "every=3", "where=frame", "bits=64")
	f.Fuzz(func(t *testing.T, kind, a, b, c string) {
		s, err := fault.ParseSpec(kind, a, b, c, "on=x")
		if err != nil {
			return
		}
		valid := s.Validate() == nil
		words := strings.Fields(s.String())
		if !valid || strings.ContainsAny(a+b+c, " \t\n\v\f\r\u0085\u00a0") {
			return
		}
		again, err := fault.ParseSpec(words[0], words[1:]...)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if again.String() != s.String() || again.Validate() != nil {
			t.Fatalf("%q became %q", s, again)
		}
	})
}
