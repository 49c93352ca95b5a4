package bridge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestMain(m *testing.M) { lab.Main(m) }

// sender is an adapter on a kernel interface that only sends.
type sender struct {
	host   *lab.Host
	ifname string
	handle ndiscore.AdapterHandle
	file   *os.File
}

func (s *sender) Initialize(_ context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	s.handle = h
	mac, err := s.host.MAC(s.ifname)
	if err != nil {
		return ndiscore.Attributes{}, err
	}
	err = s.host.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		l, err := s.host.Netlink().LinkByName(s.ifname)
		if err == nil {
			// A protocol that nobody speaks: what arrives is not for us.
			none := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, 0x88b5))
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: none, Ifindex: l.Attrs().Index})
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		s.file = os.NewFile(uintptr(fd), "packet "+s.ifname)
		return nil
	})
	return ndiscore.Attributes{MAC: ndiscore.MAC(mac), MTU: 1500, Link: ndiscore.LinkState{Media: ndiscore.MediaConnected}}, err
}
func (s *sender) Restart(context.Context) error                       { return nil }
func (s *sender) Pause(context.Context)                               {}
func (s *sender) Halt(context.Context, ndiscore.HaltAction)           { s.file.Close() }
func (s *sender) Return(*ndiscore.Batch)                              {}
func (s *sender) Request(context.Context, *ndiscore.OIDRequest) error { return nil }
func (s *sender) Send(b *ndiscore.Batch) {
	for i, f := range b.Frames {
		if _, err := s.file.Write(f.Bytes(nil)); err != nil {
			b.Status[i] = ndiscore.DropDeviceError
		}
	}
}

// TestKernelSwitchLearns shows that an announcement does what it is for: a
// switch outside, here the kernel's, finds the stations behind the bridge at
// the port where they are now.
//
//	                      near [y]═══[x] kernel bridge of far
//	station ── lan0 ── bridge ──┘     [z]═══ elsewhere: where far believes the station
func TestKernelSwitchLearns(t *testing.T) {
	ctx := context.Background()
	l := lab.NewTest(t)
	near, far, elsewhere := l.Host("near"), l.Host("far"), l.Host("elsewhere")
	_ = l.Veth(near, "y", far, "x", lab.VethOptions{})
	_ = l.Veth(elsewhere, "w", far, "z", lab.VethOptions{})
	_ = l.Bridge(far, "br", "x", "z")
	station := ndiscore.MAC{2, 0xaa, 1, 2, 3, 4}

	// far knows the station behind z.
	other := &sender{host: elsewhere, ifname: "w"}
	uplink := &sender{host: near, ifname: "y"}
	inside := ndistest.NewAdapter("lan0", ndistest.AdapterOptions{})
	core := ndistest.NewCore(t, ndiscore.Options{})
	b, err := bridge.New(bridge.Options{Name: "lan", Ports: []string{"lan0", "uplink"}})
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(err)
	for name, a := range map[string]ndiscore.Adapter{"other": other, "uplink": uplink, "lan0": inside.Contract()} {
		_, err := core.RegisterDriver(ndiscore.Driver{
			Name: "driver of " + name, Version: ndiscore.ContractVersion, NewOptions: func() any { return nil },
			New: func(string, any) (ndiscore.Adapter, error) { return a, nil },
		})
		do(err)
		do(core.AddAdapter(ctx, ndiscore.AdapterSpec{Name: name, Driver: "driver of " + name}))
	}
	do(core.AddVirtual(ctx, "lan", b, nil))
	do(core.AddProtocol(ctx, b.Spec()))
	for _, n := range []string{"other", "uplink", "lan0", "lan"} {
		do(core.Start(ctx, n, "test"))
	}
	old := ndistest.Frame(ndiscore.Broadcast, station, 1, 60)
	_, err = other.file.Write(old)
	do(err)
	where := func(want string) {
		t.Helper()
		do(lab.Eventually(ctx, "far to find the station at "+want, func() error {
			neighbours, err := far.Netlink().NeighList(0, unix.AF_BRIDGE)
			if err != nil {
				return err
			}
			for _, n := range neighbours {
				if !bytes.Equal(n.HardwareAddr, net.HardwareAddr(station[:])) {
					continue
				}
				at, err := far.Netlink().LinkByIndex(n.LinkIndex)
				if err != nil {
					return err
				}
				if at.Attrs().Name == want {
					return nil
				}
				return fmt.Errorf("it is at %s", at.Attrs().Name)
			}
			return errors.New("it is unknown")
		}))
	}
	where("z")

	// The bridge knows it on lan0, from a frame that never got out: a unicast
	// to a neighbour.
	do(inside.Inject(ndistest.Frame(b.MAC(), station, 2, 60)))
	where("z")
	uplink.handle.IndicateStatus(ndiscore.NetworkChange{Why: "test"})
	where("x")
}
