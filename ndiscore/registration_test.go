package ndiscore_test

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// newCore is a bench with no driver.
func newCore(t *testing.T, o ndiscore.Options) *bench {
	leakFree(t)
	return &bench{t: t, core: ndistest.NewCore(t, o)}
}

func (b *bench) register(d ndiscore.Driver) *ndiscore.DriverHandle {
	b.t.Helper()
	h, err := b.core.RegisterDriver(d)
	b.must(err)
	return h
}

func TestC01RegisterIncomplete(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	called := 0
	whole := ndistest.Driver("fake")
	whole.SetOptions = func(*ndiscore.DriverHandle) error { called++; return nil }
	for what, c := range map[string]struct {
		spoil func(*ndiscore.Driver)
		want  error
	}{
		"no New":        {func(d *ndiscore.Driver) { d.New = nil }, ndiscore.ErrBadCharacteristics},
		"no NewOptions": {func(d *ndiscore.Driver) { d.NewOptions = nil }, ndiscore.ErrBadCharacteristics},
		"no name":       {func(d *ndiscore.Driver) { d.Name = "" }, ndiscore.ErrBadCharacteristics},
		"no version":    {func(d *ndiscore.Driver) { d.Version = 0 }, ndiscore.ErrBadVersion},
		"later version": {func(d *ndiscore.Driver) { d.Version = ndiscore.ContractVersion + 1 }, ndiscore.ErrBadVersion},
	} {
		d := whole
		c.spoil(&d)
		if h, err := b.core.RegisterDriver(d); h != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", what, h, err)
		}
	}
	if called != 0 {
		t.Errorf("SetOptions was called %d times", called)
	}
	b.register(whole)
	if _, err := b.core.RegisterDriver(whole); !errors.Is(err, ndiscore.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
}

// half checks for hangs and cannot reset.
type half struct{ *ndistest.Adapter }

func (half) CheckForHang() bool { return true }

func TestC02HangCheckWithoutReset(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	var tr ndistest.Trace
	d := ndistest.Driver("fake", half{nic("M", ndistest.AdapterOptions{Trace: &tr})})
	removed := 0
	d.Remove = func(ndiscore.Adapter) { removed++ }
	b.register(d)
	// A driver is a table of functions that makes adapters, so what an adapter
	// can do is known when there is one.
	if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "M", Driver: "fake"}); !errors.Is(err, ndiscore.ErrBadCharacteristics) {
		t.Error(err)
	}
	if len(tr.Calls()) != 0 || removed != 1 {
		t.Errorf("calls %v, %d removed", tr.Calls(), removed)
	}
	if err := b.core.Start(b.ctx(), "M", "test"); !errors.Is(err, ndiscore.ErrAdapterNotFound) {
		t.Error(err)
	}
}

func TestC03SetOptionsInsideRegister(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	d := ndistest.Driver("fake", nic("M", ndistest.AdapterOptions{}))
	called := 0
	d.SetOptions = func(h *ndiscore.DriverHandle) error {
		called++
		if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "M", Driver: "fake"}); !errors.Is(err, ndiscore.ErrNotFound) {
			t.Errorf("an adapter before the driver is registered: %v", err)
		}
		return nil
	}
	b.register(d)
	if called != 1 {
		t.Errorf("SetOptions was called %d times", called)
	}
	b.add("M")
	b.start("M")
}

func TestC04SetOptionsFails(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	d := ndistest.Driver("fake", nic("M", ndistest.AdapterOptions{}))
	d.SetOptions = func(*ndiscore.DriverHandle) error { return ndiscore.ErrResources }
	d.Unload = func(*ndiscore.DriverHandle) { t.Error("Unload was called") }
	if h, err := b.core.RegisterDriver(d); h != nil || !errors.Is(err, ndiscore.ErrResources) {
		t.Errorf("%v, %v", h, err)
	}
	if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "M", Driver: "fake"}); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("it is listed: %v", err)
	}
	d.SetOptions, d.Unload = nil, nil
	b.register(d) // its name is free again
}

func TestC05TableIsCopied(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	d := ndistest.Driver("fake", nic("M", ndistest.AdapterOptions{}))
	p := &d
	b.register(*p)
	p.New = func(string, any) (ndiscore.Adapter, error) {
		t.Error("the new function was called")
		return nil, ndiscore.ErrFailure
	}
	b.add("M")
	b.start("M")
}

func TestC06EntryRoutineFails(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	d := ndistest.Driver("fake", nic("M", ndistest.AdapterOptions{}))
	d.Unload = func(*ndiscore.DriverHandle) { t.Error("Unload was called") }
	h := b.register(d)
	b.must(h.Deregister()) // as an entry routine that fails after it registered
	if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "M", Driver: "fake"}); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("it is listed: %v", err)
	}
}

func TestC07UnloadAfterLast(t *testing.T) {
	b := newCore(t, ndiscore.Options{})
	var tr ndistest.Trace
	d := ndistest.Driver("fake", nic("A", ndistest.AdapterOptions{Trace: &tr}), nic("B", ndistest.AdapterOptions{Trace: &tr}))
	unloaded := make(chan struct{})
	d.Unload = func(h *ndiscore.DriverHandle) {
		if err := h.Deregister(); err != nil {
			t.Errorf("deregister inside unload: %v", err)
		}
		tr.Add("Unload")
		close(unloaded)
	}
	let := make(chan struct{})
	var removes atomic.Int32
	d.Remove = func(ndiscore.Adapter) {
		if removes.Add(1) == 1 {
			<-let // the first lasts until both are gone
		}
		tr.Add("Remove")
	}
	b.register(ndistest.VerifiedDriver(t, d))
	b.add("A")
	b.add("B")
	b.start("A", "B")
	b.must(b.core.Remove(b.ctx(), "A", "test"))
	if tr.Count("Unload") != 0 {
		t.Error("unloaded while it has an adapter")
	}
	b.must(b.core.Remove(b.ctx(), "B", "test"))
	tr.Await(t, "Remove")
	select {
	case <-unloaded:
		t.Error("unloaded before the first was removed")
	case <-time.After(20 * time.Millisecond): // it would be next
	}
	close(let)
	tr.Await(t, "Unload")
	calls := tr.Calls()
	if tr.Count("Unload") != 1 || calls[len(calls)-1] != "Unload" || !slices.Contains(calls, "B.Halt(Disabled)") {
		t.Error(calls)
	}
	if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "A", Driver: "fake"}); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("it is listed: %v", err)
	}
}

func TestC08DeregisterTwice(t *testing.T) {
	m := nic("M", ndistest.AdapterOptions{})
	b := newCore(t, ndiscore.Options{})
	h := b.register(ndistest.Driver("fake", ndistest.Verifier(t, m)))
	b.add("M")
	b.start("M")
	if err := h.Deregister(); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("with a live adapter: %v", err)
	}
	b.must(m.Inject(frame(1))) // nothing was freed
	b.must(b.core.Remove(b.ctx(), "M", "test"))
	b.must(h.Deregister())
	if err := h.Deregister(); !errors.Is(err, ndiscore.ErrInvalidState) {
		t.Errorf("twice: %v", err)
	}
}

func TestC09RemoveDeviceOnce(t *testing.T) {
	var tr ndistest.Trace
	m := nic("M", ndistest.AdapterOptions{Trace: &tr})
	b := newCore(t, ndiscore.Options{})
	d := ndistest.Driver("fake", m)
	d.Remove = func(a ndiscore.Adapter) {
		if a != ndiscore.Adapter(m) {
			t.Errorf("Remove of %v", a)
		}
		tr.Add("M.Remove")
	}
	b.register(ndistest.VerifiedDriver(t, d))
	if err := b.core.AddAdapter(b.ctx(), ndiscore.AdapterSpec{Name: "nobody", Driver: "fake"}); !errors.Is(err, ndiscore.ErrNotFound) {
		t.Errorf("New fails: %v", err)
	}
	b.add("M")
	for range 3 {
		b.start("M")
		b.must(b.core.Stop(b.ctx(), "M", "test"))
	}
	b.must(b.core.Remove(b.ctx(), "M", "test"))
	tr.Await(t, "M.Remove")
	var want []string
	for range 3 {
		want = append(want, "M.Init", "M.Restart", "M.Pause", "M.Halt(Stopped)")
	}
	if d := cmp.Diff(append(want, "M.Remove"), tr.Calls()); d != "" {
		t.Error(d)
	}
}
