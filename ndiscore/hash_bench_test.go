package ndiscore_test

import (
	"fmt"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// everyone is a decider by which every usable member carries flows.
type everyone struct{ plain }

func (e everyone) Decide(v ndiscore.BundleView) ndiscore.BundleDecision {
	d := e.plain.Decide(v)
	d.Carriers = append(d.Carriers, d.Successors...)
	if d.Active >= 0 {
		d.Carriers = append(d.Carriers, d.Active)
	}
	return d
}

// senders calls run with a function that sends a batch of n frames, each of
// another flow, into a bundle of members.
func senders(t testing.TB, mode ndiscore.BundleMode, balance ndiscore.Balance, members, n int, run func(once func())) {
	var as []ndiscore.Adapter
	var names []string
	for i := range members {
		names = append(names, fmt.Sprint("up", i))
		as = append(as, sink{nic(names[i], ndistest.AdapterOptions{})})
	}
	b := &bench{t: t, core: ndistest.NewCore(t, ndiscore.Options{Decider: everyone{}})}
	if _, err := b.core.RegisterDriver(ndistest.Driver("fake", as...)); err != nil {
		t.Fatal(err)
	}
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "wan")
	for _, n := range names {
		b.add(n)
	}
	b.must(b.core.AddBundle(b.ctx(), ndiscore.BundleSpec{Name: "wan", Mode: mode, Members: names, MAC: macB, Balance: balance}))
	b.start(names...)
	to := "up0"
	if mode == ndiscore.BundleTeam {
		b.start("wan")
		to = "wan"
	}
	ndistest.Await(t, "members", func() bool {
		return balance == ndiscore.BalanceActiveBackup || len(b.roles("wan", "active")) == members || len(b.roles("wan", "secondary")) == members-1
	})
	ndistest.Await(t, "bound", func() bool { bd := p.Binding(to); return bd != nil && bd.Usable() })
	w := b.worker("test")
	batch := ndiscore.NewBatch(w)
	batch.Borrowed = true
	for i := range n {
		// An IPv4 TCP segment of flow i.
		f := append(ndistest.Frame(macA, macB, 0, 18)[:12], 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, byte(i), 192, 0, 2, 1, byte(i), 9, 1, 187)
		f = append(f, make([]byte, 30)...)
		x := new(ndiscore.Frame)
		x.Reset(append(make([]byte, ndiscore.Headroom), f...), ndiscore.Headroom, len(f))
		batch.Append(x)
	}
	run(func() { p.Binding(to).Send(batch) })
}

var bundleKinds = []struct {
	mode    ndiscore.BundleMode
	balance ndiscore.Balance
	members int
}{
	{ndiscore.BundleTeam, ndiscore.BalanceActiveBackup, 2},
	{ndiscore.BundleTeam, ndiscore.BalanceHash, 2},
	{ndiscore.BundleTeam, ndiscore.BalanceHash, 4},
	{ndiscore.BundleNDIS5, ndiscore.BalanceActiveBackup, 2},
	{ndiscore.BundleNDIS5, ndiscore.BalanceHash, 4},
}

func TestBundlesDoNotAllocate(t *testing.T) {
	for _, k := range bundleKinds {
		for _, n := range []int{1, ndiscore.BatchFrames} {
			senders(t, k.mode, k.balance, k.members, n, func(once func()) {
				if allocs := testing.AllocsPerRun(200, once); allocs != 0 {
					t.Errorf("%s, %s, %d members: %v allocations for a batch of %d", k.mode, k.balance, k.members, allocs, n)
				}
			})
		}
	}
}

// BenchmarkBundle is the way of a batch from Binding.Send to the members.
func BenchmarkBundle(b *testing.B) {
	for _, k := range bundleKinds {
		for _, n := range []int{1, ndiscore.BatchFrames} {
			b.Run(fmt.Sprintf("%s/%s/members=%d/batch=%d", k.mode, k.balance, k.members, n), func(b *testing.B) {
				b.ReportAllocs()
				senders(b, k.mode, k.balance, k.members, n, func(once func()) {
					for b.Loop() {
						once()
					}
				})
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/frame")
			})
		}
	}
}
