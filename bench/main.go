// Bench measures the switch side by side with the kernel: the same two
// namespaces, the same traffic, round by round in one run, printed as ratios.
//
//	          +-- kernel bridge ----------------+
//	          +-- vswitch bridge on AF_PACKET --+
//	a  -------+-- vswitch bridge on TAP --------+-------  b
//	          +-- kernel router ----------------+
//	          +-- vswitch router on AF_PACKET --+
//
// The switch runs as the program that users run, in a process of its own. It
// needs no root and no tool: `make bench`. Absolute figures of a shared machine
// mean little; the ratios of one run mean something.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
)

func main() {
	rounds := flag.Int("rounds", 5, "rounds over all paths")
	duration := flag.Duration("time", 2*time.Second, "of each TCP measurement")
	pings := flag.Int("pings", 4000, "round trips of each latency measurement")
	only := flag.String("only", "", "measure only the rows whose name contains this, and the kernel's")
	flag.Parse()
	runtime.LockOSThread() // the switch is to die with this process, not with one of its threads
	inside, code, err := lab.Enter(lab.SandboxOptions{})
	if err == nil && !inside {
		os.Exit(code)
	}
	if err == nil {
		err = run(*rounds, *duration, *pings, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// path is one way from a to b.
type path struct {
	name     string
	baseline string // the row that it is compared with; "" for the kernel's own
	dst      netip.Addr
	floor    float64 // least ratio of TCP throughput that the project promises, 0 for none
	ceiling  float64 // greatest ratio of the median round trip, 0 for none

	gbit, p50 []float64 // one per round
}

const config = `
[control]
socket = "%[1]s/control.sock"
[adapter.af0]
driver = "afpacket"
[adapter.af1]
driver = "afpacket"
[adapter.tap0]
driver = "tap"
netns = "%[2]s"
[adapter.tap1]
driver = "tap"
netns = "%[3]s"
[adapter.r0]
driver = "afpacket"
[adapter.r1]
driver = "afpacket"
[bridge.af]
ports = ["af0", "af1"]
[bridge.tap]
ports = ["tap0", "tap1"]
[interface.left]
on = "r0"
addresses = ["10.5.1.1/24"]
[interface.right]
on = "r1"
addresses = ["10.5.2.1/24"]
`

func run(rounds int, duration time.Duration, pings int, only string) (err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "vswitch-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	here, a, b := l.Here(), l.Host("a"), l.Host("b")
	kb, kr := l.Host("kernel-bridge"), l.Host("kernel-router")
	none := lab.VethOptions{}
	for _, e := range []error{
		l.Veth(a, "kb", kb, "p0", none), l.Veth(b, "kb", kb, "p1", none), l.Bridge(kb, "br", "p0", "p1"),
		l.Veth(a, "kr", kr, "p0", none), l.Veth(b, "kr", kr, "p1", none), kr.Forwarding(true),
		kr.AddAddr("p0", "10.4.1.1/24"), kr.AddAddr("p1", "10.4.2.1/24"),
		l.Veth(a, "af", here, "af0", none), l.Veth(b, "af", here, "af1", none),
		l.Veth(a, "r", here, "r0", none), l.Veth(b, "r", here, "r1", none),
		a.AddAddr("kb", "10.1.0.1/24"), b.AddAddr("kb", "10.1.0.2/24"),
		a.AddAddr("af", "10.2.0.1/24"), b.AddAddr("af", "10.2.0.2/24"),
		a.AddAddr("kr", "10.4.1.2/24"), b.AddAddr("kr", "10.4.2.2/24"), a.Route("10.4.2.0/24", "10.4.1.1"), b.Route("10.4.1.0/24", "10.4.2.1"),
		a.AddAddr("r", "10.5.1.2/24"), b.AddAddr("r", "10.5.2.2/24"), a.Route("10.5.2.0/24", "10.5.1.1"), b.Route("10.5.1.0/24", "10.5.2.1"),
	} {
		if e != nil {
			return e
		}
	}
	stop, err := startSwitch(ctx, dir, fmt.Sprintf(config, dir, procPath(a), procPath(b)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := errors.Join(a.AddAddr("tap0", "10.3.0.1/24"), b.AddAddr("tap1", "10.3.0.2/24")); err != nil {
		return err
	}

	ip := netip.MustParseAddr
	paths := []*path{
		{name: "kernel bridge", dst: ip("10.1.0.2")},
		{name: "vswitch bridge, AF_PACKET", baseline: "kernel bridge", dst: ip("10.2.0.2"), floor: 0.5, ceiling: 1.5},
		{name: "vswitch bridge, TAP", baseline: "kernel bridge", dst: ip("10.3.0.2"), floor: 0.5, ceiling: 1.5},
		{name: "kernel router", dst: ip("10.4.2.2")},
		{name: "vswitch router, AF_PACKET", baseline: "kernel router", dst: ip("10.5.2.2"), floor: 0.3},
	}
	paths = slices.DeleteFunc(paths, func(p *path) bool { return p.baseline != "" && !strings.Contains(p.name, only) })
	for _, p := range paths {
		if err := a.WaitReachable(ctx, p.dst); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for r := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", r+1, rounds)
		for _, p := range paths {
			if err := p.measure(ctx, a, b, duration, pings); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	print(paths)
	return nil
}

// procPath is a namespace as another process of ours can open it.
func procPath(h *lab.Host) string {
	return strings.Replace(h.Path(), "/proc/self/", fmt.Sprintf("/proc/%d/", os.Getpid()), 1)
}

func (p *path) measure(ctx context.Context, a, b *lab.Host, d time.Duration, pings int) error {
	tcp, err := a.StartTCPBulk(ctx, b, p.dst, lab.TCPBulkOptions{})
	if err != nil {
		return err
	}
	t := time.NewTimer(d / 4) // let the window grow
	<-t.C
	tcp.Snapshot()
	t.Reset(d)
	<-t.C
	s := tcp.Snapshot()
	if _, err := tcp.Stop(ctx); err != nil {
		return err
	}
	p.gbit = append(p.gbit, float64(s.AtoB.Received)*8/1e9/s.Elapsed.Seconds())
	// As between two machines: each end on a CPU of its own, where there are two.
	o := lab.PingPongOptions{Count: pings}
	if runtime.NumCPU() > 1 {
		o.CPUs = [2]int{0, 1}
	}
	lat, err := a.PingPong(ctx, b, p.dst, o)
	if err != nil {
		return err
	}
	p.p50 = append(p.p50, float64(lat.P50.Nanoseconds())/1000)
	return nil
}

func print(paths []*path) {
	fmt.Printf("%-28s %12s %8s %22s %12s %8s %22s\n", "path", "TCP Gbit/s", "ratio", "rounds", "RTT p50 us", "ratio", "rounds")
	for _, p := range paths {
		var base *path
		for _, q := range paths {
			if q.name == p.baseline {
				base = q
			}
		}
		fmt.Printf("%-28s %12.2f", p.name, median(p.gbit))
		if base == nil {
			fmt.Printf(" %8s %22s %12.1f\n", "1", "", median(p.p50))
			continue
		}
		tcp, rtt := ratios(p.gbit, base.gbit), ratios(p.p50, base.p50)
		fmt.Printf(" %8.2f %22s %12.1f %8.2f %22s", median(tcp), spread(tcp), median(p.p50), median(rtt), spread(rtt))
		if p.floor > 0 && median(tcp) < p.floor {
			fmt.Printf("  TCP BELOW %.2f", p.floor)
		}
		if p.ceiling > 0 && median(rtt) > p.ceiling {
			fmt.Printf("  RTT ABOVE %.2f", p.ceiling)
		}
		fmt.Println()
	}
}

func ratios(xs, base []float64) []float64 {
	r := make([]float64, len(xs))
	for i := range xs {
		r[i] = xs[i] / base[i]
	}
	return r
}

func spread(xs []float64) string {
	return fmt.Sprintf("%.2f..%.2f", slices.Min(xs), slices.Max(xs))
}

func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Clone(xs)
	slices.Sort(s)
	return s[len(s)/2]
}

// startSwitch builds the program, runs it, and waits until it says that it is
// ready. The function returned ends it and waits.
func startSwitch(ctx context.Context, dir, text string) (stop func() error, err error) {
	binary := filepath.Join(dir, "vswitch")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/seed-b14e907b/vswitch/cmd/vswitch")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build vswitch: %w", err)
	}
	file := filepath.Join(dir, "bench.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "run", "--config", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = cmd.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan bool, 1)
	drained := make(chan struct{})
	go func() { // "switch output": ends with the switch
		defer close(drained)
		var said []string
		started := false
		sc := bufio.NewScanner(stderr)
		for sc.Scan() {
			if strings.HasPrefix(sc.Text(), "vswitch ready") {
				started = true
				ready <- true
			}
			if len(said) < 50 {
				said = append(said, sc.Text())
			}
		}
		if !started {
			fmt.Fprintln(os.Stderr, strings.Join(said, "\n"))
			ready <- false
		}
	}()
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-drained
		return cmd.Wait()
	}
	select {
	case ok := <-ready:
		if ok {
			return stop, nil
		}
		return nil, errors.Join(errors.New("the switch did not start"), cmd.Wait())
	case <-time.After(20 * time.Second):
		return nil, errors.Join(errors.New("the switch was not ready in 20 s"), stop())
	}
}
