package redisbroker

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyrelay/relay/broker"
)

// nodeSink hears what this node is told.
type nodeSink struct{ s *store }

// StateChanged implements [broker.Sink].
func (n nodeSink) StateChanged(_ string, err error) {
	if err == nil { // notices may have been missed
		n.s.lookAtAll()
	}
}

// Deliver implements [broker.Sink].
func (n nodeSink) Deliver(_ string, p *broker.Publication) {
	if !n.s.muted.Load() {
		n.s.deliverNotice(p.Payload())
	}
}

// deliverNotice takes what was published for this node.
func (s *store) deliverNotice(text []byte) {
	switch {
	case len(text) > 0 && text[0] == 'o':
		if o, err := parseOffer(string(text[1:])); err == nil {
			s.offered(o)
		}
		return
	case len(text) > 0 && text[0] == 'r':
		s.ringHere(string(text[1:]))
		return
	}
	var v notice
	if json.Unmarshal(text, &v) != nil || v.Version != noticeVersion {
		return // of a release to come, or somebody else's: what it says is found out by looking
	}
	if v.Missed {
		s.lookAtAll()
	}
	for _, box := range v.Rings {
		s.ringHere(box)
	}
	for _, o := range v.Offers {
		s.offered(o)
	}
	for _, l := range v.Lost {
		if m := s.owned(l.Box, l.Owner); m != nil {
			s.suspect(m) // whether it is true is for Redis to say
		}
	}
	for _, mid := range v.Done {
		s.finished(mid)
	}
	if v.Ask != nil {
		s.asked(*v.Ask)
	}
	if v.Answer != nil {
		s.mu.Lock()
		c := s.asks[v.Answer.ID]
		s.mu.Unlock()
		select {
		case c <- *v.Answer: // one is expected; a nil channel takes none
		default:
		}
	}
}

// parseOffer reads what append.lua publishes: mailbox and owner, each with its length before it, the sequence of the entry
// before, a space, and the entry.
func parseOffer(text string) (o offer, err error) {
	for _, part := range []*string{&o.Box, &o.Owner} {
		digits, after, ok := strings.Cut(text, ":")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 0 || n > len(after) {
			return o, fmt.Errorf("%w: an offer that is none", broker.ErrFormat)
		}
		*part, text = after[:n], after[n:]
	}
	prev, entry, _ := strings.Cut(text, " ")
	if o.Prev, err = strconv.ParseUint(prev, 10, 64); err != nil {
		return o, fmt.Errorf("%w: an offer behind %q", broker.ErrFormat, prev)
	}
	o.Entry = []byte(entry)
	return o, nil
}

// offered takes what another node has stored. An owner who has been displaced is passed over: the message is read by the
// one who came after it.
func (s *store) offered(o offer) {
	m := s.owned(o.Box, o.Owner)
	if m == nil {
		return
	}
	e, err := parseEntry(string(o.Entry), "")
	if err != nil || e.Message.Channel != m.place.channel || e.Message.ID != m.place.id {
		s.guard("Ring", m.owner.Ring) // of a release to come; reading says what is wrong
		return
	}
	m.offer(o.Prev, e)
}
