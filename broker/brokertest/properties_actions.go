package brokertest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// append stores a new message, or one whose key was used, or one that is refused.
func (s *sequence) append(t *rapid.T) {
	store, _ := s.handle(t)
	box := s.anyBox(t)
	m := &modelMessage{
		id:          box.id,
		key:         rapid.SampledFrom([]string{"", "", "k1", "k2"}).Draw(t, "key"),
		fingerprint: rapid.SampledFrom([]string{"", "f1", "f2"}).Draw(t, "fingerprint"),
		ref:         rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(t, "ref"),
		body:        rapid.StringN(0, 20, -1).Draw(t, "body"),
	}
	o := broker.AppendOptions{Key: m.key, Fingerprint: []byte(m.fingerprint)}
	switch rapid.SampledFrom([]string{"never", "never", "soon", "later", "past"}).Draw(t, "expires") {
	case "soon":
		o.TTL = 10 * time.Minute // less than passes in one go
	case "later":
		o.TTL = 30 * time.Minute
	case "past":
		o.Expires = store.Now().Add(-time.Second)
	}
	first, either := s.first(box.id, m.key)
	want := box.refusal(o)
	if first != nil && !either {
		want = nil
		if m.fingerprint != "" && first.fingerprint != "" && m.fingerprint != first.fingerprint {
			want = broker.ErrConflict
		}
	}
	box.listen()
	stored := m.message(s.channel)
	m.mid = stored.MID
	got, err := store.Append(t.Context(), stored, o)
	if either && (got.Duplicate || errors.Is(err, broker.ErrConflict)) {
		want, either = err, false
	} else if either {
		first = nil
	}
	s.mustAnswer(t, got, err, want, first, m)
	if want != nil || first != nil {
		return
	}
	if o.TTL > 0 {
		m.expires = s.clock + o.TTL
	}
	s.appended(box, m)
}

// message returns what is stored. Without a MID it gets a new one.
func (m *modelMessage) message(channel string) *broker.Message {
	stored := messageIn(channel, m.id, m.key, m.body)
	stored.Ref = m.ref
	if m.mid != "" {
		stored.MID = m.mid
	}
	return stored
}

// mustAnswer compares the answer to an append of m, with first as the message that had its key before, or nil.
func (s *sequence) mustAnswer(t *rapid.T, got broker.Stored, err, wantErr error, first, m *modelMessage) {
	want := broker.Stored{MID: m.mid, State: broker.StateStored, Durability: got.Durability}
	if first != nil {
		want.MID, want.State, want.Duplicate = first.mid, first.state, first != m
	}
	switch {
	case !errors.Is(err, wantErr):
		t.Fatalf("append of %+v: %v, want %v", m, err, wantErr)
	case err != nil:
	case got != want:
		t.Fatalf("append: %+v, want %+v", got, want)
	case !got.Durability.Meets(s.w.h.Durability):
		t.Fatalf("append: the durability is %s, want %s", got.Durability, s.w.h.Durability)
	}
}

// repeat appends with the MID of a message that was stored: its answer was lost.
func (s *sequence) repeat(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.any(t)
	if !s.known(m) || m.replaced {
		t.Skip("it may have been forgotten")
	}
	if first, _ := s.first(m.id, m.key); m.key != "" && first != m {
		t.Skip("its key may have been forgotten")
	}
	got, err := store.Append(t.Context(), m.message(s.channel), broker.AppendOptions{Key: m.key, Fingerprint: []byte(m.fingerprint)})
	s.mustAnswer(t, got, err, nil, m, m)
}

// attach takes a mailbox.
func (s *sequence) attach(t *rapid.T) {
	store, _ := s.handle(t)
	box := s.anyBox(t)
	window := rapid.IntRange(1, 4).Draw(t, "window")
	limit, bytes := drawPage(t)
	refuses := rapid.Bool().Draw(t, "refuses to withdraw")
	o := &owner{withdraw: func(uint64, string) bool { return !refuses }}
	got, page, err := store.Attach(t.Context(), s.channel, box.id, o, broker.AttachOptions{Window: window, Limit: limit, Bytes: bytes})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	if n := len(box.tenants); n > 0 && got.Fence() <= box.tenants[n-1].fence {
		t.Fatalf("the fence is %d, and was %d before", got.Fence(), box.tenants[n-1].fence)
	}
	box.attached(&tenant{box: got, owner: o, store: store, window: window, refuses: refuses, fence: got.Fence()})
	s.comparePage(t, box, page, 0, limit, bytes)
}

// drawPage draws how much a page may hold.
func drawPage(t *rapid.T) (limit, bytes int) {
	return rapid.IntRange(1, propertyLimit).Draw(t, "limit"), rapid.SampledFrom([]int{1 << 20, 1 << 20, 40, 1}).Draw(t, "bytes")
}

// read reads a page.
func (s *sequence) read(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	after := uint64(0)
	if seen := s.seen(box); len(seen) > 0 && rapid.Bool().Draw(t, "further") {
		after = rapid.SampledFrom(seen).Draw(t, "after").seq
	}
	limit, bytes := drawPage(t)
	page, err := tenant.box.Read(t.Context(), after, limit, bytes)
	if s.mustBeOwner(t, "read", box, tenant, err) {
		s.comparePage(t, box, page, after, limit, bytes)
	}
}

// mustBeOwner: who is no owner any more is told so, or that the handle is closed. It returns whether tenant is one.
func (s *sequence) mustBeOwner(t *rapid.T, what string, box *modelBox, tenant *tenant, err error) bool {
	if box.has(tenant) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return true
	}
	if !errors.Is(err, broker.ErrFenced) && !errors.Is(err, broker.ErrClosed) {
		t.Fatalf("%s by a former owner: %v, want ErrFenced or ErrClosed", what, err)
	}
	return false
}

// settle settles some at once, perhaps the same twice, and perhaps what is finished, or was never there.
func (s *sequence) settle(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	seen := s.seen(box)
	if len(seen) == 0 {
		t.Skip("nothing was read")
	}
	var outcomes []broker.Outcome
	for range rapid.IntRange(1, 3).Draw(t, "outcomes") {
		outcomes = append(outcomes, drawOutcome(t, seen))
	}
	verdicts, err := tenant.box.Settle(t.Context(), slices.Clone(outcomes))
	if !s.mustBeOwner(t, "settle", box, tenant, err) {
		return
	}
	var want []broker.Verdict
	for _, o := range outcomes {
		want = append(want, s.model.settle(box, o))
	}
	if !slices.Equal(verdicts, want) {
		t.Fatalf("settling %+v: verdicts %d, want %d", outcomes, verdicts, want)
	}
}

func drawOutcome(t *rapid.T, seen []*modelMessage) broker.Outcome {
	m := rapid.SampledFrom(seen).Draw(t, "message")
	o := broker.Outcome{
		Seq: m.seq, MID: m.mid, Counts: drawCounts(t, m),
		State: rapid.SampledFrom([]broker.State{
			broker.StateAcked, broker.StateWritten, broker.StateExpired, broker.StateDead, broker.StateDead, broker.StateStored, broker.StateStored,
		}).Draw(t, "state"),
	}
	switch o.State {
	case broker.StateDead:
		o.Reason = rapid.SampledFrom([]broker.DeadReason{broker.DeadAttempts, broker.DeadTerminated}).Draw(t, "reason")
		o.Detail = rapid.SampledFrom([]string{"", "gave up"}).Draw(t, "detail")
	case broker.StateAcked:
		o.Reply = []byte(rapid.SampledFrom([]string{"", `{"ok":true}`}).Draw(t, "reply"))
	}
	switch rapid.IntRange(0, 11).Draw(t, "wrong") {
	case 0:
		o.Seq += 1 << 40 // of no message
	case 1:
		o.MID = rapid.SampledFrom(seen).Draw(t, "other").mid // perhaps of another one
	case 2:
		o.Seq = max(m.stale, 1) // from before it was sent again
	}
	return o
}

func drawCounts(t *rapid.T, m *modelMessage) broker.Counts {
	c := broker.Counts{
		Attempts: m.counts.Attempts + rapid.IntRange(0, 2).Draw(t, "attempts"),
		Failures: rapid.IntRange(0, 3).Draw(t, "failures"),
		Deaths:   rapid.IntRange(0, 2).Draw(t, "deaths"),
	}
	if rapid.Bool().Draw(t, "delayed") {
		c.NotBefore = time.UnixMilli(1_800_000_000_123)
	}
	return c
}

// detach gives a mailbox up, with counts of some of what is in it, and perhaps of what is not any more.
func (s *sequence) detach(t *rapid.T) {
	box := s.anyBox(t)
	tenant := box.anyTenant(t)
	var counts []broker.Outcome
	for _, m := range s.seen(box) {
		if rapid.IntRange(0, 2).Draw(t, "counts") == 0 {
			counts = append(counts, broker.Outcome{Seq: m.seq, MID: m.mid, State: broker.StateStored, Counts: drawCounts(t, m)})
		}
	}
	err := tenant.box.Detach(t.Context(), slices.Clone(counts))
	tenant.detached, tenant.heard = true, len(tenant.owner.losses())
	if !s.mustBeOwner(t, "detach", box, tenant, err) {
		return
	}
	for _, o := range counts {
		s.model.settle(box, o)
	}
	box.owner = nil
}

// cancel is done if nobody has pushed the message, and who could have done it agrees.
func (s *sequence) cancel(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.any(t)
	if !s.known(m) {
		t.Skip("it may have been forgotten")
	}
	allowed := s.cancelAnswers(m)
	var got broker.Cancelled
	s.until(t, func() (err error) {
		if got, err = store.Cancel(t.Context(), m.mid); err != nil {
			t.Fatalf("cancel of %+v: %v", m, err)
		}
		if got == broker.CancelUnknown && s.box(m.id).owned() {
			return fmt.Errorf("the owner of %s does not answer", m.mid) // on another node it may be slow
		}
		return nil
	})
	if !slices.Contains(allowed, got) {
		t.Fatalf("cancel of %+v: %d, want one of %d", m, got, allowed)
	}
	if got != broker.CancelDone {
		return
	}
	if box := s.box(m.id); box.owned() && !slices.Contains(box.owner.owner.wasAsked(), m.mid) {
		t.Fatalf("cancel of %+v: done, and the owner was not asked", m)
	}
	s.finish(m, broker.StateCancelled, "")
}

// cancelAnswers returns what a cancel may answer.
func (s *sequence) cancelAnswers(m *modelMessage) []broker.Cancelled {
	box := s.box(m.id)
	switch {
	case m.state.Finished():
		return []broker.Cancelled{broker.CancelTooLate}
	case box.owner != nil && box.owner.crashed: // it may have pushed what its window held
		switch behind := slices.Index(box.messages, m) >= box.owner.window; {
		case m.counts.Attempts > 0:
			return []broker.Cancelled{broker.CancelTooLate, broker.CancelUnknown}
		case behind:
			return []broker.Cancelled{broker.CancelDone, broker.CancelUnknown}
		}
		return []broker.Cancelled{broker.CancelUnknown}
	case m.counts.Attempts > 0, box.owner != nil && box.owner.refuses:
		return []broker.Cancelled{broker.CancelTooLate}
	}
	return []broker.Cancelled{broker.CancelDone}
}

// resend sends a dead letter again.
func (s *sequence) resend(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.letter(t)
	ttl := rapid.SampledFrom([]time.Duration{0, 10 * time.Minute}).Draw(t, "ttl")
	box := s.box(m.id)
	var want error
	if m.state != broker.StateDead {
		want = broker.ErrNotFound
	} else {
		want = box.refusal(broker.AppendOptions{})
	}
	box.listen()
	got, err := store.Resend(t.Context(), m.mid, ttl)
	if !errors.Is(err, want) || err == nil && (got.MID != m.mid || got.State != broker.StateStored || got.Duplicate) {
		t.Fatalf("resend of %+v: %+v, %v, want %v", m, got, err, want)
	}
	if want == nil {
		s.resent(box, m, ttl)
	}
}

// drop erases a dead letter.
func (s *sequence) drop(t *rapid.T) {
	store, _ := s.handle(t)
	m := s.letter(t)
	var want error
	if m.state != broker.StateDead {
		want = broker.ErrNotFound
	}
	if err := store.Drop(t.Context(), m.mid); !errors.Is(err, want) {
		t.Fatalf("drop of %+v: %v, want %v", m, err, want)
	}
	if want == nil {
		m.state = broker.StateErased
		s.ends[broker.Ending{State: broker.StateErased}]++
	}
}
