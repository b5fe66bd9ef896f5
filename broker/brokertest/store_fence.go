package brokertest

import (
	"errors"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var fenceChecks = []storeCheck{
	{"I4_OldOwnerIsRefused", noNeed, oldOwnerIsRefused},
	{"I4_OldOwnerOnAnotherNode", needNodes, oldOwnerOnAnotherNode},
	{"I4_FenceRises", noNeed, fenceRises},
	{"I4_AttachAtOnce", noNeed, attachAtOnce},
	{"I4_SettleDuringTakeover", noNeed, settleDuringTakeover},
	{"DetachedOwnerHearsNothing", noNeed, detachedOwnerHearsNothing},
	{"CountsPersist", noNeed, countsPersist},
	{"CountsOfCrashedOwner", needKept, countsOfCrashedOwner},
	{"CountsOfTakenOverOwner", noNeed, countsOfTakenOverOwner},
}

// oldOwnerIsRefused: who was taken over cannot finish, read or detach, and hears of it once.
func oldOwnerIsRefused(r *rig) {
	s := r.open(broker.Policy{})
	takeover(r, s, s)
}

func oldOwnerOnAnotherNode(r *rig) {
	takeover(r, r.open(broker.Policy{}), r.open(broker.Policy{}))
}

func takeover(r *rig, one, two broker.Store) {
	mids := r.add(one, "01", "1", "2")
	old := r.attach(one, "01")
	fresh := r.attach(two, "01")
	r.mustBe("the page of the new owner", fresh.page, "1", "2")
	_, err := old.Settle(r.ctx(), []broker.Outcome{outcome(old.page[0], broker.StateAcked)})
	r.mustFail("settling as the old owner", err, broker.ErrFenced)
	_, err = old.Read(r.ctx(), 0, 10, 1000)
	r.mustFail("reading as the old owner", err, broker.ErrFenced)
	until(r, "the old owner to hear of its loss", func() bool { return len(old.losses()) > 0 })
	r.mustFail("detaching as the old owner", old.Detach(r.ctx(), []broker.Outcome{outcome(old.page[0], broker.StateStored)}), broker.ErrFenced)
	if rec := r.record(two, mids[0]); rec.State.Finished() {
		r.Errorf("a fenced owner finished a message: %s", rec.State)
	}
	fresh.finish(broker.StateAcked, fresh.page...)
	r.add(one, "01", "3")
	until(r, "the new owner to be rung", func() bool { return fresh.rung() > 0 })
	r.mustBe("what the new owner reads", fresh.read(), "3")
	if l := old.losses(); len(l) != 1 || !errors.Is(l[0], broker.ErrFenced) {
		r.Errorf("the old owner heard %v, want ErrFenced once", l)
	}
	if l := fresh.losses(); len(l) > 0 {
		r.Errorf("the new owner heard %v", l)
	}
}

// fenceRises: with each owner, after a detach, when the mailbox is empty, and across a reopen.
func fenceRises(r *rig) {
	s := r.open(broker.Policy{})
	var last uint64
	for round := range 8 {
		h := r.attach(s, "01")
		if h.Fence() <= last {
			r.Errorf("round %d: the fence %d is not above %d", round, h.Fence(), last)
		}
		last = h.Fence()
		switch round {
		case 1, 4:
			h.detach()
		case 2:
			r.add(s, "01", "x")
			h.finish(broker.StateAcked, h.read()...)
		case 3:
			if !r.h.Volatile {
				s = r.reopen(s, broker.Policy{})
			}
		case 5:
			h.detach()
			if !r.h.Volatile {
				s = r.reopen(s, broker.Policy{})
			}
		}
	}
}

// attachAtOnce: of many, one is the owner, and all others hear of their loss.
func attachAtOnce(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "x")
	var mu sync.Mutex
	var holds []*hold
	r.all(8, func(int) {
		o := new(owner)
		box, page, err := attached(s.Attach(r.ctx(), "c", "01", o, broker.AttachOptions{}))
		if err != nil {
			r.Errorf("attaching: %v", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		holds = append(holds, &hold{Mailbox: box, owner: o, r: r, page: page})
	})
	var last *hold
	fences := make(map[uint64]bool)
	for _, h := range holds {
		fences[h.Fence()] = true
		if last == nil || h.Fence() > last.Fence() {
			last = h
		}
	}
	if len(fences) != 8 {
		r.Fatalf("%d fences of 8 owners", len(fences))
	}
	for _, h := range holds {
		if h == last {
			continue
		}
		_, err := h.Settle(r.ctx(), []broker.Outcome{outcome(h.page[0], broker.StateAcked)})
		r.mustFail("settling as an old owner", err, broker.ErrFenced)
		until(r, "an old owner to hear of its loss", func() bool { return len(h.losses()) == 1 })
	}
	last.finish(broker.StateAcked, last.page...)
	if l := last.losses(); len(l) > 0 {
		r.Errorf("the last owner heard %v", l)
	}
}

// settleDuringTakeover: each message is finished by one owner: none of those that are taken over says that it settled
// what the next one is given.
func settleDuringTakeover(r *rig) {
	s := r.open(broker.Policy{})
	const n = 60
	r.add(s, "01", numbers(n)...)
	var mu sync.Mutex
	settled := make(map[string]int)
	r.all(6, func(int) {
		for range 5 {
			box, page, err := attached(s.Attach(r.ctx(), "c", "01", new(owner), broker.AttachOptions{Window: 2}))
			if err != nil {
				r.Errorf("attaching: %v", err)
				return
			}
			for _, e := range page {
				verdicts, err := box.Settle(r.ctx(), []broker.Outcome{outcome(e, broker.StateAcked)})
				if err == nil && verdicts[0] == broker.Settled {
					mu.Lock()
					settled[e.Message.MID]++
					mu.Unlock()
				}
			}
		}
	})
	h := r.attach(s, "01")
	for mid, times := range settled {
		if times != 1 {
			r.Errorf("%s was settled %d times", mid, times)
		}
	}
	if len(h.page)+len(settled) != n {
		r.Errorf("%d messages settled and %d left, of %d", len(settled), len(h.page), n)
	}
	for _, e := range h.page {
		if settled[e.Message.MID] > 0 {
			r.Errorf("%s was settled, and is in the mailbox", e.Message.MID)
		}
	}
}

func detachedOwnerHearsNothing(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1")
	h := r.attach(s, "01")
	h.detach()
	rings := h.rung()
	next := r.attach(s, "01")
	if e := next.page[0]; e.Attempts != 0 || e.Deaths != 0 {
		r.Errorf("the counts after a detach are %+v", e.Counts)
	}
	next.detach()
	r.add(s, "01", "2")
	if c, err := s.Cancel(r.ctx(), mids[0]); err != nil || c != broker.CancelDone {
		r.Errorf("cancelling without an owner: %d, %v", c, err)
	}
	last := r.attach(s, "01")
	r.mustBe("the mailbox", last.page, "2")
	last.finish(broker.StateAcked, last.page...)
	if err := s.Close(); err != nil {
		r.Errorf("closing: %v", err)
	}
	until(r, "the last owner to hear of the close", func() bool { return len(last.losses()) > 0 })
	for _, h := range []*hold{h, next} {
		if l := h.losses(); len(l) > 0 {
			r.Errorf("a detached owner heard %v", l)
		}
	}
	if h.rung() > rings || len(h.asked) > 0 {
		r.Errorf("a detached owner was rung or asked")
	}
}

// countsPersist: what an owner notes is what the next one is given.
func countsPersist(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2", "3")
	h := r.attach(s, "01")
	note := func(e broker.Entry, n int) broker.Outcome {
		o := outcome(e, broker.StateStored)
		o.Counts = broker.Counts{Attempts: n, Failures: n + 1, Deaths: n + 2, NotBefore: time.UnixMilli(s.Now().UnixMilli() + int64(n)*60_000)}
		return o
	}
	one, two := note(h.page[0], 1), note(h.page[1], 2)
	if v := h.settle(one); v[0] != broker.Settled {
		r.Errorf("noting counts: verdict %d", v[0])
	}
	r.mustBe("the mailbox after counts were noted", h.read(), "1", "2", "3")
	r.mustCount(h.read()[0], one.Counts)
	h.detach(two)
	if rec := r.record(s, mids[1]); rec.State != broker.StateStored || rec.Attempts != 2 {
		r.Errorf("the record is %s with %d attempts, want stored with 2", rec.State, rec.Attempts)
	}
	check := func() *hold {
		h := r.attach(s, "01")
		r.mustBe("the mailbox", h.page, "1", "2", "3")
		r.mustCount(h.page[0], one.Counts)
		r.mustCount(h.page[1], two.Counts)
		r.mustCount(h.page[2], broker.Counts{})
		return h
	}
	check().detach()
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
	}
	h = check()
	back := outcome(h.page[0], broker.StateStored)
	back.Counts = broker.Counts{Attempts: 5} // and back to nothing
	h.settle(back)
	r.mustCount(h.read()[0], back.Counts)
}

func (r *rig) mustCount(e broker.Entry, want broker.Counts) {
	r.Helper()
	got := e.Counts
	if got.Attempts != want.Attempts || got.Failures != want.Failures || got.Deaths != want.Deaths || !got.NotBefore.Equal(want.NotBefore) {
		r.Errorf("the counts of %q are %+v, want %+v", e.Message.Body, got, want)
	}
}

// countsOfCrashedOwner: what may have been pushed counts as one attempt, and the first as one death, once.
func countsOfCrashedOwner(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "1", "2", "3", "4")
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 2, Limit: 10})
	noted := outcome(h.page[1], broker.StateStored)
	noted.Counts = broker.Counts{Attempts: 7, Failures: 3, Deaths: 1}
	h.settle(noted)
	h.finish(broker.StateAcked, h.page[0]) // so that the window holds 2 and 3
	s = r.reopen(s, broker.Policy{})
	for range 2 {
		h = r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 1, Limit: 10})
		r.mustBe("the mailbox", h.page, "2", "3", "4")
		r.mustCount(h.page[0], broker.Counts{Attempts: 8, Failures: 3, Deaths: 2})
		r.mustCount(h.page[1], broker.Counts{Attempts: 1})
		r.mustCount(h.page[2], broker.Counts{})
		h.detach() // the second time nothing is to be counted
	}
}

// countsOfTakenOverOwner: the same for an owner that is taken over before it could detach.
func countsOfTakenOverOwner(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "1", "2", "3")
	r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 2})
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 16})
	r.mustBe("the mailbox", h.page, "1", "2", "3")
	r.mustCount(h.page[0], broker.Counts{Attempts: 1, Deaths: 1})
	r.mustCount(h.page[1], broker.Counts{Attempts: 1})
	r.mustCount(h.page[2], broker.Counts{})
	h.detach()
	h = r.attach(s, "01")
	r.mustCount(h.page[0], broker.Counts{Attempts: 1, Deaths: 1})
}
