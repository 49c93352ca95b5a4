package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Every operation on an adapter does what it is called.
func TestOperations(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	for _, step := range []struct {
		op        AdapterOp
		state     string
		suspended bool
	}{
		{OpPause, "paused", false}, {OpStart, "running", false}, {OpRestart, "running", false}, {OpReset, "running", false},
		{OpStop, "halted", false}, {OpStart, "running", false}, {OpSuspend, "halted", true}, {OpResume, "running", false},
	} {
		why := "to test " + string(step.op)
		check(t, c.Operate(ctx, step.op, "up1", why, false))
		a, err := c.Adapter(ctx, "up1")
		check(t, err)
		if a.State != step.state || a.Suspended != step.suspended {
			t.Errorf("after %s: %+v", step.op, a)
		}
		page, err := c.Events(ctx, 0)
		check(t, err)
		if !strings.Contains(fmt.Sprint(page.Events), why) {
			t.Errorf("%s: its reason is not in the events", step.op)
		}
	}
	if a, err := c.Adapter(ctx, "up1"); err != nil || a.Resets != 1 {
		t.Errorf("resets: %+v, %v", a, err)
	}
	check(t, c.Operate(ctx, OpRemove, "up1", "", true))
	for _, op := range AdapterOps {
		if err := wantError(c.Operate(ctx, op, "up1", "", false), CodeNotFound); err != nil {
			t.Errorf("%s of what is gone: %v", op, err)
		}
		if err := wantError(c.Operate(ctx, op, "", "", false), CodeNotFound); err != nil {
			t.Errorf("%s of nobody: %v", op, err)
		}
	}
	if err := wantError(c.Operate(ctx, OpResume, "up0", "", false), CodeConflict); err != nil {
		t.Errorf("resume of what is awake: %v", err)
	}
}

func TestAddAdapter(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	check(t, c.AddAdapter(ctx, AdapterSettings{Name: "up2", Driver: "fake", Settings: map[string]any{
		"mtu": 9000, "big": uint64(1) << 60, "share": 0.5, "up": true, "interface": "eth2", "filters": []any{"a", 1}, "deep": map[string]any{"n": 1},
	}}))
	if a, err := c.Adapter(ctx, "up2"); err != nil || a.State != "running" {
		t.Errorf("up2: %+v, %v", a, err)
	}
	// What was an integer arrives as one.
	want := map[string]any{
		"mtu": int64(9000), "big": int64(1) << 60, "share": 0.5, "up": true, "interface": "eth2", "filters": []any{"a", int64(1)}, "deep": map[string]any{"n": int64(1)},
	}
	if diff := cmp.Diff(want, r.added[0].Settings); diff != "" {
		t.Errorf("settings: want - got +\n%s", diff)
	}
	if err := wantError(c.AddAdapter(ctx, AdapterSettings{Name: "up2", Driver: "fake"}), CodeConflict); err != nil {
		t.Error(err)
	}
}

func TestFilters(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	chain := func() (names []string) {
		l, err := c.Filters(ctx)
		check(t, err)
		for _, f := range l {
			if f.Adapter == "up0" {
				names = append(names, fmt.Sprintf("%d %s %s", f.Position, f.Name, f.State))
			}
		}
		return names
	}
	check(t, c.InsertFilter(ctx, "up0", "low", 0))
	check(t, c.InsertFilter(ctx, "up0", "top", -1))
	if got := fmt.Sprint(chain()); got != "[0 low running 1 fault running 2 top running]" {
		t.Errorf("chain %s", got)
	}
	check(t, c.RemoveFilter(ctx, "up0", "fault"))
	if got := fmt.Sprint(chain()); got != "[0 low running 1 top running]" {
		t.Errorf("chain %s", got)
	}
	for what, err := range map[string]error{
		"remove twice":       wantError(c.RemoveFilter(ctx, "up0", "fault"), CodeNotFound),
		"remove on nobody":   wantError(c.RemoveFilter(ctx, "up9", "low"), CodeNotFound),
		"insert what is in":  wantError(c.InsertFilter(ctx, "up0", "low", 0), CodeConflict),
		"insert on a nobody": wantError(c.InsertFilter(ctx, "up9", "low", 0), CodeNotFound),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReadWhatIsNew(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	bridges, err := c.Bridges(ctx)
	if err != nil || len(bridges) != 2 || bridges[0].Ports[0].Trunk != "10,20-29" || bridges[1].Ports == nil || bridges[1].Groups == nil {
		t.Errorf("Bridges: %+v, %v", bridges, err)
	}
	if b, err := c.Bridge(ctx, "lan"); err != nil || b.Groups[0].Address != "239.1.2.3" {
		t.Errorf("Bridge: %+v, %v", b, err)
	}
	if i, err := c.Interface(ctx, "wan"); err != nil || !i.Up {
		t.Errorf("Interface: %+v, %v", i, err)
	}
	if n, err := c.NAT(ctx, NATMatch{}, 1); err != nil || len(n.Flows) != 1 || n.Total != 2 || n.Limit != 65536 {
		t.Errorf("NAT: %+v, %v", n, err)
	}
	if n, err := c.NAT(ctx, NATMatch{Address: "10.0.0.8", Interface: "wan"}, 100); err != nil || len(n.Flows) != 1 || n.Flows[0].Source != "10.0.0.8:1024" {
		t.Errorf("NAT: %+v, %v", n, err)
	}
	if n, err := c.NAT(ctx, NATMatch{Protocol: "tcp"}, 0); err != nil || len(n.Flows) != 0 || n.Total != 0 || n.Used != 2 {
		t.Errorf("NAT of another protocol: %+v, %v", n, err)
	}
	if n, err := c.NAT(ctx, NATMatch{}, 0); err != nil || len(n.Flows) != 2 { // 0: no bound but the answer's
		t.Errorf("NAT: %+v, %v", n, err)
	}
	if n, err := c.FlushNAT(ctx, NATMatch{Interface: "wan"}); err != nil || n != 2 {
		t.Errorf("FlushNAT: %d, %v", n, err)
	}
	route := RouteSettings{To: "203.0.113.0/24", Via: "192.0.2.1", Metric: 7}
	check(t, c.AddRoute(ctx, route))
	if err := wantError(c.AddRoute(ctx, route), CodeConflict); err != nil {
		t.Error(err)
	}
	check(t, c.DeleteRoute(ctx, route))
	if err := wantError(c.DeleteRoute(ctx, route), CodeNotFound); err != nil {
		t.Error(err)
	}
	if p, err := c.Apply(ctx, []byte("[log]"), true); err != nil || p.Applied || len(p.Steps) != 1 || p.Refused[0] != "control.socket" {
		t.Errorf("Apply: %+v, %v", p, err)
	}
	if p, err := c.Apply(ctx, []byte("nothing"), false); err != nil || !p.Applied || p.Steps == nil || p.Refused == nil {
		t.Errorf("Apply: %+v, %v", p, err)
	}
}

func TestFaults(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client
	kinds, err := c.FaultKinds(ctx)
	if err != nil || len(kinds) != 2 || kinds[1].Params == nil || !kinds[1].Device {
		t.Errorf("FaultKinds: %+v, %v", kinds, err)
	}
	first, err := c.Inject(ctx, FaultSettings{Kind: "drop", On: "up0"})
	if err != nil || first.ID != 1 || first.Params == nil || !strings.HasPrefix(first.Owner, "uid ") || !strings.Contains(first.Owner, ", pid ") {
		t.Errorf("Inject: %+v, %v", first, err)
	}
	if _, err := c.Inject(ctx, FaultSettings{Kind: "drop", On: "up1", Owner: "me"}); err != nil {
		t.Error(err)
	}
	if l, err := c.Faults(ctx); err != nil || len(l) != 2 || l[1].Owner != "me" {
		t.Errorf("Faults: %+v, %v", l, err)
	}
	for _, m := range []FaultMatch{{Owner: "me"}, {ID: 1}} {
		if n, err := c.ClearFaults(ctx, m); err != nil || n != 1 {
			t.Errorf("ClearFaults(%+v): %d, %v", m, n, err)
		}
	}
	if l, err := c.Faults(ctx); err != nil || l == nil || len(l) != 0 {
		t.Errorf("Faults: %+v, %v", l, err)
	}
	if _, err := c.Inject(ctx, FaultSettings{Kind: "flood", On: "up0"}); err == nil {
		t.Error("an unknown kind")
	}
}

// attach injects an attached fault; ended gets what InjectAttached returns.
func attach(t *testing.T, ctx context.Context, c *Client, on string) (began Fault, ended chan error) {
	t.Helper()
	there, ended := make(chan Fault, 1), make(chan error, 1)
	go func() {
		end, err := c.InjectAttached(ctx, FaultSettings{Kind: "drop", On: on}, func(f Fault) { there <- f })
		if err == nil {
			err = errors.New(end)
		}
		ended <- err
	}()
	select {
	case began = <-there:
	case err := <-ended:
		t.Fatalf("not injected: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not injected")
	}
	return began, ended
}

func wantEnd(t *testing.T, ended chan error, want string) {
	t.Helper()
	select {
	case err := <-ended:
		if err.Error() != want {
			t.Errorf("ended with %v, want %s", err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not end; want %s", want)
	}
}

// An attached fault ends with its owner's connection, and its owner hears when
// it ends otherwise.
func TestAttachedFault(t *testing.T) {
	r := serveFixture(t, nil)
	ctx, c := ndistest.Context(t), r.client

	gone := func(id uint64) {
		t.Helper()
		ndistest.Await(t, "the fault to be over", func() bool {
			l, err := c.Faults(ctx)
			return err == nil && !slices.ContainsFunc(l, func(f Fault) bool { return f.ID == id })
		})
	}
	owner, hangUp := context.WithCancel(ctx)
	defer hangUp()
	first, ended := attach(t, owner, c, "up0")
	second, other := attach(t, ctx, c, "up0") // of another owner: stays
	hangUp()
	wantEnd(t, ended, context.Canceled.Error())
	gone(first.ID)
	if l, err := c.Faults(ctx); err != nil || len(l) != 1 || l[0].ID != second.ID {
		t.Errorf("Faults: %+v, %v", l, err)
	}
	// Others' ends, and those of numbers that begin alike, are not its own.
	for range 20 {
		x, err := c.Inject(ctx, FaultSettings{Kind: "drop", On: "up0"})
		check(t, err)
		_, err = c.ClearFaults(ctx, FaultMatch{ID: x.ID})
		check(t, err)
	}
	if n := r.end("fault.expired", FaultMatch{ID: second.ID}); n != 1 {
		t.Fatalf("%d faults expired", n)
	}
	wantEnd(t, other, EndExpired)

	_, ended = attach(t, ctx, c, "up1")
	_, err := c.ClearFaults(ctx, FaultMatch{On: "up1"})
	check(t, err)
	wantEnd(t, ended, EndCleared)

	third, ended := attach(t, ctx, c, "up1")
	r.stop()
	wantEnd(t, ended, EndStopped)
	if l, _ := r.Faults(ctx); len(l) != 0 {
		t.Errorf("after the end of the server: %+v, was %+v", l, third)
	}
	ndistest.Await(t, "the followers to be gone", func() bool { return r.server.followers.Load() == 0 })
}

// An owner whose fault's end is among lost events hears of it all the same.
func TestAttachedFaultEndIsLost(t *testing.T) {
	r := serve(t, newFixture(t, 8), nil)
	fault, ended := attach(t, ndistest.Context(t), r.client, "up0")
	r.end("", FaultMatch{ID: fault.ID})
	ndistest.Await(t, "the owner to hear", func() bool {
		for range 100 { // faster than anybody can read
			r.tell("test", fault)
		}
		return len(ended) > 0
	})
	wantEnd(t, ended, EndUnknown)
}

// Owners that send no more, do not read, or half close their connection: who is
// gone takes the fault along, who stays costs one place of those for followers.
func TestHostileOwners(t *testing.T) {
	r := serveFixture(t, func(l *limits) { l.followers = 3; l.read = 100 * time.Millisecond })
	ctx := ndistest.Context(t)
	const body = `{"kind": "drop", "on": "up0"}`
	begin := func() (*net.UnixConn, int) {
		c := dial(t, r.path)
		fmt.Fprintf(c, "POST /v1/faults?attached=true HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(newReader(c), nil)
		check(t, err)
		return c, resp.StatusCode
	}
	var owners []*net.UnixConn
	for range 3 {
		c, status := begin()
		if status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		owners = append(owners, c)
	}
	if _, status := begin(); status != http.StatusServiceUnavailable {
		t.Errorf("beyond the limit: status %d", status)
	}
	r.wantAlive(t)
	count := func(n int) {
		t.Helper()
		ndistest.Await(t, fmt.Sprintf("%d faults", n), func() bool { l, _ := r.Faults(ctx); return len(l) == n })
	}
	count(3) // also after the limit for reading
	check(t, owners[0].CloseWrite())
	count(2)
	owners[1].Close()
	count(1)
	// One with half a body begins nothing.
	c := dial(t, r.path)
	fmt.Fprintf(c, "POST /v1/faults?attached=true HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body)+1, body)
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("not sent away: %v", err)
	}
	count(1)
	owners[2].Close()
	count(0)
}

// A body of any shape gets an answer, and never a fault of the switch.
func FuzzBodies(f *testing.F) {
	var posts []route
	for _, rt := range routes() {
		if rt.method == http.MethodPost {
			posts = append(posts, rt)
		}
	}
	for _, d := range readme(f) {
		if d.method == http.MethodPost {
			i := slices.IndexFunc(posts, func(rt route) bool { return rt.path == d.path })
			f.Add(uint8(i), d.blocks["json"][0])
		}
	}
	f.Add(uint8(0), `{"settings": {"a": 1e999, "b": [[[{}]]], "c": -0, "d": 9223372036854775808}, "name": "a", "driver": "b"}`)
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		rt := posts[int(which)%len(posts)]
		sw := &silent{}
		hr, err := http.NewRequest(http.MethodPost, strings.Replace(rt.path, "{name}", "up0", 1), strings.NewReader(body))
		check(t, err)
		w := record(sw, hr)
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%s: %d %q: %v", rt.path, w.Code, w.Body, err)
		}
		switch w.Code {
		case http.StatusOK:
			if !json.Valid([]byte(body)) && strings.TrimSpace(body) != "" {
				t.Errorf("%s takes %q", rt.path, body)
			}
		case http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusConflict:
			if sw.commands.Load() > 0 && w.Code != http.StatusNotFound && w.Code != http.StatusConflict {
				t.Errorf("%s: refused and carried out: %d %s", rt.path, w.Code, w.Body)
			}
		default:
			t.Errorf("%s: %d %s", rt.path, w.Code, w.Body)
		}
	})
}
