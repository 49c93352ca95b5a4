package vswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/health"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/stack"
)

// A change of configuration is a plan of the package config, carried out step by
// step. The start is one too: from nothing to the configuration given to New.

// undoLimit is how long it may take to undo what was done of a plan that failed.
const undoLimit = 30 * time.Second

// stepLimit is how long one step may take. It is longer than the core lets a
// driver hang.
const stepLimit = time.Minute

// change carries out a plan from old, what runs, to next. When a step fails, or
// ctx ends, what was done before is undone, unless the switch ends anyway. One change at a time: s.turn is held.
func (s *Switch) change(ctx context.Context, old, next *config.Config, plan config.Changes) error {
	if err := plan.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	now, err := s.carryOut(ctx, old, next, plan)
	if err == nil {
		return nil
	}
	if s.life.Err() != nil {
		return fmt.Errorf("%w: %w", ndiscore.ErrStopped, err)
	}
	undo, cancel := context.WithTimeout(s.life, undoLimit)
	defer cancel()
	now.Bundles = slices.DeleteFunc(slices.Clone(now.Bundles), func(b config.Bundle) bool { return b.Mode == probeOnly })
	now, undoErr := s.carryOut(undo, now, old, config.Plan(now, old))
	if probed(plan) {
		undoErr = errors.Join(undoErr, s.setProber(undo, now.Bundles))
	}
	if undoErr != nil {
		s.cfg.Store(now)
		return errors.Join(err, fmt.Errorf("and what was done before could not be undone: %w", undoErr))
	}
	return fmt.Errorf("%w; everything is as it was", err)
}

// probed reports whether a plan touches what is probed.
func probed(plan config.Changes) bool {
	return slices.ContainsFunc(plan.Steps, func(s config.Step) bool { return s.Kind == config.KindProbe })
}

// ErrRefused says that a configuration cannot be taken over by a running switch.
var ErrRefused = fmt.Errorf("not while the switch runs: %w", ndiscore.ErrInvalidState)

// removed names what is configured and was removed by hand since. Adapters,
// bundles and bridges share one set of names.
func (s *Switch) removed(ctx context.Context, c *config.Config) (map[string]bool, error) {
	infos, err := s.core.Adapters(ctx)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, a := range c.Adapters {
		gone[a.Name] = true
	}
	for _, b := range c.Bundles {
		gone[b.Name] = b.Mode == "team"
	}
	for _, b := range c.Bridges {
		gone[b.Name] = true
	}
	for _, a := range infos {
		delete(gone, a.Name)
	}
	return gone, nil
}

// except is c without what is named; what is left may still speak of it.
func except(c *config.Config, gone map[string]bool) *config.Config {
	out := *c
	out.Adapters = slices.DeleteFunc(slices.Clone(c.Adapters), func(a config.Adapter) bool { return gone[a.Name] })
	out.Bundles = slices.DeleteFunc(slices.Clone(c.Bundles), func(b config.Bundle) bool { return gone[b.Name] })
	out.Bridges = slices.DeleteFunc(slices.Clone(c.Bridges), func(b config.Bridge) bool { return gone[b.Name] })
	return &out
}

// carryOut performs the steps of a plan from old to next, in order, and returns
// what runs then: all of next, or when a step fails what had been reached. Who
// gives up is heard between two steps, so that none is left half done.
func (s *Switch) carryOut(ctx context.Context, old, next *config.Config, plan config.Changes) (*config.Config, error) {
	now := *old
	const why = "configured"
	for i, step := range plan.Steps {
		if err := ctx.Err(); err != nil {
			return &now, fmt.Errorf("%s: %w", step.Title(), err)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepLimit)
		var err error
		switch step.Kind {
		case config.KindLog:
			err = s.setLevel(next.Log.Level)
			now.Log = next.Log
		case config.KindFault:
			s.faults.Permit(next.Fault.Allow, next.Fault.Longest.Std())
			now.Fault = next.Fault
		case config.KindAdapter:
			err = s.stepAdapter(ctx, step, &now, next, why)
		case config.KindFilter:
			err = s.stepFilter(ctx, step, &now, next, why)
		case config.KindProbe:
			// The prober asks for all bundles; which, is decided by what runs
			// afterwards.
			now.Bundles = withProbe(now.Bundles, next.Bundles, step)
			err = s.setProber(ctx, now.Bundles)
		case config.KindBundle:
			err = s.stepBundle(ctx, step, &now, next, why)
		case config.KindBridge, config.KindPort:
			err = s.stepBridge(ctx, step, &now, next, why)
		default:
			evolveRouter(step, &now, next)
			if i+1 == len(plan.Steps) || !ofRouter(plan.Steps[i+1].Kind) { // what follows each other is one change
				err = s.setRouter(ctx, &now)
			}
		}
		cancel()
		if err != nil {
			return &now, fmt.Errorf("%s: %w", step.Title(), err)
		}
	}
	return next, nil
}

func ofRouter(k config.Kind) bool {
	switch k {
	case config.KindInterface, config.KindRoute, config.KindForward, config.KindNAT:
		return true
	}
	return false
}

// --- Lists by name ------------------------------------------------------------

func named[T any](list []T, name string, nameOf func(T) string) (T, bool) {
	for _, x := range list {
		if nameOf(x) == name {
			return x, true
		}
	}
	var none T
	return none, false
}

// with is list with x instead of what has its name, or behind it.
func with[T any](list []T, x T, nameOf func(T) string) []T {
	out := slices.Clone(list)
	for i := range out {
		if nameOf(out[i]) == nameOf(x) {
			out[i] = x
			return out
		}
	}
	return append(out, x)
}

func without[T any](list []T, name string, nameOf func(T) string) []T {
	return slices.DeleteFunc(slices.Clone(list), func(x T) bool { return nameOf(x) == name })
}

func adapterName(a config.Adapter) string     { return a.Name }
func filterName(f config.Filter) string       { return f.Name }
func bundleName(b config.Bundle) string       { return b.Name }
func bridgeName(b config.Bridge) string       { return b.Name }
func portName(p config.BridgePort) string     { return p.Name }
func interfaceName(i config.Interface) string { return i.Name }
func routeName(r config.Route) string         { return r.String() }
func forwardName(f config.Forward) string     { return f.String() }

// --- Adapters and filters --------------------------------------------------------

func (s *Switch) stepAdapter(ctx context.Context, step config.Step, now, next *config.Config, why string) error {
	if step.Op != config.OpAdd {
		if err := s.core.Remove(ctx, step.Name, why); err != nil && !errors.Is(err, ndiscore.ErrAdapterNotFound) {
			return err
		}
		now.Adapters = without(now.Adapters, step.Name, adapterName)
	}
	if step.Op == config.OpRemove {
		return nil
	}
	a, _ := named(next.Adapters, step.Name, adapterName)
	spec := ndiscore.AdapterSpec{Name: a.Name, Driver: a.Driver, Options: a.Options}
	for _, f := range a.Filters {
		m, err := s.newFilter(f, next)
		if err != nil {
			return err
		}
		spec.Filters = append(spec.Filters, m)
	}
	if err := s.core.AddAdapter(ctx, spec); err != nil {
		return err
	}
	if err := s.core.Start(ctx, a.Name, why); err != nil {
		return errors.Join(err, s.takeBack(ctx, a.Name))
	}
	now.Adapters = with(now.Adapters, a, adapterName)
	return nil
}

// takeBack forgets an adapter that could not be started.
func (s *Switch) takeBack(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return s.core.Remove(ctx, name, "could not be started")
}

// newFilter makes a module of a configured filter.
func (s *Switch) newFilter(name string, c *config.Config) (ndiscore.FilterSpec, error) {
	f, ok := named(c.Filters, name, filterName)
	if !ok {
		return ndiscore.FilterSpec{}, fmt.Errorf("filter %s: %w: there is no [filter.%s]", name, ndiscore.ErrNotFound, name)
	}
	for _, d := range s.filters {
		if d.Name == f.Driver {
			m, err := d.New(name, f.Options)
			return ndiscore.FilterSpec{Name: name, Filter: m}, err
		}
	}
	return ndiscore.FilterSpec{}, fmt.Errorf("filter %s: driver %s: %w", name, f.Driver, ndiscore.ErrNotFound)
}

func (s *Switch) stepFilter(ctx context.Context, step config.Step, now, next *config.Config, why string) error {
	a, _ := named(now.Adapters, step.On, adapterName)
	at := slices.Index(a.Filters, step.Name)
	list := slices.Clone(a.Filters)
	place, err := s.place(ctx, step)
	if err != nil {
		return err
	}
	switch step.Op {
	case config.OpRemove:
		if err := s.core.RemoveFilter(ctx, step.On, step.Name, why); err != nil && !errors.Is(err, ndiscore.ErrNotFound) {
			return err
		}
		list = slices.Delete(list, at, at+1)
	case config.OpMove:
		if err := s.core.MoveFilter(ctx, step.On, step.Name, place, why); err != nil {
			return err
		}
		list = slices.Insert(slices.Delete(list, at, at+1), step.Index, step.Name)
	default:
		m, err := s.newFilter(step.Name, next)
		if err != nil {
			return err
		}
		if err := s.core.InsertFilter(ctx, step.On, m, place, why); err != nil {
			return err
		}
		list = slices.Insert(list, step.Index, step.Name)
		f, _ := named(next.Filters, step.Name, filterName)
		now.Filters = with(now.Filters, f, filterName)
	}
	a.Filters = list
	now.Adapters = with(now.Adapters, a, adapterName)
	return nil
}

// place is where a configured filter belongs in the chain as it is: injected
// faults have modules of their own there, next to the device.
func (s *Switch) place(ctx context.Context, step config.Step) (int, error) {
	infos, err := s.core.Adapters(ctx)
	if err != nil {
		return 0, err
	}
	a, ok := named(infos, step.On, func(a ndiscore.AdapterInfo) string { return a.Name })
	if !ok {
		return 0, fmt.Errorf("adapter %s: %w", step.On, ndiscore.ErrAdapterNotFound)
	}
	place, configured := 0, 0
	for _, f := range a.Filters {
		switch {
		case f.Name == step.Name: // moved: counted without itself
		case strings.HasPrefix(f.Name, fault.FilterPrefix):
			place++
		case configured < step.Index:
			configured++
			place++
		}
	}
	return place, nil
}

// --- Bundles and what probes their members ------------------------------------------

// withProbe is the bundles that run, probed as after step.
func withProbe(bundles, next []config.Bundle, step config.Step) []config.Bundle {
	b, ok := named(bundles, step.Name, bundleName)
	n, _ := named(next, step.Name, bundleName)
	if !ok { // it is added next, and asks for proof from the start
		b = n
		b.Mode = probeOnly
	}
	if step.Op == config.OpRemove {
		b.Health.Probe = ""
	} else {
		b.Members, b.Health = n.Members, n.Health
	}
	return with(bundles, b, bundleName)
}

// probeOnly marks a bundle that is probed already and does not run yet.
const probeOnly = "probe-only"

// setProber has a prober ask over the members of all bundles that want it.
// Evidence that the one before it gathered stays with the core.
func (s *Switch) setProber(ctx context.Context, bundles []config.Bundle) error {
	var members []health.Member
	for _, b := range bundles {
		if b.Health.Probe == "" || b.Mode == "ndis5" {
			continue // an ndis5 bundle hides its secondaries from every protocol
		}
		for _, m := range b.Members {
			members = append(members, health.Member{Bundle: b.Name, Adapter: m, Target: b.Health.Target, Interval: b.Health.Interval.Std()})
		}
	}
	if old := s.prober; old != nil {
		s.prober = nil
		err := s.core.RemoveProtocol(ctx, old.Spec().Name)
		old.Close()
		if err != nil {
			return err
		}
	}
	if len(members) == 0 {
		return nil
	}
	p, err := health.New(health.Options{Members: members, Core: s.core, Clock: s.clock, Identity: machineID()})
	if err != nil {
		return err
	}
	if err := s.core.AddProtocol(ctx, p.Spec()); err != nil {
		p.Close()
		return err
	}
	s.prober = p
	return s.settle(ctx, p.Spec().Targets...)
}

func (s *Switch) stepBundle(ctx context.Context, step config.Step, now, next *config.Config, why string) error {
	if step.Op == config.OpRemove {
		if err := s.core.RemoveBundle(ctx, step.Name, why); err != nil && !errors.Is(err, ndiscore.ErrNotFound) {
			return err
		}
		now.Bundles = without(now.Bundles, step.Name, bundleName)
		return nil
	}
	b, _ := named(next.Bundles, step.Name, bundleName)
	if step.Members != nil {
		b, _ = named(now.Bundles, step.Name, bundleName)
		b.Members = step.Members
	}
	spec, err := bundleSpec(b)
	if err != nil {
		return err
	}
	if step.Op == config.OpUpdate {
		if err = s.core.UpdateBundle(ctx, spec); err != nil && s.hasMembers(spec) {
			now.Bundles = with(now.Bundles, b, bundleName) // it was not to be had in time, and is so
		}
	} else {
		err = s.addBundle(ctx, spec, why)
	}
	if err != nil {
		return err
	}
	now.Bundles = with(now.Bundles, b, bundleName)
	return nil
}

// hasMembers reports whether a bundle has the members that spec says.
func (s *Switch) hasMembers(spec ndiscore.BundleSpec) bool {
	infos, err := s.core.Bundles(s.life)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(infos, func(b ndiscore.BundleInfo) bool {
		return b.Name == spec.Name && slices.EqualFunc(b.Members, spec.Members, func(m ndiscore.BundleMember, name string) bool { return m.Adapter == name })
	})
}

func (s *Switch) addBundle(ctx context.Context, spec ndiscore.BundleSpec, why string) error {
	if err := s.core.AddBundle(ctx, spec); err != nil {
		return err
	}
	err := s.settle(ctx, spec.Members...)
	if err == nil && spec.Mode == ndiscore.BundleTeam {
		err = s.core.Start(ctx, spec.Name, why)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		err = errors.Join(err, s.core.RemoveBundle(undo, spec.Name, "could not be started"))
	}
	return err
}

// settle waits until everybody is bound to what there is of names.
func (s *Switch) settle(ctx context.Context, names ...string) error {
	for _, n := range names {
		if err := s.core.Settle(ctx, n); err != nil && !errors.Is(err, ndiscore.ErrAdapterNotFound) {
			return err
		}
	}
	return nil
}

// --- Bridges -----------------------------------------------------------------------

func (s *Switch) stepBridge(ctx context.Context, step config.Step, now, next *config.Config, why string) error {
	name := step.Name
	if step.Kind == config.KindPort {
		name = step.On
	}
	switch {
	case step.Kind == config.KindBridge && step.Op == config.OpRemove:
		if err := s.removeBridge(ctx, name, why); err != nil {
			return err
		}
		now.Bridges = without(now.Bridges, name, bridgeName)
		return nil
	case step.Kind == config.KindBridge && step.Op == config.OpAdd:
		b, _ := named(next.Bridges, name, bridgeName)
		if err := s.addBridge(ctx, b, why); err != nil {
			return err
		}
		now.Bridges = with(now.Bridges, b, bridgeName)
		return nil
	}
	b, _ := named(now.Bridges, name, bridgeName)
	n, _ := named(next.Bridges, name, bridgeName)
	ports, set := slices.Clone(b.Ports), slices.Clone(b.PortOptions)
	switch {
	case step.Kind == config.KindBridge:
		b, set = n, n.PortOptions // ports come and go in steps of their own
	case step.Op == config.OpRemove:
		ports = slices.DeleteFunc(ports, func(p string) bool { return p == step.Name })
	default:
		ports = append(ports, step.Name)
		if o, ok := named(n.PortOptions, step.Name, portName); ok {
			set = with(set, o, portName)
		}
	}
	b.Ports = ports
	b.PortOptions = slices.DeleteFunc(slices.Clone(set), func(o config.BridgePort) bool { return !slices.Contains(ports, o.Name) })
	options, err := s.bridgeOptions(b)
	if err != nil {
		return err
	}
	br := s.bridge(name)
	if err := br.Update(options); err != nil {
		return err
	}
	if step.Kind == config.KindPort {
		if err := s.core.SetTargets(ctx, br.Spec().Name, ports); err != nil {
			return err
		}
		if err := s.settle(ctx, ports...); err != nil {
			return err
		}
	}
	now.Bridges = with(now.Bridges, b, bridgeName)
	return nil
}

func (s *Switch) bridge(name string) *bridge.Bridge {
	for _, b := range *s.bridges.Load() {
		if b.name == name {
			return b.bridge
		}
	}
	return nil
}

func (s *Switch) addBridge(ctx context.Context, b config.Bridge, why string) error {
	options, err := s.bridgeOptions(b)
	if err != nil {
		return err
	}
	br, err := bridge.New(options)
	if err != nil {
		return err
	}
	if err := s.core.AddVirtual(ctx, b.Name, br, nil); err != nil {
		return err
	}
	list := append(slices.Clone(*s.bridges.Load()), namedBridge{b.Name, br})
	s.bridges.Store(&list)
	err = s.core.AddProtocol(ctx, br.Spec())
	if err == nil {
		err = s.settle(ctx, b.Ports...)
	}
	if err == nil {
		err = s.core.Start(ctx, b.Name, why)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		err = errors.Join(err, s.removeBridge(undo, b.Name, "could not be started"))
	}
	return err
}

func (s *Switch) removeBridge(ctx context.Context, name, why string) error {
	if err := s.core.Remove(ctx, name, why); err != nil && !errors.Is(err, ndiscore.ErrAdapterNotFound) {
		return err
	}
	if br := s.bridge(name); br != nil {
		if err := s.core.RemoveProtocol(ctx, br.Spec().Name); err != nil && !errors.Is(err, ndiscore.ErrNotFound) {
			return err
		}
	}
	list := slices.DeleteFunc(slices.Clone(*s.bridges.Load()), func(b namedBridge) bool { return b.name == name })
	s.bridges.Store(&list)
	return nil
}

// --- The router --------------------------------------------------------------------

// evolveRouter records in now what step does to the router.
func evolveRouter(step config.Step, now, next *config.Config) {
	switch step.Kind {
	case config.KindInterface:
		n, _ := named(next.Interfaces, step.Name, interfaceName)
		switch step.Op {
		case config.OpRemove:
			now.Interfaces = without(now.Interfaces, step.Name, interfaceName)
		case config.OpMove: // the rest of what is new about it comes later
			i, _ := named(now.Interfaces, step.Name, interfaceName)
			i.On = n.On
			now.Interfaces = with(now.Interfaces, i, interfaceName)
		default:
			now.Interfaces = with(now.Interfaces, n, interfaceName)
		}
	case config.KindRoute:
		if r, ok := named(next.Routes, step.Name, routeName); ok && step.Op == config.OpAdd {
			now.Routes = with(now.Routes, r, routeName)
		} else {
			now.Routes = without(now.Routes, step.Name, routeName)
		}
	case config.KindForward:
		if f, ok := named(next.Forwards, step.Name, forwardName); ok && step.Op == config.OpAdd {
			now.Forwards = with(now.Forwards, f, forwardName)
		} else {
			now.Forwards = without(now.Forwards, step.Name, forwardName)
		}
	case config.KindNAT:
		now.NAT = next.NAT
	}
}

const stackProtocol = "stack"

// setRouter has the router do what c says of it.
func (s *Switch) setRouter(ctx context.Context, c *config.Config) error {
	options := s.routerOptions(c)
	r := s.router.Load()
	switch {
	case r != nil:
		if err := r.Apply(ctx, options); err != nil {
			return err
		}
		if err := s.core.SetTargets(ctx, stackProtocol, r.Targets()); err != nil {
			return err
		}
	case len(c.Interfaces) == 0:
		return nil
	default:
		var err error
		if r, err = stack.New(options); err != nil {
			return err
		}
		if err := r.Start(s.core); err != nil {
			return err
		}
		if err := s.core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: stackProtocol, Protocol: r, Targets: r.Targets()}); err != nil {
			r.Close()
			return err
		}
		s.router.Store(r)
	}
	for _, t := range r.Targets() {
		names := []string{t}
		if b, ok := named(c.Bundles, t, bundleName); ok {
			names = append(names, b.Members...)
		}
		if err := s.settle(ctx, names...); err != nil {
			return err
		}
	}
	return nil
}
