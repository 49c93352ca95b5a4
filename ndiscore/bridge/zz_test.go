package bridge

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// a host on p0 makes up a probe of p2.
func TestZZForgedProbe(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) { o.LoopGuard = true })
	var mine []byte
	for _, p := range l.firstProbes(3) {
		if binary.BigEndian.Uint16(p[14+16:]) == 0 {
			mine = p
		}
	}
	binary.BigEndian.PutUint16(mine[14+16:], 2)
	l.wires[0].receive(mine)
	l.tick(probeEvery)
	l.tick(probeEvery)
	l.tick(probeEvery)
	if s := l.states(); s != "forwarding forwarding forwarding" {
		t.Error(s)
	}
	l.probes()
}

func TestZZDoubleTag(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) {
		o.VLAN = 1
		o.Port = map[string]PortOptions{
			"p0": {Trunk: trunk(t, "10")},
			"p1": {Trunk: trunk(t, "20"), Native: 10},
			"p2": {Access: 10},
		}
	})
	l.wires[0].receive(withTags(frame(mac(9), mac(1)), tagOf(10), tagOf(20)))
	for _, w := range l.wires {
		for _, f := range w.take() {
			t.Errorf("%s %x", w.name, f[:24])
		}
	}
}

func TestZZForgedQuery(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) { o.Snooping = true })
	l.tick(0)
	// p0: a query that no host listens to, and a report.
	q := packet(mac(7), ip(asker4, group4, protoIGMP, query4(netip.IPv4Unspecified())))
	l.wires[0].receive(q)
	l.tick(time.Second)
	for range 15 {
		l.tick(time.Second)
	}
	l.wires[0].receive(packet(mac(7), report4(group4)))
	l.tick(time.Second)
	l.tick(time.Second)
	for _, w := range l.wires {
		w.take()
	}
	l.wires[1].receive(packet(mac(3), data(group4)))
	t.Log(len(l.wires[0].take()), len(l.wires[2].take()), l.bridge.Queriers(), l.bridge.Groups())
}
