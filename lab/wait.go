package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// eventuallyLimit is for callers whose context has no deadline: nothing in a lab waits for ever.
	eventuallyLimit = 10 * time.Second
	eventuallyEvery = 2 * time.Millisecond
)

// Eventually asks cond again and again until it returns nil, and gives up with its last answer when ctx
// ends, or after ten seconds when ctx has no deadline. It is the one place here that polls; what the kernel
// announces is better awaited by [Host.WaitLink].
func Eventually(ctx context.Context, what string, cond func() error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventuallyLimit)
		defer cancel()
	}
	tick := time.NewTicker(eventuallyEvery)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: wait for %s: %w: %w", what, ctxErr(ctx), err)
		case <-tick.C:
		}
	}
}

// ctxErr turns the end of a deadline into ErrTimeout and keeps a cancellation what it is.
func ctxErr(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ErrTimeout
	}
	return context.Cause(ctx)
}

// LinkState is what WaitLink waits for.
type LinkState int

const (
	// LinkUp is an interface that is up and has its carrier: it passes packets.
	LinkUp LinkState = iota
	// LinkDown is one that passes none: down, without carrier, or not there.
	LinkDown
	// LinkGone is one that does not exist.
	LinkGone
)

func (s LinkState) String() string {
	switch s {
	case LinkUp:
		return "up"
	case LinkDown:
		return "down"
	case LinkGone:
		return "gone"
	}
	return fmt.Sprintf("LinkState(%d)", int(s))
}

func (s LinkState) reached(exists bool, flags uint32) bool {
	const running = unix.IFF_UP | unix.IFF_RUNNING
	switch up := exists && flags&running == running; s {
	case LinkUp:
		return up
	case LinkDown:
		return !up
	default:
		return !exists
	}
}

// WaitLink returns when the interface has reached the state, as the kernel announces it, or with an error
// when ctx ends first (after ten seconds when it has no deadline).
func (h *Host) WaitLink(ctx context.Context, ifname string, want LinkState) error {
	if h.err != nil {
		return h.err
	}
	return h.Namespace.waitLink(ctx, ifname, want)
}

func (n *Namespace) waitLink(ctx context.Context, ifname string, want LinkState) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventuallyLimit)
		defer cancel()
	}
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	var lost error // written before updates is closed, read after
	err := n.withFD(func(fd int) error {
		ns := netns.NsHandle(fd)
		return netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
			Namespace:     &ns,
			ErrorCallback: func(err error) { lost = err },
		})
	})
	if err != nil {
		return fmt.Errorf("lab: %s: subscribe to %s: %w", n.name, ifname, err)
	}
	defer func() {
		close(done)
		for range updates { // the subscription may be busy handing one over; it closes the channel when it ends
		}
	}()

	// Look after subscribing: what changes in between is announced.
	last := "not there"
	err = n.withLink(ifname, "look at", func(l netlink.Link) error {
		if a := l.Attrs(); !want.reached(true, a.RawFlags) {
			last = linkFlags(a.RawFlags)
			return errNotYet
		}
		return nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoLink):
		if want.reached(false, 0) {
			return nil
		}
	case !errors.Is(err, errNotYet):
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: %s: wait for %s to be %v: %w: it is %s", n.name, ifname, want, ctxErr(ctx), last)
		case u, ok := <-updates:
			if !ok {
				return fmt.Errorf("lab: %s: wait for %s to be %v: link events ended: %w", n.name, ifname, want, lost)
			}
			if u.Link.Attrs().Name != ifname {
				continue
			}
			exists := u.Header.Type != unix.RTM_DELLINK
			if want.reached(exists, u.Link.Attrs().RawFlags) {
				return nil
			}
			last = "not there"
			if exists {
				last = linkFlags(u.Link.Attrs().RawFlags)
			}
		}
	}
}

var errNotYet = errors.New("not yet")

func linkFlags(flags uint32) string {
	switch {
	case flags&unix.IFF_UP == 0:
		return "down"
	case flags&unix.IFF_RUNNING == 0:
		return "up without carrier"
	}
	return "up"
}
