package nat

import "time"

// state is where a flow stands in its life.
type state uint8

const (
	// TCP, after RFC 6146 3.5.2.
	tcpOpening     state = iota // one side has spoken
	tcpAnswered                 // the other side has answered
	tcpEstablished              // the first side has confirmed
	tcpFinFirst                 // the initiator has no more to say
	tcpFinSecond                // the responder has no more to say
	tcpClosing                  // neither has
	tcpReset                    // one side broke it off

	// Everything else.
	stateNew      // one side has spoken
	stateAnswered // the other side has answered
	stateStream   // and the first one went on

	states
)

var stateNames = [states]string{
	tcpOpening: "syn-sent", tcpAnswered: "syn-received", tcpEstablished: "established",
	tcpFinFirst: "fin-wait", tcpFinSecond: "close-wait", tcpClosing: "closing", tcpReset: "reset",
	stateNew: "new", stateAnswered: "answered", stateStream: "stream",
}

func (s state) String() string { return stateNames[s] }

// weak reports whether a flow may be given up for a new one when the table is
// full: nobody would miss it for long.
func (s state) weak() bool {
	switch s {
	case tcpEstablished, tcpFinFirst, tcpFinSecond, stateStream:
		return false
	}
	return true
}

// step is the state of f after a packet with TCP flags in direction dir, and how
// long the flow then lives without another; 0 leaves that as it is.
func (t *Table) step(f *flow, dir int, flags uint8) (state, time.Duration) {
	l := &t.limits
	if f.node[0].proto != protoTCP {
		return t.stepOther(f, dir)
	}
	s := f.state
	switch fin, fromFirst := flags&flagFIN != 0, dir == f.opener; {
	case (s == tcpClosing || s == tcpReset) && flags&(flagSYN|flagACK|flagRST) == flagSYN:
		// The same ports again, for another connection.
		f.opener, f.spoke = dir, 0
		return tcpOpening, l.TCPTransitory
	case flags&flagRST != 0:
		f.spoke = 0
		if s == tcpReset || s == tcpClosing {
			return s, 0
		}
		return tcpReset, l.TCPTransitory
	case s == tcpReset:
		// A reset may be forged. Who has really been reset is silent, so if both
		// go on it was.
		if f.spoke |= 1 << dir; f.spoke == 3 {
			return tcpEstablished, l.TCP
		}
		return s, 0
	case s == tcpClosing:
		return s, 0
	case s == tcpFinFirst && fin && !fromFirst, s == tcpFinSecond && fin && fromFirst:
		return tcpClosing, l.TCPTransitory
	case s == tcpFinFirst || s == tcpFinSecond:
		return s, l.TCPTransitory
	case s == tcpOpening && fromFirst:
		return s, l.TCPTransitory
	case fin && fromFirst:
		return tcpFinFirst, l.TCPTransitory
	case fin:
		return tcpFinSecond, l.TCPTransitory
	case s == tcpOpening && !fromFirst:
		return tcpAnswered, l.TCPTransitory
	case s == tcpAnswered && fromFirst && flags&flagSYN == 0:
		return tcpEstablished, l.TCP
	case s == tcpEstablished:
		return s, l.TCP
	}
	return s, l.TCPTransitory
}

func (t *Table) stepOther(f *flow, dir int) (state, time.Duration) {
	l, s := &t.limits, f.state
	switch {
	case s == stateNew && dir != 0:
		s = stateAnswered
	case s == stateAnswered && dir == 0:
		s = stateStream
	}
	switch p := f.node[0].proto; {
	case p == protoICMP || p == protoICMPv6:
		// One more question makes no stream of it.
		return min(s, stateAnswered), l.ICMP
	case s == stateStream:
		return s, l.UDPStream
	}
	return s, l.UDP
}

// life is how long f lives in the state that it is in, from a packet that does not
// change it; 0 leaves its end as it is.
func (t *Table) life(f *flow) time.Duration {
	l := &t.limits
	switch p := f.node[0].proto; {
	case f.state == tcpClosing || f.state == tcpReset:
		return 0
	case f.state == tcpEstablished:
		return l.TCP
	case p == protoTCP:
		return l.TCPTransitory
	case p == protoICMP || p == protoICMPv6:
		return l.ICMP
	case f.state == stateStream:
		return l.UDPStream
	}
	return l.UDP
}
