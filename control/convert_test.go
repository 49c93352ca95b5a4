package control

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/stack"
)

// What the core, the bridge and the router tell goes over the wire whole, under
// the names that they give it. A field that is new there has to be filled in
// here, and then has to be in api.go.
func TestWireTypesAreComplete(t *testing.T) {
	link := ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: 1e9, Why: "carrier"}
	mac := ndiscore.MAC{2, 0, 0x5e, 0, 0x53, 1}
	counters := ndiscore.Counters{
		RxFrames: 1, RxBytes: 2, Forwarded: 3, Delivered: 4, RxHeld: 11, RxDropped: map[string]uint64{"ttl": 5},
		TxFrames: 6, TxBytes: 7, TxSegments: 8, TxDropped: map[string]uint64{"paused": 9}, Device: map[string]uint64{"full": 10},
	}
	binding := ndiscore.BindingInfo{Protocol: "stack", Adapter: "up0", Target: "wan", State: ndiscore.BindingRunning}
	filter := ndiscore.FilterInfo{Name: "fault", State: ndiscore.FilterRunning, Mandatory: true}
	adapter := ndiscore.AdapterInfo{
		Name: "up0", Driver: "tap", Virtual: true, State: ndiscore.StateRunning, Oper: ndiscore.OperUp, Cause: "configured",
		LastHalt: ndiscore.HaltSurpriseRemoved, Waiting: true, Retrying: true, Stuck: true, Asleep: true, Health: ndiscore.Degraded, Resets: 3, Device: "tap0", MAC: mac, MTU: 1500, Link: link,
		Bundle: "wan", Filters: []ndiscore.FilterInfo{filter}, Bindings: []ndiscore.BindingInfo{binding}, Counters: counters,
	}
	member := ndiscore.BundleMember{
		Adapter: "up0", Role: "active", Verdict: ndiscore.VerdictHeld, State: ndiscore.StateRunning, Link: link, Probe: "answered",
	}
	bundle := ndiscore.BundleInfo{
		Name: "wan", Mode: ndiscore.BundleNDIS5, Active: "up0", Balance: ndiscore.BalanceHash, Failback: ndiscore.FailbackNever, Members: []ndiscore.BundleMember{member},
	}
	bundle.Hold += 1e9 // its type is the core's own
	entry := bridge.FDBEntry{MAC: mac, VLAN: 10, Port: "lan0", Age: 3, Local: true}
	address := netip.MustParsePrefix("192.0.2.2/24")
	iface := stack.InterfaceInfo{
		Name: "wan", On: "wan", Adapter: "up0", MAC: mac, MTU: 1500, Addresses: []netip.Prefix{address}, Up: true, Link: link, Masquerade: true, Masquerade6: true,
	}
	route := stack.RouteInfo{
		To: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.1"), Interface: "wan", Metric: 7,
		Kind: stack.RouteStatic, Alive: true, Why: "in use",
	}
	neighbor := stack.NeighborInfo{
		Interface: "wan", IP: netip.MustParseAddr("2001:db8::1"), MAC: mac, State: "Reachable", Updated: time.Unix(1, 2).UTC(),
	}
	for _, tc := range []struct{ core, wire any }{
		{link, wireLink(link)},
		{counters, wireAdapter(adapter).Counters},
		{binding, wireBinding(binding)},
		{filter, wireAdapter(adapter).Filters[0]},
		{adapter, wireAdapter(adapter)},
		{member, wireBundle(bundle).Members[0]},
		{bundle, wireBundle(bundle)},
		{entry, wireFDBEntry(entry)},
		{iface, wireInterface(iface)},
		{route, wireRoute(route)},
		{neighbor, wireNeighbor(neighbor)},
	} {
		v := reflect.ValueOf(tc.core)
		t.Run(v.Type().String(), func(t *testing.T) {
			for i := range v.NumField() {
				if v.Field(i).IsZero() {
					t.Errorf("fill in %s", v.Type().Field(i).Name)
				}
			}
			if diff := cmp.Diff(generic(t, tc.core), generic(t, tc.wire)); diff != "" {
				t.Errorf("core - wire +\n%s", diff)
			}
		})
	}
}

func generic(t *testing.T, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Nothing that is a list or an object is ever null.
func TestWireTypesHaveNoNulls(t *testing.T) {
	for _, v := range []any{
		wireAdapter(ndiscore.AdapterInfo{}), wireBundle(ndiscore.BundleInfo{}), wireInterface(stack.InterfaceInfo{}), wireStats(Stats{}),
		wireBridge(Bridge{}), wireBridge(Bridge{Groups: []Group{{}}}), wireFault(Fault{}),
		AdapterList{each(nil, wireAdapter)}, FDB{each(nil, wireFDBEntry)},
	} {
		if path := findNull(generic(t, v), ""); path != "" {
			t.Errorf("%T: %s is null", v, path)
		}
	}
}

func findNull(v any, path string) string {
	switch v := v.(type) {
	case nil:
		return path
	case map[string]any:
		for k, x := range v {
			if p := findNull(x, path+"."+k); p != "" {
				return p
			}
		}
	case []any:
		for _, x := range v {
			if p := findNull(x, path+"[]"); p != "" {
				return p
			}
		}
	}
	return ""
}
