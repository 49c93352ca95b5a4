package tap

import (
	"runtime"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// What the tests, which live outside the package, need of its inside.

const MaxVectors = maxVectors

func RealStep(what string, f func() error) error { return realStep(what, f) }

// NewWithSteps makes an adapter whose StartDevice and Initialize go through do.
func NewWithSteps(name string, o Options, do func(what string, f func() error) error) (ndiscore.Adapter, error) {
	a, err := newAdapter(name, o, new(netdev.Watchers), new(netdev.Slabs), zap.NewNop())
	if err != nil {
		return nil, err
	}
	a.do = do
	return a, nil
}

// Empty reports whether the adapter holds nothing but perhaps its device.
func Empty(of ndiscore.Adapter) bool {
	a := of.(*adapter)
	return a.queues[0].loop == nil && a.watcher == nil && a.ns == nil && a.sub == nil
}

// Source is the receive queue of a paused adapter, for the goroutine of w.
func Source(of ndiscore.Adapter, w *ndiscore.Worker) netdev.Source {
	a := of.(*adapter)
	rx := &a.queues[0].rx
	rx.worker, rx.batch = w, ndiscore.NewBatch(w)
	rx.batch.Borrowed = true
	return rx
}

// Awake reports whether the receive queue holds a buffer.
func Awake(of ndiscore.Adapter) bool { return of.(*adapter).queues[0].rx.slab != nil }

// Create makes a device in the namespace of the calling thread.
func Create(name string) error { return create(name, false) }

// WithoutRights runs f on a thread that has no capabilities, and ends with it.
func WithoutRights(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// SendThrough has every queue send through fd from now on.
func SendThrough(of ndiscore.Adapter, fd int) {
	for _, q := range of.(*adapter).queues {
		q.tx.use(fd)
	}
}
