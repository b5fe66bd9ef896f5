package brokertest

import (
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// model is a store as one would explain it: mailboxes are lists, and every message ever accepted is in one more.
type model struct {
	boxes  map[string]*modelBox
	all    []*modelMessage // in the order of their appends
	clock  time.Duration   // how much time was let pass
	dedupe time.Duration   // the policy's
	ends   map[broker.Ending]uint64
}

type modelMessage struct {
	mid, id, key, fingerprint, ref, body string

	state         broker.State
	reason        broker.DeadReason
	detail, reply string
	counts        broker.Counts
	seq, stale    uint64 // once a page has shown it, and what it was before it was sent again

	stored, finished, retain time.Duration // by the model's clock
	expires                  time.Duration // 0: never
	replaced                 bool          // its key was used again, and its record may be gone
}

type modelBox struct {
	id       string
	messages []*modelMessage // unfinished, in order
	owner    *tenant         // who has it; one that crashed has it until the next comes
	tenants  []*tenant       // all there were
}

// The model's times are apart from each other by minutes, so that those that a test takes don't matter.
const (
	propertyMinutes, propertyDays = 20 * time.Minute, 73 * time.Hour // what passes in one go
	propertyRetention             = 72 * time.Hour                   // by default
	propertyReceipts              = 24 * time.Hour                   // by default
	propertyLimit                 = 4                                // messages in a mailbox: few, so that it is full now and then
)

func newModel(dedupe time.Duration) *model {
	return &model{boxes: make(map[string]*modelBox), dedupe: dedupe, ends: make(map[broker.Ending]uint64)}
}

func (m *model) box(id string) *modelBox {
	b := m.boxes[id]
	if b == nil {
		b = &modelBox{id: id}
		m.boxes[id] = b
	}
	return b
}

// first returns the message that an append with this key repeats, if there is one. either says that the store may
// also take the key as new: its window is over, and the message is a dead letter, or older ones are not over.
func (m *model) first(id, key string) (first *modelMessage, either bool) {
	for _, other := range slices.Backward(m.all) {
		if key == "" || other.id != id || other.key != key {
			continue
		}
		over := other.state.Finished() && m.clock >= other.stored+m.dedupe
		switch {
		case first == nil && !over:
			return other, false
		case first == nil && other.state == broker.StateDead:
			return other, true
		case first == nil:
			first = other
		case !over || other.state == broker.StateDead:
			return other, true
		}
	}
	return nil, false
}

// refusal says why a new message of a mailbox is not taken.
func (b *modelBox) refusal(o broker.AppendOptions) error {
	switch {
	case !o.Expires.IsZero(): // it is in the past
		return broker.ErrExpired
	case len(b.messages) >= propertyLimit:
		return broker.ErrMailboxFull
	}
	return nil
}

func (m *model) appended(box *modelBox, message *modelMessage) {
	for _, other := range m.all {
		if message.key != "" && other.id == message.id && other.key == message.key && other.state != broker.StateDead {
			other.replaced = true
		}
	}
	m.all = append(m.all, message)
	message.stored = m.clock
	m.put(box, message)
}

// put stores a message, again or for the first time.
func (m *model) put(box *modelBox, message *modelMessage) {
	message.state, message.retain = broker.StateStored, m.clock+propertyRetention
	box.messages = append(box.messages, message)
	if box.owned() {
		box.owner.due = true
	}
}

// resent: everything begins anew, but for its name and key.
func (m *model) resent(box *modelBox, message *modelMessage, ttl time.Duration) {
	message.reason, message.detail, message.reply, message.counts = "", "", "", broker.Counts{}
	message.stale, message.seq, message.expires = message.seq, 0, 0
	if ttl > 0 {
		message.expires = m.clock + ttl
	}
	m.put(box, message)
}

// finish ends a message. Its counts are as they were.
func (m *model) finish(message *modelMessage, state broker.State, reason broker.DeadReason) {
	message.state, message.reason, message.finished = state, reason, m.clock
	m.ends[broker.Ending{Channel: "", State: state, Reason: reason}]++
	b := m.box(message.id)
	b.messages = slices.DeleteFunc(b.messages, func(other *modelMessage) bool { return other == message })
}

// settle does what an owner asks of a message.
func (m *model) settle(box *modelBox, o broker.Outcome) broker.Verdict {
	i := slices.IndexFunc(box.messages, func(message *modelMessage) bool { return message.seq == o.Seq && message.mid == o.MID })
	if i < 0 {
		return broker.Gone
	}
	message := box.messages[i]
	message.counts = o.Counts
	if o.State.Finished() {
		message.detail, message.reply = o.Detail, string(o.Reply)
		m.finish(message, o.State, o.Reason)
	}
	return broker.Settled
}

// due finishes what is due, and returns it.
func (m *model) due() (over []*modelMessage) {
	for _, message := range m.all {
		if !message.over(m.clock) {
			continue
		}
		over = append(over, message)
		if message.expires > 0 {
			m.finish(message, broker.StateExpired, "")
		} else {
			m.finish(message, broker.StateDead, broker.DeadRetention)
		}
	}
	return over
}

// over says whether the message is due at a time.
func (m *modelMessage) over(clock time.Duration) bool {
	return !m.state.Finished() && (m.expires > 0 && m.expires <= clock || m.retain <= clock)
}

// known says whether a record must be there. If not it may be.
func (m *model) known(message *modelMessage) bool {
	switch {
	case !message.state.Finished() || message.state == broker.StateDead:
		return true
	case message.replaced:
		return false
	}
	return m.clock < message.finished+propertyReceipts || message.key != "" && m.clock < message.stored+m.dedupe
}

// letters returns the dead letters.
func (m *model) letters() (dead []*modelMessage) {
	for _, message := range m.all {
		if message.state == broker.StateDead {
			dead = append(dead, message)
		}
	}
	return dead
}

// page returns the entries that a page must have.
func (b *modelBox) page(after uint64, limit, bytes int) (page []*modelMessage) {
	for _, m := range b.messages {
		if m.seq != 0 && m.seq <= after {
			continue
		}
		if len(page) == limit || len(page) > 0 && len(m.body) > bytes {
			break
		}
		bytes -= len(m.body)
		page = append(page, m)
	}
	return page
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
	dead := m.letters()
	if len(dead) == 0 || rapid.IntRange(0, 3).Draw(t, "any") == 0 {
		return m.any(t)
	}
	return rapid.SampledFrom(dead).Draw(t, "letter")
}

// seen returns the messages of a mailbox, finished or not, whose sequence is known.
func (m *model) seen(box *modelBox) (seen []*modelMessage) {
	for _, message := range m.all {
		if message.id == box.id && message.seq > 0 {
			seen = append(seen, message)
		}
	}
	return seen
}
