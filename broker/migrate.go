package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	hashing "hash"
	"time"
)

// Exporter is a store that nobody uses, and that can be read from end to end.
type Exporter interface {
	// Total is how many items there are, roughly: records whose time is over are not exported.
	Total() int

	// Export calls take with everything that is kept, some items at a time: first the records of finished messages, then
	// dead letters, oldest first, then the unfinished messages, mailbox by mailbox, each in its order. It ends with the
	// first error of take.
	Export(ctx context.Context, take func([]Item) error) error

	// Move says what was noted by SetMove, if anything was.
	Move() (Move, bool)

	// SetMove notes durably that the store moves, or has moved. From then on no broker opens it.
	SetMove(Move) error
}

// Importer is a store that takes what another one has kept. It may hold messages, and be in use elsewhere.
type Importer interface {
	// Identity returns the name of the store: the same for all that look at it, as long as it is not emptied, whatever
	// it is reached by. It returns an error if the store cannot take messages of these channels.
	Identity(ctx context.Context, channels []string) (string, error)

	// Import stores items as they are, except that a mailbox's come behind what is in it already. What is known
	// by its MID is passed over, so an Import can be repeated. Limits are not looked at.
	Import(ctx context.Context, items []Item) error

	// ReadBack returns what the store keeps of the messages of items: for each an item, or nil.
	ReadBack(ctx context.Context, items []Item) ([]*Item, error)

	// Prove calls compare, and returns nil if it does and what it has seen is counted rightly and as durable as the store
	// can promise. It returns [ErrMoveLost] if the store may have lost some of it meanwhile.
	Prove(ctx context.Context, channels []string, compare func() error) error
}

// Move says where a store's messages went.
type Move struct {
	To    string // what its users call it
	Store string // its Identity
	Began time.Time
	Done  time.Time // zero: the copy is not complete
}

// Moved is what a migration did.
type Moved struct {
	Items    int    // that were compared
	Ended    int    // of them, those that had gone on in the new store before they could be compared
	Checksum string // SHA-256 of what both stores have
}

// Migration says how to migrate.
type Migration struct {
	From Exporter
	To   Importer

	// Name is what users call the store that the messages go to.
	Name string

	// Channels are those that the new store will serve.
	Channels []string

	// Patience is how long the new store may be unreachable. Default 30 s.
	Patience time.Duration

	// Progress is called now and then with what is done and how much. Nil: nobody is told.
	Progress func(what string, done int)

	// Now is the time. Default: To's, if it has a clock, otherwise [time.Now].
	Now func() time.Time
}

// Errors of a migration, wrapped with what happened.
var (
	// ErrMovedElsewhere: the messages went, or began to go, to another store.
	ErrMovedElsewhere = errors.New("the store has moved elsewhere")

	// ErrMoveLost: what was copied is not in the new store any more, such as after a failover.
	ErrMoveLost = errors.New("the new store has lost what was copied")

	// ErrMoveDiffers: what is in the new store is not what was copied.
	ErrMoveDiffers = errors.New("the copy differs")
)

// moveRounds bounds how often a copy is begun again because the new store lost some of it.
const moveRounds = 3

// Run copies all that From keeps to To, compares, and notes in From that it has moved. It can be run again at any time,
// also after a crash: what is copied already is passed over. When From has moved to To already it does nothing.
func (m Migration) Run(ctx context.Context) (Moved, error) {
	if m.Now == nil {
		m.Now = time.Now
		if clock, ok := m.To.(interface{ Now() time.Time }); ok {
			m.Now = clock.Now // it decides when records end
		}
	}
	if m.Patience <= 0 {
		m.Patience = 30 * time.Second
	}
	if m.Progress == nil {
		m.Progress = func(string, int) {}
	}
	identity, err := m.To.Identity(ctx, m.Channels)
	if err != nil {
		return Moved{}, err
	}
	move, begun := m.From.Move()
	switch {
	case begun && move.Store != identity:
		return Moved{}, fmt.Errorf("%w: to %s", ErrMovedElsewhere, move.To)
	case begun && !move.Done.IsZero():
		return Moved{}, nil
	case !begun:
		move = Move{To: m.Name, Store: identity, Began: m.Now()}
		if err := m.From.SetMove(move); err != nil {
			return Moved{}, fmt.Errorf("noting that the move has begun: %w", err)
		}
	}
	moved, err := m.copy(ctx)
	for range moveRounds - 1 {
		if !errors.Is(err, ErrMoveLost) {
			break
		}
		moved, err = m.copy(ctx)
	}
	if err != nil {
		return moved, err
	}
	move.Done = m.Now()
	if err := m.From.SetMove(move); err != nil {
		return moved, fmt.Errorf("noting that the move is complete: %w", err)
	}
	return moved, nil
}

func (m Migration) copy(ctx context.Context) (moved Moved, err error) {
	done := 0
	err = m.From.Export(ctx, func(items []Item) error {
		if err := m.patiently(ctx, func() error { return m.To.Import(ctx, items) }); err != nil {
			return err
		}
		done += len(items)
		m.Progress("copied", done)
		return nil
	})
	if err != nil {
		return moved, fmt.Errorf("after %d messages: %w", done, err)
	}
	err = m.To.Prove(ctx, m.Channels, func() error {
		moved, err = m.compare(ctx)
		return err
	})
	return moved, err
}

func (m Migration) compare(ctx context.Context) (Moved, error) {
	c := comparison{want: sha256.New(), got: sha256.New()}
	err := m.From.Export(ctx, func(items []Item) error {
		var found []*Item
		err := m.patiently(ctx, func() (err error) {
			found, err = m.To.ReadBack(ctx, items)
			return err
		})
		if err != nil {
			return err
		}
		for i := range items {
			if err := c.add(&items[i], found[i], m.Now()); err != nil {
				return err
			}
		}
		m.Progress("compared", c.Items)
		return nil
	})
	if err != nil {
		return c.Moved, fmt.Errorf("comparing, after %d messages: %w", c.Items, err)
	}
	c.Checksum = hex.EncodeToString(c.want.Sum(nil))
	if got := hex.EncodeToString(c.got.Sum(nil)); got != c.Checksum {
		return c.Moved, fmt.Errorf("%w: the checksum is %s, and was %s", ErrMoveDiffers, got, c.Checksum)
	}
	return c.Moved, nil
}

// patiently repeats what could not reach the new store, for a while.
func (m Migration) patiently(ctx context.Context, try func() error) error {
	pause := 50 * time.Millisecond
	for began := time.Now(); ; pause = min(2*pause, time.Second) {
		err := try()
		if err == nil || !errors.Is(err, ErrUnavailable) || time.Since(began) > m.Patience {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
	}
}

// comparison is of what was copied with what is there.
type comparison struct {
	Moved
	want, got hashing.Hash
	box       [2]string // channel and destination of the last unfinished message
	seq       uint64    // its place in the new store
}

// add compares one item with what the new store has of it.
func (c *comparison) add(want, got *Item, now time.Time) error {
	c.Items++
	switch {
	case got == nil && !want.Kept.IsZero() && !want.Kept.After(now):
		c.Ended++ // the record's time is over
		return nil
	case got == nil:
		return fmt.Errorf("%w: message %s (channel %s, destination %s, %s) is not there", ErrMoveLost, want.MID, want.Channel, want.ID, want.State)
	case want.State.Finished() && want.State != StateDead && !got.State.Finished():
		return fmt.Errorf("%w: message %s (channel %s, destination %s) was %s, and waits to be delivered in the new store: an earlier copy was "+
			"begun and given up, and the old store was used meanwhile", ErrMoveDiffers, want.MID, want.Channel, want.ID, want.State)
	case wentOn(want, got):
		c.Ended++
		return nil
	}
	a, b := want.digest(), got.digest()
	if a != b {
		return fmt.Errorf("%w: message %s (channel %s, destination %s, %s) is not what it was", ErrMoveDiffers, want.MID, want.Channel, want.ID, want.State)
	}
	c.want.Write(a[:])
	c.got.Write(b[:])
	if want.State.Finished() {
		return nil
	}
	if box := [2]string{want.Channel, want.ID}; box != c.box {
		c.box, c.seq = box, 0
	}
	if got.Seq <= c.seq {
		return fmt.Errorf("%w: message %s (channel %s, destination %s) is not in its order", ErrMoveDiffers, want.MID, want.Channel, want.ID)
	}
	c.seq = got.Seq
	return nil
}

// wentOn reports whether the message is another state than the one that was copied, of those that come after it: its
// deadline passed, or another node of the new store had its mailbox.
func wentOn(want, got *Item) bool {
	if !want.State.Finished() {
		return got.State.Finished() || got.Tried.Attempts > want.Tried.Attempts
	}
	return want.State == StateDead && got.State != StateDead
}
