package boltbroker

import (
	"context"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// Append implements [broker.Store].
func (b *Broker) Append(ctx context.Context, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	name, err := broker.RecordOf(m.MID)
	if err != nil {
		return broker.Stored{}, fmt.Errorf("%w: %q: %w", broker.ErrRefused, m.MID, err)
	}
	p := b.policy(m.Channel)
	if d := b.durability(); !d.Meets(p.Durability) {
		return broker.Stored{}, fmt.Errorf("%w: %w: channel %s demands durability %s, and the embedded broker gives %s: change one of them",
			broker.ErrRefused, broker.ErrUnavailable, m.Channel, p.Durability, d)
	}
	out, err := ask(ctx, b, func(t *batch) (broker.Stored, error) { return t.append(name, m, o, p) })
	if err != nil {
		return broker.Stored{}, fmt.Errorf("storing message %s: %w", m.MID, err)
	}
	out.Durability = b.durability()
	return out, nil
}

func (t *batch) append(name string, m *broker.Message, o broker.AppendOptions, p broker.Policy) (broker.Stored, error) {
	old, err := t.record(name)
	if err != nil {
		return broker.Stored{}, err
	}
	if old != nil {
		switch {
		case old.MID == m.MID: // the same append again, whose answer was lost
			return broker.Stored{MID: old.MID, State: old.State}, nil
		case old.Channel != m.Channel || old.ID != m.ID:
			return broker.Stored{}, fmt.Errorf("%w: its key has the hash of another's", broker.ErrConflict)
		case !old.State.Finished() || old.dedupe.After(t.now):
			if len(o.Fingerprint) > 0 && old.fingerprint != "" && old.fingerprint != string(o.Fingerprint) {
				return broker.Stored{}, fmt.Errorf("%w: it is that of %s", broker.ErrConflict, old.MID)
			}
			return broker.Stored{MID: old.MID, State: old.State, Duplicate: true}, nil
		case old.State == broker.StateDead: // its letter is still there, and would lose its record
			return broker.Stored{MID: old.MID, State: old.State, Duplicate: true}, nil
		}
	}
	r := &record{Record: broker.Record{
		MID: m.MID, Channel: m.Channel, ID: m.ID, Ref: m.Ref, State: broker.StateStored, Stored: t.now,
		Expires: deadline(t.now, o),
	}, fingerprint: string(o.Fingerprint)}
	if o.Key != "" {
		r.dedupe = t.now.Add(p.Dedupe)
	}
	if err := t.admit(r, old != nil, len(m.Body), p); err != nil {
		return broker.Stored{}, err
	}
	if old != nil {
		if err := t.dropRecord(name, old); err != nil {
			return broker.Stored{}, err
		}
	}
	return broker.Stored{MID: m.MID, State: broker.StateStored}, t.insert(name, r, m, p)
}

// deadline returns the earlier of the two ways to give one, or none.
func deadline(now time.Time, o broker.AppendOptions) time.Time {
	at := o.Expires
	if o.TTL > 0 {
		if end := now.Add(o.TTL); at.IsZero() || end.Before(at) {
			at = end
		}
	}
	return fromMillis(millis(at)) // as the file has it
}

// admit says why a message cannot be taken.
func (t *batch) admit(r *record, replaces bool, size int, p broker.Policy) error {
	u := t.ix.of(r.Channel)
	pending, bytes := 0, int64(0)
	if b := t.ix.boxes[boxKey(r.Channel, r.ID)]; b != nil {
		pending, bytes = len(b.slots), b.bytes
	}
	switch {
	case !r.Expires.IsZero() && !r.Expires.After(t.now):
		return fmt.Errorf("%w, at %s", broker.ErrExpired, r.Expires.UTC().Format(time.RFC3339))
	case u.Dead >= p.MaxDead:
		return fmt.Errorf("%w: channel %s has %d", broker.ErrDeadLettersFull, r.Channel, u.Dead)
	case pending >= p.MaxPending || bytes+int64(size) > p.MaxPendingBytes:
		return fmt.Errorf("%w: %s of channel %s has %d messages of %d bytes", broker.ErrMailboxFull, r.ID, r.Channel, pending, bytes)
	case u.Pending >= p.MaxChannelPending || u.Bytes+int64(size) > p.MaxChannelBytes:
		return fmt.Errorf("%w: channel %s has %d messages of %d bytes", broker.ErrChannelFull, r.Channel, u.Pending, u.Bytes)
	case u.Records >= p.MaxRecords && !replaces:
		return fmt.Errorf("%w: channel %s has %d", broker.ErrRecordsFull, r.Channel, u.Records)
	}
	return nil
}

// insert writes a message at the end of its mailbox, and its record.
func (t *batch) insert(name string, r *record, m *broker.Message, p broker.Policy) error {
	r.seq = t.ix.next(t.now)
	retain := t.now.Add(p.Retention)
	b := t.ix.box(r.Channel, r.ID)
	prev := uint64(0)
	if len(b.slots) > 0 {
		prev = b.slots[len(b.slots)-1].seq
	}
	t.ix.add(b, &slot{seq: r.seq, mid: r.MID, size: len(m.Body), due: earlier(r.Expires, retain)})
	if err := t.bucket(bucketEntries).Put(withSequence(b.key, r.seq), appendEntry(nil, r.Expires, retain, m)); err != nil {
		return err
	}
	if err := t.addRecord(name, r); err != nil {
		return err
	}
	if owner := b.owner; owner != nil {
		e := broker.Entry{Message: m, Seq: r.seq, Expires: r.Expires, Retain: fromMillis(millis(retain))}
		t.then(func() { owner.offer(prev, e) })
	}
	return nil
}
