package redisbroker

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// listenLoop keeps a session going for as long as the broker is open.
func (b *Broker) listenLoop() {
	wait := time.Duration(0)
	for {
		began := time.Now()
		err := b.listen()
		if b.ctx.Err() != nil || errors.Is(err, broker.ErrClosed) {
			return
		}
		b.disprove(b.explain(err), true)
		if time.Since(began) > b.o.MaxBackoff {
			wait = 0
		}
		// Many nodes lose one server at the same moment: half of the wait is random, so that they
		// do not all come back at the same moment.
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
	case <-b.configured:
	case <-b.ctx.Done():
	}
}

// wait waits, unless the broker closes.
func (b *Broker) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ctx.Done():
	}
}

// setSession makes s the session, unless the broker closes.
func (b *Broker) setSession(s *session) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.session = s
	return true
}

func (b *Broker) clearSession() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session = nil
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

// prove notes that a probe has come back, and tells those who were told of a failure.
func (b *Broker) prove(probe uint64) {
	b.mu.Lock()
	lostAt := b.lostAt
	if !lostAt.IsZero() {
		b.away += time.Since(lostAt)
	}
	b.down, b.lostAt = nil, time.Time{}
	var proven []*subscription
	var allowed []string
	for channel, t := range b.topics {
		if !t.confirmed || t.proven.Load() || probe <= t.after {
			continue
		}
		if t.refused != nil {
			t.refused = nil
			allowed = append(allowed, channel)
		}
		t.proven.Store(true)
		proven = append(proven, t.subs...)
	}
	b.mu.Unlock()
	if !lostAt.IsZero() {
		b.o.Logger.Info("redis is back", "address", b.o.Address, "seconds", time.Since(lostAt).Seconds())
	}
	for _, channel := range allowed {
		b.o.Logger.Info("redis allows a channel again", "address", b.o.Address, "channel", channel)
	}
	for _, s := range proven {
		s.tell()
	}
}

// disprove notes that nothing is known to arrive any more. Unless the connection is gone, what was
// confirmed stays so, and the next echo proves it again.
func (b *Broker) disprove(err error, gone bool) {
	b.mu.Lock()
	news := b.lostAt.IsZero()
	if news {
		b.lostAt = time.Now()
	}
	b.down = err
	before := false
	var all []*subscription
	for _, t := range b.topics {
		before = t.proven.Swap(false) || before
		if gone {
			t.confirmed = false
		}
		all = append(all, t.subs...)
	}
	b.mu.Unlock()
	if before {
		b.lost.Add(1)
	}
	if news { // and not for each attempt
		b.o.Logger.Warn("redis is lost; publishers are answered 503 until it is back", "address", b.o.Address, "error", err)
	}
	for _, s := range all {
		s.tell()
	}
}

// refuse notes that Redis does not let one channel be heard. The others are not touched.
func (b *Broker) refuse(t *topic, channel string, err error) {
	err = b.explain(err)
	b.mu.Lock()
	news := t.refused == nil
	t.refused = err
	t.confirmed = false
	t.proven.Store(false)
	subs := t.subs
	b.mu.Unlock()
	if news {
		b.o.Logger.Warn("redis refuses a channel; its publishers are answered 503", "address", b.o.Address, "channel", channel, "error", err)
	}
	for _, s := range subs {
		s.tell()
	}
}
