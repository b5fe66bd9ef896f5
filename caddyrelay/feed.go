package caddyrelay

import (
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
)

// feed is one broker channel as this node hears it: for the sockets of a relay channel, for
// listeners on the bus, or for both. Generations that use the same broker share it, so
// that nothing is heard twice.
type feed struct {
	node  *node
	topic string
	sub   broker.Subscription

	// channel is the relay channel whose topic this is, or nil. It is kept when a
	// reload renames the topic, so that what is on its way still arrives.
	channel atomic.Pointer[string]

	// refs is guarded by node.mu.
	refs int

	mu        sync.RWMutex
	listeners []*busListener
}

// Deliver implements [broker.Sink].
func (f *feed) Deliver(_ string, p *broker.Publication) {
	f.mu.RLock()
	listeners := f.listeners
	f.mu.RUnlock()
	for _, l := range listeners {
		l.offer(p.Payload())
	}
	name := f.channel.Load()
	if name == nil {
		return
	}
	m, err := p.Message()
	if err != nil {
		f.node.counts.channel(*name).invalid.Add(1)
		f.skipped(*name, err)
		return
	}
	if m.Channel != *name { // it came from Redis, under the topic's name or none
		m.Channel = *name
	}
	f.node.hub.Deliver(m)
}

// skipped logs a payload that sockets cannot be given. Whoever publishes one usually goes on doing
// so, so the log gets one line a minute for each channel.
func (f *feed) skipped(channel string, err error) {
	if n, ok := f.node.counts.channel(channel).skips.allow(); ok {
		f.node.logger.Load().Warn("skipped a publication that is not for sockets",
			zap.String("channel", channel), zap.String("topic", f.topic), zap.Error(err), zap.Uint64("since_last_line", n))
	}
}

// StateChanged implements [broker.Sink].
func (f *feed) StateChanged(_ string, err error) {
	f.mu.RLock()
	listeners := f.listeners
	f.mu.RUnlock()
	for _, l := range listeners {
		l.offerState(err)
	}
}

// err says why this node would not hear what is published now, or nil.
func (f *feed) err() error { return f.sub.Err() }

func (f *feed) add(l *busListener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// A fresh slice each time: Deliver walks the old one without the lock.
	f.listeners = append(f.listeners[:len(f.listeners):len(f.listeners)], l)
}

func (f *feed) remove(l *busListener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rest []*busListener
	for _, other := range f.listeners {
		if other != l {
			rest = append(rest, other)
		}
	}
	f.listeners = rest
}

// feedKey tells feeds apart.
type feedKey struct {
	broker broker.Broker
	topic  string
}

// acquireLocked returns the feed of a topic, subscribing if nobody has yet. It must be called
// with n.mu held.
func (n *node) acquireLocked(b broker.Broker, topic string) (*feed, error) {
	key := feedKey{b, topic}
	if f := n.feeds[key]; f != nil {
		f.refs++
		return f, nil
	}
	f := &feed{node: n, topic: topic, refs: 1}
	sub, err := b.Subscribe(topic, f)
	if err != nil {
		return nil, err
	}
	f.sub = sub
	n.feeds[key] = f
	return f, nil
}

// releaseLocked undoes one acquireLocked. It must be called with n.mu held.
func (n *node) releaseLocked(b broker.Broker, f *feed) {
	if f.refs--; f.refs > 0 {
		return
	}
	delete(n.feeds, feedKey{b, f.topic})
	f.sub.Close()
}
