package ndistest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience is how long the kit waits for something that must happen.
const patience = 20 * time.Second

// pollEvery is how often Await looks.
const pollEvery = time.Millisecond

// Await waits until cond holds, and fails the test when it does not in time.
func Await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(pollEvery) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// Trace records calls in the order in which they began. The zero value is
// ready; a nil Trace records nothing.
type Trace struct {
	mu    sync.Mutex // guards calls
	calls []string
}

// Add records one call.
func (t *Trace) Add(call string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.calls = append(t.calls, call)
	t.mu.Unlock()
}

// Calls returns what was recorded.
func (t *Trace) Calls() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.calls)
}

// Take returns what was recorded and forgets it.
func (t *Trace) Take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	calls := t.calls
	t.calls = nil
	return calls
}

// Count says how often call was recorded.
func (t *Trace) Count(call string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, c := range t.calls {
		if c == call {
			n++
		}
	}
	return n
}

// Await waits until call has been recorded.
func (t *Trace) Await(tb testing.TB, call string) {
	tb.Helper()
	Await(tb, call, func() bool { return t.Count(call) > 0 })
}

// Script says how the next calls of a fake end. The zero value lets all of
// them succeed at once.
type Script struct {
	mu    sync.Mutex // guards all below
	fails map[string]error
	holds map[string]*Hold
}

// Hold is a call that does not return until it is released.
type Hold struct {
	entered, released chan struct{}
	once              sync.Once
}

// Fail has the next call of that name ("Init", "Restart", "Bind", …) return err.
func (s *Script) Fail(call string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails == nil {
		s.fails = map[string]error{}
	}
	s.fails[call] = err
}

// Hold has the next call of that name wait for Release, whatever its context
// says; but a request ends with its context.
func (s *Script) Hold(call string) *Hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds == nil {
		s.holds = map[string]*Hold{}
	}
	h := &Hold{entered: make(chan struct{}), released: make(chan struct{})}
	s.holds[call] = h
	return h
}

// Await waits until the call has begun.
func (h *Hold) Await(tb testing.TB) {
	tb.Helper()
	select {
	case <-h.entered:
	case <-time.After(patience):
		tb.Fatal("the held call never came")
	}
}

// Release lets the call go on.
func (h *Hold) Release() { h.once.Do(func() { close(h.released) }) }

// call plays one call: it waits if told to and returns the error it is to return.
func (s *Script) call(name string) error { return s.callUntil(context.Background(), name) }

// callUntil is call, for one that gives up when ctx ends.
func (s *Script) callUntil(ctx context.Context, name string) error {
	s.mu.Lock()
	err, h := s.fails[name], s.holds[name]
	delete(s.fails, name)
	delete(s.holds, name)
	s.mu.Unlock()
	if h != nil {
		close(h.entered)
		select {
		case <-h.released:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}
