package redisbroker

import (
	"context"
	"errors"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

// Find implements [broker.Store].
func (b *Broker) Find(ctx context.Context, channel, ref string, limit int) ([]broker.Record, error) {
	leave, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	s := b.store
	if limit <= 0 || ref == "" {
		return nil, nil
	}
	listed, err := s.command(ctx, "ZREVRANGE", s.names.ref(channel, ref), 0, -1)
	if err != nil {
		return nil, err
	}
	all, err := s.listed(ctx, channel, ref, replyOf(listed))
	if err != nil {
		return nil, err
	}
	// The list is in the order of the calls that wrote it, and a message that is appended again, or dies, is listed anew.
	slices.SortStableFunc(all, func(a, b record) int { return b.Stored.Compare(a.Stored) })
	records := make([]broker.Record, min(limit, len(all)))
	for i := range records {
		if records[i], err = s.live(ctx, all[i]); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// listed looks up the messages that a ref's list names, each once.
func (s *store) listed(ctx context.Context, channel, ref string, list *reply) (all []record, err error) {
	known := make(map[string]bool)
	for list.more() {
		var ops []*op
		var hints []string
		for list.more() && len(ops) < 100 {
			if hint := list.text(); hint != "" {
				if _, err := broker.RecordOf(hint); err == nil {
					ops, hints = append(ops, s.lookupOp(hint, len(hint) == recordLength)), append(hints, hint)
				}
			}
		}
		for i, err := range s.calls(ctx, ops) {
			if err != nil {
				return nil, err
			}
			rec, err := s.found(hints[i], ops[i])
			if errors.Is(err, broker.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if rec.Channel == channel && rec.Ref == ref && !known[rec.MID] {
				known[rec.MID] = true
				all = append(all, rec)
			}
		}
	}
	return all, list.err
}
