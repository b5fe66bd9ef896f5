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
	"sync/atomic"

	"github.com/caddyrelay/relay/broker"
)

// Options are the settings of a broker.
type Options struct {
	// Path is the file that messages are stored in.
	Path string

	// Logger is told of sinks that panic. Default: nobody is.
	Logger *slog.Logger
}

// Broker is an embedded broker. Make it with [New].
type Broker struct {
	logger *slog.Logger

	mu         sync.RWMutex
	topics     map[string]*topic
	closed     bool
	publishing sync.WaitGroup // Add only with mu held and closed false

	ending sync.Once
}

// topic is a channel that somebody subscribed to.
type topic struct {
	// calling is held while the sinks are called. It makes one order of what concurrent
	// publishers say, the same for every sink, and keeps a sink's calls apart.
	calling sync.Mutex

	// subs is guarded by Broker.mu. The slice is replaced, never changed, so that sinks are
	// called without that lock and may close their own subscription.
	subs []*subscription
}

// New returns a broker without subscriptions.
func New(o Options) *Broker {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Broker{logger: o.Logger, topics: make(map[string]*topic)}
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
	b.publishing.Add(1)
	t := b.topics[channel]
	b.mu.RUnlock()
	defer b.publishing.Done()
	if t != nil {
		b.deliver(t, p)
	}
	return broker.Published{Receivers: -1}, nil
}

func (b *Broker) deliver(t *topic, p *broker.Publication) {
	t.calling.Lock()
	defer t.calling.Unlock()
	b.mu.RLock()
	subs := t.subs
	b.mu.RUnlock()
	for _, s := range subs {
		s.deliver(p)
	}
}

// Subscribe implements [broker.Broker]. The subscription is proven at once, for as long as it lasts.
func (b *Broker) Subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, broker.ErrClosed
	}
	t := b.topics[channel]
	if t == nil {
		t = new(topic)
		b.topics[channel] = t
	}
	s := &subscription{broker: b, channel: channel, sink: sink}
	t.subs = append(slices.Clone(t.subs), s)
	return s, nil
}

// Close implements [broker.Broker]. What was published has been delivered by the time Publish
// returned, so it waits for no more than that.
func (b *Broker) Close() error {
	b.ending.Do(func() {
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		b.publishing.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, t := range b.topics {
			for _, s := range t.subs {
				s.closed.Store(true)
			}
		}
		b.topics = nil
	})
	return nil
}

// subscription is one sink's hold on a channel.
type subscription struct {
	broker  *Broker
	channel string
	sink    broker.Sink
	closed  atomic.Bool
}

// deliver calls the sink. A panic in it is its own affair: publishers and other sinks go on.
func (s *subscription) deliver(p *broker.Publication) {
	if s.closed.Load() {
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
	if s.closed.Load() {
		return broker.ErrClosed
	}
	return nil
}

// Close implements [broker.Subscription].
func (s *subscription) Close() {
	s.closed.Store(true)
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.topics[s.channel]
	if t == nil {
		return
	}
	t.subs = slices.DeleteFunc(slices.Clone(t.subs), func(other *subscription) bool { return other == s })
	if len(t.subs) == 0 {
		delete(b.topics, s.channel)
	}
}

// Interface guard
var _ broker.Broker = (*Broker)(nil)
