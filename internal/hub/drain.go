package hub

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// lateAcks is how long a session that has said goodbye goes on taking acknowledgements. What is not acknowledged by then is
// pushed again, on the client's next socket.
const lateAcks = 5 * time.Second

// minDrainRate is how many sockets a second are told at least when a process ends.
const minDrainRate = 1000

// drains is the drain under way, if there is one.
type drains struct {
	mu   sync.Mutex
	stop context.CancelFunc
}

// Drain refuses new sessions, says goodbye to all at so many a second, and waits until all have ended. When ctx ends first,
// it cuts off the rest. rate 0 is 1000, or as many as are needed to tell all in half of the time that there is.
func (h *Hub) Drain(ctx context.Context, spread time.Duration, rate int) {
	h.draining.Store(true)
	if rate <= 0 {
		rate = minDrainRate
		if deadline, ok := ctx.Deadline(); ok {
			half := max(time.Until(deadline)/2, time.Millisecond)
			rate = max(rate, int(time.Duration(h.registered.Load())*time.Second/half))
		}
	}
	h.DismissAt(ctx, rate, Shutdown, spread, everybody)
	if h.Wait(ctx) == nil {
		return
	}
	for s := range h.All {
		s.abort(Shutdown, ctx.Err())
	}
}

// Empty begins to drain while the process goes on: new sessions are refused, and those that are here are asked, rate of them a
// second, to go elsewhere. It returns at once, and how many that will be. Refill takes it back.
func (h *Hub) Empty(rate int, spread time.Duration) int {
	h.drains.mu.Lock()
	defer h.drains.mu.Unlock()
	if h.drains.stop != nil {
		h.drains.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.drains.stop = cancel
	h.draining.Store(true)
	go h.DismissAt(ctx, rate, Drained, spread, everybody)
	return int(h.registered.Load())
}

// Refill ends what Empty began: new sessions are taken again. It reports whether there was anything to end.
func (h *Hub) Refill() bool {
	h.drains.mu.Lock()
	defer h.drains.mu.Unlock()
	if h.drains.stop == nil {
		return false
	}
	h.drains.stop()
	h.drains.stop = nil
	h.draining.Store(false)
	return true
}

// Draining reports whether new sessions are refused because the node is leaving, and how many sessions there are.
func (h *Hub) Draining() (draining bool, left int) {
	return h.draining.Load(), int(h.registered.Load())
}

// Sockets returns how many connections are being served, registered or not.
func (h *Hub) Sockets() int { return int(h.sockets.Load()) }

func everybody(*Session) bool { return true }

// DismissAt is [Hub.Dismiss] at a pace: it says goodbye to rate sessions a second, and returns when all were told or ctx ends.
func (h *Hub) DismissAt(ctx context.Context, rate int, reason Reason, spread time.Duration, match func(*Session) bool) {
	began, told := time.Now(), 0
	rate = max(rate, 1)
	for s := range h.All {
		if !match(s) {
			continue
		}
		// In steps of a few milliseconds: a timer for each socket of a busy node would be late.
		if due := began.Add(time.Duration(told) * time.Second / time.Duration(rate)); time.Until(due) > 5*time.Millisecond || rate < 200 {
			timer := time.NewTimer(time.Until(due))
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
		told++
		s.goodbye(reason, wire.Goodbye{Code: reason.String(), Reconnect: true, AfterMS: int(jitter(spread).Milliseconds())})
	}
}

// awaitsAcks reports whether the peer of a session that says goodbye may still answer what is in flight.
func (s *Session) awaitsAcks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return false
	}
	switch s.end {
	case Shutdown, Drained, Isolated, ListenerRemoved, ChannelRemoved, ConfigPinned:
		return s.delivery != nil && !s.acksByDraining() && s.state == ending
	}
	return false // it has broken the rules, has left, or another socket has the destination
}

// takeLateAcks goes on reading after the goodbye, until all that is in flight is answered, the peer leaves, or the time is
// over. Its writer has ended.
func (s *Session) takeLateAcks() {
	s.mu.Lock()
	s.late = true
	s.mu.Unlock()
	until := time.Now().Add(lateAcks)
	for s.delivery.awaited() {
		frame, err := s.readFrame(s.e.MaxFrame, func(timedOut bool) (time.Time, bool) { return until, !timedOut })
		if err != nil || !s.lateFrame(frame) {
			break
		}
	}
	s.mu.Lock()
	s.late = false
	s.mu.Unlock()
}

// lateFrame takes what a peer says after the goodbye, and reports whether to go on.
func (s *Session) lateFrame(frame []byte) bool {
	if s.protocol == Plain {
		s.delivery.answered(frame)
		return true
	}
	if len(frame) == 0 {
		return true
	}
	r, err := wire.ParseRequest(frame)
	if err != nil {
		return false
	}
	switch r.Op {
	case wire.OpAck, wire.OpNack, wire.OpWorking:
		s.delivery.acknowledge(r)
	case wire.OpGoodbye:
		return false
	}
	return true
}

// awaited reports whether the peer has something to answer that would still count.
func (d *delivery) awaited() bool {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.s.state == ended || d.tenure.lost != nil && !errors.Is(d.tenure.lost, broker.ErrForgotten) {
		return false
	}
	for _, f := range d.flights {
		if f.phase == pushed {
			return true
		}
	}
	return false
}
