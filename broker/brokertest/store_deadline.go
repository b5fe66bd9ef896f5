package brokertest

import (
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var deadlineChecks = []storeCheck{
	{"I7_Expires", noNeed, expires},
	{"I7_ExpiresWithOwner", noNeed, expiresWithOwner},
	{"I7_ExpiryInThePast", noNeed, expiryInThePast},
	{"I7_ExpiresAfterCrash", needKept, expiresAfterCrash},
	{"I2_Retention", noNeed, retention},
	{"I2_RetentionWithOwner", noNeed, retentionWithOwner},
	{"RecordsAreForgotten", needClock, recordsAreForgotten},
	{"ClockNeverGoesBack", noNeed, clockNeverGoesBack},
	{"ClockSteppingBack", needClock, clockSteppingBack},
}

const soon = 400 * time.Millisecond

// expires: a message ends at its deadline without anybody's doing, is counted, and others stay.
func expires(r *rig) {
	s := r.open(broker.Policy{})
	ttl := r.store(s, message("01", "ttl"), broker.AppendOptions{TTL: soon}).MID
	at := s.Now().Add(soon).Truncate(time.Millisecond)
	absolute := r.store(s, message("01", "absolute"), broker.AppendOptions{Expires: at}).MID
	stays := r.store(s, message("01", "stays"), broker.AppendOptions{TTL: time.Hour}).MID
	never := r.add(s, "01", "never")[0]
	if rec := r.record(s, absolute); !rec.Expires.Equal(at) {
		r.Errorf("the deadline is %s, want %s", rec.Expires, at)
	}
	if rec := r.record(s, ttl); rec.Expires.Before(rec.Stored.Add(soon-10*time.Millisecond)) || rec.Expires.After(rec.Stored.Add(soon+10*time.Millisecond)) {
		r.Errorf("stored %s with a TTL of %s, the deadline is %s", rec.Stored, soon, rec.Expires)
	}
	h := r.attach(s, "01")
	if e := h.find(absolute); !e.Expires.Equal(at) || e.Retain.Before(at.Add(71*time.Hour)) {
		r.Errorf("the entry's deadline is %s, its retention %s", e.Expires, e.Retain)
	}
	if e := h.find(never); !e.Expires.IsZero() {
		r.Errorf("the deadline of a message that has none is %s", e.Expires)
	}
	h.detach()
	r.pass(s, soon+10*time.Millisecond)
	for _, mid := range []string{ttl, absolute} {
		rec := r.mustEnd(s, mid, broker.StateExpired)
		if rec.Finished.Before(rec.Expires) || rec.Reason != "" || rec.Attempts != 0 {
			r.Errorf("the record is %+v", rec)
		}
		_, err := s.Content(r.ctx(), mid)
		r.mustFail("the content of an expired message", err, broker.ErrNotFound)
	}
	r.mustHold(s, "01", "stays", "never")
	for _, mid := range []string{stays, never} {
		if rec := r.record(s, mid); rec.State != broker.StateStored {
			r.Errorf("a message whose deadline is far is %s", rec.State)
		}
	}
	r.mustCountEnds(s, broker.Ending{Channel: "c", State: broker.StateExpired}, 2)
}

// expiresWithOwner: the store sees to deadlines if the owner does not, and the owner's outcome comes too late then.
func expiresWithOwner(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.store(s, message("01", "1"), broker.AppendOptions{TTL: soon}).MID
	mine := r.store(s, message("01", "2"), broker.AppendOptions{TTL: soon}).MID
	r.add(s, "01", "3")
	h := r.attach(s, "01")
	h.finish(broker.StateExpired, h.page[1])
	if rec := r.record(s, mine); rec.State != broker.StateExpired || rec.Attempts != 1 {
		r.Errorf("expired by the owner, the record is %s with %d attempts", rec.State, rec.Attempts)
	}
	pushed := outcome(h.page[0], broker.StateStored)
	h.settle(pushed)
	r.pass(s, soon+10*time.Millisecond)
	if r.b.Advance != nil {
		r.b.Advance(10 * time.Second) // the owner's grace
	}
	rec := r.mustEnd(s, mid, broker.StateExpired)
	if rec.Attempts != 1 {
		r.Errorf("the record of what was pushed once counts %d attempts", rec.Attempts)
	}
	if v := h.settle(outcome(h.page[0], broker.StateAcked)); v[0] != broker.Gone {
		r.Errorf("an ack after the deadline was seen to: verdict %d, want Gone (%d)", v[0], broker.Gone)
	}
	if rec := r.record(s, mid); rec.State != broker.StateExpired {
		r.Errorf("a late ack made an expired message %s", rec.State)
	}
	r.mustBe("the mailbox", h.read(), "3")
}

func expiryInThePast(r *rig) {
	s := r.open(broker.Policy{})
	for _, age := range []time.Duration{time.Millisecond, time.Hour, 24 * 365 * 50 * time.Hour} {
		m := message("01", "late")
		mid := m.MID
		_, err := s.Append(r.ctx(), m, broker.AppendOptions{Expires: s.Now().Add(-age)})
		r.mustFail("appending after the deadline", err, broker.ErrExpired)
		_, err = s.Lookup(r.ctx(), mid)
		r.mustFail("looking up what was not stored", err, broker.ErrNotFound)
	}
	m := messageIn("c", "01", "k", "late")
	_, err := s.Append(r.ctx(), m, broker.AppendOptions{Key: "k", Expires: s.Now().Add(-time.Hour)})
	r.mustFail("appending after the deadline", err, broker.ErrExpired)
	if got := r.keyed(s, "01", "k", "x"); got.Duplicate {
		r.Errorf("an append that was refused has used its key: %+v", got)
	}
	r.mustHold(s, "01", "x")
}

func expiresAfterCrash(r *rig) {
	s := r.open(broker.Policy{Retention: 2 * soon})
	m1 := r.store(s, message("01", "1"), broker.AppendOptions{TTL: soon}).MID
	m2 := r.add(s, "01", "2")[0]
	r.attach(s, "01") // which the crash ends
	s = r.reopen(s, broker.Policy{})
	r.pass(s, 2*soon+10*time.Millisecond)
	if r.b.Advance != nil {
		r.b.Advance(10 * time.Second)
	}
	r.mustEnd(s, m1, broker.StateExpired)
	r.mustEnd(s, m2, broker.StateDead)
}

// retention: what waits too long is not thrown away: it is a dead letter with its body, and counted.
func retention(r *rig) {
	s := r.open(broker.Policy{Retention: soon})
	mid := r.add(s, "01", "body")[0]
	r.setPolicy(s, broker.Policy{})
	other := r.add(s, "01", "later")[0] // by the new policy
	r.pass(s, soon+10*time.Millisecond)
	r.mustRetain(s, mid)
	if rec := r.record(s, other); rec.State != broker.StateStored {
		r.Errorf("a message of the longer retention is %s", rec.State)
	}
	r.mustHold(s, "01", "later")
}

func (r *rig) mustRetain(s broker.Store, mid string) {
	r.Helper()
	rec := r.mustEnd(s, mid, broker.StateDead)
	if rec.Reason != broker.DeadRetention {
		r.Errorf("the reason is %q, want %q", rec.Reason, broker.DeadRetention)
	}
	if m, err := s.Content(r.ctx(), mid); err != nil || string(m.Body) != "body" {
		r.Errorf("the body of the dead letter: %v, %v", m, err)
	}
	page, err := s.DeadLetters(r.ctx(), "c", broker.DeadQuery{})
	if err != nil || len(page.Letters) != 1 || page.Letters[0].MID != mid {
		r.Errorf("the dead letters are %+v, %v", page, err)
	}
	r.mustCountEnds(s, broker.Ending{Channel: "c", State: broker.StateDead, Reason: broker.DeadRetention}, 1)
}

// mustCountEnds waits: the store sweeps by itself, and may count an end after it can be seen.
func (r *rig) mustCountEnds(s broker.Store, e broker.Ending, want uint64) {
	r.Helper()
	r.eventually(func() bool { return s.Endings()[e] == want },
		func() string { return fmt.Sprintf("%d ends are counted, want %d", s.Endings()[e], want) })
}

func retentionWithOwner(r *rig) {
	s := r.open(broker.Policy{Retention: soon})
	mid := r.add(s, "01", "body")[0]
	h := r.attach(s, "01")
	r.pass(s, soon+10*time.Millisecond)
	if r.b.Advance != nil {
		r.b.Advance(10 * time.Second)
	}
	r.mustRetain(s, mid)
	if v := h.settle(outcome(h.page[0], broker.StateAcked)); v[0] != broker.Gone {
		r.Errorf("an ack of a dead letter: verdict %d, want Gone (%d)", v[0], broker.Gone)
	}
}

// recordsAreForgotten: receipts and dead letters after their time, not before; and what is unfinished never.
func recordsAreForgotten(r *rig) {
	policy := broker.Policy{Receipts: time.Hour, Dedupe: 2 * time.Hour, DeadRetention: 5 * time.Hour, Retention: 1000 * time.Hour}
	s := r.open(policy)
	plain, keyedMID := r.add(s, "01", "1")[0], r.keyed(s, "01", "k", "2").MID
	dead, waits := r.add(s, "01", "3")[0], r.add(s, "01", "4")[0]
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[:2]...)
	h.finish(broker.StateDead, h.page[2])
	h.detach()
	known := func(mid string) bool {
		_, err := s.Lookup(r.ctx(), mid)
		return err == nil
	}
	r.b.Advance(55 * time.Minute)
	if !known(plain) || !known(keyedMID) {
		r.Errorf("a receipt was forgotten before its time")
	}
	r.b.Advance(50 * time.Minute) // 1 h 45
	if !known(keyedMID) {
		r.Errorf("the record of a key was forgotten before its time")
	}
	r.mustRepeat(s, "01", "k", keyedMID, broker.StateAcked)
	r.b.Advance(60 * time.Minute) // 2 h 45
	until(r, "the records to be forgotten", func() bool { return !known(plain) && !known(keyedMID) })
	if _, err := s.Content(r.ctx(), dead); err != nil {
		r.Errorf("a dead letter was dropped before its time: %v", err)
	}
	until(r, "the records not to be counted any more", func() bool { return r.usage(s, "c").Records <= 2 })
	r.b.Advance(3 * time.Hour) // 5 h 45
	until(r, "the dead letter to be dropped", func() bool {
		_, err := s.Content(r.ctx(), dead)
		return err != nil
	})
	if !known(waits) {
		r.Errorf("an unfinished message was forgotten")
	}
	r.mustHold(s, "01", "4")
}

// clockNeverGoesBack: nor does it for readers at once, and it keeps real time, roughly.
func clockNeverGoesBack(r *rig) {
	s := r.open(broker.Policy{})
	r.all(4, func(i int) {
		var last time.Time
		for n := range 300 {
			if i == 0 && n%30 == 0 {
				_, _ = s.Append(r.ctx(), message("01", "x"), broker.AppendOptions{})
			}
			now := s.Now()
			if now.Before(last) {
				r.Errorf("%s after %s", now, last)
			}
			last = now
		}
	})
	if d := time.Since(s.Now()).Abs(); d > time.Minute && r.b.Advance == nil {
		r.Errorf("the store's clock is off by %s", d)
	}
}

// clockSteppingBack: a clock that is set back harms neither sequences nor fences nor order, and handles do not show it.
func clockSteppingBack(r *rig) {
	s := r.open(broker.Policy{})
	r.b.Advance(time.Hour)
	r.add(s, "01", "1", "2")
	h := r.attach(s, "01")
	fence, now := h.Fence(), s.Now()
	for range 2 {
		r.b.Advance(-30 * time.Minute)
		if s.Now().Before(now) {
			r.Errorf("Now went back from %s to %s", now, s.Now())
		}
		r.add(s, "01", "x")
		h.detach()
		if !r.h.Volatile {
			s = r.reopen(s, broker.Policy{})
		}
		h = r.attach(s, "01")
		now = s.Now() // what a handle has shown, another may not know
		if h.Fence() <= fence {
			r.Errorf("the fence %d is not above %d", h.Fence(), fence)
		}
		fence = h.Fence()
	}
	r.mustBe("the mailbox", h.page, "1", "2", "x", "x")
}
