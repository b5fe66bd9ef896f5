package hub

import (
	"context"
	"errors"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// task is what the worker is to do without the lock.
type task struct {
	settle []broker.Outcome
	of     []*flight // whose outcomes they are
	read   int       // entries to read
	after  uint64
	rings  uint64
	attach broker.Store
	again  bool         // it is the same store, and has forgotten us
	stand  *tenure      // the session is in line, as this owner
	leave  broker.Store // where it was in line before
	box    broker.Mailbox
}

// work speaks with the store until there is nothing to do.
func (d *delivery) work() {
	defer d.worker.Done()
	defer func() {
		if v := recover(); v != nil {
			d.s.abort(Panicked, panicError(v))
		}
	}()
	for {
		d.s.mu.Lock()
		t, more := d.planLocked()
		if !more {
			d.working = false
		}
		d.s.mu.Unlock()
		if !more {
			return
		}
		switch {
		case t.stand != nil:
			d.promote(t)
		case t.attach != nil && t.again:
			d.restore(t)
		case t.attach != nil:
			d.move(t)
		case len(t.settle) > 0:
			d.settle(t)
		default:
			d.readPage(t)
		}
	}
}

// planLocked does all that can be done under the lock, and returns what else there is. If that is nothing,
// the timer is set for when there will be.
func (d *delivery) planLocked() (task, bool) {
	if d.s.state == ended || d.closed {
		return task{}, false
	}
	now := time.Now()
	if d.standing {
		return d.planStandingLocked(now)
	}
	if how, ok := d.s.settings(); ok {
		store := d.how.Store
		d.how = how.withDefaults()
		moved, forgotten := how.Store != store, errors.Is(d.tenure.lost, broker.ErrForgotten)
		if moved || forgotten || errors.Is(d.tenure.lost, broker.ErrClosed) {
			d.how.Store = store
			if wait := d.retry.Sub(now); wait > 0 {
				d.sleepLocked(wait)
				return task{}, false
			}
			if !moved && !forgotten { // the successor is not there yet, or it is the end
				d.failedLocked()
				d.sleepLocked(d.backoff)
				return task{}, false
			}
			return task{attach: how.Store, again: !moved, box: d.box}, true
		}
	}
	if d.tenure.lost != nil { // by a take-over, which ends the session
		return task{}, false
	}
	wait := d.overdueLocked(now)
	wait = min(wait, d.drainLocked(now))
	if d.s.state == open {
		wait = min(wait, d.pushLocked())
	}
	if pause := d.retry.Sub(now); pause > 0 {
		d.sleepLocked(min(wait, pause))
		return task{}, false
	}
	t := task{box: d.box}
	if t.settle, t.of = d.outcomesLocked(); len(t.settle) > 0 {
		return t, true
	}
	if held := d.undecidedLocked(); held < d.window && d.more && d.s.state == open {
		t.read, t.after, t.rings = d.ahead()-held, d.read, d.rings
		return t, true
	}
	d.sleepLocked(wait)
	return task{}, false
}

// undecidedLocked counts the messages of which the client has something to say yet.
func (d *delivery) undecidedLocked() int {
	n := 0
	for _, f := range d.flights {
		if f.phase < decided {
			n++
		}
	}
	return n
}

// outcomesLocked collects what is to be stored.
func (d *delivery) outcomesLocked() (outcomes []broker.Outcome, of []*flight) {
	for _, f := range d.flights {
		switch {
		case len(of) == settleBatch:
			return outcomes, of
		case f.phase == decided:
			f.phase = storing
			outcomes, of = append(outcomes, f.outcome), append(of, f)
		case f.dirty && f.phase < decided:
			f.dirty = false
			outcomes, of = append(outcomes, f.counts()), append(of, f)
		}
	}
	return outcomes, of
}

// settle stores outcomes.
func (d *delivery) settle(t task) {
	ctx, cancel := context.WithTimeout(d.ctx, settleTimeout)
	verdicts, err := t.box.Settle(ctx, t.settle)
	cancel()
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err != nil {
		for i, f := range t.of { // to be told again
			if t.settle[i].State.Finished() {
				f.phase = decided
			} else if f.phase < decided {
				f.dirty = true
			}
		}
		d.storeErrorLocked(err)
		return
	}
	d.backoff, d.retry = 0, time.Time{}
	for i, f := range t.of {
		if final := t.settle[i].State.Finished(); final || verdicts[i] == broker.Gone {
			d.doneLocked(f, final)
		}
	}
}

// doneLocked takes a message out of the window.
func (d *delivery) doneLocked(f *flight, answered bool) {
	for i, other := range d.flights {
		if other == f {
			d.removeLocked(i)
			break
		}
	}
	if !answered && f.pushedHere && f.phase < decided {
		d.unansweredLocked()
	}
	f.phase = dropped
}

// readPage reads on in the mailbox.
func (d *delivery) readPage(t task) {
	ctx, cancel := context.WithTimeout(d.ctx, settleTimeout)
	page, err := t.box.Read(ctx, t.after, t.read, pageBytes)
	cancel()
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err != nil {
		d.storeErrorLocked(err)
		return
	}
	if d.box != t.box {
		return
	}
	d.backoff, d.retry = 0, time.Time{}
	d.takeLocked(page)
	d.more = d.more || d.rings != t.rings
}

// move takes the destination's mailbox at another store. A reload that brings one is refused while the old
// one still has messages, so nothing is left behind but what came in the very moment.
func (d *delivery) move(t task) {
	ctx, cancel := context.WithTimeout(d.ctx, attachTimeout)
	defer cancel()
	var finals, counts []broker.Outcome
	moved := d.attachAnew(ctx, t, func() {
		finals, counts = d.remainsLocked()
		for _, f := range d.flights {
			if f.phase == pushed {
				d.unansweredLocked()
			}
			f.phase = dropped
		}
		d.flights, d.carried = nil, nil
	})
	if !moved {
		return
	}
	if len(finals) > 0 {
		_, _ = t.box.Settle(ctx, finals)
	}
	_ = t.box.Detach(ctx, counts) // it may be closed already
}

// restore takes the mailbox again at a store that has forgotten us. What is in flight stays so, and what the peer has
// answered meanwhile is settled now.
func (d *delivery) restore(t task) {
	ctx, cancel := context.WithTimeout(d.ctx, attachTimeout)
	defer cancel()
	restored := d.attachAnew(ctx, t, func() {
		d.carried = make(map[string]*flight, len(d.flights))
		for _, f := range d.flights {
			d.carried[f.entry.Message.MID] = f
		}
		d.flights = nil
	})
	if !restored {
		return
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	for _, f := range d.carried {
		if f.phase == pushed { // the store has forgotten the message, too, and the peer will answer it
			d.unansweredLocked()
			return
		}
	}
}

// attachAnew attaches at t.attach. before is called with s.mu held, when that is done.
func (d *delivery) attachAnew(ctx context.Context, t task, before func()) bool {
	d.s.mu.Lock()
	o := d.attachOptionsLocked(len(d.flights))
	d.s.mu.Unlock()
	tenure := &tenure{delivery: d}
	box, page, err := t.attach.Attach(ctx, d.s.e.Channel, d.s.id, tenure, o)
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	switch {
	case errors.Is(err, broker.ErrHeld) || errors.Is(err, broker.ErrLineFull): // another socket was there first
		d.displacedLocked(t.attach, tenure, err)
		return false
	case err != nil:
		d.failedLocked()
		d.s.hub.storeFailed(d.s, err)
		return false
	}
	before()
	d.backoff, d.retry = 0, time.Time{}
	d.how.Store = t.attach
	d.attachedLocked(tenure, box, page)
	return true
}

// storeErrorLocked notes that the store failed. What was to be done is still to be done.
func (d *delivery) storeErrorLocked(err error) {
	switch {
	case lostAlready(err):
		d.lostLocked(err)
	case d.ctx.Err() != nil:
	default:
		if d.backoff == 0 { // and not for each attempt
			d.s.hub.storeFailed(d.s, err)
		}
		d.failedLocked()
	}
}

// failedLocked puts the next attempt off.
func (d *delivery) failedLocked() {
	d.backoff = min(max(2*d.backoff, 50*time.Millisecond), 2*time.Second)
	d.retry = time.Now().Add(d.backoff)
}

// sleepLocked has the worker wake up after a while.
func (d *delivery) sleepLocked(wait time.Duration) {
	if wait >= forever {
		if d.timer != nil {
			d.timer.Stop()
		}
		return
	}
	// A moment later rather than earlier: a timer that fires before its time finds nothing to do.
	wait = max(wait, 0) + time.Millisecond
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, d.wake)
		return
	}
	d.timer.Reset(wait)
}

// forever is longer than any wait.
const forever = 1<<63 - 1 - time.Hour
