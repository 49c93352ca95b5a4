package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
)

// A program builds two hosts with a wire between them, cuts the wire under traffic, and tells what it cost.
func Example() {
	inside, code, err := lab.Enter(lab.SandboxOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // says what to do about it
		os.Exit(1)
	}
	if !inside {
		os.Exit(code) // the run inside has done everything
	}
	if err := cutUnderTraffic(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func cutUnderTraffic(ctx context.Context) error {
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer l.Close()

	a, b := l.Host("a"), l.Host("b")
	wire, err := l.Wire(a, "eth0", b, "eth0", lab.VethOptions{})
	if err != nil {
		return err
	}
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	if err := l.Err(); err != nil { // the first thing that went wrong so far
		return err
	}

	flow, err := a.StartUDPFlow(ctx, b, netip.MustParseAddr("10.0.0.2"), lab.UDPFlowOptions{Rate: 1000})
	if err != nil {
		return err
	}
	if err := wire.Cut(lab.EndB); err != nil {
		return err
	}
	if err := wire.Restore(lab.EndB); err != nil {
		return err
	}
	if err := b.AddAddr("eth0", "10.0.0.2/24"); err != nil {
		return err
	}
	if err := a.WaitReachable(ctx, netip.MustParseAddr("10.0.0.2")); err != nil {
		return err
	}
	cost := flow.Snapshot(ctx)
	fmt.Printf("lost %d of %d, silent for %v\n", cost.AtoB.Lost, cost.AtoB.Sent, cost.AtoB.LongestGap.Round(time.Millisecond))
	return nil
}

// TestExample keeps the example true.
func TestExample(t *testing.T) {
	lab.Need(t)
	lab.CheckLeaks(t)
	if err := cutUnderTraffic(t.Context()); err != nil {
		t.Error(err)
	}
}

// A package whose tests use namespaces has this TestMain, and each such test starts with NewTest or Need.
func ExampleMain() {
	TestMain := func(m *testing.M) { lab.Main(m) }
	_ = TestMain
}

// A bulk stream over a path that is then broken: did the connection live, and how long did it stand still?
func ExampleHost_StartTCPBulk() {
	survives := func(ctx context.Context, a, b *lab.Host, breakPath func() error) error {
		bulk, err := a.StartTCPBulk(ctx, b, netip.MustParseAddr("10.0.0.2"), lab.TCPBulkOptions{Rate: 10 << 20})
		if err != nil {
			return err
		}
		if err := breakPath(); err != nil {
			return err
		}
		total, err := bulk.Stop(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%d bytes, longest stall %v, %d segments sent again\n",
			total.AtoB.Received, total.AtoB.LongestStall, total.AtoB.Retransmits)
		return nil
	}
	_ = survives
}
