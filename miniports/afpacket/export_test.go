package afpacket

import (
	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/miniports/netdev"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// What the tests, which live outside the package, need of its inside.

const SendVectors = sendVectors

func RealStep(what string, f func() error) error { return realStep(what, f) }

// NewWithSteps makes an adapter whose Initialize goes through do.
func NewWithSteps(name string, o Options, do func(what string, f func() error) error) (ndiscore.Adapter, error) {
	a, err := newAdapter(name, o, new(netdev.Watchers), new(netdev.Slabs), zap.NewNop())
	if err != nil {
		return nil, err
	}
	a.do = do
	return a, nil
}

// Empty reports whether the adapter holds nothing.
func Empty(of ndiscore.Adapter) bool {
	a := of.(*adapter)
	return a.queues[0].opened == opened{} && a.watcher == nil && a.ns == nil && a.sub == nil
}

// Source is the receive queue of a paused adapter, for the goroutine of w.
func Source(of ndiscore.Adapter, w *ndiscore.Worker) netdev.Source {
	a := of.(*adapter)
	rx := &a.queues[0].rx
	rx.worker, rx.batch = w, ndiscore.NewBatch(w)
	rx.batch.Borrowed = true
	return rx
}
