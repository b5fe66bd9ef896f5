package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
)

const (
	// intakeLanes is how many publications are stored at once. Those of one destination are stored one after
	// another, in the order in which they were heard (I3).
	intakeLanes = 32

	// appendTimeout bounds one attempt to store, and maxIntakeBackoff the wait between two.
	appendTimeout    = 5 * time.Second
	maxIntakeBackoff = time.Second
)

// sourceClassic is the source of messages that came from a classic channel.
const sourceClassic = "classic"

var (
	errTooFast   = errors.New("more is published than can be stored")
	errNotForAll = errors.New("the ID \"*\" means every socket, and an at_least_once channel has no broadcast")
)

// intakeLane is what waits to be stored for some destinations.
type intakeLane struct {
	queue   []*heardOne
	running bool // a goroutine empties it
}

var laneSeed = maphash.MakeSeed()

// queueLocked hands a publication to the goroutine that stores it. It must be called with i.mu held.
func (i *intake) queueLocked(h *heardOne) {
	lane := &i.lanes[0]
	if h.message != nil {
		lane = &i.lanes[maphash.String(laneSeed, h.message.ID)%intakeLanes]
	}
	lane.queue = append(lane.queue, h)
	if !lane.running {
		lane.running = true
		i.loops.Go(func() { i.work(lane) })
	}
}

// queueAllLocked hands over all that this node has heard and does not know to be stored. It must be called
// with i.mu held.
func (i *intake) queueAllLocked() {
	for k := range i.lanes {
		i.lanes[k].queue = nil
	}
	for _, h := range i.heard.all {
		if !h.done {
			i.queueLocked(h)
		}
	}
}

// work stores what is in a lane until it is empty, or another node is in charge.
func (i *intake) work(lane *intakeLane) {
	for {
		i.mu.Lock()
		if !i.charge || len(lane.queue) == 0 {
			lane.queue, lane.running = nil, false
			i.mu.Unlock()
			return
		}
		h := lane.queue[0]
		i.mu.Unlock()
		done := h.done || i.store(h)
		i.mu.Lock()
		if done {
			h.done = true
			i.heard.trim()
			if len(lane.queue) > 0 && lane.queue[0] == h {
				lane.queue = lane.queue[1:]
			}
		}
		i.mu.Unlock()
		if !done {
			i.setCharge(false)
		}
	}
}

// store stores one publication, however often it has to try. It returns false if that has become another node's
// business.
func (i *intake) store(h *heardOne) (done bool) {
	defer func() {
		if v := recover(); v != nil { // one publication must not end the process (I11)
			i.skip(unfitFailed, fmt.Errorf("a bug: %v\n%s", v, debug.Stack()))
			done = true
		}
	}()
	switch {
	case h.err != nil:
		i.skip(unfitShape, h.err)
		return true
	case h.message.ID == broker.Everyone:
		i.skip(unfitAll, errNotForAll)
		return true
	}
	m, o := h.message, broker.AppendOptions{Key: h.key()}
	if !h.ready { // and never again: the store may have it, and an attempt under another MID would be another message
		h.ready = true
		m.MID = broker.NewMessageID(i.key.channel, m.ID, o.Key)
		m.Channel, m.Key, m.Source = i.key.channel, o.Key, sourceClassic
	}
	for wait := 10 * time.Millisecond; i.lease.Held(); wait = min(2*wait, maxIntakeBackoff) {
		out, err := i.append(m, o)
		if stored := err == nil || errors.Is(err, broker.ErrUnproven); stored && !out.Duplicate {
			i.counts.taken.Add(1)
			return true
		} else if stored { // by the node that was in charge before
			return true
		}
		if why, given := givenUp(err); given {
			i.skip(why, err)
			return true
		}
		if !i.pause(wait) {
			return false
		}
	}
	return false
}

func (i *intake) append(m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	return i.node.append(ctx, i.generation.Load(), m, o)
}

// givenUp reports whether an error of an append will not go away soon, and what it is counted as.
func givenUp(err error) (unfit, bool) {
	for _, full := range []error{broker.ErrMailboxFull, broker.ErrChannelFull, broker.ErrRecordsFull, broker.ErrDeadLettersFull} {
		if errors.Is(err, full) {
			return unfitFull, true
		}
	}
	again := errors.Is(err, broker.ErrUnavailable) || errors.Is(err, errNotRunning) || errors.Is(err, broker.ErrClosed)
	return unfitFailed, !again
}

// pause waits, and returns false if the intake ends first.
func (i *intake) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-i.stopped:
		return false
	}
}

// skip counts a publication that is not stored, and logs one a minute: whoever publishes one usually goes on
// doing so.
func (i *intake) skip(why unfit, err error) {
	i.counts.skipped[why].Add(1)
	if held, ok := i.counts.skips.allow(); ok {
		i.node.logger.Load().Warn("a publication on the classic channel was not stored",
			zap.String("channel", i.key.channel), zap.String("redis_channel", i.key.topic), zap.Stringer("reason", why),
			zap.Error(err), zap.Uint64("since_last_line", held))
	}
}
