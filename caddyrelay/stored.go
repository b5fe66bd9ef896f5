package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/hub"
)

// usageTimeout bounds the question what a store holds.
const usageTimeout = 5 * time.Second

// stores reports whether any channel of the configuration is stored.
func (g *generation) stores() bool {
	for _, c := range g.channels {
		if c.stores() {
			return true
		}
	}
	return false
}

// findStore sets g.store, or says what to write instead if the broker cannot store.
func (g *generation) findStore() error {
	if !g.stores() {
		return nil
	}
	store, ok := g.broker.(broker.Store)
	if !ok {
		return fmt.Errorf("the broker %s does not store messages, which at_least_once channels need: "+
			"write \"delivery at_most_once\" in every channel, or use broker embedded or redis", g.app.brokerModule.CaddyModule().ID.Name())
	}
	g.store = store
	if err := g.checkClassic(); err != nil {
		return err
	}
	best := g.app.brokerModule.Proves()
	for name, c := range g.channels {
		if demanded := broker.Durability(c.Durability); c.stores() && !best.Meets(demanded) {
			return fmt.Errorf("channel %s demands the durability %s, and the broker %s proves %s at most: "+
				"demand less, or let redis wait for replicas (\"durability replicas 1\" in its block)",
				name, demanded, g.app.brokerModule.CaddyModule().ID.Name(), best)
		}
	}
	return nil
}

// openStore opens what g's messages are stored in, and refuses g if it would leave messages behind.
func (n *node) openStore(g *generation) error {
	if g.store != nil {
		if s, ok := g.broker.(interface{ Start() error }); ok {
			if err := s.Start(); err != nil {
				return fmt.Errorf("opening the store: %w", err)
			}
		}
	}
	if err := n.moveIn(g); err != nil {
		return err
	}
	before := n.active.Load()
	if before != nil && before.store != nil {
		if err := g.leavesBehind(before); err != nil {
			return err
		}
	}
	if g.store == nil || before != nil && before.store == g.store {
		return nil
	}
	// The first configuration of this process, or another store: it may hold what an earlier process left.
	if _, ours := g.app.brokerModule.(*EmbeddedBroker); !ours {
		return nil // other nodes may have channels that this one doesn't
	}
	left, err := leftIn(g.store, func(channel string) bool { return g.keeps(channel) })
	if err == nil && left != "" {
		err = fmt.Errorf("the store %s holds messages of channels that are not configured at_least_once: %s: configure them, "+
			"until their messages are delivered or dropped, or use another path", g.app.brokerModule.Key(), left)
	}
	return err
}

// keeps reports whether the configuration has a stored channel of that name.
func (g *generation) keeps(channel string) bool {
	c := g.channels[channel]
	return c != nil && c.stores()
}

// drops reports whether g has no longer all that before stores in.
func (g *generation) drops(before *generation) bool {
	if before == nil || before.store == nil {
		return false
	}
	for name := range before.channels {
		if before.keeps(name) && !g.keeps(name) {
			return true
		}
	}
	return before.store != g.store
}

// leavesBehind returns an error if before's store has messages that g would no longer deliver. Dead
// letters count: nobody could look at them any more.
func (g *generation) leavesBehind(before *generation) error {
	if !g.drops(before) {
		return nil
	}
	same := before.store == g.store
	left, err := leftIn(before.store, func(channel string) bool {
		return same && g.keeps(channel) || !before.keeps(channel)
	})
	if err != nil {
		return fmt.Errorf("whether messages would be left behind cannot be found out: %w: the running configuration goes on; "+
			"to leave them all the same, stop Caddy and start it with the new configuration", err)
	}
	if left == "" {
		return nil
	}
	what := "takes the channels away or makes them at_most_once"
	if !same {
		what = "uses another store"
	}
	return fmt.Errorf("this configuration %s, which would leave messages behind: %s: wait until they are delivered, "+
		"or drop them at the admin endpoint (/relay/), and load it again; the running configuration goes on", what, left)
}

// leftIn lists the unfinished messages and dead letters of channels that are not kept.
func leftIn(store broker.Store, kept func(channel string) bool) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), usageTimeout)
	defer cancel()
	usage, err := store.Usage(ctx)
	if err != nil {
		return "", err
	}
	var left []string
	for _, name := range slices.Sorted(maps.Keys(usage)) {
		if u := usage[name]; !kept(name) && u.Pending+u.Dead > 0 {
			left = append(left, fmt.Sprintf("channel %s has %d unfinished and %d dead letters", name, u.Pending, u.Dead))
		}
	}
	return strings.Join(left, ", "), nil
}

// applyStore hands g's policies to its store, and moves the sockets there.
func (n *node) applyStore(g *generation) {
	if g.store == nil {
		return
	}
	policies := make(map[string]broker.Policy)
	for name, c := range g.channels {
		if c.stores() {
			policies[name] = c.policy()
		}
	}
	g.store.SetPolicies(policies)
}

// delivery says how a channel delivers now.
func (n *node) delivery(channel string) (hub.Delivery, bool) {
	g := n.active.Load()
	if g == nil || !g.keeps(channel) {
		return hub.Delivery{}, false
	}
	return g.channels[channel].delivery(g.store), true
}

// errUnstored says that the channel does not store.
var errUnstored = errors.New("the channel is at_most_once: nothing of it is stored")

// store returns the store of a channel in the running configuration.
func (n *node) store(from *generation, channel string) (*generation, error) {
	g, err := n.ruling(from, channel)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	if !g.keeps(channel) {
		return nil, fmt.Errorf("%w: channel %s: %w", broker.ErrRefused, channel, errUnstored)
	}
	return g, nil
}

// append stores a message on its channel as the running configuration has it; see publish.
func (n *node) append(ctx context.Context, from *generation, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	for range 3 {
		g, err := n.store(from, m.Channel)
		if err != nil {
			return broker.Stored{}, err
		}
		n.storing.RLock()
		if n.active.Load() != g {
			n.storing.RUnlock()
			continue
		}
		out, err := g.store.Append(ctx, m, o)
		n.storing.RUnlock()
		// A store that was closed under our hands has a successor, if it was a reload.
		if !errors.Is(err, broker.ErrClosed) {
			return out, err
		}
		if n.active.Load() == g {
			break
		}
	}
	return broker.Stored{}, fmt.Errorf("%w: %w", broker.ErrRefused, errNotRunning)
}

// fought logs that sockets take an ID from each other, once a minute for each channel.
func (n *node) fought(channel, id string, wait time.Duration) {
	held, ok := n.counts.channel(channel).fights.allow()
	if !ok {
		return
	}
	n.logger.Load().Warn("sockets take an ID from each other again and again, so they have to wait: give each back end an ID of its own, "+
		"have them obey \"reconnect\":false, or write on_duplicate_id reject or standby",
		zap.String("channel", channel), zap.String("id", id), zap.Duration("wait", wait), zap.Uint64("since_last_line", held))
}

// promoted logs that a standby has its ID now.
func (n *node) promoted(channel, id string) {
	n.logger.Load().Info("a standby socket has the ID now", zap.String("channel", channel), zap.String("id", id))
}

// storeFailed logs that the store failed a socket, once a minute for each channel.
func (n *node) storeFailed(channel, id string, err error) {
	held, ok := n.counts.channel(channel).storeErrors.allow()
	if !ok {
		return
	}
	n.logger.Load().Error("the store failed a socket; it is tried again, and nothing is lost",
		zap.String("channel", channel), zap.String("id", id), zap.Error(err), zap.Uint64("since_last_line", held))
}
