package bridge

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	// The probe is a frame of the "local experimental" EtherType (IEEE 802
	// section 9.2.4) for a local group address that nobody listens to; every
	// switch floods it.
	etherTypeProbe = 0x88b5
	probeMagic     = 0x7673_7769_7463_6831 // "vswitch1"
	probeLength    = ownLength
	probeBody      = 8 + 8 + 2 + 2 // magic, nonce, port id, VLAN

	probeEvery = time.Second
	probeVLANs = 16 // at most so many of a trunk port's VLANs are probed at a time, in turn
	// After a port was shut, frames that were under way may still come back by
	// the other end of the loop: they prove nothing.
	loopSettle = time.Second

	// What the data path says of a port, in the low 16 bits of port.looped:
	// nothing, our own frame came back there, or the probe of the port with id
	// looped-loopProbe did. Above stand the VLANs in which it left and came back.
	loopNone  = 0
	loopOwn   = 1
	loopProbe = 2
	loopLeft  = 16
	loopCame  = 32
)

var probeGroup = ndiscore.MAC{0x03, 0x76, 0x73, 0x77, 0x6c, 0x67}

// returned notes that a frame with our own address came back through in. The
// keeper judges; it is woken once. The VLAN does not matter: two cables that
// lead from one into another and back are a loop too.
func (b *Bridge) returned(v *view, in *port, f *ndiscore.Frame, vlan uint16) {
	what, left := uint64(loopOwn), v.vlan
	body := ndiscore.EthernetHeader
	if isTag(binary.BigEndian.Uint16(f.Head[tagAt:])) {
		body += tagLength
	}
	if len(f.Head) >= body+probeBody && binary.BigEndian.Uint16(f.Head[body-2:]) == etherTypeProbe {
		p := f.Head[body:]
		id := binary.BigEndian.Uint16(p[16:])
		if binary.BigEndian.Uint64(p) != probeMagic || int(id) >= len(v.byID) || v.byID[id] == nil ||
			binary.BigEndian.Uint64(p[8:]) != v.byID[id].nonce {
			return // another bridge's that bears our address, or made up
		}
		what, left = loopProbe+uint64(id), binary.BigEndian.Uint16(p[18:])
	}
	if in.looped.CompareAndSwap(loopNone, what|uint64(left)<<loopLeft|uint64(vlan)<<loopCame) {
		v.keeper.poke()
	}
}

// writeProbe fills h, of at least probeLength bytes, with the probe that leaves
// by port from in vlan.
func (b *Bridge) writeProbe(h []byte, from *port, vlan uint16) {
	clear(h)
	copy(h, probeGroup[:])
	copy(h[6:], b.mac[:])
	binary.BigEndian.PutUint16(h[12:], etherTypeProbe)
	p := h[ndiscore.EthernetHeader:]
	binary.BigEndian.PutUint64(p, probeMagic)
	binary.BigEndian.PutUint64(p[8:], from.nonce)
	binary.BigEndian.PutUint16(p[16:], from.id)
	binary.BigEndian.PutUint16(p[18:], vlan)
}

// watchLoops shuts ports that bring our own frames back, opens those that were
// shut long enough, and sends probes. It returns when it is next due, zero for
// when there is news.
func (k *keeper) watchLoops(now time.Time) (next time.Time) {
	b := k.bridge
	v := b.view.Load()
	if !v.guard {
		return time.Time{}
	}
	o := b.opts.Load()
	// The port listed later is the one to shut: look there first.
	for _, name := range slices.Backward(o.Ports) {
		if p := k.portNamed(v, name); p != nil {
			if news := p.looped.Swap(loopNone); news != loopNone {
				k.judge(v, o, p, news, now)
			}
		}
	}
	if now.Sub(k.probedAt) >= probeEvery {
		k.probedAt = now
		k.probe(v)
	}
	next = k.probedAt.Add(probeEvery)
	for id, p := range v.byID {
		if p == nil || !v.rules[id].shut {
			continue
		}
		b.mu.Lock()
		at := p.reopen
		b.mu.Unlock()
		if at.After(now) {
			if at.Before(next) {
				next = at
			}
			continue
		}
		opened := false
		b.change(p, func() { opened, p.shut = p.shut, false })
		if opened {
			o.Event("bridge.loop", p.name, "shut", "forwarding", fmt.Sprintf("%s have passed (loop_hold)", o.LoopHold))
		}
	}
	return next
}

func (k *keeper) portNamed(v *view, name string) *port {
	for _, p := range v.byID {
		if p != nil && p.name == name {
			return p
		}
	}
	return nil
}

// judge decides on a frame of our own that came back through p.
func (k *keeper) judge(v *view, o *Options, p *port, news uint64, now time.Time) {
	if v.rules[p.id].shut {
		return
	}
	what, left, came := news&0xffff, uint16(news>>loopLeft), uint16(news>>loopCame)
	why := "a frame with the bridge's own address came back"
	if what >= loopProbe {
		id := int(what - loopProbe)
		if id >= len(v.byID) || v.byID[id] == nil || k.shutNow(v.byID[id]) {
			return // the loop is open already
		}
		from := v.byID[id]
		why = fmt.Sprintf("the probe that left by port %s came back through port %s", from.name, p.name)
		// A loop of two ports is found from both ends. One of them has to
		// stay, and the same one whichever end is heard first.
		if slices.Index(o.Ports, from.name) > slices.Index(o.Ports, p.name) {
			p = from
		}
	} else if !k.shutLast.IsZero() && now.Sub(k.shutLast) < loopSettle {
		return
	}
	if left != came {
		why += fmt.Sprintf(", out of VLAN %d into VLAN %d", left, came)
	}
	b := k.bridge
	shut := false
	b.change(p, func() {
		// Once the guard is off, or we are halted, nobody would open it again.
		if shut = !p.shut && b.keeper == k && b.opts.Load().LoopGuard; shut {
			p.shut, p.reopen = true, now.Add(o.LoopHold)
			b.loops.Add(1)
		}
	})
	if !shut {
		return
	}
	k.shutLast = now
	o.Event("bridge.loop", p.name, "forwarding", "shut", fmt.Sprintf("%s: it is shut for %s (loop_hold)", why, o.LoopHold))
}

func (k *keeper) shutNow(p *port) bool {
	k.bridge.mu.Lock()
	defer k.bridge.mu.Unlock()
	return p.shut
}

// probe sends one probe by each port that is up, in each of its VLANs.
func (k *keeper) probe(v *view) {
	for _, p := range v.flood {
		if !p.up.Load() {
			continue
		}
		q := k.worker.Scratch()
		r := &v.rules[p.id]
		if v.vlan == 0 || r.untagged != 0 {
			k.addProbe(q, p, r.untagged, false)
		}
		first := uint16(0)
		for range probeVLANs {
			vlan := r.tagged.after(k.probed[p])
			if vlan == 0 || vlan == first {
				break
			}
			if first == 0 {
				first = vlan
			}
			k.addProbe(q, p, vlan, true)
			k.probed[p] = vlan
		}
		if len(q.Frames) > 0 {
			p.binding.Send(q)
			k.bridge.probes.Add(uint64(len(q.Frames)))
		}
		k.worker.Done(q)
	}
}

func (k *keeper) addProbe(q *ndiscore.Batch, from *port, vlan uint16, tag bool) {
	f := k.frame(q, probeLength)
	k.bridge.writeProbe(f.Head, from, vlan)
	if tag {
		pushTag(f, vlan)
	}
}
