package redisbroker

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// calls returns how often the server was asked for a command since the last reset.
func calls(t *testing.T, server *redistest.Server, command string) int {
	t.Helper()
	m := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(server.CLI("INFO", "commandstats"))
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A message costs one publication if its owner is on another node, which the script that stores makes, and none if it is here or
// nowhere.
func TestRouting(t *testing.T) {
	server := redistest.Start(t, durable...)
	quiet := Options{Address: server.Addr(), ProbeInterval: time.Hour, CheckInterval: time.Hour}
	one, two := openStore(t, quiet, broker.Policy{}), openStore(t, quiet, broker.Policy{})
	here, there := new(owner), new(owner)
	mustAttach(t, one, "here", here, 16)
	mustAttach(t, two, "there", there, 16)
	mustAppend(t, one, "nobody", "first")
	until(t, "the node channels to be proven", func() bool {
		return calls(t, server, "publish") >= 2 && calls(t, server, "subscribe") >= 4
	})
	for _, c := range []struct {
		id      string
		owner   *owner
		notices int
	}{{"nobody", nil, 0}, {"here", here, 0}, {"there", there, 10}} {
		server.CLI("CONFIG", "RESETSTAT")
		for i := range 10 {
			mustAppend(t, one, c.id, fmt.Sprint(i))
			if c.owner != nil {
				until(t, "the message to be handed over", func() bool { n, _ := c.owner.heard(); return n == i+1 })
			}
		}
		if n := calls(t, server, "publish"); n != c.notices {
			t.Errorf("%s: %d notices for 10 messages, want %d", c.id, n, c.notices)
		}
		if n := calls(t, server, "evalsha"); n > 10+3 { // and what nodes do each second
			t.Errorf("%s: %d scripts for 10 messages", c.id, n)
		}
	}
}

// I4: a node that hears nothing of the server stops writing when its lease is over, and goes on when it does.
func TestI4_Lease(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr(), Lease: 1500 * time.Millisecond, Timeout: 300 * time.Millisecond}, broker.Policy{})
	o := new(owner)
	m, _ := mustAttach(t, b, "01", o, 1)
	if !m.Leased() {
		t.Fatal("no lease")
	}
	server.Pause()
	until(t, "the lease to end", func() bool { return !m.Leased() })
	before, _ := o.heard()
	server.Resume()
	until(t, "the lease to hold again", m.Leased)
	until(t, "the owner to be rung", func() bool { n, _ := o.heard(); return n > before })
	if _, lost := o.heard(); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
}

// I4: the lease counts from before the question, not from when the answer was read: a process can be stopped in between.
func TestI4_LeaseCountsFromTheQuestion(t *testing.T) {
	l := newOwnerLease(time.Hour)
	if l.holds() {
		t.Error("it holds before the server was heard of")
	}
	if l.renew(-2 * time.Hour); l.holds() {
		t.Error("it holds for an answer to a question of two hours ago")
	}
	if l.renew(l.clock()); !l.holds() {
		t.Error("it does not hold")
	}
	if l.renew(-30 * time.Minute); !l.holds() {
		t.Error("a late answer to an older question took it away")
	}
}

// What cannot be told is told again, in short: nothing but the time is lost, and no memory.
func TestNoticesAgain(t *testing.T) {
	n := newNotices()
	for i := range 3 {
		n.offer("x", offer{Box: "b", Owner: "o", Prev: uint64(i), Entry: make([]byte, noticeBytes/2)})
	}
	n.ring("x", "a")
	n.lost("x", "c", "o")
	n.done("x", "m")
	all := n.take()["x"].pack()
	var prevs []uint64
	for _, v := range all {
		size := 0
		for _, o := range v.Offers {
			prevs = append(prevs, o.Prev)
			size += len(o.Entry)
		}
		if size > noticeBytes {
			t.Errorf("a notice of %d bytes", size)
		}
	}
	if !slices.Equal(prevs, []uint64{0, 1, 2}) {
		t.Errorf("offers in the order %v", prevs)
	}
	if n.idle() {
		t.Error("idle while it is being told")
	}
	for _, v := range all {
		n.again("x", v)
	}
	n.told()
	p := n.take()["x"]
	if text, _ := json.Marshal(p.pack()[0]); len(p.offers) > 0 || len(p.rings) != 2 || len(p.lost) != 1 || len(p.done) != 1 || p.missed {
		t.Errorf("to be told again: %s", text)
	}
	n.told()
	for i := range maxNotices + 10 {
		n.done("x", fmt.Sprint(i))
	}
	if p := n.take()["x"]; len(p.done) != maxNotices || !p.missed || !p.pack()[0].Missed {
		t.Errorf("%d are kept, missed %v", len(p.done), p.missed)
	}
	if n.told(); !n.idle() {
		t.Error("not idle")
	}
}

// I2: a promoted replica may know less of a mailbox than its owner has read. The owner takes it anew, or it would not see
// what gets the same sequences again.
func TestI2_SequencesGoBack(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr(), CheckInterval: time.Second}, broker.Policy{})
	o := new(owner)
	mustAttach(t, b, "01", o, 16)
	mustAppend(t, b, "01", "lost")
	keys := b.names.mailbox(placeOf("c", "01"))
	until(t, "the message to be handed over", func() bool { n, _ := o.heard(); return n > 0 })
	server.CLI("LPOP", keys[1])
	server.CLI("HSET", keys[0], "l", "5", "n", "0", "b", "0")
	until(t, "the owner to hear of it", func() bool { _, lost := o.heard(); return len(lost) > 0 })
	if _, lost := o.heard(); !errors.Is(lost[0], broker.ErrForgotten) {
		t.Errorf("lost: %v", lost)
	}
}

// An offer that somebody else made up is passed over, or is a ring; it disturbs nothing.
func TestOffersThatAreNone(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	o := new(owner)
	m, _ := mustAttach(t, b, "01", o, 16)
	box, name := placeOf("c", "01").box, m.(*mailbox).name
	for _, text := range []string{"o", "o1", "o9:x", "o-1:x", "o1:x1:y", "o1:x1:yz 1", "r", "rx", "{", "", "o99999999999999999999:x",
		fmt.Sprintf("o%d:%s%d:%sx entry", len(box), box, len(name), name)} {
		b.store.deliverNotice([]byte(text))
	}
	if n, _ := o.heard(); n > 0 {
		t.Errorf("rung %d times", n)
	}
	b.store.deliverNotice(fmt.Appendf(nil, "o%d:%s%d:%s0 no entry", len(box), box, len(name), name))
	if n, _ := o.heard(); n != 1 {
		t.Errorf("rung %d times for an entry that cannot be read", n)
	}
	mustAppend(t, b, "01", "x")
	until(t, "the message to be handed over", func() bool { n, _ := o.heard(); return n == 2 })
}

// I2: a server that comes back without the last it did has messages again that were finished. The owner attaches anew, or they
// would lie there, finished as far as it knows, until they become dead letters.
func TestI2_FinishedMessagesAreBack(t *testing.T) {
	server := redistest.Start(t)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{AllowVolatile: true})
	o := new(owner)
	m, _ := mustAttach(t, b, "01", o, 16)
	mustAppend(t, b, "01", "x")
	page, err := entries(m.Read(timeout(t), 0, 10, 1000))
	if err != nil || len(page) != 1 {
		t.Fatal(page, err)
	}
	server.CLI("SAVE")
	mustSettle(t, m, broker.StateAcked, page...)
	server.Kill()
	server.Restart()
	until(t, "the owner to hear of it", func() bool { _, lost := o.heard(); return len(lost) > 0 })
	if _, lost := o.heard(); !errors.Is(lost[0], broker.ErrForgotten) {
		t.Errorf("lost: %v", lost)
	}
	if _, page, err := attached(b.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{})); err != nil || len(page) != 1 {
		t.Errorf("%d messages, %v", len(page), err)
	}
}
