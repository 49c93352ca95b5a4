package netdev_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
)

// byteSource takes single bytes off a socket, as a device's queue.
type byteSource struct {
	fd     int
	got    chan byte
	asleep chan struct{} // of one: it went to sleep
	fail   error         // on the byte 'x'
	faults int
}

func (s *byteSource) Receive() (int, error) {
	var b [1]byte
	n, err := unix.Read(s.fd, b[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, err
	case n == 1 && b[0] == 'x':
		return 0, s.fail
	}
	s.got <- b[0]
	return 1, nil
}

func (s *byteSource) Fault() error { s.faults++; return nil }

func (s *byteSource) Sleep() {
	select {
	case s.asleep <- struct{}{}:
	default:
	}
}

func newByteSource(t *testing.T) (s *byteSource, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &byteSource{fd: fds[0], got: make(chan byte, 100), asleep: make(chan struct{}, 1), fail: errors.New("broken")}, fds[1]
}

func TestLoop(t *testing.T) {
	lab.CheckLeaks(t)
	s, peer := newByteSource(t)
	l, err := netdev.NewLoop(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	send := func(b byte) {
		t.Helper()
		if _, err := unix.Write(peer, []byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 50 {
		l.Ready()
		done := make(chan error, 1)
		go func() { done <- l.Run(s) }()
		if round%2 == 0 {
			<-s.asleep // so that the first byte has to wake it
		}
		for b := byte('a'); b < 'k'; b++ {
			send(b)
			if got := <-s.got; got != b {
				t.Fatalf("%c, want %c", got, b)
			}
		}
		l.Stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// Stopped before it has begun.
	l.Ready()
	l.Stop()
	if err := l.Run(s); err != nil {
		t.Error(err)
	}
	l.Ready()
	send('x')
	if err := l.Run(s); !errors.Is(err, s.fail) {
		t.Errorf("%v, want the source's error", err)
	}
}
