package stack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	gvisorlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Router is the protocol driver: a gVisor netstack bound to adapters.
type Router struct {
	config Options
	limits Limits
	log    *zap.Logger
	clock  ndiscore.Clock

	ifaces  []*iface // in configured order; fixed
	statics []static // fixed
	queue   *puntQueue
	due     dueQueue // netstack's timers, on their way to the feeder
	senders senders
	tooBig  limiter
	stats   routerStats

	fib      atomic.Pointer[fib]         // never nil
	routes   atomic.Pointer[[]RouteInfo] // as of the last reroute
	stack    atomic.Pointer[instance]    // the feeder's; others read its counters only
	bursting atomic.Bool                 // the feeder delivers several packets: gather what they send
	dead     atomic.Bool                 // no netstack any more

	stale    atomic.Bool // links changed: the feeder has to reroute
	commands chan *command

	mu      sync.Mutex // guards the rest, and iface.port
	started bool
	closed  bool
	stop    chan struct{} // closed by Close
	ended   chan struct{} // closed when the feeder has ended

	feed feeder // the feeder's own

	// poison, when set before Start, sees each packet before netstack does:
	// tests panic there.
	poison func(in *port)
}

// iface is one configured interface.
type iface struct {
	config Interface
	id     tcpip.NICID
	port   *port  // what it is bound to, or nil; guarded by Router.mu
	live   *port  // what netstack has a NIC for; the feeder's own
	state  string // as last told: "up", "down", "unbound"; the feeder's own
	stats  sendStats
}

// sendStats counts what netstack sent out of an interface.
type sendStats struct {
	sent     atomic.Uint64 // taken by the device
	refused  atomic.Uint64 // not taken by it: the core says why
	closed   atomic.Uint64 // given up because the binding was paused or gone
	noSender atomic.Uint64 // given up because too many goroutines sent at a time
}

// static is a configured route and where it leads.
type static struct {
	Route
	iface *iface
}

type routerStats struct {
	panics, orphans, delivered, announced, tooBigSent, tooBigMuted atomic.Uint64
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
	for i, c := range o.Interfaces {
		r.ifaces = append(r.ifaces, &iface{config: c, id: tcpip.NICID(i + 1)})
	}
	for i := range o.Routes {
		c, err := o.routeInterface(&o.Routes[i])
		if err != nil {
			return nil, err
		}
		r.statics = append(r.statics, static{o.Routes[i], r.interfaceNamed(c.Name)})
	}
	r.queue = newPuntQueue(r.limits)
	r.due.kick = r.queue.kick
	r.tooBig.init(r.limits.TooBigPerSecond, r.limits.TooBigBurst)
	r.fib.Store(newFIB(nil))
	r.routes.Store(&[]RouteInfo{})
	return r, nil
}

func (r *Router) interfaceNamed(name string) *iface {
	for _, i := range r.ifaces {
		if i.config.Name == name {
			return i
		}
	}
	return nil
}

// Targets are the names to bind to (ndiscore.ProtocolSpec).
func (r *Router) Targets() []string {
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
	var ports []*port
	for _, i := range r.ifaces {
		if i.port != nil {
			ports = append(ports, i.port)
		}
	}
	r.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	for _, p := range ports {
		p.announce.stop()
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
	p, err := r.bind(ctx, b.Target(), b.Adapter(), b, b.Attributes())
	if err != nil {
		return err
	}
	p.binding = b
	b.SetContext(p)
	if err := b.SetPacketFilter(ctx, ndiscore.FilterStation); err != nil {
		r.unbind(ctx, p)
		return fmt.Errorf("stack: interface %s: packet filter of %s: %w", p.iface.config.Name, p.on, err)
	}
	return nil
}

func (r *Router) bind(ctx context.Context, target, adapter string, w wire, a ndiscore.Attributes) (*port, error) {
	var i *iface
	for _, c := range r.ifaces {
		if c.config.On == target {
			i = c
		}
	}
	fail := func(err error) (*port, error) {
		return nil, fmt.Errorf("stack: bind to %s: %w", adapter, err)
	}
	switch {
	case i == nil:
		return fail(fmt.Errorf("no interface is on %s: %w", target, ndiscore.ErrNotFound))
	case a.MTU < minMTU || a.MTU > maxMTU:
		return fail(fmt.Errorf("its MTU is %d, IP needs %d..%d: %w", a.MTU, minMTU, maxMTU, ndiscore.ErrNotSupported))
	case a.MAC.IsZero() || a.MAC.IsGroup():
		return fail(fmt.Errorf("%s is no station's MAC: %w", a.MAC, ndiscore.ErrNotSupported))
	}
	p := newPort(i, w, adapter, a)
	r.mu.Lock()
	if i.port != nil {
		r.mu.Unlock()
		return fail(fmt.Errorf("interface %s is bound to %s: %w", i.config.Name, i.port.on, ndiscore.ErrExists))
	}
	i.port = p
	r.mu.Unlock()
	err := r.do(ctx, r.reconcile)
	if err == nil {
		// do has passed this goroutine what the feeder wrote.
		err = p.err
	}
	if err != nil {
		r.mu.Lock()
		i.port = nil
		r.mu.Unlock()
		r.stale.Store(true) // the feeder tidies up when it comes to it
		r.queue.kick()
		return fail(err)
	}
	r.config.Event("interface.bound", i.config.Name, "", adapter, "")
	if p.mtu < minMTUIPv6 {
		r.config.Event("interface.ipv6", i.config.Name, "", "off", fmt.Sprintf("the mtu is %d, IPv6 needs %d", p.mtu, minMTUIPv6))
	}
	return p, nil
}

// Unbind removes the NIC. Its routes go with it.
func (r *Router) Unbind(ctx context.Context, b *ndiscore.Binding) {
	if p, ok := b.Context().(*port); ok {
		r.unbind(ctx, p)
	}
}

func (r *Router) unbind(ctx context.Context, p *port) {
	p.announce.stop()
	err := p.gate.close(ctx)
	r.mu.Lock()
	if p.iface.port == p {
		p.iface.port = nil
	}
	r.mu.Unlock()
	// When this fails the NIC goes later; the gate has cut it off already.
	err = errors.Join(err, r.do(ctx, r.reconcile))
	if err != nil && !errors.Is(err, ErrNotRunning) {
		r.log.Warn("interface unbound late", zap.String("adapter", p.on), zap.Error(err))
		r.stale.Store(true)
		r.queue.kick()
	}
	r.config.Event("interface.unbound", p.iface.config.Name, p.on, "", "")
}

// Event opens a binding for sends, and closes it.
func (r *Router) Event(ctx context.Context, b *ndiscore.Binding, ev ndiscore.NetEvent) error {
	if b == nil {
		return nil
	}
	p, ok := b.Context().(*port)
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
		r.announceAddresses(p, "adapter running")
	}
	return nil
}

// open lets p send, and brings the routes that use it to life.
func (r *Router) open(ctx context.Context, p *port) {
	p.gate.open()
	if r.do(ctx, r.reconcile) != nil { // then the feeder does it when it can
		r.stale.Store(true)
		r.queue.kick()
	}
}

// SendComplete has nothing to do: all batches are sent borrowed.
func (*Router) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}

// Status takes notice of links and of failovers below.
func (r *Router) Status(b *ndiscore.Binding, s ndiscore.Status) {
	if p, ok := b.Context().(*port); ok {
		r.status(p, s)
	}
}

func (r *Router) status(p *port, s ndiscore.Status) {
	switch s := s.(type) {
	case ndiscore.LinkState:
		changed := false
		if p.binding != nil {
			changed = p.look()
		} else {
			changed = p.setLink(s)
		}
		if changed {
			r.stale.Store(true)
			r.queue.kick()
		}
	case ndiscore.NetworkChange:
		r.announceAddresses(p, s.Why)
	}
}

// --- Commands ---------------------------------------------------------------

// command is work for the feeder.
type command struct {
	run  func()
	done chan error // has room for the answer
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
