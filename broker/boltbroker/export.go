package boltbroker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

const (
	// exportItems and exportBytes bound what is handed over at once.
	exportItems = 2048
	exportBytes = 4 << 20
)

// Export is a file whose messages are to be moved to another store. Nothing of it changes meanwhile: nobody else can open
// it, and no deadline is seen to.
type Export struct {
	path  string
	db    *bolt.DB
	usage map[string]broker.Usage
	clock func() time.Time
	move  broker.Move
	moved bool
}

// OpenExport opens a file that is there. Close it at the end.
func OpenExport(path string) (*Export, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("the store %s: %w", path, err)
	}
	b := New(Options{Path: path})
	db, ix, err := b.openFile()
	if err != nil {
		return nil, err
	}
	e := &Export{path: path, db: db, usage: make(map[string]broker.Usage), clock: b.o.Clock}
	for channel, u := range ix.usage {
		if *u != (broker.Usage{}) {
			e.usage[channel] = *u
		}
	}
	err = db.View(func(tx *bolt.Tx) (err error) {
		e.move, e.moved, err = readMove(tx)
		return err
	})
	if err != nil {
		_ = db.Close()
		return nil, e.explain(err)
	}
	return e, nil
}

// Close lets go of the file.
func (e *Export) Close() error { return e.db.Close() }

// Usage says what is kept for each channel, without Oldest.
func (e *Export) Usage() map[string]broker.Usage { return e.usage }

// Total implements [broker.Exporter].
func (e *Export) Total() int {
	n := 0
	for _, u := range e.usage {
		n += u.Records // every message has one, finished or not
	}
	return n
}

// Move implements [broker.Exporter].
func (e *Export) Move() (broker.Move, bool) { return e.move, e.moved }

// SetMove implements [broker.Exporter].
func (e *Export) SetMove(m broker.Move) error {
	err := e.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyMoved, encodeMove(m)) })
	if err != nil {
		return e.explain(err)
	}
	e.move, e.moved = m, true
	return nil
}

func (e *Export) explain(err error) error { return fmt.Errorf("the store %s: %w", e.path, err) }

// Export implements [broker.Exporter].
func (e *Export) Export(ctx context.Context, take func([]broker.Item) error) error {
	return e.db.View(func(tx *bolt.Tx) error {
		p := &parcel{ctx: ctx, take: take}
		for _, each := range []func(*bolt.Tx, *parcel) error{e.records, e.letters, e.entries} {
			if err := each(tx, p); err != nil {
				return err
			}
		}
		return p.send()
	})
}

// parcel is what is handed over at once.
type parcel struct {
	ctx   context.Context
	take  func([]broker.Item) error
	items []broker.Item
	size  int
}

func (p *parcel) add(i broker.Item) error {
	p.items = append(p.items, i)
	if i.Message != nil {
		p.size += len(i.Message.Body)
	}
	if len(p.items) < exportItems && p.size < exportBytes {
		return nil
	}
	return p.send()
}

func (p *parcel) send() error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	if len(p.items) == 0 {
		return nil
	}
	err := p.take(p.items)
	p.items, p.size = nil, 0
	return err
}

// records adds the records of messages whose bodies are gone.
func (e *Export) records(tx *bolt.Tx, p *parcel) error {
	now := e.clock()
	return tx.Bucket(bucketRecords).ForEach(func(_, value []byte) error {
		r, err := parseRecord(value)
		if err != nil {
			return e.explain(err)
		}
		if !r.State.Finished() || r.State == broker.StateDead {
			return nil // they come with their bodies
		}
		kept := time.UnixMilli(r.ends * slotLength.Milliseconds())
		if !kept.After(now) {
			return nil // the sweep of an open store would have dropped it
		}
		i := r.item()
		i.Kept = kept
		return p.add(i)
	})
}

// letters adds the dead letters.
func (e *Export) letters(tx *bolt.Tx, p *parcel) error {
	return tx.Bucket(bucketDead).ForEach(func(key, value []byte) error {
		_, rest, err := cutString(key)
		if err == nil && len(rest) < 8 {
			err = fmt.Errorf("%w: %w key", broker.ErrFormat, errDamaged)
		}
		if err != nil {
			return e.explain(err)
		}
		r, err := e.recordOf(tx, string(rest[8:]), broker.StateDead)
		if err != nil {
			return err
		}
		i := r.item()
		if i.Message, err = broker.ParseStored(bytes.Clone(value)); err != nil {
			return e.explain(err)
		}
		return p.add(i)
	})
}

// entries adds the unfinished messages, in the order of their mailboxes.
func (e *Export) entries(tx *bolt.Tx, p *parcel) error {
	counts := tx.Bucket(bucketCounts)
	var box, last string
	var suspects, place int
	return tx.Bucket(bucketEntries).ForEach(func(key, value []byte) error {
		if len(key) < 8 {
			return e.explain(fmt.Errorf("%w: %w key", broker.ErrFormat, errDamaged))
		}
		if k := string(key[:len(key)-8]); k != box {
			box, last, place = k, "", 0
			window, err := ownedWindow(tx, box)
			if err != nil {
				return e.explain(err)
			}
			suspects = window
		}
		entry, err := readEntry(key, bytes.Clone(value), counts)
		if err != nil {
			return e.explain(err)
		}
		if place < suspects { // as the next attach would; see suspect
			entry.Attempts++
			if place == 0 {
				entry.Deaths++
			}
		}
		place++
		r, err := e.recordOf(tx, entry.Message.MID, broker.StateStored)
		if err != nil {
			return err
		}
		i := r.item()
		i.After, last = last, i.MID
		i.Message, i.Seq = entry.Message, binary.BigEndian.Uint64(key[len(key)-8:])
		i.Expires, i.Retain, i.Tried, i.Attempts = entry.Expires, entry.Retain, entry.Counts, entry.Attempts
		return p.add(i)
	})
}

// ownedWindow returns how many messages the owner of a mailbox could have in flight that did not give it up: its process
// crashed. 0: there is none.
func ownedWindow(tx *bolt.Tx, box string) (int, error) {
	value := tx.Bucket(bucketBoxes).Get([]byte(box))
	if value == nil {
		return 0, nil
	}
	r := readRow(value)
	return int(r.int()), r.err
}

// recordOf returns the record of a message, which must be in this state.
func (e *Export) recordOf(tx *bolt.Tx, mid string, want broker.State) (*record, error) {
	r, err := find(tx, mid)
	if err == nil && r.State != want {
		err = fmt.Errorf("%w: it is %s, and its message is where %s ones are", broker.ErrFormat, r.State, want)
	}
	if err != nil {
		return nil, e.explain(fmt.Errorf("the record of message %s: %w", mid, err))
	}
	return r, nil
}

// item is what the record says of its message.
func (r *record) item() broker.Item {
	return broker.Item{Record: r.Record, Fingerprint: []byte(r.fingerprint), Keyed: r.dedupe}
}

// Interface guard
var _ broker.Exporter = (*Export)(nil)
