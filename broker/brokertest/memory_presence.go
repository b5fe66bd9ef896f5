package brokertest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

// presence says who has a mailbox, if anybody who is alive has.
func (b *box) presence(id string) (broker.Presence, bool) {
	a := b.owner
	if a == nil || a.node.ended != nil {
		return broker.Presence{}, false
	}
	return broker.Presence{ID: id, Node: a.node.o.Node, Address: a.peer, Since: a.since, Window: a.window, Pending: len(b.entries)}, true
}

// Online implements [broker.Store].
func (m *Memory) Online(ctx context.Context, channel, id string) (broker.Presence, error) {
	if err := m.enter(ctx); err != nil {
		return broker.Presence{}, err
	}
	defer m.mu.Unlock()
	if b := m.boxes[address{channel, id}]; b != nil {
		if p, online := b.presence(id); online {
			return p, nil
		}
	}
	return broker.Presence{}, fmt.Errorf("%w: nobody has %s of %s", broker.ErrNotFound, id, channel)
}

// Presence implements [broker.Store].
func (m *Memory) Presence(ctx context.Context, channel string, q broker.PresenceQuery) (page broker.PresencePage, err error) {
	if err := m.enter(ctx); err != nil {
		return page, err
	}
	defer m.mu.Unlock()
	if q.Limit <= 0 {
		q.Limit = 100
	}
	var ids []string
	for a := range maps.Keys(m.boxes) {
		if a.channel == channel && a.id > q.After {
			ids = append(ids, a.id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		if len(page.Online) == min(q.Limit, 1000) {
			page.Next = page.Online[len(page.Online)-1].ID
			return page, nil
		}
		if p, online := m.boxes[address{channel, id}].presence(id); online {
			page.Online = append(page.Online, p)
		}
	}
	return page, nil
}
