package tap

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// receiver is the receive queue. It belongs to the receive goroutine.
type receiver struct {
	a      *adapter
	h      ndiscore.AdapterHandle
	fd     int
	pool   *netdev.Slabs
	slab   *netdev.Slab // nil while asleep
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
	frames [ndiscore.BatchFrames]ndiscore.Frame
}

var _ netdev.Source = (*receiver)(nil)

// Receive implements netdev.Source. The slab is free again when the core has
// returned: what is indicated is borrowed.
func (r *receiver) Receive() (taken int, err error) {
	if r.slab == nil {
		r.slab = r.pool.Get()
	}
	r.slab.Reset()
	b := r.batch
	b.Reset()
	for taken < ndiscore.BatchFrames {
		in := r.slab.Space()
		if in == nil {
			break
		}
		got, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(r.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			if errno != unix.EAGAIN {
				err = r.a.failed(errno, "read")
			}
			break
		}
		taken++
		f := &r.frames[len(b.Frames)]
		why := r.slab.Frame(f, int(got))
		if why == ndiscore.DropNone {
			why = f.CheckOffload()
		}
		if why != ndiscore.DropNone {
			r.h.Dropped(r.worker, why, 1)
			continue
		}
		r.slab.Take(int(got))
		b.Append(f)
	}
	if len(b.Frames) > 0 {
		r.h.IndicateReceive(b)
	}
	return taken, err
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
		r.pool.Put(r.slab)
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

// use sends through fd from now on; with -1 every send fails.
func (t *transmitter) use(fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fd = fd
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
