package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

const (
	// importItems and importBytes bound what one script takes or reads back: Redis does nothing else meanwhile.
	importItems, importBytes = 64, 256 << 10
	// maxInFlight bounds the scripts that are asked for at once.
	maxInFlight = 1024
)

// crate is what one script takes or reads back: messages of one mailbox, in their order.
type crate struct {
	place place
	items []broker.Item
	at    []int    // where they are in what was handed over
	used  []string // for each, the MID whose key it takes, or empty
}

// crates makes crates of items. Each round has at most one for each mailbox: what comes later in a mailbox is sent when what
// came before is stored.
func crates(items []broker.Item) (rounds [][]*crate, err error) {
	last := make(map[place]int) // the round of a mailbox's last crate
	open := make(map[place]*crate)
	size := make(map[place]int)
	for i := range items {
		item := &items[i]
		if err := checkItem(item); err != nil {
			return nil, err
		}
		p := placeOf(item.Channel, item.ID)
		bytes := 256
		if item.Message != nil {
			bytes += len(item.Message.Body)
		}
		c := open[p]
		if c == nil || len(c.items) >= importItems || size[p]+bytes > importBytes {
			round := 0
			if c != nil {
				round = last[p] + 1
			}
			c = &crate{place: p}
			open[p], size[p], last[p] = c, 0, round
			if round == len(rounds) {
				rounds = append(rounds, nil)
			}
			rounds[round] = append(rounds[round], c)
		}
		c.items, c.at, c.used = append(c.items, *item), append(c.at, i), append(c.used, "")
		size[p] += bytes
	}
	return rounds, nil
}

// checkItem returns an error for a message that would never be found here.
func checkItem(i *broker.Item) error {
	if _, err := broker.RecordOf(i.MID); err != nil {
		return fmt.Errorf("%w: the message ID %q: %w", broker.ErrFormat, i.MID, err)
	}
	if broker.Place(i.MID) != broker.PlaceOf(i.Channel, i.ID) {
		return fmt.Errorf("%w: the message ID %q was made for another channel or destination than %s of %s", broker.ErrFormat, i.MID, i.ID, i.Channel)
	}
	if (i.Message == nil) != (i.State.Finished() && i.State != broker.StateDead) {
		return fmt.Errorf("%w: message %s is %s, and with a body: %t", broker.ErrFormat, i.MID, i.State, i.Message != nil)
	}
	return nil
}

// Identity implements [broker.Importer].
func (b *Broker) Identity(ctx context.Context, channels []string) (string, error) {
	leave, err := b.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	s := b.store
	all, err := s.lookAtAllShards(ctx)
	if err != nil {
		return "", err
	}
	for _, sh := range all {
		for _, channel := range channels {
			if err := sh.admit(s.policy(channel)); err != nil {
				return "", err
			}
		}
	}
	if _, err := s.command(ctx, "HSETNX", s.names.meta(), "identity", broker.NewMID()); err != nil {
		return "", err
	}
	v, err := s.command(ctx, "HGET", s.names.meta(), "identity")
	if err != nil {
		return "", err
	}
	identity, ok := v.(string)
	if !ok {
		return "", s.wrong("identity", fmt.Errorf("it is %T", v))
	}
	return identity, nil
}

// lookAtAllShards returns the primaries, after looking at each.
func (s *store) lookAtAllShards(ctx context.Context) ([]*shard, error) {
	if _, err := s.shardOf(ctx, 0); err != nil { // so that it is known who is there
		return nil, err
	}
	if err := s.lookAtFormat(ctx); err != nil {
		return nil, err
	}
	var all []*shard
	for _, addr := range s.b.primaries() {
		sh, err := s.shard(addr)
		if err != nil {
			return nil, err
		}
		if err := sh.preflight(ctx); err != nil {
			return nil, err
		}
		all = append(all, sh)
	}
	return all, nil
}

// Import implements [broker.Importer].
func (b *Broker) Import(ctx context.Context, items []broker.Item) error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	defer leave()
	s := b.store
	rounds, err := crates(items)
	if err != nil {
		return err
	}
	if err := s.importRefs(ctx, items); err != nil {
		return err
	}
	for _, round := range rounds {
		for some := range slices.Chunk(round, maxInFlight) {
			if err := s.importCrates(ctx, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// importRefs lists messages under their refs, before they are there; see Append.
func (s *store) importRefs(ctx context.Context, items []broker.Item) error {
	var ops []*op
	for i := range items {
		item := &items[i]
		if item.Ref == "" {
			continue
		}
		p := s.policy(item.Channel)
		keep := max(p.Dedupe, p.Retention+p.Receipts, item.Kept.Sub(s.clock.now()))
		if item.State == broker.StateDead {
			keep = max(keep, p.DeadRetention)
		}
		ops = append(ops, newOp(scriptRef, []string{s.names.ref(item.Channel, item.Ref)}, item.MID, wholeMillis(keep)))
	}
	for some := range slices.Chunk(ops, maxInFlight) {
		if err := errors.Join(s.calls(ctx, some)...); err != nil {
			return err
		}
	}
	return nil
}

// importCrates stores crates, of which no two are for one mailbox. Those that meet a key that may be used again are
// sent once more.
func (s *store) importCrates(ctx context.Context, some []*crate) error {
	for len(some) > 0 {
		ops := make([]*op, len(some))
		for i, c := range some {
			ops[i] = s.importOp(c)
		}
		var again []*crate
		for i, err := range s.calls(ctx, ops) {
			if err != nil {
				return err
			}
			r := replyOf(ops[i].reply)
			s.clock.set(r.number())
			what := r.text()
			if what == "lost" {
				return fmt.Errorf("%w: message %s is not there any more", broker.ErrMoveLost, some[i].items[0].After)
			}
			if what == "again" {
				k, mid := int(r.number())-1, r.text()
				if r.err == nil && k >= 0 && k < len(some[i].used) {
					some[i].used[k] = mid
					again = append(again, some[i])
					continue
				}
				return s.wrong("import", errors.Join(errors.New("it names no message"), r.err))
			}
			if len(what) != len(some[i].items) {
				return s.wrong("import", fmt.Errorf("%d of %d messages are answered", len(what), len(some[i].items)))
			}
			if r.err != nil {
				return s.wrong("import", r.err)
			}
			if of := ops[i].replicas; of.confirmed < of.asked {
				return fmt.Errorf("%w: %w: %d of %d replicas have confirmed what was copied", broker.ErrUnavailable, broker.ErrUnproven, of.confirmed, of.asked)
			}
		}
		some = again
	}
	return nil
}

func (s *store) importOp(c *crate) *op {
	p := s.policy(c.place.channel)
	after := c.items[0].After
	keys := append(s.names.mailbox(c.place), s.names.recordsIn(c.place.part, after)...)
	args := []any{c.place.box, c.place.channel, c.place.id, s.clock.highest(c.place.part), wholeMillis(p.Receipts), wholeMillis(p.Dedupe), after}
	size := 256
	for k := range c.items {
		i := &c.items[k]
		key, aside := s.names.record(i.MID)
		kept := aside
		if c.used[k] != "" {
			kept = s.names.recordsIn(c.place.part, c.used[k])[1]
		}
		keys = append(keys, key, aside, kept)
		var stored []byte
		body := 0
		if i.Message != nil {
			stored, body = broker.AppendStored(nil, i.Message), len(i.Message.Body)
		}
		until, seq, retain := i.Kept, i.Seq, i.Retain
		if i.State == broker.StateDead {
			until, seq, retain = i.Keyed, uint64(max(i.Stored.UnixMicro(), 0)), i.Finished
		}
		args = append(args, i.MID, string(i.State), seq, millis(i.Expires), millis(retain), body, stored, countsText(i.Tried),
			millis(i.Stored), millis(i.Finished), i.Attempts, i.Node, string(i.Reason), i.Detail, i.Reply, i.Ref, i.Fingerprint,
			millis(until), c.used[k])
		size += 512 + len(stored) + len(i.Reply)
	}
	o := newOp(scriptImport, keys, args...)
	o.size = size
	o.stores = true
	o.admit = func(sh *shard) error { return sh.admit(p) }
	return o
}

// countsText is how an entry's counts are kept; see entry.go.
func countsText(c broker.Counts) string {
	return fmt.Sprintf("%d %d %d %d", c.Attempts, c.Failures, c.Deaths, millis(c.NotBefore))
}
