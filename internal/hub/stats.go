package hub

// Stats is what a hub counted since it was made, and what it holds now.
type Stats struct {
	Sockets  int               // connections being served, registered or not
	Ended    map[Reason]uint64 // every reason is there, at zero if it never was
	Channels map[string]ChannelStats
}

// ChannelStats is the part of one channel.
type ChannelStats struct {
	Sessions int                   // registered now
	Pushed   uint64                // messages handed to the kernel
	Dropped  map[DropReason]uint64 // every reason is there
	Timeouts uint64                // messages that a live peer did not answer in time
	Nacks    uint64                // messages that a client asked to have again, or gave up
	BadAcks  uint64                // answers to messages that were not in flight on the socket
	Fights   uint64                // registrations that had to wait: sockets take an ID from each other
}

// Stats returns the counts. The named channels are there even if no socket ever
// registered on them.
func (h *Hub) Stats(names ...string) Stats {
	st := Stats{
		Sockets:  int(h.sockets.Load()),
		Ended:    make(map[Reason]uint64, reasons),
		Channels: make(map[string]ChannelStats),
	}
	for r := range reasons {
		st.Ended[r] = h.ended[r].Load()
	}
	for _, name := range names {
		h.channel(name)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for name, c := range h.channels {
		cs := ChannelStats{
			Pushed: c.pushed.Load(), Dropped: make(map[DropReason]uint64, dropReasons),
			Timeouts: c.timeouts.Load(), Nacks: c.nacks.Load(), BadAcks: c.badAcks.Load(), Fights: c.fights.Load(),
		}
		for r := range dropReasons {
			cs.Dropped[r] = c.dropped[r].Load()
		}
		c.mu.RLock()
		cs.Sessions = c.size
		c.mu.RUnlock()
		st.Channels[name] = cs
	}
	return st
}
