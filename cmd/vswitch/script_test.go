package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/lab"
)

// patience is how long a test waits for what has to come.
const patience = 30 * time.Second

// TestMain runs the test binary as vswitch itself when it is called so, and
// otherwise the tests, in a sandbox.
func TestMain(m *testing.M) {
	s := scripts{m, map[string]func(){"vswitch": main}}
	if s.commands[filepath.Base(os.Args[0])] != nil {
		s.Run()
	}
	lab.Main(s)
}

type scripts struct {
	m        *testing.M
	commands map[string]func()
}

func (s scripts) Run() int {
	testscript.Main(s.m, s.commands) // ends the process
	return 0
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") == "1",
		Setup: func(e *testscript.Env) error {
			e.Setenv("VSWITCH_SOCKET", filepath.Join(e.WorkDir, "control.sock"))
			return nil
		},
		Condition: func(c string) (bool, error) {
			if c != "systemconfig" {
				return false, errors.New("unknown condition")
			}
			_, err := os.Stat(systemConfig)
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"answering": answering,
		},
	})
}

// exits CODE COMMAND… runs a command that has to end with this code. What it
// prints can be looked at as after exec.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// answering waits until a switch answers on the script's socket.
func answering(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(lab.Eventually(ctx, "a switch to answer", func() error { return ts.Exec("vswitch", "stats") }))
}

// commands lists every command that does something, with its full name.
func commands(list []*cli.Command, before string) map[string]*cli.Command {
	all := map[string]*cli.Command{}
	for _, c := range list {
		name := before + c.Name
		if len(c.Subcommands) == 0 {
			all[name] = c
		}
		for n, s := range commands(c.Subcommands, name+" ") {
			all[n] = s
		}
	}
	return all
}

// Every command has a help text with an example of itself, in plain ASCII; and
// every one that reads has --json.
func TestHelp(t *testing.T) {
	for name, c := range commands(newApp(nil, nil).Commands, "") {
		var out, talk strings.Builder
		if code := execute(append(append([]string{"vswitch"}, strings.Fields(name)...), "--help"), &out, &talk); code != exitOK {
			t.Errorf("%s --help: exit code %d: %s", name, code, talk.String())
		}
		if !strings.Contains(out.String(), "Example:") || !strings.Contains(out.String(), "vswitch "+name) {
			t.Errorf("%s: no example of it in\n%s", name, out.String())
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("%s: not ASCII: %.20q", name, out.String()[i:])
		}
		hasJSON := false
		for _, f := range c.Flags {
			hasJSON = hasJSON || f.Names()[0] == "json"
		}
		switch name {
		case "run", "bundle promote", "config default", "filter insert", "filter remove", "route add", "route del", "nat flush", "inject clear",
			"completion", "man":
		default:
			if told := strings.HasPrefix(name, "adapter ") && name != "adapter list" && name != "adapter show"; !hasJSON && !told {
				t.Errorf("%s has no --json", name)
			}
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailure},
		{badInputf("x"), exitBadInput},
		{&control.Error{Code: control.CodeBadRequest}, exitBadInput},
		{&control.Error{Code: control.CodeNotFound}, exitFailure},
		{control.ErrInUse, exitBadInput},
		{control.ErrUnreachable, exitUnreachable},
		{cli.Exit("", 7), 7},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := newTable("NAME", "N>", "WHY")
	tab.add("a", 1, "")
	tab.add("longer", 1234, "esc \x1b[31m, umlaut ü, line\nfeed")
	var b strings.Builder
	tab.print(&b)
	want := "NAME       N  WHY\n" +
		"a          1  -\n" +
		"longer  1234  esc ?[31m, umlaut ?, line?feed\n"
	if b.String() != want {
		t.Errorf("table:\n%s\nwant\n%s", b.String(), want)
	}
}

// ICMP has identifiers and types, not ports; other protocols may have neither.
func TestPrintNAT(t *testing.T) {
	flow := func(protocol, from, to, back, at string) control.NATFlow {
		return control.NATFlow{Interface: "wan", Protocol: protocol, Kind: "masquerade", State: "new", Source: from, Destination: to, ReplySource: back, ReplyDestination: at}
	}
	var b strings.Builder
	printNAT(&b, control.NATTable{Total: 9, Used: 12, Limit: 65536, Flows: []control.NATFlow{
		flow("icmp", "10.1.0.2:2148", "10.2.0.2:8", "10.2.0.2:8", "10.2.0.1:7"),
		flow("icmpv6", "[fd01::2]:2148", "[fd02::2]:128", "[fd02::2]:128", "[fd02::1]:2148"),
		flow("icmp", "10.1.0.2:1", "10.2.0.2:13", "10.2.0.2:13", "10.2.0.1:1"),
		flow("47", "10.1.0.2:0", "10.2.0.2:0", "10.2.0.2:0", "10.2.0.1:0"),
		flow("tcp", "[fd01::2]:1", "[fd02::2]:80", "[fd02::2]:80", "[fd02::1]:1"),
	}})
	want := [][]string{
		{"FROM", "TO", "ANSWER FROM", "ANSWER TO"},
		{"10.1.0.2 id 2148", "10.2.0.2 echo", "10.2.0.2 echo", "10.2.0.1 id 7"},
		{"fd01::2 id 2148", "fd02::2 echo", "fd02::2 echo", "fd02::1 id 2148"},
		{"10.1.0.2 id 1", "10.2.0.2 timestamp", "10.2.0.2 timestamp", "10.2.0.1 id 1"},
		{"10.1.0.2", "10.2.0.2", "10.2.0.2", "10.2.0.1"},
		{"[fd01::2]:1", "[fd02::2]:80", "[fd02::2]:80", "[fd02::1]:1"},
	}
	lines := strings.Split(b.String(), "\n")
	for i, w := range want {
		if got := slices.DeleteFunc(strings.Split(lines[i], "  "), func(s string) bool { return strings.TrimSpace(s) == "" }); len(got) < 8 || !slices.EqualFunc(got[4:8], w, func(g, w string) bool { return strings.TrimSpace(g) == w }) {
			t.Errorf("%q, want %q", got, w)
		}
	}
	if got := lines[len(want)]; got != "5 of 9 flows shown; 12 in the table, room for 65536" {
		t.Errorf("%q", got)
	}
}
