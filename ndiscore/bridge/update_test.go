package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// addWire gives the core another adapter, which no bridge has as its port yet.
func (l *lan) addWire(name string, change ...func(*wire)) {
	l.t.Helper()
	w := &wire{name: name, keep: true, mac: ndiscore.MAC{2, 0, 0, 0, 0, byte(len(l.wires) + 1)}}
	for _, f := range change {
		f(w)
	}
	l.wires = append(l.wires, w)
	ctx := context.Background()
	if err := errors.Join(l.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: name, Driver: "wire", Options: w}), l.core.Start(ctx, name, "test")); err != nil {
		l.t.Fatal(err)
	}
}

// rebind has the core bind and unbind the difference, when the list of ports is
// another one, and waits until all of them are there.
func (l *lan) rebind() {
	l.t.Helper()
	if err := l.core.SetTargets(context.Background(), l.bridge.Spec().Name, l.bridge.Spec().Targets); err != nil {
		l.t.Fatal(err)
	}
	l.await("all ports", func() bool {
		s := l.states()
		return !strings.Contains(s, PortAbsent) && !strings.Contains(s, PortDown)
	})
}

func (l *lan) update(o Options) {
	l.t.Helper()
	o.Name = "lan"
	if err := l.bridge.Update(o); err != nil {
		l.t.Fatal(err)
	}
	l.rebind()
}

func TestUpdatePorts(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(2)))
	l.wires[2].receive(frame(ndiscore.Broadcast, mac(3)))
	l.addWire("p3")
	l.counts()

	// p1 goes; between the two steps it is out of service already.
	if err := l.bridge.Update(Options{Name: "lan", Ports: []string{"p2", "p3", "p0"}}); err != nil {
		t.Fatal(err)
	}
	l.wires[1].receive(frame(mac(1), mac(2)))
	l.wires[0].receive(frame(mac(2), mac(1)), frame(mac(3), mac(1)))
	l.want("p1 is out of service; p2 is known still", 0, 0, 2, 0, 0)
	if d := l.counters("p1").RxDropped["no-port"]; d != 1 {
		t.Errorf("%d dropped", d)
	}
	if s := l.states(); s != "forwarding absent forwarding" {
		t.Error(s)
	}
	l.rebind()
	if s := l.states(); s != "forwarding forwarding forwarding" {
		t.Error(s)
	}
	l.wires[0].receive(frame(ndiscore.Broadcast, mac(1)))
	l.want("p3 takes part", 0, 0, 1, 1, 1)
	l.wires[3].receive(frame(mac(1), mac(4)))
	l.want("both ways", 1, 0, 0, 0, 0)

	// p1 comes back, and finds p0's station where it was.
	l.update(Options{Ports: []string{"p0", "p1", "p2", "p3"}})
	l.wires[1].receive(frame(mac(1), mac(2)))
	l.want("p1 is back", 1, 0, 0, 0, 0)
	want := []string{"p0", "p1", "p2", "p3"}
	var got []string
	for i := 1; i <= 4; i++ {
		for _, e := range l.bridge.FDB() {
			if e.MAC == mac(i) {
				got = append(got, e.Port)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(l.bridge.names); n > 4 {
		t.Errorf("%d ids for 4 ports", n)
	}
}

func TestUpdateRefused(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	before := l.bridge.opts.Load()
	for want, o := range map[string]Options{
		"cannot be renamed":   {Name: "wan", Ports: []string{"p0"}},
		"mac cannot change":   {Name: "lan", MAC: mac(5)},
		"mtu cannot change":   {Name: "lan", MTU: 9000},
		"is listed twice":     {Name: "lan", Ports: []string{"p0", "p0"}},
		"mac_age 1ns is not":  {Name: "lan", Age: 1},
		"set the bridge's vl": {Name: "lan", Ports: []string{"p0"}, Port: map[string]PortOptions{"p0": {Access: 1}}},
	} {
		if err := l.bridge.Update(o); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "bridge lan: update: ") {
			t.Errorf("%q: %v", want, err)
		}
	}
	if l.bridge.opts.Load() != before {
		t.Error("something changed")
	}
}

func TestUpdateVLANs(t *testing.T) {
	l := newLAN(t, 3, true, nil)
	ports := []string{"p0", "p1", "p2"}
	for i := range 3 {
		l.wires[i].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	l.counts()
	l.update(Options{Ports: ports, VLAN: 10, Port: map[string]PortOptions{"p1": {Access: 20}}})
	if s := l.bridge.Stats(); s.Entries != 0 || s.Learned != 3 {
		t.Errorf("%+v", s)
	}
	l.wires[0].receive(frame(mac(1), mac(0)))
	l.want("p1 is in another VLAN", 0, 0, 1, 0)
	l.wires[2].receive(frame(mac(0), mac(2)))
	l.want("p0 is known again", 1, 0, 0, 0)
	// Only p1 changes: what is known of the others stays.
	l.update(Options{Ports: ports, VLAN: 10, Port: map[string]PortOptions{"p1": {Trunk: trunk(t, "10", "20")}}})
	l.wires[2].receive(frame(mac(0), mac(2)))
	l.want("p0 is known still", 1, 0, 0, 0)
	l.wires[1].receive(withTags(frame(mac(0), mac(1)), tagOf(10)))
	l.want("p1 is there", 1, 0, 0, 0)
	l.wires[0].receive(frame(l.bridge.MAC(), mac(0)))
	l.want("so are we", 0, 0, 0, 1)
	l.update(Options{Ports: ports, VLAN: 20, Port: map[string]PortOptions{"p0": {Access: 10}}})
	l.wires[0].receive(frame(l.bridge.MAC(), mac(0)))
	l.want("we have moved to VLAN 20", 0, 0, 0, 0)
	l.wires[1].receive(frame(l.bridge.MAC(), mac(0)))
	l.want("and are found there", 0, 0, 0, 1)
	l.update(Options{Ports: ports})
	l.wires[0].receive(withTags(frame(ndiscore.Broadcast, mac(0)), tagOf(77)))
	l.want("tags are payload again", 0, 1, 1, 1)
}

func TestUpdateLimits(t *testing.T) {
	l := newLAN(t, 2, false, nil)
	ports := []string{"p0", "p1"}
	for i := range 100 {
		l.wires[0].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	l.wires[1].receive(frame(ndiscore.Broadcast, mac(1000)))
	l.update(Options{Ports: ports, MACLimit: 20000})
	if s := l.bridge.Stats(); s.Entries != 101 || s.Limit != 20000 || s.Learned != 101 {
		t.Errorf("a larger table: %+v", s)
	}
	l.update(Options{Ports: ports, MACLimit: 50})
	if s := l.bridge.Stats(); s.Entries != 50 || s.Limit != 50 {
		t.Errorf("a smaller table: %+v", s)
	}
	l.update(Options{Ports: ports, Port: map[string]PortOptions{"p0": {MACLimit: 3}}})
	if i := l.bridge.Ports()[0]; i.Addresses != 0 {
		t.Errorf("who may stay is settled anew: %+v", i)
	}
	for i := range 10 {
		l.wires[0].receive(frame(ndiscore.Broadcast, mac(i)))
	}
	if i := l.bridge.Ports()[0]; i.Addresses != 3 || i.Refused != 7 {
		t.Errorf("%+v", i)
	}
	// Another age holds from the next tick on.
	l.update(Options{Ports: ports, Age: 2 * time.Second})
	for range 40 {
		l.tick(100 * time.Millisecond)
	}
	l.await("addresses to age", func() bool { return l.bridge.Stats().Entries == 0 })
}

// TestUpdateLosesNothing changes everything about other ports, under traffic
// between two that are not named: not one frame may be lost or come twice.
func TestUpdateLosesNothing(t *testing.T) {
	l := newLAN(t, 4, true, func(o *Options) { o.VLAN, o.Snooping, o.LoopGuard = 10, true, true })
	l.addWire("p4")
	for _, w := range l.wires[2:] {
		w.keep = false
	}
	a, b := l.wires[0], l.wires[1]
	a.receive(frame(ndiscore.Broadcast, mac(1)))
	b.receive(frame(ndiscore.Broadcast, mac(2)))
	l.counts()
	const rounds, frames = 30, 300
	for n := range rounds {
		var senders sync.WaitGroup
		for i, w := range []*wire{a, b} {
			senders.Go(func() {
				for k := range frames {
					w.receive(frame(mac(2-i), mac(1+i), byte(k)))
				}
			})
		}
		o := Options{VLAN: 10, Ports: []string{"p0", "p1"}, Snooping: n%2 == 0, LoopGuard: n%3 == 0, MACLimit: 100 + n%5*1000, Age: time.Duration(100+n) * time.Second}
		if n%2 == 0 {
			o.Ports = append([]string{"p2"}, o.Ports...)
		}
		if n%3 == 0 {
			o.Ports = append(o.Ports, "p4", "p3")
			o.Port = map[string]PortOptions{"p4": {Trunk: trunk(t, fmt.Sprintf("%d-%d", 5+n, 40+n)), StormBroadcast: n + 1}, "p3": {Access: 20, MACLimit: n + 1}}
		}
		l.update(o)
		senders.Wait()
	}
	for i, w := range []*wire{b, a} {
		n := 0
		for _, f := range w.take() {
			if ndiscore.MAC(f[6:12]) == mac(1+i) {
				n++
			}
		}
		if n != rounds*frames {
			t.Errorf("%d frames sent to %s, %d arrived", rounds*frames, w.name, n)
		}
	}
	for _, w := range l.wires {
		l.counters(w.name)
	}
}
