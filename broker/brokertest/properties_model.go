package brokertest

import (
	"slices"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// model is a store as one would explain it: mailboxes are lists, and every message ever accepted is in one more.
type model struct {
	boxes map[string]*modelBox
	all   []*modelMessage
}

type modelMessage struct {
	mid, id, key, fingerprint, body string
	expires                         bool
	state                           broker.State
	reason                          broker.DeadReason
	detail, reply                   string
	counts                          broker.Counts
	seq                             uint64 // once a page has shown it
}

type modelBox struct {
	id       string
	messages []*modelMessage // unfinished, in order
	owner    *tenant         // who has it; one that crashed has it until the next comes
	tenants  []*tenant       // all there were
	givenUp  bool            // by one of them
}

// tenant is one who took a mailbox.
type tenant struct {
	box     broker.Mailbox
	owner   *owner
	fence   uint64
	window  int
	node    int
	refuses bool // to withdraw
	crashed bool
}

func newModel() *model { return &model{boxes: make(map[string]*modelBox)} }

func (m *model) box(id string) *modelBox {
	b := m.boxes[id]
	if b == nil {
		b = &modelBox{id: id}
		m.boxes[id] = b
	}
	return b
}

// expectAppend says what an append must return: an error, or the message that it repeats, or neither.
func (m *model) expectAppend(box *modelBox, key, fingerprint string, o broker.AppendOptions) (*modelMessage, error) {
	for _, first := range m.all {
		if key == "" || first.id != box.id || first.key != key {
			continue
		}
		if fingerprint != "" && first.fingerprint != "" && fingerprint != first.fingerprint {
			return nil, broker.ErrConflict
		}
		return first, nil
	}
	switch {
	case !o.Expires.IsZero(): // it is in the past
		return nil, broker.ErrExpired
	case len(box.messages) >= propertyLimit:
		return nil, broker.ErrMailboxFull
	}
	return nil, nil
}

func (m *model) appended(box *modelBox, message *modelMessage) {
	box.messages = append(box.messages, message)
	m.all = append(m.all, message)
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
	}
	b.owner = t
	b.tenants = append(b.tenants, t)
}

func (b *modelBox) remove(m *modelMessage) {
	b.messages = slices.DeleteFunc(b.messages, func(other *modelMessage) bool { return other == m })
}

func (m *model) settled(box *modelBox, message *modelMessage, o broker.Outcome) {
	message.counts = o.Counts
	if o.State == broker.StateStored {
		return
	}
	message.state, message.reason, message.detail, message.reply = o.State, o.Reason, o.Detail, string(o.Reply)
	box.remove(message)
}

// crashed ends the owners of a node. Their mailboxes are as they were.
func (m *model) crashed(node int) {
	for _, b := range m.boxes {
		if b.owner != nil && b.owner.node == node {
			// The next one finds that it was not given up; what it says itself is not heard any more.
			b.owner = &tenant{window: b.owner.window, crashed: true}
		}
	}
}

// any returns a message that was accepted once.
func (m *model) any(t *rapid.T) *modelMessage {
	if len(m.all) == 0 {
		t.Skip("there are no messages")
	}
	return rapid.SampledFrom(m.all).Draw(t, "message")
}

// letter returns a dead letter more often than not, if there is one.
func (m *model) letter(t *rapid.T) *modelMessage {
	var dead []*modelMessage
	for _, message := range m.all {
		if message.state == broker.StateDead {
			dead = append(dead, message)
		}
	}
	if len(dead) == 0 || rapid.IntRange(0, 3).Draw(t, "any") == 0 {
		return m.any(t)
	}
	return rapid.SampledFrom(dead).Draw(t, "letter")
}

// ever returns a message of a mailbox, finished or not, whose sequence is known.
func (m *model) ever(t *rapid.T, box *modelBox) *modelMessage {
	var known []*modelMessage
	for _, message := range m.all {
		if message.id == box.id && message.seq > 0 {
			known = append(known, message)
		}
	}
	if len(known) == 0 {
		t.Skip("nothing was read")
	}
	return rapid.SampledFrom(known).Draw(t, "message")
}

// anyTenant returns the owner, or a former one.
func (b *modelBox) anyTenant(t *rapid.T) *tenant {
	if len(b.tenants) == 0 {
		t.Skip("nobody has the mailbox")
	}
	if b.owner != nil && !b.owner.crashed && rapid.IntRange(0, 3).Draw(t, "current") > 0 {
		return b.owner
	}
	return rapid.SampledFrom(b.tenants).Draw(t, "tenant")
}
