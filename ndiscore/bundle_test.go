package ndiscore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
)

// joiner is an adapter whose driver has something to say while it is
// initialised, and while it is halted.
type joiner struct {
	*ndistest.Adapter
	onInit func(h ndiscore.AdapterHandle)
	onHalt func()
}

func (j *joiner) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	if j.onInit != nil {
		j.onInit(h)
	}
	return j.Adapter.Initialize(ctx, h)
}

func (j *joiner) Halt(ctx context.Context, why ndiscore.HaltAction) {
	if j.onHalt != nil {
		j.onHalt()
	}
	j.Adapter.Halt(ctx, why)
}

// joiners are adapters a, b and c of one driver, and other of another one.
func joiners(t *testing.T) (b *bench, as map[string]*joiner) {
	t.Helper()
	leakFree(t)
	b = &bench{t: t, core: ndistest.NewCore(t, ndiscore.Options{Decider: policy.ActiveBackup{}})}
	as = map[string]*joiner{}
	verified := func(names ...string) (vs []ndiscore.Adapter) {
		for _, n := range names {
			as[n] = &joiner{Adapter: nic(n, ndistest.AdapterOptions{})}
			vs = append(vs, ndistest.Verifier(t, as[n]))
		}
		return vs
	}
	for d, names := range map[string][]string{"fake": {"a", "b", "c"}, "else": {"other"}} {
		if _, err := b.core.RegisterDriver(ndistest.Driver(d, verified(names...)...)); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			b.must(b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: n, Driver: d}))
		}
	}
	return b, as
}

// secondaryOf has j's driver make it a secondary, and keeps the answer.
func (j *joiner) secondaryOf(primary string, answer *error) {
	j.onInit = func(h ndiscore.AdapterHandle) { *answer = h.SetSecondary(primary) }
}

func TestC50OneNameInAnyCase(t *testing.T) {
	b, _ := joiners(t)
	spec := ndiscore.BundleSpec{Name: "B1", Mode: ndiscore.BundleNDIS5, Members: []string{"a", "b"}}
	b.must(b.core.AddBundle(b.ctx(), spec))
	again := spec
	again.Name, again.Members = "b1", []string{"c"}
	if err := b.core.AddBundle(b.ctx(), again); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("b1: %v", err)
	}
	again.Mode = ndiscore.BundleTeam
	if err := b.core.AddBundle(b.ctx(), again); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("team b1: %v", err)
	}
	again.Name, again.Mode, again.Members = "B2", ndiscore.BundleNDIS5, []string{"c", "other"}
	if err := b.core.AddBundle(b.ctx(), again); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("two drivers: %v", err)
	}
	for what, members := range map[string][]string{"in another bundle": {"c", "a"}, "unknown": {"c", "nobody"}, "twice": {"c", "c"}, "none": nil} {
		again.Members = members
		if err := b.core.AddBundle(b.ctx(), again); err == nil {
			t.Errorf("a member that is %s is accepted", what)
		}
	}
	// The first initialised is the primary, whatever the order.
	b.start("b", "a")
	if got := b.active("B1"); got != "b" {
		t.Errorf("primary %s", got)
	}
	b.must(b.core.RemoveBundle(b.ctx(), "b1", "test"))
	if infos, err := b.core.Bundles(b.ctx()); err != nil || len(infos) != 0 {
		t.Errorf("%v, %v", infos, err)
	}
}

func TestC51SetSecondary(t *testing.T) {
	b, as := joiners(t)
	stack, other := ndistest.NewProtocol("stack", nil), ndistest.NewProtocol("other", nil)
	b.protocol(stack, "a")
	b.protocol(other, "b", "c")
	var err error
	refused := func(j, primary string) {
		t.Helper()
		err = nil
		as[j].secondaryOf(primary, &err)
		b.start(j)
		if !errors.Is(err, ndiscore.ErrFailure) {
			t.Errorf("%s of %s: %v", j, primary, err)
		}
		b.must(b.core.Stop(b.ctx(), j, "test"))
		as[j].onInit = nil
	}
	refused("b", "a") // not initialised
	b.start("a")
	refused("b", "nobody")
	refused("b", "b")
	refused("other", "a") // another driver
	b.start("b")
	if err := as["b"].Handle().SetSecondary("a"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("outside of Initialize: %v", err)
	}
	if other.Binding("b") == nil {
		t.Fatal("b is bound to nobody")
	}
	b.must(b.core.Stop(b.ctx(), "b", "test"))

	as["b"].secondaryOf("a", &err)
	b.start("b")
	b.must(err)
	b.must(b.core.Settle(b.ctx(), "b"))
	if other.Binding("b") != nil || stack.Binding("b") != nil {
		t.Error("a secondary is offered to protocols")
	}
	if got := b.roles("a", "secondary"); !slices.Equal(got, []string{"b"}) {
		t.Errorf("secondaries %v", got)
	}
	// C-52: what it receives goes up by the primary's bindings.
	b.must(as["b"].Inject(ndistest.Frame(macB, macA, 1, 60)))
	if stack.Received() != 1 {
		t.Errorf("received %d", stack.Received())
	}
}

func TestC54C56Promote(t *testing.T) {
	b, as := joiners(t)
	stack := ndistest.NewProtocol("stack", nil)
	b.protocol(stack, "a")
	b.start("a")
	var errs [2]error
	as["b"].secondaryOf("a", &errs[0])
	as["c"].secondaryOf("a", &errs[1])
	b.start("b", "c")
	b.must(errors.Join(errs[:]...))
	for _, n := range []string{"a", "b", "c"} {
		if err := as[n].Handle().Promote(); !errors.Is(err, ndiscore.ErrFailure) {
			t.Errorf("%s, while the primary runs: %v", n, err)
		}
	}
	// The choreography of B-13: from the primary's Halt, in order, until one works.
	b.must(b.core.Pause(b.ctx(), "b", "so that it cannot be promoted"))
	asked := make(chan struct{})
	as["a"].onHalt = func() {
		defer close(asked)
		for i, n := range []string{"b", "c"} {
			errs[i] = as[n].Handle().Promote()
		}
	}
	b.must(as["a"].Remove("broken"))
	<-asked
	ndistest.Await(t, "bound to c", func() bool { bd := stack.Binding("c"); return bd != nil && bd.Usable() })
	if !errors.Is(errs[0], ndiscore.ErrFailure) || errs[1] != nil {
		t.Errorf("b: %v, c: %v", errs[0], errs[1])
	}
	// The rest follows the new one.
	b.start("b")
	b.must(as["b"].Inject(ndistest.Frame(macB, macA, 1, 60)))
	if stack.Received() != 1 {
		t.Errorf("received %d", stack.Received())
	}
	if got := b.roles("a", "primary"); !slices.Equal(got, []string{"c"}) {
		t.Errorf("primary %v", got)
	}
	if got := stack.Binding("c").Target(); got != "a" {
		t.Errorf("target %s", got)
	}
	// Operators may take it away too: everybody stands alone.
	b.must(b.core.RemoveBundle(b.ctx(), "a", "test"))
	if stack.Binding("c") != nil {
		t.Error("bound for the sake of a bundle that is gone")
	}
	b.awaitState("a", "halted") // its Halt has promoted, and may still be returning
	as["a"].onHalt = nil
	b.start("a")
	ndistest.Await(t, "bound to a", func() bool { return stack.Binding("a") != nil })
}

func TestC97CancelAndDeInitialize(t *testing.T) {
	var tr ndistest.Trace
	b := newBench(t, ndiscore.Options{})
	p := ndistest.NewProtocol("P", &tr)
	b.protocol(p, "v")
	v := nic("v", ndistest.AdapterOptions{Trace: &tr})
	b.must(b.core.AddVirtual(b.ctx(), "v", ndistest.Verifier(t, v), nil))
	if err := b.core.AddVirtual(b.ctx(), "v", v, nil); !errors.Is(err, ndiscore.ErrNotAccepted) {
		t.Errorf("a second time: %v", err)
	}
	b.must(b.core.CancelVirtual(b.ctx(), "v", "test"))
	if calls := tr.Take(); len(calls) > 0 {
		t.Errorf("called %v", calls)
	}
	if err := b.core.CancelVirtual(b.ctx(), "v", "test"); !errors.Is(err, ndiscore.ErrAdapterNotFound) {
		t.Errorf("twice: %v", err)
	}
	b.must(b.core.AddVirtual(b.ctx(), "v", ndistest.Verifier(t, v), nil))
	b.start("v")
	tr.Await(t, "P.Event(BindsComplete)")
	if err := b.core.CancelVirtual(b.ctx(), "v", "test"); !errors.Is(err, ndiscore.ErrFailure) {
		t.Errorf("too late: %v", err)
	}
	tr.Take()
	b.must(b.core.Remove(b.ctx(), "v", "test"))
	if got, want := tr.Take(), []string{"P.Event(v, Pause)", "v.Pause", "P.Unbind(v)", "v.Halt(InstanceDeInitialized)"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	// A team before its start: its members and its name are free again.
	up := nic("up0", ndistest.AdapterOptions{})
	if _, err := b.core.RegisterDriver(ndistest.Driver("ups", ndistest.Verifier(t, up))); err != nil {
		t.Fatal(err)
	}
	b.must(b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "up0", Driver: "ups"}))
	b.start("up0")
	for range 3 {
		b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0"}}))
		b.must(b.core.CancelVirtual(b.ctx(), "wan", "test"))
	}
	if got := len(ndistest.Info(t, b.core, "up0").Bindings); got != 0 {
		t.Errorf("%d bindings on up0", got)
	}
}

// RemoveBundle, and Remove of its virtual adapter, leave nothing of a team.
func TestRemoveTeam(t *testing.T) {
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{})
	for i := range 4 {
		if i%2 == 0 {
			b.must(b.core.RemoveBundle(b.ctx(), "wan", "test"))
		} else {
			b.must(b.core.Remove(b.ctx(), "wan", "test"))
		}
		if stack.Binding("wan") != nil {
			t.Error("stack is still bound")
		}
		infos, err := b.core.Adapters(b.ctx())
		b.must(err)
		for _, a := range infos {
			if a.Name == "wan" || a.Bundle != "" || len(a.Bindings) != 0 || a.State != ndiscore.StateRunning {
				t.Errorf("%+v", a)
			}
		}
		if err := b.core.RemoveBundle(b.ctx(), "wan", "test"); !errors.Is(err, ndiscore.ErrNotFound) {
			t.Errorf("twice: %v", err)
		}
		b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up1", "up0"}, MAC: macB}))
		b.start("wan")
		ndistest.Await(t, "up1 active", func() bool { return b.active("wan") == "up1" })
		ndistest.Await(t, "stack bound", func() bool { bd := stack.Binding("wan"); return bd != nil && bd.Usable() })
	}
	before := stack.Received()
	b.must(ups[1].Inject(frame(1)))
	if stack.Received() != before+1 {
		t.Error("the new team does not receive")
	}
}

// C-59 with the policy that is in use: who is active after the preferred member
// has recovered.
func TestC59Failback(t *testing.T) {
	const gigabit = 1_000_000_000
	up := func(u *ndistest.Adapter, speed uint64) {
		u.Handle().IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: speed, Why: "carrier"})
	}
	for _, c := range []struct {
		failback ndiscore.Failback
		speed    uint64 // of the preferred member when it is back; the other has one gigabit
		want     string
	}{
		{ndiscore.FailbackAlways, gigabit, "up0"},
		{ndiscore.FailbackBetter, gigabit, "up1"},
		{ndiscore.FailbackBetter, 10 * gigabit, "up0"},
		{ndiscore.FailbackNever, 10 * gigabit, "up1"},
	} {
		t.Run(c.failback.String(), func(t *testing.T) {
			clock := ndistest.NewClock()
			ups := []*ndistest.Adapter{nic("up0", ndistest.AdapterOptions{}), nic("up1", ndistest.AdapterOptions{})}
			b := newBench(t, ndiscore.Options{Clock: clock, Decider: policy.ActiveBackup{}}, ups...)
			b.add("up0")
			b.add("up1")
			b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, MAC: macB, Failback: c.failback, Hold: 5 * time.Second}))
			b.start("up0", "up1", "wan")
			for _, u := range ups {
				up(u, gigabit)
			}
			b.must(b.core.Settle(b.ctx(), "wan"))
			clock.Advance(time.Minute)
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != "up0" {
				t.Fatalf("active %s", got)
			}
			ups[0].SetLink(false, "x")
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != "up1" {
				t.Fatalf("active %s", got)
			}
			up(ups[0], c.speed)
			b.must(b.core.Settle(b.ctx(), "wan"))
			clock.Advance(4 * time.Second)
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != "up1" { // C-60: it has to hold
				t.Fatalf("after 4 s active %s", got)
			}
			clock.Advance(time.Minute)
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != c.want {
				t.Errorf("active %s, want %s", got, c.want)
			}
			if got, want := ndistest.Info(t, b.core, "wan").Link.Speed, uint64(gigabit); c.want == "up0" && c.speed != want && got != c.speed {
				t.Errorf("the team's speed is %d", got)
			}
			// None active: the first to recover, whatever the policy and the hold.
			ups[0].SetLink(false, "x")
			ups[1].SetLink(false, "x")
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != "" { // C-61
				t.Fatalf("active %s", got)
			}
			if ndistest.Info(t, b.core, "wan").Link.Connected() {
				t.Error("the team has a link")
			}
			up(ups[1], gigabit)
			b.must(b.core.Settle(b.ctx(), "wan"))
			if got := b.active("wan"); got != "up1" {
				t.Errorf("active %s", got)
			}
		})
	}
}

func TestC60Delays(t *testing.T) {
	clock := ndistest.NewClock()
	ups := []*ndistest.Adapter{nic("up0", ndistest.AdapterOptions{}), nic("up1", ndistest.AdapterOptions{})}
	b := newBench(t, ndiscore.Options{Clock: clock, Decider: policy.ActiveBackup{}}, ups...)
	b.add("up0")
	b.add("up1")
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{
		Name: "wan", Members: []string{"up0", "up1"}, MAC: macB, UpDelay: 10 * time.Second, DownDelay: 2 * time.Second,
	}))
	b.start("up0", "up1", "wan")
	pass := func(d time.Duration) {
		b.must(b.core.Settle(b.ctx(), "wan"))
		clock.Advance(d)
		b.must(b.core.Settle(b.ctx(), "wan"))
	}
	want := func(name, when string) {
		t.Helper()
		if got := b.active("wan"); got != name {
			t.Fatalf("%s: active %q", when, got)
		}
	}
	pass(time.Minute)
	want("up0", "at first")
	ups[0].SetLink(false, "x")
	pass(1900 * time.Millisecond)
	want("up0", "down for less than down_delay")
	ups[0].SetLink(true, "x")
	pass(time.Minute)
	want("up0", "back")
	ups[0].SetLink(false, "x")
	pass(2 * time.Second)
	want("up1", "down for down_delay")
	ups[0].SetLink(true, "x")
	pass(9 * time.Second)
	want("up1", "up for less than up_delay")
	ups[0].SetLink(false, "x")
	pass(time.Second)
	ups[0].SetLink(true, "x")
	pass(9 * time.Second)
	want("up1", "up for less than up_delay, again")
	pass(time.Second)
	want("up0", "up for up_delay")
}

// The team is as fast as its active member, as its MAC policy says, and as its
// members' smallest MTU, all of it live.
func TestTeamFollowsMembers(t *testing.T) {
	ups := []*ndistest.Adapter{nic("up0", ndistest.AdapterOptions{MTU: 9000}), nic("up1", ndistest.AdapterOptions{MTU: 4000})}
	b := newBench(t, ndiscore.Options{Decider: plain{}}, ups...)
	stack := ndistest.NewProtocol("stack", nil)
	var order []string // of what it hears about a failover
	var mu sync.Mutex
	stack.OnStatus = func(_ *ndiscore.Binding, s ndiscore.Status) {
		mu.Lock()
		defer mu.Unlock()
		switch s := s.(type) {
		case ndiscore.AttributesChange:
			order = append(order, "MAC "+s.MAC.String())
		case ndiscore.NetworkChange:
			order = append(order, "announce")
			if s.After != 0 { // what is sent to the old address is lost
				t.Errorf("announced %v after the address is another one", s.After)
			}
		}
	}
	b.protocol(stack, "wan")
	b.add("up0")
	b.add("up1")
	spec := ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, ActiveMAC: true}
	b.must(b.core.AddBundle(b.ctx(), spec))
	b.start("up0", "wan")
	wan := func() ndiscore.AdapterInfo {
		b.must(b.core.Settle(b.ctx(), "wan"))
		return ndistest.Info(t, b.core, "wan")
	}
	if i := wan(); i.MTU != 9000 || i.MAC != ups[0].MAC() {
		t.Errorf("MTU %d, MAC %s", i.MTU, i.MAC)
	}
	b.start("up1")
	if i := wan(); i.MTU != 4000 {
		t.Errorf("MTU %d with up1", i.MTU)
	}
	ups[0].Handle().IndicateStatus(ndiscore.AttributesChange{MTU: 1400, Why: "test"})
	if i := wan(); i.MTU != 1400 || stack.Binding("wan").Attributes().MTU != 1400 {
		t.Errorf("MTU %d after up0's is 1400", i.MTU)
	}
	b.must(b.core.Stop(b.ctx(), "up0", "test")) // it will be back, as small as it is
	if i := wan(); i.MTU != 1400 || i.MAC != ups[1].MAC() {
		t.Errorf("MTU %d, MAC %s without up0", i.MTU, i.MAC)
	}
	mu.Lock()
	if want := "MAC " + ups[1].MAC().String(); len(order) < 2 || !slices.Equal(order[len(order)-2:], []string{want, "announce"}) {
		t.Errorf("heard %v", order)
	}
	mu.Unlock()
	b.start("up0")
	if i := wan(); i.MTU != 9000 && i.MTU != 4000 || i.MAC != ups[0].MAC() { // the fake has its first MTU again
		t.Errorf("MTU %d, MAC %s", i.MTU, i.MAC)
	}
	for _, speed := range []uint64{1e9, 25e8} {
		ups[0].Handle().IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: speed})
		if i := wan(); i.Link.Speed != speed {
			t.Errorf("speed %d, want %d", i.Link.Speed, speed)
		}
	}
	// A member's address changes while it is the active one.
	ups[0].Handle().IndicateStatus(ndiscore.AttributesChange{MAC: macA, Why: "test"})
	if i := wan(); i.MAC != macA {
		t.Errorf("MAC %s", i.MAC)
	}
	// An MTU and an address of its own; the hash, where all are as fast as their sum.
	spec.ActiveMAC, spec.MAC, spec.MTU, spec.Balance = false, macB, 1280, ndiscore.BalanceHash
	b.must(b.core.UpdateBundle(b.ctx(), spec))
	if i := wan(); i.MAC != macB || i.MTU != 1280 {
		t.Errorf("MAC %s, MTU %d", i.MAC, i.MTU)
	}
	spec.ActiveMAC = true
	if err := b.core.UpdateBundle(b.ctx(), spec); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("%v", err)
	}
}

// A bundle is changed under traffic, and no frame is lost.
func TestUpdateTeam(t *testing.T) {
	var ups []*ndistest.Adapter
	for _, n := range []string{"up0", "up1", "up2"} {
		ups = append(ups, nic(n, ndistest.AdapterOptions{}))
	}
	b := newBench(t, ndiscore.Options{Decider: policy.ActiveBackup{}}, ups...)
	stack := ndistest.NewProtocol("stack", nil)
	b.protocol(stack, "wan")
	for _, u := range ups {
		b.add(u.Name())
		b.start(u.Name())
	}
	spec := ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, MAC: macB, Hold: time.Millisecond}
	b.must(b.core.AddBundle(b.ctx(), spec))
	b.start("wan")
	ndistest.Await(t, "active", func() bool { return b.active("wan") == "up0" })
	bd := stack.Binding("wan")

	var sent, lost atomic.Uint64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	w := b.worker("sender")
	wg.Go(func() { // "sender": ends with the test
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			got := send(w, bd, n%2 == 0, flow(n, 1), flow(n+1, 2))
			for i := range 2 {
				sent.Add(1)
				if got.Status[i] != ndiscore.DropNone {
					lost.Add(1)
				}
			}
		}
	})
	active := func(names ...string) {
		t.Helper()
		ndistest.Await(t, names[0]+" active", func() bool { return slices.Equal(b.roles("wan", "active"), names) })
	}
	update := func(members ...string) {
		t.Helper()
		spec.Members = members
		b.must(b.core.UpdateBundle(b.ctx(), spec))
	}
	update("up1", "up0") // another order: back to the preferred one, by the usual rules
	active("up1")
	update("up2", "up1") // one goes, one comes
	if got := ndistest.Info(t, b.core, "up0"); got.Bundle != "" || len(got.Bindings) != 0 {
		t.Errorf("%+v", got)
	}
	active("up2")
	update("up0", "up1")
	active("up0")
	spec.Balance = ndiscore.BalanceHash
	update("up0", "up1", "up2")
	active("up0", "up1", "up2")
	update("up1", "up2")
	active("up1", "up2")
	spec.Balance = ndiscore.BalanceActiveBackup
	for range 40 { // more than there are places
		update("up0", "up2")
		update("up1", "up0")
	}
	active("up1")
	spec.Failback = ndiscore.FailbackNever
	update("up0", "up1", "up2")
	close(stop)
	wg.Wait()
	if lost.Load() > 0 || sent.Load() == 0 {
		t.Errorf("%d of %d lost", lost.Load(), sent.Load())
	}
	if stack.Binding("wan") != bd {
		t.Error("stack was unbound")
	}

	for what, c := range map[string]struct {
		edit func(*ndiscore.BundleSpec)
		want error
	}{
		"no such bundle": {func(s *ndiscore.BundleSpec) { s.Name = "lan" }, ndiscore.ErrNotFound},
		"another mode":   {func(s *ndiscore.BundleSpec) { s.Mode = ndiscore.BundleNDIS5 }, ndiscore.ErrNotSupported},
		"no members":     {func(s *ndiscore.BundleSpec) { s.Members = nil }, ndiscore.ErrInvalidData},
		"twice":          {func(s *ndiscore.BundleSpec) { s.Members = []string{"up0", "up0"} }, ndiscore.ErrInvalidData},
	} {
		bad := spec
		c.edit(&bad)
		if err := b.core.UpdateBundle(b.ctx(), bad); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := b.active("wan"); got != "up1" { // never: it stays
		t.Errorf("active %s", got)
	}
}

func TestUpdateNDIS5(t *testing.T) {
	b, ups, stack := ndis5Bench(t, 3)
	spec := ndiscore.BundleSpec{Name: "wan", Mode: ndiscore.BundleNDIS5, Members: []string{"up1", "up2"}}
	b.must(b.core.UpdateBundle(b.ctx(), spec)) // the primary leaves
	ndistest.Await(t, "bound to up1", func() bool { bd := stack.Binding("up1"); return bd != nil && bd.Usable() })
	if stack.Binding("up0") != nil {
		t.Error("still bound to up0")
	}
	before := stack.Received()
	b.must(ups[0].Inject(ndistest.Frame(ups[1].MAC(), macA, 1, 60)))
	b.must(ups[2].Inject(ndistest.Frame(ups[1].MAC(), macA, 2, 60)))
	if stack.Received() != before+1 {
		t.Errorf("received %d", stack.Received()-before)
	}
	spec.Members = []string{"up2", "up0", "up1"} // it comes back; the primary stays
	spec.Balance = ndiscore.BalanceHash
	b.must(b.core.UpdateBundle(b.ctx(), spec))
	if got := b.active("wan"); got != "up1" {
		t.Errorf("primary %s", got)
	}
	w := b.worker("test")
	if got := lanes(t, w, stack.Binding("up1"), ups, 90, true); !slices.Contains(got, "up0") || !slices.Contains(got, "up2") {
		t.Errorf("%v", got)
	}
	b.must(b.core.RemoveBundle(b.ctx(), "wan", "test"))
	if stack.Binding("up1") != nil {
		t.Error("still bound")
	}
}

// An ndis5 bundle farms flows out to its secondaries (B-7), and they deliver to
// the primary's bindings (B-8), but for copies and our own come back.
func TestNDIS5Hash(t *testing.T) {
	b, ups, stack := ndis5Bench(t, 3)
	stack.Filter = ndiscore.FilterPromiscuous
	spec := ndiscore.BundleSpec{Name: "wan", Mode: ndiscore.BundleNDIS5, Members: []string{"up0", "up1", "up2"}, Balance: ndiscore.BalanceHash}
	b.must(b.core.UpdateBundle(b.ctx(), spec))
	bd := stack.Binding("up0")
	b.must(bd.SetPacketFilter(b.ctx(), ndiscore.FilterPromiscuous))
	w := b.worker("test")
	all := lanes(t, w, bd, ups, 200, true)
	if !slices.Equal(all, lanes(t, w, bd, ups, 200, false)) {
		t.Error("kept batches go elsewhere")
	}
	for _, u := range ups {
		if !slices.Contains(all, u.Name()) {
			t.Errorf("%s sent nothing", u.Name())
		}
		before := stack.Received()
		b.must(u.Inject(ndistest.Frame(macB, macA, 1, 60), ndistest.Frame(ndiscore.Broadcast, macA, 2, 60), flow(1, 3)))
		want := map[string]uint64{"up0": 2}[u.Name()]
		if want == 0 {
			want = 1
		}
		if got := stack.Received() - before; got != want {
			t.Errorf("%s: received %d, want %d", u.Name(), got, want)
		}
		checkSums(t, ndistest.Info(t, b.core, u.Name()))
	}
	send(w, bd, true, ndistest.Frame(ndiscore.Broadcast, station(1), 1, 60))
	ups[1].SetLink(false, "x")
	for i, m := range lanes(t, w, bd, ups, 200, true) {
		if m == "up1" || all[i] != "up1" && m != all[i] {
			t.Fatalf("flow %d went from %s to %s", i, all[i], m)
		}
	}
	// The primary keeps its place without a link, and another one does its work.
	ups[0].SetLink(false, "x")
	if !bd.Attributes().Link.Connected() {
		t.Error("those above take the bundle for disconnected")
	}
	if told := links(stack); slices.Contains(told, ndiscore.MediaDisconnected) {
		t.Errorf("they were told %v", told)
	}
	for i, m := range lanes(t, w, bd, ups, 100, true) {
		if m != "up2" {
			t.Fatalf("flow %d left by %s", i, m)
		}
	}
	before := stack.Received()
	b.must(ups[2].Inject(ndistest.Frame(ndiscore.Broadcast, macA, 2, 60)))
	if stack.Received() != before+1 {
		t.Error("nobody takes group frames")
	}
	ups[0].Refuse(ndiscore.DropTxQueueFull)
	ups[0].SetLink(true, "x")
	got := send(w, bd, false, func() (fs [][]byte) {
		for i := range 64 {
			fs = append(fs, flow(i, 1))
		}
		return fs
	}()...)
	for i := range 64 {
		if want := all[i] == "up0"; want != (got.Status[i] == ndiscore.DropTxQueueFull) && all[i] != "up1" {
			t.Errorf("flow %d of %s: %s", i, all[i], got.Status[i])
		}
	}
}

// links are the media states that a protocol was told, one after the other.
func links(p *ndistest.Protocol) (told []ndiscore.MediaState) {
	for _, st := range p.Statuses() {
		if l, ok := st.(ndiscore.LinkState); ok {
			told = append(told, l.Media)
		}
	}
	return told
}

// The link of an ndis5 bundle that shares its load is up for as long as one
// member can carry it, whichever that is, and whatever takes the others away.
func TestNDIS5HashLink(t *testing.T) {
	b, ups, stack := ndis5Bench(t, 2)
	b.must(b.core.UpdateBundle(b.ctx(), ndiscore.BundleSpec{
		Name: "wan", Mode: ndiscore.BundleNDIS5, Members: []string{"up0", "up1"}, Balance: ndiscore.BalanceHash,
	}))
	last := func(want ndiscore.MediaState) {
		t.Helper()
		ndistest.Await(t, "told "+want.String(), func() bool {
			told := links(stack)
			return len(told) > 0 && told[len(told)-1] == want
		})
		if got := stack.Binding("up0").Attributes().Link.Media; got != want {
			t.Errorf("the link is %s, and %s was told", got, want)
		}
	}
	last(ndiscore.MediaConnected)
	ups[0].SetLink(false, "x")
	last(ndiscore.MediaConnected)
	ups[1].SetLink(false, "x")
	last(ndiscore.MediaDisconnected)
	ups[1].SetLink(true, "x")
	last(ndiscore.MediaConnected)
	b.must(b.core.Stop(b.ctx(), "up1", "test")) // without a word about its link
	last(ndiscore.MediaDisconnected)
	b.must(b.core.Start(b.ctx(), "up1", "test"))
	last(ndiscore.MediaConnected)
}

// A bundle goes on while one member sleeps, and takes it back when it wakes.
func TestSuspendedMember(t *testing.T) {
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{})
	w := b.worker("test")
	b.must(b.core.Suspend(b.ctx(), "up0", "test"))
	if got := b.active("wan"); got != "up1" {
		t.Errorf("active %s", got)
	}
	if got := send(w, stack.Binding("wan"), true, frame(1)); got.Status[0] != ndiscore.DropNone || len(ups[1].Sent()) != 1 {
		t.Errorf("%s", got.Status[0])
	}
	b.must(b.core.Resume(b.ctx(), "up0", "test"))
	ndistest.Await(t, "up0 active", func() bool { return b.active("wan") == "up0" })
	// The team itself sleeps without its members.
	b.must(b.core.Suspend(b.ctx(), "wan", "test"))
	if got := send(w, stack.Binding("wan"), true, frame(1)); got.Status[0] == ndiscore.DropNone {
		t.Error("sent while asleep")
	}
	if b.state("up0") != "running" {
		t.Error("its member does not run")
	}
	b.must(b.core.Resume(b.ctx(), "wan", "test"))
	if got := send(w, stack.Binding("wan"), true, frame(1)); got.Status[0] != ndiscore.DropNone {
		t.Errorf("%s", got.Status[0])
	}
}

// A primary without a link keeps its place, and is not called up.
func TestNDIS5Verdict(t *testing.T) {
	b, ups, _ := ndis5Bench(t, 2)
	verdicts := func() (vs []string) {
		infos, err := b.core.Bundles(b.ctx())
		b.must(err)
		for _, m := range infos[0].Members {
			vs = append(vs, m.Role+" "+m.Verdict.String())
		}
		return vs
	}
	await := func(want ...string) {
		t.Helper()
		ndistest.Await(t, strings.Join(want, ", "), func() bool { return slices.Equal(verdicts(), want) })
	}
	await("primary up", "secondary up")
	ups[0].SetLink(false, "carrier lost")
	await("primary down", "secondary up")
	ups[1].SetLink(false, "carrier lost")
	await("primary down", "secondary down")
	ups[0].SetLink(true, "carrier")
	await("primary up", "secondary down")
	b.must(b.core.Stop(b.ctx(), "up1", "test"))
	await("primary up", "down down")
}

func TestSuspendedPrimary(t *testing.T) {
	b, _, stack := ndis5Bench(t, 2)
	b.must(b.core.Suspend(b.ctx(), "up0", "test"))
	ndistest.Await(t, "bound to up1", func() bool { bd := stack.Binding("up1"); return bd != nil && bd.Usable() })
	if stack.Binding("up0") != nil {
		t.Error("still bound to up0")
	}
	b.must(b.core.Resume(b.ctx(), "up0", "test"))
	if got := b.roles("wan", "secondary"); !slices.Equal(got, []string{"up0"}) {
		t.Errorf("secondaries %v", got)
	}
}
