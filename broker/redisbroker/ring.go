package redisbroker

import (
	"context"

	"github.com/caddyrelay/relay/broker"
)

// maxOffer is the largest message that is handed over on a node's channel. Larger ones the owner reads.
const maxOffer = 8 << 10

// scriptsTell returns this process's name if scripts are to tell owners on other nodes what they stored.
func (s *store) scriptsTell() string {
	if s.muted.Load() || s.b.kind.Load() == kindCluster { // there, only the channels of one slot can be reached from a script
		return ""
	}
	return s.incarnation
}

// offer hands the owner of a mailbox, wherever it is, an entry that was stored for it.
func (s *store) offer(at place, owner string, prev uint64, e broker.Entry, stored []byte) {
	switch {
	case owner == "" || s.muted.Load():
	case s.ours(owner):
		if m := s.owned(at.box, owner); m != nil {
			m.offer(prev, e)
		}
	case len(stored) > maxOffer:
		s.notices.ring(s.names.node(owner), at.box)
	default:
		s.notices.offer(s.names.node(owner), offer{Box: at.box, Owner: owner, Prev: prev, Entry: entryText(e, stored)})
	}
}

// offer hands the owner an entry. It cannot be lost here, so nobody need look for it.
func (m *mailbox) offer(prev uint64, e broker.Entry) {
	m.mu.Lock()
	over := m.over != nil
	m.read = max(m.read, e.Seq)
	m.mu.Unlock()
	if !over {
		m.s.guard("Offer", func() { m.owner.Offer(prev, e) })
	}
}

// Leased implements [broker.Mailbox].
func (m *mailbox) Leased() bool { return m.s.leased(m.place.part) }

// ring tells an owner, wherever it is, that its mailbox has news.
func (s *store) ring(at place, owner string) {
	switch {
	case owner == "" || s.muted.Load():
	case s.ours(owner):
		s.ringHere(at.box)
	default:
		s.notices.ring(s.names.node(owner), at.box)
	}
}

// ringOwner tells whoever has a mailbox that it may have news.
func (s *store) ringOwner(ctx context.Context, at place) {
	v, err := s.command(ctx, "HGET", s.names.mailbox(at)[0], "o")
	if owner, ok := v.(string); ok && err == nil {
		s.ring(at, owner)
	}
}

func (s *store) ringHere(box string) {
	for _, m := range s.local(box) {
		s.guard("Ring", m.owner.Ring)
	}
	for _, m := range s.waiting(box) {
		s.guard("Ring", m.owner.Ring)
	}
}
