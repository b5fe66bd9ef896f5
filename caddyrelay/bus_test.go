package caddyrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"

	"github.com/caddyrelay/relay/broker"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The events and logging of Caddy itself.
		goleak.IgnoreTopFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"))
}

// startApp provisions and starts a relay as Caddy would, and undoes it with the test.
func startApp(t *testing.T, config string) *App {
	t.Helper()
	a := provisionApp(t, config)
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Stop() })
	return a
}

func provisionApp(t *testing.T, config string) *App {
	t.Helper()
	ctx, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{"relay": json.RawMessage(config)}})
	if err != nil {
		t.Fatal(err)
	}
	app, err := ctx.App("relay")
	if err != nil {
		t.Fatal(err)
	}
	a := app.(*App)
	t.Cleanup(func() {
		if err := a.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return a
}

const oneChannel = `{"channels":{"pay":{"delivery":"at_most_once"}}}`

// heard collects what a listener got.
type heard struct {
	mu     sync.Mutex
	values []any
}

func (h *heard) add(v any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.values = append(h.values, v)
}

func (h *heard) all() []any {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]any(nil), h.values...)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-tick.C
	}
}

func on(t *testing.T, b *Bus, channel string, fn Listener, onState StateListener) func() {
	t.Helper()
	remove, err := b.On(channel, fn, onState)
	if err != nil {
		t.Fatal(err)
	}
	return remove
}

func emit(t *testing.T, b *Bus, channel string, value any) {
	t.Helper()
	if err := b.Publish(context.Background(), channel, value); err != nil {
		t.Fatal(err)
	}
}

func TestBusValues(t *testing.T) {
	b := startApp(t, oneChannel).Bus()
	var h heard
	on(t, b, "pay", h.add, nil)
	sent := []any{
		"a plain string", `{"id":"01","msg":12345678901234567890}`, map[string]any{"id": "01", "msg": "<hi>"},
		42, true, nil, []string{"a"}, []byte("bytes"), "1 2",
	}
	for _, v := range sent {
		emit(t, b, "pay", v)
	}
	eventually(t, "all values", func() bool { return len(h.all()) == len(sent) })
	want := []any{
		"a plain string",
		map[string]any{"id": "01", "msg": json.Number("12345678901234567890")},
		map[string]any{"id": "01", "msg": "<hi>"},
		json.Number("42"), true, nil, []any{"a"}, "bytes", "1 2",
	}
	if got := h.all(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
	if err := b.Publish(context.Background(), "pay", func() {}); err == nil {
		t.Error("published what JSON cannot say")
	}
}

// What HTTP publishes reaches listeners in the shape that other programs see.
func TestBusHearsMessages(t *testing.T) {
	a := startApp(t, oneChannel)
	var h heard
	on(t, a.Bus(), "pay", h.add, nil)
	_, err := a.node.accept(context.Background(), a.generation, &broker.Message{
		Channel: "pay", ID: "01", ContentType: "application/json", Body: []byte(`{"amount":1.0}`), Time: time.Now(),
	}, broker.AppendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message", func() bool { return len(h.all()) == 1 })
	v := h.all()[0].(map[string]any)
	if v["id"] != "01" || !reflect.DeepEqual(v["msg"], map[string]any{"amount": json.Number("1.0")}) {
		t.Errorf("got %v", v)
	}
}

func TestBusChannelsThatAreNotTheRelays(t *testing.T) {
	b := startApp(t, oneChannel).Bus()
	var h heard
	remove := on(t, b, "orders", h.add, nil)
	emit(t, b, "orders", "x")
	eventually(t, "the value", func() bool { return len(h.all()) == 1 })
	remove()
	emit(t, b, "orders", "y")
	var again heard
	on(t, b, "orders", again.add, nil)
	emit(t, b, "orders", "z")
	eventually(t, "the value", func() bool { return len(again.all()) == 1 })
	if got := h.all(); len(got) != 1 {
		t.Errorf("a removed listener heard %v", got)
	}
}

func TestBusOnceAndRemoveFromInside(t *testing.T) {
	b := startApp(t, oneChannel).Bus()
	var once, inside, always heard
	if _, err := b.Once("pay", once.add, nil); err != nil {
		t.Fatal(err)
	}
	var remove func()
	var ready sync.Mutex
	ready.Lock()
	remove = on(t, b, "pay", func(v any) {
		ready.Lock()
		defer ready.Unlock()
		remove()
		remove() // a second time does nothing
		inside.add(v)
	}, nil)
	ready.Unlock()
	on(t, b, "pay", always.add, nil)
	for i := range 100 {
		emit(t, b, "pay", i)
	}
	eventually(t, "the third listener", func() bool { return len(always.all()) == 100 })
	if n := len(once.all()); n != 1 {
		t.Errorf("once fired %d times", n)
	}
	if n := len(inside.all()); n != 1 {
		t.Errorf("the listener that removed itself fired %d times", n)
	}
}

// Once, many times over, leaves nothing behind.
func TestI10_OnceLeavesNothingBehind(t *testing.T) {
	a := startApp(t, oneChannel)
	b := a.Bus()
	for range 200 {
		var h heard
		if _, err := b.Once("replies", h.add, nil); err != nil {
			t.Fatal(err)
		}
		emit(t, b, "replies", "x")
		eventually(t, "the reply", func() bool { return len(h.all()) == 1 })
	}
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	if n := len(a.generation.listeners); n != 0 {
		t.Errorf("%d listeners are left", n)
	}
	if n := len(a.generation.feeds); n != 1 {
		t.Errorf("%d feeds are left, want the relay channel's", n)
	}
}

func TestBusSlowAndPanickingListenersHarmNobody(t *testing.T) {
	a := startApp(t, oneChannel)
	b := a.Bus()
	release := make(chan struct{})
	on(t, b, "pay", func(any) { <-release }, nil)
	var panics atomic.Int64
	on(t, b, "pay", func(any) { panics.Add(1); panic("a bug of somebody else's") }, nil)
	var good heard
	on(t, b, "pay", good.add, nil)
	const many = 2*listenerQueue + 10
	for i := range many {
		emit(t, b, "pay", i)
		// The good listener keeps up: it is the slow one that is to be left behind.
		eventually(t, "the good listener", func() bool { return len(good.all()) == i+1 })
	}
	for i, v := range good.all() {
		if v != json.Number(fmt.Sprint(i)) {
			t.Fatalf("value %d is %v", i, v)
		}
	}
	eventually(t, "the panics", func() bool { return panics.Load() == many })
	if n := a.node.counts.listenerPanics.Load(); n < many {
		t.Errorf("counted %d panics", n)
	}
	if n := a.node.counts.listenerDropped.Load(); n == 0 {
		t.Error("the slow listener's queue has no end")
	}
	close(release)
}

// stubBroker is a broker that fails when it is told to.
type stubBroker struct {
	broker.Broker
	mu   sync.Mutex
	sink broker.Sink
	err  error
}

func (s *stubBroker) Subscribe(_ string, sink broker.Sink) (broker.Subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sink = sink
	return stubSubscription{s}, nil
}

func (s *stubBroker) Publish(context.Context, string, *broker.Publication) (broker.Published, error) {
	return broker.Published{}, s.state()
}

func (s *stubBroker) state() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// change makes the broker fail, or be well again.
func (s *stubBroker) change(err error) {
	s.mu.Lock()
	s.err = err
	sink := s.sink
	s.mu.Unlock()
	sink.StateChanged("pay", err)
}

type stubSubscription struct{ b *stubBroker }

func (s stubSubscription) Err() error { return s.b.state() }
func (stubSubscription) Close()       {}

func TestBusTellsOfFailureAndRecovery(t *testing.T) {
	a := provisionApp(t, oneChannel)
	stub := &stubBroker{}
	a.generation.broker = stub
	var states heard
	on(t, a.Bus(), "pay", func(any) {}, func(err error) { states.add(err) })
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	defer a.Stop()
	down := fmt.Errorf("%w: gone", broker.ErrUnavailable)
	stub.change(down)
	if err := a.Bus().Publish(context.Background(), "pay", "x"); !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, broker.ErrRefused) {
		t.Errorf("published while down: %v", err)
	}
	stub.change(nil)
	eventually(t, "both changes", func() bool { return len(states.all()) == 2 })
	if got := states.all(); !reflect.DeepEqual(got, []any{down, nil}) {
		t.Errorf("told %v", got)
	}
}

// A configuration's listeners go with it, and none can be added afterwards.
func TestBusEndsWithItsConfiguration(t *testing.T) {
	first := startApp(t, oneChannel)
	var old heard
	on(t, first.Bus(), "pay", old.add, nil)
	bus := first.Bus()
	second := startApp(t, oneChannel)
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := first.Cleanup(); err != nil {
		t.Fatal(err)
	}
	var h heard
	on(t, second.Bus(), "pay", h.add, nil)
	emit(t, second.Bus(), "pay", "x")
	eventually(t, "the new listener", func() bool { return len(h.all()) == 1 })
	if got := old.all(); len(got) != 0 {
		t.Errorf("a listener of a configuration that is gone heard %v", got)
	}
	if _, err := bus.On("pay", func(any) {}, nil); err == nil {
		t.Error("a listener was added to a configuration that is gone")
	}
	if err := bus.Publish(context.Background(), "pay", "from the old bus"); err != nil {
		t.Errorf("publishing through the old bus: %v", err)
	}
}
