package stack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// endpoint is what netstack sees of a port: its link. It outlives the port's
// binding, and even the netstack that it was made for (a stack that panicked is
// abandoned, its timers go on), so every method is legal at any time, and none
// blocks or calls into netstack.
type endpoint struct {
	router *Router
	port   *port
	mtu    atomic.Uint32 // see MTU
	up     atomic.Pointer[netstack.NetworkDispatcher]
	closed atomic.Bool // nothing goes out any more

	mu      sync.Mutex // a leaf; guards pending
	pending *sender    // what the feeder's burst has sent so far
}

var _ netstack.LinkEndpoint = (*endpoint)(nil)

func newEndpoint(r *Router, p *port) *endpoint {
	e := &endpoint{router: r, port: p}
	e.mtu.Store(uint32(p.station.Load().mtu))
	return e
}

// MTU is the interface's real MTU, except while the feeder delivers a
// super-frame that leaves by this endpoint: then it is 65535. netstack's copy for
// forwarding forgets that a packet is a super-frame, and it would refuse it as
// too big; the guards have held its segments against the real MTU already.
// netstack reads the MTU per forwarded packet, within the delivery.
func (e *endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU is not used: the feeder stores the MTU of the port.
func (*endpoint) SetMTU(uint32) {}

// MaxHeaderLength is the room that netstack leaves for AddHeader.
func (*endpoint) MaxHeaderLength() uint16 { return ndiscore.EthernetHeader }

// LinkAddress is the MAC of the adapter, as it is now.
func (e *endpoint) LinkAddress() tcpip.LinkAddress { return e.port.station.Load().link }

// SetLinkAddress is not used: the adapter has the MAC that it has.
func (*endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities: we verify or vouch for received checksums, and finish those
// that are sent. With the latter netstack leaves the checksums of forwarded
// packets alone; without it, it would compute them anew and so make corrupt
// packets valid.
func (*endpoint) Capabilities() netstack.LinkEndpointCapabilities {
	return netstack.CapabilityRXChecksumOffload | netstack.CapabilityTXChecksumOffload | netstack.CapabilityResolutionRequired
}

// Attach takes the NIC that packets are delivered to, or nil. netstack calls it
// with its lock held: nothing is waited for.
func (e *endpoint) Attach(d netstack.NetworkDispatcher) {
	if d == nil {
		e.up.Store(nil)
		return
	}
	e.up.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (e *endpoint) IsAttached() bool { return e.up.Load() != nil }

// Wait has nothing to wait for: the endpoint owns no goroutine.
func (*endpoint) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader writes the Ethernet header with the MAC as it is now: a route may
// remember an older one.
func (e *endpoint) AddHeader(pkt *netstack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: e.LinkAddress(),
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (*endpoint) ParseHeader(pkt *netstack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Close ends the endpoint. What netstack still writes is dropped.
func (e *endpoint) Close() { e.closed.Store(true) }

// SetOnCloseAction is not used: the router removes the NIC, never the endpoint.
func (*endpoint) SetOnCloseAction(func()) {}

// WritePackets sends packets whose link header is set. Any goroutine of netstack
// or the feeder may call it. It returns nil or ErrNoBufferSpace, because
// netstack panics on most other errors when it forwards, and it never blocks.
// A frame that the device refuses is the core's to count: netstack could do
// nothing about it.
func (e *endpoint) WritePackets(list netstack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range list.AsSlice() {
		if e.closed.Load() {
			e.port.iface.stats.closed.Add(1)
			continue
		}
		if !e.write(pkt) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return list.Len(), nil
}

// write sends pkt, or lets it wait for the end of the feeder's burst. False
// when no sender is free.
func (e *endpoint) write(pkt *netstack.PacketBuffer) bool {
	t, later := e.gather(pkt)
	switch {
	case later:
		return true
	case t == nil:
		e.port.iface.stats.noSender.Add(1)
		return false
	}
	e.send(t)
	return true
}

// gather adds pkt to a sender. later means that the feeder will send it, at the
// end of its burst; otherwise the caller must, unless none was free.
func (e *endpoint) gather(pkt *netstack.PacketBuffer) (t *sender, later bool) {
	if !e.router.bursting.Load() {
		if t = e.router.senders.get(); t != nil {
			e.offload(t.add(pkt), pkt)
		}
		return t, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	// The feeder ends the burst before it collects, with this lock, what is
	// pending: who sees it going on here is not too late.
	going := e.router.bursting.Load()
	t, e.pending = e.pending, nil
	if t == nil {
		if t = e.router.senders.get(); t == nil {
			return nil, false
		}
	}
	n := len(t.batch.Frames)
	e.offload(t.add(pkt), pkt)
	if !going || t.full() {
		return t, false
	}
	t.held[n] = pkt.IncRef()
	e.pending = t
	return nil, true
}

// endBurst sends what is pending. The feeder calls it.
func (e *endpoint) endBurst() {
	e.mu.Lock()
	t := e.pending
	e.pending = nil
	e.mu.Unlock()
	if t != nil {
		e.send(t)
	}
}

// abandon gives up what is pending, after a panic. The packets stay with the
// netstack that made them.
func (e *endpoint) abandon() {
	e.mu.Lock()
	t := e.pending
	e.pending = nil
	e.mu.Unlock()
	if t != nil {
		clear(t.held[:])
		t.reset()
		e.router.senders.put(t)
	}
}

// send sends the batch of t and gives t back.
func (e *endpoint) send(t *sender) {
	if edge := e.port.iface.edge.Load(); edge != nil {
		e.port.iface.stats.nat.Add(uint64(t.translate(edge)))
	}
	n := len(t.batch.Frames)
	sent, refused := t.flush(e.port)
	e.router.senders.put(t)
	e.port.iface.stats.sent.Add(uint64(sent - refused))
	e.port.iface.stats.refused.Add(uint64(refused))
	e.port.iface.stats.closed.Add(uint64(n - sent))
}

// offload says in f what is left to do: for a forwarded packet what it came
// with, for one of netstack's own the transport checksum that it left open.
func (e *endpoint) offload(f *ndiscore.Frame, pkt *netstack.PacketBuffer) {
	h := f.Head[ndiscore.EthernetHeader:]
	p := packet{f: f, h: h, size: f.Len() - ndiscore.EthernetHeader, total: f.Len() - ndiscore.EthernetHeader}
	switch pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		if len(h) < ipv4Min {
			return
		}
		p.l4, p.proto = int(h[0]&15)*4, h[9]
		p.fragment = binary.BigEndian.Uint16(h[6:])&ipv4FragMask != 0
	case header.IPv6ProtocolNumber:
		p.v6 = true
		if len(h) < ipv6Min || !p.walk() {
			return
		}
	default:
		return
	}
	var at, length int
	switch p.proto {
	case protoTCP:
		at, length = tcpCsum, tcpMin
	case protoUDP:
		at, length = udpCsum, udpLen
	default:
		return
	}
	// A fragment that netstack made of a forwarded packet does not say that it
	// is forwarded, but fragments have finished checksums anyway.
	if p.fragment || p.l4+length > len(h) {
		return
	}
	o := &f.Offload
	mark := pkt.Mark
	if !pkt.NetworkPacketInfo.IsForwardedPacket {
		mark = markNeedsCsum
		src, dst := h[12:16], h[16:20]
		if p.v6 {
			src, dst = h[8:24], h[24:40]
		}
		binary.BigEndian.PutUint16(h[p.l4+at:], ndiscore.PseudoChecksum(src, dst, p.proto, p.total-p.l4))
	}
	if mark&markNeedsCsum == 0 {
		return
	}
	o.Flags = ndiscore.NeedsCsum
	o.CsumStart, o.CsumOffset = uint16(ndiscore.EthernetHeader+p.l4), uint16(at)
	size := mark >> markGSOShift
	if size == 0 {
		return
	}
	end := p.l4 + udpLen
	switch {
	case p.proto == protoUDP:
		o.GSO = ndiscore.GSOUDPL4
	case p.v6:
		o.GSO = ndiscore.GSOTCPv6
	default:
		o.GSO = ndiscore.GSOTCPv4
	}
	if p.proto == protoTCP {
		end = p.l4 + int(h[p.l4+12]>>4)*4
		if mark&markECN != 0 {
			o.Flags |= ndiscore.GSOECN
		}
	}
	o.GSOSize, o.HdrLen = uint16(size), uint16(ndiscore.EthernetHeader+end)
}
