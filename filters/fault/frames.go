package fault

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// source is the chance of one fault in one direction.
func source(seed uint64, dir Direction) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(dir))) }

// picker chooses frames, one direction's. Its lock is a leaf, held for the
// choice among the frames of one batch.
type picker struct {
	mu    sync.Mutex // guards all below
	rnd   *rand.Rand
	seen  int64 // with every and first: frames so far
	left  int64 // of the run of hits under way
	way   way
	share float64
	n     int64 // of every and first
	burst int64
}

type way uint8

const (
	byChance way = iota
	byEvery
	byFirst
)

func newPicker(v values, seed uint64, dir Direction) *picker {
	p := &picker{rnd: source(seed, dir), burst: int64(v.num("burst"))}
	switch {
	case v.given("every"):
		p.way, p.n = byEvery, int64(v.num("every"))
	case v.given("first"):
		p.way, p.n = byFirst, int64(v.num("first"))
	default:
		p.share = v.num("chance")
	}
	return p
}

// pick says which of the next n frames are hit, as a set of bits.
func (p *picker) pick(n int) (hit uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range n {
		if p.oneLocked() {
			hit |= 1 << i
		}
	}
	return hit
}

func (p *picker) oneLocked() bool {
	if p.left > 0 {
		p.left--
		return true
	}
	p.seen++
	switch p.way {
	case byFirst:
		return p.seen <= p.n
	case byEvery:
		if p.seen%p.n != 0 {
			return false
		}
	default:
		if p.rnd.Float64() >= p.share {
			return false
		}
	}
	p.left = p.burst - 1
	return true
}

// drop loses frames.
type drop struct {
	effect
	pick [2]*picker
}

func newDrop(v values, dirs Direction, seed uint64) *drop {
	return &drop{effect: effect{dirs: dirs}, pick: [2]*picker{newPicker(v, seed, RX), newPicker(v, seed, TX)}}
}

func (d *drop) pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch) {
	hit := d.pick[index(dir)].pick(len(b.Frames))
	d.count(dir, b, hit)
	f.lose(dir, rest, b, hit, ndiscore.DropFaultDrop)
}

// duplicate passes frames on twice: first a copy, then the frame.
type duplicate struct {
	effect
	pick [2]*picker
}

func newDuplicate(v values, dirs Direction, seed uint64) *duplicate {
	return &duplicate{effect: effect{dirs: dirs}, pick: [2]*picker{newPicker(v, seed, RX), newPicker(v, seed, TX)}}
}

func (d *duplicate) pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch) {
	hit := d.pick[index(dir)].pick(len(b.Frames))
	if hit == 0 {
		f.pass(dir, rest, b)
		return
	}
	d.count(dir, b, hit)
	s := f.take(b.Worker)
	start := 0
	for m := hit; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		f.some(dir, rest, b, start, i)
		start = i
		f.one(dir, rest, b.Worker, s.copy(b.Frames[i]))
	}
	f.some(dir, rest, b, start, len(b.Frames))
	f.give(b.Worker, s)
}

// one passes a single frame of the filter's own on.
func (f *Filter) one(dir Direction, rest []stage, w *ndiscore.Worker, x *ndiscore.Frame) {
	part := w.Scratch()
	part.Append(x)
	f.pass(dir, rest, part)
	if dir == RX {
		f.h.Settle(part, true)
	}
	w.Done(part)
}

// copy makes a frame with x's bytes: a head of its own, and x's payload.
func (s *space) copy(x *ndiscore.Frame) *ndiscore.Frame {
	room := s.bytes(ndiscore.Headroom + len(x.Head))
	copy(room[ndiscore.Headroom:], x.Head)
	s.frame.Reset(room, ndiscore.Headroom, len(x.Head))
	s.frame.Segs = append(s.frame.Segs, x.Segs...)
	s.frame.Offload = x.Offload
	return &s.frame
}

// rate is a token bucket for each direction: what finds it empty is lost.
type rate struct {
	effect
	perSecond float64
	burst     float64
	bucket    [2]bucket
}

type bucket struct {
	mu     sync.Mutex // guards all below; a leaf, taken once for each batch
	tokens float64    // bytes that may pass now
	filled time.Time  // when that was so; zero: it is full
}

func newRate(v values, dirs Direction) *rate {
	return &rate{effect: effect{dirs: dirs}, perSecond: v.num("rate"), burst: v.num("burst")}
}

func (r *rate) pass(f *Filter, dir Direction, rest []stage, b *ndiscore.Batch) {
	over := r.bucket[index(dir)].take(r, f.h.Clock().Now(), b)
	r.count(dir, b, over)
	f.lose(dir, rest, b, over, ndiscore.DropFaultRate)
}

// take pays for the frames of b and says for which there was not enough.
func (k *bucket) take(r *rate, now time.Time, b *ndiscore.Batch) (over uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.filled.IsZero() {
		k.tokens, k.filled = r.burst, now
	} else if d := now.Sub(k.filled); d > 0 { // another worker may have looked at the clock later
		k.tokens, k.filled = min(r.burst, k.tokens+d.Seconds()*r.perSecond), now
	}
	for i, x := range b.Frames {
		n := float64(x.Len())
		if n > k.tokens {
			over |= 1 << i
			continue
		}
		k.tokens -= n
	}
	return over
}
