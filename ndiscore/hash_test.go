package ndiscore_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
	"github.com/seed-b14e907b/vswitch/policy"
)

// hashBench is a team "wan" with BalanceHash over n adapters, as hashSpec has it,
// with the real policy and a clock that the test moves.
func hashBench(t testing.TB, n int, o ndistest.AdapterOptions, spec func(*ndiscore.BundleSpec)) (*bench, []*ndistest.Adapter, *ndistest.Protocol, *ndistest.Clock) {
	t.Helper()
	clock := ndistest.NewClock()
	var ups []*ndistest.Adapter
	var names []string
	for i := range n {
		names = append(names, fmt.Sprint("up", i))
		ups = append(ups, nic(names[i], o))
	}
	b := newBench(t, ndiscore.Options{Clock: clock, Decider: policy.ActiveBackup{}}, ups...)
	stack := ndistest.NewProtocol("stack", o.Trace)
	b.protocol(stack, "wan")
	s := ndiscore.BundleSpec{Name: "wan", Members: names, MAC: macB, Balance: ndiscore.BalanceHash}
	if spec != nil {
		spec(&s)
	}
	for _, n := range names {
		b.add(n)
	}
	b.must(b.core.AddBundle(b.ctx(), s))
	b.start(names...)
	b.start("wan")
	ndistest.Await(t, "all carry", func() bool { return len(b.roles("wan", "active")) == n })
	if o.Trace != nil {
		o.Trace.Await(t, "stack.Event(BindsComplete)")
	}
	return b, ups, stack, clock
}

// roles lists the members of a bundle that have a role.
func (b *bench) roles(bundle, role string) (names []string) {
	infos, err := b.core.Bundles(b.ctx())
	b.must(err)
	for _, i := range infos {
		for _, m := range i.Members {
			if i.Name == bundle && m.Role == role {
				names = append(names, m.Adapter)
			}
		}
	}
	return names
}

// station is a MAC address behind us.
func station(i int) ndiscore.MAC { return ndiscore.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)} }

// flow is a frame of flow i, from a station behind us to macA.
func flow(i int, id uint32) []byte { return ndistest.Frame(macA, station(i), id, 60) }

// lanes says by which members flows 0 … n-1 leave now.
func lanes(t testing.TB, w *ndiscore.Worker, bd *ndiscore.Binding, ups []*ndistest.Adapter, n int, borrowed bool) []string {
	t.Helper()
	before := make([]int, len(ups))
	for i, u := range ups {
		before[i] = len(u.Sent())
	}
	for at := 0; at < n; at += ndiscore.BatchFrames {
		var fs [][]byte
		for i := at; i < min(n, at+ndiscore.BatchFrames); i++ {
			fs = append(fs, flow(i, uint32(i)))
		}
		got := send(w, bd, borrowed, fs...)
		for i := range fs {
			if got.Status[i] != ndiscore.DropNone {
				t.Fatalf("flow %d: %s", at+i, got.Status[i])
			}
		}
	}
	way := make([]string, n)
	for i, u := range ups {
		for _, f := range u.Sent()[before[i]:] {
			id, _ := ndistest.FrameID(f)
			if way[id] != "" {
				t.Fatalf("flow %d left twice", id)
			}
			way[id] = u.Name()
		}
	}
	if i := slices.Index(way, ""); i >= 0 {
		t.Fatalf("flow %d did not leave", i)
	}
	return way
}

func TestHashFlows(t *testing.T) {
	var tr ndistest.Trace
	b, ups, stack, clock := hashBench(t, 3, ndistest.AdapterOptions{Trace: &tr}, nil)
	w, bd := b.worker("test"), stack.Binding("wan")
	const n = 300
	all := lanes(t, w, bd, ups, n, true)
	share := map[string]int{}
	for _, m := range all {
		share[m]++
	}
	for _, u := range ups {
		if share[u.Name()] < n/5 {
			t.Errorf("shares %v", share)
		}
	}
	for _, borrowed := range []bool{true, false} {
		if !slices.Equal(all, lanes(t, w, bd, ups, n, borrowed)) {
			t.Errorf("flows move by themselves (borrowed %v)", borrowed)
		}
	}
	// Group frames leave by the first alone.
	send(w, bd, true, ndistest.Frame(ndiscore.Broadcast, station(1), 1, 60), ndistest.Frame(ndiscore.MAC{1, 0, 0x5e, 0, 0, 1}, station(2), 2, 60))
	if c := b.counters("up0"); c.TxFrames != uint64(3*share["up0"]+2) {
		t.Errorf("%+v", c)
	}

	// One loses its link: on that goroutine, at once, its flows move, and no other.
	before := changes(stack)
	tr.Take()
	var less []string
	b.must(ups[1].Do(func(*ndiscore.Worker) {
		ups[1].SetLink(false, "carrier lost")
		less = lanes(t, w, bd, ups, n, true)
	}))
	for i := range all {
		if less[i] == "up1" || all[i] != "up1" && less[i] != all[i] {
			t.Fatalf("flow %d went from %s to %s", i, all[i], less[i])
		}
	}
	ndistest.Await(t, "announcement", func() bool { return changes(stack) == before+1 })
	if got := b.roles("wan", "active"); !slices.Equal(got, []string{"up0", "up2"}) {
		t.Errorf("active %v", got)
	}
	if calls := tr.Calls(); len(calls) > 0 {
		t.Errorf("called %v", calls)
	}

	// It is back, and has its flows back when it has been well for a while.
	ups[1].SetLink(true, "carrier")
	ndistest.Await(t, "link", func() bool { return ndistest.Info(t, b.core, "up1").Link.Connected() })
	if !slices.Equal(less, lanes(t, w, bd, ups, n, true)) {
		t.Error("flows moved before it had proven itself")
	}
	ndistest.Await(t, "its flows back", func() bool {
		clock.Advance(time.Second)
		return len(b.roles("wan", "active")) == 3
	})
	if !slices.Equal(all, lanes(t, w, bd, ups, n, true)) {
		t.Error("not as before")
	}

	// The first one goes, then all.
	hold := ups[0].Hold("Halt")
	b.must(ups[0].Remove("broken"))
	for i, m := range lanes(t, w, bd, ups, n, false) {
		if m == "up0" || all[i] != "up0" && m != all[i] {
			t.Fatalf("flow %d went from %s to %s", i, all[i], m)
		}
	}
	hold.Release()
	send(w, bd, true, ndistest.Frame(ndiscore.Broadcast, station(1), 1, 60))
	if f := ups[1].Sent(); !bytes.Equal(f[len(f)-1][:6], ndiscore.Broadcast[:]) {
		t.Error("the next one does not send group frames")
	}
	ups[1].SetLink(false, "x")
	ups[2].SetLink(false, "x")
	ndistest.Await(t, "nobody", func() bool { return b.active("wan") == "" })
	if got := send(w, bd, false, flow(1, 1), flow(2, 2)); got.Status[1] != ndiscore.DropNoMember {
		t.Errorf("%s", got.Status[1])
	}
	ndistest.Await(t, "link down", func() bool { return !ndistest.Info(t, b.core, "wan").Link.Connected() })
}

// What comes in, and what is our own come back.
func TestHashReceive(t *testing.T) {
	b, ups, stack, clock := hashBench(t, 3, ndistest.AdapterOptions{}, nil)
	w, bd := b.worker("test"), stack.Binding("wan")
	dropped := func(u *ndistest.Adapter, reason string) uint64 { return b.counters(u.Name()).RxDropped[reason] }
	for i, u := range ups {
		b.must(u.Inject(ndistest.Frame(macB, macA, 1, 60), ndistest.Frame(ndiscore.Broadcast, macA, 2, 60)))
		want := 2
		if i > 0 {
			want = 1
		}
		if c := b.counters(u.Name()); c.Delivered != uint64(want) || c.RxDropped["inactive-member"] != uint64(2-want) {
			t.Errorf("%s: %+v", u.Name(), c)
		}
	}
	// A switch floods to the others what it does not know the way for.
	out := flow(1, 1)
	send(w, bd, true, out)
	for _, u := range ups {
		before := stack.Received()
		b.must(u.Inject(out, ndistest.Frame(macA, macB, 2, 60)))
		if stack.Received() != before || dropped(u, "reflection") != 2 {
			t.Errorf("%s: %d taken, %d dropped", u.Name(), stack.Received()-before, dropped(u, "reflection"))
		}
	}
	// The station has moved to the other side.
	ndistest.Await(t, "it is forgotten", func() bool {
		clock.Advance(time.Second)
		before := stack.Received()
		b.must(ups[2].Inject(ndistest.Frame(macB, station(1), 1, 60)))
		return stack.Received() > before
	})
	// One that carries nothing takes nothing.
	ups[1].SetLink(false, "x")
	b.must(ups[1].Inject(ndistest.Frame(macB, macA, 1, 60)))
	if c := b.counters("up1"); c.RxDropped["inactive-member"] != 2 {
		t.Errorf("%+v", c)
	}
}

// The far end is a static link aggregate: it sends each frame by one link, any.
func TestHashLAG(t *testing.T) {
	b, ups, stack, _ := hashBench(t, 2, ndistest.AdapterOptions{KeepReceives: true}, func(s *ndiscore.BundleSpec) { s.LAG = true })
	ups[1].SetLink(false, "x")
	ndistest.Await(t, "one left", func() bool { return len(b.roles("wan", "active")) == 1 })
	for _, u := range ups { // also on one that we do not trust yet
		b.must(u.Inject(ndistest.Frame(ndiscore.Broadcast, macA, 2, 60), ndistest.Frame(macB, macA, 1, 60)))
		if c := b.counters(u.Name()); c.Delivered != 2 {
			t.Errorf("%s: %+v", u.Name(), c)
		}
	}
	if stack.Received() != 4 {
		t.Errorf("received %d", stack.Received())
	}
	b, ups, stack, _ = hashBench(t, 2, ndistest.AdapterOptions{}, func(s *ndiscore.BundleSpec) { s.LAG = true })
	w, bd := b.worker("test"), stack.Binding("wan")
	for i := range 100 {
		send(w, bd, true, ndistest.Frame(ndiscore.Broadcast, station(i), uint32(i), 60))
	}
	for _, u := range ups {
		if n := len(u.Sent()); n < 20 {
			t.Errorf("%s sent %d group frames of 100", u.Name(), n)
		}
	}
}

// A member that is taken away in good order is left first, and what is under way
// to it still taken.
func TestHashPlannedRemoval(t *testing.T) {
	b, ups, stack, clock := hashBench(t, 3, ndistest.AdapterOptions{}, nil)
	w, bd := b.worker("test"), stack.Binding("wan")
	all := lanes(t, w, bd, ups, 100, true)
	done := make(chan error, 1)
	go func() { done <- b.core.Remove(b.ctx(), "up1", "test") }() // ended below
	ndistest.Await(t, "it is left", func() bool { return len(b.roles("wan", "active")) == 2 })
	for i, m := range lanes(t, w, bd, ups, 100, true) {
		if m == "up1" || all[i] != "up1" && m != all[i] {
			t.Fatalf("flow %d went from %s to %s", i, all[i], m)
		}
	}
	before := stack.Received()
	b.must(ups[1].Inject(ndistest.Frame(macB, macA, 1, 60)))
	if stack.Received() != before+1 {
		t.Error("what was under way is lost")
	}
	ndistest.Await(t, "removed", func() bool {
		clock.Advance(time.Second)
		select {
		case err := <-done:
			b.must(err)
			return true
		default:
			return false
		}
	})
}

// A link that is down shorter than down_delay keeps its flows (C-60).
func TestC60HashDownDelay(t *testing.T) {
	b, ups, stack, clock := hashBench(t, 2, ndistest.AdapterOptions{}, func(s *ndiscore.BundleSpec) { s.DownDelay = time.Minute })
	w, bd := b.worker("test"), stack.Binding("wan")
	all := lanes(t, w, bd, ups, 100, true)
	ups[1].SetLink(false, "x")
	ndistest.Await(t, "link", func() bool { return !ndistest.Info(t, b.core, "up1").Link.Connected() })
	if !slices.Equal(all, lanes(t, w, bd, ups, 100, true)) {
		t.Error("flows moved")
	}
	ndistest.Await(t, "left", func() bool {
		clock.Advance(30 * time.Second)
		return len(b.roles("wan", "active")) == 1
	})
	if got := lanes(t, w, bd, ups, 100, true); slices.Contains(got, "up1") {
		t.Error("flows stayed")
	}
	// One that is closed carries nothing, whatever the delay.
	ups[1].SetLink(true, "x")
	ndistest.Await(t, "back", func() bool {
		clock.Advance(time.Second)
		return len(b.roles("wan", "active")) == 2
	})
	hold := ups[0].Hold("Halt")
	b.must(ups[0].Remove("broken"))
	lanes(t, w, bd, ups, 100, true)
	hold.Release()
}

// Full traffic from several workers, while members come and go in every way.
// Each flow stays in order on its way out, and nothing is lost but on the member
// that fails.
func TestHashStress(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	var ups []*ndistest.Adapter
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprint("up", i))
		ups = append(ups, nic(names[i], ndistest.AdapterOptions{Forget: true, Device: i%2 == 0}))
	}
	b := newBench(t, ndiscore.Options{Decider: policy.ActiveBackup{}, CallLimit: 15 * time.Second}, ups...)
	stack := ndistest.NewProtocol("stack", nil)
	stack.Forget = true
	b.protocol(stack, "wan")
	for _, n := range names {
		b.add(n)
	}
	spec := ndiscore.BundleSpec{Name: "wan", Members: names, MAC: macB, Balance: ndiscore.BalanceHash}
	b.must(b.core.AddBundle(b.ctx(), spec))
	b.start(names...)
	b.start("wan")
	stop := make(chan struct{})
	time.AfterFunc(*stressFor, func() { close(stop) })
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	var wg sync.WaitGroup
	for k := range 2 {
		w := b.worker(fmt.Sprint("sender", k))
		wg.Go(func() {
			for n := 0; running(); n++ {
				fs := make([][]byte, 1+n%ndiscore.BatchFrames)
				for i := range fs {
					fs[i] = flow(n*7+i, uint32(n))
				}
				got := send(w, stack.Binding("wan"), n%3 != 0, fs...)
				for i := range fs {
					switch got.Status[i] {
					case ndiscore.DropNone, ndiscore.DropPaused, ndiscore.DropSurpriseRemoved, ndiscore.DropNoMember, ndiscore.DropLowPower:
					default:
						t.Errorf("%s", got.Status[i])
					}
				}
			}
		})
	}
	for k, u := range ups {
		wg.Go(func() {
			for n := 0; running(); n++ {
				_ = u.Inject(ndistest.Frame(macB, station(n), 1, 60), ndistest.Frame(ndiscore.Broadcast, macA, 2, 60), ndistest.Frame(macB, macA, 3, 60))
			}
		})
		if k == 0 {
			continue // so that there is always one
		}
		wg.Go(func() {
			for n := k; running(); n++ {
				switch n % 7 {
				case 0:
					_ = u.Do(func(*ndiscore.Worker) { u.SetLink(false, "stress") })
				case 1:
					_ = u.Remove("stress")
				case 2:
					_ = b.core.Suspend(b.ctx(), u.Name(), "stress")
				case 3:
					_ = b.core.Resume(b.ctx(), u.Name(), "stress")
				case 4:
					_ = b.core.Start(b.ctx(), u.Name(), "stress")
					_ = u.Do(func(*ndiscore.Worker) { u.SetLink(true, "stress") })
				case 5:
					_ = b.core.Promote(b.ctx(), "wan", u.Name())
				case 6:
					s := spec
					s.Members = slices.DeleteFunc(slices.Clone(names), func(m string) bool { return n%2 == 0 && m == u.Name() })
					if n%5 == 0 {
						s.Balance = ndiscore.BalanceActiveBackup
					}
					if err := b.core.UpdateBundle(b.ctx(), s); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	b.must(b.core.UpdateBundle(b.ctx(), spec))
	for _, u := range ups {
		u.SetLink(true, "calm")
		ndistest.Await(t, u.Name()+" runs", func() bool {
			_ = b.core.Resume(b.ctx(), u.Name(), "calm")
			_ = b.core.Start(b.ctx(), u.Name(), "calm")
			return b.state(u.Name()) == "running"
		})
	}
	ndistest.Await(t, "all carry", func() bool { return len(b.roles("wan", "active")) == len(ups) })
	infos, err := b.core.Adapters(b.ctx())
	b.must(err)
	for _, i := range infos {
		checkSums(t, i)
	}
}
