package redisbroker

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

func take(t *testing.T, l *Lease) bool {
	t.Helper()
	held, err := l.Take(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	if held != l.Held() {
		t.Errorf("taken %v, held %v", held, l.Held())
	}
	return held
}

func TestLease(t *testing.T) {
	server := redistest.Start(t, durable...)
	one := openStore(t, Options{Address: server.Addr(), Node: "one"}, broker.Policy{})
	two := openStore(t, Options{Address: server.Addr(), Node: "two"}, broker.Policy{})
	a, b := one.NewLease("classic:c", time.Minute), two.NewLease("classic:c", time.Minute)
	if a.Held() || b.Held() {
		t.Error("held before it was taken")
	}
	if !take(t, a) || take(t, b) || !take(t, a) {
		t.Error("the first has it, and renews it")
	}
	if other := one.NewLease("classic:c", time.Minute); take(t, other) {
		t.Error("two of one process have it")
	}
	if other := two.NewLease("classic:d", time.Minute); !take(t, other) {
		t.Error("another lease is not free")
	}
	if err := b.Release(timeout(t)); err != nil || !take(t, a) {
		t.Errorf("who does not hold it released it: %v", err)
	}
	if err := a.Release(timeout(t)); err != nil || a.Held() || !take(t, b) || take(t, a) {
		t.Errorf("a released lease is not free: %v", err)
	}
}

// One whose holder says nothing more is free when its time is over; and its holder knows that by itself.
func TestLeaseEnds(t *testing.T) {
	server := redistest.Start(t, durable...)
	one := openStore(t, Options{Address: server.Addr(), Node: "one"}, broker.Policy{})
	two := openStore(t, Options{Address: server.Addr(), Node: "two"}, broker.Policy{})
	const lasts = 300 * time.Millisecond
	a, b := one.NewLease("x", lasts), two.NewLease("x", lasts)
	began := time.Now()
	if !take(t, a) {
		t.Fatal("not free")
	}
	until(t, "the other", func() bool {

		taken := take(t, b)
		if taken && a.Held() {
			t.Error("two hold it")
		}
		return taken
	})
	if took := time.Since(began); took < lasts {
		t.Errorf("it ended after %s", took)
	}
	// Nobody can ask, and it ends all the same.
	server.Pause()
	defer server.Resume()
	until(t, "the end", func() bool { return !b.Held() })
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.Take(timeout(t)); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("a closed broker: %v", err)
	}
}

// Of many that ask at once, one gets it.
func TestLeaseRace(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	for range 20 {
		var wg sync.WaitGroup
		var have atomic.Int32
		leases := make([]*Lease, 8)
		for i := range leases {
			leases[i] = b.NewLease("x", time.Minute)
			wg.Go(func() {
				if held, err := leases[i].Take(timeout(t)); err != nil {
					t.Error(err)
				} else if held {
					have.Add(1)
				}
			})
		}
		wg.Wait()
		if n := have.Load(); n != 1 {
			t.Fatalf("%d have it", n)
		}
		for _, l := range leases {
			if err := l.Release(timeout(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
