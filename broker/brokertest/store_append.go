package brokertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var appendChecks = []storeCheck{
	{"I3_OrderOfAppends", noNeed, orderOfAppends},
	{"I3_OrderAcrossNodes", needNodes, orderAcrossNodes},
	{"I3_EachCallersOrder", noNeed, eachCallersOrder},
	{"StoredMessageComesBack", noNeed, storedMessageComesBack},
	{"I10_PagesAreBounded", noNeed, pagesAreBounded},
	{"MailboxesAreApart", noNeed, mailboxesAreApart},
	{"I1_DurabilityIsNamed", noNeed, durabilityIsNamed},
	{"I1_UnmetDurability", needUnmet, unmetDurability},
	{"I6_AppendAgain", noNeed, appendAgain},
	{"AppendWithEndedContext", noNeed, appendWithEndedContext},
}

// orderOfAppends: what one caller appends is read in that order, a page at a time, and once.
func orderOfAppends(r *rig) {
	s := r.open(broker.Policy{})
	want := numbers(30)
	r.add(s, "01", want[:20]...)
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 4})
	r.mustBe("the first page, as large as the window", h.page, want[:4]...)
	r.add(s, "01", want[20:]...)
	got := h.page
	for len(got) < len(want) {
		page, err := entries(h.Read(r.ctx(), got[len(got)-1].Seq, 7, 1<<20))
		if err != nil || len(page) == 0 {
			r.Fatalf("reading after %d entries: %d more, %v", len(got), len(page), err)
		}
		got = append(got, page...)
	}
	r.mustBe("all pages", got, want...)
	if page, err := entries(h.Read(r.ctx(), got[len(got)-1].Seq, 7, 1<<20)); err != nil || len(page) > 0 {
		r.Errorf("behind the last entry there are %d, %v", len(page), err)
	}
	h.finish(broker.StateAcked, got...)
	r.mustBe("the mailbox after all was settled", h.read())
}

// orderAcrossNodes: an append that begins after another has returned is behind it, wherever it was made.
func orderAcrossNodes(r *rig) {
	stores := []broker.Store{r.open(broker.Policy{}), r.open(broker.Policy{}), r.open(broker.Policy{})}
	want := numbers(30)
	for i, body := range want {
		r.add(stores[i%3], "01", body)
	}
	r.mustHold(stores[1], "01", want...)
}

// eachCallersOrder: callers at once lose nothing, and each one's order is kept.
func eachCallersOrder(r *rig) {
	s := r.open(broker.Policy{})
	h := r.attach(s, "01")
	r.all(8, func(caller int) {
		for i := range 20 {
			m := message("01", fmt.Sprint(caller, " ", i))
			if _, err := s.Append(r.ctx(), m, broker.AppendOptions{}); err != nil {
				r.Errorf("appending: %v", err)
			}
		}
	})
	got := bodies(h.read())
	if len(got) != 160 {
		r.Fatalf("%d entries; 160 were appended", len(got))
	}
	next := make(map[int]int)
	for _, body := range got {
		var caller, i int
		_, _ = fmt.Sscan(body, &caller, &i)
		if i != next[caller] {
			r.Errorf("caller %d: %d comes where %d should", caller, i, next[caller])
		}
		next[caller] = i + 1
	}
}

// storedMessageComesBack: a message is all of its members, and its body is bytes.
func storedMessageComesBack(r *rig) {
	s := r.open(broker.Policy{})
	want := []*broker.Message{
		{ContentType: "application/json", Body: []byte(`{"amount":1.0,"big":12345678901234567890,"s":"<&>é\u2028"}`), Ref: "order 1", Key: "k\"1"},
		{Body: []byte{}},
		{ContentType: "application/octet-stream", Body: []byte("\x00\xff\r\n$5\r\n" + strings.Repeat("\n", 100))},
		{Headers: map[string]string{"X-Sign": `a"b\`, "X-Empty": "", "Ünicode": "<>"}, Source: "route/1", Body: []byte("x")},
		{Body: []byte(strings.Repeat("0123456789", 20_000)), Ref: "订单-1\n"},
	}
	for i, m := range want {
		m.Channel, m.ID, m.Time = "c", "01", time.UnixMilli(1_700_000_000_123+int64(i))
		m.MID = broker.NewMessageID(m.Channel, m.ID, m.Key)
		r.store(s, copyOf(m), broker.AppendOptions{})
	}
	h := r.attach(s, "01")
	if len(h.page) != len(want) {
		r.Fatalf("%d entries, want %d", len(h.page), len(want))
	}
	for i, m := range want {
		r.mustEqual("attaching", h.page[i].Message, m)
		r.mustEqual("reading", h.read()[i].Message, m)
		got, err := s.Content(r.ctx(), m.MID)
		if err != nil {
			r.Fatalf("content: %v", err)
		}
		r.mustEqual("Content", got, m)
	}
	h.finish(broker.StateDead, h.page...)
	for _, m := range want {
		got, err := s.Content(r.ctx(), m.MID)
		if err != nil {
			r.Fatalf("content of a dead letter: %v", err)
		}
		r.mustEqual("Content of a dead letter", got, m)
	}
}

func show(m *broker.Message) string {
	if m == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s %q %q ref %q key %q source %q type %q headers %q at %s, %d bytes %.60q",
		m.MID, m.Channel, m.ID, m.Ref, m.Key, m.Source, m.ContentType, m.Headers, m.Time, len(m.Body), m.Body)
}

func copyOf(m *broker.Message) *broker.Message {
	c := *m
	return &c
}

func (r *rig) mustEqual(what string, got, want *broker.Message) {
	r.Helper()
	if got == nil || got.MID != want.MID || got.Channel != want.Channel || got.ID != want.ID || got.Ref != want.Ref || got.Key != want.Key ||
		got.Source != want.Source || got.ContentType != want.ContentType || string(got.Body) != string(want.Body) ||
		!got.Time.Equal(want.Time) || !maps.Equal(got.Headers, want.Headers) {
		r.Errorf("%s: got %s, want %s", what, show(got), show(want))
	}
}

// pagesAreBounded: by entries and by bytes of bodies; but there is always one, if there is any.
func pagesAreBounded(r *rig) {
	s := r.open(broker.Policy{})
	ten := strings.Repeat("x", 10)
	r.add(s, "01", ten+"0", ten+"1", ten+"2", ten+"3")
	for _, c := range []struct {
		limit, bytes, want int
	}{{1, 1000, 1}, {3, 1000, 3}, {1000, 1000, 4}, {4, 33, 3}, {4, 32, 2}, {4, 11, 1}, {4, 1, 1}} {
		h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 2, Limit: c.limit, Bytes: c.bytes})
		if len(h.page) != c.want {
			r.Errorf("attaching with limit %d, %d bytes: %d entries, want %d", c.limit, c.bytes, len(h.page), c.want)
		}
		all := h.read()
		page, err := entries(h.Read(r.ctx(), all[0].Seq, c.limit, c.bytes))
		if err != nil || len(page) != min(c.want, 3) || string(page[0].Message.Body) != ten+"1" {
			r.Errorf("reading after the first with limit %d, %d bytes: %q, %v; want %d entries", c.limit, c.bytes, bodies(page), err, min(c.want, 3))
		}
		h.detach()
	}
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{})
	r.mustBe("a page with the defaults", h.page, ten+"0")
}

// mailboxesAreApart: names that would collide if they were joined by a separator don't.
func mailboxesAreApart(r *rig) {
	s := r.open(broker.Policy{})
	where := [][2]string{
		{"a:b", "c"}, {"a", "b:c"}, {"a:b:c", "c"}, {"a", "c"}, {"1:a", "b"}, {"1:a", "1:b"}, {"a", "1:b"}, {"{c}", "x"}, {"c", "{c}"}, {"c", "}"},
		{"c", "*x"}, {"c", "%s"}, {"c", "../x"}, {"c", "é"}, {"c", "e"}, {"c", strings.Repeat("x", broker.MaxIDLength)}, {"c", "x"}, {"c", "X"}, {"c", "0"}, {"c", "00"},
	}
	for _, w := range where {
		r.store(s, messageIn(w[0], w[1], "", w[0]+" "+w[1]), broker.AppendOptions{})
	}
	for _, w := range where {
		h := r.attachAs(s, w[0], w[1], new(owner), broker.AttachOptions{Limit: 10})
		r.mustBe(fmt.Sprintf("the mailbox of %.20q in %q", w[1], w[0]), h.page, w[0]+" "+w[1])
		h.finish(broker.StateAcked, h.page...)
		h.detach()
	}
}

func durabilityIsNamed(r *rig) {
	s := r.open(broker.Policy{Durability: r.h.Durability})
	for range 2 { // for a duplicate too
		got := r.store(s, messageIn("c", "01", "k", "x"), broker.AppendOptions{})
		if got.Durability == "" || !got.Durability.Meets(r.h.Durability) {
			r.Errorf("the answer names the durability %q, want at least %q", got.Durability, r.h.Durability)
		}
		if got.State != broker.StateStored {
			r.Errorf("the state is %q", got.State)
		}
	}
	until(r, "the store to be ready", func() bool { return s.Ready() == nil })
}

// unmetDurability: what can't be proven is not claimed, neither by an append nor by Ready.
func unmetDurability(r *rig) {
	s := r.open(broker.Policy{Durability: r.h.Unproven})
	m := message("01", "x")
	mid := m.MID
	stored, err := s.Append(r.ctx(), m, broker.AppendOptions{})
	h := r.attach(s, "01")
	switch {
	case errors.Is(err, broker.ErrUnproven):
		if stored.MID != mid || stored.Durability.Meets(r.h.Unproven) {
			r.Errorf("the answer is %+v", stored)
		}
		r.mustBe("the mailbox after ErrUnproven", h.page, "x")
	case errors.Is(err, broker.ErrRefused) && errors.Is(err, broker.ErrUnavailable):
		r.mustBe("the mailbox after ErrRefused", h.page)
	default:
		r.Errorf("appending where %s is demanded: %+v, %v; want ErrUnproven, or ErrRefused and ErrUnavailable", r.h.Unproven, stored, err)
	}
	until(r, "the store to say that it is not ready", func() bool { return s.Ready() != nil })
}

// appendAgain: repeating an append with its MID, as after a lost answer, stores nothing and is no duplicate.
func appendAgain(r *rig) {
	s := r.open(broker.Policy{})
	for _, key := range []string{"", "k"} {
		id := "01" + key
		m := messageIn("c", id, key, "x")
		for range 3 {
			if got := r.store(s, copyOf(m), broker.AppendOptions{}); got.Duplicate || got.MID != m.MID || got.State != broker.StateStored {
				r.Errorf("key %q: appending again: %+v; want the message itself, not a duplicate", key, got)
			}
		}
		r.all(4, func(int) { _, _ = s.Append(r.ctx(), copyOf(m), broker.AppendOptions{Key: key}) })
		h := r.attach(s, id)
		r.mustBe("the mailbox", h.page, "x")
		h.finish(broker.StateAcked, h.page...)
		if got := r.store(s, copyOf(m), broker.AppendOptions{}); got.Duplicate || got.State != broker.StateAcked {
			r.Errorf("key %q: appending again after the end: %+v; want acked, not a duplicate", key, got)
		}
		r.mustBe("the mailbox after the end", h.read())
		h.detach()
	}
}

// appendWithEndedContext: an error says truly whether the message was stored.
func appendWithEndedContext(r *rig) {
	s := r.open(broker.Policy{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m := message("01", "x")
	mid := m.MID
	_, err := s.Append(ctx, m, broker.AppendOptions{})
	if err != nil && (!errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, context.Canceled)) {
		r.Errorf("appending: %v; want ErrUnavailable and the context's error", err)
	}
	_, found := s.Lookup(r.ctx(), mid)
	if err == nil && found != nil {
		r.Errorf("appending succeeded, but: %v", found)
	}
	if errors.Is(err, broker.ErrRefused) && !errors.Is(found, broker.ErrNotFound) {
		r.Errorf("appending was refused, but the message is known (%v)", found)
	}
	var mu sync.Mutex
	var stored int
	r.all(16, func(i int) { // contexts that end at any moment
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*100*time.Microsecond)
		defer cancel()
		if _, err := s.Append(ctx, message("02", "x"), broker.AppendOptions{}); err == nil {
			mu.Lock()
			stored++
			mu.Unlock()
		} else if !errors.Is(err, broker.ErrUnavailable) {
			r.Errorf("appending: %v, want ErrUnavailable", err)
		}
	})
	if got := len(r.attach(s, "02").page); got < stored {
		r.Errorf("%d of %d acknowledged messages are there", got, stored)
	}
}
