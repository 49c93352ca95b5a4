package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Whatever is asked, the answer is good or an Error that says what is wrong,
// and only a POST gives an order.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/adapters/up0 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/adapters/%75p0 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/fdb?bridge=lan HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/events?after=3&follow=false HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{\"why\":\"x\"}",
		"POST /v1/bundles/wan/promote HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"member\":\"up1\"}\r\n0\r\n\r\n",
		"DELETE /v1/../v1//adapters/%2f HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return // net/http refuses it
		}
		sw := &silent{}
		w := record(sw, r)
		if n := sw.commands.Load(); n > 1 || n == 1 && r.Method != http.MethodPost {
			t.Errorf("%d orders from one %s", n, r.Method)
		}
		if w.Code == http.StatusOK {
			return
		}
		var body errorBody
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error == nil || body.Error.Code == "" || body.Error.Message == "" {
			t.Errorf("status %d with %q: %v", w.Code, w.Body, err)
		}
		if w.Code == http.StatusInternalServerError {
			t.Errorf("a fault: %s", w.Body)
		}
		if sw.commands.Load() > 0 {
			t.Errorf("refused and carried out: %d %s", w.Code, w.Body)
		}
	})
}

// record has a switch answer a request from somebody who is served.
func record(sw Switch, r *http.Request) *httptest.ResponseRecorder {
	s := &Server{sw: sw, log: zap.NewNop(), limits: limits{followers: 0}}
	w := httptest.NewRecorder()
	s.serve(w, r.WithContext(context.WithValue(r.Context(), connKey{}, &conn{})))
	return w
}

// FuzzAnswer has a client read what is not from a switch.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"adapters":[{"name":"up0","mtu":1500}]}`))
	f.Add(200, []byte(`{"follow":true,"lost":1}`+"\n"+`{"seq":2}`+"\n"+`{"end":"stopped"}`))
	f.Add(404, []byte(`{"error":{"code":"not_found","message":"x"}}`))
	f.Add(500, []byte(`{"error":null}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 {
			return
		}
		c := &Client{path: "fuzz", http: &http.Client{Transport: answers{status, body}}}
		ctx := context.Background()
		_, err := c.Adapters(ctx)
		if status != http.StatusOK && err == nil {
			t.Errorf("status %d is no error", status)
		}
		_, _ = c.Stats(ctx)
		if err := c.Follow(ctx, 0, func(ndiscore.Event, uint64) error { return nil }); err == nil {
			t.Error("Follow ends with nil")
		}
	})
}

// answers is a server that always says the same.
type answers struct {
	status int
	body   []byte
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: "fuzz", Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// silent is a switch with nothing in it, which obeys.
type silent struct{ fixture }

func (*silent) Adapters(context.Context) ([]ndiscore.AdapterInfo, error) { return nil, nil }
func (*silent) Bundles(context.Context) ([]ndiscore.BundleInfo, error)   { return nil, nil }
func (*silent) Stats(context.Context) (Stats, error)                     { return Stats{}, nil }

func (s *silent) Operate(context.Context, AdapterOp, string, string, bool) error { return s.order() }
func (s *silent) AddAdapter(context.Context, AdapterSettings) error              { return s.order() }
func (s *silent) Promote(context.Context, string, string) error                  { return s.order() }
func (s *silent) InsertFilter(context.Context, string, string, int) error        { return s.order() }
func (s *silent) RemoveFilter(context.Context, string, string) error             { return s.order() }

func (s *silent) Inject(context.Context, FaultSettings) (Fault, error) {
	return Fault{ID: 7}, s.order()
}

func (s *silent) order() error {
	s.commands.Add(1)
	return nil
}

func (*silent) Events(uint64) ([]ndiscore.Event, uint64, <-chan struct{}) { return nil, 0, nil }
