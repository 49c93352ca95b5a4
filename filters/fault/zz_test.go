package fault_test

import (
	"sync"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
)

func TestZZInjectClear(t *testing.T) {
	r := newRig(t, nil, fault.Options{Allow: true})
	s, err := fault.ParseSpec("drop", "on=b", "chance=0")
	r.must(err)
	stop := time.Now().Add(8 * time.Second)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				_, _ = r.j.Inject(r.ctx(), s)
			}
		})
		wg.Go(func() {
			for time.Now().Before(stop) {
				_, _ = r.j.Clear(r.ctx(), fault.Selection{All: true}, "x")
			}
		})
	}
	wg.Wait()
}
