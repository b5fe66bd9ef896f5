package brokertest

import (
	"sync"
	"time"
)

// bell calls owners, one after another, on a goroutine of its own: never with a lock of the store held, and never on
// the goroutine of whoever caused the call, who may hold the owner's lock. It also ticks.
type bell struct {
	mu    sync.Mutex
	calls []func()
	ended bool
	drain bool // make the calls that wait before ending

	wake chan struct{}
	done chan struct{}
}

func newBell(interval time.Duration, tick func()) *bell {
	b := &bell{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go b.run(interval, tick)
	return b
}

func (b *bell) run(interval time.Duration, tick func()) {
	defer close(b.done)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-b.wake:
		case <-ticker.C:
			tick()
		}
		for {
			b.mu.Lock()
			if b.ended && !b.drain || len(b.calls) == 0 {
				ended := b.ended
				b.mu.Unlock()
				if ended {
					return
				}
				break
			}
			call := b.calls[0]
			b.calls = b.calls[1:]
			b.mu.Unlock()
			call()
		}
	}
}

// ring has f called soon.
func (b *bell) ring(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	b.calls = append(b.calls, f)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// stop ends the goroutine. With drain, the calls that wait are made first.
func (b *bell) stop(drain bool) {
	b.mu.Lock()
	b.ended, b.drain = true, drain
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	<-b.done
}
