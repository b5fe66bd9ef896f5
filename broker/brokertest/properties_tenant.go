package brokertest

import (
	"errors"
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// tenant is one who took a mailbox.
type tenant struct {
	box     broker.Mailbox
	owner   *owner
	store   broker.Store // that it attached with
	fence   uint64
	window  int
	refuses bool // to withdraw

	fenced, crashed, detached bool
	heard                     int // losses, when it detached

	read uint64 // the highest sequence that it knows
	due  bool   // it is to be rung: something came since it read last
	rung int    // how often it had been, before
}

// attached: an owner before that did not give the mailbox up may have pushed what its window held.
func (b *modelBox) attached(t *tenant) {
	if b.owner != nil {
		for i, m := range b.messages[:min(b.owner.window, len(b.messages))] {
			m.counts.Attempts++
			if i == 0 {
				m.counts.Deaths++
			}
		}
		b.owner.fenced = true
	}
	b.owner = t
	b.tenants = append(b.tenants, t)
}

// crashed ends the owners of a handle. Their mailboxes are as they were: the next owner finds that they were not
// given up.
func (m *model) crashed(store broker.Store) {
	for _, b := range m.boxes {
		for _, t := range b.tenants {
			t.crashed = t.crashed || t.store == store
		}
	}
}

// anyTenant returns the owner, or a former one.
func (b *modelBox) anyTenant(t *rapid.T) *tenant {
	if len(b.tenants) == 0 {
		t.Skip("nobody has the mailbox")
	}
	if b.owned() && rapid.IntRange(0, 3).Draw(t, "current") > 0 {
		return b.owner
	}
	return rapid.SampledFrom(b.tenants).Draw(t, "tenant")
}

// owned says whether somebody has the mailbox who can do something with it.
func (b *modelBox) owned() bool { return b.owner != nil && !b.owner.crashed }

// has says whether t is that one.
func (b *modelBox) has(t *tenant) bool { return b.owner == t && !t.crashed }

// wasAsked returns the messages that the owner was asked to forget.
func (o *owner) wasAsked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

// listen notes how often the owner was rung before something comes.
func (b *modelBox) listen() {
	if b.owned() && !b.owner.due {
		b.owner.rung = b.owner.owner.rung()
	}
}

// wrong says what is wrong with what a tenant has heard, and whether waiting may help.
func (b *modelBox) wrong(t *tenant) (err error, wait bool) {
	losses := t.owner.losses()
	switch {
	case len(losses) > 1:
		return fmt.Errorf("fence %d heard of its loss %d times: %v", t.fence, len(losses), losses), false
	case t.detached && len(losses) > t.heard:
		return fmt.Errorf("fence %d heard of its loss after it had detached: %v", t.fence, losses), false
	case len(losses) == 1 && !(t.fenced && errors.Is(losses[0], broker.ErrFenced) || t.crashed && errors.Is(losses[0], broker.ErrClosed)):
		return fmt.Errorf("fence %d heard %w; fenced %t, crashed %t", t.fence, losses[0], t.fenced, t.crashed), false
	case t.detached || t.crashed:
	case len(losses) == 0 && t.fenced:
		return fmt.Errorf("fence %d did not hear that there is another owner", t.fence), true
	case !t.fenced && t.due && b.unread(t) && t.owner.rung() == t.rung:
		return fmt.Errorf("fence %d was not rung, though there is something new", t.fence), true
	}
	return nil, false
}

// unread says whether there is something that the tenant has not read.
func (b *modelBox) unread(t *tenant) bool {
	return slices.ContainsFunc(b.messages, func(m *modelMessage) bool { return m.seq == 0 || m.seq > t.read })
}
