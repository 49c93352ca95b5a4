// Bench measures the switch side by side with the kernel: the same two
// namespaces, the same traffic, round by round in one run, printed as ratios.
//
//	          +-- kernel bridge ----------------+
//	          +-- vswitch bridge on AF_PACKET --+
//	a  -------+-- vswitch bridge on TAP --------+-------  b
//	          +-- … with VLANs, two queues -----+
//	          +-- kernel router ----------------+
//	          +-- vswitch router on AF_PACKET --+
//	          +-- … that masquerades -----------+
//
// The switch runs as the program that users run, in a process of its own. It
// needs no root and no tool: `make bench`. Absolute figures of a shared machine
// mean little; the ratios of one run mean something. With -against another build
// of the switch runs beside it and is measured in the same rounds:
// `make bench-compare REF=v0.1.0`.
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
	against := flag.String("against", "", "path of another build of vswitch, to measure in the same rounds")
	flag.Parse()
	runtime.LockOSThread() // the switch is to die with this process, not with one of its threads
	inside, code, err := lab.Enter(lab.SandboxOptions{})
	if err == nil && !inside {
		os.Exit(code)
	}
	if err == nil {
		err = run(*rounds, *duration, *pings, *only, *against)
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
	before   *path  // the same row of the other build, nil without one
	dst      netip.Addr
	floor    float64 // least ratio of TCP throughput that the project promises, 0 for none
	ceiling  float64 // greatest ratio of the median round trip, 0 for none

	gbit, p50 []float64 // one per round
}

// config is what each build of the switch is measured with; {s} tells apart what
// belongs to which.
const config = `
[control]
socket = "{dir}/control{s}.sock"
[adapter.af0{s}]
driver = "afpacket"
[adapter.af1{s}]
driver = "afpacket"
[adapter.tap0{s}]
driver = "tap"
netns = "{a}"
[adapter.tap1{s}]
driver = "tap"
netns = "{b}"
[adapter.r0{s}]
driver = "afpacket"
[adapter.r1{s}]
driver = "afpacket"
[bridge.af]
ports = ["af0{s}", "af1{s}"]
[bridge.tap]
ports = ["tap0{s}", "tap1{s}"]
[interface.left]
on = "r0{s}"
addresses = ["10.5.1{n}.1/24"]
[interface.right]
on = "r1{s}"
addresses = ["10.5.2{n}.1/24"]
`

// newer is what is measured when this build is measured alone: another one may not
// know it.
const newer = `
[adapter.v0]
driver = "afpacket"
[adapter.v1]
driver = "afpacket"
[bridge.vlan]
ports = ["v0", "v1"]
vlan = 1
[bridge.vlan.port.v0]
access = 10
[bridge.vlan.port.v1]
access = 10
[adapter.q0]
driver = "afpacket"
queues = 2
[adapter.q1]
driver = "afpacket"
queues = 2
[bridge.queues]
ports = ["q0", "q1"]
[adapter.n0]
driver = "afpacket"
[adapter.n1]
driver = "afpacket"
[interface.inside]
on = "n0"
addresses = ["10.6.1.1/24"]
[interface.outside]
on = "n1"
addresses = ["10.6.2.1/24"]
masquerade = true
`

// hosts are where the traffic begins and ends, and the program's own namespace.
type hosts struct {
	l          *lab.Lab
	here, a, b *lab.Host
}

// link joins a and b to the switch, by names that begin with name.
func (h *hosts) link(name, s string) error {
	return errors.Join(
		h.l.Veth(h.a, name+s, h.here, name+"0"+s, lab.VethOptions{}),
		h.l.Veth(h.b, name+s, h.here, name+"1"+s, lab.VethOptions{}))
}

// number gives a and b addresses in one network.
func (h *hosts) number(aName, bName, prefix string) error {
	return errors.Join(h.a.AddAddr(aName, prefix+".1/24"), h.b.AddAddr(bName, prefix+".2/24"))
}

// route gives a and b addresses in two networks with a router between them, whom
// b knows only if it is to.
func (h *hosts) route(aName, bName, left, right string, back bool) error {
	err := errors.Join(h.a.AddAddr(aName, left+".2/24"), h.b.AddAddr(bName, right+".2/24"), h.a.Route(right+".0/24", left+".1"))
	if back {
		err = errors.Join(err, h.b.Route(left+".0/24", right+".1"))
	}
	return err
}

// build makes the links of one build of the switch, starts it and returns its
// rows.
func (h *hosts) build(ctx context.Context, dir, binary, s, n, more string) (rows []*path, stop func() error, err error) {
	left, right := "10.5.1"+n, "10.5.2"+n
	err = errors.Join(h.link("af", s), h.link("r", s), h.number("af"+s, "af"+s, "10.2."+n), h.route("r"+s, "r"+s, left, right, true))
	if err != nil {
		return nil, nil, err
	}
	text := strings.NewReplacer("{dir}", dir, "{s}", s, "{n}", n, "{a}", procPath(h.a), "{b}", procPath(h.b)).Replace(config + more)
	if stop, err = startSwitch(ctx, dir, binary, s, text); err != nil {
		return nil, nil, err
	}
	ip := netip.MustParseAddr
	rows = []*path{
		{name: "vswitch bridge, AF_PACKET", baseline: "kernel bridge", dst: ip("10.2." + n + ".2"), floor: 0.5, ceiling: 1.5},
		{name: "vswitch bridge, TAP", baseline: "kernel bridge", dst: ip("10.3." + n + ".2"), floor: 0.5, ceiling: 1.5},
		{name: "vswitch router, AF_PACKET", baseline: "kernel router", dst: ip(right + ".2"), floor: 0.3},
	}
	return rows, stop, h.number("tap0"+s, "tap1"+s, "10.3."+n)
}

func run(rounds int, duration time.Duration, pings int, only, against string) (err error) {
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
	h := &hosts{l, l.Here(), l.Host("a"), l.Host("b")}
	a, b := h.a, h.b
	kb, kr := l.Host("kernel-bridge"), l.Host("kernel-router")
	none := lab.VethOptions{}
	err = errors.Join(
		l.Veth(a, "kb", kb, "p0", none), l.Veth(b, "kb", kb, "p1", none), l.Bridge(kb, "br", "p0", "p1"), h.number("kb", "kb", "10.1.0"),
		l.Veth(a, "kr", kr, "p0", none), l.Veth(b, "kr", kr, "p1", none), kr.Forwarding(true),
		kr.AddAddr("p0", "10.4.1.1/24"), kr.AddAddr("p1", "10.4.2.1/24"), h.route("kr", "kr", "10.4.1", "10.4.2", true),
		h.link("v", ""), h.number("v", "v", "10.7.0"), h.link("q", ""), h.number("q", "q", "10.8.0"),
		h.link("n", ""), h.route("n", "n", "10.6.1", "10.6.2", false))
	if err != nil {
		return err
	}
	binary := filepath.Join(dir, "vswitch")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/seed-b14e907b/vswitch/cmd/vswitch")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build vswitch: %w", err)
	}
	more := newer
	if against != "" {
		more = "" // two builds are compared with the same configuration
	}
	rows, stop, err := h.build(ctx, dir, binary, "", "0", more)
	if stop != nil {
		defer func() { err = errors.Join(err, stop()) }()
	}
	if err != nil {
		return err
	}
	var before []*path
	if against != "" {
		var stop func() error
		before, stop, err = h.build(ctx, dir, against, "x", "1", "")
		if stop != nil {
			defer func() { err = errors.Join(err, stop()) }()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", against, err)
		}
		for i, p := range before {
			p.name, p.floor, p.ceiling = "before: "+strings.TrimPrefix(p.name, "vswitch "), 0, 0
			rows[i].before = p
		}
	}

	ip := netip.MustParseAddr
	paths := []*path{
		{name: "kernel bridge", dst: ip("10.1.0.2")},
		rows[0], rows[1],
		{name: "vswitch bridge, VLANs", baseline: "kernel bridge", dst: ip("10.7.0.2"), floor: 0.5, ceiling: 1.5},
		{name: "vswitch bridge, two queues", baseline: "kernel bridge", dst: ip("10.8.0.2")},
		{name: "kernel router", dst: ip("10.4.2.2")},
		rows[2],
		{name: "vswitch router, masquerade", baseline: "kernel router", dst: ip("10.6.2.2")},
	}
	if against != "" {
		paths = slices.DeleteFunc(paths, func(p *path) bool { return p.baseline != "" && !slices.Contains(rows, p) })
	}
	for _, p := range before { // each behind its newer one
		at := slices.IndexFunc(paths, func(q *path) bool { return q.before == p })
		paths = slices.Insert(paths, at+1, p)
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
		if q := p.before; q != nil && len(q.gbit) > 0 {
			now, late := ratios(p.gbit, q.gbit), ratios(p.p50, q.p50)
			fmt.Printf("  to before: TCP %.2f (%s), RTT %.2f (%s)", median(now), spread(now), median(late), spread(late))
		}
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

// startSwitch runs a build of the program, and waits until it says that it is
// ready. The function returned ends it and waits.
func startSwitch(ctx context.Context, dir, binary, s, text string) (stop func() error, err error) {
	file := filepath.Join(dir, "bench"+s+".toml")
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
