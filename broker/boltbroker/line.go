package boltbroker

import (
	"context"
	"fmt"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

// occupied returns an error if a may not have the mailbox in this mode, and puts it in line if it is to wait. The line is
// in memory only: who waits in it ends with the process.
func (t *batch) occupied(a *attachment, mode broker.AttachMode) error {
	if mode == broker.Takeover {
		return nil
	}
	box := t.ix.boxes[a.key]
	free := box == nil || box.owner == nil // an owner of an earlier process is none any more
	b := t.b
	b.mu.Lock()
	defer b.mu.Unlock()
	line := b.lines[a.key]
	at := slices.IndexFunc(line, func(other *attachment) bool { return other.owner == a.owner })
	switch {
	case free && (mode == broker.Reject || at == 0 || len(line) == 0):
		return nil
	case mode == broker.Standby && at < 0 && len(line) >= broker.MaxStandby:
		return fmt.Errorf("%w: %s of channel %s", broker.ErrLineFull, a.id, a.channel)
	case mode == broker.Standby && at < 0:
		b.lines[a.key] = append(line[:len(line):len(line)], a)
	}
	return fmt.Errorf("%w: %s of channel %s", broker.ErrHeld, a.id, a.channel)
}

// promote rings for the first in line for a mailbox that has no owner.
func (b *Broker) promote(key string) {
	b.mu.Lock()
	line := b.lines[key]
	b.mu.Unlock()
	if len(line) > 0 {
		line[0].ring()
	}
}

// leave takes an owner out of the line.
func (b *Broker) leave(key string, owner broker.Owner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(b.lines[key]), func(a *attachment) bool { return a.owner == owner })
	if len(rest) == 0 {
		delete(b.lines, key)
		return
	}
	b.lines[key] = rest
}

// Leave implements [broker.Store].
func (b *Broker) Leave(_ context.Context, channel, id string, owner broker.Owner) error {
	key := boxKey(channel, id)
	b.leave(key, owner)
	if b.ownerOf(key) == nil {
		b.promote(key)
	}
	return nil
}

func (a *attachment) ring() {
	defer a.guard()
	if a.err() == nil {
		a.owner.Ring()
	}
}
