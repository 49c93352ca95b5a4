package ndiscore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// KernelCase is a frame to be finished by this package and by the kernel.
type KernelCase struct {
	Name    string
	Frame   []byte
	Head    int // how much of it is headers
	Offload Offload
}

// KernelCases are chosen frames, and then as many drawn from seed, none of
// which needs more than 64 segments or segments longer than mtu.
func KernelCases(seed uint64, random, mtu int) []KernelCase {
	rnd := rand.New(rand.NewPCG(seed, 1))
	payload := make([]byte, 65000)
	for i := range payload {
		payload[i] = byte(rnd.Uint32())
	}
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	options := append([]byte{protoHopByHop}, // a PadN in hop-by-hop, a PadN in destination options
		protoDestination, 0, 1, 4, 0, 0, 0, 0,
		0, 0, 1, 4, 0, 0, 0, 0)
	var cases []KernelCase
	add := func(name string, s spec) {
		frame, o, _, _, end := s.build()
		cases = append(cases, KernelCase{name, frame, end, o})
	}
	for _, c := range []struct {
		name string
		s    spec
	}{
		{"tcpv4 64K", spec{kind: GSOTCPv4, size: 1448, payload: payload[:64000], tcpOpts: timestamps, flags: 0x10, id: 100}},
		{"tcpv4 whole segments", spec{kind: GSOTCPv4, size: 1000, payload: payload[:3000], flags: 0x10}},
		{"tcpv4 odd sizes", spec{kind: GSOTCPv4, size: 1001, payload: payload[:5004], flags: 0x10}},
		{"tcpv4 one byte left", spec{kind: GSOTCPv4, size: 1000, payload: payload[:2001], flags: 0x18}},
		{"tcpv4 fin push urgent", spec{kind: GSOTCPv4, size: 700, payload: payload[:3001], flags: 0x39}},
		{"tcpv4 ecn", spec{kind: GSOTCPv4, size: 700, payload: payload[:3001], flags: 0xd0, ecn: true}},
		{"tcpv4 cwr without ecn", spec{kind: GSOTCPv4, size: 700, payload: payload[:3001], flags: 0x90}},
		{"tcpv4 id and seq wrap", spec{kind: GSOTCPv4, size: 1000, payload: payload[:9000], flags: 0x10, id: 0xfffd, seq: 0xfffff000}},
		{"tcpv4 ip options", spec{kind: GSOTCPv4, size: 1000, payload: payload[:9000], flags: 0x10, ipOpts: []byte{1, 1, 1, 1, 1, 1, 1, 0}}},
		{"tcpv4 tagged", spec{kind: GSOTCPv4, size: 1000, payload: payload[:9000], flags: 0x10, tags: 1}},
		{"tcpv4 twice tagged", spec{kind: GSOTCPv4, size: 1000, payload: payload[:9000], flags: 0x10, tags: 2}},
		{"tcpv4 zeros", spec{kind: GSOTCPv4, size: 1000, payload: make([]byte, 9000), flags: 0x10}},
		{"tcpv6 64K", spec{kind: GSOTCPv6, size: 1428, payload: payload[:64000], tcpOpts: timestamps, flags: 0x18}},
		{"tcpv6 ecn", spec{kind: GSOTCPv6, size: 701, payload: payload[:3001], flags: 0xd9, ecn: true}},
		{"tcpv6 extension headers", spec{kind: GSOTCPv6, size: 701, payload: payload[:3001], flags: 0x18, ipOpts: options}},
		{"tcpv6 tagged", spec{kind: GSOTCPv6, size: 1000, payload: payload[:9000], flags: 0x10, tags: 1}},
		{"udp over v4", spec{kind: GSOUDPL4, size: 1200, payload: payload[:60001], id: 0xffff}},
		{"udp over v4, odd", spec{kind: GSOUDPL4, size: 333, payload: payload[:3331]}},
		{"udp over v4 tagged", spec{kind: GSOUDPL4, size: 333, payload: payload[:3331], tags: 1}},
		{"udp over v6", spec{kind: GSOUDPL4, v6: true, size: 1200, payload: payload[:60000]}},
		{"udp over v6, extension headers", spec{kind: GSOUDPL4, v6: true, size: 77, payload: payload[:777], ipOpts: options}},
		{"tcpv4 in one segment", spec{kind: GSOTCPv4, size: 1000, payload: payload[:1000], flags: 0x18}},
		{"plain tcpv4", spec{kind: GSOTCPv4, payload: payload[:1001], flags: 0x18}},
		{"plain tcpv4 tagged", spec{kind: GSOTCPv4, payload: payload[:1000], flags: 0x18, tags: 1}},
		{"plain tcpv6", spec{kind: GSOTCPv6, payload: payload[:1001], flags: 0x18}},
		{"plain tcpv6 extension headers", spec{kind: GSOTCPv6, payload: payload[:1001], flags: 0x18, ipOpts: options}},
		{"plain udp over v4", spec{kind: GSOUDPL4, payload: payload[:1001]}},
		{"plain udp over v6", spec{kind: GSOUDPL4, v6: true, payload: payload[:1001]}},
	} {
		c.s.csum = true
		add(c.name, c.s)
	}
	for _, size := range []int{0, 4} {
		for _, kind := range []GSOKind{GSOTCPv4, GSOUDPL4} {
			add(fmt.Sprintf("%v sum of zero, segments of %d", kind, size), zeroSum(spec{kind: kind, size: size, csum: true}))
		}
	}

	for i := range random {
		s := spec{
			tags:    rnd.IntN(3),
			kind:    []GSOKind{GSOTCPv4, GSOTCPv6, GSOUDPL4}[rnd.IntN(3)],
			v6:      rnd.IntN(2) == 0,
			flags:   byte(rnd.Uint32()),
			seq:     rnd.Uint32(),
			id:      uint16(rnd.Uint32()),
			payload: payload[:1+rnd.IntN(6000)],
			csum:    true,
		}
		if rnd.IntN(4) == 0 {
			s.payload = payload[:1+rnd.IntN(len(payload))]
		}
		if s.isV6() && rnd.IntN(2) == 0 {
			s.ipOpts = options
		} else if !s.isV6() {
			s.ipOpts = bytes.Repeat([]byte{1}, 4*rnd.IntN(11))
		}
		if !s.isUDP() {
			s.tcpOpts = bytes.Repeat([]byte{1}, 4*rnd.IntN(11))
			s.ecn = rnd.IntN(2) == 0
		}
		headers := 60 + 60 // as many as IPv4 with TCP can have, and more than IPv6 here
		if rnd.IntN(5) > 0 {
			least := len(s.payload)/64 + 1
			s.size = min(least+rnd.IntN(1500), mtu-headers)
		} else {
			s.ecn = false
			s.payload = s.payload[:min(len(s.payload), mtu-headers-4*s.tags)] // a packet socket takes a tag for payload, but for a single 802.1Q one
		}
		if frame, _, _, _, _ := s.build(); len(frame) > 65000 {
			continue
		}
		if n := len(s.payload); s.size >= n && s.size < n+len(s.tcpOpts) {
			// To find out what is no super-frame at all, the kernel counts TCP
			// options as payload; then it finds nothing to cut and drops the frame.
			continue
		}
		add(fmt.Sprintf("seed %d, number %d: tags %d %v %d in %d", seed, i, s.tags, s.kind, len(s.payload), s.size), s)
	}
	return cases
}

// FinishForTest checks and finishes one frame for an adapter that can do
// nothing, and returns what it was sent.
func (c KernelCase) FinishForTest(mtu int) ([][]byte, error) {
	w := new(Worker)
	f := newFrame(c.Frame, c.Offload, c.Head, rand.New(rand.NewPCG(uint64(len(c.Frame)), 2)))
	if r := f.CheckOffload(); r != DropNone {
		return nil, fmt.Errorf("CheckOffload: %v", r)
	}
	b := NewBatch(w)
	b.Append(f)
	var out [][]byte
	w.fin.finish(w, b, 0, mtu, &counter{send: func(f *Frame) { out = append(out, f.Bytes(nil)) }})
	if b.Status[0] != DropNone {
		return nil, fmt.Errorf("finish: %v", b.Status[0])
	}
	return out, nil
}
