package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PingPongOptions changes a round-trip measurement. The zero value is 1000 rounds of one byte over TCP.
type PingPongOptions struct {
	UDP    bool // instead of TCP
	Count  int  // rounds; default 1000
	Warmup int  // rounds before those, not counted; default 10
	Size   int  // bytes each way; default 1, at least 8 over UDP
	// CPUs pins a's and b's end to these two CPUs; the zero value pins neither. On one CPU the kernel hands
	// over from one end to the other without waking anybody, which hosts on a real network cannot.
	CPUs    [2]int
	Timeout time.Duration // after which a round counts as lost (UDP) or ends the measurement (TCP); default 1s

	// Port is the port that a talks to; default the one where b listens. Listen is where b listens; default
	// dst and Port or, when dst is not an address of b (a published port), any address and Port.
	Port   uint16
	Listen netip.AddrPort
}

// Latency is the distribution of round-trip times.
type Latency struct {
	Count, Lost                   int
	Min, Mean, P50, P90, P99, Max time.Duration
}

func newLatency(rtts []time.Duration, lost int) Latency {
	l := Latency{Count: len(rtts), Lost: lost}
	if len(rtts) == 0 {
		return l
	}
	slices.Sort(rtts)
	at := func(percent int) time.Duration { return rtts[min(len(rtts)-1, len(rtts)*percent/100)] }
	l.Min, l.P50, l.P90, l.P99, l.Max = rtts[0], at(50), at(90), at(99), rtts[len(rtts)-1]
	var sum time.Duration
	for _, d := range rtts {
		sum += d
	}
	l.Mean = sum / time.Duration(len(rtts))
	return l
}

// pingPongPoll is how often a blocked end looks whether it shall go on.
const pingPongPoll = 20 * time.Millisecond

// PingPong measures round trips between this host, a, and host b, whose address as a sees it is dst: a
// sends, b sends back, one at a time. Both ends use plain blocking system calls, so that what is measured
// is the network and not the scheduler of this program.
func (h *Host) PingPong(ctx context.Context, b *Host, dst netip.Addr, o PingPongOptions) (Latency, error) {
	if err := errors.Join(h.err, b.err); err != nil {
		return Latency{}, err
	}
	lat, err := h.pingPong(ctx, b, dst.Unmap(), o)
	if err != nil {
		return lat, fmt.Errorf("lab: ping-pong %s to %s at %v: %w", h.name, b.name, dst, err)
	}
	return lat, nil
}

func (h *Host) pingPong(ctx context.Context, b *Host, dst netip.Addr, o PingPongOptions) (lat Latency, err error) {
	if o.Count == 0 {
		o.Count = 1000
	}
	if o.Warmup == 0 {
		o.Warmup = 10
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	o.Size = max(o.Size, 1)
	if o.UDP {
		o.Size = max(o.Size, 8)
	}
	if o.Count < 0 || o.Count > 10_000_000 || o.Size > 65507 {
		return lat, fmt.Errorf("count %d, size %d: the limits are 10000000 and 65507", o.Count, o.Size)
	}
	connect := connectPingPongTCP
	if o.UDP {
		connect = connectPingPongUDP
	}
	ca, cb, err := connect(ctx, h, b, dst, o)
	if err != nil {
		return lat, err
	}
	defer ca.Close()
	defer cb.Close()

	done := make(chan struct{})
	var echo error
	var wg sync.WaitGroup
	err = blocking(ca, func(fda int) error {
		return blocking(cb, func(fdb int) error {
			wg.Go(func() {
				echo = onCPU(o.CPUs, 1, func() error { return echoBack(fdb, o, done) })
			})
			defer wg.Wait()
			defer close(done)
			return onCPU(o.CPUs, 0, func() (err error) {
				lat, err = rounds(ctx, fda, o)
				return err
			})
		})
	})
	return lat, errors.Join(err, echo)
}

// onCPU calls fn on a thread of its own, pinned to cpus[i], and returns what fn returns. It calls fn as it is
// when nothing is to be pinned.
func onCPU(cpus [2]int, i int, fn func() error) error {
	if cpus == [2]int{} {
		return fn()
	}
	result := make(chan error, 1)
	go func() { // ends with fn, and takes the thread with it
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(cpus[i])
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			result <- fmt.Errorf("pin to CPU %d: %w", cpus[i], err)
			return
		}
		result <- fn()
	}()
	return <-result
}

func connectPingPongTCP(ctx context.Context, a, b *Host, dst netip.Addr, o PingPongOptions) (ca, cb syscallConn, err error) {
	x, y, err := connectTCP(ctx, a, b, dst, o.Port, o.Listen)
	if err != nil {
		return nil, nil, err
	}
	return x, y, nil
}

func connectPingPongUDP(_ context.Context, a, b *Host, dst netip.Addr, o PingPongOptions) (ca, cb syscallConn, err error) {
	// The flow's sockets are what is needed, without the flow.
	x, y, to, err := udpPair(a, b, dst, o.Port, o.Listen)
	if err != nil {
		return nil, nil, err
	}
	err = blocking(x, func(fd int) error {
		sa, err := a.sockaddr(to)
		if err != nil {
			return err
		}
		return os.NewSyscallError("connect", unix.Connect(fd, sa))
	})
	if err != nil {
		x.Close()
		y.Close()
		return nil, nil, err
	}
	return x, y, nil
}

// syscallConn is a TCP or UDP socket of package net.
type syscallConn interface {
	syscall.Conn
	Close() error
}

var (
	_ syscallConn = (*net.TCPConn)(nil)
	_ syscallConn = (*net.UDPConn)(nil)
)

// blocking lends the descriptor, in blocking mode with a short time-out, to fn. From then on the connection
// is good for Close only.
func blocking(c syscallConn, fn func(fd int) error) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = rc.Control(func(ufd uintptr) {
		fd := int(ufd)
		tv := unix.NsecToTimeval(int64(pingPongPoll))
		if ferr = unix.SetNonblock(fd, false); ferr != nil {
			return
		}
		if ferr = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); ferr != nil {
			return
		}
		if ferr = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); ferr != nil {
			return
		}
		ferr = fn(fd)
	})
	return errors.Join(err, ferr)
}

// again tells errors after which one looks around and tries again: time-outs, signals of the runtime, and
// what ICMP reports of an earlier datagram.
func again(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) ||
		errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// echoBack is b's goroutine: started by pingPong, ended by done or, over TCP, by a's end of the stream.
func echoBack(fd int, o PingPongOptions, done <-chan struct{}) error {
	buf := make([]byte, o.Size)
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if o.UDP {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				err = unix.Sendto(fd, buf[:n], 0, from)
			}
			if err != nil && !again(err) {
				return os.NewSyscallError("echo", err)
			}
			continue
		}
		n, err := unix.Read(fd, buf)
		switch {
		case err == nil && n == 0:
			return nil
		case err == nil:
			err = writeAll(fd, buf[:n], done)
		}
		if err != nil && !again(err) {
			return os.NewSyscallError("echo", err)
		}
	}
}

func writeAll(fd int, b []byte, done <-chan struct{}) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !again(err) {
			return err
		}
		b = b[max(n, 0):]
		select {
		case <-done:
			return nil
		default:
		}
	}
	return nil
}

// rounds is a's side.
func rounds(ctx context.Context, fd int, o PingPongOptions) (Latency, error) {
	out, in := make([]byte, o.Size), make([]byte, o.Size)
	for i := range out {
		out[i] = byte(i)
	}
	rtts := make([]time.Duration, 0, o.Count)
	lost := 0
	for i := range o.Warmup + o.Count {
		if o.UDP {
			binary.BigEndian.PutUint64(out, uint64(i))
		} else {
			out[0] = byte(i)
		}
		start := time.Now()
		err := round(ctx, fd, out, in, o, start)
		rtt := time.Since(start)
		switch {
		case o.UDP && errors.Is(err, ErrTimeout) && ctx.Err() == nil:
			if i >= o.Warmup {
				lost++
			}
		case err != nil:
			return newLatency(rtts, lost), fmt.Errorf("round %d: %w", i, err)
		case i >= o.Warmup:
			rtts = append(rtts, rtt)
		}
	}
	return newLatency(rtts, lost), nil
}

// round sends out and waits for it to come back.
func round(ctx context.Context, fd int, out, in []byte, o PingPongOptions, start time.Time) error {
	if err := writeAll(fd, out, ctx.Done()); err != nil {
		return os.NewSyscallError("write", err)
	}
	for got := 0; got < len(in); {
		n, err := unix.Read(fd, in[got:])
		switch {
		case err == nil && n == 0:
			return errors.New("the connection ended")
		case err == nil && o.UDP:
			if n == len(in) && bytes.Equal(in, out) {
				return nil
			}
			if n >= 8 && !bytes.Equal(in[:8], out[:8]) {
				continue // the answer to a round given up
			}
			return ErrCorrupt
		case err == nil:
			got += n
		case !again(err):
			return os.NewSyscallError("read", err)
		case ctx.Err() != nil:
			return ctxErr(ctx)
		case time.Since(start) > o.Timeout:
			return ErrTimeout
		}
	}
	if !bytes.Equal(in, out) {
		return ErrCorrupt
	}
	return nil
}
