package bridge

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

const (
	maxGroups  = 2048                  // most groups that are followed; others are flooded
	noteBytes  = 64 << 10              // room for messages that the keeper has not read yet
	noteHeader = 2 + 2 + 2 + 2         // port id, VLAN, EtherType, length
	maxNote    = 2048                  // the longest message that is read
	snoopPace  = 10 * time.Millisecond // the keeper reads what has come at most so often
	snoopTick  = time.Second           // … and looks what has run out

	defaultMembership = defaultRobustness*defaultInterval + defaultResponse
	helloHold         = 105 * time.Second // RFC 7761 section 4.11
)

// snooper knows who listens to which group (RFC 4541). The data path reads an
// immutable view of it and puts messages aside; the keeper reads them.
type snooper struct {
	view    atomic.Pointer[groupView] // nil: nothing is known, all is flooded
	reports atomic.Uint64
	unread  atomic.Uint64
	notes   notes

	// The keeper's.
	reading []byte
	joins   []netip.Addr
	read    time.Time // when notes were last taken

	mu       sync.Mutex // guards all below; a leaf
	families map[familyKey]*family
	groups   int
	dirty    bool
	checked  time.Time // when it was last looked what has run out
	blind    time.Time // until then what is known is not relied upon: messages were lost
}

// familyKey names what is snooped apart: IGMP and MLD, in each VLAN.
type familyKey struct {
	vlan uint16
	v6   bool
}

// family is what is known of one of them.
type family struct {
	until      time.Time     // a querier is known; zero: none is
	answered   time.Time     // before, nobody is out: there was a question that may be answered so late
	trusted    time.Time     // from then on, those who listen have had the time to say so
	active     bool          // both hold: what is known counts
	membership time.Duration // how long a report counts
	robustness int           // how often a querier asks before it believes in silence
	asker      uint16        // port of the last general query
	source     netip.Addr    // … and who sent it
	routers    map[uint16]time.Time
	// fresh are ports that came up, or whose network changed, after the last
	// query: who listens there will not be known before the next one is
	// answered. Zero: it has not come yet.
	fresh  map[uint16]time.Time
	groups map[netip.Addr]map[uint16]time.Time // until when, by port id
}

// groupView is what the data path sees.
type groupView struct {
	families map[familyKey]*familyView // only those with a querier
}

type familyView struct {
	reports []uint16                // where reports go: to the routers, and who asks
	groups  map[netip.Addr][]uint16 // who listens, and the routers; nil while that is not certain
}

// notes are the messages that the data path has put aside: one record after
// the other, noteHeader and the packet.
type notes struct {
	mu   sync.Mutex // held for one append or one exchange; a leaf
	buf  []byte
	lost bool
}

// groupPacket returns the IP packet in f and the group that it is for; the
// group is not valid when there is none.
func groupPacket(f *ndiscore.Frame, how tagging) (etherType uint16, p []byte, group netip.Addr) {
	h := f.Head
	at := ndiscore.EthernetHeader
	if how != untagged {
		at += tagLength
	}
	if len(h) < at {
		return 0, nil, group
	}
	etherType, p = binary.BigEndian.Uint16(h[at-2:]), h[at:]
	switch {
	// Only in a frame that reaches those to whom the packet is addressed (RFC 1112
	// 6.4, RFC 2464 7): else a query could be heard by us and nobody else.
	case etherType == ndiscore.EtherTypeIPv4 && len(p) >= ipv4Header && h[0] == 1 && h[1] == 0 && h[2] == 0x5e &&
		h[3] == p[17]&0x7f && h[4] == p[18] && h[5] == p[19]:
		group = netip.AddrFrom4([4]byte(p[16:20]))
	case etherType == ndiscore.EtherTypeIPv6 && len(p) >= ipv6Header && h[0] == 0x33 && h[1] == 0x33 && [4]byte(h[2:]) == [4]byte(p[36:]):
		group = netip.AddrFrom16([16]byte(p[24:40]))
	}
	return etherType, p, group
}

// overhear puts aside what a frame says that the port's limit drops. Whoever
// listens, or routes, does so whether others get to hear of it or not. A query
// that is dropped nobody answers: that silence must not count.
func (s *snooper) overhear(v *view, in *port, f *ndiscore.Frame, vlan uint16, how tagging) {
	etherType, p, group := groupPacket(f, how)
	if !group.IsValid() {
		return
	}
	if kind := peek(etherType, p); kind == reportMessage || kind == helloMessage {
		if s.note(in.id, vlan, etherType, p, f.Segs) {
			v.keeper.poke()
		}
	}
}

// listeners returns the ports to which a group frame goes; known is false when
// it goes to all. in is nil for a frame from above.
func (s *snooper) listeners(v *view, in *port, f *ndiscore.Frame, vlan uint16, how tagging) (to []uint16, known bool) {
	etherType, p, group := groupPacket(f, how)
	if !group.IsValid() {
		return nil, false
	}
	kind := peek(etherType, p)
	if kind != noMessage && in != nil && s.note(in.id, vlan, etherType, p, f.Segs) {
		v.keeper.poke()
	}
	g := s.view.Load()
	if g == nil {
		return nil, false
	}
	fam := g.families[familyKey{vlan, etherType == ndiscore.EtherTypeIPv6}]
	switch {
	case fam == nil:
		return nil, false
	case kind == reportMessage:
		// Only to routers: who hears others report keeps silent itself (RFC
		// 4541 section 2.1.1).
		return fam.reports, true
	case kind != noMessage:
		return nil, false
	}
	to, known = fam.groups[group]
	return to, known
}

// note puts a message aside and reports whether the keeper has to be woken.
func (s *snooper) note(id, vlan, etherType uint16, p []byte, segs [][]byte) (wake bool) {
	n := len(p)
	for _, x := range segs {
		n += len(x)
	}
	q := &s.notes
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.buf == nil {
		return false
	}
	if n > maxNote || cap(q.buf)-len(q.buf) < noteHeader+n {
		s.unread.Add(1)
		wake = !q.lost
		q.lost = true
		return wake
	}
	wake = len(q.buf) == 0
	b := q.buf
	for _, x := range [...]uint16{id, vlan, etherType, uint16(n)} {
		b = binary.BigEndian.AppendUint16(b, x)
	}
	b = append(b, p...)
	for _, x := range segs {
		b = append(b, x...)
	}
	q.buf = b
	return wake
}

// open gives the notes their memory: from now on messages are put aside.
func (s *snooper) open() {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	if s.notes.buf == nil {
		s.notes.buf = make([]byte, 0, noteBytes)
	}
}

// clear forgets everything: all is flooded until a querier is heard again.
func (s *snooper) clear() {
	s.notes.mu.Lock()
	if s.notes.buf != nil {
		s.notes.buf, s.notes.lost = s.notes.buf[:0], false
	}
	s.notes.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families, s.groups, s.dirty, s.blind = nil, 0, false, time.Time{}
	s.view.Store(nil)
}

// step reads what has come, lets go what has run out, and publishes what that
// changed. It returns when it wants to be called again, zero for when there is
// news.
func (s *snooper) step(now time.Time) (next time.Time) {
	if !s.read.IsZero() && now.Sub(s.read) < snoopPace {
		return s.read.Add(snoopPace)
	}
	b, lost := s.take()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b) > 0 || lost {
		s.read = now
	}
	for len(b) >= noteHeader {
		id, vlan := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		etherType, n := binary.BigEndian.Uint16(b[4:]), int(binary.BigEndian.Uint16(b[6:]))
		m, ok := parse(etherType, b[noteHeader:noteHeader+n], s.joins)
		if ok {
			s.reports.Add(1)
			s.hear(id, vlan, &m, now)
		}
		if m.joins != nil {
			s.joins = m.joins
		}
		b = b[noteHeader+n:]
	}
	if lost {
		// What was lost may have been somebody who listens. Each is asked
		// again before this is over.
		s.blind = now.Add(s.longest())
		s.dirty = true
	}
	if !s.blind.IsZero() && !now.Before(s.blind) {
		s.blind, s.dirty = time.Time{}, true
	}
	if now.Sub(s.checked) >= snoopTick || s.dirty {
		s.checked = now
		s.expire(now)
	}
	if s.dirty {
		s.publish()
	}
	if len(s.families) == 0 && s.blind.IsZero() {
		return time.Time{}
	}
	return s.checked.Add(snoopTick)
}

// longest is the longest time that a report counts.
func (s *snooper) longest() time.Duration {
	d := defaultMembership
	for _, f := range s.families {
		d = max(d, f.membership)
	}
	return d
}

// family finds what is known of one, or begins it; mu must be held.
func (s *snooper) family(vlan uint16, v6 bool) *family {
	key := familyKey{vlan, v6}
	f := s.families[key]
	if f == nil {
		f = &family{
			membership: defaultMembership, robustness: defaultRobustness,
			routers: make(map[uint16]time.Time), fresh: make(map[uint16]time.Time),
			groups: make(map[netip.Addr]map[uint16]time.Time),
		}
		if s.families == nil {
			s.families = make(map[familyKey]*family)
		}
		s.families[key] = f
	}
	return f
}

// hear takes note of a message that came in through port id; mu must be held.
func (s *snooper) hear(id, vlan uint16, m *message, now time.Time) {
	f := s.family(vlan, m.v6)
	switch m.kind {
	case queryMessage:
		if m.group.IsValid() {
			s.asked(f, id, m, now)
			return
		}
		f.robustness = m.robustness
		f.membership = time.Duration(m.robustness)*m.interval + m.response
		known := time.Duration(m.robustness)*m.interval + m.response/2
		if f.until.IsZero() {
			f.trusted = now.Add(m.response)
		}
		s.dirty = s.dirty || f.until.IsZero() || f.asker != id
		f.until, f.asker, f.source = now.Add(known), id, m.from
		if at := now.Add(m.response); at.After(f.answered) {
			f.answered = at
		}
		for p, t := range f.fresh {
			if t.IsZero() {
				f.fresh[p] = now.Add(m.response)
			}
		}
		if !m.from.IsUnspecified() { // a switch that asks in place of a router has no address
			s.router(f, id, f.until)
		}
	case helloMessage:
		s.router(f, id, now.Add(helloHold))
	case reportMessage:
		for _, g := range m.joins {
			ports := f.groups[g]
			if ports == nil {
				if s.groups >= maxGroups {
					continue // a group that is not followed is flooded
				}
				ports = make(map[uint16]time.Time)
				f.groups[g] = ports
				s.groups++
			}
			if _, ok := ports[id]; !ok {
				s.dirty = true
			}
			ports[id] = now.Add(f.membership)
		}
	}
}

// router notes that a multicast router is behind port id.
func (s *snooper) router(f *family, id uint16, until time.Time) {
	old, ok := f.routers[id]
	if !ok {
		s.dirty = true
	}
	if until.After(old) {
		f.routers[id] = until
	}
}

// asked is for a query about one group: whoever listens to it answers now, or
// listens no longer (RFC 3376 section 6.6.2).
func (s *snooper) asked(f *family, id uint16, m *message, now time.Time) {
	if m.narrow {
		return
	}
	at := now.Add(time.Duration(max(f.robustness, defaultRobustness)) * m.response)
	for p, t := range f.groups[m.group] {
		if p != id && at.Before(t) {
			f.groups[m.group][p] = at
		}
	}
}

// expire lets go what has run out; mu must be held.
func (s *snooper) expire(now time.Time) {
	out := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	for key, f := range s.families {
		if out(f.until) {
			f.until, s.dirty = time.Time{}, true
		}
		if active := !f.until.IsZero() && !now.Before(f.trusted); active != f.active {
			f.active, s.dirty = active, true
		}
		for _, ports := range [...]map[uint16]time.Time{f.routers, f.fresh} {
			for p, t := range ports {
				if out(t) {
					delete(ports, p)
					s.dirty = true
				}
			}
		}
		for g, ports := range f.groups {
			for p, t := range ports {
				if out(t) && !now.Before(f.answered) {
					delete(ports, p)
					s.dirty = true
				}
			}
			s.tidy(f, g)
		}
		if f.until.IsZero() && len(f.routers) == 0 && len(f.groups) == 0 {
			delete(s.families, key)
		}
	}
}

// tidy forgets a group to which nobody listens any more; mu must be held.
func (s *snooper) tidy(f *family, g netip.Addr) {
	if len(f.groups[g]) == 0 {
		delete(f.groups, g)
		s.groups--
	}
}

// publish makes what is known visible to the data path; mu must be held.
func (s *snooper) publish() {
	s.dirty = false
	v := &groupView{families: make(map[familyKey]*familyView)}
	for key, f := range s.families {
		if f.until.IsZero() {
			continue
		}
		// Also as long as all else is flooded: whoever kept silent would be missing
		// afterwards.
		fv := &familyView{reports: sortedIDs(f.routers, map[uint16]time.Time{f.asker: f.until})}
		v.families[key] = fv
		if !f.active || !s.blind.IsZero() {
			continue
		}
		fv.groups = make(map[netip.Addr][]uint16, len(f.groups))
		for g, ports := range f.groups {
			fv.groups[g] = sortedIDs(ports, f.routers, f.fresh)
		}
	}
	if len(v.families) == 0 {
		v = nil
	}
	s.view.Store(v)
}

func sortedIDs(sets ...map[uint16]time.Time) []uint16 {
	var ids []uint16
	for _, s := range sets {
		for id := range s {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// forget drops a port that is down, or gone, from all that is known.
func (s *snooper) forget(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		delete(f.routers, id)
		delete(f.fresh, id)
		for g, ports := range f.groups {
			delete(ports, id)
			s.tidy(f, g)
		}
	}
	if len(s.families) > 0 {
		s.publish()
	}
}

// fresh notes that nothing is known of who listens behind a port: it gets
// everything until those there have been asked.
func (s *snooper) fresh(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		f.fresh[id] = time.Time{}
	}
	if len(s.families) > 0 {
		s.publish()
	}
}

// take exchanges the notes for empty ones.
func (s *snooper) take() (b []byte, lost bool) {
	q := &s.notes
	q.mu.Lock()
	defer q.mu.Unlock()
	lost, q.lost = q.lost, false
	if len(q.buf) == 0 {
		return nil, lost
	}
	if s.reading == nil {
		s.reading = make([]byte, 0, noteBytes)
	}
	b = q.buf
	q.buf, s.reading = s.reading[:0], b
	return b, lost
}

// Group is one group to which somebody listens.
type Group struct {
	VLAN    uint16     `json:"vlan,omitempty"`
	Group   netip.Addr `json:"group"`
	Ports   []string   `json:"ports"`
	Expires int        `json:"expires_seconds"` // unless somebody says again that he listens
}

// Querier is who asks for listeners, in one VLAN, for IPv4 or IPv6.
type Querier struct {
	VLAN    uint16     `json:"vlan,omitempty"`
	Address netip.Addr `json:"address"` // unspecified: a switch that asks in place of a router
	Port    string     `json:"port"`
	Routers []string   `json:"routers"` // ports behind which routers are
	Pruning bool       `json:"pruning"` // group frames go only where somebody listens
	Expires int        `json:"expires_seconds"`
}

// Groups lists the groups to which somebody listens, in order.
func (b *Bridge) Groups() []Group {
	names, now := b.snoopInfo()
	s := &b.snoop
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Group{}
	for key, f := range s.families {
		for g, ports := range f.groups {
			e := Group{VLAN: key.vlan, Group: g}
			for _, id := range sortedIDs(ports) {
				e.Ports = append(e.Ports, nameOf(names, id))
				e.Expires = max(e.Expires, int(ports[id].Sub(now).Seconds()))
			}
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Group) int { return cmp.Or(cmp.Compare(a.VLAN, b.VLAN), a.Group.Compare(b.Group)) })
	return all
}

// Queriers lists the queriers known, in order.
func (b *Bridge) Queriers() []Querier {
	names, now := b.snoopInfo()
	s := &b.snoop
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Querier{}
	for key, f := range s.families {
		if f.until.IsZero() {
			continue
		}
		q := Querier{
			VLAN: key.vlan, Address: f.source, Port: nameOf(names, f.asker), Routers: []string{},
			Pruning: f.active && s.blind.IsZero(), Expires: max(int(f.until.Sub(now).Seconds()), 0),
		}
		for _, id := range sortedIDs(f.routers) {
			q.Routers = append(q.Routers, nameOf(names, id))
		}
		all = append(all, q)
	}
	slices.SortFunc(all, func(a, b Querier) int {
		return cmp.Or(cmp.Compare(a.VLAN, b.VLAN), cmp.Compare(a.Address.BitLen(), b.Address.BitLen()))
	})
	return all
}

// snoopInfo is the ports' names by id, and the time that the keeper goes by.
func (b *Bridge) snoopInfo() ([]string, time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keeper == nil {
		return nil, time.Time{} // nothing is known then
	}
	return slices.Clone(b.names), b.keeper.clock.Now()
}

func nameOf(names []string, id uint16) string {
	if int(id) < len(names) {
		return names[id]
	}
	return ""
}

// routers is the ports behind which multicast routers are.
func (s *snooper) routers() []uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []uint16
	for _, f := range s.families {
		ids = append(ids, sortedIDs(f.routers)...)
	}
	return ids
}

// count is the number of groups known.
func (s *snooper) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups
}
