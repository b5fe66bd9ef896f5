package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// ReadBack implements [broker.Importer].
func (b *Broker) ReadBack(ctx context.Context, items []broker.Item) ([]*broker.Item, error) {
	leave, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	s := b.store
	rounds, err := crates(items)
	if err != nil {
		return nil, err
	}
	found := make([]*broker.Item, len(items))
	for some := range slices.Chunk(slices.Concat(rounds...), maxInFlight) {
		ops := make([]*op, len(some))
		for i, c := range some {
			keys, args := s.names.mailbox(c.place), make([]any, 0, len(c.items))
			for k := range c.items {
				key, aside := s.names.record(c.items[k].MID)
				keys, args = append(keys, key, aside), append(args, c.items[k].MID)
			}
			ops[i] = newOp(scriptImportRead, keys, args...)
			ops[i].size = importBytes / 4 // of the answer: so that few of them wait at once
		}
		for i, err := range s.calls(ctx, ops) {
			if err != nil {
				return nil, err
			}
			if err := s.unpack(some[i], replyOf(ops[i].reply), found); errors.Is(err, broker.ErrMoveDiffers) {
				return nil, err
			} else if err != nil {
				return nil, s.wrong("reading back", err)
			}
		}
	}
	return found, nil
}

// unpack reads the answer about a crate.
func (s *store) unpack(c *crate, r *reply, found []*broker.Item) error {
	now := r.number()
	s.clock.set(now)
	for k := range c.items {
		left, values := r.number(), make([]any, max(0, r.number()))
		for i := range values {
			values[i] = r.next()
		}
		entry, counts, letter := r.text(), r.text(), r.text()
		if r.err != nil {
			return r.err
		}
		item, err := itemOf(values, entry, counts, letter)
		if err != nil {
			return fmt.Errorf("message %s: %w", c.items[k].MID, err)
		}
		if item != nil && item.Message == nil && item.State.Finished() && left >= 0 {
			// Exactly, it was told Redis as the begin of a slot.
			slot := math.Round(float64(now/1000+left) / slotMillis)
			item.Kept = time.UnixMilli(int64(slot) * slotMillis)
		}
		found[c.at[k]] = item
	}
	return nil
}

// itemOf puts together what is kept of a message, or returns nil if nothing is.
func itemOf(values []any, entry, counts, letter string) (*broker.Item, error) {
	if len(values) == 0 && letter == "" {
		return nil, nil
	}
	var item broker.Item
	rec, err := parseRecord(&reply{values: values})
	if err != nil {
		return nil, err
	}
	item.Record = rec.Record
	for i := 0; i+1 < len(values); i += 2 {
		if field, _ := values[i].(string); field == "p" {
			fingerprint, _ := values[i+1].(string)
			item.Fingerprint = []byte(fingerprint)
		}
	}
	if letter != "" && (len(values) == 0 || rec.State == broker.StateDead) {
		d, err := parseLetter(letter)
		if err != nil {
			return nil, err
		}
		// The record is shorter lived, and says the same.
		item.Record = d.Record
		entry = letterEntry(letter)
	}
	if entry == "" {
		if item.State == broker.StateStored {
			return nil, fmt.Errorf("%w: it is not in its mailbox", broker.ErrMoveDiffers)
		}
		return &item, nil
	}
	e, err := parseEntry(entry, counts)
	if err != nil {
		return nil, err
	}
	item.Message, item.Seq = e.Message, e.Seq
	if item.State == broker.StateStored {
		item.Expires, item.Retain, item.Tried, item.Attempts = e.Expires, e.Retain, e.Counts, e.Attempts
	}
	return &item, nil
}

// bookTries is how often books are recounted that others write into meanwhile.
const bookTries = 20

// checkBooks recounts what is kept of channels.
func (s *store) checkBooks(ctx context.Context, channels []string) error {
	leave, err := s.b.enter()
	if err != nil {
		return err
	}
	defer leave()
	all, err := s.channels(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(k kept) bool { return !slices.Contains(channels, k.channel) })
	for range bookTries {
		if all, err = s.recount(ctx, all); err != nil || len(all) == 0 {
			return err
		}
	}
	s.b.o.Logger.Info("what redis counts could not be compared, as other nodes are at work", "address", s.b.o.Address)
	return nil
}

// recount compares what is counted, and returns where that changed under its hands.
func (s *store) recount(ctx context.Context, all []kept) (again []kept, err error) {
	for some := range slices.Chunk(all, maxInFlight) {
		lists := make([]*op, len(some))
		for i, k := range some {
			lists[i] = newOp(nil, nil, "ZRANGE", s.names.in(k.part, "o:"+k.channel), 0, -1)
		}
		if err := errors.Join(s.calls(ctx, lists)...); err != nil {
			return nil, err
		}
		ops := make([]*op, len(some))
		for i, k := range some {
			keys := []string{s.names.in(k.part, "n:"+k.channel), s.names.in(k.part, "o:"+k.channel), s.names.in(k.part, "d:"+k.channel)}
			var boxes []any
			r := replyOf(lists[i].reply)
			for r.more() {
				box := r.text()
				keys, boxes = append(keys, s.names.in(k.part, "m:"+box)), append(boxes, box)
			}
			if r.err != nil {
				return nil, s.wrong("recounting", r.err)
			}
			ops[i] = newOp(scriptBooks, keys, boxes...)
		}
		for i, err := range s.calls(ctx, ops) {
			if err != nil {
				return nil, err
			}
			r := replyOf(ops[i].reply)
			s.clock.set(r.number())
			switch wrong := r.text(); {
			case r.err != nil:
				return nil, s.wrong("recounting", r.err)
			case wrong == "moved":
				again = append(again, some[i])
			case wrong != "":
				return nil, fmt.Errorf("%w: redis at %s counts wrongly what it has of channel %s:%s", broker.ErrMoveDiffers, s.b.o.Address, some[i].channel, wrong)
			}
		}
	}
	return again, nil
}

// infoField returns a field of what INFO answers.
func infoField(text, field string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Interface guard
var _ broker.Importer = (*Broker)(nil)
