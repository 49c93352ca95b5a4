package stack

import (
	"encoding/binary"
	"math/bits"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/stack/nat"
)

// Receive takes frames on the worker that received them: checks, copies, punts.
func (r *Router) Receive(b *ndiscore.Binding, batch *ndiscore.Batch) {
	if p, ok := b.Context().(*plug); ok {
		if n := p.port.Load(); n != nil {
			r.receive(n, batch)
		} else {
			batch.DropAll(ndiscore.DropNoReceiver)
		}
	}
	if !batch.Borrowed {
		b.Return(batch)
	}
}

func (r *Router) receive(p *port, batch *ndiscore.Batch) {
	if r.dead.Load() {
		batch.DropAll(ndiscore.DropRouterOther)
		return
	}
	t := r.fib.Load()
	mac := p.station.Load().mac
	var items [ndiscore.BatchFrames]punted
	var from [ndiscore.BatchFrames]*ndiscore.Frame
	n := 0
	var own *nat.Copy
	for _, f := range batch.Frames {
		v := t.examine(p, mac, f, &own)
		if v.drop == ndiscore.DropTooBig {
			r.answerTooBig(p, batch.Worker, f, &v.verdict) // in the words of its source: untranslated
		}
		if v.drop == ndiscore.DropNone && r.queue.full(v.class) {
			r.queue.refuse(v.class)
			v.drop = ndiscore.DropPuntFull
		}
		if v.drop != ndiscore.DropNone {
			f.Drop(v.drop)
			continue
		}
		items[n] = punted{pkt: copyIn(v.frame, &v.verdict), in: p, super: v.super, fib: t, bytes: v.l3len, class: v.class}
		from[n] = f
		n++
	}
	if own != nil {
		own.Release()
		copies.Put(own)
	}
	if n == 0 {
		return
	}
	r.queue.push(items[:n])
	for i := range items[:n] {
		if items[i].pkt == nil {
			from[i].Deliver()
			continue
		}
		items[i].pkt.DecRef()
		from[i].Drop(ndiscore.DropPuntFull)
	}
}

// copyIn is the one copy that a frame costs on its way to netstack: the packet
// without link header and padding, in two pieces, so that what netstack does to
// the headers does not copy the payload again.
func copyIn(f *ndiscore.Frame, v *verdict) *netstack.PacketBuffer {
	head := newView(min(v.split, v.l3len))
	h := head.AsSlice()
	// Cut behind its first byte, so that netstack joins the pieces in memory of
	// its own when it first looks at the IP header: see newView.
	more := head.Clone()
	head.CapLength(1)
	more.TrimFront(1)
	data := buffer.MakeWithView(head)
	data.Append(more)
	var rest []byte
	if n := v.l3len - len(h); n > 0 {
		tail := newView(n)
		rest = tail.AsSlice()
		data.Append(tail)
	}
	gather(h, rest, f.Head[ndiscore.EthernetHeader:], f.Segs)
	if v.zeroTTL {
		// RFC 1624: the word of the TTL sinks by 0x100, its complement rises.
		s := uint32(binary.BigEndian.Uint16(h[10:])) + 0x100
		binary.BigEndian.PutUint16(h[10:], uint16(s+s>>16))
		h[8] = 0
	}
	if v.complete {
		start := int(f.Offload.CsumStart) - ndiscore.EthernetHeader
		complete(h, rest, start, start+int(f.Offload.CsumOffset))
	}
	pkt := netstack.NewPacketBuffer(netstack.PacketBufferOptions{Payload: data, Mark: v.mark})
	pkt.NetworkProtocolNumber = v.proto
	pkt.PktType = tcpip.PacketHost
	if v.group {
		pkt.PktType = tcpip.PacketMulticast
		if f.Dst() == ndiscore.Broadcast {
			pkt.PktType = tcpip.PacketBroadcast
		}
	}
	return pkt
}

// newView takes memory from netstack's pools, but never from those whose pieces
// hold the headers of an IPv4 packet that is being forwarded. netstack reads the
// TTL there after it has given the piece back (forwardPacketWithRoute keeps a
// slice across DeepCopyForForwarding, in which PullUp parts with the piece), so a
// worker that got it meanwhile would change the TTL. Those pieces are taken by
// the feeder alone, on which netstack's timers run too (feederClock).
func newView(n int) *buffer.View {
	v := buffer.NewView(max(n, splitAt+1))
	v.Grow(n)
	return v
}

// gather fills h and then rest from first and then segs.
func gather(h, rest, first []byte, segs [][]byte) {
	for i := -1; i < len(segs); i++ {
		b := first
		if i >= 0 {
			b = segs[i]
		}
		if len(h) > 0 {
			n := copy(h, b)
			h, b = h[n:], b[n:]
		}
		if len(h) == 0 {
			if len(rest) == 0 {
				return
			}
			rest = rest[copy(rest, b):]
		}
	}
}

// complete finishes the checksum at byte at of the packet h+rest, of which the
// part from start on is summed. The field holds the pseudo-header's sum.
func complete(h, rest []byte, start, at int) {
	var s uint16
	if start < len(h) {
		s = ndiscore.Checksum(h[start:], 0)
		t := ndiscore.Checksum(rest, 0)
		if (len(h)-start)&1 != 0 {
			t = bits.ReverseBytes16(t)
		}
		sum := uint32(s) + uint32(t)
		s = uint16(sum + sum>>16)
	} else {
		s = ndiscore.Checksum(rest[start-len(h):], 0)
	}
	s = ^s
	if s == 0 {
		s = 0xffff // the same number, and UDP's zero means "none"
	}
	for i, b := range [2]byte{byte(s >> 8), byte(s)} {
		if k := at + i; k < len(h) {
			h[k] = b
		} else {
			rest[k-len(h)] = b
		}
	}
}
