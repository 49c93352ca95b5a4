package control_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
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
		"remove":  c.RemoveAdapter(ctx, "lan0", ""),
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
