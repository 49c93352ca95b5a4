package stack

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// neighborTable mirrors netstack's neighbours, as far as its gaps ask for it, and
// with its bound: 512 per NIC and version of IP.
type neighborTable struct {
	asking atomic.Int32 // length of questions

	mu        sync.Mutex // a leaf: netstack calls with locks held
	known     map[neighborKey]tcpip.LinkAddress
	questions map[neighborKey]*question
	asked     uint64 // questions so far
}

// question is a neighbour that is being asked for.
type question struct {
	number uint64 // the smaller, the older
	bytes  int    // that wait for the answer
}

type neighborKey struct {
	nic tcpip.NICID
	ip  tcpip.Address
}

// waitingBytes is how much may wait for one neighbour that is being asked for.
// netstack bounds only packets, at 256, for the last 64 questions of a NIC: with
// super-frames that would be a gigabyte, for anybody who sends to 64 addresses
// that nobody has.
const waitingBytes = 256 << 10

// maxQuestions is how many neighbours a NIC may be asking for. netstack gives up on
// the oldest question when there are more than 64: on a goroutine of its own, where
// a panic would be fatal, and which takes memory from its pools while the feeder is
// inside, so that packets leave with a wrong TTL (see newView). Before that, we do.
const maxQuestions = 48

var _ netstack.NUDDispatcher = (*neighborTable)(nil)

func newNeighborTable() *neighborTable {
	return &neighborTable{known: map[neighborKey]tcpip.LinkAddress{}, questions: map[neighborKey]*question{}}
}

// OnNeighborAdded implements stack.NUDDispatcher.
func (t *neighborTable) OnNeighborAdded(nic tcpip.NICID, e netstack.NeighborEntry) {
	t.OnNeighborChanged(nic, e)
}

// OnNeighborChanged implements stack.NUDDispatcher.
func (t *neighborTable) OnNeighborChanged(nic tcpip.NICID, e netstack.NeighborEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := neighborKey{nic, e.Addr}
	delete(t.questions, k)
	delete(t.known, k)
	switch e.State {
	case netstack.Incomplete:
		t.asked++
		t.questions[k] = &question{number: t.asked}
	case netstack.Unknown, netstack.Unreachable:
	default:
		t.known[k] = e.LinkAddr
	}
	t.asking.Store(int32(len(t.questions)))
}

// OnNeighborRemoved implements stack.NUDDispatcher.
func (t *neighborTable) OnNeighborRemoved(nic tcpip.NICID, e netstack.NeighborEntry) {
	e.State = netstack.Unknown
	t.OnNeighborChanged(nic, e)
}

// moved reports whether mac is another one than netstack knows of k.
func (t *neighborTable) moved(k neighborKey, mac []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.known[k]
	return ok && string(known) != string(mac)
}

// mayWait reports whether n bytes more may be sent to k, and counts them if they
// have to wait.
func (t *neighborTable) mayWait(k neighborKey, n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.questions[k]
	if q == nil {
		return true
	}
	if q.bytes+n > waitingBytes {
		return false
	}
	q.bytes += n
	return true
}

// oldest is the oldest question of a NIC that asks too many.
func (t *neighborTable) oldest() (oldest neighborKey, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	asks := map[tcpip.NICID]int{}
	for k := range t.questions {
		asks[k.nic]++
	}
	for k, q := range t.questions {
		if asks[k.nic] >= maxQuestions && (!ok || q.number < t.questions[oldest].number) {
			oldest, ok = k, true
		}
	}
	return oldest, ok
}

// limitQuestions gives up on the oldest questions of NICs that ask too many. It may
// replace netstack.
func (r *Router) limitQuestions() {
	for r.feed.net.neighbors.asking.Load() >= maxQuestions {
		net := r.feed.net
		k, ok := net.neighbors.oldest()
		if !ok {
			return
		}
		proto := ipv4.ProtocolNumber
		if k.ip.Len() == header.IPv6AddressSize {
			proto = ipv6.ProtocolNumber
		}
		if err := net.s.RemoveNeighbor(k.nic, proto, k.ip); err != nil {
			net.neighbors.OnNeighborRemoved(k.nic, netstack.NeighborEntry{Addr: k.ip})
		}
		r.runDue() // what waited for it
	}
}

// noticeMove does for an ARP packet what RFC 826 asks before anything else, and
// netstack does not: whoever its sender is, if we know its IP address with
// another MAC, that one is out of date. netstack heeds only requests for its own
// addresses, takes over no MAC from a reply, and so would go on sending to a
// neighbour that has moved, and said so, for half a minute and more. Here it
// forgets such a neighbour, and asks for it when it next has a packet for it. In
// IPv6 it follows advertisements, as RFC 4861 7.2.5 has it.
func (r *Router) noticeMove(it *punted) {
	b, ok := it.pkt.Data().PullUp(arpLength)
	if !ok {
		return
	}
	a := header.ARP(b)
	mac := a.HardwareAddressSender()
	if !a.IsValid() || mac[0]&1 != 0 {
		return
	}
	net, k := r.feed.net, neighborKey{it.in.iface.id, tcpip.AddrFrom4Slice(a.ProtocolAddressSender())}
	if !net.neighbors.moved(k, mac) {
		return
	}
	if err := net.s.RemoveNeighbor(k.nic, ipv4.ProtocolNumber, k.ip); err == nil {
		r.stats.moves.Add(1)
	}
}

// mayWait reports whether netstack may have it, although what it becomes (itself
// when it is forwarded, else the answer to it) may have to wait for a neighbour.
func (r *Router) mayWait(it *punted) bool {
	t := r.feed.net.neighbors
	if t.asking.Load() == 0 {
		return true
	}
	at, n := 12, 4 // of the source
	f := r.fib.Load()
	l := &f.v4
	if it.pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		at, n = 8, 16
		l = &f.v6
	}
	if it.class == classForward {
		at += n
	}
	b, ok := it.pkt.Data().PullUp(at + n)
	if !ok {
		return true
	}
	b = b[at:]
	k := key4(b)
	if n == 16 {
		k = key6(b)
	}
	e := l.lookup(k)
	if e == nil || e.kind != fibForward {
		return true
	}
	hop := e.via
	if hop.Len() == 0 {
		hop = tcpip.AddrFromSlice(b[:n])
	}
	if t.mayWait(neighborKey{e.egress.iface.id, hop}, it.bytes) {
		return true
	}
	r.stats.impatient.Add(1)
	return false
}
