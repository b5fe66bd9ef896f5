package caddyrelay

import (
	"sync"
	"sync/atomic"
	"time"
)

// counts is what the node counted since the process began. The hub counts for itself.
type counts struct {
	mu       sync.RWMutex
	channels map[string]*channelCounts // grows by configured channels only

	listenerDropped atomic.Uint64 // publications that a full listener on the bus missed
	listenerPanics  atomic.Uint64
}

// channelCounts is the part of one channel.
type channelCounts struct {
	published  atomic.Uint64
	duplicates atomic.Uint64
	invalid    atomic.Uint64 // publications that were not for sockets
	refused    [refusals]atomic.Uint64
	skips      throttle
	drops      throttle

	storeErrors throttle
	classic     classicCounts
	fights      throttle
}

func (c *counts) channel(name string) *channelCounts {
	c.mu.RLock()
	cc := c.channels[name]
	c.mu.RUnlock()
	if cc != nil {
		return cc
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cc = c.channels[name]; cc != nil {
		return cc
	}
	if c.channels == nil {
		c.channels = make(map[string]*channelCounts)
	}
	cc = new(channelCounts)
	c.channels[name] = cc
	return cc
}

// throttle lets one log line a minute through, and counts those it holds back.
type throttle struct {
	mu   sync.Mutex
	last time.Time
	held uint64
}

// allow reports whether a line may be written now, and how many were held back before it.
func (t *throttle) allow() (held uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); t.last.IsZero() || now.Sub(t.last) >= time.Minute {
		held, t.held, t.last = t.held, 0, now
		return held, true
	}
	t.held++
	return 0, false
}
