package netdev

import (
	"sync"
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// LinkReporter tells the core of an adapter's link, and of its address and MTU.
// Two sources feed it: the watcher, which knows, and a refused send, which may
// know earlier. It keeps their order, tells each change once, and holds no lock
// while it tells.
type LinkReporter struct {
	tell func(ndiscore.Status) // nil until Open
	seen atomic.Uint64         // how often the watcher has spoken

	mu      sync.Mutex // guards all below
	want    linkReport
	told    linkReport
	telling bool
	open    bool
	held    bool
}

// linkReport is what the core knows, or is to know.
type linkReport struct {
	link ndiscore.LinkState
	mac  ndiscore.MAC
	mtu  int
	why  string // address and MTU are what they are
}

// Open starts with what Initialize's attributes tell, and indicates changes from
// now on through h.
func (r *LinkReporter) Open(h ndiscore.AdapterHandle, state ndiscore.LinkState, mac ndiscore.MAC, mtu int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = h.IndicateStatus
	r.want = linkReport{link: state, mac: mac, mtu: mtu}
	r.told, r.open, r.held = r.want, true, false
}

// Close ends the indications: a halting adapter makes none.
func (r *LinkReporter) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = false
}

// Hold keeps to itself what happens from now on: a sleeping adapter tells
// nothing.
func (r *LinkReporter) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

// Resume ends Hold and tells what has changed since.
func (r *LinkReporter) Resume() {
	r.mu.Lock()
	r.held = false
	r.set(r.want)
}

// State is the link as last reported.
func (r *LinkReporter) State() ndiscore.LinkState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want.link
}

// MTU is the MTU as last reported.
func (r *LinkReporter) MTU() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want.mtu
}

// Seen is a mark to pass to Refused: what the watcher has said so far.
func (r *LinkReporter) Seen() uint64 { return r.seen.Load() }

// Observed reports what the watcher saw of the link.
func (r *LinkReporter) Observed(s ndiscore.LinkState) {
	r.seen.Add(1)
	r.mu.Lock()
	w := r.want
	w.link = s
	r.set(w)
}

// Attributes reports the address and the MTU that the watcher saw.
func (r *LinkReporter) Attributes(mac ndiscore.MAC, mtu int, why string) {
	r.mu.Lock()
	w := r.want
	w.mac, w.mtu, w.why = mac, mtu, why
	r.set(w)
}

// Refused reports that the device refused a frame because its link is down,
// unless the watcher has spoken since mark was taken, before the attempt: it
// may have seen the link go down and come back. If it has not, its next word is
// still to come, so a link reported down here does not stay down by mistake.
func (r *LinkReporter) Refused(mark uint64, why string) {
	r.mu.Lock()
	if r.seen.Load() != mark || r.want.link.Media == ndiscore.MediaDisconnected {
		r.mu.Unlock()
		return
	}
	w := r.want
	w.link.Media, w.link.Why = ndiscore.MediaDisconnected, why
	r.set(w)
}

// set is called with r.mu held and lets go of it. Whoever finds nobody telling
// tells everything there is, so the last word told is the last one wanted.
func (r *LinkReporter) set(w linkReport) {
	r.want = w
	if r.telling {
		r.mu.Unlock()
		return
	}
	r.telling = true
	for r.open && !r.held {
		next := r.next()
		if next == nil {
			break
		}
		tell := r.tell
		r.mu.Unlock()
		tell(next)
		r.mu.Lock()
	}
	r.telling = false
	r.mu.Unlock()
}

// next takes the next thing to tell, nil when everything is told.
func (r *LinkReporter) next() ndiscore.Status {
	w, t := &r.want, &r.told
	if w.link.Media != t.link.Media || w.link.Speed != t.link.Speed {
		t.link = w.link
		return t.link
	}
	if w.mac == t.mac && w.mtu == t.mtu {
		return nil
	}
	c := ndiscore.AttributesChange{Why: w.why}
	if w.mac != t.mac {
		c.MAC = w.mac
	}
	if w.mtu != t.mtu {
		c.MTU = w.mtu
	}
	t.mac, t.mtu = w.mac, w.mtu
	return c
}
