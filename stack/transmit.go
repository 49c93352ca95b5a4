package stack

import (
	"fmt"
	"sync/atomic"

	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// headBytes is how much of a packet is copied into a frame's head: all headers,
// and small packets whole.
const headBytes = ndiscore.EthernetHeader + maxHeaders

// sendBytes is how much may wait in one sender.
const sendBytes = 256 << 10

// sender is what a goroutine needs to transmit: a worker that stands for it
// inside the core, and the memory of a batch of frames.
type sender struct {
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
	bytes  int
	used   int // of frames, when NAT has taken some out of the batch
	why    [ndiscore.BatchFrames]ndiscore.DropReason
	frames [ndiscore.BatchFrames]ndiscore.Frame
	held   [ndiscore.BatchFrames]*netstack.PacketBuffer
	room   [ndiscore.BatchFrames][ndiscore.Headroom + headBytes]byte
}

// senders is a bounded pool of senders. netstack may transmit on goroutines of its
// own too (the workers of its TCP), and so do announcements, and nothing proves to
// WritePackets which one it runs on; but nearly always it is the feeder, one at
// a time, and finds the sender that it used last in hot.
type senders struct {
	hot   atomic.Pointer[sender]
	rest  chan *sender
	all   []*sender
	empty atomic.Uint64 // how often there was none
}

func (s *senders) init(n int, newWorker func(name string) (*ndiscore.Worker, error)) error {
	s.rest = make(chan *sender, n)
	for i := range n {
		w, err := newWorker(fmt.Sprintf("stack-send%d", i))
		if err != nil {
			s.close()
			s.all = nil
			return err
		}
		t := &sender{worker: w}
		t.batch = ndiscore.NewBatch(t.worker)
		t.batch.Borrowed = true
		s.all = append(s.all, t)
		s.rest <- t
	}
	return nil
}

// close ends the workers, once nobody sends any more.
func (s *senders) close() {
	for _, t := range s.all {
		t.worker.Close()
	}
}

// get never blocks; nil when all are in use.
func (s *senders) get() *sender {
	if t := s.hot.Swap(nil); t != nil {
		return t
	}
	select {
	case t := <-s.rest:
		return t
	default:
		s.empty.Add(1)
		return nil
	}
}

func (s *senders) put(t *sender) {
	if !s.hot.CompareAndSwap(nil, t) {
		s.rest <- t // has room for all of them
	}
}

// add makes a frame of pkt, whose link header is set, in the sender's batch. The
// payload stays where it is: the packet must outlive the batch. There must be
// room.
func (t *sender) add(pkt *netstack.PacketBuffer) *ndiscore.Frame {
	i := len(t.batch.Frames)
	f := &t.frames[i]
	size := pkt.Size()
	f.Reset(t.room[i][:], ndiscore.Headroom, min(size, headBytes))
	head := f.Head
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		if len(head) > 0 {
			n := copy(head, b)
			head, b = head[n:], b[n:]
		}
		if len(b) > 0 {
			f.Segs = append(f.Segs, b)
		}
	}
	t.batch.Append(f)
	t.bytes += size
	return f
}

// full reports whether the batch should go.
func (t *sender) full() bool { return t.batch.Full() || t.bytes >= sendBytes }

// flush sends the batch out of p, or gives it up if p is closed, and releases
// the packets that were held for it. It returns how many frames were sent, and
// how many of those the device refused.
func (t *sender) flush(p *port) (sent, refused int) {
	if len(t.batch.Frames) > 0 && p.gate.enter() {
		t.batch.Worker = t.worker
		p.wire.Send(t.batch)
		p.gate.leave()
		sent = len(t.batch.Frames)
		for i := range t.batch.Frames {
			if t.batch.Status[i] != ndiscore.DropNone {
				refused++
			}
		}
	}
	t.reset()
	return sent, refused
}

func (t *sender) reset() {
	for i := range max(t.used, len(t.batch.Frames)) {
		f := &t.frames[i]
		clear(f.Segs) // they point into packets that others use next
		f.Segs = f.Segs[:0]
		if t.held[i] != nil {
			t.held[i].DecRef()
			t.held[i] = nil
		}
	}
	t.batch.Reset()
	t.bytes, t.used = 0, 0
}
