package bridge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var (
	group4 = netip.MustParseAddr("239.1.2.3")
	group6 = netip.MustParseAddr("ff05::1:3")
	asker4 = netip.MustParseAddr("192.0.2.1")
	asker6 = netip.MustParseAddr("fe80::1")
	host4  = netip.MustParseAddr("192.0.2.9")
	host6  = netip.MustParseAddr("fe80::9")
)

// ip wraps body, whose checksum is filled in, into a packet from src to dst:
// IGMP behind a router alert, MLD behind hop-by-hop options, or PIM.
func ip(src, dst netip.Addr, proto byte, body []byte) []byte {
	body = bytes.Clone(body)
	if src.Is4() {
		h := []byte{0x46, 0xc0, 0, 0, 0, 0, 0x40, 0, 1, proto, 0, 0}
		h = append(h, src.AsSlice()...)
		h = append(h, dst.AsSlice()...)
		h = append(h, 0x94, 4, 0, 0)
		h[6] = 0
		binary.BigEndian.PutUint16(h[2:], uint16(24+len(body)))
		binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
		fillSum(body, 0)
		return append(h, body...)
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, proto, 1}
	h = append(h, src.AsSlice()...)
	h = append(h, dst.AsSlice()...)
	pseudo := uint32(sum(uint32(len(body))+uint32(proto), h[8:40]))
	fillSum(body, pseudo)
	if proto == protoICMPv6 {
		h[6] = protoHop
		h = append(h, protoICMPv6, 0, 5, 2, 0, 0, 1, 0)
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)-40+len(body)))
	return append(h, body...)
}

func fillSum(body []byte, start uint32) {
	if len(body) >= 4 {
		binary.BigEndian.PutUint16(body[2:], 0)
		binary.BigEndian.PutUint16(body[2:], ^sum(start, body))
	}
}

func bytesOf(parts ...any) (b []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case netip.Addr:
			b = append(b, p.AsSlice()...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// groupMAC is where packets to a group go (RFC 1112 section 6.4, RFC 2464
// section 7).
func groupMAC(a netip.Addr) ndiscore.MAC {
	b := a.AsSlice()
	if a.Is4() {
		return ndiscore.MAC{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return ndiscore.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// packet is a frame with an IP packet to a group.
func packet(src ndiscore.MAC, p []byte) []byte {
	etherType, dst := uint16(ndiscore.EtherTypeIPv4), netip.Addr{}
	if p[0]>>4 == 6 {
		etherType = ndiscore.EtherTypeIPv6
		dst = netip.AddrFrom16([16]byte(p[24:40]))
	} else {
		dst = netip.AddrFrom4([4]byte(p[16:20]))
	}
	to := groupMAC(dst)
	f := bytesOf(to[:], src[:])
	f = binary.BigEndian.AppendUint16(f, etherType)
	f = append(f, p...)
	return append(f, make([]byte, max(60-len(f), 0))...)
}

func query4(group netip.Addr) []byte { return bytesOf(igmpQuery, 100, 0, 0, group) }
func report4(group netip.Addr) []byte {
	return ip(host4, group, protoIGMP, bytesOf(igmpReportV2, 0, 0, 0, group))
}
func generalQuery4() []byte {
	all := netip.MustParseAddr("224.0.0.1")
	return ip(asker4, all, protoIGMP, query4(netip.IPv4Unspecified()))
}
func generalQuery6() []byte {
	return ip(asker6, allNodes, protoICMPv6, bytesOf(mldQuery, 0, 0, 0, 0x27, 0x10, 0, 0, netip.IPv6Unspecified(), 2, 125, 0, 0))
}
func report6(group netip.Addr) []byte {
	return ip(host6, netip.MustParseAddr("ff02::16"), protoICMPv6, bytesOf(mldReportV2, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, group))
}

// data is a UDP packet to a group.
func data(group netip.Addr) []byte {
	src := host4
	if group.Is6() {
		src = host6
	}
	return ip(src, group, 17, make([]byte, 20))
}

func TestParseMembership(t *testing.T) {
	g1, g2, g3 := netip.MustParseAddr("239.0.0.1"), netip.MustParseAddr("232.9.9.9"), netip.MustParseAddr("239.255.0.3")
	h1, h2 := netip.MustParseAddr("ff0e::42"), netip.MustParseAddr("ff02::fb")
	to4, to6 := netip.MustParseAddr("224.0.0.22"), netip.MustParseAddr("ff02::16")
	v4 := func(parts ...any) []byte {
		to := to4
		if parts[0] == igmpQuery {
			to = allHosts
		}
		return ip(host4, to, protoIGMP, bytesOf(parts...))
	}
	v6 := func(parts ...any) []byte {
		to := to6
		if parts[0] == mldQuery {
			to = allNodes
		}
		return ip(host6, to, protoICMPv6, bytesOf(parts...))
	}
	none, none6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	s, min := time.Second, time.Minute
	report := func(v6 bool, joins ...netip.Addr) message {
		m := message{kind: reportMessage, v6: v6, from: host4, joins: joins}
		if v6 {
			m.from = host6
		}
		return m
	}
	query := func(group netip.Addr, response, interval time.Duration, robustness int, narrow bool) message {
		return message{kind: queryMessage, from: host4, v6: group.Is6() || group == none6, group: group, response: response, interval: interval, robustness: robustness, narrow: narrow}
	}
	six := func(m message) message { m.v6, m.from = true, host6; return m }
	for _, c := range []struct {
		name string
		p    []byte
		want message
	}{
		{"IGMPv1 query", v4(igmpQuery, 0, 0, 0, none), query(netip.Addr{}, 10*s, 125*s, 2, false)},
		{"IGMPv2 general query", v4(igmpQuery, 100, 0, 0, none), query(netip.Addr{}, 10*s, 125*s, 2, false)},
		{"IGMPv2 group query", v4(igmpQuery, 10, 0, 0, g1), query(g1, 1*s, 125*s, 2, false)},
		{"IGMPv2 group query to the group", ip(host4, g1, protoIGMP, query4(g1)), query(g1, 10*s, 125*s, 2, false)},
		{"IGMPv3 general query, no time to answer", v4(igmpQuery, 0, 0, 0, none, 2, 125, 0, 0), query(netip.Addr{}, 100*time.Millisecond, 125*s, 2, false)},
		{"IGMPv3 general query", v4(igmpQuery, 0x8a, 0, 0, none, 3, 0x90, 0, 0), query(netip.Addr{}, 20800*time.Millisecond, 256*s, 3, false)},
		{"IGMPv3 group and source query", v4(igmpQuery, 10, 0, 0, g1, 2, 20, 0, 1, host4), query(g1, 1*s, 20*s, 2, true)},
		{"IGMPv3 query with S", v4(igmpQuery, 10, 0, 0, g1, 8|2, 20, 0, 0), query(g1, 1*s, 20*s, 2, true)},
		{"IGMPv3 query, absurd times", v4(igmpQuery, 255, 0, 0, none, 7, 255, 0, 0), query(netip.Addr{}, 3174400*time.Millisecond, 60*min, 7, false)},
		{"IGMPv1 report", v4(igmpReportV1, 0, 0, 0, g1), report(false, g1)},
		{"IGMPv2 report", v4(igmpReportV2, 0, 0, 0, g1), report(false, g1)},
		{"IGMPv2 leave", v4(igmpLeave, 0, 0, 0, g1), report(false)},
		{"IGMPv2 report of a group of the link", v4(igmpReportV2, 0, 0, 0, netip.MustParseAddr("224.0.0.251")), report(false)},
		{"IGMPv3 report", v4(igmpReportV3, 0, 0, 0, 0, 0, 0, 6,
			4, 0, 0, 0, g1, // to exclude nothing: join
			3, 0, 0, 0, g2, // to include nothing: leave
			1, 0, 0, 1, g2, host4, // include one source: join
			6, 0, 0, 1, g1, host4, // block
			2, 1, 0, 2, g3, host4, asker4, 1, 2, 3, 4, // exclude, with auxiliary data
			9, 0, 0, 0, g1), // unknown
			report(false, g1, g2, g3)},
		{"MLDv1 general query", v6(mldQuery, 0, 0, 0, 0x27, 0x10, 0, 0, none6), six(query(netip.Addr{}, 10*s, 125*s, 2, false))},
		{"MLDv1 group query", v6(mldQuery, 0, 0, 0, 3, 0xe8, 0, 0, h1), query6(h1)},
		{"MLDv2 general query", v6(mldQuery, 0, 0, 0, 0x90, 0, 0, 0, none6, 3, 60, 0, 0), six(query(netip.Addr{}, 65536*time.Millisecond, 60*s, 3, false))},
		{"MLDv1 report", v6(mldReportV1, 0, 0, 0, 0, 0, 0, 0, h1), report(true, h1)},
		{"MLDv1 done", v6(mldDone, 0, 0, 0, 0, 0, 0, 0, h1), report(true)},
		{"MLDv2 report", v6(mldReportV2, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0, h1, 2, 0, 0, 0, h2, 2, 0, 0, 0, netip.MustParseAddr("ff02::1:ff00:9"), 4, 0, 0, 0, netip.MustParseAddr("ff01::1")), report(true, h1, h2)},
		{"PIM hello", ip(host4, netip.MustParseAddr("224.0.0.13"), protoPIM, bytesOf(pimHello, 0, 0, 0, 0, 1, 0, 2, 0, 105)), message{kind: helloMessage, from: host4}},
		{"PIM hello, IPv6", ip(host6, netip.MustParseAddr("ff02::d"), protoPIM, bytesOf(pimHello, 0, 0, 0, 0, 1, 0, 2, 0, 105)), message{kind: helloMessage, v6: true, from: host6}},
	} {
		etherType := uint16(ndiscore.EtherTypeIPv4)
		if c.p[0]>>4 == 6 {
			etherType = ndiscore.EtherTypeIPv6
		}
		m, ok := parse(etherType, append(bytes.Clone(c.p), 0, 0, 0), nil)
		if !ok {
			t.Errorf("%s: refused", c.name)
			continue
		}
		if diff := cmp.Diff(c.want, m, cmp.AllowUnexported(message{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		// Cut short or with any bit spoilt it is refused, or no message at all.
		for n := range c.p {
			if m, ok := parse(etherType, c.p[:n], nil); ok {
				t.Errorf("%s: %d of %d bytes are taken for %+v", c.name, n, len(c.p), m)
			}
			if etherType == ndiscore.EtherTypeIPv6 && (n < 8 || n == 40) {
				continue // no checksum there: what matters of it is checked below
			}
			for bit := range 8 {
				bad := bytes.Clone(c.p)
				bad[n] ^= 1 << bit
				if m, ok := parse(etherType, bad, nil); ok && !sameSum(etherType, n) {
					t.Errorf("%s: byte %d bit %d spoilt is taken for %+v", c.name, n, bit, m)
				}
			}
		}
	}
	ok6 := report6(group6)
	change := func(p []byte, f func(p []byte)) []byte { p = bytes.Clone(p); f(p); return p }
	for name, p := range map[string][]byte{
		"a hop limit of 2":          change(ok6, func(p []byte) { p[7] = 2 }),
		"no router alert":           change(ok6, func(p []byte) { p[42] = 1 }),
		"options that lie":          change(ok6, func(p []byte) { p[43] = 200 }),
		"a global source":           ip(netip.MustParseAddr("2001:db8::1"), allNodes, protoICMPv6, bytesOf(mldReportV1, 0, 0, 0, 0, 0, 0, 0, group6)),
		"a query from nobody":       ip(netip.IPv6Unspecified(), allNodes, protoICMPv6, bytesOf(mldQuery, 0, 0, 0, 0, 0, 0, 0, netip.IPv6Unspecified())),
		"a query of 26 bytes":       ip(host6, allNodes, protoICMPv6, bytesOf(mldQuery, 0, 0, 0, 0, 0, 0, 0, netip.IPv6Unspecified(), 0, 0)),
		"a report of a host":        v6(mldReportV1, 0, 0, 0, 0, 0, 0, 0, host6),
		"more records than it has":  v6(mldReportV2, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0, h1),
		"more sources than it has":  v4(igmpReportV3, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0xff, 0xff, g1),
		"an IGMP query of 10 bytes": v4(igmpQuery, 10, 0, 0, none, 0, 0),
		"a report of a host, v4":    v4(igmpReportV2, 0, 0, 0, host4),
		"a report of a host, v3":    v4(igmpReportV3, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, host4),
		"a query for a host":        v4(igmpQuery, 10, 0, 0, host4),
		"an unknown type":           v4(0x42, 10, 0, 0, g1),
		"PIM that is no hello":      ip(host4, to4, protoPIM, bytesOf(0x23, 0, 0, 0, 0, 0, 0, 0)),
		"a fragment":                change(v4(igmpReportV2, 0, 0, 0, g1), func(p []byte) { p[6] = 0x20; p[10], p[11] = 0, 0; binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:24])) }),
	} {
		etherType := uint16(ndiscore.EtherTypeIPv4)
		if p[0]>>4 == 6 {
			etherType = ndiscore.EtherTypeIPv6
		}
		if m, ok := parse(etherType, p, nil); ok {
			t.Errorf("%s is taken for %+v", name, m)
		}
	}
}

func query6(group netip.Addr) message {
	return message{kind: queryMessage, v6: true, from: host6, group: group, response: time.Second, interval: 125 * time.Second, robustness: 2}
}

// sameSum reports whether a bit of byte n may change without a checksum to
// notice: in the options before an MLD message.
func sameSum(etherType uint16, n int) bool {
	return etherType == ndiscore.EtherTypeIPv6 && n > 40 && n < 48
}

func FuzzMembership(f *testing.F) {
	f.Add(generalQuery4(), false)
	f.Add(generalQuery6(), true)
	f.Add(report4(group4), false)
	f.Add(report6(group6), true)
	f.Add(ip(host4, group4, protoIGMP, bytesOf(igmpReportV3, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, group4, host4)), false)
	f.Add(ip(host4, group4, protoPIM, bytesOf(pimHello, 0, 0, 0, 0, 1, 0, 2, 0, 105)), false)
	f.Fuzz(func(t *testing.T, p []byte, v6 bool) {
		etherType := uint16(ndiscore.EtherTypeIPv4)
		if v6 {
			etherType = ndiscore.EtherTypeIPv6
		}
		// Once as it is, once with its checksums put right, so that what is
		// behind them is reached.
		for range 2 {
			kind := peek(etherType, p)
			m, ok := parse(etherType, p, nil)
			if ok && (m.kind != kind || m.v6 != v6 || kind == noMessage) {
				t.Fatalf("kind %d at first, then %+v", kind, m)
			}
			if ok && len(m.joins) > len(p)/8 {
				t.Fatalf("%d groups in %d bytes", len(m.joins), len(p))
			}
			for _, g := range m.joins {
				if !g.IsMulticast() {
					t.Fatalf("%s is no group", g)
				}
			}
			if ok && m.kind == queryMessage && (m.interval < minInterval || m.interval > maxInterval || m.response < 0 || m.response > 3*time.Hour || m.robustness < 1 || m.robustness > maxRobustness) {
				t.Fatalf("%+v", m)
			}
			p = bytes.Clone(p)
			repair(p, v6)
		}
	})
}

// repair puts right the checksums of what looks like a packet.
func repair(p []byte, v6 bool) {
	if v6 && len(p) >= 56 {
		p[0], p[7], p[8], p[9] = 0x60, 1, 0xfe, 0x80
		n := 40
		proto := uint32(p[6])
		if p[6] == protoHop {
			n, proto = 48+int(p[41])*8, protoICMPv6
		}
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		if len(p) >= n {
			fillSum(p[n:], uint32(sum(uint32(len(p)-n)+proto, p[8:40])))
		}
	}
	if n := 0; !v6 && len(p) >= 28 {
		p[0] = 0x45 + p[0]&3
		n = int(p[0]&15) * 4
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[6], p[7], p[10], p[11] = 0, 0, 0, 0
		if len(p) >= n {
			binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:n]))
			fillSum(p[n:], 0)
		}
	}
}

// heard waits until the keeper has read n messages in all.
func (l *lan) heard(n int) {
	l.t.Helper()
	l.await("the keeper to read", func() bool {
		if int(l.bridge.snoop.reports.Load()) == n {
			return true
		}
		l.clock.Advance(snoopPace)
		return false
	})
	l.bridge.snoop.count() // waits until it has published what it read
}

// pass lets time go by until the keeper has seen that it did.
func (l *lan) pass(d time.Duration) {
	l.tick(d)
	l.tick(snoopTick) // what has run out by now is noticed within so much
	l.tick(snoopPace)
}

// TestSnooping: router at p0, listener at p1, another host at p2, nobody at p3.
func TestSnooping(t *testing.T) {
	for _, c := range []struct {
		name                  string
		query, report, data   []byte
		leave, groupQuery     []byte
		others                [][]byte // flooded whatever is known
		group                 netip.Addr
		membership, lastQuery time.Duration
	}{
		{
			"IGMP", generalQuery4(), report4(group4), data(group4),
			ip(host4, netip.MustParseAddr("224.0.0.2"), protoIGMP, bytesOf(igmpLeave, 0, 0, 0, group4)),
			ip(asker4, group4, protoIGMP, bytesOf(igmpQuery, 10, 0, 0, group4)),
			[][]byte{data(netip.MustParseAddr("239.9.9.9")), data(netip.MustParseAddr("224.0.0.251")), data(group6)},
			group4, 260 * time.Second, 2 * time.Second,
		},
		{
			"MLD", generalQuery6(), report6(group6), data(group6),
			ip(host6, netip.MustParseAddr("ff02::2"), protoICMPv6, bytesOf(mldDone, 0, 0, 0, 0, 0, 0, 0, group6)),
			ip(asker6, group6, protoICMPv6, bytesOf(mldQuery, 0, 0, 0, 3, 0xe8, 0, 0, group6)),
			[][]byte{data(netip.MustParseAddr("ff05::9")), data(allNodes), data(netip.MustParseAddr("ff02::1:ff12:3456")), data(group4)},
			group6, 260 * time.Second, 2 * time.Second,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLAN(t, 4, true, func(o *Options) { o.Snooping = true })
			p0, p1, p2 := l.wires[0], l.wires[1], l.wires[2]
			p1.receive(packet(mac(1), c.report))
			l.want("without a querier a report is flooded", 1, 0, 1, 1, 1)
			l.heard(1)
			p0.receive(packet(mac(9), c.data))
			l.want("and so is data", 0, 1, 1, 1, 1)

			p0.receive(packet(mac(9), c.query))
			l.want("a query is flooded", 0, 1, 1, 1, 1)
			l.heard(2)
			p2.receive(packet(mac(2), c.data))
			l.want("those who listen have not all had their say", 1, 1, 0, 1, 1)
			if q := l.bridge.Queriers(); len(q) != 1 || q[0].Pruning || q[0].Port != "p0" {
				t.Errorf("%+v", q)
			}
			l.pass(10 * time.Second)
			p2.receive(packet(mac(2), c.data))
			l.want("now data goes to the router and the listener", 1, 1, 0, 0, 1)
			for _, o := range c.others {
				p2.receive(packet(mac(2), o))
				l.want(fmt.Sprintf("%x is flooded", o), 1, 1, 0, 1, 1)
			}
			p2.receive(packet(mac(2), c.report))
			l.want("a report goes to the router", 1, 0, 0, 0, 1)
			l.heard(3)
			l.pass(time.Second)
			p0.receive(packet(mac(9), c.data))
			l.want("two listen", 0, 1, 1, 0, 1)
			want := []Group{{Group: c.group, Ports: []string{"p1", "p2"}}}
			if diff := cmp.Diff(want, l.bridge.Groups(), cmpopts.IgnoreFields(Group{}, "Expires"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if i := l.bridge.Ports(); !i[0].Router || i[1].Router {
				t.Errorf("%+v", i)
			}

			// One leaves: the router asks, the other answers.
			p2.receive(packet(mac(2), c.leave))
			l.want("a leave goes to the router", 1, 0, 0, 0, 1)
			p0.receive(packet(mac(9), c.groupQuery))
			l.want("a query for the group is flooded", 0, 1, 1, 1, 1)
			l.heard(5)
			p1.receive(packet(mac(1), c.report))
			l.counts()
			l.heard(6)
			l.pass(c.lastQuery)
			p0.receive(packet(mac(9), c.data))
			l.want("one listens still", 0, 1, 0, 0, 1)

			// A frame from above goes the same ways.
			send := func(p []byte) {
				w, err := l.core.NewWorker("test")
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				b := ndiscore.NewBatch(w)
				b.Borrowed = true
				f, d := new(ndiscore.Frame), packet(l.bridge.MAC(), p)
				f.Reset(d, 0, len(d))
				b.Append(f)
				l.above.binding.Send(b)
			}
			send(c.data)
			l.want("data from above", 1, 1, 0, 0, 0)
			send(c.report)
			l.want("a report from above", 1, 0, 0, 0, 0)

			// A port that comes up anew gets everything until it was asked.
			p2.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
			p2.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "test"})
			p0.receive(packet(mac(9), c.data))
			l.want("p2 is back", 0, 1, 1, 0, 1)
			p1.receive(packet(mac(1), c.report))
			l.want("but it hears no reports, and so says what it has to say", 1, 0, 0, 0, 1)
			p0.receive(packet(mac(9), c.query))
			l.counts()
			l.heard(8)
			l.pass(11 * time.Second)
			p0.receive(packet(mac(9), c.data))
			l.want("it was asked", 0, 1, 0, 0, 1)

			// The listener's port goes: the group is known no more.
			p1.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "test"})
			p0.receive(packet(mac(9), c.data))
			l.want("nobody is known to listen", 0, 0, 1, 1, 1)
			if s := l.bridge.Stats(); s.Groups != 0 || s.Pruned == 0 {
				t.Errorf("%+v", s)
			}
			p1.handle.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaConnected, Why: "test"})
			p1.receive(packet(mac(1), c.report))
			l.counts()
			l.heard(9)
			p0.receive(packet(mac(9), c.data))
			l.want("it is back", 0, 1, 0, 0, 1)

			// The querier falls silent: flooding again.
			l.pass(c.membership)
			if q := l.bridge.Queriers(); len(q) != 0 {
				t.Errorf("%+v", q)
			}
			p0.receive(packet(mac(9), c.data))
			l.want("no querier", 0, 1, 1, 1, 1)
			if g := l.bridge.Groups(); len(g) != 0 {
				t.Errorf("%+v", g)
			}
			for _, w := range l.wires {
				l.counters(w.name)
			}
		})
	}
}

func TestSnoopingVLAN(t *testing.T) {
	l := newLAN(t, 5, true, func(o *Options) { vlanPorts(t)(o); o.Snooping = true })
	p0, p2, p3 := l.wires[0], l.wires[2], l.wires[3]
	p2.receive(withTags(packet(mac(9), generalQuery4()), tagOf(10)))
	p0.receive(packet(mac(1), report4(group4)))
	l.counts()
	l.heard(2)
	l.pass(11 * time.Second)
	p3.receive(packet(mac(3), data(group4)))
	l.want("VLAN 10 prunes", 1, 0, 1, 0, 0, 1)
	p3.receive(withTags(packet(mac(3), data(group4)), tagOf(20)))
	l.want("VLAN 20 does not", 0, 1, 1, 0, 0, 0)
	want := []Querier{{VLAN: 10, Address: asker4, Port: "p2", Routers: []string{"p2"}, Pruning: true}}
	if diff := cmp.Diff(want, l.bridge.Queriers(), cmpopts.IgnoreFields(Querier{}, "Expires"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// TestSnoopingBounds: what does not fit is flooded.
func TestSnoopingBounds(t *testing.T) {
	l := newLAN(t, 3, false, func(o *Options) { o.Snooping = true })
	p0, p1 := l.wires[0], l.wires[1]
	p0.receive(packet(mac(9), generalQuery4()))
	l.heard(1)
	l.pass(11 * time.Second)
	group := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{239, 1, byte(i >> 8), byte(i)}) }
	n := 1
	for i := range maxGroups + 10 {
		p1.receive(packet(mac(1), report4(group(i))))
		n++
		if i%100 == 0 {
			l.heard(n)
		}
	}
	l.heard(n)
	l.counts()
	if s := l.bridge.Stats(); s.Groups != maxGroups || s.Unread != 0 {
		t.Errorf("%+v", s)
	}
	p0.receive(packet(mac(9), data(group(5))))
	l.want("a group that is followed", 0, 1, 0)
	p0.receive(packet(mac(9), data(group(maxGroups+5))))
	l.want("one that did not fit", 0, 1, 1)
	// More at once than the keeper has room for: from then on, for as long as
	// it takes to hear everybody again, nothing is relied upon.
	for range 2 * noteBytes / (noteHeader + 32) {
		p1.receive(packet(mac(1), report4(group(1))))
	}
	l.counts()
	l.tick(snoopPace)
	l.tick(snoopPace)
	l.await("blindness", func() bool { return l.bridge.snoop.view.Load().families[familyKey{}].groups == nil })
	if s := l.bridge.Stats(); s.Unread == 0 {
		t.Errorf("%+v", s)
	}
	p0.receive(packet(mac(9), data(group(5))))
	l.want("blind", 0, 1, 1)
	p0.receive(packet(mac(9), generalQuery4()))
	l.pass(250 * time.Second)
	p0.receive(packet(mac(9), generalQuery4()))
	p1.receive(packet(mac(1), report4(group(5))))
	l.counts()
	l.pass(20 * time.Second)
	p0.receive(packet(mac(9), data(group(5))))
	l.want("it sees again", 0, 1, 0)
}

// TestSnoopingStorm: who listens, or routes, on a port that is over its limit
// keeps being served; a query that nobody else heard takes nothing from anybody.
func TestSnoopingStorm(t *testing.T) {
	l := newLAN(t, 4, false, func(o *Options) {
		o.Snooping = true
		o.Port = map[string]PortOptions{"p1": {StormMulticast: 1}, "p2": {StormMulticast: 1}}
	})
	p0, p1, p2, p3 := l.wires[0], l.wires[1], l.wires[2], l.wires[3]
	p0.receive(packet(mac(9), generalQuery4()))
	p3.receive(packet(mac(3), report4(group4)))
	p1.receive(packet(mac(1), data(group4))) // all that it may bring
	p2.receive(packet(mac(2), data(group4)))
	l.heard(2)
	l.counts()
	p1.receive(packet(mac(1), report4(group4)))
	p2.receive(packet(mac(2), ip(host4, netip.MustParseAddr("224.0.0.13"), protoPIM, bytesOf(pimHello, 0, 0, 0, 0, 1, 0, 2, 0, 105))))
	p2.receive(packet(mac(2), ip(asker4, group4, protoIGMP, bytesOf(igmpQuery, 10, 0, 0, group4))))
	l.want("all of it is over the limits", 0, 0, 0, 0)
	l.heard(4)
	l.pass(20 * time.Second)
	p0.receive(packet(mac(9), data(group4)))
	l.want("a listener, a router, and another listener", 0, 1, 1, 1)
	if n := l.counters("p1").RxDropped["storm"]; n != 1 {
		t.Errorf("%d dropped", n)
	}
	if s := l.bridge.Stats(); s.Unread != 0 || s.Reports != 4 {
		t.Errorf("%+v", s)
	}
}

// TestSnoopingOdd: who asks without an address is no router; a router that does
// not ask says so by PIM; a bridge that is halted forgets.
func TestSnoopingOdd(t *testing.T) {
	l := newLAN(t, 4, false, func(o *Options) { o.Snooping = true })
	p0, p1, p2 := l.wires[0], l.wires[1], l.wires[2]
	p0.receive(packet(mac(9), ip(netip.IPv4Unspecified(), netip.MustParseAddr("224.0.0.1"), protoIGMP, query4(netip.IPv4Unspecified()))))
	p1.receive(packet(mac(1), report4(group4)))
	l.counts()
	l.heard(2)
	l.pass(11 * time.Second)
	p2.receive(packet(mac(2), data(group4)))
	l.want("no router", 0, 1, 0, 0)
	p2.receive(packet(mac(2), report4(group4)))
	l.want("a report with no router to go to goes to who asked", 1, 0, 0, 0)
	l.wires[3].receive(packet(mac(3), ip(host4, netip.MustParseAddr("224.0.0.13"), protoPIM, bytesOf(pimHello, 0, 0, 0, 0, 1, 0, 2, 0, 105))))
	l.counts()
	l.heard(4)
	p0.receive(packet(mac(9), data(group4)))
	l.want("a PIM router", 0, 1, 1, 1)
	broadcast := packet(mac(9), data(group4))
	copy(broadcast, ndiscore.Broadcast[:])
	p0.receive(broadcast)
	l.want("a broadcast is one, whatever is in it", 0, 1, 1, 1)
	// Tags that the bridge does not look at hide what is behind them.
	p0.receive(withTags(packet(mac(9), data(group4)), tagOf(7)))
	l.want("tagged", 0, 1, 1, 1)
	if err := l.core.Stop(t.Context(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	p0.receive(packet(mac(9), data(group4)))
	l.want("halted", 0, 1, 1, 1)
	if err := l.core.Start(t.Context(), "lan", "test"); err != nil {
		t.Fatal(err)
	}
	if s := l.bridge.Stats(); s.Groups != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSnoopingForged: nobody can have a group taken from those who listen, by
// questions that they do not hear or may answer later than the bridge believes, or
// by answers that let them keep silent.
func TestSnoopingForged(t *testing.T) {
	newOne := func(t *testing.T) *lan {
		return newLAN(t, 4, false, func(o *Options) { o.Snooping = true })
	}
	all := netip.MustParseAddr("224.0.0.1")
	general := query4(netip.IPv4Unspecified())
	t.Run("unheard", func(t *testing.T) {
		l := newOne(t)
		p0 := l.wires[0]
		p0.receive(packet(mac(9), ip(asker4, group4, protoIGMP, general)))
		wrong := packet(mac(9), ip(asker4, all, protoIGMP, general))
		wrong[5]++
		p0.receive(wrong)
		p0.receive(packet(mac(9), ip(asker6, group6, protoICMPv6, bytesOf(mldQuery, 0, 0, 0, 0, 0, 0, 0, netip.IPv6Unspecified()))))
		wrong = packet(mac(9), generalQuery6())
		wrong[5]++
		p0.receive(wrong)
		p0.receive(packet(mac(9), report4(group4)))
		l.heard(1)
		if q := l.bridge.Queriers(); len(q) != 0 {
			t.Errorf("%+v", q)
		}
	})
	t.Run("silent", func(t *testing.T) {
		l := newOne(t)
		l.wires[0].receive(packet(mac(9), generalQuery4()))
		l.heard(1)
		l.counts()
		l.wires[1].receive(packet(mac(1), report4(group4)))
		l.want("an answer while all is still flooded", 1, 0, 0, 0)
	})
	t.Run("late", func(t *testing.T) {
		l := newOne(t)
		p0, p1, p2 := l.wires[0], l.wires[1], l.wires[2]
		p0.receive(packet(mac(9), ip(asker4, all, protoIGMP, bytesOf(igmpQuery, 0, 0, 0, netip.IPv4Unspecified(), 1, 10, 0, 0))))
		l.heard(1)
		p0.receive(packet(mac(9), report4(group4)))
		p1.receive(packet(mac(1), report4(group4)))
		l.heard(3)
		l.pass(500 * time.Millisecond)
		l.counts()
		p2.receive(packet(mac(2), data(group4)))
		l.want("both listen", 1, 1, 0, 0)
		l.pass(5 * time.Second)
		// They may now take 100 s to say so again.
		p0.receive(packet(mac(9), ip(asker4, all, protoIGMP, bytesOf(igmpQuery, 0xde, 0, 0, netip.IPv4Unspecified(), 1, 10, 0, 0))))
		l.heard(4)
		l.pass(5 * time.Second)
		p0.receive(packet(mac(9), report4(group4)))
		l.heard(5)
		l.counts()
		p2.receive(packet(mac(2), data(group4)))
		l.want("p1 has not had the time to answer", 1, 1, 0, 0)
	})
}

func BenchmarkGroup(b *testing.B) {
	for _, pruned := range []bool{false, true} {
		b.Run(fmt.Sprint("pruned ", pruned), func(b *testing.B) {
			l := newLAN(b, 8, false, func(o *Options) { o.Snooping = true })
			for _, w := range l.wires {
				w.keep = false
			}
			if pruned {
				l.bridge.snoop.view.Store(&groupView{families: map[familyKey]*familyView{{}: {groups: map[netip.Addr][]uint16{group4: {1}}}}})
			}
			in := l.wires[0]
			q := ndiscore.NewBatch(in.worker)
			q.Borrowed = true
			for range ndiscore.BatchFrames {
				f, d := new(ndiscore.Frame), packet(mac(1), data(group4))
				f.Reset(d, 0, len(d))
				q.Append(f)
			}
			in.handle.IndicateReceive(q)
			b.ReportAllocs()
			for b.Loop() {
				in.handle.IndicateReceive(q)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ndiscore.BatchFrames), "ns/frame")
		})
	}
}
