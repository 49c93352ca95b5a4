package control

import (
	"fmt"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unmapped is the user and group ID under which the kernel shows everybody that
// our user namespace does not know (user_namespaces(7)): no one in particular.
const unmapped = 65534

// peer is who has connected, by the kernel's word.
type peer struct {
	pid    int32
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary
}

// access says who is served.
type access struct {
	uid   uint32 // our own
	group int64  // also its members; -1 for none
}

// refuse returns why p is not served, nil if it is.
func (a access) refuse(p peer) error {
	switch {
	case p.uid == unmapped:
		return fmt.Errorf("you are no user that this switch knows (%d)", p.uid)
	case p.uid == a.uid || p.uid == 0:
		return nil
	case a.group < 0:
		return fmt.Errorf("you are user %d; this switch serves user %d and root", p.uid, a.uid)
	case a.group != unmapped && (int64(p.gid) == a.group || slices.Contains(p.groups, uint32(a.group))):
		return nil
	}
	return fmt.Errorf("you are user %d; this switch serves user %d, root and members of group %d", p.uid, a.uid, a.group)
}

// credentials asks the kernel who made the other end of c (SO_PEERCRED).
func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, sockErr
}

// peerOf asks the kernel for everything about the other end of c.
func peerOf(c *net.UnixConn) (peer, error) {
	cred, err := credentials(c)
	if err != nil {
		return peer{}, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	p := peer{pid: cred.Pid, uid: cred.Uid, gid: cred.Gid}
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) { p.groups, sockErr = peerGroups(int(fd)) }); err != nil {
		return peer{}, err
	}
	if sockErr != nil {
		return peer{}, fmt.Errorf("SO_PEERGROUPS: %w", sockErr)
	}
	return p, nil
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), for which x/sys has no call. A
// process has at most 65536 groups (NGROUPS_MAX).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size <= 65536*4:
			groups = make([]uint32, size/4) // the kernel says how many there are
		default:
			return nil, errno
		}
	}
}
