package broker

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// The format in which stores keep a message:
//
//	version  one byte, 1
//	flags    one byte; bit 0 is kept for sealed (encrypted) bodies and must be 0 in version 1
//	length   of the members, unsigned varint
//	members  JSON, see storedMembers
//	body     the rest, byte for byte
//
// Releases read the versions of their own and of the release before. Counts and deadlines are
// not part of it: they belong to the store, which may change them.
const storedVersion = 1

// storedMembers is a format: never reuse a name.
type storedMembers struct {
	MID         string            `json:"mid"`
	Channel     string            `json:"channel"`
	ID          string            `json:"id"`
	Time        int64             `json:"ts"` // acceptance, milliseconds since 1970 UTC
	ContentType string            `json:"type,omitempty"`
	Ref         string            `json:"ref,omitempty"`
	Key         string            `json:"key,omitempty"`
	Source      string            `json:"source,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
}

// AppendStored appends m in the format in which stores keep messages.
func AppendStored(dst []byte, m *Message) []byte {
	members, err := json.Marshal(storedMembers{
		MID: m.MID, Channel: m.Channel, ID: m.ID, Time: m.Time.UnixMilli(), ContentType: m.ContentType,
		Ref: m.Ref, Key: m.Key, Source: m.Source, Headers: m.Headers,
	})
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	dst = append(dst, storedVersion, 0)
	dst = binary.AppendUvarint(dst, uint64(len(members)))
	dst = append(dst, members...)
	return append(dst, m.Body...)
}

// ParseStored returns the message that [AppendStored] has written. Its body shares memory with
// data. The error wraps [ErrFormat].
func ParseStored(data []byte) (*Message, error) {
	if len(data) < 3 {
		return nil, fmt.Errorf("%w: a stored message of %d bytes is cut short", ErrFormat, len(data))
	}
	if data[0] != storedVersion || data[1] != 0 {
		return nil, fmt.Errorf("%w: a stored message has version %d and flags %d; this release reads version %d without flags: "+
			"use the release that wrote it", ErrFormat, data[0], data[1], storedVersion)
	}
	length, n := binary.Uvarint(data[2:])
	rest := data[2+max(n, 0):]
	if n <= 0 || length > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: a stored message of %d bytes is damaged", ErrFormat, len(data))
	}
	var v storedMembers
	if err := json.Unmarshal(rest[:length], &v); err != nil {
		return nil, fmt.Errorf("%w: the members of a stored message: %w", ErrFormat, err)
	}
	return &Message{
		MID: v.MID, Channel: v.Channel, ID: v.ID, Time: time.UnixMilli(v.Time), ContentType: v.ContentType,
		Ref: v.Ref, Key: v.Key, Source: v.Source, Headers: v.Headers, Body: rest[length:len(rest):len(rest)],
	}, nil
}
