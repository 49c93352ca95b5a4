package ndiscore

import (
	"context"
	"fmt"
	"sync/atomic"
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
// per batch for it.
type Worker struct {
	id   int
	name string
	core *Core

	spare  bool // beyond MaxWorkers: in no table, carries nothing
	closed atomic.Bool

	depth  int         // nested calls into the core; the worker's goroutine only
	fin    finisher    // scratch for what an egress adapter cannot do; the same
	lent   []*Batch    // free scratch batches; the same
	wanted atomic.Bool // the control side waits for the next move
	moved  chan struct{}
	_      [64]byte // keep the epoch away from what other workers write
	epoch  atomic.Uint64
	_      [56]byte
}

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

func (w *Worker) enter() {
	if w.depth == 0 {
		w.epoch.Add(1)
	}
	w.depth++
}

func (w *Worker) leave() {
	w.depth--
	if w.depth == 0 {
		w.epoch.Add(1)
		if w.wanted.Load() {
			w.wanted.Store(false)
			select {
			case w.moved <- struct{}{}:
			default:
			}
		}
	}
}

// passed waits until the worker has been outside the core at least once since
// the call began. Only one goroutine waits at a time (Core.grace).
func (w *Worker) passed(ctx context.Context) error {
	e := w.epoch.Load()
	if e&1 == 0 {
		return nil
	}
	for {
		w.wanted.Store(true)
		if w.epoch.Load() != e {
			return nil
		}
		select {
		case <-w.moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// NewWorker registers the calling code's goroutine-to-be as a worker. Whoever
// makes it closes it.
func (c *Core) NewWorker(name string) (*Worker, error) {
	c.workers.Lock()
	defer c.workers.Unlock()
	for i := range c.workers.live {
		if c.workers.live[i].Load() == nil {
			w := &Worker{id: i, name: name, core: c, moved: make(chan struct{}, 1)}
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
