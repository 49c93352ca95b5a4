package lab

import (
	"fmt"
	"os"
	"sync/atomic"
)

// T is what this package needs of a *testing.T, *testing.B or *testing.F.
type T interface {
	Helper()
	Name() string
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// StrictEnv, set to 1, turns the skips of Need into failures: for machines that are meant to run everything.
const StrictEnv = "VSWITCH_TEST_STRICT"

// refused is why Main could not enter the sandbox.
var refused atomic.Pointer[error]

// Main runs a package's tests in a sandbox:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
// It runs the test binary again inside, with the same flags, and exits with its code. Where the system
// refuses, the tests run where they are and those that call Need skip.
func Main(m interface{ Run() int }) {
	inside, code, err := Enter(SandboxOptions{})
	switch {
	case err != nil:
		refused.Store(&err)
	case !inside:
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// Need is the first line of a test that uses namespaces. Where there are none it skips the test with the
// reason and the remedy, or fails it when VSWITCH_TEST_STRICT is 1.
func Need(t T) {
	t.Helper()
	if Inside() {
		return
	}
	err := refused.Load()
	if err == nil {
		t.Fatalf("%s needs a sandbox: add `func TestMain(m *testing.M) { lab.Main(m) }` to its package", t.Name())
		return
	}
	msg := fmt.Sprintf("%s needs network namespaces: %v", t.Name(), *err)
	if os.Getenv(StrictEnv) == "1" {
		t.Fatalf("%s (%s=1 forbids to skip it)", msg, StrictEnv)
	}
	t.Skipf("%s", msg)
}

// NewTest makes a lab for a test: it calls Need, fails the test at once when something cannot be built (so
// the errors that the building methods return may be ignored), and closes when the test ends. Build from the test's own goroutine.
func NewTest(t T) *Lab {
	t.Helper()
	Need(t)
	l := newLab(func(err error) {
		t.Helper()
		t.Fatalf("%v", err)
	})
	t.Cleanup(func() {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return l
}
