package hub

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// Hub is the registry of a node's sessions. It is safe for concurrent use.
type Hub struct {
	maxSockets atomic.Int64 // 0: no limit
	sockets    atomic.Int64 // connections being served, registered or not
	turnedAway atomic.Int64 // connections being told that there is no place
	registered atomic.Int64 // sessions that registered and have not ended
	draining   atomic.Bool
	drains     drains
	ended      [reasons]atomic.Uint64

	// OnStoreError is told of errors of a store, once for each session until it works again. It must
	// be set before the first Serve. Nil tells nobody.
	OnStoreError func(channel, id string, err error)

	// OnPromote is told of each session that waited for another one to end, and has the destination now. It must
	// not block. Nil tells nobody.
	OnPromote func(channel, id string)

	// OnFight is told when sockets take one destination from each other again and again: the next one waits so
	// long until it may. It must not block. Nil tells nobody.
	OnFight func(channel, id string, wait time.Duration)

	fights fights

	mu       sync.RWMutex
	channels map[string]*channel // grows by configured channels only
}

// channel is the sessions of one relay channel.
type channel struct {
	pushed   atomic.Uint64
	dropped  [dropReasons]atomic.Uint64
	timeouts atomic.Uint64
	nacks    atomic.Uint64
	badAcks  atomic.Uint64
	fights   atomic.Uint64

	mu       sync.RWMutex
	sessions map[string][]*Session // by destination, in order of registration
	size     int
}

// New returns an empty hub.
func New() *Hub { return &Hub{channels: make(map[string]*channel)} }

// SetMaxSockets bounds the connections served at once; 0 lifts the bound. Connections that
// are open stay.
func (h *Hub) SetMaxSockets(n int) { h.maxSockets.Store(int64(n)) }

// Serve speaks with one accepted connection until the session is over, and says how it
// ended. It does not close conn, which nobody else may use meanwhile.
func (h *Hub) Serve(conn net.Conn, e *Endpoint) End {
	s := newSession(h, conn, e)
	n := h.sockets.Add(1)
	var end End
	if limit := h.maxSockets.Load(); limit > 0 && n > limit {
		h.sockets.Add(-1) // its place is free again while it is being told
		end = h.turnAway(s)
	} else {
		end = s.run(nil)
		h.sockets.Add(-1)
	}
	h.ended[end.Reason].Add(1)
	return end
}

// turnAway tells a peer that there is no place. Peers that keep such a connection open must not keep
// others out, so it is not among the sockets; the bound of its own is that beyond some at once
// they are closed without a word.
func (h *Hub) turnAway(s *Session) End {
	full := &Refusal{Reason: TooManySockets, Code: 503, Temporary: true,
		Text: "this node holds as many sockets as max_sockets allows; try again later, or at another node"}
	defer h.turnedAway.Add(-1)
	if h.turnedAway.Add(1) > maxTurnedAway {
		s.abort(full.Reason, full)
		return s.finish(nil)
	}
	return s.run(full)
}

// Deliver pushes m to the sessions that registered under its destination on its channel, and
// returns how many took it into their queues. It never waits for a socket.
//
// Calls for one destination that come one after another are pushed in that order (I3).
func (h *Hub) Deliver(m *broker.Message) int {
	c := h.lookup(m.Channel)
	if c == nil {
		return 0
	}
	out := encoder{message: m}
	taken := 0
	c.mu.RLock()
	defer c.mu.RUnlock()
	if m.ID != broker.Everyone {
		for _, s := range c.sessions[m.ID] {
			taken += s.deliver(&out)
		}
		return taken
	}
	for _, list := range c.sessions {
		for _, s := range list {
			taken += s.deliver(&out)
		}
	}
	return taken
}

// Dismiss says goodbye to every session for which match returns true. The sessions end a
// little later, when the goodbye is written or has failed.
//
// spread is the time over which clients are asked to come back, so that they do not
// all come at once; 0 asks them to come at once.
func (h *Hub) Dismiss(reason Reason, spread time.Duration, match func(*Session) bool) int {
	n := 0
	for s := range h.All {
		if match(s) {
			n++
			s.goodbye(reason, wire.Goodbye{
				Code: reason.String(), Reconnect: true, AfterMS: int(jitter(spread).Milliseconds()),
			})
		}
	}
	return n
}

// Reattach has every session of an at_least_once channel look for its store, which a reload may have
// replaced. It returns at once; the sessions stay open.
func (h *Hub) Reattach() {
	for s := range h.All {
		if s.delivery != nil {
			s.delivery.wake()
		}
	}
}

// storeFailed tells of an error of the store.
func (h *Hub) storeFailed(s *Session, err error) {
	if h.OnStoreError != nil {
		h.OnStoreError(s.e.Channel, s.id, err)
	}
}

// jitter returns a random time in [0, d].
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d + 1)
}

// All calls yield for each registered session, as of some moment during the call.
func (h *Hub) All(yield func(*Session) bool) {
	h.mu.RLock()
	channels := make([]*channel, 0, len(h.channels))
	for _, c := range h.channels {
		channels = append(channels, c)
	}
	h.mu.RUnlock()
	for _, c := range channels {
		c.mu.RLock()
		list := make([]*Session, 0, c.size)
		for _, l := range c.sessions {
			list = append(list, l...)
		}
		c.mu.RUnlock()
		for _, s := range list {
			if !yield(s) {
				return
			}
		}
	}
}

// Wait returns nil when no registered session is left, or ctx's error.
func (h *Hub) Wait(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for h.registered.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (h *Hub) lookup(name string) *channel {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.channels[name]
}

func (h *Hub) channel(name string) *channel {
	if c := h.lookup(name); c != nil {
		return c
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.channels[name]
	if c == nil {
		c = &channel{sessions: make(map[string][]*Session)}
		h.channels[name] = c
	}
	return c
}

func (c *channel) add(s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[s.id] = append(c.sessions[s.id], s)
	c.size++
}

func (c *channel) remove(s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.sessions[s.id]
	for i, other := range list {
		if other != s {
			continue
		}
		c.size--
		if len(list) == 1 {
			delete(c.sessions, s.id)
			return
		}
		// A fresh slice, since All may hold the old one's array.
		c.sessions[s.id] = append(append(make([]*Session, 0, len(list)-1), list[:i]...), list[i+1:]...)
		return
	}
}
