package boltbroker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyrelay/relay/broker"
)

const channel = "pay"

func newStore(t testing.TB, o Options) *Broker {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "relay.db")
	}
	b := New(o)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func message(id, body string) *broker.Message {
	return &broker.Message{
		MID: broker.NewMessageID(channel, id, ""), Channel: channel, ID: id, Body: []byte(body), Time: time.UnixMilli(1700000000123),
	}
}

func mustAppend(t testing.TB, b *Broker, m *broker.Message, o broker.AppendOptions) string {
	t.Helper()
	out, err := b.Append(context.Background(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	return out.MID
}

// nobody is an owner that does nothing.
type nobody struct{}

func (nobody) Offer(uint64, broker.Entry)          {}
func (nobody) Ring()                               {}
func (nobody) Lost(error)                          {}
func (nobody) Withdraw(uint64, string) bool        { return false }
func (nobody) Attempts(uint64, string) (int, bool) { return 0, false }

// entries and attached make a page its entries.
func entries(p broker.Page, err error) ([]broker.Entry, error) { return p.Entries, err }

func attached(m broker.Mailbox, p broker.Page, err error) (broker.Mailbox, []broker.Entry, error) {
	return m, p.Entries, err
}

func bodies(t testing.TB, b *Broker, id string) string {
	t.Helper()
	m, page, err := attached(b.Attach(context.Background(), channel, id, nobody{}, broker.AttachOptions{Limit: 1000}))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range page {
		all = append(all, string(e.Message.Body))
	}
	if err := m.Detach(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// I1: after a commit that failed nothing more is accepted, until the file is opened again.
func TestI1_BrokenUntilReopened(t *testing.T) {
	b := newStore(t, Options{})
	mustAppend(t, b, message("01", "a"), broker.AppendOptions{})
	b.failCommit = func() error { return syscall.EIO }
	_, err := b.Append(context.Background(), message("01", "b"), broker.AppendOptions{})
	if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRefused) {
		t.Errorf("the commit that failed: %v; want ErrUnavailable, and not ErrRefused: nobody knows", err)
	}
	for range 2 {
		_, err = b.Append(context.Background(), message("01", "c"), broker.AppendOptions{})
		if !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, broker.ErrRefused) || !strings.Contains(err.Error(), b.o.Path) {
			t.Errorf("after it: %v", err)
		}
	}
	if b.Ready() == nil {
		t.Error("a broken store is ready")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := newStore(t, Options{Path: b.o.Path})
	if got := bodies(t, again, "01"); got != "a" {
		t.Errorf("the file has %q", got)
	}
}

// I9: a full disk refuses, loses nothing, and is no end: when there is room, all goes on.
func TestI9_DiskFull(t *testing.T) {
	b := newStore(t, Options{})
	mustAppend(t, b, message("01", "a"), broker.AppendOptions{})
	box, page, err := attached(b.Attach(context.Background(), channel, "01", nobody{}, broker.AttachOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	full := true
	b.failCommit = func() error { // called by the committer only, and not while this test is not waiting for it
		if full {
			return &fs.PathError{Op: "write", Path: b.o.Path, Err: syscall.ENOSPC}
		}
		return nil
	}
	for range 3 {
		_, err := b.Append(context.Background(), message("01", "b"), broker.AppendOptions{})
		if !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
			t.Errorf("on a full disk: %v", err)
		}
	}
	settle := []broker.Outcome{{Seq: page[0].Seq, MID: page[0].Message.MID, State: broker.StateAcked}}
	if _, err := box.Settle(context.Background(), settle); err == nil {
		t.Error("settled on a full disk")
	}
	full = false
	mustAppend(t, b, message("01", "c"), broker.AppendOptions{})
	if v, err := box.Settle(context.Background(), settle); err != nil || v[0] != broker.Settled {
		t.Errorf("settling when there is room: %v, %v", v, err)
	}
	if page, err := entries(box.Read(context.Background(), 0, 10, 1<<20)); err != nil || len(page) != 1 || string(page[0].Message.Body) != "c" {
		t.Errorf("the mailbox: %v, %v", page, err)
	}
}

// Operations that are committed together do not harm each other.
func TestBadOperationsHaveNeighbours(t *testing.T) {
	b := newStore(t, Options{})
	b.SetPolicies(map[string]broker.Policy{channel: {MaxPending: 3}})
	mustAppend(t, b, message("warm", "up"), broker.AppendOptions{})
	var commits int
	committing, gate := make(chan struct{}), make(chan struct{})
	b.failCommit = func() error { // the first commit waits until all the others are in the queue
		if commits++; commits == 1 {
			close(committing)
			<-gate
		}
		return nil
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := 0
	start := func(m *broker.Message, o broker.AppendOptions) {
		wg.Go(func() {
			if _, err := b.Append(context.Background(), m, o); err == nil {
				mu.Lock()
				stored++
				mu.Unlock()
			}
		})
	}
	start(message("first", "x"), broker.AppendOptions{})
	<-committing
	for i := range 10 {
		start(message("full", fmt.Sprint(i)), broker.AppendOptions{})
		start(message(fmt.Sprint("good", i), "x"), broker.AppendOptions{})
		start(message("late", "x"), broker.AppendOptions{Expires: time.UnixMilli(1)})
	}
	queued(b, 30)
	close(gate)
	wg.Wait()
	if stored != 1+3+10 {
		t.Errorf("%d messages stored, want 14", stored)
	}
	if commits > 3 {
		t.Errorf("%d commits for 31 operations", commits)
	}
	u, err := b.Usage(context.Background())
	if err != nil || u[channel].Pending != 15 || u[channel].Records != 15 {
		t.Errorf("usage: %+v, %v", u, err)
	}
}

// A file that is no store of this release is refused with its path and a way out, and left as it is.
func TestFilesThatAreNoStore(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	made := func(name string, fill func(tx *bolt.Tx) error) string {
		path := filepath.Join(dir, name)
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(fill), db.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole := newStore(t, Options{})
	for range 50 {
		mustAppend(t, whole, message("01", strings.Repeat("x", 4000)), broker.AppendOptions{})
	}
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(whole.o.Path)
	if err != nil {
		t.Fatal(err)
	}
	newer := func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket(bucketMeta)
		return errors.Join(err, b.Put(keyProgram, []byte(program)), b.Put(keyFormat, []byte{4}))
	}
	for _, c := range []struct{ name, path, says string }{
		{"text", write("text.db", strings.Repeat("my thesis\n", 1000)), "not a bbolt file"},
		{"short", write("short.db", "x"), "too short"},
		{"directory", dir, "not a regular file"},
		{"another program's", made("other.db", func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("acme")); return err }), "another program"},
		{"newer", made("newer.db", newer), "format 2"},
		{"cut", write("cut.db", string(data[:9000])), ""},
		{"damaged", write("damaged.db", string(data[:16])+strings.Repeat("\xff", len(data)-16)), ""},
	} {
		before, _ := os.ReadFile(c.path)
		b := newStore(t, Options{Path: c.path})
		err := b.Start()
		if err == nil || !strings.Contains(err.Error(), c.path) || !strings.Contains(err.Error(), c.says) ||
			!errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := b.Append(context.Background(), message("01", "x"), broker.AppendOptions{}); err == nil {
			t.Errorf("%s: stored a message in it", c.name)
		}
		if after, _ := os.ReadFile(c.path); string(after) != string(before) {
			t.Errorf("%s: the file was changed", c.name)
		}
	}
}

func TestTwoBrokersWithOneFile(t *testing.T) {
	a := newStore(t, Options{})
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	b := newStore(t, Options{Path: a.o.Path})
	if err := b.Start(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Errorf("once the first has let go: %v", err)
	}
}

// Another message can have the same key once its dedupe window is over. Its MID leads to the same record.
func TestRecordOfAnotherMessage(t *testing.T) {
	now := time.Now()
	b := newStore(t, Options{Clock: func() time.Time { return now }})
	b.SetPolicies(map[string]broker.Policy{channel: {Retention: time.Hour, Dedupe: time.Hour, Receipts: time.Minute}})
	keyed := func() *broker.Message {
		m := message("01", "x")
		m.MID, m.Key = broker.NewMessageID(channel, "01", "k"), "k"
		return m
	}
	first := mustAppend(t, b, keyed(), broker.AppendOptions{Key: "k"})
	if again := mustAppend(t, b, keyed(), broker.AppendOptions{Key: "k"}); again != first {
		t.Fatalf("%s is no duplicate of %s", again, first)
	}
	if c, err := b.Cancel(context.Background(), first); c != broker.CancelDone || err != nil {
		t.Fatal(c, err)
	}
	if _, err := b.Lookup(context.Background(), keyed().MID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a MID that was never stored: %v", err)
	}
}

func TestWithoutAPath(t *testing.T) {
	b := New(Options{})
	defer b.Close()
	_, err := b.Append(context.Background(), message("01", "x"), broker.AppendOptions{})
	if !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// An operation may run after its caller has gone: nothing of the caller's is touched then (for the race detector), and
// an attach that nobody waits for leaves no owner.
func TestCallersThatLeave(t *testing.T) {
	b := newStore(t, Options{})
	mustAppend(t, b, message("01", "a"), broker.AppendOptions{})
	mustAppend(t, b, message("02", "a"), broker.AppendOptions{})
	third := message("03", "a")
	mustAppend(t, b, third, broker.AppendOptions{})
	box, page, err := attached(b.Attach(context.Background(), channel, "01", nobody{}, broker.AttachOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"append", func(ctx context.Context) error {
			_, err := b.Append(ctx, message("04", "b"), broker.AppendOptions{})
			return err
		}},
		{"settle", func(ctx context.Context) error {
			e := page[0]
			_, err := box.Settle(ctx, []broker.Outcome{{Seq: e.Seq, MID: e.Message.MID, State: broker.StateAcked}})
			return err
		}},
		{"cancel", func(ctx context.Context) error {
			_, err := b.Cancel(ctx, third.MID)
			return err
		}},
		{"attach", func(ctx context.Context) error {
			_, _, err := b.Attach(ctx, channel, "02", nobody{}, broker.AttachOptions{})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The call is taken together with two that stand still: it runs while its caller leaves, and nothing but
			// the broker orders the two.
			ctx, cancel := context.WithCancel(context.Background())
			first, before, behind := newStandstill(b), newStandstill(b), newStandstill(b)
			before.end = ctx.Done()
			first.begin(t)
			<-first.begun
			before.begin(t)
			result := make(chan error, 1)
			go func() { result <- c.call(ctx) }()
			queued(b, 2)
			behind.begin(t)
			close(first.gate)
			<-before.begun
			cancel()
			if err := <-result; !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRefused) {
				t.Errorf("%v; want ErrUnavailable, and not ErrRefused: nobody knows", err)
			}
			close(behind.gate)
			if err := b.do(context.Background(), func(*batch) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	_, page, err = attached(b.Attach(context.Background(), channel, "02", nobody{}, broker.AttachOptions{}))
	if err != nil || len(page) != 1 || page[0].Attempts != 0 || page[0].Deaths != 0 {
		t.Errorf("after the attach that nobody waited for: %+v, %v", page, err)
	}
}

// standstill is an operation that stands still until its end.
type standstill struct {
	b           *Broker
	begun, gate chan struct{}
	end         <-chan struct{}
}

func newStandstill(b *Broker) *standstill {
	gate := make(chan struct{})
	return &standstill{b, make(chan struct{}), gate, gate}
}

// begin returns when the operation waits, or has begun.
func (s *standstill) begin(t *testing.T) {
	before := len(s.b.queue)
	go func() {
		if err := s.b.do(context.Background(), func(*batch) error { close(s.begun); <-s.end; return nil }); err != nil {
			t.Error(err)
		}
	}()
	for len(s.b.queue) == before {
		select {
		case <-s.begun:
			return
		default:
			runtime.Gosched()
		}
	}
}

// queued waits until n operations wait for the commit before them.
func queued(b *Broker, n int) {
	for len(b.queue) < n {
		runtime.Gosched()
	}
}

// A clock that is set back does not stand still: delays end, and deadlines pass.
func TestI7_ClockIsSetBack(t *testing.T) {
	var ahead atomic.Int64
	ahead.Store(int64(time.Hour))
	b := newStore(t, Options{Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, SweepInterval: 10 * time.Millisecond})
	mustAppend(t, b, message("01", "a"), broker.AppendOptions{})
	ahead.Store(0)
	before := b.Now()
	mid := mustAppend(t, b, message("02", "a"), broker.AppendOptions{TTL: 50 * time.Millisecond})
	for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		if r, err := b.Lookup(context.Background(), mid); err == nil && r.State == broker.StateExpired {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not expire; the clock showed %s, and shows %s", before, b.Now())
		}
	}
	if b.Now().Before(before) {
		t.Error("it went back")
	}
}

// More dead letters than max_dead_letters can still be sent again, or the operator would have to drop some first.
func TestResendAboveTheBound(t *testing.T) {
	b := newStore(t, Options{})
	b.SetPolicies(map[string]broker.Policy{channel: {MaxDead: 1}})
	for range 3 {
		mustAppend(t, b, message("01", "a"), broker.AppendOptions{})
	}
	box, page, err := attached(b.Attach(context.Background(), channel, "01", nobody{}, broker.AttachOptions{Window: 3}))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page {
		if _, err := box.Settle(context.Background(), []broker.Outcome{{Seq: e.Seq, MID: e.Message.MID, State: broker.StateDead, Reason: broker.DeadTerminated}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = b.Resend(context.Background(), page[0].Message.MID, 0); err != nil {
		t.Error(err)
	}
}

// withdrawing is an owner that forgets what it is asked to forget.
type withdrawing struct {
	nobody
	during func()
	lost   chan error
}

func (w withdrawing) Withdraw(uint64, string) bool { w.during(); return true }
func (w withdrawing) Lost(err error)               { w.lost <- err }

// I2: what an owner forgot and was not cancelled is not stranded: it is told to read again. What was pushed before is
// not asked for at all.
func TestI2_CancelThatFails(t *testing.T) {
	b := newStore(t, Options{})
	first := message("01", "a")
	mustAppend(t, b, first, broker.AppendOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	asked := 0
	w := withdrawing{during: func() { asked++; cancel() }, lost: make(chan error, 1)}
	if _, _, err := b.Attach(context.Background(), channel, "01", w, broker.AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Cancel(ctx, first.MID); err == nil {
		t.Error("cancelled with a context that has ended")
	}
	if err := <-w.lost; !errors.Is(err, broker.ErrForgotten) {
		t.Errorf("the owner heard %v", err)
	}
	box, page, err := attached(b.Attach(context.Background(), channel, "01", w, broker.AttachOptions{}))
	if err != nil || len(page) != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	if err := box.Detach(context.Background(), []broker.Outcome{{Seq: page[0].Seq, MID: first.MID, State: broker.StateStored, Counts: broker.Counts{Attempts: 1}}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Attach(context.Background(), channel, "01", w, broker.AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	asked = 0
	if answer, err := b.Cancel(context.Background(), first.MID); err != nil || answer != broker.CancelTooLate || asked != 0 {
		t.Errorf("cancelling what was pushed: %d, %v, asked %d times", answer, err, asked)
	}
}
