package stack

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestZZStress(t *testing.T) {
	o := natOptions()
	o.NAT = NATLimits{Flows: 300, Fragments: 4}
	d := newBed(t, o, 1500, 1500)
	d.meet()
	for _, x := range []*memAdapter{d.a, d.b} {
		x.mu.Lock()
		x.drain = true
		x.mu.Unlock()
	}
	stop := time.Now().Add(6 * time.Second)
	var wg sync.WaitGroup
	for n, x := range []*memAdapter{d.a, d.b} {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for time.Now().Before(stop) {
				var fs []*ndiscore.Frame
				for range 32 {
					e := natVersions[[]string{"v4", "v6"}[r.IntN(2)]]
					port := func(s string) string { a := netip.MustParseAddrPort(s); return netip.AddrPortFrom(a.Addr(), uint16(1+r.IntN(400))).String() }
					var f *ndiscore.Frame
					switch {
					case n == 0 && r.IntN(2) == 0:
						f = talk(port(e.client), port(e.server), r.IntN(1400))
					case n == 0:
						f = talk(port(e.client), e.service, r.IntN(1400))
					default:
						f = talk(port(e.server), []string{port(e.public), e.service, port(e.client), port(e.server)}[r.IntN(4)], r.IntN(1400))
					}
					if r.IntN(4) == 0 {
						f = split(f, 60)
					}
					if r.IntN(8) == 0 {
						b := f.Head
						b[14+r.IntN(len(b)-14)] ^= byte(1 << r.IntN(8))
					}
					fs = append(fs, f)
				}
				x.inject(fs...)
			}
		})
	}
	wg.Go(func() {
		for i := 0; time.Now().Before(stop); i++ {
			o := natOptions()
			o.NAT = NATLimits{Flows: 100 + 100*(i%3), Fragments: 4}
			if i%2 == 0 {
				o.Interfaces[1].Masquerade = false
			}
			if i%3 == 0 {
				o.Forwards = nil
				o.Interfaces[1].Masquerade6 = false
			}
			if i%5 == 0 {
				o.Interfaces[0].Masquerade = true
			}
			if i%7 == 0 {
				o.Interfaces[1].Addresses = prefixes("10.2.0.7/24", "fd02::1/64")
			}
			if err := d.router.Apply(t.Context(), o); err != nil {
				t.Error(err, i)
			}
			time.Sleep(30 * time.Millisecond)
		}
	})
	wg.Go(func() {
		for time.Now().Before(stop) {
			_, _ = d.router.FlushNAT(NATFilter{Address: netip.MustParsePrefix("10.1.0.0/16")}, "x")
			_, _ = d.router.NATFlows(NATFilter{}, 0)
			d.router.nat.Tick(time.Now())
			d.router.Stats()
			time.Sleep(10 * time.Millisecond)
		}
	})
	wg.Wait()
	for _, n := range []string{"a", "b"} {
		all, _ := d.core.Adapters(t.Context())
		for _, i := range all {
			if i.Name != n {
				continue
			}
			c := i.Counters
			sum := c.Forwarded + c.Delivered + c.RxHeld
			for _, n := range c.RxDropped {
				sum += n
			}
			fmt.Println(n, c.RxFrames, sum, c.RxDropped, c.TxFrames, c.TxDropped)
			if sum != c.RxFrames {
				t.Error("unbalanced")
			}
		}
	}
	fmt.Println(d.router.Stats())
}
