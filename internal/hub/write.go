package hub

import (
	"errors"
	"time"
)

// maxJoined bounds the bytes that are copied together for one write.
const maxJoined = 64 << 10

// outgoing is one frame in a queue. Several queues may share its bytes.
type outgoing struct {
	frame   []byte
	message bool    // or the protocol's own
	flight  *flight // the message, on an at_least_once channel
}

// errSlow is behind SlowSocket.
var errSlow = errors.New("the peer does not read as fast as messages come; its queue is full")

// push appends a frame to the queue, and reports whether it did. It never waits. A socket
// whose queue is full is closed: dropping single messages from it would hide that the
// peer is behind, and waiting for it would delay everybody else.
func (s *Session) push(frame []byte, message bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != open {
		return false
	}
	// A single frame larger than the bound passes when nothing else waits.
	if s.waiting >= s.e.QueueMessages || s.waiting > 0 && s.queued+len(frame) > s.e.QueueBytes {
		s.abortLocked(SlowSocket, errSlow)
		return false
	}
	s.appendLocked(outgoing{frame: frame, message: message})
	return true
}

// enqueueLocked appends a frame to the queue if there is room, and reports whether it did. It is for what can
// wait until there is: messages of an at_least_once channel. It must be called with s.mu held.
func (s *Session) enqueueLocked(frame []byte, f *flight) bool {
	if s.state != open || s.waiting >= s.e.QueueMessages || s.waiting > 0 && s.queued+len(frame) > s.e.QueueBytes {
		return false
	}
	s.appendLocked(outgoing{frame: frame, message: f != nil, flight: f})
	return true
}

func (s *Session) appendLocked(o outgoing) {
	s.queue = append(s.queue, o)
	s.queued += len(o.frame)
	s.waiting++
	s.startWriterLocked()
}

// startWriterLocked makes sure that a write goroutine runs. It must be called with s.mu held and
// state < ended.
func (s *Session) startWriterLocked() {
	if s.writing || s.state == ended || len(s.queue) == 0 {
		return
	}
	s.writing = true
	s.writers.Add(1)
	go s.writeLoop()
}

// writeLoop writes until the queue is empty.
func (s *Session) writeLoop() {
	defer s.writers.Done()
	defer func() {
		if v := recover(); v != nil {
			s.abort(Panicked, panicError(v))
		}
	}()
	var joined []byte
	for {
		batch := s.nextBatch()
		if batch == nil {
			return
		}
		rest := batch
		for len(rest) > 0 {
			var n int
			var err error
			n, joined, err = s.write(rest, joined)
			if !s.written(rest, n, err) {
				return
			}
			rest = rest[n:]
		}
		s.mu.Lock()
		clear(batch) // or a socket that falls silent keeps its last messages in memory
		s.spare = batch[:0]
		s.mu.Unlock()
	}
}

// nextBatch takes the whole queue, or ends the writer.
func (s *Session) nextBatch() []outgoing {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == ended {
		s.writing = false
		return nil // what is queued stays, to be counted as dropped
	}
	if len(s.queue) == 0 {
		s.writing = false
		if cap(s.queue)+cap(s.spare) > 64 { // idle sockets are many
			s.queue, s.spare = nil, nil
		}
		if s.state == ending {
			s.wakeReaderLocked()
		}
		return nil
	}
	batch := s.queue
	s.queue, s.spare = s.spare, nil
	return batch
}

// write writes as many of frames as go into one write, at least one, and returns their number. One
// write for several frames saves a system call for each, and a packet.
func (s *Session) write(frames []outgoing, joined []byte) (int, []byte, error) {
	s.mu.Lock()
	if s.state == ended { // or the new deadline would undo the one that ends the session
		s.mu.Unlock()
		return 0, joined, errEnding
	}
	now := time.Now()
	n, out, joined, until := s.joinLocked(frames, joined, now)
	if len(out) == 0 {
		s.mu.Unlock()
		return n, joined, nil
	}
	err := s.conn.SetWriteDeadline(until)
	s.mu.Unlock()
	if err == nil {
		_, err = s.conn.Write(out)
	}
	return n, joined, err
}

// joinLocked collects what the next write takes of frames: their number, their bytes, and until when it may
// take. Messages that must not be written any more are passed over.
func (s *Session) joinLocked(frames []outgoing, joined []byte, now time.Time) (n int, out, buffer []byte, until time.Time) {
	until = now.Add(s.e.WriteTimeout)
	var storeNow time.Time
	leased := false
	buffer = joined[:0]
	for _, o := range frames {
		if len(out) > 0 && len(out)+len(o.frame) > maxJoined {
			return n, out, buffer, until
		}
		n++
		if f := o.flight; f != nil {
			if storeNow.IsZero() {
				storeNow, leased = s.delivery.how.Store.Now(), s.delivery.box.Leased()
			}
			if !f.begin(now, storeNow, leased) {
				continue
			}
			if left := f.due().Sub(storeNow); left < s.e.WriteTimeout && now.Add(left).Before(until) {
				until = now.Add(left) // the deadline bounds the write itself (I7)
			}
		}
		if len(out) == 0 {
			out = o.frame // the only one, as a rule: no copy
			continue
		}
		if len(buffer) == 0 {
			buffer = append(buffer, out...)
		}
		buffer = append(buffer, o.frame...)
		out = buffer
	}
	return n, out, buffer, until
}

// written accounts for the first n frames, which one write has taken, and reports whether to go on.
// After an error none of frames counts as pushed: how much of them arrived is not known.
func (s *Session) written(frames []outgoing, n int, err error) bool {
	if err == nil {
		frames = frames[:n]
	}
	messages, dropped, size := 0, 0, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, o := range frames {
		size += len(o.frame)
		switch f := o.flight; {
		case f == nil && o.message:
			messages++
			dropped++
		case f != nil && f.phase >= pushed && f.pushedHere && !f.wrote:
			messages++
			f.wrote, f.since = err == nil, now
		}
	}
	if err != nil {
		s.abortLocked(WriteFailed, err)
		s.writing = false
		s.countDropLocked(dropped)
		return false
	}
	s.queued -= size
	s.waiting -= len(frames)
	if messages > 0 { // so the session is registered
		s.pushed += uint64(messages)
		s.channel.pushed.Add(uint64(messages))
	}
	if s.delivery != nil {
		s.delivery.wakeLocked() // for timers, and for what waits for room
	}
	return true
}
