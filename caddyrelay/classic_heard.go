package caddyrelay

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/caddyrelay/relay/broker"
)

const (
	// maxHeard and maxHeardBytes bound what waits to be stored, or to be known as stored.
	maxHeard      = 10_000
	maxHeardBytes = 32 << 20

	// maxMarks bounds the marks that are remembered, of which there are two a second.
	maxMarks = 1000
)

// heardOne is a publication of a classic channel.
type heardOne struct {
	message *broker.Message // a copy; nil if err is set
	err     error
	size    int
	segment uint64
	mark    string // the mark that began the segment; empty if the place says nothing to others
	place   uint64 // in the segment, from 1
	ready   bool   // message has all that it is stored with
	done    bool   // stored, or never to be
}

// key makes two nodes that store the same publication store one message. Two publications never have the
// same key: were they numbered wrongly all the same, only equal ones could be taken for one.
func (h *heardOne) key() string {
	if h.mark == "" {
		return ""
	}
	sum := sha256.Sum256(h.message.Body)
	return "classic " + h.mark + " " + strconv.FormatUint(h.place, 10) + " " + hex.EncodeToString(sum[:8])
}

// heardList is what a node has heard on a classic channel and does not know to be stored.
//
// Redis gives all its subscribers the publications of all channels in one order. So a mark that the node in charge
// publishes on another channel cuts that order at the same place for everybody: mark and place behind it are a name
// that every node gives a publication without asking. A node that has missed something knows no names until the
// next mark.
type heardList struct {
	all     []*heardOne // oldest first
	bytes   int
	segment uint64 // rises with each mark and each gap
	mark    string
	place   uint64
	marks   []markAt // oldest first
}

// markAt is a mark, and the segment that it began.
type markAt struct {
	mark    string
	segment uint64
}

// count numbers a publication, whether or not it is to be added.
func (l *heardList) count() { l.place++ }

// add adds what was counted last.
func (l *heardList) add(h *heardOne) {
	h.segment, h.mark, h.place = l.segment, l.mark, l.place
	l.all = append(l.all, h)
	l.bytes += h.size
}

// full reports whether one more of this size would be too much.
func (l *heardList) full(size int) bool {
	return len(l.all) >= maxHeard || len(l.all) > 0 && l.bytes+size > maxHeardBytes
}

// cut begins a segment. Without a mark: something was missed.
func (l *heardList) cut(mark string) {
	l.segment++
	l.mark, l.place = mark, 0
	if mark != "" {
		l.marks = append(l.marks, markAt{mark, l.segment})
		l.marks = l.marks[max(0, len(l.marks)-maxMarks):]
	}
}

// stored returns the newest mark before which nothing waits; empty if there is none that others know.
func (l *heardList) stored() string {
	oldest := l.segment
	for _, h := range l.all {
		if !h.done {
			oldest = h.segment
			break
		}
	}
	for i := len(l.marks) - 1; i >= 0; i-- {
		if l.marks[i].segment == oldest {
			return l.marks[i].mark
		}
	}
	return ""
}

// forget removes what was heard before a mark, if the mark is known.
func (l *heardList) forget(mark string) {
	for i, m := range l.marks {
		if m.mark == mark {
			for len(l.all) > 0 && l.all[0].segment < m.segment {
				l.drop()
			}
			l.marks = l.marks[i:]
			return
		}
	}
}

// trim removes what is done and older than all that isn't.
func (l *heardList) trim() {
	for len(l.all) > 0 && l.all[0].done {
		l.drop()
	}
}

// drop removes the oldest.
func (l *heardList) drop() {
	l.bytes -= l.all[0].size
	l.all[0] = nil
	l.all = l.all[1:]
}
