package brokertest

import (
	"fmt"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var keyChecks = []storeCheck{
	{"I6_SameKey", noNeed, sameKey},
	{"I6_SameKeyAtOnce", noNeed, sameKeyAtOnce},
	{"I6_SameKeyOnNodes", needNodes, sameKeyOnNodes},
	{"I6_ScopeOfKeys", noNeed, scopeOfKeys},
	{"I6_OtherFingerprint", noNeed, otherFingerprint},
	{"I6_WindowOfKeys", noNeed, windowOfKeys},
	{"I6_LongKeys", noNeed, longKeys},
	{"I6_BeforeOtherReasons", noNeed, keyBeforeOtherReasons},
	{"I6_AfterCrash", needKept, keyAfterCrash},
}

func (r *rig) keyed(s broker.Store, id, key, body string) broker.Stored {
	r.Helper()
	return r.store(s, messageIn("c", id, key, body), broker.AppendOptions{})
}

// mustRepeat fails the check unless a key gives the first answer.
func (r *rig) mustRepeat(s broker.Store, id, key, mid string, state broker.State) {
	r.Helper()
	if got := r.keyed(s, id, key, "again"); !got.Duplicate || got.MID != mid || got.State != state {
		r.Errorf("key %.20q again: %+v; want a duplicate of %s, which is %s", key, got, mid, state)
	}
}

// sameKey: the same key gives the first message, and its state, whatever became of it.
func sameKey(r *rig) {
	s := r.open(broker.Policy{})
	for _, end := range []broker.State{broker.StateAcked, broker.StateWritten, broker.StateExpired, broker.StateDead} {
		id, key := "0"+string(end), "key of "+string(end)
		mid := r.keyed(s, id, key, "x").MID
		r.mustRepeat(s, id, key, mid, broker.StateStored)
		h := r.attach(s, id)
		r.mustBe("the mailbox", h.page, "x")
		h.finish(end, h.page...)
		r.mustRepeat(s, id, key, mid, end)
		r.mustBe("the mailbox after the end", h.read())
		h.detach()
	}
}

// sameKeyAtOnce: of appends at once with one key just one is stored, and all hear of it.
func sameKeyAtOnce(r *rig) { keysAtOnce(r, []broker.Store{r.open(broker.Policy{})}) }

func sameKeyOnNodes(r *rig) {
	keysAtOnce(r, []broker.Store{r.open(broker.Policy{}), r.open(broker.Policy{}), r.open(broker.Policy{})})
}

func keysAtOnce(r *rig, stores []broker.Store) {
	for round := range 5 {
		key, id := fmt.Sprint("k", round), fmt.Sprint("0", round)
		var mu sync.Mutex
		mids, originals := make(map[string]bool), 0
		r.all(12, func(i int) {
			got, err := stores[i%len(stores)].Append(r.ctx(), messageIn("c", id, key, "x"), broker.AppendOptions{Key: key})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Errorf("appending: %v", err)
			}
			mids[got.MID] = true
			if !got.Duplicate {
				originals++
			}
		})
		if len(mids) != 1 || originals != 1 {
			r.Errorf("%d MIDs, %d that are no duplicate; want one of each", len(mids), originals)
		}
		r.mustHold(stores[0], id, "x")
	}
}

// scopeOfKeys: a key counts within its channel and destination, and channels, IDs and keys don't run together.
func scopeOfKeys(r *rig) {
	s := r.open(broker.Policy{})
	seen := make(map[string]bool)
	for _, w := range [][3]string{
		{"c", "01", "k"}, {"c", "02", "k"}, {"d", "01", "k"}, {"c", "01", "K"}, {"c", "01", ""}, {"c", "01", "k\x00"},
		{"a:b", "c", "d"}, {"a", "b:c", "d"}, {"a", "b", "c:d"}, {"a:b:c", "c", "d"}, {"1:a", "b", "c"}, {"a", "1:b", "c"}, {"a", "b", "1:c"},
	} {
		got := r.store(s, messageIn(w[0], w[1], w[2], "x"), broker.AppendOptions{})
		if got.Duplicate || seen[got.MID] {
			r.Errorf("channel, ID and key %q: a duplicate of another", w)
		}
		seen[got.MID] = true
	}
	if a, b := r.keyed(s, "03", "", "x"), r.keyed(s, "03", "", "x"); a.Duplicate || b.Duplicate || a.MID == b.MID {
		r.Errorf("two messages without a key: %+v and %+v", a, b)
	}
}

// otherFingerprint: a key that was used for another content is a conflict; if one side has none, it isn't.
func otherFingerprint(r *rig) {
	s := r.open(broker.Policy{})
	try := func(id, fingerprint string) (broker.Stored, error) {
		m := messageIn("c", id, "k", "x")
		return s.Append(r.ctx(), m, broker.AppendOptions{Key: "k", Fingerprint: []byte(fingerprint)})
	}
	full := "0123456789abcdef0123456789abcde\xff"
	first, err := try("01", full)
	if err != nil || first.Duplicate {
		r.Fatalf("appending: %+v, %v", first, err)
	}
	for _, same := range []string{full, ""} {
		if got, err := try("01", same); err != nil || !got.Duplicate || got.MID != first.MID {
			r.Errorf("fingerprint %q after %q: %+v, %v; want a duplicate", same, full, got, err)
		}
	}
	_, err = try("01", full[:31]+"\xfe")
	r.mustFail("another fingerprint", err, broker.ErrConflict)
	r.mustHold(s, "01", "x")
	if _, err := try("02", ""); err != nil {
		r.Fatalf("appending: %v", err)
	}
	if got, err := try("02", full); err != nil || !got.Duplicate {
		r.Errorf("a fingerprint after none: %+v, %v; want a duplicate", got, err)
	}
}

// windowOfKeys: a key is forgotten after its window, but not while its message is unfinished.
func windowOfKeys(r *rig) {
	const window = 500 * time.Millisecond
	s := r.open(broker.Policy{Dedupe: window})
	done, open := r.keyed(s, "01", "done", "1").MID, r.keyed(s, "02", "open", "2").MID
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page...)
	r.pass(s, window+10*time.Millisecond)
	got := r.keyed(s, "01", "done", "3")
	if got.Duplicate || got.MID == done {
		r.Errorf("the key after its window: %+v; want a new message", got)
	}
	r.mustBe("the mailbox", h.read(), "3")
	r.mustRepeat(s, "02", "open", open, broker.StateStored)
	r.mustRepeat(s, "01", "done", got.MID, broker.StateStored)
	if rec := r.record(s, got.MID); rec.State != broker.StateStored {
		r.Errorf("the record of the new message is %+v", rec)
	}
	if rec, err := s.Lookup(r.ctx(), done); err == nil && (rec.MID != done || rec.State != broker.StateAcked) {
		r.Errorf("the old message: %+v; want its own record or none", rec)
	}
	h.finish(broker.StateAcked, h.read()...)
}

// longKeys: all of a key counts.
func longKeys(r *rig) {
	s := r.open(broker.Policy{})
	long := make([]byte, 1024)
	for i := range long {
		long[i] = 'x'
	}
	mid := r.keyed(s, "01", string(long), "1").MID
	if r.keyed(s, "01", string(long[1:]), "2").Duplicate || r.keyed(s, "01", string(long[1:])+"y", "3").Duplicate {
		r.Errorf("keys that differ at one end are taken for one")
	}
	r.mustRepeat(s, "01", string(long), mid, broker.StateStored)
}

// keyBeforeOtherReasons: a sender that asks again is not told of a full mailbox, or of the deadline of what it sent.
func keyBeforeOtherReasons(r *rig) {
	s := r.open(broker.Policy{MaxPending: 1})
	mid := r.keyed(s, "01", "k", "x").MID
	_, err := s.Append(r.ctx(), message("01", "y"), broker.AppendOptions{})
	r.mustFail("appending to a full mailbox", err, broker.ErrMailboxFull)
	r.mustRepeat(s, "01", "k", mid, broker.StateStored)

	m := messageIn("c", "02", "k", "x")
	first := r.store(s, m, broker.AppendOptions{Expires: s.Now().Add(300 * time.Millisecond)})
	expires := r.record(s, first.MID).Expires
	r.pass(s, 310*time.Millisecond)
	r.mustEnd(s, first.MID, broker.StateExpired)
	got, err := s.Append(r.ctx(), messageIn("c", "02", "k", "x"), broker.AppendOptions{Key: "k", Expires: expires})
	if err != nil || !got.Duplicate || got.MID != first.MID || got.State != broker.StateExpired {
		r.Errorf("the same key and deadline, after that: %+v, %v; want a duplicate that is expired", got, err)
	}
}

func keyAfterCrash(r *rig) {
	s := r.open(broker.Policy{})
	open, done := r.keyed(s, "01", "open", "x").MID, r.keyed(s, "02", "done", "x").MID
	h := r.attach(s, "02")
	h.finish(broker.StateAcked, h.page...)
	s = r.reopen(s, broker.Policy{})
	r.mustRepeat(s, "01", "open", open, broker.StateStored)
	r.mustRepeat(s, "02", "done", done, broker.StateAcked)
}
