package vswitch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/filters/fault"
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

// Operate carries out one operation on an adapter.
func (s *Switch) Operate(ctx context.Context, op control.AdapterOp, name, why string, force bool) error {
	do, ok := map[control.AdapterOp]func(context.Context, string, string) error{
		control.OpStart: s.core.Start, control.OpStop: s.core.Stop, control.OpPause: s.core.Pause, control.OpRestart: s.core.Restart,
		control.OpReset: s.core.Reset, control.OpSuspend: s.core.Suspend, control.OpResume: s.core.Resume,
		control.OpRemove: func(ctx context.Context, name, why string) error {
			return s.core.RemoveAfterQuery(ctx, name, why, force)
		},
	}[op]
	switch {
	case !ok:
		return fmt.Errorf("adapter %s: %s: %w", name, op, ndiscore.ErrNotSupported)
	case op == control.OpRemove && s.bridge(name) != nil:
		return s.removeWholeBridge(ctx, name, why, force)
	}
	return do(ctx, name, why)
}

// removeWholeBridge takes the protocol of a bridge away with its adapter.
func (s *Switch) removeWholeBridge(ctx context.Context, name, why string, force bool) error {
	done, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := s.core.RemoveAfterQuery(ctx, name, why, force); err != nil {
		return err
	}
	return s.removeBridge(ctx, name, why)
}

// Promote makes a member of a team active.
func (s *Switch) Promote(ctx context.Context, bundle, member string) error {
	return s.core.Promote(ctx, bundle, member)
}

// Apply is ApplyConfig for a configuration as text. Its errors are those of
// config.Parse, as a bad request.
func (s *Switch) Apply(ctx context.Context, text []byte, dryRun bool) (control.Plan, error) {
	c, err := config.Parse("config.toml", text, s.drivers, s.filters...)
	if err != nil {
		return control.Plan{}, badRequest(err)
	}
	changes, err := s.ApplyConfig(ctx, c, dryRun)
	if err != nil {
		return control.Plan{}, err
	}
	return wirePlan(changes, !dryRun), nil
}

// badRequest says that err is the caller's doing.
func badRequest(err error) error {
	return &control.Error{Status: 400, Code: control.CodeBadRequest, Message: err.Error()}
}

func wirePlan(c config.Changes, applied bool) control.Plan {
	p := control.Plan{Applied: applied}
	for _, s := range c.Steps {
		w := control.PlanStep{Op: string(s.Op), Kind: string(s.Kind), Name: s.Name, On: s.On, Text: s.Title(), Disrupts: s.Disruptive}
		for _, k := range s.Why {
			w.Changes = append(w.Changes, k.String())
		}
		p.Steps = append(p.Steps, w)
	}
	for _, k := range c.Refused {
		p.Refused = append(p.Refused, k.String())
	}
	return p
}

// edited changes the configuration in force by f, which works on a copy, and has
// the result checked like a file.
func (s *Switch) edited(ctx context.Context, f func(c *config.Config, gone map[string]bool) error) error {
	_, err := s.edit(ctx, false, func(now *config.Config, gone map[string]bool) (*config.Config, error) {
		c := *now
		if err := f(&c, gone); err != nil {
			return nil, err
		}
		return s.checked(c.TOML())
	})
	return err
}

// inLine is how errors of the configuration point at other lines of a file.
var inLine = regexp.MustCompile(` in line [0-9]+`)

// checked reads what was put together from the configuration in force and a
// command: its lines, and the numbers of its tables, mean nothing to anybody.
func (s *Switch) checked(text []byte) (*config.Config, error) {
	c, err := config.Parse("", text, s.drivers, s.filters...)
	if found, ok := errors.AsType[config.Errors](err); ok {
		var msgs []string
		for _, e := range found {
			msg := inLine.ReplaceAllString(e.Msg, "")
			key, _, _ := strings.Cut(e.Key, "[")
			if strings.Contains(key, ".") || key == e.Key && key != "" {
				msg = key + ": " + msg
			}
			if e.Suggestion != "" {
				msg += " (did you mean " + e.Suggestion + "?)"
			}
			msgs = append(msgs, msg)
		}
		err = badRequest(errors.New(strings.Join(msgs, "; ")))
	}
	return c, err
}

// AddAdapter adds an [adapter.NAME] to the configuration in force.
func (s *Switch) AddAdapter(ctx context.Context, a control.AdapterSettings) error {
	_, err := s.edit(ctx, false, func(now *config.Config, gone map[string]bool) (*config.Config, error) {
		c := *now
		if _, ok := named(now.Adapters, a.Name, adapterName); ok && !gone[a.Name] {
			return nil, fmt.Errorf("adapter %s: %w", a.Name, ndiscore.ErrExists)
		}
		if kind, _ := upper(now, a.Name); kind != "" {
			return nil, fmt.Errorf("add adapter %s: %w, by a %s: choose another", a.Name, ndiscore.ErrExists, kind)
		}
		delete(gone, a.Name)
		c.Adapters = without(now.Adapters, a.Name, adapterName)
		table := map[string]any{"driver": a.Driver}
		for k, v := range a.Settings {
			if k == "driver" {
				return nil, badRequest(fmt.Errorf("adapter %s: driver is given twice", a.Name))
			}
			table[k] = v
		}
		text, err := toml.Marshal(map[string]any{"adapter": map[string]any{a.Name: table}})
		if err != nil {
			return nil, badRequest(fmt.Errorf("adapter %s: %w", a.Name, err))
		}
		return s.checked(append(append(c.TOML(), '\n'), text...))
	})
	return err
}

// upper says whether name is a bundle or a bridge of c, and names what it
// stands on.
func upper(c *config.Config, name string) (kind string, below []string) {
	if b, ok := named(c.Bundles, name, bundleName); ok {
		return "bundle", b.Members
	}
	if b, ok := named(c.Bridges, name, bridgeName); ok {
		return "bridge", b.Ports
	}
	return "", nil
}

// noFilters says why a name has no configured filters.
func noFilters(c *config.Config, name string) error {
	if kind, below := upper(c, name); kind != "" {
		return fmt.Errorf("%s %s: filters: %w: a %s takes none; those below it can: %s", kind, name, ndiscore.ErrNotSupported, kind, strings.Join(below, ", "))
	}
	return fmt.Errorf("adapter %s: %w", name, ndiscore.ErrAdapterNotFound)
}

// InsertFilter puts a configured filter into the chain of an adapter, on top
// when at is -1.
func (s *Switch) InsertFilter(ctx context.Context, adapter, filter string, at int) error {
	return s.edited(ctx, func(c *config.Config, gone map[string]bool) error {
		a, ok := named(c.Adapters, adapter, adapterName)
		switch {
		case !ok, gone[adapter]:
			return noFilters(c, adapter)
		case strings.HasPrefix(filter, fault.FilterPrefix):
			return fmt.Errorf("adapter %s: filter %s: %w: names that begin with %q are those of filters with injected faults; `inject` puts them in",
				adapter, filter, ndiscore.ErrInvalidData, fault.FilterPrefix)
		case slices.Contains(a.Filters, filter):
			return fmt.Errorf("adapter %s: filter %s: %w", adapter, filter, ndiscore.ErrExists)
		}
		if _, ok := named(c.Filters, filter, filterName); !ok {
			return fmt.Errorf("filter %s: %w: there is no [filter.%s] in the configuration", filter, ndiscore.ErrNotFound, filter)
		}
		switch {
		case at == -1:
			at = len(a.Filters)
		case at < 0, at > len(a.Filters):
			return fmt.Errorf("adapter %s: filter %s: %w: there is no position %d: it has %d filters, so 0 to %d",
				adapter, filter, ndiscore.ErrInvalidData, at, len(a.Filters), len(a.Filters))
		}
		a.Filters = slices.Insert(slices.Clone(a.Filters), at, filter)
		c.Adapters = with(c.Adapters, a, adapterName)
		return nil
	})
}

// RemoveFilter takes a filter out of the chain of an adapter.
func (s *Switch) RemoveFilter(ctx context.Context, adapter, filter string) error {
	return s.edited(ctx, func(c *config.Config, gone map[string]bool) error {
		a, ok := named(c.Adapters, adapter, adapterName)
		at := slices.Index(a.Filters, filter)
		kind, _ := upper(c, adapter)
		switch {
		case gone[adapter], !ok && kind == "":
			return fmt.Errorf("adapter %s: %w", adapter, ndiscore.ErrAdapterNotFound)
		case strings.HasPrefix(filter, fault.FilterPrefix):
			return fmt.Errorf("adapter %s: filter %s: %w: it carries injected faults; `inject clear` ends them", adapter, filter, ndiscore.ErrInvalidState)
		case !ok:
			return noFilters(c, adapter)
		case at < 0:
			return fmt.Errorf("adapter %s: filter %s: %w", adapter, filter, ndiscore.ErrNotFound)
		}
		a.Filters = slices.Delete(slices.Clone(a.Filters), at, at+1)
		c.Adapters = with(c.Adapters, a, adapterName)
		return nil
	})
}

// AddRoute adds a [[route]] to the configuration in force.
func (s *Switch) AddRoute(ctx context.Context, r control.RouteSettings) error {
	_, err := s.edit(ctx, false, func(now *config.Config, _ map[string]bool) (*config.Config, error) {
		for _, x := range now.Routes {
			if leadsTo(x, r.To, r.Via) && x.Metric == r.Metric {
				return nil, fmt.Errorf("route to %s, metric %d: %w: it leads via %s; another metric makes it a second choice", r.To, r.Metric, ndiscore.ErrExists, x.Via)
			}
		}
		table := map[string]any{"to": r.To, "metric": int64(r.Metric)}
		for k, v := range map[string]string{"via": r.Via, "interface": r.Interface} {
			if v != "" {
				table[k] = v
			}
		}
		text, err := toml.Marshal(map[string]any{"route": []any{table}})
		if err != nil {
			return nil, badRequest(fmt.Errorf("route to %s: %w", r.To, err))
		}
		return s.checked(append(append(now.TOML(), '\n'), text...))
	})
	return err
}

// leadsTo reports whether x is a route to what is written so; "default" is of the
// family of via, if that is said.
func leadsTo(x config.Route, to, via string) bool {
	if to == "default" {
		v, err := netip.ParseAddr(via)
		return x.To.Bits() == 0 && (via == "" || err == nil && v.Is4() == x.Via.Is4())
	}
	p, err := netip.ParsePrefix(to)
	return err == nil && p.Masked() == x.To
}

// DeleteRoute takes a [[route]] out of the configuration in force: the one to
// r.To that has what else r says.
func (s *Switch) DeleteRoute(ctx context.Context, r control.RouteSettings) error {
	return s.edited(ctx, func(c *config.Config, _ map[string]bool) error {
		var found []config.Route
		for _, x := range c.Routes {
			if leadsTo(x, r.To, r.Via) && (r.Via == "" || r.Via == x.Via.String()) &&
				(r.Interface == "" || r.Interface == x.Interface) && (r.Metric == 0 || r.Metric == x.Metric) {
				found = append(found, x)
			}
		}
		switch len(found) {
		case 0:
			return fmt.Errorf("route to %s: %w", r.To, ndiscore.ErrNotFound)
		case 1:
		default:
			return badRequest(fmt.Errorf("route to %s: %d match, %s and %s among them; say via, interface or metric",
				r.To, len(found), found[0], found[1]))
		}
		c.Routes = without(c.Routes, found[0].String(), routeName)
		return nil
	})
}

// NAT lists translated flows, in order; which ones, if there are more than limit, is
// chance.
func (s *Switch) NAT(_ context.Context, match control.NATMatch, limit int) (control.NATTable, error) {
	t := control.NATTable{Limit: s.cfg.Load().NAT.Flows}
	r := s.router.Load()
	if r == nil {
		return t, nil
	}
	t.Used = int(r.Stats()["nat.flows"])
	x, err := natFilter(match)
	if err != nil {
		return t, err
	}
	flows, total, err := r.NATFlows(x, limit)
	t.Total = total
	slices.SortFunc(flows, func(a, b stack.NATFlow) int {
		return cmp.Or(strings.Compare(a.Interface, b.Interface), strings.Compare(a.Protocol, b.Protocol),
			a.Original.Src.Compare(b.Original.Src), a.Original.Dst.Compare(b.Original.Dst))
	})
	for _, f := range flows {
		t.Flows = append(t.Flows, control.NATFlow{
			Interface: f.Interface, Protocol: f.Protocol, Kind: f.Kind, State: f.State,
			Source: f.Original.Src.String(), Destination: f.Original.Dst.String(), ReplySource: f.Reply.Src.String(), ReplyDestination: f.Reply.Dst.String(),
			Packets: f.Packets, Bytes: f.Bytes, BackPackets: f.BackPackets, BackBytes: f.BackBytes,
			AgeSeconds: int(f.Age / time.Second), ExpiresSeconds: int(f.Expires / time.Second),
		})
	}
	return t, err
}

// FlushNAT forgets translated flows.
func (s *Switch) FlushNAT(_ context.Context, match control.NATMatch) (int, error) {
	r := s.router.Load()
	if r == nil {
		return 0, nil
	}
	x, err := natFilter(match)
	if err != nil {
		return 0, err
	}
	return r.FlushNAT(x, "flushed on request: "+matchText(match))
}

// matchText is what m chooses, as events tell it.
func matchText(m control.NATMatch) string {
	var parts []string
	for _, p := range []struct{ key, value string }{{"address", m.Address}, {"interface", m.Interface}, {"protocol", m.Protocol}} {
		if p.value != "" {
			parts = append(parts, p.key+" "+p.value)
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "all")
}

func natFilter(m control.NATMatch) (stack.NATFilter, error) {
	x := stack.NATFilter{Interface: m.Interface}
	if m.Protocol != "" {
		var err error
		if x.Protocol, err = stack.NATProtocol(m.Protocol); err != nil {
			return x, badRequest(err)
		}
	}
	if m.Address == "" {
		return x, nil
	}
	if a, err := netip.ParseAddr(m.Address); err == nil {
		x.Address = netip.PrefixFrom(a.WithZone(""), a.BitLen())
	} else if x.Address, err = netip.ParsePrefix(m.Address); err != nil {
		return x, badRequest(fmt.Errorf("address %q: neither an address nor a prefix", m.Address))
	}
	if a := x.Address.Addr(); a.Is4In6() {
		// No packet has such an address.
		return x, badRequest(fmt.Errorf("address %q: write the IPv4 address %s", m.Address, a.Unmap()))
	}
	return x, nil
}

// InjectFault begins a fault. fault.ErrNotAllowed when the configuration does not
// allow it.
func (s *Switch) InjectFault(ctx context.Context, spec fault.Spec) (fault.Lease, error) {
	return s.faults.Inject(ctx, spec)
}

// Inject is InjectFault for the control API.
func (s *Switch) Inject(ctx context.Context, f control.FaultSettings) (control.Fault, error) {
	spec := fault.Spec{Kind: f.Kind, Adapter: f.On, Direction: fault.Both, Params: f.Params, Seed: f.Seed, Owner: f.Owner}
	if f.Direction != "" {
		if err := spec.Direction.UnmarshalText([]byte(f.Direction)); err != nil {
			return control.Fault{}, badRequest(err)
		}
	}
	if f.For != "" {
		d, err := time.ParseDuration(f.For)
		if err != nil {
			return control.Fault{}, badRequest(fmt.Errorf("for %q: want a time with its unit, such as 30s", f.For))
		}
		if d <= 0 {
			return control.Fault{}, badRequest(fmt.Errorf("for %q: a fault lasts some time, such as 30s; without it as long as is allowed", f.For))
		}
		spec.For = d
	}
	if err := spec.Validate(); err != nil {
		return control.Fault{}, badRequest(err)
	}
	l, err := s.InjectFault(ctx, spec)
	if errors.Is(err, fault.ErrNotAllowed) {
		err = &control.Error{Status: 409, Code: control.CodeConflict, Message: err.Error(), Hint: "allow = true in [fault] of the configuration"}
	}
	if err != nil {
		return control.Fault{}, err
	}
	return wireFault(l), nil
}

func wireFault(l fault.Lease) control.Fault {
	f := control.Fault{
		ID: l.ID, Kind: l.Kind, On: l.Adapter, Params: l.Params, Seed: l.Seed, Owner: l.Owner, Began: l.Began, Ends: l.Expires,
		Hits: l.RX.Frames + l.TX.Frames + l.Calls,
	}
	ofDevice := func(k fault.Kind) bool { return k.Name == l.Kind && k.Device }
	if !slices.ContainsFunc(fault.Kinds(), ofDevice) {
		f.Direction = l.Direction.String()
	}
	return f
}

// Faults lists the faults in force.
func (s *Switch) Faults(context.Context) ([]control.Fault, error) {
	var all []control.Fault
	for _, l := range s.faults.List() {
		all = append(all, wireFault(l))
	}
	return all, nil
}

// ClearFaults ends the faults that match.
func (s *Switch) ClearFaults(ctx context.Context, m control.FaultMatch) (int, error) {
	return s.faults.Clear(ctx, fault.Selection{ID: m.ID, Adapter: m.On, Owner: m.Owner, All: m.All}, "cleared on request")
}

// FaultKinds lists what can be injected.
func (s *Switch) FaultKinds() []control.FaultKind {
	var all []control.FaultKind
	for _, k := range fault.Kinds() {
		w := control.FaultKind{Kind: k.Name, Help: k.Help, Device: k.Device, OneOf: k.OneOf}
		for _, p := range k.Params {
			w.Params = append(w.Params, control.FaultParam{
				Name: p.Name, Unit: p.Unit.String(), Default: p.Default, Required: p.Needed, Range: p.Range, Words: p.Words, Help: p.Help,
			})
		}
		all = append(all, w)
	}
	return all
}

// BridgeList tells of every bridge.
func (s *Switch) BridgeList(context.Context) ([]control.Bridge, error) {
	var all []control.Bridge
	c := s.cfg.Load()
	for _, nb := range *s.bridges.Load() {
		set, _ := named(c.Bridges, nb.name, bridgeName)
		w := control.Bridge{Name: nb.name, MAC: nb.bridge.MAC().String(), VLAN: set.VLAN, Snooping: set.Snooping, Querier: len(nb.bridge.Queriers()) > 0}
		for _, p := range nb.bridge.Ports() {
			w.Ports = append(w.Ports, control.BridgePort{
				Name: p.Name, State: p.State, Access: int(p.Access), Trunk: strings.Join(p.Trunk, ","), Native: int(p.Native),
				Addresses: p.Addresses, MACLimit: p.MACLimit, Router: p.Router,
				Refused: p.Refused, Storm: control.Storm(p.Storm), StormDropped: control.Storm(p.Dropped), Reopens: p.Reopens,
			})
		}
		for _, g := range nb.bridge.Groups() {
			w.Groups = append(w.Groups, control.Group{Address: g.Group.String(), VLAN: int(g.VLAN), Ports: g.Ports})
		}
		all = append(all, w)
	}
	return all, nil
}

// FDB lists the addresses that a bridge has learned; "" asks all bridges.
func (s *Switch) FDB(_ context.Context, name string) ([]bridge.FDBEntry, error) {
	var all []bridge.FDBEntry
	found := name == ""
	for _, b := range *s.bridges.Load() {
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
	if r := s.router.Load(); r != nil {
		return r.Interfaces(), nil
	}
	return nil, nil
}

// Routes tells of the router's routes, alive or not.
func (s *Switch) Routes(context.Context) ([]stack.RouteInfo, error) {
	if r := s.router.Load(); r != nil {
		return r.Routes(), nil
	}
	return nil, nil
}

// Neighbors tells of the next hops and hosts that the router knows.
func (s *Switch) Neighbors(context.Context) ([]stack.NeighborInfo, error) {
	if r := s.router.Load(); r != nil {
		return r.Neighbors(), nil
	}
	return nil, nil
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
	for _, b := range *s.bridges.Load() {
		st.Bridges[b.name] = bridgeStats(b.bridge.Stats())
	}
	if r := s.router.Load(); r != nil {
		st.Router = r.Stats()
	}
	return st, nil
}

func bridgeStats(s bridge.Stats) map[string]uint64 {
	return map[string]uint64{
		"entries": uint64(s.Entries), "limit": uint64(s.Limit), "learned": s.Learned, "moved": s.Moved, "aged": s.Aged,
		"flushed": s.Flushed, "full": s.Full, "flooded": s.Flooded, "copies": s.Copies, "announced": s.Announced,
		"pruned": s.Pruned, "probes": s.Probes, "loops": s.Loops, "groups": uint64(s.Groups), "reports": s.Reports, "unread": s.Unread,
	}
}

// Events returns the events numbered above after that are still kept, how many
// between are lost, and a channel that closes when there are more.
func (s *Switch) Events(after uint64) ([]ndiscore.Event, uint64, <-chan struct{}) {
	return s.core.Events(after)
}

// Config is the configuration in force, with every default, as TOML.
func (s *Switch) Config() []byte { return s.cfg.Load().TOML() }
