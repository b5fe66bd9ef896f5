package brokertest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/caddyrelay/relay/broker"
)

var offerChecks = []storeCheck{
	{"OffersTheOwner", noNeed, func(r *rig) { s := r.open(broker.Policy{}); offers(r, s, s) }},
	{"OffersOnAnotherNode", needNodes, func(r *rig) { offers(r, r.open(broker.Policy{}), r.open(broker.Policy{})) }},
	{"I3_OffersLeaveNoGap", needMute, offersLeaveNoGap},
	{"I3_OffersAtOnce", noNeed, offersAtOnce},
	{"PagesSayHowFar", noNeed, pagesSayHowFar},
	{"I4_LeasedAtOnce", noNeed, leasedAtOnce},
}

// taker is what an owner knows of its mailbox who takes offers as the contract says, and does not read on.
type taker struct {
	through uint64
	taken   []broker.Entry
}

func (k *taker) take(offers []offer) {
	for _, o := range offers {
		if o.Seq > k.through && o.prev <= k.through {
			k.through = o.Seq
			k.taken = append(k.taken, o.Entry)
		}
	}
}

func (o *owner) offered() []offer {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.offers)
}

// offers: an owner that has read all is handed what one publisher stores, whole and in order, so that it need not read.
func offers(r *rig, s, owners broker.Store) {
	r.add(s, "01", "0")
	h := r.attach(owners, "01")
	h.finish(broker.StateAcked, h.page...)
	m := messageIn("c", "01", "", "1")
	m.Ref, m.Source, m.Headers = "order 7", "test", map[string]string{"X-A": "b"}
	want := *m
	r.store(s, m, broker.AppendOptions{Expires: s.Now().Add(patience * 10)})
	r.add(s, "01", "2", "3")
	k := taker{}
	until(r, "three messages to be offered", func() bool {
		k = taker{through: h.all.Through}
		k.take(h.offered())
		return len(k.taken) >= 3
	})
	r.mustBe("what was offered", k.taken, "1", "2", "3")
	if got := *k.taken[0].Message; got.MID != want.MID || got.Ref != want.Ref || got.Source != want.Source ||
		!maps.Equal(got.Headers, want.Headers) || !got.Time.Equal(want.Time) || got.ContentType != want.ContentType {
		r.Errorf("offered %+v, stored %+v", got, want)
	}
	for i, e := range h.read() {
		if i >= len(k.taken) {
			r.Fatalf("%q was not offered", e.Message.Body)
		}
		o := k.taken[i]
		if o.Seq != e.Seq || !o.Expires.Equal(e.Expires) || !o.Retain.Equal(e.Retain) || o.Counts != e.Counts {
			r.Errorf("offered %+v, and read %+v", o, e)
		}
	}
	h.finish(broker.StateAcked, k.taken...)
	r.mustBe("the mailbox after what was offered is settled", h.read())
}

// offersLeaveNoGap: a message whose offer was lost is not passed over for the next (I3).
func offersLeaveNoGap(r *rig) {
	s := r.open(broker.Policy{})
	h := r.attach(s, "01")
	r.b.Mute(true)
	r.add(s, "01", "1")
	r.b.Mute(false)
	before := h.rung()
	r.add(s, "01", "2")
	until(r, "a ring", func() bool { return h.rung() > before })
	k := taker{through: h.all.Through}
	k.take(h.offered())
	if len(k.taken) > 0 {
		r.Errorf("%q was offered as if nothing were in front of it", k.taken[0].Message.Body)
	}
	r.mustBe("the mailbox", h.read(), "1", "2")
}

// offersAtOnce: whatever an owner takes of what many store at once, nothing is in front of it that it has not.
func offersAtOnce(r *rig) {
	s := r.open(broker.Policy{})
	from := []broker.Store{s}
	if r.h.Nodes {
		from = append(from, r.open(broker.Policy{}))
	}
	h := r.attach(s, "01")
	const each = 20
	r.all(6, func(i int) {
		for n := range each {
			if _, err := from[i%len(from)].Append(r.ctx(), message("01", fmt.Sprint(i, " ", n)), broker.AppendOptions{}); err != nil {
				r.Errorf("appending: %v", err)
			}
		}
	})
	all := h.read()
	until(r, "the last message to be offered, or a ring for it", func() bool { return h.rung() > 0 })
	k := taker{through: h.all.Through}
	k.take(h.offered())
	taken := make(map[string]bool)
	for _, e := range k.taken {
		taken[e.Message.MID] = true
	}
	for _, e := range all {
		if e.Seq <= k.through && !taken[e.Message.MID] {
			r.Fatalf("%q was passed over", e.Message.Body)
		}
	}
}

// pagesSayHowFar: an owner that trusts Through and More reads all, and reads no more than once more than it must.
func pagesSayHowFar(r *rig) {
	s := r.open(broker.Policy{})
	want := numbers(10)
	r.add(s, "01", want...)
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 4, Bytes: 1 << 20})
	got, page := slices.Clone(h.page), h.all
	for reads := 0; page.More; reads++ {
		last := got[len(got)-1].Seq
		if page.Through != last {
			r.Fatalf("a page that ends with %d says that it goes through %d", last, page.Through)
		}
		if reads > 4 {
			r.Fatalf("there is more for ever")
		}
		var err error
		if page, err = h.Read(r.ctx(), page.Through, 4, 1<<20); err != nil {
			r.Fatalf("reading: %v", err)
		}
		got = append(got, page.Entries...)
	}
	r.mustBe("what was read until there was no more", got, want...)
	if last := got[len(got)-1].Seq; page.Through < last {
		r.Errorf("read through %d, and there was %d", page.Through, last)
	}
	h.finish(broker.StateAcked, got...)
	if page, err := h.Read(r.ctx(), page.Through, 4, 1<<20); err != nil || len(page.Entries) > 0 || page.More || page.Through < got[len(got)-1].Seq {
		r.Errorf("an empty mailbox reads as %+v, %v", page, err)
	}
}

// leasedAtOnce: whoever has just attached may write.
func leasedAtOnce(r *rig) {
	if h := r.attach(r.open(broker.Policy{}), "01"); !h.Leased() {
		r.Errorf("an owner that has just attached has no lease")
	}
}
