package brokertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyrelay/relay/broker"
)

var presenceChecks = []storeCheck{
	{"WhoIsOnline", noNeed, func(r *rig) { s := r.open(broker.Policy{}); whoIsOnline(r, s, s) }},
	{"WhoIsOnlineOnAnotherNode", needNodes, func(r *rig) { whoIsOnline(r, r.open(broker.Policy{}), r.open(broker.Policy{})) }},
	{"PagesOfPresence", noNeed, pagesOfPresence},
	{"PresenceAfterACrash", needNodes, presenceAfterACrash},
}

// online returns who has destination 01 of channel c, which somebody must have.
func (r *rig) online(s broker.Store) broker.Presence {
	r.Helper()
	p, err := s.Online(r.ctx(), "c", "01")
	if err != nil {
		r.Fatalf("who has 01: %v", err)
	}
	return p
}

func whoIsOnline(r *rig, s, asked broker.Store) {
	_, err := asked.Online(r.ctx(), "c", "01")
	r.mustFail("nobody is there", err, broker.ErrNotFound)
	before := s.Now()
	h := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 7, Address: "192.0.2.1:4711"})
	r.attachAs(s, "d", "02", new(owner), broker.AttachOptions{Window: 1, Address: strings.Repeat("x", 1000)})
	r.add(s, "01", "1", "2")
	p := r.online(asked)
	if p.ID != "01" || p.Window != 7 || p.Address != "192.0.2.1:4711" || p.Pending != 2 || p.Node == "" {
		r.Errorf("%+v", p)
	}
	if d := p.Since.Sub(before).Abs(); d > patience {
		r.Errorf("since %s, and it was %s", p.Since, before)
	}
	if p, err := asked.Online(r.ctx(), "d", "02"); err != nil || len(p.Address) != broker.MaxAddress {
		r.Errorf("a long address: %+v, %v", p, err)
	}
	_, err = asked.Online(r.ctx(), "c", "02")
	r.mustFail("another channel's", err, broker.ErrNotFound)
	next := r.attachAs(s, "c", "01", new(owner), broker.AttachOptions{Window: 8, Address: "192.0.2.2:4711"})
	if p := r.online(asked); p.Window != 8 || p.Address != "192.0.2.2:4711" {
		r.Errorf("after a take-over: %+v", p)
	}
	_ = h.Detach(r.ctx(), nil) // it is no owner, and takes nobody away
	r.online(asked)
	next.detach()
	_, err = asked.Online(r.ctx(), "c", "01")
	r.mustFail("it has left", err, broker.ErrNotFound)
}

// pagesOfPresence: over all pages everybody is there once, and nobody else.
func pagesOfPresence(r *rig) {
	s := r.open(broker.Policy{})
	want := make(map[string]int)
	for i := range 40 {
		id := fmt.Sprint("id-", i)
		want[id] = 1
		h := r.attach(s, id)
		if i%4 == 0 {
			delete(want, id)
			h.detach()
		}
	}
	r.attachAs(s, "d", "elsewhere", new(owner), broker.AttachOptions{})
	for _, limit := range []int{0, 1, 7, 1000, 100000} {
		got := make(map[string]int)
		q := broker.PresenceQuery{Limit: limit}
		for pages := 0; ; pages++ {
			page, err := s.Presence(r.ctx(), "c", q)
			if err != nil {
				r.Fatalf("presence: %v", err)
			}
			for _, p := range page.Online {
				got[p.ID]++
			}
			if q.After = page.Next; q.After == "" {
				break
			}
			if pages > 500 {
				r.Fatalf("the pages have no end")
			}
		}
		if !maps.Equal(got, want) {
			r.Errorf("with limit %d: %v, want %v", limit, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
	if page, err := s.Presence(r.ctx(), "c", broker.PresenceQuery{After: "?"}); err == nil && len(page.Online) > 0 && page.Next == "" {
		return // whatever it took it for
	} else if err != nil && !errors.Is(err, broker.ErrNotFound) {
		r.Errorf("an end of a page that is none: %v", err)
	}
}

// presenceAfterACrash: who was on a node that has died is not online for long.
func presenceAfterACrash(r *rig) {
	s, asked := r.open(broker.Policy{}), r.open(broker.Policy{})
	r.attach(s, "01")
	r.online(asked)
	r.crash(s)
	until(r, "it to be offline", func() bool {
		_, err := asked.Online(r.ctx(), "c", "01")
		page, err2 := asked.Presence(r.ctx(), "c", broker.PresenceQuery{})
		return errors.Is(err, broker.ErrNotFound) && err2 == nil && len(page.Online) == 0
	})
}
