// Package vswitch is the switch as a library: a checked configuration becomes a
// running switch and router whose links may fail.
//
//	cfg, err := config.Load("config.toml", vswitch.Drivers(log))
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
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/config"
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
	Config  *config.Config    // required; from config.Load or config.Parse
	Logger  *zap.Logger       // nil: no log
	Drivers []ndiscore.Driver // nil: Drivers(Logger)
	Clock   ndiscore.Clock    // nil: the system's
}

// Switch is a switch, running while Run runs. Its other methods may be called
// from any goroutine; before Run those with a context wait for it, after Run
// they report an error.
type Switch struct {
	cfg     *config.Config
	log     *zap.Logger
	drivers []ndiscore.Driver
	clock   ndiscore.Clock

	core    *ndiscore.Core
	router  *stack.Router
	prober  *health.Prober
	bridges []namedBridge
	began   time.Time // of New: Version is asked before Run too

	running atomic.Bool
	fatal   chan error // a part gave up for good; capacity 1
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
	s := &Switch{cfg: o.Config, log: o.Logger, drivers: o.Drivers, clock: o.Clock, began: o.Clock.Now(), fatal: make(chan error, 1)}
	s.core = ndiscore.New(ndiscore.Options{Clock: o.Clock, Decider: policy.ActiveBackup{}})
	for _, b := range s.cfg.Bridges {
		mac, err := parseMAC(b.MAC)
		if err != nil {
			return nil, fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		if mac.IsZero() {
			mac = stableMAC(b.Name)
		}
		br, err := bridge.New(bridge.Options{
			Name: b.Name, Ports: b.Ports, MAC: mac, Age: b.MACAge.Std(), MACLimit: b.MACLimit, Clock: o.Clock,
			Event: func(what, port, from, to, why string) {
				s.core.Report(ndiscore.Event{What: what, Adapter: port, From: from, To: to, Why: b.Name + ": " + why})
			},
		})
		if err != nil {
			return nil, err
		}
		s.bridges = append(s.bridges, namedBridge{b.Name, br})
	}
	if len(s.cfg.Interfaces) > 0 {
		r, err := stack.New(s.routerOptions())
		if err != nil {
			return nil, err
		}
		s.router = r
	}
	return s, nil
}

func (s *Switch) routerOptions() stack.Options {
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
	for _, i := range s.cfg.Interfaces {
		o.Interfaces = append(o.Interfaces, stack.Interface{Name: i.Name, On: i.On, Addresses: i.Addresses, MTU: i.MTU})
	}
	for _, r := range s.cfg.Routes {
		o.Routes = append(o.Routes, stack.Route{To: r.To, Via: r.Via, Interface: r.Interface, Metric: int(r.Metric)})
	}
	return o
}

// probed lists the bundle members that a prober watches.
func (s *Switch) probed() []health.Member {
	var ms []health.Member
	for _, b := range s.cfg.Bundles {
		if b.Health.Probe == "" || b.Mode == "ndis5" {
			continue // an ndis5 bundle hides its secondaries from every protocol
		}
		for _, m := range b.Members {
			ms = append(ms, health.Member{Bundle: b.Name, Adapter: m, Target: b.Health.Target, Interval: b.Health.Interval.Std()})
		}
	}
	return ms
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
	defer parts.Wait()
	defer endCore()

	err := s.start(ctx)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrStart, err)
	} else {
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

// end halts everything, the last started first.
func (s *Switch) end(why string) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	err := s.core.Close(ctx, why)
	if s.prober != nil {
		s.prober.Close()
	}
	if s.router != nil {
		s.router.Close()
	}
	return err
}

// start brings everything up, in the order of the plan.
func (s *Switch) start(ctx context.Context) error {
	for _, d := range s.drivers {
		if _, err := s.core.RegisterDriver(d); err != nil {
			return err
		}
	}
	for _, a := range s.cfg.Adapters {
		if err := s.core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: a.Name, Driver: a.Driver, Options: a.Options}); err != nil {
			return err
		}
	}
	if ms := s.probed(); len(ms) > 0 {
		p, err := health.New(health.Options{Members: ms, Core: s.core, Clock: s.clock, Identity: machineID()})
		if err != nil {
			return err
		}
		s.prober = p
		if err := s.core.AddProtocol(ctx, p.Spec()); err != nil {
			return err
		}
	}
	for _, b := range s.cfg.Bundles {
		spec, err := bundleSpec(b)
		if err != nil {
			return err
		}
		if err := s.core.AddBundle(ctx, spec); err != nil {
			return err
		}
	}
	for _, b := range s.bridges {
		if err := s.core.AddVirtual(ctx, b.name, b.bridge, nil); err != nil {
			return err
		}
		if err := s.core.AddProtocol(ctx, b.bridge.Spec()); err != nil {
			return err
		}
	}
	if s.router != nil {
		if err := s.router.Start(s.core); err != nil {
			return err
		}
		if err := s.core.AddProtocol(ctx, ndiscore.ProtocolSpec{Name: "stack", Protocol: s.router, Targets: s.router.Targets()}); err != nil {
			return err
		}
	}
	const why = "configured"
	for _, a := range s.cfg.Adapters {
		if err := s.core.Start(ctx, a.Name, why); err != nil {
			return err
		}
	}
	for _, b := range s.cfg.Bundles {
		if b.Mode == "ndis5" {
			continue // it has no adapter of its own
		}
		if err := s.core.Start(ctx, b.Name, why); err != nil {
			return err
		}
	}
	for _, b := range s.bridges {
		if err := s.core.Start(ctx, b.name, why); err != nil {
			return err
		}
	}
	return nil
}

func bundleSpec(b config.Bundle) (ndiscore.BundleSpec, error) {
	spec := ndiscore.BundleSpec{
		Name: b.Name, Members: b.Members, Hold: b.Hold.Std(), UpDelay: b.UpDelay.Std(), DownDelay: b.DownDelay.Std(),
		NeedProof: b.Health.Probe != "",
	}
	if b.Mode == "ndis5" {
		spec.Mode = ndiscore.BundleNDIS5
	}
	switch b.Failback {
	case "better":
		spec.Failback = ndiscore.FailbackBetter
	case "never":
		spec.Failback = ndiscore.FailbackNever
	}
	if b.MAC == "first" {
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
