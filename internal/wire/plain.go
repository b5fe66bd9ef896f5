package wire

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The plain protocol:
//
//	C  01            or "01 token": one frame registers
//	S  <body>        one frame for each message
//	S  error 401 …   instead, if the client could not be registered

const byteOrderMark = "\ufeff"

func trimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte(byteOrderMark)) }

// ParsePlainHello splits the first frame of a plain client, "01" or "01 token". A byte order mark
// in front, and white space and NULs around, are dropped: editors, C strings and line ends
// of other systems leave them there. Nothing inside is dropped, so the ID still has to
// be checked. Without a token, token is empty.
func ParsePlainHello(frame []byte) (id, token string) {
	text := strings.Trim(string(trimBOM(frame)), jsonSpace+"\x00")
	end := strings.IndexAny(text, jsonSpace)
	if end < 0 {
		return text, ""
	}
	return text[:end], strings.TrimLeft(text[end:], jsonSpace)
}

// AppendPlain appends the frame of a body for a plain client: the body, byte for byte. In line
// framing a body that is valid JSON and contains CR or LF loses the white space outside
// its strings, and nothing else. Any other body with LF in it is [ErrUnframable]: cut or
// altered, it could be taken for another payment. A CR in such a body stays, as
// [Framing.Append] says. On an error dst is returned as it is.
func AppendPlain(dst []byte, f Framing, body []byte) ([]byte, error) {
	if f.SingleLine() && hasLineBreak(body) && isJSON(body) {
		body = appendCompact(nil, body)
	}
	return f.Append(dst, body)
}

// maxPlainError bounds the line that a refused plain client gets: a person reads it.
const maxPlainError = 512

// AppendPlainError appends the frame that tells a plain client why it is not registered, such as
//
//	error 401 wrong or missing token
//
// It is one line in every framing, and cut if it is too long. A plain client takes every
// frame for a payment, so send this only to one that never was registered, right before
// its socket is closed.
func AppendPlainError(dst []byte, f Framing, e Error) []byte {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, fmt.Sprintf("error %d %s", e.Code, e.Reason))
	framed, _ := f.Append(dst, []byte(cut(text, min(maxPlainError, f.MaxPayload())))) // short, and one line
	return framed
}

// cut returns the start of text, at most limit bytes, without half a character at its end.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
