package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// A switch of which half is changed while traffic goes through the other half:
//
//	                    untouched                                       changed
//	host a ==[lan0 TAP]==+                                    +==[lan2]== host c
//	                     +-- bridge lan -- router -- bundle --+==[c1]==== host c, added and removed
//	host b ==[lan1]======+   10.1.0.0/24     |      wan       +==[dmz0]== host d, 10.3.0.0/24
//	                                         +--[up0 up1]== wires == server 10.2.0.2
type town struct {
	*uplinks
	a, b, c, d *lab.Host
	flows      map[string]*lab.UDPFlow

	full queues // frames that found no room, so far
}

// plan is what the configuration of a town says, beyond what never changes.
type plan struct {
	more    string   // tables before all others
	ports   []string // of the bridge, beyond lan0 and lan1
	lan2    string   // keys of adapter lan2
	port2   string   // keys of lan2 as a port
	dmz     string   // keys of adapter dmz0
	bundle  string   // keys of the bundle
	outside string   // keys of interface outside
	tail    string   // tables behind all others
}

// base is what the town starts with.
var base = plan{ports: []string{"lan2"}, bundle: "hold = \"200ms\"\n"}

func (p plan) text(netns string) string {
	ports := append([]string{"lan0", "lan1"}, p.ports...)
	port2 := ""
	if slices.Contains(p.ports, "lan2") {
		port2 = "[bridge.lan.port.lan2]\n" + p.port2
	}
	return fmt.Sprintf(`[fault]
allow = true
%s
[adapter.lan0]
driver = "tap"
netns = %q
[adapter.lan1]
driver = "afpacket"
[adapter.lan2]
driver = "afpacket"
%s
[adapter.dmz0]
driver = "afpacket"
%s
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"
[bundle.wan]
members = ["up0", "up1"]
%s
[bridge.lan]
ports = ["%s"]
vlan = 1
%s
[interface.inside]
on = "lan"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
%s
%s`, p.more, netns, p.lan2, p.dmz, p.bundle, strings.Join(ports, `", "`), port2, p.outside, p.tail)
}

// newTown builds it, and starts a thousand datagrams a second each way from a
// TAP to a veth over the bridge and from the TAP through the router and the
// bundle, and TCP from the veth through the router and the bundle. At the end of
// a phase it waits up to settle for datagrams that are under way.
func newTown(t *testing.T, settle time.Duration) *town {
	t.Helper()
	needTAP(t)
	l := lab.NewTest(t)
	w := &town{
		uplinks: &uplinks{l: l, here: l.Here(), server: l.Host("server"), dst: addr("10.2.0.2")},
		a:       l.Host("a"), b: l.Host("b"), c: l.Host("c"), d: l.Host("d"),
		flows: map[string]*lab.UDPFlow{},
	}
	for i := range w.wires {
		wire, err := l.Wire(w.here, fmt.Sprintf("up%d", i), w.server, fmt.Sprintf("e%d", i), lab.VethOptions{})
		must(t, err)
		w.wires[i] = wire
	}
	for _, x := range []struct {
		port string
		h    *lab.Host
		name string
	}{{"lan1", w.b, "if0"}, {"lan2", w.c, "if0"}, {"c1", w.c, "if1"}, {"dmz0", w.d, "if0"}} {
		l.Veth(w.here, x.port, x.h, x.name, lab.VethOptions{})
	}
	must(t,
		l.Bridge(w.server, "br0", "e0", "e1"),
		w.server.AddAddr("br0", "10.2.0.2/24", "fd00:2::2/64"), w.server.Route("default", "10.2.0.1"), w.server.Route("::/0", "fd00:2::1"),
		w.b.AddAddr("if0", "10.1.0.3/24", "fd00:1::3/64"), w.b.Route("default", "10.1.0.1"),
		w.c.AddAddr("if0", "10.1.0.4/24"), w.d.AddAddr("if0", "10.3.0.2/24"), w.d.Route("default", "10.3.0.1"))
	w.sw = start(t, l, base.text(w.a.Path()))
	must(t, w.a.AddAddr("lan0", "10.1.0.2/24", "fd00:1::2/64"), w.a.Route("default", "10.1.0.1"), w.a.Route("::/0", "fd00:1::1"))
	ctx := within(t, 60*time.Second)
	must(t, w.sw.WaitActive(ctx, "wan", "up0"), w.a.WaitReachable(ctx, w.dst), w.a.WaitReachable(ctx, addr("10.1.0.3")),
		w.b.WaitReachable(ctx, w.dst), w.a.WaitReachable(ctx, addr("10.1.0.4")), w.a.WaitReachable(ctx, addr("fd00:2::2")))
	var err error
	o := lab.UDPFlowOptions{Rate: 1000, Settle: settle}
	w.flows["bridged"], err = w.a.StartUDPFlow(t.Context(), w.b, addr("10.1.0.3"), o)
	must(t, err)
	w.flows["routed"], err = w.a.StartUDPFlow(t.Context(), w.server, addr("fd00:2::2"), o)
	must(t, err)
	w.tcp, err = w.b.StartTCPBulk(t.Context(), w.server, w.dst, lab.TCPBulkOptions{Rate: 2 << 20, Duplex: true})
	must(t, err)
	w.through(t, 256<<10)
	w.cost(t, "at rest")
	return w
}

// cost ends a phase of the traffic: how much was lost, beyond what the kernels
// of a busy machine had no room for. Nothing may be there twice.
func (w *town) cost(t *testing.T, name string) (lost map[string]uint64) {
	t.Helper()
	lost = map[string]uint64{}
	var late time.Duration
	for flow, f := range w.flows {
		s := f.Snapshot(within(t, 30*time.Second))
		for way, d := range map[string]lab.DirectionStats{"there": s.AtoB, "back": s.BtoA} {
			late = max(late, d.SenderLate)
			lost[flow+" "+way] = d.Lost - min(d.Lost, d.Overrun+d.SendErrors)
			if d.Duplicated > 0 || d.Corrupted > 0 || d.Received == 0 {
				t.Errorf("%s: %s %s: %+v", name, flow, way, d)
			}
		}
	}
	full := fullQueues(t, w.sw.Switch)
	if l, err := w.a.Netlink().LinkByName("lan0"); err == nil {
		full["TAP"] = l.Attrs().Statistics.TxDropped
	}
	if now := full.since(w.full, late); now > 0 {
		t.Logf("%s: this process was not run for so long that %d frames found a queue full", name, now)
		for k := range lost {
			lost[k] -= min(lost[k], now)
		}
	}
	w.full = full
	return lost
}

// lossless checks that doing something costs nobody a frame, and that nothing
// happens to the ports that the traffic uses.
func (w *town) lossless(t *testing.T, name string, do func(ctx context.Context) error) {
	t.Helper()
	mark := newest(w.sw.Switch)
	if err := do(within(t, 60*time.Second)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	w.through(t, 512<<10) // some 250 ms
	for flow, n := range w.cost(t, name) {
		if n > 0 {
			t.Errorf("%s: %s lost %d", name, flow, n)
		}
	}
	events, _, _ := w.sw.Events(mark)
	for _, e := range events {
		switch e.Adapter {
		case "lan", "lan0", "lan1", "up0", "up1", "wan":
			if strings.HasPrefix(e.What, "adapter.") || strings.HasPrefix(e.What, "binding.") && e.Protocol != "health" || strings.HasPrefix(e.What, "filter.") {
				t.Errorf("%s: %+v", name, e)
			}
		}
	}
}

// apply carries out a configuration, and checks the steps that it takes.
func (w *town) apply(ctx context.Context, p plan, steps ...string) error {
	return applied(ctx, w.sw, p.text(w.a.Path()), steps...)
}

// applied has sw apply a configuration, and checks the steps that it takes.
func applied(ctx context.Context, sw *lab.Switch, text string, steps ...string) error {
	did, err := sw.Apply(ctx, []byte(text), false)
	if err != nil {
		return err
	}
	var titles []string
	for _, s := range did.Steps {
		titles = append(titles, s.Text)
	}
	if !slices.Equal(titles, steps) {
		return fmt.Errorf("it took %q, want %q", titles, steps)
	}
	return nil
}

// Two filters: one lets through all that comes here, one does not.
const badLine = "[filter.wide]\ndriver = \"fault\"\nrate = \"10Gbit\"\n[filter.lossy]\ndriver = \"fault\"\ndrop = \"1%\"\n"

// all is every change at once.
var all = plan{
	more:   badLine + "[adapter.c1]\ndriver = \"afpacket\"\n",
	ports:  []string{"lan2", "c1"},
	lan2:   "ring_mib = 4\nfilters = [\"wide\"]\n",
	port2:  "access = 20\nstorm_broadcast = 100\n",
	dmz:    "filters = [\"lossy\", \"wide\"]\n",
	bundle: "hold = \"300ms\"\nfailback = \"better\"\n",
	tail: `[interface.dmz]
on = "dmz0"
addresses = ["10.3.0.1/24"]
masquerade = true
[[route]]
to = "10.9.0.0/16"
via = "10.3.0.2"
[[forward]]
interface = "dmz"
protocol = "tcp"
port = "8080"
to = "10.1.0.2:80"
`,
}

// TestApplyUnderLoad changes everything that can be changed beside the ports in
// use, one after the other and all at once: these lose no frame.
func TestApplyUnderLoad(t *testing.T) {
	lab.CheckLeaks(t)
	w := newTown(t, 5*time.Second)
	p := base
	change := func(name string, edit func(p *plan), steps ...string) {
		t.Helper()
		edit(&p)
		w.lossless(t, name, func(ctx context.Context) error { return w.apply(ctx, p, steps...) })
	}
	reach := func(h *lab.Host, dst string) {
		t.Helper()
		if err := h.WaitReachable(within(t, 30*time.Second), addr(dst)); err != nil {
			t.Error(err)
		}
	}

	change("nothing", func(*plan) {})

	change("adapter and port added", func(p *plan) {
		p.more, p.ports = "[adapter.c1]\ndriver = \"afpacket\"\n", []string{"lan2", "c1"}
	}, "add adapter c1", "add port c1 on lan")
	must(t, w.c.Down("if0"), w.c.AddAddr("if1", "10.1.0.5/24"))
	reach(w.c, "10.1.0.2") // over the new port
	must(t, w.c.DelAddr("if1", "10.1.0.5/24"), w.c.Up("if0"))
	change("adapter and port removed", func(p *plan) { p.more, p.ports = "", []string{"lan2"} },
		"remove port c1 on lan", "remove adapter c1")
	change("port removed", func(p *plan) { p.ports = nil }, "remove port lan2 on lan")
	change("port added", func(p *plan) { p.ports = []string{"lan2"} }, "add port lan2 on lan")

	change("adapter with other options", func(p *plan) { p.lan2 = "ring_mib = 4\n" }, "restart adapter lan2")
	change("adapter with several queues", func(p *plan) { p.lan2 = "queues = 2\n" }, "restart adapter lan2")
	reach(w.c, "10.1.0.2")

	change("filters added", func(p *plan) { p.more, p.lan2 = badLine, "queues = 2\nfilters = [\"wide\", \"lossy\"]\n" },
		"add filter wide on lan2 at 0", "add filter lossy on lan2 at 1")
	change("filters in another order", func(p *plan) { p.lan2 = "queues = 2\nfilters = [\"lossy\", \"wide\"]\n" }, "move filter lossy on lan2 at 0")
	reach(w.c, "10.1.0.2")
	change("filters removed", func(p *plan) { p.more, p.lan2 = "", "queues = 2\n" },
		"remove filter lossy on lan2", "remove filter wide on lan2")

	change("port into another VLAN", func(p *plan) { p.port2 = "access = 20\n" }, "update bridge lan")
	if r, err := w.c.Ping(t.Context(), addr("10.1.0.2"), lab.PingOptions{Timeout: 100 * time.Millisecond}); err != nil || r.Received > 0 {
		t.Errorf("VLAN 20 reaches VLAN 1: %+v, %v", r, err)
	}
	change("port of VLANs with a tag", func(p *plan) { p.port2 = "trunk = [\"10-20\"]\nnative = 1\n" }, "update bridge lan")
	change("port with limits", func(p *plan) { p.port2 = "storm_broadcast = 50\nstorm_unknown = 50\nmac_limit = 8\n" }, "update bridge lan")
	reach(w.c, "10.1.0.2")

	dmz := "[interface.dmz]\non = \"dmz0\"\naddresses = [\"10.3.0.1/24\"]\n"
	route := "[[route]]\nto = \"10.9.0.0/16\"\nvia = \"10.3.0.2\"\n"
	const to9 = "10.9.0.0/16 via 10.3.0.2 on dmz"
	change("interface and route added", func(p *plan) { p.tail = dmz + route }, "add interface dmz", "add route "+to9)
	reach(w.d, "10.1.0.2")
	change("masquerade on", func(p *plan) { p.tail = dmz + "masquerade = true\n" + route }, "update interface dmz")
	reach(w.b, "10.3.0.2")
	forward := "[[forward]]\ninterface = \"dmz\"\nprotocol = \"tcp\"\nport = \"8080\"\nto = \"10.1.0.2:80\"\n"
	change("forward added", func(p *plan) { p.tail += forward }, "add forward tcp 8080 at dmz to 10.1.0.2:80")
	change("NAT limits", func(p *plan) { p.tail += "[nat]\nudp = \"60s\"\n" }, "update nat")
	change("masquerade off", func(p *plan) { p.tail = dmz + route + forward + "[nat]\nudp = \"60s\"\n" }, "update interface dmz")
	change("interface and route removed", func(p *plan) { p.tail = "" },
		"remove route "+to9, "remove forward tcp 8080 at dmz to 10.1.0.2:80", "remove interface dmz", "update nat")

	change("masquerade of the interface in use", func(p *plan) { p.outside = "masquerade6 = false\n" }) // as it was
	change("bundle's policy", func(p *plan) { p.bundle = "hold = \"300ms\"\nfailback = \"never\"\nup_delay = \"100ms\"\n" }, "update bundle wan")
	change("bundle is probed", func(p *plan) { p.bundle += "[bundle.wan.health]\nprobe = \"neighbor\"\ntarget = \"10.2.0.2\"\n" },
		"add probe wan", "update bundle wan")
	change("bundle's probe changes", func(p *plan) { p.bundle += "interval = \"50ms\"\n" }, "update probe wan")
	change("bundle is not probed", func(p *plan) { p.bundle = base.bundle }, "update bundle wan", "remove probe wan")

	p = base
	w.lossless(t, "back to the start", func(ctx context.Context) error {
		_, err := w.sw.Apply(ctx, []byte(p.text(w.a.Path())), false)
		return err
	})
	w.lossless(t, "everything at once", func(ctx context.Context) error {
		_, err := w.sw.Apply(ctx, []byte(all.text(w.a.Path())), false)
		return err
	})
	reach(w.d, "10.1.0.2")
	w.lossless(t, "everything undone", func(ctx context.Context) error {
		_, err := w.sw.Apply(ctx, []byte(p.text(w.a.Path())), false)
		return err
	})
	reach(w.c, "10.1.0.2")
	w.end(t)
}

// end stops the traffic.
func (w *town) end(t *testing.T) {
	t.Helper()
	s, err := w.tcp.Stop(within(t, 30*time.Second))
	if err != nil || !s.Survived() {
		t.Errorf("TCP did not survive: %v, %+v", err, s)
	}
	for _, f := range w.flows {
		must(t, f.Stop())
	}
	noChecksumErrors(t, w.a, w.b, w.server)
}

// shape is what a switch consists of, without what counts.
func shape(t *testing.T, sw *lab.Switch) string {
	t.Helper()
	var b strings.Builder
	adapters, err := sw.Adapters(t.Context())
	must(t, err)
	slices.SortFunc(adapters, func(x, y ndiscore.AdapterInfo) int { return strings.Compare(x.Name, y.Name) })
	for _, a := range adapters {
		fmt.Fprintln(&b, a.Name, a.State, a.MAC, a.MTU)
		for _, f := range a.Filters {
			fmt.Fprintln(&b, "  filter", f.Name)
		}
		for _, x := range slices.Sorted(slices.Values(bindings(a))) {
			fmt.Fprintln(&b, "  binding", x)
		}
	}
	bundles, err := sw.Bundles(t.Context())
	must(t, err)
	for _, x := range bundles {
		fmt.Fprintln(&b, x.Name, x.Active)
	}
	bridges, err := sw.BridgeList(t.Context())
	must(t, err)
	for _, x := range bridges {
		for _, p := range x.Ports {
			fmt.Fprintln(&b, x.Name, p.Name, p.State, p.Access, p.Trunk, p.Native)
		}
	}
	interfaces, err := sw.Interfaces(t.Context())
	must(t, err)
	for _, i := range interfaces {
		fmt.Fprintln(&b, "interface", i.Name, i.On)
	}
	routes, err := sw.Routes(t.Context())
	must(t, err)
	fmt.Fprintf(&b, "%d routes\n", len(routes))
	b.Write(sw.Config())
	return b.String()
}

func bindings(a ndiscore.AdapterInfo) (names []string) {
	for _, b := range a.Bindings {
		names = append(names, b.Protocol)
	}
	return names
}

// TestApplyNothing: a dry run changes nothing, and of a plan that fails nothing
// is left; neither costs a frame.
func TestApplyNothing(t *testing.T) {
	lab.CheckLeaks(t)
	w := newTown(t, 5*time.Second)
	before := shape(t, w.sw)
	same := func(name string) {
		t.Helper()
		if now := shape(t, w.sw); now != before {
			t.Errorf("%s: the switch is now\n%s\nand was\n%s", name, now, before)
		}
	}
	mark := newest(w.sw.Switch)
	w.lossless(t, "dry run", func(ctx context.Context) error {
		p, err := w.sw.Apply(ctx, []byte(all.text(w.a.Path())), true)
		if err == nil && (p.Applied || len(p.Steps) < 8) {
			err = fmt.Errorf("applied %v, steps %+v", p.Applied, p.Steps)
		}
		return err
	})
	if events, _, _ := w.sw.Events(mark); len(events) > 0 {
		t.Errorf("a dry run did something: %+v", events)
	}
	same("dry run")

	fails := func(name string, p plan, words ...string) {
		t.Helper()
		w.lossless(t, name, func(ctx context.Context) error {
			_, err := w.sw.Apply(ctx, []byte(p.text(w.a.Path())), false)
			if err == nil {
				return errors.New("it did not fail")
			}
			clear(t, err, words...)
			return nil
		})
		same(name)
		if err := w.c.WaitReachable(within(t, 30*time.Second), addr("10.1.0.2")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := all
	p.more += "[adapter.gone]\ndriver = \"afpacket\"\ninterface = \"eth77\"\n"
	fails("device that does not exist", p, "adapter gone", "eth77", "everything is as it was")
	p = all
	p.lan2 = "interface = \"eth78\"\n"
	fails("adapter onto a device that does not exist", p, "restart adapter lan2", "eth78", "everything is as it was")
	p = all
	p.more += "[control]\nsocket = \"/tmp/elsewhere\"\n"
	fails("what needs a new process", p, "control.socket", "restart")
	p = all
	p.tail += "colour = \"red\"\n"
	fails("configuration with a mistake", p, "colour")
	w.end(t)
}

// dropped is everything that was dropped between two readings, by adapter and
// reason.
func dropped(before, after map[string]ndiscore.Counters) map[string]uint64 {
	told := map[string]uint64{}
	for name, c := range after {
		was := before[name]
		for r, n := range c.RxDropped {
			told[name+" rx "+r] += n - min(n, was.RxDropped[r]) // an adapter that is new counts anew
		}
		for r, n := range c.TxDropped {
			told[name+" tx "+r] += n - min(n, was.TxDropped[r])
		}
	}
	maps.DeleteFunc(told, func(_ string, n uint64) bool { return n == 0 })
	return told
}

// TestFilterUnderLoad puts a filter into a port in use, moves and removes it:
// the little that is lost is counted.
func TestFilterUnderLoad(t *testing.T) {
	lab.CheckLeaks(t)
	w := newTown(t, 300*time.Millisecond)
	ctx := within(t, 120*time.Second)
	must(t, w.apply(ctx, plan{more: badLine, ports: base.ports, bundle: base.bundle}))
	for _, port := range []string{"lan0", "lan1", "up0"} {
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"inserted", func() error { return w.sw.InsertFilter(ctx, port, "wide", 0) }},
			{"removed", func() error { return w.sw.RemoveFilter(ctx, port, "wide") }},
		} {
			before := counters(t, w.sw.Switch)
			must(t, step.do())
			w.through(t, 256<<10)
			lost := w.cost(t, "filter "+step.name)
			told := dropped(before, counters(t, w.sw.Switch))
			var sum, most uint64
			for _, n := range told {
				sum += n
			}
			for _, n := range lost {
				most += n
			}
			t.Logf("filter %s on %s: lost %v, counted %v", step.name, port, lost, told)
			if most > sum {
				t.Errorf("filter %s on %s: %d lost, of which only %d counted", step.name, port, most, sum)
			}
			if most > 4*lossInsert {
				t.Errorf("filter %s on %s: lost %v", step.name, port, lost)
			}
		}
	}
	w.end(t)
}

// TestApplyMembers changes who the members of a team are while it carries
// everything: nothing is lost, and nobody is unbound.
func TestApplyMembers(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "hold = \"100ms\"\n")
	u.l.Veth(u.here, "up2", u.server, "e2", lab.VethOptions{})
	nl := u.server.Netlink()
	port, err := nl.LinkByName("e2")
	must(t, err)
	br, err := nl.LinkByName("br0")
	must(t, err, nl.LinkSetMaster(port, br))
	u.load(t)
	change := func(name, active string, members, adapters []string, steps ...string) {
		t.Helper()
		text := "[fault]\nallow = true\n" + u.text[strings.Index(u.text, "[bundle.wan]"):]
		text = strings.Replace(text, `["up0", "up1"]`, `["`+strings.Join(members, `", "`)+`"]`, 1)
		for _, a := range append(adapters, "lan0") {
			text += fmt.Sprintf("[adapter.%s]\ndriver = \"afpacket\"\n", a)
		}
		mark := newest(u.sw.Switch)
		if err := applied(within(t, 30*time.Second), u.sw, text, steps...); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		must(t, u.sw.WaitActive(within(t, 30*time.Second), "wan", active))
		u.through(t, 3<<20)
		u.cost(t, name, lossPlanned)
		events, _, _ := u.sw.Events(mark)
		undisturbed(t, name, events)
	}
	three := []string{"up0", "up1", "up2"}
	change("one comes", "up0", three, three, "add adapter up2", "update bundle wan")
	change("another order", "up2", []string{"up2", "up1", "up0"}, three, "update bundle wan")
	change("the active one leaves", "up1", []string{"up1", "up0"}, three, "update bundle wan")
	change("one for another", "up2", []string{"up2", "up1"}, three, "update bundle wan")
	change("the active one goes", "up1", []string{"up1", "up0"}, three[:2], "update bundle wan", "remove adapter up2", "update bundle wan")
	u.end(t)
}

// TestOperateUnderLoad does everything to the members of a team that an operator
// can do: nobody notices, be it the standby or the active one.
func TestOperateUnderLoad(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksRouter, "hold = \"100ms\"\n")
	u.load(t)
	operate := func(op control.AdapterOp, member string) func() error {
		return func() error { return u.sw.Operate(within(t, 30*time.Second), op, member, "test", false) }
	}
	pairs := [][2]control.AdapterOp{
		{control.OpPause, control.OpStart}, {control.OpSuspend, control.OpResume}, {control.OpStop, control.OpStart},
		{control.OpRestart, ""}, {control.OpReset, ""},
	}
	for _, ops := range pairs {
		for _, op := range ops {
			if op == "" {
				continue
			}
			mark := newest(u.sw.Switch)
			must(t, operate(op, "up1")())
			u.through(t, 1<<20)
			u.cost(t, fmt.Sprintf("%s standby", op), lossPlanned)
			must(t, u.waitRoleOrNot(within(t, 30*time.Second), op))
			events, _, _ := u.sw.Events(mark)
			for _, e := range events {
				if e.What == "bundle.active" {
					t.Errorf("%s of the standby moved the bundle: %+v", op, e)
				}
			}
		}
	}
	for _, ops := range pairs {
		for i, op := range ops {
			if op == "" {
				continue
			}
			must(t, operate(op, "up0")())
			if i == len(ops)-1 || ops[1] == "" {
				must(t, u.sw.WaitActive(within(t, 30*time.Second), "wan", "up0"))
			}
			u.through(t, 1<<20)
			u.cost(t, fmt.Sprintf("%s active", op), lossPlanned)
		}
		must(t, u.sw.WaitActive(within(t, 30*time.Second), "wan", "up0"), u.waitStandby(within(t, 30*time.Second)))
	}
	u.end(t)
}

// cost ends a phase of the stream of datagrams, of which each way may have lost
// so many, and returns it.
func (u *uplinks) cost(t *testing.T, name string, mayLose uint64) lab.FlowStats {
	t.Helper()
	s := u.udp.Snapshot(within(t, 30*time.Second))
	t.Logf("%-22s lost %d+%d of %d+%d, longest gap %v, %v", name, s.AtoB.Lost, s.BtoA.Lost, s.AtoB.Sent, s.BtoA.Sent, ms(s.AtoB.LongestGap), ms(s.BtoA.LongestGap))
	queues := fullQueues(t, u.sw.Switch)
	full := queues.since(u.full, max(s.AtoB.SenderLate, s.BtoA.SenderLate))
	u.full = queues
	for _, d := range []lab.DirectionStats{s.AtoB, s.BtoA} {
		if d.Duplicated > 0 || d.Corrupted > 0 || d.Lost > mayLose+d.Overrun+full+starved(d) {
			t.Errorf("%s: %+v, may lose %d", name, d, mayLose)
		}
	}
	return s
}

// waitStandby waits until up1 stands by.
func (u *uplinks) waitStandby(ctx context.Context) error { return u.waitRole(ctx, "up1", "standby") }

// waitRoleOrNot waits for what an operation leaves of up1.
func (u *uplinks) waitRoleOrNot(ctx context.Context, op control.AdapterOp) error {
	switch op {
	case control.OpPause, control.OpStop, control.OpSuspend:
		return nil
	}
	return u.waitStandby(ctx)
}
