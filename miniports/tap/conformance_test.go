package tap_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// rawPeer is a raw socket on an interface that may come and go.
type rawPeer struct {
	host   *lab.Host
	ifname string
	raw    *lab.RawSocket
	gone   atomic.Bool // the device is being deleted: do not look for it
}

func (p *rawPeer) open() error {
	if p.raw != nil {
		return nil
	}
	if p.gone.Load() || !p.host.Exists(p.ifname) { // the lab takes a refusal for a failure of the test
		return ndiscore.ErrDeviceAbsent
	}
	var err error
	p.raw, err = p.host.OpenRaw(p.ifname, lab.RawOptions{})
	return err
}

// failed forgets a socket whose interface is gone.
func (p *rawPeer) failed(err error) error {
	if p.raw != nil {
		p.raw.Close()
		p.raw = nil
	}
	return err
}

func (p *rawPeer) Send(frame []byte) error {
	if err := p.open(); err != nil {
		return err
	}
	if err := p.raw.Send(frame); err != nil {
		return p.failed(err)
	}
	return nil
}

func (p *rawPeer) Recv(deadline time.Time) ([]byte, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	f, err := p.raw.Recv(ctx, func(lab.RawFrame) bool { return true })
	if err != nil {
		if ctx.Err() == nil {
			err = p.failed(err)
		}
		return nil, err
	}
	return f.Data, nil
}

// TestConformance is the contract, over the kernel's end of the device:
//
//	host [tap0] ##adapter##
func TestConformance(t *testing.T) {
	ndistest.TestAdapter(t, func(t *testing.T) ndistest.Pair {
		_, h := newHost(t)
		peer := &rawPeer{host: h, ifname: "tap0"}
		return ndistest.Pair{
			Driver: tap.Driver(zaptest.NewLogger(t)), Name: "lan0", Options: options(h),
			Peer: peer,
			SetLink: func(up bool) {
				if up {
					h.Up("tap0")
				} else {
					h.Down("tap0")
				}
			},
			DeleteDevice: func() { peer.gone.Store(true); h.Delete("tap0") },
		}
	})
}
