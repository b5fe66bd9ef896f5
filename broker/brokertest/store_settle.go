package brokertest

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyrelay/relay/broker"
)

var settleChecks = []storeCheck{
	{"I2_SettleOutOfOrder", noNeed, settleOutOfOrder},
	{"SettleTwice", noNeed, settleTwice},
	{"SettleUnknown", noNeed, settleUnknown},
	{"SettleManyInOneStep", noNeed, settleManyInOneStep},
	{"SettleAtOnce", noNeed, settleAtOnce},
	{"SettledRecord", noNeed, settledRecord},
	{"I2_DeepMailbox", noNeed, deepMailbox},
}

// settleOutOfOrder: any entry can be finished, and the others stay as they were.
func settleOutOfOrder(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", numbers(8)...)
	h := r.attach(s, "01")
	p := h.page
	h.finish(broker.StateAcked, p[2])
	r.mustBe("without 2", h.read(), "0", "1", "3", "4", "5", "6", "7")
	h.finish(broker.StateDead, p[7], p[0])
	r.mustBe("without 0 and 7", h.read(), "1", "3", "4", "5", "6")
	h.finish(broker.StateWritten, p[1])
	h.finish(broker.StateExpired, p[5])
	r.mustBe("without 1 and 5", h.read(), "3", "4", "6")
	if page, err := entries(h.Read(r.ctx(), p[4].Seq, 10, 1000)); err != nil || !slices.Equal(bodies(page), []string{"6"}) {
		r.Errorf("reading after 4: %q, %v", bodies(page), err)
	}
	r.add(s, "01", "8")
	h.detach()
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
	}
	h = r.attach(s, "01")
	r.mustBe("the mailbox of the next owner", h.page, "3", "4", "6", "8")
	h.finish(broker.StateAcked, h.page[3], h.page[1], h.page[2], h.page[0])
	r.mustBe("the mailbox at the end", h.read())
}

// settleTwice: a message is finished once.
func settleTwice(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[1])
	for _, state := range []broker.State{broker.StateDead, broker.StateExpired, broker.StateStored} {
		if v := h.settle(outcome(h.page[1], state)); v[0] != broker.Gone {
			r.Errorf("settling an acked message as %s: verdict %d, want Gone (%d)", state, v[0], broker.Gone)
		}
	}
	_ = h.settle(outcome(h.page[1], broker.StateAcked)) // repeated, as after a lost answer: it may be called either
	if rec := r.record(s, mids[1]); rec.State != broker.StateAcked || rec.Attempts != 1 {
		r.Errorf("the record is %s with %d attempts", rec.State, rec.Attempts)
	}
	twice := h.settle(outcome(h.page[0], broker.StateAcked), outcome(h.page[0], broker.StateDead))
	if !slices.Equal(twice, []broker.Verdict{broker.Settled, broker.Gone}) || r.record(s, mids[0]).State != broker.StateAcked {
		r.Errorf("one message acked and dead in one step: verdicts %v, state %s; want the first to count", twice, r.record(s, mids[0]).State)
	}
	r.mustBe("the mailbox", h.read(), "3")
	until(r, "one message to be counted as pending", func() bool { return r.usage(s, "c").Pending == 1 })
	if n := s.Endings()[broker.Ending{Channel: "c", State: broker.StateAcked}]; n != 2 {
		r.Errorf("%d ends are counted as acked, want 2", n)
	}
}

// settleUnknown: outcomes of messages that are not in this mailbox are Gone, and change nothing.
func settleUnknown(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "1", "2")
	foreign := r.add(s, "02", "other")[0]
	h := r.attach(s, "01")
	e := h.page[0]
	stranger, other, elsewhere, swapped := outcome(e, broker.StateAcked), outcome(e, broker.StateAcked), outcome(e, broker.StateAcked), outcome(e, broker.StateAcked)
	stranger.MID = broker.NewMessageID("c", "01", "")
	other.Seq = h.page[1].Seq + 1000
	elsewhere.MID = foreign
	swapped.MID = h.page[1].Message.MID
	for _, o := range []broker.Outcome{stranger, other, elsewhere, swapped, {Seq: 0, MID: "nonsense", State: broker.StateAcked}} {
		for _, state := range []broker.State{broker.StateAcked, broker.StateStored} {
			o.State = state
			if v := h.settle(o); v[0] != broker.Gone {
				r.Errorf("settling %s of sequence %d as %s: verdict %d, want Gone (%d)", o.MID, o.Seq, state, v[0], broker.Gone)
			}
		}
	}
	r.mustBe("the mailbox", h.read(), "1", "2")
	r.mustCount(h.read()[0], broker.Counts{})
	r.mustHold(s, "02", "other")
	h.settle()
}

// settleManyInOneStep: some that are gone do not keep the others from being settled, and each hears its own verdict.
func settleManyInOneStep(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", numbers(6)...)
	h := r.attach(s, "01")
	p := h.page
	h.finish(broker.StateAcked, p[1], p[4])
	unknown := outcome(p[0], broker.StateAcked)
	unknown.MID = broker.NewMessageID("c", "01", "")
	got := h.settle(outcome(p[1], broker.StateDead), outcome(p[5], broker.StateWritten), unknown, outcome(p[0], broker.StateAcked),
		outcome(p[4], broker.StateAcked), outcome(p[3], broker.StateStored), outcome(p[2], broker.StateDead))
	got[4] = broker.Gone // acked again: either will do
	want := []broker.Verdict{broker.Gone, broker.Settled, broker.Gone, broker.Settled, broker.Gone, broker.Settled, broker.Settled}
	if !slices.Equal(got, want) {
		r.Errorf("the verdicts are %v, want %v", got, want)
	}
	for i, state := range []broker.State{broker.StateAcked, broker.StateAcked, broker.StateDead, broker.StateStored, broker.StateAcked, broker.StateWritten} {
		if rec := r.record(s, mids[i]); rec.State != state {
			r.Errorf("message %d is %s, want %s", i, rec.State, state)
		}
	}
	r.mustBe("the mailbox", h.read(), "3")
	r.mustCount(h.read()[0], broker.Counts{Attempts: 1})
}

// settleAtOnce: of two that settle the same message at once, one does.
func settleAtOnce(r *rig) {
	s := r.open(broker.Policy{})
	const n = 40
	r.add(s, "01", numbers(n)...)
	h := r.attach(s, "01")
	var settled atomic.Int32
	r.all(2*n, func(i int) {
		state := broker.StateAcked
		if i >= n {
			state = broker.StateExpired
		}
		v, err := h.Settle(r.ctx(), []broker.Outcome{outcome(h.page[i%n], state)})
		if err != nil || len(v) != 1 {
			r.Errorf("settling: %v, %v", v, err)
		} else if v[0] == broker.Settled {
			settled.Add(1)
		}
	})
	if settled.Load() != n {
		r.Errorf("%d of %d messages were settled, each by one of two", settled.Load(), n)
	}
	r.mustBe("the mailbox", h.read())
	e := s.Endings()
	if sum := e[broker.Ending{Channel: "c", State: broker.StateAcked}] + e[broker.Ending{Channel: "c", State: broker.StateExpired}]; sum != n {
		r.Errorf("%d ends are counted, want %d", sum, n)
	}
}

// settledRecord: a receipt says all that the owner said.
func settledRecord(r *rig) {
	s := r.open(broker.Policy{})
	replies := []string{
		`{"ok":true,"n":1.0,"s":"<é>\u0000"}`, "", `"` + strings.Repeat("x", broker.MaxReply-2) + `"`, "null",
	}
	var mids []string
	for i := range replies {
		m := message("01", fmt.Sprint(i))
		m.Ref = fmt.Sprint("order ", i)
		mids = append(mids, r.store(s, m, broker.AppendOptions{}).MID)
	}
	start := s.Now()
	h := r.attach(s, "01")
	states := []broker.State{broker.StateAcked, broker.StateWritten, broker.StateDead, broker.StateExpired}
	detail := strings.Repeat("é", 128)
	var outcomes []broker.Outcome
	for i, e := range h.page {
		o := outcome(e, states[i])
		o.Attempts, o.Failures = 10+i, i
		if replies[i] != "" {
			o.Reply = []byte(replies[i])
		}
		if i == 2 {
			o.Reason, o.Detail = broker.DeadAttempts, detail
		}
		outcomes = append(outcomes, o)
	}
	h.settle(outcomes...)
	check := func() {
		for i, mid := range mids {
			rec := r.record(s, mid)
			if rec.State != states[i] || rec.Attempts != 10+i || string(rec.Reply) != replies[i] || (replies[i] == "") != (rec.Reply == nil) {
				r.Errorf("record %d: %s, %d attempts, reply %.50q", i, rec.State, rec.Attempts, rec.Reply)
			}
			if i == 2 && (rec.Reason != broker.DeadAttempts || rec.Detail != detail) {
				r.Errorf("record %d: reason %q, detail %q", i, rec.Reason, rec.Detail)
			}
			if rec.Channel != "c" || rec.ID != "01" || rec.Ref != fmt.Sprint("order ", i) {
				r.Errorf("record %d: channel %q, ID %q, ref %q", i, rec.Channel, rec.ID, rec.Ref)
			}
			if rec.Stored.IsZero() || rec.Finished.Before(rec.Stored) || rec.Finished.Sub(start) > patience || !rec.Expires.IsZero() {
				r.Errorf("record %d: stored %s, finished %s, expires %s; it is %s", i, rec.Stored, rec.Finished, rec.Expires, s.Now())
			}
		}
	}
	check()
	h.detach()
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
		check()
	}
}

// deepMailbox: a long mailbox is as right as a short one: at its end, in its middle and after a crash.
func deepMailbox(r *rig) {
	const n = 1500
	s := r.open(broker.Policy{})
	r.all(16, func(caller int) {
		for i := range n / 16 {
			if _, err := s.Append(r.ctx(), message("01", fmt.Sprint(caller, " ", i)), broker.AppendOptions{}); err != nil {
				r.Errorf("appending: %v", err)
			}
		}
	})
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 16, Limit: 2 * n, Bytes: 1 << 26})
	p := h.page
	want := bodies(p)
	if len(p) != n/16*16 {
		r.Fatalf("%d entries, want %d", len(p), n/16*16)
	}
	for _, at := range []int{len(p) - 1, len(p) / 2, 700, 0} {
		h.finish(broker.StateDead, p[at])
		want = slices.Delete(want, at, at+1)
		if c, err := s.Content(r.ctx(), p[at].Message.MID); err != nil || string(c.Body) != string(p[at].Message.Body) {
			r.Errorf("the dead letter %d: %v", at, err)
		}
	}
	h.detach()
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
	}
	h = r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Limit: 2 * n, Bytes: 1 << 26})
	r.mustBe("the long mailbox", h.page, want...)
	for rest := range slices.Chunk(h.page, 100) {
		h.finish(broker.StateAcked, rest...)
	}
	r.mustBe("the long mailbox at the end", h.read())
}
