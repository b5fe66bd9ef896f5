package redisbroker

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyrelay/relay/broker"
)

// topic is one Redis channel that somebody here listens to. Its fields are written with Broker.mu held.
type topic struct {
	subs []*subscription // replaced, never changed

	// proven says that what is published arrives here. It takes Redis's confirmation and
	// then the echo of a probe that was sent after it. Every publish reads it.
	proven    atomic.Bool
	confirmed bool
	after     uint64 // the last probe that was sent before the confirmation
	refused   error  // why Redis does not let this channel be heard, if it does not
}

// subscribe is Subscribe for one ear's channels.
func (e *ear) subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, broker.ErrClosed
	}
	if !e.listening {
		e.listening = true
		e.b.loops.Go(e.listenLoop)
	}
	t := e.topics[channel]
	if t == nil {
		t = new(topic)
		e.topics[channel] = t
		e.changedLocked()
	}
	s := &subscription{ear: e, channel: channel, topic: t, sink: sink}
	t.subs = append(slices.Clone(t.subs), s)
	return s, nil
}

// subscription is one sink's hold on a channel.
type subscription struct {
	ear     *ear
	channel string
	topic   *topic
	sink    broker.Sink
	closed  atomic.Bool

	// calling makes the sink's calls one after another, and guards told.
	calling sync.Mutex
	told    bool // of a failure that is not over
}

// Err implements [broker.Subscription].
func (s *subscription) Err() error {
	if s.closed.Load() {
		return broker.ErrClosed
	}
	if s.topic.proven.Load() {
		return nil
	}
	e := s.ear
	if down := e.failure(s.topic); down != nil {
		return down
	}
	return fmt.Errorf("%w: redis at %s: the subscription to %s is not proven yet", broker.ErrUnavailable, e.b.o.Address, s.channel)
}

// failure returns why nothing is heard of a topic, or nil if that is not so or was not tried yet.
func (e *ear) failure(t *topic) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down != nil {
		return e.down
	}
	return t.refused
}

// Close implements [broker.Subscription].
func (s *subscription) Close() {
	s.closed.Store(true)
	e := s.ear
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.topics[s.channel]
	if t == nil {
		return
	}
	t.subs = slices.DeleteFunc(slices.Clone(t.subs), func(other *subscription) bool { return other == s })
	if len(t.subs) > 0 {
		return
	}
	delete(e.topics, s.channel)
	e.changedLocked()
}

// changedLocked has the session subscribe to what is wanted now. It must be called with e.mu held.
func (e *ear) changedLocked() {
	if e.session != nil {
		wake(e.session.changed)
	}
}

// end closes the subscription and waits for a call under way.
func (s *subscription) end() {
	s.closed.Store(true)
	s.calling.Lock()
	defer s.calling.Unlock()
}

func (s *subscription) deliver(p *broker.Publication) {
	s.call(func() { s.sink.Deliver(s.channel, p) })
}

// tell tells the sink how things are now, if that has changed. Reading it here, and not where the
// change was seen, makes the last call right, whichever of two changes gets here first.
func (s *subscription) tell() {
	s.call(func() {
		var err error
		if !s.topic.proven.Load() {
			if err = s.ear.failure(s.topic); err == nil {
				return // neither proven nor failed
			}
		}
		if s.told == (err != nil) {
			return
		}
		s.told = err != nil
		s.sink.StateChanged(s.channel, err)
	})
}

// call calls the sink. A panic in it is its own affair: the connection that everybody hears with goes on.
func (s *subscription) call(f func()) {
	s.calling.Lock()
	defer s.calling.Unlock()
	if s.closed.Load() {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			s.ear.b.o.Logger.Error("a sink panicked", "channel", s.channel, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	f()
}

// listeners returns the subscriptions of a channel.
func (e *ear) listeners(channel string) []*subscription {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.topics[channel]; t != nil {
		return t.subs
	}
	return nil
}
