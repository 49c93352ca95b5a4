package stack

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Lengths of the errors that the router itself sends.
const (
	icmpHeader   = 8
	maxErrorIPv4 = 576  // of the whole packet: RFC 1812 4.3.2.3
	maxErrorIPv6 = 1280 // RFC 4443 2.4 (c)
)

// answerTooBig tells the source of f that it must send shorter packets: what
// netstack's own messages cannot do, which say 0 in IPv6 and never come for a
// super-frame. It runs on the worker that received f, and sends back the way f
// came.
func (r *Router) answerTooBig(p *port, w *ndiscore.Worker, f *ndiscore.Frame, v *verdict) {
	if w == nil || v.group || !mayAnswer(f) {
		return
	}
	if !r.tooBig.allow(r.clock.Now()) {
		r.stats.tooBigMuted.Add(1)
		return
	}
	h := f.Head[ndiscore.EthernetHeader:]
	src, v6 := netip.AddrFrom4([4]byte(h[12:16])), h[0]>>4 == 6
	if v6 {
		src = netip.AddrFrom16([16]byte(h[8:24]))
	}
	from, ok := p.station.Load().source(src)
	if !ok {
		return
	}
	t := r.senders.get() // for its memory: the frame goes out in the name of w
	if t == nil {
		return
	}
	defer r.senders.put(t)
	out := &t.frames[0]
	buildTooBig(out, t.room[0][:], p.station.Load().mac, from, f, v.l3len, v.tooBig)
	if p.gate.enter() {
		b := w.Scratch()
		b.Append(out)
		p.wire.Send(b)
		w.Done(b)
		p.gate.leave()
		r.stats.tooBigSent.Add(1)
	}
	clear(out.Segs)
	out.Segs = out.Segs[:0]
}

// mayAnswer reports whether an error may be sent about f (RFC 1812 4.3.2.7, RFC
// 4443 2.4 (e)). The guards have checked its IP header.
func mayAnswer(f *ndiscore.Frame) bool {
	p := packet{f: f, h: f.Head[ndiscore.EthernetHeader:]}
	h := p.h
	var src netip.Addr
	if h[0]>>4 == 4 {
		src = netip.AddrFrom4([4]byte(h[12:16]))
		p.l4, p.proto = int(h[0]&15)*4, h[9]
		if h[12] == 0 || h[12] >= 240 || binary.BigEndian.Uint16(h[6:])&ipv4OffMask != 0 {
			return false
		}
		if p.proto == protoICMP {
			// Only queries and their replies are known to be no errors.
			if len(h) <= p.l4 {
				return false
			}
			switch h[p.l4] {
			case 0, 8, 13, 14:
			default:
				return false
			}
		}
	} else {
		src = netip.AddrFrom16([16]byte(h[8:24]))
		p.v6, p.total = true, ipv6Min+int(binary.BigEndian.Uint16(h[4:]))
		if !p.walk() {
			return false
		}
		if p.proto == protoICMPv6 && !p.later && (len(h) <= p.l4 || h[p.l4] < icmp6EchoReq || h[p.l4] == ndLast) {
			return false
		}
	}
	return !src.IsUnspecified() && !src.IsMulticast() && !src.IsLoopback()
}

// buildTooBig makes out an ICMP "fragmentation needed" (RFC 1191 4) or ICMPv6
// "packet too big" (RFC 4443 3.2) about f, whose packet is l3len bytes long.
// The headers go to room; the quotation stays in f.
func buildTooBig(out *ndiscore.Frame, room []byte, mac ndiscore.MAC, from netip.Addr, f *ndiscore.Frame, l3len, mtu int) {
	orig := f.Head[ndiscore.EthernetHeader:]
	ip, limit := ipv4Min, maxErrorIPv4
	if from.Is6() {
		ip, limit = ipv6Min, maxErrorIPv6
	}
	quote := min(l3len, limit-ip-icmpHeader)
	out.Reset(room, ndiscore.Headroom, ndiscore.EthernetHeader+ip+icmpHeader)
	sum := uint16(0)
	rest, odd := quote, false
	for i := -1; i < len(f.Segs) && rest > 0; i++ {
		b := orig
		if i >= 0 {
			b = f.Segs[i]
		}
		b = b[:min(rest, len(b))]
		rest -= len(b)
		out.Segs = append(out.Segs, b)
		s := ndiscore.Checksum(b, 0)
		if odd {
			s = bits.ReverseBytes16(s)
		}
		sum = addSums(sum, s)
		odd = odd != (len(b)&1 != 0)
	}
	quote -= rest

	h := out.Head
	clear(h)
	copy(h, f.Head[6:12])
	copy(h[6:], mac[:])
	copy(h[12:], f.Head[12:14])
	h = h[ndiscore.EthernetHeader:]
	icmp := h[ip:]
	if from.Is4() {
		a := from.As4()
		h[0], h[1], h[8], h[9] = 0x45, 0xc0, 64, protoICMP // precedence: RFC 1812 4.3.2.5
		binary.BigEndian.PutUint16(h[2:], uint16(ip+icmpHeader+quote))
		copy(h[12:], a[:])
		copy(h[16:], orig[12:16])
		binary.BigEndian.PutUint16(h[10:], ^ndiscore.Checksum(h[:ip], 0))
		icmp[0], icmp[1] = 3, 4
		binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	} else {
		a := from.As16()
		h[0], h[6], h[7] = 0x60, protoICMPv6, 64
		binary.BigEndian.PutUint16(h[4:], uint16(icmpHeader+quote))
		copy(h[8:], a[:])
		copy(h[24:], orig[8:24])
		icmp[0] = 2
		binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
		sum = addSums(sum, ndiscore.PseudoChecksum(h[8:24], h[24:40], protoICMPv6, icmpHeader+quote))
	}
	binary.BigEndian.PutUint16(icmp[2:], ^ndiscore.Checksum(icmp[:icmpHeader], sum))
}

// addSums adds two ones'-complement sums.
func addSums(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// limiter is a token bucket for several goroutines without a lock: it keeps
// the time at which the bucket will be full again (GCRA).
type limiter struct {
	every int64 // nanoseconds a token takes
	depth int64 // nanoseconds the whole bucket takes
	base  time.Time
	full  atomic.Int64 // since base
}

func (l *limiter) init(perSecond, burst int) {
	l.every = int64(time.Second) / int64(perSecond)
	l.depth = l.every * int64(burst)
	l.base = time.Unix(0, 0)
}

func (l *limiter) allow(now time.Time) bool {
	n := int64(now.Sub(l.base))
	for {
		was := l.full.Load()
		next := max(was, n) + l.every
		if next-n > l.depth {
			return false
		}
		if l.full.CompareAndSwap(was, next) {
			return true
		}
	}
}
