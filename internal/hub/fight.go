package hub

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

const (
	// A destination that was taken over fightTakes times in a row, each time from a socket that had it for less than
	// fightSpan, is fought for: the next socket waits fightMin, doubled for each further time up to fightMax. It is
	// forgotten after fightMemory without another one.
	fightTakes, fightSpan, fightMemory = 3, 10 * time.Second, time.Minute
	fightMin, fightMax                 = 250 * time.Millisecond, 10 * time.Second
	// maxFights bounds those that are known at once.
	maxFights = 4096
)

// fights knows which destinations sockets take from each other, such as two instances of a back end that have the same
// ID by mistake and come back whatever they are told. Undamped, they would spend all their time on that, and so would
// the store.
type fights struct {
	mu    sync.Mutex
	known map[destination]*fight
}

type destination struct{ channel, id string }

type fight struct {
	takes int
	last  time.Time
}

// taken notes that a destination was taken from a session that had it for so long, and whose peer was alive to close then: one
// that has vanished without a word, and comes back on a new socket, fights with nobody.
func (f *fights) taken(channel, id string, lasted time.Duration) {
	now, d := time.Now(), destination{channel, id}
	f.mu.Lock()
	defer f.mu.Unlock()
	if lasted > fightSpan+fightMax {
		delete(f.known, d)
		return
	}
	if f.known == nil {
		f.known = make(map[destination]*fight)
	}
	if f.known[d] == nil {
		f.forgetLocked(now)
		if len(f.known) >= maxFights {
			return
		}
		f.known[d] = new(fight)
	}
	f.known[d].takes++
	f.known[d].last = now
}

func (f *fights) forgetLocked(now time.Time) {
	for d, known := range f.known {
		if now.Sub(known.last) > fightMemory {
			delete(f.known, d)
		}
	}
}

// wait is how long a socket has to wait until it may register under an ID.
func (f *fights) wait(channel, id string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := destination{channel, id}
	known := f.known[d]
	if known == nil || known.takes < fightTakes {
		return 0
	}
	if now.Sub(known.last) > fightMemory {
		delete(f.known, d)
		return 0
	}
	return min(fightMin<<min(known.takes-fightTakes, 10), fightMax)
}

// coolDown has a socket wait that would go on with a fight. It ends early if the peer does.
func (s *Session) coolDown() *Refusal {
	wait := s.hub.fights.wait(s.e.Channel, s.id, time.Now())
	if wait == 0 {
		return nil
	}
	s.hub.channel(s.e.Channel).fights.Add(1)
	if s.hub.OnFight != nil {
		s.hub.OnFight(s.e.Channel, s.id, wait)
	}
	until := time.Now().Add(wait/2 + rand.N(wait/2+1))
	for len(s.in) < 2*maxHello {
		_, err := s.read(until)
		var netErr net.Error
		switch {
		case err == nil:
		case errors.As(err, &netErr) && netErr.Timeout():
			return nil
		default:
			s.abort(ClientClosed, err)
			return &Refusal{Reason: ClientClosed, Err: err}
		}
	}
	return &Refusal{Reason: FrameTooLarge, Code: 413, Err: wire.ErrFrameTooLarge, Text: "too much was sent before the welcome"}
}
