package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// watched is a veth pair, a's end followed by a watcher.
//
//	a [eth0]======[eth0] b
type watched struct {
	a, b *lab.Host
	ns   *netdev.Namespace
	w    *netdev.Watcher
	seen chan netdev.LinkInfo
	sub  *netdev.Subscription
}

func newWatched(t *testing.T, links *netdev.Watchers) *watched {
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	x := &watched{a: l.Host("a"), b: l.Host("b"), seen: make(chan netdev.LinkInfo, 10000)}
	l.Veth(x.a, "eth0", x.b, "eth0", lab.VethOptions{})
	var err error
	if x.ns, err = netdev.OpenNamespace(x.a.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.ns.Close)
	if x.w, err = links.Get(x.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.w.Release)
	if x.sub, err = x.w.Subscribe("eth0", func(i netdev.LinkInfo) { x.seen <- i }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.sub.Close)
	return x
}

// until takes what the watcher tells until want accepts it.
func (x *watched) until(t *testing.T, what string, want func(netdev.LinkInfo) bool) netdev.LinkInfo {
	t.Helper()
	limit := time.After(10 * time.Second)
	var all []netdev.LinkInfo
	for {
		select {
		case i := <-x.seen:
			if want(i) {
				return i
			}
			all = append(all, i)
		case <-limit:
			t.Fatalf("no %s; seen %+v", what, all)
		}
	}
}

func TestWatcherFollows(t *testing.T) {
	x := newWatched(t, new(netdev.Watchers))
	first := <-x.seen // told before Subscribe returned
	mac, _ := x.a.MAC("eth0")
	if !first.Up || !first.Running || first.Name != "eth0" || first.MTU != 1500 || first.Kind != "veth" || first.MAC != ndiscore.MAC(mac) {
		t.Errorf("at first %+v", first)
	}
	x.b.Down("eth0")
	x.until(t, "lost carrier", func(i netdev.LinkInfo) bool { return i.Up && !i.Running })
	x.b.Up("eth0")
	x.until(t, "carrier", func(i netdev.LinkInfo) bool { return i.Running })
	x.a.Down("eth0")
	x.until(t, "down", func(i netdev.LinkInfo) bool { return !i.Up && !i.Running })
	x.a.SetMTU("eth0", 9000)
	x.until(t, "MTU", func(i netdev.LinkInfo) bool { return i.MTU == 9000 })

	l, err := x.a.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := x.a.Netlink().LinkSetName(l, "other0"); err != nil {
		t.Fatal(err)
	}
	x.until(t, "new name", func(i netdev.LinkInfo) bool { return i.Name == "other0" && i.Index == first.Index })
	if _, ok, err := x.w.Lookup("eth0"); ok || err != nil {
		t.Errorf("the old name is still known (%v)", err)
	}
	if i, ok, err := x.w.Lookup("other0"); !ok || err != nil || i.Index != first.Index {
		t.Errorf("the new name gives %+v, %v", i, err)
	}
	x.a.Delete("other0")
	x.until(t, "deletion", func(i netdev.LinkInfo) bool { return i.Deleted && !i.Moved })
	if _, err := x.w.Subscribe("other0", func(netdev.LinkInfo) {}); !errors.Is(err, ndiscore.ErrDeviceAbsent) {
		t.Errorf("subscribing to what is gone: %v", err)
	}
}

// A port that leaves a bridge is announced by a "delete" of the bridge's kind.
func TestWatcherIgnoresBridgePorts(t *testing.T) {
	l := lab.NewTest(t)
	x := newWatched(t, new(netdev.Watchers))
	<-x.seen
	_ = l
	nl := x.a.Netlink()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := nl.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	port, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(nl.LinkSetMaster(port, br), nl.LinkSetNoMaster(port)); err != nil {
		t.Fatal(err)
	}
	x.a.Down("eth0")
	x.until(t, "down", func(i netdev.LinkInfo) bool {
		if i.Deleted {
			t.Error("a port that left a bridge was taken for a deleted link")
		}
		return !i.Up
	})
}

func TestWatcherTellsMoved(t *testing.T) {
	x := newWatched(t, new(netdev.Watchers))
	l := lab.NewTest(t)
	c := l.Host("c")
	moved, err := x.a.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func() error {
		ns, err := netdev.OpenNamespace("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		return x.a.Netlink().LinkSetNsFd(moved, ns.FD())
	})
	if err != nil {
		t.Fatal(err)
	}
	x.until(t, "move", func(i netdev.LinkInfo) bool { return i.Deleted && i.Moved })
}

func TestWatcherAwaits(t *testing.T) {
	x := newWatched(t, new(netdev.Watchers))
	named := func(n string) func(netdev.LinkInfo) bool {
		return func(i netdev.LinkInfo) bool { return i.Name == n }
	}
	if i, err := x.w.Await(t.Context(), named("eth0")); err != nil || i.Name != "eth0" {
		t.Errorf("one that is there: %+v, %v", i, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := x.w.Await(ctx, named("late0")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	found := make(chan error, 1)
	go func() {
		_, err := x.w.Await(t.Context(), named("late0"))
		found <- err
	}()
	if err := x.a.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "late0"}}); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
}

// While the goroutine is held up the kernel runs out of room and drops events.
// What was missed must come out by the dump that follows.
func TestWatcherAfterOverrun(t *testing.T) {
	x := newWatched(t, new(netdev.Watchers))
	for i := range 3 {
		name := fmt.Sprintf("br%d", i)
		if err := x.a.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	held, let := make(chan struct{}), make(chan struct{})
	first := true
	deleted := make(chan struct{})
	sub, err := x.w.Subscribe("br0", func(i netdev.LinkInfo) {
		switch {
		case first:
			first = false
		case i.Deleted:
			close(deleted)
		case i.Up:
			close(held)
			<-let
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	told := make(chan struct{}, 2)
	same, err := x.w.Subscribe("br2", func(netdev.LinkInfo) {
		select {
		case told <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	<-told
	x.a.Up("br0")
	<-held
	for mtu := range 2500 {
		x.a.SetMTU("eth0", 1501+mtu%1000)
	}
	x.a.SetMTU("eth0", 3333)
	x.a.Delete("br0")
	x.a.Delete("br1")
	close(let)
	x.until(t, "last MTU", func(i netdev.LinkInfo) bool { return i.MTU == 3333 })
	select {
	case <-deleted:
	case <-time.After(10 * time.Second):
		t.Error("the deletion that was lost was not told")
	}
	select {
	case <-told: // it may have changed and changed back
	case <-time.After(10 * time.Second):
		t.Error("nobody was told how br2 is after the loss")
	}
	for name, want := range map[string]bool{"br0": false, "br1": false, "br2": true, "eth0": true} {
		if _, ok, err := x.w.Lookup(name); ok != want || err != nil {
			t.Errorf("%s: known %v, want %v (%v)", name, ok, want, err)
		}
	}
	if n := x.w.Dumps(); n < 2 {
		t.Errorf("%d dumps: the events were not lost, so nothing was tested", n)
	}
}

func TestWatcherIsShared(t *testing.T) {
	links := new(netdev.Watchers)
	x := newWatched(t, links)
	again, err := links.Get(x.ns)
	if err != nil {
		t.Fatal(err)
	}
	if again != x.w {
		t.Error("a second watcher for the same namespace")
	}
	again.Release()
	if _, _, err := x.w.Lookup("eth0"); err != nil {
		t.Errorf("ended with one user left: %v", err)
	}
}

// From the return of the read that tells of a failure to the callback.
func BenchmarkWatcherEvent(b *testing.B) {
	l := lab.NewTest(b)
	a, o := l.Host("a"), l.Host("b")
	l.Veth(a, "eth0", o, "eth0", lab.VethOptions{})
	ns, err := netdev.OpenNamespace(a.Path())
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	w, err := new(netdev.Watchers).Get(ns)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Release()
	seen := make(chan netdev.LinkInfo, 16)
	sub, err := w.Subscribe("eth0", func(i netdev.LinkInfo) { seen <- i })
	if err != nil {
		b.Fatal(err)
	}
	defer sub.Close()
	<-seen
	mtu := 1500
	b.ReportAllocs()
	for b.Loop() {
		mtu ^= 1
		a.SetMTU("eth0", mtu)
		for i := range seen {
			if i.MTU == mtu {
				break
			}
		}
	}
}

// A watcher whose socket fails opens another one, and tells everybody that it
// knows nothing only when that takes long. What happened meanwhile comes out.
func TestWatcherHeals(t *testing.T) {
	x := newWatched(t, new(netdev.Watchers))
	<-x.seen
	broken := errors.New("broken on purpose")
	if err := netdev.Break(x.w, broken, 0); err != nil {
		t.Fatal(err)
	}
	x.a.SetMTU("eth0", 2000)
	x.until(t, "MTU after a failure", func(i netdev.LinkInfo) bool {
		if i.Lost != "" {
			t.Errorf("told that it is lost: %s", i.Lost)
		}
		return i.MTU == 2000
	})
	for round := range 2 {
		if err := netdev.Break(x.w, broken, 3); err != nil {
			t.Fatal(err)
		}
		x.until(t, "loss", func(i netdev.LinkInfo) bool { return i.Lost == broken.Error() && i.Up })
		if i, ok, err := x.w.Lookup("eth0"); err != nil || !ok || i.Lost == "" {
			t.Errorf("while it is lost: %+v, %v, %v", i, ok, err)
		}
		x.a.SetMTU("eth0", 3000+round)
		x.until(t, "return", func(i netdev.LinkInfo) bool { return i.Lost == "" && i.MTU == 3000+round })
	}
	if err := netdev.Break(x.w, broken, 3); err != nil {
		t.Fatal(err)
	}
	x.until(t, "loss", func(i netdev.LinkInfo) bool { return i.Lost != "" })
	x.a.Delete("eth0")
	x.until(t, "deletion that nobody told of", func(i netdev.LinkInfo) bool { return i.Deleted })
	// And one that never comes back ends when it is released.
	if err := netdev.Break(x.w, broken, 1<<30); err != nil {
		t.Fatal(err)
	}
}
