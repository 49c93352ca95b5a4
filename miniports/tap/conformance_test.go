package tap_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

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
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			ndistest.TestAdapter(t, func(t *testing.T) ndistest.Pair { return newPair(t, queues) })
		})
	}
}

func newPair(t *testing.T, queues int) ndistest.Pair {
	_, h := newHost(t)
	peer := &rawPeer{host: h, ifname: "tap0"}
	o := options(h)
	o.Queues = queues
	d := tap.Driver(zaptest.NewLogger(t))
	var adapter ndiscore.Adapter
	make := d.New
	d.New = func(name string, options any) (a ndiscore.Adapter, err error) {
		a, err = make(name, options)
		adapter = a
		return a, err
	}
	return ndistest.Pair{
		Driver: d, Name: "lan0", Options: o,
		Peer: peer,
		SetLink: func(up bool) {
			if up {
				h.Up("tap0")
			} else {
				h.Down("tap0")
			}
		},
		DeleteDevice: func() { peer.gone.Store(true); h.Delete("tap0") },
		Queues:       queues,
		SetMTU:       func(mtu int) { h.SetMTU("tap0", mtu) },
		Wedge: func() func() {
			tap.SendThrough(adapter, fullPipe(t))
			return func() {}
		},
	}
}

// fullPipe is a pipe that takes nothing: a stand-in for a device's queue, which
// no kernel lets stand still for long.
func fullPipe(t *testing.T) (fd int) {
	t.Helper()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	for {
		if _, err := unix.Write(pipe[1], []byte{0}); err != nil {
			return pipe[1]
		}
	}
}
