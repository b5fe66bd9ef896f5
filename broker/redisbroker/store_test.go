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

// durable are the arguments of a server that keeps what it takes.
var durable = []string{"--appendonly", "yes"}

// owner is a destination's session that does nothing by itself.
type owner struct {
	mu       sync.Mutex
	rings    int
	lost     []error
	withdraw bool // what it answers
	asked    int
	attempts int
	inFlight bool
}

func (o *owner) Offer(uint64, broker.Entry) { o.Ring() }
func (o *owner) Ring()                      { o.mu.Lock(); defer o.mu.Unlock(); o.rings++ }
func (o *owner) Lost(err error)             { o.mu.Lock(); defer o.mu.Unlock(); o.lost = append(o.lost, err) }

func (o *owner) Withdraw(uint64, string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return o.withdraw
}

func (o *owner) Attempts(uint64, string) (int, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.attempts, o.inFlight
}

func (o *owner) heard() (rings int, lost []error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rings, append([]error(nil), o.lost...)
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// openStore returns a broker that has stored nothing yet, for channel c with policy p.
func openStore(t *testing.T, o Options, p broker.Policy) *Broker {
	t.Helper()
	b := open(t, o)
	b.SetPolicies(map[string]broker.Policy{"c": p})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

func message(id, key, body string) *broker.Message {
	return &broker.Message{MID: broker.NewMessageID("c", id, key), Channel: "c", ID: id, Key: key, Body: []byte(body), Time: time.Now()}
}

func mustAppend(t *testing.T, b *Broker, id, body string) string {
	t.Helper()
	stored, err := b.Append(timeout(t), message(id, "", body), broker.AppendOptions{})
	if err != nil {
		t.Fatalf("appending %s: %v", body, err)
	}
	return stored.MID
}

func mustAttach(t *testing.T, b *Broker, id string, o broker.Owner, window int) (broker.Mailbox, []broker.Entry) {
	t.Helper()
	m, page, err := attached(b.Attach(timeout(t), "c", id, o, broker.AttachOptions{Window: window}))
	if err != nil {
		t.Fatalf("attaching %s: %v", id, err)
	}
	return m, page
}

// entries and attached make a page its entries.
func entries(p broker.Page, err error) ([]broker.Entry, error) { return p.Entries, err }

func attached(m broker.Mailbox, p broker.Page, err error) (broker.Mailbox, []broker.Entry, error) {
	return m, p.Entries, err
}

func mustSettle(t *testing.T, m broker.Mailbox, state broker.State, entries ...broker.Entry) []broker.Verdict {
	t.Helper()
	var outcomes []broker.Outcome
	for _, e := range entries {
		o := broker.Outcome{Seq: e.Seq, MID: e.Message.MID, State: state, Counts: e.Counts}
		o.Attempts++
		if state == broker.StateDead {
			o.Reason, o.Detail = broker.DeadTerminated, "no"
		}
		outcomes = append(outcomes, o)
	}
	verdicts, err := m.Settle(timeout(t), outcomes)
	if err != nil {
		t.Fatalf("settling: %v", err)
	}
	return verdicts
}

func bodies(entries []broker.Entry) (all []string) {
	for _, e := range entries {
		all = append(all, string(e.Message.Body))
	}
	return all
}

func stateOf(t *testing.T, b *Broker, mid string) broker.State {
	t.Helper()
	rec, err := b.Lookup(timeout(t), mid)
	if err != nil {
		t.Fatalf("looking up %s: %v", mid, err)
	}
	return rec.State
}

func TestAppendAttachSettle(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	var mids []string
	for i := range 5 {
		mids = append(mids, mustAppend(t, b, "01", fmt.Sprint(i)))
	}
	o := new(owner)
	m, page := mustAttach(t, b, "01", o, 3)
	if got := fmt.Sprint(bodies(page)); got != "[0 1 2]" {
		t.Fatalf("first page %s", got)
	}
	// In the middle, then the head: the hole goes with it.
	mustSettle(t, m, broker.StateAcked, page[1])
	mustSettle(t, m, broker.StateAcked, page[0])
	if v := mustSettle(t, m, broker.StateAcked, page[0]); v[0] != broker.Gone {
		t.Errorf("acknowledged twice: %v", v)
	}
	if n := server.CLI("LLEN", b.names.mailbox(placeOf("c", "01"))[1]); n != "3" {
		t.Errorf("%s entries are left", n)
	}
	rest, err := entries(m.Read(timeout(t), page[2].Seq, 10, 1<<20))
	if err != nil || fmt.Sprint(bodies(rest)) != "[3 4]" {
		t.Fatalf("read %v, %v", bodies(rest), err)
	}
	if s := stateOf(t, b, mids[1]); s != broker.StateAcked {
		t.Errorf("state %s", s)
	}
	mustSettle(t, m, broker.StateAcked, page[2], rest[0], rest[1])
	if err := m.Detach(timeout(t), nil); err != nil {
		t.Error(err)
	}
	usage, err := b.Usage(timeout(t))
	if u := usage["c"]; err != nil || u.Pending != 0 || u.Bytes != 0 || u.Mailboxes != 0 || u.Records != 5 || !u.Oldest.IsZero() {
		t.Errorf("usage %+v, %v", u, err)
	}
	if n := b.Endings()[broker.Ending{Channel: "c", State: broker.StateAcked}]; n != 5 {
		t.Errorf("%d endings", n)
	}
	if _, lost := o.heard(); len(lost) != 0 {
		t.Errorf("lost: %v", lost)
	}
	if keys := server.CLI("KEYS", "*:[qm]:*"); keys != "" {
		t.Errorf("left behind: %s", keys)
	}
}

func TestI6_SameKey(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	first, err := b.Append(timeout(t), message("01", "k", "a"), broker.AppendOptions{Key: "k", Fingerprint: []byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.Append(timeout(t), message("01", "k", "a"), broker.AppendOptions{Key: "k", Fingerprint: []byte{1}})
	if err != nil || again.MID != first.MID || !again.Duplicate || again.State != broker.StateStored || again.Durability != broker.AOFEverysec {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := b.Append(timeout(t), message("01", "k", "b"), broker.AppendOptions{Key: "k", Fingerprint: []byte{2}}); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("another body: %v", err)
	}
	other, err := b.Append(timeout(t), message("02", "k", "b"), broker.AppendOptions{Key: "k", Fingerprint: []byte{2}})
	if err != nil || other.Duplicate {
		t.Errorf("another destination: %+v, %v", other, err)
	}
}
