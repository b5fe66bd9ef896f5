package redisbroker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// attachModes are the words of the script.
var attachModes = map[broker.AttachMode]string{broker.Takeover: "takeover", broker.Reject: "reject", broker.Standby: "standby"}

// take calls the script that makes m the owner. Whoever the script says has the mailbox, or is in front in the line, may
// be a node that has died without a word: then it is called again, with its name.
func (s *store) take(ctx context.Context, m *mailbox, o broker.AttachOptions) (*reply, error) {
	if !s.beaten.Load() { // or others would take this node for dead
		if err := s.beat(ctx); err != nil {
			return nil, err
		}
	}
	address := o.Address[:min(len(o.Address), broker.MaxAddress)]
	args := []any{m.name, o.Window, o.Limit, o.Bytes, s.clock.highest(m.place.part), attachModes[o.Mode], broker.MaxStandby, m.place.id, address, 0}
	const until = 9
	for {
		ask := newOp(scriptAttach, s.names.attachment(m.place), args...)
		ask.admit = func(*shard) error { // which is called when it is sent
			ask.args[until] = s.until(ctx)
			return nil
		}
		if err := s.do(ctx, ask); err != nil {
			return nil, err
		}
		r := replyOf(ask.reply)
		if len(r.values) < 4 || r.values[1] != int64(0) {
			return r, nil
		}
		s.clock.set(r.number())
		r.number()
		why, holder := r.number(), r.text()
		full := why == 1
		if r.err != nil {
			return nil, s.wrong("attach", r.err)
		}
		if why == 2 {
			return nil, fmt.Errorf("%w: %w: the attach of %s reached redis too late", broker.ErrRefused, broker.ErrUnavailable, m.place.id)
		}
		alive, err := s.alive(ctx, holder)
		if err != nil {
			return nil, err
		}
		switch {
		case !alive && len(args) < 100:
			args = append(args, incarnationOf(holder))
			continue
		case full:
			return nil, fmt.Errorf("%w: channel %s, destination %s", broker.ErrLineFull, m.place.channel, m.place.id)
		case o.Mode == broker.Standby:
			s.standInLine(m)
		}
		return nil, fmt.Errorf("%w: channel %s, destination %s: on the node %s", broker.ErrHeld, m.place.channel, m.place.id, nodeOf(incarnationOf(holder)))
	}
}

// until returns when the server is to refuse what a caller with this context asks for now, by the server's clock in
// microseconds; 0 if that is not known.
func (s *store) until(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(s.b.o.Timeout); !ok || deadline.After(limit) {
		deadline = limit // an exchange may not take longer
	}
	if !s.clock.known() {
		return 0
	}
	return s.clock.now().Add(time.Until(deadline)).UnixMicro()
}

// Leave implements [broker.Store].
func (b *Broker) Leave(ctx context.Context, channel, id string, owner broker.Owner) error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	defer leave()
	s := b.store
	m := s.inLine(placeOf(channel, id), owner)
	if m == nil {
		return nil
	}
	s.outOfLine(m)
	if err := s.leave(ctx, m.place, m.name); err != nil {
		s.orphaned(m, nil) // who is behind it must not wait for ever
		return err
	}
	return nil
}

// leave takes an owner out of the line, and tells the first in it if the mailbox is free.
func (s *store) leave(ctx context.Context, at place, name string) error {
	r, err := s.call(ctx, scriptLeave, s.names.mailbox(at), name)
	if err != nil {
		return err
	}
	s.clock.set(r.number())
	s.ring(at, r.text())
	return nil
}

// inLine returns the owner's place in the line for a mailbox, or nil.
func (s *store) inLine(at place, owner broker.Owner) *mailbox {
	for _, m := range s.waiting(at.box) {
		if m.owner == owner {
			return m
		}
	}
	return nil
}

// waiting returns this node's owners that wait for a mailbox.
func (s *store) waiting(box string) []*mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.line[box]
}

func (s *store) standInLine(m *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if box := m.place.box; !slices.Contains(s.line[box], m) {
		s.line[box] = append(slices.Clone(s.line[box]), m)
	}
}

func (s *store) outOfLine(m *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	box := m.place.box
	if len(s.line[box]) == 0 {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(s.line[box]), func(other *mailbox) bool { return other == m })
	if len(rest) == 0 {
		delete(s.line, box)
		return
	}
	s.line[box] = rest
}

// aliveFor is how long an answer of alive is remembered.
const aliveFor = time.Second

// life is what was found out of a node.
type life struct {
	alive bool
	at    time.Time
}

// alive reports whether the node of an owner has been heard of within a lease.
func (s *store) alive(ctx context.Context, owner string) (bool, error) {
	if s.ours(owner) {
		return true, nil
	}
	name := incarnationOf(owner)
	s.mu.Lock()
	known := s.lives[name]
	s.mu.Unlock()
	if time.Since(known.at) < aliveFor {
		return known.alive, nil
	}
	n, err := s.command(ctx, "EXISTS", s.names.live(owner))
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lives) > 1000 { // nodes come and go
		clear(s.lives)
	}
	s.lives[name] = life{n == int64(1), time.Now()}
	return n == int64(1), nil
}

// beat says that this node is alive.
func (s *store) beat(ctx context.Context) error {
	_, err := s.hold(ctx, s.names.live(s.incarnation), s.b.o.Lease, false)
	s.beaten.Store(s.beaten.Load() || err == nil)
	return err
}

// depart says that this node is none any more, so that nobody has to wait for that.
func (s *store) depart(limit time.Duration) {
	if !s.beaten.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(s.b.ctx, limit)
	defer cancel()
	_, _ = s.command(ctx, "DEL", s.names.live(s.incarnation)) // or they wait for the end of its lease
}

// lookAtLine rings owners in line whose turn it may be, because nobody has the mailbox or its owner's node is dead.
func (m *mailbox) lookAtLine(ctx context.Context, h held) {
	if h.owner != "" {
		if alive, err := m.s.alive(ctx, h.owner); alive || err != nil {
			return
		}
	}
	m.s.guard("Ring", m.owner.Ring)
}
