package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
	"github.com/seed-b14e907b/vswitch/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a real core with two fake devices in a team and a fake protocol on
// it, and faults that do nothing but last; what a bridge and a router would tell,
// and what a configuration would become, is written down.
type fixture struct {
	core *ndiscore.Core
	// commands counts the orders that reached the switch.
	commands atomic.Int32
	// hold, if not nil, makes Stats wait for it, or for the end of ctx.
	hold chan struct{}

	mu     sync.Mutex
	last   uint64
	faults []Fault
	routes []RouteSettings
	added  []AdapterSettings
}

var _ Switch = (*fixture)(nil)

func newFixture(t *testing.T, events int) *fixture {
	t.Helper()
	core := ndistest.NewCore(t, ndiscore.Options{Decider: policy.ActiveBackup{}, Events: events})
	ctx := ndistest.Context(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var devices []ndiscore.Adapter
	for _, name := range []string{"up0", "up1", "up2"} {
		devices = append(devices, ndistest.NewAdapter(name, ndistest.AdapterOptions{Resets: true}).Contract())
	}
	_, err := core.RegisterDriver(ndistest.Driver("fake", devices...))
	check(err)
	for _, name := range []string{"up0", "up1"} {
		check(core.AddAdapter(ctx, ndiscore.AdapterSpec{
			Name: name, Driver: "fake", Filters: []ndiscore.FilterSpec{{Name: "fault", Filter: ndistest.NewFilter("F", nil)}},
		}))
	}
	check(core.AddBundle(ctx, ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, Hold: time.Second, MAC: ndiscore.MAC{2, 0, 0, 0, 0, 1}}))
	check(core.AddProtocol(ctx, ndistest.NewProtocol("stack", nil).Spec("wan")))
	for _, name := range []string{"up0", "up1", "wan"} {
		check(core.Start(ctx, name, "configured"))
	}
	return &fixture{core: core}
}

func (f *fixture) Version() VersionInfo {
	return VersionInfo{Version: "0.0.0-test", Go: "go1", Started: time.Unix(1, 0).UTC(), Uptime: "1s"}
}

func (f *fixture) Adapters(ctx context.Context) ([]ndiscore.AdapterInfo, error) {
	return f.core.Adapters(ctx)
}

func (f *fixture) Operate(ctx context.Context, op AdapterOp, name, why string, force bool) error {
	f.commands.Add(1)
	if name == "panic" {
		panic("a fault")
	}
	if op == OpRemove {
		return f.core.RemoveAfterQuery(ctx, name, why, force)
	}
	return map[AdapterOp]func(ctx context.Context, name, why string) error{
		OpStart: f.core.Start, OpStop: f.core.Stop, OpPause: f.core.Pause, OpRestart: f.core.Restart,
		OpReset: f.core.Reset, OpSuspend: f.core.Suspend, OpResume: f.core.Resume,
	}[op](ctx, name, why)
}

func (f *fixture) AddAdapter(ctx context.Context, a AdapterSettings) error {
	f.commands.Add(1)
	f.mu.Lock()
	f.added = append(f.added, a)
	f.mu.Unlock()
	if err := f.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: a.Name, Driver: a.Driver}); err != nil {
		return err
	}
	return f.core.Start(ctx, a.Name, "added on request")
}

func (f *fixture) InsertFilter(ctx context.Context, adapter, filter string, at int) error {
	f.commands.Add(1)
	return f.core.InsertFilter(ctx, adapter, ndiscore.FilterSpec{Name: filter, Filter: ndistest.NewFilter("G", nil)}, at, "on request")
}

func (f *fixture) RemoveFilter(ctx context.Context, adapter, filter string) error {
	f.commands.Add(1)
	return f.core.RemoveFilter(ctx, adapter, filter, "on request")
}

func (f *fixture) BridgeList(context.Context) ([]Bridge, error) {
	return []Bridge{{
		Name: "lan", MAC: "02:00:00:00:00:09", VLAN: 10, Snooping: true,
		Ports:  []BridgePort{{Name: "lan0", State: "forwarding", Trunk: "10,20-29", Native: 10, Addresses: 1}, {Name: "lan1", State: "shut", Access: 10, MACLimit: 2, Refused: 3, Storm: Storm{Broadcast: 4}, StormDropped: Storm{Broadcast: 5}, Reopens: 6}},
		Groups: []Group{{Address: "239.1.2.3", VLAN: 10, Ports: []string{"lan0"}}},
	}, {Name: "bare"}}, nil
}

func (f *fixture) AddRoute(_ context.Context, r RouteSettings) error {
	f.commands.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.routes, r) {
		return fmt.Errorf("route to %s: %w", r.To, ndiscore.ErrExists)
	}
	f.routes = append(f.routes, r)
	return nil
}

func (f *fixture) DeleteRoute(_ context.Context, r RouteSettings) error {
	f.commands.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.Index(f.routes, r)
	if at < 0 {
		return fmt.Errorf("route to %s: %w", r.To, ndiscore.ErrNotFound)
	}
	f.routes = slices.Delete(f.routes, at, at+1)
	return nil
}

func (f *fixture) NAT(_ context.Context, match NATMatch, limit int) (NATTable, error) {
	t := NATTable{Used: 2, Limit: 65536}
	for _, source := range []string{"10.0.0.7:1024", "10.0.0.8:1024"} {
		if (match.Address != "" && match.Address+":1024" != source) || (match.Protocol != "" && match.Protocol != "udp") {
			continue
		}
		if t.Total++; limit == 0 || len(t.Flows) < limit {
			t.Flows = append(t.Flows, NATFlow{Interface: "wan", Protocol: "udp", Kind: "masquerade", State: "assured", Source: source, Destination: "192.0.2.9:53"})
		}
	}
	return t, nil
}

func (f *fixture) FlushNAT(context.Context, NATMatch) (int, error) {
	f.commands.Add(1)
	return 2, nil
}

// Inject begins a fault that does nothing; it lasts until it is cleared or
// expired.
func (f *fixture) Inject(_ context.Context, s FaultSettings) (Fault, error) {
	f.commands.Add(1)
	if err := (fault.Spec{Kind: s.Kind, Adapter: s.On, Params: map[string]string{"chance": "1%"}}).Validate(); err != nil {
		return Fault{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	x := Fault{
		ID: f.last, Kind: s.Kind, On: s.On, Direction: "both", Params: s.Params, Seed: 1, Owner: s.Owner, Began: time.Unix(1, 0).UTC(), Ends: time.Unix(31, 0).UTC(),
	}
	f.faults = append(f.faults, x)
	f.tell("fault.injected", x)
	return x, nil
}

func (f *fixture) tell(what string, x Fault) {
	f.core.Report(ndiscore.Event{What: what, Adapter: x.On, To: x.Kind, Why: fmt.Sprintf("lease %d of %s: test", x.ID, x.Owner)})
}

func (f *fixture) Faults(context.Context) ([]Fault, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.faults), nil
}

func (f *fixture) ClearFaults(_ context.Context, m FaultMatch) (int, error) {
	f.commands.Add(1)
	return f.end("fault.cleared", m), nil
}

// end ends faults with an event.
func (f *fixture) end(what string, m FaultMatch) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.faults)
	f.faults = slices.DeleteFunc(f.faults, func(x Fault) bool {
		over := m.All || (m.ID == 0 || m.ID == x.ID) && (m.On == "" || m.On == x.On) && (m.Owner == "" || m.Owner == x.Owner)
		if over && what != "" {
			f.tell(what, x)
		}
		return over
	})
	return before - len(f.faults)
}

func (f *fixture) FaultKinds() []FaultKind {
	return []FaultKind{
		{Kind: "drop", Help: "lose frames", OneOf: []string{"chance", "every", "first"}, Params: []FaultParam{{Name: "chance", Unit: "share", Range: "0% to 100%", Help: "lose this share of the frames, by chance"}}},
		{Kind: "link-down", Help: "the adapter says that its link is down, and passes nothing", Device: true},
	}
}

func (f *fixture) Apply(_ context.Context, text []byte, dryRun bool) (Plan, error) {
	f.commands.Add(1)
	if string(text) == "nothing" {
		return Plan{Applied: !dryRun}, nil
	}
	return Plan{
		Steps:   []PlanStep{{Op: "restart", Kind: "adapter", Name: "lan0", Text: "restart adapter lan0", Changes: []string{"mtu 1500 -> 9000"}, Disrupts: []string{"bridge lan"}}},
		Refused: []string{"control.socket"}, Applied: !dryRun,
	}, nil
}

func (f *fixture) Bundles(ctx context.Context) ([]ndiscore.BundleInfo, error) {
	return f.core.Bundles(ctx)
}

func (f *fixture) Promote(ctx context.Context, bundle, member string) error {
	f.commands.Add(1)
	return f.core.Promote(ctx, bundle, member)
}

func (f *fixture) FDB(_ context.Context, name string) ([]bridge.FDBEntry, error) {
	switch name {
	case "", "lan":
		return []bridge.FDBEntry{{MAC: ndiscore.MAC{2, 0, 0, 0, 0, 2}, Port: "lan0", Age: 3}}, nil
	case "huge":
		return make([]bridge.FDBEntry, 50_000), nil
	}
	return nil, fmt.Errorf("bridge %s: %w", name, ndiscore.ErrNotFound)
}

var fixtureLink = ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: 1e9, Why: "carrier"}

func (f *fixture) Interfaces(context.Context) ([]stack.InterfaceInfo, error) {
	return []stack.InterfaceInfo{{
		Name: "wan", On: "wan", Adapter: "wan", MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}, Up: true, Link: fixtureLink,
	}}, nil
}

func (f *fixture) Routes(context.Context) ([]stack.RouteInfo, error) {
	return []stack.RouteInfo{{To: netip.MustParsePrefix("192.0.2.0/24"), Interface: "wan", Kind: stack.RouteConnected, Alive: true}}, nil
}

func (f *fixture) Neighbors(context.Context) ([]stack.NeighborInfo, error) {
	return []stack.NeighborInfo{{Interface: "wan", IP: netip.MustParseAddr("192.0.2.1"), State: "Reachable", Updated: time.Unix(1, 0)}}, nil
}

func (f *fixture) Stats(ctx context.Context) (Stats, error) {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return Stats{}, ctx.Err()
		}
	}
	infos, err := f.core.Adapters(ctx)
	s := Stats{Adapters: map[string]ndiscore.Counters{}, Router: map[string]uint64{"ip.sent": 4}, Bridges: map[string]map[string]uint64{"lan": {"learned": 3}}}
	for _, a := range infos {
		s.Adapters[a.Name] = a.Counters
	}
	return s, err
}

func (f *fixture) Events(after uint64) ([]ndiscore.Event, uint64, <-chan struct{}) {
	return f.core.Events(after)
}

func (f *fixture) Config() []byte { return []byte("[log]\nlevel = \"info\"\n") }

// running is a served fixture.
type running struct {
	*fixture
	server *Server
	client *Client
	path   string
	stop   func() // ends Serve and waits for it
}

func serveFixture(t *testing.T, change func(*limits)) *running {
	t.Helper()
	return serve(t, newFixture(t, 0), change)
}

func serve(t *testing.T, f *fixture, change func(*limits), prepare ...func(*Server)) *running {
	t.Helper()
	l := defaultLimits()
	if change != nil {
		change(&l)
	}
	path := filepath.Join(t.TempDir(), "control.sock")
	s, err := newServer(Options{Socket: path, Switch: f, Log: zaptest.NewLogger(t)}, l)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range prepare {
		p(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	r := &running{fixture: f, server: s, client: NewClient(path), path: path}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		r.client.Close()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
	}
	t.Cleanup(r.stop)
	return r
}

// wantError is nil if err is an *Error with this code.
func wantError(err error, code Code) error {
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != code {
		return fmt.Errorf("error %w, want code %s", err, code)
	}
	return nil
}
