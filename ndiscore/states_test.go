package ndiscore

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// at has a fresh interpreter where the commands lead.
func at(t *testing.T, commands ...string) *interpreter {
	t.Helper()
	in := &interpreter{
		m: &machine{decider: firstUsable{}}, now: time.Unix(1000, 0),
		fails: map[string]string{}, holds: map[string]bool{}, links: map[string]LinkState{},
		attrs: map[string]Attributes{}, polls: map[string]pollResult{},
	}
	for _, c := range commands {
		if err := in.command(strings.Fields(c)); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
	}
	in.trace = nil
	return in
}

// returned has a call return, whether or not it was made: "M.Init", or
// "M.Init fails".
func (in *interpreter) returned(kinds map[string]actionKind, what string) {
	call, fails := strings.CutSuffix(what, " fails")
	a := &action{kind: kinds[call], adapter: "M", protocol: "P1", target: "M", halt: HaltDeviceStopped}
	ev := event{kind: evDone, adapter: "M", action: a}
	if fails {
		ev.err = errors.New("refused")
	}
	in.step(ev)
}

// cells is a state table: for each event, what becomes of each state. A cell is
//
//	x                 refused, or of no effect; the state is the same, and nothing is called
//	later             taken note of for when the call under way has returned
//	paused            the next state; nothing is called
//	pausing M.Pause   … and this is called, and nothing else
type cells struct {
	states []string
	rows   []row
}

type row struct {
	event string // a command of the interpreter; "return M.Init", "return M.Init fails"
	by    string // commands that come first, when a call is under way
	cells []string
}

func (c cells) run(t *testing.T, reach map[string][]string, kinds map[string]actionKind, state func(*machine) string, ours string) {
	for _, r := range c.rows {
		for i, cell := range r.cells {
			s := c.states[i]
			t.Run(r.event+" while "+s, func(t *testing.T) {
				set := slices.Clone(reach[s])
				if r.by != "" && cell != "x" {
					set = append(set, r.by)
				}
				in := at(t, set...)
				if got := state(in.m); got != s {
					t.Fatalf("the state to begin with is %s", got)
				}
				before := len(in.m.adapters[0].tasks)
				if call, ok := strings.CutPrefix(r.event, "return "); ok {
					in.holds["M.Halt(Stopped)"] = true
					in.returned(kinds, call)
				} else {
					for _, h := range []string{"M.Init", "M.Restart", "M.Pause", "M.Halt(Stopped)", "P1.Bind(M)", "P1.Event(M, Restart)", "P1.Event(M, Pause)", "P1.Unbind(M)"} {
						in.holds[h] = strings.HasPrefix(h, ours)
					}
					if err := in.command(strings.Fields(r.event)); err != nil {
						t.Fatal(err)
					}
				}
				var calls []string
				refused := false
				for _, l := range in.trace {
					switch {
					case strings.HasPrefix(l, "reply"):
						refused = refused || strings.Contains(l, ErrInvalidState.Error()) && !strings.Contains(l, "overtaken")
					case strings.HasPrefix(l, ours) && !strings.HasSuffix(l, "(BindsComplete)"):
						calls = append(calls, l)
					}
				}
				next, call, _ := strings.Cut(cell, " ")
				switch next {
				case "x":
					next = s
					if !refused && !strings.HasPrefix(r.event, "return ") && ours == "M." {
						t.Errorf("not refused: %v", in.trace)
					}
				case "later":
					next = s
					if refused {
						t.Errorf("refused: %v", in.trace)
					}
				}
				if got := state(in.m); got != next {
					t.Errorf("the next state is %s, want %s: %v", got, next, in.trace)
				}
				if got := strings.Join(calls, " "); got != call {
					t.Errorf("calls %q, want %q", got, call)
				}
				if n := len(in.m.adapters[0].tasks); n != before {
					t.Errorf("%d tasks", n)
				}
			})
		}
	}
}

// Every cell of the adapter's state table (NDIS calls the rows by what the
// library does; here somebody asks, or a call returns).
func TestC12C13AdapterStates(t *testing.T) {
	cells{
		[]string{"halted", "initializing", "paused", "restarting", "running", "pausing", "shutdown"},
		[]row{
			{"start M", "", []string{"initializing M.Init", "x", "restarting M.Restart", "x", "x", "later", "x"}},
			{"return M.Init", "pause M", []string{"x", "paused", "x", "x", "x", "x", "x"}},
			{"return M.Init fails", "", []string{"x", "halted", "x", "x", "x", "x", "x"}},
			{"return M.Restart", "", []string{"x", "x", "x", "running", "x", "x", "x"}},
			{"return M.Restart fails", "pause M", []string{"x", "x", "x", "paused", "x", "x", "x"}},
			{"pause M", "", []string{"x", "later", "x", "later", "pausing M.Pause", "x", "x"}},
			{"return M.Pause", "", []string{"x", "x", "x", "x", "x", "paused", "x"}},
			{"stop M", "", []string{"x", "later", "paused M.Halt(Stopped)", "later", "pausing M.Pause", "later", "x"}},
			{"return M.Halt", "", []string{"x", "x", "x", "x", "x", "x", "x"}},
			{"shutdown M", "", []string{"shutdown", "shutdown", "shutdown M.Shutdown", "shutdown M.Shutdown", "shutdown M.Shutdown", "shutdown M.Shutdown", "x"}},
		},
	}.run(t, map[string][]string{
		"halted":       {"adapter M nodevice"},
		"initializing": {"adapter M nodevice", "hold M.Init", "start M"},
		"paused":       {"adapter M nodevice", "start M", "pause M"},
		"restarting":   {"adapter M nodevice", "hold M.Restart", "start M"},
		"running":      {"adapter M nodevice", "start M"},
		"pausing":      {"adapter M nodevice", "start M", "hold M.Pause", "pause M"},
		"shutdown":     {"adapter M nodevice", "start M", "shutdown M"},
	}, map[string]actionKind{
		"M.Init": actInitialize, "M.Restart": actRestart, "M.Pause": actPause, "M.Halt": actHalt,
	}, func(m *machine) string { return m.adapter("M").state.String() }, "M.")

	// Halting is Paused with the call under way.
	in := at(t, "adapter M nodevice", "start M", "pause M", "hold M.Halt(Stopped)", "stop M")
	in.returned(map[string]actionKind{"M.Halt": actHalt}, "M.Halt")
	if s := in.m.adapter("M").state; s != StateHalted {
		t.Errorf("after Halt it is %s", s)
	}
}

// Every cell of the binding's state table.
func TestC12C13BindingStates(t *testing.T) {
	up := []string{"adapter M nodevice", "protocol P1 M"}
	reach := func(commands ...string) []string { return append(slices.Clone(up), commands...) }
	cells{
		[]string{"unbound", "opening", "paused", "restarting", "running", "pausing", "closing"},
		[]row{
			{"reenumerate P1", "", []string{"opening P1.Bind(M)", "x", "x", "x", "x", "x", "x"}},
			{"return P1.Bind", "pause M", []string{"x", "paused", "x", "x", "x", "x", "x"}},
			{"return P1.Bind fails", "", []string{"x", "unbound", "x", "x", "x", "x", "x"}},
			{"allow-start M", "", []string{"x", "x", "restarting P1.Event(M, Restart)", "x", "x", "x", "x"}},
			{"return P1.Restart", "", []string{"x", "x", "x", "running", "x", "x", "x"}},
			{"return P1.Restart fails", "", []string{"x", "x", "x", "running", "x", "x", "x"}},
			{"pause M", "", []string{"x", "later", "x", "later", "pausing P1.Event(M, Pause)", "x", "x"}},
			{"return P1.Pause", "", []string{"x", "x", "x", "x", "x", "paused", "x"}},
			{"stop M", "", []string{"x", "later", "closing P1.Unbind(M)", "later", "pausing P1.Event(M, Pause)", "later", "x"}},
			{"return P1.Unbind", "", []string{"x", "x", "x", "x", "x", "x", "unbound"}},
		},
	}.run(t, map[string][]string{
		"unbound":    reach("fail P1.Bind(M)", "start M"),
		"opening":    reach("hold P1.Bind(M)", "start M"),
		"paused":     reach("start M", "require-pause M"),
		"restarting": reach("hold P1.Event(M, Restart)", "start M"),
		"running":    reach("start M"),
		"pausing":    reach("start M", "hold P1.Event(M, Pause)", "pause M"),
		"closing":    reach("start M", "hold P1.Unbind(M)", "stop M"),
	}, map[string]actionKind{
		"P1.Bind": actBind, "P1.Restart": actRestartBinding, "P1.Pause": actPauseBinding, "P1.Unbind": actUnbind,
	}, func(m *machine) string {
		for _, b := range m.adapter("M").bindings {
			return b.state.String()
		}
		return "unbound"
	}, "P1.")
}
