package relaytest

import (
	"fmt"
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

// So must what is asked about a part of a run.
func TestTraceOfAPart(t *testing.T) {
	began := time.Now()
	var tr trace
	at := func(seconds int, d string, n int, kinds ...eventKind) {
		for _, k := range kinds {
			tr.events = append(tr.events, event{k, d, n, began.Add(time.Duration(seconds) * time.Second)})
		}
	}
	at(0, "a", 0, sent, accepted, received, acked)
	at(1, "b", 0, sent, accepted, received, acked)
	at(2, "a", 1, sent, accepted)
	at(4, "a", 0, received) // a duplicate breaks no silence
	at(6, "a", 1, received)
	at(7, "b", 1, sent, accepted, received, acked)

	for _, c := range []struct {
		from int
		of   []string
		want time.Duration
	}{
		{0, []string{"a"}, 6 * time.Second},
		{3, []string{"a"}, 3 * time.Second},
		{0, []string{"a", "b"}, 6 * time.Second},
		{1, []string{"b"}, 6 * time.Second},
		{5, []string{"b", "a"}, 2 * time.Second},
		{9, []string{"a"}, 0},
	} {
		if got := tr.silence(began.Add(time.Duration(c.from)*time.Second), c.of); got != c.want {
			t.Errorf("the silence of %v from %d on is %v, want %v", c.of, c.from, got, c.want)
		}
	}
	if got := fmt.Sprint(tr.missing()); got != "[a/1]" {
		t.Errorf("missing are %s", got)
	}
	if got := fmt.Sprint(tr.heardSince(began.Add(-1)), tr.heardSince(began.Add(time.Second))); got != "map[a:true b:true] map[b:true]" {
		t.Errorf("heard have %s", got)
	}
	if got := tr.history("a", 1, 1); len(got) != 3 {
		t.Errorf("the history is %q", got)
	}
}
