package stack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// announcer owns the timers of one port's announcements.
type announcer struct {
	mu      sync.Mutex // guards the rest; held across no call but the clock's
	timers  [len(ndiscore.AnnounceAt)]ndiscore.Timer
	stopped bool
}

// stop ends all announcements for good. One that has begun finds the gate of
// its port closed.
func (a *announcer) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	a.cancelLocked()
}

func (a *announcer) cancelLocked() {
	for i, t := range a.timers {
		if t != nil {
			t.Stop()
			a.timers[i] = nil
		}
	}
}

// announce starts a round of announcements of what stands on p, after a while.
func (r *Router) announce(p *plug, why string, after time.Duration) {
	if n := p.port.Load(); n != nil {
		r.announceAddresses(n, why, after)
	}
}

// announceAddresses starts a round of announcements after a while, instead of one
// that may be under way. It does not block: it may be called on the packet path, and
// sends from the clock's goroutines ("stack announce": each ends by itself).
func (r *Router) announceAddresses(p *port, why string, after time.Duration) {
	a := &p.announce
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return
	}
	a.cancelLocked()
	for i, d := range ndiscore.AnnounceAt {
		a.timers[i] = r.clock.AfterFunc(after+d, func() { r.announceNow(p, i == 0, why) })
	}
}

// announceNow sends one announcement of each address of p.
func (r *Router) announceNow(p *port, first bool, why string) {
	if !p.gate.enter() {
		return
	}
	defer p.gate.leave()
	s := p.station.Load()
	if s.mac != p.attributes().MAC {
		return // the feeder has yet to take over the new one, and announces it then
	}
	t := r.senders.get()
	if t == nil {
		return // the next round makes up for it
	}
	defer r.senders.put(t)
	for _, n := range s.addresses {
		i := len(t.batch.Frames)
		f := &t.frames[i]
		if n.Addr().Is4() {
			buildGratuitousARP(f, t.room[i][:], s.mac, n.Addr())
		} else {
			buildUnsolicitedNA(f, t.room[i][:], s.mac, n.Addr())
		}
		t.batch.Append(f)
		r.stats.announced.Add(1)
		if t.batch.Full() {
			t.flush(p)
		}
	}
	if len(t.batch.Frames) > 0 {
		t.flush(p)
	}
	if first {
		for _, n := range s.addresses {
			r.config.Event("address.announced", p.iface.name, "", n.Addr().String(), why)
		}
	}
}

// buildGratuitousARP makes f an ARP request for our own address a (RFC 5944
// 4.6): every cache on the link that knows a takes over mac.
func buildGratuitousARP(f *ndiscore.Frame, room []byte, mac ndiscore.MAC, a netip.Addr) {
	f.Reset(room, ndiscore.Headroom, ndiscore.EthernetHeader+arpLength)
	h := f.Head
	clear(h)
	copy(h, ndiscore.Broadcast[:])
	copy(h[6:], mac[:])
	binary.BigEndian.PutUint16(h[12:], ndiscore.EtherTypeARP)
	h = h[ndiscore.EthernetHeader:]
	binary.BigEndian.PutUint16(h[0:], 1) // Ethernet
	binary.BigEndian.PutUint16(h[2:], ndiscore.EtherTypeIPv4)
	h[4], h[5] = 6, 4
	binary.BigEndian.PutUint16(h[6:], 1) // request
	ip := a.As4()
	copy(h[8:], mac[:])
	copy(h[14:], ip[:])
	copy(h[24:], ip[:]) // the target's MAC stays zero
}

// buildUnsolicitedNA makes f a neighbour advertisement of our own address a to
// all nodes (RFC 4861 7.2.6).
func buildUnsolicitedNA(f *ndiscore.Frame, room []byte, mac ndiscore.MAC, a netip.Addr) {
	const length = 24 + 8 // with the target link-layer address option
	allNodes := netip.IPv6LinkLocalAllNodes()
	f.Reset(room, ndiscore.Headroom, ndiscore.EthernetHeader+ipv6Min+length)
	h := f.Head
	clear(h)
	dst := macOf(allNodes)
	copy(h, dst[:])
	copy(h[6:], mac[:])
	binary.BigEndian.PutUint16(h[12:], ndiscore.EtherTypeIPv6)
	h = h[ndiscore.EthernetHeader:]
	ip, all := a.As16(), allNodes.As16()
	h[0], h[6], h[7] = 0x60, protoICMPv6, 255
	binary.BigEndian.PutUint16(h[4:], length)
	copy(h[8:], ip[:])
	copy(h[24:], all[:])
	n := h[ipv6Min:]
	n[0] = 136
	n[4] = 0x80 | 0x20 // router, override; not solicited
	copy(n[8:], ip[:])
	n[24], n[25] = 2, 1
	copy(n[26:], mac[:])
	sum := ndiscore.PseudoChecksum(h[8:24], h[24:40], protoICMPv6, length)
	binary.BigEndian.PutUint16(n[2:], ^ndiscore.Checksum(n[:length], sum))
}
