package boltbroker

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// The sizes of a page of dead letters.
const defaultPage, maxPage = 100, 1000

// DeadLetters implements [broker.Store].
func (b *Broker) DeadLetters(_ context.Context, channel string, q broker.DeadQuery) (page broker.DeadPage, err error) {
	if q.Limit <= 0 {
		q.Limit = defaultPage
	}
	q.Limit = min(q.Limit, maxPage)
	prefix := prefixed(nil, channel)
	from := prefix
	if q.After != "" {
		if from, err = base64.RawURLEncoding.DecodeString(q.After); err != nil || !bytes.HasPrefix(from, prefix) {
			return page, fmt.Errorf("%w: there is no page after %q", broker.ErrNotFound, q.After)
		}
		from = append(from, 0)
	}
	err = b.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketDead).Cursor()
		var last []byte
		for k, v := c.Seek(from); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			letter, err := readLetter(tx, string(k[len(prefix)+8:]), v)
			if err != nil {
				return err
			}
			if !q.Before.IsZero() && !letter.Finished.Before(q.Before) {
				return nil // they are in the order of their deaths
			}
			if q.ID != "" && q.ID != letter.ID || q.Reason != "" && q.Reason != letter.Reason {
				continue
			}
			if len(page.Letters) == q.Limit {
				page.Next = base64.RawURLEncoding.EncodeToString(last)
				return nil
			}
			page.Letters = append(page.Letters, letter)
			last = bytes.Clone(k)
		}
		return nil
	})
	if err != nil {
		return broker.DeadPage{}, fmt.Errorf("dead letters of channel %s: %w", channel, err)
	}
	return page, nil
}

func readLetter(tx *bolt.Tx, mid string, stored []byte) (letter broker.DeadLetter, err error) {
	r, err := find(tx, mid)
	if err != nil {
		return letter, fmt.Errorf("the record of dead letter %s: %w", mid, err)
	}
	m, err := broker.ParseStored(stored)
	if err != nil {
		return letter, err
	}
	return broker.DeadLetter{Record: r.Record, ContentType: m.ContentType, Size: len(m.Body)}, nil
}

// letter returns a dead letter's record and content.
func (t *batch) letter(mid string) (name string, r *record, key, stored []byte, err error) {
	name, r, err = t.recordOf(mid)
	if err != nil {
		return name, r, nil, nil, err
	}
	if r.State != broker.StateDead {
		return name, r, nil, nil, fmt.Errorf("%w among the dead letters: it is %s", broker.ErrNotFound, r.State)
	}
	key = deadKey(r.Channel, r.Finished, mid)
	return name, r, key, t.tx.Bucket(bucketDead).Get(key), nil
}

// Resend implements [broker.Store].
func (b *Broker) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	err := b.do(ctx, func(t *batch) error { return t.resend(mid, ttl) })
	if err != nil {
		return broker.Stored{}, fmt.Errorf("sending dead letter %s again: %w", mid, err)
	}
	return broker.Stored{MID: mid, State: broker.StateStored, Durability: b.durability()}, nil
}

func (t *batch) resend(mid string, ttl time.Duration) error {
	name, r, key, stored, err := t.letter(mid)
	if err != nil {
		return err
	}
	m, err := broker.ParseStored(bytes.Clone(stored))
	if err != nil {
		return err
	}
	p := t.b.policy(r.Channel)
	r.Expires = deadline(t.now, broker.AppendOptions{TTL: ttl})
	limits := p
	limits.MaxDead = math.MaxInt // it is one less in the end
	if err := t.admit(r, true, len(m.Body), limits); err != nil {
		return err
	}
	if err := t.bucket(bucketDead).Delete(key); err != nil {
		return err
	}
	t.ix.of(r.Channel).Dead--
	// addRecord, which insert calls, counts it and writes its ref.
	if err := t.dropRecord(name, r); err != nil {
		return err
	}
	r.State, r.Reason, r.Detail, r.Reply, r.Node, r.Attempts, r.Finished, r.ends = broker.StateStored, "", "", nil, "", 0, time.Time{}, 0
	return t.insert(name, r, m, p)
}

// Drop implements [broker.Store].
func (b *Broker) Drop(ctx context.Context, mid string) error {
	if err := b.do(ctx, func(t *batch) error { return t.drop(mid) }); err != nil {
		return fmt.Errorf("dropping dead letter %s: %w", mid, err)
	}
	return nil
}

func (t *batch) drop(mid string) error {
	name, r, key, _, err := t.letter(mid)
	if err != nil {
		return err
	}
	if err := t.bucket(bucketDead).Delete(key); err != nil {
		return err
	}
	t.ix.of(r.Channel).Dead--
	r.State = broker.StateErased
	return t.endRecord(name, r)
}
