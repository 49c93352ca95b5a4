package stack

import (
	"context"
	"fmt"
	"slices"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Apply makes the router's interfaces, routes, forwards and bounds of NAT those of
// o, while it runs; the rest of o is as it was given to New. A contradiction in o
// changes nothing (errors as of Options.Validate). Otherwise only what differs is
// touched:
//
//   - An interface is known by its name. One that keeps its name keeps its
//     counters; its NIC, neighbours and connections too, unless On changes, or its
//     MTU crosses the 1280 bytes that IPv6 needs.
//   - Addresses come and go one by one; new ones are announced.
//   - Flows of NAT stay, but those of addresses and forwards that are gone, and of
//     interfaces that translate no more.
//   - Routes that stay are not withdrawn meanwhile. Those of AddRoute are gone,
//     unless o has them.
//   - The first MTU below 1280 is the exception: it costs a new netstack (see
//     newInstance), so that all neighbours are asked for anew.
//
// Bindings are the core's: when Targets is not what it was, the caller passes it
// to Core.SetTargets afterwards. An interface whose On changed is unbound from
// now until the core binds the new target; if that is bound already (two
// interfaces changed places, or one has a new name) it goes on at once. What
// stands on nothing any more drops its frames as "no-receiver" until the core
// unbinds it.
//
// An error after validation is the feeder's: ErrNotRunning, ErrPanicked, or ctx
// ended before it came to it; then the change takes effect when it does.
func (r *Router) Apply(ctx context.Context, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	r.configuring.Lock()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		r.configuring.Unlock()
		return fmt.Errorf("stack: apply: %w", ErrNotRunning)
	}
	gone, come := r.configureLocked(&o)
	started := r.started
	r.mu.Unlock()
	r.configureNAT(&o)
	r.configuring.Unlock()
	if !started {
		return nil
	}
	err := r.update(ctx, come...)
	for _, p := range gone {
		r.config.Event("interface.unbound", p.iface.name, p.on, "", "configuration changed")
	}
	for _, p := range come {
		r.tellBound(p)
		if p.gate.isOpen() {
			r.announceAddresses(p, "configuration changed", 0)
		}
	}
	if err != nil {
		return fmt.Errorf("stack: apply: %w", err)
	}
	return nil
}

// configureLocked takes over interfaces and routes of o, which are valid, and puts
// interfaces on the plugs that they want. It returns the ports that ended, and
// those that began.
func (r *Router) configureLocked(o *Options) (gone, come []*port) {
	old := map[string]*iface{}
	for _, i := range r.ifaces {
		old[i.name] = i
	}
	named := map[string]*iface{}
	ifaces := make([]*iface, 0, len(o.Interfaces))
	for _, c := range o.Interfaces {
		i := old[c.Name]
		if i == nil {
			r.lastNIC++
			i = &iface{name: c.Name, id: r.lastNIC}
		}
		c.Addresses = slices.Clone(c.Addresses)
		i.config = c
		named[c.Name] = i
		ifaces = append(ifaces, i)
	}
	statics := make([]static, 0, len(o.Routes))
	for _, route := range o.Routes {
		if c, err := o.routeInterface(&route); err == nil { // it is valid
			statics = append(statics, static{route, named[c.Name]})
		}
	}
	r.ifaces, r.statics = ifaces, statics

	for _, p := range r.plugs {
		if n := p.port.Load(); n != nil && n.iface != r.standsOnLocked(p.target) {
			gone = append(gone, r.plugOutLocked(p))
		}
	}
	for _, p := range r.plugs {
		if i := r.standsOnLocked(p.target); i != nil && i.port == nil {
			come = append(come, r.plugInLocked(i, p))
		}
	}
	return gone, come
}

// AddRoute adds a route while the router runs, after those that there are: of
// equal metrics the first wins. Errors: those of Options.Validate about a route;
// ndiscore.ErrExists; those of Apply.
func (r *Router) AddRoute(ctx context.Context, route Route) error {
	return r.changeRoutes(ctx, func() error {
		o := Options{}
		for _, i := range r.ifaces {
			o.Interfaces = append(o.Interfaces, i.config)
		}
		c, err := o.routeInterface(&route)
		if err != nil {
			return err
		}
		n := slices.IndexFunc(r.ifaces, func(i *iface) bool { return i.name == c.Name })
		s := static{route, r.ifaces[n]}
		if slices.ContainsFunc(r.statics, s.same) {
			return fmt.Errorf("stack: route to %s: metric %d: %w", route.To, route.Metric, ndiscore.ErrExists)
		}
		r.statics = append(slices.Clip(r.statics), s)
		return nil
	})
}

// DeleteRoute deletes the static route to route.To that has route's metric, and
// its Via and Interface where they are given. Errors: ndiscore.ErrNotFound, also
// if there are several; those of Apply.
func (r *Router) DeleteRoute(ctx context.Context, route Route) error {
	return r.changeRoutes(ctx, func() error {
		found := -1
		fail := func(hint string) error {
			return fmt.Errorf("stack: route to %s: metric %d: %w%s", route.To, route.Metric, ndiscore.ErrNotFound, hint)
		}
		for n, s := range r.statics {
			if s.To != route.To || s.Metric != route.Metric || route.Via.IsValid() && s.Via != route.Via ||
				route.Interface != "" && s.iface.name != route.Interface {
				continue
			}
			if found >= 0 {
				return fail(": several; say via and interface")
			}
			found = n
		}
		if found >= 0 {
			r.statics = slices.Delete(slices.Clone(r.statics), found, found+1)
			return nil
		}
		for _, i := range r.ifaces {
			for _, n := range i.config.Addresses {
				if n.Masked() == route.To {
					return fail(": it is connected, and goes with address " + n.String() + " of interface " + i.name)
				}
			}
		}
		return fail("")
	})
}

// changeRoutes has change, under the lock, replace the static routes, and the
// feeder use them.
func (r *Router) changeRoutes(ctx context.Context, change func() error) error {
	r.mu.Lock()
	err := change()
	started := r.started
	r.mu.Unlock()
	if err != nil || !started {
		return err
	}
	if err := r.update(ctx); err != nil {
		return fmt.Errorf("stack: change routes: %w", err)
	}
	return nil
}
