package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Kind is one sort of fault that can be injected.
type Kind struct {
	Name   string   `json:"name"`
	Help   string   `json:"help"`
	Device bool     `json:"device"` // it is the device that fails, not frames: it has no direction
	Params []Param  `json:"params"`
	OneOf  []string `json:"one_of,omitempty"` // exactly one of these parameters has to be given

	check func(v values) error // what no single parameter can tell
	frame func(v values, dirs Direction, seed uint64) stage
}

// Param is one parameter of a kind.
type Param struct {
	Name    string   `json:"name"`
	Unit    Unit     `json:"unit"`
	Default string   `json:"default,omitempty"` // "": none; it need not be given unless Required
	Needed  bool     `json:"required,omitempty"`
	Range   string   `json:"range,omitempty"` // for people
	Words   []string `json:"words,omitempty"` // of UnitWord
	Help    string   `json:"help"`

	min, max float64
}

// The names of the kinds.
const (
	KindDrop       = "drop"
	KindDelay      = "delay"
	KindDuplicate  = "duplicate"
	KindCorrupt    = "corrupt"
	KindRate       = "rate"
	KindLinkDown   = "link-down"
	KindHang       = "hang"
	KindFailInit   = "fail-init"
	KindResetStorm = "reset-storm"
	KindSurprise   = "surprise"
)

// Limits of the parameters.
const (
	mostCount  = 1e9
	mostDelay  = time.Minute
	leastHold  = 128 << 10 // two of the longest frames
	mostHold   = 64 << 20
	leastBurst = 2000 // the longest ordinary frame, with tags
	mostBurst  = 1 << 30
	leastRate  = 1000 // bytes a second
	mostRate   = 125e9
	mostBits   = 64
	leastReset = 10 * time.Millisecond
)

// picks are the parameters by which a fault chooses frames.
func picks(verb string) []Param {
	return []Param{
		{Name: "chance", Unit: UnitShare, min: 0, max: 1, Help: verb + " this share of the frames, by chance"},
		{Name: "every", Unit: UnitCount, min: 1, max: mostCount, Help: verb + " every Nth frame"},
		{Name: "first", Unit: UnitCount, min: 1, max: mostCount, Help: verb + " so many frames, the first to come, and then no more"},
		{Name: "burst", Unit: UnitCount, Default: "1", min: 1, max: mostCount, Help: "how many frames in a row each time (with chance and every)"},
	}
}

// pickOne are those of picks of which each fault has exactly one.
var pickOne = []string{"chance", "every", "first"}

// onePick: a fault that chooses frames is told how in exactly one way.
func onePick(v values) error {
	n := 0
	for _, name := range pickOne {
		if v.given(name) {
			n++
		}
	}
	if n != 1 {
		return &ndiscore.OptionError{Option: "chance", Err: errors.New("exactly one of chance, every and first says which frames are meant")}
	}
	return nil
}

// kinds is the table of everything that can be injected.
var kinds = []Kind{
	{
		Name: KindDrop, Help: "lose frames", Params: picks("lose"), OneOf: pickOne, check: onePick,
		frame: func(v values, d Direction, seed uint64) stage { return newDrop(v, d, seed) },
	},
	{
		Name: KindDelay, Help: "hold frames back",
		Params: []Param{
			{Name: "delay", Unit: UnitTime, Needed: true, min: 0, max: float64(mostDelay), Help: "for how long"},
			{Name: "jitter", Unit: UnitTime, Default: "0s", min: 0, max: float64(mostDelay), Help: "by how much longer or shorter at most, evenly by chance; no more than delay"},
			{Name: "reorder", Unit: UnitFlag, Default: "false", Help: "let jitter change the order of frames"},
			{Name: "limit", Unit: UnitBytes, Default: "16MiB", min: leastHold, max: mostHold,
				Help: "most memory for frames held, each way; one of up to 1984 bytes takes 2 KiB; what does not fit is dropped as fault-full"},
		},
		check: func(v values) error {
			if v.num("jitter") > v.num("delay") {
				return &ndiscore.OptionError{Option: "jitter", Err: fmt.Errorf("%s is more than the delay of %s", v.duration("jitter"), v.duration("delay"))}
			}
			return nil
		},
		frame: func(v values, d Direction, seed uint64) stage { return newDelay(v, d, seed) },
	},
	{
		Name: KindDuplicate, Help: "pass frames on twice", Params: picks("duplicate"), OneOf: pickOne, check: onePick,
		frame: func(v values, d Direction, seed uint64) stage { return newDuplicate(v, d, seed) },
	},
	{
		Name: KindCorrupt, Help: "flip bits in frames; checksums are left as they were, so the receiver can tell",
		Params: append(picks("corrupt"),
			Param{Name: "bits", Unit: UnitCount, Default: "1", min: 1, max: mostBits, Help: "how many bits, side by side"},
			Param{Name: "where", Unit: UnitWord, Words: []string{"payload", "frame"}, Default: "payload", Help: "where: behind the link header, or anywhere in the frame"},
		), OneOf: pickOne, check: onePick,
		frame: func(v values, d Direction, seed uint64) stage { return newCorrupt(v, d, seed) },
	},
	{
		Name: KindRate, Help: "let no more than so many bytes a second pass; drop the rest",
		Params: []Param{
			{Name: "rate", Unit: UnitRate, Needed: true, min: leastRate, max: mostRate, Help: "bytes a second, each way; 10Mbit and 1.25MB are the same"},
			{Name: "burst", Unit: UnitBytes, Default: "128KiB", min: leastBurst, max: mostBurst, Help: "how much may pass at once after a rest; a longer frame (a super-frame has up to 64 KiB) never passes"},
		},
		frame: func(v values, d Direction, seed uint64) stage { return newRate(v, d) },
	},
	{Name: KindLinkDown, Device: true, Help: "the adapter says that its link is down, and passes nothing"},
	{
		Name: KindHang, Device: true, Help: "the device swallows everything, and says that it hangs when it is asked",
		Params: []Param{{Name: "heals", Unit: UnitFlag, Default: "false", Help: "a reset ends the fault"}},
	},
	{
		Name: KindFailInit, Device: true, Help: "the adapter cannot be initialised",
		Params: []Param{{Name: "times", Unit: UnitCount, Default: "0", min: 0, max: mostCount, Help: "how often; 0: as long as the fault lasts"}},
	},
	{
		Name: KindResetStorm, Device: true, Help: "the adapter asks to be reset again and again",
		Params: []Param{
			{Name: "every", Unit: UnitTime, Default: "1s", min: float64(leastReset), max: float64(time.Hour), Help: "how often"},
			{Name: "result", Unit: UnitWord, Words: []string{"ok", "soft", "hard"}, Default: "ok", Help: "what a reset comes to: as the device says, it worked with errors, it did not work"},
		},
	},
	{Name: KindSurprise, Device: true, Help: "the device is gone, and comes back when the fault ends"},
}

// Kinds lists everything that can be injected, for help, documents and the API.
func Kinds() []Kind {
	all := slices.Clone(kinds)
	for i := range all {
		all[i].Params, all[i].OneOf = slices.Clone(all[i].Params), slices.Clone(all[i].OneOf)
		for j := range all[i].Params {
			if p := &all[i].Params[j]; p.max > 0 {
				p.Range = p.Unit.format(p.min) + " to " + p.Unit.format(p.max)
			}
		}
	}
	return all
}

// kindOf finds a kind by name.
func kindOf(name string) (*Kind, error) {
	names := make([]string, len(kinds))
	for i := range kinds {
		if kinds[i].Name == name {
			return &kinds[i], nil
		}
		names[i] = kinds[i].Name
	}
	return nil, fmt.Errorf("%q is no kind of fault: %s: %w", name, strings.Join(names, ", "), ndiscore.ErrInvalidData)
}

// values are the parameters of one fault, by name: those given, and the
// defaults of the others.
type values map[string]float64

func (v values) given(name string) bool             { _, ok := v[name]; return ok }
func (v values) num(name string) float64            { return v[name] }
func (v values) duration(name string) time.Duration { return time.Duration(v[name]) }
func (v values) flag(name string) bool              { return v[name] != 0 }

// read reads and checks parameters. The error joins one ndiscore.OptionError
// for each that is wrong.
func (k *Kind) read(params map[string]string) (values, error) {
	v := values{}
	var errs []error
	for i := range k.Params {
		p := &k.Params[i]
		text, ok := params[p.Name]
		if !ok {
			text = p.Default
		}
		switch {
		case text == "" && p.Needed:
			errs = append(errs, &ndiscore.OptionError{Option: p.Name, Err: fmt.Errorf("is needed: %s", p.Help)})
		case text != "" || ok:
			x, err := p.read(text)
			if err != nil {
				errs = append(errs, &ndiscore.OptionError{Option: p.Name, Err: err})
			}
			v[p.Name] = x
		}
	}
	for name := range params {
		if !slices.ContainsFunc(k.Params, func(p Param) bool { return p.Name == name }) {
			errs = append(errs, &ndiscore.OptionError{Option: name, Err: fmt.Errorf("%s has no such parameter: %s", k.Name, k.known())})
		}
	}
	if len(errs) == 0 && k.check != nil {
		if err := k.check(v); err != nil {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) }) // maps have no order
	return v, errors.Join(errs...)
}

func (p *Param) read(text string) (float64, error) {
	x, err := p.Unit.parse(text, p.Words)
	if err == nil && p.max > 0 && (x < p.min || x > p.max) {
		err = fmt.Errorf("%s is out of range: %s to %s", text, p.Unit.format(p.min), p.Unit.format(p.max))
	}
	return x, err
}

// known names the parameters, for errors.
func (k *Kind) known() string {
	if len(k.Params) == 0 {
		return "it has none"
	}
	names := make([]string, len(k.Params))
	for i := range k.Params {
		names[i] = k.Params[i].Name
	}
	return strings.Join(names, ", ")
}
