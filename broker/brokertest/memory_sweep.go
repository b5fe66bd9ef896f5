package brokertest

import (
	"context"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// tick sees to what is due, and to notices that were lost.
func (m *Memory) tick() {
	if m.enter(context.Background()) != nil {
		return
	}
	defer m.mu.Unlock()
	m.sweep(m.now())
	for _, b := range m.boxes {
		a := b.owner
		if a != nil && a.node == m && len(b.entries) > 0 && b.entries[len(b.entries)-1].seq > a.read {
			m.bell.ring(a.ring)
		}
		b.line = slices.DeleteFunc(b.line, func(other *attachment) bool { return other.node.ended != nil })
		if len(b.line) > 0 && b.line[0].node == m && (a == nil || a.node.ended != nil) {
			m.bell.ring(b.line[0].ring)
		}
	}
	m.lookForLost()
}

// lookForLost tells the owners of this node that have lost their mailbox, in case the notice was.
func (m *Memory) lookForLost() {
	for _, a := range m.held {
		if b := m.boxes[a.address]; b == nil || b.owner != a {
			m.bell.ring(func() { a.lose(broker.ErrFenced) })
		}
	}
	m.held = slices.DeleteFunc(m.held, func(a *attachment) bool {
		b := m.boxes[a.address]
		return b == nil || b.owner != a
	})
}

// sweep finishes what is due.
func (m *Memory) sweep(now time.Time) {
	for _, b := range m.boxes {
		grace := time.Duration(0)
		if b.owner != nil && b.owner.node.ended == nil {
			grace = 2 * m.o.Interval
		}
		for _, e := range slices.Clone(b.entries) {
			at := b.find(e.seq, e.mid)
			switch {
			case !e.expires.IsZero() && !now.Before(e.expires.Add(grace)):
				m.finish(b, at, broker.Outcome{State: broker.StateExpired})
			case !now.Before(e.retain.Add(grace)):
				m.finish(b, at, broker.Outcome{State: broker.StateDead, Reason: broker.DeadRetention})
			}
		}
	}
	for mid, rec := range m.records {
		switch p := m.policy(rec.Channel); {
		case m.deadAt(rec) >= 0:
			if !now.Before(rec.Finished.Add(p.DeadRetention)) {
				m.erase(rec)
			}
		case rec.State.Finished() && !now.Before(rec.kept) && !now.Before(rec.remembered):
			delete(m.records, mid)
			if k := (keyed{address{rec.Channel, rec.ID}, rec.key}); m.keys[k] == mid {
				delete(m.keys, k)
			}
		}
	}
}

// Usage implements [broker.Store].
func (m *Memory) Usage(ctx context.Context) (map[string]broker.Usage, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	usage := make(map[string]broker.Usage)
	for where, b := range m.boxes {
		if len(b.entries) == 0 {
			continue
		}
		u := usage[where.channel]
		u.Mailboxes++
		u.Pending += len(b.entries)
		u.Bytes += b.bytes
		usage[where.channel] = u
	}
	for _, rec := range m.records {
		u := usage[rec.Channel]
		u.Records++
		if !rec.State.Finished() && (u.Oldest.IsZero() || rec.Stored.Before(u.Oldest)) {
			u.Oldest = rec.Stored
		}
		u.Dead = len(m.dead[rec.Channel])
		usage[rec.Channel] = u
	}
	return usage, nil
}
