package redisbroker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// Options are what a broker is made of. Zero values take the defaults.
type Options struct {
	// Network is "tcp" or "unix". Default tcp.
	Network string

	// Address is host:port or the path of a socket. Required.
	Address string

	// DB is the database number. Publish and subscribe are the same in all of them.
	DB int

	// Prefix begins the names of the relay's own channels. Default relay.
	Prefix string

	// Node names this process among the nodes, and must be its own. Default: random.
	Node string

	// Settings are what it begins with; see [Broker.Configure].
	Settings Settings

	// Logger is told when Redis is lost and when it is back, and of sinks that panic.
	// Default: nobody is.
	Logger *slog.Logger

	// Timeout bounds a dial, and one exchange with the server. Default 2 s.
	Timeout time.Duration

	// ProbeInterval is the time between two probes while nothing else happens, and how
	// long an echo may take. Default 5 s.
	ProbeInterval time.Duration

	// MaxBackoff is the longest wait between two attempts to connect. Default 2 s.
	MaxBackoff time.Duration
}

// Settings are what may change while a broker runs.
type Settings struct {
	Username, Password string
	TLS                *tls.Config // nil: no TLS
}

// Stats is what a broker counted since it was made.
type Stats struct {
	Lost      uint64        // times that a proven connection was lost
	RoundTrip time.Duration // of the last probe
}

// Broker is a broker on one Redis server. Make it with [New].
type Broker struct {
	// Fixed by New.
	o      Options
	client *redis.Client // for publishing
	queue  chan *job
	stop   context.CancelFunc // ends the goroutines
	ctx    context.Context
	loops  sync.WaitGroup

	settings  atomic.Pointer[Settings]
	lost      atomic.Uint64
	roundTrip atomic.Int64

	mu         sync.Mutex
	closing    bool
	publishing sync.WaitGroup // Add only with mu held and closing false
	listening  bool           // the session loop runs
	topics     map[string]*topic
	session    *session // the connection that hears, or nil
	down       error    // why nothing is heard, once that was tried; nil before and while it is
	wake       chan struct{}
}

// New returns a broker. It does no I/O: the broker connects when it is first used.
func New(o Options) (*Broker, error) {
	if o.Address == "" {
		return nil, errors.New("redis: the address is missing")
	}
	o.setDefaults()
	b := &Broker{
		o: o, queue: make(chan *job, maxQueue), topics: make(map[string]*topic), wake: make(chan struct{}, 1),
	}
	b.settings.Store(&o.Settings)
	b.client = b.newClient(b.dial)
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.loops.Go(b.commitLoop)
	return b, nil
}

func (o *Options) setDefaults() {
	if o.Network == "" {
		o.Network = "tcp"
	}
	if o.Prefix == "" {
		o.Prefix = "relay"
	}
	if o.Node == "" {
		o.Node = broker.NewMID()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{{&o.Timeout, 2 * time.Second}, {&o.ProbeInterval, 5 * time.Second}, {&o.MaxBackoff, 2 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
}

// Configure gives the broker new settings. Connections that stand stay as they are; the next
// ones are made with the new settings, and one that is being waited for is tried at once.
func (b *Broker) Configure(s Settings) {
	b.settings.Store(&s)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Stats returns the counts.
func (b *Broker) Stats() Stats {
	return Stats{Lost: b.lost.Load(), RoundTrip: time.Duration(b.roundTrip.Load())}
}

// Close implements [broker.Broker].
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		b.loops.Wait()
		return nil
	}
	b.closing = true
	s := b.session
	b.mu.Unlock()

	b.publishing.Wait() // each is bounded by Options.Timeout
	if s != nil {
		// A probe that is published now comes behind everything that was.
		ctx, cancel := context.WithTimeout(b.ctx, time.Second)
		s.settle(ctx)
		cancel()
	}
	b.stop()
	b.endSession(broker.ErrClosed)
	b.loops.Wait()
	err := b.client.Close()

	b.mu.Lock()
	topics := b.topics
	b.topics = make(map[string]*topic)
	b.mu.Unlock()
	for _, t := range topics {
		for _, sub := range t.subs {
			sub.end()
		}
	}
	return err
}

// Interface guard
var _ broker.Broker = (*Broker)(nil)
