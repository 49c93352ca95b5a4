package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// ErrUnreachable says that nobody could be asked: no switch runs there, or we
// may not connect.
var ErrUnreachable = errors.New("no vswitch answers")

// Client asks and tells a running switch. Its methods may be called from any
// goroutine. They return an *Error when the switch refuses, and one that wraps
// ErrUnreachable when there is none.
type Client struct {
	path string
	http *http.Client
}

// NewClient makes a client for the socket at path; "" means DefaultSocket(). It
// connects when it is first used.
func NewClient(path string) *Client {
	if path == "" {
		path = DefaultSocket()
	}
	c := &Client{path: path}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		ResponseHeaderTimeout: applyTimeout + askTimeout,
		DisableCompression:    true,
		MaxIdleConns:          2,
		IdleConnTimeout:       30 * time.Second, // less than the server's
	}}
	return c
}

// Socket is the path of the socket.
func (c *Client) Socket() string { return c.path }

// Close lets go of connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	path, err := filepath.Abs(c.path) // "@…" would be an abstract address
	if err != nil {
		return nil, err
	}
	if err := checkPath(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	d := net.Dialer{Timeout: askTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: is it running? (--socket, or VSWITCH_SOCKET, names another socket)", ErrUnreachable, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w to you on %s: the socket is for its owner, root and the group of [control]", ErrUnreachable, path)
	default:
		return nil, fmt.Errorf("%w on %s: %w", ErrUnreachable, path, err)
	}
	if path == fallbackSocket() {
		// Everybody may make directories in /tmp, also with our number in the
		// name; only what we run ourselves is believed there.
		cred, err := credentials(conn.(*net.UnixConn))
		if err != nil || int(cred.Uid) != os.Geteuid() {
			conn.Close()
			return nil, fmt.Errorf("%w on %s: whoever listens there is another user", ErrUnreachable, path)
		}
	}
	return conn, nil
}

// do sends a request and returns the answer if it is a good one.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "vswitch", Path: path, RawQuery: query.Encode()}
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("control: encode the request: %w", err)
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), send)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", jsonType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // it says "Get http://vswitch/…", which is of no use to anybody
		}
		if errors.Is(err, ErrUnreachable) {
			return nil, err
		}
		return nil, fmt.Errorf("control: %s on %s: %w", path, c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBodyBytes)).Decode(&e); err != nil || e.Error == nil {
		return nil, fmt.Errorf("control: %s on %s: %s", path, c.path, resp.Status)
	}
	e.Error.Status = resp.StatusCode
	return nil, e.Error
}

// call sends a request and reads the answer into a T.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (T, error) {
	var answer T
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes))
	if err := d.Decode(&answer); err != nil {
		return answer, fmt.Errorf("control: %s on %s: read the answer: %w", path, c.path, err)
	}
	return answer, nil
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return call[T](ctx, c, http.MethodGet, path, nil, nil)
}

// named is a path with a name in it.
func named(before, name, after string) string { return before + url.PathEscape(name) + after }

// Version asks which program answers.
func (c *Client) Version(ctx context.Context) (VersionInfo, error) {
	return get[VersionInfo](ctx, c, "/v1/version")
}

// Adapters lists every adapter in the order in which they were added.
func (c *Client) Adapters(ctx context.Context) ([]Adapter, error) {
	l, err := get[AdapterList](ctx, c, "/v1/adapters")
	return l.Adapters, err
}

// Adapter tells of one adapter.
func (c *Client) Adapter(ctx context.Context, name string) (Adapter, error) {
	return get[Adapter](ctx, c, named("/v1/adapters/", name, ""))
}

// Operate has one operation carried out on an adapter; why is for the event log,
// force only for OpRemove.
func (c *Client) Operate(ctx context.Context, op AdapterOp, name, why string, force bool) error {
	return c.order(ctx, named("/v1/adapters/", name, "/"+string(op)), OperateRequest{Why: why, Force: force})
}

// AddAdapter adds an adapter and starts it.
func (c *Client) AddAdapter(ctx context.Context, a AdapterSettings) error {
	return c.order(ctx, "/v1/adapters", a)
}

// Filters lists the filter chains of all adapters.
func (c *Client) Filters(ctx context.Context) ([]FilterOn, error) {
	l, err := get[FilterList](ctx, c, "/v1/filters")
	return l.Filters, err
}

// InsertFilter puts a configured filter into an adapter's chain, at position at
// from the device up; -1 is the top.
func (c *Client) InsertFilter(ctx context.Context, adapter, filter string, at int) error {
	body := FilterRequest{Adapter: adapter, Filter: filter}
	if at != -1 {
		body.At = &at
	}
	return c.order(ctx, "/v1/filters/insert", body)
}

// RemoveFilter takes a filter out of an adapter's chain.
func (c *Client) RemoveFilter(ctx context.Context, adapter, filter string) error {
	return c.order(ctx, "/v1/filters/remove", FilterRequest{Adapter: adapter, Filter: filter})
}

// Bridges lists every bridge with its ports.
func (c *Client) Bridges(ctx context.Context) ([]Bridge, error) {
	l, err := get[BridgeList](ctx, c, "/v1/bridges")
	return l.Bridges, err
}

// Bridge tells of one bridge.
func (c *Client) Bridge(ctx context.Context, name string) (Bridge, error) {
	return get[Bridge](ctx, c, named("/v1/bridges/", name, ""))
}

// Interface tells of one interface of the router.
func (c *Client) Interface(ctx context.Context, name string) (Interface, error) {
	return get[Interface](ctx, c, named("/v1/interfaces/", name, ""))
}

// AddRoute adds a static route.
func (c *Client) AddRoute(ctx context.Context, r RouteSettings) error {
	return c.order(ctx, "/v1/routes/add", r)
}

// DeleteRoute takes a static route away.
func (c *Client) DeleteRoute(ctx context.Context, r RouteSettings) error {
	return c.order(ctx, "/v1/routes/delete", r)
}

// NAT lists at most limit translated flows, of those that match; 0 means as many as
// one answer lists, MaxNATFlows.
func (c *Client) NAT(ctx context.Context, match NATMatch, limit int) (NATTable, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for k, v := range map[string]string{"address": match.Address, "interface": match.Interface, "protocol": match.Protocol} {
		if v != "" {
			query.Set(k, v)
		}
	}
	return call[NATTable](ctx, c, http.MethodGet, "/v1/nat", query, nil)
}

// FlushNAT forgets the translated flows that match, and says how many.
func (c *Client) FlushNAT(ctx context.Context, match NATMatch) (int, error) {
	n, err := call[Count](ctx, c, http.MethodPost, "/v1/nat/flush", nil, match)
	return n.Count, err
}

// Inject begins a fault that outlives the connection.
func (c *Client) Inject(ctx context.Context, f FaultSettings) (Fault, error) {
	return call[Fault](ctx, c, http.MethodPost, "/v1/faults", nil, f)
}

// InjectAttached begins a fault that ends with ctx, calls began once it is in
// force, and returns why it ended: "expired", "cleared" and the like.
func (c *Client) InjectAttached(ctx context.Context, f FaultSettings, began func(Fault)) (string, error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/faults", url.Values{"attached": {"true"}}, f)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, maxBodyBytes))
	var fault Fault
	if err := d.Decode(&fault); err != nil {
		return "", fmt.Errorf("control: inject on %s: %w", c.path, err)
	}
	began(fault)
	var end FaultEnd
	if err := d.Decode(&end); err != nil {
		if ctx.Err() != nil {
			return "let go", ctx.Err()
		}
		return "", fmt.Errorf("control: inject on %s: the switch has gone: %w", c.path, err)
	}
	return end.End, nil
}

// Faults lists the faults in force.
func (c *Client) Faults(ctx context.Context) ([]Fault, error) {
	l, err := get[FaultList](ctx, c, "/v1/faults")
	return l.Faults, err
}

// FaultKinds lists what can be injected.
func (c *Client) FaultKinds(ctx context.Context) ([]FaultKind, error) {
	l, err := get[FaultKindList](ctx, c, "/v1/faults/kinds")
	return l.Kinds, err
}

// ClearFaults ends the faults that match, and says how many.
func (c *Client) ClearFaults(ctx context.Context, match FaultMatch) (int, error) {
	n, err := call[Count](ctx, c, http.MethodPost, "/v1/faults/clear", nil, match)
	return n.Count, err
}

// Apply turns the running switch into what text, a whole configuration, says, or
// with dryRun only says what that would take.
func (c *Client) Apply(ctx context.Context, text []byte, dryRun bool) (Plan, error) {
	return call[Plan](ctx, c, http.MethodPost, "/v1/config/apply", nil, ApplyRequest{TOML: string(text), DryRun: dryRun})
}

// order sends a command.
func (c *Client) order(ctx context.Context, path string, body any) error {
	_, err := call[Done](ctx, c, http.MethodPost, path, nil, body)
	return err
}

// Bundles lists every bundle.
func (c *Client) Bundles(ctx context.Context) ([]Bundle, error) {
	l, err := get[BundleList](ctx, c, "/v1/bundles")
	return l.Bundles, err
}

// Bundle tells of one bundle.
func (c *Client) Bundle(ctx context.Context, name string) (Bundle, error) {
	return get[Bundle](ctx, c, named("/v1/bundles/", name, ""))
}

// Promote makes a member of a bundle the active one.
func (c *Client) Promote(ctx context.Context, bundle, member string) error {
	return c.order(ctx, named("/v1/bundles/", bundle, "/promote"), PromoteRequest{member})
}

// Bindings lists which protocol is attached to which adapter.
func (c *Client) Bindings(ctx context.Context) ([]Binding, error) {
	l, err := get[BindingList](ctx, c, "/v1/bindings")
	return l.Bindings, err
}

// FDB lists the addresses that a bridge knows; "" asks all bridges.
func (c *Client) FDB(ctx context.Context, bridge string) ([]FDBEntry, error) {
	query := url.Values{}
	if bridge != "" {
		query.Set("bridge", bridge)
	}
	l, err := call[FDB](ctx, c, http.MethodGet, "/v1/fdb", query, nil)
	return l.Entries, err
}

// Interfaces lists the router's interfaces.
func (c *Client) Interfaces(ctx context.Context) ([]Interface, error) {
	l, err := get[InterfaceList](ctx, c, "/v1/interfaces")
	return l.Interfaces, err
}

// Routes lists the router's routes, alive or not.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	l, err := get[RouteList](ctx, c, "/v1/routes")
	return l.Routes, err
}

// Neighbors lists the neighbours that the router knows.
func (c *Client) Neighbors(ctx context.Context) ([]Neighbor, error) {
	l, err := get[NeighborList](ctx, c, "/v1/neighbors")
	return l.Neighbors, err
}

// Stats reads every counter.
func (c *Client) Stats(ctx context.Context) (Stats, error) { return get[Stats](ctx, c, "/v1/stats") }

// Events lists the events numbered above after that are still kept.
func (c *Client) Events(ctx context.Context, after uint64) (Events, error) {
	return call[Events](ctx, c, http.MethodGet, "/v1/events", url.Values{"after": {strconv.FormatUint(after, 10)}}, nil)
}

// Config reads the configuration in force, as TOML.
func (c *Client) Config(ctx context.Context) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/config", nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("control: read the configuration from %s: %w", c.path, err)
	}
	return b, nil
}

// Follow calls each for every event numbered above after, those to come too,
// until ctx ends, each returns an error, or the switch stops sending. lost is
// how many events before the first one are no longer kept; it is not 0 in the
// first call only. The result is never nil: ctx's error, each's, a *FollowEnd,
// or what went wrong.
func (c *Client) Follow(ctx context.Context, after uint64, each func(e ndiscore.Event, lost uint64) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/events", url.Values{"after": {strconv.FormatUint(after, 10)}, "follow": {"true"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	var lost uint64
	for {
		var line struct {
			ndiscore.Event
			FollowStart
			End string `json:"end"`
		}
		if err := d.Decode(&line); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("control: events on %s end in the middle, after number %d (the reader was too slow, or the switch has died): %w", c.path, after, err)
		}
		switch {
		case line.End != "":
			return &FollowEnd{line.End, line.Lost}
		case line.Seq > 0:
			if err := each(line.Event, lost); err != nil {
				return err
			}
			after, lost = line.Seq, 0
		default:
			lost = line.Lost
		}
	}
}

// Error says why the events end.
func (e *FollowEnd) Error() string {
	if e.End == EndStopped {
		return "the switch stops"
	}
	return fmt.Sprintf("events end: %s: %d events lost", e.End, e.Lost)
}
