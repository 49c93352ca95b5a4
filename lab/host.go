package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine of the lab: a namespace with the commands one would type on it.
type Host struct {
	*Namespace
	lab *Lab
	err error // why it could not be made
}

// edit runs a change of one interface and reports its failure to the lab.
func (h *Host) edit(ifname, doing string, fn func(l netlink.Link) error) error {
	if h.err != nil {
		return h.err
	}
	return h.lab.check(h.withLink(ifname, doing, fn))
}

// AddAddr gives the interface addresses with prefix, such as "10.0.0.2/24" or "2001:db8::2/64", usable when
// it returns. (The link-local address that the kernel adds by itself comes a moment after the link.)
func (h *Host) AddAddr(ifname string, cidrs ...string) error {
	for _, cidr := range cidrs {
		var ip net.IP
		err := h.edit(ifname, "add address "+cidr+" to", func(l netlink.Link) error {
			a, err := parseAddr(cidr)
			if err != nil {
				return err
			}
			ip = a.IP
			return h.nl.AddrReplace(l, a)
		})
		if err == nil && ip.To4() == nil {
			err = h.lab.check(h.awaitAddr(ifname, ip))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitAddr waits until an IPv6 address takes part. There is no duplicate address detection to wait for,
// but it is a worker of the kernel that finds this out, and only then joins the multicast group in which
// neighbours ask for the address: the first question would get lost and the next comes a second later.
func (n *Namespace) awaitAddr(ifname string, ip net.IP) error {
	var gone error // no use to wait on
	err := Eventually(context.Background(), fmt.Sprintf("address %v on %s of %s", ip, ifname, n.name), func() error {
		err := n.withLink(ifname, "list addresses of", func(l netlink.Link) error {
			list, err := n.nl.AddrList(l, unix.AF_INET6)
			if err != nil {
				return err
			}
			for _, a := range list {
				if a.IP.Equal(ip) && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					return nil
				}
			}
			return errNotYet
		})
		if errors.Is(err, errNotYet) {
			return err
		}
		gone = err
		return nil
	})
	return errors.Join(err, gone)
}

// DelAddr takes an address away.
func (h *Host) DelAddr(ifname, cidr string) error {
	return h.edit(ifname, "delete address "+cidr+" from", func(l netlink.Link) error {
		a, err := parseAddr(cidr)
		if err != nil {
			return err
		}
		return h.nl.AddrDel(l, a)
	})
}

func parseAddr(cidr string) (*netlink.Addr, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, fmt.Errorf("%w: write it as 10.0.0.2/24 or 2001:db8::2/64", err)
	}
	return &netlink.Addr{IPNet: ipNet(p)}, nil
}

// ipNet keeps the host bits: it serves addresses as well as routes.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Route sends dst, a prefix or "default", to the gateway via: an address ("10.0.0.1", "fe80::1%eth0") or,
// for a route without gateway, "dev eth0". An existing route to dst is replaced.
func (h *Host) Route(dst, via string) error {
	return h.route(dst, via, "add", func(r *netlink.Route) error { return h.nl.RouteReplace(r) })
}

// DelRoute takes a route away again.
func (h *Host) DelRoute(dst, via string) error {
	return h.route(dst, via, "delete", func(r *netlink.Route) error { return h.nl.RouteDel(r) })
}

func (h *Host) route(dst, via, verb string, do func(*netlink.Route) error) error {
	if h.err != nil {
		return h.err
	}
	err := h.withFD(func(int) error {
		r, err := h.parseRoute(dst, via)
		if err != nil {
			return err
		}
		return do(r)
	})
	if err != nil {
		hint := ""
		if errors.Is(err, unix.ENETUNREACH) {
			hint = " (the gateway is in no network of this host, or its interface is down)"
		}
		err = fmt.Errorf("lab: %s: %s route to %s via %s: %w%s", h.name, verb, dst, via, err, hint)
	}
	return h.lab.check(err)
}

func (h *Host) parseRoute(dst, via string) (*netlink.Route, error) {
	r := &netlink.Route{}
	var gw netip.Addr
	if ifname, ok := strings.CutPrefix(via, "dev "); ok {
		l, err := h.nl.LinkByName(ifname)
		if err != nil {
			return nil, err
		}
		r.LinkIndex, r.Scope = l.Attrs().Index, netlink.SCOPE_LINK
	} else {
		var err error
		if gw, err = netip.ParseAddr(via); err != nil {
			return nil, fmt.Errorf("%w: write the gateway as an address or as \"dev eth0\"", err)
		}
		r.Gw = gw.AsSlice()
		if gw.Zone() != "" {
			l, err := h.nl.LinkByName(gw.Zone())
			if err != nil {
				return nil, err
			}
			r.LinkIndex = l.Attrs().Index
		}
	}
	if dst == "default" {
		dst = "0.0.0.0/0"
		if gw.Is6() {
			dst = "::/0"
		}
	}
	p, err := netip.ParsePrefix(dst)
	if err != nil {
		return nil, fmt.Errorf("%w: write it as 10.0.0.0/24, 2001:db8::/64 or default", err)
	}
	if gw.IsValid() && gw.Is6() != p.Addr().Is6() {
		return nil, errors.New("destination and gateway are of different IP versions")
	}
	if p.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	r.Dst = ipNet(p.Masked())
	return r, nil
}

// AddNeighbour writes down a neighbour's link address, so that no ARP or neighbour discovery is needed.
func (h *Host) AddNeighbour(ifname string, ip netip.Addr, mac net.HardwareAddr) error {
	return h.edit(ifname, "add neighbour "+ip.String()+" to", func(l netlink.Link) error {
		return h.nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
		})
	})
}

// SetMTU sets the largest packet of an interface. Of a veth, set both ends.
func (h *Host) SetMTU(ifname string, mtu int) error {
	return h.edit(ifname, fmt.Sprintf("set mtu %d on", mtu), func(l netlink.Link) error { return h.nl.LinkSetMTU(l, mtu) })
}

// SetMAC sets the link address of an interface.
func (h *Host) SetMAC(ifname string, mac net.HardwareAddr) error {
	return h.edit(ifname, "set mac on", func(l netlink.Link) error { return h.nl.LinkSetHardwareAddr(l, mac) })
}

// Up sets an interface up. It does not wait for the carrier: see WaitLink.
func (h *Host) Up(ifname string) error { return h.edit(ifname, "set up", h.nl.LinkSetUp) }

// Down sets an interface down; the other end of a veth loses its carrier.
func (h *Host) Down(ifname string) error { return h.edit(ifname, "set down", h.nl.LinkSetDown) }

// Delete removes an interface; the other end of a veth goes with it (of a Wire, use Cut).
func (h *Host) Delete(ifname string) error { return h.edit(ifname, "delete", h.nl.LinkDel) }

// MAC is the link address of an interface.
func (h *Host) MAC(ifname string) (mac net.HardwareAddr, err error) {
	err = h.edit(ifname, "read the mac of", func(l netlink.Link) error {
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// MTU is the largest packet of an interface.
func (h *Host) MTU(ifname string) (mtu int, err error) {
	err = h.edit(ifname, "read the mtu of", func(l netlink.Link) error {
		mtu = l.Attrs().MTU
		return nil
	})
	return mtu, err
}

// Exists tells whether the host has an interface of that name.
func (h *Host) Exists(ifname string) bool {
	return h.err == nil && h.withLink(ifname, "look for", func(netlink.Link) error { return nil }) == nil
}

// Forwarding makes the host a router, or a plain host again, for IPv4 and IPv6.
func (h *Host) Forwarding(on bool) error {
	if h.err != nil {
		return h.err
	}
	v := "0"
	if on {
		v = "1"
	}
	if err := h.Sysctl("net/ipv4/ip_forward", v); err != nil {
		return h.lab.check(err)
	}
	return h.lab.check(h.Sysctl("net/ipv6/conf/all/forwarding", v))
}
