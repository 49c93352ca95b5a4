package lab

import (
	"encoding/binary"
	"fmt"
	"os"
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

// pacer sleeps to the microsecond, which the runtime's timers do not (netpoll
// waits whole milliseconds), and in the netpoller, as clock_nanosleep does not:
// a system call that lasts keeps its share of GOMAXPROCS until the runtime's
// monitor takes it away, up to 10 ms later, and for so long nobody looks for what
// else arrived in this process.
type pacer struct {
	fd    int // timer's, which timer keeps open
	timer *os.File
}

func newPacer() (*pacer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	return &pacer{fd: fd, timer: os.NewFile(uintptr(fd), "timerfd")}, nil
}

func (p *pacer) close() { p.timer.Close() }

// until sleeps on the kernel's clock, to absolute deadlines so that errors do not add up, and returns false
// when done was closed first. Being late already costs no sleep.
func (p *pacer) until(at time.Duration, done <-chan struct{}) bool {
	var expired [8]byte
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
		due := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(min(at, now+pacerSlice)))}
		err := unix.TimerfdSettime(p.fd, unix.TFD_TIMER_ABSTIME, &due, nil)
		if err == nil {
			_, err = p.timer.Read(expired[:])
		}
		if err != nil || binary.NativeEndian.Uint64(expired[:]) == 0 {
			panic(fmt.Sprintf("lab: wait on a timerfd: %v", err)) // cannot fail while it is open
		}
	}
}
