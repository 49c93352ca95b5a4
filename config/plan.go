package config

import "fmt"

// Action is what a step does.
type Action string

// The actions.
const (
	Start Action = "start"
)

// Step is one thing to do on the way to a configuration.
type Step struct {
	Action Action `json:"action"`
	Kind   string `json:"kind"`  // "adapter", "bundle", "bridge", "interface", "route"
	Name   string `json:"name"`  // of a route: where it leads and by whom
	Index  int    `json:"index"` // into the slice of that kind in Config
}

// String is the step in words.
func (s Step) String() string { return fmt.Sprintf("%s %s %s", s.Action, s.Kind, s.Name) }

// Plan lists what has to start, in order: nothing comes before what it stands
// on. Stopping goes through it backwards.
func (c *Config) Plan() []Step {
	var steps []Step
	add := func(kind, name string, i int) { steps = append(steps, Step{Start, kind, name, i}) }
	for i, a := range c.Adapters {
		add("adapter", a.Name, i)
	}
	for i, b := range c.Bundles {
		add("bundle", b.Name, i)
	}
	for i, b := range c.Bridges {
		add("bridge", b.Name, i)
	}
	for i, f := range c.Interfaces {
		add("interface", f.Name, i)
	}
	for i, r := range c.Routes {
		add("route", fmt.Sprintf("%s via %s", r.To, r.Via), i)
	}
	return steps
}
