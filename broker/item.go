package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

// Item is all that a store keeps of one message: what is copied when messages move to another store.
type Item struct {
	// Record is what is known of the message. Its Attempts are those of Tried while it is unfinished.
	Record

	// Fingerprint is what an append with the same key is compared with. Empty: none.
	Fingerprint []byte

	// Keyed is until when its key is remembered. Zero: it has none.
	Keyed time.Time

	// Kept is until when the record of a finished message is kept. Zero: it is unfinished or a dead letter.
	Kept time.Time

	// Message is an unfinished message or a dead letter with its body; nil for others, whose bodies are not kept.
	Message *Message

	// Seq and Retain are an unfinished message's place in its mailbox and the end of its retention. After is the MID of
	// the message before it, empty if it is the first.
	Seq    uint64
	Retain time.Time
	After  string

	// Tried is what was tried with an unfinished message.
	Tried Counts
}

// digest is equal for two items if they are the same in all that a copy must keep. The place in the mailbox is
// not among that: only the order is.
func (i *Item) digest() [sha256.Size]byte {
	var buf []byte
	texts := func(all ...string) {
		for _, s := range all {
			buf = binary.AppendUvarint(buf, uint64(len(s)))
			buf = append(buf, s...)
		}
	}
	times := func(all ...time.Time) {
		for _, t := range all {
			ms := int64(0)
			if !t.IsZero() {
				ms = t.UnixMilli()
			}
			buf = binary.AppendVarint(buf, ms)
		}
	}
	texts(i.MID, i.Channel, i.ID, i.Ref, string(i.State), string(i.Fingerprint))
	times(i.Stored, i.Expires)
	if i.State.Finished() {
		texts(string(i.Reason), i.Detail, i.Node, string(i.Reply), fmt.Sprint(i.Attempts))
		times(i.Finished, i.Kept)
	} else {
		texts(fmt.Sprint(i.Tried.Attempts, i.Tried.Failures, i.Tried.Deaths))
		times(i.Retain, i.Tried.NotBefore)
	}
	if i.Message != nil {
		body := sha256.Sum256(AppendStored(nil, i.Message))
		buf = append(buf, body[:]...)
	}
	return sha256.Sum256(buf)
}
