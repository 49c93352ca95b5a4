package fault_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// passed is a frame that came out of the filter.
type passed struct {
	data    []byte
	offload ndiscore.Offload
	at      time.Time
	worker  *ndiscore.Worker
}

// handle is the core as the filter sees it, without a core.
type handle struct {
	core  *ndiscore.Core // for workers
	clock *ndistest.Clock
	// refuse is what Send says of every frame.
	refuse ndiscore.DropReason
	// look, if set, sees each frame as it passes.
	look func(fault.Direction, *ndiscore.Frame)

	mu      sync.Mutex
	out     [2][]passed // by direction
	dropped map[ndiscore.DropReason]uint64
}

func (h *handle) Name() string          { return "test" }
func (h *handle) Clock() ndiscore.Clock { return h.clock }

func (h *handle) NewWorker() (*ndiscore.Worker, error) { return h.core.NewWorker("test/delay") }
func (h *handle) Settle(*ndiscore.Batch, bool)         {}
func (h *handle) IndicateStatus(ndiscore.Status)       {}
func (h *handle) IndicateReceive(b *ndiscore.Batch)    { h.take(fault.RX, b) }
func (h *handle) Send(b *ndiscore.Batch)               { h.take(fault.TX, b) }
func (h *handle) take(d fault.Direction, b *ndiscore.Batch) {
	now := h.clock.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(b.Frames) == 0 || len(b.Frames) > ndiscore.BatchFrames {
		panic("a batch of a size that there is not")
	}
	for i, f := range b.Frames {
		if h.look != nil {
			h.look(d, f)
		}
		h.out[d-1] = append(h.out[d-1], passed{f.Bytes(nil), f.Offload, now, b.Worker})
		b.Status[i] = h.refuse
	}
}

func (h *handle) DropSend(_ *ndiscore.Worker, r ndiscore.DropReason, n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped[r] += n
}

// got returns what has come out, and forgets it.
func (h *handle) got(d fault.Direction) []passed {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.out[d-1]
	h.out[d-1] = nil
	return out
}

func (h *handle) count(d fault.Direction) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.out[d-1])
}

func (h *handle) drops(r ndiscore.DropReason) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dropped[r]
}

// unit is one filter on a handle.
type unit struct {
	t testing.TB
	*handle
	f *fault.Filter
	w *ndiscore.Worker
}

func newUnit(t testing.TB, specs ...[]string) *unit {
	t.Helper()
	f, err := fault.NewFilter(specs...)
	if err != nil {
		t.Fatal(err)
	}
	core := ndiscore.New(ndiscore.Options{})
	w, err := core.NewWorker("test")
	if err != nil {
		t.Fatal(err)
	}
	u := &unit{t, &handle{core: core, clock: ndistest.NewClock(), dropped: map[ndiscore.DropReason]uint64{}}, f, w}
	if err := f.Attach(context.Background(), u.handle); err != nil {
		t.Fatal(err)
	}
	if err := f.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Pause(context.Background())
		f.Detach(context.Background())
		w.Close()
	})
	return u
}

// pass sends frames through the filter as one batch, and returns their status.
func (u *unit) pass(d fault.Direction, frames ...*ndiscore.Frame) []ndiscore.DropReason {
	b := u.w.Scratch()
	for i, f := range frames {
		b.Append(f)
		b.Status[i] = ndiscore.DropKernelFull // stale
	}
	if d == fault.RX {
		u.f.FilterReceive(b)
	} else {
		u.f.FilterSend(b)
	}
	if !slices.Equal(b.Frames, frames) {
		u.t.Error("the list of frames was changed")
	}
	s := slices.Clone(b.Status[:len(frames)])
	u.w.Done(b)
	return s
}

// numbered makes n frames of the kit's, numbered from first.
func numbered(first, n int) []*ndiscore.Frame {
	var fs []*ndiscore.Frame
	for i := range n {
		fs = append(fs, frameOf(ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0, 0, 0, 0, 1}, uint32(first+i), 100)))
	}
	return fs
}

func frameOf(b []byte, segs ...[]byte) *ndiscore.Frame {
	f := new(ndiscore.Frame)
	f.Reset(append(make([]byte, ndiscore.Headroom), b...), ndiscore.Headroom, len(b))
	f.Segs = append(f.Segs, segs...)
	return f
}

// ids are the numbers of frames, in order.
func ids(ps []passed) []int {
	var ns []int
	for _, p := range ps {
		id, ok := ndistest.FrameID(p.data)
		if !ok {
			id = 1 << 31
		}
		ns = append(ns, int(id))
	}
	return ns
}

func upTo(n int) []int {
	ns := make([]int, n)
	for i := range ns {
		ns[i] = i
	}
	return ns
}

// packet is an IPv4 or IPv6 packet of TCP or UDP in an Ethernet frame, with
// every checksum right, or with the transport's left to the device.
func packet(v6, tcp, partial bool, payload int) []byte {
	l3, l4 := ndiscore.EthernetHeader, ndiscore.EthernetHeader+20
	if v6 {
		l4 = l3 + 40
	}
	end, proto := l4+8, 17
	if tcp {
		end, proto = l4+20, 6
	}
	b := make([]byte, end+payload)
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	be := binary.BigEndian
	var src, dst []byte
	if v6 {
		be.PutUint16(b[12:], ndiscore.EtherTypeIPv6)
		b[l3] = 0x60
		be.PutUint16(b[l3+4:], uint16(len(b)-l4))
		b[l3+6], b[l3+7] = byte(proto), 64
		src, dst = b[l3+8:l3+24], b[l3+24:l3+40]
		src[0], src[15], dst[0], dst[15] = 0xfd, 1, 0xfd, 2
	} else {
		be.PutUint16(b[12:], ndiscore.EtherTypeIPv4)
		b[l3] = 0x45
		be.PutUint16(b[l3+2:], uint16(len(b)-l3))
		be.PutUint16(b[l3+4:], 0x1234)
		b[l3+8], b[l3+9] = 64, byte(proto)
		src, dst = b[l3+12:l3+16], b[l3+16:l3+20]
		copy(src, []byte{10, 0, 0, 1})
		copy(dst, []byte{10, 0, 0, 2})
		be.PutUint16(b[l3+10:], ^ndiscore.Checksum(b[l3:l4], 0))
	}
	be.PutUint16(b[l4:], 4000)
	be.PutUint16(b[l4+2:], 4001)
	at := l4 + 6
	if tcp {
		be.PutUint32(b[l4+4:], 0x01020304)
		b[l4+12], b[l4+13] = 5<<4, 0x18|0x80|0x01 // PSH ACK CWR FIN
		at = l4 + 16
	} else {
		be.PutUint16(b[l4+4:], uint16(8+payload))
	}
	for i := end; i < len(b); i++ {
		b[i] = byte(i*31 + i>>8)
	}
	sum := ndiscore.PseudoChecksum(src, dst, uint8(proto), len(b)-l4)
	be.PutUint16(b[at:], sum)
	if !partial {
		be.PutUint16(b[at:], ^ndiscore.Checksum(b[l4:], 0))
	}
	return b
}

// differ says in which bits two byte strings of one length differ.
func differ(a, b []byte) (bits []int) {
	if len(a) != len(b) {
		return []int{-1}
	}
	for i := range a {
		for k := range 8 {
			if (a[i]^b[i])&(0x80>>k) != 0 {
				bits = append(bits, 8*i+k)
			}
		}
	}
	return bits
}

func clones(fs []*ndiscore.Frame) [][]byte {
	var bs [][]byte
	for _, f := range fs {
		bs = append(bs, f.Bytes(nil))
	}
	return bs
}

func unchanged(t testing.TB, fs []*ndiscore.Frame, before [][]byte) {
	t.Helper()
	for i, f := range fs {
		if !bytes.Equal(f.Bytes(nil), before[i]) {
			t.Errorf("frame %d is not as it was", i)
		}
	}
}
