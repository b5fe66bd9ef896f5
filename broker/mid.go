package broker

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
)

// A MID of an at_least_once message consists of
//
//   - two characters that place its destination: ten bits of a hash of channel and ID. A store that
//     is split into partitions finds the message's by them;
//   - the name of its record, 26 characters. It is a hash of channel, ID and key, or random if there
//     is no key. So one record serves dedupe and receipt: it is found by the key and by the MID;
//   - if there is a key, 26 random characters. Who knows the key still cannot tell the MID.
const (
	placeLength  = 2
	nameLength   = 26
	keyedLength  = placeLength + 2*nameLength
	randomLength = placeLength + nameLength
)

var midEncoding = base32.StdEncoding.WithPadding(base32.NoPadding) // the alphabet of rand.Text

// NewMessageID returns a new MID for a message of an at_least_once channel. key may be empty.
func NewMessageID(channel, id, key string) string {
	place := hash(channel, id)
	mid := midEncoding.EncodeToString(place[:2])[:placeLength] // ten bits
	if key == "" {
		return mid + rand.Text()
	}
	return mid + RecordName(channel, id, key) + rand.Text()
}

// RecordName returns the name of the record of a message that has a key.
func RecordName(channel, id, key string) string {
	sum := hash(channel, id, key)
	return midEncoding.EncodeToString(sum[:])[:nameLength]
}

// RecordOf returns the name of the record of the message with this MID.
func RecordOf(mid string) (string, error) {
	if len(mid) != keyedLength && len(mid) != randomLength {
		return "", errBadMID
	}
	for i := range len(mid) {
		if c := mid[i]; (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return "", errBadMID
		}
	}
	return mid[placeLength : placeLength+nameLength], nil
}

var errBadMID = errors.New("not a message ID")

// Place returns where the destination of the message with this MID is, from 0 to 1023: the same
// for all messages of one channel and destination. The MID must be one for which [RecordOf]
// returns no error.
func Place(mid string) int {
	value := func(c byte) int {
		if c >= 'A' {
			return int(c - 'A')
		}
		return int(c-'2') + 26
	}
	return value(mid[0])<<5 | value(mid[1])
}

// PlaceOf returns where a destination is; see [Place].
func PlaceOf(channel, id string) int {
	place := hash(channel, id)
	return int(binary.BigEndian.Uint16(place[:2]) >> 6)
}

// hash is over length-prefixed parts, so that "a:b" with "c" is not "a" with "b:c".
func hash(parts ...string) [sha256.Size]byte {
	var buf []byte
	for _, p := range parts {
		buf = binary.AppendUvarint(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	return sha256.Sum256(buf)
}
