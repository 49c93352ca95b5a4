package health_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/seed-b14e907b/vswitch/health"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/policy"
)

func ExampleNew() {
	core := ndiscore.New(ndiscore.Options{Decider: policy.ActiveBackup{}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); _ = core.Run(ctx) }()

	gateway := netip.MustParseAddr("192.0.2.1")
	p, err := health.New(health.Options{Core: core, Identity: "this machine", Members: []health.Member{
		{Bundle: "wan", Adapter: "wan0", Target: gateway},
		{Bundle: "wan", Adapter: "wan1", Target: gateway},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := core.AddProtocol(ctx, p.Spec()); err != nil { // before the bundle
		fmt.Println(err)
	}
	fmt.Println(p.Spec().Targets)

	cancel()
	<-done
	p.Close()
	// Output: [wan0 wan1]
}
