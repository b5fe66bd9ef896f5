package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// session is one connection on which this node hears everything it subscribed to, and the probes that
// show that it does. One goroutine reads it, another writes.
//
// go-redis would reconnect by itself, without a word, and what was published meanwhile would be
// missing; so a session's client can dial once, and any error ends the session.
type session struct {
	e      *ear
	pubsub *redis.PubSub
	probes string // the channel of its own probes

	changed chan struct{} // what is to be subscribed has changed
	kick    chan struct{} // send a probe now
	over    chan struct{} // closed by end
	once    sync.Once
	cause   error // set before over is closed

	// Guarded by Broker.mu.
	asked   map[string]*topic // what Redis was asked for, and has not refused
	answers []order           // what Redis was asked and has not answered, oldest first

	mu     sync.Mutex
	sent   uint64 // the last probe
	echoed uint64
	sentAt time.Time     // when the oldest probe that is not back was sent, or the last came back
	echo   chan struct{} // closed and replaced at each echo
}

// order is one thing asked of Redis: to subscribe, or else to unsubscribe. Redis answers each, in
// this order, but names the channel only if it agrees.
type order struct {
	channel string
	topic   *topic // for whom; nil for the probes
	drop    bool
}

// probeMark begins a probe: on a cluster it goes over a channel that has other news, too.
const probeMark = "p"

var (
	errSilent    = errors.New("a probe that was published did not come back")
	errOneDial   = errors.New("the connection was lost")
	errSlotMoved = errors.New("the channel's slot has moved to another primary")
)

// listen runs one session to its end and says why it ended.
func (e *ear) listen() error {
	s := &session{
		e: e, probes: fmt.Sprintf("%s:probe:%s:%s", e.b.o.Prefix, e.b.o.Node, broker.NewMID()[:8]),
		changed: make(chan struct{}, 1), kick: make(chan struct{}, 1), over: make(chan struct{}),
		asked: make(map[string]*topic), echo: make(chan struct{}),
	}
	if e.sharded { // one channel to a connection is all that can be relied on; its probes go over it, too
		s.probes = e.key
	}
	dialed := false // under the lock of s.pubsub
	client := e.b.newClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed {
			return nil, errOneDial
		}
		dialed = true
		return e.dial(ctx, network, addr)
	})
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(e.b.ctx, e.b.o.Timeout)
	defer cancel()
	s.pubsub = client.Subscribe(ctx)
	s.answers = []order{{channel: s.probes}}
	if err := s.ask(ctx, s.probes, false); err != nil {
		_ = s.pubsub.Close()
		return err
	}
	if !e.setSession(s) {
		_ = s.pubsub.Close()
		return broker.ErrClosed
	}
	var writer sync.WaitGroup
	writer.Go(s.write)
	s.end(s.read())
	writer.Wait()
	e.clearSession()
	return s.cause
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
func (s *session) read() (err error) {
	// go-redis takes the shape of a reply for granted: what is no Redis makes it panic.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("unreadable reply: %v\n%s", v, debug.Stack())
		}
	}()
	for {
		v, err := s.pubsub.Receive(context.Background())
		var refused redis.Error
		switch {
		case errors.As(err, &refused):
			if err := s.answered("", err); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		switch v := v.(type) {
		case *redis.Subscription:
			if v.Kind == "sunsubscribe" && len(s.waiting()) == 0 {
				return errSlotMoved
			}
			if err := s.answered(v.Channel, nil); err != nil {
				return err
			}
		case *redis.Message:
			if probe, ok := strings.CutPrefix(v.Payload, probeMark); ok && v.Channel == s.probes {
				s.heard(probe)
			} else if v.Channel != s.probes || s.e.sharded {
				s.deliver(v)
			}
		}
	}
}

func (s *session) deliver(m *redis.Message) {
	subs := s.e.listeners(m.Channel)
	if len(subs) == 0 {
		return
	}
	p := broker.FromPayload([]byte(m.Payload))
	for _, sub := range subs {
		sub.deliver(p)
	}
}

// answered takes Redis's answer to the oldest order that has none. It returns an error if the session
// must end.
//
// A channel that is refused, for want of rights, is that channel's trouble: the others are heard on.
func (s *session) answered(channel string, refused error) error {
	s.mu.Lock()
	sent := s.sent
	s.mu.Unlock()

	e := s.e
	e.mu.Lock()
	if len(s.answers) == 0 || (refused == nil && s.answers[0].channel != channel) {
		e.mu.Unlock()
		if refused != nil {
			return refused
		}
		return fmt.Errorf("unexpected answer for the channel %q", channel)
	}
	o := s.answers[0]
	s.answers = s.answers[1:]
	if o.topic != nil {
		if refused == nil {
			o.topic.confirmed, o.topic.after = true, sent // any probe after the last proves it
		} else if s.asked[o.channel] == o.topic {
			delete(s.asked, o.channel) // so that it is asked for again
		}
	}
	e.mu.Unlock()
	switch {
	case o.drop: // nothing of it is handed on, whatever Redis says
	case refused == nil:
		wake(s.kick)
	case o.topic == nil:
		return refused // without probes nothing can be proven
	default:
		e.refuse(o.topic, o.channel, refused)
	}
	return nil
}

// heard notes the echo of a probe.
func (s *session) heard(payload string) {
	n, err := strconv.ParseUint(payload, 10, 64)
	s.mu.Lock()
	if err != nil || n > s.sent { // somebody else publishes here
		s.mu.Unlock()
		return
	}
	s.echoed = max(s.echoed, n)
	s.e.roundTrip.Store(int64(time.Since(s.sentAt)))
	s.sentAt = time.Now() // others may be out still, but a connection that speaks is not silent
	close(s.echo)
	s.echo = make(chan struct{})
	s.mu.Unlock()
	s.e.prove(n)
}

// write sends subscriptions and probes until the session is over.
func (s *session) write() {
	tick := time.NewTicker(s.e.b.o.ProbeInterval)
	defer tick.Stop()
	s.subscribe()
	for {
		select {
		case <-s.over:
			return
		case <-s.changed:
			s.subscribe()
			continue
		case <-s.kick:
		case <-tick.C:
			s.subscribe() // what was refused may be allowed by now
		}
		if s.silent() {
			s.end(errSilent)
			return
		}
		tick.Reset(s.probe())
	}
}

// subscribe asks Redis for what is wanted and was not asked for, and drops what is no longer wanted.
//
// Topics are compared, not names: a channel that was dropped and is wanted again must not take Redis's
// answer to the first request for one to the second.
func (s *session) subscribe() {
	e := s.e
	var orders []order
	e.mu.Lock()
	for channel, t := range e.topics {
		if s.asked[channel] != t {
			s.asked[channel] = t
			orders = append(orders, order{channel: channel, topic: t})
		}
	}
	for channel := range s.asked {
		if e.topics[channel] == nil {
			delete(s.asked, channel)
			orders = append(orders, order{channel: channel, drop: true})
		}
	}
	s.answers = append(s.answers, orders...)
	e.mu.Unlock()
	// One command for each: of several channels in one, Redis refuses all if it refuses one.
	for _, o := range orders {
		ctx, cancel := context.WithTimeout(e.b.ctx, e.b.o.Timeout)
		err := s.ask(ctx, o.channel, o.drop)
		cancel()
		if err != nil {
			s.end(err)
			return
		}
	}
}

// ask asks Redis to subscribe to a channel, or to drop it.
func (s *session) ask(ctx context.Context, channel string, drop bool) error {
	switch {
	case s.e.sharded && drop:
		return s.pubsub.SUnsubscribe(ctx, channel)
	case s.e.sharded:
		return s.pubsub.SSubscribe(ctx, channel)
	case drop:
		return s.pubsub.Unsubscribe(ctx, channel)
	}
	return s.pubsub.Subscribe(ctx, channel)
}

// waiting returns what Redis has not answered yet.
func (s *session) waiting() []order {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return s.answers
}

// silent reports whether a probe has been out for as long as an echo may take.
func (s *session) silent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A little less, as the tick that asks comes one interval after the probe was published.
	return s.sent > s.echoed && time.Since(s.sentAt) >= s.e.b.o.ProbeInterval*9/10
}

// retryProbe is the longest wait after a probe that could not be published.
const retryProbe = 500 * time.Millisecond

// probe publishes a probe the way everything is published, and returns when the next one is due. If it
// fails, the node cannot publish, and says so; the connection that hears may be well, and
// stays.
func (s *session) probe() time.Duration {
	e := s.e
	s.mu.Lock()
	s.sent++
	n := s.sent
	if s.sent == s.echoed+1 {
		s.sentAt = time.Now()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(e.b.ctx, e.b.o.Timeout)
	defer cancel()
	_, err := e.publish(ctx, s.probes, strconv.AppendUint([]byte(probeMark), n, 10))
	if err == nil || e.b.ctx.Err() != nil {
		return e.b.o.ProbeInterval
	}
	s.mu.Lock()
	s.echoed = max(s.echoed, n) // it will not come back, and that is no sign against the connection
	s.mu.Unlock()
	e.disprove(err, false)
	return min(e.b.o.ProbeInterval, retryProbe)
}

// settle waits until a probe that is sent now has come back, or ctx or the session has ended.
func (s *session) settle(ctx context.Context) {
	s.mu.Lock()
	target := s.sent + 1
	s.mu.Unlock()
	wake(s.kick)
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

// wake sends a sign that need not be sent twice.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
