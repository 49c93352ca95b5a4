package lab

// Three hosts on a kernel bridge:
//
//	      ┌─────── s ────────┐
//	      │     [ br0 ]      │
//	      │  p0    p1    p2  │
//	      └──╫─────╫─────╫───┘
//	         ║     ║     ║      10.0.0.0/24, 2001:db8::/64
//	        h0    h1    h2
//	        .10   .11   .12

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func TestBridge(t *testing.T) {
	CheckLeaks(t)
	l := NewTest(t)
	s := l.Host("s")
	var hosts [3]*Host
	for i := range hosts {
		hosts[i] = l.Host(fmt.Sprintf("h%d", i))
		l.Veth(hosts[i], "eth0", s, fmt.Sprintf("p%d", i), VethOptions{})
		hosts[i].AddAddr("eth0", fmt.Sprintf("10.0.0.1%d/24", i), fmt.Sprintf("2001:db8::1%d/64", i))
	}
	l.Bridge(s, "br0", "p0", "p1")
	s.AddPort("br0", "p2")
	for i := range hosts {
		for _, format := range []string{"10.0.0.1%d", "2001:db8::1%d"} {
			dst := netip.MustParseAddr(fmt.Sprintf(format, (i+1)%3))
			r, err := hosts[i].Ping(t.Context(), dst, PingOptions{})
			if err := errors.Join(err, r.Err()); err != nil {
				t.Errorf("h%d: %v", i, err)
			}
		}
	}
}
