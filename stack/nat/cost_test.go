package nat

import (
	"fmt"
	"net/netip"
	"runtime/debug"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// forbidden is a chunk of flows that nobody can look at: who does panics, once
// debug.SetPanicOnFault is set.
func forbidden(t *testing.T) []flow {
	t.Helper()
	b, err := syscall.Mmap(-1, 0, chunkFlows*int(unsafe.Sizeof(flow{})), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return unsafe.Slice((*flow)(unsafe.Pointer(unsafe.SliceData(b))), chunkFlows)
}

// TestCostOfRoom: room for a flow in a full table is made, or refused, without a
// look at the table.
func TestCostOfRoom(t *testing.T) {
	for name, established := range map[string]bool{"made": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Limits{Flows: 100}, testConfig())
			s := ap(server4, 80)
			for i := range 100 {
				if established {
					establish(t, w, ap(client4, uint16(10000+i)), s)
				} else {
					w.mustOut(t, udp(ap(client4, uint16(10000+i)), s).frame())
				}
			}
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("for one flow the table was searched: %v\n%s", p, debug.Stack())
				}
			}()
			kept := w.chunks
			w.chunks = [][]flow{forbidden(t)}
			for i := range 10 {
				want := ndiscore.DropNone
				if established {
					want = ndiscore.DropNATFull
				}
				if _, why := w.out(udp(ap(client4, uint16(20000+i)), s).frame()); why != want {
					t.Errorf("%s, want %s", why, want)
				}
			}
			w.chunks = kept
			if n := w.Stats(); n["flows"] != 100 || established != (n["evicted"] == 0) {
				t.Errorf("%v", n)
			}
		})
	}
}

// TestCostOfPort: a free port is looked for by the words of full, not by those of
// used. The latter say here that a port is free where the former deny it: who goes
// by them finds it.
func TestCostOfPort(t *testing.T) {
	s := newPortSet(nil)
	c := crowd{}
	c.chart(s)
	for i := range s.ports {
		c.mark(i)
	}
	const last = 60000
	c.unmark(last)
	for w := range c.used {
		if w != 0 && w != last/64 {
			c.used[w] = 0
		}
	}
	if i := c.free(0, s.high); i != last {
		t.Errorf("port %d was found by looking at used, want %d by full", i, last)
	}
	c.mark(last)
	if i := c.free(0, len(s.ports)); i != -1 {
		t.Errorf("port %d was found where none is", i)
	}
	if n := len(c.full); n > 16 {
		t.Errorf("%d words are looked at", n)
	}
}

// TestHashIsKeyed: who knows the flows does not know their buckets, neither of
// another table nor of one made of another seed.
func TestHashIsKeyed(t *testing.T) {
	where := func(seed uint64) string {
		w := New(Options{Now: epoch, Seed: seed})
		var hashes []uint64
		for i := range uint16(4) {
			hashes = append(hashes, w.hash(&tuple{src: numberOf(client4), dst: numberOf(server4), sport: i, dport: 53, proto: protoUDP}))
		}
		for i, x := range w.secret {
			if x == 0 {
				t.Errorf("secret %d is 0", i)
			}
		}
		return fmt.Sprint(hashes)
	}
	if a, b := where(1), where(1); a != b {
		t.Error("one seed, two hashes")
	}
	seen := map[string]bool{where(1): true}
	for _, seed := range []uint64{2, 0, 0} { // 0: drawn
		x := where(seed)
		if seen[x] {
			t.Errorf("seed %d: the hashes of another table", seed)
		}
		seen[x] = true
	}
}

// TestTimes: every time-out is its own.
func TestTimes(t *testing.T) {
	both(t, func(t *testing.T, client, server, public netip.Addr) {
		l := Limits{TCP: 1000 * time.Second, TCPTransitory: 100 * time.Second, UDP: 40 * time.Second, UDPStream: 200 * time.Second, ICMP: 20 * time.Second}
		c, s, p := ap(client, 4000), ap(server, 80), ap(public, 4000)
		for name, x := range map[string]struct {
			out, in pkt
			expires [3]time.Duration // after out, in, out
		}{
			"tcp":  {tcp(c, s, flagSYN), tcp(s, p, flagSYN|flagACK), [3]time.Duration{l.TCPTransitory, l.TCPTransitory, l.TCPTransitory}},
			"udp":  {udp(c, s), udp(s, p), [3]time.Duration{l.UDP, l.UDP, l.UDPStream}},
			"echo": {echo(c, s, false), echo(s, p, true), [3]time.Duration{l.ICMP, l.ICMP, l.ICMP}},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, l, testConfig())
				for i, want := range x.expires {
					if i == 1 {
						w.mustIn(t, x.in.frame(), false)
					} else {
						w.mustOut(t, x.out.frame())
					}
					if f := w.Flows(Filter{}, 0)[0]; f.Expires != want {
						t.Errorf("after packet %d it expires in %s, want %s", i, f.Expires, want)
					}
				}
			})
		}
	})
}
