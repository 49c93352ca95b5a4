package control

import "time"

// What one switch spends on those who ask.
const (
	maxConns     = 64 // served at the same time
	maxRefused   = 16 // more of them that are told why they are not served
	maxFollowers = 32 // of the connections, so that they leave room for others

	maxHeaderBytes = 8 << 10
	maxBodyBytes   = 64 << 10
	maxURLBytes    = 2 << 10
	maxNameBytes   = 64  // of an adapter, bundle or bridge
	maxWhyBytes    = 256 // of a reason given with a command

	headerTimeout = 5 * time.Second  // until the header is here
	readTimeout   = 10 * time.Second // until the body is here
	idleTimeout   = 60 * time.Second // between two requests
	askTimeout    = 10 * time.Second // for the switch to answer a question
	doTimeout     = 60 * time.Second // for the switch to carry out a command
	writeTimeout  = 90 * time.Second // for all of it; above doTimeout
	followTimeout = 5 * time.Second  // for a follower to take what it is sent

	followBatch = 256 // events per write
	stopTimeout = 2 * time.Second
)

// maxAnswerBytes is what a client reads at most: a forwarding database can hold
// a million entries of about a hundred bytes.
const maxAnswerBytes = 256 << 20
