package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a sink that remembers.
type recorder struct {
	mu     sync.Mutex
	got    []string
	states []error
}

func (r *recorder) Deliver(_ string, p *broker.Publication) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, string(p.Payload()))
}

func (r *recorder) StateChanged(_ string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = append(r.states, err)
}

func (r *recorder) payloads() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func (r *recorder) changes() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.states...)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-tick.C
	}
}

func open(t *testing.T, o Options) *Broker {
	t.Helper()
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func subscribe(t *testing.T, b *Broker, channel string) (*recorder, broker.Subscription) {
	t.Helper()
	r := new(recorder)
	s, err := b.Subscribe(channel, r)
	if err != nil {
		t.Fatal(err)
	}
	return r, s
}

func proven(t *testing.T, s broker.Subscription) {
	t.Helper()
	until(t, "the subscription to be proven", func() bool { return s.Err() == nil })
}

func publish(b *Broker, channel, payload string) (broker.Published, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return b.Publish(ctx, channel, broker.FromPayload([]byte(payload)))
}

func publishErr(b *Broker, channel, payload string) error {
	_, err := publish(b, channel, payload)
	return err
}

func mustPublish(t *testing.T, b *Broker, channel, payload string) {
	t.Helper()
	if err := publishErr(b, channel, payload); err != nil {
		t.Errorf("publishing %s on %s: %v", payload, channel, err)
	}
}

func TestForeignPublisherAndSubscriber(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr()})
	r, s := subscribe(t, b, "pay_mq_channel")
	proven(t, s)
	if n := server.CLI("PUBLISH", "pay_mq_channel", `{"id":"01","msg":"hi"}`); n != "1" {
		t.Errorf("redis-cli reached %s subscribers", n)
	}
	out, err := publish(b, "pay_mq_channel", "ours")
	if err != nil || out.Receivers != 1 {
		t.Errorf("published to %d receivers, %v", out.Receivers, err)
	}
	until(t, "both", func() bool { return len(r.payloads()) == 2 })
	if got := r.payloads(); got[0] != `{"id":"01","msg":"hi"}` || got[1] != "ours" {
		t.Errorf("got %q", got)
	}
	if c := r.changes(); len(c) != 0 {
		t.Errorf("told of changes %v; there were none", c)
	}
	if b.Stats().RoundTrip <= 0 {
		t.Error("no round trip was measured")
	}
}

func TestChannelAddedAndRemovedWhileConnected(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr()})
	_, first := subscribe(t, b, "one")
	proven(t, first)
	r, second := subscribe(t, b, "two")
	proven(t, second)
	r3, third := subscribe(t, b, "two") // shares what is proven
	proven(t, third)
	second.Close()
	if !errors.Is(second.Err(), broker.ErrClosed) {
		t.Errorf("closed subscription: %v", second.Err())
	}
	if _, err := publish(b, "two", "x"); err != nil {
		t.Fatal(err)
	}
	until(t, "the other subscription", func() bool { return len(r3.payloads()) == 1 })
	if got := r.payloads(); len(got) != 0 {
		t.Errorf("a closed subscription heard %q", got)
	}
	third.Close()
	until(t, "redis to know", func() bool { return server.CLI("PUBSUB", "NUMSUB", "two") == "two\n0" })
	if s := server.CLI("PUBSUB", "NUMSUB", "one"); s != "one\n1" {
		t.Errorf("NUMSUB: %q", s)
	}
}

// I9: while Redis is away the subscription is not proven and publishing is refused; afterwards both work
// again by themselves, and the sinks were told of both.
func TestI9_KillAndRestart(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr(), MaxBackoff: 100 * time.Millisecond})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	server.Kill()
	until(t, "the loss to be noticed", func() bool { return s.Err() != nil })
	if err := s.Err(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("err: %v", err)
	}
	_, err := publish(b, "c", "lost")
	if !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("publishing: %v", err)
	}
	until(t, "a refusal that is sure", func() bool {
		_, err := publish(b, "c", "lost")
		return errors.Is(err, broker.ErrRefused) && strings.Contains(err.Error(), "is redis-server running there?")
	})
	server.Restart()
	proven(t, s)
	if _, err := publish(b, "c", "again"); err != nil {
		t.Fatal(err)
	}
	until(t, "the publication", func() bool { p := r.payloads(); return len(p) > 0 && p[len(p)-1] == "again" })
	changes := r.changes()
	if len(changes) != 2 || changes[0] == nil || changes[1] != nil {
		t.Errorf("told %v, want a failure and nil", changes)
	}
	if b.Stats().Lost != 1 {
		t.Errorf("lost %d times", b.Stats().Lost)
	}
	if away := b.Stats().Away; away <= 0 || away != b.Stats().Away {
		t.Errorf("away for %s, and still", away)
	}
}

func TestAbsentAtStart(t *testing.T) {
	server := redistest.Reserve(t)
	b := open(t, Options{Address: server.Addr(), MaxBackoff: 100 * time.Millisecond})
	r, s := subscribe(t, b, "c")
	until(t, "the sink to be told", func() bool { c := r.changes(); return len(c) == 1 && c[0] != nil })
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), server.Addr()) {
		t.Errorf("err: %v, want one that names the address", err)
	}
	server.Restart()
	proven(t, s)
	until(t, "the sink to be told", func() bool { c := r.changes(); return len(c) == 2 && c[1] == nil })
}

// A server that stands still keeps its connections: only the missing echo tells.
func TestI9_SilentServerIsNoticed(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{
		Address: server.Addr(), ProbeInterval: 50 * time.Millisecond, Timeout: 300 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	})
	_, s := subscribe(t, b, "c")
	proven(t, s)
	server.Pause()
	until(t, "the silence to be noticed", func() bool { return s.Err() != nil })
	server.Resume()
	proven(t, s)
}

func TestPasswordFromTheNewestSettings(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "new")
	b := open(t, Options{Address: server.Addr(), Settings: Settings{Password: "old"}, MaxBackoff: time.Hour})
	_, s := subscribe(t, b, "c")
	until(t, "the refusal", func() bool {
		err := s.Err()
		return err != nil && strings.Contains(err.Error(), "correct the broker's username and password")
	})
	if strings.Contains(s.Err().Error(), "old") {
		t.Errorf("the error shows the password: %v", s.Err())
	}
	b.Configure(Settings{Password: "new"}) // and does not wait an hour
	proven(t, s)
}

func TestMissingRightsAreNamed(t *testing.T) {
	server := redistest.Start(t)
	server.CLI(append([]string{"ACL", "SETUSER", "weak", "on", ">pw", "allchannels"}, strings.Fields(rights)...)...)
	server.CLI("ACL", "SETUSER", "weak", "-publish")
	b := open(t, Options{Address: server.Addr(), Settings: Settings{Username: "weak", Password: "pw"}})
	_, s := subscribe(t, b, "c")
	until(t, "the error", func() bool { err := s.Err(); return err != nil && strings.Contains(err.Error(), "+publish") })
	if _, err := publish(b, "c", "x"); !errors.Is(err, broker.ErrRefused) {
		t.Errorf("publishing: %v", err)
	}
	server.CLI("ACL", "SETUSER", "weak", "+publish")
	proven(t, s)
}

// I8: what was published before Close is delivered before Close returns.
func TestI8_CloseDeliversWhatWasPublished(t *testing.T) {
	server := redistest.Start(t)
	for range 20 {
		b := open(t, Options{Address: server.Addr()})
		r, s := subscribe(t, b, "c")
		proven(t, s)
		var wg sync.WaitGroup
		var mu sync.Mutex
		accepted := 0
		for i := range 8 {
			wg.Go(func() {
				for n := 0; ; n++ {
					if _, err := publish(b, "c", fmt.Sprint(i, n)); err != nil {
						if !errors.Is(err, broker.ErrClosed) {
							t.Errorf("publishing: %v", err)
						}
						return
					}
					mu.Lock()
					accepted++
					mu.Unlock()
				}
			})
		}
		until(t, "some publications", func() bool { return len(r.payloads()) > 50 })
		b.Close()
		wg.Wait()
		if got := len(r.payloads()); got != accepted {
			t.Fatalf("accepted %d, delivered %d", accepted, got)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Network: "unix", Address: server.Socket()})
	_, s := subscribe(t, b, "c")
	proven(t, s)
}

// What is heard is delivered by one goroutine, and changes are told by others; the sink is called by one at a time.
func TestSinkIsCalledByOneAtATime(t *testing.T) {
	b := open(t, Options{Address: "127.0.0.1:1"})
	sink := new(exclusiveSink)
	s := &subscription{ear: b.ear, channel: "c", topic: new(topic), sink: sink}
	s.topic.subs = []*subscription{s}
	b.ear.mu.Lock()
	b.ear.topics["c"] = s.topic
	b.ear.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 1000 {
			s.deliver(broker.FromPayload(nil))
		}
	})
	wg.Go(func() {
		for range 500 {
			b.ear.disprove(errSilent, false)
			b.ear.mu.Lock()
			s.topic.confirmed = true
			b.ear.mu.Unlock()
			b.ear.prove(1)
		}
	})
	wg.Wait()
	if sink.overlapped.Load() {
		t.Error("a call began during another")
	}
	if sink.calls != 2000 {
		t.Errorf("%d calls, want 1000 deliveries, 500 failures and 500 recoveries", sink.calls)
	}
}

type exclusiveSink struct {
	inside, overlapped atomic.Bool
	calls              int
}

func (s *exclusiveSink) Deliver(string, *broker.Publication) { s.enter() }
func (s *exclusiveSink) StateChanged(string, error)          { s.enter() }

func (s *exclusiveSink) enter() {
	if !s.inside.CompareAndSwap(false, true) {
		s.overlapped.Store(true)
	}
	s.calls++
	runtime.Gosched()
	s.inside.Store(false)
}

// I9: on a new connection, the echo of a probe proves only channels that Redis has confirmed before the probe was sent.
func TestI9_WhatAnEchoProves(t *testing.T) {
	b := open(t, Options{Address: "127.0.0.1:1"})
	c := new(topic)
	b.ear.mu.Lock()
	b.ear.topics["c"] = c
	c.confirmed, c.after = true, 7
	b.ear.mu.Unlock()
	for _, step := range []struct {
		what string
		do   func()
		want bool
	}{
		{"a probe that was sent before the confirmation", func() { b.ear.prove(7) }, false},
		{"a later one", func() { b.ear.prove(8) }, true},
		{"a probe that could not be published", func() { b.ear.disprove(errSilent, false) }, false},
		{"the next", func() { b.ear.prove(9) }, true},
		{"the connection's end", func() { b.ear.disprove(errSilent, true) }, false},
		{"a probe on the next connection", func() { b.ear.prove(10) }, false},
	} {
		step.do()
		if c.proven.Load() != step.want {
			t.Errorf("after %s, proven is %v", step.what, !step.want)
		}
	}
}
