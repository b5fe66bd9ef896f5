//go:build unix

package integration

import (
	"fmt"
	"sync"
	"testing"
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

// findings are what a trace shows.
type findings struct {
	accepted, delivered, duplicates int
	lost                            int // accepted, and no client has ever acknowledged it
	disordered                      int // received for the first time after a later one
	invented                        int // received, and nobody sent it
	gap                             time.Duration
}

func (f findings) String() string {
	return fmt.Sprintf("accepted %d, delivered %d, duplicates %d, lost %d, out of order %d, invented %d, worst gap %.2fs",
		f.accepted, f.delivered, f.duplicates, f.lost, f.disordered, f.invented, f.gap.Seconds())
}

func (f findings) faults() int { return f.lost + f.disordered + f.invented }

// message is one message of a trace.
type tracedMessage struct {
	destination string
	n           int
}

// check reads a trace to its end.
func (tr *trace) check() (f findings) {
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
				f.invented++
			case !m.firstHeard.IsZero():
				f.duplicates++
			default:
				m.firstHeard = e.at
				f.delivered++
				if last, any := highest[e.destination]; any && e.n < last {
					f.disordered++
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
		f.accepted++
		if !m.acked {
			f.lost++
		}
		if !m.firstHeard.IsZero() {
			f.gap = max(f.gap, m.firstHeard.Sub(m.accepted))
		}
	}
	return f
}

// The checker must be able to find what it looks for.
func TestTraceFindsPlantedFaults(t *testing.T) {
	began := time.Now()
	line := func(kind eventKind, n int) event { return event{kind, "d", n, began} }
	whole := func(n int) []event {
		return []event{line(sent, n), line(accepted, n), line(received, n), line(acked, n)}
	}
	join := func(parts ...[]event) (all []event) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	late := event{received, "d", 0, began.Add(3 * time.Second)}
	for _, c := range []struct {
		name   string
		events []event
		want   string
	}{
		{"clean", join(whole(0), whole(1)), "accepted 2, delivered 2, duplicates 0, lost 0, out of order 0, invented 0, worst gap 0.00s"},
		{"received before the answer", []event{line(sent, 0), line(received, 0), line(acked, 0), line(accepted, 0)},
			"accepted 1, delivered 1, duplicates 0, lost 0, out of order 0, invented 0, worst gap 0.00s"},
		{"loss", join(whole(0), []event{line(sent, 1), line(accepted, 1)}, whole(2)),
			"accepted 3, delivered 2, duplicates 0, lost 1, out of order 0, invented 0, worst gap 0.00s"},
		{"received and never acknowledged", []event{line(sent, 0), line(accepted, 0), line(received, 0)},
			"accepted 1, delivered 1, duplicates 0, lost 1, out of order 0, invented 0, worst gap 0.00s"},
		{"not accepted", []event{line(sent, 0)}, "accepted 0, delivered 0, duplicates 0, lost 0, out of order 0, invented 0, worst gap 0.00s"},
		{"reordering", join([]event{line(sent, 0), line(accepted, 0), line(sent, 1), line(accepted, 1)},
			[]event{line(received, 1), line(acked, 1), line(received, 0), line(acked, 0)}),
			"accepted 2, delivered 2, duplicates 0, lost 0, out of order 1, invented 0, worst gap 0.00s"},
		{"a later redelivery of an earlier one", join(whole(0), whole(1), []event{line(received, 0)}),
			"accepted 2, delivered 2, duplicates 1, lost 0, out of order 0, invented 0, worst gap 0.00s"},
		{"invention", join(whole(0), []event{line(received, 7)}),
			"accepted 1, delivered 1, duplicates 0, lost 0, out of order 0, invented 1, worst gap 0.00s"},
		{"another's message", join(whole(0), []event{{received, "other", 0, began}}),
			"accepted 1, delivered 1, duplicates 0, lost 0, out of order 0, invented 1, worst gap 0.00s"},
		{"gap", []event{line(sent, 0), line(accepted, 0), late, line(acked, 0)},
			"accepted 1, delivered 1, duplicates 0, lost 0, out of order 0, invented 0, worst gap 3.00s"},
	} {
		if got := (&trace{events: c.events}).check().String(); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
