package config

import (
	"errors"
	"fmt"
	"strings"
)

// Op is what a step does.
type Op string

// The operations.
const (
	OpAdd     Op = "add"
	OpRemove  Op = "remove"
	OpRestart Op = "restart" // an adapter: halted, and made anew with other options
	OpUpdate  Op = "update"  // in place: the keys in Why, and nothing else
	OpMove    Op = "move"    // a filter to another place, an interface onto something else
)

// Kind is what a step is about.
type Kind string

// The kinds.
const (
	KindLog       Kind = "log"
	KindFault     Kind = "fault" // [fault]
	KindAdapter   Kind = "adapter"
	KindFilter    Kind = "filter" // one module on one adapter
	KindBundle    Kind = "bundle"
	KindProbe     Kind = "probe" // what asks over the members of a team; named like the bundle
	KindBridge    Kind = "bridge"
	KindPort      Kind = "port" // of a bridge
	KindInterface Kind = "interface"
	KindRoute     Kind = "route"
	KindForward   Kind = "forward"
	KindNAT       Kind = "nat"
)

// Change is one key that is not what it was. Its values are for reading: they
// are cut when they are longer than maxShown.
type Change struct {
	Key  string `json:"key"`  // below the thing's own table: "health.target"
	From string `json:"from"` // as TOML writes it
	To   string `json:"to"`
}

// maxShown is how many bytes of a value a Change shows: several steps may show
// the same one, and a plan is not to be much longer than what it is about.
const maxShown = 512

// String is the change in words.
func (c Change) String() string { return fmt.Sprintf("%s %s -> %s", c.Key, c.From, c.To) }

// Step is one thing to do on the way from one configuration to another.
type Step struct {
	Op   Op     `json:"op"`
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // "" of what there is only one of; of routes and forwards, what they say
	On   string `json:"on"`   // of a filter: its adapter; of a port: its bridge
	// Index is, of a filter, its place on its adapter: at which it is found, and
	// for add and move the one at which it is afterwards (for move counted
	// without the filter itself). Of anything else it is the place in its list
	// of the new configuration, for remove of the old one.
	Index int `json:"index"`
	// Members are, where a bundle gives up members before anything else is done,
	// those that it keeps meanwhile.
	Members []string `json:"members,omitempty"`
	// Again marks the two halves of making something anew: a remove that an add
	// follows, and that add. What stands on it loses it and finds it again by
	// its name.
	Again bool     `json:"again"`
	Why   []Change `json:"why"` // what is different; empty where the title says it all
	// Disruptive names who loses traffic, or connections, by this step.
	Disruptive []string `json:"disruptive"`
}

// Title is what the step does, without the reasons: "restart adapter wan0".
func (s Step) Title() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", s.Op, s.Kind)
	if s.Name != "" {
		b.WriteString(" " + s.Name)
	}
	if s.On != "" {
		b.WriteString(" on " + s.On)
	}
	if s.Kind == KindFilter && s.Op != OpRemove {
		fmt.Fprintf(&b, " at %d", s.Index)
	}
	switch {
	case s.Again && s.Op == OpRemove:
		b.WriteString(", to be made anew")
	case s.Again:
		b.WriteString(" anew")
	}
	return b.String()
}

// String is the step in one line.
func (s Step) String() string {
	if len(s.Why) == 0 {
		return s.Title()
	}
	why := make([]string, len(s.Why))
	for i, c := range s.Why {
		why[i] = c.String()
	}
	return s.Title() + ": " + strings.Join(why, ", ")
}

// Changes is a plan: all that is to be done, in order.
type Changes struct {
	// Refused are keys that only a new process takes over. While there are any,
	// nothing of the plan may be done.
	Refused []Change `json:"refused"`
	Steps   []Step   `json:"steps"`
}

// Empty reports whether there is nothing to do and nothing refused.
func (c Changes) Empty() bool { return len(c.Refused) == 0 && len(c.Steps) == 0 }

// Err says what is refused; nil when the plan may be carried out.
func (c Changes) Err() error {
	var errs []error
	for _, r := range c.Refused {
		errs = append(errs, fmt.Errorf("%s: needs a restart of the process", r))
	}
	return errors.Join(errs...)
}

// String is the plan for people.
func (c Changes) String() string {
	if c.Empty() {
		return "nothing to do\n"
	}
	var b strings.Builder
	for _, r := range c.Refused {
		fmt.Fprintf(&b, "refused: %s: needs a restart of the process\n", r)
	}
	for _, s := range c.Steps {
		fmt.Fprintln(&b, s)
		if len(s.Disruptive) > 0 {
			fmt.Fprintf(&b, "    loses traffic: %s\n", strings.Join(s.Disruptive, ", "))
		}
	}
	return b.String()
}
