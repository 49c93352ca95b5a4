package netdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	// watchBuffer takes the kernel's largest link message; a dump comes in
	// pieces of at most 32 KiB.
	watchBuffer = 64 << 10
	// watchSocketBuffer is asked for; the kernel may give less. What does not
	// fit comes as ENOBUFS and costs a dump.
	watchSocketBuffer = 1 << 20

	// How long to wait before the socket is opened once more, at first and at
	// most.
	watchRetry    = 100 * time.Millisecond
	watchRetryMax = 5 * time.Second
)

// LinkInfo is the state of one network interface.
type LinkInfo struct {
	Name    string
	Index   int
	Kind    string // "veth", "tun", …; empty for hardware
	Up      bool   // administratively (IFF_UP)
	Running bool   // up, and the layer below is too (IFF_LOWER_UP and IFF_RUNNING)
	MAC     ndiscore.MAC
	MTU     int

	// Deleted: the interface is gone from this namespace, and this is the last
	// that is heard of it. With Moved it lives on in another one, known here by
	// the id MovedTo, there as number MovedIndex (0 if the kernel does not say).
	Deleted    bool
	Moved      bool
	MovedTo    int
	MovedIndex int

	// Lost says why the interface cannot be followed at the moment; the rest is
	// what was known before. Empty again when it can.
	Lost string
}

// Watchers hands out one Watcher per network namespace in use. The zero value
// is ready.
type Watchers struct {
	mu   sync.Mutex
	open map[namespaceID]*Watcher
}

// Get gives the namespace's Watcher, started if nobody else uses it. Release it.
func (s *Watchers) Get(ns *Namespace) (*Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.open[ns.id]; w != nil {
		w.users++
		return w, nil
	}
	w, err := startWatcher(s, ns)
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = make(map[namespaceID]*Watcher)
	}
	s.open[ns.id] = w
	return w, nil
}

// Watcher follows the links of one network namespace by rtnetlink. Its state is
// a dump plus the events since; when the kernel says that events were lost, it
// dumps again and tells its subscribers of the differences. When its socket
// fails it opens another one, and says meanwhile that it knows nothing.
type Watcher struct {
	registry *Watchers
	users    int // guarded by registry.mu

	ns      *Namespace
	connect func(*Namespace) (*os.File, error) // opens a socket there; a test's own
	stopped chan struct{}                      // closed when the goroutine has ended
	kick    chan struct{}                      // of one: interrupts a wait without a socket

	// Requests to the goroutine: it owns everything below.
	mu     sync.Mutex
	asked  []func()
	closed bool
	sock   *os.File // nil while there is none; only the goroutine sets it

	raw     syscall.RawConn // of sock
	failed  int             // times in a row that the socket failed
	links   map[int]*link
	byName  map[string]*link
	awaits  map[*await]struct{}
	dumping uint32           // number of the dump under way, 0 when none
	touched map[int]struct{} // what events told of since it was asked for
	seq     uint32
	stale   bool // this dump is not to be trusted: dump again when it is done
	err     error
	buf     []byte
}

// link is the watcher's knowledge of one interface and who wants to hear of it.
type link struct {
	LinkInfo
	seen uint32 // number of the last dump that listed it, or that ran when an event told of it
	subs []*Subscription
}

type await struct {
	match func(LinkInfo) bool
	found chan LinkInfo // of one
}

// Subscription is one interface followed by one callback.
type Subscription struct {
	w    *Watcher
	link *link // nil once deleted; the goroutine's
	call func(LinkInfo)
}

func startWatcher(s *Watchers, ns *Namespace) (*Watcher, error) {
	own, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		registry: s,
		users:    1,
		ns:       own,
		connect:  connectLinks,
		stopped:  make(chan struct{}),
		kick:     make(chan struct{}, 1),
		links:    make(map[int]*link),
		byName:   make(map[string]*link),
		awaits:   make(map[*await]struct{}),
		touched:  make(map[int]struct{}),
		buf:      make([]byte, watchBuffer),
	}
	if err := w.open(); err != nil {
		own.Close()
		return nil, err
	}
	go w.run() // ends in Release; blocks on the netlink socket
	return w, nil
}

// connectLinks opens a netlink socket in ns that hears of its links.
func connectLinks(ns *Namespace) (*os.File, error) {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", ns, err)
	}
	// Best effort: with a small buffer there are more dumps.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchSocketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchSocketBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for link events in %s: %w", ns, err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// Release gives the watcher back; the last user's release ends it. Not from a
// callback.
func (w *Watcher) Release() {
	w.registry.mu.Lock()
	w.users--
	last := w.users == 0
	if last {
		delete(w.registry.open, w.ns.id)
	}
	w.registry.mu.Unlock()
	if !last {
		return
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake()
	<-w.stopped
	w.ns.Close()
}

// Subscribe follows the interface that has this name now, also when it is
// renamed. call is called at once with its state, then with each change, and
// again when events were lost, on the watcher's goroutine; it must not block.
// ErrDeviceAbsent when there is no such interface.
func (w *Watcher) Subscribe(name string, call func(LinkInfo)) (*Subscription, error) {
	s := &Subscription{w: w, call: call}
	found := false
	err := w.do(func() {
		l := w.byName[name]
		if l == nil {
			return
		}
		found, s.link = true, l
		l.subs = append(l.subs, s)
		call(l.LinkInfo)
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, ndiscore.ErrDeviceAbsent
	}
	return s, nil
}

// Close ends the subscription. When it returns the callback is not running and
// will not be called again. Not from a callback.
func (s *Subscription) Close() {
	// An error says that the goroutine has ended, and with it the callbacks.
	_ = s.w.do(func() {
		if s.link == nil {
			return
		}
		subs := s.link.subs
		for i := range subs {
			if subs[i] == s {
				s.link.subs = append(subs[:i:i], subs[i+1:]...) // a copy: notify may be walking it
				break
			}
		}
		s.link = nil
	})
}

// Lookup finds an interface by name, as the kernel knows it at this moment.
func (w *Watcher) Lookup(name string) (info LinkInfo, ok bool, err error) {
	err = w.do(func() {
		if l := w.byName[name]; l != nil {
			info, ok = l.LinkInfo, true
		}
	})
	return info, ok, err
}

// Await returns the first interface, present or to come, that match accepts, or
// ctx's error. match runs on the watcher's goroutine.
func (w *Watcher) Await(ctx context.Context, match func(LinkInfo) bool) (LinkInfo, error) {
	a := &await{match: match, found: make(chan LinkInfo, 1)}
	err := w.do(func() {
		for _, l := range w.links {
			if match(l.LinkInfo) {
				a.found <- l.LinkInfo
				return
			}
		}
		w.awaits[a] = struct{}{}
	})
	if err != nil {
		return LinkInfo{}, err
	}
	select {
	case info := <-a.found:
		return info, nil
	case <-ctx.Done():
		_ = w.do(func() { delete(w.awaits, a) })
		return LinkInfo{}, ctx.Err()
	case <-w.stopped:
		return LinkInfo{}, errEnded
	}
}

// Dumps counts how often the watcher had to ask for the whole state: once to
// begin with, and again whenever events were lost.
func (w *Watcher) Dumps() (n int) {
	_ = w.do(func() { n = int(w.seq) }) // 0 of an ended one
	return n
}

// do runs f on the goroutine, after it has read what the kernel has sent so
// far, and waits.
func (w *Watcher) do(f func()) error {
	done := make(chan struct{})
	w.mu.Lock()
	w.asked = append(w.asked, func() { f(); close(done) })
	w.mu.Unlock()
	w.wake()
	select {
	case <-done:
		return nil
	case <-w.stopped:
		select {
		case <-done:
			return nil
		default:
			return errEnded
		}
	}
}

var errEnded = fmt.Errorf("link watcher: %w", os.ErrClosed)

// wake interrupts the goroutine's wait.
func (w *Watcher) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sock != nil {
		_ = w.sock.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed one
	}
}

// open makes the socket.
func (w *Watcher) open() error {
	sock, err := w.connect(w.ns)
	if err != nil {
		return err
	}
	if w.raw, err = sock.SyscallConn(); err != nil {
		sock.Close()
		return fmt.Errorf("watch links in %s: %w", w.ns, err)
	}
	w.mu.Lock()
	w.sock = sock
	w.mu.Unlock()
	return nil
}

// shut closes it.
func (w *Watcher) shut() {
	w.mu.Lock()
	sock := w.sock
	w.sock = nil
	w.mu.Unlock()
	if sock != nil {
		sock.Close()
	}
}

// run is the watcher's goroutine. A socket that fails is replaced at once; if
// that is of no use, again and again, more and more slowly, and everybody is
// told that nothing is known for now.
func (w *Watcher) run() {
	defer close(w.stopped)
	defer w.shut()
	for {
		err := w.listen()
		if err == nil {
			return
		}
		w.shut()
		if w.failed++; w.failed == 1 {
			continue
		}
		for _, l := range w.links {
			if l.Lost != err.Error() {
				l.Lost = err.Error()
				l.notify()
			}
		}
		if w.rest(min(watchRetry<<min(w.failed-2, 10), watchRetryMax)) {
			return
		}
	}
}

// rest waits, does what is asked meanwhile, and reports whether the watcher is
// to end.
func (w *Watcher) rest(d time.Duration) (end bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		if w.serve() {
			return true
		}
		select {
		case <-w.kick:
		case <-t.C:
			return false
		}
	}
}

// listen works until the watcher is to end, or returns why the socket failed:
// read everything, then do what was asked, then wait.
func (w *Watcher) listen() error {
	if w.sock == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	w.err = nil
	w.dump()
	for {
		err := w.raw.Read(func(fd uintptr) bool {
			if w.err == nil {
				w.err = w.drain(int(fd))
			}
			return w.err != nil || w.serve() || w.err != nil
		})
		if w.err != nil {
			return fmt.Errorf("link watcher: %w", w.err)
		}
		if err == nil { // serve saw that it is over
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("link watcher: %w", err)
		}
		_ = w.sock.SetReadDeadline(time.Time{}) // before the next look at what is asked
	}
}

// serve does what was asked and reports whether the watcher is to end.
func (w *Watcher) serve() (end bool) {
	w.mu.Lock()
	asked := w.asked
	w.asked, end = nil, w.closed
	w.mu.Unlock()
	for _, f := range asked {
		f()
	}
	return end
}

// drain reads until the socket is empty.
func (w *Watcher) drain(fd int) error {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&w.buf[0])), uintptr(len(w.buf)), unix.MSG_TRUNC, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			return nil
		case errno == unix.EINTR:
		case errno == unix.ENOBUFS:
			// Events were lost. State is dump plus events, so dump again.
			if w.dumping != 0 {
				w.stale = true
			} else {
				w.dump()
			}
		case errno != 0:
			return errno
		case int(n) > len(w.buf): // cut off, hence lost
			w.stale = true
		default:
			w.read(w.buf[:n])
		}
		if w.err != nil {
			return w.err
		}
		if w.stale && w.dumping == 0 {
			w.dump()
		}
	}
}

// dump asks for all links. The answer comes on the same socket, in order with
// the events.
func (w *Watcher) dump() {
	w.seq++
	w.dumping, w.stale = w.seq, false
	clear(w.touched)
	b := appendDump(nil, w.seq)
	err := w.raw.Control(func(fd uintptr) {
		w.err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if w.err == nil {
		w.err = err
	}
}

// read applies the messages in b.
func (w *Watcher) read(b []byte) {
	for {
		h, body, rest, ok := nextMessage(b)
		if !ok {
			return
		}
		b = rest
		if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
			w.stale = true
		}
		switch h.Type {
		case unix.RTM_NEWLINK:
			if m, ok := parseLink(body); ok && w.newer(&h, m.index) {
				w.update(&m)
			}
		case unix.RTM_DELLINK:
			if m, ok := parseLink(body); ok && w.newer(&h, m.index) {
				if l := w.links[m.index]; l != nil {
					l.Moved, l.MovedTo, l.MovedIndex = m.moved, m.movedTo, m.reindex
					w.remove(l)
				}
			}
		case unix.NLMSG_DONE:
			if h.Seq == w.dumping {
				w.sweep()
			}
		case unix.NLMSG_ERROR:
			if h.Seq == w.dumping {
				w.dumping, w.stale = 0, true
			}
		}
	}
}

// newer reports whether a message about a link may be taken in. The kernel
// writes an answer to a dump before it puts it in the queue, and an event that
// happened between may overtake it: the answer would bring a deleted link back
// to life. After lost events it is the other way round, old events stand before
// the answer. So what an event has told of since a dump was asked for, that dump
// is not believed about; another one, without events between, is.
func (w *Watcher) newer(h *unix.NlMsghdr, index int) bool {
	if w.dumping == 0 {
		return true
	}
	if h.Seq != w.dumping || h.Flags&unix.NLM_F_MULTI == 0 {
		w.touched[index] = struct{}{}
		return true
	}
	if _, told := w.touched[index]; told {
		w.stale = true
		return false
	}
	return true
}

// update takes a link's state in and tells whom it concerns if it is new, or if
// it is a dump's after lost events: down and up again may be among them, and a
// refused send has told of the first (see LinkReporter.Refused).
func (w *Watcher) update(m *linkMessage) {
	const running = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING
	l := w.links[m.index]
	known := l != nil
	if !known {
		l = &link{LinkInfo: LinkInfo{Index: m.index, Kind: string(m.kind)}}
		w.links[m.index] = l
	}
	l.seen = w.seq
	now := l.LinkInfo
	if now.Name != string(m.name) && len(m.name) > 0 { // the comparison does not allocate
		if w.byName[now.Name] == l {
			delete(w.byName, now.Name)
		}
		now.Name = string(m.name)
		w.byName[now.Name] = l
	}
	now.Up = m.flags&unix.IFF_UP != 0
	now.Running = m.flags&running == running
	now.MAC, now.MTU, now.Lost = m.mac, m.mtu, ""
	if known && now == l.LinkInfo && w.dumping == 0 {
		return
	}
	l.LinkInfo = now
	l.notify()
	for a := range w.awaits {
		if a.match(now) {
			delete(w.awaits, a)
			a.found <- now
		}
	}
}

func (l *link) notify() {
	for _, s := range l.subs {
		s.call(l.LinkInfo)
	}
}

func (w *Watcher) remove(l *link) {
	delete(w.links, l.Index)
	if w.byName[l.Name] == l {
		delete(w.byName, l.Name)
	}
	l.Deleted, l.Up, l.Running = true, false, false
	l.notify()
	for _, s := range l.subs {
		s.link = nil
	}
	l.subs = nil
}

// sweep ends a dump: what it did not list is gone.
func (w *Watcher) sweep() {
	done := w.dumping
	w.dumping, w.failed = 0, 0
	if w.stale {
		return
	}
	for _, l := range w.links {
		if l.seen != done {
			w.remove(l)
		}
	}
}
