package redisbroker

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"
)

// notice is what travels on a node's channel. It is a hint: everything in it can be found out from the keys, and is,
// a little later. Fields that a release does not know are ignored.
type notice struct {
	Version int      `json:"v"`
	Rings   []string `json:"ring,omitempty"`  // mailboxes that have news
	Offers  []offer  `json:"offer,omitempty"` // the news itself, in the order in which it was stored
	Lost    []loss   `json:"lost,omitempty"`
	Done    []string `json:"done,omitempty"` // messages that are finished
	Ask     *ask     `json:"ask,omitempty"`
	Answer  *answer  `json:"answer,omitempty"`
	Missed  bool     `json:"missed,omitempty"` // more was to be told than could be kept: look at everything
}

// offer hands over an entry that was stored for a mailbox.
type offer struct {
	Box   string `json:"box"`
	Owner string `json:"owner"`
	Prev  uint64 `json:"prev,string"`
	Entry []byte `json:"entry"` // see parseEntry
}

// loss says that a mailbox was taken from an owner.
type loss struct {
	Box   string `json:"box"`
	Owner string `json:"owner"`
}

const (
	noticeVersion = 1
	// maxNotices bounds what waits to be told to one node.
	maxNotices = 16 << 10
	// noticeBatch and noticeBytes bound one notice.
	noticeBatch, noticeBytes = 256, 64 << 10
	// noticeRetry is the time after which a notice is published again that could not be.
	noticeRetry = 200 * time.Millisecond
)

// notices is what nodes are to be told, by their channel.
type notices struct {
	mu     sync.Mutex
	byNode map[string]*pendingNotices
	busy   bool // some are being told
	wake   chan struct{}
}

// pendingNotices is what one node is to be told.
type pendingNotices struct {
	rings  map[string]bool
	offers []offer
	lost   []loss
	done   []string
	missed bool
}

func newNotices() *notices {
	return &notices{byNode: make(map[string]*pendingNotices), wake: make(chan struct{}, 1)}
}

func (n *notices) add(channel string, add func(*pendingNotices)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.byNode[channel]
	if p == nil {
		p = &pendingNotices{rings: make(map[string]bool)}
		n.byNode[channel] = p
	}
	if len(p.rings)+len(p.offers)+len(p.lost)+len(p.done) < maxNotices {
		add(p)
	} else {
		p.missed = true
	}
	wake(n.wake)
}

func (n *notices) ring(channel, box string) {
	n.add(channel, func(p *pendingNotices) { p.rings[box] = true })
}

func (n *notices) offer(channel string, o offer) {
	n.add(channel, func(p *pendingNotices) { p.offers = append(p.offers, o) })
}

func (n *notices) lost(channel, box, owner string) {
	n.add(channel, func(p *pendingNotices) { p.lost = append(p.lost, loss{box, owner}) })
}

func (n *notices) done(channel, mid string) {
	n.add(channel, func(p *pendingNotices) { p.done = append(p.done, mid) })
}

// again takes back a notice that could not be published. The messages in it are read by then, or rung for: a node that
// cannot be told for long must not fill the memory here.
func (n *notices) again(channel string, v *notice) {
	n.add(channel, func(p *pendingNotices) {
		for _, box := range v.Rings {
			p.rings[box] = true
		}
		for _, o := range v.Offers {
			p.rings[o.Box] = true
		}
		p.lost, p.done, p.missed = append(p.lost, v.Lost...), append(p.done, v.Done...), p.missed || v.Missed
	})
}

// take returns all that is to be told.
func (n *notices) take() map[string]*pendingNotices {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.byNode
	n.byNode, n.busy = make(map[string]*pendingNotices), len(all) > 0
	return all
}

// told ends what take began.
func (n *notices) told() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.busy = false
}

// idle reports whether nothing is to be told.
func (n *notices) idle() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.busy && len(n.byNode) == 0
}

// pack makes notices of bounded size.
func (p *pendingNotices) pack() []*notice {
	all := []*notice{{Missed: p.missed}}
	left, room := noticeBatch, noticeBytes
	next := func(size int) *notice {
		if left == 0 || room < size {
			all = append(all, new(notice))
			left, room = noticeBatch, noticeBytes
		}
		left, room = left-1, room-size
		return all[len(all)-1]
	}
	for box := range p.rings {
		n := next(len(box))
		n.Rings = append(n.Rings, box)
	}
	for _, o := range p.offers {
		n := next(len(o.Entry))
		n.Offers = append(n.Offers, o)
	}
	for _, l := range p.lost {
		n := next(len(l.Box))
		n.Lost = append(n.Lost, l)
	}
	for _, mid := range p.done {
		n := next(len(mid))
		n.Done = append(n.Done, mid)
	}
	return all
}

// noticeLoop tells nodes what they are to be told. What comes while it does goes into the next notice: the busier, the
// larger they are.
func (s *store) noticeLoop() {
	for {
		select {
		case <-s.b.ctx.Done():
			return
		case <-s.notices.wake:
		}
		var all sync.WaitGroup
		var failed atomic.Bool
		for channel, p := range s.notices.take() {
			all.Go(func() {
				if !s.tellAll(channel, p.pack()) {
					failed.Store(true)
				}
			})
		}
		all.Wait()
		s.notices.told()
		if failed.Load() {
			s.b.wait(noticeRetry)
		}
	}
}

// tellAll publishes notices to one node, one after another, since messages in them are in order. It reports whether that
// went well; what could not be published is to be told again.
func (s *store) tellAll(channel string, all []*notice) bool {
	for i, n := range all {
		if _, err := s.tell(channel, n); err != nil {
			for _, rest := range all[i:] {
				s.notices.again(channel, rest)
			}
			return false
		}
	}
	return true
}

// tell publishes a notice. It returns how many nodes heard it: none if the node is gone; -1 if that cannot be known.
func (s *store) tell(channel string, n *notice) (int, error) {
	n.Version = noticeVersion
	text, err := json.Marshal(n)
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	if s.b.kind.Load() == kindCluster {
		published, err := s.spublish(s.b.ctx, channel, text)
		return published.Receivers, err
	}
	published, err := s.b.publish(s.b.ctx, channel, text)
	return published.Receivers, err
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

// askTimeout is how long a question to another node waits for its answer.
const askTimeout = 500 * time.Millisecond
