package boltbroker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/caddyrelay/relay/broker"
)

// Start opens the file, or says why it cannot be opened and what to do. Without it, the first use does. Once it
// has worked it does nothing; after an error it can be tried again.
func (b *Broker) Start() error {
	if b.started.Load() {
		return nil
	}
	b.starting.Lock()
	defer b.starting.Unlock()
	select {
	case <-b.stopping:
		return fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	default:
	}
	if b.started.Load() {
		return nil
	}
	if b.o.Path == "" {
		return fmt.Errorf("%w: %w: the embedded broker has no file: set its path", broker.ErrRefused, broker.ErrUnavailable)
	}
	db, ix, err := b.openFile()
	if err != nil {
		return err
	}
	b.db = db
	b.clock.advance(int64(ix.high)) //nolint:gosec // microseconds since 1970
	b.loops.Go(func() { b.commitLoop(ix) })
	b.started.Store(true)
	b.o.Logger.Info("the store is open", "path", b.o.Path, "durability", string(b.durability()))
	return nil
}

// closeStore ends the committer, tells the owners, and closes the file.
func (b *Broker) closeStore() error {
	close(b.stopping)
	b.starting.Lock()
	defer b.starting.Unlock()
	b.loops.Wait()
	close(b.stopped)
	b.mu.Lock()
	owners, lines := b.owners, b.lines
	b.owners, b.lines = make(map[string]*attachment), make(map[string][]*attachment)
	b.mu.Unlock()
	for _, a := range owners {
		a.lose(broker.ErrClosed)
	}
	for _, line := range lines {
		for _, a := range line {
			a.lose(broker.ErrClosed)
		}
	}
	if b.db == nil {
		return nil
	}
	return b.db.Close()
}

func isClosed(err error) bool {
	return errors.Is(err, bolterrors.ErrDatabaseNotOpen) || errors.Is(err, bolterrors.ErrTxClosed)
}

// SetPolicies implements [broker.Store].
func (b *Broker) SetPolicies(policies map[string]broker.Policy) {
	all := make(map[string]broker.Policy, len(policies))
	for channel, p := range policies {
		all[channel] = p.WithDefaults()
	}
	b.policies.Store(&all)
}

func (b *Broker) policy(channel string) broker.Policy {
	if all := b.policies.Load(); all != nil {
		if p, ok := (*all)[channel]; ok {
			return p
		}
	}
	return broker.Policy{}.WithDefaults()
}

// durability is what every answer names.
func (b *Broker) durability() broker.Durability {
	if b.o.NoSync {
		return broker.Memory
	}
	return broker.Fsync
}

// Ready implements [broker.Store].
func (b *Broker) Ready() error {
	select {
	case <-b.stopping:
		return broker.ErrClosed
	default:
	}
	if err := b.broken.Load(); err != nil {
		return *err
	}
	if !b.started.Load() {
		return fmt.Errorf("%w: the store %s is not open yet", broker.ErrUnavailable, b.o.Path)
	}
	if all := b.policies.Load(); all != nil {
		for channel, p := range *all {
			if !b.durability().Meets(p.Durability) {
				return fmt.Errorf("%w: channel %s demands durability %s, and the embedded broker gives %s", broker.ErrUnavailable,
					channel, p.Durability, b.durability())
			}
		}
	}
	return nil
}

// Now implements [broker.Store].
func (b *Broker) Now() time.Time { return time.UnixMicro(b.clock.advance(b.o.Clock().UnixMicro())) }

// Usage implements [broker.Store].
func (b *Broker) Usage(ctx context.Context) (map[string]broker.Usage, error) {
	usage, err := ask(ctx, b, func(t *batch) (map[string]broker.Usage, error) {
		usage := make(map[string]broker.Usage)
		for channel, u := range t.ix.usage {
			if *u != (broker.Usage{}) {
				usage[channel] = *u
			}
		}
		for _, box := range t.ix.boxes {
			if len(box.slots) == 0 {
				continue
			}
			// A sequence is about the time at which it was given out.
			u, at := usage[box.channel], time.UnixMicro(int64(box.slots[0].seq))
			if u.Oldest.IsZero() || at.Before(u.Oldest) {
				u.Oldest = at
				usage[box.channel] = u
			}
		}
		return usage, nil
	})
	if err != nil {
		return nil, fmt.Errorf("the usage of the store: %w", err)
	}
	return usage, nil
}

// Endings implements [broker.Store].
func (b *Broker) Endings() map[broker.Ending]uint64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return maps.Clone(b.endings)
}
