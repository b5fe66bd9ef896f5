package brokertest

import (
	"errors"
	"fmt"

	"github.com/caddyrelay/relay/broker"
)

var lineChecks = []storeCheck{
	{"RejectWhileHeld", noNeed, func(r *rig) { s := r.open(broker.Policy{}); rejectWhileHeld(r, s, s) }},
	{"RejectOnAnotherNode", needNodes, func(r *rig) { rejectWhileHeld(r, r.open(broker.Policy{}), r.open(broker.Policy{})) }},
	{"RejectAfterACrash", needNodes, rejectAfterACrash},
	{"StandbyInLine", noNeed, func(r *rig) { s := r.open(broker.Policy{}); standbyInLine(r, s, s, s) }},
	{"StandbyOnOtherNodes", needNodes, func(r *rig) {
		standbyInLine(r, r.open(broker.Policy{}), r.open(broker.Policy{}), r.open(broker.Policy{}))
	}},
	{"StandbyAfterACrash", needNodes, standbyAfterACrash},
	{"StandbyLeaves", noNeed, standbyLeaves},
	{"StandbyWhenANoticeWasLost", needMute, standbyWhenANoticeWasLost},
	{"I10_StandbyIsBounded", noNeed, standbyIsBounded},
	{"I4_TakeoverPassesTheLine", noNeed, takeoverPassesTheLine},
}

// try attaches in a mode, and returns the hold, or nil and why not.
func (r *rig) try(s broker.Store, o *owner, mode broker.AttachMode) (*hold, error) {
	r.Helper()
	box, page, err := s.Attach(r.ctx(), "c", "01", o, broker.AttachOptions{Mode: mode, Window: 4, Limit: 100})
	if err != nil {
		return nil, err
	}
	return &hold{Mailbox: box, owner: o, r: r, page: page.Entries, all: page}, nil
}

// stand puts an owner in line.
func (r *rig) stand(s broker.Store) *owner {
	r.Helper()
	o := new(owner)
	_, err := r.try(s, o, broker.Standby)
	r.mustFail("a standby", err, broker.ErrHeld)
	return o
}

// awaitTurn waits until an owner in line is rung and has the mailbox.
func (r *rig) awaitTurn(s broker.Store, o *owner) (h *hold) {
	r.Helper()
	until(r, "a standby's turn", func() bool {
		if o.rung() == 0 {
			return false
		}
		var err error
		h, err = r.try(s, o, broker.Standby)
		if err != nil && !errors.Is(err, broker.ErrHeld) {
			r.Fatalf("a standby that was rung: %v", err)
		}
		return err == nil
	})
	return h
}

func rejectWhileHeld(r *rig, s, other broker.Store) {
	r.add(s, "01", "1")
	h, err := r.try(s, new(owner), broker.Reject)
	if err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	_, err = r.try(other, new(owner), broker.Reject)
	r.mustFail("a second owner", err, broker.ErrHeld)
	if e := h.find(h.page[0].Message.MID); e.Attempts != 0 || e.Deaths != 0 {
		r.Errorf("a refused attach was counted: %+v", e.Counts)
	}
	h.finish(broker.StateAcked, h.page...) // it is still the owner
	h.detach()
	next, err := r.try(other, new(owner), broker.Reject)
	if err != nil {
		r.Fatalf("after the first has left: %v", err)
	}
	if next.Fence() <= h.Fence() {
		r.Errorf("the fence is %d, and was %d", next.Fence(), h.Fence())
	}
}

// rejectAfterACrash: an owner whose node has crashed keeps others out for a while at most.
func rejectAfterACrash(r *rig) {
	s, other := r.open(broker.Policy{}), r.open(broker.Policy{})
	if _, err := r.try(s, new(owner), broker.Reject); err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	r.add(s, "01", "1")
	r.crash(s)
	until(r, "the mailbox to be free", func() bool {
		h, err := r.try(other, new(owner), broker.Reject)
		if err != nil && !errors.Is(err, broker.ErrHeld) {
			r.Fatalf("attaching: %v", err)
		}
		return err == nil && len(h.page) == 1
	})
}

// standbyInLine: the oldest is promoted first, wherever it is.
func standbyInLine(r *rig, s, second, third broker.Store) {
	h, err := r.try(s, new(owner), broker.Standby)
	if err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	a := r.stand(second)
	b := r.stand(third)
	r.add(s, "01", "1", "2")
	h.finish(broker.StateAcked, h.read()[0])
	h.detach()
	if _, err := r.try(third, b, broker.Standby); !errors.Is(err, broker.ErrHeld) {
		r.Fatalf("the second in line passed the first: %v", err)
	}
	ha := r.awaitTurn(second, a)
	r.mustBe("the mailbox of the first in line", ha.page, "2")
	if ha.Fence() <= h.Fence() {
		r.Errorf("the fence is %d, and was %d", ha.Fence(), h.Fence())
	}
	r.add(third, "01", "3")
	until(r, "the promoted owner to be rung", func() bool { return len(ha.read()) == 2 })
	ha.detach()
	hb := r.awaitTurn(third, b)
	r.mustBe("the mailbox of the second in line", hb.page, "2", "3")
	hb.finish(broker.StateAcked, hb.page...)
	hb.detach()
	if len(a.losses())+len(b.losses()) > 0 {
		r.Errorf("standbys heard of a loss: %v, %v", a.losses(), b.losses())
	}
}

func standbyAfterACrash(r *rig) {
	s, other := r.open(broker.Policy{}), r.open(broker.Policy{})
	if _, err := r.try(s, new(owner), broker.Standby); err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	r.stand(s) // and crashes, too
	o := r.stand(other)
	r.crash(s)
	r.awaitTurn(other, o)
}

// standbyLeaves: who has left the line keeps nobody waiting, and hears nothing.
func standbyLeaves(r *rig) {
	s := r.open(broker.Policy{})
	h, err := r.try(s, new(owner), broker.Standby)
	if err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	a, b := r.stand(s), r.stand(s)
	if err := s.Leave(r.ctx(), "c", "01", a); err != nil {
		r.Fatalf("leaving: %v", err)
	}
	if err := s.Leave(r.ctx(), "c", "01", a); err != nil {
		r.Fatalf("leaving twice: %v", err)
	}
	h.detach()
	hb := r.awaitTurn(s, b)
	// The first in line leaves when the mailbox is free already.
	c, d := r.stand(s), r.stand(s)
	hb.detach()
	until(r, "the first to be rung", func() bool { return c.rung() > 0 })
	if err := s.Leave(r.ctx(), "c", "01", c); err != nil {
		r.Fatalf("leaving: %v", err)
	}
	r.awaitTurn(s, d).detach()
	if a.rung() > 0 {
		r.Errorf("who left was rung")
	}
	r.mustHold(s, "01")
}

func standbyWhenANoticeWasLost(r *rig) {
	s := r.open(broker.Policy{})
	h, err := r.try(s, new(owner), broker.Standby)
	if err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	o := r.stand(s)
	r.b.Mute(true)
	h.detach()
	r.awaitTurn(s, o)
}

func standbyIsBounded(r *rig) {
	s := r.open(broker.Policy{})
	if _, err := r.try(s, new(owner), broker.Standby); err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	first := r.stand(s)
	for range broker.MaxStandby - 1 {
		r.stand(s)
	}
	_, err := r.try(s, new(owner), broker.Standby)
	r.mustFail("one too many", err, broker.ErrLineFull)
	if _, err := r.try(s, first, broker.Standby); !errors.Is(err, broker.ErrHeld) {
		r.Errorf("one who is in line already: %v", err)
	}
}

// takeoverPassesTheLine: a takeover waits for nobody.
func takeoverPassesTheLine(r *rig) {
	s := r.open(broker.Policy{})
	h, err := r.try(s, new(owner), broker.Standby)
	if err != nil {
		r.Fatalf("nobody has it: %v", err)
	}
	o := r.stand(s)
	next := r.attach(s, "01")
	until(r, "the owner to hear of its loss", func() bool { return fmt.Sprint(h.losses()) != "[]" })
	next.detach()
	r.awaitTurn(s, o)
}
