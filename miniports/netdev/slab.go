package netdev

import (
	"sync"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// A slab takes one batch: frames are read into it one behind the other, so
// small ones stay close together in the CPU's cache and super-frames take as
// much as they need. Its length bounds a batch in bytes, and with it the system
// calls that take one batch.
const (
	slabBytes = 512 << 10
	// slabFirst aligns what follows headroom, virtio_net_hdr and link header.
	slabFirst = 8
	roomBytes = ndiscore.Headroom + VnetHeader
	// readBytes shows by being filled that a frame was too long.
	readBytes = VnetHeader + ndiscore.MaxFrame + 1
)

// SlabBytes is the memory of a Slab, SlabRoom what a frame takes of it beside
// itself.
const (
	SlabBytes = slabBytes
	SlabRoom  = roomBytes
)

// Slab is pooled memory for one batch of frames, each read with its
// virtio_net_hdr.
type Slab struct {
	mem [slabBytes]byte
	at  int
}

// Slabs is a pool of slabs, shared by the adapters of a driver. A receive
// goroutine holds a slab only while it is awake. The zero value is ready.
type Slabs struct{ pool sync.Pool }

// Get lends a slab until Put.
func (p *Slabs) Get() *Slab {
	if s, ok := p.pool.Get().(*Slab); ok {
		return s
	}
	return new(Slab)
}

// Put takes a slab back.
func (p *Slabs) Put(s *Slab) { p.pool.Put(s) }

// Reset empties the slab for the next batch.
func (s *Slab) Reset() { s.at = slabFirst }

// Space is where the next frame is to be read to, virtio_net_hdr first; nil
// when the slab is full.
func (s *Slab) Space() []byte {
	from := s.at + ndiscore.Headroom
	if from+readBytes > len(s.mem) {
		return nil
	}
	return s.mem[from:][:readBytes:readBytes]
}

// Frame makes f the frame of which n bytes, virtio_net_hdr included, were read
// to Space. Take keeps it; otherwise the next one is read over it.
func (s *Slab) Frame(f *ndiscore.Frame, n int) ndiscore.DropReason {
	switch {
	case n == readBytes:
		return ndiscore.DropOversize
	case n < VnetHeader:
		return ndiscore.DropShort
	}
	room := s.mem[s.at:]
	n -= VnetHeader
	f.Reset(room, roomBytes, n)
	return DecodeVnet(room[ndiscore.Headroom:roomBytes], n, &f.Offload)
}

// Take keeps the frame of which n bytes were read until Reset.
func (s *Slab) Take(n int) { s.at = (s.at+ndiscore.Headroom+n+15)&^15 + slabFirst }
