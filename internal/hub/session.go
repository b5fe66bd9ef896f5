package hub

import (
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

// Session is one socket's stay at the hub.
type Session struct {
	// Fixed when the session is made.
	hub     *Hub
	conn    net.Conn
	e       *Endpoint
	started time.Time

	// Set by the read loop before the session is registered, fixed from then on.
	id        string
	protocol  Protocol
	heartbeat time.Duration
	name      string    // for the peer's log
	granted   int       // the window
	delivery  *delivery // nil on an at_most_once channel

	// Owned by the read loop.
	in     []byte // read and not yet taken: in[taken:]
	taken  int
	pinged bool // a ping is out and nothing came since
	obeyed bool // it closed when it was told the end
	left   bool // it has said goodbye

	told atomic.Bool // OnDrop was called

	mu      sync.Mutex
	channel *channel // nil until the session is registered, fixed from then on
	state   state
	late    bool // the read loop goes on for a while after the goodbye
	end     Reason
	endErr  error
	queue   []outgoing
	spare   []outgoing // the other array of queue, while the writer is not using it
	queued  int        // bytes in queue and in the writer's hands
	waiting int        // frames in queue and in the writer's hands
	writing bool       // a write goroutine exists
	pushed  uint64
	dropped uint64
	ignored uint64
	writers sync.WaitGroup // Add only with mu held and state < ended
}

// state only ever rises.
type state uint8

const (
	open   state = iota
	ending       // the last frame is queued; nothing is queued behind it
	ended        // the connection is of no more use
)

// End says how a session went.
type End struct {
	Reason     Reason
	Err        error  // what lies behind the reason; nil for ordinary ends
	Registered bool   // or the socket was refused, or left, before that
	ID         string // empty if it was not registered
	Protocol   Protocol
	Lasted     time.Duration
	Pushed     uint64 // messages handed to the kernel
	Dropped    uint64 // messages that were queued and never written
	Ignored    uint64 // frames from the peer that mean nothing here
}

func newSession(h *Hub, conn net.Conn, e *Endpoint) *Session {
	return &Session{hub: h, conn: conn, e: e, protocol: e.Protocol, started: time.Now()}
}

// ID returns the destination that the session registered under.
func (s *Session) ID() string { return s.id }

// Protocol returns what the session speaks: [Plain] or [JSON].
func (s *Session) Protocol() Protocol { return s.protocol }

// Stored reports whether the session's messages come from a mailbox. It may be asked once the session is
// registered.
func (s *Session) Stored() bool { return s.delivery != nil }

// RemoteAddr returns the address of the peer.
func (s *Session) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Endpoint returns the settings that the session was accepted with.
func (s *Session) Endpoint() *Endpoint { return s.e }

// LocalAddr returns the address that the peer connected to.
func (s *Session) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// run speaks with the peer until the end. If full is not nil the peer is told so instead.
func (s *Session) run(full *Refusal) (end End) {
	defer func() { end = s.finish(recover()) }()
	if full == nil {
		full = s.register()
	}
	if full != nil {
		s.refuse(full)
	} else {
		s.readLoop()
	}
	s.lingerUntilClosed()
	return End{} // replaced by the deferred function
}

// finish ends the session for good: it can no longer be found, and its writer is gone.
func (s *Session) finish(panicked any) End {
	if s.channel != nil {
		s.channel.remove(s)
		defer s.hub.registered.Add(-1)
	}
	if panicked != nil {
		s.abort(Panicked, panicError(panicked))
	}
	s.abort(ClientClosed, nil)
	s.writers.Wait()
	if s.delivery != nil {
		s.delivery.close()
	}
	if s.end == TakenOver && s.obeyed {
		s.hub.fights.taken(s.e.Channel, s.id, time.Since(s.started))
	}
	// The writer has stopped and state is ended, so what is left in the queue stays.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropQueuedLocked()
	return End{
		Reason: s.end, Err: s.endErr, Registered: s.channel != nil, ID: s.id, Protocol: s.protocol, Lasted: time.Since(s.started),
		Pushed: s.pushed, Dropped: s.dropped, Ignored: s.ignored,
	}
}

func panicError(v any) error { return fmt.Errorf("panic: %v\n%s", v, debug.Stack()) }

// abort ends the session now: the peer is told nothing more. The first reason counts.
//
// It only makes reads and writes fail. Closing is left to the goroutine that serves the
// connection, since closing a TLS connection may wait for its peer.
func (s *Session) abort(reason Reason, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abortLocked(reason, err)
}

// abortLocked must be called with s.mu held.
func (s *Session) abortLocked(reason Reason, err error) {
	if s.state == open {
		s.end, s.endErr = reason, err
	}
	if s.state != ended {
		s.state = ended
		_ = s.conn.SetDeadline(time.Unix(1, 0)) // fails on a dead connection only
	}
}

// goodbye ends the session after the frames in its queue and, for a JSON peer, a goodbye. A
// plain peer would take that for a payment, so it just sees the end of the stream.
func (s *Session) goodbye(reason Reason, g wire.Goodbye) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goodbyeLocked(reason, g)
}

// goodbyeLocked must be called with s.mu held.
func (s *Session) goodbyeLocked(reason Reason, g wire.Goodbye) {
	var frame []byte
	if s.protocol == JSON {
		frame = s.frame(wire.AppendGoodbye(nil, g))
	}
	s.endWithLocked(reason, nil, frame)
}

// refuse tells the peer why it cannot be served, and ends the session.
func (s *Session) refuse(r *Refusal) {
	e := wire.Error{Code: r.Code, Reason: r.Text, Temporary: r.Temporary}
	var frame []byte
	if s.protocol == JSON {
		frame = s.frame(wire.AppendError(nil, e))
	} else {
		frame = wire.AppendPlainError(nil, s.e.Framing, e)
	}
	s.endWith(r.Reason, r, frame)
}

// endWith ends the session after the frames in its queue and one last frame, if there is one.
func (s *Session) endWith(reason Reason, err error, last []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endWithLocked(reason, err, last)
}

// endWithLocked must be called with s.mu held.
func (s *Session) endWithLocked(reason Reason, err error, last []byte) {
	if s.state != open {
		return
	}
	s.state, s.end, s.endErr = ending, reason, err
	if last != nil {
		s.queue = append(s.queue, outgoing{frame: last})
		s.queued += len(last)
		s.waiting++
	}
	s.startWriterLocked()
	if !s.writing {
		s.wakeReaderLocked()
	}
}

// wakeReaderLocked makes the read loop's read return, to find that the session is ending. It must be
// called with s.mu held.
func (s *Session) wakeReaderLocked() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }
