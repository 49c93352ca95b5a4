package ndiscore

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden traces anew; read the diff before you commit it")

// TestGolden replays testdata/*.txt: commands to the machine, and under each,
// behind "----", the calls that follow, one a line. The interpreter completes
// every call at once unless told to hold or fail it.
//
//	protocol P1 M          adapter M F1 F2! nodevice    (F2! is mandatory; also virtual, reset, aware, nopause)
//	bundle wan team up0 up1 [hold=1s] [down_delay=1s] [hash] …
//	start M                stop|remove|pause|surprise|remove-miniport|shutdown M [why]
//	suspend|resume|query|cancel|reset|miniport-reset|inhibit|allow|require-pause|allow-start M [why]
//	insert M F3[!] 0       remove-filter M F3           move-filter M F3 0
//	hung M                 oid M 7|0                    sends M 2 10    (what polls see from now on)
//	targets P1 M N         deregister P1                unbind P1 M     reenumerate P1
//	fail M.Init [reason]   the next such call returns an error
//	hold M.Pause           such calls do not return until: release M.Pause
//	link up0 up|down       advance 1s        observe up0 answered|lost|sent
//	secondary up1 up0      what up1's driver says while it is initialised; promote-self up1
//	moved wan 1 [0]        (to 1, when 0 was left) promote wan up1   state    events (include events in traces)
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden traces: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("%s:\n--- want\n%s\n--- got\n%s", f, want, got)
			}
		})
	}
}

type interpreter struct {
	m       *machine
	now     time.Time
	trace   []string
	fails   map[string]string
	holds   map[string]bool
	held    []action
	events  bool
	replies int
	links   map[string]LinkState
	attrs   map[string]Attributes
	polls   map[string]pollResult
}

func replay(t *testing.T, script string) string {
	in := &interpreter{
		m: &machine{decider: firstUsable{}}, now: time.Unix(1000, 0),
		fails: map[string]string{}, holds: map[string]bool{}, links: map[string]LinkState{},
		attrs: map[string]Attributes{}, polls: map[string]pollResult{},
	}
	var out strings.Builder
	inTrace, afterTrace := false, false
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			inTrace = false
			continue
		case line == "----":
			inTrace = true
			continue
		case inTrace:
			continue
		}
		if afterTrace {
			out.WriteString("\n")
			afterTrace = false
		}
		out.WriteString(line + "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		in.trace = nil
		if err := in.command(strings.Fields(line)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(in.trace) > 0 {
			out.WriteString("----\n" + strings.Join(in.trace, "\n") + "\n")
			afterTrace = true
		}
	}
	return out.String()
}

func (in *interpreter) command(f []string) error {
	why := strings.Join(f[min(2, len(f)):], " ")
	if why == "" {
		why = f[0]
	}
	op := func(k eventKind) {
		in.replies++
		in.step(event{kind: k, adapter: f[1], why: why, reply: in.replies})
	}
	switch f[0] {
	case "protocol":
		in.m.protocols = append(in.m.protocols, &mProtocol{name: f[1], targets: f[2:]})
		in.step(event{kind: evBindingsChanged})
	case "leave": // a protocol deregisters
		for i, p := range in.m.protocols {
			if p.name == f[1] {
				in.m.protocols = append(in.m.protocols[:i], in.m.protocols[i+1:]...)
				break
			}
		}
		in.step(event{kind: evBindingsChanged})
	case "adapter":
		a := &mAdapter{name: f[1], hasDevice: true, hasPnP: true}
		for _, w := range f[2:] {
			switch {
			case w == "nodevice":
				a.hasDevice, a.hasPnP = false, false
			case w == "virtual":
				a.hasDevice, a.hasPnP, a.virtual = false, false, true
			case w == "reset":
				a.hasReset = true
			case w == "aware", w == "nopause":
				at := in.attrs[f[1]]
				at.PowerAware, at.NoPauseOnSuspend = true, w == "nopause"
				in.attrs[f[1]] = at
			default:
				a.filters = append(a.filters, &mFilter{name: strings.TrimSuffix(w, "!"), mandatory: strings.HasSuffix(w, "!")})
			}
		}
		in.links[f[1]] = LinkState{Media: MediaConnected}
		in.m.adapters = append(in.m.adapters, a)
	case "bundle":
		b := &mBundle{name: f[1], set: teamSet{member: -1, overlap: -1}}
		if f[2] == "ndis5" {
			b.mode = BundleNDIS5
		}
		for _, w := range f[3:] {
			if k, v, ok := strings.Cut(w, "="); ok {
				d, err := time.ParseDuration(v)
				switch k {
				case "hold":
					b.hold = d
				case "down_delay":
					b.down = d
				default:
					err = fmt.Errorf("unknown key %s", k)
				}
				if err != nil {
					return err
				}
				continue
			}
			if w == "hash" {
				b.balance = BalanceHash
				continue
			}
			b.members = append(b.members, w)
		}
		in.m.bundles = append(in.m.bundles, b)
		if b.mode == BundleTeam {
			in.m.adapters = append(in.m.adapters, &mAdapter{name: b.name, virtual: true})
			in.m.protocols = append(in.m.protocols, &mProtocol{name: teamProtocol(b.name), targets: b.members})
		}
	case "start":
		op(evStart)
	case "pause":
		op(evPause)
	case "stop":
		op(evStop)
	case "remove":
		op(evRemove)
	case "shutdown":
		op(evShutdown)
	case "suspend":
		op(evSuspend)
	case "resume":
		op(evResume)
	case "query":
		op(evQuery)
	case "cancel":
		op(evCancelQuery)
	case "reset":
		op(evReset)
	case "miniport-reset":
		in.step(event{kind: evMiniportReset, adapter: f[1], why: why})
	case "inhibit":
		op(evInhibit)
	case "allow":
		in.step(event{kind: evAllow, adapter: f[1]})
	case "require-pause":
		op(evHold)
	case "allow-start":
		in.step(event{kind: evRelease, adapter: f[1]})
	case "insert":
		a, at := in.m.adapter(f[1]), 0
		fmt.Sscan(f[3], &at)
		name := strings.TrimSuffix(f[2], "!")
		a.filters = slices.Insert(slices.Clone(a.filters), at, &mFilter{name: name, mandatory: name != f[2]})
		in.replies++
		in.step(event{kind: evFilterAdded, adapter: f[1], filter: name, why: why, reply: in.replies})
	case "remove-filter":
		in.replies++
		in.step(event{kind: evFilterLeaves, adapter: f[1], filter: f[2], reply: in.replies})
	case "move-filter":
		at := 0
		fmt.Sscan(f[3], &at)
		in.replies++
		in.step(event{kind: evFilterMoved, adapter: f[1], filter: f[2], place: at, reply: in.replies})
	case "hung":
		r := in.polls[f[1]]
		r.hung = true
		in.polls[f[1]] = r
	case "oid":
		r := in.polls[f[1]]
		fmt.Sscan(f[2], &r.oid)
		in.polls[f[1]] = r
	case "sends":
		r := in.polls[f[1]]
		fmt.Sscan(f[2]+" "+f[3], &r.sends, &r.done)
		in.polls[f[1]] = r
	case "targets":
		in.m.protocol(f[1]).targets = f[2:]
		in.replies++
		in.step(event{kind: evLeave, protocol: f[1], reply: in.replies})
	case "deregister":
		in.m.protocol(f[1]).leaving = true
		in.replies++
		in.step(event{kind: evLeave, protocol: f[1], reply: in.replies})
	case "unbind":
		in.step(event{kind: evUnbind, protocol: f[1], adapter: f[2]})
	case "reenumerate":
		in.replies++
		in.step(event{kind: evReenumerate, protocol: f[1], reply: in.replies})
	case "remove-miniport":
		in.step(event{kind: evRemoveMiniport, adapter: f[1], why: why})
	case "surprise":
		in.step(event{kind: evSurprise, adapter: f[1], why: why})
	case "arrived":
		in.step(event{kind: evArrived, adapter: f[1], why: "device is back"})
	case "promote":
		in.replies++
		in.step(event{kind: evPromote, adapter: f[1], why: f[2], reply: in.replies})
	case "secondary":
		in.replies++
		in.step(event{kind: evSecondary, adapter: f[1], target: f[2], reply: in.replies})
	case "promote-self":
		in.replies++
		in.step(event{kind: evPromoteSelf, adapter: f[1], reply: in.replies})
	case "moved":
		b := in.m.bundle(f[1])
		n := -1
		left := b.set.member
		fmt.Sscan(strings.Join(f[2:], " "), &n, &left)
		in.step(event{kind: evMoved, adapter: f[1], left: left, member: n, epoch: b.set.epoch + dataPathEpoch, why: "data path saw it first"})
	case "link":
		l := LinkState{Media: MediaDisconnected, Why: "carrier lost"}
		if f[2] == "up" {
			l = LinkState{Media: MediaConnected, Why: "carrier"}
		}
		in.step(event{kind: evLink, adapter: f[1], link: l})
	case "observe":
		k := map[string]ObservationKind{"sent": ProbeSent, "answered": ProbeAnswered, "lost": ProbeLost}[f[2]]
		in.step(event{kind: evObserved, adapter: f[1], observed: Observation{Adapter: f[1], At: in.now, Kind: k}})
	case "advance":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return err
		}
		in.now = in.now.Add(d)
		in.step(event{kind: evTick})
	case "fail":
		in.fails[strings.Join(f[1:], " ")] = "refused"
	case "hold":
		in.holds[strings.Join(f[1:], " ")] = true
	case "release":
		name := strings.Join(f[1:], " ")
		delete(in.holds, name)
		for i, a := range in.held {
			if a.String() == name {
				in.held = append(in.held[:i], in.held[i+1:]...)
				in.step(in.returns(a))
				return nil
			}
		}
		return fmt.Errorf("%s is not held", name)
	case "quarantine":
		name := strings.Join(f[1:], " ")
		for i, a := range in.held {
			if a.String() == name {
				in.held = append(in.held[:i], in.held[i+1:]...)
				in.step(event{kind: evDone, adapter: a.adapter, action: &a, err: ErrQuarantined})
				return nil
			}
		}
		return fmt.Errorf("%s is not held", name)
	case "events":
		in.events = true
	case "state":
		for _, a := range in.m.adapters {
			s := fmt.Sprintf("%s %s", a.name, a.state)
			for _, b := range a.bindings {
				s += fmt.Sprintf(" %s=%s", b.protocol.name, b.state)
			}
			for _, x := range a.filters {
				s += fmt.Sprintf(" %s=%s", x.name, x.state)
			}
			in.trace = append(in.trace, s)
		}
	default:
		return errors.New("unknown command")
	}
	return nil
}

// step feeds one event and completes the calls that follow, oldest first.
func (in *interpreter) step(ev event) {
	queue := []event{ev}
	for len(queue) > 0 {
		ev, queue = queue[0], queue[1:]
		for _, a := range in.m.step(in.now, ev) {
			name := a.String()
			if a.kind == actEvent {
				if in.events {
					e := a.event
					in.trace = append(in.trace, fmt.Sprintf("event %s %s%s: %s -> %s: %s", e.What, e.Adapter, e.Protocol, e.From, e.To, e.Why))
				}
				continue
			}
			if name == "" {
				continue
			}
			if a.kind == actAwait && a.after > 0 {
				name += " after " + a.after.String()
			}
			in.trace = append(in.trace, name)
			if a.kind >= actClose {
				continue
			}
			if in.holds[name] {
				in.held = append(in.held, a)
				continue
			}
			queue = append(queue, in.returns(a))
		}
	}
}

// returns is the return of a call, as told to end.
func (in *interpreter) returns(a action) event {
	done := event{kind: evDone, adapter: a.adapter, action: &a, link: in.links[a.adapter], attrs: in.attrs[a.adapter], poll: in.polls[a.adapter]}
	if e, ok := in.fails[a.String()]; ok {
		delete(in.fails, a.String())
		done.err = errors.New(e)
	}
	return done
}

// firstUsable is the plainest policy: the first usable member, at once. What
// policy decides is tested there; here it only has to decide something.
type firstUsable struct{}

func (firstUsable) Decide(v BundleView) BundleDecision {
	d := BundleDecision{Active: -1, Verdicts: make([]Verdict, len(v.Members))}
	for i, m := range v.Members {
		if !m.Running || m.Leaving || !m.Link.Connected() {
			continue
		}
		d.Verdicts[i] = VerdictUp
		switch {
		case d.Active >= 0 && v.Members[d.Active].Resetting && !m.Resetting:
			d.Successors = append(d.Successors, d.Active)
			fallthrough
		case d.Active < 0:
			d.Active, d.Why = i, m.Name+" is the first usable member"
		default:
			d.Successors = append(d.Successors, i)
		}
		if v.Balance == BalanceHash {
			d.Carriers = append(d.Carriers, i)
		}
	}
	if d.Active < 0 {
		d.Why = "no member is usable"
	}
	return d
}
