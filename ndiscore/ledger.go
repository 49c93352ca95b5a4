package ndiscore

import (
	"context"
	"sync"
)

// ledger keeps account of what an adapter has out of its hands: batches that
// somebody keeps, and calls in progress that belong to no worker's epoch (a
// status indication, the return of a kept batch). Batches that are only lent
// for a call never appear in it.
type ledger struct {
	mu      sync.Mutex // guards all below; a leaf
	term    uint64     // grows when what is out is given up for lost
	batches int
	down    int    // of them, sends that the adapter keeps
	done    uint64 // sends that it has completed
	calls   int
	quieter chan struct{} // capacity 1: batches or calls became fewer
}

// loan says where a kept batch is written down, and in which term.
type loan struct {
	in    *ledger
	term  uint64
	below bool // a send, which the adapter keeps
}

// lend writes down that a batch is out, above or below.
func (l *ledger) lend(b *loan, below bool) {
	l.mu.Lock()
	l.batches++
	if below {
		l.down++
	}
	b.in, b.term, b.below = l, l.term, below
	l.mu.Unlock()
}

// sends is how many batches the adapter keeps, and progress how many it has
// completed so far: when those are some, and that stands still, it is stuck.
func (l *ledger) sends() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

func (l *ledger) progress() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done
}

// claim ends the loan of a batch and begins the call that hands it to its
// owner; that ends with end. False when the batch is not out: it came back
// twice, or after it had been given up for lost.
func (l *ledger) claim(b *loan) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.in != l || b.term != l.term {
		return false
	}
	b.in = nil
	l.batches--
	if b.below {
		l.down--
		l.done++
	}
	l.calls++
	return true
}

func (l *ledger) begin() {
	l.mu.Lock()
	l.calls++
	l.mu.Unlock()
}

func (l *ledger) end() {
	l.mu.Lock()
	l.calls--
	quiet := l.calls == 0
	l.mu.Unlock()
	if quiet {
		select {
		case l.quieter <- struct{}{}:
		default:
		}
	}
}

// quiet waits until no call is in progress and, if batches is set, no batch is
// out. One goroutine waits at a time.
func (l *ledger) quiet(ctx context.Context, batches bool) error {
	for {
		l.mu.Lock()
		done := l.calls == 0 && (!batches || l.batches == 0)
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-l.quieter:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// writeOff gives up for lost what is still out, and says how much that is. It
// lives in collected memory, so going on without it is safe.
func (l *ledger) writeOff() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.batches
	l.batches, l.down = 0, 0
	l.term++
	return n
}
