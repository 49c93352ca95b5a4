package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// TestStates plays conversations and looks at the state and the time that the flow
// has left. A step is who speaks, "<" from outside or ">" from inside, and the
// flags.
func TestStates(t *testing.T) {
	const trans, est = 240 * time.Second, 7440 * time.Second
	flags := map[byte]uint8{'S': flagSYN, 'A': flagACK, 'F': flagFIN, 'R': flagRST}
	for _, c := range []struct {
		steps   []string
		state   string
		expires time.Duration
	}{
		{[]string{">S"}, "syn-sent", trans},
		{[]string{">S", ">S"}, "syn-sent", trans},
		{[]string{">S", "<SA"}, "syn-received", trans},
		{[]string{">S", "<SA", "<A"}, "syn-received", trans},
		{[]string{">S", "<SA", ">S"}, "syn-received", trans},
		{[]string{">S", "<SA", ">A"}, "established", est},
		{[]string{">S", "<S", ">A"}, "established", est}, // simultaneous open
		{[]string{">A", "<A", ">A"}, "established", est}, // taken up midway
		{[]string{">S", "<SA", ">A", ">FA"}, "fin-wait", trans},
		{[]string{">S", "<SA", ">A", "<FA"}, "close-wait", trans},
		{[]string{">S", "<SA", ">A", ">FA", "<A"}, "fin-wait", trans},
		{[]string{">S", "<SA", ">A", ">FA", "<FA"}, "closing", trans},
		{[]string{">S", "<SA", ">A", ">FA", "<FA", "+100", ">A"}, "closing", trans - 100*time.Second},
		{[]string{">S", "<SA", ">A", "<FA", ">FA", "<A"}, "closing", trans},
		{[]string{">S", "<SA", ">A", ">FA", "<FA", ">S"}, "syn-sent", trans},
		{[]string{">S", "<SA", ">A", ">FA", "<FA", "<S", ">SA", "<A"}, "established", est},
		{[]string{">S", "<R"}, "reset", trans},
		{[]string{">S", "<SA", ">A", "<R"}, "reset", trans},
		{[]string{">S", "<SA", ">A", "<R", ">A", ">A"}, "reset", trans},
		{[]string{">S", "<SA", ">A", "<R", ">A", "<R", "<A"}, "reset", trans},
		{[]string{">S", "<SA", ">A", "<R", ">A", "<A"}, "established", est}, // it was forged
		{[]string{">S", "<SA", ">A", "<R", ">S", "<SA", ">A"}, "established", est},
	} {
		t.Run(fmt.Sprint(c.steps), func(t *testing.T) {
			w := newWorld(t, Limits{}, testConfig())
			cl, s, p := ap(client4, 4000), ap(server4, 80), ap(pub4, 4000)
			for _, x := range c.steps {
				if x[0] == '+' {
					d, _ := time.ParseDuration(x[1:] + "s")
					w.pass(d)
					continue
				}
				var fl uint8
				for _, b := range []byte(x[1:]) {
					fl |= flags[b]
				}
				if x[0] == '>' {
					is(t, w.mustOut(t, tcp(cl, s, fl).frame()), p, s)
				} else {
					is(t, w.mustIn(t, tcp(s, p, fl).frame(), false), s, cl)
				}
			}
			fs := w.Flows(Filter{}, 0)
			if len(fs) != 1 || fs[0].State != c.state || fs[0].Expires != c.expires {
				t.Fatalf("%+v", fs)
			}
		})
	}
	t.Run("udp", func(t *testing.T) {
		w := newWorld(t, Limits{}, testConfig())
		c, s := ap(client4, 4000), ap(server4, 53)
		for _, x := range []struct {
			in    bool
			state string
			left  time.Duration
		}{{false, "new", 30}, {true, "answered", 30}, {true, "answered", 30}, {false, "stream", 120}} {
			if x.in {
				w.mustIn(t, udp(s, ap(pub4, 4000)).frame(), false)
			} else {
				w.mustOut(t, udp(c, s).frame())
			}
			if f := w.Flows(Filter{}, 0)[0]; f.State != x.state || f.Expires != x.left*time.Second {
				t.Errorf("%+v, want %+v", f, x)
			}
		}
	})
}

// TestRegressionPortReuse: a connection that is over is opened again with the same
// five numbers (RFC 5382 REQ-5 and TIME-WAIT, RFC 6191), sooner than its flow has
// run out. The same flow serves it, as one that is no longer given up once it is
// established; what is late of the old one does not open it, and nobody else gets
// its port.
func TestRegressionPortReuse(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		c, s, p := ap(client, 4000), ap(server, 80), ap(public, 4000)
		for name, x := range map[string]struct {
			end        func(out, in func(flags uint8)) // of an established connection
			over       string                          // its state then
			fromServer bool                            // who opens it again
		}{
			"closed":                    {func(out, in func(uint8)) { out(flagFIN | flagACK); in(flagFIN | flagACK); out(flagACK) }, "closing", false},
			"closed by the server":      {func(out, in func(uint8)) { in(flagFIN | flagACK); out(flagFIN | flagACK); in(flagACK) }, "closing", false},
			"closed, opened by server":  {func(out, in func(uint8)) { out(flagFIN | flagACK); in(flagFIN | flagACK); out(flagACK) }, "closing", true},
			"reset":                     {func(out, _ func(uint8)) { out(flagRST) }, "reset", false},
			"reset by the server":       {func(_, in func(uint8)) { in(flagRST | flagACK) }, "reset", false},
			"reset after it was closed": {func(out, in func(uint8)) { out(flagFIN | flagACK); in(flagFIN | flagACK); out(flagRST) }, "closing", false},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, Limits{}, testConfig())
				out := func(flags uint8) { is(t, w.mustOut(t, tcp(c, s, flags).frame()), p, s) }
				in := func(flags uint8) { is(t, w.mustIn(t, tcp(s, p, flags).frame(), false), s, c) }
				state := func(want string, left time.Duration) {
					t.Helper()
					fs := w.Flows(Filter{Address: netip.PrefixFrom(client, client.BitLen())}, 0)
					if len(fs) != 1 || fs[0].State != want || fs[0].Expires != left {
						t.Fatalf("%+v, want one flow that is %s for %s", fs, want, left)
					}
				}
				first, second := out, in
				if x.fromServer {
					first, second = in, out
				}
				establish(t, w, c, s)
				for range 3 { // and again
					x.end(out, in)
					state(x.over, 240*time.Second)
					w.pass(100 * time.Second)
					out(flagACK) // late
					state(x.over, 140*time.Second)
					first(flagSYN)
					state("syn-sent", 240*time.Second)
					second(flagSYN | flagACK)
					first(flagACK)
					state("established", 7440*time.Second)
					if w.weak[listInside].oldest != nil {
						t.Fatal("the new connection would be given up")
					}
				}
				x.end(out, in)
				other := mustEnds(t, w.mustOut(t, tcp(ap(client.Next(), 4000), s, flagSYN).frame()))
				if other == p {
					t.Error("somebody else has its port")
				}
				if n := w.Stats(); n["created"] != 2 {
					t.Errorf("%d flows were made", n["created"])
				}
				w.pass(241 * time.Second) // now it has run out
				out(flagSYN)
				state("syn-sent", 240*time.Second)
			})
		}
	})
}

func TestExpiry(t *testing.T) {
	w := newWorld(t, Limits{TCP: 3000 * time.Second}, testConfig())
	c, s, p := ap(client4, 4000), ap(server4, 80), ap(pub4, 4000)
	w.mustOut(t, udp(c, s).frame())
	w.mustOut(t, tcp(c, s, flagSYN).frame())
	w.mustIn(t, tcp(s, p, flagSYN|flagACK).frame(), false)
	w.mustOut(t, tcp(c, s, flagACK).frame())
	flows := func(want ...string) {
		t.Helper()
		var got []string
		for _, f := range w.Flows(Filter{}, 0) {
			got = append(got, f.Protocol)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	w.pass(29 * time.Second)
	flows("tcp", "udp")
	w.mustOut(t, udp(c, s).frame()) // keeps it
	w.pass(29 * time.Second)
	flows("tcp", "udp")
	w.pass(2 * time.Second)
	flows("tcp")
	for range 29 { // beyond the wheel's reach, and once more with traffic
		w.pass(100 * time.Second)
	}
	w.mustIn(t, tcp(s, p, flagACK).frame(), false)
	for range 29 {
		w.pass(100 * time.Second)
	}
	flows("tcp")
	w.mustIn(t, tcp(s, p, flagFIN|flagACK).frame(), false) // now it ends sooner
	w.pass(241 * time.Second)
	flows()
	if s := w.Stats(); s["flows"] != 0 || s["expired"] != 2 || s["created"] != 2 {
		t.Errorf("%v", s)
	}
	// A tick may be late for years; and what has run out is not used before it.
	w.mustOut(t, udp(c, s).frame())
	w.now += 31 * time.Second
	x := udp(s, p).frame()
	same(t, w.mustIn(t, x, false), x)
	w.mustOut(t, udp(c, s).frame())
	w.pass(1000 * time.Hour)
	flows()
	for _, n := range w.wheel {
		if n != nil {
			t.Fatal("a flow is still on the wheel")
		}
	}
	if len(w.crowds) != 0 || w.weak[listInside].oldest != nil || w.weak[listInside].newest != nil {
		t.Error("something is left of the flows")
	}
}

// nthClient is a host inside, one of many.
func nthClient(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
}

// establish makes the TCP flow of a client one that is not given up.
func establish(t rapid.TB, w *world, c, s netip.AddrPort) {
	t.Helper()
	src := mustEnds(t, w.mustOut(t, tcp(c, s, flagSYN).frame()))
	w.mustIn(t, tcp(s, src, flagSYN|flagACK).frame(), false)
	w.mustOut(t, tcp(c, s, flagACK).frame())
}

// TestOneDestination: every port is used before anybody is refused, whoever ends
// makes room at once, and nothing is told twice.
func TestOneDestination(t *testing.T) {
	w := newWorld(t, Limits{Flows: 70000}, testConfig(Forward{"wan", "udp", PortRange{2000, 2099}, ap(client4, 1)}))
	s := ap(server4, 53)
	seen := map[uint16]bool{}
	const all = 65536 - lowPort - 100
	for i := range all {
		src := mustEnds(t, w.mustOut(t, udp(ap(nthClient(i), 4000), s).frame()))
		if seen[src.Port()] || src.Port() >= 2000 && src.Port() < 2100 || src.Port() < lowPort {
			t.Fatalf("flow %d has port %d", i, src.Port())
		}
		if i == 64000 && src.Port() < midPort {
			t.Errorf("a low port, %d, while others are free", src.Port())
		}
		seen[src.Port()] = true
	}
	for i := range 100 {
		if _, why := w.out(udp(ap(nthClient(i), 4001), s).frame()); why != ndiscore.DropNATFull {
			t.Fatalf("one too many: %s", why)
		}
		w.pass(10 * time.Millisecond)
	}
	if len(w.events) != 1 || w.events[0] != "nat.full wan : all udp ports of 203.0.113.1 to 192.0.2.9 port 53 are in use; nat list --address 192.0.2.9 shows by whom" {
		t.Errorf("%q", w.events)
	}
	// To others there is room.
	w.mustOut(t, udp(ap(client4, 4001), ap(server4, 54)).frame())
	if n := w.Flush(Filter{Address: netip.MustParsePrefix("10.1.7.7/32")}, "test"); n != 1 {
		t.Errorf("%d flushed", n)
	}
	w.mustOut(t, udp(ap(client4, 4001), s).frame())
	if _, why := w.out(udp(ap(client4, 4002), s).frame()); why != ndiscore.DropNATFull {
		t.Errorf("one too many: %s", why)
	}
	if n := w.Stats(); n["refused.no_port"] != 101 || n["flows"] != all+1 {
		t.Errorf("%v", n)
	}
	w.pass(31 * time.Second) // all run out
	w.mustOut(t, udp(ap(client4, 4003), s).frame())
	if len(w.crowds) != 1 {
		t.Errorf("%d crowds", len(w.crowds))
	}
}

func TestFull(t *testing.T) {
	w := newWorld(t, Limits{Flows: 100}, testConfig(Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)}))
	s := ap(server4, 80)
	for i := range 50 {
		establish(t, w, ap(client4, uint16(10000+i)), s)
	}
	for i := range 50 {
		w.mustOut(t, udp(ap(client4, uint16(20000+i)), s).frame())
	}
	w.pass(time.Second)
	w.mustOut(t, udp(ap(client4, 20000), s).frame()) // the oldest, but not silent
	if _, why := w.in(tcp(s, ap(pub4, 80), flagSYN).frame(), false); why != ndiscore.DropNATFull {
		t.Errorf("somebody outside took the place of somebody inside: %s", why)
	}
	w.mustOut(t, udp(ap(client4, 30000), s).frame())
	has := func(port uint16) bool {
		return slices.ContainsFunc(w.Flows(Filter{}, 0), func(f Flow) bool { return f.Original.Src.Port() == port })
	}
	if !has(20000) || has(20001) || !has(20002) || !has(30000) {
		t.Error("not the one that was silent longest was given up")
	}
	for i := range 50 { // the rest of the weak ones become connections
		w.Flush(Filter{Protocol: "udp"}, "test")
		establish(t, w, ap(client4, uint16(40000+i)), s)
	}
	for range 3 {
		w.pass(time.Second)
		if _, why := w.out(udp(ap(client4, 1), s).frame()); why != ndiscore.DropNATFull {
			t.Errorf("no place: %s", why)
		}
	}
	w.pass(fullQuiet)
	w.out(udp(ap(client4, 1), s).frame())
	w.pass(time.Second)
	full := slices.DeleteFunc(slices.Clone(w.events), func(e string) bool { return e[:8] != "nat.full" })
	if len(full) != 2 || full[1] != "nat.full wan : 100 flows of at most 100, and none of them can be given up; raise flows in [nat], or end some by nat flush" {
		t.Errorf("%q", w.events)
	}
	if n := w.Stats(); n["evicted"] != 1 || n["flows"] != 100 {
		t.Errorf("%v", n)
	}
}

// TestOutsideFills: all the net may come for a published port, and hold on: those
// inside have room still.
func TestOutsideFills(t *testing.T) {
	w := newWorld(t, Limits{Flows: 80}, testConfig(Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)}))
	come := func(i int) (why ndiscore.DropReason) {
		c, s := ap(hop4, uint16(1000+i)), ap(client4, 80)
		if _, why = w.in(tcp(c, ap(pub4, 80), flagSYN).frame(), false); why == ndiscore.DropNone {
			w.mustOut(t, tcp(s, c, flagSYN|flagACK).frame())
			w.mustIn(t, tcp(c, ap(pub4, 80), flagACK).frame(), false)
		}
		return why
	}
	for i := range 100 {
		if why := come(i); (why == ndiscore.DropNone) != (i < 70) {
			t.Fatalf("%d: %s", i, why)
		}
	}
	for i := range 10 {
		establish(t, w, ap(other4, uint16(1000+i)), ap(server4, 80))
	}
	if _, why := w.out(tcp(ap(other4, 5), ap(server4, 80), flagSYN).frame()); why != ndiscore.DropNATFull {
		t.Error(why)
	}
	// The first to be refused was one outside, while there was room.
	w.pass(time.Second)
	if len(w.events) != 1 || !strings.HasPrefix(w.events[0], "nat.full wan : 70 flows begun outside, which get seven eighths of 80, and") {
		t.Errorf("%q", w.events)
	}
}

func TestListAndFlush(t *testing.T) {
	c := testConfig(Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 8080)})
	c.Interfaces = append(c.Interfaces, Interface{Name: "wan2", Addresses: prefixes("198.51.100.1/24"), Masquerade: true})
	w := newWorld(t, Limits{}, c)
	s := ap(server4, 443)
	w.mustOut(t, tcp(ap(client4, 4000), s, flagSYN).frame())
	w.pass(3 * time.Second)
	w.mustIn(t, tcp(s, ap(pub4, 4000), flagSYN|flagACK).frame(), false)
	w.mustOut(t, udp(ap(other4, 4000), s).frame())
	w.mustOut(t, udp(ap(client6, 4000), ap(server6, 1)).frame())
	w.mustIn(t, tcp(s, ap(pub4, 80), flagSYN).frame(), false)
	var why [1]ndiscore.DropReason
	w.Edge("wan2").Out([]*ndiscore.Frame{udp(ap(client4, 4000), s).frame()}, why[:])

	fs := w.Flows(Filter{Interface: "wan", Protocol: "tcp", Address: netip.MustParsePrefix("192.0.2.0/24")}, 0)
	i := slices.IndexFunc(fs, func(f Flow) bool { return f.Kind == "masquerade" })
	if len(fs) != 2 || i < 0 {
		t.Fatalf("%+v", fs)
	}
	want := Flow{
		Interface: "wan", Protocol: "tcp", Kind: "masquerade", State: "syn-received",
		Original: Tuple{ap(client4, 4000), s}, Reply: Tuple{s, ap(pub4, 4000)},
		Packets: 1, Bytes: 50, BackPackets: 1, BackBytes: 50, Age: 3 * time.Second, Expires: 240 * time.Second,
	}
	if fs[i] != want {
		t.Errorf("got  %+v\nwant %+v", fs[i], want)
	}
	for _, x := range []struct {
		f                  Filter
		limit, list, total int
	}{{Filter{}, 2, 2, 5}, {Filter{}, 0, 5, 5}, {Filter{Protocol: "udp"}, 1, 1, 3}, {Filter{Protocol: "udp", Interface: "wan2"}, 1, 1, 1}, {Filter{Interface: "lan"}, 1, 0, 0}} {
		if fs, total := w.Table.Flows(x.f, x.limit); len(fs) != x.list || total != x.total {
			t.Errorf("%+v: %d listed of %d", x, len(fs), total)
		}
	}
	for _, x := range []struct {
		f Filter
		n int
	}{
		{Filter{Interface: "lan"}, 0}, {Filter{Interface: "wan2"}, 1}, {Filter{Address: netip.MustParsePrefix("10.0.0.6/32")}, 1},
		{Filter{Address: netip.MustParsePrefix("fd00::/64")}, 1}, {Filter{Protocol: "tcp"}, 2}, {Filter{}, 0},
	} {
		if n := w.Flush(x.f, "test"); n != x.n {
			t.Errorf("%+v: %d flushed, want %d", x.f, n, x.n)
		}
	}
	if len(w.events) != 4 || w.events[0] != "nat.flushed wan2 1 flow: test" {
		t.Errorf("%q", w.events)
	}
}

// TestConfigure: what stays configured keeps its flows.
func TestConfigure(t *testing.T) {
	full := testConfig(Forward{"wan", "tcp", PortRange{80, 81}, ap(client4, 8080)}, Forward{"wan2", "tcp", PortRange{80, 80}, ap(client4, 1)})
	full.Interfaces = append(full.Interfaces, Interface{Name: "wan2", Addresses: prefixes("198.51.100.1/24"), Masquerade: true})
	for name, x := range map[string]struct {
		change func(*Config)
		gone   int
		told   string
	}{
		"nothing": {func(*Config) {}, 0, ""},
		"address": {func(c *Config) { c.Interfaces[1].Addresses = prefixes("203.0.113.2/24", "2001:db8::1/64") }, 3, "wan 3 flows: the router has no address 203.0.113.1 any more"},
		"address moved": {func(c *Config) {
			c.Interfaces[1].Addresses, c.Interfaces[2].Addresses = prefixes("203.0.113.2/24", "2001:db8::1/64"), prefixes("198.51.100.1/24", "203.0.113.1/24")
		}, 3, "wan 3 flows: interface wan has no address 203.0.113.1 any more"},
		"forward":       {func(c *Config) { c.Forwards = c.Forwards[1:] }, 1, "wan 1 flow: forward wan tcp ports 80-81 to 10.0.0.5:8080 is not configured any more"},
		"forward moved": {func(c *Config) { c.Forwards[0].To = ap(client4, 8081) }, 1, "wan 1 flow: forward wan tcp ports 80-81 to 10.0.0.5:8080 is not configured any more"},
		"masquerade":    {func(c *Config) { c.Interfaces[1].Masquerade = false }, 2, "wan 2 flows: masquerade is not configured any more"},
		"masquerade6":   {func(c *Config) { c.Interfaces[1].Masquerade6 = false }, 1, "wan 1 flow: masquerade6 is not configured any more"},
		"edge":          {func(c *Config) { c.Interfaces[2].Masquerade, c.Forwards = false, c.Forwards[:1] }, 1, "wan2 1 flow: it has no NAT any more"},
		"interface":     {func(c *Config) { c.Interfaces, c.Forwards = c.Interfaces[:2], c.Forwards[:1] }, 1, "wan2 1 flow: it has no NAT any more"},
	} {
		t.Run(name, func(t *testing.T) {
			c := full
			c.Interfaces, c.Forwards = slices.Clone(full.Interfaces), slices.Clone(full.Forwards)
			w := newWorld(t, Limits{}, c)
			edge := w.Edge("wan2")
			s := ap(server4, 443)
			w.mustOut(t, udp(ap(client4, 1), s).frame())
			w.mustOut(t, udp(ap(client4, 2), s).frame())
			w.mustOut(t, udp(ap(client6, 1), ap(server6, 1)).frame())
			w.mustIn(t, tcp(s, ap(pub4, 80), flagSYN).frame(), false)
			f := udp(ap(client4, 1), s).frame()
			var why [1]ndiscore.DropReason
			edge.Out([]*ndiscore.Frame{f}, why[:])
			x.change(&c)
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			w.Configure(c)
			if n := w.Stats()["flushed"]; int(n) != x.gone {
				t.Errorf("%d flows flushed, want %d: %q", n, x.gone, w.events)
			}
			if x.told != "" && !slices.Equal(w.events, []string{"nat.flushed " + x.told}) || x.told == "" && w.events != nil {
				t.Errorf("%q, want %q", w.events, x.told)
			}
			if e := w.Edge("wan2"); e != edge && e != nil {
				t.Error("another edge for the same interface")
			}
			// An edge that is gone does nothing; one that comes gets its place.
			f = udp(ap(client4, 9), s).frame()
			if edge.Out([]*ndiscore.Frame{f}, why[:]); w.Edge("wan2") == nil && mustEnds(t, f) != ap(client4, 9) {
				t.Error("it is still masquerading")
			}
			w.Configure(full)
			if len(w.byID) != 2 {
				t.Errorf("%d edges", len(w.byID))
			}
		})
	}
}

// TestSetLimits: the table grows and shrinks with its flows in it.
func TestSetLimits(t *testing.T) {
	w := newWorld(t, Limits{Flows: 4}, testConfig())
	flow := func(port uint16) { w.mustOut(t, udp(ap(client4, port), ap(server4, 1)).frame()) }
	for port := range uint16(4) {
		flow(4000 + port)
	}
	w.SetLimits(Limits{Flows: 3000, UDP: time.Minute})
	for port := range uint16(2000) {
		flow(4000 + port)
	}
	if n := w.Stats(); n["flows"] != 2000 || n["created"] != 2000 || n["limit"] != 3000 {
		t.Errorf("%v", n)
	}
	if f := w.Flows(Filter{}, 1)[0]; f.Expires != time.Minute {
		t.Errorf("%+v", f)
	}
	w.SetLimits(Limits{Flows: 1500})
	for port := range uint16(600) {
		flow(10000 + port)
	}
	if n := w.Stats()["flows"]; n != 1500 {
		t.Errorf("%d flows", n)
	}
}
