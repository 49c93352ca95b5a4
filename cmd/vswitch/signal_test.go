package main

import (
	"context"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// The first signal halts everything in order; the second does not wait for a
// driver that hangs.
func TestSecondSignal(t *testing.T) {
	adapter := ndistest.NewAdapter("up0", ndistest.AdapterOptions{})
	drivers := []ndiscore.Driver{ndistest.Driver("fake", adapter)}
	cfg, err := config.Parse("test.toml", []byte("[adapter.up0]\ndriver = \"fake\"\n"), drivers)
	if err != nil {
		t.Fatal(err)
	}
	log := zaptest.NewLogger(t)
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log, Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control.sock")
	ctl, err := control.New(control.Options{Socket: path, Switch: sw, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	halt := adapter.Hold("Halt")
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- runUntilSignal(told, sw, ctl, log, func(context.Context) {}, func() { close(ready) }) }()
	wait(t, ready)

	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	halt.Await(t)
	select {
	case err := <-ended:
		t.Fatalf("it does not wait for the halt: %v", err)
	default:
	}
	// While it stops it can be asked.
	c := control.NewClient(path)
	defer c.Close()
	if a, err := c.Adapter(ndistest.Context(t), "up0"); err != nil || a.State == "running" {
		t.Errorf("while it stops: %+v, %v", a, err)
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "ended at once") || exitCode(err) != exitFailure {
			t.Errorf("after the second signal: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the second signal does nothing")
	}
	// The process would end here; the test lets the driver go on instead.
	halt.Release()
	ndistest.Await(t, "the server to end", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Version(ctx)
		return err != nil
	})
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("waited in vain")
	}
}
