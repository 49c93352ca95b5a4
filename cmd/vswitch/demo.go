package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The demo is the switch's main job on an embedded configuration: nothing in it
// is staged. Its networks are private namespaces that end with the process.
//
//	client 10.77.1.2 --[lan0]-+                                   +-[up0]== wire ==+
//	                          +- bridge lan -- router -- bundle wan                +- bridge -- server 10.77.2.2
//	second 10.77.1.3 --[lan1]-+                                   +-[up1]== wire ==+
const demoConfig = `
[adapter.lan0]
%s
[adapter.lan1]
%s
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"

[bundle.wan]
members = ["up0", "up1"]
mode = "%s"
%s

[bridge.lan]
ports = ["lan0", "lan1"]

[interface.inside]
on = "lan"
addresses = ["10.77.1.1/24", "fd00:77:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.77.2.1/24", "fd00:77:2::1/64"]
masquerade = true
`

// demoTeam is what a team has and an ndis5 bundle has not: a fail-back, held
// until a probe was answered over the member that came back.
const demoTeam = `hold = "500ms"
[bundle.wan.health]
probe = "neighbor"
target = "10.77.2.2"`

// demoReport is the one object that `vswitch demo --json` prints. Times are in
// milliseconds; lost counts datagrams of a 1 kHz stream each way.
type demoReport struct {
	LAN      string       `json:"lan"` // "tap", or "veth" where /dev/net/tun cannot be used
	Baseline demoBaseline `json:"baseline"`
	Failover demoFailover `json:"failover"`
	Failback demoFailback `json:"failback"`
	NDIS5    demoNDIS5    `json:"ndis5"`
	Events   []demoEvent  `json:"events"`
	Seconds  float64      `json:"seconds"`
}

type demoLost struct {
	ToServer uint64 `json:"to_server"`
	ToClient uint64 `json:"to_client"`
}

type demoBaseline struct {
	EchoSent     int      `json:"echo_sent"`
	EchoAnswered int      `json:"echo_answered"`
	RTTMs        float64  `json:"rtt_ms"`
	Lost         demoLost `json:"lost"`
	TCPMbitPerS  float64  `json:"tcp_mbit_per_s"`
	NATFlows     int      `json:"nat_flows"` // masqueraded at the moment
}

type demoFailover struct {
	OutageMs    float64  `json:"outage_ms"` // longest time without an arrival, the worse direction
	NoticedMs   float64  `json:"noticed_ms"`
	Lost        demoLost `json:"lost"`
	TCPSurvived bool     `json:"tcp_survived"`
	TCPStallMs  float64  `json:"tcp_stall_ms"`
	HaltAction  string   `json:"halt_action"`
	StackSaw    []string `json:"stack_saw"` // events of the router's binding during the failover
	TeamSaw     []string `json:"team_saw"`  // events of the team's lower edge
}

type demoFailback struct {
	Lost        demoLost `json:"lost"`
	OutageMs    float64  `json:"outage_ms"`
	AfterMs     float64  `json:"after_ms"` // from the device's return to the move back
	TCPSurvived bool     `json:"tcp_survived"`
}

type demoNDIS5 struct {
	UnbindBindSeen bool     `json:"unbind_bind_seen"`
	RoutesWentCame bool     `json:"routes_went_and_came"`
	OutageMs       float64  `json:"outage_ms"`
	Lost           demoLost `json:"lost"`
	StackSaw       []string `json:"stack_saw"`
}

type demoEvent struct {
	Act     int     `json:"act"`
	TimeMs  float64 `json:"time_ms"` // since the device was deleted, in its act
	Adapter string  `json:"adapter"`
	What    string  `json:"what"`
	From    string  `json:"from,omitempty"`
	To      string  `json:"to,omitempty"`
	Why     string  `json:"why"`
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "run the real switch in private namespaces, fail an uplink, and tell what it cost",
		Description: "Starts a LAN bridge, a router and two uplinks in a bundle, sends traffic through them,\n" +
			"deletes the primary uplink's device, brings it back, and does it once more in ndis5 mode.\n" +
			"Takes about 10 seconds, needs no root where unprivileged user namespaces are allowed,\n" +
			"and leaves nothing behind.\n\nExample: vswitch demo --json | jq .failover",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print one JSON object instead of text"}},
		Action: func(c *cli.Context) error {
			inside, code, err := lab.Enter(lab.SandboxOptions{})
			if err != nil {
				return err
			}
			if !inside {
				if code != 0 {
					return exited(code)
				}
				return nil
			}
			ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
			defer stop()
			d := &demo{out: c.App.Writer, json: c.Bool("json")}
			if d.json {
				d.out = io.Discard
			}
			if err := d.run(ctx); err != nil {
				if ctx.Err() != nil {
					return errors.New("demo: interrupted; everything it made is gone")
				}
				return fmt.Errorf("demo: %w", err)
			}
			if d.json {
				enc := json.NewEncoder(c.App.Writer)
				enc.SetIndent("", "  ")
				return enc.Encode(d.report)
			}
			return nil
		},
	}
}

// demo is one run.
type demo struct {
	out    io.Writer
	json   bool
	report demoReport

	lab                    *lab.Lab
	client, second, server *lab.Host
	wires                  [2]*lab.Wire
	lanKeys                [2]string // config of the two LAN adapters
	act                    int
}

var (
	demoServer  = netip.MustParseAddr("10.77.2.2")
	demoServer6 = netip.MustParseAddr("fd00:77:2::2")
	demoSecond  = netip.MustParseAddr("10.77.1.3")
)

const demoTCPRate = 25 << 20 // bytes per second: enough to be hurt, not enough to starve two CPUs

func (d *demo) printf(format string, a ...any) { fmt.Fprintf(d.out, format, a...) }

func (d *demo) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	began := time.Now()
	if d.lab, err = lab.New(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	if err := d.build(); err != nil {
		return err
	}
	if err := d.actTeam(ctx); err != nil {
		return err
	}
	if err := d.actNDIS5(ctx); err != nil {
		return err
	}
	d.report.Seconds = time.Since(began).Seconds()
	d.printf("\nDone in %.0f s. Nothing is left behind.\n", d.report.Seconds)
	return nil
}

// build makes the networks around the switch.
func (d *demo) build() error {
	l := d.lab
	here := l.Here()
	d.client, d.second, d.server = l.Host("client"), l.Host("second"), l.Host("server")
	d.report.LAN = "tap"
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		d.report.LAN = "veth"
		d.printf("Note: /dev/net/tun cannot be used (%v): the LAN is made of veth pairs instead of TAP devices.\n\n", errors.Unwrap(err))
	} else {
		f.Close()
	}
	for i, h := range []*lab.Host{d.client, d.second} {
		name := fmt.Sprintf("lan%d", i)
		if d.report.LAN == "tap" {
			d.lanKeys[i] = fmt.Sprintf("driver = \"tap\"\nnetns = %q", h.Path())
			continue
		}
		d.lanKeys[i] = `driver = "afpacket"`
		if err := l.Veth(here, name, h, name, lab.VethOptions{}); err != nil {
			return err
		}
	}
	for i := range d.wires {
		w, err := l.Wire(here, fmt.Sprintf("up%d", i), d.server, fmt.Sprintf("e%d", i), lab.VethOptions{})
		if err != nil {
			return err
		}
		d.wires[i] = w
	}
	if err := l.Bridge(d.server, "br0", "e0", "e1"); err != nil {
		return err
	}
	return errors.Join(
		d.server.AddAddr("br0", "10.77.2.2/24", "fd00:77:2::2/64"),
		// Of the client's IPv4 network the server knows nothing: it is masqueraded.
		d.server.Route("fd00:77:1::/64", "fd00:77:2::1"),
	)
}

// start starts the switch, and gives the LAN's hosts their addresses.
func (d *demo) start(ctx context.Context, mode, more string) (*lab.Switch, error) {
	text := fmt.Sprintf(demoConfig, d.lanKeys[0], d.lanKeys[1], mode, more)
	sw, err := d.lab.StartSwitch(ctx, text, zap.NewNop())
	if err != nil {
		return nil, err
	}
	for i, h := range []*lab.Host{d.client, d.second} {
		name := fmt.Sprintf("lan%d", i)
		if err := errors.Join(
			h.AddAddr(name, fmt.Sprintf("10.77.1.%d/24", i+2), fmt.Sprintf("fd00:77:1::%d/64", i+2)),
			h.Up(name),
			h.Route("default", "10.77.1.1"),
			h.Route("::/0", "fd00:77:1::1"),
		); err != nil {
			return nil, err
		}
	}
	if err := sw.WaitActive(ctx, "wan", "up0"); err != nil {
		return nil, err
	}
	for _, dst := range []netip.Addr{demoSecond, demoServer, demoServer6} {
		if err := d.client.WaitReachable(ctx, dst); err != nil {
			return nil, err
		}
	}
	return sw, nil
}

func (d *demo) actTeam(ctx context.Context) error {
	d.act = 1
	d.printf("%s", demoPicture)
	sw, err := d.start(ctx, "team", demoTeam)
	if err != nil {
		return err
	}
	tcp, err := d.client.StartTCPBulk(ctx, d.server, demoServer, lab.TCPBulkOptions{Rate: demoTCPRate, Duplex: true})
	if err != nil {
		return err
	}
	udp, err := d.client.StartUDPFlow(ctx, d.server, demoServer, lab.UDPFlowOptions{})
	if err != nil {
		return err
	}

	// Everything works.
	ping, err := d.client.Ping(ctx, demoServer, lab.PingOptions{Count: 10, Interval: 50 * time.Millisecond})
	if err != nil {
		return err
	}
	base := udp.Snapshot(ctx)
	baseTCP := tcp.Snapshot()
	d.report.Baseline = demoBaseline{
		EchoSent: ping.Sent, EchoAnswered: ping.Received, RTTMs: ms(median(ping.RTTs)), Lost: lost(base),
		TCPMbitPerS: mbit(baseTCP.AtoB.Received+baseTCP.BtoA.Received, baseTCP.Elapsed),
	}
	table, err := sw.NAT(ctx, control.NATMatch{}, 0)
	if err != nil {
		return err
	}
	d.report.Baseline.NATFlows = table.Total
	d.printf("1. Traffic from client to server and back\n")
	d.printf("   echo       %d of %d answered, median %.2f ms\n", ping.Received, ping.Sent, d.report.Baseline.RTTMs)
	d.printf("   UDP 1 kHz  lost %d to the server, %d to the client\n", base.AtoB.Lost, base.BtoA.Lost)
	d.printf("   TCP        %.0f Mbit/s both ways together, every byte checked\n", d.report.Baseline.TCPMbitPerS)
	d.printf("   NAT        %d flows masqueraded: the server sees 10.77.2.1, and has no way to 10.77.1.0/24\n\n", table.Total)

	// The primary uplink's device goes.
	mark := lastEvent(sw)
	cut := time.Now()
	if err := d.wires[0].Cut(lab.EndA); err != nil {
		return err
	}
	halted, err := sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == "adapter.halt" && e.Adapter == "up0" })
	if err != nil {
		return fmt.Errorf("up0 was deleted, and not halted: %w", err)
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	over, overTCP := udp.Snapshot(ctx), tcp.Snapshot()
	seen := d.keep(sw, mark, cut)
	d.report.Failover = demoFailover{
		OutageMs: ms(max(over.AtoB.LongestGap, over.BtoA.LongestGap)), Lost: lost(over),
		TCPSurvived: overTCP.Survived() && overTCP.AtoB.Received > 0 && overTCP.BtoA.Received > 0,
		TCPStallMs:  ms(max(overTCP.AtoB.LongestStall, overTCP.BtoA.LongestStall)),
		HaltAction:  halted.To, StackSaw: saw(seen, "stack"), TeamSaw: saw(seen, "team wan"),
	}
	for _, e := range seen {
		if e.What == "bundle.active" {
			d.report.Failover.NoticedMs = ms(e.Time.Sub(cut))
			break
		}
	}
	d.printf("2. The device of up0 is deleted; what happened (ms since the deletion)\n")
	d.printEvents(seen, cut)
	f := d.report.Failover
	d.printf("   outage     %.1f ms without an arrival, at the worse end\n", f.OutageMs)
	d.printf("   UDP 1 kHz  lost %d to the server, %d to the client\n", f.Lost.ToServer, f.Lost.ToClient)
	d.printf("   TCP        %s; longest stall %.1f ms\n", yes(f.TCPSurvived, "same connection, no byte wrong", "BROKEN"), f.TCPStallMs)
	d.printf("   up0        halted with %s\n", f.HaltAction)
	d.printf("   router     %s\n\n", orNothing(f.StackSaw))

	// It comes back.
	mark = lastEvent(sw)
	back := time.Now()
	if err := d.wires[0].Restore(lab.EndA); err != nil {
		return err
	}
	moved, err := sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool { return e.What == "bundle.active" && e.To == "up0" })
	if err != nil {
		return fmt.Errorf("up0 came back, and the bundle did not go back to it: %w", err)
	}
	if err := pause(ctx, 700*time.Millisecond); err != nil {
		return err
	}
	again, againTCP := udp.Snapshot(ctx), tcp.Snapshot()
	seen = d.keep(sw, mark, back)
	d.report.Failback = demoFailback{
		Lost: lost(again), OutageMs: ms(max(again.AtoB.LongestGap, again.BtoA.LongestGap)), AfterMs: ms(moved.Time.Sub(back)),
		TCPSurvived: againTCP.Survived() && againTCP.AtoB.Received > 0,
	}
	b := d.report.Failback
	d.printf("3. The device is there again (ms since its return)\n")
	d.printEvents(seen, back)
	d.printf("   back on up0 after %.0f ms: held for 500 ms, proved by a probe answered over it\n", b.AfterMs)
	d.printf("   UDP 1 kHz  lost %d to the server, %d to the client; longest gap %.1f ms\n", b.Lost.ToServer, b.Lost.ToClient, b.OutageMs)
	d.printf("   TCP        %s\n\n", yes(b.TCPSurvived, "same connection, no byte wrong", "BROKEN"))

	_, tcpErr := tcp.Stop(ctx)
	return errors.Join(tcpErr, udp.Stop(), sw.Stop())
}

func (d *demo) actNDIS5(ctx context.Context) error {
	d.act = 2
	sw, err := d.start(ctx, "ndis5", "")
	if err != nil {
		return err
	}
	udp, err := d.client.StartUDPFlow(ctx, d.server, demoServer, lab.UDPFlowOptions{})
	if err != nil {
		return err
	}
	udp.Snapshot(ctx)
	mark := lastEvent(sw)
	cut := time.Now()
	if err := d.wires[0].Cut(lab.EndA); err != nil {
		return err
	}
	if _, err := sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
		return e.What == "binding.bound" && e.Adapter == "up1" && e.Protocol == "stack"
	}); err != nil {
		return fmt.Errorf("ndis5: up0 was deleted, and the router not bound to up1: %w", err)
	}
	if err := d.client.WaitReachable(ctx, demoServer); err != nil {
		return fmt.Errorf("ndis5: after the failover: %w", err)
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	over := udp.Snapshot(ctx)
	seen := d.keep(sw, mark, cut)
	n := demoNDIS5{OutageMs: ms(max(over.AtoB.LongestGap, over.BtoA.LongestGap)), Lost: lost(over), StackSaw: saw(seen, "stack")}
	n.UnbindBindSeen = slices.Contains(n.StackSaw, "unbound up0") && slices.Contains(n.StackSaw, "bound up1")
	went, came := false, false
	for _, e := range seen {
		went = went || e.What == "route.withdrawn"
		came = came || went && e.What == "route.alive"
	}
	n.RoutesWentCame = went && came
	d.report.NDIS5 = n
	d.printf("4. The same bundle as NDIS 5.1 had it: the router is bound to the primary itself (ms since the deletion)\n")
	d.printEvents(seen, cut)
	d.printf("   router     %s; routes %s\n", strings.Join(n.StackSaw, ", "), yes(n.RoutesWentCame, "went and came", "did NOT go and come"))
	d.printf("   outage     %.1f ms; lost %d to the server, %d to the client\n", n.OutageMs, n.Lost.ToServer, n.Lost.ToClient)
	return errors.Join(udp.Stop(), sw.Stop())
}

const demoPicture = `vswitch demo: the real switch, in namespaces of its own

  client 10.77.1.2 --[lan0]-+                                    +-[up0]== wire ==+
                            +- bridge lan -- router -- bundle wan                 +-- server 10.77.2.2
  second 10.77.1.3 --[lan1]-+                                    +-[up1]== wire ==+

`

// demoTells are the events that the demo shows: those that say what happened
// to whom, not each state on the way.
var demoTells = []string{
	"adapter.surprise-removed", "adapter.halt", "link", "bundle.active", "bundle.primary", "binding.bound", "binding.unbound",
	"route.alive", "route.withdrawn", "address.announced",
}

// keep puts the events since mark into the report, and returns them.
func (d *demo) keep(sw *lab.Switch, mark uint64, zero time.Time) []ndiscore.Event {
	all, _, _ := sw.Events(mark)
	var seen []ndiscore.Event
	for _, e := range all {
		if e.What == "adapter.state" || slices.Contains(demoTells, e.What) {
			who := e.Adapter
			if e.Protocol != "" {
				who = e.Protocol + " on " + e.Adapter
			}
			d.report.Events = append(d.report.Events, demoEvent{
				Act: d.act, TimeMs: ms(e.Time.Sub(zero)), Adapter: who, What: e.What, From: e.From, To: e.To, Why: e.Why,
			})
		}
		if slices.Contains(demoTells, e.What) {
			seen = append(seen, e)
		}
	}
	return seen
}

func (d *demo) printEvents(events []ndiscore.Event, zero time.Time) {
	for _, e := range events {
		what := e.What
		switch {
		case e.From != "" && e.To != "":
			what += " " + e.From + " -> " + e.To
		case e.To != "":
			what += " " + e.To
		case e.From != "":
			what += " " + e.From
		}
		who := e.Adapter
		if e.Protocol != "" {
			who = e.Protocol + " on " + e.Adapter
		}
		d.printf("   %9.2f  %-16s %s: %s\n", ms(e.Time.Sub(zero)), who, what, e.Why)
	}
}

// saw lists what the bindings of a protocol went through.
func saw(events []ndiscore.Event, protocol string) []string {
	list := []string{}
	for _, e := range events {
		if e.Protocol == protocol {
			list = append(list, strings.TrimPrefix(e.What, "binding.")+" "+e.Adapter)
		}
	}
	return list
}

func lastEvent(sw *lab.Switch) uint64 {
	events, _, _ := sw.Events(0)
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}

// pause lets traffic flow for a while.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func lost(s lab.FlowStats) demoLost { return demoLost{s.AtoB.Lost, s.BtoA.Lost} }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func mbit(bytes uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(bytes) * 8 / 1e6 / d.Seconds()
}

func median(ds []time.Duration) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Clone(ds)
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func yes(ok bool, then, otherwise string) string {
	if ok {
		return then
	}
	return otherwise
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "saw no unbind and no bind: the team stayed"
	}
	return strings.Join(list, ", ")
}
