package hub

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

// errTimeout is what readFrame returns when its deadline has passed.
var errTimeout = errors.New("timed out")

// errEnding is what readFrame returns once the session ends from this side.
var errEnding = errors.New("session is ending")

// firstRead is the size that the read buffer begins with: enough for a hello and for acks.
const firstRead = 256

// readLoop takes the peer's frames until the session ends.
func (s *Session) readLoop() {
	for {
		frame, err := s.readFrame(s.e.MaxFrame, s.heartbeatDeadline)
		if err != nil {
			s.readFailed(err)
			return
		}
		if s.protocol == Plain {
			s.plainFrame(frame)
			continue
		}
		if !s.answer(frame) {
			return
		}
	}
}

// plainFrame takes one frame of a plain peer. Nothing that it says on an at_most_once channel means
// anything; empty frames are its keep-alives.
func (s *Session) plainFrame(frame []byte) {
	switch {
	case s.delivery != nil:
		s.delivery.answered(frame)
	case len(frame) > 0:
		s.mu.Lock()
		s.ignored++
		s.mu.Unlock()
	}
}

// answer does what one frame of a JSON peer asks for, and reports whether to go on.
func (s *Session) answer(frame []byte) bool {
	if len(frame) == 0 {
		return true
	}
	r, err := wire.ParseRequest(frame)
	if err != nil {
		s.refuse(&Refusal{Reason: BadFrame, Code: 400, Text: err.Error()})
		return false
	}
	switch r.Op {
	case wire.OpPing:
		s.push(s.frame(wire.AppendPong(nil)), false)
	case wire.OpPong:
	case wire.OpAck, wire.OpNack, wire.OpWorking:
		if s.delivery != nil {
			s.delivery.acknowledge(r)
		}
		// Clients acknowledge without knowing the channel's delivery; at_most_once
		// has nothing to finish.
	case wire.OpGoodbye:
		s.left = true
		s.endWith(ClientGoodbye, nil, nil)
		return false
	default:
		s.mu.Lock()
		s.ignored++
		s.mu.Unlock()
		s.push(s.frame(wire.AppendError(nil, wire.Error{
			Code: 400, Reason: fmt.Sprintf("op %q is not known here, or not now", shorten(string(r.Op))),
		})), false)
	}
	return true
}

// shorten keeps what a peer said from filling an answer or a log.
func shorten(text string) string {
	if len(text) > 40 {
		return text[:40] + "…"
	}
	return text
}

func (s *Session) readFailed(err error) {
	switch {
	case errors.Is(err, errEnding):
	case errors.Is(err, errTimeout):
		s.refuse(&Refusal{Reason: HeartbeatLost, Code: 408, Temporary: true,
			Text: fmt.Sprintf("nothing came within %s of a ping", heartbeatGrace)})
	case errors.Is(err, wire.ErrFrameTooLarge):
		s.refuse(&Refusal{Reason: FrameTooLarge, Code: 413, Err: err,
			Text: fmt.Sprintf("a frame is larger than max_frame, %d bytes", s.e.MaxFrame)})
	default:
		s.obeyed = errors.Is(err, io.EOF) // if it was told to; see finish
		s.abort(ClientClosed, err)
	}
}

// heartbeatDeadline says when the next read is to give up. After a silence it pings a JSON peer
// once; after a second one it reports that the peer is lost. A plain peer is watched
// by the kernel alone: it would take a ping for a payment.
func (s *Session) heartbeatDeadline(timedOut bool) (time.Time, bool) {
	if s.protocol == Plain {
		return time.Time{}, true
	}
	if !timedOut {
		s.pinged = false
		// Jitter keeps the sessions of one reconnect storm from pinging in step.
		return time.Now().Add(s.heartbeat - rand.N(s.heartbeat/8)), true
	}
	if s.pinged {
		return time.Time{}, false
	}
	s.pinged = true
	s.push(s.frame(wire.AppendPing(nil)), false)
	return time.Now().Add(heartbeatGrace), true
}

// readFrame returns the next frame, which is valid until the next call. deadline is asked before
// a read, and again when one timed out: it returns a new deadline, or false to give up.
func (s *Session) readFrame(limit int, deadline func(timedOut bool) (time.Time, bool)) ([]byte, error) {
	timedOut := false
	for {
		if s.taken < len(s.in) {
			frame, n, err := s.e.Framing.Next(s.in[s.taken:], limit)
			if err != nil {
				return nil, err
			}
			if n > 0 {
				s.taken += n
				return frame, nil
			}
		}
		until, goOn := deadline(timedOut)
		if !goOn || timedOut && !until.After(time.Now()) && !until.IsZero() {
			return nil, errTimeout
		}
		n, err := s.read(until)
		timedOut = false
		if n > 0 {
			continue
		}
		var netErr net.Error
		switch {
		case err == nil:
		case errors.As(err, &netErr) && netErr.Timeout():
			if s.over() {
				return nil, errEnding
			}
			timedOut = true
		default:
			return nil, err
		}
	}
}

// read appends to s.in what the connection has. The frame that readFrame returned last is gone.
func (s *Session) read(until time.Time) (int, error) {
	if s.taken > 0 {
		// A large frame's buffer is not kept for the life of an idle socket.
		if rest := s.in[s.taken:]; len(rest) == 0 && cap(s.in) > 16*firstRead {
			s.in = nil
		} else {
			s.in = s.in[:copy(s.in, rest)]
		}
		s.taken = 0
	}
	if len(s.in) == cap(s.in) {
		// Next has said that a frame within the limit is not complete yet, so this
		// grows to twice the limit at most.
		grown := make([]byte, len(s.in), max(2*cap(s.in), firstRead))
		copy(grown, s.in)
		s.in = grown
	}
	s.mu.Lock()
	if lately := s.late && s.state == ending; s.state != open && !lately { // or the new deadline would undo the one that ends the session
		s.mu.Unlock()
		return 0, errEnding
	}
	err := s.conn.SetReadDeadline(until)
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := s.conn.Read(s.in[len(s.in):cap(s.in)])
	s.in = s.in[:len(s.in)+n]
	return n, err
}

func (s *Session) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state != open && !s.late
}

// lingerUntilClosed lets the peer read what was written last: it waits for the writer, and then for
// the peer to close, throwing away what still comes, for a bounded time.
func (s *Session) lingerUntilClosed() {
	s.writers.Wait()
	s.mu.Lock()
	over := s.state == ended
	s.mu.Unlock()
	if over {
		return
	}
	if s.awaitsAcks() {
		s.takeLateAcks()
	}
	if s.delivery != nil && !s.acksByDraining() {
		// Now, and not when the peer has closed: its next socket is to find what was not acknowledged, with
		// true counts.
		s.delivery.close()
	}
	if c, ok := s.conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	s.mu.Lock()
	if over = s.state == ended; !over {
		_ = s.conn.SetReadDeadline(time.Now().Add(linger))
	}
	s.mu.Unlock()
	if over {
		return
	}
	_, err := io.CopyN(io.Discard, s.conn, 1<<20)
	s.obeyed = errors.Is(err, io.EOF)
}
