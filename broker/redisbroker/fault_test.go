package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// I9: a subscription that is silently dead, while everything else works, is noticed and made again.
func TestI9_HalfOpenSubscription(t *testing.T) {
	server := redistest.Start(t)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr(), ProbeInterval: 100 * time.Millisecond, MaxBackoff: 50 * time.Millisecond})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	p.silence(subscribing)
	until(t, "the silence to be noticed", func() bool { return len(r.changes()) > 0 })
	if err := r.changes()[0]; !errors.Is(err, errSilent) || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("told of %v", err)
	}
	until(t, "the recovery", func() bool { return len(r.changes()) == 2 && s.Err() == nil })
	mustPublish(t, b, "c", "again")
	until(t, "the publication", func() bool { return len(r.payloads()) == 1 })
	if n := b.Stats().Lost; n != 1 {
		t.Errorf("lost %d times", n)
	}
}

func TestOnlyTheSubscriptionIsCut(t *testing.T) {
	server := redistest.Start(t)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr()})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	p.cut(subscribing)
	until(t, "both changes", func() bool { return len(r.changes()) == 2 })
	proven(t, s)
	mustPublish(t, b, "c", "again")
	until(t, "the publication", func() bool { return len(r.payloads()) == 1 })
}

// A publishing connection that dies harms one publication at most: it is answered as unavailable, and not tried
// again. The next one has a new connection.
func TestOnlyThePublishingIsCut(t *testing.T) {
	server := redistest.Start(t)
	listener := open(t, Options{Address: server.Addr()})
	r, s := subscribe(t, listener, "c")
	proven(t, s)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr()})
	mustPublish(t, b, "c", "first")
	p.cut(publishing)
	if err := publishErr(b, "c", "perhaps"); err != nil && !errors.Is(err, broker.ErrUnavailable) {
		t.Error(err)
	}
	mustPublish(t, b, "c", "last")
	until(t, "the last", func() bool { p := r.payloads(); return len(p) > 0 && p[len(p)-1] == "last" })
}

// A publication whose answer is lost may have been done: it is neither called refused nor sent again.
func TestAnswerIsLost(t *testing.T) {
	server := redistest.Start(t)
	other := open(t, Options{Address: server.Addr()})
	r, s := subscribe(t, other, "c")
	proven(t, s)

	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr()})
	mustPublish(t, b, "c", "first") // so that there is a connection
	p.hold(publishing)
	result := make(chan error, 1)
	go func() { result <- publishErr(b, "c", "doubtful") }()
	until(t, "the server to do it", func() bool { return len(r.payloads()) == 2 })
	p.cut(publishing)
	if err := <-result; !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRefused) {
		t.Errorf("%v, want ErrUnavailable and not ErrRefused", err)
	}
	p.release(publishing)
	mustPublish(t, b, "c", "last")
	until(t, "the last", func() bool { p := r.payloads(); return p[len(p)-1] == "last" })
	if got := r.payloads(); len(got) != 3 {
		t.Errorf("heard %q; a publication was doubled", got)
	}
}

// The context ends the wait of one caller and nothing else. What still waits in the queue is then never sent.
func TestContextEndsWhileWaiting(t *testing.T) {
	server := redistest.Start(t)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr(), Timeout: time.Minute})
	listener := open(t, Options{Address: server.Addr()})
	r, s := subscribe(t, listener, "c")
	proven(t, s)
	mustPublish(t, b, "c", "first")
	p.hold(publishing)

	sent, cancelSent := context.WithCancel(context.Background())
	queued, cancelQueued := context.WithCancel(context.Background())
	sentErr, queuedErr := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := b.Publish(sent, "c", broker.FromPayload([]byte("sent")))
		sentErr <- err
	}()
	until(t, "the server to do it", func() bool { return len(r.payloads()) == 2 })
	go func() {
		_, err := b.Publish(queued, "c", broker.FromPayload([]byte("queued")))
		queuedErr <- err
	}()
	until(t, "the queue", func() bool { return len(b.queue) == 1 })
	cancelQueued()
	if err := <-queuedErr; !errors.Is(err, broker.ErrRefused) || !errors.Is(err, context.Canceled) {
		t.Errorf("while it waited: %v, want ErrRefused", err)
	}
	cancelSent()
	if err := <-sentErr; !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRefused) {
		t.Errorf("while it was being done: %v, want ErrUnavailable and not ErrRefused", err)
	}
	p.release(publishing)
	mustPublish(t, b, "c", "last")
	until(t, "the last", func() bool { p := r.payloads(); return p[len(p)-1] == "last" })
	if got := strings.Join(r.payloads(), " "); got != "first sent last" {
		t.Errorf("heard %q", got)
	}
}

// I10: what waits is bounded; more is refused at once.
func TestI10_QueueIsFull(t *testing.T) {
	server := redistest.Start(t)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr(), Timeout: time.Minute})
	mustPublish(t, b, "c", "first")
	p.hold(publishing)
	var wg sync.WaitGroup
	wg.Go(func() { mustPublish(t, b, "c", "under way") })
	until(t, "the batch", func() bool { return server.CLI("INFO", "commandstats") != "" && published(server) == 2 })
	for range maxQueue {
		wg.Go(func() { mustPublish(t, b, "c", "waits") })
	}
	until(t, "the queue to be full", func() bool { return len(b.queue) == maxQueue })
	if err := publishErr(b, "c", "too many"); !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("%v, want ErrRefused and ErrUnavailable", err)
	}
	p.release(publishing)
	wg.Wait()
	if n := published(server); n != maxQueue+2 {
		t.Errorf("redis was asked %d times, want %d", n, maxQueue+2)
	}
}

// published returns how many PUBLISH commands a server has done.
func published(server *redistest.Server) int {
	for line := range strings.Lines(server.CLI("INFO", "commandstats")) {
		var calls int
		if _, err := fmt.Sscanf(line, "cmdstat_publish:calls=%d", &calls); err == nil {
			return calls
		}
	}
	return 0
}

// I9, I10: closing does not wait for a server that hangs, and leaves no publisher waiting.
func TestCloseWhileRedisHangs(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr(), Timeout: 200 * time.Millisecond})
	_, s := subscribe(t, b, "c")
	proven(t, s)
	server.Pause()
	defer server.Resume()
	var wg sync.WaitGroup
	for range 1000 { // four batches at least
		wg.Go(func() {
			if _, err := b.Publish(context.Background(), "c", broker.FromPayload([]byte("x"))); err == nil {
				t.Error("published on a server that stands still")
			}
		})
	}
	until(t, "the queue", func() bool { return len(b.queue) > maxBatch })
	began := time.Now()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("closing took %v", d)
	}
}

// A node that cannot publish says so, but keeps the connection on which it hears: that one is well.
func TestI9_PublishingIsForbidden(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr(), ProbeInterval: 50 * time.Millisecond})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	connection := server.CLI("CLIENT", "LIST", "TYPE", "pubsub")
	server.CLI("ACL", "SETUSER", "default", "-publish")
	until(t, "several probes to fail", func() bool {
		_, rejected, _ := strings.Cut(server.CLI("INFO", "commandstats"), "cmdstat_publish:")
		_, rejected, _ = strings.Cut(rejected, "rejected_calls=")
		var n int
		_, err := fmt.Sscanf(rejected, "%d", &n)
		return err == nil && n >= 5
	})
	if err := s.Err(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("state %v", err)
	}
	server.CLI("ACL", "SETUSER", "default", "+publish")
	until(t, "both changes", func() bool { return len(r.changes()) == 2 && s.Err() == nil })
	if now := server.CLI("CLIENT", "LIST", "TYPE", "pubsub"); strings.Fields(now)[0] != strings.Fields(connection)[0] {
		t.Errorf("the connection was %q and is %q", connection, now)
	}
}

// A channel that the user has no right to is that channel's trouble.
func TestOneChannelIsRefused(t *testing.T) {
	server := redistest.Start(t)
	server.CLI(append([]string{"ACL", "SETUSER", "u", "on", ">pw", "&relay:probe:*", "&good"}, strings.Fields(rights)...)...)
	logs := new(logged)
	b := open(t, Options{
		Address: server.Addr(), Settings: Settings{Username: "u", Password: "pw"}, ProbeInterval: 100 * time.Millisecond,
		Logger: slog.New(logs),
	})
	good, goodSub := subscribe(t, b, "good")
	proven(t, goodSub)
	bad, badSub := subscribe(t, b, "bad")
	until(t, "the sink to be told", func() bool { return len(bad.changes()) == 1 })
	if err := badSub.Err(); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "& with each channel's name") {
		t.Errorf("the refused channel's state is %v", err)
	}
	if err := publishErr(b, "bad", "x"); !errors.Is(err, broker.ErrRefused) {
		t.Errorf("publishing on the refused channel: %v, want ErrRefused", err)
	}
	mustPublish(t, b, "good", "x")
	until(t, "the publication", func() bool { return len(good.payloads()) == 1 })
	server.CLI("ACL", "SETUSER", "u", "&bad")
	proven(t, badSub)
	mustPublish(t, b, "bad", "y")
	until(t, "the publication", func() bool { return len(bad.payloads()) == 1 })
	if c := good.changes(); len(c) != 0 {
		t.Errorf("the other channel's sink was told of %v", c)
	}
	if c := bad.changes(); len(c) != 2 || c[0] == nil || c[1] != nil {
		t.Errorf("the refused channel's sink was told of %v", c)
	}
	logs.mustBe(t, "redis refuses a channel; its publishers are answered 503", "redis allows a channel again")
}

// I8: a reload that brings many channels at once disturbs none that is heard already.
func TestI8_ManyChannelsAtOnce(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr()})
	first, s := subscribe(t, b, "first")
	proven(t, s)
	const n = 500
	subs := make([]broker.Subscription, n)
	var heard atomic.Int32
	for i := range subs {
		var err error
		if subs[i], err = b.Subscribe(fmt.Sprint("c", i), countingSink{&heard}); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range subs {
		proven(t, s)
		mustPublish(t, b, fmt.Sprint("c", i), "x")
	}
	until(t, "all publications", func() bool { return heard.Load() == n })
	for _, s := range subs {
		s.Close()
	}
	until(t, "redis to know", func() bool { return len(strings.Fields(server.CLI("PUBSUB", "CHANNELS", "c*"))) == 0 })
	if c := first.changes(); len(c) != 0 || b.Stats().Lost != 0 {
		t.Errorf("told of %v, lost %d times", c, b.Stats().Lost)
	}
}

type countingSink struct{ n *atomic.Int32 }

func (s countingSink) Deliver(string, *broker.Publication) { s.n.Add(1) }
func (s countingSink) StateChanged(string, error)          {}

// One line when Redis is lost and one when it is back, however often it is tried meanwhile.
func TestLogLines(t *testing.T) {
	server := redistest.Start(t)
	logs := new(logged)
	p := newProxy(t, server.Addr())
	b := open(t, Options{Address: p.addr(), MaxBackoff: 10 * time.Millisecond, Logger: slog.New(logs)})
	r, s := subscribe(t, b, "c")
	_, s2 := subscribe(t, b, "d")
	proven(t, s)
	proven(t, s2)
	for range 2 {
		before := len(r.changes())
		server.Kill()
		until(t, "the loss", func() bool { return s.Err() != nil })
		for range 20 {
			until(t, "a refusal", func() bool { return publishErr(b, "c", "x") != nil })
		}
		server.Restart()
		until(t, "both changes", func() bool { return len(r.changes()) == before+2 })
		proven(t, s)
		proven(t, s2)
	}
	const lost, back = "redis is lost; publishers are answered 503 until it is back", "redis is back"
	logs.mustBe(t, lost, back, lost, back)
}

// logged is a slog.Handler that remembers messages.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) WithGroup(string) slog.Handler            { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *logged) mustBe(t *testing.T, want ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := strings.Join(l.lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("logged:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// A server that takes connections and says nothing.
func TestServerThatNeverAnswers(t *testing.T) {
	ln := fakeServer(t, func(net.Conn) {})
	b := open(t, Options{Address: ln, Timeout: 50 * time.Millisecond})
	r, s := subscribe(t, b, "c")
	until(t, "the sink to be told", func() bool { return len(r.changes()) == 1 })
	if err := s.Err(); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), ln) {
		t.Errorf("state %v", err)
	}
	if err := publishErr(b, "c", "x"); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("publishing: %v", err)
	}
}

// I11: whatever answers at the address, nothing panics.
func TestI11_NotARedisServer(t *testing.T) {
	for name, answer := range map[string]string{
		"HTTP":           "HTTP/1.1 400 Bad Request\r\n\r\n",
		"empty replies":  "*0\r\n*0\r\n*0\r\n*0\r\n*0\r\n",
		"odd replies":    "-ERR no\r\n+OK\r\n*3\r\n:1\r\n:2\r\n:3\r\n",
		"a short answer": "-ERR no\r\n+OK\r\n*1\r\n$9\r\nsubscribe\r\n",
		"an empty one":   "-ERR no\r\n+OK\r\n*0\r\n",
		"others' answer": "-ERR no\r\n+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
		"one too many":   "-ERR no\r\n+OK\r\n-ERR a\r\n-ERR b\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := fakeServer(t, func(c net.Conn) { _, _ = c.Write([]byte(answer)) })
			b := open(t, Options{Address: addr, Timeout: 50 * time.Millisecond, MaxBackoff: 10 * time.Millisecond})
			r, s := subscribe(t, b, "c")
			until(t, "the sink to be told", func() bool { return len(r.changes()) == 1 })
			if err := s.Err(); !errors.Is(err, broker.ErrUnavailable) {
				t.Errorf("state %v", err)
			}
			if err := publishErr(b, "c", "x"); !errors.Is(err, broker.ErrUnavailable) {
				t.Errorf("publishing: %v", err)
			}
		})
	}
}

// fakeServer returns the address of a server that greets each connection and then only reads.
func fakeServer(t *testing.T, greet func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				greet(conn)
				buf := make([]byte, 4096)
				for {
					if _, err := conn.Read(buf); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}
