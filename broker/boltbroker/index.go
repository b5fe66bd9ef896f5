package boltbroker

import (
	"container/heap"
	"slices"
	"sort"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// index is what the committer remembers of the file, so that checks and deadlines cost no search: everything but
// the bodies. Only the committer touches it. It runs ahead of the file while a batch is prepared, so when a commit
// fails it is thrown away.
type index struct {
	boxes map[string]*box
	usage map[string]*broker.Usage // by channel
	due   dueHeap
	high  uint64 // the highest sequence or fence that was given out
}

// box is a mailbox that holds messages or has an owner.
type box struct {
	key, channel, id string
	slots            []*slot // by sequence
	bytes            int64
	owned            bool        // somebody attached and has not detached, perhaps in an earlier process
	owner            *attachment // who, if it is this process
	window           int
}

// slot is an unfinished message.
type slot struct {
	box  *box
	seq  uint64
	mid  string
	size int
	due  time.Time
	gone bool // it left the mailbox; due is to be forgotten
}

func newIndex() *index {
	return &index{boxes: make(map[string]*box), usage: make(map[string]*broker.Usage)}
}

func (ix *index) box(channel, id string) *box {
	key := boxKey(channel, id)
	b := ix.boxes[key]
	if b == nil {
		b = &box{key: key, channel: channel, id: id}
		ix.boxes[key] = b
	}
	return b
}

// of returns the counts of a channel.
func (ix *index) of(channel string) *broker.Usage {
	u := ix.usage[channel]
	if u == nil {
		u = new(broker.Usage)
		ix.usage[channel] = u
	}
	return u
}

// add puts a message at the end of its mailbox.
func (ix *index) add(b *box, s *slot) {
	u := ix.of(b.channel)
	if len(b.slots) == 0 {
		u.Mailboxes++
	}
	s.box = b
	b.slots = append(b.slots, s)
	b.bytes += int64(s.size)
	u.Pending++
	u.Bytes += int64(s.size)
	heap.Push(&ix.due, dueAt{s.due, s})
}

// remove takes a message out.
func (ix *index) remove(s *slot) {
	b := s.box
	i := b.find(s.seq)
	if i == 0 { // nearly always: no message moves
		b.slots[0] = nil
		b.slots = b.slots[1:]
	} else {
		b.slots = slices.Delete(b.slots, i, i+1)
	}
	s.gone = true
	b.bytes -= int64(s.size)
	u := ix.of(b.channel)
	u.Pending--
	u.Bytes -= int64(s.size)
	if len(b.slots) == 0 {
		b.slots = nil
		u.Mailboxes--
		ix.forget(b)
	}
}

// forget drops a mailbox that nobody needs any more.
func (ix *index) forget(b *box) {
	if len(b.slots) == 0 && !b.owned {
		delete(ix.boxes, b.key)
	}
}

// find returns where the message with a sequence is, or would be.
func (b *box) find(seq uint64) int {
	return sort.Search(len(b.slots), func(i int) bool { return b.slots[i].seq >= seq })
}

// slot returns the message with a sequence and MID, or nil.
func (b *box) slot(seq uint64, mid string) *slot {
	if i := b.find(seq); i < len(b.slots) && b.slots[i].seq == seq && b.slots[i].mid == mid {
		return b.slots[i]
	}
	return nil
}

// next returns a number that is higher than all before. It is about the time in microseconds, so that it goes on
// rising when the file is replaced by an older copy.
func (ix *index) next(now time.Time) uint64 {
	ix.high = max(ix.high+1, uint64(max(now.UnixMicro(), 0)))
	return ix.high
}

// dueAt is when to look at a message.
type dueAt struct {
	at   time.Time
	slot *slot
}

// dueHeap has the earliest first. What left its mailbox is still in it, until its time comes or it is
// compacted.
type dueHeap []dueAt

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(dueAt)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = dueAt{}
	*h = old[:len(old)-1]
	return x
}

// compact drops what left when that is most of the heap: messages are finished long before their retention ends,
// and would be remembered until then.
func (ix *index) compact() {
	pending := 0
	for _, u := range ix.usage {
		pending += u.Pending
	}
	if len(ix.due) < 1024 || len(ix.due) < 2*pending {
		return
	}
	ix.due = slices.DeleteFunc(ix.due, func(d dueAt) bool { return d.slot.gone })
	heap.Init(&ix.due)
}
