package caddyrelay

import (
	"fmt"
	"testing"

	"github.com/caddyrelay/relay/broker"
)

func (l *heardList) hear(body string) *heardOne {
	h := &heardOne{message: &broker.Message{ID: "01", Body: []byte(body)}, size: len(body)}
	l.count()
	l.add(h)
	return h
}

// Nodes that heard the same since a mark give it the same names, whatever each heard before.
func TestHeardNames(t *testing.T) {
	var one, two heardList
	one.hear("early")
	for _, l := range []*heardList{&one, &two} {
		l.cut("m1")
	}
	first, again := one.hear("x"), two.hear("x")
	one.count() // what is not stored has its place too
	two.count()
	third, last := one.hear("x"), two.hear("x")
	if first.key() == "" || first.key() != again.key() || third.key() != last.key() {
		t.Errorf("%q, %q; %q, %q", first.key(), again.key(), third.key(), last.key())
	}
	if first.key() == third.key() {
		t.Error("two publications have one name")
	}
	if one.all[0].key() != "" {
		t.Error("what came before the first mark has a name")
	}
	two.cut("") // a gap: it is not known what was missed
	if h := two.hear("x"); h.key() != "" {
		t.Errorf("after a gap: %q", h.key())
	}
	two.cut("m2")
	one.cut("m2")
	if a, b := one.hear("y").key(), two.hear("y").key(); a == "" || a != b {
		t.Errorf("after the next mark: %q, %q", a, b)
	}
	// Were places counted wrongly, other bodies still have other names.
	if a, b := (&heardOne{mark: "m", place: 1, message: &broker.Message{Body: []byte("a")}}).key(),
		(&heardOne{mark: "m", place: 1, message: &broker.Message{Body: []byte("b")}}).key(); a == b {
		t.Error("two bodies have one name")
	}
}

// What a mark says is stored is forgotten, and nothing else.
func TestHeardIsForgotten(t *testing.T) {
	var holder, other heardList
	for _, l := range []*heardList{&holder, &other} {
		l.hear("0")
		l.cut("m1")
		l.hear("1")
		l.hear("2")
		l.cut("m2")
		l.hear("3")
	}
	steps := []struct {
		done   int // of the holder's, in this order
		stored string
		left   int // with the other
	}{
		{2, "", 4}, // it may be that nobody knows what came before m1
		{0, "m1", 3},
		{1, "m2", 1},
		{3, "m2", 1}, // nothing waits, but only the next mark can tell where
	}
	all := append([]*heardOne(nil), holder.all...)
	for _, s := range steps {
		all[s.done].done = true
		holder.trim()
		if got := holder.stored(); got != s.stored {
			t.Errorf("%d done: stored before %q, want %q", s.done, got, s.stored)
		}
		other.forget(holder.stored())
		if len(other.all) != s.left {
			t.Errorf("%d done: %d left, want %d", s.done, len(other.all), s.left)
		}
	}
	other.forget("unknown")
	other.forget("")
	if len(other.all) != 1 || other.bytes != 1 || len(holder.all) != 0 || holder.bytes != 0 {
		t.Errorf("left %d of %d bytes, and %d of %d", len(other.all), other.bytes, len(holder.all), holder.bytes)
	}
	holder.cut("")
	if got := holder.stored(); got != "" {
		t.Errorf("after a gap: %q", got)
	}
}

// I10: what is kept has bounds.
func TestI10_HeardIsBounded(t *testing.T) {
	var l heardList
	for i := range maxMarks + 5 {
		l.cut(fmt.Sprint("m", i))
	}
	if len(l.marks) != maxMarks || l.marks[len(l.marks)-1].mark != fmt.Sprint("m", maxMarks+4) {
		t.Errorf("%d marks", len(l.marks))
	}
	if l.full(maxHeardBytes + 1) {
		t.Error("one that is large does not fit into nothing")
	}
	for i := 0; !l.full(1); i++ {
		l.hear("x")
	}
	if len(l.all) != maxHeard {
		t.Errorf("%d fit", len(l.all))
	}
	for !l.full(maxHeardBytes) {
		l.drop()
	}
	for len(l.all) > 1 {
		l.drop()
	}
	if !l.full(maxHeardBytes) || l.full(maxHeardBytes-1) {
		t.Error("the bytes are not bounded")
	}
}

// I10: more than can be stored is refused and counted, not kept.
func TestI10_ClassicTooFast(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn, MaxPending: 2 * maxHeard})
	c.awaitProven()
	c.awaitCharge()
	c.storing.Lock() // as while a reload looks at what is stored
	sink := classicSink{c.i}
	for i := range maxHeard + 7 {
		sink.Deliver("pay", broker.FromPayload(fmt.Appendf(nil, `{"id":"%d","msg":"x"}`, i)))
	}
	counts := &c.counts.channel("pay").classic
	if n := counts.skipped[unfitLate].Load(); n != 7 {
		t.Errorf("%d were too many", n)
	}
	c.storing.Unlock()
	eventually(t, "the rest to be stored", func() bool { return counts.taken.Load() == maxHeard })
	c.i.mu.Lock()
	defer c.i.mu.Unlock()
	if len(c.i.heard.all) != 0 || c.i.heard.bytes != 0 {
		t.Errorf("%d are kept, %d bytes", len(c.i.heard.all), c.i.heard.bytes)
	}
}

// A node that is not in charge keeps the newest.
func TestClassicRing(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn})
	sink := classicSink{c.i}
	for i := range maxHeard + 7 {
		sink.Deliver("pay", broker.FromPayload(fmt.Appendf(nil, `{"id":"%d","msg":"x"}`, i)))
	}
	c.i.mu.Lock()
	defer c.i.mu.Unlock()
	if n := len(c.i.heard.all); n != maxHeard || c.i.heard.all[0].message.ID != "7" {
		t.Errorf("%d kept, from %s", n, c.i.heard.all[0].message.ID)
	}
}
