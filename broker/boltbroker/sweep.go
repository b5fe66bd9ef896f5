package boltbroker

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"time"

	"github.com/caddyrelay/relay/broker"
)

const (
	// sweepStep bounds what one transaction of a sweep finishes, so that publishers do not wait behind it.
	sweepStep = 500
	// ownerGrace is how long after a deadline its owner may take to see to it itself.
	ownerGrace = 2 * time.Second
)

// sweep finishes what is due, and forgets records whose time is over. It returns errMore if it did not come to
// the end.
func sweep(t *batch) error {
	done := 0
	for _, step := range []func(*batch, int) (int, error){(*batch).sweepMessages, (*batch).sweepRecords, (*batch).sweepLetters} {
		n, err := step(t, sweepStep-done)
		if err != nil {
			t.b.o.Logger.Error("sweeping the store failed; it is tried again", "path", t.b.o.Path, "error", err)
			return nil
		}
		if done += n; done >= sweepStep {
			return errMore
		}
	}
	return nil
}

// sweepMessages finishes messages whose deadline or retention has passed.
func (t *batch) sweepMessages(limit int) (done int, err error) {
	var later []dueAt
	defer func() {
		for _, d := range later {
			heap.Push(&t.ix.due, d)
		}
	}()
	for done < limit && len(t.ix.due) > 0 && !t.ix.due[0].at.After(t.now) {
		d := heap.Pop(&t.ix.due).(dueAt)
		switch {
		case d.slot.gone:
			continue
		case d.slot.box.owner != nil && t.now.Before(d.slot.due.Add(ownerGrace)):
			later = append(later, dueAt{d.slot.due.Add(ownerGrace), d.slot})
			continue
		}
		if err := t.overdue(d.slot); err != nil {
			later = append(later, d)
			return done, err
		}
		done++
	}
	return done, nil
}

func (t *batch) overdue(s *slot) error {
	key := withSequence(s.box.key, s.seq)
	e, err := readEntry(key, t.tx.Bucket(bucketEntries).Get(key), t.tx.Bucket(bucketCounts))
	if err != nil {
		return err
	}
	o := broker.Outcome{State: broker.StateExpired, Counts: e.Counts}
	if e.Expires.IsZero() || e.Retain.Before(e.Expires) {
		o.State, o.Reason = broker.StateDead, broker.DeadRetention
	}
	return t.finish(s, o)
}

// sweepRecords forgets records. They are in the order of their ends, so it costs only what there is to do.
func (t *batch) sweepRecords(limit int) (done int, err error) {
	now := t.now.UnixMilli() / slotLength.Milliseconds()
	for done < limit {
		key, _ := t.tx.Bucket(bucketExpiry).Cursor().First()
		if key == nil || int64(binary.BigEndian.Uint64(key)) > now {
			return done, nil
		}
		key = bytes.Clone(key)
		name := string(key[8:])
		r, err := t.record(name)
		if err != nil {
			return done, err
		}
		if r == nil || r.ends != int64(binary.BigEndian.Uint64(key)) { // it was replaced
			err = t.bucket(bucketExpiry).Delete(key)
		} else {
			err = t.dropRecord(name, r)
		}
		if err != nil {
			return done, err
		}
		done++
	}
	return done, nil
}

// sweepLetters drops dead letters whose time is over.
func (t *batch) sweepLetters(limit int) (done int, err error) {
	for channel, u := range t.ix.usage {
		if u.Dead == 0 {
			continue
		}
		prefix := prefixed(nil, channel)
		end := t.now.Add(-t.b.policy(channel).DeadRetention)
		for done < limit {
			key, _ := t.tx.Bucket(bucketDead).Cursor().Seek(prefix)
			if key == nil || !bytes.HasPrefix(key, prefix) || fromMillis(int64(binary.BigEndian.Uint64(key[len(prefix):]))).After(end) {
				break
			}
			if err := t.drop(string(key[len(prefix)+8:])); err != nil {
				return done, err
			}
			done++
		}
	}
	return done, nil
}
