package ndiscore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// quitter gives up as soon as the core lets it.
type quitter struct {
	*ndistest.Adapter
	quit chan struct{} // closed when Remove was accepted
}

func (q *quitter) Initialize(ctx context.Context, h ndiscore.AdapterHandle) (ndiscore.Attributes, error) {
	q.quit = make(chan struct{})
	go func(quit chan struct{}) { // ends when Initialize has returned and Remove is accepted
		for h.Remove("it is broken") != nil {
		}
		close(quit)
	}(q.quit)
	return q.Adapter.Initialize(ctx, h)
}

// A removal that is accepted before the core has heard of the end of Initialize
// is not forgotten: otherwise the adapter would run with its data path closed.
func TestRemoveJustAfterInitialize(t *testing.T) {
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	q := &quitter{Adapter: nic("M", ndistest.AdapterOptions{})}
	if _, err := core.RegisterDriver(ndistest.Driver("fake", q)); err != nil {
		t.Fatal(err)
	}
	b.add("M")
	for range 50 {
		_ = core.Start(b.ctx(), "M", "test") // running for a moment, or overtaken
		<-q.quit
		b.awaitState("M", "halted")
		if h := ndistest.Info(t, core, "M").LastHalt; h != ndiscore.HaltDeviceFailed {
			t.Fatalf("halted with %s", h)
		}
	}
}

// blind cannot wait for its device the first time it is asked to.
type blind struct {
	*ndistest.Adapter
	asked int
}

func (a *blind) StartDevice(context.Context) error { return nil }
func (a *blind) RemoveDevice(context.Context)      {}
func (a *blind) AwaitDevice(context.Context) error {
	if a.asked++; a.asked == 1 {
		return errors.New("its namespace is gone")
	}
	return nil
}

// An adapter whose device cannot be waited for says so, and tries again.
func TestAwaitFails(t *testing.T) {
	leakFree(t)
	core := ndistest.NewCore(t, ndiscore.Options{})
	b := &bench{t: t, core: core}
	a := &blind{Adapter: nic("M", ndistest.AdapterOptions{})}
	if _, err := core.RegisterDriver(ndistest.Driver("fake", a)); err != nil {
		t.Fatal(err)
	}
	b.add("M")
	b.start("M")
	a.Handle().SurpriseRemove("test")
	b.awaitState("M", "halted")
	b.awaitState("M", "running")
	if e := b.events("adapter.await-failed", "M"); len(e) != 1 || e[0].Why != "its namespace is gone" {
		t.Errorf("events %v", e)
	}
}

// One adapter that hangs costs the others time when everything is closed, not
// their halt.
func TestCloseWithOneThatHangs(t *testing.T) {
	m, n := nic("M", ndistest.AdapterOptions{}), nic("N", ndistest.AdapterOptions{})
	b := newBench(t, ndiscore.Options{}, m, n)
	b.add("M")
	b.add("N")
	b.start("M", "N")
	hold := n.Hold("Pause")
	ctx, cancel := context.WithTimeout(b.ctx(), 500*time.Millisecond)
	defer cancel()
	if err := b.core.Close(ctx, "test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	infos, err := b.core.Adapters(b.ctx())
	b.must(err)
	if len(infos) != 1 || infos[0].Name != "N" {
		t.Errorf("left: %+v", infos)
	}
	hold.Release()
}
