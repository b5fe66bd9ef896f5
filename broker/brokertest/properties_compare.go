package brokertest

import (
	"errors"
	"fmt"
	"maps"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// comparePage compares what the owner of a mailbox was given with the model, and learns the sequences.
func (s *sequence) comparePage(t *rapid.T, box *modelBox, page []broker.Entry, after uint64, limit, bytes int) {
	want := box.page(after, limit, bytes)
	for _, m := range want[:min(len(page), len(want))] {
		bytes -= len(m.body)
	}
	// At the bound an empty message has room, and may be left to the next page all the same.
	atBound := len(page) > 0 && len(page) < len(want) && bytes == 0
	if len(page) != len(want) && !atBound {
		t.Fatalf("%d entries in the page of %s, want %d", len(page), box.id, len(want))
	}
	last := after
	for i, e := range page {
		m := want[i]
		if e.Message.MID != m.mid || string(e.Message.Body) != m.body || e.Message.Ref != m.ref || e.Message.Key != m.key || e.Message.ID != m.id {
			t.Fatalf("entry %d of the page is %+v, want %+v", i, e.Message, m)
		}
		if !sameCounts(e.Counts, m.counts) || e.Expires.IsZero() != (m.expires == 0) || e.Retain.IsZero() {
			t.Fatalf("entry %d of the page is %+v, want %+v", i, e, m)
		}
		if e.Seq <= last || m.seq != 0 && m.seq != e.Seq {
			t.Fatalf("entry %d of the page has the sequence %d after %d, and was %d before", i, e.Seq, last, m.seq)
		}
		m.seq, last = e.Seq, e.Seq
	}
	if o := box.owner; last > o.read {
		o.read, o.due = last, false
	}
}

func sameCounts(a, b broker.Counts) bool {
	return a.Attempts == b.Attempts && a.Failures == b.Failures && a.Deaths == b.Deaths && a.NotBefore.Equal(b.NotBefore)
}

// compareSome compares a mailbox, if somebody has it, and a message.
func (s *sequence) compareSome(t *rapid.T) {
	if len(s.all) == 0 {
		return
	}
	store, _ := s.handle(t)
	s.compareMessage(t, store, s.any(t))
	if box := s.anyBox(t); box.owned() {
		page, err := box.owner.box.Read(t.Context(), 0, 100, 1<<20)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		s.comparePage(t, box, page, 0, 100, 1<<20)
	}
}

// compareMessage compares a record, and what is kept of the message.
func (s *sequence) compareMessage(t *rapid.T, store broker.Store, m *modelMessage) {
	r, err := store.Lookup(t.Context(), m.mid)
	if errors.Is(err, broker.ErrNotFound) && !s.known(m) {
		return
	}
	if err != nil {
		t.Fatalf("lookup of %+v: %v", m, err)
	}
	s.compareRecord(t, r, m)
	content, err := store.Content(t.Context(), m.mid)
	if m.state.Finished() && m.state != broker.StateDead {
		if !errors.Is(err, broker.ErrNotFound) {
			t.Fatalf("content of %+v: %v, want ErrNotFound", m, err)
		}
	} else if err != nil || content.MID != m.mid || string(content.Body) != m.body || content.Ref != m.ref || content.Key != m.key {
		t.Fatalf("content of %+v: %+v, %v", m, content, err)
	}
}

func (s *sequence) compareRecord(t *rapid.T, r broker.Record, m *modelMessage) {
	want := broker.Record{
		MID: m.mid, Channel: s.channel, ID: m.id, Ref: m.ref, State: m.state, Reason: m.reason, Detail: m.detail,
		Attempts: m.counts.Attempts, Stored: r.Stored, Finished: r.Finished, Expires: r.Expires, Node: r.Node,
	}
	got := r
	got.Reply = nil
	if m.state == broker.StateErased { // what was known of the letter may be kept, or not
		want.Reason, want.Detail, want.Attempts = r.Reason, r.Detail, r.Attempts
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) || string(r.Reply) != m.reply {
		t.Fatalf("the record is %+v, want %+v", r, m)
	}
	if r.Stored.IsZero() || r.Finished.IsZero() == m.state.Finished() || !m.state.Finished() && r.Expires.IsZero() != (m.expires == 0) {
		t.Fatalf("the times of the record are wrong: %+v, want %+v", r, m)
	}
}

// compareAll compares all that can be seen.
func (s *sequence) compareAll(t *rapid.T) {
	store, _ := s.handle(t)
	for _, m := range s.all {
		s.compareMessage(t, store, m)
	}
	s.compareFound(t, store)
	s.compareLetters(t, store, "", "")
	s.compareLetters(t, store, "01", "")
	s.compareLetters(t, store, "", broker.DeadTerminated)
	s.compareUsage(t, store)
	s.compareEndings(t)
	s.compareTenants(t)
	for _, box := range s.boxes {
		got, page, err := store.Attach(t.Context(), s.channel, box.id, new(owner), broker.AttachOptions{Window: 1, Limit: 100, Bytes: 1 << 20})
		if err != nil {
			t.Fatalf("attach: %v", err)
		}
		box.attached(&tenant{box: got, store: store, window: 1})
		s.comparePage(t, box, page, 0, 100, 1<<20)
		if err := got.Detach(t.Context(), nil); err != nil {
			t.Fatalf("detach: %v", err)
		}
	}
}

// compareFound: by a ref all its messages are found, newest first.
func (s *sequence) compareFound(t *rapid.T, store broker.Store) {
	const ref = "r1"
	limit := rapid.IntRange(1, 20).Draw(t, "limit")
	found, err := store.Find(t.Context(), s.channel, ref, limit)
	if err != nil || len(found) > limit {
		t.Fatalf("find: %d records, want at most %d; %v", len(found), limit, err)
	}
	byMID := make(map[string]broker.Record)
	for i, r := range found {
		if i > 0 && r.Stored.After(found[i-1].Stored) {
			t.Fatalf("find: record %d is newer than the one before", i)
		}
		byMID[r.MID] = r
	}
	if len(byMID) != len(found) {
		t.Fatalf("find: a record comes twice: %+v", found)
	}
	for _, m := range s.all {
		r, ok := byMID[m.mid]
		switch {
		case m.ref != ref:
			continue
		case ok:
			s.compareRecord(t, r, m)
			delete(byMID, m.mid)
		case s.known(m) && len(found) < limit:
			t.Fatalf("find: %+v is missing", m)
		}
	}
	if len(byMID) > 0 {
		t.Fatalf("find: records of other messages: %+v", byMID)
	}
}

// compareLetters compares the dead letters of a destination that have a reason, page by page; both may be empty.
func (s *sequence) compareLetters(t *rapid.T, store broker.Store, id string, reason broker.DeadReason) {
	want := make(map[string]*modelMessage)
	for _, m := range s.letters() {
		if (id == "" || m.id == id) && (reason == "" || m.reason == reason) {
			want[m.mid] = m
		}
	}
	q := broker.DeadQuery{ID: id, Reason: reason, Limit: rapid.IntRange(1, 3).Draw(t, "letters of a page")}
	var last broker.DeadLetter
	for more := true; more; {
		page, err := store.DeadLetters(t.Context(), s.channel, q)
		if err != nil || len(page.Letters) > q.Limit {
			t.Fatalf("dead letters: %d, want at most %d; %v", len(page.Letters), q.Limit, err)
		}
		for _, l := range page.Letters {
			m := want[l.MID]
			if m == nil || l.Finished.Before(last.Finished) || l.Size != len(m.body) || l.ContentType != "text/plain" {
				t.Fatalf("dead letter %+v after %+v, want %+v", l, last, m)
			}
			s.compareRecord(t, l.Record, m)
			delete(want, l.MID)
			last = l
		}
		q.After, more = page.Next, page.Next != ""
	}
	if len(want) > 0 {
		t.Fatalf("dead letters are missing: %v", want)
	}
}

// compareUsage compares counts. Those of a store with very many channels may be late, so it is left out then.
func (s *sequence) compareUsage(t *rapid.T, store broker.Store) {
	if s.w.sequences > 400 {
		return
	}
	usage, err := store.Usage(t.Context())
	if err != nil {
		t.Fatalf("usage: %v", err)
	}
	got := usage[s.channel]
	want := broker.Usage{Records: got.Records, Oldest: got.Oldest, Dead: len(s.letters())}
	known := 0
	for _, m := range s.all {
		if s.known(m) {
			known++
		}
	}
	for _, box := range s.boxes {
		if len(box.messages) > 0 {
			want.Mailboxes++
		}
		want.Pending += len(box.messages)
		for _, m := range box.messages {
			want.Bytes += int64(len(m.body))
		}
	}
	if got != want || got.Records < known || got.Records > len(s.all) || got.Oldest.IsZero() != (want.Pending == 0) {
		t.Fatalf("the usage is %+v, want %+v with %d to %d records", got, want, known, len(s.all))
	}
}

// compareEndings: together the handles have counted every end, once. What one counted that is gone is not known.
func (s *sequence) compareEndings(t *rapid.T) {
	got := make(map[broker.Ending]uint64)
	for _, store := range s.w.handles {
		for e, n := range store.Endings() {
			if e.Channel == s.channel {
				e.Channel = ""
				got[e] += n
			}
		}
	}
	if s.ended == 0 && !maps.Equal(got, s.ends) {
		t.Fatalf("the endings are %v, want %v", got, s.ends)
	}
	for e, n := range got {
		if n > s.ends[e] {
			t.Fatalf("%+v is counted %d times, want %d", e, n, s.ends[e])
		}
	}
}

// compareTenants: who lost a mailbox has heard of it once, and who has one was rung if there is something new.
func (s *sequence) compareTenants(t *rapid.T) {
	for _, box := range s.boxes {
		for _, tenant := range box.tenants {
			s.until(t, func() error {
				err, wait := box.wrong(tenant)
				if err != nil && !wait {
					t.Fatal(err)
				}
				return err
			})
		}
	}
}
