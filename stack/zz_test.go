package stack

import (
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

func TestZZTransit(t *testing.T) {
	o := testOptions()
	o.Interfaces[1].Masquerade = true
	d := newBed(t, o, 1500, 1500)
	d.meet()
	ip := ip4("10.2.0.66", "10.9.0.9", layers.IPProtocolUDP, 64, false)
	u := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	_ = u.SetNetworkLayerForChecksum(ip)
	d.b.inject(serialize(ether(hostB, macB, layers.EthernetTypeIPv4), ip, u, payload(10)))
	f := d.b.await(t, "udp", isUDP)
	t.Log(decode(f))
	fl, _ := d.router.NATFlows(NATFilter{}, 0)
	t.Log(fl)
	_ = ndiscore.DropNone
	_ = nat.Filter{}
	t.Fail()
}
