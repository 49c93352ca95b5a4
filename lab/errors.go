package lab

import (
	"errors"
	"fmt"
)

var (
	// ErrUnavailable says that this system does not let the process make network namespaces. The error
	// that wraps it names the step that was refused, the kernel's answer and what to do about it.
	ErrUnavailable = errors.New("network namespaces are not available")

	// ErrClosed says that a namespace, a lab or a generator was used after its Close or Stop.
	ErrClosed = errors.New("already closed")

	// ErrNoLink says that the namespace has no interface of that name.
	ErrNoLink = errors.New("no such interface")

	// ErrLost says that traffic was sent and did not come back.
	ErrLost = errors.New("packets lost")

	// ErrCorrupt says that traffic arrived with contents other than those sent.
	ErrCorrupt = errors.New("contents differ from what was sent")

	// ErrTimeout says that a condition did not become true within its limit.
	ErrTimeout = errors.New("timed out")
)

// closeErr wraps the error of one step of a tear-down.
func closeErr(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("lab: close %s: %w", what, err)
}
