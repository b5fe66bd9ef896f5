package brokertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// box is a mailbox.
type box struct {
	entries []*entry // in order
	bytes   int64
	owner   *attachment // who attached last, unless it detached; its node may have crashed
	line    []*attachment
}

func (b *box) find(seq uint64, mid string) int {
	return slices.IndexFunc(b.entries, func(e *entry) bool { return e.seq == seq && e.mid == mid })
}

// attachment is an owner's hold.
type attachment struct {
	address
	node   *Memory
	owner  broker.Owner
	fence  uint64
	window int

	peer  string
	since time.Time

	read uint64 // the highest sequence that was; guarded by world.mu

	calls sync.Mutex // held while Lost runs
	over  bool       // it ran, or must not any more
}

// Attach implements [broker.Store].
func (m *Memory) Attach(ctx context.Context, channel, id string, owner broker.Owner, o broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	if o.Window <= 0 {
		o.Window = 1
	}
	if o.Limit <= 0 {
		o.Limit = o.Window
	}
	if o.Bytes <= 0 {
		o.Bytes = 1 << 20
	}
	if err := m.enter(ctx); err != nil {
		return nil, broker.Page{}, err
	}
	defer m.mu.Unlock()
	where := address{channel, id}
	b := m.boxes[where]
	if b == nil {
		b = new(box)
		m.boxes[where] = b
	}
	a := &attachment{address: where, node: m, owner: owner, window: o.Window, peer: o.Address[:min(len(o.Address), broker.MaxAddress)], since: m.now()}
	if err := m.occupied(b, a, o.Mode); err != nil {
		return nil, broker.Page{}, err
	}
	if before := b.owner; before != nil {
		for i, e := range b.entries[:min(before.window, len(b.entries))] {
			e.counts.Attempts++
			if i == 0 {
				e.counts.Deaths++
			}
		}
		if !m.mute {
			before.node.bell.ring(func() { before.lose(broker.ErrFenced) })
		}
	}
	a.fence = m.next()
	b.owner = a
	m.held = append(m.held, a)
	return a, a.page(b, 0, o.Limit, o.Bytes), nil
}

// page returns entries.
func (a *attachment) page(b *box, after uint64, limit, bytes int) broker.Page {
	page := broker.Page{Through: after}
	for _, e := range b.entries {
		if e.seq <= after {
			continue
		}
		if page.More = len(page.Entries) >= limit || len(page.Entries) > 0 && e.size > bytes; page.More {
			break
		}
		bytes -= e.size
		page.Entries = append(page.Entries, e.entry())
		page.Through = e.seq
		a.read = max(a.read, e.seq)
	}
	return page
}

// Fence implements [broker.Mailbox].
func (a *attachment) Fence() uint64 { return a.fence }

// enter locks the store if a still owns the mailbox.
func (a *attachment) enter(ctx context.Context) (*box, error) {
	if err := a.node.enter(ctx); err != nil {
		return nil, err
	}
	b := a.node.boxes[a.address]
	if b == nil || b.owner != a {
		a.node.mu.Unlock()
		return nil, fmt.Errorf("%w: %s of %s, fence %d", broker.ErrFenced, a.id, a.channel, a.fence)
	}
	return b, nil
}

// Read implements [broker.Mailbox].
func (a *attachment) Read(ctx context.Context, after uint64, limit, bytes int) (broker.Page, error) {
	b, err := a.enter(ctx)
	if err != nil {
		return broker.Page{}, err
	}
	defer a.node.mu.Unlock()
	return a.page(b, after, limit, bytes), nil
}

// Settle implements [broker.Mailbox].
func (a *attachment) Settle(ctx context.Context, outcomes []broker.Outcome) ([]broker.Verdict, error) {
	b, err := a.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer a.node.mu.Unlock()
	return a.settle(b, outcomes), nil
}

func (a *attachment) settle(b *box, outcomes []broker.Outcome) []broker.Verdict {
	verdicts := make([]broker.Verdict, len(outcomes))
	for i, o := range outcomes {
		at := b.find(o.Seq, o.MID)
		switch {
		case at < 0:
			verdicts[i] = broker.Gone
		case o.State.Finished():
			b.entries[at].counts = o.Counts
			a.node.finish(b, at, o)
		default:
			b.entries[at].counts = o.Counts
		}
	}
	return verdicts
}

// Detach implements [broker.Mailbox].
func (a *attachment) Detach(ctx context.Context, counts []broker.Outcome) error {
	b, err := a.enter(ctx)
	if err == nil {
		a.settle(b, counts)
		b.owner = nil
		b.promote()
		a.node.tidy(a.address)
		a.node.mu.Unlock()
	}
	a.calls.Lock()
	defer a.calls.Unlock()
	a.over = true
	return err
}

// Leased implements [broker.Mailbox].
func (a *attachment) Leased() bool { return !a.node.unleased.Load() }

// ring tells the owner of news.
func (a *attachment) ring() { guard(a.owner.Ring) }

// offer hands the owner what was stored.
func (a *attachment) offer(prev uint64, e broker.Entry) { guard(func() { a.owner.Offer(prev, e) }) }

// lose tells the owner that it is not one any more, once.
func (a *attachment) lose(err error) {
	a.calls.Lock()
	defer a.calls.Unlock()
	if !a.over {
		a.over = true
		guard(func() { a.owner.Lost(err) })
	}
}

// guard calls an owner, whose panic is its own affair (I11). It returns whether there was none.
func guard(call func()) (sound bool) {
	defer func() {
		if recover() != nil {
			sound = false
		}
	}()
	call()
	return true
}

// finish takes an entry out of its mailbox and writes its receipt.
func (m *Memory) finish(b *box, at int, o broker.Outcome) {
	e := b.entries[at]
	b.entries = slices.Delete(b.entries, at, at+1)
	b.bytes -= int64(e.size)
	rec, now, p := m.records[e.mid], m.now(), m.policy(e.channel)
	rec.State, rec.Reason, rec.Detail, rec.Reply = o.State, o.Reason, o.Detail, slices.Clone(o.Reply)
	rec.Attempts, rec.Finished, rec.Node = e.counts.Attempts, now, m.o.Node
	rec.kept = now.Add(p.Receipts)
	if o.State == broker.StateDead {
		e.died = m.next()
		m.dead[e.channel] = append(m.dead[e.channel], e)
	}
	m.endings[broker.Ending{Channel: e.channel, State: o.State, Reason: o.Reason}]++
	close(rec.end)
	m.tidy(e.address)
}

// Unlease takes the lease from all owners of this node, as if the store had not been reached for long; false gives
// it back.
func (m *Memory) Unlease(unleased bool) {
	m.unleased.Store(unleased)
	if unleased {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.held {
		m.bell.ring(a.ring)
	}
}

// Forget has the store forget who owns a mailbox, as a Redis does that was emptied or has failed over; and these messages of it.
func (m *Memory) Forget(channel, id string, mids ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[address{channel, id}]
	if b == nil || b.owner == nil {
		return
	}
	a := b.owner
	b.owner = nil
	b.entries = slices.DeleteFunc(b.entries, func(e *entry) bool { return slices.Contains(mids, e.mid) })
	m.held = slices.DeleteFunc(m.held, func(other *attachment) bool { return other == a })
	a.node.bell.ring(func() { a.lose(broker.ErrForgotten) })
}

// tidy forgets a mailbox that holds nothing. Fences go on rising: they are of the whole store.
func (m *Memory) tidy(where address) {
	if b := m.boxes[where]; b != nil && b.owner == nil && len(b.entries) == 0 && len(b.line) == 0 {
		delete(m.boxes, where)
	}
}
