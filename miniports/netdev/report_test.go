package netdev_test

import (
	"sync"
	"testing"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var (
	up   = ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "up"}
	down = ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "down"}
)

func media(s []ndiscore.LinkState) (m string) {
	for _, l := range s {
		m += map[ndiscore.MediaState]string{ndiscore.MediaConnected: "+", ndiscore.MediaDisconnected: "-"}[l.Media]
	}
	return m
}

func TestLinkReporter(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(r *netdev.LinkReporter)
		want string
	}{
		{"each change once", func(r *netdev.LinkReporter) {
			r.Observed(up)
			r.Observed(down)
			r.Observed(down)
			r.Observed(up)
		}, "-+"},
		{"a refused send is believed", func(r *netdev.LinkReporter) {
			r.Refused(r.Seen(), "EIO")
			r.Refused(r.Seen(), "EIO")
			r.Observed(down)
			r.Observed(up)
		}, "-+"},
		{"unless the watcher has spoken since", func(r *netdev.LinkReporter) {
			mark := r.Seen()
			r.Observed(down)
			r.Observed(up)
			r.Refused(mark, "EIO")
		}, "-+"},
		{"nothing after Close", func(r *netdev.LinkReporter) {
			r.Close()
			r.Observed(down)
			r.Refused(r.Seen(), "EIO")
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := netdevtest.NewHandle("x", nil)
			var r netdev.LinkReporter
			r.Open(h, up)
			c.do(&r)
			if got := media(h.Statuses()); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
		})
	}
}

// Whatever happens at once, the last word told is the last one observed.
func TestLinkReporterOrder(t *testing.T) {
	h := netdevtest.NewHandle("x", nil)
	var r netdev.LinkReporter
	r.Open(h, up)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				r.Refused(r.Seen(), "EIO")
			}
		})
	}
	for range 1000 {
		r.Observed(down)
		r.Observed(up)
	}
	wg.Wait()
	r.Observed(up)
	all := h.Statuses()
	for i := 1; i < len(all); i++ {
		if all[i].Media == all[i-1].Media {
			t.Fatal("the same state told twice")
		}
	}
	if len(all) > 0 && all[len(all)-1].Media != ndiscore.MediaConnected {
		t.Error("the last state told is not the last one observed")
	}
}
