package vswitch_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// roundsFlag is how often TestRounds fails a team in each way.
var roundsFlag = flag.Int("rounds", 4, "rounds of TestRounds, for each kind of failure; from 100 on it judges what the project promises")

// What the project promises of a round, at the 99th percentile: packets lost of
// 1000 a second, one way, from the failure on, and the time within the switch.
const (
	judgedRounds   = 100
	judgedCalm     = 50               // of them with senders that kept to their schedule: late is many packets at once
	calmLate       = time.Millisecond // by how much at most
	promisedLoss   = 2
	promisedWithin = 1000 // microseconds
)

// failure is one way to lose the active member and to have it back.
type failure struct {
	name        string
	planned     bool   // nobody may notice
	mayLose     uint64 // in any round, on a busy machine
	fail, again func(ctx context.Context) error

	// Packets that a round lost, of both ways the worse: by the failure, by the
	// failure when the senders kept to their schedule, and of these those sent
	// since the kernel's message; by the fail-back.
	lost, calm, told, back []float64

	// Microseconds until the switch is announced, as somebody who waits for it sees
	// that: from its first event, from the kernel's message as somebody who waits
	// for that one reads it. Before: from the failure to that message.
	within, kernel, before []float64
}

// sinceTold is how many packets of a direction were lost at most that were sent
// once the kernel had told of the failure: all but those that fit into the gap
// before its message.
func sinceTold(d lab.DirectionStats, at time.Time) float64 {
	const each = time.Millisecond
	end := d.GapAt.Add(d.LongestGap)
	if at.After(end) {
		at = end
	}
	before := max(0, float64(at.Sub(d.GapAt)/each))
	return max(0, float64(d.Lost)-before)
}

// linkWatch notes when the kernel's message that a link passes nothing can be
// read.
type linkWatch struct {
	mu   sync.Mutex // guards down
	down map[int32]time.Time
}

// watchLinks has a goroutine of its own, which ends with the test.
func watchLinks(t *testing.T) *linkWatch {
	t.Helper()
	w := &linkWatch{down: map[int32]time.Time{}}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	must(t, err, s.SetReceiveTimeout(&unix.Timeval{Usec: 50_000}))
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // "link watch": ends with done
		defer close(ended)
		defer s.Close()
		for {
			select {
			case <-done:
				return
			default:
			}
			msgs, _, err := s.Receive()
			now := time.Now()
			if err != nil {
				continue // nothing came
			}
			for _, m := range msgs {
				i := nl.DeserializeIfInfomsg(m.Data)
				if m.Header.Type == unix.RTM_DELLINK || i.Flags&(unix.IFF_UP|unix.IFF_RUNNING) != unix.IFF_UP|unix.IFF_RUNNING {
					w.mu.Lock()
					if _, ok := w.down[i.Index]; !ok {
						w.down[i.Index] = now
					}
					w.mu.Unlock()
				}
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
	})
	return w
}

// since returns when link index passed nothing any more.
func (w *linkWatch) since(index int) (at time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok = w.down[int32(index)]
	return at, ok
}

func (w *linkWatch) forget() {
	w.mu.Lock()
	w.down = map[int32]time.Time{}
	w.mu.Unlock()
}

// ipBatch is an ip(8) that takes its commands one by one. What goes wrong with an
// interface goes wrong outside the process of the switch; within, the system
// call, which takes the kernel milliseconds, would hold up the goroutines that
// share its thread.
type ipBatch struct {
	in  io.Writer
	err bytes.Buffer // of the process until it has ended
}

func startIP(t *testing.T) *ipBatch {
	t.Helper()
	p := &ipBatch{}
	c := command(t, context.Background(), "ip", "-force", "-batch", "-")
	in, err := c.StdinPipe()
	must(t, err)
	p.in, c.Stderr = in, &p.err
	must(t, c.Start())
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), c.Wait()); err != nil || p.err.Len() > 0 {
			t.Errorf("ip: %v: %s", err, p.err.Bytes())
		}
	})
	return p
}

// run has a command carried out and does not wait for its end.
func (p *ipBatch) run(command string) error {
	_, err := io.WriteString(p.in, command+"\n")
	return err
}

// TestRounds fails the active member of a team below a masquerading router, and
// has it back, again and again, in every way: how many packets that costs, how
// long the switch takes, and that TCP through the translation lives on.
func TestRounds(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksNAT, "hold = \"50ms\"\n")
	u.text = "[fault]\nallow = true\n" + u.text
	u.load(t)
	ip := startIP(t)
	operate := func(op control.AdapterOp) func(context.Context) error {
		return func(ctx context.Context) error { return u.sw.Operate(ctx, op, "up0", "round", false) }
	}
	promote := func(member string) func(context.Context) error {
		return func(ctx context.Context) error { return u.sw.Promote(ctx, "wan", member) }
	}
	now := func(f func() error) func(context.Context) error { return func(context.Context) error { return f() } }
	kinds := []*failure{
		{name: "deletion", mayLose: lossFailure,
			fail: now(func() error { return ip.run("link del dev up0") }), again: now(func() error { return u.wires[0].Restore(lab.EndA) })},
		{name: "link-down", mayLose: lossFailure,
			fail: now(func() error { return ip.run("link set dev up0 down") }), again: now(func() error { return u.here.Up("up0") })},
		{name: "carrier", mayLose: lossCarrier, // of which the kernel tells up to a second late
			fail: now(func() error { return u.wires[0].Unplug(lab.EndA) }), again: now(func() error { return u.wires[0].Plug(lab.EndA) })},
		{name: "remove", planned: true, mayLose: lossPlanned, fail: operate(control.OpRemove),
			again: func(ctx context.Context) error {
				_, err := u.sw.Apply(ctx, []byte(u.text), false)
				return err
			}},
		{name: "promote", planned: true, mayLose: lossPlanned, fail: promote("up1"), again: promote("up0")},
	}
	watch := watchLinks(t)
	for range *roundsFlag {
		for _, k := range kinds {
			u.round(t, k, watch)
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	must(t, err)
	t.Logf("%d rounds; load average %s", *roundsFlag, strings.TrimSpace(string(load)))
	t.Logf("%-10s %-24s %8s %8s %8s %8s %8s", "", "", "rounds", "p50", "p90", "p99", "max")
	for _, k := range kinds {
		row := func(what string, xs []float64) {
			if len(xs) > 0 {
				t.Logf("%-10s %-24s %8d %8.0f %8.0f %8.0f %8.0f", k.name, what, len(xs), quantile(xs, .5), quantile(xs, .9), quantile(xs, .99), quantile(xs, 1))
			}
		}
		row("lost", k.lost)
		row("lost, calm", k.calm)
		row("lost, calm, once told", k.told)
		row("lost by fail-back", k.back)
		row("us, failure to kernel", k.before)
		row("us, event to switch", k.within)
		row("us, kernel to switch", k.kernel)
		if *roundsFlag < judgedRounds || k.name == "carrier" {
			continue
		}
		if k.planned && quantile(k.lost, 1) > 0 || quantile(k.back, .99) > 0 {
			t.Errorf("%s: lost %v, by fail-back %v", k.name, k.lost, k.back)
		}
		if len(k.calm) < judgedCalm {
			t.Logf("%s: not judged: the machine was calm in %d rounds only", k.name, len(k.calm))
			continue
		}
		if quantile(k.calm, .99) > promisedLoss {
			t.Errorf("%s: lost %v", k.name, k.calm)
		}
		if len(k.kernel) > 0 && quantile(k.kernel, .99) > promisedWithin {
			t.Errorf("%s: the switch took %.0f us at p99, more than %d", k.name, quantile(k.kernel, .99), promisedWithin)
		}
	}
	u.end(t)
}

// quantile is the smallest of xs that a share of q does not exceed.
func quantile(xs []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}

// round fails the active member once, and has it back.
func (u *uplinks) round(t *testing.T, k *failure, watch *linkWatch) {
	t.Helper()
	ctx := within(t, 60*time.Second)
	index := 0
	must(t, u.here.Do(func() error {
		i, err := net.InterfaceByName("up0")
		if err == nil {
			index = i.Index
		}
		return err
	}))
	watch.forget()
	var begun time.Time
	var stats lab.FlowStats
	move := func(do func(context.Context) error, to string, mayLose uint64) (active time.Time, seen []ndiscore.Event, lost float64, late time.Duration) {
		t.Helper()
		mark, before := newest(u.sw.Switch), fullQueues(t, u.sw.Switch)
		counted := counters(t, u.sw.Switch)
		waited := make(chan error, 1)
		go func() { // "waiter": ends with the event or ctx
			_, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == "bundle.active" && e.To == to })
			active = time.Now()
			waited <- err
		}()
		begun = time.Now()
		must(t, do(ctx))
		if err := <-waited; err != nil {
			t.Fatalf("%s: wan did not go to %s: %v", k.name, to, err)
		}
		u.through(t, 512<<10) // some 125 ms
		s := u.udp.Snapshot(ctx)
		stats = s
		full := fullQueues(t, u.sw.Switch).since(before, max(s.AtoB.SenderLate, s.BtoA.SenderLate))
		var worst uint64
		for way, d := range map[string]lab.DirectionStats{"there": s.AtoB, "back": s.BtoA} {
			n := d.Lost - min(d.Lost, d.Overrun+full)
			worst, late = max(worst, n), max(late, d.SenderLate)
			if n > mayLose+starved(d) || d.Duplicated > 0 || d.Corrupted > 0 {
				t.Errorf("%s, to %s, %s: %+v; counted %v", k.name, to, way, d, dropped(counted, counters(t, u.sw.Switch)))
			}
		}
		seen, _, _ = u.sw.Events(mark)
		return active, seen, float64(worst), late
	}

	active, seen, lost, late := move(k.fail, "up1", k.mayLose)
	calm := late <= calmLate
	if k.lost = append(k.lost, lost); calm {
		k.calm = append(k.calm, lost)
	}
	if !k.planned {
		for _, e := range seen {
			if e.Adapter == "up0" && (e.What == "link" && e.To != "connected" || e.What == "adapter.surprise-removed") {
				k.within = append(k.within, max(0, float64(active.Sub(e.Time).Microseconds())))
				break
			}
		}
		must(t, lab.Eventually(ctx, "the kernel to tell of up0", func() error {
			at, ok := watch.since(index)
			if !ok {
				return errors.New("nothing yet")
			}
			k.kernel = append(k.kernel, max(0, float64(active.Sub(at).Microseconds())))
			k.before = append(k.before, float64(at.Sub(begun).Microseconds()))
			if calm {
				k.told = append(k.told, max(sinceTold(stats.AtoB, at), sinceTold(stats.BtoA, at)))
			}
			return nil
		}))
	}
	_, _, lost, _ = move(k.again, "up0", lossPlanned)
	k.back = append(k.back, lost)
	must(t, u.waitStandby(ctx))
	if s := u.tcp.Snapshot(); s.Err != nil {
		t.Fatalf("%s: TCP: %v", k.name, fmt.Errorf("the connection broke: %w", s.Err))
	}
}
