package vswitch_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/lab"
	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// TestMain runs the tests of the whole switch in a sandbox: on the other side
// of every adapter stands the kernel.
func TestMain(m *testing.M) { lab.Main(m) }

// needTAP skips the test where TAP devices cannot be made, or fails it when
// everything is meant to run.
func needTAP(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	missing(t, "TAP devices: %v (chmod 0666 /dev/net/tun)", err)
}

// missing skips the test, or fails it when everything is meant to run.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv(lab.StrictEnv) == "1" {
		t.Fatalf("missing: "+format, args...)
	}
	t.Skipf("missing: "+format, args...)
}

// within gives a test's steps a deadline that a busy machine keeps too.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// start starts a switch, and checks at the end of the test that its counters
// add up.
func start(t *testing.T, l *lab.Lab, toml string) *lab.Switch {
	t.Helper()
	sw, err := l.StartSwitch(t.Context(), toml, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { addUp(t, sw.Switch) }) // before the lab stops it
	return sw
}

// startWith is start for drivers of the test's own.
func startWith(t *testing.T, l *lab.Lab, toml string, drivers []ndiscore.Driver) *vswitch.Switch {
	t.Helper()
	cfg, err := config.Parse("test.toml", []byte(toml), drivers)
	if err != nil {
		t.Fatal(err)
	}
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Drivers: drivers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- sw.Run(ctx, func() { close(ready) }) }() // ends with ctx
	l.OnClose("switch", func() error {
		cancel()
		return <-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	t.Cleanup(func() { addUp(t, sw) })
	return sw
}

// counters are the counters of all adapters.
func counters(t *testing.T, sw *vswitch.Switch) map[string]ndiscore.Counters {
	t.Helper()
	st, err := sw.Stats(context.Background()) // also while the test ends
	if err != nil {
		t.Fatal(err)
	}
	return st.Adapters
}

// queues counts, by queue, the frames that found it full. It happens when the
// machine does not run for a while who should empty it.
type queues map[string]uint64

func fullQueues(t *testing.T, sw *vswitch.Switch) queues {
	t.Helper()
	q := queues{"backlog": backlogFull(t)}
	for name, c := range counters(t, sw) {
		if len(c.Device) > 0 { // not the virtual ones: they count the same frames again
			q[name+" ring"] = c.Device["kernel_ring_full"]
			q[name+" punt"] = c.RxDropped[ndiscore.DropPuntFull.String()]
		}
	}
	return q
}

// since is how many there were after an earlier look, while a sender was late by
// so much at worst. A device that came back counts anew. The router's queue is
// ours: that it was full is no excuse unless others were not run either, or the
// race detector slowed us down.
func (q queues) since(before queues, late time.Duration) (n uint64) {
	const ordinary = 10 * time.Millisecond
	for name, v := range q {
		if late <= ordinary && !ndistest.RaceEnabled && strings.HasSuffix(name, " punt") {
			continue
		}
		n += v - min(v, before[name])
	}
	return n
}

// backlogFull counts the packets that went from one device to another, a veth
// most often, while the kernel's queue between them was full. It is of the whole
// machine.
func backlogFull(t *testing.T) (n uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	must(t, err)
	for line := range strings.Lines(string(text)) { // one for each CPU: processed, dropped, …
		if f := strings.Fields(line); len(f) > 1 {
			v, err := strconv.ParseUint(f[1], 16, 64)
			must(t, err)
			n += v
		}
	}
	return n
}

// addUp checks that every received frame of every adapter ended in exactly one
// fate. Frames that are inside just now have none yet.
func addUp(t *testing.T, sw *vswitch.Switch) {
	t.Helper()
	err := lab.Eventually(context.Background(), "the counters to add up", func() error {
		st, err := sw.Stats(context.Background())
		if errors.Is(err, ndiscore.ErrStopped) {
			return nil // the test has stopped it itself
		}
		if err != nil {
			return err
		}
		var errs []error
		for name, c := range st.Adapters {
			sum := c.Forwarded + c.Delivered
			for _, n := range c.RxDropped {
				sum += n
			}
			if sum != c.RxFrames {
				errs = append(errs, fmt.Errorf("%s: received %d, of which forwarded %d, delivered %d, dropped %v",
					name, c.RxFrames, c.Forwarded, c.Delivered, c.RxDropped))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Error(err)
	}
}

// newest is the number of the newest event so far.
func newest(sw *vswitch.Switch) uint64 {
	events, _, _ := sw.Events(0)
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}

// checksumErrors counts the packets whose checksum the host's kernel found
// wrong. TCP would send them again, so that nothing else tells of them.
func checksumErrors(h *lab.Host) (n uint64, err error) {
	err = h.Do(func() error {
		v4, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		v6, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		n = 0
		lines := strings.Split(string(v4), "\n")
		for i := 0; i+1 < len(lines); i += 2 { // names, then values
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for k, name := range names {
				if k < len(values) && strings.Contains(name, "CsumErrors") {
					n += number(values[k])
				}
			}
		}
		for line := range strings.Lines(string(v6)) {
			if f := strings.Fields(line); len(f) == 2 && strings.Contains(f[0], "CsumErrors") {
				n += number(f[1])
			}
		}
		return nil
	})
	return n, err
}

func number(s string) (n uint64) {
	_, _ = fmt.Sscan(s, &n) // what is no number counts as none
	return n
}

func noChecksumErrors(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if n, err := checksumErrors(h); err != nil || n > 0 {
			t.Errorf("%s: the kernel found %d wrong checksums (%v)", h.Name(), n, err)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// must ends the test at the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
