package redisbroker

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// notice is what travels on a node's channel. It is a hint: everything in it can be found out from the keys, and is,
// a little later. Fields that a release does not know are ignored.
type notice struct {
	Version int      `json:"v"`
	Rings   []string `json:"ring,omitempty"` // mailboxes that have news
	Lost    []loss   `json:"lost,omitempty"`
	Done    []string `json:"done,omitempty"` // messages that are finished
	Ask     *ask     `json:"ask,omitempty"`
	Answer  *answer  `json:"answer,omitempty"`
}

// loss says that a mailbox was taken from an owner.
type loss struct {
	Box   string `json:"box"`
	Owner string `json:"owner"`
}

const (
	noticeVersion = 1
	// maxNotices bounds what waits to be told; what is beyond is found out by looking.
	maxNotices = 16 << 10
	// noticeBatch bounds one notice.
	noticeBatch = 256
)

// notices is what nodes are to be told, by their channel.
type notices struct {
	mu     sync.Mutex
	byNode map[string]*pendingNotices
	count  int
	wake   chan struct{}
}

// pendingNotices is what one node is to be told.
type pendingNotices struct {
	rings map[string]bool
	lost  []loss
	done  []string
}

func newNotices() *notices {
	return &notices{byNode: make(map[string]*pendingNotices), wake: make(chan struct{}, 1)}
}

func (n *notices) add(channel string, add func(*pendingNotices)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count >= maxNotices {
		return
	}
	p := n.byNode[channel]
	if p == nil {
		p = &pendingNotices{rings: make(map[string]bool)}
		n.byNode[channel] = p
	}
	n.count++
	add(p)
	wake(n.wake)
}

func (n *notices) ring(channel, box string) {
	n.add(channel, func(p *pendingNotices) { p.rings[box] = true })
}

func (n *notices) lost(channel, box, owner string) {
	n.add(channel, func(p *pendingNotices) { p.lost = append(p.lost, loss{box, owner}) })
}

func (n *notices) done(channel, mid string) {
	n.add(channel, func(p *pendingNotices) { p.done = append(p.done, mid) })
}

// take returns all that is to be told.
func (n *notices) take() map[string]*pendingNotices {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.byNode
	n.byNode, n.count = make(map[string]*pendingNotices), 0
	return all
}

// pack makes notices of bounded size.
func (p *pendingNotices) pack() []*notice {
	var all []*notice
	last, left := (*notice)(nil), 0
	room := func() *notice {
		if left == 0 {
			last, left = new(notice), noticeBatch
			all = append(all, last)
		}
		left--
		return last
	}
	for box := range p.rings {
		n := room()
		n.Rings = append(n.Rings, box)
	}
	for _, l := range p.lost {
		n := room()
		n.Lost = append(n.Lost, l)
	}
	for _, mid := range p.done {
		n := room()
		n.Done = append(n.Done, mid)
	}
	return all
}

// noticeLoop tells nodes what they are to be told. What comes while it does goes into the next notice.
func (s *store) noticeLoop() {
	for {
		select {
		case <-s.b.ctx.Done():
			return
		case <-s.notices.wake:
		}
		var all sync.WaitGroup
		for channel, p := range s.notices.take() {
			for _, n := range p.pack() {
				all.Go(func() { s.tell(channel, n) })
			}
		}
		all.Wait()
	}
}

// tell publishes a notice. It returns how many nodes heard it: none if the node is gone.
func (s *store) tell(channel string, n *notice) int {
	n.Version = noticeVersion
	text, err := json.Marshal(n)
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	published, err := s.b.publish(s.b.ctx, channel, text)
	if err != nil {
		return 0
	}
	return published.Receivers
}

// tellWaiters tells nodes that wait for a message's end.
func (s *store) tellWaiters(mid string, incarnations []string) {
	if s.muted.Load() {
		return
	}
	for _, node := range incarnations {
		if node == s.incarnation {
			s.finished(mid)
		} else {
			s.notices.done(s.names.node(node), mid)
		}
	}
}

// finished wakes those who wait here for a message's end.
func (s *store) finished(mid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.waits[mid] {
		wake(c)
	}
}

// nodeSink hears what this node is told.
type nodeSink struct{ s *store }

// StateChanged implements [broker.Sink].
func (n nodeSink) StateChanged(_ string, err error) {
	if err == nil { // notices may have been missed
		wake(n.s.recheck)
	}
}

// Deliver implements [broker.Sink].
func (n nodeSink) Deliver(_ string, p *broker.Publication) {
	s := n.s
	var v notice
	if s.muted.Load() || json.Unmarshal(p.Payload(), &v) != nil || v.Version != noticeVersion {
		return // of a release to come, or somebody else's: what it says is found out by looking
	}
	for _, box := range v.Rings {
		s.ringHere(box)
	}
	for _, l := range v.Lost {
		// Whether it is true is for Redis to say: anybody can publish here.
		if s.owned(l.Box, l.Owner) != nil {
			wake(s.recheck)
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

// askTimeout is how long a question to another node waits for its answer.
const askTimeout = 500 * time.Millisecond
