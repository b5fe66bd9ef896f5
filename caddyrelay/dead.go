package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// DeadLetters is how other Caddy modules look at the dead letters of an at_least_once channel, send them
// again or drop them. The admin endpoint uses it too. It is safe for concurrent use.
type DeadLetters struct {
	node       *node
	generation *generation
	channel    string
}

// DeadLetters returns the dead letters of a channel. Whether there is such a channel is found out by
// its methods, whose errors wrap those of [broker.Store].
func (a *App) DeadLetters(channel string) *DeadLetters {
	return &DeadLetters{node: a.node, generation: a.generation, channel: channel}
}

func (d *DeadLetters) store() (broker.Store, error) {
	g, err := d.node.store(d.generation, d.channel)
	if err != nil {
		return nil, err
	}
	return g.store, nil
}

// List returns a page of dead letters, oldest first, without their bodies.
func (d *DeadLetters) List(ctx context.Context, q broker.DeadQuery) (broker.DeadPage, error) {
	store, err := d.store()
	if err != nil {
		return broker.DeadPage{}, err
	}
	return store.DeadLetters(ctx, d.channel, q)
}

// Get returns one dead letter with its body.
func (d *DeadLetters) Get(ctx context.Context, mid string) (broker.Record, *broker.Message, error) {
	store, err := d.store()
	if err != nil {
		return broker.Record{}, nil, err
	}
	rec, err := d.record(ctx, store, mid)
	if err != nil {
		return rec, nil, err
	}
	m, err := store.Content(ctx, mid)
	return rec, m, err
}

// record looks a dead letter of this channel up.
func (d *DeadLetters) record(ctx context.Context, store broker.Store, mid string) (broker.Record, error) {
	rec, err := store.Lookup(ctx, mid)
	if err == nil && (rec.Channel != d.channel || rec.State != broker.StateDead) {
		err = fmt.Errorf("%w among the dead letters of channel %s: %s", broker.ErrNotFound, d.channel, mid)
	}
	return rec, err
}

// Resend stores a dead letter again, under its own MID. ttl is its new deadline; zero means none.
func (d *DeadLetters) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	store, err := d.store()
	if err != nil {
		return broker.Stored{}, err
	}
	if _, err := d.record(ctx, store, mid); err != nil {
		return broker.Stored{}, err
	}
	return store.Resend(ctx, mid, ttl)
}

// Drop removes a dead letter for good.
func (d *DeadLetters) Drop(ctx context.Context, mid string) error {
	store, err := d.store()
	if err != nil {
		return err
	}
	if _, err := d.record(ctx, store, mid); err != nil {
		return err
	}
	return store.Drop(ctx, mid)
}

// Each calls do with the MID of every dead letter that q selects, at most rate times a second (0: as fast as it
// can), and returns how many there were. What is added meanwhile may be missed. It stops
// at the first error of do other than [broker.ErrNotFound].
func (d *DeadLetters) Each(ctx context.Context, q broker.DeadQuery, rate int, do func(mid string) error) (int, error) {
	var tick <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(rate))
		defer t.Stop()
		tick = t.C
	}
	done := 0
	// A letter that dies again meanwhile must not be taken a second time.
	if q.Before.IsZero() {
		store, err := d.store()
		if err != nil {
			return 0, err
		}
		q.Before = store.Now()
	}
	for {
		page, err := d.List(ctx, q)
		if err != nil {
			return done, err
		}
		for _, letter := range page.Letters {
			if err := do(letter.MID); err != nil && !errors.Is(err, broker.ErrNotFound) {
				return done, err
			}
			done++
			if tick == nil {
				continue
			}
			select {
			case <-tick:
			case <-ctx.Done():
				return done, ctx.Err()
			}
		}
		if page.Next == "" {
			return done, nil
		}
		q.After = page.Next
	}
}
