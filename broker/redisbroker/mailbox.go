package redisbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyrelay/relay/broker"
)

// mailbox is an owner's hold on a mailbox.
type mailbox struct {
	s     *store
	place place
	name  string // of the owner, unlike that of any other attach
	owner broker.Owner

	mu    sync.Mutex
	fence uint64 // 0 while it is being attached
	read  uint64 // the last sequence that the owner has read, or was rung for
	stale bool   // another server has it since it was attached
	over  error  // why the owner is none any more; errDetached after Detach

	// telling is held while the owner is told of the end, so that Detach can wait for that.
	telling sync.Mutex
}

var errDetached = fmt.Errorf("%w: it was given up", broker.ErrFenced)

// maxWindow bounds what a script does for the entries that an owner who is gone may have pushed.
const maxWindow = 4096

// Attach implements [broker.Store].
func (b *Broker) Attach(ctx context.Context, channel, id string, owner broker.Owner, o broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	leave, err := b.enter()
	if err != nil {
		return nil, broker.Page{}, err
	}
	defer leave()
	s := b.store
	o.Window = min(max(o.Window, 1), maxWindow)
	limit, size := cmp.Or(max(o.Limit, 0), o.Window), cmp.Or(max(o.Bytes, 0), 1<<20)
	m := s.inLine(placeOf(channel, id), owner)
	if m == nil {
		m = &mailbox{s: s, place: placeOf(channel, id), name: s.newOwner(), owner: owner}
	}
	s.register(m) // before, so that no ring is missed
	o.Limit, o.Bytes = limit, size
	r, err := s.take(ctx, m, o)
	if err == nil {
		s.outOfLine(m)
		var page broker.Page
		if page, err = m.attached(r); err == nil {
			return m, page, nil
		}
	}
	s.unregister(m)
	if errors.Is(err, broker.ErrHeld) || errors.Is(err, broker.ErrLineFull) {
		return nil, broker.Page{}, err
	}
	s.outOfLine(m)
	if !errors.Is(err, broker.ErrRefused) {
		// Redis may believe that this owner has it, whom nobody will hear of.
		s.orphaned(m, nil)
	}
	return nil, broker.Page{}, err
}

// attached takes the script's answer.
func (m *mailbox) attached(r *reply) (broker.Page, error) {
	s := m.s
	now, fence, last, before := r.number(), uint64(r.number()), uint64(r.number()), r.text()
	page, err := r.page(0, last)
	if err != nil {
		return page, s.wrong("attach", err)
	}
	s.clock.set(now)
	s.clock.note(m.place.part, max(fence, last))
	m.mu.Lock()
	m.fence = fence
	m.mu.Unlock()
	m.noteRead(page)
	if s.muted.Load() {
		return page, nil
	}
	for _, other := range s.local(m.place.box) {
		other.mu.Lock()
		theirs := other.fence
		other.mu.Unlock()
		switch {
		case theirs > fence: // it came later, and was answered sooner
			m.lose(broker.ErrFenced)
		case theirs != 0 && theirs < fence:
			other.lose(broker.ErrFenced)
		}
	}
	if before != "" && !s.ours(before) {
		s.notices.lost(s.names.node(before), m.place.box, before)
	}
	return page, nil
}

func (m *mailbox) noteRead(page broker.Page) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read = max(m.read, page.Through)
}

// Fence implements [broker.Mailbox].
func (m *mailbox) Fence() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fence
}

// end returns why the owner is none any more, or nil.
func (m *mailbox) end() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.over
}

// enter begins a call for the owner.
func (m *mailbox) enter() (func(), error) {
	leave, err := m.s.b.enter()
	if err != nil {
		return nil, err
	}
	if err := m.end(); err != nil {
		leave()
		return nil, fmt.Errorf("%w: channel %s, destination %s", err, m.place.channel, m.place.id)
	}
	return leave, nil
}

// lose tells the owner that it is none any more.
func (m *mailbox) lose(err error) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	news := m.over == nil
	if news {
		m.over = err
	}
	m.mu.Unlock()
	if news {
		m.s.unregister(m)
		m.s.guard("Lost", func() { m.owner.Lost(err) })
	}
}

// fenced is called when a script says that m is not the owner, and finds out why.
func (m *mailbox) fenced(ctx context.Context) error {
	reply, err := m.s.command(ctx, "HMGET", m.s.names.mailbox(m.place)[0], "o", "l", "f")
	if err != nil {
		return err
	}
	h, ok := readHold(replyOf(reply))
	if !ok {
		return m.s.wrong("owner", errors.New("the answer is not one"))
	}
	why := h.why(m)
	m.lose(why)
	return fmt.Errorf("%w: channel %s, destination %s", why, m.place.channel, m.place.id)
}

// Read implements [broker.Mailbox].
func (m *mailbox) Read(ctx context.Context, after uint64, limit, bytes int) (broker.Page, error) {
	leave, err := m.enter()
	if err != nil {
		return broker.Page{}, err
	}
	defer leave()
	s := m.s
	r, err := s.call(ctx, scriptRead, s.names.mailbox(m.place), m.name, after, max(limit, 1), bytes)
	if err != nil {
		return broker.Page{}, err
	}
	s.clock.set(r.number())
	if !r.more() {
		return broker.Page{}, m.fenced(ctx)
	}
	page, err := r.page(after, uint64(max(r.number(), 0)))
	if err != nil {
		return page, s.wrong("read", err)
	}
	m.noteRead(page)
	return page, nil
}

// Settle implements [broker.Mailbox].
func (m *mailbox) Settle(ctx context.Context, outcomes []broker.Outcome) ([]broker.Verdict, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if len(outcomes) == 0 {
		return nil, nil
	}
	done, err := m.s.settle(ctx, settling{mode: "own", place: m.place, owner: m.name, outcomes: outcomes})
	if err != nil {
		return nil, err
	}
	if done.fenced {
		return nil, m.fenced(ctx)
	}
	verdicts := make([]broker.Verdict, len(outcomes))
	for i := range verdicts {
		if done.verdicts[i] != '0' {
			verdicts[i] = broker.Gone
		}
	}
	return verdicts, nil
}

// Detach implements [broker.Mailbox].
func (m *mailbox) Detach(ctx context.Context, counts []broker.Outcome) error {
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	m.telling.Lock()
	m.mu.Lock()
	over := m.over
	if over == nil {
		m.over = errDetached
	}
	m.mu.Unlock()
	m.telling.Unlock()
	if over != nil {
		return fmt.Errorf("%w: channel %s, destination %s", over, m.place.channel, m.place.id)
	}
	m.s.unregister(m)
	done, err := m.s.settle(ctx, settling{mode: "detach", place: m.place, owner: m.name, outcomes: counts})
	switch {
	case err != nil:
		m.s.orphaned(m, counts)
		return err
	case done.fenced:
		return fmt.Errorf("%w: channel %s, destination %s", broker.ErrFenced, m.place.channel, m.place.id)
	}
	return nil
}

func (s *store) register(m *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes[m.place.box] = append(slices.Clone(s.boxes[m.place.box]), m)
}

func (s *store) unregister(m *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(s.boxes[m.place.box]), func(other *mailbox) bool { return other == m })
	if len(rest) == 0 {
		delete(s.boxes, m.place.box)
		return
	}
	s.boxes[m.place.box] = rest
}

// local returns this node's mailboxes of a name.
func (s *store) local(box string) []*mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boxes[box]
}

// owned returns this node's mailbox that an owner of that name has, or nil.
func (s *store) owned(box, owner string) *mailbox {
	for _, m := range s.local(box) {
		if m.name == owner {
			return m
		}
	}
	return nil
}

// guard calls an owner. A panic in it is its own affair (I11).
func (s *store) guard(what string, f func()) {
	defer func() {
		if v := recover(); v != nil {
			s.b.o.Logger.Error("an owner panicked", "call", what, "panic", v)
		}
	}()
	f()
}
