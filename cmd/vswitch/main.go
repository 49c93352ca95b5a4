// Command vswitch is a userspace switch and router for Linux: `vswitch run`
// runs one, every other command asks or tells the one that runs, through its
// control socket.
//
// It holds flags, signals and printing only: what it does is in the package
// vswitch and in control's client, for everybody to use.
//
// # Exit codes
//
//	0  done
//	1  it could not be done: the switch refused or failed, or was ended by force
//	2  wrong input: the command line, the configuration, or a start that the
//	   configuration makes impossible
//	3  no switch answers on the socket
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
)

func main() { os.Exit(execute(os.Args, os.Stdout, os.Stderr)) }

// The exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitBadInput    = 2
	exitUnreachable = 3
)

// execute runs one command line.
func execute(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends the program, unless the command takes care of it
	err := newApp(stdout, stderr).RunContext(ctx, args)
	if err != nil {
		complain(stderr, err)
	}
	return exitCode(err)
}

// badInput is an error of the user's making.
type badInput struct{ error }

func (e badInput) Unwrap() error { return e.error }

func badInputf(format string, args ...any) error { return badInput{fmt.Errorf(format, args...)} }

// exited says that the program, run again in a sandbox, ended with that code
// and has said everything itself.
type exited int

func (e exited) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if code, ok := errors.AsType[exited](err); ok {
		return int(code)
	}
	// demo passes the exit code of another process on.
	if e, ok := errors.AsType[cli.ExitCoder](err); ok {
		return e.ExitCode()
	}
	_, bad := errors.AsType[badInput](err)
	_, badConfig := errors.AsType[config.Errors](err)
	refused, isRefused := errors.AsType[*control.Error](err)
	switch {
	case bad, badConfig, isRefused && refused.Code == control.CodeBadRequest:
		return exitBadInput
	case errors.Is(err, vswitch.ErrStart), errors.Is(err, control.ErrInUse):
		return exitBadInput
	case errors.Is(err, control.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailure
}

// complain prints err, one line for each thing wrong. Lines about a
// configuration file begin with file:line:column, where editors look for it.
func complain(w io.Writer, err error) {
	if _, ok := errors.AsType[exited](err); ok {
		return
	}
	switch {
	case err.Error() == "": // only an exit code
		return
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	prefix := "vswitch: "
	if _, ok := errors.AsType[config.Errors](err); ok {
		prefix = ""
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "%s%s\n", prefix, strings.TrimRight(line, "\n"))
	}
}
