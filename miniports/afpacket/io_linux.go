package afpacket

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// receiver is one receive queue: it walks the ring and lends the frames in it
// to the core. A frame that is too long for a slot leaves only its beginning
// there and waits whole in the socket's buffer (PACKET_COPY_THRESH), in the
// same order; it is read into a slab. It belongs to its receive goroutine.
type receiver struct {
	a      *adapter
	h      ndiscore.AdapterHandle
	sock   *socket
	pool   *netdev.Slabs
	slab   *netdev.Slab // nil until a long frame comes, and while asleep
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
	frames [ndiscore.BatchFrames]ndiscore.Frame
	next   int  // the slot that the kernel fills next
	losing bool // the kernel said that it had to drop frames

	taken   atomic.Uint64 // frames passed up, for people
	dropped atomic.Uint64 // frames that found the ring full
}

var _ netdev.Source = (*receiver)(nil)

// Receive implements netdev.Source. The slots are the kernel's again, and the
// slab is free, when the core has returned: what is indicated is borrowed.
func (r *receiver) Receive() (int, error) {
	b, slots := r.batch, r.sock.slots
	b.Reset()
	if r.slab != nil {
		r.slab.Reset()
	}
	first, taken := r.next, 0
	for taken < ndiscore.BatchFrames {
		slot := slots[r.next]
		h := header(slot)
		status := atomic.LoadUint32(&h.Status)
		if status&unix.TP_STATUS_USER == 0 {
			break
		}
		f := &r.frames[taken]
		var why ndiscore.DropReason
		if status&unix.TP_STATUS_COPY == 0 {
			why = inSlot(f, slot, h)
		} else {
			if !r.room() {
				break // in the next batch
			}
			why = r.inSocket(f)
		}
		if why == ndiscore.DropNone {
			restoreTag(f, h, status)
			why = f.CheckOffload()
		}
		if why == ndiscore.DropNone {
			b.Append(f)
		} else {
			r.h.Dropped(r.worker, why, 1)
		}
		r.losing = r.losing || status&unix.TP_STATUS_LOSING != 0
		taken++
		if r.next++; r.next == len(slots) {
			r.next = 0
		}
	}
	if len(b.Frames) > 0 {
		r.taken.Add(uint64(len(b.Frames)))
		r.h.IndicateReceive(b)
	}
	for i, n := first, taken; n > 0; n-- {
		atomic.StoreUint32(&header(slots[i]).Status, unix.TP_STATUS_KERNEL)
		if i++; i == len(slots) {
			i = 0
		}
	}
	return taken, nil
}

// use receives from s from now on. Nobody may be receiving.
func (r *receiver) use(s *socket) { r.sock, r.next, r.losing = s, 0, false }

// discard throws away what waits in the ring and returns how many frames it was.
// Nobody may be receiving.
func (r *receiver) discard() (n uint64) {
	var b [64]byte // the kernel cuts off the rest
	for range r.sock.slots {
		h := header(r.sock.slots[r.next])
		status := atomic.LoadUint32(&h.Status)
		if status&unix.TP_STATUS_USER == 0 {
			break
		}
		if status&unix.TP_STATUS_COPY != 0 { // the whole frame is in the socket's buffer
			_, _, _ = unix.Recvfrom(r.sock.fd, b[:], unix.MSG_DONTWAIT)
		}
		atomic.StoreUint32(&h.Status, unix.TP_STATUS_KERNEL)
		n++
		if r.next++; r.next == len(r.sock.slots) {
			r.next = 0
		}
	}
	return n
}

// takeDropped moves the kernel's counter into ours and returns the difference.
func (r *receiver) takeDropped() uint64 {
	n := r.sock.dropped()
	r.dropped.Add(n)
	return n
}

// inSlot makes f the frame in slot.
func inSlot(f *ndiscore.Frame, slot []byte, h *unix.Tpacket2Hdr) ndiscore.DropReason {
	at, n := int(h.Mac), int(h.Snaplen)
	switch {
	case h.Snaplen < h.Len && h.Len > ndiscore.MaxFrame:
		return ndiscore.DropOversize
	case h.Snaplen < h.Len: // the rest found the socket's buffer full
		return ndiscore.DropKernelFull
	case at < slotHeader+netdev.VnetHeader || at+n > len(slot): // not by this kernel; it makes what follows safe
		return ndiscore.DropDeviceError
	}
	f.Reset(slot[slotHeader:], at-slotHeader, n)
	return netdev.DecodeVnet(slot[at-netdev.VnetHeader:at], n, &f.Offload)
}

// room makes sure of space for a long frame and reports whether there is any.
func (r *receiver) room() bool {
	if r.slab == nil {
		r.slab = r.pool.Get()
		r.slab.Reset()
	}
	return r.slab.Space() != nil
}

// inSocket makes f the next frame in the socket's buffer.
func (r *receiver) inSocket(f *ndiscore.Frame) ndiscore.DropReason {
	in := r.slab.Space()
	for range 3 {
		got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(r.sock.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)), unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 { // EINTR, or an error of the socket, which has now been told: ENETDOWN
			continue
		}
		why := r.slab.Frame(f, int(got))
		if why == ndiscore.DropNone {
			r.slab.Take(int(got))
		}
		return why
	}
	return ndiscore.DropDeviceError
}

// restoreTag puts back the outer VLAN tag, which the kernel has moved out of the
// frame into the slot's header. The room for it is the frame's headroom.
func restoreTag(f *ndiscore.Frame, h *unix.Tpacket2Hdr, status uint32) {
	const addresses = 12
	if status&unix.TP_STATUS_VLAN_VALID == 0 || len(f.Head) < ndiscore.EthernetHeader || !f.Retreat(4) {
		return
	}
	tpid := uint16(unix.ETH_P_8021Q)
	if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = h.Vlan_tpid
	}
	copy(f.Head[:addresses], f.Head[4:])
	binary.BigEndian.PutUint16(f.Head[addresses:], tpid)
	binary.BigEndian.PutUint16(f.Head[addresses+2:], h.Vlan_tci)
}

// Fault implements netdev.Source. ENETDOWN comes here as early as by netlink,
// sometimes earlier, and says nothing about being gone: only the watcher does.
func (r *receiver) Fault() error {
	mark := r.a.link.Seen()
	switch err := r.sock.takeError(); err {
	case nil:
	case unix.ENETDOWN, unix.ENXIO:
		if !r.a.up() {
			r.a.link.Refused(mark, "ENETDOWN on receive")
		}
	}
	return nil
}

// Sleep implements netdev.Source: with the burst over there is time to count
// what did not fit into the ring.
func (r *receiver) Sleep() {
	if r.slab != nil {
		r.pool.Put(r.slab)
		r.slab = nil
	}
	if r.losing {
		r.losing = false
		if n := r.takeDropped(); n > 0 {
			r.h.Dropped(r.worker, ndiscore.DropKernelFull, n)
		}
	}
}

// Limits of one sendmmsg.
const (
	// sendVectors is also UIO_MAXIOV, the most pieces that one frame may have.
	sendVectors = 1024
	minFrame    = 60 // Ethernet without its checksum
)

// transmitter is one send queue. Its lock is a leaf, held for the system calls
// of one batch.
type transmitter struct {
	mu      sync.Mutex // guards all but progress
	fd      int
	shut    ndiscore.DropReason // why it sends nothing; DropNone while it does
	msgs    [ndiscore.BatchFrames]unix.Mmsghdr
	which   [ndiscore.BatchFrames]uint8 // index in the batch of each message
	headers [ndiscore.BatchFrames][netdev.VnetHeader]byte
	vectors [sendVectors]unix.Iovec
	padding [minFrame]byte

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

// sendResult is what a batch met with that concerns more than its frames.
type sendResult struct {
	down unix.Errno // the link refused: ENETDOWN or ENXIO
}

// send transmits b and fills b.Status.
func (t *transmitter) send(b *ndiscore.Batch) (res sendResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut != ndiscore.DropNone {
		for i := range b.Frames {
			b.Status[i] = t.shut
		}
		return res
	}
	msgs, vectors := 0, 0
	for i, f := range b.Frames {
		b.Status[i] = ndiscore.DropNone
		need := 3 + len(f.Segs) // header, head, segments, padding
		if need > sendVectors {
			b.Status[i] = ndiscore.DropTooBig
			continue
		}
		if vectors+need > sendVectors {
			t.flush(b, msgs, &res)
			clear(t.vectors[:vectors])
			msgs, vectors = 0, 0
		}
		vectors += t.add(f, msgs, i, t.vectors[vectors:])
		msgs++
	}
	t.flush(b, msgs, &res)
	clear(t.vectors[:vectors]) // let go of others' memory
	t.progress.Add(b)
	return res
}

// add makes f message number m and returns how many of the vectors it took.
func (t *transmitter) add(f *ndiscore.Frame, m, index int, v []unix.Iovec) int {
	n := f.Len()
	hdr := t.headers[m][:]
	netdev.EncodeVnet(hdr, n, &f.Offload)
	v[0].Base = &hdr[0]
	v[0].SetLen(len(hdr))
	used := 1
	if len(f.Head) > 0 {
		v[used].Base = unsafe.SliceData(f.Head)
		v[used].SetLen(len(f.Head))
		used++
	}
	for _, s := range f.Segs {
		if len(s) > 0 {
			v[used].Base = unsafe.SliceData(s)
			v[used].SetLen(len(s))
			used++
		}
	}
	if n < minFrame { // D-3; what the kernel would send is shorter than the wire allows
		v[used].Base = &t.padding[0]
		v[used].SetLen(minFrame - n)
		used++
	}
	t.which[m] = uint8(index)
	msg := &t.msgs[m].Hdr
	msg.Iov = &v[0]
	msg.SetIovlen(used)
	return used
}

// flush sends the first n messages. The kernel stops at one that it refuses and
// tells why only when that one is the first: go on behind it.
func (t *transmitter) flush(b *ndiscore.Batch, n int, res *sendResult) {
	again := false
	for at := 0; at < n; {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(t.fd), uintptr(unsafe.Pointer(&t.msgs[at])),
			uintptr(n-at), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			at += int(sent)
			continue
		}
		why, rest := ndiscore.DropDeviceError, false
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN: // the socket's buffer is full and will not be emptied by trying again now
			why, rest = ndiscore.DropTxQueueFull, true
		case unix.ENOBUFS: // the interface's queue refused this one
			why = ndiscore.DropTxQueueFull
		case unix.ENETDOWN, unix.ENXIO:
			if !again { // it may be the socket's memory of an earlier time, forgotten by being told
				again = true
				continue
			}
			why, rest = ndiscore.DropLinkDown, true
			res.down = errno
		case unix.EMSGSIZE:
			why = ndiscore.DropTooBig
		}
		end := at + 1
		if rest {
			end = n
		}
		for ; at < end; at++ {
			b.Status[t.which[at]] = why
		}
	}
}
