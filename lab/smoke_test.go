package lab

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	t0 := time.Now()
	step := func(s string) { t.Logf("%8v %s", time.Since(t0), s); t0 = time.Now() }
	l := NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	step("hosts")
	l.Veth(a, "eth0", b, "eth0", VethOptions{})
	step("veth")
	a.AddAddr("eth0", "10.0.0.1/24", "2001:db8::1/64")
	b.AddAddr("eth0", "10.0.0.2/24", "2001:db8::2/64")
	step("addr")
	for _, s := range []string{"10.0.0.2", "2001:db8::2"} {
		dst := netip.MustParseAddr(s)
		r, err := a.Ping(context.Background(), dst, PingOptions{Count: 3})
		step("ping")
		t.Log(r, err, r.Err())
		f, err := a.StartUDPFlow(context.Background(), b, dst, UDPFlowOptions{})
		if err != nil {
			t.Fatal(err)
		}
		step("flow start")
		bulk, err := a.StartTCPBulk(context.Background(), b, dst, TCPBulkOptions{Duplex: s != "10.0.0.2"})
		if err != nil {
			t.Fatal(err)
		}
		step("bulk start")
		time.Sleep(time.Second)
		t.Logf("%+v", bulk.Snapshot())
		st, err := bulk.Stop(context.Background())
		t.Logf("%+v %v %.1f Gbit/s", st, err, st.BitsPerSecond()/1e9)
		step("bulk")
		t.Logf("%+v", f.Snapshot(context.Background()))
		time.Sleep(time.Second)
		tot, err := f.Total()
		t.Logf("%+v %v", tot, err)
		step("flow")
	}
	w, err := l.Wire(a, "w0", b, "w0", VethOptions{})
	t.Log(err)
	step("wire")
	w.Cut(EndA)
	step("cut")
	w.Restore(EndA)
	step("restore")
	a.Offloads("w0", false)
	s, err := a.OffloadState("w0")
	t.Log(s, err)
	a.Offloads("w0", true)
	s, err = a.OffloadState("w0")
	t.Log(s, err)
	step("offloads")
	t.Log(l.Close())
	step("close")
}
