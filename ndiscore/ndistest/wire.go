package ndistest

import (
	"errors"
	"os"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Wire joins two fake adapters: what one sends arrives at the other, or is
// refused when too much waits there. To be called before either starts.
func Wire(a, b *Adapter) {
	a.out, b.out = b.offer, a.offer
}

func (a *Adapter) offer(frame []byte) ndiscore.DropReason {
	if a.Arrive(frame) {
		return ndiscore.DropNone
	}
	return ndiscore.DropTxQueueFull
}

// FakePeer is the far end of a fake adapter's wire.
type FakePeer struct {
	a    *Adapter
	here chan []byte
}

// NewFakePeer puts a peer at the far end of a. To be called before a starts.
func NewFakePeer(a *Adapter) *FakePeer {
	p := &FakePeer{a: a, here: make(chan []byte, queueFrames)}
	a.out = func(f []byte) ndiscore.DropReason {
		select {
		case p.here <- f:
			return ndiscore.DropNone
		default:
			return ndiscore.DropTxQueueFull
		}
	}
	return p
}

// Send implements Peer.
func (p *FakePeer) Send(frame []byte) error {
	if !p.a.Arrive(append([]byte(nil), frame...)) {
		return errors.New("fake wire: full")
	}
	return nil
}

// Recv implements Peer.
func (p *FakePeer) Recv(deadline time.Time) ([]byte, error) {
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case f := <-p.here:
		return f, nil
	case <-t.C:
		return nil, os.ErrDeadlineExceeded
	}
}
