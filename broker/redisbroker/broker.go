package redisbroker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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

	// Address is host:port or the path of a socket. Required, unless there are Sentinels or Seeds.
	Address string

	// Sentinels are the addresses of Redis Sentinels, and MasterName what they call the primary. They are asked
	// for each connection. Default none: the server is at Address.
	Sentinels  []string
	MasterName string

	// Mode says what kind of Redis there is. Default Auto.
	Mode Mode

	// Seeds are the addresses of some nodes of a Redis Cluster; they name the others. Default Address.
	Seeds []string

	// DB is the database number. Publish and subscribe are the same in all of them.
	DB int

	// Prefix begins the names of the relay's own channels and keys. It holds no braces. Default relay.
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

	// Lease is how long owners go on pushing messages without a word from the server, and how long a node is taken
	// for alive that is not heard of. Default 15 s.
	Lease time.Duration

	// CheckInterval is the time in which all attached mailboxes are looked at, for news that a notice should have told;
	// with more than a thousand for each second it takes longer. What is kept is counted as often. Default 5 s.
	CheckInterval time.Duration

	// MaxBackoff is the longest wait between two attempts to connect. Default 500 ms: while some
	// nodes are back and others are not, what the first accept does not reach the others.
	MaxBackoff time.Duration
}

// Settings are what may change while a broker runs.
type Settings struct {
	Username, Password string
	TLS                *tls.Config // nil: no TLS

	// SentinelUsername and SentinelPassword are for the Sentinels, which have users of their own.
	SentinelUsername, SentinelPassword string

	// Replicas is how many replicas must confirm a message before it counts as stored, and ReplicaTimeout how
	// long an append waits for them; if fewer have by then, it returns [broker.ErrUnproven]. The wait is part of
	// one exchange with the server, so at most half of Options.Timeout. Default none, and 50 ms. With AllReplicas it is
	// as many as are connected to the primary when it is asked, and at least one.
	AllReplicas    bool
	Replicas       int
	ReplicaTimeout time.Duration
}

// replicaTimeout returns how long to wait, within limit.
func (s *Settings) replicaTimeout(limit time.Duration) time.Duration {
	return min(cmp.Or(max(s.ReplicaTimeout, 0), 50*time.Millisecond), limit/2)
}

// replicas returns how many replicas must confirm a message, of so many that are connected.
func (s *Settings) replicas(connected int) int {
	if s.AllReplicas {
		return max(connected, 1)
	}
	return s.Replicas
}

// Stats is what a broker counted since it was made.
type Stats struct {
	Lost      uint64        // times that a proven connection was lost
	RoundTrip time.Duration // of the last probe
	Away      time.Duration // for how long it was lost, in all, the time that is running included
}

// Broker is a broker on one Redis server. Make it with [New].
type Broker struct {
	// Fixed by New.
	o          Options
	queue      chan *job
	configured chan struct{}
	names      names
	store      *store
	ctx        context.Context
	stop       context.CancelFunc // ends the goroutines
	loops      sync.WaitGroup
	ending     sync.Once

	// Owned by commitLoop.
	client *redis.Client
	moved  uint64 // moves when client was made

	ear     *ear          // hears what is published
	nodeEar *ear          // hears what nodes tell each other on a cluster
	stale   chan struct{} // somebody saw that the topology is not what it was

	kind        atomic.Int32 // see discover
	discovering sync.Mutex
	refreshing  sync.Mutex
	topology    atomic.Pointer[topology] // of a cluster, once it is known

	settings   atomic.Pointer[Settings]
	sentinel   atomic.Int32           // which one answered last
	master     atomic.Pointer[string] // the primary that it named, or nil
	moves      atomic.Uint64          // counts changes of it
	mu         sync.Mutex
	closing    bool
	publishing sync.WaitGroup // Add only with mu held and closing false
	started    time.Time
}

// New returns a broker. It does no I/O: the broker connects when it is first used.
func New(o Options) (*Broker, error) {
	if (o.MasterName != "") != (len(o.Sentinels) > 0) {
		return nil, errors.New("redis: Sentinels and the name of their primary belong together")
	}
	if o.MasterName != "" {
		o.Network, o.Address = "tcp", o.MasterName+" of the Sentinels "+strings.Join(o.Sentinels, ", ")
	}
	if len(o.Seeds) > 0 {
		o.Network, o.Address = "tcp", strings.Join(o.Seeds, ", ")
	}
	if o.Address == "" {
		return nil, errors.New("redis: the address is missing")
	}
	if o.Network != "" && o.Network != "tcp" && o.Network != "unix" {
		return nil, fmt.Errorf("redis: the network is %q; it must be tcp or unix", o.Network)
	}
	if strings.ContainsAny(o.Prefix, "{}") {
		return nil, fmt.Errorf("redis: the prefix is %q; braces would decide where a cluster keeps its keys: write it without", o.Prefix)
	}
	if o.DB != 0 && (o.Mode == Cluster || len(o.Seeds) > 0) {
		return nil, fmt.Errorf("redis: a Redis Cluster has database 0 only, and the database is %d: take that out", o.DB)
	}
	o.setDefaults()
	b := &Broker{
		o: o, queue: make(chan *job, maxQueue), configured: make(chan struct{}, 1), stale: make(chan struct{}, 1), started: time.Now(),
	}
	b.settings.Store(&o.Settings)
	switch {
	case o.Mode == Standalone || o.MasterName != "" || o.Network == "unix" && o.Mode == Auto:
		b.kind.Store(kindSingle)
	case o.Mode == Cluster || len(o.Seeds) > 0:
		b.kind.Store(kindCluster)
	}
	if len(o.Seeds) == 0 {
		b.o.Seeds = []string{o.Address}
	}
	b.client = b.newClient(b.dial)
	b.names = names{prefix: o.Prefix}
	b.store = newStore(b)
	b.ear, b.nodeEar = newEar(b, b.names.meta(), false), newEar(b, b.names.node(b.store.incarnation), true)
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.loops.Go(b.commitLoop)
	if b.kind.Load() != kindSingle {
		b.loops.Go(b.topologyLoop)
	}
	if o.MasterName != "" {
		b.loops.Go(b.masterLoop)
	}
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
	}{{&o.Timeout, 2 * time.Second}, {&o.ProbeInterval, 5 * time.Second}, {&o.MaxBackoff, 500 * time.Millisecond},
		{&o.Lease, 15 * time.Second}, {&o.CheckInterval, 5 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
}

// Configure gives the broker new settings. Connections that stand stay as they are; the next
// ones are made with the new settings, and one that is being waited for is tried at once.
func (b *Broker) Configure(s Settings) {
	b.settings.Store(&s)
	wake(b.configured)
}

// Stats returns the counts.
func (b *Broker) Stats() Stats {
	return b.ear.stats()
}

// Close implements [broker.Broker]. It takes at most three times Options.Timeout, and a second.
func (b *Broker) Close() error {
	b.ending.Do(b.close)
	return nil
}

func (b *Broker) close() {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	s := b.ear.close()
	b.nodeEar.close()

	published := b.published(2 * b.o.Timeout)
	b.store.settleNotices(b.o.Timeout / 2)
	if published && s != nil {
		// A probe that is published now comes behind everything that was.
		ctx, cancel := context.WithTimeout(b.ctx, time.Second)
		s.settle(ctx)
		cancel()
	}
	b.store.depart(b.o.Timeout / 2)
	b.stop()
	b.ear.endSession(broker.ErrClosed)
	b.nodeEar.endSession(broker.ErrClosed)
	b.loops.Wait()
	b.store.closed()
	b.ear.closed()
	b.nodeEar.closed()

}

// settleNotices waits, for a bounded time, until nodes have been told what they are to be told: what the owner of a
// mailbox does not hear it finds a few seconds later.
func (s *store) settleNotices(limit time.Duration) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !s.notices.idle() && time.Now().Before(deadline); {
		<-tick.C
	}
}

// published waits until no publish is under way, for as long as one may take that is being sent, and
// one behind it. If Redis hangs, more of them wait than can be waited for.
func (b *Broker) published(limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		b.publishing.Wait() // returns soon after b.stop at the latest
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// Interface guards
var (
	_ broker.Broker = (*Broker)(nil)
	_ broker.Store  = (*Broker)(nil)
)
