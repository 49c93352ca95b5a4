package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// route is one path and method.
type route struct {
	method string
	path   string   // "{name}" stands for one name
	params []string // that the query may have
	limit  time.Duration
	body   int64                                     // bytes that it may have; 0: maxBodyBytes
	do     func(s *Server, r *request) (any, *Error) // the answer, to be written as JSON
	stream func(s *Server, w http.ResponseWriter, r *request) *Error
}

// routes is everything that the server does.
func routes() []route {
	const get, post = http.MethodGet, http.MethodPost
	all := []route{
		{method: get, path: "/v1/version", limit: askTimeout, do: (*Server).version},
		{method: get, path: "/v1/adapters", limit: askTimeout, do: (*Server).adapters},
		{method: get, path: "/v1/adapters/{name}", limit: askTimeout, do: (*Server).adapter},
		{method: post, path: "/v1/adapters", limit: doTimeout, do: (*Server).addAdapter},
		{method: get, path: "/v1/bundles", limit: askTimeout, do: (*Server).bundles},
		{method: get, path: "/v1/bundles/{name}", limit: askTimeout, do: (*Server).bundle},
		{method: post, path: "/v1/bundles/{name}/promote", limit: doTimeout, do: (*Server).promote},
		{method: get, path: "/v1/bindings", limit: askTimeout, do: (*Server).bindings},
		{method: get, path: "/v1/fdb", params: []string{"bridge"}, limit: askTimeout, stream: (*Server).fdb},
		{method: get, path: "/v1/filters", limit: askTimeout, do: (*Server).filters},
		{method: post, path: "/v1/filters/insert", limit: doTimeout, do: (*Server).insertFilter},
		{method: post, path: "/v1/filters/remove", limit: doTimeout, do: (*Server).removeFilter},
		{method: get, path: "/v1/bridges", limit: askTimeout, do: (*Server).bridges},
		{method: get, path: "/v1/bridges/{name}", limit: askTimeout, do: (*Server).oneBridge},
		{method: get, path: "/v1/interfaces", limit: askTimeout, do: (*Server).interfaces},
		{method: get, path: "/v1/interfaces/{name}", limit: askTimeout, do: (*Server).oneInterface},
		{method: get, path: "/v1/routes", limit: askTimeout, do: (*Server).routes},
		{method: post, path: "/v1/routes/add", limit: doTimeout, do: (*Server).addRoute},
		{method: post, path: "/v1/routes/delete", limit: doTimeout, do: (*Server).deleteRoute},
		{method: get, path: "/v1/neighbors", limit: askTimeout, do: (*Server).neighbors},
		{method: get, path: "/v1/nat", params: []string{"limit", "address", "interface", "protocol"}, limit: askTimeout, do: (*Server).nat},
		{method: post, path: "/v1/nat/flush", limit: doTimeout, do: (*Server).flushNAT},
		{method: get, path: "/v1/faults", limit: askTimeout, do: (*Server).faults},
		{method: get, path: "/v1/faults/kinds", limit: askTimeout, do: (*Server).faultKinds},
		{method: post, path: "/v1/faults", params: []string{"attached"}, stream: (*Server).inject},
		{method: post, path: "/v1/faults/clear", limit: doTimeout, do: (*Server).clearFaults},
		{method: get, path: "/v1/stats", limit: askTimeout, do: (*Server).stats},
		{method: get, path: "/v1/events", params: []string{"after", "follow"}, stream: (*Server).events},
		{method: get, path: "/v1/config", limit: askTimeout, stream: (*Server).config},
		{method: post, path: "/v1/config/apply", limit: applyTimeout, body: maxConfigBytes, do: (*Server).apply},
	}
	for _, op := range AdapterOps {
		all = append(all, route{method: post, path: "/v1/adapters/{name}/" + string(op), limit: doTimeout, do: func(s *Server, r *request) (any, *Error) {
			return s.operate(r, op)
		}})
	}
	return all
}

// request is a request that has been checked.
type request struct {
	*http.Request
	name  string     // what "{name}" stood for
	query url.Values // only parameters of the route, each once
	body  []byte
}

// serve answers one request: every way out is either an answer or an Error.
func (s *Server) serve(w http.ResponseWriter, hr *http.Request) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p) // how a handler cuts a stream off
		}
		s.log.Error("request panicked", zap.String("path", hr.URL.Path), zap.Any("err", p), zap.ByteString("stack", debug.Stack()))
		s.fail(w, &Error{http.StatusInternalServerError, CodeInternal, "a fault in the switch: " + fmt.Sprint(p), hintLog})
	}()
	// Whoever does not come through our listener has not been looked at.
	if c, ok := hr.Context().Value(connKey{}).(*conn); !ok || c.refusal != nil {
		refusal := &Error{http.StatusForbidden, CodeForbidden, "unknown connection", ""}
		if ok {
			refusal = c.refusal
		}
		w.Header().Set("Connection", "close")
		s.fail(w, refusal)
		return
	}
	rt, r, fail := match(w, hr)
	if fail != nil {
		s.fail(w, fail)
		return
	}
	if rt.limit > 0 {
		ctx, cancel := context.WithTimeout(hr.Context(), rt.limit)
		defer cancel()
		r.Request = hr.WithContext(ctx)
	}
	if rt.stream != nil {
		if fail := rt.stream(s, w, r); fail != nil {
			s.fail(w, fail)
		}
		return
	}
	answer, fail := rt.do(s, r)
	if fail != nil {
		s.fail(w, fail)
		return
	}
	body, err := json.Marshal(answer)
	if err != nil {
		s.fail(w, errorFrom(fmt.Errorf("encode the answer: %w", err)))
		return
	}
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(append(body, '\n')) // who does not listen any more misses nothing
}

const (
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
	tomlType   = "application/toml"
)

func (s *Server) fail(w http.ResponseWriter, e *Error) {
	body, err := json.Marshal(errorBody{e})
	if err != nil {
		panic(http.ErrAbortHandler) // an Error is strings
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(body, '\n'))
}

// match finds the route of a request and checks everything about it.
func match(w http.ResponseWriter, hr *http.Request) (*route, *request, *Error) {
	if len(hr.RequestURI) > maxURLBytes {
		return nil, nil, &Error{http.StatusRequestURITooLong, CodeTooLarge, fmt.Sprintf("the path has more than %d bytes", maxURLBytes), ""}
	}
	rt, name, fail := find(hr)
	if fail != nil {
		if fail.Code == CodeMethod {
			w.Header().Set("Allow", fail.Hint)
			fail.Hint = "use " + fail.Hint
		}
		return nil, nil, fail
	}
	r := &request{Request: hr, name: name}
	var err error
	if r.query, err = url.ParseQuery(hr.URL.RawQuery); err != nil {
		return nil, nil, badRequest("", "query: %v", err)
	}
	for key, values := range r.query {
		if !slices.Contains(rt.params, key) {
			known := "it has none"
			if len(rt.params) > 0 {
				known = "known: " + strings.Join(rt.params, ", ")
			}
			return nil, nil, badRequest(known, "unknown parameter %s", quote(key))
		}
		if len(values) > 1 {
			return nil, nil, badRequest("", "parameter %s is given %d times", quote(key), len(values))
		}
	}
	most := cmp.Or(rt.body, maxBodyBytes)
	r.body, err = io.ReadAll(http.MaxBytesReader(w, hr.Body, most))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, nil, &Error{http.StatusRequestEntityTooLarge, CodeTooLarge, fmt.Sprintf("the body has more than %d bytes", most), ""}
	} else if err != nil {
		return nil, nil, badRequest("", "read the body: %v", err)
	}
	if rt.method == http.MethodGet && len(r.body) > 0 {
		return nil, nil, badRequest("", "GET takes no body")
	}
	return rt, r, nil
}

// find matches path and method. The net/http mux would answer some of the
// misses itself, and not in JSON.
func find(hr *http.Request) (*route, string, *Error) {
	path := strings.Split(hr.URL.EscapedPath(), "/")
	var methods []string
	for _, rt := range routes() {
		name, ok := matchPath(strings.Split(rt.path, "/"), path)
		switch {
		case !ok:
		case rt.method != hr.Method:
			methods = append(methods, rt.method)
		case name != "" && len(name) > maxNameBytes:
			return nil, "", badRequest("", "the name has more than %d bytes", maxNameBytes)
		default:
			return &rt, name, nil
		}
	}
	if methods != nil {
		return nil, "", &Error{http.StatusMethodNotAllowed, CodeMethod, "this path is not for " + quote(hr.Method), strings.Join(methods, ", ")}
	}
	return nil, "", notFound(hintPaths, "no such path: %s", quote(hr.URL.EscapedPath()))
}

func matchPath(pattern, path []string) (name string, ok bool) {
	if len(pattern) != len(path) {
		return "", false
	}
	for i, p := range pattern {
		if p != "{name}" {
			if p != path[i] {
				return "", false
			}
			continue
		}
		var err error
		if name, err = url.PathUnescape(path[i]); err != nil || name == "" {
			return "", false
		}
	}
	return name, true
}

// decode reads a body strictly. No body is the same as {}.
func (r *request) decode(into any) *Error {
	if len(strings.TrimSpace(string(r.body))) == 0 {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(r.body)))
	d.DisallowUnknownFields()
	d.UseNumber() // for values of any type
	if err := d.Decode(into); err != nil {
		return badRequest("", "body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); err != io.EOF {
		return badRequest("", "body: something follows the JSON object")
	}
	return nil
}

// quote shortens and quotes what a stranger sent.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return fmt.Sprintf("%+q", s)
}
