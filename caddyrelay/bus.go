package caddyrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
)

// listenerQueue is how many publications and changes may wait for one listener. What comes when that
// many wait is dropped for this listener and counted.
const listenerQueue = 1024

// Bus is how other Caddy modules listen to what is published and publish themselves, on the
// relay's channels and on any other channel of its broker. It is safe for concurrent use.
//
// A bus belongs to the configuration of the app it was got from. Its listeners begin to hear
// when that configuration starts, and are removed when it is cleaned up; during a
// reload those of the old and of the new configuration both hear for a moment.
type Bus struct {
	node       *node
	generation *generation
}

// Listener is called with what was published: JSON decoded as encoding/json does into an any,
// except that numbers are json.Number, so that long order numbers keep all digits; what
// isn't JSON as a string.
//
// One listener's calls come one after another, in the order of the broker, on a goroutine of
// its own. It may take its time and may panic: nobody else is harmed. But when more than
// 1024 publications wait for it, further ones are dropped for it.
type Listener func(value any)

// StateListener is called with an error when this node can no longer hear its channel, and with
// nil when it can again. What was published between the two may have been missed. It
// is called on the goroutine of its Listener.
type StateListener func(err error)

// On calls fn for everything published on channel until the returned function is called. A relay
// channel is named by its name in the configuration. onState may be nil.
//
// Once remove has returned, no further call begins, though one that runs on another
// goroutine may still be running; calling it from fn, or twice, is fine.
// The error says that the configuration is already gone.
func (b *Bus) On(channel string, fn Listener, onState StateListener) (remove func(), err error) {
	return b.listen(channel, fn, onState, false)
}

// Once is like [Bus.On] and removes the listener before its first call.
func (b *Bus) Once(channel string, fn Listener, onState StateListener) (remove func(), err error) {
	return b.listen(channel, fn, onState, true)
}

// Publish publishes value on a channel: strings and byte slices as they are, the rest as JSON.
//
// Sockets are reached by values of the shape {"id":"01","msg":…} on a relay channel, for
// example map[string]any{"id": "01", "msg": "hello"}. On an at_least_once channel that is
// stored, once it returns; other values are an error there. The error is one of
// [broker.Broker]'s or [broker.Store]'s, or says that the relay has not started or was stopped.
func (b *Bus) Publish(ctx context.Context, channel string, value any) error {
	payload, err := encodeValue(value)
	if err != nil {
		return fmt.Errorf("publishing on %s: %w", channel, err)
	}
	p := broker.FromPayload(payload)
	if b.generation.channels[channel] != nil {
		err = b.node.publishValue(ctx, b.generation, channel, p)
	} else {
		_, err = b.node.publishRaw(ctx, channel, p)
	}
	if err != nil {
		return fmt.Errorf("publishing on %s: %w", channel, err)
	}
	return nil
}

// publishValue publishes or stores what the bus was given for a relay channel.
func (n *node) publishValue(ctx context.Context, from *generation, channel string, p *broker.Publication) error {
	g, err := n.ruling(from, channel)
	if err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	if !g.keeps(channel) {
		_, err := n.publish(ctx, from, channel, p)
		return err
	}
	m, err := p.Message()
	if err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	if m.ID == broker.Everyone {
		return fmt.Errorf("%w: channel %s is at_least_once: it has no broadcast", broker.ErrRefused, channel)
	}
	m.MID, m.Channel, m.Source, m.Time = broker.NewMessageID(channel, m.ID, ""), channel, "bus", time.Now()
	_, err = n.keep(ctx, from, m, broker.AppendOptions{})
	return err
}

// publishRaw publishes on a channel of the broker that is not a relay channel.
func (n *node) publishRaw(ctx context.Context, topic string, p *broker.Publication) (broker.Published, error) {
	g := n.active.Load()
	if g == nil {
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, errNotRunning)
	}
	return g.broker.Publish(ctx, topic, p)
}

func encodeValue(value any) ([]byte, error) {
	switch v := value.(type) {
	case string:
		return []byte(v), nil
	case []byte:
		return bytes.Clone(v), nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // other programs should read what they would have written
	if err := enc.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func decodeValue(payload []byte) any {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return string(payload)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) { // more than one value
		return string(payload)
	}
	return v
}

func (b *Bus) listen(channel string, fn Listener, onState StateListener, once bool) (func(), error) {
	n, g := b.node, b.generation
	topic := channel
	if c := g.channels[channel]; c != nil {
		topic = c.topic(channel)
	}
	l := &busListener{node: n, generation: g, topic: topic, fn: fn, onState: onState, once: once}
	n.mu.Lock()
	defer n.mu.Unlock()
	if g.released {
		return nil, fmt.Errorf("listening on %s: this configuration was replaced", channel)
	}
	if g.feeds != nil { // started
		f := g.feeds[topic]
		if f == nil {
			var err error
			if f, err = n.acquireLocked(g.broker, topic); err != nil {
				return nil, fmt.Errorf("listening on %s: %w", channel, err)
			}
			g.feeds[topic] = f
		}
		l.attach(f)
	}
	g.listeners = append(g.listeners, l)
	return func() { n.unlisten(g, l) }, nil
}

// unlisten removes a listener, and gives back the feed if nothing else of its generation needs it.
func (n *node) unlisten(g *generation, l *busListener) {
	l.stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(g.listeners, l); i >= 0 {
		g.listeners = slices.Delete(g.listeners, i, i+1)
	}
	f := g.feeds[l.topic]
	if f == nil {
		return
	}
	for _, other := range g.listeners {
		if other.topic == l.topic {
			return
		}
	}
	for _, route := range g.routes {
		if route == f {
			return
		}
	}
	delete(g.feeds, l.topic)
	n.releaseLocked(g.broker, f)
}

// busListener is one Listener with its queue.
type busListener struct {
	node       *node
	generation *generation
	topic      string
	fn         Listener
	onState    StateListener
	once       bool

	mu      sync.Mutex
	feed    *feed
	queue   []item
	dropped uint64
	removed bool
	running bool // a goroutine empties the queue
}

// item is a publication, or a change of state.
type item struct {
	payload []byte
	change  bool
	err     error
}

// attach makes l hear a feed.
func (l *busListener) attach(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.removed {
		return
	}
	l.feed = f
	f.add(l)
}

func (l *busListener) offer(payload []byte) { l.enqueue(item{payload: payload}) }

func (l *busListener) offerState(err error) {
	if l.onState != nil {
		l.enqueue(item{change: true, err: err})
	}
}

// enqueue never waits. Changes of state are few, and missing one would leave a listener believing
// the wrong thing, so they pass where publications are dropped.
func (l *busListener) enqueue(it item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.removed {
		return
	}
	if len(l.queue) >= listenerQueue && (!it.change || len(l.queue) >= 2*listenerQueue) {
		l.node.counts.listenerDropped.Add(1)
		if l.dropped++; l.dropped == 1 {
			l.node.logger.Load().Warn("a listener on the bus is slower than what is published; it misses publications",
				zap.String("topic", l.topic), zap.Int("waiting", len(l.queue)))
		}
		return
	}
	l.queue = append(l.queue, it)
	if !l.running {
		l.running = true
		go l.run()
	}
}

// run calls the listener until its queue is empty.
func (l *busListener) run() {
	for {
		l.mu.Lock()
		if l.removed || len(l.queue) == 0 {
			l.queue, l.running = nil, false
			l.mu.Unlock()
			return
		}
		it := l.queue[0]
		l.queue = l.queue[1:]
		last := l.once && !it.change
		if last { // nobody can come between this and the call
			l.removed = true
		}
		l.mu.Unlock()
		if last {
			l.node.unlisten(l.generation, l)
		}
		l.call(it)
	}
}

// call calls the listener once. A panic in somebody else's module must not end the process.
func (l *busListener) call(it item) {
	defer func() {
		if v := recover(); v != nil {
			l.node.counts.listenerPanics.Add(1)
			l.node.logger.Load().Error("a listener on the bus panicked",
				zap.String("topic", l.topic), zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
		}
	}()
	if it.change {
		l.onState(it.err)
		return
	}
	l.fn(decodeValue(it.payload))
}

// stop removes the listener: no call begins after it returns.
func (l *busListener) stop() {
	l.mu.Lock()
	l.removed = true
	l.mu.Unlock()
	l.detach()
}

func (l *busListener) detach() {
	l.mu.Lock()
	f := l.feed
	l.feed = nil
	l.mu.Unlock()
	if f != nil {
		f.remove(l)
	}
}
