package brokertest

import (
	"fmt"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var deadChecks = []storeCheck{
	{"I2_DeadLetters", noNeed, deadLetters},
	{"PagesOfDeadLetters", noNeed, pagesOfDeadLetters},
	{"Resend", noNeed, resend},
	{"ResendKeepsOrderAndLimits", noNeed, resendKeepsOrderAndLimits},
	{"ResendAtOnce", noNeed, resendAtOnce},
	{"Drop", noNeed, drop},
	{"DeadLettersEnd", noNeed, deadLettersEnd},
	{"I9_TooManyDeadLetters", noNeed, tooManyDeadLetters},
}

// kill stores a message and makes a dead letter of it.
func (r *rig) kill(s broker.Store, id, body string, reason broker.DeadReason) string {
	r.Helper()
	mid := r.add(s, id, body)[0]
	h := r.attach(s, id)
	e := h.find(mid)
	o := outcome(e, broker.StateDead)
	o.Reason, o.Detail = reason, "because of "+body
	if v := h.settle(o); v[0] != broker.Settled {
		r.Fatalf("making a dead letter: verdict %d", v[0])
	}
	h.detach()
	return mid
}

func (r *rig) dead(s broker.Store, q broker.DeadQuery) broker.DeadPage {
	r.Helper()
	page, err := s.DeadLetters(r.ctx(), "c", q)
	if err != nil {
		r.Fatalf("listing dead letters: %v", err)
	}
	return page
}

func midsOf(letters []broker.DeadLetter) (mids []string) {
	for _, l := range letters {
		mids = append(mids, l.MID)
	}
	return mids
}

// deadLetters: a dead letter says all that is known, keeps its body, and outlives a crash.
func deadLetters(r *rig) {
	s := r.open(broker.Policy{})
	m := messageIn("c", "01", "k", "body")
	m.Ref = "order 1"
	mid := r.store(s, copyOf(m), broker.AppendOptions{}).MID
	h := r.attach(s, "01")
	o := outcome(h.page[0], broker.StateDead)
	o.Reason, o.Detail, o.Attempts = broker.DeadCrashes, "gave up", 7
	h.settle(o)
	r.mustBe("the mailbox", h.read())
	h.detach()
	check := func() {
		page := r.dead(s, broker.DeadQuery{})
		if len(page.Letters) != 1 || page.Next != "" {
			r.Fatalf("the dead letters are %+v", page)
		}
		l := page.Letters[0]
		if l.MID != mid || l.Channel != "c" || l.ID != "01" || l.Ref != "order 1" || l.State != broker.StateDead || l.Reason != broker.DeadCrashes ||
			l.Detail != "gave up" || l.Attempts != 7 || l.ContentType != "text/plain" || l.Size != 4 || l.Finished.Before(l.Stored) || l.Stored.IsZero() {
			r.Errorf("the dead letter is %+v", l)
		}
		if rec := r.record(s, mid); rec.State != broker.StateDead || rec.Reason != broker.DeadCrashes || rec.Detail != "gave up" {
			r.Errorf("the record is %+v", rec)
		}
		got, err := s.Content(r.ctx(), mid)
		if err != nil {
			r.Fatalf("the content: %v", err)
		}
		r.mustEqual("the content", got, m)
		r.mustUse(s, "c", broker.Usage{Records: 1, Dead: 1})
	}
	check()
	if n := s.Endings()[broker.Ending{Channel: "c", State: broker.StateDead, Reason: broker.DeadCrashes}]; n != 1 {
		r.Errorf("%d ends are counted, want 1", n)
	}
	if page, err := s.DeadLetters(r.ctx(), "d", broker.DeadQuery{}); err != nil || len(page.Letters) > 0 {
		r.Errorf("the dead letters of another channel: %+v, %v", page, err)
	}
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
		check()
	}
}

// pagesOfDeadLetters: oldest first, each once, by what was asked for.
func pagesOfDeadLetters(r *rig) {
	s := r.open(broker.Policy{})
	var all, ofTwo, terminated []string
	var middle time.Time
	reasons := []broker.DeadReason{broker.DeadTerminated, broker.DeadAttempts, broker.DeadTooLarge}
	for i := range 11 {
		r.pass(s, 3*time.Millisecond)
		if i == 6 {
			middle = s.Now()
			r.pass(s, 3*time.Millisecond)
		}
		id := fmt.Sprint("0", i%2)
		mid := r.kill(s, id, fmt.Sprint(i), reasons[i%3])
		all = append(all, mid)
		if id == "01" {
			ofTwo = append(ofTwo, mid)
		}
		if i%3 == 0 {
			terminated = append(terminated, mid)
		}
	}
	for _, c := range []struct {
		what string
		q    broker.DeadQuery
		want []string
	}{
		{"all", broker.DeadQuery{}, all},
		{"of one destination", broker.DeadQuery{ID: "01"}, ofTwo},
		{"of one reason", broker.DeadQuery{Reason: broker.DeadTerminated}, terminated},
		{"before", broker.DeadQuery{Before: middle}, all[:6]},
		{"of one destination and reason", broker.DeadQuery{ID: "00", Reason: broker.DeadTerminated}, []string{all[0], all[6]}},
		{"none", broker.DeadQuery{ID: "never"}, nil},
	} {
		for _, limit := range []int{0, 1, 3, 4, 11, 1000} {
			var got []string
			q := c.q
			q.Limit = limit
			for range 100 {
				page := r.dead(s, q)
				if limit > 0 && len(page.Letters) > limit {
					r.Errorf("%s: a page of %d, limit %d", c.what, len(page.Letters), limit)
				}
				got = append(got, midsOf(page.Letters)...)
				if q.After = page.Next; q.After == "" {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				r.Errorf("%s, in pages of %d: %d letters, want %d, or not in order", c.what, limit, len(got), len(c.want))
			}
		}
	}
	page := r.dead(s, broker.DeadQuery{Limit: 4})
	for _, l := range page.Letters { // the next page begins where this one ended, though that is gone
		if err := s.Drop(r.ctx(), l.MID); err != nil {
			r.Fatalf("dropping: %v", err)
		}
	}
	if got := midsOf(r.dead(s, broker.DeadQuery{After: page.Next}).Letters); !slices.Equal(got, all[4:]) {
		r.Errorf("after the first page was dropped, there are %d more, want %d", len(got), len(all)-4)
	}
}

// resend: a dead letter is an unfinished message again, the same one, with nothing of its past but its MID.
func resend(r *rig) {
	s := r.open(broker.Policy{})
	m := messageIn("c", "01", "k", "body")
	m.Headers = map[string]string{"X": "y"}
	mid := r.store(s, copyOf(m), broker.AppendOptions{TTL: time.Hour}).MID
	h := r.attach(s, "01")
	o := outcome(h.page[0], broker.StateDead)
	o.Counts, o.Detail, o.Reply = broker.Counts{Attempts: 9, Failures: 8, Deaths: 7, NotBefore: s.Now().Add(time.Hour)}, "no", []byte("1")
	h.settle(o)
	got, err := s.Resend(r.ctx(), mid, 0)
	if err != nil || got.MID != mid || got.State != broker.StateStored || got.Duplicate || !got.Durability.Meets(r.h.Durability) {
		r.Fatalf("sending again: %+v, %v", got, err)
	}
	until(r, "the owner to be rung", func() bool { return h.rung() > 0 })
	page := h.read()
	r.mustBe("the mailbox", page, "body")
	r.mustEqual("the message", page[0].Message, m)
	r.mustCount(page[0], broker.Counts{})
	if page[0].Seq <= h.page[0].Seq || !page[0].Expires.IsZero() {
		r.Errorf("the entry has the sequence %d after %d, and the deadline %s", page[0].Seq, h.page[0].Seq, page[0].Expires)
	}
	rec := r.record(s, mid)
	if rec.State != broker.StateStored || rec.Reason != "" || rec.Detail != "" || rec.Reply != nil || rec.Attempts != 0 || !rec.Finished.IsZero() || !rec.Expires.IsZero() {
		r.Errorf("the record is %+v", rec)
	}
	if l := r.dead(s, broker.DeadQuery{}).Letters; len(l) > 0 {
		r.Errorf("there still are dead letters: %+v", l)
	}
	r.mustUse(s, "c", broker.Usage{Mailboxes: 1, Pending: 1, Bytes: 4, Records: 1})
	r.mustRepeat(s, "01", "k", mid, broker.StateStored)
	if v := h.settle(outcome(h.page[0], broker.StateAcked)); v[0] != broker.Gone {
		r.Errorf("settling the entry that it was before: verdict %d, want Gone (%d)", v[0], broker.Gone)
	}
	h.finish(broker.StateDead, page...)
	if _, err := s.Resend(r.ctx(), mid, soon); err != nil {
		r.Fatalf("sending again with a deadline: %v", err)
	}
	if rec := r.record(s, mid); rec.Expires.IsZero() {
		r.Errorf("sent again with a deadline, it has none")
	}
	h.detach()
	r.pass(s, soon+10*time.Millisecond)
	r.mustEnd(s, mid, broker.StateExpired)
	for _, mid := range append(unknown(), mid, r.add(s, "01", "x")[0]) {
		_, err := s.Resend(r.ctx(), mid, 0)
		r.mustFail("sending again what is no dead letter", err, broker.ErrNotFound)
		r.mustFail("dropping what is no dead letter", s.Drop(r.ctx(), mid), broker.ErrNotFound)
	}
	r.mustHold(s, "01", "x")
}

func resendKeepsOrderAndLimits(r *rig) {
	policy := broker.Policy{MaxPending: 2, Retention: soon}
	s := r.open(policy)
	mid := r.kill(s, "01", "dead", broker.DeadAttempts)
	r.pass(s, soon/2)
	r.setPolicy(s, broker.Policy{MaxPending: 2})
	r.add(s, "01", "1", "2")
	_, err := s.Resend(r.ctx(), mid, 0)
	r.mustFail("sending again to a full mailbox", err, broker.ErrMailboxFull)
	if l := r.dead(s, broker.DeadQuery{}).Letters; len(l) != 1 {
		r.Errorf("%d dead letters after a refusal, want 1", len(l))
	}
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[0])
	if _, err := s.Resend(r.ctx(), mid, 0); err != nil {
		r.Errorf("sending again: %v", err)
	}
	if !r.h.Volatile {
		h.detach()
		s = r.reopen(s, broker.Policy{})
		h = r.attach(s, "01")
	}
	r.mustBe("the mailbox", h.read(), "2", "dead")
	h.detach()
	r.pass(s, soon) // its retention began anew, by the policy of now
	r.mustHold(s, "01", "2", "dead")
	r.mustCancel(s, mid, broker.CancelDone)
}

// resendAtOnce: a dead letter is sent again once.
func resendAtOnce(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.kill(s, "01", "x", broker.DeadAttempts)
	results := make([]error, 8)
	r.all(8, func(i int) {
		if i%2 == 0 {
			_, results[i] = s.Resend(r.ctx(), mid, 0)
		} else {
			results[i] = s.Drop(r.ctx(), mid)
		}
	})
	won := -1
	for i, err := range results {
		switch {
		case err == nil && won < 0:
			won = i
		case err == nil && (i%2 == 0 || won%2 == 0):
			r.Errorf("%d and %d both succeeded; even ones sent the letter again, odd ones dropped it", won, i)
		case err != nil:
			r.mustFail("sending again or dropping", err, broker.ErrNotFound)
		}
	}
	switch {
	case won < 0:
		r.Errorf("none succeeded")
	case won%2 == 0:
		r.mustHold(s, "01", "x")
	default:
		r.mustHold(s, "01")
	}
	if l := r.dead(s, broker.DeadQuery{}).Letters; len(l) > 0 {
		r.Errorf("there still are dead letters: %+v", l)
	}
}

func drop(r *rig) {
	s := r.open(broker.Policy{})
	mid, other := r.kill(s, "01", "x", broker.DeadAttempts), r.kill(s, "01", "y", broker.DeadAttempts)
	if err := s.Drop(r.ctx(), mid); err != nil {
		r.Fatalf("dropping: %v", err)
	}
	r.mustCountEnds(s, broker.Ending{Channel: "c", State: broker.StateErased}, 1)
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
	}
	if rec := r.record(s, mid); rec.State != broker.StateErased {
		r.Errorf("the record says %s, want %s", rec.State, broker.StateErased)
	}
	_, err := s.Content(r.ctx(), mid)
	r.mustFail("the content of a dropped letter", err, broker.ErrNotFound)
	_, err = s.Resend(r.ctx(), mid, 0)
	r.mustFail("sending a dropped letter again", err, broker.ErrNotFound)
	r.mustCancel(s, mid, broker.CancelTooLate)
	if got := midsOf(r.dead(s, broker.DeadQuery{}).Letters); !slices.Equal(got, []string{other}) {
		r.Errorf("the dead letters are %q, want the other one", got)
	}
	r.mustUse(s, "c", broker.Usage{Records: 2, Dead: 1})
	r.mustHold(s, "01")
}

// deadLettersEnd: after their time they are erased.
func deadLettersEnd(r *rig) {
	policy := broker.Policy{DeadRetention: soon}
	s := r.open(policy)
	mid := r.kill(s, "01", "x", broker.DeadAttempts)
	if rec := r.record(s, mid); rec.State != broker.StateDead {
		r.Errorf("the record says %s", rec.State)
	}
	r.pass(s, soon+10*time.Millisecond)
	r.mustEnd(s, mid, broker.StateErased)
	_, err := s.Content(r.ctx(), mid)
	r.mustFail("the content of an erased letter", err, broker.ErrNotFound)
	r.mustUse(s, "c", broker.Usage{Records: 1})
}

// tooManyDeadLetters: appends are refused at the bound, but no death is: messages must not be lost.
func tooManyDeadLetters(r *rig) {
	s := r.open(broker.Policy{MaxDead: 2})
	mid := r.keyed(s, "01", "k", "1").MID
	r.add(s, "01", "2", "3", "4")
	h := r.attach(s, "01")
	h.finish(broker.StateDead, h.page[0])
	r.add(s, "02", "room")
	h.finish(broker.StateDead, h.page[1])
	h.finish(broker.StateDead, h.page[2]) // beyond the bound
	r.eventually(func() bool {
		_, err := s.Append(r.ctx(), message("03", "x"), broker.AppendOptions{})
		return err != nil
	}, func() string { return "appends were not refused at the bound of dead letters" })
	_, err := s.Append(r.ctx(), message("03", "x"), broker.AppendOptions{})
	r.mustFail("appending at the bound of dead letters", err, broker.ErrDeadLettersFull)
	r.mustRepeat(s, "01", "k", mid, broker.StateDead)
	if l := r.dead(s, broker.DeadQuery{}).Letters; len(l) != 3 {
		r.Errorf("%d dead letters, want all 3", len(l))
	}
	if got, err := s.Append(r.ctx(), messageIn("d", "01", "", "x"), broker.AppendOptions{}); err != nil {
		r.Errorf("appending to another channel: %+v, %v", got, err)
	}
	for _, l := range r.dead(s, broker.DeadQuery{}).Letters[:2] {
		if err := s.Drop(r.ctx(), l.MID); err != nil {
			r.Fatalf("dropping: %v", err)
		}
	}
	r.eventually(func() bool {
		_, err := s.Append(r.ctx(), message("04", "x"), broker.AppendOptions{})
		return err == nil
	}, func() string { return "appends are still refused below the bound of dead letters" })
}
