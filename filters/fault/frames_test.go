package fault_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var bothWays = []fault.Direction{fault.RX, fault.TX}

func TestDropWhich(t *testing.T) {
	for _, c := range []struct {
		words []string
		lost  []int // of 0…19
	}{
		{[]string{"every=5"}, []int{4, 9, 14, 19}},
		{[]string{"every=5", "burst=2"}, []int{4, 5, 10, 11, 16, 17}},
		{[]string{"first=3"}, []int{0, 1, 2}},
		{[]string{"chance=100%"}, upTo(20)},
		{[]string{"chance=0"}, nil},
	} {
		for _, d := range bothWays {
			for _, size := range []int{1, 7, 20} {
				t.Run(fmt.Sprint(c.words, d, size), func(t *testing.T) {
					u := newUnit(t, append([]string{"drop"}, c.words...))
					for at := 0; at < 20; at += size {
						for i, s := range u.pass(d, numbered(at, min(size, 20-at))...) {
							if s != ndiscore.DropNone && d == fault.TX {
								t.Errorf("frame %d: the sender is told %s", at+i, s)
							}
						}
					}
					want := slices.DeleteFunc(upTo(20), func(i int) bool { return slices.Contains(c.lost, i) })
					if got := ids(u.got(d)); !slices.Equal(got, want) {
						t.Errorf("passed %v, want %v", got, want)
					}
					if frames, bytes := u.f.Hit(0, d); frames != uint64(len(c.lost)) || bytes != frames*100 {
						t.Errorf("counted %d frames, %d bytes", frames, bytes)
					}
					if n := u.drops(ndiscore.DropFaultDrop); d == fault.TX && n != uint64(len(c.lost)) {
						t.Errorf("%d drops counted", n)
					}
				})
			}
		}
	}
}

// The same seed and the same frames give the same decisions, however the frames
// come in batches, and whatever passes the other way.
func TestSeed(t *testing.T) {
	run := func(seed string, sizes []int, d fault.Direction, kind ...string) []string {
		u := newUnit(t, append(kind, "seed="+seed))
		at := 0
		for i := range 300 {
			n := sizes[i%len(sizes)]
			u.pass(d, numbered(at, n)...)
			if i%3 == 0 && len(sizes) > 1 {
				u.pass(fault.Both-d, numbered(0, 5)...)
			}
			if at += n; at >= 2000 {
				break
			}
		}
		var got []string
		for _, p := range u.got(d) {
			got = append(got, string(p.data))
		}
		return got[:1500]
	}
	for _, kind := range [][]string{{"drop", "chance=20%"}, {"drop", "chance=2%", "burst=5"}, {"duplicate", "chance=20%"}, {"corrupt", "chance=20%", "bits=3", "where=frame"}} {
		for _, d := range bothWays {
			a := run("7", []int{64}, d, kind...)
			b := run("7", []int{1, 30, 17, 64}, d, kind...)
			c := run("8", []int{64}, d, kind...)
			if !slices.Equal(a, b) {
				t.Errorf("%v %s: the same seed, another result", kind, d)
			}
			if slices.Equal(a, c) {
				t.Errorf("%v %s: another seed, the same result", kind, d)
			}
		}
	}
}

// 10 % of n frames, within four standard deviations.
func TestChance(t *testing.T) {
	const n, p = 200_000, 0.1
	u := newUnit(t, []string{"drop", "chance=10%", "seed=42"})
	for at := 0; at < n; at += 50 {
		u.pass(fault.TX, numbered(at, 50)...)
	}
	lost, _ := u.f.Hit(0, fault.TX)
	if d := math.Abs(float64(lost) - n*p); d > 4*math.Sqrt(n*p*(1-p)) {
		t.Errorf("lost %d of %d", lost, n)
	}
}

func TestDirection(t *testing.T) {
	u := newUnit(t, []string{"drop", "chance=1", "direction=rx"})
	u.pass(fault.RX, numbered(0, 3)...)
	u.pass(fault.TX, numbered(0, 3)...)
	if r, s := len(u.got(fault.RX)), len(u.got(fault.TX)); r != 0 || s != 3 {
		t.Errorf("%d received, %d sent", r, s)
	}
}

func TestStatusComesBack(t *testing.T) {
	u := newUnit(t, []string{"drop", "every=3"}, []string{"duplicate", "every=2"}, []string{"corrupt", "every=2"})
	u.refuse = ndiscore.DropTxQueueFull
	got := u.pass(fault.TX, numbered(0, 9)...)
	for i, r := range got {
		want := ndiscore.DropTxQueueFull
		if i%3 == 2 {
			want = ndiscore.DropNone // lost on the wire, as far as the sender knows
		}
		if r != want {
			t.Errorf("frame %d: %s, want %s", i, r, want)
		}
	}
}

func TestDuplicate(t *testing.T) {
	for _, d := range bothWays {
		u := newUnit(t, []string{"duplicate", "every=3"})
		fs := numbered(0, 8)
		fs[5].Segs = append(fs[5].Segs, []byte("payload"))
		before := clones(fs)
		u.look = func(_ fault.Direction, f *ndiscore.Frame) { f.Head[0] ^= 0xff } // who holds it alone may write
		u.pass(d, fs...)
		ps := u.got(d)
		for _, p := range ps {
			p.data[0] ^= 0xff
		}
		if got, want := ids(ps), []int{0, 1, 2, 2, 3, 4, 5, 5, 6, 7}; !slices.Equal(got, want) {
			t.Errorf("%s: passed %v, want %v", d, got, want)
		}
		for _, p := range ps {
			id := ids([]passed{p})[0]
			if want := slices.Clone(before[id]); !bytes.Equal(p.data[1:], want[1:]) {
				t.Errorf("%s: frame %d differs", d, id)
			}
		}
	}
}

func TestRate(t *testing.T) {
	for _, d := range bothWays {
		u := newUnit(t, []string{"rate", "rate=1MB", "burst=10kB"})
		for i := range 1000 { // 10 ms at 10 MB/s
			u.pass(d, numbered(i, 1)...)
			u.clock.Advance(10 * time.Microsecond)
		}
		passed := 100 * len(u.got(d))
		if want := 10_000 + 10_000; passed < want*9/10 || passed > want*11/10 {
			t.Errorf("%s: %d bytes passed, want %d", d, passed, want)
		}
		lost, _ := u.f.Hit(0, d)
		if n := u.drops(ndiscore.DropFaultRate); d == fault.TX && n != lost {
			t.Errorf("%d lost, %d dropped", lost, n)
		}
		// A rest fills the bucket, but no further.
		u.clock.Advance(time.Hour)
		u.pass(d, numbered(0, 64)...)
		u.pass(d, numbered(64, 64)...)
		if n := len(u.got(d)); n != 100 {
			t.Errorf("%s: %d frames after a rest", d, n)
		}
	}
}

// verify reports whether the transport checksum of a frame is right.
func verify(data []byte) bool { return ndiscore.VerifyTransport(data, nil, ndiscore.EthernetHeader) }

func TestCorruptIsSeen(t *testing.T) {
	for _, d := range bothWays {
		for _, v6 := range []bool{false, true} {
			for _, tcp := range []bool{false, true} {
				for _, partial := range []bool{false, true} {
					for _, cut := range []int{0, 60, 61} {
						t.Run(fmt.Sprintf("%s/v6=%v/tcp=%v/partial=%v/cut=%d", d, v6, tcp, partial, cut), func(t *testing.T) {
							whole := packet(v6, tcp, false, 333)
							u := newUnit(t, []string{"corrupt", "chance=1", "seed=1"})
							for range 100 {
								raw := packet(v6, tcp, partial, 333)
								f := frameOf(raw)
								if cut > 0 {
									end := len(raw) - 333
									f = frameOf(raw[:end+cut], raw[end+cut:end+cut+1], raw[end+cut+1:])
								}
								f.Offload.Flags = ndiscore.DataValid
								if partial {
									f.Offload = partialSum(v6, tcp)
								}
								before, offload := clones([]*ndiscore.Frame{f}), f.Offload
								u.pass(d, f)
								unchanged(t, []*ndiscore.Frame{f}, before)
								if f.Offload != offload {
									t.Error("the offload is not as it was")
								}
								p := u.got(d)[0]
								if p.offload != (ndiscore.Offload{}) {
									t.Fatalf("something is left to be done: %+v", p.offload)
								}
								bits := differ(p.data, whole)
								if len(bits) != 1 || bits[0] < 8*ndiscore.EthernetHeader {
									t.Fatalf("bits %v differ", bits)
								}
								l4 := ndiscore.EthernetHeader + 20
								if v6 {
									l4 += 20
								}
								if bits[0] >= 8*l4 && verify(p.data) {
									t.Errorf("bit %d was flipped, and the checksum is right", bits[0])
								}
							}
						})
					}
				}
			}
		}
	}
}

func partialSum(v6, tcp bool) ndiscore.Offload {
	o := ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: ndiscore.EthernetHeader + 20, CsumOffset: 6}
	if v6 {
		o.CsumStart += 20
	}
	if tcp {
		o.CsumOffset = 16
	}
	return o
}

// What a super-frame becomes when a device cuts it: the payload of all its
// segments, each with its own sum, the sums of those cut here included.
func TestCorruptSuperFrame(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			for _, linear := range []bool{false, true} {
				for _, payload := range []int{1000, 1001, 1999, 2000, 2001, 5500, 40_000} {
					t.Run(fmt.Sprintf("v6=%v/tcp=%v/linear=%v/%d", v6, tcp, linear, payload), func(t *testing.T) {
						corruptSuper(t, v6, tcp, linear, payload)
					})
				}
			}
		}
	}
}

func corruptSuper(t *testing.T, v6, tcp, linear bool, payload int) {
	const size = 1000
	raw := packet(v6, tcp, true, payload)
	end := len(raw) - payload
	f := frameOf(raw)
	if !linear {
		f = frameOf(raw[:end], raw[end:end+payload/3], nil, raw[end+payload/3:])
	}
	f.Offload = partialSum(v6, tcp)
	f.Offload.GSO, f.Offload.GSOSize, f.Offload.HdrLen = ndiscore.GSOUDPL4, size, uint16(end)
	switch {
	case tcp && v6:
		f.Offload.GSO = ndiscore.GSOTCPv6
	case tcp:
		f.Offload.GSO = ndiscore.GSOTCPv4
	}
	before, offload := clones([]*ndiscore.Frame{f}), f.Offload
	u := newUnit(t, []string{"corrupt", "chance=1", "seed=3"})
	for _, d := range bothWays {
		u.pass(d, f)
		unchanged(t, []*ndiscore.Frame{f}, before)
		if f.Offload != offload {
			t.Error("the offload is not as it was")
		}
		var all []byte
		be := binary.BigEndian
		flipped := 0
		got := u.got(d)
		for i, p := range got {
			l4 := int(offload.CsumStart)
			if p.offload.GSO != ndiscore.GSONone || p.offload.Flags&ndiscore.NeedsCsum != 0 {
				// What goes before: its lengths and its partial sum are those of its bytes.
				src, dst := p.data[26:30], p.data[30:34]
				length := int(be.Uint16(p.data[16:]))
				if v6 {
					src, dst = p.data[22:38], p.data[38:54]
					length = int(be.Uint16(p.data[18:])) + 40
				} else if ndiscore.Checksum(p.data[14:34], 0) != 0xffff {
					t.Error("IP header checksum")
				}
				if length != len(p.data)-14 {
					t.Errorf("IP length %d of %d", length, len(p.data)-14)
				}
				proto := uint8(17)
				if tcp {
					proto = 6
					if p.data[l4+13] != 0x90 {
						t.Errorf("flags %#x: CWR and ACK stay with the first, PSH and FIN go with the last", p.data[l4+13])
					}
				} else if n := int(be.Uint16(p.data[l4+4:])); n != len(p.data)-l4 {
					t.Errorf("UDP length %d of %d", n, len(p.data)-l4)
				}
				want := ndiscore.PseudoChecksum(src, dst, proto, len(p.data)-l4)
				if got := be.Uint16(p.data[int(p.offload.CsumStart)+int(p.offload.CsumOffset):]); got != want {
					t.Errorf("partial sum %#x, want %#x", got, want)
				}
				if (p.offload.GSO != ndiscore.GSONone) != (len(p.data)-end > size) {
					t.Errorf("%d bytes of payload as %s", len(p.data)-end, p.offload.GSO)
				}
				all = append(all, p.data[end:]...)
				continue
			}
			if i != len(got)-1 || p.offload != (ndiscore.Offload{}) {
				t.Errorf("frame %d of %d: %+v", i, len(got), p.offload)
			}
			// Whole again when its one bit is flipped back.
			sound := false
			for bit := 8 * 14; bit < 8*len(p.data) && !sound; bit++ {
				p.data[bit/8] ^= 0x80 >> (bit % 8)
				ip := v6 || ndiscore.Checksum(p.data[14:34], 0) == 0xffff
				if sound = ip && verify(p.data) && bytes.HasSuffix(raw, p.data[end:]); sound {
					flipped++
					if tcp && payload > size {
						k := (payload - 1) / size
						if seq := be.Uint32(p.data[l4+4:]); seq != 0x01020304+uint32(k*size) {
							sound = false
						} else if p.data[l4+13] != 0x19 {
							t.Errorf("flags of the last segment %#x", p.data[l4+13])
						}
						if id := be.Uint16(p.data[18:]); !v6 && id != 0x1234+uint16(k) {
							sound = false
						}
					}
				}
				if !sound {
					p.data[bit/8] ^= 0x80 >> (bit % 8)
				}
			}
			all = append(all, p.data[end:]...)
		}
		if flipped == 0 {
			t.Error("no one bit makes it sound")
		}
		if !bytes.Equal(all, raw[end:]) {
			t.Errorf("the payload differs in %d bits", len(differ(all, raw[end:])))
		}
	}
}

// What cannot be spoilt so that it shows is lost.
func TestCorruptImpossible(t *testing.T) {
	lies := packet(false, true, true, 3000)
	for name, change := range map[string]func(*ndiscore.Frame){
		"sctp": func(f *ndiscore.Frame) {
			f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 34, CsumOffset: 8}
		},
		"csum outside": func(f *ndiscore.Frame) {
			f.Offload = ndiscore.Offload{Flags: ndiscore.NeedsCsum, CsumStart: 60000, CsumOffset: 6}
		},
		"gso, no sum":    func(f *ndiscore.Frame) { f.Offload = ndiscore.Offload{GSO: ndiscore.GSOTCPv4, GSOSize: 1000} },
		"gso, no header": func(f *ndiscore.Frame) { f.Offload.CsumStart = 60000 },
		"gso, size 0":    func(f *ndiscore.Frame) { f.Offload.GSOSize = 0 },
		"gso, sum far":   func(f *ndiscore.Frame) { f.Offload.CsumOffset = 60000 },
	} {
		t.Run(name, func(t *testing.T) {
			u := newUnit(t, []string{"corrupt", "every=2"})
			fs := numbered(0, 3)
			fs[1] = frameOf(lies)
			fs[1].Offload = partialSum(false, true)
			fs[1].Offload.GSO, fs[1].Offload.GSOSize = ndiscore.GSOTCPv4, 1000
			change(fs[1])
			u.pass(fault.TX, fs...)
			if n := u.drops(ndiscore.DropFaultCorrupt); n != 1 || len(u.got(fault.TX)) != 2 {
				t.Errorf("%d dropped", n)
			}
		})
	}
}

// Anywhere in the frame: what no link header is any more is not passed up.
func TestCorruptWholeFrame(t *testing.T) {
	u := newUnit(t, []string{"corrupt", "chance=1", "where=frame", "bits=4", "seed=5"})
	inHeader := 0
	for i := range 3000 {
		raw := packet(false, false, false, 1)
		u.pass(fault.RX, frameOf(raw))
		for _, p := range u.got(fault.RX) {
			if _, r := ndiscore.ParseL2(p.data); r != ndiscore.DropNone {
				t.Fatalf("frame %d: %s", i, r)
			}
			bits := differ(p.data, raw)
			if len(bits) != 4 || bits[3]-bits[0] != 3 {
				t.Fatalf("bits %v", bits)
			}
			if bits[0] < 8*ndiscore.EthernetHeader {
				inHeader++
			}
		}
	}
	if inHeader < 300 {
		t.Errorf("%d of 3000 in the link header", inHeader)
	}
}
