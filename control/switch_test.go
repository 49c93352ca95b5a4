package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// A real switch, which has no devices, is asked and told everything.
func TestRealSwitch(t *testing.T) {
	cfg, err := config.Parse("empty.toml", nil, vswitch.Drivers(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control.sock")
	server, err := control.New(control.Options{Socket: path, Switch: sw, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(context.Background())
	defer stop()
	serveCtx, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	ran, served, ready := make(chan error, 1), make(chan error, 1), make(chan struct{})
	go func() { served <- server.Serve(serveCtx) }()
	go func() { ran <- sw.Run(runCtx, func() { close(ready) }) }()
	<-ready

	ctx, c := ndistest.Context(t), control.NewClient(path)
	defer c.Close()
	if v, err := c.Version(ctx); err != nil || v.Version != vswitch.Version() || v.Started.IsZero() {
		t.Errorf("Version: %+v, %v", v, err)
	}
	if text, err := c.Config(ctx); err != nil {
		t.Errorf("Config: %v", err)
	} else if _, err := config.Parse("shown.toml", text, vswitch.Drivers(zap.NewNop())); err != nil {
		t.Errorf("what Config gives cannot be read again: %v", err)
	}
	for name, ask := range map[string]func() (int, error){
		"Adapters":   func() (int, error) { l, err := c.Adapters(ctx); return len(l), err },
		"Bundles":    func() (int, error) { l, err := c.Bundles(ctx); return len(l), err },
		"Bindings":   func() (int, error) { l, err := c.Bindings(ctx); return len(l), err },
		"FDB":        func() (int, error) { l, err := c.FDB(ctx, ""); return len(l), err },
		"Interfaces": func() (int, error) { l, err := c.Interfaces(ctx); return len(l), err },
		"Routes":     func() (int, error) { l, err := c.Routes(ctx); return len(l), err },
		"Neighbors":  func() (int, error) { l, err := c.Neighbors(ctx); return len(l), err },
		"Stats":      func() (int, error) { s, err := c.Stats(ctx); return len(s.Adapters), err },
	} {
		if n, err := ask(); n != 0 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	for name, err := range map[string]error{
		"remove":  c.Operate(ctx, control.OpRemove, "lan0", "", false),
		"promote": c.Promote(ctx, "wan", "up0"),
		"show":    func() error { _, err := c.Adapter(ctx, "lan0"); return err }(),
		"fdb":     func() error { _, err := c.FDB(ctx, "lan"); return err }(),
	} {
		if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}

	stop()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	// A switch that has stopped still says so.
	if _, err := c.Adapters(ctx); err == nil {
		t.Error("a stopped switch answers")
	} else if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeStopping {
		t.Errorf("a stopped switch: %v", err)
	}
	stopServing()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// realText is a router on fake devices; new0 has a device, and is not in it.
const realText = `
[adapter.a]
driver = "fake"
[adapter.b]
driver = "fake"
filters = ["slow"]
[adapter.c]
driver = "fake"
[filter.slow]
driver = "fault"
delay = "1ms"
[filter.lossy]
driver = "fault"
drop = "1%"
[bridge.lan]
ports = ["a"]
[bundle.wan]
members = ["b", "c"]
[interface.lan]
on = "lan"
addresses = ["10.0.0.1/24"]
[interface.wan]
on = "wan"
addresses = ["192.0.2.2/24"]
masquerade = true
[[route]]
to = "default"
via = "192.0.2.1"
[fault]
allow = true
longest = "1m"
`

// real is a switch on fake devices, and its client.
type real struct {
	*control.Client
	sw    *vswitch.Switch
	level zap.AtomicLevel
}

func startReal(t *testing.T, text string) *real {
	t.Helper()
	r := &real{level: zap.NewAtomicLevel()}
	var devices []ndiscore.Adapter
	for _, name := range []string{"a", "b", "c", "new0"} {
		devices = append(devices, ndistest.NewAdapter(name, ndistest.AdapterOptions{Resets: true}).Contract())
	}
	drivers := []ndiscore.Driver{ndistest.Driver("fake", devices...)}
	cfg, err := config.Parse("test.toml", []byte(text), drivers, vswitch.Filters()...)
	if err != nil {
		t.Fatal(err)
	}
	r.sw, err = vswitch.New(vswitch.Options{Config: cfg, Logger: zap.NewNop(), Level: &r.level, Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control.sock")
	server, err := control.New(control.Options{Socket: path, Switch: r.sw, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(context.Background())
	serveCtx, stopServing := context.WithCancel(context.Background())
	ran, served, ready := make(chan error, 1), make(chan error, 1), make(chan struct{})
	go func() { served <- server.Serve(serveCtx) }()
	go func() { ran <- r.sw.Run(runCtx, func() { close(ready) }) }()
	r.Client = control.NewClient(path)
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.Close()
		stopServing()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ran:
		ran <- err
		t.Fatalf("it does not start: %v", err)
	}
	ndistest.Await(t, "all routes alive", func() bool { // links are told of a moment later
		routes, err := r.Routes(t.Context())
		return err == nil && !slices.ContainsFunc(routes, func(x control.Route) bool { return !x.Alive })
	})
	return r
}

// state is everything that a command could change, as text.
func (r *real) state(t *testing.T) string {
	t.Helper()
	ctx := ndistest.Context(t)
	var b strings.Builder
	text, err := r.Config(ctx)
	add := func(v any, e error) {
		err = errors.Join(err, e)
		fmt.Fprintf(&b, "%+v\n", v)
	}
	b.Write(text)
	adapters, e := r.Adapters(ctx)
	for _, a := range adapters {
		add([]any{a.Name, a.State, a.Suspended, a.Resets, a.MTU, a.Filters, a.Bindings}, e)
	}
	add(r.Bridges(ctx))
	add(r.Interfaces(ctx))
	add(r.Routes(ctx))
	faults, e := r.Faults(ctx)
	add(len(faults), e)
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Whatever is wrong with a command, the answer says so, and nothing is changed.
func TestRealSwitchRefuses(t *testing.T) {
	r := startReal(t, realText)
	ctx := ndistest.Context(t)
	before := r.state(t)
	inject := func(f control.FaultSettings) error { _, err := r.Inject(ctx, f); return err }
	apply := func(text string) error { _, err := r.Apply(ctx, []byte(text), false); return err }
	with := func(old, new string) string { return strings.Replace(realText, old, new, 1) }
	count := func(_ int, err error) error { return err }
	chance := map[string]string{"chance": "1%"}
	for _, tc := range []struct {
		what string
		err  error
		code control.Code
		says string
	}{
		{"start what runs", r.Operate(ctx, control.OpStart, "a", "", false), control.CodeConflict, "running"},
		{"resume what is awake", r.Operate(ctx, control.OpResume, "a", "", false), control.CodeConflict, "running"},
		{"reset a bridge", r.Operate(ctx, control.OpReset, "lan", "", false), control.CodeNotSupported, "not supported"},
		{"remove nobody", r.Operate(ctx, control.OpRemove, "nobody", "", true), control.CodeNotFound, "no such adapter"},

		{"add what is there", r.AddAdapter(ctx, control.AdapterSettings{Name: "a", Driver: "fake"}), control.CodeConflict, "already in use"},
		{"add a bridge's name", r.AddAdapter(ctx, control.AdapterSettings{Name: "lan", Driver: "fake"}), control.CodeConflict, "add adapter lan: name is already in use, by a bridge"},
		{"add a bundle's name", r.AddAdapter(ctx, control.AdapterSettings{Name: "wan", Driver: "fake"}), control.CodeConflict, "add adapter wan: name is already in use, by a bundle"},
		{"an unknown filter", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"filters": []any{"nope"}}}), control.CodeBadRequest, `adapter.new0.filters: there is no filter "nope"`},
		{"a reserved filter", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"filters": []any{fault.FilterPrefix + "1"}}}), control.CodeBadRequest, "adapter.new0.filters: \"inject-1\": names that begin with"},
		{"an unknown driver", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fak"}), control.CodeBadRequest, `did you mean "fake"`},
		{"an unknown key", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"mtu": 1}}), control.CodeBadRequest, "adapter.new0.mtu: unknown key"},
		{"a number beyond all", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"x": json.Number("1e999")}}), control.CodeBadRequest, "value out of range"},
		{"null", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"filters": nil}}), control.CodeBadRequest, "null"},
		{"a nest", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"x": []any{map[string]any{"y": nil}}}}), control.CodeBadRequest, "null"},
		{"two drivers", r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"driver": "fake"}}), control.CodeBadRequest, "twice"},
		{"TOML in a name", r.AddAdapter(ctx, control.AdapterSettings{Name: "x]\n[fault", Driver: "fake"}), control.CodeBadRequest, "a name is"},
		{"a device that is not there", r.AddAdapter(ctx, control.AdapterSettings{Name: "new1", Driver: "fake"}), control.CodeNotFound, "everything is as it was"},

		{"insert what is in", r.InsertFilter(ctx, "b", "slow", 0), control.CodeConflict, "slow"},
		{"insert what is not configured", r.InsertFilter(ctx, "b", "fast", 0), control.CodeNotFound, "[filter.fast]"},
		{"insert on nobody", r.InsertFilter(ctx, "nobody", "slow", 0), control.CodeNotFound, "nobody"},
		{"insert on a bundle", r.InsertFilter(ctx, "wan", "lossy", 0), control.CodeNotSupported, "bundle wan: filters: not supported: a bundle takes none; those below it can: b, c"},
		{"insert on a bridge", r.InsertFilter(ctx, "lan", "lossy", 0), control.CodeNotSupported, "bridge lan"},
		{"insert below the device", r.InsertFilter(ctx, "b", "lossy", -5), control.CodeBadRequest, "-5"},
		{"insert above the top", r.InsertFilter(ctx, "b", "lossy", 2), control.CodeBadRequest, "no position 2: it has 1 filters, so 0 to 1"},
		{"insert in the switch below the device", r.sw.InsertFilter(ctx, "b", "lossy", -5), "", "no position -5"},
		{"insert a reserved name", r.InsertFilter(ctx, "b", fault.FilterPrefix+"1", 0), control.CodeBadRequest, "names that begin with"},
		{"remove from a bundle", r.RemoveFilter(ctx, "wan", "lossy"), control.CodeNotSupported, "bundle wan"},
		{"remove what is not in", r.RemoveFilter(ctx, "a", "slow"), control.CodeNotFound, "slow"},

		{"a route that is there", r.AddRoute(ctx, control.RouteSettings{To: "default", Via: "192.0.2.9"}), control.CodeConflict, "it leads via 192.0.2.1"},
		{"a route to anything", r.AddRoute(ctx, control.RouteSettings{To: "anything", Via: "192.0.2.9"}), control.CodeBadRequest, "anything"},
		{"a route to nowhere", r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "203.0.113.1"}), control.CodeBadRequest, "203.0.113.1"},
		{"a route via itself", r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.2"}), control.CodeBadRequest, "our own address"},
		{"a route of nobody", r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.1", Interface: "nobody"}), control.CodeBadRequest, "nobody"},
		{"a route with TOML in it", r.AddRoute(ctx, control.RouteSettings{To: "default\"\n[fault]\nallow=false", Via: "192.0.2.1"}), control.CodeBadRequest, "not a prefix"},
		{"delete no route", r.DeleteRoute(ctx, control.RouteSettings{To: "198.51.100.0/24"}), control.CodeNotFound, "198.51.100.0/24"},
		{"delete another route", r.DeleteRoute(ctx, control.RouteSettings{To: "default", Via: "192.0.2.9"}), control.CodeNotFound, "default"},
		{"delete a connected route", r.DeleteRoute(ctx, control.RouteSettings{To: "10.0.0.0/24"}), control.CodeNotFound, "10.0.0.0/24"},

		{"flush nowhere", count(r.FlushNAT(ctx, control.NATMatch{Interface: "b"})), control.CodeNotFound, "interface b: not found: there are lan (on lan), wan (on wan)"},
		{"flush a mapped address", count(r.FlushNAT(ctx, control.NATMatch{Address: "::ffff:10.1.0.2"})), control.CodeBadRequest, "write the IPv4 address 10.1.0.2"},
		{"flush a mapped prefix", count(r.FlushNAT(ctx, control.NATMatch{Address: "::ffff:10.1.0.0/112"})), control.CodeBadRequest, "write the IPv4 address 10.1.0.0"},
		{"flush an odd protocol", count(r.FlushNAT(ctx, control.NATMatch{Protocol: "tpc"})), control.CodeBadRequest, "icmpv6 or a number"},
		{"flush an odd address", count(r.FlushNAT(ctx, control.NATMatch{Address: "10.0.0"})), control.CodeBadRequest, "10.0.0"},

		{"an unknown fault", inject(control.FaultSettings{Kind: "flood", On: "a"}), control.CodeBadRequest, "flood"},
		{"a fault on nobody", inject(control.FaultSettings{Kind: "drop", On: "nobody", Params: chance}), control.CodeNotFound, "nobody"},
		{"a fault of a device on nobody", inject(control.FaultSettings{Kind: "hang", On: "nobody"}), control.CodeNotFound, "hang on nobody: no such adapter"},
		{"a fault of a device on a bundle", inject(control.FaultSettings{Kind: "link-down", On: "wan"}), control.CodeNotSupported, "only an adapter with a driver has a device"},
		{"a fault without a parameter", inject(control.FaultSettings{Kind: "drop", On: "a"}), control.CodeBadRequest, "chance"},
		{"an unknown parameter", inject(control.FaultSettings{Kind: "hang", On: "a", Params: chance}), control.CodeBadRequest, "chance"},
		{"an odd parameter", inject(control.FaultSettings{Kind: "drop", On: "a", Params: map[string]string{"chance": "-1%"}}), control.CodeBadRequest, "chance"},
		{"a long parameter", inject(control.FaultSettings{Kind: "drop", On: "a", Params: map[string]string{"chance": strings.Repeat("1", 60_000)}}), control.CodeBadRequest, ""},
		{"an odd direction", inject(control.FaultSettings{Kind: "drop", On: "a", Direction: "up", Params: chance}), control.CodeBadRequest, "up"},
		{"no time", inject(control.FaultSettings{Kind: "drop", On: "a", For: "a while", Params: chance}), control.CodeBadRequest, "30s"},
		{"a time of nothing", inject(control.FaultSettings{Kind: "drop", On: "a", For: "-1s", Params: chance}), control.CodeBadRequest, "30s"},
		{"no time at all", inject(control.FaultSettings{Kind: "drop", On: "a", For: "0s", Params: chance}), control.CodeBadRequest, "a fault lasts some time"},
		{"longer than allowed", inject(control.FaultSettings{Kind: "drop", On: "a", For: "2m", Params: chance}), control.CodeBadRequest, "longest"},
		{"clear no fault", count(r.ClearFaults(ctx, control.FaultMatch{ID: 99})), control.CodeNotFound, "99"},
		{"clear on nobody", count(r.ClearFaults(ctx, control.FaultMatch{On: "nobody"})), control.CodeNotFound, "clear faults on nobody: no such adapter"},
		{"clear where there is none", count(r.ClearFaults(ctx, control.FaultMatch{On: "wan"})), "", ""},

		{"broken TOML", apply("[adapter.a"), control.CodeBadRequest, "config.toml:1:"},
		{"unknown keys", apply(realText + "[adapter.d]\ndriver = \"fake\"\ncolour = 1\n"), control.CodeBadRequest, "adapter.d.colour"},
		{"another socket", apply(with("[adapter.a]", "[control]\nsocket = \"/tmp/x\"\n[adapter.a]")), control.CodeConflict, "control.socket"},
		{"another format", apply(with("[adapter.a]", "[log]\nformat = \"json\"\n[adapter.a]")), control.CodeConflict, "log.format"},
		{"a step that fails", apply(strings.NewReplacer("10.0.0.1/24", "10.9.0.1/24", `ports = ["a"]`, `ports = ["new1"]`, "[adapter.a]", "[adapter.new1]", "1m", "2m", `["slow"]`, `["lossy"]`).Replace(realText)),
			control.CodeNotFound, "add adapter new1"},
	} {
		if tc.code == "" { // not from the API
			if tc.says != "" && (tc.err == nil || !strings.Contains(tc.err.Error(), tc.says)) || tc.says == "" && tc.err != nil {
				t.Errorf("%s: %v, want %s", tc.what, tc.err, tc.says)
			}
			continue
		}
		if strings.Contains(tc.err.Error(), " in line ") {
			t.Errorf("%s: points into a file that nobody has: %v", tc.what, tc.err)
		}
		if e, ok := errors.AsType[*control.Error](tc.err); !ok || e.Code != tc.code || !strings.Contains(e.Message, tc.says) || len(e.Message) > 4000 {
			t.Errorf("%s: %.500v, want %s: %s", tc.what, tc.err, tc.code, tc.says)
		}
	}
	// What was taken away and put back by an undone step comes last now.
	if diff := cmp.Diff(sorted(before), sorted(r.state(t))); diff != "" {
		t.Errorf("before - after +\n%s", diff)
	}
}

// What is allowed is done, and can be undone.
func TestRealSwitchObeys(t *testing.T) {
	r := startReal(t, realText)
	ctx := ndistest.Context(t)
	before := r.state(t)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	has := func(wants ...string) {
		t.Helper()
		now := r.state(t)
		for _, w := range wants {
			if !strings.Contains(now, w) {
				t.Errorf("no %q in\n%s", w, now)
			}
		}
	}
	do(r.AddAdapter(ctx, control.AdapterSettings{Name: "new0", Driver: "fake", Settings: map[string]any{"filters": []any{"lossy"}}}))
	has("[adapter.new0]", "[new0 running", "{Name:lossy State:running")
	do(r.InsertFilter(ctx, "new0", "slow", 0))
	has(`filters = ["slow", "lossy"]`, "[{Name:slow State:running Mandatory:false} {Name:lossy State:running Mandatory:false}]")

	// Injected faults stand next to the device; configured filters keep their order.
	fault, err := r.Inject(ctx, control.FaultSettings{Kind: "delay", On: "new0", Direction: "tx", Seed: 7, For: "50s", Owner: "me", Params: map[string]string{"delay": "1ms"}})
	do(err)
	if fault.Direction != "tx" || fault.Seed != 7 || fault.Owner != "me" || fault.Ends.Sub(fault.Began) != 50*time.Second {
		t.Errorf("fault: %+v", fault)
	}
	down, err := r.Inject(ctx, control.FaultSettings{Kind: "link-down", On: "a"})
	do(err)
	if down.Direction != "" || down.Seed == 0 || down.Ends.Sub(down.Began) != time.Minute {
		t.Errorf("fault: %+v", down)
	}
	if a, err := r.Adapter(ctx, "a"); err != nil || a.Link.Media != "disconnected" {
		t.Errorf("a: %+v, %v", a, err)
	}
	if err := r.RemoveFilter(ctx, "new0", fmt.Sprint("inject-", fault.ID)); err == nil || !strings.Contains(err.Error(), "inject clear") {
		t.Errorf("take the filter of a fault out: %v", err)
	}
	do(r.RemoveFilter(ctx, "new0", "slow"))
	do(r.InsertFilter(ctx, "new0", "slow", -1))
	has(fmt.Sprintf("[{Name:inject-%d State:running Mandatory:false} {Name:lossy State:running Mandatory:false} {Name:slow State:running Mandatory:false}]", fault.ID))
	if n, err := r.ClearFaults(ctx, control.FaultMatch{All: true}); err != nil || n != 2 {
		t.Errorf("ClearFaults: %d, %v", n, err)
	}
	if a, err := r.Adapter(ctx, "a"); err != nil || a.Link.Media != "connected" {
		t.Errorf("a: %+v, %v", a, err)
	}

	do(r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.9", Metric: 5}))
	do(r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.8"}))
	err = r.DeleteRoute(ctx, control.RouteSettings{To: "198.51.100.0/24"})
	if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeBadRequest || !strings.Contains(e.Message, "2 match, 198.51.100.0/24 via 192.0.2.9 on wan metric 5 and") {
		t.Errorf("which of two: %v", err)
	}
	do(r.DeleteRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Metric: 5}))
	has("{To:198.51.100.0/24 Via:192.0.2.8")
	do(r.DeleteRoute(ctx, control.RouteSettings{To: "198.51.100.0/24"}))

	if n, err := r.NAT(ctx, control.NATMatch{Interface: "wan"}, 10); err != nil || n.Flows == nil || n.Limit == 0 {
		t.Errorf("NAT: %+v, %v", n, err)
	}
	if n, err := r.FlushNAT(ctx, control.NATMatch{Address: "10.0.0.0/8", Interface: "wan"}); err != nil || n != 0 {
		t.Errorf("FlushNAT: %d, %v", n, err)
	}
	if l, err := r.FaultKinds(ctx); err != nil || len(l) < 5 {
		t.Errorf("FaultKinds: %+v, %v", l, err)
	}
	if b, err := r.Bridge(ctx, "lan"); err != nil || len(b.Ports) != 1 || b.Ports[0].Name != "a" {
		t.Errorf("Bridge: %+v, %v", b, err)
	}
	do(r.Operate(ctx, control.OpRemove, "new0", "", false))
	plan, err := r.Apply(ctx, []byte(realText), false)
	do(err)
	if !plan.Applied {
		t.Errorf("plan: %+v", plan)
	}
	if diff := cmp.Diff(before, r.state(t)); diff != "" {
		t.Errorf("before - after +\n%s", diff)
	}
}

// What was removed by hand stays away through other commands, is still
// configured, and comes back by a configuration that has it, or by hand.
func TestRemovedByHand(t *testing.T) {
	r := startReal(t, realText)
	ctx := ndistest.Context(t)
	before := r.state(t)
	there := func() string {
		t.Helper()
		l, err := r.Adapters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, a := range l {
			names = append(names, a.Name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	for _, name := range []string{"b", "lan", "wan"} {
		if err := r.Operate(ctx, control.OpRemove, name, "by hand", true); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.9"}),
		r.DeleteRoute(ctx, control.RouteSettings{To: "198.51.100.0/24"}),
		r.InsertFilter(ctx, "c", "lossy", 0), r.RemoveFilter(ctx, "c", "lossy"),
	); err != nil {
		t.Error(err)
	}
	for _, err := range []error{r.RemoveFilter(ctx, "b", "slow"), r.InsertFilter(ctx, "b", "lossy", 0)} {
		if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeNotFound {
			t.Errorf("a filter of what is not there: %v", err)
		}
	}
	if got := there(); got != "a c" {
		t.Errorf("there: %s", got)
	}
	if bridges, err := r.Bridges(ctx); err != nil || len(bridges) != 0 {
		t.Errorf("bridges: %+v, %v", bridges, err)
	}
	if err := r.AddAdapter(ctx, control.AdapterSettings{Name: "b", Driver: "fake"}); err != nil {
		t.Error(err)
	}
	if got := there(); got != "a b c" {
		t.Errorf("there: %s", got)
	}
	if _, err := r.Apply(ctx, []byte(realText), false); err != nil {
		t.Fatal(err)
	}
	if got := there(); got != "a b c lan wan" {
		t.Errorf("there: %s", got)
	}
	ndistest.Await(t, "everything to be as before", func() bool { return sorted(r.state(t)) == sorted(before) })
}

// sorted is text with its lines in order: what is added again comes last.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// An attached fault on a real switch ends with its owner, by its time, with its
// adapter, and with the switch.
func TestRealAttachedFaults(t *testing.T) {
	var last chan string
	t.Cleanup(func() { // after the switch has stopped
		if got := <-last; got != "stopped<nil>" {
			t.Errorf("at the end: %s", got)
		}
	})
	r := startReal(t, realText)
	ctx := ndistest.Context(t)
	attach := func(ctx context.Context, f control.FaultSettings) chan string {
		t.Helper()
		began, ended := make(chan struct{}), make(chan string, 1)
		go func() {
			end, err := r.InjectAttached(ctx, f, func(control.Fault) { close(began) })
			ended <- fmt.Sprint(end, err)
		}()
		select {
		case <-began:
		case end := <-ended:
			t.Fatalf("not injected: %s", end)
		}
		return ended
	}
	none := func() {
		t.Helper()
		ndistest.Await(t, "no fault to be in force", func() bool { l, err := r.Faults(ctx); return err == nil && len(l) == 0 })
		if a, err := r.Adapter(ctx, "a"); err != nil || a.Link.Media != "connected" {
			t.Errorf("a: %+v, %v", a, err)
		}
	}
	owner, hangUp := context.WithCancel(ctx)
	ended := attach(owner, control.FaultSettings{Kind: "link-down", On: "a"})
	hangUp()
	<-ended
	none()
	for _, tc := range []struct {
		settings control.FaultSettings
		end      func() error
		want     string
	}{
		{control.FaultSettings{Kind: "link-down", On: "a", For: "50ms"}, func() error { return nil }, "expired"},
		{control.FaultSettings{Kind: "drop", On: "a", For: "50ms", Params: map[string]string{"every": "2"}}, func() error { return nil }, "expired"},
		{control.FaultSettings{Kind: "drop", On: "a", Params: map[string]string{"every": "2"}}, func() error { _, err := r.ClearFaults(ctx, control.FaultMatch{On: "a"}); return err }, "cleared"},
		{control.FaultSettings{Kind: "drop", On: "c", Params: map[string]string{"every": "2"}}, func() error { return r.Operate(ctx, control.OpRemove, "c", "", true) }, "cleared"},
	} {
		ended := attach(ctx, tc.settings)
		if err := tc.end(); err != nil {
			t.Error(err)
		}
		if got := <-ended; got != tc.want+"<nil>" {
			t.Errorf("%+v ends with %s, want %s", tc.settings, got, tc.want)
		}
		none()
	}
	last = attach(context.Background(), control.FaultSettings{Kind: "hang", On: "a"})
}

// Faults are refused where the configuration does not allow them, and while it
// does not.
func TestFaultsNotAllowed(t *testing.T) {
	r := startReal(t, strings.Replace(realText, "allow = true", "allow = false", 1))
	ctx := ndistest.Context(t)
	f := control.FaultSettings{Kind: "hang", On: "a"}
	for _, attached := range []bool{false, true} {
		var err error
		if attached {
			_, err = r.InjectAttached(ctx, f, func(control.Fault) { t.Error("injected") })
		} else {
			_, err = r.Inject(ctx, f)
		}
		if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeConflict || !strings.Contains(e.Hint, "allow = true") {
			t.Errorf("not allowed: %v", err)
		}
	}
	if _, err := r.Apply(ctx, []byte(realText), false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Inject(ctx, f); err != nil {
		t.Errorf("allowed: %v", err)
	}
}

// Changes of configuration that come at the same time happen one after the other.
func TestChangesTakeTurns(t *testing.T) {
	r := startReal(t, realText)
	ctx := ndistest.Context(t)
	one := strings.Replace(realText, "10.0.0.1/24", "10.1.0.1/24", 1)
	two := strings.Replace(strings.Replace(realText, "[[route]]\nto = \"default\"\nvia = \"192.0.2.1\"", "", 1), `["slow"]`, `["slow", "lossy"]`, 1)
	var all sync.WaitGroup
	for _, text := range []string{one, two, realText, one, two} {
		all.Go(func() {
			for range 3 {
				if _, err := r.Apply(ctx, []byte(text), false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for range 5 {
			if err := r.AddRoute(ctx, control.RouteSettings{To: "198.51.100.0/24", Via: "192.0.2.9"}); err != nil && !strings.Contains(err.Error(), "already") {
				t.Error(err)
			}
		}
	})
	all.Wait()
	if _, err := r.Apply(ctx, []byte(two), false); err != nil {
		t.Fatal(err)
	}
	if plan, err := r.Apply(ctx, []byte(two), true); err != nil || len(plan.Steps) != 0 {
		t.Errorf("left to do: %+v, %v", plan, err)
	}
	if a, err := r.Adapter(ctx, "b"); err != nil || len(a.Filters) != 2 || a.Filters[1].State != "running" {
		t.Errorf("b: %+v, %v", a, err)
	}
}

// A switch that does not run yet, or any more, is asked too: the control socket
// is there before and after it. It may say that it cannot answer, nothing worse.
func TestSwitchBeforeAndAfterRun(t *testing.T) {
	const text = `
[adapter.a]
driver = "fake"
[adapter.b]
driver = "fake"
[bridge.lan]
ports = ["a"]
[interface.lan]
on = "lan"
addresses = ["10.0.0.1/24"]
[interface.b]
on = "b"
addresses = ["10.1.0.1/24"]
`
	a, b := ndistest.NewAdapter("a", ndistest.AdapterOptions{}), ndistest.NewAdapter("b", ndistest.AdapterOptions{})
	drivers := []ndiscore.Driver{ndistest.Driver("fake", a, b)}
	cfg, err := config.Parse("test.toml", []byte(text), drivers)
	if err != nil {
		t.Fatal(err)
	}
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: zaptest.NewLogger(t), Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control.sock")
	server, err := control.New(control.Options{Socket: path, Switch: sw, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	serveCtx, stopServing := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(serveCtx) }()
	defer func() {
		stopServing()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c := control.NewClient(path)
	defer c.Close()

	askAll := func(t *testing.T, limit time.Duration) {
		t.Helper()
		for name, ask := range map[string]func(context.Context) error{
			"Version":    func(ctx context.Context) error { _, err := c.Version(ctx); return err },
			"Adapters":   func(ctx context.Context) error { _, err := c.Adapters(ctx); return err },
			"Bundles":    func(ctx context.Context) error { _, err := c.Bundles(ctx); return err },
			"FDB":        func(ctx context.Context) error { _, err := c.FDB(ctx, ""); return err },
			"Interfaces": func(ctx context.Context) error { _, err := c.Interfaces(ctx); return err },
			"Routes":     func(ctx context.Context) error { _, err := c.Routes(ctx); return err },
			"Neighbors":  func(ctx context.Context) error { _, err := c.Neighbors(ctx); return err },
			"Stats":      func(ctx context.Context) error { _, err := c.Stats(ctx); return err },
			"Events":     func(ctx context.Context) error { _, err := c.Events(ctx, 0); return err },
			"Config":     func(ctx context.Context) error { _, err := c.Config(ctx); return err },
			"Remove":     func(ctx context.Context) error { return c.Operate(ctx, control.OpRemove, "nobody", "", false) },
			"Promote":    func(ctx context.Context) error { return c.Promote(ctx, "nobody", "a") },
		} {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			err := ask(ctx)
			cancel()
			if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeInternal {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	askAll(t, 100*time.Millisecond) // nobody answers most of it
	runCtx, stop := context.WithCancel(context.Background())
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- sw.Run(runCtx, nil) }()
	askAll(t, 10*time.Second) // some of it while it starts
	stop()
	if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	askAll(t, 10*time.Second)
}
