package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	gvisorlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// Router is the protocol driver: a gVisor netstack bound to adapters.
type Router struct {
	config Options // as given to New; what of it can change is in ifaces and statics
	limits Limits
	log    *zap.Logger
	clock  ndiscore.Clock

	queue   *puntQueue
	due     dueQueue // netstack's timers, on their way to the feeder
	senders senders
	tooBig  limiter
	stats   routerStats
	nat     *nat.Table

	fib      atomic.Pointer[fib]         // never nil
	routes   atomic.Pointer[[]RouteInfo] // as of the last reroute
	stack    atomic.Pointer[instance]    // the feeder's; others read its counters only
	bursting atomic.Bool                 // the feeder delivers several packets: gather what they send
	dead     atomic.Bool                 // no netstack any more

	stale    atomic.Bool // links changed: the feeder has to reroute
	commands chan *command

	configuring sync.Mutex // held by Apply, so that NAT follows in the same order; taken before mu

	mu       sync.Mutex // guards the rest, and what iface says
	ifaces   []*iface   // in configured order; replaced, never changed in place
	statics  []static   // likewise
	plugs    []*plug    // what the core has bound
	lastNIC  tcpip.NICID
	natTimer ndiscore.Timer // tells nat the time; nil while there is nothing to tell
	started  bool
	closed   bool
	stop     chan struct{} // closed by Close
	ended    chan struct{} // closed when the feeder has ended

	feed feeder // the feeder's own

	// poison, when set before Start, sees each packet before netstack does:
	// tests panic there.
	poison func(in *port)
}

// iface is one configured interface.
type iface struct {
	name  string
	id    tcpip.NICID // no other interface ever has it
	stats sendStats
	edge  atomic.Pointer[nat.Edge] // its NAT; nil when it has none

	// Guarded by Router.mu.
	config Interface
	port   *port // what it stands on, or nil

	// The feeder's own.
	used  Interface // config as of the last reconcile
	live  *port     // what netstack has a NIC for
	state string    // as last told: "up", "down", "unbound"
}

// sendStats counts what netstack sent out of an interface.
type sendStats struct {
	sent     atomic.Uint64 // taken by the device
	refused  atomic.Uint64 // not taken by it: the core says why
	closed   atomic.Uint64 // given up because the binding was paused or gone
	noSender atomic.Uint64 // given up because too many goroutines sent at a time
	nat      atomic.Uint64 // given up by NAT, which counts why
}

// static is a configured route and where it leads.
type static struct {
	Route
	iface *iface
}

// same reports whether a and b are one route.
func (a static) same(b static) bool {
	return a.To == b.To && a.Via == b.Via && a.iface == b.iface && a.Metric == b.Metric
}

type routerStats struct {
	panics, orphans, delivered, announced, tooBigSent, tooBigMuted, moves, impatient atomic.Uint64
}

var _ ndiscore.Protocol = (*Router)(nil)

// Errors of the router.
var (
	ErrNotRunning = errors.New("router is not running")
	ErrPanicked   = errors.New("netstack panicked")
)

// New checks o and makes a router. Nothing runs before Start.
func New(o Options) (*Router, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = ndiscore.SystemClock{}
	}
	if o.Event == nil {
		o.Event = func(_, _, _, _, _ string) {}
	}
	if o.Fatal == nil {
		o.Fatal = func(error) {}
	}
	// netstack tells of each martian packet on the standard error, through a
	// logger that belongs to the process.
	gvisorlog.SetLevel(gvisorlog.Warning)

	r := &Router{
		config:   o,
		limits:   o.Limits.filled(),
		log:      o.Logger,
		clock:    o.Clock,
		commands: make(chan *command),
		stop:     make(chan struct{}),
		ended:    make(chan struct{}),
	}
	r.nat = nat.New(nat.Options{Limits: o.NAT, Now: r.clock.Now(), Event: o.Event})
	r.mu.Lock()
	r.configureLocked(&o)
	r.mu.Unlock()
	r.configureNAT(&o)
	r.queue = newPuntQueue(r.limits)
	r.due.kick = r.queue.kick
	r.tooBig.init(r.limits.TooBigPerSecond, r.limits.TooBigBurst)
	r.fib.Store(newFIB(nil))
	r.routes.Store(&[]RouteInfo{})
	return r, nil
}

// Targets are the names to bind to (ndiscore.ProtocolSpec, Core.SetTargets).
func (r *Router) Targets() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.ifaces))
	for _, i := range r.ifaces {
		names = append(names, i.config.On)
	}
	return names
}

// Start starts the feeder. Call it before the core offers bindings.
func (r *Router) Start(core *ndiscore.Core) error { return r.start(core.NewWorker) }

func (r *Router) start(newWorker func(name string) (*ndiscore.Worker, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started || r.closed {
		return fmt.Errorf("stack: start: %w", ndiscore.ErrInvalidState)
	}
	if err := r.senders.init(r.limits.Senders, newWorker); err != nil {
		return fmt.Errorf("stack: start: %w", err)
	}
	r.started = true
	r.tickLocked()
	go r.feederLoop() // goroutine "stack feeder": ended by Close, which waits for it
	return nil
}

// Close stops the router: no packet is delivered or sent once it returns. Its
// bindings are best unbound before; what is left of them is cut off.
func (r *Router) Close() {
	r.mu.Lock()
	if r.closed || !r.started {
		r.closed = true
		r.mu.Unlock()
		return
	}
	r.closed = true
	if r.natTimer != nil {
		r.natTimer.Stop()
	}
	plugs := slices.Clone(r.plugs)
	r.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	for _, p := range plugs {
		if i := p.port.Load(); i != nil {
			i.announce.stop()
		}
		if err := p.gate.close(ctx); err != nil {
			r.log.Error("a send did not return", zap.String("adapter", p.on), zap.Error(err))
		}
	}
	close(r.stop)
	<-r.ended
	if ctx.Err() == nil {
		r.senders.close()
	}
}

// closeLimit bounds how long Close waits for sends, which do not block.
const closeLimit = 5 * time.Second

// --- ndiscore.Protocol ------------------------------------------------------

// Bind makes the netstack NIC of the interface that wants this adapter.
func (r *Router) Bind(ctx context.Context, b *ndiscore.Binding) error {
	p, err := r.bind(ctx, b.Target(), b.Adapter(), b, b.Attributes)
	if err != nil {
		return err
	}
	b.SetContext(p)
	if err := b.SetPacketFilter(ctx, ndiscore.FilterStation); err != nil {
		r.unbind(ctx, p)
		return fmt.Errorf("stack: packet filter of %s: %w", p.on, err)
	}
	return nil
}

func (r *Router) bind(ctx context.Context, target, adapter string, w wire, ask func() ndiscore.Attributes) (*plug, error) {
	fail := func(err error) (*plug, error) {
		return nil, fmt.Errorf("stack: bind to %s: %w", adapter, err)
	}
	p := newPlug(target, adapter, w, ask)
	switch a := p.attributes(); {
	case a.MTU < minMTU || a.MTU > maxMTU:
		return fail(fmt.Errorf("its MTU is %d, IP needs %d..%d: %w", a.MTU, minMTU, maxMTU, ndiscore.ErrNotSupported))
	case !isStation(a.MAC):
		return fail(fmt.Errorf("%s is no station's MAC: %w", a.MAC, ndiscore.ErrNotSupported))
	}
	r.mu.Lock()
	i := r.standsOnLocked(target)
	switch {
	case i == nil:
		r.mu.Unlock()
		return fail(fmt.Errorf("no interface is on %s: %w", target, ndiscore.ErrNotFound))
	case i.port != nil:
		r.mu.Unlock()
		return fail(fmt.Errorf("interface %s is bound to %s: %w", i.name, i.port.on, ndiscore.ErrExists))
	}
	r.plugs = append(r.plugs, p)
	n := r.plugInLocked(i, p)
	r.mu.Unlock()
	if err := r.update(ctx, n); err != nil {
		r.unplug(p)
		r.renew() // the feeder tidies up when it comes to it
		return fail(err)
	}
	r.tellBound(n)
	return p, nil
}

// Unbind removes the NIC. Its routes go with it.
func (r *Router) Unbind(ctx context.Context, b *ndiscore.Binding) {
	if p, ok := b.Context().(*plug); ok {
		r.unbind(ctx, p)
	}
}

func (r *Router) unbind(ctx context.Context, p *plug) {
	err := p.gate.close(ctx)
	n := r.unplug(p)
	// When this fails the NIC goes later; the gate has cut it off already.
	err = errors.Join(err, r.update(ctx))
	if err != nil && !errors.Is(err, ErrNotRunning) {
		r.log.Warn("interface unbound late", zap.String("adapter", p.on), zap.Error(err))
	}
	if n != nil {
		r.config.Event("interface.unbound", n.iface.name, p.on, "", "")
	}
}

// unplug forgets p, and returns what stood on it.
func (r *Router) unplug(p *plug) *port {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plugs = slices.DeleteFunc(slices.Clone(r.plugs), func(o *plug) bool { return o == p })
	return r.plugOutLocked(p)
}

// standsOnLocked is the interface that is to stand on target, or nil.
func (r *Router) standsOnLocked(target string) *iface {
	for _, i := range r.ifaces {
		if i.config.On == target {
			return i
		}
	}
	return nil
}

// plugInLocked puts i on p.
func (r *Router) plugInLocked(i *iface, p *plug) *port {
	n := newPort(i, &i.config, p)
	i.port = n
	p.port.Store(n)
	return n
}

// plugOutLocked takes away what stands on p, and returns it.
func (r *Router) plugOutLocked(p *plug) *port {
	n := p.port.Load()
	if n != nil {
		n.announce.stop()
		n.iface.port = nil
		p.port.Store(nil)
	}
	return n
}

func (r *Router) tellBound(n *port) {
	r.config.Event("interface.bound", n.iface.name, "", n.on, "")
	if s := n.station.Load(); !s.hasIPv6() {
		r.config.Event("interface.ipv6", n.iface.name, "", "off", fmt.Sprintf("the mtu is %d, IPv6 needs %d", s.mtu, minMTUIPv6))
	}
}

// Event opens a binding for sends, and closes it. Other events need nothing
// done: an adapter may go whenever it likes.
func (r *Router) Event(ctx context.Context, b *ndiscore.Binding, ev ndiscore.NetEvent) error {
	if b == nil {
		return nil
	}
	p, ok := b.Context().(*plug)
	if !ok {
		return nil
	}
	switch ev {
	case ndiscore.EventPause:
		// Received batches are never held: packets were copied.
		return p.gate.close(ctx)
	case ndiscore.EventRestart:
		p.look()
		r.open(ctx, p)
		r.announce(p, "adapter running", 0)
	}
	return nil
}

// open lets p send, and brings the routes that use it to life.
func (r *Router) open(ctx context.Context, p *plug) {
	p.gate.open()
	_ = r.update(ctx) // if not now, then when the feeder can
}

// SendComplete has nothing to do: all batches are sent borrowed.
func (*Router) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}

// Status takes notice of links, of failovers below, and of an adapter that has
// another MAC or MTU now.
func (r *Router) Status(b *ndiscore.Binding, s ndiscore.Status) {
	if p, ok := b.Context().(*plug); ok {
		r.status(p, s)
	}
}

func (r *Router) status(p *plug, s ndiscore.Status) {
	if p.look() {
		r.renew()
	}
	if s, ok := s.(ndiscore.NetworkChange); ok && !s.Groups {
		r.announce(p, s.Why, s.After)
	}
}

// --- Commands ---------------------------------------------------------------

// command is work for the feeder.
type command struct {
	run  func()
	done chan error // has room for the answer
}

// renew has the feeder reconcile when it comes to it.
func (r *Router) renew() {
	r.stale.Store(true)
	r.queue.kick()
}

// update has the feeder reconcile, and waits for it. It is an error if one of
// ports has no NIC then. When the feeder does not come to it in time, it will
// later.
func (r *Router) update(ctx context.Context, ports ...*port) error {
	var bad error
	err := r.do(ctx, func() {
		r.reconcile()
		for _, p := range ports {
			if p.ep == nil {
				bad = errors.Join(bad, p.err)
			}
		}
	})
	if err != nil {
		r.renew()
		return err
	}
	return bad // do has passed this goroutine what the feeder wrote
}

// do has the feeder run f between two deliveries, and waits for it.
func (r *Router) do(ctx context.Context, f func()) error {
	r.mu.Lock()
	running := r.started
	r.mu.Unlock()
	if !running {
		return ErrNotRunning
	}
	c := &command{run: f, done: make(chan error, 1)}
	r.queue.kick()
	select {
	case r.commands <- c:
	case <-r.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
