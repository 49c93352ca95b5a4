package fault

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Filter spoils the frames of one adapter by a list of faults, which may change
// while it runs.
type Filter struct {
	h     ndiscore.FilterHandle   // from Attach to Detach
	chain atomic.Pointer[[]stage] // in the order in which frames pass; each list is immutable

	mu      sync.Mutex // guards running and the change of chain; control side
	running bool       // between Restart and Pause

	// spaces are free scratch memory, by the id of the worker whose goroutine
	// alone takes and returns it.
	spaces [ndiscore.MaxWorkers + 1][]*space
}

var (
	_ ndiscore.Filter        = (*Filter)(nil)
	_ ndiscore.SendFilter    = (*Filter)(nil)
	_ ndiscore.ReceiveFilter = (*Filter)(nil)
)

// stage is one fault of frames.
type stage interface {
	// pass takes the frames of b, lent for the call, and hands on to rest what
	// is to go further. It leaves b.Frames as they are and on TX fills b.Status.
	pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch)
	common() *effect
}

// runner is a stage with a goroutine.
type runner interface {
	start(f *Filter) error           // frames may be held from now on
	drain(ctx context.Context) error // what is held goes on, in order; afterwards nothing is held any more
	stop()                           // after drain: ends the goroutine
}

// effect is what all stages have.
type effect struct {
	dirs  Direction
	hits  [2]struct{ frames, bytes atomic.Uint64 } // by index(dir)
	calls atomic.Uint64                            // of a device fault: see Lease.Calls
}

func (e *effect) common() *effect { return e }

// index is the place of RX or TX in a table.
func index(dir Direction) int { return int(dir) - 1 }

// count notes which frames of b were hit.
func (e *effect) count(dir Direction, b *ndiscore.Batch, hit uint64) {
	if hit == 0 {
		return
	}
	var bytes uint64
	for m := hit; m != 0; m &= m - 1 {
		bytes += uint64(b.Frames[bits.TrailingZeros64(m)].Len())
	}
	h := &e.hits[index(dir)]
	h.frames.Add(uint64(bits.OnesCount64(hit)))
	h.bytes.Add(bytes)
}

// newFilter makes a filter with the faults given.
func newFilter(stages ...stage) *Filter {
	f := new(Filter)
	f.chain.Store(&stages)
	return f
}

// --- What the core calls ------------------------------------------------------

// Attach implements ndiscore.Filter.
func (f *Filter) Attach(_ context.Context, h ndiscore.FilterHandle) error {
	f.h = h
	return nil
}

// Restart implements ndiscore.Filter.
func (f *Filter) Restart(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, s := range *f.chain.Load() {
		r, ok := s.(runner)
		if !ok {
			continue
		}
		if err := r.start(f); err != nil {
			for _, s := range (*f.chain.Load())[:i] {
				if r, ok := s.(runner); ok {
					r.stop()
				}
			}
			return err
		}
	}
	f.running = true
	return nil
}

// Pause implements ndiscore.Filter: what is held goes on, in order.
func (f *Filter) Pause(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = false
	for _, s := range *f.chain.Load() {
		if r, ok := s.(runner); ok {
			_ = r.drain(ctx) // stop waits for what ctx did not
			r.stop()
		}
	}
}

// Detach implements ndiscore.Filter.
func (f *Filter) Detach(context.Context) { f.h = nil }

// FilterReceive implements ndiscore.ReceiveFilter.
func (f *Filter) FilterReceive(b *ndiscore.Batch) { f.pass(RX, *f.chain.Load(), b) }

// FilterSend implements ndiscore.SendFilter.
func (f *Filter) FilterSend(b *ndiscore.Batch) { f.pass(TX, *f.chain.Load(), b) }

// --- The way of a batch ---------------------------------------------------------

// pass carries b through stages, and out of the filter.
func (f *Filter) pass(dir Direction, stages []stage, b *ndiscore.Batch) {
	for i, s := range stages {
		if s.common().dirs&dir != 0 {
			s.pass(f, dir, stages[i+1:], b)
			return
		}
	}
	if dir == RX {
		f.h.IndicateReceive(b)
	} else {
		f.h.Send(b)
	}
}

// some carries frames i to j-1 of b on.
func (f *Filter) some(dir Direction, rest []stage, b *ndiscore.Batch, i, j int) {
	switch {
	case i == j:
		return
	case j-i == len(b.Frames):
		f.pass(dir, rest, b)
		return
	}
	part := b.Worker.Scratch()
	part.Frames = append(part.Frames, b.Frames[i:j]...)
	f.pass(dir, rest, part)
	takeStatus(b, i, j, part)
	b.Worker.Done(part)
}

// lose drops the frames of b in hit for reason r, and carries the others on.
func (f *Filter) lose(dir Direction, rest []stage, b *ndiscore.Batch, hit uint64, r ndiscore.DropReason) {
	if hit == 0 {
		f.pass(dir, rest, b)
		return
	}
	f.drop(dir, b, hit, r)
	part := b.Worker.Scratch()
	for i, x := range b.Frames {
		if hit>>i&1 == 0 {
			part.Append(x)
		}
	}
	if len(part.Frames) > 0 {
		f.pass(dir, rest, part)
	}
	takeStatus(b, 0, len(b.Frames), part)
	b.Worker.Done(part)
}

// drop counts the frames of b in hit as dropped for reason r.
func (f *Filter) drop(dir Direction, b *ndiscore.Batch, hit uint64, r ndiscore.DropReason) {
	if hit == 0 {
		return
	}
	if dir == TX {
		f.h.DropSend(b.Worker, r, uint64(bits.OnesCount64(hit)))
		return
	}
	for m := hit; m != 0; m &= m - 1 {
		b.Frames[bits.TrailingZeros64(m)].Drop(r)
	}
}

// takeStatus fills the status of frames i to j-1 of b from part, which was
// passed on with some of them, in order. What was lost here or below counts as
// sent.
func takeStatus(b *ndiscore.Batch, i, j int, part *ndiscore.Batch) {
	n := 0
	for ; i < j; i++ {
		b.Status[i] = ndiscore.DropNone
		if n < len(part.Frames) && part.Frames[n] == b.Frames[i] {
			b.Status[i] = part.Status[n]
			n++
		}
	}
}

// --- Changes ----------------------------------------------------------------------

// add puts s behind the faults that are there.
func (f *Filter) add(s stage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := s.(runner); ok && f.running {
		if err := r.start(f); err != nil {
			return err
		}
	}
	chain := append(slices.Clone(*f.chain.Load()), s)
	f.chain.Store(&chain)
	return nil
}

// remove takes s out, once what it holds has gone on.
func (f *Filter) remove(ctx context.Context, s stage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := s.(runner)
	ok = ok && f.running
	var err error
	if ok {
		err = r.drain(ctx)
		r.stop() // while s has its place: what it holds still has to find the stages behind it
	}
	chain := slices.DeleteFunc(slices.Clone(*f.chain.Load()), func(x stage) bool { return x == s })
	f.chain.Store(&chain)
	return err
}

// after are the stages behind s.
func (f *Filter) after(s stage) []stage {
	chain := *f.chain.Load()
	return chain[slices.Index(chain, s)+1:]
}

// --- Scratch memory -----------------------------------------------------------------

// space is where one call makes a frame of its own, or a copy of a frame's
// payload.
type space struct {
	frame ndiscore.Frame
	room  []byte
	segs  [1][]byte
	save  []byte
}

// take lends scratch memory to the worker's goroutine until give. Calls nest.
func (f *Filter) take(w *ndiscore.Worker) *space {
	free := &f.spaces[w.ID()]
	if n := len(*free); n > 0 {
		s := (*free)[n-1]
		*free = (*free)[:n-1]
		return s
	}
	return new(space)
}

func (f *Filter) give(w *ndiscore.Worker, s *space) {
	s.segs[0] = nil
	clear(s.frame.Segs[:cap(s.frame.Segs)]) // they are only lent, and no pointer to them may stay
	f.spaces[w.ID()] = append(f.spaces[w.ID()], s)
}

// bytes are n bytes of s.
func (s *space) bytes(n int) []byte {
	if cap(s.room) < n {
		s.room = make([]byte, n)
	}
	return s.room[:n]
}
