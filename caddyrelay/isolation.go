package caddyrelay

import (
	"cmp"
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/internal/hub"
)

// isolator is a broker module that says how long a node may be without its store before its sockets should try another
// node.
type isolator interface{ isolateAfter() time.Duration }

// unreached is a store that can be out of reach. It says for how long it has been.
type unreached interface{ Unreached() time.Duration }

// isolationInterval is how often that is asked.
const isolationInterval = time.Second

// watchIsolation hands the sockets of stored channels off when the store has been out of reach for too long. Until then they
// stay: a Redis that restarts must not have all clients connect anew, and what they acknowledge meanwhile is settled when
// it is back. It ends with the generation.
func (n *node) watchIsolation(g *generation) {
	limit := time.Duration(0)
	if m, ok := g.app.brokerModule.(isolator); ok {
		limit = m.isolateAfter()
	}
	store, ok := g.store.(unreached)
	if !ok || limit <= 0 {
		return
	}
	tick := time.NewTicker(isolationInterval)
	defer tick.Stop()
	isolated := false
	for {
		select {
		case <-g.stopped:
			return
		case <-tick.C:
		}
		away := store.Unreached()
		switch {
		case n.active.Load() != g:
		case away < limit:
			isolated = false
		case !isolated:
			isolated = true
			n.logger.Load().Error("the store has been out of reach for so long that the sockets are asked to try another node; "+
				"see why this node cannot reach it", zap.Duration("away", away.Round(time.Second)), zap.NamedError("store", g.store.Ready()))
			n.handOff(g, store, limit)
		}
	}
}

// handOff asks the sockets of stored channels to try another node, at the pace of a drain, until the store is back.
func (n *node) handOff(g *generation, store unreached, limit time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		tick := time.NewTicker(isolationInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-g.stopped:
				cancel()
			case <-tick.C:
				if store.Unreached() < limit {
					cancel()
				}
			}
		}
	}()
	n.hub.DismissAt(ctx, cmp.Or(g.app.DrainRate, defaultDrainRate), hub.Isolated, g.app.spread(), func(s *hub.Session) bool { return s.Stored() })
}
