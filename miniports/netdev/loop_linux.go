package netdev

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The poll before sleep. See Loop.
var (
	pollMost  = Env("MOST", 100)
	yieldBusy = Env("BUSY", 8)
	restMost = Env("REST", 256)/1000
	nearest = Env("NEAR", 300)
)
var Stat struct { Sleeps, Hits, Misses, Busy, ShortSleep atomic.Int64 }
func Env(n string, d int) time.Duration { if v, err := strconv.Atoi(os.Getenv(n)); err == nil { d = v }; return time.Duration(d)*time.Microsecond }

// Source is a device's receive queue as its Loop drives it. All calls come from
// the goroutine in Run.
type Source interface {
	// Receive passes up what has arrived, one batch at most, without blocking,
	// and reports how many frames it took from the device: 0, cheaply, when
	// there were none. An error ends Run.
	Receive() (frames int, err error)
	// Fault is called after a wake-up for which there was no frame: the device
	// may have raised an error condition instead. An error ends Run.
	Fault() error
	// Sleep is called before the goroutine sleeps: buffers go back.
	Sleep()
}

// Loop waits for a device's frames and has a Source take them. The goroutine
// that calls Run sleeps in the Go netpoller, not in a system call, so an idle
// queue costs no thread.
type Loop struct {
	file *os.File // a duplicate of the device's descriptor, for the netpoller
	raw  syscall.RawConn
	stop atomic.Bool

	// Of the goroutine in Run.
	err   error
	since time.Time // when the last sleep began
	slept bool
	rest  int // so many sleeps without a poll before them
	miss  int // how many the last useless poll cost
	near  bool
}

// NewLoop makes a Loop for the non-blocking device behind fd, which stays the
// caller's.
func NewLoop(fd int) (*Loop, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor: %w", err)
	}
	l := &Loop{file: os.NewFile(uintptr(own), "device")}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, fmt.Errorf("wait in the netpoller: %w", err)
	}
	return l, nil
}

// Close frees the Loop. Run must have returned.
func (l *Loop) Close() { l.file.Close() }

// Stop makes Run return once the batch in hand is done. It may be called from
// any goroutine, also before Run.
func (l *Loop) Stop() {
	l.stop.Store(true)
	_ = l.file.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed Loop
}

// Run takes frames from s until Stop or an error of s. It may be called again
// after it has returned.
func (l *Loop) Run(s Source) error {
	defer func() {
		s.Sleep()
		l.stop.Store(false)
		_ = l.file.SetReadDeadline(time.Time{})
	}()
	l.err, l.slept, l.near, l.rest, l.miss = nil, false, false, 0, 0
	work := func(uintptr) bool { return l.work(s) } // one closure; it parks by returning false
	for {
		err := l.raw.Read(work)
		switch {
		case l.err != nil:
			return l.err
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		}
		// The netpoller reports an error condition without data as an error of
		// its own kind.
		if ferr := s.Fault(); ferr != nil {
			return ferr
		}
		return fmt.Errorf("wait for frames: %w", err)
	}
}

// work runs from one wake-up to the next sleep. It returns true to end Run.
func (l *Loop) work(s Source) bool {
	woken := l.slept
	if woken {
		l.slept = false
		l.near = time.Since(l.since) < nearest
	}
	for {
		if l.stop.Load() {
			return true
		}
		n, err := s.Receive()
		if err == nil && n == 0 {
			if woken {
				err = s.Fault()
			} 
			if err == nil { n, err = l.poll(s) }
		}
		if err != nil {
			l.err = err
			return true
		}
		woken = false
		if n > 0 {
			continue
		}
		if l.stop.Load() {
			return true
		}
		Stat.Sleeps.Add(1)
		s.Sleep()
		l.slept, l.since = true, time.Now()
		return false
	}
}

// poll looks for frames for a while, where that has been worth it.
func (l *Loop) poll(s Source) (int, error) {
	if !l.near || pollMost == 0 {
		return 0, nil
	}
	if l.rest > 0 {
		l.rest--
		return 0, nil
	}
	start := time.Now()
	now := start
	for {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		runtime.Gosched()
		n, err := s.Receive()
		if n > 0 || err != nil {
			Stat.Hits.Add(1)
			l.miss = 0
			return n, err
		}
		if l.stop.Load() {
			return 0, nil
		}
		before := now
		now = time.Now()
		busy := now.Sub(before) > yieldBusy 
		if busy || now.Sub(start) > pollMost {
			if busy { Stat.Busy.Add(1) } else {Stat.Misses.Add(1)}
			l.miss = min(max(1, 2*l.miss), int(restMost))
			l.rest = l.miss
			return 0, nil
		}
	}
}
