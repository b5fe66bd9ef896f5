package relaytest

import (
	"testing"
	"time"
)

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
