package redisbroker

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Lease is a claim that one process of all has at a time, for something that one is enough to do. It is safe
// for concurrent use.
//
// It saves work and is no lock: a Redis that loses the key, by a failover for example, may give it to
// two. What two would spoil needs a guard of its own.
type Lease struct {
	b    *Broker
	key  string
	who  string // of all that ask, this one
	last time.Duration

	mu    sync.Mutex
	until time.Time // by this machine's monotonic clock, from before Redis was asked
}

// NewLease returns a lease that nobody here holds yet. Its key is name with the broker's prefix and a
// colon before it; it lasts for so long from each time that it is taken, at least a millisecond. It does no I/O.
func (b *Broker) NewLease(name string, lasts time.Duration) *Lease {
	return &Lease{b: b, key: b.names.prefix + ":" + name, who: b.store.newOwner(), last: max(lasts, time.Millisecond)}
}

// OwnChannel returns the name of a channel for the relay's own notices, which no other program publishes on. Users of
// Redis that may use a store may use it.
func (b *Broker) OwnChannel(name string) string { return b.names.node(name) }

// Take takes the lease, or renews it, and reports whether it is held now. The error wraps
// [broker.ErrUnavailable]: then Redis may believe that it is held, and Held says what it was before.
func (l *Lease) Take(ctx context.Context) (bool, error) {
	asked := time.Now()
	held, err := l.ask(ctx, l.last)
	if err != nil {
		return l.Held(), err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
	if held {
		l.until = asked.Add(l.last)
	}
	return l.until.After(time.Now()), nil
}

// Held reports whether the lease is held for certain. It does no I/O.
func (l *Lease) Held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until.After(time.Now())
}

// Release gives the lease up, so that others need not wait for its end. It counts as not held from the
// call on, even if Redis cannot be told.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	l.until = time.Time{}
	l.mu.Unlock()
	_, err := l.ask(ctx, 0)
	return err
}

func (l *Lease) ask(ctx context.Context, lasts time.Duration) (bool, error) {
	leave, err := l.b.enter()
	if err != nil {
		return false, err
	}
	defer leave()
	s := l.b.store
	r, err := s.call(ctx, scriptLease, []string{l.key}, l.who, lasts.Milliseconds())
	if err != nil {
		return false, fmt.Errorf("taking the lease %s: %w", l.key, err)
	}
	s.clock.set(r.number())
	held := r.number() == 1
	if r.err != nil {
		return false, s.wrong("lease", r.err)
	}
	return held, nil
}
