package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// TCPBulkOptions changes a bulk stream. The zero value sends from a to b as fast as it goes.
type TCPBulkOptions struct {
	Rate   int64 // bytes per second and direction; 0 means no limit
	Duplex bool  // also from b to a, on the same connection

	// Port is the port that a connects to; default the one where b listens. Listen is where b listens;
	// default dst and Port or, when dst is not an address of b (a published port), any address and Port.
	Port   uint16
	Listen netip.AddrPort
}

// TCPStats is a bulk stream, or the part of it since the last Snapshot.
type TCPStats struct {
	Elapsed    time.Duration
	AtoB, BtoA TCPDirection
	Err        error // what ended the connection before Stop did; nil while it lives
}

// Survived tells whether the connection was still whole at the end. Of a stopped stream it means that every
// byte sent arrived intact.
func (s TCPStats) Survived() bool { return s.Err == nil }

// TCPDirection is one direction of a bulk stream.
type TCPDirection struct {
	Sent         uint64 // bytes taken by the sender's kernel
	Received     uint64 // bytes read and found right
	LongestStall time.Duration
	StallAt      time.Time     // when it began
	Retransmits  uint32        // segments sent again, by TCP_INFO
	SRTT         time.Duration // smoothed round trip, by TCP_INFO; never a sum
}

// BitsPerSecond is the rate at which contents arrived.
func (s TCPStats) BitsPerSecond() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(s.AtoB.Received+s.BtoA.Received) * 8 / s.Elapsed.Seconds()
}

// The stream's contents are a buffer of random bytes said over and over. Its length is a prime, so that a
// block of any round length that got lost, doubled or moved shows.
const (
	patternPeriod = 1<<16 - 15 // 65521
	bulkChunk     = 1 << 17
)

var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, patternPeriod+bulkChunk)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b[:patternPeriod]) // cannot fail
	for n := patternPeriod; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
	return b
})

// patternAt is what n bytes of the stream from pos on shall be; n is at most bulkChunk.
func patternAt(pos uint64, n int) []byte {
	from := int(pos % patternPeriod)
	return pattern()[from : from+n]
}

// TCPBulk is one TCP connection full of checked data: made by StartTCPBulk, looked at by Snapshot, ended by
// Stop.
type TCPBulk struct {
	o    TCPBulkOptions
	a, b *net.TCPConn
	ab   bulkDirection
	ba   bulkDirection

	done     chan struct{} // closed when the senders shall end
	doneOnce sync.Once
	wg       sync.WaitGroup
	forget   func()
	unhook   func() bool   // no longer listens to the context; false when that has ended
	broken   chan struct{} // closed when the end of the context has been dealt with
	began    time.Time

	stopOnce sync.Once
	final    TCPStats

	mu   sync.Mutex
	err  error    // the first failure
	last TCPStats // totals at the last snapshot
}

// StartTCPBulk connects this host, a, to host b, whose address as a sees it is dst, and starts sending. It
// returns when the connection stands. The stream lasts until Stop, until ctx ends (which breaks it off) or
// until the lab closes.
func (h *Host) StartTCPBulk(ctx context.Context, b *Host, dst netip.Addr, o TCPBulkOptions) (*TCPBulk, error) {
	if err := errors.Join(h.err, b.err); err != nil {
		return nil, err
	}
	ca, cb, err := connectTCP(ctx, h, b, dst.Unmap(), o.Port, o.Listen)
	if err != nil {
		return nil, fmt.Errorf("lab: tcp bulk %s to %s at %v: %w", h.name, b.name, dst, err)
	}
	s := &TCPBulk{o: o, a: ca, b: cb, done: make(chan struct{}), broken: make(chan struct{}), began: time.Now()}
	s.forget = h.lab.OnClose("tcp bulk "+h.name+" to "+b.name, func() error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // a lab that closes does not wait for the data
		_, _ = s.Stop(ctx)
		return nil
	})
	s.unhook = context.AfterFunc(ctx, func() {
		defer close(s.broken)
		s.breakOff(context.Cause(ctx))
	})
	s.ab.start(s, ca, cb)
	if o.Duplex {
		s.ba.start(s, cb, ca)
	}
	return s, nil
}

// connectTCP makes one connection and returns both of its ends.
func connectTCP(ctx context.Context, a, b *Host, dst netip.Addr, port uint16, listen netip.AddrPort) (ca, cb *net.TCPConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, eventuallyLimit)
	defer cancel()
	network := "tcp4"
	if dst.Is6() {
		network = "tcp6"
	}
	at := listen
	if !at.IsValid() {
		at = netip.AddrPortFrom(dst, port)
	}
	ln, err := listenTCP(ctx, b, network, at)
	if errors.Is(err, unix.EADDRNOTAVAIL) && !listen.IsValid() {
		ln, err = listenTCP(ctx, b, network, netip.AddrPortFrom(unspecified(dst), port))
	}
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if port == 0 {
		port = ln.Addr().(*net.TCPAddr).AddrPort().Port()
	}

	var d net.Dialer
	d.SetMultipathTCP(false)
	err = a.Do(func() error {
		c, err := d.DialContext(ctx, network, netip.AddrPortFrom(dst, port).String())
		if err == nil {
			ca = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", a.name, err)
	}
	cb, err = acceptOurs(ctx, ln, ca)
	if err != nil {
		ca.Close()
		return nil, nil, fmt.Errorf("%s: accept: %w", b.name, err)
	}
	return ca, cb, nil
}

func listenTCP(ctx context.Context, h *Host, network string, at netip.AddrPort) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = lc.Listen(ctx, network, at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: listen on %v: %w", h.name, at, err)
	}
	return ln.(*net.TCPListener), nil
}

// acceptOurs accepts the connection whose other end is ca: behind address translation only its contents
// tell, so a number goes first.
func acceptOurs(ctx context.Context, ln *net.TCPListener, ca *net.TCPConn) (*net.TCPConn, error) {
	token := make([]byte, 16)
	binary.BigEndian.PutUint64(token, rand.Uint64())
	binary.BigEndian.PutUint64(token[8:], rand.Uint64())
	if _, err := ca.Write(token); err != nil { // fits into any socket buffer
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := ln.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) })()
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return nil, err
		}
		got := make([]byte, len(token))
		_ = c.SetDeadline(deadline)
		if _, err := io.ReadFull(c, got); err == nil && bytes.Equal(got, token) {
			return c, c.SetDeadline(time.Time{})
		}
		c.Close() // a stranger
	}
}

// bulkDirection is one direction: a goroutine that sends and one that receives.
type bulkDirection struct {
	on   bool
	from *net.TCPConn

	mu      sync.Mutex
	sent    uint64
	got     uint64
	lastAt  time.Time
	stall   time.Duration
	stallAt time.Time
	ended   bool // the receiver has seen the end
}

func (d *bulkDirection) start(s *TCPBulk, from, to *net.TCPConn) {
	d.on, d.from, d.lastAt = true, from, s.began
	s.wg.Go(func() { s.fail(d.send(s, from)) })
	s.wg.Go(func() { s.fail(d.receive(to)) })
}

// send runs until done is closed, then closes its half of the connection.
func (d *bulkDirection) send(s *TCPBulk, c *net.TCPConn) error {
	chunk := bulkChunk
	var pace *pacer
	if s.o.Rate > 0 { // some hundred steps a second make an even stream
		chunk = int(min(bulkChunk, max(1448, s.o.Rate/200)))
		var err error
		if pace, err = newPacer(); err != nil {
			return err
		}
		defer pace.close()
	}
	start := monotonic()
	for pos := uint64(0); ; {
		if pace != nil {
			due := start + time.Duration(float64(pos)/float64(s.o.Rate)*float64(time.Second))
			if !pace.until(due, s.done) {
				break
			}
		}
		select {
		case <-s.done:
			return c.CloseWrite()
		default:
		}
		n, err := c.Write(patternAt(pos, chunk))
		pos += uint64(n)
		d.mu.Lock()
		d.sent = pos
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// receive checks everything up to the sender's end.
func (d *bulkDirection) receive(c *net.TCPConn) error {
	buf := make([]byte, bulkChunk)
	for pos := uint64(0); ; {
		n, err := c.Read(buf)
		if n > 0 {
			if want := patternAt(pos, n); !bytes.Equal(buf[:n], want) {
				return fmt.Errorf("%w: from byte %d on", ErrCorrupt, pos+firstDifference(buf[:n], want))
			}
			pos += uint64(n)
			d.progress(pos)
		}
		if errors.Is(err, io.EOF) {
			d.mu.Lock()
			d.ended = true
			d.mu.Unlock()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func firstDifference(a, b []byte) uint64 {
	for i := range a {
		if a[i] != b[i] {
			return uint64(i)
		}
	}
	return uint64(len(a))
}

func (d *bulkDirection) progress(pos uint64) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = pos
	if stall := now.Sub(d.lastAt); stall > d.stall {
		d.stall, d.stallAt = stall, d.lastAt
	}
	d.lastAt = now
}

// stats returns the totals so far and begins a new search for the longest stall.
func (d *bulkDirection) stats() TCPDirection {
	if !d.on {
		return TCPDirection{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t := TCPDirection{Sent: d.sent, Received: d.got, LongestStall: d.stall, StallAt: d.stallAt}
	if now := time.Since(d.lastAt); now > d.stall && !d.ended { // a stall that still lasts
		t.LongestStall, t.StallAt = now, d.lastAt
	}
	d.stall, d.stallAt = 0, time.Time{}
	if info, err := tcpInfo(d.from); err == nil {
		t.Retransmits, t.SRTT = info.Total_retrans, time.Duration(info.Rtt)*time.Microsecond
	}
	return t
}

func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info, errors.Join(cerr, err)
}

// fail keeps the first failure and ends both directions: half a stream would wait for ever.
func (s *TCPBulk) fail(err error) {
	if err != nil {
		s.breakOff(err)
	}
}

func (s *TCPBulk) breakOff(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.halt()
	past := time.Unix(1, 0)
	_ = s.a.SetDeadline(past) // closed already is as good
	_ = s.b.SetDeadline(past)
}

func (s *TCPBulk) halt() { s.doneOnce.Do(func() { close(s.done) }) }

// Snapshot returns what happened since the last one, while the stream goes on: a phase (baseline, failover,
// fail-back …). A stopped stream has no further phases.
func (s *TCPBulk) Snapshot() TCPStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.totalsLocked()
	p := t
	p.Elapsed -= s.last.Elapsed
	p.AtoB.since(s.last.AtoB)
	p.BtoA.since(s.last.BtoA)
	t.AtoB.keepLonger(s.last.AtoB)
	t.BtoA.keepLonger(s.last.BtoA)
	s.last = t
	return p
}

func (s *TCPBulk) totalsLocked() TCPStats {
	return TCPStats{Elapsed: time.Since(s.began), AtoB: s.ab.stats(), BtoA: s.ba.stats(), Err: s.err}
}

func (d *TCPDirection) since(before TCPDirection) {
	d.Sent -= before.Sent
	d.Received -= before.Received
	d.Retransmits -= min(before.Retransmits, d.Retransmits)
}

func (d *TCPDirection) keepLonger(before TCPDirection) {
	if before.LongestStall > d.LongestStall {
		d.LongestStall, d.StallAt = before.LongestStall, before.StallAt
	}
	d.Retransmits = max(d.Retransmits, before.Retransmits)
}

// Stop ends the stream in good order: the senders close their half, the receivers read to the end. It waits
// for that until ctx ends (at most ten seconds when it has no deadline), breaks the connection off then, and
// returns the totals; the error is that of the stream. It may be called again.
func (s *TCPBulk) Stop(ctx context.Context) (TCPStats, error) {
	s.stopOnce.Do(func() { s.stop(ctx) })
	return s.final, s.final.Err
}

func (s *TCPBulk) stop(ctx context.Context) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventuallyLimit)
		defer cancel()
	}
	if !s.unhook() {
		<-s.broken
	}
	s.halt()
	unhook := context.AfterFunc(ctx, func() { s.breakOff(fmt.Errorf("stop: %w", ctxErr(ctx))) })
	s.wg.Wait()
	unhook()

	s.mu.Lock()
	t := s.totalsLocked()
	t.AtoB.keepLonger(s.last.AtoB)
	t.BtoA.keepLonger(s.last.BtoA)
	if t.Err == nil && (t.AtoB.Sent != t.AtoB.Received || t.BtoA.Sent != t.BtoA.Received) {
		t.Err = fmt.Errorf("lab: tcp bulk: %w: sent %d and %d bytes, received %d and %d",
			ErrLost, t.AtoB.Sent, t.BtoA.Sent, t.AtoB.Received, t.BtoA.Received)
	}
	s.final = t
	s.mu.Unlock()
	s.a.Close()
	s.b.Close()
	s.forget()
}
