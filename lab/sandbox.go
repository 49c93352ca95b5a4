package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// sandboxEnv is how a process learns that it runs inside a sandbox. The parent sets it to
	// sandboxFirst; the child replaces that by the name of its mount namespace, so that its own
	// children know it too, and a value that leaked to a process elsewhere means nothing.
	sandboxEnv   = "VSWITCH_LAB_SANDBOX"
	sandboxFirst = "enter"

	// sandboxStatusFD is where the child reports how its set-up went: os/exec's first extra file.
	sandboxStatusFD = 3
	sandboxOK       = "ok"
)

// SandboxOptions changes how Enter makes the sandbox. The zero value is right for most.
type SandboxOptions struct {
	// UserNamespace asks for a user namespace even where the process has the rights to do without
	// one: a way for root to see what an ordinary user would get.
	UserNamespace bool

	// Args replaces the arguments of the program (without its name); nil means the present ones.
	Args []string

	// Env is added to the environment, which is passed on otherwise unchanged.
	Env []string
}

// Enter puts the program into a sandbox: a process of its own in a fresh network and mount namespace and,
// unless the caller is root with all the rights it takes, a fresh user namespace in which it is root.
// Nothing that happens inside can touch the machine's own network, and the kernel takes everything back
// when the process ends, however it ends.
//
// Call it first thing in main. Outside, it runs this same program again inside, with the same arguments,
// environment and standard files, hands SIGINT, SIGTERM, SIGQUIT and SIGHUP on, waits, and returns
// inside == false with the exit code to leave with. Inside (in that second run, and in processes which that
// one starts) it returns inside == true at once. The child dies when this process does.
//
// An error that wraps ErrUnavailable says that the system refuses, at which step and what to do about it.
func Enter(o SandboxOptions) (inside bool, code int, err error) {
	switch v := os.Getenv(sandboxEnv); {
	case v == sandboxFirst:
		return true, 0, enterChild()
	case v != "" && v == mountNamespace():
		return true, 0, nil
	}
	code, err = enterParent(o)
	return false, code, err
}

// Inside tells whether this process runs in a sandbox made by Enter.
func Inside() bool {
	v := os.Getenv(sandboxEnv)
	return v != "" && v == mountNamespace()
}

// mountNamespace names the mount namespace of the process. Network namespaces will not do: a process that
// was started inside a host is still in the sandbox.
func mountNamespace() string {
	s, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return ""
	}
	return s
}

func enterParent(o SandboxOptions) (int, error) {
	args := o.Args
	if args == nil {
		args = os.Args[1:]
	}
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("lab: sandbox: pipe to the child: %w", err)
	}
	defer statusR.Close()
	defer statusW.Close()

	newUser := o.UserNamespace || !hasRights()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(withoutEnv(os.Environ(), sandboxEnv), sandboxEnv+"="+sandboxFirst)
	cmd.Env = append(cmd.Env, o.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{statusW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if newUser {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		cmd.SysProcAttr.GidMappingsEnableSetgroups = false
	}

	// The death signal is tied to the thread that forks, not to the process: this goroutine keeps its
	// thread until the child has ended, otherwise the runtime might end that thread and with it the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	relay := catchSignals() // before the start, so that none falls in between
	defer relay.stop()
	if err := cmd.Start(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("lab: sandbox: start /proc/self/exe: %w: mount /proc", err)
		}
		step := "clone into new mount and network namespaces"
		if newUser {
			step = "clone into new user, mount and network namespaces"
		}
		return 0, unavailable(step, err.Error(), newUser)
	}
	relay.to(cmd.Process)
	statusW.Close()

	status, readErr := io.ReadAll(statusR)
	waitErr := cmd.Wait()
	switch s := string(status); {
	case s == sandboxOK:
	case s != "":
		return 0, unavailable("set up the sandbox", s, newUser)
	case readErr != nil:
		return 0, fmt.Errorf("lab: sandbox: read the child's report: %w", readErr)
	default:
		return 0, fmt.Errorf("lab: sandbox: the child ended (%v) before it reached lab.Enter: call it first thing in main or TestMain", cmd.ProcessState)
	}
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return 0, fmt.Errorf("lab: sandbox: wait for the child: %w", waitErr)
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// signalRelay hands this process's signals to a child.
type signalRelay struct {
	caught chan os.Signal
	done   chan struct{}
	wg     sync.WaitGroup
}

func catchSignals() *signalRelay {
	r := &signalRelay{caught: make(chan os.Signal, 8), done: make(chan struct{})}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP} {
		if !signal.Ignored(s) { // as under nohup: it stays ignored, here and in the child
			signal.Notify(r.caught, s)
		}
	}
	return r
}

func (r *signalRelay) to(p *os.Process) {
	r.wg.Go(func() {
		for {
			select {
			case s := <-r.caught:
				// A terminal sends ^C and ^\ to the whole foreground group, child included: once is enough.
				if (s == unix.SIGINT || s == unix.SIGQUIT) && inForeground() {
					continue
				}
				_ = p.Signal(s) // it may have ended just now
			case <-r.done:
				return
			}
		}
	})
}

func (r *signalRelay) stop() {
	signal.Stop(r.caught)
	close(r.done)
	r.wg.Wait()
}

// inForeground tells whether this process group has the terminal.
func inForeground() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// enterChild is the sandbox's side: set up, prove that it works, report.
func enterChild() error {
	status := os.NewFile(sandboxStatusFD, "sandbox status")
	unix.CloseOnExec(sandboxStatusFD)
	defer status.Close()

	err := setUpSandbox()
	if err != nil {
		// The parent tells the story, with the remedy; this process has nothing to add.
		_, _ = io.WriteString(status, err.Error())
		status.Close()
		os.Exit(1)
	}
	if err := os.Setenv(sandboxEnv, mountNamespace()); err != nil {
		return fmt.Errorf("lab: sandbox: set %s: %w", sandboxEnv, err)
	}
	if _, err := io.WriteString(status, sandboxOK); err != nil {
		return fmt.Errorf("lab: sandbox: report to the parent: %w", err)
	}
	return nil
}

func setUpSandbox() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	here, err := Current("sandbox")
	if err != nil {
		return err
	}
	defer here.Close()
	if err := here.prepare(); err != nil {
		return err
	}
	return probe(here)
}

// probe makes and deletes a veth pair between this namespace and a new one: some systems let the clone
// pass and refuse what follows.
func probe(here *Namespace) error {
	other, err := NewNamespace("probe")
	if err != nil {
		return err
	}
	defer other.Close()
	if err := addVeth(here, "labprobe0", nil, other, "labprobe0", nil, 0); err != nil {
		return err
	}
	return here.deleteLink("labprobe0")
}

// hasRights tells whether the process can make mount and network namespaces without a user namespace.
func hasRights() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	return data[0].Effective&need == need
}

// unavailable builds the error that says what was refused and what to do.
func unavailable(step, reason string, newUser bool) error {
	return fmt.Errorf("lab: sandbox: %s: %s: %w; %s", step, reason, ErrUnavailable, remedy(reason, newUser, readSysctl))
}

// remedy looks for the switch that is off, and names all of them when none can be seen to be.
func remedy(reason string, newUser bool, read func(string) string) string {
	if strings.Contains(reason, unix.EOPNOTSUPP.Error()) {
		return "the kernel lacks the veth device: modprobe veth, or use a kernel with CONFIG_VETH"
	}
	var do []string
	if newUser {
		if read("kernel/unprivileged_userns_clone") == "0" {
			do = append(do, "sysctl -w kernel.unprivileged_userns_clone=1")
		}
		if v := read("kernel/apparmor_restrict_unprivileged_userns"); v != "" && v != "0" {
			do = append(do, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or give the program an AppArmor profile with userns)")
		}
		if read("user/max_user_namespaces") == "0" {
			do = append(do, "sysctl -w user.max_user_namespaces=15000")
		}
	}
	if read("user/max_net_namespaces") == "0" {
		do = append(do, "sysctl -w user.max_net_namespaces=15000")
	}
	if len(do) > 0 {
		return "as root: " + strings.Join(do, "; ") + "; or run this as root"
	}
	if newUser {
		return "check the sysctls kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 and user.max_user_namespaces>0, " +
			"in a container allow it (--privileged, or CAP_SYS_ADMIN, CAP_NET_ADMIN and a seccomp profile with clone and unshare), or run this as root"
	}
	return "check the sysctls user.max_net_namespaces>0 and user.max_mnt_namespaces>0; in a container run it with --privileged"
}

// readSysctl returns "" for a switch that this kernel does not have.
func readSysctl(key string) string {
	b, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func withoutEnv(env []string, key string) []string {
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, key+"=") {
			out = append(out, e)
		}
	}
	return out
}
