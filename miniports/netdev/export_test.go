package netdev

import "os"

// What the tests that live outside the package need of its inside.

// Break has the watcher's socket fail with err, and the next sockets that it
// opens as often as times says.
func Break(w *Watcher, err error, times int) error {
	return w.do(func() {
		w.err = err
		w.connect = func(ns *Namespace) (*os.File, error) {
			if times--; times >= 0 {
				return nil, err
			}
			return connectLinks(ns)
		}
	})
}
