package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// longChain is a packet for a published port behind 2 KiB of options.
func longChain() *ndiscore.Frame {
	b := udp(ap(server6, 1), ap(pub6, 80)).frame().Bytes(nil)
	options := make([]byte, 2048)
	options[0], options[1] = b[ethernet+6], 255
	b[ethernet+6] = protoDestOpts
	b = slices.Insert(b, ethernet+ipv6Min, options...)
	binary.BigEndian.PutUint16(b[ethernet+4:], uint16(len(b)-ethernet-ipv6Min))
	return frameOf(b)
}

// FuzzPackets passes bytes for packets, in every direction, through a table with
// flows that they may hit.
func FuzzPackets(f *testing.F) {
	for _, p := range []*ndiscore.Frame{
		tcp(ap(client4, 4000), ap(server4, 80), flagSYN).frame(), udp(ap(server6, 1), ap(pub6, 80)).frame(),
		udp(ap(server4, 1), ap(pub4, 4000)).fragments(16)[0], udp(ap(client6, 4000), ap(server6, 1)).fragments(8)[1],
		icmpError(hop4, pub4, 11, 0, 0, udp(ap(pub4, 4000), ap(server4, 1)).packet(), 40),
		icmpError(hop6, pub6, 2, 0, 0, tcp(ap(pub6, 4000), ap(server6, 1), flagACK).packet(), 100),
		echo(ap(client6, 7), ap(server6, 0), false).frame(),
		longChain(),
	} {
		f.Add(p.Bytes(nil), uint8(0), uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8, start uint16) {
		if len(b) < ethernet+ipv6Min {
			return
		}
		w := newWorld(t, Limits{Flows: 8, Fragments: 2}, testConfig(
			Forward{"wan", "tcp", PortRange{80, 80}, ap(client4, 80)}, Forward{"wan", "udp", PortRange{80, 80}, ap(client6, 80)}))
		for _, p := range []pkt{udp(ap(client4, 4000), ap(server4, 1)), udp(ap(client6, 4000), ap(server6, 1)), tcp(ap(client6, 4000), ap(server6, 1), flagSYN)} {
			w.out(p.frame())
		}
		x := frameOf(b)
		if head := max(ethernet+ipv6Min, len(b)-int(cut)); head < len(b) {
			x = frameOf(b[:head])
			x.Segs = append(x.Segs, b[head:])
		}
		if start != 0 {
			x.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: start, CsumOffset: tcpCsum}
		}
		n := x.Len()
		for range 2 {
			for _, inside := range []bool{false, true} {
				if g, _ := w.in(x, inside); g.Len() != n {
					t.Fatalf("%d bytes became %d", n, g.Len())
				}
			}
			w.wan.Through(x)
			valid := ndiscore.VerifyTransport(b, nil, ethernet)
			g, why := w.out(frameOf(b))
			if p, ok := parse(b[ethernet:], false); why == ndiscore.DropNone && ok && p.kind != kindError && p.kind != kindNone &&
				valid != ndiscore.VerifyTransport(g.Bytes(nil), nil, ethernet) && isIP(g) {
				t.Fatalf("sound: %v, then not so\n%x\n%x", valid, b, g.Bytes(nil))
			}
		}
		w.pass(300e9)
	})
}
