package tap

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// A slab takes one batch: frames are read into it one behind the other, so
// small ones stay close together in the CPU's cache and super-frames take as
// much as they need. Its length bounds a batch in bytes.
const (
	slabBytes = netdev.BatchBytes
	// slabStart is where the first frame's room begins: 16 bytes alignment for
	// what follows room, header and link header.
	slabStart = 8
	roomBytes = ndiscore.Headroom + netdev.VnetHeader
	// readBytes shows by being filled that a frame was too long.
	readBytes = netdev.VnetHeader + ndiscore.MaxFrame + 1
)

// slab is pooled memory for one batch, shared by all adapters: a receive
// goroutine holds one only while it is awake.
type slab [slabBytes]byte

// slabPool keeps slabs until the next garbage collections.
type slabPool struct{ pool sync.Pool }

func (p *slabPool) get() *slab {
	if s, ok := p.pool.Get().(*slab); ok {
		return s
	}
	return new(slab)
}

func (p *slabPool) put(s *slab) { p.pool.Put(s) }

// receiver is the receive queue. It belongs to the receive goroutine.
type receiver struct {
	a      *adapter
	h      ndiscore.AdapterHandle
	fd     int
	pool   *slabPool
	slab   *slab // nil while asleep
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
	frames [ndiscore.BatchFrames]ndiscore.Frame
}

var _ netdev.Source = (*receiver)(nil)

// Receive implements netdev.Source. The slab is free again when the core has
// returned: what is indicated is borrowed.
func (r *receiver) Receive() (taken int, err error) {
	if r.slab == nil {
		r.slab = r.pool.get()
	}
	b, buf := r.batch, r.slab[:]
	b.Reset()
	for at := slabStart; taken < ndiscore.BatchFrames && at+ndiscore.Headroom+readBytes <= len(buf); {
		in := buf[at+ndiscore.Headroom:][:readBytes]
		got, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(r.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)))
		n := int(got)
		if errno != 0 {
			if errno == unix.EINTR {
				continue
			}
			if errno != unix.EAGAIN {
				err = r.a.failed(errno, "read")
			}
			break
		}
		taken++
		if why := r.frame(&r.frames[len(b.Frames)], buf[at:], n); why != ndiscore.DropNone {
			r.h.Dropped(r.worker, why, 1)
			continue // its place is free for the next one
		}
		b.Append(&r.frames[len(b.Frames)])
		at = (at+ndiscore.Headroom+n+15)&^15 + slabStart
	}
	if len(b.Frames) > 0 {
		r.h.IndicateReceive(b)
	}
	return taken, err
}

// frame makes f the frame of which n bytes, header included, were read behind
// the headroom at the start of room.
func (r *receiver) frame(f *ndiscore.Frame, room []byte, n int) ndiscore.DropReason {
	switch {
	case n == readBytes:
		return ndiscore.DropOversize
	case n < netdev.VnetHeader:
		return ndiscore.DropShort
	}
	n -= netdev.VnetHeader
	f.Reset(room, roomBytes, n)
	if why := netdev.DecodeVnet(room[ndiscore.Headroom:roomBytes], n, &f.Offload); why != ndiscore.DropNone {
		return why
	}
	return f.CheckOffload()
}

// Fault implements netdev.Source: the kernel raises EPOLLERR for a device that
// was deleted.
func (r *receiver) Fault() error {
	if r.a.dev.deleted() {
		return r.a.failed(unix.EBADFD, "poll")
	}
	return nil
}

// Sleep implements netdev.Source.
func (r *receiver) Sleep() {
	if r.slab != nil {
		r.pool.put(r.slab)
		r.slab = nil
	}
}

// maxVectors is UIO_MAXIOV, the most pieces that one frame may have.
const maxVectors = 1024

// transmitter is the send queue. Its lock is a leaf, held for the system calls
// of one batch.
type transmitter struct {
	mu      sync.Mutex
	fd      int
	header  [netdev.VnetHeader]byte
	vectors [maxVectors]unix.Iovec
}

// send transmits b, fills b.Status and returns the last error that concerns
// more than one frame: EIO or EBADFD.
func (t *transmitter) send(b *ndiscore.Batch) (trouble unix.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	most := 0
	for i, f := range b.Frames {
		b.Status[i] = ndiscore.DropNone
		if trouble != 0 {
			b.Status[i] = reason(trouble)
			continue
		}
		if 2+len(f.Segs) > maxVectors {
			b.Status[i] = ndiscore.DropTooBig
			continue
		}
		n := t.gather(f)
		most = max(most, n)
		errno := t.write(n)
		if errno == 0 {
			continue
		}
		b.Status[i] = reason(errno)
		if errno == unix.EIO || errno == unix.EBADFD {
			trouble = errno
		}
	}
	clear(t.vectors[:most]) // let go of others' memory
	return trouble
}

// gather points the vectors at f and returns how many it took.
func (t *transmitter) gather(f *ndiscore.Frame) int {
	netdev.EncodeVnet(t.header[:], f.Len(), &f.Offload)
	v := t.vectors[:]
	v[0].Base = &t.header[0]
	v[0].SetLen(len(t.header))
	n := 1
	if len(f.Head) > 0 {
		v[n].Base = unsafe.SliceData(f.Head)
		v[n].SetLen(len(f.Head))
		n++
	}
	for _, s := range f.Segs {
		if len(s) > 0 {
			v[n].Base = unsafe.SliceData(s)
			v[n].SetLen(len(s))
			n++
		}
	}
	return n
}

func (t *transmitter) write(vectors int) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(t.fd), uintptr(unsafe.Pointer(&t.vectors[0])), uintptr(vectors))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// reason is what a refused write means for its frame.
func reason(errno unix.Errno) ndiscore.DropReason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return ndiscore.DropTxQueueFull
	case unix.EIO: // the kernel's end is set down
		return ndiscore.DropLinkDown
	case unix.EBADFD: // the device was deleted
		return ndiscore.DropSurpriseRemoved
	case unix.EMSGSIZE:
		return ndiscore.DropTooBig
	}
	return ndiscore.DropDeviceError
}
