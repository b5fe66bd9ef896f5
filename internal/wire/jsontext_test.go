package wire

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// encodedString is the model of appendString.
func encodedString(t *testing.T, s string) string {
	t.Helper()
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
}

func TestAppendStringIsWhatTheEncoderGives(t *testing.T) {
	for r := rune(0); r <= 0x2100; r++ {
		s := "a" + string(r) + "b"
		if got, want := string(appendString(nil, s)), encodedString(t, s); got != want {
			t.Fatalf("U+%04X: %s, want %s", r, got, want)
		}
	}
	for _, s := range []string{"", "\xff", "a\xe4\xb8", "\xe4\xb8\xadb\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "😀", "\ufffd", "\ufeff"} {
		if got, want := string(appendString(nil, []byte(s))), encodedString(t, s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	f.Add("")
	f.Add("<\"\\\x00\x1f\u2028\xff中")
	f.Fuzz(func(t *testing.T, s string) {
		got := string(appendString(nil, s))
		if want := encodedString(t, s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
		if hasLineBreak([]byte(got)) {
			t.Errorf("%q: a raw line break in %q", s, got)
		}
		var back string
		if err := json.Unmarshal([]byte(got), &back); err != nil || utf8.ValidString(s) && back != s {
			t.Errorf("%q comes back as %q, %v", s, back, err)
		}
	})
}
