package brokertest

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyrelay/relay/broker"
)

var cancelChecks = []storeCheck{
	{"CancelWithoutOwner", noNeed, cancelWithoutOwner},
	{"CancelAsksTheOwner", noNeed, cancelAsksTheOwner},
	{"CancelOnAnotherNode", needNodes, cancelOnAnotherNode},
	{"I2_CancelOfWhatWasPushed", noNeed, cancelOfWhatWasPushed},
	{"CancelOfWhatIsFinished", noNeed, cancelOfWhatIsFinished},
	{"I2_CancelAfterCrash", needKept, cancelAfterCrash},
	{"I2_CancelOrSettle", noNeed, cancelOrSettle},
}

// mustCancel cancels, and the answer must be want.
func (r *rig) mustCancel(s broker.Store, mid string, want ...broker.Cancelled) {
	r.Helper()
	if c, err := s.Cancel(r.ctx(), mid); err != nil || !slices.Contains(want, c) {
		r.Errorf("cancelling: %d, %v; want one of %d", c, err, want)
	}
}

func cancelWithoutOwner(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	r.mustCancel(s, mids[1], broker.CancelDone)
	rec := r.record(s, mids[1])
	if rec.State != broker.StateCancelled || rec.Finished.IsZero() || rec.Attempts != 0 {
		r.Errorf("the record of a cancelled message is %+v", rec)
	}
	_, err := s.Content(r.ctx(), mids[1])
	r.mustFail("the content of a cancelled message", err, broker.ErrNotFound)
	r.mustCancel(s, mids[1], broker.CancelTooLate, broker.CancelDone) // again
	r.mustHold(s, "01", "1", "3")
	if n := s.Endings()[broker.Ending{Channel: "c", State: broker.StateCancelled}]; n != 1 {
		r.Errorf("%d ends are counted as cancelled, want 1", n)
	}
}

// cancelAsksTheOwner: who has the mailbox decides.
func cancelAsksTheOwner(r *rig) {
	s := r.open(broker.Policy{})
	askOwner(r, s, s)
}

func cancelOnAnotherNode(r *rig) {
	askOwner(r, r.open(broker.Policy{}), r.open(broker.Policy{}))
}

func askOwner(r *rig, s, owners broker.Store) {
	mids := r.add(s, "01", "1", "2", "3")
	o := new(owner)
	var seqs sync.Map
	o.withdraw = func(seq uint64, mid string) bool {
		seqs.Store(mid, seq)
		return mid != mids[0]
	}
	h := r.attachAs(owners, "c", "01", o, broker.AttachOptions{Window: 1, Limit: 2})
	r.mustCancel(s, mids[0], broker.CancelTooLate)
	r.mustCancel(s, mids[1], broker.CancelDone)
	r.mustCancel(s, mids[2], broker.CancelDone) // the owner has not read it yet
	for i, mid := range mids[:2] {
		if seq, _ := seqs.Load(mid); seq != h.page[i].Seq {
			r.Errorf("the owner was asked for the sequence %v of message %d, want %d", seq, i, h.page[i].Seq)
		}
	}
	for i, want := range []broker.State{broker.StateStored, broker.StateCancelled, broker.StateCancelled} {
		if rec := r.record(s, mids[i]); rec.State != want {
			r.Errorf("message %d is %s, want %s", i, rec.State, want)
		}
	}
	r.mustBe("the mailbox", h.read(), "1")
	if v := h.settle(outcome(h.page[1], broker.StateAcked), outcome(h.page[0], broker.StateAcked)); v[0] != broker.Gone || v[1] != broker.Settled {
		r.Errorf("settling a cancelled message and another: %v", v)
	}
}

// cancelOfWhatWasPushed: what a back end may have seen is not cancelled, even if this owner knows nothing of it.
func cancelOfWhatWasPushed(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	h := r.attach(s, "01")
	h.settle(outcome(h.page[0], broker.StateStored))
	h.detach(outcome(h.page[1], broker.StateStored))
	for _, mid := range mids[:2] {
		r.mustCancel(s, mid, broker.CancelTooLate)
	}
	next := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 1, Limit: 1}) // it would withdraw anything
	for _, mid := range mids[:2] {
		r.mustCancel(s, mid, broker.CancelTooLate)
	}
	r.mustBe("the mailbox", next.read(), "1", "2", "3")
}

func cancelOfWhatIsFinished(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[0])
	h.finish(broker.StateDead, h.page[1])
	for i, want := range []broker.State{broker.StateAcked, broker.StateDead} {
		r.mustCancel(s, mids[i], broker.CancelTooLate)
		if rec := r.record(s, mids[i]); rec.State != want {
			r.Errorf("a cancel made message %d %s", i, rec.State)
		}
	}
	for _, mid := range []string{broker.NewMessageID("c", "01", ""), broker.NewMessageID("c", "01", "k"), "nonsense", ""} {
		_, err := s.Cancel(r.ctx(), mid)
		r.mustFail("cancelling what never was", err, broker.ErrNotFound)
	}
	r.mustBe("the mailbox", h.read(), "3")
}

// cancelAfterCrash: what the owner that crashed may have pushed is not cancelled.
func cancelAfterCrash(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 2})
	s = r.reopen(s, broker.Policy{})
	r.mustCancel(s, mids[0], broker.CancelUnknown)
	r.mustCancel(s, mids[1], broker.CancelUnknown)
	want := []string{"1", "2", "3"}
	if c, err := s.Cancel(r.ctx(), mids[2]); err != nil || c == broker.CancelTooLate {
		r.Errorf("cancelling behind the window: %d, %v", c, err)
	} else if c == broker.CancelDone {
		want = want[:2]
	}
	h := r.attach(s, "01")
	r.mustBe("the mailbox", h.page, want...)
	h.detach()
	r.mustCancel(s, mids[0], broker.CancelTooLate, broker.CancelUnknown) // the next owner can't know either
}

// cancelOrSettle: at once, one of them wins, and both hear the same.
func cancelOrSettle(r *rig) {
	s := r.open(broker.Policy{})
	const n = 40
	mids := r.add(s, "01", numbers(n)...)
	h := r.attach(s, "01") // it withdraws all, which is not wise
	var ends, cancels atomic.Int32
	r.all(2*n, func(i int) {
		if i%2 == 0 {
			if c, err := s.Cancel(r.ctx(), mids[i/2]); err != nil {
				r.Errorf("cancelling: %v", err)
			} else if c == broker.CancelDone {
				cancels.Add(1)
				ends.Add(1)
			}
			return
		}
		v, err := h.Settle(r.ctx(), []broker.Outcome{outcome(h.page[i/2], broker.StateAcked)})
		if err != nil || len(v) != 1 {
			r.Errorf("settling: %v, %v", v, err)
		} else if v[0] == broker.Settled {
			ends.Add(1)
		}
	})
	if ends.Load() != n {
		r.Errorf("%d of %d messages were cancelled or settled", ends.Load(), n)
	}
	var cancelled int32
	for _, mid := range mids {
		if r.record(s, mid).State == broker.StateCancelled {
			cancelled++
		}
	}
	if cancelled != cancels.Load() {
		r.Errorf("%d were answered as cancelled, and %d records say so", cancels.Load(), cancelled)
	}
	r.mustBe("the mailbox", h.read())
}
