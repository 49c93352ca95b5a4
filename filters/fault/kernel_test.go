package fault_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// kernel is a core between two hosts whose traffic it passes on as it is.
//
//	host a [tap0] ## a ── protocol ── b ## [tap0] host b
//	10.9.0.1 fd09::1                      10.9.0.2 fd09::2
type kernel struct {
	*rig
	hostA, hostB *lab.Host
}

func newKernel(t testing.TB) *kernel {
	t.Helper()
	l := lab.NewTest(t)
	k := &kernel{rig: &rig{t: t}, hostA: l.Host("a"), hostB: l.Host("b")}
	k.core = ndistest.NewCore(t, ndiscore.Options{})
	k.j = fault.New(fault.Options{Allow: true, Report: k.core.Report})
	k.j.Use(k.core)
	t.Cleanup(func() { k.must(k.j.Close(context.Background())) })
	d := fault.Interpose(ndistest.VerifiedDriver(t, tap.Driver(zaptest.NewLogger(t))), k.j)
	if _, err := k.core.RegisterDriver(d); err != nil {
		t.Fatal(err)
	}
	k.p = ndistest.NewProtocol("P", nil)
	k.p.ForwardTo(map[string]string{"a": "b", "b": "a"})
	k.must(k.core.AddProtocol(k.ctx(), k.p.Spec("a", "b")))
	for i, h := range []*lab.Host{k.hostA, k.hostB} {
		name := h.Name()
		o := tap.NewOptions()
		o.Netns, o.Interface, o.MAC = h.Path(), "tap0", fmt.Sprintf("02:09:00:00:00:0%d", i+1)
		k.must(k.core.AddAdapter(k.ctx(), ndiscore.AdapterSpec{Name: name, Driver: "tap", Options: o}))
		k.must(k.core.Start(k.ctx(), name, "test"))
		k.must(h.AddAddr("tap0", fmt.Sprintf("10.9.0.%d/24", i+1), fmt.Sprintf("fd09::%d/64", i+1)))
	}
	k.must(k.hostA.WaitReachable(t.Context(), addr("10.9.0.2")))
	k.must(k.hostA.WaitReachable(t.Context(), addr("fd09::2")))
	return k
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// snmp reads one counter of a host's kernel.
func snmp(t testing.TB, h *lab.Host, proto, name string) (n uint64) {
	t.Helper()
	err := h.Do(func() error {
		file, key := "/proc/thread-self/net/snmp", proto+": "
		if strings.HasSuffix(proto, "6") {
			file, key = "/proc/thread-self/net/snmp6", proto+name
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			switch {
			case !strings.HasPrefix(line, key):
			case key == proto+name:
				_, err := fmt.Sscan(f[1], &n)
				return err
			case names == nil:
				names = f
			default:
				_, err := fmt.Sscan(f[slices.Index(names, name)], &n)
				return err
			}
		}
		return fmt.Errorf("no %s %s", proto, name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKernelDrop(t *testing.T) {
	lab.CheckLeaks(t)
	k := newKernel(t)
	l := k.inject("drop", "on=b", "chance=10%", "direction=tx", "seed=11")
	raw, err := k.hostB.OpenRaw("tap0", lab.RawOptions{})
	k.must(err)
	out, err := k.hostA.OpenRaw("tap0", lab.RawOptions{})
	k.must(err)
	const n = 2000
	seen, first := 0, k.info("a").Counters.RxFrames
	for i := range n {
		k.must(out.Send(ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0, 0, 0, 0, 9}, uint32(i), 100)))
		if i%50 == 49 { // no more than the device's queue takes
			ndistest.Await(t, "frames", func() bool { return k.info("a").Counters.RxFrames >= first+uint64(i)+1 })
		}
	}
	hits := k.j.List()[0].TX.Frames
	if d := math.Abs(float64(hits) - n*0.1); d > 5*math.Sqrt(n*0.09) {
		t.Errorf("%d of %d dropped", hits, n)
	}
	k.clear(l.ID)
	end := ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0, 0, 0, 0, 9}, n, 100)
	k.must(out.Send(end))
	for {
		f, err := raw.Recv(t.Context(), nil)
		k.must(err)
		id, ok := ndistest.FrameID(f.Data)
		if ok && id == n {
			break
		}
		if ok {
			seen++
		}
	}
	if d := int(hits) - (n - seen); d < 0 || d > 20 { // the kernel's own frames may have been hit, too
		t.Errorf("%d arrived of %d, %d were hit", seen, n, hits)
	}
}

func TestKernelDuplicate(t *testing.T) {
	k := newKernel(t)
	k.inject("duplicate", "on=b", "chance=100%", "direction=tx")
	flow, err := k.hostA.StartUDPFlow(t.Context(), k.hostB, addr("10.9.0.2"), lab.UDPFlowOptions{})
	k.must(err)
	k.must(lab.Eventually(t.Context(), "duplicates", func() error {
		if s := flow.Snapshot(t.Context()); s.AtoB.Duplicated == 0 || s.BtoA.Duplicated != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}))
}

// The kernel's own checks find what was spoilt: ICMP, UDP and TCP over both
// families, with checksums left to the device and super-frames.
func TestKernelCorrupt(t *testing.T) {
	k := newKernel(t)
	before := [...]uint64{snmp(t, k.hostB, "Icmp", "InCsumErrors"), snmp(t, k.hostB, "Icmp6", "InCsumErrors"), snmp(t, k.hostB, "Tcp", "InCsumErrors")}
	l := k.inject("corrupt", "on=b", "chance=100%", "direction=tx", "seed=2")
	for i, dst := range []string{"10.9.0.2", "fd09::2"} {
		_, err := k.hostA.Ping(t.Context(), addr(dst), lab.PingOptions{Count: 100, Interval: time.Millisecond, Size: 1000, Timeout: time.Second})
		k.must(err)
		errors := snmp(t, k.hostB, []string{"Icmp", "Icmp6"}[i], "InCsumErrors") - before[i]
		if errors < 80 {
			t.Errorf("%s: %d of 100 packets of a thousand bytes were found spoilt", dst, errors)
		}
	}
	k.clear(l.ID)
	bulk, err := k.hostA.StartTCPBulk(t.Context(), k.hostB, addr("10.9.0.2"), lab.TCPBulkOptions{})
	k.must(err)
	// One in fifty super-frames: TCP lives with it, and its receiver's kernel counts.
	k.inject("corrupt", "on=b", "chance=2%", "direction=tx", "seed=2")
	k.must(lab.Eventually(t.Context(), "TCP checksum errors", func() error {
		if n := snmp(t, k.hostB, "Tcp", "InCsumErrors") - before[2]; n < 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	}))
	k.must(k.j.Close(t.Context()))
	if _, err := bulk.Stop(t.Context()); err != nil {
		t.Errorf("the stream: %v", err)
	}
}

func TestKernelRate(t *testing.T) {
	k := newKernel(t)
	// What the sender misses while the machine is busy the bucket keeps for it.
	k.inject("rate", "on=b", "rate=200kB", "burst=200kB", "direction=tx")
	out, err := k.hostA.OpenRaw("tap0", lab.RawOptions{})
	k.must(err)
	frame := ndistest.Frame(ndiscore.Broadcast, ndiscore.MAC{2, 0, 0, 0, 0, 9}, 1, 1000)
	bytes := func() uint64 { return k.info("b").Counters.TxBytes }
	first, began := bytes(), time.Now()
	for time.Since(began) < time.Second {
		for range 20 { // far more than may pass
			_ = out.Send(frame)
		}
	}
	got, want := float64(bytes()-first), 200e3*(1+time.Since(began).Seconds())
	t.Logf("%.0f bytes, want %.0f", got, want)
	if got > want*1.1 || got < want*0.9 {
		t.Errorf("%.0f bytes, want %.0f", got, want)
	}
}

func TestKernelDelay(t *testing.T) {
	k := newKernel(t)
	k.inject("delay", "on=b", "delay=30ms", "direction=tx")
	k.inject("delay", "on=a", "delay=20ms", "jitter=10ms", "direction=rx")
	res, err := k.hostA.Ping(t.Context(), addr("10.9.0.2"), lab.PingOptions{Count: 50, Interval: 5 * time.Millisecond})
	k.must(err)
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("answers after %s to %s", slices.Min(res.RTTs), slices.Max(res.RTTs))
	if least := slices.Min(res.RTTs); least < 40*time.Millisecond {
		t.Errorf("an answer after %s", least)
	}
	k.must(k.j.Close(k.ctx()))
	k.j.Permit(true, 0)

	// A delay that begins and ends under traffic loses nothing and changes no
	// order. (The filter itself goes in and out with a pause: it is there before.)
	k.inject("drop", "on=b", "chance=0")
	flow, err := k.hostA.StartUDPFlow(t.Context(), k.hostB, addr("10.9.0.2"), lab.UDPFlowOptions{})
	k.must(err)
	for range 5 {
		l := k.inject("delay", "on=b", "delay=20ms", "jitter=20ms", "direction=tx")
		ndistest.Await(t, "frames", func() bool { return k.j.List()[1].TX.Frames > 100 })
		k.clear(l.ID)
	}
	k.must(flow.Stop())
	s, err := flow.Total()
	k.must(err)
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

// The static filter, from its options.
func TestKernelFilterDriver(t *testing.T) {
	k := newKernel(t)
	d := fault.FilterDriver()
	o := d.NewOptions().(*fault.FilterOptions)
	o.Drop, o.Direction = "100%", "tx"
	f, err := d.New("lossy", o)
	k.must(err)
	k.must(k.core.InsertFilter(k.ctx(), "b", ndiscore.FilterSpec{Name: "lossy", Filter: f}, 0, "test"))
	res, err := k.hostA.Ping(t.Context(), addr("10.9.0.2"), lab.PingOptions{Count: 5, Interval: time.Millisecond, Timeout: 200 * time.Millisecond})
	k.must(err)
	if res.Received != 0 {
		t.Errorf("%d answers", res.Received)
	}
	k.must(k.core.RemoveFilter(k.ctx(), "b", "lossy", "test"))
	k.must(k.hostA.WaitReachable(t.Context(), addr("10.9.0.2")))
}

// A TAP that is taken away comes back when the fault ends, without anybody's
// making it anew.
func TestKernelSurprise(t *testing.T) {
	lab.CheckLeaks(t)
	k := newKernel(t)
	l := k.inject("surprise", "on=b")
	ndistest.Await(t, "halt", func() bool { return k.info("b").Waiting })
	k.clear(l.ID)
	ndistest.Await(t, "start", func() bool { return k.info("b").State == ndiscore.StateRunning })
	k.must(k.hostB.AddAddr("tap0", "10.9.0.2/24"))
	k.must(k.hostA.WaitReachable(t.Context(), addr("10.9.0.2")))
}
