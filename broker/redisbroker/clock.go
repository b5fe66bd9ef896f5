package redisbroker

import (
	"sync"
	"time"
)

// clock is the server's, between the moments at which it was read.
type clock struct {
	mu   sync.Mutex
	read time.Time // when it was read, by this machine's monotonic clock
	told time.Time // what it said then
	last time.Time // what now returned last
	at   time.Time // when that was
	seen []uint64  // for each partition, the highest sequence or fence that this node knows of
}

func newClock() *clock { return &clock{seen: make([]uint64, partitions)} }

// set notes the server's time, in microseconds.
func (c *clock) set(micros int64) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read, c.told = now, time.UnixMicro(micros)
}

// now returns the server's time. Until it was read for the first time that is this machine's. It never goes
// back: a deadline that has passed stays passed. When the server's clock is set back, it goes on at its pace from where
// it was: if it stood still, no delay would end.
func (c *clock) now() time.Time {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told.IsZero() {
		return now.Round(0)
	}
	t := c.told.Add(now.Sub(c.read))
	if !t.After(c.last) && !c.at.IsZero() {
		t = c.last.Add(now.Sub(c.at))
	}
	if t.After(c.last) {
		c.last, c.at = t, now
	}
	return c.last
}

// known reports whether the server's clock was read.
func (c *clock) known() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.told.IsZero()
}

// note remembers a sequence or fence of a partition: the clock of a replica that becomes the primary may be behind, and
// what it lost may have been seen here.
func (c *clock) note(part int, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[part] = max(c.seen[part], n)
}

func (c *clock) highest(part int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[part]
}
