package hub

import (
	"errors"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// overdueLocked decides the messages whose deadline has passed, and those that the peer is silent about. It
// returns how long nothing else is due.
func (d *delivery) overdueLocked(now time.Time) time.Duration {
	storeNow := d.how.Store.Now()
	wait := forever
	timedOut := false
	for _, f := range d.flights {
		if f.phase >= decided {
			continue
		}
		if f.overdue(storeNow) {
			d.expireLocked(f, storeNow)
			continue
		}
		wait = min(wait, f.due().Sub(storeNow))
		if f.phase != pushed || !f.wrote || d.s.acksByDraining() {
			continue
		}
		if left := f.since.Add(d.how.AckTimeout).Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		// A peer that hangs is silent about all of its window. Only the oldest pays for that, or a
		// pause of the peer would end in as many dead letters.
		d.timeOutLocked(f, storeNow, !timedOut)
		timedOut = true
		wait = 0
	}
	return wait
}

// expireLocked ends a message that may not be pushed any more.
func (d *delivery) expireLocked(f *flight, storeNow time.Time) {
	answerable := f.phase == pushed
	if e := f.entry.Expires; !e.IsZero() && !storeNow.Before(e) {
		f.finish(broker.StateExpired)
	} else {
		f.die(broker.DeadRetention, "")
	}
	if answerable {
		d.unansweredLocked()
	}
}

// unansweredLocked is called when a message ends that the peer may still answer. A plain peer's next answer
// could be taken for that of the next message, so it gets no next message.
func (d *delivery) unansweredLocked() {
	if d.s.acksByFrames() {
		d.s.endWithLocked(AckTimeout, fmt.Errorf("a message ended while the peer had not answered it"), nil)
	}
}

// timeOutLocked gives up waiting for the peer's word on a message.
func (d *delivery) timeOutLocked(f *flight, storeNow time.Time, counts bool) {
	d.s.channel.timeouts.Add(1)
	if counts {
		f.entry.Failures++
	}
	if f.entry.Failures >= d.how.MaxAttempts && counts {
		f.die(broker.DeadAttempts, "no answer within "+d.how.AckTimeout.String())
	} else {
		f.phase, f.failed, f.dirty = waiting, true, true
		f.entry.NotBefore = storeNow
	}
	if d.s.acksByFrames() {
		d.s.endWithLocked(AckTimeout, fmt.Errorf("the peer did not answer a message within %s", d.how.AckTimeout), nil)
	}
}

// pushLocked queues what can be pushed, in order, and returns how long it takes until more can.
func (d *delivery) pushLocked() time.Duration {
	if !d.box.Leased() { // it rings when it is again (I4)
		return forever
	}
	storeNow := d.how.Store.Now()
	if wait := d.restartLocked(storeNow); wait > 0 {
		return wait
	}
	wait := forever
	room := d.window
	for _, f := range d.flights {
		if f.phase >= decided {
			continue
		}
		if room--; room < 0 {
			break
		}
		if f.phase != waiting {
			continue
		}
		if later := f.entry.NotBefore.Sub(storeNow); later > 0 {
			wait = min(wait, later)
			if d.how.Relaxed {
				continue
			}
			break
		}
		frame, never := d.frame(f)
		if never != "" {
			f.die(never, "")
			d.s.tellDrop(string(never))
			continue
		}
		if !d.s.enqueueLocked(frame, f) {
			break // the writer wakes us when there is room
		}
		f.phase, f.failed = queued, false
	}
	return wait
}

// restartLocked sees to the order after a failure (I3): nothing is pushed until it is time to push the failed
// message again, and then all that are unacknowledged are, from the oldest on. It returns how long
// that takes.
func (d *delivery) restartLocked(storeNow time.Time) time.Duration {
	if d.how.Relaxed {
		return 0
	}
	failed, wait := false, time.Duration(0)
	for _, f := range d.flights {
		if f.failed && f.phase < decided {
			failed = true
			wait = max(wait, f.entry.NotBefore.Sub(storeNow))
		}
	}
	if !failed || wait > 0 {
		return wait
	}
	for _, f := range d.flights {
		if f.phase < decided {
			f.phase, f.failed = waiting, false
		}
	}
	return 0
}

// drainLocked decides the messages of a peer that cannot acknowledge: its kernel has them, so they are
// written. It returns when to look again.
func (d *delivery) drainLocked(now time.Time) time.Duration {
	if !d.s.acksByDraining() {
		return forever
	}
	var oldest *flight
	for _, f := range d.flights {
		if f.phase == pushed && f.wrote {
			oldest = f
			break
		}
	}
	if oldest == nil {
		d.drainWait = 0
		return forever
	}
	if d.s.e.Unsent != nil {
		n, err := d.s.e.Unsent(d.s.conn)
		if errors.Is(err, errors.ErrUnsupported) {
			n, err = 0, nil
		}
		if n > 0 || err != nil { // an error says that the socket is no more; its end is on the way
			if now.Sub(oldest.since) > d.how.AckTimeout {
				d.s.endWithLocked(AckTimeout, fmt.Errorf("the peer's kernel did not take a message within %s", d.how.AckTimeout), nil)
				return forever
			}
			d.drainWait = min(max(2*d.drainWait, time.Millisecond), 100*time.Millisecond)
			return d.drainWait
		}
	}
	d.drainWait = 0
	for _, f := range d.flights {
		if f.phase == pushed && f.wrote {
			f.finish(broker.StateWritten)
		}
	}
	return forever
}

// acksByFrames reports whether the peer acknowledges by plain frames.
func (s *Session) acksByFrames() bool { return s.protocol == Plain && s.e.Ack != AckNone }

// acksByDraining reports whether the peer cannot acknowledge.
func (s *Session) acksByDraining() bool { return s.protocol == Plain && s.e.Ack == AckNone }
