package brokertest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// deadAt returns where the dead letter is, or -1.
func (m *Memory) deadAt(rec *record) int {
	if rec.State != broker.StateDead {
		return -1
	}
	return slices.IndexFunc(m.dead[rec.Channel], func(e *entry) bool { return e.mid == rec.MID })
}

// DeadLetters implements [broker.Store].
func (m *Memory) DeadLetters(ctx context.Context, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	q.Limit = min(q.Limit, 1000)
	if err := m.enter(ctx); err != nil {
		return broker.DeadPage{}, err
	}
	defer m.mu.Unlock()
	var after uint64
	if q.After != "" {
		var err error
		if after, err = strconv.ParseUint(q.After, 10, 64); err != nil {
			return broker.DeadPage{}, fmt.Errorf("%q is not the Next of a page: leave it out to begin at the start", q.After)
		}
	}
	var page broker.DeadPage
	var last uint64
	for _, e := range m.dead[channel] {
		rec := m.records[e.mid]
		if e.died <= after || q.ID != "" && e.id != q.ID || q.Reason != "" && rec.Reason != q.Reason ||
			!q.Before.IsZero() && !rec.Finished.Before(q.Before) {
			continue
		}
		if len(page.Letters) == q.Limit {
			page.Next = strconv.FormatUint(last, 10)
			break
		}
		last = e.died
		page.Letters = append(page.Letters, broker.DeadLetter{Record: rec.Record, ContentType: e.contentType, Size: e.size})
	}
	return page, nil
}

// Resend implements [broker.Store].
func (m *Memory) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	if err := m.enter(ctx); err != nil {
		return broker.Stored{}, err
	}
	defer m.mu.Unlock()
	rec := m.records[mid]
	if rec == nil || m.deadAt(rec) < 0 {
		return broker.Stored{}, notFound(mid)
	}
	p, now, at := m.policy(rec.Channel), m.now(), m.deadAt(rec)
	e := m.dead[rec.Channel][at]
	if err := m.room(e.address, e.size, p); err != nil {
		return broker.Stored{}, err
	}
	m.dead[rec.Channel] = slices.Delete(m.dead[rec.Channel], at, at+1)
	e.counts, e.expires, e.retain = broker.Counts{}, time.Time{}, now.Add(p.Retention)
	if ttl != 0 {
		e.expires = now.Add(ttl)
	}
	rec.Record = broker.Record{
		MID: rec.MID, Channel: rec.Channel, ID: rec.ID, Ref: rec.Ref, Stored: rec.Stored, State: broker.StateStored, Expires: e.expires,
	}
	rec.end = make(chan struct{})
	m.put(e)
	return m.proven(broker.Stored{MID: mid, State: broker.StateStored}, p)
}

// Drop implements [broker.Store].
func (m *Memory) Drop(ctx context.Context, mid string) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	rec := m.records[mid]
	if rec == nil || m.deadAt(rec) < 0 {
		return notFound(mid)
	}
	m.erase(rec)
	return nil
}

// erase drops a dead letter.
func (m *Memory) erase(rec *record) {
	at := m.deadAt(rec)
	m.dead[rec.Channel] = slices.Delete(m.dead[rec.Channel], at, at+1)
	rec.State = broker.StateErased
	m.endings[broker.Ending{Channel: rec.Channel, State: broker.StateErased}]++
}
