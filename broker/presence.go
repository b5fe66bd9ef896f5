package broker

import "time"

// Presence is who has a mailbox.
type Presence struct {
	ID      string
	Node    string    // the node that the owner is on
	Address string    // of its peer
	Since   time.Time // when it attached, by the store's clock
	Window  int       // how many messages it may have in flight
	Pending int       // unfinished messages in the mailbox
}

// PresenceQuery selects a page.
type PresenceQuery struct {
	// After is the Next of the page before. Limit is about how many there are to a page: default 100, at most 1000.
	After string
	Limit int
}

// PresencePage is a page. Next is empty at the end; a page may be empty before that.
type PresencePage struct {
	Online []Presence
	Next   string
}

// MaxAddress is how much of an address is kept.
const MaxAddress = 128
