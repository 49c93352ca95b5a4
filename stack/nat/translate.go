package nat

import (
	"slices"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Out translates untagged Ethernet frames that are about to leave by e, in place:
// their heads must be the caller's own. why[i] becomes the reason for which
// frames[i] must not leave, or stays DropNone. Frames that are not IP are left
// alone.
func (e *Edge) Out(frames []*ndiscore.Frame, why []ndiscore.DropReason) {
	t := e.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, f := range frames {
		if isIP(f) {
			why[i] = t.out(e, f.Head[ethernet:], partial(f))
		}
	}
}

func isIP(f *ndiscore.Frame) bool {
	h := f.Head
	return len(h) >= ethernet+ipv4Min && (h[12] == 0x08 && h[13] == 0 || h[12] == 0x86 && h[13] == 0xdd)
}

// partial is where the checksum begins that the source of f left open, or 0.
func partial(f *ndiscore.Frame) int {
	if f.Offload.Flags&ndiscore.NeedsCsum == 0 {
		return 0
	}
	return int(f.Offload.CsumStart) - ethernet
}

func (t *Table) out(e *Edge, h []byte, open int) ndiscore.DropReason {
	p, ok := parse(h, false)
	p.edge = e.id
	p.side |= sideOut
	v6 := p.side.v6()
	if p.dst.special(v6) || p.src.special(v6) {
		return ndiscore.DropNone
	}
	if !ok {
		return e.unfit(&p, true)
	}
	switch p.kind {
	case kindLater:
		g := t.frags.get(&p, t.now)
		if g == nil {
			if !e.needsFirstOut(&p) {
				return ndiscore.DropNone
			}
			return t.dropFirst()
		}
		t.touchLater(g, &p)
		if g.changed {
			p.rewrite(h, &g.to, false, 0)
			t.stats.translatedOut++
		}
		return ndiscore.DropNone
	case kindError:
		return t.errorOut(e, h, &p, open)
	case kindNone:
		return e.unfit(&p, false)
	}
	n := t.alive(&p.tuple)
	if n == nil {
		own := t.own[hostAddr{p.src, v6}]
		outside, back := t.origin(e, &p)
		if back || !e.wants(&p, own) {
			t.first(&p, &p.tuple, false)
			return ndiscore.DropNone
		}
		kind := flowMasquerade
		if own {
			kind = flowLocal
		}
		var why ndiscore.DropReason
		if n, why = t.begin(e, kind, outside, &p); n == nil {
			return why
		}
	}
	t.touch(n, &p)
	to := t.translated(n)
	changed := to != p.tuple
	t.first(&p, &to, true)
	if changed {
		p.rewrite(h, &to, open == p.l4, 0)
		t.stats.translatedOut++
	}
	return ndiscore.DropNone
}

// origin tells whether p, which is about to leave by e and belongs to no flow, came
// from outside, for a published port or as Through has noticed, and whether the
// latter was by e, so that it goes back.
func (t *Table) origin(e *Edge, p *header) (outside, back bool) {
	came, answer := p.tuple, p.answer(sideOut)
	came.side &^= sideOut
	for _, by := range t.byID {
		if by == nil {
			continue
		}
		came.edge, answer.edge = by.id, by.id
		if n := t.alive(&came); n != nil && n.flow.kind == flowThrough && n.dir == 0 {
			outside, back = true, back || by == e
		}
		if n := t.alive(&answer); n != nil && n.flow.kind == flowForward && n.dir == 1 {
			outside = true
		}
	}
	return outside, back
}

// translated is what a packet with n's tuple becomes; its side and edge stay.
func (t *Table) translated(n *node) tuple {
	to := n.flow.node[1-n.dir].answer(0)
	to.side = n.side
	return to
}

// first remembers for the later fragments of p what became of the first, known if it
// is of a flow.
func (t *Table) first(p *header, to *tuple, known bool) {
	if p.first {
		t.frags.put(p, to, known, t.now)
	}
}

// touchLater counts a later fragment for the flow of the first, g.
func (t *Table) touchLater(g *fragment, p *header) {
	if !g.known {
		return
	}
	if n := t.alive(&g.from); n != nil {
		// It brings no news of the state: it may have been overtaken.
		t.note(n, p, n.flow.state, t.life(n.flow))
	}
}

// needsFirstOut reports whether p, a later fragment that is about to leave by e, might
// have to be translated, so that it must not leave before the first is known.
func (e *Edge) needsFirstOut(p *header) bool {
	v6 := p.side.v6()
	if e.masq[version(v6)] {
		return !e.has(p.src, v6) // its own address stays
	}
	return slices.ContainsFunc(e.forwards, func(f forward) bool { return f.v6 == v6 && f.to == p.src })
}

// needsFirstIn reports the same of one that came for an address of e by the edge by.
// What comes from inside is for the router unless a port is published: nobody
// there answers what e has translated.
func (e *Edge) needsFirstIn(p *header, by *Edge) bool {
	v6 := p.side.v6()
	if by != nil && e.masq[version(v6)] {
		return true
	}
	// In IPv6 the protocol is the first fragment's to say.
	return slices.ContainsFunc(e.forwards, func(f forward) bool { return f.v6 == v6 && (v6 || f.proto == p.proto) })
}

func (t *Table) dropFirst() ndiscore.DropReason {
	t.stats.noFirst++
	return ndiscore.DropFragment
}

func (t *Table) dropState() ndiscore.DropReason {
	t.stats.noState++
	return ndiscore.DropNATState
}

// unfit is for what cannot be translated: it may leave as it is if it would have.
// Of a packet that is cut off the first fragment is too short to tell whose it is.
func (e *Edge) unfit(p *header, cut bool) ndiscore.DropReason {
	t := e.table
	if !e.masq[version(p.side.v6())] || t.own[hostAddr{p.src, p.side.v6()}] {
		return ndiscore.DropNone
	}
	if cut && p.first {
		return t.dropFirst()
	}
	return t.dropState()
}

// wants reports whether p, which belongs to no flow and would leave by e, begins
// one.
func (e *Edge) wants(p *header, own bool) bool {
	if !own {
		return e.masq[version(p.side.v6())]
	}
	// The router's own answers need no flow: nothing comes back for them. Nor do
	// its services, whose ports are nobody else's.
	switch {
	case p.kind == kindQuery && p.reply, p.flags&flagRST != 0:
		return false
	case p.kind == kindPorts && e.serves(p.proto, p.sport):
		return false
	}
	return e.masq[version(p.side.v6())]
}

// begin makes the flow of kind k that p begins as it leaves by e.
func (t *Table) begin(e *Edge, k flowKind, outside bool, p *header) (*node, ndiscore.DropReason) {
	if p.flags&flagRST != 0 || p.kind == kindQuery && p.reply {
		return nil, t.dropState() // it ends or answers what nobody knows
	}
	pub, ok := e.address(p.dst, p.side.v6())
	if !ok {
		return nil, t.dropState()
	}
	if k == flowLocal && (p.src == pub || e.has(p.src, p.side.v6())) {
		pub = p.src
	}
	reply := p.answer(0)
	reply.dst = pub
	return t.allot(e, k, outside, p, reply)
}

// allot finds a public port for the flow that p begins, and makes it.
func (t *Table) allot(e *Edge, k flowKind, outside bool, p *header, reply tuple) (*node, ndiscore.DropReason) {
	if p.kind == kindBare {
		// There is no port to tell two of them apart.
		if t.alive(&reply) != nil {
			return nil, t.dropState()
		}
	} else if !t.choose(e.portSet(p.proto), &reply) {
		t.refused(e, true, destOf(&reply))
		return nil, ndiscore.DropNATFull
	}
	if !t.room(outside) {
		t.refused(e, false, dest{})
		return nil, ndiscore.DropNATFull
	}
	f := t.add(k, outside, p.tuple, reply)
	t.join(f)
	return &f.node[0], ndiscore.DropNone
}

// has reports whether a is one of e's addresses.
func (e *Edge) has(a addr, v6 bool) bool {
	for _, p := range e.public[version(v6)] {
		if p.addr == a {
			return true
		}
	}
	return false
}

// Copy is a frame as In translates it: the headers are its own, the rest is that
// of the frame that came in, which stays as it was. It can be used again for
// the next frame, and holds on to no payload after Release.
type Copy struct {
	frame ndiscore.Frame
	room  [ndiscore.Headroom + copyBytes]byte
}

// copyBytes is how much of a frame In may have to look at or change: the headers
// of a packet, and those of one that it quotes.
const copyBytes = ethernet + 2*(ipv6Min+maxChain) + icmpLen + tcpMost

// of makes c a copy of f, with at most n bytes of its own.
func (c *Copy) of(f *ndiscore.Frame, n int) *ndiscore.Frame {
	g := &c.frame
	n = min(n, f.Len())
	g.Reset(c.room[:], ndiscore.Headroom, n)
	g.Offload = f.Offload
	got := 0
	for i := -1; i < len(f.Segs); i++ {
		b := f.Head
		if i >= 0 {
			b = f.Segs[i]
		}
		k := copy(g.Head[got:], b)
		got += k
		if k < len(b) {
			g.Segs = append(g.Segs, b[k:])
		}
	}
	return g
}

// Release lets go of the payload.
func (c *Copy) Release() {
	clear(c.frame.Segs)
	c.frame.Segs = c.frame.Segs[:0]
}

// In translates an untagged Ethernet frame with an IP packet for one of e's
// addresses, whose IP header has been checked. f is not changed: what is to be
// received instead is f itself, or made in c. by is the edge of the interface that
// it came in by: e itself, another one, or nil.
func (e *Edge) In(f *ndiscore.Frame, by *Edge, c *Copy) (*ndiscore.Frame, ndiscore.DropReason) {
	h := f.Head[ethernet:]
	p, ok := parse(h, false)
	if !ok {
		return f, ndiscore.DropNone // netstack will say what it thinks of it
	}
	p.edge = e.id
	t := e.table
	t.mu.Lock()
	defer t.mu.Unlock()
	switch p.kind {
	case kindNone:
		return f, ndiscore.DropNone
	case kindError:
		return t.errorIn(e, f, &p, c)
	case kindLater:
		g := t.frags.get(&p, t.now)
		if g == nil {
			if !e.needsFirstIn(&p, by) {
				return f, ndiscore.DropNone
			}
			return f, t.dropFirst()
		}
		t.touchLater(g, &p)
		if !g.changed {
			return f, ndiscore.DropNone
		}
		d := c.of(f, ethernet+p.l4)
		p.rewrite(d.Head[ethernet:], &g.to, false, 0)
		t.stats.translatedIn++
		return d, ndiscore.DropNone
	}
	n := t.alive(&p.tuple)
	if n == nil {
		to, port, published := e.forward(&p.tuple)
		if !published || p.kind != kindPorts {
			t.first(&p, &p.tuple, false)
			return f, ndiscore.DropNone // for the router
		}
		var why ndiscore.DropReason
		if n, why = t.publish(e, by, &p, to, port); n == nil {
			return f, why
		}
	}
	t.touch(n, &p)
	to := t.translated(n)
	changed := to != p.tuple
	t.first(&p, &to, true)
	if !changed {
		return f, ndiscore.DropNone
	}
	d := c.of(f, ethernet+p.l4+tcpMost)
	p.rewrite(d.Head[ethernet:], &to, partial(f) == p.l4, 0)
	t.stats.translatedIn++
	return d, ndiscore.DropNone
}

// publish makes the flow of p, which came by an edge for a published port of e.
func (t *Table) publish(e, by *Edge, p *header, to addr, port uint16) (*node, ndiscore.DropReason) {
	if p.flags&flagRST != 0 {
		return nil, t.dropState()
	}
	if by != e {
		// Answers must come back this way, even from a host next to the client. So
		// the client gets the address that it would have outside (RFC 4787 REQ-9).
		reply := tuple{src: to, sport: port, dst: p.dst, dport: p.sport, edge: e.id, proto: p.proto, side: p.side}
		return t.allot(e, flowHairpin, by != nil && by.masq[version(p.side.v6())], p, reply)
	}
	reply := tuple{src: to, sport: port, dst: p.src, dport: p.sport, edge: e.id, proto: p.proto, side: p.side | sideOut}
	// One client port may talk to two published ports that are one port there.
	for i := 0; t.alive(&reply) != nil; i++ {
		if i == portTries {
			t.refused(e, true, destOf(&reply))
			return nil, ndiscore.DropNATFull
		}
		reply.dport = uint16(midPort + t.rng.IntN(1<<16-midPort))
	}
	if !t.room(true) {
		t.refused(e, false, dest{})
		return nil, ndiscore.DropNATFull
	}
	return &t.add(flowForward, true, p.tuple, reply).node[0], ndiscore.DropNone
}

// Through takes notice of an untagged frame with an IP packet that came in by e
// for an address that is not e's, so that the answers leave as they are. The IP
// header has been checked.
func (e *Edge) Through(f *ndiscore.Frame) ndiscore.DropReason {
	p, ok := parse(f.Head[ethernet:], false)
	if !ok || p.kind > kindQuery || p.kind == kindQuery && p.reply || p.flags&flagRST != 0 {
		return ndiscore.DropNone
	}
	v6 := p.side.v6()
	if p.dst.special(v6) || p.src.special(v6) {
		return ndiscore.DropNone
	}
	p.edge = e.id
	t := e.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if !e.masq[version(v6)] {
		return ndiscore.DropNone
	}
	n := t.alive(&p.tuple)
	if n == nil {
		reply := p.answer(sideOut)
		if t.alive(&reply) != nil {
			return ndiscore.DropNone // the other side has begun
		}
		if !t.room(true) {
			t.refused(e, false, dest{})
			return ndiscore.DropNATFull
		}
		n = &t.add(flowThrough, true, p.tuple, reply).node[0]
	}
	t.touch(n, &p)
	return ndiscore.DropNone
}

// --- ICMP errors --------------------------------------------------------------

// quoted finds the flow that an error is about: the packet quoted in h, headers p,
// went the other way, and left what is now the error's side as n's tuple answers.
func (t *Table) quoted(e *Edge, h []byte, p *header) (q header, n *node) {
	q, ok := parse(h[p.quote:], true)
	if !ok || q.kind == kindLater || q.kind == kindNone || q.kind == kindError || q.side&sideV6 != p.side&sideV6 || q.src != p.dst {
		return q, nil
	}
	q.edge = e.id
	back := q.answer(p.side & sideOut)
	return q, t.alive(&back)
}

// rewriteError gives an error about a packet of n's flow, which went against n's
// direction, to who sent that packet. own says that the router says so itself,
// partial that the error's checksum was left to the device.
func (t *Table) rewriteError(h []byte, p, q *header, n *node, own, partial bool) {
	to := t.translated(n)
	inner := to.answer(0)
	more := q.rewrite(h[p.quote:], &inner, false, 0)
	outer := p.tuple
	outer.dst = to.dst
	if p.src == n.src || n.src != to.src && !own {
		// From the other end, or somebody behind the translation.
		outer.src = to.src
	}
	p.rewrite(h, &outer, partial, more)
}

func (t *Table) errorOut(e *Edge, h []byte, p *header, open int) ndiscore.DropReason {
	own := t.own[hostAddr{p.src, p.side.v6()}]
	q, n := t.quoted(e, h, p)
	if n != nil {
		t.rewriteError(h, p, &q, n, own, open == p.l4)
		t.stats.errorsOut++
		return ndiscore.DropNone
	}
	if own || !e.masq[version(p.side.v6())] {
		return ndiscore.DropNone
	}
	return t.dropState()
}

func (t *Table) errorIn(e *Edge, f *ndiscore.Frame, p *header, c *Copy) (*ndiscore.Frame, ndiscore.DropReason) {
	// The quoted headers are payload and may lie behind the head.
	d := c.of(f, copyBytes)
	h := d.Head[ethernet:]
	if p.quote > len(h) {
		return f, ndiscore.DropNone
	}
	q, n := t.quoted(e, h, p)
	if n == nil {
		return f, ndiscore.DropNone // about something of the router's own
	}
	t.rewriteError(h, p, &q, n, false, partial(f) == p.l4)
	t.stats.errorsIn++
	return d, ndiscore.DropNone
}
