package bridge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// states is the state of each port.
func (l *lan) states() string {
	var s []string
	for _, p := range l.bridge.Ports() {
		s = append(s, p.State)
	}
	return strings.Join(s, " ")
}

// probes are those of the bridge's own frames that each port has sent; nothing
// else is expected there.
func (l *lan) probes() [][]byte {
	l.t.Helper()
	var all [][]byte
	for _, w := range l.wires {
		for _, f := range w.take() {
			if ndiscore.MAC(f[:6]) != probeGroup || ndiscore.MAC(f[6:12]) != l.bridge.MAC() {
				l.t.Errorf("%s sent %x", w.name, f)
			}
			all = append(all, f)
		}
	}
	return all
}

// firstProbes waits for n probes: not those of the keeper's start, when perhaps
// not all ports were up, but the next ones.
func (l *lan) firstProbes(n int) [][]byte {
	l.t.Helper()
	l.tick(0) // the keeper waits
	l.probes()
	l.tick(probeEvery)
	var all [][]byte
	l.await("probes", func() bool {
		all = append(all, l.probes()...)
		return len(all) >= n
	})
	return all
}

func TestLoopGuardOwnFrame(t *testing.T) {
	l := newLAN(t, 3, true, func(o *Options) { o.LoopGuard, o.LoopHold = true, 10*time.Second })
	l.firstProbes(3)
	own := frame(ndiscore.Broadcast, l.bridge.MAC())
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	l.counts()
	// It comes back at two ports at once: one of them stays.
	l.wires[1].receive(own)
	l.await("p1 to be shut", func() bool { return l.states() == "forwarding shut forwarding" })
	l.wires[2].receive(own)
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("nothing comes in by a port that is shut", 0, 0, 0, 0)
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(2)))
	l.want("nor does anything go out", 0, 0, 1, 1)
	l.wires[0].receive(frame(mac(1), mac(2)))
	l.want("who was behind it is unknown now", 0, 0, 1, 0)
	if diff := cmp.Diff(map[string]uint64{"reflection": 1, "loop": 1}, l.counters("p1").RxDropped); diff != "" {
		t.Error(diff)
	}
	want := "bridge.loop p1 forwarding>shut a frame with the bridge's own address came back: it is shut for 10s (loop_hold)"
	l.await("event", func() bool { return len(l.told("bridge.loop")) == 1 })
	if e := l.told("bridge.loop")[0]; e != want {
		t.Error(e)
	}
	if i := l.bridge.Ports()[1]; i.Reopens != 10 {
		t.Errorf("%+v", i)
	}
	for range 10 {
		if s := l.states(); s != "forwarding shut forwarding" {
			t.Fatal(s)
		}
		l.tick(time.Second)
	}
	l.await("p1 to be open again", func() bool { return l.states() == "forwarding forwarding forwarding" })
	l.await("event", func() bool { return len(l.told("bridge.loop")) == 2 })
	if e := l.told("bridge.loop")[1]; e != "bridge.loop p1 shut>forwarding 10s have passed (loop_hold)" {
		t.Error(e)
	}
	// A second port is judged by itself once the dust has settled.
	l.wires[2].receive(own)
	l.await("p2 to be shut", func() bool { return l.states() == "forwarding forwarding shut" })
	if s := l.bridge.Stats(); s.Loops != 2 || s.Probes == 0 {
		t.Errorf("%+v", s)
	}
}

// TestLoopGuardProbe: a loop is found without any traffic, from whichever end,
// and the port listed later is shut.
func TestLoopGuardProbe(t *testing.T) {
	for _, ends := range [][2]int{{0, 2}, {2, 0}, {1, 1}} {
		t.Run(fmt.Sprint(ends), func(t *testing.T) {
			l := newLAN(t, 3, false, func(o *Options) { o.LoopGuard = true })
			from, to := ends[0], ends[1]
			probe := make([][]byte, 3)
			for _, p := range l.firstProbes(3) {
				if len(p) != 60 || binary.BigEndian.Uint16(p[12:]) != 0x88b5 {
					t.Errorf("probe %x", p)
				}
				probe[binary.BigEndian.Uint16(p[14+16:])] = p
			}
			l.wires[to].receive(probe[from])
			want := []string{"forwarding", "forwarding", "forwarding"}
			want[max(from, to)] = "shut"
			l.await("one port to be shut", func() bool { return l.states() == strings.Join(want, " ") })
			// The other end of the same loop says nothing new.
			l.wires[from].receive(probe[to])
			l.tick(probeEvery)
			l.tick(probeEvery)
			if s := l.states(); s != strings.Join(want, " ") {
				t.Error(s)
			}
			l.probes()
		})
	}
}

// TestLoopGuardForged: who hears a port's probes cannot make up another's, and
// have that one shut.
func TestLoopGuardForged(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) { o.LoopGuard = true })
	for _, p := range l.firstProbes(3) {
		if binary.BigEndian.Uint16(p[14+16:]) != 0 {
			continue
		}
		for _, id := range []uint16{1, 2, 3, 0xffff} {
			binary.BigEndian.PutUint16(p[14+16:], id)
			l.wires[0].receive(bytes.Clone(p))
		}
	}
	l.tick(probeEvery)
	l.tick(probeEvery)
	if s := l.states(); s != "forwarding forwarding forwarding" {
		t.Error(s)
	}
	l.probes()
}

// TestLoopGuardQuiet: what is not our frame going round shuts nothing.
func TestLoopGuardQuiet(t *testing.T) {
	l := newLAN(t, 5, true, func(o *Options) { vlanPorts(t)(o); o.LoopGuard = true })
	probes := l.firstProbes(7) // p2 has two VLANs, and p3 too
	if len(probes) != 7 {
		t.Errorf("%d probes", len(probes))
	}
	own := frame(ndiscore.Broadcast, l.bridge.MAC())
	for _, p := range probes {
		q := bytes.Clone(p)
		if q[12] == 0x81 {
			q[18+8]++
		} else {
			q[14+8]++
		}
		l.wires[0].receive(q) // another bridge's of our address; tagged ones are not even let in
	}
	l.wires[2].receive(withTags(own, tagOf(99)))
	l.wires[0].receive(frame(probeGroup, mac(5))) // somebody else's experiment
	l.tick(probeEvery)
	l.tick(probeEvery)
	if s := l.states(); strings.Contains(s, "shut") {
		t.Error(s)
	}
	for _, w := range l.wires {
		l.counters(w.name)
	}
	// As it left a tagged probe counts.
	for _, p := range probes {
		if p[12] == 0x81 && binary.BigEndian.Uint16(p[14:]) == 20 && binary.BigEndian.Uint16(p[18+16:]) == 2 {
			l.wires[3].receive(p)
		}
	}
	l.await("p3 to be shut", func() bool { return l.states() == "forwarding forwarding forwarding shut forwarding" })
}

// TestLoopGuardVLANs: what comes back in another VLAN goes round too, once
// there are two such ways; the port is found as within one VLAN.
func TestLoopGuardVLANs(t *testing.T) {
	for name, c := range map[string]struct{ from, to, shut int }{
		"there": {0, 1, 1}, "and back": {1, 0, 1}, "into a trunk": {1, 3, 3}, "own": {-1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t, 5, true, func(o *Options) { vlanPorts(t)(o); o.LoopGuard, o.LoopHold = true, 10*time.Second })
			vlans := []int{10, 20, 10, 10} // of the ports' untagged frames; p2 has none
			back := frame(ndiscore.Broadcast, l.bridge.MAC())
			why := "a frame with the bridge's own address came back, out of VLAN 10 into VLAN 20"
			probes := l.firstProbes(7)
			if c.from >= 0 {
				back = nil
				for _, p := range probes {
					if p[12] != 0x81 && int(binary.BigEndian.Uint16(p[14+16:])) == c.from {
						back = p
					}
				}
				why = fmt.Sprintf("the probe that left by port p%d came back through port p%d, out of VLAN %d into VLAN %d", c.from, c.to, vlans[c.from], vlans[c.to])
			}
			l.wires[c.to].receive(back)
			l.await("a port to be shut", func() bool { return len(l.told("bridge.loop")) > 0 })
			want := fmt.Sprintf("bridge.loop p%d forwarding>shut %s: it is shut for 10s (loop_hold)", c.shut, why)
			if e := l.told("bridge.loop"); len(e) != 1 || e[0] != want {
				t.Errorf("%q, want %q", e, want)
			}
			if n := strings.Count(l.states(), "shut"); n != 1 || l.bridge.Ports()[c.shut].State != PortShut {
				t.Error(l.states())
			}
		})
	}
}

// TestLoopGuardUnbound: a port that is bound anew is open, whatever is left of
// its time, and that is told.
func TestLoopGuardUnbound(t *testing.T) {
	l := newLAN(t, 2, false, func(o *Options) { o.LoopGuard = true })
	l.firstProbes(2)
	l.wires[1].receive(frame(ndiscore.Broadcast, l.bridge.MAC()))
	l.await("p1 to be shut", func() bool { return l.states() == "forwarding shut" })
	if err := l.core.Stop(t.Context(), "p1", "test"); err != nil {
		t.Fatal(err)
	}
	want := "bridge.loop p1 shut>absent it was unbound: when it is bound again it is open"
	if e := l.told("bridge.loop p1 shut>"); len(e) != 1 || e[0] != want {
		t.Errorf("%q", e)
	}
	if err := l.core.Start(t.Context(), "p1", "test"); err != nil {
		t.Fatal(err)
	}
	if s := l.states(); s != "forwarding forwarding" {
		t.Error(s)
	}
}

// TestLoopGuardOff: a bridge without it sends no probe, and opens what is shut
// when it is turned off or the bridge is halted.
func TestLoopGuardOff(t *testing.T) {
	l := newLAN(t, 2, false, func(o *Options) { o.LoopGuard = true })
	l.firstProbes(2)
	shut := func() {
		t.Helper()
		l.wires[1].receive(frame(ndiscore.Broadcast, l.bridge.MAC()))
		l.await("p1 to be shut", func() bool { return l.states() == "forwarding shut" })
	}
	shut()
	if err := l.core.Stop(t.Context(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	if s := l.states(); s != "forwarding forwarding" {
		t.Error(s)
	}
	if e := l.told("bridge.loop p1 shut>"); len(e) != 1 || e[0] != "bridge.loop p1 shut>forwarding the bridge is halted, and its loop guard rests" {
		t.Errorf("%q", e)
	}
	if err := l.core.Start(t.Context(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	shut()
	o := Options{Name: "lan", Ports: []string{"p0", "p1"}}
	if err := l.bridge.Update(o); err != nil {
		t.Fatal(err)
	}
	if s := l.states(); s != "forwarding forwarding" {
		t.Error(s)
	}
	if e := l.told("bridge.loop p1 shut>"); len(e) != 2 || e[1] != "bridge.loop p1 shut>forwarding the loop guard was turned off (loop_guard)" {
		t.Errorf("%q", e)
	}
	l.tick(probeEvery)
	l.probes()
	l.wires[1].receive(frame(ndiscore.Broadcast, l.bridge.MAC()))
	l.tick(probeEvery)
	l.tick(probeEvery)
	if p := l.probes(); len(p) > 0 || l.states() != "forwarding forwarding" {
		t.Errorf("%d probes, %s", len(p), l.states())
	}
}

// TestLoopGuardTrunkTurns: of many VLANs so many are probed each second, all in
// turn.
func TestLoopGuardTrunkTurns(t *testing.T) {
	l := newLAN(t, 1, false, func(o *Options) {
		o.LoopGuard, o.VLAN = true, 1
		o.Port = map[string]PortOptions{"p0": {Trunk: trunk(t, "100-139")}}
	})
	seen := map[uint16]int{}
	for range 5 {
		p := l.firstProbes(probeVLANs)
		if len(p) != probeVLANs {
			t.Errorf("%d probes at once", len(p))
		}
		for _, f := range p {
			seen[binary.BigEndian.Uint16(f[14:])&0xfff]++
		}
	}
	if len(seen) != 40 {
		t.Errorf("%d VLANs were probed: %v", len(seen), seen)
	}
	for v, n := range seen {
		if n != 2 {
			t.Errorf("VLAN %d was probed %d times in %d", v, n, 5*probeVLANs)
		}
	}
}

// TestLoopGuardLate: a worker that found its way before a port was shut.
func TestLoopGuardLate(t *testing.T) {
	var s scratch
	f := new(ndiscore.Frame)
	if _, drop := s.exit(&view{rules: []rules{{shut: true}}}, 0, f, 0, 0, untagged); drop != ndiscore.DropLoop {
		t.Error(drop)
	}
	if _, drop := s.exit(&view{vlan: 1, rules: []rules{{untagged: 2}}}, 0, f, 0, 1, untagged); drop != ndiscore.DropVLAN {
		t.Error(drop)
	}
	if g, drop := s.exit(&view{rules: []rules{{}}}, 0, f, 0, 0, untagged); drop != ndiscore.DropNone || g != f {
		t.Error(drop)
	}
}
