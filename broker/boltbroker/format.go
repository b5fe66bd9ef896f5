package boltbroker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// formatVersion is that of the file. A release reads its own version and the one before.
const formatVersion = 1

// The buckets. A mailbox's key is its channel and destination, each with its length in front, so that no
// two look alike; integers are big-endian, so that they sort.
var (
	bucketMeta    = []byte("meta")    // "format", "program", "created", "high"
	bucketBoxes   = []byte("boxes")   // mailbox: owner, for those that have one
	bucketEntries = []byte("entries") // mailbox, sequence: deadlines and message
	bucketCounts  = []byte("counts")  // mailbox, sequence: what was tried, once anything was
	bucketRecords = []byte("records") // record name: what is known of a message
	bucketExpiry  = []byte("expiry")  // slot of time, record name: when a record ends
	bucketRefs    = []byte("refs")    // channel, ref, time, MID
	bucketDead    = []byte("dead")    // channel, time, MID: the message

	allBuckets = [][]byte{bucketMeta, bucketBoxes, bucketEntries, bucketCounts, bucketRecords, bucketExpiry, bucketRefs, bucketDead}

	keyFormat, keyProgram, keyCreated, keyHigh = []byte("format"), []byte("program"), []byte("created"), []byte("high")
)

// prefixed appends parts with their lengths in front.
func prefixed(dst []byte, parts ...string) []byte {
	for _, p := range parts {
		dst = binary.AppendUvarint(dst, uint64(len(p)))
		dst = append(dst, p...)
	}
	return dst
}

func boxKey(channel, id string) string { return string(prefixed(nil, channel, id)) }

// parseBoxKey undoes boxKey, and returns what is behind it.
func parseBoxKey(key []byte) (channel, id string, rest []byte, err error) {
	if channel, key, err = cutString(key); err == nil {
		id, rest, err = cutString(key)
	}
	return channel, id, rest, err
}

var errDamaged = errors.New("damaged")

func cutString(data []byte) (string, []byte, error) {
	n, size := binary.Uvarint(data)
	if size <= 0 || n > uint64(len(data)-size) {
		return "", nil, fmt.Errorf("%w: %w value", broker.ErrFormat, errDamaged)
	}
	return string(data[size : size+int(n)]), data[size+int(n):], nil
}

func withSequence(key string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, len(key)+8), key...), seq)
}

// Times are milliseconds since 1970 UTC; zero is no time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// entryHeader is in front of a message in its mailbox.
const entryHeader = 1 + 8 + 8

// appendEntry appends the value of an entry: version, deadline, end of retention, message.
func appendEntry(dst []byte, expires, retain time.Time, m *broker.Message) []byte {
	dst = append(dst, formatVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(millis(expires)))
	dst = binary.BigEndian.AppendUint64(dst, uint64(millis(retain)))
	return broker.AppendStored(dst, m)
}

// parseEntry undoes appendEntry. The message shares memory with data.
func parseEntry(data []byte) (expires, retain time.Time, m *broker.Message, err error) {
	if len(data) < entryHeader || data[0] != formatVersion {
		return expires, retain, nil, fmt.Errorf("%w: %w entry", broker.ErrFormat, errDamaged)
	}
	expires = fromMillis(int64(binary.BigEndian.Uint64(data[1:])))
	retain = fromMillis(int64(binary.BigEndian.Uint64(data[9:])))
	m, err = broker.ParseStored(data[entryHeader:])
	return expires, retain, m, err
}

// row writes and reads values that are lists of numbers and strings. Fields are only ever added at the end.
type row struct {
	data []byte
	err  error
}

func newRow() *row { return &row{data: []byte{formatVersion}} }

func readRow(data []byte) *row {
	r := &row{}
	if len(data) == 0 || data[0] != formatVersion {
		r.err = fmt.Errorf("%w: %w value", broker.ErrFormat, errDamaged)
		return r
	}
	r.data = data[1:]
	return r
}

func (r *row) putInt(v int64)     { r.data = binary.AppendVarint(r.data, v) }
func (r *row) putString(s string) { r.data = prefixed(r.data, s) }

func (r *row) int() int64 {
	if r.err != nil || len(r.data) == 0 { // a field that an earlier release did not write
		return 0
	}
	v, n := binary.Varint(r.data)
	if n <= 0 {
		r.err = fmt.Errorf("%w: %w number", broker.ErrFormat, errDamaged)
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *row) string() string {
	if r.err != nil || len(r.data) == 0 {
		return ""
	}
	var s string
	s, r.data, r.err = cutString(r.data)
	return s
}

// tried is what was tried with an entry.
type tried struct{ broker.Counts }

func (t tried) encode() []byte {
	r := newRow()
	r.putInt(int64(t.Attempts))
	r.putInt(int64(t.Failures))
	r.putInt(int64(t.Deaths))
	r.putInt(millis(t.NotBefore))
	return r.data
}

func parseTried(data []byte) (t tried, err error) {
	if data == nil {
		return t, nil
	}
	r := readRow(data)
	t.Attempts, t.Failures, t.Deaths = int(r.int()), int(r.int()), int(r.int())
	t.NotBefore = fromMillis(r.int())
	return t, r.err
}

// record is the row of a message's record.
type record struct {
	broker.Record
	fingerprint string
	seq         uint64    // in its mailbox, while it is unfinished
	dedupe      time.Time // until when its key is remembered
	ends        int64     // slot at which the record is dropped; 0 while the message is unfinished
}

func (r *record) encode() []byte {
	w := newRow()
	for _, s := range []string{r.MID, r.Channel, r.ID, r.Ref, r.fingerprint, string(r.State), string(r.Reason), r.Detail, r.Node, string(r.Reply)} {
		w.putString(s)
	}
	for _, n := range []int64{int64(r.Attempts), millis(r.Stored), millis(r.Finished), millis(r.Expires), int64(r.seq), millis(r.dedupe), r.ends} {
		w.putInt(n)
	}
	return w.data
}

func parseRecord(data []byte) (*record, error) {
	r, in := new(record), readRow(data)
	r.MID, r.Channel, r.ID, r.Ref, r.fingerprint = in.string(), in.string(), in.string(), in.string(), in.string()
	r.State, r.Reason, r.Detail, r.Node = broker.State(in.string()), broker.DeadReason(in.string()), in.string(), in.string()
	if reply := in.string(); reply != "" {
		r.Reply = []byte(reply)
	}
	r.Attempts = int(in.int())
	r.Stored, r.Finished, r.Expires = fromMillis(in.int()), fromMillis(in.int()), fromMillis(in.int())
	r.seq = uint64(in.int())
	r.dedupe = fromMillis(in.int())
	r.ends = in.int()
	return r, in.err
}

// slotLength is how coarse the expiry of records is: those that end in the same slot are dropped together.
const slotLength = 10 * time.Minute

func slotOf(t time.Time) int64 { return t.Add(slotLength-1).UnixMilli() / slotLength.Milliseconds() }

func expiryKey(slot int64, name string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(slot)), name...)
}

func refKey(channel, ref string, stored time.Time, mid string) []byte {
	return append(binary.BigEndian.AppendUint64(prefixed(nil, channel, ref), uint64(millis(stored))), mid...)
}

func deadKey(channel string, died time.Time, mid string) []byte {
	return append(binary.BigEndian.AppendUint64(prefixed(nil, channel), uint64(millis(died))), mid...)
}
