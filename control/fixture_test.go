package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
	"github.com/seed-b14e907b/vswitch/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a real core with two fake devices in a team and a fake protocol on
// it; what a bridge and a router would tell is written down.
type fixture struct {
	core *ndiscore.Core
	// commands counts the orders that reached the switch.
	commands atomic.Int32
	// hold, if not nil, makes Stats wait for it, or for the end of ctx.
	hold chan struct{}
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
	up0, up1 := ndistest.NewAdapter("up0", ndistest.AdapterOptions{}), ndistest.NewAdapter("up1", ndistest.AdapterOptions{})
	_, err := core.RegisterDriver(ndistest.Driver("fake", up0, up1))
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

func (f *fixture) RemoveAdapter(ctx context.Context, name, why string) error {
	f.commands.Add(1)
	if name == "panic" {
		panic("a fault")
	}
	return f.core.Remove(ctx, name, why)
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

func serve(t *testing.T, f *fixture, change func(*limits)) *running {
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
