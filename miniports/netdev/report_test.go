package netdev_test

import (
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var (
	up   = ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "up"}
	down = ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "down"}

	station = ndiscore.MAC{2, 0, 0, 0, 0, 1}
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
		{"what happens while it is held is told afterwards, once", func(r *netdev.LinkReporter) {
			r.Hold()
			r.Observed(down)
			r.Observed(up)
			r.Observed(down)
			r.Resume()
		}, "-"},
		{"nothing happened while it was held", func(r *netdev.LinkReporter) {
			r.Hold()
			r.Observed(down)
			r.Observed(up)
			r.Resume()
		}, ""},
		{"nothing after Close", func(r *netdev.LinkReporter) {
			r.Close()
			r.Observed(down)
			r.Refused(r.Seen(), "EIO")
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := netdevtest.NewHandle("x", nil)
			var r netdev.LinkReporter
			r.Open(h, up, station, 1500)
			c.do(&r)
			if got := media(h.Statuses()); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
		})
	}
}

// Only what has changed is in a change, and a change back while it is held is
// none.
func TestReporterAttributes(t *testing.T) {
	h := netdevtest.NewHandle("x", nil)
	var r netdev.LinkReporter
	r.Open(h, up, station, 1500)
	other := ndiscore.MAC{2, 0, 0, 0, 0, 2}
	r.Attributes(station, 1500, "same")
	r.Attributes(station, 9000, "MTU")
	r.Attributes(other, 9000, "MAC")
	r.Hold()
	r.Attributes(station, 9000, "asleep")
	r.Attributes(other, 9000, "asleep")
	r.Resume()
	r.Attributes(station, 1500, "both")
	r.Close()
	r.Attributes(station, 68, "closed")
	want := []ndiscore.AttributesChange{{MTU: 9000, Why: "MTU"}, {MAC: other, Why: "MAC"}, {MAC: station, MTU: 1500, Why: "both"}}
	if d := cmp.Diff(h.Attributes(), want); d != "" {
		t.Errorf("(-got +want)\n%s", d)
	}
	if r.MTU() != 68 {
		t.Errorf("MTU %d", r.MTU())
	}
}

// Whatever happens at once, the last word told is the last one observed.
func TestLinkReporterOrder(t *testing.T) {
	h := netdevtest.NewHandle("x", nil)
	var r netdev.LinkReporter
	r.Open(h, up, station, 1500)
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
