package stack

// One test for each way in which netstack, or a link below it, is known to have
// broken a router: here those of links and time to live. Those in other files:
//
//	regression_answer_test.go    the interface by which answers leave
//	regression_frame_test.go     checksums, super-frames, what has no ports
//	regression_neighbor_test.go  who moves, who does not exist, and who are too many
//	router_test.go               TestRegressionTooBig: netstack says MTU 0 in IPv6, and nothing for a super-frame
//	regression_kernel_test.go    TestRegressionKernel…: the same with the kernel's own stack on both sides
//	nat/                         fragments, GRE and used ports through NAT; 65,000 flows to one destination

import (
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/refs"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
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
	if testing.Short() || ndistest.RaceEnabled {
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
