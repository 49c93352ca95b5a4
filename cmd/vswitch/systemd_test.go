package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// notifySocket is what systemd listens on.
type notifySocket struct {
	*net.UnixConn
	path string
}

func newNotifySocket(t *testing.T) notifySocket {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return notifySocket{c, path}
}

// next returns the next message of which other is false.
func (n notifySocket) next(t *testing.T, other func(string) bool) string {
	t.Helper()
	if err := n.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for {
		k, err := n.Read(b)
		if err != nil {
			t.Fatalf("the supervisor hears nothing: %v", err)
		}
		if m := string(b[:k]); !other(m) {
			return m
		}
	}
}

const alive = "WATCHDOG=1"

func isAlive(m string) bool  { return m == alive }
func notAlive(m string) bool { return m != alive }

// A supervisor hears when the switch is up, reloading and going down, and all the
// time that it is alive. A file that is wrong is said to be, and changes nothing.
func TestSupervisor(t *testing.T) {
	dir := t.TempDir()
	n := newNotifySocket(t)
	p := program{path: build(t, dir), socket: filepath.Join(dir, "control.sock"), env: []string{"NOTIFY_SOCKET=" + n.path, "WATCHDOG_USEC=200000"}}
	file := filepath.Join(dir, "my.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[log]\nlevel = \"info\"\n")
	d := startDaemon(t, p, file)
	want := func(message string) {
		t.Helper()
		if m := n.next(t, isAlive); m != message {
			t.Errorf("the supervisor hears %q, want %q", m, message)
		}
	}
	want("READY=1\nSTATUS=no adapters")
	for range 3 {
		n.next(t, notAlive)
	}

	reload := func() {
		t.Helper()
		before := monotonic(t)
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m := n.next(t, isAlive)
		var at int64
		if _, err := fmt.Sscanf(m, "RELOADING=1\nMONOTONIC_USEC=%d", &at); err != nil || at < before || at > monotonic(t) {
			t.Errorf("the supervisor hears %q: %v; it is after %d", m, err, before)
		}
	}
	write("[log]\nlevel = \"debug\"\n")
	reload()
	want("READY=1\nSTATUS=no adapters")
	shown := func(level string) {
		t.Helper()
		out, _ := p.run(t, exitOK, "config", "show")
		contains(t, "config show", out, "level = \""+level+"\"")
	}
	shown("debug")
	for _, bad := range []struct{ text, complaint string }{
		{"[log]\nlevel = \"loud\"\n", "my.toml:2:1: log.level"},
		{"[log\n", "my.toml:1:"},
		{"[log]\nformat = \"json\"\n", "log.format"},
		{"[adapter.nosuchdev0]\ndriver = \"afpacket\"\n[log]\nlevel = \"warn\"\n", "nosuchdev0"},
	} {
		write(bad.text)
		reload()
		want("READY=1\nSTATUS=running as before; the configuration was not applied: see the log")
		ndistest.Await(t, "the complaint about "+bad.complaint, func() bool { return strings.Contains(d.talk.String(), bad.complaint) })
		shown("debug")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	reload()
	want("READY=1\nSTATUS=running as before; the configuration was not applied: see the log")

	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	want("STOPPING=1")
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// fakeSwitch is a switch on one fake adapter, which is not run yet.
func fakeSwitch(t *testing.T, log *zap.Logger) (*vswitch.Switch, *ndistest.Adapter) {
	t.Helper()
	adapter := ndistest.NewAdapter("up0", ndistest.AdapterOptions{})
	drivers := []ndiscore.Driver{ndistest.Driver("fake", adapter)}
	cfg, err := config.Parse("test.toml", []byte("[adapter.up0]\ndriver = \"fake\"\n"), drivers)
	if err != nil {
		t.Fatal(err)
	}
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log, Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	return sw, adapter
}

// While the core does not answer, the watchdog hears nothing.
func TestWatchdogIsHonest(t *testing.T) {
	n := newNotifySocket(t)
	t.Setenv("NOTIFY_SOCKET", n.path)
	t.Setenv("WATCHDOG_USEC", "100000")
	var said lockedBuffer
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&said), zap.InfoLevel))
	sw, _ := fakeSwitch(t, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		supervisor{log}.watch(ctx, sw)
		close(ended)
	}()
	ndistest.Await(t, "it to complain twice", func() bool { return strings.Count(said.String(), "the core does not answer") >= 2 })
	if err := n.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if k, err := n.Read(make([]byte, 100)); err == nil {
		t.Errorf("the watchdog hears %d bytes from a switch that does not run", k)
	}
	ran, ready := make(chan error, 1), make(chan struct{})
	run, stop := context.WithCancel(context.Background())
	go func() { ran <- sw.Run(run, func() { close(ready) }) }()
	n.next(t, notAlive)
	wait(t, ready)
	cancel()
	wait(t, ended)
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// A supervisor that has gone is no trouble, and neither is a period that makes no
// sense.
func TestSupervisorIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	t.Setenv("WATCHDOG_USEC", "often")
	sw, _ := fakeSwitch(t, zap.NewNop())
	s := supervisor{zap.NewNop()}
	s.ready("up")
	s.reloading()
	s.stopping()
	s.watch(context.Background(), sw) // returns at once
}

// A SIGHUP that comes while the switch starts is obeyed when everything is up.
func TestReloadWhileStarting(t *testing.T) {
	log := zaptest.NewLogger(t)
	sw, adapter := fakeSwitch(t, log)
	path := filepath.Join(t.TempDir(), "control.sock")
	ctl, err := control.New(control.Options{Socket: path, Switch: sw, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	begin := adapter.Hold("Init")
	told, stop := context.WithCancel(context.Background())
	defer stop()
	ended, reloaded := make(chan error, 1), make(chan bool, 10)
	var ready atomic.Bool
	go func() {
		ended <- runUntilSignal(told, sw, ctl, log, func(context.Context) { reloaded <- ready.Load() }, func() { ready.Store(true) })
	}()
	begin.Await(t)
	for range 3 { // as one
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	c := control.NewClient(path)
	defer c.Close()
	if _, err := c.Version(ndistest.Context(t)); err != nil {
		t.Error(err)
	}
	if len(reloaded) != 0 {
		t.Error("reloaded while it starts")
	}
	begin.Release()
	select {
	case after := <-reloaded:
		if !after {
			t.Error("reloaded before it was ready")
		}
	case <-time.After(patience):
		t.Fatal("the signal is forgotten")
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
}

// The unit file speaks of this program.
func TestUnitFile(t *testing.T) {
	b, err := os.ReadFile("../../docs/vswitch.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"Type=notify-reload", "WatchdogSec=10s", "ExecStart=/usr/local/bin/vswitch run --config " + systemConfig, "ConditionPathExists=" + systemConfig,
		fmt.Sprintf("RestartPreventExitStatus=%d", exitBadInput), "RuntimeDirectory=vswitch", "DeviceAllow=/dev/net/tun rw",
	} {
		if !bytes.Contains(b, []byte("\n"+line+"\n")) {
			t.Errorf("docs/vswitch.service has no line %q", line)
		}
	}
}
