package redisbroker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// shard is one primary: the only one there is, or one of a cluster's. What is slow or fails at one keeps nothing of the
// others waiting.
type shard struct {
	// Fixed by newShard.
	s             *store
	addr          string // on a cluster; else whoever dials finds out
	appends, rest *lane
	lease         *ownerLease

	mu        sync.Mutex
	condition condition
	complaint string // what was logged of it, if it is not mended
	down      error  // why the last exchange failed, or nil
}

func newShard(s *store, addr string) *shard {
	sh := &shard{s: s, addr: addr, lease: newOwnerLease(s.b.o.Lease)}
	sh.appends, sh.rest = newLane(sh, true), newLane(sh, false)
	return sh
}

// where names the primary in errors.
func (sh *shard) where() string {
	if sh.addr != "" {
		return sh.addr
	}
	return sh.s.b.o.Address
}

// shard returns that with an address, which it makes if there is none: shards are as many as primaries were ever seen,
// and one that is of no more use costs nothing.
func (s *store) shard(addr string) (*shard, error) {
	s.mu.Lock()
	sh := s.shards[addr]
	s.mu.Unlock()
	if sh != nil {
		return sh, nil
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return nil, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shards[addr] == nil {
		sh := newShard(s, addr)
		s.shards[addr] = sh
		b.loops.Go(sh.appends.loop)
		b.loops.Go(sh.rest.loop)
	}
	return s.shards[addr], nil
}

// shardOf returns the shard of a slot.
func (s *store) shardOf(ctx context.Context, slot int) (*shard, error) {
	addr, err := s.b.primaryOf(ctx, slot)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRefused, s.b.explain(err))
	}
	return s.shard(addr)
}

// current returns the shards that are primaries now, as far as that is known without asking.
func (s *store) current() []*shard {
	addrs := s.b.primaries()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*shard
	for _, addr := range addrs {
		if sh := s.shards[addr]; sh != nil {
			all = append(all, sh)
		}
	}
	return all
}

// ofPart returns the shard that has a partition now, or nil.
func (s *store) ofPart(part int) *shard {
	addr := ""
	if t := s.b.topology.Load(); t != nil {
		if addr = t.owner(slot(tags[part])); addr == "" {
			return nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[addr]
}

// reached notes how an exchange with the server ended that began at a moment of the lease's clock.
func (sh *shard) reached(began time.Duration, err error) {
	if err != nil && answered(err) {
		err = nil
	}
	if err == nil && sh.lease.renew(began) {
		sh.s.lookAtAll() // their owners have stopped to write
	}
	if err != nil {
		wake(sh.s.b.stale) // another one may be the primary by now
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.down = err
}

func (sh *shard) failure() error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.down == nil {
		return nil
	}
	return sh.s.b.explainAt(sh.where(), sh.down)
}

// seen returns what is known of the server.
func (sh *shard) seen() condition {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.condition
	if err := sh.s.formatErr.Load(); err != nil {
		c.err = *err
	}
	c.known = c.known && sh.s.formatSeen.Load()
	return c
}

// setCondition notes what was seen, and logs what an operator has to do, once for each change.
func (sh *shard) setCondition(c condition) {
	complaint := ""
	if err := sh.s.formatErr.Load(); err != nil {
		complaint = (*err).Error()
	} else if sh.s.demanding() {
		complaint = c.volatile()
	}
	sh.mu.Lock()
	news, before := complaint != sh.complaint, sh.condition
	sh.condition, sh.complaint = c, complaint
	sh.mu.Unlock()
	// One that stays what it was and syncs each write comes back with all that it did.
	forgets := sh.addr != "" || sh.s.b.o.MasterName != "" || c.level() != broker.AOFAlways || before.level() != broker.AOFAlways
	if before.runID != "" && before.runID != c.runID && forgets {
		sh.s.another(func(part int) bool { return sh.s.ofPart(part) == sh })
	}
	switch log := sh.s.b.o.Logger; {
	case !news:
	case complaint != "":
		log.Error("redis cannot be trusted with messages; at_least_once channels are answered 503, but those with allow_volatile",
			"address", sh.where(), "remedy", complaint)
	default:
		log.Info("redis keeps messages", "address", sh.where())
	}
}

// demanding reports whether any channel wants a server that forgets nothing.
func (s *store) demanding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.policies {
		if !p.AllowVolatile {
			return true
		}
	}
	return false
}

// admit returns why a message of a channel with policy p cannot be taken by a server in this condition.
func (sh *shard) admit(p broker.Policy) error {
	c := sh.seen()
	if !c.known || c.err != nil {
		return c.err // without a connection, making one tells
	}
	if why := c.volatile(); why != "" && !p.AllowVolatile {
		return fmt.Errorf("%w: %w: redis at %s may forget messages: %s", broker.ErrRefused, broker.ErrUnavailable, sh.where(), why)
	}
	return nil
}

// preflight looks at the server. If there is no connection yet, making one does so too.
func (sh *shard) preflight(ctx context.Context) error {
	c, err := sh.s.b.look(ctx, commander{sh: sh})
	if err != nil {
		return err
	}
	if err := sh.s.lookAtFormat(ctx); err != nil {
		return err
	}
	sh.setCondition(c)
	return nil
}

// ready returns why messages cannot be stored here as the channels demand, or nil.
func (sh *shard) ready() error {
	b, c := sh.s.b, sh.seen()
	if c.err != nil {
		return b.explainAt(sh.where(), c.err)
	}
	if err := sh.failure(); err != nil {
		return err
	}
	if !c.known {
		return fmt.Errorf("%w: redis at %s was not reached yet", broker.ErrUnavailable, sh.where())
	}
	asked := b.settings.Load().replicas(c.replicas)
	if c.replicas < asked {
		return fmt.Errorf("%w: %d replicas must confirm each message, and redis at %s has %d: see its INFO replication",
			broker.ErrUnavailable, asked, sh.where(), c.replicas)
	}
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	for name, p := range sh.s.policies {
		if why := c.volatile(); why != "" && !p.AllowVolatile {
			return fmt.Errorf("%w: channel %s: redis at %s may forget messages: %s", broker.ErrUnavailable, name, sh.where(), why)
		}
		if got := c.proven(replicas{asked, asked}); !got.Meets(p.Durability) {
			return fmt.Errorf("%w: channel %s demands the durability %s, and redis at %s gives %s",
				broker.ErrUnavailable, name, p.Durability, sh.where(), got)
		}
	}
	return nil
}
