package model

import "fmt"

// The bounds. They are small: faults of this kind need few actors and few steps.
const (
	nodes    = 2
	messages = 2
	sessions = 3 // that ever register
	offers   = 2 // under way at once
)

// store is what a primary, or a replica, holds of the mailbox.
type store struct {
	seq   [messages]uint8 // of each message that is in the list; 0 if it is not
	last  uint8
	fence uint8
	owner uint8 // the number of the attach, or 0
}

// phase is where a message is in a session.
type phase uint8

const (
	unknown  phase = iota
	waiting        // read, or taken from an offer
	pushed         // in the client's hands
	answered       // the client has acknowledged it
)

// session is one socket on one node.
type session struct {
	node   uint8 // plus 1; 0 if it never was
	name   uint8 // the number of its attach; 0 once it is over
	fence  uint8
	read   uint8 // through which sequence
	rung   bool
	stale  bool // another primary has the mailbox since it attached
	phases [messages]phase
}

// offer is a message on its way to an owner.
type offer struct {
	to, prev, seq, message uint8 // message plus 1; 0 if there is no offer
}

// State is everything at one moment. It is a value, so that it can be a key.
type State struct {
	primary, replica store
	clock            uint8 // of the primary; a promoted one's may be behind

	sessions [sessions]session
	offers   [offers]offer

	attaches, failovers, faults, lost uint8 // that were, to bound them

	cut, expired [nodes]bool // from the store; their lease is over

	stored   [messages]bool // at some time
	accepted [messages]bool // the sender was told so
	ever     [messages]bool // finished by an owner at some time
	first    [messages]bool // pushed at least once
}

// violation says which promise a step breaks.
type violation string

func (v violation) Error() string { return string(v) }

// check returns what is wrong with a state by itself.
func (s *State) check() error {
	for m := range messages {
		if s.accepted[m] && s.primary.seq[m] == 0 && !s.ever[m] {
			return violation(fmt.Sprintf("I2: message %d was accepted, is not in the mailbox, and nobody has finished it", m+1))
		}
	}
	return nil
}

// done reports whether all that was stored is finished.
func (s *State) done() bool {
	for m := range messages {
		if s.primary.seq[m] != 0 {
			return false
		}
	}
	return true
}
