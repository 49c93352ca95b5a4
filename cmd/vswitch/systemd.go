package main

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	vswitch "github.com/seed-b14e907b/vswitch"
)

// supervisor tells systemd, or whoever started us with NOTIFY_SOCKET, how it
// goes (sd_notify(3)). Without such a supervisor it does nothing.
type supervisor struct{ log *zap.Logger }

func (s supervisor) say(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		s.log.Warn("the supervisor cannot be told", zap.String("state", state), zap.Error(err))
	}
}

func (s supervisor) ready(status string) { s.say(sd.SdNotifyReady + "\nSTATUS=" + status) }
func (s supervisor) stopping()           { s.say(sd.SdNotifyStopping) }

// reloading has to be followed by ready. The time keeps a supervisor from
// taking an old answer for the new one (Type=notify-reload).
func (s supervisor) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		s.log.Warn("no monotonic clock", zap.Error(err))
	}
	s.say(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, now.Nano()/1000))
}

// watch tells the watchdog twice per period that the switch is alive: that its
// control goroutine answers. It ends with ctx.
func (s supervisor) watch(ctx context.Context, sw *vswitch.Switch) {
	period, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("watchdog", zap.Error(err))
	}
	if err != nil || period <= 0 {
		return
	}
	tick := time.NewTicker(period / 2)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, period/2)
		_, err := sw.Bundles(ask)
		cancel()
		switch {
		case err == nil:
			s.say(sd.SdNotifyWatchdog)
		case ctx.Err() == nil:
			s.log.Error("the core does not answer; the watchdog is not told", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
