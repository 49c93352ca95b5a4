package lab

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Switch is a vswitch that runs in this process, on the lab's links.
type Switch struct {
	*vswitch.Switch

	cancel context.CancelFunc
	forget func() // takes Stop off the lab's list
	ended  chan struct{}
	err    error // of Run; read after ended is closed
}

// StartSwitch starts a switch from the text of a config.toml, and returns when
// everything in it is up. The lab stops it before it takes links away.
func (l *Lab) StartSwitch(ctx context.Context, toml string, log *zap.Logger) (*Switch, error) {
	if log == nil {
		log = zap.NewNop()
	}
	drivers := vswitch.Drivers(log)
	cfg, err := config.Parse("lab.toml", []byte(toml), drivers, vswitch.Filters()...)
	if err != nil {
		return nil, l.check(fmt.Errorf("lab: switch: %w", err))
	}
	cfg.Fault.Allow = true // this is what a lab is for
	sw, err := vswitch.New(vswitch.Options{Config: cfg, Logger: log, Drivers: drivers})
	if err != nil {
		return nil, l.check(fmt.Errorf("lab: switch: %w", err))
	}
	runCtx, cancel := context.WithCancel(context.Background())
	s := &Switch{Switch: sw, cancel: cancel, ended: make(chan struct{})}
	ready := make(chan struct{})
	go func() { // "lab switch": ends when the switch has halted everything
		defer close(s.ended)
		s.err = sw.Run(runCtx, func() { close(ready) })
	}()
	s.forget = l.OnClose("switch", s.Stop)
	select {
	case <-ready:
		return s, nil
	case <-s.ended:
		return nil, l.check(fmt.Errorf("lab: switch: %w", s.Stop()))
	case <-ctx.Done():
		return nil, l.check(errors.Join(fmt.Errorf("lab: switch: %w", ctx.Err()), s.Stop()))
	}
}

// Stop halts everything in order and returns what went wrong. It may be called
// again.
func (s *Switch) Stop() error {
	s.forget()
	s.cancel()
	<-s.ended
	return s.err
}

// Break injects a fault on an adapter, in one line:
//
//	end, err := sw.Break(ctx, "drop", "wan0", "chance=10%", "direction=rx")
//
// What there is to break is listed by `vswitch inject kinds`; the words are its
// parameters, and direction, for and seed. The fault ends with end, or by itself.
func (s *Switch) Break(ctx context.Context, kind, on string, words ...string) (end func() error, err error) {
	spec, err := fault.ParseSpec(kind, append([]string{"on=" + on}, words...)...)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	spec.Owner = "lab"
	lease, err := s.InjectFault(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return func() error {
		_, err := s.ClearFaults(context.WithoutCancel(ctx), control.FaultMatch{ID: lease.ID})
		return err
	}, nil
}

// WaitEvent returns the first event numbered above after for which match is
// true, as it happens.
func (s *Switch) WaitEvent(ctx context.Context, after uint64, match func(ndiscore.Event) bool) (ndiscore.Event, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventuallyLimit)
		defer cancel()
	}
	for {
		events, _, more := s.Events(after)
		for _, e := range events {
			if match(e) {
				return e, nil
			}
			after = e.Seq
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ndiscore.Event{}, fmt.Errorf("lab: switch: no such event: %w", ErrTimeout)
		}
	}
}

// WaitActive returns when member is the active one of a bundle.
func (s *Switch) WaitActive(ctx context.Context, bundle, member string) error {
	return Eventually(ctx, fmt.Sprintf("bundle %s: %s active", bundle, member), func() error {
		bs, err := s.Bundles(ctx)
		if err != nil {
			return err
		}
		for _, b := range bs {
			if b.Name == bundle {
				if b.Active == member {
					return nil
				}
				return fmt.Errorf("active is %q", b.Active)
			}
		}
		return fmt.Errorf("no bundle %s", bundle)
	})
}
