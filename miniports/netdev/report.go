package netdev

import (
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// LinkReporter tells the core of an adapter's link. Two sources feed it: the
// watcher, which knows, and a refused send, which may know earlier. It keeps
// their order, tells each change once, and holds no lock while it tells.
type LinkReporter struct {
	tell func(ndiscore.Status) // nil until Open
	seen atomic.Uint64         // how often the watcher has spoken

	mu      sync.Mutex
	want    ndiscore.LinkState
	told    ndiscore.LinkState
	telling bool
	open    bool
}

// Open starts with state, which Initialize's attributes tell of, and indicates
// changes from now on through h.
func (r *LinkReporter) Open(h ndiscore.AdapterHandle, state ndiscore.LinkState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = h.IndicateStatus
	r.want, r.told, r.open = state, state, true
}

// Close ends the indications: a halting adapter makes none.
func (r *LinkReporter) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = false
}

// State is the link as last reported.
func (r *LinkReporter) State() ndiscore.LinkState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want
}

// Seen is a mark to pass to Refused: what the watcher has said so far.
func (r *LinkReporter) Seen() uint64 { return r.seen.Load() }

// Observed reports what the watcher saw.
func (r *LinkReporter) Observed(s ndiscore.LinkState) {
	r.seen.Add(1)
	r.mu.Lock()
	r.set(s)
}

// Refused reports that the device refused a frame because its link is down,
// unless the watcher has spoken since mark was taken, before the attempt: it
// may have seen the link go down and come back. If it has not, its next word is
// still to come, so a link reported down here does not stay down by mistake.
func (r *LinkReporter) Refused(mark uint64, why string) {
	r.mu.Lock()
	if r.seen.Load() != mark || r.want.Media == ndiscore.MediaDisconnected {
		r.mu.Unlock()
		return
	}
	s := r.want
	s.Media, s.Why = ndiscore.MediaDisconnected, why
	r.set(s)
}

// set is called with r.mu held and lets go of it. Whoever finds nobody telling
// tells everything there is, so the last word told is the last one wanted.
func (r *LinkReporter) set(s ndiscore.LinkState) {
	r.want = s
	if r.telling {
		r.mu.Unlock()
		return
	}
	r.telling = true
	for r.open && (r.want.Media != r.told.Media || r.want.Speed != r.told.Speed) {
		r.told = r.want
		now, tell := r.told, r.tell
		r.mu.Unlock()
		tell(now)
		r.mu.Lock()
	}
	r.telling = false
	r.mu.Unlock()
}
