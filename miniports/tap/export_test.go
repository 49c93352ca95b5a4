package tap

import (
	"go.uber.org/zap"

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
	return a.loop == nil && a.watcher == nil && a.ns == nil && a.sub == nil
}

// Source is the receive queue of a paused adapter, for the goroutine of w.
func Source(of ndiscore.Adapter, w *ndiscore.Worker) netdev.Source {
	a := of.(*adapter)
	a.rx.worker, a.rx.batch = w, ndiscore.NewBatch(w)
	a.rx.batch.Borrowed = true
	return &a.rx
}

// Awake reports whether the receive queue holds a buffer.
func Awake(of ndiscore.Adapter) bool { return of.(*adapter).rx.slab != nil }
