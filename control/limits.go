package control

import "time"

// limits is what one switch spends on those who ask; tests lower some.
type limits struct {
	conns     int32 // served at the same time
	refused   int32 // more of them that are told why they are not served
	followers int32 // of the connections, so that they leave room for others

	header time.Duration // until the header is here
	read   time.Duration // until the body is here
	idle   time.Duration // between two requests
	write  time.Duration // for all of an answer; above doTimeout
	follow time.Duration // for a follower to take what it is sent
	stop   time.Duration // for what is under way when the server stops
}

func defaultLimits() limits {
	return limits{
		conns: 64, refused: 16, followers: 32,
		header: 5 * time.Second, read: 10 * time.Second, idle: 60 * time.Second, write: 90 * time.Second,
		follow: 5 * time.Second, stop: 2 * time.Second,
	}
}

// MaxNATFlows is how many translated flows one answer lists at most.
const MaxNATFlows = 10_000

const (
	askTimeout = 10 * time.Second // for the switch to answer a question
	doTimeout  = 60 * time.Second // for the switch to carry out a command

	applyTimeout = 80 * time.Second // for a whole configuration; below write

	maxHeaderBytes = 8 << 10
	maxBodyBytes   = 64 << 10
	maxConfigBytes = 3 << 20 // a configuration of config.MaxBytes, as JSON
	maxURLBytes    = 2 << 10
	maxNameBytes   = 64  // of an adapter, bundle or bridge
	maxWhyBytes    = 256 // of a reason given with a command

	followBatch = 256 // events per write

	// maxAnswerBytes is what a client reads at most: a forwarding database can
	// hold a million entries of about a hundred bytes.
	maxAnswerBytes = 256 << 20
)
