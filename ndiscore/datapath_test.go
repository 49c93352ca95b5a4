package ndiscore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestC93KeptFanOut(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepReceives: true})
	b := newBench(t, ndiscore.Options{}, m)
	p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
	p1.Keep, p2.Keep = true, true
	b.protocol(p1, "M")
	b.protocol(p2, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frames(3)...))
	back := func() int { _, n := m.Lent(); return n }
	if p1.Kept() != 1 || p2.Kept() != 1 || back() != 0 {
		t.Fatalf("kept %d and %d, back %d", p1.Kept(), p2.Kept(), back())
	}
	p1.ReturnKept()
	if back() != 0 {
		t.Error("returned to M while P2 holds it")
	}
	p2.ReturnKept()
	if back() != 1 {
		t.Errorf("back %d", back())
	}
	// Both give it back at once: once again only one Return.
	p1.Keep, p2.Keep = false, false
	b.must(m.Inject(frames(3)...))
	if back() != 2 {
		t.Errorf("back %d", back())
	}
	if c := b.counters("M"); c.RxFrames != 6 || c.Delivered != 6 {
		t.Errorf("%+v", c)
	}
}

func TestC93BorrowedHasNoReturn(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
	p1.Keep = true
	b.protocol(p1, "M")
	b.protocol(p2, "M")
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1), frame(2)))
	if _, back := m.Lent(); back != 0 || p1.Kept() != 0 {
		t.Errorf("back %d, kept %d", back, p1.Kept())
	}
	// The fake has spoilt its buffers by now; copies stay.
	if d := cmp.Diff([][]byte{frame(1), frame(2)}, p2.Frames()); d != "" {
		t.Error(d)
	}
	// A protocol that returns what was only lent to it does no harm.
	stray := ndistest.NewProtocol("P3", nil)
	stray.OnReceive = func(bd *ndiscore.Binding, batch *ndiscore.Batch) {
		bd.Return(batch)
		batch.DropAll(ndiscore.DropNoReceiver)
	}
	b.protocol(stray, "M")
	ndistest.Await(t, "P3 bound", func() bool { bd := stray.Binding("M"); return bd != nil && bd.Usable() })
	b.must(m.Inject(frame(3)))
	if _, back := m.Lent(); back != 0 {
		t.Error("a borrowed batch was returned")
	}
}

// A kept receive with a filter on the way, or with a bad frame in it, is lent
// on: it is the adapter's again at once, whole, and no filter is passed by.
func TestC93KeptThroughFilter(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepReceives: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	p.Keep = true
	f := ndistest.NewFilter("M.F1", nil)
	f.DropReceived = 2
	b.protocol(p, "M")
	b.add("M", ndiscore.FilterSpec{Name: "f", Filter: f})
	b.start("M")
	b.must(m.Inject(frame(1), frame(2), frame(3), make([]byte, 13)))
	if n, _ := f.Seen(); n != 3 {
		t.Errorf("the filter saw %d frames", n)
	}
	if d := cmp.Diff([][]byte{frame(1), frame(3)}, p.Frames()); d != "" {
		t.Error(d)
	}
	if out, back := m.Lent(); out != 0 || back != 1 {
		t.Errorf("out %d, back %d", out, back)
	}
	want := map[string]uint64{"fault-drop": 1, "short": 1}
	if c := b.counters("M"); c.RxFrames != 4 || c.Delivered != 2 || cmp.Diff(want, c.RxDropped) != "" {
		t.Errorf("%+v", c)
	}
}

// Returned twice: the second time is ignored, and nothing is out by less than
// nothing, so the next pause still waits.
func TestReturnTwice(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr, KeepReceives: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	var held *ndiscore.Batch
	p.OnReceive = func(_ *ndiscore.Binding, batch *ndiscore.Batch) { held = batch }
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	bd := p.Binding("M")
	b.must(m.Inject(frame(1)))
	bd.Return(held)
	bd.Return(held)
	if _, back := m.Lent(); back != 1 {
		t.Errorf("back %d", back)
	}
	b.must(m.Inject(frame(2)))
	stopped := make(chan error, 1)
	go func() { stopped <- b.core.Stop(b.ctx(), "M", "test") }() // ended below
	tr.Await(t, "M.Pause")
	if s := b.state("M"); s != "pausing" {
		t.Error(s)
	}
	bd.Return(held)
	b.must(<-stopped)
}

func TestSendCompleteTwice(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	_, err := core.RegisterDriver(ndistest.Driver("fake", m)) // no Verifier: this breaks the contract
	b.must(err)
	p := ndistest.NewProtocol("P1", nil)
	b.protocol(p, "M")
	b.add("M")
	b.start("M")
	batch := send(b.worker("test"), p.Binding("M"), false, frame(1))
	m.Handle().SendComplete(batch)
	m.Handle().SendComplete(ndiscore.NewBatch(batch.Worker))
	if p.Completed() != 1 {
		t.Errorf("completed %d times", p.Completed())
	}
	if c := b.counters("M"); c.TxFrames != 1 {
		t.Errorf("%+v", c)
	}
}

func TestC94FilterOriginatesSend(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	f1, f2 := ndistest.NewFilter("M.F1", nil), ndistest.NewFilter("M.F2", nil)
	b.protocol(p, "M")
	b.add("M", ndiscore.FilterSpec{Name: "a", Filter: f1}, ndiscore.FilterSpec{Name: "b", Filter: f2})
	b.start("M")
	w := b.worker("test")
	for _, borrowed := range []bool{true, false} {
		batch := ndiscore.NewBatch(w)
		batch.Borrowed = borrowed
		x := new(ndiscore.Frame)
		x.Reset(frame(1), 0, 60)
		batch.Append(x)
		f2.Handle().Send(batch)
	}
	if _, n := f1.Seen(); n != 2 {
		t.Errorf("F1 saw %d", n)
	}
	if len(m.Sent()) != 2 {
		t.Errorf("M sent %d", len(m.Sent()))
	}
	if p.Completed() != 0 {
		t.Error("P1 heard of a completion that is not its own")
	}
}

// A kept send through a filter that drops comes back exactly once.
func TestKeptSendThroughFilter(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{KeepSends: true})
	b := newBench(t, ndiscore.Options{}, m)
	p := ndistest.NewProtocol("P1", nil)
	f := ndistest.NewFilter("M.F1", nil)
	f.DropSent = 1
	b.protocol(p, "M")
	b.add("M", ndiscore.FilterSpec{Name: "f", Filter: f})
	b.start("M")
	w := b.worker("test")
	batch := send(w, p.Binding("M"), false, frames(5)...)
	if p.Completed() != 1 || len(batch.Frames) != 5 || len(m.Sent()) != 0 {
		t.Errorf("completed %d, %d frames, %d sent", p.Completed(), len(batch.Frames), len(m.Sent()))
	}
	if c := b.counters("M"); c.TxDropped["fault-drop"] != 5 || c.TxFrames != 0 {
		t.Errorf("%+v", c)
	}
}

func TestPacketFilters(t *testing.T) {
	for _, kept := range []bool{false, true} {
		m := nic("M", ndistest.AdapterOptions{KeepReceives: kept, MAC: macB})
		b := newBench(t, ndiscore.Options{}, m)
		directed, station, all := ndistest.NewProtocol("directed", nil), ndistest.NewProtocol("station", nil), ndistest.NewProtocol("all", nil)
		directed.Filter, station.Filter = ndiscore.FilterDirected, ndiscore.FilterStation
		for _, p := range []*ndistest.Protocol{directed, station, all} {
			p.Keep = true
			b.protocol(p, "M")
		}
		b.add("M")
		b.start("M")
		if got := m.PacketFilter(); got != ndiscore.FilterStation|ndiscore.FilterPromiscuous { // C-89
			t.Errorf("union %#x", got)
		}
		ours := frame(1)
		foreign := ndistest.Frame(ndiscore.MAC{2, 9}, macA, 2, 60)
		multi := ndistest.Frame(ndiscore.MAC{0x33, 0x33, 1}, macA, 3, 60)
		all4 := ndistest.Frame(ndiscore.Broadcast, macA, 4, 60)
		b.must(m.Inject(ours, foreign, multi, all4))
		for _, c := range []struct {
			p    *ndistest.Protocol
			want [][]byte
		}{{directed, [][]byte{ours}}, {station, [][]byte{ours, multi, all4}}, {all, [][]byte{ours, foreign, multi, all4}}} {
			if d := cmp.Diff(c.want, c.p.Frames()); d != "" {
				t.Errorf("kept %v: %s", kept, d)
			}
		}
		all.ReturnKept()
		if out, _ := m.Lent(); out != 0 {
			t.Errorf("%d out", out)
		}
	}
}

// alone reports a drop reason to who was the only one to be asked.
func TestDropReasons(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{MAC: macB})
	b := newBench(t, ndiscore.Options{}, m)
	b.add("M")
	b.start("M")
	b.must(m.Inject(frame(1)))
	p := ndistest.NewProtocol("P1", nil)
	p.Filter = ndiscore.FilterStation
	b.protocol(p, "M")
	ndistest.Await(t, "bound", func() bool { bd := p.Binding("M"); return bd != nil && bd.Usable() })
	tags := append(append([]byte{}, frame(0)[:12]...), 0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0)
	b.must(m.Inject(frame(1), ndistest.Frame(ndiscore.MAC{2, 9}, macA, 2, 60), nil, make([]byte, 13), tags, make([]byte, ndiscore.MaxFrame+1)))
	want := map[string]uint64{"no-receiver": 1, "not-for-us": 1, "short": 2, "vlan-stack": 1, "oversize": 1}
	if c := b.counters("M"); cmp.Diff(want, c.RxDropped) != "" || c.Delivered != 1 || c.RxFrames != 7 {
		t.Errorf("%+v", c)
	}
}

// checkSums checks that every frame received has one fate, and every frame
// handed to an adapter too.
func checkSums(t interface {
	Helper()
	Errorf(string, ...any)
}, i ndiscore.AdapterInfo) {
	t.Helper()
	c := i.Counters
	sum := c.Forwarded + c.Delivered
	for _, n := range c.RxDropped {
		sum += n
	}
	if c.RxFrames != sum {
		t.Errorf("%s: received %d, but forwarded %d + delivered %d + dropped %v = %d", i.Name, c.RxFrames, c.Forwarded, c.Delivered, c.RxDropped, sum)
	}
	if n := c.RxDropped["none"] + c.TxDropped["none"]; n != 0 {
		t.Errorf("%s: %d drops without a reason", i.Name, n)
	}
}

// randomFrame is anything a device may hand up.
func randomFrame(r *rand.Rand) []byte {
	switch r.IntN(8) {
	case 0:
		f := make([]byte, r.IntN(20)) // short
		for i := range f {
			f[i] = byte(r.Uint32())
		}
		return f
	case 1: // VLAN tags, possibly too many or cut off
		f := append([]byte{}, frame(r.IntN(1000))[:12]...)
		for range 1 + r.IntN(4) {
			f = append(f, 0x81, 0, byte(r.Uint32()), byte(r.Uint32()))
		}
		return append(f, make([]byte, r.IntN(50))...)
	case 2:
		return ndistest.Frame(ndiscore.Broadcast, macA, r.Uint32(), 60+r.IntN(1400))
	case 3:
		return ndistest.Frame(ndiscore.MAC{2, 7, 7}, macA, r.Uint32(), 60+r.IntN(3000))
	case 4:
		return make([]byte, ndiscore.MaxFrame+r.IntN(3)) // oversize, or just not
	case 5: // an IPv4 header that lies
		f := ndistest.Frame(macB, macA, r.Uint32(), 60)
		binary.BigEndian.PutUint16(f[12:], ndiscore.EtherTypeIPv4)
		return f
	}
	return ndistest.Frame(macB, macA, r.Uint32(), 60+r.IntN(1455))
}

// randomOffload gives a frame an Offload that may be nonsense: nobody before
// the egress has looked at it.
func randomOffload(r *rand.Rand, f *ndiscore.Frame) {
	if r.IntN(3) != 0 {
		return
	}
	f.Offload = ndiscore.Offload{
		Flags: ndiscore.OffloadFlags(r.IntN(8)), GSO: ndiscore.GSOKind(r.IntN(6)), GSOSize: uint16(r.IntN(2000)),
		HdrLen: uint16(r.IntN(100)), CsumStart: uint16(r.IntN(70)), CsumOffset: uint16(r.IntN(20)),
	}
}

// TestAccounting: whatever arrives, through filters, several bindings, a team
// and kept batches, each received frame ends in exactly one fate, nothing
// panics, and nothing is left out.
func TestAccounting(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		kept := rapid.Bool().Draw(rt, "kept")
		filters := rapid.IntRange(0, 2).Draw(rt, "filters")
		second := rapid.Bool().Draw(rt, "second protocol")
		bundle := rapid.SampledFrom([]string{"", "team", "ndis5"}).Draw(rt, "bundle")

		core := ndiscore.New(ndiscore.Options{Decider: sticky{}})
		run, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- core.Run(run) }() // ended below
		ctx := context.Background()
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		o := ndistest.AdapterOptions{KeepReceives: kept, Forget: true, MAC: macB}
		a, z := nic("a", o), nic("z", ndistest.AdapterOptions{Forget: true})
		out := nic("out", ndistest.AdapterOptions{Forget: true, MTU: 1000})
		_, err := core.RegisterDriver(ndistest.Driver("fake", ndistest.Verifier(rt, a), ndistest.Verifier(rt, z), ndistest.Verifier(rt, out)))
		must(err)
		p1, p2 := ndistest.NewProtocol("P1", nil), ndistest.NewProtocol("P2", nil)
		p2.Forget = true
		p2.Filter = ndiscore.PacketFilter(rapid.SampledFrom([]int{0, 1, 4, 8, 0xd, 0x20}).Draw(rt, "packet filter"))
		top := "a"
		if bundle != "" {
			top = "bundle"
		}
		p1.ForwardTo(map[string]string{"a": "out", "z": "out", "bundle": "out"})
		must(core.AddProtocol(ctx, p1.Spec(top, "out")))
		if second {
			must(core.AddProtocol(ctx, p2.Spec(top)))
		}
		var specs []ndiscore.FilterSpec
		for i := range filters {
			f := ndistest.NewFilter("f", nil)
			f.DropReceived, f.DropSent = uint64(r.IntN(4)), uint64(r.IntN(4))
			specs = append(specs, ndiscore.FilterSpec{Name: string(rune('f' + i)), Filter: f})
		}
		for _, n := range []string{"a", "z", "out"} {
			must(core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: n, Driver: "fake", Filters: specs}))
			specs = nil
		}
		if bundle != "" {
			spec := ndiscore.BundleSpec{Name: "bundle", Members: []string{"a", "z"}, MAC: macB}
			if bundle == "ndis5" {
				spec.Mode = ndiscore.BundleNDIS5
			}
			must(core.AddBundle(ctx, spec))
		}
		for _, n := range []string{"a", "z", "out"} {
			must(core.Start(ctx, n, "test"))
		}
		if bundle == "team" {
			must(core.Start(ctx, "bundle", "test"))
		}

		injected := map[string]uint64{}
		for range rapid.IntRange(1, 12).Draw(rt, "batches") {
			in := a
			if r.IntN(3) == 0 {
				in = z
			}
			n := 1 + r.IntN(ndiscore.BatchFrames)
			if r.IntN(6) == 0 {
				out.Refuse(ndiscore.DropTxQueueFull)
			} else {
				out.Refuse(ndiscore.DropNone)
			}
			if in == z || kept {
				fs := make([][]byte, n)
				for i := range fs {
					fs[i] = randomFrame(r)
				}
				must(in.Inject(fs...))
			} else {
				batch := ndiscore.NewBatch(nil)
				batch.Borrowed = true
				for range n {
					raw := randomFrame(r)
					f := new(ndiscore.Frame)
					cut := len(raw)
					if r.IntN(4) == 0 {
						cut = r.IntN(len(raw) + 1) // the rest in a segment
					}
					f.Reset(append(make([]byte, ndiscore.Headroom), raw[:cut]...), ndiscore.Headroom, cut)
					if cut < len(raw) {
						f.Segs = append(f.Segs, raw[cut:])
					}
					randomOffload(r, f)
					batch.Append(f)
				}
				must(in.Indicate(batch))
			}
			injected[in.Name()] += uint64(n)
			if r.IntN(8) == 0 && bundle == "team" {
				a.SetLink(r.IntN(2) == 0, "flap")
			}
		}
		infos, err := core.Adapters(ctx)
		must(err)
		for _, i := range infos {
			checkSums(rt, i)
			if i.Name != "bundle" && i.Counters.RxFrames != injected[i.Name] {
				rt.Errorf("%s: received %d of %d", i.Name, i.Counters.RxFrames, injected[i.Name])
			}
		}
		if out, _ := a.Lent(); out != 0 {
			rt.Errorf("%d batches still out", out)
		}
		must(core.Close(ctx, "end"))
		cancel()
		<-ended
	})
}

// A frame that a filter has shortened the batch of arrives unchanged.
func TestForwardedBytes(t *testing.T) {
	a, z := nic("a", ndistest.AdapterOptions{}), nic("z", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, a, z)
	p := ndistest.NewProtocol("P1", nil)
	p.ForwardTo(map[string]string{"a": "z"})
	f := ndistest.NewFilter("z.F1", nil)
	f.DropSent = 3
	b.protocol(p, "a", "z")
	b.add("a")
	b.add("z", ndiscore.FilterSpec{Name: "f", Filter: f})
	b.start("a", "z")
	b.must(a.Inject(frames(6)...))
	got := z.Sent()
	if len(got) != 4 {
		t.Fatalf("%d frames", len(got))
	}
	for i, id := range []int{0, 1, 3, 4} {
		if !bytes.Equal(got[i], frame(id)) {
			t.Errorf("frame %d differs", id)
		}
	}
	if c := b.counters("z"); c.TxFrames != 4 || c.TxDropped["fault-drop"] != 2 {
		t.Errorf("%+v", c)
	}
}
