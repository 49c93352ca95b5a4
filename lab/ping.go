package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PingOptions changes a ping. The zero value sends one echo request of 56 bytes.
type PingOptions struct {
	Count        int           // requests; default 1
	Interval     time.Duration // between requests; default 10ms
	Timeout      time.Duration // for the answer to the last request; default 1s
	Size         int           // payload bytes; default 56
	TTL          int           // hop limit; default the kernel's
	DontFragment bool          // forbid fragmentation, on the way and here; otherwise allow both
	Source       netip.Addr    // default the kernel's choice
}

// PingResult is what became of the requests.
type PingResult struct {
	Dst                  netip.Addr
	Sent, Received, Lost int
	Duplicates           int             // further answers to a request that had one
	Corrupted            int             // answers with other contents than the request
	Strangers            int             // right answers from an address other than Dst
	RTTs                 []time.Duration // of the answers, in order of arrival
	Errors               []ICMPError     // what routers, or this host, answered instead
	SendErr              error           // the first refusal by this host's own kernel
}

// Err is nil when every request was answered rightly by the destination itself.
func (r PingResult) Err() error {
	var why []string
	for _, e := range r.Errors {
		why = append(why, e.String())
	}
	if r.SendErr != nil {
		why = append(why, r.SendErr.Error())
	}
	detail := strings.Join(why, "; ")
	if detail != "" {
		detail = " (" + detail + ")"
	}
	switch {
	case r.Corrupted > 0:
		return fmt.Errorf("lab: ping %v: %d of %d answers: %w%s", r.Dst, r.Corrupted, r.Sent, ErrCorrupt, detail)
	case r.Strangers > 0:
		return fmt.Errorf("lab: ping %v: %d of %d answers came from another address%s", r.Dst, r.Strangers, r.Sent, detail)
	case r.Lost > 0 || r.Sent == 0:
		return fmt.Errorf("lab: ping %v: %d of %d: %w%s", r.Dst, r.Lost, r.Sent, ErrLost, detail)
	}
	return nil
}

// ICMPError is an ICMP or ICMPv6 error message about one of our requests.
type ICMPError struct {
	From       netip.Addr
	Seq        int // the request it is about, from 0
	Type, Code uint8
	MTU        int // of "fragmentation needed" and "packet too big"
}

// TooBig tells whether the request did not fit a link on the way; MTU is that link's.
func (e ICMPError) TooBig() bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code == 4
	}
	return e.Type == 2
}

// TimeExceeded tells whether the request ran out of hops.
func (e ICMPError) TimeExceeded() bool {
	if e.From.Is4() {
		return e.Type == 11
	}
	return e.Type == 3
}

// Unreachable tells whether no way was known, or the target did not answer ARP or neighbour discovery.
func (e ICMPError) Unreachable() bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code != 4
	}
	return e.Type == 1
}

func (e ICMPError) String() string {
	switch {
	case e.TooBig():
		return fmt.Sprintf("%v: too big for mtu %d", e.From, e.MTU)
	case e.TimeExceeded():
		return fmt.Sprintf("%v: time exceeded", e.From)
	case e.Unreachable():
		return fmt.Sprintf("%v: unreachable, code %d", e.From, e.Code)
	}
	return fmt.Sprintf("%v: ICMP type %d code %d", e.From, e.Type, e.Code)
}

// Ping sends echo requests from the host and waits for the answers, whose every byte is checked. It returns
// when each request is settled or Timeout has passed. Lost requests are in the result (see
// [PingResult.Err]); the error is for pings that could not be carried out.
func (h *Host) Ping(ctx context.Context, dst netip.Addr, o PingOptions) (PingResult, error) {
	if h.err != nil {
		return PingResult{}, h.err
	}
	p, err := h.newPinger(dst.Unmap(), o)
	if err != nil {
		return PingResult{}, fmt.Errorf("lab: %s: ping %v: %w", h.name, dst, err)
	}
	defer p.s.close()
	if err := p.run(ctx); err != nil {
		return p.res, fmt.Errorf("lab: %s: ping %v: %w", h.name, dst, err)
	}
	return p.res, nil
}

// WaitReachable pings dst until it answers: a path through a switch that was started just now may take a
// moment.
func (h *Host) WaitReachable(ctx context.Context, dst netip.Addr) error {
	return Eventually(ctx, fmt.Sprintf("%s to reach %v", h.name, dst), func() error {
		r, err := h.Ping(ctx, dst, PingOptions{Timeout: 100 * time.Millisecond})
		if err != nil {
			return err
		}
		return r.Err()
	})
}

type pinger struct {
	o     PingOptions
	res   PingResult
	s     *socket
	to    unix.Sockaddr
	v6    bool
	id    uint16
	nonce [8]byte

	sentAt   []time.Time
	settled  []bool // answered or refused
	answered []bool
	open     int // requests sent and not settled
	buf      []byte
}

func (h *Host) newPinger(dst netip.Addr, o PingOptions) (*pinger, error) {
	o.Count = max(o.Count, 1)
	if o.Interval == 0 {
		o.Interval = 10 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Size == 0 {
		o.Size = 56
	}
	if o.Count > 1<<16 || o.Size < 0 || o.Size > 65507 {
		return nil, fmt.Errorf("count %d, size %d: the limits are 65536 and 65507", o.Count, o.Size)
	}
	to, err := h.sockaddr(netip.AddrPortFrom(dst, 0))
	if err != nil {
		return nil, err
	}
	p := &pinger{
		o: o, to: to, v6: dst.Is6(), id: uint16(rand.Uint32()), res: PingResult{Dst: dst},
		sentAt: make([]time.Time, o.Count), settled: make([]bool, o.Count), answered: make([]bool, o.Count),
		buf: make([]byte, 1<<16),
	}
	binary.BigEndian.PutUint64(p.nonce[:], rand.Uint64())
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if p.v6 {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	p.s, err = h.openSocket(domain, unix.SOCK_RAW, proto, p.setUp)
	return p, err
}

func (p *pinger) setUp(fd int) error {
	level, mtuDiscover, ttl := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_TTL
	// PROBE sets "don't fragment" and does not heed what the kernel has learned about the path, so each
	// request asks the network itself.
	df, mayFrag := unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_DONT
	if p.v6 {
		level, mtuDiscover, ttl = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_UNICAST_HOPS
		df, mayFrag = unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_WANT
	}
	v := mayFrag
	if p.o.DontFragment {
		v = df
		if p.v6 {
			if err := unix.SetsockoptInt(fd, level, unix.IPV6_DONTFRAG, 1); err != nil {
				return os.NewSyscallError("setsockopt IPV6_DONTFRAG", err)
			}
		}
	}
	if err := unix.SetsockoptInt(fd, level, mtuDiscover, v); err != nil {
		return os.NewSyscallError("setsockopt MTU_DISCOVER", err)
	}
	if p.o.TTL > 0 {
		if err := unix.SetsockoptInt(fd, level, ttl, p.o.TTL); err != nil {
			return os.NewSyscallError("setsockopt TTL", err)
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) // a bigger one only helps
	if p.o.Source.IsValid() {
		var sa unix.Sockaddr
		if p.v6 {
			sa = &unix.SockaddrInet6{Addr: p.o.Source.As16()}
		} else {
			sa = &unix.SockaddrInet4{Addr: p.o.Source.Unmap().As4()}
		}
		if err := unix.Bind(fd, sa); err != nil {
			return fmt.Errorf("bind to %v: %w", p.o.Source, err)
		}
	}
	return nil
}

func (p *pinger) run(ctx context.Context) error {
	defer p.s.interruptBy(ctx)()
	start := time.Now()
	for seq := range p.o.Count {
		p.sentAt[seq] = time.Now() // before it goes: a round trip is never told shorter than it was
		err := p.s.send(p.request(seq), p.to)
		if cerr := ctx.Err(); cerr != nil {
			return ctxErr(ctx)
		}
		p.res.Sent++
		p.open++
		if err != nil {
			p.settle(seq)
			if p.res.SendErr == nil {
				p.res.SendErr = os.NewSyscallError("send", err)
			}
		}
		until := start.Add(time.Duration(seq+1) * p.o.Interval)
		last := seq == p.o.Count-1
		if last {
			until = time.Now().Add(p.o.Timeout)
		}
		if err := p.receive(ctx, until, last); err != nil {
			return err
		}
	}
	p.res.Lost = p.res.Sent - p.res.Received
	return nil
}

// receive takes in answers until the time given or, at the end, until there is nothing left to wait for.
func (p *pinger) receive(ctx context.Context, until time.Time, last bool) error {
	for !last || p.open > 0 {
		if err := p.s.f.SetReadDeadline(until); err != nil {
			return err
		}
		if ctx.Err() != nil { // it may have ended before the deadline above was set
			return ctxErr(ctx)
		}
		n, _, _, from, err := p.s.recv(p.buf, nil)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil {
				return ctxErr(ctx)
			}
			return nil
		case err != nil:
			return os.NewSyscallError("recvmsg", err)
		}
		p.take(p.buf[:n], sockaddrIP(from), time.Now())
	}
	return nil
}

// Echo messages have the same form in both versions: type, code, checksum, id, sequence number, payload.
const icmpHeader = 8

func (p *pinger) request(seq int) []byte {
	b := make([]byte, icmpHeader+p.o.Size)
	b[0] = 8
	if p.v6 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	p.fill(b[icmpHeader:], seq)
	if !p.v6 { // of ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(b[2:], ^onesSum(b))
	}
	return b
}

func (p *pinger) fill(b []byte, seq int) {
	for i := range b {
		b[i] = p.nonce[i%8] ^ byte(i) ^ byte(i>>8) ^ byte(seq)
	}
}

// onesSum is the Internet checksum's sum (RFC 1071).
func onesSum(b []byte) uint16 {
	var sum uint32
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// take looks at one ICMP message; most that are not ours come from other pings on the same host.
func (p *pinger) take(b []byte, from netip.Addr, at time.Time) {
	if !p.v6 { // raw IPv4 sockets deliver the IP header too
		if b = skipIPv4(b); b == nil {
			return
		}
	}
	if len(b) < icmpHeader {
		return
	}
	reply := byte(0)
	if p.v6 {
		reply = 129
	}
	if b[0] == reply {
		seq, ours := p.ours(b)
		if ours {
			p.takeReply(seq, b[icmpHeader:], from, at)
		}
		return
	}
	e := ICMPError{From: from, Type: b[0], Code: b[1]}
	if !e.TooBig() && !e.TimeExceeded() && !e.Unreachable() {
		return
	}
	quoted, request := b[icmpHeader:], byte(8)
	if p.v6 {
		quoted, request = skipIPv6(quoted), 128
	} else {
		quoted = skipIPv4(quoted)
	}
	if len(quoted) < icmpHeader || quoted[0] != request {
		return
	}
	seq, ours := p.ours(quoted)
	if !ours {
		return
	}
	e.Seq = seq
	if e.TooBig() {
		e.MTU = int(binary.BigEndian.Uint16(b[6:]))
		if p.v6 {
			e.MTU = int(binary.BigEndian.Uint32(b[4:]))
		}
	}
	p.res.Errors = append(p.res.Errors, e)
	p.settle(seq)
}

func (p *pinger) ours(echo []byte) (seq int, ok bool) {
	seq = int(binary.BigEndian.Uint16(echo[6:]))
	return seq, binary.BigEndian.Uint16(echo[4:]) == p.id && seq < p.res.Sent
}

func (p *pinger) takeReply(seq int, payload []byte, from netip.Addr, at time.Time) {
	want := make([]byte, p.o.Size)
	p.fill(want, seq)
	switch multicast := p.res.Dst.IsMulticast(); {
	case !bytes.Equal(payload, want):
		p.res.Corrupted++
	case !multicast && from.WithZone("") != p.res.Dst.WithZone(""):
		p.res.Strangers++
	case p.answered[seq]:
		p.res.Duplicates++
	default:
		p.answered[seq] = true
		p.res.Received++
		p.res.RTTs = append(p.res.RTTs, at.Sub(p.sentAt[seq]))
	}
	p.settle(seq)
}

func (p *pinger) settle(seq int) {
	if !p.settled[seq] {
		p.settled[seq] = true
		p.open--
	}
}

// skipIPv4 returns what follows the header, nil when that is not ICMP.
func skipIPv4(b []byte) []byte {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_ICMP {
		return nil
	}
	n := int(b[0]&15) * 4
	if n < 20 || n > len(b) {
		return nil
	}
	return b[n:]
}

// skipIPv6 returns what follows the header and a first fragment's, nil when that is not ICMPv6.
func skipIPv6(b []byte) []byte {
	if len(b) < 40 || b[0]>>4 != 6 {
		return nil
	}
	next, b := b[6], b[40:]
	if next == unix.IPPROTO_FRAGMENT {
		if len(b) < 8 || binary.BigEndian.Uint16(b[2:])>>3 != 0 {
			return nil
		}
		next, b = b[0], b[8:]
	}
	if next != unix.IPPROTO_ICMPV6 {
		return nil
	}
	return b
}
