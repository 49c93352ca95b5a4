package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Bounds and default of Member.Interval.
const (
	DefaultInterval = 100 * time.Millisecond
	MinInterval     = 10 * time.Millisecond
	MaxInterval     = time.Minute
)

// lateRounds is by how many intervals a round may be late before what it finds
// proves nothing.
const lateRounds = 2

// Member is one adapter to be probed.
type Member struct {
	Bundle   string
	Adapter  string
	Target   netip.Addr    // who is asked to answer: on the same network, usually the gateway
	Interval time.Duration // between probes; 0: DefaultInterval
}

// Core is what the prober needs of an *ndiscore.Core.
type Core interface {
	NewWorker(name string) (*ndiscore.Worker, error)
	Observe(ndiscore.Observation)
}

// Options configures a Prober.
type Options struct {
	Members []Member
	Core    Core
	Clock   ndiscore.Clock // nil: SystemClock
	// Identity tells this machine from others, such as its machine-id: probe
	// MACs derive from it. Without one they derive from the members' own MACs,
	// and are as stable as those.
	Identity string
}

// Prober is a protocol driver that probes; see the package comment.
type Prober struct {
	opts   Options
	worker *ndiscore.Worker

	wake chan struct{} // one slot
	stop chan struct{}
	done chan struct{}
	end  sync.Once

	mu   sync.Mutex // guards asks
	asks []ask      // answered between two looks, in order

	paths []*path // the goroutine's own: those that are running
	frame ndiscore.Frame
	buf   [ndiscore.Headroom + 128]byte // of the frame
}

var _ ndiscore.Protocol = (*Prober)(nil)

// path is one binding, with what is going on there.
type path struct {
	member   Member
	binding  *ndiscore.Binding
	expected expected
	probe    []byte // the frame to send

	// Between the goroutine and the workers that receive.
	waiting  atomic.Bool               // a probe is out
	answered atomic.Pointer[time.Time] // when its answer came, until the goroutine has told

	// The goroutine's own.
	due  time.Time // of the next round
	sent time.Time // the probe that is out
	late bool      // … was sent late
}

// ask puts a path into, or out of, the goroutine's hands.
type ask struct {
	path *path // nil: none, only look again
	run  bool
	done chan struct{}
}

// New checks the options and starts a prober. Add it to the core as Spec says,
// and Close it after the core.
func New(o Options) (*Prober, error) {
	if o.Clock == nil {
		o.Clock = ndiscore.SystemClock{}
	}
	o.Members = slices.Clone(o.Members)
	var errs []error
	for i := range o.Members {
		m := &o.Members[i]
		if m.Interval == 0 {
			m.Interval = DefaultInterval
		}
		m.Target = m.Target.Unmap()
		for _, other := range o.Members[:i] {
			if other.Adapter == m.Adapter {
				errs = append(errs, fmt.Errorf("probe of %s: listed twice", m.Adapter))
			}
		}
		if err := m.check(); err != nil {
			errs = append(errs, fmt.Errorf("probe of %s: %w", m.Adapter, err))
		}
	}
	if o.Core == nil {
		errs = append(errs, errors.New("a prober needs a core"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	w, err := o.Core.NewWorker("health prober")
	if err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	p := &Prober{
		opts: o, worker: w,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go p.run()
	return p, nil
}

func (m *Member) check() error {
	t := m.Target
	switch {
	case m.Adapter == "":
		return errors.New("it names no adapter")
	case !t.IsValid() || t.IsUnspecified() || t.IsMulticast() || t.IsLoopback() || t == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("target %s is not the address of a neighbour", t)
	case t.Zone() != "":
		return fmt.Errorf("target %s: leave out %%%s, the probe goes out on the member itself", t, t.Zone())
	case m.Interval < MinInterval || m.Interval > MaxInterval:
		return fmt.Errorf("interval %s is not within %s…%s", m.Interval, MinInterval, MaxInterval)
	}
	return nil
}

// Spec describes the prober to the core. Add it before the bundles whose
// members it watches: it says of its answers that they are delivered before
// anybody can call them unwanted.
func (p *Prober) Spec() ndiscore.ProtocolSpec {
	s := ndiscore.ProtocolSpec{Name: "health", Protocol: p}
	for _, m := range p.opts.Members {
		s.Targets = append(s.Targets, m.Adapter)
	}
	return s
}

// Close ends the prober and returns when its goroutine has ended. It may be
// called again.
func (p *Prober) Close() {
	p.end.Do(func() { close(p.stop) })
	<-p.done
}

// --- ndiscore.Protocol -------------------------------------------------------

// Bind implements ndiscore.Protocol.
func (p *Prober) Bind(ctx context.Context, b *ndiscore.Binding) error {
	i := slices.IndexFunc(p.opts.Members, func(m Member) bool { return m.Adapter == b.Adapter() })
	if i < 0 {
		return fmt.Errorf("health: bind %s: %w: it is not to be probed", b.Adapter(), ndiscore.ErrNotAccepted)
	}
	m := p.opts.Members[i]
	seed := []string{p.opts.Identity, m.Bundle, m.Adapter}
	if p.opts.Identity == "" {
		seed = append(seed, b.Attributes().MAC.String())
	}
	mac := probeMAC(seed...)
	b.SetContext(&path{
		member: m, binding: b, probe: probe(mac, m.Target),
		expected: expected{mac: mac, key: mac.Key(), target: m.Target, local: linkLocal(mac)},
	})
	// Answers come to the probe's MAC, which the device does not know.
	if err := b.SetPacketFilter(ctx, ndiscore.FilterPromiscuous); err != nil {
		return fmt.Errorf("health: bind %s: %w", b.Adapter(), err)
	}
	return nil
}

// Unbind implements ndiscore.Protocol.
func (p *Prober) Unbind(_ context.Context, b *ndiscore.Binding) { p.hand(b, false) }

// Event implements ndiscore.Protocol.
func (p *Prober) Event(_ context.Context, b *ndiscore.Binding, ev ndiscore.NetEvent) error {
	switch ev {
	case ndiscore.EventRestart:
		p.hand(b, true)
	case ndiscore.EventPause:
		p.hand(b, false)
	}
	return nil
}

// handLimit is how long a path waits for the goroutine, which may be in a Send
// that does not return. It comes to it later; meanwhile the core refuses what is
// sent on a path that is paused.
const handLimit = time.Second

// hand gives the goroutine a path, or takes it away: then nothing is being sent
// there when it returns.
func (p *Prober) hand(b *ndiscore.Binding, run bool) {
	x, ok := b.Context().(*path)
	if !ok {
		return
	}
	limit := time.NewTimer(handLimit)
	defer limit.Stop()
	select {
	case <-p.ask(x, run):
	case <-p.done:
	case <-limit.C:
	}
}

// ask has the goroutine take or leave x; nil: only look again. The channel is
// closed when it has.
func (p *Prober) ask(x *path, run bool) <-chan struct{} {
	a := ask{x, run, make(chan struct{})}
	p.mu.Lock()
	p.asks = append(p.asks, a)
	p.mu.Unlock()
	p.poke()
	return a.done
}

// Receive implements ndiscore.Protocol.
func (p *Prober) Receive(b *ndiscore.Binding, batch *ndiscore.Batch) {
	if x, ok := b.Context().(*path); ok {
		for _, f := range batch.Frames {
			if x.expected.matches(f) {
				f.Deliver()
				p.heard(x)
			}
		}
	}
	if !batch.Borrowed {
		b.Return(batch)
	}
}

// heard takes note of an answer: the first one after each probe, so that nobody
// outside can make us work.
func (p *Prober) heard(x *path) {
	if !x.waiting.CompareAndSwap(true, false) {
		return
	}
	now := p.opts.Clock.Now()
	x.answered.Store(&now)
	p.poke()
}

// SendComplete implements ndiscore.Protocol. Probes are lent: their batch is
// ours again when Send returns.
func (p *Prober) SendComplete(*ndiscore.Binding, *ndiscore.Batch) {}

// Status implements ndiscore.Protocol. Each round asks for the link itself.
func (p *Prober) Status(*ndiscore.Binding, ndiscore.Status) {}

// --- The goroutine -------------------------------------------------------------

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Prober) run() {
	defer close(p.done)
	defer p.worker.Close()
	for {
		p.mu.Lock()
		asks := p.asks
		p.asks = nil
		p.mu.Unlock()
		for _, a := range asks {
			p.answerAsk(a)
		}
		now := p.opts.Clock.Now()
		var next time.Time
		for _, x := range p.paths {
			p.tellAnswer(x)
			if !x.due.After(now) {
				p.round(x, now)
			}
			if next.IsZero() || x.due.Before(next) {
				next = x.due
			}
		}
		var timer ndiscore.Timer
		if !next.IsZero() {
			timer = p.opts.Clock.AfterFunc(next.Sub(now), p.poke)
		}
		select {
		case <-p.wake:
		case <-p.stop:
			if timer != nil {
				timer.Stop()
			}
			return
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

func (p *Prober) answerAsk(a ask) {
	if a.path == nil {
		close(a.done)
		return
	}
	p.paths = slices.DeleteFunc(p.paths, func(x *path) bool { return x == a.path })
	x := a.path
	// What was out when the path paused says nothing about it.
	x.waiting.Store(false)
	x.answered.Store(nil)
	if a.run {
		x.due = p.opts.Clock.Now()
		p.paths = append(p.paths, x)
	}
	close(a.done)
}

// round judges the probe that is out, and sends the next one.
func (p *Prober) round(x *path, now time.Time) {
	behind := now.Sub(x.due)
	late := behind > lateRounds*x.member.Interval
	if x.due = x.due.Add(x.member.Interval); !x.due.After(now) {
		x.due = now.Add(x.member.Interval) // missed rounds are missed: no burst
	}
	connected := x.binding.Usable() && x.binding.Attributes().Link.Connected()
	switch {
	case x.waiting.CompareAndSwap(true, false):
		if connected { // else the link took the answer with it, and the core knows
			p.observe(x, ndiscore.ProbeLost, now, late || x.late, fmt.Sprintf("%s did not answer within %s%s", x.member.Target, now.Sub(x.sent), lateness(late, behind)))
		}
	default:
		p.tellAnswer(x)
	}
	if !connected || !p.send(x) {
		return
	}
	x.late = late
	p.observe(x, ndiscore.ProbeSent, now, late, "to "+x.member.Target.String()+lateness(late, behind))
}

func lateness(late bool, behind time.Duration) string {
	if !late {
		return ""
	}
	return fmt.Sprintf("; we were %s late ourselves", behind)
}

// tellAnswer tells the core of an answer that a worker has seen.
func (p *Prober) tellAnswer(x *path) {
	at := x.answered.Swap(nil)
	if at == nil {
		return
	}
	// An answer proves the path whoever was late.
	p.observe(x, ndiscore.ProbeAnswered, *at, false, fmt.Sprintf("%s answered after %s", x.member.Target, at.Sub(x.sent)))
}

func (p *Prober) observe(x *path, kind ndiscore.ObservationKind, at time.Time, late bool, detail string) {
	p.opts.Core.Observe(ndiscore.Observation{Adapter: x.member.Adapter, At: at, Kind: kind, Late: late, Detail: detail})
}

// send sends one probe and reports whether the adapter took it.
func (p *Prober) send(x *path) bool {
	q := p.worker.Scratch()
	defer p.worker.Done(q)
	p.frame.Reset(p.buf[:], ndiscore.Headroom, len(x.probe))
	copy(p.frame.Head, x.probe)
	q.Append(&p.frame)
	x.sent = p.opts.Clock.Now()
	x.waiting.Store(true) // before it leaves: a device in memory answers within Send
	x.binding.Send(q)
	// A filter that has taken the probe out, to delay or to spoil it, is part of
	// the path; an adapter that refused it is not.
	if len(q.Frames) > 0 && q.Status[0] != ndiscore.DropNone {
		x.waiting.Store(false)
		return false
	}
	return true
}
