package ndiscore

import (
	"context"
	"fmt"
	"slices"
)

// RegisterDriver makes a driver known (NdisMRegisterMiniportDriver). The table
// is copied. SetOptions, if given, is called before it returns; if that fails,
// the driver is not registered.
func (c *Core) RegisterDriver(d Driver) (*DriverHandle, error) {
	switch {
	case d.Version != ContractVersion:
		return nil, fmt.Errorf("driver %s: register: %w: it is for version %d, this is %d", d.Name, ErrBadVersion, d.Version, ContractVersion)
	case d.Name == "" || d.NewOptions == nil || d.New == nil:
		return nil, fmt.Errorf("driver %s: register: %w: Name, NewOptions and New must be set", d.Name, ErrBadCharacteristics)
	}
	h := &DriverHandle{core: c, driver: d}
	var err error
	if e := c.do(context.Background(), func() {
		if c.drivers[d.Name] != nil {
			err = fmt.Errorf("driver %s: register: %w", d.Name, ErrExists)
			return
		}
		c.drivers[d.Name] = h // its name is taken; adapters it may have when it is ready
	}); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	if d.SetOptions != nil {
		if err := d.SetOptions(h); err != nil {
			_ = c.do(context.Background(), func() { delete(c.drivers, d.Name) })
			return nil, fmt.Errorf("driver %s: set options: %w", d.Name, err)
		}
	}
	return h, c.do(context.Background(), func() { h.ready = true })
}

// Deregister undoes RegisterDriver. An entry routine that fails after it
// registered calls it, and so does Unload. ErrInvalidState while there are
// adapters, or when called twice.
func (h *DriverHandle) Deregister() error {
	var err error
	if e := h.core.do(context.Background(), func() {
		if h.gone || h.adapters > 0 {
			err = fmt.Errorf("driver %s: deregister: %w: %d adapters", h.driver.Name, ErrInvalidState, h.adapters)
			return
		}
		h.gone = true
		delete(h.core.drivers, h.driver.Name)
	}); e != nil {
		return e
	}
	return err
}

// AddProtocol makes a protocol known (NdisRegisterProtocolDriver). Bind may be
// called before it returns.
func (c *Core) AddProtocol(ctx context.Context, spec ProtocolSpec) error {
	if spec.Name == "" || spec.Protocol == nil {
		return fmt.Errorf("protocol %q: %w: it needs a name and an implementation", spec.Name, ErrBadCharacteristics)
	}
	var err error
	if e := c.do(ctx, func() {
		if c.protos[spec.Name] != nil {
			err = fmt.Errorf("protocol %s: %w", spec.Name, ErrExists)
			return
		}
		c.protos[spec.Name] = &protocol{name: spec.Name, impl: spec.Protocol}
		c.m.protocols = append(c.m.protocols, &mProtocol{name: spec.Name, targets: slices.Clone(spec.Targets)})
		c.step(event{kind: evBindingsChanged})
	}); e != nil {
		return e
	}
	return err
}

// AdapterSpec is one adapter to be added.
type AdapterSpec struct {
	Name    string
	Driver  string // the name it was registered under
	Options any    // what the driver's NewOptions made, filled in
	Filters []FilterSpec
}

// AddAdapter makes an adapter known, halted; Start starts it.
func (c *Core) AddAdapter(ctx context.Context, spec AdapterSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // whoever gives up from here on must not leave half an adapter behind
	var h *DriverHandle
	var err error
	if e := c.do(ctx, func() {
		switch d := c.drivers[spec.Driver]; {
		case d == nil || !d.ready:
			err = fmt.Errorf("adapter %s: driver %q: %w", spec.Name, spec.Driver, ErrNotFound)
		case c.slots[spec.Name] != nil:
			err = fmt.Errorf("adapter %s: %w", spec.Name, ErrExists)
		default:
			h = d
			h.adapters++ // it is not to be deregistered meanwhile
		}
	}); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	// On the caller's goroutine: a driver that does not return holds up nobody
	// else.
	a, err := h.newAdapter(spec)
	if e := c.do(ctx, func() {
		if err == nil && c.slots[spec.Name] != nil {
			err = fmt.Errorf("adapter %s: %w", spec.Name, ErrExists)
		}
		if err != nil {
			h.adapters--
			return
		}
		c.add(&slot{core: c, name: spec.Name, driver: h, adapter: a}, spec.Filters)
	}); e != nil {
		err = e
	}
	if err != nil && a != nil && h.driver.Remove != nil {
		h.driver.Remove(a)
	}
	return err
}

// newAdapter has the driver make an adapter.
func (h *DriverHandle) newAdapter(spec AdapterSpec) (Adapter, error) {
	a, err := h.driver.New(spec.Name, spec.Options)
	if err != nil {
		return nil, fmt.Errorf("adapter %s: %w", spec.Name, err)
	}
	if _, checks := optional[interface{ CheckForHang() bool }](a); checks {
		if _, ok := optional[Resetter](a); !ok {
			return a, fmt.Errorf("adapter %s: driver %s: %w: it checks for hangs and cannot reset", spec.Name, spec.Driver, ErrBadCharacteristics)
		}
	}
	return a, nil
}

// AddVirtual makes the virtual miniport of an intermediate driver known,
// halted; Start starts it (NdisIMInitializeDeviceInstanceEx).
func (c *Core) AddVirtual(ctx context.Context, name string, a Adapter, filters []FilterSpec) error {
	var err error
	if e := c.do(ctx, func() {
		if c.slots[name] != nil {
			err = fmt.Errorf("adapter %s: %w: %w", name, ErrNotAccepted, ErrExists)
			return
		}
		c.add(&slot{core: c, name: name, adapter: a, virtual: true}, filters)
	}); e != nil {
		return e
	}
	return err
}

func (c *Core) add(s *slot, filters []FilterSpec) {
	s.out.quieter = make(chan struct{}, 1)
	s.oids = make(chan struct{}, 1)
	ma := &mAdapter{name: s.name, virtual: s.virtual}
	if s.driver != nil {
		ma.driver = s.driver.driver.Name
	}
	_, ma.hasDevice = optional[LowerDevice](s.adapter)
	_, ma.hasPnP = optional[DevicePnPNotifier](s.adapter)
	_, ma.hasReset = optional[Resetter](s.adapter)
	var chain []*filterModule
	for _, f := range filters {
		_, hears := f.Filter.(EventFilter)
		chain = append(chain, &filterModule{slot: s, name: f.Name, filter: f.Filter})
		ma.filters = append(ma.filters, &mFilter{name: f.Name, mandatory: f.Mandatory, hears: hears})
	}
	s.filters.Store(&chain)
	s.close(DropPaused)
	c.slots[s.name] = s
	c.order = append(c.order, s.name)
	c.m.adapters = append(c.m.adapters, ma)
	if b := c.m.bundleOf(ma); b != nil && b.mode == BundleNDIS5 {
		c.setPrimary(b, b.members, b.primary) // a member that was removed, and is back
	}
	c.events.add(Event{Time: c.clock.Now(), What: "adapter.added", Adapter: s.name})
}
