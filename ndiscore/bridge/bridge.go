package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Defaults of Options.
const (
	DefaultAge      = 300 * time.Second // IEEE 802.1D-2004 table 7-5
	DefaultMACLimit = 8192
	defaultMTU      = 1500
	maxPorts        = 1024
	minAge          = 100 * time.Millisecond
	maxAge          = 7 * 24 * time.Hour // well within what the 32-bit coarse clock tells apart
	maxMACLimit     = 1 << 20
)

// Options describe one bridge.
type Options struct {
	Name  string
	Ports []string // adapters, bundles or bridges, in any order
	// MAC is the virtual adapter's; zero derives a locally administered one
	// from Name. Two machines with equally named bridges on one network need
	// to be given different ones.
	MAC      ndiscore.MAC
	MTU      int            // of the virtual adapter; 0: the smallest of the ports' when it starts
	Age      time.Duration  // an address not seen for so long is forgotten; 0: DefaultAge
	MACLimit int            // most addresses learned; 0: DefaultMACLimit
	Clock    ndiscore.Clock // nil: the core's
	// Event hears what people may want to know, never on the packet path and
	// never per frame; may be nil. It must not wait for the core.
	Event func(what, port, from, to, why string)
}

// Bridge is a learning switch; see the package comment.
type Bridge struct {
	opts Options
	fdb  *fdb

	view    atomic.Pointer[view]                   // ports as the data path sees them; replaced whole
	handle  atomic.Pointer[ndiscore.AdapterHandle] // from Initialize to Halt
	above   atomic.Pointer[ndiscore.AdapterHandle] // from Restart to Pause: frames may go up
	filter  atomic.Uint32                          // ndiscore.PacketFilter of those bound above, united
	scratch [ndiscore.MaxWorkers]atomic.Pointer[scratch]

	news atomic.Int32 // link states to be told above, see tellLink

	// The keeper's.
	fullTold  bool // an event said that the table is full
	announced atomic.Uint64

	mu     sync.Mutex // guards all below, and replacing view; before fdb.mu, never taken on the packet path
	ports  []*port    // by id, nil where nothing is bound
	keeper *keeper    // from Initialize to Halt
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
	up      atomic.Bool // running and connected: learned on, flooded to

	running, connected bool // guarded by Bridge.mu
	link               ndiscore.LinkState
}

// view is the data path's list of ports: immutable.
type view struct {
	byID  []*port // nil where nothing is bound
	flood []*port // those that are up
}

// New makes a bridge. It does nothing until the core initialises it.
func New(o Options) (*Bridge, error) {
	if o.Age == 0 {
		o.Age = DefaultAge
	}
	if o.MACLimit == 0 {
		o.MACLimit = DefaultMACLimit
	}
	if o.MAC.IsZero() {
		o.MAC = stableMAC(o.Name)
	}
	if o.Event == nil {
		o.Event = func(string, string, string, string, string) {}
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", o.Name, err)
	}
	b := &Bridge{opts: o, fdb: newFDB(o.MACLimit), ports: make([]*port, len(o.Ports))}
	b.fdb.setLocal(o.MAC.Key())
	b.view.Store(&view{byID: make([]*port, len(o.Ports))})
	return b, nil
}

func (o *Options) check() error {
	var errs []error
	if o.Name == "" {
		errs = append(errs, errors.New("a bridge needs a name"))
	}
	if len(o.Ports) > maxPorts {
		errs = append(errs, fmt.Errorf("%d ports, at most %d are possible", len(o.Ports), maxPorts))
	}
	seen := make(map[string]bool)
	for _, p := range o.Ports {
		switch {
		case p == o.Name:
			errs = append(errs, errors.New("it cannot be its own port"))
		case seen[p]:
			errs = append(errs, fmt.Errorf("port %s is listed twice", p))
		}
		seen[p] = true
	}
	if o.MAC.IsGroup() {
		errs = append(errs, fmt.Errorf("mac %s is a group address: its first byte must be even", o.MAC))
	}
	if o.MTU != 0 && (o.MTU < 68 || o.MTU > 65535) {
		errs = append(errs, fmt.Errorf("mtu %d is not within 68…65535", o.MTU))
	}
	if o.Age < minAge || o.Age > maxAge {
		errs = append(errs, fmt.Errorf("mac_age %s is not within %s…%s", o.Age, minAge, maxAge))
	}
	if o.MACLimit < 1 || o.MACLimit > maxMACLimit {
		errs = append(errs, fmt.Errorf("mac_limit %d is not within 1…%d", o.MACLimit, maxMACLimit))
	}
	return errors.Join(errs...)
}

// stableMAC derives a locally administered address from a name.
func stableMAC(name string) ndiscore.MAC {
	return ndiscore.LocalMAC("vswitch bridge", name)
}

// Name is the bridge's name, and its virtual adapter's.
func (b *Bridge) Name() string { return b.opts.Name }

// Kind names the virtual miniport's driver.
func (b *Bridge) Kind() string { return "bridge" }

// MAC is the virtual adapter's address.
func (b *Bridge) MAC() ndiscore.MAC { return b.opts.MAC }

// Spec describes the lower edge to the core.
func (b *Bridge) Spec() ndiscore.ProtocolSpec {
	return ndiscore.ProtocolSpec{Name: "bridge " + b.opts.Name, Protocol: b, Targets: b.opts.Ports}
}

// FDB lists the addresses that the bridge knows, in order.
func (b *Bridge) FDB() []FDBEntry { return b.fdb.list(b.opts.Ports, b.opts.Name) }

// Flush forgets what was learned on a port, or on all with "", and reports how
// many addresses that were.
func (b *Bridge) Flush(port string) (int, error) {
	n, found := 0, port == ""
	for id, name := range b.opts.Ports {
		if port == "" || port == name {
			n += b.fdb.flush(uint16(id))
			found = true
		}
	}
	if !found {
		return 0, fmt.Errorf("bridge %s: flush %s: %w: it is not a port", b.opts.Name, port, ndiscore.ErrNotFound)
	}
	return n, nil
}

// Stats counts what a bridge has done since it was made.
type Stats struct {
	Entries   int    `json:"entries"`   // addresses known now, without its own
	Limit     int    `json:"limit"`     // most that are learned
	Learned   uint64 `json:"learned"`   // new addresses
	Moved     uint64 `json:"moved"`     // … seen on another port than before
	Aged      uint64 `json:"aged"`      // … forgotten for silence
	Flushed   uint64 `json:"flushed"`   // … forgotten because their port went down or away, or by request
	Full      uint64 `json:"full"`      // … not learned for want of room
	Flooded   uint64 `json:"flooded"`   // frames for a group or an unknown address
	Copies    uint64 `json:"copies"`    // … copies of these, over all ports
	Announced uint64 `json:"announced"` // reverse-ARP announcements sent
}

// Stats returns the counters.
func (b *Bridge) Stats() Stats {
	s := Stats{
		Entries: int(b.fdb.entries.Load()), Limit: b.opts.MACLimit,
		Learned: b.fdb.learned.Load(), Moved: b.fdb.moved.Load(),
		Aged: b.fdb.aged.Load(), Flushed: b.fdb.flushed.Load(), Full: b.fdb.refused.Load(),
		Announced: b.announced.Load(),
	}
	for i := range b.scratch {
		if c := b.scratch[i].Load(); c != nil {
			s.Flooded += c.flooded.Load()
			s.Copies += c.copies.Load()
		}
	}
	return s
}

// publishLocked makes the ports' state visible to the data path; mu must be held.
func (b *Bridge) publishLocked() {
	v := &view{byID: append([]*port(nil), b.ports...)}
	for _, p := range b.ports {
		if p == nil {
			continue
		}
		p.up.Store(p.running && p.connected)
		if p.running && p.connected {
			v.flood = append(v.flood, p)
		}
	}
	b.view.Store(v)
}

// change alters the state of a bound port under the lock, publishes it,
// forgets what was behind it if its link went down, and tells those above.
func (b *Bridge) change(p *port, f func()) {
	b.mu.Lock()
	if b.ports[p.id] != p {
		b.mu.Unlock()
		return // a late status: the port has been unbound
	}
	was := p.connected
	f()
	b.publishLocked()
	lost := was && !p.connected
	b.mu.Unlock()
	if lost {
		b.fdb.flush(p.id)
	}
	b.tellLink()
}

// linkState is the virtual adapter's: connected while any port is up.
func (b *Bridge) linkState() ndiscore.LinkState {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "no port is running and connected"}
	for _, p := range b.ports {
		if p == nil || !p.running || !p.connected {
			continue
		}
		if l.Media != ndiscore.MediaConnected {
			l.Media, l.Why = ndiscore.MediaConnected, "port "+p.name+" is running and connected"
		}
		l.Speed = max(l.Speed, p.link.Speed)
	}
	return l
}

// tellLink indicates the link state above. Several goroutines may have news at
// once; one of them tells, again and again until nothing has changed meanwhile,
// so that the last indication is always of the newest state, without a lock
// held across the call.
func (b *Bridge) tellLink() {
	n := b.news.Add(1)
	if n > 1 {
		return
	}
	for {
		if h := b.handle.Load(); h != nil {
			(*h).IndicateStatus(b.linkState())
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
	id := -1
	for i, n := range b.opts.Ports {
		if n == bd.Target() {
			id = i
		}
	}
	if id < 0 {
		return fmt.Errorf("bridge %s: bind %s: %w: it is not a port", b.opts.Name, bd.Target(), ndiscore.ErrNotAccepted)
	}
	a := bd.Attributes()
	p := &port{id: uint16(id), name: bd.Target(), binding: bd, link: a.Link, connected: a.Link.Connected()}
	b.mu.Lock()
	taken := b.ports[id] != nil
	b.mu.Unlock()
	if taken {
		return fmt.Errorf("bridge %s: bind %s: %w", b.opts.Name, bd.Target(), ndiscore.ErrExists)
	}
	bd.SetContext(p)
	if err := bd.SetPacketFilter(ctx, ndiscore.FilterPromiscuous); err != nil {
		return fmt.Errorf("bridge %s: bind %s: %w", b.opts.Name, bd.Target(), err)
	}
	b.mu.Lock()
	b.ports[id] = p
	b.publishLocked()
	b.mu.Unlock()
	return nil
}

// Unbind implements ndiscore.Protocol.
func (b *Bridge) Unbind(_ context.Context, bd *ndiscore.Binding) {
	p, ok := bd.Context().(*port)
	if !ok {
		return
	}
	b.change(p, func() {
		p.running, p.connected = false, false
		p.up.Store(false)
		b.ports[p.id] = nil
	})
	b.fdb.flush(p.id)
	b.forget(p)
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
		})
	case ndiscore.EventPause:
		b.change(p, func() { p.running = false })
		b.forget(p)
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
	case ndiscore.NetworkChange:
		b.mu.Lock()
		k := b.keeper
		b.mu.Unlock()
		if k != nil {
			k.announce(p, s.Why)
		}
		if h := b.handle.Load(); h != nil {
			(*h).IndicateStatus(ndiscore.NetworkChange{Why: "port " + p.name + ": " + s.Why})
		}
	}
}

// SendComplete implements ndiscore.Protocol. The bridge sends borrowed batches
// only, which are its own again when Send returns.
func (b *Bridge) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}

// --- Upper edge: ndiscore.Adapter -------------------------------------------

// Initialize implements ndiscore.Adapter.
func (b *Bridge) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	clock := b.opts.Clock
	if clock == nil {
		clock = h.Clock()
	}
	b.handle.Store(&h)
	b.mu.Lock()
	b.keeper = newKeeper(b, clock, h.NewWorker(0))
	mtu := b.opts.MTU
	if mtu == 0 {
		for _, p := range b.ports {
			if p == nil {
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
	b.mu.Unlock()
	return ndiscore.Attributes{
		MAC: b.opts.MAC, MTU: mtu, Link: b.linkState(), Queues: 1,
		// What a port cannot do, the core finishes at that port.
		Transmit: ndiscore.CapAll, Receive: ndiscore.CapAll,
	}, nil
}

// Restart implements ndiscore.Adapter.
func (b *Bridge) Restart(context.Context) error {
	b.above.Store(b.handle.Load())
	// What changed since Initialize looked was told to a core that was not
	// listening yet.
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
	b.keeper = nil
	b.mu.Unlock()
	b.handle.Store(nil)
	if k != nil {
		k.close()
	}
	b.filter.Store(0)
	for id := range b.opts.Ports {
		b.fdb.flush(uint16(id))
	}
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
// sent there, and nothing will be.
func (b *Bridge) forget(p *port) {
	b.mu.Lock()
	k := b.keeper
	b.mu.Unlock()
	if k != nil {
		k.forgetPort(p)
	}
}
