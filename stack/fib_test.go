package stack

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// naive is the longest match by looking at every prefix.
func naive(routes []fibRoute, a netip.Addr) *fibEntry {
	var best *fibRoute
	for i := range routes {
		r := &routes[i]
		if r.to.Contains(a) && (best == nil || r.to.Bits() > best.to.Bits()) {
			best = r
		}
	}
	if best == nil {
		return nil
	}
	return best.entry
}

func lookup(f *fib, a netip.Addr) *fibEntry {
	if a.Is4() {
		b := a.As4()
		return f.v4.lookup(key4(b[:]))
	}
	b := a.As16()
	return f.v6.lookup(key6(b[:]))
}

// TestFIB compares the table with a naive one, mostly near the edges of prefixes.
func TestFIB(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			n := 4
			if v6 {
				n = 16
			}
			// Few bits are random, so that prefixes nest and touch.
			b := make([]byte, n)
			for i := range b {
				b[i] = rapid.SampledFrom([]byte{0, 0, 0, 1, 127, 128, 255, 255, 255}).Draw(t, "byte")
			}
			a, _ := netip.AddrFromSlice(b)
			return a
		})
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := address.Draw(t, "address")
			return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		})
		var routes []fibRoute
		var probes []netip.Addr
		for _, p := range rapid.SliceOfN(prefix, 0, 40).Draw(t, "prefixes") {
			routes = append(routes, fibRoute{p, &fibEntry{kind: fibForward, mtu: len(routes)}})
			probes = append(probes, p.Addr(), p.Addr().Prev(), lastAddr(p), lastAddr(p).Next())
		}
		f := newFIB(routes)
		for range 10 {
			probes = append(probes, address.Draw(t, "probe"))
		}
		for _, a := range probes {
			if !a.IsValid() {
				continue // beyond the first or the last address
			}
			if got, want := lookup(f, a), naive(routes, a); got != want {
				t.Fatalf("%s: got %+v, want %+v", a, got, want)
			}
		}
	})
}

func TestLastAddr(t *testing.T) {
	for p, want := range map[string]string{
		"10.1.2.3/24": "10.1.2.255", "0.0.0.0/0": "255.255.255.255", "10.0.0.1/32": "10.0.0.1", "10.0.0.0/31": "10.0.0.1",
		"fd00::/64": "fd00::ffff:ffff:ffff:ffff", "::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := lastAddr(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

func BenchmarkFIB(b *testing.B) {
	for _, n := range []int{4, 1000, 100000} {
		var routes []fibRoute
		for i := range n {
			a := netip.AddrFrom4([4]byte{byte(i >> 12), byte(i >> 4), byte(i << 4), 0})
			routes = append(routes, fibRoute{netip.PrefixFrom(a, 28), &fibEntry{}})
		}
		f := newFIB(routes)
		b.Run(map[int]string{4: "4", 1000: "1000", 100000: "100000"}[n], func(b *testing.B) {
			b.ReportAllocs()
			i := uint64(0)
			for b.Loop() {
				i += 0x9e3779b97f4a7c15
				f.v4.lookup(key{lo: i >> 32})
			}
		})
	}
}
