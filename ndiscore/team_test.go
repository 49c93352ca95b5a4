package ndiscore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// teamBench is a team "wan" over fake adapters up0, up1, … with a protocol
// "stack" above it, all started.
func teamBench(t testing.TB, n int, o ndistest.AdapterOptions) (*bench, []*ndistest.Adapter, *ndistest.Protocol) {
	t.Helper()
	var ups []*ndistest.Adapter
	var names []string
	for i := range n {
		name := "up" + string(rune('0'+i))
		names = append(names, name)
		ups = append(ups, nic(name, o))
	}
	b := newBench(t, ndiscore.Options{Decider: plain{}}, ups...)
	stack := ndistest.NewProtocol("stack", o.Trace)
	b.protocol(stack, "wan")
	for _, n := range names {
		b.add(n)
	}
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: names, MAC: macB}))
	b.start(names...)
	b.start("wan")
	ndistest.Await(t, "up0 active", func() bool { return b.active("wan") == "up0" })
	if o.Trace != nil { // it comes last, and not in step with the operations
		o.Trace.Await(t, "stack.Event(BindsComplete)")
	}
	return b, ups, stack
}

// changes counts the network changes that a protocol was told of.
func changes(p *ndistest.Protocol) int {
	n := 0
	for _, s := range p.Statuses() {
		if _, ok := s.(ndiscore.NetworkChange); ok {
			n++
		}
	}
	return n
}

func TestC58FailoverOnStatus(t *testing.T) {
	var tr ndistest.Trace
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{Trace: &tr})
	b.must(ups[0].Inject(frame(1)))
	b.must(ups[1].Inject(frame(2))) // C-61: the standby's frames are dropped, and counted
	if stack.Received() != 1 {
		t.Errorf("received %d", stack.Received())
	}
	if c := b.counters("up1"); c.RxDropped["inactive-member"] != 1 {
		t.Errorf("%+v", c.RxDropped)
	}
	tr.Take()
	before := changes(stack)
	// On the receive goroutine: when the indication returns the team has moved.
	w := b.worker("test")
	b.must(ups[0].Do(func(*ndiscore.Worker) {
		ups[0].SetLink(false, "carrier lost")
		if got := send(w, stack.Binding("wan"), true, frame(3)); got.Status[0] != ndiscore.DropNone {
			t.Errorf("send right after the loss: %s", got.Status[0])
		}
	}))
	if len(ups[1].Sent()) != 1 {
		t.Errorf("up1 sent %d", len(ups[1].Sent()))
	}
	b.must(ups[1].Inject(frame(4)))
	if stack.Received() != 2 {
		t.Error("up1's frames are not taken")
	}
	ndistest.Await(t, "announcement", func() bool { return changes(stack) > before })
	if a := b.active("wan"); a != "up1" {
		t.Errorf("active %s", a)
	}
	if n := changes(stack) - before; n != 1 {
		t.Errorf("%d announcements", n)
	}
	for _, c := range tr.Calls() {
		if strings.HasPrefix(c, "stack.") {
			t.Errorf("stack saw %s", c)
		}
	}
	if got := b.events("bundle.active", "wan"); got[len(got)-1].From != "up0" || got[len(got)-1].To != "up1" {
		t.Errorf("%+v", got[len(got)-1])
	}
}

// A sender that finds the active member closed goes on with the next at once.
func TestC58C61FailoverOnSend(t *testing.T) {
	b, ups, stack := teamBench(t, 3, ndistest.AdapterOptions{})
	w := b.worker("test")
	hold := ups[0].Hold("Halt")
	b.must(ups[0].Remove("broken"))
	if got := send(w, stack.Binding("wan"), true, frame(1)); got.Status[0] != ndiscore.DropNone {
		t.Errorf("%s", got.Status[0])
	}
	if len(ups[1].Sent()) != 1 {
		t.Error("up1 did not send it")
	}
	b.must(ups[1].Remove("broken too"))
	if got := send(w, stack.Binding("wan"), true, frame(2)); got.Status[0] != ndiscore.DropNone || len(ups[2].Sent()) != 1 {
		t.Errorf("%s", got.Status[0])
	}
	b.must(ups[2].Remove("all broken"))
	if got := send(w, stack.Binding("wan"), true, frame(3)); got.Status[0] != ndiscore.DropNoMember && got.Status[0] != ndiscore.DropPaused {
		t.Errorf("%s", got.Status[0])
	}
	hold.Release()
	ndistest.Await(t, "no member", func() bool { return b.active("wan") == "" })
	if got := send(w, stack.Binding("wan"), true, frame(4)); got.Status[0] != ndiscore.DropNoMember {
		t.Errorf("%s", got.Status[0])
	}
	if s := b.state("wan"); s != "running" { // C-61
		t.Errorf("wan is %s", s)
	}
	ndistest.Await(t, "wan disconnected", func() bool { return !ndistest.Info(t, b.core, "wan").Link.Connected() })
	if !stack.Binding("wan").Usable() {
		t.Error("stack is not bound any more")
	}
	var last ndiscore.LinkState
	for _, s := range stack.Statuses() {
		if l, ok := s.(ndiscore.LinkState); ok {
			last = l
		}
	}
	if last.Connected() || last.Media == ndiscore.MediaUnknown {
		t.Errorf("stack heard %+v", last)
	}
	// The first to recover takes over.
	b.awaitState("up1", "halted")
	b.start("up1")
	ndistest.Await(t, "up1 active", func() bool { return b.active("wan") == "up1" })
	if got := send(w, stack.Binding("wan"), true, frame(5)); got.Status[0] != ndiscore.DropNone {
		t.Errorf("%s", got.Status[0])
	}
}

func TestC58SurpriseRemoval(t *testing.T) {
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{Device: true})
	w := b.worker("test")
	ups[0].Vanish("RTM_DELLINK")
	if got := send(w, stack.Binding("wan"), true, frame(1)); got.Status[0] != ndiscore.DropNone || len(ups[1].Sent()) != 1 {
		t.Errorf("%s", got.Status[0])
	}
	b.awaitState("up0", "halted")
	ups[0].Appear()
	b.awaitState("up0", "running")
	ndistest.Await(t, "back", func() bool { return b.active("wan") == "up0" }) // the plain decider goes back at once
}

// After a planned move what is still under way to the old member is taken, but
// neither group frames nor our own come back.
func TestC58Overlap(t *testing.T) {
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{})
	b.must(b.core.Promote(b.ctx(), "wan", "up1"))
	unicast := ndistest.Frame(macB, macA, 1, 60)
	group := ndistest.Frame(ndiscore.Broadcast, macA, 2, 60)
	own := ndistest.Frame(macA, macB, 3, 60)
	b.must(ups[0].Inject(unicast, group, own))
	c := b.counters("up0")
	if c.Delivered != 1 || c.RxDropped["inactive-member"] != 1 || c.RxDropped["reflection"] != 1 {
		t.Errorf("%+v", c)
	}
	if stack.Received() != 1 {
		t.Errorf("received %d", stack.Received())
	}
	ndistest.Await(t, "end of the overlap", func() bool {
		before := b.counters("up0").Delivered
		b.must(ups[0].Inject(unicast))
		return b.counters("up0").Delivered == before
	})
	if err := b.core.Promote(b.ctx(), "wan", "nobody"); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Error(err)
	}
	ups[1].SetLink(false, "x")
	ndistest.Await(t, "up0", func() bool { return b.active("wan") == "up0" })
	if err := b.core.Promote(b.ctx(), "wan", "up1"); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Error(err)
	}
}

// Kept batches pass a team both ways.
func TestTeamKept(t *testing.T) {
	b, ups, stack := teamBench(t, 2, ndistest.AdapterOptions{KeepReceives: true, KeepSends: true})
	stack.Keep = true
	b.must(ups[0].Inject(frame(1), frame(2)))
	b.must(ups[1].Inject(frame(3)))
	if stack.Received() != 2 || stack.Kept() != 0 {
		t.Errorf("received %d, kept %d", stack.Received(), stack.Kept())
	}
	for _, u := range ups {
		if out, back := u.Lent(); out != 0 || back != 1 {
			t.Errorf("%s: %d out, %d back", u.Name(), out, back)
		}
	}
	w := b.worker("test")
	got := send(w, stack.Binding("wan"), false, frame(4), frame(5))
	if stack.Completed() != 1 || got.Status[1] != ndiscore.DropNone || len(ups[0].Sent()) != 2 {
		t.Errorf("completed %d, status %v, sent %d", stack.Completed(), got.Status[:2], len(ups[0].Sent()))
	}
	ups[0].Refuse(ndiscore.DropTxQueueFull)
	got = send(w, stack.Binding("wan"), false, frame(6))
	if stack.Completed() != 2 || got.Status[0] != ndiscore.DropTxQueueFull {
		t.Errorf("completed %d, status %v", stack.Completed(), got.Status[:1])
	}
	for _, u := range ups {
		u.SetLink(false, "x")
	}
	ndistest.Await(t, "no member", func() bool { return b.active("wan") == "" })
	got = send(w, stack.Binding("wan"), false, frame(7))
	if stack.Completed() != 3 || got.Status[0] != ndiscore.DropNoMember {
		t.Errorf("completed %d, status %v", stack.Completed(), got.Status[:1])
	}
}

// A member whose miniport hangs in a call is not chosen.
func TestTeamQuarantinedMember(t *testing.T) {
	up0, up1 := nic("up0", ndistest.AdapterOptions{}), nic("up1", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{CallLimit: 300 * time.Millisecond, Decider: plain{}}, up0, up1)
	b.add("up0")
	b.add("up1")
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Members: []string{"up0", "up1"}, MAC: macB}))
	b.start("up0", "up1", "wan")
	ndistest.Await(t, "up0 active", func() bool { return b.active("wan") == "up0" })
	late := ndistest.NewProtocol("late", nil)
	hold := late.Hold("Bind")
	b.protocol(late, "up0")
	hold.Await(t)
	ndistest.Await(t, "up1 active", func() bool { return b.active("wan") == "up1" })
	hold.Release()
	t.Cleanup(up0.Abandon)
}

func ndis5Bench(t testing.TB, n int) (*bench, []*ndistest.Adapter, *ndistest.Protocol) {
	t.Helper()
	var ups []*ndistest.Adapter
	var names []string
	for i := range n {
		names = append(names, "up"+string(rune('0'+i)))
		ups = append(ups, nic(names[i], ndistest.AdapterOptions{Device: true}))
	}
	b := newBench(t, ndiscore.Options{CallLimit: 2 * time.Second}, ups...)
	stack := ndistest.NewProtocol("stack", nil)
	stack.Filter = ndiscore.FilterStation
	b.protocol(stack, "wan")
	for _, n := range names {
		b.add(n)
	}
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Mode: ndiscore.BundleNDIS5, Members: names}))
	b.start(names...)
	return b, ups, stack
}

func TestC52C53C55Secondary(t *testing.T) {
	b, ups, stack := ndis5Bench(t, 2)
	to := func(m ndiscore.MAC, id uint32) []byte { return ndistest.Frame(m, macA, id, 60) }
	// C-52: what a secondary receives for the primary arrives on its binding.
	b.must(ups[1].Inject(to(ups[0].MAC(), 1), to(ups[1].MAC(), 2)))
	if stack.Received() != 1 {
		t.Errorf("received %d", stack.Received())
	}
	if bd := stack.Binding("up0"); bd == nil || bd.Target() != "wan" {
		t.Errorf("binding %+v", bd)
	}
	if stack.Binding("up1") != nil {
		t.Error("bound to a secondary")
	}
	// C-53: OIDs reach the primary alone.
	if ups[0].PacketFilter() != ndiscore.FilterStation || ups[1].PacketFilter() != 0 {
		t.Errorf("filters %v, %v", ups[0].PacketFilter(), ups[1].PacketFilter())
	}
	// The core knows the links of both: each says so.
	ups[1].SetLink(false, "x")
	ndistest.Await(t, "up1 is known to have no link", func() bool {
		infos, err := b.core.Bundles(b.ctx())
		b.must(err)
		return infos[0].Members[0].Link.Connected() && !infos[0].Members[1].Link.Connected()
	})
	ups[1].SetLink(true, "x")
	// C-55: the primary goes; everything moves to the next one.
	ups[0].Vanish("gone")
	ndistest.Await(t, "bound to up1", func() bool { bd := stack.Binding("up1"); return bd != nil && bd.Usable() })
	if ups[1].PacketFilter() != ndiscore.FilterStation {
		t.Errorf("filter %v", ups[1].PacketFilter())
	}
	b.must(ups[1].Inject(to(ups[1].MAC(), 3)))
	if stack.Received() != 2 {
		t.Errorf("received %d", stack.Received())
	}
	// It comes back as a secondary.
	ups[0].Appear()
	b.awaitState("up0", "running")
	b.must(ups[0].Inject(to(ups[1].MAC(), 4)))
	if stack.Received() != 3 {
		t.Errorf("received %d: the old primary does not deliver to the new one", stack.Received())
	}
	// Removed and added again it is one too.
	b.must(b.core.Remove(b.ctx(), "up0", "test"))
	b.add("up0")
	b.start("up0")
	b.must(ups[0].Inject(to(ups[1].MAC(), 5)))
	if stack.Received() != 4 {
		t.Errorf("received %d: a member added again does not deliver", stack.Received())
	}
	if err := b.core.Promote(b.ctx(), "wan", "up0"); !errors.Is(err, ndiscore.ErrFailure) { // C-54
		t.Error(err)
	}
}

// A primary that hangs is as good as gone: protocols are unbound from it, without
// it being called, and bound to the next.
func TestNDIS5QuarantinedPrimary(t *testing.T) {
	_, ups, stack := ndis5Bench(t, 2)
	hold := ups[0].Hold("Pause")
	ups[0].Vanish("gone")
	ndistest.Await(t, "bound to up1", func() bool { bd := stack.Binding("up1"); return bd != nil && bd.Usable() })
	if stack.Binding("up0") != nil {
		t.Error("still bound to up0")
	}
	hold.Release()
	t.Cleanup(ups[0].Abandon)
}
