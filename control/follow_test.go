package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

func TestFollow(t *testing.T) {
	r := serveFixture(t, nil)
	there, _, _ := r.core.Events(0)
	last := there[len(there)-1].Seq
	got := make(chan ndiscore.Event, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- r.client.Follow(ndistest.Context(t), last-1, func(e ndiscore.Event, lost uint64) error {
			if lost != 0 {
				return fmt.Errorf("%d lost", lost)
			}
			got <- e
			return nil
		})
	}()
	next := func() ndiscore.Event {
		t.Helper()
		select {
		case e := <-got:
			return e
		case <-time.After(10 * time.Second):
			t.Fatal("no event")
			return ndiscore.Event{}
		}
	}
	if e := next(); e.Seq != last {
		t.Errorf("first event %+v, want number %d", e, last)
	}
	r.core.Report(ndiscore.Event{What: "test", Why: "because"})
	if e := next(); e.Seq != last+1 || e.What != "test" || e.Why != "because" {
		t.Errorf("second event %+v", e)
	}
	r.stop()
	err := <-ended
	if end, ok := errors.AsType[*FollowEnd](err); !ok || end.End != EndStopped || end.Lost != 0 {
		t.Errorf("Follow ends with %v", err)
	}
}

func TestFollowUntilTheClientHasEnough(t *testing.T) {
	r := serveFixture(t, nil)
	enough := errors.New("enough")
	if err := r.client.Follow(ndistest.Context(t), 0, func(ndiscore.Event, uint64) error { return enough }); err != enough {
		t.Errorf("Follow ends with %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.client.Follow(ctx, 0, func(ndiscore.Event, uint64) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Follow ends with %v", err)
	}
	ndistest.Await(t, "the followers to be gone", func() bool { return r.server.followers.Load() == 0 })
}

// Who comes late hears what is no longer there, and goes on.
func TestFollowComesLate(t *testing.T) {
	r := serve(t, newFixture(t, 8), nil)
	_, lost, _ := r.core.Events(0)
	if lost == 0 {
		t.Fatal("the fixture has lost no events")
	}
	enough := errors.New("enough")
	n := 0
	err := r.client.Follow(ndistest.Context(t), 0, func(e ndiscore.Event, l uint64) error {
		if n++; n == 1 && l != lost || n > 1 && l != 0 {
			return fmt.Errorf("event %d: lost %d, want %d before the first", n, l, lost)
		}
		if n == 8 {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Error(err)
	}
}

// A follower that reads too slowly is told how many events it has lost, if it
// still takes that; the events it got have no gap.
func TestSlowFollower(t *testing.T) {
	r := serve(t, newFixture(t, 1000), func(l *limits) { l.follow = time.Minute })
	c := dial(t, r.path)
	fmt.Fprint(c, "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(newReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	var start FollowStart
	if err := d.Decode(&start); err != nil || !start.Follow {
		t.Fatalf("first line: %+v, %v", start, err)
	}
	// Now it reads nothing: the server's writes stand still when the socket is
	// full, and the ring goes round meanwhile.
	report := func(n int) {
		for range n {
			r.core.Report(ndiscore.Event{What: "test", Why: strings.Repeat("x", 4000)})
		}
	}
	report(500)
	ndistest.Await(t, "the follower's socket to fill", func() bool { return unread(t, c) > 50_000 })
	report(3000)

	var after uint64
	for {
		var line struct {
			Seq  uint64
			End  string
			Lost uint64
		}
		if err := d.Decode(&line); err != nil {
			t.Fatalf("after event %d: %v", after, err)
		}
		switch {
		case line.End != "":
			if line.End != EndTooSlow || line.Lost == 0 {
				t.Errorf("the end: %+v", line)
			}
			if err := d.Decode(&line); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
			return
		case line.Seq > 0:
			if after > 0 && line.Seq != after+1 {
				t.Fatalf("event %d follows %d", line.Seq, after)
			}
			after = line.Seq
		}
	}
}

// A follower that takes nothing at all is cut off, and its place is free again.
func TestDeadFollower(t *testing.T) {
	r := serve(t, newFixture(t, 1000), func(l *limits) { l.follow = 50 * time.Millisecond })
	c := dial(t, r.path)
	fmt.Fprint(c, "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
	ndistest.Await(t, "the follower to be there", func() bool { return r.server.followers.Load() == 1 })
	for range 500 { // more than a socket holds, less than the ring
		r.core.Report(ndiscore.Event{What: "test", Why: strings.Repeat("x", 4000)})
	}
	ndistest.Await(t, "the follower to be cut off", func() bool { return r.server.followers.Load() == 0 })
	b, err := io.ReadAll(c)
	if err == nil && strings.HasSuffix(string(b), "0\r\n\r\n") {
		t.Error("the stream looks complete")
	}
}

func TestTooManyFollowers(t *testing.T) {
	r := serveFixture(t, func(l *limits) { l.followers = 2 })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- r.client.Follow(ctx, 0, func(ndiscore.Event, uint64) error { return nil }) }()
	}
	ndistest.Await(t, "two followers", func() bool { return r.server.followers.Load() == 2 })
	err := r.client.Follow(ndistest.Context(t), 0, func(ndiscore.Event, uint64) error { return nil })
	if err := wantError(err, CodeBusy); err != nil {
		t.Error(err)
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
