package brokertest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// patience bounds every wait. It is long because a loaded machine is slow, and costs nothing when all is
// well. The suite's own test, whose brokers fail, shortens it.
var patience = 20 * time.Second

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// within fails the test if f does not return.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s did not return", what)
	}
}

// open returns the broker of a node, which is closed with the test.
func open(t testing.TB, backend Backend) broker.Broker {
	t.Helper()
	b := backend.Open()
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// publish publishes bytes.
func publish(b broker.Broker, channel, payload string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := b.Publish(ctx, channel, broker.FromPayload([]byte(payload)))
	return err
}

// mustPublish publishes bytes, which must succeed.
func mustPublish(t testing.TB, b broker.Broker, channel, payload string) {
	t.Helper()
	if err := publish(b, channel, payload); err != nil {
		t.Fatalf("publishing %q on %s: %v", payload, channel, err)
	}
}

// ear is a sink that remembers, and notices when it is called wrongly.
type ear struct {
	channel string
	sub     broker.Subscription

	// onDeliver is called at each delivery, if it is not nil.
	onDeliver func(p *broker.Publication)

	inside     atomic.Bool
	concurrent atomic.Bool

	mu     sync.Mutex
	heard  []string
	states []error
	wrong  []string // names of channels that are not its own
}

// listen subscribes an ear and waits until it is proven.
func listen(t testing.TB, b broker.Broker, channel string) *ear {
	t.Helper()
	e := &ear{channel: channel}
	e.subscribe(t, b)
	e.awaitProven(t)
	return e
}

func (e *ear) subscribe(t testing.TB, b broker.Broker) {
	t.Helper()
	sub, err := b.Subscribe(e.channel, e)
	if err != nil {
		t.Fatalf("subscribing to %s: %v", e.channel, err)
	}
	e.sub = sub
}

func (e *ear) awaitProven(t testing.TB) {
	t.Helper()
	until(t, "the subscription to be proven", func() bool { return e.sub.Err() == nil })
}

// enter notices a call during a call. It stays a moment, since what overlaps for an instant is seldom seen.
func (e *ear) enter(channel string) {
	if !e.inside.CompareAndSwap(false, true) {
		e.concurrent.Store(true)
	}
	for range 3 {
		runtime.Gosched()
	}
	if channel != e.channel {
		e.mu.Lock()
		e.wrong = append(e.wrong, channel)
		e.mu.Unlock()
	}
}

// Deliver implements [broker.Sink].
func (e *ear) Deliver(channel string, p *broker.Publication) {
	e.enter(channel)
	defer e.inside.Store(false)
	e.mu.Lock()
	e.heard = append(e.heard, string(p.Payload()))
	e.mu.Unlock()
	if e.onDeliver != nil {
		e.onDeliver(p)
	}
}

// StateChanged implements [broker.Sink].
func (e *ear) StateChanged(channel string, err error) {
	e.enter(channel)
	defer e.inside.Store(false)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.states = append(e.states, err)
}

func (e *ear) payloads() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.heard)
}

func (e *ear) changes() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.states)
}

// await waits until the ear has heard n publications.
func (e *ear) await(t testing.TB, n int) []string {
	t.Helper()
	until(t, fmt.Sprintf("%d publications on %s", n, e.channel), func() bool { return len(e.payloads()) >= n })
	return e.payloads()
}

// mustHave fails the test unless the ear has heard just this.
func (e *ear) mustHave(t testing.TB, want ...string) {
	t.Helper()
	if got := e.await(t, len(want)); !slices.Equal(got, want) {
		t.Errorf("heard %.200q, want %.200q", got, want)
	}
}

// mustBeUndisturbed fails the test if the broker broke the rules of calling sinks, or told of changes when
// nothing had changed.
func (e *ear) mustBeUndisturbed(t testing.TB) {
	t.Helper()
	e.mustBeCalledRightly(t)
	if c := e.changes(); len(c) > 0 {
		t.Errorf("told of changes %v; there were none", c)
	}
}

func (e *ear) mustBeCalledRightly(t testing.TB) {
	t.Helper()
	if e.concurrent.Load() {
		t.Errorf("two calls of one subscription's sink at once")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.wrong) > 0 {
		t.Errorf("calls for %q came to a subscription to %s", e.wrong, e.channel)
	}
}

// mustHaveSeen fails the test unless the ear was told of failures (true) and recoveries (false) in this order.
func (e *ear) mustHaveSeen(t testing.TB, failures ...bool) {
	t.Helper()
	var got []bool
	for _, err := range e.changes() {
		got = append(got, err != nil)
		if err != nil && !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("told of %v, which does not wrap ErrUnavailable", err)
		}
	}
	if !slices.Equal(got, failures) {
		t.Errorf("told of the states %v (true is a failure), want %v", got, failures)
	}
}
