package hub

import (
	"errors"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// codec is all that decides how a message looks on a socket.
type codec struct {
	framing wire.Framing
	json    bool
}

// encoder turns one message into frames, once for each codec, however many sockets get it.
type encoder struct {
	message *broker.Message
	known   [2]encoded // most channels have one codec; no map for them
	n       int
	others  map[codec]encoded
}

type encoded struct {
	codec codec
	frame []byte
	size  int // of what is in the frame
	err   error
}

func (o *encoder) encode(c codec) encoded {
	for i := range o.n {
		if o.known[i].codec == c {
			return o.known[i]
		}
	}
	if e, ok := o.others[c]; ok {
		return e
	}
	e := encodeMessage(o.message, c, 1, "")
	if o.n < len(o.known) {
		o.known[o.n] = e
		o.n++
		return e
	}
	if o.others == nil {
		o.others = make(map[codec]encoded)
	}
	o.others[c] = e
	return e
}

func encodeMessage(m *broker.Message, c codec, attempt int, fence string) encoded {
	e := encoded{codec: c, size: len(m.Body)}
	if !c.json {
		e.frame, e.err = wire.AppendPlain(nil, c.framing, m.Body)
		return e
	}
	text := wire.AppendMessage(nil, &wire.Message{
		MID: m.MID, Channel: m.Channel, Attempt: attempt, Fence: fence, TS: m.Time.UnixMilli(), Ref: m.Ref, Source: m.Source,
		Headers: m.Headers, ContentType: m.ContentType, Body: m.Body,
	}, c.framing.SingleLine())
	e.size = len(text)
	e.frame, e.err = c.framing.Append(make([]byte, 0, len(text)+8), text)
	return e
}

// deliver queues the message for this session and returns 1, or counts why not and returns 0.
func (s *Session) deliver(o *encoder) int {
	if s.delivery != nil { // it reads its mailbox; unasked, this would pass as the answer to what is in flight
		return 0
	}
	e := o.encode(codec{framing: s.e.Framing, json: s.protocol == JSON})
	switch {
	case e.size > s.e.MaxMessage:
		s.drop(DropTooLarge)
	case errors.Is(e.err, wire.ErrUnframable):
		s.drop(DropUnframable)
	case s.push(e.frame, true):
		return 1
	default:
		s.mu.Lock()
		s.countDropLocked(1)
		s.mu.Unlock()
	}
	return 0
}

// drop counts one message that this session can never be given, and tells of the first.
func (s *Session) drop(reason DropReason) {
	s.channel.dropped[reason].Add(1)
	s.tellDrop(reason.String())
}

// tellDrop tells of the first message that this session can never be given.
func (s *Session) tellDrop(reason string) {
	if s.e.OnDrop != nil && s.told.CompareAndSwap(false, true) {
		s.e.OnDrop(s.id, reason)
	}
}

// countDropLocked counts messages that the session's end kept from being written. It must be
// called with s.mu held.
func (s *Session) countDropLocked(n int) {
	if n == 0 {
		return
	}
	reason := DropSocketClosed
	if s.end == SlowSocket {
		reason = DropSlowSocket
	}
	s.channel.dropped[reason].Add(uint64(n))
	s.dropped += uint64(n)
}

// dropQueuedLocked empties the queue. It must be called with s.mu held.
func (s *Session) dropQueuedLocked() {
	n := 0
	for _, f := range s.queue {
		if f.message && f.flight == nil { // what is in a mailbox stays there
			n++
		}
	}
	s.queue = nil
	s.countDropLocked(n)
}

// frame frames one of the protocol's own texts, which always fits.
func (s *Session) frame(text []byte) []byte {
	frame, err := s.e.Framing.Append(nil, text)
	if err != nil {
		panic(err)
	}
	return frame
}
