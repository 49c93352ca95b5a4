package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	up   = ndiscore.VerdictUp
	down = ndiscore.VerdictDown
	held = ndiscore.VerdictHeld
	inc  = ndiscore.VerdictInconclusive
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// member makes one that has been alive for an hour.
func member(name string, edit ...func(*ndiscore.MemberView)) ndiscore.MemberView {
	m := ndiscore.MemberView{Name: name, Running: true, Since: ago(time.Hour), Link: ndiscore.LinkState{Media: ndiscore.MediaConnected}}
	for _, e := range edit {
		e(&m)
	}
	return m
}

type edit = func(*ndiscore.MemberView)

func linkDown(since time.Duration) edit {
	return func(m *ndiscore.MemberView) {
		m.Link = ndiscore.LinkState{Media: ndiscore.MediaDisconnected, Why: "carrier lost"}
		m.Since = ago(since)
	}
}
func since(d time.Duration) edit { return func(m *ndiscore.MemberView) { m.Since = ago(d) } }
func speed(bits uint64) edit     { return func(m *ndiscore.MemberView) { m.Link.Speed = bits } }
func proof(d time.Duration) edit { return func(m *ndiscore.MemberView) { m.Proof = ago(d) } }
func lost(n int) edit            { return func(m *ndiscore.MemberView) { m.ProbesLost = n } }
func failed(d time.Duration) edit {
	return func(m *ndiscore.MemberView) { m.Failures++; m.LastFailure = ago(d) }
}
func late(m *ndiscore.MemberView)    { m.Late = true }
func carries(m *ndiscore.MemberView) { m.Carries = true }
func stopped(m *ndiscore.MemberView) { m.Running = false }
func leaving(m *ndiscore.MemberView) { m.Leaving = true }
func resetting(m *ndiscore.MemberView) {
	m.Resetting = true
	m.Since = now
}
func unknown(m *ndiscore.MemberView) { m.Link = ndiscore.LinkState{} }

func TestActiveBackup(t *testing.T) {
	type view = ndiscore.BundleView
	type members = []ndiscore.MemberView
	tests := []struct {
		name    string
		view    view
		active  int
		succ    []int
		verdict []ndiscore.Verdict
		recheck time.Duration
		why     string // part of Why; "" wants an empty one
	}{
		{name: "no members", view: view{Active: -1}, active: -1},
		{name: "active out of range", view: view{Active: 7, Members: members{member("a")}},
			active: 0, verdict: []ndiscore.Verdict{up}, why: "nothing was active"},

		// Start.
		{name: "first start takes the first listed", view: view{Active: -1, Members: members{member("a", since(0)), member("b", since(0))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "nothing was active; a link connected is the first usable member"},
		{name: "start ignores up delay and hold", view: view{Active: -1, UpDelay: time.Minute, Hold: time.Minute, Members: members{member("a", since(time.Second))}},
			active: 0, verdict: []ndiscore.Verdict{up}, why: "nothing was active"},
		{name: "start ignores missing proof", view: view{Active: -1, NeedProof: true, Members: members{member("a"), member("b", proof(time.Second))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "a "},
		{name: "start takes what is there", view: view{Active: -1, Members: members{member("a", stopped), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "b "},
		{name: "start prefers a member without lost probes", view: view{Active: -1, Members: members{member("a", lost(3)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, why: "b "},
		{name: "start believes no probes when late", view: view{Active: -1, Members: members{member("a", lost(9), late), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "a "},
		{name: "start with nothing but failing members", view: view{Active: -1, Members: members{member("a", stopped), member("b", lost(3))}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "no usable member is free of failures, b"},
		{name: "unknown media is not usable", view: view{Active: -1, Members: members{member("a", unknown)}},
			active: -1, verdict: []ndiscore.Verdict{down}},

		// Leaving the active member.
		{name: "nothing to do", view: view{Active: 0, Members: members{member("a"), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}},
		{name: "carrier lost", view: view{Active: 0, Members: members{member("a", linkDown(0)), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a link disconnected (carrier lost); next is b link connected for 1h0m0s"},
		{name: "not running", view: view{Active: 0, Members: members{member("a", stopped), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a is not running"},
		{name: "leaving", view: view{Active: 0, Members: members{member("a", leaving), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a is leaving"},
		{name: "being reset", view: view{Active: 0, Members: members{member("a", resetting), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, why: "a is being reset; next is b"},
		{name: "being reset, with nobody to take over", view: view{Active: 0, Members: members{member("a", resetting), member("b", lost(3))}},
			active: 0, verdict: []ndiscore.Verdict{up, held}},
		{name: "being reset, with one that time holds", view: view{Active: 0, Hold: time.Minute, Members: members{member("a", resetting), member("b", lost(3)), member("c", since(time.Second))}},
			active: 2, succ: []int{0, 1}, verdict: []ndiscore.Verdict{held, held, up}, why: "a is being reset; next is c"},
		{name: "start prefers a member that is not being reset", view: view{Active: -1, Members: members{member("a", resetting), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, why: "b "},
		{name: "nothing left", view: view{Active: 0, Members: members{member("a", linkDown(0)), member("b", stopped)}},
			active: -1, verdict: []ndiscore.Verdict{down, down}, why: "no member is usable"},
		{name: "all stay down", view: view{Active: -1, Members: members{member("a", linkDown(0))}},
			active: -1, verdict: []ndiscore.Verdict{down}},
		{name: "down delay keeps it", view: view{Active: 0, DownDelay: time.Second, Members: members{member("a", linkDown(300*time.Millisecond)), member("b")}},
			active: 0, verdict: []ndiscore.Verdict{down, up}, recheck: 700 * time.Millisecond},
		{name: "down delay leaves the data path no successors", view: view{Active: 0, DownDelay: time.Second, Members: members{member("a"), member("b")}},
			active: 0, verdict: []ndiscore.Verdict{up, up}},
		{name: "down delay over", view: view{Active: 0, DownDelay: time.Second, Members: members{member("a", linkDown(time.Second)), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a link disconnected for 1s"},
		{name: "down delay is for links only", view: view{Active: 0, DownDelay: time.Second, Members: members{member("a", stopped, since(0)), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a is not running"},
		{name: "down delay does not hold a leaving one", view: view{Active: 0, DownDelay: time.Second, Members: members{member("a", linkDown(0), leaving), member("b")}},
			active: 1, verdict: []ndiscore.Verdict{down, up}, why: "a is leaving"},
		{name: "lost probes do not take the active one down", view: view{Active: 0, NeedProof: true, Members: members{member("a", lost(50)), member("b", proof(0))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}},
		{name: "failures alone do not move it", view: view{Active: 0, Members: members{member("a", failed(0)), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}},

		// Whom to take.
		{name: "skips a held member", view: view{Active: 2, Hold: 10 * time.Second, Members: members{member("a", since(4*time.Second)), member("b"), member("c", linkDown(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up, down}, recheck: 6 * time.Second, why: "next is b"},
		{name: "takes a held member when there is no other", view: view{Active: 1, Hold: 10 * time.Second, Members: members{member("a", since(4*time.Second)), member("b", linkDown(0))}},
			active: 0, verdict: []ndiscore.Verdict{up, down}, why: "nothing better is left than a"},
		{name: "skips one whose probes are lost", view: view{Active: 0, Members: members{member("a", linkDown(0)), member("b", lost(3)), member("c")}},
			active: 2, succ: []int{1}, verdict: []ndiscore.Verdict{down, held, up}, why: "next is c"},
		{name: "two lost probes are no verdict", view: view{Active: 0, Members: members{member("a", linkDown(0)), member("b", lost(2)), member("c")}},
			active: 1, succ: []int{2}, verdict: []ndiscore.Verdict{down, up, up}, why: "next is b"},
		{name: "inconclusive may be taken", view: view{Active: 0, Members: members{member("a", linkDown(0)), member("b", lost(3), late), member("c")}},
			active: 1, succ: []int{2}, verdict: []ndiscore.Verdict{down, up, up}, why: "3 probes lost in a row while we were late ourselves"},
		{name: "successors leave out the held", view: view{Active: 0, UpDelay: 5 * time.Second, Members: members{member("a"), member("b", since(time.Second)), member("c"), member("d")}},
			active: 0, succ: []int{2, 3}, verdict: []ndiscore.Verdict{up, held, up, up}, recheck: 4 * time.Second},

		// Up delay.
		{name: "up delay holds a standby", view: view{Active: 1, UpDelay: 5 * time.Second, Members: members{member("a", since(2*time.Second)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 3 * time.Second},
		{name: "up delay over", view: view{Active: 1, UpDelay: 5 * time.Second, Members: members{member("a", since(5*time.Second)), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "fail-back always: a is preferred to b; good for 5s"},
		{name: "up delay never leaves the active one", view: view{Active: 0, UpDelay: 5 * time.Second, Members: members{member("a", since(0)), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}},

		// Fail-back.
		{name: "always, hold running", view: view{Active: 1, Hold: 30 * time.Second, Members: members{member("a", since(10*time.Second)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 20 * time.Second},
		{name: "always, hold over", view: view{Active: 1, Hold: 30 * time.Second, Members: members{member("a", since(30*time.Second)), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "good for 30s (hold 30s)"},
		{name: "no proof, no fail-back", view: view{Active: 1, NeedProof: true, Members: members{member("a", since(time.Minute)), member("b", proof(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}},
		{name: "an old proof is none", view: view{Active: 1, NeedProof: true, Members: members{member("a", since(time.Minute), proof(2*time.Minute)), member("b", proof(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}},
		{name: "hold and proof", view: view{Active: 1, NeedProof: true, Hold: 30 * time.Second, Members: members{member("a", since(time.Minute), proof(time.Second)), member("b", proof(0))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "probe answered 1s ago"},
		{name: "proof does not shorten the hold", view: view{Active: 1, NeedProof: true, Hold: 30 * time.Second, Members: members{member("a", since(10*time.Second), proof(time.Second)), member("b", proof(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 20 * time.Second},
		{name: "nothing to recheck while proof is what lacks", view: view{Active: 1, NeedProof: true, Hold: 30 * time.Second, Members: members{member("a", since(10*time.Second)), member("b", proof(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}},
		{name: "lost probes keep it from coming back", view: view{Active: 1, Members: members{member("a", lost(3)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}},
		{name: "late: neither condemned nor moved to", view: view{Active: 1, NeedProof: true, Members: members{member("a", proof(time.Minute), lost(3), late), member("b", proof(0))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{inc, up}},
		{name: "late but proven", view: view{Active: 1, NeedProof: true, Members: members{member("a", proof(time.Minute), late), member("b", proof(0))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "fail-back always"},
		{name: "most preferred that may", view: view{Active: 2, Hold: 30 * time.Second, Members: members{member("a", since(time.Second)), member("b"), member("c")}},
			active: 1, succ: []int{2}, verdict: []ndiscore.Verdict{held, up, up}, recheck: 29 * time.Second, why: "b is preferred to c"},
		{name: "a failure without a link change is a recovery too", view: view{Active: 1, Members: members{member("a", failed(200*time.Millisecond)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 800 * time.Millisecond},
		{name: "hold counts from the last failure", view: view{Active: 1, Hold: 30 * time.Second, Members: members{member("a", failed(10*time.Second)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 20 * time.Second},
		{name: "proof must be newer than the last failure", view: view{Active: 1, NeedProof: true, Members: members{member("a", failed(10*time.Second), proof(11*time.Second)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}},
		{name: "better: slower stays", view: view{Active: 1, Failback: ndiscore.FailbackBetter, Members: members{member("a", speed(1e9)), member("b", speed(1e10))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{up, up}},
		{name: "better: equal stays", view: view{Active: 1, Failback: ndiscore.FailbackBetter, Members: members{member("a", speed(1e9)), member("b", speed(1e9))}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{up, up}},
		{name: "better: unknown is zero", view: view{Active: 1, Failback: ndiscore.FailbackBetter, Members: members{member("a", speed(1e9)), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "a, 1000000000 bit/s, is faster than b, 0 bit/s"},
		{name: "better: held", view: view{Active: 1, Failback: ndiscore.FailbackBetter, Hold: time.Minute, Members: members{member("a", speed(1e9), since(time.Second)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{held, up}, recheck: 59 * time.Second},
		{name: "better never moves to a less preferred one", view: view{Active: 0, Failback: ndiscore.FailbackBetter, Members: members{member("a"), member("b", speed(1e9))}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}},
		{name: "never", view: view{Active: 1, Failback: ndiscore.FailbackNever, Members: members{member("a", speed(1e9), proof(0)), member("b")}},
			active: 1, succ: []int{0}, verdict: []ndiscore.Verdict{up, up}},
		{name: "never still leaves a failed one", view: view{Active: 1, Failback: ndiscore.FailbackNever, Members: members{member("a"), member("b", linkDown(0))}},
			active: 0, verdict: []ndiscore.Verdict{up, down}, why: "next is a"},
		{name: "never is ignored when nothing is active", view: view{Active: -1, Failback: ndiscore.FailbackNever, Members: members{member("a"), member("b")}},
			active: 0, succ: []int{1}, verdict: []ndiscore.Verdict{up, up}, why: "nothing was active"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.view.Now = now
			d := ActiveBackup{}.Decide(tt.view)
			if d.Active != tt.active {
				t.Errorf("active %d, want %d (why %q)", d.Active, tt.active, d.Why)
			}
			if diff := cmp.Diff(tt.succ, d.Successors); diff != "" {
				t.Errorf("successors (-want +got):\n%s", diff)
			}
			if len(d.Verdicts) != len(tt.view.Members) {
				t.Fatalf("%d verdicts for %d members", len(d.Verdicts), len(tt.view.Members))
			}
			for i, want := range tt.verdict {
				if d.Verdicts[i] != want {
					t.Errorf("%s is %s, want %s", tt.view.Members[i].Name, d.Verdicts[i], want)
				}
			}
			if d.Recheck != tt.recheck {
				t.Errorf("recheck %s, want %s", d.Recheck, tt.recheck)
			}
			if tt.why == "" && d.Why != "" || !strings.Contains(d.Why, tt.why) {
				t.Errorf("why %q, want %q in it", d.Why, tt.why)
			}
			same(t, tt.view, d)
		})
	}
}

// same checks that deciding again after d was carried out changes nothing.
func same(t interface {
	Helper()
	Errorf(string, ...any)
}, v ndiscore.BundleView, d ndiscore.BundleDecision) {
	t.Helper()
	v = carriedOut(v, d)
	again := ActiveBackup{}.Decide(v)
	d.Why = ""
	if diff := cmp.Diff(d, again); diff != "" {
		t.Errorf("deciding again (-first +second):\n%s", diff)
	}
}

var genView = rapid.Custom(func(t *rapid.T) ndiscore.BundleView {
	past := rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.IntRange(0, 4).Draw(t, "none") == 0 {
			return time.Time{}
		}
		return now.Add(-time.Duration(rapid.IntRange(0, 40).Draw(t, "half seconds")) * time.Second / 2)
	})
	delay := rapid.SampledFrom([]time.Duration{0, 0, time.Second, 3500 * time.Millisecond, 10 * time.Second})
	v := ndiscore.BundleView{
		Name: "b", Now: now,
		Failback: ndiscore.Failback(rapid.IntRange(0, 2).Draw(t, "failback")),
		UpDelay:  delay.Draw(t, "up"), DownDelay: delay.Draw(t, "down"), Hold: delay.Draw(t, "hold"),
		NeedProof: rapid.Bool().Draw(t, "proof"),
		Balance:   rapid.SampledFrom([]ndiscore.Balance{ndiscore.BalanceActiveBackup, ndiscore.BalanceHash}).Draw(t, "balance"),
	}
	n := rapid.IntRange(0, 5).Draw(t, "members")
	for i := range n {
		v.Members = append(v.Members, ndiscore.MemberView{
			Name:    string(rune('a' + i)),
			Running: rapid.IntRange(0, 3).Draw(t, "running") > 0,
			Leaving: rapid.IntRange(0, 5).Draw(t, "leaving") == 0, Resetting: rapid.IntRange(0, 5).Draw(t, "resetting") == 0,
			Link: ndiscore.LinkState{
				Media: ndiscore.MediaState(rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(t, "media")),
				Speed: rapid.SampledFrom([]uint64{0, 1e9, 1e10}).Draw(t, "speed"),
			},
			Since: past.Draw(t, "since"), LastFailure: past.Draw(t, "failure"),
			Proof: past.Draw(t, "proof at"), LastProbe: past.Draw(t, "probe"),
			ProbesLost: rapid.IntRange(0, 5).Draw(t, "lost"),
			Late:       rapid.IntRange(0, 3).Draw(t, "late") == 0,
		})
	}
	v.Active = rapid.IntRange(-1, n-1).Draw(t, "active")
	if v.Balance == ndiscore.BalanceHash && v.Active >= 0 {
		for i := range v.Members {
			v.Members[i].Carries = i == v.Active || rapid.Bool().Draw(t, "carries")
		}
	}
	return v
})

func TestActiveBackupProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView.Draw(t, "view")
		d := ActiveBackup{}.Decide(v)
		usable := func(i int) bool { return i >= 0 && alive(&v.Members[i]) }

		if d.Active < -1 || d.Active >= len(v.Members) || len(d.Verdicts) != len(v.Members) {
			t.Fatalf("malformed decision %+v", d)
		}
		any := slices.ContainsFunc(v.Members, func(m ndiscore.MemberView) bool { return alive(&m) })
		tolerated := d.Active >= 0 && d.Active == v.Active && v.Members[d.Active].Running && !v.Members[d.Active].Leaving &&
			now.Sub(v.Members[d.Active].Since) < v.DownDelay
		if any && !usable(d.Active) && !tolerated {
			t.Fatalf("a member is usable, yet %d was chosen", d.Active)
		}
		if !any && d.Active >= 0 && !tolerated {
			t.Fatalf("no member is usable, yet %d was chosen", d.Active)
		}
		if d.Active != v.Active && d.Why == "" || d.Active == v.Active && d.Why != "" {
			t.Fatalf("from %d to %d, why %q", v.Active, d.Active, d.Why)
		}
		silent := v.Active >= 0 && (v.Members[v.Active].Resetting || v.Balance == ndiscore.BalanceHash && probesLost(&v.Members[v.Active]))
		if v.Active >= 0 && usable(v.Active) && d.Active != v.Active && !silent {
			if d.Active > v.Active {
				t.Fatalf("left the working member %d for the less preferred %d", v.Active, d.Active)
			}
			if v.Failback == ndiscore.FailbackNever {
				t.Fatal("fail-back although the policy is never")
			}
			if d.Verdicts[d.Active] != up || verdict(&v, d.Active, v.Active, now) != up {
				t.Fatal("fail-back to a member that is held")
			}
		}
		for k, s := range d.Successors {
			if s == d.Active || !usable(s) || slices.Contains(d.Successors[:k], s) {
				t.Fatalf("bad successors %v", d.Successors)
			}
		}
		others := 0
		for i := range v.Members {
			if i != d.Active && usable(i) {
				others++
			}
			if (d.Verdicts[i] == down) == usable(i) {
				t.Fatalf("member %d is %s", i, d.Verdicts[i])
			}
		}
		if want := d.Active >= 0 && others > 0 && v.DownDelay == 0 && !v.Members[d.Active].Resetting; want != (len(d.Successors) > 0) {
			t.Fatalf("successors %v with %d usable members left and down delay %s", d.Successors, others, v.DownDelay)
		}
		same(t, v, d)

		share(t, v, d)

		// Time alone changes something exactly after Recheck.
		v = carriedOut(v, d)
		ref := strip(ActiveBackup{}.Decide(v))
		horizon := d.Recheck
		if horizon == 0 {
			horizon = time.Hour
		}
		early := time.Duration(rapid.Int64Range(0, int64(horizon)-1).Draw(t, "early"))
		v.Now = now.Add(early)
		if diff := cmp.Diff(ref, strip(ActiveBackup{}.Decide(v))); diff != "" {
			t.Fatalf("changed after %s though recheck is %s:\n%s", early, d.Recheck, diff)
		}
		if d.Recheck > 0 {
			v.Now = now.Add(d.Recheck)
			if cmp.Equal(ref, strip(ActiveBackup{}.Decide(v))) {
				t.Fatalf("nothing changed after recheck %s", d.Recheck)
			}
		}
	})
}

// carriedOut is v after decision d has been carried out.
func carriedOut(v ndiscore.BundleView, d ndiscore.BundleDecision) ndiscore.BundleView {
	v.Active = d.Active
	v.Members = slices.Clone(v.Members)
	for i := range v.Members {
		v.Members[i].Carries = slices.Contains(d.Carriers, i)
	}
	return v
}

// share holds the carriers of a decision against the rules.
func share(t *rapid.T, v ndiscore.BundleView, d ndiscore.BundleDecision) {
	if v.Balance != ndiscore.BalanceHash || d.Active < 0 {
		if len(d.Carriers) > 0 {
			t.Fatalf("carriers %v without flows to share", d.Carriers)
		}
		return
	}
	if !slices.Contains(d.Carriers, d.Active) || !slices.IsSorted(d.Carriers) || len(slices.Compact(slices.Clone(d.Carriers))) != len(d.Carriers) {
		t.Fatalf("carriers %v, active %d", d.Carriers, d.Active)
	}
	for i := range v.Members {
		m, carries := &v.Members[i], slices.Contains(d.Carriers, i)
		linkOnly := m.Running && !m.Leaving && now.Sub(m.Since) < v.DownDelay
		switch {
		case d.Verdicts[i] == up && !carries:
			t.Fatalf("%s is up and carries nothing", m.Name)
		case i == d.Active || !carries:
		case !alive(m) && !(m.Carries && linkOnly):
			t.Fatalf("%s is dead and carries", m.Name)
		case d.Verdicts[i] == held:
			t.Fatalf("%s is held and carries", m.Name)
		case d.Verdicts[i] == inc && !m.Carries:
			t.Fatalf("%s is not known to be well, and gets a share", m.Name)
		}
	}
}

func strip(d ndiscore.BundleDecision) ndiscore.BundleDecision {
	d.Why, d.Recheck = "", 0
	return d
}

// TestRecheckLeadsSomewhere follows a bundle by its own rechecks only, and sees
// it come to rest: no ping-pong, no endless wake-ups.
func TestRecheckLeadsSomewhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView.Draw(t, "view")
		moves := 0
		for range 40 {
			d := ActiveBackup{}.Decide(v)
			if d.Active != v.Active {
				moves++
			}
			v = carriedOut(v, d)
			if d.Recheck == 0 {
				if moves > len(v.Members)+2 {
					t.Fatalf("%d moves among %d members", moves, len(v.Members))
				}
				return
			}
			v.Now = v.Now.Add(d.Recheck)
		}
		t.Fatal("does not come to rest")
	})
}

func BenchmarkDecide(b *testing.B) {
	v := ndiscore.BundleView{Now: now, Active: 0, NeedProof: true, Hold: time.Second, Members: []ndiscore.MemberView{
		member("a", proof(0)), member("b", proof(0)), member("c", proof(0)), member("d", proof(0)),
	}}
	b.ReportAllocs()
	for b.Loop() {
		ActiveBackup{}.Decide(v)
	}
}

// TestC59C60Hash: who shares the flows.
func TestC59C60Hash(t *testing.T) {
	type members = []ndiscore.MemberView
	for _, tt := range []struct {
		name     string
		view     ndiscore.BundleView
		active   int
		carriers []int
		recheck  time.Duration
	}{
		{name: "all that are up", view: ndiscore.BundleView{Active: 0, Members: members{member("a"), member("b"), member("c")}}, carriers: []int{0, 1, 2}},
		{name: "nobody", view: ndiscore.BundleView{Active: -1, Members: members{member("a", stopped)}}, active: -1},
		{name: "the first at once, the others when they have proven themselves",
			view:     ndiscore.BundleView{Active: -1, Hold: 10 * time.Second, Members: members{member("a", since(0)), member("b", since(4*time.Second))}},
			carriers: []int{0}, recheck: 6 * time.Second},
		{name: "up delay", view: ndiscore.BundleView{Active: 0, UpDelay: 5 * time.Second, Members: members{member("a"), member("b", since(time.Second))}},
			carriers: []int{0}, recheck: 4 * time.Second},
		{name: "no proof, no share", view: ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a"), member("b")}}, carriers: []int{0}},
		{name: "proof", view: ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a"), member("b", proof(0))}}, carriers: []int{0, 1}},
		{name: "who has a share need not prove itself again",
			view:     ndiscore.BundleView{Active: 0, NeedProof: true, Hold: time.Minute, Members: members{member("a", carries), member("b", carries, since(time.Second))}},
			carriers: []int{0, 1}},
		{name: "lost link", view: ndiscore.BundleView{Active: 0, Members: members{member("a", carries), member("b", carries, linkDown(0))}}, carriers: []int{0}},
		{name: "down delay", view: ndiscore.BundleView{Active: 0, DownDelay: time.Second, Members: members{member("a", carries), member("b", carries, linkDown(300*time.Millisecond))}},
			carriers: []int{0, 1}, recheck: 700 * time.Millisecond},
		{name: "down delay is over", view: ndiscore.BundleView{Active: 0, DownDelay: time.Second, Members: members{member("a", carries), member("b", carries, linkDown(time.Second))}},
			carriers: []int{0}},
		{name: "down delay gives nobody a share", view: ndiscore.BundleView{Active: 0, DownDelay: time.Second, Members: members{member("a"), member("b", linkDown(0))}},
			carriers: []int{0}},
		{name: "lost probes", view: ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a", carries), member("b", carries, lost(3))}}, carriers: []int{0}},
		{name: "lost probes of the active one", view: ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a", carries, lost(3)), member("b", carries)}},
			active: 1, carriers: []int{1}},
		{name: "lost probes of all", view: ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a", carries, lost(3)), member("b", carries, lost(3))}},
			carriers: []int{0}},
		{name: "late: who has a share keeps it, who has none gets none",
			view:     ndiscore.BundleView{Active: 0, NeedProof: true, Members: members{member("a", carries, lost(3), late), member("b", carries, lost(3), late), member("c", late)}},
			carriers: []int{0, 1}},
		{name: "flows go back, though group frames do not",
			view:   ndiscore.BundleView{Active: 1, Failback: ndiscore.FailbackNever, Members: members{member("a"), member("b", carries)}},
			active: 1, carriers: []int{0, 1}},
		{name: "leaving", view: ndiscore.BundleView{Active: 0, Members: members{member("a", carries, leaving), member("b", carries)}}, active: 1, carriers: []int{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.view.Now, tt.view.Balance = now, ndiscore.BalanceHash
			d := ActiveBackup{}.Decide(tt.view)
			if d.Active != tt.active || !slices.Equal(d.Carriers, tt.carriers) || d.Recheck != tt.recheck {
				t.Errorf("active %d, carriers %v, recheck %s (%s)", d.Active, d.Carriers, d.Recheck, d.Why)
			}
			same(t, tt.view, d)
		})
	}
}
