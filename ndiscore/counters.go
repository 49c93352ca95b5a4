package ndiscore

import "sync/atomic"

// shard is one worker's share of an adapter's counters. Only that worker adds
// to it, so the atomics never contend; anybody may read.
type shard struct {
	rxFrames, rxBytes    atomic.Uint64
	forwarded, delivered atomic.Uint64
	held, released       atomic.Uint64 // by filters, to be passed on later; and passed on
	txFrames, txBytes    atomic.Uint64
	txSegments           atomic.Uint64
	rxDropped, txDropped [dropReasons]atomic.Uint64
}

// Counters is what an adapter has seen since it was added. Received frames end
// in exactly one of forwarded, delivered and dropped, so
// RxFrames = Forwarded + Delivered + RxHeld + the sum of RxDropped. RxHeld are
// those that a filter will pass on later; then they end in one of the others.
// Frames to be sent end in TxFrames or TxDropped; TxSegments of the TxFrames were
// made here, by cutting super-frames for a device that could not.
type Counters struct {
	RxFrames   uint64            `json:"rx_frames"`
	RxBytes    uint64            `json:"rx_bytes"`
	Forwarded  uint64            `json:"rx_forwarded"`
	Delivered  uint64            `json:"rx_delivered"`
	RxHeld     uint64            `json:"rx_held,omitempty"`
	RxDropped  map[string]uint64 `json:"rx_dropped,omitempty"`
	TxFrames   uint64            `json:"tx_frames"`
	TxBytes    uint64            `json:"tx_bytes"`
	TxSegments uint64            `json:"tx_segments"`
	TxDropped  map[string]uint64 `json:"tx_dropped,omitempty"`
	Device     map[string]uint64 `json:"device,omitempty"` // the device's own, see Statser
}

func (s *slot) shard(w *Worker) *shard {
	if c := s.shards[w.id].Load(); c != nil {
		return c
	}
	c := new(shard)
	if !s.shards[w.id].CompareAndSwap(nil, c) {
		c = s.shards[w.id].Load()
	}
	return c
}

func (s *slot) counters() Counters {
	c := Counters{RxDropped: map[string]uint64{}, TxDropped: map[string]uint64{}}
	var held, released uint64
	for i := range s.shards {
		h := s.shards[i].Load()
		if h == nil {
			continue
		}
		c.RxFrames += h.rxFrames.Load()
		c.RxBytes += h.rxBytes.Load()
		c.Forwarded += h.forwarded.Load()
		c.Delivered += h.delivered.Load()
		held += h.held.Load()
		released += h.released.Load()
		c.TxFrames += h.txFrames.Load()
		c.TxBytes += h.txBytes.Load()
		c.TxSegments += h.txSegments.Load()
		for r := range h.rxDropped {
			if n := h.rxDropped[r].Load(); n > 0 {
				c.RxDropped[DropReason(r).String()] += n
			}
			if n := h.txDropped[r].Load(); n > 0 {
				c.TxDropped[DropReason(r).String()] += n
			}
		}
	}
	c.RxHeld = held - min(held, released) // which were read one after the other
	if d, ok := optional[Statser](s.adapter); ok {
		c.Device = d.DeviceStats()
	}
	return c
}

// tallyReceive counts what became of received frames, and restores for whoever
// indicated them the fate that they already had below: a bridge indicates a
// frame up that it has also forwarded.
func (c *shard) tallyReceive(frames []*Frame, before *[BatchFrames]DropReason) {
	var forwarded, delivered uint64
	for i, f := range frames {
		switch f.fate {
		case fateForwarded:
			forwarded++
		case fateDelivered:
			delivered++
		case fateHeld:
			c.held.Add(1)
		case fateNone:
			f.fate = DropNoReceiver
			fallthrough
		default:
			c.rxDropped[f.fate].Add(1)
		}
		if before[i] > f.fate {
			f.fate = before[i]
		}
	}
	if forwarded > 0 {
		c.forwarded.Add(forwarded)
	}
	if delivered > 0 {
		c.delivered.Add(delivered)
	}
}

// tallySend counts what became of frames handed to an adapter.
func (c *shard) tallySend(b *Batch, segments uint64) {
	var frames, bytes uint64
	for i, f := range b.Frames {
		if r := b.Status[i]; r != DropNone {
			if r >= dropReasons {
				r = DropDeviceError
			}
			c.txDropped[r].Add(1)
			continue
		}
		frames++
		bytes += uint64(f.Len())
	}
	if frames > 0 {
		c.txFrames.Add(frames + segments)
		c.txBytes.Add(bytes)
	}
	if segments > 0 {
		c.txSegments.Add(segments)
	}
}
