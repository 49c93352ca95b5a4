package control_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
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
