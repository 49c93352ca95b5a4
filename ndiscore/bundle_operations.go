package ndiscore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// AddBundle makes a bundle known. A team's virtual adapter, named after the
// bundle, is to be started like any other. ErrExists when the name is taken, in
// any case, or a member is in another bundle; ErrFailure when the members of an
// ndis5 bundle are of different drivers.
func (c *Core) AddBundle(ctx context.Context, spec BundleSpec) error {
	if err := spec.check(); err != nil {
		return err
	}
	if spec.Mode == BundleTeam && c.m.decider == nil {
		return fmt.Errorf("bundle %s: %w: the core has no Decider", spec.Name, ErrInvalidState)
	}
	var err error
	if e := c.do(ctx, func() {
		if c.slots[spec.Name] != nil || c.m.bundleID(spec.Name) != nil || c.protos[teamProtocol(spec.Name)] != nil {
			err = fmt.Errorf("bundle %s: %w", spec.Name, ErrExists)
			return
		}
		if err = c.mayJoin(spec, nil); err != nil {
			return
		}
		c.m.bundles = append(slices.Clone(c.m.bundles), newBundle(spec))
		if spec.Mode == BundleTeam {
			t := newTeam(c, spec)
			c.teams[spec.Name] = t
			c.add(&slot{core: c, name: spec.Name, adapter: t, virtual: true}, nil)
			p := teamProtocol(spec.Name)
			c.protos[p] = &protocol{name: p, impl: t}
			c.m.protocols = append(c.m.protocols, &mProtocol{name: p, targets: slices.Clone(spec.Members)})
		}
		c.keepTurning()
		c.step(event{kind: evBindingsChanged})
	}); e != nil {
		return e
	}
	return err
}

// mayJoin refuses members that are in another bundle than b, and an ndis5 bundle
// of different drivers (B-1).
func (c *Core) mayJoin(spec BundleSpec, b *mBundle) error {
	var first *DriverHandle
	for _, n := range spec.Members {
		if other := c.m.bundleWith(n); other != nil && other != b {
			return fmt.Errorf("bundle %s: member %s: %w: by bundle %s", spec.Name, n, ErrExists, other.name)
		}
		if spec.Mode == BundleTeam {
			continue
		}
		s := c.slots[n]
		if s == nil && b != nil && b.has(n) {
			continue // it was removed, and is a member again when it is back
		}
		if s == nil || s.driver == nil {
			return fmt.Errorf("bundle %s: member %s: %w", spec.Name, n, ErrAdapterNotFound)
		}
		if first != nil && s.driver != first {
			return fmt.Errorf("bundle %s: %w: %s is a %s adapter and %s a %s one; an ndis5 bundle is of one driver (mode = \"team\" may mix them)",
				spec.Name, ErrFailure, spec.Members[0], first.driver.Name, n, s.driver.driver.Name)
		}
		first = s.driver
	}
	return nil
}

// UpdateBundle changes a bundle while it carries traffic: everything but its name
// and mode, which give ErrNotSupported. A team's member that is to leave is left
// first, and what is under way to it is awaited; UpdateBundle returns when nobody
// is bound to it any more for the bundle's sake. An ndis5 bundle that loses its
// primary moves to another member, as if that had failed.
func (c *Core) UpdateBundle(ctx context.Context, spec BundleSpec) error {
	if err := spec.check(); err != nil {
		return err
	}
	ev := event{kind: evBundleLeft, adapter: spec.Name, names: spec.Members}
	if err := c.do(ctx, func() {
		if b := c.m.bundleID(spec.Name); b != nil {
			ev.names = append(slices.Clone(b.members), spec.Members...)
		}
	}); err != nil {
		return err
	}
	return c.operateWith(ctx, ev, func() error {
		b := c.m.bundleID(spec.Name)
		switch {
		case b == nil:
			return fmt.Errorf("bundle %s: %w", spec.Name, ErrNotFound)
		case b.mode != spec.Mode:
			return fmt.Errorf("bundle %s: %w: from mode %s to %s; remove it and add it anew", b.name, ErrNotSupported, b.mode, spec.Mode)
		case b.own && !slices.Equal(b.names(), spec.Members):
			return fmt.Errorf("bundle %s: %w: its driver made it, and says who its members are", b.name, ErrNotSupported)
		}
		if err := c.mayJoin(spec, b); err != nil {
			return err
		}
		was := b.members
		if b.mode == BundleTeam {
			if err := c.changeMembers(b, spec.Members); err != nil {
				return err
			}
		} else {
			b.members = slices.Clone(spec.Members)
		}
		b.adopt(spec)
		if b.mode == BundleNDIS5 {
			c.setPrimary(nil, was, "") // nobody points at a member that leaves
			if b.has(b.primary) {
				c.setPrimary(b, b.members, b.primary)
			}
		}
		c.keepTurning()
		c.Report(Event{What: "bundle.changed", Adapter: b.name, To: strings.Join(spec.Members, " ")})
		return nil
	})
}

// changeMembers gives team b other members, or another order. An index in use
// keeps its meaning; one whose member has left and is unbound is free.
func (c *Core) changeMembers(b *mBundle, names []string) error {
	t := c.teams[b.name]
	list := slices.Clone(b.members)
	free := func(i int) bool {
		m := t.members[i].Load()
		return m == nil || m.binding.Load() == nil && !slices.Contains(b.preference(), i) && !slices.Contains(names, m.name)
	}
	prefer := make([]int, len(names))
	for k, n := range names {
		i := slices.Index(list, n)
		for at := 0; i < 0 && at < maxMembers; at++ {
			if at == len(list) {
				list = append(list, "")
			}
			if free(at) && !slices.Contains(prefer[:k], at) {
				i, list[at] = at, n
			}
		}
		if i < 0 {
			return fmt.Errorf("bundle %s: %w: members that have left are still bound", b.name, ErrResources)
		}
		prefer[k] = i
	}
	for i, n := range list {
		if m := t.members[i].Load(); m == nil || m.name != n {
			t.setMember(i, n)
		}
	}
	b.members, b.prefer = list, prefer
	c.m.protocol(teamProtocol(b.name)).targets = slices.Clone(names)
	return nil
}

// RemoveBundle takes a bundle away, and returns when its members stand alone and
// its name is free again. Of a team, whoever is bound to it is unbound, its
// virtual adapter halted (HaltInstanceDeInitialized), and its members given back.
func (c *Core) RemoveBundle(ctx context.Context, name, why string) error {
	var b *mBundle
	var members []string
	err := c.do(ctx, func() {
		if b = c.m.bundleID(name); b != nil {
			members = b.members
		}
	})
	switch {
	case err != nil:
		return err
	case b == nil:
		return fmt.Errorf("bundle %s: %w", name, ErrNotFound)
	case b.mode == BundleTeam:
		err := c.Remove(ctx, b.name, why)
		if errors.Is(err, ErrAdapterNotFound) { // that much was done before
			return c.dropTeam(ctx, b.name, why)
		}
		return err
	}
	return c.operateWith(ctx, event{kind: evBundleLeft, adapter: b.name, names: members}, func() error {
		c.m.dropBundle(b)
		c.setPrimary(nil, b.members, "")
		c.Report(Event{What: "bundle.removed", Adapter: b.name, From: b.primary, Why: why})
		return nil
	})
}

// remove is Remove, if nothing speaks against it when its turn has come.
func (c *Core) remove(ctx context.Context, name, why string, check func() error) error {
	team := false
	err := c.operateWith(ctx, event{kind: evRemove, adapter: name, why: why}, func() error {
		team = c.teams[name] != nil
		if check != nil {
			return check()
		}
		return nil
	})
	if err != nil || !team {
		return err
	}
	return c.dropTeam(ctx, name, why)
}

// dropTeam unbinds a team whose virtual adapter is gone from its members, and
// forgets it.
func (c *Core) dropTeam(ctx context.Context, name, why string) error {
	if err := c.RemoveProtocol(ctx, teamProtocol(name)); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("bundle %s: remove: %w", name, err)
	}
	return c.do(ctx, func() {
		b := c.m.bundle(name)
		if b == nil || c.teams[name] == nil {
			return // somebody else removed it at the same time
		}
		c.m.dropBundle(b)
		delete(c.teams, name)
		c.Report(Event{What: "bundle.removed", Adapter: name, Why: why})
	})
}

// CancelVirtual takes back AddVirtual, or AddBundle of a team, before Initialize
// was called (NdisIMCancelInitializeDeviceInstance). ErrFailure when it is too
// late: then there is Remove.
func (c *Core) CancelVirtual(ctx context.Context, name, why string) error {
	return c.remove(ctx, name, why, func() error {
		a := c.m.adapter(name)
		switch {
		case a == nil:
			return fmt.Errorf("adapter %s: %w", name, ErrAdapterNotFound)
		case !a.virtual || a.initialized || a.busy || a.goal != goalRest:
			return fmt.Errorf("adapter %s: cancel: %w: it is no virtual adapter, or was started", name, ErrFailure)
		}
		return nil
	})
}

// SetSecondary implements AdapterHandle.
func (s *slot) SetSecondary(primary string) error {
	if s.alive.Load() != aliveInitializing {
		return fmt.Errorf("adapter %s: set secondary of %s: %w: this is for Initialize only", s.name, primary, ErrFailure)
	}
	return asFailure(s.core.operate(context.Background(), event{kind: evSecondary, adapter: s.name, target: primary}))
}

// Promote implements AdapterHandle.
func (s *slot) Promote() error {
	if s.alive.Load() != aliveYes {
		return fmt.Errorf("adapter %s: promote: %w: it is not initialised", s.name, ErrFailure)
	}
	return asFailure(s.core.operate(context.Background(), event{kind: evPromoteSelf, adapter: s.name}))
}

// asFailure has every error of the two calls be NDIS's one.
func asFailure(err error) error {
	if err != nil && !errors.Is(err, ErrFailure) {
		err = fmt.Errorf("%w: %w", ErrFailure, err)
	}
	return err
}
