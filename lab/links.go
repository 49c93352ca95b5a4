package lab

import (
	"context"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// VethOptions changes a veth pair or a wire. The zero value is right for most.
type VethOptions struct {
	MTU int // of both ends; 0 means 1500
}

// Veth joins two hosts by a cable: an interface on each, both up and with carrier when it returns. What
// happens to one end happens to both (deleting one deletes the other); see Wire for ends that fail alone.
func (l *Lab) Veth(a *Host, aName string, b *Host, bName string, o VethOptions) error {
	for _, h := range []*Host{a, b} {
		if h.err != nil {
			return h.err
		}
	}
	if err := addVeth(a.Namespace, aName, l.newMAC(), b.Namespace, bName, l.newMAC(), o.MTU); err != nil {
		return l.check(err)
	}
	l.deleteOnClose(a, aName)
	return nil
}

// deleteOnClose takes care of links in namespaces that outlive the lab; the others die with their namespace.
func (l *Lab) deleteOnClose(h *Host, ifname string) {
	l.OnClose("link "+ifname+" of "+h.name, func() error {
		if !h.Exists(ifname) {
			return nil
		}
		return h.deleteLink(ifname)
	})
}

// addVeth makes a pair across two namespaces and brings it to life.
func addVeth(a *Namespace, aName string, aMAC net.HardwareAddr, b *Namespace, bName string, bMAC net.HardwareAddr, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = aName, aMAC, mtu
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerHardwareAddr, v.PeerMTU = bName, bMAC, uint32(mtu)
	fail := func(err error) error {
		return fmt.Errorf("lab: veth %s/%s to %s/%s: %w", a.name, aName, b.name, bName, err)
	}
	err := a.withFD(func(int) error {
		return b.withFD(func(fd int) error {
			v.PeerNamespace = netlink.NsFd(fd)
			return a.nl.LinkAdd(v)
		})
	})
	if err != nil {
		return fail(err)
	}
	if err := bringUp(a, aName, b, bName); err != nil {
		_ = a.deleteLink(aName) // leave nothing half made
		return fail(err)
	}
	return nil
}

func bringUp(a *Namespace, aName string, b *Namespace, bName string) error {
	if err := a.withLink(aName, "set up", a.nl.LinkSetUp); err != nil {
		return err
	}
	if err := b.withLink(bName, "set up", b.nl.LinkSetUp); err != nil {
		return err
	}
	// The carrier is there at once, but the kernel attaches the queue a moment later and until then
	// drops what is sent.
	if err := a.waitLink(context.Background(), aName, LinkUp); err != nil {
		return err
	}
	return b.waitLink(context.Background(), bName, LinkUp)
}

// Bridge puts interfaces of a host on a kernel bridge: no spanning tree, no multicast snooping, forwarding
// at once. The bridge is up when it returns.
func (l *Lab) Bridge(h *Host, name string, ports ...string) error {
	if h.err != nil {
		return h.err
	}
	if err := addBridge(h.Namespace, name, l.newMAC(), 0, ports); err != nil {
		return l.check(err)
	}
	l.deleteOnClose(h, name)
	return nil
}

func addBridge(n *Namespace, name string, mac net.HardwareAddr, mtu int, ports []string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac, mtu
	off := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := n.withFD(func(int) error { return n.nl.LinkAdd(br) }); err != nil {
		return fmt.Errorf("lab: %s: add bridge %s: %w", n.name, name, err)
	}
	err := func() error {
		for _, p := range ports {
			if err := n.enslave(p, name); err != nil {
				return err
			}
		}
		return n.withLink(name, "set up", n.nl.LinkSetUp)
	}()
	if err != nil {
		_ = n.deleteLink(name) // leave nothing half made
	}
	return err
}

func (n *Namespace) enslave(port, bridge string) error {
	return n.withLink(port, "put on bridge "+bridge+" port", func(l netlink.Link) error {
		br, err := n.nl.LinkByName(bridge)
		if err != nil {
			return err
		}
		return n.nl.LinkSetMaster(l, br)
	})
}

// AddPort puts one more interface on a bridge.
func (h *Host) AddPort(bridge, ifname string) error {
	if h.err != nil {
		return h.err
	}
	return h.lab.check(h.enslave(ifname, bridge))
}
