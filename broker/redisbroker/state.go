package redisbroker

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// listenLoop keeps a session going for as long as the broker is open.
func (e *ear) listenLoop() {
	wait := time.Duration(0)
	for {
		began := time.Now()
		err := e.listen()
		if e.b.ctx.Err() != nil || errors.Is(err, broker.ErrClosed) {
			return
		}
		e.disprove(e.b.explain(err), true)
		if time.Since(began) > e.b.o.MaxBackoff {
			wait = 0
		}
		// Many nodes lose one server at the same moment: half of the wait is random, so that they
		// do not all come back at the same moment.
		wait = min(max(2*wait, 50*time.Millisecond), e.b.o.MaxBackoff)
		e.pause(wait/2 + rand.N(wait/2+1))
	}
}

// pause waits, unless the broker closes or gets new settings, with which it may work.
func (e *ear) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.b.configured:
	case <-e.b.ctx.Done():
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
func (e *ear) setSession(s *session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.session = s
	return true
}

func (e *ear) clearSession() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = nil
}

// endSession ends the session under way, if there is one.
func (e *ear) endSession(err error) {
	e.mu.Lock()
	s := e.session
	e.mu.Unlock()
	if s != nil {
		s.end(err)
	}
}

// prove notes that a probe has come back, and tells those who were told of a failure.
func (e *ear) prove(probe uint64) {
	e.mu.Lock()
	lostAt := e.lostAt
	if !lostAt.IsZero() {
		e.away += time.Since(lostAt)
	}
	e.down, e.lostAt = nil, time.Time{}
	var proven []*subscription
	var allowed []string
	for channel, t := range e.topics {
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
	e.mu.Unlock()
	if !lostAt.IsZero() {
		e.b.o.Logger.Info("redis is back", "address", e.b.o.Address, "seconds", time.Since(lostAt).Seconds())
	}
	for _, channel := range allowed {
		e.b.o.Logger.Info("redis allows a channel again", "address", e.b.o.Address, "channel", channel)
	}
	for _, s := range proven {
		s.tell()
	}
}

// disprove notes that nothing is known to arrive any more. Unless the connection is gone, what was
// confirmed stays so, and the next echo proves it again.
func (e *ear) disprove(err error, gone bool) {
	e.mu.Lock()
	news := e.lostAt.IsZero()
	if news {
		e.lostAt = time.Now()
	}
	e.down = err
	before := false
	var all []*subscription
	for _, t := range e.topics {
		before = t.proven.Swap(false) || before
		if gone {
			t.confirmed = false
		}
		all = append(all, t.subs...)
	}
	e.mu.Unlock()
	if before {
		e.lost.Add(1)
	}
	if news { // and not for each attempt
		e.b.o.Logger.Warn("redis is lost; publishers are answered 503 until it is back", "address", e.b.o.Address, "error", err)
	}
	for _, s := range all {
		s.tell()
	}
}

// refuse notes that Redis does not let one channel be heard. The others are not touched.
func (e *ear) refuse(t *topic, channel string, err error) {
	err = e.b.explain(err)
	e.mu.Lock()
	news := t.refused == nil
	t.refused = err
	t.confirmed = false
	t.proven.Store(false)
	subs := t.subs
	e.mu.Unlock()
	if news {
		e.b.o.Logger.Warn("redis refuses a channel; its publishers are answered 503", "address", e.b.o.Address, "channel", channel, "error", err)
	}
	for _, s := range subs {
		s.tell()
	}
}
