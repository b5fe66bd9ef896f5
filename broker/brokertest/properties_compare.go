package brokertest

import (
	"context"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// comparePage compares a page with the beginning of the model's mailbox, and learns the sequences.
func (s *sequence) comparePage(t *rapid.T, box *modelBox, page []broker.Entry, limit int) {
	want := box.messages[:min(limit, len(box.messages))]
	if len(page) != len(want) {
		t.Fatalf("%d entries in the page, want %d", len(page), len(want))
	}
	for i, e := range page {
		m := want[i]
		if e.Message.MID != m.mid || string(e.Message.Body) != m.body || e.Counts != m.counts || i > 0 && e.Seq <= page[i-1].Seq {
			t.Fatalf("entry %d is %+v of %+v, want %+v", i, e, e.Message, m)
		}
		if m.seq != 0 && m.seq != e.Seq {
			t.Fatalf("the sequence of %s was %d, and is %d", m.mid, m.seq, e.Seq)
		}
		m.seq = e.Seq
	}
}

// compareAll compares all that can be seen.
func (s *sequence) compareAll(t *rapid.T) {
	store, _ := s.handle(t)
	dead := make(map[string]bool)
	for _, m := range s.all {
		r, err := store.Lookup(t.Context(), m.mid)
		if err != nil || r.State != m.state || r.Reason != m.reason || r.Detail != m.detail || string(r.Reply) != m.reply || r.ID != m.id {
			t.Fatalf("the record is %+v, %v; want %+v", r, err, m)
		}
		if m.state.Finished() && m.state != broker.StateErased && r.Attempts != m.counts.Attempts {
			t.Fatalf("the record has %d attempts, want %+v", r.Attempts, m)
		}
		dead[m.mid] = m.state == broker.StateDead
	}
	page, err := store.DeadLetters(t.Context(), s.channel, broker.DeadQuery{})
	if err != nil {
		t.Fatalf("dead letters: %v", err)
	}
	for _, l := range page.Letters {
		if !dead[l.MID] {
			t.Fatalf("%s is a dead letter, and should not be", l.MID)
		}
		delete(dead, l.MID)
	}
	for mid, missing := range dead {
		if missing {
			t.Fatalf("%s should be a dead letter", mid)
		}
	}
	for _, box := range s.boxes {
		got, page, err := store.Attach(context.Background(), s.channel, box.id, new(owner), broker.AttachOptions{Window: 1, Limit: 100, Bytes: 1 << 20})
		if err != nil {
			t.Fatalf("attach: %v", err)
		}
		box.attached(&tenant{box: got, window: 1})
		s.comparePage(t, box, page.Entries, 100)
		if err := got.Detach(context.Background(), nil); err != nil {
			t.Fatalf("detach: %v", err)
		}
	}
}
