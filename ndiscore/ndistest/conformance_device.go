package ndistest

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The parts of the kit about what only some devices can do: several queues,
// reset, check for hang, sleep, and attributes that change.

// flowPort marks the kit's flows: UDP to this port, and from the flow's number.
const flowPort = 0x6b69

// datagram is frame number seq of one UDP flow to dst.
func datagram(dst ndiscore.MAC, flow uint16, seq uint32) []byte {
	const l3, l4, end = ndiscore.EthernetHeader, ndiscore.EthernetHeader + 20, ndiscore.EthernetHeader + 46
	b := make([]byte, end)
	copy(b, dst[:])
	copy(b[6:], peerMAC[:])
	be := binary.BigEndian
	be.PutUint16(b[12:], ndiscore.EtherTypeIPv4)
	b[l3] = 0x45
	be.PutUint16(b[l3+2:], end-l3)
	b[l3+8], b[l3+9] = 64, 17
	copy(b[l3+12:], []byte{192, 0, 2, 2, 192, 0, 2, 1})
	be.PutUint16(b[l3+10:], ^onesSum(b[l3:l4], 0))
	be.PutUint16(b[l4:], flow)
	be.PutUint16(b[l4+2:], flowPort)
	be.PutUint16(b[l4+4:], end-l4)
	be.PutUint32(b[l4+8:], seq)
	return b
}

// datagramOf reads what datagram wrote.
func datagramOf(b []byte) (flow uint16, seq uint32, ok bool) {
	const l4 = ndiscore.EthernetHeader + 20
	if len(b) < l4+12 || binary.BigEndian.Uint16(b[12:]) != ndiscore.EtherTypeIPv4 || binary.BigEndian.Uint16(b[l4+2:]) != flowPort {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(b[l4:]), binary.BigEndian.Uint32(b[l4+8:]), true
}

// manyFlows: each frame is received once, and the frames of one flow in order,
// also over a pause. An adapter with several queues uses more than one of them,
// and brings a flow by one worker at a time.
func (c *conformance) manyFlows() {
	const flows, rounds = 32, 20
	var mu sync.Mutex // guards what follows
	next, workers, count := map[uint16]uint32{}, map[uint16]int{}, 0
	c.protocol.OnReceive = func(b *ndiscore.Binding, batch *ndiscore.Batch) {
		if !batch.Borrowed {
			defer b.Return(batch)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, f := range batch.Frames {
			f.Deliver()
			flow, seq, ok := datagramOf(f.Bytes(nil))
			if !ok {
				continue
			}
			count++
			if flow == flows { // the probe, perhaps several times
				continue
			}
			if seq != next[flow] {
				c.t.Errorf("flow %d: frame %d, want %d", flow, seq, next[flow])
			}
			if w, known := workers[flow]; known && w != batch.Worker.ID() {
				c.t.Errorf("flow %d changed from worker %d to %d", flow, w, batch.Worker.ID())
			}
			next[flow], workers[flow] = seq+1, batch.Worker.ID()
		}
	}
	c.start()
	c.connected()
	// The peer may have to find a new device first, so the first frame counts.
	probe := datagram(c.mac(), flows, 0)
	Await(c.t, "the first frame", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if count == 0 {
			_ = c.pair.Peer.Send(probe)
		}
		return count > 0
	})
	received := func(n int) {
		c.t.Helper()
		Await(c.t, "every frame", func() bool {
			mu.Lock()
			defer mu.Unlock()
			sum := uint32(0)
			for flow := range uint16(flows) {
				sum += next[flow]
			}
			return int(sum) >= n
		})
	}
	for seq := range uint32(rounds) {
		for flow := range uint16(flows) {
			f := datagram(c.mac(), flow, seq)
			Await(c.t, "room at the peer", func() bool { return c.pair.Peer.Send(f) == nil })
		}
		if seq == rounds/2 {
			received(flows * (rounds/2 + 1))
			c.must(c.core.Pause(Context(c.t), c.pair.Name, "kit"))
			mu.Lock()
			clear(workers) // those of before have ended
			mu.Unlock()
			c.start()
		}
	}
	received(flows * rounds)
	mu.Lock()
	defer mu.Unlock()
	used := map[int]bool{}
	for flow := range uint16(flows) {
		used[workers[flow]] = true
	}
	if len(used) > max(c.pair.Queues, 1) || c.pair.Queues > 1 && len(used) == 1 {
		c.t.Errorf("%d flows came by %d of %d queues", flows, len(used), c.pair.Queues)
	}
}

// statuses of the type of s that the protocol has heard.
func heard[S ndiscore.Status](c *conformance) (all []S) {
	for _, s := range c.protocol.Statuses() {
		if x, ok := s.(S); ok {
			all = append(all, x)
		}
	}
	return all
}

// canReset reports whether the adapter is a Resetter.
func (c *conformance) canReset() bool {
	_, ok := c.bare.(ndiscore.Resetter)
	return ok
}

// reset: Running and Paused, beside traffic, and the state, the binding, the
// address and the packet filter are those of before.
func (c *conformance) reset() {
	if !c.canReset() {
		c.t.Skip("the adapter is no Resetter")
	}
	c.start()
	c.connected()
	c.exchange(0)
	before, binding := c.info(), c.protocol.Binding(c.pair.Name)
	end := c.flood()
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() { // ended below
		for !stop.Load() {
			binding.Send(c.batch(true, Frame(peerMAC, before.MAC, 1, 100)))
		}
	})
	const times = 3 // more within a minute, and the core gives the device up
	for i := range uint64(times) {
		if err := c.core.Reset(Context(c.t), c.pair.Name, "kit"); err != nil {
			c.t.Errorf("reset: %v", err)
		}
		rx := c.info().Counters.RxFrames
		Await(c.t, "traffic after the reset", func() bool { return c.info().Counters.RxFrames > rx })
		if now := c.info(); now.State != ndiscore.StateRunning || now.Resets != i+1 || now.MAC != before.MAC || now.MTU != before.MTU {
			c.t.Errorf("after reset %d: %s, %d resets, %s, MTU %d", i+1, now.State, now.Resets, now.MAC, now.MTU)
		}
	}
	stop.Store(true)
	wg.Wait()
	end()
	c.exchange(1)
	c.must(c.core.Pause(Context(c.t), c.pair.Name, "kit"))
	c.must(c.core.Reset(Context(c.t), c.pair.Name, "kit"))
	if s := c.info().State; s != ndiscore.StatePaused {
		c.t.Errorf("reset while paused: %s", s)
	}
	c.start()
	c.exchange(2)
	if c.protocol.Binding(c.pair.Name) != binding {
		c.t.Error("a reset cost the binding")
	}
	// A paused binding need not hear of it.
	starts, ends := heard[ndiscore.ResetStart](c), heard[ndiscore.ResetEnd](c)
	if len(starts) < times || len(ends) != len(starts) || slices.ContainsFunc(ends, func(e ndiscore.ResetEnd) bool { return e.Err != nil }) {
		c.t.Errorf("%d starts of a reset told, ends %v", len(starts), ends)
	}
	if i := c.info(); i.LastHalt != ndiscore.HaltNone {
		c.t.Errorf("a reset came to a halt: %s", i.LastHalt)
	}
	c.stop()
	checkFates(c.t, c.info())
}

// hang: a device that takes nothing more is reset by the core, because the
// adapter says so; one that idles or works is not.
func (c *conformance) hang() {
	_, checks := c.bare.(ndiscore.HangChecker)
	if !checks || c.pair.Wedge == nil {
		c.t.Skip("the adapter does not check for hang, or the pair cannot wedge its device")
	}
	c.start()
	c.connected()
	c.exchange(0)
	const poll = 2 * time.Second // Attributes.HangCheck is at least as long
	for begin := time.Now(); time.Since(begin) < poll+poll/2; {
		c.send(Frame(peerMAC, c.mac(), 1, 60))
		time.Sleep(pollEvery)
	}
	if n := c.info().Resets; n != 0 {
		c.t.Fatalf("reset %d times though its frames went out", n)
	}
	mend := c.pair.Wedge()
	fill := Frame(peerMAC, c.mac(), 1, c.info().MTU+ndiscore.EthernetHeader)
	Await(c.t, "a reset of the wedged device", func() bool {
		for range 100 {
			c.protocol.Binding(c.pair.Name).Send(c.batch(true, fill))
		}
		return c.info().Resets > 0
	})
	mend()
	Await(c.t, "the end of the reset", func() bool { return c.info().Health == ndiscore.Degraded })
	c.exchange(1)
}

// power: asleep nothing is received, sent or told, awake all is as before.
func (c *conformance) power() {
	c.start()
	c.connected()
	binding := c.protocol.Binding(c.pair.Name)
	for i := range uint32(3) {
		c.exchange(i)
		c.must(c.core.Suspend(Context(c.t), c.pair.Name, "kit"))
		asleep := c.info()
		if !asleep.Asleep {
			c.t.Fatal("suspended, and not asleep")
		}
		links := len(heard[ndiscore.LinkState](c))
		for range 10 {
			_ = c.pair.Peer.Send(Frame(c.mac(), peerMAC, 100+i, 100)) // the peer may see that it sleeps
		}
		b := c.batch(true, Frame(peerMAC, asleep.MAC, 1, 100))
		binding.Send(b)
		if b.Status[0] == ndiscore.DropNone {
			c.t.Error("sent while asleep")
		}
		if now := c.info(); now.Counters.RxFrames != asleep.Counters.RxFrames || len(heard[ndiscore.LinkState](c)) != links {
			c.t.Errorf("asleep: %d frames received, %d links told", now.Counters.RxFrames-asleep.Counters.RxFrames, len(heard[ndiscore.LinkState](c))-links)
		}
		c.must(c.core.Resume(Context(c.t), c.pair.Name, "kit"))
		Await(c.t, "running again", func() bool { return c.info().State == ndiscore.StateRunning })
		c.connected()
	}
	c.exchange(200)
	if c.protocol.Binding(c.pair.Name) != binding {
		c.t.Error("the sleep cost the binding")
	}
	c.stop()
	checkFates(c.t, c.info())
}

// attributes: another MTU of the running device is adopted, and full frames of
// it pass at once.
func (c *conformance) attributes() {
	if c.pair.SetMTU == nil {
		c.t.Skip("the pair cannot change the device's MTU")
	}
	c.start()
	c.connected()
	c.exchange(0)
	was, other := c.info().MTU, 9000
	if was == other {
		other = 1500
	}
	for i, mtu := range []int{other, was, other, was} {
		c.pair.SetMTU(mtu)
		Await(c.t, "the new MTU", func() bool { return c.info().MTU == mtu })
		full := mtu + ndiscore.EthernetHeader
		out, in := Frame(peerMAC, c.mac(), uint32(1000+i), full), Frame(c.mac(), peerMAC, uint32(2000+i), full)
		c.send(out)
		for !bytes.Equal(c.recv(), out) {
		}
		if err := c.pair.Peer.Send(in); err != nil {
			c.t.Fatal(err)
		}
		Await(c.t, "a full frame", func() bool {
			return slices.ContainsFunc(c.received(), func(f []byte) bool { return bytes.Equal(f, in) })
		})
		b := c.batch(true, Frame(peerMAC, c.mac(), 1, full+1))
		c.protocol.Binding(c.pair.Name).Send(b)
		if full < ndiscore.MaxFrame && b.Status[0] != ndiscore.DropTooBig {
			c.t.Errorf("MTU %d, and a frame longer than that: %s", mtu, b.Status[0])
		}
	}
	if told := heard[ndiscore.AttributesChange](c); len(told) < 4 || told[0].MTU != other || told[0].Why == "" {
		c.t.Errorf("told %+v", told)
	}
	if s := c.info().State; s != ndiscore.StateRunning {
		c.t.Errorf("the adapter is %s", s)
	}
}
