package boltbroker

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// readEntry makes an entry of what the file has of it.
func readEntry(key, value []byte, counts *bolt.Bucket) (e broker.Entry, err error) {
	t, err := parseTried(counts.Get(key))
	if err != nil {
		return e, err
	}
	e.Counts = t.Counts
	e.Seq = binary.BigEndian.Uint64(key[len(key)-8:])
	e.Expires, e.Retain, e.Message, err = parseEntry(value)
	return e, err
}

// settle finishes messages, or notes what was tried with them.
func (t *batch) settle(a *attachment, outcomes []broker.Outcome) ([]broker.Verdict, error) {
	b := t.ix.boxes[a.key]
	if b == nil || b.owner != a {
		if err := a.err(); err != nil {
			return nil, err
		}
		return nil, broker.ErrFenced
	}
	for _, o := range outcomes {
		if err := checkOutcome(o); err != nil {
			return nil, err
		}
	}
	for _, o := range outcomes { // a damaged record is found before anything is written
		if s := b.slot(o.Seq, o.MID); s != nil && o.State.Finished() {
			if _, _, err := t.recordOf(s.mid); err != nil {
				return nil, fmt.Errorf("the record of message %s: %w", s.mid, err)
			}
		}
	}
	verdicts := make([]broker.Verdict, len(outcomes))
	for i, o := range outcomes {
		s := b.slot(o.Seq, o.MID)
		switch {
		case s == nil:
			verdicts[i] = broker.Gone
		case o.State.Finished():
			if err := t.finish(s, o); err != nil {
				return nil, err
			}
		default:
			if err := t.bucket(bucketCounts).Put(withSequence(b.key, s.seq), tried{Counts: o.Counts}.encode()); err != nil {
				return nil, err
			}
		}
	}
	return verdicts, nil
}

// checkOutcome is asked of all outcomes before anything of them is written.
func checkOutcome(o broker.Outcome) error {
	switch o.State {
	case broker.StateStored, broker.StateAcked, broker.StateWritten, broker.StateExpired, broker.StateDead:
	default:
		return fmt.Errorf("%w: an owner cannot settle a message as %q", broker.ErrRefused, o.State)
	}
	if len(o.Reply) > broker.MaxReply {
		return fmt.Errorf("%w: a reply of %d bytes; at most %d are kept", broker.ErrRefused, len(o.Reply), broker.MaxReply)
	}
	return nil
}

// finish takes a message out of its mailbox. A dead one keeps its body elsewhere.
func (t *batch) finish(s *slot, o broker.Outcome) error {
	name, r, err := t.recordOf(s.mid)
	if err != nil {
		return fmt.Errorf("the record of message %s: %w", s.mid, err)
	}
	key := withSequence(s.box.key, s.seq)
	r.State, r.Reason, r.Detail, r.Reply, r.Attempts = o.State, o.Reason, o.Detail, o.Reply, o.Attempts
	if o.State == broker.StateDead {
		value := t.tx.Bucket(bucketEntries).Get(key)
		if len(value) <= entryHeader {
			return fmt.Errorf("%w: message %s is not where its record says", broker.ErrFormat, s.mid)
		}
		stored := append([]byte(nil), value[entryHeader:]...) // Put may move what value points to
		if err := t.bucket(bucketDead).Put(deadKey(r.Channel, t.now, s.mid), stored); err != nil {
			return err
		}
		t.ix.of(r.Channel).Dead++
	}
	if err := t.endRecord(name, r); err != nil {
		return err
	}
	if err := t.bucket(bucketEntries).Delete(key); err != nil {
		return err
	}
	t.ix.remove(s)
	return t.bucket(bucketCounts).Delete(key)
}
