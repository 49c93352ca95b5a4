package afpacket_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
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

// TestConformance is the contract, over a veth:
//
//	far [eth0]==veth==[p0] near ##adapter##
func TestConformance(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("queues=%d", queues), func(t *testing.T) {
			ndistest.TestAdapter(t, func(t *testing.T) ndistest.Pair { return newPair(t, queues) })
		})
	}
}

func newPair(t *testing.T, queues int) ndistest.Pair {
	l := lab.NewTest(t)
	far, near := l.Host("far"), l.Host("near")
	wire := func() { l.Veth(far, "eth0", near, "p0", lab.VethOptions{}) }
	wire()
	peer := &rawPeer{host: far, ifname: "eth0"}
	o := options(near)
	o.Queues = queues
	return ndistest.Pair{
		Driver: afpacket.Driver(zaptest.NewLogger(t)), Name: "wan0", Options: o,
		Peer: peer,
		SetLink: func(up bool) {
			if up {
				near.Up("p0")
			} else {
				near.Down("p0")
			}
		},
		DeleteDevice:  func() { peer.gone.Store(true); near.Delete("p0") },
		RestoreDevice: func() { wire(); peer.gone.Store(false) },
		Queues:        queues,
		SetMTU: func(mtu int) {
			far.SetMTU("eth0", max(mtu, 9000)) // so that it takes what is longer, too
			near.SetMTU("p0", mtu)
		},
		Wedge: func() func() { return wedge(t, near, "p0") },
	}
}

// wedge gives an interface a queue that lets next to nothing out: a frame in four
// seconds. The frames in it count against the socket that sent them, until that
// takes no more.
func wedge(t *testing.T, h *lab.Host, ifname string) (mend func()) {
	t.Helper()
	const rate, burst = 360, 1540 // bytes a second, bytes; the kernel takes no burst of more than 4.29 s
	l, err := h.Netlink().LinkByName(ifname)
	if err != nil {
		t.Fatal(err)
	}
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, burst), Limit: 256 << 20,
	}
	if err := h.Netlink().QdiscAdd(q); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := h.Netlink().QdiscDel(q); err != nil {
			t.Error(err)
		}
	}
}
