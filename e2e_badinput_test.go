package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/lab"
)

// refused makes a switch of a configuration and runs it, and returns the error
// that it must give.
func refused(t *testing.T, toml string) error {
	t.Helper()
	cfg, err := config.Parse("test.toml", []byte(toml), vswitch.Drivers(zap.NewNop()))
	if err != nil {
		return err
	}
	sw, err := vswitch.New(vswitch.Options{Config: cfg})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = sw.Run(ctx, func() {
		t.Error("it runs")
		cancel()
	})
	if !errors.Is(err, vswitch.ErrStart) {
		t.Errorf("%v does not say that it could not start", err)
	}
	return err
}

// clear checks that an error is one line that says what an operator needs.
func clear(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	t.Log(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// links are the interfaces of a host, by name.
func links(t *testing.T, h *lab.Host) (names []string) {
	t.Helper()
	must(t, h.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	}))
	slices.Sort(names)
	return names
}

// TestStartRefused has the kernel refuse something in the middle of a start:
// one clear error, and nothing of what had been made is left.
func TestStartRefused(t *testing.T) {
	needTAP(t)
	for _, tt := range []struct {
		name  string
		toml  string // of the adapter that fails; %s is the namespace of host a
		words []string
	}{
		{"missing interface", "driver = \"afpacket\"\ninterface = \"eth77\"", []string{"bad", "eth77", "does not exist"}},
		{"missing namespace", "driver = \"afpacket\"\nnetns = \"no-such-netns\"", []string{"bad", "no-such-netns"}},
		{"TAP named like a veth", "driver = \"tap\"\ninterface = \"taken\"\nnetns = \"%s\"", []string{"bad", "taken"}},
		{"TAP in a missing namespace", "driver = \"tap\"\nnetns = \"/proc/self/ns/nothing\"", []string{"bad", "/proc/self/ns/nothing"}},
		{"interface with the kernel's addresses", "driver = \"afpacket\"\ninterface = \"used\"\nnetns = \"%s\"", []string{"bad", "used", "shared"}},
		{"loopback", "driver = \"afpacket\"\ninterface = \"lo\"\nnetns = \"%s\"", []string{"bad", "lo"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab.CheckLeaks(t)
			l := lab.NewTest(t)
			a, b := l.Host("a"), l.Host("b")
			l.Veth(a, "taken", b, "x0", lab.VethOptions{})
			l.Veth(a, "used", b, "x1", lab.VethOptions{})
			l.Veth(l.Here(), "good", b, "x2", lab.VethOptions{})
			must(t, a.AddAddr("used", "10.9.0.1/24"))
			hereBefore, aBefore := links(t, l.Here()), links(t, a)
			if strings.Contains(tt.toml, "%s") {
				tt.toml = fmt.Sprintf(tt.toml, a.Path())
			}
			err := refused(t, fmt.Sprintf(`
[adapter.tap0]
driver = "tap"
netns = %q
[adapter.good]
driver = "afpacket"
[adapter.bad]
%s
[bundle.wan]
members = ["good", "bad"]
[bridge.lan]
ports = ["tap0", "wan"]
[interface.lan]
on = "lan"
addresses = ["10.1.0.1/24"]
`, a.Path(), tt.toml))
			clear(t, err, tt.words...)
			if now := links(t, l.Here()); !slices.Equal(now, hereBefore) {
				t.Errorf("interfaces here: %v, before %v", now, hereBefore)
			}
			if now := links(t, a); !slices.Equal(now, aBefore) {
				t.Errorf("interfaces of a: %v, before %v", now, aBefore)
			}
		})
	}
}

// TestBadConfig needs no device to be refused.
func TestBadConfig(t *testing.T) {
	lab.CheckLeaks(t)
	const tap = "[adapter.a]\ndriver = \"tap\"\n[adapter.b]\ndriver = \"tap\"\n"
	for _, tt := range []struct {
		name, toml string
		words      []string
	}{
		{"unknown driver", "[adapter.a]\ndriver = \"tapp\"\n", []string{"test.toml:2", "tapp", "tap"}},
		{"unknown key", "[adapter.a]\ndriver = \"tap\"\ncolour = \"red\"\n", []string{"test.toml:3", "colour"}},
		{"bad address", tap + "[interface.x]\non = \"a\"\naddresses = [\"10.0.0.300/24\"]\n", []string{"test.toml:7", "10.0.0.300/24"}},
		{"address without prefix", tap + "[interface.x]\non = \"a\"\naddresses = [\"10.0.0.1\"]\n", []string{"test.toml:7", "10.0.0.1"}},
		{"overlapping networks", tap + "[interface.x]\non = \"a\"\naddresses = [\"10.0.0.1/8\"]\n[interface.y]\non = \"b\"\naddresses = [\"10.3.0.1/24\"]\n",
			[]string{"test.toml:10", "overlap", "10.3.0.1/24"}},
		{"interface on nothing", "[interface.x]\non = \"nowhere\"\naddresses = [\"10.0.0.1/24\"]\n", []string{"nowhere"}},
		{"bad MAC", tap + "[bridge.x]\nports = [\"a\"]\nmac = \"no\"\n", []string{"mac", "no"}},
		{"bad driver option", "[adapter.a]\ndriver = \"tap\"\nmtu = 12\n", []string{"test.toml:3", "mtu", "12"}},
		{"bad interface name", "[adapter.a]\ndriver = \"tap\"\ninterface = \"a/b\"\n", []string{"test.toml:3", "a/b"}},
		{"one interface, two adapters", "[adapter.a]\ndriver = \"afpacket\"\ninterface = \"eth1\"\n[adapter.b]\ndriver = \"afpacket\"\ninterface = \"eth1\"\n",
			[]string{"test.toml:4:10:", "adapter.b", "interface eth1 already belongs to adapter a in line 1"}},
		{"one interface by an adapter's name", "[adapter.eth1]\ndriver = \"afpacket\"\n[adapter.b]\ndriver = \"afpacket\"\ninterface = \"eth1\"\n",
			[]string{"test.toml:3:10:", "adapter.b", "interface eth1 already belongs to adapter eth1 in line 1"}},
		{"one TAP, two adapters", tap + "interface = \"a\"\n", []string{"test.toml:3:10:", "adapter.b", "interface a already belongs to adapter a in line 1"}},
		{"one interface, two drivers", "[adapter.a]\ndriver = \"tap\"\nnetns = \"x\"\n[adapter.b]\ndriver = \"afpacket\"\ninterface = \"a\"\nnetns = \"x\"\n",
			[]string{"test.toml:4:10:", "adapter.b", `interface a in network namespace "x" already belongs to adapter a in line 1`}},
		{"bundle without a detector", tap + "[bundle.x]\nmembers = [\"a\", \"b\"]\n[bundle.x.health]\ncarrier = false\n", []string{"test.toml:8", "probe"}},
		{"not TOML", "[adapter.a\n", []string{"test.toml:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse("test.toml", []byte(tt.toml), vswitch.Drivers(zap.NewNop()))
			if err == nil {
				t.Fatal("no error")
			}
			// The first line says it; a second one may show the place.
			line, _, _ := strings.Cut(err.Error(), "\n")
			clear(t, errors.New(line), tt.words...)
		})
	}
}

// TestSameNameElsewhere: interfaces of one name in several namespaces are
// several.
func TestSameNameElsewhere(t *testing.T) {
	text := ""
	for _, driver := range []string{"tap", "afpacket"} {
		for _, netns := range []string{"", "x", "/y"} {
			text += fmt.Sprintf("[adapter.a%d]\ndriver = %q\ninterface = \"%s0\"\nnetns = %q\n", len(text), driver, driver, netns)
		}
	}
	if _, err := config.Parse("test.toml", []byte(text), vswitch.Drivers(zap.NewNop())); err != nil {
		t.Error(err)
	}
}

// TestNoPermission starts the switch in a process that may not open packet
// sockets.
func TestNoPermission(t *testing.T) {
	const stage = "VSWITCH_TEST_PERMISSION"
	switch os.Getenv(stage) {
	case "drop":
		// What is not in the bounding set is lost with the next exec.
		runtime.LockOSThread()
		must(t, unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_RAW, 0, 0, 0))
		must(t, os.Setenv(stage, "run"))
		must(t, syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "run":
		err := refused(t, "[adapter.p0]\ndriver = \"afpacket\"\n")
		clear(t, err, "p0", "permitted", "CAP_NET_RAW")
	default:
		lab.CheckLeaks(t)
		l := lab.NewTest(t)
		l.Veth(l.Here(), "p0", l.Host("a"), "if0", lab.VethOptions{})
		cmd := exec.CommandContext(within(t, 60*time.Second), "/proc/self/exe", "-test.run=^TestNoPermission$", "-test.v")
		cmd.Env = append(os.Environ(), stage+"=drop")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
