package bridge

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestPortMACLimit(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) {
		o.Age = 10 * time.Second
		o.Port = map[string]PortOptions{"p0": {MACLimit: 2}}
	})
	p0, p1 := l.wires[0], l.wires[1]
	b := ndiscore.Broadcast
	p0.receive(frame(b, mac(1)), frame(b, mac(2)), frame(b, mac(3)), frame(b, mac(3)), frame(b, mac(1)))
	l.want("two stations are served, the third is not", 0, 3, 3)
	p1.receive(frame(b, mac(4)), frame(b, mac(5)), frame(b, mac(6)))
	l.want("the other port has no limit", 3, 0, 3)
	p0.receive(frame(b, mac(5)))
	l.want("nor does the station of another port", 0, 0, 0)
	p1.receive(frame(mac(5), mac(4)))
	l.want("which has not moved", 0, 0, 0)
	p0.receive(frame(ndiscore.MAC{1, 0x80, 0xc2, 0, 0, 14}, mac(9)))
	want := map[string]uint64{"mac-limit": 3, "reserved-multicast": 1}
	if diff := cmp.Diff(want, l.counters("p0").RxDropped); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
	l.tick(stormTick)
	l.await("event", func() bool { return len(l.told("bridge.mac-limit")) == 1 })
	if e := l.told("bridge.mac-limit")[0]; e != "bridge.mac-limit p0 room>full 2 addresses are known on the port (mac_limit 2): frames of other stations are dropped" {
		t.Error(e)
	}
	if i := l.bridge.Ports()[0]; i.Addresses != 2 || i.MACLimit != 2 || i.Refused != 3 {
		t.Errorf("%+v", i)
	}
	// A station that moves away makes room.
	p1.receive(frame(b, mac(2)))
	l.counts()
	p0.receive(frame(b, mac(3)))
	l.want("one has moved away", 0, 1, 1)
	for range 60 {
		l.tick(stormTick)
	}
	l.await("the end of the episode", func() bool { return len(l.told("bridge.mac-limit")) == 2 })
	if e := l.told("bridge.mac-limit")[1]; e != "bridge.mac-limit p0 full>room 3 frames of other stations were dropped" {
		t.Error(e)
	}
	// A whole table serves nobody new on a port with a limit, everybody elsewhere.
	if err := l.bridge.Update(Options{Name: "lan", Ports: []string{"p0", "p1", "p2"}, MACLimit: 1, Port: map[string]PortOptions{"p0": {MACLimit: 5}}}); err != nil {
		t.Fatal(err)
	}
	l.bridge.Flush("")
	p1.receive(frame(b, mac(1)), frame(b, mac(2)))
	l.want("p1", 2, 0, 2)
	p0.receive(frame(b, mac(3)))
	l.want("p0", 0, 0, 0)
}

func TestStorm(t *testing.T) {
	l := newLAN(t, 2, true, func(o *Options) {
		o.Port = map[string]PortOptions{"p0": {StormBroadcast: 10, StormMulticast: 20, StormUnknown: 30}}
	})
	p0 := l.wires[0]
	group := ndiscore.MAC{1, 2, 3, 4, 5, 6}
	send := func(n int, dst ndiscore.MAC) {
		for range n {
			p0.receive(frame(dst, mac(1)))
		}
	}
	send(50, ndiscore.Broadcast)
	l.want("broadcast", 0, 10, 10)
	send(50, group)
	l.want("multicast has its own limit", 0, 20, 20)
	send(50, mac(7))
	l.want("so has unknown unicast", 0, 30, 0)
	l.wires[1].receive(frame(mac(1), mac(7)))
	l.counts()
	send(50, mac(7))
	l.want("known unicast has none", 0, 50, 0)
	for range 20 {
		l.wires[1].receive(frame(ndiscore.Broadcast, mac(8)))
	}
	l.want("nor has another port", 20, 0, 20)
	if got := l.counters("p0").RxDropped["storm"]; got != 40+30+20 {
		t.Errorf("%d dropped", got)
	}
	tokens := func() int64 { return l.bridge.view.Load().rules[0].storm[stormBroadcast].tokens.Load() }
	for i := range 5 { // half a second is worth half of it
		l.tick(stormTick)
		l.await("refill", func() bool { return tokens() == int64(i+1)*stormFrame })
	}
	send(50, ndiscore.Broadcast)
	l.want("after half a second", 0, 5, 5)
	want := []string{
		"bridge.storm p0 calm>storm broadcast: more than 10 frames/s (storm_broadcast): the rest is dropped",
		"bridge.storm p0 calm>storm multicast: more than 20 frames/s (storm_multicast): the rest is dropped",
		"bridge.storm p0 calm>storm unknown: more than 30 frames/s (storm_unknown): the rest is dropped",
	}
	if diff := cmp.Diff(want, l.told("bridge.storm")); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for range 60 {
		l.tick(stormTick)
	}
	l.await("calm", func() bool { return len(l.told("bridge.storm")) == 6 })
	for _, e := range []string{"broadcast: 85", "multicast: 30", "unknown: 20"} {
		if !strings.Contains(strings.Join(l.told("bridge.storm p0 storm>calm "), "\n"), e+" frames were dropped") {
			t.Errorf("no %q in %q", e, l.told("bridge.storm"))
		}
	}
	l.tick(time.Hour)
	l.await("a full bucket", func() bool { return tokens() == 10*stormFrame })
	i := l.bridge.Ports()[0]
	if i.Storm != (Storm{10, 20, 30}) || i.Dropped != (Storm{85, 30, 20}) {
		t.Errorf("%+v", i)
	}
	// Without its keeper's clock a bridge has no limits.
	if err := l.core.Stop(t.Context(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	send(50, ndiscore.Broadcast)
	l.want("no clock", 0, 50, 0)
}

// TestLimitTaken: with its limit an episode is over, whatever else has limits.
func TestLimitTaken(t *testing.T) {
	ports := []string{"p0", "p1"}
	limited := map[string]PortOptions{"p0": {MACLimit: 1, StormBroadcast: 1, StormMulticast: 5}}
	for name, take := range map[string]struct {
		away func(l *lan) error
		why  string
		room bool // the address limit is gone too
	}{
		"all": {func(l *lan) error { return l.bridge.Update(Options{Name: "lan", Ports: ports}) }, "there is no limit any more", true},
		"some": {func(l *lan) error {
			defer l.tick(stormTick)
			return l.bridge.Update(Options{Name: "lan", Ports: ports, Port: map[string]PortOptions{"p0": {StormMulticast: 5}}})
		}, "there is no limit any more", true},
		"port": {func(l *lan) error { return l.core.Stop(l.t.Context(), "p0", "test") }, "it was unbound", true},
		"halt": {func(l *lan) error { return l.core.Stop(l.t.Context(), "lan", "test") }, "the bridge is halted, and its storm limits rest", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t, 2, false, func(o *Options) { o.Port = limited })
			for range 3 {
				l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)), frame(ndiscore.Broadcast, mac(2)))
			}
			l.tick(stormTick)
			l.await("episodes", func() bool { return len(l.told("bridge.storm")) == 1 && len(l.told("bridge.mac-limit")) == 1 })
			if err := take.away(l); err != nil {
				t.Fatal(err)
			}
			l.await("calm", func() bool { return len(l.told("bridge.storm")) == 2 })
			if e := l.told("bridge.storm")[1]; e != "bridge.storm p0 storm>calm broadcast: "+take.why+"; 2 frames were dropped" {
				t.Error(e)
			}
			if take.room {
				l.await("room", func() bool { return len(l.told("bridge.mac-limit")) == 2 })
				if e := l.told("bridge.mac-limit")[1]; e != "bridge.mac-limit p0 full>room "+take.why+"; 3 frames of other stations were dropped" {
					t.Error(e)
				}
			}
		})
	}
}

func TestBucketConcurrent(t *testing.T) {
	var q bucket
	q.set(1000)
	var passed [4]int
	var wg sync.WaitGroup
	for i := range passed {
		wg.Go(func() {
			for range 10000 {
				if q.take() {
					passed[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := passed[0] + passed[1] + passed[2] + passed[3]
	if sum < 1000 || sum > 1000+len(passed) || int(q.dropped.Load()) != 40000-sum {
		t.Errorf("%d passed, %d dropped", sum, q.dropped.Load())
	}
	q.fill(time.Hour)
	if n := q.tokens.Load(); n != 1000*stormFrame {
		t.Errorf("%d tokens after a long while", n)
	}
	q.set(maxStormRate)
	q.tokens.Store(0)
	q.fill(time.Second)
	if n := q.tokens.Load(); n != maxStormRate*stormFrame {
		t.Errorf("%d tokens at the highest rate", n)
	}
}

func TestEpisode(t *testing.T) {
	var e episode
	start := time.Unix(0, 0)
	var got []string
	for s, count := range []uint64{0, 5, 5, 9, 9, 9, 9, 9, 9, 9, 10} {
		began, over := e.look(count, start.Add(time.Duration(s)*time.Second))
		if began || over {
			got = append(got, fmt.Sprint(s, began, over, count-e.before))
		}
	}
	if diff := cmp.Diff([]string{"1 true false 5", "8 false true 9", "10 true false 1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPortOptions(t *testing.T) {
	ten := trunk(t, "10")
	for want, o := range map[string]Options{
		"p: it has VLANs and the bridge has none": {Port: map[string]PortOptions{"p": {Access: 5}}},
		"not both":                                   {VLAN: 1, Port: map[string]PortOptions{"p": {Access: 5, Trunk: ten}}},
		"native is for trunk ports":                  {VLAN: 1, Port: map[string]PortOptions{"p": {Native: 5}}},
		"VLAN 10 is native, so untagged, and in":     {VLAN: 1, Port: map[string]PortOptions{"p": {Native: 10, Trunk: ten}}},
		"access 4095 is not within":                  {VLAN: 1, Port: map[string]PortOptions{"p": {Access: 4095}}},
		"trunk has a VLAN that":                      {VLAN: 1, Port: map[string]PortOptions{"p": {Trunk: VLANSet{1}}}},
		"port p: mac_limit -1":                       {Port: map[string]PortOptions{"p": {MACLimit: -1}}},
		"storm_unknown -1 is not within":             {Port: map[string]PortOptions{"p": {StormUnknown: -1}}},
		"port q has settings and is not listed":      {Port: map[string]PortOptions{"q": {}}},
		"vlan 4095 is not within 1…4094":             {VLAN: 4095},
		"loop_hold 1ms is not within 1s…24h0m0s":     {LoopHold: time.Millisecond},
		"storm_broadcast 1000000001 is not within 1": {Port: map[string]PortOptions{"p": {StormBroadcast: maxStormRate + 1}}},
	} {
		o.Name, o.Ports = "a", []string{"p"}
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
