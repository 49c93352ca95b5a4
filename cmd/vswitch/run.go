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
	"sync"
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
		Description: "Prints one line when everything is up. The first SIGTERM or SIGINT halts everything in order; the second ends the program at once. " +
			"SIGHUP reads the configuration again and changes what is different in it, as `vswitch config apply` does.\n\n" +
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
	log, level, err := newLogger(cfg.Log, c.App.ErrWriter)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // a terminal cannot be synced
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log, Level: level})
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
	tell := supervisor{log.Named("supervisor")}
	reload := func(ctx context.Context) {
		tell.reloading()
		var plan config.Changes
		status := "running as before; the configuration was not applied: see the log"
		next, err := loadConfig(path)
		if err == nil {
			plan, err = sw.ApplyConfig(ctx, next, false)
		}
		switch {
		case ctx.Err() != nil:
			return // it stops, and is not ready for anything
		case err != nil:
			log.Error("configuration not applied; the switch runs on as it was", zap.String("file", path), zap.Error(err))
		default:
			status = inventory(next)
			log.Info("configuration applied", zap.String("file", path), zap.Int("steps", len(plan.Steps)))
		}
		tell.ready(status)
	}
	return runUntilSignal(c.Context, sw, ctl, log, reload, func() {
		fmt.Fprintf(c.App.Writer, "vswitch ready: %s; control on %s\n", inventory(cfg), ctl.Socket())
		tell.ready(inventory(cfg))
	})
}

// runUntilSignal runs the switch and its control server until the first signal,
// which ends told. The server is there until the switch has ended, so that one
// can see it start and stop. SIGHUP calls reload, one at a time, and the first
// time when everything is up.
func runUntilSignal(told context.Context, sw *vswitch.Switch, ctl *control.Server, log *zap.Logger, reload func(context.Context), ready func()) error {
	first, again := told.Done(), make(chan os.Signal, 1)
	defer signal.Stop(again)
	hangup := make(chan os.Signal, 1)
	if !signal.Ignored(unix.SIGHUP) { // as it is under nohup
		signal.Notify(hangup, unix.SIGHUP)
		defer signal.Stop(hangup)
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	serveCtx, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	served, ended := make(chan error, 1), make(chan error, 1)
	go func() { served <- ctl.Serve(serveCtx) }() // "control": ends with serveCtx
	up := make(chan struct{})
	go func() { // "switch": ends after stop, or by itself
		ended <- sw.Run(ctx, func() {
			ready()
			close(up)
		})
	}()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	tell := supervisor{log.Named("supervisor")}
	parts.Go(func() { tell.watch(ctx, sw) }) // "watchdog": ends with ctx
	parts.Go(func() {                        // "reload": ends with ctx
		select {
		case <-up:
		case <-ctx.Done():
			return
		}
		for {
			select {
			case <-hangup:
				reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	})

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
			signal.Notify(again, unix.SIGINT, unix.SIGTERM)
			tell.stopping()
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

// newLogger logs to w, a line at a time, as much as the level says at the moment.
func newLogger(o config.Log, w io.Writer) (*zap.Logger, *zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(o.Level)
	if err != nil {
		return nil, nil, badInputf("log.level: %w", err)
	}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.ISO8601TimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if o.Format == "console" {
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(e)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)), &level, nil
}
