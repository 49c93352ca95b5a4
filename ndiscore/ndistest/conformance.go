package ndistest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Peer is the far end of the device that an adapter drives: another socket, a
// test's own wire.
type Peer interface {
	// Send puts a frame on the wire towards the adapter.
	Send(frame []byte) error
	// Recv returns the next frame that the adapter sent, or an error when
	// there was none before the deadline. It may see other frames too.
	Recv(deadline time.Time) ([]byte, error)
}

// Pair is one adapter to be tested, with its peer. What is nil the pair cannot
// do, and is not tested.
type Pair struct {
	Driver  ndiscore.Driver
	Name    string
	Options any // nil: the driver's defaults
	Peer    Peer

	SetLink       func(up bool) // the adapter's link, as the peer's side can change it
	DeleteDevice  func()        // the device is gone, not merely down
	RestoreDevice func()        // and comes back

	Queues int                  // receive queues of the device, 0 for one
	SetMTU func(mtu int)        // the device's, and the peer's as far as it takes that
	Wedge  func() (mend func()) // the device takes nothing more to send, until a reset and mend
}

// conformance is one running adapter under test.
type conformance struct {
	t        *testing.T
	pair     Pair
	core     *ndiscore.Core
	bare     ndiscore.Adapter // as its driver made it
	protocol *Protocol
	worker   *ndiscore.Worker

	mu     sync.Mutex // guards handle
	handle ndiscore.AdapterHandle
}

// TestAdapter is what every miniport must pass. newPair is called once for each
// part, with the T of that part, whose Cleanup it uses to undo what it made.
func TestAdapter(t *testing.T, newPair func(t *testing.T) Pair) {
	for _, part := range []struct {
		name string
		run  func(*conformance)
	}{
		{"life cycle", (*conformance).lifeCycle},
		{"frames out", (*conformance).framesOut},
		{"frames in", (*conformance).framesIn},
		{"super-frames", (*conformance).superFrames},
		{"too big", (*conformance).tooBig},
		{"kept sends", (*conformance).keptSends},
		{"pause with traffic", (*conformance).pauseWithTraffic},
		{"halt joins and wakes", (*conformance).haltJoins},
		{"flat", (*conformance).flat},
		{"remove from the data path", (*conformance).removeFromDataPath},
		{"OIDs", (*conformance).oids},
		{"link", (*conformance).link},
		{"surprise removal", (*conformance).surprise},
		{"surprise with traffic", (*conformance).surpriseWithTraffic},
		{"many flows", (*conformance).manyFlows},
		{"reset", (*conformance).reset},
		{"hang", (*conformance).hang},
		{"power", (*conformance).power},
		{"attributes", (*conformance).attributes},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(newConformance(t, newPair(t))) })
	}
}

func newConformance(t *testing.T, p Pair) *conformance {
	c := &conformance{t: t, pair: p, core: NewCore(t, ndiscore.Options{}), protocol: NewProtocol("kit", nil)}
	d := p.Driver
	bare := d.New
	d.New = func(name string, options any) (a ndiscore.Adapter, err error) {
		a, err = bare(name, options)
		c.bare = a
		return a, err
	}
	d = VerifiedDriver(t, d)
	verified := d.New
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := verified(name, options)
		if v, ok := a.(interface {
			onInitialize(func(ndiscore.AdapterHandle))
		}); ok {
			v.onInitialize(func(h ndiscore.AdapterHandle) {
				c.mu.Lock()
				c.handle = h
				c.mu.Unlock()
			})
		}
		return a, err
	}
	if _, err := c.core.RegisterDriver(d); err != nil {
		t.Fatal(err)
	}
	c.must(c.core.AddProtocol(Context(t), c.protocol.Spec(p.Name)))
	o := p.Options
	if o == nil {
		o = p.Driver.NewOptions()
	}
	c.must(c.core.AddAdapter(Context(t), ndiscore.AdapterSpec{Name: p.Name, Driver: p.Driver.Name, Options: o}))
	w, err := c.core.NewWorker("kit")
	c.must(err)
	c.worker = w
	t.Cleanup(w.Close)
	return c
}

func (c *conformance) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *conformance) start() { c.t.Helper(); c.must(c.core.Start(Context(c.t), c.pair.Name, "kit")) }
func (c *conformance) stop()  { c.t.Helper(); c.must(c.core.Stop(Context(c.t), c.pair.Name, "kit")) }

func (c *conformance) info() ndiscore.AdapterInfo {
	c.t.Helper()
	return Info(c.t, c.core, c.pair.Name)
}

// connected waits for the link: some devices need a moment after start.
func (c *conformance) connected() {
	c.t.Helper()
	Await(c.t, "link", func() bool { return c.info().Link.Connected() })
}

// batch makes a batch of the kit's worker.
func (c *conformance) batch(borrowed bool, frames ...[]byte) *ndiscore.Batch {
	b := ndiscore.NewBatch(c.worker)
	b.Borrowed = borrowed
	for i, f := range frames {
		x := new(ndiscore.Frame)
		head := len(f)
		if i%3 == 1 && head > ndiscore.EthernetHeader+8 { // some of them in pieces
			head = ndiscore.EthernetHeader + 8
		}
		x.Reset(append(make([]byte, ndiscore.Headroom), f[:head]...), ndiscore.Headroom, head)
		if rest := f[head:]; len(rest) > 0 {
			half := len(rest) / 2
			if half > 0 {
				x.Segs = append(x.Segs, rest[:half])
			}
			x.Segs = append(x.Segs, rest[half:])
		}
		b.Append(x)
	}
	return b
}

// send sends frames as one batch, those again for which there was no room.
func (c *conformance) send(frames ...[]byte) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); len(frames) > 0; {
		b := c.batch(true, frames...)
		c.protocol.Binding(c.pair.Name).Send(b)
		var again [][]byte
		for i, f := range frames {
			switch b.Status[i] {
			case ndiscore.DropNone:
			case ndiscore.DropTxQueueFull:
				again = append(again, f)
			default:
				c.t.Fatalf("send of frame %d (%d bytes): %s", i, len(f), b.Status[i])
			}
		}
		frames = again
		if time.Now().After(deadline) {
			c.t.Fatalf("%d frames were refused for %s", len(frames), patience)
		}
	}
}

// recv returns the next frame of the kit's that reaches the peer.
func (c *conformance) recv() []byte {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		f, err := c.pair.Peer.Recv(deadline)
		if err != nil {
			c.t.Fatalf("the peer received nothing: %v", err)
		}
		if _, ok := FrameID(f); ok {
			return f
		}
	}
}

// peerMAC is whom the kit's frames are for, and from.
var peerMAC = ndiscore.MAC{0x02, 0x6b, 0x69, 0x74, 0, 1}

func (c *conformance) mac() ndiscore.MAC { return c.info().MAC }

// received are the kit's own among the frames received.
func (c *conformance) received() [][]byte {
	return slices.DeleteFunc(c.protocol.Frames(), func(f []byte) bool { _, ok := FrameID(f); return !ok })
}

// shortly is how long the kit waits before it tries again.
const shortly = 50 * time.Millisecond

// exchange proves that frames pass both ways now. Either may have to be sent
// more than once: the peer may have to find a device first that is new.
func (c *conformance) exchange(id uint32) {
	c.t.Helper()
	out, in := Frame(peerMAC, c.mac(), id, 100), Frame(c.mac(), peerMAC, id, 100)
	sent, received := false, false
	Await(c.t, "frames in both directions", func() bool {
		if !received {
			_ = c.pair.Peer.Send(in)
		}
		if !sent {
			c.protocol.Binding(c.pair.Name).Send(c.batch(true, out))
		}
		for deadline := time.Now().Add(shortly); !sent; {
			f, err := c.pair.Peer.Recv(deadline)
			if err != nil {
				break
			}
			sent = bytes.Equal(f, out)
		}
		received = received || slices.ContainsFunc(c.received(), func(f []byte) bool { return bytes.Equal(f, in) })
		return sent && received
	})
}

func (c *conformance) lifeCycle() {
	for i := range uint32(3) {
		c.start()
		c.connected()
		c.exchange(i)
		c.must(c.core.Pause(Context(c.t), c.pair.Name, "kit"))
		if s := c.info().State; s != ndiscore.StatePaused {
			c.t.Errorf("paused adapter is %s", s)
		}
		c.start()
		c.exchange(100 + i)
		c.stop()
		if i := c.info(); i.State != ndiscore.StateHalted || i.LastHalt != ndiscore.HaltDeviceStopped {
			c.t.Errorf("stopped adapter is %s after %s", i.State, i.LastHalt)
		}
	}
	checkFates(c.t, c.info())
	c.must(c.core.Remove(Context(c.t), c.pair.Name, "kit"))
}

// checkFates checks that each frame received had one fate.
func checkFates(t *testing.T, i ndiscore.AdapterInfo) {
	t.Helper()
	sum := i.Counters.Forwarded + i.Counters.Delivered
	for _, n := range i.Counters.RxDropped {
		sum += n
	}
	if i.Counters.RxFrames != sum {
		t.Errorf("%s received %d frames, %d had a fate", i.Name, i.Counters.RxFrames, sum)
	}
}

// frameSizes are those between the least and the greatest of the MTU.
func (c *conformance) frameSizes() []int {
	sizes := []int{60, 61, 64, 127, 128, 590, 1000, 1513, 1514}
	if mtu := c.info().MTU; mtu > 1500 {
		sizes = append(sizes, mtu+ndiscore.EthernetHeader)
	}
	return slices.DeleteFunc(sizes, func(n int) bool { return n > c.info().MTU+ndiscore.EthernetHeader })
}

func (c *conformance) framesOut() {
	c.start()
	c.connected()
	c.exchange(0)
	id := uint32(1000)
	before := c.info().Counters.TxFrames
	sent := uint64(0)
	sizes := c.frameSizes()
	for _, n := range []int{1, 2, 3, 17, 63, 64} {
		var want [][]byte
		for range n {
			want = append(want, Frame(peerMAC, c.mac(), id, sizes[int(id)%len(sizes)]))
			id++
		}
		c.send(want...)
		sent += uint64(n)
		got := map[uint32][]byte{}
		for len(got) < n {
			f := c.recv()
			k, _ := FrameID(f)
			if k < id-uint32(n) {
				continue // of the exchange before
			}
			if got[k] != nil {
				c.t.Errorf("frame %d arrived twice", k)
			}
			got[k] = f
		}
		for _, w := range want {
			k, _ := FrameID(w)
			if !bytes.Equal(got[k], w) {
				c.t.Errorf("batch of %d: frame %d of %d bytes differs: got %d bytes", n, k, len(w), len(got[k]))
			}
		}
	}
	if n := c.info().Counters.TxFrames - before; n != sent {
		c.t.Errorf("%d frames sent, %d counted", sent, n)
	}
}

func (c *conformance) framesIn() {
	c.start()
	c.connected()
	c.exchange(0)
	id := uint32(1000)
	sizes := c.frameSizes()
	for _, n := range []int{1, 2, 17, 64, 100} {
		var want [][]byte
		first := id
		news := func() [][]byte {
			return slices.DeleteFunc(c.received(), func(f []byte) bool { k, _ := FrameID(f); return k < first })
		}
		for range n {
			f := Frame(c.mac(), peerMAC, id, sizes[int(id)%len(sizes)])
			switch id % 5 {
			case 1:
				copy(f, ndiscore.Broadcast[:])
			case 2:
				copy(f, []byte{0x33, 0x33, 0, 0, 0, 1})
			case 3:
				copy(f, []byte{0x02, 9, 9, 9, 9, 9}) // promiscuous: for somebody else
			}
			want = append(want, f)
			id++
		}
		for _, f := range want {
			Await(c.t, "room at the peer", func() bool { return c.pair.Peer.Send(f) == nil })
		}
		Await(c.t, fmt.Sprintf("%d frames from the peer", n), func() bool { return len(news()) >= n })
		for i, f := range news() {
			if i < n && !bytes.Equal(f, want[i]) {
				c.t.Errorf("frame %d of %d: got %d bytes, want %d", i, n, len(f), len(want[i]))
			}
		}
	}
	checkFates(c.t, c.info())
}

// superPayload is that of the kit's super-frame: odd, and no multiple of the
// segment size.
const superPayload, superSegment = 20001, 1000

// superFrame is a TCP/IPv4 super-frame as a device with TSO takes it.
func (c *conformance) superFrame(payload []byte) *ndiscore.Frame {
	const l3, l4, end = ndiscore.EthernetHeader, ndiscore.EthernetHeader + 20, ndiscore.EthernetHeader + 40
	buf := make([]byte, ndiscore.Headroom+end)
	h := buf[ndiscore.Headroom:]
	mac := c.mac()
	copy(h, peerMAC[:])
	copy(h[6:], mac[:])
	binary.BigEndian.PutUint16(h[12:], ndiscore.EtherTypeIPv4)
	h[l3] = 0x45
	binary.BigEndian.PutUint16(h[l3+2:], uint16(40+len(payload)))
	h[l3+8], h[l3+9] = 64, 6
	copy(h[l3+12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	binary.BigEndian.PutUint16(h[l3+10:], ^onesSum(h[l3:l4], 0))
	binary.BigEndian.PutUint16(h[l4:], 4000)
	binary.BigEndian.PutUint16(h[l4+2:], 4001)
	binary.BigEndian.PutUint32(h[l4+4:], superSeq)
	h[l4+12], h[l4+13] = 5<<4, 0x10
	binary.BigEndian.PutUint16(h[l4+14:], 1000)
	sum := onesSum(h[l3+12:l3+20], uint32(6)+uint32(20+len(payload)))
	binary.BigEndian.PutUint16(h[l4+16:], sum)
	f := new(ndiscore.Frame)
	f.Reset(buf, ndiscore.Headroom, end)
	f.Segs = append(f.Segs, payload[:7000], payload[7000:])
	f.Offload = ndiscore.Offload{
		Flags: ndiscore.NeedsCsum, GSO: ndiscore.GSOTCPv4, GSOSize: superSegment, HdrLen: end, CsumStart: l4, CsumOffset: 16,
	}
	return f
}

const superSeq = 0x01020304

// onesSum is the Internet checksum's sum of b, added to sum.
func onesSum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// superFrames sends a super-frame, whole or, where the adapter cannot take it,
// cut by the core: the same bytes must arrive.
func (c *conformance) superFrames() {
	c.start()
	c.connected()
	c.exchange(0)
	payload := make([]byte, superPayload)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	b := c.batch(true)
	b.Append(c.superFrame(payload))
	c.protocol.Binding(c.pair.Name).Send(b)
	if r := b.Status[0]; r != ndiscore.DropNone {
		c.t.Fatalf("super-frame: %s", r)
	}
	got, have := make([]byte, superPayload), 0
	for deadline := time.Now().Add(patience); have < superPayload; {
		f, err := c.pair.Peer.Recv(deadline)
		if err != nil {
			c.t.Fatalf("%d of %d bytes arrived: %v", have, superPayload, err)
		}
		const l4 = ndiscore.EthernetHeader + 20
		if len(f) < l4+20 || binary.BigEndian.Uint16(f[12:]) != ndiscore.EtherTypeIPv4 || f[ndiscore.EthernetHeader+9] != 6 {
			continue
		}
		length := int(binary.BigEndian.Uint16(f[ndiscore.EthernetHeader+2:])) - 40
		at := int(binary.BigEndian.Uint32(f[l4+4:]) - superSeq)
		if at < 0 || length < 0 || at+length > superPayload || len(f) < l4+20+length {
			c.t.Fatalf("segment at %d of %d bytes, frame of %d", at, length, len(f))
		}
		copy(got[at:], f[l4+20:l4+20+length])
		have += length
	}
	if !bytes.Equal(got, payload) {
		c.t.Error("the payload arrived changed")
	}
}

// tooBig: a frame longer than the MTU that may not be cut is refused, and the
// frames beside it are sent.
func (c *conformance) tooBig() {
	c.start()
	c.connected()
	mtu := c.info().MTU
	if mtu+ndiscore.EthernetHeader+1 > ndiscore.MaxFrame {
		return
	}
	b := c.batch(true,
		Frame(peerMAC, c.mac(), 1, 60), Frame(peerMAC, c.mac(), 2, mtu+ndiscore.EthernetHeader+1), Frame(peerMAC, c.mac(), 3, 60))
	c.protocol.Binding(c.pair.Name).Send(b)
	if b.Status[0] != ndiscore.DropNone || b.Status[1] != ndiscore.DropTooBig || b.Status[2] != ndiscore.DropNone {
		c.t.Errorf("status %v", b.Status[:3])
	}
}

func (c *conformance) keptSends() {
	c.start()
	c.connected()
	c.exchange(0)
	before := c.protocol.Completed()
	for i := range uint32(10) {
		c.protocol.Binding(c.pair.Name).Send(c.batch(false, Frame(peerMAC, c.mac(), 2000+i, 200)))
	}
	Await(c.t, "completion of 10 kept batches", func() bool { return c.protocol.Completed() == before+10 })
	c.stop()
}

// flood has the peer send without pause until the returned function is called.
func (c *conformance) flood() (end func()) {
	var stop atomic.Bool
	var wg sync.WaitGroup
	f := Frame(ndiscore.Broadcast, peerMAC, 1, 200)
	wg.Go(func() { // ended by the function returned, at the latest by patience
		for deadline := time.Now().Add(patience); !stop.Load() && time.Now().Before(deadline); {
			if c.pair.Peer.Send(f) != nil {
				time.Sleep(pollEvery) // full, or down
			}
		}
	})
	return func() { stop.Store(true); wg.Wait() }
}

// pauseWithTraffic: the Verifier reports an indication after Pause returned.
func (c *conformance) pauseWithTraffic() {
	c.protocol.Forget = true
	c.start()
	c.connected()
	defer c.flood()()
	for range 10 {
		before := c.protocol.Received()
		Await(c.t, "traffic", func() bool { return c.protocol.Received() > before })
		c.must(c.core.Pause(Context(c.t), c.pair.Name, "kit"))
		paused := c.info().Counters.RxFrames
		runtime.Gosched()
		if n := c.info().Counters.RxFrames; n != paused {
			c.t.Errorf("%d frames while paused", n-paused)
		}
		c.start()
	}
	c.stop()
}

// haltJoins: without any traffic, so that the reader is blocked.
func (c *conformance) haltJoins() {
	c.start()
	c.stop() // whatever a driver keeps for good is there now
	before := goroutines()
	for range 3 {
		c.start()
		begin := time.Now()
		c.stop()
		if d := time.Since(begin); d > 5*time.Second {
			c.t.Errorf("stop took %s", d)
		}
	}
	Await(c.t, "the goroutines of before", func() bool { return goroutines() <= before })
}

func goroutines() int { return runtime.NumGoroutine() }

// openFiles counts the process's file descriptors.
func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

func (c *conformance) flat() {
	const cycles = 10
	c.start()
	c.stop()
	before, files := goroutines(), openFiles()
	for range cycles {
		c.start()
		c.stop()
	}
	Await(c.t, fmt.Sprintf("%d goroutines as before %d cycles", before, cycles), func() bool { return goroutines() <= before })
	if n := openFiles(); n > files {
		c.t.Errorf("%d cycles left %d open files more", cycles, n-files)
	}
}

// removeFromDataPath: the adapter gives up while it indicates a frame.
func (c *conformance) removeFromDataPath() {
	var first, second atomic.Pointer[error]
	c.protocol.OnReceive = func(b *ndiscore.Binding, batch *ndiscore.Batch) {
		batch.DropAll(ndiscore.DropDeviceError)
		if !batch.Borrowed {
			defer b.Return(batch)
		}
		if !slices.ContainsFunc(batch.Frames, func(f *ndiscore.Frame) bool { _, ok := FrameID(f.Bytes(nil)); return ok }) {
			return // what the peer's kernel says by itself may come before the start is over
		}
		c.mu.Lock()
		h := c.handle
		c.mu.Unlock()
		err := h.Remove("the kit says so")
		if first.CompareAndSwap(nil, &err) {
			err := h.Remove("again")
			second.Store(&err)
		}
	}
	c.start()
	c.connected()
	in := Frame(c.mac(), peerMAC, 1, 100)
	Await(c.t, "halt", func() bool {
		if first.Load() == nil {
			_ = c.pair.Peer.Send(in)
		}
		return c.info().LastHalt == ndiscore.HaltDeviceFailed && c.info().State == ndiscore.StateHalted
	})
	if e := first.Load(); e == nil || *e != nil {
		c.t.Errorf("Remove: %v", e)
	}
	if e := second.Load(); e == nil || !errors.Is(*e, ndiscore.ErrFailure) {
		c.t.Errorf("a second Remove: %v", e)
	}
}

func (c *conformance) oids() {
	c.start()
	err := c.protocol.Binding(c.pair.Name).Request(Context(c.t), &ndiscore.OIDRequest{ID: 0xff00ff00, Kind: ndiscore.OIDQuery})
	if !errors.Is(err, ndiscore.ErrInvalidOID) {
		c.t.Errorf("unknown OID: %v", err)
	}
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenLinkState, Kind: ndiscore.OIDQuery}
	c.must(c.protocol.Binding(c.pair.Name).Request(Context(c.t), req))
	if _, ok := req.Data.(ndiscore.LinkState); !ok {
		c.t.Errorf("link state: %T", req.Data)
	}
	for _, id := range []ndiscore.OID{
		ndiscore.OIDGenTransmitBufferSpace, ndiscore.OIDGenReceiveBufferSpace, ndiscore.OIDGenTransmitBlockSize, ndiscore.OIDGenReceiveBlockSize,
	} {
		req := &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDQuery}
		if err := c.protocol.Binding(c.pair.Name).Request(Context(c.t), req); err != nil {
			c.t.Errorf("%s, which every driver of a device answers: %v", id, err)
		} else if _, ok := req.Data.(uint32); !ok {
			c.t.Errorf("%s: %T", id, req.Data)
		}
	}
}

// lastLink is the link state last indicated to the protocol.
func (c *conformance) lastLink() ndiscore.LinkState {
	var last ndiscore.LinkState
	for _, s := range c.protocol.Statuses() {
		if l, ok := s.(ndiscore.LinkState); ok {
			last = l
		}
	}
	return last
}

func (c *conformance) link() {
	if c.pair.SetLink == nil {
		c.t.Skip("the pair cannot change the link")
	}
	c.start()
	c.connected()
	c.exchange(0)
	for i := range uint32(3) {
		c.pair.SetLink(false)
		Await(c.t, "disconnected", func() bool { return c.lastLink().Media == ndiscore.MediaDisconnected })
		if c.lastLink().Why == "" {
			c.t.Error("no cause given")
		}
		c.pair.SetLink(true)
		Await(c.t, "connected", func() bool { return c.lastLink().Connected() })
		c.exchange(1 + i)
	}
	// Down while nobody listens: known at the next start.
	c.stop()
	c.pair.SetLink(false)
	c.start()
	Await(c.t, "disconnected after start", func() bool { return !c.info().Link.Connected() })
	c.pair.SetLink(true)
	c.connected()
	c.exchange(10)
}

func (c *conformance) surprise() {
	if c.pair.DeleteDevice == nil {
		c.t.Skip("the pair cannot delete the device")
	}
	c.start()
	c.connected()
	c.pair.DeleteDevice()
	c.awaitGone()
	if c.pair.RestoreDevice == nil {
		return
	}
	for i := range uint32(2) {
		c.pair.RestoreDevice()
		Await(c.t, "running again", func() bool { return c.info().State == ndiscore.StateRunning })
		c.connected()
		c.exchange(1 + i)
		c.pair.DeleteDevice()
		c.awaitGone()
	}
}

func (c *conformance) awaitGone() {
	c.t.Helper()
	Await(c.t, "Halt(SurpriseRemoved)", func() bool {
		i := c.info()
		return i.State == ndiscore.StateHalted && i.LastHalt == ndiscore.HaltSurpriseRemoved
	})
}

func (c *conformance) surpriseWithTraffic() {
	if c.pair.DeleteDevice == nil {
		c.t.Skip("the pair cannot delete the device")
	}
	c.start()
	c.connected()
	c.exchange(0)
	end := c.flood()
	var wg sync.WaitGroup
	var stop atomic.Bool
	bd, mac := c.protocol.Binding(c.pair.Name), c.mac()
	wg.Go(func() { // ended below
		for !stop.Load() {
			bd.Send(c.batch(true, Frame(peerMAC, mac, 1, 100)))
		}
	})
	c.pair.DeleteDevice()
	c.awaitGone()
	stop.Store(true)
	wg.Wait()
	end()
	checkFates(c.t, c.info())
}
