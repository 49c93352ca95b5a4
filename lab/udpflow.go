package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// UDPFlowOptions changes a flow. The zero value sends 1000 datagrams of 100 bytes a second each way.
type UDPFlowOptions struct {
	Rate   int           // datagrams per second and direction; default 1000
	Size   int           // UDP payload bytes, at least 36; default 100
	OneWay bool          // only from a to b
	Settle time.Duration // how long Snapshot and Stop wait for datagrams under way; default 300ms

	// Port is the port that a sends to; default the one where b listens. Listen is where b listens; default
	// dst and Port or, when dst is not an address of b (a published port), any address and Port.
	Port   uint16
	Listen netip.AddrPort
}

func (o *UDPFlowOptions) fill() error {
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if o.Size == 0 {
		o.Size = 100
	}
	if o.Settle == 0 {
		o.Settle = 300 * time.Millisecond
	}
	if o.Rate < 1 || o.Rate > 1_000_000 || o.Size < flowHeader || o.Size > 65507 {
		return fmt.Errorf("rate %d, size %d: the limits are 1 to 1000000 a second and %d to 65507 bytes", o.Rate, o.Size, flowHeader)
	}
	return nil
}

// FlowStats is one phase of a flow, or all of it.
type FlowStats struct {
	Elapsed    time.Duration
	AtoB, BtoA DirectionStats
}

// Lost is the loss of both directions together.
func (s FlowStats) Lost() uint64 { return s.AtoB.Lost + s.BtoA.Lost }

// Err is nil when every datagram arrived once, in order and intact.
func (s FlowStats) Err() error {
	return errors.Join(s.AtoB.err("a to b"), s.BtoA.err("b to a"))
}

// DirectionStats counts the datagrams sent in a phase. Sent is Received plus Lost.
type DirectionStats struct {
	Sent, Received, Lost uint64
	Duplicated           uint64 // further copies
	Reordered            uint64 // arrived after a later one
	Corrupted            uint64 // arrived with other contents; lost as well
	Late                 uint64 // of an earlier phase, which counted them as lost
	SendErrors           uint64 // refused by the sender's kernel; lost as well
	Overrun              uint64 // dropped by the receiver's own full socket, which is no fault of the network; lost as well

	LongestGap time.Duration // longest time without an arrival, by the kernel's receive time; one that lasts counts up to the end of the phase
	GapAt      time.Time     // when it began
	SenderLate time.Duration // by how much the sender missed its schedule at worst: what a gap may owe to a busy machine
	MeanDelay  time.Duration // one way
	MaxDelay   time.Duration
}

func (d DirectionStats) err(dir string) error {
	switch {
	case d.Corrupted > 0:
		return fmt.Errorf("lab: %s: %d of %d datagrams: %w", dir, d.Corrupted, d.Sent, ErrCorrupt)
	case d.Lost > 0:
		return fmt.Errorf("lab: %s: %d of %d: %w", dir, d.Lost, d.Sent, ErrLost)
	case d.Duplicated > 0 || d.Reordered > 0:
		return fmt.Errorf("lab: %s: %d datagrams duplicated, %d out of order", dir, d.Duplicated, d.Reordered)
	}
	return nil
}

// UDPFlow is a stream of numbered, timestamped datagrams between two hosts: made by StartUDPFlow, looked at
// by Snapshot, ended by Stop.
type UDPFlow struct {
	o    UDPFlowOptions
	id   uint64
	a, b flowSide

	done   chan struct{} // closed when the senders shall end
	ready  chan struct{} // closed when the first answer is at a
	wg     sync.WaitGroup
	sends  sync.WaitGroup
	forget func() // takes it off the lab's list
	unhook func() bool

	stopOnce sync.Once
	stopErr  error
	haltOnce sync.Once

	snap struct { // one snapshot at a time
		sync.Mutex
		last  time.Time // start of the present phase
		began time.Time
		final *FlowStats
	}
}

// flowSide is one end: the socket, and the direction of which it receives.
type flowSide struct {
	conn *net.UDPConn
	pace *pacer
	peer atomic.Pointer[netip.AddrPort] // where to send to; b learns it from what arrives, NAT or not
	out  *flowDirection
	in   *flowDirection
}

// StartUDPFlow starts a flow between this host, a, and host b, whose address as a sees it is dst. It
// returns when datagrams get through both ways, so addresses are resolved and what is lost later is lost in
// the network. The flow lasts until Stop, until ctx ends or until the lab closes.
func (h *Host) StartUDPFlow(ctx context.Context, b *Host, dst netip.Addr, o UDPFlowOptions) (*UDPFlow, error) {
	if err := errors.Join(h.err, b.err); err != nil {
		return nil, err
	}
	f, err := newUDPFlow(h, b, dst.Unmap(), o)
	if err == nil {
		if err = f.handshake(ctx); err != nil {
			_ = f.Stop()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lab: udp flow %s to %s at %v: %w", h.name, b.name, dst, err)
	}
	f.forget = h.lab.OnClose("udp flow "+h.name+" to "+b.name, f.Stop)
	f.unhook = context.AfterFunc(ctx, f.halt)
	f.begin()
	return f, nil
}

func newUDPFlow(a, b *Host, dst netip.Addr, o UDPFlowOptions) (*UDPFlow, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	f := &UDPFlow{o: o, id: rand.Uint64(), done: make(chan struct{}), ready: make(chan struct{})}
	ab, ba := newFlowDirection(), newFlowDirection()
	f.a.out, f.a.in, f.b.out, f.b.in = ab, ba, ba, ab

	var to netip.AddrPort
	var err error
	if f.a.conn, f.b.conn, to, err = udpPair(a, b, dst, o.Port, o.Listen); err != nil {
		return nil, err
	}
	if err := errors.Join(f.a.prepare(), f.b.prepare()); err != nil {
		return nil, errors.Join(err, f.a.close(), f.b.close())
	}
	f.a.peer.Store(&to)
	f.wg.Go(func() { f.receive(&f.a, &f.b) })
	f.wg.Go(func() { f.receive(&f.b, &f.a) })
	return f, nil
}

func (s *flowSide) prepare() (err error) {
	s.pace, err = newPacer()
	return errors.Join(err, flowSocketOptions(s.conn))
}

func (s *flowSide) close() error {
	if s.pace != nil {
		s.pace.close()
	}
	return s.conn.Close()
}

// udpPair opens a socket on each host and tells where a reaches b's.
func udpPair(a, b *Host, dst netip.Addr, port uint16, listen netip.AddrPort) (ca, cb *net.UDPConn, to netip.AddrPort, err error) {
	network := "udp4"
	if dst.Is6() {
		network = "udp6"
	}
	at := listen
	if !at.IsValid() {
		at = netip.AddrPortFrom(dst, port)
	}
	cb, err = listenUDP(b, network, at)
	if errors.Is(err, unix.EADDRNOTAVAIL) && !listen.IsValid() {
		cb, err = listenUDP(b, network, netip.AddrPortFrom(unspecified(dst), port))
	}
	if err != nil {
		return nil, nil, to, err
	}
	if ca, err = listenUDP(a, network, netip.AddrPortFrom(unspecified(dst), 0)); err != nil {
		cb.Close()
		return nil, nil, to, err
	}
	if port == 0 {
		port = cb.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	return ca, cb, netip.AddrPortFrom(dst, port), nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func listenUDP(h *Host, network string, at netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: listen on %v: %w", h.name, at, err)
	}
	return c, nil
}

func flowSocketOptions(c *net.UDPConn) error {
	_ = c.SetReadBuffer(4 << 20) // clamped to rmem_max: overruns are counted
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Control(func(fd uintptr) {
		// The kernel's receive time: how late this program wakes up is not the network's delay.
		if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); serr != nil {
			serr = fmt.Errorf("SO_TIMESTAMPNS: %w", serr)
			return
		}
		if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); serr != nil {
			serr = fmt.Errorf("SO_RXQ_OVFL: %w", serr)
		}
	})
	return errors.Join(err, serr)
}

// handshake sends greetings until one was answered.
func (f *UDPFlow) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, eventuallyLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var lastErr error
	for {
		if err := f.put(&f.a, flowHello, dirAB, 0, make([]byte, f.o.Size)); err != nil {
			lastErr = err
		}
		select {
		case <-f.ready:
			return nil
		case <-ctx.Done():
			if lastErr != nil {
				return fmt.Errorf("no datagram got through: %w: %w", ctxErr(ctx), lastErr)
			}
			return fmt.Errorf("no datagram got through: %w", ctxErr(ctx))
		case <-tick.C:
		}
	}
}

func (f *UDPFlow) begin() {
	f.snap.Lock()
	f.snap.began = time.Now()
	f.snap.last = f.snap.began
	f.snap.Unlock()
	f.a.in.open(f.snap.began)
	f.b.in.open(f.snap.began)
	var first sync.WaitGroup // however busy the machine is, a flow that has begun has sent
	sender := func(s *flowSide, dir byte) {
		first.Add(1)
		f.sends.Go(func() { f.send(s, dir, first.Done) })
	}
	sender(&f.a, dirAB)
	if !f.o.OneWay {
		sender(&f.b, dirBA)
	}
	first.Wait()
}

// A datagram: magic 0-4, kind 4, direction 5, flow id 8-16, sequence number 16-24, time of sending in Unix
// nanoseconds 24-32, CRC-32C of all the rest 32-36, filling.
const (
	flowMagic  = 0x564c5546 // "VLUF"
	flowHeader = 36

	flowHello = 1
	flowData  = 2

	dirAB = 0
	dirBA = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func flowCRC(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:32], castagnoli), castagnoli, b[flowHeader:])
}

// put sends one datagram; b is room for it, whose filling stays as it is.
func (f *UDPFlow) put(s *flowSide, kind, dir byte, seq uint64, b []byte) error {
	to := s.peer.Load()
	if to == nil {
		return errors.New("nobody to send to yet")
	}
	binary.BigEndian.PutUint32(b[0:], flowMagic)
	b[4], b[5] = kind, dir
	binary.BigEndian.PutUint64(b[8:], f.id)
	binary.BigEndian.PutUint64(b[16:], seq)
	binary.BigEndian.PutUint64(b[24:], uint64(time.Now().UnixNano()))
	binary.BigEndian.PutUint32(b[32:], flowCRC(b))
	_, err := s.conn.WriteToUDPAddrPort(b, *to)
	return err
}

// send is a sender's goroutine: started by begin, ended by done. It calls begun
// once, after its first datagram or without any.
func (f *UDPFlow) send(s *flowSide, dir byte, begun func()) {
	begun = sync.OnceFunc(begun)
	defer begun()
	b := make([]byte, f.o.Size)
	for i := flowHeader; i < len(b); i++ {
		b[i] = byte(i * 7)
	}
	start := monotonic()
	for seq := uint64(0); ; seq++ {
		due := start + time.Duration(float64(seq)*float64(time.Second)/float64(f.o.Rate))
		if !s.pace.until(due, f.done) {
			return
		}
		storeMax(&s.out.senderLate, int64(monotonic()-due))
		s.out.next.Store(seq + 1)
		if err := f.put(s, flowData, dir, seq, b); err != nil {
			s.out.sendErrors.Add(1)
		}
		begun()
	}
}

// receive is a receiver's goroutine: started by newUDPFlow, ended by closing the socket.
func (f *UDPFlow) receive(s, other *flowSide) {
	b, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		n, oobn, _, from, err := s.conn.ReadMsgUDPAddrPort(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about what was sent: loss shows in the counters
		}
		at, overruns := receiveMeta(oob[:oobn])
		f.take(s, other, b[:n], at, overruns, from)
	}
}

// receiveMeta reads the kernel's receive time and its count of datagrams that found the socket full.
func receiveMeta(oob []byte) (at int64, overruns uint32) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_SOCKET {
			switch {
			case h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
				at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
			case h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
				overruns = binary.NativeEndian.Uint32(data)
			}
		}
		oob = rest
	}
	if at == 0 {
		at = time.Now().UnixNano()
	}
	return at, overruns
}

func (f *UDPFlow) take(s, other *flowSide, b []byte, at int64, overruns uint32, from netip.AddrPort) {
	in := s.in
	dir := byte(dirBA)
	if s == &f.b {
		dir = dirAB
	}
	// Only this flow's peer knows the port, so what is not intact is ours and spoiled.
	if len(b) != f.o.Size || binary.BigEndian.Uint32(b[32:]) != flowCRC(b) {
		in.corrupted()
		return
	}
	if binary.BigEndian.Uint32(b) != flowMagic || binary.BigEndian.Uint64(b[8:]) != f.id || b[5] != dir {
		return // an earlier flow's straggler, or a reflection
	}
	if dir == dirAB {
		if p := s.peer.Load(); p == nil || *p != from {
			s.peer.Store(&from)
		}
	}
	switch b[4] {
	case flowHello:
		if dir == dirAB {
			_ = f.put(s, flowHello, dirBA, 0, make([]byte, f.o.Size)) // a asks again when it gets lost
			return
		}
		select {
		case <-f.ready:
		default:
			close(f.ready) // only this goroutine does
		}
	case flowData:
		in.arrived(binary.BigEndian.Uint64(b[16:]), int64(binary.BigEndian.Uint64(b[24:])), at, overruns)
	}
}

// flowDirection counts what goes one way.
type flowDirection struct {
	next       atomic.Uint64 // sequence number of the datagram to be sent next
	sendErrors atomic.Uint64
	senderLate atomic.Int64

	mu struct {
		sync.Mutex
		seen     []uint64 // one bit per sequence number
		start    uint64   // first of the present phase
		bound    uint64   // first of the next phase while a snapshot waits, else MaxUint64
		boundAt  int64    // when that was decided
		cur, nxt phase
		total    phase
		highest  uint64
		any      bool
		lastAt   int64
		overruns uint32
		errs     uint64 // of sendErrors, those reported
	}
}

type phase struct {
	received, duplicated, reordered, corrupted, late, overrun uint64
	gap, gapAt                                                int64
	delaySum, delayMax                                        int64
	senderLate                                                int64
}

func newFlowDirection() *flowDirection {
	d := &flowDirection{}
	d.mu.bound = math.MaxUint64
	return d
}

// open says when the first gap begins.
func (d *flowDirection) open(at time.Time) {
	d.mu.Lock()
	d.mu.lastAt = at.UnixNano()
	d.mu.Unlock()
}

func (d *flowDirection) corrupted() {
	d.mu.Lock()
	d.mu.cur.corrupted++
	d.mu.Unlock()
}

func (d *flowDirection) arrived(seq uint64, sent, at int64, overruns uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &d.mu
	p := &m.cur
	if seq >= m.bound {
		p = &m.nxt
	}
	if overruns != 0 {
		n := uint64(overruns - m.overruns) // the kernel's counter wraps, and so does this
		m.overruns = overruns
		if seq >= m.bound { // those before it may be of the phase that has ended
			old := min(n, m.bound-m.start-min(m.bound-m.start, m.cur.received+m.cur.overrun))
			m.cur.overrun, n = m.cur.overrun+old, n-old
		}
		p.overrun += n
	}
	p.silent(m.lastAt, at)
	if seq >= m.bound {
		m.cur.silent(m.lastAt, m.boundAt) // the phase that ended meanwhile has its part of it
	}
	m.lastAt = max(m.lastAt, at)
	for uint64(len(m.seen)) <= seq/64 {
		m.seen = append(m.seen, 0)
	}
	if bit := uint64(1) << (seq % 64); m.seen[seq/64]&bit != 0 {
		p.duplicated++
		return
	} else {
		m.seen[seq/64] |= bit
	}
	if m.any && seq < m.highest {
		p.reordered++
	}
	m.highest, m.any = max(m.highest, seq), true
	if seq < m.start {
		p.late++
		return
	}
	p.received++
	p.delaySum += max(0, at-sent)
	p.delayMax = max(p.delayMax, at-sent)
}

// mark ends the present phase at what has been sent so far.
func (d *flowDirection) mark(at time.Time) {
	d.mu.Lock()
	d.mu.bound, d.mu.boundAt = d.next.Load(), at.UnixNano()
	d.mu.Unlock()
}

func (d *flowDirection) complete() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.cur.received == d.mu.bound-d.mu.start
}

// cut closes the phase that mark ended and returns it.
func (d *flowDirection) cut() DirectionStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &d.mu
	m.cur.senderLate = d.senderLate.Swap(0)
	m.cur.silent(m.lastAt, m.boundAt)
	s := m.cur.stats(m.bound - m.start)
	errs := d.sendErrors.Load()
	s.SendErrors, m.errs = errs-m.errs, errs
	m.total.add(m.cur)
	m.cur, m.nxt = m.nxt, phase{}
	m.start, m.bound = m.bound, math.MaxUint64
	return s
}

// whole is the sum of all phases; what came late did come.
func (d *flowDirection) whole() DirectionStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.mu.total
	t.received, t.late = t.received+t.late, 0
	s := t.stats(d.mu.start)
	s.SendErrors = d.mu.errs
	return s
}

// silent notes that nothing came in between.
func (p *phase) silent(from, to int64) {
	if to-from > p.gap {
		p.gap, p.gapAt = to-from, from
	}
}

func (p *phase) add(q phase) {
	p.received += q.received
	p.duplicated += q.duplicated
	p.reordered += q.reordered
	p.corrupted += q.corrupted
	p.late += q.late
	p.overrun += q.overrun
	p.delaySum += q.delaySum
	p.delayMax = max(p.delayMax, q.delayMax)
	p.senderLate = max(p.senderLate, q.senderLate)
	if q.gap > p.gap {
		p.gap, p.gapAt = q.gap, q.gapAt
	}
}

func (p phase) stats(sent uint64) DirectionStats {
	s := DirectionStats{
		Sent: sent, Received: p.received, Lost: sent - p.received,
		Duplicated: p.duplicated, Reordered: p.reordered, Corrupted: p.corrupted, Late: p.late, Overrun: p.overrun,
		LongestGap: time.Duration(p.gap), SenderLate: time.Duration(p.senderLate), MaxDelay: time.Duration(p.delayMax),
	}
	if p.gap > 0 {
		s.GapAt = time.Unix(0, p.gapAt)
	}
	if p.received > 0 {
		s.MeanDelay = time.Duration(p.delaySum / int64(p.received))
	}
	return s
}

// Snapshot ends a phase (baseline, failover, fail-back …) and begins the next, while the flow goes on. The
// phase is what was sent since the last snapshot; datagrams under way are waited for, at most as long as
// the Settle option says or until ctx ends.
func (f *UDPFlow) Snapshot(ctx context.Context) FlowStats {
	f.snap.Lock()
	defer f.snap.Unlock()
	if f.snap.final != nil {
		return FlowStats{}
	}
	return f.snapshotLocked(ctx)
}

// snapshotLocked needs f.snap.
func (f *UDPFlow) snapshotLocked(ctx context.Context) FlowStats {
	ctx, cancel := context.WithTimeout(ctx, f.o.Settle)
	defer cancel()
	ab, ba := f.a.out, f.b.out
	now := time.Now()
	ab.mark(now)
	ba.mark(now)
	s := FlowStats{Elapsed: now.Sub(f.snap.last)}
	f.snap.last = now
	// What has not come when the time is up is lost: the counters say so.
	_ = Eventually(ctx, "datagrams under way", func() error {
		if !ab.complete() || !ba.complete() {
			return errNotYet
		}
		return nil
	})
	s.AtoB, s.BtoA = ab.cut(), ba.cut()
	return s
}

// halt ends the senders; it may be called again.
func (f *UDPFlow) halt() { f.haltOnce.Do(func() { close(f.done) }) }

// Stop ends the flow, waits for datagrams under way, and lets go of the sockets. It may be called again.
func (f *UDPFlow) Stop() error {
	f.stopOnce.Do(func() {
		f.halt()
		f.sends.Wait()
		f.snap.Lock()
		f.snapshotLocked(context.Background())
		f.snap.final = &FlowStats{Elapsed: time.Since(f.snap.began), AtoB: f.a.out.whole(), BtoA: f.b.out.whole()}
		f.snap.Unlock()
		f.stopErr = errors.Join(f.a.close(), f.b.close())
		f.wg.Wait()
		if f.forget != nil {
			f.unhook()
			f.forget()
		}
	})
	return f.stopErr
}

// Total stops the flow and returns all phases together.
func (f *UDPFlow) Total() (FlowStats, error) {
	err := f.Stop()
	f.snap.Lock()
	defer f.snap.Unlock()
	return *f.snap.final, err
}

func storeMax(a *atomic.Int64, v int64) {
	for {
		old := a.Load()
		if v <= old || a.CompareAndSwap(old, v) {
			return
		}
	}
}
