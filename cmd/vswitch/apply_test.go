package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
)

// What becomes of systemTOML: lan1 moves to a bridge of its own, lan2 is new, the
// bridge looks at VLANs, and everything else is changed too.
const changedTOML = `
[log]
level = "debug"
[adapter.lan0]
driver = "tap"
netns = %q
[adapter.lan1]
driver = "tap"
netns = %q
[adapter.lan2]
driver = "tap"
[adapter.up0]
driver = "afpacket"
filters = ["short"]
[adapter.up1]
driver = "afpacket"
ring_mib = 2
[filter.short]
driver = "fault"
delay = "1ms"
[bridge.lan]
ports = ["lan0", "lan2"]
vlan = 10
[bridge.lan.port.lan0]
access = 10
[bridge.lan.port.lan2]
trunk = ["10", "20-29"]
[bridge.dmz]
ports = ["lan1"]
[bundle.wan]
members = ["up0", "up1"]
failback = "never"
[interface.lan]
on = "lan"
addresses = ["10.7.1.254/24"]
[interface.dmz]
on = "dmz"
addresses = ["10.7.3.1/24"]
[interface.wan]
on = "wan"
addresses = ["10.7.2.1/24"]
masquerade = true
[[route]]
to = "198.51.100.0/24"
via = "10.7.2.2"
[[forward]]
interface = "wan"
protocol = "tcp"
port = "8080"
to = "10.7.1.2:80"
[fault]
allow = true
`

// TestConfigApply changes a running switch by files, there and back, and has it
// refuse and undo.
func TestConfigApply(t *testing.T) {
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
	p := program{path: build(t, dir), socket: filepath.Join(dir, "control.sock")}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	oldText, newText := fmt.Sprintf(systemTOML, a.Path(), b.Path()), fmt.Sprintf(changedTOML, a.Path(), b.Path())
	system, changed := write("system.toml", oldText), write("changed.toml", newText)
	d := startDaemon(t, p, system)
	a.AddAddr("lan0", "10.7.1.2/24")
	ping := func(h *lab.Host, dst string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := lab.Eventually(ctx, "an answer from "+dst, func() error {
			r, err := h.Ping(ctx, netip.MustParseAddr(dst), lab.PingOptions{Count: 3})
			if err != nil {
				return err
			}
			return r.Err()
		}); err != nil {
			t.Error(err)
		}
	}
	ping(a, "10.7.1.1")

	before := p.state(t)
	t.Run("dry run", func(t *testing.T) {
		var plan control.Plan
		human := p.ask(t, &plan, "config", "apply", "--dry-run", changed)
		contains(t, "config apply --dry-run", human, "restart adapter up1", "    ring_mib 8 -> 2", "add adapter lan2", "add bridge dmz", "not applied: ")
		if plan.Applied || len(plan.Steps) == 0 || len(plan.Refused) != 0 {
			t.Errorf("plan: %+v", plan)
		}
		if diff := cmp.Diff(before, p.state(t)); diff != "" {
			t.Errorf("before - after +\n%s", diff)
		}
	})
	t.Run("there", func(t *testing.T) {
		var plan control.Plan
		out, _ := p.run(t, exitOK, "config", "apply", "--json", changed)
		if err := json.Unmarshal([]byte(out), &plan); err != nil || !plan.Applied {
			t.Errorf("plan: %+v, %v", plan, err)
		}
		out, _ = p.run(t, exitOK, "config", "apply", changed)
		contains(t, "config apply again", out, "nothing to change")

		var adapters control.AdapterList
		p.ask(t, &adapters, "adapter", "list")
		var names []string
		for _, x := range adapters.Adapters {
			names = append(names, x.Name)
			if x.State != "running" {
				t.Errorf("%s is %s", x.Name, x.State)
			}
		}
		slices.Sort(names)
		if want := []string{"dmz", "lan", "lan0", "lan1", "lan2", "up0", "up1", "wan"}; !slices.Equal(names, want) {
			t.Errorf("adapters %v, want %v", names, want)
		}
		var bridge control.Bridge
		contains(t, "bridge show", p.ask(t, &bridge, "bridge", "show", "lan"), "vlan:", "access 10", "trunk 10,20-29")
		if bridge.VLAN != 10 || len(bridge.Ports) != 2 || bridge.Ports[0].Access != 10 {
			t.Errorf("lan: %+v", bridge)
		}
		var filters control.FilterList
		contains(t, "filter list", p.ask(t, &filters, "filter", "list"), "short")
		var iface control.Interface
		contains(t, "interface show", p.ask(t, &iface, "interface", "show", "lan"), "10.7.1.254/24")
		var routes control.RouteList
		contains(t, "route list", p.ask(t, &routes, "route", "list"), "198.51.100.0/24", "10.7.3.0/24")
		for _, r := range routes.Routes {
			if r.To == "0.0.0.0/0" {
				t.Errorf("still there: %+v", r)
			}
		}
		var one control.Bundle
		p.ask(t, &one, "bundle", "show", "wan")
		if one.Failback != "never" {
			t.Errorf("wan: %+v", one)
		}
		contains(t, "the daemon's stderr", d.talk.String(), "DEBUG") // level = "debug"

		b.AddAddr("lan1", "10.7.3.2/24")
		ping(b, "10.7.3.1")
		a.Route("default", "10.7.1.254")
		ping(a, "10.7.2.2")
		var nat control.NATTable
		contains(t, "nat list", p.ask(t, &nat, "nat", "list"), "icmp", "masquerade", "10.7.1.2 id ", "10.7.2.2 echo", "room for 65536")
		out, _ = p.run(t, exitOK, "nat", "flush", "--address", "10.7.1.2")
		contains(t, "nat flush", out, "forgotten")
		contains(t, "nat list", p.ask(t, &nat, "nat", "list", "--limit", "0"), "0 of ")
	})

	t.Run("operations", func(t *testing.T) {
		for _, step := range []struct{ op, says, state string }{
			{"pause", "paused", "paused"}, {"start", "started", "running"}, {"stop", "stopped", "halted"}, {"start", "started", "running"},
			{"restart", "restarted", "running"}, {"reset", "reset", "running"}, {"suspend", "suspended", ""}, {"resume", "resumed", "running"},
		} {
			out, _ := p.run(t, exitOK, "adapter", step.op, "--why", "drill "+step.op, "lan2")
			if out != "adapter lan2 "+step.says+"\n" {
				t.Errorf("adapter %s: %q", step.op, out)
			}
			var x control.Adapter
			p.ask(t, &x, "adapter", "show", "lan2")
			if step.state != "" && x.State != step.state || x.Suspended != (step.op == "suspend") {
				t.Errorf("after %s: %+v", step.op, x)
			}
		}
		_, talk := p.run(t, exitFailure, "adapter", "start", "lan2")
		contains(t, "start of what runs", talk, "lan2", "running")
		out, _ := p.run(t, exitOK, "events")
		contains(t, "events", out, "drill stop", "drill reset", "drill suspend")

		out, _ = p.run(t, exitOK, "adapter", "add", "--driver", "tap", "lan3", "mtu=9000", "queues=2")
		contains(t, "adapter add", out, "adapter lan3 added")
		var x control.Adapter
		p.ask(t, &x, "adapter", "show", "lan3")
		if x.MTU != 9000 || x.State != "running" {
			t.Errorf("lan3: %+v", x)
		}
		_, talk = p.run(t, exitBadInput, "adapter", "add", "--driver", "afpacket", "x9", "interface=up0")
		contains(t, "adapter add", talk, "adapter.x9: the interface up0 already belongs to adapter up0\n")
		p.run(t, exitOK, "adapter", "remove", "--force", "lan3")
		p.run(t, exitOK, "config", "apply", changed) // forgets it for good
	})
	t.Run("attached", func(t *testing.T) {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			cmd := p.command(t.Context(), "inject", "link-down", "--on", "lan2", "--for=40s")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			first, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			contains(t, "inject", first, "link-down on lan2 until")
			var x control.Adapter
			contains(t, "adapter show", p.ask(t, &x, "adapter", "show", "lan2"), "injected link-down")
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			rest, _ := io.ReadAll(lines)
			if err := cmd.Wait(); err != nil || string(rest) != "fault over: let go\n" {
				t.Errorf("after %s: %q, %v", signal, rest, err)
			}
			// At once: it is over when the command is.
			var faults control.FaultList
			if p.ask(t, &faults, "inject", "list"); len(faults.Faults) != 0 {
				t.Errorf("after %s: %+v", signal, faults)
			}
		}
		// Killed, it cannot clear anything: its connection's end does.
		cmd := p.command(t.Context(), "inject", "link-down", "--on", "lan2")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := lab.Eventually(ctx, "the fault of the killed owner to be over", func() error {
			out, _ := p.run(t, exitOK, "inject", "list")
			if strings.Contains(out, "link-down") {
				return errors.New(out)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		text, _ := p.run(t, exitOK, "inject", "drop", "--on", "lan2", "every=3", "--for", "100ms", "--json")
		var began control.Fault
		var end control.FaultEnd
		dec := json.NewDecoder(strings.NewReader(text))
		if err := errors.Join(dec.Decode(&began), dec.Decode(&end)); err != nil || began.Kind != "drop" || end.End != control.EndExpired {
			t.Errorf("%+v, %+v, %v", began, end, err)
		}
		var kinds control.FaultKindList
		contains(t, "inject kinds", p.ask(t, &kinds, "inject", "kinds"), "link-down:", "    chance",
			"(share, 0% to 100%)", "exactly one of chance, every or first is needed", "(payload or frame); default payload", "(ok, soft or hard); default ok", "(time, 0s to 1m0s); needed")
		_, talk := p.run(t, exitFailure, "inject", "link-down", "--on", "nobody")
		contains(t, "inject", talk, "nobody")
		_, talk = p.run(t, exitBadInput, "inject", "drop", "--on", "lan2")
		contains(t, "inject", talk, "chance")
	})

	// A fault in force outlives changes of other things, also that no more faults
	// are allowed.
	p.run(t, exitOK, "inject", "delay", "--on", "up0", "--detach", "--for", "50m", "delay=1ms")

	now := p.state(t)
	same := func(t *testing.T) {
		t.Helper()
		if diff := cmp.Diff(now, p.state(t)); diff != "" {
			t.Errorf("before - after +\n%s", diff)
		}
	}
	t.Run("refused", func(t *testing.T) {
		refused := write("refused.toml", newText+"[control]\ngroup = \"0\"\n")
		_, talk := p.run(t, exitFailure, "config", "apply", refused)
		contains(t, "config apply", talk, "control.group", "needs a restart of the process")
		out, talk := p.run(t, exitFailure, "config", "apply", "--dry-run", refused)
		contains(t, "config apply --dry-run", out+talk, "refused: control.group", "not applied", "would be refused")
		out, _ = p.run(t, exitFailure, "config", "apply", "--dry-run", "--json", refused)
		var plan control.Plan
		if err := json.Unmarshal([]byte(out), &plan); err != nil || len(plan.Refused) == 0 || plan.Applied {
			t.Errorf("plan: %+v, %v", plan, err)
		}
		same(t)
	})
	t.Run("invalid", func(t *testing.T) {
		bad := write("bad.toml", newText+"[adapter.lan3]\ndriver = \"tap\"\ncolour = 1\n[bridge.x]\nports = [\"nobody\"]\n")
		_, talk := p.run(t, exitBadInput, "config", "apply", bad)
		contains(t, "config apply", talk, "bad.toml:", "adapter.lan3.colour", "nobody")
		same(t)
	})
	t.Run("blank", func(t *testing.T) {
		blank := write("blank.toml", "# about to be written\n")
		_, talk := p.run(t, exitBadInput, "config", "apply", blank)
		contains(t, "config apply", talk, "empty", `"[control]"`)
		same(t)
	})
	t.Run("undone", func(t *testing.T) {
		// Everything else of it is done first; then the interface is not there.
		missing := write("missing.toml", strings.NewReplacer("10.7.1.254", "10.7.1.253", "vlan = 10", "vlan = 20", "[10", "[20", "access = 10", "access = 20",
			`["lan1"]`, `["lan1", "gone0"]`, `["short"]`, `[]`, "ring_mib = 2", "ring_mib = 4", "10.7.2.2", "10.7.2.3").Replace(newText)+
			"[adapter.gone0]\ndriver = \"afpacket\"\n")
		_, talk := p.run(t, exitFailure, "config", "apply", missing)
		contains(t, "config apply", talk, "add adapter gone0", "does not exist", "everything is as it was")
		same(t)
		ping(a, "10.7.1.254")
	})
	t.Run("two at once", func(t *testing.T) {
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				for _, file := range []string{system, changed} {
					p.run(t, exitOK, "config", "apply", file)
				}
			})
		}
		both.Wait()
		p.run(t, exitOK, "config", "apply", changed)
		out, _ := p.run(t, exitOK, "config", "apply", "--dry-run", changed)
		contains(t, "config apply", out, "nothing to change")
		ping(a, "10.7.1.254")
		var faults control.FaultList
		contains(t, "inject list", p.ask(t, &faults, "inject", "list"), "delay", "up0", "delay=1ms")
		out, _ = p.run(t, exitOK, "inject", "clear", "--on", "up0")
		contains(t, "inject clear", out, "1 fault cleared")
	})
	t.Run("back by SIGHUP", func(t *testing.T) {
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := lab.Eventually(ctx, "the first configuration to be in force", func() error {
			if diff := cmp.Diff(before, p.state(t)); diff != "" {
				return fmt.Errorf("before - after +\n%s", diff)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		ping(a, "10.7.1.1")
	})
	d.stop(t)
}

// state is the configuration in force, and what there is, in lines whose order
// says nothing.
func (p program) state(t *testing.T) []string {
	t.Helper()
	text, _ := p.run(t, exitOK, "config", "show")
	lines := strings.Split(text, "\n")
	for _, list := range [][]string{{"filter", "list"}, {"interface", "list"}, {"route", "list"}, {"binding", "list"}} {
		out, _ := p.run(t, exitOK, list...)
		for line := range strings.Lines(out) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
	}
	adapters, _ := p.run(t, exitOK, "adapter", "list")
	for line := range strings.Lines(adapters) {
		lines = append(lines, strings.Join(strings.Fields(line)[:4], " ")) // what is made anew has another address
	}
	slices.Sort(lines)
	return lines
}
