package brokertest

import (
	"errors"
	"testing"

	"github.com/caddyrelay/relay/broker"
)

// outage: while the backend is away, the subscription says so and so does Publish; afterwards both work again by
// themselves, and the sink was told of the two changes.
func outage(t testing.TB, backend Backend) {
	b := open(t, backend)
	e := listen(t, b, "c")
	e.mustBeUndisturbed(t)
	for range 2 {
		before := len(e.payloads())
		backend.Stop()
		e.awaitLost(t)
		mustBeUnavailable(t, b)
		backend.Start()
		e.awaitProven(t)
		mustPublish(t, b, "c", "again")
		e.await(t, before+1)
	}
	e.mustHave(t, "again", "again")
	e.mustHaveSeen(t, true, false, true, false)
	e.mustBeCalledRightly(t)
}

func (e *ear) awaitLost(t testing.TB) {
	t.Helper()
	until(t, "the outage to be noticed", func() bool { return e.sub.Err() != nil })
	if err := e.sub.Err(); err != nil && !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the subscription's state is %v, which does not wrap ErrUnavailable", err)
	}
}

func mustBeUnavailable(t testing.TB, b broker.Broker) {
	t.Helper()
	if err := publish(b, "c", "lost"); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("publishing during an outage: %v, want ErrUnavailable", err)
	}
}

// absentAtStart: a broker whose backend is not there yet is opened all the same, says what is wrong, and begins to
// work by itself.
func absentAtStart(t testing.TB, backend Backend) {
	backend.Stop()
	b := open(t, backend)
	e := &ear{channel: "c"}
	within(t, "Subscribe", func() { e.subscribe(t, b) })
	e.awaitLost(t)
	mustBeUnavailable(t, b)
	until(t, "the sink to be told", func() bool { return len(e.changes()) > 0 })
	backend.Start()
	e.awaitProven(t)
	until(t, "the sink to be told", func() bool { return len(e.changes()) > 1 })
	mustPublish(t, b, "c", "at last")
	e.mustHave(t, "at last")
	e.mustHaveSeen(t, true, false)
	e.mustBeCalledRightly(t)
}

// subscribedDuringAnOutage: a subscription that is not proven at its first attempt hears of the failure first.
func subscribedDuringAnOutage(t testing.TB, backend Backend) {
	b := open(t, backend)
	first := listen(t, b, "c")
	backend.Stop()
	first.awaitLost(t)
	ears := []*ear{{channel: "c"}, {channel: "new"}}
	for _, e := range ears {
		e.subscribe(t, b)
		e.awaitLost(t)
		until(t, "the sink to be told", func() bool { return len(e.changes()) > 0 })
	}
	closed := &ear{channel: "c"}
	closed.subscribe(t, b)
	closed.sub.Close()
	told := len(closed.changes())
	backend.Start()
	for _, e := range ears {
		e.awaitProven(t)
		until(t, "the sink to be told", func() bool { return len(e.changes()) > 1 })
		mustPublish(t, b, e.channel, "x")
		e.mustHave(t, "x")
		e.mustHaveSeen(t, true, false)
	}
	if n := len(closed.changes()); n > told+1 { // a call that was under way may have ended since
		t.Errorf("a closed subscription was told %d times more", n-told)
	}
}

func closeDuringAnOutage(t testing.TB, backend Backend) {
	b := open(t, backend)
	e := listen(t, b, "c")
	backend.Stop()
	e.awaitLost(t)
	within(t, "Close", func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	if err := e.sub.Err(); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("the subscription's state is %v, want ErrClosed", err)
	}
	if err := publish(b, "c", "x"); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("publishing: %v, want ErrClosed", err)
	}
}
