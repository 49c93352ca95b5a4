package lab

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
)

// Lab owns hosts, links and traffic, and undoes them together. Its methods may be called from any
// goroutine.
//
// The first failure to build something is kept: see Err. In a lab made by NewTest it fails the test.
type Lab struct {
	mu struct {
		sync.Mutex
		hosts  map[string]*Host
		undo   []*undo
		err    error
		macs   uint32
		closed bool
	}
	failed func(error) // told of each failure to build; never nil
}

// undo is one step of Close.
type undo struct {
	what string
	do   func() error
}

// New makes an empty lab. It needs a sandbox (see Enter) or the rights of root.
func New() (*Lab, error) {
	l := newLab(func(error) {})
	// Find out now, not in the middle of a picture, whether namespaces can be made.
	n, err := NewNamespace("try-out")
	if err != nil {
		return nil, err
	}
	return l, n.Close()
}

func newLab(failed func(error)) *Lab {
	l := &Lab{failed: failed}
	l.mu.hosts = make(map[string]*Host)
	return l
}

// Host returns the host of that name, made when it is asked for the first time. It is never nil: when it
// cannot be made, each of its methods says why, and so does Err.
func (l *Lab) Host(name string) *Host {
	return l.host(name, func() (*Namespace, error) { return NewNamespace(name) })
}

// Here is the namespace in which the program itself runs, as a host: the far side of links whose near end
// the program's own devices are. Close deletes the links that the lab put there and leaves the rest.
func (l *Lab) Here() *Host {
	return l.host("here", func() (*Namespace, error) {
		n, err := Current("here")
		if err == nil && Inside() { // outside a sandbox this is the machine's own network: hands off
			if err = n.prepare(); err != nil {
				n.Close()
			}
		}
		return n, err
	})
}

func (l *Lab) host(name string, open func() (*Namespace, error)) *Host {
	l.mu.Lock()
	if h := l.mu.hosts[name]; h != nil {
		l.mu.Unlock()
		return h
	}
	h := &Host{lab: l}
	var n *Namespace
	var err error
	if l.mu.closed {
		err = fmt.Errorf("lab: host %s: lab %w", name, ErrClosed)
	} else {
		n, err = open()
	}
	if err != nil {
		h.err = err
		h.Namespace = &Namespace{name: name}
		h.Namespace.mu.fd = -1
	} else {
		h.Namespace = n
		l.mu.undo = append(l.mu.undo, &undo{what: "host " + name, do: n.Close})
	}
	l.mu.hosts[name] = h
	l.mu.Unlock()
	_ = l.check(err)
	return h
}

// Err is the first failure to build something in this lab.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.err
}

// check keeps the first failure and tells whoever watches; it returns err.
func (l *Lab) check(err error) error {
	if err == nil {
		return nil
	}
	l.mu.Lock()
	if l.mu.err == nil {
		l.mu.err = err
	}
	l.mu.Unlock()
	l.failed(err)
	return err
}

// OnClose has fn called by Close, before everything that was built earlier is undone. The function returned
// takes it off the list again.
func (l *Lab) OnClose(what string, fn func() error) (cancel func()) {
	u := &undo{what: what, do: fn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.undo = append(l.mu.undo, u)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.mu.undo = slices.DeleteFunc(l.mu.undo, func(x *undo) bool { return x == u })
	}
}

// Close undoes everything in reverse order, goes on when a step fails, and returns all failures. It may be
// called again.
func (l *Lab) Close() error {
	var errs []error
	for {
		l.mu.Lock()
		l.mu.closed = true
		if len(l.mu.undo) == 0 {
			l.mu.Unlock()
			return errors.Join(errs...)
		}
		last := len(l.mu.undo) - 1
		u := l.mu.undo[last]
		l.mu.undo = l.mu.undo[:last]
		l.mu.Unlock()
		errs = append(errs, closeErr(u.what, u.do())) // unlocked: it may take itself off the list
	}
}

// newMAC returns a locally administered address that no other interface of this lab has.
func (l *Lab) newMAC() net.HardwareAddr {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.macs++
	n := l.mu.macs
	return net.HardwareAddr{0x02, 'l', 'a', byte(n >> 16), byte(n >> 8), byte(n)}
}
