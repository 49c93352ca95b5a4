package bridge

import (
	"cmp"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	// ways is how many entries share a set: eight words are one cache line.
	ways = 8
	// localPort marks the bridge's own address in an entry.
	localPort = 0xffff
	// noSlot: the address is not in the table.
	noSlot = -1

	portBits = 16
	portMask = 1<<portBits - 1

	// A key is an address in its lower 48 bits, and the VLAN in which it was
	// seen above them; zero where VLANs are not looked at.
	vlanShift = 48
	macMask   = 1<<vlanShift - 1
	vlanBits  = 12
	vlanMask  = 1<<vlanBits - 1
)

// keyOf joins an address and its VLAN.
func keyOf(mac uint64, vlan uint16) uint64 { return mac | uint64(vlan)<<vlanShift }

// fdb is the forwarding database: a set-associative table, read without locks.
//
// An entry is one word, the address in its upper 48 bits and the port in its
// lower 16, so that a reader never sees half an entry; zero is a free place,
// which no address can be mistaken for, since the zero address is never
// learned. When an address was last seen stands in a parallel array, in
// milliseconds of a coarse clock, and is written only when it changes: on most
// frames nothing is written at all.
//
// With VLANs the entry's VLAN stands in another parallel array, below a number
// that grows each time the place is taken anew. It is written while the place is
// free, so a reader that finds the same value there before and after it looked at
// the entry knows that the two belong together.
//
// Each address may stand in either of two sets, and goes into the emptier one
// (two-choice hashing): at half load, where the bound keeps the table, a set of
// eight practically never overflows.
type fdb struct {
	words  []atomic.Uint64
	stamps []atomic.Uint32
	tags   []atomic.Uint32 // version and VLAN; nil where VLANs are not looked at
	mask   uint64          // sets - 1
	seed   uint64          // so that nobody outside can aim at one set
	limit  int64
	now    atomic.Uint32 // coarse clock, ms since the start; wraps

	entries atomic.Int64  // without local ones; changed under mu
	refused atomic.Uint64 // not learned for want of room
	isFull  atomic.Bool   // since a refusal, until there is room again

	known []atomic.Int32 // addresses by port id; changed under mu

	mu             sync.Mutex // held by who learns, moves or deletes; a leaf
	learned, moved atomic.Uint64
	aged, flushed  atomic.Uint64
}

// newFDB makes a table for limit addresses, which tells VLANs apart or not.
func newFDB(limit int, vlans bool) *fdb {
	sets := 1 << bits.Len(uint(max(2*limit/ways, 2)-1))
	t := &fdb{
		words:  make([]atomic.Uint64, sets*ways),
		stamps: make([]atomic.Uint32, sets*ways),
		mask:   uint64(sets - 1),
		seed:   rand.Uint64(),
		limit:  int64(limit),
		known:  make([]atomic.Int32, maxIDs),
	}
	if vlans {
		t.tags = make([]atomic.Uint32, sets*ways)
	}
	return t
}

// hash mixes key: its lower half picks one set where key may stand, its upper
// half the other.
func (t *fdb) hash(key uint64) uint64 {
	h := (key ^ t.seed) * 0x9e3779b97f4a7c15
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// setA and setB return the first places of the two sets.
func (t *fdb) setA(hash uint64) int { return int(hash&t.mask) * ways }

func (t *fdb) setB(hash uint64) int {
	a, b := hash&t.mask, hash>>32&t.mask
	if a == b {
		b ^= 1
	}
	return int(b) * ways
}

// find returns where key stands, and its port.
func (t *fdb) find(key uint64) (slot int, port uint16) {
	h := t.hash(key)
	if t.tags != nil {
		if slot, port = t.findTagged(t.setA(h), key); slot == noSlot {
			slot, port = t.findTagged(t.setB(h), key)
		}
		return slot, port
	}
	if slot, port = t.findIn(t.setA(h), key); slot == noSlot {
		slot, port = t.findIn(t.setB(h), key)
	}
	return slot, port
}

func (t *fdb) findIn(first int, key uint64) (int, uint16) {
	set := t.words[first : first+ways : first+ways]
	for i := range set {
		if w := set[i].Load(); w>>portBits == key {
			return first + i, uint16(w)
		}
	}
	return noSlot, 0
}

// findTagged is findIn for a table that tells VLANs apart.
func (t *fdb) findTagged(first int, key uint64) (int, uint16) {
	mac, vlan := key&macMask, uint32(key>>vlanShift)
	set := t.words[first : first+ways : first+ways]
	for i := range set {
		if set[i].Load()>>portBits != mac {
			continue
		}
		tag := t.tags[first+i].Load()
		w := set[i].Load() // again: between the two looks at the tag
		if tag&vlanMask == vlan && w>>portBits == mac && t.tags[first+i].Load() == tag {
			return first + i, uint16(w)
		}
	}
	return noSlot, 0
}

// seen refreshes the entry in slot.
func (t *fdb) seen(slot int, now uint32) {
	if s := &t.stamps[slot]; s.Load() != now {
		s.Store(now)
	}
}

// learn enters key with port in, or moves it there, and reports whether the
// port may serve its station: one with a limit of its own serves only stations
// that are in the table. in must still be up, checked under the mutex: what
// arrives while a port is being flushed must not be learned on it again.
func (t *fdb) learn(key uint64, in *port, now uint32) (served bool) {
	limited := in.macLimit.Load() > 0
	slot, old := t.find(key)
	// Without the mutex: a flood of new addresses must not queue up here.
	if limited && (slot == noSlot || old != in.id) && !t.portHasRoom(in) {
		return false
	}
	if slot == noSlot && t.entries.Load() >= t.limit {
		t.refuse()
		return !limited
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !in.up.Load() {
		return !limited
	}
	if slot, old := t.find(key); slot != noSlot {
		if old != in.id && old != localPort {
			if !t.portHasRoom(in) {
				return false
			}
			t.words[slot].Store(key<<portBits | uint64(in.id))
			t.known[old].Add(-1)
			t.known[in.id].Add(1)
			t.moved.Add(1)
		}
		t.seen(slot, now)
		return true
	}
	if !t.portHasRoom(in) {
		return false
	}
	slot = t.free(key)
	if slot == noSlot || t.entries.Load() >= t.limit {
		t.refuse()
		return !limited
	}
	t.stamps[slot].Store(now)
	t.enter(slot, key, in.id)
	t.known[in.id].Add(1)
	t.entries.Add(1)
	t.learned.Add(1)
	return true
}

// portHasRoom reports whether one more address may be learned on p.
func (t *fdb) portHasRoom(p *port) bool {
	limit := p.macLimit.Load()
	return limit <= 0 || t.known[p.id].Load() < limit
}

// enter writes a free place; mu must be held.
func (t *fdb) enter(slot int, key uint64, port uint16) {
	if t.tags != nil {
		version := t.tags[slot].Load()>>vlanBits + 1
		t.tags[slot].Store(version<<vlanBits | uint32(key>>vlanShift))
	}
	t.words[slot].Store(key<<portBits | uint64(port))
}

// deleteLocked frees the place of entry w, unless it holds another one by now, and
// reports whether it did; mu must be held.
func (t *fdb) deleteLocked(slot int, w uint64) bool {
	if t.words[slot].Load() != w {
		return false
	}
	t.words[slot].Store(0)
	t.known[w&portMask].Add(-1)
	t.entries.Add(-1)
	return true
}

func (t *fdb) refuse() {
	t.refused.Add(1)
	if !t.isFull.Load() {
		t.isFull.Store(true)
	}
}

// free finds a place for key in the emptier of its sets; mu must be held.
func (t *fdb) free(key uint64) int {
	h := t.hash(key)
	slotA, freeA := t.room(t.setA(h))
	slotB, freeB := t.room(t.setB(h))
	if freeB > freeA {
		return slotB
	}
	return slotA
}

func (t *fdb) room(first int) (slot, free int) {
	slot = noSlot
	for i := first; i < first+ways; i++ {
		if t.words[i].Load() == 0 {
			slot = i
			free++
		}
	}
	return slot, free
}

// setLocal enters the bridge's own address, which neither ages nor moves.
func (t *fdb) setLocal(key uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.enter(t.free(key), key, localPort)
}

// expire deletes what has not been seen for age.
func (t *fdb) expire(age time.Duration) {
	now, limit := t.now.Load(), uint32(age.Milliseconds())
	old := func(slot int) bool {
		// A worker that still uses the coarse time before the last tick may
		// stamp an entry older, never newer, than now.
		return now-t.stamps[slot].Load() >= limit
	}
	for i := range t.words {
		w := t.words[i].Load()
		if w == 0 || w&portMask == localPort || !old(i) {
			continue
		}
		t.mu.Lock()
		if old(i) && t.deleteLocked(i, w) {
			t.aged.Add(1)
		}
		t.mu.Unlock()
	}
}

// flush deletes what was learned on port id, and reports how much. To keep the
// port from being learned again at the same time, take it down first.
func (t *fdb) flush(id uint16) (n int) {
	t.settle()
	for i := range t.words {
		w := t.words[i].Load()
		if w == 0 || w&portMask != uint64(id) {
			continue
		}
		t.mu.Lock()
		if t.deleteLocked(i, w) {
			t.flushed.Add(1)
			n++
		}
		t.mu.Unlock()
	}
	return n
}

// settle waits for whoever is learning now: it may still have seen a port up
// that has gone down.
func (t *fdb) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
}

// roomAgain ends an episode of fullness once a tenth of the table is free, and
// reports whether it did.
func (t *fdb) roomAgain() bool {
	if t.entries.Load() > t.limit-(t.limit+9)/10 {
		return false
	}
	return t.isFull.CompareAndSwap(true, false)
}

// next returns the first learned entry at or after slot from.
func (t *fdb) next(from int) (slot int, key uint64, port uint16) {
	for i := from; i < len(t.words); i++ {
		if w, vlan := t.at(i); w != 0 && w&portMask != localPort {
			return i, keyOf(w>>portBits, vlan), uint16(w)
		}
	}
	return noSlot, 0, 0
}

// at reads one place: its entry, zero for none, and the entry's VLAN.
func (t *fdb) at(slot int) (w uint64, vlan uint16) {
	if t.tags == nil {
		return t.words[slot].Load(), 0
	}
	for {
		tag := t.tags[slot].Load()
		w = t.words[slot].Load()
		if t.tags[slot].Load() == tag {
			return w, uint16(tag & vlanMask)
		}
	}
}

// adopt takes over what old has learned and counted; ports gives those that are
// still there by id. Nobody else knows the new table yet.
func (t *fdb) adopt(old *fdb, ports []*port) {
	t.now.Store(old.now.Load())
	if (t.tags == nil) == (old.tags == nil) {
		for slot, key, id := old.next(0); slot != noSlot; slot, key, id = old.next(slot + 1) {
			if int(id) < len(ports) && ports[id] != nil {
				t.learn(key, ports[id], old.stamps[slot].Load())
			}
		}
	}
	t.learned.Store(old.learned.Load())
	t.moved.Store(old.moved.Load())
	t.aged.Store(old.aged.Load())
	t.flushed.Store(old.flushed.Load())
	t.refused.Store(old.refused.Load())
}

// FDBEntry is one address that the bridge knows.
type FDBEntry struct {
	MAC   ndiscore.MAC `json:"mac"`
	VLAN  uint16       `json:"vlan,omitempty"` // 0 where VLANs are not looked at
	Port  string       `json:"port"`
	Age   int          `json:"age_seconds"` // since a frame from it was seen
	Local bool         `json:"local"`       // the bridge's own
}

// list returns the entries in order of address; names gives the ports' names.
func (t *fdb) list(names []string, local string) []FDBEntry {
	now := t.now.Load()
	var all []FDBEntry
	for i := range t.words {
		w, vlan := t.at(i)
		if w == 0 {
			continue
		}
		e := FDBEntry{MAC: macOf(w >> portBits), VLAN: vlan, Port: local, Local: true}
		if id := w & portMask; id != localPort {
			if int(id) >= len(names) {
				continue // of a port that has come meanwhile
			}
			e.Port, e.Local = names[id], false
			e.Age = int(max(int32(now-t.stamps[i].Load()), 0) / 1000)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b FDBEntry) int {
		return cmp.Or(slices.Compare(a.MAC[:], b.MAC[:]), cmp.Compare(a.VLAN, b.VLAN))
	})
	return all
}

func macOf(key uint64) ndiscore.MAC {
	return ndiscore.MAC{byte(key >> 40), byte(key >> 32), byte(key >> 24), byte(key >> 16), byte(key >> 8), byte(key)}
}
