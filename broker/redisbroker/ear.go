package redisbroker

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// ear is what hears publications: one connection after another to one primary, and what is known of it. A broker has one.
// On a cluster it has a second one, for what nodes tell each other: that goes over sharded channels, which only the primary
// of the channel's slot knows, and costs the others nothing.
type ear struct {
	b       *Broker
	sharded bool
	key     string // on a cluster: the primary of this key's slot is who is heard

	lost      atomic.Uint64
	roundTrip atomic.Int64 // nanoseconds

	mu        sync.Mutex
	closing   bool
	listening bool // listenLoop runs
	topics    map[string]*topic
	session   *session      // the connection that hears, or nil
	down      error         // why nothing is heard, once that was tried; nil before and while it is
	lostAt    time.Time     // since when that is so, or zero
	away      time.Duration // how long that was so before
}

func newEar(b *Broker, key string, sharded bool) *ear {
	return &ear{b: b, key: key, sharded: sharded, topics: make(map[string]*topic)}
}

// Subscribe implements [broker.Broker].
func (b *Broker) Subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	return b.ear.subscribe(channel, sink)
}

// dial connects to the primary that is heard.
func (e *ear) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return e.b.dialKey(ctx, network, e.key)
}

// publish publishes the way everything is published that this ear hears.
func (e *ear) publish(ctx context.Context, channel string, payload []byte) (broker.Published, error) {
	if e.sharded {
		return e.b.store.spublish(ctx, channel, payload)
	}
	return e.b.publish(ctx, channel, payload)
}

// stats returns the counts.
func (e *ear) stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	away := e.away
	if !e.lostAt.IsZero() {
		away += time.Since(e.lostAt)
	}
	return Stats{Lost: e.lost.Load(), RoundTrip: time.Duration(e.roundTrip.Load()), Away: away}
}

// close begins the end: nothing is subscribed to any more. It returns the session under way, if there is one.
func (e *ear) close() *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closing = true
	return e.session
}

// closed ends all subscriptions. The loops have ended.
func (e *ear) closed() {
	e.mu.Lock()
	topics := e.topics
	e.topics = make(map[string]*topic)
	e.mu.Unlock()
	for _, t := range topics {
		for _, sub := range t.subs {
			sub.end()
		}
	}
}
