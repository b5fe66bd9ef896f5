package brokertest

import (
	"errors"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

func (s *sequence) append(t *rapid.T) {
	store, _ := s.handle(t)
	box := s.anyBox(t)
	key := rapid.SampledFrom([]string{"", "", "k1", "k2"}).Draw(t, "key")
	fingerprint := rapid.SampledFrom([]string{"", "f1", "f2"}).Draw(t, "fingerprint")
	m := messageIn(s.channel, box.id, key, rapid.StringN(0, 20, -1).Draw(t, "body"))
	o := broker.AppendOptions{Key: key, Fingerprint: []byte(fingerprint)}
	switch rapid.SampledFrom([]string{"never", "never", "soon", "past"}).Draw(t, "expires") {
	case "soon":
		o.TTL = propertyTTL
	case "past":
		o.Expires = store.Now().Add(-time.Second)
	}
	first, want := s.expectAppend(box, key, fingerprint, o)
	mid := m.MID
	body := string(m.Body)
	got, err := store.Append(t.Context(), m, o)
	if !errors.Is(err, want) {
		t.Fatalf("append: %v, want %v", err, want)
	}
	switch {
	case err != nil:
	case got.Duplicate != (first != nil) || first != nil && got.MID != first.mid || first == nil && got.MID != mid:
		t.Fatalf("append: %+v; the first with that key is %+v", got, first)
	case first == nil:
		s.appended(box, &modelMessage{mid: mid, id: box.id, key: key, fingerprint: fingerprint, body: body, expires: o.TTL > 0, state: broker.StateStored})
	}
}

func (s *sequence) attach(t *rapid.T) {
	store, node := s.handle(t)
	box := s.anyBox(t)
	window := rapid.IntRange(1, 4).Draw(t, "window")
	limit := rapid.IntRange(1, propertyLimit).Draw(t, "limit")
	refuses := rapid.Bool().Draw(t, "refuses to withdraw")
	o := &owner{withdraw: func(uint64, string) bool { return !refuses }}
	got, page, err := store.Attach(t.Context(), s.channel, box.id, o, broker.AttachOptions{Window: window, Limit: limit, Bytes: 1 << 20})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	box.attached(&tenant{box: got, owner: o, window: window, node: node, refuses: refuses, fence: got.Fence()})
	if len(box.tenants) > 1 && got.Fence() <= box.tenants[len(box.tenants)-2].fence {
		t.Fatalf("the fence did not rise: %d", got.Fence())
	}
	s.comparePage(t, box, page.Entries, limit)
}

func (s *sequence) read(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	limit := rapid.IntRange(1, propertyLimit).Draw(t, "limit")
	page, err := tenant.box.Read(t.Context(), 0, limit, 1<<20)
	if tenant != box.owner {
		s.mustBeFenced(t, "read", box, err)
		return
	}
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	s.comparePage(t, box, page.Entries, limit)
}

// mustBeFenced: who is no owner any more is told so, or that his handle is closed. If an owner after him has come and
// gone, nothing may be left of either, and he may be told that he is forgotten.
func (s *sequence) mustBeFenced(t *rapid.T, what string, box *modelBox, err error) {
	if errors.Is(err, broker.ErrFenced) || errors.Is(err, broker.ErrClosed) || box.givenUp && errors.Is(err, broker.ErrForgotten) {
		return
	}
	t.Fatalf("%s by a former owner: %v, want ErrFenced or ErrClosed", what, err)
}

func (s *sequence) settle(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	known := s.ever(t, box)
	o := broker.Outcome{
		Seq: known.seq, MID: known.mid,
		State: rapid.SampledFrom([]broker.State{broker.StateAcked, broker.StateAcked, broker.StateDead, broker.StateStored}).Draw(t, "state"),
		Counts: broker.Counts{
			Attempts: known.counts.Attempts + rapid.IntRange(1, 2).Draw(t, "attempts"), Failures: rapid.IntRange(0, 3).Draw(t, "failures"),
		},
	}
	switch o.State {
	case broker.StateDead:
		o.Reason, o.Detail = broker.DeadAttempts, "gave up"
	case broker.StateAcked:
		o.Reply = []byte(rapid.SampledFrom([]string{"", `{"ok":true}`}).Draw(t, "reply"))
	}
	if rapid.IntRange(0, 5).Draw(t, "wrong") == 0 {
		o.Seq += 1 << 40 // of no message
	}
	verdicts, err := tenant.box.Settle(t.Context(), []broker.Outcome{o})
	if tenant != box.owner {
		s.mustBeFenced(t, "settle", box, err)
		return
	}
	if err != nil || len(verdicts) != 1 {
		t.Fatalf("settle: %v, %v", verdicts, err)
	}
	want := broker.Gone
	if o.Seq == known.seq && !known.state.Finished() {
		want = broker.Settled
		s.settled(box, known, o)
	}
	if verdicts[0] != want {
		t.Fatalf("settle %+v: verdict %d, want %d", o, verdicts[0], want)
	}
}

func (s *sequence) detach(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	var counts []broker.Outcome
	if len(box.messages) > 0 && box.messages[0].seq > 0 && rapid.Bool().Draw(t, "counts") {
		first := box.messages[0]
		counts = []broker.Outcome{{Seq: first.seq, MID: first.mid, State: broker.StateStored, Counts: broker.Counts{Attempts: first.counts.Attempts + 1}}}
	}
	err := tenant.box.Detach(t.Context(), counts)
	if tenant != box.owner {
		s.mustBeFenced(t, "detach", box, err)
		return
	}
	if err != nil {
		t.Fatalf("detach: %v", err)
	}
	for _, o := range counts {
		box.messages[0].counts = o.Counts
	}
	box.owner, box.givenUp = nil, true
}

func (s *sequence) cancel(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.any(t)
	box := s.box(m.id)
	if box.owner != nil && box.owner.crashed {
		t.Skip("nobody answers for a crashed owner")
	}
	want := broker.CancelTooLate
	if !m.state.Finished() && m.counts.Attempts == 0 && (box.owner == nil || !box.owner.refuses) {
		want = broker.CancelDone
	}
	got, err := store.Cancel(t.Context(), m.mid)
	if err != nil || got != want {
		t.Fatalf("cancel of %+v: %d, %v; want %d", m, got, err, want)
	}
	if want == broker.CancelDone {
		m.state = broker.StateCancelled
		box.remove(m)
	}
}

func (s *sequence) resend(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.letter(t)
	box := s.box(m.id)
	var want error
	switch {
	case m.state != broker.StateDead:
		want = broker.ErrNotFound
	case len(box.messages) >= propertyLimit:
		want = broker.ErrMailboxFull
	}
	if _, err := store.Resend(t.Context(), m.mid, 0); !errors.Is(err, want) {
		t.Fatalf("resend of %+v: %v, want %v", m, err, want)
	}
	if want == nil {
		m.state, m.reason, m.detail, m.reply, m.counts, m.expires, m.seq = broker.StateStored, "", "", "", broker.Counts{}, false, 0
		box.messages = append(box.messages, m)
	}
}

func (s *sequence) drop(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.letter(t)
	err := store.Drop(t.Context(), m.mid)
	if m.state != broker.StateDead {
		if !errors.Is(err, broker.ErrNotFound) {
			t.Fatalf("drop of %+v: %v, want ErrNotFound", m, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("drop: %v", err)
	}
	m.state = broker.StateErased
}

// propertyTTL is the deadline of messages that have one, and less than what passes in timePasses.
const propertyTTL = 10 * time.Minute

// timePasses ends all messages that have a deadline, and nothing else.
func (s *sequence) timePasses(t *rapid.T) {
	due := slices.ContainsFunc(s.all, func(m *modelMessage) bool { return m.expires && !m.state.Finished() })
	if s.w.b.Advance == nil || s.passed == 3 || !due {
		t.Skip("nothing is due")
	}
	s.passed++
	s.w.b.Advance(2 * propertyTTL)
	for _, m := range s.all {
		if !m.expires || m.state.Finished() {
			continue
		}
		m.state = broker.StateExpired
		s.box(m.id).remove(m)
		s.eventually(t, m)
	}
}

// eventually waits for the store to see what the model says of a message.
func (s *sequence) eventually(t *rapid.T, m *modelMessage) {
	var r broker.Record
	var err error
	seen := s.until(func() bool { // its sweeper has a pace of its own
		r, err = s.w.handles[0].Lookup(t.Context(), m.mid)
		return err == nil && r.State == m.state
	})
	if !seen {
		t.Fatalf("the store has %+v, %v; want %s", r, err, m.state)
	}
}

// crash ends a node, and begins another one in its place.
func (s *sequence) crash(t *rapid.T) {
	store, node := s.handle(t)
	if s.w.b.Crash != nil {
		s.w.b.Crash(store)
	}
	_ = store.Close()
	s.w.handles[node] = s.w.b.Open()
	s.prepare(t, node)
	s.crashed(node)
}
