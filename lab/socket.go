package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a raw socket of some namespace with Go's deadlines.
type socket struct {
	f  *os.File
	rc syscall.RawConn
}

// openSocket opens a socket inside the namespace; setUp may be nil.
func (n *Namespace) openSocket(domain, typ, proto int, setUp func(fd int) error) (*socket, error) {
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if setUp != nil {
			err = setUp(fd)
		}
		return err
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket in "+n.name)
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &socket{f: f, rc: rc}, nil
}

// interruptBy makes a blocked receive or send return when ctx ends. Call the result when done with ctx.
func (s *socket) interruptBy(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = s.f.SetDeadline(time.Unix(1, 0)) })
}

func (s *socket) recv(p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	rerr := s.rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, from, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if rerr != nil {
		err = rerr
	}
	return n, oobn, flags, from, err
}

// send sends one packet; to may be nil on a bound socket.
func (s *socket) send(p []byte, to unix.Sockaddr) error {
	var err error
	werr := s.rc.Write(func(fd uintptr) bool {
		for {
			_, err = unix.SendmsgN(int(fd), p, nil, to, unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if werr != nil {
		return werr
	}
	return err
}

func (s *socket) close() error { return s.f.Close() }

// closeOnce is for owners that may close it twice.
func (s *socket) closeOnce() error {
	if err := s.f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// sockaddr turns an address into the kernel's form; a zone is looked up in this namespace.
func (n *Namespace) sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	ip := a.Addr().Unmap()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, nil
	}
	if !ip.IsValid() {
		return nil, errors.New("no address given")
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16()}
	if z := ip.Zone(); z != "" {
		err := n.withFD(func(int) error {
			l, err := n.nl.LinkByName(z)
			if err != nil {
				return fmt.Errorf("zone %s: %w", z, err)
			}
			sa.ZoneId = uint32(l.Attrs().Index)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return sa, nil
}

// sockaddrIP is the address in the kernel's form, without zone.
func sockaddrIP(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}
