package brokertest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

func notFound(mid string) error { return fmt.Errorf("%w: %s", broker.ErrNotFound, mid) }

// Lookup implements [broker.Store].
func (m *Memory) Lookup(ctx context.Context, mid string) (broker.Record, error) {
	if err := m.enter(ctx); err != nil {
		return broker.Record{}, err
	}
	rec := m.records[mid]
	m.mu.Unlock()
	if rec == nil {
		return broker.Record{}, notFound(mid)
	}
	return m.look(rec), nil
}

// look returns a record as it is now. The owner of an unfinished one is asked, without a lock.
func (m *Memory) look(rec *record) broker.Record {
	m.mu.Lock()
	r := rec.Record
	r.Reply = slices.Clone(r.Reply)
	var owner *attachment
	var seq uint64
	if b := m.boxes[address{r.Channel, r.ID}]; b != nil && !r.State.Finished() {
		if at := slices.IndexFunc(b.entries, func(e *entry) bool { return e.mid == r.MID }); at >= 0 {
			seq, r.Attempts = b.entries[at].seq, b.entries[at].counts.Attempts
		}
		if owner = b.owner; owner != nil && owner.node.ended != nil {
			owner = nil
		}
	}
	m.mu.Unlock()
	if owner == nil {
		return r
	}
	r.Node = owner.node.o.Node
	guard(func() {
		attempts, inFlight := owner.owner.Attempts(seq, r.MID)
		r.Attempts = max(r.Attempts, attempts)
		if inFlight {
			r.State = broker.StateInFlight
		}
	})
	return r
}

// Find implements [broker.Store].
func (m *Memory) Find(ctx context.Context, channel, ref string, limit int) ([]broker.Record, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	var found []*record
	for _, r := range m.records {
		if r.Channel == channel && r.Ref == ref && ref != "" {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *record) int { return b.Stored.Compare(a.Stored) })
	m.mu.Unlock()
	var records []broker.Record
	for _, r := range found[:min(limit, len(found))] {
		records = append(records, m.look(r))
	}
	return records, nil
}

// Content implements [broker.Store].
func (m *Memory) Content(ctx context.Context, mid string) (*broker.Message, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	rec := m.records[mid]
	if rec == nil {
		return nil, notFound(mid)
	}
	if at := m.deadAt(rec); at >= 0 {
		return m.dead[rec.Channel][at].message(), nil
	}
	if b := m.boxes[address{rec.Channel, rec.ID}]; b != nil {
		for _, e := range b.entries {
			if e.mid == mid {
				return e.message(), nil
			}
		}
	}
	return nil, notFound(mid)
}

// Await implements [broker.Store].
func (m *Memory) Await(ctx context.Context, mid string) (broker.Record, error) {
	for {
		if err := m.enter(context.Background()); err != nil {
			return broker.Record{}, err
		}
		rec := m.records[mid]
		if rec == nil {
			m.mu.Unlock()
			return broker.Record{}, notFound(mid)
		}
		end, finished := rec.end, rec.State.Finished()
		if m.mute {
			end = nil
		}
		m.mu.Unlock()
		if finished || ctx.Err() != nil {
			return m.look(rec), nil
		}
		timer := time.NewTimer(m.o.Interval)
		select {
		case <-end:
		case <-ctx.Done():
		case <-timer.C:
		case <-m.closing:
		}
		timer.Stop()
	}
}

// Cancel implements [broker.Store].
func (m *Memory) Cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	var agreed *attachment // the owner that has forgotten the message
	for {
		if err := m.enter(ctx); err != nil {
			return broker.CancelUnknown, err
		}
		ask, seq, answer, err := m.cancel(mid, agreed)
		m.mu.Unlock()
		if ask == nil {
			return answer, err
		}
		withdrawn := false
		if !guard(func() { withdrawn = ask.owner.Withdraw(seq, mid) }) {
			return broker.CancelUnknown, nil
		}
		if !withdrawn {
			return broker.CancelTooLate, nil
		}
		agreed = ask
	}
}

// cancel decides, or returns the owner to ask.
func (m *Memory) cancel(mid string, agreed *attachment) (ask *attachment, seq uint64, answer broker.Cancelled, err error) {
	rec := m.records[mid]
	switch {
	case rec == nil:
		return nil, 0, broker.CancelUnknown, notFound(mid)
	case rec.State.Finished():
		return nil, 0, broker.CancelTooLate, nil
	}
	b := m.boxes[address{rec.Channel, rec.ID}]
	at := slices.IndexFunc(b.entries, func(e *entry) bool { return e.mid == mid })
	if b.entries[at].counts.Attempts > 0 { // an owner that has not read it yet does not know
		return nil, 0, broker.CancelTooLate, nil
	}
	if a := b.owner; a != nil && a != agreed {
		if a.node.ended == nil {
			return a, b.entries[at].seq, 0, nil
		}
		if at < a.window { // it may have been pushed before the crash
			return nil, 0, broker.CancelUnknown, nil
		}
	}
	m.finish(b, at, broker.Outcome{State: broker.StateCancelled})
	return nil, 0, broker.CancelDone, nil
}
