package redisbroker

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/caddyrelay/relay/broker"
)

// settling is one call of the script that finishes entries.
type settling struct {
	mode, owner string
	place       place
	grace       int64
	outcomes    []broker.Outcome
}

// settledAs is its answer.
type settledAs struct {
	fenced   bool
	owner    string // if fenced: who has it
	verdicts string
}

// settle calls the script, counts what it finished, and tells those who wait.
func (s *store) settle(ctx context.Context, t settling) (settledAs, error) {
	p := s.policy(t.place.channel)
	keys := s.names.attachment(t.place)
	args := make([]any, 0, 8+10*len(t.outcomes))
	args = append(args, t.mode, t.owner, t.place.box, wholeMillis(p.Receipts), wholeMillis(p.Dedupe), s.b.o.Node, t.grace, t.place.id)
	for _, o := range t.outcomes {
		keys = append(keys, s.names.recordsIn(t.place.part, o.MID)...)
		args = append(args, o.Seq, o.MID, string(o.State), string(o.Reason), o.Detail, o.Reply,
			max(o.Attempts, 0), max(o.Failures, 0), max(o.Deaths, 0), millis(o.NotBefore))
	}
	r, err := s.call(ctx, scriptSettle, keys, args...)
	if err != nil {
		return settledAs{}, err
	}
	what, now := r.text(), r.number()
	s.clock.set(now)
	if what != "ok" {
		done := settledAs{fenced: true, owner: r.text()}
		return done, r.err
	}
	done := settledAs{verdicts: r.text()}
	s.count(t.place, r)
	s.ring(t.place, r.text()) // who waits for the mailbox
	if r.err != nil || len(done.verdicts) != len(t.outcomes) {
		return done, s.wrong("settle", cmp.Or(r.err, errors.New("verdicts are missing")))
	}
	for i, o := range t.outcomes {
		if done.verdicts[i] == '0' && o.State != broker.StateStored {
			s.ended(broker.Ending{Channel: t.place.channel, State: o.State, Reason: o.Reason})
		}
	}
	for r.more() {
		i, waiters, ref := int(r.number()), r.text(), r.text()
		if i < 0 || i >= len(t.outcomes) {
			break
		}
		s.tellWaiters(t.outcomes[i].MID, strings.Fields(waiters))
		if ref != "" {
			s.keepRef(t.place.channel, ref, t.outcomes[i].MID, p)
		}
	}
	return done, nil
}

// keepRef lists a dead letter under its ref for as long as it is kept.
func (s *store) keepRef(channel, ref, mid string, p broker.Policy) {
	_ = s.put(s.b.ctx, newOp(scriptRef, []string{s.names.ref(channel, ref)}, mid, wholeMillis(p.DeadRetention)))
}
