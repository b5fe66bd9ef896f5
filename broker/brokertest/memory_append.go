package brokertest

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// entry is an unfinished message or a dead letter.
type entry struct {
	address
	mid, contentType string
	seq, died        uint64
	data             []byte // by broker.AppendStored
	size             int
	expires, retain  time.Time
	counts           broker.Counts
}

// message returns a fresh copy, as a store on a disk does.
func (e *entry) message() *broker.Message {
	m, err := broker.ParseStored(bytes.Clone(e.data))
	if err != nil { // AppendStored wrote it
		panic(err)
	}
	return m
}

// entry returns e as an owner reads it.
func (e *entry) entry() broker.Entry {
	return broker.Entry{Message: e.message(), Seq: e.seq, Expires: e.expires, Retain: e.retain, Counts: e.counts}
}

// record is what is known of a message, for as long as that is.
type record struct {
	broker.Record
	key         string
	fingerprint []byte
	remembered  time.Time     // the key is, until then
	kept        time.Time     // the receipt is, until then
	end         chan struct{} // closed when it is finished
}

// Append implements [broker.Store].
func (m *Memory) Append(ctx context.Context, msg *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	if err := m.enter(ctx); err != nil {
		return broker.Stored{}, err
	}
	defer m.mu.Unlock()
	where, now := address{msg.Channel, msg.ID}, m.now()
	stored, known, err := m.known(where, msg.MID, o, now)
	if known || err != nil {
		return stored, err
	}
	if o.TTL != 0 {
		o.Expires = now.Add(o.TTL)
	}
	if !o.Expires.IsZero() && !o.Expires.After(now) {
		return broker.Stored{}, fmt.Errorf("%w: it was %s, and is %s now", broker.ErrExpired, o.Expires, now)
	}
	p := m.policy(msg.Channel)
	if err := m.room(where, len(msg.Body), p); err != nil {
		return broker.Stored{}, err
	}
	if len(m.dead[msg.Channel]) >= p.MaxDead {
		return broker.Stored{}, fmt.Errorf("%w: channel %s", broker.ErrDeadLettersFull, msg.Channel)
	}
	if m.recordsOf(msg.Channel) >= p.MaxRecords {
		return broker.Stored{}, fmt.Errorf("%w: channel %s", broker.ErrRecordsFull, msg.Channel)
	}
	if o.Key != "" {
		k := keyed{where, o.Key}
		if old := m.records[m.keys[k]]; old != nil && m.deadAt(old) < 0 {
			delete(m.records, old.MID)
		}
		m.keys[k] = msg.MID
	}
	m.records[msg.MID] = &record{
		Record: broker.Record{MID: msg.MID, Channel: msg.Channel, ID: msg.ID, Ref: msg.Ref, State: broker.StateStored, Stored: now, Expires: o.Expires},
		key:    o.Key, fingerprint: bytes.Clone(o.Fingerprint), remembered: now.Add(p.Dedupe), end: make(chan struct{}),
	}
	m.put(&entry{
		address: where, mid: msg.MID, contentType: msg.ContentType, data: broker.AppendStored(nil, msg), size: len(msg.Body),
		expires: o.Expires, retain: now.Add(p.Retention),
	})
	return m.proven(broker.Stored{MID: msg.MID, State: broker.StateStored}, p)
}

// known answers for a message that was appended before, or whose key was.
func (m *Memory) known(where address, mid string, o broker.AppendOptions, now time.Time) (s broker.Stored, known bool, err error) {
	rec, p := m.records[mid], m.policy(where.channel)
	if rec == nil && o.Key != "" {
		rec = m.records[m.keys[keyed{where, o.Key}]]
		if rec != nil && rec.State.Finished() && !now.Before(rec.remembered) {
			rec = nil
		}
	}
	if rec == nil {
		return s, false, nil
	}
	if len(rec.fingerprint) > 0 && len(o.Fingerprint) > 0 && !bytes.Equal(rec.fingerprint, o.Fingerprint) {
		return s, true, fmt.Errorf("%w: %s", broker.ErrConflict, rec.MID)
	}
	s, err = m.proven(broker.Stored{MID: rec.MID, State: rec.State, Duplicate: rec.MID != mid}, p)
	return s, true, err
}

// proven names the durability.
func (m *Memory) proven(s broker.Stored, p broker.Policy) (broker.Stored, error) {
	s.Durability = m.o.Durability
	if !s.Durability.Meets(p.Durability) {
		return s, fmt.Errorf("%w: %s is demanded, and this is %s", broker.ErrUnproven, p.Durability, s.Durability)
	}
	return s, nil
}

// room returns an error if there is none for another message.
func (m *Memory) room(where address, size int, p broker.Policy) error {
	if b := m.boxes[where]; b != nil && (len(b.entries) >= p.MaxPending || b.bytes+int64(size) > p.MaxPendingBytes) {
		return fmt.Errorf("%w: %d messages of %d bytes wait for %s", broker.ErrMailboxFull, len(b.entries), b.bytes, where.id)
	} else if b == nil && int64(size) > p.MaxPendingBytes {
		return fmt.Errorf("%w: the message has %d bytes", broker.ErrMailboxFull, size)
	}
	var pending int
	var total int64
	for a, b := range m.boxes {
		if a.channel == where.channel {
			pending += len(b.entries)
			total += b.bytes
		}
	}
	if pending >= p.MaxChannelPending || total+int64(size) > p.MaxChannelBytes {
		return fmt.Errorf("%w: %d messages of %d bytes wait in %s", broker.ErrChannelFull, pending, total, where.channel)
	}
	return nil
}

func (m *Memory) recordsOf(channel string) (n int) {
	for _, r := range m.records {
		if r.Channel == channel {
			n++
		}
	}
	return n
}

// put stores e at the end of its mailbox, and rings.
func (m *Memory) put(e *entry) {
	b := m.boxes[e.address]
	if b == nil {
		b = new(box)
		m.boxes[e.address] = b
	}
	e.seq = m.next()
	prev := uint64(0)
	if n := len(b.entries); n > 0 {
		prev = b.entries[n-1].seq
	}
	b.entries = append(b.entries, e)
	b.bytes += int64(e.size)
	if a := b.owner; a != nil && !m.mute {
		stored := e.entry()
		a.node.bell.ring(func() { a.offer(prev, stored) })
	}
}
