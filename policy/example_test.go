package policy_test

import (
	"fmt"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/policy"
)

func ExampleActiveBackup() {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	d := policy.ActiveBackup{}.Decide(ndiscore.BundleView{
		Name: "wan", Now: now, Active: 1, Hold: 30 * time.Second, NeedProof: true,
		Members: []ndiscore.MemberView{
			{Name: "fibre", Running: true, Link: ndiscore.LinkState{Media: ndiscore.MediaConnected}, Since: now.Add(-10 * time.Second)},
			{Name: "radio", Running: true, Link: ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "carrier lost"}, Since: now},
		},
	})
	fmt.Println(d.Active, d.Verdicts)
	fmt.Println(d.Why)
	// Output:
	// 0 [up down]
	// radio link disconnected (carrier lost); nothing better is left than fibre link connected for 10s
}
