package model

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// In each of these nothing else goes wrong; "make model" adds those that take minutes.
var (
	short = []Bounds{
		{Sockets: 2, Faults: 1, Failovers: 0, Lost: 1, Attaches: 3},
		{Sockets: 1, Faults: 1, Failovers: 1, Lost: 1, Attaches: 3},
	}
	long = []Bounds{
		{Sockets: 2, Faults: 0, Failovers: 1, Lost: 1, Attaches: 3},
		{Sockets: 2, Faults: 1, Failovers: 1, Lost: 0, Attaches: 3},
		{Sockets: 3, Faults: 1, Failovers: 0, Lost: 0, Attaches: 3},
		{Sockets: 2, Faults: 2, Failovers: 0, Lost: 1, Attaches: 3},
	}
)

// I2, I3, I4: nothing that can happen within the bounds breaks a promise, and from every state the work can be finished.
func TestI4_Ownership(t *testing.T) {
	all := short
	if os.Getenv("MODEL") == "long" {
		all = append(all, long...)
	}
	for _, b := range all {
		t.Run(strings.ReplaceAll(fmt.Sprintf("%+v", b), " ", ","), func(t *testing.T) {
			began := time.Now()
			r := Search(AllRules(), b, true)
			t.Logf("%s, %.1fs", r, time.Since(began).Seconds())
			if r.Err != nil || r.Stuck != nil {
				t.Fatal("the model breaks a promise")
			}
			if r.States < 10_000 {
				t.Errorf("%d states: the search does not see much", r.States)
			}
		})
	}
}

// Every rule is needed: without it the search finds what breaks.
func TestEveryRuleIsNeeded(t *testing.T) {
	faults, failover := short[0], short[1]
	for _, c := range []struct {
		name    string
		without func(*Rules)
		bounds  Bounds
		breaks  string // what is said, or "stuck"
	}{
		{"only the owner settles", func(r *Rules) { r.OwnerSettles = false }, faults, "I4"},
		{"attaches have names of their own", func(r *Rules) { r.NamesDiffer = false }, faults, "I4"},
		{"attach returns the page", func(r *Rules) { r.AttachReads = false }, faults, "I3"},
		{"offers are taken right behind what was read", func(r *Rules) { r.PrevGuard = false }, faults, "I3"},
		{"sessions look", func(r *Rules) { r.Looks = false }, faults, "stuck"},
		{"and attach anew at another primary", func(r *Rules) { r.LooksAgain = false }, failover, "stuck"},
		{"accepted when a replica has it", func(r *Rules) { r.ProvenFirst = false }, failover, "I2"},
		{"no write without a lease", func(r *Rules) { r.LeaseChecked = false }, faults, "I4"},
		{"pushes are in order", func(r *Rules) { r.InOrder = false }, faults, "I3"},
		{"only the owner detaches", func(r *Rules) { r.DetachIsFenced = false }, faults, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := AllRules()
			c.without(&rules)
			r := Search(rules, c.bounds, c.breaks == "stuck")
			t.Log(r)
			found := ""
			switch {
			case r.Err != nil:
				found = r.Err.Error()
			case r.Stuck != nil:
				found = "stuck"
			}
			if !strings.HasPrefix(found, c.breaks) || (c.breaks == "") != (found == "") {
				t.Errorf("the search found %q", found)
			}
		})
	}
}
