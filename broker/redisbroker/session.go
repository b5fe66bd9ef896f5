package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// session is one connection on which this node hears everything it subscribed to, and the probes that
// show that it does.
//
// go-redis would reconnect by itself, without a word, and what was published meanwhile would be
// missing; so a session's client can dial once, and any error ends the session.
type session struct {
	b      *Broker
	client *redis.Client
	pubsub *redis.PubSub
	probes string // the channel of its own probes

	orders chan order    // subscribe and unsubscribe, for the goroutine that writes
	kick   chan struct{} // send a probe now
	over   chan struct{} // closed by end
	once   sync.Once
	cause  error // set before over is closed

	mu     sync.Mutex
	sent   uint64 // the last probe
	echoed uint64
	sentAt time.Time
	echo   chan struct{} // closed and replaced at each echo
}

// order is a change of what is subscribed.
type order struct {
	channel string
	drop    bool
}

var (
	errSilent  = errors.New("a probe that was published did not come back")
	errOneDial = errors.New("the connection was lost")
)

// listenLoop keeps a session going for as long as the broker is open.
func (b *Broker) listenLoop() {
	wait := time.Duration(0)
	var lostAt time.Time
	for b.ctx.Err() == nil {
		began := time.Now()
		err := b.listen(func() { // proven
			if !lostAt.IsZero() {
				b.o.Logger.Info("redis is back", "address", b.o.Address, "seconds", time.Since(lostAt).Seconds())
				lostAt = time.Time{}
			}
		})
		if b.ctx.Err() != nil {
			return
		}
		err = b.explain(err)
		if b.disprove(err, true) {
			b.lost.Add(1)
		}
		if lostAt.IsZero() {
			lostAt = time.Now()
			b.o.Logger.Warn("redis is lost; publishers are answered 503 until it is back", "address", b.o.Address, "error", err)
		}
		if time.Since(began) > b.o.MaxBackoff {
			wait = 0
		}
		wait = min(max(2*wait, 50*time.Millisecond), b.o.MaxBackoff)
		b.pause(wait/2 + rand.N(wait/2+1))
	}
}

// pause waits, unless the broker closes or gets new settings, with which it may work.
func (b *Broker) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.wake:
	case <-b.ctx.Done():
	}
}

// listen runs one session to its end. proven is called at the first echo.
func (b *Broker) listen(proven func()) error {
	s := &session{
		b: b, probes: fmt.Sprintf("%s:probe:%s:%s", b.o.Prefix, b.o.Node, broker.NewMID()[:8]),
		orders: make(chan order, 64), kick: make(chan struct{}, 1), over: make(chan struct{}), echo: make(chan struct{}),
	}
	dialed := false
	s.client = b.newClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed { // only this goroutine's calls dial, or those of write, after this one's
			return nil, errOneDial
		}
		dialed = true
		return b.dial(ctx, network, addr)
	})
	defer func() { _ = s.client.Close() }()
	ctx, cancel := context.WithTimeout(b.ctx, b.o.Timeout)
	defer cancel()
	s.pubsub = s.client.Subscribe(ctx)
	if err := s.pubsub.Subscribe(ctx, s.probes); err != nil {
		_ = s.pubsub.Close()
		return err
	}

	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		_ = s.pubsub.Close()
		return broker.ErrClosed
	}
	b.session = s
	channels := slices.Collect(maps.Keys(b.topics))
	b.mu.Unlock()

	var writer sync.WaitGroup
	writer.Go(func() { s.write(channels) })
	err := s.read(proven)
	s.end(err)
	writer.Wait()
	b.mu.Lock()
	b.session = nil
	b.mu.Unlock()
	return s.cause
}

// endSession ends the session under way, if there is one.
func (b *Broker) endSession(err error) {
	b.mu.Lock()
	s := b.session
	b.mu.Unlock()
	if s != nil {
		s.end(err)
	}
}

// end ends the session; the first cause counts.
func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.over)
		_ = s.pubsub.Close() // which makes read return
	})
}

// read hands on what arrives until the connection ends.
func (s *session) read(proven func()) error {
	first := true
	for {
		v, err := s.pubsub.Receive(context.Background())
		if err != nil {
			return err
		}
		switch v := v.(type) {
		case *redis.Subscription:
			if v.Kind == "subscribe" {
				s.subscribed(v.Channel)
			}
		case *redis.Message:
			if v.Channel != s.probes {
				s.deliver(v)
				continue
			}
			if s.heard(v.Payload) && first {
				first = false
				proven()
			}
		}
	}
}

func (s *session) deliver(m *redis.Message) {
	subs := s.b.listeners(m.Channel)
	if len(subs) == 0 {
		return
	}
	p := broker.FromPayload([]byte(m.Payload))
	for _, sub := range subs {
		sub.deliver(p)
	}
}

// subscribed notes Redis's confirmation, and asks for a probe that proves it.
func (s *session) subscribed(channel string) {
	if channel != s.probes {
		s.mu.Lock()
		sent := s.sent
		s.mu.Unlock()
		s.b.confirmed(channel, sent)
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// heard notes the echo of a probe.
func (s *session) heard(payload string) bool {
	n, err := strconv.ParseUint(payload, 10, 64)
	s.mu.Lock()
	if err != nil || n > s.sent { // somebody else publishes here
		s.mu.Unlock()
		return false
	}
	s.echoed = max(s.echoed, n)
	s.b.roundTrip.Store(int64(time.Since(s.sentAt)))
	close(s.echo)
	s.echo = make(chan struct{})
	s.mu.Unlock()
	s.b.prove(n)
	return true
}

// subscribe and unsubscribe are called with Broker.mu held, so they must not wait for a connection. A
// session whose writer is that far behind is of no use.
func (s *session) subscribe(channel string)   { s.order(order{channel: channel}) }
func (s *session) unsubscribe(channel string) { s.order(order{channel: channel, drop: true}) }

func (s *session) order(o order) {
	select {
	case s.orders <- o:
	default:
		go s.end(errors.New("too many changes of subscriptions at once"))
	}
}

// write sends subscriptions and probes until the session is over.
func (s *session) write(channels []string) {
	tick := time.NewTicker(s.b.o.ProbeInterval)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(s.b.ctx)
	defer cancel()
	if len(channels) > 0 {
		s.send(func(ctx context.Context) error { return s.pubsub.Subscribe(ctx, channels...) })
	}
	for {
		select {
		case <-s.over:
			return
		case o := <-s.orders:
			s.send(func(ctx context.Context) error {
				if o.drop {
					return s.pubsub.Unsubscribe(ctx, o.channel)
				}
				return s.pubsub.Subscribe(ctx, o.channel)
			})
		case <-s.kick:
			tick.Reset(s.probe(ctx))
		case <-tick.C:
			if s.silent() {
				s.end(errSilent)
				return
			}
			tick.Reset(s.probe(ctx))
		}
	}
}

func (s *session) send(f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(s.b.ctx, s.b.o.Timeout)
	defer cancel()
	if err := f(ctx); err != nil {
		s.end(err)
	}
}

// silent reports whether a probe has been out for as long as an echo may take.
func (s *session) silent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent > s.echoed && time.Since(s.sentAt) >= s.b.o.ProbeInterval*9/10
}

// probe publishes a probe the way everything is published, and returns when the next one is due. If it
// fails, the node cannot publish, and says so; the connection that hears may be well, and
// stays.
func (s *session) probe(ctx context.Context) time.Duration {
	s.mu.Lock()
	s.sent++
	n := s.sent
	if s.sent == s.echoed+1 {
		s.sentAt = time.Now()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.b.o.Timeout)
	defer cancel()
	_, err := s.b.publish(ctx, s.probes, strconv.AppendUint(nil, n, 10))
	if err == nil || s.b.ctx.Err() != nil {
		return s.b.o.ProbeInterval
	}
	if s.b.disprove(err, false) {
		s.b.o.Logger.Warn("redis does not take publications; publishers are answered 503", "address", s.b.o.Address, "error", err)
	}
	s.mu.Lock()
	s.echoed = max(s.echoed, n) // it will not come back, and that is no sign against the connection
	s.mu.Unlock()
	return min(s.b.o.ProbeInterval, 500*time.Millisecond)
}

// settle waits until a probe that is sent now has come back, or ctx or the session has ended.
func (s *session) settle(ctx context.Context) {
	s.mu.Lock()
	target := s.sent + 1
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	for {
		s.mu.Lock()
		done, echo := s.echoed >= target, s.echo
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-echo:
		case <-s.over:
			return
		case <-ctx.Done():
			return
		}
	}
}
