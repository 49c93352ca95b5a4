package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Options is what a Server is made from.
type Options struct {
	Socket string      // path; "" means DefaultSocket()
	Mode   fs.FileMode // of the socket; 0 means 0600, and 0660 with a group
	Group  string      // name or number; its members are served too
	Switch Switch      // required
	Log    *zap.Logger // nil: no log
}

// Server answers on a control socket.
type Server struct {
	sw   Switch
	log  *zap.Logger
	path string

	limits limits
	sock   *socket
	access access
	http   *http.Server

	conns     atomic.Int32 // served
	refused   atomic.Int32 // being told why not
	followers atomic.Int32
	stopping  chan struct{} // closed when Serve is to end: followers say good-bye

	closeOnce sync.Once
	closeErr  error
}

// New takes the socket: nobody else can from here on, and whoever connects
// waits until Serve. Close gives it back. An error that wraps ErrInUse means
// that another switch has it.
func New(o Options) (*Server, error) { return newServer(o, defaultLimits()) }

func newServer(o Options, l limits) (*Server, error) {
	if o.Switch == nil {
		return nil, errors.New("control: Options.Switch is required")
	}
	if o.Socket == "" {
		o.Socket = DefaultSocket()
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Mode == 0 {
		o.Mode = 0o600
		if o.Group != "" {
			o.Mode = 0o660
		}
	}
	gid, err := parseGroup(o.Group, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	if err != nil {
		return nil, err
	}
	sock, err := listen(o.Socket, o.Mode, gid)
	if err != nil {
		return nil, err
	}
	// Whoever is refused again and again does not fill the log.
	log := o.Log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Second, 5, 1000)
	}))
	httpLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return nil, errors.Join(err, sock.release())
	}
	s := &Server{
		sw: o.Switch, log: log, path: o.Socket, limits: l, sock: sock,
		access:   access{uid: uint32(os.Geteuid()), group: int64(gid)},
		stopping: make(chan struct{}),
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: l.header,
		ReadTimeout:       l.read,
		WriteTimeout:      l.write,
		IdleTimeout:       l.idle,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		// net/http would answer "OPTIONS *" itself.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     httpLog,
	}
	return s, nil
}

// Socket is the path on which the server listens.
func (s *Server) Socket() string { return s.path }

// Serve answers until ctx ends, then finishes what is under way, within limits,
// and gives the socket back. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	var parts sync.WaitGroup
	parts.Go(func() { served <- s.http.Serve(&listener{s.sock.UnixListener, s}) }) // "control accept": ends with the listener
	defer parts.Wait()
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("control: accept on %s: %w", s.path, err)
	}
	return errors.Join(err, s.Close())
}

// Close gives the socket back. Serve does it by itself.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		close(s.stopping)
		ctx, cancel := context.WithTimeout(context.Background(), s.limits.stop)
		defer cancel()
		if s.http.Shutdown(ctx) != nil {
			_ = s.http.Close() // who has not finished by now is cut off
		}
		s.closeErr = s.sock.release()
	})
	return s.closeErr
}

type connKey struct{}

// listener hands connections to net/http, each with the verdict on who it is.
type listener struct {
	*net.UnixListener
	server *Server
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if admitted := l.server.admit(c); admitted != nil {
			return admitted, nil
		}
		c.Close() // too many even to be told so
	}
}

// conn is a connection that knows whether it is served.
type conn struct {
	*net.UnixConn
	who     peer
	refusal *Error // nil: served
	slots   *atomic.Int32
	once    sync.Once
}

// Close gives the connection's place to another one.
func (c *conn) Close() error {
	c.once.Do(func() { c.slots.Add(-1) })
	return c.UnixConn.Close()
}

// admit decides about a new connection. Those that are not served may ask one
// question and hear why; nil when there are too many of them already.
func (s *Server) admit(c *net.UnixConn) *conn {
	who, refusal := s.refusal(c)
	if refusal == nil {
		if s.conns.Add(1) <= s.limits.conns {
			return &conn{UnixConn: c, who: who, slots: &s.conns}
		}
		s.conns.Add(-1)
		refusal = &Error{http.StatusServiceUnavailable, CodeBusy, fmt.Sprintf("more than %d connections", s.limits.conns), "try again, or end some of them"}
	}
	if s.refused.Add(1) <= s.limits.refused {
		return &conn{UnixConn: c, refusal: refusal, slots: &s.refused}
	}
	s.refused.Add(-1)
	return nil
}

func (s *Server) refusal(c *net.UnixConn) (peer, *Error) {
	p, err := peerOf(c)
	if err == nil {
		err = s.access.refuse(p)
	}
	if err == nil {
		return p, nil
	}
	s.log.Warn("connection refused", zap.Uint32("uid", p.uid), zap.Int32("pid", p.pid), zap.Error(err))
	return p, &Error{http.StatusForbidden, CodeForbidden, err.Error(), "ask as the user of the switch, as root, or as a member of the group in [control]"}
}
