package wire

import (
	"bytes"
	"encoding/json"
	"iter"
	"unicode/utf8"
)

const jsonSpace = " \t\r\n"

// isJSON reports whether text is one JSON value. json.Valid alone lets broken UTF-8 inside strings
// pass, which other decoders refuse, together with all that stands around it.
func isJSON(text []byte) bool { return json.Valid(text) && utf8.Valid(text) }

// hasLineBreak reports whether text contains CR or LF. In valid JSON they are white space: inside
// strings they can only stand escaped.
func hasLineBreak(text []byte) bool {
	return bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0
}

// appendCompact appends valid JSON without the white space outside its strings. Nothing else
// changes: json.Compact, unlike json.Marshal, neither escapes < nor touches numbers.
func appendCompact(dst, text []byte) []byte {
	buf := bytes.NewBuffer(dst)
	_ = json.Compact(buf, text) // valid already
	return buf.Bytes()
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. It gives what encoding/json gives with SetEscapeHTML(false), but
// needs no memory besides dst. Broken UTF-8 becomes U+FFFD.
func appendString[S string | []byte](dst []byte, s S) []byte {
	dst = append(dst, '"')
	start := 0 // s[start:i] waits to be copied as it is
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = appendEscaped(dst, c)
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
			start = i + size
		case r == '\u2028' || r == '\u2029': // ends a line in older JavaScript
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&0xf])
			start = i + size
		}
		i += size
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// appendEscaped appends the escape of a control character, a quote or a backslash.
func appendEscaped(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
}

// members yields the names, unquoted, and the raw values of the JSON object in text, in order and
// with repetitions. The object must be valid.
//
// encoding/json would take "ID" for "id", which no other JSON library does: what one
// program checks would not be what another one uses.
func members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		// The text is valid, so no scan can run past its end.
		rest := bytes.TrimLeft(object, jsonSpace)[1:]
		for {
			rest = bytes.TrimLeft(rest, jsonSpace+",")
			if rest[0] == '}' {
				return
			}
			n := skipString(rest)
			name := unquote(rest[:n])
			rest = bytes.TrimLeft(rest[n:], jsonSpace+":")
			n = skipValue(rest)
			if !yield(name, rest[:n:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}

// unquote returns the text of a valid JSON string.
func unquote(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // valid already
	return []byte(s)
}

// skipString returns the length of the string at the start of text.
func skipString(text []byte) int {
	for i := 1; ; i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// skipValue returns the length of the value at the start of text, which stands in an object.
func skipValue(text []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch text[i] {
		case '"':
			i += skipString(text[i:]) - 1
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // the end of the object around a number or a word
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
}
