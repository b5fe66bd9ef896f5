// Package boltbroker is the broker for one machine with nothing installed.
//
// At_most_once messages pass from the publisher to the sockets within the process, on the
// publisher's own goroutine, and never touch the disk. The database file that the package is
// named after comes with at_least_once.
package boltbroker

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/caddyrelay/relay/broker"
)

// Options are the settings of a broker.
type Options struct {
	// Logger is told of sinks that panic. Default: nobody is.
	Logger *slog.Logger
}

// Broker is an embedded broker. Make it with [New].
type Broker struct {
	logger *slog.Logger

	mu         sync.RWMutex
	subs       map[string][]*subscription // the slices are replaced, never changed
	closed     bool
	publishing sync.WaitGroup // Add only with mu held and closed false
}

// New returns a broker without subscriptions.
func New(o Options) *Broker {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Broker{logger: o.Logger, subs: make(map[string][]*subscription)}
}

// Publish implements [broker.Broker]. It calls the sinks before it returns. Published.Receivers is -1:
// there is no server that could count.
func (b *Broker) Publish(ctx context.Context, channel string, p *broker.Publication) (broker.Published, error) {
	if err := ctx.Err(); err != nil {
		return broker.Published{}, fmt.Errorf("%w: %w: %w", broker.ErrRefused, broker.ErrUnavailable, err)
	}
	b.mu.RLock()
	if b.closed {
		b.mu.RUnlock()
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	}
	subs := b.subs[channel]
	b.publishing.Add(1)
	b.mu.RUnlock()
	defer b.publishing.Done()
	for _, s := range subs {
		s.deliver(p)
	}
	return broker.Published{Receivers: -1}, nil
}

// Subscribe implements [broker.Broker]. The subscription is proven at once, for as long as it lasts.
func (b *Broker) Subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, broker.ErrClosed
	}
	s := &subscription{broker: b, channel: channel, sink: sink}
	b.subs[channel] = append(slices.Clone(b.subs[channel]), s)
	return s, nil
}

// Close implements [broker.Broker]. What was published has been delivered by the time Publish
// returned, so it waits for no more than that.
func (b *Broker) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.publishing.Wait()
	b.mu.Lock()
	all := b.subs
	b.subs = make(map[string][]*subscription)
	b.mu.Unlock()
	for _, subs := range all {
		for _, s := range subs {
			s.end()
		}
	}
	return nil
}

// subscription is one sink's hold on a channel.
type subscription struct {
	broker  *Broker
	channel string
	sink    broker.Sink

	// calling makes the sink's calls one after another.
	calling sync.Mutex

	mu     sync.Mutex
	closed bool
}

// deliver calls the sink. A panic in it is its own affair: publishers and other sinks go on.
func (s *subscription) deliver(p *broker.Publication) {
	s.calling.Lock()
	defer s.calling.Unlock()
	if s.Err() != nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			s.broker.logger.Error("a sink panicked", "channel", s.channel, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	s.sink.Deliver(s.channel, p)
}

// Err implements [broker.Subscription].
func (s *subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return broker.ErrClosed
	}
	return nil
}

// Close implements [broker.Subscription].
func (s *subscription) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(b.subs[s.channel]), func(other *subscription) bool { return other == s })
	if len(rest) == 0 {
		delete(b.subs, s.channel)
		return
	}
	b.subs[s.channel] = rest
}

// end closes the subscription and waits for a call under way.
func (s *subscription) end() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calling.Lock()
	defer s.calling.Unlock()
}

// Interface guard
var _ broker.Broker = (*Broker)(nil)
