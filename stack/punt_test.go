package stack

import (
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

func packetOf(n int) *netstack.PacketBuffer {
	return netstack.NewPacketBuffer(netstack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewSize(n))})
}

func smallQueue() *puntQueue {
	l := Limits{}
	for i := range classes {
		l.PuntFrames[i], l.PuntBytes[i] = 4, 1000
	}
	return newPuntQueue(l.filled())
}

func item(c class, n int) punted { return punted{pkt: packetOf(n), class: c, bytes: n} }

func TestPuntBounds(t *testing.T) {
	q := smallQueue()
	items := make([]punted, 6)
	for i := range items {
		items[i] = item(classForward, 10)
	}
	q.push(items)
	for i := range items {
		if refused := items[i].pkt != nil; refused != (i >= 4) {
			t.Errorf("packet %d: refused %v", i, refused)
		}
	}
	if !q.full(classForward) || q.full(classLocal) {
		t.Error("the wrong class is full")
	}
	items[4].pkt.DecRef()
	items[5].pkt.DecRef()

	bytes := []punted{item(classLocal, 600), item(classLocal, 500), item(classLocal, 400), item(classBroadcast, 5000)}
	q.push(bytes)
	if bytes[0].pkt != nil || bytes[1].pkt == nil || bytes[2].pkt != nil {
		t.Error("1000 bytes: 600 fit, 500 more do not, 400 more do")
	}
	if bytes[3].pkt != nil {
		t.Error("a packet larger than the bound must pass an empty ring, or it never would")
	}
	bytes[1].pkt.DecRef()
	var burst [puntBurst]punted
	if n := q.take(burst[:]); n != 7 {
		t.Fatalf("took %d", n)
	}
	for i, c := range []class{classLocal, classLocal, classForward, classForward, classForward, classForward, classBroadcast} {
		if burst[i].class != c {
			t.Errorf("place %d: class %d, want %d", i, burst[i].class, c)
		}
		burst[i].pkt.DecRef()
	}
	if q.full(classForward) || q.full(classLocal) || q.take(burst[:]) != 0 {
		t.Error("not empty")
	}
	r := &q.rings[classForward]
	if r.frames.Load() != 4 || r.dropped.Load() != 2 || r.highFrames.Load() != 4 || r.highBytes.Load() != 40 {
		t.Errorf("counted %d, dropped %d, high %d, %d bytes", r.frames.Load(), r.dropped.Load(), r.highFrames.Load(), r.highBytes.Load())
	}
}

// TestPuntPriority: urgent packets overtake, and nobody starves.
func TestPuntPriority(t *testing.T) {
	q := newPuntQueue(Limits{}.filled())
	for range 40 {
		q.push([]punted{item(classForward, 1), item(classBroadcast, 1)})
	}
	for range 40 {
		q.push([]punted{item(classNeighbor, 1)})
	}
	var burst [puntBurst]punted
	n := q.take(burst[:])
	got := [classes]int{}
	for i := range burst[:n] {
		if i > 0 && burst[i].class < burst[i-1].class {
			t.Fatal("a less urgent packet went first")
		}
		got[burst[i].class]++
		burst[i].pkt.DecRef()
	}
	if got != [classes]int{16, 0, 0, 32, 4} {
		t.Errorf("took %v", got)
	}
	q.drain()
}

// TestPuntRace: what several workers push comes out once, in each one's order.
func TestPuntRace(t *testing.T) {
	q := newPuntQueue(Limits{}.filled())
	const workers, each = 4, 20000
	var wg sync.WaitGroup
	var refused [workers]int
	for w := range workers {
		wg.Go(func() {
			for i := 0; i < each; {
				var items [8]punted
				for k := range items {
					// bytes carries what identifies it; all fit
					items[k] = punted{pkt: packetOf(1), class: class(w), bytes: i + 1}
					i++
				}
				q.push(items[:])
				for k := range items {
					if items[k].pkt != nil {
						items[k].pkt.DecRef()
						refused[w]++
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var seen, last [classes]int
	var burst [puntBurst]punted
	for over := false; ; {
		n := q.take(burst[:])
		for i := range burst[:n] {
			c := burst[i].class
			if burst[i].bytes <= last[c] {
				t.Fatalf("class %d: %d after %d", c, burst[i].bytes, last[c])
			}
			last[c] = burst[i].bytes
			seen[c]++
			burst[i].pkt.DecRef()
		}
		if n > 0 {
			continue
		}
		if over {
			break
		}
		// As the feeder sleeps.
		q.sleeping.Store(true)
		if q.waiting.Load() == 0 {
			select {
			case <-q.wake:
			case <-done:
				over = true
			case <-time.After(10 * time.Second):
				t.Fatal("nobody woke the feeder")
			}
		}
		q.sleeping.Store(false)
	}
	for w := range workers {
		if seen[w]+refused[w] != each {
			t.Errorf("class %d: %d came out, %d were refused, of %d", w, seen[w], refused[w], each)
		}
	}
}
