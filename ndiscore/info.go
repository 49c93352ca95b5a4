package ndiscore

import "context"

// AdapterInfo is what `adapter show` tells.
type AdapterInfo struct {
	Name     string        `json:"name"`
	Driver   string        `json:"driver"` // "team", "bridge" for virtual ones
	Virtual  bool          `json:"virtual"`
	State    AdapterState  `json:"state"`
	Oper     OperStatus    `json:"oper"`
	Cause    string        `json:"cause,omitempty"`     // of the newest transition
	LastHalt HaltAction    `json:"last_halt,omitempty"` // "none" if never halted
	Waiting  bool          `json:"waiting,omitempty"`   // for its device to come back, or with Retrying to be started again
	Retrying bool          `json:"retrying,omitempty"`  // its device had come back and did not start: it is tried again after a while
	Stuck    bool          `json:"quarantined,omitempty"`
	Asleep   bool          `json:"suspended,omitempty"`
	Health   Health        `json:"health"`
	Resets   uint64        `json:"resets,omitempty"` // since it was added
	Device   string        `json:"device,omitempty"`
	MAC      MAC           `json:"mac"`
	MTU      int           `json:"mtu"`
	Link     LinkState     `json:"link"`
	Bundle   string        `json:"bundle,omitempty"`
	Filters  []FilterInfo  `json:"filters,omitempty"`
	Bindings []BindingInfo `json:"bindings,omitempty"`
	Counters Counters      `json:"counters"`
}

// FilterInfo is one filter module of an adapter.
type FilterInfo struct {
	Name      string      `json:"name"`
	State     FilterState `json:"state"`
	Mandatory bool        `json:"mandatory,omitempty"`
}

// BindingInfo is what `binding list` tells.
type BindingInfo struct {
	Protocol string       `json:"protocol"`
	Adapter  string       `json:"adapter"`
	Target   string       `json:"target"`
	State    BindingState `json:"state"`
}

// Adapters tells of every adapter, in the order in which they were added.
func (c *Core) Adapters(ctx context.Context) ([]AdapterInfo, error) {
	var infos []AdapterInfo
	var slots []*slot
	if err := c.do(ctx, func() {
		for _, a := range c.m.adapters {
			infos = append(infos, c.adapterInfo(a))
			slots = append(slots, c.slots[a.name])
		}
	}); err != nil {
		return nil, err // infos may still be written
	}
	for i, s := range slots { // drivers are asked on the caller's goroutine
		infos[i].Counters = s.counters()
	}
	return infos, nil
}

func (c *Core) adapterInfo(a *mAdapter) AdapterInfo {
	s := c.slots[a.name]
	attrs := s.attributes()
	info := AdapterInfo{
		Name: a.name, Driver: a.driver, Virtual: a.virtual, State: a.state, Cause: a.cause, LastHalt: a.lastHalt,
		Waiting: a.await && a.state == StateHalted, Stuck: a.stuck, Asleep: a.asleep, Health: a.health, Resets: s.resets.Load(),
		Device: attrs.Device, MAC: attrs.MAC, MTU: attrs.MTU, Link: a.link,
	}
	info.Retrying = info.Waiting && a.after > 0
	info.Driver, info.Oper = s.kind(), a.oper.status
	if b := c.m.bundleOf(a); b != nil {
		info.Bundle = b.name
	}
	for _, f := range a.filters {
		info.Filters = append(info.Filters, FilterInfo{f.name, f.state, f.mandatory})
	}
	for _, b := range a.bindings {
		info.Bindings = append(info.Bindings, BindingInfo{b.protocol.name, a.name, b.target, b.state})
	}
	return info
}

// Bundles tells of every bundle, in the order in which they were added.
func (c *Core) Bundles(ctx context.Context) ([]BundleInfo, error) {
	var infos []BundleInfo
	if err := c.do(ctx, func() {
		c.m.now = c.clock.Now()
		for _, b := range c.m.bundles {
			infos = append(infos, c.m.bundleInfo(b))
		}
	}); err != nil {
		return nil, err // infos may still be written
	}
	return infos, nil
}

// Events returns the events numbered above after that are still kept, how many
// between are lost, and a channel that closes when there are more.
func (c *Core) Events(after uint64) (events []Event, lost uint64, more <-chan struct{}) {
	return c.events.since(after)
}
