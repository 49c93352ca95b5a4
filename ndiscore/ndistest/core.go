package ndistest

import (
	"context"
	"errors"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// NewCore runs a real core for the length of a test, which fails if the core
// cannot be closed cleanly.
func NewCore(tb testing.TB, o ndiscore.Options) *ndiscore.Core {
	tb.Helper()
	c := ndiscore.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }() // ended by the clean-up
	tb.Cleanup(func() {
		closing, done := context.WithTimeout(context.Background(), patience)
		defer done()
		if err := c.Close(closing, "end of test"); err != nil &&
			!errors.Is(err, ndiscore.ErrStopped) && !errors.Is(err, ndiscore.ErrQuarantined) && !errors.Is(err, ndiscore.ErrInvalidState) {
			tb.Errorf("close the core: %v", err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			tb.Errorf("core: %v", err)
		}
	})
	return c
}

// Context is a context with the kit's patience.
func Context(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

// State is the state of an adapter of c, as its name.
func State(tb testing.TB, c *ndiscore.Core, name string) string {
	tb.Helper()
	infos, err := c.Adapters(Context(tb))
	if err != nil {
		tb.Fatal(err)
	}
	for _, i := range infos {
		if i.Name == name {
			return i.State.String()
		}
	}
	return ""
}

// Info is what the core tells of one adapter.
func Info(tb testing.TB, c *ndiscore.Core, name string) ndiscore.AdapterInfo {
	tb.Helper()
	infos, err := c.Adapters(Context(tb))
	if err != nil {
		tb.Fatal(err)
	}
	for _, i := range infos {
		if i.Name == name {
			return i
		}
	}
	tb.Fatalf("no adapter %s", name)
	return ndiscore.AdapterInfo{}
}
