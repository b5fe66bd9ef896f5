package redisbroker

import (
	"context"
	"errors"
	"fmt"

	"github.com/caddyrelay/relay/broker"
)

// Append implements [broker.Store].
func (b *Broker) Append(ctx context.Context, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	leave, err := b.enter()
	if err != nil {
		return broker.Stored{}, err
	}
	defer leave()
	if err := checkMID(m, o.Key); err != nil {
		return broker.Stored{}, fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	a := b.store.newAppending(m, o)
	var ref *op
	if m.Ref != "" {
		// Before the message, so that none is missing that is stored. It is a hint, so its answer is not
		// waited for.
		ref = a.refOp()
		if b.store.put(ctx, ref) != nil {
			ref = nil
		}
	}
	stored, err := a.try(ctx, "")
	if err != nil && errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrRefused) && ctx.Err() == nil {
		// Perhaps it was done. It can be repeated, as the MID is the same.
		if stored, err = a.try(ctx, ""); err == nil {
			b.store.ringOwner(ctx, a.place) // if it was the first time, nobody was told
		}
	}
	if ref != nil && b.kind.Load() == kindCluster { // another primary may have it; else it was done before
		_ = b.store.await(ctx, ref)
	}
	return stored, err
}

// checkMID returns an error if the message's MID is of another message: it would never be found.
func checkMID(m *broker.Message, key string) error {
	name, err := broker.RecordOf(m.MID)
	if err != nil {
		return fmt.Errorf("the message ID %q: %w", m.MID, err)
	}
	if broker.Place(m.MID) != broker.PlaceOf(m.Channel, m.ID) || key != "" && name != broker.RecordName(m.Channel, m.ID, key) {
		return fmt.Errorf("the message ID %q was made for another channel, destination or key", m.MID)
	}
	return nil
}

// appending is one append.
type appending struct {
	s      *store
	m      *broker.Message
	o      broker.AppendOptions
	p      broker.Policy
	place  place
	stored []byte
}

func (s *store) newAppending(m *broker.Message, o broker.AppendOptions) *appending {
	return &appending{
		s: s, m: m, o: o, p: s.policy(m.Channel), place: placeOf(m.Channel, m.ID), stored: broker.AppendStored(nil, m),
	}
}

func (a *appending) refOp() *op {
	// As long as the record can last, if nobody gives the message a new retention.
	keep := max(a.p.Dedupe, a.p.Retention+a.p.Receipts)
	o := newOp(scriptRef, []string{a.s.names.ref(a.m.Channel, a.m.Ref)}, a.m.MID[:recordLength], wholeMillis(keep))
	o.stores = true // in the lane of the append, in front of it
	return o
}

// recordLength is how much of a MID finds its record: place and name.
const recordLength = 28

// try calls the script. used is the MID whose key may be used again, if the script said so.
func (a *appending) try(ctx context.Context, used string) (broker.Stored, error) {
	s, p := a.s, a.p
	key, aside := s.names.record(a.m.MID)
	if used != "" {
		_, aside = s.names.record(used)
	}
	waiter := ""
	if a.o.Wait {
		waiter = s.incarnation
	}
	room := s.room(a.place, p)
	o := newOp(scriptAppend, append(s.names.mailbox(a.place), key, aside),
		a.m.MID, a.o.Fingerprint, a.place.box, millis(a.o.Expires), max(0, wholeMillis(a.o.TTL)), wholeMillis(p.Retention),
		len(a.m.Body), a.stored, s.clock.highest(a.place.part), p.MaxPending, p.MaxPendingBytes,
		room.pending, room.bytes, room.records, room.dead, a.m.Channel, a.m.ID, a.m.Ref, waiter, wholeMillis(p.Dedupe), used,
		s.scriptsTell(), s.names.node(""), maxOffer)
	o.size += len(a.stored)
	o.stores, o.admit = true, func(sh *shard) error { return sh.admit(p) }
	o.then = func() { a.handOver(o) }
	if err := s.do(ctx, o); err != nil {
		return broker.Stored{}, err
	}
	r := replyOf(o.reply)
	what := r.text()
	s.clock.set(r.number())
	if what == "again" && used == "" {
		return a.try(ctx, r.text())
	}
	return a.result(what, r, o)
}

// handOver gives the owner of the mailbox the message that was stored. It runs in the order of the lane: who hears of
// one message after another need not read the mailbox.
func (a *appending) handOver(o *op) {
	r := replyOf(o.reply)
	if r.text() != "ok" {
		return
	}
	for range 3 { // time, MID, state
		r.next()
	}
	seq, owner := uint64(max(r.number(), 0)), r.text()
	for range 4 { // counts
		r.next()
	}
	prev, expires, retain, told := uint64(max(r.number(), 0)), r.number(), r.number(), r.number() == 1
	if r.err != nil {
		return // Append says so
	}
	a.s.clock.note(a.place.part, seq)
	if told {
		return
	}
	e := broker.Entry{Message: a.m, Seq: seq, Expires: fromMillis(expires), Retain: fromMillis(retain)}
	a.s.offer(a.place, owner, prev, e, a.stored)
}

// result turns the script's answer into that of Append.
func (a *appending) result(what string, r *reply, o *op) (broker.Stored, error) {
	s := a.s
	switch what {
	case "ok", "same", "duplicate":
	case "conflict":
		return broker.Stored{}, fmt.Errorf("%w: channel %s, destination %s", broker.ErrConflict, a.m.Channel, a.m.ID)
	case "expired":
		return broker.Stored{}, fmt.Errorf("%w: channel %s, destination %s", broker.ErrExpired, a.m.Channel, a.m.ID)
	default:
		return broker.Stored{}, a.full(what, r)
	}
	c := o.shard.seen()
	stored := broker.Stored{
		MID: r.text(), State: broker.State(r.text()), Duplicate: what == "duplicate", Durability: c.proven(o.replicas),
	}
	if what == "ok" {
		r.number() // sequence and owner: see handOver
		r.text()
		s.count(a.place, r)
	}
	if r.err != nil {
		return broker.Stored{}, s.wrong("append", r.err)
	}
	return stored, o.shard.shortfall(stored.Durability, o.replicas, a.m.Channel, a.p)
}

// shortfall returns what is missing of the proof that the broker or the channel demands, or nil.
func (sh *shard) shortfall(proven broker.Durability, of replicas, channel string, p broker.Policy) error {
	address := sh.where()
	switch why := sh.seen().volatile(); {
	case why != "" && !p.AllowVolatile: // it became so after the message was admitted
		return fmt.Errorf("%w: redis at %s may forget messages: %s", broker.ErrUnproven, address, why)
	case of.confirmed < of.asked:
		return fmt.Errorf("%w: %d of the %d replicas that the broker demands have confirmed it: see INFO replication of redis at %s",
			broker.ErrUnproven, of.confirmed, of.asked, address)
	case !proven.Meets(p.Durability):
		return fmt.Errorf("%w: redis at %s gives %s, and channel %s demands %s", broker.ErrUnproven, address, proven, channel, p.Durability)
	}
	return nil
}

// full returns the error for a limit, by the script's word for it.
func (a *appending) full(what string, r *reply) error {
	for range 4 { // MID, state, sequence, owner
		r.next()
	}
	a.s.count(a.place, r)
	return fullError(what, a.place, a.p)
}

func fullError(what string, at place, p broker.Policy) error {
	switch what {
	case "mailbox":
		return fmt.Errorf("%w: channel %s, destination %s: %d messages or %d bytes wait", broker.ErrMailboxFull, at.channel, at.id, p.MaxPending, p.MaxPendingBytes)
	case "channel":
		return fmt.Errorf("%w: channel %s: %d messages or %d bytes wait", broker.ErrChannelFull, at.channel, p.MaxChannelPending, p.MaxChannelBytes)
	case "records":
		return fmt.Errorf("%w: channel %s: %d are kept", broker.ErrRecordsFull, at.channel, p.MaxRecords)
	case "dead":
		return fmt.Errorf("%w: channel %s: %d are kept; send them again or drop some", broker.ErrDeadLettersFull, at.channel, p.MaxDead)
	}
	return fmt.Errorf("%w: redis answered %q", broker.ErrUnavailable, what)
}
