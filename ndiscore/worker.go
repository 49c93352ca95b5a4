package ndiscore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// MaxWorkers is the most workers that one core serves at a time.
const MaxWorkers = 256

// Worker is a goroutine that carries frames through the core: the receive
// goroutine of one adapter queue, the router's feeder, a prober. Each batch
// names the worker whose goroutine carries it, and only that goroutine may
// pass it on.
//
// A worker tells the control side when it is inside the core by its epoch, odd
// while inside: to take something out of the data path, unpublish it and wait
// until every worker that was inside has moved on. Nothing is counted or locked
// per batch for it. For one that does not move on it also notes in whose data
// path it is, so that somebody who never returns holds up nobody else.
type Worker struct {
	id   int
	name string
	core *Core

	spare  bool // beyond MaxWorkers: in no table, carries nothing
	closed atomic.Bool

	depth int           // nested calls into the core; the worker's goroutine only
	fin   finisher      // scratch for what an egress adapter cannot do; the same
	lent  []*Batch      // free scratch batches; the same
	stuck atomic.Uint64 // the epoch in which the control side lost patience with it

	moved  atomic.Pointer[chan struct{}]   // closed at the next move, when somebody waits for it
	_      [64]byte                        // keep what follows away from what other workers write
	inside [maxNested]atomic.Pointer[slot] // in whose data path it is, the first it entered first; nil: no other than before
	epoch  atomic.Uint64
	_      [56]byte
}

// maxNested is how many nested entries into the core a worker notes. One that
// goes deeper counts as being everywhere.
const maxNested = 16

// ID is a small number, unique among live workers, below MaxWorkers: an index
// for per-worker scratch memory.
func (w *Worker) ID() int { return w.id }

// Name says whose goroutine it is, for people.
func (w *Worker) Name() string { return w.name }

// Close ends the registration. The worker must be outside the core.
func (w *Worker) Close() {
	w.closed.Store(true)
	w.core.closeWorker(w)
}

// Closed reports whether Close was called.
func (w *Worker) Closed() bool { return w.closed.Load() }

// Scratch lends an empty borrowed batch to the worker's goroutine until Done.
// Calls nest.
func (w *Worker) Scratch() *Batch {
	if n := len(w.lent); n > 0 {
		b := w.lent[n-1]
		w.lent = w.lent[:n-1]
		return b
	}
	b := NewBatch(w)
	b.Borrowed = true
	return b
}

// Done takes a scratch batch back.
func (w *Worker) Done(b *Batch) {
	b.Reset()
	w.lent = append(w.lent, b)
}

// enter begins a call into the data path of s, before anything of s is looked at.
// What is noted already is not stored again: a store costs more than the look.
func (w *Worker) enter(s *slot) {
	d := w.depth
	w.depth++
	switch {
	case d == 0:
		if w.inside[0].Load() != s {
			w.inside[0].Store(s)
		}
		w.epoch.Add(1)
	case d == maxNested-1, d < maxNested && w.inside[d-1].Load() != s:
		w.inside[d].Store(s) // the last one always: it says that there may be more
	}
}

// leave ends the innermost call that enter began. The outermost note stays: it
// says nothing while the worker is outside.
func (w *Worker) leave() {
	w.depth--
	d := w.depth
	switch {
	case d == 0:
		w.epoch.Add(1)
		if w.moved.Load() != nil {
			if moved := w.moved.Swap(nil); moved != nil {
				close(*moved)
			}
		}
	case d < maxNested && w.inside[d].Load() != nil:
		w.inside[d].Store(nil)
	}
}

// nextMove is closed when the worker has left the core after the call.
func (w *Worker) nextMove() <-chan struct{} {
	for {
		if moved := w.moved.Load(); moved != nil {
			return *moved
		}
		if moved := make(chan struct{}); w.moved.CompareAndSwap(nil, &moved) {
			return moved
		}
	}
}

// passed waits until the worker has left the core, in which it was with epoch e.
// Once patience is closed, which is told once for each stay, it is enough that it
// is not in the data path of s: what was unpublished there it meets no more.
func (w *Worker) passed(ctx context.Context, s *slot, e uint64, patience <-chan struct{}) error {
	var again <-chan time.Time
	var given <-chan struct{} // nobody is given less than patience
	for {
		if w.stuck.Load() == e && !w.within(s) {
			return nil
		}
		moved := w.nextMove()
		if w.epoch.Load() != e {
			return nil
		}
		select {
		case <-moved:
		case <-patience:
			w.lost(e)
			patience, given = nil, ctx.Done()
			t := time.NewTicker(max(w.core.patience, time.Millisecond)) // it may get stuck elsewhere
			defer t.Stop()
			again = t.C
		case <-again:
		case <-given:
			if w.epoch.Load() != e {
				return nil
			}
			return fmt.Errorf("worker %s does not leave the data path of %s", w.name, strings.Join(w.where(), ", then "))
		}
	}
}

// within reports whether the worker may be in the data path of x. If it entered
// that before the call and has not left, it is seen: its note stays where it is.
func (w *Worker) within(x *slot) bool {
	for i := range w.inside {
		if s := w.inside[i].Load(); s != nil && (i == maxNested-1 || s == x) {
			return true
		}
	}
	return false
}

// where names the adapters in whose data path the worker is, for people.
func (w *Worker) where() (names []string) {
	for i := range w.inside {
		if s := w.inside[i].Load(); s != nil && !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
	}
	return names
}

// lost marks a worker that has been inside, with epoch e, for too long.
func (w *Worker) lost(e uint64) {
	names := w.where()
	if w.epoch.Load() != e || w.stuck.Swap(e) == e {
		return // it has just left, or was told of already
	}
	w.core.Report(Event{What: "worker.stuck", Adapter: names[len(names)-1], Why: fmt.Sprintf(
		"worker %s has been in the data path of %s for %s: somebody there does not return; the other adapters go on without it",
		w.name, strings.Join(names, ", then "), w.core.patience)})
}

// NewWorker registers the calling code's goroutine-to-be as a worker. Whoever
// makes it closes it.
func (c *Core) NewWorker(name string) (*Worker, error) {
	c.workers.Lock()
	defer c.workers.Unlock()
	for i := range c.workers.live {
		if c.workers.live[i].Load() == nil {
			w := &Worker{id: i, name: name, core: c}
			c.workers.live[i].Store(w)
			return w, nil
		}
	}
	return nil, fmt.Errorf("worker %s: %w: all %d are taken", name, ErrResources, MaxWorkers)
}

func (c *Core) closeWorker(w *Worker) {
	c.workers.Lock()
	defer c.workers.Unlock()
	if !w.spare {
		c.workers.live[w.id].CompareAndSwap(w, nil)
	}
}
