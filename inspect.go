package vswitch

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/stack"
)

// What the control API and people who embed the switch may ask and order.
var _ control.Switch = (*Switch)(nil)

// version is what `vswitch version` prints when the build does not know better.
const version = "0.1.0-dev"

// Version tells which program this is. A build by `go install …@version` knows
// its version; one from a checkout does not, and must not depend on it.
func Version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return version
}

// Version tells which program answers, and since when.
func (s *Switch) Version() control.VersionInfo {
	return control.VersionInfo{Version: Version(), Go: runtime.Version(), Started: s.began, Uptime: s.clock.Now().Sub(s.began).Round(time.Millisecond).String()}
}

// Adapters tells of every adapter, team and bridge, in the order in which they
// were added.
func (s *Switch) Adapters(ctx context.Context) ([]ndiscore.AdapterInfo, error) {
	return s.core.Adapters(ctx)
}

// Bundles tells of every bundle.
func (s *Switch) Bundles(ctx context.Context) ([]ndiscore.BundleInfo, error) {
	return s.core.Bundles(ctx)
}

// RemoveAdapter halts an adapter and forgets it.
func (s *Switch) RemoveAdapter(ctx context.Context, name, why string) error {
	return s.core.Remove(ctx, name, why)
}

// Promote makes a member of a team active.
func (s *Switch) Promote(ctx context.Context, bundle, member string) error {
	return s.core.Promote(ctx, bundle, member)
}

// FDB lists the addresses that a bridge has learned; "" asks all bridges.
func (s *Switch) FDB(_ context.Context, name string) ([]bridge.FDBEntry, error) {
	var all []bridge.FDBEntry
	found := name == ""
	for _, b := range s.bridges {
		if name == "" || b.name == name {
			all = append(all, b.bridge.FDB()...)
			found = true
		}
	}
	if !found {
		return nil, fmt.Errorf("bridge %s: %w", name, ndiscore.ErrNotFound)
	}
	return all, nil
}

// Interfaces tells of the router's interfaces.
func (s *Switch) Interfaces(context.Context) ([]stack.InterfaceInfo, error) {
	if s.router == nil {
		return nil, nil
	}
	return s.router.Interfaces(), nil
}

// Routes tells of the router's routes, alive or not.
func (s *Switch) Routes(context.Context) ([]stack.RouteInfo, error) {
	if s.router == nil {
		return nil, nil
	}
	return s.router.Routes(), nil
}

// Neighbors tells of the next hops and hosts that the router knows.
func (s *Switch) Neighbors(context.Context) ([]stack.NeighborInfo, error) {
	if s.router == nil {
		return nil, nil
	}
	return s.router.Neighbors(), nil
}

// Stats is every counter of the switch.
func (s *Switch) Stats(ctx context.Context) (control.Stats, error) {
	st := control.Stats{Adapters: map[string]ndiscore.Counters{}, Bridges: map[string]map[string]uint64{}}
	infos, err := s.core.Adapters(ctx)
	if err != nil {
		return st, err
	}
	for _, a := range infos {
		st.Adapters[a.Name] = a.Counters
	}
	for _, b := range s.bridges {
		st.Bridges[b.name] = bridgeStats(b.bridge.Stats())
	}
	if s.router != nil {
		st.Router = s.router.Stats()
	}
	return st, nil
}

func bridgeStats(s bridge.Stats) map[string]uint64 {
	return map[string]uint64{
		"entries": uint64(s.Entries), "limit": uint64(s.Limit), "learned": s.Learned, "moved": s.Moved, "aged": s.Aged,
		"flushed": s.Flushed, "full": s.Full, "flooded": s.Flooded, "copies": s.Copies, "announced": s.Announced,
	}
}

// Events returns the events numbered above after that are still kept, how many
// between are lost, and a channel that closes when there are more.
func (s *Switch) Events(after uint64) ([]ndiscore.Event, uint64, <-chan struct{}) {
	return s.core.Events(after)
}

// Config is the configuration in force, with every default, as TOML.
func (s *Switch) Config() []byte { return s.cfg.TOML() }
