package brokertest

import (
	"context"
	"fmt"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

// occupied returns an error if a may not have the mailbox in this mode, and puts it in line if it is to wait.
func (m *Memory) occupied(b *box, a *attachment, mode broker.AttachMode) error {
	if mode == broker.Takeover {
		return nil
	}
	b.line = slices.DeleteFunc(b.line, func(other *attachment) bool { return other.node.ended != nil })
	at := slices.IndexFunc(b.line, func(other *attachment) bool { return other.owner == a.owner })
	free := b.owner == nil || b.owner.node.ended != nil
	switch {
	case free && (mode == broker.Reject || at == 0 || len(b.line) == 0):
		if at == 0 {
			b.line = b.line[1:]
		}
		return nil
	case mode == broker.Standby && at < 0 && len(b.line) >= broker.MaxStandby:
		return fmt.Errorf("%w: %s of %s", broker.ErrLineFull, a.id, a.channel)
	case mode == broker.Standby && at < 0:
		b.line = append(b.line, a)
	}
	return fmt.Errorf("%w: %s of %s", broker.ErrHeld, a.id, a.channel)
}

// promote rings for the first in line.
func (b *box) promote() {
	if len(b.line) > 0 && !b.line[0].node.mute {
		first := b.line[0]
		first.node.bell.ring(first.ring)
	}
}

// Leave implements [broker.Store].
func (m *Memory) Leave(ctx context.Context, channel, id string, owner broker.Owner) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	b := m.boxes[address{channel, id}]
	if b == nil {
		return nil
	}
	b.line = slices.DeleteFunc(b.line, func(a *attachment) bool { return a.owner == owner })
	if b.owner == nil {
		b.promote()
	}
	m.tidy(address{channel, id})
	return nil
}
