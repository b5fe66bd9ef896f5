package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"
	"time"
	"unicode/utf8"
)

// Publication is one message in the shape in which it travels between programs:
//
//	{"id":"01","msg":<any JSON>,"relay":{…}}
//
// id and msg are the whole contract with programs that know nothing of the relay;
// they ignore the third member, which carries what else the relay knows. What other
// programs publish has no third member, may spell a number as id, and may not be
// of this shape at all: then it is for listeners on the bus, not for sockets.
//
// A Publication converts between the two forms when asked, and once. It is not safe
// for concurrent use; its bytes, once obtained, are never changed.
type Publication struct {
	payload []byte
	message *Message
	stored  bool
	err     error
}

// ErrNotForSockets says that a payload cannot be delivered to sockets, since it is
// not of the shape {"id":…,"msg":…}.
var ErrNotForSockets = errors.New(`not of the shape {"id":…,"msg":…}`)

// FromMessage returns the publication of m, which must not change afterwards. It
// fails if the body cannot be part of a JSON text: see [Message.CheckBody].
func FromMessage(m *Message) (*Publication, error) {
	if err := m.CheckBody(); err != nil {
		return nil, err
	}
	return &Publication{message: m}, nil
}

// FromStored is [FromMessage] for a message that is in a store already. The publication says so, and
// whoever stores what it hears must leave it alone: see [Publication.Stored].
func FromStored(m *Message) (*Publication, error) {
	p, err := FromMessage(m)
	if err == nil {
		p.stored = true
	}
	return p, err
}

// FromPayload returns the publication of the bytes that somebody published, which
// must not change afterwards. They may be anything.
func FromPayload(payload []byte) *Publication {
	return &Publication{payload: payload}
}

// Payload returns the bytes to publish.
func (p *Publication) Payload() []byte {
	if p.payload == nil && p.message != nil {
		p.payload = appendPayload(nil, p.message, p.stored)
	}
	return p.payload
}

// Message returns the message, with an empty Channel if the publication came as
// bytes. The error wraps [ErrNotForSockets].
//
// A message that another program published gets a MID and a time of its own here,
// so each node knows it by another MID.
func (p *Publication) Message() (*Message, error) {
	if p.message == nil && p.err == nil {
		p.message, p.stored, p.err = parsePayload(p.payload)
	}
	return p.message, p.err
}

// Stored reports whether a relay published this for those who only listen, having stored it first: were it
// stored again, its destination would get it twice. False for what has no message.
func (p *Publication) Stored() bool {
	_, _ = p.Message()
	return p.stored
}

// extra is the third member of the payload. Its fields are a format that other
// nodes, of other versions, read: never reuse a name.
type extra struct {
	MID         string            `json:"mid"`
	Time        int64             `json:"ts"` // acceptance, milliseconds since 1970 UTC
	ContentType string            `json:"type,omitempty"`
	Ref         string            `json:"ref,omitempty"`
	Source      string            `json:"source,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Stored      bool              `json:"stored,omitempty"` // see FromStored
}

// maxDepth is how deep a JSON body may be nested. encoding/json reads 10 000 levels, and the body travels
// inside of an object or two: what is accepted here must be readable there.
const maxDepth = 9000

// CheckBody returns an error if the body cannot travel as JSON: it is not UTF-8, or
// it claims to be JSON and is not, or is nested deeper than 9000 levels.
func (m *Message) CheckBody() error {
	if IsJSON(m.ContentType) {
		if !json.Valid(m.Body) {
			return fmt.Errorf("the body is not valid JSON, which its content type %q says it is", m.ContentType)
		}
		if tooDeep(m.Body, maxDepth) {
			return fmt.Errorf("the body is JSON nested deeper than %d levels", maxDepth)
		}
		// json.Valid does not look into strings for broken UTF-8.
	}
	if !utf8.Valid(m.Body) {
		return fmt.Errorf("the body is not valid UTF-8, so it cannot travel inside JSON")
	}
	return nil
}

// IsJSON reports whether a content type is JSON: application/json, or any type
// with the suffix +json (RFC 6839), with or without parameters.
func IsJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json"))
}

// appendPayload relies on CheckBody. It writes a JSON body as it stands: going
// through json.Marshal would change its bytes (it compacts, and turns < into \u003c),
// and a back end that checks a signature over them would refuse the payment.
func appendPayload(dst []byte, m *Message, stored bool) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, m.ID)
	dst = append(dst, `,"msg":`...)
	if IsJSON(m.ContentType) {
		dst = append(dst, m.Body...)
	} else {
		dst = appendString(dst, string(m.Body))
	}
	dst = append(dst, `,"relay":`...)
	x, err := json.Marshal(extra{
		MID: m.MID, Time: m.Time.UnixMilli(), ContentType: m.ContentType,
		Ref: m.Ref, Source: m.Source, Headers: m.Headers, Stored: stored,
	})
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	dst = append(dst, x...)
	return append(dst, '}')
}

// appendString appends s as a JSON string without escaping <, > and &, so that other
// programs see the same text that json.stringify of theirs would print.
func appendString(dst []byte, s string) []byte {
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // a string: cannot happen
		panic(err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

func parsePayload(payload []byte) (m *Message, stored bool, err error) {
	idText, body, more, err := members(payload)
	if err != nil {
		return nil, false, err
	}
	id, err := ParseID(idText)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrNotForSockets, err)
	}
	m = &Message{ID: id}
	if more != nil {
		var x extra
		// Another program's "relay" member may be anything: then it is none of ours.
		if json.Unmarshal(more, &x) == nil && x.MID != "" {
			m.MID, m.ContentType, m.Ref, m.Source, m.Headers = x.MID, x.ContentType, x.Ref, x.Source, x.Headers
			m.Time = time.UnixMilli(x.Time)
			stored = x.Stored
		}
	}
	if m.MID == "" {
		m.MID, m.Time = NewMID(), time.Now()
	}
	m.Body = body
	if body[0] == '"' && !IsJSON(m.ContentType) {
		var s string
		if err := json.Unmarshal(body, &s); err != nil {
			return nil, false, fmt.Errorf("%w: msg: %w", ErrNotForSockets, err)
		}
		m.Body = []byte(s)
	} else if m.ContentType == "" {
		m.ContentType = "application/json"
	}
	return m, stored, nil
}

// ParseID returns the destination that a JSON string or number names. A number counts as
// its digits stand in the text: programs that keep IDs as numbers publish them so.
// [Everyone] is allowed. The error says what is wrong; see [CheckID].
func ParseID(text []byte) (string, error) {
	if len(text) == 0 {
		return "", fmt.Errorf("there is no id")
	}
	var id string
	switch c := text[0]; {
	case c == '"':
		if err := json.Unmarshal(text, &id); err != nil {
			return "", fmt.Errorf("id: %w", err)
		}
	case c == '-' || c >= '0' && c <= '9':
		id = string(text)
	default:
		return "", fmt.Errorf("id must be a string or a number")
	}
	if id == Everyone {
		return id, nil
	}
	return id, CheckID(id)
}
