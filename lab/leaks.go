package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/goleak"
)

// leaksLimit is how long things that are on their way out may take.
const leaksLimit = 5 * time.Second

// CheckLeaks notes which goroutines, file descriptors and interfaces of the current namespace there are, and
// fails the test when at its end there are more. Call it first, before NewTest, so that it looks last; not
// in tests that run in parallel with others.
func CheckLeaks(t T) {
	t.Helper()
	checkLeaks(t, leaksLimit)
}

func checkLeaks(t T, limit time.Duration) {
	t.Helper()
	// The runtime's poller opens descriptors of its own on its first use: let that be now.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	goroutines := goleak.IgnoreCurrent()
	fds, err := openFiles()
	if err != nil {
		t.Fatalf("%v", err)
	}
	links, err := currentLinks()
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := Eventually(ctx, "everything to be given back", func() error {
			return errors.Join(
				added("file descriptor", fds, openFiles),
				added("interface", links, currentLinks),
				goleak.Find(goroutines),
			)
		})
		if err != nil {
			t.Errorf("%s leaks: %v", t.Name(), err)
		}
	})
}

// added compares two listings, each a name and what it stands for.
func added(what string, before map[string]string, list func() (map[string]string, error)) error {
	after, err := list()
	if err != nil {
		return err
	}
	var errs []error
	for k, v := range after {
		if was, ok := before[k]; !ok || was != v {
			errs = append(errs, fmt.Errorf("%s %s (%s) was not there before", what, k, v))
		}
	}
	return errors.Join(errs...)
}

func openFiles() (map[string]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: list open files: %w", err)
	}
	open := make(map[string]string, len(entries))
	for _, e := range entries {
		// The one that ReadDir itself used is gone by now.
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && !strings.HasSuffix(to, "/fd") {
			open[e.Name()] = to
		}
	}
	return open, nil
}

func currentLinks() (map[string]string, error) {
	n, err := Current("here")
	if err != nil {
		return nil, err
	}
	defer n.Close()
	list, err := n.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("lab: list interfaces: %w", err)
	}
	links := make(map[string]string, len(list))
	for _, l := range list {
		links[l.Attrs().Name] = fmt.Sprintf("%s, index %d", l.Type(), l.Attrs().Index)
	}
	return links, nil
}
