package lab

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/vishvananda/netlink"
)

// End is one side of a wire.
type End int

const (
	EndA End = iota // the side of the host named first
	EndB            // the side of the host named second
)

func (e End) String() string {
	if e == EndA {
		return "A"
	}
	return "B"
}

// Wire joins two hosts so that the ends fail separately: veth, kernel bridge, veth, with the bridge in a
// namespace of its own. When one end is deleted the other keeps its carrier, as behind a real switch.
//
//	 host A              the wire's own namespace              host B
//	[aName]═══veth═══[a]───────[ bridge ]───────[b]═══veth═══[bName]
type Wire struct {
	lab  *Lab
	mid  *Namespace
	ends [2]wireEnd

	mu  sync.Mutex // one change at a time
	cut [2]bool
}

type wireEnd struct {
	host *Host
	name string
	mac  net.HardwareAddr
	mtu  int
}

// wirePorts are the bridge's ports, by end.
var wirePorts = [2]string{"a", "b"}

// Wire makes a wire. Both ends are up and pass packets when it returns.
func (l *Lab) Wire(a *Host, aName string, b *Host, bName string, o VethOptions) (*Wire, error) {
	for _, h := range []*Host{a, b} {
		if h.err != nil {
			return nil, h.err
		}
	}
	mtu := o.MTU
	if mtu == 0 {
		mtu = 1500
	}
	w := &Wire{lab: l, ends: [2]wireEnd{
		{host: a, name: aName, mac: l.newMAC(), mtu: mtu},
		{host: b, name: bName, mac: l.newMAC(), mtu: mtu},
	}}
	if err := w.build(); err != nil {
		return nil, l.check(err)
	}
	return w, nil
}

func (w *Wire) build() (err error) {
	name := fmt.Sprintf("wire %s/%s-%s/%s", w.ends[EndA].host.name, w.ends[EndA].name, w.ends[EndB].host.name, w.ends[EndB].name)
	if w.mid, err = NewNamespace(name); err != nil {
		return err
	}
	w.lab.OnClose(name, w.mid.Close)
	// The bridge carries IPv6 without taking part in it.
	_ = w.mid.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	if err := addBridge(w.mid, "bridge", nil, w.ends[EndA].mtu, nil); err != nil {
		return err
	}
	for _, e := range []End{EndA, EndB} {
		if err := w.connect(e); err != nil {
			return err
		}
		w.lab.deleteOnClose(w.ends[e].host, w.ends[e].name)
	}
	return nil
}

// connect makes the veth of one end and puts it on the bridge.
func (w *Wire) connect(e End) error {
	x := w.ends[e]
	if err := addVeth(x.host.Namespace, x.name, x.mac, w.mid, wirePorts[e], nil, x.mtu); err != nil {
		return err
	}
	if err := w.mid.enslave(wirePorts[e], "bridge"); err != nil {
		_ = x.host.deleteLink(x.name) // leave nothing half made
		return err
	}
	return nil
}

// Cut deletes the interface of one end, as when a card is pulled. The other end keeps its carrier.
func (w *Wire) Cut(e End) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut[e] {
		return nil
	}
	x := &w.ends[e]
	// What the interface was is what Restore brings back.
	err := x.host.withLink(x.name, "cut", func(l netlink.Link) error {
		x.mac, x.mtu = l.Attrs().HardwareAddr, l.Attrs().MTU
		return x.host.nl.LinkDel(l)
	})
	if err != nil {
		return w.lab.check(err)
	}
	w.cut[e] = true
	return nil
}

// Restore brings the interface of one end back with the same name, MAC and MTU; it is up and passes packets
// when it returns. Addresses and routes went with the old one: give them again. It also mends an end that
// was deleted by other means, and does nothing to one that is there.
func (w *Wire) Restore(e End) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.ends[e]
	if !x.host.Exists(x.name) {
		if err := w.connect(e); err != nil {
			return w.lab.check(err)
		}
	}
	w.cut[e] = false
	return nil
}

// Unplug takes the carrier of one end away; the interface stays, and the other end keeps its carrier. The
// kernel stops passing packets at once, but announces a lost carrier up to a second later when it announced
// another one just before.
func (w *Wire) Unplug(e End) error {
	return w.lab.check(w.mid.withLink(wirePorts[e], "unplug end "+e.String()+" at port", w.mid.nl.LinkSetDown))
}

// Plug gives the carrier back, and returns when the end passes packets again (unless it is set down).
func (w *Wire) Plug(e End) error {
	err := w.mid.withLink(wirePorts[e], "plug end "+e.String()+" at port", w.mid.nl.LinkSetUp)
	if err != nil {
		return w.lab.check(err)
	}
	x := w.ends[e]
	up := false
	err = x.host.withLink(x.name, "look at", func(l netlink.Link) error {
		up = l.Attrs().Flags&net.FlagUp != 0
		return nil
	})
	if err != nil || !up {
		return w.lab.check(err)
	}
	return w.lab.check(w.mid.waitLink(context.Background(), wirePorts[e], LinkUp))
}
