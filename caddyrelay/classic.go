package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
)

// What an at_least_once channel does on its classic channel, the Redis channel of programs that know nothing of
// the relay.
const (
	classicIn   = "in"
	classicOut  = "out"
	classicBoth = "both"
	classicOff  = "off"
)

// classicBroker is a broker that other programs publish on and subscribe to, and that many nodes share.
type classicBroker interface {
	broker.Broker
	NewLease(name string, lasts time.Duration) *redisbroker.Lease
	OwnChannel(name string) string
}

// checkClassic says what is wrong with classic, and with redis_channel, which goes with it.
func (c *Channel) checkClassic() error {
	switch c.Classic {
	case "", classicIn, classicOut, classicBoth, classicOff:
	default:
		return fmt.Errorf("unknown classic %q: write in, out, both or off", c.Classic)
	}
	if c.RedisChannel != "" && c.Classic == "" {
		return errors.New("redis_channel belongs to delivery at_most_once or to classic: take it out, " +
			"or write \"delivery at_most_once\" or \"classic in\"")
	}
	return nil
}

// takesIn reports whether what others publish is stored.
func (c *Channel) takesIn() bool {
	return c.stores() && (c.Classic == classicIn || c.Classic == classicBoth)
}

// mirrors reports whether what is stored is published for others.
func (c *Channel) mirrors() bool {
	return c.stores() && (c.Classic == classicOut || c.Classic == classicBoth)
}

// checkClassic says what to write instead if the broker has no classic channels.
func (g *generation) checkClassic() error {
	if _, ok := g.broker.(classicBroker); ok {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(g.channels)) {
		if c := g.channels[name]; c.takesIn() || c.mirrors() {
			return fmt.Errorf("channel %s: classic %s is for programs that publish and subscribe in Redis, and the broker %s "+
				"has none: use broker redis, or take classic out", name, c.Classic, g.app.brokerModule.CaddyModule().ID.Name())
		}
	}
	return nil
}

// classicCounts is what one channel counts of its classic channel.
type classicCounts struct {
	taken      atomic.Uint64
	skipped    [unfits]atomic.Uint64
	mirrored   atomic.Uint64
	unmirrored atomic.Uint64
	skips      throttle
	misses     throttle
}

// unfit says why a publication of a classic channel was not stored. It is a metric label, so a text, once
// released, stays.
type unfit uint8

const (
	unfitShape  unfit = iota // not of the shape of a message, or its ID cannot be
	unfitAll                 // for every socket
	unfitFull                // the mailbox, the channel or the like is full
	unfitLate                // more was published than could be stored
	unfitFailed              // the store refused it for good
	unfits                   // the number of them
)

func (u unfit) String() string {
	return [unfits]string{"not_for_sockets", "broadcast", "full", "too_fast", "failed"}[u]
}

// mirrorTimeout bounds what a sender waits for the sake of programs that only listen.
const mirrorTimeout = time.Second

// keep stores what was posted or came over the bus, and mirrors it if the channel says so. A message that cannot
// be mirrored is stored all the same.
func (n *node) keep(ctx context.Context, from *generation, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	out, err := n.append(ctx, from, m, o)
	if (err == nil || errors.Is(err, broker.ErrUnproven)) && !out.Duplicate {
		n.mirror(ctx, m)
	}
	return out, err
}

// mirror publishes a stored message on its classic channel, at most once. It waits for Redis, so that what one sender
// posts is published in order.
func (n *node) mirror(ctx context.Context, m *broker.Message) {
	g := n.active.Load()
	if g == nil || g.channels[m.Channel] == nil || !g.channels[m.Channel].mirrors() {
		return
	}
	counts := &n.counts.channel(m.Channel).classic
	p, err := broker.FromStored(m)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), mirrorTimeout)
		defer cancel()
		_, err = g.broker.Publish(ctx, g.channels[m.Channel].topic(m.Channel), p)
	}
	if err == nil {
		counts.mirrored.Add(1)
		return
	}
	counts.unmirrored.Add(1)
	if held, ok := counts.misses.allow(); ok {
		n.logger.Load().Warn("a message is stored and will be delivered, but was not published for the old subscribers",
			zap.String("channel", m.Channel), zap.String("mid", m.MID), zap.Error(err), zap.Uint64("since_last_line", held))
	}
}
