package hub

import (
	"bytes"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// acknowledge takes what a JSON peer says of a message: ack, nack or working.
func (d *delivery) acknowledge(r wire.Request) {
	s := d.s
	reply := r.Reply
	if len(reply) > broker.MaxReply {
		reply = nil
		s.complain(413, fmt.Sprintf("the reply has %d bytes; at most %d are kept: the message is acknowledged without it",
			len(r.Reply), broker.MaxReply))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, f := d.findLocked(r.MID)
	if f == nil {
		s.channel.badAcks.Add(1)
		s.ignored++
		s.complainLocked(404, fmt.Sprintf("%s: message %q is not in flight on this socket", r.Op, shorten(r.MID)))
		return
	}
	now := time.Now()
	d.progressLocked(i, now)
	switch {
	case f.phase >= decided: // said twice
		s.ignored++
	case r.Op == wire.OpAck:
		f.finish(broker.StateAcked)
		f.outcome.Reply = bytes.Clone(reply) // the frame's memory is used again
	case r.Op == wire.OpNack && r.Terminate:
		s.channel.nacks.Add(1)
		f.die(broker.DeadTerminated, cutDetail(r.Reason))
	case r.Op == wire.OpNack && f.phase == pushed:
		s.channel.nacks.Add(1)
		d.nackLocked(f, r)
	case r.Op == wire.OpNack: // it waits to be pushed again already
		s.ignored++
	}
	d.wakeLocked()
}

// findLocked finds a message that was pushed on this socket.
func (d *delivery) findLocked(mid string) (int, *flight) {
	for i, f := range d.flights {
		if f.entry.Message.MID == mid && f.pushedHere {
			return i, f
		}
	}
	return 0, nil
}

// progressLocked notes that the client is alive to the message at i. The ones behind it wait for it in the client, so
// their ack timeouts begin anew as well.
func (d *delivery) progressLocked(i int, now time.Time) {
	for _, f := range d.flights[i:] {
		if f.phase == pushed {
			f.since = now
		}
	}
}

// nackLocked has a message pushed again, or gives it up.
func (d *delivery) nackLocked(f *flight, r wire.Request) {
	if f.entry.Failures++; f.entry.Failures >= d.how.MaxAttempts {
		f.die(broker.DeadAttempts, cutDetail(r.Reason))
		return
	}
	delay := min(r.Delay, maxDelay)
	if delay == 0 {
		delay = retryDelay(f.entry.Failures)
	}
	f.phase, f.failed, f.dirty = waiting, true, true
	f.entry.NotBefore = d.how.Store.Now().Add(delay)
}

// answered takes a frame of a plain peer, which acknowledges the message in flight, or means nothing.
func (d *delivery) answered(frame []byte) {
	s := d.s
	if len(frame) == 0 || matches(s.e.Ignore, frame) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.e.Ack == AckNone || s.e.Ack == AckMatch && !matches(s.e.AckMatch, frame) {
		s.ignored++
		return
	}
	for _, f := range d.flights {
		// The answer may be read here before the writer hears that its write is done.
		if f.phase == pushed {
			f.finish(broker.StateAcked)
			d.wakeLocked()
			return
		}
	}
	s.ignored++
	s.channel.badAcks.Add(1)
}

// cutDetail bounds what a client says of a message.
func cutDetail(text string) string {
	const limit = 256
	for i := range text {
		if i > limit-4 {
			return text[:i] + "…"
		}
	}
	return text
}

// complain tells a JSON peer that something it asked for was not done.
func (s *Session) complain(code int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complainLocked(code, text)
}

// complainLocked drops complaints that the peer does not read: whoever floods us with mistakes gets no
// longer queue for it.
func (s *Session) complainLocked(code int, text string) {
	if s.waiting < 16 {
		s.enqueueLocked(s.frame(wire.AppendError(nil, wire.Error{Code: code, Reason: text})), nil)
	}
}
