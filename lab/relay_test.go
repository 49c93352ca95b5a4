package lab

// Two hosts and a relay in between that spoils frames on purpose, made of two raw sockets. Offloads are off,
// so every frame on the cables is whole:
//
//	┌─ a ──┐   veth   ┌──── relay ─────┐   veth   ┌─ b ──┐
//	│ eth0═╪══════════╪═m0 ─►spoil─► m1═╪══════════╪═eth0 │
//	│  .1  │          │    ◄───────     │          │  .2  │
//	└──────┘          └─────────────────┘          └──────┘

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// spoiler turns one UDP or TCP frame from a to b into those that go on; n counts such frames that carry data.
type spoiler func(n int, frame []byte) [][]byte

type relay struct {
	a, b  *Host
	spoil atomic.Pointer[spoiler] // nil: everything passes
}

func relayed(t *testing.T) *relay {
	t.Helper()
	l := NewTest(t)
	a, b, m := l.Host("a"), l.Host("b"), l.Host("relay")
	l.Veth(a, "eth0", m, "m0", VethOptions{})
	l.Veth(b, "eth0", m, "m1", VethOptions{})
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	a.Offloads("eth0", false)
	b.Offloads("eth0", false)
	m.Offloads("m0", false)
	m.Offloads("m1", false)
	r := &relay{a: a, b: b}
	var s [2]*RawSocket
	for i, name := range []string{"m0", "m1"} {
		var err error
		if s[i], err = m.OpenRaw(name, RawOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	wg.Go(func() { r.run(ctx, s[0], s[1], true) })
	wg.Go(func() { r.run(ctx, s[1], s[0], false) })
	return r
}

func (r *relay) run(ctx context.Context, from, to *RawSocket, spoil bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := 0
	for {
		f, err := from.Recv(ctx, nil)
		if err != nil {
			return
		}
		out := [][]byte{f.Data}
		if p := r.spoil.Load(); spoil && p != nil && carriesData(f.Data) {
			out = (*p)(n, f.Data)
			n++
		}
		for _, x := range out {
			if to.Send(x) != nil {
				return
			}
		}
	}
}

func carriesData(f []byte) bool {
	if len(f) < 34 || f[12] != 8 || f[13] != 0 {
		return false
	}
	switch total := int(binary.BigEndian.Uint16(f[16:])); f[23] {
	case 17:
		return f[14+20+8+4] == flowData
	case 6:
		return total > 20+int(f[14+20+12]>>4)*4
	}
	return false
}

func (r *relay) set(s spoiler) { r.spoil.Store(&s) }

func TestUDPFlowCounts(t *testing.T) {
	CheckLeaks(t)
	r := relayed(t)
	f, err := r.a.StartUDPFlow(t.Context(), r.b, b4, UDPFlowOptions{Settle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	awaitSent(t, f, 20)
	if err := f.Snapshot(t.Context()).Err(); err != nil {
		t.Fatalf("baseline: %v", err)
	}
	var held []byte
	tests := []struct {
		name  string
		spoil spoiler
		check func(d DirectionStats) bool
	}{
		{"lost", func(n int, f []byte) [][]byte {
			if n == 10 || n == 11 || n == 12 {
				return nil
			}
			return [][]byte{f}
		}, func(d DirectionStats) bool {
			return d.Lost == 3 && d.Duplicated+d.Reordered+d.Corrupted == 0 && d.LongestGap > 3*time.Millisecond
		}},
		{"duplicated", func(n int, f []byte) [][]byte {
			if n%10 == 0 && n < 50 {
				return [][]byte{f, f}
			}
			return [][]byte{f}
		}, func(d DirectionStats) bool { return d.Duplicated == 5 && d.Lost+d.Reordered+d.Corrupted == 0 }},
		{"reordered", func(n int, f []byte) [][]byte {
			switch n {
			case 10:
				held = f
				return nil
			case 13:
				return [][]byte{f, held}
			}
			return [][]byte{f}
		}, func(d DirectionStats) bool { return d.Reordered == 1 && d.Lost+d.Duplicated+d.Corrupted == 0 }},
		{"corrupted", func(n int, f []byte) [][]byte {
			if n == 10 {
				f[len(f)-1] ^= 4
				f[40], f[41] = 0, 0 // no UDP checksum: the kernel lets it pass
			}
			return [][]byte{f}
		}, func(d DirectionStats) bool { return d.Corrupted == 1 && d.Lost == 1 && d.Duplicated+d.Reordered == 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spoil, n := tt.spoil, 0
			r.set(func(_ int, f []byte) [][]byte { n++; return spoil(n-1, f) })
			awaitSent(t, f, 100)
			s := f.Snapshot(t.Context())
			if !tt.check(s.AtoB) || s.AtoB.Overrun != 0 {
				t.Errorf("a to b: %+v", s.AtoB)
			}
			if s.AtoB.err("a to b") == nil {
				t.Error("Err() is nil")
			}
			if err := s.BtoA.err("b to a"); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("late", func(t *testing.T) {
		// Nothing passes until the phase is over; then all of it does.
		var stored [][]byte
		var release atomic.Bool
		r.set(func(_ int, f []byte) [][]byte {
			stored = append(stored, f)
			if !release.Load() {
				return nil
			}
			out := stored
			stored = nil
			return out
		})
		awaitSent(t, f, 20)
		s := f.Snapshot(t.Context())
		if s.AtoB.Lost == 0 {
			t.Fatalf("nothing was held back: %+v", s.AtoB)
		}
		lost := s.AtoB.Lost
		release.Store(true)
		awaitSent(t, f, 20)
		if s = f.Snapshot(t.Context()); s.AtoB.Late != lost || s.AtoB.Lost != 0 {
			t.Errorf("%d were late: %+v", lost, s.AtoB)
		}
	})
	total, err := f.Total()
	if err != nil {
		t.Fatal(err)
	}
	if d := total.AtoB; d.Lost != 4 || d.Duplicated != 5 || d.Corrupted != 1 || d.Late != 0 {
		t.Errorf("total: %+v", d)
	}
}

func TestTCPBulkRepairs(t *testing.T) {
	CheckLeaks(t)
	r := relayed(t)
	s, err := r.a.StartTCPBulk(t.Context(), r.b, b4, TCPBulkOptions{Rate: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, s, 100_000)
	r.set(func(n int, f []byte) [][]byte {
		if n%50 == 7 {
			return nil
		}
		return [][]byte{f}
	})
	awaitBytes(t, s, 400_000)
	r.set(func(_ int, f []byte) [][]byte { return [][]byte{f} })
	total, err := s.Stop(t.Context())
	if err != nil || !total.Survived() {
		t.Fatal(err)
	}
	if total.AtoB.Retransmits == 0 {
		t.Errorf("segments were lost, but none was sent again: %+v", total.AtoB)
	}
}

// A bit that flips where no checksum sees it must not pass for data.
func TestTCPBulkCorrupted(t *testing.T) {
	CheckLeaks(t)
	r := relayed(t)
	s, err := r.a.StartTCPBulk(t.Context(), r.b, b4, TCPBulkOptions{Rate: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, s, 1)
	r.set(func(n int, f []byte) [][]byte {
		// Swapping two 16-bit words leaves the Internet checksum as it is.
		if last := len(f) &^ 1; n == 5 {
			f[last-2], f[last-4] = f[last-4], f[last-2]
			f[last-1], f[last-3] = f[last-3], f[last-1]
		}
		return [][]byte{f}
	})
	err = Eventually(t.Context(), "the stream to notice", func() error {
		if s.Snapshot().Err == nil {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if total, err := s.Stop(t.Context()); !errors.Is(err, ErrCorrupt) || total.Survived() {
		t.Errorf("got %v", err)
	}
}

func TestPingCorrupted(t *testing.T) {
	CheckLeaks(t)
	r := relayed(t)
	// Only UDP and TCP are spoilt by the relay; a ping passes, and is whole.
	r.set(func(int, []byte) [][]byte { return nil })
	mustPing(t, r.a)
	p := &pinger{o: PingOptions{Size: 8}, res: PingResult{Dst: b4, Sent: 1}, sentAt: make([]time.Time, 1),
		settled: make([]bool, 1), answered: make([]bool, 1), open: 1}
	p.takeReply(0, make([]byte, 7), b4, time.Now())
	if p.res.Corrupted != 1 || p.open != 0 || !errors.Is(p.res.Err(), ErrCorrupt) {
		t.Errorf("%+v", p.res)
	}
}
