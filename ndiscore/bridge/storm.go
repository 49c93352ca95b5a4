package bridge

import (
	"fmt"
	"sync/atomic"
	"time"
)

// The kinds of storm. Their frames go to many ports at once.
const (
	stormBroadcast = iota
	stormMulticast
	stormUnknown // unicast to an address that is not known
	stormKinds
)

var stormNames = [stormKinds]string{"broadcast", "multicast", "unknown"}

const (
	stormTick  = 100 * time.Millisecond // how often the keeper fills the buckets
	stormFrame = 1000                   // what a frame costs; a bucket holds a second's worth
	calmAfter  = 5 * time.Second        // without a drop, an episode is over
)

// bucket is one limit of one port. Workers take from it, the keeper fills it by
// its own clock, so nobody who carries a frame looks at a clock.
type bucket struct {
	rate    atomic.Int64 // frames per second, the limit
	tokens  atomic.Int64
	dropped atomic.Uint64
}

// take pays for one frame. Workers that take at the same instant may overdraw
// by a frame each, which the next ones pay.
func (q *bucket) take() bool {
	if q.tokens.Load() < stormFrame {
		q.dropped.Add(1)
		return false
	}
	q.tokens.Add(-stormFrame)
	return true
}

// set gives the bucket its limit; a new one begins full.
func (q *bucket) set(rate int64) {
	if q.rate.Swap(rate) != rate {
		q.tokens.Store(rate * stormFrame)
	}
}

// fill adds what elapsed time is worth.
func (q *bucket) fill(elapsed time.Duration) {
	rate := q.rate.Load()
	t := q.tokens.Load()
	add := rate * min(elapsed, time.Minute).Microseconds() / (1_000_000 / stormFrame)
	q.tokens.Add(min(add, rate*stormFrame-t))
}

// episode turns a count of drops into two pieces of news: it began, it is over.
type episode struct {
	seen, before uint64 // the count when last looked, and when it began
	open         bool
	last         time.Time // of the last drop
}

func (e *episode) look(count uint64, now time.Time) (began, over bool) {
	if count != e.seen {
		began = !e.open
		if began {
			e.before, e.open = e.seen, true
		}
		e.seen, e.last = count, now
		return began, false
	}
	if e.open && now.Sub(e.last) >= calmAfter {
		e.open = false
		return false, true
	}
	return false, false
}

// end is for a limit that is no longer there: it ends the episode, and reports
// whether there was one.
func (e *episode) end(count uint64) (over bool) {
	over = e.open
	e.seen, e.open = count, false
	return over
}

// calm ends what is under way of the port's storm of one kind, whose limit is
// not in force any more.
func (k *keeper) calm(p *port, kind int, why string) {
	count, e := p.buckets[kind].dropped.Load(), &p.storms[kind]
	if e.end(count) {
		k.bridge.opts.Load().Event("bridge.storm", p.name, "storm", "calm", fmt.Sprintf("%s: %s; %d frames were dropped", stormNames[kind], why, count-e.before))
	}
}

// room is calm for the port's address limit.
func (k *keeper) room(p *port, why string) {
	count, e := p.refused.Load(), &p.refusals
	if e.end(count) {
		k.bridge.opts.Load().Event("bridge.mac-limit", p.name, "full", "room", fmt.Sprintf("%s; %d frames of other stations were dropped", why, count-e.before))
	}
}

// watch fills the buckets and tells of ports whose limits are exceeded, or gone.
// It returns when it wants to be called again, zero for when there is news.
func (k *keeper) watch(now time.Time) (next time.Time) {
	v := k.bridge.view.Load()
	elapsed := now.Sub(k.watched)
	if v.limits && elapsed < stormTick {
		return k.watched.Add(stormTick)
	}
	k.watched = now
	tell := k.bridge.opts.Load().Event
	for id, p := range v.byID {
		if p == nil {
			continue
		}
		for kind, q := range v.rules[id].storm {
			if q == nil {
				k.calm(p, kind, "there is no limit any more")
				continue
			}
			q.fill(elapsed)
			count, e := q.dropped.Load(), &p.storms[kind]
			switch began, over := e.look(count, now); {
			case began:
				tell("bridge.storm", p.name, "calm", "storm", fmt.Sprintf("%s: more than %d frames/s (storm_%[1]s): the rest is dropped", stormNames[kind], q.rate.Load()))
			case over:
				tell("bridge.storm", p.name, "storm", "calm", fmt.Sprintf("%s: %d frames were dropped", stormNames[kind], count-e.before))
			}
		}
		if p.macLimit.Load() == 0 {
			k.room(p, "there is no limit any more")
			continue
		}
		count := p.refused.Load()
		switch began, over := p.refusals.look(count, now); {
		case began:
			tell("bridge.mac-limit", p.name, "room", "full", fmt.Sprintf("%d addresses are known on the port (mac_limit %d): frames of other stations are dropped", v.fdb.known[id].Load(), p.macLimit.Load()))
		case over:
			tell("bridge.mac-limit", p.name, "full", "room", fmt.Sprintf("%d frames of other stations were dropped", count-p.refusals.before))
		}
	}
	if !v.limits {
		return time.Time{}
	}
	return now.Add(stormTick)
}
