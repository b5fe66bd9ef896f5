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
	rung      bool  // before the session delivered from it
	withdrawn map[uint64]struct{}
}

// currentLocked reports whether the session delivers from this tenure's mailbox.
func (t *tenure) currentLocked() bool { return t.delivery.tenure == t }

// Ring implements [broker.Owner].
func (t *tenure) Ring() {
	t.delivery.s.mu.Lock()
	defer t.delivery.s.mu.Unlock()
	t.ringLocked()
}

func (t *tenure) ringLocked() {
	d := t.delivery
	if !t.currentLocked() {
		t.rung = true
		return
	}
	d.more = true
	d.rings++
	d.retry = time.Time{} // whoever rings has just reached the store
	d.wakeLocked()
}

// Offer implements [broker.Owner]: an entry that comes right behind what was read saves reading it. One that comes sooner,
// because that before it was lost or is late, is read with it (I3).
func (t *tenure) Offer(prev uint64, e broker.Entry) {
	d := t.delivery
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	switch {
	case !t.currentLocked():
		t.rung = true
	case e.Seq <= d.read: // it was read, or offered twice
	case prev > d.read || d.undecidedLocked() >= d.ahead():
		t.ringLocked()
	default:
		d.takeLocked(broker.Page{Entries: []broker.Entry{e}, Through: e.Seq, More: d.more})
		d.wakeLocked()
	}
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
