package wire

import (
	"bytes"
	"encoding/base64"
	"mime"
	"slices"
	"strings"
	"unicode/utf8"
)

// Message is one notification on its way to a client:
//
//	{"op":"message","mid":"…","channel":"pay_mq_channel","attempt":1,"fence":"…","ts":…,"ref":"…","source":"…",
//	 "headers":{…},"content_type":"…","body":…}
//
// mid and fence are opaque strings, since numbers are doubles in Lua and JavaScript.
// fence, ref, source, headers and content_type are left out when empty.
//
// The body is one of
//
//	"body":<JSON>                     the bytes that were posted, as they stand
//	"enc":"text","body":"…"           the text that was posted, as a JSON string
//	"enc":"base64","body":"…"         bytes that are not UTF-8
//
// It is JSON if it is valid and its content type says so, or if it is a valid object or
// array, whatever its type. An order number posted as text stays a string: as a number
// it would lose its last digits in a client whose numbers are doubles.
type Message struct {
	MID         string
	Channel     string
	Attempt     int    // 1 for the first push
	Fence       string // raised with each owner of the mailbox
	TS          int64  // when the relay accepted the message, milliseconds since 1970 UTC
	Ref         string
	Source      string
	Headers     map[string]string
	ContentType string
	Body        []byte
}

// AppendMessage appends the text of m. With singleLine, for framings where a frame is a line
// (see [Framing.SingleLine]), a JSON body that contains CR or LF loses the white space
// outside its strings; nothing else of it changes. Without, it may span lines.
func AppendMessage(dst []byte, m *Message, singleLine bool) []byte {
	dst = append(dst, `{"op":"message","mid":`...)
	dst = appendString(dst, m.MID)
	dst = append(dst, `,"channel":`...)
	dst = appendString(dst, m.Channel)
	dst = appendInt(dst, `,"attempt":`, int64(m.Attempt))
	dst = appendMember(dst, `,"fence":`, m.Fence)
	dst = appendInt(dst, `,"ts":`, m.TS)
	dst = appendMember(dst, `,"ref":`, m.Ref)
	dst = appendMember(dst, `,"source":`, m.Source)
	dst = appendHeaders(dst, m.Headers)
	dst = appendMember(dst, `,"content_type":`, m.ContentType)
	dst = appendBody(dst, m, singleLine)
	return append(dst, '}')
}

// appendMember appends a string member, unless it is empty.
func appendMember(dst []byte, before, value string) []byte {
	if value == "" {
		return dst
	}
	return appendString(append(dst, before...), value)
}

// appendHeaders sorts, so that the same message is always the same bytes.
func appendHeaders(dst []byte, headers map[string]string) []byte {
	if len(headers) == 0 {
		return dst
	}
	var room [16]string // rarely more; keeps the names off the heap
	names := room[:0]
	for name := range headers {
		names = append(names, name)
	}
	slices.Sort(names)
	dst = append(dst, `,"headers":`...)
	separator := byte('{')
	for _, name := range names {
		dst = append(dst, separator)
		dst = appendString(dst, name)
		dst = append(dst, ':')
		dst = appendString(dst, headers[name])
		separator = ','
	}
	return append(dst, '}')
}

// appendBody puts enc before body, so that a client that reads as it parses knows what comes.
//
// A JSON body never goes through json.Marshal, which would turn < into \u003c: the
// client could no longer verify the sender's signature over the bytes.
func appendBody(dst []byte, m *Message, singleLine bool) []byte {
	switch {
	case bodyIsJSON(m.ContentType, m.Body):
		dst = append(dst, `,"body":`...)
		if singleLine && hasLineBreak(m.Body) {
			return appendCompact(dst, m.Body)
		}
		return append(dst, m.Body...)
	case utf8.Valid(m.Body):
		dst = append(dst, `,"enc":"text","body":`...)
		return appendString(dst, m.Body)
	default:
		dst = append(dst, `,"enc":"base64","body":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, m.Body)
		return append(dst, '"')
	}
}

// bodyIsJSON is the rule in the doc of [Message].
func bodyIsJSON(contentType string, body []byte) bool {
	text := bytes.TrimLeft(body, jsonSpace)
	if len(text) == 0 {
		return false
	}
	return (text[0] == '{' || text[0] == '[' || typeIsJSON(contentType)) && isJSON(body)
}

// typeIsJSON must agree with broker.IsJSON, which this package may not import: a body that the broker
// carried as text would otherwise come out as a number.
func typeIsJSON(contentType string) bool {
	if contentType == "application/json" { // nearly always, and no work
		return true
	}
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json"))
}
