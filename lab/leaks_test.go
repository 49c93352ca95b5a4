package lab

// One namespace, in which things are forgotten on purpose.

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestCheckLeaks(t *testing.T) {
	Need(t)
	stop := make(chan struct{})
	tests := []struct {
		name string
		leak func(t *testing.T) (undo func())
		want string
	}{
		{"nothing", func(*testing.T) func() { return func() {} }, ""},
		{"file", func(t *testing.T) func() {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		}, "(/dev/null) was not there before"},
		{"goroutine", func(*testing.T) func() {
			ended := make(chan struct{})
			go func() { defer close(ended); <-stop }()
			return func() { close(stop); <-ended }
		}, "TestCheckLeaks"},
		{"interface", func(t *testing.T) func() {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "lableak0"
			br := &netlink.Bridge{LinkAttrs: attrs}
			if err := netlink.LinkAdd(br); err != nil {
				t.Fatal(err)
			}
			return func() { _ = netlink.LinkDel(br) }
		}, "interface lableak0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ft := &fakeT{name: "TestFake"}
			ft.run(func() { checkLeaks(ft, 50*time.Millisecond) })
			undo := tt.leak(t)
			ft.finish()
			undo()
			if tt.want == "" && ft.failed != "" || !strings.Contains(ft.failed, tt.want) {
				t.Errorf("it said %q, want %q in it", ft.failed, tt.want)
			}
		})
	}
}
