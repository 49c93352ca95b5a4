package control

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// unread is how many bytes wait in c.
func unread(t *testing.T, c *net.UnixConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return n
}

func (r *running) wantAlive(t *testing.T) {
	t.Helper()
	if _, err := r.client.Adapters(ndistest.Context(t)); err != nil {
		t.Errorf("the server does not answer any more: %v", err)
	}
}

// Whoever sends slowly, or nothing, is sent away.
func TestSlowClients(t *testing.T) {
	r := serveFixture(t, func(l *limits) {
		l.header, l.read, l.idle = 50*time.Millisecond, 80*time.Millisecond, 50*time.Millisecond
	})
	for _, sent := range []string{
		"",
		"GET /v1/ver",
		"GET /v1/version HTTP/1.1\r\nHost: x\r\n",
		"POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
		"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n", // and then nothing
	} {
		c := dial(t, r.path)
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("after %.40q: not sent away: %v", sent, err)
		}
	}
	r.wantAlive(t)
	if n := r.commands.Load(); n != 0 {
		t.Errorf("%d half commands reached the switch", n)
	}
}

// Whoever does not read the answer to a question does not hold the server up.
func TestClientsThatDoNotRead(t *testing.T) {
	r := serveFixture(t, func(l *limits) { l.write = time.Second })
	for range 4 {
		c := dial(t, r.path)
		fmt.Fprint(c, "GET /v1/fdb?bridge=huge HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	r.wantAlive(t)
	r.client.Close() // else its own idle connection counts
	ndistest.Await(t, "those that do not read to be gone", func() bool { return r.server.conns.Load() == 0 })
	r.wantAlive(t)
}

func TestHugeHeader(t *testing.T) {
	r := serveFixture(t, nil)
	c := dial(t, r.path)
	go func() { // the server answers before it has read all of it
		fmt.Fprintf(c, "GET /v1/version HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 1<<20))
	}()
	resp, _ := readResponse(t, c, "GET")
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %s", resp.Status)
	}
	r.wantAlive(t)
}

func TestGarbage(t *testing.T) {
	r := serveFixture(t, nil)
	random := rand.New(rand.NewPCG(1, 2))
	junk := make([]byte, 4096)
	for i := range junk {
		junk[i] = byte(random.Uint32())
	}
	for _, sent := range [][]byte{
		junk,
		append([]byte("\r\n\r\n"), junk...),
		bytes.Repeat([]byte{0}, 4096),
		bytes.Repeat([]byte("\n"), 4096),
		[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		[]byte("GET /v1/version HTTP/9.9\r\n\r\n"),
		[]byte("GET http://[::1/v1/version HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte("GET /v1/version HTTP/1.1\r\n\r\n"), // no Host
		[]byte("POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}"),
		[]byte("POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
		[]byte("POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
	} {
		c := dial(t, r.path)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(c) // a reset is an answer too
		if bytes.Contains(b, []byte(" 200 OK")) {
			t.Errorf("%.40q gets %s", sent, b)
		}
		c.Close()
	}
	r.wantAlive(t)
	if n := r.commands.Load(); n != 0 {
		t.Errorf("%d pieces of garbage reached the switch", n)
	}
}

// Beyond the limit a connection is told so; beyond the next one it is closed;
// when others have gone there is room again.
func TestTooManyConnections(t *testing.T) {
	r := serveFixture(t, func(l *limits) { l.conns, l.refused = 3, 2 })
	var served []*net.UnixConn
	for range 3 {
		c := dial(t, r.path)
		fmt.Fprint(c, "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp, _ := readResponse(t, c, "GET"); resp.StatusCode != 200 {
			t.Fatalf("status %s", resp.Status)
		}
		served = append(served, c)
	}
	var told []*net.UnixConn
	for range 2 {
		told = append(told, dial(t, r.path))
	}
	ndistest.Await(t, "two more to be there", func() bool { return r.server.refused.Load() == 2 })
	cut := dial(t, r.path)
	if n, err := cut.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("beyond all limits: %d bytes, %v", n, err)
	}
	for _, c := range told {
		fmt.Fprint(c, "POST /v1/adapters/up0/remove HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, body := readResponse(t, c, "POST")
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, string(CodeBusy)) || !resp.Close {
			t.Errorf("beyond the limit: %s: %s", resp.Status, body)
		}
	}
	if n := r.commands.Load(); n != 0 {
		t.Errorf("%d refused commands reached the switch", n)
	}
	for _, c := range served {
		c.Close()
	}
	ndistest.Await(t, "room again", func() bool { return r.server.conns.Load() == 0 })
	r.wantAlive(t)
}

// A connection whose peer is not served gets one answer, whatever it asks; so
// does one that has not been looked at.
func TestForbidden(t *testing.T) {
	r := serve(t, newFixture(t, 0), nil, func(s *Server) { s.access = access{uid: 4_000_000_000, group: -1} })
	if r.server.access.refuse(peer{uid: uint32(unix.Geteuid())}) == nil {
		// We are root, who is served whoever else is not.
		if err := r.client.Operate(ndistest.Context(t), OpRemove, "up0", "", false); err != nil || r.commands.Load() != 1 {
			t.Errorf("root is not served: %v", err)
		}
		return
	}
	if err := wantError(r.client.Operate(ndistest.Context(t), OpRemove, "up0", "", false), CodeForbidden); err != nil {
		t.Error(err)
	}
	if n := r.commands.Load(); n != 0 {
		t.Errorf("%d forbidden commands reached the switch", n)
	}
}

func TestUnknownConnection(t *testing.T) {
	r := serveFixture(t, nil)
	l, err := net.Listen("unix", t.TempDir()+"/other")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := &http.Server{Handler: http.HandlerFunc(r.server.serve)} // no admission
	go func() { _ = other.Serve(l) }()
	defer other.Close()
	c := NewClient(l.Addr().String())
	defer c.Close()
	if err := wantError(c.Operate(ndistest.Context(t), OpRemove, "up0", "", false), CodeForbidden); err != nil {
		t.Error(err)
	}
}
