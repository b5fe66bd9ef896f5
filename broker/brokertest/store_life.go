package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var lifeChecks = []storeCheck{
	{"ClosedStore", noNeed, closedStore},
	{"EndedContexts", noNeed, endedContexts},
	{"I1_CrashKeepsAll", needKept, crashKeepsAll},
	{"I1_CrashDuringAppends", needKept, crashDuringAppends},
	{"I8_CloseKeepsAll", needKept, closeKeepsAll},
	{"I9_StoreOutage", needDown, storeOutage},
	{"I1_OutageKeepsAll", needDown, outageKeepsAll},
}

// closedStore: every method says so, owners hear it once, and nothing hangs.
func closedStore(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.add(s, "01", "x")[0]
	h := r.attach(s, "01")
	for range 2 {
		within(r, "Close", func() {
			if err := s.Close(); err != nil {
				r.Errorf("closing: %v", err)
			}
		})
	}
	until(r, "the owner to hear of the close", func() bool { return len(h.losses()) > 0 })
	within(r, "every method", func() {
		for what, err := range everyMethod(r.ctx(), s, h, mid) {
			r.mustFail(what+" after Close", err, broker.ErrClosed)
		}
	})
	_ = s.Endings()
	s.SetPolicies(nil)
	if s.Ready() == nil {
		r.Errorf("a closed store is ready")
	}
	if l := h.losses(); len(l) != 1 || !errors.Is(l[0], broker.ErrClosed) {
		r.Errorf("the owner heard %v, want ErrClosed once", l)
	}
}

// everyMethod calls every method that does I/O, and returns their errors.
func everyMethod(ctx context.Context, s broker.Store, h *hold, mid string) map[string]error {
	errs := make(map[string]error)
	_, errs["Append"] = s.Append(ctx, message("01", "y"), broker.AppendOptions{})
	_, _, errs["Attach"] = s.Attach(ctx, "c", "02", new(owner), broker.AttachOptions{})
	_, errs["Lookup"] = s.Lookup(ctx, mid)
	_, errs["Find"] = s.Find(ctx, "c", "ref", 1)
	_, errs["Content"] = s.Content(ctx, mid)
	_, errs["Cancel"] = s.Cancel(ctx, mid)
	_, errs["DeadLetters"] = s.DeadLetters(ctx, "c", broker.DeadQuery{})
	_, errs["Resend"] = s.Resend(ctx, mid, 0)
	errs["Drop"] = s.Drop(ctx, mid)
	_, errs["Usage"] = s.Usage(ctx)
	_, errs["Read"] = h.Read(ctx, 0, 1, 1)
	_, errs["Settle"] = h.Settle(ctx, []broker.Outcome{outcome(h.page[0], broker.StateAcked)})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, errs["Await"] = s.Await(short, mid)
	errs["Detach"] = h.Detach(ctx, nil)
	return errs
}

// endedContexts: no method hangs or makes up an error of its own.
func endedContexts(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.add(s, "01", "x")[0]
	h := r.attach(s, "01")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	within(r, "every method", func() {
		for what, err := range everyMethod(ctx, s, h, mid) {
			if err == nil || (what == "Resend" || what == "Drop") && errors.Is(err, broker.ErrNotFound) {
				continue // what needs no I/O may succeed all the same
			}
			if !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrFenced) {
				r.Errorf("%s with a context that has ended: %v; want ErrUnavailable", what, err)
			}
		}
	})
	if rec := r.record(s, mid); rec.State == "" {
		r.Errorf("the record is %+v", rec)
	}
	fresh := r.attach(s, "01")
	fresh.finish(broker.StateAcked, fresh.page...)
}

// crashKeepsAll: what was acknowledged is there after a crash, in order, with its state; and nothing else.
func crashKeepsAll(r *rig) {
	s := r.open(broker.Policy{})
	ends := []broker.State{broker.StateAcked, broker.StateWritten, broker.StateDead, broker.StateExpired}
	want := make(map[string][]string) // by destination
	states := make(map[string]broker.State)
	n := 0
	for round := range 4 {
		for i := range 12 {
			id := fmt.Sprint("0", i%3)
			body := fmt.Sprint(n)
			n++
			mid := r.add(s, id, body)[0]
			states[mid] = broker.StateStored
			want[id] = append(want[id], body)
		}
		for i := range 3 {
			id := fmt.Sprint("0", i)
			h := r.attach(s, id)
			r.mustBe(fmt.Sprintf("round %d: the mailbox of %s", round, id), h.page, want[id]...)
			for j, e := range h.page {
				if (j*7+round*3+i)%4 != 0 {
					continue
				}
				end := ends[(j+round)%4]
				h.finish(end, e)
				states[e.Message.MID] = end
				want[id] = slices.DeleteFunc(want[id], func(b string) bool { return b == string(e.Message.Body) })
			}
			if round%2 == 0 {
				h.detach()
			}
		}
		s = r.reopen(s, broker.Policy{})
	}
	for id, w := range want {
		h := r.attach(s, id)
		r.mustBe("the mailbox of "+id, h.page, w...)
		h.detach()
	}
	dead, pending := 0, 0
	for mid, state := range states {
		if rec := r.record(s, mid); rec.State != state {
			r.Errorf("a message is %s, and was %s before the crash", rec.State, state)
		}
		if state == broker.StateDead {
			dead++
		}
		if state == broker.StateStored {
			pending++
		}
	}
	if l := r.dead(s, broker.DeadQuery{Limit: 1000}).Letters; len(l) != dead {
		r.Errorf("%d dead letters, want %d", len(l), dead)
	}
	until(r, "the usage to be right", func() bool {
		u := r.usage(s, "c")
		return u.Pending == pending && u.Records == n && u.Dead == dead
	})
}

// crashDuringAppends: of what was under way, all that was acknowledged is there, each caller's in order.
func crashDuringAppends(r *rig) {
	for round := range 3 {
		s := r.open(broker.Policy{})
		id := fmt.Sprint("0", round)
		var mu sync.Mutex
		acknowledged := make(map[string]bool)
		enough := make(chan struct{})
		var wg sync.WaitGroup
		for caller := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					m := message(id, fmt.Sprint(caller, " ", i))
					mid := m.MID
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					_, err := s.Append(ctx, m, broker.AppendOptions{})
					cancel()
					if err != nil {
						return
					}
					mu.Lock()
					if acknowledged[mid] = true; len(acknowledged) == 60 {
						close(enough)
					}
					mu.Unlock()
				}
			})
		}
		within(r, "appending", func() { <-enough })
		within(r, "the crash", func() {
			r.crash(s)
			wg.Wait()
		})
		s = r.open(broker.Policy{})
		h := r.attachAs(s, "c", id, new(owner), broker.AttachOptions{Limit: 1 << 20, Bytes: 1 << 30})
		last := make(map[int]int)
		for _, e := range h.page {
			delete(acknowledged, e.Message.MID)
			var caller, i int
			_, _ = fmt.Sscan(string(e.Message.Body), &caller, &i)
			if i < last[caller] {
				r.Errorf("caller %d: %d comes after %d", caller, i, last[caller])
			}
			last[caller] = i
		}
		if len(acknowledged) > 0 {
			r.Errorf("%d acknowledged messages are lost", len(acknowledged))
		}
		h.detach()
		_ = s.Close()
	}
}

// closeKeepsAll: an orderly end loses no more than a crash does.
func closeKeepsAll(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "1", "2", "3")
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[1])
	h.detach()
	if err := s.Close(); err != nil {
		r.Errorf("closing: %v", err)
	}
	s = r.open(broker.Policy{})
	h = r.attach(s, "01")
	r.mustBe("the mailbox", h.page, "1", "3")
	r.mustCount(h.page[0], broker.Counts{})
}

// storeOutage: while the backend is away nothing is acknowledged, and it is said; afterwards all works again by itself.
func storeOutage(r *rig) {
	s := r.open(broker.Policy{})
	mid := r.add(s, "01", "1")[0]
	h := r.attach(s, "01")
	until(r, "the store to be ready", func() bool { return s.Ready() == nil })
	r.b.Stop()
	until(r, "the store to notice the outage", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := s.Append(ctx, message("02", "lost or not"), broker.AppendOptions{})
		return err != nil
	})
	until(r, "the store to say that it is not ready", func() bool { return s.Ready() != nil })
	for what, err := range map[string]error{
		"appending": func() error {
			_, err := s.Append(r.ctx(), message("02", "lost or not"), broker.AppendOptions{})
			return err
		}(),
		"looking up": func() error { _, err := s.Lookup(r.ctx(), mid); return err }(),
		"settling": func() error {
			_, err := h.Settle(r.ctx(), []broker.Outcome{outcome(h.page[0], broker.StateAcked)})
			return err
		}(),
		"attaching": func() error {
			_, _, err := s.Attach(r.ctx(), "c", "03", new(owner), broker.AttachOptions{})
			return err
		}(),
	} {
		r.mustFail(what+" during an outage", err, broker.ErrUnavailable)
	}
	now := s.Now()
	r.b.Start()
	until(r, "the store to be ready again", func() bool { return s.Ready() == nil })
	r.eventually(func() bool {
		_, err := s.Lookup(r.ctx(), mid)
		return err == nil
	}, func() string { return "what was acknowledged before the outage cannot be looked up after it" })
	if s.Now().Before(now) {
		r.Errorf("the clock went back from %s to %s", now, s.Now())
	}
	if l := h.losses(); len(l) > 0 {
		r.Errorf("the outage cost the owner its mailbox: %v", l)
	}
	before := h.rung()
	r.add(s, "01", "2")
	until(r, "the owner to be rung", func() bool { return h.rung() > before })
	if page := h.read(); len(page) > 0 && string(page[0].Message.Body) == "1" { // else the settling during the outage took effect
		h.finish(broker.StateAcked, page[0])
	}
	r.mustBe("the mailbox", h.read(), "2")
	if rec := r.record(s, mid); rec.State != broker.StateAcked {
		r.Errorf("the message is %s", rec.State)
	}
}

// outageKeepsAll: what was acknowledged before an outage is there after it, also for those who waited through it.
func outageKeepsAll(r *rig) {
	s := r.open(broker.Policy{})
	want := numbers(20)
	var mids []string
	for _, body := range want {
		mids = append(mids, r.store(s, message("01", body), broker.AppendOptions{Wait: true}).MID)
	}
	key := r.keyed(s, "02", "k", "x").MID
	w := r.await(s, mids[0])
	r.b.Stop()
	r.b.Start()
	until(r, "the store to be ready again", func() bool { return s.Ready() == nil })
	r.mustRepeat(s, "02", "k", key, broker.StateStored)
	h := r.attach(s, "01")
	r.mustBe("the mailbox", h.page, want...)
	h.finish(broker.StateAcked, h.page...)
	within(r, "Await", func() { <-w.done })
	if !errors.Is(w.err, broker.ErrUnavailable) { // it may give up
		r.mustHear(broker.StateAcked, w)
	}
	r.mustHear(broker.StateAcked, r.await(s, mids[0]))
}
