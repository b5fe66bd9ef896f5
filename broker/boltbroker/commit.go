package boltbroker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// maxQueue bounds the operations that wait for the commit before them.
const maxQueue = 4096

// operation is something that is to be in the next commit.
type operation struct {
	// run checks, and then writes. When it returns an error it has written nothing, so that one bad operation
	// does not harm those that are committed with it.
	run   func(*batch) error
	state atomic.Uint32
	done  chan error
}

// The states of an operation. Whoever moves it out of waiting decides whether it is done.
const (
	waiting = iota
	taken
	abandoned
)

// batch is the operations that are committed together.
type batch struct {
	b     *Broker
	tx    *bolt.Tx
	id    int // of the transaction
	ix    *index
	now   time.Time
	wrote bool
	dirty map[string]bool // channels whose number of records changed
	after []func()        // to be called once it is on the disk

	failure error // the first that the file gave
}

// writer writes to a bucket. Operations check before they write, so an error here is the file's, and fails the
// whole batch.
type writer struct {
	t      *batch
	bucket *bolt.Bucket
}

// bucket returns a bucket to write to.
func (t *batch) bucket(name []byte) writer {
	t.wrote = true
	return writer{t, t.tx.Bucket(name)}
}

// Put stores a value.
func (w writer) Put(key, value []byte) error { return w.t.failed(w.bucket.Put(key, value)) }

// Delete removes a key, if it is there.
func (w writer) Delete(key []byte) error { return w.t.failed(w.bucket.Delete(key)) }

func (t *batch) failed(err error) error {
	if err != nil && t.failure == nil {
		t.failure = err
	}
	return err
}

// then has f called once all of the batch is on the disk.
func (t *batch) then(f func()) { t.after = append(t.after, f) }

// do has the committer run an operation, and waits until it is on the disk.
func (b *Broker) do(ctx context.Context, run func(*batch) error) error {
	select {
	case <-b.stopping:
		return fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	default:
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w: %w", broker.ErrRefused, broker.ErrUnavailable, err)
	}
	if err := b.Start(); err != nil {
		return err
	}
	o := &operation{run: run, done: make(chan error, 1)}
	select {
	case b.queue <- o:
	case <-b.stopping:
		return fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w: the store %s does not keep up: %w", broker.ErrRefused, broker.ErrUnavailable, b.o.Path, ctx.Err())
	}
	select {
	case err := <-o.done:
		return err
	case <-b.stopped: // it may have come into the queue behind the committer's back
		if o.state.CompareAndSwap(waiting, abandoned) {
			return fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
		}
		return <-o.done
	case <-ctx.Done():
		if o.state.CompareAndSwap(waiting, abandoned) {
			return fmt.Errorf("%w: %w: the store %s did not come to it: %w", broker.ErrRefused, broker.ErrUnavailable, b.o.Path, ctx.Err())
		}
		return fmt.Errorf("%w: the store %s did not answer in time: %w", broker.ErrUnavailable, b.o.Path, ctx.Err())
	}
}

// ask is do for operations that return something. When the caller stops waiting, the operation may still run: what it
// returns goes to memory that nobody looks at any more.
func ask[T any](ctx context.Context, b *Broker, run func(*batch) (T, error)) (T, error) {
	var out, none T
	err := b.do(ctx, func(t *batch) (err error) {
		out, err = run(t)
		return err
	})
	if err != nil {
		return none, err
	}
	return out, nil
}

// commitLoop commits what waits, all of it in one transaction with one fsync, and what came meanwhile in the next:
// the busier, the larger the batches, and nobody waits for a timer.
func (b *Broker) commitLoop(ix *index) {
	tick := time.NewTicker(b.o.SweepInterval)
	defer tick.Stop()
	for {
		select {
		case first := <-b.queue:
			b.commit(ix, b.collect(first))
		case <-tick.C:
			ix.compact()
			for b.commit(ix, []*operation{{run: sweep, done: make(chan error, 1)}}) {
				// Between two steps of a long sweep others get their turn.
				select {
				case first := <-b.queue:
					b.commit(ix, b.collect(first))
				default:
				}
			}
		case <-b.stopping:
			b.refuseQueued()
			return
		}
	}
}

// errMore is what a sweep returns that has not come to its end; it has written something all the same.
var errMore = errors.New("more is due")

// refuseQueued answers what came too late.
func (b *Broker) refuseQueued() {
	for {
		select {
		case o := <-b.queue:
			o.state.Store(taken)
			o.done <- fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
		default:
			return
		}
	}
}

// collect takes what waits behind first.
func (b *Broker) collect(first *operation) []*operation {
	operations := make([]*operation, 0, 16)
	for o := first; ; {
		if o.state.CompareAndSwap(waiting, taken) {
			operations = append(operations, o)
		}
		if len(operations) >= b.o.BatchLimit {
			return operations
		}
		select {
		case o = <-b.queue:
		default:
			return operations
		}
	}
}

// commit runs operations in one transaction and answers them. It reports whether one of them
// returned errMore.
//
// A full disk fails a commit before anything of it counts: the file is as it was, and the next one may find room.
//
// When the commit fails otherwise nobody knows what of it is on the disk: after a failed fsync the kernel takes the pages for
// clean, and a later fsync would succeed without writing them. So nothing more is written, nor accepted, until a new
// process has opened the file and looked at what is there.
func (b *Broker) commit(ix *index, operations []*operation) (more bool) {
	if len(operations) == 0 {
		return false
	}
	if err := b.broken.Load(); err != nil {
		answer(operations, fmt.Errorf("%w: %w", broker.ErrRefused, *err))
		return false
	}
	results := make([]error, len(operations))
	t, err := b.begin(ix)
	if err == nil {
		for i, o := range operations {
			results[i] = o.run(t)
		}
		err = t.end()
	}
	if err != nil && b.recover(ix, t, err) {
		answer(operations, fmt.Errorf("%w: %w: the disk of the store %s is full: %w: make room", broker.ErrRefused,
			broker.ErrUnavailable, b.o.Path, err))
		return false
	}
	if err != nil {
		err = fmt.Errorf("%w: the store %s failed: %w: see to the disk and restart Caddy; until then nothing is accepted",
			broker.ErrUnavailable, b.o.Path, err)
		b.broken.Store(&err)
		b.o.Logger.Error("the store failed; publishers are answered 503 until Caddy is restarted", "path", b.o.Path, "error", err)
		answer(operations, err)
		return false
	}
	if b.full.Swap(false) && t.wrote {
		b.o.Logger.Info("the disk has room again", "path", b.o.Path)
	}
	for _, f := range t.after {
		f()
	}
	for i, o := range operations {
		if results[i] == errMore { //nolint:errorlint // identity
			results[i], more = nil, true
		}
		o.done <- results[i]
	}
	return more
}

// recover goes on after a commit that failed for want of room, if it is certain that nothing of it is in the file. It
// returns false if the broker cannot go on.
func (b *Broker) recover(ix *index, t *batch, failure error) bool {
	if t == nil || !isFull(failure) {
		return false
	}
	fresh := newIndex() // the old one has what was not written
	err := b.db.View(func(tx *bolt.Tx) error {
		if tx.ID() >= t.id {
			return errors.New("it was written all the same")
		}
		return fresh.read(tx)
	})
	if err != nil {
		return false
	}
	b.mu.Lock()
	for _, a := range b.owners {
		box := fresh.box(a.channel, a.id)
		box.owned, box.owner, box.window = true, a, a.window
	}
	b.mu.Unlock()
	*ix = *fresh
	if !b.full.Swap(true) { // and not for each attempt
		b.o.Logger.Error("the disk is full; publishers are answered 503 until there is room", "path", b.o.Path, "error", failure)
	}
	return true
}

// isFull reports whether a write found no room. An fsync that says so is another matter: it comes without a path.
func isFull(err error) bool {
	var path *fs.PathError
	if errors.As(err, &path) {
		return errors.Is(path.Err, syscall.ENOSPC) || errors.Is(path.Err, syscall.EFBIG) || errors.Is(path.Err, errQuota)
	}
	return strings.HasPrefix(err.Error(), "file resize error: ")
}

func answer(operations []*operation, err error) {
	for _, o := range operations {
		o.done <- err
	}
}

func (b *Broker) begin(ix *index) (*batch, error) {
	tx, err := b.db.Begin(true)
	if err != nil {
		return nil, err
	}
	return &batch{b: b, tx: tx, id: tx.ID(), ix: ix, now: b.Now(), dirty: make(map[string]bool)}, nil
}

// end commits, unless nothing was written.
func (t *batch) end() error {
	if !t.wrote {
		return t.tx.Rollback()
	}
	meta := t.tx.Bucket(bucketMeta)
	err := t.failure
	if err == nil {
		err = meta.Put(keyHigh, binary.BigEndian.AppendUint64(nil, t.ix.high))
	}
	for channel := range t.dirty {
		r := newRow()
		r.putInt(int64(t.ix.of(channel).Records))
		err = errors.Join(err, meta.Put(recordsKey(channel), r.data))
	}
	if err == nil && t.b.failCommit != nil { // tests
		err = t.b.failCommit()
	}
	if err == nil {
		err = t.tx.Commit()
	}
	if err != nil {
		_ = t.tx.Rollback() // it may be closed already
	}
	return err
}
