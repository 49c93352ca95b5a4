package ndiscore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

var queryVLAN = ndiscore.OIDRequest{ID: ndiscore.OIDGenVLANID, Kind: ndiscore.OIDQuery}

func TestC86OneRequestAtATime(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, TraceRequests: true}) // its Verifier reports two at once
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	hold := m.Hold("Request")
	first := later(func() error { r := queryVLAN; return bd.Request(b.ctx(), &r) })
	hold.Await(t)
	second := later(func() error { r := queryVLAN; return bd.Request(b.ctx(), &r) })
	// Whoever cannot wait for its turn gives up, and disturbs nobody.
	short, cancel := context.WithTimeout(b.ctx(), 10*time.Millisecond)
	defer cancel()
	r := queryVLAN
	if err := bd.Request(short, &r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the third: %v", err)
	}
	select {
	case err := <-second:
		t.Errorf("the second ended before the first: %v", err)
	default:
	}
	if n := tr.Count("M.Query(GEN_VLAN_ID)"); n != 1 {
		t.Errorf("%d requests are with M", n)
	}
	hold.Release()
	b.must(<-first)
	b.must(<-second)
	if n := tr.Count("M.Query(GEN_VLAN_ID)"); n != 2 {
		t.Errorf("%d requests were with M", n)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				r := queryVLAN
				if err := bd.Request(b.ctx(), &r); err != nil || r.Data != uint32(0) {
					t.Errorf("%v, %v", r.Data, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestC87CounterLengths(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1), frame(2), frame(3)))
	bd := p.Binding("M")
	for _, c := range []struct {
		length, written int
		want            uint64
		err             error
	}{
		{16, 8, 3, nil}, {8, 8, 3, nil}, {7, 4, 3, nil}, {4, 4, 3, nil}, {3, 0, 0, ndiscore.ErrInvalidLength}, {2, 0, 0, ndiscore.ErrInvalidLength}, {0, 0, 0, ndiscore.ErrInvalidLength},
	} {
		buf := make([]byte, 16)
		n, needed, err := bd.QueryBytes(b.ctx(), ndiscore.OIDGenRcvOK, buf[:c.length])
		if n != c.written || needed != 8 || !errors.Is(err, c.err) || binary.LittleEndian.Uint64(buf) != c.want {
			t.Errorf("%d bytes: wrote %d of %d, %v: %x", c.length, n, needed, err, buf)
		}
	}
	// The low half, when it does not fit.
	buf := make([]byte, 4)
	if n, needed, err := ndiscore.EncodeOID(uint64(5)<<32|7, buf); n != 4 || needed != 8 || err != nil || binary.LittleEndian.Uint32(buf) != 7 {
		t.Errorf("%d, %d, %v: %x", n, needed, err, buf)
	}
	// Anything else needs its whole length.
	if n, needed, err := bd.QueryBytes(b.ctx(), ndiscore.OIDGenFriendlyName, nil); n != 0 || needed != 1 || !errors.Is(err, ndiscore.ErrBufferTooShort) {
		t.Errorf("%d, %d, %v", n, needed, err)
	}
}

func TestC88Timeout(t *testing.T) {
	clock := ndistest.NewClock()
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{Clock: clock}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	hold := m.Hold("Request") // ends with the context that it is given
	asked := later(func() error {
		r := queryVLAN
		r.Timeout = 3 * time.Second
		return p.Binding("M").Request(b.ctx(), &r)
	})
	hold.Await(t)
	clock.Advance(2 * time.Second)
	select {
	case err := <-asked:
		t.Errorf("too early: %v", err)
	default:
	}
	clock.Advance(time.Second)
	if err := <-asked; !errors.Is(err, ndiscore.ErrRequestAborted) {
		t.Error(err)
	}
	r := queryVLAN
	b.must(p.Binding("M").Request(b.ctx(), &r)) // and the next one is served
	// A caller's own context cancels it too.
	hold = m.Hold("Request")
	ctx, cancel := context.WithCancel(b.ctx())
	asked = later(func() error { r := queryVLAN; return p.Binding("M").Request(ctx, &r) })
	hold.Await(t)
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestC89FilterUnion(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
	p1.Filter = ndiscore.FilterDirected
	b.protocol(p1, "M")
	b.protocol(p2, "M")
	b.add("M")
	b.start("M")
	if f := m.PacketFilter(); f != ndiscore.FilterDirected|ndiscore.FilterPromiscuous {
		t.Errorf("union %#x", f)
	}
	to := func(dst ndiscore.MAC) []byte { return ndistest.Frame(dst, macA, 1, 60) }
	b.must(m.Inject(to(m.MAC()), to(macB), to(ndiscore.Broadcast), to(ndiscore.MAC{1, 0, 0x5e, 0, 0, 1})))
	if p1.Received() != 1 || p2.Received() != 4 {
		t.Errorf("received %d and %d", p1.Received(), p2.Received())
	}
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentPacketFilter, Kind: ndiscore.OIDQuery}
	b.must(p1.Binding("M").Request(b.ctx(), req))
	if req.Data != ndiscore.FilterDirected|ndiscore.FilterPromiscuous {
		t.Errorf("query: %v", req.Data)
	}
	b.must(b.core.RemoveProtocol(b.ctx(), "P2"))
	if f := m.PacketFilter(); f != ndiscore.FilterDirected {
		t.Errorf("after P2 has gone: %#x", f)
	}
	if err := p1.Binding("M").SetPacketFilter(b.ctx(), 0x80); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("an unknown bit: %v", err)
	}
	if err := p1.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentPacketFilter, Kind: ndiscore.OIDSet, Data: 1}); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("a wrong type: %v", err)
	}
	b.must(p1.Binding("M").Request(b.ctx(), &ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentPacketFilter, Kind: ndiscore.OIDSet, Data: ndiscore.FilterBroadcast}))
	if f := m.PacketFilter(); f != ndiscore.FilterBroadcast {
		t.Errorf("set by request: %#x", f)
	}
}

func TestC90MulticastFull(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{MaxMulticast: 3})
	b := newBench(t, ndiscore.Options{}, m)
	p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
	p1.Filter, p2.Filter = ndiscore.FilterMulticast, ndiscore.FilterMulticast
	b.protocol(p1, "M")
	b.protocol(p2, "M")
	b.add("M")
	b.start("M")
	g := func(n ...byte) (gs []ndiscore.MAC) {
		for _, x := range n {
			gs = append(gs, ndiscore.MAC{1, 0, 0x5e, 0, 0, x})
		}
		return gs
	}
	b1, b2 := p1.Binding("M"), p2.Binding("M")
	b.must(b1.SetMulticast(b.ctx(), g(1, 2)))
	b.must(b2.SetMulticast(b.ctx(), g(2, 3)))
	want := g(1, 2, 3)
	check := func() {
		t.Helper()
		if d := cmp.Diff(want, m.Multicast()); d != "" {
			t.Error(d)
		}
	}
	check()
	for what, list := range map[string][]ndiscore.MAC{"too many": g(4, 5), "unicast": {macA}, "broadcast": {ndiscore.Broadcast}} {
		if err := b2.SetMulticast(b.ctx(), list); !errors.Is(err, ndiscore.ErrMulticastFull) {
			t.Errorf("%s: %v", what, err)
		}
		check()
	}
	for i, group := range g(1, 2, 3, 4) {
		b.must(m.Inject(ndistest.Frame(group, macA, uint32(i), 60)))
	}
	if p1.Received() != 2 || p2.Received() != 2 {
		t.Errorf("received %d and %d", p1.Received(), p2.Received())
	}
	b.must(b.core.RemoveProtocol(b.ctx(), "P1"))
	want = g(2, 3)
	check()
	req := &ndiscore.OIDRequest{ID: ndiscore.OID8023MaximumListSize, Kind: ndiscore.OIDQuery}
	b.must(b2.Request(b.ctx(), req))
	if req.Data != uint32(3) {
		t.Errorf("length of the list: %v", req.Data)
	}
}

func TestC92CancelSend(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepSends: true})
	b := newBench(t, ndiscore.Options{}, m)
	back := map[uint64]ndiscore.DropReason{}
	p := &returns{Protocol: ndistest.NewProtocol("P1", nil), back: back}
	b.must(b.core.AddProtocol(b.ctx(), ndiscore.ProtocolSpec{Name: "P1", Protocol: p, Targets: []string{"M"}}))
	b.add("M")
	b.start("M")
	w := b.worker("test")
	bd := p.Binding("M")
	for id := uint64(1); id <= 3; id++ {
		x := ndiscore.NewBatch(w)
		f := new(ndiscore.Frame)
		f.Reset(frame(int(id)), 0, 60)
		x.Append(f)
		x.CancelID = id
		bd.Send(x)
	}
	bd.CancelSend(2)
	bd.CancelSend(9)
	if d := cmp.Diff(map[uint64]ndiscore.DropReason{2: ndiscore.DropAborted}, back); d != "" {
		t.Error(d)
	}
	m.CompleteSends()
	bd.CancelSend(1) // it is back already
	if d := cmp.Diff(map[uint64]ndiscore.DropReason{1: ndiscore.DropNone, 2: ndiscore.DropAborted, 3: ndiscore.DropNone}, back); d != "" {
		t.Error(d)
	}
	if c := b.counters("M"); c.TxFrames != 2 || c.TxDropped["send-aborted"] != 1 {
		t.Errorf("%+v", c)
	}
}

// slowCancel is an adapter whose CancelSend returns when it is let, and whose
// Halt says when it was called.
type slowCancel struct {
	ndiscore.Adapter
	begun, let, halted chan struct{}
}

func (s *slowCancel) CancelSend(uint64) { close(s.begun); <-s.let }

func (s *slowCancel) Halt(ctx context.Context, why ndiscore.HaltAction) {
	close(s.halted)
	s.Adapter.Halt(ctx, why)
}

// An adapter is not halted while it is asked to give sends back.
func TestC92CancelSendDelaysHalt(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	m := &slowCancel{nic("M", ndistest.AdapterOptions{}), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	b.register(named("fake", "M", m))
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	b.must(b.core.Pause(b.ctx(), "M", "test")) // which would have waited
	bd := p.Binding("M")
	cancelled := later(func() error { bd.CancelSend(1); return nil })
	<-m.begun
	stopped := later(func() error { return b.core.Stop(b.ctx(), "M", "test") })
	ndistest.Await(t, "P1 is unbound", func() bool { return p.Binding("M") == nil })
	select {
	case <-m.halted:
		t.Error("halted while it cancelled sends")
	case <-time.After(50 * time.Millisecond): // Halt would be next
	}
	close(m.let)
	b.must(<-cancelled)
	b.must(<-stopped)
	<-m.halted
}

// returns notes how each batch came back.
type returns struct {
	*ndistest.Protocol
	back map[uint64]ndiscore.DropReason
}

func (r *returns) SendComplete(_ *ndiscore.Binding, x *ndiscore.Batch) {
	if _, twice := r.back[x.CancelID]; twice {
		panic(fmt.Sprintf("batch %d came back twice", x.CancelID))
	}
	r.back[x.CancelID] = x.Status[0]
}

func TestC95LinkState(t *testing.T) {
	b, tr, m, p1, _ := full(t, ndiscore.Options{}, ndistest.AdapterOptions{})
	links := func() (cs []string) {
		b.settle("M")
		for _, c := range tr.Take() {
			if contains(c, "LinkState") {
				cs = append(cs, c)
			}
		}
		return cs
	}
	m.SetLink(false, "carrier")
	if d := cmp.Diff([]string{"M.F1.Status(LinkState)", "M.F2.Status(LinkState)", "P1.Status(M, LinkState)", "P2.Status(M, LinkState)"}, links()); d != "" {
		t.Error(d)
	}
	m.SetLink(false, "the same, seen by somebody else")
	if cs := links(); len(cs) != 0 {
		t.Errorf("said again: %v", cs)
	}
	m.SetLink(true, "carrier")
	if cs := links(); len(cs) != 4 {
		t.Error(cs)
	}
	req := &ndiscore.OIDRequest{ID: ndiscore.OIDGenMediaSenseCounts, Kind: ndiscore.OIDQuery}
	b.must(p1.Binding("M").Request(b.ctx(), req))
	if fmt.Sprint(req.Data) != "2" {
		t.Errorf("changes of the link: %v", req.Data)
	}
}

func TestC23StatusInsideInitialize(t *testing.T) {
	m := &early{Adapter: nic("M", ndistest.AdapterOptions{})}
	b := newCore(t, ndiscore.Options{})
	b.register(ndistest.Driver("fake", ndistest.Verifier(t, m)))
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	// What was said inside Initialize is newer than what it returns.
	if l := p.Binding("M").Attributes().Link; l.Connected() || l.Why != "inside" {
		t.Errorf("%+v", l)
	}
	b.settle("M")
	if i := ndistest.Info(t, b.core, "M"); i.Link.Connected() || i.Oper != ndiscore.OperDown {
		t.Errorf("%+v, %s", i.Link, i.Oper)
	}
}

// early says that its link is down before Initialize has returned.
type early struct{ *ndistest.Adapter }

func (e *early) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	h.IndicateStatus(ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "inside"})
	return e.Adapter.Initialize(ctx, h)
}

// Every OID of the table is served as the table says: by the core, by the
// adapter, or not in that direction; and what the core answers has a layout.
func TestOIDTable(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, TraceRequests: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	adapters := []ndiscore.OID{
		ndiscore.OIDGenTransmitBufferSpace, ndiscore.OIDGenReceiveBufferSpace, ndiscore.OIDGenTransmitBlockSize,
		ndiscore.OIDGenReceiveBlockSize, ndiscore.OIDGenVLANID,
	}
	never := []ndiscore.OID{ndiscore.OIDGenLinkParameters, ndiscore.OIDPnPSetPower}
	for _, id := range ndiscore.SupportedOIDs() {
		tr.Take()
		req := &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDQuery}
		err := bd.Request(b.ctx(), req)
		reached := len(tr.Take()) > 0
		switch {
		case slices.Contains(never, id):
			if !errors.Is(err, ndiscore.ErrNotSupported) || reached {
				t.Errorf("%s: %v (reached the adapter: %t)", id, err, reached)
			}
			continue
		case slices.Contains(adapters, id) != reached:
			t.Errorf("%s: reached the adapter: %t", id, reached)
		}
		if err != nil {
			if !reached || !errors.Is(err, ndiscore.ErrNotSupported) {
				t.Errorf("%s: %v", id, err)
			}
			continue
		}
		buf := make([]byte, 4096)
		if n, needed, err := ndiscore.EncodeOID(req.Data, buf); err != nil || n != needed {
			t.Errorf("%s: %T: %d of %d, %v", id, req.Data, n, needed, err)
		}
	}
	for id, want := range map[ndiscore.OID]error{
		ndiscore.OIDGenLinkState: ndiscore.ErrNotSupported, ndiscore.OIDGenLinkParameters: ndiscore.ErrNotSupported, ndiscore.OIDPnPSetPower: ndiscore.ErrNotAccepted, 7: ndiscore.ErrInvalidOID,
	} {
		if err := bd.Request(b.ctx(), &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDSet}); !errors.Is(err, want) {
			t.Errorf("set %s: %v", id, err)
		}
	}
}

// What has a layout of its own in NDIS is laid out so.
func TestOIDLayouts(t *testing.T) {
	le := func(parts ...any) (b []byte) {
		for _, p := range parts {
			var err error
			if b, err = binary.Append(b, binary.LittleEndian, p); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	header := func(size uint16) []byte { return le(uint8(0x80), uint8(1), size) }
	for _, c := range []struct {
		data any
		want []byte
	}{
		{ndiscore.MediaConnected, le(uint32(0))}, // NdisMediaStateConnected
		{ndiscore.MediaDisconnected, le(uint32(1))},
		{ndiscore.MediaUnknown, le(uint32(1))},
		{ndiscore.OperUp, le(uint32(1))},
		{ndiscore.OperDown, le(uint32(2))},
		{ndiscore.OperDormant, le(uint32(5))},
		{ndiscore.OperNotPresent, le(uint32(6))},
		{ndiscore.OperStatus("lowerLayerDown"), le(uint32(7))},
		{ndiscore.OperStatus("what"), le(uint32(4))},
		{ndiscore.PowerD3, le(uint32(4))},
		{ndiscore.LinkState{Media: ndiscore.MediaConnected, Speed: 1e9},
			le(header(40), uint32(1), uint32(0), uint32(0), uint64(1e9), uint64(1e9), uint32(4), uint32(0))},
		{ndiscore.LinkState{Media: ndiscore.MediaDisconnected},
			le(header(40), uint32(2), uint32(0), uint32(0), ^uint64(0), ^uint64(0), uint32(4), uint32(0))},
		{ndiscore.Counters{
			RxBytes: 60, TxBytes: 70,
			RxDropped: map[string]uint64{"short": 1, "paused": 2}, TxDropped: map[string]uint64{"device-error": 4, "paused": 8},
		}, le(header(152), uint32(0x8638), [18]uint64{0: 3, 1: 1, 2: 60, 6: 70, 10: 4, 11: 12})},
	} {
		buf := make([]byte, 256)
		n, needed, err := ndiscore.EncodeOID(c.data, buf)
		if err != nil || n != needed {
			t.Errorf("%v: %d of %d, %v", c.data, n, needed, err)
		}
		if d := cmp.Diff(c.want, buf[:n]); d != "" {
			t.Errorf("%T %v: %s", c.data, c.data, d)
		}
	}
}

// The permanent address is the one of Initialize's attributes, whatever the
// address is now.
func TestPermanentAddress(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	first := m.MAC()
	m.Handle().IndicateStatus(ndiscore.AttributesChange{MAC: macB, Why: "test"})
	for id, want := range map[ndiscore.OID]ndiscore.MAC{ndiscore.OID8023PermanentAddress: first, ndiscore.OID8023CurrentAddress: macB} {
		req := &ndiscore.OIDRequest{ID: id, Kind: ndiscore.OIDQuery}
		b.must(p.Binding("M").Request(b.ctx(), req))
		if req.Data != want {
			t.Errorf("%s: %v, want %s", id, req.Data, want)
		}
	}
}

func TestC20OIDWhileHaltedAndPausing(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	ask := func() error { r := queryVLAN; return bd.Request(b.ctx(), &r) }
	b.must(ask())
	hold := m.Hold("Pause")
	paused := later(func() error { return b.core.Pause(b.ctx(), "M", "test") })
	hold.Await(t)
	b.must(ask()) // Pausing
	hold.Release()
	b.must(<-paused)
	b.must(ask()) // Paused
	hold = m.Hold("Restart")
	started := later(func() error { return b.core.Start(b.ctx(), "M", "test") })
	hold.Await(t)
	b.must(ask()) // Restarting
	hold.Release()
	b.must(<-started)
	b.must(b.core.Stop(b.ctx(), "M", "test"))
	if err := ask(); !errors.Is(err, ndiscore.ErrInvalidHandle) { // Halted: the binding is gone
		t.Error(err)
	}
}

// A packet filter that is set while the device is being reset reaches it when
// the reset is over, whether or not that lost the addressing.
func TestFilterSetDuringReset(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{Resets: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	hold := m.Hold("Reset")
	done := make(chan error, 1)
	go func() { done <- b.core.Reset(b.ctx(), "M", "test") }() // ended below
	hold.Await(t)
	if err := p.Binding("M").SetPacketFilter(b.ctx(), ndiscore.FilterPromiscuous); !errors.Is(err, ndiscore.ErrResetInProgress) {
		t.Errorf("during a reset: %v", err)
	}
	hold.Release()
	b.must(<-done)
	ndistest.Await(t, "the filter", func() bool { return m.PacketFilter() == ndiscore.FilterPromiscuous })
	req := ndiscore.OIDRequest{ID: ndiscore.OIDGenInterruptModeration, Kind: ndiscore.OIDSet, Data: uint32(2)}
	if err := p.Binding("M").Request(b.ctx(), &req); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("interrupt moderation: %v", err)
	}
	req = ndiscore.OIDRequest{ID: ndiscore.OIDGenCurrentLookahead, Kind: ndiscore.OIDSet, Data: uint32(128)}
	b.must(p.Binding("M").Request(b.ctx(), &req))
	req.Data = "much"
	if err := p.Binding("M").Request(b.ctx(), &req); !errors.Is(err, ndiscore.ErrInvalidData) {
		t.Errorf("lookahead: %v", err)
	}
}
