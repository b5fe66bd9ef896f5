package broker

import (
	"fmt"
	"strings"
	"testing"
)

// The texts are format: records and partitions are found by them.
func TestMessageIDFormat(t *testing.T) {
	if got, want := RecordName("pay_mq_channel", "01", "order-1"), "UNFFUV7TQNY2VN6QS6NMVEYA6N"; got != want {
		t.Errorf("the record name is %q, want %q", got, want)
	}
	if got, want := PlaceOf("pay_mq_channel", "01"), 739; got != want {
		t.Errorf("the place is %d, want %d", got, want)
	}
}

func TestNewMessageID(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range [][3]string{
		{"c", "01", ""}, {"c", "01", "k"}, {"", "", ""}, {"a:b", "c", "d"}, {"a", "b:c", "d"}, {"c", strings.Repeat("x", 1000), "é\x00"},
	} {
		for range 50 {
			mid := NewMessageID(w[0], w[1], w[2])
			if seen[mid] {
				t.Fatalf("%q: %s twice", w, mid)
			}
			seen[mid] = true
			name, err := RecordOf(mid)
			if err != nil {
				t.Fatalf("%q: %s: %v", w, mid, err)
			}
			if known := RecordName(w[0], w[1], w[2]); (name == known) != (w[2] != "") {
				t.Errorf("%q: the record is %s, that of the key is %s", w, name, known)
			}
			if p := Place(mid); p != PlaceOf(w[0], w[1]) || p < 0 || p > 1023 {
				t.Errorf("%q: the place is %d, that of the destination %d", w, p, PlaceOf(w[0], w[1]))
			}
			if w[2] != "" && strings.Count(mid, name) != 1 {
				t.Errorf("%q: %s tells nothing new to who knows the key", w, mid)
			}
		}
	}
}

// I6: IDs and keys that would run together if they were joined have records of their own.
func TestI6_RecordNamesDoNotCollide(t *testing.T) {
	parts := []string{"", "a", "b", "a:b", ":", "b:a", "1:a", "a1:b", "\x00", "a\x00", "\x00a", "\x01a", "\x01a\x01b", strings.Repeat("a", 128), strings.Repeat("a", 127)}
	names := make(map[string]string)
	for _, c := range parts {
		for _, id := range parts {
			for _, key := range parts {
				name, what := RecordName(c, id, key), fmt.Sprintf("%q %q %q", c, id, key)
				if other := names[name]; other != "" {
					t.Fatalf("%s and %s have one record name", what, other)
				}
				names[name] = what
			}
		}
	}
}

func TestRecordOfRefuses(t *testing.T) {
	good := NewMessageID("c", "01", "")
	for _, mid := range []string{
		"", "x", good[1:], good + "A", strings.ToLower(good), good[:27] + "=", good[:27] + "0", good[:27] + "1", good[:27] + "8", good[:27] + "\xff",
		NewMID(), strings.Repeat("A", 53), strings.Repeat("A", 55), good[:10] + ":" + good[11:], good[:10] + "{" + good[11:],
	} {
		if name, err := RecordOf(mid); err == nil {
			t.Errorf("%q is taken for a message ID, of record %s", mid, name)
		}
	}
	if _, err := RecordOf(strings.Repeat("A", 54)); err != nil {
		t.Errorf("a message ID of 54 characters: %v", err)
	}
}

// Destinations are spread over all places.
func TestPlacesAreSpread(t *testing.T) {
	var counts [1024]int
	const n = 64 * 1024
	for i := range n {
		counts[PlaceOf("pay_mq_channel", fmt.Sprintf("merchant-%04d", i))]++
	}
	for place, c := range counts { // 64 each; the odds of one outside are below one in a million
		if c < 16 || c > 128 {
			t.Errorf("%d of %d destinations at place %d", c, n, place)
		}
	}
}
