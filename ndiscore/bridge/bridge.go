package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Bridge is a learning switch; see the package comment.
type Bridge struct {
	name string
	mac  ndiscore.MAC
	own  uint64                  // mac as a key
	opts atomic.Pointer[Options] // complete; replaced whole by Update

	view    atomic.Pointer[view]                   // what the data path sees; replaced whole
	handle  atomic.Pointer[ndiscore.AdapterHandle] // from Initialize to Halt
	above   atomic.Pointer[ndiscore.AdapterHandle] // from Restart to Pause: frames may go up
	filter  atomic.Uint32                          // ndiscore.PacketFilter of those bound above, united
	scratch [ndiscore.MaxWorkers]atomic.Pointer[scratch]
	snoop   snooper

	news atomic.Int32 // link states to be told above, see tellLink

	// The keeper's.
	fullTold  bool // an event said that the table is full
	announced atomic.Uint64
	probes    atomic.Uint64
	loops     atomic.Uint64

	updates sync.Mutex // one Update at a time; before mu
	mu      sync.Mutex // guards all below, and replacing view and opts; before fdb.mu and snooper.mu, never taken on the packet path
	names   []string   // by id, "" where the id is free
	listed  []bool     // by id: it is a port; one that is no longer has its id until it is unbound
	ports   []*port    // by id, nil where nothing is bound
	keeper  *keeper    // from Initialize to Halt
	mtu     int        // of the virtual adapter
	mtuTold int        // … as those above know it; 0 before they are there, or mtuUnsure
}

var (
	_ ndiscore.Adapter  = (*Bridge)(nil)
	_ ndiscore.Protocol = (*Bridge)(nil)
)

// port is one binding of the lower edge.
type port struct {
	id      uint16
	name    string
	binding *ndiscore.Binding
	nonce   uint64      // in the loop guard's probes: nobody who has not heard one can make one up
	up      atomic.Bool // running, connected and not shut: learned on, flooded to

	macLimit atomic.Int32  // most addresses learned here; 0: no limit of its own
	refused  atomic.Uint64 // frames of stations beyond it
	buckets  [stormKinds]bucket
	looped   atomic.Uint64 // what the data path saw of a loop, see loop.go

	owed atomic.Pointer[string] // why there is to be an announcement, which a pause ended

	storms   [stormKinds]episode // the keeper's
	refusals episode             // the keeper's

	running, connected, shut bool // guarded by Bridge.mu
	link                     ndiscore.LinkState
	reopen                   time.Time // when a shut port opens again
}

// view is what the data path knows: immutable, but for the tables it points to.
type view struct {
	vlan   uint16  // the virtual adapter's; 0: VLANs are not looked at
	fdb    *fdb    // never nil
	byID   []*port // nil where there is nothing in service
	rules  []rules // by id
	above  rules   // the virtual adapter's
	flood  []*port // those that are up
	snoop  bool    // group frames are looked at
	guard  bool    // our own frames are looked out for
	strict bool    // not every frame may leave by every port as it is: VLANs, or a port that is shut
	limits bool    // some port has one
	keeper *keeper // nil while the virtual adapter is halted; so are then snoop and guard
}

// rules are what the data path holds a port to.
type rules struct {
	untagged uint16  // VLAN of frames without a tag; 0: none, or VLANs are not looked at
	tagged   VLANSet // VLANs of frames with one
	storm    [stormKinds]*bucket
	shut     bool // by the loop guard
}

// New makes a bridge. It does nothing until the core initialises it.
func New(o Options) (*Bridge, error) {
	o.complete()
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", o.Name, err)
	}
	o = o.clone()
	b := &Bridge{name: o.Name, mac: o.MAC, own: o.MAC.Key(), ports: make([]*port, len(o.Ports))}
	b.names, b.listed, _ = rename(nil, nil, o.Ports) // cannot fail: nothing is bound yet
	b.opts.Store(&o)
	b.view.Store(&view{fdb: b.newTable(&o)})
	b.publishLocked()
	return b, nil
}

// newTable makes an empty forwarding database that knows the bridge itself.
func (b *Bridge) newTable(o *Options) *fdb {
	t := newFDB(o.MACLimit, o.VLAN != 0)
	t.setLocal(keyOf(b.own, o.VLAN))
	return t
}

func (b *Bridge) table() *fdb { return b.view.Load().fdb }

// Name is the bridge's name, and its virtual adapter's.
func (b *Bridge) Name() string { return b.name }

// Kind names the virtual miniport's driver.
func (b *Bridge) Kind() string { return "bridge" }

// MAC is the virtual adapter's address.
func (b *Bridge) MAC() ndiscore.MAC { return b.mac }

// Spec describes the lower edge to the core.
func (b *Bridge) Spec() ndiscore.ProtocolSpec {
	return ndiscore.ProtocolSpec{Name: "bridge " + b.name, Protocol: b, Targets: slices.Clone(b.opts.Load().Ports)}
}

// publishLocked makes the ports' state visible to the data path; mu must be
// held, except by New.
func (b *Bridge) publishLocked() { b.publishTableLocked(b.table()) }

// publishTableLocked is publishLocked with another forwarding database.
func (b *Bridge) publishTableLocked(t *fdb) {
	o := b.opts.Load()
	// What needs the keeper's clock rests without it.
	kept := b.keeper != nil
	v := &view{
		vlan: o.VLAN, strict: o.VLAN != 0, fdb: t, snoop: o.Snooping && kept, guard: o.LoopGuard && kept,
		byID: make([]*port, len(b.ports)), rules: make([]rules, len(b.ports)), above: rules{untagged: o.VLAN}, keeper: b.keeper,
	}
	for id, p := range b.ports {
		if p == nil {
			continue
		}
		p.up.Store(b.listed[id] && p.running && p.connected && !p.shut)
		if !v.guard {
			p.looped.Store(loopNone)
		}
		if !b.listed[id] {
			continue
		}
		set, r := o.Port[p.name], &v.rules[id]
		r.shut = p.shut
		v.strict = v.strict || p.shut
		p.macLimit.Store(int32(set.MACLimit))
		if o.VLAN != 0 {
			r.untagged, r.tagged = set.vlans(o.VLAN)
		}
		for kind, rate := range set.storm() {
			p.buckets[kind].set(int64(rate))
			if rate > 0 && kept {
				r.storm[kind] = &p.buckets[kind]
				v.limits = true
			}
		}
		v.limits = v.limits || set.MACLimit > 0
		v.byID[id] = p
		if p.up.Load() {
			v.flood = append(v.flood, p)
		}
	}
	b.view.Store(v)
}

// change alters the state of a bound port under the lock, publishes it,
// forgets what was behind it if it is no longer up, and tells those above.
func (b *Bridge) change(p *port, f func()) {
	b.mu.Lock()
	if b.ports[p.id] != p {
		b.mu.Unlock()
		return // a late status: the port has been unbound
	}
	was, reachable := p.up.Load(), p.connected && !p.shut
	f()
	b.publishLocked()
	lost := reachable && (!p.connected || p.shut)
	found := !was && p.up.Load()
	t := b.table()
	b.mu.Unlock()
	if lost {
		t.flush(p.id)
		b.snoop.forget(p.id)
	}
	if found {
		b.snoop.fresh(p.id)
	}
	b.tellLink()
}

// linkState is the virtual adapter's: connected while any port is up.
func (b *Bridge) linkState() ndiscore.LinkState {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "no port is running and connected"}
	for _, p := range b.ports {
		if p == nil || !p.up.Load() {
			continue
		}
		if l.Media != ndiscore.MediaConnected {
			l.Media, l.Why = ndiscore.MediaConnected, "port "+p.name+" is running and connected"
		}
		l.Speed = max(l.Speed, p.link.Speed)
	}
	return l
}

// mtuUnsure: to tell the MTU again does no harm, the core knows news from none.
const mtuUnsure = -1

// fitMTULocked finds the MTU anew: the smallest of the ports', unless it was
// given. It is not asked for when a port goes, since it may come back; mu must
// be held.
func (b *Bridge) fitMTULocked() {
	mtu := b.opts.Load().MTU
	if mtu == 0 {
		for id, p := range b.ports {
			if p == nil || !b.listed[id] {
				continue
			}
			if m := p.binding.Attributes().MTU; mtu == 0 || m < mtu {
				mtu = m
			}
		}
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	b.mtu = mtu
}

// mtuNews is what those above do not know of the MTU yet.
func (b *Bridge) mtuNews() (c ndiscore.AttributesChange, news bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mtuTold == 0 || b.mtu == b.mtuTold {
		return c, false
	}
	b.mtuTold = b.mtu
	return ndiscore.AttributesChange{MTU: b.mtu, Why: "the smallest of its ports'"}, true
}

// tellLink indicates the link state above, and the MTU if that changed. Several
// goroutines may have news at once; one of them tells, again and again until
// nothing has changed meanwhile, so that the last indication is always of the
// newest state, without a lock held across the call.
func (b *Bridge) tellLink() {
	n := b.news.Add(1)
	if n > 1 {
		return
	}
	for {
		if h := b.handle.Load(); h != nil {
			(*h).IndicateStatus(b.linkState())
			if c, ok := b.mtuNews(); ok {
				(*h).IndicateStatus(c)
			}
		}
		if b.news.CompareAndSwap(n, 0) {
			return
		}
		n = b.news.Load()
	}
}

// --- Lower edge: ndiscore.Protocol ------------------------------------------

// Bind implements ndiscore.Protocol.
func (b *Bridge) Bind(ctx context.Context, bd *ndiscore.Binding) error {
	fail := func(err error) error { return fmt.Errorf("bridge %s: bind %s: %w", b.name, bd.Target(), err) }
	a := bd.Attributes()
	p := &port{name: bd.Target(), binding: bd, nonce: rand.Uint64(), link: a.Link, connected: a.Link.Connected()}
	// The port is known before it asks for frames; until it is published they
	// have nowhere to go.
	b.mu.Lock()
	id := slices.Index(b.names, p.name)
	switch {
	case id < 0 || !b.listed[id]:
		b.mu.Unlock()
		return fail(fmt.Errorf("%w: it is not a port", ndiscore.ErrNotAccepted))
	case b.ports[id] != nil:
		b.mu.Unlock()
		return fail(ndiscore.ErrExists)
	}
	p.id = uint16(id)
	b.ports[id] = p
	b.mu.Unlock()
	bd.SetContext(p)
	err := bd.SetPacketFilter(ctx, ndiscore.FilterPromiscuous)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.releaseLocked(p)
		return fail(err)
	}
	b.publishLocked()
	return nil
}

// Unbind implements ndiscore.Protocol.
func (b *Bridge) Unbind(_ context.Context, bd *ndiscore.Binding) {
	p, ok := bd.Context().(*port)
	if !ok {
		return
	}
	shut := false
	b.change(p, func() {
		shut = p.shut
		p.running, p.connected = false, false
		p.up.Store(false)
		b.releaseLocked(p)
	})
	if shut {
		b.opts.Load().Event("bridge.loop", p.name, "shut", "absent", "it was unbound: when it is bound again it is open")
	}
	b.table().flush(p.id)
	b.snoop.forget(p.id)
	b.forget(p, true)
}

// releaseLocked frees what p has; its id too, if its name is no port's any more.
func (b *Bridge) releaseLocked(p *port) {
	b.ports[p.id] = nil
	if !b.listed[p.id] {
		b.names[p.id] = ""
	}
}

// Event implements ndiscore.Protocol.
func (b *Bridge) Event(_ context.Context, bd *ndiscore.Binding, ev ndiscore.NetEvent) error {
	if bd == nil {
		return nil
	}
	p, ok := bd.Context().(*port)
	if !ok {
		return nil
	}
	switch ev {
	case ndiscore.EventRestart:
		b.change(p, func() {
			p.running = true
			p.look() // between Bind's look and the end of Bind no status was delivered
			b.fitMTULocked()
		})
		if why := p.owed.Swap(nil); why != nil {
			if k := b.kept(); k != nil {
				k.announce(p, *why, 0)
			}
		}
	case ndiscore.EventPause:
		b.change(p, func() { p.running = false })
		b.forget(p, false)
	}
	return nil
}

// look reads the link as last indicated; Bridge.mu must be held. Statuses of
// one port may come on several goroutines at once, so their order of arrival
// here says nothing: what the binding remembers is the newest.
func (p *port) look() {
	p.link = p.binding.Attributes().Link
	p.connected = p.link.Connected()
}

// Status implements ndiscore.Protocol.
func (b *Bridge) Status(bd *ndiscore.Binding, s ndiscore.Status) {
	p, ok := bd.Context().(*port)
	if !ok {
		return
	}
	switch s := s.(type) {
	case ndiscore.LinkState:
		b.change(p, p.look)
	case ndiscore.AttributesChange:
		b.change(p, b.fitMTULocked)
	case ndiscore.NetworkChange:
		if k := b.kept(); k != nil && !s.Groups {
			k.announce(p, s.Why, s.After)
		}
		b.snoop.fresh(p.id) // who listens there now is not known
		if h := b.handle.Load(); h != nil {
			s.Why = "port " + p.name + ": " + s.Why
			(*h).IndicateStatus(s)
		}
	}
}

// SendComplete implements ndiscore.Protocol. The bridge sends borrowed batches
// only, which are its own again when Send returns.
func (b *Bridge) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}

// --- Upper edge: ndiscore.Adapter -------------------------------------------

// Initialize implements ndiscore.Adapter.
func (b *Bridge) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	o := b.opts.Load()
	clock := o.Clock
	if clock == nil {
		clock = h.Clock()
	}
	b.handle.Store(&h)
	if o.Snooping {
		b.snoop.open()
	}
	b.mu.Lock()
	b.keeper = newKeeper(b, clock, h.NewWorker(0))
	go b.keeper.run()
	b.publishLocked()
	b.fitMTULocked()
	mtu := b.mtu
	b.mu.Unlock()
	return ndiscore.Attributes{
		MAC: b.mac, MTU: mtu, Link: b.linkState(), Queues: 1,
		// What a port cannot do, the core finishes at that port.
		Transmit: ndiscore.CapAll, Receive: ndiscore.CapAll,
	}, nil
}

// Restart implements ndiscore.Adapter.
func (b *Bridge) Restart(context.Context) error {
	b.above.Store(b.handle.Load())
	// What changed since Initialize looked was told to a core that was not
	// listening yet.
	b.mu.Lock()
	b.mtuTold = mtuUnsure
	b.mu.Unlock()
	b.tellLink()
	return nil
}

// Pause implements ndiscore.Adapter. Workers that still carry a frame upward
// are inside the core, which waits for them.
func (b *Bridge) Pause(context.Context) { b.above.Store(nil) }

// Halt implements ndiscore.Adapter.
func (b *Bridge) Halt(context.Context, ndiscore.HaltAction) {
	b.mu.Lock()
	k := b.keeper
	b.keeper, b.mtuTold = nil, 0
	var opened []string
	for _, p := range b.ports {
		if p != nil && p.shut {
			p.shut = false
			opened = append(opened, p.name)
		}
	}
	b.publishLocked()
	ports := slices.Clone(b.ports)
	b.mu.Unlock()
	for _, name := range opened {
		b.opts.Load().Event("bridge.loop", name, "shut", "forwarding", "the bridge is halted, and its loop guard rests")
	}
	b.handle.Store(nil)
	if k != nil {
		k.close()
	}
	b.filter.Store(0)
	for id, p := range ports {
		b.table().flush(uint16(id))
		for kind := range stormKinds {
			if p != nil && k != nil {
				k.calm(p, kind, "the bridge is halted, and its storm limits rest")
			}
		}
	}
	b.snoop.clear()
}

// Return implements ndiscore.Adapter. The bridge indicates borrowed batches
// only, which never come back.
func (b *Bridge) Return(*ndiscore.Batch) {}

// Request implements ndiscore.Adapter.
func (b *Bridge) Request(_ context.Context, req *ndiscore.OIDRequest) error {
	switch {
	case req.ID == ndiscore.OIDGenCurrentPacketFilter && req.Kind == ndiscore.OIDSet:
		f, ok := req.Data.(ndiscore.PacketFilter)
		if !ok {
			return ndiscore.ErrInvalidData
		}
		b.filter.Store(uint32(f))
		return nil
	case req.ID == ndiscore.OIDGenLinkState && req.Kind == ndiscore.OIDQuery:
		req.Data = b.linkState()
		return nil
	}
	return ndiscore.ErrInvalidOID
}

// forget takes p out of the keeper's hands: when it returns nothing is being
// sent there, and nothing will be. gone: it is not bound any more.
func (b *Bridge) forget(p *port, gone bool) {
	if k := b.kept(); k != nil {
		k.forgetPort(p, gone)
	}
}

func (b *Bridge) kept() *keeper {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keeper
}
