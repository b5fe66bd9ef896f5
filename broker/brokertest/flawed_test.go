package brokertest

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// flaw is what is wrong with a store: methods that do something else. s.Memory does it right.
type flaw struct {
	name   string
	checks []string // that must find it

	policy   func(*broker.Policy)
	crash    func(*Memory)
	now      func(*flawed) time.Time
	append   func(*flawed, context.Context, *broker.Message, broker.AppendOptions) (broker.Stored, error)
	owner    func(broker.Owner) broker.Owner
	unleased bool
	mode     func(*flawed, *broker.AttachOptions)
	held     func(error) error
	stays    bool // who leaves the line
	online   func(*broker.Presence) bool
	entries  func(*flawed, []broker.Entry) []broker.Entry
	pages    func(*broker.Page)
	fence    func(uint64) uint64
	attach   func(*flawed, *attachment)
	read     func(a *attachment, ctx context.Context, after uint64, limit, bytes int) (broker.Page, error)
	settle   func(*attachment, context.Context, []broker.Outcome) ([]broker.Verdict, error)
	detach   func(*attachment, context.Context, []broker.Outcome) error
	lookup   func(*flawed, broker.Record, error) (broker.Record, error)
	find     func(*flawed, context.Context, string, string, int) ([]broker.Record, error)
	content  func(*flawed, *broker.Message, error) (*broker.Message, error)
	await    func(*flawed, context.Context, string) (broker.Record, error)
	cancel   func(*flawed, context.Context, string) (broker.Cancelled, error)
	dead     func(*flawed, context.Context, string, broker.DeadQuery) (broker.DeadPage, error)
	resend   func(*flawed, context.Context, string, time.Duration) (broker.Stored, error)
	drop     func(*flawed, context.Context, string) error
	usage    func(map[string]broker.Usage, error) (map[string]broker.Usage, error)
	endings  func(map[broker.Ending]uint64)
	ready    func(error) error
	close    func(*flawed)
}

// harness makes stores with the flaw.
func (f *flaw) harness() StoreHarness {
	h := memoryHarness(true)
	sound := h.Backend
	h.Backend = func(t testing.TB) StoreBackend {
		b := sound(t)
		open := b.Open
		b.Open = func() broker.Store { return &flawed{Memory: open().(*Memory), f: f} }
		b.Crash = func(s broker.Store) {
			m := s.(*flawed).Memory
			m.Crash()
			if f.crash != nil {
				m.mu.Lock()
				defer m.mu.Unlock()
				f.crash(m)
			}
		}
		return b
	}
	return h
}

// flawed is a store with a flaw.
type flawed struct {
	*Memory
	f     *flaw
	calls atomic.Int64
}

func (s *flawed) SetPolicies(p map[string]broker.Policy) {
	changed := make(map[string]broker.Policy)
	for channel, policy := range p {
		if s.f.policy != nil {
			s.f.policy(&policy)
		}
		changed[channel] = policy
	}
	s.Memory.SetPolicies(changed)
}

func (s *flawed) Now() time.Time {
	if s.f.now != nil {
		return s.f.now(s)
	}
	return s.Memory.Now()
}

func (s *flawed) Append(ctx context.Context, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	if s.f.append != nil {
		return s.f.append(s, ctx, m, o)
	}
	return s.Memory.Append(ctx, m, o)
}

func (s *flawed) Attach(ctx context.Context, channel, id string, o broker.Owner, options broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	if s.f.owner != nil {
		o = s.f.owner(o)
	}
	if s.f.mode != nil {
		s.f.mode(s, &options)
	}
	box, page, err := s.Memory.Attach(ctx, channel, id, o, options)
	if err != nil && s.f.held != nil {
		err = s.f.held(err)
	}
	if err != nil {
		return nil, broker.Page{}, err
	}
	if s.f.attach != nil {
		s.mu.Lock()
		s.f.attach(s, box.(*attachment))
		s.mu.Unlock()
	}
	if s.f.entries != nil {
		page.Entries = s.f.entries(s, page.Entries)
	}
	if s.f.pages != nil {
		s.f.pages(&page)
	}
	return &flawedBox{attachment: box.(*attachment), s: s}, page, nil
}

func (s *flawed) Leave(ctx context.Context, channel, id string, o broker.Owner) error {
	if s.f.stays {
		return nil
	}
	return s.Memory.Leave(ctx, channel, id, o)
}

func (s *flawed) Online(ctx context.Context, channel, id string) (broker.Presence, error) {
	p, err := s.Memory.Online(ctx, channel, id)
	if f := s.f.online; f != nil && !f(&p) {
		err = broker.ErrNotFound
	}
	return p, err
}

func (s *flawed) Presence(ctx context.Context, channel string, q broker.PresenceQuery) (broker.PresencePage, error) {
	page, err := s.Memory.Presence(ctx, channel, q)
	if f := s.f.online; f != nil {
		page.Online = slices.DeleteFunc(page.Online, func(p broker.Presence) bool { return !f(&p) })
	}
	return page, err
}

type flawedBox struct {
	*attachment
	s *flawed
}

func (b *flawedBox) Leased() bool { return !b.s.f.unleased }

func (b *flawedBox) Fence() uint64 {
	if f := b.s.f.fence; f != nil {
		return f(b.attachment.Fence())
	}
	return b.attachment.Fence()
}

func (b *flawedBox) Read(ctx context.Context, after uint64, limit, bytes int) (broker.Page, error) {
	if f := b.s.f.read; f != nil {
		return f(b.attachment, ctx, after, limit, bytes)
	}
	page, err := b.attachment.Read(ctx, after, limit, bytes)
	if f := b.s.f.entries; f != nil {
		page.Entries = f(b.s, page.Entries)
	}
	if f := b.s.f.pages; f != nil {
		f(&page)
	}
	return page, err
}

func (b *flawedBox) Settle(ctx context.Context, o []broker.Outcome) ([]broker.Verdict, error) {
	if f := b.s.f.settle; f != nil {
		return f(b.attachment, ctx, o)
	}
	return b.attachment.Settle(ctx, o)
}

func (b *flawedBox) Detach(ctx context.Context, o []broker.Outcome) error {
	if f := b.s.f.detach; f != nil {
		return f(b.attachment, ctx, o)
	}
	return b.attachment.Detach(ctx, o)
}

func (s *flawed) Lookup(ctx context.Context, mid string) (broker.Record, error) {
	rec, err := s.Memory.Lookup(ctx, mid)
	if s.f.lookup != nil {
		return s.f.lookup(s, rec, err)
	}
	return rec, err
}

func (s *flawed) Find(ctx context.Context, channel, ref string, limit int) ([]broker.Record, error) {
	if s.f.find != nil {
		return s.f.find(s, ctx, channel, ref, limit)
	}
	return s.Memory.Find(ctx, channel, ref, limit)
}

func (s *flawed) Content(ctx context.Context, mid string) (*broker.Message, error) {
	m, err := s.Memory.Content(ctx, mid)
	if s.f.content != nil {
		return s.f.content(s, m, err)
	}
	return m, err
}

func (s *flawed) Await(ctx context.Context, mid string) (broker.Record, error) {
	if s.f.await != nil {
		return s.f.await(s, ctx, mid)
	}
	return s.Memory.Await(ctx, mid)
}

func (s *flawed) Cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	if s.f.cancel != nil {
		return s.f.cancel(s, ctx, mid)
	}
	return s.Memory.Cancel(ctx, mid)
}

func (s *flawed) DeadLetters(ctx context.Context, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
	if s.f.dead != nil {
		return s.f.dead(s, ctx, channel, q)
	}
	return s.Memory.DeadLetters(ctx, channel, q)
}

func (s *flawed) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	if s.f.resend != nil {
		return s.f.resend(s, ctx, mid, ttl)
	}
	return s.Memory.Resend(ctx, mid, ttl)
}

func (s *flawed) Drop(ctx context.Context, mid string) error {
	if s.f.drop != nil {
		return s.f.drop(s, ctx, mid)
	}
	return s.Memory.Drop(ctx, mid)
}

func (s *flawed) Usage(ctx context.Context) (map[string]broker.Usage, error) {
	u, err := s.Memory.Usage(ctx)
	if s.f.usage != nil {
		return s.f.usage(u, err)
	}
	return u, err
}

func (s *flawed) Endings() map[broker.Ending]uint64 {
	e := s.Memory.Endings()
	if s.f.endings != nil {
		s.f.endings(e)
	}
	return e
}

func (s *flawed) Ready() error {
	err := s.Memory.Ready()
	if s.f.ready != nil {
		return s.f.ready(err)
	}
	return err
}

func (s *flawed) Close() error {
	if s.f.close != nil {
		s.f.close(s)
	}
	return s.Memory.Close()
}

// entryOf returns an unfinished entry. The caller holds the lock.
func (w *world) entryOf(mid string) *entry {
	for _, b := range w.boxes {
		for _, e := range b.entries {
			if e.mid == mid {
				return e
			}
		}
	}
	return nil
}

// flawedOwner is told something else than it should be.
type flawedOwner struct {
	broker.Owner
	ring     func(broker.Owner)
	offer    func(broker.Owner, uint64, broker.Entry)
	lost     func(broker.Owner, error)
	withdraw func(broker.Owner, uint64, string) bool
	attempts func() (int, bool)
}

func (o *flawedOwner) Offer(prev uint64, e broker.Entry) {
	if o.ring == nil && o.offer == nil {
		o.Owner.Offer(prev, e)
	} else if o.offer == nil {
		o.ring(o.Owner)
	} else {
		o.offer(o.Owner, prev, e)
	}
}

func (o *flawedOwner) Ring() {
	if o.ring == nil {
		o.Owner.Ring()
		return
	}
	o.ring(o.Owner)
}

func (o *flawedOwner) Lost(err error) {
	if o.lost == nil {
		o.Owner.Lost(err)
		return
	}
	o.lost(o.Owner, err)
}

func (o *flawedOwner) Withdraw(seq uint64, mid string) bool {
	if o.withdraw == nil {
		return o.Owner.Withdraw(seq, mid)
	}
	return o.withdraw(o.Owner, seq, mid)
}

func (o *flawedOwner) Attempts(seq uint64, mid string) (int, bool) {
	if o.attempts == nil {
		return o.Owner.Attempts(seq, mid)
	}
	return o.attempts()
}
