package redisbroker

import (
	"sync/atomic"
	"time"
)

// leased reports whether the owners of a partition's mailboxes may write.
func (s *store) leased(part int) bool {
	sh := s.ofPart(part)
	return sh != nil && sh.lease.holds()
}

// ownerLease says for how long this node's owners may go on writing to their sockets: until so much time has passed since
// the server was last heard of. By then another node may have been given their mailboxes, and have been at it for a
// while. It counts by the monotonic clock, from before the exchange: a process that was stopped finds its lease over.
type ownerLease struct {
	length time.Duration
	base   time.Time
	until  atomic.Int64 // nanoseconds after base
}

func newOwnerLease(length time.Duration) *ownerLease {
	return &ownerLease{length: length, base: time.Now()}
}

// clock returns the time by which leases are counted.
func (l *ownerLease) clock() time.Duration { return time.Since(l.base) }

// silence is how long the server has not been heard of.
func (l *ownerLease) silence() time.Duration {
	until := time.Duration(l.until.Load())
	if until == 0 {
		return l.clock()
	}
	return max(l.clock()-until+l.length, 0)
}

func (l *ownerLease) holds() bool { return int64(l.clock()) < l.until.Load() }

// renew notes that the server answered what was sent to it at began. It reports whether the lease was over, and is
// not any more.
func (l *ownerLease) renew(began time.Duration) bool {
	until := int64(began + l.length)
	for {
		old := l.until.Load()
		if until <= old {
			return false
		}
		now := int64(l.clock())
		if l.until.CompareAndSwap(old, until) {
			return old != 0 && old <= now && now < until
		}
	}
}
