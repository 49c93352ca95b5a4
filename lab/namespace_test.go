package lab

// Namespaces alone, without links:
//
//	here     one     two

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// threadNamespace names the namespace of the calling thread.
func threadNamespace(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newTestNamespace(t *testing.T, name string) *Namespace {
	t.Helper()
	n, err := NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestNamespaceDo(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	one, two := newTestNamespace(t, "one"), newTestNamespace(t, "two")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here := threadNamespace(t)

	var in1, in2, back string
	boom := errors.New("boom")
	err := one.Do(func() error {
		in1 = threadNamespace(t)
		err := two.Do(func() error {
			in2 = threadNamespace(t)
			return boom
		})
		back = threadNamespace(t)
		return err
	})
	if !errors.Is(err, boom) {
		t.Errorf("the error of fn got lost: %v", err)
	}
	if in1 == here || in2 == here || in1 == in2 || back != in1 {
		t.Errorf("here %s, in one %s, nested in two %s, back in one %s", here, in1, in2, back)
	}
	if now := threadNamespace(t); now != here {
		t.Errorf("Do returned in %s, not in %s", now, here)
	}

	func() {
		defer func() { recover() }()
		_ = one.Do(func() error { panic("boom") })
	}()
	if now := threadNamespace(t); now != here {
		t.Errorf("a panic left the thread in %s, not in %s", now, here)
	}
}

func TestNamespaceDoFromManyGoroutines(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	here := threadNamespace(t)
	one := newTestNamespace(t, "one")
	var want string
	_ = one.Do(func() error { want = threadNamespace(t); return nil })
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			err := one.Do(func() error {
				runtime.Gosched()
				if got := threadNamespace(t); got != want {
					t.Errorf("in %s, not in %s", got, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := threadNamespace(t); got != here {
				t.Errorf("back in %s, not in %s", got, here)
			}
			runtime.Goexit()
		})
	}
	wg.Wait()
}

// Every thread of the process that is left must be where the process is.
func TestNamespaceLeavesNoThreadBehind(t *testing.T) {
	Need(t)
	here := threadNamespace(t)
	for range 20 {
		n, err := NewNamespace("short")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && ns != here {
			t.Errorf("thread %s is in %s, not in %s", task.Name(), ns, here)
		}
	}
}

func TestNamespaceSysctl(t *testing.T) {
	Need(t)
	one, two := newTestNamespace(t, "one"), newTestNamespace(t, "two")
	const key = "net/ipv4/ip_default_ttl"
	if err := one.Sysctl(key, "77"); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[*Namespace]string{one: "77", two: "64"} {
		if got, err := n.ReadSysctl(key); got != want || err != nil {
			t.Errorf("%s: %s = %q, %v; want %q", n.Name(), key, got, err, want)
		}
	}
	if got, err := one.ReadSysctl("net/ipv6/conf/default/accept_dad"); got != "0" || err != nil {
		t.Errorf("accept_dad = %q, %v", got, err)
	}
	err := one.Sysctl("net/ipv4/no_such_key", "1")
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "namespace one: set net/ipv4/no_such_key") {
		t.Errorf("got %v", err)
	}
}

func TestNamespacePath(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	one := newTestNamespace(t, "one")
	var want, got string
	if err := one.Do(func() error { want = threadNamespace(t); return nil }); err != nil {
		t.Fatal(err)
	}
	// Enter by the path, as a program that reads it from its configuration does.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(one.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		got, _ = os.Readlink("/proc/thread-self/ns/net")
	}()
	<-done
	if got != want {
		t.Errorf("%s leads to %s, not to %s", one.Path(), got, want)
	}
}

func TestNamespaceClosed(t *testing.T) {
	Need(t)
	one := newTestNamespace(t, "one")
	for range 2 {
		if err := one.Close(); err != nil {
			t.Fatal(err)
		}
	}
	err := one.Do(func() error { t.Error("fn ran"); return nil })
	if !errors.Is(err, ErrClosed) {
		t.Errorf("Do: %v", err)
	}
	// A closed handle of the netlink library would answer for the calling thread's namespace.
	if err := one.deleteLink("lo"); !errors.Is(err, ErrClosed) {
		t.Errorf("deleteLink: %v", err)
	}
}
