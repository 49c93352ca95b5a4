package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func mustListen(t *testing.T, path string) *socket {
	t.Helper()
	s, err := listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRelease(t *testing.T, s *socket) {
	t.Helper()
	if err := s.release(); err != nil {
		t.Error(err)
	}
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode()
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSocketComesAndGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "control.sock")
	s := mustListen(t, path)
	if m := modeOf(t, path); m != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v", m)
	}
	if m := modeOf(t, dir); m.Perm() != 0o700 {
		t.Errorf("directory: %v", m)
	}
	mustRelease(t, s)
	if left := files(t, dir); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// With a group the directory lets the group through and the socket has its
// mode, whatever the umask; before, nobody else can connect.
func TestSocketOfGroup(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "a")
	path := filepath.Join(dir, "control.sock")
	s, err := listen(path, 0o660, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	defer mustRelease(t, s)
	if m := modeOf(t, path); m != fs.ModeSocket|0o660 {
		t.Errorf("socket: %v", m)
	}
	if m := modeOf(t, dir); m.Perm() != 0o755 {
		t.Errorf("directory: %v", m)
	}
}

// What bind alone makes, with a umask that takes nothing away.
func TestSocketModeFromTheFirstMoment(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := t.TempDir()
	l, err := listenPrivate(filepath.Join(dir, "bare"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if m := modeOf(t, filepath.Join(dir, "bare")); m.Perm() != 0o600 {
		t.Errorf("bind makes mode %v", m)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil { // it had not the time to remove this either
		t.Fatal(err)
	}
	s := mustListen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	mustRelease(t, s)
	if left := files(t, filepath.Dir(path)); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestLiveSocketIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := mustListen(t, path)
	defer mustRelease(t, s)
	_, err := listen(path, 0o600, -1)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another vswitch answers on "+path) || !strings.Contains(err.Error(), "stop it or use --socket") {
		t.Errorf("second listen: %v", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first one is gone: %v", err)
	} else {
		c.Close()
	}
}

// Somebody who listens without our lock is not ours to push aside either.
func TestForeignSocketIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listen(path, 0o600, -1); !errors.Is(err, ErrInUse) {
		t.Errorf("listen: %v", err)
	}
	if left := files(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatIsNoSocketIsKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, 0o600, -1); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("listen: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
	link := filepath.Join(dir, "l")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(link, 0o600, -1); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("listen on a link: %v", err)
	}
}

// The end of a switch does not take the socket of its successor away.
func TestReleaseKeepsWhatIsNotOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := mustListen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mustRelease(t, s)
	if m := modeOf(t, path); m.Type() != fs.ModeSocket {
		t.Errorf("the successor's socket: %v", m)
	}
}

// Of many that start at once over a stale socket one wins, again and again.
func TestManyStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 20 {
		var mu sync.Mutex
		var won []*socket
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s, err := listen(path, 0o600, -1)
				switch {
				case err == nil:
					mu.Lock()
					won = append(won, s)
					mu.Unlock()
				case !errors.Is(err, ErrInUse):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d of 8 have the socket", len(won))
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Fatal(err)
		} else {
			c.Close()
		}
		// The next ones find what a switch that died leaves.
		mustRelease(t, won[0])
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, want string }{
		{"", "want an absolute path"},
		{"@abstract", "want an absolute path"},
		{"\x00abstract", "want an absolute path"},
		{"relative/path", "want an absolute path"},
		{"/tmp/with\x00zero", "zero byte"},
		{"/tmp/" + strings.Repeat("long", 30), "at most 107"},
		{filepath.Join(open, "s"), "everybody may write"},
		{"/proc/nothing/here/s", "make the directory"},
	} {
		if s, err := listen(tc.path, 0o600, -1); err == nil {
			mustRelease(t, s)
			t.Errorf("listen(%q) succeeds", tc.path)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("listen(%q): %v, want %q", tc.path, err, tc.want)
		}
	}
}

func TestDefaultSocket(t *testing.T) {
	want := "/run/vswitch/control.sock"
	if os.Geteuid() != 0 {
		t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
		want = "/run/user/7/vswitch/control.sock"
	}
	if got := DefaultSocket(); got != want {
		t.Errorf("DefaultSocket: %s, want %s", got, want)
	}
	if os.Geteuid() != 0 {
		t.Setenv("XDG_RUNTIME_DIR", "")
		if got := DefaultSocket(); got != fallbackSocket() {
			t.Errorf("DefaultSocket: %s, want %s", got, fallbackSocket())
		}
	}
}
