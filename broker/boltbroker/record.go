package boltbroker

import (
	"bytes"
	"context"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// record returns the record with a name, or nil.
func (t *batch) record(name string) (*record, error) {
	value := t.tx.Bucket(bucketRecords).Get([]byte(name))
	if value == nil {
		return nil, nil
	}
	return parseRecord(value)
}

// recordOf returns the record of a message.
func (t *batch) recordOf(mid string) (name string, r *record, err error) {
	if name, err = broker.RecordOf(mid); err != nil {
		return "", nil, fmt.Errorf("%w: %w", broker.ErrNotFound, err)
	}
	r, err = t.record(name)
	if err == nil && (r == nil || r.MID != mid) { // another message can have the same key
		err = broker.ErrNotFound
	}
	return name, r, err
}

func (t *batch) putRecord(name string, r *record) error {
	return t.bucket(bucketRecords).Put([]byte(name), r.encode())
}

// addRecord writes a new record, and where it is found by its ref.
func (t *batch) addRecord(name string, r *record) error {
	t.ix.of(r.Channel).Records++
	t.dirty[r.Channel] = true
	if r.Ref != "" {
		if err := t.bucket(bucketRefs).Put(refKey(r.Channel, r.Ref, r.Stored, r.MID), nil); err != nil {
			return err
		}
	}
	return t.putRecord(name, r)
}

// dropRecord forgets a record.
func (t *batch) dropRecord(name string, r *record) error {
	t.ix.of(r.Channel).Records--
	t.dirty[r.Channel] = true
	if r.Ref != "" {
		if err := t.bucket(bucketRefs).Delete(refKey(r.Channel, r.Ref, r.Stored, r.MID)); err != nil {
			return err
		}
	}
	if r.ends != 0 {
		if err := t.bucket(bucketExpiry).Delete(expiryKey(r.ends, name)); err != nil {
			return err
		}
	}
	return t.bucket(bucketRecords).Delete([]byte(name))
}

// endRecord writes the record of a message that has ended, and until when it is kept. A dead letter's stays for as
// long as the letter.
func (t *batch) endRecord(name string, r *record) error {
	p := t.b.policy(r.Channel)
	r.Finished, r.Node = t.now, t.b.o.Node
	if r.State != broker.StateDead {
		until := t.now.Add(p.Receipts)
		if r.dedupe.After(until) {
			until = r.dedupe
		}
		r.ends = slotOf(until)
		if err := t.bucket(bucketExpiry).Put(expiryKey(r.ends, name), nil); err != nil {
			return err
		}
	}
	shown := r.Record
	t.then(func() { t.b.ended(shown) })
	return t.putRecord(name, r)
}

// ended counts an end and tells those who wait for it.
func (b *Broker) ended(r broker.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := broker.Ending{Channel: r.Channel, State: r.State}
	if r.State == broker.StateDead { // what is erased keeps in its record why it had died
		e.Reason = r.Reason
	}
	b.endings[e]++
	for _, w := range b.waiters[r.MID] {
		w <- r
	}
	delete(b.waiters, r.MID)
}

// view reads what is committed.
func (b *Broker) view(read func(tx *bolt.Tx) error) error {
	select {
	case <-b.stopping:
		return broker.ErrClosed
	default:
	}
	if err := b.Start(); err != nil {
		return err
	}
	err := b.db.View(read)
	if err != nil && isClosed(err) {
		return broker.ErrClosed
	}
	return err
}

// find reads a message's record.
func find(tx *bolt.Tx, mid string) (*record, error) {
	name, err := broker.RecordOf(mid)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrNotFound, err)
	}
	value := tx.Bucket(bucketRecords).Get([]byte(name))
	if value == nil {
		return nil, broker.ErrNotFound
	}
	r, err := parseRecord(value)
	if err == nil && r.MID != mid {
		err = broker.ErrNotFound
	}
	return r, err
}

// lookup reads a message's record and what was tried with it.
func (b *Broker) lookup(mid string) (r *record, t tried, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		if r, err = find(tx, mid); err != nil {
			return err
		}
		if !r.State.Finished() {
			t, err = parseTried(tx.Bucket(bucketCounts).Get(withSequence(boxKey(r.Channel, r.ID), r.seq)))
		}
		return err
	})
	return r, t, err
}

// Lookup implements [broker.Store].
func (b *Broker) Lookup(ctx context.Context, mid string) (broker.Record, error) {
	if err := ctx.Err(); err != nil {
		return broker.Record{}, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
	r, t, err := b.lookup(mid)
	if err != nil {
		return broker.Record{}, fmt.Errorf("message %s: %w", mid, err)
	}
	if r.State.Finished() {
		return r.Record, nil
	}
	r.Attempts = t.Attempts
	if owner := b.ownerOf(boxKey(r.Channel, r.ID)); owner != nil {
		r.Node = b.o.Node
		attempts, inFlight := owner.attempts(r.seq, mid)
		r.Attempts = max(r.Attempts, attempts)
		if inFlight {
			r.State = broker.StateInFlight
		}
	}
	return r.Record, nil
}

// Find implements [broker.Store].
func (b *Broker) Find(ctx context.Context, channel, ref string, limit int) ([]broker.Record, error) {
	var mids []string
	err := b.view(func(tx *bolt.Tx) error {
		prefix := prefixed(nil, channel, ref)
		c := tx.Bucket(bucketRefs).Cursor()
		// Behind the last key of this prefix: times begin with a zero bit.
		k, _ := c.Seek(append(bytes.Clone(prefix), 0xff))
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		for ; k != nil && bytes.HasPrefix(k, prefix) && len(mids) < limit; k, _ = c.Prev() {
			mids = append(mids, string(k[len(prefix)+8:]))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("messages with ref %q: %w", ref, err)
	}
	var found []broker.Record
	for _, mid := range mids {
		if r, err := b.Lookup(ctx, mid); err == nil { // or it ended meanwhile
			found = append(found, r)
		}
	}
	return found, nil
}

// Content implements [broker.Store].
func (b *Broker) Content(_ context.Context, mid string) (m *broker.Message, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		r, err := find(tx, mid)
		if err != nil {
			return err
		}
		var stored []byte
		switch {
		case r.State == broker.StateDead:
			stored = tx.Bucket(bucketDead).Get(deadKey(r.Channel, r.Finished, mid))
		case !r.State.Finished():
			if value := tx.Bucket(bucketEntries).Get(withSequence(boxKey(r.Channel, r.ID), r.seq)); len(value) > entryHeader {
				stored = value[entryHeader:]
			}
		}
		if stored == nil {
			return fmt.Errorf("%w with a body: it is %s", broker.ErrNotFound, r.State)
		}
		m, err = broker.ParseStored(bytes.Clone(stored)) // the file's memory is good only in here
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", mid, err)
	}
	return m, nil
}

// Await implements [broker.Store].
func (b *Broker) Await(ctx context.Context, mid string) (broker.Record, error) {
	done := make(chan broker.Record, 1)
	b.mu.Lock()
	b.waiters[mid] = append(b.waiters[mid], done)
	b.mu.Unlock()
	defer b.unwait(mid, done)
	for {
		// It may have ended before we were there to hear.
		r, err := b.Lookup(context.WithoutCancel(ctx), mid)
		if err != nil || r.State.Finished() || ctx.Err() != nil {
			return r, err
		}
		timer := time.NewTimer(time.Second)
		select {
		case r := <-done:
			timer.Stop()
			return r, nil
		case <-ctx.Done():
		case <-b.stopping:
			timer.Stop()
			return r, nil
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (b *Broker) unwait(mid string, done chan broker.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var rest []chan broker.Record
	for _, w := range b.waiters[mid] {
		if w != done {
			rest = append(rest, w)
		}
	}
	if len(rest) == 0 {
		delete(b.waiters, mid)
		return
	}
	b.waiters[mid] = rest
}
