package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
	"github.com/caddyrelay/relay/internal/hub"
)

// registerMetrics registers the node's counts in the registry of ctx's configuration. Caddy makes a
// new registry for each configuration; the counts are the node's, so they go on.
func registerMetrics(ctx caddy.Context, n *node) error {
	err := ctx.GetMetricsRegistry().Register(&collector{node: n})
	if already := (prometheus.AlreadyRegisteredError{}); err != nil && !errors.As(err, &already) {
		return fmt.Errorf("registering the relay's metrics: %w", err)
	}
	return nil
}

// collector reads the counts when somebody scrapes, so that counting itself costs one atomic add.
type collector struct{ node *node }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_relay_"+name, help, labels, nil)
}

var (
	descPublished = desc("published_total", "Messages that the broker took from this node's publishers.", "channel")
	descRefused   = desc("refused_total", "Requests that were not published, by error.", "channel", "error")
	descInvalid   = desc("skipped_total", "Publications heard that are not for sockets.", "channel")
	descPushed    = desc("pushed_total", "Messages handed to the kernel for a socket.", "channel")
	descDropped   = desc("dropped_total", "Messages for a socket here that were not written to it, by reason.", "channel", "reason")
	descSessions  = desc("sessions", "Registered sockets.", "channel")
	descSockets   = desc("sockets", "Open sockets, registered or not.")
	descEnded     = desc("ended_total", "Sockets that ended, by reason.", "reason")
	descProven    = desc("channel_proven", "1 while this node is known to hear the channel.", "channel")
	descLost      = desc("broker_lost_total", "Times that the broker was lost after it had been heard.")
	descAway      = desc("broker_away_seconds_total", "How long the broker was lost in all, until delivery went on; runs while it is lost.")
	descRoundTrip = desc("broker_probe_seconds", "How long the last probe took through the broker and back; 0 if there is none.")
	descMissed    = desc("listener_dropped_total", "Publications that a slow listener on the bus missed.")
	descPanics    = desc("listener_panics_total", "Panics of listeners on the bus.")

	// Of at_least_once channels.
	descDuplicates = desc("duplicates_total", "Publishes that had the idempotency key of an earlier one, and were answered like it.", "channel")
	descFinished   = desc("finished_total", "Messages that this node finished, by state and, for dead letters, reason.", "channel", "state", "reason")
	descNacks      = desc("nacks_total", "Messages that a client asked to have again, or gave up.", "channel")
	descTimeouts   = desc("ack_timeouts_total", "Messages that a live socket did not answer in time.", "channel")
	descBadAcks    = desc("bad_acks_total", "Answers of sockets to messages that were not in flight there.", "channel")
	descFights     = desc("fights_total", "Registrations that had to wait, because sockets take an ID from each other again and again.", "channel")
	descReadyFor   = desc("ready", "1 while the node is ready for what: publish, sockets.", "what")
	descReady      = desc("store_ready", "1 while the store takes messages at the durability that the channels demand.")
	descPending    = desc("pending", "Unfinished messages in the store.", "channel")
	descBytes      = desc("pending_bytes", "Bytes of the bodies of unfinished messages.", "channel")
	descMailboxes  = desc("mailboxes", "Destinations that have unfinished messages.", "channel")
	descRecords    = desc("records", "Messages that the store knows, finished or not.", "channel")
	descDead       = desc("dead_letters", "Dead letters in the store.", "channel")
	descTaken      = desc("classic_taken_total", "Publications of other programs that this node stored.", "channel")
	descUntaken    = desc("classic_skipped_total", "Publications of other programs that this node could not store, by reason.", "channel", "reason")
	descMirrored   = desc("classic_mirrored_total", "Stored messages that were published for old subscribers.", "channel")
	descUnmirrored = desc("classic_unmirrored_total", "Stored messages that could not be published for old subscribers.", "channel")
	descCharge     = desc("classic_in_charge", "1 while this node is the one that stores what other programs publish.", "channel")
	descOldest     = desc("oldest_pending_seconds", "How long the oldest unfinished message has been waiting, roughly.", "channel")
)

// Describe implements [prometheus.Collector].
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPublished, descRefused, descInvalid, descPushed, descDropped, descSessions, descSockets, descEnded,
		descProven, descLost, descAway, descRoundTrip, descMissed, descPanics,
		descDuplicates, descFinished, descNacks, descTimeouts, descBadAcks, descFights, descReadyFor, descReady, descPending, descBytes,
		descMailboxes, descRecords, descDead, descOldest,
		descTaken, descUntaken, descMirrored, descUnmirrored, descCharge,
	} {
		out <- d
	}
}

// sender sends metrics on their way.
type sender chan<- prometheus.Metric

func (s sender) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (s sender) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := sender(out)
	var names []string
	var redis redisbroker.Stats
	if g := c.node.active.Load(); g != nil {
		if b, ok := g.broker.(*redisbroker.Broker); ok {
			redis = b.Stats()
		}
		for name := range g.channels {
			names = append(names, name)
		}
		for name, f := range g.routes {
			s.gauge(descProven, boolean(f.err() == nil), name)
		}
		for name, heard := range c.node.hears(g) {
			s.gauge(descProven, boolean(heard), name)
		}
		if g.store != nil {
			s.store(g)
		}
	}
	ready := c.node.readiness()
	s.gauge(descReadyFor, boolean(ready.Publish.Ready), "publish")
	s.gauge(descReadyFor, boolean(ready.Sockets.Ready), "sockets")
	s.counter(descLost, redis.Lost)
	s <- prometheus.MustNewConstMetric(descAway, prometheus.CounterValue, redis.Away.Seconds())
	s.gauge(descRoundTrip, redis.RoundTrip.Seconds())
	s.hub(c.node.hub.Stats(names...))
	for _, name := range names {
		cc := c.node.counts.channel(name)
		s.counter(descPublished, cc.published.Load(), name)
		s.counter(descDuplicates, cc.duplicates.Load(), name)
		s.counter(descInvalid, cc.invalid.Load(), name)
		for r := range refusals {
			s.counter(descRefused, cc.refused[r].Load(), name, r.String())
		}
		s.classic(name, &cc.classic, c.node.inCharge(name))
	}
	s.counter(descMissed, c.node.counts.listenerDropped.Load())
	s.counter(descPanics, c.node.counts.listenerPanics.Load())
}

func (s sender) classic(name string, c *classicCounts, charge bool) {
	s.counter(descTaken, c.taken.Load(), name)
	for u := range unfits {
		s.counter(descUntaken, c.skipped[u].Load(), name, u.String())
	}
	s.counter(descMirrored, c.mirrored.Load(), name)
	s.counter(descUnmirrored, c.unmirrored.Load(), name)
	s.gauge(descCharge, boolean(charge), name)
}

func (s sender) hub(st hub.Stats) {
	s.gauge(descSockets, float64(st.Sockets))
	for reason, v := range st.Ended {
		s.counter(descEnded, v, reason.String())
	}
	for name, ch := range st.Channels {
		s.gauge(descSessions, float64(ch.Sessions), name)
		s.counter(descPushed, ch.Pushed, name)
		for reason, v := range ch.Dropped {
			s.counter(descDropped, v, name, reason.String())
		}
		s.counter(descNacks, ch.Nacks, name)
		s.counter(descTimeouts, ch.Timeouts, name)
		s.counter(descBadAcks, ch.BadAcks, name)
		s.counter(descFights, ch.Fights, name)
	}
}

// store asks the store what it holds. A store that cannot be asked leaves its gauges out: a zero would look
// like good news.
func (s sender) store(g *generation) {
	s.gauge(descReady, boolean(g.store.Ready() == nil))
	endings := g.store.Endings()
	for name := range g.channels {
		if g.keeps(name) {
			addMissing(endings, name)
		}
	}
	for e, v := range endings {
		s.counter(descFinished, v, e.Channel, string(e.State), string(e.Reason))
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	usage, err := g.store.Usage(ctx)
	if err != nil {
		return
	}
	for name := range g.channels {
		if _, there := usage[name]; !there && g.keeps(name) {
			usage[name] = broker.Usage{}
		}
	}
	for name, u := range usage {
		s.gauge(descPending, float64(u.Pending), name)
		s.gauge(descBytes, float64(u.Bytes), name)
		s.gauge(descMailboxes, float64(u.Mailboxes), name)
		s.gauge(descRecords, float64(u.Records), name)
		s.gauge(descDead, float64(u.Dead), name)
		age := 0.0
		if !u.Oldest.IsZero() {
			age = max(0, g.store.Now().Sub(u.Oldest).Seconds())
		}
		s.gauge(descOldest, age, name)
	}
}

// addMissing adds the ends that no message of a channel has had yet, at zero: a counter that appears with its
// first dead letter would hide that one from whoever watches its rate.
func addMissing(endings map[broker.Ending]uint64, channel string) {
	for _, state := range []broker.State{
		broker.StateAcked, broker.StateWritten, broker.StateExpired, broker.StateCancelled, broker.StateErased,
	} {
		endings[broker.Ending{Channel: channel, State: state}] += 0
	}
	for _, reason := range []broker.DeadReason{
		broker.DeadAttempts, broker.DeadCrashes, broker.DeadTerminated, broker.DeadRetention, broker.DeadUnframable, broker.DeadTooLarge,
	} {
		endings[broker.Ending{Channel: channel, State: broker.StateDead, Reason: reason}] += 0
	}
}

// scrapeTimeout bounds what a store may take of a scrape.
const scrapeTimeout = 2 * time.Second
