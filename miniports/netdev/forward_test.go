package netdev_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"
	"runtime"
"strconv"

	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/miniports/netdev/netdevtest"
)

func TestMain(m *testing.M) { lab.Main(m) }

var _ = json.Marshal
var _ = fmt.Sprint

func iperf(t testing.TB, a, b *lab.Host, dst string, secs int, par int, rev bool) float64 {
	var out []byte
	srv := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		srv <- b.Do(func() error {
			c := exec.Command("iperf3", "-s", "-1", "--forceflush")
			if err := c.Start(); err != nil {
				return err
			}
			close(ready)
			return c.Wait()
		})
	}()
	<-ready
	time.Sleep(200 * time.Millisecond)
	err := a.Do(func() error {
		args := []string{"-c", dst, "-t", fmt.Sprint(secs), "-P", fmt.Sprint(par), "-J"}
		if rev {
			args = append(args, "-R")
		}
		var err error
		out, err = exec.Command("iperf3", args...).Output()
		return err
	})
	if err != nil {
		t.Logf("iperf: %v %s", err, out)
	}
	<-srv
	var r struct {
		End struct {
			SumReceived struct {
				BPS float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	json.NewDecoder(bytes.NewReader(out)).Decode(&r)
	return r.End.SumReceived.BPS / 1e9
}

type topo struct {
	a, b *lab.Host
	dst  netip.Addr
}

func kernelBridge(t testing.TB) topo {
	l := lab.NewTest(t)
	a, b, s := l.Host("a"), l.Host("b"), l.Host("s")
	l.Veth(a, "eth0", s, "p0", lab.VethOptions{})
	l.Veth(b, "eth0", s, "p1", lab.VethOptions{})
	l.Bridge(s, "br0", "p0", "p1")
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	return topo{a, b, netip.MustParseAddr("10.0.0.2")}
}

func vethPair(t testing.TB) topo {
	l := lab.NewTest(t)
	a, b, s := l.Host("a"), l.Host("b"), l.Host("s")
	l.Veth(a, "eth0", s, "p0", lab.VethOptions{})
	l.Veth(b, "eth0", s, "p1", lab.VethOptions{})
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	d := afpacket.Driver(zaptest.NewLogger(t))
	o0, o1 := afpacket.NewOptions(), afpacket.NewOptions()
	o0.Netns, o1.Netns = s.Path(), s.Path()
	p0 := netdevtest.Prepare(t, d, o0, netdevtest.NewHandle("p0", nil))
	p1 := netdevtest.Prepare(t, d, o1, netdevtest.NewHandle("p1", nil))
	netdevtest.Pipe(p0, p1)
	p0.Run(t)
	p1.Run(t)
	return topo{a, b, netip.MustParseAddr("10.0.0.2")}
}

func tapPair(t testing.TB) topo {
	l := lab.NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	d := tap.Driver(zaptest.NewLogger(t))
	o0, o1 := tap.NewOptions(), tap.NewOptions()
	o0.Netns, o1.Netns = a.Path(), b.Path()
	p0 := netdevtest.Prepare(t, d, o0, netdevtest.NewHandle("tap0", nil))
	p1 := netdevtest.Prepare(t, d, o1, netdevtest.NewHandle("tap1", nil))
	a.AddAddr("tap0", "10.0.0.1/24")
	b.AddAddr("tap1", "10.0.0.2/24")
	netdevtest.Pipe(p0, p1)
	p0.Run(t)
	p1.Run(t)
	return topo{a, b, netip.MustParseAddr("10.0.0.2")}
}

func TestSpeed(t *testing.T) {
	if os.Getenv("SPEED") == "" {
		t.Skip()
	}
	_ = runtime.GOMAXPROCS
	tops := map[string]topo{"kernel": kernelBridge(t), "afpacket": vethPair(t), "tap": tapPair(t)}
	for name, x := range tops {
		if err := x.a.WaitReachable(t.Context(), x.dst); err != nil {
			t.Fatal(name, err)
		}
	}
	for r := 0; r < 3; r++ {
		for _, name := range []string{"kernel", "afpacket", "tap"} {
			x := tops[name]
			g1 := iperf(t, x.a, x.b, x.dst.String(), 2, 1, false)
			g4 := iperf(t, x.a, x.b, x.dst.String(), 2, 4, false)
			lat, err := x.a.PingPong(t.Context(), x.b, x.dst, lab.PingPongOptions{Count: 5000})
			t.Logf("%-9s tcp1 %.2f tcp4 %.2f rtt p50 %v p90 %v p99 %v %v", name, g1, g4, lat.P50, lat.P90, lat.P99, err)
		}
	}
}

func TestRTT(t *testing.T) {
	if os.Getenv("SPEED") == "" {
		t.Skip()
	}
	k, x, y := kernelBridge(t), vethPair(t), tapPair(t)
	for r := 0; r < rounds(); r++ {
		st := &netdev.Stat
		st.Sleeps.Store(0); st.Hits.Store(0); st.Misses.Store(0); st.Busy.Store(0); st.ShortSleep.Store(0)
		x.a.WaitReachable(t.Context(), x.dst)
		k.a.WaitReachable(t.Context(), x.dst)
		lk, _ := k.a.PingPong(t.Context(), k.b, k.dst, lab.PingPongOptions{Count: 5000})
		lx, err := x.a.PingPong(t.Context(), x.b, x.dst, lab.PingPongOptions{Count: 5000})
		if err != nil {
			t.Log("XXXXXXXX")
		}
		ly, err := y.a.PingPong(t.Context(), y.b, y.dst, lab.PingPongOptions{Count: 5000})
		t.Logf("tap p50 %v p90 %v %v", ly.P50, ly.P90, err)
		t.Logf("kernel p50 %v p90 %v   ours p50 %v p90 %v p99 %v %v sleeps %d short %d hits %d misses %d busy %d", lk.P50, lk.P90, lx.P50, lx.P90, lx.P99, err, st.Sleeps.Load(), st.ShortSleep.Load(), st.Hits.Load(), st.Misses.Load(), st.Busy.Load())
	}
}

func rounds() int { n, _ := strconv.Atoi(os.Getenv("N")); return max(n, 4) }

func pp(t testing.TB, x topo) string {
	ready := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.b.Do(func() error {
			c := exec.Command("/tmp/pp/pp", "s", x.dst.String())
			o, _ := c.StdoutPipe()
			c.Start()
			o.Read(make([]byte, 6))
			close(ready)
			return c.Wait()
		})
	}()
	<-ready
	var out []byte
	x.a.Do(func() error { out, _ = exec.Command("/tmp/pp/pp", "c", x.dst.String(), "5000").Output(); return nil })
	<-done
	return string(out)
}

func TestPP(t *testing.T) {
	if os.Getenv("SPEED") == "" {
		t.Skip()
	}
	k, x, y := kernelBridge(t), vethPair(t), tapPair(t)
	for _, z := range []topo{k, x, y} {
		z.a.WaitReachable(t.Context(), z.dst)
	}
	for r := 0; r < rounds(); r++ {
		st := &netdev.Stat
		st.Sleeps.Store(0)
		st.Hits.Store(0)
		st.Misses.Store(0)
		st.Busy.Store(0)
		a, b, c := pp(t, k), pp(t, x), ""
		h := fmt.Sprint(st.Sleeps.Load(), st.Hits.Load(), st.Misses.Load(), st.Busy.Load())
		c = pp(t, y)
		t.Logf("kernel %s | afp %s %s | tap %s", a, b, h, c)
	}
}
