package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is where a switch of this user listens, and where its clients
// look: /run/vswitch for root, else the user's runtime directory, else a
// directory of the user's own under /tmp.
func DefaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/vswitch/control.sock"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vswitch", "control.sock")
	}
	return fallbackSocket()
}

func fallbackSocket() string {
	return fmt.Sprintf("/tmp/vswitch-%d/control.sock", os.Geteuid())
}

// socketBytes is the longest path that fits into a unix socket's address
// (sun_path in unix(7), less the final zero).
const socketBytes = 107

func checkPath(path string) error {
	switch {
	case !filepath.IsAbs(path): // this also keeps out "@…", which means the abstract namespace
		return fmt.Errorf("control: socket %q: want an absolute path", path)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("control: socket %q: a path cannot contain a zero byte", path)
	case len(path) > socketBytes:
		return fmt.Errorf("control: socket %s: the path has %d bytes, a unix socket's at most %d: use a shorter one", path, len(path), socketBytes)
	}
	return nil
}

// ErrInUse says that another switch has the socket.
var ErrInUse = errors.New("another vswitch answers")

// socket is a listening unix socket that is ours until it is closed.
type socket struct {
	*net.UnixListener
	path     string
	lock     *os.File // flock on path + ".lock", held as long as the socket is ours
	dev, ino uint64   // of the socket's file
}

// listen makes the socket at path. gid -1 means no group.
func listen(path string, mode fs.FileMode, gid int) (*socket, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(path), gid >= 0); err != nil {
		return nil, err
	}
	lock, err := takeLock(path)
	if err != nil {
		return nil, err
	}
	s := &socket{path: path, lock: lock}
	if err := s.open(mode, gid); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// makeDir makes the directory of the socket, and refuses one in which a
// stranger could put his own socket in the place of ours.
func makeDir(dir string, group bool) error {
	mode := fs.FileMode(0o700)
	if group {
		mode = 0o755 // the group has to get through
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(dir, mode)
		if err == nil {
			err = os.Chmod(dir, mode) // whatever the umask
		}
		if err != nil {
			return fmt.Errorf("control: make the directory of the socket: %w (use --socket, or the key socket of [control], for another place)", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("control: look at %s: %w", dir, err)
	}
	const sticky, othersWrite = unix.S_ISVTX, unix.S_IWOTH
	switch {
	case st.Mode&sticky != 0: // as /tmp: each one's files are his own
		return nil
	case st.Mode&othersWrite != 0:
		return fmt.Errorf("control: everybody may write to %s, and so replace the socket there: chmod o-w it, or use another directory", dir)
	case int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return fmt.Errorf("control: %s belongs to user %d, who could replace the socket there: use a directory of your own", dir, st.Uid)
	}
	return nil
}

// takeLock takes the lock that goes with a socket. Unlike the socket itself, it
// cannot outlive its owner, and two that start at once cannot both have it.
func takeLock(path string) (*os.File, error) {
	name := path + ".lock"
	for range 100 {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("control: lock the socket: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, inUse(path, 0)
			}
			return nil, fmt.Errorf("control: lock %s: %w", name, err)
		}
		// Whoever had it before may have removed the file between our open and
		// our lock: then the lock is on nothing that others see.
		var opened, named unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &opened); err != nil {
			f.Close()
			return nil, fmt.Errorf("control: look at %s: %w", name, err)
		}
		if unix.Lstat(name, &named) == nil && named.Dev == opened.Dev && named.Ino == opened.Ino {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("control: lock %s: somebody keeps removing it", name)
}

// inUse is the error for a socket that another switch has; pid 0: unknown.
func inUse(path string, pid int) error {
	who := ""
	if pid == 0 {
		pid = answering(path)
	}
	if pid > 0 {
		who = fmt.Sprintf(" (process %d)", pid)
	}
	return fmt.Errorf("control: %w on %s%s: stop it or use --socket", ErrInUse, path, who)
}

// answering returns the process that listens on path, 0 if none can be seen.
func answering(path string) int {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.Dial("unix", path)
	if err != nil {
		return 0
	}
	defer c.Close()
	cred, err := credentials(c.(*net.UnixConn))
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// open clears away what a dead switch left, and listens.
func (s *socket) open(mode fs.FileMode, gid int) error {
	if err := clearStale(s.path); err != nil {
		return err
	}
	l, err := listenPrivate(s.path)
	if err != nil {
		return err
	}
	s.UnixListener = l
	var st unix.Stat_t
	if err := unix.Lstat(s.path, &st); err != nil {
		return fmt.Errorf("control: look at %s: %w", s.path, err)
	}
	s.dev, s.ino = st.Dev, st.Ino
	if gid >= 0 {
		if err := os.Lchown(s.path, -1, gid); err != nil {
			return fmt.Errorf("control: give the socket to group %d: %w (only root, or a member of the group, may)", gid, err)
		}
	}
	if err := os.Chmod(s.path, mode); err != nil {
		return fmt.Errorf("control: set the mode of the socket: %w", err)
	}
	return nil
}

// listenPrivate makes a socket to which nobody else can connect, not even for a
// moment: the kernel gives the file the mode that the socket has when it is
// bound, less the umask.
func listenPrivate(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control: listen on %s: %w", path, err)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // release does it, if the file is still ours
	return u, nil
}

// clearStale removes a socket at path on which nobody answers.
func clearStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("control: look at the socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("control: %s is there already, and is no socket: remove it or use --socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.Dial("unix", path)
	if err == nil {
		defer c.Close()
		pid := 0
		if cred, err := credentials(c.(*net.UnixConn)); err == nil {
			pid = int(cred.Pid)
		}
		return inUse(path, pid)
	}
	// Only a refused connection proves that nobody listens; a full queue
	// (EAGAIN) or a missing right (EACCES) do not.
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control: see whether %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control: remove the socket that a dead vswitch left: %w", err)
	}
	return nil
}

// release stops listening, and removes the socket if it is still ours.
func (s *socket) release() error {
	var errs []error
	if s.UnixListener != nil {
		if err := s.UnixListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("control: close %s: %w", s.path, err))
		}
	}
	var st unix.Stat_t
	if s.ino != 0 && unix.Lstat(s.path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
		if err := os.Remove(s.path); err != nil {
			errs = append(errs, fmt.Errorf("control: remove the socket: %w", err))
		}
	}
	// Removed while it is held: see takeLock.
	if err := os.Remove(s.path + ".lock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("control: remove the lock: %w", err))
	}
	s.lock.Close()
	return errors.Join(errs...)
}

// parseGroup finds a group's number; "" is -1, none.
func parseGroup(name string, lookup func(string) (string, error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	id := name
	if _, err := strconv.ParseUint(name, 10, 32); err != nil {
		if id, err = lookup(name); err != nil {
			return -1, fmt.Errorf("control: group %s: %w", name, err)
		}
	}
	n, err := strconv.ParseUint(id, 10, 32)
	switch {
	case err != nil:
		return -1, fmt.Errorf("control: group %s: %w", name, err)
	case uint32(n) == unmapped || n == 1<<32-1:
		return -1, fmt.Errorf("control: group %s: %d stands for groups that are not known here: use another one", name, n)
	}
	return int(n), nil
}
