package nat

import (
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// outside to outside, by our MAC
func TestZZTransit(t *testing.T) {
	w := newWorld(t, Limits{Flows: 100}, testConfig())
	p := tcp(ap(hop4, 1000), ap(server4, 80), flagSYN)
	w.wan.Through(p.frame())
	g, why := w.out(p.frame())
	t.Log(ends2(g), why, w.Flows(Filter{}, 0))
	t.Fail()
}
func ends2(f *ndiscore.Frame) any { return f.Head[26:34] }

func TestZZPartialICMP(t *testing.T) {
	w := newWorld(t, Limits{Flows: 100}, testConfig())
	w.out(echo(ap(client4, 7), ap(server4, 0), false).frame())
	w.out(echo(ap(other4, 7), ap(server4, 0), false).frame())
	for _, f := range w.Flows(Filter{}, 0) {
		p := echo(ap(server4, 0), ap(f.Reply.Dst.Addr(), f.Reply.Dst.Port()), true)
		x := p.frame()
		// open the checksum
		x.Head[36], x.Head[37] = 0, 0
		x.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 2}
		g, why := w.in(x, false)
		if why != 0 || g == x {
			t.Fatal(why)
		}
		sum := ^ndiscore.Checksum(g.Bytes(nil)[34:], 0)
		b := g.Bytes(nil)
		b[36], b[37] = byte(sum>>8), byte(sum)
		if !ndiscore.VerifyTransport(b, nil, 14) {
			t.Errorf("wrong")
		}
	}
}

func TestZZLongChain(t *testing.T) {
	// In with an extension header of 2 KiB
	w := newWorld(t, Limits{Flows: 100}, testConfig(Forward{"wan", "udp", PortRange{80, 80}, ap(client6, 80)}))
	x := udp(ap(server6, 1), ap(pub6, 80)).frame()
	b := x.Bytes(nil)
	ext := make([]byte, 2048)
	ext[0], ext[1] = 17, 255
	h := append(append(append([]byte{}, b[:54]...), ext...), b[54:]...)
	h[14+6] = protoDestOpts
	n := len(h) - 54
	h[18], h[19] = byte(n>>8), byte(n)
	w.in(frameOf(h), false)
}

// One who publishes a port lets all the net fill the table.
func TestZZOutsideFills(t *testing.T) {
	w := newWorld(t, Limits{Flows: 100}, testConfig(Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)}))
	for i := range 200 {
		c, s := ap(hop4, uint16(1000+i)), ap(client4, 80)
		w.in(tcp(c, ap(pub4, 80), flagSYN).frame(), false)
		w.out(tcp(s, c, flagSYN|flagACK).frame())
		w.in(tcp(c, ap(pub4, 80), flagACK).frame(), false)
	}
	if _, why := w.out(tcp(ap(other4, 5), ap(server4, 80), flagSYN).frame()); why != 0 {
		t.Error(why)
	}
}
