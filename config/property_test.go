package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"
)

// drawConfig makes a configuration that Parse should accept.
func drawConfig(t *rapid.T) *Config {
	c := Default()
	text := func(label string) string { return rapid.StringN(0, 12, -1).Draw(t, label) }
	span := func(label string, least time.Duration) Duration {
		return Duration(rapid.Int64Range(int64(least), int64(100*time.Hour)).Draw(t, label))
	}
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	name := func(label string, i int) string {
		return rapid.StringMatching(`[a-z0-9][a-z0-9._-]{0,8}`).Draw(t, label) + fmt.Sprintf("-%s%d", label[:2], i)
	}
	if rapid.Bool().Draw(t, "socket") {
		c.Control.Socket = "/" + strings.ReplaceAll(text("path"), "\x00", "")
	}
	if g := text("group"); g != "" {
		c.Control.Group, c.Control.Mode = g, pick("mode", "0660", "660", "0770")
	}
	c.Log = Log{pick("level", "debug", "info", "warn", "error"), pick("format", "console", "json")}

	c.NAT.Flows = rapid.IntRange(16, 4<<20).Draw(t, "flows")
	c.NAT.TCPTransitory, c.NAT.UDP, c.NAT.ICMP = span("transitory", minIdle), span("udp", minIdle), span("icmp", minIdle)
	c.NAT.TCP, c.NAT.UDPStream = c.NAT.TCPTransitory+span("tcp", 0), c.NAT.UDP+span("stream", 0)
	c.Fault = Fault{rapid.Bool().Draw(t, "allow"), Duration(rapid.Int64Range(int64(time.Second), int64(day)).Draw(t, "longest"))}

	var filters []string
	for i := range rapid.IntRange(0, 3).Draw(t, "filters") {
		f := Filter{Name: name("filter", i), Driver: pick("filter driver", "mangle", "count"), Options: &struct{}{}}
		if f.Driver == "mangle" {
			f.Options = &mangleOptions{
				Drop: share(rapid.Float64Range(0, 100).Draw(t, "drop")), Delay: span("delay", 0).Std(),
				Direction: pick("direction", "both", "send", "receive"),
			}
		}
		c.Filters = append(c.Filters, f)
		filters = append(filters, f.Name)
	}

	var loops, free []string
	for i := range rapid.IntRange(0, 8).Draw(t, "adapters") {
		a := Adapter{Name: name("adapter", i), Driver: pick("driver", "wire", "loop")}
		if len(filters) > 0 && rapid.Bool().Draw(t, "filtered") {
			a.Filters = rapid.Permutation(filters).Draw(t, "order")[:rapid.IntRange(1, len(filters)).Draw(t, "modules")]
		}
		if a.Driver == "loop" {
			a.Options = &loopOptions{Queues: rapid.Int().Draw(t, "queues")}
			loops = append(loops, a.Name)
		} else {
			o := testDrivers()[0].NewOptions().(*wireOptions)
			o.Interface = fmt.Sprint(text("interface"), i)
			o.Offload = pick("offload", "auto", "on", "off")
			o.Poll = span("poll", 0).Std()
			o.Tags = rapid.SliceOfN(rapid.String(), 1, 3).Draw(t, "tags")
			o.Weight = rapid.Uint8().Draw(t, "weight")
			o.Shared = rapid.Bool().Draw(t, "shared")
			if !o.Shared {
				o.Queues = rapid.IntRange(1, 16).Draw(t, "queues")
			}
			o.Owner = text("owner")
			o.Ring = ringOptions{1 << rapid.IntRange(0, 20).Draw(t, "frames"), rapid.Bool().Draw(t, "mapped")}
			a.Options = o
			free = append(free, a.Name)
		}
		c.Adapters = append(c.Adapters, a)
	}
	for i := 0; len(loops) >= 2 && rapid.Bool().Draw(t, "bundle"); i++ {
		b := defaultBundle()
		b.Name, b.Members, loops = name("bundle", i), loops[:2:2], loops[2:]
		b.Mode = pick("mode", "team", "ndis5")
		b.Balance = pick("balance", "active-backup", "hash")
		b.LAG = b.Balance == "hash" && rapid.Bool().Draw(t, "lag")
		if b.Mode == "team" {
			b.MAC, b.Failback = pick("mac", "", "first", "02:00:5e:00:53:0a"), pick("failback", "always", "better", "never")
			b.Hold, b.UpDelay, b.DownDelay = span("hold", 0), span("up", 0), span("down", 0)
			b.Health.Interval = span("interval", minInterval)
		}
		if b.Mode == "team" && b.Balance == "active-backup" && rapid.Bool().Draw(t, "active") {
			b.MAC = "active"
		}
		if b.Mode == "team" && rapid.Bool().Draw(t, "probe") {
			b.Health.Probe, b.Health.Carrier = "neighbor", rapid.Bool().Draw(t, "carrier")
			b.Health.Target = netip.MustParseAddr(pick("target", "192.0.2.1", "fe80::1", "2001:db8::1"))
		}
		c.Bundles = append(c.Bundles, b)
		free = append(free, b.Name)
	}
	free = append(free, loops...)
	var bridges []string
	for i := 0; len(free) >= 1 && rapid.Bool().Draw(t, "bridge"); i++ {
		b := defaultBridge()
		n := rapid.IntRange(1, len(free)).Draw(t, "ports")
		b.Name, b.Ports, free = name("bridge", i), free[:n:n], free[n:]
		b.MACAge, b.MACLimit = span("age", minAge), rapid.IntRange(1, 1<<20).Draw(t, "limit")
		b.MAC = pick("mac", "", "02:00:5e:00:53:0b")
		b.Snooping, b.LoopGuard = rapid.Bool().Draw(t, "snooping"), rapid.Bool().Draw(t, "guard")
		b.LoopHold = Duration(rapid.Int64Range(int64(time.Second), int64(day)).Draw(t, "hold"))
		b.VLAN = rapid.SampledFrom([]int{0, 1, 4094}).Draw(t, "vlan")
		for _, port := range b.Ports {
			p := BridgePort{Name: port}
			switch {
			case b.VLAN == 0 && rapid.Bool().Draw(t, "bare port"):
				continue
			case b.VLAN == 0:
			case rapid.Bool().Draw(t, "access"):
				p.Access = rapid.IntRange(1, maxVLAN).Draw(t, "access VLAN")
			default:
				p.Trunk = []VLANRange{{1, 1}, {20, 29}, {4000, 4094}}[:rapid.IntRange(1, 3).Draw(t, "trunk")]
				p.Native = rapid.SampledFrom([]int{0, 2, 30, 3999}).Draw(t, "native")
			}
			p.MACLimit, p.StormUnknown = rapid.IntRange(0, 1<<20).Draw(t, "port limit"), rapid.IntRange(0, 1e9).Draw(t, "storm")
			b.PortOptions = append(b.PortOptions, p)
		}
		c.Bridges = append(c.Bridges, b)
		bridges = append(bridges, b.Name)
	}
	for i, on := range append(free, bridges...) {
		f := Interface{Name: name("interface", i), On: on, MTU: rapid.SampledFrom([]int{0, 1280, 1500, 65535}).Draw(t, "mtu")}
		f.Addresses = []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.%d.0.1/%d", i, rapid.IntRange(16, 30).Draw(t, "bits"))),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::1/64", i)),
			netip.MustParsePrefix("fe80::1/64"),
		}[:rapid.IntRange(1, 3).Draw(t, "addresses")]
		f.Masquerade = rapid.Bool().Draw(t, "masquerade")
		f.Masquerade6 = len(f.Addresses) > 1 && rapid.Bool().Draw(t, "masquerade6")
		if rapid.Bool().Draw(t, "forward") {
			low := rapid.Uint16Range(1, 60000).Draw(t, "port")
			ports := PortRange{low, low + rapid.Uint16Range(0, 5000).Draw(t, "ports")}
			to := Target{netip.MustParseAddr("10.200.0.5"), PortRange{ports.First + 1, ports.Last + 1}}
			if len(f.Addresses) > 1 && rapid.Bool().Draw(t, "forward6") {
				to.Addr = netip.MustParseAddr("2001:db8:ff::5")
			}
			c.Forwards = append(c.Forwards, Forward{f.Name, pick("protocol", "tcp", "udp"), ports, to})
		}
		c.Interfaces = append(c.Interfaces, f)
		if rapid.Bool().Draw(t, "route") {
			c.Routes = append(c.Routes, Route{
				To:        netip.MustParsePrefix(pick("to", "0.0.0.0/0", "203.0.113.0/24", "198.51.100.1/32")),
				Via:       netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", i)),
				Interface: f.Name, Metric: uint32(i),
			})
		}
		if len(f.Addresses) > 1 && rapid.Bool().Draw(t, "route6") {
			c.Routes = append(c.Routes, Route{
				To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::2"), Interface: f.Name, Metric: 1<<32 - 1 - uint32(i),
			})
		}
	}
	return c
}

// TestRoundTrip: what TOML writes, Parse reads, whatever the configuration.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t)
		out := c.TOML()
		again, err := Parse("out", out, testDrivers(), testFilters()...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if d := cmp.Diff(c, again, compare); d != "" {
			t.Fatalf("(-before +after):\n%s\n%s", d, out)
		}
		if js, err := json.Marshal(c); err != nil || !json.Valid(js) {
			t.Fatalf("JSON: %v", err)
		}
	})
}

// TestMangled: a valid file with one byte changed, lost or doubled is read or
// refused with errors in the file.
func TestMangled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := drawConfig(t).TOML()
		at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
		b := rapid.SampledFrom([]byte("\"'[]{}=.#\n ,a1\\\xff")).Draw(t, "byte")
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			data[at] = b
		case 1:
			data = append(data[:at], data[at+1:]...)
		case 2:
			data = append(data[:at+1], data[at:]...)
		}
		if err := checkParse(data); err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
	})
}

// checkParse parses data and returns what is wrong with how that went.
func checkParse(data []byte) error {
	c, err := Parse("f", data, testDrivers(), testFilters()...)
	var plain map[string]any
	tomlErr := toml.Unmarshal(data, &plain)
	if err == nil {
		// The library keeps a byte order mark for an error.
		if tomlErr != nil && !strings.HasPrefix(string(data), "\ufeff") {
			return fmt.Errorf("accepted, though go-toml says %w", tomlErr)
		}
		again, err := Parse("again", c.TOML(), testDrivers(), testFilters()...)
		if err != nil {
			return fmt.Errorf("what TOML wrote is refused: %w", err)
		}
		if d := cmp.Diff(c, again, compare); d != "" {
			return fmt.Errorf("round trip: %s", d)
		}
		return nil
	}
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		return fmt.Errorf("not Errors: %w", err)
	}
	lines := strings.Split(string(data), "\n")
	for i, e := range errs {
		if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > len(lines[e.Line-1])+1 {
			return fmt.Errorf("outside the file: %w", e)
		}
		if i > 0 && (e.Line < errs[i-1].Line || e.Line == errs[i-1].Line && e.Column < errs[i-1].Column) {
			return fmt.Errorf("out of order: %w", e)
		}
		if e.Msg == "" || strings.ContainsAny(e.Error(), "\n\r\x1b\x00") {
			return fmt.Errorf("not one clean line: %q", e.Error())
		}
		if tomlErr == nil && strings.Contains(e.Msg, "is already defined") {
			return fmt.Errorf("go-toml accepts it: %w", e)
		}
	}
	if strings.ContainsAny(errs.Detail(), "\r\x1b\x00") {
		return fmt.Errorf("not fit for a terminal: %q", errs.Detail())
	}
	return nil
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.toml", "testdata/good/*.toml"} {
		for _, path := range globbed(f, pattern) {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := checkParse(data); err != nil {
			t.Error(err)
		}
	})
}
