package redisbroker

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyrelay/relay/broker"
)

// parsePresence reads what attach.lua writes: who has a mailbox.
func parsePresence(id, text string) (owner string, p broker.Presence, err error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 {
		return "", p, fmt.Errorf("%w: the presence of %s in redis is %q", broker.ErrFormat, id, text)
	}
	since, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return "", p, fmt.Errorf("%w: the presence of %s in redis is %q", broker.ErrFormat, id, text)
	}
	window, _ := strconv.Atoi(lines[2])
	owner = lines[0]
	return owner, broker.Presence{ID: id, Node: nodeOf(incarnationOf(owner)), Address: lines[3], Since: fromMillis(since), Window: window}, nil
}

// Online implements [broker.Store].
func (b *Broker) Online(ctx context.Context, channel, id string) (broker.Presence, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.Presence{}, err
	}
	defer leave()
	s := b.store
	at := placeOf(channel, id)
	v, err := s.command(ctx, "HGET", s.names.presence(at.part, channel), id)
	if err != nil {
		return broker.Presence{}, err
	}
	if text, there := v.(string); there {
		online, err := s.online(ctx, channel, []string{id, text})
		if err != nil {
			return broker.Presence{}, err
		}
		if len(online) == 1 {
			return online[0], nil
		}
	}
	return broker.Presence{}, fmt.Errorf("%w: nobody has %s of channel %s", broker.ErrNotFound, id, channel)
}

// online turns IDs, each with what is written of it, into those that are there: not on a node that has died.
func (s *store) online(ctx context.Context, channel string, pairs []string) ([]broker.Presence, error) {
	var all []broker.Presence
	var ops []*op
	for i := 0; i+1 < len(pairs); i += 2 {
		owner, p, err := parsePresence(pairs[i], pairs[i+1])
		if err != nil {
			return nil, err
		}
		alive, err := s.alive(ctx, owner)
		if err != nil {
			return nil, err
		}
		if alive {
			all = append(all, p)
			ops = append(ops, newOp(nil, nil, "HGET", s.names.mailbox(placeOf(channel, p.ID))[0], "n"))
		}
	}
	for i, err := range s.calls(ctx, ops) {
		if err != nil {
			return nil, err
		}
		if text, there := ops[i].reply.(string); there {
			all[i].Pending, _ = strconv.Atoi(text)
		}
	}
	return all, nil
}

// Presence implements [broker.Store]. The end of a page is a partition and a cursor in it.
func (b *Broker) Presence(ctx context.Context, channel string, q broker.PresenceQuery) (page broker.PresencePage, err error) {
	leave, err := b.enter()
	if err != nil {
		return page, err
	}
	defer leave()
	s := b.store
	part, cursor := 0, "0"
	if q.After != "" {
		text, rest, _ := strings.Cut(q.After, ".")
		if part, err = strconv.Atoi(text); err != nil || part < 0 || part >= partitions {
			return page, fmt.Errorf("%w: %q is not the end of a page", broker.ErrNotFound, q.After)
		}
		if _, err := strconv.ParseUint(rest, 10, 64); err != nil {
			return page, fmt.Errorf("%w: %q is not the end of a page", broker.ErrNotFound, q.After)
		}
		cursor = rest
	}
	limit := min(cmp.Or(max(q.Limit, 0), 100), 1000)
	var pairs []string
	for part < partitions && len(pairs)/2 < limit {
		r, err := s.call(ctx, scriptPresence, []string{s.names.presence(part, channel)}, cursor, limit-len(pairs)/2)
		if err != nil {
			return page, err
		}
		s.clock.set(r.number())
		for cursor = r.text(); r.more(); {
			pairs = append(pairs, r.text())
		}
		if r.err != nil {
			return page, s.wrong("presence", r.err)
		}
		if cursor == "0" {
			part++
		}
	}
	if part < partitions {
		page.Next = strconv.Itoa(part) + "." + cursor
	}
	page.Online, err = s.online(ctx, channel, pairs)
	return page, err
}
