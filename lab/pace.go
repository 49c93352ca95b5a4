package lab

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// pacerSlice is the longest a pacer sleeps before it looks at done again.
const pacerSlice = 20 * time.Millisecond

// monotonic is the kernel's clock of that name: absolute sleeps need it, time.Now does not show it.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("lab: clock_gettime: " + err.Error()) // cannot fail with valid arguments
	}
	return time.Duration(ts.Nano())
}

// sleepUntil sleeps on the kernel's clock, to absolute deadlines so that errors do not add up, and returns
// false when done was closed first. Being late already costs no sleep.
func sleepUntil(at time.Duration, done <-chan struct{}) bool {
	for {
		select {
		case <-done:
			return false
		default:
		}
		now := monotonic()
		if now >= at {
			return true
		}
		ts := unix.NsecToTimespec(int64(min(at, now+pacerSlice)))
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic("lab: clock_nanosleep: " + err.Error())
		}
	}
}
