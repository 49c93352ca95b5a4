package lab

// No network here: these tests run the test binary again in several roles, each its own process.
//
//	test ──► role, outside a sandbox ──lab.Enter──► the same role, inside

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const roleEnv = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	Main(m)
}

// facts is what a role found inside, told as JSON.
type facts struct {
	UID       int
	Args      []string
	Env       string
	Net       string
	Stdin     string
	Up        []string // interfaces that are up
	Shared    int      // mounts that propagate
	StatusFD  bool     // whether the pipe to the parent leaked
	Grandkid  string   // what a child of the sandboxed process says about Inside
	EnvMarker string
}

func playRole(role string) int {
	switch role {
	case "grandchild":
		fmt.Print(Inside())
		return 0
	case "forbid-net":
		return playForbidden("/proc/sys/user/max_net_namespaces", func() int {
			Main(fakeTests{})
			return 98 // Main does not return
		})
	case "forbid-user":
		return playForbidden("/proc/sys/user/max_user_namespaces", func() int {
			_, _, err := Enter(SandboxOptions{UserNamespace: true})
			fmt.Print(err)
			if !errors.Is(err, ErrUnavailable) {
				return 97
			}
			return 0
		})
	case "late":
		if os.Getenv(sandboxEnv) != "" {
			return 5 // a program that ends before it calls Enter
		}
	}
	statusPipe, _ := os.Readlink("/proc/self/fd/3") // in the first run, something else
	inside, code, err := Enter(SandboxOptions{UserNamespace: os.Getenv("LAB_TEST_USERNS") == "1"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	if !inside {
		return code
	}
	switch role {
	case "facts":
		if err := json.NewEncoder(os.Stdout).Encode(gatherFacts(statusPipe)); err != nil {
			return 96
		}
		return 7
	case "term":
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM)
		fmt.Println(os.Getpid())
		select {
		case <-c:
			return 42
		case <-time.After(20 * time.Second):
			return 95
		}
	case "abort":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		<-time.After(20 * time.Second)
	}
	return 94
}

// playForbidden runs in a user namespace of its own, takes a right away there, and goes on.
func playForbidden(key string, then func() int) int {
	if err := os.WriteFile(key, []byte("0"), 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	return then()
}

// fakeTests stands for a package's tests: one that needs the sandbox.
type fakeTests struct{}

func (fakeTests) Run() int {
	t := &fakeT{name: "TestFake"}
	t.run(func() { Need(t) })
	t.finish()
	fmt.Printf("skipped=%q failed=%q", t.skipped, t.failed)
	return 3
}

func gatherFacts(statusPipe string) facts {
	f := facts{UID: os.Getuid(), Args: os.Args[1:], Env: os.Getenv("LAB_TEST_ENV"), EnvMarker: os.Getenv(sandboxEnv)}
	f.Net, _ = os.Readlink("/proc/self/ns/net")
	in, _ := io.ReadAll(os.Stdin)
	f.Stdin = string(in)
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		if i.Flags&net.FlagUp != 0 {
			f.Up = append(f.Up, i.Name)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	f.Shared = strings.Count(string(mounts), " shared:")
	fds, _ := openFiles()
	for _, to := range fds {
		f.StatusFD = f.StatusFD || to == statusPipe
	}
	kid := exec.Command("/proc/self/exe")
	kid.Env = append(os.Environ(), roleEnv+"=grandchild")
	out, err := kid.CombinedOutput()
	f.Grandkid = fmt.Sprintf("%s %v", out, err)
	return f
}

// outside is a command that plays a role as if it had not been started from a sandbox.
func outside(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(withoutEnv(os.Environ(), sandboxEnv), roleEnv+"="+role)
	return cmd
}

func exitCode(t *testing.T, cmd *exec.Cmd, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func TestEnter(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"0", "1"} {
		t.Run("userns="+user, func(t *testing.T) {
			cmd := outside(t, "facts", "-x", "two words")
			cmd.Env = append(cmd.Env, "LAB_TEST_ENV=kept", "LAB_TEST_USERNS="+user)
			cmd.Stdin = strings.NewReader("typed")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if code := exitCode(t, cmd, err); code != 7 {
				t.Fatalf("exit code %d, not the child's 7: %s%s", code, out, &stderr)
			}
			var f facts
			if err := json.Unmarshal(out, &f); err != nil {
				t.Fatalf("%v in %q", err, out)
			}
			if f.UID != 0 || !slices.Equal(f.Args, []string{"-x", "two words"}) || f.Env != "kept" || f.Stdin != "typed" {
				t.Errorf("uid, arguments, environment or input did not get through: %+v", f)
			}
			if f.Net == here || !slices.Equal(f.Up, []string{"lo"}) || f.Shared != 0 {
				t.Errorf("want a network of its own with lo up and private mounts: %+v", f)
			}
			if f.StatusFD {
				t.Error("the pipe to the parent is still open inside")
			}
			if f.Grandkid != "true <nil>" {
				t.Errorf("a child of the sandboxed process says: inside %s", f.Grandkid)
			}
		})
	}
}

func TestEnterForwardsSignals(t *testing.T) {
	Need(t)
	cmd := outside(t, "term")
	inner := startRole(t, cmd)
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd, cmd.Wait()); code != 42 {
		t.Errorf("exit code %d, want 42 from the child's handler", code)
	}
	waitDead(t, inner)
}

func TestEnterDiesWithItsParent(t *testing.T) {
	Need(t)
	cmd := outside(t, "term")
	inner := startRole(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitDead(t, inner)
}

// startRole starts a role that prints the number of its inner process.
func startRole(t *testing.T, cmd *exec.Cmd) (inner int) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the role said nothing: %v", err)
	}
	inner, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return inner
}

func waitDead(t *testing.T, pid int) {
	t.Helper()
	err := Eventually(t.Context(), "the inner process to end", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil // gone
		}
		if _, after, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(after, "Z") {
			return nil // dead, and whoever inherited it has not looked yet
		}
		return fmt.Errorf("process %d lives: %s", pid, stat)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEnterTellsDeathBySignal(t *testing.T) {
	Need(t)
	cmd := outside(t, "abort")
	if code := exitCode(t, cmd, cmd.Run()); code != 128+int(unix.SIGKILL) {
		t.Errorf("exit code %d, want 137", code)
	}
}

func TestEnterCalledTooLate(t *testing.T) {
	Need(t)
	cmd := outside(t, "late")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if code := exitCode(t, cmd, cmd.Run()); code != 99 || !strings.Contains(stderr.String(), "before it reached lab.Enter") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
}

// A namespace that allows no further ones stands for a system that refuses.
func TestRefused(t *testing.T) {
	Need(t)
	tests := []struct {
		name, role string
		env        []string
		code       int
		want       []string
	}{
		{"enter", "forbid-user", nil, 0, []string{"clone into new user", "user.max_user_namespaces=15000", "as root"}},
		{"skip", "forbid-net", []string{StrictEnv + "=0"}, 3, []string{
			`skipped="TestFake needs network namespaces`, "user.max_net_namespaces=15000", `failed=""`}},
		{"strict", "forbid-net", []string{StrictEnv + "=1"}, 3, []string{
			`skipped=""`, `failed="TestFake needs network namespaces`, "user.max_net_namespaces=15000"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := outside(t, tt.role)
			cmd.Env = append(cmd.Env, tt.env...)
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			}
			out, err := cmd.CombinedOutput()
			if code := exitCode(t, cmd, err); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("it does not say %q:\n%s", w, out)
				}
			}
		})
	}
}

func TestRemedy(t *testing.T) {
	tests := []struct {
		name, reason string
		user         bool
		sysctls      map[string]string
		want         string
	}{
		{"debian", "operation not permitted", true, map[string]string{"kernel/unprivileged_userns_clone": "0"}, "as root: sysctl -w kernel.unprivileged_userns_clone=1;"},
		{"ubuntu", "operation not permitted", true, map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"none left", "no space left on device", true, map[string]string{"user/max_user_namespaces": "0"}, "as root: sysctl -w user.max_user_namespaces=15000;"},
		{"unknown", "operation not permitted", true, nil, "check the sysctls kernel.unprivileged_userns_clone=1"},
		{"root in a container", "operation not permitted", false, nil, "--privileged"},
		{"no veth", "add veth: operation not supported", true, nil, "modprobe veth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := remedy(tt.reason, tt.user, func(key string) string { return tt.sysctls[key] })
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}

func TestNeedWithoutMain(t *testing.T) {
	Need(t)
	marker := os.Getenv(sandboxEnv)
	t.Setenv(sandboxEnv, "")
	ft := &fakeT{name: "TestFake"}
	ft.run(func() { Need(ft) })
	os.Setenv(sandboxEnv, marker)
	if !strings.Contains(ft.failed, "lab.Main(m)") {
		t.Errorf("got %q, want it to say how", ft.failed)
	}
}

// fakeT records what happens to a test.
type fakeT struct {
	name            string
	failed, skipped string
	cleanups        []func()
}

func (t *fakeT) Helper()             {}
func (t *fakeT) Name() string        { return t.name }
func (t *fakeT) Cleanup(f func())    { t.cleanups = append(t.cleanups, f) }
func (t *fakeT) Logf(string, ...any) {}
func (t *fakeT) Errorf(format string, args ...any) {
	t.failed += fmt.Sprintf(format, args...)
}
func (t *fakeT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic(t)
}
func (t *fakeT) Skipf(format string, args ...any) {
	t.skipped = fmt.Sprintf(format, args...)
	panic(t)
}

// run runs a body that Fatalf or Skipf may end.
func (t *fakeT) run(body func()) {
	defer func() {
		if r := recover(); r != nil && r != any(t) {
			panic(r)
		}
	}()
	body()
}

func (t *fakeT) finish() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}
