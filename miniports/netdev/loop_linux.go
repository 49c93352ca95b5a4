package netdev

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The poll before sleep; see Loop. Chosen on two CPUs by TCP ping-pong through
// two ports, p50 of 5000 rounds each in turn, ahead of all other load (SCHED_RR),
// kernel bridge 52 to 70 µs:
//
//	no poll                       105 to 150 µs
//	window 25 or 60 µs             90 to 145 µs  too short to meet the next frame even once
//	window 200 µs, yieldBusy 20 µs 27 to 143 µs  gives up when the peer runs on this CPU
//	window 200 µs, yieldBusy 50 µs 23 to 35 µs
//	the last, no thread in the netpoller (see poll): 37 to 116 µs
//
// With compilers on both CPUs it is as without a poll (40 to 75 µs, kernel 21
// µs), and TCP throughput is the same either way.
const (
	pollNear   = 300 * time.Microsecond // only after a sleep shorter than this
	pollWindow = 200 * time.Microsecond // for so long at most
	yieldBusy  = 50 * time.Microsecond  // a yield that took longer gave the CPU to somebody who computes
	restMost   = 256                    // sleeps without a poll, after polls in vain

	faultsMost = 1000 // times in a row: error conditions that the netpoller reports and the Source knows nothing of
)

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
//
// Waking a CPU that halted costs more than the whole data path, so after recent
// traffic the goroutine looks again for a short while before it sleeps. Between
// looks it yields to other threads and goroutines. Where CPUs are scarce that
// is no gain: the kernel puts a sleeper that wakes ahead of those who compute,
// but not one who yields. So a yield that took long, or a window without a
// frame, doubles the number of sleeps without a poll that follow, and a frame
// found quickly ends them. An idle queue does not poll at all.
type Loop struct {
	file *os.File // a duplicate of the device's descriptor, for the netpoller
	raw  syscall.RawConn
	stop atomic.Bool

	// Of the goroutine in Run.
	err    error
	faults int // in a row; see Run
	slept  bool
	fresh  bool      // no poll since the last sleep
	since  time.Time // when the last sleep began
	recent bool      // the last sleep was short
	rest   int       // sleeps to come without a poll
	vain   int       // what rest was set to last
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
// any goroutine, also before Run, and stays in force until Ready.
func (l *Loop) Stop() {
	l.stop.Store(true)
	_ = l.file.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed Loop
}

// Ready takes a Stop back, before the goroutine that will Run starts.
func (l *Loop) Ready() {
	l.stop.Store(false)
	_ = l.file.SetReadDeadline(time.Time{})
}

// Run takes frames from s until Stop, or an error of s, which it returns.
func (l *Loop) Run(s Source) error {
	defer s.Sleep()
	l.err, l.faults, l.slept, l.recent, l.rest, l.vain = nil, 0, false, false, 0, 0
	work := func(uintptr) bool { return l.work(s) } // one closure; it parks by returning false
	for ; ; l.faults++ {
		err := l.raw.Read(work)
		switch {
		case l.err != nil:
			return l.err
		case l.stop.Load():
			return nil
		}
		// The netpoller makes an error condition without anything to read or
		// write an error of its own, and repeats it until the next event.
		if err := s.Fault(); err != nil {
			return err
		}
		if l.faults >= faultsMost {
			return fmt.Errorf("wait for frames: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// work runs from one wake-up to the next sleep. It returns true to end Run.
func (l *Loop) work(s Source) bool {
	l.faults = 0 // the netpoller lets nobody in here while a condition lasts
	woken := l.slept
	if woken {
		l.slept, l.fresh = false, true
		l.recent = time.Since(l.since) < pollNear
	}
	for !l.stop.Load() {
		n, err := s.Receive()
		if err == nil && n == 0 && woken {
			err = s.Fault()
		}
		if err == nil && n == 0 && l.recent {
			n, err = l.poll(s)
		}
		if err != nil {
			l.err = err
			return true
		}
		if n == 0 && !l.stop.Load() {
			s.Sleep()
			l.slept, l.since = true, time.Now()
			return false // a frame that is there already ends the sleep at once
		}
		woken = false
	}
	return true
}

// poll looks for frames for a while, where that has been worth it.
func (l *Loop) poll(s Source) (int, error) {
	if l.rest > 0 {
		l.rest--
		return 0, nil
	}
	if l.fresh {
		// The thread that runs this goroutine was the one that waited in the
		// netpoller, and while it polls nobody does: the other queues would not
		// wake up. A new goroutine has the runtime wake another thread, which
		// finds nothing else to do than to wait there.
		l.fresh = false
		go func() {}()
	}
	start := time.Now()
	for last := start; ; {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		runtime.Gosched()
		n, err := s.Receive()
		if err != nil || l.stop.Load() {
			return n, err
		}
		now := time.Now()
		busy := now.Sub(last) > yieldBusy
		switch {
		case busy, n == 0 && now.Sub(start) > pollWindow:
			l.vain = min(max(1, 2*l.vain), restMost)
			l.rest = l.vain
			return n, nil
		case n > 0:
			l.vain = 0
			return n, nil
		}
		last = now
	}
}
