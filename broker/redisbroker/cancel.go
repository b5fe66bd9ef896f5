package redisbroker

import (
	"context"
	"errors"

	"github.com/caddyrelay/relay/broker"
)

// ask is a question to the node that holds a mailbox.
type ask struct {
	ID    string `json:"id"`
	From  string `json:"from"` // the channel on which to answer
	What  string `json:"what"`
	Box   string `json:"box"`
	Owner string `json:"owner"`
	Seq   uint64 `json:"seq,string"`
	MID   string `json:"mid"`
}

const (
	askCancel   = "cancel"
	askAttempts = "attempts"
)

// answer answers it. OK is false if the node is not, or no longer, who holds the mailbox.
type answer struct {
	ID       string           `json:"id"`
	OK       bool             `json:"ok"`
	Attempts int              `json:"attempts,omitempty"`
	InFlight bool             `json:"in_flight,omitempty"`
	Cancel   broker.Cancelled `json:"cancel,omitempty"`
}

// ask asks a node. The answer is not OK if there is none in time.
func (s *store) ask(ctx context.Context, channel string, q ask) answer {
	q.ID, q.From = broker.NewMID(), s.names.node(s.incarnation)
	c := make(chan answer, 1)
	s.mu.Lock()
	s.asks[q.ID] = c
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asks, q.ID)
	}()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if heard, err := s.tell(channel, &notice{Ask: &q}); err != nil || heard == 0 {
		return answer{} // nobody is there
	}
	select {
	case a := <-c:
		return a
	case <-ctx.Done():
		return answer{}
	}
}

// maxAsked bounds the questions that are being answered.
const maxAsked = 256

// asked answers a question, not on the goroutine that hears it.
func (s *store) asked(q ask) {
	leave, err := s.b.enter()
	if err != nil {
		return
	}
	select {
	case s.answering <- struct{}{}:
	default:
		leave()
		return
	}
	go func() {
		defer leave()
		defer func() { <-s.answering }()
		a := answer{}
		switch q.What {
		case askAttempts:
			a = s.attemptsHere(q.Box, q.Owner, q.Seq, q.MID)
		case askCancel:
			ctx, cancel := context.WithTimeout(s.b.ctx, s.b.o.Timeout)
			a, _ = s.cancelHere(ctx, q.Box, q.Owner, q.Seq, q.MID)
			cancel()
		}
		a.ID = q.ID
		_, _ = s.tell(q.From, &notice{Answer: &a}) // whoever asked does not wait for long
	}()
}

// attemptsHere asks an owner of this node.
func (s *store) attemptsHere(box, owner string, seq uint64, mid string) (a answer) {
	m := s.owned(box, owner)
	if m == nil {
		return a
	}
	s.guard("Attempts", func() {
		a.Attempts, a.InFlight = m.owner.Attempts(seq, mid)
		a.OK = true
	})
	return a
}

// withdrawal is an entry that its owner has forgotten, and that the store has not.
type withdrawal struct {
	place place
	owner string
	seq   uint64
	mid   string
}

// cancelHere has an owner of this node forget an entry, and finishes it.
func (s *store) cancelHere(ctx context.Context, box, owner string, seq uint64, mid string) (answer, error) {
	m := s.owned(box, owner)
	if m == nil {
		return answer{}, nil
	}
	withdrawn := false
	s.guard("Withdraw", func() { withdrawn = m.owner.Withdraw(seq, mid) })
	if !withdrawn {
		return answer{OK: true, Cancel: broker.CancelTooLate}, nil
	}
	w := withdrawal{place: m.place, owner: owner, seq: seq, mid: mid}
	a, err := s.finishCancel(ctx, w)
	if err != nil {
		// The owner will not push it, so it must not stay as it is: see retryWithdrawn.
		s.mu.Lock()
		s.withdrawn[mid] = w
		s.mu.Unlock()
	}
	return a, err
}

// finishCancel finishes an entry as cancelled, in the name of its owner, or of nobody.
func (s *store) finishCancel(ctx context.Context, w withdrawal) (answer, error) {
	done, err := s.settle(ctx, settling{mode: "cancel", place: w.place, owner: w.owner,
		outcomes: []broker.Outcome{{Seq: w.seq, MID: w.mid, State: broker.StateCancelled}}})
	switch {
	case err != nil:
		return answer{}, err
	case done.fenced:
		return answer{}, nil
	case done.verdicts == "0":
		return answer{OK: true, Cancel: broker.CancelDone}, nil
	}
	return answer{OK: true, Cancel: broker.CancelTooLate}, nil
}

// Cancel implements [broker.Store].
func (b *Broker) Cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.CancelUnknown, err
	}
	defer leave()
	s := b.store
	for range 3 { // while its owner changes
		rec, err := s.record(ctx, mid)
		if err != nil {
			return broker.CancelUnknown, err
		}
		if rec.State.Finished() {
			return broker.CancelTooLate, nil
		}
		at := placeOf(rec.Channel, rec.ID)
		owner, counts, err := s.ownerOf(ctx, at, rec.seq)
		switch {
		case err != nil:
			return broker.CancelUnknown, err
		case counts.Attempts > 0:
			// Asking the owner would make it forget an entry that cannot be cancelled.
			return broker.CancelTooLate, nil
		}
		var a answer
		switch {
		case owner == "":
			a, err = s.finishCancel(ctx, withdrawal{place: at, seq: rec.seq, mid: mid})
		case s.ours(owner):
			a, err = s.cancelHere(ctx, at.box, owner, rec.seq, mid)
		default:
			a = s.ask(ctx, s.names.node(owner), ask{What: askCancel, Box: at.box, Owner: owner, Seq: rec.seq, MID: mid})
			if !a.OK {
				return broker.CancelUnknown, nil
			}
		}
		if a.OK || err != nil {
			return a.Cancel, err
		}
	}
	return broker.CancelUnknown, nil
}

// retryWithdrawn finishes what owners forgot while Redis could not be reached.
func (s *store) retryWithdrawn(ctx context.Context) {
	s.mu.Lock()
	var all []withdrawal
	for _, w := range s.withdrawn {
		all = append(all, w)
	}
	s.mu.Unlock()
	for _, w := range all {
		if _, err := s.finishCancel(ctx, w); errors.Is(err, broker.ErrUnavailable) {
			return
		}
		// Cancelled, or it has another owner, who knows nothing of this.
		s.mu.Lock()
		delete(s.withdrawn, w.mid)
		s.mu.Unlock()
	}
}
