package bridge

import (
	"sync/atomic"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	groupBit = 1 << 40 // of an address as a key: the I/G bit of its first byte
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
	index  [][]uint8         // by port id, for Send: where its frames stand in the batch sent
	dirty  []uint16          // ports with something in out, in order of first use
	busy   bool
	next   *scratch

	// Only the worker adds, so the atomics never contend.
	flooded, copies atomic.Uint64
}

func (b *Bridge) enter(w *ndiscore.Worker) *scratch {
	s := b.scratch[w.ID()].Load()
	if s == nil {
		s = b.newScratch()
		b.scratch[w.ID()].Store(s)
	}
	for s.busy {
		if s.next == nil {
			s.next = b.newScratch()
		}
		s = s.next
	}
	s.busy, s.worker = true, w
	return s
}

func (b *Bridge) newScratch() *scratch {
	n := len(b.opts.Ports)
	s := &scratch{out: make([]*ndiscore.Batch, n), index: make([][]uint8, n), dirty: make([]uint16, 0, n)}
	for i := range s.index {
		s.index[i] = make([]uint8, 0, ndiscore.BatchFrames)
	}
	return s
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
func (b *Bridge) count(w *ndiscore.Worker, flooded, copies uint64) {
	if flooded == 0 {
		return
	}
	c := b.scratch[w.ID()].Load()
	c.flooded.Add(flooded)
	c.copies.Add(copies)
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
	s := b.enter(w)
	v := b.view.Load()
	handle, promiscuous := b.upward()
	var up *ndiscore.Batch // for those above
	now := b.fdb.now.Load()
	learning := in.up.Load()
	var flooded, copies uint64

	// Frames come in trains of the same two stations: remember the last ones.
	// Zero is no station.
	var lastSrc, lastDst uint64
	var lastPort uint16 // of lastDst
	var lastKnown bool  // lastDst is in the table
	var verdict ndiscore.DropReason

	for _, f := range batch.Frames {
		h := f.Head
		if len(h) < ndiscore.EthernetHeader {
			f.Drop(ndiscore.DropShort)
			continue
		}
		src, dst := ndiscore.MACKey(h[6:]), ndiscore.MACKey(h)
		if src != lastSrc || src == 0 {
			lastSrc = src
			verdict = b.source(in, src, now, learning && dst>>4 != reservedPrefix)
		}
		if verdict != ndiscore.DropNone {
			f.Drop(verdict)
			continue
		}
		if dst&groupBit != 0 {
			if dst>>4 == reservedPrefix {
				f.Drop(ndiscore.DropReserved)
				lastSrc = 0 // it was not learned from this frame
				continue
			}
			n := s.flood(v, in, f)
			flooded++
			copies += uint64(n)
			if handle != nil {
				up = s.raise(up, f)
			} else if n == 0 {
				f.Drop(ndiscore.DropNoPort)
			}
			continue
		}
		if dst != lastDst {
			slot, port := b.fdb.find(dst)
			lastDst, lastPort, lastKnown = dst, port, slot != noSlot && (port == localPort || v.byID[port] != nil)
		}
		switch {
		case lastKnown && lastPort == localPort:
			if handle == nil {
				f.Drop(ndiscore.DropNoReceiver)
				continue
			}
			up = s.raise(up, f)
			continue
		case lastKnown && lastPort == in.id:
			if !promiscuous || handle == nil {
				f.Drop(ndiscore.DropSamePort)
				continue
			}
		case lastKnown:
			f.Forward()
			s.add(lastPort, f)
		default:
			n := s.flood(v, in, f)
			flooded++
			copies += uint64(n)
			if n == 0 && !(promiscuous && handle != nil) {
				f.Drop(ndiscore.DropNoPort)
				continue
			}
		}
		if promiscuous && handle != nil {
			up = s.raise(up, f)
		}
	}
	for _, id := range s.dirty {
		q := s.out[id]
		s.out[id] = nil
		v.byID[id].binding.Send(q)
		w.Done(q)
	}
	s.dirty = s.dirty[:0]
	if up != nil {
		(*handle).IndicateReceive(up)
		w.Done(up)
	}
	b.count(w, flooded, copies)
	s.busy = false
}

// source checks a frame's source address and learns it.
func (b *Bridge) source(in *port, src uint64, now uint32, learning bool) ndiscore.DropReason {
	if src == 0 || src&groupBit != 0 {
		return ndiscore.DropBadSource
	}
	slot, port := b.fdb.find(src)
	switch {
	case slot == noSlot:
		if learning {
			b.fdb.learn(src, in, now)
		}
	case port == localPort:
		return ndiscore.DropReflection
	case !learning:
	case port == in.id:
		b.fdb.seen(slot, now)
	default:
		b.fdb.learn(src, in, now)
	}
	return ndiscore.DropNone
}

// flood puts f into the batches of all ports that are up, but not of in (nil:
// of none), and returns their number.
func (s *scratch) flood(v *view, in *port, f *ndiscore.Frame) (n int) {
	for _, p := range v.flood {
		if p == in {
			continue
		}
		s.add(p.id, f)
		n++
	}
	if n > 0 {
		f.Forward()
	}
	return n
}

// raise puts f into the batch for those above.
func (s *scratch) raise(up *ndiscore.Batch, f *ndiscore.Frame) *ndiscore.Batch {
	if up == nil {
		up = s.worker.Scratch()
	}
	up.Append(f)
	return up
}

// Send implements ndiscore.Adapter: those above send through the bridge.
// Sources are theirs and not learned.
func (b *Bridge) Send(batch *ndiscore.Batch) {
	w := batch.Worker
	s := b.enter(w)
	v := b.view.Load()
	var flooded, copies uint64
	var taken [ndiscore.BatchFrames]bool
	for i, f := range batch.Frames {
		batch.Status[i] = ndiscore.DropNoPort
		if len(f.Head) < ndiscore.EthernetHeader {
			batch.Status[i] = ndiscore.DropShort
			continue
		}
		dst := ndiscore.MACKey(f.Head)
		if dst&groupBit == 0 {
			slot, port := b.fdb.find(dst)
			if slot != noSlot && port == localPort {
				batch.Status[i] = ndiscore.DropSamePort
				continue
			}
			if slot != noSlot && v.byID[port] != nil {
				s.add(port, f)
				s.index[port] = append(s.index[port], uint8(i))
				continue
			}
		}
		flooded++
		for _, p := range v.flood {
			s.add(p.id, f)
			s.index[p.id] = append(s.index[p.id], uint8(i))
			copies++
		}
	}
	for _, id := range s.dirty {
		q, index := s.out[id], s.index[id]
		s.out[id] = nil
		v.byID[id].binding.Send(q)
		b.collect(batch, q, index, &taken)
		s.index[id] = index[:0]
		w.Done(q)
	}
	s.dirty = s.dirty[:0]
	b.count(w, flooded, copies)
	s.busy = false
	if !batch.Borrowed {
		(*b.handle.Load()).SendComplete(batch)
	}
}

// collect notes in batch what became of the frames q that one port was given.
// A flooded frame is sent when one port took it. A filter on the port may have
// taken frames out of q, keeping the order of the rest: they went on from
// here, and are counted there.
func (b *Bridge) collect(batch, q *ndiscore.Batch, index []uint8, taken *[ndiscore.BatchFrames]bool) {
	k := 0
	for _, i := range index {
		r := ndiscore.DropNone
		if k < len(q.Frames) && q.Frames[k] == batch.Frames[i] {
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
