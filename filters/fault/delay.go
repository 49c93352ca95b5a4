package fault

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// chunk is the unit of a delay's memory. The first of a frame begins with
// headroom, and holds what there is of headers.
const (
	chunk      = 2048
	firstChunk = chunk - ndiscore.Headroom
)

// delay holds copies of frames and passes them on later, on a goroutine of its
// own.
type delay struct {
	effect
	lines [2]*line      // by index(dir); nil: not this direction
	wake  chan struct{} // capacity 1: something may be due earlier than it was

	// Between start and stop.
	f     *Filter
	end   chan struct{}
	ended chan struct{}
}

// line is what waits in one direction.
type line struct {
	by, jitter int64 // nanoseconds
	reorder    bool

	mu      sync.Mutex // guards all below; a leaf, held while one batch is copied
	mode    lineMode
	drained chan struct{} // made by start; closed when nothing is held any more after drain
	over    bool          // drained is closed
	budget  int           // lineDraining: frames that may still go before newcomers overtake
	rnd     *rand.Rand
	epoch   time.Time // when time 0 was
	last    int64     // when the newest frame is due, without reorder
	seq     uint64    // of the newest frame

	memory []byte  // chunks
	free   []int32 // chunks
	next   []int32 // by chunk: the frame's next one, -1 after its last
	held   []held  // by a frame's first chunk
	heap   []int32 // first chunks, what is due first at the top
}

type held struct {
	frame ndiscore.Frame
	due   int64
	seq   uint64
}

// lineMode is what happens to newcomers.
type lineMode uint8

const (
	lineOpen     lineMode = iota // they pass: nothing is held
	lineHolding                  // they wait until they are due
	lineDraining                 // they wait behind what is on its way out
)

func newDelay(v values, dirs Direction, seed uint64) *delay {
	d := &delay{effect: effect{dirs: dirs}, wake: make(chan struct{}, 1)}
	for _, dir := range []Direction{RX, TX} {
		if dirs&dir != 0 {
			d.lines[index(dir)] = newLine(v, source(seed, dir))
		}
	}
	return d
}

func newLine(v values, rnd *rand.Rand) *line {
	n := int(v.num("limit")) / chunk
	l := &line{
		by: int64(v.duration("delay")), jitter: int64(v.duration("jitter")), reorder: v.flag("reorder"), rnd: rnd,
		memory: make([]byte, n*chunk), free: make([]int32, n), next: make([]int32, n), held: make([]held, n), heap: make([]int32, 0, n),
	}
	for i := range l.free {
		l.free[i] = int32(n - 1 - i)
	}
	return l
}

func (d *delay) pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch) {
	held, full, sooner := d.lines[index(dir)].take(f.h.Clock().Now(), b)
	if held|full == 0 {
		f.pass(dir, rest, b)
		return
	}
	if sooner {
		d.poke()
	}
	d.count(dir, b, held)
	f.drop(dir, b, full, ndiscore.DropFaultFull)
	for i, x := range b.Frames {
		b.Status[i] = ndiscore.DropNone
		if dir == RX && held>>i&1 != 0 {
			x.Hold()
		}
	}
}

func (d *delay) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take copies the frames of b that there is room for, and says which these are,
// which found no room, and whether something is due sooner than before. Neither
// set: the line is open.
func (l *line) take(now time.Time, b *ndiscore.Batch) (holds, full uint64, sooner bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mode == lineOpen {
		return 0, 0, false
	}
	at := int64(now.Sub(l.epoch))
	first := int32(-1)
	if len(l.heap) > 0 {
		first = l.heap[0]
	}
	for i, x := range b.Frames {
		due := at + l.by
		if l.jitter > 0 {
			due += l.rnd.Int64N(2*l.jitter+1) - l.jitter
		}
		if !l.reorder {
			l.last = max(l.last, due)
			due = l.last
		}
		if l.copyLocked(x, due) {
			holds |= 1 << i
		} else {
			full |= 1 << i
		}
	}
	return holds, full, len(l.heap) > 0 && l.heap[0] != first
}

// copyLocked takes a copy of x, if there is room.
func (l *line) copyLocked(x *ndiscore.Frame, due int64) bool {
	n := x.Len()
	need := 1
	if n > firstChunk {
		need += (n - firstChunk + chunk - 1) / chunk
	}
	if need > len(l.free) {
		return false
	}
	c := l.chunkLocked()
	h := &l.held[c]
	src := pieces{x.Head, x.Segs}
	room := l.room(c)
	m := min(n, firstChunk)
	src.read(room[ndiscore.Headroom : ndiscore.Headroom+m])
	h.frame.Reset(room, ndiscore.Headroom, m)
	h.frame.Offload = x.Offload
	last := c
	for n -= m; n > 0; n -= m {
		k := l.chunkLocked()
		l.next[last], last = k, k
		m = min(n, chunk)
		room := l.room(k)[:m]
		src.read(room)
		h.frame.Segs = append(h.frame.Segs, room)
	}
	l.seq++
	h.due, h.seq = due, l.seq
	l.pushLocked(c)
	return true
}

func (l *line) room(c int32) []byte { return l.memory[int(c)*chunk : int(c+1)*chunk : int(c+1)*chunk] }

func (l *line) chunkLocked() int32 {
	c := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.next[c] = -1
	return c
}

// pieces reads the bytes of a frame in order.
type pieces struct {
	cur  []byte
	rest [][]byte
}

func (p *pieces) read(to []byte) {
	for len(to) > 0 {
		for len(p.cur) == 0 {
			p.cur, p.rest = p.rest[0], p.rest[1:]
		}
		n := copy(to, p.cur)
		to, p.cur = to[n:], p.cur[n:]
	}
}

// release puts what is due into out, a batch at most, and its first chunks into
// given. With nothing due it tells how long that lasts: negative, for ever.
func (l *line) release(now time.Time, out *ndiscore.Batch, given *[ndiscore.BatchFrames]int32) (n int, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := int64(now.Sub(l.epoch))
	for len(l.heap) > 0 && !out.Full() && (l.mode != lineHolding || l.held[l.heap[0]].due <= at) {
		c := l.popLocked()
		given[n] = c
		n++
		out.Append(&l.held[c].frame)
	}
	if l.mode != lineHolding {
		if l.budget -= n; n == 0 || l.budget < 0 {
			l.mode = lineOpen
		}
		if n == 0 && !l.over { // what was taken before has gone, now that this is called again
			l.over = true
			close(l.drained)
		}
	}
	switch {
	case n > 0:
		return n, 0
	case len(l.heap) == 0:
		return 0, -1
	}
	return 0, time.Duration(l.held[l.heap[0]].due - at)
}

// recycle takes back the memory of frames that have gone.
func (l *line) recycle(given []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range given {
		for ; c >= 0; c = l.next[c] {
			l.free = append(l.free, c)
		}
	}
}

// --- The goroutine ----------------------------------------------------------------

// start implements runner.
func (d *delay) start(f *Filter) error {
	w, err := f.h.NewWorker()
	if err != nil {
		return err
	}
	now := f.h.Clock().Now()
	for _, l := range d.lines {
		if l != nil {
			l.mu.Lock()
			l.mode, l.epoch, l.last = lineHolding, now, 0
			l.drained, l.over = make(chan struct{}), false
			l.mu.Unlock()
		}
	}
	d.f, d.end, d.ended = f, make(chan struct{}), make(chan struct{})
	go d.run(w) // "delay": ends with stop, waits for time to pass
	return nil
}

// drain implements runner.
func (d *delay) drain(ctx context.Context) error {
	for _, l := range d.lines {
		if l == nil {
			continue
		}
		l.mu.Lock()
		if l.mode == lineHolding {
			l.mode = lineDraining
			// Whoever sends faster than the rest of the way takes does not keep
			// it from ending.
			l.budget = 2 * len(l.held)
		}
		l.mu.Unlock()
	}
	d.poke()
	for _, l := range d.lines {
		if l == nil {
			continue
		}
		select {
		case <-l.drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// stop implements runner. Whatever is not held on purpose goes on before the
// goroutine looks at end.
func (d *delay) stop() {
	close(d.end)
	<-d.ended
}

func (d *delay) run(w *ndiscore.Worker) {
	defer close(d.ended)
	defer w.Close()
	out := ndiscore.NewBatch(w)
	out.Borrowed = true
	var given [ndiscore.BatchFrames]int32
	clock := d.f.h.Clock()
	for ending := false; ; {
		wait := time.Duration(-1)
		now := clock.Now()
		for i, l := range d.lines {
			for l != nil {
				n, until := l.release(now, out, &given)
				if n == 0 {
					if until >= 0 && (wait < 0 || until < wait) {
						wait = until
					}
					break
				}
				dir := Direction(i + 1)
				d.f.pass(dir, d.f.after(d), out)
				if dir == RX {
					d.f.h.Settle(out, false)
				}
				out.Reset()
				l.recycle(given[:n])
			}
		}
		if ending {
			return
		}
		var timer ndiscore.Timer
		if wait >= 0 {
			timer = clock.AfterFunc(wait, d.poke)
		}
		select {
		case <-d.wake:
		case <-d.end: // which may have come together with a wake-up to drain
			ending = true
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// --- The heap ---------------------------------------------------------------------

// soonerLocked orders frames by when they are due, then by when they came.
func (l *line) soonerLocked(a, b int32) bool {
	x, y := &l.held[a], &l.held[b]
	return x.due < y.due || x.due == y.due && x.seq < y.seq
}

func (l *line) pushLocked(c int32) {
	l.heap = append(l.heap, c)
	h := l.heap
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !l.soonerLocked(h[i], h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (l *line) popLocked() int32 {
	h := l.heap
	top, n := h[0], len(h)-1
	h[0] = h[n]
	h = h[:n]
	l.heap = h
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return top
		}
		if c+1 < n && l.soonerLocked(h[c+1], h[c]) {
			c++
		}
		if !l.soonerLocked(h[c], h[i]) {
			return top
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}
