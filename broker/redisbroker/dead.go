package redisbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// letterHead is the line that a dead letter begins with; see scripts/deadletter.lua.
type letterHead struct {
	died, notBefore             int64
	attempts, failures, deaths  int
	reason, detail, reply, node int // lengths of the texts behind it
}

func (h letterHead) texts() int { return h.reason + h.detail + h.reply + h.node }

func parseLetterHead(text string) (h letterHead, rest string, err error) {
	line, rest, ok := strings.Cut(text, "\n")
	version := 0
	_, err = fmt.Sscanf(line, "%d %d %d %d %d %d %d %d %d %d", &version, &h.died, &h.attempts, &h.failures, &h.deaths, &h.notBefore,
		&h.reason, &h.detail, &h.reply, &h.node)
	if err != nil || !ok || version != 1 || min(h.reason, h.detail, h.reply, h.node) < 0 {
		return h, "", fmt.Errorf("%w: a dead letter in redis begins with %.80q", broker.ErrFormat, line)
	}
	return h, rest, nil
}

// parseLetter reads a dead letter without its body.
func parseLetter(text string) (broker.DeadLetter, error) {
	var d broker.DeadLetter
	h, rest, err := parseLetterHead(text)
	if err != nil {
		return d, err
	}
	if h.texts() > len(rest) {
		return d, fmt.Errorf("%w: a dead letter in redis is cut short", broker.ErrFormat)
	}
	cut := func(n int) (s string) { s, rest = rest[:n], rest[n:]; return s }
	reason, detail, reply, node := cut(h.reason), cut(h.detail), cut(h.reply), cut(h.node)
	e, err := parseEntry(rest, "")
	if err != nil {
		return d, err
	}
	d.Record = broker.Record{
		MID: e.Message.MID, Channel: e.Message.Channel, ID: e.Message.ID, Ref: e.Message.Ref,
		State: broker.StateDead, Reason: broker.DeadReason(reason), Detail: detail, Attempts: h.attempts,
		Stored: time.UnixMicro(int64(e.Seq)).Truncate(time.Millisecond), Finished: fromMillis(h.died), Expires: e.Expires, Node: node,
	}
	if reply != "" {
		d.Reply = []byte(reply)
	}
	d.ContentType = e.Message.ContentType
	line, _, _ := strings.Cut(rest, "\n")
	d.Size, err = strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
	return d, err
}

// deadPosition is where a page of dead letters ends.
type deadPosition struct {
	died int64
	mid  string
}

func (p deadPosition) compare(o deadPosition) int {
	return cmp.Or(cmp.Compare(p.died, o.died), strings.Compare(p.mid, o.mid))
}

func (p deadPosition) String() string { return strconv.FormatInt(p.died, 10) + "." + p.mid }

func parseDeadPosition(text string) (p deadPosition, err error) {
	if text == "" {
		return p, nil
	}
	died, mid, _ := strings.Cut(text, ".")
	p.mid = mid
	if p.died, err = strconv.ParseInt(died, 10, 64); err != nil {
		return p, fmt.Errorf("%w: the page of dead letters %q: take the next of a page before, or none", broker.ErrNotFound, text)
	}
	return p, nil
}

// DeadLetters implements [broker.Store].
func (b *Broker) DeadLetters(ctx context.Context, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.DeadPage{}, err
	}
	defer leave()
	if q.Limit <= 0 {
		q.Limit = 100
	}
	q.Limit = min(q.Limit, 1000)
	after, err := parseDeadPosition(q.After)
	if err != nil {
		return broker.DeadPage{}, err
	}
	page, next := broker.DeadPage{}, after
	for len(page.Letters) < q.Limit {
		found, more, err := b.store.deadAfter(ctx, channel, q, next)
		if err != nil {
			return broker.DeadPage{}, err
		}
		for _, f := range found {
			if len(page.Letters) == q.Limit {
				more = true
				break
			}
			next = f.at
			if (q.ID == "" || f.letter.ID == q.ID) && (q.Reason == "" || f.letter.Reason == q.Reason) {
				page.Letters = append(page.Letters, f.letter)
			}
		}
		page.Next = ""
		if more {
			page.Next = next.String()
		}
		if !more {
			break
		}
	}
	return page, nil
}

// foundLetter is a dead letter, and its place among the others.
type foundLetter struct {
	letter broker.DeadLetter
	at     deadPosition
}

// deadLook is how many dead letters of a partition are looked at in one call.
const deadLook = 50

// deadAfter returns the oldest dead letters behind a position, in order and without a gap, and whether there are
// more.
func (s *store) deadAfter(ctx context.Context, channel string, q broker.DeadQuery, after deadPosition) ([]foundLetter, bool, error) {
	end := "+inf"
	if !q.Before.IsZero() {
		end = "(" + strconv.FormatInt(millis(q.Before), 10)
	}
	var ops []*op
	for part := range partitions {
		if q.ID != "" && placeOf(channel, q.ID).part != part {
			continue
		}
		ops = append(ops, newOp(scriptDead, []string{s.names.in(part, "d:"+channel), s.names.in(part, "b")}, after.died, after.mid, end, deadLook))
	}
	var all []foundLetter
	cut := deadPosition{died: 1<<63 - 1} // behind it, a partition that was not read to its end may have some
	more := false
	for i, err := range s.calls(ctx, ops) {
		if err != nil {
			return nil, false, err
		}
		r := replyOf(ops[i].reply)
		s.clock.set(r.number())
		unread := r.number() == 1
		last := deadPosition{}
		for r.more() {
			last = deadPosition{mid: r.text(), died: r.number()}
			d, err := parseLetter(r.text())
			if err = errors.Join(err, r.err); err != nil {
				return nil, false, s.wrong("dead letters", err)
			}
			all = append(all, foundLetter{d, last})
		}
		if r.err != nil {
			return nil, false, s.wrong("dead letters", r.err)
		}
		if unread {
			more = true
			if last.compare(cut) < 0 {
				cut = last
			}
		}
	}
	slices.SortFunc(all, func(a, b foundLetter) int { return a.at.compare(b.at) })
	all = slices.DeleteFunc(all, func(f foundLetter) bool { return f.at.compare(cut) > 0 })
	return all, more, nil
}

// letter returns a dead letter without its body.
func (s *store) letter(ctx context.Context, mid string) (broker.DeadLetter, error) {
	if _, err := broker.RecordOf(mid); err != nil {
		return broker.DeadLetter{}, fmt.Errorf("%w: %q: %w", broker.ErrNotFound, mid, err)
	}
	r, err := s.call(ctx, scriptGet, []string{s.names.in(partition(broker.Place(mid)), "b")}, mid)
	if err != nil {
		return broker.DeadLetter{}, err
	}
	s.clock.set(r.number())
	if !r.more() {
		return broker.DeadLetter{}, noDeadLetter(mid)
	}
	d, err := parseLetter(r.text())
	if err = errors.Join(err, r.err); err != nil {
		return d, s.wrong("dead letter", err)
	}
	return d, nil
}

func noDeadLetter(mid string) error {
	return fmt.Errorf("%w: there is no dead letter %s", broker.ErrNotFound, mid)
}

// Resend implements [broker.Store].
func (b *Broker) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.Stored{}, err
	}
	defer leave()
	s := b.store
	d, err := s.letter(ctx, mid)
	if err != nil {
		return broker.Stored{}, err
	}
	at, p := placeOf(d.Channel, d.ID), s.policy(d.Channel)
	room := s.room(at, p)
	if d.Ref != "" {
		s.keepRef(d.Channel, d.Ref, mid, p)
	}
	key, aside := s.names.record(mid)
	o := newOp(scriptResend, append(s.names.mailbox(at), key, aside), mid, at.box, max(0, wholeMillis(ttl)), wholeMillis(p.Retention),
		s.clock.highest(at.part), p.MaxPending, p.MaxPendingBytes, room.pending, room.bytes, room.records, d.Channel, d.ID, d.Ref)
	o.stores, o.admit = true, func(sh *shard) error { return sh.admit(p) }
	if err := s.do(ctx, o); err != nil {
		return broker.Stored{}, err
	}
	r := replyOf(o.reply)
	what := r.text()
	s.clock.set(r.number())
	if what == "none" {
		return broker.Stored{}, noDeadLetter(mid)
	}
	owner := r.text()
	s.count(at, r)
	switch {
	case r.err != nil:
		return broker.Stored{}, s.wrong("resend", r.err)
	case what != "ok":
		return broker.Stored{}, fullError(what, at, p)
	}
	s.ring(at, owner)
	stored := broker.Stored{MID: mid, State: broker.StateStored, Durability: o.shard.seen().proven(o.replicas)}
	return stored, o.shard.shortfall(stored.Durability, o.replicas, d.Channel, p)
}

// Drop implements [broker.Store].
func (b *Broker) Drop(ctx context.Context, mid string) error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	defer leave()
	dropped, err := b.store.drop(ctx, mid, time.Time{})
	if err == nil && !dropped {
		return noDeadLetter(mid)
	}
	return err
}

// drop removes a dead letter, if it died before a time or that is zero, and reports whether this call did.
func (s *store) drop(ctx context.Context, mid string, before time.Time) (bool, error) {
	d, err := s.letter(ctx, mid)
	if err != nil {
		return false, err
	}
	at := placeOf(d.Channel, d.ID)
	key, aside := s.names.record(mid)
	r, err := s.call(ctx, scriptDrop, append(s.names.mailbox(at), key, aside),
		mid, wholeMillis(s.policy(d.Channel).Receipts), d.Channel, d.ID, d.Ref, millis(before))
	if err != nil {
		return false, err
	}
	dropped := r.number() == 1
	s.clock.set(r.number())
	if dropped {
		s.count(at, r)
		s.ended(broker.Ending{Channel: d.Channel, State: broker.StateErased})
	}
	return dropped, r.err
}
