package redisbroker

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// orphan is an owner of ours that Redis may still believe in: it was not said in time that it is gone.
type orphan struct {
	place  place
	name   string
	counts []broker.Outcome
}

// maxOrphans bounds them. Of one too many, Redis believes until the next attach that it is there: that
// costs its messages a counted attempt.
const maxOrphans = 100_000

const (
	// watchBatch is how many mailboxes are looked at in one go, and watchPause the time between two when all are: a node
	// that comes back must not keep the server from its work.
	watchBatch, watchPause = 500, 20 * time.Millisecond
	// watchPace bounds the mailboxes that are looked at in a second while nothing is wrong.
	watchPace = 1000
)

// lookAtAll has all mailboxes looked at soon: their owners may have missed something.
func (s *store) lookAtAll() {
	s.missed.Store(true)
	wake(s.recheck)
}

// another is called when another server has some partitions: a replica that was promoted, or one that was restarted. It may have
// forgotten the last that the one before did: messages that were not proven, and acknowledgements, so that what was finished is
// there again. Owners attach anew, which shows them what there is. Their sockets stay.
func (s *store) another(has func(part int) bool) {
	for _, m := range s.attached() {
		if has(m.place.part) {
			m.mu.Lock()
			m.stale = m.fence != 0
			m.mu.Unlock()
		}
	}
	s.lookAtAll()
}

// suspect has one mailbox looked at.
func (s *store) suspect(m *mailbox) {
	s.mu.Lock()
	s.suspects = append(s.suspects, m)
	s.mu.Unlock()
	wake(s.recheck)
}

// watchLoop looks at this node's mailboxes: at those that somebody says something of, at all whenever notices may have been
// missed, and slowly at all the time, since a node that was to tell something may have died.
func (s *store) watchLoop() {
	tick := time.NewTicker(s.tickInterval())
	defer tick.Stop()
	var rest []*mailbox
	count := 0
	for {
		slow := false
		select {
		case <-s.b.ctx.Done():
			return
		case <-s.recheck:
		case <-tick.C:
			slow = true
		}
		ctx, cancel := context.WithTimeout(s.b.ctx, 5*s.b.o.Timeout)
		switch {
		case s.missed.Swap(false):
			rest = nil
			if err := s.look(ctx, s.attached(), true); err != nil {
				s.missed.Store(true) // and the next tick tries again
			}
		case slow:
			if len(rest) == 0 {
				rest = s.attached()
				count = min(watchPace, int(int64(len(rest))*int64(s.tickInterval())/int64(s.b.o.CheckInterval))+1)
			}
			some := rest[:min(count, len(rest))]
			rest = rest[len(some):]
			_ = s.look(ctx, some, false)
			s.retryOrphans(ctx)
			s.retryWithdrawn(ctx)
		default:
			s.mu.Lock()
			some := s.suspects
			s.suspects = nil
			s.mu.Unlock()
			_ = s.look(ctx, some, false) // or it is found out by the slow look
		}
		cancel()
	}
}

// tickInterval is the time between two looks at some mailboxes.
func (s *store) tickInterval() time.Duration { return min(keepInterval, s.b.o.CheckInterval/2) }

// attached returns the mailboxes that owners of this node have.
func (s *store) attached() []*mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*mailbox, 0, len(s.boxes))
	for _, boxes := range s.boxes {
		all = append(all, boxes...)
	}
	for _, line := range s.line {
		all = append(all, line...)
	}
	return all
}

// look rings owners whose mailboxes have entries that they have not read, and tells those that have been displaced. With
// ring it rings all that are still owners: they may have stopped to write while the server was not heard of.
func (s *store) look(ctx context.Context, all []*mailbox, ring bool) error {
	all = slices.DeleteFunc(slices.Clone(all), func(m *mailbox) bool { return m.Fence() == 0 && s.inLine(m.place, m.owner) != m })
	var failed error
	for n := 0; len(all) > 0; n++ {
		if n > 0 {
			s.b.wait(watchPause)
		}
		some := all[:min(watchBatch, len(all))]
		all = all[len(some):]
		ops, reads := make([]*op, len(some)), make([]uint64, len(some))
		for i, m := range some {
			reads[i] = m.known()
			ops[i] = newOp(nil, nil, "HMGET", s.names.mailbox(m.place)[0], "o", "l", "f")
		}
		for i, err := range s.calls(ctx, ops) {
			if err != nil {
				failed = err // one primary's; others go on
				continue
			}
			r := replyOf(ops[i].reply)
			switch v, ok := readHold(r); {
			case !ok:
			case some[i].Fence() == 0:
				some[i].lookAtLine(ctx, v)
			default:
				some[i].look(v, reads[i], ring)
			}
		}
	}
	return failed
}

// held is what Redis knows of a mailbox: its owner, last sequence and fence.
type held struct {
	owner       string
	last, fence uint64
}

func readHold(r *reply) (held, bool) {
	h := held{owner: r.text(), last: uint64(max(r.number(), 0)), fence: uint64(max(r.number(), 0))}
	return h, r.err == nil
}

// why says why m is not the owner that Redis knows. An owner before m, or none, is no successor: Redis has been
// emptied, or a replica was promoted that had not heard of m.
func (h held) why(m *mailbox) error {
	if h.owner == "" || h.fence < m.Fence() {
		return broker.ErrForgotten
	}
	return broker.ErrFenced
}

func (m *mailbox) isStale() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stale
}

// known returns the last sequence that the owner knows of.
func (m *mailbox) known() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.read
}

// look takes what Redis holds of the mailbox; known is what m knew when it was asked.
func (m *mailbox) look(h held, known uint64, ring bool) {
	switch {
	case h.owner != m.name:
		m.lose(h.why(m))
		return
	case h.last < known || m.isStale():
		// What is stored from now on can get sequences that the owner believes to have read, and what it has finished can be
		// there again. Whoever attaches anew reads all that there is.
		m.lose(broker.ErrForgotten)
		return
	}
	m.mu.Lock()
	news := (h.last > m.read || ring) && m.over == nil
	m.read = max(m.read, h.last) // one ring is enough: nothing can lose it
	m.mu.Unlock()
	if news {
		m.s.guard("Ring", m.owner.Ring)
	}
}

// orphaned notes an owner that is gone, for Redis to be told later.
func (s *store) orphaned(m *mailbox, counts []broker.Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.orphans) < maxOrphans {
		s.orphans[m.name] = orphan{place: m.place, name: m.name, counts: counts}
	}
}

func (s *store) retryOrphans(ctx context.Context) {
	s.mu.Lock()
	var all []orphan
	for _, o := range s.orphans {
		all = append(all, o)
	}
	s.mu.Unlock()
	for _, o := range all {
		_, err := s.settle(ctx, settling{mode: "detach", place: o.place, owner: o.name, outcomes: o.counts})
		if err == nil {
			err = s.leave(ctx, o.place, o.name) // it may have been in line only
		}
		if errors.Is(err, broker.ErrUnavailable) {
			return
		}
		// Done, or displaced by another: names are not used twice.
		s.mu.Lock()
		delete(s.orphans, o.name)
		s.mu.Unlock()
	}
}

// commander sends single commands in a lane of the store's.
type commander struct {
	sh *shard // nil: to whoever has the key
	s  *store // if sh is nil
}

// Do is that of a redis client.
func (c commander) Do(ctx context.Context, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx, args...)
	o, s := newOp(nil, nil, args...), c.s
	if c.sh != nil {
		o.shard, s = c.sh, c.sh.s
	}
	if err := s.do(ctx, o); err != nil {
		var refused redis.Error
		if errors.As(err, &refused) {
			err = refused // as it came
		}
		cmd.SetErr(err)
		return cmd
	}
	if o.reply == nil {
		cmd.SetErr(redis.Nil)
		return cmd
	}
	cmd.SetVal(o.reply)
	return cmd
}

// answered reports whether err came from the server, so that it was reached.
func answered(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) || errors.Is(err, redis.Nil)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
