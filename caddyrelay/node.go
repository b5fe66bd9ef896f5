package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/hub"
)

// The pools that let the node and its brokers survive reloads. The node's key is a constant: one
// process is one node. A broker's key is what its module says.
var (
	nodes   = caddy.NewUsagePool()
	brokers = caddy.NewUsagePool()
)

const nodeKey = "node"

// startWait bounds how long things of a configuration wait for its relay app to start.
const startWait = 5 * time.Second

// node is this process's part in the relay.
type node struct {
	hub    *hub.Hub
	counts counts

	// logger is the newest generation's.
	logger atomic.Pointer[zap.Logger]

	// active is the last of generations, for those who must not wait for mu.
	active atomic.Pointer[generation]

	// storing is held for reading while a message is stored with the configuration that rules, and for writing while
	// another takes over that does not have all that this one stores in. Taken before mu.
	storing sync.RWMutex

	mu          sync.Mutex
	numbered    uint64
	generations []*generation // started and not stopped, oldest first
	feeds       map[feedKey]*feed
	intakes     map[intakeKey]*intake
}

// errUnknownChannel says that the running configuration has no such channel.
var errUnknownChannel = errors.New("unknown channel")

// errStored says that a channel became at_least_once.
var errStored = errors.New("the channel is at_least_once now")

// errNotRunning says that no configuration with a relay is running.
var errNotRunning = errors.New("the relay is not running")

// newNode is a constructor for the pool.
func newNode() (caddy.Destructor, error) {
	n := &node{hub: hub.New(), feeds: make(map[feedKey]*feed)}
	n.hub.OnStoreError, n.hub.OnFight, n.hub.OnPromote = n.storeFailed, n.fought, n.promoted
	n.logger.Store(zap.NewNop())
	return n, nil
}

// Destruct implements [caddy.Destructor]: no configuration has a relay any more. The sessions were
// dismissed when the last one stopped, and end by themselves.
func (n *node) Destruct() error { return nil }

// pooledBroker closes a broker when the last configuration that uses it is gone.
type pooledBroker struct{ broker.Broker }

// Destruct implements [caddy.Destructor].
func (b pooledBroker) Destruct() error { return b.Close() }

// openBroker returns the broker of a module, from the pool if it is open already.
func openBroker(m BrokerModule, logger *slog.Logger) (broker.Broker, error) {
	b, _, err := brokers.LoadOrNew(brokerKey(m), func() (caddy.Destructor, error) {
		b, err := m.Open(logger)
		if err != nil {
			return nil, err
		}
		return pooledBroker{b}, nil
	})
	if err != nil {
		return nil, err
	}
	return b.(pooledBroker).Broker, nil
}

// brokerKey tells brokers apart in their pool. Keys of different modules cannot meet.
func brokerKey(m BrokerModule) string { return string(m.CaddyModule().ID) + " " + m.Key() }

// nextNumber numbers the configurations of this process.
func (n *node) nextNumber() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.numbered++
	return n.numbered
}

// start makes g the generation that rules. Feeds that the one before has too are shared.
func (n *node) start(g *generation) error {
	if err := n.openStore(g); err != nil {
		return err
	}
	n.mu.Lock()
	fresh, err := n.acquireAllLocked(g)
	before := n.active.Load()
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if before != nil {
		awaitProven(fresh)
	}
	if g.drops(before) {
		// Something may have been stored since the first look. While this one is taken, and until g rules, nothing is.
		n.storing.Lock()
		defer n.storing.Unlock()
		if err := g.leavesBehind(before); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, f := range g.routes {
		f.channel.Store(&name)
	}
	n.generations = append(n.generations, g)
	n.rule()
	for _, i := range g.intakes {
		i.enable(g)
	}
	close(g.started)
	go n.watchIsolation(g)
	return nil
}

// provable is something that hears a channel of the broker.
type provable interface {
	err() error // why it does not hear, or nil
}

// acquireAllLocked acquires the feeds of g's channels and listeners, and returns those that nobody had
// before. It must be called with n.mu held.
func (n *node) acquireAllLocked(g *generation) (fresh []provable, err error) {
	// Settings such as a password are needed by the first dial already.
	if len(n.generations) == 0 || n.generations[len(n.generations)-1].broker != g.broker {
		g.app.brokerModule.Apply(g.broker)
	}
	g.feeds, g.routes = make(map[string]*feed), make(map[string]*feed)
	acquire := func(topic string) (*feed, error) {
		if f := g.feeds[topic]; f != nil {
			return f, nil
		}
		f, err := n.acquireLocked(g.broker, topic)
		if err != nil {
			return nil, err
		}
		g.feeds[topic] = f
		if f.refs == 1 {
			fresh = append(fresh, f)
		}
		return f, nil
	}
	for name, c := range g.channels {
		if c.takesIn() {
			i, err := n.acquireIntakeLocked(g.broker.(classicBroker), name, c.topic(name))
			if err != nil {
				return nil, fmt.Errorf("channel %s: %w", name, err)
			}
			g.intakes = append(g.intakes, i)
			fresh = append(fresh, i)
		}
		if c.stores() {
			continue
		}
		if g.routes[name], err = acquire(c.topic(name)); err != nil {
			return nil, fmt.Errorf("channel %s: %w", name, err)
		}
	}
	for _, l := range g.listeners {
		f, err := acquire(l.topic)
		if err != nil {
			return nil, fmt.Errorf("listener on %s: %w", l.topic, err)
		}
		l.attach(f)
	}
	return fresh, nil
}

// awaitProven gives a broker or a channel that a reload brings the time to connect, so that
// publishers notice nothing. One that cannot be reached does not hold the reload up for long.
func awaitProven(feeds []provable) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, f := range feeds {
		for f.err() != nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// rule applies the settings of the newest generation. It must be called with n.mu held.
func (n *node) rule() {
	if len(n.generations) == 0 {
		n.active.Store(nil)
		return
	}
	g := n.generations[len(n.generations)-1]
	g.app.brokerModule.Apply(g.broker)
	n.hub.SetMaxSockets(g.app.MaxSockets)
	n.logger.Store(g.app.logger)
	n.applyStore(g)
	n.active.Store(g)
	n.hub.Reattach()
}

// stop takes g back. The sockets that the generation which rules now does not serve get a goodbye.
func (n *node) stop(g *generation) {
	n.finishIntakes(g)
	n.mu.Lock()
	i := slices.Index(n.generations, g)
	if i < 0 {
		n.mu.Unlock()
		return
	}
	n.generations = slices.Delete(n.generations, i, i+1)
	n.rule()
	now := n.active.Load()
	n.mu.Unlock()
	if now == nil {
		n.hub.Dismiss(hub.ChannelRemoved, g.app.spread(), func(*hub.Session) bool { return true })
		return
	}
	n.dismissUnserved(now)
}

// dismissUnserved says goodbye to sockets whose channel or listener is gone, and to those that have
// kept too old a configuration in memory.
func (n *node) dismissUnserved(g *generation) {
	n.hub.Dismiss(hub.ChannelRemoved, g.app.spread(), func(s *hub.Session) bool {
		c := g.channels[s.Endpoint().Channel]
		return c == nil || c.stores() != s.Stored()
	})
	n.hub.Dismiss(hub.ListenerRemoved, g.app.spread(), func(s *hub.Session) bool {
		return g.channels[s.Endpoint().Channel] != nil && !g.serves(s.Endpoint().Channel, s.LocalAddr())
	})
	if oldest := int64(g.number) - int64(g.app.MaxGenerations); oldest > 0 {
		n.hub.Dismiss(hub.ConfigPinned, g.app.spread(), func(s *hub.Session) bool {
			return s.Endpoint().Pinned && s.Endpoint().Generation < uint64(oldest)
		})
	}
}

// release lets go of what g holds. Its broker's reference is given back first: a broker that nobody
// else uses lets its feeds hear all that was published through it before it closes.
func (n *node) release(g *generation) error {
	_, err := brokers.Delete(g.key)
	n.mu.Lock()
	listeners := g.listeners
	g.listeners = nil
	for _, f := range g.feeds {
		n.releaseLocked(g.broker, f)
	}
	g.feeds, g.released = nil, true
	intakes := n.releaseIntakesLocked(g)
	close(g.stopped)
	n.mu.Unlock()
	for _, i := range intakes {
		i.close()
	}
	for _, l := range listeners {
		l.stop()
	}
	return err
}

// publish hands a publication to the channel as the running configuration has it. The
// configuration that the caller belongs to matters only while it is starting: Caddy lets
// requests run on after their configuration was replaced, and the sockets are where
// the new one is.
func (n *node) publish(ctx context.Context, from *generation, channel string, p *broker.Publication) (broker.Published, error) {
	for range 3 {
		g, err := n.ruling(from, channel)
		if err != nil {
			return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, err)
		}
		f := g.routes[channel]
		if f == nil { // it is stored
			return broker.Published{}, fmt.Errorf("%w: channel %s: %w", broker.ErrRefused, channel, errStored)
		}
		// Unless this node hears the channel itself, it cannot know that anybody does.
		err = f.err()
		if err != nil && !errors.Is(err, broker.ErrClosed) {
			return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, err)
		}
		var out broker.Published
		if err == nil {
			out, err = g.broker.Publish(ctx, f.topic, p)
		}
		// A broker that was closed under our hands has a successor, if it was a reload.
		if !errors.Is(err, broker.ErrClosed) {
			return out, err
		}
		if n.active.Load() == g {
			break
		}
	}
	return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, errNotRunning)
}

// ruling returns the generation that rules, which has the channel.
func (n *node) ruling(from *generation, channel string) (*generation, error) {
	if g := n.active.Load(); g != nil && g.channels[channel] != nil {
		return g, nil
	}
	// The caller's own configuration may be about to start.
	if !from.waitStarted(startWait) {
		return nil, errNotRunning
	}
	g := n.active.Load()
	if g == nil {
		return nil, errNotRunning
	}
	if g.channels[channel] == nil {
		return nil, fmt.Errorf("%w: %s", errUnknownChannel, channel)
	}
	return g, nil
}
