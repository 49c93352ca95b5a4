package netdev

import (
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Progress counts what a send queue got rid of and what it had no room for, and
// tells from that when the queue is stuck. The zero value is ready.
type Progress struct {
	sent, full atomic.Uint64

	// As Stuck saw them last; its caller's.
	lastSent, lastFull uint64
}

// Add counts the frames of a batch that has its statuses.
func (p *Progress) Add(b *ndiscore.Batch) {
	var sent, full uint64
	for i := range b.Frames {
		switch b.Status[i] {
		case ndiscore.DropNone:
			sent++
		case ndiscore.DropTxQueueFull:
			full++
		}
	}
	p.sent.Add(sent)
	if full > 0 {
		p.full.Add(full)
	}
}

// Counts are all frames so far.
func (p *Progress) Counts() (sent, full uint64) { return p.sent.Load(), p.full.Load() }

// Stuck reports whether since its last call frames found no room and none went
// out. A queue that is merely too slow has sent some, and one that nobody uses
// has refused none. Only one goroutine may ask.
func (p *Progress) Stuck() bool {
	sent, full := p.Counts()
	stuck := sent == p.lastSent && full != p.lastFull
	p.lastSent, p.lastFull = sent, full
	return stuck
}
