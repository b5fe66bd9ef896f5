package hub

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// Delivery is how an at_least_once channel delivers. Zero values take the defaults.
type Delivery struct {
	// Store holds the channel's mailboxes.
	Store broker.Store

	// AckTimeout is how long a peer may be silent about a message that was pushed to it, and about
	// those before it, until it is pushed again. Default 30 s.
	AckTimeout time.Duration

	// MaxAttempts is how many nacks and ack timeouts make a dead letter. Default 20.
	MaxAttempts int

	// CrashLimit is how many sockets may end while a message is the first in flight on them, until
	// it is a dead letter. Default 100.
	CrashLimit int

	// Mode says what happens when a socket registers under an ID that another one has.
	Mode broker.AttachMode

	// Relaxed lets later messages pass one that waits to be pushed again.
	Relaxed bool
}

func (d Delivery) withDefaults() Delivery {
	d.AckTimeout = positive(d.AckTimeout, 30*time.Second)
	d.MaxAttempts = positive(d.MaxAttempts, 20)
	d.CrashLimit = positive(d.CrashLimit, 100)
	return d
}

// Ack is how plain peers acknowledge.
type Ack uint8

// The ways. With AckNone a message counts as written once the peer's kernel has it. With the others one
// message is in flight at a time, and a frame acknowledges it: any frame, or one that
// Endpoint.AckMatch matches. Empty frames and those that Endpoint.Ignore matches never do.
const (
	AckNone Ack = iota
	AckLine
	AckMatch
)

const (
	// A nacked message is pushed again after retryMin, doubled for each further failure up to
	// retryMax, unless the client says when. It may say up to maxDelay.
	retryMin, retryMax, maxDelay = time.Second, 30 * time.Second, time.Hour
	// attachTimeout and settleTimeout bound one exchange with the store; closeTimeout what is settled
	// after a socket has ended.
	attachTimeout, settleTimeout, closeTimeout = 5 * time.Second, 10 * time.Second, 3 * time.Second
	// pageBytes bounds the bodies of one page.
	pageBytes = 1 << 20
	// settleBatch bounds the outcomes of one call.
	settleBatch = 256
)

// delivery is a session's side of its mailbox: what of it is in flight, what waits to be settled. One
// goroutine at a time speaks with the store for it; it is started when there is something to do, so
// an idle socket has none.
type delivery struct {
	s      *Session
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	worker sync.WaitGroup // Add only with s.mu held and closed false

	// Guarded by s.mu.
	how       Delivery
	box       broker.Mailbox // nil until the first attach
	fence     string
	window    int
	flights   []*flight          // read from the mailbox and not settled, in order
	read      uint64             // up to which sequence the mailbox is known
	more      bool               // there may be entries behind that
	rings     uint64             // counts rings, so that one during a read isn't lost
	tenure    *tenure            // of box
	standing  bool               // in line for the mailbox: another socket has it
	carried   map[string]*flight // what was in flight when the mailbox was attached anew, by MID
	working   bool
	closed    bool
	retry     time.Time // the store failed; not before
	backoff   time.Duration
	drainWait time.Duration // until the kernel's queue is looked at again
	timer     *time.Timer
}

func newDelivery(s *Session, how Delivery) *delivery {
	d := &delivery{s: s, how: how.withDefaults()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// settings returns how the channel delivers in the configuration that rules now.
func (s *Session) settings() (Delivery, bool) {
	if s.e.Delivery == nil {
		return Delivery{}, false
	}
	how, ok := s.e.Delivery()
	return how, ok && how.Store != nil
}

// attach takes the mailbox. It must be called before the session can be found.
func (d *delivery) attach(window int) *Refusal {
	d.window = window
	ctx, cancel := context.WithTimeout(d.ctx, attachTimeout)
	defer cancel()
	tenure := &tenure{delivery: d}
	box, page, err := d.how.Store.Attach(ctx, d.s.e.Channel, d.s.id, tenure,
		d.attachOptionsLocked(0))
	switch {
	case err == nil:
	case errors.Is(err, broker.ErrHeld) && d.how.Mode == broker.Standby:
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		d.standing, d.tenure = true, tenure
		return nil
	case errors.Is(err, broker.ErrHeld):
		return &Refusal{Reason: IDTaken, Code: 409, Temporary: true, Err: err,
			Text: "another socket is registered under this ID, and keeps it until it ends; close that one, or try again later"}
	case errors.Is(err, broker.ErrLineFull):
		return &Refusal{Reason: IDTaken, Code: 409, Temporary: true, Err: err,
			Text: "as many sockets as can already wait for this ID; close some, or try again later"}
	default:
		return &Refusal{Reason: StoreFailed, Code: 503, Temporary: true, Err: err,
			Text: "the relay's store cannot be reached; connect again in a moment"}
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.attachedLocked(tenure, box, page)
	return nil
}

func (d *delivery) attachedLocked(t *tenure, box broker.Mailbox, page broker.Page) {
	d.tenure, d.box, d.fence = t, box, strconv.FormatUint(box.Fence(), 10)
	d.read = 0
	d.takeLocked(page)
	d.more = d.more || t.rung
	if t.lost != nil { // it was taken over already
		d.lostLocked(t.lost)
	}
}

// takeLocked takes what was read, or offered.
func (d *delivery) takeLocked(page broker.Page) {
	withdrawn := d.tenure.withdrawn
	for _, e := range page.Entries {
		if e.Seq <= d.read {
			continue
		}
		d.read = e.Seq
		if _, gone := withdrawn[e.Seq]; !gone {
			d.flights = append(d.flights, d.flightLocked(e))
		}
	}
	d.read, d.more = max(d.read, page.Through), page.More
	for seq := range withdrawn {
		if seq <= d.read {
			delete(withdrawn, seq)
		}
	}
}

// flightLocked returns the flight of an entry that was read. One that was in flight before the mailbox was
// attached anew goes on: the peer has it, or has answered it already.
func (d *delivery) flightLocked(e broker.Entry) *flight {
	f := d.carried[e.Message.MID]
	if f == nil {
		return &flight{entry: e}
	}
	delete(d.carried, e.Message.MID)
	f.entry.Seq, f.entry.Expires, f.entry.Retain = e.Seq, e.Expires, e.Retain
	if f.phase >= decided {
		f.phase, f.outcome.Seq = decided, e.Seq
	} else {
		f.dirty = true // the store may not know of these pushes
	}
	return f
}

// lostLocked notes that the mailbox is no longer ours. A store that was closed has a successor, if it was a
// reload, and one that has forgotten us takes us again; the worker sees to both.
func (d *delivery) lostLocked(err error) {
	if d.tenure.lost == nil {
		d.tenure.lost = err
	}
	if errors.Is(err, broker.ErrFenced) {
		g := wire.Goodbye{Code: TakenOver.String()}
		d.s.goodbyeLocked(TakenOver, g)
		if d.s.late {
			d.s.wakeReaderLocked() // there is nothing to wait for any more
		}
		return
	}
	d.wakeLocked()
}

// ahead is how many messages are held here at most. More than the window, so that the next is there when the peer has
// acknowledged one, and that a page is worth its while.
func (d *delivery) ahead() int { return 2 * d.window }

// attachOptionsLocked says how to take the mailbox, with room for so many messages on top.
func (d *delivery) attachOptionsLocked(more int) broker.AttachOptions {
	return broker.AttachOptions{
		Mode: d.how.Mode, Window: d.window, Limit: d.ahead() + more, Bytes: pageBytes, Address: d.s.conn.RemoteAddr().String(),
	}
}

// removeLocked takes a flight out. A fresh slice is not needed: only holders of s.mu see it.
func (d *delivery) removeLocked(i int) {
	d.flights = append(d.flights[:i], d.flights[i+1:]...)
}

// wakeLocked has the worker look at what is to be done.
func (d *delivery) wakeLocked() {
	if d.working || d.closed || d.s.channel == nil { // channel: the first wake is enter's
		return
	}
	d.working = true
	d.worker.Add(1)
	go d.work()
}

// wake is wakeLocked for timers.
func (d *delivery) wake() {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.wakeLocked()
}

// close settles what is decided, notes the counts of the rest, and gives the mailbox up, once. The session ends
// or has ended, and its writer is gone.
func (d *delivery) close() {
	s := d.s
	s.mu.Lock()
	if d.closed {
		s.mu.Unlock()
		return
	}
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
	s.mu.Unlock()
	d.cancel()
	d.worker.Wait()

	s.mu.Lock()
	box, tenure, standing := d.box, d.tenure, d.standing
	lost := tenure != nil && tenure.lost != nil
	d.drainLocked(time.Now()) // a peer that took everything and left has got it
	finals, counts := d.remainsLocked()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if standing {
		d.leaveLine(ctx, tenure)
		return
	}
	if box == nil || lost {
		return
	}
	// What cannot be settled now is pushed again later: at least once.
	if len(finals) > 0 {
		if _, err := box.Settle(ctx, finals); err != nil && !errors.Is(err, broker.ErrUnavailable) {
			s.hub.storeFailed(s, err)
		}
	}
	if err := box.Detach(ctx, counts); err != nil && !lostAlready(err) {
		s.hub.storeFailed(s, err)
	}
}

// lostAlready reports whether a store's error says that the mailbox is no longer ours.
func lostAlready(err error) bool {
	return errors.Is(err, broker.ErrFenced) || errors.Is(err, broker.ErrForgotten) || errors.Is(err, broker.ErrClosed)
}

// remainsLocked returns what is decided and not stored, and the counts that this session changed. The
// first message in flight counts the end of the socket, if it may have caused it.
func (d *delivery) remainsLocked() (finals, counts []broker.Outcome) {
	first := d.s.end.death()
	for _, f := range d.flights {
		switch {
		case f.phase >= decided:
			finals = append(finals, f.outcome)
			continue
		case first && f.phase == pushed:
			first = false
			if f.entry.Deaths++; f.entry.Deaths >= d.how.CrashLimit {
				f.die(broker.DeadCrashes, "")
				finals = append(finals, f.outcome)
				continue
			}
		case !f.pushedHere && !f.dirty:
			continue
		}
		counts = append(counts, f.counts())
	}
	return finals, counts
}

// matches reports whether one of an endpoint's regexps, which may be missing, matches a plain peer's frame.
func matches(r *regexp.Regexp, frame []byte) bool { return r != nil && r.Match(frame) }
