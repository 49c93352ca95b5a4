package vswitch_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

const givenUp = `
[adapter.a]
driver = "fake"
[adapter.b]
driver = "fake"
`

var errNoEnd = errors.New("the switch does not end")

// fakes runs a switch over fake adapters a, b and c, and says how Run ended.
func fakes(t *testing.T, more string) (sw *vswitch.Switch, parse func(more string) *config.Config, adapters map[string]*ndistest.Adapter, end func() error) {
	t.Helper()
	adapters = map[string]*ndistest.Adapter{}
	var as []ndiscore.Adapter
	for _, n := range []string{"a", "b", "c"} {
		adapters[n] = ndistest.NewAdapter(n, ndistest.AdapterOptions{})
		as = append(as, adapters[n].Contract())
	}
	drivers := []ndiscore.Driver{ndistest.Driver("fake", as...)}
	parse = func(more string) *config.Config {
		cfg, err := config.Parse("test.toml", []byte(givenUp+more), drivers, vswitch.Filters()...)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	sw, err := vswitch.New(vswitch.Options{Config: parse(more), Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- sw.Run(ctx, func() { close(ready) }) }() // ends with ctx
	end = func() error {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-time.After(60 * time.Second):
			return errNoEnd
		}
	}
	t.Cleanup(func() {
		if err := end(); errors.Is(err, errNoEnd) {
			t.Error(err)
		}
	})
	<-ready
	return sw, parse, adapters, end
}

func present(t *testing.T, sw *vswitch.Switch) map[string]string {
	t.Helper()
	infos, err := sw.Adapters(within(t, 10*time.Second))
	must(t, err)
	there := map[string]string{}
	for _, i := range infos {
		there[i.Name] = i.State.String()
	}
	return there
}

// Whoever gives up in the middle of a change leaves everything as it was, and
// nothing half done.
func TestApplyGivenUp(t *testing.T) {
	const added = "[adapter.c]\ndriver = \"fake\"\n"
	for what, c := range map[string]struct {
		adapter, call string
		from, to      string
	}{
		"while one starts":  {"c", "Init", "", added},
		"while one goes":    {"c", "Halt", added, ""},
		"while one is made": {"c", "Restart", "", added},
	} {
		t.Run(what, func(t *testing.T) {
			sw, parse, adapters, _ := fakes(t, c.from)
			before := present(t, sw)
			hold := adapters[c.adapter].Hold(c.call)
			ctx, cancel := context.WithCancel(t.Context())
			applied := make(chan error, 1)
			go func() { // ends below
				_, err := sw.ApplyConfig(ctx, parse(c.to), false)
				applied <- err
			}()
			hold.Await(t)
			cancel()
			hold.Release()
			if err := <-applied; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			} else if err == nil {
				before = present(t, sw) // the step was the last one: done is done
			}
			after := present(t, sw)
			for n, s := range before {
				if after[n] != s {
					t.Errorf("%s was %s, and is %q", n, s, after[n])
				}
			}
			if len(after) != len(before) {
				t.Errorf("%v, was %v", after, before)
			}
			// What the switch thinks it runs is what it runs.
			plan, err := sw.ApplyConfig(within(t, 10*time.Second), parse(c.to), true)
			must(t, err)
			if _, there := after["c"]; there != (c.to != "") && len(plan.Steps) == 0 || there == (c.to != "") && len(plan.Steps) != 0 {
				t.Errorf("c is there: %t, and the plan is %v", there, plan.Steps)
			}
		})
	}
}

// A change that is under way when the switch ends does not keep the adapters
// from being halted in order.
func TestEndDuringApply(t *testing.T) {
	sw, parse, adapters, end := fakes(t, "")
	halted := func(n string) bool {
		for _, e := range events(sw) {
			if e.What == "adapter.halt" && e.Adapter == n {
				return true
			}
		}
		return false
	}
	hold := adapters["c"].Hold("Init")
	applied := make(chan error, 1)
	go func() { // ends below
		_, err := sw.ApplyConfig(context.Background(), parse("[adapter.c]\ndriver = \"fake\"\n"), false)
		applied <- err
	}()
	hold.Await(t)
	ended := make(chan error, 1)
	go func() { ended <- end() }() // ends with Run
	ndistest.Await(t, "a and b halted beside it", func() bool { return halted("a") && halted("b") })
	hold.Release()
	if err := <-ended; errors.Is(err, errNoEnd) {
		t.Error(err)
	}
	if err := <-applied; err == nil {
		t.Error("applied")
	}
}

func events(sw *vswitch.Switch) []ndiscore.Event {
	all, _, _ := sw.Events(0)
	return all
}
