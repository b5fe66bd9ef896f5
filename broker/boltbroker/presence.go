package boltbroker

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

// Online implements [broker.Store].
func (b *Broker) Online(ctx context.Context, channel, id string) (broker.Presence, error) {
	key := boxKey(channel, id)
	online, err := b.presence(ctx, []string{key})
	if err == nil && len(online) == 0 {
		err = fmt.Errorf("%w: nobody has %s of channel %s", broker.ErrNotFound, id, channel)
	}
	if err != nil {
		return broker.Presence{}, err
	}
	return online[0], nil
}

// presence says who has the mailboxes with these keys, where anybody has.
func (b *Broker) presence(ctx context.Context, keys []string) ([]broker.Presence, error) {
	return ask(ctx, b, func(t *batch) (online []broker.Presence, err error) {
		for _, key := range keys {
			box := t.ix.boxes[key]
			if box == nil || box.owner == nil {
				continue
			}
			a := box.owner
			online = append(online, broker.Presence{
				ID: box.id, Node: b.o.Node, Address: a.peer, Since: a.since, Window: a.window, Pending: len(box.slots),
			})
		}
		return online, nil
	})
}

// Presence implements [broker.Store].
func (b *Broker) Presence(ctx context.Context, channel string, q broker.PresenceQuery) (page broker.PresencePage, err error) {
	after, err := base64.RawURLEncoding.DecodeString(q.After)
	if err != nil {
		return page, fmt.Errorf("%w: %q is not the end of a page", broker.ErrNotFound, q.After)
	}
	if q.Limit <= 0 {
		q.Limit = 100
	}
	b.mu.Lock()
	var keys []string
	for key, a := range b.owners {
		if a.channel == channel && key > string(after) {
			keys = append(keys, key)
		}
	}
	b.mu.Unlock()
	slices.Sort(keys)
	if limit := min(q.Limit, 1000); len(keys) > limit {
		keys = keys[:limit]
		page.Next = base64.RawURLEncoding.EncodeToString([]byte(keys[limit-1]))
	}
	page.Online, err = b.presence(ctx, keys)
	return page, err
}
