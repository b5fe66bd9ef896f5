package hub

import (
	"errors"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// phase is where a message of the window is.
type phase uint8

const (
	waiting phase = iota // to be pushed, as soon as its time and the order allow
	queued               // in the socket's queue; nothing of it is written
	pushed               // its write has begun, and nothing was heard of it
	decided              // how it ends is known, and to be stored
	storing              // the store is being told
	dropped              // withdrawn or gone: no longer in the window, perhaps still in the queue
)

// flight is one message of the window. Its fields are guarded by Session.mu.
type flight struct {
	entry      broker.Entry
	phase      phase
	pushedHere bool      // on this socket, at least once
	wrote      bool      // since it was pushed last, the kernel has taken all of it
	failed     bool      // nacked or timed out, and not pushed again yet
	dirty      bool      // its counts are to be stored
	since      time.Time // when it was pushed, or the client last made progress towards it
	outcome    broker.Outcome
}

// counts returns the outcome that notes the counts of a message that stays.
func (f *flight) counts() broker.Outcome {
	return broker.Outcome{Seq: f.entry.Seq, MID: f.entry.Message.MID, State: broker.StateStored, Counts: f.entry.Counts}
}

// finish decides how the message ends.
func (f *flight) finish(state broker.State) {
	f.outcome = f.counts()
	f.outcome.State = state
	f.phase = decided
}

// die makes the message a dead letter.
func (f *flight) die(reason broker.DeadReason, detail string) {
	f.finish(broker.StateDead)
	f.outcome.Reason, f.outcome.Detail = reason, detail
}

// begin is asked right before the message is written, and says whether it may be: no write begins after the
// deadline (I7), nor of a message that was withdrawn or answered while it waited in the queue.
// Without a lease another node may long be pushing it (I4): it waits until there is one.
func (f *flight) begin(now, storeNow time.Time, leased bool) bool {
	if f.phase == queued && !leased {
		f.phase = waiting
	}
	if f.phase != queued || f.overdue(storeNow) {
		return false
	}
	f.phase, f.pushedHere, f.wrote, f.since = pushed, true, false, now
	f.entry.Attempts++
	return true
}

// overdue reports whether the message must not be pushed any more.
func (f *flight) overdue(storeNow time.Time) bool { return !storeNow.Before(f.due()) }

// due is when the message expires or is given up, whichever is earlier.
func (f *flight) due() time.Time {
	due := f.entry.Retain
	if e := f.entry.Expires; !e.IsZero() && (due.IsZero() || e.Before(due)) {
		due = e
	}
	if due.IsZero() {
		return distant
	}
	return due
}

// distant is later than anything.
var distant = time.Unix(1<<40, 0)

// frame returns the message as it goes to the socket, or why it never can.
func (d *delivery) frame(f *flight) ([]byte, broker.DeadReason) {
	s := d.s
	e := encodeMessage(f.entry.Message, codec{framing: s.e.Framing, json: s.protocol == JSON}, f.entry.Attempts+1, d.fence)
	switch {
	case e.size > s.e.MaxMessage:
		return nil, broker.DeadTooLarge
	case errors.Is(e.err, wire.ErrUnframable):
		return nil, broker.DeadUnframable
	}
	return e.frame, ""
}

// retryDelay is how long a message waits that has failed so often.
func retryDelay(failures int) time.Duration {
	d := retryMin
	for range failures - 1 {
		if d *= 2; d >= retryMax {
			return retryMax
		}
	}
	return d
}
