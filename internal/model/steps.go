package model

import "fmt"

// Rules are the lines of the real code that this is about; all are on. A test switches one off.
type Rules struct {
	OwnerSettles   bool // settle.lua: only the owner of the moment finishes anything
	NamesDiffer    bool // an attach has a name of its own, so that an earlier session of the node is not taken for it
	AttachReads    bool // attach.lua returns the page in the same step
	PrevGuard      bool // hub/tenure.go: an offer is taken only right behind what was read
	Looks          bool // watch.go: sessions look at what the store holds
	LooksAgain     bool // and attach anew when another primary has it
	ProvenFirst    bool // append.go: accepted only when a replica has it
	LeaseChecked   bool // hub/flight.go: no write begins without a lease
	InOrder        bool // hub/window.go: pushes are in the order of sequences
	DetachIsFenced bool // settle.lua, mode detach: only the owner gives the mailbox up
}

// Bounds say how much may go wrong.
type Bounds struct {
	Sockets   int // that ever register, at most three
	Faults    int // crashes, cuts and sockets that die
	Failovers int
	Lost      int // offers that are lost, or come twice
	Attaches  int // in all: after a failover sockets attach again
}

// machine is the rules within bounds.
type machine struct {
	Rules
	Bounds
}

// AllRules is the real code.
func AllRules() Rules {
	return Rules{true, true, true, true, true, true, true, true, true, true}
}

// Step is one thing that happens.
type Step struct {
	Name string
	Good bool // it needs no fault: what goes on when nothing fails any more
	To   State
	Err  error // the promise that it breaks
}

// steps returns all that can happen next.
func (r machine) steps(s State) (all []Step) {
	add := func(good bool, name string, do func(*State) error) {
		next := s
		err := do(&next)
		if err == nil {
			err = next.check()
		}
		all = append(all, Step{name, good, next, err})
	}
	for m := range messages {
		if m == 0 || s.stored[m-1] {
			if !s.stored[m] {
				add(true, fmt.Sprintf("store %d", m+1), func(n *State) error { n.store(m); r.accept(n); return nil })
			}
		}
	}
	if s.replica != s.primary && int(s.failovers) < r.Failovers {
		add(true, "replicate", func(n *State) error { n.replica = n.primary; r.accept(n); return nil })
	}
	for i := range s.sessions {
		r.sessionSteps(s, i, add)
	}
	for i, o := range s.offers {
		if o.message != 0 {
			add(true, fmt.Sprintf("offer %d reaches %d", o.message, o.to), func(n *State) error { n.offers[i] = offer{}; r.take(n, o); return nil })
			if int(s.lost) < r.Lost {
				add(false, fmt.Sprintf("offer %d is lost", o.message), func(n *State) error { n.offers[i] = offer{}; n.lost++; return nil })
				add(false, fmt.Sprintf("offer %d comes twice", o.message), func(n *State) error { r.take(n, o); n.lost++; return nil })
			}
		}
	}
	for n := range nodes {
		r.nodeSteps(s, n, add)
	}
	if int(s.failovers) < r.Failovers {
		add(false, "the replica is promoted", func(n *State) error { r.failover(n); r.accept(n); return nil })
	}
	return all
}

type adder func(good bool, name string, do func(*State) error)

// nodeSteps are cuts, leases and crashes.
func (r machine) nodeSteps(s State, n int, add adder) {
	name := fmt.Sprintf("node %d", n+1)
	if s.cut[n] {
		add(true, name+" is back", func(to *State) error { to.cut[n], to.expired[n] = false, false; return nil })
		if !s.expired[n] {
			add(false, name+"'s lease ends", func(to *State) error { to.expired[n] = true; return nil })
		}
	}
	if int(s.faults) >= r.Faults {
		return
	}
	if !s.cut[n] {
		add(false, name+" is cut off", func(to *State) error { to.cut[n] = true; to.faults++; return nil })
	}
	add(false, name+" crashes", func(to *State) error {
		for i := range to.sessions {
			if to.sessions[i].node == uint8(n+1) {
				to.sessions[i].name = 0
			}
		}
		to.cut[n], to.expired[n] = false, false
		to.faults++
		return nil
	})
}

// sessionSteps are those of one socket.
func (r machine) sessionSteps(s State, i int, add adder) {
	c := s.sessions[i]
	if c.node == 0 {
		if i >= r.Sockets || i > 0 && s.sessions[i-1].node == 0 {
			return // they come in order
		}
		for n := range nodes {
			if !s.cut[n] {
				add(true, fmt.Sprintf("socket %d registers on node %d", i+1, n+1), func(to *State) error {
					to.sessions[i].node = uint8(n + 1)
					return r.attach(to, i)
				})
			}
		}
		return
	}
	if c.name == 0 {
		return
	}
	for m := range messages {
		r.messageSteps(s, i, m, add)
	}
	if int(s.faults) < r.Faults {
		add(false, fmt.Sprintf("socket %d dies", i+1), func(to *State) error { r.detach(to, i); to.faults++; return nil })
	}
	if s.cut[c.node-1] {
		return
	}
	if c.rung {
		add(true, fmt.Sprintf("socket %d reads on", i+1), func(to *State) error { r.read(to, i); return nil })
	}
	if r.Looks {
		add(true, fmt.Sprintf("socket %d looks", i+1), func(to *State) error { return r.look(to, i) })
	}
}

// messageSteps are those of one message on one socket.
func (r machine) messageSteps(s State, i, m int, add adder) {
	c := s.sessions[i]
	node := c.node - 1
	switch c.phases[m] {
	case waiting:
		if r.LeaseChecked && s.expired[node] {
			return
		}
		for other := range m { // messages are numbered in the order of their sequences
			if r.InOrder && c.phases[other] == waiting {
				return
			}
		}
		add(true, fmt.Sprintf("socket %d is sent %d", i+1, m+1), func(to *State) error { return to.push(i, m) })
	case pushed:
		add(true, fmt.Sprintf("socket %d acknowledges %d", i+1, m+1), func(to *State) error { to.sessions[i].phases[m] = answered; return nil })
	case answered:
		if !s.cut[node] {
			add(true, fmt.Sprintf("socket %d settles %d", i+1, m+1), func(to *State) error { return r.settle(to, i, m) })
		}
	}
}

// store is append.lua: the message gets a sequence behind all that the store and the clock know, and its owner an offer.
func (s *State) store(m int) {
	p := &s.primary
	prev := p.last
	s.clock++
	p.last = max(p.last+1, s.clock)
	p.seq[m] = p.last
	s.stored[m] = true
	if p.owner == 0 {
		return
	}
	for i := range s.offers {
		if s.offers[i].message == 0 {
			s.offers[i] = offer{p.owner, prev, p.last, uint8(m + 1)}
			return
		}
	}
}

// accept tells senders as soon as they may be told: later is the same with less to lose.
func (r machine) accept(s *State) {
	if int(s.failovers) >= r.Failovers {
		s.replica = store{} // it is of no more use, and would only multiply the states
	}
	for m := range messages {
		if s.primary.seq[m] != 0 && (s.replica.seq[m] != 0 || !r.ProvenFirst || int(s.failovers) >= r.Failovers) {
			s.accepted[m] = true
		}
	}
}

// attach is attach.lua.
func (r machine) attach(s *State, i int) error {
	p, c := &s.primary, &s.sessions[i]
	s.attaches++
	s.clock++
	fence := max(p.fence+1, s.clock)
	if fence <= p.fence {
		return violation("I4: the fence did not rise")
	}
	name := s.attaches
	if !r.NamesDiffer {
		name = c.node
	}
	p.fence, p.owner = fence, name
	phases := c.phases
	*c = session{node: c.node, name: name, fence: fence}
	if !r.AttachReads {
		c.read = p.last
		return nil
	}
	for m := range messages {
		if p.seq[m] == 0 {
			continue
		}
		c.phases[m] = waiting
		if phases[m] > waiting { // what was in flight before goes on: hub's carried
			c.phases[m] = phases[m]
		}
	}
	c.read = p.last
	return nil
}

// take is hub's tenure.Offer.
func (r machine) take(s *State, o offer) {
	for i := range s.sessions {
		c := &s.sessions[i]
		if c.name == 0 || c.name != o.to || o.seq <= c.read {
			continue
		}
		if r.PrevGuard && o.prev > c.read {
			c.rung = true
			continue
		}
		c.read = o.seq
		if m := o.message - 1; c.phases[m] == unknown {
			c.phases[m] = waiting
		}
	}
}

// read is read.lua.
func (r machine) read(s *State, i int) {
	p, c := &s.primary, &s.sessions[i]
	c.rung = false
	if p.owner != c.name {
		_ = r.look(s, i)
		return
	}
	for m := range messages {
		if p.seq[m] > c.read && c.phases[m] == unknown {
			c.phases[m] = waiting
		}
	}
	c.read = max(c.read, p.last)
}

// look is watch.go.
func (r machine) look(s *State, i int) error {
	p, c := &s.primary, &s.sessions[i]
	switch {
	case p.owner != c.name && p.owner != 0 && p.fence > c.fence:
		c.name = 0 // another one has it: goodbye
	case p.owner != c.name:
		return r.again(s, i)
	case c.stale:
		return r.again(s, i)
	case p.last > c.read:
		c.rung = true
	}
	return nil
}

// again has a session that the store has forgotten take the mailbox again.
func (r machine) again(s *State, i int) error {
	if int(s.attaches) >= r.Attaches {
		s.sessions[i].name = 0 // it would; the bound of the search says that its client comes back another time
		return nil
	}
	return r.attach(s, i)
}

// push is a write to the socket.
func (s *State) push(i, m int) error {
	c := &s.sessions[i]
	if s.expired[c.node-1] {
		return violation(fmt.Sprintf("I4: a write of message %d begins without a lease", m+1))
	}
	if !s.first[m] {
		for other := range m {
			if s.primary.seq[other] != 0 && !s.first[other] {
				return violation(fmt.Sprintf("I3: message %d is pushed for the first time before message %d", m+1, other+1))
			}
		}
	}
	s.first[m] = true
	c.phases[m] = pushed
	return nil
}

// settle is settle.lua.
func (r machine) settle(s *State, i, m int) error {
	p, c := &s.primary, &s.sessions[i]
	if p.owner != c.name && r.OwnerSettles {
		return r.look(s, i)
	}
	c.phases[m] = unknown
	if p.seq[m] == 0 {
		return nil // gone
	}
	if c.fence != p.fence {
		return violation(fmt.Sprintf("I4: message %d is finished by a session with fence %d, and the mailbox has %d", m+1, c.fence, p.fence))
	}
	p.seq[m] = 0
	s.ever[m] = true
	return nil
}

// detach is settle.lua in the mode of that name.
func (r machine) detach(s *State, i int) {
	c := &s.sessions[i]
	if !s.cut[c.node-1] && (s.primary.owner == c.name || !r.DetachIsFenced) {
		s.primary.owner = 0
	}
	c.name = 0
}

// failover promotes the replica, whose clock may be behind.
func (r machine) failover(s *State) {
	for i := range s.sessions {
		s.sessions[i].stale = r.LooksAgain && s.sessions[i].name != 0
	}
	s.primary = s.replica
	s.clock = 0
	s.failovers++
}
