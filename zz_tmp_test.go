package vswitch_test
import ("testing";"time";"github.com/seed-b14e907b/vswitch/lab";"runtime";"fmt";"os")
func TestZZ(t *testing.T) {
	needTAP(t)
	l := lab.NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	l.Veth(l.Here(), "up0", b, "e0", lab.VethOptions{})
	l.Veth(l.Here(), "up1", b, "e1", lab.VethOptions{})
	l.Bridge(b, "br0", "e0", "e1")
	l.Veth(l.Here(), "lan1", a, "if1", lab.VethOptions{})
	must(t, b.AddAddr("br0", "10.2.0.2/24"), b.Route("default", "10.2.0.1"))
	text := fmt.Sprintf(`
[adapter.lan0]
driver = "tap"
netns = %q
[adapter.lan1]
driver = "afpacket"
[adapter.up0]
driver = "afpacket"
[adapter.up1]
driver = "afpacket"
[bundle.wan]
members = ["up0", "up1"]
[bundle.wan.health]
probe = "neighbor"
target = "10.2.0.2"
[bridge.lan]
ports = ["lan0", "lan1"]
[interface.inside]
on = "lan"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
[interface.outside]
on = "wan"
addresses = ["10.2.0.1/24", "fd00:2::1/64"]
[[route]]
to = "default"
via = "10.2.0.2"
`, a.Path())

	h := func() uint64 { runtime.GC(); runtime.GC(); var m runtime.MemStats; runtime.ReadMemStats(&m); return m.HeapAlloc>>10 }
	t0 := time.Now()
	mode := os.Getenv("ZZ")
	for i := range 30 {
		sw, err := l.StartSwitch(t.Context(), text, nil)
		must(t, err)
		if i >= 10 && i < 20 && mode != "" { must(t,a.AddAddr("lan0", "10.1.0.2/24"), a.Route("default", "10.1.0.1"), a.WaitReachable(t.Context(), addr("10.2.0.2"))) }
		must(t, sw.Stop())
		t.Log(i, h(), time.Since(t0))
	}
	t1 := time.Now()
	for time.Since(t1) < 50*time.Second { time.Sleep(10*time.Second); t.Log(h(), time.Since(t1)) }
}
