package netdev_test

import (
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/netdev"
)

// The process's own namespace is that of its threads at home, also while its main
// thread, after which the kernel calls the process, works in another one.
func TestOwnNamespaceWhileTheMainThreadIsAway(t *testing.T) {
	l := lab.NewTest(t)
	open := func(spec string) *netdev.Namespace {
		t.Helper()
		ns, err := netdev.OpenNamespace(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ns.Close)
		return ns
	}
	home, away := open(""), open(l.Host("away").Path())
	if home.Same(away) {
		t.Fatal("not another namespace")
	}
	// Which thread runs what is the scheduler's to say: some are held away at a
	// time, until one of them is the main thread.
	var held sync.WaitGroup
	back := make(chan struct{})
	release := func() {
		close(back)
		held.Wait()
	}
	defer func() { release() }()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	limit := time.After(20 * time.Second)
	for n := 1; ; n++ {
		if n%16 == 0 {
			release()
			back = make(chan struct{})
		}
		main, let := make(chan bool), back
		held.Go(func() {
			err := away.Do(func() error {
				main <- unix.Gettid() == os.Getpid()
				<-let
				return nil
			})
			if err != nil {
				t.Error(err)
				main <- false
			}
		})
		if <-main {
			break
		}
		select {
		case <-again.C:
		case <-limit:
			t.Fatal("the main thread ran no goroutine")
		}
	}
	if ns := open(""); !ns.Same(home) {
		t.Error("the own namespace is where the main thread is")
	}
}
