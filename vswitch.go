// Package vswitch is the switch as a library: a checked configuration becomes a
// running switch and router whose links may fail.
//
//	cfg, err := config.Load("config.toml", vswitch.Drivers(log), vswitch.Filters()...)
//	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log})
//	err = sw.Run(ctx, func() { log.Info("ready") }) // until ctx ends
//
// It assembles what the other packages provide: ndiscore owns the adapters,
// miniports run the devices, ndiscore/bridge switches, stack routes, health
// probes, policy decides. drivers.go lists the miniports.
package vswitch

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/health"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/policy"
	"github.com/seed-b14e907b/vswitch/stack"
)

// DefaultConfig is config.toml as shipped.
//
//go:embed config.toml
var DefaultConfig []byte

// ErrStart says that the switch could not be started as configured; everything
// that had been started was taken down again.
var ErrStart = errors.New("cannot start")

// drainLimit is how long an orderly end may take before what is left is shut
// down without being freed.
const drainLimit = 10 * time.Second

// Options is what a switch is made from.
type Options struct {
	Config  *config.Config          // required; from config.Load or config.Parse
	Logger  *zap.Logger             // nil: no log
	Level   *zap.AtomicLevel        // of Logger, for changes of log.level; nil: they are refused
	Drivers []ndiscore.Driver       // nil: Drivers(Logger)
	Filters []ndiscore.FilterDriver // nil: Filters()
	Clock   ndiscore.Clock          // nil: the system's
}

// Switch is a switch, running while Run runs. Its other methods may be called
// from any goroutine; before Run those with a context wait for it, after Run
// they report an error.
type Switch struct {
	log     *zap.Logger
	level   *zap.AtomicLevel
	drivers []ndiscore.Driver
	filters []ndiscore.FilterDriver
	clock   ndiscore.Clock

	core   *ndiscore.Core
	faults *fault.Injector
	began  time.Time // of New: Version is asked before Run too

	// What is configured; changed by whoever holds turn, read by anybody.
	turn    chan struct{} // capacity 1: filled while the configuration is being changed
	cfg     atomic.Pointer[config.Config]
	router  atomic.Pointer[stack.Router] // nil: there was never an interface
	bridges atomic.Pointer[[]namedBridge]
	prober  *health.Prober // of the holder of turn alone

	running atomic.Bool
	life    context.Context // ends when the switch begins to halt
	endLife context.CancelFunc
	started chan struct{} // closed when the start has succeeded
	ended   chan struct{} // closed when Run has returned
	fatal   chan error    // a part gave up for good; capacity 1
}

type namedBridge struct {
	name   string
	bridge *bridge.Bridge
}

// New makes a switch. It opens no device and starts nothing.
func New(o Options) (*Switch, error) {
	if o.Config == nil {
		return nil, errors.New("vswitch: Options.Config is required: see config.Load")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Drivers == nil {
		o.Drivers = Drivers(o.Logger)
	}
	if o.Clock == nil {
		o.Clock = ndiscore.SystemClock{}
	}
	if o.Filters == nil {
		o.Filters = Filters()
	}
	s := &Switch{
		log: o.Logger, level: o.Level, drivers: o.Drivers, filters: o.Filters, clock: o.Clock, began: o.Clock.Now(),
		turn: make(chan struct{}, 1), started: make(chan struct{}), ended: make(chan struct{}), fatal: make(chan error, 1),
	}
	s.life, s.endLife = context.WithCancel(context.Background())
	s.cfg.Store(o.Config)
	s.bridges.Store(&[]namedBridge{})
	s.core = ndiscore.New(ndiscore.Options{Clock: o.Clock, Decider: policy.ActiveBackup{}})
	s.faults = fault.New(fault.Options{
		Allow: o.Config.Fault.Allow, Longest: o.Config.Fault.Longest.Std(), Clock: o.Clock, Report: s.core.Report,
	})
	s.faults.Use(s.core)
	// What can be known to be wrong before anything is opened.
	for _, b := range o.Config.Bridges {
		options, err := s.bridgeOptions(b)
		if err == nil {
			_, err = bridge.New(options)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, b := range o.Config.Bundles {
		if _, err := bundleSpec(b); err != nil {
			return nil, err
		}
	}
	if len(o.Config.Interfaces) > 0 {
		options := s.routerOptions(o.Config)
		if err := options.Validate(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Switch) bridgeOptions(b config.Bridge) (bridge.Options, error) {
	mac, err := parseMAC(b.MAC)
	if err != nil {
		return bridge.Options{}, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if mac.IsZero() {
		mac = stableMAC(b.Name)
	}
	o := bridge.Options{
		Name: b.Name, Ports: b.Ports, MAC: mac, Age: b.MACAge.Std(), MACLimit: b.MACLimit, Clock: s.clock,
		VLAN: uint16(b.VLAN), Snooping: b.Snooping, LoopGuard: b.LoopGuard, LoopHold: b.LoopHold.Std(), Port: map[string]bridge.PortOptions{},
		Event: func(what, port, from, to, why string) {
			s.core.Report(ndiscore.Event{What: what, Adapter: port, From: from, To: to, Why: b.Name + ": " + why})
		},
	}
	for _, p := range b.PortOptions {
		po := bridge.PortOptions{
			Access: uint16(p.Access), Native: uint16(p.Native), MACLimit: p.MACLimit,
			StormBroadcast: p.StormBroadcast, StormMulticast: p.StormMulticast, StormUnknown: p.StormUnknown,
		}
		var trunk []string
		for _, r := range p.Trunk {
			trunk = append(trunk, r.String())
		}
		if po.Trunk, err = bridge.ParseVLANs(trunk); err != nil {
			return o, fmt.Errorf("bridge %s: port %s: trunk: %w", b.Name, p.Name, err)
		}
		o.Port[p.Name] = po
	}
	return o, nil
}

func (s *Switch) routerOptions(c *config.Config) stack.Options {
	o := stack.Options{
		Logger: s.log.Named("stack"), Clock: s.clock,
		Event: func(what, iface, from, to, why string) {
			s.core.Report(ndiscore.Event{What: what, Adapter: iface, From: from, To: to, Why: why})
		},
		Fatal: func(err error) {
			select {
			case s.fatal <- err:
			default:
			}
		},
	}
	for _, i := range c.Interfaces {
		o.Interfaces = append(o.Interfaces, stack.Interface{
			Name: i.Name, On: i.On, Addresses: i.Addresses, MTU: i.MTU, Masquerade: i.Masquerade, Masquerade6: i.Masquerade6,
		})
	}
	for _, r := range c.Routes {
		o.Routes = append(o.Routes, stack.Route{To: r.To, Via: r.Via, Interface: r.Interface, Metric: int(r.Metric)})
	}
	for _, f := range c.Forwards {
		o.Forwards = append(o.Forwards, stack.Forward{
			Interface: f.Interface, Protocol: f.Protocol, Ports: stack.PortRange{First: f.Port.First, Last: f.Port.Last},
			To: netip.AddrPortFrom(f.To.Addr, f.To.Ports.First),
		})
	}
	o.NAT = stack.NATLimits{
		Flows: c.NAT.Flows, TCP: c.NAT.TCP.Std(), TCPTransitory: c.NAT.TCPTransitory.Std(),
		UDP: c.NAT.UDP.Std(), UDPStream: c.NAT.UDPStream.Std(), ICMP: c.NAT.ICMP.Std(),
	}
	return o
}

// Run starts everything in the order of the plan, calls ready, and keeps it
// running until ctx ends; then it halts everything in the reverse order. An
// error that wraps ErrStart means that the start failed and was undone.
func (s *Switch) Run(ctx context.Context, ready func()) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("vswitch: Run was called before")
	}
	coreCtx, endCore := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = s.core.Run(coreCtx) }) // "core control": ends with coreCtx
	parts.Go(func() { s.logEvents(coreCtx) })    // "event log": ends with coreCtx
	defer close(s.ended)
	defer parts.Wait()
	defer endCore()

	err := s.start(ctx)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrStart, err)
	} else {
		close(s.started)
		if ready != nil {
			ready()
		}
		select {
		case <-ctx.Done():
		case err = <-s.fatal:
		}
	}
	why := "shutdown"
	if err != nil {
		why = err.Error()
	}
	return errors.Join(err, s.end(why))
}

// end halts everything, the last started first, once no change is under way: one
// that is ends with its present step.
func (s *Switch) end(why string) error {
	s.endLife()
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	quiet := true
	limit := time.NewTimer(drainLimit / 2) // the other half is for the adapters
	defer limit.Stop()
	select {
	case s.turn <- struct{}{}: // and never given back
	case <-limit.C:
		s.log.Warn("a change of configuration does not end; halting beside it")
		quiet = false
	}
	err := errors.Join(s.faults.Close(ctx), s.core.Close(ctx, why))
	if quiet && s.prober != nil { // else it is not ours, and ends with the core
		s.prober.Close()
	}
	if r := s.router.Load(); r != nil {
		r.Close()
	}
	return err
}

// start brings everything up, in the order of the plan from nothing.
func (s *Switch) start(ctx context.Context) error {
	for _, d := range s.drivers {
		if _, err := s.core.RegisterDriver(fault.Interpose(d, s.faults)); err != nil {
			return err
		}
	}
	s.turn <- struct{}{} // nobody has been let in yet
	defer func() { <-s.turn }()
	next := s.cfg.Load()
	nothing := &config.Config{Control: next.Control, Log: next.Log, NAT: next.NAT, Fault: next.Fault}
	_, err := s.carryOut(ctx, nothing, next, config.Plan(nil, next))
	return err
}

// ApplyConfig turns the running switch into what c says, or with dryRun only says
// what that takes. Ports that the plan does not name lose no frame. What was
// removed by hand and is in c comes back. When a step fails, what was done before
// it is undone. ErrRefused for what only a restart of the process can change,
// ErrInvalidData for a configuration that is Blank.
func (s *Switch) ApplyConfig(ctx context.Context, c *config.Config, dryRun bool) (config.Changes, error) {
	return s.edit(ctx, dryRun, func(_ *config.Config, gone map[string]bool) (*config.Config, error) {
		if c.Blank() {
			return nil, fmt.Errorf("the configuration is empty, and would take everything away; if that is meant, it says \"[control]\": %w", ndiscore.ErrInvalidData)
		}
		clear(gone)
		return c, nil
	})
}

// edit changes the configuration in force: f makes the new one of the old, which
// it leaves as it is. gone is what was removed by hand: whatever f leaves in it
// stays away, although it is configured.
func (s *Switch) edit(ctx context.Context, dryRun bool, f func(c *config.Config, gone map[string]bool) (*config.Config, error)) (config.Changes, error) {
	var none config.Changes
	done, err := s.hold(ctx)
	if err != nil {
		return none, err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	c := s.cfg.Load()
	gone, err := s.removed(ctx, c)
	if err != nil {
		return none, err
	}
	now := except(c, gone)
	next, err := f(c, gone)
	if err != nil {
		return none, err
	}
	goal := except(next, gone)
	plan := config.Plan(now, goal)
	if dryRun {
		return plan, nil
	}
	if err := s.change(ctx, now, goal, plan); err != nil {
		return plan, err
	}
	s.cfg.Store(next)
	return plan, nil
}

// hold waits for the turn to change the configuration, until done is called.
func (s *Switch) hold(ctx context.Context) (done func(), err error) {
	select {
	case <-s.started:
	case <-s.ended:
		return nil, ndiscore.ErrStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-s.ended:
		return nil, ndiscore.ErrStopped
	case <-ctx.Done():
		return nil, fmt.Errorf("another change of configuration is under way: %w", ctx.Err())
	}
}

// setLevel changes how much is logged.
func (s *Switch) setLevel(level string) error {
	if s.level == nil {
		return fmt.Errorf("log.level: %w: whoever started this switch keeps its log", ndiscore.ErrNotSupported)
	}
	return s.level.UnmarshalText([]byte(level))
}

func bundleSpec(b config.Bundle) (ndiscore.BundleSpec, error) {
	spec := ndiscore.BundleSpec{
		Name: b.Name, Members: b.Members, Hold: b.Hold.Std(), UpDelay: b.UpDelay.Std(), DownDelay: b.DownDelay.Std(),
		NeedProof: b.Health.Probe != "",
	}
	if b.Mode == "ndis5" {
		spec.Mode = ndiscore.BundleNDIS5
	}
	if b.Balance == "hash" {
		spec.Balance, spec.LAG = ndiscore.BalanceHash, b.LAG
	}
	switch b.Failback {
	case "better":
		spec.Failback = ndiscore.FailbackBetter
	case "never":
		spec.Failback = ndiscore.FailbackNever
	}
	switch b.MAC {
	case "first":
		return spec, nil
	case "active":
		spec.ActiveMAC = true
		return spec, nil
	}
	mac, err := parseMAC(b.MAC)
	if err != nil {
		return spec, fmt.Errorf("bundle %s: %w", b.Name, err)
	}
	if mac.IsZero() {
		mac = stableMAC(b.Name)
	}
	spec.MAC = mac
	return spec, nil
}

// parseMAC reads a MAC-48 address; "" is zero.
func parseMAC(text string) (ndiscore.MAC, error) {
	var m ndiscore.MAC
	if text == "" {
		return m, nil
	}
	hw, err := net.ParseMAC(text)
	if err != nil || len(hw) != len(m) {
		return m, fmt.Errorf("mac %q: want six hex bytes, such as 02:00:00:00:00:01", text)
	}
	copy(m[:], hw)
	return m, nil
}

// stableMAC is the address of a virtual adapter: the same on every start of the
// same machine, another one on another machine.
func stableMAC(name string) ndiscore.MAC {
	return ndiscore.LocalMAC("vswitch", machineID(), name)
}

// machineID tells this machine from others (machine-id(5)).
func machineID() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		host, _ := os.Hostname()
		return host
	}
	return strings.TrimSpace(string(id))
}

// logEvents writes each event to the log: the one place where a change of state
// is logged.
func (s *Switch) logEvents(ctx context.Context) {
	log := s.log.Named("event")
	var after uint64
	for last := false; ; {
		events, lost, more := s.core.Events(after)
		if lost > 0 {
			log.Warn("events lost", zap.Uint64("count", lost))
		}
		for _, e := range events {
			after = e.Seq
			switch {
			case e.What == "adapter.removed":
				s.faults.AdapterGone(e.Adapter, e.Why)
			case e.What == "adapter.power" && e.To == ndiscore.PowerD0.String():
				s.faults.AdapterAwake(e.Adapter)
			}
			level := zap.InfoLevel
			switch e.To {
			case "initializing", "restarting", "pausing": // on its way somewhere
				level = zap.DebugLevel
			}
			if c := log.Check(level, e.What); c != nil {
				c.Write(eventFields(e)...)
			}
		}
		if last {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			last = true // what happened up to the end is told, too
		}
	}
}

func eventFields(e ndiscore.Event) []zap.Field {
	fields := []zap.Field{zap.Uint64("seq", e.Seq)}
	for _, f := range []struct{ name, value string }{
		{"adapter", e.Adapter}, {"protocol", e.Protocol}, {"from", e.From}, {"to", e.To}, {"reason", e.Why},
	} {
		if f.value != "" {
			fields = append(fields, zap.String(f.name, f.value))
		}
	}
	return fields
}
