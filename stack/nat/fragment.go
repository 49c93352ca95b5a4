package nat

import "time"

// fragmentLife is how long the fragments of a packet may take to arrive, as long
// as a host waits for them (RFC 1122 3.3.2 has it at 60 to 120 s, Linux at 30 s).
const fragmentLife = 30 * time.Second

// fragment is what became of the first fragment of a packet, for the others.
type fragment struct {
	key     tuple // see fragKey
	from    tuple // the first one's own
	to      tuple // what the addresses become
	known   bool  // there was a flow of from
	changed bool
	expires time.Duration
}

// fragments are the last packets whose first fragment came by.
type fragments struct {
	ring []fragment
	next int
	by   map[tuple]int
}

func (t *fragments) init(n int) {
	t.ring = make([]fragment, n)
	t.by = make(map[tuple]int, n)
}

// fragKey is what all fragments of a packet have in common: instead of ports,
// the identification (RFC 791, RFC 8200 4.5).
func fragKey(p *header) tuple {
	k := p.tuple
	k.sport, k.dport = uint16(p.id>>16), uint16(p.id)
	k.side &^= sideAnswer
	if k.side.v6() {
		k.proto = 0 // each fragment may say something else
	}
	return k
}

// put remembers that the packet p, a first fragment, known if it is of a flow, became
// one of to.
func (t *fragments) put(p *header, to *tuple, known bool, now time.Duration) {
	k := fragKey(p)
	i, ok := t.by[k]
	if !ok {
		i = t.next
		t.next = (t.next + 1) % len(t.ring)
		// The slot is that key's still, or was never used: then the key is nobody's.
		delete(t.by, t.ring[i].key)
		t.by[k] = i
	}
	t.ring[i] = fragment{key: k, from: p.tuple, to: *to, known: known, changed: *to != p.tuple, expires: now + fragmentLife}
}

// get is what became of the first fragment of the packet that p is a later one of.
func (t *fragments) get(p *header, now time.Duration) *fragment {
	if i, ok := t.by[fragKey(p)]; ok && t.ring[i].expires > now {
		return &t.ring[i]
	}
	return nil
}
