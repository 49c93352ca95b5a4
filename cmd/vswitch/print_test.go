package main

import (
	"strings"
	"testing"

	"github.com/seed-b14e907b/vswitch/control"
)

// TestPrintBridge: a port's limits are there, and what they cost.
func TestPrintBridge(t *testing.T) {
	var b strings.Builder
	printBridge(&b, control.Bridge{Name: "lan", Ports: []control.BridgePort{
		{Name: "lan0", State: "forwarding"},
		{Name: "lan1", State: "shut", MACLimit: 20, Refused: 31, Storm: control.Storm{Multicast: 400}, StormDropped: control.Storm{Broadcast: 5, Multicast: 17}, Reopens: 6},
	}})
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	contains(t, "bridge show", strings.Join(got, "\n")+"\n", "lan1 shut for 6s",
		"PORT LIMIT MOST DROPPED\nlan1 mac_limit 20 31\nlan1 storm_broadcast - 5\nlan1 storm_multicast 400/s 17\n")
	b.Reset()
	printBridge(&b, control.Bridge{Name: "lan", Ports: []control.BridgePort{{Name: "lan0", State: "forwarding"}}})
	if strings.Contains(b.String(), "DROPPED") {
		t.Errorf("limits of nobody:\n%s", &b)
	}
}

// TestPrintWaiting: what an adapter waits for.
func TestPrintWaiting(t *testing.T) {
	for want, a := range map[string]control.Adapter{
		"for its device to come back":                            {Waiting: true},
		"to start its device again, which had come back and did": {Waiting: true, Retrying: true},
	} {
		var b strings.Builder
		printAdapter(&b, a)
		contains(t, "adapter show", b.String(), want)
	}
}

// TestPrintNDIS5: what such a bundle does not consult is not told of it.
func TestPrintNDIS5(t *testing.T) {
	bundle := control.Bundle{
		Name: "wan", Mode: "team", Balance: "active-backup", Active: "up0", Failback: "always", Hold: "1s",
		Members: []control.Member{{Adapter: "up0", Role: "active", Verdict: "up", State: "running", Probe: "answered"}},
	}
	var b strings.Builder
	printBundle(&b, bundle)
	contains(t, "bundle show", b.String(), "failback:", "hold:", "PROBE", "answered")
	bundle.Mode = "ndis5"
	b.Reset()
	printBundle(&b, bundle)
	contains(t, "bundle show", b.String(), "mode:", "ndis5", "VERDICT", "up0")
	printBundles(&b, []control.Bundle{bundle})
	for _, not := range []string{"failback:", "hold:", "PROBE", "answered", "always", "1s"} {
		if strings.Contains(b.String(), not) {
			t.Errorf("it has no %q:\n%s", not, &b)
		}
	}
}
