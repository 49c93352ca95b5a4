package ndistest

import (
	"slices"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Clock is a clock that stands still until the test moves it.
type Clock struct {
	mu     sync.Mutex // guards all below
	now    time.Time
	timers []*timer
}

type timer struct {
	clock *Clock
	at    time.Time
	f     func()
}

var _ ndiscore.Clock = (*Clock)(nil)

// NewClock makes a clock; when it begins means nothing.
func NewClock() *Clock { return &Clock{now: time.Unix(1_000_000, 0)} }

// Now implements ndiscore.Clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc implements ndiscore.Clock: f runs on the goroutine that calls
// Advance.
func (c *Clock) AfterFunc(d time.Duration, f func()) ndiscore.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{c, c.now.Add(d), f}
	c.timers = append(c.timers, t)
	return t
}

// Stop implements ndiscore.Timer.
func (t *timer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	n := len(t.clock.timers)
	t.clock.timers = slices.DeleteFunc(t.clock.timers, func(x *timer) bool { return x == t })
	return len(t.clock.timers) < n
}

// Waits is how many timers are set.
func (c *Clock) Waits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

// Jump moves the clock on at once, and then calls what is due, as for somebody who
// was not run for so long.
func (c *Clock) Jump(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	c.mu.Unlock()
	c.Advance(0)
}

// Advance moves the clock on, and calls what is due in order of its time.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		next := -1
		for i, t := range c.timers {
			if !t.at.After(end) && (next < 0 || t.at.Before(c.timers[next].at)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		t := c.timers[next]
		c.timers = slices.Delete(c.timers, next, next+1)
		if t.at.After(c.now) {
			c.now = t.at
		}
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}
