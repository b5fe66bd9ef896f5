package caddyrelay

import (
	"sync"
)

// acquireIntakeLocked returns the intake of a channel, which begins to hear if it is new. It must be called with
// n.mu held.
func (n *node) acquireIntakeLocked(b classicBroker, channel, topic string) (*intake, error) {
	key := intakeKey{b, channel, topic}
	if i := n.intakes[key]; i != nil {
		i.refs++
		return i, nil
	}
	i := &intake{
		node: n, broker: b, key: key, refs: 1, lease: b.NewLease("classic:"+channel, intakeLease),
		counts: &n.counts.channel(channel).classic, kick: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	var err error
	// In this order: a mark is a place among the publications only for who hears those.
	if i.classic, err = b.Subscribe(topic, classicSink{i}); err != nil {
		return nil, err
	}
	if i.news, err = b.Subscribe(i.marks(), markSink{i}); err != nil {
		i.classic.Close()
		return nil, err
	}
	if n.intakes == nil {
		n.intakes = make(map[intakeKey]*intake)
	}
	n.intakes[key] = i
	i.loops.Go(i.loop)
	return i, nil
}

// releaseIntakesLocked undoes g's acquisitions and returns the intakes that nobody has any more, which
// are to be closed without the lock. It must be called with n.mu held.
func (n *node) releaseIntakesLocked(g *generation) (last []*intake) {
	for _, i := range g.intakes {
		if i.refs--; i.refs == 0 {
			delete(n.intakes, i.key)
			last = append(last, i)
		}
	}
	g.intakes = nil
	return last
}

// finishIntakes finishes g's intakes if no other configuration runs: once none does, nothing can be stored.
func (n *node) finishIntakes(g *generation) {
	n.mu.Lock()
	var all []*intake
	if len(n.generations) == 1 && n.generations[0] == g {
		all = g.intakes
	}
	n.mu.Unlock()
	var wg sync.WaitGroup
	for _, i := range all {
		wg.Go(i.finish)
	}
	wg.Wait()
}

// hears says of g's channels with classic in whether they are known to be heard.
func (n *node) hears(g *generation) map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make(map[string]bool)
	for _, i := range g.intakes {
		all[i.key.channel] = i.err() == nil
	}
	return all
}

// inCharge reports whether this node stores what others publish for a channel.
func (n *node) inCharge(channel string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, i := range n.intakes {
		if key.channel == channel && i.lease.Held() {
			return true
		}
	}
	return false
}
