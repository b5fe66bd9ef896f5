package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// record is a record as it is kept, and what only this package needs of it.
type record struct {
	broker.Record
	seq uint64 // while it is unfinished
}

// parse reads a record's fields, from a script's answer.
func parseRecord(r *reply) (rec record, err error) {
	for r.more() {
		field, value := r.text(), r.text()
		switch field {
		case "m":
			rec.MID = value
		case "c":
			rec.Channel = value
		case "i":
			rec.ID = value
		case "f":
			rec.Ref = value
		case "s":
			rec.State = broker.State(value)
		case "g":
			rec.Reason = broker.DeadReason(value)
		case "d":
			rec.Detail = value
		case "n":
			rec.Node = value
		case "y":
			rec.Reply = []byte(value)
		case "a", "t", "e", "x", "q":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return rec, fmt.Errorf("%w: field %s of record %s is %q", broker.ErrFormat, field, rec.MID, value)
			}
			rec.number(field, n)
		}
	}
	return rec, r.err
}

func (rec *record) number(field string, n int64) {
	switch field {
	case "a":
		rec.Attempts = int(n)
	case "t":
		rec.Stored = fromMillis(n)
	case "e":
		rec.Finished = fromMillis(n)
	case "x":
		rec.Expires = fromMillis(n)
	case "q":
		rec.seq = uint64(n)
	}
}

// lookupOp asks for the record of a message, or, if short, of whatever message is where the first
// characters of its MID say.
func (s *store) lookupOp(mid string, short bool) *op {
	key, aside := s.names.record(mid)
	flag := ""
	if short {
		flag = "1"
	}
	part := partition(broker.Place(mid))
	return newOp(scriptLookup, []string{key, aside, s.names.in(part, "b")}, mid, flag)
}

// found reads the answer to a lookupOp.
func (s *store) found(mid string, o *op) (record, error) {
	r := replyOf(o.reply)
	s.clock.set(r.number())
	var rec record
	var err error
	switch len(r.values) {
	case 0:
		return rec, fmt.Errorf("%w: %s", broker.ErrNotFound, mid)
	case 1: // the record has expired, the dead letter has not
		d, err := parseLetter(r.text())
		return record{Record: d.Record}, errors.Join(err, r.err)
	default:
		rec, err = parseRecord(r)
	}
	if err != nil {
		return rec, s.wrong("lookup", err)
	}
	// Redis lets records expire in slots, up to one later than promised.
	p := s.policy(rec.Channel)
	if rec.State.Finished() && rec.State != broker.StateDead {
		until := rec.Finished.Add(p.Receipts)
		if t := rec.Stored.Add(p.Dedupe); t.After(until) {
			until = t
		}
		if s.clock.now().After(until) {
			return rec, fmt.Errorf("%w: %s", broker.ErrNotFound, mid)
		}
	}
	return rec, nil
}

// record returns the record of a message.
func (s *store) record(ctx context.Context, mid string) (record, error) {
	if _, err := broker.RecordOf(mid); err != nil {
		return record{}, fmt.Errorf("%w: %q: %w", broker.ErrNotFound, mid, err)
	}
	o := s.lookupOp(mid, false)
	if err := s.do(ctx, o); err != nil {
		return record{}, err
	}
	return s.found(mid, o)
}

// Lookup implements [broker.Store].
func (b *Broker) Lookup(ctx context.Context, mid string) (broker.Record, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.Record{}, err
	}
	defer leave()
	rec, err := b.store.record(ctx, mid)
	if err != nil {
		return broker.Record{}, err
	}
	return b.store.live(ctx, rec)
}

// live adds what only the owner knows of an unfinished message.
func (s *store) live(ctx context.Context, rec record) (broker.Record, error) {
	if rec.State != broker.StateStored {
		return rec.Record, nil
	}
	at := placeOf(rec.Channel, rec.ID)
	owner, counts, err := s.ownerOf(ctx, at, rec.seq)
	if err != nil {
		return rec.Record, err
	}
	rec.Attempts, rec.Node = counts.Attempts, nodeOf(owner)
	if owner == "" {
		return rec.Record, nil
	}
	known := answer{}
	if s.ours(owner) {
		known = s.attemptsHere(at.box, owner, rec.seq, rec.MID)
	} else {
		known = s.ask(ctx, s.names.node(owner), ask{What: askAttempts, Box: at.box, Owner: owner, Seq: rec.seq, MID: rec.MID})
	}
	if known.OK {
		rec.Attempts = max(rec.Attempts, known.Attempts)
		if known.InFlight {
			rec.State = broker.StateInFlight
		}
	}
	return rec.Record, nil
}

// ownerOf returns who has a mailbox, and what was tried with an entry.
func (s *store) ownerOf(ctx context.Context, at place, seq uint64) (string, broker.Counts, error) {
	r, err := s.call(ctx, scriptOwner, s.names.mailbox(at), seq)
	if err != nil {
		return "", broker.Counts{}, err
	}
	s.clock.set(r.number())
	owner := r.text()
	counts, err := parseCounts(r.text())
	if err = errors.Join(err, r.err); err != nil {
		return "", counts, s.wrong("owner", err)
	}
	return owner, counts, nil
}

// Content implements [broker.Store].
func (b *Broker) Content(ctx context.Context, mid string) (*broker.Message, error) {
	leave, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	s := b.store
	rec, err := s.record(ctx, mid)
	if err != nil {
		return nil, err
	}
	r, err := s.call(ctx, scriptContent, s.names.mailbox(placeOf(rec.Channel, rec.ID)), mid, rec.seq)
	if err != nil {
		return nil, err
	}
	r.number()
	entry, letter := r.text(), r.text()
	if letter != "" {
		entry = letterEntry(letter)
	}
	if r.err != nil {
		return nil, s.wrong("content", r.err)
	}
	if entry == "" {
		return nil, fmt.Errorf("%w: %s is finished, and bodies are not kept then", broker.ErrNotFound, mid)
	}
	e, err := parseEntry(entry, "")
	if err != nil {
		return nil, s.wrong("content", err)
	}
	return e.Message, nil
}

// awaitInterval is how often a waiting publisher's message is looked at, in case its notice was lost.
const awaitInterval = time.Second

// Await implements [broker.Store].
func (b *Broker) Await(ctx context.Context, mid string) (broker.Record, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.Record{}, err
	}
	leave() // each look enters by itself, so that Close need not wait for the end of the wait
	s := b.store
	told := make(chan struct{}, 1)
	s.waitFor(mid, told)
	defer s.waitNoMore(mid, told)
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	for {
		rec, err := s.peek(ctx, mid)
		if err == nil && rec.State.Finished() || errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrClosed) {
			return rec.Record, err
		}
		select {
		case <-told:
		case <-tick.C:
		case <-b.ctx.Done():
			return broker.Record{}, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.o.Timeout)
			defer cancel()
			return b.Lookup(last, mid)
		}
	}
}

// peek is Lookup without asking the owner.
func (s *store) peek(ctx context.Context, mid string) (record, error) {
	leave, err := s.b.enter()
	if err != nil {
		return record{}, err
	}
	defer leave()
	return s.record(ctx, mid)
}

func (s *store) waitFor(mid string, c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits[mid] == nil {
		s.waits[mid] = make(map[chan struct{}]bool)
	}
	s.waits[mid][c] = true
}

func (s *store) waitNoMore(mid string, c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waits[mid], c)
	if len(s.waits[mid]) == 0 {
		delete(s.waits, mid)
	}
}

// letterEntry returns the entry within a dead letter; see dead.go.
func letterEntry(letter string) string {
	h, rest, err := parseLetterHead(letter)
	if err != nil || h.texts() > len(rest) {
		return ""
	}
	return strings.Clone(rest[h.texts():])
}
