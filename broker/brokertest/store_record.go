package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var recordChecks = []storeCheck{
	{"Lookup", noNeed, lookup},
	{"LookupAsksTheOwner", noNeed, lookupAsksTheOwner},
	{"LookupOnAnotherNode", needNodes, lookupOnAnotherNode},
	{"Find", noNeed, find},
	{"AwaitEnd", noNeed, awaitEnd},
	{"AwaitEndOnAnotherNode", needNodes, awaitEndOnAnotherNode},
	{"AwaitIsToldAtOnce", noNeed, awaitIsToldAtOnce},
	{"AwaitEveryKindOfEnd", noNeed, awaitEveryKindOfEnd},
	{"AwaitInVain", noNeed, awaitInVain},
	{"I6_DuplicateJoinsTheWait", noNeed, duplicateJoinsTheWait},
}

// unknown are MIDs of which nothing is known, well formed or not.
func unknown() []string {
	return []string{broker.NewMessageID("c", "01", ""), broker.NewMessageID("c", "01", "k"), "nonsense", "", "a:b", "\x00", broker.NewMID()}
}

func lookup(r *rig) {
	s := r.open(broker.Policy{})
	start := s.Now()
	m := messageIn("c", "01", "k", "x")
	m.Ref = "order 1"
	mid := r.store(s, m, broker.AppendOptions{}).MID
	rec := r.record(s, mid)
	if rec.Channel != "c" || rec.ID != "01" || rec.Ref != "order 1" || rec.State != broker.StateStored || rec.Attempts != 0 ||
		!rec.Finished.IsZero() || !rec.Expires.IsZero() || rec.Reply != nil || rec.Reason != "" {
		r.Errorf("the record is %+v", rec)
	}
	if d := rec.Stored.Sub(start); d < -time.Second || d > patience {
		r.Errorf("stored %s after the start", d)
	}
	for _, mid := range append(unknown(), "") {
		_, err := s.Lookup(r.ctx(), mid)
		r.mustFail("looking up what never was", err, broker.ErrNotFound)
		_, err = s.Content(r.ctx(), mid)
		r.mustFail("the content of what never was", err, broker.ErrNotFound)
	}
	// One record serves all messages of a key, and is found by the key. Who knows it does not know the MID.
	forged := broker.NewMessageID("c", "01", "k")
	_, err := s.Lookup(r.ctx(), forged)
	r.mustFail("looking up another MID of the same key", err, broker.ErrNotFound)
	_, err = s.Content(r.ctx(), forged)
	r.mustFail("the content of another MID of the same key", err, broker.ErrNotFound)
	_, err = s.Cancel(r.ctx(), forged)
	r.mustFail("cancelling another MID of the same key", err, broker.ErrNotFound)
	r.mustHold(s, "01", "x")
}

// lookupAsksTheOwner: what is in flight, and how often it was pushed, only the owner knows.
func lookupAsksTheOwner(r *rig) {
	s := r.open(broker.Policy{})
	inFlight(r, s, s)
}

func lookupOnAnotherNode(r *rig) {
	inFlight(r, r.open(broker.Policy{}), r.open(broker.Policy{}))
}

func inFlight(r *rig, s, owners broker.Store) {
	mids := r.add(s, "01", "1", "2", "3")
	o := new(owner)
	o.attempts = func(_ uint64, mid string) (int, bool) {
		switch mid {
		case mids[0]:
			return 3, true
		case mids[1]:
			return 2, false
		}
		return 0, false
	}
	h := r.attachAs(owners, "c", "01", o, broker.AttachOptions{Window: 2})
	noted := outcome(h.page[1], broker.StateStored)
	noted.Attempts = 1
	h.settle(noted)
	for i, want := range []struct {
		state    broker.State
		attempts int
	}{{broker.StateInFlight, 3}, {broker.StateStored, 2}, {broker.StateStored, 0}} {
		rec := r.record(s, mids[i])
		if rec.State != want.state || rec.Attempts != want.attempts {
			r.Errorf("message %d is %s with %d attempts, want %s with %d", i, rec.State, rec.Attempts, want.state, want.attempts)
		}
		if !rec.Finished.IsZero() {
			r.Errorf("message %d finished %s", i, rec.Finished)
		}
	}
	h.finish(broker.StateAcked, h.page[0])
	if rec := r.record(s, mids[0]); rec.State != broker.StateAcked || rec.Attempts != 1 { // as the outcome says
		r.Errorf("after its end the message is %s with %d attempts", rec.State, rec.Attempts)
	}
	h.detach()
	if rec := r.record(s, mids[1]); rec.State != broker.StateStored || rec.Attempts != 1 {
		r.Errorf("without an owner the message is %s with %d attempts, want stored with 1", rec.State, rec.Attempts)
	}
}

// find: by the business number, newest first, within a channel.
func find(r *rig) {
	s := r.open(broker.Policy{})
	put := func(channel, id, ref string) string {
		m := messageIn(channel, id, "", "x")
		m.Ref = ref
		r.pass(s, 2*time.Millisecond) // times are in milliseconds
		return r.store(s, m, broker.AppendOptions{}).MID
	}
	ones := []string{put("c", "01", "one"), put("c", "02", "one"), put("c", "01", "one"), put("c", "03", "one")}
	put("d", "01", "one")
	put("c", "01", "on")
	put("c", "01", "one ")
	put("c", "01", "")
	h := r.attach(s, "02")
	h.finish(broker.StateAcked, h.page...)
	h.detach()
	h = r.attach(s, "03")
	h.finish(broker.StateDead, h.page...)
	h.detach()
	check := func() {
		for _, limit := range []int{1, 3, 4, 100} {
			got, err := s.Find(r.ctx(), "c", "one", limit)
			if err != nil || len(got) != min(limit, 4) {
				r.Fatalf("finding at most %d of 4: %d, %v", limit, len(got), err)
			}
			for i, rec := range got {
				if rec.MID != ones[3-i] || rec.Ref != "one" {
					r.Errorf("at most %d: the record %d is not that of message %d", limit, i, 3-i)
				}
			}
		}
		if got, err := s.Find(r.ctx(), "c", "one", 100); err != nil || len(got) == 4 &&
			(got[0].State != broker.StateDead || got[2].State != broker.StateAcked || got[1].State != broker.StateStored) {
			r.Errorf("the records found are %+v, %v", got, err)
		}
	}
	check()
	// Storing the oldest again stores nothing, and makes it no newer.
	again := messageIn("c", "01", "", "x")
	again.MID, again.Ref = ones[0], "one"
	r.pass(s, 2*time.Millisecond)
	r.store(s, again, broker.AppendOptions{})
	check()
	for _, none := range [][2]string{{"c", "two"}, {"never", "one"}, {"c", "one\x00"}} {
		if got, err := s.Find(r.ctx(), none[0], none[1], 10); err != nil || len(got) > 0 {
			r.Errorf("finding %q in %s: %d records, %v", none[1], none[0], len(got), err)
		}
	}
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
		check()
	}
}

// waiting is an Await that runs.
type waiting struct {
	rec  broker.Record
	err  error
	done chan struct{}
}

func (r *rig) await(s broker.Store, mid string) *waiting {
	w := &waiting{done: make(chan struct{})}
	ctx := r.ctx()
	go func() {
		defer close(w.done)
		w.rec, w.err = s.Await(ctx, mid)
	}()
	return w
}

// mustHear fails the check unless all waiters hear of this end.
func (r *rig) mustHear(want broker.State, waiters ...*waiting) {
	r.Helper()
	for _, w := range waiters {
		within(r, "Await", func() { <-w.done })
		if w.err != nil || w.rec.State != want {
			r.Errorf("a waiter heard %q, %v; want %q", w.rec.State, w.err, want)
		}
	}
}

// awaitEnd: whoever waits hears of the end, with the reply: before, during and after it.
func awaitEnd(r *rig) {
	s := r.open(broker.Policy{})
	waitFor(r, s, s)
}

func awaitEndOnAnotherNode(r *rig) {
	waitFor(r, r.open(broker.Policy{}), r.open(broker.Policy{}))
}

func waitFor(r *rig, s, owners broker.Store) {
	mid := r.store(s, message("01", "x"), broker.AppendOptions{Wait: true}).MID
	other := r.store(s, message("01", "y"), broker.AppendOptions{Wait: true}).MID
	waiters := []*waiting{r.await(s, mid), r.await(s, mid), r.await(s, mid), r.await(owners, mid)}
	patient := r.await(s, other)
	h := r.attach(owners, "01")
	o := outcome(h.page[0], broker.StateAcked)
	o.Reply = []byte(`{"ok":1}`)
	h.settle(outcome(h.page[1], broker.StateStored)) // counts are no end
	h.settle(o)
	waiters = append(waiters, r.await(s, mid), r.await(owners, mid))
	r.mustHear(broker.StateAcked, waiters...)
	for _, w := range waiters {
		if w.rec.MID != mid || string(w.rec.Reply) != `{"ok":1}` || w.rec.Attempts != 1 || w.rec.Finished.IsZero() {
			r.Errorf("a waiter heard %+v", w.rec)
		}
	}
	select {
	case <-patient.done:
		r.Errorf("who waits for an unfinished message heard %+v, %v", patient.rec, patient.err)
	default:
	}
	h.finish(broker.StateWritten, h.page[1])
	r.mustHear(broker.StateWritten, patient)
}

// awaitIsToldAtOnce: who said so at the append need not wait for a second.
func awaitIsToldAtOnce(r *rig) {
	s := r.open(broker.Policy{})
	const n = 20
	h := r.attach(s, "01")
	start := time.Now()
	for range n {
		mid := r.store(s, message("01", "x"), broker.AppendOptions{Wait: true}).MID
		w := r.await(s, mid)
		h.finish(broker.StateAcked, h.read()...)
		r.mustHear(broker.StateAcked, w)
	}
	if d := time.Since(start); d > min(n*time.Second/2, patience) {
		r.Errorf("%d waits took %s: they are not told of the end", n, d)
	}
}

func awaitEveryKindOfEnd(r *rig) {
	s := r.open(broker.Policy{Retention: soon})
	options := broker.AppendOptions{Wait: true, TTL: soon / 2}
	expires := r.await(s, r.store(s, message("01", "x"), options).MID)
	options.TTL = 0
	retained := r.await(s, r.store(s, message("01", "x"), options).MID)
	cancelled := r.store(s, message("02", "x"), options).MID
	waits := r.await(s, cancelled)
	r.mustCancel(s, cancelled, broker.CancelDone)
	r.mustHear(broker.StateCancelled, waits)
	r.setPolicy(s, broker.Policy{})
	dead := r.store(s, message("02", "x"), options).MID
	waits = r.await(s, dead)
	h := r.attach(s, "02")
	h.finish(broker.StateDead, h.page...)
	r.mustHear(broker.StateDead, waits)
	h.detach()
	if _, err := s.Resend(r.ctx(), dead, 0); err != nil {
		r.Fatalf("sending again: %v", err)
	}
	waits = r.await(s, dead) // it has a second end
	h = r.attach(s, "02")
	h.finish(broker.StateAcked, h.page...)
	r.mustHear(broker.StateAcked, waits)
	r.pass(s, soon+10*time.Millisecond)
	r.mustHear(broker.StateExpired, expires)
	r.mustHear(broker.StateDead, retained)
}

// awaitInVain: when the wait ends first, the record says how things are, and that is no error.
func awaitInVain(r *rig) {
	s := r.open(broker.Policy{})
	mids := r.add(s, "01", "1", "2")
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[0])
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	short, cancelShort := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancelShort()
	for _, ctx := range []context.Context{short, ended} {
		within(r, "Await", func() {
			if rec, err := s.Await(ctx, mids[1]); err != nil || rec.State != broker.StateStored || rec.MID != mids[1] {
				r.Errorf("waiting in vain: %+v, %v; want the unfinished record", rec, err)
			}
			if rec, err := s.Await(ctx, mids[0]); err != nil || rec.State != broker.StateAcked {
				r.Errorf("waiting, when the time is over, for what is finished: %+v, %v", rec, err)
			}
		})
	}
	for _, mid := range unknown() {
		within(r, "Await", func() {
			_, err := s.Await(r.ctx(), mid)
			r.mustFail("waiting for what never was", err, broker.ErrNotFound)
		})
	}
	w := r.await(s, mids[1])
	if err := s.Close(); err != nil {
		r.Errorf("closing: %v", err)
	}
	within(r, "Await", func() { <-w.done })
	r.mustFail("waiting while the store closes", w.err, broker.ErrClosed)
}

// duplicateJoinsTheWait: a sender that asks again waits for the first message, on whichever handle.
func duplicateJoinsTheWait(r *rig) {
	stores := []broker.Store{r.open(broker.Policy{})}
	if r.h.Nodes {
		stores = append(stores, r.open(broker.Policy{}))
	}
	var mu sync.Mutex
	var waiters []*waiting
	r.all(6, func(i int) {
		s := stores[i%len(stores)]
		got, err := s.Append(r.ctx(), messageIn("c", "01", "k", "x"), broker.AppendOptions{Key: "k", Wait: true})
		if err != nil {
			r.Errorf("appending: %v", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		waiters = append(waiters, r.await(s, got.MID))
	})
	h := r.attach(stores[0], "01")
	r.mustBe("the mailbox", h.page, "x")
	h.finish(broker.StateAcked, h.page...)
	r.mustHear(broker.StateAcked, waiters...)
}

// usage returns that of one channel.
func (r *rig) usage(s broker.Store, channel string) broker.Usage {
	r.Helper()
	u, err := s.Usage(r.ctx())
	if err != nil && !errors.Is(err, broker.ErrUnavailable) {
		r.Fatalf("usage: %v", err)
	}
	return u[channel]
}

// mustUse waits until a channel's usage is this, except for Oldest, which is set if anything is pending.
func (r *rig) mustUse(s broker.Store, channel string, want broker.Usage) {
	r.Helper()
	var got broker.Usage
	r.eventually(func() bool {
		got = r.usage(s, channel)
		same := got
		same.Oldest = want.Oldest
		return same == want && got.Oldest.IsZero() == (want.Pending == 0)
	}, func() string { return fmt.Sprintf("the usage of %s is %+v, want %+v", channel, got, want) })
}

// eventually waits for a condition, and says what was wrong if it does not come.
func (r *rig) eventually(ok func() bool, wrong func() string) {
	r.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			r.Fatalf("%s", wrong())
		}
	}
}
