package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// The program as it is installed, in its own process:
//
//	host a [lan0]--TAP--+                                +--AF_PACKET--[up0]====[wan0] host c
//	                    +-- bridge lan, interface lan    +-- bundle wan, interface wan
//	host b [lan1]--TAP--+                                +--AF_PACKET--[up1]====[wan1] host c
//	10.7.1.2, .3            10.7.1.1                         10.7.2.1              10.7.2.2
const systemTOML = `
[adapter.lan0]
driver = "tap"
netns = %q
[adapter.lan1]
driver = "tap"
netns = %q
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"
[bridge.lan]
ports = ["lan0", "lan1"]
[bundle.wan]
members = ["up0", "up1"]
[interface.lan]
on = "lan"
addresses = ["10.7.1.1/24"]
[interface.wan]
on = "wan"
addresses = ["10.7.2.1/24"]
[[route]]
to = "default"
via = "10.7.2.2"
`

// program is the built binary and the socket of the switch that runs.
type program struct {
	path, socket string
	env          []string // more of it
}

func build(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "vswitch")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func (p program) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env = append(append(os.Environ(), "VSWITCH_SOCKET="+p.socket), p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs one command, which must end with code.
func (p program) run(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, talk bytes.Buffer
	cmd := p.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	} else if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("vswitch %s: exit code %d, want %d (%v)\n%s%s", strings.Join(args, " "), got, code, exit, out.String(), talk.String())
	}
	return out.String(), talk.String()
}

// ask runs a reading command with and without --json and reads the JSON into
// answer, which must have a place for everything. It returns what people get.
func (p program) ask(t *testing.T, answer any, args ...string) string {
	t.Helper()
	human, _ := p.run(t, exitOK, args...)
	if i := strings.IndexFunc(human, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
		t.Errorf("vswitch %s: not plain ASCII: %.20q", strings.Join(args, " "), human[i:])
	}
	// The flag stands before arguments: behind the words of the command.
	words := 2
	if len(args) == 1 {
		words = 1
	}
	asked, _ := p.run(t, exitOK, slices.Insert(slices.Clone(args), words, "--json")...)
	d := json.NewDecoder(strings.NewReader(asked))
	d.DisallowUnknownFields()
	if err := d.Decode(answer); err != nil {
		t.Errorf("vswitch %s --json: %v\n%s", strings.Join(args, " "), err, asked)
	}
	return human
}

func contains(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s: no %q in\n%s", what, w, text)
		}
	}
}

func linkNames(t *testing.T, h *lab.Host) (names []string) {
	t.Helper()
	err := h.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func needTAP(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if os.Getenv(lab.StrictEnv) == "1" {
		t.Fatalf("missing: TAP devices: %v (chmod 0666 /dev/net/tun)", err)
	}
	t.Skipf("missing: TAP devices: %v (chmod 0666 /dev/net/tun)", err)
}

// TestSystem runs the built program from start to end and uses every command.
func TestSystem(t *testing.T) {
	needTAP(t)
	lab.CheckLeaks(t)
	l := lab.NewTest(t)
	a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
	l.Veth(l.Here(), "up0", c, "wan0", lab.VethOptions{})
	l.Veth(l.Here(), "up1", c, "wan1", lab.VethOptions{})
	l.Bridge(c, "br0", "wan0", "wan1")
	c.AddAddr("br0", "10.7.2.2/24")
	c.Route("10.7.1.0/24", "10.7.2.1")

	dir := t.TempDir()
	p := program{path: build(t, dir), socket: filepath.Join(dir, "run", "control.sock")}
	file := filepath.Join(dir, "system.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, systemTOML, a.Path(), b.Path()), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := []*lab.Host{a, b, l.Here()}
	var before [][]string
	for _, h := range hosts {
		before = append(before, linkNames(t, h))
	}

	daemon := startDaemon(t, p, file)
	want := "vswitch ready: 4 adapters, 1 bundle, 1 bridge, 2 interfaces, 1 route; control on " + p.socket + "\n"
	if daemon.ready != want {
		t.Fatalf("ready: %q, want %q", daemon.ready, want)
	}
	followed := p.follow(t)

	// Traffic, so that there is something to see.
	a.AddAddr("lan0", "10.7.1.2/24")
	b.AddAddr("lan1", "10.7.1.3/24")
	a.Route("default", "10.7.1.1")
	for _, dst := range []string{"10.7.1.3", "10.7.1.1", "10.7.2.2"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r, err := a.Ping(ctx, netip.MustParseAddr(dst), lab.PingOptions{Count: 3})
		cancel()
		if err != nil || r.Err() != nil {
			t.Fatalf("ping %s: %v, %v", dst, err, r.Err())
		}
	}
	aMAC, err := a.MAC("lan0")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("read", func(t *testing.T) { readEverything(t, p, aMAC.String()) })
	t.Run("promote", func(t *testing.T) {
		out, _ := p.run(t, exitOK, "bundle", "promote", "wan", "up1")
		contains(t, "promote", out, "bundle wan: up1 promoted")
		var bundle control.Bundle
		contains(t, "bundle show", p.ask(t, &bundle, "bundle", "show", "wan"), "up1")
		if bundle.Active != "up1" {
			t.Errorf("active: %s", bundle.Active)
		}
		_, talk := p.run(t, exitFailure, "bundle", "promote", "wan", "lan0")
		contains(t, "promote a stranger", talk, "lan0", "not a member")
	})
	t.Run("remove", func(t *testing.T) {
		out, _ := p.run(t, exitOK, "adapter", "remove", "--why", "the cable goes", "lan1")
		contains(t, "remove", out, "adapter lan1 removed")
		if now := linkNames(t, b); !slices.Equal(now, before[1]) {
			t.Errorf("interfaces of b: %v, before %v", now, before[1])
		}
		var list control.AdapterList
		p.ask(t, &list, "adapter", "list")
		for _, x := range list.Adapters {
			if x.Name == "lan1" {
				t.Errorf("still there: %+v", x)
			}
		}
		_, talk := p.run(t, exitFailure, "adapter", "show", "lan1")
		contains(t, "show what is gone", talk, `there is no adapter "lan1"`, "known: ", "lan0")
		out, _ = p.run(t, exitOK, "events")
		contains(t, "events", out, "the cable goes")
	})
	t.Run("second daemon", func(t *testing.T) {
		_, talk := p.run(t, exitBadInput, "run", "--config", file)
		contains(t, "a second daemon", talk, "another vswitch answers on "+p.socket, fmt.Sprintf("(process %d)", daemon.cmd.Process.Pid))
	})

	daemon.stop(t)
	followed.wantEnd(t)
	for i, h := range hosts {
		if now := linkNames(t, h); !slices.Equal(now, before[i]) {
			t.Errorf("interfaces of %s: %v, before %v", h.Name(), now, before[i])
		}
	}
	if left, err := os.ReadDir(filepath.Dir(p.socket)); err != nil || len(left) != 0 {
		t.Errorf("left beside the socket: %v, %v", left, err)
	}
	p.run(t, exitUnreachable, "adapter", "list")
}

func readEverything(t *testing.T, p program, aMAC string) {
	var adapters control.AdapterList
	human := p.ask(t, &adapters, "adapter", "list")
	contains(t, "adapter list", human, "lan0", "lan1", "up0", "up1", "tap", "afpacket", "team", "bridge", "running")
	if len(adapters.Adapters) != 6 {
		t.Errorf("%d adapters, want 4, a team and a bridge", len(adapters.Adapters))
	}
	for _, x := range adapters.Adapters {
		if x.State != "running" || x.Oper != "up" {
			t.Errorf("%s is %s, %s", x.Name, x.State, x.Oper)
		}
	}

	var adapter control.Adapter
	human = p.ask(t, &adapter, "adapter", "show", "lan0")
	contains(t, "adapter show", human, "driver:", "tap", "received:", "bridge lan")
	if adapter.Counters.RxFrames == 0 || adapter.Counters.TxFrames == 0 || len(adapter.Bindings) != 1 {
		t.Errorf("lan0: %+v", adapter)
	}

	var bundles control.BundleList
	contains(t, "bundle list", p.ask(t, &bundles, "bundle", "list"), "wan", "team", "up0=active", "up1=standby")
	var bundle control.Bundle
	contains(t, "bundle show", p.ask(t, &bundle, "bundle", "show", "wan"), "up0", "active", "up1", "standby", "connected")
	if bundle.Active != "up0" || len(bundle.Members) != 2 || len(bundles.Bundles) != 1 {
		t.Errorf("wan: %+v of %d", bundle, len(bundles.Bundles))
	}

	var bindings control.BindingList
	contains(t, "binding list", p.ask(t, &bindings, "binding", "list"), "stack", "bridge lan", "team wan", "running")

	for _, args := range [][]string{{"bridge", "fdb"}, {"bridge", "fdb", "lan"}} {
		var fdb control.FDB
		contains(t, "bridge fdb", p.ask(t, &fdb, args...), aMAC, "lan0", "lan1")
		ports := map[string]bool{}
		for _, e := range fdb.Entries {
			ports[e.Port] = true
			if e.MAC == aMAC && (e.Port != "lan0" || e.Local) {
				t.Errorf("a's address: %+v", e)
			}
		}
		if !ports["lan0"] || !ports["lan1"] {
			t.Errorf("fdb: %+v", fdb)
		}
	}
	_, talk := p.run(t, exitFailure, "bridge", "fdb", "wan")
	contains(t, "fdb of no bridge", talk, "bridge wan: not found")

	var interfaces control.InterfaceList
	contains(t, "interface list", p.ask(t, &interfaces, "interface", "list"), "lan", "10.7.1.1/24", "wan", "10.7.2.1/24", "yes")
	if len(interfaces.Interfaces) != 2 || !interfaces.Interfaces[0].Up {
		t.Errorf("interfaces: %+v", interfaces)
	}
	var routes control.RouteList
	contains(t, "route list", p.ask(t, &routes, "route", "list"), "0.0.0.0/0", "10.7.2.2", "10.7.1.0/24", "connected", "static")
	var neighbors control.NeighborList
	contains(t, "neigh list", p.ask(t, &neighbors, "neigh", "list"), "10.7.1.2", aMAC, "10.7.2.2")

	var stats control.Stats
	contains(t, "stats", p.ask(t, &stats, "stats"), "lan0", "bridge lan", "router")
	if len(stats.Adapters) != 6 || stats.Adapters["lan0"].RxFrames == 0 || len(stats.Bridges["lan"]) == 0 || len(stats.Router) == 0 {
		t.Errorf("stats: %+v", stats)
	}

	var events control.Events
	contains(t, "events", p.ask(t, &events, "events"), "bundle.active", "adapter.state", "up0")
	if len(events.Events) == 0 || events.Events[0].Seq != 1 || events.Last != events.Events[len(events.Events)-1].Seq {
		t.Errorf("events: %+v", events)
	}
	out, _ := p.run(t, exitOK, "events", "--after", fmt.Sprint(events.Last))
	if out != "" {
		t.Errorf("events after the last: %s", out)
	}

	var values map[string]any
	contains(t, "config show", p.ask(t, &values, "config", "show"), `members = ["up0", "up1"]`, `driver = "tap"`)
	if _, ok := values["adapter"].(map[string]any)["lan0"]; !ok {
		t.Errorf("config: %+v", values)
	}
	var v versions
	contains(t, "version", p.ask(t, &v, "version"), "running: vswitch")
	if v.Running == nil || v.Running.Version != v.Version {
		t.Errorf("version: %+v", v)
	}
}

// daemon is a running `vswitch run`.
type daemon struct {
	cmd   *exec.Cmd
	ready string
	out   *bufio.Reader
	talk  *lockedBuffer
}

func startDaemon(t *testing.T, p program, file string) *daemon {
	t.Helper()
	d := &daemon{cmd: p.command(context.Background(), "run", "--config", file), talk: &lockedBuffer{}}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.out, d.cmd.Stderr = bufio.NewReader(out), d.talk
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil { // the test has failed before it stopped it
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the daemon's stderr:\n%s", d.talk)
		}
	})
	limit := time.AfterFunc(patience, func() { _ = d.cmd.Process.Kill() })
	defer limit.Stop()
	if d.ready, err = d.out.ReadString('\n'); err != nil {
		t.Fatalf("the daemon does not get ready: %v\n%s", err, d.talk)
	}
	return d
}

// stop sends SIGTERM and wants an orderly end.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(patience, func() { _ = d.cmd.Process.Kill() })
	defer limit.Stop()
	more, err := io.ReadAll(d.out)
	if err != nil || len(more) != 0 {
		t.Errorf("more on stdout: %q, %v", more, err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, d.talk)
	}
	contains(t, "the daemon's stderr", d.talk.String(), "stopping", "terminated", "stopped")
}

// follower is a running `vswitch events --follow --json`.
type follower struct {
	p     program
	ended chan error
	lines []ndiscore.Event // after ended
	talk  *lockedBuffer
}

func (p program) follow(t *testing.T) *follower {
	t.Helper()
	f := &follower{p: p, ended: make(chan error, 1), talk: &lockedBuffer{}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	cmd := p.command(ctx, "events", "--follow", "--json")
	cmd.Stderr = f.talk
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	go func() { // ends with the follower
		for d := json.NewDecoder(out); ; {
			var e ndiscore.Event
			if err := d.Decode(&e); err != nil {
				if err != io.EOF {
					f.ended <- err
				}
				break
			}
			if f.lines = append(f.lines, e); len(f.lines) == 1 {
				close(first)
			}
		}
		f.ended <- cmd.Wait()
	}()
	wait(t, first)
	return f
}

// wantEnd wants the follower to have seen everything until the switch stopped.
func (f *follower) wantEnd(t *testing.T) {
	t.Helper()
	select {
	case err := <-f.ended:
		if err != nil {
			t.Errorf("the follower: %v\n%s", err, f.talk)
		}
	case <-time.After(patience):
		t.Fatal("the follower does not end")
	}
	var want []uint64
	var got []uint64
	halted := map[string]bool{}
	for i, e := range f.lines {
		want, got = append(want, uint64(i+1)), append(got, e.Seq)
		if e.What == "adapter.state" && e.To == "halted" {
			halted[e.Adapter] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the follower's events: want - got +\n%s", diff)
	}
	for _, name := range []string{"lan0", "up0", "up1", "lan", "wan"} {
		if !halted[name] {
			t.Errorf("the follower has not seen that %s was halted", name)
		}
	}
	contains(t, "the follower's stderr", f.talk.String(), "vswitch: the switch stops\n")
}

// lockedBuffer is written by the goroutine that os/exec starts.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
