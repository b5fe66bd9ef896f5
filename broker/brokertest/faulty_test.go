package brokertest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/caddyrelay/relay/broker"
)

func faulty(t *testing.T) (*rig, broker.Store, *Plan) {
	m, plan := NewMemory(MemoryOptions{}), new(Plan)
	t.Cleanup(func() { _ = m.Close() })
	return &rig{TB: t, h: memoryHarness(false)}, Faulty(m, plan), plan
}

var errDisk = errors.New("the disk is full")

func TestFaultyFailsTheNthCall(t *testing.T) {
	r, s, plan := faulty(t)
	r.add(s, "01", "before")
	plan.Fail(MethodAppend, 2, errDisk)
	r.add(s, "01", "1")
	_, err := s.Append(r.ctx(), message("01", "2"), broker.AppendOptions{})
	r.mustFail("the second append", err, errDisk)
	r.add(s, "01", "3")
	r.mustHold(s, "01", "before", "1", "3")
	if n := plan.Calls(MethodAppend); n != 4 {
		t.Errorf("%d appends are counted, want 4", n)
	}
}

func TestFaultyLosesTheAnswer(t *testing.T) {
	r, s, plan := faulty(t)
	r.add(s, "01", "1", "2")
	plan.LoseAnswer(MethodAppend, 1)
	stored, err := s.Append(r.ctx(), message("01", "3"), broker.AppendOptions{})
	r.mustFail("the append", err, broker.ErrUnavailable)
	if stored != (broker.Stored{}) || errors.Is(err, broker.ErrRefused) {
		t.Errorf("the answer was not lost: %+v, %v", stored, err)
	}
	h := r.attach(s, "01")
	r.mustBe("the mailbox", h.page, "1", "2", "3")
	plan.LoseAnswer(MethodSettle, 1)
	_, err = h.Settle(r.ctx(), []broker.Outcome{outcome(h.page[0], broker.StateAcked)})
	r.mustFail("settling", err, broker.ErrUnavailable)
	r.mustBe("the mailbox", h.read(), "2", "3")
	plan.LoseAnswer(MethodDetach, 1)
	r.mustFail("detaching", h.Detach(r.ctx(), nil), broker.ErrUnavailable)
	plan.LoseAnswer(MethodAttach, 1)
	box, page, err := attached(s.Attach(r.ctx(), "c", "01", new(owner), broker.AttachOptions{}))
	if r.mustFail("attaching", err, broker.ErrUnavailable); box != nil || page != nil {
		t.Errorf("the answer was not lost")
	}
	if e := r.attach(s, "01").page[0]; e.Attempts != 1 {
		t.Errorf("the owner whose answer was lost did not attach")
	}
}

func TestFaultyStalls(t *testing.T) {
	r, s, plan := faulty(t)
	h := r.attach(s, "01")
	stall := plan.Stall(MethodRead, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = h.Read(r.ctx(), 0, 1, 1)
	}()
	within(t, "the stall", func() { <-stall.Reached() })
	r.add(s, "01", "1") // others go on
	select {
	case <-done:
		t.Error("the call did not wait")
	default:
	}
	stall.Release()
	stall.Release()
	within(t, "the call", func() { <-done })

	stall = plan.Stall(MethodSettle, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-stall.Reached()
		cancel()
	}()
	_, err := h.Settle(ctx, []broker.Outcome{outcome(h.read()[0], broker.StateAcked)})
	r.mustFail("a stalled call whose context ends", err, broker.ErrUnavailable)
	r.mustFail("a stalled call whose context ends", err, context.Canceled)
	r.mustBe("the mailbox", h.read(), "1")
}

func TestFaultyOutage(t *testing.T) {
	r, s, plan := faulty(t)
	mid := r.add(s, "01", "1")[0]
	h := r.attach(s, "01")
	plan.Outage(broker.ErrUnavailable)
	for what, err := range everyMethod(r.ctx(), s, h, mid) {
		r.mustFail(what+" during an outage", err, broker.ErrUnavailable)
	}
	_, err := s.Publish(r.ctx(), "c", broker.FromPayload(nil))
	r.mustFail("publishing during an outage", err, broker.ErrUnavailable)
	plan.Outage(nil)
	r.mustBe("the mailbox", h.read(), "1")
}

func TestFaultyMutes(t *testing.T) {
	r, s, plan := faulty(t)
	h := r.attach(s, "01")
	plan.Mute(true)
	r.add(s, "01", "1")
	other := r.attach(s.(*faultyStore).Store, "02") // which the plan knows nothing of
	r.add(s, "02", "1")
	until(t, "the other owner to be rung", func() bool { return other.rung() > 0 })
	n := h.rung() // bells ring in order
	plan.Mute(false)
	if n > 0 {
		t.Errorf("a muted owner was rung %d times", n)
	}
	r.add(s, "01", "2")
	until(t, "the owner to be rung again", func() bool { return h.rung() > 0 })
}

// The plan is changed while calls are made: under -race this fails without its lock.
func TestFaultyAtOnce(t *testing.T) {
	r, s, plan := faulty(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				plan.Fail(MethodAppend, 3, errDisk)
				plan.LoseAnswer(MethodAppend, 2)
				plan.Mute(plan.Calls(MethodAppend)%2 == 0)
				_, _ = s.Append(r.ctx(), message("01", "x"), broker.AppendOptions{})
			}
		})
	}
	wg.Wait()
	if n := plan.Calls(MethodAppend); n != 200 {
		t.Errorf("%d calls are counted, want 200", n)
	}
}
