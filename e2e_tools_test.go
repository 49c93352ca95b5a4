package vswitch_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/lab"
)

// command makes a command that runs on a host; the test's end kills it. Tools
// that are not installed skip the test.
func command(t *testing.T, ctx context.Context, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "%s: %v", name, err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a command on a host and returns what it wrote.
func run(t *testing.T, h *lab.Host, cmd *exec.Cmd) []byte {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, h.Do(cmd.Start))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out.Bytes())
	}
	return out.Bytes()
}

// TestToolPing has ping(8) of iputils look at the router.
func TestToolPing(t *testing.T) {
	lab.CheckLeaks(t)
	p, text := newPair(t, pairOptions{kinds: [2]string{"tap", "veth"}, router: true, mtu: [2]int{1500, 1500}})
	ctx := within(t, 60*time.Second)
	command(t, ctx, "ping")
	start(t, p.l, text)
	p.address(t)
	for _, dst := range p.dst {
		for _, size := range []string{"56", "1400", "4000"} {
			out := run(t, p.a, command(t, ctx, "ping", "-n", "-c", "5", "-i", "0.01", "-W", "10", "-s", size, dst.String()))
			if !strings.Contains(string(out), "5 received") || strings.Contains(string(out), "wrong data") || strings.Contains(string(out), "DUP!") {
				t.Errorf("%s", out)
			}
		}
	}
}

// TestToolIperf has iperf3 send TCP and UDP through the bridge, both ways.
func TestToolIperf(t *testing.T) {
	lab.CheckLeaks(t)
	p, text := newPair(t, pairOptions{kinds: [2]string{"tap", "veth"}, mtu: [2]int{1500, 1500}})
	ctx := within(t, 60*time.Second)
	server := command(t, ctx, "iperf3", "--server", "--bind", p.dst["v4"].String(), "--forceflush")
	start(t, p.l, text)
	p.address(t)
	stdout, err := server.StdoutPipe()
	must(t, err)
	must(t, p.b.Do(server.Start))
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait() // killed
	}()
	// The server takes one client at a time, and says when it is ready for the next.
	listening := make(chan struct{}, 100)
	go func() { // until the server is killed: it must not wait for us
		defer close(listening)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if strings.Contains(lines.Text(), "listening") {
				listening <- struct{}{}
			}
		}
	}()
	for _, args := range [][]string{
		{"--bytes", "20M"},
		{"--bytes", "20M", "--reverse"},
		{"--udp", "--bitrate", "10M", "--length", "1400", "--time", "1"},
		{"--udp", "--bitrate", "10M", "--length", "1400", "--time", "1", "--reverse"},
	} {
		select {
		case <-listening:
		case <-ctx.Done():
			t.Fatal("the iperf3 server does not listen")
		}
		out := run(t, p.a, command(t, ctx, "iperf3", append([]string{"--client", p.dst["v4"].String(), "--json", "--connect-timeout", "10000"}, args...)...))
		var r struct {
			Error string
			End   struct {
				SumReceived struct{ Bytes float64 } `json:"sum_received"`
				Sum         struct {
					Packets, Bytes float64
					LostPackets    float64 `json:"lost_packets"`
				}
			}
		}
		must(t, json.Unmarshal(out, &r))
		t.Logf("iperf3 %s: TCP received %.0f bytes, UDP %.0f packets, %.0f lost", strings.Join(args, " "), r.End.SumReceived.Bytes, r.End.Sum.Packets, r.End.Sum.LostPackets)
		switch {
		case r.Error != "":
			t.Errorf("%v: %s", args, r.Error)
		case args[0] == "--udp" && (r.End.Sum.Packets < 100 || r.End.Sum.LostPackets > r.End.Sum.Packets/20):
			t.Errorf("%v: %.0f of %.0f lost", args, r.End.Sum.LostPackets, r.End.Sum.Packets)
		case args[0] != "--udp" && r.End.SumReceived.Bytes < 10e6: // the last ones may come after the count
			t.Errorf("%v: received %.0f bytes", args, r.End.SumReceived.Bytes)
		}
	}
}

// TestToolTcpdump has tcpdump see the router tell the world where it is after a
// failover, by ARP and by neighbour discovery.
func TestToolTcpdump(t *testing.T) {
	lab.CheckLeaks(t)
	ctx := within(t, 60*time.Second)
	if b, _ := os.ReadFile("/proc/self/setgroups"); strings.TrimSpace(string(b)) == "deny" {
		t.Skip("tcpdump gives up its groups, which this user namespace does not allow; TestTeamAnnounces looks at the same")
	}
	dump := command(t, ctx, "tcpdump", "-Z", "root", "--immediate-mode", "-l", "-n", "-e", "-i", "e1", "arp or icmp6")
	u := newUplinks(t, uplinksRouter, "hold = \"0s\"\n")
	stdout, err := dump.StdoutPipe()
	must(t, err)
	stderr, err := dump.StderrPipe()
	must(t, err)
	must(t, u.server.Do(dump.Start))
	defer func() {
		_ = dump.Process.Kill()
		_ = dump.Wait() // killed
	}()
	told := bufio.NewScanner(stderr)
	for told.Scan() && !strings.Contains(told.Text(), "listening on e1") {
	}
	go func() { // until it is killed
		for told.Scan() {
		}
	}()
	must(t, u.wires[0].Cut(lab.EndA))
	var mac string
	infos, err := u.sw.Adapters(ctx)
	must(t, err)
	for _, a := range infos {
		if a.Name == "wan" {
			mac = a.MAC.String()
		}
	}
	arp, nd := false, false
	var seen []string
	for lines := bufio.NewScanner(stdout); (!arp || !nd) && lines.Scan(); {
		l := lines.Text()
		seen = append(seen, l)
		if !strings.Contains(l, mac+" > ") {
			continue
		}
		arp = arp || strings.Contains(l, "10.2.0.1") && (strings.Contains(l, "Announcement 10.2.0.1") ||
			strings.Contains(l, "who-has 10.2.0.1") && strings.Contains(l, "tell 10.2.0.1") || strings.Contains(l, "Reply 10.2.0.1 is-at"))
		nd = nd || strings.Contains(l, "neighbor advertisement") && strings.Contains(l, "fd00:2::1")
	}
	if !arp || !nd {
		t.Errorf("gratuitous ARP %v, unsolicited neighbour advertisement %v, among:\n%s", arp, nd, strings.Join(seen, "\n"))
	}
	if ctx.Err() != nil {
		t.Error(fmt.Errorf("tcpdump: %w", ctx.Err()))
	}
}
