package redisbroker

import (
	"context"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// part is what is kept of a channel in one partition.
type part struct {
	pending, bytes, records, dead, mailboxes int64
	oldest                                   time.Time
}

// tally is what is kept of a channel: known from the last look, and from what this node did since.
type tally struct {
	parts map[int]part
}

func (t *tally) sum() (all part) {
	for _, p := range t.parts {
		all.pending += p.pending
		all.bytes += p.bytes
		all.records += p.records
		all.dead += p.dead
		all.mailboxes += p.mailboxes
		if !p.oldest.IsZero() && (all.oldest.IsZero() || p.oldest.Before(all.oldest)) {
			all.oldest = p.oldest
		}
	}
	return all
}

// count takes the counts of a mailbox's channel and partition from a script's answer.
func (s *store) count(at place, r *reply) {
	pending, bytes, records, dead := r.number(), r.number(), r.number(), r.number()
	if r.err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tallies[at.channel]
	if t == nil {
		t = &tally{parts: make(map[int]part)}
		s.tallies[at.channel] = t
	}
	p := t.parts[at.part]
	p.pending, p.bytes, p.records, p.dead = pending, bytes, records, dead
	t.parts[at.part] = p
}

// room returns what the partition of a mailbox may hold of its channel: what the policy allows, less what
// the other partitions hold, as far as this node knows.
func (s *store) room(at place, p broker.Policy) part {
	s.mu.Lock()
	defer s.mu.Unlock()
	var others part
	if t := s.tallies[at.channel]; t != nil {
		others = t.sum()
		own := t.parts[at.part]
		others.pending -= own.pending
		others.bytes -= own.bytes
		others.records -= own.records
		others.dead -= own.dead
	}
	return part{
		pending: int64(p.MaxChannelPending) - others.pending, bytes: p.MaxChannelBytes - others.bytes,
		records: int64(p.MaxRecords) - others.records, dead: int64(p.MaxDead) - others.dead,
	}
}

// kept is one channel in one partition.
type kept struct {
	channel string
	part    int
}

// channels returns all that anything is kept for.
func (s *store) channels(ctx context.Context) ([]kept, error) {
	ops := make([]*op, partitions)
	for part := range ops {
		ops[part] = newOp(nil, nil, "SMEMBERS", s.names.in(part, "channels"))
	}
	var all []kept
	for part, err := range s.calls(ctx, ops) {
		if err != nil {
			return nil, err
		}
		var names []any
		switch v := ops[part].reply.(type) {
		case []any:
			names = v
		case map[any]struct{}:
			for name := range v {
				names = append(names, name)
			}
		}
		for _, name := range names {
			if channel, ok := name.(string); ok {
				all = append(all, kept{channel, part})
			}
		}
	}
	return all, nil
}

// measure asks how much is kept, and forgets counts of records that have expired.
func (s *store) measure(ctx context.Context, some []kept) error {
	ops := make([]*op, len(some))
	for i, k := range some {
		ops[i] = newOp(scriptUsage, []string{s.names.in(k.part, "n:"+k.channel), s.names.in(k.part, "o:"+k.channel), s.names.in(k.part, "channels")}, k.channel)
	}
	for i, err := range s.calls(ctx, ops) {
		if err != nil {
			return err
		}
		r := replyOf(ops[i].reply)
		s.clock.set(r.number())
		at := place{channel: some[i].channel, part: some[i].part}
		s.count(at, r)
		mailboxes, oldest := r.number(), fromMillis(r.number())
		if r.err != nil {
			return s.wrong("usage", r.err)
		}
		s.mu.Lock()
		p := s.tallies[at.channel].parts[at.part]
		p.mailboxes, p.oldest = mailboxes, oldest
		s.tallies[at.channel].parts[at.part] = p
		s.mu.Unlock()
	}
	return nil
}

// forget drops the counts of what is not kept any more.
func (s *store) forget(all []kept) {
	still := make(map[kept]bool, len(all))
	for _, k := range all {
		still[k] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for channel, t := range s.tallies {
		for part := range t.parts {
			if !still[kept{channel, part}] {
				delete(t.parts, part)
			}
		}
		if len(t.parts) == 0 {
			delete(s.tallies, channel)
		}
	}
}

// maxMeasured is how many channels, each counted for each partition that it is in, are asked for at once.
const maxMeasured = 2048

// Usage implements [broker.Store].
func (b *Broker) Usage(ctx context.Context) (map[string]broker.Usage, error) {
	leave, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	s := b.store
	all, err := s.channels(ctx)
	if err != nil {
		return nil, err
	}
	// Of a large store the rest was asked for a moment ago; see keepLoop.
	if err := s.measure(ctx, all[:min(len(all), maxMeasured)]); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	usage := make(map[string]broker.Usage)
	for channel, t := range s.tallies {
		p := t.sum()
		if p == (part{}) {
			continue
		}
		usage[channel] = broker.Usage{
			Mailboxes: int(p.mailboxes), Pending: int(p.pending), Bytes: p.bytes, Records: int(p.records), Dead: int(p.dead), Oldest: p.oldest,
		}
	}
	return usage, nil
}
