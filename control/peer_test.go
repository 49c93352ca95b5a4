package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestAccess(t *testing.T) {
	for _, tc := range []struct {
		name   string
		access access
		peer   peer
		served bool
	}{
		{"own user", access{1000, -1}, peer{uid: 1000, gid: 1000}, true},
		{"root", access{1000, -1}, peer{uid: 0}, true},
		{"root's switch, root", access{0, -1}, peer{uid: 0}, true},
		{"another user", access{1000, -1}, peer{uid: 1001, gid: 1000}, false},
		{"root's switch, a user in root's group", access{0, -1}, peer{uid: 1000, gid: 0, groups: []uint32{0}}, false},
		{"primary group", access{0, 27}, peer{uid: 1000, gid: 27}, true},
		{"supplementary group", access{0, 27}, peer{uid: 1000, gid: 100, groups: []uint32{4, 27}}, true},
		{"not in the group", access{0, 27}, peer{uid: 1000, gid: 100, groups: []uint32{4, 28}}, false},
		{"unmapped user", access{1000, -1}, peer{uid: unmapped, gid: 1000}, false},
		{"unmapped user of the group", access{0, 27}, peer{uid: unmapped, gid: 27, groups: []uint32{27}}, false},
		{"a switch that runs as the unmapped user", access{unmapped, -1}, peer{uid: unmapped}, false},
		{"unmapped group", access{0, unmapped}, peer{uid: 1000, gid: unmapped, groups: []uint32{unmapped}}, false},
		{"no group is not group 4294967295", access{0, -1}, peer{uid: 1000, gid: 1<<32 - 1, groups: []uint32{1<<32 - 1}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.access.refuse(tc.peer); (err == nil) != tc.served {
				t.Errorf("refuse: %v, want served = %v", err, tc.served)
			}
		})
	}
}

// What the kernel says about ourselves is what we know about ourselves.
func TestPeerOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	p, err := peerOf(far)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	want := make([]uint32, len(groups))
	for i, g := range groups {
		want[i] = uint32(g)
	}
	slices.Sort(want)
	slices.Sort(p.groups)
	if int(p.pid) != os.Getpid() || int(p.uid) != os.Geteuid() || int(p.gid) != os.Getegid() || !slices.Equal(p.groups, want) {
		t.Errorf("peerOf: %+v, want pid %d, uid %d, gid %d, groups %v", p, os.Getpid(), os.Geteuid(), os.Getegid(), want)
	}
	// A descriptor that is no socket has no peer.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := peerGroups(int(r.Fd())); !errors.Is(err, syscall.ENOTSOCK) {
		t.Errorf("peerGroups of a pipe: %v", err)
	}
}

func TestParseGroup(t *testing.T) {
	lookup := func(name string) (string, error) {
		if name == "switchers" {
			return "27", nil
		}
		return "", errors.New("unknown group")
	}
	for _, tc := range []struct {
		in   string
		want int
		ok   bool
	}{
		{"", -1, true}, {"switchers", 27, true}, {"1000", 1000, true}, {"nobody-has-this", -1, false},
		{"65534", -1, false}, {"4294967295", -1, false}, {"99999999999", -1, false}, {"-1", -1, false},
	} {
		if got, err := parseGroup(tc.in, lookup); got != tc.want || (err == nil) != tc.ok {
			t.Errorf("parseGroup(%q) = %d, %v", tc.in, got, err)
		}
	}
}
