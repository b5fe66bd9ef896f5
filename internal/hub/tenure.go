package hub

import (
	"time"

	"github.com/caddyrelay/relay/broker"
)

var _ broker.Owner = (*tenure)(nil)

// tenure is the time for which a session owns a mailbox, and what the store knows as its owner. A session whose
// channel moves to another store has two for a moment: what the old store still says is about the old mailbox, where
// the same sequences mean other messages.
type tenure struct {
	delivery *delivery

	// Guarded by the session's mu.
	lost      error // why the mailbox is no longer ours
	withdrawn map[uint64]struct{}
}

// currentLocked reports whether the session delivers from this tenure's mailbox.
func (t *tenure) currentLocked() bool { return t.delivery.tenure == t }

// Ring implements [broker.Owner]. A ring before the attachment is done needs no note: the session reads on then anyway.
func (t *tenure) Ring() {
	d := t.delivery
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if !t.currentLocked() {
		return
	}
	d.more = true
	d.rings++
	d.retry = time.Time{} // whoever rings has just reached the store
	d.wakeLocked()
}

// Lost implements [broker.Owner].
func (t *tenure) Lost(err error) {
	d := t.delivery
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if t.currentLocked() {
		d.lostLocked(err)
	} else if t.lost == nil {
		t.lost = err
	}
}

// Withdraw implements [broker.Owner].
func (t *tenure) Withdraw(seq uint64, mid string) bool {
	d := t.delivery
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if t.currentLocked() {
		for i, f := range d.flights {
			if f.entry.Seq != seq {
				continue
			}
			if f.entry.Message.MID != mid || f.pushedHere || f.entry.Attempts > 0 || f.phase > queued {
				return false
			}
			f.phase = dropped // its frame may be in the queue; the writer passes it over
			d.removeLocked(i)
			d.wakeLocked()
			return true
		}
		if seq <= d.read { // settled, or being so
			return false
		}
	}
	if t.withdrawn == nil {
		t.withdrawn = make(map[uint64]struct{})
	}
	t.withdrawn[seq] = struct{}{}
	return true
}

// Attempts implements [broker.Owner].
func (t *tenure) Attempts(seq uint64, _ string) (int, bool) {
	d := t.delivery
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if !t.currentLocked() {
		return 0, false
	}
	for _, f := range d.flights {
		if f.entry.Seq == seq {
			return f.entry.Attempts, f.phase == pushed
		}
	}
	return 0, false
}
