package relaytest

import (
	"fmt"
	"sync"
	"time"
)

// trace is what publishers and clients of a run wrote down. Nothing in it comes from the relay.
type trace struct {
	mu     sync.Mutex
	events []event
}

// event is one line of a trace. The messages of a destination are numbered by its only publisher, who
// posts the next one when the one before was accepted.
type event struct {
	kind        eventKind
	destination string
	n           int
	at          time.Time
}

type eventKind uint8

const (
	sent     eventKind = iota // a publisher is about to post it, perhaps again
	accepted                  // it was answered 2xx
	received                  // a client read it
	acked                     // a client has written its acknowledgement
)

func (tr *trace) add(kind eventKind, destination string, n int) {
	at := time.Now()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, event{kind, destination, n, at})
}

// Findings are what a trace shows.
type Findings struct {
	Accepted, Delivered, Duplicates int
	Lost                            int           // accepted, and no client has ever acknowledged it
	Disordered                      int           // received for the first time after a later one
	Invented                        int           // received, and nobody sent it
	Gap                             time.Duration // the longest that an accepted message took to be received
}

func (f Findings) String() string {
	return fmt.Sprintf("accepted %d, delivered %d, duplicates %d, lost %d, out of order %d, invented %d, worst gap %.2fs",
		f.Accepted, f.Delivered, f.Duplicates, f.Lost, f.Disordered, f.Invented, f.Gap.Seconds())
}

// Faults counts what broke a promise.
func (f Findings) Faults() int { return f.Lost + f.Disordered + f.Invented }

// tracedMessage is one message of a trace.
type tracedMessage struct {
	destination string
	n           int
}

// check reads a trace to its end.
func (tr *trace) check() (f Findings) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	type fate struct {
		sent, acked          bool
		accepted, firstHeard time.Time
	}
	fates := make(map[tracedMessage]*fate)
	highest := make(map[string]int)
	of := func(e event) *fate {
		m := tracedMessage{e.destination, e.n}
		if fates[m] == nil {
			fates[m] = new(fate)
		}
		return fates[m]
	}
	for _, e := range tr.events {
		switch m := of(e); e.kind {
		case sent:
			m.sent = true
		case accepted:
			m.accepted = e.at
		case acked:
			m.acked = true
		case received:
			switch {
			case !m.sent:
				f.Invented++
			case !m.firstHeard.IsZero():
				f.Duplicates++
			default:
				m.firstHeard = e.at
				f.Delivered++
				if last, any := highest[e.destination]; any && e.n < last {
					f.Disordered++
				} else {
					highest[e.destination] = e.n
				}
			}
		}
	}
	for _, m := range fates {
		if m.accepted.IsZero() {
			continue
		}
		f.Accepted++
		if !m.acked {
			f.Lost++
		}
		if !m.firstHeard.IsZero() {
			f.Gap = max(f.Gap, m.firstHeard.Sub(m.accepted))
		}
	}
	return f
}

// silence returns the longest time from a moment on in which one of these destinations received nothing new. After its last
// message it is silent for good, and that is not counted.
func (tr *trace) silence(from time.Time, destinations []string) (longest time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	last := make(map[string]time.Time)
	for _, d := range destinations {
		last[d] = from
	}
	heard := make(map[tracedMessage]bool)
	for _, e := range tr.events {
		m := tracedMessage{e.destination, e.n}
		if e.kind != received || heard[m] {
			continue
		}
		heard[m] = true
		if before, concerned := last[e.destination]; concerned && e.at.After(before) {
			longest = max(longest, e.at.Sub(before))
			last[e.destination] = e.at
		}
	}
	return longest
}

// heardSince returns the destinations that have acknowledged a message that was accepted after a moment.
func (tr *trace) heardSince(from time.Time) map[string]bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	young, heard := make(map[tracedMessage]bool), make(map[tracedMessage]bool)
	found := make(map[string]bool)
	for _, e := range tr.events {
		m := tracedMessage{e.destination, e.n}
		switch {
		case e.kind == accepted && e.at.After(from):
			young[m] = true
		case e.kind == acked:
			heard[m] = true
		}
		if young[m] && heard[m] {
			found[e.destination] = true
		}
	}
	return found
}

// missing lists what check counts as lost.
func (tr *trace) missing() (all []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	gone := make(map[tracedMessage]bool)
	for _, e := range tr.events {
		if e.kind == acked {
			gone[tracedMessage{e.destination, e.n}] = true
		}
	}
	for _, e := range tr.events {
		if e.kind == accepted && !gone[tracedMessage{e.destination, e.n}] {
			all = append(all, fmt.Sprintf("%s/%d", e.destination, e.n))
		}
	}
	return all
}

// history lists events of a destination.
func (tr *trace) history(destination string, first, last int) (lines []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	names := [...]string{sent: "sent", accepted: "accepted", received: "received", acked: "acked"}
	for _, e := range tr.events {
		if e.destination == destination && e.n >= first && e.n <= last {
			lines = append(lines, fmt.Sprintf("%s %s/%d %s", e.at.Format("15:04:05.000"), e.destination, e.n, names[e.kind]))
		}
	}
	return lines
}
