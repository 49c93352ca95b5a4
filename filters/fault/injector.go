package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// FilterPrefix begins the name of each filter that carries injected faults; the
// id of the lease for which it was put in follows.
const FilterPrefix = "inject-"

// Limits and defaults of an Injector.
const (
	mostLeases     = 64
	defaultLongest = time.Hour
	longestOwner   = 256

	// endLimit is how long the end of a lease may take that nobody waits for.
	endLimit = 30 * time.Second
)

// ErrNotAllowed: the switch is configured not to be broken on purpose.
var ErrNotAllowed = errors.New("faults may not be injected here")

// Core is what an Injector needs of ndiscore.Core.
type Core interface {
	InsertFilter(ctx context.Context, adapter string, spec ndiscore.FilterSpec, index int, why string) error
	RemoveFilter(ctx context.Context, adapter, filter, why string) error
	Adapters(ctx context.Context) ([]ndiscore.AdapterInfo, error)
	Bundles(ctx context.Context) ([]ndiscore.BundleInfo, error)
}

// Options is what an Injector is made from.
type Options struct {
	Allow   bool                 // without it, Inject refuses
	Longest time.Duration        // of a lease; 0: an hour
	Most    int                  // leases at a time; 0: 64
	Clock   ndiscore.Clock       // nil: the system's
	Report  func(ndiscore.Event) // nil: nobody; must not block
	Seed    func() uint64        // seeds of faults that ask for none; nil: chance
}

// Injector injects faults, and keeps account of them. Its methods may be called
// from any goroutine that may call ndiscore.Core.
type Injector struct {
	clock  ndiscore.Clock
	report func(ndiscore.Event)
	seed   func() uint64
	most   int

	mu      sync.Mutex // guards all below; not held across a call
	core    Core
	allow   bool
	closed  bool // adapters are about to be halted: nothing is started again
	longest time.Duration
	last    uint64   // lease id
	leases  []*lease // in the order of their ids
	devices map[string]*device
	targets map[string]*target // with a lease, or with a filter that could not be taken out
}

// target is one adapter with leases.
type target struct {
	turn     chan struct{} // capacity 1: whoever fills it may begin or end faults of the adapter
	filter   *Filter       // guarded by turn
	name     string        // guarded by turn: the filter's in the core
	inserted atomic.Bool   // the core has the filter; changes with turn held
}

// lease is a fault that is on, or about to be.
type lease struct {
	Lease          // Began and Expires are guarded by Injector.mu
	on     *target // never changes
	device *device // of a device fault; never changes

	// Guarded by on.turn.
	stage stage
	fault *deviceFault
	timer ndiscore.Timer

	effect *effect // guarded by Injector.mu; nil until it is on
}

// Lease is a fault that is on.
type Lease struct {
	ID uint64 `json:"id"`
	Spec
	Began   time.Time `json:"began"`
	Expires time.Time `json:"expires"`
	RX      Hits      `json:"rx"`    // what it did to frames into the switch
	TX      Hits      `json:"tx"`    // … and out of it
	Calls   uint64    `json:"calls"` // of a device fault: resets asked for, initialisations failed, removals made
}

// Hits is how many frames a fault hit.
type Hits struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

// New makes an injector with nothing injected.
func New(o Options) *Injector {
	if o.Longest <= 0 {
		o.Longest = defaultLongest
	}
	if o.Most <= 0 {
		o.Most = mostLeases
	}
	if o.Clock == nil {
		o.Clock = ndiscore.SystemClock{}
	}
	if o.Report == nil {
		o.Report = func(ndiscore.Event) {}
	}
	if o.Seed == nil {
		o.Seed = rand.Uint64
	}
	return &Injector{
		clock: o.Clock, report: o.Report, seed: o.Seed, most: o.Most, allow: o.Allow, longest: o.Longest,
		devices: map[string]*device{}, targets: map[string]*target{},
	}
}

// Use says which core the adapters belong to, before the first Inject.
func (j *Injector) Use(c Core) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.core = c
}

// Permit changes what Options.Allow and Options.Longest said. Leases that are
// there stay as they are.
func (j *Injector) Permit(allow bool, longest time.Duration) {
	if longest <= 0 {
		longest = defaultLongest
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.allow, j.longest = allow, longest
}

// --- Beginning --------------------------------------------------------------------

// Inject begins a fault and returns its lease. Errors wrap ErrNotAllowed,
// ndiscore.ErrInvalidData (with one ndiscore.OptionError for each bad word),
// ErrResources (too many leases), ErrAdapterNotFound, ErrExists (a device has
// each fault once), ErrNotSupported, ErrInvalidState, or what the core said;
// then nothing has changed.
func (j *Injector) Inject(ctx context.Context, s Spec) (Lease, error) {
	l, err := j.inject(ctx, s)
	if err != nil {
		return Lease{}, fmt.Errorf("inject %.20s on %.20s: %w", s.Kind, s.Adapter, err)
	}
	return l, nil
}

func (j *Injector) inject(ctx context.Context, s Spec) (Lease, error) {
	k, v, err := s.read()
	if err != nil {
		return Lease{}, err
	}
	l, err := j.register(s, k)
	if errors.Is(err, ndiscore.ErrAdapterNotFound) {
		return Lease{}, j.noDevice(ctx, s.Adapter)
	}
	if err != nil {
		return Lease{}, err
	}
	if err := l.on.take(ctx); err != nil {
		j.forget(l)
		return Lease{}, fmt.Errorf("another fault's beginning or end takes too long: %w", err)
	}
	defer l.on.done()
	if !j.listed(l) {
		return Lease{}, fmt.Errorf("%w: it was cleared before it began", ndiscore.ErrInvalidState)
	}
	if k.Device {
		l.fault, err = l.device.begin(l.Kind, v, fmt.Sprintf("injected %s, lease %d", l.Kind, l.ID), func() {
			go j.endLater(l, "fault.cleared", "a reset healed it") // "fault healed": ends with the lease
		})
	} else {
		err = j.beginFrames(ctx, l, k.frame(v, l.Direction, l.Seed))
	}
	if err != nil {
		j.forget(l)
		return Lease{}, err
	}
	now := j.clock.Now()
	j.mu.Lock()
	l.Began, l.Expires = now, now.Add(l.For)
	if k.Device {
		l.effect = &l.fault.effect
	} else {
		l.effect = l.stage.common()
	}
	shown := l.showLocked()
	j.mu.Unlock()
	l.timer = j.clock.AfterFunc(l.For, func() { j.endLater(l, "fault.expired", "its time is up") })
	j.tell("fault.injected", l, "for "+l.For.String())
	return shown, nil
}

// register writes a lease down, with everything that s left open.
func (j *Injector) register(s Spec, k *Kind) (*lease, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := j.devices[s.Adapter]
	switch {
	case !j.allow:
		return nil, fmt.Errorf("%w: [fault] allow = true permits it", ErrNotAllowed)
	case j.core == nil:
		return nil, fmt.Errorf("%w: the switch is not running", ndiscore.ErrStopped)
	case s.For > j.longest:
		return nil, fmt.Errorf("%w: for %s: the longest allowed is %s ([fault] longest)", ndiscore.ErrInvalidData, s.For, j.longest)
	case len(s.Owner) > longestOwner:
		return nil, fmt.Errorf("%w: the owner's name has %d bytes: at most %d", ndiscore.ErrInvalidData, len(s.Owner), longestOwner)
	case len(j.leases) >= j.most:
		return nil, fmt.Errorf("%w: there are %d faults already: clear some", ndiscore.ErrResources, len(j.leases))
	case k.Device && d == nil:
		return nil, ndiscore.ErrAdapterNotFound
	}
	if s.For == 0 {
		s.For = j.longest
	}
	if s.Direction == 0 {
		s.Direction = Both
	}
	if s.Seed == 0 {
		s.Seed = j.seed()
	}
	s.Params = maps.Clone(s.Params)
	t := j.targets[s.Adapter]
	if t == nil {
		t = &target{turn: make(chan struct{}, 1), filter: newFilter()}
		j.targets[s.Adapter] = t
	}
	j.last++
	l := &lease{Lease: Lease{ID: j.last, Spec: s}, on: t, device: d}
	j.leases = append(j.leases, l)
	return l, nil
}

// noDevice says why there is no device of that name that could fail.
func (j *Injector) noDevice(ctx context.Context, name string) error {
	there, err := j.known(ctx, name)
	switch {
	case err != nil:
		return err
	case there:
		return fmt.Errorf("%w: only an adapter with a driver has a device that can fail; a bundle or a bridge stands on such", ndiscore.ErrNotSupported)
	}
	return ndiscore.ErrAdapterNotFound
}

// known reports whether name is an adapter, a bridge or a bundle of the core.
func (j *Injector) known(ctx context.Context, name string) (bool, error) {
	core := j.theCore()
	if core == nil {
		return false, nil
	}
	adapters, err := core.Adapters(ctx)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(adapters, func(a ndiscore.AdapterInfo) bool { return a.Name == name }) {
		return true, nil
	}
	bundles, err := core.Bundles(ctx) // an ndis5 bundle is no adapter
	return slices.ContainsFunc(bundles, func(b ndiscore.BundleInfo) bool { return b.Name == name }), err
}

// beginFrames turns a fault of frames on, and puts the filter in for the first.
func (j *Injector) beginFrames(ctx context.Context, l *lease, s stage) error {
	t := l.on
	if err := t.filter.add(s); err != nil {
		return err
	}
	l.stage = s
	if t.inserted.Load() {
		return nil
	}
	t.name = fmt.Sprint(FilterPrefix, l.ID)
	core := j.theCore()
	err := core.InsertFilter(ctx, l.Adapter, ndiscore.FilterSpec{Name: t.name, Filter: t.filter}, 0, "to inject "+l.Kind)
	if err != nil {
		if !errors.Is(err, ndiscore.ErrExists) {
			// It may be in all the same, when somebody stopped the adapter
			// meanwhile, or ctx ended first.
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
			defer cancel()
			_ = core.RemoveFilter(undo, l.Adapter, t.name, "not injected after all")
		}
		_ = t.filter.remove(ctx, s)
		t.filter = newFilter()
		return err
	}
	t.inserted.Store(true)
	return nil
}

func (j *Injector) theCore() Core {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.core
}

func (t *target) take(ctx context.Context) error {
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *target) done() { <-t.turn }

// --- Ending -----------------------------------------------------------------------

// Selection says which leases are meant: those for which everything that is set
// holds.
type Selection struct {
	ID      uint64
	Owner   string
	Adapter string
	All     bool // nothing else need be set
}

// Clear ends the leases selected and says how many these were. When it returns,
// what they did is over. ErrNotFound for an ID that there is not,
// ErrAdapterNotFound for an adapter.
func (j *Injector) Clear(ctx context.Context, s Selection, why string) (int, error) {
	if s == (Selection{}) {
		return 0, fmt.Errorf("clear faults: %w: say which: an id, an owner, an adapter, or all", ndiscore.ErrInvalidData)
	}
	var errs []error
	n := 0
	for _, l := range j.selected(s) {
		ended, err := j.end(ctx, l, "fault.cleared", why)
		if ended {
			n++
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clear fault %d (%s on %s): %w", l.ID, l.Kind, l.Adapter, err))
		}
	}
	if n == 0 && s.ID != 0 && len(errs) == 0 {
		return 0, fmt.Errorf("clear fault %d: %w: it may have ended by itself", s.ID, ndiscore.ErrNotFound)
	}
	if n == 0 && s.Adapter != "" && len(errs) == 0 {
		there, err := j.known(ctx, s.Adapter)
		if err == nil && !there {
			err = ndiscore.ErrAdapterNotFound
		}
		if err != nil {
			return 0, fmt.Errorf("clear faults on %.20s: %w", s.Adapter, err)
		}
	}
	return n, errors.Join(errs...)
}

// EndOwner ends the leases of an owner that is gone.
func (j *Injector) EndOwner(ctx context.Context, owner, why string) error {
	_, err := j.Clear(ctx, Selection{Owner: owner}, why)
	return err
}

// Close permits no more faults and ends all, for a switch that is about to halt
// its adapters. So nothing is put back that would have one of them start again:
// a device that was taken away stays away, and a filter stays in, with nothing
// left to do.
func (j *Injector) Close(ctx context.Context) error {
	j.Permit(false, 0)
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	_, err := j.Clear(ctx, Selection{All: true}, "shutdown")
	return err
}

// AdapterGone ends the leases on an adapter that was removed; it does not wait
// for that. Adapters of drivers that were interposed need not be told of.
func (j *Injector) AdapterGone(adapter, why string) {
	j.mu.Lock()
	ls := j.selectedLocked(Selection{Adapter: adapter})
	delete(j.targets, adapter) // another one of that name begins afresh
	j.mu.Unlock()
	for _, l := range ls {
		go j.endLater(l, "fault.cleared", why) // "fault end": ends with the lease
	}
}

func (j *Injector) selected(s Selection) []*lease {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.selectedLocked(s)
}

func (j *Injector) selectedLocked(s Selection) []*lease {
	var ls []*lease
	for _, l := range j.leases {
		if (s.ID == 0 || s.ID == l.ID) && (s.Owner == "" || s.Owner == l.Owner) && (s.Adapter == "" || s.Adapter == l.Adapter) {
			ls = append(ls, l)
		}
	}
	return ls
}

// endLater ends a lease for which nobody waits. While somebody else's beginning
// or end on the adapter lasts too long it says so, and goes on trying: no fault
// outlives its time for good.
func (j *Injector) endLater(l *lease, what, why string) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), endLimit)
		ended, err := j.end(ctx, l, what, why)
		cancel()
		if err == nil {
			return
		}
		j.tell("fault.end-failed", l, err.Error())
		if ended {
			return
		}
	}
}

// end turns a fault off. Not ended: somebody else was quicker, or ctx ended
// first.
func (j *Injector) end(ctx context.Context, l *lease, what, why string) (ended bool, err error) {
	if err := l.on.take(ctx); err != nil {
		return false, fmt.Errorf("another fault's beginning or end takes too long: %w", err)
	}
	defer l.on.done()
	if !j.listed(l) {
		return false, nil
	}
	if l.timer == nil { // it has not begun, and will not: see inject
		j.forget(l)
		return true, nil
	}
	l.timer.Stop()
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		what = "fault.stopped"
	}
	if l.fault != nil {
		l.device.finish(l.fault, closed)
	} else {
		err = j.endFrames(ctx, l, why)
	}
	j.forget(l)
	j.tell(what, l, why)
	return true, err
}

// endFrames turns a fault of frames off, and takes the filter out after the
// last. A filter that cannot be taken out stays, and lets everything pass; from a
// suspended adapter it goes when that wakes.
func (j *Injector) endFrames(ctx context.Context, l *lease, why string) error {
	t := l.on
	err := t.filter.remove(ctx, l.stage)
	if !t.inserted.Load() || len(*t.filter.chain.Load()) > 0 {
		return err
	}
	j.mu.Lock()
	gone := j.closed || j.targets[l.Adapter] != t
	j.mu.Unlock()
	if gone {
		return err
	}
	out := j.theCore().RemoveFilter(ctx, l.Adapter, t.name, why)
	if errors.Is(out, ndiscore.ErrInvalidState) {
		// Either it cannot leave now, or it will when what overtook us is over.
		out = j.theCore().RemoveFilter(ctx, l.Adapter, t.name, why)
	}
	if errors.Is(out, ndiscore.ErrInvalidState) {
		return err // asleep: see AdapterAwake
	}
	for _, gone := range []error{ndiscore.ErrNotFound, ndiscore.ErrAdapterNotFound, ndiscore.ErrStopped} {
		if errors.Is(out, gone) {
			out = nil
		}
	}
	if out == nil {
		t.filter = newFilter() // the old one may still be on its way out
		t.inserted.Store(false)
	}
	return errors.Join(err, out)
}

// AdapterAwake takes the filter out of an adapter whose last fault ended while it
// slept, when nothing could leave its chain. It does not block.
func (j *Injector) AdapterAwake(adapter string) {
	j.mu.Lock()
	t := j.targets[adapter]
	j.mu.Unlock()
	if t == nil || !t.inserted.Load() {
		return
	}
	go func() { // "fault sweep": ends with its limit
		ctx, cancel := context.WithTimeout(context.Background(), endLimit)
		defer cancel()
		if t.take(ctx) != nil {
			return // whoever has it so long begins or ends a fault there, and tells
		}
		defer t.done()
		j.mu.Lock()
		used := j.closed || j.targets[adapter] != t || slices.ContainsFunc(j.leases, func(x *lease) bool { return x.on == t })
		j.mu.Unlock()
		if used || !t.inserted.Load() || j.theCore().RemoveFilter(ctx, adapter, t.name, "its last fault has ended") != nil {
			return
		}
		t.filter = newFilter()
		t.inserted.Store(false)
		j.mu.Lock()
		defer j.mu.Unlock()
		if !slices.ContainsFunc(j.leases, func(x *lease) bool { return x.on == t }) {
			delete(j.targets, adapter)
		}
	}()
}

func (j *Injector) listed(l *lease) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.leases, l)
}

// forget takes l off the list. The caller has its target's turn, or never had
// anything of l begin.
func (j *Injector) forget(l *lease) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leases = slices.DeleteFunc(j.leases, func(x *lease) bool { return x == l })
	if j.targets[l.Adapter] == l.on && !l.on.inserted.Load() && !slices.ContainsFunc(j.leases, func(x *lease) bool { return x.on == l.on }) {
		delete(j.targets, l.Adapter)
	}
}

// --- Telling ----------------------------------------------------------------------

// List tells of every lease that is on, the oldest first.
func (j *Injector) List() []Lease {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([]Lease, 0, len(j.leases))
	for _, l := range j.leases {
		if l.effect != nil {
			list = append(list, l.showLocked())
		}
	}
	return list
}

func (l *lease) showLocked() Lease {
	s := l.Lease
	s.Params = maps.Clone(s.Params)
	for i, h := range []*Hits{&s.RX, &s.TX} {
		h.Frames, h.Bytes = l.effect.hits[i].frames.Load(), l.effect.hits[i].bytes.Load()
	}
	s.Calls = l.effect.calls.Load()
	return s
}

func (j *Injector) tell(what string, l *lease, why string) {
	who := ""
	if l.Owner != "" {
		who = " of " + l.Owner
	}
	j.report(ndiscore.Event{What: what, Adapter: l.Adapter, To: l.Spec.String(), Why: fmt.Sprintf("lease %d%s: %s", l.ID, who, why)})
}

// --- Devices ----------------------------------------------------------------------

func (j *Injector) addDevice(d *device) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.devices[d.name] = d
}

func (j *Injector) removeDevice(d *device) {
	j.mu.Lock()
	if j.devices[d.name] == d {
		delete(j.devices, d.name)
	}
	j.mu.Unlock()
	j.AdapterGone(d.name, "the adapter was removed")
}
