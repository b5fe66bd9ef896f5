package brokertest

import (
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// unlike returns what two records tell differently, as far as a copy must keep it.
func unlike(a, b broker.Record) string {
	if !a.Stored.Equal(b.Stored) || !a.Finished.Equal(b.Finished) || !a.Expires.Equal(b.Expires) {
		return "times"
	}
	a.Stored, a.Finished, a.Expires = b.Stored, b.Finished, b.Expires
	if x, y := fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b); x != y {
		return x + " is now " + y
	}
	return ""
}

func checkMovesAll(m *move) {
	mids := m.fill()
	before := make(map[string]broker.Record)
	s := m.source.open(m.policy)
	for _, mid := range mids["all"] {
		before[mid] = m.record(s, mid)
	}
	usage, err := s.Usage(m.ctx())
	if err != nil {
		m.Fatal(err)
	}
	_ = s.Close()
	moved := m.migrate()
	if moved.Items != 450 || moved.Ended != 0 || len(moved.Checksum) != 64 {
		m.Errorf("%+v moved; want 450 messages, a checksum, and none that ended", moved)
	}
	for mid, want := range before {
		if d := unlike(want, m.record(m.target, mid)); d != "" {
			m.Errorf("%s: %s", mid, d)
		}
	}
	after, err := m.target.Usage(m.ctx())
	if err != nil {
		m.Fatal(err)
	}
	for channel, want := range usage {
		got := after[channel]
		if d := got.Oldest.Sub(want.Oldest).Abs(); d > time.Millisecond {
			m.Errorf("channel %s: the oldest is from %v, and was from %v", channel, got.Oldest, want.Oldest)
		}
		got.Oldest = want.Oldest
		if got != want {
			m.Errorf("channel %s: %+v is kept, and was %+v", channel, got, want)
		}
	}
	letters, err := m.target.DeadLetters(m.ctx(), "c", broker.DeadQuery{})
	if err != nil || len(letters.Letters) != 3 {
		m.Fatalf("%d dead letters: %v; want 3", len(letters.Letters), err)
	}
	for _, l := range letters.Letters {
		if d := unlike(before[l.MID], l.Record); d != "" || l.ContentType != "text/plain" || l.Size != 1 {
			m.Errorf("dead letter %+v: %s", l, d)
		}
		content, err := m.target.Content(m.ctx(), l.MID)
		if err != nil || string(content.Body) != "2" || content.Headers["X-A"] != "b" || content.Source != "route" {
			m.Errorf("dead letter %s: %+v, %v", l.MID, content, err)
		}
		if _, err := m.target.Resend(m.ctx(), l.MID, 0); err != nil {
			m.Errorf("sending dead letter %s again: %v", l.MID, err)
		}
	}
	found, err := m.target.Find(m.ctx(), "c", "order 3", 1000)
	if err != nil || len(found) != 3*21 {
		m.Errorf("%d messages with one ref: %v; want 63", len(found), err)
	}
}

func checkMovesOrder(m *move) {
	m.fill()
	m.migrate()
	for _, id := range []string{"01", "02", "03"} {
		h := m.attach(m.target, id)
		m.mustBe("what moved for "+id, h.page, numbers(150)[3:]...)
		first := h.page[0]
		if first.Attempts != 1 || first.Failures != 2 || first.Deaths != 1 || first.NotBefore.IsZero() {
			m.Errorf("counts: %+v", first.Counts)
		}
		e := h.page[1]
		if e.Counts != (broker.Counts{}) || e.Expires.Sub(m.target.Now()) > time.Hour || e.Retain.Sub(m.target.Now()) > 72*time.Hour ||
			e.Message.Key != "key-4" || e.Message.Ref != "order 4" || e.Message.ContentType != "text/plain" {
			m.Errorf("%+v of %+v", e, e.Message)
		}
		m.add(m.target, id, "new")
		page := h.read()
		m.mustBe("with a new one", page, append(numbers(150)[3:], "new")...)
		h.finish(broker.StateAcked, page...)
		h.detach()
	}
}

func checkMovesKeys(m *move) {
	mids := m.fill()
	m.migrate()
	for i, mid := range mids["all"][:150] {
		again := messageIn("c", "01", fmt.Sprintf("key-%d", i), "another")
		stored := m.store(m.target, again, broker.AppendOptions{Fingerprint: []byte{byte(i)}})
		if !stored.Duplicate || stored.MID != mid {
			m.Fatalf("key %d again: %+v; want the first, %s", i, stored, mid)
		}
	}
	_, err := m.target.Append(m.ctx(), messageIn("c", "01", "key-0", "x"), broker.AppendOptions{Key: "key-0", Fingerprint: []byte("other")})
	m.mustFail("another content with a key", err, broker.ErrConflict)
}

func checkMovesUsedKey(m *move) {
	s := m.source.open(m.policy)
	for _, key := range []string{"waits", "over"} {
		m.source.store(s, messageIn("c", "01", key, "old "+key), broker.AppendOptions{})
	}
	_ = s.Close()
	// In the target the keys were used too: of one message waits, the other is finished and its window over.
	m.setPolicy(m.target, broker.Policy{Dedupe: time.Millisecond})
	waits := m.store(m.target, messageIn("c", "01", "waits", "new waits"), broker.AppendOptions{}).MID
	over := m.store(m.target, messageIn("c", "01", "over", "new over"), broker.AppendOptions{}).MID
	h := m.attach(m.target, "01")
	h.finish(broker.StateAcked, h.find(over))
	h.detach()
	m.pass(m.target, 50*time.Millisecond)
	m.migrate()
	m.mustHold(m.target, "01", "new waits", "old waits", "old over")
	if r := m.record(m.target, over); r.State != broker.StateAcked {
		m.Errorf("the message that had the key before: %+v", r)
	}
	if got := m.store(m.target, messageIn("c", "01", "waits", "x"), broker.AppendOptions{}); got.MID != waits {
		m.Errorf("the key that both used: %+v, want %s", got, waits)
	}
	// As long as a message is unfinished its key is remembered.
	if got := m.store(m.target, messageIn("c", "01", "over", "x"), broker.AppendOptions{}); !got.Duplicate || got.MID == over {
		m.Errorf("the key of the one that moved: %+v", got)
	}
	h = m.attach(m.target, "01")
	h.finish(broker.StateAcked, h.page...)
	h.detach()
}

func checkMovesDeadlines(m *move) {
	s := m.source.open(broker.Policy{Retention: 400 * time.Millisecond})
	expires := m.source.store(s, message("01", "a"), broker.AppendOptions{TTL: 200 * time.Millisecond}).MID
	dies := m.source.store(s, message("01", "b"), broker.AppendOptions{}).MID
	now := s.Now()
	m.source.crash(s)
	until(m, "both times to pass", func() bool { return time.Since(now) > 500*time.Millisecond })
	m.migrate()
	m.mustEnd(m.target, expires, broker.StateExpired)
	if r := m.mustEnd(m.target, dies, broker.StateDead); r.Reason != broker.DeadRetention {
		m.Errorf("it died of %q", r.Reason)
	}
}

func checkMovesBehind(m *move) {
	m.add(m.target, "01", "there 1", "there 2")
	h := m.attach(m.target, "01") // another node serves it
	m.add(m.target, "02", "there 3")
	s := m.source.open(m.policy)
	m.source.add(s, "01", "a", "b")
	m.source.add(s, "02", "c", "d")
	_ = s.Close()
	m.migrate()
	until(m, "the owner to hear of them", func() bool { return h.rung() > 0 })
	page := h.read()
	m.mustBe("with an owner", page, "there 1", "there 2", "a", "b")
	h.finish(broker.StateAcked, page...)
	h.detach()
	m.mustHold(m.target, "02", "there 3", "c", "d")
}

func checkMovesSuspects(m *move) {
	s := m.source.open(m.policy)
	m.source.add(s, "01", "a", "b", "c")
	m.source.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 2})
	m.source.crash(s)
	m.migrate()
	h := m.attach(m.target, "01")
	for i, want := range []broker.Counts{{Attempts: 1, Deaths: 1}, {Attempts: 1}, {}} {
		if h.page[i].Counts != want {
			m.Errorf("message %d counts %+v, want %+v", i, h.page[i].Counts, want)
		}
	}
	h.detach()
}

func checkMovesLimits(m *move) {
	m.fill()
	m.setPolicy(m.target, broker.Policy{MaxPending: 1, MaxChannelPending: 1, MaxRecords: 1, MaxDead: 1})
	m.migrate()
	_, err := m.target.Append(m.ctx(), message("01", "x"), broker.AppendOptions{})
	if err == nil {
		m.Error("a mailbox over its limit takes a message")
	}
}

func checkMovesAgain(m *move) {
	m.fill()
	first := m.migrate()
	h := m.attach(m.target, "01")
	h.finish(broker.StateAcked, h.page...)
	h.detach()
	if again := m.migrate(); again.Items != 0 || first.Items == 0 {
		m.Errorf("%+v moved, and again %+v", first, again)
	}
	m.mustHold(m.target, "01")
	s := m.source.b.Open()
	m.Cleanup(func() { _ = s.Close() })
	_, err := s.Usage(m.ctx())
	m.mustFail("using the store that has moved", err, broker.ErrRefused)
}
