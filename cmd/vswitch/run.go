package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
)

// systemConfig is what `run` reads without --config.
const systemConfig = "/etc/vswitch/config.toml"

// stopLimit is how long an orderly end may take.
const stopLimit = 20 * time.Second

func runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a switch until SIGTERM or ^C",
		Description: "Prints one line when everything is up. The first SIGTERM, SIGINT or SIGHUP halts everything in order; the second ends the program at once.\n\n" +
			example("vswitch run --config my.toml"),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "config", Usage: "configuration `FILE` (default: " + systemConfig + ")"}},
		Action: runSwitch,
	}
}

func runSwitch(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	path := c.String("config")
	if path == "" {
		path = systemConfig
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return badInputf("run: there is no %s: write one (`vswitch config default` prints a start, with every key), or use --config FILE", path)
		}
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	log, err := newLogger(cfg.Log, c.App.ErrWriter)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // a terminal cannot be synced
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log})
	if err != nil {
		return badInput{err}
	}
	socket := cfg.Control.Socket
	if s := c.String("socket"); s != "" {
		if socket, err = filepath.Abs(s); err != nil {
			return badInputf("run: --socket: %w", err)
		}
	}
	ctl, err := control.New(control.Options{
		Socket: socket, Mode: cfg.Control.FileMode(), Group: cfg.Control.Group, Switch: sw, Log: log.Named("control"),
	})
	if err != nil {
		return badInput{err}
	}
	return runUntilSignal(c.Context, sw, ctl, log, func() {
		fmt.Fprintf(c.App.Writer, "vswitch ready: %s; control on %s\n", inventory(cfg), ctl.Socket())
	})
}

// runUntilSignal runs the switch and its control server until the first signal,
// which ends told, or SIGHUP. The server is there until the switch has ended, so
// that one can see it start and stop.
func runUntilSignal(told context.Context, sw *vswitch.Switch, ctl *control.Server, log *zap.Logger, ready func()) error {
	signals := []os.Signal{unix.SIGINT, unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) { // as it is under nohup
		signals = append(signals, unix.SIGHUP)
		var stop context.CancelFunc
		told, stop = signal.NotifyContext(told, unix.SIGHUP)
		defer stop()
	}
	first, again := told.Done(), make(chan os.Signal, 1)
	defer signal.Stop(again)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	serveCtx, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	served, ended := make(chan error, 1), make(chan error, 1)
	go func() { served <- ctl.Serve(serveCtx) }() // "control": ends with serveCtx
	go func() { ended <- sw.Run(ctx, ready) }()   // "switch": ends after stop, or by itself

	var limit <-chan time.Time
	for {
		select {
		case err := <-ended:
			stopServing()
			if served != nil {
				if e := <-served; e != nil {
					log.Error("control server ended", zap.Error(e))
				}
			}
			if first == nil && errors.Is(err, context.Canceled) {
				err = nil // it was told to stop while it started
			}
			if err == nil {
				log.Info("stopped")
			}
			return err
		case err := <-served:
			// Frames flow on; that matters more than being able to ask.
			served = nil
			log.Error("control server ended", zap.Error(err))
		case <-first:
			first = nil
			signal.Notify(again, signals...)
			log.Info("stopping; another signal ends the program at once", zap.NamedError("reason", context.Cause(told)), zap.Duration("limit", stopLimit))
			timer := time.NewTimer(stopLimit)
			defer timer.Stop()
			limit = timer.C
			stop()
		case s := <-again:
			return fmt.Errorf("%s again: ended at once, without waiting for what was not halted", s)
		case <-limit:
			return fmt.Errorf("not stopped within %s: ended at once", stopLimit)
		}
	}
}

// newLogger logs to w, a line at a time.
func newLogger(o config.Log, w io.Writer) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(o.Level)
	if err != nil {
		return nil, badInputf("log.level: %w", err)
	}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.ISO8601TimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if o.Format == "console" {
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(e)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)), nil
}
