package fault

import (
	"context"
	"fmt"
)

// NewFilter makes a filter with the faults given, in words as ParseSpec reads
// them.
func NewFilter(specs ...[]string) (*Filter, error) {
	var stages []stage
	for _, words := range specs {
		s, err := stageOf(words)
		if err != nil {
			return nil, err
		}
		stages = append(stages, s)
	}
	return newFilter(stages...), nil
}

func stageOf(words []string) (stage, error) {
	s, err := ParseSpec(words[0], append(words[1:], "on=test")...)
	if err != nil {
		return nil, err
	}
	k, v, err := s.read()
	if err != nil {
		return nil, err
	}
	if k.frame == nil {
		return nil, fmt.Errorf("%s is no fault of frames", s.Kind)
	}
	return k.frame(v, s.Direction, s.Seed), nil
}

// Change adds the fault in words, and returns what takes it out again.
func (f *Filter) Change(words ...string) (remove func() error, err error) {
	s, err := stageOf(words)
	if err != nil {
		return nil, err
	}
	return func() error { return f.remove(context.Background(), s) }, f.add(s)
}

// Hit says how many frames, and bytes, fault i has hit in one direction.
func (f *Filter) Hit(i int, dir Direction) (frames, bytes uint64) {
	h := &(*f.chain.Load())[i].common().hits[index(dir)]
	return h.frames.Load(), h.bytes.Load()
}

// Idle reports whether no delay of f holds a frame or memory.
func (f *Filter) Idle() bool {
	for _, s := range *f.chain.Load() {
		d, ok := s.(*delay)
		if !ok {
			continue
		}
		for _, l := range d.lines {
			if l == nil {
				continue
			}
			l.mu.Lock()
			busy := len(l.heap) > 0 || len(l.free) != len(l.next)
			l.mu.Unlock()
			if busy {
				return false
			}
		}
	}
	return true
}

// Register writes a lease down that has yet to begin, as Inject does at first.
func (j *Injector) Register(s Spec) error {
	k, _, err := s.read()
	if err == nil {
		_, err = j.register(s, k)
	}
	return err
}
