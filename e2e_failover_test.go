package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// A bundle towards a server behind a switch, and a client on the other side of
// our bridge or router. The two wires fail separately at either end.
//
//	                                       +-[up0]== wire 0 ==[e0]-+
//	client --[if0]== lan0 -- bridge/router +                       +- kernel bridge br0 of the server
//	                                       +-[up1]== wire 1 ==[e1]-+
type uplinks struct {
	l              *lab.Lab
	here           *lab.Host
	client, server *lab.Host
	second         *lab.Host // of the LAN, with uplinksNAT
	wires          [2]*lab.Wire
	dst            netip.Addr // the server, as the client sees it
	text           string     // the configuration
	sw             *lab.Switch
	tcp            *lab.TCPBulk
	udp            *lab.UDPFlow
	full           queues // when cost last looked
}

const uplinksConfig = `
[adapter.lan0]
driver = "afpacket"
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"
[bundle.wan]
members = ["up0", "up1"]
%s
`

const uplinksRouter = `
[bridge.lan]
ports = ["lan0"]
[interface.inside]
on = "lan"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
`

// uplinksNAT has a second host in the LAN, and neither of them known outside.
const uplinksNAT = `
[adapter.lan1]
driver = "afpacket"
[bridge.lan]
ports = ["lan0", "lan1"]
[interface.inside]
on = "lan"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
masquerade = true
masquerade6 = true
[[route]]
to = "default"
via = "10.2.0.2"
[[route]]
to = "default"
via = "fd00:2::2"
[[forward]]
interface = "outside"
protocol = "tcp"
port = "8080"
to = "10.1.0.2:80"
[[forward]]
interface = "outside"
protocol = "tcp"
port = "8080"
to = "[fd00:1::2]:80"
[[forward]]
interface = "outside"
protocol = "udp"
port = "5000-5010"
to = "10.1.0.2:6000-6010"
`

const uplinksBridge = `
[bridge.lan]
ports = ["lan0", "wan"]
`

const withProbe = `hold = "200ms"
[bundle.wan.health]
probe = "neighbor"
interval = "50ms"
target = "10.2.0.2"
`

// newUplinks builds it and starts the switch. The client and the server are in
// one network when the switch is a bridge.
func newUplinks(t *testing.T, above, bundle string) *uplinks {
	t.Helper()
	l := lab.NewTest(t)
	u := &uplinks{l: l, here: l.Here(), client: l.Host("client"), server: l.Host("server"), dst: addr("10.2.0.2")}
	l.Veth(u.here, "lan0", u.client, "if0", lab.VethOptions{})
	for i := range u.wires {
		w, err := l.Wire(u.here, fmt.Sprintf("up%d", i), u.server, fmt.Sprintf("e%d", i), lab.VethOptions{})
		must(t, err)
		u.wires[i] = w
	}
	must(t,
		l.Bridge(u.server, "br0", "e0", "e1"),
		u.server.AddAddr("br0", "10.2.0.2/24", "fd00:2::2/64"))
	switch above {
	case uplinksBridge:
		must(t, u.client.AddAddr("if0", "10.2.0.3/24", "fd00:2::3/64"))
	case uplinksRouter:
		must(t, u.server.Route("default", "10.2.0.1"), u.server.Route("::/0", "fd00:2::1"))
		inside(t, u.client, 2)
	case uplinksNAT:
		u.second = l.Host("second")
		l.Veth(u.here, "lan1", u.second, "if0", lab.VethOptions{})
		inside(t, u.client, 2)
		inside(t, u.second, 3)
	}
	u.text = fmt.Sprintf(uplinksConfig, bundle) + above
	u.sw = start(t, l, u.text)
	ctx := within(t, 20*time.Second)
	if !strings.Contains(bundle, "ndis5") {
		must(t, u.sw.WaitActive(ctx, "wan", "up0"))
	}
	must(t, u.client.WaitReachable(ctx, u.dst), u.client.WaitReachable(ctx, addr("fd00:2::2")))
	return u
}

// inside makes a host one of the LAN.
func inside(t *testing.T, h *lab.Host, n int) {
	t.Helper()
	must(t,
		h.AddAddr("if0", fmt.Sprintf("10.1.0.%d/24", n), fmt.Sprintf("fd00:1::%d/64", n)),
		h.Route("default", "10.1.0.1"), h.Route("::/0", "fd00:1::1"))
}

// load starts the traffic that the phases look at.
func (u *uplinks) load(t *testing.T) {
	t.Helper()
	var err error
	u.tcp, err = u.client.StartTCPBulk(t.Context(), u.server, u.dst, lab.TCPBulkOptions{Rate: 4 << 20, Duplex: true})
	must(t, err)
	u.udp, err = u.client.StartUDPFlow(t.Context(), u.server, u.dst, lab.UDPFlowOptions{Rate: 1000})
	must(t, err)
	u.through(t, 1<<20)
	u.udp.Snapshot(t.Context())
	u.full = fullQueues(t, u.sw.Switch)
}

// through waits until so many more bytes of TCP have arrived at either end, from
// now on: what came since somebody last asked does not count.
func (u *uplinks) through(t *testing.T, bytes uint64) {
	t.Helper()
	var there, back uint64
	must(t, u.tcp.Snapshot().Err)
	must(t, lab.Eventually(within(t, 30*time.Second), "TCP to go on", func() error {
		s := u.tcp.Snapshot()
		there, back = there+s.AtoB.Received, back+s.BtoA.Received
		if s.Err == nil && min(there, back) < bytes {
			return fmt.Errorf("%d and %d of %d bytes arrived", there, back, bytes)
		}
		return s.Err
	}))
}

// phase breaks or mends something, waits until the bundle has what it should
// have, lets traffic flow until all announcements are out, and tells what it
// cost. It returns what happened meanwhile.
func (u *uplinks) phase(t *testing.T, name, active string, mayLose uint64, do func() error) []ndiscore.Event {
	t.Helper()
	mark, before := newest(u.sw.Switch), fullQueues(t, u.sw.Switch)
	counted, begun := counters(t, u.sw.Switch), time.Now()
	must(t, do())
	ctx := within(t, 30*time.Second)
	if _, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == "bundle.active" && e.To == active }); err != nil {
		t.Fatalf("%s: wan did not go to %q: %v", name, active, err)
	}
	if active != "" {
		u.through(t, 3<<20) // some 700 ms
	}
	s := u.udp.Snapshot(ctx)
	t.Logf("%-22s lost %d+%d of %d+%d, longest gap %v, %v; sender late by %v, %v", name, s.AtoB.Lost, s.BtoA.Lost, s.AtoB.Sent, s.BtoA.Sent,
		ms(s.AtoB.LongestGap), ms(s.BtoA.LongestGap), ms(s.AtoB.SenderLate), ms(s.BtoA.SenderLate))
	full := fullQueues(t, u.sw.Switch).since(before, max(s.AtoB.SenderLate, s.BtoA.SenderLate))
	if full > 0 {
		t.Logf("%s: this process was not run for so long that %d frames found a queue full", name, full)
	}
	for _, d := range []lab.DirectionStats{s.AtoB, s.BtoA} {
		if d.Duplicated > 0 || d.Corrupted > 0 {
			t.Errorf("%s: %d duplicated, %d corrupted", name, d.Duplicated, d.Corrupted)
		}
		if d.Lost > mayLose+d.Overrun+full+starved(d) {
			t.Errorf("%s: lost %d, at most %d; the longest gap began after %s: %+v; counted %v",
				name, d.Lost, mayLose, ms(d.GapAt.Sub(begun)), d, dropped(counted, counters(t, u.sw.Switch)))
		}
	}
	events, _, _ := u.sw.Events(mark)
	return events
}

// starved is how many datagrams of a flow may be lost because the machine did not
// run us: for as long as its own sender was late the switch was too, and queues
// that nobody empties overflow. Some lateness is ordinary, and costs nothing.
func starved(d lab.DirectionStats) uint64 {
	const ordinary = 50 * time.Millisecond
	if d.SenderLate <= ordinary {
		return 0
	}
	return uint64(d.SenderLate / time.Millisecond) // at 1 kHz
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// inOrder checks that the events are among those seen, in this order. Each is
// written "what adapter to".
func inOrder(t *testing.T, name string, seen []ndiscore.Event, want ...string) {
	t.Helper()
	var list []string
	next := 0
	for _, e := range seen {
		s := e.What + " " + e.Adapter + " " + e.To
		list = append(list, s)
		if next < len(want) && s == want[next] {
			next++
		}
	}
	if next < len(want) {
		t.Errorf("%s: %q is missing or in the wrong place among:\n%s", name, want[next], strings.Join(list, "\n"))
	}
}

// undisturbed checks that no protocol above the team lost its binding.
func undisturbed(t *testing.T, name string, seen []ndiscore.Event) {
	t.Helper()
	for _, e := range seen {
		if strings.HasPrefix(e.What, "binding.") && (e.Protocol == "stack" || strings.HasPrefix(e.Protocol, "bridge")) {
			t.Errorf("%s: %s of %s on %s: %s", name, e.What, e.Protocol, e.Adapter, e.Why)
		}
	}
}

// Bounds of the loss of a 1 kHz stream, one way. They leave room for a machine
// that is busy with other things; what is usual is logged.
const (
	lossFailure = 60   // somebody has to notice
	lossCarrier = 1500 // the kernel may take a second to tell of a lost carrier
	lossPlanned = 0    // both ways were there all the time
)

// TestTeam fails a team in every way under load, and brings it back: below a
// router, and as a port of a bridge.
func TestTeam(t *testing.T) {
	for name, above := range map[string]string{"router": uplinksRouter, "bridge": uplinksBridge} {
		t.Run(name, func(t *testing.T) {
			lab.CheckLeaks(t)
			u := newUplinks(t, above, withProbe)
			u.load(t)
			var seen []ndiscore.Event
			check := func(name string, want ...string) {
				t.Helper()
				inOrder(t, name, seen, want...)
				undisturbed(t, name, seen)
			}

			seen = u.phase(t, "carrier lost", "up1", lossCarrier, func() error { return u.wires[0].Unplug(lab.EndA) })
			check("carrier lost", "bundle.active wan up1")
			seen = u.phase(t, "carrier back", "up0", lossPlanned, func() error { return u.wires[0].Plug(lab.EndA) })
			check("carrier back", "link up0 connected", "bundle.active wan up0")

			seen = u.phase(t, "set down", "up1", lossFailure, func() error { return u.here.Down("up0") })
			check("set down", "bundle.active wan up1")
			seen = u.phase(t, "set up", "up0", lossPlanned, func() error { return u.here.Up("up0") })
			check("set up", "link up0 connected", "bundle.active wan up0")

			seen = u.phase(t, "deleted", "up1", lossFailure, func() error { return u.wires[0].Cut(lab.EndA) })
			check("deleted", "bundle.active wan up1", "adapter.halt up0 SurpriseRemoved")
			seen = u.phase(t, "made again", "up0", lossPlanned, func() error { return u.wires[0].Restore(lab.EndA) })
			check("made again", "bundle.active wan up0")

			promote := func(member string) func() error {
				return func() error { return u.sw.Promote(within(t, 20*time.Second), "wan", member) }
			}
			seen = u.phase(t, "promoted up1", "up1", lossPlanned, promote("up1"))
			check("promoted up1", "bundle.active wan up1")
			seen = u.phase(t, "promoted up0", "up0", lossPlanned, promote("up0"))
			check("promoted up0", "bundle.active wan up0")

			seen = u.phase(t, "both unplugged", "", 1<<20, func() error {
				return errors.Join(u.wires[0].Unplug(lab.EndA), u.wires[1].Unplug(lab.EndA))
			})
			check("both unplugged", "bundle.active wan ")
			seen = u.phase(t, "up1 back", "up1", 1<<20, func() error { return u.wires[1].Plug(lab.EndA) })
			check("up1 back", "bundle.active wan up1")
			seen = u.phase(t, "up0 back", "up0", lossPlanned, func() error { return u.wires[0].Plug(lab.EndA) })
			check("up0 back", "bundle.active wan up0")

			seen = u.phase(t, "removed by us", "up1", lossPlanned, func() error {
				return u.sw.Operate(within(t, 20*time.Second), control.OpRemove, "up0", "test", false)
			})
			check("removed by us", "bundle.active wan up1", "adapter.halt up0 Disabled")

			u.end(t)
		})
	}
}

// end stops the traffic and checks that the connection lived through it all.
func (u *uplinks) end(t *testing.T) {
	t.Helper()
	s, err := u.tcp.Stop(within(t, 20*time.Second))
	if err != nil || !s.Survived() {
		t.Errorf("TCP did not survive: %v, %+v", err, s)
	}
	must(t, u.udp.Stop())
}

// TestTeamStations has only the server send: what tells the switches outside
// that a station behind our bridge is now behind the other member is our
// announcement alone.
func TestTeamStations(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksBridge, withProbe)
	ctx := within(t, 60*time.Second)
	flow, err := u.server.StartUDPFlow(ctx, u.client, addr("10.2.0.3"), lab.UDPFlowOptions{OneWay: true})
	must(t, err)
	wire, err := u.server.OpenRaw("e1", lab.RawOptions{})
	must(t, err)
	mac, err := u.client.MAC("if0")
	must(t, err)
	flow.Snapshot(ctx)
	must(t, u.wires[0].Cut(lab.EndA))
	rarp, err := wire.Recv(ctx, func(f lab.RawFrame) bool {
		return len(f.Data) >= 42 && f.Data[12] == 0x80 && f.Data[13] == 0x35 && slices.Equal(f.Data[6:12], mac)
	})
	if err != nil {
		t.Fatalf("no reverse ARP for the client's %s came over the other wire: %v", mac, err)
	}
	if !slices.Equal(rarp.Data[:6], ndiscore.Broadcast[:]) {
		t.Errorf("the announcement is for % x, not for everybody", rarp.Data[:6])
	}
	must(t, wire.Close())
	must(t, lab.Eventually(ctx, "datagrams to arrive again", func() error {
		s := flow.Snapshot(ctx)
		if s.AtoB.Sent == 0 || s.AtoB.Lost > 0 {
			return fmt.Errorf("%+v", s.AtoB)
		}
		return nil
	}))
	total, err := flow.Total()
	must(t, err)
	t.Logf("lost %d of %d", total.AtoB.Lost, total.AtoB.Sent)
	if total.AtoB.Lost > lossFailure || total.AtoB.Duplicated > 0 {
		t.Errorf("%+v", total.AtoB)
	}
}

// TestTeamAnnounces: after a failover the router tells everybody behind the new
// member where its addresses are.
func TestTeamAnnounces(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "hold = \"0s\"\n")
	ctx := within(t, 60*time.Second)
	wire, err := u.server.OpenRaw("e1", lab.RawOptions{})
	must(t, err)
	infos, err := u.sw.Adapters(ctx)
	must(t, err)
	var mac ndiscore.MAC
	for _, a := range infos {
		if a.Name == "wan" {
			mac = a.MAC
		}
	}
	must(t, u.wires[0].Cut(lab.EndA))
	ip4, ip6 := addr("10.2.0.1").AsSlice(), addr("fd00:2::1").AsSlice()
	arp, nd := false, false
	for !arp || !nd {
		f, err := wire.Recv(ctx, func(f lab.RawFrame) bool { return len(f.Data) >= 42 && slices.Equal(f.Data[6:12], mac[:]) })
		if err != nil {
			t.Fatalf("gratuitous ARP %v, unsolicited neighbour advertisement %v: %v", arp, nd, err)
		}
		d := f.Data
		switch kind := int(d[12])<<8 | int(d[13]); {
		case kind == 0x0806: // both addresses are ours
			arp = arp || slices.Equal(d[:6], ndiscore.Broadcast[:]) && slices.Equal(d[28:32], ip4) && slices.Equal(d[38:42], ip4)
		case kind == 0x86dd && len(d) >= 78 && d[20] == 58 && d[54] == 136: // an advertisement, to all nodes
			nd = nd || d[0] == 0x33 && slices.Equal(d[62:78], ip6)
		}
	}
}

// TestOvertaken changes the active member by hand while datagrams queue in the
// network, and frames to everybody do not: were the team announced at once, the
// switch on the line of the member that was left would take it to be on the far
// side, and drop what it still has to pass on.
func TestOvertaken(t *testing.T) {
	lab.CheckLeaks(t)
	tc := command(t, t.Context(), "tc", "-batch", "-")
	u := newUplinks(t, uplinksRouter, "failback = \"never\"\n")
	ctx := within(t, 60*time.Second)
	// 1000 datagrams a second are 1.14 Mbit/s: a queue of 40 lasts for a while.
	var batch strings.Builder
	for _, dev := range []string{"e0", "e1"} {
		for _, c := range []string{
			"qdisc add dev %s root handle 1: htb default 1",
			"class add dev %s parent 1: classid 1:1 htb rate 1gbit quantum 1500",
			"class add dev %s parent 1: classid 1:2 htb rate 1300kbit burst 300 quantum 1500",
			"filter add dev %s parent 1: protocol ip u32 match ip protocol 17 0xff flowid 1:2",
		} {
			fmt.Fprintf(&batch, c+"\n", dev)
		}
	}
	tc.Stdin = strings.NewReader(batch.String())
	run(t, u.server, tc)
	flow, err := u.client.StartUDPFlow(ctx, u.server, u.dst, lab.UDPFlowOptions{Settle: 10 * time.Second})
	must(t, err)
	var filler net.Conn
	must(t, u.server.Do(func() (err error) {
		filler, err = net.Dial("udp", "10.2.0.1:9")
		return err
	}))
	defer filler.Close()
	u.udp = flow
	queued := false
	for _, to := range []string{"up1", "up0", "up1", "up0"} {
		must(t, u.waitRole(ctx, to, "standby"))
		mark := newest(u.sw.Switch)
		for range 40 {
			_, _ = filler.Write(make([]byte, 100)) // refused, which the next one hears of
		}
		must(t, lab.Eventually(ctx, "datagrams to queue", func() error {
			if d := flow.Snapshot(ctx).BtoA.MaxDelay; d < 10*time.Millisecond {
				return fmt.Errorf("they are under way for %v at most", d)
			}
			return nil
		}))
		u.full = fullQueues(t, u.sw.Switch)
		must(t, u.sw.Promote(ctx, "wan", to))
		_, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == "address.announced" })
		must(t, err)
		d := u.cost(t, "promoted "+to, lossPlanned).BtoA.MaxDelay
		t.Logf("promoted %s: under way for %v at most", to, ms(d))
		queued = queued || d >= 10*time.Millisecond
	}
	if !queued {
		t.Error("in no round was anything in the queue when the team moved")
	}
}

// TestFailbackNever stays on the second member until that one fails.
func TestFailbackNever(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "failback = \"never\"\nhold = \"0s\"\n")
	u.load(t)
	mark := newest(u.sw.Switch)
	u.phase(t, "up0 deleted", "up1", lossFailure, func() error { return u.wires[0].Cut(lab.EndA) })
	must(t, u.wires[0].Restore(lab.EndA))
	ctx := within(t, 30*time.Second)
	must(t, lab.Eventually(ctx, "up0 to stand by", func() error {
		infos, err := u.sw.Bundles(ctx)
		if err != nil {
			return err
		}
		if m := infos[0].Members[0]; m.Role != "standby" || m.Verdict != ndiscore.VerdictUp {
			return fmt.Errorf("%+v", m)
		}
		return nil
	}))
	u.through(t, 1<<20)
	u.phase(t, "up1 deleted", "up0", lossFailure, func() error { return u.wires[1].Cut(lab.EndA) })
	var moves, whys []string
	events, _, _ := u.sw.Events(mark)
	for _, e := range events {
		if e.What == "bundle.active" {
			moves = append(moves, e.From+">"+e.To)
			whys = append(whys, e.Why)
		}
	}
	if want := []string{"up0>up1", "up1>up0"}; !slices.Equal(moves, want) {
		t.Errorf("moves %v, want %v: %q", moves, want, whys)
	}
	u.end(t)
}

// TestNDIS5 deletes the primary of a bundle as NDIS 5.1 had it: the router is
// unbound from it and bound to the next, and its routes go and come.
func TestNDIS5(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "mode = \"ndis5\"\n")
	u.load(t)
	ctx := within(t, 60*time.Second)
	for i, other := range []string{"up1", "up0"} {
		primary := fmt.Sprintf("up%d", i)
		mark := newest(u.sw.Switch)
		must(t, u.wires[i].Cut(lab.EndA))
		_, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
			return e.What == "binding.bound" && e.Protocol == "stack" && e.Adapter == other
		})
		if err != nil {
			t.Fatalf("%s was deleted and the router not bound to %s: %v", primary, other, err)
		}
		must(t, u.client.WaitReachable(ctx, u.dst))
		u.through(t, 1<<20)
		s := u.udp.Snapshot(ctx)
		t.Logf("%s deleted: lost %d+%d, longest gap %v, %v", primary, s.AtoB.Lost, s.BtoA.Lost, ms(s.AtoB.LongestGap), ms(s.BtoA.LongestGap))
		if s.AtoB.Duplicated+s.BtoA.Duplicated > 0 {
			t.Errorf("duplicates: %+v", s)
		}
		if s.AtoB.Lost > 500 || s.BtoA.Lost > 500 {
			t.Errorf("lost too much: %+v", s)
		}
		events, _, _ := u.sw.Events(mark)
		inOrder(t, "ndis5 "+primary, events,
			"binding.unbound "+primary+" ", "bundle.primary wan "+other, "binding.bound "+other+" ")
		went, came := false, false
		for _, e := range events {
			went = went || e.What == "route.withdrawn"
			came = came || went && e.What == "route.alive"
		}
		if !went || !came {
			t.Errorf("%s: routes went %v, came %v", primary, went, came)
		}
		// Promoted as soon as the halt had begun; it may take longer than that.
		if _, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
			return e.What == "adapter.halt" && e.Adapter == primary && e.To == ndiscore.HaltSurpriseRemoved.String()
		}); err != nil {
			t.Errorf("%s was not halted: %v", primary, err)
		}
		// It comes back as a secondary: nothing moves.
		must(t, u.wires[i].Restore(lab.EndA))
		must(t, u.waitRole(ctx, primary, "secondary"))
	}
	u.end(t)
}

func (u *uplinks) waitRole(ctx context.Context, member, role string) error {
	return lab.Eventually(ctx, member+" to be "+role, func() error {
		infos, err := u.sw.Bundles(ctx)
		if err != nil {
			return err
		}
		for _, m := range infos[0].Members {
			if m.Adapter == member && m.Role != role {
				return fmt.Errorf("it is %s", m.Role)
			}
		}
		return nil
	})
}
