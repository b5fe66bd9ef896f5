package boltbroker

import (
	"context"
	"errors"
	"fmt"

	"github.com/caddyrelay/relay/broker"
)

// errOwnerChanged says that the mailbox's owner is not the one that was asked.
var errOwnerChanged = errors.New("the owner changed")

// Cancel implements [broker.Store].
func (b *Broker) Cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	for range 5 {
		done, err := b.cancel(ctx, mid)
		if !errors.Is(err, errOwnerChanged) {
			if err != nil {
				return broker.CancelUnknown, fmt.Errorf("cancelling message %s: %w", mid, err)
			}
			return done, nil
		}
	}
	return broker.CancelUnknown, nil // sockets fight over the destination
}

func (b *Broker) cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	r, tr, err := b.lookup(mid)
	if err != nil {
		return broker.CancelUnknown, err
	}
	if r.State.Finished() || tr.Attempts > 0 {
		return broker.CancelTooLate, nil
	}
	// The owner is asked outside of any lock and transaction: it decides under its own.
	owner := b.ownerOf(boxKey(r.Channel, r.ID))
	if owner != nil && !owner.withdraw(r.seq, mid) {
		return broker.CancelTooLate, nil
	}
	answer, err := ask(ctx, b, func(t *batch) (broker.Cancelled, error) { return t.cancel(r, owner) })
	if err != nil {
		if owner != nil && !errors.Is(err, errOwnerChanged) {
			owner.lose(broker.ErrForgotten)
		}
		return broker.CancelUnknown, err
	}
	return answer, nil
}

// cancel finishes a message that nobody pushed. owner is the one that has withdrawn it, or nil.
func (t *batch) cancel(r *record, owner *attachment) (broker.Cancelled, error) {
	b := t.ix.boxes[boxKey(r.Channel, r.ID)]
	if b == nil {
		return broker.CancelTooLate, nil
	}
	s := b.slot(r.seq, r.MID)
	if s == nil {
		return broker.CancelTooLate, nil
	}
	if b.owner != owner {
		return broker.CancelUnknown, errOwnerChanged
	}
	tr, err := parseTried(t.tx.Bucket(bucketCounts).Get(withSequence(b.key, s.seq)))
	switch {
	case err != nil:
		return broker.CancelUnknown, err
	case b.owned && owner == nil && b.find(s.seq) < b.window:
		return broker.CancelUnknown, nil // an owner that crashed may have pushed it
	case tr.Attempts > 0:
		return broker.CancelTooLate, nil
	}
	return broker.CancelDone, t.finish(s, broker.Outcome{State: broker.StateCancelled})
}
