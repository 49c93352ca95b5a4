package stack_test

import (
	"flag"
	"testing"

	"gvisor.dev/gvisor/pkg/refs"

	"github.com/seed-b14e907b/vswitch/lab"
)

func TestMain(m *testing.M) { lab.Main(checked{m}) }

// checked looks for packets that somebody forgot to release.
type checked struct{ m *testing.M }

func (c checked) Run() int {
	flag.Parse()
	// Leak checking records a stack for each packet: not while time is measured.
	for _, f := range []string{"test.bench", "test.fuzz"} {
		if v := flag.Lookup(f); v != nil && v.Value.String() != "" {
			return c.m.Run()
		}
	}
	refs.SetLeakMode(refs.LeaksPanic)
	code := c.m.Run()
	refs.DoLeakCheck()
	return code
}
