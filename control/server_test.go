package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func TestClientReadsEverything(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	if v, err := c.Version(ctx); err != nil || v != r.Version() {
		t.Errorf("Version: %+v, %v", v, err)
	}
	adapters, err := c.Adapters(ctx)
	if err != nil || len(adapters) != 3 || adapters[0].Name != "up0" || adapters[0].State != "running" || adapters[0].Bundle != "wan" {
		t.Errorf("Adapters: %+v, %v", adapters, err)
	}
	if a, err := c.Adapter(ctx, "wan"); err != nil || a.Driver != "team" || !a.Virtual || len(a.Bindings) != 1 {
		t.Errorf("Adapter: %+v, %v", a, err)
	}
	bundles, err := c.Bundles(ctx)
	if err != nil || len(bundles) != 1 || bundles[0].Active != "up0" || bundles[0].Hold != "1s" {
		t.Errorf("Bundles: %+v, %v", bundles, err)
	}
	if b, err := c.Bundle(ctx, "wan"); err != nil || len(b.Members) != 2 || b.Members[1].Role != "standby" {
		t.Errorf("Bundle: %+v, %v", b, err)
	}
	if b, err := c.Bindings(ctx); err != nil || len(b) != 3 {
		t.Errorf("Bindings: %+v, %v", b, err)
	}
	for _, bridge := range []string{"", "lan"} {
		if e, err := c.FDB(ctx, bridge); err != nil || len(e) != 1 || e[0] != (FDBEntry{"02:00:00:00:00:02", 0, "lan0", 3, false}) {
			t.Errorf("FDB(%q): %+v, %v", bridge, e, err)
		}
	}
	if i, err := c.Interfaces(ctx); err != nil || len(i) != 1 || i[0].Addresses[0] != "192.0.2.2/24" {
		t.Errorf("Interfaces: %+v, %v", i, err)
	}
	if l, err := c.Routes(ctx); err != nil || len(l) != 1 || l[0].Via != "" || l[0].Kind != "connected" {
		t.Errorf("Routes: %+v, %v", l, err)
	}
	if l, err := c.Neighbors(ctx); err != nil || len(l) != 1 || l[0].IP != "192.0.2.1" {
		t.Errorf("Neighbors: %+v, %v", l, err)
	}
	if s, err := c.Stats(ctx); err != nil || len(s.Adapters) != 3 || s.Router["ip.sent"] != 4 {
		t.Errorf("Stats: %+v, %v", s, err)
	}
	if b, err := c.Config(ctx); err != nil || string(b) != string(r.Config()) {
		t.Errorf("Config: %q, %v", b, err)
	}
	want, _, _ := r.core.Events(2)
	page, err := c.Events(ctx, 2)
	if err != nil || page.Lost != 0 || page.Last != want[len(want)-1].Seq {
		t.Errorf("Events: %+v, %v", page, err)
	}
	// A time loses its monotonic part on the way.
	if diff := cmp.Diff(want, page.Events, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
		t.Errorf("Events: core - client +\n%s", diff)
	}
}

func TestCommands(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	if err := c.Promote(ctx, "wan", "up1"); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Bundle(ctx, "wan"); err != nil || b.Active != "up1" {
		t.Errorf("after promote: %+v, %v", b, err)
	}
	if err := c.Operate(ctx, OpRemove, "up1", "the cable goes", false); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Bundle(ctx, "wan"); err != nil || b.Active != "up0" {
		t.Errorf("after remove: %+v, %v", b, err)
	}
	if a, err := c.Adapters(ctx); err != nil || len(a) != 2 {
		t.Errorf("after remove: %+v, %v", a, err)
	}
	page, err := c.Events(ctx, 0)
	if err != nil || !strings.Contains(fmt.Sprint(page.Events), "the cable goes") {
		t.Errorf("the reason is not in the events: %+v, %v", page, err)
	}
	for _, tc := range []struct {
		name string
		err  error
		code Code
	}{
		{"remove what is gone", c.Operate(ctx, OpRemove, "up1", "", false), CodeNotFound},
		{"promote what is gone", c.Promote(ctx, "wan", "up1"), CodeConflict},
		{"promote a stranger", c.Promote(ctx, "wan", "lan0"), CodeNotFound},
		{"promote in a stranger", c.Promote(ctx, "lan", "up0"), CodeNotFound},
		{"promote nobody", c.Promote(ctx, "wan", ""), CodeBadRequest},
		{"a long reason", c.Operate(ctx, OpRemove, "up0", strings.Repeat("x", 300), false), CodeBadRequest},
		{"a long name", c.Operate(ctx, OpRemove, strings.Repeat("x", 300), "", false), CodeBadRequest},
		{"a name with slashes", c.Operate(ctx, OpRemove, "../../up0", "", false), CodeNotFound},
		{"a fault", c.Operate(ctx, OpRemove, "panic", "", false), CodeInternal},
	} {
		if err := wantError(tc.err, tc.code); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := c.Version(ctx); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// Every bad request is refused with the right status, in JSON, and nothing
// reaches the switch.
func TestBadRequests(t *testing.T) {
	r := serveFixture(t, nil)
	for _, tc := range []struct {
		method, target, body string
		status               int
		code                 Code
	}{
		{"GET", "/", "", 404, CodeNotFound},
		{"GET", "/v1", "", 404, CodeNotFound},
		{"GET", "/v2/adapters", "", 404, CodeNotFound},
		{"GET", "/v1/adapters/", "", 404, CodeNotFound},
		{"GET", "/v1//adapters", "", 404, CodeNotFound},
		{"GET", "/v1/./adapters", "", 404, CodeNotFound},
		{"GET", "/v1/adapters/up0/remove/x", "", 404, CodeNotFound},
		{"GET", "/v1/adapters/nobody", "", 404, CodeNotFound},
		{"GET", "/v1/adapters/up0%2Fremove", "", 404, CodeNotFound},
		{"GET", "/v1/adapters/%00", "", 404, CodeNotFound},
		{"GET", "/v1/bundles/nobody", "", 404, CodeNotFound},
		{"GET", "/v1/fdb?bridge=nobody", "", 404, CodeNotFound},
		{"GET", "/v1/fdb?bridge=", "", 400, CodeBadRequest},
		{"GET", "/v1/fdb?bridge=" + strings.Repeat("x", 100), "", 400, CodeBadRequest},
		{"GET", "/v1/fdb?port=lan0", "", 400, CodeBadRequest},
		{"GET", "/v1/fdb?bridge=lan&bridge=lan", "", 400, CodeBadRequest},
		{"GET", "/v1/fdb?bridge=%zz", "", 400, CodeBadRequest},
		{"GET", "/v1/adapters/" + strings.Repeat("x", 65), "", 400, CodeBadRequest},
		{"GET", "/v1/adapters/" + strings.Repeat("x", 3000), "", 414, CodeTooLarge},
		{"GET", "/v1/events?after=", "", 400, CodeBadRequest},
		{"GET", "/v1/events?after=-1", "", 400, CodeBadRequest},
		{"GET", "/v1/events?after=9223372036854775808", "", 400, CodeBadRequest},
		{"GET", "/v1/events?after=soon", "", 400, CodeBadRequest},
		{"GET", "/v1/events?follow=yes", "", 400, CodeBadRequest},
		{"GET", "/v1/version?x", "", 400, CodeBadRequest},
		{"GET", "/v1/version", "{}", 400, CodeBadRequest},
		{"POST", "/v1/version", "", 405, CodeMethod},
		{"HEAD", "/v1/version", "", 405, ""},
		{"OPTIONS", "*", "", 404, CodeNotFound},
		{"DELETE", "/v1/adapters/up0", "", 405, CodeMethod},
		{"GET", "/v1/adapters/up0/remove", "", 405, CodeMethod},
		{"BREW", "/v1/adapters", "", 405, CodeMethod},
		{"POST", "/v1/adapters/up0/remove", "{", 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/remove", "[]", 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/remove", `{"why": 7}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/remove", `{"force": 1}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/stop", `{"force": true}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/explode", "", 404, CodeNotFound},
		{"POST", "/v1/adapters/up0/start", `{"reason": "x"}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters", "", 400, CodeBadRequest},
		{"POST", "/v1/adapters", `{"name": "x"}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters", `{"driver": "x"}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters", `{"name": "x", "driver": "fake", "settings": ["mtu"]}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters", `{"name": "x", "driver": "fake", "mtu": 1500}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters", `{"name": "` + strings.Repeat("x", 65) + `", "driver": "fake"}`, 400, CodeBadRequest},
		{"DELETE", "/v1/adapters", "", 405, CodeMethod},
		{"GET", "/v1/filters/insert", "", 405, CodeMethod},
		{"POST", "/v1/filters/insert", "", 400, CodeBadRequest},
		{"POST", "/v1/filters/insert", `{"adapter": "up0"}`, 400, CodeBadRequest},
		{"POST", "/v1/filters/insert", `{"adapter": "up0", "filter": "x", "at": "top"}`, 400, CodeBadRequest},
		{"POST", "/v1/filters/insert", `{"adapter": "up0", "filter": "x", "at": 1.5}`, 400, CodeBadRequest},
		{"POST", "/v1/filters/remove", `{"adapter": "up0", "filter": "x", "at": 1}`, 400, CodeBadRequest},
		{"POST", "/v1/filters/remove", `{"adapter": "` + strings.Repeat("x", 65) + `", "filter": "x"}`, 400, CodeBadRequest},
		{"GET", "/v1/bridges/nobody", "", 404, CodeNotFound},
		{"GET", "/v1/interfaces/nobody", "", 404, CodeNotFound},
		{"POST", "/v1/routes", "{}", 405, CodeMethod},
		{"POST", "/v1/routes/add", "", 400, CodeBadRequest},
		{"POST", "/v1/routes/add", `{"via": "192.0.2.1"}`, 400, CodeBadRequest},
		{"POST", "/v1/routes/add", `{"to": "` + strings.Repeat("1", 65) + `"}`, 400, CodeBadRequest},
		{"POST", "/v1/routes/add", `{"to": "default", "metric": -1}`, 400, CodeBadRequest},
		{"POST", "/v1/routes/add", `{"to": "default", "metric": 4294967296}`, 400, CodeBadRequest},
		{"POST", "/v1/routes/delete", `{"to": ["default"]}`, 400, CodeBadRequest},
		{"GET", "/v1/nat?limit=", "", 400, CodeBadRequest},
		{"GET", "/v1/nat?limit=-1", "", 400, CodeBadRequest},
		{"GET", "/v1/nat?limit=10001", "", 400, CodeBadRequest},
		{"GET", "/v1/nat?limit=all", "", 400, CodeBadRequest},
		{"GET", "/v1/nat?address=" + strings.Repeat("1", 65), "", 400, CodeBadRequest},
		{"GET", "/v1/nat?interface=wan&interface=lan", "", 400, CodeBadRequest},
		{"GET", "/v1/nat?protocol=" + strings.Repeat("1", 65), "", 400, CodeBadRequest},
		{"POST", "/v1/nat/flush", `{"all": true}`, 400, CodeBadRequest},
		{"POST", "/v1/nat/flush", `{"interface": "` + strings.Repeat("x", 65) + `"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults", "", 400, CodeBadRequest},
		{"POST", "/v1/faults", `{"kind": "drop"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults", `{"on": "up0"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults", `{"kind": "drop", "on": "up0", "params": {"chance": 1}}`, 400, CodeBadRequest},
		{"POST", "/v1/faults", `{"kind": "drop", "on": "up0", "seed": -1}`, 400, CodeBadRequest},
		{"POST", "/v1/faults", `{"kind": "drop", "on": "up0", "owner": "` + strings.Repeat("x", 65) + `"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults?attached=maybe", `{"kind": "drop", "on": "up0"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults?attached=", `{"kind": "drop", "on": "up0"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults?detach=true", `{"kind": "drop", "on": "up0"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults?attached=true", `{"kind": "drop", "on": "up0"} {}`, 400, CodeBadRequest},
		{"POST", "/v1/faults/kinds", "", 405, CodeMethod},
		{"POST", "/v1/faults/clear", "", 400, CodeBadRequest},
		{"POST", "/v1/faults/clear", `{"all": false}`, 400, CodeBadRequest},
		{"POST", "/v1/faults/clear", `{"id": "1"}`, 400, CodeBadRequest},
		{"POST", "/v1/faults/clear", `{"owner": "` + strings.Repeat("x", 65) + `"}`, 400, CodeBadRequest},
		{"POST", "/v1/config", "", 405, CodeMethod},
		{"POST", "/v1/config/apply", "", 400, CodeBadRequest},
		{"POST", "/v1/config/apply", `{"toml": " \n"}`, 400, CodeBadRequest},
		{"POST", "/v1/config/apply", `{"toml": "[control]", "dryrun": true}`, 400, CodeBadRequest},
		{"POST", "/v1/config/apply", "[control]\n", 400, CodeBadRequest},
		{"POST", "/v1/config/apply", `{"toml": "` + strings.Repeat("#", maxConfigBytes) + `"}`, 413, CodeTooLarge},
		{"POST", "/v1/adapters/up0/remove", `{"why": "a"} {"why": "b"}`, 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/remove?why=a", "", 400, CodeBadRequest},
		{"POST", "/v1/adapters/up0/remove", `{"why": "` + strings.Repeat("x", 70_000) + `"}`, 413, CodeTooLarge},
		{"POST", "/v1/bundles/wan/promote", "", 400, CodeBadRequest},
		{"POST", "/v1/bundles/wan/promote", "null", 400, CodeBadRequest},
		{"POST", "/v1/bundles/wan/promote", `{"member": "` + strings.Repeat("x", 100) + `"}`, 400, CodeBadRequest},
	} {
		t.Run(fmt.Sprintf("%s %.60s %.30s", tc.method, tc.target, tc.body), func(t *testing.T) {
			c := dial(t, r.path)
			fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", tc.method, tc.target, len(tc.body), tc.body)
			resp, body := readResponse(t, c, tc.method)
			if resp.StatusCode != tc.status {
				t.Errorf("status %s, want %d: %s", resp.Status, tc.status, body)
			}
			if tc.code == "" {
				return
			}
			if want := fmt.Sprintf(`{"error":{"code":"%s","message":"`, tc.code); resp.Header.Get("Content-Type") != jsonType || !strings.HasPrefix(body, want) {
				t.Errorf("%s: %s, want %s", resp.Header.Get("Content-Type"), body, want)
			}
			if tc.code == CodeMethod && resp.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
	if n := r.commands.Load(); n != 0 {
		t.Errorf("%d bad requests reached the switch", n)
	}
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func readResponse(t *testing.T, c net.Conn, method string) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(newReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestHugeAnswer(t *testing.T) {
	r := serveFixture(t, nil)
	entries, err := r.client.FDB(ndistest.Context(t), "huge")
	if err != nil || len(entries) != 50_000 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// A question that the switch does not answer ends with the client, and leaves
// everybody else alone.
func TestSwitchDoesNotAnswer(t *testing.T) {
	f := newFixture(t, 0)
	f.hold = make(chan struct{})
	r := serve(t, f, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.client.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stats: %v", err)
	}
	if _, err := r.client.Version(ndistest.Context(t)); err != nil {
		t.Error(err)
	}
	if err := wantError(errorFrom(fmt.Errorf("stats: %w", context.DeadlineExceeded)), CodeTimeout); err != nil {
		t.Error(err)
	}
}

func TestStoppedSwitch(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code Code
	}{
		{ndiscore.ErrStopped, CodeStopping}, {ndiscore.ErrNotSupported, CodeNotSupported}, {ndiscore.ErrQuarantined, CodeConflict},
		{ndiscore.ErrAdapterNotFound, CodeNotFound}, {ndiscore.ErrInvalidState, CodeConflict}, {io.ErrUnexpectedEOF, CodeInternal},
	} {
		if err := wantError(errorFrom(fmt.Errorf("who: what: %w", tc.err)), tc.code); err != nil {
			t.Error(err)
		}
	}
}

func TestServeEnds(t *testing.T) {
	r := serveFixture(t, func(l *limits) { l.stop = 100 * time.Millisecond })
	if _, err := r.client.Version(ndistest.Context(t)); err != nil {
		t.Fatal(err)
	}
	idle := dial(t, r.path) // has sent nothing
	r.stop()
	if _, err := os.Lstat(r.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is left")
	}
	_, err := r.client.Version(ndistest.Context(t))
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "is it running?") {
		t.Errorf("after the end: %v", err)
	}
}

// A server that is never served gives its socket back all the same.
func TestCloseWithoutServe(t *testing.T) {
	path := t.TempDir() + "/s"
	for range 3 {
		s, err := New(Options{Socket: path, Switch: &fixture{}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{Socket: path, Switch: &fixture{}}); !errors.Is(err, ErrInUse) {
			t.Errorf("the second one: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := New(Options{Socket: path}); err == nil {
		t.Error("a server without a switch")
	}
	if _, err := New(Options{Socket: path, Switch: &fixture{}, Group: "no such group"}); err == nil {
		t.Error("a server for a group that is not there")
	}
}

func TestClientWithoutServer(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir + "/none", "/dev/null", dir + "/" + strings.Repeat("x", 200), "@abstract"} {
		if _, err := NewClient(path).Adapters(ndistest.Context(t)); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// Somebody who does not speak HTTP.
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 100))
			_, _ = io.WriteString(c, "220 smtp ready\r\n")
			c.Close()
		}
	}()
	c := NewClient(dir + "/s")
	defer c.Close()
	if _, err := c.Adapters(ndistest.Context(t)); err == nil || errors.Is(err, ErrUnreachable) {
		t.Errorf("a mail server: %v", err)
	}
}
