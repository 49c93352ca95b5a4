package nat

import (
	"math/bits"
	"sync"
)

// dest is what a public port must be unique for: the public address on one side,
// the other end of the flow on the other.
type dest struct {
	pub, remote addr
	port        uint16 // of remote
	edge        uint16
	proto       uint8
	v6          bool
}

// destOf is the dest that a flow answered by reply belongs to.
func destOf(reply *tuple) dest {
	return dest{pub: reply.dst, remote: reply.src, port: reply.sport, edge: reply.edge, proto: reply.proto, v6: reply.side.v6()}
}

// crowd are the flows of one dest that had a port chosen for them. When they are
// many it keeps a map of the ports in use, so that a free one is found, or found
// missing, in constant time.
type crowd struct {
	dest
	first *flow
	n     int
	next  *crowd // when spare

	// Bit i of used is the port set.ports[i]; bit i of full is set when all bits
	// of used[i] are. Nil while the crowd is small.
	set    *portSet
	used   []uint64
	full   []uint64
	inUse  int // bits set in used
	cursor int // where to look next: a port just given up rests a while
}

// portSet are the ports that may be given to flows of one protocol at one edge.
type portSet struct {
	ports []uint16 // the low ones, which are a last resort, at the end
	high  int      // how many are not low
	rank  []uint16 // port → index in ports; noRank for a reserved one
}

const (
	noRank  = 0xffff
	lowPort = 512  // below: never given away
	midPort = 1024 // below: when nothing else is left
)

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// newPortSet makes the set of all ports but the reserved ones.
func newPortSet(reserved []PortRange) *portSet {
	s := &portSet{rank: make([]uint16, 1<<16)}
	taken := make([]bool, 1<<16)
	for _, r := range reserved {
		for p := int(r.First); p <= int(r.Last); p++ {
			taken[p] = true
		}
	}
	add := func(from, to int) {
		for p := from; p < to; p++ {
			if !taken[p] {
				s.rank[p] = uint16(len(s.ports))
				s.ports = append(s.ports, uint16(p))
			}
		}
	}
	for i := range s.rank {
		s.rank[i] = noRank
	}
	add(midPort, 1<<16)
	s.high = len(s.ports)
	add(lowPort, midPort)
	// Ports lower still are kept by whoever comes with one, unless reserved. They
	// have no rank: taken tells them apart.
	for p := range lowPort {
		if !taken[p] {
			s.rank[p] = keepOnly
		}
	}
	return s
}

// keepOnly is the rank of a port that a flow may keep, but none is given.
const keepOnly = 0xfffe

// anyPort is the set of an edge that has nothing reserved.
var anyPort = sync.OnceValue(func() *portSet { return newPortSet(nil) })

const (
	portTries   = 8   // how often chance is asked for a port
	crowdFactor = 256 // a crowd of this part of the ports gets a map of them
)

// choose finds a port for a flow answered by reply, whose dport is the one that
// it would like to keep, and writes it there. False when all are in use.
func (t *Table) choose(s *portSet, reply *tuple) bool {
	if s.rank[reply.dport] != noRank && t.alive(reply) == nil {
		return true
	}
	if len(s.ports) == 0 {
		return false
	}
	c := t.crowds[destOf(reply)]
	if c == nil || c.set != s {
		if c == nil || c.n*crowdFactor < len(s.ports) {
			for range portTries {
				n := s.high
				if n == 0 {
					n = len(s.ports)
				}
				reply.dport = s.ports[t.rng.IntN(n)]
				if t.alive(reply) == nil {
					return true
				}
			}
		}
		if c == nil {
			return false // in use by flows of another kind: next to impossible
		}
		c.chart(s)
	}
	for range portTries {
		i, ok := c.pick()
		if !ok {
			return false
		}
		reply.dport = s.ports[i]
		if t.alive(reply) == nil {
			return true
		}
		if c.set == nil {
			return false // alive has just emptied the crowd
		}
		c.mark(i) // until the map is drawn again: taken by a flow of another kind
	}
	return false
}

// chart draws the map of c.
func (c *crowd) chart(s *portSet) {
	words := (len(s.ports) + 63) / 64
	c.set, c.inUse, c.cursor = s, 0, 0
	c.used, c.full = make([]uint64, words), make([]uint64, (words+63)/64)
	// What lies behind the last port is never free.
	for i := len(s.ports); i < words*64; i++ {
		c.mark(i)
	}
	for i := words; i < len(c.full)*64; i++ {
		c.full[i/64] |= 1 << (i % 64)
	}
	c.inUse = 0
	for f := c.first; f != nil; f = f.crowdNext {
		c.take(f.node[1].dport)
	}
}

// forget gives the map up.
func (c *crowd) forget() { c.set, c.used, c.full = nil, nil, nil }

func (c *crowd) take(port uint16) {
	if r := c.set.rank[port]; r < keepOnly {
		c.mark(int(r))
	}
}

func (c *crowd) mark(i int) {
	w := &c.used[i/64]
	if *w&(1<<(i%64)) != 0 {
		return
	}
	*w |= 1 << (i % 64)
	c.inUse++
	if *w == ^uint64(0) {
		c.full[i/64/64] |= 1 << (i / 64 % 64)
	}
}

func (c *crowd) unmark(i int) {
	w := &c.used[i/64]
	if *w&(1<<(i%64)) == 0 {
		return
	}
	*w &^= 1 << (i % 64)
	c.inUse--
	c.full[i/64/64] &^= 1 << (i / 64 % 64)
}

// pick is the index of a free port, the next one from where the last was found.
func (c *crowd) pick() (int, bool) {
	s := c.set
	if c.inUse >= len(s.ports) {
		return 0, false
	}
	if c.cursor >= s.high {
		c.cursor = 0
	}
	i := c.free(c.cursor, s.high)
	if i < 0 {
		i = c.free(0, c.cursor)
	}
	if i < 0 {
		i = c.free(s.high, len(s.ports))
	}
	c.cursor = i + 1
	return i, i >= 0
}

// free is the first free index in from … to-1, or -1. It looks at no more than
// a word of used at either end, and at full in between: 16 words.
func (c *crowd) free(from, to int) int {
	if from >= to {
		return -1
	}
	w := from / 64
	if m := ^c.used[w] >> (from % 64) << (from % 64); m != 0 {
		if i := w*64 + bits.TrailingZeros64(m); i < to {
			return i
		}
		return -1
	}
	w++
	for g := w / 64; g < len(c.full); g++ {
		m := ^c.full[g]
		if g == w/64 {
			m = m >> (w % 64) << (w % 64)
		}
		if m != 0 {
			w = g*64 + bits.TrailingZeros64(m)
			if i := w*64 + bits.TrailingZeros64(^c.used[w]); i < to {
				return i
			}
			return -1
		}
	}
	return -1
}

// join makes f one of its crowd.
func (t *Table) join(f *flow) {
	d := destOf(&f.node[1].tuple)
	c := t.crowds[d]
	if c == nil {
		if c = t.spare; c != nil {
			t.spare = c.next
			*c = crowd{}
		} else {
			c = new(crowd)
		}
		c.dest = d
		t.crowds[d] = c
	}
	f.crowd, f.crowdNext = c, c.first
	if c.first != nil {
		c.first.crowdPrev = f
	}
	c.first = f
	c.n++
	if c.set != nil {
		c.take(f.node[1].dport)
	}
}

func (t *Table) leave(f *flow) {
	c := f.crowd
	if c == nil {
		return
	}
	if f.crowdPrev != nil {
		f.crowdPrev.crowdNext = f.crowdNext
	} else {
		c.first = f.crowdNext
	}
	if f.crowdNext != nil {
		f.crowdNext.crowdPrev = f.crowdPrev
	}
	f.crowd, f.crowdPrev, f.crowdNext = nil, nil, nil
	c.n--
	if c.set != nil {
		if r := c.set.rank[f.node[1].dport]; r < keepOnly {
			c.unmark(int(r))
		}
		if c.n*crowdFactor*4 < len(c.set.ports) {
			c.forget()
		}
	}
	if c.n == 0 {
		delete(t.crowds, c.dest)
		c.next, t.spare = t.spare, c
	}
}
