package fault_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// advance moves time on when the delay's goroutine waits for it: one that has
// read the clock and not yet set its timer would set it too late.
func (u *unit) advance(d time.Duration) {
	u.t.Helper()
	armed := func() bool { return u.clock.Waits() > 0 || u.f.Idle() }
	ndistest.Await(u.t, "the delay to wait", armed)
	u.clock.Advance(d)
	ndistest.Await(u.t, "the delay to wait again", armed)
}

// settle waits until n frames have come out.
func (u *unit) settle(d fault.Direction, n int) {
	u.t.Helper()
	ndistest.Await(u.t, fmt.Sprintf("%d frames", n), func() bool { return u.count(d) >= n })
}

// idle waits until nothing is held any more.
func (u *unit) idle() {
	u.t.Helper()
	ndistest.Await(u.t, "an idle delay", u.f.Idle)
}

func TestDelay(t *testing.T) {
	for _, d := range bothWays {
		t.Run(d.String(), func(t *testing.T) {
			u := newUnit(t, []string{"delay", "delay=20ms"})
			began := u.clock.Now()
			var fs []*ndiscore.Frame
			for i := range 40 {
				n := []int{18, 60, 1514, 1984, 1985, 4032, 4033, 9014, 65000}[i%9]
				raw := ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0, 0, 0, 0, 1}, uint32(i), n)
				f := frameOf(raw)
				if i%2 == 1 && n > 200 {
					f = frameOf(raw[:100], raw[100:150], nil, raw[150:])
				}
				f.Offload = ndiscore.Offload{Flags: ndiscore.DataValid, HdrLen: uint16(i)}
				fs = append(fs, f)
			}
			before := clones(fs)
			for i := 0; i < 40; i += 10 {
				for _, s := range u.pass(d, fs[i:i+10]...) {
					if s != ndiscore.DropNone {
						t.Errorf("status %s", s)
					}
				}
				for _, f := range fs[i : i+10] { // they are the sender's again
					clear(f.Head)
				}
				u.advance(time.Millisecond)
			}
			if n := u.count(d); n != 0 {
				t.Fatalf("%d frames before their time", n)
			}
			for range 50 {
				u.advance(time.Millisecond)
				due := 10 * min(4, max(0, int(u.clock.Now().Sub(began)/time.Millisecond)-19))
				u.settle(d, due)
				if n := u.count(d); n != due {
					t.Fatalf("%d frames after %s, want %d", n, u.clock.Now().Sub(began), due)
				}
			}
			for i, p := range u.got(d) {
				if !bytes.Equal(p.data, before[i]) || p.offload.HdrLen != uint16(i) {
					t.Errorf("frame %d came out otherwise", i)
				}
				if want := began.Add(time.Duration(20+i/10) * time.Millisecond); p.at != want {
					t.Errorf("frame %d after %s, want %s", i, p.at.Sub(began), want.Sub(began))
				}
				if p.worker == u.w {
					t.Error("on the worker that brought it")
				}
			}
			u.idle()
			if frames, _ := u.f.Hit(0, d); frames != 40 {
				t.Errorf("%d frames counted", frames)
			}
		})
	}
}

// Jitter is even, and never changes the order unless told to.
func TestJitter(t *testing.T) {
	for _, reorder := range []bool{false, true} {
		const n = 2000
		u := newUnit(t, []string{"delay", "delay=10ms", "jitter=5ms", fmt.Sprint("reorder=", reorder), "seed=1"})
		began := u.clock.Now()
		for i := range n / 50 {
			u.pass(fault.TX, numbered(50*i, 50)...)
		}
		for range 160 {
			u.advance(100 * time.Microsecond)
		}
		u.settle(fault.TX, n)
		ps := u.got(fault.TX)
		inOrder := slices.IsSorted(ids(ps))
		if inOrder == reorder {
			t.Errorf("reorder=%v: in order %v", reorder, inOrder)
		}
		first, last := ps[0].at.Sub(began), ps[n-1].at.Sub(began)
		if reorder && first > 6*time.Millisecond || first < 5*time.Millisecond || last > 15100*time.Microsecond {
			t.Errorf("reorder=%v: from %s to %s", reorder, first, last)
		}
	}
}

func TestDelayIsBounded(t *testing.T) {
	u := newUnit(t, []string{"delay", "delay=1s", "limit=128KiB"})
	for i := range 10 {
		u.pass(fault.TX, numbered(10*i, 10)...)
	}
	if n := u.drops(ndiscore.DropFaultFull); n != 100-64 {
		t.Errorf("%d dropped, want %d", n, 100-64)
	}
	u.advance(time.Second)
	u.settle(fault.TX, 64)
	if got := ids(u.got(fault.TX)); !slices.Equal(got, upTo(64)) {
		t.Errorf("passed %v", got)
	}
	u.idle()
	big := frameOf(make([]byte, 60), make([]byte, 60_000))
	u.pass(fault.TX, big, big, big)
	if n := u.drops(ndiscore.DropFaultFull); n != 100-64+1 {
		t.Errorf("%d dropped after super-frames", n)
	}
}

// Pause and the end of the fault let everything go, in order; so does a flood.
func TestFlush(t *testing.T) {
	for _, how := range []string{"pause", "end"} {
		t.Run(how, func(t *testing.T) {
			u := newUnit(t)
			remove, err := u.f.Change("delay", "delay=10s", "jitter=10s", "reorder=true", "seed=1")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				u.pass(fault.TX, numbered(64*i, 64)...)
				u.pass(fault.RX, numbered(64*i, 64)...)
			}
			if how == "pause" {
				u.f.Pause(context.Background())
			} else if err := remove(); err != nil {
				t.Fatal(err)
			}
			if !u.f.Idle() {
				t.Error("it still holds frames")
			}
			for _, d := range bothWays {
				got := ids(u.got(d))
				slices.Sort(got)
				if !slices.Equal(got, upTo(320)) {
					t.Errorf("%s: %d frames went on", d, len(got))
				}
			}
			u.pass(fault.TX, numbered(0, 3)...)
			if n := len(u.got(fault.TX)); n != 3 {
				t.Errorf("afterwards %d of 3 frames pass at once", n)
			}
			if how == "pause" {
				if err := u.f.Restart(context.Background()); err != nil {
					t.Fatal(err)
				}
				u.pass(fault.TX, numbered(0, 3)...)
				if n := len(u.got(fault.TX)); n != 0 {
					t.Errorf("after the restart %d frames pass at once", n)
				}
			}
		})
	}
}

// What is held both ways goes on even if nobody has the patience to wait for it.
func TestFlushImpatient(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		u := newUnit(t, []string{"delay", "delay=10s"})
		for i := range 5 {
			u.pass(fault.TX, numbered(64*i, 64)...)
			u.pass(fault.RX, numbered(64*i, 64)...)
		}
		u.f.Pause(ctx)
		if !u.f.Idle() || u.count(fault.TX) != 320 || u.count(fault.RX) != 320 {
			t.Errorf("%d and %d of 320 frames went on", u.count(fault.TX), u.count(fault.RX))
		}
		if err := u.f.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlushInOrder(t *testing.T) {
	u := newUnit(t)
	remove, err := u.f.Change("delay", "delay=10s")
	if err != nil {
		t.Fatal(err)
	}
	u.pass(fault.TX, numbered(0, 60)...)
	stop, ended := make(chan struct{}), make(chan int)
	go func() { // ends with stop: frames that come while the fault ends
		w, _ := u.core.NewWorker("flood")
		defer w.Close()
		b := ndiscore.NewBatch(w)
		b.Borrowed = true
		n := 60
		for {
			select {
			case <-stop:
				ended <- n
				return
			default:
			}
			if u.count(fault.TX)+200 < n { // the delay does not hold just any number
				runtime.Gosched()
				continue
			}
			b.Reset()
			for _, f := range numbered(n, 10) {
				b.Append(f)
			}
			u.f.FilterSend(b)
			n += 10
		}
	}()
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	u.settle(fault.TX, 200)
	close(stop)
	n := <-ended
	u.settle(fault.TX, n)
	if got := ids(u.got(fault.TX)); !slices.Equal(got, upTo(n)) {
		t.Errorf("%d of %d frames, in order %v", len(got), n, slices.IsSorted(got))
	}
}

// Faults are passed in order: what a delay lets go meets those behind it.
func TestDelayThenDrop(t *testing.T) {
	u := newUnit(t, []string{"delay", "delay=1ms"}, []string{"drop", "every=2"}, []string{"delay", "delay=1ms"})
	u.pass(fault.RX, numbered(0, 6)...)
	u.advance(time.Millisecond)
	ndistest.Await(t, "the second delay", func() bool { n, _ := u.f.Hit(2, fault.RX); return n == 3 })
	u.advance(time.Millisecond)
	u.settle(fault.RX, 3)
	if got := ids(u.got(fault.RX)); !slices.Equal(got, []int{0, 2, 4}) {
		t.Errorf("passed %v", got)
	}
}
