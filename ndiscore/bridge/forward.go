package bridge

import (
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	broadcastKey = 0xffffffffffff
	groupBit     = 1 << 40 // of an address as a key: the I/G bit of its first byte
	// 01:80:c2:00:00:00…0f without its last four bits: never forwarded by a
	// bridge (IEEE 802.1Q table 8-1).
	reservedPrefix = 0x0180c2000000 >> 4
)

// scratch is what one worker needs while it carries a batch through the
// bridge. A worker may come back into the same bridge before it has left it (the
// router above answers at once, or two bridges are joined by memory): each
// level has its own, linked by next.
type scratch struct {
	worker *ndiscore.Worker
	out    []*ndiscore.Batch // by port id: what goes there, nil for nothing yet
	dirty  []uint16          // ports with something in out, in order of first use
	sent   []*ndiscore.Frame // by Send: what the port that is at it was given
	busy   bool
	next   *scratch

	withTag, noTag *forms // nil until first used
	formed         int    // forms below this index may be made

	// Only the worker adds, so the atomics never contend.
	flooded, copies, pruned atomic.Uint64
}

// enter gives the worker its scratch, for as many ports as v has.
func (b *Bridge) enter(w *ndiscore.Worker, v *view) *scratch {
	s := b.scratch[w.ID()].Load()
	if s == nil {
		s = new(scratch)
		b.scratch[w.ID()].Store(s)
	}
	for s.busy {
		if s.next == nil {
			s.next = new(scratch)
		}
		s = s.next
	}
	s.busy, s.worker = true, w
	for len(s.out) < len(v.byID) {
		s.out = append(s.out, nil)
	}
	return s
}

// leave ends what enter began.
func (s *scratch) leave() {
	s.dirty = s.dirty[:0]
	if s.formed > 0 {
		s.unmake()
	}
	s.busy = false
}

// add puts f into the batch for port id.
func (s *scratch) add(id uint16, f *ndiscore.Frame) {
	q := s.out[id]
	if q == nil {
		q = s.worker.Scratch()
		s.out[id] = q
		s.dirty = append(s.dirty, id)
	}
	q.Append(f)
}

// count adds to the counters of the worker, which stand in its first scratch.
func (b *Bridge) count(w *ndiscore.Worker, flooded, copies, pruned uint64) {
	if flooded == 0 {
		return
	}
	c := b.scratch[w.ID()].Load()
	c.flooded.Add(flooded)
	c.copies.Add(copies)
	if pruned > 0 {
		c.pruned.Add(pruned)
	}
}

// upward is the way to those above, nil when nobody there receives.
func (b *Bridge) upward() (h *ndiscore.AdapterHandle, promiscuous bool) {
	f := ndiscore.PacketFilter(b.filter.Load())
	if f == 0 {
		return nil, false
	}
	return b.above.Load(), f&ndiscore.FilterPromiscuous != 0
}

// Receive implements ndiscore.Protocol: a batch came in through a port.
func (b *Bridge) Receive(bd *ndiscore.Binding, batch *ndiscore.Batch) {
	in, ok := bd.Context().(*port)
	if !ok {
		batch.DropAll(ndiscore.DropNoPort)
	} else {
		b.forward(in, batch)
	}
	if !batch.Borrowed {
		bd.Return(batch)
	}
}

func (b *Bridge) forward(in *port, batch *ndiscore.Batch) {
	w := batch.Worker
	v := b.view.Load()
	switch {
	case int(in.id) >= len(v.byID) || v.byID[in.id] != in:
		batch.DropAll(ndiscore.DropNoPort) // it is no port of ours any more
		return
	case v.rules[in.id].shut:
		batch.DropAll(ndiscore.DropLoop)
		return
	}
	s := b.enter(w, v)
	r := &v.rules[in.id]
	t := v.fdb
	handle, promiscuous := b.upward()
	var up *ndiscore.Batch // for those above
	now := t.now.Load()
	learning := in.up.Load()
	var flooded, copies, pruned uint64

	// Frames come in trains of the same two stations: remember the last ones.
	// Zero is no station.
	var lastSrc, lastDst uint64
	var lastPort uint16 // of lastDst
	var lastKnown bool  // lastDst is in the table
	var verdict ndiscore.DropReason

	// Where VLANs are not looked at, every frame is in VLAN 0 and stays as it is.
	var vlan uint16
	var space uint64 // the VLAN's part of a key
	var how tagging
	above := handle != nil // the frame's VLAN is that of those above

	for i, f := range batch.Frames {
		h := f.Head
		if len(h) < ndiscore.EthernetHeader {
			f.Drop(ndiscore.DropShort)
			continue
		}
		if v.vlan != 0 {
			was := vlan
			var drop ndiscore.DropReason
			if vlan, how, drop = r.classify(h); drop != ndiscore.DropNone {
				f.Drop(drop)
				continue
			}
			if vlan != was {
				space = keyOf(0, vlan)
				lastSrc, lastDst, lastKnown = 0, 0, false
			}
			above = handle != nil && vlan == v.vlan
		}
		src, dst := ndiscore.MACKey(h[6:]), ndiscore.MACKey(h)
		if src != lastSrc || src == 0 {
			lastSrc = src
			verdict = b.source(t, in, src|space, now, learning && dst>>4 != reservedPrefix)
		}
		if verdict != ndiscore.DropNone {
			f.Drop(verdict)
			switch {
			case verdict == ndiscore.DropMACLimit:
				in.refused.Add(1)
			case verdict == ndiscore.DropReflection && v.guard:
				b.returned(v, in, f, vlan)
			}
			continue
		}
		if dst&groupBit != 0 {
			if dst>>4 == reservedPrefix {
				f.Drop(ndiscore.DropReserved)
				lastSrc = 0 // it was not learned from this frame
				continue
			}
			kind := stormMulticast
			if dst == broadcastKey {
				kind = stormBroadcast
			}
			if q := r.storm[kind]; q != nil && !q.take() {
				if v.snoop && kind == stormMulticast {
					b.snoop.overhear(v, in, f, vlan, how)
				}
				f.Drop(ndiscore.DropStorm)
				continue
			}
			var n int
			if v.snoop {
				var only bool
				if n, only = b.group(v, s, in, f, i, vlan, how); only {
					pruned++
				}
			} else {
				n = s.flood(v, in, f, i, vlan, how)
			}
			flooded++
			copies += uint64(n)
			if above {
				up = s.raise(up, f, i, how)
			} else if n == 0 {
				f.Drop(ndiscore.DropNoPort)
			}
			continue
		}
		if dst != lastDst {
			slot, port := t.find(dst | space)
			lastDst, lastPort = dst, port
			lastKnown = slot != noSlot && (port == localPort || int(port) < len(v.byID) && v.byID[port] != nil)
		}
		switch {
		case lastKnown && lastPort == localPort:
			if handle == nil {
				f.Drop(ndiscore.DropNoReceiver)
				continue
			}
			up = s.raise(up, f, i, how)
			continue
		case lastKnown && lastPort == in.id:
			if !promiscuous || !above {
				f.Drop(ndiscore.DropSamePort)
				continue
			}
		case lastKnown:
			g := f
			if v.strict {
				var drop ndiscore.DropReason
				if g, drop = s.exit(v, lastPort, f, i, vlan, how); drop != ndiscore.DropNone {
					f.Drop(drop)
					continue
				}
			}
			f.Forward()
			if q := s.out[lastPort]; q != nil { // the common half of add, without its call
				q.Append(g)
			} else {
				s.add(lastPort, g)
			}
		default:
			if q := r.storm[stormUnknown]; q != nil && !q.take() {
				f.Drop(ndiscore.DropStorm)
				continue
			}
			n := s.flood(v, in, f, i, vlan, how)
			flooded++
			copies += uint64(n)
			if n == 0 && !(promiscuous && above) {
				f.Drop(ndiscore.DropNoPort)
				continue
			}
		}
		if promiscuous && above {
			up = s.raise(up, f, i, how)
		}
	}
	for _, id := range s.dirty {
		q := s.out[id]
		s.out[id] = nil
		v.byID[id].binding.Send(q)
		w.Done(q)
	}
	if up != nil {
		(*handle).IndicateReceive(up)
		w.Done(up)
	}
	b.count(w, flooded, copies, pruned)
	s.leave()
}

// source checks a frame's source address, whose key in its VLAN is key, and
// learns it.
func (b *Bridge) source(t *fdb, in *port, key uint64, now uint32, learning bool) ndiscore.DropReason {
	src := key & macMask
	if src == 0 || src&groupBit != 0 {
		return ndiscore.DropBadSource
	}
	slot, port := t.find(key)
	switch {
	case slot != noSlot && port == in.id:
		if learning {
			t.seen(slot, now)
		}
	case src == b.own:
		return ndiscore.DropReflection
	case learning && !t.learn(key, in, now):
		return ndiscore.DropMACLimit
	}
	return ndiscore.DropNone
}

// flood puts f, the i-th frame of its batch, into the batches of all ports that
// are up and in its VLAN, but not of in (nil: of none), and returns their number.
func (s *scratch) flood(v *view, in *port, f *ndiscore.Frame, i int, vlan uint16, how tagging) (copies int) {
	if v.vlan != 0 {
		return s.floodVLAN(v, in, f, i, vlan, how)
	}
	for _, p := range v.flood {
		if p == in {
			continue
		}
		if q := s.out[p.id]; q != nil { // as in forward
			q.Append(f)
		} else {
			s.add(p.id, f)
		}
		copies++
	}
	if copies > 0 {
		f.Forward()
	}
	return copies
}

func (s *scratch) floodVLAN(v *view, in *port, f *ndiscore.Frame, i int, vlan uint16, how tagging) (copies int) {
	for _, p := range v.flood {
		if p == in {
			continue
		}
		if g := s.dress(&v.rules[p.id], f, i, vlan, how); g != nil {
			s.add(p.id, g)
			copies++
		}
	}
	if copies > 0 {
		f.Forward()
	}
	return copies
}

// group passes a group frame on: to those who listen, where that is known, else
// to everybody.
func (b *Bridge) group(v *view, s *scratch, in *port, f *ndiscore.Frame, i int, vlan uint16, how tagging) (copies int, pruned bool) {
	to, known := b.snoop.listeners(v, in, f, vlan, how)
	if !known {
		return s.flood(v, in, f, i, vlan, how), false
	}
	for _, id := range to {
		if int(id) >= len(v.byID) {
			continue
		}
		p := v.byID[id]
		if p == nil || p == in || !p.up.Load() {
			continue
		}
		g := f
		if v.vlan != 0 {
			if g = s.dress(&v.rules[id], f, i, vlan, how); g == nil {
				continue
			}
		}
		s.add(id, g)
		copies++
	}
	if copies > 0 {
		f.Forward()
	}
	return copies, true
}

// raise puts f, the i-th frame of its batch, into the batch for those above,
// who see no tags. What becomes there of a frame that had one is counted there;
// here it was delivered.
func (s *scratch) raise(up *ndiscore.Batch, f *ndiscore.Frame, i int, how tagging) *ndiscore.Batch {
	if up == nil {
		up = s.worker.Scratch()
	}
	g := s.strip(f, i, how)
	if g != f {
		f.Deliver()
	}
	up.Append(g)
	return up
}

// Send implements ndiscore.Adapter: those above send through the bridge.
// Sources are theirs and not learned.
func (b *Bridge) Send(batch *ndiscore.Batch) {
	w := batch.Worker
	v := b.view.Load()
	s := b.enter(w, v)
	var flooded, copies, pruned uint64
	var how tagging
	for i, f := range batch.Frames {
		batch.Status[i] = ndiscore.DropNoPort
		if len(f.Head) < ndiscore.EthernetHeader {
			batch.Status[i] = ndiscore.DropShort
			continue
		}
		if v.vlan != 0 {
			var drop ndiscore.DropReason
			if _, how, drop = v.above.classify(f.Head); drop != ndiscore.DropNone {
				batch.Status[i] = drop
				continue
			}
		}
		dst := ndiscore.MACKey(f.Head)
		if dst&groupBit != 0 && v.snoop {
			n, only := b.group(v, s, nil, f, i, v.vlan, how)
			flooded++
			copies += uint64(n)
			if only {
				pruned++
			}
			continue
		}
		slot, port := noSlot, uint16(0)
		if dst&groupBit == 0 {
			slot, port = v.fdb.find(keyOf(dst, v.vlan))
		}
		switch {
		case slot != noSlot && port == localPort:
			batch.Status[i] = ndiscore.DropSamePort
		case slot != noSlot && int(port) < len(v.byID) && v.byID[port] != nil:
			g, drop := s.exit(v, port, f, i, v.vlan, how)
			if drop != ndiscore.DropNone {
				batch.Status[i] = drop
				continue
			}
			s.add(port, g)
		default:
			flooded++
			copies += uint64(s.flood(v, nil, f, i, v.vlan, how))
		}
	}
	var taken [ndiscore.BatchFrames]bool
	for _, id := range s.dirty {
		q := s.out[id]
		s.out[id] = nil
		s.sent = append(s.sent[:0], q.Frames...)
		v.byID[id].binding.Send(q)
		s.collect(batch, q, &taken)
		w.Done(q)
	}
	b.count(w, flooded, copies, pruned)
	s.leave()
	if !batch.Borrowed {
		(*b.handle.Load()).SendComplete(batch)
	}
}

// exit returns f, the i-th frame of its batch, in the form in which it leaves by
// the one port id, or why it does not.
func (s *scratch) exit(v *view, id uint16, f *ndiscore.Frame, i int, vlan uint16, how tagging) (*ndiscore.Frame, ndiscore.DropReason) {
	r := &v.rules[id]
	if r.shut {
		return nil, ndiscore.DropLoop
	}
	if v.vlan != 0 {
		if f = s.dress(r, f, i, vlan, how); f == nil {
			return nil, ndiscore.DropVLAN
		}
	}
	return f, ndiscore.DropNone
}

// collect notes in batch what became of the frames q that one port was given,
// which were s.sent. A flooded frame is sent when one port took it. A filter on
// the port may have taken frames out of q, keeping the order of the rest: they
// went on from here, and are counted there.
func (s *scratch) collect(batch, q *ndiscore.Batch, taken *[ndiscore.BatchFrames]bool) {
	k, i := 0, 0
	for _, g := range s.sent {
		for !s.same(g, batch.Frames[i], i) {
			i++
		}
		r := ndiscore.DropNone
		if k < len(q.Frames) && q.Frames[k] == g {
			r = q.Status[k]
			k++
		}
		switch {
		case r == ndiscore.DropNone:
			taken[i] = true
			batch.Status[i] = ndiscore.DropNone
		case !taken[i]:
			batch.Status[i] = r
		}
	}
}

// same reports whether g is f, the i-th frame of its batch, in any form.
func (s *scratch) same(g, f *ndiscore.Frame, i int) bool {
	return g == f || s.withTag != nil && g == &s.withTag.frames[i] || s.noTag != nil && g == &s.noTag.frames[i]
}
