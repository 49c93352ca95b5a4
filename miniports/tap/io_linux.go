package tap

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// receiver is one receive queue. It belongs to its receive goroutine.
type receiver struct {
	a      *adapter
	h      ndiscore.AdapterHandle
	fd     int
	pool   *netdev.Slabs
	slab   *netdev.Slab // nil while asleep
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
	frames [ndiscore.BatchFrames]ndiscore.Frame
	taken  atomic.Uint64 // frames, for people
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
		r.taken.Add(uint64(len(b.Frames)))
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

// discard throws away what waits in the queue behind fd and returns how many
// frames it was. Nobody else may be reading.
func discard(fd int) (n uint64) {
	var b [64]byte // the kernel cuts off the rest
	for {
		_, err := unix.Read(fd, b[:])
		switch err {
		case nil:
			n++
		case unix.EINTR:
		default:
			return n
		}
	}
}

// maxVectors is UIO_MAXIOV, the most pieces that one frame may have.
const maxVectors = 1024

// transmitter is one send queue. Its lock is a leaf, held for the system calls
// of one batch.
type transmitter struct {
	mu      sync.Mutex // guards all but progress
	fd      int
	shut    ndiscore.DropReason // why it sends nothing; DropNone while it does
	header  [netdev.VnetHeader]byte
	vectors [maxVectors]unix.Iovec

	progress netdev.Progress
}

// use sends through fd from now on.
func (t *transmitter) use(fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fd, t.shut = fd, ndiscore.DropNone
}

// close sends nothing more from its return on: every frame is refused for
// reason why.
func (t *transmitter) close(why ndiscore.DropReason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fd, t.shut = -1, why
}

// send transmits b, fills b.Status and returns the last error that concerns
// more than one frame: EIO or EBADFD.
func (t *transmitter) send(b *ndiscore.Batch) (trouble unix.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut != ndiscore.DropNone {
		for i := range b.Frames {
			b.Status[i] = t.shut
		}
		return 0
	}
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
	t.progress.Add(b)
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
