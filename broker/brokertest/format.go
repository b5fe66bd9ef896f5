package brokertest

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// century is longer than the files of a format are kept in testdata.
const century = 100 * 365 * 24 * time.Hour

// FormatPolicies are for stores that [FillFormat] fills and [CheckFormat] reads.
func FormatPolicies() map[string]broker.Policy {
	p := broker.Policy{Retention: century, Dedupe: century, Receipts: century, DeadRetention: century}
	return map[string]broker.Policy{"pay": p, "a:b": p, "a": p}
}

// formatMessage has a MID that is always the same.
func formatMessage(channel, id, key string) *broker.Message {
	return &broker.Message{
		MID:     broker.NewMessageID(channel, id, key)[:28] + strings.Repeat("A", 26),
		Channel: channel, ID: id, Key: key, Ref: "order-" + key, Source: "/pay/*", Headers: map[string]string{"X-Signature": "s=" + key},
		ContentType: "application/octet-stream", Body: []byte("body of " + key + "\x00\xff\n"), Time: time.UnixMilli(1_790_000_000_123),
	}
}

// FillFormat puts one of everything that a format holds into an empty store. A file that was filled so is
// kept in the testdata of each release's format, and later releases open it with [CheckFormat].
func FillFormat(t testing.TB, s broker.Store) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(channel, id, key string) *broker.Message {
		t.Helper()
		m := formatMessage(channel, id, key)
		_, err := s.Append(ctx, m, broker.AppendOptions{Key: key, Fingerprint: []byte("0123456789abcdef"), Expires: time.UnixMilli(4_000_000_000_000)})
		must(err)
		return m
	}
	finish := func(id string, o broker.Outcome) {
		t.Helper()
		box, page, err := s.Attach(ctx, "pay", id, new(owner), broker.AttachOptions{Window: 4})
		must(err)
		o.Seq, o.MID = page.Entries[0].Seq, page.Entries[0].Message.MID
		_, err = box.Settle(ctx, []broker.Outcome{o})
		must(err)
		must(box.Detach(ctx, nil))
	}
	for _, key := range []string{"p1", "p2", "p3"} {
		add("pay", "01", key)
	}
	finish("01", broker.Outcome{State: broker.StateStored, Counts: formatCounts})
	add("pay", "02", "acked")
	finish("02", broker.Outcome{State: broker.StateAcked, Reply: []byte(`{"ok":true}`), Counts: broker.Counts{Attempts: 1}})
	add("pay", "03", "dead")
	finish("03", broker.Outcome{State: broker.StateDead, Reason: broker.DeadTerminated, Detail: "no such order", Counts: broker.Counts{Attempts: 2}})
	m := add("pay", "04", "cancelled")
	answer, err := s.Cancel(ctx, m.MID)
	must(err)
	if answer != broker.CancelDone {
		t.Fatalf("cancelling: %v", answer)
	}
	add("pay", "05", "owned")
	_, _, err = s.Attach(ctx, "pay", "05", new(owner), broker.AttachOptions{Window: 4}) // and never gives it up
	must(err)
	add("a:b", "c", "x")
	add("a", "b:c", "x")
}

var formatCounts = broker.Counts{Attempts: 3, Failures: 2, Deaths: 1, NotBefore: time.UnixMilli(1_790_000_009_000)}

// CheckFormat reports what a store lacks that was filled by [FillFormat], perhaps by another release.
func CheckFormat(t testing.TB, s broker.Store) {
	t.Helper()
	checkMailboxes(t, s)
	checkReceipts(t, s)
	// A key is still known.
	ctx := context.Background()
	again := formatMessage("pay", "02", "acked")
	again.MID = broker.NewMessageID("pay", "02", "acked")
	got, err := s.Append(ctx, again, broker.AppendOptions{Key: "acked", Fingerprint: []byte("0123456789abcdef")})
	if err != nil || !got.Duplicate || got.MID != formatMessage("pay", "02", "acked").MID {
		t.Errorf("a key that was used: %+v, %v", got, err)
	}
	if _, err := s.Append(ctx, again, broker.AppendOptions{Key: "acked", Fingerprint: []byte("another")}); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("a key that was used for another body: %v", err)
	}
	usage, err := s.Usage(ctx)
	if u := usage["pay"]; err != nil || u.Pending != 4 || u.Records != 7 || u.Dead != 1 || u.Mailboxes != 2 {
		t.Errorf("usage: %+v, %v", usage, err)
	}
}

func checkMailboxes(t testing.TB, s broker.Store) {
	t.Helper()
	ctx := context.Background()
	for _, c := range []struct {
		channel, id string
		keys        []string
		first       broker.Counts
	}{
		{"pay", "01", []string{"p1", "p2", "p3"}, formatCounts},
		{"pay", "02", nil, broker.Counts{}},
		{"pay", "05", []string{"owned"}, broker.Counts{Attempts: 1, Deaths: 1}}, // its owner crashed
		{"a:b", "c", []string{"x"}, broker.Counts{}},
		{"a", "b:c", []string{"x"}, broker.Counts{}},
	} {
		box, page, err := s.Attach(ctx, c.channel, c.id, new(owner), broker.AttachOptions{Window: 100})
		if err != nil {
			t.Fatalf("attaching to %s of channel %s: %v", c.id, c.channel, err)
		}
		entries := page.Entries
		if len(entries) != len(c.keys) {
			t.Errorf("the mailbox of %s of channel %s has %d messages, want %d", c.id, c.channel, len(entries), len(c.keys))
		}
		for i, e := range entries[:min(len(entries), len(c.keys))] {
			if want := formatMessage(c.channel, c.id, c.keys[i]); !reflect.DeepEqual(e.Message, want) {
				t.Errorf("%s of channel %s has\n%+v, want\n%+v", c.id, c.channel, e.Message, want)
			}
			if i == 0 && e.Counts != c.first {
				t.Errorf("%s of channel %s: counts %+v, want %+v", c.id, c.channel, e.Counts, c.first)
			}
			if e.Expires.UnixMilli() != 4_000_000_000_000 {
				t.Errorf("%s of channel %s: it expires %s", c.id, c.channel, e.Expires)
			}
		}
		if err := box.Detach(ctx, nil); err != nil {
			t.Error(err)
		}
	}
}

func checkReceipts(t testing.TB, s broker.Store) {
	t.Helper()
	ctx := context.Background()
	for _, want := range []broker.Record{
		{ID: "01", Ref: "p2", State: broker.StateStored},
		{ID: "02", Ref: "acked", State: broker.StateAcked, Attempts: 1, Reply: []byte(`{"ok":true}`)},
		{ID: "03", Ref: "dead", State: broker.StateDead, Reason: broker.DeadTerminated, Detail: "no such order", Attempts: 2},
		{ID: "04", Ref: "cancelled", State: broker.StateCancelled},
	} {
		m := formatMessage("pay", want.ID, want.Ref)
		got, err := s.Lookup(ctx, m.MID)
		if err != nil || got.Stored.IsZero() || got.Finished.IsZero() != (want.State == broker.StateStored) || got.Expires.UnixMilli() != 4_000_000_000_000 {
			t.Errorf("the record of %s is %+v, %v", want.Ref, got, err)
		}
		found, err := s.Find(ctx, "pay", m.Ref, 10)
		if err != nil || len(found) != 1 || !reflect.DeepEqual(found[0], got) {
			t.Errorf("found by ref %s: %+v, %v; want %+v", m.Ref, found, err, got)
		}
		want.MID, want.Channel, want.Ref = m.MID, "pay", m.Ref
		got.Stored, got.Finished, got.Expires, got.Node = time.Time{}, time.Time{}, time.Time{}, ""
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the record is %+v, want %+v", got, want)
		}
	}
	dead := formatMessage("pay", "03", "dead")
	if got, err := s.Content(ctx, dead.MID); err != nil || !reflect.DeepEqual(got, dead) {
		t.Errorf("the dead letter is %+v, %v", got, err)
	}
	page, err := s.DeadLetters(ctx, "pay", broker.DeadQuery{})
	if err != nil || len(page.Letters) != 1 || page.Letters[0].MID != dead.MID || page.Letters[0].Size != len(dead.Body) {
		t.Errorf("the dead letters are %+v, %v", page, err)
	}
}
