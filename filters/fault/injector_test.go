package fault_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestInjectAndClear(t *testing.T) {
	there := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, there) })
	r := newRig(t, nil, fault.Options{Allow: true})
	r.send(0, 3)
	l := r.inject("drop", "on=b", "every=2", "direction=tx", "seed=5", "for=1m")
	if l.ID != 1 || l.Seed != 5 || l.Expires.Sub(l.Began) != time.Minute || l.Direction != fault.TX {
		t.Errorf("lease %+v", l)
	}
	if f := r.filters("b"); !slices.Equal(f, []string{fault.FilterPrefix + "1"}) {
		t.Errorf("filters %v", f)
	}
	r.send(3, 4)
	again := r.inject("drop", "on=b", "every=2", "direction=tx")
	if again.Seed == 0 {
		t.Error("no seed was chosen")
	}
	r.send(7, 4) // 8 and 10 meet the first, 9 the second
	r.clear(l.ID)
	if f := r.filters("b"); len(f) != 1 {
		t.Errorf("filters %v with one fault left", f)
	}
	r.send(11, 2)
	r.clear(again.ID)
	if f := r.filters("b"); len(f) != 0 {
		t.Errorf("filters %v with no fault left", f)
	}
	r.send(13, 2)
	if got, want := r.arrived(), []int{0, 1, 2, 3, 5, 7, 11, 13, 14}; !slices.Equal(got, want) {
		t.Errorf("arrived %v, want %v", got, want)
	}
	c := r.info("b").Counters
	if n := c.TxDropped[ndiscore.DropFaultDrop.String()]; n != 6 {
		t.Errorf("%d drops counted", n)
	}
	if c := r.info("a").Counters; c.Forwarded != c.RxFrames {
		t.Errorf("a lost frame was not forwarded as far as the way in knows: %+v", c)
	}
	if n := len(r.events("fault.injected")); n != 2 {
		t.Errorf("%d events of beginning", n)
	}
	e := r.events("fault.cleared")
	if len(e) != 2 || e[0].Adapter != "b" || !strings.Contains(e[0].To, "drop on=b every=2 direction=tx for=1m0s seed=5") || !strings.Contains(e[0].Why, "lease 1") {
		t.Errorf("events of the end: %+v", e)
	}
	if _, err := r.j.Clear(r.ctx(), fault.Selection{ID: 1}, ""); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("clear what is not there: %v", err)
	}
}

func TestReceiveSide(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	l := r.inject("drop", "on=a", "every=2", "direction=rx")
	r.send(0, 10)
	if n := r.info("a").Counters.RxDropped[ndiscore.DropFaultDrop.String()]; n != 5 {
		t.Errorf("%d drops counted", n)
	}
	r.balanced("a")
	got := r.j.List()
	if len(got) != 1 || got[0].RX != (fault.Hits{Frames: 5, Bytes: 500}) || got[0].TX != (fault.Hits{}) || got[0].ID != l.ID {
		t.Errorf("list %+v", got)
	}
}

func TestExpiry(t *testing.T) {
	clock := ndistest.NewClock()
	r := newRig(t, clock, fault.Options{Allow: true, Longest: time.Hour})
	r.inject("drop", "on=b", "chance=1", "for=10s")
	r.inject("link-down", "on=b", "for=20s")
	r.inject("drop", "on=a", "chance=1")
	clock.Advance(10*time.Second - 1)
	if n := len(r.j.List()); n != 3 {
		t.Fatalf("%d faults just before the end", n)
	}
	clock.Advance(1)
	if l := r.j.List(); len(l) != 2 || l[0].Kind != "link-down" || len(r.filters("b")) != 0 {
		t.Fatalf("faults %+v, filters %v", l, r.filters("b"))
	}
	clock.Advance(10 * time.Second)
	if l := r.j.List(); len(l) != 1 || l[0].For != time.Hour {
		t.Fatalf("faults %+v", l)
	}
	clock.Advance(time.Hour)
	if l := r.j.List(); len(l) != 0 {
		t.Fatalf("faults %+v", l)
	}
	if e := r.events("fault.expired"); len(e) != 3 {
		t.Errorf("events %+v", e)
	}
	if n := clock.Waits(); n > 4 { // the core's own
		t.Errorf("%d timers are left", n)
	}
}

func TestSelection(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	for i, owner := range []string{"x", "y", "x", "x"} {
		s, err := fault.ParseSpec("drop", "chance=0", "on="+[]string{"a", "a", "b", "b"}[i])
		r.must(err)
		s.Owner = owner
		_, err = r.j.Inject(r.ctx(), s)
		r.must(err)
	}
	left := func() (ids []uint64) {
		for _, l := range r.j.List() {
			ids = append(ids, l.ID)
		}
		return ids
	}
	if _, err := r.j.Clear(r.ctx(), fault.Selection{}, ""); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("clear nothing: %v", err)
	}
	if n, err := r.j.Clear(r.ctx(), fault.Selection{Owner: "x", Adapter: "a"}, "test"); n != 1 || err != nil || !slices.Equal(left(), []uint64{2, 3, 4}) {
		t.Errorf("%d, %v, left %v", n, err, left())
	}
	if _, err := r.j.Clear(r.ctx(), fault.Selection{Adapter: "nobody"}, "test"); !errors.Is(err, ndiscore.ErrAdapterNotFound) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("clear on nobody: %v", err)
	}
	r.must(r.j.EndOwner(r.ctx(), "x", "its connection is closed"))
	if n, err := r.j.Clear(r.ctx(), fault.Selection{Adapter: "b"}, "test"); n != 0 || err != nil {
		t.Errorf("clear where there is none: %d, %v", n, err)
	}
	if !slices.Equal(left(), []uint64{2}) || len(r.filters("b")) != 0 || len(r.filters("a")) != 1 {
		t.Errorf("left %v", left())
	}
	// The end of the switch is told as such, and pauses nothing to take a filter out.
	pauses := len(r.events("adapter.state"))
	r.must(r.j.Close(r.ctx()))
	if len(left()) != 0 || len(r.events("fault.stopped")) != 1 || len(r.events("adapter.state")) != pauses {
		t.Errorf("left %v, states %+v", left(), r.events("adapter.state")[pauses:])
	}
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "surprise", Adapter: "a"}); !errors.Is(err, fault.ErrNotAllowed) {
		t.Errorf("after Close: %v", err)
	}
}

// What is refused changes nothing.
func TestRefused(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true, Longest: time.Minute, Most: 3})
	for _, c := range []struct {
		words []string
		want  error
		says  string
	}{
		{[]string{"drip", "on=a"}, ndiscore.ErrInvalidData, "drop, delay"},
		{[]string{"drop", "on=a"}, ndiscore.ErrInvalidData, "exactly one"},
		{[]string{"drop", "chance=1"}, ndiscore.ErrInvalidData, "on: is needed"},
		{[]string{"drop", "on=a", "chance=1", "for=61s"}, ndiscore.ErrInvalidData, "longest allowed is 1m0s"},
		{[]string{"drop", "on=a", "chance=1", "for=-1s"}, ndiscore.ErrInvalidData, "for:"},
		{[]string{"drop", "on=nobody", "chance=1"}, ndiscore.ErrAdapterNotFound, "nobody"},
		{[]string{"hang", "on=nobody"}, ndiscore.ErrAdapterNotFound, "hang on nobody: no such adapter"},
		{[]string{"hang", "on=a", "direction=rx"}, ndiscore.ErrInvalidData, "direction"},
		{[]string{"reset-storm", "on=b"}, ndiscore.ErrNotSupported, "cannot be reset"},
	} {
		s, err := fault.ParseSpec(c.words[0], c.words[1:]...)
		r.must(err)
		if _, err := r.j.Inject(r.ctx(), s); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.words, err)
		}
	}
	if len(r.j.List()) != 0 || len(r.filters("a")) != 0 {
		t.Error("something stayed behind")
	}
	r.inject("hang", "on=a")
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "hang", Adapter: "a"}); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("a second hang: %v", err)
	}
	r.inject("drop", "on=a", "chance=0")
	r.inject("drop", "on=a", "chance=0")
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "surprise", Adapter: "a"}); !errors.Is(err, ndiscore.ErrResources) {
		t.Errorf("one too many: %v", err)
	}
	r.j.Permit(false, 0)
	if _, err := r.j.Inject(r.ctx(), fault.Spec{Kind: "surprise", Adapter: "a"}); !errors.Is(err, fault.ErrNotAllowed) {
		t.Errorf("not allowed: %v", err)
	}
}

// A fault that cannot begin because the filter will not go in leaves nothing.
func TestInsertFails(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	r.must(r.core.InsertFilter(r.ctx(), "b", ndiscore.FilterSpec{Name: fault.FilterPrefix + "1", Filter: ndistest.NewFilter("F", nil)}, 0, "in the way"))
	s := fault.Spec{Kind: "drop", Adapter: "b", Params: map[string]string{"chance": "1"}}
	if _, err := r.j.Inject(r.ctx(), s); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("%v", err)
	}
	r.must(r.core.RemoveFilter(r.ctx(), "b", fault.FilterPrefix+"1", "out of the way"))
	if _, err := r.j.Inject(r.ctx(), s); err != nil || len(r.j.List()) != 1 {
		t.Errorf("afterwards: %v", err)
	}
}

// A fault may be cleared before it has begun: then it never does.
func TestClearedBeforeItBegins(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	for _, kind := range []string{"drop", "hang"} {
		s, err := fault.ParseSpec(kind, append([]string{"on=b"}, map[string][]string{"drop": {"chance=1"}}[kind]...)...)
		r.must(err)
		r.must(r.j.Register(s))
	}
	if n, err := r.j.Clear(r.ctx(), fault.Selection{All: true}, "test"); n != 2 || err != nil {
		t.Errorf("%d cleared: %v", n, err)
	}
	r.send(0, 1)
	if got := r.arrived(); len(got) != 1 || len(r.filters("b")) != 0 || len(r.events("fault.cleared")) != 0 {
		t.Errorf("arrived %v, filters %v", got, r.filters("b"))
	}
	// Everybody at once.
	s, err := fault.ParseSpec("drop", "on=b", "chance=0")
	r.must(err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if _, err := r.j.Inject(r.ctx(), s); err != nil && !errors.Is(err, ndiscore.ErrInvalidState) && !errors.Is(err, ndiscore.ErrResources) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				if _, err := r.j.Clear(r.ctx(), fault.Selection{All: true}, "test"); err != nil && !errors.Is(err, ndiscore.ErrInvalidState) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A fault stays on an adapter that is stopped and started, and goes with one
// that is removed.
func TestAdapterComesAndGoes(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	r.inject("drop", "on=b", "chance=1")
	r.inject("link-down", "on=b")
	r.must(r.core.Stop(r.ctx(), "b", "test"))
	r.must(r.core.Start(r.ctx(), "b", "test"))
	r.send(0, 3)
	if n := len(r.arrived()); n != 0 || r.info("b").Link.Connected() {
		t.Errorf("%d frames arrived after the restart", n)
	}
	r.must(r.core.Remove(r.ctx(), "b", "test"))
	ndistest.Await(t, "the end of its faults", func() bool { return len(r.j.List()) == 0 })
	ndistest.Await(t, "both events", func() bool { return len(r.events("fault.cleared")) == 2 })
	for _, e := range r.events("fault.cleared") {
		if !strings.Contains(e.Why, "removed") {
			t.Errorf("why: %s", e.Why)
		}
	}
	r.must(r.core.AddAdapter(r.ctx(), ndiscore.AdapterSpec{Name: "b", Driver: "fake"}))
	r.must(r.core.Start(r.ctx(), "b", "test"))
	r.send(3, 3)
	if got := r.arrived(); !slices.Equal(got, []int{3, 4, 5}) {
		t.Errorf("arrived %v at the new one", got)
	}
	r.inject("drop", "on=b", "chance=1")
	if f := r.filters("b"); len(f) != 1 {
		t.Errorf("filters %v on the new one", f)
	}
}

// Everybody injects and clears at once, under traffic, while adapters are
// paused, stopped and reset: the Verifier looks on.
func TestStress(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	end := r.flood()
	specs := [][]string{
		{"drop", "chance=10%"}, {"duplicate", "chance=10%"}, {"corrupt", "chance=10%"}, {"rate", "rate=10MB"},
		{"link-down"}, {"hang"}, {"delay", "delay=1ms", "jitter=1ms"}, {"delay", "delay=2ms", "jitter=2ms", "reorder=true"},
	}
	var wg sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	for i := range 3 {
		wg.Go(func() { // ends after two seconds
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for time.Now().Before(stop) {
				words := specs[rnd.IntN(len(specs))]
				on := "on=" + []string{"a", "b"}[rnd.IntN(2)]
				s, err := fault.ParseSpec(words[0], append([]string{on, "for=50ms"}, words[1:]...)...)
				if err != nil {
					t.Error(err)
					return
				}
				s.Owner = fmt.Sprint(i)
				switch _, err := r.j.Inject(r.ctx(), s); {
				case errors.Is(err, ndiscore.ErrExists), errors.Is(err, ndiscore.ErrResources):
				case err != nil && !errors.Is(err, ndiscore.ErrInvalidState):
					t.Error(err)
				}
				if rnd.IntN(4) == 0 {
					if err := r.j.EndOwner(r.ctx(), s.Owner, "stress"); err != nil && !errors.Is(err, ndiscore.ErrInvalidState) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Go(func() { // ends after two seconds
		for i := 0; time.Now().Before(stop); i++ {
			name := []string{"a", "b"}[i%2]
			op := []func() error{
				func() error { return r.core.Pause(r.ctx(), name, "stress") },
				func() error { return r.core.Stop(r.ctx(), name, "stress") },
			}[i/2%2]
			if err := op(); err != nil && !errors.Is(err, ndiscore.ErrInvalidState) {
				t.Error(err)
			}
			if err := r.core.Start(r.ctx(), name, "stress"); err != nil && !errors.Is(err, ndiscore.ErrInvalidState) {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	end()
	if _, err := r.j.Clear(r.ctx(), fault.Selection{All: true}, "end"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		r.balanced(name)
		if n := r.info(name).Counters.RxHeld; n != 0 {
			t.Errorf("%s: %d frames are held still", name, n)
		}
		if f := r.filters(name); len(f) != 0 {
			t.Errorf("%s: filters %v are left", name, f)
		}
		if s := r.info(name).State; s != ndiscore.StateRunning {
			t.Errorf("%s is %s", name, s)
		}
	}
	r.send(1000, 3)
	if got := r.arrived(); !slices.Equal(got[len(got)-3:], []int{1000, 1001, 1002}) {
		t.Errorf("afterwards %v arrives", got[len(got)-3:])
	}
}
