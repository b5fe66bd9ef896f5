package wire

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParsePlainHello(t *testing.T) {
	for frame, want := range map[string][2]string{
		"01":                      {"01", ""},
		"01 token":                {"01", "token"},
		"01  two words ":          {"01", "two words"},
		" 01\t token\r":           {"01", "token"},
		"01\r\n":                  {"01", ""},
		"\ufeff01 t":              {"01", "t"},
		"01\x00":                  {"01", ""},
		"\x0001 t\x00\x00":        {"01", "t"},
		"0\x001 t":                {"0\x001", "t"},
		"0\ufeff1":                {"0\ufeff1", ""},
		"":                        {"", ""},
		" \r":                     {"", ""},
		"收银台 密":                   {"收银台", "密"},
		"0\u00a01":                {"0\u00a01", ""}, // for the check of the ID to refuse
		"\xff":                    {"\xff", ""},
		strings.Repeat("x", 9000): {strings.Repeat("x", 9000), ""},
	} {
		if id, token := ParsePlainHello([]byte(frame)); id != want[0] || token != want[1] {
			t.Errorf("%.40q: %.40q, %q", frame, id, token)
		}
	}
}

func TestAppendPlain(t *testing.T) {
	for _, c := range []struct {
		framing    Framing
		body, want string
	}{
		{line, `{"amount":1}`, `{"amount":1}` + "\n"},
		{line, `{ "a" : "<" }`, `{ "a" : "<" }` + "\n"},
		{line, "{ \"a\" :\r\n \"< \\n\" }\n", `{"a":"< \n"}` + "\n"},
		{line, "12\n", "12\n"},
		{line, "", "\n"},
		{line, "text", "text\n"},
		{line, "a\rb\r", "a\rb\r\n"},
		{line, "\xff\x00", "\xff\x00\n"},
		{length2, "{ \"a\" :\n 1 }\n", "\x00\x0d{ \"a\" :\n 1 }\n"},
		{length2, "a\nb", "\x00\x03a\nb"},
		{length4, "\xff\n", "\x00\x00\x00\x02\xff\n"},
	} {
		got, err := AppendPlain([]byte("before"), c.framing, []byte(c.body))
		if err != nil || string(got) != "before"+c.want {
			t.Errorf("%s %q: %q, %v", c.framing, c.body, got, err)
		}
	}
}

func TestAppendPlainRefuses(t *testing.T) {
	for _, c := range []struct {
		framing Framing
		body    string
	}{
		{line, "a\nb"},
		{line, "text\n"},
		{line, "{\"a\":1}\n{\"b\":2}\n"},
		{line, "{\"a\":\"\xd6\xd0\"}\n"}, // in GBK, a byte of a character may be a backslash
		{line, "\n"},
		{length2, strings.Repeat("x", 65536)},
	} {
		got, err := AppendPlain([]byte("before"), c.framing, []byte(c.body))
		if !errors.Is(err, ErrUnframable) || string(got) != "before" {
			t.Errorf("%s %.20q: %.20q, %v", c.framing, c.body, got, err)
		}
	}
}

func TestAppendPlainError(t *testing.T) {
	for _, c := range []struct {
		framing Framing
		e       Error
		want    string
	}{
		{line, Error{Code: 401, Reason: "wrong or missing token"}, "error 401 wrong or missing token\n"},
		{line, Error{Code: 400, Reason: "a\r\nb\x00c\x1b[31m\u0085"}, "error 400 a  b c [31m \n"},
		{length2, Error{Code: 400, Reason: "a\nb"}, "\x00\x0derror 400 a b"},
		{length4, Error{Code: 503}, "\x00\x00\x00\x0aerror 503 "},
	} {
		if got := AppendPlainError([]byte("before"), c.framing, c.e); string(got) != "before"+c.want {
			t.Errorf("%s: %q, want %q", c.framing, got, c.want)
		}
	}
	for _, f := range framings {
		frame := AppendPlainError(nil, f, Error{Code: 400, Reason: strings.Repeat("中", 100_000)})
		payload, n, err := f.Next(frame, 512)
		if err != nil || n != len(frame) || len(payload) < 500 || !utf8.Valid(payload) {
			t.Errorf("%s: a long reason gives %d bytes, %q, %v", f, n, payload, err)
		}
	}
}
