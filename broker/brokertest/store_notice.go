package brokertest

import (
	"errors"
	"fmt"

	"github.com/caddyrelay/relay/broker"
)

var noticeChecks = []storeCheck{
	{"RingsTheOwner", noNeed, ringsTheOwner},
	{"RingsOnAnotherNode", needNodes, ringsOnAnotherNode},
	{"RingsWhenANoticeWasLost", needMute, ringsWhenANoticeWasLost},
	{"LossWhenANoticeWasLost", needMute, lossWhenANoticeWasLost},
	{"AwaitWhenANoticeWasLost", needMute, awaitWhenANoticeWasLost},
	{"I11_PanickingOwner", noNeed, panickingOwner},
}

// ringsTheOwner: for each append, or one later ring for several; so that who reads after each ring misses nothing.
func ringsTheOwner(r *rig) {
	s := r.open(broker.Policy{})
	rings(r, s, s)
}

func ringsOnAnotherNode(r *rig) { rings(r, r.open(broker.Policy{}), r.open(broker.Policy{})) }

func rings(r *rig, s, owners broker.Store) {
	h, other := r.attach(owners, "01"), r.attach(owners, "02")
	for i := range 10 {
		before := h.rung()
		r.add(s, "01", fmt.Sprint(i))
		until(r, "a ring", func() bool { return h.rung() > before })
	}
	var got []broker.Entry
	go r.all(4, func(i int) {
		for range 10 {
			_, _ = s.Append(r.ctx(), message("01", "x"), broker.AppendOptions{})
		}
	})
	heard := -1
	until(r, "all to be read after a ring", func() bool {
		n := h.rung()
		if n != heard {
			heard = n
			got = h.read()
		}
		return len(got) == 50
	})
	if n := other.rung(); n > 10 {
		r.Errorf("the owner of another mailbox was rung %d times", n)
	}
}

// ringsWhenANoticeWasLost: the owner hears of news all the same, within a second or two.
func ringsWhenANoticeWasLost(r *rig) {
	s := r.open(broker.Policy{})
	h := r.attach(s, "01")
	r.b.Mute(true)
	r.add(s, "01", "1")
	until(r, "a ring, though the notice was lost", func() bool { return h.rung() > 0 })
	r.mustBe("the mailbox", h.read(), "1")
	before := h.rung()
	r.add(s, "01", "2")
	until(r, "another ring", func() bool { return h.rung() > before })
}

func lossWhenANoticeWasLost(r *rig) {
	s := r.open(broker.Policy{})
	h := r.attach(s, "01")
	r.b.Mute(true)
	r.attach(s, "01")
	until(r, "the old owner to hear of its loss", func() bool { return len(h.losses()) > 0 })
	r.b.Mute(false)
	r.attach(s, "01")
	if l := h.losses(); len(l) != 1 || !errors.Is(l[0], broker.ErrFenced) {
		r.Errorf("the old owner heard %v, want ErrFenced once", l)
	}
}

func awaitWhenANoticeWasLost(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.store(s, message("01", "x"), broker.AppendOptions{Wait: true}).MID
	r.b.Mute(true)
	w := r.await(s, mid)
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page...)
	r.mustHear(broker.StateAcked, w)
}

// panickingOwner: an owner that panics at every call harms neither the store nor other owners (I11).
func panickingOwner(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2")
	bad := &owner{panics: true}
	r.attachAs(s, "c", "01", bad, broker.AttachOptions{Window: 4})
	good := r.attach(s, "02")
	r.add(s, "01", "3")
	r.add(s, "02", "x")
	until(r, "the other owner to be rung", func() bool { return good.rung() > 0 })
	until(r, "the bad owner to be rung", func() bool { return bad.rung() > 0 })
	if rec := r.record(s, mids[0]); rec.State.Finished() || rec.State == "" {
		r.Errorf("the record of the bad owner's message is %+v", rec)
	}
	within(r, "Cancel", func() { r.mustCancel(s, mids[0], broker.CancelUnknown, broker.CancelTooLate) })
	h := r.attach(s, "01")
	until(r, "the bad owner to hear of its loss", func() bool { return len(bad.losses()) == 1 })
	r.mustBe("the mailbox", h.page, "1", "2", "3")
	h.finish(broker.StateAcked, h.page...)
	h.detach()
	r.attachAs(s, "c", "01", &owner{panics: true}, broker.AttachOptions{Window: 4})
	within(r, "Close", func() {
		if err := s.Close(); err != nil {
			r.Errorf("closing: %v", err)
		}
	})
	r.eventually(func() bool { return len(good.losses()) == 1 }, func() string { return "the good owner did not hear of the close" })
}
