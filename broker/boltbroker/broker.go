package boltbroker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

// Options are the settings of a broker. Zero values take the defaults.
type Options struct {
	// Path is the file that messages of at_least_once channels are kept in. It is made, with its directory, when
	// it is not there. Without it the broker serves at_most_once only.
	Path string

	// Node names this process in records. Default: the host's name.
	Node string

	// Logger is told when the store opens or fails, and of sinks and owners that panic. Default: nobody is.
	Logger *slog.Logger

	// Clock is what the store's clock follows. It may go back; the store's does not. Default [time.Now].
	Clock func() time.Time

	// NoSync leaves out fsync: what was accepted may be lost with the machine's power, and the answers say
	// "memory". For tests.
	NoSync bool

	// SweepInterval is how often deadlines are seen to. Default 1 s.
	SweepInterval time.Duration

	// BatchLimit bounds the operations of one commit. Default 1024.
	BatchLimit int
}

// Broker is an embedded broker. Make it with [New].
type Broker struct {
	// Fixed by New.
	o        Options
	queue    chan *operation
	stopping chan struct{} // closed by Close
	stopped  chan struct{} // closed when the committer is gone

	// The store. starting is held while it opens; db is fixed once started is true.
	starting   sync.Mutex
	started    atomic.Bool
	db         *bolt.DB
	loops      sync.WaitGroup
	clock      clock
	broken     atomic.Pointer[error] // why nothing more is written
	full       atomic.Bool           // the last commit found no room
	policies   atomic.Pointer[map[string]broker.Policy]
	failCommit func() error // for tests: what a commit fails with

	mu         sync.RWMutex
	topics     map[string]*topic
	closed     bool
	publishing sync.WaitGroup           // Add only with mu held and closed false
	owners     map[string]*attachment   // by mailbox, as committed
	lines      map[string][]*attachment // who waits for a mailbox, oldest first; see line.go
	waiters    map[string][]chan broker.Record
	endings    map[broker.Ending]uint64

	ending   sync.Once
	closeErr error
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

// New returns a broker without subscriptions. It does no I/O; see [Broker.Start].
func New(o Options) *Broker {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Node == "" {
		o.Node, _ = os.Hostname() // a record without a node is no worse
	}
	if o.SweepInterval <= 0 {
		o.SweepInterval = time.Second
	}
	if o.BatchLimit <= 0 {
		o.BatchLimit = 1024
	}
	return &Broker{
		o: o, queue: make(chan *operation, maxQueue), stopping: make(chan struct{}), stopped: make(chan struct{}), topics: make(map[string]*topic),
		owners: make(map[string]*attachment), lines: make(map[string][]*attachment), waiters: make(map[string][]chan broker.Record), endings: make(map[broker.Ending]uint64),
	}
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
// returned, so it waits for no more than that, and for the commit under way.
func (b *Broker) Close() error {
	b.ending.Do(func() {
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		b.publishing.Wait()
		b.closeErr = b.closeStore()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, t := range b.topics {
			for _, s := range t.subs {
				s.closed.Store(true)
			}
		}
		b.topics = nil
	})
	return b.closeErr
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
			s.broker.o.Logger.Error("a sink panicked", "channel", s.channel, "panic", v, "stack", string(debug.Stack()))
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
var _ broker.Store = (*Broker)(nil)
