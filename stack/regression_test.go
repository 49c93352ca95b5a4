package stack

// One test for each way in which netstack, or a link below it, is known to have
// broken a router. Those in other files:
//
//	router_test.go             TestRegressionTooBig: netstack says MTU 0 in IPv6, and nothing for a super-frame
//	regression_kernel_test.go  TestRegressionKernel…: the same with the kernel's own stack on both sides
//	nat/                       fragments, GRE and used ports through NAT; 65,000 flows to one destination

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"gvisor.dev/gvisor/pkg/refs"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// sickWire is a device that refuses what it is given for one reason, DropNone for
// none.
type sickWire struct {
	reason atomic.Uint32
	large  atomic.Bool // refuse super-frames only
	taken  atomic.Uint64
}

func (w *sickWire) Send(b *ndiscore.Batch) {
	for i, f := range b.Frames {
		b.Status[i] = ndiscore.DropReason(w.reason.Load())
		if w.large.Load() && f.Offload.GSO == ndiscore.GSONone {
			b.Status[i] = ndiscore.DropNone
		}
		if b.Status[i] == ndiscore.DropNone {
			w.taken.Add(1)
		}
	}
}

// sickRouter is a router whose way out is a sickWire.
func sickRouter(t testing.TB, o Options) (*bareRouter, *sickWire) {
	d := newBareRouter(t, o, 1500, 1500)
	w := &sickWire{}
	if err := d.b.gate.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.b.wire = w
	d.b.gate.open()
	return d, w
}

// errorEndpoint is a link that fails as ours never does.
type errorEndpoint struct {
	*endpoint
	err tcpip.Error
}

func (e errorEndpoint) WritePackets(netstack.PacketBufferList) (int, tcpip.Error) { return 0, e.err }

var tcpipErrors = []tcpip.Error{
	&tcpip.ErrAborted{}, &tcpip.ErrAddressFamilyNotSupported{}, &tcpip.ErrAlreadyBound{}, &tcpip.ErrAlreadyConnected{},
	&tcpip.ErrAlreadyConnecting{}, &tcpip.ErrBadAddress{}, &tcpip.ErrBadBuffer{}, &tcpip.ErrBadLocalAddress{},
	&tcpip.ErrBroadcastDisabled{}, &tcpip.ErrClosedForReceive{}, &tcpip.ErrClosedForSend{}, &tcpip.ErrConnectStarted{},
	&tcpip.ErrConnectionAborted{}, &tcpip.ErrConnectionRefused{}, &tcpip.ErrConnectionReset{}, &tcpip.ErrDestinationRequired{},
	&tcpip.ErrDuplicateAddress{}, &tcpip.ErrDuplicateNICID{}, &tcpip.ErrInvalidNICID{}, &tcpip.ErrInvalidEndpointState{},
	&tcpip.ErrInvalidOptionValue{}, &tcpip.ErrInvalidPortRange{}, &tcpip.ErrMalformedHeader{}, &tcpip.ErrMessageTooLong{},
	&tcpip.ErrNetworkUnreachable{}, &tcpip.ErrNoBufferSpace{}, &tcpip.ErrNoPortAvailable{}, &tcpip.ErrHostUnreachable{},
	&tcpip.ErrHostDown{}, &tcpip.ErrNoNet{}, &tcpip.ErrNoSuchFile{}, &tcpip.ErrNotConnected{}, &tcpip.ErrNotPermitted{},
	&tcpip.ErrNotSupported{}, &tcpip.ErrPortInUse{}, &tcpip.ErrQueueSizeNotSupported{}, &tcpip.ErrTimeout{},
	&tcpip.ErrUnknownDevice{}, &tcpip.ErrUnknownNICID{}, &tcpip.ErrUnknownProtocol{}, &tcpip.ErrUnknownProtocolOption{},
	&tcpip.ErrWouldBlock{}, &tcpip.ErrMissingRequiredFields{}, &tcpip.ErrMulticastInputCannotBeOutput{}, &tcpip.ErrEndpointBusy{},
}

// TestRegressionEndpointErrors: netstack panics when it forwards and its link
// returns an error that it does not expect.
func TestRegressionEndpointErrors(t *testing.T) {
	// However the device refuses, ours returns none of those.
	t.Run("ours", func(t *testing.T) {
		d, w := sickRouter(t, testOptions())
		stats := &d.b.iface.stats
		for _, why := range ndiscore.DropReasons() {
			w.reason.Store(uint32(why))
			before := stats.refused.Load()
			d.in(d.a, udp4(flow{ttl: 9, size: 10}), udp6(flow{ttl: 9, size: 10}),
				super(false, flow{ttl: 9, df: true, size: 9000}, 1400), udp4(flow{ttl: 9, size: 3000}))
			if n := stats.refused.Load() - before; n != 6 { // the last one in three pieces
				t.Errorf("%s: %d were refused of 6", why, n)
			}
		}
		w.reason.Store(0)

		var all []*sender
		for s := d.senders.get(); s != nil; s = d.senders.get() {
			all = append(all, s)
		}
		d.in(d.a, udp4(flow{ttl: 9, size: 10}), udp6(flow{ttl: 9, size: 10}))
		if n := stats.noSender.Load(); n != 2 {
			t.Errorf("%d of 2 found no sender", n)
		}
		for _, s := range all {
			d.senders.put(s)
		}

		before := w.taken.Load()
		d.in(d.a, udp4(flow{ttl: 9, size: 10}), udp6(flow{ttl: 9, size: 10}))
		if n := w.taken.Load() - before; n != 2 {
			t.Errorf("%d of 2 left after it all", n)
		}
		if s := d.Stats(); s["panics"] != 0 {
			t.Errorf("%d panics", s["panics"])
		}
	})
	// And if it did, that would cost a netstack, and nothing else.
	t.Run("others", func(t *testing.T) {
		mode := refs.GetLeakMode()
		refs.SetLeakMode(refs.NoLeakChecking) // an abandoned netstack leaks
		t.Cleanup(func() { refs.SetLeakMode(mode) })
		o := testOptions()
		o.Limits.RebuildsPerHour = 100
		d := newBareRouter(t, o, 1500, 1500)
		const nic = 99
		host := tcpip.AddrFrom4([4]byte{10, 66, 0, 2})
		to := rewrite(udp4(flow{ttl: 9, size: 10}), func(h []byte) { copy(h[16:], host.AsSlice()) })
		var fatal []string
		for _, e := range tcpipErrors {
			before := d.Stats()["panics"]
			err := d.do(t.Context(), func() {
				s := d.feed.net.s
				_ = s.RemoveNIC(nic)
				must := func(err tcpip.Error) {
					if err != nil {
						t.Error(err)
					}
				}
				must(s.CreateNIC(nic, errorEndpoint{newEndpoint(d.Router, d.b), e}))
				must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
					Address: tcpip.AddrFrom4([4]byte{10, 66, 0, 1}), PrefixLen: 24}}, netstack.AddressProperties{}))
				must(s.AddStaticNeighbor(nic, ipv4.ProtocolNumber, host, tcpip.LinkAddress(hostB[:])))
				s.AddRoute(tcpip.Route{Destination: host.WithPrefix().Subnet(), NIC: nic})
			})
			if err != nil {
				t.Fatal(err)
			}
			d.in(d.a, to)
			if d.Stats()["panics"] != before {
				fatal = append(fatal, reflect.TypeOf(e).Elem().Name())
			}
			d.in(d.b, arpRequest(hostB, "10.2.0.2", "10.2.0.1"))
			sent := d.wb.sent.Load()
			d.in(d.a, udp4(flow{ttl: 9, size: 10}))
			if d.wb.sent.Load() != sent+1 {
				t.Fatalf("%s: the router forwards no more", e)
			}
		}
		t.Logf("netstack panics on %d of %d: %v", len(fatal), len(tcpipErrors), fatal)
		if slices.Contains(fatal, "ErrNoBufferSpace") {
			t.Error("the one error that ours returns makes netstack panic")
		}
	})
}

// TestRegressionLinkDown: a link that goes down while packets are forwarded over
// it, and comes back, many times.
func TestRegressionLinkDown(t *testing.T) {
	o := testOptions()
	d, w := sickRouter(t, o)
	var now atomic.Pointer[ndiscore.Attributes]
	link := func(up bool) {
		a := ndiscore.Attributes{MAC: macB, MTU: 1500, Link: connectedLink()}
		w.reason.Store(0)
		if !up {
			a.Link = ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "ENETDOWN on send"}
			w.reason.Store(uint32(ndiscore.DropLinkDown))
		}
		now.Store(&a)
		d.status(d.b.plug, a.Link)
	}
	d.b.mu.Lock()
	d.b.ask = func() ndiscore.Attributes { return *now.Load() }
	d.b.mu.Unlock()
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		b := ndiscore.NewBatch(new(ndiscore.Worker))
		b.Borrowed = true
		for _, f := range []*ndiscore.Frame{udp4(flow{ttl: 9, size: 10}), udp6(flow{ttl: 9, size: 10}), super(false, flow{ttl: 9, df: true, size: 9000}, 1400)} {
			b.Append(f)
		}
		for {
			select {
			case <-stop:
				return
			default:
				d.receive(d.a, b)
				runtime.Gosched()
			}
		}
	})
	for n := range 100 {
		link(false)
		if n%2 == 0 { // let it be noticed, or not
			eventually(t, "withdrawn", func() bool { return lookup(d.fib.Load(), netip.MustParseAddr("10.2.0.2")) == nil })
		}
		link(true)
		before := w.taken.Load()
		eventually(t, "packets again", func() bool { return w.taken.Load() > before })
	}
	close(stop)
	flood.Wait()
	if s := d.Stats(); s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
}

// TestRegressionForeignMAC: netstack routes unicast frames for other stations; and
// one such frame ended gVisor's own receive loop.
func TestRegressionForeignMAC(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	foreign := func(f *ndiscore.Frame) *ndiscore.Frame {
		f.Head[3] ^= 0x55
		return f
	}
	tagged := func(f *ndiscore.Frame, mac ndiscore.MAC) *ndiscore.Frame {
		copy(f.Head, mac[:])
		return f
	}
	all := []*ndiscore.Frame{
		foreign(udp4(flow{ttl: 64, size: 10})), foreign(udp6(flow{ttl: 64, size: 10})), foreign(echo4("10.1.0.2", "10.1.0.1", 10)),
		foreign(super(false, flow{ttl: 64, df: true, size: 9000}, 1400)), foreign(udp4(flow{ttl: 1, size: 10})),
		foreign(udp4(flow{ttl: 64, df: true, size: 3000})),
		tagged(udp4(flow{ttl: 64, size: 10}), ndiscore.Broadcast), tagged(udp6(flow{ttl: 64, size: 10}), ndiscore.MAC{0x33, 0x33, 0, 0, 0, 1}),
		tagged(udp4(flow{ttl: 64, size: 10}), macB),
	}
	d.a.sentSoFar()
	for range 100 {
		d.a.inject(all...)
	}
	d.a.inject(udp4(flow{ttl: 64, size: 777}))
	if f := d.b.await(t, "UDP", isUDP); len(f.Bytes(nil)) != 42+777 {
		t.Errorf("was routed: %v", decode(f))
	}
	for _, f := range d.a.sentSoFar() {
		if announcements(t, []ndiscore.Frame{f})["10.1.0.1"]+announcements(t, []ndiscore.Frame{f})["fd01::1"]+announcements(t, []ndiscore.Frame{f})["fe80::ff:fe00:a0"] == 0 {
			t.Errorf("was answered: %v", decode(&f))
		}
	}
}

// TestRegressionRemovalUnderFlood unbinds and binds the way out a thousand times,
// as an ndis5 bundle would, while packets flow and all goroutines of netstack are
// busy: RemoveNIC used to meet deliveries, and either deadlocked or left
// goroutines behind.
func TestRegressionRemovalUnderFlood(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.b.mu.Lock()
	d.b.drain = true
	d.b.mu.Unlock()
	d.meet2()
	stop := make(chan struct{})
	var flood sync.WaitGroup
	var sent atomic.Uint64
	flood.Go(func() {
		frames := make([]*ndiscore.Frame, ndiscore.BatchFrames)
		for i := range frames {
			switch i % 4 {
			case 0:
				frames[i] = udp6(flow{ttl: 64, size: 100})
			case 1:
				frames[i] = super(false, flow{ttl: 64, df: true, size: 30000}, 1460)
			case 2: // each to another unresolved neighbour
				frames[i] = rewrite(udp4(flow{ttl: 64, size: 50}), func(h []byte) { h[19] = byte(100 + i) })
			default:
				frames[i] = udp4(flow{ttl: 64, size: 50})
			}
		}
		for {
			select {
			case <-stop:
				return
			default:
				d.a.inject(frames...)
				sent.Add(1)
				runtime.Gosched() // the core has to get at a CPU, too
			}
		}
	})
	rounds := 1000
	if testing.Short() || raceEnabled {
		rounds = 50
	}
	var before usage
	for n := range rounds {
		if n == rounds/10 {
			before = measure()
		}
		if err := d.core.Stop(t.Context(), "b", "test"); err != nil {
			t.Fatal(err)
		}
		if err := d.core.Start(t.Context(), "b", "test"); err != nil {
			t.Fatal(err)
		}
		if n%100 == 0 {
			d.events.forget()
			d.a.sentSoFar()
		}
	}
	close(stop)
	flood.Wait()
	d.events.forget()
	d.a.sentSoFar()
	before.grownTo(t)
	d.b.mu.Lock()
	d.b.drain = false
	d.b.mu.Unlock()
	d.meet()
	d.a.inject(udp4(flow{ttl: 64, size: 777}))
	d.b.await(t, "UDP after it all", func(f *ndiscore.Frame) bool { return isUDP(f) && len(f.Bytes(nil)) == 42+777 })
	s := d.router.Stats()
	if s["panics"] != 0 {
		t.Errorf("%d panics", s["panics"])
	}
	t.Logf("%d rounds, %d batches, orphaned %d, delivered %d", rounds, sent.Load(), s["orphaned"], s["delivered"])
}

func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

// usage is what a process holds.
type usage struct {
	goroutines int
	heap       uint64
}

func measure() usage {
	for range 3 { // pools keep what they hold for a round
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{runtime.NumGoroutine(), m.HeapAlloc}
}

// grownTo fails the test if much more is held now than at u.
func (u usage) grownTo(t *testing.T) {
	t.Helper()
	var now usage
	eventually(t, "goroutines gone", func() bool { now = measure(); return now.goroutines <= u.goroutines+5 })
	t.Logf("goroutines %d, then %d; heap %d KiB, then %d KiB", u.goroutines, now.goroutines, u.heap>>10, now.heap>>10)
	if now.heap > u.heap+32<<20 {
		t.Errorf("the heap grew from %d to %d KiB", u.heap>>10, now.heap>>10)
	}
}

// TestRegressionTTL: netstack forwards an IPv4 packet with a time to live of 1 as
// one of 0.
func TestRegressionTTL(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	for ttl := range uint8(3) {
		for _, tc := range []struct {
			name string
			in   *ndiscore.Frame
		}{
			{"v4", udp4(flow{ttl: ttl, size: 100})},
			{"v6", udp6(flow{ttl: ttl, size: 100})},
			{"v4 super-frame", super(false, flow{ttl: ttl, df: true, size: 9000}, 1400)},
			{"v6 super-frame", super(true, flow{ttl: ttl, size: 9000}, 1400)},
			{"v4 in pieces", split(udp4(flow{ttl: ttl, size: 1000}), 60)},
		} {
			v6 := tc.in.Head[12] == 0x86
			d.a.inject(tc.in)
			if ttl == 2 {
				f := d.b.await(t, tc.name, func(f *ndiscore.Frame) bool { return isUDP(f) || isTCP(f) })
				if b := f.Bytes(nil); !v6 && b[22] != 1 || v6 && b[21] != 1 {
					t.Errorf("%s: 2 did not become 1: %v", tc.name, decode(f))
				}
				continue
			}
			f := d.a.await(t, tc.name+": time exceeded", func(f *ndiscore.Frame) bool { return isICMP4(f, 11) || isICMP6(f, 3) })
			sound(t, f)
			if f.Dst() != hostA {
				t.Errorf("%s: time exceeded to %s", tc.name, f.Dst())
			}
			if s := d.b.sentSoFar(); slices.ContainsFunc(s, func(f ndiscore.Frame) bool { return isUDP(&f) || isTCP(&f) }) {
				t.Errorf("%s: forwarded with %d", tc.name, ttl)
			}
		}
	}
}

// tcp4 and tcp6 are TCP segments from a host behind a to one behind b.
func tcp4(size int) *ndiscore.Frame {
	ip := ip4("10.1.0.2", "10.2.0.2", layers.IPProtocolTCP, 64, true)
	l := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1, ACK: true, Window: 1000}
	_ = l.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip, l, payload(size))
}

func tcp6(size int) *ndiscore.Frame {
	ip := ip6("fd01::2", "fd02::2", layers.IPProtocolTCP, 64)
	l := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1, ACK: true, Window: 1000}
	_ = l.SetNetworkLayerForChecksum(ip)
	return serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip, l, payload(size))
}

// transportOf is where the transport header of f begins.
func transportOf(f *ndiscore.Frame) int {
	if f.Head[12] == 8 {
		return 34
	}
	return 54
}

// TestRegressionCorruptChecksum: netstack computes transport checksums anew when
// it forwards, and so makes corrupt packets valid.
func TestRegressionCorruptChecksum(t *testing.T) {
	d := newBed(t, testOptions(), 9000, 1500)
	d.meet()
	is := func(f *ndiscore.Frame) bool {
		return decode(f).Layer(layers.LayerTypeIPv4) != nil && !isICMP4(f, 3) || isUDP(f) || isTCP(f)
	}
	for name, make := range map[string]func() *ndiscore.Frame{
		"udp4": func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 100}) },
		"udp6": func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 100}) },
		"tcp4": func() *ndiscore.Frame { return tcp4(100) },
		"tcp6": func() *ndiscore.Frame { return tcp6(100) },
		"odd":  func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 101}) },
		"long": func() *ndiscore.Frame { return split(udp4(flow{ttl: 64, size: 1400}), 60) },
	} {
		clean := make().Bytes(nil)
		for _, at := range []int{transportOf(make()) + 1, len(clean) - 1, len(clean) - 40, transportOf(make()) + 7} {
			in := make()
			if at < len(in.Head) {
				in.Head[at] ^= 4
			} else {
				in.Segs[len(in.Segs)-1][len(in.Segs[len(in.Segs)-1])-1] ^= 4
			}
			want := string(in.Bytes(nil)[transportOf(in):])
			d.a.inject(in)
			f := d.b.await(t, name, is)
			if got := string(f.Bytes(nil)[transportOf(in):]); got != want || f.Offload != (ndiscore.Offload{}) {
				t.Errorf("%s, byte %d: changed on the way: %+v", name, at, f.Offload)
			}
		}
	}
	// One that must be cut into fragments is not repaired, either.
	in := udp4(flow{ttl: 64, size: 4000})
	in.Head[60] ^= 4
	want := string(in.Head[34:])
	d.a.inject(in)
	got := ""
	for len(got) < len(want) {
		got += string(d.b.await(t, "fragment", is).Bytes(nil)[34:])
	}
	if got != want {
		t.Error("the fragments are not what came")
	}
}

// leaveOpen makes f one whose transport checksum is left to the device.
func leaveOpen(f *ndiscore.Frame) *ndiscore.Frame {
	l4, b := transportOf(f), f.Bytes(nil)
	src, dst, proto := b[26:30], b[30:34], b[23]
	if l4 == 54 {
		src, dst, proto = b[22:38], b[38:54], b[20]
	}
	at := udpCsum
	if proto == protoTCP {
		at = tcpCsum
	}
	binary.BigEndian.PutUint16(f.Head[l4+at:], ndiscore.PseudoChecksum(src, dst, proto, len(b)-l4))
	f.Offload.Flags |= ndiscore.NeedsCsum
	f.Offload.CsumStart, f.Offload.CsumOffset = uint16(l4), uint16(at)
	return f
}

// plainPort is a bed whose way out has no offload at all.
func plainPort(t *testing.T) *bed {
	d := newBedOn(t, testOptions(), ndiscore.Attributes{MTU: 9000, Transmit: ndiscore.CapAll}, ndiscore.Attributes{MTU: 1500}, func(*Router) {})
	d.meet()
	return d
}

// TestRegressionPartialChecksum: a checksum that was left open must not reach a
// port that cannot finish it.
func TestRegressionPartialChecksum(t *testing.T) {
	d := plainPort(t)
	for name, make := range map[string]func() *ndiscore.Frame{
		"udp4": func() *ndiscore.Frame { return udp4(flow{ttl: 64, size: 100}) },
		"udp6": func() *ndiscore.Frame { return udp6(flow{ttl: 64, size: 101}) },
		"tcp4": func() *ndiscore.Frame { return tcp4(1000) },
		"tcp6": func() *ndiscore.Frame { return tcp6(7) },
	} {
		want := make().Bytes(nil)
		d.a.inject(leaveOpen(make()))
		f := d.b.await(t, name, func(f *ndiscore.Frame) bool { return isUDP(f) || isTCP(f) })
		sound(t, f)
		if got := f.Bytes(nil); string(got[transportOf(f):]) != string(want[transportOf(f):]) {
			t.Errorf("%s: changed on the way", name)
		}
	}
	// The router's own, too.
	ip := ip4("10.2.0.2", "10.2.0.1", layers.IPProtocolTCP, 64, true)
	syn := &layers.TCP{SrcPort: 1234, DstPort: 22, SYN: true, Window: 1000}
	_ = syn.SetNetworkLayerForChecksum(ip)
	d.b.inject(serialize(ether(hostB, macB, layers.EthernetTypeIPv4), ip, syn))
	sound(t, d.b.await(t, "RST", isTCP))
}

// TestRegressionSuperFrame: a frame of 64 KiB meets a port that cannot cut it.
func TestRegressionSuperFrame(t *testing.T) {
	d := plainPort(t)
	for _, tc := range []struct {
		name string
		in   *ndiscore.Frame
		mss  int
	}{
		{"tcp4", leaveOpen(super(false, flow{ttl: 64, df: true, size: 64000}, 1460)), 1460},
		{"tcp6", leaveOpen(super(true, flow{ttl: 64, size: 64000}, 1440)), 1440},
		{"tcp4 in pieces", split(leaveOpen(super(false, flow{ttl: 64, df: true, size: 64000}, 1000)), 100), 1000},
		{"tcp4 for a larger MTU", leaveOpen(super(false, flow{ttl: 64, size: 64000}, 8000)), 1460},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := payload(64000)
			d.a.inject(tc.in)
			got := make([]byte, 0, len(want))
			for n := 0; len(got) < len(want); n++ {
				f := d.b.await(t, "segment", isTCP)
				sound(t, f)
				tcp := decode(f).Layer(layers.LayerTypeTCP).(*layers.TCP)
				if f.Len() > 14+1500 || len(tcp.Payload) > tc.mss || int(tcp.Seq) != 1+len(got) {
					t.Fatalf("segment %d: %d bytes, sequence %d", n, f.Len(), tcp.Seq)
				}
				got = append(got, tcp.Payload...)
			}
			if string(got) != string(want) {
				t.Error("the segments do not make up the frame")
			}
		})
	}
}

// TestRegressionGSOProbeFailure: some kernels refuse super-frames although they
// offer them (EINVAL). A miniport that finds out when it starts does not offer
// them (TestRegressionSuperFrame); here one finds out too late. It costs the frames
// that it refused, and nothing else.
func TestRegressionGSOProbeFailure(t *testing.T) {
	d, w := sickRouter(t, testOptions())
	w.large.Store(true)
	w.reason.Store(uint32(ndiscore.DropDeviceError))
	for range 100 {
		d.in(d.a, super(false, flow{ttl: 64, df: true, size: 64000}, 1460), udp4(flow{ttl: 64, size: 10}),
			super(true, flow{ttl: 64, size: 64000}, 1440), udp6(flow{ttl: 64, size: 10}))
	}
	s := d.Stats()
	// What netstack sends by itself, MLD reports, is taken too.
	if w.taken.Load() < 200 || s["send.wan.refused"] != 200 || s["panics"] != 0 {
		t.Errorf("%d were taken, %d refused of 200 each, %d panics", w.taken.Load(), s["send.wan.refused"], s["panics"])
	}
}

// TestRegressionFragmentsAndGRE: what has no ports passes untouched.
func TestRegressionFragmentsAndGRE(t *testing.T) {
	d := newBed(t, testOptions(), 1500, 1500)
	d.meet()
	var in []*ndiscore.Frame
	whole := udp4(flow{ttl: 64, size: 5000}).Bytes(nil)
	in = append(in, fragments(whole, 1480)...)
	// The last piece first, and one whose header alone is a fragment's.
	in = append(in, slices.Clone(fragments(whole, 800))...)
	slices.Reverse(in[4:])
	for _, proto := range []layers.IPProtocol{layers.IPProtocolGRE, layers.IPProtocolESP, layers.IPProtocolSCTP, 200} {
		in = append(in, serialize(ether(hostA, macA, layers.EthernetTypeIPv4), ip4("10.1.0.2", "10.2.0.2", proto, 64, true), gopacket.Payload(payload(300))),
			serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd02::2", proto, 64), gopacket.Payload(payload(300))))
	}
	for off := 0; off < 3; off++ { // of IPv6
		h := make([]byte, 8, 1008)
		h[0] = protoUDP
		binary.BigEndian.PutUint16(h[2:], uint16(off*1000)&^7|min(1, uint16(2-off)))
		h[7] = 42
		in = append(in, serialize(ether(hostA, macA, layers.EthernetTypeIPv6), ip6("fd01::2", "fd02::2", protoFragment, 64), gopacket.Payload(append(h, payload(1000)...))))
	}
	for n, f := range in {
		want := f.Bytes(nil)
		d.a.inject(f)
		got := d.b.await(t, fmt.Sprintf("packet %d", n), func(f *ndiscore.Frame) bool { return f.Dst() == hostB && f.Len() == len(want) }).Bytes(nil)
		if string(got[transportOf(f):]) != string(want[transportOf(f):]) {
			t.Errorf("packet %d: changed on the way", n)
		}
	}
}

// TestRegressionNeighborMove: a neighbour has another MAC from now on, and says so
// in one of the ways that stations use. netstack would send to the old one for half
// a minute.
func TestRegressionNeighborMove(t *testing.T) {
	garp := func(op uint16, src, dst, sha ndiscore.MAC, ip, target string) *ndiscore.Frame {
		f := arpRequest(sha, ip, target)
		copy(f.Head, dst[:])
		copy(f.Head[6:], src[:])
		binary.BigEndian.PutUint16(f.Head[20:], op)
		return f
	}
	na := func(mac ndiscore.MAC, ip string, flags byte) *ndiscore.Frame {
		f := frameOf(make([]byte, 86))
		room := make([]byte, ndiscore.Headroom+headBytes)
		buildUnsolicitedNA(f, room, mac, netip.MustParseAddr(ip))
		n := f.Head[54:]
		n[4] = flags
		n[2], n[3] = 0, 0
		binary.BigEndian.PutUint16(n[2:], ^ndiscore.Checksum(n[:32], ndiscore.PseudoChecksum(f.Head[22:38], f.Head[38:54], protoICMPv6, 32)))
		return f
	}
	for _, tc := range []struct {
		name string
		says func(mac, router ndiscore.MAC) *ndiscore.Frame
		v6   bool
	}{
		{"gratuitous request", func(mac, _ ndiscore.MAC) *ndiscore.Frame {
			return garp(1, mac, ndiscore.Broadcast, mac, "10.2.0.2", "10.2.0.2")
		}, false},
		{"gratuitous reply", func(mac, _ ndiscore.MAC) *ndiscore.Frame {
			return garp(2, mac, ndiscore.Broadcast, mac, "10.2.0.2", "10.2.0.2")
		}, false},
		{"unicast reply", func(mac, router ndiscore.MAC) *ndiscore.Frame {
			return garp(2, mac, router, mac, "10.2.0.2", "10.2.0.1")
		}, false},
		{"request for us", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return arpRequest(mac, "10.2.0.2", "10.2.0.1") }, false},
		{"request for another", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return arpRequest(mac, "10.2.0.2", "10.2.0.77") }, false},
		{"advertisement", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return na(mac, "fd02::2", 0x20) }, true},
		{"advertisement of a router", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return na(mac, "fd02::2", 0xa0) }, true},
		{"solicitation", func(mac, _ ndiscore.MAC) *ndiscore.Frame { return solicitation(mac, "fd02::2", "fd02::1") }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newLiveBed(t, testOptions(), "a", "b")
			b := d.cards["b"]
			src, dst := "10.1.0.2", "10.2.0.2"
			if tc.v6 {
				src, dst = "fd01::2", "fd02::2"
			}
			first, last := ndiscore.MAC{2, 0, 0, 0, 9, 1}, ndiscore.MAC{2, 0, 0, 0, 9, 2}
			if tc.v6 {
				d.in("b", solicitation(first, dst, "fd02::1"))
			} else {
				d.in("b", arpRequest(first, dst, "10.2.0.1"))
				d.in("b", arpReply(first, macOfCard("b"), dst, "10.2.0.1"))
			}
			send := func(to ndiscore.MAC) {
				t.Helper()
				d.in("a", d.udp("a", src, dst, 20))
				f := b.await(t, "UDP, or a question", func(f *ndiscore.Frame) bool {
					l, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
					return isUDP(f) || ok && l.Operation == 1 && l.DstProtAddress[3] == 2 && f.Dst() == ndiscore.Broadcast
				})
				if !isUDP(f) {
					d.in("b", arpReply(to, macOfCard("b"), dst, "10.2.0.1"))
					f = b.await(t, "UDP", isUDP)
				}
				if f.Dst() != to {
					t.Fatalf("sent to %s, not %s", f.Dst(), to)
				}
			}
			send(first)
			for _, mac := range []ndiscore.MAC{last, first, last} {
				d.in("b", tc.says(mac, macOfCard("b")))
				send(mac)
			}
			// Who has not moved is not asked again.
			was := d.router.Stats()["neighbor.moved"]
			d.in("b", tc.says(last, macOfCard("b")))
			d.in("b", garp(1, last, ndiscore.Broadcast, ndiscore.Broadcast, "10.2.0.2", "10.2.0.2")) // nonsense
			send(last)
			if now := d.router.Stats()["neighbor.moved"]; now != was {
				t.Errorf("%d neighbours moved", now-was)
			}
		})
	}
}

// crowd is a testOptions whose wan has room for many neighbours.
func crowd() Options {
	o := testOptions()
	o.Interfaces[1].Addresses = prefixes("10.64.0.1/10", "fd02::1/64")
	o.Routes = nil
	return o
}

// person is the n-th neighbour of a crowd.
func person(v6 bool, n int) netip.Addr {
	if v6 {
		a := netip.MustParseAddr("fd02::5:0:0").As16()
		binary.BigEndian.PutUint32(a[12:], uint32(n))
		return netip.AddrFrom16(a)
	}
	a := [4]byte{10, 65}
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n)+2)
	return netip.AddrFrom4(a)
}

func macOfPerson(n int) ndiscore.MAC {
	return ndiscore.MAC{2, 0x77, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// advert answers a solicitation of target.
func advert(from, to ndiscore.MAC, target, router string) *ndiscore.Frame {
	l3 := ip6(target, router, layers.IPProtocolICMPv6, 255)
	i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(136, 0)}
	_ = i.SetNetworkLayerForChecksum(l3)
	return serialize(ether(from, to, layers.EthernetTypeIPv6), l3, i, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0x60, TargetAddress: netip.MustParseAddr(target).AsSlice(),
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: from[:]}},
	})
}

// TestRegressionManyNeighbors: netstack keeps 512 neighbours a NIC. More of them
// cost questions, not packets.
func TestRegressionManyNeighbors(t *testing.T) {
	const people, chunk = 1000, 32 // netstack has at most 64 open questions
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			d := newLiveBed(t, crowd(), "a", "b")
			b, src := d.cards["b"], "10.1.0.2"
			if v6 {
				src = "fd01::2"
			}
			asked, numbers := 0, map[netip.Addr]int{}
			for n := range people {
				numbers[person(v6, n)] = n
			}
			for range 2 {
				for n := 0; n < people; n += chunk {
					want := map[netip.Addr]bool{}
					for k := n; k < min(n+chunk, people); k++ {
						want[person(v6, k)] = true
						d.in("a", d.udp("a", src, person(v6, k).String(), 20))
					}
					eventually(t, "their packets", func() bool {
						for _, f := range b.sentSoFar() {
							p := decode(&f)
							if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
								a, _ := netip.AddrFromSlice(l.DstProtAddress)
								if who, ok := numbers[a]; ok {
									asked++
									d.in("b", arpReply(macOfPerson(who), macOfCard("b"), a.String(), "10.64.0.1"))
								}
							}
							if l, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation); ok {
								a, _ := netip.AddrFromSlice(l.TargetAddress)
								if who, ok := numbers[a]; ok {
									asked++
									d.in("b", advert(macOfPerson(who), macOfCard("b"), a.String(), "fd02::1"))
								}
							}
							if !isUDP(&f) {
								continue
							}
							a, _ := netip.ParseAddr(p.NetworkLayer().NetworkFlow().Dst().String())
							if f.Dst() != macOfPerson(numbers[a]) {
								t.Errorf("%s is reached at %s", a, f.Dst())
							}
							delete(want, a)
						}
						return len(want) == 0
					})
				}
			}
			if n := len(d.router.Neighbors()); n == 0 || n > 512 {
				t.Errorf("%d neighbours", n)
			}
			t.Logf("%d packets to %d people cost %d questions", 2*people, people, asked)
		})
	}
}

// TestRegressionNeighborFlood: 65,536 stations, none of which exists, ask for us, or
// are asked for. That costs a bounded memory, and no frame of a flow that goes on
// meanwhile.
func TestRegressionNeighborFlood(t *testing.T) {
	people := 65536
	if testing.Short() || raceEnabled {
		people = 4096
	}
	for _, tc := range []struct {
		name  string
		in    string
		frame func(d *liveBed, n int) *ndiscore.Frame
	}{
		{"ARP", "b", func(_ *liveBed, n int) *ndiscore.Frame {
			return arpRequest(macOfPerson(n), person(false, n).String(), "10.64.0.1")
		}},
		{"ND", "b", func(_ *liveBed, n int) *ndiscore.Frame {
			return solicitation(macOfPerson(n), person(true, n).String(), "fd02::1")
		}},
		{"scan", "a", func(d *liveBed, n int) *ndiscore.Frame {
			return d.udp("a", "10.1.0.2", person(false, n).String(), 1000)
		}},
		{"scan6", "a", func(d *liveBed, n int) *ndiscore.Frame {
			return d.udp("a", "fd01::2", person(true, n).String(), 1000)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newLiveBed(t, crowd(), "a", "b")
			a, b := d.cards["a"], d.cards["b"]
			d.meet("a", "10.1.0.2", "10.1.0.1")
			d.meet("b", "10.64.0.2", "10.64.0.1")
			b.memAdapter.mu.Lock()
			b.sent = nil
			b.memAdapter.mu.Unlock()
			flow, got, most := 0, 0, 0
			collect := func() {
				a.sentSoFar()
				for _, f := range b.sentSoFar() {
					if f.Len() != 42+333 {
						continue
					}
					got++
					if b := f.Bytes(nil); b[22] != 63 {
						t.Errorf("a time to live of %d", b[22])
					}
				}
			}
			before := measure()
			for n := 0; n < people; n += 16 {
				frames := []*ndiscore.Frame{d.udp("a", "10.1.0.2", "10.64.0.2", 333)}
				flow++
				for k := n; k < n+16; k++ {
					frames = append(frames, tc.frame(d, k))
				}
				if tc.in == "a" {
					d.in("a", frames...)
				} else {
					d.in("a", frames[0])
					d.in("b", frames[1:]...)
				}
				// As fast as netstack takes it: what the punt queue refuses is no flood of netstack.
				eventually(t, "delivered", func() bool { return d.router.queue.waiting.Load() < 64 })
				if n%1024 == 0 {
					collect()
					most = max(most, runtime.NumGoroutine())
				}
			}
			eventually(t, "the flow", func() bool { collect(); return got == flow })
			// Two families on wan; on lan only who asked.
			if n := len(d.router.Neighbors()); n > 512+8 {
				t.Errorf("%d neighbours", n)
			}
			before.grownTo(t)
			// netstack would give up on the oldest question on a goroutine of its own.
			if most > before.goroutines+20 {
				t.Errorf("%d goroutines, %d before", most, before.goroutines)
			}
			// Who does exist is found at once.
			d.in("a", d.udp("a", "10.1.0.2", "10.64.0.3", 20))
			b.await(t, "question", func(f *ndiscore.Frame) bool {
				l, ok := decode(f).Layer(layers.LayerTypeARP).(*layers.ARP)
				return ok && slices.Equal(l.DstProtAddress, []byte{10, 64, 0, 3})
			})
			d.in("b", arpReply(hostB, macOfCard("b"), "10.64.0.3", "10.64.0.1"))
			b.await(t, "UDP", func(f *ndiscore.Frame) bool { return isUDP(f) && f.Len() == 42+20 })
			if s := d.router.Stats(); s["panics"] != 0 {
				t.Errorf("%d panics", s["panics"])
			}
		})
	}
}

// TestRegressionWaitingBytes: what waits for neighbours that do not exist is bounded
// in bytes, too.
func TestRegressionWaitingBytes(t *testing.T) {
	d := newLiveBed(t, crowd(), "a", "b")
	b := d.cards["b"]
	b.drain = true
	d.meet("a", "10.1.0.2", "10.1.0.1")
	d.meet("a", "fd01::2", "fd01::1")
	before := measure()
	sent, waited, mac := 0, uint64(0), macOfCard("a")
	frames := map[bool]*ndiscore.Frame{}
	for _, v6 := range []bool{false, true} {
		frames[v6] = super(v6, flow{ttl: 64, df: true, size: 60000}, 1400)
		copy(frames[v6].Head, mac[:])
	}
	for n := range 100 {
		for _, to := range []netip.Addr{person(false, n), person(true, n)} {
			f, at := frames[to.Is6()], 16
			if to.Is6() {
				at = 24
			}
			rewrite(f, func(h []byte) { copy(h[at:], to.AsSlice()) })
			for range 20 {
				d.in("a", f)
				sent++
				eventually(t, "delivered", func() bool { return d.router.queue.waiting.Load() < 8 })
			}
		}
		if n%20 == 19 {
			waited = max(waited, measure().heap)
		}
	}
	full := d.router.Stats()["neighbor.full"]
	t.Logf("%d super-frames, %d refused, heap %d KiB, at most %d KiB", sent, full, before.heap>>10, waited>>10)
	if full < uint64(sent)/2 || waited > before.heap+80<<20 {
		t.Errorf("%d of %d were refused; the heap went from %d to %d KiB", full, sent, before.heap>>10, waited>>10)
	}
	eventually(t, "netstack has given up", func() bool { return d.router.stack.Load().neighbors.asking.Load() == 0 })
	before.grownTo(t)
}
