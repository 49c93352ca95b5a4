package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// broken is a bridge between two hosts, a TAP and a veth, whose port p1 is
// broken in one line.
type broken struct {
	*pair
	sw   *lab.Switch
	full queues // when it began
}

func newBroken(t *testing.T) *broken {
	t.Helper()
	lab.CheckLeaks(t)
	p, text := newPair(t, pairOptions{kinds: [2]string{"tap", "veth"}, mtu: [2]int{1500, 1500}})
	b := &broken{pair: p, sw: start(t, p.l, text)}
	b.full = fullQueues(t, b.sw.Switch)
	p.address(t)
	return b
}

// breaks injects a fault and ends it with the test.
func breaks(t *testing.T, sw *lab.Switch, kind, on string, words ...string) (end func()) {
	t.Helper()
	stop, err := sw.Break(within(t, 30*time.Second), kind, on, words...)
	must(t, err)
	return func() {
		t.Helper()
		must(t, stop())
	}
}

// whole checks that traffic passes unspoilt, and that no fault is left.
func (b *broken) whole(t *testing.T) {
	t.Helper()
	faults, err := b.sw.Faults(t.Context())
	if err != nil || len(faults) > 0 {
		t.Errorf("%v, still there: %+v", err, faults)
	}
	infos, err := b.sw.Adapters(t.Context())
	must(t, err)
	for _, a := range infos {
		if len(a.Filters) > 0 {
			t.Errorf("%s still has the filters %+v", a.Name, a.Filters)
		}
	}
	ctx := within(t, 60*time.Second)
	for _, dst := range b.dst {
		must(t, b.a.WaitReachable(ctx, dst))
		r, err := b.a.Ping(ctx, dst, lab.PingOptions{Count: 20, Interval: time.Millisecond, Timeout: 10 * time.Second})
		if err = errors.Join(err, r.Err()); err != nil || r.Duplicates > 0 {
			t.Errorf("once it had ended: %v, %d duplicates", err, r.Duplicates)
		}
	}
}

// share checks that n of total is a chance of p: within five standard
// deviations.
func share(t *testing.T, what string, n, total uint64, p float64) {
	t.Helper()
	mean, room := float64(total)*p, 5*math.Sqrt(float64(total)*p*(1-p))+2
	t.Logf("%s: %d of %d", what, n, total)
	if math.Abs(float64(n)-mean) > room {
		t.Errorf("%s: %d of %d, want %.0f, give or take %.0f", what, n, total, mean, room)
	}
}

// TestFaultDrop: one frame in ten is lost, each way for itself, and is counted.
func TestFaultDrop(t *testing.T) {
	b := newBroken(t)
	ctx := within(t, 60*time.Second)
	flow, err := b.a.StartUDPFlow(ctx, b.b, b.dst["v4"], lab.UDPFlowOptions{Rate: 2000})
	must(t, err)
	before := counters(t, b.sw.Switch)["p1"]
	end := breaks(t, b.sw, "drop", "p1", "chance=10%", "direction=tx", "seed=7")
	flow.Snapshot(ctx)
	must(t, lab.Eventually(ctx, "two thousand frames to have met it", func() error { return hit(b.sw, 200) }))
	s := flow.Snapshot(ctx)
	end()
	if !b.starved(t, s) {
		share(t, "there, with a fault", s.AtoB.Lost, s.AtoB.Sent, 0.1)
		if s.BtoA.Lost > lossInsert {
			t.Errorf("back, without a fault: %+v", s.BtoA)
		}
	}
	if n := counters(t, b.sw.Switch)["p1"].TxDropped["fault-drop"] - before.TxDropped["fault-drop"]; n < s.AtoB.Lost-s.AtoB.Overrun {
		t.Errorf("lost %d, of which %d are counted as fault-drop", s.AtoB.Lost, n)
	}
	end = breaks(t, b.sw, "drop", "p1", "every=10", "direction=rx")
	r, err := b.a.Ping(ctx, b.dst["v6"], lab.PingOptions{Count: 200, Interval: time.Millisecond, Timeout: 2 * time.Second})
	must(t, err)
	end()
	must(t, flow.Stop())
	if r.Lost == 0 || r.Lost > 100 { // the flow shares the counting
		t.Errorf("ping with one frame in ten lost: %+v", r)
	}
	b.whole(t)
}

// lossInsert is what a 1 kHz stream may lose while a filter comes or goes, on a
// machine that is busy with other things.
const lossInsert = 60

// hit waits for a fault to have had an effect on so many frames.
func hit(sw *lab.Switch, frames uint64) error {
	faults, err := sw.Faults(context.Background())
	if err != nil {
		return err
	}
	for _, f := range faults {
		if f.Hits < frames {
			return fmt.Errorf("%+v", f)
		}
	}
	return nil
}

// starved reports whether the machine was so busy that frames were lost for
// that.
func (b *broken) starved(t *testing.T, s lab.FlowStats) bool {
	t.Helper()
	if n := fullQueues(t, b.sw.Switch).since(b.full, max(s.AtoB.SenderLate, s.BtoA.SenderLate)) + s.AtoB.Overrun + s.BtoA.Overrun; n > 0 {
		t.Logf("the machine let %d frames be lost: not judged", n)
		return true
	}
	return false
}

// TestFaultKinds: what each fault of frames does is seen by the hosts.
func TestFaultKinds(t *testing.T) {
	b := newBroken(t)
	ctx := within(t, 120*time.Second)
	flow, err := b.a.StartUDPFlow(ctx, b.b, b.dst["v4"], lab.UDPFlowOptions{Rate: 500, Settle: time.Second})
	must(t, err)
	phase := func(kind string, words ...string) lab.FlowStats {
		t.Helper()
		flow.Snapshot(ctx)
		end := breaks(t, b.sw, kind, "p1", words...)
		must(t, lab.Eventually(ctx, "the fault to have an effect", func() error { return hit(b.sw, 100) }))
		end()
		return flow.Snapshot(ctx)
	}
	if s := phase("duplicate", "chance=50%", "direction=rx", "seed=1"); s.BtoA.Duplicated < 90 || s.AtoB.Duplicated > 0 {
		t.Errorf("duplicate: %+v", s)
	}

	before, err := checksumErrors(b.b)
	must(t, err)
	// Nothing spoilt gets past a checksum to the receiver.
	if s := phase("corrupt", "chance=50%", "direction=tx", "seed=1"); s.AtoB.Lost < 80 || s.AtoB.Corrupted > 0 || s.BtoA.Lost > lossInsert+s.BtoA.Overrun {
		t.Errorf("corrupt: %+v", s)
	}
	after, err := checksumErrors(b.b)
	must(t, err)
	if after-before < 50 {
		t.Errorf("corrupt: the kernel found %d wrong checksums", after-before)
	}

	if s := phase("rate", "rate=5kB", "burst=2000B", "direction=tx"); s.AtoB.Lost < 80 || s.BtoA.Lost > lossInsert+s.BtoA.Overrun {
		t.Errorf("rate: %+v", s)
	}
	must(t, flow.Stop())
	b.whole(t)
}

// TestFaultDelay sees a delay in the round trip, and its end.
func TestFaultDelay(t *testing.T) {
	b := newBroken(t)
	ctx := within(t, 60*time.Second)
	const each = 60 * time.Millisecond
	end := breaks(t, b.sw, "delay", "p1", "delay=60ms")
	for _, dst := range b.dst {
		r, err := b.a.Ping(ctx, dst, lab.PingOptions{Count: 5, Timeout: 10 * time.Second})
		must(t, err, r.Err())
		for _, rtt := range r.RTTs {
			if rtt < 2*each { // there and back; on a busy machine any longer
				t.Errorf("round trip to %v: %v, with %v each way", dst, rtt, each)
			}
		}
	}
	end()
	b.whole(t)
}

// TestFaultLease: a fault ends by itself, with its adapter, and by clear.
func TestFaultLease(t *testing.T) {
	b := newBroken(t)
	ctx := within(t, 60*time.Second)
	mark := newest(b.sw.Switch)
	breaks(t, b.sw, "drop", "p1", "chance=100%", "for=1s")
	breaks(t, b.sw, "drop", "p0", "every=3", "for=1h")
	told := func(what, on string) {
		t.Helper()
		if _, err := b.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == what && e.Adapter == on }); err != nil {
			t.Errorf("%s of %s: %v", what, on, err)
		}
	}
	told("fault.injected", "p1")
	told("fault.expired", "p1")
	if faults, err := b.sw.Faults(ctx); err != nil || len(faults) != 1 || faults[0].On != "p0" || faults[0].Owner != "lab" {
		t.Errorf("%v: %+v", err, faults)
	}
	n, err := b.sw.ClearFaults(ctx, control.FaultMatch{All: true})
	if err != nil || n != 1 {
		t.Errorf("%d cleared, %v", n, err)
	}
	told("fault.cleared", "p0")
	b.whole(t)

	for _, words := range [][]string{{"chance=2"}, {"chance=10%", "every=2"}, {"for=-1s", "every=2"}, {"colour=red"}, {"every=2", "for=1000h"}, {"every=2", "direction=up"}} {
		if _, err := b.sw.Break(ctx, "drop", "p1", words...); err == nil {
			t.Errorf("drop with %v was injected", words)
		} else {
			t.Log(err)
		}
	}
	for _, x := range [][2]string{{"smoke", "p1"}, {"drop", "p7"}, {"hang", "lan"}} {
		if _, err := b.sw.Break(ctx, x[0], x[1], "chance=1%"); err == nil {
			t.Errorf("%v was injected", x)
		}
	}
	b.whole(t)

	// Ended while its adapter sleeps, it is over at once, and its filter goes when
	// the adapter wakes.
	breaks(t, b.sw, "drop", "p0", "chance=100%", "for=1h")
	must(t, b.sw.Operate(ctx, control.OpSuspend, "p0", "test", false))
	n, err = b.sw.ClearFaults(ctx, control.FaultMatch{All: true})
	if err != nil || n != 1 {
		t.Errorf("%d cleared, %v", n, err)
	}
	mark = newest(b.sw.Switch)
	must(t, b.sw.Operate(ctx, control.OpResume, "p0", "test", false))
	told("filter.removed", "p0")
	b.whole(t)
}

// TestFaultDevices fails the active member of a team in every way in which a
// device can fail, and sees the team go to the other one and come back.
func TestFaultDevices(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "hold = \"100ms\"\n")
	u.load(t)
	ctx := within(t, 120*time.Second)
	event := func(mark uint64, what, adapter, to string) ndiscore.Event {
		t.Helper()
		e, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
			return e.What == what && e.Adapter == adapter && (to == "" || e.To == to)
		})
		if err != nil {
			events, _, _ := u.sw.Events(mark)
			t.Fatalf("no %s of %s to %q: %v, only\n%+v", what, adapter, to, err, events)
		}
		return e
	}
	// The team is at up0 and both members are well.
	home := func(mark uint64) {
		t.Helper()
		event(mark, "bundle.active", "wan", "up0")
		must(t, u.waitStandby(ctx))
		u.through(t, 256<<10)
		u.udp.Snapshot(ctx)
	}
	fail := func(kind string, words ...string) (mark uint64, end func()) {
		t.Helper()
		mark = newest(u.sw.Switch)
		end = breaks(t, u.sw, kind, "up0", words...)
		event(mark, "bundle.active", "wan", "up1")
		u.through(t, 256<<10)
		return mark, end
	}

	// The last of a device that has failed goes shortly after its halt.
	repair := func() {
		t.Helper()
		must(t, lab.Eventually(ctx, "up0 to start again", func() error { return u.sw.Operate(ctx, control.OpStart, "up0", "repaired", false) }))
	}

	t.Log("link-down, until it is ended")
	{
		mark, end := fail("link-down")
		event(mark, "link", "up0", "disconnected")
		u.cost(t, "link-down", lossFailure)
		end()
		home(mark)
	}
	t.Log("link-down expires")
	{
		mark, _ := fail("link-down", "for=1s")
		event(mark, "fault.expired", "up0", "")
		home(mark)
	}
	t.Log("surprise")
	{
		mark, end := fail("surprise", "for=1h")
		event(mark, "adapter.surprise-removed", "up0", "")
		event(mark, "adapter.halt", "up0", ndiscore.HaltSurpriseRemoved.String())
		u.cost(t, "surprise", lossFailure)
		end()
		home(mark)
	}
	t.Log("surprise expires")
	{
		mark, _ := fail("surprise", "for=1s")
		event(mark, "adapter.halt", "up0", ndiscore.HaltSurpriseRemoved.String())
		event(mark, "fault.expired", "up0", "")
		home(mark)
	}
	t.Log("fail-init")
	{
		mark := newest(u.sw.Switch)
		end := breaks(t, u.sw, "fail-init", "up0") // nothing happens until it is initialised again
		u.cost(t, "fail-init", 0)
		must(t, u.sw.Operate(ctx, control.OpStop, "up0", "test", false))
		event(mark, "bundle.active", "wan", "up1")
		if err := u.sw.Operate(ctx, control.OpStart, "up0", "test", false); err == nil {
			t.Error("it was initialised")
		} else {
			clear(t, err, "up0", "fail-init")
		}
		event(mark, "adapter.start-failed", "up0", "")
		u.cost(t, "fail-init, stopped", 2)
		end()
		mark = newest(u.sw.Switch)
		must(t, u.sw.Operate(ctx, control.OpStart, "up0", "test", false))
		home(mark)
	}
	t.Log("hang that a reset heals")
	{
		mark, _ := fail("hang", "heals=true")
		event(mark, "adapter.reset", "up0", "")
		home(mark)
	}
	t.Log("hang that nothing heals")
	{
		mark, end := fail("hang")
		e := event(mark, "adapter.halt", "up0", ndiscore.HaltDeviceFailed.String())
		if !strings.Contains(e.Why, "hang") && !strings.Contains(e.Why, "reset") {
			t.Errorf("%+v", e)
		}
		end()
		repair()
		home(mark)
	}
	t.Log("reset storm")
	{
		mark, end := fail("reset-storm", "every=50ms")
		event(mark, "adapter.halt", "up0", ndiscore.HaltDeviceFailed.String())
		end()
		repair()
		home(mark)
	}
	u.end(t)
}
