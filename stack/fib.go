package stack

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// fib is the forwarding table as workers see it: immutable, replaced whole by
// the feeder. It answers one question per frame: is the destination ours, and
// if not, which interface will netstack choose, so that the packet can be held
// against that interface's MTU before netstack sees it.
type fib struct {
	v4, v6 lpm
}

// fibKind says what a destination is to the router.
type fibKind uint8

const (
	fibLocal     fibKind = iota + 1 // an address of ours
	fibBroadcast                    // the broadcast address of a network of ours
	fibForward                      // behind egress
)

// fibEntry is what is known of a destination.
type fibEntry struct {
	kind   fibKind
	edge   *nat.Edge     // for fibLocal: the NAT that may have something to say about it, or nil
	mtu    int           // of egress
	egress *port         // for fibForward; for fibLocal: the one that has the address
	via    tcpip.Address // for fibForward: the next hop, zero if that is the destination
}

// key is an address as a number; IPv4 uses lo alone.
type key struct{ hi, lo uint64 }

func (k key) compare(o key) int {
	if c := cmp.Compare(k.hi, o.hi); c != 0 {
		return c
	}
	return cmp.Compare(k.lo, o.lo)
}

// next is k+1 and whether that did not wrap around.
func (k key) next() (key, bool) {
	k.lo++
	if k.lo == 0 {
		k.hi++
		return k, k.hi != 0
	}
	return k, true
}

func key4(b []byte) key { return key{lo: uint64(binary.BigEndian.Uint32(b))} }

func key6(b []byte) key {
	return key{hi: binary.BigEndian.Uint64(b), lo: binary.BigEndian.Uint64(b[8:])}
}

// span is the first and the last address of p.
func span(p netip.Prefix) (first, last key) {
	a, z := p.Masked().Addr(), lastAddr(p)
	if a.Is4() {
		f, l := a.As4(), z.As4()
		return key4(f[:]), key4(l[:])
	}
	f, l := a.As16(), z.As16()
	return key6(f[:]), key6(l[:])
}

// lpm finds the longest matching prefix by binary search: the prefixes are cut
// into intervals that do not overlap, each with its winner. A table of a
// thousand routes is ten steps, and no memory is chased.
type lpm struct {
	start []key
	entry []*fibEntry // of start[i] … start[i+1]-1; nil where no prefix matches
}

func (t *lpm) lookup(k key) *fibEntry {
	lo, hi := 0, len(t.start) // the answer is below hi
	for lo < hi {
		m := int(uint(lo+hi) / 2)
		if t.start[m].compare(k) <= 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == 0 {
		return nil
	}
	return t.entry[lo-1]
}

// fibRoute is one prefix of a table to be built.
type fibRoute struct {
	to    netip.Prefix
	entry *fibEntry
}

// newLPM builds a table of prefixes of one IP version, each at most once.
func newLPM(routes []fibRoute) lpm {
	routes = slices.Clone(routes)
	slices.SortFunc(routes, func(a, b fibRoute) int {
		fa, _ := span(a.to)
		fb, _ := span(b.to)
		if c := fa.compare(fb); c != 0 {
			return c
		}
		return cmp.Compare(a.to.Bits(), b.to.Bits()) // the containing one first
	})
	var t lpm
	mark := func(at key, e *fibEntry) {
		if n := len(t.start); n > 0 && t.start[n-1] == at {
			t.entry[n-1] = e
			return
		}
		t.start, t.entry = append(t.start, at), append(t.entry, e)
	}
	type open struct {
		last  key
		entry *fibEntry
	}
	var stack []open // the prefixes that contain the current address, longest on top
	closeBefore := func(k key, all bool) {
		for len(stack) > 0 {
			top := stack[len(stack)-1]
			if !all && top.last.compare(k) >= 0 {
				return
			}
			stack = stack[:len(stack)-1]
			if at, ok := top.last.next(); ok {
				var under *fibEntry
				if len(stack) > 0 {
					under = stack[len(stack)-1].entry
				}
				mark(at, under)
			}
		}
	}
	for _, r := range routes {
		first, last := span(r.to)
		closeBefore(first, false)
		mark(first, r.entry)
		stack = append(stack, open{last, r.entry})
	}
	closeBefore(key{}, true)
	return t
}

// newFIB builds the table of both IP versions. Of several entries for one
// prefix the first wins.
func newFIB(routes []fibRoute) *fib {
	seen := make(map[netip.Prefix]bool, len(routes))
	var v4, v6 []fibRoute
	for _, r := range routes {
		r.to = r.to.Masked()
		if seen[r.to] {
			continue
		}
		seen[r.to] = true
		if r.to.Addr().Is4() {
			v4 = append(v4, r)
		} else {
			v6 = append(v6, r)
		}
	}
	return &fib{v4: newLPM(v4), v6: newLPM(v6)}
}

// macOf is the group address that IPv6 multicast address a is sent to (RFC 2464 7).
func macOf(a netip.Addr) ndiscore.MAC {
	b := a.As16()
	return ndiscore.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
