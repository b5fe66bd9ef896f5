package hub

import (
	"context"
	"errors"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// planStandingLocked is planLocked for a session in line. It is rung for when it may be its turn.
func (d *delivery) planStandingLocked(now time.Time) (task, bool) {
	how, ok := d.s.settings()
	if !ok || d.s.state != open {
		return task{}, false
	}
	moved := how.Store != d.how.Store
	if !d.more && !moved {
		return task{}, false
	}
	if wait := d.retry.Sub(now); wait > 0 {
		d.sleepLocked(wait)
		return task{}, false
	}
	if !moved && d.tenure.lost != nil { // it was closed, and its successor is not there yet
		d.failedLocked()
		d.sleepLocked(d.backoff)
		return task{}, false
	}
	d.more = false
	old := d.how.Store
	d.how = how.withDefaults()
	t := task{attach: how.Store, stand: d.tenure}
	if moved {
		t.leave, t.stand = old, &tenure{delivery: d}
	}
	return t, true
}

// promote attaches, if it is the session's turn.
func (d *delivery) promote(t task) {
	ctx, cancel := context.WithTimeout(d.ctx, attachTimeout)
	defer cancel()
	if t.leave != nil {
		_ = t.leave.Leave(ctx, d.s.e.Channel, d.s.id, d.tenure) // it may be closed already
		d.s.mu.Lock()
		d.tenure = t.stand
		d.s.mu.Unlock()
	}
	d.s.mu.Lock()
	o := d.attachOptionsLocked(0)
	d.s.mu.Unlock()
	box, page, err := t.attach.Attach(ctx, d.s.e.Channel, d.s.id, t.stand, o)
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	switch {
	case err == nil:
		d.backoff, d.retry, d.standing = 0, time.Time{}, false
		d.attachedLocked(t.stand, box, page)
		d.s.promotedLocked()
	case errors.Is(err, broker.ErrHeld):
		d.backoff, d.retry = 0, time.Time{}
	case d.ctx.Err() != nil:
	default:
		d.more = true
		if d.backoff == 0 {
			d.s.hub.storeFailed(d.s, err)
		}
		d.failedLocked()
	}
}

// displacedLocked is called when the session attaches anew, and somebody else has the mailbox.
func (d *delivery) displacedLocked(at broker.Store, t *tenure, err error) {
	d.how.Store, d.tenure = at, t
	if d.how.Mode != broker.Standby || errors.Is(err, broker.ErrLineFull) {
		d.lostLocked(broker.ErrFenced)
		return
	}
	for _, f := range d.flights {
		if f.phase == pushed {
			d.unansweredLocked()
		}
		f.phase = dropped
	}
	d.flights, d.carried, d.standing, d.more = nil, nil, true, t.rung
	d.wakeLocked()
}

// leaveLine lets those behind go on.
func (d *delivery) leaveLine(ctx context.Context, t *tenure) {
	if err := d.how.Store.Leave(ctx, d.s.e.Channel, d.s.id, t); err != nil && !errors.Is(err, broker.ErrClosed) {
		d.s.hub.storeFailed(d.s, err)
	}
}

// Standing reports whether the session waits for another one to end.
func (s *Session) Standing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delivery != nil && s.delivery.standing
}

// promotedLocked tells a client that waited that it has the destination now.
func (s *Session) promotedLocked() {
	if s.protocol == JSON && s.state == open {
		s.appendLocked(outgoing{frame: s.welcomeLocked()})
	}
	if s.hub.OnPromote != nil {
		s.hub.OnPromote(s.e.Channel, s.id)
	}
}
