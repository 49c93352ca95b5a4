package lab

// Two hosts and a wire whose ends fail separately:
//
//	┌─ a ──┐   veth   ┌─ the wire's own ─┐   veth   ┌─ b ──┐
//	│ eth0═╪══════════╪═a   [bridge]   b═╪══════════╪═eth0 │
//	│  .1  │          └──────────────────┘          │  .2  │
//	└──────┘             10.0.0.0/24                └──────┘

import (
	"errors"
	"testing"
	"time"
)

func wired(t *testing.T) (w *Wire, a, b *Host) {
	t.Helper()
	l := NewTest(t)
	a, b = l.Host("a"), l.Host("b")
	w, _ = l.Wire(a, "eth0", b, "eth0", VethOptions{MTU: 1400})
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	return w, a, b
}

func mustPing(t *testing.T, from *Host) {
	t.Helper()
	r, err := from.Ping(t.Context(), b4, PingOptions{})
	if err := errors.Join(err, r.Err()); err != nil {
		t.Fatal(err)
	}
}

func TestWireCut(t *testing.T) {
	CheckLeaks(t)
	w, a, b := wired(t)
	mustPing(t, a)
	mac, _ := a.MAC("eth0")
	for range 2 { // more than once
		for range 2 { // cutting what is cut changes nothing
			w.Cut(EndA)
		}
		if a.Exists("eth0") {
			t.Error("a's end is still there")
		}
		if err := b.WaitLink(t.Context(), "eth0", LinkUp); err != nil {
			t.Errorf("b's end lost its carrier: %v", err)
		}
		for range 2 {
			w.Restore(EndA)
		}
		again, _ := a.MAC("eth0")
		mtu, _ := a.MTU("eth0")
		if again.String() != mac.String() || mtu != 1400 {
			t.Errorf("the restored end has MAC %v and MTU %d, not %v and 1400", again, mtu, mac)
		}
		a.AddAddr("eth0", "10.0.0.1/24")
		mustPing(t, a)
	}
	a.Delete("eth0") // by other means
	w.Restore(EndA)
	a.AddAddr("eth0", "10.0.0.1/24")
	mustPing(t, a)
}

func TestWireUnplug(t *testing.T) {
	CheckLeaks(t)
	w, a, b := wired(t)
	w.Unplug(EndB)
	if err := b.WaitLink(t.Context(), "eth0", LinkDown); err != nil {
		t.Error(err)
	}
	if err := a.WaitLink(t.Context(), "eth0", LinkUp); err != nil {
		t.Error(err)
	}
	r, err := a.Ping(t.Context(), b4, PingOptions{Timeout: 20 * time.Millisecond})
	if err != nil || r.Lost != 1 {
		t.Errorf("an unplugged end answers: %v, %+v", err, r)
	}
	w.Plug(EndB)
	if err := b.WaitLink(t.Context(), "eth0", LinkUp); err != nil {
		t.Error(err)
	}
	if err := a.WaitReachable(t.Context(), b4); err != nil {
		t.Error(err)
	}
	b.Down("eth0")
	w.Unplug(EndB)
	w.Plug(EndB) // of an end that is set down: nothing to wait for
}

// A flow over a cut wire tells what the cut cost.
func TestWireCutUnderTraffic(t *testing.T) {
	CheckLeaks(t)
	w, a, b := wired(t)
	f, err := a.StartUDPFlow(t.Context(), b, b4, UDPFlowOptions{Settle: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	awaitSent(t, f, 100)
	if s := f.Snapshot(t.Context()); s.Err() != nil {
		t.Errorf("baseline: %v", s.Err())
	}
	w.Cut(EndB)
	awaitSent(t, f, 50)
	w.Restore(EndB)
	b.AddAddr("eth0", "10.0.0.2/24")
	awaitSent(t, f, 200)
	s := f.Snapshot(t.Context())
	if s.AtoB.Lost < 40 || s.AtoB.Received == 0 || s.AtoB.Sent != s.AtoB.Lost+s.AtoB.Received {
		t.Errorf("while one end was gone: %+v", s.AtoB)
	}
	if s.AtoB.LongestGap < 40*time.Millisecond || time.Since(s.AtoB.GapAt) > time.Minute {
		t.Errorf("a gap of %v at %v", s.AtoB.LongestGap, s.AtoB.GapAt)
	}
	awaitSent(t, f, 100)
	if s := f.Snapshot(t.Context()); s.Err() != nil {
		t.Errorf("after the repair: %v", s.Err())
	}
}
