package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// twoNodes returns two nodes on one server that hear each other.
func twoNodes(t *testing.T) (one, two *Broker) {
	server := redistest.Start(t, durable...)
	one = openStore(t, Options{Address: server.Addr(), Node: "one"}, broker.Policy{})
	two = openStore(t, Options{Address: server.Addr(), Node: "two"}, broker.Policy{})
	for _, b := range []*Broker{one, two} {
		until(t, "the node's channel", func() bool {
			b.ear.mu.Lock()
			defer b.ear.mu.Unlock()
			topic := b.ear.topics[b.names.node(b.store.incarnation)]
			return topic != nil && topic.proven.Load()
		})
	}
	return one, two
}

func TestNodesRing(t *testing.T) {
	one, two := twoNodes(t)
	o := new(owner)
	began := time.Now()
	m, _ := mustAttach(t, two, "01", o, 4)
	for i := range 3 {
		mustAppend(t, one, "01", fmt.Sprint(i))
		until(t, "a ring", func() bool { n, _ := o.heard(); return n > i || n > 0 && time.Since(began) > time.Second })
	}
	page, err := entries(m.Read(timeout(t), 0, 10, 1000))
	if err != nil || len(page) != 3 {
		t.Errorf("%d entries, %v", len(page), err)
	}
	if rec, err := one.Lookup(timeout(t), page[0].Message.MID); err != nil || rec.Node != "two" {
		t.Errorf("held by %q, %v", rec.Node, err)
	}
}

// I4: who is taken over hears of it and can do no harm.
func TestI4_NodesTakeOver(t *testing.T) {
	one, two := twoNodes(t)
	for i := range 3 {
		mustAppend(t, one, "01", fmt.Sprint(i))
	}
	old := new(owner)
	was, page := mustAttach(t, one, "01", old, 2)
	now, again := mustAttach(t, two, "01", new(owner), 3)
	if now.Fence() <= was.Fence() {
		t.Errorf("fence %d after %d", now.Fence(), was.Fence())
	}
	for i, want := range []broker.Counts{{Attempts: 1, Deaths: 1}, {Attempts: 1}, {}} {
		if again[i].Counts != want {
			t.Errorf("entry %d: %+v, want %+v", i, again[i].Counts, want)
		}
	}
	until(t, "the loss", func() bool { _, lost := old.heard(); return len(lost) == 1 && errors.Is(lost[0], broker.ErrFenced) })
	if _, err := was.Settle(timeout(t), []broker.Outcome{{Seq: page[0].Seq, MID: page[0].Message.MID, State: broker.StateAcked}}); !errors.Is(err, broker.ErrFenced) {
		t.Errorf("settled: %v", err)
	}
	mustSettle(t, now, broker.StateAcked, again...)
}

// Even if the old owner's node has not heard of its loss, its acks are refused.
func TestI4_UnheardLoss(t *testing.T) {
	one, two := twoNodes(t)
	one.store.muted.Store(true)
	mid := mustAppend(t, one, "01", "x")
	old := new(owner)
	was, page := mustAttach(t, one, "01", old, 1)
	_, _ = mustAttach(t, two, "01", new(owner), 1)
	outcome := []broker.Outcome{{Seq: page[0].Seq, MID: mid, State: broker.StateAcked}}
	if _, err := was.Settle(timeout(t), outcome); !errors.Is(err, broker.ErrFenced) {
		t.Errorf("settled: %v", err)
	}
	if _, lost := old.heard(); len(lost) != 1 {
		t.Errorf("lost: %v", lost)
	}
	if s := stateOf(t, two, mid); s != broker.StateStored {
		t.Errorf("state %s", s)
	}
}

func TestNodesCancel(t *testing.T) {
	one, two := twoNodes(t)
	for _, c := range []struct {
		withdraw bool
		want     broker.Cancelled
		state    broker.State
	}{{true, broker.CancelDone, broker.StateCancelled}, {false, broker.CancelTooLate, broker.StateInFlight}} {
		id := fmt.Sprint(c.withdraw)
		mid := mustAppend(t, one, id, "x")
		o := &owner{withdraw: c.withdraw, attempts: 2, inFlight: true}
		mustAttach(t, two, id, o, 1)
		got, err := one.Cancel(timeout(t), mid)
		if err != nil || got != c.want || o.asked != 1 {
			t.Errorf("%s: %d, %v, asked %d times", id, got, err, o.asked)
		}
		if s := stateOf(t, one, mid); s != c.state {
			t.Errorf("%s: state %s", id, s)
		}
	}
	// A node that is gone does not answer.
	mid := mustAppend(t, one, "gone", "x")
	gone := new(owner)
	m, _ := mustAttach(t, two, "gone", gone, 1)
	two.store.unregister(m.(*mailbox))
	if got, err := one.Cancel(timeout(t), mid); err != nil || got != broker.CancelUnknown {
		t.Errorf("owner gone: %d, %v", got, err)
	}
}

func TestNodesWait(t *testing.T) {
	one, two := twoNodes(t)
	m := message("01", "", "x")
	if _, err := one.Append(timeout(t), m, broker.AppendOptions{Wait: true}); err != nil {
		t.Fatal(err)
	}
	box, page := mustAttach(t, two, "01", new(owner), 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		rec, err := one.Await(timeout(t), m.MID)
		if err != nil || rec.State != broker.StateAcked || string(rec.Reply) != `{"ok":1}` || rec.Node != "two" || rec.Attempts != 1 {
			t.Errorf("%+v, %v", rec, err)
		}
	})
	until(t, "the wait", func() bool {
		one.store.mu.Lock()
		defer one.store.mu.Unlock()
		return len(one.store.waits) == 1
	})
	o := broker.Outcome{Seq: page[0].Seq, MID: m.MID, State: broker.StateAcked, Reply: []byte(`{"ok":1}`), Counts: broker.Counts{Attempts: 1}}
	if _, err := box.Settle(timeout(t), []broker.Outcome{o}); err != nil {
		t.Error(err)
	}
	wg.Wait()
	one.store.mu.Lock()
	defer one.store.mu.Unlock()
	if len(one.store.waits) != 0 || len(one.store.asks) != 0 {
		t.Error("somebody still waits")
	}
}

// I6: an append whose answer is lost is tried again under the same MID, and stored once.
func TestI6_AppendWhoseAnswerIsLost(t *testing.T) {
	server := redistest.Start(t, durable...)
	p := newProxy(t, server.Addr())
	b := openStore(t, Options{Address: p.addr(), Timeout: 300 * time.Millisecond}, broker.Policy{})
	mustAppend(t, b, "00", "x") // so that there is a connection
	p.silence(storing)
	m := message("01", "k", "x")
	stored, err := b.Append(timeout(t), m, broker.AppendOptions{Key: "k"})
	if err != nil || stored.Duplicate || stored.MID != m.MID {
		t.Errorf("%+v, %v", stored, err)
	}
	if _, page := mustAttach(t, b, "01", new(owner), 10); len(page) != 1 {
		t.Errorf("stored %d times", len(page))
	}
}

// An owner that Redis was not told of, or that could not say that it is gone, is not believed in for long: the next
// one starts at once, and nothing counts as pushed that was not.
func TestI5_DetachDuringAnOutage(t *testing.T) {
	server := redistest.Start(t, durable...)
	p := newProxy(t, server.Addr())
	b := openStore(t, Options{Address: p.addr(), Timeout: 300 * time.Millisecond, MaxBackoff: 50 * time.Millisecond}, broker.Policy{})
	mid := mustAppend(t, b, "01", "x")
	mustAppend(t, b, "02", "y")
	m, page := mustAttach(t, b, "01", new(owner), 1)
	p.hold(others)
	counts := broker.Outcome{Seq: page[0].Seq, MID: mid, State: broker.StateStored, Counts: broker.Counts{Attempts: 3}}
	if err := m.Detach(timeout(t), []broker.Outcome{counts}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("detached: %v", err)
	}
	if _, _, err := b.Attach(timeout(t), "c", "02", new(owner), broker.AttachOptions{}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("attached: %v", err)
	}
	p.release(others)
	for _, id := range []string{"01", "02"} {
		until(t, "the owner to be gone", func() bool {
			return server.CLI("HGET", b.names.mailbox(placeOf("c", id))[0], "o") == ""
		})
	}
	if _, page := mustAttach(t, b, "01", new(owner), 1); page[0].Attempts != 3 || page[0].Deaths != 0 {
		t.Errorf("counts %+v", page[0].Counts)
	}
	if _, page := mustAttach(t, b, "02", new(owner), 1); page[0].Counts != (broker.Counts{}) {
		t.Errorf("counts %+v", page[0].Counts)
	}
}

// An entry that its owner forgot is cancelled in the end, though Redis was away just then.
func TestI2_CancelDuringAnOutage(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr(), Timeout: 300 * time.Millisecond, MaxBackoff: 50 * time.Millisecond}, broker.Policy{})
	mid := mustAppend(t, b, "01", "x")
	m, page := mustAttach(t, b, "01", &owner{withdraw: true}, 1)
	server.Kill()
	name := m.(*mailbox).name
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := b.store.cancelHere(ctx, placeOf("c", "01").box, name, page[0].Seq, mid); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("cancelled: %v", err)
	}
	server.Restart()
	until(t, "the cancel", func() bool {
		rec, err := b.Lookup(timeout(t), mid)
		return err == nil && rec.State == broker.StateCancelled
	})
}

// I10: what waits for a server that hangs is bounded, and refused beyond.
func TestI10_QueueIsBounded(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	mustAppend(t, b, "00", "x")
	server.Pause()
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 100 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := b.Append(ctx, message("01", "", string(make([]byte, 1<<20))), broker.AppendOptions{})
			if errors.Is(err, broker.ErrRefused) && errors.Is(err, broker.ErrUnavailable) {
				mu.Lock()
				refused++
				mu.Unlock()
			} else if err == nil {
				t.Error("appended to a server that stands still")
			}
		})
	}
	wg.Wait()
	server.Resume()
	if refused < 30 {
		t.Errorf("%d were refused", refused)
	}
	until(t, "the queue to be empty", func() bool { return b.store.current()[0].appends.bytes.Load() == 0 })
	until(t, "an append", func() bool {
		_, err := b.Append(timeout(t), message("02", "", "x"), broker.AppendOptions{})
		return err == nil
	})
}

// A Redis that has forgotten an owner, or knows an earlier one only, is no take-over: the owner hears that it must attach
// again, and does so with a higher fence.
func TestI4_OwnerIsForgotten(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	mustAppend(t, b, "01", "a")
	key := b.names.mailbox(placeOf("c", "01"))[0]
	before := server.CLI("HGET", key, "f")
	for _, forget := range [][]string{{"HDEL", key, "o", "w"}, {"HSET", key, "o", "somebody/before#1", "f", "1"}, {"FLUSHALL"}} {
		o := new(owner)
		m, _ := mustAttach(t, b, "01", o, 4)
		if before != "" && m.Fence() <= uint64(number(t, before)) {
			t.Errorf("%v: the fence is %d after %s", forget, m.Fence(), before)
		}
		before = fmt.Sprint(m.Fence())
		server.CLI(forget...)
		until(t, "the owner to hear of it", func() bool {
			_, lost := o.heard()
			return len(lost) == 1 && errors.Is(lost[0], broker.ErrForgotten)
		})
		if _, err := m.Read(timeout(t), 0, 1, 100); !errors.Is(err, broker.ErrForgotten) {
			t.Errorf("%v: reading: %v", forget, err)
		}
	}
	o := new(owner)
	m, _ := mustAttach(t, b, "01", o, 4)
	server.CLI("HDEL", key, "o", "w")
	if _, err := m.Settle(timeout(t), []broker.Outcome{{Seq: 1, MID: "x", State: broker.StateAcked}}); !errors.Is(err, broker.ErrForgotten) {
		t.Errorf("settling: %v", err)
	}
}
