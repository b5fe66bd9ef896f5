package broker

import (
	"crypto/rand"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxIDLength is the longest destination ID, in bytes. IDs become parts of keys
// in stores and of log lines, so they are kept short.
const MaxIDLength = 128

// Everyone is the destination that reaches every socket of an at_most_once
// channel. No socket can register under it.
const Everyone = "*"

// Message is one notification on its way to a destination.
type Message struct {
	// MID identifies the message for ever: at least 128 random bits. Knowing
	// one tells nothing of another. See [NewMID].
	MID string

	// Channel is the relay's channel, by its configured name.
	Channel string

	// ID is the destination: the ID that a socket registers under, or
	// [Everyone].
	ID string

	// Ref is the business number, such as an order. It may be empty.
	Ref string

	// Key is what makes its publish idempotent, as its sender gave it. It may be empty.
	Key string

	// Source names where the message came from: a route, a preset, or "bus".
	// It may be empty.
	Source string

	// Headers are the request headers chosen to travel with the message.
	Headers map[string]string

	// ContentType is that of Body, as its sender declared it. It may be empty.
	ContentType string

	// Body is what was posted, byte for byte.
	Body []byte

	// Time is when the relay accepted the message; for one that another
	// program published, when this node heard it.
	Time time.Time
}

// NewMID returns a new message ID: 26 characters of base32, 130 random bits.
func NewMID() string { return rand.Text() }

// CheckID returns an error that says what is wrong with a destination ID, or nil.
//
// An ID is 1 to [MaxIDLength] bytes of UTF-8 without spaces, commas, control or
// invisible characters, and not [Everyone]. Commas are refused because HTTP joins
// repeated headers and query fields with them, and U+FFFD because decoders put it for
// whatever they cannot read: two IDs must not pass as one.
func CheckID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("the ID is empty")
	case len(id) > MaxIDLength:
		return fmt.Errorf("the ID has %d bytes; at most %d are allowed", len(id), MaxIDLength)
	case id == Everyone:
		return fmt.Errorf("the ID %q means every socket of the channel; no socket can have it", Everyone)
	case !utf8.ValidString(id):
		return fmt.Errorf("the ID is not valid UTF-8")
	}
	if i := strings.IndexFunc(id, forbiddenInID); i >= 0 {
		r, _ := utf8.DecodeRuneInString(id[i:])
		return fmt.Errorf("the ID contains %q at byte %d; spaces, commas, control and invisible characters are not allowed", r, i)
	}
	return nil
}

func forbiddenInID(r rune) bool {
	return r == ',' || r == unicode.ReplacementChar || !unicode.IsGraphic(r) || unicode.IsSpace(r)
}
