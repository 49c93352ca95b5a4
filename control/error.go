package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Code says what kind of error it is, for programs.
type Code string

// The codes. README.md says which HTTP status goes with each.
const (
	CodeBadRequest   Code = "bad_request"   // the request makes no sense; nothing was changed
	CodeForbidden    Code = "forbidden"     // the socket does not serve this user
	CodeNotFound     Code = "not_found"     // no such path, adapter, bundle …
	CodeMethod       Code = "bad_method"    // the path is there, not for this method
	CodeConflict     Code = "conflict"      // not in the present state
	CodeTooLarge     Code = "too_large"     // header, path or body
	CodeBusy         Code = "busy"          // too many connections or followers
	CodeStopping     Code = "stopping"      // the switch is not running, or not any more
	CodeTimeout      Code = "timeout"       // no answer within the limit; a command may still be carried out
	CodeNotSupported Code = "not_supported" // this switch cannot do it
	CodeInternal     Code = "internal"      // a fault of the switch
)

// Error is how the server refuses, and what the client returns then.
type Error struct {
	Status  int    `json:"-"` // HTTP's
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do about it
}

// Error is the message, and the hint in brackets.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// errorBody is an Error on the wire.
type errorBody struct {
	Error *Error `json:"error"`
}

func badRequest(hint, format string, args ...any) *Error {
	return &Error{http.StatusBadRequest, CodeBadRequest, fmt.Sprintf(format, args...), hint}
}

func notFound(hint, format string, args ...any) *Error {
	return &Error{http.StatusNotFound, CodeNotFound, fmt.Sprintf(format, args...), hint}
}

// unknownName says which names there would have been.
func unknownName(kind, name string, known []string) *Error {
	hint := "there is none at all"
	if len(known) > 0 {
		const most = 20
		more := ""
		if len(known) > most {
			known, more = known[:most], ", ..."
		}
		hint = "known: " + strings.Join(known, ", ") + more
	}
	return notFound(hint, "there is no %s %s", kind, quote(name))
}

// Hints that several errors share.
const (
	hintPaths = "control/README.md lists every path"
	hintLog   = "the log of the switch says more"
)

// conflicts are the errors of the core which say that it is no time for what was
// asked, or that the device, or somebody above it, does not want it.
var conflicts = []error{
	ndiscore.ErrInvalidState, ndiscore.ErrFailure, ndiscore.ErrExists, ndiscore.ErrPaused, ndiscore.ErrResetInProgress, ndiscore.ErrQuarantined,
	ndiscore.ErrNotAccepted, ndiscore.ErrLowPower, ndiscore.ErrDeviceAbsent, ndiscore.ErrSoftErrors, ndiscore.ErrHardErrors, ndiscore.ErrResources,
}

// errorFrom finds the answer for an error of the switch.
func errorFrom(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	msg := err.Error()
	switch {
	case errors.Is(err, ndiscore.ErrAdapterNotFound), errors.Is(err, ndiscore.ErrNotFound):
		return notFound("", "%s", msg)
	case errors.Is(err, ndiscore.ErrStopped):
		return &Error{http.StatusServiceUnavailable, CodeStopping, msg, "the switch is starting or stopping"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{http.StatusGatewayTimeout, CodeTimeout, msg, "a command may still be carried out: see the events"}
	case errors.Is(err, ndiscore.ErrNotSupported):
		return &Error{http.StatusNotImplemented, CodeNotSupported, msg, ""}
	case errors.Is(err, ndiscore.ErrInvalidData):
		return badRequest("", "%s", msg)
	case slices.ContainsFunc(conflicts, func(target error) bool { return errors.Is(err, target) }):
		return &Error{http.StatusConflict, CodeConflict, msg, ""}
	}
	return &Error{http.StatusInternalServerError, CodeInternal, msg, hintLog}
}
