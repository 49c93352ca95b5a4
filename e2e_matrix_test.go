package vswitch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Two hosts, each with one device, and the switch between them, bridging or
// routing:
//
//	host a 10.1.0.2 ==[if0]== p0 -- bridge or router -- p1 ==[if0]== host b 10.1.0.3, or 10.2.0.2 behind the router
type pair struct {
	l    *lab.Lab
	a, b *lab.Host
	mtu  [2]int
	nat  bool
	dst  map[string]netip.Addr // of b as a sees it, by family
}

type pairOptions struct {
	kinds  [2]string // "tap" or "veth"
	router bool
	nat    bool   // a router under whose own address a goes out, and b comes in
	more   string // what the bridge has of keys
	mtu    [2]int
	driver string // instead of the usual ones; "" for those
}

// newPair makes the networks, and the text of the configuration between them.
func newPair(t *testing.T, o pairOptions) (*pair, string) {
	t.Helper()
	l := lab.NewTest(t)
	p := &pair{l: l, a: l.Host("a"), b: l.Host("b"), mtu: o.mtu, nat: o.nat}
	text := ""
	for i, h := range []*lab.Host{p.a, p.b} {
		port := fmt.Sprintf("p%d", i)
		switch o.kinds[i] {
		case "tap":
			needTAP(t)
			text += fmt.Sprintf("[adapter.%s]\ndriver = \"%stap\"\nnetns = %q\ninterface = \"if0\"\nmtu = %d\n", port, o.driver, h.Path(), o.mtu[i])
		default:
			l.Veth(l.Here(), port, h, "if0", lab.VethOptions{MTU: o.mtu[i]})
			text += fmt.Sprintf("[adapter.%s]\ndriver = \"%safpacket\"\n", port, o.driver)
		}
	}
	if o.router || o.nat {
		p.dst = map[string]netip.Addr{"v4": addr("10.2.0.2"), "v6": addr("fd00:2::2")}
		text += `
[interface.left]
on = "p0"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.right]
on = "p1"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
`
		if o.nat {
			text += `masquerade = true
masquerade6 = true
[[forward]]
interface = "right"
protocol = "tcp"
port = "7000"
to = "10.1.0.2:80"
[[forward]]
interface = "right"
protocol = "tcp"
port = "7000"
to = "[fd00:1::2]:80"
`
		}
		return p, text
	}
	p.dst = map[string]netip.Addr{"v4": addr("10.1.0.3"), "v6": addr("fd00:1::3")}
	return p, text + "[bridge.lan]\nports = [\"p0\", \"p1\"]\n" + o.more
}

// address gives the hosts their addresses, once the switch has made the TAP
// devices, and waits until they reach each other.
func (p *pair) address(t *testing.T) {
	t.Helper()
	must(t, p.a.AddAddr("if0", "10.1.0.2/24", "fd00:1::2/64"))
	if p.dst["v4"] == addr("10.1.0.3") {
		must(t, p.b.AddAddr("if0", "10.1.0.3/24", "fd00:1::3/64"))
	} else {
		must(t,
			p.b.AddAddr("if0", "10.2.0.2/24", "fd00:2::2/64"),
			p.a.Route("default", "10.1.0.1"), p.a.Route("::/0", "fd00:1::1"))
		if !p.nat {
			must(t, p.b.Route("default", "10.2.0.1"), p.b.Route("::/0", "fd00:2::1"))
		}
	}
	for _, dst := range p.dst {
		must(t, p.a.WaitReachable(within(t, 20*time.Second), dst))
	}
}

// fullEnv, set to 1, has the matrix tests try every combination of offloads and
// families in every cell; without it they try two of the eight, others in each
// cell.
const fullEnv = "VSWITCH_TEST_FULL"

// TestMatrix sends everything over every pair of ports, bridged, between ports of
// one VLAN, routed and translated, in both families, with offloads on and off at
// either end, and with each MTU.
func TestMatrix(t *testing.T) {
	n := 0
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}, {"tap", "veth"}, {"veth", "tap"}} {
		for _, way := range []string{"bridge", "vlan", "router", "nat"} {
			for _, mtu := range [][2]int{{1500, 1500}, {9000, 9000}, {9000, 1500}, {1500, 9000}} {
				if mtu[0] != mtu[1] && (way == "bridge" || way == "vlan") {
					continue // TestMixedMTU: a bridge cannot tell the sender
				}
				n++
				o := pairOptions{kinds: kinds, router: way == "router", nat: way == "nat", mtu: mtu}
				if way == "vlan" {
					o.more = accessAndTrunk
				}
				t.Run(fmt.Sprintf("%s-%s/%s/%d-%d", kinds[0], kinds[1], way, mtu[0], mtu[1]), func(t *testing.T) {
					lab.CheckLeaks(t)
					p, text := newPair(t, o)
					start(t, p.l, text)
					p.address(t)
					if mtu[0] > mtu[1] { // a learns what passes
						_, err := p.a.Ping(t.Context(), p.dst["v6"], lab.PingOptions{Size: mtu[1], DontFragment: true, Timeout: 100 * time.Millisecond})
						must(t, err)
					}
					if mtu[1] > mtu[0] { // so does b, whose first answer is too big for the way back
						ctx := within(t, 20*time.Second)
						must(t, lab.Eventually(ctx, "b to know what passes", func() error {
							r, err := p.a.Ping(ctx, p.dst["v6"], lab.PingOptions{Size: 3*mtu[0] + 1, Timeout: time.Second})
							return errors.Join(err, r.Err())
						}))
					}
					p.offloads(t, n)
					noChecksumErrors(t, p.a, p.b)
				})
			}
		}
	}
}

// accessAndTrunk has a bridge look at VLANs: what has no tag is of the same one
// on either port.
const accessAndTrunk = "vlan = 1\n[bridge.lan.port.p0]\naccess = 10\n[bridge.lan.port.p1]\ntrunk = [\"20\"]\nnative = 10\n"

func full() bool { return os.Getenv(fullEnv) == "1" }

// offloads sends everything with each combination of offloads and in each family,
// or with the nth of four only.
func (p *pair) offloads(t *testing.T, nth int) {
	word := map[bool]string{true: "on", false: "off"}
	cell := 0
	for _, atA := range []bool{true, false} {
		for _, atB := range []bool{true, false} {
			for i, family := range []string{"v4", "v6"} {
				cell++
				if !full() && (cell+i+nth/2)%4 != 0 {
					continue
				}
				setOffloads(t, p.a, atA)
				setOffloads(t, p.b, atB)
				t.Run(fmt.Sprintf("%s/a-%s/b-%s", family, word[atA], word[atB]), func(t *testing.T) {
					p.everything(t, family)
				})
			}
		}
	}
}

func setOffloads(t *testing.T, h *lab.Host, on bool) {
	t.Helper()
	must(t, h.Offloads("if0", on))
	state, err := h.OffloadState("if0")
	must(t, err)
	for _, name := range []string{"tx-checksum", "tso"} {
		if state[name] != on {
			t.Fatalf("%s: %s cannot be switched to %v: %v", h.Name(), name, on, state)
		}
	}
}

const bulkBytes = 3 << 20

// everything sends each kind of traffic over the smaller of the two MTUs.
func (p *pair) everything(t *testing.T, family string) {
	t.Helper()
	ctx := within(t, 60*time.Second)
	dst, mtu := p.dst[family], min(p.mtu[0], p.mtu[1])
	header := 28 // IP, and ICMP or UDP
	if family == "v6" {
		header = 48
	}

	// Datagrams while the pings are under way.
	flow, err := p.a.StartUDPFlow(ctx, p.b, dst, lab.UDPFlowOptions{Rate: 500, Size: mtu - header})
	must(t, err)
	for _, o := range []lab.PingOptions{
		{},
		{Size: mtu - header, DontFragment: true},
		{Size: 3*mtu + 1}, // in fragments
	} {
		o.Count, o.Interval, o.Timeout = 3, time.Millisecond, 5*time.Second
		r, err := p.a.Ping(ctx, dst, o)
		if err = errors.Join(err, r.Err()); err != nil {
			t.Errorf("ping with %d bytes: %v", o.Size, err)
		}
	}
	total, err := flow.Total()
	must(t, err)
	for way, s := range map[string]lab.DirectionStats{"a to b": total.AtoB, "b to a": total.BtoA} {
		if s.Lost > s.Overrun || s.Duplicated > 0 || s.Corrupted > 0 || s.Sent == 0 {
			t.Errorf("UDP %s: %+v", way, s)
		}
	}

	// TCP as fast as it goes, one way and then the other.
	bulk := func(from, to *lab.Host, dst netip.Addr, o lab.TCPBulkOptions) {
		tcp, err := from.StartTCPBulk(ctx, to, dst, o)
		must(t, err)
		received := uint64(0)
		err = lab.Eventually(ctx, "the bytes to arrive", func() error {
			s := tcp.Snapshot()
			if received += s.AtoB.Received; received < bulkBytes && s.Err == nil {
				return fmt.Errorf("%d of %d arrived", received, bulkBytes)
			}
			return s.Err
		})
		s, stopErr := tcp.Stop(ctx)
		if err = errors.Join(err, stopErr); err != nil || !s.Survived() {
			t.Errorf("TCP from %s: %v (%+v)", from.Name(), err, s)
		}
	}
	bulk(p.a, p.b, dst, lab.TCPBulkOptions{})
	back := map[string]netip.Addr{"v4": addr("10.1.0.2"), "v6": addr("fd00:1::2")}[family]
	if !p.nat {
		bulk(p.b, p.a, back, lab.TCPBulkOptions{})
		return
	}
	ours := map[string]netip.Addr{"v4": addr("10.2.0.1"), "v6": addr("fd00:2::1")}[family]
	bulk(p.b, p.a, ours, lab.TCPBulkOptions{Port: 7000, Listen: netip.AddrPortFrom(back, 80)})
}

// TestMixedMTU has 9000 bytes on the left and 1500 on the right: the router
// tells the sender, a bridge cannot.
func TestMixedMTU(t *testing.T) {
	for i, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}, {"tap", "veth"}, {"veth", "tap"}} {
		t.Run(kinds[0]+"-"+kinds[1], func(t *testing.T) {
			t.Run("router", func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, router: true, mtu: [2]int{9000, 1500}})
				start(t, p.l, text)
				p.address(t)
				for family, dst := range p.dst {
					r, err := p.a.Ping(within(t, 20*time.Second), dst, lab.PingOptions{Size: 4000, DontFragment: true, Timeout: 5 * time.Second})
					must(t, err)
					if len(r.Errors) != 1 || !r.Errors[0].TooBig() || r.Errors[0].MTU != 1500 {
						t.Errorf("%s: ping with 4000 bytes: %v, want one answer that says too big and 1500", family, r.Errors)
					}
				}
				p.offloads(t, i)
				noChecksumErrors(t, p.a, p.b)
			})
			for name, more := range map[string]string{"bridge": "", "vlan": accessAndTrunk} {
				t.Run(name, func(t *testing.T) {
					lab.CheckLeaks(t)
					p, text := newPair(t, pairOptions{kinds: kinds, mtu: [2]int{9000, 1500}, more: more})
					sw := start(t, p.l, text)
					p.address(t)
					for family, header := range map[string]int{"v4": 28, "v6": 48} {
						p.tooBigForBridge(t, sw, p.dst[family], header)
					}
				})
			}
		})
	}
}

// tooBigForBridge sends what the far link carries, and more than that, which is
// counted where it ends. header is what precedes the bytes of an echo.
func (p *pair) tooBigForBridge(t *testing.T, sw *lab.Switch, dst netip.Addr, header int) {
	t.Helper()
	before := counters(t, sw.Switch)["p1"]
	ctx := within(t, 20*time.Second)
	r, err := p.a.Ping(ctx, dst, lab.PingOptions{Size: 4000, DontFragment: true, Timeout: time.Millisecond})
	must(t, err)
	if r.Received > 0 {
		t.Errorf("%v: %d bytes passed a link of 1500: %+v", dst, 4000+header, r)
	}
	must(t, lab.Eventually(ctx, "too-big to be counted", func() error {
		if c := counters(t, sw.Switch)["p1"]; c.TxDropped["too-big"] != before.TxDropped["too-big"]+1 {
			return fmt.Errorf("p1 dropped %v, before %v", c.TxDropped, before.TxDropped)
		}
		return nil
	}))
	r, err = p.a.Ping(ctx, dst, lab.PingOptions{Size: 1500 - header, DontFragment: true, Timeout: 5 * time.Second})
	if err = errors.Join(err, r.Err()); err != nil {
		t.Errorf("%v: 1500 bytes: %v", dst, err)
	}
}

// tagged is an Ethernet frame of VLAN vlan with a UDP packet, all sums in place.
func tagged(dst, src net.HardwareAddr, vlan uint16, from, to netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	a, b := from.Addr().AsSlice(), to.Addr().AsSlice()
	pseudo := binary.BigEndian.AppendUint16(slices.Concat(a, b, []byte{0, 17}), uint16(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], ^ndiscore.Checksum(udp, ndiscore.Checksum(pseudo, 0)))
	kind, ip := uint16(0x86dd), slices.Concat([]byte{0x60, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(udp))), []byte{17, 64}, a, b)
	if from.Addr().Is4() {
		kind, ip = 0x0800, slices.Concat([]byte{0x45, 0}, binary.BigEndian.AppendUint16(nil, uint16(20+len(udp))), []byte{0, 1, 0, 0, 64, 17, 0, 0}, a, b)
		binary.BigEndian.PutUint16(ip[10:], ^ndiscore.Checksum(ip, 0))
	}
	f := slices.Concat(dst, src)
	for _, w := range []uint16{0x8100, vlan, kind} {
		f = binary.BigEndian.AppendUint16(f, w)
	}
	return slices.Concat(f, ip, udp)
}

// TestMatrixVLAN has the kernel of one host, on an access port, talk with the
// tagged frames of a trunk, with datagrams of all sizes and with super-frames.
func TestMatrixVLAN(t *testing.T) {
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}, {"tap", "veth"}, {"veth", "tap"}} {
		for _, mtu := range []int{1500, 9000} {
			t.Run(fmt.Sprintf("%s-%s/%d", kinds[0], kinds[1], mtu), func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, mtu: [2]int{mtu, mtu},
					more: "vlan = 1\n[bridge.lan.port.p0]\naccess = 10\n[bridge.lan.port.p1]\ntrunk = [\"10-19\", \"30\"]\n"})
				sw := start(t, p.l, text)
				must(t, p.a.AddAddr("if0", "10.1.0.2/24", "fd00:1::2/64"))
				p.trunk(t, sw, mtu)
			})
		}
	}
}

func (p *pair) trunk(t *testing.T, sw *lab.Switch, mtu int) {
	t.Helper()
	ctx := within(t, 60*time.Second)
	mac, err := p.a.MAC("if0")
	must(t, err)
	raw, err := p.b.OpenRaw("if0", lab.RawOptions{})
	must(t, err)
	sent := uint64(0)
	for family, x := range map[string]struct{ us, them netip.AddrPort }{
		"v4": {netip.MustParseAddrPort("10.1.0.2:4000"), netip.MustParseAddrPort("10.1.0.3:4001")},
		"v6": {netip.MustParseAddrPort("[fd00:1::2]:4000"), netip.MustParseAddrPort("[fd00:1::3]:4001")},
	} {
		must(t, p.a.AddNeighbour("if0", x.them.Addr(), stranger))
		var conn *net.UDPConn
		must(t, p.a.Do(func() (err error) {
			conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(x.us), net.UDPAddrFromAddrPort(x.them))
			return err
		}))
		defer conn.Close()
		header := map[string]int{"v4": 28, "v6": 48}[family]
		for _, on := range []bool{true, false} {
			setOffloads(t, p.a, on)
			for _, size := range []int{1, 18, 600, mtu - header, 6 * 1000} {
				payload := make([]byte, size)
				for i := range payload {
					payload[i] = byte(i*7 + size)
				}
				if size > mtu-header { // one super-frame of six
					must(t, segment(conn, 1000))
				} else {
					must(t, segment(conn, 0))
				}
				_, err := conn.Write(payload)
				must(t, err)
				var got []byte
				for len(got) < size {
					f, err := raw.Recv(ctx, func(f lab.RawFrame) bool {
						return len(f.Data) > 18+header && bytes.Equal(f.Data[:12], slices.Concat(stranger, mac))
					})
					if err != nil {
						t.Fatalf("%s, offloads %v: %d of %d bytes came to the trunk: %v", family, on, len(got), size, err)
					}
					if tag := f.Data[12:16]; !bytes.Equal(tag, []byte{0x81, 0, 0, 10}) {
						t.Fatalf("the tag is % x", tag)
					}
					if f.Data[16]&0x80 != 0 && f.Data[24] != 17 || f.Data[16] == 8 && f.Data[27] != 17 {
						continue // the kernel's own
					}
					n := int(binary.BigEndian.Uint16(f.Data[18+header-4:])) - 8
					if !f.ChecksumPending && n+header+18 <= len(f.Data) {
						udp := f.Data[18+header-8 : 18+header+n]
						pseudo := binary.BigEndian.AppendUint16(slices.Concat(x.us.Addr().AsSlice(), x.them.Addr().AsSlice(), []byte{0, 17}), uint16(len(udp)))
						if sum := ndiscore.Checksum(udp, ndiscore.Checksum(pseudo, 0)); sum != 0xffff {
							t.Errorf("%s, %d bytes, offloads %v: wrong checksum (%04x)", family, size, on, sum)
						}
					}
					if f.ChecksumPending || n+header+18 > len(f.Data) {
						n = len(f.Data) - 18 - header // a super-frame, or padding that a small one may have
						n = min(n, size-len(got))
					}
					got = append(got, f.Data[18+header:18+header+n]...)
				}
				if !bytes.Equal(got, payload) {
					t.Errorf("%s, %d bytes, offloads %v: other contents came to the trunk", family, size, on)
				}
			}
		}
		for _, size := range []int{1, 18, 600, mtu - header} {
			payload := bytes.Repeat([]byte{byte(size), 0x5a}, size)[:size]
			must(t,
				raw.Send(tagged(mac, stranger, 20, x.them, x.us, []byte("of another VLAN"))),
				raw.Send(tagged(mac, stranger, 30, x.them, x.us, []byte("of another VLAN of the trunk"))),
				raw.Send(tagged(mac, stranger, 10, x.them, x.us, payload)),
				conn.SetReadDeadline(time.Now().Add(20*time.Second)))
			got := make([]byte, 1<<16)
			n, err := conn.Read(got)
			if err != nil || !bytes.Equal(got[:n], payload) {
				t.Errorf("%s: %d bytes from the trunk arrived as %d: %v", family, size, n, err)
			}
			sent++
		}
	}
	// What b's own kernel says has no tag, and is dropped as well.
	must(t, lab.Eventually(ctx, "the VLAN that the trunk does not have to be counted", func() error {
		if n := counters(t, sw.Switch)["p1"].RxDropped["vlan"]; n < sent {
			return fmt.Errorf("%d frames of %d", n, sent)
		}
		return nil
	}))
	noChecksumErrors(t, p.a)
}

// segment has the kernel cut what is written into datagrams of so many bytes, as
// late as it can (udp(7)); 0 ends that.
func segment(c *net.UDPConn, size int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = rc.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	return errors.Join(err, set)
}

// plain is a driver whose adapters say that they can finish nothing, around one
// whose adapters can: so the core has to cut super-frames and complete
// checksums, and the kernel behind the device judges them.
func plain(d ndiscore.Driver) ndiscore.Driver {
	real := d.New
	d.Name = "plain-" + d.Name
	d.New = func(name string, options any) (ndiscore.Adapter, error) {
		a, err := real(name, options)
		if err != nil {
			return nil, err
		}
		p := &plainAdapter{Adapter: a}
		if device, ok := a.(ndiscore.LowerDevice); ok {
			return &plainDevice{p, device}, nil
		}
		return p, nil
	}
	return d
}

type plainAdapter struct{ ndiscore.Adapter }

func (a *plainAdapter) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	attrs, err := a.Adapter.Initialize(ctx, h)
	attrs.Transmit = 0
	return attrs, err
}

// Send fails the test in the kernel's place when something unfinished comes.
func (a *plainAdapter) Send(b *ndiscore.Batch) {
	for _, f := range b.Frames {
		if f.Offload.GSO != ndiscore.GSONone || f.Offload.Flags&ndiscore.NeedsCsum != 0 {
			panic(fmt.Sprintf("a device without offloads was given %+v", f.Offload))
		}
	}
	a.Adapter.Send(b)
}

type plainDevice struct {
	*plainAdapter
	ndiscore.LowerDevice
}

// TestWithoutOffloads runs everything through devices that can finish nothing.
func TestWithoutOffloads(t *testing.T) {
	var drivers []ndiscore.Driver
	for _, d := range vswitch.Drivers(zap.NewNop()) {
		drivers = append(drivers, plain(d))
	}
	for _, kinds := range [][2]string{{"tap", "tap"}, {"veth", "veth"}} {
		for _, router := range []bool{false, true} {
			way := map[bool]string{false: "bridge", true: "router"}[router]
			t.Run(kinds[0]+"/"+way, func(t *testing.T) {
				lab.CheckLeaks(t)
				p, text := newPair(t, pairOptions{kinds: kinds, router: router, mtu: [2]int{1500, 1500}, driver: "plain-"})
				sw := startWith(t, p.l, text, drivers)
				p.address(t)
				setOffloads(t, p.a, true)
				setOffloads(t, p.b, true)
				for _, family := range []string{"v4", "v6"} {
					t.Run(family, func(t *testing.T) { p.everything(t, family) })
				}
				noChecksumErrors(t, p.a, p.b)
				for name, c := range counters(t, sw) {
					if (name == "p0" || name == "p1") && c.TxSegments == 0 {
						t.Errorf("%s: no super-frame was cut: %+v", name, c)
					}
				}
			})
		}
	}
}
