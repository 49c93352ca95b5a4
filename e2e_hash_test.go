package vswitch_test

import (
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func TestHashTeam(t *testing.T) {
	for name, above := range map[string]string{"router": uplinksRouter, "bridge": uplinksBridge} {
		t.Run(name, func(t *testing.T) {
			u := newUplinks(t, above, "balance = \"hash\"\n"+withProbe)
			_, err := u.sw.WaitEvent(within(t, 20*time.Second), 0, func(e ndiscore.Event) bool { return e.What == "bundle.active" && e.To == "up0 up1" })
			must(t, err)
			u.load(t)
			show := func() {
				infos, err := u.sw.Adapters(within(t, 20*time.Second))
				must(t, err)
				for _, i := range infos {
					t.Logf("%s rx %d tx %d dropped %v / %v", i.Name, i.Counters.RxFrames, i.Counters.TxFrames, i.Counters.RxDropped, i.Counters.TxDropped)
				}
			}
			show()
			u.phase(t, "carrier lost", "up1", lossCarrier, func() error { return u.wires[0].Unplug(lab.EndA) })
			u.phase(t, "carrier back", "up0 up1", lossPlanned, func() error { return u.wires[0].Plug(lab.EndA) })
			u.phase(t, "set down", "up0", lossFailure, func() error { return u.here.Down("up1") })
			u.phase(t, "set up", "up0 up1", lossPlanned, func() error { return u.here.Up("up1") })
			u.phase(t, "deleted", "up1", lossFailure, func() error { return u.wires[0].Cut(lab.EndA) })
			u.phase(t, "made again", "up0 up1", lossPlanned, func() error { return u.wires[0].Restore(lab.EndA) })
			u.phase(t, "removed by us", "up1", lossPlanned, func() error {
				return u.sw.Operate(within(t, 20*time.Second), control.OpRemove, "up0", "test", false)
			})
			show()
			u.end(t)
		})
	}
}
