package wire

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

var (
	line    = Framing{}
	length2 = mustParse("length", "2")
	length4 = mustParse("length", "4")

	framings = []Framing{line, length2, length4}
)

func mustParse(words ...string) Framing {
	f, err := ParseFraming(words...)
	if err != nil {
		panic(err)
	}
	return f
}

func TestParseFraming(t *testing.T) {
	if f := mustParse("line"); f != (Framing{}) {
		t.Errorf("line is %v, not the zero value", f)
	}
	for _, f := range framings {
		back, err := ParseFraming(strings.Fields(f.String())...)
		if err != nil || back != f {
			t.Errorf("%q does not parse back: %v, %v", f, back, err)
		}
		if whole, err := ParseFraming(f.String()); err != nil || whole != f {
			t.Errorf("%q as one word: %v, %v", f, whole, err)
		}
	}
	const allowed = `: use "line", "length 2" or "length 4"`
	for words, want := range map[string]string{
		"":           "framing is missing" + allowed,
		"Line":       `unknown framing "Line"` + allowed,
		"lines":      `unknown framing "lines"` + allowed,
		"line 2":     `unknown framing "line 2"` + allowed,
		"length":     `unknown framing "length"` + allowed,
		"length 3":   `unknown framing "length 3"` + allowed,
		"length 02":  `unknown framing "length 02"` + allowed,
		"length 2 4": `unknown framing "length 2 4"` + allowed,
	} {
		if _, err := ParseFraming(strings.Fields(words)...); err == nil || err.Error() != want {
			t.Errorf("%q: error is %v, want %s", words, err, want)
		}
	}
}

func TestMaxPayload(t *testing.T) {
	if got := line.MaxPayload(); got != math.MaxInt {
		t.Errorf("line: %d", got)
	}
	if got := length2.MaxPayload(); got != 65535 {
		t.Errorf("length 2: %d", got)
	}
	if got := length4.maxLength(); got != 1<<32-1 {
		t.Errorf("length 4: %d", got)
	}
	if got := length4.MaxPayload(); uint64(got) != min(1<<32-1, math.MaxInt) {
		t.Errorf("length 4: %d", got)
	}
	if !line.SingleLine() || length2.SingleLine() || length4.SingleLine() {
		t.Error("only line framing is a single line")
	}
}

func TestFrameBytes(t *testing.T) {
	long := strings.Repeat("x", 0x1234)
	for _, c := range []struct {
		framing       Framing
		payload, want string
	}{
		{line, "", "\n"},
		{line, "01", "01\n"},
		{line, "a\rb", "a\rb\n"},
		{line, "nul\x00\xff", "nul\x00\xff\n"},
		{length2, "", "\x00\x00"},
		{length2, "01", "\x00\x0201"},
		{length2, "a\nb", "\x00\x03a\nb"},
		{length2, long, "\x12\x34" + long},
		{length4, "", "\x00\x00\x00\x00"},
		{length4, "01", "\x00\x00\x00\x0201"},
		{length4, long, "\x00\x00\x12\x34" + long},
	} {
		got, err := c.framing.Append([]byte("before"), []byte(c.payload))
		if err != nil || string(got) != "before"+c.want {
			t.Errorf("%s of %.20q: %.40q, %v", c.framing, c.payload, got, err)
		}
		payload, n, err := c.framing.Next([]byte(c.want+"after"), len(c.payload))
		if err != nil || n != len(c.want) || string(payload) != c.payload {
			t.Errorf("%s: Next(%.20q) = %.20q, %d, %v", c.framing, c.want, payload, n, err)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	for _, c := range []struct {
		framing Framing
		payload string
		want    string
	}{
		{line, "a\nb", "cannot be framed: a line feed at byte 1, and lines end there; use a length framing"},
		{line, "\n", "cannot be framed: a line feed at byte 0, and lines end there; use a length framing"},
		{length2, strings.Repeat("x", 65536), `cannot be framed: 65536 bytes, and framing "length 2" holds at most 65535`},
	} {
		dst, err := c.framing.Append([]byte("before"), []byte(c.payload))
		if !errors.Is(err, ErrUnframable) || err.Error() != c.want {
			t.Errorf("%s: error is %v, want %s", c.framing, err, c.want)
		}
		if string(dst) != "before" {
			t.Errorf("%s: dst is %.40q after an error", c.framing, dst)
		}
	}
	if _, err := length2.Append(nil, make([]byte, 65535)); err != nil {
		t.Errorf("the largest payload: %v", err)
	}
}

func TestNextLineEnds(t *testing.T) {
	for _, c := range []struct {
		buf, payload string
		n            int
	}{
		{"", "", 0},
		{"\r", "", 0},
		{"01", "", 0},
		{"01\r", "", 0},
		{"\n", "", 1},
		{"\r\n", "", 2},
		{"01\n02\n", "01", 3},
		{"01\r\n02\r\n", "01", 4},
		{"01\r\r\n", "01\r", 5},
		{"0\r1\n", "0\r1", 4},
	} {
		payload, n, err := line.Next([]byte(c.buf), 100)
		if string(payload) != c.payload || n != c.n || err != nil {
			t.Errorf("Next(%q) = %q, %d, %v", c.buf, payload, n, err)
		}
	}
}

// The limit is enforced as soon as it is certain that the frame is over it, and not before.
func TestI10_LimitFromTheFirstBytes(t *testing.T) {
	const incomplete = -1 // else: the size of the payload, or the error
	const tooLarge = -2
	for _, c := range []struct {
		framing Framing
		buf     string
		limit   int
		want    int
	}{
		{line, "1234", 4, incomplete},
		{line, "12345", 4, incomplete}, // the fifth may have been a CR
		{line, "1234\r", 4, incomplete},
		{line, "123456", 4, tooLarge},
		{line, "1234\r6", 4, tooLarge},
		{line, "1234\n", 4, 4},
		{line, "1234\r\n", 4, 4},
		{line, "12345\n", 4, tooLarge},
		{line, "1234\r\r\n", 4, tooLarge},
		{line, "123456789\n", 4, tooLarge},
		{line, "1\n23456789", 4, 1},
		{line, "\n", 0, 0},
		{line, "\r\n", 0, 0},
		{line, "1\n", 0, tooLarge},
		{line, "1", math.MaxInt, incomplete},
		{line, "1\n", math.MaxInt, 1},
		{line, "1\n", math.MinInt, tooLarge},

		{length2, "\x00", 4, incomplete},
		{length2, "\x00\x04", 4, incomplete},
		{length2, "\x00\x05", 4, tooLarge},
		{length2, "\xff\xff", 65534, tooLarge},
		{length2, "\xff\xff", 65535, incomplete},
		{length2, "\x00\x00", 0, 0},
		{length2, "\x00\x01", -1, tooLarge},

		{length4, "\x00\x00\x00", 4, incomplete},
		{length4, "\x00\x00\x00\x05", 4, tooLarge},
		{length4, "\x80\x00\x00\x00", 1 << 20, tooLarge}, // negative in 32 bits
		{length4, "\xff\xff\xff\xff", 1 << 20, tooLarge},
		{length4, "\x7f\xff\xff\xff", math.MaxInt, incomplete},
	} {
		payload, n, err := c.framing.Next([]byte(c.buf), c.limit)
		got := len(payload)
		switch {
		case errors.Is(err, ErrFrameTooLarge) && n == 0 && payload == nil:
			got = tooLarge
		case err != nil:
			t.Errorf("%s: Next(%q, %d): %d, %v", c.framing, c.buf, c.limit, n, err)
		case n == 0:
			got = incomplete
		}
		if got != c.want {
			t.Errorf("%s: Next(%q, %d) is %d, want %d", c.framing, c.buf, c.limit, got, c.want)
		}
	}

	for framing, want := range map[Framing]string{
		line:    "frame too large: a line of more than 8192 bytes",
		length4: "frame too large: 2021161080 bytes announced, 8192 allowed",
	} {
		_, _, err := framing.Next(bytes.Repeat([]byte("x"), 9000), 8192)
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", framing, err, want)
		}
	}
}

var dribbled = []string{"01", "", `{"op":"ping"}`, "a\rb", "\x00\xff", strings.Repeat("long ", 100), "", "end"}

// frames returns dribbled in one piece.
func frames(f Framing) []byte {
	var all []byte
	for _, payload := range dribbled {
		all, _ = f.Append(all, []byte(payload))
	}
	return all
}

func TestNextOneByteAtATime(t *testing.T) {
	for _, f := range framings {
		var buf []byte
		got := 0
		for i, b := range frames(f) {
			buf = append(buf, b)
			payload, n, err := f.Next(buf, 500)
			if err != nil {
				t.Fatalf("%s: byte %d: %v", f, i, err)
			}
			if n == 0 {
				continue
			}
			if n != len(buf) || string(payload) != dribbled[got] {
				t.Fatalf("%s: frame %d is %q, %d of %d bytes", f, got, payload, n, len(buf))
			}
			got++
			buf = buf[:0]
		}
		if got != len(dribbled) || len(buf) > 0 {
			t.Errorf("%s: %d frames, %d bytes left", f, got, len(buf))
		}
	}
}

func TestNextAllInOneSegment(t *testing.T) {
	for _, f := range framings {
		buf := frames(f)
		for i, want := range dribbled {
			payload, n, err := f.Next(buf, 500)
			if err != nil || n == 0 || string(payload) != want {
				t.Fatalf("%s: frame %d is %q, %d, %v", f, i, payload, n, err)
			}
			// Whoever appends to a payload must not write over the next frame.
			_ = append(payload, "overwritten"...)
			buf = buf[n:]
		}
		if len(buf) > 0 {
			t.Errorf("%s: %q is left", f, buf)
		}
	}
}
