package boltbroker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// attachment is an owner's hold on a mailbox.
type attachment struct {
	b                *Broker
	key, channel, id string
	owner            broker.Owner
	window           int
	fence            uint64
	peer             string    // the address of the owner's
	since            time.Time // when it attached

	// telling is held while Lost is called, and guards lost: Lost is not called once Detach has returned.
	telling sync.Mutex
	lost    error
}

// Attach implements [broker.Store].
func (b *Broker) Attach(ctx context.Context, channel, id string, owner broker.Owner, o broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	a := &attachment{b: b, key: boxKey(channel, id), channel: channel, id: id, owner: owner, window: max(o.Window, 1),
		peer: o.Address[:min(len(o.Address), broker.MaxAddress)]}
	if o.Limit <= 0 {
		o.Limit = a.window
	}
	if o.Bytes <= 0 {
		o.Bytes = 1 << 20
	}
	if err := b.do(ctx, func(t *batch) error {
		if err := t.occupied(a, o.Mode); err != nil {
			return err
		}
		return t.attach(a)
	}); err != nil {
		if !errors.Is(err, broker.ErrRefused) && !errors.Is(err, broker.ErrHeld) && !errors.Is(err, broker.ErrLineFull) {
			a.abandon()
		}
		return nil, broker.Page{}, fmt.Errorf("attaching to %s of channel %s: %w", id, channel, err)
	}
	page, err := a.read(0, o.Limit, o.Bytes) // even if somebody else has it by now: Lost says so
	if err != nil {
		return nil, broker.Page{}, err
	}
	return a, page, nil
}

func (t *batch) attach(a *attachment) error {
	b := t.ix.box(a.channel, a.id)
	if b.owned {
		if err := t.suspect(b); err != nil {
			return err
		}
	}
	before := b.owner
	b.owned, b.owner, b.window = true, a, a.window
	a.fence, a.since = t.ix.next(t.now), t.now
	r := newRow()
	r.putInt(int64(a.window))
	r.putInt(int64(a.fence))
	if err := t.bucket(bucketBoxes).Put([]byte(b.key), r.data); err != nil {
		return err
	}
	t.then(func() {
		t.b.leave(a.key, a.owner)
		t.b.setOwner(a)
		if before != nil {
			before.lose(broker.ErrFenced)
		}
	})
	return nil
}

// abandon gives up a mailbox whose attach was not waited for. It may have been done all the same, or come yet.
func (a *attachment) abandon() {
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.publishing.Go(func() {
		// An error is that of a broker that is broken: there are no owners any more.
		_ = b.do(context.Background(), func(t *batch) error {
			if box := t.ix.boxes[a.key]; box == nil || box.owner != a {
				return nil
			}
			return t.detach(a)
		})
		b.dropOwner(a)
	})
}

// detach has a mailbox without an owner.
func (t *batch) detach(a *attachment) error {
	b := t.ix.box(a.channel, a.id)
	b.owned, b.owner = false, nil
	t.ix.forget(b)
	t.then(func() { t.b.promote(a.key) })
	return t.bucket(bucketBoxes).Delete([]byte(b.key))
}

// suspect notes that the owner before may have pushed what its window could hold: it did not say.
func (t *batch) suspect(b *box) error {
	for i, s := range b.slots[:min(b.window, len(b.slots))] {
		key := withSequence(b.key, s.seq)
		tr, err := parseTried(t.tx.Bucket(bucketCounts).Get(key))
		if err != nil {
			return err
		}
		tr.Attempts++
		if i == 0 {
			tr.Deaths++
		}
		if err := t.bucket(bucketCounts).Put(key, tr.encode()); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) setOwner(a *attachment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owners[a.key] = a
}

func (b *Broker) dropOwner(a *attachment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.owners[a.key] == a {
		delete(b.owners, a.key)
	}
}

func (b *Broker) ownerOf(key string) *attachment {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.owners[key]
}

// Fence implements [broker.Mailbox].
func (a *attachment) Fence() uint64 { return a.fence }

// err says why the mailbox is no longer a's.
func (a *attachment) err() error {
	a.telling.Lock()
	defer a.telling.Unlock()
	return a.lost
}

// Read implements [broker.Mailbox].
func (a *attachment) Read(ctx context.Context, after uint64, limit, size int) (broker.Page, error) {
	if err := ctx.Err(); err != nil {
		return broker.Page{}, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
	if err := a.err(); err != nil {
		return broker.Page{}, a.explain(err)
	}
	return a.read(after, limit, size)
}

func (a *attachment) read(after uint64, limit, size int) (page broker.Page, err error) {
	page.Through = after
	err = a.b.view(func(tx *bolt.Tx) error {
		counts := tx.Bucket(bucketCounts)
		c := tx.Bucket(bucketEntries).Cursor()
		prefix := []byte(a.key)
		for k, v := c.Seek(withSequence(a.key, after+1)); k != nil && bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8; k, v = c.Next() {
			if page.More = len(page.Entries) >= limit; page.More {
				return nil
			}
			e, err := readEntry(k, bytes.Clone(v), counts)
			if err != nil {
				return err
			}
			if size -= len(e.Message.Body); size < 0 && len(page.Entries) > 0 {
				page.More = true
				return nil
			}
			page.Entries = append(page.Entries, e)
			page.Through = e.Seq
		}
		return nil
	})
	if err != nil {
		return broker.Page{}, a.explain(err)
	}
	return page, nil
}

// Leased implements [broker.Mailbox]: the only store there is has told a by now of whoever came after it.
func (a *attachment) Leased() bool { return true }

func (a *attachment) explain(err error) error {
	return fmt.Errorf("mailbox %s of channel %s: %w", a.id, a.channel, err)
}

// Settle implements [broker.Mailbox].
func (a *attachment) Settle(ctx context.Context, outcomes []broker.Outcome) ([]broker.Verdict, error) {
	verdicts, err := ask(ctx, a.b, func(t *batch) ([]broker.Verdict, error) { return t.settle(a, outcomes) })
	if err != nil {
		return nil, a.explain(err)
	}
	return verdicts, nil
}

// Detach implements [broker.Mailbox].
func (a *attachment) Detach(ctx context.Context, counts []broker.Outcome) error {
	err := a.b.do(ctx, func(t *batch) error {
		if _, err := t.settle(a, counts); err != nil {
			return err
		}
		return t.detach(a)
	})
	a.b.dropOwner(a)
	a.telling.Lock()
	if a.lost == nil {
		a.lost = broker.ErrClosed
	}
	a.telling.Unlock()
	if err != nil {
		return a.explain(err)
	}
	return nil
}

// The calls to an owner. Its panics are its own affair.

func (a *attachment) guard() {
	if v := recover(); v != nil {
		a.b.o.Logger.Error("the owner of a mailbox panicked", "channel", a.channel, "id", a.id, "panic", v, "stack", string(debug.Stack()))
	}
}

// offer hands the owner an entry that was stored.
func (a *attachment) offer(prev uint64, e broker.Entry) {
	defer a.guard()
	if a.err() == nil {
		a.owner.Offer(prev, e)
	}
}

func (a *attachment) lose(err error) {
	defer a.guard()
	a.telling.Lock()
	defer a.telling.Unlock()
	if a.lost == nil {
		a.lost = err
		a.owner.Lost(err)
	}
}

func (a *attachment) withdraw(seq uint64, mid string) (withdrawn bool) {
	defer a.guard()
	return a.owner.Withdraw(seq, mid)
}

func (a *attachment) attempts(seq uint64, mid string) (n int, inFlight bool) {
	defer a.guard()
	return a.owner.Attempts(seq, mid)
}
