package redisbroker

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

const (
	// keepInterval is how often deadlines are looked for.
	keepInterval = time.Second
	// lookInterval is how often a server is looked at that is well; one that is not, each keepInterval.
	lookInterval = 2 * time.Second
	// sweepGrace is left to an owner to see to a deadline himself: what he is about to settle shall not be gone.
	sweepGrace = 2 * time.Second
	// sweepMailboxes bounds the mailboxes of a partition per look, scanEntries and scanBytes the entries per call.
	sweepMailboxes, scanEntries, scanBytes = 64, 256, 1 << 20
	// sweepBudget bounds the time of one sweep; what is left comes with the next.
	sweepBudget = 700 * time.Millisecond
	// measureEach is how many channels are counted each keepInterval; see maxMeasured.
	measureEach = 640
)

// keepLoop does what any node does for all: sees to deadlines, drops old dead letters, counts, and looks at
// the server. All of it can be done twice without harm.
func (s *store) keepLoop() {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	looked, beaten, counted, measured := time.Time{}, time.Time{}, time.Time{}, 0
	for {
		ctx, cancel := context.WithTimeout(s.b.ctx, 5*s.b.o.Timeout)
		looked = s.lookAtShards(ctx, looked)
		if time.Since(beaten) >= s.b.o.Lease/4 && s.beat(ctx) == nil {
			beaten = time.Now()
		}
		if s.keeper(ctx) {
			s.sweep(ctx)
		}
		if time.Since(counted) >= s.b.o.CheckInterval {
			measured, counted = s.measureSome(ctx, measured), time.Now()
		}
		cancel()
		select {
		case <-s.b.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keeper reports whether it is this node that sees to deadlines this time. Any node can, and one is enough: what that
// costs does not grow with their number.
func (s *store) keeper(ctx context.Context) bool {
	// A little less than the interval, so that the next time is open to all again, whoever has died meanwhile.
	held, err := s.hold(ctx, s.names.keeper(), keepInterval*9/10, true)
	return err == nil && held
}

// hold sets a key for a while, if alone only when nobody else has.
func (s *store) hold(ctx context.Context, key string, d time.Duration, alone bool) (bool, error) {
	r, err := s.call(ctx, scriptHold, []string{key}, s.incarnation, wholeMillis(d), alone)
	if err != nil {
		return false, err
	}
	s.clock.set(r.number())
	return r.number() == 1, r.err
}

// lookAtShards looks at the servers: often at one that is wanting. It returns when it last looked at all.
func (s *store) lookAtShards(ctx context.Context, looked time.Time) time.Time {
	all := time.Since(looked) >= lookInterval
	if all {
		_, _ = s.b.primaryOf(ctx, 0) // so that it is known who is there
		looked = time.Now()
	}
	for _, addr := range s.b.primaries() {
		sh, err := s.shard(addr)
		if err != nil {
			return looked
		}
		c := sh.seen()
		if all || !c.known || c.err != nil || c.volatile() != "" || c.replicas < s.b.settings.Load().replicas(c.replicas) {
			_ = sh.preflight(ctx) // whoever needs it says so
		}
	}
	return looked
}

// sweep finishes what is due, as far as it gets in its time.
func (s *store) sweep(ctx context.Context) {
	for began, again := time.Now(), true; again && time.Since(began) < sweepBudget; {
		due, more, err := s.dueMailboxes(ctx)
		if err != nil {
			return
		}
		again = more
		// Nodes begin in different places, so that they rarely do the same.
		for _, i := range rand.Perm(len(due)) {
			if err := s.sweepMailbox(ctx, due[i]); err != nil || time.Since(began) >= sweepBudget {
				return
			}
		}
	}
}

// dueMailboxes returns mailboxes that are due, and whether there may be more.
func (s *store) dueMailboxes(ctx context.Context) (due []place, more bool, err error) {
	ops := make([]*op, partitions)
	now := millis(s.clock.now())
	for part := range ops {
		ops[part] = newOp(nil, nil, "ZRANGEBYSCORE", s.names.in(part, "due"), "-inf", now, "LIMIT", 0, sweepMailboxes)
	}
	var failed error
	for part, err := range s.calls(ctx, ops) {
		if err != nil {
			failed = err // one primary's; others go on
			continue
		}
		n := 0
		for r := replyOf(ops[part].reply); r.more(); n++ {
			channel, id, err := parseBox(r.text())
			if err != nil {
				s.b.o.Logger.Error("a mailbox is passed over", "address", s.b.o.Address, "error", err)
				continue
			}
			due = append(due, placeOf(channel, id))
		}
		more = more || n == sweepMailboxes
	}
	if len(due) == 0 {
		return nil, false, failed
	}
	return due, more, nil
}

// measureSome counts some of what is kept, and drops old dead letters of it. It returns where to go on.
func (s *store) measureSome(ctx context.Context, from int) int {
	all, err := s.channels(ctx)
	if err != nil {
		return from
	}
	s.forget(all)
	if from >= len(all) {
		from = 0
	}
	some := all[from:min(len(all), from+measureEach)]
	if s.measure(ctx, some) == nil {
		s.dropOld(ctx, some)
	}
	return from + len(some)
}

// dropOld erases dead letters that were kept for as long as their channel says.
func (s *store) dropOld(ctx context.Context, some []kept) {
	for _, k := range some {
		s.mu.Lock()
		dead := int64(0)
		if t := s.tallies[k.channel]; t != nil {
			dead = t.parts[k.part].dead
		}
		s.mu.Unlock()
		if dead <= 0 {
			continue
		}
		before := s.clock.now().Add(-s.policy(k.channel).DeadRetention)
		old, err := s.command(ctx, "ZRANGEBYSCORE", s.names.in(k.part, "d:"+k.channel), "-inf", "("+itoa(millis(before)), "LIMIT", 0, 100)
		if err != nil {
			return
		}
		for r := replyOf(old); r.more(); {
			if _, err := s.drop(ctx, r.text(), before); err != nil && !errors.Is(err, broker.ErrNotFound) {
				return
			}
		}
	}
}

// sweepMailbox finishes what is due in a mailbox, and notes when it is due next.
func (s *store) sweepMailbox(ctx context.Context, at place) error {
	for found := true; found; {
		found = false
		after, least := uint64(0), int64(0)
		for done := false; !done; {
			r, err := s.call(ctx, scriptScan, s.names.mailbox(at), at.box, after, scanEntries, scanBytes, least, sweepGrace.Milliseconds())
			if err != nil {
				return err
			}
			done = r.number() == 1
			s.clock.set(r.number())
			after, least = uint64(r.number()), r.number()
			var over []broker.Outcome
			for r.more() {
				o := broker.Outcome{Seq: uint64(r.number()), MID: r.text(), State: broker.State(r.text())}
				if o.State == broker.StateDead {
					o.Reason = broker.DeadRetention
				}
				over = append(over, o)
			}
			if r.err != nil {
				return s.wrong("sweep", r.err)
			}
			for some := range slices.Chunk(over, 64) {
				if _, err := s.settle(ctx, settling{mode: "sweep", place: at, grace: sweepGrace.Milliseconds(), outcomes: some}); err != nil {
					return err
				}
			}
			// With some found the scan has not noted what comes next: the next one does.
			found = found || len(over) > 0
		}
	}
	return nil
}
