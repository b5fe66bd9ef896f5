package boltbroker

import (
	"sync"
	"time"
)

// clock never goes back, or a message that was accepted later could come first, and what has expired come back. It counts
// in microseconds since 1970, as sequences do: the highest is what the file remembers of it.
//
// When the machine's clock is set back, this one goes on at its pace from where it was: if it stood still, no delay
// would end and no deadline pass.
type clock struct {
	mu    sync.Mutex
	shown int64
	at    time.Time // when shown was right, by the monotonic clock
}

// advance moves the clock to a time, if that is ahead of it, and returns what it shows.
func (c *clock) advance(to int64) int64 {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	passed := int64(0)
	if !c.at.IsZero() {
		passed = now.Sub(c.at).Microseconds()
	}
	if next := max(to, c.shown+passed); next > c.shown {
		c.shown, c.at = next, now
	}
	return c.shown
}
