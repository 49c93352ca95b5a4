package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// events answers with the events that are there, or with "follow" also with
// those that come, until the follower leaves, is too slow, or the switch stops.
func (s *Server) events(w http.ResponseWriter, r *request) *Error {
	var after uint64
	if text := r.query.Get("after"); r.query.Has("after") {
		var err error
		if after, err = strconv.ParseUint(text, 10, 63); err != nil {
			return badRequest("the number of the last event seen; 0 for all", "after: %s is not a number", quote(text))
		}
	}
	switch text := r.query.Get("follow"); {
	case !r.query.Has("follow"), text == "false":
	case text == "true":
		return s.follow(w, r, after)
	default:
		return badRequest("", "follow: %s is neither true nor false", quote(text))
	}
	events, lost, _ := s.sw.Events(after)
	page := Events{Events: each(events, func(e ndiscore.Event) ndiscore.Event { return e }), Lost: lost, Last: after}
	if n := len(events); n > 0 {
		page.Last = events[n-1].Seq
	}
	body, err := json.Marshal(page)
	if err != nil {
		return errorFrom(fmt.Errorf("encode the events: %w", err))
	}
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(append(body, '\n'))
	return nil
}

// follow writes one line of JSON per event, and a FollowEnd as the last one.
// Events wait in the core's ring only: a follower that does not keep up loses
// those which fall out of it, is told how many, and has to ask again.
func (s *Server) follow(w http.ResponseWriter, r *request, after uint64) *Error {
	if s.followers.Add(1) > s.limits.followers {
		s.followers.Add(-1)
		return &Error{http.StatusServiceUnavailable, CodeBusy, fmt.Sprintf("more than %d followers", s.limits.followers), "end some of them"}
	}
	defer s.followers.Add(-1)
	c := http.NewResponseController(w)
	// The limits of an ordinary request would end it: each write has its own.
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return errorFrom(fmt.Errorf("follow: %w", err))
	}
	w.Header().Set("Content-Type", ndjsonType)
	w.Header().Set("Connection", "close")
	line := func(buf *bytes.Buffer, v any) {
		if err := json.NewEncoder(buf).Encode(v); err != nil {
			panic(http.ErrAbortHandler) // strings, numbers and times: cannot fail
		}
	}
	send := func(buf *bytes.Buffer) {
		err := c.SetWriteDeadline(time.Now().Add(s.limits.follow))
		if err == nil {
			_, err = w.Write(buf.Bytes())
		}
		if err == nil {
			err = c.Flush()
		}
		if err != nil {
			panic(http.ErrAbortHandler) // gone, or too slow even to be told so
		}
	}
	var buf bytes.Buffer
	for first := true; ; first = false {
		events, lost, more := s.sw.Events(after)
		if lost > 0 && !first {
			buf.Reset()
			line(&buf, FollowEnd{End: EndTooSlow, Lost: lost})
			send(&buf)
			return nil
		}
		if first {
			// What was lost before he came is not the follower's fault: he
			// hears of it, and goes on. This also starts the answer, so that he
			// knows he is following.
			buf.Reset()
			line(&buf, FollowStart{Follow: true, Lost: lost})
			send(&buf)
		}
		for len(events) > 0 {
			n := min(followBatch, len(events))
			buf.Reset()
			for _, e := range events[:n] {
				line(&buf, e)
				after = e.Seq
			}
			send(&buf)
			events = events[n:]
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return nil
		case <-s.stopping:
			s.farewell(after, &buf, line, send)
			return nil
		}
	}
}

// farewell sends what happened up to the end, and says that it is the end.
func (s *Server) farewell(after uint64, buf *bytes.Buffer, line func(*bytes.Buffer, any), send func(*bytes.Buffer)) {
	events, lost, _ := s.sw.Events(after)
	buf.Reset()
	for _, e := range events {
		line(buf, e)
	}
	line(buf, FollowEnd{End: EndStopped, Lost: lost})
	send(buf)
}
