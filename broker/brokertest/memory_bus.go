package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyrelay/relay/broker"
)

// bus is the at_most_once half of a [Memory].
type bus struct {
	calling sync.Mutex // held while sinks are called: one order for all of them

	mu   sync.Mutex
	subs []*ticket
	down bool
}

// ticket is a subscription to the bus of a [Memory].
type ticket struct {
	node    *Memory
	channel string
	sink    broker.Sink
	why     error // guarded by bus.mu: why it is not proven
	told    bool  // guarded by bus.calling: the sink knows of an outage
}

// Publish implements [broker.Broker].
func (m *Memory) Publish(ctx context.Context, channel string, p *broker.Publication) (broker.Published, error) {
	if err := m.enter(ctx); err != nil {
		return broker.Published{}, err
	}
	m.mu.Unlock()
	b := &m.bus
	b.calling.Lock()
	defer b.calling.Unlock()
	if err := m.enter(ctx); err != nil { // it may have been closed meanwhile
		return broker.Published{}, err
	}
	m.mu.Unlock()
	b.each(func(t *ticket) bool { return t.channel == channel }, func(t *ticket) { t.sink.Deliver(channel, p) })
	return broker.Published{Receivers: -1}, nil
}

// each calls sinks. The caller holds calling.
func (b *bus) each(which func(*ticket) bool, call func(*ticket)) {
	b.mu.Lock()
	subs := slices.Clone(b.subs)
	b.mu.Unlock()
	for _, t := range subs {
		if which(t) && !errors.Is(t.Err(), broker.ErrClosed) {
			guard(func() { call(t) })
		}
	}
}

// Subscribe implements [broker.Broker].
func (m *Memory) Subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	b := &m.bus
	t := &ticket{node: m, channel: channel, sink: sink}
	b.mu.Lock()
	if err := m.alive(); err != nil {
		b.mu.Unlock()
		return nil, err
	}
	b.subs = append(b.subs, t)
	down := b.down
	if down {
		t.why = errStopped
	}
	b.mu.Unlock()
	if down {
		m.bell.ring(b.tellOutage)
	}
	return t, nil
}

// alive returns why the handle takes nothing more, or nil.
func (m *Memory) alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

var errStopped = fmt.Errorf("%w: stopped", broker.ErrUnavailable)

// outage begins or ends one, and tells the sinks.
func (b *bus) outage(down bool) {
	var why error
	if down {
		why = errStopped
	}
	b.calling.Lock()
	defer b.calling.Unlock()
	b.mu.Lock()
	b.down = down
	for _, t := range b.subs {
		t.why = why
	}
	b.mu.Unlock()
	b.tell(down, why)
}

// tellOutage tells the subscriptions that began during an outage, if there still is one.
func (b *bus) tellOutage() {
	b.calling.Lock()
	defer b.calling.Unlock()
	b.mu.Lock()
	down := b.down
	b.mu.Unlock()
	if down {
		b.tell(true, errStopped)
	}
}

// tell calls the sinks that know otherwise. The caller holds calling.
func (b *bus) tell(down bool, why error) {
	b.each(func(t *ticket) bool { return t.told != down }, func(t *ticket) {
		t.told = down
		t.sink.StateChanged(t.channel, why)
	})
}

// end ends the subscriptions of a handle, once the calls that are under way have been made.
func (b *bus) end(m *Memory) {
	b.calling.Lock()
	defer b.calling.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs = slices.DeleteFunc(b.subs, func(t *ticket) bool {
		if t.node == m {
			t.why = broker.ErrClosed
		}
		return t.node == m
	})
}

// Err implements [broker.Subscription].
func (t *ticket) Err() error {
	b := &t.node.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	return t.why
}

// Close implements [broker.Subscription].
func (t *ticket) Close() {
	b := &t.node.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	t.why = broker.ErrClosed
	b.subs = slices.DeleteFunc(b.subs, func(other *ticket) bool { return other == t })
}
