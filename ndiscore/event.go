package ndiscore

import (
	"sync"
	"time"
)

// Event is one thing that happened, to whom, and why. Events are numbered from
// 1 without gaps for as long as the core lives.
type Event struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	What     string    `json:"what"`               // "adapter.state", "link", "bundle.active", "binding.bound", …
	Adapter  string    `json:"adapter,omitempty"`  // adapter, bundle or bridge
	Protocol string    `json:"protocol,omitempty"` // for binding and protocol events
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// eventLog keeps the newest events and wakes those who follow.
type eventLog struct {
	mu   sync.Mutex // guards all below; a leaf lock
	ring []Event    // Seq s stands at (s-1) mod len
	next uint64     // Seq of the next event
	grew chan struct{}
}

func newEventLog(size int) *eventLog {
	return &eventLog{ring: make([]Event, size), next: 1, grew: make(chan struct{})}
}

func (l *eventLog) add(e Event) Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq = l.next
	l.ring[(e.Seq-1)%uint64(len(l.ring))] = e
	l.next++
	close(l.grew)
	l.grew = make(chan struct{})
	return e
}

// since returns the events with Seq > after that are still kept, how many
// older ones are lost, and a channel that closes when there are more.
func (l *eventLog) since(after uint64) (events []Event, lost uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := min(after, l.next-1) + 1
	if oldest := l.oldestLocked(); first < oldest {
		lost = oldest - first
		first = oldest
	}
	for s := first; s < l.next; s++ {
		events = append(events, l.ring[(s-1)%uint64(len(l.ring))])
	}
	return events, lost, l.grew
}

func (l *eventLog) oldestLocked() uint64 {
	if n := uint64(len(l.ring)); l.next > n {
		return l.next - n
	}
	return 1
}
