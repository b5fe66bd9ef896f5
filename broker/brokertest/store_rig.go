package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// rig is what one check works with.
type rig struct {
	testing.TB
	h StoreHarness
	b StoreBackend
}

// channels are those that checks use. All have the same policy.
var channels = []string{"c", "d", "a", "b", "a:b", "a:b:c", "1:a", "{c}"}

// open returns a handle that can be used. policy is that of every channel.
func (r *rig) open(policy broker.Policy) broker.Store {
	r.Helper()
	s := r.b.Open()
	r.Cleanup(func() { _ = s.Close() })
	r.setPolicy(s, policy)
	var err error
	until(r, "the store to open", func() bool {
		_, err = s.Usage(r.ctx())
		return err == nil || !errors.Is(err, broker.ErrUnavailable)
	})
	if err != nil {
		r.Fatalf("opening: %v", err)
	}
	return s
}

func (r *rig) setPolicy(s broker.Store, policy broker.Policy) {
	policy.AllowVolatile = policy.AllowVolatile || r.h.Volatile
	all := make(map[string]broker.Policy)
	for _, c := range channels {
		all[c] = policy
	}
	s.SetPolicies(all)
}

// crash ends a handle.
func (r *rig) crash(s broker.Store) {
	if r.b.Crash == nil {
		_ = s.Close()
		return
	}
	r.b.Crash(s)
}

// reopen crashes a handle, and opens the next.
func (r *rig) reopen(s broker.Store, policy broker.Policy) broker.Store {
	r.Helper()
	r.crash(s)
	return r.open(policy)
}

// ctx returns a context that bounds one call.
func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.Cleanup(cancel)
	return ctx
}

// pass lets d pass on the store's clock.
func (r *rig) pass(s broker.Store, d time.Duration) {
	r.Helper()
	start := s.Now()
	if r.b.Advance != nil {
		r.b.Advance(d)
		return
	}
	until(r, fmt.Sprint("the clock to go on by ", d), func() bool { return s.Now().Sub(start) >= d })
}

// message returns a new one for a destination of channel c.
func message(id, body string) *broker.Message { return messageIn("c", id, "", body) }

func messageIn(channel, id, key, body string) *broker.Message {
	return &broker.Message{
		MID: broker.NewMessageID(channel, id, key), Channel: channel, ID: id, Key: key,
		Time: time.UnixMilli(time.Now().UnixMilli()), Body: []byte(body), ContentType: "text/plain",
	}
}

// store appends m, which must succeed.
func (r *rig) store(s broker.Store, m *broker.Message, o broker.AppendOptions) broker.Stored {
	r.Helper()
	o.Key = m.Key
	mid := m.MID
	stored, err := s.Append(r.ctx(), m, o)
	if err != nil {
		r.Fatalf("appending %q for %s: %v", m.Body, m.ID, err)
	}
	if !stored.Duplicate && stored.MID != mid {
		r.Errorf("the answer names %q; the message has %q", stored.MID, mid)
	}
	return stored
}

// add appends bodies for a destination of channel c, and returns the MIDs.
func (r *rig) add(s broker.Store, id string, bodies ...string) (mids []string) {
	r.Helper()
	for _, body := range bodies {
		mids = append(mids, r.store(s, message(id, body), broker.AppendOptions{}).MID)
	}
	return mids
}

// numbers returns "0", "1", …
func numbers(n int) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprint(i))
	}
	return bodies
}

// owner is told, and remembers.
type owner struct {
	mu       sync.Mutex
	rings    int // offers included
	offers   []offer
	lost     []error
	asked    []string
	withdraw func(seq uint64, mid string) bool
	attempts func(seq uint64, mid string) (int, bool)
	panics   bool
}

func (o *owner) note(f func()) {
	o.mu.Lock()
	f()
	panics := o.panics
	o.mu.Unlock()
	if panics {
		panic("an owner's own mistake")
	}
}

// Ring implements [broker.Owner].
func (o *owner) Ring() { o.note(func() { o.rings++ }) }

// offer is one that was made.
type offer struct {
	prev uint64
	broker.Entry
}

// Offer implements [broker.Owner].
func (o *owner) Offer(prev uint64, e broker.Entry) {
	o.note(func() { o.rings++; o.offers = append(o.offers, offer{prev, e}) })
}

// Lost implements [broker.Owner].
func (o *owner) Lost(err error) { o.note(func() { o.lost = append(o.lost, err) }) }

// Withdraw implements [broker.Owner].
func (o *owner) Withdraw(seq uint64, mid string) bool {
	o.note(func() { o.asked = append(o.asked, mid) })
	return o.withdraw == nil || o.withdraw(seq, mid)
}

// Attempts implements [broker.Owner].
func (o *owner) Attempts(seq uint64, mid string) (int, bool) {
	o.note(func() {})
	if o.attempts == nil {
		return 0, false
	}
	return o.attempts(seq, mid)
}

func (o *owner) rung() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rings
}

func (o *owner) losses() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.lost)
}

// hold is a mailbox that the check owns.
type hold struct {
	broker.Mailbox
	*owner
	r    *rig
	page []broker.Entry
	all  broker.Page
}

// attach takes a mailbox of channel c with room for all that checks store.
func (r *rig) attach(s broker.Store, id string) *hold {
	r.Helper()
	return r.attachAs(s, "c", id, new(owner), broker.AttachOptions{Window: 16, Limit: 1000, Bytes: 1 << 26})
}

func (r *rig) attachAs(s broker.Store, channel, id string, o *owner, options broker.AttachOptions) *hold {
	r.Helper()
	box, page, err := s.Attach(r.ctx(), channel, id, o, options)
	if err != nil {
		r.Fatalf("attaching to %s of %s: %v", id, channel, err)
	}
	for _, e := range page.Entries {
		if e.Message == nil {
			r.Fatalf("an entry without a message")
		}
	}
	return &hold{Mailbox: box, owner: o, r: r, page: page.Entries, all: page}
}

// entries and attached turn a page into its entries.
func entries(p broker.Page, err error) ([]broker.Entry, error) { return p.Entries, err }

func attached(m broker.Mailbox, p broker.Page, err error) (broker.Mailbox, []broker.Entry, error) {
	return m, p.Entries, err
}

// read reads all.
func (h *hold) read() []broker.Entry {
	h.r.Helper()
	page, err := h.Read(h.r.ctx(), 0, 1000, 1<<26)
	if err != nil {
		h.r.Fatalf("reading: %v", err)
	}
	return page.Entries
}

// find returns the entry of a message.
func (h *hold) find(mid string) broker.Entry {
	h.r.Helper()
	for _, e := range h.read() {
		if e.Message.MID == mid {
			return e
		}
	}
	h.r.Fatalf("%s is not in its mailbox", mid)
	return broker.Entry{}
}

// outcome is one of e, with one more attempt.
func outcome(e broker.Entry, s broker.State) broker.Outcome {
	o := broker.Outcome{Seq: e.Seq, MID: e.Message.MID, State: s, Counts: e.Counts}
	o.Attempts++
	if s == broker.StateDead {
		o.Reason = broker.DeadTerminated
	}
	return o
}

// settle settles, which must succeed.
func (h *hold) settle(outcomes ...broker.Outcome) []broker.Verdict {
	h.r.Helper()
	verdicts, err := h.Settle(h.r.ctx(), outcomes)
	if err != nil {
		h.r.Fatalf("settling: %v", err)
	}
	if len(verdicts) != len(outcomes) {
		h.r.Fatalf("%d verdicts for %d outcomes", len(verdicts), len(outcomes))
	}
	return verdicts
}

// finish settles entries with a state, which must be so then.
func (h *hold) finish(s broker.State, entries ...broker.Entry) {
	h.r.Helper()
	var outcomes []broker.Outcome
	for _, e := range entries {
		outcomes = append(outcomes, outcome(e, s))
	}
	if v := h.settle(outcomes...); slices.Contains(v, broker.Gone) {
		h.r.Errorf("settling unfinished entries: %v; want no Gone (%d)", v, broker.Gone)
	}
}

// detach gives the mailbox up, with these counts.
func (h *hold) detach(counts ...broker.Outcome) {
	h.r.Helper()
	if err := h.Detach(h.r.ctx(), counts); err != nil {
		h.r.Fatalf("detaching: %v", err)
	}
}

// bodies returns the bodies of entries.
func bodies(entries []broker.Entry) (b []string) {
	for _, e := range entries {
		b = append(b, string(e.Message.Body))
	}
	return b
}

// mustBe fails the check unless these are the entries, in order.
func (r *rig) mustBe(what string, entries []broker.Entry, want ...string) {
	r.Helper()
	if got := bodies(entries); !slices.Equal(got, want) {
		r.Fatalf("%s: %.300q, want %.300q", what, got, want)
	}
	for i := 1; i < len(entries); i++ {
		if entries[i].Seq <= entries[i-1].Seq {
			r.Errorf("%s: the sequences do not rise: %d after %d", what, entries[i].Seq, entries[i-1].Seq)
		}
	}
}

// mustHold fails the check unless this waits for a destination of channel c. It takes the mailbox and gives it up.
func (r *rig) mustHold(s broker.Store, id string, want ...string) {
	r.Helper()
	h := r.attach(s, id)
	r.mustBe("the mailbox of "+id, h.page, want...)
	h.detach()
}

// record looks a message up, which must be known.
func (r *rig) record(s broker.Store, mid string) broker.Record {
	r.Helper()
	rec, err := s.Lookup(r.ctx(), mid)
	if err != nil {
		r.Fatalf("looking up %s: %v", mid, err)
	}
	if rec.MID != mid {
		r.Errorf("looked up %s, and got %s", mid, rec.MID)
	}
	return rec
}

// mustEnd waits until a message is in a state.
func (r *rig) mustEnd(s broker.Store, mid string, want broker.State) broker.Record {
	r.Helper()
	var rec broker.Record
	until(r, fmt.Sprintf("a message to be %s", want), func() bool {
		rec = r.record(s, mid)
		return rec.State == want
	})
	return rec
}

// mustFail fails the check unless err wraps want.
func (r *rig) mustFail(what string, err, want error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Errorf("%s: %v; want an error that wraps %q", what, err, want)
	}
}

// all performs f n times at once.
func (r *rig) all(n int, f func(i int)) {
	r.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	within(r, "everything at once", wg.Wait)
}
