package vswitch_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// streams are TCP connections through the translation, each in its own way.
//
//	second 10.1.0.3 --+                                  10.2.0.1
//	                  +-- bridge lan -- router with NAT -- bundle wan -- server 10.2.0.2
//	client 10.1.0.2 --+
type streams map[string]*lab.TCPBulk

// startStreams opens a connection of each way asked for: "out", in by a "forward",
// and "hairpin", from the inside to the outside's address and in again; in both
// families.
func (u *uplinks) startStreams(t *testing.T, ways ...string) streams {
	t.Helper()
	s := streams{}
	for family, a := range map[string]struct{ server, ours, inside string }{
		"v4": {"10.2.0.2", "10.2.0.1", "10.1.0.2"}, "v6": {"fd00:2::2", "fd00:2::1", "fd00:1::2"},
	} {
		published := netip.AddrPortFrom(addr(a.inside), 80)
		for way, x := range map[string]struct {
			from, to *lab.Host
			dst      string
			port     uint16
		}{
			"out":     {u.second, u.server, a.server, 0},
			"forward": {u.server, u.client, a.ours, 8080},
			"hairpin": {u.second, u.client, a.ours, 8080},
		} {
			if !slices.Contains(ways, way) {
				continue
			}
			o := lab.TCPBulkOptions{Rate: 256 << 10, Duplex: true, Port: x.port}
			if x.port != 0 {
				o.Listen = published
			}
			bulk, err := x.from.StartTCPBulk(t.Context(), x.to, addr(x.dst), o)
			if err != nil {
				t.Fatalf("%s %s: %v", way, family, err)
			}
			s[way+" "+family] = bulk
		}
	}
	return s
}

// flow waits until every connection has carried so many more bytes each way.
func (s streams) flow(t *testing.T, name string) {
	t.Helper()
	got := map[string][2]uint64{}
	must(t, lab.Eventually(within(t, 60*time.Second), name+": all connections to go on", func() error {
		var late []string
		for way, bulk := range s {
			x := bulk.Snapshot()
			if x.Err != nil {
				t.Fatalf("%s: %s broke: %v", name, way, x.Err)
			}
			n := got[way]
			got[way] = [2]uint64{n[0] + x.AtoB.Received, n[1] + x.BtoA.Received}
			if min(got[way][0], got[way][1]) < 64<<10 {
				late = append(late, way)
			}
		}
		if len(late) > 0 {
			return fmt.Errorf("%v stand still: %v", late, got)
		}
		return nil
	}))
}

// end stops them: every byte has arrived.
func (s streams) end(t *testing.T) {
	t.Helper()
	for way, bulk := range s {
		x, err := bulk.Stop(within(t, 60*time.Second))
		if err != nil || !x.Survived() {
			t.Errorf("%s: %v, %+v", way, err, x)
		}
	}
}

// known are the flows of TCP that the router translates, without what changes
// while they last.
func known(t *testing.T, sw *lab.Switch) (flows []string) {
	t.Helper()
	table, err := sw.NAT(t.Context(), control.NATMatch{}, 1000)
	must(t, err)
	for _, f := range table.Flows {
		if f.Protocol == "tcp" {
			flows = append(flows, fmt.Sprintf("%s %s: %s > %s, back %s > %s", f.Kind, f.State, f.Source, f.Destination, f.ReplySource, f.ReplyDestination))
		}
	}
	slices.Sort(flows)
	return flows
}

// TestNAT takes connections out, in and around by the kernels of four hosts, and
// has the team below fail: what is translated stays as it was.
func TestNAT(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksNAT, "hold = \"100ms\"\n")
	ctx := within(t, 90*time.Second)
	s := u.startStreams(t, "out", "forward", "hairpin")
	s.flow(t, "at first")
	before := known(t, u.sw)
	if len(before) < len(s) {
		t.Errorf("%d connections, but only these are known:\n%s", len(s), strings.Join(before, "\n"))
	}

	// UDP through a published range, and an echo through the translation.
	published := netip.MustParseAddrPort("10.1.0.2:6003")
	for _, from := range []*lab.Host{u.server, u.second} {
		flow, err := from.StartUDPFlow(ctx, u.client, addr("10.2.0.1"), lab.UDPFlowOptions{Rate: 200, Port: 5003, Listen: published})
		must(t, err)
		var back uint64
		must(t, lab.Eventually(ctx, "datagrams through the forward", func() error {
			if back += flow.Snapshot(ctx).BtoA.Received; back < 40 {
				return fmt.Errorf("%d came back", back)
			}
			return nil
		}))
		must(t, flow.Stop())
	}
	for _, dst := range []string{"10.2.0.2", "fd00:2::2", "10.2.0.1", "fd00:2::1"} {
		for _, size := range []int{56, 4000} { // in fragments
			r, err := u.client.Ping(ctx, addr(dst), lab.PingOptions{Count: 3, Size: size, Timeout: 10 * time.Second})
			if err == nil {
				err = r.Err()
			}
			if err != nil {
				t.Errorf("ping of %s with %d bytes: %v", dst, size, err)
			}
		}
	}
	for i, fail := range []func() error{
		func() error { return u.wires[0].Cut(lab.EndA) },
		func() error { return u.here.Down("up0") },
	} {
		must(t, fail(), u.sw.WaitActive(ctx, "wan", "up1"))
		s.flow(t, "at the other member")
		if i == 0 {
			must(t, u.wires[0].Restore(lab.EndA))
		} else {
			must(t, u.here.Up("up0"))
		}
		must(t, u.sw.WaitActive(ctx, "wan", "up0"))
		s.flow(t, "back again")
	}
	if now := known(t, u.sw); !slices.Equal(now, before) {
		t.Errorf("the flows are now\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
	}

	// What was forgotten on request is over; the others are not.
	mark := newest(u.sw.Switch)
	n, err := u.sw.FlushNAT(ctx, control.NATMatch{Address: "10.1.0.3", Protocol: "6"})
	if err != nil || n < 2 {
		t.Errorf("%d flows of 10.1.0.3 flushed, %v", n, err)
	}
	_, err = u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
		return e.What == "nat.flushed" && e.Why == "flushed on request: address 10.1.0.3, protocol 6"
	})
	must(t, err)
	for _, way := range []string{"out v4", "hairpin v4"} { // whether they survive is up to their ends
		delete(s, way)
	}
	s.flow(t, "after the flush")
	s.end(t)
	noChecksumErrors(t, u.client, u.second, u.server)
}

// TestNATNDIS5: the translation outlives the loss of the interface below it.
func TestNATNDIS5(t *testing.T) {
	lab.CheckLeaks(t)
	u := newUplinks(t, uplinksNAT, "mode = \"ndis5\"\n")
	ctx := within(t, 90*time.Second)
	s := u.startStreams(t, "out", "forward", "hairpin")
	s.flow(t, "at first")
	before := known(t, u.sw)
	for i, other := range []string{"up1", "up0"} {
		mark := newest(u.sw.Switch)
		must(t, u.wires[i].Cut(lab.EndA))
		_, err := u.sw.WaitEvent(ctx, mark, func(e ndiscore.Event) bool {
			return e.What == "binding.bound" && e.Protocol == "stack" && e.Adapter == other
		})
		must(t, err)
		s.flow(t, "bound to "+other)
		// What the interface is bound to at the moment names it too.
		if table, err := u.sw.NAT(ctx, control.NATMatch{Interface: other, Protocol: "tcp"}, 1); err != nil || len(table.Flows) != 1 || table.Total < len(before) {
			t.Errorf("the flows on %s: %+v, %v", other, table, err)
		}
		must(t, u.wires[i].Restore(lab.EndA), u.waitRole(ctx, fmt.Sprintf("up%d", i), "secondary"))
	}
	if now := known(t, u.sw); !slices.Equal(now, before) {
		t.Errorf("the flows are now\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
	}
	s.end(t)
	noChecksumErrors(t, u.client, u.second, u.server)
}
