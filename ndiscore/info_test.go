package ndiscore

import (
	"strings"
	"testing"
	"time"
)

// TestInfoRetrying: who waits for a device that is gone, and who waits to start
// one again that had come back.
func TestInfoRetrying(t *testing.T) {
	in := &interpreter{m: new(machine), now: time.Unix(1000, 0), fails: map[string]string{}, attrs: map[string]Attributes{}, links: map[string]LinkState{}}
	c := &Core{m: in.m, slots: map[string]*slot{"M": {}}}
	for _, s := range []struct {
		command           string
		waiting, retrying bool
	}{
		{"adapter M", false, false},
		{"start M", false, false},
		{"surprise M gone", true, false},
		{"fail M.Init", true, false},
		{"arrived M", true, true},
		{"arrived M", false, false},
	} {
		if err := in.command(strings.Fields(s.command)); err != nil {
			t.Fatalf("%q: %v", s.command, err)
		}
		i := c.adapterInfo(in.m.adapters[0])
		if i.Waiting != s.waiting || i.Retrying != s.retrying {
			t.Errorf("after %q: waiting %v, retrying %v", s.command, i.Waiting, i.Retrying)
		}
	}
}
