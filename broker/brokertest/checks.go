package brokertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// orderOfEachCaller: publications of one caller, made one after another, are delivered in that order, whatever
// others publish meanwhile.
func orderOfEachCaller(t testing.TB, backend Backend) {
	const callers, each = 8, 100
	b := open(t, backend)
	ears := []*ear{listen(t, b, "c"), listen(t, b, "c")}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := range each {
				if err := publish(b, "c", fmt.Sprintf("%d %d", i, n)); err != nil {
					t.Errorf("publishing: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range ears {
		checkOrder(t, e.await(t, callers*each), each)
		e.mustBeUndisturbed(t)
	}
}

// checkOrder reports publications "<caller> <n>" that are missing, doubled, or out of order.
func checkOrder(t testing.TB, heard []string, each int) {
	t.Helper()
	next := make(map[int]int)
	for _, p := range heard {
		var caller, n int
		if _, err := fmt.Sscan(p, &caller, &n); err != nil {
			t.Fatalf("heard %q, which nobody published", p)
		}
		if n != next[caller] {
			t.Fatalf("heard %d of caller %d, want %d", n, caller, next[caller])
		}
		next[caller]++
	}
	for caller, n := range next {
		if n != each {
			t.Errorf("heard %d of caller %d, want %d", n, caller, each)
		}
	}
}

func everySubscription(t testing.TB, backend Backend) {
	b := open(t, backend)
	ears := []*ear{listen(t, b, "c"), listen(t, b, "c"), listen(t, b, "c")}
	mustPublish(t, b, "c", "1")
	mustPublish(t, b, "c", "2")
	for _, e := range ears {
		e.mustHave(t, "1", "2")
		e.mustBeUndisturbed(t)
	}
}

func channelsAreApart(t testing.TB, backend Backend) {
	b := open(t, backend)
	one, two := listen(t, b, "one"), listen(t, b, "two")
	mustPublish(t, b, "one", "1")
	mustPublish(t, b, "two", "2")
	mustPublish(t, b, "one", "3")
	one.mustHave(t, "1", "3")
	two.mustHave(t, "2")
	one.mustBeUndisturbed(t)
	two.mustBeUndisturbed(t)
}

func nobodyListens(t testing.TB, backend Backend) {
	b := open(t, backend)
	mustPublish(t, b, "nobody", "x")
	e := listen(t, b, "c")
	mustPublish(t, b, "nobody", "x")
	mustPublish(t, b, "c", "y")
	e.mustHave(t, "y")
}

// sinkChangesSubscriptions: a sink may close its own subscription and add others. A broker that holds a lock
// while it calls would never return.
func sinkChangesSubscriptions(t testing.TB, backend Backend) {
	b := open(t, backend)
	stays, other := listen(t, b, "c"), &ear{channel: "other"}
	once := &ear{channel: "c"}
	subscribed := make(chan error, 1)
	once.onDeliver = func(*broker.Publication) {
		once.sub.Close()
		sub, err := b.Subscribe("other", other)
		other.sub = sub
		subscribed <- err
	}
	once.subscribe(t, b)
	once.awaitProven(t)
	within(t, "publishing to a sink that closes its subscription", func() { mustPublish(t, b, "c", "1") })
	within(t, "the sink", func() {
		if err := <-subscribed; err != nil {
			t.Errorf("subscribing: %v", err)
		}
	})
	mustPublish(t, b, "c", "2")
	stays.mustHave(t, "1", "2")
	once.mustHave(t, "1")
	other.awaitProven(t)
	mustPublish(t, b, "other", "3")
	other.mustHave(t, "3")
}

// nothingBeginsAfterClose: what is published after a subscription's Close has returned never reaches its sink, in
// the middle of traffic too.
func nothingBeginsAfterClose(t testing.TB, backend Backend) {
	b := open(t, backend)
	stays := listen(t, b, "c")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := publish(b, "c", "noise"); err != nil {
					t.Errorf("publishing: %v", err)
					return
				}
			}
		})
	}
	for i := range 20 {
		e := listen(t, b, "c")
		e.await(t, 1)
		within(t, "Close of a subscription", e.sub.Close)
		e.sub.Close() // does nothing
		if err := e.sub.Err(); !errors.Is(err, broker.ErrClosed) {
			t.Errorf("the state of a closed subscription is %v, want ErrClosed", err)
		}
		mark := fmt.Sprint("after ", i)
		mustPublish(t, b, "c", mark)
		until(t, "the other subscription", func() bool { p := stays.payloads(); return contains(p, mark) })
		if contains(e.payloads(), mark) {
			t.Errorf("a closed subscription heard what was published later")
		}
		e.mustBeUndisturbed(t)
	}
	close(stop)
	wg.Wait()
}

func contains(payloads []string, want string) bool {
	for i := len(payloads) - 1; i >= 0; i-- {
		if payloads[i] == want {
			return true
		}
	}
	return false
}

// subscribesAgain: a channel that was dropped can be heard again at once.
func subscribesAgain(t testing.TB, backend Backend) {
	b := open(t, backend)
	for i := range 50 {
		e := listen(t, b, "c")
		mustPublish(t, b, "c", fmt.Sprint(i))
		e.mustHave(t, fmt.Sprint(i))
		e.sub.Close()
	}
}

// panickingSink: a sink that panics harms neither the publisher nor other sinks, and is called again.
func panickingSink(t testing.TB, backend Backend) {
	b := open(t, backend)
	bad := &ear{channel: "c", onDeliver: func(*broker.Publication) { panic("a sink's own mistake") }}
	bad.subscribe(t, b)
	bad.awaitProven(t)
	good := listen(t, b, "c")
	mustPublish(t, b, "c", "1")
	mustPublish(t, b, "c", "2")
	good.mustHave(t, "1", "2")
	bad.mustHave(t, "1", "2")
	good.mustBeUndisturbed(t)
}

// payloadIsUnchanged: a payload is bytes, not text.
func payloadIsUnchanged(t testing.TB, backend Backend) {
	b := open(t, backend)
	e := listen(t, b, "c")
	want := []string{
		`{"id":"01","msg":{"amount":1.0,"big":12345678901234567890,"big":2,"s":"<&>é"}}`,
		" {\"id\" : 1,\r\n\"msg\":\t\"hi\"} ", "", "\x00\xff\r\n$5\r\n", strings.Repeat("x", 100_000), "last",
	}
	for _, p := range want {
		mustPublish(t, b, "c", p)
	}
	e.mustHave(t, want...)
}

func messageComesBack(t testing.TB, backend Backend) {
	b := open(t, backend)
	var got []*broker.Message
	e := &ear{channel: "c"}
	e.onDeliver = func(p *broker.Publication) {
		m, err := p.Message()
		if err != nil {
			t.Errorf("not a message: %v", err)
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		got = append(got, m)
	}
	e.subscribe(t, b)
	e.awaitProven(t)
	want := []*broker.Message{
		{ContentType: "application/json", Body: []byte(`{"amount":1.0,"note":"<&>"}`), Headers: map[string]string{"X-Sign": "a\"b"}},
		{ContentType: "application/json", Body: []byte(`"quoted"`), Ref: "order 1"},
		{ContentType: "text/plain; charset=utf-8", Body: []byte("total=1\r\n<é>")},
		{Body: []byte("plain")},
	}
	for i, m := range want {
		m.MID, m.ID, m.Source, m.Time = broker.NewMID(), fmt.Sprint("0", i), "test", time.UnixMilli(time.Now().UnixMilli())
		p, err := broker.FromMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Publish(context.Background(), "c", p); err != nil {
			t.Fatalf("publishing: %v", err)
		}
	}
	until(t, "the messages", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(got) == len(want)
	})
	for i, m := range want {
		if g := got[i]; !sameMessage(g, m) {
			t.Errorf("got %+v, want %+v", g, m)
		}
	}
}

func sameMessage(a, b *broker.Message) bool {
	return a.MID == b.MID && a.ID == b.ID && a.Ref == b.Ref && a.Source == b.Source && a.ContentType == b.ContentType &&
		string(a.Body) == string(b.Body) && a.Time.Equal(b.Time) && maps.Equal(a.Headers, b.Headers)
}

// closeDelivers: by the time that Close returns, this node has heard all that was accepted.
func closeDelivers(t testing.TB, backend Backend) {
	for range 5 {
		b := open(t, backend)
		e := listen(t, b, "c")
		var mu sync.Mutex
		accepted := 0
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					err := publish(b, "c", "x")
					if err != nil {
						if !errors.Is(err, broker.ErrClosed) || !errors.Is(err, broker.ErrRefused) {
							t.Errorf("publishing while the broker closes: %v; want ErrClosed and ErrRefused", err)
						}
						return
					}
					mu.Lock()
					accepted++
					mu.Unlock()
				}
			})
		}
		e.await(t, 50)
		within(t, "Close", func() {
			if err := b.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		})
		heard := len(e.payloads())
		wg.Wait()
		if heard != accepted {
			t.Errorf("accepted %d publications; %d were heard when Close returned", accepted, heard)
		}
		e.mustBeUndisturbed(t)
	}
}

func closedBroker(t testing.TB, backend Backend) {
	b := open(t, backend)
	e := listen(t, b, "c")
	for range 2 {
		within(t, "Close", func() {
			if err := b.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		})
	}
	if err := publish(b, "c", "x"); !errors.Is(err, broker.ErrClosed) || !errors.Is(err, broker.ErrRefused) {
		t.Errorf("publishing: %v; want ErrClosed and ErrRefused", err)
	}
	if _, err := b.Subscribe("c", &ear{channel: "c"}); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("subscribing: %v, want ErrClosed", err)
	}
	if err := e.sub.Err(); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("the subscription's state is %v, want ErrClosed", err)
	}
	within(t, "Close of a subscription", e.sub.Close)
	e.mustHave(t)
	e.mustBeUndisturbed(t)
}

// cancelledContext: what is refused is never delivered.
func cancelledContext(t testing.TB, backend Backend) {
	b := open(t, backend)
	e := listen(t, b, "c")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := b.Publish(ctx, "c", broker.FromPayload([]byte("never")))
	if !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("publishing: %v; want ErrRefused, ErrUnavailable and the context's error", err)
	}
	mustPublish(t, b, "c", "later")
	e.mustHave(t, "later")
}

func nodesHearEachOther(t testing.TB, backend Backend) {
	one, two := open(t, backend), open(t, backend)
	ears := []*ear{listen(t, one, "c"), listen(t, two, "c")}
	mustPublish(t, one, "c", "1")
	mustPublish(t, two, "c", "2")
	mustPublish(t, one, "c", "3")
	for _, e := range ears {
		e.mustHave(t, "1", "2", "3")
		e.mustBeUndisturbed(t)
	}
}

// closeDeliversElsewhere: what a node accepted before it closed reaches the others.
func closeDeliversElsewhere(t testing.TB, backend Backend) {
	other := open(t, backend)
	e := listen(t, other, "c")
	b := open(t, backend)
	for i := range 100 {
		mustPublish(t, b, "c", fmt.Sprintf("0 %d", i))
	}
	if err := b.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
	checkOrder(t, e.await(t, 100), 100)
}
